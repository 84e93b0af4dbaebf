//! What does the server remember of one of its own X.509 or JWT authorities?

use std::fmt;
use std::sync::Arc;

use passant_core::UnixTime;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding;

/// An X.509 or JWT authority of this trust domain. The private key is in the key store, under the same ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// One row per ID.
    pub id: AuthorityId,
    /// What it signs.
    pub kind: AuthorityKind,
    /// Where it stands in its life.
    pub phase: Phase,
    /// Whether an operator declared it untrustworthy: what it signed must be replaced.
    pub tainted: bool,
    /// The CA certificate in DER; `None` for a JWT authority.
    #[serde(default, with = "encoding::optional_base64", skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Vec<u8>>,
    /// The public key as DER SubjectPublicKeyInfo.
    #[serde(with = "encoding::base64")]
    pub public_key: Vec<u8>,
    /// From when it counts.
    pub not_before: UnixTime,
    /// Until when; nothing it signs outlives this.
    pub not_after: UnixTime,
    /// When it was made and published.
    pub prepared_at: UnixTime,
    /// When it began to sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<UnixTime>,
    /// The sequence number of the first bundle that held it.
    pub published: u64,
}

/// What an authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityKind {
    /// X509-SVIDs.
    X509,
    /// JWT-SVIDs.
    Jwt,
}

/// Where an authority stands in its life. Prepared authorities are already in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Published, does not sign yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more; still published, since what it signed is still in use.
    Retired,
}

/// Names an authority: the subject key identifier in hex for X.509, the key ID for JWT.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AuthorityId(Arc<str>);

/// Why a text names no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("authority ID must be 1 to 128 letters, numbers, dashes and underscores")]
pub struct AuthorityIdError;

impl AuthorityId {
    /// Parses 1 to 128 bytes of `A-Z a-z 0-9 - _`.
    ///
    /// # Errors
    /// When the text is empty, longer, or holds another byte.
    pub fn parse(text: &str) -> Result<Self, AuthorityIdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if text.is_empty() || text.len() > 128 || !text.bytes().all(legal) {
            return Err(AuthorityIdError);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The ID of the authority with this subject key identifier, at most 64 bytes and not empty.
    ///
    /// # Errors
    /// When the identifier is empty or longer.
    pub fn of_key(subject_key_id: &[u8]) -> Result<Self, AuthorityIdError> {
        Self::parse(&encoding::to_hex(subject_key_id))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for AuthorityId {
    type Error = AuthorityIdError;

    fn try_from(text: String) -> Result<Self, AuthorityIdError> {
        Self::parse(&text)
    }
}

impl From<AuthorityId> for String {
    fn from(id: AuthorityId) -> Self {
        id.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_ids_are_bounded_and_plain() {
        assert_eq!(AuthorityId::of_key(&[0xab, 1]).unwrap().as_str(), "ab01");
        assert!(AuthorityId::parse(&"a".repeat(128)).is_ok());
        for bad in ["", "a/b", "a b", &"a".repeat(129)] {
            assert_eq!(AuthorityId::parse(bad), Err(AuthorityIdError), "{bad}");
        }
    }
}
