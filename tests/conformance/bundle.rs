//! SPIFFE_Trust_Domain_and_Bundle.md: are bundles published and read as the specification says?

use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use passant_core::{Bundle, UnixTime};
use passant_proto::workload::{X509BundlesRequest, X509svidRequest};
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::conformance::meets;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::samples::{
    AUDIENCE, Ca, ID, NOW, Tokens, decode_jwt, domain, mint_jwt, verify_jwt, verify_x509, x509_bundle,
};

fn read(document: &Value) -> anyhow::Result<Bundle> {
    Ok(Bundle::from_spiffe_json(domain("example.org"), document.to_string().as_bytes())?)
}

/// A document with one X.509 and one JWT authority, and what they sign.
fn sample() -> (Value, Ca, Tokens) {
    let (ca, tokens) = (Ca::root("example.org"), Tokens::of("example.org"));
    let mut bundle = x509_bundle("example.org", &[&ca]);
    bundle.jwt_authorities = tokens.bundle.jwt_authorities.clone();
    let document = serde_json::from_str(&bundle.to_spiffe_json().unwrap_or_default()).unwrap_or_default();
    (document, ca, tokens)
}

/// Whether both authorities of the sample still count.
fn is_whole(document: &Value, ca: &Ca, tokens: &Tokens) -> bool {
    let Ok(bundle) = read(document) else { return false };
    let bundle = std::sync::Arc::new(bundle);
    let token = tokens.with_claims(json!({}));
    verify_x509(&[&ca.leaf(ID)], &bundle).is_ok()
        && verify_jwt(&token, AUDIENCE, &bundle, UnixTime::from_secs(NOW)).is_ok()
}

#[test]
fn more_or_fewer_parameters_do_no_harm() {
    let _met = meets(&["BUNDLE-02", "BUNDLE-03"]);
    let (mut document, ca, tokens) = sample();
    document["foo"] = json!({ "bar": 1 });
    assert!(is_whole(&document, &ca, &tokens));
    assert!(is_whole(&json!({ "keys": document["keys"] }), &ca, &tokens));
}

#[test]
fn keys_have_to_be_there() {
    let _met = meets(&["BUNDLE-11"]);
    assert!(read(&json!({ "keys": [] })).is_ok());
    for bad in [json!({}), json!({ "keys": null }), json!({ "keys": {} }), json!([])] {
        assert!(read(&bad).is_err(), "{bad}");
    }
    let empty: Value =
        serde_json::from_str(&Bundle::empty(domain("example.org")).to_spiffe_json().unwrap()).unwrap();
    assert_eq!(empty["keys"], json!([]));
}

#[test]
fn what_is_unknown_is_skipped_alone() {
    let _met = meets(&["BUNDLE-12", "BUNDLE-17", "BUNDLE-19", "BUNDLE-20", "RFC-15", "RFC-16"]);
    let (document, ca, tokens) = sample();
    let (other, _, _) = sample();
    let with = |at: usize, name: &str, value: Value| {
        let mut entry = other["keys"][at].clone();
        if value.is_null() {
            drop(entry.as_object_mut().map(|entry| entry.remove(name)));
        } else {
            entry[name] = value;
        }
        entry
    };
    let mut skipped = vec![json!({ "kty": "FOO", "use": "x509-svid" }), json!("no object")];
    for kty in [json!("OKP"), json!("AKP"), json!("xyz"), json!(null)] {
        skipped.push(with(0, "kty", kty));
    }
    for purpose in [json!(null), json!("foo-svid"), json!("X509-SVID"), json!("sig"), json!("enc")] {
        skipped.push(with(0, "use", purpose));
    }
    // Broken values, and a certificate of another key than the entry's.
    skipped.push(with(0, "x", json!("AA")));
    skipped.push(with(0, "crv", json!(null)));
    skipped.push(with(0, "x5c", json!([BASE64_STANDARD.encode(&ca.der)])));
    skipped.push(with(1, "kid", json!(null)));
    for one in skipped {
        let more = json!({ "keys": [one, document["keys"][0], document["keys"][1]] });
        assert!(is_whole(&more, &ca, &tokens), "{one}");
        let alone = read(&json!({ "keys": [one] })).unwrap();
        assert!(alone.x509_authorities.is_empty() && alone.jwt_authorities.is_empty(), "{one}");
    }
}

