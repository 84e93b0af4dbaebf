//! When is the bundle of which foreign trust domain fetched, and what becomes of it?
//!
//! One task asks all endpoints, each when its bundle's hint says, a few at a time. What was fetched goes through the
//! journal, so that agents hear of it and a restart forgets nothing; how it went is kept in memory, for operators to see.
//! A bundle that cannot be fetched stays as it is held (SPIFFE Federation 6.2).

pub(crate) mod endpoint;
pub(crate) mod fetch;
mod pace;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_core::{
    Bundle, EndpointProfile, FederationRelationship, Host, Reason, Refusal, TrustDomain, UnixTime,
    X509Authority,
};
use passant_daemon::exit::with_causes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::command;
use crate::command::federation::Fetched;
use crate::journal::Journal;
use crate::limits::{FETCHES, REFRESHES_WAITING};
use crate::metrics::{FetchResult, Metrics};
use crate::state::{FederationMark, Revision, State};
use endpoint::Proof;
use fetch::{Fetch, FetchError, Order};

/// How the fetching of foreign bundles goes, and a way to have one fetched now. Clones share it.
#[derive(Clone)]
pub(crate) struct Federation {
    demands: mpsc::Sender<Demand>,
    statuses: Arc<Mutex<BTreeMap<TrustDomain, Status>>>,
}

/// How the fetches of one bundle went since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// When it was fetched last, changed or not.
    pub(crate) last_success: Option<UnixTime>,
    /// When that was tried last.
    pub(crate) last_attempt: Option<UnixTime>,
    /// Why the last attempt failed; `None` if it did not.
    pub(crate) last_error: Option<String>,
    /// How many attempts have failed since the last success.
    pub(crate) failures: u32,
    /// When it is tried next; `None` while it is being tried.
    pub(crate) next_attempt: Option<UnixTime>,
}

/// Somebody who wants a bundle fetched now.
struct Demand {
    trust_domain: TrustDomain,
    reply: Reply,
}

/// Told once a fetch that began after the demand has ended.
struct Reply(oneshot::Sender<Result<(), Refusal>>);

impl Federation {
    /// The handle, and the task's work.
    pub(crate) fn new(
        journal: Journal,
        fetch: Arc<dyn Fetch>,
        host: Host,
        metrics: Arc<Metrics>,
    ) -> (Self, Refresher) {
        let (demands, demanded) = mpsc::channel(REFRESHES_WAITING);
        let federation = Self { demands, statuses: Arc::default() };
        let refresher = Refresher {
            journal,
            fetch,
            host,
            metrics,
            demanded,
            federation: federation.clone(),
            seen: None,
            watched: BTreeMap::new(),
            running: JoinSet::new(),
            names: Vec::new(),
        };
        (federation, refresher)
    }

