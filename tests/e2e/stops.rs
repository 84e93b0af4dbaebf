//! Does a stop reach the workload at once, and say whom it has not reached?

use passant_proto::workload::X509svidRequest;
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::Value;
use tonic::Code;

/// Runs `passant -o json` and reads what it prints, whether there is something to look at or not.
fn told(site: &Site, code: i32, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = site.passant(["-o", "json"].iter().chain(arguments))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.code() == Some(code), "{arguments:?}: {:?}: {said}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn served(site: &Site) -> anyhow::Result<()> {
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await.map(drop)
}

#[tokio::test]
async fn a_stop_is_on_every_node_once_it_was_waited_for() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    served(&site).await?;
    let mut api = workload_api(&socket).await?;
    let mut stream = api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    stream.message().await?;

    let stop = ["stop", "entry", &entry, "--reason", "stolen key", "--wait", "20s"];
    let stopped = told(&site, 0, &stop)?;
    assert_eq!(stopped["stop"]["rollout"]["applied"], 1, "{stopped}");
    // Nothing is waited for here: whoever was told that it has come may rely on it.
    let refused = fetch_x509(&socket).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let ended = loop {
        match tokio::time::timeout(READY_WITHIN, stream.message()).await? {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::PermissionDenied);
    let resume = ["stop", "resume", "entry", &entry, "--reason", "new key", "--wait", "20s"];
    assert_eq!(told(&site, 0, &resume)?["rollout"]["applied"], 1);
    served(&site).await
}

#[tokio::test]
async fn an_agent_that_is_away_is_named_and_serves_nothing_stopped_once_it_is_back() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let agent = site.start_agent("agent").await?;
    served(&site).await?;
    let agents = site.passant_json(&["agent", "list"])?;
    let id =
        format!("spiffe://example.org{}", agents["agents"][0]["id"]["path"].as_str().unwrap_or_default());
    agent.kill()?;

    let stopped = told(&site, 3, &["stop", "agent", &id, "--reason", "odd", "--wait", "1s"])?;
    let pending = &stopped["stop"]["rollout"]["pending"][0];
    assert_eq!((&pending["agent_id"], &pending["state"]), (&Value::from(id.as_str()), &"unreachable".into()));
    // It outlives the server, too.
    server.kill()?;
    let _server = site.start_server().await?;
    let agent = site.spawn_agent("agent", &[])?;
    let socket = site.agent_socket("agent");
    let refused = eventually("a clear refusal", READY_WITHIN, || async {
        match fetch_x509(&socket).await {
            Ok(_) => anyhow::bail!("it serves what is stopped"),
            Err(status) if status.code() == Code::Unavailable => anyhow::bail!("{status}"),
            Err(status) => Ok(status),
        }
    })
    .await?;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}: {}", agent.log());
    let status = eventually("the acknowledgement", READY_WITHIN, || async {
        told(&site, 0, &["stop", "status", "agent", &id])
    })
    .await?;
    assert_eq!(status["stops"][0]["rollout"]["applied"], 1);
    assert_eq!(site.passant_json(&["agent", "show", &id])?["banned"], false);
    told(&site, 0, &["stop", "resume", "agent", &id, "--reason", "well", "--wait", "20s"])?;
    served(&site).await
}

#[tokio::test]
async fn a_write_is_with_the_workload_once_it_was_waited_for() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    served(&site).await?;
    let hint = ["entry", "update", &entry, "--hint", "new", "--wait", "20s"];
    let updated = told(&site, 0, &hint)?;
    assert_eq!(updated["rollout"]["applied"], 1, "{updated}");
    assert_eq!(fetch_x509(&socket).await?.svids[0].hint, "new");
    let deleted = told(&site, 0, &["entry", "delete", &entry, "--wait", "20s"])?;
    assert_eq!(deleted["rollout"]["applied"], 1, "{deleted}");
    let refused = fetch_x509(&socket).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    Ok(())
}
