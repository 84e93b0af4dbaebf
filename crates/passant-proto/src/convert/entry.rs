//! How does a registration entry convert?

use std::collections::BTreeSet;
use std::time::Duration;

use passant_core::entry::EntryOptions;
use passant_core::{AuthorizedEntry, Entry, EntryDraft, EntryId, Selectors, SpiffeId, TrustDomain, UnixTime};

use super::{Malformed, id, selector};
use crate::types;
use crate::types::entry::AdditionalAttributes;

/// Takes the entry that a caller wants registered. What the server decides (revision, creation) is not
/// looked at; an empty ID means that the server chooses it.
///
/// Only the form is checked, and that the SPIFFE ID is none of a server's or agent's; the rest is
/// [`EntryDraft::register`]'s.
///
/// # Errors
/// The first field that is malformed.
pub fn draft_from_wire(entry: &types::Entry) -> Result<EntryDraft, Malformed> {
    let entry_id = match entry.id.as_str() {
        "" => None,
        id => Some(EntryId::parse(id).map_err(|cause| Malformed::new(cause.to_string()))?),
    };
    let mut draft = EntryDraft::new(spiffe_id(entry)?, parent_id(entry)?, selectors(entry)?);
    draft.id = entry_id;
    update_rest(&mut draft, entry, &EVERYTHING)?;
    Ok(draft)
}

/// What `old` becomes when the fields of `new` that `mask` names are written over it; without a mask,
/// all of them. The ID, the revision and the time of creation cannot be changed.
///
/// # Errors
/// The first named field that is malformed.
pub fn apply_update(
    old: &Entry,
    new: &types::Entry,
    mask: Option<&types::EntryMask>,
) -> Result<EntryDraft, Malformed> {
    let mask = mask.unwrap_or(&EVERYTHING);
    let mut draft = old.to_draft();
    if mask.parent_id {
        draft.parent_id = parent_id(new)?;
    }
    if mask.spiffe_id {
        draft.spiffe_id = spiffe_id(new)?;
    }
    if mask.selectors {
        draft.selectors = selectors(new)?;
    }
    update_rest(&mut draft, new, mask)?;
    Ok(draft)
}

/// An entry in full.
pub fn to_wire(entry: &Entry) -> types::Entry {
    types::Entry {
        id: entry.id.to_string(),
        spiffe_id: Some(id::to_wire(&entry.spiffe_id)),
        parent_id: Some(id::to_wire(&entry.parent_id)),
        selectors: selector::to_wire(&entry.selectors),
        x509_svid_ttl: ttl_to_wire(entry.x509_svid_ttl),
        federates_with: entry.federates_with.iter().map(TrustDomain::to_string).collect(),
        admin: entry.admin,
        downstream: entry.downstream,
        expires_at: entry.expires_at.map_or(0, UnixTime::secs),
        dns_names: entry.dns_names.clone(),
        revision_number: i64::try_from(entry.revision).unwrap_or(i64::MAX),
        store_svid: entry.store_svid,
        jwt_svid_ttl: ttl_to_wire(entry.jwt_svid_ttl),
        hint: entry.hint.clone(),
        created_at: entry.created_at.secs(),
        additional_attributes: attributes(entry.disable_x509_svid_prefetch, entry.jwt_svid_include_jti),
    }
}

/// Takes an entry that a server sent to its agent.
///
/// # Errors
/// The first field that is malformed; also when there are no selectors, which would match every
/// workload or none.
pub fn authorized_from_wire(entry: &types::Entry) -> Result<AuthorizedEntry, Malformed> {
    let attributes = entry.additional_attributes.unwrap_or_default();
    Ok(AuthorizedEntry {
        id: EntryId::parse(&entry.id).map_err(|cause| Malformed::new(cause.to_string()))?,
        spiffe_id: spiffe_id(entry)?,
        selectors: selectors(entry)?,
        federates_with: federates_with(entry)?,
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        hint: entry.hint.clone(),
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        options: EntryOptions::default(),
        revision: u64::try_from(entry.revision_number)
            .map_err(|_| Malformed::new("revision number is negative"))?,
        created_at: UnixTime::from_secs(entry.created_at),
    })
}

