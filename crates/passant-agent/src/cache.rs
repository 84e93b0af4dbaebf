//! What may each workload see of what this agent holds, and when does it hear of a change?
//!
//! [`Cache`] is the one handle that the Workload API, the sync and the minting share. What it holds lives in `state`
//! (pure, changes only through its transitions); here stand the subscriptions. A subscriber is woken only when what it
//! may see has changed.

mod seen;
mod slot;
mod state;
mod stops;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::jwt_svid::JwtSvid;
use passant_core::{
    AuthorizedEntry, EntryId, Evidence, Host, Instance, Refusal, Selectors, SpiffeId, TrustDomain, UnixTime,
};
use tokio::sync::{Notify, watch};

use crate::grounds;
use crate::jwt_cache::{JwtCache, JwtIssuer};
use crate::plan::{self, Action, Why};

pub use seen::{Bundles, Identities, Identity, Update};
#[cfg(test)]
pub(crate) use slot::Failed;
pub(crate) use slot::{Held, Seat, Slot, Supply};
pub(crate) use state::{Census, Changed, Cursor, Delta, Fit, MintFailure, Minted, State, SvidLook, View};
pub(crate) use stops::Stops;

/// The handle to everything this agent holds for workloads. Cheap to clone; all clones share.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    trust_domain: TrustDomain,
    host: Host,
    book: Mutex<Book>,
    /// Wakes whoever mints: something may be missing.
    work: Notify,
    /// Wakes whoever syncs: a workload waits for what the server has not said.
    need: Notify,
    /// Wakes whoever tells the server that what it said has taken effect.
    quiet: Notify,
    jwt: JwtCache,
}

struct Book {
    state: State,
    subscribers: BTreeMap<u64, Subscriber>,
    next_subscriber: u64,
    /// Subscribers that have not yet looked at what they were woken for.
    unheard: BTreeSet<u64>,
    /// Subscribers whose entries were changed by a push, and that wait for an SVID of them.
    awaiting: BTreeSet<u64>,
    /// What to look at for the next mint.
    due: Due,
    /// How often something was pushed.
    pushes: u64,
    /// Processes that were refused an SVID of their own.
    refused: u64,
}

/// What the next [`Cache::plan`] has to look at.
struct Due {
    /// Everything, not only `entries`.
    all: bool,
    entries: BTreeSet<EntryId>,
    /// When the first of the SVIDs held becomes due that was not yet at the last look at everything; what takes its place or
    /// goes meanwhile may leave this too early.
    soonest: Option<UnixTime>,
}

struct Subscriber {
    selectors: Selectors,
    /// What is known of the process, and by whom.
    evidence: Option<Arc<Evidence>>,
    matched: BTreeSet<EntryId>,
    /// Whether the process was refused an SVID of its own.
    is_refused: bool,
    /// Whether the complete first set was given.
    complete_once: bool,
    latest: watch::Sender<Update>,
}

/// What workloads are served, in figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// The sequence number of the own bundle.
    pub(crate) bundle_sequence: u64,
    pub(crate) x509_svids: usize,
    pub(crate) jwt_svids: usize,
    /// Open streams.
    pub(crate) streams: usize,
    /// When the last SVID held ends.
    pub(crate) last_end: Option<UnixTime>,
}

/// An SVID to be minted.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) seat: Seat,
    pub(crate) entry: Arc<AuthorizedEntry>,
    /// What is known of a process that waits for it; nothing if it is minted ahead, or if that was too long ago for one that
    /// several share.
    pub(crate) evidence: Option<Arc<Evidence>>,
    /// Whether a workload has none meanwhile.
    pub(crate) is_awaited: bool,
}

/// Why [`Cache::plan`] is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Time has passed.
    Clock,
    /// Something has changed.
    News,
}

/// Changed entries for which it is worth finding out whom they concern; with more, everybody looks.
const SETTLED_SINGLY: usize = 64;

impl Cache {
    /// An empty cache: every subscriber is [`Update::NotReady`] until the first sync.
    pub fn new(trust_domain: TrustDomain, host: Host, issuer: Arc<dyn JwtIssuer>) -> Self {
        let book = Book {
            state: State::default(),
            subscribers: BTreeMap::new(),
            next_subscriber: 0,
            unheard: BTreeSet::new(),
            awaiting: BTreeSet::new(),
            due: Due { all: true, entries: BTreeSet::new(), soonest: None },
            pushes: 0,
            refused: 0,
        };
        let jwt = JwtCache::new(host.clone(), issuer);
        Self {
            shared: Arc::new(Shared {
                trust_domain,
                host,
                book: Mutex::new(book),
                work: Notify::new(),
                need: Notify::new(),
                quiet: Notify::new(),
                jwt,
            }),
        }
    }

    /// The trust domain of this agent.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    /// Follows what a workload with `selectors` may see. The entries that match are minted while the subscription
    /// lives, those apart of which each process has an SVID of its own: it is not known who this is.
    pub fn subscribe(&self, selectors: &Selectors) -> Subscription {
        self.follow(selectors.clone(), None)
    }

    /// The same for the process that `evidence` is of. SVIDs that it waits for are minted on that.
    pub fn subscribe_as(&self, evidence: &Arc<Evidence>) -> Subscription {
        self.follow(evidence.selectors.clone(), Some(Arc::clone(evidence)))
    }

