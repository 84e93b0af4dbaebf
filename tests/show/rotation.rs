//! Do many foreign clients always hold a valid SVID, with short lives, and a crash of the server in the middle?

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::api::{fetch_x509, selector};
use passant_tests::daemon::Daemon;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;

use crate::judge::{Away, Client, Pace, unrecorded};
use crate::moment::Moment;
use crate::peers::{self, Peer};
use crate::report::{Report, say};
use crate::watcher::Watcher;
use crate::{decisions, spread};

/// How often each client asks for a JWT-SVID.
const JWT_EVERY: Duration = Duration::from_secs(10);
/// One client in so many is a Python and one a Rust program; the others are Go, the lightest.
const SHARE: usize = 12;

/// Runs the show for `length` with `workloads` clients whose SVIDs live for `ttl` seconds.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, length: Duration, workloads: usize, ttl: u32) -> anyhow::Result<()> {
    ensure!(workloads > 0, "without workloads there is nothing to see");
    peers::build(report)?;
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    // Beside the program under test, where executables may lie and links to the peers' are likely possible.
    let here = std::env::current_exe()?;
    let copies = tempfile::tempdir_in(here.parent().context("this program lies in a folder")?)?;
    let crew = register(&site, copies.path(), workloads, ttl).await?;
    let mut agent = start_agent(&site).await?;

    let socket = site.agent_socket("agent");
    let from = Moment::now();
    let mut watchers = Vec::new();
    for (peer, name, program) in &crew {
        let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
        let jwt = ("rotation", JWT_EVERY);
        watchers.push(Watcher::start(*peer, program, name, &id, &socket, site.dir(), jwt)?);
    }
    say(&format!("{} clients started; the server is killed in {} s", watchers.len(), length.as_secs() / 2));
    tokio::time::sleep(length / 2).await;
    let killed = Moment::now();
    server.kill()?;
    let server = site.start_server().await?;
    let away = Away { from: killed, to: Moment::now() };
    say(&format!("server killed at {}, answered again at {}", away.from, away.to));
    tokio::time::sleep(length.saturating_sub(Moment::now().since(from))).await;

    let mut counts: BTreeMap<Peer, usize> = BTreeMap::new();
    let mut clients = Vec::new();
    let mut ended = Vec::new();
    for watcher in watchers {
        *counts.entry(watcher.peer).or_default() += 1;
        match watcher.stop() {
            Ok(client) => clients.push(client),
            Err(why) => ended.push(format!("{why:#}")),
        }
    }
    report.none("every client watched to the end", &ended, "");
    report.fact("the agent lived through it", alive(&mut agent));
    report.fact("the agent stops when told to", agent.stop().await.map(|()| String::new()));
    report.fact("the server stops when told to", server.stop().await.map(|()| String::new()));
    let decided = decisions::read(&site.path("server-data").join("decisions"))?;

    let shares: Vec<String> = counts.iter().map(|(peer, count)| format!("{} {count}", peer.name())).collect();
    say(&format!("clients: {} ({})", clients.len(), shares.join(", ")));
    judge(report, &clients, &decided, (from, away), Pace::of(Duration::from_secs(ttl.into())));
    Ok(())
}

