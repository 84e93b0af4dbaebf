//! Does everything that was acknowledged survive when the power fails, and when the disk fails for a while?
//!
//! A real server, and now and then a real agent, keep their data on a disk made of FUSE. Clients change entries in small
//! and large batches, mint SVIDs, take join tokens and ban agents, while authorities rotate. After a number of changes and
//! syncs that the seed chooses the disk goes dark, in the middle of whatever is going on, in a start as well; the daemons
//! are killed, and start again on what a disk may then hold. Where a cut is not survived, a fresh disk takes its place.

mod image;
mod life;
mod mount;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use passant_tests::api::fetch_x509;
use passant_tests::daemon::Daemon;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;

use self::image::{Cut, Dice};
use self::life::Told;
use self::mount::{Disk, Mounted, Trouble};
use crate::decisions;
use crate::moment::Moment;
use crate::program::Program;
use crate::report::{Report, say};
use crate::watch_log::same_serial;

/// Clients that change entries.
const CLIENTS: usize = 3;
/// One cut in so many falls into a start of the server.
const STARTS: usize = 4;
/// In one round of so many an agent attests, and loses its power with the server.
const AGENTS: usize = 4;
/// Cuts that a planted bug may take to be found.
const ABLATION_CUTS: usize = 60;
/// How long a cut is waited for.
const DARK_WITHIN: Duration = Duration::from_secs(30);
/// How long after the disk works again the server may take to do so, the longest pause between two attempts included.
const HEALED_WITHIN: Duration = Duration::from_secs(40);
/// Authorities rotate several times in a show.
const KEYS: &str =
    "ca_ttl = \"2m\"\nagent_ttl = \"1m\"\ndefault_x509_svid_ttl = \"15s\"\ndefault_jwt_svid_ttl = \"15s\"\n";

/// What the rounds bring to light.
#[derive(Default)]
struct Findings {
    lost: Vec<String>,
    unrecorded: Vec<String>,
    not_started: Vec<String>,
    agents: Vec<String>,
    stuck: Vec<String>,
    cuts: BTreeMap<(Cut, &'static str), usize>,
    unsynced: usize,
    steps: u64,
    agents_back: usize,
    healed: BTreeMap<&'static str, u64>,
}

/// One disk, with what lives on it.
struct World {
    program: Program,
    site: Site,
    disk: Disk,
    told: Told,
    dice: Dice,
    /// Changes and syncs of the disk that are counted already.
    steps: u64,
    /// Agents configured so far.
    agents: usize,
    /// An agent that was running when the power failed: its name and token.
    agent: Option<(String, String)>,
}

/// Runs the show with so many `cuts`, chosen by `seed`.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, cuts: usize, seed: u64) -> anyhow::Result<()> {
    report.fact("this machine can have a fake disk", Disk::possible().map(|()| String::new()));
    Disk::possible()?;
    // Built before a disk is there to be left behind.
    let program = Program::sound();
    let mut findings = Findings::default();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut recorded = 0;
    let mut done = 0;
    let mut seed = seed;
    while done < cuts {
        let mut world = World::new(program.clone(), seed)?;
        say(&format!("seed {seed}: a fresh disk, after {done} cuts"));
        while done < cuts {
            done += 1;
            let is_well = world.round(done, &mut findings).await?;
            if !is_well {
                break;
            }
        }
        if done == cuts {
            world.troubles(cuts, &mut findings).await?;
        }
        let ledger = world.told.ledger();
        recorded += ledger.recorded;
        ledger.counts.iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
        seed += 1;
    }
    let counted: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    say(&format!("acknowledged: {}", counted.join(", ")));
    for ((cut, phase), count) in &findings.cuts {
        say(&format!("{count} cuts {phase} that left {cut:?} of what was not synced"));
    }
    let remark = format!(
        "{cuts} cuts, {} changes and syncs, {} changes not synced when the power failed",
        findings.steps, findings.unsynced
    );
    report.none("the server starts after every cut", &findings.not_started, &remark);
    report.none("all that was acknowledged is there after every cut", &findings.lost, "");
    report.none(
        "no serial was received without an intent on record",
        &findings.unrecorded,
        &recorded.to_string(),
    );
    let back = format!("{} agents", findings.agents_back);
    report.none("an agent comes back with what its disk still holds", &findings.agents, &back);
    if findings.healed.is_empty() {
        findings.stuck.push("no server lived to see its disk fail".to_owned());
    }
    let healed: Vec<String> =
        findings.healed.iter().map(|(what, failures)| format!("{what}: {failures} failures")).collect();
    report.none(
        "the server works again when its disk does, without a restart",
        &findings.stuck,
        &healed.join(", "),
    );
    report.fact(
        "with the store's own syncs taken out, the same cuts lose what was acknowledged",
        ablated(seed).await,
    );
    Ok(())
}