    fn follow(&self, selectors: Selectors, evidence: Option<Arc<Evidence>>) -> Subscription {
        let now = self.now();
        let mut book = self.shared.book();
        let id = book.next_subscriber;
        book.next_subscriber += 1;
        let latest = watch::Sender::new(Update::NotReady(String::new()));
        let mut subscriber = Subscriber {
            selectors,
            evidence,
            matched: BTreeSet::new(),
            is_refused: false,
            complete_once: false,
            latest,
        };
        subscriber.settle(&mut book.state, now);
        book.refused += u64::from(subscriber.is_refused);
        let receiver = subscriber.latest.subscribe();
        if book.state.lacks_any(&subscriber.matched, subscriber.process(), now) {
            book.due.entries.extend(subscriber.matched.iter().cloned());
            self.shared.work.notify_one();
        }
        if matches!(*receiver.borrow(), Update::NotReady(_)) {
            self.shared.need.notify_one();
        }
        book.subscribers.insert(id, subscriber);
        drop(book);
        Subscription { shared: Arc::clone(&self.shared), id, receiver }
    }

    /// Whether nothing is to be served to the process.
    pub(crate) fn is_stopped(&self, process: &Instance) -> bool {
        self.shared.book().state.stops().cover_process(process)
    }

    /// The process has exited: what it had of its own goes.
    pub(crate) fn exited(&self, process: &Instance) {
        self.shared.book().state.forget_process(process);
    }

    /// What is stopped.
    pub(crate) fn stops(&self) -> Stops {
        self.shared.book().state.stops().clone()
    }

    /// Takes over the stops that were known when the agent last ran.
    pub(crate) fn learn_stops(&self, stops: Stops) {
        self.shared.book().state.learn_stops(stops, &mut Changed::default());
    }

    /// Processes that have an SVID of their own, or wait for it; and how many were refused one.
    pub(crate) fn processes(&self) -> (usize, u64) {
        let book = self.shared.book();
        (book.state.seats(), book.refused)
    }

    /// The entries that a workload with `selectors` has, in entry-id order; those for secret stores are left out.
    pub fn entries(&self, selectors: &Selectors) -> Vec<Arc<AuthorizedEntry>> {
        self.shared.book().state.matching(selectors)
    }

    /// Every bundle held. Narrow it with [`Bundles::for_entries`] before a workload sees it.
    pub fn bundles(&self) -> Bundles {
        self.shared.book().state.bundles()
    }

    /// When the server last confirmed what this node may serve.
    pub(crate) fn confirmed_at(&self) -> Option<UnixTime> {
        self.shared.book().state.confirmed_at()
    }

    /// How much is held.
    pub(crate) fn census(&self) -> Census {
        self.shared.book().state.census()
    }

    /// Whether the server confirmed the set of entries within the last 30 s; without that, "no entry matches" is not
    /// known.
    pub fn is_confirmed(&self) -> bool {
        let now = self.now();
        self.shared.book().state.is_confirmed(now)
    }

    /// For how many entries [`Cache::jwt_svids`] would have to ask the server.
    pub fn jwt_svids_lacking(
        &self,
        selectors: &Selectors,
        audience: &[String],
        spiffe_id: Option<&SpiffeId>,
    ) -> usize {
        let mut entries = self.shared.book().state.matching(selectors);
        entries.retain(|entry| spiffe_id.is_none_or(|wanted| entry.spiffe_id == *wanted));
        self.shared.jwt.lacking(&entries, audience)
    }

    /// One JWT-SVID for each entry that matches `selectors`, or for those with `spiffe_id` if given, in entry-id order.
    ///
    /// # Errors
    /// Invalid for an empty or oversized audience; denied with `no identity issued` when no entry fits in a confirmed
    /// view; unavailable when the view is not confirmed, or when the server fails and no unexpired token is cached; not found or
    /// denied when the server says that there is none.
    pub async fn jwt_svids(
        &self,
        selectors: &Selectors,
        audience: Vec<String>,
        spiffe_id: Option<SpiffeId>,
    ) -> Result<Vec<(Arc<AuthorizedEntry>, JwtSvid)>, Refusal> {
        self.issue_jwt_svids(selectors, audience, spiffe_id, None).await
    }

    /// The same for the process that `evidence` is of.
    ///
    /// # Errors
    /// As there; also denied when the process is stopped.
    pub async fn jwt_svids_as(
        &self,
        evidence: &Arc<Evidence>,
        audience: Vec<String>,
        spiffe_id: Option<SpiffeId>,
    ) -> Result<Vec<(Arc<AuthorizedEntry>, JwtSvid)>, Refusal> {
        let refuse_if_stopped = || match self.is_stopped(&evidence.instance) {
            true => Err(Refusal::denied("no identity issued")),
            false => Ok(()),
        };
        refuse_if_stopped()?;
        let evidence_of_it = Some(Arc::clone(evidence));
        let issued = self.issue_jwt_svids(&evidence.selectors, audience, spiffe_id, evidence_of_it).await?;
        // The server was asked meanwhile.
        refuse_if_stopped()?;
        Ok(issued)
    }

    async fn issue_jwt_svids(
        &self,
        selectors: &Selectors,
        audience: Vec<String>,
        spiffe_id: Option<SpiffeId>,
        evidence: Option<Arc<Evidence>>,
    ) -> Result<Vec<(Arc<AuthorizedEntry>, JwtSvid)>, Refusal> {
        let entries = {
            let now = self.now();
            let book = self.shared.book();
            if let Some(why) = book.state.not_ready() {
                self.shared.need.notify_one();
                return Err(Refusal::unavailable(why));
            }
            let mut entries = book.state.matching(selectors);
            entries.retain(|entry| spiffe_id.as_ref().is_none_or(|wanted| entry.spiffe_id == *wanted));
            if entries.is_empty() {
                return Err(match book.state.is_confirmed(now) {
                    true => Refusal::denied("no identity issued"),
                    false => {
                        self.shared.need.notify_one();
                        Refusal::unavailable(state::UNCONFIRMED)
                    }
                });
            }
            entries
        };
        let mut issued = self.shared.jwt.fetch_all(entries, audience, evidence).await?;
        // The server was asked meanwhile: what it or an operator has taken away is not handed out any more.
        let book = self.shared.book();
        if let Some(why) = book.state.not_ready() {
            return Err(Refusal::unavailable(why));
        }
        let still: BTreeSet<EntryId> =
            book.state.matching(selectors).iter().map(|entry| entry.id.clone()).collect();
        issued.retain(|(entry, _)| still.contains(&entry.id));
        match issued.is_empty() {
            true => Err(Refusal::unavailable("the entries have changed while their JWT-SVIDs were issued")),
            false => Ok(issued),
        }
    }