/// Every fact about what the clients received.
fn judge(
    report: &Report,
    clients: &[Client],
    decided: &[decisions::Decision],
    (from, away): (Moment, Away),
    pace: Pace,
) {
    let all = |of: &dyn Fn(&Client) -> Vec<String>| clients.iter().flat_map(of).collect::<Vec<_>>();
    let svids: usize = clients.iter().map(|client| client.svids().len()).sum();
    let jwts: usize = clients.iter().map(|client| client.jwt().len()).sum();
    let rotations: Vec<usize> = clients.iter().map(|client| client.rotations().len()).collect();
    let (fewest, most) = (rotations.iter().min().unwrap_or(&0), rotations.iter().max().unwrap_or(&0));
    let rotated: usize = rotations.iter().sum();
    let (least, limit) = pace.rotations(clients.first().map_or(Duration::ZERO, |one| one.ended.since(from)));
    say(&format!("received: {svids} X509-SVIDs, {rotated} of them by rotation; {jwts} JWT-SVIDs"));
    say(&format!("rotations of one client: {fewest} to {most}, expected {least} to {limit}"));
    let (lines, busiest) = spread::histogram(clients, from);
    say("rotations in each second:");
    lines.iter().for_each(|line| say(line));
    say(&format!("busiest second: {busiest} of {} clients", clients.len()));

    report.none("no client ever held an expired SVID", &all(&Client::expired), &format!("{svids} SVIDs"));
    report.none("every SVID was the client's own and verified", &all(&Client::wrong), "");
    report.none("no client saw a failure", &all(&Client::failures), "");
    let late = all(&|client| client.out_of_pace(pace, Some(away)));
    report.none("rotations come at half the life", &late, &format!("{rotated} rotations"));
    let unseen = all(&|client| client.unseen(decided, Some(away)));
    report.none("every SVID on record was seen by its client", &unseen, "");
    report.none("every SVID seen is on record, for one client", &unrecorded(clients, decided), "");
    let cycles = spread::judged_cycles(clients, Some(away));
    for cycle in &cycles {
        say(&format!(
            "cycle {}: {} rotations, at most {} in one second",
            cycle.number, cycle.rotations, cycle.busiest
        ));
    }
    match cycles.len() {
        0 => report.fact("rotations are spread", Err(anyhow::anyhow!("the show was too short to tell"))),
        judged => report.none(
            "rotations are spread",
            &spread::bunched(&cycles, clients.len()),
            &format!("{judged} cycles judged"),
        ),
    }
}

type Crew = Vec<(Peer, String, peers::Program)>;

/// Copies the programs and registers each, and this one, by its path.
async fn register(site: &Site, dir: &Path, workloads: usize, ttl: u32) -> anyhow::Result<Crew> {
    let few = (workloads / SHARE).max(usize::from(workloads >= Peer::ALL.len()));
    let ttl = i32::try_from(ttl)?;
    let by_path = |path: &Path| selector("unix", &format!("path:{}", path.display()));
    let mut crew = Vec::new();
    for n in 0..workloads {
        let peer = if n < few {
            Peer::Python
        } else if n < 2 * few {
            Peer::Rust
        } else {
            Peer::Go
        };
        let name = format!("{}-{n:02}", peer.name());
        let program = peer.copy(dir, &name)?;
        let entry = |entry: &mut passant_proto::types::Entry| {
            entry.selectors = vec![by_path(&program.path)];
            entry.x509_svid_ttl = ttl;
            entry.jwt_svid_ttl = ttl;
        };
        site.register(&format!("/{name}"), entry).await?;
        crew.push((peer, name, program));
    }
    let own = std::env::current_exe()?;
    site.register("/show", |entry| entry.selectors = vec![by_path(&own)]).await?;
    Ok(crew)
}

/// Starts an agent that tells workloads apart by path, and waits until it holds the SVIDs of all of them.
async fn start_agent(site: &Site) -> anyhow::Result<Daemon> {
    let attestor = "method = \"join_token\"\n[workload_attestors.unix]\ndiscover_workload_path = true\n\
                    workload_size_limit = -1\n";
    site.configure_agent("agent", attestor, "")?;
    let token = site.join_token().await?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    let socket = site.agent_socket("agent");
    eventually("the agent to serve", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) })
        .await
        .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    Ok(agent)
}

fn alive(daemon: &mut Daemon) -> anyhow::Result<String> {
    match daemon.ended()? {
        None => Ok(String::new()),
        Some(status) => anyhow::bail!("it ended: {status}; its log:\n{}", daemon.log()),
    }
}
