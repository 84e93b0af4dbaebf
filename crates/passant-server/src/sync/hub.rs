//! Who watches, and how far has each come?

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_core::{EntryId, Host, SpiffeId, Stop, StopTarget, TrustDomain, UnixTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::concerned::{Above, Concerns};
use super::held::{Digest, Held};
use super::mailbox::{End, Mailbox, News, Touched};
use crate::journal::{Follower, Journal, Published};
use crate::limits::WATCH_KEPT;
use crate::metrics::Metrics;
use crate::state::node::AttestedNode;
use crate::state::{Revision, State};

/// Knows of every agent that is or was in contact since the server started. Clones share it.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    journal: Journal,
    host: Host,
    metrics: Arc<Metrics>,
    book: Mutex<Book>,
    /// Everything up to here has been put into mailboxes.
    processed: watch::Sender<Revision>,
    /// Moves whenever some agent comes further.
    progress: watch::Sender<()>,
}

#[derive(Default)]
struct Book {
    contacts: BTreeMap<SpiffeId, Contact>,
    /// Entries in what is kept of agents that are gone.
    kept: usize,
    is_closed: bool,
    /// The stops whose commit took a while, and when it was through.
    late_stops: BTreeMap<StopTarget, (String, UnixTime)>,
}

/// What is known of one agent. There are no more than attested nodes.
#[derive(Debug, Default)]
pub(super) struct Contact {
    /// Its watch, if it has one.
    pub(super) watch: Option<Watching>,
    /// When its last watch ended.
    pub(super) gone_since: Option<UnixTime>,
    /// What it had acknowledged then.
    pub(super) acked: Option<Revision>,
    /// How far it has come by polling.
    pub(super) polled: Option<Polled>,
    /// Whether its last watch said that it knows stops. `acked` is of such a watch then.
    pub(super) knows_stops: bool,
    /// What it said of itself.
    pub(super) report: Option<Report>,
    /// What its last watch was sent.
    kept: Option<Kept>,
}

/// An agent's watch.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) since: UnixTime,
    node: Arc<AttestedNode>,
}

/// How far an agent has come that asks for all of its entries again and again. Agents of SPIRE do that.
#[derive(Debug)]
pub(super) struct Polled {
    /// When it last did.
    pub(super) at: UnixTime,
    /// What it has: it has asked again since it was answered, so that the answer had come, or was given up.
    pub(super) has: Option<Revision>,
    /// The newest revision of the last answer.
    answered: Option<Revision>,
}

/// What an agent says that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Sequence number of the own bundle.
    pub bundle_sequence: u64,
    /// X509-SVIDs that it holds.
    pub x509_svids: u32,
    /// JWT-SVIDs that it holds.
    pub jwt_svids: u32,
    /// Open streams of the Workload API.
    pub streams: u32,
    /// When the last SVID ends that it holds.
    pub last_end: Option<UnixTime>,
}

/// What an agent was sent on a watch that has ended.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) held: Held,
    /// The update that it did not acknowledge, if there was one.
    pub(crate) doubtful: Option<Doubtful>,
}

/// An update of which nobody knows whether it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Doubtful {
    /// The digest before it.
    pub(crate) before: Digest,
    /// The entries that it was about.
    pub(crate) entries: Vec<EntryId>,
}

/// The place of one watch, given back when dropped.
pub(crate) struct Place {
    hub: Hub,
    agent: SpiffeId,
    mailbox: Arc<Mailbox>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("processed", &self.processed()).finish_non_exhaustive()
    }
}

impl Hub {
    /// Nobody watches. [`Hub::run`] has to run for anybody to hear anything.
    pub(crate) fn new(journal: Journal, host: Host, metrics: Arc<Metrics>) -> Self {
        let (processed, _) = watch::channel(Revision::ZERO);
        let (progress, _) = watch::channel(());
        let book = Mutex::default();
        Self(Arc::new(Inner { journal, host, metrics, book, processed, progress }))
    }

    /// Begins to hear of what is committed from now on.
    pub(crate) fn follow(&self) -> Follower {
        let follower = self.0.journal.follow();
        self.0.processed.send_replace(self.0.journal.state().cursor().revision);
        follower
    }

