//! Does a process get its identity, from registration to a verified SVID?

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use passant_core::jwt_svid::JwtSvid;
use passant_core::{Host, TrustDomain, x509_svid};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;
use passant_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use passant_tests::api::{fetch_x509, selector, with_header, workload_api};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use tonic::Code;

#[tokio::test]
async fn a_registered_process_gets_verifiable_svids() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |entry| entry.dns_names = vec!["web.example.org".into()]).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");

    let answer = eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let bundle = site
        .operator()
        .await?
        .bundles()
        .get_bundle(GetBundleRequest { output_mask: None })
        .await?
        .into_inner();
    let bundle = Arc::new(convert::bundle::from_wire(&bundle)?);
    assert_eq!(answer.svids.len(), 1);
    assert_eq!(answer.svids[0].spiffe_id, "spiffe://example.org/web");
    assert_eq!(answer.svids[0].bundle, bundle.x509_der());
    let chain = x509_svid::split_der(&answer.svids[0].x509_svid, 16)?;
    let now = Host::system().now();
    let svid = x509_svid::verify(chain, &bundle, now)?;
    assert_eq!(svid.dns_names(), ["web.example.org"]);

    let mut api = workload_api(&socket).await?;
    let audience = "spiffe://example.org/reports";
    let request = JwtsvidRequest { audience: vec![audience.into()], spiffe_id: String::new() };
    let token = api.fetch_jwtsvid(with_header(request)).await?.into_inner().svids.remove(0);
    let bundles = |td: &TrustDomain| (td.as_str() == "example.org").then(|| Arc::clone(&bundle));
    let jwt = JwtSvid::verify(&token.svid, audience, &bundles, now)?;
    assert_eq!(jwt.id().as_str(), "spiffe://example.org/web");
    let request = ValidateJwtsvidRequest { audience: audience.into(), svid: token.svid.clone() };
    let valid = api.validate_jwtsvid(with_header(request)).await?.into_inner();
    assert_eq!(valid.spiffe_id, "spiffe://example.org/web");
    let request = ValidateJwtsvidRequest { audience: "somebody else".into(), svid: token.svid };
    let refused = api.validate_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let mut bundles = api.fetch_x509_bundles(with_header(X509BundlesRequest {})).await?.into_inner();
    let bundles = bundles.message().await?.context("bundles")?.bundles;
    assert_eq!(bundles.get("spiffe://example.org"), Some(&bundle.x509_der()));
    let mut bundles = api.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await?.into_inner();
    let bundles = bundles.message().await?.context("bundles")?.bundles;
    let jwks: serde_json::Value = serde_json::from_slice(&bundles["spiffe://example.org"])?;
    assert_eq!(jwks["keys"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[tokio::test]
async fn an_entry_made_changed_and_deleted_reaches_an_open_stream() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let one = site.register("/one", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("the first SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;

    let mut api = workload_api(&socket).await?;
    let mut stream = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    assert_eq!(stream.message().await?.context("a message")?.svids.len(), 1);
    let two = site.register("/two", |_| {}).await?;
    let next =
        tokio::time::timeout(Duration::from_secs(20), stream.message()).await??.context("a message")?;
    let mut ids: Vec<&str> = next.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["spiffe://example.org/one", "spiffe://example.org/two"]);

    site.passant_json(&["entry", "delete", &two])?;
    let next =
        tokio::time::timeout(Duration::from_secs(20), stream.message()).await??.context("a message")?;
    assert_eq!(next.svids.len(), 1);
    site.passant_json(&["entry", "delete", &one])?;
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.message()).await?.unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::PermissionDenied, "no identity issued"));
    Ok(())
}

#[tokio::test]
async fn a_process_that_does_not_match_is_denied_in_the_exact_words() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/other", |entry| entry.selectors = vec![selector("unix", "uid:4242")]).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let denied = fetch_x509(&socket).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
    let mut api = workload_api(&socket).await?;
    let request = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: String::new() };
    let denied = api.fetch_jwtsvid(with_header(request)).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
    Ok(())
}

#[tokio::test]
async fn before_the_first_sync_the_answer_is_unavailable() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let token = site.join_token().await?;
    server.stop().await?;
    site.configure_agent("agent", "method = \"join_token\"", "")?;
    let mut agent = site.spawn_agent("agent", &["--join-token", &token])?;
    let socket = site.agent_socket("agent");
    let refused = eventually("the socket", READY_WITHIN, || async {
        workload_api(&socket).await?;
        Ok(fetch_x509(&socket).await.unwrap_err())
    })
    .await?;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(agent.ended()?.is_none());
    // The server comes, and all is well without anyone's help.
    let _server = site.start_server().await?;
    site.agent_serves("agent", &agent).await
}

#[tokio::test]
async fn a_node_attests_with_a_certificate_and_again_without_help() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let ca = passant_tests::node_ca::NodeCa::new(dir.path())?;
    let node = ca.node(dir.path(), "node-1")?;
    let site = Site::new(&ServerOptions {
        keys: String::new(),
        tables: format!("[[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n", ca.file),
    })?;
    let _server = site.start_server().await?;
    let attestor =
        format!("method = \"x509pop\"\ncertificate = {:?}\nprivate_key = {:?}\n", node.certificate, node.key);
    site.configure_agent("agent", &attestor, "")?;
    let agent = site.spawn_agent("agent", &[])?;
    site.agent_serves("agent", &agent).await?;
    let agents = site.passant_json(&["agent", "list"])?;
    let path = agents["agents"][0]["id"]["path"].as_str().context("one agent")?.to_owned();
    assert!(path.starts_with("/spire/agent/x509pop/"), "{path}");
    let selectors = agents["agents"][0]["selectors"].to_string();
    assert!(selectors.contains("subject:cn:node-1"), "{selectors}");

    // A node alias by the node's selectors carries entries to it.
    let alias = [
        "entry",
        "create",
        "--node",
        "--spiffe-id",
        "spiffe://example.org/node",
        "--selector",
        "x509pop:subject:cn:node-1",
    ];
    site.passant_json(&alias)?;
    site.register("/web", |_| {}).await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;

    // Evicted, it attests again by itself.
    site.passant_json(&["agent", "evict", &format!("spiffe://example.org{path}")])?;
    eventually("re-attestation", READY_WITHIN, || async {
        let agents = site.passant_json(&["agent", "list"])?;
        agents["agents"].get(0).context("no agent").map(|_| ())
    })
    .await?;
    eventually("an SVID again", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    Ok(())
}
