//! Does the way up from an entry reach a node, and if not, where does it end?

use std::collections::BTreeSet;
use std::sync::Arc;

use passant_core::explanation::{Cause, Code, Have};
use passant_core::{Entry, SpiffeId, UnixTime};

use super::{Scene, bad_standing};
use crate::limits::EXPLAINED_PARENTS;
use crate::state::State;
use crate::state::node::AttestedNode;

/// Where a way up ends.
enum End {
    /// At an attested node.
    Node(Arc<AttestedNode>),
    /// At nodes that have all selectors of this alias.
    Alias(Arc<Entry>),
    /// At an entry that has ended.
    Ended(Arc<Entry>),
    /// At an ID that stands for nothing: of no attested node and of no entry.
    Nothing(SpiffeId),
}

/// Why `entry` is not served on the node of `agent`, or on any without it; nothing if it is, as far as parents go. What is
/// wrong with the node of `agent` itself is not said again.
pub(super) fn broken(entry: &Entry, agent: Option<&SpiffeId>, scene: &Scene<'_>) -> Vec<Cause> {
    let (state, now) = (scene.state, scene.now);
    let node = agent.and_then(|agent| state.node(agent));
    if agent.is_some() && node.is_none() {
        // Nobody knows what an unknown node would have; that it is unknown was said.
        return Vec::new();
    }
    let ends = ends(state, entry, now);
    if ends.is_empty() {
        return vec![Code::ParentCycle.blocks(
            format!("the parents of the entry {} lead in a circle, and to no node", entry.id),
            "give one of the entries above an agent's ID, or that of a node alias, as its parent",
        )];
    }
    let causes: Option<Vec<Cause>> = ends
        .iter()
        .map(|end| match node {
            Some(node) => off_node(end, node, entry),
            None => off_all(end, entry, scene),
        })
        .collect();
    causes.unwrap_or_default()
}

/// All ends of the ways up from `entry`.
fn ends(state: &State, entry: &Entry, now: UnixTime) -> Vec<End> {
    let mut ends = Vec::new();
    let mut seen = BTreeSet::new();
    let mut parents = vec![entry.parent_id.clone()];
    while let Some(parent) = parents.pop() {
        if seen.len() >= EXPLAINED_PARENTS || !seen.insert(parent.clone()) {
            continue;
        }
        if let Some(node) = state.node(&parent) {
            ends.push(End::Node(Arc::clone(node)));
            continue;
        }
        let mut above = state.entries_by_spiffe_id(&parent).peekable();
        if above.peek().is_none() {
            ends.push(End::Nothing(parent.clone()));
        }
        for above in above {
            match (above.has_ended(now), above.is_node_alias()) {
                (true, _) => ends.push(End::Ended(Arc::clone(above))),
                (false, true) => ends.push(End::Alias(Arc::clone(above))),
                (false, false) => parents.push(above.parent_id.clone()),
            }
        }
    }
    ends
}

/// Why this way does not lead to `node`; `None` if it does.
fn off_node(end: &End, node: &AttestedNode, entry: &Entry) -> Option<Cause> {
    match end {
        End::Node(other) if other.id == node.id => None,
        End::Node(other) => Some(Code::OfAnotherNode.blocks(
            format!("the entry {} belongs to the node of {}, not to that of {}", entry.id, other.id, node.id),
            format!(
                "if it is to be served here: `passant entry create` the same with --parent-id {}, or give both nodes a \
                 node alias as the parent",
                node.id
            ),
        )),
        End::Alias(alias) if node.selectors.contains_all(&alias.selectors) => None,
        End::Alias(alias) => Some(lacks_alias(alias, entry, node)),
        End::Ended(above) => Some(ended(above, entry)),
        End::Nothing(parent) => Some(unknown_parent(parent, entry)),
    }
}

/// Why this way leads to no node that would be served; `None` if it leads to one.
fn off_all(end: &End, entry: &Entry, scene: &Scene<'_>) -> Option<Cause> {
    match end {
        End::Node(node) => bad_standing(node, scene.now),
        End::Alias(alias) => {
            let sound = || scene.state.nodes().filter(|node| bad_standing(node, scene.now).is_none());
            if sound().any(|node| node.selectors.contains_all(&alias.selectors)) {
                return None;
            }
            let nearest =
                sound().min_by_key(|node| Have::new(&node.selectors).missing(&alias.selectors).len());
            Some(match nearest {
                Some(node) => lacks_alias(alias, entry, node),
                None => Code::AliasSelectorsMissing.blocks(
                    format!(
                        "the entry {} belongs to nodes of the alias {}, and no node is attested",
                        entry.id, alias.spiffe_id
                    ),
                    "attest a node; see `passant agent list`",
                ),
            })
        }
        End::Ended(above) => Some(ended(above, entry)),
        End::Nothing(parent) => Some(unknown_parent(parent, entry)),
    }
}

fn lacks_alias(alias: &Entry, entry: &Entry, node: &AttestedNode) -> Cause {
    let have = Have::new(&node.selectors);
    let missing = have.describe(&have.missing(&alias.selectors));
    Code::AliasSelectorsMissing.blocks(
        format!(
            "the entry {} belongs to nodes of the alias {} (entry {}), which asks for {missing}; the node of {} lacks that",
            entry.id, alias.spiffe_id, alias.id, node.id
        ),
        format!(
            "change what the alias asks for with `passant entry update {}`, or attest the node so that it has it",
            alias.id
        ),
    )
}

fn ended(above: &Entry, entry: &Entry) -> Cause {
    Code::ParentEnded.blocks(
        format!(
            "the entry {} hangs below the entry {} for {}, which has ended",
            entry.id, above.id, above.spiffe_id
        ),
        format!("if that is to go on: `passant entry update {} --expires-at RFC3339`", above.id),
    )
}

fn unknown_parent(parent: &SpiffeId, entry: &Entry) -> Cause {
    let where_to = if *parent == entry.parent_id { "its parent" } else { "above it is" };
    let (says, remedy) = if parent.is_agent() {
        (
            format!("{where_to} {parent}, and no such agent is attested"),
            "attest that agent, or name the present agent of the node (`passant agent list`)",
        )
    } else {
        (
            format!("{where_to} {parent}, and neither an agent nor an entry has that ID"),
            "register a node alias or an entry for that ID, or name a parent that there is",
        )
    };
    Code::ParentUnknown.blocks(
        format!("the entry {} belongs to no node: {says}", entry.id),
        format!("{remedy}: `passant entry update {} --parent-id SPIFFE_ID`", entry.id),
    )
}
