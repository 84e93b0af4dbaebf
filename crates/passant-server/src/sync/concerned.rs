//! Whom does a change concern?
//!
//! The way up from an entry: to its parent, to the entries that grant the parent's SPIFFE ID, and on, until it comes to agents
//! by their own IDs, or to node aliases and so to the nodes that have their selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use passant_core::{Entry, EntryId, SpiffeId, StopTarget, TrustDomain, UnixTime};

use super::mailbox::News;
use crate::journal::Published;
use crate::state::node::AttestedNode;
use crate::state::{Change, State};

/// What is above an entry.
#[derive(Debug, Default)]
pub(crate) struct Above {
    /// Agents that are named as parents, attested or not.
    pub(crate) agents: BTreeSet<SpiffeId>,
    /// Node aliases.
    pub(crate) aliases: Vec<Arc<Entry>>,
}

impl Above {
    /// What is above the entries below `parent`. Entries that have ended count: agents may hold what is below them.
    pub(crate) fn of(state: &State, parent: &SpiffeId) -> Self {
        let (mut above, mut seen, mut next) = (Self::default(), BTreeSet::new(), vec![parent.clone()]);
        while let Some(parent) = next.pop() {
            if !seen.insert(parent.clone()) {
                continue;
            }
            for entry in state.entries_by_spiffe_id(&parent) {
                if entry.is_node_alias() {
                    above.aliases.push(Arc::clone(entry));
                } else {
                    next.push(entry.parent_id.clone());
                }
            }
            if parent.is_agent() {
                above.agents.insert(parent);
            }
        }
        above
    }

    /// Whether it leads to this node.
    pub(crate) fn has(&self, node: &AttestedNode) -> bool {
        self.agents.contains(&node.id) || self.is_alias_of(node)
    }

    /// Whether it leads to this node by an alias.
    pub(crate) fn is_alias_of(&self, node: &AttestedNode) -> bool {
        self.aliases.iter().any(|alias| node.selectors.contains_all(&alias.selectors))
    }
}

/// The attested nodes in good standing to whose agents `entry` belongs, whether they are in contact or not, in the order of
/// their IDs. Of a node alias: those that it stands for.
pub fn concerned_agents(state: &State, entry: &Entry, now: UnixTime) -> Vec<SpiffeId> {
    let stands = |node: &AttestedNode| node.is_standing(now);
    if entry.is_node_alias() {
        let nodes =
            state.nodes().filter(|node| stands(node) && node.selectors.contains_all(&entry.selectors));
        return nodes.map(|node| node.id.clone()).collect();
    }
    let above = Above::of(state, &entry.parent_id);
    if above.aliases.is_empty() {
        let nodes = above.agents.iter().filter_map(|id| state.node(id));
        return nodes.filter(|node| stands(node)).map(|node| node.id.clone()).collect();
    }
    state.nodes().filter(|node| stands(node) && above.has(node)).map(|node| node.id.clone()).collect()
}

/// What a difference is about, before it is known who watches.
#[derive(Debug, Default)]
pub(crate) struct Concerns {
    /// Anything may have changed, for everybody.
    pub(crate) everything: bool,
    /// Entries, by what is above them.
    pub(crate) entries: Vec<(Above, Vec<EntryId>)>,
    /// All entries of those to whom this leads.
    pub(crate) all_entries: Vec<Above>,
    /// To whom this leads is also to look at stops.
    pub(crate) stops: Vec<Above>,
    /// Nodes whose rows changed; and whether their selectors did.
    pub(crate) nodes: BTreeMap<SpiffeId, bool>,
    /// Agents of which something was stopped, or goes on; and whether that is all that they have.
    pub(crate) stopped_agents: BTreeMap<SpiffeId, bool>,
    /// The own bundle.
    pub(crate) own_bundle: bool,
    /// Bundles of foreign trust domains.
    pub(crate) foreign_bundles: BTreeSet<TrustDomain>,
    pub(crate) authorities: bool,
}

