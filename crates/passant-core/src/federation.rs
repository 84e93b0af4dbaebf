//! From where does the bundle of a foreign trust domain come, and how does that place prove who it is?

use std::fmt;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::ENDPOINT_URL_BYTES;
use crate::spiffe_id::SpiffeId;
use crate::trust_domain::TrustDomain;

const SCHEME: &str = "https://";

/// That the bundle of a foreign trust domain is fetched, and how (SPIFFE Federation 5.1).
///
/// None of the three is ever derived from another, or from what an endpoint answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationRelationship {
    /// Whose bundle it is. One relationship for each trust domain.
    pub trust_domain: TrustDomain,
    /// Where it is fetched.
    pub url: EndpointUrl,
    /// How the endpoint proves itself.
    pub profile: EndpointProfile,
}

/// How a bundle endpoint proves itself (SPIFFE Federation 5.2). There is no fallback from one to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointProfile {
    /// By a certificate of the Web PKI for the URL's host.
    HttpsWeb,
    /// By an X509-SVID. The host's name is not looked at.
    HttpsSpiffe {
        /// The SPIFFE ID that it must be of. It verifies against the bundle that is held of its trust domain.
        endpoint_id: SpiffeId,
    },
}

/// The URL of a bundle endpoint: https, without user information and without fragment, at most 2048 bytes.
///
/// Kept as it was written. Hosts are names of letters, numbers, dashes, dots and underscores, or IP addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointUrl {
    text: String,
    /// Where the path, or the query if there is no path, begins in `text`.
    target: usize,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

/// Why a text is no URL of a bundle endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EndpointUrlError {
    /// Another scheme, or none.
    #[error("bundle endpoint URL must use the https scheme")]
    NotHttps,
    /// There is no host, or none that a name or an address could be.
    #[error("bundle endpoint URL must specify a host that is a DNS name or an IP address")]
    BadHost,
    /// It names a user.
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
    /// The port is none of 1 to 65535.
    #[error("bundle endpoint URL must have a port from 1 to 65535, or none")]
    BadPort,
    /// It has a fragment, which is never sent.
    #[error("bundle endpoint URL must not contain a fragment")]
    Fragment,
    /// A byte that is no part of a URL, such as a space.
    #[error("bundle endpoint URL holds a character that must be percent-encoded")]
    BadCharacter,
    /// More than 2048 bytes.
    #[error("bundle endpoint URL is longer than 2048 bytes")]
    TooLong,
    /// A redirect says neither a whole URL nor an absolute path.
    #[error("redirect is neither a URL nor an absolute path")]
    RelativePath,
}

impl EndpointUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// What is wrong with it; see [`EndpointUrlError`].
    pub fn parse(text: &str) -> Result<Self, EndpointUrlError> {
        if text.len() > ENDPOINT_URL_BYTES {
            return Err(EndpointUrlError::TooLong);
        }
        let legal = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b);
        if !text.bytes().all(legal) {
            return Err(EndpointUrlError::BadCharacter);
        }
        let scheme = text.get(..SCHEME.len()).filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
        scheme.ok_or(EndpointUrlError::NotHttps)?;
        if text.contains('#') {
            return Err(EndpointUrlError::Fragment);
        }
        let rest = &text[SCHEME.len()..];
        let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
        if authority.contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        let (host, port) = split_authority(authority)?;
        let target = SCHEME.len() + authority.len();
        Ok(Self { text: text.to_owned(), target, host: host.to_owned(), port })
    }

    /// Where a redirect from here to `location` leads (RFC 9110 10.2.2). Its fragment, if any, is dropped.
    ///
    /// # Errors
    /// When that is no bundle endpoint URL: the same rules hold there. A path relative to this one's is not followed.
    pub fn redirect(&self, location: &str) -> Result<Self, EndpointUrlError> {
        let location = location.split('#').next().unwrap_or_default();
        if location.starts_with("//") {
            return Self::parse(&format!("https:{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{SCHEME}{}{location}", self.authority()));
        }
        let is_url = location.split_once(':').is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        });
        if is_url { Self::parse(location) } else { Err(EndpointUrlError::RelativePath) }
    }

    /// The URL as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The DNS name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 443 where none is named.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as written, for the `Host` header.
    pub fn authority(&self) -> &str {
        &self.text[SCHEME.len()..self.target]
    }

    /// Path and query, for the request line; begins with a slash.
    pub fn target(&self) -> String {
        let target = &self.text[self.target..];
        if target.starts_with('/') { target.to_owned() } else { format!("/{target}") }
    }
}

fn split_authority(authority: &str) -> Result<(&str, u16), EndpointUrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(EndpointUrlError::BadHost)?;
            host.parse::<Ipv6Addr>().map_err(|_| EndpointUrlError::BadHost)?;
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if host.is_empty() || host.len() > 253 || !host.bytes().all(legal) {
                return Err(EndpointUrlError::BadHost);
            }
            (host, port)
        }
    };
    if port.is_empty() {
        return Ok((host, 443));
    }
    let digits = port.strip_prefix(':').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok()).filter(|port| *port != 0);
    Ok((host, number.ok_or(EndpointUrlError::BadPort)?))
}

