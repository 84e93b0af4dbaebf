//! How does the agent hear of a change at once? It watches its server: what concerns it is pushed, takes effect, and is
//! acknowledged.
//!
//! A server that cannot push (SPIRE's) is polled instead, by `drive`; the two tell each other through [`Ties`].

mod update;

use std::sync::Arc;
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::{Host, Reason, Refusal, SpiffeId, TrustDomain, UnixTime};
use passant_daemon::label::Outcome;
use passant_daemon::vitals::Alive;
use passant_proto::sync::sync_client::SyncClient;
use passant_proto::sync::watch_request::Request;
use passant_proto::sync::watch_response::Response;
use passant_proto::sync::{
    Ack, Capability, Hello, Report, Resync, Update, WatchRequest, WatchResponse, Welcome,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use self::update::{Assembly, Fault, cursor_from_wire, cursor_to_wire};
use crate::backoff::{self, Backoff};
use crate::cache::{Cache, Cursor, Delta, Fit, Served, Stops};
use crate::connect::{Link, told};
use crate::health::{Health, Part};
use crate::limits;

/// The version of the protocol that is spoken here.
const PROTOCOL: u32 = 1;

/// What whoever watches and whoever polls tell each other.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    way: watch::Sender<Way>,
    /// Which of the sets of stops that were pushed was last written to disk.
    kept: watch::Sender<u64>,
    hurry: Notify,
    doubt: Notify,
}

/// How the agent hears of changes, and what the task that tends the node has to know of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// The server cannot push: it is to be polled.
    pub(crate) polls: bool,
    /// How often a server has welcomed the node's SVID.
    pub(crate) welcomes: u64,
    /// The last own bundle that was pushed.
    pub(crate) bundle: Option<Arc<Bundle>>,
    /// The stops that were pushed last, and how often others were.
    pub(crate) stops: Arc<Stops>,
    pub(crate) stops_changed: u64,
}

/// Watches the server.
pub(crate) struct Push {
    trust_domain: TrustDomain,
    host: Host,
    link: Link,
    cache: Cache,
    health: Health,
    ties: Arc<Ties>,
    again: Backoff,
    refused: Backoff,
    /// Watches in a row that ended because what came did not add up, or was refused for no reason known.
    broken: u32,
    reported: Option<Report>,
}

/// How a watch ended.
#[derive(Debug)]
enum Ended {
    /// Calls go over another connection now, or the node has another SVID.
    Moved,
    /// The server said so, or it cannot be reached.
    Refused(Refusal),
    /// What came did not add up, and asking for a snapshot did not help.
    Broken(Fault),
}

/// What is to be waited for before the next watch.
enum Pause {
    None,
    /// The way to the server is at fault; whoever waits for something makes it shorter.
    Unreachable(Instant),
    /// The server said when to come again.
    Told(Instant),
    /// There is nothing to be had with the node's SVID for now.
    Refused(Instant),
    /// The server is polled.
    Polls(Instant),
}

impl Ties {
    /// Follows how the agent hears of changes.
    pub(crate) fn way(&self) -> watch::Receiver<Way> {
        self.way.subscribe()
    }

    /// A workload waits for what only the server can give.
    pub(crate) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Something speaks against the view held.
    pub(crate) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// The stops that were the `change`-th to be pushed are on disk, or cannot be written.
    pub(crate) fn kept(&self, change: u64) {
        self.kept.send_replace(change);
    }

    /// Resolves once the stops that were pushed last are on disk, or cannot be written.
    async fn stops_kept(&self) {
        let change = self.way.borrow().stops_changed;
        // The sender is here.
        drop(self.kept.subscribe().wait_for(|kept| *kept >= change).await);
    }

    fn polls(&self, polls: bool) {
        self.way.send_if_modified(|way| std::mem::replace(&mut way.polls, polls) != polls);
    }
}

