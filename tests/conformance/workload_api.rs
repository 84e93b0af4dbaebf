//! SPIFFE_Workload_API.md: does a workload get exactly what it is entitled to, complete and at once?

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use passant_core::{Host, Secret, x509_svid};
use passant_proto::types::entry::AdditionalAttributes;
use passant_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    X509svidResponse,
};
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::conformance::meets;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::{Value, json};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::samples::{AUDIENCE, Tokens, decode_jwt, later, own_bundle, verify_jwt};

const OWN: &str = "spiffe://example.org";
/// How soon a change has to reach an open stream: sync every second, minting, and a loaded machine.
const SOON: Duration = Duration::from_secs(20);
/// "At once", on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(1);

fn ids(answer: &X509svidResponse) -> Vec<String> {
    answer.svids.iter().map(|svid| svid.spiffe_id.clone()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("{OWN}/{name}")).collect()
}

/// Every field of an answer but hints, and what they hold.
fn check_complete(answer: &X509svidResponse, bundle: &passant_core::Bundle) -> anyhow::Result<()> {
    assert!(!answer.svids.is_empty());
    assert!(answer.crl.is_empty() && answer.federated_bundles.is_empty());
    for svid in &answer.svids {
        let chain = x509_svid::split_der(&svid.x509_svid, 16)?;
        let leaf = x509_svid::verify(chain, bundle, Host::system().now())?;
        assert_eq!(leaf.id().as_str(), svid.spiffe_id);
        let key = Host::system().keys.load(&Secret::new(svid.x509_svid_key.clone()))?;
        assert_eq!(key.public_key(), leaf.public_key());
        let authorities = x509_svid::split_der(&svid.bundle, 16)?;
        assert!(!authorities.is_empty());
        for authority in &authorities {
            assert!(X509Certificate::from_der(authority)?.1.is_ca());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_workload_gets_all_of_its_identities() -> anyhow::Result<()> {
    let _met = meets(&[
        "WAPI-01", "WAPI-05", "WAPI-10", "WAPI-19", "WAPI-20", "WAPI-21", "WAPI-22", "WAPI-24", "WAPI-25",
        "WAPI-26", "WAPI-31", "WAPI-32", "WAPI-35", "WAPI-36", "WAPI-37", "WAPI-38", "WAPI-39", "WAPI-40",
        "WAPI-42", "WAPI-44", "WAPI-45", "WAPI-46", "WAPI-47", "WAPI-75", "WAPI-76", "JWT-13",
    ]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let longest = "h".repeat(1024);
    site.register("/one", |entry| entry.hint = "internal".to_owned()).await?;
    site.register("/two", |entry| entry.hint = "internal".to_owned()).await?;
    site.register("/three", |entry| entry.hint = longest.clone()).await?;
    let too_long = site.register("/four", |entry| entry.hint = "h".repeat(1025)).await;
    assert!(too_long.is_err());
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let bundle = own_bundle(&site).await?;
    let all = set(&["one", "two", "three"]);
    let answer = eventually("all SVIDs", READY_WITHIN, || async {
        let answer = fetch_x509(&socket).await?;
        anyhow::ensure!(answer.svids.len() == 3, "{}", answer.svids.len());
        Ok(answer)
    })
    .await?;
    assert_eq!(ids(&answer).into_iter().collect::<BTreeSet<_>>(), all);
    check_complete(&answer, &bundle)?;
    let hints = |hints: Vec<&str>| {
        assert_eq!(hints.iter().filter(|hint| **hint == "internal").count(), 1, "a hint is unique");
        assert!(hints.contains(&longest.as_str()));
    };
    hints(answer.svids.iter().map(|svid| svid.hint.as_str()).collect());
    let first = &answer.svids[0].spiffe_id;
    for _ in 0..100 {
        assert_eq!(&fetch_x509(&socket).await?.svids[0].spiffe_id, first);
    }

    // Warm, the first message comes at once, and to a second stream as well.
    let mut api = workload_api(&socket).await?;
    for _ in 0..2 {
        let (mut other, mut third) = (api.clone(), api.clone());
        let first = async {
            let mut svids = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
            let mut x509 = other.fetch_x509_bundles(with_header(X509BundlesRequest {})).await?.into_inner();
            let mut jwt = third.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await?.into_inner();
            let first = (svids.message().await?, x509.message().await?, jwt.message().await?);
            anyhow::Ok((first, (svids, x509, jwt)))
        };
        let ((svids, x509, jwt), _open) = tokio::time::timeout(AT_ONCE, first).await??;
        assert_eq!(svids.context("SVIDs")?.svids.len(), 3);
        let x509 = x509.context("X.509 bundles")?.bundles;
        assert_eq!(x509.len(), 1);
        assert_eq!(x509.get(OWN), Some(&bundle.x509_der()));
        let jwt = jwt.context("JWT bundles")?.bundles;
        assert_eq!(jwt.len(), 1);
        let set: Value = serde_json::from_slice(jwt.get(OWN).context("the own JWT bundle")?)?;
        let keys = set["keys"].as_array().context("keys")?;
        assert_eq!(keys.len(), bundle.jwt_authorities.len());
        for key in keys {
            assert!(key["kty"] == "EC" && key["x"].is_string() && key["y"].is_string(), "{key}");
            assert!(bundle.jwt_authority(key["kid"].as_str().context("kid")?).is_some());
            assert!(key.get("x5c").is_none() && key.get("d").is_none());
        }
    }

    // Tokens: for all, for one, and for nobody else's.
    let mut tokens = async |audience: &[&str], id: &str| {
        let audience = audience.iter().map(|one| (*one).to_owned()).collect();
        let request = JwtsvidRequest { audience, spiffe_id: id.to_owned() };
        Ok::<_, tonic::Status>(api.fetch_jwtsvid(with_header(request)).await?.into_inner().svids)
    };
    let every = tokens(&["a", "b"], "").await?;
    assert_eq!(every.iter().map(|one| one.spiffe_id.clone()).collect::<BTreeSet<_>>(), all);
    assert_eq!(every.len(), 3);
    hints(every.iter().map(|one| one.hint.as_str()).collect());
    for one in &every {
        let (_, claims) = decode_jwt(&one.svid)?;
        assert_eq!(claims["sub"], one.spiffe_id.as_str());
        let audience: Vec<&str> =
            claims["aud"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(BTreeSet::from_iter(audience), BTreeSet::from(["a", "b"]));
        verify_jwt(&one.svid, "b", &bundle, Host::system().now())?;
    }
    let two = tokens(&["a"], "spiffe://example.org/two").await?;
    assert_eq!(
        two.iter().map(|one| one.spiffe_id.as_str()).collect::<Vec<_>>(),
        ["spiffe://example.org/two"]
    );
    let denied = tokens(&["a"], "spiffe://example.org/five").await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    Ok(())
}

#[tokio::test]
async fn every_change_reaches_an_open_stream_as_a_whole() -> anyhow::Result<()> {
    let _met = meets(&["WAPI-08", "WAPI-09", "WAPI-28", "WAPI-77"]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    // One that is renewed every few seconds, and one that is not.
    let brief = site.register("/brief", |entry| entry.x509_svid_ttl = 12).await?;
    let long = site.register("/long", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let bundle = own_bundle(&site).await?;
    eventually("both SVIDs", READY_WITHIN, || async {
        anyhow::ensure!(fetch_x509(&socket).await?.svids.len() == 2, "not both");
        Ok(())
    })
    .await?;
    let mut api = workload_api(&socket).await?;
    let mut stream = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    let first = stream.message().await?.context("a message")?;
    check_complete(&first, &bundle)?;
    // A renewal brings both, one of them new.
    let renewed = tokio::time::timeout(SOON, stream.message()).await??.context("a message")?;
    check_complete(&renewed, &bundle)?;
    assert_eq!(ids(&renewed), ids(&first));
    let changed: Vec<&str> = renewed
        .svids
        .iter()
        .zip(&first.svids)
        .filter(|(new, old)| new.x509_svid != old.x509_svid)
        .map(|(new, _)| new.spiffe_id.as_str())
        .collect();
    assert_eq!(changed, ["spiffe://example.org/brief"]);
    // Without the brief one nothing changes, and nothing is sent although the agent syncs every second.
    site.passant_json(&["entry", "delete", &brief])?;
    let left = eventually("the deletion", SOON, || async {
        let left = fetch_x509(&socket).await?;
        anyhow::ensure!(left.svids.len() == 1, "both are there");
        Ok(left)
    })
    .await?;
    while stream.message().await?.context("a message")? != left {}
    let silence = tokio::time::timeout(Duration::from_secs(4), stream.message()).await;
    assert!(silence.is_err(), "sent without a change: {silence:?}");
    site.register("/new", |_| {}).await?;
    let more = tokio::time::timeout(SOON, stream.message()).await??.context("a message")?;
    check_complete(&more, &bundle)?;
    assert_eq!(ids(&more).into_iter().collect::<BTreeSet<_>>(), set(&["long", "new"]));
    let new = site.passant_json(&["entry", "list"])?;
    for entry in new["entries"].as_array().context("entries")? {
        site.passant_json(&["entry", "delete", entry["id"].as_str().context("an id")?])?;
    }
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(message)) => assert!(!message.svids.is_empty(), "an empty message"),
                Ok(None) => anyhow::bail!("ended without a status"),
                Err(status) => return Ok(status),
            }
        }
    };
    let ended = tokio::time::timeout(SOON, ended).await??;
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert_eq!(fetch_x509(&socket).await.map(drop).unwrap_err().code(), Code::PermissionDenied);
    assert!(!long.is_empty());
    Ok(())
}

#[tokio::test]
async fn tokens_are_validated_by_all_rules() -> anyhow::Result<()> {
    let _met = meets(&["WAPI-15", "WAPI-51", "WAPI-52", "WAPI-54", "WAPI-55", "WAPI-56", "WAPI-79"]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |entry| {
        entry.additional_attributes =
            Some(AdditionalAttributes { jwt_svid_include_jti: true, ..AdditionalAttributes::default() });
    })
    .await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let bundle = own_bundle(&site).await?;
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let mut api = workload_api(&socket).await?;
    let request = |audience: &[&str]| {
        let audience = audience.iter().map(|one| (*one).to_owned()).collect();
        with_header(JwtsvidRequest { audience, spiffe_id: String::new() })
    };
    let refused = api.fetch_jwtsvid(request(&[])).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let good = api.fetch_jwtsvid(request(&[AUDIENCE])).await?.into_inner().svids.remove(0).svid;

    let validate = |audience: &str, svid: &str| {
        let request = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
        let mut api = api.clone();
        async move { Ok::<_, tonic::Status>(api.validate_jwtsvid(with_header(request)).await?.into_inner()) }
    };
    let valid = validate(AUDIENCE, &good).await?;
    assert_eq!(valid.spiffe_id, "spiffe://example.org/web");
    let told = valid.claims.context("claims")?;
    let (_, claims) = decode_jwt(&good)?;
    let claims = claims.as_object().context("an object")?;
    for name in ["sub", "aud", "exp", "iat", "jti"] {
        assert!(claims.contains_key(name) && told.fields.contains_key(name), "{name}");
    }
    assert_eq!(told.fields.len(), claims.len());
    for (audience, svid) in [("", good.as_str()), (AUDIENCE, "")] {
        assert_eq!(validate(audience, svid).await.map(drop).unwrap_err().code(), Code::InvalidArgument);
    }

    // Tokens that differ from a good one in one thing each. Nobody but the server can sign, so those that are about
    // the content are signed by a key of ours, once with the server's kid and once with our own.
    let ours = Tokens::of("example.org");
    let kid = bundle.jwt_authorities[0].key_id.as_str();
    let body = |changes: Value| {
        let mut body =
            json!({ "sub": "spiffe://example.org/web", "aud": [AUDIENCE], "exp": later(300).secs() });
        if let (Some(body), Value::Object(changes)) = (body.as_object_mut(), changes) {
            body.extend(changes);
            body.retain(|_, value| !value.is_null());
        }
        body.to_string()
    };
    let header = |alg: &str, typ: &str, kid: &str| json!({ "alg": alg, "typ": typ, "kid": kid }).to_string();
    let mut bad = vec![
        ours.forge(&header("ES256", "JWT", kid), &body(json!({}))),
        ours.forge(&header("ES256", "JWT", "k0"), &body(json!({}))),
        ours.forge(&header("HS256", "JWT", kid), &body(json!({}))),
        ours.forge(&header("none", "JWT", kid), &body(json!({}))),
        ours.forge(&header("ES256", "wit+jwt", kid), &body(json!({}))),
        ours.forge(&header("ES256", "JWT", kid), &body(json!({ "exp": 1 }))),
        ours.forge(&header("ES256", "JWT", kid), &body(json!({ "exp": null }))),
        ours.forge(&header("ES256", "JWT", kid), &body(json!({ "sub": "spiffe://other.test/web" }))),
        ours.forge(&header("ES256", "JWT", kid), &body(json!({ "sub": "spiffe://example.org" }))),
        ours.forge(&header("ES256", "JWT", kid), &body(json!({ "aud": [] }))),
        "not.a.token".to_owned(),
    ];
    let parts: Vec<&str> = good.split('.').collect();
    for at in 0..3 {
        let mut changed: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        let flipped = if changed[at].contains('A') {
            changed[at].replacen('A', "B", 1)
        } else {
            format!("A{}", &parts[at][1..])
        };
        changed[at] = flipped;
        bad.push(changed.join("."));
    }
    for token in bad {
        let refused = validate(AUDIENCE, &token).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{token}");
    }
    for audience in ["Reports", "report", "somebody else"] {
        assert_eq!(validate(audience, &good).await.map(drop).unwrap_err().code(), Code::InvalidArgument);
    }
    // One that is over; its signature is still good.
    let short = crate::samples::mint_jwt(&site, "/web", &[AUDIENCE], 2).await?;
    assert!(validate(AUDIENCE, &short).await.is_ok());
    eventually("its end", SOON, || async {
        anyhow::ensure!(validate(AUDIENCE, &short).await.is_err(), "it is valid");
        Ok(())
    })
    .await?;

    // The command line has the agent judge, and judges nothing itself.
    let cli = |more: &[&str]| {
        site.passant([&["svid", "validate", "--audience", AUDIENCE, &good][..], more].concat())
    };
    assert!(cli(&[])?.status.success());
    assert!(!cli(&["--socket", "unix:///nonexistent/a.sock"])?.status.success());
    Ok(())
}
