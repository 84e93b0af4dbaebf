//! Which fields does a mask leave?

use crate::types;

/// Clears what `mask` does not name. Without a mask everything stays; the ID always does.
pub fn entry(entry: &mut types::Entry, mask: Option<&types::EntryMask>) {
    let Some(mask) = mask else { return };
    // Taken apart in full, so that a new field cannot be forgotten.
    let types::EntryMask {
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        federates_with,
        admin,
        downstream,
        expires_at,
        dns_names,
        revision_number,
        store_svid,
        jwt_svid_ttl,
        hint,
        created_at,
        additional_attributes,
    } = mask;
    keep(&mut entry.spiffe_id, *spiffe_id);
    keep(&mut entry.parent_id, *parent_id);
    keep(&mut entry.selectors, *selectors);
    keep(&mut entry.x509_svid_ttl, *x509_svid_ttl);
    keep(&mut entry.federates_with, *federates_with);
    keep(&mut entry.admin, *admin);
    keep(&mut entry.downstream, *downstream);
    keep(&mut entry.expires_at, *expires_at);
    keep(&mut entry.dns_names, *dns_names);
    keep(&mut entry.revision_number, *revision_number);
    keep(&mut entry.store_svid, *store_svid);
    keep(&mut entry.jwt_svid_ttl, *jwt_svid_ttl);
    keep(&mut entry.hint, *hint);
    keep(&mut entry.created_at, *created_at);
    keep(&mut entry.additional_attributes, *additional_attributes);
}

/// Clears what `mask` does not name. Without a mask everything stays; the SPIFFE ID always does.
pub fn agent(agent: &mut types::Agent, mask: Option<&types::AgentMask>) {
    let Some(mask) = mask else { return };
    let types::AgentMask {
        attestation_type,
        x509svid_serial_number,
        x509svid_expires_at,
        selectors,
        banned,
        can_reattest,
        agent_version,
    } = mask;
    keep(&mut agent.attestation_type, *attestation_type);
    keep(&mut agent.x509svid_serial_number, *x509svid_serial_number);
    keep(&mut agent.x509svid_expires_at, *x509svid_expires_at);
    keep(&mut agent.selectors, *selectors);
    keep(&mut agent.banned, *banned);
    keep(&mut agent.can_reattest, *can_reattest);
    keep(&mut agent.agent_version, *agent_version);
}

/// Clears what `mask` does not name. Without a mask everything stays; the trust domain always does.
pub fn bundle(bundle: &mut types::Bundle, mask: Option<&types::BundleMask>) {
    let Some(mask) = mask else { return };
    let types::BundleMask {
        x509_authorities,
        jwt_authorities,
        refresh_hint,
        sequence_number,
        wit_authorities,
    } = mask;
    keep(&mut bundle.x509_authorities, *x509_authorities);
    keep(&mut bundle.jwt_authorities, *jwt_authorities);
    keep(&mut bundle.refresh_hint, *refresh_hint);
    keep(&mut bundle.sequence_number, *sequence_number);
    keep(&mut bundle.wit_authorities, *wit_authorities);
}

/// Clears what `mask` does not name. Without a mask everything stays; the trust domain always does.
pub fn relationship(
    relationship: &mut types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) {
    let Some(mask) = mask else { return };
    let types::FederationRelationshipMask {
        bundle_endpoint_url,
        bundle_endpoint_profile,
        trust_domain_bundle,
    } = mask;
    keep(&mut relationship.bundle_endpoint_url, *bundle_endpoint_url);
    keep(&mut relationship.bundle_endpoint_profile, *bundle_endpoint_profile);
    keep(&mut relationship.trust_domain_bundle, *trust_domain_bundle);
}

