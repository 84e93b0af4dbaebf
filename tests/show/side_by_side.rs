//! Do a SPIRE agent, which asks every five seconds, and this project's agent make of one server the same truth, whatever
//! changes there?
//!
//! Both agents stand for the same node, and the same programs run at both, each with open go-spiffe watches of X.509 and
//! of JWT bundles. After each change of entries, authorities and foreign bundles what they hold is compared with what the
//! server says, SVID by SVID and authority by authority.

mod authorities;
mod partner;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::types;
use passant_tests::api::{fetch_x509, selector, wire_id};
use passant_tests::daemon::Daemon;
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;

use self::authorities::Kind;
use crate::follower::Follower;
use crate::handshakes::{SHOW, validated};
use crate::held::Watch;
use crate::latency::Latencies;
use crate::moment::Moment;
use crate::peers::{self, Peer};
use crate::registrar::Registrar;
use crate::report::{Report, say};
use crate::shipped;
use crate::spire::Spire;
use crate::synced::Synced;
use crate::truth::Truth;

/// Lifetime of the agents' own SVIDs and of all others: long enough for a sync to be missed, short enough to be renewed many
/// times.
const TTL: Duration = Duration::from_secs(120);
/// Programs, each of which runs at both agents.
const PROGRAMS: usize = 3;
/// How long a change may take to arrive: SPIRE's agents ask every 5 s, and wait longer when something fails.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// Trust domains that entries federate with.
const PARTNERS: [&str; 2] = ["one.test", "two.test"];

/// Whose agent, as the arrays here are ordered.
const NAMES: [&str; 2] = ["ours", "SPIRE's"];

/// What changes, one after the other and from the start again.
const CHANGES: [Change; 10] = [
    Change::Create,
    Change::Hint,
    Change::FederatesWith,
    Change::FederatedBundle,
    Change::Rotate(Kind::X509),
    Change::Create,
    Change::DnsNames,
    Change::FederatesWith,
    Change::Rotate(Kind::Jwt),
    Change::Delete,
];

/// One change at the server.
#[derive(Clone, Copy, Debug)]
enum Change {
    Create,
    Hint,
    DnsNames,
    FederatesWith,
    Delete,
    FederatedBundle,
    Rotate(Kind),
}

/// A program and its two runs.
struct Workload {
    path: PathBuf,
    /// At our agent and at SPIRE's.
    runs: [Follower; 2],
    entries: Vec<types::Entry>,
}

/// What is there while the show runs.
struct Stage<'a> {
    site: &'a Site,
    registrar: Registrar,
    workloads: Vec<Workload>,
    /// The Workload APIs of our agent and of SPIRE's.
    sockets: [PathBuf; 2],
}

/// What was seen.
#[derive(Default)]
struct Seen {
    /// How long changes took to arrive everywhere behind our agent and behind SPIRE's.
    times: [Latencies; 2],
    differing: Vec<String>,
    unverified: Vec<String>,
    rounds: usize,
}

/// Runs the show, or says loudly that it cannot.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, rounds: usize) -> anyhow::Result<()> {
    let Some(spire) = Spire::found(TTL)? else {
        say(
            "SKIPPED side-by-side: SPIRE_BIN_DIR does not name a directory with spire-server and spire-agent, so NOTHING was \
             compared",
        );
        return Ok(());
    };
    peers::build(report)?;
    let ttl = TTL.as_secs();
    let keys = format!(
        "agent_ttl = \"{ttl}s\"\ndefault_x509_svid_ttl = \"{ttl}s\"\ndefault_jwt_svid_ttl = \"{ttl}s\"\n"
    );
    let site = shipped::site(&ServerOptions { keys, tables: String::new() })?;
    let server = site.start_server().await?;
    // Beside the program under test, where executables may lie and links to the peers' are likely possible.
    let here = std::env::current_exe()?;
    let copies = tempfile::tempdir_in(here.parent().context("this program lies in a folder")?)?;
    for (nth, trust_domain) in PARTNERS.iter().enumerate() {
        partner::set(&site, trust_domain, nth).await?;
    }
    let own = selector("unix", &format!("path:{}", here.display()));
    site.register(SHOW, |entry| entry.selectors = vec![own]).await?;
    let sockets = [site.agent_socket("agent"), Spire::agent_socket(&site, "agent")];
    let (ours, spires) = start_agents(&site, &spire, &sockets).await?;
    let mut stage =
        Stage { registrar: Registrar::connect(&site).await?, site: &site, workloads: Vec::new(), sockets };
    stage.open(copies.path()).await?;
    let mut seen = Seen::default();
    for round in 0..rounds {
        stage.round(round, &mut seen).await?;
    }
    let synced = Synced::of(&ours).await?;
    tell(report, &seen, stage.workloads);
    let fact = synced.by_push(u64::try_from(seen.rounds)?);
    report.fact("our agent's view came by push", fact);
    report.fact("our agent stops when told to", ours.stop().await.map(|()| String::new()));
    report.fact("SPIRE's agent stops when told to", spires.stop().await.map(|()| String::new()));
    report.fact("the server stops when told to", server.stop().await.map(|()| String::new()));
    Ok(())
}