/// Cuts the power under a server that does not sync its store, until that is noticed. Gives what was noticed.
async fn ablated(seed: u64) -> anyhow::Result<String> {
    let mut findings = Findings::default();
    let mut world = World::new(Program::with_bug("store_sync"), seed)?;
    for cut in 1..=ABLATION_CUTS {
        if world.round(cut, &mut findings).await? {
            continue;
        }
        let found = [findings.lost, findings.unrecorded, findings.not_started].concat();
        let first = found.first().context("a round went wrong without a word")?;
        return Ok(format!("noticed at the start after {first}"));
    }
    bail!("{ABLATION_CUTS} cuts were survived: the harness does not see what it is there for")
}

impl World {
    fn new(program: Program, seed: u64) -> anyhow::Result<Self> {
        let site = Site::new(&ServerOptions { keys: KEYS.to_owned(), tables: String::new() })?;
        let at = site.path("disk");
        fs::create_dir(&at)?;
        let config = fs::read_to_string(site.server_config())?;
        let data = site.path("server-data").display().to_string();
        let on_disk = at.join("server-data").display().to_string();
        fs::write(site.server_config(), config.replace(&data, &on_disk).replace("\"debug\"", "\"info\""))?;
        let (disk, dice) = (Disk::new(&at), Dice::new(seed));
        Ok(Self { program, site, disk, told: Told::default(), dice, steps: 0, agents: 0, agent: None })
    }

    /// Starts the server, compares, lets clients change things, and cuts the power. Whether the disk can be used further.
    async fn round(&mut self, number: usize, findings: &mut Findings) -> anyhow::Result<bool> {
        let mounted = self.disk.mount()?;
        // The first start is a matter of the first cuts, too.
        let in_start = self.dice.below(STARTS) == 0;
        if in_start {
            let steps = self.dice.below(80);
            self.disk.cut_after(u64::try_from(steps)?);
        }
        fs::remove_file(self.site.path("server.log")).or_else(unless_missing)?;
        let mut server = self.program.spawn(&self.site)?;
        let started = self.ready(&mut server).await;
        let mut is_well = true;
        match started {
            Ok(()) => is_well = self.live(number, findings, in_start).await?,
            // The start was cut off, as planned.
            Err(_) if self.disk.is_dark() => {}
            Err(why) => {
                findings.not_started.push(format!("cut {}: {why:#}", number - 1));
                is_well = false;
            }
        }
        self.disk.cut_now();
        server.kill()?;
        let phase = if in_start { "in a start" } else { "at work" };
        self.power_off(mounted, findings, phase)?;
        Ok(is_well)
    }

    fn power_off(
        &mut self,
        mounted: Mounted,
        findings: &mut Findings,
        phase: &'static str,
    ) -> anyhow::Result<()> {
        mounted.unmount()?;
        let (steps, unsynced, _) = self.disk.counts();
        findings.steps += steps - self.steps;
        self.steps = steps;
        findings.unsynced += unsynced;
        let cut = Cut::ALL[self.dice.below(Cut::ALL.len())];
        *findings.cuts.entry((cut, phase)).or_default() += 1;
        self.disk.restore_power(cut, &mut self.dice);
        Ok(())
    }

