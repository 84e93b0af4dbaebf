//! What is wrong with this agent right now?

use std::collections::BTreeMap;
use std::fmt;

use tokio::sync::watch;
use tracing::{info, warn};

/// A part of the agent that can be in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Attestation of the node and renewal of its SVID.
    Node,
    /// What is kept in the data directory.
    Data,
    /// Learning what the server says.
    Sync,
    /// X509-SVIDs of workloads.
    Mint,
}

/// The troubles of an agent at one moment, at most one for each part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// What is wrong, for the operator.
    pub troubles: BTreeMap<Part, String>,
}

/// Where the parts report to.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    report: watch::Sender<HealthReport>,
}

impl HealthReport {
    /// Whether workloads can be expected to get what they ask for.
    pub fn is_ready(&self) -> bool {
        self.troubles.is_empty()
    }
}

impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ready() {
            return f.write_str("ready");
        }
        let all: Vec<String> = self.troubles.iter().map(|(part, why)| format!("{part}: {why}")).collect();
        f.write_str(&all.join("; "))
    }
}

impl Health {
    /// An agent that has just started.
    pub(crate) fn new() -> Self {
        let troubles = BTreeMap::from([(Part::Sync, "not yet synced".to_owned())]);
        Self { report: watch::Sender::new(HealthReport { troubles }) }
    }

    /// Follows the report.
    pub(crate) fn watch(&self) -> watch::Receiver<HealthReport> {
        self.report.subscribe()
    }

    /// `part` works; said once in the log.
    pub(crate) fn good(&self, part: Part) {
        self.report.send_if_modified(|report| {
            let was_bad = report.troubles.remove(&part).is_some();
            if was_bad {
                info!(%part, "in order");
            }
            was_bad
        });
    }

    /// `part` does not work; said in the log when the words change.
    pub(crate) fn bad(&self, part: Part, why: &str) {
        self.report.send_if_modified(|report| {
            let is_new = report.troubles.get(&part).is_none_or(|known| known != why);
            if is_new {
                warn!(%part, why, "in trouble");
                report.troubles.insert(part, why.to_owned());
            }
            is_new
        });
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Data => "data",
            Self::Sync => "sync",
            Self::Mint => "mint",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_once_every_trouble_is_over() {
        let health = Health::new();
        assert!(!health.watch().borrow().is_ready());
        health.bad(Part::Node, "banned");
        health.good(Part::Sync);
        assert_eq!(health.watch().borrow().to_string(), "node: banned");
        health.good(Part::Node);
        assert!(health.watch().borrow().is_ready());
    }

    #[test]
    fn watchers_are_woken_only_by_a_change() {
        let health = Health::new();
        let mut watch = health.watch();
        health.bad(Part::Sync, "down");
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        health.bad(Part::Sync, "down");
        health.good(Part::Data);
        assert!(!watch.has_changed().unwrap());
    }
}
