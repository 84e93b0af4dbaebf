//! What may each workload see of what this agent holds, and when does it hear of a change?
//!
//! [`Cache`] is the one handle that the Workload API, the sync and the minting share. What it holds lives in `state`
//! (pure, changes only through its transitions); here stand the subscriptions. A subscriber is woken only when what it
//! may see has changed.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_core::bundle::Bundle;
use passant_core::jwt_svid::JwtSvid;
use passant_core::x509_svid::X509Svid;
use passant_core::{
    AuthorizedEntry, EntryId, Host, Refusal, Secret, Selectors, SpiffeId, TrustDomain, UnixTime,
};
use tokio::sync::{Notify, watch};

use crate::jwt_cache::{JwtCache, JwtIssuer};
use crate::plan::{self, Action};

pub(crate) use state::{Held, MintFailure, Minted, Slot, State, View};

/// What a workload may see now.
#[derive(Clone, Debug)]
pub enum Update {
    /// Not known yet, or not valid any more; the text says why and is safe for a stranger. Answer Unavailable.
    NotReady(String),
    /// No entry matches, in a view that the server confirmed within the last 30 s. Answer PermissionDenied.
    NoIdentity,
    /// Every SVID here is unexpired at the time of [`Subscription::current`]. The first one of a subscription holds an
    /// SVID for each matching entry; later ones may lack those that have just appeared or have expired.
    Ready(Arc<Identities>),
}

impl Update {
    /// Whether a workload that has `other` learns nothing from `self`.
    fn tells_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NotReady(one), Self::NotReady(two)) => one == two,
            (Self::NoIdentity, Self::NoIdentity) => true,
            (Self::Ready(one), Self::Ready(two)) => one.tells_the_same_as(two),
            (Self::NotReady(_) | Self::NoIdentity | Self::Ready(_), _) => false,
        }
    }
}

/// The identities of one workload and the bundles to verify its peers with.
#[derive(Clone, Debug)]
pub struct Identities {
    /// In entry-id order; never empty. Hints may repeat: the Workload API decides which one is served.
    pub svids: Vec<Identity>,
    /// The bundle of the own trust domain.
    pub bundle: Arc<Bundle>,
    /// The bundles of the trust domains that the matching entries federate with, as far as they are held.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Identities {
    fn tells_the_same_as(&self, other: &Self) -> bool {
        self.svids.len() == other.svids.len()
            && self.svids.iter().zip(&other.svids).all(|(one, two)| {
                Arc::ptr_eq(&one.svid, &two.svid)
                    && one.entry.id == two.entry.id
                    && one.entry.hint == two.entry.hint
            })
            && Arc::ptr_eq(&self.bundle, &other.bundle)
            && self.federated.len() == other.federated.len()
            && self
                .federated
                .iter()
                .zip(&other.federated)
                .all(|(one, two)| one.0 == two.0 && Arc::ptr_eq(one.1, two.1))
    }
}

/// One X509-SVID with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The entry it was issued for.
    pub entry: Arc<AuthorizedEntry>,
    /// The chain, leaf first, without the root.
    pub svid: Arc<X509Svid>,
    /// The private key, PKCS#8 DER.
    pub key: Arc<Secret<Vec<u8>>>,
}

/// The bundles held.
#[derive(Clone, Debug, Default)]
pub struct Bundles {
    /// The bundle of the own trust domain; none before the first attestation.
    pub own: Option<Arc<Bundle>>,
    /// The bundles of federated trust domains.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Bundles {
    /// The bundle of `trust_domain`, own or federated.
    pub fn of(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.own
            .as_ref()
            .filter(|own| own.trust_domain == *trust_domain)
            .or_else(|| self.federated.get(trust_domain))
            .map(Arc::clone)
    }

    /// What remains for a workload that has `entries`: the own bundle, and those its entries federate with.
    #[must_use]
    pub fn for_entries(&self, entries: &[Arc<AuthorizedEntry>]) -> Self {
        let wanted: BTreeSet<&TrustDomain> = entries.iter().flat_map(|entry| &entry.federates_with).collect();
        Self {
            own: self.own.clone(),
            federated: self
                .federated
                .iter()
                .filter(|(trust_domain, _)| wanted.contains(trust_domain))
                .map(|(trust_domain, bundle)| (trust_domain.clone(), Arc::clone(bundle)))
                .collect(),
        }
    }
}

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
    jwt: JwtCache,
}

