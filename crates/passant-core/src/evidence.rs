//! What does an agent know of the process for which it has an SVID minted?

use crate::selector::Selectors;
use crate::stop::Instance;
use crate::time::UnixTime;

/// What workload attestation found out about one process, and when.
///
/// A server believes its agents in this, as it does in all that they say of their node; it holds it against the entry all
/// the same, and puts it on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What was found out. All selectors of the entry have to be among them.
    pub selectors: Selectors,
    /// The process.
    pub instance: Instance,
    /// The workload attestors that answered, in order of their names.
    pub attestors: Vec<String>,
    /// When, by the agent's clock.
    pub attested_at: UnixTime,
}