    /// Takes over what the server said. Entries that `view` does not mention are dropped at once.
    ///
    /// `asked_at` is what [`Self::pushes`] was when the server was asked: what was pushed since then is newer, and stays.
    pub(crate) fn learn(&self, view: View, asked_at: u64) {
        let now = self.now();
        let mut book = self.shared.book();
        if book.pushes != asked_at {
            return;
        }
        let changed = book.state.learn(view, now);
        book.settle(now, |_| true);
        self.acted(book, &changed);
    }

    /// Takes over what the server pushed; the answer says whether it adds up. Nothing while all is withheld.
    pub(crate) fn apply(&self, delta: Delta) -> Option<Fit> {
        let now = self.now();
        let mut book = self.shared.book();
        let was_confirmed = book.state.is_confirmed(now);
        let (changed, fit) = book.state.apply(delta, now)?;
        book.pushes += 1;
        let all = changed.bundle
            || changed.federated
            || changed.processes
            || !was_confirmed
            || changed.ids.len() > SETTLED_SINGLY;
        let concerns = |subscriber: &Subscriber| {
            changed.ids.iter().any(|id| subscriber.matched.contains(id))
                || changed.put.iter().any(|entry| subscriber.selectors.contains_all(&entry.selectors))
        };
        book.settle(now, |subscriber| all || concerns(subscriber));
        let Book { state, subscribers, awaiting, .. } = &mut *book;
        let put: BTreeSet<&EntryId> = changed.put.iter().map(|entry| &entry.id).collect();
        awaiting.extend(subscribers.iter().filter_map(|(id, subscriber)| {
            let is_new = subscriber.matched.iter().any(|matched| put.contains(matched));
            (is_new && subscriber.awaits(state, now)).then_some(*id)
        }));
        self.acted(book, &changed);
        Some(fit)
    }

    /// The server says that nothing has changed up to `cursor`. False where that cannot be.
    pub(crate) fn confirm(&self, cursor: Cursor) -> bool {
        let now = self.now();
        let mut book = self.shared.book();
        let was_confirmed = book.state.is_confirmed(now);
        let goes_on = book.state.confirm(cursor, now);
        if goes_on && !was_confirmed {
            book.settle(now, |_| true);
        }
        goes_on
    }

    /// Where in the server's history the view stands, if it was pushed, and its digest.
    pub(crate) fn standing(&self) -> (Option<Cursor>, u64) {
        let book = self.shared.book();
        (book.state.cursor().cloned(), book.state.digest())
    }

    /// The next one who pushes is to say all there is.
    pub(crate) fn lose_cursor(&self) {
        self.shared.book().state.lose_cursor();
    }

    /// How often something was pushed.
    pub(crate) fn pushes(&self) -> u64 {
        self.shared.book().pushes
    }

    /// What is served at this moment.
    pub(crate) fn served(&self) -> Served {
        let (jwt_svids, last_jwt) = self.shared.jwt.census();
        let book = self.shared.book();
        let census = book.state.census();
        Served {
            bundle_sequence: book.state.bundles().own.map_or(0, |bundle| bundle.sequence),
            x509_svids: census.svids,
            jwt_svids,
            streams: book.subscribers.len(),
            last_end: census.last_end.max(last_jwt),
        }
    }

    /// Resolves once every workload that was woken has taken what there is for it, and none waits for an SVID of what was
    /// pushed last, as far as it can be had.
    pub(crate) async fn quiet(&self) {
        while !self.shared.book().is_quiet() {
            self.shared.quiet.notified().await;
        }
    }

    /// What follows from what the server said, for others.
    fn acted(&self, mut book: MutexGuard<'_, Book>, changed: &Changed) {
        book.due.entries.extend(changed.ids.iter().cloned());
        book.due.all |= changed.bundle;
        let is_quiet = book.is_quiet();
        let bundle = book.state.bundles().own.filter(|_| changed.bundle);
        drop(book);
        let put: BTreeSet<&EntryId> = changed.put.iter().map(|entry| &entry.id).collect();
        self.shared.jwt.forget(&changed.ids.iter().filter(|id| !put.contains(id)).collect());
        if let Some(bundle) = bundle {
            self.shared.jwt.purge(&bundle);
        }
        if changed.bundle || !changed.ids.is_empty() {
            self.shared.work.notify_one();
        }
        if is_quiet {
            self.shared.quiet.notify_one();
        }
    }

    /// Takes over a bundle that came outside of a sync.
    pub(crate) fn learn_bundle(&self, bundle: Arc<Bundle>) {
        let now = self.now();
        let mut book = self.shared.book();
        if book.state.learn_bundle(Arc::clone(&bundle)) {
            book.due.all = true;
            book.settle(now, |_| true);
        }
        drop(book);
        self.shared.jwt.purge(&bundle);
    }

    /// Takes over the outcome of minting, for each entry asked for.
    pub(crate) fn minted(&self, outcomes: Vec<(Seat, Result<Minted, MintFailure>)>) {
        let now = self.now();
        let mut book = self.shared.book();
        let touched: BTreeSet<EntryId> = outcomes.iter().map(|(seat, _)| seat.entry.clone()).collect();
        for (seat, outcome) in outcomes {
            match outcome {
                Ok(minted) => {
                    let soonest = book.due.soonest.map_or(minted.renew_at, |due| due.min(minted.renew_at));
                    book.due.soonest = Some(soonest);
                    book.state.put(&seat, minted, now);
                }
                Err(failure) => book.state.fail(&seat, failure, now, &self.shared.host),
            }
        }
        book.settle(now, |subscriber| !subscriber.matched.is_disjoint(&touched));
        self.hush(&book);
    }