    /// Waits until the server answers, ends, or loses its power.
    async fn ready(&self, server: &mut Daemon) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        loop {
            if self.disk.is_dark() {
                bail!("the power failed");
            }
            if self.site.write_bundle().await.is_ok() {
                return Ok(());
            }
            if let Some(ended) = server.ended()? {
                bail!("the server ended ({ended}): {}", last_lines(&server.log()));
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the server does not answer: {}", last_lines(&server.log()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A server's life from its first answer until the power fails. Whether all was there at its beginning.
    async fn live(&mut self, number: usize, findings: &mut Findings, in_start: bool) -> anyhow::Result<bool> {
        let is_well = match self.compare(number, findings).await {
            Ok(is_well) => is_well,
            Err(_) if self.disk.is_dark() => return Ok(true),
            Err(error) => return Err(error),
        };
        if !is_well {
            return Ok(false);
        }
        if let Some((name, token)) = self.agent.take() {
            self.bring_back(number, name, token, findings).await?;
        }
        let mut agent = None;
        if number.is_multiple_of(AGENTS) && self.agent.is_none() {
            agent = self.start_agent()?;
        }
        if !in_start {
            let steps = self.dice.below(700);
            self.disk.cut_after(u64::try_from(steps)?);
        }
        let clients = self.start_clients();
        let dark = eventually("the power to fail", DARK_WITHIN, || async {
            if self.disk.is_dark() { Ok(()) } else { bail!("there is power") }
        });
        if dark.await.is_err() {
            self.disk.cut_now();
        }
        // Both lose their power at once.
        if let Some(agent) = agent {
            agent.kill()?;
        }
        for client in clients {
            client.abort_handle().abort();
            drop(client.await);
        }
        Ok(true)
    }

    /// Starts an agent that lost its power, with the token that it may have spent: it must serve in any case.
    async fn bring_back(
        &mut self,
        number: usize,
        name: String,
        token: String,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let log = self.site.path(&format!("{name}.log"));
        fs::remove_file(&log).or_else(unless_missing)?;
        let agent = self.site.spawn_agent(&name, &["--join-token", &token])?;
        let socket = self.site.agent_socket(&name);
        let serves = eventually("an agent to serve", READY_WITHIN, || async {
            match fetch_x509(&socket).await {
                Ok(_) => Ok(true),
                Err(status) if status.code() == tonic::Code::PermissionDenied => Ok(true),
                Err(_) if self.disk.is_dark() => Ok(false),
                Err(status) => bail!("{status}"),
            }
        });
        let serves = serves.await;
        agent.kill()?;
        match serves {
            Ok(true) => {
                life::attested(&self.told, &token);
                findings.agents_back += 1;
            }
            Ok(false) => self.agent = Some((name, token)),
            Err(why) => {
                let warnings = warnings(&fs::read_to_string(&log)?);
                findings.agents.push(format!("cut {}: {name}: {why:#}: {warnings}", number - 1));
            }
        }
        Ok(())
    }

    fn start_clients(&mut self) -> Vec<tokio::task::JoinHandle<anyhow::Error>> {
        let socket = self.site.server_socket();
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (told, socket, seed) = (self.told.clone(), socket.clone(), self.dice.next());
                tokio::spawn(life::churn_entries(told, socket, client, seed))
            })
            .collect();
        clients.push(tokio::spawn(life::mint_and_ban(self.told.clone(), socket, self.dice.next())));
        clients
    }

    /// An agent with its data on the disk, and a token that was acknowledged before.
    fn start_agent(&mut self) -> anyhow::Result<Option<Daemon>> {
        let Some(token) = self.told.ledger().tokens.pop() else { return Ok(None) };
        self.agents += 1;
        let name = format!("a{}", self.agents);
        // The disk holds files and directories, and no sockets.
        self.site.configure_agent(&name, "method = \"join_token\"", "admin = { enabled = false }")?;
        let file = self.site.path(&format!("{name}.toml"));
        let data = self.site.path(&format!("{name}-data")).display().to_string();
        let on_disk = self.site.path("disk").join(format!("{name}-data")).display().to_string();
        fs::write(&file, fs::read_to_string(&file)?.replace(&data, &on_disk))?;
        let agent = self.site.spawn_agent(&name, &["--join-token", &token])?;
        self.agent = Some((name, token));
        Ok(Some(agent))
    }

