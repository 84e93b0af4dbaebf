//! When may a federation relationship be made, changed or ended, and what becomes of a bundle that was fetched for it?

use std::sync::Arc;

use passant_core::{Bundle, FederationRelationship, Refusal, TrustDomain};

use super::entry::each;
use crate::limits::RELATIONSHIPS;
use crate::state::State;
use crate::state::change::Change;

/// A relationship as it stands after a change.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) relationship: Arc<FederationRelationship>,
    /// The bundle that is held of its trust domain.
    pub(crate) bundle: Option<Arc<Bundle>>,
}

/// How an update makes a relationship of the one that stands, and the bundle that is to be set with it, if any.
pub(crate) trait Edit: Send + 'static {
    /// The relationship, with the same trust domain, or why the edit is wrong.
    fn apply(
        self: Box<Self>,
        held: &FederationRelationship,
    ) -> Result<(FederationRelationship, Option<Bundle>), Refusal>;
}

impl<F> Edit for F
where
    F: FnOnce(&FederationRelationship) -> Result<(FederationRelationship, Option<Bundle>), Refusal>
        + Send
        + 'static,
{
    fn apply(
        self: Box<Self>,
        held: &FederationRelationship,
    ) -> Result<(FederationRelationship, Option<Bundle>), Refusal> {
        self(held)
    }
}

/// What became of a bundle that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// It is held from now on.
    Taken,
    /// It is the one that is held.
    Same,
    /// It is older than the one that is held, which has this sequence number and stays.
    Older {
        /// That of the one that is held.
        held: u64,
    },
    /// It was fetched for a relationship that has ended or changed meanwhile.
    Unwanted,
}

/// Makes relationships that must be new. Outcomes are in the order of the relationships.
pub(crate) fn create(
    state: &State,
    given: Vec<(FederationRelationship, Option<Bundle>)>,
) -> (Vec<Change>, Vec<Result<Standing, Refusal>>) {
    each(state, given, |so_far, (relationship, bundle), _| {
        if relationship.trust_domain == *so_far.trust_domain() {
            return Err(Refusal::invalid(
                "unable to create federation relationship for server trust domain: it federates with others only",
            ));
        }
        if so_far.relationship(&relationship.trust_domain).is_some() {
            return Err(Refusal::already_exists("federation relationship already exists"));
        }
        if so_far.relationship_count() >= RELATIONSHIPS {
            return Err(Refusal::exhausted(format!(
                "there are {RELATIONSHIPS} federation relationships already"
            )));
        }
        Ok(put(so_far, relationship, bundle))
    })
}

/// Changes relationships that must be there. Outcomes are in the order of the edits.
pub(crate) fn update(
    state: &State,
    edits: Vec<(TrustDomain, Box<dyn Edit>)>,
) -> (Vec<Change>, Vec<Result<Standing, Refusal>>) {
    each(state, edits, |so_far, (trust_domain, edit), _| {
        let held = so_far.relationship(&trust_domain).ok_or_else(none_such)?;
        let (relationship, bundle) = edit.apply(held)?;
        Ok(put(so_far, relationship, bundle))
    })
}

/// Ends relationships. The bundle of the trust domain goes with its relationship (SPIFFE Federation 6.3); entries go on
/// naming the trust domain, which means nothing until there is a bundle again. Outcomes are in the order of the names.
pub(crate) fn end(state: &State, names: Vec<TrustDomain>) -> (Vec<Change>, Vec<Result<(), Refusal>>) {
    each(state, names, |so_far, name, _| {
        so_far.relationship(&name).ok_or_else(none_such)?;
        let bundle = so_far.bundle_of(&name).map(|_| Change::DeleteBundle(name.clone()));
        Ok(([Change::DeleteFederation(name)].into_iter().chain(bundle), ()))
    })
}