struct Book {
    state: State,
    subscribers: BTreeMap<u64, Subscriber>,
    next_subscriber: u64,
}

struct Subscriber {
    selectors: Selectors,
    matched: BTreeSet<EntryId>,
    /// Whether the complete first set was given.
    complete_once: bool,
    latest: watch::Sender<Update>,
}

impl Cache {
    /// An empty cache: every subscriber is [`Update::NotReady`] until the first sync.
    pub fn new(trust_domain: TrustDomain, host: Host, issuer: Arc<dyn JwtIssuer>) -> Self {
        let book = Book { state: State::default(), subscribers: BTreeMap::new(), next_subscriber: 0 };
        let jwt = JwtCache::new(host.clone(), issuer);
        Self {
            shared: Arc::new(Shared { trust_domain, host, book: Mutex::new(book), work: Notify::new(), jwt }),
        }
    }

    /// The trust domain of this agent.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    /// Follows what a workload with `selectors` may see. The entries that match are minted while the subscription
    /// lives.
    pub fn subscribe(&self, selectors: &Selectors) -> Subscription {
        let now = self.now();
        let mut book = self.shared.book();
        let id = book.next_subscriber;
        book.next_subscriber += 1;
        let latest = watch::Sender::new(Update::NotReady(String::new()));
        let mut subscriber = Subscriber {
            selectors: selectors.clone(),
            matched: BTreeSet::new(),
            complete_once: false,
            latest,
        };
        subscriber.settle(&book.state, now);
        let receiver = subscriber.latest.subscribe();
        if book.state.lacks_any(&subscriber.matched, now) {
            self.shared.work.notify_one();
        }
        book.subscribers.insert(id, subscriber);
        drop(book);
        Subscription { shared: Arc::clone(&self.shared), id, receiver }
    }

    /// The entries that a workload with `selectors` has, in entry-id order; those for secret stores are left out.
    pub fn entries(&self, selectors: &Selectors) -> Vec<Arc<AuthorizedEntry>> {
        self.shared.book().state.matching(selectors)
    }

    /// Every bundle held. Narrow it with [`Bundles::for_entries`] before a workload sees it.
    pub fn bundles(&self) -> Bundles {
        self.shared.book().state.bundles()
    }

    /// Whether the server confirmed the set of entries within the last 30 s; without that, "no entry matches" is not
    /// known.
    pub fn is_confirmed(&self) -> bool {
        let now = self.now();
        self.shared.book().state.is_confirmed(now)
    }

    /// One JWT-SVID for each entry that matches `selectors`, or for those with `spiffe_id` if given, in entry-id order.
    ///
    /// # Errors
    /// Invalid for an empty or oversized audience; denied with `no identity issued` when no entry fits in a confirmed
    /// view; unavailable when the view is not confirmed, or when the server fails and no unexpired token is cached.
    pub async fn jwt_svids(
        &self,
        selectors: &Selectors,
        audience: Vec<String>,
        spiffe_id: Option<SpiffeId>,
    ) -> Result<Vec<(Arc<AuthorizedEntry>, JwtSvid)>, Refusal> {
        let entries = {
            let now = self.now();
            let book = self.shared.book();
            if let Some(why) = book.state.not_ready() {
                return Err(Refusal::unavailable(why));
            }
            let mut entries = book.state.matching(selectors);
            entries.retain(|entry| spiffe_id.as_ref().is_none_or(|wanted| entry.spiffe_id == *wanted));
            if entries.is_empty() {
                return Err(match book.state.is_confirmed(now) {
                    true => Refusal::denied("no identity issued"),
                    false => Refusal::unavailable(state::UNCONFIRMED),
                });
            }
            entries
        };
        self.shared.jwt.fetch_all(entries, audience).await
    }

    /// Takes over what the server said. Entries that `view` does not mention are dropped at once.
    pub(crate) fn learn(&self, view: View) {
        let now = self.now();
        let mut book = self.shared.book();
        let changed = book.state.learn(view, now);
        book.settle_all(now);
        let bundle = book.state.bundles().own;
        drop(book);
        if changed.bundle
            && let Some(bundle) = bundle
        {
            self.shared.jwt.purge(&bundle);
        }
        if changed.entries || changed.bundle {
            self.shared.work.notify_one();
        }
    }

