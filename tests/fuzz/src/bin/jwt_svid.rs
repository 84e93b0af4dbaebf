//! Does a token that is taken for a JWT-SVID say what it must, and was it signed by the authority?
//!
//! Without a line break the input is a token; else its first line is a header and the rest are claims, signed here.
#![no_main]

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use passant_core::limits::JWT_CLOCK_SKEW;
use passant_core::{Bundle, JwtSvid, TrustDomain};
use passant_fuzz::{BUNDLE, EXAMPLE, KEY_ID, NOW, SIGNED_TOKENS, token};
use serde_json::{Map, Value};

fuzz_target!(|text: &str| {
    let (token, is_ours) = match text.split_once('\n') {
        Some((header, claims)) => (token(header.as_bytes(), claims.as_bytes()), true),
        None => (text.to_owned(), false),
    };
    let Ok(svid) = JwtSvid::parse_unverified(&token) else {
        assert!(JwtSvid::verify(&token, "aud", &bundles, NOW).is_err());
        return;
    };
    let (header, claims) = parts(&token);
    let said: Map<String, Value> = serde_json::from_slice(&claims).expect("it was read before");
    assert_eq!(svid.claims(), &said);
    assert_eq!(said.get("sub").and_then(Value::as_str), Some(svid.id().as_str()));
    assert!(!svid.id().is_trust_domain_id() && !svid.audience().is_empty());
    assert_eq!(svid.token(), token);
    assert!(!format!("{svid:?}").contains(&token));
    if JwtSvid::verify(&token, "aud", &bundles, NOW).is_err() {
        return;
    }
    assert!(svid.id().is_member_of(&EXAMPLE));
    assert!(svid.audience().iter().any(|one| one == "aud"));
    assert!(svid.expires_at() > NOW);
    assert!(svid.issued_at().is_none_or(|at| at <= NOW.plus(JWT_CLOCK_SKEW)));
    assert!(svid.key_id().is_none_or(|key_id| key_id == KEY_ID));
    assert!(JwtSvid::verify(&token, "", &bundles, NOW).is_err());
    let is_for_upper = svid.audience().iter().any(|one| one == "AUD");
    assert_eq!(JwtSvid::verify(&token, "AUD", &bundles, NOW).is_ok(), is_for_upper);
    assert!(JwtSvid::verify(&token, "aud", &bundles, svid.expires_at()).is_err());
    assert!(JwtSvid::verify(&token, "aud", &|_| None, NOW).is_err());
    let named: Map<String, Value> = serde_json::from_slice(&header).expect("it was read before");
    assert_eq!(named.get("alg").and_then(Value::as_str), Some("ES256"), "another algorithm than the key's");
    let is_known =
        SIGNED_TOKENS.iter().any(|(h, c)| (h.as_bytes(), c.as_bytes()) == (&header[..], &claims[..]));
    assert!(is_ours || is_known, "a signature vouches for what was not signed");
});

fn bundles(trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
    (*trust_domain == *EXAMPLE).then(|| Arc::clone(&BUNDLE))
}

fn parts(token: &str) -> (Vec<u8>, Vec<u8>) {
    let mut parts =
        token.split('.').map(|part| BASE64_URL_SAFE_NO_PAD.decode(part).expect("it was read before"));
    (parts.next().expect("a header"), parts.next().expect("claims"))
}
