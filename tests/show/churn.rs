//! Do both daemons stay as small as they were, and every workload right, through a day's changes of entries and rotations of
//! the authorities in minutes?
//!
//! Entries are created, changed and deleted all the time; most are of other nodes, some of this one's processes that never
//! come, and a few of foreign programs with open watches. The authorities live so shortly that they rotate by themselves;
//! some are tainted and revoked besides.

mod changes;
mod memory;
mod rotations;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use passant_tests::api::{fetch_x509, selector};
use passant_tests::daemon::Daemon;
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use tokio::time::{Instant, sleep_until};

use self::changes::Changed;
use self::memory::Curve;
use self::rotations::Rotated;
use crate::follower::Follower;
use crate::handshakes::spiffe_id;
use crate::held::Watch;
use crate::judge::Client;
use crate::peers::{self, Peer, Program};
use crate::registrar::Registrar;
use crate::report::{Report, say};
use crate::shipped;
use crate::synced::Synced;
use crate::truth::Truth;
use crate::watcher::Watcher;

/// Programs with open watches whose entries come and go.
const WORKLOADS: usize = 6;
/// Watches of each.
const WATCHES: usize = 2;
/// How often each program whose entry stays asks for a JWT-SVID.
const JWT_EVERY: Duration = Duration::from_secs(5);
/// How long the last changes may take to arrive.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// The part of the time in which all changes are to be made: the rest is for what is late.
const BUSY: f64 = 0.95;
/// The lifetime of an authority, in lifetimes of what it signs.
const LEAVES: u32 = 6;
/// So many rotations besides those asked for, and the beginning of the first, fit into the time.
const SPARE: f64 = 0.6;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Entries created, changed and deleted, in all.
    pub(crate) changes: usize,
    /// Of the X.509 and of the JWT authority.
    pub(crate) rotations: usize,
    /// In which all of it is done.
    pub(crate) length: Duration,
    /// Registration entries at any time.
    pub(crate) entries: usize,
}

impl Plan {
    /// How long an authority lives. Each is prepared when the one before has half of its life left, and so they succeed each
    /// other twice in a life.
    fn authority(&self) -> Duration {
        let rotations = u32::try_from(self.rotations).map_or(f64::from(u32::MAX), f64::from);
        let period = self.length.div_f64(rotations + SPARE);
        Duration::from_secs((period * 2).as_secs())
    }

    /// How long SVIDs live.
    fn svid(&self) -> Duration {
        Duration::from_secs((self.authority() / LEAVES).as_secs())
    }

    fn server(&self) -> ServerOptions {
        let (authority, svid) = (self.authority().as_secs(), self.svid().as_secs());
        let keys = format!(
            "ca_ttl = \"{authority}s\"\ndefault_x509_svid_ttl = \"{svid}s\"\ndefault_jwt_svid_ttl = \"{svid}s\"\n\
             agent_ttl = \"{svid}s\"\n"
        );
        ServerOptions { keys, tables: String::new() }
    }
}

/// A program with an entry that stays.
struct Steady {
    peer: Peer,
    name: String,
    program: Program,
}