    /// Why the server mints nothing at present, for those who wait.
    pub(crate) fn mint_trouble(&self, why: Option<&str>) {
        let now = self.now();
        let mut book = self.shared.book();
        if book.state.mint_trouble(why) {
            book.settle(now, |_| true);
        }
    }

    /// Why attempts to mint fail and not one succeeds, if so.
    pub(crate) fn barren(&self) -> Option<String> {
        let book = self.shared.book();
        book.state.barren().map(|(since, why)| format!("no X509-SVID could be minted since {since}: {why}"))
    }

    /// Whether there are entries, and none of them has an SVID that is valid now.
    pub(crate) fn lacks_all(&self) -> bool {
        let now = self.now();
        self.shared.book().state.lacks_all(now)
    }

    /// Drops every entry, SVID, key and token; all subscribers hear `why` until [`Self::lift`].
    pub(crate) fn withhold(&self, why: &str) {
        let now = self.now();
        let mut book = self.shared.book();
        book.state.withhold(why);
        book.settle(now, |_| true);
        drop(book);
        self.shared.jwt.clear();
    }

    /// Ends [`Self::withhold`]; what to serve comes with the next sync.
    pub(crate) fn lift(&self) {
        let now = self.now();
        let mut book = self.shared.book();
        book.state.lift();
        book.due.all = true;
        book.settle(now, |_| true);
    }

    /// Looks at the clock: drops what has expired, and says what to mint now, most urgent first.
    ///
    /// With [`Look::News`] it looks only at what has changed since the last time, unless that was too much.
    pub(crate) fn plan(&self, look: Look) -> Vec<Wish> {
        let now = self.now();
        let mut book = self.shared.book();
        let news = mem::take(&mut book.due.entries);
        let all = mem::take(&mut book.due.all) || look == Look::Clock;
        if all {
            book.state.forget_idle(now);
        }
        let actions = match all {
            true => plan::plan(now, &book.state, &book.wanted()),
            false => plan::plan_news(now, &book.state, &news, |id| book.is_wanted(id)),
        };
        let mut mint = Vec::new();
        let mut dropped = BTreeSet::new();
        for action in actions {
            match action {
                Action::Drop(seat) => {
                    book.state.drop_svid(&seat);
                    dropped.insert(seat.entry);
                }
                Action::Mint { seat, entry, why } => mint.push((seat, entry, why == Why::Awaited)),
            }
        }
        let mint = book.on_evidence(mint, now);
        book.settle(now, |subscriber| all || !subscriber.matched.is_disjoint(&dropped));
        if all {
            // As of this look: what becomes due while it is acted on is the next one, and not to be passed over.
            book.due.soonest = plan::next_due(now, &book.state);
        }
        mint
    }

    /// How long until the next SVID held becomes due, or became so since the last look at the clock; none while none is held.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let now = self.now();
        self.shared.book().due.soonest.map(|due| now.until(due))
    }

    /// How it stands with the SVID of one entry.
    pub(crate) fn svid_of(&self, id: &EntryId) -> SvidLook {
        self.shared.book().state.svid_of(id)
    }

    /// Why nothing at all can be answered, if so; and why nothing can be minted at present, if so.
    pub(crate) fn troubles(&self) -> (Option<String>, Option<String>) {
        let book = self.shared.book();
        (book.state.not_ready().map(str::to_owned), book.state.trouble().map(str::to_owned))
    }

    /// The entries of the last sync, by id.
    pub(crate) fn known(&self) -> Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>> {
        self.shared.book().state.known()
    }

    /// Whether a workload that is subscribed waits for an SVID.
    pub(crate) fn someone_waits(&self) -> bool {
        let now = self.now();
        let book = self.shared.book();
        let mut subscribers = book.subscribers.values();
        subscribers.any(|one| book.state.lacks_any(&one.matched, one.process(), now))
    }

    /// Resolves when a workload has come that cannot be answered.
    pub(crate) async fn need(&self) {
        self.shared.need.notified().await;
    }

    /// Resolves when there may be something to mint.
    pub(crate) async fn work(&self) {
        self.shared.work.notified().await;
    }

    fn hush(&self, book: &Book) {
        if book.is_quiet() {
            self.shared.quiet.notify_one();
        }
    }

    fn now(&self) -> UnixTime {
        self.shared.host.clock.now()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("trust_domain", &self.shared.trust_domain).finish_non_exhaustive()
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Transitions do not panic half-way in a way that a reader could notice: each ends with a settled state.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Those of the subscribers for which `concerns` holds look at what they may see now.
    fn settle(&mut self, now: UnixTime, concerns: impl Fn(&Subscriber) -> bool) {
        let Self { state, subscribers, unheard, awaiting, refused, .. } = self;
        for (id, subscriber) in subscribers.iter_mut().filter(|(_, subscriber)| concerns(subscriber)) {
            let was_refused = subscriber.is_refused;
            if subscriber.settle(state, now) {
                unheard.insert(*id);
            }
            *refused += u64::from(subscriber.is_refused && !was_refused);
            if awaiting.contains(id) && !subscriber.awaits(state, now) {
                awaiting.remove(id);
            }
        }
    }

    /// What is to be minted, each with what is known of a process that waits for it.
    ///
    /// Of several, that which was found out last: a process of which nothing new can be found out takes nothing from others.
    fn on_evidence(&self, mint: Vec<(Seat, Arc<AuthorizedEntry>, bool)>, now: UnixTime) -> Vec<Wish> {
        let mut by_entry: BTreeMap<&EntryId, &Arc<Evidence>> = BTreeMap::new();
        let mut by_process: BTreeMap<&Instance, &Arc<Evidence>> = BTreeMap::new();
        let rank = |evidence: &Evidence| (grounds::is_fresh(evidence, now), evidence.attested_at);
        let is_later = |one: &Evidence, than: &Evidence| rank(one) > rank(than);
        let subscribers = if mint.is_empty() { None } else { Some(self.subscribers.values()) };
        for subscriber in subscribers.into_iter().flatten() {
            let Some(evidence) = &subscriber.evidence else { continue };
            let held = by_process.entry(&evidence.instance).or_insert(evidence);
            if is_later(evidence, held) {
                *held = evidence;
            }
            // What a server would not believe any more is worse than nothing, where nothing will do.
            let matched = if grounds::is_fresh(evidence, now) { Some(&subscriber.matched) } else { None };
            for id in matched.into_iter().flatten() {
                let held = by_entry.entry(id).or_insert(evidence);
                if is_later(evidence, held) {
                    *held = evidence;
                }
            }
        }
        let wish = |(seat, entry, is_awaited): (Seat, Arc<AuthorizedEntry>, bool)| {
            let evidence = match &seat.process {
                // What is for one process is minted on nothing else.
                Some(process) => Some(Arc::clone(by_process.get(process)?)),
                None => by_entry.get(&seat.entry).copied().map(Arc::clone),
            };
            Some(Wish { seat, entry, evidence, is_awaited })
        };
        mint.into_iter().filter_map(wish).collect()
    }

    fn is_quiet(&self) -> bool {
        self.unheard.is_empty() && self.awaiting.is_empty()
    }

    fn is_wanted(&self, id: &EntryId) -> bool {
        self.subscribers.values().any(|subscriber| subscriber.matched.contains(id))
    }

    fn wanted(&self) -> BTreeSet<EntryId> {
        self.subscribers.values().flat_map(|subscriber| subscriber.matched.iter().cloned()).collect()
    }
}

