//! How do an entry's options convert, which stand beside SPIRE's fields?

use passant_core::{AuthorizedEntry, Entry, EntryDraft, EntryOptions, KeyScope};

use super::{Malformed, entry};
use crate::options::{EntryWithOptions, Issuance, KeyScope as WireScope, Options};

/// Takes the entry that a caller wants registered, with its options.
///
/// # Errors
/// As [`entry::draft_from_wire`] and [`apply`]; also when the entry is missing.
pub fn draft_from_wire(wire: &EntryWithOptions) -> Result<EntryDraft, Malformed> {
    let mut draft = entry::draft_from_wire(inner(wire)?)?;
    let told_on_demand = draft.disable_x509_svid_prefetch;
    apply(&mut draft, wire.options.as_ref())?;
    agree(told_on_demand, draft.disable_x509_svid_prefetch)?;
    Ok(draft)
}

/// Writes options over those of `draft`, whole: one that is not set becomes the default. Only issuance stays what
/// `disable_x509_svid_prefetch` says, unless it is set.
///
/// # Errors
/// An option with a value that this version does not know.
pub fn apply(draft: &mut EntryDraft, wire: Option<&Options>) -> Result<(), Malformed> {
    let told = read(wire)?;
    draft.options = told.options;
    if let Some(on_demand) = told.on_demand {
        draft.disable_x509_svid_prefetch = on_demand;
    }
    Ok(())
}

/// The options of an entry, each with its value.
pub fn to_wire(entry: &Entry) -> Options {
    of(entry.options, entry.disable_x509_svid_prefetch)
}

/// An entry in full, with its options.
pub fn entry_to_wire(entry: &Entry) -> EntryWithOptions {
    EntryWithOptions { entry: Some(entry::to_wire(entry)), options: Some(to_wire(entry)) }
}

/// Takes an entry that a server sent to its agent, with its options.
///
/// # Errors
/// As [`entry::authorized_from_wire`] and [`apply`]; also when the entry is missing.
pub fn authorized_from_wire(wire: &EntryWithOptions) -> Result<AuthorizedEntry, Malformed> {
    let mut authorized = entry::authorized_from_wire(inner(wire)?)?;
    let told = read(wire.options.as_ref())?;
    authorized.options = told.options;
    if let Some(on_demand) = told.on_demand {
        agree(authorized.disable_x509_svid_prefetch, on_demand)?;
        authorized.disable_x509_svid_prefetch = on_demand;
    }
    Ok(authorized)
}

/// What options say.
struct Told {
    options: EntryOptions,
    /// Whether an X509-SVID is minted only when a workload asks; `None` if nothing is said of it.
    on_demand: Option<bool>,
}

fn read(wire: Option<&Options>) -> Result<Told, Malformed> {
    let Some(Options { key_scope, issuance, strict }) = wire else {
        return Ok(Told { options: EntryOptions::default(), on_demand: None });
    };
    let unknown =
        |option: &str, value: i32| Malformed::new(format!("{option}: this version knows no value {value}"));
    let key_scope = match WireScope::try_from(*key_scope).map_err(|_| unknown("key_scope", *key_scope))? {
        WireScope::Unspecified | WireScope::Node => KeyScope::Node,
        WireScope::Instance => KeyScope::Instance,
    };
    let on_demand = match Issuance::try_from(*issuance).map_err(|_| unknown("issuance", *issuance))? {
        Issuance::Unspecified => None,
        Issuance::Prefetch => Some(false),
        Issuance::OnDemand => Some(true),
    };
    Ok(Told { options: EntryOptions { key_scope, strict: *strict }, on_demand })
}

/// Refuses an entry whose SPIRE field says "on demand" where its option says "prefetch".
fn agree(told_on_demand: bool, on_demand: bool) -> Result<(), Malformed> {
    if told_on_demand && !on_demand {
        return Err(Malformed::new("issuance: prefetch contradicts disable_x509_svid_prefetch"));
    }
    Ok(())
}

fn of(options: EntryOptions, on_demand: bool) -> Options {
    let key_scope = match options.key_scope {
        KeyScope::Node => WireScope::Node,
        KeyScope::Instance => WireScope::Instance,
    };
    let issuance = if on_demand { Issuance::OnDemand } else { Issuance::Prefetch };
    Options { key_scope: key_scope.into(), issuance: issuance.into(), strict: options.strict }
}

