//! SPIFFE-ID.md: are exactly the legal SPIFFE IDs taken, and is an SVID bound to its trust domain?

use std::process::Command;
use std::sync::Arc;

use passant_core::{SpiffeId, TrustDomain, x509_svid};
use passant_tests::api::{fetch_x509, wire_id};
use passant_tests::binaries::binaries;
use passant_tests::conformance::meets;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::json;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::samples::{
    AUDIENCE, Ca, ID, Tokens, decode_jwt, ders, dns, mint_jwt, mint_x509, now, own_bundle, uri, verify_jwt,
    verify_leaf, verify_x509, x509_bundle,
};

/// A SPIFFE ID is judged the same as text, in the URI name of a certificate, and as the subject of a token.
fn check(id: &str, legal: bool) {
    assert_eq!(SpiffeId::parse(id).is_ok(), legal, "{id} as text");
    let Ok(parsed) = SpiffeId::parse("spiffe://example.org/w") else { unreachable!() };
    let trust_domain = SpiffeId::parse(id).map_or(parsed.trust_domain(), |id| id.trust_domain());
    let ca = Ca::root(trust_domain.as_str());
    if id.is_ascii() {
        let leaf = ca.leaf_with(ID, |params| params.subject_alt_names = vec![uri(id)]);
        let verified = verify_x509(&[&leaf], &x509_bundle(trust_domain.as_str(), &[&ca]));
        assert_eq!(verified.is_ok(), legal, "{id} in a certificate: {verified:?}");
    }
    let tokens = Tokens::of(trust_domain.as_str());
    let verified = tokens.verify(&tokens.with_claims(json!({ "sub": id })));
    assert_eq!(verified.is_ok(), legal, "{id} in a token: {verified:?}");
    if let Ok(verified) = verified {
        assert_eq!(verified.id().as_str(), id, "nothing is folded or decoded");
    }
}

fn check_all(legal: bool, ids: &[&str]) {
    for id in ids {
        check(id, legal);
    }
}

#[test]
fn the_scheme_is_spiffe() {
    let _met = meets(&["SPIFFE-ID-01"]);
    check("spiffe://example.org/a", true);
    check_all(
        false,
        &["http://example.org/a", "spiffee://example.org/a", "//example.org/a", "example.org/a", ""],
    );
}

#[test]
fn the_trust_domain_is_present() {
    let _met = meets(&["SPIFFE-ID-02"]);
    check("spiffe://e/a", true);
    check_all(false, &["spiffe://", "spiffe:///a", "spiffe:/a", "spiffe:a"]);
}

#[test]
fn there_is_no_query_and_no_fragment() {
    let _met = meets(&["SPIFFE-ID-03", "SPIFFE-ID-04"]);
    check("spiffe://example.org/a", true);
    check_all(false, &["spiffe://example.org/a?x=1", "spiffe://example.org/a?", "spiffe://example.org?x/a"]);
    check_all(false, &["spiffe://example.org/a#f", "spiffe://example.org/a#", "spiffe://example.org#f"]);
}

#[test]
fn the_authority_is_a_bare_name() {
    let _met = meets(&["SPIFFE-ID-05", "SPIFFE-ID-06", "SPIFFE-ID-09"]);
    check("spiffe://example.org/a", true);
    check_all(false, &["spiffe://u@example.org/a", "spiffe://u:p@example.org/a", "spiffe://@example.org/a"]);
    check_all(false, &["spiffe://example.org:8080/a", "spiffe://example.org:/a", "spiffe://ex%61mple.org/a"]);
}

#[test]
fn a_trust_domain_has_39_legal_bytes() {
    let _met = meets(&["SPIFFE-ID-08"]);
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let mut accepted = 0;
    for byte in 0..=u8::MAX {
        // A byte that is no character by itself cannot stand in a text at all; here it is the Latin-1 character.
        let name = format!("x{}y", char::from(byte));
        accepted += usize::from(TrustDomain::parse(&name).is_ok());
        assert_eq!(TrustDomain::parse(&name).is_ok(), legal(byte), "{byte:#x}");
        let id = format!("spiffe://{name}/a");
        // A slash only moves the place where the path begins.
        assert_eq!(SpiffeId::parse(&id).is_ok(), legal(byte) || byte == b'/', "{id}");
    }
    assert_eq!(accepted, 39);
    check_all(false, &["spiffe://[::1]/a", "spiffe://bücher.test/a"]);
}

#[test]
fn names_that_look_like_addresses_are_names() {
    let _met = meets(&["SPIFFE-ID-10"]);
    check_all(true, &["spiffe://127.0.0.1/a", "spiffe://a..b/c", "spiffe://-x_/c"]);
    let dir = tempfile::tempdir().unwrap();
    for (name, taken) in [("127.0.0.1", true), ("a..b", true), ("-x_", true), ("a b", false)] {
        assert_eq!(server_takes(dir.path(), name), taken, "{name}");
    }
}

