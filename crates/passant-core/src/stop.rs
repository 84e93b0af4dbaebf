//! What may be stopped at once, by whom named, and why?

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::entry::EntryId;
use crate::limits::{INSTANCE_BYTES, STOP_REASON_BYTES};
use crate::spiffe_id::SpiffeId;
use crate::time::UnixTime;

/// One process on one boot of a machine: the boot ID, the PID and the start time in clock ticks since boot, with slashes
/// between them. A PID alone is given to another process later.
///
/// Two instances are the same process only on the same node; nothing here says which node that is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Instance(Arc<str>);

/// What a stop is about. Each has at most one stop at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopTarget {
    /// All that an agent serves. It stays attested, and renews its own SVID.
    Agent(SpiffeId),
    /// All that an entry grants, on every node.
    Entry(EntryId),
    /// All that one process has or would get.
    Instance {
        /// The agent of its node.
        agent: SpiffeId,
        /// The process.
        instance: Instance,
    },
}

/// A stop: until it is taken back, nothing is minted for its target, and agents serve nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// What is stopped.
    pub target: StopTarget,
    /// Tells it from an earlier stop of the same target; a random text.
    pub id: String,
    /// Why, in the operator's words.
    pub reason: StopReason,
    /// Who made it, as the decision record shows callers.
    pub by: String,
    /// Since when.
    pub since: UnixTime,
    /// The revision that it was made in, so that it can be told who has heard of it.
    pub revision: u64,
}

/// Why something is stopped: 1 to [`STOP_REASON_BYTES`] bytes without control characters, not only spaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StopReason(String);

/// Why a text is no instance, or no reason.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StopError {
    /// Of another form than BOOT/PID/START.
    #[error("invalid instance: expected BOOT-ID/PID/START-TIME, as `passant explain` shows it on the node")]
    BadInstance,
    /// Nothing is said.
    #[error("a reason is needed: it goes on record")]
    NoReason,
    /// More than a line.
    #[error("reason is too long or holds control characters: at most {STOP_REASON_BYTES} bytes in one line")]
    BadReason,
}

impl Instance {
    /// The process `pid` of the boot `boot_id` that started `start` clock ticks after the boot.
    ///
    /// # Errors
    /// [`StopError::BadInstance`] for a boot ID that is empty, long or not of letters, digits and dashes.
    pub fn new(boot_id: &str, pid: u32, start: u64) -> Result<Self, StopError> {
        Self::parse(&format!("{boot_id}/{pid}/{start}"))
    }

    /// Checks and takes the text of an instance.
    ///
    /// # Errors
    /// [`StopError::BadInstance`].
    pub fn parse(text: &str) -> Result<Self, StopError> {
        let mut parts = text.split('/');
        let (boot, pid, start) = (parts.next(), parts.next(), parts.next());
        let is_boot =
            |b: &str| !b.is_empty() && b.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let fits = text.len() <= INSTANCE_BYTES
            && parts.next().is_none()
            && boot.is_some_and(is_boot)
            && pid.is_some_and(|pid| is_number::<u32>(pid) && pid != "0")
            && start.is_some_and(is_number::<u64>);
        if fits { Ok(Self(Arc::from(text))) } else { Err(StopError::BadInstance) }
    }

    /// The instance as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether the text is a number in its only form.
fn is_number<N: std::str::FromStr + ToString>(text: &str) -> bool {
    text.parse::<N>().is_ok_and(|number| number.to_string() == text)
}

impl StopReason {
    /// Checks and takes a reason.
    ///
    /// # Errors
    /// [`StopError::NoReason`] and [`StopError::BadReason`].
    pub fn parse(text: &str) -> Result<Self, StopError> {
        if text.trim().is_empty() {
            return Err(StopError::NoReason);
        }
        if text.len() > STOP_REASON_BYTES || text.chars().any(char::is_control) {
            return Err(StopError::BadReason);
        }
        Ok(Self(text.to_owned()))
    }

    /// The reason as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl StopTarget {
    /// The agent that alone it concerns, if it is about one.
    pub const fn agent(&self) -> Option<&SpiffeId> {
        match self {
            Self::Entry(_) => None,
            Self::Agent(agent) | Self::Instance { agent, .. } => Some(agent),
        }
    }
}

impl fmt::Display for StopTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(id) => write!(f, "entry {id}"),
            Self::Agent(agent) => write!(f, "agent {agent}"),
            Self::Instance { agent, instance } => write!(f, "instance {instance} of {agent}"),
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Instance {
    type Error = StopError;

    fn try_from(text: String) -> Result<Self, StopError> {
        Self::parse(&text)
    }
}

impl From<Instance> for String {
    fn from(instance: Instance) -> Self {
        instance.0.as_ref().to_owned()
    }
}

impl TryFrom<String> for StopReason {
    type Error = StopError;

    fn try_from(text: String) -> Result<Self, StopError> {
        Self::parse(&text)
    }
}

impl From<StopReason> for String {
    fn from(reason: StopReason) -> Self {
        reason.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_one_form_only() {
        let boot = "3b1f1b0e-95a9-4f5b-8b0e-1c2d3e4f5a6b";
        assert_eq!(Instance::new(boot, 7, 0).unwrap().as_str(), format!("{boot}/7/0"));
        let long = format!("{}/1/1", "a".repeat(INSTANCE_BYTES));
        for bad in
            ["", "a", "a/1", "a/1/2/3", "/1/2", "a/0/2", "a/01/2", "a/1/+2", "a/-1/2", "a b/1/2", &long]
        {
            assert_eq!(Instance::parse(bad), Err(StopError::BadInstance), "{bad:?}");
        }
        let longest = format!("{}/1/1", "a".repeat(INSTANCE_BYTES - 4));
        assert!(Instance::parse(&longest).is_ok());
        assert!(Instance::parse("a/4294967295/18446744073709551615").is_ok());
        assert!(Instance::parse("a/4294967296/1").is_err());
    }

    #[test]
    fn a_reason_says_something_in_one_line() {
        for (text, error) in [
            ("", StopError::NoReason),
            (" \t", StopError::NoReason),
            ("a\nb", StopError::BadReason),
            (&"a".repeat(STOP_REASON_BYTES + 1), StopError::BadReason),
        ] {
            assert_eq!(StopReason::parse(text), Err(error), "{text:?}");
        }
        assert!(StopReason::parse(&"a".repeat(STOP_REASON_BYTES)).is_ok());
        assert!(serde_json::from_str::<StopReason>("\"\"").is_err());
    }
}
