//! What can a role allow?

use std::fmt;

/// One thing that a role can allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// List, count and show entries. What the role does not cover is not shown.
    EntryRead,
    /// Create entries.
    EntryCreate,
    /// Change entries: the role must cover the entry before and after.
    EntryUpdate,
    /// Delete entries.
    EntryDelete,
    /// List, count and show agents.
    AgentRead,
    /// Evict agents.
    AgentEvict,
    /// Ban agents.
    AgentBan,
    /// Create join tokens.
    TokenCreate,
    /// Mint X509-SVIDs and JWT-SVIDs without an entry.
    SvidMint,
    /// List, count and show federated bundles.
    BundleRead,
    /// Set and delete federated bundles; never those of trust domains that the configuration gives rights to.
    BundleWrite,
    /// List and show federation relationships, and how their fetching goes.
    FederationRead,
    /// Create, change and end federation relationships, and fetch their bundles; with the exception of `bundle.write`.
    FederationWrite,
    /// Show which authorities sign.
    AuthorityRead,
    /// Prepare and activate authorities.
    AuthorityRotate,
    /// Taint and revoke authorities.
    AuthorityRevoke,
    /// Search and verify the decision record: what was issued, done and refused, for all and by all.
    AuditRead,
    /// Have it explained why a workload has an identity, or none; of any entry and any agent.
    IdentityExplain,
    /// List and show stops, and how far they have come.
    StopRead,
    /// Stop entries, agents and processes on their nodes, and end such stops.
    StopWrite,
}

/// By what a verb's targets are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divided {
    /// By prefixes of SPIFFE IDs.
    pub by_spiffe_id: bool,
    /// By prefixes of parent IDs and agents.
    pub by_parent_id: bool,
    /// By types of selectors.
    pub by_selector_type: bool,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::EntryRead,
        Self::EntryCreate,
        Self::EntryUpdate,
        Self::EntryDelete,
        Self::AgentRead,
        Self::AgentEvict,
        Self::AgentBan,
        Self::TokenCreate,
        Self::SvidMint,
        Self::BundleRead,
        Self::BundleWrite,
        Self::FederationRead,
        Self::FederationWrite,
        Self::AuthorityRead,
        Self::AuthorityRotate,
        Self::AuthorityRevoke,
        Self::AuditRead,
        Self::IdentityExplain,
        Self::StopRead,
        Self::StopWrite,
    ];

    /// As it is written in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EntryRead => "entry.read",
            Self::EntryCreate => "entry.create",
            Self::EntryUpdate => "entry.update",
            Self::EntryDelete => "entry.delete",
            Self::AgentRead => "agent.read",
            Self::AgentEvict => "agent.evict",
            Self::AgentBan => "agent.ban",
            Self::TokenCreate => "token.create",
            Self::SvidMint => "svid.mint",
            Self::BundleRead => "bundle.read",
            Self::BundleWrite => "bundle.write",
            Self::FederationRead => "federation.read",
            Self::FederationWrite => "federation.write",
            Self::AuthorityRead => "authority.read",
            Self::AuthorityRotate => "authority.rotate",
            Self::AuthorityRevoke => "authority.revoke",
            Self::AuditRead => "audit.read",
            Self::IdentityExplain => "identity.explain",
            Self::StopRead => "stop.read",
            Self::StopWrite => "stop.write",
        }
    }

    /// The verb of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }

    /// By what roles divide its targets.
    pub const fn divided(self) -> Divided {
        let (by_spiffe_id, by_parent_id, by_selector_type) = match self {
            Self::EntryRead
            | Self::EntryCreate
            | Self::EntryUpdate
            | Self::EntryDelete
            | Self::StopRead
            | Self::StopWrite => (true, true, true),
            Self::AgentRead | Self::AgentEvict | Self::AgentBan => (false, true, false),
            Self::TokenCreate => (true, true, false),
            Self::SvidMint => (true, false, false),
            Self::BundleRead
            | Self::BundleWrite
            | Self::FederationRead
            | Self::FederationWrite
            | Self::AuthorityRead
            | Self::AuthorityRotate
            | Self::AuthorityRevoke
            | Self::AuditRead
            | Self::IdentityExplain => (false, false, false),
        };
        Divided { by_spiffe_id, by_parent_id, by_selector_type }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Verb;

    #[test]
    fn every_verb_is_found_by_its_name() {
        for (at, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(Verb::parse(verb.name()), Some(verb));
            assert_eq!(verb as usize, at, "every verb is listed");
        }
        assert_eq!(Verb::parse("entry"), None);
    }
}
