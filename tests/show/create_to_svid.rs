//! How long does it take from the acknowledgement of a new entry until go-spiffe has its SVID on an open watch?
//!
//! Both ends are measured by the same machine's clock: the answer to the operator in this process, the update in the Go
//! program, as the first thing that it does. Nothing of this project's client code is on the way to the latter.

use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::types;
use passant_tests::api::{selector, wire_id};
use passant_tests::daemon::Daemon;
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use tokio::time::sleep;

use crate::follower::Follower;
use crate::handshakes::spiffe_id;
use crate::held::Watch;
use crate::latency::{Latencies, millis};
use crate::moment::Moment;
use crate::peers::{self, Peer, Program};
use crate::registrar::Registrar;
use crate::report::{Report, say};
use crate::shipped;
use crate::synced::Synced;

/// How long an SVID may take to arrive before it counts as one that does not.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// So many that do not arrive are enough to end the show.
const MISSING_MOST: usize = 5;
/// What 99 of 100 are to stay below.
const AIM: Duration = Duration::from_millis(100);
/// Entries of a workload besides its first, before they are deleted.
const EXTRA_MOST: usize = 4;
/// Between two creations there are up to so many milliseconds, so that they come at any phase of whatever ticks.
const PAUSES: usize = 100;

/// What to measure.
pub(crate) struct Plan {
    pub(crate) creations: usize,
    pub(crate) workloads: usize,
    /// Of each workload, each on a connection of its own.
    pub(crate) watches: usize,
}

/// A program with an entry of its own from the beginning.
struct Workload {
    program: Program,
    follower: Follower,
    /// Entries that it got meanwhile, with their SPIFFE IDs.
    extra: Vec<(String, String)>,
}

/// What was measured.
#[derive(Default)]
struct Measured {
    /// From the call until the SVID was there.
    asked: Latencies,
    /// From the acknowledgement.
    acknowledged: Latencies,
    /// From the acknowledgement of a deletion until nobody had the SVIDs any more.
    deleted: Latencies,
    missing: Vec<String>,
    staying: Vec<String>,
}

/// Runs the show.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, plan: &Plan) -> anyhow::Result<()> {
    ensure!(plan.workloads > 0 && plan.watches > 0, "without watches there is nothing to see");
    peers::build(report)?;
    let site = shipped::site(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let registrar = Registrar::connect(&site).await?;
    // Beside the program under test, where executables may lie and links to the peer's are likely possible.
    let here = std::env::current_exe()?;
    let copies = tempfile::tempdir_in(here.parent().context("this program lies in a folder")?)?;
    let agent = shipped::spawn_agent(&site, "agent").await?;
    let mut crew = Vec::new();
    for nth in 0..plan.workloads {
        let name = format!("go-{nth:02}");
        let program = Peer::Go.copy(copies.path(), &name)?;
        registrar.create(vec![entry(&format!("/{name}"), &program)]).await?;
        crew.push((name, program));
    }
    let crew = open(&site, crew, plan.watches, &agent).await?;
    say(&format!("{} workloads with {} open watches each", plan.workloads, plan.watches));
    let (measured, crew) = measure(&registrar, crew, plan.creations).await?;
    let synced = Synced::of(&agent).await?;
    tell(report, &measured, crew, plan.creations);
    say(&format!("how the agent synced: {synced}"));
    report.fact("the agent stops when told to", agent.stop().await.map(|()| String::new()));
    report.fact("the server stops when told to", server.stop().await.map(|()| String::new()));
    Ok(())
}

/// Starts all workloads and waits until each watch has its first SVID.
async fn open(
    site: &Site,
    crew: Vec<(String, Program)>,
    watches: usize,
    agent: &Daemon,
) -> anyhow::Result<Vec<Workload>> {
    let socket = site.agent_socket("agent");
    site.agent_serves("agent", agent).await?;
    let mut workloads = Vec::new();
    for (name, program) in crew {
        let follower = Follower::start(&program, &name, &socket, site.dir(), watches)?;
        workloads.push(Workload { program, follower, extra: Vec::new() });
    }
    for workload in &workloads {
        let own = spiffe_id(&format!("/{}", workload.follower.name));
        let first = workload.follower.until("its first SVID", READY_WITHIN, |watch| watch.has(&own)).await;
        first.with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    }
    Ok(workloads)
}

