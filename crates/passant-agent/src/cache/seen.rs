//! What is a workload told, and does it learn anything new from it?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use passant_core::bundle::Bundle;
use passant_core::x509_svid::X509Svid;
use passant_core::{AuthorizedEntry, Secret, TrustDomain};

/// What a workload may see now.
#[derive(Clone, Debug)]
pub enum Update {
    /// Not known yet, or not valid any more; the text says why and is safe for a stranger. Answer Unavailable.
    NotReady(String),
    /// No entry matches, in a view that the server confirmed within the last 30 s. Answer PermissionDenied.
    NoIdentity,
    /// Every SVID here is unexpired at the time of [`super::Subscription::current`]. The first one of a subscription holds an
    /// SVID for each matching entry; later ones may lack those that have just appeared or have expired.
    Ready(Arc<Identities>),
}

impl Update {
    /// Whether a workload that has `other` learns nothing from `self`.
    pub(super) fn tells_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NotReady(one), Self::NotReady(two)) => one == two,
            (Self::NoIdentity, Self::NoIdentity) => true,
            (Self::Ready(one), Self::Ready(two)) => one.tells_the_same_as(two),
            (Self::NotReady(_) | Self::NoIdentity | Self::Ready(_), _) => false,
        }
    }
}

/// The identities of one workload and the bundles to verify its peers with.
#[derive(Clone, Debug)]
pub struct Identities {
    /// In entry-id order; never empty. Hints may repeat: the Workload API decides which one is served.
    pub svids: Vec<Identity>,
    /// The bundle of the own trust domain.
    pub bundle: Arc<Bundle>,
    /// The bundles of the trust domains that the matching entries federate with, as far as they are held.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Identities {
    pub(super) fn tells_the_same_as(&self, other: &Self) -> bool {
        self.svids.len() == other.svids.len()
            && self.svids.iter().zip(&other.svids).all(|(one, two)| {
                Arc::ptr_eq(&one.svid, &two.svid)
                    && one.entry.id == two.entry.id
                    && one.entry.hint == two.entry.hint
            })
            && Arc::ptr_eq(&self.bundle, &other.bundle)
            && self.federated.len() == other.federated.len()
            && self
                .federated
                .iter()
                .zip(&other.federated)
                .all(|(one, two)| one.0 == two.0 && Arc::ptr_eq(one.1, two.1))
    }
}

/// One X509-SVID with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The entry it was issued for.
    pub entry: Arc<AuthorizedEntry>,
    /// The chain, leaf first, without the root.
    pub svid: Arc<X509Svid>,
    /// The private key, PKCS#8 DER.
    pub key: Arc<Secret<Vec<u8>>>,
}

/// The bundles held.
#[derive(Clone, Debug, Default)]
pub struct Bundles {
    /// The bundle of the own trust domain; none before the first attestation.
    pub own: Option<Arc<Bundle>>,
    /// The bundles of federated trust domains.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl Bundles {
    /// The bundle of `trust_domain`, own or federated.
    pub fn of(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.own
            .as_ref()
            .filter(|own| own.trust_domain == *trust_domain)
            .or_else(|| self.federated.get(trust_domain))
            .map(Arc::clone)
    }

    /// What remains for a workload that has `entries`: the own bundle, and those its entries federate with.
    #[must_use]
    pub fn for_entries(&self, entries: &[Arc<AuthorizedEntry>]) -> Self {
        let wanted: BTreeSet<&TrustDomain> = entries.iter().flat_map(|entry| &entry.federates_with).collect();
        Self {
            own: self.own.clone(),
            federated: self
                .federated
                .iter()
                .filter(|(trust_domain, _)| wanted.contains(trust_domain))
                .map(|(trust_domain, bundle)| (trust_domain.clone(), Arc::clone(bundle)))
                .collect(),
        }
    }
}
