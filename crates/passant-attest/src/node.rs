//! What do a node and a server say to each other to attest the node?
//!
//! The agent's half is a [`Prover`], the server's a [`Verifier`]. The node sends evidence; the server may ask any number
//! of challenges back through a [`Dialog`]; the outcome is a [`Proof`] of one agent SPIFFE ID, or a [`Rejection`]. Both
//! halves of a method stand in one file. What is a matter of state (a join token is spent once, a banned agent stays
//! out) is decided by the server with the proof in hand.

pub mod join_token;
pub mod path_template;
pub mod x509pop;

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use passant_core::{Reason, Refusal, Selectors, SpiffeId, UnixTime};
use thiserror::Error;

/// The agent's half of a method: shows who the node is.
pub trait Prover: Send {
    /// The attestation type on the wire.
    fn method(&self) -> &'static str;

    /// The evidence that opens an attestation; fresh on every call.
    fn evidence(&mut self) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ProveError>> + Send + '_>>;

    /// The answer to the server's `challenge`.
    fn respond<'a>(
        &'a mut self,
        challenge: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ProveError>> + Send + 'a>>;
}

/// The server's way to ask the node back while it verifies.
pub trait Dialog: Send {
    /// Sends `challenge` and waits for the answer. The caller of [`Verifier::verify`] has set the time limit.
    fn challenge(
        &mut self,
        challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>>;
}

/// The server's half of a method: finds out which node it is.
pub trait Verifier: Send + Sync {
    /// The attestation type on the wire.
    fn method(&self) -> &'static str;

    /// Judges the evidence `payload` at the instant `now`.
    fn verify<'a>(
        &'a self,
        payload: &'a [u8],
        dialog: &'a mut dyn Dialog,
        now: UnixTime,
    ) -> Pin<Box<dyn Future<Output = Result<Proof, Rejection>> + Send + 'a>>;
}

/// What has been proven of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The agent's SPIFFE ID, below `/spire/agent/`.
    pub agent_id: SpiffeId,
    /// Facts about the node.
    pub selectors: Selectors,
    /// Whether the same node can prove itself again at any time; such an agent attests anew instead of renewing.
    pub can_reattest: bool,
}

/// Why the node cannot prove itself: its own configuration or machine is at fault.
#[derive(Debug, Error)]
#[error("{what}")]
pub struct ProveError {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Why the server got no answer to its challenge.
#[derive(Debug, Error)]
#[error("node did not answer the challenge")]
pub struct DialogError {
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Why the server does not believe the node.
///
/// `public` is safe for a stranger, and says what to mend; `source` is for the log.
#[derive(Debug)]
pub struct Rejection {
    /// Whose fault it is: [`Reason::Invalid`] for evidence of the wrong form, [`Reason::Denied`] for evidence that does
    /// not convince, [`Reason::Unavailable`] when it could not be judged, [`Reason::Internal`] for ours.
    pub reason: Reason,
    /// What the node's operator reads.
    pub public: String,
    /// The cause.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ProveError {
    /// An error of our own finding.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// The same, with its cause.
    #[must_use]
    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}

impl DialogError {
    /// The node ended the attestation, or the connection is lost.
    pub fn new(source: Option<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source }
    }
}

impl Rejection {
    /// Evidence or an answer of the wrong form.
    pub fn invalid(public: impl Into<String>) -> Self {
        Self { reason: Reason::Invalid, public: public.into(), source: None }
    }

    /// Evidence that does not convince.
    pub fn denied(public: impl Into<String>) -> Self {
        Self { reason: Reason::Denied, public: public.into(), source: None }
    }

    /// The evidence could not be judged now.
    pub fn unavailable(public: impl Into<String>) -> Self {
        Self { reason: Reason::Unavailable, public: public.into(), source: None }
    }

    /// Our fault.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let public = "internal error during node attestation".to_owned();
        Self { reason: Reason::Internal, public, source: Some(source.into()) }
    }

    /// The same, with its cause.
    #[must_use]
    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl Error for Rejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<DialogError> for Rejection {
    fn from(error: DialogError) -> Self {
        Self::invalid("node did not answer the challenge").because(error)
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let refusal = Self::new(rejection.reason, rejection.public);
        match rejection.source {
            Some(source) => refusal.because(source),
            None => refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_keep_reason_and_cause_as_refusals() {
        let refusal = Refusal::from(Rejection::denied("no").because("why"));
        assert_eq!((refusal.reason, refusal.public.as_str()), (Reason::Denied, "no"));
        assert_eq!(refusal.source.unwrap().to_string(), "why");
        assert!(Refusal::from(Rejection::invalid("no")).source.is_none());
    }
}