impl Subscriber {
    fn process(&self) -> Option<&Instance> {
        self.evidence.as_ref().map(|evidence| &evidence.instance)
    }

    /// Whether an SVID that it lacks may still come.
    fn awaits(&self, state: &State, now: UnixTime) -> bool {
        state.awaits_any(&self.matched, self.process(), now)
    }

    /// Looks at what may be seen now and wakes the subscriber if that differs from what it was last told; true then.
    fn settle(&mut self, state: &mut State, now: UnixTime) -> bool {
        let process = self.evidence.as_ref().map(|evidence| &evidence.instance);
        let entries = match process {
            Some(process) if state.stops().cover_process(process) => Vec::new(),
            Some(_) | None => state.matching(&self.selectors),
        };
        self.matched = entries.iter().map(|entry| entry.id.clone()).collect();
        self.is_refused = process.is_some_and(|process| !state.admit(process, &self.matched, now));
        let update = state.seen_by(&entries, process, self.complete_once, now);
        self.complete_once = matches!(update, Update::Ready(_));
        self.latest.send_if_modified(|latest| {
            let differs = !update.tells_the_same_as(latest);
            if differs {
                *latest = update;
            }
            differs
        })
    }
}

/// One workload's view, for as long as it is held.
pub struct Subscription {
    shared: Arc<Shared>,
    id: u64,
    receiver: watch::Receiver<Update>,
}

impl Subscription {
    /// What may be seen at this very moment; no SVID in it is expired. [`Self::changed`] then waits for something else.
    pub fn current(&mut self) -> Update {
        let now = self.shared.host.clock.now();
        let mut book = self.shared.book();
        let Book { state, subscribers, .. } = &mut *book;
        if let Some(subscriber) = subscribers.get_mut(&self.id) {
            subscriber.settle(state, now);
        }
        book.unheard.remove(&self.id);
        if book.is_quiet() {
            self.shared.quiet.notify_one();
        }
        drop(book);
        self.receiver.borrow_and_update().clone()
    }

    /// What is known of the process was found out anew; its selectors are the same.
    pub(crate) fn renew_evidence(&self, evidence: &Arc<Evidence>) {
        if let Some(subscriber) = self.shared.book().subscribers.get_mut(&self.id) {
            subscriber.evidence = Some(Arc::clone(evidence));
        }
    }

