//! Can operators see how the daemons are, and tell them what to do?

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use passant_tests::api::{channel, fetch_x509};
use passant_tests::daemon::Daemon;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

/// On any free port.
const PROBE: &str = "[probe]\nlisten = \"127.0.0.1:0\"\n";
const WITHIN: Duration = Duration::from_secs(20);

/// Where `daemon` said that it answers probes.
async fn probe_of(daemon: &Daemon) -> anyhow::Result<SocketAddr> {
    eventually("the probe", READY_WITHIN, || async {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("probes and metrics are answered"));
        let address = line.and_then(|line| line.split("address=").nth(1)).context("not yet said")?;
        Ok(address.split_whitespace().next().unwrap_or_default().parse()?)
    })
    .await
}

/// Status and body.
async fn get(probe: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(probe).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

async fn ready(probe: SocketAddr) -> anyhow::Result<(u16, Value)> {
    let (status, body) = get(probe, "/ready").await?;
    Ok((status, serde_json::from_str(&body)?))
}

/// Every sample by its name and labels, after a look at whether the text is what OpenMetrics asks for.
async fn metrics(probe: SocketAddr) -> anyhow::Result<BTreeMap<String, f64>> {
    let (status, text) = get(probe, "/metrics").await?;
    ensure!(status == 200, "{status} {text}");
    ensure!(text.ends_with("# EOF\n"), "no end: {text}");
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped.insert(rest.split(' ').next().unwrap_or_default().to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("a type")?;
            ensure!(typed.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
        } else {
            let (series, value) = line.rsplit_once(' ').context("a sample")?;
            let name = series.split('{').next().unwrap_or_default();
            let suffixes = ["_total", "_bucket", "_count", "_sum", "_info", ""];
            let family = suffixes
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|family| typed.contains_key(*family))
                .with_context(|| format!("{line} belongs to no family"))?;
            ensure!(helped.contains(family), "{family} has no help");
            ensure!(!series.contains("spiffe://"), "a label of unbounded values: {line}");
            ensure!(samples.insert(series.to_owned(), value.parse()?).is_none(), "{series} comes twice");
        }
    }
    Ok(samples)
}

async fn serving(socket: &std::path::Path) -> anyhow::Result<i32> {
    let request = HealthCheckRequest { service: String::new() };
    Ok(HealthClient::new(channel(socket).await?).check(request).await?.into_inner().status)
}

#[tokio::test]
async fn probes_metrics_and_health_tell_how_the_daemons_are() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions { tables: PROBE.to_owned(), ..ServerOptions::default() })?;
    let server = site.start_server().await?;
    let probe = probe_of(&server).await?;
    assert_eq!(get(probe, "/live").await?, (200, "{\"live\":true}\n".to_owned()));
    assert_eq!(ready(probe).await?, (200, serde_json::json!({ "ready": true })));
    assert_eq!(get(probe, "/secrets").await?.0, 404);
    let before = metrics(probe).await?;
    assert_eq!(before["passant_server_entries"], 0.0);

    site.register("/probed", |_| {}).await?;
    let token = site.join_token().await?;
    site.configure_agent("agent", &format!("method = \"join_token\"\n{PROBE}"), "")?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    let agents_probe = probe_of(&agent).await?;
    eventually("the SVID", READY_WITHIN, || async { Ok(fetch_x509(&site.agent_socket("agent")).await?) })
        .await?;
    eventually("the agent to be ready", READY_WITHIN, || async {
        match ready(agents_probe).await? {
            (200, _) => Ok(()),
            (status, said) => bail!("{status} {said}"),
        }
    })
    .await?;

    let after = metrics(probe).await?;
    for (series, at_least) in [
        ("passant_server_entries", 1.0),
        ("passant_server_nodes", 1.0),
        ("passant_server_commits_total", 1.0),
        ("passant_server_store_append_seconds_count", 1.0),
        ("passant_server_record_sync_seconds_count", 1.0),
        ("passant_server_issue_seconds_count{kind=\"node_svid\",outcome=\"done\"}", 1.0),
        ("passant_server_issue_seconds_count{kind=\"x509_svid\",outcome=\"done\"}", 1.0),
        ("passant_server_node_attestations_total{method=\"join_token\",outcome=\"done\"}", 1.0),
        ("passant_server_watches", 1.0),
        ("passant_server_watch_updates_total", 1.0),
        ("passant_server_watch_snapshots_total", 1.0),
        ("passant_server_handshakes_total{result=\"accepted\"}", 1.0),
        ("passant_server_connections{peer=\"agent\"}", 1.0),
        ("passant_server_authorities{kind=\"x509\",phase=\"active\"}", 1.0),
        ("process_resident_memory_bytes", 1_000_000.0),
    ] {
        let (was, is) = (before.get(series).copied(), after.get(series).copied());
        assert!(is >= Some(at_least) && is >= was, "{series}: {was:?} then {is:?}");
    }
    assert_eq!(before.len(), after.len(), "series come and go");

    let agents = metrics(agents_probe).await?;
    for (series, at_least) in [
        ("passant_agent_updates_total", 1.0),
        ("passant_agent_minted_total{result=\"minted\"}", 1.0),
        ("passant_agent_x509_svids", 1.0),
        ("passant_agent_node_svids_total{step=\"attest\",outcome=\"done\"}", 1.0),
        ("passant_agent_workload_calls_total{method=\"fetch_x509_svid\"}", 1.0),
        ("passant_agent_attestation_seconds_count{attestor=\"unix\"}", 1.0),
        ("passant_agent_node_svid_not_after_seconds", 1_700_000_000.0),
        ("passant_agent_soonest_x509_svid_not_after_seconds", 1_700_000_000.0),
    ] {
        assert!(agents.get(series).copied() >= Some(at_least), "{series}: {:?}", agents.get(series));
    }
    assert!(agents["passant_agent_sync_lag_seconds"] < 30.0);

    // Health follows readiness a moment later.
    for socket in [site.server_socket(), site.agent_socket("agent")] {
        eventually("SERVING", WITHIN, || async {
            ensure!(serving(&socket).await? == 1, "it says that it does not serve");
            Ok(())
        })
        .await?;
    }
    for arguments in [&["healthcheck"][..], &["healthcheck", "--agent"]] {
        let output = site.passant(arguments)?;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    // Without its server the agent still serves what it has, and says what is wrong.
    server.stop().await?;
    eventually("the agent to miss its server", WITHIN, || async {
        match ready(agents_probe).await? {
            (200, said) if said["degraded"]["sync"].is_string() => Ok(()),
            (status, said) => bail!("{status} {said}"),
        }
    })
    .await?;
    assert_eq!(get(agents_probe, "/live").await?.0, 200);
    assert_eq!(serving(&site.agent_socket("agent")).await?, 1);
    assert_eq!(site.passant(["healthcheck"])?.status.code(), Some(1));
    Ok(())
}

