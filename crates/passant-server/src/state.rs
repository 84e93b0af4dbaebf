//! What does the server know at one instant?

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imbl::OrdMap;
use passant_attest::node::join_token::TokenHash;
use passant_core::authorized::{EntryGraph, authorized, is_authorized};
use passant_core::bundle::Bundle;
use passant_core::texts::Texts;
use passant_core::{
    Entry, EntryDraft, EntryId, FederationRelationship, Instance, Selector, Selectors, SpiffeId, Stop,
    StopTarget, TrustDomain, UnixTime,
};

pub mod authority;
pub mod change;
mod index;
pub mod node;
pub mod prune;
#[cfg(test)]
pub(crate) mod samples;
mod stops;
pub mod token;

pub use authority::{Authority, AuthorityId, AuthorityKind, Phase};
pub use change::{Change, Commit, Cursor, Lineage, RequestId, Revision};
use index::{Entries, Index};
pub use node::{Adopted, AttestedNode, PendingSerial};
pub use token::{JoinToken, Spent};

/// From so many entries on, a second thread is worth its start.
const MANY_ENTRIES: usize = 10_000;

/// Everything the server has decided, as it stood after one revision.
///
/// An immutable snapshot for its readers: cloning shares all objects, and nothing but [`State::apply`] changes it.
/// The same commits in the same order make equal states. Expired objects are still in it until they are pruned:
/// whoever acts on one asks for its end.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    trust_domain: TrustDomain,
    cursor: Cursor,
    entries: Entries,
    /// Entries below an agent or the server, under their parent IDs.
    below_nodes: Index<SpiffeId>,
    /// Entries below what another entry grants, under their parent IDs.
    below_entries: Index<SpiffeId>,
    by_spiffe_id: Index<SpiffeId>,
    /// Entries with a flag that gives more rights than a workload has, under their SPIFFE IDs.
    flagged: Index<SpiffeId>,
    /// Node aliases under each of their selectors.
    aliases: Index<Selector>,
    nodes: OrdMap<SpiffeId, Arc<AttestedNode>>,
    tokens: OrdMap<TokenHash, JoinToken>,
    authorities: OrdMap<AuthorityId, Authority>,
    bundles: OrdMap<TrustDomain, Arc<Bundle>>,
    relationships: OrdMap<TrustDomain, Arc<FederationRelationship>>,
    stops: OrdMap<StopTarget, Arc<Stop>>,
    texts: SharedTexts,
}

/// Relationships and bundles as they stood in some state; costs next to nothing to keep.
#[derive(Clone, Debug)]
pub struct FederationMark {
    relationships: OrdMap<TrustDomain, Arc<FederationRelationship>>,
    bundles: OrdMap<TrustDomain, Arc<Bundle>>,
}

/// The texts of the entries that were put since the start, for all snapshots: no part of what a state says. Those of loaded
/// entries are not in it; a text is held by entries of both sorts at most twice.
#[derive(Clone, Debug, Default)]
struct SharedTexts(Arc<Mutex<Texts>>);

impl SharedTexts {
    /// The entry, holding texts that others hold; the same handle if it does already.
    fn share(&self, entry: Arc<Entry>) -> Arc<Entry> {
        let mut texts = self.lock();
        if texts.holds(&entry) {
            return entry;
        }
        let mut entry = Arc::unwrap_or_clone(entry);
        texts.share(&mut entry);
        Arc::new(entry)
    }

    fn lock(&self) -> MutexGuard<'_, Texts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for SharedTexts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl State {
    /// The state of a store without objects that stands at `cursor`.
    pub fn empty(trust_domain: TrustDomain, cursor: Cursor) -> Self {
        Self {
            trust_domain,
            cursor,
            entries: Entries::default(),
            below_nodes: Index::new(),
            below_entries: Index::new(),
            by_spiffe_id: Index::new(),
            flagged: Index::new(),
            aliases: Index::new(),
            nodes: OrdMap::new(),
            tokens: OrdMap::new(),
            authorities: OrdMap::new(),
            bundles: OrdMap::new(),
            relationships: OrdMap::new(),
            stops: OrdMap::new(),
            texts: SharedTexts::default(),
        }
    }

