//! How does a node prove itself with a join token?
//!
//! The evidence is the token itself, as SPIRE's agents send it. Whether it exists, when it expires and that it is spent
//! once is state, and decided by the server; this file says what a token looks like, what it hashes to and which agent it
//! makes. A token is no proof that can be repeated, so that such an agent renews its SVID and never attests anew.

use std::fmt;
use std::pin::Pin;

use passant_core::spiffe_id::SpiffeIdError;
use passant_core::{Secret, SpiffeId, TrustDomain};
use ring::digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ProveError, Prover};
use crate::limits::JOIN_TOKEN_BYTES;

/// The attestation type.
pub const METHOD: &str = "join_token";

/// A join token: one segment of a SPIFFE ID path, because the agent's ID holds it. A secret until it is spent.
#[derive(Debug)]
pub struct Token(Secret<String>);

/// Why something is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("join token is empty")]
    Empty,
    /// Longer than any that is given out.
    #[error("join token is longer than {JOIN_TOKEN_BYTES} bytes")]
    TooLong,
    /// It could not stand in a SPIFFE ID.
    #[error("join token may hold only letters, digits, '-', '.' and '_', and not be '.' or '..'")]
    BadCharacter,
}

impl Token {
    /// Checks the form of `text`.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > JOIN_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if !text.bytes().all(is_allowed) || text == "." || text == ".." {
            return Err(TokenError::BadCharacter);
        }
        Ok(Self(Secret::new(text.to_owned())))
    }

    /// The token in clear, to be shown once to whoever asked for it, or sent by its node.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// What is kept of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.0.expose())
    }

    /// The agent that it makes: `spiffe://<trust domain>/spire/agent/join_token/<token>`, as in SPIRE.
    ///
    /// # Errors
    /// When the ID would be too long, under a very long trust domain name.
    pub fn agent_id(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
        trust_domain.agent_id(METHOD, self.0.expose())
    }
}

/// SHA-256 of a join token, in lower-case hex when written. The server keeps only this.
///
/// A token is found by looking up its hash, so that no comparison leaks, byte by byte, how near a guess is: the caller
/// cannot choose the hash's prefix without knowing the token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of the token `text`, whatever its form.
    pub fn of(text: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        Self(hash)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A text that is no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("token hash must be 64 lower-case hex digits")]
pub struct TokenHashError;

impl TryFrom<String> for TokenHash {
    type Error = TokenHashError;

    fn try_from(text: String) -> Result<Self, TokenHashError> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 64 || !text.bytes().all(is_hex) {
            return Err(TokenHashError);
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| TokenHashError)?;
        }
        Ok(Self(hash))
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The agent's half.
#[derive(Debug)]
pub struct JoinTokenProver {
    token: Token,
}

impl JoinTokenProver {
    /// A prover that holds `token`.
    pub const fn new(token: Token) -> Self {
        Self { token }
    }
}

impl Prover for JoinTokenProver {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn evidence(&mut self) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ProveError>> + Send + '_>> {
        Box::pin(async { Ok(self.token.expose().as_bytes().to_vec()) })
    }

    fn respond<'a>(
        &'a mut self,
        _challenge: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ProveError>> + Send + 'a>> {
        Box::pin(async { Err(ProveError::new("server challenged a join token, which has no answer")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_is_checked_on_both_sides_of_each_bound() {
        for (text, expected) in [
            ("", Err(TokenError::Empty)),
            ("a", Ok(())),
            ("9c4d1b2e-0c3f-4a59-8d0e-6a2b1f7c5e11", Ok(())),
            (&"a".repeat(JOIN_TOKEN_BYTES), Ok(())),
            (&"a".repeat(JOIN_TOKEN_BYTES + 1), Err(TokenError::TooLong)),
            (".", Err(TokenError::BadCharacter)),
            ("..", Err(TokenError::BadCharacter)),
            ("...", Ok(())),
            ("a/b", Err(TokenError::BadCharacter)),
            ("a b", Err(TokenError::BadCharacter)),
            ("a%2F", Err(TokenError::BadCharacter)),
            ("ä", Err(TokenError::BadCharacter)),
        ] {
            assert_eq!(Token::parse(text).map(|_| ()), expected, "{text:?}");
        }
    }

    #[test]
    fn agent_id_is_spires() {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let id = Token::parse("abc").unwrap().agent_id(&trust_domain).unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/spire/agent/join_token/abc");
    }

    #[test]
    fn hash_is_sha256_and_survives_json() {
        let hash = TokenHash::of("abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash, Token::parse("abc").unwrap().hash());
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<TokenHash>(&json).unwrap(), hash);
        for bad in ["\"ba\"", "\"\"", &json.to_uppercase(), &json.replace('b', "ä")] {
            assert!(serde_json::from_str::<TokenHash>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_does_not_show_the_token() {
        let prover = JoinTokenProver::new(Token::parse("hunter2").unwrap());
        assert!(!format!("{prover:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn evidence_is_the_token_and_a_challenge_has_no_answer() {
        let mut prover = JoinTokenProver::new(Token::parse("abc").unwrap());
        assert_eq!(prover.evidence().await.unwrap(), b"abc");
        assert!(prover.respond(b"?").await.is_err());
    }
}