impl Push {
    pub(crate) fn new(
        trust_domain: TrustDomain,
        host: Host,
        link: Link,
        cache: Cache,
        health: Health,
        ties: Arc<Ties>,
    ) -> Self {
        Self {
            trust_domain,
            host,
            link,
            cache,
            health,
            ties,
            again: Backoff::new(limits::WATCH_AGAIN_FIRST, limits::WATCH_AGAIN_LAST),
            refused: Backoff::new(limits::REFUSED_FIRST, limits::REFUSED_LAST),
            broken: 0,
            reported: None,
        }
    }

    /// Runs until told to stop; being stopped in the middle of anything loses nothing.
    pub(crate) async fn run(mut self, stop: CancellationToken, alive: Alive) {
        let mut epochs = self.link.epochs();
        let mut established = self.link.established();
        loop {
            alive.beat();
            epochs.mark_unchanged();
            let generation = self.link.generation();
            let pause = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                pause = self.turn(generation, &mut epochs, &alive) => pause,
            };
            established.mark_unchanged();
            let pausing = self.pause(pause, generation, &mut epochs, &mut established, &alive);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = pausing => {}
            }
        }
    }

    async fn pause(
        &self,
        pause: Pause,
        generation: u64,
        epochs: &mut watch::Receiver<u64>,
        established: &mut watch::Receiver<u64>,
        alive: &Alive,
    ) {
        let (mut until, is_unreachable, polls) = match pause {
            Pause::None => return,
            Pause::Unreachable(until) => (until, true, false),
            Pause::Told(until) | Pause::Refused(until) => (until, false, false),
            Pause::Polls(until) => (until, false, true),
        };
        while Instant::now() < until {
            alive.beat();
            tokio::select! {
                biased;
                changed = epochs.changed() => {
                    // Another connection alone is no reason to be in a hurry; another SVID is.
                    if changed.is_err() || self.link.generation() != generation {
                        return;
                    }
                }
                changed = established.changed(), if polls => if changed.is_ok() { return },
                () = self.ties.hurry.notified(), if is_unreachable => {
                    until = until.min(Instant::now() + limits::WATCH_AGAIN_FIRST);
                }
                () = tokio::time::sleep_until(until.min(Instant::now() + limits::LOOK_AGAIN)) => {}
            }
        }
    }

    /// One watch, from its beginning to its end, and what follows from that.
    async fn turn(&mut self, generation: u64, epochs: &mut watch::Receiver<u64>, alive: &Alive) -> Pause {
        if !self.link.is_identified() {
            return Pause::Refused(Instant::now() + limits::REFUSED_LAST);
        }
        let began = Instant::now();
        let ended = self.watch(generation, epochs, alive).await;
        if began.elapsed() >= limits::WATCH_LIVED {
            self.again.succeeded();
        } else if self.link.has_other_servers() && is_of_no_use(&ended) {
            self.link.leave_server();
        }
        self.judge(ended, generation)
    }

    fn judge(&mut self, ended: Ended, generation: u64) -> Pause {
        let now = Instant::now();
        let metrics = self.link.metrics();
        let refusal = match ended {
            Ended::Moved => {
                metrics.watches.of(Outcome::Done).inc();
                return Pause::None;
            }
            Ended::Broken(fault) => {
                metrics.watches.of(Outcome::Failed).inc();
                self.cache.lose_cursor();
                self.trouble(&format!("failed to follow the server: {fault}"));
                self.broken += 1;
                return self.after_broken(now);
            }
            Ended::Refused(refusal) => refusal,
        };
        metrics.watches.of(Outcome::of::<()>(Err(&refusal))).inc();
        if refusal.reason == Reason::Unimplemented {
            debug!("the server does not push; it is polled");
            return self.poll(now);
        }
        self.trouble(&format!("failed to watch: {refusal}"));
        if let Some(fault) = refusal.agent_fault {
            self.link.found(fault, generation);
            return Pause::Refused(now + self.refused.failed(&self.host));
        }
        match refusal.reason {
            Reason::Unavailable | Reason::Exhausted => self.after_unreachable(&refusal, now),
            Reason::Invalid
            | Reason::Unauthenticated
            | Reason::Denied
            | Reason::NotFound
            | Reason::AlreadyExists
            | Reason::Precondition
            | Reason::Unimplemented
            | Reason::Internal => {
                self.broken += 1;
                self.after_broken(now)
            }
        }
    }

    fn after_unreachable(&mut self, refusal: &Refusal, now: Instant) -> Pause {
        // From nothing to twice the wait: a fleet that has lost its server at one moment does not come back at one.
        let wait = self.host.jitter().between(Duration::ZERO, 2 * self.again.failed(&self.host));
        match refusal.retry_after {
            Some(_) => Pause::Told(now + backoff::as_told(refusal.retry_after, wait, &self.host)),
            None => Pause::Unreachable(now + wait),
        }
    }

    /// Once more from nothing; and if that does not help, by polling.
    fn after_broken(&mut self, now: Instant) -> Pause {
        match self.broken {
            0 | 1 => Pause::Told(now + self.again.failed(&self.host)),
            _ => {
                warn!("what the server pushes cannot be followed; it is polled for a while");
                self.poll(now)
            }
        }
    }

    fn poll(&self, now: Instant) -> Pause {
        self.cache.lose_cursor();
        self.link.set_takes_evidence(false);
        if !self.cache.stops().list().is_empty() && !self.ties.way.borrow().polls {
            warn!("there are stops, and only a server that pushes can end them");
        }
        self.ties.polls(true);
        Pause::Polls(now + backoff::spread(limits::WATCH_ANEW, &self.host))
    }

    /// Whoever polls says himself what is wrong.
    fn trouble(&self, why: &str) {
        if !self.ties.way.borrow().polls {
            self.health.bad(Part::Sync, why);
        }
    }

    async fn watch(&mut self, generation: u64, epochs: &mut watch::Receiver<u64>, alive: &Alive) -> Ended {
        let mut line = match self.open().await {
            Ok(line) => line,
            Err(refusal) => return Ended::Refused(refusal),
        };
        let welcome = match timeout(limits::WELCOME, line.next()).await {
            Ok(Ok(Some(Response::Welcome(welcome)))) if welcome.protocol == PROTOCOL => welcome,
            Ok(Ok(_)) => return Ended::Broken(Fault::Unknown),
            Ok(Err(refusal)) => return Ended::Refused(refusal),
            Err(_) => return Ended::Refused(self.silent()),
        };
        self.welcomed(&welcome, generation);
        let Some(agent) = self.link.id() else { return Ended::Moved };
        let mut session = Session::new(self.trust_domain.clone(), agent, &welcome);
        loop {
            alive.beat();
            let wake = session.wake().min(Instant::now() + limits::LOOK_AGAIN);
            let awaits_quiet = session.ack.is_some();
            tokio::select! {
                biased;
                changed = epochs.changed() => {
                    if changed.is_err() || self.link.generation() != generation || !self.link.is_identified() {
                        return Ended::Moved;
                    }
                    // With the same SVID, there is no hurry.
                    let spread = self.host.jitter().between(Duration::ZERO, limits::WATCH_MOVES);
                    session.move_at.get_or_insert(Instant::now() + spread);
                }
                response = line.next() => {
                    let response = match response {
                        Ok(response) => response,
                        Err(refusal) => return Ended::Refused(refusal),
                    };
                    session.heard_at = Instant::now();
                    if let Err(fault) = self.take(response, &mut session) {
                        self.link.metrics().push_faults.inc();
                        if session.snapshot_by.is_some() {
                            return Ended::Broken(fault);
                        }
                        warn!(%fault, "what the server pushes does not add up; all of it is asked for again");
                        if let Err(refusal) = session.ask_again(&line, &fault.to_string()).await {
                            return Ended::Refused(refusal);
                        }
                    }
                }
                () = self.effect(), if awaits_quiet => {
                    if let Err(refusal) = self.acknowledge(&mut session, &line).await {
                        return Ended::Refused(refusal);
                    }
                }
                () = self.ties.doubt.notified() => session.doubt(),
                () = tokio::time::sleep_until(wake) => {
                    if let Some(ended) = self.timed(&mut session, &line).await {
                        return ended;
                    }
                }
            }
        }
    }

    /// What is due at this moment.
    async fn timed(&mut self, session: &mut Session, line: &Line) -> Option<Ended> {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if session.heard_at + session.silence <= now {
            // What is called over the same connection need not find out for itself.
            self.link.leave_server();
            return Some(Ended::Refused(self.silent()));
        }
        if is_due(session.snapshot_by) {
            return Some(Ended::Broken(Fault::Digest));
        }
        if is_due(session.move_at) {
            return Some(Ended::Moved);
        }
        let mut sent = Ok(());
        if is_due(session.ack.as_ref().map(|ack| ack.latest)) {
            sent = self.acknowledge(session, line).await;
        }
        if sent.is_ok() && is_due(session.doubt_at) {
            session.doubt_at = None;
            info!("the server does not know what it has told of; all of it is asked for again");
            sent = session.ask_again(line, "an entry that was told of could not be used").await;
        }
        if sent.is_ok() && is_due(session.report_at) {
            sent = self.report(session, line).await;
        }
        sent.err().map(Ended::Refused)
    }

    /// Says hello, and waits until the server takes the watch.
    async fn open(&self) -> Result<Line, Refusal> {
        let (cursor, digest) = self.cache.standing();
        let hello = Hello {
            protocol: PROTOCOL,
            version: concat!("passant ", env!("CARGO_PKG_VERSION")).to_owned(),
            capabilities: vec![Capability::EntryOptions.into(), Capability::Stops.into()],
            cursor: cursor.as_ref().map(cursor_to_wire),
            digest: if cursor.is_some() { digest } else { 0 },
        };
        let opened = self.link.call("watch", limits::CALL, |channel| {
            let hello = WatchRequest { request: Some(Request::Hello(hello.clone())) };
            async move {
                let mut client =
                    SyncClient::new(channel).max_decoding_message_size(limits::PUSHED_MESSAGE_BYTES);
                let (requests, outgoing) = mpsc::channel(4);
                requests.try_send(hello).map_err(|_| Status::internal("no room for a hello"))?;
                let responses = client.watch(ReceiverStream::new(outgoing)).await?.into_inner();
                Ok(Line { requests, responses })
            }
        });
        opened.await.map_err(|error| error.refusal)
    }

    fn silent(&self) -> Refusal {
        debug!(server = %self.link.address(), "the server is silent");
        Refusal::unavailable("the server has not been heard of for too long")
    }

    fn welcomed(&mut self, welcome: &Welcome, generation: u64) {
        info!(server = welcome.version.chars().take(64).collect::<String>(), "watching the server");
        self.refused.succeeded();
        self.reported = None;
        self.link.accepted(generation);
        self.ties.way.send_modify(|way| way.welcomes += 1);
        self.link.set_takes_evidence(true);
        self.compare_clocks(welcome.server_time_millis);
    }

    /// The server has told its time; 0 tells nothing. Either clock may be set at any moment.
    fn compare_clocks(&self, server_time_millis: i64) {
        if server_time_millis == 0 {
            return;
        }
        let now = ahead(self.host.now().secs(), server_time_millis);
        let before = self.link.set_clock_ahead(now);
        if before.abs_diff(now) <= limits::CLOCKS_APART.as_secs() {
            return;
        }
        match now {
            0 => info!("the server's clock and this host's agree again"),
            seconds => warn!(seconds, "the server's clock is ahead of this host's, or behind it"),
        }
    }

    fn take(&mut self, response: Option<Response>, session: &mut Session) -> Result<(), Fault> {
        match response {
            Some(Response::Update(part)) => self.update(part, session),
            Some(Response::Heartbeat(heartbeat)) => {
                self.compare_clocks(heartbeat.server_time_millis);
                if session.assembly.is_begun() || session.snapshot_by.is_some() || !session.has_view {
                    return Ok(());
                }
                let cursor = cursor_from_wire(heartbeat.cursor.as_ref()).ok_or(Fault::Heartbeat)?;
                if self.cache.confirm(cursor) { Ok(()) } else { Err(Fault::Heartbeat) }
            }
            Some(Response::Welcome(_)) | None => Err(Fault::Unknown),
        }
    }

    fn update(&mut self, part: Update, session: &mut Session) -> Result<(), Fault> {
        let Some(delta) = session.assembly.take(part)? else { return Ok(()) };
        let Delta { is_snapshot, cursor, bundle, .. } = &delta;
        let (is_snapshot, cursor, bundle) = (*is_snapshot, cursor.clone(), bundle.clone());
        debug!(is_snapshot, revision = cursor.revision, entries = delta.put.len(), "update");
        let stops_before = self.cache.stops();
        if let Some(bundle) = &bundle {
            // The server is verified by it before an SVID under it is asked for.
            self.link.trust(Arc::clone(bundle));
        }
        // Nothing is taken over while all is withheld; the node's SVID is gone then, and the watch with it.
        let Some(fit) = self.cache.apply(delta) else { return Ok(()) };
        self.link.metrics().updates.inc();
        if let Some(bundle) = bundle {
            self.ties.way.send_modify(|way| way.bundle = Some(bundle));
        }
        let stops = self.cache.stops();
        if stops != stops_before {
            info!(stops = stops.list().len(), "other stops than before");
            self.ties.way.send_modify(|way| {
                way.stops = Arc::new(stops);
                way.stops_changed += 1;
            });
        }
        if fit == Fit::No {
            return Err(Fault::Digest);
        }
        session.has_view = true;
        session.doubt_at = None;
        if is_snapshot {
            session.snapshot_by = None;
        }
        self.broken = 0;
        self.ties.polls(false);
        self.health.good(Part::Sync);
        let latest = Instant::now() + limits::TAKEN_UP;
        let latest = session.ack.take().map_or(latest, |ack| ack.latest);
        session.ack = Some(Pending { cursor, latest });
        Ok(())
    }

    /// Resolves once what was pushed has taken effect.
    async fn effect(&self) {
        self.cache.quiet().await;
        self.ties.stops_kept().await;
    }

    /// What was pushed has taken effect, or has had its time.
    async fn acknowledge(&mut self, session: &mut Session, line: &Line) -> Result<(), Refusal> {
        let Some(Pending { cursor, .. }) = session.ack.take() else { return Ok(()) };
        line.send(Request::Ack(Ack { cursor: Some(cursor_to_wire(&cursor)) })).await?;
        let bundle = self.cache.bundles().own.map_or(0, |bundle| bundle.sequence);
        let is_told = self.reported.as_ref().is_some_and(|told| told.bundle_sequence == bundle);
        if is_told { Ok(()) } else { self.report(session, line).await }
    }

    /// Says what is served, if that is news.
    async fn report(&mut self, session: &mut Session, line: &Line) -> Result<(), Refusal> {
        session.report_at = Some(Instant::now() + limits::REPORT);
        let report = report_to_wire(self.cache.served());
        if self.reported == Some(report) || !session.has_view {
            return Ok(());
        }
        self.reported = Some(report);
        line.send(Request::Report(report)).await
    }
}