/// Runs the show.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, plan: &Plan) -> anyhow::Result<()> {
    ensure!(plan.rotations > 0, "without rotations there is nothing to see");
    ensure!(
        plan.svid() >= Duration::from_secs(6),
        "SVIDs of {:?} are too short: take more time",
        plan.svid()
    );
    peers::build(report)?;
    let site = shipped::site(&plan.server())?;
    let server = site.start_server().await?;
    // Beside the program under test, where executables may lie and links to the peers' are likely possible.
    let here = std::env::current_exe()?;
    let copies = tempfile::tempdir_in(here.parent().context("this program lies in a folder")?)?;
    let programs: Vec<Program> = (0..WORKLOADS)
        .map(|nth| Peer::Go.copy(copies.path(), &format!("go-{nth}")))
        .collect::<Result<_, _>>()?;
    let paths: Vec<PathBuf> = programs.iter().map(|program| program.path.clone()).collect();
    let mut crowd = changes::Crowd::seed(&Registrar::connect(&site).await?, &paths, plan.entries).await?;
    let steady = register_steady(&site, copies.path()).await?;
    let agent = shipped::spawn_agent(&site, "agent").await?;
    let socket = site.agent_socket("agent");
    eventually("the agent to serve", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) })
        .await
        .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    let mut followers = Vec::new();
    for (nth, program) in programs.iter().enumerate() {
        followers.push(Follower::start(program, &format!("go-{nth}"), &socket, site.dir(), WATCHES)?);
    }
    for follower in &followers {
        follower.until("its first SVIDs", READY_WITHIN, |watch| watch.updated.is_some()).await?;
    }
    let mut watchers = Vec::new();
    for Steady { peer, name, program } in &steady {
        let (id, jwt) = (spiffe_id(&format!("/{name}")), ("churn", JWT_EVERY));
        watchers.push(Watcher::start(*peer, program, name, &id, &socket, site.dir(), jwt)?);
    }
    say(&format!(
        "{} entries; authorities live {} s, SVIDs {} s; {} changes in {} s",
        plan.entries,
        plan.authority().as_secs(),
        plan.svid().as_secs(),
        plan.changes,
        plan.length.as_secs()
    ));

    let (began, end) = (Instant::now(), Instant::now() + plan.length);
    let pids = [server.pid(), agent.pid()];
    let (changed, rotated, curve) = tokio::join!(
        changes::run(&site, &mut crowd, plan.changes, plan.length.mul_f64(BUSY)),
        rotations::run(&site, &followers, plan.svid(), end),
        memory::watch(pids, began, plan.length),
    );
    sleep_until(end).await;
    let (rotated, curve) = (rotated?, curve?);
    let settled = settled(&site, &followers, &paths, &crowd).await;
    let synced = Synced::of(&agent).await?;
    judge_changes(report, plan, &changed, settled);
    judge_watches(report, followers, watchers);
    judge_rotations(report, plan, &rotated);
    judge_memory(report, plan, &curve);
    say(&format!("how the agent synced: {synced}"));
    for (name, daemon) in [("agent", agent), ("server", server)] {
        report.fact(&format!("the {name} lives through it, and stops when told to"), stopped(daemon).await);
    }
    Ok(())
}

/// A program of each peer whose entry stays, and this program.
async fn register_steady(site: &Site, copies: &std::path::Path) -> anyhow::Result<Vec<Steady>> {
    let mut steady = Vec::new();
    for peer in Peer::ALL {
        let name = format!("steady-{}", peer.name());
        let program = peer.copy(copies, &name)?;
        let path = selector("unix", &format!("path:{}", program.path.display()));
        site.register(&format!("/{name}"), |entry| entry.selectors = vec![path]).await?;
        steady.push(Steady { peer, name, program });
    }
    let own = selector("unix", &format!("path:{}", std::env::current_exe()?.display()));
    site.register("/show", |entry| entry.selectors = vec![own]).await?;
    Ok(steady)
}

