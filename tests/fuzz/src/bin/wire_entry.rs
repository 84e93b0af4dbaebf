//! Does a registration entry keep its value on its way from the wire and back, and under every mask?
//!
//! The first two bytes are the mask, the rest is the entry's message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::limits::{DNS_NAMES, ENTRY_FEDERATES_WITH, ENTRY_SELECTORS, HINT_BYTES, SVID_TTL_MAX};
use passant_core::{Entry, EntryDraft, EntryId, Selector, TrustDomain};
use passant_fuzz::{EXAMPLE, NOW};
use passant_proto::convert::{entry, mask};
use passant_proto::types;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some((bits, message)) = bytes.split_first_chunk::<2>() else { return };
    let Ok(wire) = types::Entry::decode(message) else { return };
    let mask = mask_of(u16::from_be_bytes(*bits));
    let masked = {
        let mut masked = wire.clone();
        mask::entry(&mut masked, Some(&mask));
        masked
    };
    let old = old();
    let changed = entry::apply_update(&old, &wire, Some(&mask)).ok();
    assert_eq!(changed, entry::apply_update(&old, &masked, Some(&mask)).ok(), "a mask names what is read");
    if let Some(registered) = changed.and_then(registered) {
        check_round_trip(&registered);
    }
    check_authorized(&wire);

    let Ok(draft) = entry::draft_from_wire(&wire) else { return };
    let updated = entry::apply_update(&old, &wire, None).expect("its fields are well formed");
    assert_eq!(EntryDraft { id: draft.id.clone(), ..updated }, draft);
    if let Some(registered) = registered(draft) {
        check_registered(&registered);
        check_round_trip(&registered);
    }
});

fn check_registered(entry: &Entry) {
    assert!(entry.spiffe_id.is_member_of(&EXAMPLE) && entry.parent_id.is_member_of(&EXAMPLE));
    assert!(!entry.spiffe_id.is_reserved() && !entry.spiffe_id.is_trust_domain_id());
    assert!((1..=ENTRY_SELECTORS).contains(&entry.selectors.len()));
    assert!(entry.dns_names.len() <= DNS_NAMES && entry.federates_with.len() <= ENTRY_FEDERATES_WITH);
    assert!(entry.hint.len() <= HINT_BYTES && !entry.federates_with.contains(&EXAMPLE));
    assert!([entry.x509_svid_ttl, entry.jwt_svid_ttl].iter().flatten().all(|ttl| *ttl <= SVID_TTL_MAX));
}

/// To the wire and back, to JSON and back, and as an agent hears of it.
fn check_round_trip(entry: &Entry) {
    let wire = entry::to_wire(entry);
    let decoded = types::Entry::decode(wire.encode_to_vec().as_slice()).expect("it was encoded here");
    let draft = entry::draft_from_wire(&decoded).expect("it came from an entry");
    assert_eq!(EntryDraft { id: Some(entry.id.clone()), ..draft }, entry.to_draft());
    let stored = serde_json::to_vec(entry).expect("it has a stored form");
    assert_eq!(serde_json::from_slice::<Entry>(&stored).ok().as_ref(), Some(entry));
    let authorized = entry::authorized_from_wire(&wire).expect("it came from an entry");
    assert_eq!((&authorized.spiffe_id, &authorized.selectors), (&entry.spiffe_id, &entry.selectors));
    assert_eq!((authorized.revision, authorized.created_at), (entry.revision, entry.created_at));
}

/// What an agent asks for is all that it reads.
fn check_authorized(wire: &types::Entry) {
    let full = entry::authorized_from_wire(wire).ok();
    let mut asked = wire.clone();
    mask::entry(&mut asked, Some(&entry::AUTHORIZED));
    assert_eq!(full, entry::authorized_from_wire(&asked).ok());
    assert!(full.is_none_or(|entry| !entry.selectors.is_empty() && !entry.spiffe_id.is_reserved()));
}

fn registered(draft: EntryDraft) -> Option<Entry> {
    draft.register(&EXAMPLE, EntryId::parse("e").expect("an entry ID"), 3, NOW).ok()
}

fn old() -> Entry {
    let id = |path| EXAMPLE.join(path).expect("a path");
    let selectors = [Selector::parse("unix:uid:0").expect("a selector")].into_iter().collect();
    let mut draft = EntryDraft::new(id("/old"), id("/spire/agent/a"), selectors);
    draft.hint = "old".to_owned();
    draft.federates_with.insert(TrustDomain::parse("old.org").expect("a trust domain"));
    draft.dns_names.push("old".to_owned());
    registered(draft).expect("a sound entry")
}

fn mask_of(bits: u16) -> types::EntryMask {
    let bit = |at: u32| bits >> at & 1 == 1;
    types::EntryMask {
        spiffe_id: bit(0),
        parent_id: bit(1),
        selectors: bit(2),
        x509_svid_ttl: bit(3),
        federates_with: bit(4),
        admin: bit(5),
        downstream: bit(6),
        expires_at: bit(7),
        dns_names: bit(8),
        revision_number: bit(9),
        store_svid: bit(10),
        jwt_svid_ttl: bit(11),
        hint: bit(12),
        created_at: bit(13),
        additional_attributes: bit(14),
    }
}
