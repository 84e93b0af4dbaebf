//! Can this server be relied on?

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use passant_core::Host;
use passant_daemon::metrics::{Registry, encode};
use passant_daemon::vitals::{Parts, Readiness, Vitals};

use crate::authority::Authorities;
use crate::journal::Journal;
use crate::record::DecisionLog;

/// What a server says about itself.
pub(crate) struct ServerVitals {
    pub(crate) journal: Journal,
    pub(crate) record: DecisionLog,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) host: Host,
    pub(crate) parts: Parts,
    pub(crate) registries: Vec<Registry>,
    /// Why authorities could not be kept up at the last look.
    pub(crate) not_kept: Arc<ArcSwapOption<String>>,
}

impl Vitals for ServerVitals {
    /// Not ready when nothing can be changed or signed. Authorities that cannot be kept up are a trouble only once they
    /// have expired: until then all is issued as ever.
    fn readiness(&self) -> Readiness {
        let mut readiness = Readiness::default();
        if let Some(why) = self.journal.fault() {
            readiness.trouble("store", why.as_str());
        }
        if let Some(why) = self.record.fault() {
            readiness.trouble("decision_record", why.as_str());
        }
        let now = self.host.now();
        for (name, not_after) in [
            ("x509_authority", self.authorities.x509().not_after()),
            ("jwt_authority", self.authorities.jwt().not_after()),
        ] {
            if not_after <= now {
                readiness.trouble(name, format!("the active authority expired {not_after}"));
            }
        }
        if let Some(why) = self.not_kept.load_full() {
            readiness.degraded("authorities", why.as_str());
        }
        readiness
    }

    fn dead(&self) -> BTreeMap<String, String> {
        self.parts.dead()
    }

    fn metrics(&self) -> String {
        encode(&self.registries).expect("writing text to memory succeeds")
    }
}