impl EndpointProfile {
    /// Its name in the specification.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe { .. } => "https_spiffe",
        }
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = EndpointUrlError;

    fn try_from(text: String) -> Result<Self, EndpointUrlError> {
        Self::parse(&text)
    }
}

impl From<EndpointUrl> for String {
    fn from(url: EndpointUrl) -> Self {
        url.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let check = |text: &str, host: &str, port: u16, authority: &str, target: &str| {
            let url = EndpointUrl::parse(text).unwrap();
            assert_eq!((url.host(), url.port()), (host, port), "{text}");
            assert_eq!((url.authority(), url.target().as_str()), (authority, target), "{text}");
            assert_eq!(url.as_str(), text);
        };
        check("https://other.test", "other.test", 443, "other.test", "/");
        check("HTTPS://Other.Test/", "Other.Test", 443, "Other.Test", "/");
        check("https://a_b.test:8443/bundle?x=1/2", "a_b.test", 8443, "a_b.test:8443", "/bundle?x=1/2");
        check("https://other.test?x", "other.test", 443, "other.test", "/?x");
        check("https://127.0.0.1:1/b", "127.0.0.1", 1, "127.0.0.1:1", "/b");
        check("https://[::1]:65535/b@c", "::1", 65535, "[::1]:65535", "/b@c");
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        use EndpointUrlError::{BadCharacter, BadHost, BadPort, Fragment, NotHttps, TooLong, UserInfo};
        let long = format!("https://x/{}", "a".repeat(ENDPOINT_URL_BYTES - 9));
        for (text, expected) in [
            ("", NotHttps),
            ("other.test", NotHttps),
            ("http://other.test", NotHttps),
            ("https:/other.test", NotHttps),
            ("spiffe://other.test", NotHttps),
            ("https://", BadHost),
            ("https:///b", BadHost),
            ("https://?x", BadHost),
            ("https://:443/", BadHost),
            ("https://a%41/", BadHost),
            ("https://[::1/", BadHost),
            ("https://[a.b]/", BadHost),
            ("https://u@other.test/", UserInfo),
            ("https://u:p@other.test/", UserInfo),
            ("https://@other.test/", UserInfo),
            ("https://other.test:/", BadPort),
            ("https://other.test:0/", BadPort),
            ("https://other.test:65536/", BadPort),
            ("https://other.test:+1/", BadPort),
            ("https://[::1]x/", BadPort),
            ("https://::1/", BadHost),
            ("https://other.test/#x", Fragment),
            ("https://other.test/ b", BadCharacter),
            ("https://other.test/\r\nx", BadCharacter),
            ("https://\u{e9}.test/", BadCharacter),
            ("https://other.test\\@x/", BadCharacter),
            (&long, TooLong),
        ] {
            assert_eq!(EndpointUrl::parse(text), Err(expected), "{text:?}");
        }
        assert!(EndpointUrl::parse(&long[..ENDPOINT_URL_BYTES]).is_ok());
    }

    #[test]
    fn redirects_lead_to_endpoints_only() {
        let from = EndpointUrl::parse("https://other.test:8443/a/b?c").unwrap();
        let check = |location: &str, expected: Result<&str, EndpointUrlError>| {
            let led = from.redirect(location).map(|url| url.as_str().to_owned());
            assert_eq!(led, expected.map(str::to_owned), "{location}");
        };
        check("https://third.test/b#f", Ok("https://third.test/b"));
        check("/d?e", Ok("https://other.test:8443/d?e"));
        check("//third.test/b", Ok("https://third.test/b"));
        check("http://other.test/b", Err(EndpointUrlError::NotHttps));
        check("https://u@other.test/b", Err(EndpointUrlError::UserInfo));
        check("//u@other.test/b", Err(EndpointUrlError::UserInfo));
        check("file:///etc/passwd", Err(EndpointUrlError::NotHttps));
        check("d", Err(EndpointUrlError::RelativePath));
        check("?e", Err(EndpointUrlError::RelativePath));
        check("", Err(EndpointUrlError::RelativePath));
    }

    #[test]
    fn the_stored_form_gives_the_same_relationship_back() {
        let endpoint_id = SpiffeId::parse("spiffe://other.test/endpoint").unwrap();
        for profile in [EndpointProfile::HttpsWeb, EndpointProfile::HttpsSpiffe { endpoint_id }] {
            let relationship = FederationRelationship {
                trust_domain: TrustDomain::parse("other.test").unwrap(),
                url: EndpointUrl::parse("https://other.test/bundle").unwrap(),
                profile,
            };
            let text = serde_json::to_string(&relationship).unwrap();
            assert_eq!(
                serde_json::from_str::<FederationRelationship>(&text).unwrap(),
                relationship,
                "{text}"
            );
        }
        let http = r#"{"trust_domain":"other.test","url":"http://x","profile":"https_web"}"#;
        assert!(serde_json::from_str::<FederationRelationship>(http).is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_names_no_user_and_parses_again(text in "https://[a-z@:/?#.\\[\\]0-9]{0,24}") {
            if let Ok(url) = EndpointUrl::parse(&text) {
                prop_assert!(!url.authority().contains('@'));
                prop_assert!(url.target().starts_with('/'));
                prop_assert_eq!(EndpointUrl::parse(url.as_str()).unwrap(), url);
            }
        }
    }
}
