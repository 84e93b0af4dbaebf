//! What happens while the server is away, and when it is back?

use std::time::Duration;

use anyhow::Context;
use passant_core::{Host, x509_svid};
use passant_proto::workload::X509svidRequest;
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;

#[tokio::test]
async fn a_crashed_server_takes_nothing_with_it() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let id = site.register("/web", |entry| entry.x509_svid_ttl = 30).await?;
    let mut agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let before = eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    server.kill()?;

    // Served from what is held.
    let held = fetch_x509(&socket).await?;
    assert_eq!(held.svids[0].x509_svid, before.svids[0].x509_svid);
    assert!(agent.ended()?.is_none());

    let _server = site.start_server().await?;
    let entry = site.passant_json(&["entry", "show", &id])?;
    assert_eq!(entry["spiffe_id"]["path"], "/web");
    let mut api = workload_api(&socket).await?;
    let mut stream = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    loop {
        let next =
            tokio::time::timeout(Duration::from_secs(40), stream.message()).await??.context("a message")?;
        if next.svids[0].x509_svid != before.svids[0].x509_svid {
            // The same authority as before the crash: the bundle of then verifies the SVID of now.
            let anchors = x509_svid::split_der(&before.svids[0].bundle, 64)?;
            assert_eq!(next.svids[0].bundle, before.svids[0].bundle);
            assert_eq!(anchors.len(), 1);
            let svid = x509_svid::X509Svid::parse(x509_svid::split_der(&next.svids[0].x509_svid, 16)?)?;
            assert!(svid.not_after() > Host::system().now());
            return Ok(());
        }
    }
}

#[tokio::test]
async fn an_agent_restarts_without_a_new_token() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let agent = site.start_agent("agent").await?;
    agent.stop().await?;
    let agent = site.spawn_agent("agent", &[])?;
    site.agent_serves("agent", &agent).await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    assert_eq!(site.passant_json(&["agent", "list"])?["agents"].as_array().map(Vec::len), Some(1));
    agent.kill()?;
    let agent = site.spawn_agent("agent", &[])?;
    site.agent_serves("agent", &agent).await
}
