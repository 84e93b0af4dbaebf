//! When may a registration entry be made, changed or removed?

use std::sync::Arc;

use passant_core::{Entry, EntryDraft, EntryId, Refusal, SpiffeId, TrustDomain, UnixTime};

use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::journal::Decided;
use crate::state::State;
use crate::state::change::Change;

/// An entry as it stands after a create.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) entry: Arc<Entry>,
    /// It stood before, with the same parent ID, SPIFFE ID and selectors; nothing was changed.
    pub(crate) existed: bool,
}

/// How an update makes a draft of the entry that stands.
pub(crate) trait Edit: Send + 'static {
    /// The draft, or why the edit is wrong.
    fn apply(self: Box<Self>, entry: &Entry) -> Result<EntryDraft, Refusal>;
}

impl<F: FnOnce(&Entry) -> Result<EntryDraft, Refusal> + Send + 'static> Edit for F {
    fn apply(self: Box<Self>, entry: &Entry) -> Result<EntryDraft, Refusal> {
        self(entry)
    }
}

/// Creates entries for `actor`, each seeing those before it. A draft without an ID takes the fresh one beside it. Outcomes are in
/// the order of the drafts; one that is refused does not hold up the others.
pub(crate) fn create(
    state: &State,
    drafts: Vec<(EntryDraft, EntryId)>,
    actor: &Actor,
    now: UnixTime,
) -> (Decided, Vec<Result<Created, Refusal>>) {
    decide_each(state, drafts, |so_far, (draft, fresh), revision| {
        actor.may(Verb::EntryCreate, &Target::Draft((&draft).into()), so_far)?;
        if let Some(twin) = so_far.find_duplicate(&draft) {
            return Ok((None, Created { entry: Arc::clone(twin), existed: true }));
        }
        let id = draft.id.clone().unwrap_or(fresh);
        if so_far.entry(&id).is_some() {
            return Err(Refusal::already_exists(format!("an entry with ID \"{id}\" already exists")));
        }
        let entry = register(so_far, draft, id, revision, now)?;
        is_federated(so_far, &entry, None)?;
        Ok((Some(Change::PutEntry(Arc::clone(&entry))), Created { entry, existed: false }))
    })
}

/// Updates entries for `actor`, who must be allowed to both as they are and as they become; each sees those before it.
/// Outcomes are in the order of the edits.
pub(crate) fn update(
    state: &State,
    edits: Vec<(EntryId, Box<dyn Edit>)>,
    actor: &Actor,
) -> (Decided, Vec<Result<Arc<Entry>, Refusal>>) {
    decide_each(state, edits, |so_far, (id, edit), revision| {
        let old = so_far.entry(&id).ok_or_else(no_entry)?;
        may_touch(actor, Verb::EntryUpdate, old, so_far)?;
        let draft = edit.apply(old)?;
        actor.may(Verb::EntryUpdate, &Target::Draft((&draft).into()), so_far)?;
        let entry = register(so_far, draft, id, revision, old.created_at)?;
        is_federated(so_far, &entry, Some(old))?;
        Ok((Some(Change::PutEntry(Arc::clone(&entry))), entry))
    })
}

/// Removes entries for `actor`. Outcomes are in the order of the IDs, with the SPIFFE IDs that they had; the second of two equal ones is not found.
pub(crate) fn delete(
    state: &State,
    ids: Vec<EntryId>,
    actor: &Actor,
) -> (Decided, Vec<Result<SpiffeId, Refusal>>) {
    decide_each(state, ids, |so_far, id, _| {
        let entry = so_far.entry(&id).ok_or_else(no_entry)?;
        may_touch(actor, Verb::EntryDelete, entry, so_far)?;
        let spiffe_id = entry.spiffe_id.clone();
        Ok((Some(Change::DeleteEntry(id)), spiffe_id))
    })
}

/// Whether `actor` may do `verb` to an entry as it stands. Of one that they do not get to see they do not learn that it is
/// there; the record does.
pub(super) fn may_touch(actor: &Actor, verb: Verb, entry: &Entry, state: &State) -> Result<(), Refusal> {
    let answer = actor.may(verb, &Target::Entry(entry.into()), state);
    answer.map_err(|refusal| if actor.sees(entry) { refusal } else { no_entry().because(refusal) })
}

/// The entry, if there is one and `actor` gets to see it.
///
/// # Errors
/// Not found, whichever it is; of what is hidden the record learns.
pub(crate) fn seen(entry: Option<Arc<Entry>>, actor: &Actor) -> Result<Arc<Entry>, Refusal> {
    let entry = entry.ok_or_else(no_entry)?;
    if !actor.sees(&entry) {
        return Err(no_entry().because(Refusal::denied("no role of the caller reaches the entry")));
    }
    Ok(entry)
}

fn no_entry() -> Refusal {
    Refusal::not_found("entry not found")
}

