//! How does one watch go, from its hello to its end?

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use passant_core::authorized::is_authorized;
use passant_core::{AgentFault, Entry, Host, Refusal, SpiffeId, StopTarget, UnixTime};
use passant_daemon::metrics::Held as Counted;
use passant_proto::convert;
use passant_proto::sync::watch_request::Request;
use passant_proto::sync::watch_response::Response;
use passant_proto::sync::{
    Ack, Authorities as Listed, Authority, AuthorityKind, AuthorityState, Capability, Cursor, Heartbeat,
    Hello, Report, Resync, Stops, WatchRequest, WatchResponse, Welcome,
};
use tokio::time::{Instant, Sleep};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status};

use super::outbox::Outbox;
use super::parts::{Content, Parts};
use super::wired::Wired;
use crate::api::refuse;
use crate::authority::Authorities;
use crate::caller::{Callers, ConnPeer, at_fault};
use crate::command;
use crate::journal::Journal;
use crate::limits::{
    AGENT_VERSION, WATCH_ACK_WITHIN, WATCH_CONFIRMS, WATCH_HEARTBEAT, WATCH_HELLO_WITHIN, WATCH_LINEAGE,
    WATCH_REASON, WATCH_REQUESTS, WATCH_RESYNCS, WATCH_TICK,
};
use crate::metrics::{Catching, Metrics, WatchEnd};
use crate::state::authority::{self, Phase};
use crate::state::{Revision, State};
use crate::sync::held::{Difference, Digest, Held, is_fit};
use crate::sync::hub::{Doubtful, Hub, Kept, Place, Report as Told};
use crate::sync::mailbox::{End, News, Touched};

/// The version of the protocol that this server speaks.
const PROTOCOL: u32 = 1;

/// What all watches work with.
pub(crate) struct With {
    pub(crate) journal: Journal,
    /// Which agents watch, and what they have been told.
    pub(crate) hub: Hub,
    pub(crate) callers: Callers,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) host: Host,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) bundles: Wired,
    pub(crate) ticks: Ticks,
}

/// When heartbeats go out: those of many watches together, so that the server is not woken for each of them.
pub(crate) struct Ticks(Instant);

impl Ticks {
    /// Ticks from now on.
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    /// The last tick that is not after `at`.
    pub(super) fn until(&self, at: Instant) -> Instant {
        let past = at.duration_since(self.0).subsec_nanos() % WATCH_TICK.subsec_nanos();
        at - Duration::from_nanos(u64::from(past))
    }
}

/// One watch. At most one update is on its way to the agent and not acknowledged; what changes meanwhile waits in the mailbox.
pub(crate) struct Watch<R> {
    with: Arc<With>,
    agent: SpiffeId,
    peer: ConnPeer,
    place: Place,
    requests: R,
    out: Outbox,
    held: Held,
    can: Capabilities,
    /// Whether `held` is what the agent was sent: it has said its hello.
    has_begun: bool,
    /// Where the agent stands once it has what was sent, or told by a heartbeat.
    stands: Revision,
    sending: Option<Parts>,
    awaited: Option<Awaited>,
    /// Whether the agent has asked for a snapshot.
    is_resync_due: bool,
    resyncs: u32,
    /// The sequence number of the own bundle by which the agent was last seen to stand.
    stood_by: Option<u64>,
    unasked: Unasked,
    /// When the agent's X509-SVID ends.
    expires: Instant,
    heartbeat: Instant,
    /// What the next heartbeat is to confirm, once it was due: the hub has to have come to it.
    confirms: Option<Revision>,
    timer: Pin<Box<Sleep>>,
    _counted: Counted,
}

/// What an agent says that it can do.
#[derive(Clone, Copy, Debug, Default)]
struct Capabilities {
    options: bool,
    stops: bool,
}

/// An update that is to be acknowledged.
struct Awaited {
    revision: Revision,
    /// By when, or by when its next part is to be taken.
    by: Instant,
    /// The own bundle's sequence number that the agent has with it.
    bundle: Option<u64>,
    doubtful: Option<Doubtful>,
}

