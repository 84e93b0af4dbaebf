//! Does a watching agent hold what it should, at all times, whatever it does?

mod heartbeats;
mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use passant_core::{
    Bundle, EntryDraft, EntryId, EntryOptions, Instance, KeyScope, Stop, StopReason, StopTarget,
};
use passant_core::{Entry, SpiffeId, UnixTime, view_digest};
use passant_proto::sync::watch_request::Request;
use passant_proto::sync::watch_response::Response as Answer;
use passant_proto::sync::{
    Ack, Capability, Cursor, Hello, Report, Resync, Update, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::*;
use crate::command;
use crate::limits::{WATCH_ACK_WITHIN, WATCH_ENTRIES, WATCH_HEARTBEAT, WATCH_HELLO_WITHIN, WATCH_REQUESTS};
use crate::metrics::{Catching, Metrics};
use crate::rig::{HOUR, Rig, START, domain, id, selectors};
use crate::state::node::AttestedNode;
use crate::state::samples::{bundle, other_trust_domain};
use crate::state::{Change, Revision};
use crate::sync::held::is_fit;
use crate::sync::hub::Hub;
use crate::sync::rollout::{Needs, Why};

/// A server with a hub, and its agents.
struct Post {
    rig: Rig,
    with: Arc<With>,
    stop: CancellationToken,
}

/// An agent that does what the protocol says, when it is told to.
#[derive(Default)]
struct Client {
    requests: Option<mpsc::Sender<Result<WatchRequest, Status>>>,
    answers: Option<Answers>,
    /// What has taken effect.
    entries: BTreeMap<String, u64>,
    bundles: BTreeMap<String, u64>,
    stops: BTreeSet<String>,
    cursor: Option<Cursor>,
    /// Parts of an update that is not complete.
    parts: Vec<Update>,
    owes: Option<Cursor>,
    beats: u32,
}

impl Post {
    async fn new() -> Self {
        let rig = Rig::new().await;
        let metrics = Arc::<Metrics>::default();
        let hub = Hub::new(rig.journal.clone(), rig.host.clone(), Arc::clone(&metrics));
        let stop = CancellationToken::new();
        tokio::spawn(hub.clone().run(hub.follow(), stop.clone()));
        let with = Arc::new(With {
            journal: rig.journal.clone(),
            hub,
            callers: rig.callers.clone(),
            authorities: Arc::clone(&rig.authorities),
            host: rig.host.clone(),
            metrics,
            bundles: Wired::default(),
            ticks: Ticks::begin(),
        });
        Self { rig, with, stop }
    }

    fn began(&self, how: Catching) -> u64 {
        self.with.metrics.watch_began.of(how).count()
    }

    fn revision(&self) -> Revision {
        self.rig.state().cursor().revision
    }

    /// Registers an entry with a revision of its own.
    async fn put(&self, name: &str, parent: &SpiffeId, change: impl FnOnce(&mut EntryDraft)) {
        let mut draft = EntryDraft::new(id("/w"), parent.clone(), selectors(&["unix:uid:1"]));
        change(&mut draft);
        let revision = self.revision().number() + 1;
        let entry =
            draft.register(&domain(), EntryId::parse(name).unwrap(), revision, self.rig.now()).unwrap();
        self.rig.commit(vec![Change::PutEntry(Arc::new(entry))]).await;
    }

    /// The agent polls twice, and so has what it was answered first.
    fn polls(&self, agent: &SpiffeId) {
        for _ in 0..2 {
            self.with.hub.polls(agent);
            self.with.hub.answered(agent, self.revision());
        }
    }

    async fn delete(&self, name: &str) {
        self.rig.commit(vec![Change::DeleteEntry(EntryId::parse(name).unwrap())]).await;
    }

    /// What the agent should hold.
    fn truth(&self, agent: &SpiffeId) -> BTreeMap<String, u64> {
        let entries = self.rig.state().authorized_entries(agent, self.rig.now());
        let fit = |entry: &Arc<Entry>| is_fit(entry, true);
        entries.into_iter().filter(fit).map(|entry| (entry.id.to_string(), entry.revision)).collect()
    }
}

fn hello(client: &Client) -> Hello {
    let digest = client
        .entries
        .iter()
        .fold(0_u64, |sum, (id, revision)| sum.wrapping_add(view_digest::share(id, *revision)));
    Hello {
        protocol: 1,
        version: "1.2".to_owned(),
        capabilities: vec![Capability::EntryOptions.into(), Capability::Stops.into(), 99],
        cursor: client.cursor.clone(),
        digest,
    }
}

impl Client {
    /// Begins a watch, and leaves the one it has.
    fn watch(&mut self, post: &Post, peer: &ConnPeer, hello: Hello) {
        self.begin(post, peer);
        self.say(Request::Hello(hello));
    }

    fn begin(&mut self, post: &Post, peer: &ConnPeer) {
        let ConnPeer::Remote { svid: Some(svid), .. } = peer else { panic!("no SVID") };
        let (requests, stream) = mpsc::channel(100);
        let (out, answers) = outbox();
        let watch =
            Watch::begin(Arc::clone(&post.with), svid.id(), peer.clone(), ReceiverStream::new(stream), out);
        tokio::spawn(Box::new(watch.unwrap()).run());
        (self.requests, self.answers) = (Some(requests), Some(answers));
        (self.parts, self.owes) = (Vec::new(), None);
    }

    fn say(&self, request: Request) {
        let request = WatchRequest { request: Some(request) };
        self.requests.as_ref().unwrap().try_send(Ok(request)).unwrap();
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        self.answers.as_mut().unwrap().next().await.unwrap()
    }

    /// Why the watch ends, whatever comes before.
    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Takes one answer; the update that it completes, if it does.
    async fn take(&mut self) -> Result<Option<Update>, Status> {
        match self.next().await?.response.unwrap() {
            Answer::Welcome(welcome) => {
                assert_eq!(welcome.protocol, 1);
                Ok(None)
            }
            Answer::Heartbeat(heartbeat) => {
                self.beats += 1;
                self.cursor = heartbeat.cursor;
                Ok(None)
            }
            Answer::Update(part) => {
                let more = part.more;
                self.parts.push(part);
                Ok((!more).then(|| self.apply()))
            }
        }
    }

    /// Takes answers until an update is complete.
    async fn update(&mut self) -> Update {
        loop {
            if let Some(update) = self.take().await.unwrap() {
                return update;
            }
        }
    }

    /// All parts as one.
    fn apply(&mut self) -> Update {
        let mut parts = std::mem::take(&mut self.parts).into_iter();
        let mut whole = parts.next().unwrap();
        for part in parts {
            assert_eq!((&part.cursor, part.snapshot), (&whole.cursor, whole.snapshot));
            whole.entries.extend(part.entries);
            whole.removed_entries.extend(part.removed_entries);
            whole.bundles.extend(part.bundles);
            whole.removed_bundles.extend(part.removed_bundles);
            if let Some(stops) = part.stops {
                whole.stops.get_or_insert_default().stops.extend(stops.stops);
            }
            whole.digest = part.digest;
        }
        if whole.snapshot {
            (self.entries, self.bundles, self.stops) = Default::default();
        }
        for removed in &whole.removed_entries {
            self.entries.remove(removed);
        }
        for put in &whole.entries {
            let entry = put.entry.as_ref().unwrap();
            self.entries.insert(entry.id.clone(), u64::try_from(entry.revision_number).unwrap());
        }
        for removed in &whole.removed_bundles {
            self.bundles.remove(removed);
        }
        for put in &whole.bundles {
            self.bundles.insert(put.trust_domain.clone(), put.sequence_number);
        }
        if let Some(stops) = &whole.stops {
            self.stops = stops.stops.iter().map(|stop| stop.id.clone()).collect();
        }
        assert_eq!(whole.digest, hello(self).digest, "{whole:?}");
        (self.cursor, self.owes) = (whole.cursor.clone(), whole.cursor.clone());
        whole
    }

    fn ack(&mut self) {
        if let Some(cursor) = self.owes.take() {
            self.say(Request::Ack(Ack { cursor: Some(cursor) }));
        }
    }

    /// Takes the first update and acknowledges it.
    async fn settle(&mut self) -> Update {
        let update = self.update().await;
        self.ack();
        update
    }

    /// Takes and acknowledges what comes until the server knows that this agent has everything.
    async fn settle_all(&mut self, post: &Post, agent: &SpiffeId) {
        let revision = post.revision();
        let until = Instant::now() + HOUR;
        let (agents, now) = ([agent.clone()], || post.rig.now());
        let done = post.with.hub.rolled_out(&agents, revision, Needs::Entries, until, now);
        tokio::pin!(done);
        self.ack();
        loop {
            tokio::select! {
                biased;
                rollout = &mut done => {
                    assert_eq!(rollout.applied, 1);
                    return;
                }
                taken = self.take() => {
                    taken.unwrap();
                    self.ack();
                }
            }
        }
    }
}

fn ids(update: &Update) -> Vec<&str> {
    update.entries.iter().map(|put| put.entry.as_ref().unwrap().id.as_str()).collect()
}

fn fault(status: &Status) -> Option<passant_core::AgentFault> {
    status::from_status(status).agent_fault
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_comes_first_and_then_what_concerns_the_agent() {
    let post = Post::new().await;
    let ((a, peer_a), (b, peer_b)) = (post.rig.agent("a").await, post.rig.agent("b").await);
    post.put("mine", a.id(), |_| {}).await;
    post.put("theirs", b.id(), |_| {}).await;
    let (mut one, mut other) = (Client::default(), Client::default());
    one.watch(&post, &peer_a, hello(&Client::default()));
    other.watch(&post, &peer_b, hello(&Client::default()));
    let first = one.settle().await;
    assert!(first.snapshot && first.authorities.is_some() && first.stops.is_some());
    assert_eq!((ids(&first), one.bundles.len()), (vec!["mine"], 1));
    assert_eq!(ids(&other.settle().await), ["theirs"]);

    post.put("more", a.id(), |_| {}).await;
    let delta = one.settle().await;
    assert_eq!((delta.snapshot, ids(&delta), delta.bundles.len()), (false, vec!["more"], 0));
    assert!(delta.authorities.is_none() && delta.stops.is_none());
    post.delete("mine").await;
    assert_eq!(one.settle().await.removed_entries, ["mine"]);
    // Entries of which nothing is seen are named to nobody.
    assert!(other.take().await.unwrap().is_none());
    assert_eq!((other.beats, other.cursor.unwrap().revision), (1, post.revision().number()));
    assert_eq!(post.began(Catching::First), 2);
    post.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_is_told_only_what_it_lacks() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    post.put("e1", a.id(), |_| {}).await;
    post.put("e2", a.id(), |_| {}).await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle_all(&post, a.id()).await;

    let again = hello(&client);
    client.watch(&post, &peer, again);
    let same = client.settle().await;
    assert_eq!((same.snapshot, ids(&same), same.bundles.len()), (false, vec![], 1));
    assert_eq!(post.began(Catching::Same), 1);

    // It goes, and things change.
    (client.requests, client.answers) = (None, None);
    post.put("e3", a.id(), |_| {}).await;
    post.delete("e1").await;
    let again = hello(&client);
    client.watch(&post, &peer, again);
    let difference = client.settle().await;
    assert_eq!((difference.snapshot, ids(&difference)), (false, vec!["e3"]));
    assert_eq!(difference.removed_entries, ["e1"]);
    assert_eq!((post.began(Catching::Difference), &client.entries), (1, &post.truth(a.id())));
}

#[tokio::test(start_paused = true)]
async fn an_update_that_was_lost_with_its_connection_is_told_again() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    post.put("e1", a.id(), |_| {}).await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle_all(&post, a.id()).await;
    let before = hello(&client);
    post.put("e2", a.id(), |_| {}).await;
    post.delete("e1").await;
    // It was sent, and the agent does not know of it.
    client.update().await;
    let mut late = Client::default();
    late.watch(&post, &peer, before.clone());
    let told = loop {
        match late.next().await.unwrap().response.unwrap() {
            Answer::Update(update) => break update,
            Answer::Welcome(_) | Answer::Heartbeat(_) => {}
        }
    };
    assert_eq!((told.snapshot, ids(&told)), (false, vec!["e2"]));
    assert_eq!(
        (told.removed_entries.as_slice(), post.began(Catching::Difference)),
        (&["e1".to_owned()][..], 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_the_future_or_of_another_lineage_gets_a_snapshot() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    post.put("e1", a.id(), |_| {}).await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle_all(&post, a.id()).await;
    let cursor = client.cursor.clone().unwrap();
    let ahead = Cursor { revision: post.revision().number() + 1, ..cursor.clone() };
    let other = Cursor { lineage: "0".repeat(32), ..cursor.clone() };
    for (cursor, how) in [(ahead, Catching::Future), (other, Catching::Lineage)] {
        let claimed = Hello { cursor: Some(cursor), ..hello(&client) };
        client.watch(&post, &peer, claimed);
        let first = client.settle().await;
        assert_eq!((first.snapshot, ids(&first), post.began(how)), (true, vec!["e1"], 1));
    }
    // What it holds is not what it was sent.
    let claimed = Hello { digest: 7, ..hello(&client) };
    client.watch(&post, &peer, claimed);
    assert!(client.settle().await.snapshot);
    assert_eq!(post.began(Catching::Unknown), 1);
    client.say(Request::Resync(Resync { reason: "does not\nadd up".to_owned() }));
    let anew = client.settle().await;
    assert_eq!((anew.snapshot, ids(&anew), post.began(Catching::Resync)), (true, vec!["e1"], 1));
    assert_eq!(client.entries, post.truth(a.id()));
}

#[tokio::test(start_paused = true)]
async fn a_slow_agent_is_told_once_of_all_that_happened_meanwhile() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.update().await;
    for number in 0..WATCH_ENTRIES + 10 {
        post.put(&format!("e{number}"), a.id(), |_| {}).await;
    }
    post.delete("e3").await;
    client.ack();
    let all = client.settle().await;
    assert_eq!((all.snapshot, all.entries.len()), (false, WATCH_ENTRIES + 9));
    assert_eq!(client.entries, post.truth(a.id()));
    assert!(post.with.metrics.watch_conflations.count() > 1);
    assert_eq!(post.with.metrics.watch_updates.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_acknowledge_or_read_is_cut_off() {
    let post = Post::new().await;
    let (_, peer) = post.rig.agent("a").await;
    // Reads all, reads nothing.
    for reads in [true, false] {
        let mut client = Client::default();
        client.watch(&post, &peer, hello(&Client::default()));
        let began = Instant::now();
        if reads {
            client.update().await;
        }
        tokio::time::sleep(WATCH_ACK_WITHIN - Duration::from_secs(1)).await;
        assert_eq!(post.with.metrics.watches.value(), 1);
        if !reads {
            // Before it reads anything after all.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(client.end().await.code(), Code::DeadlineExceeded);
        assert!(began.elapsed() <= WATCH_ACK_WITHIN + Duration::from_secs(2), "{:?}", began.elapsed());
        tokio::task::yield_now().await;
        assert_eq!(post.with.metrics.watches.value(), 0);
    }
    let mut silent = Client::default();
    silent.begin(&post, &peer);
    let began = Instant::now();
    assert_eq!((silent.end().await.code(), began.elapsed()), (Code::DeadlineExceeded, WATCH_HELLO_WITHIN));
}

#[tokio::test(start_paused = true)]
async fn a_flood_and_nonsense_end_the_watch() {
    let post = Post::new().await;
    let (_, peer) = post.rig.agent("a").await;
    let report = || Request::Report(Report { x509_svids: 3, ..Report::default() });
    let started = async || {
        let mut client = Client::default();
        client.watch(&post, &peer, hello(&Client::default()));
        client.settle().await;
        client
    };
    let mut client = started().await;
    (0..WATCH_REQUESTS.0).for_each(|_| client.say(report()));
    // As many as are in order are.
    client.take().await.unwrap();
    assert_eq!(client.beats, 1);
    (0..=WATCH_REQUESTS.0).for_each(|_| client.say(report()));
    assert_eq!(client.end().await.code(), Code::ResourceExhausted);

    for nonsense in [
        Request::Hello(hello(&Client::default())),
        Request::Ack(Ack { cursor: None }),
        Request::Ack(Ack { cursor: Some(Cursor { lineage: "x".to_owned(), revision: 0 }) }),
    ] {
        let mut client = started().await;
        client.say(nonsense.clone());
        assert_eq!(client.end().await.code(), Code::InvalidArgument, "{nonsense:?}");
    }
    let mut client = started().await;
    let unsent = Cursor { revision: post.revision().number() + 1, ..client.cursor.clone().unwrap() };
    client.say(Request::Ack(Ack { cursor: Some(unsent) }));
    assert_eq!(client.end().await.code(), Code::InvalidArgument);
    let mut client = started().await;
    for _ in 0..5 {
        client.say(Request::Resync(Resync::default()));
    }
    assert_eq!(client.end().await.code(), Code::ResourceExhausted);

    let base = hello(&Client::default());
    for bad in [
        Hello { protocol: 0, ..base.clone() },
        Hello { version: "x".repeat(256), ..base.clone() },
        Hello { version: "a\nb".to_owned(), ..base.clone() },
        Hello { cursor: Some(Cursor { lineage: "x".repeat(65), revision: 0 }), ..base.clone() },
    ] {
        let mut client = Client::default();
        client.watch(&post, &peer, bad);
        assert_eq!(client.end().await.code(), Code::InvalidArgument);
    }
    let mut client = Client::default();
    client.begin(&post, &peer);
    client.say(report());
    assert_eq!(client.end().await.code(), Code::InvalidArgument);
    // A newer agent is answered in what this server speaks.
    let mut client = Client::default();
    client.watch(&post, &peer, Hello { protocol: 9, ..base });
    client.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_at_once_when_its_agent_falls_whatever_it_does() {
    use passant_core::AgentFault;
    for (name, expected) in
        [("ban", AgentFault::Banned), ("evict", AgentFault::NotAttested), ("replace", AgentFault::NotActive)]
    {
        // One that has acknowledged, one that has not, and one that has read nothing.
        for stage in 0..3 {
            let post = Post::new().await;
            let (a, peer) = post.rig.agent("a").await;
            let mut client = Client::default();
            client.watch(&post, &peer, hello(&Client::default()));
            match stage {
                0 => drop(client.settle().await),
                1 => drop(client.update().await),
                _ => tokio::task::yield_now().await,
            }
            let began = Instant::now();
            match name {
                "ban" => {
                    let banned = AttestedNode { serial: None, ..AttestedNode::clone(&post.rig.node(a.id())) };
                    post.rig.commit(vec![Change::PutNode(Arc::new(banned))]).await;
                }
                "evict" => post.rig.commit(vec![Change::DeleteNode(a.id().clone())]).await,
                _ => drop(post.rig.agent("a").await),
            }
            let status = client.end().await;
            assert_eq!((status.code(), fault(&status)), (Code::PermissionDenied, Some(expected)), "{stage}");
            assert!(began.elapsed() < Duration::from_secs(1));
            assert!(client.answers.as_mut().unwrap().next().await.is_none());
        }
    }
    let post = Post::new().await;
    let (_, peer) = post.rig.agent("a").await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle().await;
    post.rig.clock.set(START.plus(HOUR).plus(Duration::from_secs(1)));
    let status = client.end().await;
    assert_eq!((status.code(), fault(&status)), (Code::PermissionDenied, Some(AgentFault::Expired)));
    assert!(client.beats <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_watch_of_an_agent_ends_the_first() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let (mut first, mut second) = (Client::default(), Client::default());
    first.watch(&post, &peer, hello(&Client::default()));
    first.settle().await;
    second.watch(&post, &peer, hello(&Client::default()));
    assert_eq!(first.end().await.code(), Code::Aborted);
    second.settle().await;
    post.put("e1", a.id(), |_| {}).await;
    assert_eq!(ids(&second.settle().await), ["e1"]);
    post.with.hub.close();
    assert_eq!(second.end().await.code(), Code::Unavailable);
    let begun = Watch::begin(
        Arc::clone(&post.with),
        a.id(),
        peer,
        ReceiverStream::new(mpsc::channel(1).1),
        outbox().0,
    );
    assert_eq!(begun.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn what_happens_before_an_agent_has_its_place_is_seen() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let before = Arc::clone(post.rig.state().node(a.id()).unwrap());
    let changed = AttestedNode { selectors: selectors(&["new:yes"]), ..AttestedNode::clone(&before) };
    post.rig.commit(vec![Change::PutNode(Arc::new(changed))]).await;
    tokio::task::yield_now().await;
    let place = post.with.hub.enter(&before).unwrap();
    post.put("alias", &domain().server_id(), |draft| {
        (draft.spiffe_id, draft.selectors) = (id("/pool"), selectors(&["new:yes"]));
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!place.mailbox().is_empty(), "by its new selectors");
    drop(place);

    // Of this ban the hub says nothing: as if it had been told of just before.
    post.stop.cancel();
    let mut client = Client::default();
    client.begin(&post, &peer);
    tokio::task::yield_now().await;
    let banned = command::node::ban(&post.rig.state(), a.id()).unwrap().0;
    post.rig.commit(banned).await;
    client.say(Request::Hello(hello(&Client::default())));
    assert_eq!(fault(&client.next().await.unwrap_err()), Some(passant_core::AgentFault::Banned));
}

#[tokio::test(start_paused = true)]
async fn only_bundles_that_the_agents_entries_federate_with_are_sent() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    post.rig.commit(vec![Change::PutBundle(bundle(other_trust_domain(), 1, 20))]).await;
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.settle().await;
    assert_eq!(client.bundles.len(), 1);
    post.rig.commit(vec![Change::PutBundle(bundle(other_trust_domain(), 2, 20))]).await;
    post.put("e1", a.id(), |draft| draft.federates_with = [other_trust_domain()].into()).await;
    let update = client.settle().await;
    assert_eq!(
        (ids(&update), update.bundles.len()),
        (vec!["e1"], 1),
        "the one that concerns it came with it"
    );
    post.rig.commit(vec![Change::PutBundle(bundle(other_trust_domain(), 3, 20))]).await;
    client.settle().await;
    assert_eq!(client.bundles[other_trust_domain().as_str()], 3);
    // The same from the state that an agent meets which holds the old one.
    post.rig.commit(vec![Change::DeleteBundle(other_trust_domain())]).await;
    assert_eq!(client.settle().await.removed_bundles, [other_trust_domain().to_string()]);
    let again = hello(&client);
    client.bundles.insert(other_trust_domain().to_string(), 3);
    client.watch(&post, &peer, again);
    client.settle().await;
    assert_eq!(client.bundles.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn strict_entries_and_stops_are_for_agents_that_can_heed_them() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let strict = EntryOptions { key_scope: KeyScope::Instance, strict: true };
    post.put("strict", a.id(), |draft| draft.options = strict).await;
    post.put("plain", a.id(), |_| {}).await;
    post.put("stopped", a.id(), |_| {}).await;
    post.rig.commit(vec![Change::PutStop(stop(StopTarget::Entry(EntryId::parse("stopped").unwrap())))]).await;
    let mut knows = Client::default();
    knows.watch(&post, &peer, hello(&Client::default()));
    let update = knows.settle().await;
    assert_eq!((ids(&update), knows.stops.len()), (vec!["plain", "strict"], 1));
    let mut plain = Client::default();
    plain.watch(&post, &peer, Hello { capabilities: vec![], ..hello(&Client::default()) });
    let update = plain.settle().await;
    assert_eq!((ids(&update), &update.stops), (vec!["plain"], &None));
    post.put("strict", a.id(), |draft| draft.hint = "x".to_owned()).await;
    assert_eq!(ids(&plain.settle().await), ["strict"]);
    post.put("strict", a.id(), |draft| draft.options = strict).await;
    assert_eq!(plain.settle().await.removed_entries, ["strict"]);
}

#[tokio::test(start_paused = true)]
async fn it_is_known_who_has_applied_a_change_and_who_has_not() {
    let post = Post::new().await;
    let mut agents = Vec::new();
    for name in ["a", "b", "c", "d"] {
        agents.push(post.rig.agent(name).await);
    }
    let all: Vec<SpiffeId> = agents.iter().map(|(agent, _)| agent.id().clone()).collect();
    let (mut swift, mut slow) = (Client::default(), Client::default());
    swift.watch(&post, &agents[0].1, hello(&Client::default()));
    slow.watch(&post, &agents[1].1, hello(&Client::default()));
    swift.settle_all(&post, &all[0]).await;
    slow.settle_all(&post, &all[1]).await;
    post.polls(&all[2]);
    post.put("alias", &domain().server_id(), |draft| {
        (draft.spiffe_id, draft.selectors) = (id("/pool"), selectors(&["spoken:yes"]));
    })
    .await;
    post.put("e1", &id("/pool"), |_| {}).await;
    let (revision, now) = (post.revision(), post.rig.now());
    let concerned = crate::sync::concerned::concerned_agents(
        &post.rig.state(),
        post.rig.state().entry(&EntryId::parse("e1").unwrap()).unwrap(),
        now,
    );
    assert_eq!(concerned, all);
    swift.settle_all(&post, &all[0]).await;
    let rollout = post.with.hub.rollout(&all, revision, Needs::Entries, now);
    let pending: Vec<_> = rollout.pending.iter().map(|one| (one.agent.clone(), one.why, one.since)).collect();
    let expected = vec![
        (all[1].clone(), Why::Awaited, Some(now)),
        (all[2].clone(), Why::Polls, Some(now)),
        (all[3].clone(), Why::Unreachable, None),
    ];
    assert_eq!((rollout.applied, pending), (1, expected));
    // A change that does not concern it has come to an agent that owes nothing; one that owes something may not have it.
    post.put("other", &all[3], |_| {}).await;
    let rollout = post
        .with
        .hub
        .rolled_out(&all[..1], post.revision(), Needs::Entries, Instant::now() + HOUR, || now)
        .await;
    assert_eq!(rollout.applied, 1);

    post.with.hub.answered(&all[2], revision);
    let rollout = post.with.hub.rollout(&all[2..3], revision, Needs::Entries, now);
    assert_eq!(rollout.pending[0].why, Why::Polls, "the answer may be lost");
    post.polls(&all[2]);
    slow.settle_all(&post, &all[1]).await;
    (slow.requests, slow.answers) = (None, None);
    tokio::task::yield_now().await;
    let rollout = post.with.hub.rollout(&all, revision, Needs::Entries, now);
    assert_eq!((rollout.applied, rollout.pending.len()), (3, 1), "who is gone had it");
    post.put("e2", &id("/pool"), |_| {}).await;
    let until = Instant::now() + Duration::from_secs(5);
    let rollout = post.with.hub.rolled_out(&all[1..2], post.revision(), Needs::Entries, until, || now).await;
    assert_eq!((rollout.pending[0].why, rollout.pending[0].since), (Why::Unreachable, Some(now)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_a_process_has_come_only_to_an_agent_that_knows_stops() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let mut client = Client::default();
    let ignorant = || Hello { capabilities: vec![], ..hello(&Client::default()) };
    client.watch(&post, &peer, ignorant());
    client.settle_all(&post, a.id()).await;
    let instance = Instance::parse("boot/1/1").unwrap();
    let process = StopTarget::Instance { agent: a.id().clone(), instance };
    post.rig.commit(vec![Change::PutStop(stop(process))]).await;
    client.settle_all(&post, a.id()).await;
    let why = || {
        let of = [a.id().clone()];
        let rollout = post.with.hub.rollout(&of, post.revision(), Needs::Stops, post.rig.now());
        rollout.pending.first().map(|one| one.why)
    };
    assert_eq!(why(), Some(Why::Unable));
    post.polls(a.id());
    assert_eq!(why(), Some(Why::Unable));

    let mut knows = Client::default();
    knows.watch(&post, &peer, hello(&Client::default()));
    assert_eq!(why(), Some(Why::Awaited));
    knows.settle().await;
    let heeded = async || {
        let (of, until, now) = ([a.id().clone()], Instant::now() + Duration::from_secs(5), post.rig.now());
        post.with.hub.rolled_out(&of, post.revision(), Needs::Stops, until, || now).await.applied
    };
    assert_eq!((heeded().await, knows.stops.len(), why()), (1, 1, None));
    (knows.requests, knows.answers) = (None, None);
    tokio::task::yield_now().await;
    post.polls(a.id());
    assert_eq!(why(), None, "what it knows it keeps");
    client.watch(&post, &peer, ignorant());
    client.settle().await;
    assert_eq!((heeded().await, why()), (0, Some(Why::Unable)), "another program is there now");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_acknowledges_or_reports_its_workloads_have() {
    let post = Post::new().await;
    let (a, peer) = post.rig.agent("a").await;
    let lacking = || {
        let sequence = post.rig.bundle().sequence;
        post.rig.authorities.reach().lacking(&post.rig.state(), sequence, post.rig.now())
    };
    let mut client = Client::default();
    client.watch(&post, &peer, hello(&Client::default()));
    client.update().await;
    assert_eq!(lacking(), [a.id().clone()]);
    client.settle_all(&post, a.id()).await;
    assert!(lacking().is_empty());
    let next = Bundle { sequence: post.rig.bundle().sequence + 1, ..Bundle::clone(&post.rig.bundle()) };
    post.rig.commit(vec![Change::PutBundle(Arc::new(next))]).await;
    assert_eq!(lacking().len(), 1);
    client.update().await;
    // Nobody has what was never published.
    client.say(Request::Report(Report { bundle_sequence: u64::MAX, streams: 2, ..Report::default() }));
    client.settle_all(&post, a.id()).await;
    assert!(lacking().is_empty());
    let report = post.with.hub.report_of(a.id()).unwrap();
    assert_eq!((report.streams, report.last_end), (2, None));
}

fn stop(target: StopTarget) -> Arc<Stop> {
    let id = target.to_string();
    let reason = StopReason::parse("seen where it should not be").unwrap();
    let since: UnixTime = START;
    Arc::new(Stop { target, id, reason, by: "uid 0".to_owned(), since, revision: 1 })
}
