//! What may each workload see of what this agent holds, and when does it hear of a change?
//!
//! [`Cache`] is the one handle that the Workload API, the sync and the minting share. What it holds lives in `state`
//! (pure, changes only through its transitions); here stand the subscriptions. A subscriber is woken only when what it
//! may see has changed.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::jwt_svid::JwtSvid;
use passant_core::x509_svid::X509Svid;
use passant_core::{
    AuthorizedEntry, EntryId, Host, Refusal, Secret, Selectors, SpiffeId, TrustDomain, UnixTime,
};
use tokio::sync::{Notify, watch};

use crate::jwt_cache::{JwtCache, JwtIssuer};
use crate::plan::{self, Action};

#[cfg(test)]
pub(crate) use state::Failed;
pub(crate) use state::{Census, Held, MintFailure, Minted, Slot, State, SvidLook, View};

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
    /// Wakes whoever syncs: a workload waits for what the server has not said.
    need: Notify,
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
            shared: Arc::new(Shared {
                trust_domain,
                host,
                book: Mutex::new(book),
                work: Notify::new(),
                need: Notify::new(),
                jwt,
            }),
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
        if matches!(*receiver.borrow(), Update::NotReady(_)) {
            self.shared.need.notify_one();
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
        let mut issued = self.shared.jwt.fetch_all(entries, audience).await?;
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
        if book.state.learn_bundle(Arc::clone(&bundle)) {
            book.settle_all(now);
        }
        drop(book);
        self.shared.jwt.purge(&bundle);
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

    /// How long until the next SVID held becomes due; none while none is held.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let now = self.now();
        plan::next_due(now, &self.shared.book().state).map(|due| now.until(due))
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
        book.state.lacks_any(&book.wanted(), now)
    }

    /// Resolves when a workload has come that cannot be answered.
    pub(crate) async fn need(&self) {
        self.shared.need.notified().await;
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

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;

    use super::*;
    use crate::testing::ca::{Ca, foreign_bundle};
    use crate::testing::{NOW, by_id, entry, entry_id, following_host, id, secs, selectors, trust_domain};

    struct NoTokens;

    impl JwtIssuer for NoTokens {
        fn issue(
            &self,
            _: Arc<AuthorizedEntry>,
            _: Vec<String>,
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
            self.cache.learn(view);
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
            self.cache.minted(vec![(entry.id.clone(), Ok(minted))]);
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
        assert_eq!(bench.cache.plan().len(), 1);
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
    async fn a_workload_sees_the_foreign_bundles_of_its_own_entries_only() {
        let bench = Bench::new();
        let foreign = |name| TrustDomain::parse(name).unwrap();
        let a = AuthorizedEntry { federates_with: [foreign("one.test")].into(), ..entry("a", 1) };
        let b = AuthorizedEntry { federates_with: [foreign("two.test")].into(), ..entry("b", 2) };
        let federated: BTreeMap<_, _> =
            ["one.test", "two.test"].map(|name| (foreign(name), Arc::new(foreign_bundle(name)))).into();
        let bundle = Arc::clone(&bench.bundle);
        bench.cache.learn(View { entries: by_id([a.clone(), b]), bundle, federated });
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
        assert!(bench.cache.plan().is_empty());
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

    #[tokio::test(start_paused = true)]
    async fn entries_for_secret_stores_are_served_to_nobody() {
        let bench = Bench::new();
        bench.learn(&[AuthorizedEntry { store_svid: true, ..entry("a", 1) }]);
        let mut subscription = bench.cache.subscribe(&selectors(&["unix:uid:1"]));
        assert!(matches!(subscription.current(), Update::NoIdentity));
        assert!(bench.cache.known().contains_key(&entry_id("a")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscription_puts_its_entries_first_and_its_end_takes_them_back() {
        let bench = Bench::new();
        let on_demand = AuthorizedEntry { disable_x509_svid_prefetch: true, ..entry("b", 2) };
        bench.learn(&[entry("a", 1), on_demand]);
        let order = |bench: &Bench| bench.cache.plan().iter().map(|it| it.id.to_string()).collect::<Vec<_>>();
        assert_eq!(order(&bench), ["a"]);
        assert!(!bench.cache.someone_waits());
        let subscription = bench.cache.subscribe(&selectors(&["unix:uid:2"]));
        assert!(bench.cache.someone_waits());
        assert_eq!(order(&bench), ["b", "a"]);
        drop(subscription);
        assert_eq!(order(&bench), ["a"]);
    }
}
