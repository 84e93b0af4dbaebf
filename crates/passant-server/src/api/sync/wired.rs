//! What has a bundle on the wire, made once for all agents that are sent it?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use passant_core::{Bundle, TrustDomain};
use passant_proto::convert;
use passant_proto::shared::Shared;
use passant_proto::types;

/// The newest bundle of each trust domain, as agents are sent it. There are no more than the state has.
#[derive(Debug, Default)]
pub(crate) struct Wired(Mutex<BTreeMap<TrustDomain, Known>>);

#[derive(Debug)]
struct Known {
    of: Arc<Bundle>,
    wire: Shared<types::Bundle>,
}

impl Wired {
    /// `bundle`, as all agents get it.
    pub(super) fn of(&self, bundle: &Arc<Bundle>) -> Shared<types::Bundle> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&bundle.trust_domain).filter(|known| Arc::ptr_eq(&known.of, bundle)) {
            return known.wire.clone();
        }
        // Nobody but this table holds them: neither the state nor a watch.
        known.retain(|_, known| Arc::strong_count(&known.of) > 1);
        let wire = Shared::from(convert::bundle::to_wire(bundle));
        let now = Known { of: Arc::clone(bundle), wire: wire.clone() };
        known.insert(bundle.trust_domain.clone(), now);
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{bundle, other_trust_domain, trust_domain};

    #[test]
    fn a_bundle_is_made_once_and_again_when_it_has_changed() {
        let wired = Wired::default();
        let (first, second) = (bundle(trust_domain(), 1, 10), bundle(trust_domain(), 2, 10));
        let is_one = |a: &Shared<types::Bundle>, b: &Shared<types::Bundle>| std::ptr::eq(&**a, &**b);
        let sent = wired.of(&first);
        assert!(is_one(&sent, &wired.of(&first)));
        assert_eq!(*sent, convert::bundle::to_wire(&first));
        let changed = wired.of(&second);
        assert!(!is_one(&sent, &changed) && is_one(&changed, &wired.of(&second)));
        assert_eq!(changed.sequence_number, 2);
    }

    #[test]
    fn a_bundle_that_nobody_has_is_not_kept() {
        let wired = Wired::default();
        wired.of(&bundle(other_trust_domain(), 1, 10));
        let own = bundle(trust_domain(), 1, 10);
        wired.of(&own);
        assert_eq!(wired.0.lock().unwrap().keys().collect::<Vec<_>>(), [&trust_domain()]);
    }
}