/// The mask that names what [`authorized_from_wire`] reads, for an agent to ask with.
pub const AUTHORIZED: types::EntryMask = types::EntryMask {
    spiffe_id: true,
    parent_id: false,
    selectors: true,
    x509_svid_ttl: false,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: false,
    dns_names: false,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: false,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// What no mask at all means.
const EVERYTHING: types::EntryMask = types::EntryMask {
    spiffe_id: true,
    parent_id: true,
    selectors: true,
    x509_svid_ttl: true,
    federates_with: true,
    admin: true,
    downstream: true,
    expires_at: true,
    dns_names: true,
    revision_number: true,
    store_svid: true,
    jwt_svid_ttl: true,
    hint: true,
    created_at: true,
    additional_attributes: true,
};

/// Writes the named fields over `draft`, apart from the three that every entry has.
fn update_rest(draft: &mut EntryDraft, new: &types::Entry, mask: &types::EntryMask) -> Result<(), Malformed> {
    if mask.x509_svid_ttl {
        draft.x509_svid_ttl = ttl("X509-SVID TTL", new.x509_svid_ttl)?;
    }
    if mask.federates_with {
        draft.federates_with = federates_with(new)?;
    }
    if mask.admin {
        draft.admin = new.admin;
    }
    if mask.downstream {
        draft.downstream = new.downstream;
    }
    if mask.expires_at {
        draft.expires_at = expires_at(new.expires_at)?;
    }
    if mask.dns_names {
        draft.dns_names.clone_from(&new.dns_names);
    }
    if mask.store_svid {
        draft.store_svid = new.store_svid;
    }
    if mask.jwt_svid_ttl {
        draft.jwt_svid_ttl = ttl("JWT-SVID TTL", new.jwt_svid_ttl)?;
    }
    if mask.hint {
        draft.hint.clone_from(&new.hint);
    }
    if mask.additional_attributes {
        let attributes = new.additional_attributes.unwrap_or_default();
        draft.disable_x509_svid_prefetch = attributes.disable_x509_svid_prefetch;
        draft.jwt_svid_include_jti = attributes.jwt_svid_include_jti;
    }
    Ok(())
}

fn spiffe_id(entry: &types::Entry) -> Result<SpiffeId, Malformed> {
    let spiffe_id = id::from_wire(entry.spiffe_id.as_ref());
    spiffe_id
        .and_then(|spiffe_id| id::not_reserved(&spiffe_id).map(|()| spiffe_id))
        .map_err(|cause| cause.during("invalid SPIFFE ID"))
}

fn parent_id(entry: &types::Entry) -> Result<SpiffeId, Malformed> {
    id::from_wire(entry.parent_id.as_ref()).map_err(|cause| cause.during("invalid parent ID"))
}

fn selectors(entry: &types::Entry) -> Result<Selectors, Malformed> {
    if entry.selectors.is_empty() {
        return Err(Malformed::new("selector list is empty"));
    }
    selector::from_wire(&entry.selectors)
}

fn federates_with(entry: &types::Entry) -> Result<BTreeSet<TrustDomain>, Malformed> {
    let names = entry.federates_with.iter().map(|name| TrustDomain::parse(name));
    names
        .collect::<Result<_, _>>()
        .map_err(|cause| Malformed::field("invalid federated trust domain", &cause))
}

/// Seconds; 0 leaves it to the server.
fn ttl(field: &str, seconds: i32) -> Result<Option<Duration>, Malformed> {
    let seconds = u64::try_from(seconds).map_err(|_| Malformed::new(format!("{field} is negative")))?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn ttl_to_wire(ttl: Option<Duration>) -> i32 {
    ttl.map_or(0, |ttl| i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX))
}

/// Unix seconds; 0 is never.
fn expires_at(seconds: i64) -> Result<Option<UnixTime>, Malformed> {
    if seconds < 0 {
        return Err(Malformed::new("expiry is before 1970"));
    }
    Ok((seconds > 0).then(|| UnixTime::from_secs(seconds)))
}

/// Left out when all are off, as clients that never heard of them expect.
fn attributes(disable_x509_svid_prefetch: bool, jwt_svid_include_jti: bool) -> Option<AdditionalAttributes> {
    (disable_x509_svid_prefetch || jwt_svid_include_jti)
        .then_some(AdditionalAttributes { disable_x509_svid_prefetch, jwt_svid_include_jti })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::convert::mask;

    fn wire() -> types::Entry {
        let id =
            |path: &str| types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() };
        types::Entry {
            id: "e1".to_owned(),
            spiffe_id: Some(id("/api")),
            parent_id: Some(id("/spire/agent/x509pop/a")),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            ..types::Entry::default()
        }
    }

    fn entry(wire: &types::Entry) -> Entry {
        let td = TrustDomain::parse("example.org").unwrap();
        let draft = draft_from_wire(wire).unwrap();
        let id = draft.id.clone().unwrap();
        draft.register(&td, id, 7, UnixTime::from_secs(1_000)).unwrap()
    }

    fn check(change: impl Fn(&mut types::Entry), expected: &str) {
        let mut wire = wire();
        change(&mut wire);
        let error = draft_from_wire(&wire).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn faults_name_their_field() {
        check(|entry| entry.id = "a/b".to_owned(), "invalid entry ID");
        check(|entry| entry.spiffe_id = None, "invalid SPIFFE ID: missing");
        check(|entry| entry.parent_id = None, "invalid parent ID: missing");
        check(|entry| entry.parent_id.as_mut().unwrap().path = "a".to_owned(), "invalid parent ID: path");
        check(|entry| entry.selectors.clear(), "selector list is empty");
        check(|entry| entry.selectors[0].value.clear(), "missing selector value");
        check(|entry| entry.federates_with = vec!["A".to_owned()], "invalid federated trust domain: ");
        check(|entry| entry.x509_svid_ttl = -1, "X509-SVID TTL is negative");
        check(|entry| entry.jwt_svid_ttl = -1, "JWT-SVID TTL is negative");
        check(|entry| entry.expires_at = -1, "expiry is before 1970");
    }

    #[test]
    fn nobody_registers_an_id_of_a_server_or_agent() {
        for path in ["/spire", "/spire/server", "/spire/agent/x509pop/a", "/spire/x"] {
            check(|entry| entry.spiffe_id.as_mut().unwrap().path = path.to_owned(), "invalid SPIFFE ID: ");
        }
        let mut like = wire();
        like.spiffe_id.as_mut().unwrap().path = "/spirex".to_owned();
        assert!(draft_from_wire(&like).is_ok());
    }

    #[test]
    fn zero_means_not_set() {
        let draft = draft_from_wire(&types::Entry { id: String::new(), ..wire() }).unwrap();
        assert_eq!((draft.id, draft.x509_svid_ttl, draft.expires_at), (None, None, None));
    }

    #[test]
    fn an_update_changes_what_is_named_only() {
        let old = entry(&wire());
        let new = types::Entry {
            id: "e1".to_owned(),
            hint: "new".to_owned(),
            admin: true,
            x509_svid_ttl: -1,
            revision_number: 99,
            created_at: 99,
            ..types::Entry::default()
        };

        let mask = types::EntryMask { hint: true, ..types::EntryMask::default() };
        let draft = apply_update(&old, &new, Some(&mask)).unwrap();
        assert_eq!(draft, EntryDraft { hint: "new".to_owned(), ..old.to_draft() });

        let mask =
            types::EntryMask { revision_number: true, created_at: true, ..types::EntryMask::default() };
        assert_eq!(apply_update(&old, &new, Some(&mask)).unwrap(), old.to_draft());

        assert!(apply_update(&old, &new, None).is_err(), "without a mask the SPIFFE ID is needed");
    }

    #[test]
    fn an_update_without_mask_replaces_everything() {
        let mut full = wire();
        full.hint = "old".to_owned();
        full.additional_attributes =
            Some(AdditionalAttributes { disable_x509_svid_prefetch: true, jwt_svid_include_jti: true });
        let draft = apply_update(&entry(&full), &wire(), None).unwrap();
        assert_eq!(draft, draft_from_wire(&wire()).unwrap());
    }

    #[test]
    fn an_agent_learns_an_entry_under_its_mask() {
        let mut sent = to_wire(&entry(&wire()));
        mask::entry(&mut sent, Some(&AUTHORIZED));
        let learned = authorized_from_wire(&sent).unwrap();
        assert_eq!(learned.spiffe_id.as_str(), "spiffe://example.org/api");
        assert_eq!((learned.revision, learned.created_at.secs()), (7, 1_000));

        sent.revision_number = -1;
        assert!(authorized_from_wire(&sent).is_err());
    }

    #[test]
    fn an_agent_takes_no_entry_without_selectors() {
        assert!(authorized_from_wire(&types::Entry { selectors: Vec::new(), ..wire() }).is_err());
    }

    prop_compose! {
        fn any_wire()(
            path in "(/[a-z]{1,6}){1,3}",
            values in proptest::collection::btree_set("[a-z:]{1,6}", 1..4),
            federates_with in proptest::collection::btree_set("[a-z]{1,8}", 0..3),
            ttls in (0..1_000_000_i32, 0..1_000_000_i32),
            flags in any::<[bool; 4]>(),
            expires_at in 0..i64::MAX,
            dns_names in proptest::collection::vec("[a-z]{1,8}", 0..3),
            hint in ".{0,32}",
        ) -> types::Entry {
            let [admin, downstream, disable_x509_svid_prefetch, jwt_svid_include_jti] = flags;
            let selector = |value| types::Selector { r#type: "unix".to_owned(), value };
            types::Entry {
                spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: format!("/x{path}") }),
                selectors: values.into_iter().map(selector).collect(),
                federates_with: federates_with.into_iter().collect(),
                x509_svid_ttl: ttls.0,
                jwt_svid_ttl: ttls.1,
                admin,
                downstream,
                expires_at,
                dns_names,
                hint,
                additional_attributes: attributes(disable_x509_svid_prefetch, jwt_svid_include_jti),
                revision_number: 7,
                created_at: 1_000,
                ..wire()
            }
        }
    }

    proptest! {
        #[test]
        fn an_entry_survives_the_wire(wire in any_wire()) {
            let entry = entry(&wire);
            prop_assert_eq!(&to_wire(&entry), &wire);
            let authorized = authorized_from_wire(&wire).unwrap();
            prop_assert_eq!(authorized.selectors, entry.selectors);
            prop_assert_eq!(authorized.federates_with, entry.federates_with);
            prop_assert_eq!(authorized.hint, entry.hint);
        }
    }
}
