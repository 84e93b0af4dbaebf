//! Does the way up from an entry reach a node, and if not, where does it end?

use std::collections::BTreeSet;
use std::sync::Arc;

use passant_core::explanation::{Cause, Code, Have};
use passant_core::{Entry, SpiffeId, UnixTime};

use super::{Case, Scene, bad_standing};
use crate::limits::{EXPLAINED_ENTRIES, EXPLAINED_PARENTS, EXPLAINED_WAYS};
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

/// Whether a node alias stands for a node that is served.
pub(super) enum Reach {
    /// It does.
    Served,
    /// It does not; this node comes nearest.
    Near(Arc<AttestedNode>),
    /// It does not, and no other would.
    Nothing,
}

/// Where the ways up from an entry end.
struct Ways {
    ends: Vec<End>,
    /// Whether these are all of them.
    is_all: bool,
}

/// Why `entry` is not served on the node that is asked about, or on any without one; nothing if it is, as far as parents go.
/// What is wrong with that node itself is not said again. A pool has thousands of nodes, and of each there is the same to
/// say, so only the most telling causes are kept.
pub(super) fn broken(entry: &Entry, case: &Case<'_>) -> Vec<Cause> {
    let (state, now) = (case.scene.state, case.scene.now);
    let agent = case.question.agent.as_ref();
    let node = agent.and_then(|agent| state.node(agent));
    if agent.is_some() && node.is_none() || case.is_of_node(entry) {
        // Nobody knows what an unknown node would have; that it is unknown was said.
        return Vec::new();
    }
    let ways = ways(state, entry, now);
    if ways.ends.is_empty() {
        let says = match ways.is_all {
            true => format!("the parents of the entry {} lead in a circle, and to no node", entry.id),
            false => {
                format!("the first {EXPLAINED_PARENTS} parents of the entry {} lead to no node", entry.id)
            }
        };
        let remedy = "give one of the entries above an agent's ID, or that of a node alias, as its parent";
        return vec![Code::ParentCycle.blocks(says, remedy)];
    }
    let mut causes: Vec<Cause> = Vec::new();
    for end in &ways.ends {
        let cause = match node {
            Some(node) => off_node(end, node, entry),
            None => off_all(end, entry, case),
        };
        let Some(cause) = cause else { return Vec::new() };
        let at = causes.partition_point(|known| known.code <= cause.code);
        causes.insert(at, cause);
        causes.truncate(EXPLAINED_WAYS);
    }
    match node.is_some() || ways.is_all {
        true => causes,
        // One of those that were not looked at may be served.
        false => Vec::new(),
    }
}

/// The ends of the ways up from `entry`, as many as are looked at.
fn ways(state: &State, entry: &Entry, now: UnixTime) -> Ways {
    let (mut ends, mut is_all) = (Vec::new(), true);
    let mut seen = BTreeSet::new();
    let mut parents = vec![entry.parent_id.clone()];
    while let Some(parent) = parents.pop() {
        if seen.contains(&parent) {
            continue;
        }
        if seen.len() >= EXPLAINED_PARENTS {
            return Ways { ends, is_all: false };
        }
        seen.insert(parent.clone());
        if let Some(node) = state.node(&parent) {
            ends.push(End::Node(Arc::clone(node)));
            continue;
        }
        let mut above = state.entries_by_spiffe_id(&parent).peekable();
        if above.peek().is_none() {
            ends.push(End::Nothing(parent.clone()));
        }
        for above in above {
            if ends.len() + parents.len() >= EXPLAINED_PARENTS {
                is_all = false;
                break;
            }
            match (above.has_ended(now), above.is_node_alias()) {
                (true, _) => ends.push(End::Ended(Arc::clone(above))),
                (false, true) => ends.push(End::Alias(Arc::clone(above))),
                (false, false) => parents.push(above.parent_id.clone()),
            }
        }
    }
    Ways { ends, is_all }
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
fn off_all(end: &End, entry: &Entry, case: &Case<'_>) -> Option<Cause> {
    match end {
        End::Node(node) => bad_standing(node, case.scene),
        End::Alias(alias) => {
            // Looking at all nodes takes a while: once for each alias, whatever is below it, and not for any number of them.
            let mut looked_at = case.aliases.borrow_mut();
            if !looked_at.contains_key(&alias.id) {
                if looked_at.len() >= EXPLAINED_ENTRIES {
                    return None;
                }
                looked_at.insert(alias.id.clone(), Reach::of(alias, case.scene));
            }
            match looked_at.get(&alias.id)? {
                Reach::Served => None,
                Reach::Near(node) if node.selectors.contains_all(&alias.selectors) => {
                    bad_standing(node, case.scene)
                }
                Reach::Near(node) => Some(lacks_alias(alias, entry, node)),
                Reach::Nothing => Some(Code::AliasSelectorsMissing.blocks(
                    format!(
                        "the entry {} belongs to nodes of the alias {}, and no node is attested",
                        entry.id, alias.spiffe_id
                    ),
                    "attest a node; see `passant agent list`",
                )),
            }
        }
        End::Ended(above) => Some(ended(above, entry)),
        End::Nothing(parent) => Some(unknown_parent(parent, entry)),
    }
}

impl Reach {
    fn of(alias: &Entry, scene: &Scene<'_>) -> Self {
        let lacks = |node: &Arc<AttestedNode>| {
            alias.selectors.iter().filter(|wanted| !node.selectors.contains(wanted)).count()
        };
        // A node that is stopped, or still to come from another server, is better than none.
        let standing = |node| bad_standing(node, scene).map(|cause| cause.code);
        let nodes = scene.state.nodes().map(|node| (standing(node), lacks(node), node));
        let fit = nodes.filter(|(bad, ..)| matches!(bad, None | Some(Code::Stopped | Code::NotYetSynced)));
        match fit.min_by_key(|(bad, lacks, _)| (*lacks, *bad)) {
            Some((None, _, node)) if node.selectors.contains_all(&alias.selectors) => Self::Served,
            Some((_, _, node)) => Self::Near(Arc::clone(node)),
            None => Self::Nothing,
        }
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