    /// Tells watches of what is committed, until the stop.
    pub(crate) async fn run(self, mut follower: Follower, stop: CancellationToken) {
        loop {
            let published = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                published = follower.next() => published,
            };
            self.tell(&published);
        }
    }

    /// Leaves news with everybody whom the difference concerns.
    fn tell(&self, published: &Published) {
        let concerns = Concerns::of(published);
        let (revision, now) = (published.after.cursor().revision, self.0.host.now());
        let mut book = self.book();
        book.for_each_told(&concerns, |watch, news| {
            if watch.mailbox.put(news, revision, now) {
                self.0.metrics.watch_conflations.inc();
            }
        });
        book.look_at_nodes(&concerns, &published.after);
        drop(book);
        self.0.processed.send_replace(revision);
        self.progressed();
    }

    /// Takes the place of the agent's watch; one that it had ends. `None` once the server stops.
    pub(crate) fn enter(&self, node: &Arc<AttestedNode>) -> Option<Place> {
        let (mailbox, now) = (Arc::new(Mailbox::default()), self.0.host.now());
        mailbox.owe(now);
        let mut book = self.book();
        if book.is_closed {
            return None;
        }
        // Its row as it is under the lock: of what is told from now on it hears.
        let newest = self.0.journal.state().node(&node.id).map(Arc::clone);
        let contact = book.contacts.entry(node.id.clone()).or_default();
        let node_now = newest.unwrap_or_else(|| Arc::clone(node));
        let watching = Watching { mailbox: Arc::clone(&mailbox), since: now, node: node_now };
        if let Some(before) = contact.watch.replace(watching) {
            before.mailbox.end(End::Replaced);
        }
        drop(book);
        Some(Place { hub: self.clone(), agent: node.id.clone(), mailbox })
    }

    /// Ends all watches, and takes no new ones: the server stops.
    pub(crate) fn close(&self) {
        let mut book = self.book();
        book.is_closed = true;
        book.contacts.values().filter_map(|contact| contact.watch.as_ref()).for_each(|watch| {
            watch.mailbox.end(End::Stopping);
        });
    }

    /// Everything up to here is in the mailboxes of those whom it concerns.
    pub(crate) fn processed(&self) -> Revision {
        *self.0.processed.borrow()
    }

    /// The agent asks for all of its entries: it has what it was answered before.
    pub(crate) fn polls(&self, agent: &SpiffeId) {
        self.poll(agent, |polled| polled.has = polled.answered.take().max(polled.has));
        self.progressed();
    }

    /// The agent was answered with all of its entries as they stood in `revision`. Whether that arrives is not known.
    pub(crate) fn answered(&self, agent: &SpiffeId, revision: Revision) {
        self.poll(agent, |polled| polled.answered = Some(revision));
    }

    fn poll(&self, agent: &SpiffeId, note: impl FnOnce(&mut Polled)) {
        let at = self.0.host.now();
        let mut book = self.book();
        // Under the lock: what becomes of the node later is seen when it is told of.
        if self.0.journal.state().node(agent).is_none() {
            return;
        }
        let contact = book.contacts.entry(agent.clone()).or_default();
        let polled = contact.polled.get_or_insert(Polled { at, has: None, answered: None });
        polled.at = at;
        note(polled);
    }

    /// Whether the agent watches now, and owes nothing: then what it serves is the truth.
    pub(crate) fn is_current(&self, agent: &SpiffeId) -> bool {
        let book = self.book();
        let watch = book.contacts.get(agent).and_then(|contact| contact.watch.as_ref());
        watch.is_some_and(|watch| watch.mailbox.progress().owing_since.is_none())
    }

    /// The stop was committed by now: what was minted meanwhile is older than this moment, not than the stop.
    pub(crate) fn is_in_force(&self, stop: &Stop) {
        let (now, state) = (self.0.host.now(), self.0.journal.state());
        if now > stop.since {
            let mut book = self.book();
            book.late_stops.retain(|target, _| state.stop(target).is_some());
            book.late_stops.insert(stop.target.clone(), (stop.id.clone(), now));
        }
    }

    /// Since when the stop was in force, if that is later than it says. After a restart that is not known any more.
    pub(crate) fn in_force_since(&self, stop: &Stop) -> Option<UnixTime> {
        let book = self.book();
        let (id, since) = book.late_stops.get(&stop.target)?;
        (*id == stop.id).then_some(*since)
    }

    /// What the agent last said of itself.
    pub fn report_of(&self, agent: &SpiffeId) -> Option<Report> {
        self.book().contacts.get(agent).and_then(|contact| contact.report)
    }

    /// Moves whenever some agent comes further, or goes.
    pub(super) fn progress(&self) -> watch::Receiver<()> {
        self.0.progress.subscribe()
    }

    /// Some agent has come further, or gone. What it has done is to be seen by now: whoever subscribes looks after that.
    fn progressed(&self) {
        if self.0.progress.receiver_count() > 0 {
            self.0.progress.send_replace(());
        }
    }

    /// Looks at what is known of agents, all at one moment.
    pub(super) fn look<T>(&self, look: impl FnOnce(&BTreeMap<SpiffeId, Contact>) -> T) -> T {
        look(&self.book().contacts)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// What the difference means for each watching agent, if it means something.
    fn for_each_told(&self, concerns: &Concerns, mut tell: impl FnMut(&Watching, &News)) {
        let of_all = concerns.of_all();
        let some = if concerns.everything { BTreeMap::new() } else { self.news(concerns) };
        if of_all == News::default() && concerns.foreign_bundles.is_empty() {
            for (agent, news) in some {
                if let Some(watch) = self.contacts.get(&agent).and_then(|contact| contact.watch.as_ref()) {
                    tell(watch, &news);
                }
            }
            return;
        }
        for (agent, contact) in &self.contacts {
            let Some(watch) = &contact.watch else { continue };
            let mut news = of_all.clone();
            news.bundles |= watch.mailbox.federates(&concerns.foreign_bundles);
            if let Some(more) = some.get(agent) {
                news.add(more);
            }
            if news != News::default() {
                tell(watch, &news);
            }
        }
    }

    /// What the difference means for those whom it concerns in particular.
    fn news(&self, concerns: &Concerns) -> BTreeMap<SpiffeId, News> {
        let mut news: BTreeMap<SpiffeId, News> = BTreeMap::new();
        for (above, ids) in &concerns.entries {
            self.for_each_below(above, |agent| news.entry(agent.clone()).or_default().entries.add(ids));
        }
        for above in &concerns.all_entries {
            self.for_each_below(above, |agent| {
                let news = news.entry(agent.clone()).or_default();
                // Which of its stops concern it may be another matter, too.
                (news.entries, news.stops) = (Touched::All, true);
            });
        }
        for above in &concerns.stops {
            self.for_each_below(above, |agent| news.entry(agent.clone()).or_default().stops = true);
        }
        for (agent, selectors) in &concerns.nodes {
            let news = news.entry(agent.clone()).or_default();
            news.standing = true;
            if *selectors {
                (news.entries, news.stops) = (Touched::All, true);
            }
        }
        for (agent, all) in &concerns.stopped_agents {
            let news = news.entry(agent.clone()).or_default();
            news.stops = true;
            if *all {
                news.entries = Touched::All;
            }
        }
        news
    }

    fn for_each_below(&self, above: &Above, mut visit: impl FnMut(&SpiffeId)) {
        if above.aliases.is_empty() {
            above.agents.iter().filter(|agent| self.contacts.contains_key(*agent)).for_each(visit);
            return;
        }
        for (agent, contact) in &self.contacts {
            if contact.watch.as_ref().is_some_and(|watch| above.has(&watch.node)) {
                visit(agent);
            }
        }
    }

    /// Takes over what has become of nodes.
    fn look_at_nodes(&mut self, concerns: &Concerns, state: &State) {
        if concerns.everything {
            let all: Vec<SpiffeId> = self.contacts.keys().cloned().collect();
            all.iter().for_each(|agent| self.look_at_node(agent, state));
        }
        concerns.nodes.keys().for_each(|agent| self.look_at_node(agent, state));
    }

    fn look_at_node(&mut self, agent: &SpiffeId, state: &State) {
        let Some(contact) = self.contacts.get_mut(agent) else { return };
        match (state.node(agent), &mut contact.watch) {
            (Some(node), Some(watch)) => watch.node = Arc::clone(node),
            (None, None) => self.forget(agent),
            // It is told by its task, which leaves then.
            (None, Some(_)) | (Some(_), None) => {}
        }
    }

    fn forget(&mut self, agent: &SpiffeId) {
        if let Some(kept) = self.contacts.remove(agent).and_then(|contact| contact.kept) {
            self.kept -= kept.weight();
        }
    }

    /// The agent's contact, if the place is still that of its watch.
    fn current(&mut self, place: &Place) -> Option<&mut Contact> {
        let contact = self.contacts.get_mut(&place.agent)?;
        let is_its = contact.watch.as_ref().is_some_and(|watch| Arc::ptr_eq(&watch.mailbox, &place.mailbox));
        is_its.then_some(contact)
    }

    fn take_kept(&mut self, agent: &SpiffeId) -> Option<Kept> {
        let kept = self.contacts.get_mut(agent)?.kept.take()?;
        self.kept -= kept.weight();
        Some(kept)
    }

    fn keep(&mut self, agent: &SpiffeId, kept: Kept) {
        drop(self.take_kept(agent));
        let more = kept.weight();
        if more > WATCH_KEPT {
            return;
        }
        if self.kept + more > WATCH_KEPT {
            // Those agents get a snapshot when they come.
            self.contacts.values_mut().for_each(|contact| contact.kept = None);
            self.kept = 0;
        }
        if let Some(contact) = self.contacts.get_mut(agent) {
            contact.kept = Some(kept);
            self.kept += more;
        }
    }
}

