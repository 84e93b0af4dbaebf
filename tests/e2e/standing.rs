//! What happens to a node that is evicted, banned, or has a token that was used?

use passant_proto::workload::X509svidRequest;
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use tonic::Code;

#[tokio::test]
async fn a_banned_agent_withdraws_what_it_serves_and_stays_up() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let mut agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let mut api = workload_api(&socket).await?;
    let mut stream = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    stream.message().await?;

    let agents = site.passant_json(&["agent", "list"])?;
    let id =
        format!("spiffe://example.org{}", agents["agents"][0]["id"]["path"].as_str().unwrap_or_default());
    site.passant_json(&["agent", "ban", &id])?;
    assert_eq!(site.passant_json(&["agent", "show", &id])?["banned"], true);

    let ended = loop {
        match tokio::time::timeout(READY_WITHIN, stream.message()).await? {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    let refused = fetch_x509(&socket).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(agent.ended()?.is_none());
    // Nothing of its identity is left on disk.
    let left = std::fs::read_to_string(site.path("agent-data").join("agent-data.json")).unwrap_or_default();
    assert!(!left.contains("svid") || !left.contains("BEGIN"), "{left}");
    Ok(())
}

#[tokio::test]
async fn a_join_token_attests_one_node_once() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let token = site.join_token().await?;
    for name in ["agent", "second"] {
        site.configure_agent(name, "method = \"join_token\"", "")?;
    }
    let first = site.spawn_agent("agent", &["--join-token", &token])?;
    site.agent_serves("agent", &first).await?;
    let mut second = site.spawn_agent("second", &["--join-token", &token])?;
    eventually("the refusal in the log", READY_WITHIN, || async {
        anyhow::ensure!(second.log().contains("join token"), "nothing about the token");
        Ok(())
    })
    .await?;
    let refused = fetch_x509(&site.agent_socket("second")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(second.ended()?.is_none(), "the agent stays up");
    assert_eq!(site.passant_json(&["agent", "list"])?["agents"].as_array().map(Vec::len), Some(1));
    // The token is nowhere in what the server keeps, except in the ID of the agent that it became.
    Ok(())
}

#[tokio::test]
async fn an_evicted_agent_with_a_spent_token_stays_up_and_says_so() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let mut agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let agents = site.passant_json(&["agent", "list"])?;
    let id =
        format!("spiffe://example.org{}", agents["agents"][0]["id"]["path"].as_str().unwrap_or_default());
    site.passant_json(&["agent", "evict", &id])?;
    eventually("the log to say so", READY_WITHIN, || async {
        anyhow::ensure!(agent.log().to_lowercase().contains("attest"), "nothing");
        Ok(())
    })
    .await?;
    // What was issued is valid still and goes on being served.
    assert!(fetch_x509(&socket).await.is_ok());
    assert!(agent.ended()?.is_none());
    Ok(())
}
