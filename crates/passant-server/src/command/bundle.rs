//! When may a foreign bundle be set, changed or removed, and what may be added to the own one?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use passant_core::limits::BUNDLE_AUTHORITIES;
use passant_core::{Bundle, Entry, EntryId, JwtAuthority, Refusal, TrustDomain, X509Authority};

use super::entry::each;
use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::state::State;
use crate::state::change::Change;

/// What becomes of entries that federate with a trust domain whose bundle is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteMode {
    /// They keep the bundle from being deleted.
    Restrict,
    /// They are deleted too.
    Delete,
    /// They stay, and no longer federate with it.
    Dissociate,
}

/// How an update makes a bundle of the one that stands.
pub(crate) trait Edit: Send + 'static {
    /// The bundle, of the same trust domain.
    fn apply(self: Box<Self>, held: &Bundle) -> Bundle;
}

impl<F: FnOnce(&Bundle) -> Bundle + Send + 'static> Edit for F {
    fn apply(self: Box<Self>, held: &Bundle) -> Bundle {
        self(held)
    }
}

/// Adds foreign bundles that must be new, for `actor`. Outcomes are in the order of the bundles.
pub(crate) fn create(
    state: &State,
    bundles: Vec<Bundle>,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<Arc<Bundle>, Refusal>>) {
    each(state, bundles, |so_far, bundle, _| {
        may(actor, &bundle.trust_domain, so_far)?;
        is_foreign(so_far, &bundle.trust_domain, "creating a federated bundle for")?;
        if so_far.bundle_of(&bundle.trust_domain).is_some() {
            return Err(Refusal::already_exists("bundle already exists"));
        }
        Ok(put(bundle))
    })
}

/// Adds or replaces foreign bundles, for `actor`. Outcomes are in the order of the bundles.
pub(crate) fn set(
    state: &State,
    bundles: Vec<Bundle>,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<Arc<Bundle>, Refusal>>) {
    each(state, bundles, |so_far, bundle, _| {
        may(actor, &bundle.trust_domain, so_far)?;
        is_foreign(so_far, &bundle.trust_domain, "setting a federated bundle for")?;
        Ok(put(bundle))
    })
}

/// Changes foreign bundles that must be there, for `actor`. Outcomes are in the order of the edits.
pub(crate) fn update(
    state: &State,
    edits: Vec<(TrustDomain, Box<dyn Edit>)>,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<Arc<Bundle>, Refusal>>) {
    each(state, edits, |so_far, (trust_domain, edit), _| {
        may(actor, &trust_domain, so_far)?;
        is_foreign(so_far, &trust_domain, "updating a federated bundle for")?;
        let held = so_far.bundle_of(&trust_domain).ok_or_else(no_bundle)?;
        Ok(put(edit.apply(&held)))
    })
}

/// Removes foreign bundles, for `actor`. Outcomes are in the order of the names, each with the entries that were deleted with it.
pub(crate) fn delete(
    state: &State,
    names: Vec<TrustDomain>,
    mode: DeleteMode,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<Vec<EntryId>, Refusal>>) {
    let federated = federated(state, &names);
    each(state, names, |so_far, name, revision| {
        may(actor, &name, so_far)?;
        is_foreign(so_far, &name, "removing the bundle of")?;
        so_far.bundle_of(&name).ok_or_else(no_bundle)?;
        let ids = federated.get(&name).into_iter().flatten();
        // One named before may have taken them.
        let entries: Vec<&Arc<Entry>> = ids.filter_map(|id| so_far.entry(id)).collect();
        let mut changes = vec![Change::DeleteBundle(name.clone())];
        let mut deleted = Vec::new();
        match mode {
            DeleteMode::Restrict if entries.is_empty() => {}
            DeleteMode::Restrict => {
                return Err(Refusal::precondition(format!(
                    "cannot delete bundle: {} registration entries federate with \"{name}\"; delete them too with mode \
                     DELETE, or take the trust domain out of them with mode DISSOCIATE",
                    entries.len()
                )));
            }
            DeleteMode::Delete => {
                deleted.extend(entries.iter().map(|entry| entry.id.clone()));
                changes.extend(deleted.iter().cloned().map(Change::DeleteEntry));
            }
            DeleteMode::Dissociate => {
                changes.extend(entries.into_iter().map(|entry| {
                    let mut entry = Entry::clone(entry);
                    entry.federates_with.remove(&name);
                    entry.revision = revision;
                    Change::PutEntry(Arc::new(entry))
                }));
            }
        }
        Ok((changes, deleted))
    })
}