/// Ours and SPIRE's, both attested by join tokens that stand for the same alias.
async fn start_agents(
    site: &Site,
    spire: &Spire,
    sockets: &[PathBuf; 2],
) -> anyhow::Result<(Daemon, Daemon)> {
    let ours = shipped::spawn_agent(site, "agent").await?;
    let port = site.address().rsplit(':').next().context("a port")?.parse()?;
    let (attestor, bundle) = ("NodeAttestor \"join_token\" { plugin_data {} }", site.bundle_file());
    let token = site.join_token().await?;
    let spires = spire.spawn_agent_by(site, "agent", port, (attestor, &bundle), &["-joinToken", &token])?;
    for (socket, agent) in sockets.iter().zip([&ours, &spires]) {
        eventually("the agent to serve", READY_WITHIN, || async { Ok(fetch_x509(socket).await?) })
            .await
            .with_context(|| format!("its log:\n{}", agent.log()))?;
    }
    Ok((ours, spires))
}

impl Stage<'_> {
    /// Starts every program at both agents, and waits until each has its first SVID.
    async fn open(&mut self, copies: &std::path::Path) -> anyhow::Result<()> {
        for nth in 0..PROGRAMS {
            let name = format!("go-{nth}");
            let program = Peer::Go.copy(copies, &name)?;
            let entry = entry(&format!("/{name}"), &program.path);
            let (entries, _) = self.registrar.create(vec![entry]).await?;
            let run = |at: usize| {
                let name = format!("{name}-{at}");
                Follower::start(&program, &name, &self.sockets[at], self.site.dir(), 1)
            };
            let runs = [run(0)?, run(1)?];
            self.workloads.push(Workload { path: program.path.clone(), runs, entries });
        }
        let times = self.settled(Moment::now()).await?;
        for (name, time) in NAMES.iter().zip(times) {
            time.with_context(|| format!("the first SVIDs of {name}"))?;
        }
        Ok(())
    }

    /// Makes a change and compares.
    async fn round(&mut self, round: usize, seen: &mut Seen) -> anyhow::Result<()> {
        let change = CHANGES[round % CHANGES.len()];
        let changed = self.make(change, round).await;
        let changed = changed.with_context(|| format!("round {round}, {change:?}"))?;
        let mut words = Vec::new();
        for (side, time) in self.settled(changed).await?.into_iter().enumerate() {
            match time {
                Ok(time) => {
                    seen.times[side].push(time);
                    words.push(format!("{} after {:.2} s", NAMES[side], time.as_secs_f64()));
                }
                Err(why) => {
                    seen.differing.push(format!("round {round}, {change:?}, {}: {why:#}", NAMES[side]))
                }
            }
        }
        let [ours, spires] = &self.sockets;
        for (of, at, whose) in [(ours, spires, NAMES[0]), (spires, ours, NAMES[1])] {
            for at in [of, at] {
                if let Err(why) = validated(of, at).await {
                    seen.unverified
                        .push(format!("round {round}, a JWT-SVID of {whose} at {}: {why:#}", at.display()));
                }
            }
        }
        say(&format!("round {:>2}: {change:?}: {}", round + 1, words.join(", ")));
        seen.rounds += 1;
        Ok(())
    }

    /// Makes a change; gives when the server had acknowledged it.
    async fn make(&mut self, change: Change, round: usize) -> anyhow::Result<Moment> {
        let count = self.workloads.len();
        let workload = &mut self.workloads[round % count];
        let newest = workload.entries.len() - 1;
        let name = workload.runs[0].name.clone();
        let mut mask = types::EntryMask::default();
        match change {
            Change::Create => {
                let fresh = entry(&format!("/{name}/{round}"), &workload.path);
                let (made, at) = self.registrar.create(vec![fresh]).await?;
                workload.entries.extend(made);
                return Ok(at);
            }
            Change::Delete => {
                // Whoever has the most: each keeps one at least.
                let most = self.workloads.iter_mut().max_by_key(|one| one.entries.len());
                let gone = most.and_then(|most| most.entries.pop()).context("an entry")?;
                return self.registrar.delete(vec![gone.id]).await;
            }
            Change::FederatedBundle => {
                return partner::set(self.site, PARTNERS[round / CHANGES.len() % 2], round).await;
            }
            Change::Rotate(kind) => return self.rotate(kind).await,
            Change::Hint => {
                workload.entries[newest].hint = format!("hint-{round}");
                mask.hint = true;
            }
            Change::DnsNames => {
                workload.entries[newest].dns_names =
                    vec![format!("n{round}.example.org"), format!("m{round}.example.org")];
                mask.dns_names = true;
            }
            Change::FederatesWith => {
                // One, both, none.
                let some = [&PARTNERS[..1], &PARTNERS[..], &[]][round / 2 % 3];
                workload.entries[0].federates_with = some.iter().map(|one| (*one).to_owned()).collect();
                mask.federates_with = true;
                return self.registrar.update(workload.entries[0].clone(), mask).await;
            }
        }
        self.registrar.update(workload.entries[newest].clone(), mask).await
    }

    /// Waits until every watch holds what the server says; how long after `changed` it did, at our agent and at SPIRE's, or what
    /// differs.
    async fn settled(&self, changed: Moment) -> anyhow::Result<[anyhow::Result<Duration>; 2]> {
        let truth = Truth::read(self.site, &self.registrar).await?;
        let side = async |side: usize| {
            let mut latest = Duration::ZERO;
            for workload in &self.workloads {
                let due = truth.of_workload(NODE, &workload.path);
                let follower = &workload.runs[side];
                let right = |watch: &Watch| due.is_held_by(watch).is_ok();
                match follower.until("what the server says", ARRIVES_WITHIN, right).await {
                    Ok(watches) => {
                        let last = watches.iter().filter_map(|watch| watch.updated).max();
                        latest = latest.max(last.context("an update")?.since(changed));
                    }
                    Err(late) => {
                        follower
                            .now()
                            .iter()
                            .try_for_each(|watch| due.is_held_by(watch))
                            .context(follower.name.clone())?;
                        return Err(late);
                    }
                }
            }
            Ok(latest)
        };
        let (ours, spires) = tokio::join!(side(0), side(1));
        Ok([ours, spires])
    }
}

