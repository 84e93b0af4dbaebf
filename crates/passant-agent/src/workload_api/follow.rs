//! What does an open stream hear, and when does it end?
//!
//! Each message is complete and replaces the one before. The first is sent at once; later ones when something that the
//! caller may see has changed, and only if the message differs. The stream ends when the caller exits, when it is no
//! longer the process that connected, when it has no identity any more (PermissionDenied), or when nothing valid can be
//! given (Unavailable).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{debug, info};

use super::Shared;
use super::caller::{Caller, attestation_failed};
use super::limits::{FIRST_ANSWER, LOOK_AGAIN, SAME_LOOK};
use crate::attest::Evidence;
use crate::cache::{Identities, Subscription, Update};

/// What every call holds on to.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) caller: Caller,
}

impl Call {
    /// See [`Caller::evidence`].
    pub(super) async fn evidence(&self, reuse: Duration) -> Result<Arc<Evidence>, Status> {
        self.caller.evidence(&self.shared.attestation, reuse).await
    }
}

/// The refusal of a caller for which nothing matched.
pub(super) fn no_identity(call: &Call, evidence: &Evidence) -> Status {
    if evidence.is_partial {
        // An attestor that failed might have found what an entry asks for.
        return attestation_failed();
    }
    if let Ok(peer) = call.caller.peer() {
        if let Some(left_out) = call.shared.no_identity.line(peer.uid()) {
            info!(pid = peer.pid(), uid = peer.uid(), left_out, "no identity issued");
        }
        debug!(pid = peer.pid(), selectors = ?evidence.selectors, "no entry has only these selectors");
    }
    Status::permission_denied("no identity issued")
}

/// Opens a stream of what `answer` makes of the caller's identities; it makes nothing of those it has told already.
///
/// # Errors
/// When there is no first message.
pub(super) async fn open<T: Send + 'static>(
    call: Call,
    mut answer: impl FnMut(&Arc<Identities>) -> Option<T> + Send + 'static,
) -> Result<ReceiverStream<Result<T, Status>>, Status> {
    let mut watch = Watch::start(call).await?;
    let first = watch.settled().await?;
    let (messages, stream) = mpsc::channel(1);
    if let Some(message) = answer(&first) {
        // The channel is empty and its receiver is here.
        drop(messages.try_send(Ok(message)));
    }
    let mut latest = first;
    let stop = watch.call.shared.stop.clone();
    let caller = watch.call.caller.clone();
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                biased;
                () = messages.closed() => return,
                () = stop.cancelled() => Err(Status::unavailable("agent is stopping")),
                next = watch.next() => next,
            };
            let message = match next {
                Ok(identities) if Arc::ptr_eq(&identities, &latest) => None,
                Ok(identities) => {
                    latest = identities;
                    answer(&latest).map(Ok)
                }
                Err(status) => Some(Err(status)),
            };
            let Some(message) = message else { continue };
            let is_last = message.is_err();
            // A caller that does not read keeps only itself waiting, and for as long as it lives.
            let is_sent = tokio::select! {
                biased;
                () = caller.exited() => false,
                () = stop.cancelled(), if !is_last => false,
                sent = messages.send(message) => sent.is_ok(),
            };
            if is_last || !is_sent {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(stream))
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
        let subscription = call.shared.cache.subscribe(&evidence.selectors);
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
            self.subscription = self.call.shared.cache.subscribe(&evidence.selectors);
        }
        self.evidence = evidence;
        Ok(())
    }
}
