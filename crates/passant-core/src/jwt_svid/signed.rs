//! Is a token that was signed a moment ago the JWT-SVID that was ordered?
//!
//! As for certificates: whoever signs knows what has to come out, so this has no place for anything that was not ordered.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use thiserror::Error;

use super::{Algorithm, JwtClaims, JwtSvid, decode};
use crate::keys::KeyType;
use crate::limits::JWT_SVID_BYTES;
use crate::secret::Secret;

/// A token is not the one that was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} of the token is not as ordered")]
pub struct TokenNotAsOrdered(pub &'static str);

/// The header as it has to be. serde refuses a member that is given twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Cow<'a, str>,
    #[serde(borrow)]
    typ: Cow<'a, str>,
}

/// The claims as they have to be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims<'a> {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    #[serde(borrow, default)]
    iss: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    jti: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sub: Cow<'a, str>,
}

impl JwtSvid {
    /// Reads `token`, and holds all of it against `ordered` and the key that is to have signed. Of the signature only the length
    /// is looked at.
    ///
    /// # Errors
    /// At the first thing that is not as ordered, or was not ordered at all.
    pub fn of_signed(
        token: String,
        ordered: &JwtClaims,
        (key_type, key_id): (KeyType, &str),
    ) -> Result<Self, TokenNotAsOrdered> {
        read(&token, ordered, key_type, key_id)?;
        Ok(Self {
            id: ordered.sub.clone(),
            audience: ordered.aud.clone(),
            expires_at: ordered.exp,
            issued_at: Some(ordered.iat),
            key_id: Some(key_id.to_owned()),
            claims: OnceLock::new(),
            token: Arc::new(Secret::new(token)),
        })
    }
}

fn read(token: &str, ordered: &JwtClaims, key_type: KeyType, key_id: &str) -> Result<(), TokenNotAsOrdered> {
    is(token.len() <= JWT_SVID_BYTES, "length")?;
    let form = |_| TokenNotAsOrdered("form");
    let mut parts = token.split('.');
    let mut next = || decode(parts.next().unwrap_or_default()).map_err(form);
    let (header, claims, signature) = (next()?, next()?, next()?);
    is(parts.next().is_none(), "form")?;
    let (algorithm, bytes) = match key_type {
        KeyType::EcP256 => (Algorithm::Es256, 64),
        KeyType::EcP384 => (Algorithm::Es384, 96),
    };
    is(signature.len() == bytes, "signature")?;
    // serde takes a list for a struct, too.
    is(header.starts_with(b"{"), "header")?;
    is(claims.starts_with(b"{"), "list of claims")?;
    let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| TokenNotAsOrdered("header"))?;
    is(header.alg == algorithm.name(), "algorithm")?;
    is(header.kid == key_id, "key ID")?;
    is(header.typ == "JWT", "type")?;
    let claims: Claims<'_> =
        serde_json::from_slice(&claims).map_err(|_| TokenNotAsOrdered("list of claims"))?;
    is(claims.sub == ordered.sub.as_str() && !ordered.sub.is_trust_domain_id(), "SPIFFE ID")?;
    is(!claims.aud.is_empty() && claims.aud == ordered.aud, "audience")?;
    is(claims.exp == ordered.exp.secs(), "exp")?;
    is(claims.iat == ordered.iat.secs(), "iat")?;
    is(claims.iss.as_deref() == ordered.iss.as_deref(), "iss")?;
    is(claims.jti.as_deref() == ordered.jti.as_deref(), "jti")
}

