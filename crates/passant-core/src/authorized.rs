//! Which entries may an agent ask SVIDs for?

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::entry::{Entry, is_server};
use crate::selector::Selectors;
use crate::spiffe_id::SpiffeId;
use crate::time::UnixTime;

/// The registration entries as a graph: who stands below whom.
pub trait EntryGraph {
    /// Visits the entries whose parent ID is `parent`, in entry-ID order.
    fn for_each_child<'a>(&'a self, parent: &SpiffeId, visit: &mut dyn FnMut(&'a Arc<Entry>));

    /// Whether an entry names `spiffe_id`, the SPIFFE ID of another entry, as its parent. It may say yes where none does, but
    /// is asked once for every entry of an agent.
    fn may_be_parent(&self, spiffe_id: &SpiffeId) -> bool;

    /// Visits the entries that grant `spiffe_id`, node aliases among them.
    fn for_each_granting<'a>(&'a self, spiffe_id: &SpiffeId, visit: &mut dyn FnMut(&'a Arc<Entry>));

    /// Visits the node aliases (entries whose parent is the server) that share at least one selector with `selectors`.
    /// It may visit others too, and one of them twice.
    fn for_each_alias<'a>(&'a self, selectors: &Selectors, visit: &mut dyn FnMut(&'a Arc<Entry>));
}

/// Entries of most agents: room is made for so many at once.
const SOME_ENTRIES: usize = 128;

/// All entries that the agent `agent_id`, attested with `node_selectors`, may serve at `now`, in entry-ID order.
///
/// As in SPIRE: the entries below the agent's own ID, and below every node alias whose selectors the node has all of;
/// and, below each entry so found, the entries that name it as their parent. The aliases themselves are not served.
/// An entry past its end is left out, and so is what hangs below only it.
pub fn authorized<G: EntryGraph>(
    graph: &G,
    agent_id: &SpiffeId,
    node_selectors: &Selectors,
    now: UnixTime,
) -> Vec<Arc<Entry>> {
    let mut parents = vec![agent_id];
    graph.for_each_alias(node_selectors, &mut |alias| {
        if !alias.has_ended(now) && node_selectors.contains_all(&alias.selectors) {
            parents.push(&alias.spiffe_id);
        }
    });
    let mut seen = BTreeSet::new();
    let mut found = Vec::with_capacity(SOME_ENTRIES);
    // How many parents had entries: those of one are in order already.
    let mut runs = 0;
    while let Some(parent) = parents.pop() {
        // Node aliases are all below the server, and nothing else is.
        if is_server(parent) || !seen.insert(parent) {
            continue;
        }
        let before = found.len();
        graph.for_each_child(parent, &mut |entry| {
            if !entry.has_ended(now) {
                found.push(Arc::clone(entry));
                if graph.may_be_parent(&entry.spiffe_id) {
                    parents.push(&entry.spiffe_id);
                }
            }
        });
        runs += usize::from(found.len() > before);
    }
    if runs > 1 {
        found.sort_by(|one, other| one.id.cmp(&other.id));
    }
    found
}

/// Whether `entry` is among [`authorized`], without looking for the others: the way up from one entry is short, while the
/// way down from an agent leads to all of its entries.
pub fn is_authorized<G: EntryGraph>(
    graph: &G,
    agent_id: &SpiffeId,
    node_selectors: &Selectors,
    entry: &Entry,
    now: UnixTime,
) -> bool {
    if entry.is_node_alias() || entry.has_ended(now) {
        return false;
    }
    let mut parents = vec![&entry.parent_id];
    let mut seen = BTreeSet::new();
    while let Some(parent) = parents.pop() {
        if parent == agent_id {
            return true;
        }
        if !seen.insert(parent) {
            continue;
        }
        let mut is_of_node = false;
        graph.for_each_granting(parent, &mut |above| {
            if above.has_ended(now) {
                return;
            }
            match above.is_node_alias() {
                true => is_of_node |= node_selectors.contains_all(&above.selectors),
                false => parents.push(&above.parent_id),
            }
        });
        if is_of_node {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{EntryDraft, EntryId};
    use crate::selector::Selector;
    use crate::trust_domain::TrustDomain;

    struct Listed(Vec<Arc<Entry>>);

    impl EntryGraph for Listed {
        fn for_each_child<'a>(&'a self, parent: &SpiffeId, visit: &mut dyn FnMut(&'a Arc<Entry>)) {
            self.0.iter().filter(|e| e.parent_id == *parent).for_each(visit);
        }

        fn may_be_parent(&self, _: &SpiffeId) -> bool {
            true
        }

        fn for_each_granting<'a>(&'a self, spiffe_id: &SpiffeId, visit: &mut dyn FnMut(&'a Arc<Entry>)) {
            self.0.iter().filter(|e| e.spiffe_id == *spiffe_id).for_each(visit);
        }

        fn for_each_alias<'a>(&'a self, _: &Selectors, visit: &mut dyn FnMut(&'a Arc<Entry>)) {
            self.0.iter().filter(|e| e.is_node_alias()).for_each(visit);
        }
    }

    fn id(path: &str) -> SpiffeId {
        TrustDomain::parse("example.org").unwrap().join(path).unwrap()
    }

    fn selectors(texts: &[&str]) -> Selectors {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    fn entry(name: &str, spiffe_id: &str, parent: &str, have: &[&str], end: Option<i64>) -> Arc<Entry> {
        let mut draft = EntryDraft::new(id(spiffe_id), id(parent), selectors(have));
        draft.expires_at = end.map(UnixTime::from_secs);
        let td = TrustDomain::parse("example.org").unwrap();
        Arc::new(draft.register(&td, EntryId::parse(name).unwrap(), 0, UnixTime::from_secs(0)).unwrap())
    }

    fn ids(entries: Vec<Arc<Entry>>, node: &[&str], now: i64) -> Vec<String> {
        let agent = id("/spire/agent/x/1");
        authorized(&Listed(entries), &agent, &selectors(node), UnixTime::from_secs(now))
            .iter()
            .map(|entry| entry.id.to_string())
            .collect()
    }

    #[test]
    fn children_of_the_agent_are_authorized_and_others_are_not() {
        let entries = vec![
            entry("mine", "/a", "/spire/agent/x/1", &["unix:uid:1"], None),
            entry("theirs", "/b", "/spire/agent/x/2", &["unix:uid:1"], None),
        ];
        assert_eq!(ids(entries, &[], 0), ["mine"]);
    }

    #[test]
    fn an_alias_counts_only_with_all_its_selectors() {
        let entries = vec![
            entry("alias", "/pool", "/spire/server", &["x:a", "x:b"], None),
            entry("below", "/w", "/pool", &["unix:uid:1"], None),
        ];
        assert_eq!(ids(entries.clone(), &["x:a", "x:b", "x:c"], 0), ["below"]);
        assert!(ids(entries, &["x:a"], 0).is_empty());
    }

    #[test]
    fn parents_chain_and_cycles_end() {
        let entries = vec![
            entry("one", "/one", "/spire/agent/x/1", &["unix:uid:1"], None),
            entry("two", "/two", "/one", &["unix:uid:1"], None),
            entry("back", "/one", "/two", &["unix:uid:2"], None),
        ];
        assert_eq!(ids(entries, &[], 0), ["back", "one", "two"]);
    }

    #[test]
    fn an_ended_entry_authorizes_nothing_below_it() {
        let entries = vec![
            entry("one", "/one", "/spire/agent/x/1", &["unix:uid:1"], Some(100)),
            entry("two", "/two", "/one", &["unix:uid:1"], None),
        ];
        assert_eq!(ids(entries.clone(), &[], 99), ["one", "two"]);
        assert!(ids(entries, &[], 100).is_empty());
    }

    /// SPIFFE IDs that name each other as parents in every way: the agent's own, the server's, and some between.
    fn any_entries() -> impl Strategy<Value = Vec<Arc<Entry>>> {
        let spiffe_ids = prop::sample::select(vec!["/a", "/b", "/c", "/d"]);
        let parents = prop::sample::select(vec![
            "/a",
            "/b",
            "/c",
            "/d",
            "/spire/server",
            "/spire/agent/x/1",
            "/spire/agent/x/2",
        ]);
        let selectors = prop::sample::subsequence(vec!["x:a", "x:b"], 1..=2);
        let one = (spiffe_ids, parents, selectors, prop::option::weighted(0.3, 0..3_i64));
        prop::collection::vec(one, 0..10).prop_map(|entries| {
            let numbered = entries.into_iter().enumerate();
            numbered
                .map(|(at, (id, parent, have, end))| entry(&format!("e{at}"), id, parent, &have, end))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_way_up_and_the_way_down_meet(entries in any_entries(), node in prop::sample::subsequence(vec!["x:a", "x:b"], 0..=2)) {
            let (agent, node, now) = (id("/spire/agent/x/1"), selectors(&node), UnixTime::from_secs(1));
            let graph = Listed(entries);
            let found = authorized(&graph, &agent, &node, now);
            prop_assert!(found.is_sorted_by(|one, other| one.id < other.id));
            for entry in &graph.0 {
                let is_found = found.contains(entry);
                prop_assert_eq!(is_authorized(&graph, &agent, &node, entry, now), is_found, "{}", entry.id);
            }
        }
    }
}