fn register(
    state: &State,
    draft: EntryDraft,
    id: EntryId,
    revision: u64,
    created_at: UnixTime,
) -> Result<Arc<Entry>, Refusal> {
    draft
        .register(state.trust_domain(), id, revision, created_at)
        .map(|entry| state.handle(entry))
        .map_err(|error| Refusal::invalid(error.to_string()))
}

/// Refuses a trust domain without a bundle, unless `old` named it before: a bundle may have gone since.
fn is_federated(state: &State, entry: &Entry, old: Option<&Entry>) -> Result<(), Refusal> {
    let is_new = |foreign: &&TrustDomain| old.is_none_or(|old| !old.federates_with.contains(*foreign));
    match entry.federates_with.iter().filter(is_new).find(|foreign| state.bundle_of(foreign).is_none()) {
        None => Ok(()),
        Some(foreign) => Err(Refusal::precondition(format!(
            "federates_with: there is no bundle of trust domain \"{foreign}\"; add it first"
        ))),
    }
}

/// As [`decide_each`], of what there are few.
pub(super) fn each<I, C: IntoIterator<Item = Change>, T>(
    state: &State,
    items: Vec<I>,
    decide: impl FnMut(&State, I, u64) -> Result<(C, T), Refusal>,
) -> (Vec<Change>, Vec<Result<T, Refusal>>) {
    let (decided, outcomes) = decide_each(state, items, decide);
    (decided.changes, outcomes)
}