#[test]
fn a_path_is_not_decoded_collapsed_or_resolved() {
    let _met = meets(&["SPIFFE-ID-11", "SPIFFE-ID-12", "SPIFFE-ID-13", "SPIFFE-ID-14"]);
    check_all(false, &["spiffe://example.org/a%2Fb", "spiffe://example.org/a%41"]);
    check_all(false, &["spiffe://example.org//a", "spiffe://example.org/a//b"]);
    for path in ["/a/./b", "/a/../b", "/.", "/..", "/", "/a/"] {
        check(&format!("spiffe://example.org{path}"), false);
    }
    check_all(true, &["spiffe://example.org/a/.../b", "spiffe://example.org/.a", "spiffe://example.org/a"]);
}

#[test]
fn a_path_has_65_legal_bytes() {
    let _met = meets(&["SPIFFE-ID-15"]);
    let mut accepted = 0;
    for byte in 0..=u8::MAX {
        let id = format!("spiffe://example.org/a{}b", char::from(byte));
        let legal = byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        assert_eq!(SpiffeId::parse(&id).is_ok(), legal || byte == b'/', "{id}");
        accepted += usize::from(legal);
    }
    assert_eq!(accepted, 65);
    for byte in "~:+@ ".chars() {
        check(&format!("spiffe://example.org/a{byte}b"), false);
    }
}

#[test]
fn a_trust_domain_has_at_most_255_bytes() {
    let _met = meets(&["SPIFFE-ID-19"]);
    let dir = tempfile::tempdir().unwrap();
    for (length, taken) in [(255, true), (256, false)] {
        let name = "a".repeat(length);
        check(&format!("spiffe://{name}/w"), taken);
        assert_eq!(server_takes(dir.path(), &name), taken, "{length} bytes in the configuration");
    }
}

#[test]
fn case_never_makes_a_second_trust_domain_but_another_path() {
    let _met = meets(&["SPIFFE-ID-20"]);
    check_all(false, &["SPIFFE://EXAMPLE.ORG/a", "SPIFFE://example.org/a", "spiffe://EXAMPLE.ORG/a"]);
    assert!(TrustDomain::parse("EXAMPLE.ORG").is_err());
    check_all(true, &["spiffe://example.org/A", "spiffe://example.org/a"]);
    assert_ne!(SpiffeId::parse("spiffe://example.org/A"), SpiffeId::parse("spiffe://example.org/a"));
}

#[test]
fn only_defined_documents_are_credentials() {
    let _met = meets(&["SPIFFE-ID-25"]);
    let (ca, tokens) = (Ca::root("example.org"), Tokens::of("example.org"));
    let bundle = x509_bundle("example.org", &[&ca]);
    assert!(verify_x509(&[&ca.leaf(ID)], &bundle).is_ok());
    assert!(verify_x509(&[tokens.key.public_key()], &bundle).is_err(), "a raw public key");
    assert!(tokens.verify(&tokens.with_claims(json!({}))).is_ok());
    let paseto = "v4.public.eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy93In0AAAA";
    assert!(tokens.verify(paseto).is_err());
    // A CWT is binary; text is the most of it that can be offered.
    assert!(tokens.verify("0oRDoQEmoEmhAmVzdWJqZWN0QA").is_err());
}

#[test]
fn only_an_authority_of_its_own_trust_domain_makes_an_svid_valid() {
    let _met = meets(&["SPIFFE-ID-26", "FED-55", "WAPI-17", "WAPI-56", "BUNDLE-21"]);
    let (own, other) = (Ca::root("example.org"), Ca::root("other.test"));
    let (own_bundle, other_bundle) =
        (x509_bundle("example.org", &[&own]), x509_bundle("other.test", &[&other]));
    let foreign = "spiffe://other.test/w";
    assert!(verify_x509(&[&other.leaf(foreign)], &other_bundle).is_ok());
    for bundle in [&own_bundle, &other_bundle] {
        assert!(verify_x509(&[&own.leaf(foreign)], bundle).is_err(), "signed by the wrong trust domain");
    }
    // The same authorities under the other's name verify nothing.
    let swapped = x509_bundle("example.org", &[&other]);
    assert!(verify_x509(&[&other.leaf(foreign)], &swapped).is_err());
    assert!(verify_x509(&[&other.leaf(foreign)], &x509_bundle("other.test", &[])).is_err());

    let (own, other) = (Tokens::of("example.org"), Tokens::of("other.test"));
    let both = |name: &TrustDomain| {
        [&own, &other].iter().find(|one| one.bundle.trust_domain == *name).map(|one| Arc::clone(&one.bundle))
    };
    let at = passant_core::UnixTime::from_secs(crate::samples::NOW);
    let verify = |token: &str| passant_core::JwtSvid::verify(token, AUDIENCE, &both, at);
    let subject = json!({ "sub": foreign });
    assert!(verify(&other.with_claims(subject.clone())).is_ok());
    assert!(verify(&own.with_claims(subject.clone())).is_err(), "signed by the wrong trust domain");
    assert!(own.verify(&other.with_claims(subject)).is_err(), "no bundle of that trust domain");
}

