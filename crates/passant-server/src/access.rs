//! What do roles allow?
//!
//! An administrator may do everything. A role allows its verbs on what its prefixes and selector types cover, and never what
//! would give its holder more than that: entries with the admin or downstream flag, and whatever leads to a SPIFFE ID that has
//! rights of its own, are for administrators. Everything is decided here and nothing is done.

pub(crate) mod explain;
mod verb;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use passant_core::{EndpointProfile, Entry, EntryDraft, Selectors, SpiffeId, TrustDomain};

use crate::limits::{ENTRIES_BELOW, ENTRIES_LOOKED_AT};
use crate::state::State;
pub use verb::Verb;

/// Who has rights by the configuration.
#[derive(Debug, Default)]
pub struct Rights {
    admin_ids: BTreeSet<SpiffeId>,
    roles: Vec<Arc<Role>>,
    /// Where the IDs lie that have rights.
    trust_domains: BTreeSet<TrustDomain>,
}

/// What a configured role allows, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Unique among the roles.
    pub name: String,
    /// What its holders may do.
    pub verbs: BTreeSet<Verb>,
    /// The SPIFFE IDs of entries and SVIDs that it covers, and the aliases of join tokens.
    pub spiffe_ids: Vec<Prefix>,
    /// The parent IDs of entries that it covers, and the agents.
    pub parent_ids: Vec<Prefix>,
    /// The types of selectors that it covers.
    pub selector_types: SelectorTypes,
    /// Who holds it.
    pub granted_to: Holders,
}

/// Who holds a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Whoever shows an X509-SVID of one of these; of another trust domain, too, if its bundle is known.
    pub spiffe_ids: BTreeSet<SpiffeId>,
    /// Users of this machine, over the operator socket.
    pub uids: BTreeSet<u32>,
    /// Members of these groups of this machine, over the operator socket.
    pub gids: BTreeSet<u32>,
}

/// A SPIFFE ID and all below it, by whole segments of the path; a trust domain's ID covers all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(SpiffeId);

/// Types of selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorTypes {
    /// All.
    Any,
    /// These.
    These(BTreeSet<String>),
}

/// Who would act, by what the connection shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The bearer of an X509-SVID of this ID.
    Bearer(SpiffeId),
    /// A user of this machine, with the groups that count.
    User { uid: u32, gids: BTreeSet<u32> },
}

