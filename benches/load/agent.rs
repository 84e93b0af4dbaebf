//! How does one agent of a fleet speak with a server? As SPIRE's agents do, and by `passant.sync.v1`.

mod floor;
mod follow;
mod own;
mod work;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use passant_core::Host;
use passant_core::keys::SigningKey;
use passant_proto::entry::SyncAuthorizedEntriesRequest;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::types;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use crate::clock;
use crate::nodes::Nodes;
use crate::order::Act;
use crate::wire::{Shown, Wire};

/// The pause before something is tried again; doubled each time, and then cut by chance.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(8);
/// Entries that an agent asks for in one message.
const PAGE: usize = 500;

/// What all agents of a process share.
pub(crate) struct Common {
    pub(crate) server: SocketAddr,
    /// Addresses from which they come.
    pub(crate) spread: usize,
    pub(crate) nodes: Nodes,
    pub(crate) wire: Wire,
    pub(crate) host: Host,
    /// CSRs, each with a key of its own. Agents take them in turns: the work of the server is the same.
    pub(crate) csrs: Vec<Vec<u8>>,
}

/// One agent.
pub(crate) struct Agent {
    number: usize,
    source: IpAddr,
    identity: Option<Arc<Identity>>,
    channel: Option<Channel>,
    entries: Vec<Held>,
    seen: Arc<watch::Sender<Seen>>,
    /// What it does all the time.
    standing: Option<AbortHandle>,
}

/// An entry, as far as an agent needs it.
struct Held {
    id: String,
    selectors: Vec<types::Selector>,
}

/// The X509-SVID of an agent.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

/// What an agent has heard, and when.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// When the server last said anything.
    heard_at: f64,
    bundle: u64,
    bundle_at: f64,
    stops: usize,
    stops_at: f64,
    /// How often it had to connect again.
    again: usize,
}

/// What one agent has done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) spans: Vec<[f64; 2]>,
    pub(crate) again: usize,
}

impl Done {
    fn since(began: f64) -> Self {
        Self { spans: vec![[began, clock::now()]], again: 0 }
    }
}

impl Identity {
    fn shown(&self) -> Shown {
        let key = PrivatePkcs8KeyDer::from(self.key.pkcs8().expose().clone());
        (self.chain.clone(), key.into())
    }
}

impl Agent {
    pub(crate) fn new(number: usize, common: &Common) -> Self {
        Self {
            number,
            source: crate::wire::source(number, common.spread),
            identity: None,
            channel: None,
            entries: Vec::new(),
            seen: Arc::new(watch::Sender::new(Seen::default())),
            standing: None,
        }
    }

    /// Does what it is told.
    pub(crate) async fn act(&mut self, act: &Act, common: &Arc<Common>) -> Result<Done> {
        match *act {
            Act::Attest => self.attest(common).await,
            Act::Connect { entries } => self.connect(entries, common).await,
            Act::Poll { every_ms } => self.poll(Duration::from_millis(every_ms), common),
            Act::Watch => self.watch(common),
            Act::HeardAfter { at } => self.wait(|seen| (seen.heard_at > at).then_some(seen.heard_at)).await,
            Act::Bundle { sequence } => {
                self.wait(|seen| (seen.bundle >= sequence).then_some(seen.bundle_at)).await
            }
            Act::Stops { count } => self.wait(|seen| (seen.stops == count).then_some(seen.stops_at)).await,
            Act::Leave => Ok(self.leave()),
            Act::Mint { batches, size, on_evidence } => self.mint(batches, size, on_evidence, common).await,
            Act::Renew { on_evidence } => self.renew(on_evidence, common).await,
            Act::Jwt { count } => self.jwt(count).await,
            Act::Listen { at } => self.listen(at, common).await,
            Act::Call { count } => self.call(count).await,
        }
    }

    fn identity(&self) -> Result<Arc<Identity>> {
        Ok(Arc::clone(self.identity.as_ref().context("the agent has not attested")?))
    }

    fn channel(&self) -> Result<Channel> {
        self.channel.clone().context("the agent is not connected")
    }

    async fn connect(&mut self, least: usize, common: &Common) -> Result<Done> {
        let began = clock::now();
        if self.channel.is_some() {
            return Ok(Done::default());
        }
        let shown = self.identity()?.shown();
        let channel = common.wire.connect(common.server, self.source, Some(shown)).await?;
        let mut pause = AGAIN_FIRST;
        let mut again = 0;
        loop {
            self.entries = synchronized(&channel).await?;
            if self.entries.len() >= least {
                break;
            }
            // A SPIRE server reads its entries every few seconds.
            again += 1;
            pause = later(pause, &common.host).await;
        }
        self.channel = Some(channel);
        Ok(Done { again, ..Done::since(began) })
    }

    /// Waits for `what`, which answers when it came.
    async fn wait(&mut self, what: impl Fn(&Seen) -> Option<f64>) -> Result<Done> {
        ensure!(self.standing.is_some(), "the agent listens to nothing");
        let mut seen = self.seen.subscribe();
        let seen = *seen.wait_for(|seen| what(seen).is_some()).await?;
        let Some(at) = what(&seen) else { bail!("it was there a moment ago") };
        Ok(Done { spans: vec![[at, at]], again: seen.again })
    }

    fn leave(&mut self) -> Done {
        if let Some(standing) = self.standing.take() {
            standing.abort();
        }
        self.channel = None;
        self.seen.send_replace(Seen::default());
        Done::since(clock::now())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The agent's entries, as SPIRE's agents ask for them.
async fn synchronized(channel: &Channel) -> Result<Vec<Held>> {
    let (requests, outgoing) = tokio::sync::mpsc::channel(2);
    let mask = types::EntryMask {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        x509_svid_ttl: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        dns_names: true,
        revision_number: true,
        store_svid: true,
        jwt_svid_ttl: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
    };
    requests.send(SyncAuthorizedEntriesRequest { output_mask: Some(mask), ids: Vec::new() }).await?;
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut answers = EntryClient::new(channel.clone()).sync_authorized_entries(outgoing).await?.into_inner();
    let held = |entry: types::Entry| Held { id: entry.id, selectors: entry.selectors };
    let (mut entries, mut wanted) = (Vec::new(), Vec::new());
    loop {
        let answer = answers.message().await?.context("the server ended the synchronization")?;
        entries.extend(answer.entries.into_iter().map(held));
        wanted.extend(answer.entry_revisions.into_iter().map(|revision| revision.id));
        if !answer.more {
            break;
        }
    }
    // Of a large set there are only revisions yet.
    for page in wanted.chunks(PAGE) {
        requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids: page.to_vec() }).await?;
        loop {
            let answer = answers.message().await?.context("the server ended the synchronization")?;
            entries.extend(answer.entries.into_iter().map(held));
            if !answer.more {
                break;
            }
        }
    }
    Ok(entries)
}

/// Waits for up to `pause`, and gives the next one.
async fn later(pause: Duration, host: &Host) -> Duration {
    tokio::time::sleep(by_chance(pause, host)).await;
    (pause * 2).min(AGAIN_MOST)
}

/// Something between nothing and `span`.
fn by_chance(span: Duration, host: &Host) -> Duration {
    let [chance] = host.random_bytes::<1>();
    span * u32::from(chance) / 256
}