/// Which entries federate with each of `names`, found in one go over all of them.
fn federated(state: &State, names: &[TrustDomain]) -> BTreeMap<TrustDomain, Vec<EntryId>> {
    let names: BTreeSet<&TrustDomain> = names.iter().collect();
    let mut found: BTreeMap<TrustDomain, Vec<EntryId>> = BTreeMap::new();
    for entry in state.entries() {
        for name in entry.federates_with.iter().filter(|name| names.contains(name)) {
            found.entry(name.clone()).or_default().push(entry.id.clone());
        }
    }
    found
}

/// Adds authorities to the own bundle, for whoever trusts this trust domain to trust what they sign. What is there already
/// changes nothing; it keeps its sequence number when nothing is new.
///
/// # Errors
/// Already exists, when a key ID is another key's; exhausted, when the bundle would have too many authorities.
pub(crate) fn append(
    state: &State,
    x509: Vec<X509Authority>,
    jwt: Vec<JwtAuthority>,
) -> Result<(Vec<Change>, Arc<Bundle>), Refusal> {
    let held = state.bundle().ok_or_else(no_bundle)?;
    let mut bundle = Bundle::clone(&held);
    for authority in x509 {
        if bundle.x509_authorities.iter().all(|known| known.der != authority.der) {
            bundle.x509_authorities.push(authority);
        }
    }
    for authority in jwt {
        match bundle.jwt_authority(&authority.key_id) {
            None => bundle.jwt_authorities.push(authority),
            Some(known) if known.public_key == authority.public_key => {}
            Some(_) => {
                return Err(Refusal::already_exists(format!(
                    "key ID \"{}\" is that of another JWT authority",
                    authority.key_id
                )));
            }
        }
    }
    if bundle.x509_authorities.len().max(bundle.jwt_authorities.len()) > BUNDLE_AUTHORITIES {
        return Err(Refusal::exhausted(format!(
            "the bundle would have more than {BUNDLE_AUTHORITIES} authorities of one kind"
        )));
    }
    if bundle == *held {
        return Ok((Vec::new(), held));
    }
    bundle.sequence = bundle.sequence.saturating_add(1);
    let bundle = Arc::new(bundle);
    Ok((vec![Change::PutBundle(Arc::clone(&bundle))], bundle))
}

fn may(actor: &Actor, name: &TrustDomain, state: &State) -> Result<(), Refusal> {
    actor.may(Verb::BundleWrite, &Target::TrustDomain(name), state)
}

fn put(bundle: Bundle) -> (Option<Change>, Arc<Bundle>) {
    let bundle = Arc::new(bundle);
    (Some(Change::PutBundle(Arc::clone(&bundle))), bundle)
}

/// The own bundle changes with the authorities only, and by [`append`].
fn is_foreign(state: &State, trust_domain: &TrustDomain, doing: &str) -> Result<(), Refusal> {
    if trust_domain == state.trust_domain() {
        return Err(Refusal::invalid(format!("{doing} the server's own trust domain is not allowed")));
    }
    Ok(())
}

fn no_bundle() -> Refusal {
    Refusal::not_found("bundle not found")
}

#[cfg(test)]
mod tests {
    use passant_core::Reason;
    use passant_core::host::Host;
    use passant_core::keys::KeyType;

    use super::*;
    use crate::state::samples::{commit, draft, entry_id, other_trust_domain, registered, trust_domain};
    use crate::state::{Cursor, Lineage, Revision};

    fn third() -> TrustDomain {
        TrustDomain::parse("third.example").unwrap()
    }