/// What is acted on.
#[derive(Clone, Debug)]
pub(crate) enum Target<'a> {
    /// Something that roles do not divide.
    Whole,
    /// An entry as it stands.
    Entry(EntryView<'a>),
    /// An entry as it would stand.
    Draft(EntryView<'a>),
    /// What is kept of a foreign trust domain: its bundle, and the federation with it.
    TrustDomain(&'a TrustDomain),
    /// The agent of this ID.
    Agent(&'a SpiffeId),
    /// An SVID of this ID.
    Svid(&'a SpiffeId),
    /// A join token, by which a node becomes `agent`, with an alias if any.
    Token { agent: &'a SpiffeId, alias: Option<&'a SpiffeId> },
}

/// What of an entry decides who may have to do with it.
#[derive(Clone, Debug)]
pub(crate) struct EntryView<'a> {
    spiffe_id: &'a SpiffeId,
    parent_id: &'a SpiffeId,
    selectors: &'a Selectors,
    admin: bool,
    downstream: bool,
}

/// What keeps a role from allowing something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    Verb(Verb),
    SpiffeId(SpiffeId),
    ParentId(SpiffeId),
    Agent(SpiffeId),
    SelectorType(String),
    /// To evict a banned agent is to undo the ban.
    Unban,
    /// Only administrators may set the flag, or change an entry that has it.
    Flag(&'static str),
    /// Whoever had an SVID of this ID would have its rights.
    RightsOf(SpiffeId),
    /// Whoever says which keys this trust domain has could make SVIDs that have rights here, or answer for the endpoint that
    /// says which keys such a one has.
    RightsIn(TrustDomain),
    /// Whoever had this ID would have what is registered below it, too.
    Below(SpiffeId),
}

/// How many entries may still be looked at to decide about one request.
#[derive(Debug)]
pub(crate) struct Looks(AtomicUsize);

/// What is for administrators in some state, beside entries with flags.
struct Guarded<'a> {
    rights: &'a Rights,
    state: &'a State,
    /// Trust domains in which the configuration gives rights, and those by whose SVIDs an endpoint proves itself that serves the
    /// bundle of such a one.
    trust_domains: BTreeSet<TrustDomain>,
    /// Who serves their bundles.
    endpoint_ids: BTreeSet<&'a SpiffeId>,
}

impl Rights {
    /// The rights of `admin_ids`, which are administrators without an entry, and of the holders of `roles`.
    pub fn new(admin_ids: BTreeSet<SpiffeId>, roles: Vec<Role>) -> Self {
        let roles = roles.into_iter().map(Arc::new).collect();
        let mut rights = Self { admin_ids, roles, trust_domains: BTreeSet::new() };
        rights.trust_domains = rights.named_ids().iter().map(SpiffeId::trust_domain).collect();
        rights
    }

    /// Whether the configuration makes the bearer of this ID an administrator.
    pub(crate) fn makes_admin(&self, id: &SpiffeId) -> bool {
        self.admin_ids.contains(id)
    }

    /// Whether the configuration names this ID as that of an administrator or of the holder of a role.
    pub(crate) fn names(&self, id: &SpiffeId) -> bool {
        self.makes_admin(id) || self.roles.iter().any(|role| role.granted_to.spiffe_ids.contains(id))
    }

    /// All such IDs.
    pub(crate) fn named_ids(&self) -> BTreeSet<SpiffeId> {
        let holders = self.roles.iter().flat_map(|role| &role.granted_to.spiffe_ids);
        self.admin_ids.iter().chain(holders).cloned().collect()
    }

    /// All roles, in the order of the configuration.
    pub(crate) fn roles(&self) -> &[Arc<Role>] {
        &self.roles
    }

    /// The users and groups of this machine that hold a role.
    pub(crate) fn local_holders(&self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        let granted = || self.roles.iter().map(|role| &role.granted_to);
        (
            granted().flat_map(|to| &to.uids).copied().collect(),
            granted().flat_map(|to| &to.gids).copied().collect(),
        )
    }

    /// The roles that `who` holds, in the order of the configuration.
    pub(crate) fn held_by(&self, who: &Who) -> Vec<Arc<Role>> {
        self.roles.iter().filter(|role| role.granted_to.include(who)).map(Arc::clone).collect()
    }

    /// Whether the bearer of an SVID of this ID has rights that not every workload has, as `state` stands.
    pub(crate) fn elevate(&self, id: &SpiffeId, state: &State) -> bool {
        self.guarded(state).elevate(id)
    }

    /// What is for administrators as `state` stands.
    fn guarded<'a>(&'a self, state: &'a State) -> Guarded<'a> {
        let (mut trust_domains, mut endpoint_ids) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<TrustDomain> = self.trust_domains.iter().cloned().collect();
        while let Some(name) = open.pop() {
            let profile = state.relationship(&name).map(|relationship| &relationship.profile);
            if trust_domains.insert(name)
                && let Some(EndpointProfile::HttpsSpiffe { endpoint_id }) = profile
            {
                endpoint_ids.insert(endpoint_id);
                open.push(endpoint_id.trust_domain());
            }
        }
        Guarded { rights: self, state, trust_domains, endpoint_ids }
    }
}

impl Guarded<'_> {
    /// Whether the bearer of an SVID of this ID has rights that not every workload has.
    fn elevate(&self, id: &SpiffeId) -> bool {
        // An entry that has ended counts, too: it may be given a new end.
        self.rights.names(id) || self.endpoint_ids.contains(id) || self.state.has_flagged(id)
    }
}

impl Looks {
    /// As many as one request may cost.
    pub(crate) const fn of_one_request() -> Self {
        Self(AtomicUsize::new(ENTRIES_LOOKED_AT))
    }

    /// Whether one more may be looked at.
    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Role {
    /// What keeps this role from allowing `verb` on `target`; `None` if it allows it.
    pub(crate) fn lack(
        &self,
        verb: Verb,
        target: &Target<'_>,
        state: &State,
        rights: &Rights,
        looks: &Looks,
    ) -> Option<Lack> {
        if !self.verbs.contains(&verb) {
            return Some(Lack::Verb(verb));
        }
        match target {
            Target::Whole => None,
            Target::Entry(entry) => {
                let is_changed = !matches!(verb, Verb::EntryRead | Verb::StopRead);
                self.lack_of_entry(entry).or_else(|| entry.flag().filter(|_| is_changed).map(Lack::Flag))
            }
            Target::Draft(draft) => self
                .lack_of_entry(draft)
                .or_else(|| draft.flag().map(Lack::Flag))
                .or_else(|| self.lack_of_grant(draft.spiffe_id, &rights.guarded(state), looks)),
            Target::TrustDomain(name) => {
                rights.guarded(state).trust_domains.contains(name).then(|| Lack::RightsIn((*name).clone()))
            }
            Target::Agent(id) if !covers(&self.parent_ids, id) => Some(Lack::Agent((*id).clone())),
            Target::Agent(id) => {
                let undoes_ban =
                    verb == Verb::AgentEvict && state.node(id).is_some_and(|node| node.is_banned());
                (undoes_ban && !self.verbs.contains(&Verb::AgentBan)).then_some(Lack::Unban)
            }
            Target::Svid(id) if !covers(&self.spiffe_ids, id) => Some(Lack::SpiffeId((*id).clone())),
            Target::Svid(id) => rights.elevate(id, state).then(|| Lack::RightsOf((*id).clone())),
            Target::Token { agent, alias } => {
                if !covers(&self.parent_ids, agent) {
                    return Some(Lack::Agent((*agent).clone()));
                }
                let guarded = rights.guarded(state);
                // Entries may have been registered below an agent that is still to come.
                self.lack_below(agent, &guarded, looks).or_else(|| {
                    let alias = (*alias)?;
                    let lack = || Lack::SpiffeId(alias.clone());
                    let uncovered = (!covers(&self.spiffe_ids, alias)).then(lack);
                    uncovered.or_else(|| self.lack_of_grant(alias, &guarded, looks))
                })
            }
        }
    }

    /// Whether the role lets its holder see an entry.
    pub(crate) fn shows(&self, entry: &EntryView<'_>) -> bool {
        self.verbs.contains(&Verb::EntryRead) && self.lack_of_entry(entry).is_none()
    }

    /// Whether the role lets its holder see an agent.
    pub(crate) fn shows_agent(&self, id: &SpiffeId) -> bool {
        self.verbs.contains(&Verb::AgentRead) && covers(&self.parent_ids, id)
    }

    fn lack_of_entry(&self, entry: &EntryView<'_>) -> Option<Lack> {
        if !covers(&self.spiffe_ids, entry.spiffe_id) {
            return Some(Lack::SpiffeId(entry.spiffe_id.clone()));
        }
        if !covers(&self.parent_ids, entry.parent_id) {
            return Some(Lack::ParentId(entry.parent_id.clone()));
        }
        let foreign = entry.selectors.iter().find(|selector| !self.selector_types.include(selector.kind()));
        foreign.map(|selector| Lack::SelectorType(selector.kind().to_owned()))
    }

    /// Whether somebody who gets SVIDs of `id` has more by it than the role covers.
    fn lack_of_grant(&self, id: &SpiffeId, guarded: &Guarded<'_>, looks: &Looks) -> Option<Lack> {
        if guarded.elevate(id) {
            return Some(Lack::RightsOf(id.clone()));
        }
        self.lack_below(id, guarded, looks)
    }

    /// A node that is authorized for an ID is so for all entries below it, at any depth. Each must be one that the role
    /// could have made.
    fn lack_below(&self, id: &SpiffeId, guarded: &Guarded<'_>, looks: &Looks) -> Option<Lack> {
        let mut seen = BTreeSet::from([id]);
        let mut parents = vec![id];
        let mut looked_at = 0;
        while let Some(parent) = parents.pop() {
            for child in guarded.state.children(parent) {
                looked_at += 1;
                if looked_at > ENTRIES_BELOW || !looks.take() || child.admin || child.downstream {
                    return Some(Lack::Below(id.clone()));
                }
                // Thousands of entries may grant one ID: what it gives is asked once.
                if seen.insert(&child.spiffe_id) {
                    if guarded.elevate(&child.spiffe_id) || !covers(&self.spiffe_ids, &child.spiffe_id) {
                        return Some(Lack::Below(id.clone()));
                    }
                    parents.push(&child.spiffe_id);
                }
            }
        }
        None
    }
}

impl Holders {
    fn include(&self, who: &Who) -> bool {
        match who {
            Who::Bearer(id) => self.spiffe_ids.contains(id),
            Who::User { uid, gids } => self.uids.contains(uid) || !self.gids.is_disjoint(gids),
        }
    }
}

impl Prefix {
    /// `id` and all below it.
    pub fn new(id: SpiffeId) -> Self {
        Self(id)
    }

    /// The ID itself.
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }

    /// Whether `id` is this one, or below it.
    pub fn covers(&self, id: &SpiffeId) -> bool {
        let rest = id.as_str().strip_prefix(self.0.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether it lies in this trust domain.
    pub fn is_of(&self, trust_domain: &TrustDomain) -> bool {
        self.0.is_member_of(trust_domain)
    }
}

fn covers(prefixes: &[Prefix], id: &SpiffeId) -> bool {
    prefixes.iter().any(|prefix| prefix.covers(id))
}

impl SelectorTypes {
    fn include(&self, kind: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(kinds) => kinds.contains(kind),
        }
    }
}

impl EntryView<'_> {
    /// The flag by which its SVIDs have more rights than a workload's.
    const fn flag(&self) -> Option<&'static str> {
        match (self.admin, self.downstream) {
            (true, _) => Some("admin"),
            (false, true) => Some("downstream"),
            (false, false) => None,
        }
    }
}

