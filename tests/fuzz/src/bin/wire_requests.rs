//! Do IDs, selectors and filters from the wire hold what they are taken for?
//!
//! The first byte chooses the kind of message that the rest is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::{EntryDraft, EntryId, Selector};
use passant_fuzz::{EXAMPLE, NOW};
use passant_proto::convert::filter::{AgentFilter, EntryFilter};
use passant_proto::convert::{id, mask, selector};
use passant_proto::{agent, entry, types};
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, message)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => decoded(message, |wire| check_id(&wire)),
        1 => decoded(message, |wire: types::SelectorMatch| check_selectors(&wire.selectors)),
        2 => decoded(message, |wire| check_entries(&wire)),
        3 => decoded(message, |wire| check_agents(&wire)),
        _ => decoded(message, |mut wire: types::Agent| {
            let id = wire.id.clone();
            mask::agent(&mut wire, Some(&types::AgentMask::default()));
            assert_eq!(wire, types::Agent { id, ..Default::default() });
        }),
    }
});

fn decoded<M: Message + Default>(message: &[u8], check: impl FnOnce(M)) {
    if let Ok(wire) = M::decode(message) {
        check(wire);
    }
}

fn check_id(wire: &types::Spiffeid) {
    let Ok(read) = id::from_wire(Some(wire)) else {
        assert!(id::member_from_wire(&EXAMPLE, Some(wire)).is_err());
        return;
    };
    assert_eq!(id::from_wire(Some(&id::to_wire(&read))).ok().as_ref(), Some(&read));
    let member = id::member_from_wire(&EXAMPLE, Some(wire)).ok();
    let is_member = read.is_member_of(&EXAMPLE) && !read.is_trust_domain_id();
    assert_eq!(member.is_some(), is_member);
    assert_eq!(id::agent_from_wire(&EXAMPLE, Some(wire)).is_ok(), is_member && read.is_agent());
    assert_eq!(id::workload_from_wire(&EXAMPLE, Some(wire)).is_ok(), is_member && !read.is_reserved());
}

fn check_selectors(wire: &[types::Selector]) {
    let Ok(read) = selector::from_wire(wire) else { return };
    assert!(read.len() <= wire.len());
    assert_eq!(selector::from_wire(&selector::to_wire(&read)).ok(), Some(read));
}

fn check_entries(wire: &entry::list_entries_request::Filter) {
    let list = EntryFilter::from_list(&EXAMPLE, Some(wire));
    let count = EntryFilter::from_count(
        &EXAMPLE,
        Some(&entry::count_entries_request::Filter {
            by_spiffe_id: wire.by_spiffe_id.clone(),
            by_parent_id: wire.by_parent_id.clone(),
            by_selectors: wire.by_selectors.clone(),
            by_federates_with: wire.by_federates_with.clone(),
            by_hint: wire.by_hint.clone(),
            by_downstream: wire.by_downstream,
        }),
    );
    assert_eq!(format!("{list:?}"), format!("{count:?}"), "a list and its count agree");
    let Ok(filter) = list else { return };
    assert!(
        [&filter.spiffe_id, &filter.parent_id]
            .iter()
            .all(|id| id.as_ref().is_none_or(|id| id.is_member_of(&EXAMPLE)))
    );
    assert!(filter.selectors.as_ref().is_none_or(|(_, given)| !given.is_empty()));
    assert!(filter.federates_with.as_ref().is_none_or(|(_, given)| !given.is_empty()));

    // An entry made to fit passes, whatever the relation.
    let Some((_, given)) = &filter.selectors else { return };
    let path = |path| EXAMPLE.join(path).expect("a path");
    let spiffe_id = filter.spiffe_id.clone().unwrap_or_else(|| path("/w"));
    let parent_id = filter.parent_id.clone().unwrap_or_else(|| path("/p"));
    let mut draft = EntryDraft::new(spiffe_id, parent_id, given.clone());
    draft.hint = filter.hint.clone().unwrap_or_default();
    draft.downstream = filter.downstream.unwrap_or_default();
    draft.federates_with = filter.federates_with.clone().map(|(_, given)| given).unwrap_or_default();
    let id = EntryId::parse("e").expect("an entry ID");
    if let Ok(mut entry) = draft.register(&EXAMPLE, id, 1, NOW) {
        assert!(filter.passes(&entry), "{filter:?}");
        entry.selectors = [Selector::parse("no:such").expect("a selector")].into_iter().collect();
        assert!(given.contains_any(&entry.selectors) || !filter.passes(&entry));
    }
}

fn check_agents(wire: &agent::list_agents_request::Filter) {
    let list = AgentFilter::from_list(Some(wire));
    let count = AgentFilter::from_count(Some(&agent::count_agents_request::Filter {
        by_attestation_type: wire.by_attestation_type.clone(),
        by_selector_match: wire.by_selector_match.clone(),
        by_banned: wire.by_banned,
        by_can_reattest: wire.by_can_reattest,
        by_expires_before: wire.by_expires_before.clone(),
    }));
    assert_eq!(format!("{list:?}"), format!("{count:?}"), "a list and its count agree");
    let Ok(filter) = list else { return };
    assert_eq!(filter.expires_before.is_some(), !wire.by_expires_before.is_empty());
    assert!(filter.selectors.is_none_or(|(_, given)| !given.is_empty()));
}
