//! What does the server remember of a join token?

use passant_attest::node::join_token::TokenHash;
use passant_core::{SpiffeId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::encoding;

/// A join token that was handed out. The token itself is never stored, only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the token; one row per hash.
    pub hash: TokenHash,
    /// The last second at which the token may be spent, or its spending repeated.
    pub expires_at: UnixTime,
    /// A further SPIFFE ID that the node stands for, if the operator asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<SpiffeId>,
    /// Whether the holder of a role had it made, for whom an alias that has rights by the time it is spent is too much.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_role: bool,
    /// How it was spent. A spent token is kept until it expires, so that a retry with the same key after a lost
    /// reply succeeds and any other attempt is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Spent>,
}

/// Who spent a join token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// SHA-256 of the SPKI (DER) of the node's key.
    #[serde(with = "encoding::hex")]
    pub key_hash: [u8; 32],
    /// The agent that came of it.
    pub agent_id: SpiffeId,
    /// When.
    pub at: UnixTime,
}