    /// The state that `objects`, as a store loaded them, make at `cursor`. With many entries their indexes are made side by
    /// side.
    pub fn of_objects(trust_domain: TrustDomain, cursor: Cursor, objects: Vec<Change>) -> Self {
        let mut state = Self::empty(trust_domain, cursor);
        let (mut entries, mut others) = (Vec::new(), Vec::new());
        for object in objects {
            if let Change::PutEntry(entry) = object {
                entries.push(entry);
            } else {
                others.push(object);
            }
        }
        if entries.len() < MANY_ENTRIES {
            entries.into_iter().for_each(|entry| state.change(Change::PutEntry(entry)));
        } else {
            state.take_entries(entries);
        }
        others.into_iter().for_each(|object| state.change(object));
        state
    }

    /// Takes `entries` into a state without any.
    fn take_entries(&mut self, mut entries: Vec<Arc<Entry>>) {
        if !entries.is_sorted_by(|one, other| one.id < other.id) {
            entries = entries.into_iter().collect::<Entries>().iter().map(Arc::clone).collect();
        }
        let others = || {
            let below =
                Index::of_all(&entries, |entry| &entry.parent_id, SpiffeId::as_str, SpiffeId::is_reserved);
            let (mut flagged, mut aliases) = (Index::new(), Index::new());
            for entry in &entries {
                if is_flagged(entry) {
                    flagged.insert(&entry.spiffe_id, entry);
                }
                if entry.is_node_alias() {
                    entry.selectors.iter().for_each(|selector| aliases.insert(selector, entry));
                }
            }
            (Entries::of_all(&entries), below, flagged, aliases)
        };
        let by_spiffe_id = || Index::of_all(&entries, |entry| &entry.spiffe_id, SpiffeId::as_str, |_| true).0;
        let (others, by_spiffe_id) =
            std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, others) {
                Ok(aside) => {
                    let by_spiffe_id = by_spiffe_id();
                    (aside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), by_spiffe_id)
                }
                Err(_) => (others(), by_spiffe_id()),
            });
        self.by_spiffe_id = by_spiffe_id;
        (self.entries, (self.below_nodes, self.below_entries), self.flagged, self.aliases) = others;
    }

    /// Takes one commit: all its changes, and one revision.
    pub fn apply(&mut self, commit: &Commit) {
        for change in &commit.changes {
            self.change(change.clone());
        }
        self.commit();
    }

    /// Takes the revision of one commit, whose changes it has.
    pub(crate) fn commit(&mut self) {
        self.cursor.revision = self.cursor.revision.next();
    }

    /// The entry as this state and those after it hold it, with texts that other entries hold: so made, it is not copied when it
    /// is put.
    pub(crate) fn handle(&self, mut entry: Entry) -> Arc<Entry> {
        self.texts.lock().share(&mut entry);
        Arc::new(entry)
    }

    /// Takes one change of a commit.
    pub(crate) fn change(&mut self, change: Change) {
        match change {
            Change::PutEntry(entry) => {
                self.delete_entry(&entry.id);
                let entry = self.texts.share(entry);
                self.below(&entry.parent_id).insert(&entry.parent_id, &entry);
                self.by_spiffe_id.insert(&entry.spiffe_id, &entry);
                if is_flagged(&entry) {
                    self.flagged.insert(&entry.spiffe_id, &entry);
                }
                if entry.is_node_alias() {
                    entry.selectors.iter().for_each(|selector| self.aliases.insert(selector, &entry));
                }
                self.entries.insert(entry);
            }
            Change::DeleteEntry(id) => self.delete_entry(&id),
            Change::PutNode(node) => {
                self.nodes.insert(node.id.clone(), node);
            }
            Change::DeleteNode(id) => {
                self.nodes.remove(&id);
            }
            Change::PutToken(token) => {
                self.tokens.insert(token.hash, token);
            }
            Change::DeleteToken(hash) => {
                self.tokens.remove(&hash);
            }
            Change::PutAuthority(authority) => {
                self.authorities.insert(authority.id.clone(), authority);
            }
            Change::DeleteAuthority(id) => {
                self.authorities.remove(&id);
            }
            Change::PutBundle(bundle) => {
                self.bundles.insert(bundle.trust_domain.clone(), bundle);
            }
            Change::DeleteBundle(trust_domain) => {
                self.bundles.remove(&trust_domain);
            }
            Change::PutFederation(relationship) => {
                self.relationships.insert(relationship.trust_domain.clone(), relationship);
            }
            Change::DeleteFederation(trust_domain) => {
                self.relationships.remove(&trust_domain);
            }
            Change::PutStop(stop) => {
                self.stops.insert(stop.target.clone(), stop);
            }
            Change::DeleteStop(target) => {
                self.stops.remove(&target);
            }
        }
    }

    fn delete_entry(&mut self, id: &EntryId) {
        if let Some(entry) = self.entries.remove(id) {
            self.below(&entry.parent_id).remove(&entry.parent_id, id);
            self.by_spiffe_id.remove(&entry.spiffe_id, id);
            if is_flagged(&entry) {
                self.flagged.remove(&entry.spiffe_id, id);
            }
            if entry.is_node_alias() {
                entry.selectors.iter().for_each(|selector| self.aliases.remove(selector, id));
            }
        }
    }

    /// The index that entries below `parent` are in.
    fn below(&mut self, parent: &SpiffeId) -> &mut Index<SpiffeId> {
        if parent.is_reserved() { &mut self.below_nodes } else { &mut self.below_entries }
    }

    /// The trust domain that this server issues for.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where in the store's history this state stands.
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The entry with this ID.
    pub fn entry(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.entries.get(id)
    }

    /// How many entries are registered.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// All entries in entry-ID order.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// The entries after `id` in entry-ID order; all of them without `id`. For listing page by page.
    pub fn entries_after(&self, id: Option<&EntryId>) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.after(id)
    }

    /// The entries whose parent ID is `parent`, in entry-ID order.
    pub fn children(&self, parent: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        if parent.is_reserved() { self.below_nodes.get(parent) } else { self.below_entries.get(parent) }
    }

    /// The entries that grant `spiffe_id`, in entry-ID order.
    pub fn entries_by_spiffe_id(&self, spiffe_id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_spiffe_id.get(spiffe_id)
    }

    /// Whether an entry that grants `spiffe_id` has the admin or downstream flag, ended or not. However many grant it, this
    /// is quick.
    pub fn has_flagged(&self, spiffe_id: &SpiffeId) -> bool {
        self.flagged.contains(spiffe_id)
    }

    /// All entries that the agent may ask SVIDs for at `now`, in entry-ID order; see [`authorized`]. An agent that is
    /// not attested has no node selectors, and so no aliases. What is stopped is left out: none of a stopped agent.
    pub fn authorized_entries(&self, agent_id: &SpiffeId, now: UnixTime) -> Vec<Arc<Entry>> {
        if self.agent_stop(agent_id).is_some() {
            return Vec::new();
        }
        let mut entries = self.entries_of_node(agent_id, now);
        if !self.stops.is_empty() {
            entries.retain(|entry| self.entry_stop(&entry.id).is_none());
        }
        entries
    }

    /// The same with what is stopped.
    pub fn entries_of_node(&self, agent_id: &SpiffeId, now: UnixTime) -> Vec<Arc<Entry>> {
        let none = Selectors::new();
        let selectors = self.nodes.get(agent_id).map_or(&none, |node| &node.selectors);
        authorized(self, agent_id, selectors, now)
    }

    /// The entry with this ID, if it is one of [`State::authorized_entries`].
    pub fn authorized_entry(&self, agent_id: &SpiffeId, id: &EntryId, now: UnixTime) -> Option<&Arc<Entry>> {
        if !self.stops.is_empty() && (self.agent_stop(agent_id).is_some() || self.entry_stop(id).is_some()) {
            return None;
        }
        let none = Selectors::new();
        let selectors = self.nodes.get(agent_id).map_or(&none, |node| &node.selectors);
        self.entry(id).filter(|entry| is_authorized(self, agent_id, selectors, entry, now))
    }

    /// The entry that `draft` would double: same parent ID, SPIFFE ID and selectors, whatever its entry ID.
    pub fn find_duplicate(&self, draft: &EntryDraft) -> Option<&Arc<Entry>> {
        self.entries_by_spiffe_id(&draft.spiffe_id)
            .find(|entry| entry.parent_id == draft.parent_id && entry.selectors == draft.selectors)
    }

    /// The attested node with this agent's SPIFFE ID.
    pub fn node(&self, agent_id: &SpiffeId) -> Option<&Arc<AttestedNode>> {
        self.nodes.get(agent_id)
    }

    /// How many nodes are attested, banned and expired ones included.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// All attested nodes in the order of their SPIFFE IDs.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<AttestedNode>> {
        self.nodes.values()
    }

    /// The join token with this hash, spent or not.
    pub fn token(&self, hash: &TokenHash) -> Option<&JoinToken> {
        self.tokens.get(hash)
    }

    /// All join tokens, in no meaningful order.
    pub fn tokens(&self) -> impl Iterator<Item = &JoinToken> {
        self.tokens.values()
    }

    /// The authority with this ID.
    pub fn authority(&self, id: &AuthorityId) -> Option<&Authority> {
        self.authorities.get(id)
    }

    /// All authorities of this trust domain, in the order of their IDs.
    pub fn authorities(&self) -> impl Iterator<Item = &Authority> {
        self.authorities.values()
    }

    /// The bundle of this trust domain; `None` until its first authority is published.
    pub fn bundle(&self) -> Option<Arc<Bundle>> {
        self.bundle_of(&self.trust_domain)
    }

    /// The bundle of `trust_domain`, this one or a federated one.
    pub fn bundle_of(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.bundles.get(trust_domain).map(Arc::clone)
    }

    /// The federation relationship with `trust_domain`.
    pub fn relationship(&self, trust_domain: &TrustDomain) -> Option<&Arc<FederationRelationship>> {
        self.relationships.get(trust_domain)
    }

    /// A mark of the relationships and bundles of this state.
    pub fn federation_mark(&self) -> FederationMark {
        FederationMark { relationships: self.relationships.clone(), bundles: self.bundles.clone() }
    }

    /// Whether relationships and bundles are known to be those of `mark`. Quick, and sometimes wrong when it says no.
    pub fn is_marked(&self, mark: &FederationMark) -> bool {
        self.relationships.ptr_eq(&mark.relationships) && self.bundles.ptr_eq(&mark.bundles)
    }

    /// How many federation relationships there are.
    pub fn relationship_count(&self) -> usize {
        self.relationships.len()
    }

    /// All federation relationships, in the order of the names of their trust domains.
    pub fn relationships(&self) -> impl Iterator<Item = &Arc<FederationRelationship>> {
        self.relationships.values()
    }

    /// A put for every object: bundles, federation relationships, authorities, join tokens, nodes, entries, stops, each in
    /// the order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = Change> + Send {
        let bundles = self.bundles.values().map(|bundle| Change::PutBundle(Arc::clone(bundle)));
        let authorities = self.authorities.values().cloned().map(Change::PutAuthority);
        let tokens = self.tokens.values().cloned().map(Change::PutToken);
        let nodes = self.nodes.values().map(|node| Change::PutNode(Arc::clone(node)));
        let entries = self.entries.iter().map(|entry| Change::PutEntry(Arc::clone(entry)));
        let relationships = self.relationships.values();
        let relationships = relationships.map(|one| Change::PutFederation(Arc::clone(one)));
        let stops = self.stops.values().map(|stop| Change::PutStop(Arc::clone(stop)));
        bundles.chain(relationships).chain(authorities).chain(tokens).chain(nodes).chain(entries).chain(stops)
    }

    /// The stop of this target.
    pub fn stop(&self, target: &StopTarget) -> Option<&Arc<Stop>> {
        self.stops.get(target)
    }

    /// The stop of this entry, on all nodes.
    pub fn entry_stop(&self, id: &EntryId) -> Option<&Arc<Stop>> {
        // Most states have none at all.
        if self.stops.is_empty() { None } else { self.stop(&StopTarget::Entry(id.clone())) }
    }

    /// The stop of all that this agent has.
    pub fn agent_stop(&self, agent_id: &SpiffeId) -> Option<&Arc<Stop>> {
        if self.stops.is_empty() { None } else { self.stop(&StopTarget::Agent(agent_id.clone())) }
    }

    /// The stop of one process on the agent's node.
    pub fn instance_stop(&self, agent_id: &SpiffeId, instance: &Instance) -> Option<&Arc<Stop>> {
        if self.stops.is_empty() {
            return None;
        }
        self.stop(&StopTarget::Instance { agent: agent_id.clone(), instance: instance.clone() })
    }

    /// All stops, in the order of their targets: agents, entries, processes.
    pub fn stops(&self) -> impl Iterator<Item = &Arc<Stop>> {
        self.stops.values()
    }

    /// All bundles, this trust domain's among them, in the order of their names.
    pub fn bundles(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.bundles.values()
    }
}

