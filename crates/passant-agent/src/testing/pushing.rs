//! What would a server push? The same fake, with a watch that says what a test has it say.

use std::collections::BTreeMap;
use std::time::Duration;

use passant_core::{AgentFault, Evidence, Refusal, view_digest};
use passant_proto::options::{EntryWithOptions, Options};
use passant_proto::sync::sync_server::Sync;
use passant_proto::sync::watch_request::Request as Asked;
use passant_proto::sync::watch_response::Response as Told;
use passant_proto::sync::{
    BatchMintX509svidRequest, BatchMintX509svidResponse, Cursor, Heartbeat, Hello, MintJwtsvidRequest,
    MintJwtsvidResponse, Report, Stop, Stops, Update, WatchRequest, WatchResponse, Welcome,
    batch_mint_x509svid_response,
};
use passant_proto::{convert, status, types};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::server::{Fake, World};

/// What the fake pushes, and what it was told over watches.
pub(crate) struct Pushing {
    /// Off: watches are unimplemented, as with SPIRE.
    pub(crate) is_on: bool,
    pub(crate) beats: bool,
    /// A watch begins with everything, whatever the agent holds, and what is asked for again does not come.
    pub(crate) is_deaf: bool,
    pub(crate) lineage: String,
    pub(crate) revision: u64,
    /// How many seconds its clock is ahead of the agent's.
    pub(crate) ahead: i64,
    /// Told with every update.
    pub(crate) stops: Vec<Stop>,
    pub(crate) options: BTreeMap<String, Options>,
    /// What SVIDs were asked for on: by entry, X509-SVIDs and JWT-SVIDs alike.
    pub(crate) evidence: Vec<(String, Option<Evidence>)>,
    /// Watches, but mints as SPIRE does.
    pub(crate) mints_plainly: bool,
    /// Entries in one part.
    pub(crate) part: usize,
    /// What the agent knows.
    told: BTreeMap<String, types::Entry>,
    told_bundle: Option<passant_core::bundle::Bundle>,
    watchers: Vec<mpsc::Sender<Result<WatchResponse, Status>>>,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) acks: Vec<u64>,
    pub(crate) reports: Vec<Report>,
    pub(crate) resyncs: Vec<String>,
}

impl Default for Pushing {
    fn default() -> Self {
        Self {
            is_on: false,
            beats: true,
            is_deaf: false,
            lineage: "one".to_owned(),
            revision: 1,
            ahead: 0,
            stops: Vec::new(),
            options: BTreeMap::new(),
            evidence: Vec::new(),
            mints_plainly: false,
            part: 500,
            told: BTreeMap::new(),
            told_bundle: None,
            watchers: Vec::new(),
            hellos: Vec::new(),
            acks: Vec::new(),
            reports: Vec::new(),
            resyncs: Vec::new(),
        }
    }
}

impl World {
    fn cursor(&self) -> Option<Cursor> {
        Some(Cursor { lineage: self.push.lineage.clone(), revision: self.push.revision })
    }

    fn digest(&self) -> u64 {
        let entries = self.entries.values();
        let shares = entries.map(|entry| view_digest::share(&entry.id, entry.revision_number.unsigned_abs()));
        shares.fold(0, u64::wrapping_add)
    }

    /// What has changed since something was last told, or everything.
    fn update(&mut self, snapshot: bool) -> Vec<Update> {
        if snapshot {
            self.push.told.clear();
            self.push.told_bundle = None;
        }
        let news = self.entries.iter().filter(|(id, entry)| self.push.told.get(*id) != Some(entry));
        let told = |(id, entry): (&String, &types::Entry)| EntryWithOptions {
            entry: Some(entry.clone()),
            options: self.push.options.get(id).copied(),
        };
        let entries: Vec<_> = news.map(told).collect();
        let gone = self.push.told.keys().filter(|id| !self.entries.contains_key(*id));
        let removed_entries = gone.cloned().collect();
        let mut bundles = Vec::new();
        if self.push.told_bundle.as_ref() != Some(&self.bundle) {
            bundles.push(convert::bundle::to_wire(&self.bundle).into());
            bundles.extend(self.federated.values().map(|bundle| convert::bundle::to_wire(bundle).into()));
        }
        self.push.told.clone_from(&self.entries);
        self.push.told_bundle = Some(self.bundle.clone());
        let part = Update { cursor: self.cursor(), snapshot, digest: self.digest(), ..Update::default() };
        let mut parts: Vec<Update> = entries
            .chunks(self.push.part)
            .map(|entries| Update { entries: entries.to_vec(), ..part.clone() })
            .collect();
        if parts.is_empty() {
            parts.push(part);
        }
        let last = parts.len() - 1;
        for part in &mut parts[..last] {
            part.more = true;
            part.digest = 0;
        }
        parts[last].stops = Some(Stops { stops: self.push.stops.clone() });
        parts[last].removed_entries = removed_entries;
        parts[last].bundles = bundles;
        parts
    }