    /// The own bundle and two foreign ones; three entries that federate with one, with both and with none of them.
    fn state() -> State {
        let federated = |name: &str, with: &[TrustDomain]| {
            let mut draft = draft(&format!("/w/{name}"), "/p", &["k:1"]);
            draft.federates_with.extend(with.iter().cloned());
            Change::PutEntry(registered(name, draft))
        };
        let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::new(6) };
        let mut state = State::empty(trust_domain(), cursor);
        let bundles = [trust_domain(), other_trust_domain(), third()];
        let mut changes: Vec<Change> =
            bundles.into_iter().map(|name| Change::PutBundle(Bundle::empty(name).into())).collect();
        changes.extend([
            federated("one", &[other_trust_domain()]),
            federated("both", &[other_trust_domain(), third()]),
            federated("none", &[]),
        ]);
        state.apply(&commit(1, changes));
        state
    }

    fn after(mut state: State, changes: Vec<Change>) -> State {
        state.apply(&commit(2, changes));
        state
    }

    fn reasons<T: std::fmt::Debug>(outcomes: &[Result<T, Refusal>]) -> Vec<Option<Reason>> {
        outcomes.iter().map(|outcome| outcome.as_ref().err().map(|refusal| refusal.reason)).collect()
    }

    #[test]
    fn only_new_bundles_are_created_and_only_those_that_stand_updated() {
        let fourth = TrustDomain::parse("fourth.example").unwrap();
        let given = |sequence, name| Bundle { sequence, ..Bundle::empty(name) };
        let asked = || {
            vec![
                given(1, trust_domain()),
                given(1, third()),
                given(1, fourth.clone()),
                given(2, fourth.clone()),
            ]
        };
        let (changes, outcomes) = create(&state(), asked(), &Actor::root());
        assert_eq!(
            reasons(&outcomes),
            [Some(Reason::Invalid), Some(Reason::AlreadyExists), None, Some(Reason::AlreadyExists)]
        );
        assert_eq!(changes.len(), 1);
        let (changes, outcomes) = set(&state(), asked(), &Actor::root());
        assert_eq!(reasons(&outcomes), [Some(Reason::Invalid), None, None, None]);
        assert_eq!(after(state(), changes).bundle_of(&fourth).unwrap().sequence, 2);
        let edits = [trust_domain(), third(), fourth.clone()].map(|name| {
            let edit: Box<dyn Edit> = Box::new(|held: &Bundle| Bundle { sequence: 5, ..held.clone() });
            (name, edit)
        });
        let (changes, outcomes) = update(&state(), edits.into(), &Actor::root());
        assert_eq!(reasons(&outcomes), [Some(Reason::Invalid), None, Some(Reason::NotFound)]);
        assert_eq!(after(state(), changes).bundle_of(&third()).unwrap().sequence, 5);
    }

    #[test]
    fn entries_keep_a_bundle_unless_the_caller_says_what_becomes_of_them() {
        let names = || vec![trust_domain(), other_trust_domain(), third(), third()];
        let (changes, outcomes) = delete(&state(), names(), DeleteMode::Restrict, &Actor::root());
        let kept = Some(Reason::Precondition);
        assert_eq!(reasons(&outcomes), [Some(Reason::Invalid), kept, kept, kept]);
        assert!(changes.is_empty());
        assert!(outcomes[1].as_ref().unwrap_err().public.contains("2 registration entries"));

        let (changes, outcomes) = delete(&state(), names(), DeleteMode::Delete, &Actor::root());
        assert_eq!(reasons(&outcomes), [Some(Reason::Invalid), None, None, Some(Reason::NotFound)]);
        assert_eq!(*outcomes[1].as_ref().unwrap(), [entry_id("both"), entry_id("one")]);
        assert!(outcomes[2].as_ref().unwrap().is_empty(), "it went with the other bundle");
        let left = after(state(), changes);
        assert_eq!((left.entry_count(), left.bundles().count()), (1, 1));

        let (changes, outcomes) = delete(&state(), names(), DeleteMode::Dissociate, &Actor::root());
        assert!(outcomes[1].as_ref().unwrap().is_empty());
        let left = after(state(), changes);
        assert_eq!((left.entry_count(), left.bundles().count()), (3, 1));
        assert!(left.entries().all(|entry| entry.federates_with.is_empty()));
        let revision = |name: &str| left.entry(&entry_id(name)).unwrap().revision;
        assert_eq!((revision("both"), revision("one"), revision("none")), (8, 8, 0));
    }

    #[test]
    fn a_bundle_that_nobody_needs_is_deleted_in_any_mode() {
        let unused = after(state(), vec![Change::DeleteEntry(entry_id("both"))]);
        for mode in [DeleteMode::Restrict, DeleteMode::Delete, DeleteMode::Dissociate] {
            let (changes, _) = delete(&unused, vec![third()], mode, &Actor::root());
            assert_eq!(changes, [Change::DeleteBundle(third())]);
        }
    }

    #[test]
    fn what_is_appended_counts_once_and_takes_a_sequence_number_only_if_new() {
        let key = || Host::system().keys.generate(KeyType::EcP256).unwrap().public_key().to_vec();
        let jwt = |id: &str, key: &[u8]| JwtAuthority::new(id, key, None).unwrap();
        let x509 = |byte| X509Authority { der: vec![byte], tainted: false };
        let (one, two) = (key(), key());
        let (changes, bundle) = append(&state(), vec![x509(1), x509(1)], vec![jwt("a", &one)]).unwrap();
        assert_eq!((bundle.sequence, bundle.x509_authorities.len(), bundle.jwt_authorities.len()), (1, 1, 1));
        let state = after(state(), changes);
        let (changes, same) = append(&state, vec![x509(1)], vec![jwt("a", &one)]).unwrap();
        assert_eq!((changes.len(), same), (0, bundle));
        let taken = append(&state, vec![], vec![jwt("b", &two), jwt("a", &two)]).unwrap_err();
        assert_eq!(taken.reason, Reason::AlreadyExists);
        let many = (0..BUNDLE_AUTHORITIES).map(|at| jwt(&format!("k{at}"), &one)).collect();
        assert_eq!(append(&state, vec![], many).unwrap_err().reason, Reason::Exhausted);
    }
}