/// Creates one entry after the other, and waits for each.
async fn measure(
    registrar: &Registrar,
    mut crew: Vec<Workload>,
    creations: usize,
) -> anyhow::Result<(Measured, Vec<Workload>)> {
    let mut measured = Measured::default();
    let count = crew.len();
    for nth in 0..creations {
        let workload = &mut crew[nth % count];
        let path = format!("/{}/{nth}", workload.follower.name);
        let id = spiffe_id(&path);
        let asked = Moment::now();
        let (made, acknowledged) = registrar.create(vec![entry(&path, &workload.program)]).await?;
        let made = made.into_iter().next().context("an entry")?.id;
        workload.extra.push((made, id.clone()));
        match workload.follower.until("a new SVID", ARRIVES_WITHIN, |watch| watch.has(&id)).await {
            Ok(watches) => {
                // The last of its watches counts.
                let seen = watches.iter().filter_map(|watch| watch.since.get(&id)).max().copied();
                let seen = seen.context("it is there")?;
                measured.asked.push(seen.since(asked));
                measured.acknowledged.push(seen.since(acknowledged));
            }
            Err(why) => measured.missing.push(format!("{id}: {why:#}")),
        }
        if measured.missing.len() >= MISSING_MOST {
            break;
        }
        if (nth + 1) % (count * EXTRA_MOST) == 0 || nth + 1 == creations {
            clear(registrar, &mut crew, &mut measured).await?;
        }
        // Any order that repeats late is as good as chance, and the same each time.
        sleep(Duration::from_millis(u64::try_from(nth * 37 % PAUSES)?)).await;
    }
    Ok((measured, crew))
}

/// Deletes what the workloads got meanwhile.
async fn clear(registrar: &Registrar, crew: &mut [Workload], measured: &mut Measured) -> anyhow::Result<()> {
    let ids = crew.iter().flat_map(|workload| &workload.extra).map(|(id, _)| id.clone()).collect();
    let acknowledged = registrar.delete(ids).await?;
    for workload in crew {
        let gone = std::mem::take(&mut workload.extra);
        if gone.is_empty() {
            continue;
        }
        let none = |watch: &Watch| !gone.iter().any(|(_, id)| watch.has(id));
        match workload.follower.until("what was deleted to go", ARRIVES_WITHIN, none).await {
            Ok(watches) => {
                let last = watches.iter().filter_map(|watch| watch.updated).max().context("an update")?;
                measured.deleted.push(last.since(acknowledged));
            }
            Err(why) => measured.staying.push(format!("{why:#}")),
        }
    }
    Ok(())
}

/// An entry for the processes of `program`.
fn entry(path: &str, program: &Program) -> types::Entry {
    types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, path),
        parent_id: wire_id(TRUST_DOMAIN, NODE),
        selectors: vec![selector("unix", &format!("path:{}", program.path.display()))],
        ..types::Entry::default()
    }
}

/// Says what was measured and which facts held.
fn tell(report: &Report, measured: &Measured, crew: Vec<Workload>, creations: usize) {
    let (mut watches, mut ended) = (Vec::new(), Vec::new());
    for workload in crew {
        let own = spiffe_id(&format!("/{}", workload.follower.name));
        match workload.follower.stop() {
            Ok(all) => watches.extend(all.into_iter().map(|watch| (own.clone(), watch))),
            Err(why) => ended.push(format!("{why:#}")),
        }
    }
    say(&format!("acknowledged to seen by go-spiffe: {}", measured.acknowledged.told()));
    measured.acknowledged.histogram().iter().for_each(|line| say(line));
    say(&format!("the call to seen by go-spiffe: {}", measured.asked.told()));
    say(&format!("deletion acknowledged to gone from all watches: {}", measured.deleted.told()));
    let nearly = measured.acknowledged.percentile(99);
    let verdict = if nearly <= AIM { "met" } else { "missed" };
    say(&format!("aim {verdict}: p99 is {} ms, the aim is at most {} ms", millis(nearly), millis(AIM)));

    let all = |of: &dyn Fn(&Watch) -> &[String]| {
        watches.iter().flat_map(|(_, watch)| of(watch)).cloned().collect::<Vec<_>>()
    };
    let updates: usize = watches.iter().map(|(_, watch)| watch.updates).sum();
    let arrived = format!("{} of {creations}", measured.acknowledged.len());
    report.none(
        "the SVID of every new entry arrived at all watches of its workload",
        &measured.missing,
        &arrived,
    );
    report.none("what was deleted went from all watches", &measured.staying, "");
    let beyond: Vec<String> = watches
        .iter()
        .filter(|(own, watch)| watch.svids.len() != 1 || !watch.has(own))
        .map(|(own, watch)| format!("{own} holds {} SVIDs", watch.svids.len()))
        .collect();
    report.none("in the end each watch holds what it began with", &beyond, "");
    report.none("every SVID verified", &all(&|watch| &watch.wrong), &format!("{updates} updates"));
    report.none("no watch ever held an expired SVID", &all(&|watch| &watch.expired), "");
    report.none("no watch saw a failure", &all(&|watch| &watch.failures), "");
    report.none("every workload watched to the end", &ended, "");
}