    /// Compares the server that has just started with what was acknowledged.
    async fn compare(&self, number: usize, findings: &mut Findings) -> anyhow::Result<bool> {
        let lost = life::compare(&self.told, &self.site.server_socket(), Moment::now().secs()).await?;
        let record = self.site.path("disk").join("server-data/decisions");
        let intents: BTreeSet<String> =
            decisions::read(&record)?.iter().map(|decision| same_serial(&decision.serial)).collect();
        let unrecorded = life::unrecorded(&self.told, &intents);
        let is_well = lost.is_empty() && unrecorded.is_empty();
        let of_cut = |what: String| format!("cut {}: {what}", number - 1);
        findings.lost.extend(lost.into_iter().map(of_cut));
        findings.unrecorded.extend(unrecorded.into_iter().map(of_cut));
        Ok(is_well)
    }

    /// Has the disk fail in each way for a while, under a server that goes on.
    async fn troubles(&mut self, cuts: usize, findings: &mut Findings) -> anyhow::Result<()> {
        let mounted = self.disk.mount()?;
        let mut server = self.program.spawn(&self.site)?;
        let started = self.ready(&mut server).await;
        if started.is_err() || !self.compare(cuts + 1, findings).await? {
            findings.not_started.extend(started.err().map(|why| format!("cut {cuts}: {why:#}")));
            server.kill()?;
            return mounted.unmount();
        }
        for (trouble, name) in [
            (Trouble::Full, "full disk"),
            (Trouble::ReadOnly, "read-only disk"),
            (Trouble::Broken, "disk that fails"),
            (Trouble::LosesOnSync, "disk whose sync fails and loses"),
        ] {
            let (_, _, before) = self.disk.counts();
            let clients = self.start_clients();
            tokio::time::sleep(Duration::from_millis(500)).await;
            self.disk.set_trouble(trouble);
            for client in clients {
                // Every client meets the trouble: then its call fails, and it ends.
                let told = tokio::time::timeout(DARK_WITHIN, client).await.context("a client goes on")??;
                let said = format!("{told:#}");
                if !said.contains("Unavailable") && !said.contains("unavailable") {
                    findings.stuck.push(format!("{name}: a client was told {said}"));
                }
            }
            // The server goes on trying meanwhile.
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.disk.set_trouble(Trouble::None);
            let (_, _, after) = self.disk.counts();
            findings.healed.insert(name, after - before);
            let works = eventually("a change to be taken", HEALED_WITHIN, || async {
                self.site.join_token().await?;
                life::mint_once(&self.told, &self.site.server_socket()).await
            });
            if let Err(why) = works.await {
                findings.stuck.push(format!("{name}: {why:#}: {}", last_lines(&server.log())));
                break;
            }
            let lost = life::compare(&self.told, &self.site.server_socket(), Moment::now().secs()).await?;
            findings.lost.extend(lost.into_iter().map(|what| format!("{name}: {what}")));
        }
        if let Err(why) = server.stop().await {
            findings.stuck.push(format!("{why:#}"));
        }
        // What was acknowledged meanwhile is on the disk, not in the server's memory or a page cache alone.
        self.power_off(mounted, findings, "after trouble")?;
        let mounted = self.disk.mount()?;
        let mut server = self.program.spawn(&self.site)?;
        match self.ready(&mut server).await {
            Ok(()) => {
                self.compare(cuts + 1, findings).await?;
            }
            Err(why) => findings.not_started.push(format!("after trouble: {why:#}")),
        }
        server.kill()?;
        mounted.unmount()
    }
}

fn unless_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The last lines of a log that warn, as one.
fn warnings(log: &str) -> String {
    let warns = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    last_lines(&log.lines().filter(warns).collect::<Vec<_>>().join("\n"))
}

/// The last lines of a log, as one.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}
