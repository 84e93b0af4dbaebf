//! Does nothing outlive the end of its registration entry, and is nothing minted from that second on?
//!
//! Foreign workloads watch through the agent; a foreign node asks the server itself, again and again past the end; and
//! the server's decision record tells what it signed.

use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::api::fetch_x509;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use serde::Deserialize;
use tonic::Code;

use crate::decisions::{self, Decision};
use crate::judge::Client;
use crate::moment::Moment;
use crate::peers::{self, Peer};
use crate::report::{Report, say};
use crate::watcher::Watcher;

/// How long the entry lives. Long enough for several SVIDs, the last of which are cut short.
const LIFE: Duration = Duration::from_secs(40);
/// Lifetime of its SVIDs, in seconds.
const TTL: i32 = 25;
/// How long the server is asked after the end.
const PAST: Duration = Duration::from_secs(5);
/// How often workloads fetch a JWT-SVID.
const JWT_EVERY: Duration = Duration::from_secs(2);

/// One answer of the server to the foreign node, as the peer's `mint` prints it.
#[derive(Debug, Deserialize)]
struct Answer {
    /// `x509` or `jwt`.
    kind: String,
    /// When it was asked.
    asked: Moment,
    /// `OK` or the refusal's code.
    code: String,
    /// The refusal's words.
    message: String,
    /// When what was minted ends; none with a refusal.
    not_after: Option<Moment>,
}

/// Runs the show.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    peers::build(report)?;
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let end = Moment::from_secs(Moment::now().plus(LIFE).secs());
    let id = format!("spiffe://{TRUST_DOMAIN}/brief");
    let entry = site
        .register("/brief", |entry| {
            entry.expires_at = end.secs();
            (entry.x509_svid_ttl, entry.jwt_svid_ttl) = (TTL, TTL);
        })
        .await?;
    say(&format!("entry {entry} ends at {end}"));
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let mut watchers = Vec::new();
    for peer in Peer::ALL {
        let jwt = ("entry-end", JWT_EVERY);
        watchers.push(Watcher::start(peer, &peer.program(), peer.name(), &id, &socket, site.dir(), jwt)?);
    }
    let asked = ask_server(&site, &entry, end).await?;
    let denied = eventually("the denial", READY_WITHIN, || async {
        let status = fetch_x509(&socket).await.err().context("it is served")?;
        ensure!(status.code() == Code::PermissionDenied, "{status}");
        Ok(status.message().to_owned())
    });
    report.fact("the agent denies it after the end", denied.await);
    let mut clients = Vec::new();
    for watcher in watchers {
        // A library may give up once it is denied; its log stands nevertheless.
        clients.push(watcher.so_far()?);
    }
    agent.stop().await?;
    server.stop().await?;

    watched(report, &clients, end);
    answered(report, &asked, end);
    let decided = decisions::read(&site.path("server-data").join("decisions"))?;
    recorded(report, &decided, &id, end);
    Ok(())
}

/// What workloads received.
fn watched(report: &Report, clients: &[Client], end: Moment) {
    for client in clients {
        let (svids, jwts) = (client.svids().len(), client.jwt().len());
        let mut violations = client.wrong();
        for x509 in client.x509() {
            if x509.not_after > end || x509.received >= end {
                violations.push(format!("X509-SVID received {} ends {}", x509.received, x509.not_after));
            }
        }
        for jwt in client.jwt() {
            if jwt.expires_at > end || jwt.received >= end {
                violations.push(format!("JWT-SVID received {} ends {}", jwt.received, jwt.expires_at));
            }
        }
        if svids < 2 || jwts < 2 {
            violations.push(format!("only {svids} X509-SVIDs and {jwts} JWT-SVIDs were seen"));
        }
        let name = format!("no SVID that {} was given outlives the entry", client.name);
        report.none(&name, &violations, &format!("{svids} X509-SVIDs, {jwts} JWT-SVIDs"));
    }
}

/// What the server answered to a node.
fn answered(report: &Report, answers: &[Answer], end: Moment) {
    for kind in ["x509", "jwt"] {
        let of_kind = || answers.iter().filter(|answer| answer.kind == kind);
        let outlive: Vec<String> = of_kind()
            .filter(|answer| answer.not_after.is_some_and(|not_after| not_after > end))
            .map(|answer| format!("{answer:?}"))
            .collect();
        let minted = of_kind().filter(|answer| answer.not_after.is_some()).count();
        let cut = of_kind().filter(|answer| answer.not_after == Some(end)).count();
        let remark = format!("{minted} minted, {cut} of them until the very end");
        report.none(&format!("the server mints no {kind} SVID beyond the end"), &outlive, &remark);
        let after: Vec<&Answer> = of_kind().filter(|answer| answer.asked >= end).collect();
        let let_through: Vec<String> = after
            .iter()
            .filter(|answer| answer.code != "NotFound")
            .map(|answer| format!("{answer:?}"))
            .collect();
        let name = format!("the server refuses every {kind} SVID after the end");
        match after.first() {
            Some(first) if minted > 0 => {
                report.none(
                    &name,
                    &let_through,
                    &format!("{} times {}: {}", after.len(), first.code, first.message),
                );
            }
            _ => report.fact(&name, Err(anyhow::anyhow!("it was not asked before and after"))),
        }
    }
}

/// What the server has on record.
fn recorded(report: &Report, decided: &[Decision], id: &str, end: Moment) {
    let of_it: Vec<&Decision> = decided.iter().filter(|decision| decision.spiffe_id == id).collect();
    let violations: Vec<String> = of_it
        .iter()
        .filter(|decision| decision.at >= end || decision.not_after > end)
        .map(|decision| format!("{decision:?}"))
        .collect();
    if of_it.is_empty() {
        report.fact("the decision record agrees", Err(anyhow::anyhow!("it holds nothing about {id}")));
    } else {
        report.none("the decision record agrees", &violations, &format!("{} decisions", of_it.len()));
    }
}

/// Lets the Go peer attest as another node that may serve the entry, and ask for SVIDs past the end.
async fn ask_server(site: &Site, entry: &str, end: Moment) -> anyhow::Result<Vec<Answer>> {
    let token = site.join_token().await?;
    let span = end.plus(PAST).since(Moment::now());
    let mut command = Peer::Go.program().command(&site.agent_socket("agent"));
    command
        .args(["mint", "--server", &site.address(), "--trust-domain", TRUST_DOMAIN, "--bundle"])
        .arg(site.bundle_file())
        .args(["--token", &token, "--entry", entry, "--duration", &format!("{}s", span.as_secs())]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "interop mint: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("cannot read {line:?}")))
        .collect()
}
