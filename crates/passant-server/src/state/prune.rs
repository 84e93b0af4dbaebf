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