#[tokio::test]
async fn an_agent_that_never_reached_its_server_is_alive_and_not_ready() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let token = site.join_token().await?;
    server.stop().await?;
    site.configure_agent("agent", &format!("method = \"join_token\"\n{PROBE}"), "")?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    let probe = probe_of(&agent).await?;
    assert_eq!(get(probe, "/live").await?.0, 200);
    let (status, said) = ready(probe).await?;
    assert_eq!((status, &said["ready"]), (503, &Value::Bool(false)));
    assert!(said["troubles"]["sync"].is_string() && said["troubles"]["node"].is_string(), "{said}");
    let socket = site.agent_socket("agent");
    eventually("the socket", WITHIN, || async {
        // NOT_SERVING.
        ensure!(serving(&socket).await? == 2, "it says that it serves");
        Ok(())
    })
    .await?;
    assert_eq!(site.passant(["healthcheck", "--agent"])?.status.code(), Some(1));
    agent.stop().await
}

#[tokio::test]
async fn the_log_level_follows_sighup_and_the_command_line() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let agent = site.start_agent("agent").await?;
    let level = |said: &Value| said["current_level"].as_str().unwrap_or_default().to_owned();
    assert_eq!(level(&site.passant_json(&["logger", "get"])?), "DEBUG");
    assert_eq!(level(&site.passant_json(&["logger", "set", "trace"])?), "TRACE");
    assert_eq!(level(&site.passant_json(&["logger", "reset"])?), "DEBUG");

    for (daemon, file) in [(&server, "server.toml"), (&agent, "agent.toml")] {
        let file = site.path(file);
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, text.replace("level = \"debug\"", "level = \"loud\""))?;
        daemon.signal(Signal::SIGHUP)?;
        let said = |words: &'static str| {
            eventually(words, WITHIN, move || async move {
                ensure!(daemon.log().contains(words), "not yet said");
                Ok(())
            })
        };
        said("nothing was changed").await?;
        std::fs::write(&file, text.replace("level = \"debug\"", "level = \"info\""))?;
        daemon.signal(Signal::SIGHUP)?;
        said("log level set").await?;
    }
    let shown = site.passant_json(&["logger", "get"])?;
    assert_eq!((level(&shown), &shown["launch_level"]), ("INFO".to_owned(), &Value::from("INFO")));
    server.stop().await?;
    agent.stop().await
}

#[tokio::test]
async fn each_way_to_end_has_its_own_exit_code() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let mut server = site.start_server().await?;
    // A second server finds the port in use.
    let code = async |mut daemon: Daemon| Ok::<_, anyhow::Error>(daemon.wait(WITHIN).await?.code());
    assert_eq!(code(site.spawn_server()?).await?, Some(69));
    // An agent without a configuration, and one whose data directory is a file.
    assert_eq!(code(site.spawn_agent("none", &[])?).await?, Some(64));
    site.configure_agent("odd", "method = \"join_token\"", "")?;
    std::fs::write(site.path("odd-data"), "")?;
    assert_eq!(code(site.spawn_agent("odd", &[])?).await?, Some(69));

    let agent = site.start_agent("agent").await?;
    agent.signal(Signal::SIGINT)?;
    assert_eq!(code(agent).await?, Some(0));

    // A client that keeps a call open delays the stop, until a second signal.
    let mut client = ServerReflectionClient::new(channel(&site.server_socket()).await?);
    let (ask, asked) = tokio::sync::mpsc::channel::<ServerReflectionRequest>(1);
    let open = client.server_reflection_info(tokio_stream::wrappers::ReceiverStream::new(asked)).await?;
    server.signal(Signal::SIGTERM)?;
    eventually("the server to begin to stop", WITHIN, || async {
        ensure!(server.log().contains("stopping"), "not yet");
        Ok(())
    })
    .await?;
    server.signal(Signal::SIGTERM)?;
    assert_eq!(server.wait(WITHIN).await?.code(), Some(143));
    drop((ask, open));

    let help = std::process::Command::new(&passant_tests::binaries::binaries().server)
        .args(["run", "--help"])
        .output()?;
    assert!(String::from_utf8(help.stdout)?.contains("143"));
    Ok(())
}