/// Takes a bundle that was fetched by `relationship`.
///
/// Sequence numbers order the versions of a bundle where both have one; else the last fetched wins (SPIFFE Federation 4.2).
pub(crate) fn fetched(
    state: &State,
    relationship: &FederationRelationship,
    bundle: Bundle,
) -> (Vec<Change>, Fetched) {
    let wanted = state.relationship(&relationship.trust_domain).is_some_and(|now| **now == *relationship);
    if !wanted || bundle.trust_domain != relationship.trust_domain {
        return (Vec::new(), Fetched::Unwanted);
    }
    match state.bundle_of(&bundle.trust_domain) {
        Some(held) if *held == bundle => (Vec::new(), Fetched::Same),
        Some(held) if bundle.sequence != 0 && bundle.sequence < held.sequence => {
            (Vec::new(), Fetched::Older { held: held.sequence })
        }
        Some(_) | None => (vec![Change::PutBundle(Arc::new(bundle))], Fetched::Taken),
    }
}

fn put(
    state: &State,
    relationship: FederationRelationship,
    bundle: Option<Bundle>,
) -> (Vec<Change>, Standing) {
    let relationship = Arc::new(relationship);
    let mut changes = vec![Change::PutFederation(Arc::clone(&relationship))];
    let bundle = match bundle.map(Arc::new) {
        Some(bundle) => {
            changes.push(Change::PutBundle(Arc::clone(&bundle)));
            Some(bundle)
        }
        None => state.bundle_of(&relationship.trust_domain),
    };
    (changes, Standing { relationship, bundle })
}

fn none_such() -> Refusal {
    Refusal::not_found("federation relationship not found")
}

#[cfg(test)]
mod tests {
    use passant_core::{EndpointProfile, EndpointUrl, Reason};

    use super::*;
    use crate::state::samples::{
        commit, draft, entry_id, other_trust_domain, registered, relationship, trust_domain,
    };
    use crate::state::{Cursor, Lineage, Revision};

    fn state_of(changes: Vec<Change>) -> State {
        let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
        let mut state = State::empty(trust_domain(), cursor);
        state.apply(&commit(1, changes));
        state
    }

    fn given(name: &TrustDomain) -> FederationRelationship {
        FederationRelationship::clone(&relationship(name.clone(), None))
    }

    fn bundle(sequence: u64) -> Bundle {
        Bundle { sequence, ..Bundle::empty(other_trust_domain()) }
    }

    #[test]
    fn federation_with_oneself_and_twice_with_another_is_refused() {
        let (own, other) = (trust_domain(), other_trust_domain());
        let asked = vec![(given(&own), None), (given(&other), Some(bundle(3))), (given(&other), None)];
        let (changes, outcomes) = create(&state_of(vec![]), asked);
        assert_eq!(outcomes[0].as_ref().unwrap_err().reason, Reason::Invalid);
        assert_eq!(outcomes[1].as_ref().unwrap().bundle.as_ref().unwrap().sequence, 3);
        assert_eq!(outcomes[2].as_ref().unwrap_err().reason, Reason::AlreadyExists);
        let state = state_of(changes);
        assert_eq!((state.relationship_count(), state.bundles().count()), (1, 1));
    }

    #[test]
    fn relationships_are_bounded() {
        let names = (0..=RELATIONSHIPS).map(|at| TrustDomain::parse(&format!("td{at}.example")).unwrap());
        let (changes, outcomes) = create(&state_of(vec![]), names.map(|name| (given(&name), None)).collect());
        assert_eq!(changes.len(), RELATIONSHIPS);
        assert_eq!(outcomes[RELATIONSHIPS].as_ref().unwrap_err().reason, Reason::Exhausted);
    }