/// Decides `items` one after the other, each against the state that the ones before it leave. All changes make one
/// commit, whose number is the new revision of every entry it touches: an entry that is deleted and made again never
/// has a revision that an agent has seen before.
fn decide_each<I, C: IntoIterator<Item = Change>, T>(
    state: &State,
    items: Vec<I>,
    mut decide: impl FnMut(&State, I, u64) -> Result<(C, T), Refusal>,
) -> (Decided, Vec<Result<T, Refusal>>) {
    let revision = state.cursor().revision.next().number();
    let mut so_far = state.clone();
    let mut changes = Vec::new();
    let mut outcomes = Vec::with_capacity(items.len());
    for item in items {
        outcomes.push(decide(&so_far, item, revision).map(|(wanted, outcome)| {
            for change in wanted {
                so_far.change(change.clone());
                changes.push(change);
            }
            outcome
        }));
    }
    so_far.commit();
    (Decided { changes, after: Some(so_far) }, outcomes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Edit;
    use crate::caller::Actor;
    use crate::journal::Decided;
    use crate::state::Change;
    use crate::state::State;
    use crate::state::change::{Commit, Cursor, Lineage, RequestId, Revision};
    use passant_core::{
        Bundle, Entry, EntryDraft, EntryId, Reason, Refusal, Selector, SpiffeId, TrustDomain, UnixTime,
    };

    const NOW: UnixTime = UnixTime::from_secs(1_000);

    fn empty() -> State {
        let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
        State::empty(TrustDomain::parse("example.org").unwrap(), cursor)
    }

    fn draft(path: &str, selector: &str) -> EntryDraft {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let selectors = [Selector::parse(selector).unwrap()].into_iter().collect();
        EntryDraft::new(trust_domain.join(path).unwrap(), trust_domain.join("/node").unwrap(), selectors)
    }

    fn id(text: &str) -> EntryId {
        EntryId::parse(text).unwrap()
    }

    fn take(state: &mut State, changes: Vec<Change>) {
        state.apply(&Commit { request_id: RequestId::new([2; 16]), changes });
    }

    /// The changes, of which the state that was made of them tells the same.
    fn checked<T>(state: &State, (decided, outcomes): (Decided, T)) -> (Vec<Change>, T) {
        let mut after = state.clone();
        take(&mut after, decided.changes.clone());
        assert_eq!(decided.after, Some(after));
        (decided.changes, outcomes)
    }

    fn create(
        state: &State,
        drafts: Vec<(EntryDraft, EntryId)>,
        actor: &Actor,
        now: UnixTime,
    ) -> (Vec<Change>, Vec<Result<super::Created, Refusal>>) {
        checked(state, super::create(state, drafts, actor, now))
    }

    fn update(
        state: &State,
        edits: Vec<(EntryId, Box<dyn Edit>)>,
        actor: &Actor,
    ) -> (Vec<Change>, Vec<Result<Arc<Entry>, Refusal>>) {
        checked(state, super::update(state, edits, actor))
    }

    fn delete(
        state: &State,
        ids: Vec<EntryId>,
        actor: &Actor,
    ) -> (Vec<Change>, Vec<Result<SpiffeId, Refusal>>) {
        checked(state, super::delete(state, ids, actor))
    }

    #[test]
    fn a_twin_is_returned_even_when_it_comes_in_the_same_batch() {
        let drafts = vec![
            (draft("/a", "unix:uid:1"), id("one")),
            (draft("/a", "unix:uid:1"), id("two")),
            (draft("/a", "unix:uid:2"), id("three")),
        ];
        let (changes, outcomes) = create(&empty(), drafts, &Actor::root(), NOW);
        assert_eq!(changes.len(), 2);
        let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        assert_eq!(outcomes.iter().map(|o| o.existed).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(outcomes[1].entry.id, id("one"));
    }

    #[test]
    fn a_taken_id_is_refused_and_does_not_hold_up_the_others() {
        let named = |path: &str| EntryDraft { id: Some(id("same")), ..draft(path, "unix:uid:1") };
        let drafts =
            vec![(named("/a"), id("x")), (named("/b"), id("y")), (draft("/c", "unix:uid:1"), id("z"))];
        let (changes, outcomes) = create(&empty(), drafts, &Actor::root(), NOW);
        assert_eq!(changes.len(), 2);
        assert_eq!(outcomes[1].as_ref().unwrap_err().reason, Reason::AlreadyExists);
        assert!(outcomes[2].is_ok());
    }

    #[test]
    fn a_federated_trust_domain_needs_a_bundle() {
        let foreign = EntryDraft {
            federates_with: [TrustDomain::parse("elsewhere.org").unwrap()].into(),
            ..draft("/a", "unix:uid:1")
        };
        let (changes, outcomes) = create(&empty(), vec![(foreign, id("x"))], &Actor::root(), NOW);
        assert!(changes.is_empty());
        let refusal = outcomes.into_iter().next().unwrap().unwrap_err();
        assert_eq!(refusal.reason, Reason::Precondition);
        assert!(refusal.public.contains("elsewhere.org"), "{refusal}");
    }

    #[test]
    fn an_entry_whose_federated_bundle_has_gone_can_be_changed_otherwise() {
        let elsewhere = TrustDomain::parse("elsewhere.org").unwrap();
        let mut state = empty();
        take(&mut state, vec![Change::PutBundle(Arc::new(Bundle::empty(elsewhere.clone())))]);
        let foreign = EntryDraft { federates_with: [elsewhere.clone()].into(), ..draft("/a", "unix:uid:1") };
        let (changes, _) = create(&state, vec![(foreign, id("x"))], &Actor::root(), NOW);
        take(&mut state, changes);
        take(&mut state, vec![Change::DeleteBundle(elsewhere)]);
        let hint = |entry: &Entry| Ok(EntryDraft { hint: "new".to_owned(), ..entry.to_draft() });
        let (changes, outcomes) = update(&state, vec![(id("x"), Box::new(hint))], &Actor::root());
        assert_eq!((changes.len(), outcomes[0].as_ref().unwrap().hint.as_str()), (1, "new"));
        let more = |entry: &Entry| {
            let mut draft = entry.to_draft();
            draft.federates_with.insert(TrustDomain::parse("third.org").unwrap());
            Ok(draft)
        };
        let (_, outcomes) = update(&state, vec![(id("x"), Box::new(more))], &Actor::root());
        assert!(outcomes[0].as_ref().unwrap_err().public.contains("third.org"));
    }

    #[test]
    fn every_change_takes_a_revision_never_seen_before() {
        let mut state = empty();
        let (changes, _) = create(&state, vec![(draft("/a", "unix:uid:1"), id("x"))], &Actor::root(), NOW);
        take(&mut state, changes);
        let first = state.entry(&id("x")).unwrap().revision;
        let rename = |entry: &Entry| Ok(EntryDraft { hint: "new".to_owned(), ..entry.to_draft() });
        let (changes, outcomes) = update(&state, vec![(id("x"), Box::new(rename))], &Actor::root());
        let updated = outcomes.into_iter().next().unwrap().unwrap();
        assert!(updated.revision > first);
        assert_eq!((updated.created_at, updated.hint.as_str()), (NOW, "new"));
        take(&mut state, changes);
        let (changes, _) = delete(&state, vec![id("x")], &Actor::root());
        take(&mut state, changes);
        let (changes, _) = create(&state, vec![(draft("/a", "unix:uid:1"), id("x"))], &Actor::root(), NOW);
        take(&mut state, changes);
        assert!(state.entry(&id("x")).unwrap().revision > updated.revision);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let keep = |entry: &Entry| Ok(entry.to_draft());
        let (changes, outcomes) = update(&empty(), vec![(id("x"), Box::new(keep))], &Actor::root());
        assert_eq!((changes.len(), outcomes[0].as_ref().unwrap_err().reason), (0, Reason::NotFound));
        let mut state = empty();
        let (changes, _) = create(&state, vec![(draft("/a", "unix:uid:1"), id("x"))], &Actor::root(), NOW);
        take(&mut state, changes);
        let (changes, outcomes) = delete(&state, vec![id("x"), id("x")], &Actor::root());
        assert_eq!(changes.len(), 1);
        assert!(outcomes[0].is_ok());
        assert_eq!(outcomes[1].as_ref().unwrap_err().reason, Reason::NotFound);
    }
}