#[test]
fn a_refresh_hint_is_a_whole_number_of_seconds() {
    let _met = meets(&["BUNDLE-09"]);
    let shown = |hint: Option<Duration>| {
        let bundle = Bundle { refresh_hint: hint, ..Bundle::empty(domain("example.org")) };
        let document: Value = serde_json::from_str(&bundle.to_spiffe_json().unwrap()).unwrap();
        document.get("spiffe_refresh_hint").map(|hint| hint.as_u64().expect("a whole number"))
    };
    assert_eq!(shown(Some(Duration::from_secs(600))), Some(600));
    assert_eq!(shown(Some(Duration::from_millis(1_999))), Some(1));
    for none in [None, Some(Duration::ZERO), Some(Duration::from_millis(999))] {
        assert_eq!(shown(none), None, "zero is never said");
    }
    assert_eq!(
        read(&json!({ "keys": [], "spiffe_refresh_hint": 600 })).unwrap().refresh_hint.map(|it| it.as_secs()),
        Some(600)
    );
    for bad in [json!("600"), json!(600.5), json!(-1)] {
        assert!(read(&json!({ "keys": [], "spiffe_refresh_hint": bad })).is_err());
    }
}

#[tokio::test]
async fn the_keys_of_one_trust_domain_sign_for_no_other() -> anyhow::Result<()> {
    let _met = meets(&["BUNDLE-24"]);
    let site = Site::new(&ServerOptions::default())?;
    let keys = site.path("server-data/keys.json");
    let first = {
        let server = site.start_server().await?;
        let first = published(&site)?;
        server.stop().await?;
        first
    };
    let mine = std::fs::read_to_string(site.server_config())?;
    let theirs = mine.replace("trust_domain = \"example.org\"", "trust_domain = \"other.test\"");
    assert_ne!(mine, theirs);
    // Another trust domain on the same directory, and with the keys alone.
    let elsewhere = site.path("elsewhere");
    std::fs::DirBuilder::new().mode(0o700).create(&elsewhere)?;
    std::fs::copy(&keys, elsewhere.join("keys.json"))?;
    let moved = theirs.replace("server-data", "elsewhere");
    for (config, said) in [(&theirs, "other.test"), (&moved, "keys.json but no state")] {
        std::fs::write(site.server_config(), config)?;
        let mut server = site.spawn_server()?;
        let ended = server.wait(READY_WITHIN).await?;
        assert!(!ended.success() && server.log().contains(said), "{}", server.log());
    }
    // The right one takes them up again.
    std::fs::write(site.server_config(), &mine)?;
    let _server = site.start_server().await?;
    assert_eq!(published(&site)?["keys"], first["keys"]);
    Ok(())
}

#[test]
fn large_sequence_numbers_stay_exact() {
    let _met = meets(&["BUNDLE-07"]);
    for sequence in [1, 9_007_199_254_740_993_u64, 9_223_372_036_854_775_807] {
        let bundle = read(&json!({ "keys": [], "spiffe_sequence": sequence })).unwrap();
        assert_eq!(bundle.sequence, sequence);
        let again: Value = serde_json::from_str(&bundle.to_spiffe_json().unwrap()).unwrap();
        assert_eq!(again["spiffe_sequence"].as_u64(), Some(sequence));
    }
    for bad in ["-1", "1.5", "\"1\"", "18446744073709551616"] {
        let text = format!("{{\"keys\":[],\"spiffe_sequence\":{bad}}}");
        assert!(Bundle::from_spiffe_json(domain("example.org"), text.as_bytes()).is_err(), "{bad}");
    }
}

fn published(site: &Site) -> anyhow::Result<Value> {
    let shown = site.passant(["bundle", "show", "--format", "spiffe"])?;
    Ok(serde_json::from_slice(&shown.stdout)?)
}

/// Checks every entry of a published document.
fn check_published(document: &Value) -> anyhow::Result<()> {
    let keys = document["keys"].as_array().context("keys")?;
    for key in keys {
        let members: Vec<&str> = key.as_object().context("an object")?.keys().map(String::as_str).collect();
        let purpose = key["use"].as_str().context("use")?;
        // Members come sorted. Neither alg, key_ops, x5t nor a private d.
        match purpose {
            "x509-svid" => assert_eq!(members, ["crv", "kty", "use", "x", "x5c", "y"]),
            "jwt-svid" => {
                assert_eq!(members, ["crv", "kid", "kty", "use", "x", "y"]);
                assert!(!key["kid"].as_str().context("kid")?.is_empty());
            }
            other => anyhow::bail!("unknown use {other}"),
        }
        assert_eq!((&key["kty"], &key["crv"]), (&"EC".into(), &"P-256".into()));
        let coordinate =
            |name: &str| anyhow::Ok(BASE64_URL_SAFE_NO_PAD.decode(key[name].as_str().context("text")?)?);
        let point = [vec![4], coordinate("x")?, coordinate("y")?].concat();
        assert_eq!(point.len(), 65, "coordinates keep their leading zeros");
        if purpose == "x509-svid" {
            let [certificate] = &key["x5c"].as_array().context("x5c")?[..] else { anyhow::bail!("not one") };
            let der = BASE64_STANDARD.decode(certificate.as_str().context("text")?)?;
            let (rest, certificate) = X509Certificate::from_der(&der)?;
            assert!(rest.is_empty() && certificate.is_ca());
            assert_eq!(certificate.public_key().subject_public_key.data.as_ref(), point);
            certificate.verify_signature(None)?;
        }
    }
    Ok(())
}

