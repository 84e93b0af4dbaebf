//! What does the server know at one instant?

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use passant_attest::node::join_token::TokenHash;
use passant_core::authorized::{EntryGraph, authorized};
use passant_core::bundle::Bundle;
use passant_core::{Entry, EntryDraft, EntryId, Selector, Selectors, SpiffeId, TrustDomain, UnixTime};

pub mod authority;
pub mod change;
pub mod node;
pub mod prune;
pub mod token;

pub use authority::{Authority, AuthorityId, AuthorityKind, Phase};
pub use change::{Change, Commit, Cursor, Lineage, RequestId, Revision};
pub use node::{AttestedNode, PendingSerial};
pub use token::{JoinToken, Spent};

/// Everything the server has decided, as it stood after one revision.
///
/// An immutable snapshot for its readers: cloning shares all objects, and nothing but [`State::apply`] changes it.
/// The same commits in the same order make equal states. Expired objects are still in it until they are pruned:
/// whoever acts on one asks for its end.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    trust_domain: TrustDomain,
    cursor: Cursor,
    entries: OrdMap<EntryId, Arc<Entry>>,
    by_parent: OrdSet<Filed<SpiffeId>>,
    by_spiffe_id: OrdSet<Filed<SpiffeId>>,
    /// Node aliases under each of their selectors.
    aliases: OrdSet<Filed<Selector>>,
    nodes: OrdMap<SpiffeId, Arc<AttestedNode>>,
    tokens: OrdMap<TokenHash, JoinToken>,
    authorities: OrdMap<AuthorityId, Authority>,
    bundles: OrdMap<TrustDomain, Arc<Bundle>>,
}

/// A line of an index: an entry filed under something it names. Ordered by that, then by entry ID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Filed<K> {
    under: K,
    /// `None` sorts before every entry, and is only used to search.
    entry: Option<EntryId>,
}

impl State {
    /// The state of a store without objects that stands at `cursor`.
    pub fn empty(trust_domain: TrustDomain, cursor: Cursor) -> Self {
        Self {
            trust_domain,
            cursor,
            entries: OrdMap::new(),
            by_parent: OrdSet::new(),
            by_spiffe_id: OrdSet::new(),
            aliases: OrdSet::new(),
            nodes: OrdMap::new(),
            tokens: OrdMap::new(),
            authorities: OrdMap::new(),
            bundles: OrdMap::new(),
        }
    }

    /// The state that `objects`, as a store loaded them, make at `cursor`.
    pub fn of_objects(trust_domain: TrustDomain, cursor: Cursor, objects: Vec<Change>) -> Self {
        let mut state = Self::empty(trust_domain, cursor);
        for object in objects {
            state.change(object);
        }
        state
    }

    /// Takes one commit: all its changes, and one revision.
    pub fn apply(&mut self, commit: &Commit) {
        for change in &commit.changes {
            self.change(change.clone());
        }
        self.cursor.revision = self.cursor.revision.next();
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::PutEntry(entry) => {
                self.delete_entry(&entry.id);
                self.by_parent.insert(filed(&entry.parent_id, &entry.id));
                self.by_spiffe_id.insert(filed(&entry.spiffe_id, &entry.id));
                if entry.is_node_alias() {
                    self.aliases.extend(entry.selectors.iter().map(|selector| filed(selector, &entry.id)));
                }
                self.entries.insert(entry.id.clone(), entry);
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
        }
    }

    fn delete_entry(&mut self, id: &EntryId) {
        if let Some(entry) = self.entries.remove(id) {
            self.by_parent.remove(&filed(&entry.parent_id, id));
            self.by_spiffe_id.remove(&filed(&entry.spiffe_id, id));
            for selector in &entry.selectors {
                self.aliases.remove(&filed(selector, id));
            }
        }
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
        self.entries.values()
    }

    /// The entries after `id` in entry-ID order; all of them without `id`. For listing page by page.
    pub fn entries_after(&self, id: Option<&EntryId>) -> impl Iterator<Item = &Arc<Entry>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = id.map_or(Unbounded, |id| Excluded(id.clone()));
        self.entries.range((start, Unbounded)).map(|(_, entry)| entry)
    }

    /// The entries whose parent ID is `parent`, in entry-ID order.
    pub fn children(&self, parent: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.filed_under(&self.by_parent, parent)
    }

    /// The entries that grant `spiffe_id`, in entry-ID order.
    pub fn entries_by_spiffe_id(&self, spiffe_id: &SpiffeId) -> impl Iterator<Item = &Arc<Entry>> {
        self.filed_under(&self.by_spiffe_id, spiffe_id)
    }

    fn filed_under<'a, K: Clone + Ord>(
        &'a self,
        index: &'a OrdSet<Filed<K>>,
        under: &K,
    ) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a, K> {
        let under = under.clone();
        index
            .range(Filed { under: under.clone(), entry: None }..)
            .take_while(move |filed| filed.under == under)
            .filter_map(|filed| filed.entry.as_ref())
            .filter_map(|id| self.entries.get(id))
    }

    /// All entries that the agent may ask SVIDs for at `now`, in entry-ID order; see [`authorized`]. An agent that is
    /// not attested has no node selectors, and so no aliases.
    pub fn authorized_entries(&self, agent_id: &SpiffeId, now: UnixTime) -> Vec<Arc<Entry>> {
        let none = Selectors::new();
        let selectors = self.nodes.get(agent_id).map_or(&none, |node| &node.selectors);
        authorized(self, agent_id, selectors, now).into_values().collect()
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

    /// All bundles, this trust domain's among them, in the order of their names.
    pub fn bundles(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.bundles.values()
    }
}

impl EntryGraph for State {
    fn for_each_child(&self, parent: &SpiffeId, visit: &mut dyn FnMut(&Arc<Entry>)) {
        self.children(parent).for_each(visit);
    }

    fn for_each_alias(&self, selectors: &Selectors, visit: &mut dyn FnMut(&Arc<Entry>)) {
        for selector in selectors {
            self.filed_under(&self.aliases, selector).for_each(&mut *visit);
        }
    }
}

fn filed<K: Clone>(under: &K, entry: &EntryId) -> Filed<K> {
    Filed { under: under.clone(), entry: Some(entry.clone()) }
}
