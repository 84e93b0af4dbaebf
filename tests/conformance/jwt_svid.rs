//! JWT-SVID.md: is every issued token in order, and is every bad one refused?

use std::sync::Arc;
use std::time::Duration;

use passant_core::jwt_svid::JwtSvidError;
use passant_core::keys::{KeyType, SignatureForm};
use passant_core::{Bundle, JwtAuthority, UnixTime};
use passant_tests::conformance::meets;
use passant_tests::site::{ServerOptions, Site};
use serde_json::{Value, json};

use crate::samples::{
    AUDIENCE, Ca, ID, NOW, Tokens, decode_jwt, domain, encode, jwt_authority, mint_jwt, new_signing_key, now,
    own_bundle, verify_jwt, x509_bundle,
};

const HEADER: &str = r#"{"alg":"ES256","kid":"k0"}"#;

fn tokens() -> Tokens {
    Tokens::of("example.org")
}

#[test]
fn only_a_jws_in_compact_form_is_read() {
    let _met = meets(&["JWT-02", "JWT-04", "RFC-10"]);
    let tokens = tokens();
    let good = tokens.with_claims(json!({}));
    assert!(tokens.verify(&good).is_ok());
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { unreachable!() };
    let parts = json!({ "protected": header, "signature": signature });
    for other in [
        // JWS in JSON, flattened and general
        json!({ "payload": claims, "protected": header, "signature": signature }).to_string(),
        json!({ "payload": claims, "signatures": [parts] }).to_string(),
        // JWE has five parts
        format!("{header}.{claims}.{signature}.AAAA.AAAA"),
        // unsecured, and padded
        format!("{header}.{claims}."),
        format!("{header}.{claims}"),
        format!("{good}="),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}.{claims}\n.{signature}"),
    ] {
        assert!(matches!(tokens.verify(&other), Err(JwtSvidError::NotCompact)), "{other}");
    }
}

