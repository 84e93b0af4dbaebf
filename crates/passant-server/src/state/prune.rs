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
    let entries = state
        .entries()
        .filter(|entry| entry.has_ended(now))
        .map(|entry| Change::DeleteEntry(entry.id.clone()));
    let tokens =
        state.tokens().filter(|token| token.expires_at < now).map(|token| Change::DeleteToken(token.hash));
    entries.chain(tokens).take(most).collect()
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
    }
}
