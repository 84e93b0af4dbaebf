//! When may a federation relationship be made, changed or ended, and what becomes of a bundle that was fetched for it?

use std::collections::BTreeSet;
use std::sync::Arc;

use passant_core::{Bundle, FederationRelationship, Refusal, TrustDomain};

use super::entry::each;
use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::limits::RELATIONSHIPS;
use crate::state::State;
use crate::state::change::Change;

/// A relationship as it stands after a change.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) relationship: Arc<FederationRelationship>,
    /// The bundle that is held of its trust domain.
    pub(crate) bundle: Option<Arc<Bundle>>,
    /// Whether the change set it.
    pub(crate) sets_bundle: bool,
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
    /// It was fetched for a relationship that has ended or changed meanwhile, or from an endpoint that proved itself by
    /// authorities that are believed no longer.
    Unwanted,
}

/// Makes relationships that must be new, for `actor`. Outcomes are in the order of the relationships.
pub(crate) fn create(
    state: &State,
    given: Vec<(FederationRelationship, Option<Bundle>)>,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<Standing, Refusal>>) {
    each(state, given, |so_far, (relationship, bundle), _| {
        may(actor, &relationship.trust_domain, so_far)?;
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

/// Changes relationships that must be there, for `actor`. Outcomes are in the order of the edits.
pub(crate) fn update(
    state: &State,
    edits: Vec<(TrustDomain, Box<dyn Edit>)>,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<Standing, Refusal>>) {
    each(state, edits, |so_far, (trust_domain, edit), _| {
        may(actor, &trust_domain, so_far)?;
        let held = so_far.relationship(&trust_domain).ok_or_else(none_such)?;
        let (relationship, bundle) = edit.apply(held)?;
        Ok(put(so_far, relationship, bundle))
    })
}

/// Ends relationships, for `actor`. The bundle of the trust domain goes with its relationship (SPIFFE Federation 6.3); entries go on
/// naming the trust domain, which means nothing until there is a bundle again. Outcomes are in the order of the names.
pub(crate) fn end(
    state: &State,
    names: Vec<TrustDomain>,
    actor: &Actor,
) -> (Vec<Change>, Vec<Result<(), Refusal>>) {
    each(state, names, |so_far, name, _| {
        may(actor, &name, so_far)?;
        so_far.relationship(&name).ok_or_else(none_such)?;
        let bundle = so_far.bundle_of(&name).map(|_| Change::DeleteBundle(name.clone()));
        Ok(([Change::DeleteFederation(name)].into_iter().chain(bundle), ()))
    })
}

/// Takes a bundle that was fetched by `relationship`, from an endpoint that proved itself by `proof` if it did so by an
/// X509-SVID.
///
/// Sequence numbers order the versions of a bundle where both have one; else the last fetched wins (SPIFFE Federation 4.2).
pub(crate) fn fetched(
    state: &State,
    relationship: &Arc<FederationRelationship>,
    proof: Option<&Bundle>,
    bundle: Bundle,
) -> (Vec<Change>, Fetched) {
    // One that was ended and made anew is another, whose bundle went with the one before.
    let now = state.relationship(&relationship.trust_domain);
    let is_wanted = now.is_some_and(|now| Arc::ptr_eq(now, relationship));
    if !is_wanted || proof.is_some_and(|proof| !still_proves(state, proof)) {
        return (Vec::new(), Fetched::Unwanted);
    }
    if bundle.trust_domain != relationship.trust_domain {
        return (Vec::new(), Fetched::Unwanted);
    }
    match state.bundle_of(&bundle.trust_domain) {
        Some(held) if held.says_the_same_as(&bundle) => (Vec::new(), Fetched::Same),
        Some(held) if bundle.sequence != 0 && bundle.sequence < held.sequence => {
            (Vec::new(), Fetched::Older { held: held.sequence })
        }
        Some(_) | None => (vec![Change::PutBundle(Arc::new(bundle))], Fetched::Taken),
    }
}

/// Whether what an X509-SVID was verified by is what it would be verified by now. The fetch took its time: an authority whose
/// key has leaked may have been taken out meanwhile, and whoever has it is who answered.
fn still_proves(state: &State, proof: &Bundle) -> bool {
    let by = |bundle: &Bundle| -> BTreeSet<Vec<u8>> {
        bundle.x509_authorities.iter().map(|authority| authority.der.clone()).collect()
    };
    state.bundle_of(&proof.trust_domain).is_some_and(|now| by(&now) == by(proof))
}

fn may(actor: &Actor, name: &TrustDomain, state: &State) -> Result<(), Refusal> {
    actor.may(Verb::FederationWrite, &Target::TrustDomain(name), state)
}

fn put(
    state: &State,
    relationship: FederationRelationship,
    bundle: Option<Bundle>,
) -> (Vec<Change>, Standing) {
    let relationship = Arc::new(relationship);
    let mut changes = vec![Change::PutFederation(Arc::clone(&relationship))];
    let sets_bundle = bundle.is_some();
    let bundle = match bundle.map(Arc::new) {
        Some(bundle) => {
            changes.push(Change::PutBundle(Arc::clone(&bundle)));
            Some(bundle)
        }
        None => state.bundle_of(&relationship.trust_domain),
    };
    (changes, Standing { relationship, bundle, sets_bundle })
}

fn none_such() -> Refusal {
    Refusal::not_found("federation relationship not found")
}

#[cfg(test)]
mod tests {
    use passant_core::{EndpointProfile, EndpointUrl, Reason, X509Authority};

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
        let (changes, outcomes) = create(&state_of(vec![]), asked, &Actor::root());
        assert_eq!(outcomes[0].as_ref().unwrap_err().reason, Reason::Invalid);
        assert_eq!(outcomes[1].as_ref().unwrap().bundle.as_ref().unwrap().sequence, 3);
        assert_eq!(outcomes[2].as_ref().unwrap_err().reason, Reason::AlreadyExists);
        let state = state_of(changes);
        assert_eq!((state.relationship_count(), state.bundles().count()), (1, 1));
    }

    #[test]
    fn relationships_are_bounded() {
        let names = (0..=RELATIONSHIPS).map(|at| TrustDomain::parse(&format!("td{at}.example")).unwrap());
        let all = names.map(|name| (given(&name), None)).collect();
        let (changes, outcomes) = create(&state_of(vec![]), all, &Actor::root());
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
        let (changes, outcomes) = update(&state, edits, &Actor::root());
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
        let (changes, outcomes) = end(&state, vec![other.clone(), other.clone()], &Actor::root());
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
            let (changes, outcome) = fetched(&state_of(changes), &wanted, None, fresh);
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
        let anew = FederationRelationship::clone(&before);
        for now in [None, Some(changed), Some(anew)] {
            let changes = now.map(|now| Change::PutFederation(now.into())).into_iter().collect();
            assert_eq!(fetched(&state_of(changes), &before, None, bundle(1)), (vec![], Fetched::Unwanted));
        }
        let state = state_of(vec![Change::PutFederation(Arc::clone(&before))]);
        let foreign = Bundle::empty(TrustDomain::parse("third.example").unwrap());
        assert_eq!(fetched(&state, &before, None, foreign).1, Fetched::Unwanted);
    }

    #[test]
    fn what_was_proved_by_authorities_that_are_believed_no_longer_is_not_taken() {
        let third = TrustDomain::parse("third.example").unwrap();
        let authority = |der: u8| X509Authority { der: vec![der], tainted: false };
        let proof = |ders: &[u8]| Bundle {
            x509_authorities: ders.iter().map(|der| authority(*der)).collect(),
            ..Bundle::empty(third.clone())
        };
        let by_svid = relationship(other_trust_domain(), Some(third.join("/endpoint").unwrap()));
        for (now, expected) in [
            (None, Fetched::Unwanted),
            (Some(proof(&[])), Fetched::Unwanted),
            (Some(proof(&[2])), Fetched::Unwanted),
            (Some(proof(&[1])), Fetched::Unwanted),
            (Some(proof(&[2, 1])), Fetched::Taken),
            (Some(Bundle { sequence: 9, ..proof(&[1, 2]) }), Fetched::Taken),
        ] {
            let mut changes = vec![Change::PutFederation(Arc::clone(&by_svid))];
            changes.extend(now.map(|now| Change::PutBundle(now.into())));
            let (_, outcome) = fetched(&state_of(changes), &by_svid, Some(&proof(&[1, 2])), bundle(1));
            assert_eq!(outcome, expected);
        }
    }

    #[test]
    fn another_order_of_the_keys_is_no_news() {
        let authority = |der: u8| X509Authority { der: vec![der], tainted: false };
        let with = |ders: [u8; 2]| Bundle { x509_authorities: ders.map(authority).into(), ..bundle(0) };
        let wanted = relationship(other_trust_domain(), None);
        let state = state_of(vec![
            Change::PutFederation(Arc::clone(&wanted)),
            Change::PutBundle(with([1, 2]).into()),
        ]);
        assert_eq!(fetched(&state, &wanted, None, with([2, 1])), (vec![], Fetched::Same));
        assert_eq!(fetched(&state, &wanted, None, with([2, 3])).1, Fetched::Taken);
    }
}