impl Kept {
    fn weight(&self) -> usize {
        self.held.len() + self.doubtful.as_ref().map_or(0, |doubtful| doubtful.entries.len())
    }
}

impl Place {
    pub(crate) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// What the agent was sent on its last watch.
    pub(crate) fn kept(&self) -> Option<Kept> {
        self.hub.book().take_kept(&self.agent)
    }

    /// Keeps it for the next one.
    pub(crate) fn keep(&self, kept: Kept) {
        self.hub.book().keep(&self.agent, kept);
    }

    /// The agent owes nothing more of what was taken from its mailbox. `acked`: it has everything up to there.
    pub(crate) fn settle(&self, acked: Option<Revision>) {
        self.mailbox.settle(acked);
        self.hub.progressed();
    }

    /// Whether the agent knows stops, as it says.
    pub(crate) fn knows_stops(&self, knows: bool) {
        if let Some(contact) = self.hub.book().current(self) {
            if knows && !contact.knows_stops {
                // Of a watch on which it was told of none.
                contact.acked = None;
            }
            contact.knows_stops = knows;
        }
    }

    /// What the agent says that it serves.
    pub(crate) fn report(&self, report: Report) {
        if let Some(contact) = self.hub.book().contacts.get_mut(&self.agent) {
            contact.report = Some(report);
        }
    }

    /// Of which foreign trust domains the agent is sent the bundles from now on.
    pub(crate) fn federate(&self, with: std::collections::BTreeSet<TrustDomain>) {
        self.mailbox.federate(with);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = self.hub.0.host.now();
        // Before its mailbox is looked at.
        let told = self.hub.processed();
        let mut book = self.hub.book();
        // Under the lock: of an eviction that comes later the book is told.
        let is_attested = self.hub.0.journal.state().node(&self.agent).is_some();
        if let Some(contact) = book.contacts.get_mut(&self.agent)
            && contact.watch.as_ref().is_some_and(|watch| Arc::ptr_eq(&watch.mailbox, &self.mailbox))
        {
            contact.watch = None;
            contact.gone_since = Some(now);
            let progress = self.mailbox.progress();
            // An agent that owes nothing has everything, acknowledged or not.
            let told = progress.owing_since.is_none().then_some(told);
            contact.acked = progress.acked.max(told).max(contact.acked);
            if !is_attested {
                book.forget(&self.agent);
            }
        }
        drop(book);
        self.hub.progressed();
    }
}
