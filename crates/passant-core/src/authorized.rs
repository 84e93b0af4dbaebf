//! Which entries may an agent ask SVIDs for?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::entry::{Entry, EntryId};
use crate::selector::Selectors;
use crate::spiffe_id::SpiffeId;
use crate::time::UnixTime;

/// The registration entries as a graph: who stands below whom.
pub trait EntryGraph {
    /// Visits the entries whose parent ID is `parent`.
    fn for_each_child(&self, parent: &SpiffeId, visit: &mut dyn FnMut(&Arc<Entry>));

    /// Visits the node aliases (entries whose parent is the server) that share at least one selector with `selectors`.
    /// It may visit others too, and one of them twice.
    fn for_each_alias(&self, selectors: &Selectors, visit: &mut dyn FnMut(&Arc<Entry>));
}

/// All entries that the agent `agent_id`, attested with `node_selectors`, may serve at `now`, by id.
///
/// As in SPIRE: the entries below the agent's own ID, and below every node alias whose selectors the node has all of;
/// and, below each entry so found, the entries that name it as their parent. The aliases themselves are not served.
/// An entry past its end is left out, and so is what hangs below only it.
pub fn authorized(
    graph: &dyn EntryGraph,
    agent_id: &SpiffeId,
    node_selectors: &Selectors,
    now: UnixTime,
) -> BTreeMap<EntryId, Arc<Entry>> {
    let mut parents = vec![agent_id.clone()];
    graph.for_each_alias(node_selectors, &mut |alias| {
        if !alias.has_ended(now) && node_selectors.contains_all(&alias.selectors) {
            parents.push(alias.spiffe_id.clone());
        }
    });
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    while let Some(parent) = parents.pop() {
        if !seen.insert(parent.clone()) {
            continue;
        }
        graph.for_each_child(&parent, &mut |entry| {
            if !entry.is_node_alias() && !entry.has_ended(now) {
                parents.push(entry.spiffe_id.clone());
                found.insert(entry.id.clone(), Arc::clone(entry));
            }
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryDraft;
    use crate::selector::Selector;
    use crate::trust_domain::TrustDomain;

    struct Listed(Vec<Arc<Entry>>);

    impl EntryGraph for Listed {
        fn for_each_child(&self, parent: &SpiffeId, visit: &mut dyn FnMut(&Arc<Entry>)) {
            self.0.iter().filter(|e| e.parent_id == *parent).for_each(visit);
        }

        fn for_each_alias(&self, _: &Selectors, visit: &mut dyn FnMut(&Arc<Entry>)) {
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
            .into_keys()
            .map(String::from)
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
}