/// Requests that no update asked for.
#[derive(Debug)]
struct Unasked {
    left: u32,
    since: Instant,
}

/// Why a watch ended.
type Ended = (WatchEnd, Option<Status>);

impl<R> Watch<R>
where
    R: Stream<Item = Result<WatchRequest, Status>> + Unpin + Send,
{
    /// Takes the agent's place; a watch that it had ends.
    ///
    /// # Errors
    /// PermissionDenied for an agent that was evicted this moment; Unavailable when the server stops.
    pub(crate) fn begin(
        with: Arc<With>,
        agent: &SpiffeId,
        peer: ConnPeer,
        requests: R,
        out: Outbox,
    ) -> Result<Self, Status> {
        let state = with.journal.state();
        let node = state.node(agent).ok_or_else(|| refuse(at_fault(agent, AgentFault::NotAttested)))?;
        let place = with.hub.enter(node).ok_or_else(stopping)?;
        let now = Instant::now();
        let left = peer.svid_end().map_or(WATCH_HEARTBEAT, |end| with.host.now().until(end));
        let counted = with.metrics.watches.hold();
        Ok(Self {
            agent: agent.clone(),
            peer,
            place,
            requests,
            out,
            held: Held::default(),
            can: Capabilities::default(),
            has_begun: false,
            stands: Revision::ZERO,
            sending: None,
            awaited: None,
            is_resync_due: false,
            resyncs: 0,
            stood_by: None,
            unasked: Unasked { left: WATCH_REQUESTS.0, since: now },
            expires: now + left,
            heartbeat: now + WATCH_HEARTBEAT,
            confirms: None,
            timer: Box::pin(tokio::time::sleep_until(now + WATCH_HELLO_WITHIN)),
            _counted: counted,
            with,
        })
    }

    /// Serves it to its end.
    pub(crate) async fn run(mut self: Box<Self>) {
        let (why, status) = match self.exchange().await {
            Ok(()) => (WatchEnd::Left, None),
            Err(ended) => ended,
        };
        self.with.metrics.watch_ends.of(why).inc();
        tracing::debug!(agent = %self.agent, ?why, "a watch has ended");
        // Of a snapshot that was not acknowledged, what the agent had before it is not known.
        let doubtful = self.awaited.take().map(|awaited| awaited.doubtful);
        if self.has_begun && !matches!(doubtful, Some(None)) {
            self.place.keep(Kept { held: std::mem::take(&mut self.held), doubtful: doubtful.flatten() });
        }
        if let Some(status) = status {
            self.out.end(status);
        }
    }

    async fn exchange(&mut self) -> Result<(), Ended> {
        let Some(hello) = self.hello().await? else { return Ok(()) };
        // What became of the agent between its admission and its place here, the mailbox does not tell.
        self.still_stands().await?;
        self.greet(&hello)?;
        loop {
            self.see_standing().await?;
            self.fill();
            // What has room goes before anything else is waited for.
            if self.sending.is_some() && self.out.has_room() {
                self.send_part();
            }
            let due = self.due();
            if self.timer.deadline() != due {
                self.timer.as_mut().reset(due);
            }
            let is_sending = self.sending.is_some();
            tokio::select! {
                biased;
                () = self.place.mailbox().woken() => {}
                request = self.requests.next() => match request {
                    Some(Ok(request)) => self.heard(request)?,
                    Some(Err(status)) => return gone(status),
                    None => return Ok(()),
                },
                has_room = self.out.changed(is_sending) => {
                    if !has_room {
                        return Ok(());
                    }
                    self.send_part();
                }
                () = self.timer.as_mut() => self.on_time().await?,
            }
        }
    }

    /// The first request; `None` when the agent left instead.
    async fn hello(&mut self) -> Result<Option<Hello>, Ended> {
        loop {
            self.see_standing().await?;
            let request = tokio::select! {
                biased;
                () = self.place.mailbox().woken() => continue,
                request = self.requests.next() => request,
                _ = self.out.changed(false) => return Ok(None),
                () = self.timer.as_mut() => {
                    return Err((WatchEnd::Late, Some(Status::deadline_exceeded("no hello came"))));
                }
            };
            return match request {
                Some(Ok(WatchRequest { request: Some(Request::Hello(hello)) })) => Ok(Some(hello)),
                Some(Ok(_)) => Err(malformed("the first request has to be a hello")),
                Some(Err(status)) => gone(status).map(|()| None),
                None => Ok(None),
            };
        }
    }

    /// Ends the watch of an agent that may not watch, or is not to watch here.
    async fn see_standing(&mut self) -> Result<(), Ended> {
        let signals = self.place.mailbox().signals();
        match signals.end {
            Some(End::Replaced) => {
                let why = "the agent has begun another watch";
                return Err((WatchEnd::Replaced, Some(Status::aborted(why))));
            }
            Some(End::Stopping) => return Err((WatchEnd::Stopping, Some(stopping()))),
            None => {}
        }
        if signals.standing { self.still_stands().await } else { Ok(()) }
    }

    async fn still_stands(&mut self) -> Result<(), Ended> {
        // Before it is looked at: what changes meanwhile is looked at again.
        let by = self.with.journal.state().bundle().map(|bundle| bundle.sequence);
        // It is large, and seldom needed.
        match Box::pin(self.with.callers.agent(&self.peer)).await {
            Ok(_) => {
                self.stood_by = by;
                Ok(())
            }
            Err(refusal) => Err((WatchEnd::Fallen, Some(refuse(refusal)))),
        }
    }

    /// Whether the agent may have fallen without news of its row: its X509-SVID has ended, or its authority is gone.
    fn may_have_fallen(&self) -> bool {
        let by = self.with.journal.state().bundle().map(|bundle| bundle.sequence);
        self.stood_by.is_none()
            || self.stood_by != by
            || self.peer.svid_end().is_none_or(|end| self.with.host.now() > end)
    }

    /// Answers the hello, and decides what the agent gets first.
    fn greet(&mut self, hello: &Hello) -> Result<(), Ended> {
        if hello.protocol == 0 {
            return Err(malformed("protocol is missing in the hello"));
        }
        self.take_version(&hello.version)?;
        if hello.cursor.as_ref().is_some_and(|cursor| cursor.lineage.len() > WATCH_LINEAGE) {
            return Err(malformed("the lineage in the hello is too long"));
        }
        // What a newer agent can do besides is of no use here.
        let can = |what: Capability| hello.capabilities.contains(&i32::from(what));
        self.can = Capabilities { options: can(Capability::EntryOptions), stops: can(Capability::Stops) };
        self.place.knows_stops(self.can.stops);
        self.out.put(WatchResponse {
            response: Some(Response::Welcome(Welcome {
                protocol: PROTOCOL.min(hello.protocol),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                heartbeat_millis: u32::try_from(WATCH_HEARTBEAT.as_millis()).unwrap_or(u32::MAX),
                server_time_millis: millis(self.with.host.now()),
            })),
        });
        self.catch_up(hello);
        Ok(())
    }

    /// Keeps what the agent says of its version, unless it is known.
    fn take_version(&self, version: &str) -> Result<(), Ended> {
        if version.len() > AGENT_VERSION || version.chars().any(char::is_control) {
            return Err(malformed("the version in the hello is too long, or has a control character"));
        }
        let state = self.with.journal.state();
        let known = state.node(&self.agent).and_then(|node| node.agent_version.as_deref());
        if !version.is_empty() && known != Some(version) {
            let (journal, agent, version) =
                (self.with.journal.clone(), self.agent.clone(), version.to_owned());
            // Not waited for: the agent is to have its entries even while nothing can be written.
            tokio::spawn(async move {
                let report = {
                    let agent = agent.clone();
                    move |state: &State| command::node::report(state, &agent, version)
                };
                if let Err(refusal) = journal.submit(report).await {
                    tracing::debug!(%agent, %refusal, "failed to keep the version of an agent");
                }
            });
        }
        Ok(())
    }

    /// The first update: only what the agent lacks of entries where that can be told, all of the rest.
    fn catch_up(&mut self, hello: &Hello) {
        self.has_begun = true;
        let kept = self.place.kept();
        let state = self.with.journal.state();
        let present = self.present(&state);
        let digest = Digest::new(hello.digest);
        let (how, entries) = match self.continues(hello.cursor.as_ref(), &state) {
            Err(how) => (how, None),
            Ok(()) => {
                let now = Held::of(&present);
                if now.digest() == digest {
                    self.held = now;
                    (Catching::Same, Some(Difference::default()))
                } else {
                    match kept.and_then(|kept| lacks(kept, digest, &present)) {
                        Some((held, difference)) => {
                            self.held = held;
                            (Catching::Difference, Some(difference))
                        }
                        None => (Catching::Unknown, None),
                    }
                }
            }
        };
        self.with.metrics.watch_began.of(how).inc();
        match entries {
            Some(entries) => {
                let before = digest;
                let ids =
                    entries.put.iter().map(|entry| entry.id.clone()).chain(entries.removed.iter().cloned());
                let doubtful = Doubtful { before, entries: ids.collect() };
                self.rest_of_all(&state, entries, Some(doubtful));
            }
            None => self.snapshot(&state, &present),
        }
    }

    /// Whether what the agent holds is of this history, and not of a time to come.
    fn continues(&self, cursor: Option<&Cursor>, state: &State) -> Result<(), Catching> {
        let Some(cursor) = cursor else { return Err(Catching::First) };
        let ours = state.cursor();
        if cursor.lineage != ours.lineage.to_string() {
            return Err(Catching::Lineage);
        }
        if cursor.revision > ours.revision.number() {
            tracing::warn!(
                agent = %self.agent, theirs = cursor.revision, ours = %ours.revision,
                "an agent stands at a revision that this store has not come to: it gets a snapshot"
            );
            return Err(Catching::Future);
        }
        Ok(())
    }

    fn snapshot(&mut self, state: &State, present: &[Arc<Entry>]) {
        self.with.metrics.watch_snapshots.inc();
        self.held.forget();
        let entries = self.held.take_all(present);
        let content = Content { snapshot: true, entries, ..Content::default() };
        self.complete(state, content, None);
    }

    /// An update that says everything but entries whole, and of these `entries`.
    fn rest_of_all(&mut self, state: &State, entries: Difference, doubtful: Option<Doubtful>) {
        self.held.forget_bundles();
        let content = Content { entries, ..Content::default() };
        self.complete(state, content, doubtful);
    }

    /// Sends `content` with all bundles, authorities and stops.
    fn complete(&mut self, state: &State, mut content: Content, doubtful: Option<Doubtful>) {
        self.place.federate(self.held.federates_with());
        // The newest: what changed before the mailbox knew of whom the agent federates with is not told there.
        let newest = self.with.journal.state();
        content.bundles = self.held.take_bundles(&newest);
        content.authorities = Some(authorities(state));
        content.stops = self.stops(state);
        self.stands = self.stands.max(state.cursor().revision);
        self.start(content, doubtful, state);
    }

    /// The entries that the agent is to have.
    fn present(&self, state: &State) -> Vec<Arc<Entry>> {
        let mut entries = state.authorized_entries(&self.agent, self.with.host.now());
        entries.retain(|entry| is_fit(entry, self.can.options));
        entries
    }

    /// The stops that the agent is to know; `None` if it does not want to know any.
    fn stops(&mut self, state: &State) -> Option<Stops> {
        if !self.can.stops {
            return None;
        }
        let stops: Vec<_> = state
            .stops()
            .filter(|stop| concerns(state, &self.agent, &stop.target, self.with.host.now()))
            .filter_map(|stop| convert::stop::to_agent(&self.agent, stop))
            .collect();
        self.held.has_stops = !stops.is_empty();
        Some(Stops { stops })
    }

    /// Begins with the next update if the agent is ready for one.
    fn fill(&mut self) {
        if self.sending.is_some() || (self.awaited.is_some() && !self.is_resync_due) {
            return;
        }
        if std::mem::take(&mut self.is_resync_due) {
            let state = self.with.journal.state();
            let present = self.present(&state);
            self.snapshot(&state, &present);
            return;
        }
        // In this order: what is told up to here lies in the mailbox by now.
        let processed = self.with.hub.processed();
        let Some((news, marked)) = self.place.mailbox().take() else { return };
        self.stands = self.stands.max(processed).max(marked);
        let state = self.with.journal.state();
        let (content, doubtful) = self.decide(&news, &state);
        if content.is_empty() {
            self.place.settle(None);
        } else {
            self.start(content, Some(doubtful), &state);
        }
    }

    /// What the agent lacks, by a `state` that is no older than the news.
    fn decide(&mut self, news: &News, state: &State) -> (Content, Doubtful) {
        let before = self.held.digest();
        let (now, options) = (self.with.host.now(), self.can.options);
        let entries = match &news.entries {
            Touched::Some(ids) => {
                let agent = &self.agent;
                let present =
                    |id: &_| state.authorized_entry(agent, id, now).filter(|entry| is_fit(entry, options));
                self.held.take_some(ids, present)
            }
            Touched::All => {
                let present = self.present(state);
                self.held.take_all(&present)
            }
        };
        let ids = entries.put.iter().map(|entry| entry.id.clone()).chain(entries.removed.iter().cloned());
        let doubtful = Doubtful { before, entries: ids.collect() };
        let mut content = Content { entries, ..Content::default() };
        if content.entries.federates {
            self.place.federate(self.held.federates_with());
        }
        if news.bundles || content.entries.federates {
            // If the agent federates with others from now on, the newest: see `complete`.
            content.bundles = if content.entries.federates {
                self.held.take_bundles(&self.with.journal.state())
            } else {
                self.held.take_bundles(state)
            };
        }
        content.authorities = news.authorities.then(|| authorities(state));
        let had_stops = self.held.has_stops;
        content.stops = if news.stops { self.stops(state) } else { None };
        if !had_stops && !self.held.has_stops {
            content.stops = None;
        }
        (content, doubtful)
    }

    fn start(&mut self, mut content: Content, doubtful: Option<Doubtful>, state: &State) {
        self.place.mailbox().owe(self.with.host.now());
        let lineage = state.cursor().lineage.to_string();
        content.cursor = Cursor { lineage, revision: self.stands.number() };
        content.digest = self.held.digest();
        let by = Instant::now() + WATCH_ACK_WITHIN;
        let bundle = self.held.bundle_sequence(state.trust_domain());
        self.awaited = Some(Awaited { revision: self.stands, by, bundle, doubtful });
        self.sending = Some(content.into_parts());
        self.with.metrics.watch_updates.inc();
    }

    /// Hands the next part to HTTP/2, which has room for it.
    fn send_part(&mut self) {
        let Some(parts) = &mut self.sending else { return };
        let part = parts.next(&self.with.bundles);
        self.with.metrics.synced_entries.add(part.entries.len());
        if !part.more {
            self.sending = None;
        }
        self.put(Response::Update(part));
        if let Some(awaited) = &mut self.awaited {
            awaited.by = Instant::now() + WATCH_ACK_WITHIN;
        }
    }

    fn put(&mut self, response: Response) {
        // What the next heartbeat confirms is what stands when that is due.
        self.confirms = None;
        self.out.put(WatchResponse { response: Some(response) });
        // A part of it earlier, so that ten thousand that began together do not stay together.
        let jitter = self.with.host.jitter().between(WATCH_HEARTBEAT * 4 / 5, WATCH_HEARTBEAT);
        self.heartbeat = self.with.ticks.until(Instant::now() + jitter);
    }

    /// When to look again, whatever happens.
    fn due(&self) -> Instant {
        let due = self.heartbeat.min(self.expires);
        self.awaited.as_ref().map_or(due, |awaited| due.min(awaited.by))
    }

    async fn on_time(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        let is_unread = self.out.unread_since().is_some_and(|since| since + WATCH_ACK_WITHIN <= now);
        if is_unread || self.awaited.as_ref().is_some_and(|awaited| awaited.by <= now) {
            let seconds = WATCH_ACK_WITHIN.as_secs();
            let why = format!("what was sent was not acknowledged within {seconds} s");
            return Err((WatchEnd::Late, Some(Status::deadline_exceeded(why))));
        }
        if self.expires <= now {
            self.still_stands().await?;
            // Its row may know of a later end, or a clock was set.
            self.expires = now + WATCH_HEARTBEAT;
        }
        if self.heartbeat <= now {
            if self.may_have_fallen() {
                self.still_stands().await?;
            }
            self.beat(now);
        }
        Ok(())
    }

    /// Says that nothing has changed, if that is so and there is room to say it. It is not known before the hub has told of all
    /// that was committed: a hub that does not come to it leaves agents without heartbeats, and they ask.
    fn beat(&mut self, now: Instant) {
        let processed = self.with.hub.processed();
        let newest = || self.with.journal.state().cursor().revision;
        if processed < *self.confirms.get_or_insert_with(newest) {
            self.heartbeat = now + WATCH_CONFIRMS;
            return;
        }
        self.confirms = None;
        self.heartbeat = now + WATCH_HEARTBEAT;
        if self.sending.is_some() || !self.place.mailbox().is_empty() || !self.out.has_room() {
            return;
        }
        if self.awaited.is_none() {
            self.stands = self.stands.max(processed);
        }
        let lineage = self.with.journal.state().cursor().lineage.to_string();
        let cursor = Some(Cursor { lineage, revision: self.stands.number() });
        self.put(Response::Heartbeat(Heartbeat { cursor, server_time_millis: millis(self.with.host.now()) }));
    }

    fn heard(&mut self, request: WatchRequest) -> Result<(), Ended> {
        match request.request {
            Some(Request::Ack(ack)) => self.acked(&ack),
            Some(Request::Report(report)) => {
                self.unasked()?;
                self.reported(report);
                Ok(())
            }
            Some(Request::Resync(resync)) => {
                self.unasked()?;
                self.resync(&resync)
            }
            Some(Request::Hello(_)) => Err(malformed("there is one hello in a watch")),
            // Of a newer agent.
            None => self.unasked(),
        }
    }

    fn acked(&mut self, ack: &Ack) -> Result<(), Ended> {
        let Some(cursor) = &ack.cursor else { return Err(malformed("an acknowledgement without a cursor")) };
        let lineage = self.with.journal.state().cursor().lineage.to_string();
        if cursor.lineage != lineage || cursor.revision > self.stands.number() {
            return Err(malformed("what was never sent cannot be acknowledged"));
        }
        let acked = Revision::new(cursor.revision);
        let is_awaited = |awaited: &mut Awaited| awaited.revision <= acked;
        if self.sending.is_none()
            && let Some(awaited) = self.awaited.take_if(is_awaited)
        {
            if let Some(sequence) = awaited.bundle {
                self.with.authorities.reach().serves(&self.agent, sequence, self.with.host.now());
            }
            self.place.settle(Some(awaited.revision));
            return Ok(());
        }
        self.unasked()
    }

    fn reported(&self, report: Report) {
        let Report { bundle_sequence, x509_svids, jwt_svids, streams, last_end } = report;
        if bundle_sequence > 0 {
            // Nobody has a bundle that was never published.
            let newest = self.with.journal.state().bundle().map_or(0, |bundle| bundle.sequence);
            let sequence = bundle_sequence.min(newest);
            self.with.authorities.reach().serves(&self.agent, sequence, self.with.host.now());
        }
        let last_end = (last_end > 0).then(|| UnixTime::from_secs(last_end));
        self.place.report(Told { bundle_sequence, x509_svids, jwt_svids, streams, last_end });
    }

    fn resync(&mut self, resync: &Resync) -> Result<(), Ended> {
        self.resyncs += 1;
        if self.resyncs > WATCH_RESYNCS {
            let why = "too many snapshots were asked for; begin anew, from nothing";
            return Err((WatchEnd::Flood, Some(Status::resource_exhausted(why))));
        }
        let reason: String = resync.reason.chars().filter(|c| !c.is_control()).take(WATCH_REASON).collect();
        tracing::warn!(agent = %self.agent, reason, "an agent holds what does not add up, and gets a snapshot");
        self.with.metrics.watch_began.of(Catching::Resync).inc();
        self.is_resync_due = true;
        Ok(())
    }

    /// Counts a request that no update asked for.
    fn unasked(&mut self) -> Result<(), Ended> {
        if self.unasked.take(Instant::now()) {
            return Ok(());
        }
        let why = "too many requests on one watch; report at most once in ten seconds";
        Err((WatchEnd::Flood, Some(Status::resource_exhausted(why))))
    }
}

