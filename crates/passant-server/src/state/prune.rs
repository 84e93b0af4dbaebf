//! Which objects have outlived their use?

use passant_core::UnixTime;

use crate::state::State;
use crate::state::change::Change;

/// The deletes that clear `state` of entries past their end and of join tokens that have expired, at most `most`.
///
/// For tidiness only: nothing is issued for an ended entry or an expired token, pruned or not. Nodes are kept,
/// since a banned node must stay banned and an expired one tells the operator that it fell silent. Authorities are
/// pruned by their own machine, after what they signed has ended.
pub fn prune(state: &State, now: UnixTime, most: usize) -> Vec<Change> {
    let entries = state.entries().filter(|entry| entry.has_ended(now));
    let tokens = state.tokens().filter(|token| token.expires_at < now);
    let deletes = entries.map(|entry| Change::DeleteEntry(entry.id.clone()));
    deletes.chain(tokens.map(|token| Change::DeleteToken(token.hash))).take(most).collect()
}

/// Whether `delete` is one that [`prune`] would make.
///
/// Lets the journal's writer look again at what somebody else found in an earlier state, without a search of its own.
pub fn is_due(state: &State, delete: &Change, now: UnixTime) -> bool {
    match delete {
        Change::DeleteEntry(id) => state.entry(id).is_some_and(|entry| entry.has_ended(now)),
        Change::DeleteToken(hash) => state.token(hash).is_some_and(|token| token.expires_at < now),
        Change::PutEntry(_)
        | Change::PutNode(_)
        | Change::DeleteNode(_)
        | Change::PutToken(_)
        | Change::PutAuthority(_)
        | Change::DeleteAuthority(_)
        | Change::PutBundle(_)
        | Change::DeleteBundle(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{at, commit, draft, entry_id, node, registered, token, trust_domain};
    use crate::state::{Cursor, Lineage, Revision};

    #[test]
    fn ends_are_exact_and_nodes_stay() {
        let mut ending = draft("/w", "/p", &["k:1"]);
        ending.expires_at = Some(at(100));
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        state.apply(&commit(
            1,
            vec![
                Change::PutEntry(registered("endless", draft("/v", "/p", &["k:1"]))),
                Change::PutEntry(registered("ending", ending)),
                Change::PutNode(node("/spire/agent/x/1", &[])),
                Change::PutToken(token("t", 100)),
            ],
        ));
        let entry = Change::DeleteEntry(entry_id("ending"));
        let token = Change::DeleteToken(token("t", 100).hash);
        assert_eq!(prune(&state, at(99), 10), []);
        // An entry has ended at its end; a token may still be spent in its last second.
        assert_eq!(prune(&state, at(100), 10), vec![entry.clone()]);
        assert_eq!(prune(&state, at(101), 10), [entry.clone(), token]);
        assert_eq!(prune(&state, at(5_000), 1), [entry]);
        for now in [99, 100, 101] {
            let due = prune(&state, at(now), 10);
            for delete in prune(&state, at(5_000), 10) {
                assert_eq!(is_due(&state, &delete, at(now)), due.contains(&delete), "{delete:?} at {now}");
            }
        }
    }
}
