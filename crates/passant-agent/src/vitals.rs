//! Can this agent be relied on?
//!
//! An agent whose server is away is ready as long as it can serve: what it holds stays valid, and nobody is helped if an
//! orchestrator takes it out or starts it anew. It is not ready when workloads would ask in vain: before the first sync,
//! when its node was banned, when the node's own SVID has expired or was never had, and when minting fails and no valid
//! X509-SVID is left.

use std::collections::BTreeMap;

use passant_core::{Host, UnixTime};
use passant_daemon::metrics::{Registry, encode};
use passant_daemon::vitals::{Parts, Readiness, Vitals};
use tokio::sync::watch;

use crate::cache::Cache;
use crate::connect::Link;
use crate::health::{HealthReport, Part};

/// What an agent says about itself.
pub(crate) struct AgentVitals {
    pub(crate) health: watch::Receiver<HealthReport>,
    pub(crate) cache: Cache,
    pub(crate) link: Link,
    pub(crate) host: Host,
    pub(crate) parts: Parts,
    pub(crate) registries: Vec<Registry>,
}

/// What readiness is judged by.
#[derive(Clone, Copy, Debug)]
struct Standing {
    now: UnixTime,
    /// The end of the node's SVID.
    not_after: Option<UnixTime>,
    has_synced: bool,
    /// There are entries, and none has a valid X509-SVID.
    lacks_all: bool,
}

fn judge(report: &HealthReport, standing: Standing) -> Readiness {
    let mut readiness = Readiness::default();
    let why = |part: Part, otherwise: &str| {
        report.troubles.get(&part).cloned().unwrap_or_else(|| otherwise.to_owned())
    };
    match standing.not_after {
        None => readiness.trouble(Part::Node, why(Part::Node, "no node SVID is held")),
        Some(end) if end <= standing.now => {
            readiness.trouble(Part::Node, why(Part::Node, &format!("the node SVID expired {end}")));
        }
        Some(_) => {}
    }
    if !standing.has_synced {
        readiness.trouble(Part::Sync, why(Part::Sync, "not yet synced"));
    }
    if let Some(why) = report.troubles.get(&Part::Mint)
        && standing.lacks_all
    {
        readiness.trouble(Part::Mint, why);
    }
    for (part, why) in &report.troubles {
        if !readiness.troubles.contains_key(&part.to_string()) {
            readiness.degraded(part, why);
        }
    }
    readiness
}

impl Vitals for AgentVitals {
    fn readiness(&self) -> Readiness {
        let standing = Standing {
            now: self.host.now(),
            not_after: self.link.not_after(),
            has_synced: self.cache.confirmed_at().is_some(),
            lacks_all: self.cache.lacks_all(),
        };
        judge(&self.health.borrow(), standing)
    }

    fn dead(&self) -> BTreeMap<String, String> {
        self.parts.dead()
    }

    fn metrics(&self) -> String {
        encode(&self.registries).expect("writing text to memory succeeds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Standing = Standing {
        now: UnixTime::from_secs(100),
        not_after: Some(UnixTime::from_secs(101)),
        has_synced: true,
        lacks_all: false,
    };

    fn check(troubles: &[(Part, &str)], standing: Standing, not_ready: &[&str], degraded: &[&str]) {
        let troubles = troubles.iter().map(|(part, why)| (*part, (*why).to_owned())).collect();
        let readiness = judge(&HealthReport { troubles }, standing);
        assert_eq!(readiness.troubles.keys().collect::<Vec<_>>(), not_ready, "{readiness:?}");
        assert_eq!(readiness.degraded.keys().collect::<Vec<_>>(), degraded, "{readiness:?}");
    }

    #[test]
    fn an_agent_whose_server_is_away_is_ready_as_long_as_it_can_serve() {
        check(&[], WELL, &[], &[]);
        check(&[(Part::Sync, "down"), (Part::Mint, "down")], WELL, &[], &["mint", "sync"]);
        check(&[(Part::Node, "down")], WELL, &[], &["node"]);
        check(&[(Part::Node, "down")], Standing { now: UnixTime::from_secs(101), ..WELL }, &["node"], &[]);
    }

    #[test]
    fn an_agent_that_cannot_serve_is_not_ready() {
        check(&[], Standing { has_synced: false, ..WELL }, &["sync"], &[]);
        check(&[(Part::Data, "full")], Standing { not_after: None, ..WELL }, &["node"], &["data"]);
        let bare = Standing { lacks_all: true, ..WELL };
        check(&[(Part::Mint, "refused")], bare, &["mint"], &[]);
        // It has just synced, and what it lacks is under way.
        check(&[], bare, &[], &[]);
    }
}