/// The two directions of a watch.
struct Line {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Line {
    /// What the server says next; `None` for what this version does not know. Cancel safe.
    async fn next(&mut self) -> Result<Option<Response>, Refusal> {
        match self.responses.message().await {
            Ok(Some(response)) => Ok(response.response),
            Ok(None) => Err(Refusal::unavailable("the server ended the watch")),
            Err(status) => Err(told(&status)),
        }
    }

    async fn send(&self, request: Request) -> Result<(), Refusal> {
        let sent = self.requests.send(WatchRequest { request: Some(request) });
        match timeout(limits::SEND, sent).await {
            Ok(Ok(())) => Ok(()),
            // Why, the other direction says.
            Ok(Err(_)) => Err(Refusal::unavailable("the server ended the watch")),
            Err(_) => Err(Refusal::unavailable("the server does not read what it is sent")),
        }
    }
}

/// What is known of one watch.
struct Session {
    assembly: Assembly,
    /// Whether an update has come in it: before, a heartbeat confirms nothing.
    has_view: bool,
    heard_at: Instant,
    silence: Duration,
    ack: Option<Pending>,
    report_at: Option<Instant>,
    /// A snapshot was asked for, and has to have come by then.
    snapshot_by: Option<Instant>,
    /// When what speaks against the view counts, unless something comes before.
    doubt_at: Option<Instant>,
    /// When to go on over another connection.
    move_at: Option<Instant>,
}

/// What is to be acknowledged, at the latest when.
struct Pending {
    cursor: Cursor,
    latest: Instant,
}

impl Session {
    fn new(trust_domain: TrustDomain, agent: SpiffeId, welcome: &Welcome) -> Self {
        let (least, most) = limits::HEARTBEAT;
        let heartbeat = Duration::from_millis(welcome.heartbeat_millis.into()).clamp(least, most);
        Self {
            assembly: Assembly::new(trust_domain, agent),
            has_view: false,
            heard_at: Instant::now(),
            silence: limits::HEARTBEATS_MISSED * heartbeat,
            ack: None,
            report_at: None,
            snapshot_by: None,
            doubt_at: None,
            move_at: None,
        }
    }