fn is(right: bool, what: &'static str) -> Result<(), TokenNotAsOrdered> {
    if right { Ok(()) } else { Err(TokenNotAsOrdered(what)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{encode, sign};
    use super::*;
    use crate::host::Host;
    use crate::spiffe_id::SpiffeId;
    use crate::time::UnixTime;

    const KEY_ID: &str = "k0";

    fn claims() -> JwtClaims {
        JwtClaims {
            sub: SpiffeId::parse("spiffe://example.org/w").unwrap(),
            aud: vec!["a".to_owned(), "b".to_owned()],
            exp: UnixTime::from_secs(20),
            iat: UnixTime::from_secs(10),
            jti: Some("j".to_owned()),
            iss: Some("https://issuer.test".to_owned()),
        }
    }

    fn signed(claims: &JwtClaims, key_type: KeyType) -> String {
        sign(claims, &*Host::system().keys.generate(key_type).unwrap(), KEY_ID).unwrap()
    }

    fn check(token: &str, ordered: &JwtClaims) -> Result<JwtSvid, TokenNotAsOrdered> {
        JwtSvid::of_signed(token.to_owned(), ordered, (KeyType::EcP256, KEY_ID))
    }

    #[test]
    fn every_difference_to_the_order_is_told() {
        let token = signed(&claims(), KeyType::EcP256);
        check(&token, &claims()).unwrap();
        let differs = |what, change: &dyn Fn(&mut JwtClaims)| {
            let mut ordered = claims();
            change(&mut ordered);
            assert_eq!(check(&token, &ordered).unwrap_err(), TokenNotAsOrdered(what));
        };
        differs("SPIFFE ID", &|ordered| ordered.sub = SpiffeId::parse("spiffe://example.org/v").unwrap());
        differs("audience", &|ordered| drop(ordered.aud.pop()));
        differs("audience", &|ordered| ordered.aud.reverse());
        differs("exp", &|ordered| ordered.exp = UnixTime::from_secs(21));
        differs("iat", &|ordered| ordered.iat = UnixTime::from_secs(11));
        differs("iss", &|ordered| ordered.iss = None);
        differs("jti", &|ordered| ordered.jti = Some("k".to_owned()));
        let by = |key| JwtSvid::of_signed(token.clone(), &claims(), key).unwrap_err();
        assert_eq!(by((KeyType::EcP384, KEY_ID)), TokenNotAsOrdered("signature"));
        assert_eq!(by((KeyType::EcP256, "k1")), TokenNotAsOrdered("key ID"));
    }

    #[test]
    fn nothing_is_taken_beside_what_was_ordered() {
        let token = signed(&claims(), KeyType::EcP256);
        let parts: Vec<&str> = token.split('.').collect();
        let header = json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JWT" });
        let with = |header: &str, claims: &str| {
            [encode(header.as_bytes()), encode(claims.as_bytes()), parts[2].to_owned()].join(".")
        };
        let said = String::from_utf8(decode(parts[1]).unwrap()).unwrap();
        let (more, twice) = (said.replacen('{', "{\"nbf\":1,", 1), said.replacen('{', "{\"exp\":20,", 1));
        check(&with(&header.to_string(), &said), &claims()).unwrap();
        for (header, claims_said, what) in [
            (header.to_string(), &more, "list of claims"),
            (header.to_string(), &twice, "list of claims"),
            (json!({ "alg": "ES384", "kid": KEY_ID, "typ": "JWT" }).to_string(), &said, "algorithm"),
            (json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JOSE" }).to_string(), &said, "type"),
            (json!({ "alg": "ES256", "kid": KEY_ID }).to_string(), &said, "header"),
            (json!(["ES256", KEY_ID, "JWT"]).to_string(), &said, "header"),
            (json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JWT", "crit": [] }).to_string(), &said, "header"),
        ] {
            let refused = check(&with(&header, claims_said), &claims()).unwrap_err();
            assert_eq!(refused, TokenNotAsOrdered(what), "{header}");
        }
        for other in [format!("{token}."), format!("{token}.AA"), parts[..2].join("."), String::new()] {
            assert_eq!(check(&other, &claims()).unwrap_err(), TokenNotAsOrdered("form"), "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_read_alike_by_everybody(
            aud in prop::collection::vec(any::<String>().prop_filter("none is empty", |text| !text.is_empty()), 1..4),
            (jti, iss) in (any::<Option<String>>(), any::<Option<String>>()),
            iat in 0..4_000_000_000_i64,
            of_p384 in any::<bool>(),
        ) {
            let exp = UnixTime::from_secs(iat + 300);
            let ordered = JwtClaims { aud, jti, iss, exp, iat: UnixTime::from_secs(iat), ..claims() };
            let key_type = if of_p384 { KeyType::EcP384 } else { KeyType::EcP256 };
            let token = signed(&ordered, key_type);
            let by_all = JwtSvid::parse_unverified(&token).unwrap();
            let ours = JwtSvid::of_signed(token, &ordered, (key_type, KEY_ID)).unwrap();
            prop_assert_eq!(ours.claims(), by_all.claims());
            prop_assert_eq!((ours.id(), ours.audience(), ours.token()), (by_all.id(), by_all.audience(), by_all.token()));
            prop_assert_eq!((ours.expires_at(), ours.issued_at()), (by_all.expires_at(), by_all.issued_at()));
            prop_assert_eq!(ours.key_id(), by_all.key_id());
        }
    }
}
