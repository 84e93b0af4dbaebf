//! Has the own bundle lost an authority since a chain was verified?
//!
//! A chain that verifies still does when authorities join: only when one leaves has it to be verified again. Ten thousand agents
//! that are told of a new authority would otherwise each cost a signature's verification.

use std::sync::{Arc, Mutex, PoisonError};

use passant_core::Bundle;

/// The newest own bundle that a chain was held against, and its mark.
#[derive(Debug, Default)]
pub(super) struct Anchors(Mutex<Option<Newest>>);

#[derive(Debug)]
struct Newest {
    bundle: Arc<Bundle>,
    mark: u64,
}

impl Anchors {
    /// The mark of an own bundle: what verified against one with the same mark verifies against this one. 0 for a bundle that is
    /// not the newest: of that nothing is known.
    pub(super) fn mark(&self, bundle: &Arc<Bundle>) -> u64 {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = match &*newest {
            None => 1,
            Some(newest) if Arc::ptr_eq(&newest.bundle, bundle) => return newest.mark,
            Some(newest) if newest.bundle.sequence >= bundle.sequence => return 0,
            Some(newest) if has_all(bundle, &newest.bundle) => newest.mark,
            Some(newest) => newest.mark + 1,
        };
        *newest = Some(Newest { bundle: Arc::clone(bundle), mark });
        mark
    }
}

/// Whether `bundle` has all X.509 authorities of `other`. Tainted ones count: they are anchors like the others.
fn has_all(bundle: &Bundle, other: &Bundle) -> bool {
    let has = |der: &[u8]| bundle.x509_authorities.iter().any(|authority| authority.der == der);
    other.x509_authorities.iter().all(|authority| has(&authority.der))
}

#[cfg(test)]
mod tests {
    use passant_core::X509Authority;

    use super::*;
    use crate::state::samples::{bundle, trust_domain};

    fn with(sequence: u64, authorities: &[u8]) -> Arc<Bundle> {
        let mut bundle = Bundle::clone(&bundle(trust_domain(), sequence, 10));
        let authority = |byte: &u8| X509Authority { der: vec![*byte; 8], tainted: false };
        bundle.x509_authorities = authorities.iter().map(authority).collect();
        Arc::new(bundle)
    }

    #[test]
    fn a_mark_holds_until_an_authority_leaves() {
        let anchors = Anchors::default();
        let first = with(1, &[1]);
        assert_eq!((anchors.mark(&first), anchors.mark(&first)), (1, 1));
        let joined = with(2, &[2, 1]);
        assert_eq!(anchors.mark(&joined), 1);
        let left = with(3, &[2]);
        assert_eq!((anchors.mark(&left), anchors.mark(&left)), (2, 2));
        assert_eq!(anchors.mark(&with(4, &[1, 2])), 2, "what verified against the second alone still does");
        assert_eq!(anchors.mark(&with(5, &[3, 1])), 3, "as many, and others");
    }

    #[test]
    fn of_a_bundle_that_is_not_the_newest_nothing_is_known() {
        let anchors = Anchors::default();
        let (old, new) = (with(1, &[1, 2]), with(2, &[1, 2]));
        assert_eq!((anchors.mark(&old), anchors.mark(&new)), (1, 1));
        assert_eq!((anchors.mark(&old), anchors.mark(&with(2, &[1, 2]))), (0, 0));
        assert_eq!(anchors.mark(&new), 1);
    }
}