impl Concerns {
    pub(crate) fn of(published: &Published) -> Self {
        let Published { before, after, changes } = published;
        let Some(changes) = changes else { return Self { everything: true, ..Self::default() } };
        let mut concerns = Self::default();
        let (mut entries, mut stopped_entries) = (BTreeSet::new(), BTreeSet::new());
        for change in changes {
            match change {
                Change::PutEntry(entry) => drop(entries.insert(&entry.id)),
                Change::DeleteEntry(id) => drop(entries.insert(id)),
                Change::PutNode(node) => concerns.node(&node.id, before, after),
                Change::DeleteNode(id) => concerns.node(id, before, after),
                Change::PutAuthority(_) | Change::DeleteAuthority(_) => concerns.authorities = true,
                Change::PutBundle(bundle) => concerns.bundle(&bundle.trust_domain, after),
                Change::DeleteBundle(trust_domain) => concerns.bundle(trust_domain, after),
                Change::PutStop(stop) => stopped(&mut concerns, &mut stopped_entries, &stop.target),
                Change::DeleteStop(target) => stopped(&mut concerns, &mut stopped_entries, target),
                Change::PutToken(_)
                | Change::DeleteToken(_)
                | Change::PutFederation(_)
                | Change::DeleteFederation(_) => {}
            }
        }
        // The way up is the same for all entries below one parent.
        let (mut by_parent, mut below_parent) = (BTreeMap::new(), BTreeSet::new());
        let mut stops_below = BTreeSet::new();
        for id in entries.union(&stopped_entries) {
            let is_changed = entries.contains(id);
            let (old, new) = (before.entry(id), after.entry(id));
            let is_structural = is_changed && is_structural(old.map(AsRef::as_ref), new.map(AsRef::as_ref));
            let is_stopped = stopped_entries.contains(id)
                || before.entry_stop(id).is_some()
                || after.entry_stop(id).is_some();
            for (side, entry) in [(Side::Before, old), (Side::After, new)] {
                let Some(entry) = entry else { continue };
                if entry.is_node_alias() {
                    if is_structural {
                        let aliases = vec![Arc::clone(entry)];
                        concerns.all_entries.push(Above { agents: BTreeSet::new(), aliases });
                    }
                    continue;
                }
                let place = (side, &entry.parent_id);
                by_parent.entry(place).or_insert_with(Vec::new).push((*id).clone());
                let has_children = |state: &State| state.children(&entry.spiffe_id).next().is_some();
                if is_structural && (has_children(before) || has_children(after)) {
                    below_parent.insert(place);
                }
                if is_stopped {
                    stops_below.insert(place);
                }
            }
        }
        let above = |(side, parent): (Side, &SpiffeId)| Above::of(side.of(before, after), parent);
        concerns.entries.extend(by_parent.into_iter().map(|(place, ids)| (above(place), ids)));
        concerns.all_entries.extend(below_parent.into_iter().map(above));
        concerns.stops.extend(stops_below.into_iter().map(above));
        concerns
    }

    /// What it means for every agent.
    pub(crate) fn of_all(&self) -> News {
        if self.everything {
            return News::EVERYTHING;
        }
        News { bundles: self.own_bundle, authorities: self.authorities, ..News::default() }
    }

    fn node(&mut self, id: &SpiffeId, before: &State, after: &State) {
        let selectors = |state: &State| state.node(id).map(|node| node.selectors.clone());
        let changed = selectors(before) != selectors(after);
        *self.nodes.entry(id.clone()).or_default() |= changed;
    }

    fn bundle(&mut self, trust_domain: &TrustDomain, state: &State) {
        if trust_domain == state.trust_domain() {
            self.own_bundle = true;
        } else {
            self.foreign_bundles.insert(trust_domain.clone());
        }
    }
}

/// In which state the way up is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Before,
    After,
}

impl Side {
    const fn of<'a>(self, before: &'a Arc<State>, after: &'a Arc<State>) -> &'a Arc<State> {
        match self {
            Self::Before => before,
            Self::After => after,
        }
    }
}

fn stopped<'a>(concerns: &mut Concerns, entries: &mut BTreeSet<&'a EntryId>, target: &'a StopTarget) {
    match target {
        StopTarget::Entry(id) => drop(entries.insert(id)),
        StopTarget::Agent(agent) => *concerns.stopped_agents.entry(agent.clone()).or_default() = true,
        StopTarget::Instance { agent, .. } => {
            concerns.stopped_agents.entry(agent.clone()).or_default();
        }
    }
}

/// Whether what hangs below an entry may belong to others than before.
fn is_structural(old: Option<&Entry>, new: Option<&Entry>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    old.parent_id != new.parent_id
        || old.spiffe_id != new.spiffe_id
        || old.expires_at != new.expires_at
        || (old.is_node_alias() && old.selectors != new.selectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{at, commit, draft, entry, id, node, registered, trust_domain};
    use crate::state::{Cursor, Lineage, Revision};

    #[test]
    fn the_way_up_leads_to_agents_and_to_nodes_by_their_selectors() {
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        let expired =
            AttestedNode { not_after: at(4), ..AttestedNode::clone(&node("/spire/agent/x/4", &["x:a"])) };
        let banned =
            AttestedNode { serial: None, ..AttestedNode::clone(&node("/spire/agent/x/5", &["x:a"])) };
        state.apply(&commit(
            1,
            vec![
                Change::PutEntry(registered("alias", draft("/pool", "/spire/server", &["x:a"]))),
                Change::PutEntry(entry("below", "/w", "/pool")),
                Change::PutEntry(entry("mine", "/w", "/spire/agent/x/2")),
                Change::PutEntry(entry("deep", "/u", "/w")),
                Change::PutEntry(entry("back", "/w", "/u")),
                Change::PutEntry(entry("lost", "/v", "/nowhere")),
                Change::PutNode(node("/spire/agent/x/1", &["x:a", "x:b"])),
                Change::PutNode(node("/spire/agent/x/2", &["x:b"])),
                Change::PutNode(node("/spire/agent/x/3", &["x:b"])),
                Change::PutNode(Arc::new(expired)),
                Change::PutNode(Arc::new(banned)),
            ],
        ));
        for (name, agents) in [
            ("alias", &["/spire/agent/x/1"][..]),
            ("below", &["/spire/agent/x/1"]),
            ("mine", &["/spire/agent/x/2"]),
            ("deep", &["/spire/agent/x/1", "/spire/agent/x/2"]),
            ("back", &["/spire/agent/x/1", "/spire/agent/x/2"]),
            ("lost", &[]),
        ] {
            let entry = state.entry(&crate::state::samples::entry_id(name)).unwrap();
            let expected: Vec<SpiffeId> = agents.iter().map(|agent| id(agent)).collect();
            assert_eq!(concerned_agents(&state, entry, at(5)), expected, "{name}");
        }
    }
}