fn inner(wire: &EntryWithOptions) -> Result<&crate::types::Entry, Malformed> {
    wire.entry.as_ref().ok_or_else(|| Malformed::new("missing entry"))
}

#[cfg(test)]
mod tests {
    use passant_core::{TrustDomain, UnixTime};

    use super::*;
    use crate::types;
    use crate::types::entry::AdditionalAttributes;

    fn wire(options: Option<Options>, on_demand: bool) -> EntryWithOptions {
        let id =
            |path: &str| types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() };
        let attributes =
            AdditionalAttributes { disable_x509_svid_prefetch: on_demand, jwt_svid_include_jti: true };
        let entry = types::Entry {
            id: "e1".to_owned(),
            spiffe_id: Some(id("/api")),
            parent_id: Some(id("/node")),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            additional_attributes: Some(attributes),
            ..types::Entry::default()
        };
        EntryWithOptions { entry: Some(entry), options }
    }

    fn options(key_scope: WireScope, issuance: Issuance, strict: bool) -> Options {
        Options { key_scope: key_scope.into(), issuance: issuance.into(), strict }
    }

    fn entry(wire: &EntryWithOptions) -> Entry {
        let draft = draft_from_wire(wire).unwrap();
        let id = draft.id.clone().unwrap();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        draft.register(&trust_domain, id, 7, UnixTime::from_secs(1_000)).unwrap()
    }

    #[test]
    fn options_survive_the_wire() {
        for key_scope in [WireScope::Node, WireScope::Instance] {
            for issuance in [Issuance::Prefetch, Issuance::OnDemand] {
                for strict in [false, true] {
                    let told = options(key_scope, issuance, strict);
                    let sent = entry_to_wire(&entry(&wire(Some(told), false)));
                    assert_eq!(sent.options, Some(told));
                    let on_demand = issuance == Issuance::OnDemand;
                    let attributes = sent.entry.as_ref().unwrap().additional_attributes.unwrap();
                    assert_eq!(attributes.disable_x509_svid_prefetch, on_demand);
                    let learned = authorized_from_wire(&sent).unwrap();
                    assert_eq!(learned.disable_x509_svid_prefetch, on_demand);
                    assert_eq!(learned.options, entry(&sent).options);
                }
            }
        }
    }

    #[test]
    fn without_options_an_entry_is_as_with_spire() {
        for on_demand in [false, true] {
            for none in [None, Some(Options::default())] {
                let entry = entry(&wire(none, on_demand));
                assert!(entry.options.is_default());
                assert_eq!(entry.disable_x509_svid_prefetch, on_demand);
                assert_eq!(authorized_from_wire(&wire(none, on_demand)).unwrap().options, entry.options);
            }
        }
    }

    #[test]
    fn what_is_not_said_becomes_the_default() {
        let old = wire(Some(options(WireScope::Instance, Issuance::OnDemand, true)), false);
        let mut draft = entry(&old).to_draft();
        apply(&mut draft, None).unwrap();
        assert!(draft.options.is_default());
        assert!(draft.disable_x509_svid_prefetch, "SPIRE's field has the say");
        apply(&mut draft, Some(&options(WireScope::Unspecified, Issuance::Prefetch, false))).unwrap();
        assert!(!draft.disable_x509_svid_prefetch);
    }

    #[test]
    fn what_contradicts_itself_or_is_not_known_is_refused() {
        let prefetch = options(WireScope::Node, Issuance::Prefetch, false);
        let told = wire(Some(prefetch), true);
        assert!(draft_from_wire(&told).unwrap_err().to_string().contains("contradicts"));
        assert!(authorized_from_wire(&told).is_err());
        for (strange, named) in [
            (Options { key_scope: 3, ..prefetch }, "key_scope"),
            (Options { issuance: -1, ..prefetch }, "issuance"),
        ] {
            let told = wire(Some(strange), false);
            assert!(draft_from_wire(&told).unwrap_err().to_string().starts_with(named));
            assert!(authorized_from_wire(&told).is_err());
        }
        let empty = EntryWithOptions::default();
        assert!(draft_from_wire(&empty).is_err() && authorized_from_wire(&empty).is_err());
    }
}