    /// When there is something to do without a word of the server.
    fn wake(&self) -> Instant {
        let ack = self.ack.as_ref().map(|ack| ack.latest);
        let others = [ack, self.report_at, self.snapshot_by, self.doubt_at, self.move_at];
        others.into_iter().flatten().fold(self.heard_at + self.silence, Instant::min)
    }

    async fn ask_again(&mut self, line: &Line, why: &str) -> Result<(), Refusal> {
        self.assembly.forget();
        self.ack = None;
        if self.snapshot_by.is_some() {
            return Ok(());
        }
        self.snapshot_by = Some(Instant::now() + limits::WELCOME);
        line.send(Request::Resync(Resync { reason: why.to_owned() })).await
    }

    fn doubt(&mut self) {
        if self.has_view && self.snapshot_by.is_none() {
            self.doubt_at.get_or_insert(Instant::now() + limits::DOUBT);
        }
    }
}

/// Whether another server might do better.
fn is_of_no_use(ended: &Ended) -> bool {
    match ended {
        Ended::Refused(refusal) => refusal.agent_fault.is_none() && refusal.reason == Reason::Unavailable,
        Ended::Moved | Ended::Broken(_) => false,
    }
}

fn report_to_wire(served: Served) -> Report {
    let count = |count| u32::try_from(count).unwrap_or(u32::MAX);
    Report {
        bundle_sequence: served.bundle_sequence,
        x509_svids: count(served.x509_svids),
        jwt_svids: count(served.jwt_svids),
        streams: count(served.streams),
        last_end: served.last_end.map_or(0, UnixTime::secs),
    }
}

/// How many seconds the clock over there is ahead; 0 where it is not worth minding.
fn ahead(here_secs: i64, there_millis: i64) -> i64 {
    let ahead = there_millis.div_euclid(1000).saturating_sub(here_secs);
    let worth = i64::try_from(limits::CLOCKS_APART.as_secs()).unwrap_or(i64::MAX);
    if ahead.saturating_abs() > worth { ahead } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_far_apart_are_told_so_whichever_is_ahead() {
        for (here, there, expected) in
            [(100, 40_999, -60), (40, 100_000, 60), (100, 130_999, 0), (100, 131_000, 31), (100, 70_000, 0)]
        {
            assert_eq!(ahead(here, there), expected, "{here} {there}");
        }
        assert_eq!(ahead(i64::MIN, i64::MAX), i64::MAX);
    }
}