    /// Waits until what may be seen differs from what [`Self::current`] returned last. Cancel safe.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The sender lives in the book until this subscription is dropped.
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let now = self.shared.host.clock.now();
        let mut book = self.shared.book();
        let gone = book.subscribers.remove(&self.id);
        if let Some(process) = gone.as_ref().and_then(Subscriber::process)
            && !book.subscribers.values().any(|other| other.process() == Some(process))
        {
            book.state.idle(process, now);
        }
        book.unheard.remove(&self.id);
        book.awaiting.remove(&self.id);
        if book.is_quiet() {
            self.shared.quiet.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;

    use passant_core::entry::EntryOptions;
    use passant_core::{KeyScope, Secret};

    use super::*;
    use crate::limits;
    use crate::testing::ca::{Ca, foreign_bundle};
    use crate::testing::{NOW, by_id, entry, entry_id, following_host, id, secs, selectors, trust_domain};

    struct NoTokens;

    impl JwtIssuer for NoTokens {
        fn issue(
            &self,
            _: Arc<AuthorizedEntry>,
            _: Vec<String>,
            _: Option<Arc<Evidence>>,
        ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>> {
            Box::pin(async { Err(Refusal::precondition("no tokens here")) })
        }
    }

    struct Bench {
        cache: Cache,
        ca: Ca,
        bundle: Arc<Bundle>,
    }

    impl Bench {
        fn new() -> Self {
            let ca = Ca::new("one");
            let bundle = Arc::new(ca.bundle());
            Self { cache: Cache::new(trust_domain(), following_host(), Arc::new(NoTokens)), ca, bundle }
        }

        fn learn(&self, entries: &[AuthorizedEntry]) {
            let view = View {
                entries: by_id(entries.iter().cloned()),
                bundle: Arc::clone(&self.bundle),
                federated: BTreeMap::new(),
            };
            self.cache.learn(view, self.cache.pushes());
        }

        /// Mints for `entry`, to end `life` seconds from the beginning of the test.
        fn mint(&self, entry: &AuthorizedEntry, life: i64) {
            let (svid, key) = self.ca.svid_and_key(&entry.spiffe_id, NOW - 10, NOW + life);
            let minted = Minted {
                entry: Arc::new(entry.clone()),
                svid: Arc::new(svid),
                key: Arc::new(Secret::new(key.pkcs8().expose().clone())),
                renew_at: UnixTime::from_secs(NOW + life / 2),
                bundle: Arc::clone(&self.bundle),
                vouched: true,
            };
            self.cache.minted(vec![(entry.id.clone().into(), Ok(minted))]);
        }
    }

    fn ids(update: &Update) -> Vec<&str> {
        match update {
            Update::Ready(identities) => identities.svids.iter().map(|one| one.svid.id().path()).collect(),
            Update::NotReady(_) | Update::NoIdentity => Vec::new(),
        }
    }

    async fn is_woken(subscription: &mut Subscription) -> bool {
        tokio::time::timeout(Duration::ZERO, subscription.changed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_first_sync_nobody_is_told_that_they_have_no_identity() {
        let bench = Bench::new();
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        assert!(matches!(subscription.current(), Update::NotReady(_)));
        let asked = bench.cache.jwt_svids(&selectors(&["unix:uid:1"]), vec!["a".to_owned()], None).await;
        assert_eq!(asked.unwrap_err().reason, passant_core::Reason::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn no_identity_is_said_for_thirty_seconds_after_a_sync_and_not_longer() {
        let bench = Bench::new();
        bench.learn(&[]);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        tokio::time::advance(secs(30)).await;
        assert!(matches!(subscription.current(), Update::NoIdentity));
        let refusal = bench.cache.jwt_svids(&selectors(&["unix:uid:1"]), vec!["a".to_owned()], None).await;
        let refusal = refusal.unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.public.as_str()),
            (passant_core::Reason::Denied, "no identity issued")
        );
        tokio::time::advance(secs(1)).await;
        assert!(matches!(subscription.current(), Update::NotReady(_)));
        assert!(!bench.cache.is_confirmed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_update_waits_for_every_matching_entry_and_is_in_entry_id_order() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 1));
        bench.learn(&[a.clone(), b.clone(), entry("c", 2)]);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        bench.mint(&b, 100);
        assert!(
            matches!(subscription.current(), Update::NotReady(why) if why.contains("/a is not yet issued"))
        );
        bench.mint(&a, 100);
        assert_eq!(ids(&subscription.current()), ["/a", "/b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_entry_does_not_take_away_what_was_served_before() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 1));
        bench.learn(std::slice::from_ref(&a));
        bench.mint(&a, 100);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        assert_eq!(ids(&subscription.current()), ["/a"]);
        bench.learn(&[a, b.clone()]);
        assert!(!is_woken(&mut subscription).await);
        assert_eq!(ids(&subscription.current()), ["/a"]);
        bench.mint(&b, 100);
        assert!(is_woken(&mut subscription).await);
        assert_eq!(ids(&subscription.current()), ["/a", "/b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_subscribers_whose_content_changed_are_woken() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 2));
        bench.learn(&[a.clone(), b.clone()]);
        bench.mint(&a, 100);
        bench.mint(&b, 100);
        let mut one = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        let mut two = bench.cache.subscribe(&selectors(&["unix:uid:2"]));
        one.current();
        two.current();
        bench.learn(&[a.clone(), b.clone()]);
        assert!(!is_woken(&mut one).await && !is_woken(&mut two).await);
        bench.mint(&b, 200);
        assert!(!is_woken(&mut one).await && is_woken(&mut two).await);
        bench.learn(&[b]);
        assert!(is_woken(&mut one).await && !is_woken(&mut two).await);
        assert!(matches!(one.current(), Update::NoIdentity));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_svid_is_never_served() {
        let bench = Bench::new();
        let a = entry("a", 1);
        bench.learn(std::slice::from_ref(&a));
        bench.mint(&a, 100);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        tokio::time::advance(secs(99)).await;
        assert_eq!(ids(&subscription.current()), ["/a"]);
        tokio::time::advance(secs(1)).await;
        assert!(matches!(subscription.current(), Update::NotReady(_)));
        // The open stream hears of it when the clock is looked at.
        bench.mint(&a, 200);
        assert_eq!(ids(&subscription.current()), ["/a"]);
        tokio::time::advance(secs(100)).await;
        assert!(!is_woken(&mut subscription).await);
        assert_eq!(bench.cache.plan(Look::Clock).len(), 1);
        assert!(is_woken(&mut subscription).await);
    }

    #[tokio::test(start_paused = true)]
    async fn one_expired_svid_does_not_take_the_others_from_an_open_stream() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 1));
        bench.learn(&[a.clone(), b.clone()]);
        bench.mint(&a, 100);
        bench.mint(&b, 200);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        assert_eq!(ids(&subscription.current()), ["/a", "/b"]);
        tokio::time::advance(secs(100)).await;
        assert_eq!(ids(&subscription.current()), ["/b"]);
        tokio::time::advance(secs(100)).await;
        assert!(matches!(subscription.current(), Update::NotReady(_)));
        bench.mint(&b, 400);
        assert!(matches!(subscription.current(), Update::NotReady(_)), "it is complete again or nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_due_while_something_else_is_done_is_not_passed_over() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 1));
        bench.learn(&[a.clone(), b.clone()]);
        bench.mint(&a, 100);
        bench.mint(&b, 200);
        assert!(bench.cache.plan(Look::Clock).is_empty());
        assert_eq!(bench.cache.next_due(), Some(secs(50)));
        tokio::time::advance(secs(50)).await;
        assert!(bench.cache.plan(Look::News).is_empty(), "something else was pushed at that very moment");
        assert_eq!(bench.cache.next_due(), Some(Duration::ZERO));
        let due = bench.cache.plan(Look::Clock);
        assert_eq!(due.iter().map(|wish| wish.entry.id.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(bench.cache.next_due(), Some(secs(50)), "b, while a is asked for");
        tokio::time::advance(secs(50)).await;
        assert_eq!(bench.cache.next_due(), Some(Duration::ZERO), "b became due before the answer for a came");
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_sees_the_foreign_bundles_of_its_own_entries_only() {
        let bench = Bench::new();
        let foreign = |name| TrustDomain::parse(name).unwrap();
        let a = AuthorizedEntry { federates_with: [foreign("one.test")].into(), ..entry("a", 1) };
        let b = AuthorizedEntry { federates_with: [foreign("two.test")].into(), ..entry("b", 2) };
        let federated: BTreeMap<_, _> =
            ["one.test", "two.test"].map(|name| (foreign(name), Arc::new(foreign_bundle(name)))).into();
        let bundle = Arc::clone(&bench.bundle);
        bench.cache.learn(View { entries: by_id([a.clone(), b]), bundle, federated }, 0);
        bench.mint(&a, 100);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        let Update::Ready(identities) = subscription.current() else { panic!("not ready") };
        assert_eq!(identities.federated.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["one.test"]);
        let entries = bench.cache.entries(&selectors(&["unix:uid:2"]));
        let visible = bench.cache.bundles().for_entries(&entries);
        assert_eq!(visible.federated.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["two.test"]);
        assert!(visible.of(&trust_domain()).is_some() && visible.of(&foreign("one.test")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_bundle_wakes_subscribers() {
        let bench = Bench::new();
        let a = entry("a", 1);
        bench.learn(std::slice::from_ref(&a));
        bench.mint(&a, 100);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        subscription.current();
        let two = Ca::new("two");
        bench.cache.learn_bundle(Arc::new(Ca::bundle_of(&[(&bench.ca, false), (&two, false)], 2)));
        assert!(is_woken(&mut subscription).await);
        let Update::Ready(identities) = subscription.current() else { panic!("not ready") };
        assert_eq!(identities.bundle.sequence, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn withholding_drops_everything_and_says_why() {
        let bench = Bench::new();
        let a = entry("a", 1);
        bench.learn(std::slice::from_ref(&a));
        bench.mint(&a, 100);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        subscription.current();
        bench.cache.withhold("this node is banned");
        assert!(is_woken(&mut subscription).await);
        assert!(matches!(subscription.current(), Update::NotReady(why) if why == "this node is banned"));
        assert!(bench.cache.entries(&selectors(&["unix:uid:1"])).is_empty());
        assert!(bench.cache.plan(Look::Clock).is_empty());
        bench.cache.lift();
        bench.learn(std::slice::from_ref(&a));
        assert!(matches!(subscription.current(), Update::NotReady(_)), "the old SVID and key are gone");
        bench.mint(&a, 100);
        assert_eq!(ids(&subscription.current()), ["/a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_svid_for_a_former_spiffe_id_is_withdrawn_at_once() {
        let bench = Bench::new();
        let a = entry("a", 1);
        bench.learn(std::slice::from_ref(&a));
        bench.mint(&a, 100);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        assert_eq!(ids(&subscription.current()), ["/a"]);
        bench.learn(&[AuthorizedEntry { spiffe_id: id("/renamed"), revision: 1, ..a }]);
        assert!(matches!(subscription.current(), Update::NotReady(_)));
    }

    /// What a server pushes that has nothing but `entries` after it.
    fn pushed(
        bench: &Bench,
        put: &[&AuthorizedEntry],
        removed: &[&str],
        after: &[&AuthorizedEntry],
    ) -> Delta {
        let shares =
            after.iter().map(|entry| passant_core::view_digest::share(entry.id.as_str(), entry.revision));
        Delta {
            cursor: Cursor { lineage: "one".to_owned(), revision: 1 },
            digest: shares.fold(0, u64::wrapping_add),
            is_snapshot: false,
            put: put.iter().map(|entry| (*entry).clone()).collect(),
            left_out: Vec::new(),
            removed: removed.iter().map(|id| (*id).to_owned()).collect(),
            bundle: Some(Arc::clone(&bench.bundle)),
            federated: Vec::new(),
            removed_federated: Vec::new(),
            stops: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_wakes_only_those_whom_it_concerns() {
        let bench = Bench::new();
        let (a, b, c) = (entry("a", 1), entry("b", 2), entry("c", 1));
        assert_eq!(bench.cache.apply(pushed(&bench, &[&a, &b], &[], &[&a, &b])), Some(Fit::Yes));
        bench.mint(&a, 3600);
        bench.mint(&b, 3600);
        let mut first = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        let mut second = bench.cache.subscribe(&selectors(&["unix:uid:2"]));
        assert_eq!((ids(&first.current()), ids(&second.current())), (vec!["/a"], vec!["/b"]));
        assert_eq!(bench.cache.apply(pushed(&bench, &[&c], &[], &[&a, &b, &c])), Some(Fit::Yes));
        assert!(!is_woken(&mut first).await && !is_woken(&mut second).await, "its SVID is yet to come");
        assert_eq!(
            bench.cache.plan(Look::News).iter().map(|wish| wish.entry.id.as_str()).collect::<Vec<_>>(),
            ["c"]
        );
        bench.mint(&c, 3600);
        assert!(is_woken(&mut first).await && !is_woken(&mut second).await);
        assert_eq!(ids(&first.current()), ["/a", "/c"]);
        assert_eq!(bench.cache.apply(pushed(&bench, &[], &["b"], &[&a, &c])), Some(Fit::Yes));
        assert!(!is_woken(&mut first).await && is_woken(&mut second).await);
        assert!(matches!(second.current(), Update::NoIdentity));
        // An entry that comes to match, and one that ceases to.
        let moved = AuthorizedEntry { revision: 1, selectors: selectors(&["unix:uid:2"]), ..a };
        assert_eq!(bench.cache.apply(pushed(&bench, &[&moved], &[], &[&moved, &c])), Some(Fit::Yes));
        assert!(is_woken(&mut first).await && is_woken(&mut second).await);
        assert_eq!((ids(&first.current()), ids(&second.current())), (vec!["/c"], vec!["/a"]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_pushed_while_the_server_was_polled_stays() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 1));
        let asked_at = bench.cache.pushes();
        assert_eq!(bench.cache.apply(pushed(&bench, &[&a], &[], &[&a])), Some(Fit::Yes));
        let (entries, bundle) = (by_id([b]), Arc::clone(&bench.bundle));
        bench.cache.learn(View { entries, bundle, federated: BTreeMap::new() }, asked_at);
        assert!(bench.cache.known().contains_key(&entry_id("a")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_add_up_is_not_confirmed_and_has_no_place_in_history() {
        let bench = Bench::new();
        let (a, b) = (entry("a", 1), entry("b", 2));
        let cursor = || Cursor { lineage: "one".to_owned(), revision: 3 };
        assert!(!bench.cache.confirm(cursor()), "there is nothing to be confirmed");
        assert_eq!(bench.cache.apply(pushed(&bench, &[&a], &[], &[&a, &b])), Some(Fit::No));
        assert!(!bench.cache.is_confirmed() && bench.cache.standing().0.is_none());
        assert!(!bench.cache.confirm(cursor()));
        let snapshot = Delta { is_snapshot: true, ..pushed(&bench, &[&b], &[], &[&b]) };
        assert_eq!(bench.cache.apply(snapshot), Some(Fit::Yes));
        assert!(!bench.cache.known().contains_key(&entry_id("a")));
        assert!(bench.cache.confirm(cursor()));
        assert_eq!(bench.cache.standing().0, Some(cursor()));
        bench.cache.withhold("banned");
        assert_eq!(bench.cache.apply(pushed(&bench, &[&a], &[], &[&a])), None, "it was under way");
        bench.cache.lift();
        assert_eq!(bench.cache.standing(), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn entries_for_secret_stores_are_served_to_nobody() {
        let bench = Bench::new();
        bench.learn(&[AuthorizedEntry { store_svid: true, ..entry("a", 1) }]);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        assert!(matches!(subscription.current(), Update::NoIdentity));
        assert!(bench.cache.known().contains_key(&entry_id("a")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_processes_share_is_minted_on_the_newest_evidence_or_on_none() {
        let bench = Bench::new();
        let own = EntryOptions { key_scope: KeyScope::Instance, ..EntryOptions::default() };
        bench.learn(&[entry("a", 1), AuthorizedEntry { options: own, ..entry("b", 1) }]);
        let found = |pid, ago| {
            Arc::new(Evidence {
                selectors: selectors(&["unix:uid:1"]),
                instance: Instance::new("boot", pid, 7).unwrap(),
                attestors: vec!["unix".to_owned()],
                attested_at: UnixTime::from_secs(NOW - ago),
            })
        };
        let told = |bench: &Bench, entry: &str| {
            let wishes = bench.cache.plan(Look::Clock).into_iter();
            wishes
                .filter(|wish| wish.entry.id.as_str() == entry)
                .map(|wish| wish.evidence.map(|evidence| evidence.attested_at.secs() - NOW))
                .collect::<Vec<_>>()
        };
        let too_old = i64::try_from(limits::EVIDENCE_AGE.as_secs()).unwrap() + 1;
        let _frozen = bench.cache.subscribe_as(&found(1, too_old));
        assert_eq!(told(&bench, "a"), [None]);
        assert_eq!(told(&bench, "b"), [Some(-too_old)], "it is minted on nothing else");
        let mut others = Vec::new();
        // The last one before the clock was set back.
        for (pid, ago, newest) in [(2, 20, -20), (3, 10, -10), (4, 30, -10), (5, -600, -10)] {
            others.push(bench.cache.subscribe_as(&found(pid, ago)));
            assert_eq!(told(&bench, "a"), [Some(newest)], "{pid}");
        }
        let _same = bench.cache.subscribe_as(&found(1, 5));
        assert_eq!(told(&bench, "b")[0], Some(-5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_puts_its_entries_first_and_its_end_takes_them_back() {
        let bench = Bench::new();
        let on_demand = AuthorizedEntry { disable_x509_svid_prefetch: true, ..entry("b", 2) };
        bench.learn(&[entry("a", 1), on_demand]);
        let order = |bench: &Bench| {
            bench.cache.plan(Look::Clock).iter().map(|it| it.entry.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(order(&bench), ["a"]);
        assert!(!bench.cache.someone_waits());
        let subscription = bench.cache.subscribe(&selectors(&["unix:uid:2"]));
        assert!(bench.cache.someone_waits());
        assert_eq!(order(&bench), ["b", "a"]);
        drop(subscription);
        assert_eq!(order(&bench), ["a"]);
    }
}
