//! What is a valid SPIFFE ID?

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::limits::SPIFFE_ID_BYTES;
use crate::text;
use crate::trust_domain::{TrustDomain, check_name};

/// What every SPIFFE ID starts with.
pub(crate) const SCHEME: &str = "spiffe://";

/// A SPIFFE ID: `spiffe://<trust domain><path>`, at most 2048 bytes (SPIFFE-ID 2).
///
/// Parsed by hand, because URL parsers fold case, drop ports, resolve dots and decode percent signs, all of which
/// the specification forbids. Two IDs are equal when their bytes are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Where the path begins is not kept beside it: it is found as fast, and there are millions of IDs.
    pub(crate) text: Arc<str>,
}

/// Why a text is no SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpiffeIdError {
    /// Nothing was given.
    #[error("SPIFFE ID is empty")]
    Empty,
    /// More than 2048 bytes.
    #[error("SPIFFE ID is longer than 2048 bytes")]
    TooLong,
    /// It does not start with `spiffe://` in lower case.
    #[error("scheme is missing or invalid: a SPIFFE ID starts with spiffe://")]
    WrongScheme,
    /// Nothing stands between the scheme and the path.
    #[error("trust domain is missing")]
    MissingTrustDomain,
    /// More than 255 bytes of trust domain.
    #[error("trust domain is longer than 255 bytes")]
    TrustDomainTooLong,
    /// A byte outside `a-z 0-9 . - _`.
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    BadTrustDomainChar,
    /// A path that would run into the trust domain.
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    /// Two slashes in a row.
    #[error("path cannot contain empty segments")]
    EmptySegment,
    /// A slash at the end.
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    /// A segment that is `.` or `..`.
    #[error("path cannot contain dot segments")]
    DotSegment,
    /// A byte outside `A-Z a-z 0-9 . - _`.
    #[error("path segment characters are limited to letters, numbers, dots, dashes, and underscores")]
    BadPathChar,
}

impl SpiffeId {
    /// Parses the text form.
    ///
    /// # Errors
    /// The first rule of SPIFFE-ID 2 that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::Empty);
        }
        if text.len() > SPIFFE_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::WrongScheme)?;
        let name_len = rest.find('/').unwrap_or(rest.len());
        let (name, path) = rest.split_at(name_len);
        check_name(name)?;
        check_path(path)?;
        Ok(Self { text: Arc::from(text) })
    }

    /// Puts together parts that are known to be valid.
    pub(crate) fn assemble(trust_domain: &TrustDomain, path: &str) -> Self {
        Self { text: Arc::from(format!("{SCHEME}{trust_domain}{path}")) }
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain_name(&self) -> &str {
        self.parts().0
    }

    /// The trust domain that this ID lies in.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain::parse(self.trust_domain_name()).expect("the name was checked when this ID was made")
    }

    /// The path with its leading slash, or the empty string for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        let rest = &self.text[SCHEME.len()..];
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }

    /// Whether the ID lies in `trust_domain`.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.as_str()
    }

    /// Whether this names a trust domain itself, having no path.
    pub fn is_trust_domain_id(&self) -> bool {
        self.path().is_empty()
    }

    /// Whether this is the ID of an attested node's agent: a path below `/spire/agent/`.
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }

    /// Whether the path lies in the part reserved for servers and agents, `/spire` and below.
    pub fn is_reserved(&self) -> bool {
        self.path() == "/spire" || self.path().starts_with("/spire/")
    }
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    if path.is_empty() {
        return Ok(());
    }
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" if segments.peek().is_none() => return Err(SpiffeIdError::TrailingSlash),
            "" => return Err(SpiffeIdError::EmptySegment),
            "." | ".." => return Err(SpiffeIdError::DotSegment),
            _ => {}
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !segment.bytes().all(legal) {
            return Err(SpiffeIdError::BadPathChar);
        }
    }
    Ok(())
}

text::serde_as_text!(SpiffeId, "a SPIFFE ID", shared);

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Result<(), SpiffeIdError>) {
        assert_eq!(SpiffeId::parse(text).map(|_| ()), expected, "{text}");
    }

    #[test]
    fn refuses_what_the_specification_forbids() {
        use SpiffeIdError::*;
        check("", Err(Empty));
        check("http://example.org/a", Err(WrongScheme));
        check("spiffee://example.org/a", Err(WrongScheme));
        check("SPIFFE://example.org/a", Err(WrongScheme));
        check("//example.org/a", Err(WrongScheme));
        check("spiffe:/a", Err(WrongScheme));
        check("spiffe://", Err(MissingTrustDomain));
        check("spiffe:///a", Err(MissingTrustDomain));
        for authority in [
            "Example.org",
            "u@example.org",
            "u:p@example.org",
            "@example.org",
            "example.org:80",
            "example.org:",
            "ex%61mple.org",
            "[::1]",
        ] {
            check(&format!("spiffe://{authority}/a"), Err(BadTrustDomainChar));
        }
        check("spiffe://example.org?", Err(BadTrustDomainChar));
        for path in ["/a?x=1", "/a?", "/a#f", "/a#", "/a%2Fb", "/%41", "/a~b", "/a:b", "/a+b", "/a@b", "/a b"]
        {
            check(&format!("spiffe://example.org{path}"), Err(BadPathChar));
        }
        check("spiffe://example.org//a", Err(EmptySegment));
        check("spiffe://example.org/a//b", Err(EmptySegment));
        check("spiffe://example.org/", Err(TrailingSlash));
        check("spiffe://example.org/a/", Err(TrailingSlash));
        for path in ["/a/./b", "/a/../b", "/.", "/.."] {
            check(&format!("spiffe://example.org{path}"), Err(DotSegment));
        }
    }

    #[test]
    fn accepts_unusual_but_legal_ids() {
        for text in [
            "spiffe://example.org",
            "spiffe://127.0.0.1/a",
            "spiffe://a..b/c",
            "spiffe://-x_/c",
            "spiffe://example.org/a/.../b",
            "spiffe://example.org/.a",
            "spiffe://example.org/ns/staging/sa/default",
        ] {
            check(text, Ok(()));
        }
    }

    #[test]
    fn length_is_bounded_at_2048_bytes() {
        let id =
            |len: usize| format!("spiffe://example.org/{}", "a".repeat(len - "spiffe://example.org/".len()));
        check(&id(2048), Ok(()));
        check(&id(2049), Err(SpiffeIdError::TooLong));
    }

    #[test]
    fn paths_compare_with_case() {
        assert_ne!(SpiffeId::parse("spiffe://example.org/A"), SpiffeId::parse("spiffe://example.org/a"));
    }

    #[test]
    fn parts_are_told_apart() {
        let id = SpiffeId::parse("spiffe://example.org/spire/agent/x/y").unwrap();
        assert_eq!((id.trust_domain_name(), id.path()), ("example.org", "/spire/agent/x/y"));
        assert!(id.is_agent() && id.is_reserved() && !id.is_trust_domain_id());
        assert!(!SpiffeId::parse("spiffe://example.org/spirex").unwrap().is_reserved());
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_back_unchanged(text in "spiffe://[a-zA-Z.%:@-]{0,12}(/[a-zA-Z.%~_-]{0,4}){0,4}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert_eq!(id.trust_domain().join(id.path()), Ok(id));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,64}") {
            drop(SpiffeId::parse(&text));
        }
    }
}
