//! When does the agent talk to its server of its own accord? One task tends the node's SVID, and polls a server that cannot
//! push.

use std::sync::Arc;
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::{AgentFault, Host, TrustDomain};
use passant_daemon::label::Outcome;
use passant_daemon::vitals::Alive;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::backoff::{self, Backoff};
use crate::cache::Cache;
use crate::connect::{CallError, Link};
use crate::health::{Health, Part};
use crate::node::Node;
use crate::push::{Ties, Way};
use crate::{limits, sync};

/// Tends and syncs, in turn.
pub(crate) struct Driver {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) host: Host,
    pub(crate) link: Link,
    pub(crate) cache: Cache,
    pub(crate) health: Health,
    pub(crate) node: Node,
    pub(crate) sync_interval: Duration,
    /// Others ask for a sync soon by this.
    pub(crate) resync: Arc<Notify>,
    pub(crate) ties: Arc<Ties>,
}

/// The least time between two syncs, however often somebody asks.
const SYNC_FLOOR: Duration = Duration::from_secs(1);

impl Driver {
    /// Runs until told to stop; being stopped in the middle of anything loses nothing.
    pub(crate) async fn run(mut self, stop: CancellationToken, alive: Alive) {
        let mut faults = self.link.faults();
        let mut ways = self.ties.way();
        let mut way = Way::default();
        let mut pace = Pace::new(self.sync_interval);
        // A stored SVID is announced once; a fresh one is announced by the attestation.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = self.announce() => {}
        }
        loop {
            alive.beat();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.turn(&mut faults, &mut ways, &mut way, &mut pace) => {}
            }
            let look = self.node.due().min(Instant::now() + limits::LOOK_AGAIN);
            let wake = if self.link.is_identified() && way.polls { look.min(pace.due) } else { look };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = faults.changed() => if changed.is_err() { return },
                changed = ways.changed() => if changed.is_err() { return },
                () = self.resync.notified() => {
                    pace.soon();
                    self.ties.doubt();
                }
                () = self.cache.need() => {
                    pace.hurry();
                    self.ties.hurry();
                    self.node.hurry();
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn announce(&self) {
        if self.link.is_identified() {
            self.node.post_status().await;
        }
    }

    async fn turn(
        &mut self,
        faults: &mut watch::Receiver<Option<AgentFault>>,
        ways: &mut watch::Receiver<Way>,
        way: &mut Way,
        pace: &mut Pace,
    ) {
        let new_way = ways.borrow_and_update().clone();
        self.heed(&new_way, way, pace).await;
        *way = new_way;
        let fault = *faults.borrow_and_update();
        if let Some(fault) = fault {
            self.node.found(fault).await;
        }
        let before = self.link.generation();
        self.node.tend().await;
        if self.link.generation() != before {
            // What was refused to the SVID before is not refused to this one.
            pace.now();
        }
        if way.polls && Instant::now() >= pace.due && self.link.is_identified() {
            let outcome = self.sync().await;
            pace.after(outcome, &self.cache, &self.host);
        }
    }

    /// What follows from how the watch goes on.
    async fn heed(&mut self, new: &Way, old: &Way, pace: &mut Pace) {
        if new.polls && !old.polls {
            pace.soon();
        }
        if new.welcomes != old.welcomes {
            self.node.accepted();
        }
        let is_new = |bundle: &Arc<Bundle>| old.bundle.as_ref().is_none_or(|old| !Arc::ptr_eq(old, bundle));
        if let Some(bundle) = new.bundle.as_ref().filter(|bundle| is_new(bundle))
            && self.node.learn_bundle(bundle)
        {
            // That it is here, the watch reports.
            self.node.keep_bundle().await;
        }
        if new.stops_changed != old.stops_changed {
            self.node.keep_stops(new.stops.list()).await;
            self.ties.kept(new.stops_changed);
        }
    }

    async fn sync(&mut self) -> Result<(), CallError> {
        let asked_at = self.cache.pushes();
        let known = sync::Known { entries: self.cache.known(), federated: self.cache.bundles().federated };
        let (generation, faults) = (self.link.generation(), self.link.faults());
        let began = Instant::now();
        let polled = sync::poll(&self.link, &self.trust_domain, known).await;
        let metrics = self.link.metrics();
        metrics.syncs.of(Outcome::of(polled.as_ref().map_err(|error| &error.refusal))).inc();
        match polled {
            Ok(view) => {
                debug!(entries = view.entries.len(), federated = view.federated.len(),
                    took = ?began.elapsed(), "synced");
                metrics.sync.since(began);
                // What was found while it was polled is newer than the beginning of its answer.
                if !faults.has_changed().unwrap_or(true) {
                    self.link.accepted(generation);
                    self.node.accepted();
                }
                // The server is verified by the new bundle before an SVID under it is asked for.
                let bundle_changed = self.node.learn_bundle(&view.bundle);
                self.cache.learn(view, asked_at);
                self.health.good(Part::Sync);
                if bundle_changed {
                    self.node.keep_bundle().await;
                    self.node.post_status().await;
                }
                Ok(())
            }
            Err(error) => {
                self.health.bad(Part::Sync, &error.to_string());
                Err(error)
            }
        }
    }
}

/// When to sync next.
struct Pace {
    due: Instant,
    last: Option<Instant>,
    interval: Duration,
    unreachable: Backoff,
    refused: Backoff,
    /// The last sync failed for a reason that only an operator can lift.
    is_refused: bool,
    /// The server said not to come before.
    not_before: Option<Instant>,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self {
            due: Instant::now(),
            last: None,
            interval,
            unreachable: Backoff::new(interval, limits::BACKOFF_LAST),
            refused: Backoff::new(limits::REFUSED_FIRST, limits::REFUSED_LAST),
            is_refused: false,
            not_before: None,
        }
    }

    /// There is a new node SVID to sync with.
    fn now(&mut self) {
        self.due = Instant::now();
        self.refused.succeeded();
        self.is_refused = false;
        self.not_before = None;
    }

    /// A workload waits for what only the server can give: the wait after an outage is cut to that after a first failure.
    fn hurry(&mut self) {
        if !self.is_refused
            && let Some(last) = self.last
        {
            self.bring_forward(last + self.interval);
        }
    }

    /// Somebody has reason to believe that the view is old.
    fn soon(&mut self) {
        let floor = self.last.map_or_else(Instant::now, |last| last + SYNC_FLOOR);
        self.bring_forward(floor);
    }

    fn bring_forward(&mut self, to: Instant) {
        self.due = self.due.min(self.not_before.map_or(to, |least| to.max(least)));
    }

    /// Slower after failures, but not while a workload waits; slow when only an operator can help.
    fn after(&mut self, outcome: Result<(), CallError>, cache: &Cache, host: &Host) {
        let usual = backoff::spread(self.interval, host);
        let said = outcome.as_ref().err().and_then(|error| error.refusal.retry_after);
        self.is_refused = outcome.as_ref().is_err_and(|error| error.refusal.agent_fault.is_some());
        let wait = match outcome {
            Ok(()) => {
                self.unreachable.succeeded();
                self.refused.succeeded();
                usual
            }
            Err(error) if error.refusal.agent_fault.is_some() => self.refused.failed(host),
            Err(_) if cache.someone_waits() => {
                info!("a workload waits; the next sync comes soon");
                self.unreachable.failed(host).min(usual)
            }
            Err(_) => self.unreachable.failed(host),
        };
        let now = Instant::now();
        self.last = Some(now);
        self.due = now + backoff::as_told(said, wait, host);
        self.not_before = said.map(|_| self.due);
    }
}
