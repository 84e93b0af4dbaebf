//! What is a valid trust domain name?

use std::fmt;
use std::sync::Arc;

use crate::limits::TRUST_DOMAIN_BYTES;
use crate::spiffe_id::{SCHEME, SpiffeId, SpiffeIdError};
use crate::text;

/// A trust domain name: 1 to 255 bytes of `a-z 0-9 . - _` (SPIFFE-ID 2.1).
///
/// Upper case is refused, never folded (see Decisions in ARCHITECTURE.md). A name that looks like an IP address or that
/// is no legal DNS name gets no special treatment, and none is ever resolved.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(pub(crate) Arc<str>);

impl TrustDomain {
    /// Parses a bare name (`example.org`) or a trust domain's SPIFFE ID (`spiffe://example.org`).
    ///
    /// # Errors
    /// When the name is empty, too long or holds another byte, and when a SPIFFE ID with a path was given.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        check_name(name)?;
        Ok(Self(Arc::from(name)))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, without a path: `spiffe://example.org`.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::assemble(self, "")
    }

    /// The SPIFFE ID with `path` in this trust domain; `path` starts with a slash.
    ///
    /// # Errors
    /// When the path is not one of SPIFFE-ID 2.2, or the whole is longer than 2048 bytes.
    pub fn join(&self, path: &str) -> Result<SpiffeId, SpiffeIdError> {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(SpiffeIdError::NoLeadingSlash);
        }
        SpiffeId::parse(&format!("{SCHEME}{}{path}", self.0))
    }

    /// The SPIFFE ID that every server of this trust domain presents: `/spire/server`.
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId::assemble(self, "/spire/server")
    }

    /// The SPIFFE ID of an agent: `/spire/agent/<method>/<rest>`.
    ///
    /// # Errors
    /// When `rest` does not make a valid path.
    pub fn agent_id(&self, method: &str, rest: &str) -> Result<SpiffeId, SpiffeIdError> {
        self.join(&format!("/spire/agent/{method}/{rest}"))
    }
}

/// Checks the bytes and the length of a trust domain name.
pub(crate) fn check_name(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::MissingTrustDomain);
    }
    if name.len() > TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong);
    }
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if name.bytes().all(legal) { Ok(()) } else { Err(SpiffeIdError::BadTrustDomainChar) }
}

text::serde_as_text!(TrustDomain, "a trust domain name", shared);

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<TrustDomain> for String {
    fn from(name: TrustDomain) -> Self {
        name.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_39_legal_bytes_are_accepted() {
        let accepted: Vec<u8> =
            (0u8..=127).filter(|b| TrustDomain::parse(&format!("x{}y", *b as char)).is_ok()).collect();
        assert_eq!(accepted, b"-.0123456789_abcdefghijklmnopqrstuvwxyz");
        assert!(TrustDomain::parse("x\u{e9}y").is_err());
    }

    #[test]
    fn length_is_bounded_at_255_bytes() {
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert_eq!(TrustDomain::parse(&"a".repeat(256)), Err(SpiffeIdError::TrustDomainTooLong));
        assert_eq!(TrustDomain::parse(""), Err(SpiffeIdError::MissingTrustDomain));
    }

    #[test]
    fn a_spiffe_id_is_taken_only_without_path() {
        assert_eq!(TrustDomain::parse("spiffe://example.org").unwrap().as_str(), "example.org");
        assert!(TrustDomain::parse("spiffe://example.org/a").is_err());
    }

    #[test]
    fn well_known_ids() {
        let td = TrustDomain::parse("example.org").unwrap();
        assert_eq!(td.id().as_str(), "spiffe://example.org");
        assert_eq!(td.server_id().as_str(), "spiffe://example.org/spire/server");
        assert_eq!(
            td.agent_id("x509pop", "ab").unwrap().as_str(),
            "spiffe://example.org/spire/agent/x509pop/ab"
        );
        assert!(td.agent_id("x509pop", "a b").is_err());
        assert_eq!(td.join("x"), Err(SpiffeIdError::NoLeadingSlash));
    }
}
