//! Does the agent stay of use to honest workloads, and within its memory and descriptors, while others misuse it?

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::workload::JwtsvidRequest;
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::hostile::{self, Abuse, FETCH_X509, Hostile};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::usage::Usage;
use passant_tests::wait::eventually;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::Code;

/// How long an honest workload may have to wait on a loaded machine.
const SERVED_WITHIN: Duration = Duration::from_secs(8);

async fn a_workload_is_served(site: &Site) -> anyhow::Result<()> {
    let served = tokio::time::timeout(SERVED_WITHIN, fetch_x509(&site.agent_socket("agent"))).await;
    let answer = served.context("an honest workload was kept waiting")??;
    ensure!(answer.svids.len() == 1, "{} SVIDs", answer.svids.len());
    Ok(())
}

/// A server, and an agent that serves this process.
async fn start() -> anyhow::Result<(Site, Daemon, Daemon)> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let agent = site.start_agent("agent").await?;
    eventually("an SVID", READY_WITHIN, || a_workload_is_served(&site)).await?;
    Ok((site, server, agent))
}

async fn connect(site: &Site) -> anyhow::Result<Hostile<UnixStream>> {
    Ok(Hostile::open(UnixStream::connect(site.agent_socket("agent")).await?, 65_535).await)
}

#[tokio::test]
async fn abuse_of_http2_costs_the_abuser_its_connection() -> anyhow::Result<()> {
    let (site, _server, agent) = start().await?;
    let before = Usage::of(agent.pid())?;
    for abuse in Abuse::ALL {
        let mut abuser = connect(&site).await?;
        abuse.commit(&mut abuser, FETCH_X509).await;
        a_workload_is_served(&site).await.with_context(|| format!("{abuse:?}"))?;
        if abuse.is_ended() {
            let end = abuser.ended().await.with_context(|| format!("{abuse:?}"))?;
            if abuse == Abuse::RapidReset {
                hostile::assert_told(&end, "")?;
            }
        }
        let during = Usage::of(agent.pid())?;
        ensure!(during.resident < before.resident + 64 * 1024, "{abuse:?}: {before:?} {during:?}");
    }
    Ok(())
}

#[tokio::test]
async fn processes_that_vanish_leave_nothing_behind() -> anyhow::Result<()> {
    let (site, _server, agent) = start().await?;
    let before = Usage::of(agent.pid())?;
    let mut running = JoinSet::new();
    for how in ["connect", "half", "ask", "fetch"].into_iter().cycle().take(120) {
        let mut command = Command::new(&binaries().show);
        command.args(["caller", "--how", how, "--socket"]).arg(site.agent_socket("agent"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        running.spawn_blocking(move || (how, command.output()));
    }
    while let Some(ended) = running.join_next().await {
        let (how, output) = ended?;
        let output = output?;
        ensure!(output.status.success(), "{how}: {}", String::from_utf8_lossy(&output.stderr));
    }
    eventually("everything of them to be forgotten", READY_WITHIN, || async {
        let after = Usage::of(agent.pid())?;
        ensure!(after.descriptors <= before.descriptors + 2, "{before:?} {after:?}");
        Ok(())
    })
    .await?;
    a_workload_is_served(&site).await
}

#[tokio::test]
async fn ever_new_audiences_are_refused_with_a_time_to_come_again() -> anyhow::Result<()> {
    let (site, server, _agent) = start().await?;
    let request =
        |audience: String| with_header(JwtsvidRequest { audience: vec![audience], spiffe_id: String::new() });
    let mut api = workload_api(&site.agent_socket("agent")).await?;
    api.fetch_jwtsvid(request("kept".to_owned())).await?;
    // Nobody is answered now: what is counted is what was asked for, however fast this machine is.
    server.kill()?;
    let mut asking = JoinSet::new();
    for connection in 0..16 {
        let api = workload_api(&site.agent_socket("agent")).await?;
        for n in 0..95 {
            let (mut api, request) = (api.clone(), request(format!("{connection}-{n}")));
            asking.spawn(async move { api.fetch_jwtsvid(request).await });
        }
    }
    let refused = loop {
        let ended =
            tokio::time::timeout(READY_WITHIN, asking.join_next()).await.context("nobody was refused")?;
        let refused = ended.context("everybody was answered")??.unwrap_err();
        if refused.code() != Code::Unavailable {
            break refused;
        }
        // What a workload is told of the trouble says what is wrong, and not where the server is.
        let told = refused.message();
        ensure!(!told.contains("127.0.0.1") && told.contains("could not fetch JWT-SVID"), "{told}");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("too many new JWT-SVIDs for this process"), "{refused}");
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    api.fetch_jwtsvid(request("kept".to_owned())).await.context("what is cached costs nothing")?;
    a_workload_is_served(&site).await
}

#[tokio::test]
async fn one_connection_too_many_of_a_user_is_told_so() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    site.configure_agent("agent", "method = \"join_token\"", "")?;
    // So few descriptors that one user gets a handful of connections.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 128 && exec \"$@\"", "sh"]);
    command.arg(&binaries().agent).args(["run", "--config"]).arg(site.path("agent.toml"));
    command.args(["--join-token", &site.join_token().await?]);
    let agent = Daemon::start(command, &site.path("agent.log"))?;
    site.agent_serves("agent", &agent).await?;
    let mut open = Vec::new();
    let end = loop {
        ensure!(open.len() < 128, "a user may have any number of connections");
        let mut connection = connect(&site).await?;
        connection.next().await?;
        let (kind, _, payload) = connection.next().await?;
        if kind == 7 {
            break String::from_utf8_lossy(&payload[8..]).into_owned();
        }
        open.push(connection);
    };
    assert!(end.contains("too many connections of this user"), "{end}");
    let during = Usage::of(agent.pid())?;
    ensure!(during.descriptors < 100, "others have room left: {during:?}");
    drop(open);
    eventually("an SVID", READY_WITHIN, || a_workload_is_served(&site)).await
}