/// An entry for the processes of an executable.
fn entry(path: &str, executable: &std::path::Path) -> types::Entry {
    types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, path),
        parent_id: wire_id(TRUST_DOMAIN, NODE),
        selectors: vec![selector("unix", &format!("path:{}", executable.display()))],
        ..types::Entry::default()
    }
}

/// Says what was seen and which facts held.
fn tell(report: &Report, seen: &Seen, workloads: Vec<Workload>) {
    let (mut watches, mut ended) = (Vec::new(), Vec::new());
    for run in workloads.into_iter().flat_map(|workload| workload.runs.into_iter().enumerate()) {
        let (side, follower) = run;
        match follower.stop() {
            Ok(all) => watches.extend(all.into_iter().map(|watch| (side, watch))),
            Err(why) => ended.push(format!("{why:#}")),
        }
    }
    for (name, times) in NAMES.iter().zip(&seen.times) {
        say(&format!("changes arrived at workloads of {name}: {}", times.told()));
    }
    let all = |of: &dyn Fn(&Watch) -> &[String]| {
        watches.iter().flat_map(|(_, watch)| of(watch)).cloned().collect::<Vec<_>>()
    };
    let rounds = format!("{} rounds, {} programs at both agents", seen.rounds, PROGRAMS);
    report.none(
        "after each change the workloads of both agents hold what the server says",
        &seen.differing,
        &rounds,
    );
    let tokens = format!("{} JWT-SVIDs", seen.rounds * 4);
    report.none("JWT-SVIDs of each agent verify at both", &seen.unverified, &tokens);
    let updates: usize = watches.iter().map(|(_, watch)| watch.updates).sum();
    report.none("every SVID verified", &all(&|watch| &watch.wrong), &format!("{updates} updates"));
    report.none("no watch ever held an expired SVID", &all(&|watch| &watch.expired), "");
    let failures = watches.iter().filter(|(side, _)| *side == 0).flat_map(|(_, watch)| &watch.failures);
    report.none("no watch at our agent saw a failure", &failures.cloned().collect::<Vec<_>>(), "");
    report.none("every program watched to the end", &ended, "");
}

/// What the server's `statuses` say, as long as all is well.
fn all_well(statuses: impl IntoIterator<Item = Option<types::Status>>) -> anyhow::Result<()> {
    for status in statuses {
        let status = status.context("a status")?;
        ensure!(status.code == 0, "refused with {}: {}", status.code, status.message);
    }
    Ok(())
}