    /// Has the bundle of `trust_domain` fetched, and returns once that is done and what came of it is durable.
    ///
    /// # Errors
    /// Not found without a relationship; internal (as SPIRE's) when the bundle could not be fetched, or is older than the one
    /// that is held.
    pub(crate) async fn refresh(&self, trust_domain: TrustDomain) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let demand = Demand { trust_domain, reply: Reply(reply) };
        self.demands.send(demand).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// How it goes, by trust domain.
    pub(crate) fn statuses(&self) -> BTreeMap<TrustDomain, Status> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, Status>> {
        // Each change is one assignment, so that a panic leaves nothing half done.
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopping() -> Refusal {
    Refusal::unavailable("server is shutting down")
}

/// The task that fetches bundles.
pub(crate) struct Refresher {
    journal: Journal,
    fetch: Arc<dyn Fetch>,
    host: Host,
    metrics: Arc<Metrics>,
    demanded: mpsc::Receiver<Demand>,
    federation: Federation,
    /// What the last look saw.
    seen: Option<FederationMark>,
    watched: BTreeMap<TrustDomain, Watched>,
    running: JoinSet<Result<Fetched, Failure>>,
    /// Whose bundle each of `running` fetches, by which relationship and what else.
    names: Vec<(Id, Arc<FederationRelationship>, Ground)>,
}

/// One relationship.
struct Watched {
    relationship: Arc<FederationRelationship>,
    /// When the next fetch may begin.
    due: Instant,
    /// The fetch that is under way.
    running: Option<Id>,
    /// What the last fetch went by, if that failed: the next one is due as soon as that is another.
    failed_by: Option<Ground>,
    /// To be told when the next fetch has ended.
    waiting: Vec<Reply>,
    /// To be told when the running one has.
    served: Vec<Reply>,
}

/// What of the state decides how a fetch goes.
#[derive(Clone, Debug)]
struct Ground {
    /// The bundle that is held of the trust domain.
    held: Option<Arc<Bundle>>,
    /// The bundle that its endpoint proves itself by, if it needs one.
    proof: Option<Arc<Bundle>>,
}

/// Why a fetch brought nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("failed to store the bundle")]
    Store(#[source] Refusal),
    #[error(
        "the endpoint serves version {served} of the bundle, which is older than {held}, which is held and stays: if its \
         issuer began anew, set the bundle by hand once"
    )]
    Older { served: u64, held: u64 },
    #[error("the fetch was lost")]
    Lost(#[source] JoinError),
}

impl Refresher {
    /// Fetches whatever is due, until `stop`. `revisions` tells when the journal's state has changed.
    pub(crate) async fn run(mut self, mut revisions: watch::Receiver<Revision>, stop: CancellationToken) {
        loop {
            self.look();
            self.begin();
            let next = self.next_due();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = self.running.join_next_with_id() => self.end(ended),
                Some(demand) = self.demanded.recv() => {
                    self.demand(demand);
                    // One fetch serves all who ask at once.
                    while let Ok(demand) = self.demanded.try_recv() {
                        self.demand(demand);
                    }
                }
                changed = revisions.changed() => if changed.is_err() { return },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Takes over what the state says of relationships. A new one, and one that was changed, is due at once; so is one
    /// whose last fetch failed, if a bundle that it went by is another now: somebody may have set it by hand.
    fn look(&mut self) {
        let state = self.journal.state();
        // Most commits change something else.
        if self.seen.as_ref().is_some_and(|seen| state.is_marked(seen)) {
            return;
        }
        self.seen = Some(state.federation_mark());
        for (name, ended) in self.watched.extract_if(.., |name, _| state.relationship(name).is_none()) {
            ended.waiting.into_iter().chain(ended.served).for_each(|reply| reply.none(&name));
        }
        self.federation.lock().retain(|name, _| state.relationship(name).is_some());
        let now = Instant::now();
        for relationship in state.relationships() {
            let watched = self.watched.entry(relationship.trust_domain.clone()).or_insert_with(|| Watched {
                relationship: Arc::clone(relationship),
                due: now,
                running: None,
                failed_by: None,
                waiting: Vec::new(),
                served: Vec::new(),
            });
            // It may have been ended and made anew, unseen: then its bundle is gone.
            if !Arc::ptr_eq(&watched.relationship, relationship) {
                (watched.relationship, watched.due) = (Arc::clone(relationship), now);
                self.federation.lock().remove(&relationship.trust_domain);
            }
            if watched
                .failed_by
                .take_if(|failed| !failed.still_is(&Ground::of(relationship, &state)))
                .is_some()
            {
                watched.due = now;
            }
        }
    }

    /// When the next fetch may begin; `None` when there is none to begin, or no room for it.
    fn next_due(&self) -> Option<Instant> {
        if self.running.len() >= FETCHES {
            return None;
        }
        self.watched.values().filter(|one| one.running.is_none()).map(|one| one.due).min()
    }

    /// Begins fetches that are due, as many as there is room for, the one that waited longest first.
    fn begin(&mut self) {
        let now = Instant::now();
        while self.running.len() < FETCHES {
            let idle = self.watched.values_mut().filter(|one| one.running.is_none() && one.due <= now);
            let Some(watched) = idle.min_by_key(|one| one.due) else { return };
            let relationship = Arc::clone(&watched.relationship);
            watched.served.append(&mut watched.waiting);
            {
                let mut statuses = self.federation.lock();
                let status = statuses.entry(relationship.trust_domain.clone()).or_default();
                (status.last_attempt, status.next_attempt) = (Some(self.host.now()), None);
            }
            let state = self.journal.state();
            let work = match proof(&relationship, |name| state.bundle_of(name)) {
                Ok(proof) => {
                    let order = Order { relationship: Arc::clone(&relationship), proof };
                    self.running.spawn(take(self.journal.clone(), Arc::clone(&self.fetch), order))
                }
                Err(error) => self.running.spawn(async { Err(Failure::Fetch(error)) }),
            };
            watched.running = Some(work.id());
            watched.failed_by = None;
            let ground = Ground::of(&relationship, &state);
            self.names.push((work.id(), relationship, ground));
        }
    }

    /// Notes what came of a fetch, and when the next one is.
    fn end(&mut self, ended: Result<(Id, Result<Fetched, Failure>), JoinError>) {
        let (id, done) = match ended {
            Ok((id, done)) => (id, done),
            Err(error) => (error.id(), Err(Failure::Lost(error))),
        };
        let Some(at) = self.names.iter().position(|(running, ..)| *running == id) else { return };
        let (_, relationship, ground) = self.names.swap_remove(at);
        let watched = self.watched.get_mut(&relationship.trust_domain);
        // It may have been ended meanwhile, and made anew: that one has a fetch of its own.
        let Some(watched) = watched.filter(|one| one.running == Some(id)) else { return };
        watched.running = None;
        let served = std::mem::take(&mut watched.served);
        let result = match &done {
            // It was changed meanwhile, or what proved its endpoint was.
            Ok(Fetched::Unwanted) => {
                watched.due = Instant::now();
                return watched.waiting.extend(served);
            }
            Ok(Fetched::Taken) => FetchResult::Taken,
            Ok(Fetched::Same) => FetchResult::Same,
            Ok(Fetched::Older { .. }) | Err(Failure::Older { .. }) => FetchResult::Older,
            Err(Failure::Fetch(_) | Failure::Store(_) | Failure::Lost(_)) => FetchResult::Failed,
        };
        self.metrics.federation_fetches.of(result).inc();
        let state = self.journal.state();
        let held = state.bundle_of(&relationship.trust_domain);
        let sequence = held.as_ref().map(|bundle| bundle.sequence);
        let why = done.as_ref().err().map(|failure| with_causes(failure));
        let (trust_domain, url) = (&relationship.trust_domain, &relationship.url);
        match &why {
            None => tracing::info!(%trust_domain, %url, sequence, ?result, "fetched a foreign bundle"),
            Some(why) => {
                tracing::warn!(%trust_domain, %url, sequence, why, "failed to fetch a foreign bundle")
            }
        }
        let mut statuses = self.federation.lock();
        let status = statuses.entry(trust_domain.clone()).or_default();
        let now = self.host.now();
        if why.is_none() {
            (status.last_success, status.failures) = (Some(now), 0);
        } else {
            status.failures = status.failures.saturating_add(1);
        }
        let pause = pace::pause(pace::interval(held.as_deref()), status.failures, self.host.jitter());
        status.next_attempt = Some(now.plus(pause));
        status.last_error.clone_from(&why);
        drop(statuses);
        let is_stale = why.is_some() && !ground.still_is(&Ground::of(&relationship, &state));
        watched.failed_by = why.is_some().then_some(ground);
        let is_due_again =
            is_stale || !watched.waiting.is_empty() || !Arc::ptr_eq(&watched.relationship, &relationship);
        watched.due = if is_due_again { Instant::now() } else { Instant::now() + pause };
        for Reply(reply) in served {
            let answer = why.as_ref().map_or(Ok(()), |why| {
                Err(Refusal::new(Reason::Internal, format!("failed to refresh bundle: {why}")))
            });
            // Fails only when the caller has gone.
            drop(reply.send(answer));
        }
    }

    /// Makes the next fetch due now; one that runs may have asked before the demand was made.
    fn demand(&mut self, demand: Demand) {
        // The caller may have made the relationship just now.
        self.look();
        let Demand { trust_domain, reply } = demand;
        match self.watched.get_mut(&trust_domain) {
            Some(watched) => {
                watched.due = Instant::now();
                watched.waiting.push(reply);
            }
            None => reply.none(&trust_domain),
        }
    }
}

impl Reply {
    /// There is nothing to fetch.
    fn none(self, trust_domain: &TrustDomain) {
        let none = format!("no relationship with trust domain \"{trust_domain}\"");
        // Fails only when the caller has gone.
        drop(self.0.send(Err(Refusal::not_found(none))));
    }
}

impl Ground {
    fn of(relationship: &FederationRelationship, state: &State) -> Self {
        let proof = match &relationship.profile {
            EndpointProfile::HttpsWeb => None,
            EndpointProfile::HttpsSpiffe { endpoint_id } => state.bundle_of(&endpoint_id.trust_domain()),
        };
        Self { held: state.bundle_of(&relationship.trust_domain), proof }
    }

    /// Whether a fetch by `now` would go as one by this. The owner of the proof has it changed as often as they like, so that
    /// only another authority counts.
    fn still_is(&self, now: &Self) -> bool {
        fn authorities(proof: Option<&Arc<Bundle>>) -> Option<&[X509Authority]> {
            proof.map(|bundle| bundle.x509_authorities.as_slice())
        }
        let is_held = match (&self.held, &now.held) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        is_held && authorities(self.proof.as_ref()) == authorities(now.proof.as_ref())
    }
}

/// By what the endpoint of `relationship` proves itself now: with each fetch by the newest bundle that is held.
fn proof(
    relationship: &FederationRelationship,
    bundle_of: impl Fn(&TrustDomain) -> Option<Arc<Bundle>>,
) -> Result<Proof, FetchError> {
    match &relationship.profile {
        EndpointProfile::HttpsWeb => Ok(Proof::Web),
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            let trust_domain = endpoint_id.trust_domain();
            match bundle_of(&trust_domain) {
                Some(bundle) => Ok(Proof::Spiffe { endpoint_id: endpoint_id.clone(), bundle }),
                None => Err(FetchError::NoBundle(trust_domain)),
            }
        }
    }
}

/// Fetches a bundle, and journals it if it is to be held.
async fn take(journal: Journal, fetch: Arc<dyn Fetch>, order: Order) -> Result<Fetched, Failure> {
    let relationship = Arc::clone(&order.relationship);
    let proof = match &order.proof {
        Proof::Web => None,
        Proof::Spiffe { bundle, .. } => Some(Arc::clone(bundle)),
    };
    let bundle = fetch.fetch(order).await?;
    let served = bundle.sequence;
    let command =
        move |state: &State| Ok(command::federation::fetched(state, &relationship, proof.as_deref(), bundle));
    match journal.submit(command).await.map_err(Failure::Store)? {
        Fetched::Older { held } => Err(Failure::Older { served, held }),
        other @ (Fetched::Taken | Fetched::Same | Fetched::Unwanted) => Ok(other),
    }
}

#[cfg(test)]
mod tests;