    #[test]
    fn an_update_keeps_the_bundle_unless_it_brings_one() {
        let other = other_trust_domain();
        let state = state_of(vec![
            Change::PutFederation(relationship(other.clone(), None)),
            Change::PutBundle(bundle(3).into()),
        ]);
        let to = |url: &'static str, bundle: Option<Bundle>| -> Box<dyn Edit> {
            Box::new(move |held: &FederationRelationship| {
                let url = EndpointUrl::parse(url).map_err(|error| Refusal::invalid(error.to_string()))?;
                Ok((FederationRelationship { url, ..held.clone() }, bundle))
            })
        };
        let edits = vec![
            (trust_domain(), to("https://x/", None)),
            (other.clone(), to("http://x/", None)),
            (other.clone(), to("https://x/", None)),
            (other, to("https://y/", Some(bundle(1)))),
        ];
        let (changes, outcomes) = update(&state, edits);
        assert_eq!(outcomes[0].as_ref().unwrap_err().reason, Reason::NotFound);
        assert_eq!(outcomes[1].as_ref().unwrap_err().reason, Reason::Invalid);
        let sequence = |at: usize| outcomes[at].as_ref().unwrap().bundle.as_ref().unwrap().sequence;
        assert_eq!((sequence(2), sequence(3)), (3, 1));
        assert_eq!(outcomes[3].as_ref().unwrap().relationship.url.as_str(), "https://y/");
        assert_eq!(changes.len(), 3);
    }

    #[test]
    fn the_bundle_goes_with_its_relationship_and_entries_stay() {
        let other = other_trust_domain();
        let mut federated = draft("/w", "/p", &["k:1"]);
        federated.federates_with.insert(other.clone());
        let mut state = state_of(vec![
            Change::PutFederation(relationship(other.clone(), None)),
            Change::PutBundle(bundle(3).into()),
            Change::PutEntry(registered("e", federated)),
        ]);
        let (changes, outcomes) = end(&state, vec![other.clone(), other.clone()]);
        assert!(outcomes[0].is_ok());
        assert_eq!(outcomes[1].as_ref().unwrap_err().reason, Reason::NotFound);
        state.apply(&commit(2, changes));
        assert_eq!((state.relationship_count(), state.bundles().count()), (0, 0));
        assert!(state.entry(&entry_id("e")).unwrap().federates_with.contains(&other));
    }

    #[test]
    fn sequence_numbers_order_what_is_fetched() {
        let wanted = relationship(other_trust_domain(), None);
        let check = |held: Option<u64>, sequence: u64, expected: Fetched| {
            let mut changes = vec![Change::PutFederation(Arc::clone(&wanted))];
            changes.extend(held.map(|sequence| Change::PutBundle(bundle(sequence).into())));
            let mut fresh = bundle(sequence);
            if expected != Fetched::Same {
                fresh.refresh_hint = Some(std::time::Duration::from_secs(60));
            }
            let (changes, outcome) = fetched(&state_of(changes), &wanted, fresh);
            assert_eq!(outcome, expected, "{held:?} {sequence}");
            assert_eq!(changes.len(), usize::from(expected == Fetched::Taken));
        };
        check(None, 0, Fetched::Taken);
        check(None, 7, Fetched::Taken);
        check(Some(7), 8, Fetched::Taken);
        check(Some(7), 7, Fetched::Same);
        check(Some(7), 7, Fetched::Taken);
        check(Some(7), 6, Fetched::Older { held: 7 });
        check(Some(7), 0, Fetched::Taken);
        check(Some(0), 5, Fetched::Taken);
        check(Some(0), 0, Fetched::Taken);
    }

    #[test]
    fn what_was_fetched_for_another_relationship_is_not_taken() {
        let other = other_trust_domain();
        let endpoint_id = other.join("/endpoint").unwrap();
        let before = relationship(other, None);
        let changed = FederationRelationship {
            profile: EndpointProfile::HttpsSpiffe { endpoint_id },
            ..FederationRelationship::clone(&before)
        };
        for changes in [vec![], vec![Change::PutFederation(changed.into())]] {
            assert_eq!(fetched(&state_of(changes), &before, bundle(1)), (vec![], Fetched::Unwanted));
        }
        let state = state_of(vec![Change::PutFederation(Arc::clone(&before))]);
        let foreign = Bundle::empty(TrustDomain::parse("third.example").unwrap());
        assert_eq!(fetched(&state, &before, foreign).1, Fetched::Unwanted);
    }
}
