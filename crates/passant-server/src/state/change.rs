//! How does the state change, and how are changes counted?

use std::fmt;
use std::sync::Arc;

use passant_attest::node::join_token::TokenHash;
use passant_core::bundle::Bundle;
use passant_core::{Entry, EntryId, FederationRelationship, SpiffeId, Stop, StopTarget, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::encoding;
use crate::state::authority::{Authority, AuthorityId};
use crate::state::node::AttestedNode;
use crate::state::token::JoinToken;

/// The put or the delete of one object, whole. A put replaces what stood under the same key; the delete of what is
/// not there changes nothing.
///
/// Written to the store as JSON. A variant is never renamed or given another meaning; a new one is written only
/// once every server that reads the store knows it, since an unknown one makes a server refuse to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Registers or replaces a registration entry.
    PutEntry(Arc<Entry>),
    /// Removes a registration entry.
    DeleteEntry(EntryId),
    /// Adds or replaces an attested node.
    PutNode(Arc<AttestedNode>),
    /// Removes an attested node.
    DeleteNode(SpiffeId),
    /// Adds or replaces a join token.
    PutToken(JoinToken),
    /// Removes a join token.
    DeleteToken(TokenHash),
    /// Adds or replaces an authority of this trust domain.
    PutAuthority(Authority),
    /// Removes an authority.
    DeleteAuthority(AuthorityId),
    /// Adds or replaces the bundle of a trust domain, this one or a federated one.
    PutBundle(Arc<Bundle>),
    /// Removes the bundle of a trust domain.
    DeleteBundle(TrustDomain),
    /// Adds or replaces a federation relationship.
    PutFederation(Arc<FederationRelationship>),
    /// Ends the federation relationship with a trust domain.
    DeleteFederation(TrustDomain),
    /// Stops something, or replaces the stop there is.
    PutStop(Arc<Stop>),
    /// Takes a stop back.
    DeleteStop(StopTarget),
}

impl Change {
    /// The key of the object, unique over all kinds: `entry/<id>`, `node/<SPIFFE ID>`, `token/<hash>`,
    /// `authority/<id>`, `bundle/<trust domain>`, `federation/<trust domain>`, `stop/agent <SPIFFE ID>`,
    /// `stop/entry <id>`, `stop/instance <SPIFFE ID> <instance>`.
    pub fn key(&self) -> String {
        match self {
            Self::PutEntry(entry) => entry_key(&entry.id),
            Self::DeleteEntry(id) => entry_key(id),
            Self::PutNode(node) => node_key(&node.id),
            Self::DeleteNode(id) => node_key(id),
            Self::PutToken(token) => token_key(&token.hash),
            Self::DeleteToken(hash) => token_key(hash),
            Self::PutAuthority(authority) => authority_key(&authority.id),
            Self::DeleteAuthority(id) => authority_key(id),
            Self::PutBundle(bundle) => bundle_key(&bundle.trust_domain),
            Self::DeleteBundle(trust_domain) => bundle_key(trust_domain),
            Self::PutFederation(relationship) => federation_key(&relationship.trust_domain),
            Self::DeleteFederation(trust_domain) => federation_key(trust_domain),
            Self::PutStop(stop) => stop_key(&stop.target),
            Self::DeleteStop(target) => stop_key(target),
        }
    }

    /// Whether [`Change::key`] is `key`; of an entry, which there may be millions of, without making it.
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        if let Self::PutEntry(entry) = self {
            return key.strip_prefix(ENTRY.as_bytes()) == Some(entry.id.as_str().as_bytes());
        }
        self.key().as_bytes() == key
    }

    /// Whether the object stands after the change.
    pub const fn is_put(&self) -> bool {
        match self {
            Self::PutEntry(_)
            | Self::PutNode(_)
            | Self::PutToken(_)
            | Self::PutAuthority(_)
            | Self::PutBundle(_)
            | Self::PutFederation(_)
            | Self::PutStop(_) => true,
            Self::DeleteEntry(_)
            | Self::DeleteNode(_)
            | Self::DeleteToken(_)
            | Self::DeleteAuthority(_)
            | Self::DeleteBundle(_)
            | Self::DeleteFederation(_)
            | Self::DeleteStop(_) => false,
        }
    }
}

const ENTRY: &str = "entry/";

fn entry_key(id: &EntryId) -> String {
    format!("{ENTRY}{id}")
}

fn node_key(id: &SpiffeId) -> String {
    format!("node/{id}")
}

fn token_key(hash: &TokenHash) -> String {
    format!("token/{hash}")
}

fn authority_key(id: &AuthorityId) -> String {
    format!("authority/{id}")
}

fn bundle_key(trust_domain: &TrustDomain) -> String {
    format!("bundle/{trust_domain}")
}

fn federation_key(trust_domain: &TrustDomain) -> String {
    format!("federation/{trust_domain}")
}

fn stop_key(target: &StopTarget) -> String {
    match target {
        StopTarget::Agent(agent) => format!("stop/agent {agent}"),
        StopTarget::Entry(id) => format!("stop/entry {id}"),
        StopTarget::Instance { agent, instance } => format!("stop/instance {agent} {instance}"),
    }
}

impl Change {
    /// Whether a version would lose something of it, or fail over it, that knows neither stops nor entry options.
    pub fn needs_second_format(&self) -> bool {
        match self {
            Self::PutEntry(entry) => !entry.options.is_default(),
            Self::PutStop(_) | Self::DeleteStop(_) => true,
            Self::DeleteEntry(_)
            | Self::PutNode(_)
            | Self::DeleteNode(_)
            | Self::PutToken(_)
            | Self::DeleteToken(_)
            | Self::PutAuthority(_)
            | Self::DeleteAuthority(_)
            | Self::PutBundle(_)
            | Self::DeleteBundle(_)
            | Self::PutFederation(_)
            | Self::DeleteFederation(_) => false,
        }
    }
}

/// Changes that happen together or not at all. Each commit takes one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// Tells this commit from every other, so that one whose fate is unknown can be looked for in the store.
    pub request_id: RequestId,
    /// In the order in which they apply.
    pub changes: Vec<Change>,
}

/// 128 random bits that name a commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(#[serde(with = "encoding::hex")] [u8; 16]);

impl RequestId {
    /// The ID of these bytes, which come from `Host.entropy`.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::to_hex(&self.0))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How many commits a store has taken since it was created. A new store is at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(u64);

impl Revision {
    /// Before the first commit.
    pub const ZERO: Self = Self(0);

    /// The revision of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// After one commit more.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which life of a store its revisions belong to: 128 random bits drawn when it was created.
///
/// A restored or migrated store has another lineage, so that its revisions are never compared with those of its
/// former self.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(#[serde(with = "encoding::hex")] [u8; 16]);

impl Lineage {
    /// The lineage of these bytes, which come from `Host.entropy`.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::to_hex(&self.0))
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A point in the history of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The life of the store.
    pub lineage: Lineage,
    /// The commits taken in it.
    pub revision: Revision,
}