#[test]
fn other_algorithms_are_refused_before_anything_else() {
    let _met = meets(&["JWT-06", "JWT-23"]);
    let tokens = tokens();
    assert!(tokens.verify(&tokens.with_header(HEADER)).is_ok());
    for name in ["none", "None", "HS256", "EdDSA", "ES256K", "es256", ""] {
        // Everything else is wrong as well, and still the algorithm is what is told.
        let token = tokens.forge(&json!({ "alg": name, "typ": "at+jwt", "crit": [] }).to_string(), "{}");
        assert!(matches!(tokens.verify(&token), Err(JwtSvidError::UnsupportedAlgorithm)), "{name}");
    }
    let absent = tokens.forge(r#"{"kid":"k0"}"#, "{}");
    assert!(matches!(tokens.verify(&absent), Err(JwtSvidError::UnsupportedAlgorithm)));
}

#[test]
fn kid_and_typ_are_optional() {
    let _met = meets(&["JWT-07", "JWT-08", "JWT-10", "WAPI-43"]);
    let tokens = tokens();
    assert!(tokens.verify(&tokens.with_header(r#"{"alg":"ES256"}"#)).is_ok(), "one key needs no name");
    assert!(tokens.verify(&tokens.with_header(HEADER)).is_ok());
    let typ = |typ: &str| {
        tokens.verify(&tokens.with_header(&json!({ "alg": "ES256", "kid": "k0", "typ": typ }).to_string()))
    };
    for good in ["JWT", "JOSE"] {
        assert!(typ(good).is_ok(), "{good}");
    }
    for bad in ["wit+jwt", "at+jwt", "jwt-bogus", ""] {
        assert!(matches!(typ(bad), Err(JwtSvidError::UnsupportedType)), "{bad}");
    }
}

#[test]
fn other_claims_pass_through_and_a_token_may_be_shown_twice() {
    let _met = meets(&["JWT-11", "JWT-34"]);
    let tokens = tokens();
    let more = json!({ "iat": NOW, "nbf": NOW, "jti": "j", "iss": "https://i.test", "example.org/x": { "deep": [1, null] } });
    let token = tokens.with_claims(more.clone());
    for _ in 0..2 {
        let svid = tokens.verify(&token).unwrap();
        for (name, value) in more.as_object().unwrap() {
            assert_eq!(&svid.claims()[name], value, "{name}");
        }
    }
}

#[test]
fn the_validators_own_audience_is_demanded() {
    let _met = meets(&["JWT-15", "JWT-16", "JWT-25", "RFC-20"]);
    let tokens = tokens();
    let aud = |aud: Value| tokens.verify(&tokens.with_claims(json!({ "aud": aud })));
    for good in [json!(AUDIENCE), json!([AUDIENCE]), json!(["a", AUDIENCE])] {
        assert!(aud(good.clone()).is_ok(), "{good}");
    }
    for bad in [json!(null), json!([])] {
        assert!(matches!(aud(bad), Err(JwtSvidError::MissingClaim("aud"))));
    }
    for other in ["Reports", "report", "payments", "reports "] {
        assert!(matches!(aud(json!([other])), Err(JwtSvidError::WrongAudience { .. })), "{other}");
    }
}

#[test]
fn exp_is_demanded_and_kept() {
    let _met = meets(&["JWT-20", "JWT-21", "JWT-22", "JWT-26", "RFC-18", "RFC-19"]);
    let tokens = tokens();
    let exp = |exp: Value| tokens.verify(&tokens.with_claims(json!({ "exp": exp, "iat": null })));
    for good in [json!(NOW + 1), json!(1_790_000_000.5), json!(NOW + 600)] {
        assert!(exp(good.clone()).is_ok(), "{good}");
    }
    for bad in [
        json!(null),
        json!("1790000300"),
        json!(NOW - 600),
        json!(NOW - 5),
        json!(NOW),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!([]),
    ] {
        assert!(exp(bad.clone()).is_err(), "{bad}");
    }
    let nbf = |secs: i64| tokens.verify(&tokens.with_claims(json!({ "nbf": secs })));
    assert!(nbf(NOW).is_ok());
    assert!(nbf(NOW + 600).is_err());
}

#[test]
fn every_change_of_a_token_is_noticed() {
    let _met = meets(&["JWT-24"]);
    let tokens = tokens();
    let token = tokens.with_claims(json!({}));
    assert!(tokens.verify(&token).is_ok());
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(tokens.verify(&String::from_utf8(changed).unwrap()).is_err(), "character {at}");
    }
}

#[test]
fn only_keys_for_this_use_verify_tokens() {
    let _met = meets(&["JWT-32", "JWT-33", "WAPI-18"]);
    let tokens = tokens();
    let token = tokens.with_claims(json!({}));
    let document: Value = serde_json::from_str(&tokens.bundle.to_spiffe_json().unwrap()).unwrap();
    let verify = |document: &Value| {
        let bundle =
            Bundle::from_spiffe_json(domain("example.org"), document.to_string().as_bytes()).unwrap();
        verify_jwt(&token, AUDIENCE, &Arc::new(bundle), UnixTime::from_secs(NOW))
    };
    assert!(verify(&document).is_ok());
    for other in ["wit-svid", "x509-svid", "sig", "JWT-SVID"] {
        let mut changed = document.clone();
        changed["keys"][0]["use"] = other.into();
        assert!(verify(&changed).is_err(), "{other}");
    }
    let x509_only = x509_bundle("example.org", &[&Ca::root("example.org")]).to_spiffe_json().unwrap();
    assert!(verify(&serde_json::from_str(&x509_only).unwrap()).is_err());
}

#[test]
fn critical_parameters_are_fatal() {
    let _met = meets(&["RFC-11"]);
    let tokens = tokens();
    assert!(tokens.verify(&tokens.with_header(HEADER)).is_ok());
    for crit in [json!(["b64"]), json!([]), json!(["absent"])] {
        let token = tokens.with_header(&json!({ "alg": "ES256", "kid": "k0", "crit": crit }).to_string());
        assert!(matches!(tokens.verify(&token), Err(JwtSvidError::CriticalHeader)), "{crit}");
    }
}

#[test]
fn a_signature_has_the_fixed_form_and_fits_the_key() {
    let _met = meets(&["RFC-12"]);
    let tokens = tokens();
    let token = tokens.with_claims(json!({}));
    assert!(tokens.verify(&token).is_ok());
    let (signed, _) = token.rsplit_once('.').unwrap();
    let der = tokens.key.sign(signed.as_bytes(), SignatureForm::Asn1).unwrap();
    assert!(tokens.verify(&format!("{signed}.{}", encode(&der))).is_err());
    let key = new_signing_key(KeyType::EcP384);
    let mut bundle = Bundle::empty(domain("example.org"));
    bundle.jwt_authorities.push(jwt_authority("k0", &*key));
    let p384 = Tokens { key, bundle: Arc::new(bundle) };
    assert!(p384.verify(&p384.with_header(r#"{"alg":"ES384","kid":"k0"}"#)).is_ok());
    assert!(p384.verify(&p384.with_header(HEADER)).is_err());
}

#[test]
fn weak_keys_are_no_authorities() {
    let _met = meets(&["RFC-13"]);
    // SubjectPublicKeyInfo of RSA with a modulus of `bytes` bytes.
    let spki = |bytes: usize| {
        let long = |tag: u8, content: &[u8]| {
            let length = u16::try_from(content.len()).expect("short").to_be_bytes();
            [&[tag, 0x82, length[0], length[1]][..], content].concat()
        };
        let modulus = long(0x02, &[&[0][..], &vec![0xc5; bytes]].concat());
        let key = long(0x30, &[&modulus[..], &[0x02, 3, 1, 0, 1]].concat());
        let algorithm = [0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0];
        long(0x30, &[&algorithm[..], &long(0x03, &[&[0][..], &key].concat())].concat())
    };
    assert!(JwtAuthority::new("k", &spki(256), None).is_ok());
    assert!(JwtAuthority::new("k", &spki(128), None).is_err());
}

#[test]
fn members_that_stand_twice_have_no_second_reading() {
    let _met = meets(&["RFC-17"]);
    let tokens = tokens();
    let claims = |subjects: &str| format!("{{{subjects}\"aud\":\"{AUDIENCE}\",\"exp\":{}}}", NOW + 300);
    let once = format!("\"sub\":\"{ID}\",");
    assert!(tokens.verify(&tokens.forge(HEADER, &claims(&once))).is_ok());
    let twice = format!("{once}\"sub\":\"spiffe://example.org/v\",");
    assert!(tokens.verify(&tokens.forge(HEADER, &claims(&twice))).is_err());
}

#[tokio::test]
async fn every_issued_token_is_in_order() -> anyhow::Result<()> {
    let _met = meets(&[
        "JWT-01", "JWT-03", "JWT-04", "JWT-05", "JWT-09", "JWT-12", "JWT-13", "JWT-14", "JWT-17", "JWT-19",
        "JWT-24", "JWT-30", "JWT-36", "RFC-09", "RFC-12",
    ]);
    for (kind, algorithm) in [("ec-p256", "ES256"), ("ec-p384", "ES384")] {
        let site =
            Site::new(&ServerOptions { keys: format!("jwt_key_type = \"{kind}\""), tables: String::new() })?;
        let _server = site.start_server().await?;
        let bundle = own_bundle(&site).await?;
        let before = now();
        let token = mint_jwt(&site, "/ops", &["a"], 60).await?;
        assert!(token.split('.').count() == 3 && !token.contains('='));
        assert!(
            token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
            "not base64url"
        );
        let (header, claims) = decode_jwt(&token)?;
        let names: Vec<&String> = header.as_object().into_iter().flatten().map(|(name, _)| name).collect();
        assert!(names.iter().all(|name| ["alg", "kid", "typ"].contains(&name.as_str())), "{header}");
        assert_eq!(header["alg"], algorithm);
        assert_eq!(header["typ"], "JWT");
        assert_eq!(header["kid"], bundle.jwt_authorities[0].key_id.as_str());
        assert_eq!(claims["sub"], "spiffe://example.org/ops");
        // All of them are registered names (RFC 7519 4.1); no configuration adds one.
        let registered = ["aud", "exp", "iat", "iss", "jti", "nbf", "sub"];
        for (name, _) in claims.as_object().into_iter().flatten() {
            assert!(registered.contains(&name.as_str()), "{name} could mean something else elsewhere");
        }
        assert_eq!(claims["aud"], json!(["a"]));
        let exp = claims["exp"].as_i64().ok_or_else(|| anyhow::anyhow!("exp is {}", claims["exp"]))?;
        assert!(exp > before.secs() && exp <= now().plus(Duration::from_secs(60)).secs());
        assert!(verify_jwt(&token, "a", &bundle, now()).is_ok());

        // A year is asked for; the key that signs ends after a day.
        let capped = mint_jwt(&site, "/ops", &["a"], 365 * 24 * 3600).await?;
        let end = decode_jwt(&capped)?.1["exp"].as_i64().unwrap_or(i64::MAX);
        assert!(end <= now().plus(Duration::from_secs(24 * 3600)).secs(), "{end}");

        // Nobody gets a token without an audience.
        for none in [&[][..], &[""]] {
            assert!(mint_jwt(&site, "/ops", none, 60).await.is_err(), "{none:?}");
        }
        // The command line never chooses one, and asks for each by name.
        let mint = ["jwt", "mint", "--spiffe-id", "spiffe://example.org/ops"];
        assert!(!site.passant(mint)?.status.success());
        let minted = site.passant_json(&[&mint[..], &["--audience", "one"]].concat())?;
        let (_, claims) = decode_jwt(minted["svid"]["token"].as_str().unwrap_or_default())?;
        assert_eq!(claims["aud"], json!(["one"]));
    }
    Ok(())
}

#[test]
fn the_documents_name_services_as_audiences() {
    let _met = meets(&["JWT-18"]);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    for document in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "config/server.toml", "config/agent.toml"]
    {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for after in text.split("--audience").skip(1) {
            let audience = after.trim_start_matches([' ', '=']).split_whitespace().next().unwrap_or_default();
            let id = passant_core::SpiffeId::parse(audience.trim_end_matches(['`', ')', ',', '.'])).unwrap();
            assert!(!id.is_trust_domain_id(), "{document}: {audience} is everybody of a trust domain");
            seen += 1;
        }
    }
    assert!(seen > 0, "no document shows how a JWT-SVID is asked for");
}
