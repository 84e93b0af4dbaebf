//! How is a request refused: whose fault, what may a stranger read, is it worth trying again?

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// The one error that crosses an API.
///
/// `public` is safe for whoever asked; `source` is for the log only.
#[derive(Debug)]
pub struct Refusal {
    /// What kind of refusal it is.
    pub reason: Reason,
    /// What the caller reads: what failed, on what, and what would help.
    pub public: String,
    /// The cause, for the log.
    pub source: Option<Box<dyn Error + Send + Sync>>,
    /// Set when an agent's own standing is the reason, so that it knows what to do next.
    pub agent_fault: Option<AgentFault>,
    /// After how long the same request may do, if that is known. Means nothing where [`Refusal::retry`] says no.
    pub retry_after: Option<Duration>,
}

/// The closed list of reasons; each has one gRPC code, in `passant-proto/src/status.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The request itself is wrong; the same request will never do.
    Invalid,
    /// Nobody we know is asking.
    Unauthenticated,
    /// We know who is asking, and they may not.
    Denied,
    /// The thing asked for is not there.
    NotFound,
    /// The thing to be made is there.
    AlreadyExists,
    /// The state of the system does not allow it now.
    Precondition,
    /// The caller has used up its share; later it may do.
    Exhausted,
    /// It cannot be answered now; try again with backoff.
    Unavailable,
    /// It is not offered here.
    Unimplemented,
    /// Our fault.
    Internal,
}

/// Whether the same request may do later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not without a change of the request or of the system.
    No,
    /// With backoff.
    WithBackoff,
}

/// Why an attested agent is refused; told in the error details, where SPIRE's agents look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentFault {
    /// Its SVID has expired.
    Expired,
    /// No such agent is attested (any more).
    NotAttested,
    /// Its SVID is not the one that is active for it.
    NotActive,
    /// It cannot renew and has to attest again.
    MustReattest,
    /// It was banned.
    Banned,
}

impl Refusal {
    /// A refusal for `reason` that tells the caller `public`.
    pub fn new(reason: Reason, public: impl Into<String>) -> Self {
        Self { reason, public: public.into(), source: None, agent_fault: None, retry_after: None }
    }

    /// The request is wrong.
    pub fn invalid(public: impl Into<String>) -> Self {
        Self::new(Reason::Invalid, public)
    }

    /// The caller is unknown.
    pub fn unauthenticated(public: impl Into<String>) -> Self {
        Self::new(Reason::Unauthenticated, public)
    }

    /// The caller may not.
    pub fn denied(public: impl Into<String>) -> Self {
        Self::new(Reason::Denied, public)
    }

    /// There is no such thing.
    pub fn not_found(public: impl Into<String>) -> Self {
        Self::new(Reason::NotFound, public)
    }

    /// There is one already.
    pub fn already_exists(public: impl Into<String>) -> Self {
        Self::new(Reason::AlreadyExists, public)
    }

    /// The state of the system does not allow it.
    pub fn precondition(public: impl Into<String>) -> Self {
        Self::new(Reason::Precondition, public)
    }

    /// The caller asks for too much.
    pub fn exhausted(public: impl Into<String>) -> Self {
        Self::new(Reason::Exhausted, public)
    }

    /// Not now.
    pub fn unavailable(public: impl Into<String>) -> Self {
        Self::new(Reason::Unavailable, public)
    }

    /// Not here.
    pub fn unimplemented(public: impl Into<String>) -> Self {
        Self::new(Reason::Unimplemented, public)
    }

    /// Our fault: the caller learns nothing but that, the log gets `source`.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Reason::Internal, "internal error; the server's log says more").because(source)
    }

    /// The same refusal with its cause, for the log.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same refusal with what an agent should conclude from it.
    #[must_use]
    pub fn with_agent_fault(mut self, fault: AgentFault) -> Self {
        self.agent_fault = Some(fault);
        self
    }

    /// The same refusal, with when to ask again.
    #[must_use]
    pub const fn retry_in(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Whether the same request may do later.
    pub fn retry(&self) -> Retry {
        match self.reason {
            Reason::Exhausted | Reason::Unavailable | Reason::Internal => Retry::WithBackoff,
            Reason::Invalid
            | Reason::Unauthenticated
            | Reason::Denied
            | Reason::NotFound
            | Reason::AlreadyExists
            | Reason::Precondition
            | Reason::Unimplemented => Retry::No,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_kept_apart_from_what_the_caller_reads() {
        let refusal = Refusal::internal("disk on fire");
        assert!(!refusal.to_string().contains("disk"));
        assert_eq!(refusal.source().unwrap().to_string(), "disk on fire");
        assert_eq!(refusal.retry(), Retry::WithBackoff);
        assert_eq!(Refusal::invalid("no").retry(), Retry::No);
    }
}