impl Unasked {
    /// Whether one more is in order.
    fn take(&mut self, now: Instant) -> bool {
        let (most, per_second) = WATCH_REQUESTS;
        let seconds = now.duration_since(self.since).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(per_second);
            self.left = self.left.saturating_add(more).min(most);
            self.since += Duration::from_secs(seconds);
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// What the agent lacks, if it holds what it was sent on its last watch, with or without the last update of that.
fn lacks(kept: Kept, digest: Digest, present: &[Arc<Entry>]) -> Option<(Held, Difference)> {
    let Kept { mut held, doubtful } = kept;
    if held.digest() == digest {
        let difference = held.take_all(present);
        return Some((held, difference));
    }
    let doubtful = doubtful.filter(|doubtful| doubtful.before == digest)?;
    let mut difference = held.take_all(present);
    for id in doubtful.entries {
        match present.binary_search_by(|entry| entry.id.cmp(&id)) {
            Ok(at) if difference.put.iter().all(|entry| entry.id != id) => {
                difference.put.push(Arc::clone(&present[at]));
            }
            Err(_) if !difference.removed.contains(&id) => difference.removed.push(id),
            Ok(_) | Err(_) => {}
        }
    }
    Some((held, difference))
}

/// Whether the agent is to know of the stop: it is of the agent, or of an entry that would be the agent's otherwise.
fn concerns(state: &State, agent: &SpiffeId, target: &StopTarget, now: UnixTime) -> bool {
    match target {
        StopTarget::Agent(of) | StopTarget::Instance { agent: of, .. } => of == agent,
        StopTarget::Entry(id) => match (state.entry(id), state.node(agent)) {
            (Some(entry), Some(node)) => is_authorized(state, agent, &node.selectors, entry, now),
            (None, _) | (_, None) => false,
        },
    }
}

fn authorities(state: &State) -> Listed {
    let of = |one: &authority::Authority| Authority {
        kind: match one.kind {
            authority::AuthorityKind::X509 => AuthorityKind::X509,
            authority::AuthorityKind::Jwt => AuthorityKind::Jwt,
        }
        .into(),
        authority_id: one.id.to_string(),
        state: match (one.tainted, one.phase) {
            (true, _) => AuthorityState::Tainted,
            (false, Phase::Prepared) => AuthorityState::Prepared,
            (false, Phase::Active) => AuthorityState::Active,
            (false, Phase::Retired) => AuthorityState::Old,
        }
        .into(),
        expires_at: one.not_after.secs(),
    };
    Listed { authorities: state.authorities().map(of).collect() }
}

fn millis(time: UnixTime) -> i64 {
    time.secs().saturating_mul(1000)
}

fn stopping() -> Status {
    refuse(Refusal::unavailable("server is shutting down"))
}

fn malformed(why: &str) -> Ended {
    (WatchEnd::Malformed, Some(Status::invalid_argument(why)))
}

/// The agent left, or its stream broke.
fn gone(status: Status) -> Result<(), Ended> {
    let nonsense = [Code::InvalidArgument, Code::OutOfRange, Code::Internal, Code::Unimplemented];
    if status.code() == Code::Cancelled {
        return Ok(());
    }
    let why = if nonsense.contains(&status.code()) { WatchEnd::Malformed } else { WatchEnd::Left };
    Err((why, Some(status)))
}