    /// Takes over a bundle that came outside of a sync.
    pub(crate) fn learn_bundle(&self, bundle: Arc<Bundle>) {
        let now = self.now();
        let mut book = self.shared.book();
        if book.state.learn_bundle(bundle) {
            book.settle_all(now);
        }
    }

    /// Takes over the outcome of minting, for each entry asked for.
    pub(crate) fn minted(&self, outcomes: Vec<(EntryId, Result<Minted, MintFailure>)>) {
        let now = self.now();
        let mut book = self.shared.book();
        let touched: BTreeSet<EntryId> = outcomes.iter().map(|(id, _)| id.clone()).collect();
        for (id, outcome) in outcomes {
            match outcome {
                Ok(minted) => book.state.put(&id, minted, now),
                Err(failure) => book.state.fail(&id, failure, now, &self.shared.host),
            }
        }
        let Book { state, subscribers, .. } = &mut *book;
        for subscriber in subscribers.values_mut().filter(|each| !each.matched.is_disjoint(&touched)) {
            subscriber.settle(state, now);
        }
    }

    /// Why the server mints nothing at present, for those who wait.
    pub(crate) fn mint_trouble(&self, why: Option<&str>) {
        let now = self.now();
        let mut book = self.shared.book();
        if book.state.mint_trouble(why) {
            book.settle_all(now);
        }
    }

    /// Drops every entry, SVID, key and token; all subscribers hear `why` until [`Self::lift`].
    pub(crate) fn withhold(&self, why: &str) {
        let now = self.now();
        let mut book = self.shared.book();
        book.state.withhold(why);
        book.settle_all(now);
        drop(book);
        self.shared.jwt.clear();
    }

    /// Ends [`Self::withhold`]; what to serve comes with the next sync.
    pub(crate) fn lift(&self) {
        let now = self.now();
        let mut book = self.shared.book();
        book.state.lift();
        book.settle_all(now);
    }

    /// Looks at the clock: drops what has expired, and says what to mint now, most urgent first.
    pub(crate) fn plan(&self) -> Vec<Arc<AuthorizedEntry>> {
        let now = self.now();
        let mut book = self.shared.book();
        let wanted = book.wanted();
        let mut mint = Vec::new();
        for action in plan::plan(now, &book.state, &wanted) {
            match action {
                Action::Drop(id) => book.state.drop_svid(&id),
                Action::Mint { entry, .. } => mint.push(entry),
            }
        }
        book.settle_all(now);
        mint
    }

    /// The entries of the last sync, by id.
    pub(crate) fn known(&self) -> BTreeMap<EntryId, Arc<AuthorizedEntry>> {
        self.shared.book().state.known()
    }

    /// Whether a workload waits for an SVID, or none was ever synced.
    pub(crate) fn someone_waits(&self) -> bool {
        let now = self.now();
        let book = self.shared.book();
        book.state.lacks_any(&book.wanted(), now)
    }

    /// Resolves when there may be something to mint.
    pub(crate) async fn work(&self) {
        self.shared.work.notified().await;
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
    fn settle_all(&mut self, now: UnixTime) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.settle(&self.state, now);
        }
    }

    fn wanted(&self) -> BTreeSet<EntryId> {
        self.subscribers.values().flat_map(|subscriber| subscriber.matched.iter().cloned()).collect()
    }
}

impl Subscriber {
    /// Looks at what may be seen now and wakes the subscriber if that differs from what it was last told.
    fn settle(&mut self, state: &State, now: UnixTime) {
        let (update, matched) = state.seen_by(&self.selectors, self.complete_once, now);
        self.matched = matched;
        self.complete_once = matches!(update, Update::Ready(_));
        self.latest.send_if_modified(|latest| {
            let differs = !update.tells_the_same_as(latest);
            if differs {
                *latest = update;
            }
            differs
        });
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
        drop(book);
        self.receiver.borrow_and_update().clone()
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
        self.shared.book().subscribers.remove(&self.id);
    }
}