#[test]
fn further_information_changes_no_identity() {
    let _met = meets(&["SPIFFE-ID-28"]);
    let svid = verify_leaf(|params| params.subject_alt_names.push(dns("w.example.org"))).unwrap();
    assert_eq!(svid.id().as_str(), ID);
    let tokens = Tokens::of("example.org");
    let svid = tokens.verify(&tokens.with_claims(json!({ "example.org/env": "test" }))).unwrap();
    assert_eq!(svid.id().as_str(), ID);
}

/// Whether the server's own check takes a configuration with this trust domain.
fn server_takes(dir: &std::path::Path, trust_domain: &str) -> bool {
    let file = dir.join("server.toml");
    let text = format!(
        "trust_domain = \"{trust_domain}\"\ndata_dir = {:?}\nlisten = \"127.0.0.1:0\"\n",
        dir.join("data")
    );
    std::fs::write(&file, text).expect("the folder is writable");
    let output = Command::new(&binaries().server).arg("check").arg("--config").arg(&file).output();
    output.expect("the server's binary runs").status.success()
}

/// The URI names of a certificate.
fn uris(der: &[u8]) -> Vec<String> {
    let (_, certificate) = X509Certificate::from_der(der).expect("a certificate");
    let names = certificate.subject_alternative_name().expect("readable names").expect("names");
    let uri = |name: &GeneralName<'_>| {
        if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None }
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

#[tokio::test]
async fn an_issuer_and_its_authorities_keep_to_their_trust_domain() -> anyhow::Result<()> {
    let _met = meets(&[
        "SPIFFE-ID-07",
        "SPIFFE-ID-16",
        "SPIFFE-ID-17",
        "SPIFFE-ID-18",
        "SPIFFE-ID-21",
        "SPIFFE-ID-22",
        "SPIFFE-ID-23",
        "SPIFFE-ID-24",
        "SPIFFE-ID-27",
    ]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let bundle = own_bundle(&site).await?;

    // 21 to 23: each authority holds the trust domain's own ID.
    assert!(!bundle.x509_authorities.is_empty());
    for authority in &bundle.x509_authorities {
        assert_eq!(uris(&authority.der), ["spiffe://example.org"]);
    }

    // 07 and 27: neither upper case nor another trust domain.
    assert!(!server_takes(site.dir(), "Example.org"));
    for foreign in ["Example.org", "EXAMPLE.ORG", "other.test"] {
        let refused = site.register("/a", |entry| entry.spiffe_id = wire_id(foreign, "/a")).await;
        assert!(refused.is_err(), "{foreign} was registered");
    }
    assert!(mint_x509(&site, "spiffe://example.org/w", 60).await.is_ok());
    assert!(mint_x509(&site, "spiffe://other.test/w", 60).await.is_err());

    // 16: several levels; 24: what is signed cannot be changed.
    let id = "spiffe://example.org/ns/staging/sa/default";
    let chain = mint_x509(&site, id, 600).await?;
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    let verify = |chain: &[&[u8]]| x509_svid::verify(ders(chain), &bundle, now());
    let svid = verify(&chain)?;
    assert_eq!(svid.id().as_str(), id);
    let leaf = chain[0];
    for part in [id.as_bytes(), svid.public_key()] {
        let from = leaf.windows(part.len()).position(|window| window == part);
        let from = from.ok_or_else(|| anyhow::anyhow!("the leaf does not hold it"))?;
        let mut changed = leaf.to_vec();
        changed[from + part.len() - 1] ^= 1;
        let mut chain = chain.clone();
        chain[0] = &changed;
        assert!(verify(&chain).is_err());
    }
    let token = mint_jwt(&site, "/ns/staging/sa/default", &[AUDIENCE], 60).await?;
    assert_eq!(verify_jwt(&token, AUDIENCE, &bundle, now())?.id().as_str(), id);
    let mut claims = decode_jwt(&token)?.1;
    claims["sub"] = "spiffe://example.org/ns/staging/sa/admin".into();
    let parts: Vec<&str> = token.split('.').collect();
    let changed =
        format!("{}.{}.{}", parts[0], crate::samples::encode(claims.to_string().as_bytes()), parts[2]);
    assert!(verify_jwt(&changed, AUDIENCE, &bundle, now()).is_err());

    // 17 and 18: 2048 bytes are served, one more is refused.
    let path = |length: usize| format!("/{}", "a".repeat(length - "spiffe://example.org/".len()));
    let refused = site.register(&path(2049), |_| {}).await.expect_err("2049 bytes");
    assert!(refused.to_string().contains("2048"), "{refused:#}");
    site.register(&path(2048), |_| {}).await?;
    let longest = format!("spiffe://example.org{}", path(2048));
    assert_eq!(longest.len(), 2048);
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let fetched = eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    assert_eq!(fetched.svids[0].spiffe_id, longest);
    let chain = x509_svid::split_der(&fetched.svids[0].x509_svid, 16)?;
    assert_eq!(x509_svid::verify(chain, &bundle, now())?.id().as_str(), longest);
    let token = site.passant_json(&["svid", "jwt", "--audience", AUDIENCE])?;
    let token = token["svids"][0]["svid"].as_str().unwrap_or_default().to_owned();
    assert_eq!(verify_jwt(&token, AUDIENCE, &bundle, now())?.id().as_str(), longest);
    Ok(())
}
