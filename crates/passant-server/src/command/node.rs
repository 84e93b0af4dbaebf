//! How is an attested node evicted or banned, and what does it report of itself?

use std::sync::Arc;

use passant_core::{AgentFault, Entry, Refusal, Selector, SpiffeId};

use crate::state::change::Change;
use crate::state::{AttestedNode, State};

/// Forgets the node. Its agent has to attest again; the join token that it spent is forgotten too, so it cannot be
/// spent by repeating that attestation. The entry that stood for the token's alias goes with it.
///
/// # Errors
/// Not found.
pub(crate) fn evict(state: &State, id: &SpiffeId) -> Result<(Vec<Change>, ()), Refusal> {
    state.node(id).ok_or_else(no_agent)?;
    let entries = state.children(id).filter(|entry| is_token_alias(entry));
    let entries = entries.map(|entry| Change::DeleteEntry(entry.id.clone()));
    let tokens = state
        .tokens()
        .filter(|token| token.spent.as_ref().is_some_and(|spent| spent.agent_id == *id))
        .map(|token| Change::DeleteToken(token.hash));
    let changes = std::iter::once(Change::DeleteNode(id.clone())).chain(entries).chain(tokens).collect();
    Ok((changes, ()))
}

/// Whether the entry stands for a join token's alias: it is its parent's, for nobody else.
pub(crate) fn is_token_alias(entry: &Entry) -> bool {
    let mut selectors = entry.selectors.iter();
    let only = selectors.next().filter(|_| entry.selectors.len() == 1);
    only.is_some_and(|only: &Selector| only.kind() == "spiffe_id" && only.value() == entry.parent_id.as_str())
}

/// Bans the node: nothing its agent shows is accepted, and it cannot attest, until it is evicted.
///
/// # Errors
/// Not found.
pub(crate) fn ban(state: &State, id: &SpiffeId) -> Result<(Vec<Change>, ()), Refusal> {
    let node = state.node(id).ok_or_else(no_agent)?;
    if node.is_banned() && node.adopted.is_none() {
        return Ok((Vec::new(), ()));
    }
    // A ban of this server's own: to give adopted agents back does not lift it.
    let ends = node.last_end();
    let banned = AttestedNode {
        serial: None,
        pending: None,
        not_after: ends,
        adopted: None,
        ..AttestedNode::clone(node)
    };
    Ok((vec![Change::PutNode(Arc::new(banned))], ()))
}

/// Keeps what the agent says of its version.
///
/// # Errors
/// Denied when the node has gone, or was banned, since the call was admitted.
pub(crate) fn report(state: &State, id: &SpiffeId, version: String) -> Result<(Vec<Change>, ()), Refusal> {
    let gone = || {
        Refusal::denied(format!("agent \"{id}\" is not attested")).with_agent_fault(AgentFault::NotAttested)
    };
    let node = state.node(id).ok_or_else(gone)?;
    if node.agent_version.as_deref() == Some(&version) {
        return Ok((Vec::new(), ()));
    }
    let told = AttestedNode { agent_version: Some(version), ..AttestedNode::clone(node) };
    Ok((vec![Change::PutNode(Arc::new(told))], ()))
}

fn no_agent() -> Refusal {
    Refusal::not_found("agent not found")
}