impl<'a> From<&'a Entry> for EntryView<'a> {
    fn from(entry: &'a Entry) -> Self {
        let Entry { spiffe_id, parent_id, selectors, admin, downstream, .. } = entry;
        Self { spiffe_id, parent_id, selectors, admin: *admin, downstream: *downstream }
    }
}

impl<'a> From<&'a EntryDraft> for EntryView<'a> {
    fn from(draft: &'a EntryDraft) -> Self {
        let EntryDraft { spiffe_id, parent_id, selectors, admin, downstream, .. } = draft;
        Self { spiffe_id, parent_id, selectors, admin: *admin, downstream: *downstream }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer(id) => id.fmt(f),
            Self::User { uid, .. } => write!(f, "local uid={uid}"),
        }
    }
}

/// Completes "it ...".
impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verb(verb) => write!(f, "does not have the verb {verb}"),
            Self::SpiffeId(id) => write!(f, "does not cover SPIFFE ID \"{id}\""),
            Self::ParentId(id) => write!(f, "does not cover parent ID \"{id}\""),
            Self::Agent(id) => write!(f, "does not cover agent \"{id}\""),
            Self::SelectorType(kind) => write!(f, "does not cover selectors of type \"{kind}\""),
            Self::Unban => {
                write!(
                    f,
                    "does not have the verb {}, and to evict a banned agent undoes the ban",
                    Verb::AgentBan
                )
            }
            Self::Flag(flag) => {
                write!(f, "cannot cover an entry with the {flag} flag: that is for administrators")
            }
            Self::RightsOf(id) => {
                write!(
                    f,
                    "cannot give out SPIFFE ID \"{id}\", which has rights of its own: that is for administrators"
                )
            }
            Self::RightsIn(name) => {
                write!(
                    f,
                    "cannot decide about trust domain \"{name}\", whose keys lead to rights that the configuration gives: that is for administrators"
                )
            }
            Self::Below(id) => {
                write!(
                    f,
                    "cannot give out \"{id}\": entries below it are outside of the role, or too many to look at for one request"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