fn keep<T: Default>(field: &mut T, wanted: bool) {
    if !wanted {
        *field = T::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost::encoding::{DecodeContext, decode_key, encode_varint, skip_field};

    use super::*;

    /// The numbers of the fields that are set.
    fn numbers(message: &impl Message) -> BTreeSet<u32> {
        let bytes = message.encode_to_vec();
        let mut rest = bytes.as_slice();
        let mut numbers = BTreeSet::new();
        while !rest.is_empty() {
            let (number, wire_type) = decode_key(&mut rest).unwrap();
            skip_field(wire_type, number, &mut rest, DecodeContext::default()).unwrap();
            numbers.insert(number);
        }
        numbers
    }

    /// Every field of `whole` is set. Under a mask of one field, that one and the ID are left.
    fn check<M: Message + Clone, K: Message + Default>(whole: &M, last: u32, apply: fn(&mut M, Option<&K>)) {
        assert_eq!(numbers(whole), (1..=last).collect());
        let under = |mask: Option<&K>| {
            let mut masked = whole.clone();
            apply(&mut masked, mask);
            numbers(&masked)
        };
        assert_eq!(under(None), (1..=last).collect());
        assert_eq!(under(Some(&K::default())), [1].into());
        for number in 2..=last {
            let mut mask = Vec::new();
            encode_varint(u64::from(number) << 3, &mut mask);
            mask.push(1);
            assert_eq!(under(Some(&K::decode(mask.as_slice()).unwrap())), [1, number].into());
        }
    }

    #[test]
    fn an_entry_keeps_what_is_named() {
        let whole = types::Entry {
            id: "a".to_owned(),
            spiffe_id: Some(types::Spiffeid::default()),
            parent_id: Some(types::Spiffeid::default()),
            selectors: vec![types::Selector::default()],
            x509_svid_ttl: 1,
            federates_with: vec!["a".to_owned()],
            admin: true,
            downstream: true,
            expires_at: 1,
            dns_names: vec!["a".to_owned()],
            revision_number: 1,
            store_svid: true,
            jwt_svid_ttl: 1,
            hint: "a".to_owned(),
            created_at: 1,
            additional_attributes: Some(types::entry::AdditionalAttributes::default()),
        };
        check(&whole, 16, entry);
    }

    #[test]
    fn an_agent_keeps_what_is_named() {
        let whole = types::Agent {
            id: Some(types::Spiffeid::default()),
            attestation_type: "a".to_owned(),
            x509svid_serial_number: "1".to_owned(),
            x509svid_expires_at: 1,
            selectors: vec![types::Selector::default()],
            banned: true,
            can_reattest: true,
            agent_version: "a".to_owned(),
        };
        check(&whole, 8, agent);
    }

    #[test]
    fn a_bundle_keeps_what_is_named() {
        let whole = types::Bundle {
            trust_domain: "a".to_owned(),
            x509_authorities: vec![types::X509Certificate::default()],
            jwt_authorities: vec![types::JwtKey::default()],
            refresh_hint: 1,
            sequence_number: 1,
            wit_authorities: vec![types::WitKey::default()],
        };
        check(&whole, 6, bundle);
    }

    /// Its mask has numbers of its own.
    #[test]
    fn a_relationship_keeps_what_is_named() {
        use types::federation_relationship::BundleEndpointProfile;
        let whole = types::FederationRelationship {
            trust_domain: "a".to_owned(),
            bundle_endpoint_url: "b".to_owned(),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
            trust_domain_bundle: Some(types::Bundle::default()),
        };
        let under = |mask: Option<[bool; 3]>| {
            let mask = mask.map(|[url, profile, bundle]| types::FederationRelationshipMask {
                bundle_endpoint_url: url,
                bundle_endpoint_profile: profile,
                trust_domain_bundle: bundle,
            });
            let mut masked = whole.clone();
            relationship(&mut masked, mask.as_ref());
            numbers(&masked)
        };
        assert_eq!(under(None), [1, 2, 3, 5].into());
        assert_eq!(under(Some([false; 3])), [1].into());
        assert_eq!(under(Some([true, false, false])), [1, 2].into());
        assert_eq!(under(Some([false, true, false])), [1, 3].into());
        assert_eq!(under(Some([false, false, true])), [1, 5].into());
    }
}
