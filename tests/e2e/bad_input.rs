//! Is bad input refused with the right status and a word that helps?

use std::process::Command;

use passant_core::keys::KeyType;
use passant_core::{Host, SpiffeId, csr};
use passant_proto::agent::CreateJoinTokenRequest;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::svid::{MintJwtsvidRequest, MintX509svidRequest};
use passant_proto::types;
use passant_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest};
use passant_tests::api::{selector, wire_id, with_header, workload_api};
use passant_tests::binaries::binaries;
use passant_tests::site::{ServerOptions, Site};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

#[tokio::test]
async fn the_workload_api_asks_for_its_header() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let mut api = workload_api(&site.agent_socket("agent")).await?;
    let refused = api.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "security header missing from request");
    for wrong in ["True", "false", "1", ""] {
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::try_from(wrong)?);
        assert_eq!(api.fetch_x509svid(request).await.unwrap_err().code(), Code::InvalidArgument, "{wrong:?}");
    }
    let mut twice = with_header(X509svidRequest {});
    twice.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static("true"));
    assert_eq!(api.fetch_x509svid(twice).await.unwrap_err().code(), Code::InvalidArgument);

    let request = JwtsvidRequest { audience: Vec::new(), spiffe_id: String::new() };
    let refused = api.fetch_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "audience must be specified"));
    let request = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: "spiffe://example.org//x".into() };
    let refused = api.fetch_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("invalid requested SPIFFE ID: "), "{refused}");
    let request = ValidateJwtsvidRequest { audience: "a".into(), svid: "not.a.token".into() };
    let refused = api.validate_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    Ok(())
}

#[tokio::test]
async fn csrs_are_checked() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let svids = site.operator().await?.svids();
    let mint = |csr: Vec<u8>| {
        let mut svids = svids.clone();
        async move { svids.mint_x509svid(MintX509svidRequest { csr, ttl: 60 }).await }
    };
    let host = Host::system();
    let key = host.keys.generate(KeyType::EcP256)?;
    let make = |id: Option<&str>| -> anyhow::Result<Vec<u8>> {
        let id = id.map(SpiffeId::parse).transpose()?;
        Ok(csr::make(&*key, id.as_ref())?)
    };
    let good = make(Some("spiffe://example.org/ops"))?;
    mint(good.clone()).await?;
    let mut bad_signature = good;
    if let Some(last) = bad_signature.last_mut() {
        *last ^= 1;
    }
    for (what, csr) in [
        ("empty", Vec::new()),
        ("rubbish", vec![0x30, 0x03, 1, 2, 3]),
        ("bad signature", bad_signature),
        ("no SPIFFE ID", make(None)?),
        ("foreign SPIFFE ID", make(Some("spiffe://other.test/ops"))?),
        ("trust domain itself", make(Some("spiffe://example.org"))?),
        ("too large", vec![0; 1 << 20]),
    ] {
        let refused = mint(csr).await.expect_err(what);
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused}");
    }
    let request = MintJwtsvidRequest { id: wire_id("example.org", "/ops"), audience: Vec::new(), ttl: 60 };
    assert_eq!(svids.clone().mint_jwtsvid(request).await.unwrap_err().code(), Code::InvalidArgument);
    Ok(())
}

#[tokio::test]
async fn entries_are_checked_one_by_one() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let good = types::Entry {
        spiffe_id: wire_id("example.org", "/web"),
        parent_id: wire_id("example.org", "/node"),
        selectors: vec![selector("unix", "uid:1")],
        ..types::Entry::default()
    };
    let bad = |change: fn(&mut types::Entry)| {
        let mut entry = good.clone();
        change(&mut entry);
        entry
    };
    let entries = vec![
        good.clone(),
        bad(|e| e.selectors.clear()),
        bad(|e| e.spiffe_id = wire_id("other.test", "/web")),
        bad(|e| e.spiffe_id = None),
        bad(|e| e.parent_id = wire_id("example.org", "/a//b")),
        bad(|e| e.selectors = vec![selector("", "x")]),
        bad(|e| e.x509_svid_ttl = -1),
        bad(|e| e.federates_with = vec!["unknown.test".into()]),
        good.clone(),
    ];
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let results = site.operator().await?.entries().batch_create_entry(request).await?.into_inner().results;
    let codes: Vec<i32> = results.iter().map(|r| r.status.as_ref().map_or(-1, |s| s.code)).collect();
    assert_eq!((codes[0], codes[8]), (Code::Ok as i32, Code::AlreadyExists as i32), "{codes:?}");
    assert!(codes[1..7].iter().all(|code| *code == Code::InvalidArgument as i32), "{codes:?}");
    assert_ne!(codes[7], 0);
    let ids: Vec<_> = results.iter().map(|r| r.entry.as_ref().map(|e| e.id.clone())).collect();
    assert_eq!(ids[0], ids[8], "an entry that exists is answered with");
    Ok(())
}

#[tokio::test]
async fn join_tokens_need_a_lifetime_and_an_id_of_this_trust_domain() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let mut agents = site.operator().await?.agents();
    for request in [
        CreateJoinTokenRequest { ttl: 0, token: String::new(), agent_id: None },
        CreateJoinTokenRequest { ttl: -5, token: String::new(), agent_id: None },
        CreateJoinTokenRequest { ttl: 60, token: String::new(), agent_id: wire_id("other.test", "/node") },
    ] {
        assert_eq!(agents.create_join_token(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    Ok(())
}

#[test]
fn all_faults_of_a_configuration_are_reported_at_once() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("server.toml");
    std::fs::write(&file, "trust_domian = \"example.org\"\nlisten = \"nowhere\"\nca_ttl = \"soon\"\n")?;
    let output = Command::new(&binaries().server).arg("check").arg("--config").arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    for word in ["trust_domian", "trust_domain", "listen", "ca_ttl", "server.toml"] {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "trust_domain = \"Example.org\"\nserver_adress = \"x\"\n")?;
    let output = Command::new(&binaries().agent).arg("check").arg("--config").arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    for word in ["server_adress", "server_address", "trust_domain", "agent.toml"] {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
    Ok(())
}
