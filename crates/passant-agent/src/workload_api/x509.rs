//! What do the X.509 streams of the Workload API say?

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use passant_core::{AuthorizedEntry, EntryId};
use passant_proto::convert::workload::{X509Identity, x509_bundles, x509_svids};
use passant_proto::workload::{X509BundlesResponse, X509svidResponse};

use crate::cache::Identities;

/// X509-SVIDs with keys and bundles, in entry-id order: the first is the default identity.
pub(super) fn svids() -> impl FnMut(&Arc<Identities>) -> Option<X509svidResponse> + Send + 'static {
    let mut told: Option<Arc<Identities>> = None;
    move |identities| {
        if told.as_ref().is_some_and(|told| says_the_same(told, identities)) {
            return None;
        }
        // Kept instead of the message, which holds the keys in the clear.
        told = Some(Arc::clone(identities));
        Some(svid_message(identities))
    }
}

/// The X.509 authorities of the own and of federated trust domains.
pub(super) fn bundles() -> impl FnMut(&Arc<Identities>) -> Option<X509BundlesResponse> + Send + 'static {
    let mut told = None;
    move |identities| {
        let message = x509_bundles(all_bundles(identities));
        if told.as_ref() == Some(&message) {
            return None;
        }
        told = Some(message.clone());
        Some(message)
    }
}

/// The own bundle, then the federated ones.
pub(super) fn all_bundles(identities: &Identities) -> impl Iterator<Item = &passant_core::Bundle> {
    iter::once(&*identities.bundle).chain(identities.federated.values().map(|bundle| &**bundle))
}

/// Which entry keeps its hint, where several have the same: the oldest, then the one with the lowest id.
///
/// The others are served without one. SPIRE leaves such an SVID out; but each identity must be served (Workload API
/// 5.2.1), and a hint must not come twice.
pub(super) fn hint_owners<'a>(
    entries: impl Iterator<Item = &'a AuthorizedEntry>,
) -> BTreeMap<&'a str, &'a EntryId> {
    let mut owners: BTreeMap<&str, &AuthorizedEntry> = BTreeMap::new();
    for entry in entries.filter(|entry| !entry.hint.is_empty()) {
        let owner = owners.entry(&entry.hint).or_insert(entry);
        if (entry.created_at, &entry.id) < (owner.created_at, &owner.id) {
            *owner = entry;
        }
    }
    owners.into_iter().map(|(hint, owner)| (hint, &owner.id)).collect()
}

/// The hint of `entry` as it is served.
pub(super) fn served_hint<'a>(entry: &'a AuthorizedEntry, owners: &BTreeMap<&str, &EntryId>) -> &'a str {
    if owners.get(entry.hint.as_str()) == Some(&&entry.id) { &entry.hint } else { "" }
}

fn svid_message(identities: &Identities) -> X509svidResponse {
    let owners = hint_owners(identities.svids.iter().map(|identity| &*identity.entry));
    let svids = identities.svids.iter().map(|identity| X509Identity {
        svid: &identity.svid,
        key: &identity.key,
        bundle: &identities.bundle,
        hint: served_hint(&identity.entry, &owners),
    });
    x509_svids(svids, identities.federated.values().map(|bundle| &**bundle))
}

fn says_the_same(one: &Identities, two: &Identities) -> bool {
    let hints = |it: &Identities| {
        let owners = hint_owners(it.svids.iter().map(|identity| &*identity.entry));
        let hints = it.svids.iter().map(|identity| served_hint(&identity.entry, &owners).to_owned());
        hints.collect::<Vec<_>>()
    };
    let bundles = |it: &Identities| {
        all_bundles(it).map(|bundle| (bundle.trust_domain.clone(), bundle.x509_der())).collect::<Vec<_>>()
    };
    one.svids.len() == two.svids.len()
        && iter::zip(&one.svids, &two.svids).all(|(one, two)| {
            one.svid.chain() == two.svid.chain()
                && (Arc::ptr_eq(&one.key, &two.key) || one.key.expose() == two.key.expose())
        })
        && hints(one) == hints(two)
        && bundles(one) == bundles(two)
}

#[cfg(test)]
mod tests {
    use passant_core::{Selectors, SpiffeId, UnixTime};

    use super::*;

    fn entry(id: &str, hint: &str, created_at: i64) -> AuthorizedEntry {
        AuthorizedEntry {
            id: EntryId::parse(id).unwrap(),
            spiffe_id: SpiffeId::parse("spiffe://example.org/w").unwrap(),
            selectors: Selectors::new(),
            federates_with: [].into(),
            admin: false,
            downstream: false,
            store_svid: false,
            hint: hint.to_owned(),
            jwt_svid_include_jti: false,
            disable_x509_svid_prefetch: false,
            options: passant_core::entry::EntryOptions::default(),
            revision: 0,
            created_at: UnixTime::from_secs(created_at),
        }
    }

    fn check(entries: &[(&str, &str, i64)], served: &[&str]) {
        let entries: Vec<_> = entries.iter().map(|(id, hint, at)| entry(id, hint, *at)).collect();
        let owners = hint_owners(entries.iter());
        let hints: Vec<_> = entries.iter().map(|entry| served_hint(entry, &owners)).collect();
        assert_eq!(hints, served);
    }

    #[test]
    fn the_oldest_entry_keeps_a_hint_and_then_the_lowest_id() {
        check(&[("a", "x", 2), ("b", "x", 1)], &["", "x"]);
        check(&[("a", "x", 1), ("b", "x", 1)], &["x", ""]);
        check(&[("a", "x", 1), ("b", "y", 1), ("c", "", 1), ("d", "", 1)], &["x", "y", "", ""]);
    }
}