fn count(document: &Value, purpose: &str) -> usize {
    document["keys"].as_array().into_iter().flatten().filter(|key| key["use"] == purpose).count()
}

#[tokio::test]
async fn what_is_published_is_in_order_and_reaches_workloads() -> anyhow::Result<()> {
    let _met = meets(&[
        "BUNDLE-01",
        "BUNDLE-04",
        "BUNDLE-05",
        "BUNDLE-06",
        "BUNDLE-08",
        "BUNDLE-09",
        "BUNDLE-11",
        "BUNDLE-15",
        "BUNDLE-16",
        "BUNDLE-18",
        "BUNDLE-22",
        "JWT-29",
        "JWT-30",
        "JWT-31",
        "X509-36",
        "X509-37",
        "X509-38",
        "X509-39",
        "X509-40",
        "X509-41",
        "RFC-14",
        "RFC-15",
    ]);
    let site = Site::new(&ServerOptions {
        keys: "ca_ttl = \"40s\"\ndefault_x509_svid_ttl = \"20s\"\ndefault_jwt_svid_ttl = \"5s\"".to_owned(),
        tables: String::new(),
    })?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;

    let first = published(&site)?;
    check_published(&first)?;
    // A twentieth of the authorities' life, in whole seconds.
    assert_eq!(first["spiffe_refresh_hint"].as_u64(), Some(2), "{first}");
    assert_eq!((count(&first, "x509-svid"), count(&first, "jwt-svid")), (1, 1));
    let sequence = |document: &Value| document["spiffe_sequence"].as_u64().context("a whole number");
    assert_eq!(sequence(&published(&site)?)?, sequence(&first)?, "nothing changed");
    let (header, _) = decode_jwt(&mint_jwt(&site, "/ops", &[AUDIENCE], 5).await?)?;
    let kids: Vec<&Value> = first["keys"].as_array().into_iter().flatten().map(|key| &key["kid"]).collect();
    assert!(kids.contains(&&header["kid"]));

    // Two streams are open while the server prepares the authorities that come next.
    let mut api = workload_api(&socket).await?;
    let mut bundles = api.fetch_x509_bundles(with_header(X509BundlesRequest {})).await?.into_inner();
    let mut svids = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    let old = bundles.message().await?.context("a message")?.bundles["spiffe://example.org"].clone();
    svids.message().await?.context("a message")?;
    let seen = std::cell::RefCell::new(first);
    let last = eventually("the next authorities", Duration::from_secs(60), || async {
        let next = published(&site)?;
        check_published(&next)?;
        let mut seen = seen.borrow_mut();
        let order = sequence(&next)?.cmp(&sequence(&seen)?);
        let same = next["keys"] == seen["keys"];
        assert!(if same { order.is_eq() } else { order.is_gt() }, "{next} after {seen}");
        *seen = next.clone();
        anyhow::ensure!(count(&next, "x509-svid") == 2 && count(&next, "jwt-svid") == 2, "not yet");
        Ok(next)
    })
    .await?;
    let kids: std::collections::BTreeSet<&str> =
        last["keys"].as_array().into_iter().flatten().filter_map(|key| key["kid"].as_str()).collect();
    assert_eq!(kids.len(), 2, "each key has a name of its own");
    let is_new = |der: &[u8]| der.starts_with(&old) && der.len() > old.len();
    let within = Duration::from_secs(20);
    let after = tokio::time::timeout(within, bundles.message()).await??.context("a message")?;
    assert!(is_new(&after.bundles["spiffe://example.org"]));
    loop {
        let after = tokio::time::timeout(within, svids.message()).await??.context("a message")?;
        if is_new(&after.svids[0].bundle) {
            break;
        }
    }

    // A restart does not count backwards.
    server.stop().await?;
    let _server = site.start_server().await?;
    assert!(sequence(&published(&site)?)? >= sequence(&last)?);
    Ok(())
}
