//! What does the server remember of an attested node?

use passant_core::serial::Serial;
use passant_core::{Selectors, SpiffeId, UnixTime};
use serde::{Deserialize, Serialize};

/// A node that proved who it is, and the node SVID its agent may call with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestedNode {
    /// The agent's SPIFFE ID; one row per ID.
    pub id: SpiffeId,
    /// The method that attested it, for example `join_token`.
    pub attestation_type: String,
    /// Serial number of the agent's active X509-SVID; `None` while the node is banned.
    pub serial: Option<Serial>,
    /// When the active X509-SVID ends.
    pub not_after: UnixTime,
    /// A renewed X509-SVID that has not been used yet. Both serials are accepted until the agent first calls with
    /// the new one, since the reply that carried it may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingSerial>,
    /// What attestation found out about the node.
    pub selectors: Selectors,
    /// Whether the node can attest again by its own evidence (a join token cannot).
    pub can_reattest: bool,
    /// The agent's version as it last reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// When the node last attested.
    pub attested_at: UnixTime,
    /// Set while the active X509-SVID is one that another server of the trust domain issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// How far an agent that another server attested has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adopted {
    /// It has never called here. The other server may renew its SVID meanwhile: a newer one is accepted once.
    Awaited,
    /// It has called here with the SVID of the other server.
    Arrived,
}

/// The serial number and end of a node SVID that was issued but not yet seen in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSerial {
    /// Serial number of the new X509-SVID.
    pub serial: Serial,
    /// When the new X509-SVID ends.
    pub not_after: UnixTime,
}

impl AttestedNode {
    /// Whether an operator banned the node: it has no active serial, and nothing it presents is accepted.
    pub const fn is_banned(&self) -> bool {
        self.serial.is_none()
    }

    /// When the last X509-SVID ends with which its agent may call.
    pub fn last_end(&self) -> UnixTime {
        self.pending.as_ref().map_or(self.not_after, |pending| pending.not_after.max(self.not_after))
    }

    /// Whether its agent gets anything that would be verified: it is not banned, and may call at `now`.
    pub fn is_standing(&self, now: UnixTime) -> bool {
        !self.is_banned() && self.last_end() >= now
    }
}
