//! How do wire and domain convert? One file per thing converted; nothing else does it.
//!
//! From the wire everything is checked, and the domain's types hold the result. Functions are named
//! from the wire's point of view: `from_wire`, `to_wire`.

pub mod bundle;
pub mod entry;
pub mod evidence;
pub mod explanation;
pub mod federation;
pub mod filter;
pub mod id;
pub mod mask;
pub mod options;
pub mod sds;
pub mod selector;
pub mod stop;
pub mod svid;
#[cfg(test)]
mod test_certificates;
pub mod workload;

use std::error::Error;

use passant_core::Refusal;

/// A message that does not convert. Its text names the field and is safe for whoever sent it.
///
/// As a [`Refusal`] it is an invalid request; where the message came from a server instead, the caller
/// makes of it what fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// In `field`, because of `cause` and its causes. They are in the text, which goes out in one piece.
    pub(crate) fn field(field: &str, cause: &dyn Error) -> Self {
        let mut text = format!("{field}: {cause}");
        let mut next = cause.source();
        while let Some(cause) = next {
            text.push_str(&format!(": {cause}"));
            next = cause.source();
        }
        Self(text)
    }

    /// The same fault, with what was being done: `failed to convert entry: ...`.
    #[must_use]
    pub fn during(self, what: &str) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::invalid(malformed.0)
    }
}