    /// Says this to whoever watches.
    pub(crate) fn say(&mut self, told: &Told) {
        let response = WatchResponse { response: Some(told.clone()) };
        self.push.watchers.retain(|watcher| watcher.try_send(Ok(response.clone())).is_ok());
    }

    /// Pushes what has changed.
    pub(crate) fn publish(&mut self) {
        self.push.revision += 1;
        for part in self.update(false) {
            self.say(&Told::Update(part));
        }
    }

    /// Bans the node, and tells it so by the end of its watch.
    pub(crate) fn ban(&mut self) {
        self.banned = true;
        let refusal = Refusal::denied("agent is not accepted").with_agent_fault(AgentFault::Banned);
        for watcher in self.push.watchers.drain(..) {
            drop(watcher.try_send(Err(status::to_status(&refusal))));
        }
    }

    /// Ends all watches.
    pub(crate) fn cut(&mut self) {
        self.push.watchers.clear();
    }

    /// How many watch.
    pub(crate) fn watchers(&mut self) -> usize {
        self.push.watchers.retain(|watcher| !watcher.is_closed());
        self.push.watchers.len()
    }
}

impl Fake {
    fn millis(&self, ahead: i64) -> i64 {
        (self.host().now().secs() + ahead) * 1000
    }

    async fn listen(self, mut requests: Streaming<WatchRequest>) {
        while let Ok(Some(request)) = requests.message().await {
            let mut world = self.world();
            match request.request.unwrap() {
                Asked::Hello(_) => panic!("a second hello"),
                Asked::Ack(ack) => world.push.acks.push(ack.cursor.unwrap().revision),
                Asked::Report(report) => world.push.reports.push(report),
                Asked::Resync(resync) => {
                    world.push.resyncs.push(resync.reason);
                    if !world.push.is_deaf {
                        for part in world.update(true) {
                            world.say(&Told::Update(part));
                        }
                    }
                }
            }
        }
    }

    async fn beat(self, watcher: mpsc::WeakSender<Result<WatchResponse, Status>>) {
        loop {
            tokio::time::sleep(Duration::from_secs(15)).await;
            let Some(watcher) = watcher.upgrade() else { return };
            let response = {
                let world = self.world();
                let server_time_millis = self.millis(world.push.ahead);
                let heartbeat = Heartbeat { cursor: world.cursor(), server_time_millis };
                world.push.beats.then_some(WatchResponse { response: Some(Told::Heartbeat(heartbeat)) })
            };
            if let Some(response) = response {
                drop(watcher.send(Ok(response)).await);
            }
        }
    }
}

#[tonic::async_trait]
impl Sync for Fake {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.world().push.is_on {
            return Err(Status::unimplemented("unknown service"));
        }
        drop(self.called_by_node("Watch", &request)?);
        let mut requests = request.into_inner();
        let Some(Asked::Hello(hello)) = requests.message().await?.and_then(|first| first.request) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (answers, stream) = mpsc::channel(64);
        {
            let mut world = self.world();
            // A second watch ends the first.
            world.push.watchers = vec![answers.clone()];
            let welcome = Welcome {
                protocol: 1,
                version: "fake".to_owned(),
                heartbeat_millis: 15_000,
                server_time_millis: self.millis(world.push.ahead),
            };
            world.say(&Told::Welcome(welcome));
            let cursor = hello.cursor.clone().filter(|cursor| cursor.lineage == world.push.lineage);
            let is_same = cursor.is_some() && hello.digest == world.digest() && !world.push.is_deaf;
            world.push.hellos.push(hello);
            if is_same {
                world.push.told = world.entries.clone();
                world.push.told_bundle = None;
            }
            for part in world.update(!is_same) {
                world.say(&Told::Update(part));
            }
        }
        tokio::spawn(self.clone().listen(requests));
        tokio::spawn(self.clone().beat(answers.downgrade()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn batch_mint_x509svid(
        &self,
        request: Request<BatchMintX509svidRequest>,
    ) -> Result<Response<BatchMintX509svidResponse>, Status> {
        let now = self.host().now().secs();
        let mut world = self.called_by_node("BatchMintX509SVID", &request)?;
        if world.push.mints_plainly {
            return Err(Status::unimplemented("unknown method"));
        }
        let items = request.into_inner().items;
        world.batches.push(items.len());
        let mut results = Vec::new();
        for item in items {
            let (status, svid) = world.mint(&item.entry_id, &item.csr, now);
            results.push(batch_mint_x509svid_response::Result { status: Some(status), svid });
            let evidence = item.evidence.map(|evidence| convert::evidence::from_wire(&evidence).unwrap());
            world.push.evidence.push((item.entry_id, evidence));
        }
        Ok(Response::new(BatchMintX509svidResponse { results }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        let now = self.host().now();
        let mut world = self.called_by_node("MintJWTSVID", &request)?;
        let request = request.into_inner();
        let evidence = request.evidence.map(|evidence| convert::evidence::from_wire(&evidence).unwrap());
        let svid = world.mint_jwt(&request.entry_id, request.audience, now)?;
        world.push.evidence.push((request.entry_id, evidence));
        Ok(Response::new(MintJwtsvidResponse { svid: Some(svid) }))
    }
}