impl EntryGraph for State {
    fn for_each_child<'a>(&'a self, parent: &SpiffeId, visit: &mut dyn FnMut(&'a Arc<Entry>)) {
        self.children(parent).for_each(visit);
    }

    fn may_be_parent(&self, spiffe_id: &SpiffeId) -> bool {
        // No entry grants the ID of a node.
        self.below_entries.contains(spiffe_id)
    }

    fn for_each_granting<'a>(&'a self, spiffe_id: &SpiffeId, visit: &mut dyn FnMut(&'a Arc<Entry>)) {
        self.entries_by_spiffe_id(spiffe_id).for_each(visit);
    }

    fn for_each_alias<'a>(&'a self, selectors: &Selectors, visit: &mut dyn FnMut(&'a Arc<Entry>)) {
        for selector in selectors {
            self.aliases.get(selector).for_each(&mut *visit);
        }
    }
}

/// Whether its SVIDs have more rights than a workload's.
fn is_flagged(entry: &Entry) -> bool {
    entry.admin || entry.downstream
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{
        any_commits, at, commit, draft, entry, entry_id, id, node, registered, selectors, trust_domain,
    };
    use super::*;

    fn state_of(changes: Vec<Change>) -> State {
        let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
        let mut state = State::empty(trust_domain(), cursor);
        state.apply(&commit(1, changes));
        state
    }

    fn names<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Vec<&'a str> {
        entries.map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn entries_are_found_by_parent_and_by_spiffe_id() {
        let state = state_of(vec![
            Change::PutEntry(entry("b", "/w/1", "/p")),
            Change::PutEntry(entry("a", "/w/1", "/p")),
            Change::PutEntry(entry("c", "/w/1x", "/p/q")),
        ]);
        assert_eq!(names(state.children(&id("/p"))), ["a", "b"]);
        assert_eq!(names(state.children(&id("/p/q"))), ["c"]);
        assert_eq!(names(state.entries_by_spiffe_id(&id("/w/1"))), ["a", "b"]);
        assert_eq!(names(state.entries_by_spiffe_id(&id("/w"))), [""; 0]);
        assert_eq!(names(state.entries_after(Some(&entry_id("a")))), ["b", "c"]);
        assert_eq!(names(state.entries_after(None)), ["a", "b", "c"]);
    }

    #[test]
    fn an_entry_that_shares_its_texts_is_not_copied_when_it_is_put() {
        let mut state = state_of(vec![Change::PutEntry(entry("a", "/w/1", "/p"))]);
        let handle = state.handle(Entry::clone(&entry("b", "/w/1", "/p")));
        assert_eq!(handle, entry("b", "/w/1", "/p"));
        let own = entry("c", "/w/1", "/p");
        state.apply(&commit(
            2,
            vec![Change::PutEntry(Arc::clone(&handle)), Change::PutEntry(Arc::clone(&own))],
        ));
        let held = |id: &str| state.entry(&entry_id(id)).unwrap();
        assert!(Arc::ptr_eq(held("b"), &handle));
        assert!(held("c") == &own && !Arc::ptr_eq(held("c"), &own), "it has texts of its own");
    }

    #[test]
    fn a_replaced_entry_is_no_longer_found_where_it_was() {
        let mut state = state_of(vec![Change::PutEntry(entry("a", "/w/1", "/p"))]);
        state.apply(&commit(2, vec![Change::PutEntry(entry("a", "/w/2", "/q"))]));
        assert_eq!(names(state.children(&id("/p"))), [""; 0]);
        assert_eq!(names(state.entries_by_spiffe_id(&id("/w/1"))), [""; 0]);
        assert_eq!(names(state.children(&id("/q"))), ["a"]);
        assert_eq!(state.cursor().revision, Revision::new(2));
    }

    #[test]
    fn flags_are_found_by_spiffe_id_as_long_as_they_are_set() {
        let flagged = |name: &str, admin, downstream| {
            Change::PutEntry(registered(
                name,
                EntryDraft { admin, downstream, ..draft("/w", "/p", &["k:1"]) },
            ))
        };
        let mut state = state_of(vec![flagged("plain", false, false)]);
        assert!(!state.has_flagged(&id("/w")));
        state.apply(&commit(2, vec![flagged("a", true, false), flagged("b", false, true)]));
        assert!(
            state.has_flagged(&id("/w")) && !state.has_flagged(&id("/w/x")) && !state.has_flagged(&id("/p"))
        );
        state.apply(&commit(3, vec![flagged("a", false, false)]));
        assert!(state.has_flagged(&id("/w")), "by the other one");
        state.apply(&commit(4, vec![Change::DeleteEntry(entry_id("b"))]));
        assert!(!state.has_flagged(&id("/w")));
    }

    #[test]
    fn deleting_what_is_not_there_only_takes_a_revision() {
        let mut state = state_of(vec![]);
        state.apply(&commit(2, vec![Change::DeleteEntry(entry_id("a"))]));
        assert_eq!((state.entry_count(), state.cursor().revision), (0, Revision::new(2)));
    }

    #[test]
    fn many_loaded_entries_make_the_state_that_they_make_one_by_one() {
        let put = |number: usize| {
            let parent = if number.is_multiple_of(100) {
                "/spire/server".to_owned()
            } else {
                format!("/p/{}", number % 7)
            };
            let spiffe_id = format!("/w/{}", number % 5_000);
            let draft = draft(&spiffe_id, &parent, &["k:1", "k:2"]);
            let draft = EntryDraft { admin: number.is_multiple_of(1_000), ..draft };
            Change::PutEntry(registered(&format!("e{number}"), draft))
        };
        let objects: Vec<Change> = (0..MANY_ENTRIES + 1).map(put).collect();
        let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
        let mut one_by_one = State::empty(trust_domain(), cursor);
        objects.iter().for_each(|object| one_by_one.change(object.clone()));
        assert_eq!(State::of_objects(trust_domain(), cursor, objects), one_by_one);
    }

    #[test]
    fn a_snapshot_does_not_change() {
        let before = state_of(vec![Change::PutEntry(entry("a", "/w", "/p"))]);
        let mut after = before.clone();
        after.apply(&commit(2, vec![Change::DeleteEntry(entry_id("a"))]));
        assert!(before.entry(&entry_id("a")).is_some());
        assert!(after.entry(&entry_id("a")).is_none());
    }

    #[test]
    fn a_duplicate_has_the_same_parent_spiffe_id_and_selectors() {
        let state = state_of(vec![Change::PutEntry(registered("a", draft("/w", "/p", &["k:1", "k:2"])))]);
        let check = |spiffe_id, parent, have: &[&str], expected| {
            assert_eq!(state.find_duplicate(&draft(spiffe_id, parent, have)).is_some(), expected);
        };
        check("/w", "/p", &["k:2", "k:1"], true);
        check("/w", "/p", &["k:1"], false);
        check("/w", "/q", &["k:1", "k:2"], false);
        check("/v", "/p", &["k:1", "k:2"], false);
    }

    #[test]
    fn aliases_count_for_the_nodes_that_have_all_their_selectors() {
        let agent = id("/spire/agent/x/1");
        let mut state = state_of(vec![
            Change::PutEntry(registered("alias", draft("/pool", "/spire/server", &["x:a", "x:b"]))),
            Change::PutEntry(entry("below", "/w", "/pool")),
            Change::PutEntry(entry("mine", "/v", "/spire/agent/x/1")),
            Change::PutEntry(entry("deep", "/u", "/v")),
        ]);
        let mut authorized = |have: &[&str]| {
            state.apply(&commit(2, vec![Change::PutNode(node("/spire/agent/x/1", have))]));
            state
                .authorized_entries(&agent, at(5))
                .iter()
                .map(|entry| entry.id.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(authorized(&["x:a", "x:b", "x:c"]), ["below", "deep", "mine"]);
        assert_eq!(authorized(&["x:a"]), ["deep", "mine"]);
        assert_eq!(state.authorized_entries(&id("/spire/agent/x/2"), at(5)), []);
        let is_one =
            |agent: &str, entry: &str| state.authorized_entry(&id(agent), &entry_id(entry), at(5)).is_some();
        assert!(is_one("/spire/agent/x/1", "deep"));
        assert!(!is_one("/spire/agent/x/1", "below"), "it lacks a selector of the alias");
        assert!(!is_one("/spire/agent/x/2", "deep"));
        assert!(!is_one("/spire/agent/x/1", "absent"));
    }

    proptest! {
        #[test]
        fn indexes_agree_with_the_entries(commits in any_commits()) {
            let mut state = state_of(vec![]);
            commits.iter().for_each(|commit| state.apply(commit));
            prop_assert_eq!(state.below_nodes.len() + state.below_entries.len(), state.entry_count());
            prop_assert_eq!(state.by_spiffe_id.len(), state.entry_count());
            let aliases = state.entries().filter(|entry| entry.is_node_alias());
            prop_assert_eq!(state.aliases.len(), aliases.map(|entry| entry.selectors.len()).sum::<usize>());
            for entry in state.entries() {
                prop_assert!(state.children(&entry.parent_id).any(|child| child == entry));
                prop_assert!(entry.parent_id.is_reserved() || state.may_be_parent(&entry.parent_id));
                prop_assert!(state.entries_by_spiffe_id(&entry.spiffe_id).any(|same| same == entry));
                if entry.is_node_alias() {
                    let mut is_seen = false;
                    let one = selectors(&[&entry.selectors.iter().next().unwrap().to_string()]);
                    state.for_each_alias(&one, &mut |alias| is_seen |= alias == entry);
                    prop_assert!(is_seen);
                }
            }
        }
    }
}
