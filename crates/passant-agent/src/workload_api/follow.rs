//! What does an open stream hear, and when does it end?
//!
//! Each message is complete and replaces the one before, also where that was not yet read. The first is sent at once; later ones when something that the
//! caller may see has changed, and only if the message differs. The stream ends when the caller exits, when it is no
//! longer the process that connected, when it has no identity any more (PermissionDenied), or when nothing valid can be
//! given (Unavailable).

use std::sync::Arc;
use std::time::Duration;

use passant_attest::workload::docker;
use passant_core::{Instance, Selector};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout_at};
use tonic::Status;
use tracing::{debug, info};

use super::Shared;
use super::caller::{Caller, attestation_failed};
use super::latest::{Messages, latest};
use super::limits::{FIRST_ANSWER, LOOK_AGAIN, SAME_LOOK};
use crate::attest::Evidence;
use crate::cache::{Cache, Identities, Subscription, Update};

/// What every call holds on to.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) caller: Caller,
}

impl Call {
    /// See [`Caller::evidence`].
    pub(super) async fn evidence(&self, reuse: Duration) -> Result<Arc<Evidence>, Status> {
        self.caller.evidence(&self.shared.attestation, reuse).await
    }

    /// The process that called; none if it could not be found out who that is.
    pub(super) fn instance(&self) -> Option<Instance> {
        let (pid, start_time) = self.caller.process()?;
        Instance::new(&self.shared.boot_id, pid, start_time).ok()
    }

    /// What `evidence` says of the process, in the form that a server believes.
    pub(super) fn believable(&self, evidence: &Evidence) -> Result<Arc<passant_core::Evidence>, Status> {
        Ok(Arc::new(passant_core::Evidence {
            selectors: evidence.selectors.clone(),
            instance: self.instance().ok_or_else(attestation_failed)?,
            attestors: evidence.attestors.iter().map(|&name| name.to_owned()).collect(),
            attested_at: self.shared.host.now().minus(evidence.at.elapsed()),
        }))
    }

    /// Whether nothing is to be served to the process.
    pub(super) fn is_stopped(&self) -> bool {
        self.instance().is_some_and(|process| self.shared.cache.is_stopped(&process))
    }
}

/// The refusal of a caller for which nothing matched.
pub(super) fn no_identity(call: &Call, evidence: &Evidence) -> Status {
    if evidence.is_partial && !call.is_stopped() {
        // An attestor that failed might have found what an entry asks for.
        return attestation_failed();
    }
    if let Ok(peer) = call.caller.peer() {
        if let Some(left_out) = call.shared.no_identity.line(peer.uid()) {
            info!(pid = peer.pid(), uid = peer.uid(), left_out, "no identity issued");
        }
        let selectors: Vec<&Selector> =
            evidence.selectors.iter().filter(|it| !docker::is_variable(it)).collect();
        debug!(
            pid = peer.pid(),
            ?selectors,
            "no entry has only these selectors, and variables that are not told"
        );
    }
    Status::permission_denied("no identity issued")
}

/// Opens a stream of what `answer` makes of the caller's identities; it makes nothing of those it has told already.
///
/// A caller that does not read is looked at all the same: nothing is kept for it that it may not have any more.
///
/// # Errors
/// When there is no first message.
pub(super) async fn open<T: Send + 'static>(
    call: Call,
    mut answer: impl FnMut(&Arc<Identities>) -> Option<T> + Send + 'static,
) -> Result<Messages<Result<T, Status>>, Status> {
    let mut watch = Watch::start(call).await?;
    let first = watch.settled().await?;
    let (teller, messages) = latest();
    if let Some(message) = answer(&first) {
        teller.tell(Ok(message));
    }
    let mut told = first;
    let stop = watch.call.shared.stop.clone();
    let caller = watch.call.caller.clone();
    let (cache, instance) = (watch.call.shared.cache.clone(), watch.call.instance());
    tokio::spawn(async move {
        let _at_the_end = ForgetIfGone { caller, cache, instance };
        loop {
            let next = tokio::select! {
                biased;
                () = teller.left() => return,
                () = stop.cancelled() => Err(Status::unavailable("agent is stopping")),
                next = watch.next() => next,
            };
            match next {
                Ok(identities) if Arc::ptr_eq(&identities, &told) => {}
                Ok(identities) => {
                    told = identities;
                    if let Some(message) = answer(&told) {
                        teller.tell(Ok(message));
                    }
                }
                Err(status) => return teller.tell(Err(status)),
            }
        }
    });
    Ok(messages)
}

/// What the caller may see now; the same as the first of a stream.
///
/// # Errors
/// As of [`open`].
pub(super) async fn once(call: Call) -> Result<Arc<Identities>, Status> {
    Watch::start(call).await?.settled().await
}

/// What a process has of its own goes with it.
struct ForgetIfGone {
    caller: Caller,
    cache: Cache,
    instance: Option<Instance>,
}

impl Drop for ForgetIfGone {
    fn drop(&mut self) {
        if let (Some(instance), Ok(peer)) = (&self.instance, self.caller.peer())
            && !peer.is_alive()
        {
            self.cache.exited(instance);
        }
    }
}

struct Watch {
    call: Call,
    evidence: Arc<Evidence>,
    subscription: Subscription,
    looks: Interval,
}

impl Watch {
    async fn start(call: Call) -> Result<Self, Status> {
        let evidence = call.evidence(SAME_LOOK).await?;
        let subscription = call.shared.cache.subscribe_as(&call.believable(&evidence)?);
        let mut looks = interval_at(Instant::now() + LOOK_AGAIN, LOOK_AGAIN);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { call, evidence, subscription, looks })
    }

    /// Waits for a reason to look, and looks. Cancel safe.
    async fn next(&mut self) -> Result<Arc<Identities>, Status> {
        let peer = self.call.caller.peer()?;
        let reuse = tokio::select! {
            biased;
            () = peer.exited() => return Err(attestation_failed()),
            () = self.subscription.changed() => LOOK_AGAIN,
            _ = self.looks.tick() => SAME_LOOK,
        };
        self.look(reuse).await?;
        self.settled().await
    }

    /// What may be seen now. While SVIDs are being minted it waits, a little.
    async fn settled(&mut self) -> Result<Arc<Identities>, Status> {
        let deadline = Instant::now() + FIRST_ANSWER;
        loop {
            match self.subscription.current() {
                Update::Ready(identities) => return Ok(identities),
                Update::NoIdentity => return Err(no_identity(&self.call, &self.evidence)),
                Update::NotReady(why) => {
                    if timeout_at(deadline, self.subscription.changed()).await.is_err() {
                        return Err(Status::unavailable(why));
                    }
                }
            }
            // Time has passed: the SVIDs that have come are for the process that asked.
            self.look(LOOK_AGAIN).await?;
        }
    }

    /// Looks at the caller again, and follows what it may see now.
    async fn look(&mut self, reuse: Duration) -> Result<(), Status> {
        let evidence = self.call.evidence(reuse).await?;
        if evidence.selectors != self.evidence.selectors {
            self.subscription = self.call.shared.cache.subscribe_as(&self.call.believable(&evidence)?);
        } else {
            // Even if nothing new was found: the host's clock may have been set since.
            self.subscription.renew_evidence(&self.call.believable(&evidence)?);
        }
        self.evidence = evidence;
        Ok(())
    }
}