/// Waits until the server holds what it acknowledged and each watch what the server says.
async fn settled(
    site: &Site,
    followers: &[Follower],
    paths: &[PathBuf],
    crowd: &changes::Crowd,
) -> anyhow::Result<String> {
    let from = Instant::now();
    let registrar = Registrar::connect(site).await?;
    let books = crowd.books();
    eventually("everybody to hold what the entries say", SETTLES_WITHIN, || async {
        let truth = Truth::read(site, &registrar).await?;
        let held = truth.entries.iter().filter(|entry| books.contains_key(&*entry.id));
        for entry in held.clone() {
            let (hint, dns_names) = books[&*entry.id];
            ensure!((&*entry.hint, &*entry.dns_names) == (hint, dns_names), "the server has {entry:?}");
        }
        ensure!(held.count() == books.len(), "the server lost entries");
        let stays = truth.entries.len() - books.len();
        ensure!(stays == Peer::ALL.len() + 2, "the server has entries that were deleted");
        for (follower, path) in followers.iter().zip(paths) {
            let due = truth.of_workload(NODE, path);
            for watch in follower.now() {
                due.is_held_by(&watch).with_context(|| follower.name.clone())?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(format!("{} entries, seen {:.1} s after the end", books.len(), from.elapsed().as_secs_f64()))
}

async fn stopped(mut daemon: Daemon) -> anyhow::Result<String> {
    let ended = daemon.ended()?;
    ensure!(ended.is_none(), "it ended: {ended:?}; its log:\n{}", daemon.log());
    daemon.stop().await.map(|()| String::new())
}

fn judge_changes(report: &Report, plan: &Plan, changed: &Changed, settled: anyhow::Result<String>) {
    say(&format!("changes: {}", changed.latencies.told()));
    let most = plan.length.as_secs();
    let all = format!(
        "{} in {} s, {} creations, updates and deletions",
        changed.acknowledged(),
        changed.took.as_secs(),
        changed.told()
    );
    report.none("every change was acknowledged", &changed.failures, &all);
    let done = changed.acknowledged() == plan.changes && changed.took <= plan.length;
    let outcome =
        if done { Ok(all) } else { Err(anyhow!("{all}; asked for were {} in {most} s", plan.changes)) };
    report.fact("all changes were made in time", outcome);
    report.fact("in the end everybody holds exactly what the entries say", settled);
}

/// What the workloads saw.
fn judge_watches(report: &Report, followers: Vec<Follower>, watchers: Vec<Watcher>) {
    let (mut watches, mut clients, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for follower in followers {
        match follower.stop() {
            Ok(all) => watches.extend(all),
            Err(why) => ended.push(format!("{why:#}")),
        }
    }
    for watcher in watchers {
        match watcher.stop() {
            Ok(client) => clients.push(client),
            Err(why) => ended.push(format!("{why:#}")),
        }
    }
    report.none("every client watched to the end", &ended, "");
    let all = |of: &dyn Fn(&Watch) -> &[String], too: &dyn Fn(&Client) -> Vec<String>| {
        let of_watches = watches.iter().flat_map(of).cloned();
        of_watches.chain(clients.iter().flat_map(too)).collect::<Vec<_>>()
    };
    let updates: usize = watches.iter().map(|watch| watch.updates).sum();
    let jwts: usize = clients.iter().map(|client| client.jwt().len()).sum();
    let seen = format!("{updates} updates of {} watches, {jwts} JWT-SVIDs", watches.len() + clients.len());
    report.none("nobody ever held an expired SVID", &all(&|watch| &watch.expired, &Client::expired), &seen);
    report.none(
        "every SVID was its workload's own and verified",
        &all(&|watch| &watch.wrong, &Client::wrong),
        "",
    );
    report.none("no client saw a failure", &all(&|watch| &watch.failures, &Client::failures), "");
}

fn judge_rotations(report: &Report, plan: &Plan, rotated: &Rotated) {
    let counts =
        format!("{} of X.509, {} of JWT; {} tainted and revoked", rotated.x509, rotated.jwt, rotated.revoked);
    let enough = rotated.x509.min(rotated.jwt) >= plan.rotations;
    let outcome =
        if enough { Ok(counts) } else { Err(anyhow!("{counts}; asked for are {}", plan.rotations)) };
    report.fact("the authorities rotated", outcome);
    report.none(
        "what was revoked went from every bundle",
        &rotated.failures,
        &format!("{} of them", rotated.revoked),
    );
    let least = rotated.signers.iter().min().copied().unwrap_or(0);
    let seen = format!("each workload saw at least {least} authorities sign, one after the other");
    let outcome = if least > plan.rotations { Ok(seen) } else { Err(anyhow!(seen)) };
    report.fact("every rotation reached every workload", outcome);
}

fn judge_memory(report: &Report, plan: &Plan, curve: &Curve) {
    curve.table().iter().for_each(|line| say(line));
    for (nth, name) in ["server", "agent"].into_iter().enumerate() {
        let fact = format!(
            "the {name} is at the end at most {}x as large as at one quarter",
            Curve::most(plan.length)
        );
        report.fact(&fact, curve.flat(nth, plan.length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_live_so_long_that_the_rotations_asked_for_fit_and_few_more() {
        let plan =
            |rotations, secs| Plan { changes: 1, rotations, length: Duration::from_secs(secs), entries: 1 };
        for (rotations, secs) in [(24, 1200), (2, 90), (1, 60)] {
            let plan = plan(rotations, secs);
            // The first comes after 1.3 periods, each other a period after the one before.
            let period = plan.authority().as_secs_f64() / 2.0;
            let last = period * (0.3 + rotations as f64);
            assert!(last < secs as f64 && last + 2.0 * period > secs as f64, "{plan:?}: {last}");
        }
        assert_eq!(plan(24, 1200).svid().as_secs(), 16);
    }
}
