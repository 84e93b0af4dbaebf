//! When does the server renew its own X509-SVID?
//!
//! Around half of its life, and as soon as another authority signs: peers have that authority's certificate already, it
//! was published long before. One that ends with its authority is not renewed by time: the next could end no later. The
//! port stays open meanwhile; the next handshake shows the new SVID.

use std::sync::Arc;
use std::time::Duration;

use passant_core::lifetime::renew_at;
use passant_core::{Host, Refusal, UnixTime};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::Authorities;
use crate::issue::Issuer;
use crate::state::{AuthorityId, Revision};
use crate::tls::{ServerIdentity, TlsError};

/// How often the wall clock is looked at: it jumps when the machine was suspended.
const LOOK: Duration = Duration::from_secs(5);
/// The shortest pause after a failed renewal, doubled with each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failed renewals.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Keeps the server's own X509-SVID fresh.
pub(crate) struct Rotation {
    issuer: Issuer,
    authorities: Arc<Authorities>,
    identity: Arc<ServerIdentity>,
    host: Host,
    current: Current,
}

/// What decides about the next renewal.
#[derive(Debug)]
struct Current {
    /// None when a new one would end no later.
    renew_at: Option<UnixTime>,
    signed_by: AuthorityId,
}

/// Why the server has no new SVID.
#[derive(Debug, Error)]
pub(crate) enum RotateError {
    /// It could not be issued.
    #[error("failed to issue the server's own X509-SVID")]
    Issue(#[from] Refusal),
    /// It cannot be shown.
    #[error("failed to use the server's own X509-SVID")]
    Show(#[from] TlsError),
}

impl Rotation {
    /// Issues the first SVID, so that `identity` has one before the port opens.
    ///
    /// # Errors
    /// When there is none: a server that cannot prove itself does not start.
    pub(crate) async fn begin(
        issuer: Issuer,
        authorities: Arc<Authorities>,
        identity: Arc<ServerIdentity>,
        host: Host,
    ) -> Result<Self, RotateError> {
        let current = renew(&issuer, &authorities, &identity, &host).await?;
        Ok(Self { issuer, authorities, identity, host, current })
    }

    /// Renews whenever it is due, until `stop`.
    pub(crate) async fn run(mut self, mut revisions: watch::Receiver<Revision>, stop: CancellationToken) {
        let mut pause = PAUSE;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = revisions.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            if !is_due(&self.current, self.authorities.x509().id(), self.host.now()) {
                continue;
            }
            match renew(&self.issuer, &self.authorities, &self.identity, &self.host).await {
                Ok(current) => {
                    self.current = current;
                    pause = PAUSE;
                    tracing::info!("renewed the server's own X509-SVID");
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "failed to renew the server's own X509-SVID"
                    );
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

fn is_due(current: &Current, active: &AuthorityId, now: UnixTime) -> bool {
    current.renew_at.is_some_and(|renew_at| now >= renew_at) || *active != current.signed_by
}

async fn renew(
    issuer: &Issuer,
    authorities: &Authorities,
    identity: &ServerIdentity,
    host: &Host,
) -> Result<Current, RotateError> {
    // Asked before, so that an authority that takes over in between is noticed at the next look.
    let authority = authorities.x509();
    let now = host.now();
    let issued = issuer.server_svid().await?;
    let svid = issued.svid.svid();
    identity.show(svid, issued.key.pkcs8())?;
    let ends_early = svid.not_after() < authority.not_after();
    Ok(Current {
        // Of the life that is left: `not_before` lies in the past, and by much of a short life.
        renew_at: ends_early.then(|| renew_at(now, svid.not_after(), host.jitter())),
        signed_by: authority.id().clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use passant_core::UnixTime;

    use super::{Current, is_due, renew};
    use crate::rig::{HOUR, MINUTE, Rig};
    use crate::state::AuthorityId;
    use crate::tls::ServerIdentity;

    #[tokio::test]
    async fn an_svid_that_ends_with_its_authority_is_not_renewed_over_and_over() {
        let rig = Rig::new().await;
        let identity = Arc::new(ServerIdentity::default());
        let renewed = || renew(&rig.issuer, &rig.authorities, &identity, &rig.host);
        let current = renewed().await.unwrap();
        let renew_at = current.renew_at.expect("it ends long before its authority");
        assert!(renew_at > rig.now().plus(20 * MINUTE) && renew_at < rig.now().plus(40 * MINUTE));
        for left in [HOUR, MINUTE, Duration::from_secs(1)] {
            rig.clock.set(rig.authorities.x509().not_after().minus(left));
            let current = renewed().await.unwrap();
            assert_eq!(current.renew_at, None, "{left:?} before the end");
            assert!(!is_due(&current, rig.authorities.x509().id(), rig.now()));
        }
    }

    #[test]
    fn renewal_is_due_by_time_or_by_another_authority() {
        let id = |byte| AuthorityId::of_key(&[byte; 20]).unwrap();
        let at = UnixTime::from_secs;
        let current = Current { renew_at: Some(at(100)), signed_by: id(1) };
        assert!(!is_due(&current, &id(1), at(99)));
        assert!(is_due(&current, &id(1), at(100)));
        assert!(is_due(&current, &id(2), at(0)));
        let last = Current { renew_at: None, signed_by: id(1) };
        assert!(!is_due(&last, &id(1), at(1_000)), "another of this authority would end no later");
        assert!(is_due(&last, &id(2), at(0)));
    }
}
