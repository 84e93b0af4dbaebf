//! Does the server keep what it acknowledged when it is killed at random moments, again and again?
//!
//! The harness holds what the server acknowledged and the SVIDs that clients received, in this process, and compares them
//! with the state and with the decision record after each kill. Everything is real: the programs, the sockets, SIGKILL.

mod agent;
mod churn;
mod ledger;
mod mint;
mod nodes;
mod record;
mod server;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use passant_tests::api::wire_id;
use passant_tests::daemon::Daemon;
use passant_tests::node_ca::NodeCa;
use passant_tests::site::{ServerOptions, Site, TRUST_DOMAIN};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::record::Auditor;
use self::server::{Left, Scene};
use self::world::{ANSWERED, BUNDLES, Dice, RETRIED, Stopped, VERIFIES, Work, World};
use crate::program::Program;
use crate::report::{Report, say};

/// Lifetimes so short that authorities succeed each other all the time, and long enough that an agent that is killed with
/// its server finds it again before it knows none of its authorities: the more entries, the longer a start takes.
fn lifetimes(entries: usize) -> String {
    let authority = 48 + entries / 2_400;
    format!(
        "ca_ttl = \"{authority}s\"\ndefault_x509_svid_ttl = \"6s\"\ndefault_jwt_svid_ttl = \"6s\"\nagent_ttl = \"15s\"\n"
    )
}

/// So little is kept of the record that segments are ended and removed during the show.
const RECORD_MIB: u64 = 16;
const ENTRIES: &str =
    "every acknowledged entry is there with its value, deleted ones stay deleted, no request is kept by half";
const NODES: &str = "every attested, renewed, banned and evicted node is as it was acknowledged";
const INTENDED: &str = "every SVID received has its intent on record";
const RECORD: &str = "the decision record is one chain across all kills";
const UNIQUE: &str = "no serial was decided on twice";
const RETAINED: &str = "the record keeps to its size across all kills";
const STARTED: &str = "the server started every time";
/// One kill in so many must find sled's half-written snapshot.
const GENERATING_SHARE: usize = 10;
/// Tries of one planned kill to find it.
const GENERATING_TRIES: usize = 4;
/// Kills that a planted bug may take to be found.
const ABLATION_ROUNDS: usize = 60;
/// How long clients may take to notice that the server is gone.
const CLIENTS_WITHIN: Duration = Duration::from_secs(60);
/// How long a step of the authorities is waited for.
const ROTATES_WITHIN: Duration = Duration::from_secs(60);

/// When a kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// During a start, while sled's half-written snapshot stands there.
    Generating,
    /// During a start, at any time.
    Starting,
    /// Just after a start, when ended entries are being cleared away.
    Pruning,
    /// While an answer to a change of entries is awaited.
    Churn,
    /// While an attestation, a renewal, a ban or an eviction is awaited.
    Attestation,
    /// While an SVID is awaited.
    Minting,
    /// Just after the key of an authority was put into custody or removed.
    Rotation,
}

impl Phase {
    const ALL: [Self; 7] = [
        Self::Generating,
        Self::Starting,
        Self::Pruning,
        Self::Churn,
        Self::Attestation,
        Self::Minting,
        Self::Rotation,
    ];

    /// Of a hundred kills.
    const fn share(self) -> usize {
        match self {
            Self::Generating => 15,
            Self::Starting | Self::Rotation => 8,
            Self::Pruning => 9,
            Self::Churn => 24,
            Self::Attestation | Self::Minting => 18,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Generating => "starting, snapshot half-written",
            Self::Starting => "starting",
            Self::Pruning => "pruning",
            Self::Churn => "churn",
            Self::Attestation => "attestation",
            Self::Minting => "minting",
            Self::Rotation => "rotation",
        }
    }
}

/// Runs the show: kills a server with so many `entries` so many times.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, kills: usize, entries: usize) -> anyhow::Result<()> {
    ensure!(kills > 0 && entries > 0, "there is nothing to see without kills and entries");
    let mut site = Site::new(&ServerOptions::default())?;
    let outcome = Show::run(report, &site, kills, entries).await;
    if outcome.is_err() || !report.holds() {
        site.keep();
        say(&format!("the folder of the daemons is kept: {}", site.dir().display()));
    }
    outcome?;
    report.fact(
        "with the cure for sled's leftovers taken out, the same harness finds a server that does not start",
        ablated(entries.min(ABLATED_ENTRIES)).await,
    );
    Ok(())
}

/// What is counted over the whole show.
struct Show<'a> {
    scene: Scene<'a>,
    world: Arc<World>,
    auditor: Auditor,
    dice: Dice,
    kills: BTreeMap<Phase, usize>,
    starts: Vec<Duration>,
    comparisons: usize,
    objects: usize,
    kept: usize,
    dropped: usize,
    probes: usize,
    reverified: usize,
    due: usize,
    most_bytes: u64,
}

impl<'a> Show<'a> {
    async fn run(report: &Report, site: &'a Site, kills: usize, entries: usize) -> anyhow::Result<()> {
        let authority = configure(site, entries)?;
        let world = Arc::new(World::new(site.address(), site.server_socket(), entries));
        nodes::certified(&world, &authority, site.dir())?;
        let scene = Scene { site, program: Program::sound() };
        let mut show = Self {
            auditor: Auditor::new(scene.decisions()),
            scene,
            dice: Dice::new(&world.host),
            world,
            kills: BTreeMap::new(),
            starts: Vec::new(),
            comparisons: 0,
            objects: 0,
            kept: 0,
            dropped: 0,
            probes: 0,
            reverified: 0,
            due: 0,
            most_bytes: 0,
        };
        let server = show.begin(&authority).await?;
        let began = Instant::now();
        let stop = AtomicBool::new(false);
        let world = Arc::clone(&show.world);
        let (server, seen) =
            tokio::try_join!(show.all_kills(server, kills, &stop), agent::run(&world, site, &stop))?;
        server.stop().await?;
        show.read_record()?;
        show.tell(report, kills, began.elapsed());
        report.none(
            "an agent killed at any time left a whole data file",
            &seen.faults,
            &format!("{} kills", seen.kills),
        );
        let served = format!("at the latest after {:.1} s", seen.longest.as_secs_f64());
        report.fact("the agent served again after each kill, without help", Ok(served));
        Ok(())
    }

    /// Starts the server for the first time, and fills it.
    async fn begin(&mut self, authority: &NodeCa) -> anyhow::Result<Daemon> {
        let site = self.scene.site;
        let mut server = self.scene.spawn()?;
        self.scene.answers(&mut server).await?;
        let filled = self.fill().await;
        filled
            .map_err(|Stopped| anyhow!("the server cannot be filled: {:?}", self.world.books().violations))?;
        let bundle = self.world.books().bundle.clone().context("no bundle")?;
        std::fs::write(site.bundle_file(), bundle.to_pem())?;
        site.register(agent::ENTRY, |entry| entry.parent_id = wire_id(TRUST_DOMAIN, agent::PATH)).await?;
        agent::configure(site, authority)?;
        Ok(server)
    }

    async fn fill(&self) -> Result<(), Stopped> {
        let began = Instant::now();
        self.world.see_bundle(&self.world.operator().await?).await?;
        churn::seed(&self.world).await?;
        churn::put_on_shelves(&self.world);
        say(&format!("{} entries made in {:.1} s", self.world.entries, began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Kills and starts again, and leaves a server that runs, compared once more. Tells the agent to `stop` then.
    async fn all_kills(&mut self, server: Daemon, kills: usize, stop: &AtomicBool) -> anyhow::Result<Daemon> {
        let mut phases = planned(kills, &mut self.dice);
        let mut server = Some(server);
        let mut tries = 0;
        while let Some(phase) = phases.pop() {
            let found = self.kill(phase, server.take()).await.with_context(|| {
                format!("after {} kills, the next one planned for: {}", self.total(), phase.name())
            })?;
            *self.kills.entry(found).or_default() += 1;
            self.read_record()?;
            tries = if phase == Phase::Generating && found != phase { tries + 1 } else { 0 };
            if (1..GENERATING_TRIES).contains(&tries) {
                // What sled writes at a start is what was new since the last.
                phases.extend([Phase::Generating, Phase::Churn]);
            }
            if self.total().is_multiple_of(20) {
                say(&format!("{} kills", self.total()));
            }
        }
        let mut server = self.scene.spawn()?;
        self.starts.push(self.scene.answers(&mut server).await?);
        self.compare().await?;
        stop.store(true, Ordering::SeqCst);
        Ok(server)
    }

    fn total(&self) -> usize {
        self.kills.values().sum()
    }

    /// Starts the server, unless it is given, and kills it in `phase`. When it was killed really.
    async fn kill(&mut self, phase: Phase, running: Option<Daemon>) -> anyhow::Result<Phase> {
        let is_running = running.is_some();
        let mut server = match running {
            Some(server) => server,
            None => self.scene.spawn()?,
        };
        match phase {
            Phase::Generating => {
                let left = self.scene.kill_while_generating(server).await?;
                return Ok(if left == Left::Generating { phase } else { Phase::Starting });
            }
            Phase::Starting => {
                let most = self.median().as_millis().try_into().unwrap_or(1_000);
                tokio::time::sleep(self.dice.span(most)).await;
                alive(&mut server)?;
                server.kill()?;
                return Ok(if self.scene.left()? == Left::Generating { Phase::Generating } else { phase });
            }
            Phase::Pruning => {
                self.due += self.world.books().entries.due(self.world.now());
                self.scene.answers(&mut server).await?;
                tokio::time::sleep(self.dice.span(30)).await;
                alive(&mut server)?;
                server.kill()?;
                return Ok(phase);
            }
            Phase::Churn | Phase::Attestation | Phase::Minting | Phase::Rotation => {}
        }
        if !is_running {
            self.starts.push(self.scene.answers(&mut server).await?);
            self.compare().await?;
        }
        let mut clients = self.clients();
        let reached = self.reach(phase).await;
        alive(&mut server)?;
        self.world.set_killing(true);
        server.kill()?;
        let ended =
            tokio::time::timeout(CLIENTS_WITHIN, async { while clients.join_next().await.is_some() {} });
        if ended.await.is_err() {
            self.world.violation(ANSWERED, "a client still waits for a server that was killed".to_owned());
            clients.abort_all();
        }
        Ok(if reached { phase } else { Phase::Churn })
    }

    fn clients(&self) -> JoinSet<Result<(), Stopped>> {
        let mut clients = JoinSet::new();
        for client in 0..churn::CLIENTS {
            clients.spawn(churn::run(Arc::clone(&self.world), client));
        }
        for _ in 0..2 {
            clients.spawn(nodes::run(Arc::clone(&self.world)));
            clients.spawn(mint::run(Arc::clone(&self.world)));
        }
        clients.spawn(mint::run_operator(Arc::clone(&self.world)));
        clients
    }

    /// Lets the clients work, and returns in the midst of `phase`; false if it did not come.
    async fn reach(&mut self, phase: Phase) -> bool {
        tokio::time::sleep(Duration::from_millis(100) + self.dice.span(1_500)).await;
        let work = match phase {
            Phase::Attestation => Work::Attestation,
            Phase::Minting => Work::Minting,
            Phase::Rotation => {
                let before = self.scene.key_file();
                let changed = within(ROTATES_WITHIN, || self.scene.key_file() != before).await;
                spin(self.dice.span(6)).await;
                return changed;
            }
            Phase::Churn | Phase::Pruning | Phase::Starting | Phase::Generating => Work::Churn,
        };
        let end = Instant::now() + CLIENTS_WITHIN;
        while Instant::now() < end {
            if !within(CLIENTS_WITHIN, || self.world.is_busy(work)).await {
                return false;
            }
            spin(self.dice.span(4)).await;
            if self.world.is_busy(work) {
                return true;
            }
        }
        false
    }

    /// Compares what the server has with what it acknowledged.
    async fn compare(&mut self) -> anyhow::Result<()> {
        let world = Arc::clone(&self.world);
        world.set_killing(false);
        let stopped = |Stopped| anyhow!("the server cannot be looked at: {:?}", world.books().violations);
        let operator = world.operator().await.map_err(stopped)?;
        world.see_bundle(&operator).await.map_err(stopped)?;
        let found = churn::list(&operator).await?;
        let rows = nodes::list(&operator, &found.aliases).await?;
        let now = world.now();
        {
            let mut books = world.books();
            let entries = books.entries.compare(found.entries, now);
            let nodes = books.nodes.compare(rows, now);
            self.comparisons += 1;
            self.objects += entries.objects + nodes.objects;
            self.kept += entries.kept + nodes.kept;
            self.dropped += entries.dropped + nodes.dropped;
            books.violations.entry(ENTRIES).or_default().extend(entries.violations);
            books.violations.entry(NODES).or_default().extend(nodes.violations);
        }
        churn::put_on_shelves(&world);
        nodes::settle(&world);
        self.reverified += world.verify_latest()?;
        self.probes += nodes::probe(&world).await.map_err(stopped)?;
        Ok(())
    }

    /// Reads on in the decision record of a dead server, and looks for what was received.
    fn read_record(&mut self) -> anyhow::Result<()> {
        self.auditor.read_on()?;
        self.most_bytes = self.most_bytes.max(self.auditor.tally.bytes);
        let mut books = self.world.books();
        let missing = self.auditor.unrecorded(&books.received);
        books.violations.entry(INTENDED).or_default().extend(missing);
        Ok(())
    }

    fn median(&self) -> Duration {
        let mut starts = self.starts.clone();
        starts.sort();
        starts.get(starts.len() / 2).copied().unwrap_or(Duration::from_secs(1))
    }

    /// Says what was seen and which facts held.
    fn tell(&self, report: &Report, planned: usize, took: Duration) {
        let books = self.world.books();
        let tally = self.auditor.tally;
        let mut by_phase = String::new();
        for phase in Phase::ALL {
            let count = self.kills.get(&phase).copied().unwrap_or(0);
            write!(by_phase, "; {}: {count}", phase.name()).expect("a string takes everything");
        }
        say(&format!("kills: {}{by_phase}", self.total()));
        say(&format!(
            "acknowledged: {} writes of entries, {} of nodes; SVIDs received: {}",
            books.entries.acknowledged(),
            books.nodes.acknowledged(),
            books.received.len()
        ));
        let longest = self.starts.iter().max().copied().unwrap_or_default();
        let (median, longest, took) = (self.median().as_secs_f64(), longest.as_secs_f64(), took.as_secs());
        let starts = format!("{} in full: median {median:.2} s, longest {longest:.2} s", self.starts.len());
        say(&format!("starts {starts}; the kills took {took} s"));

        report.fact(STARTED, Ok(starts));
        let none = |fact: &'static str, remark: String| {
            report.none(fact, books.violations.get(fact).map_or(&[][..], Vec::as_slice), &remark);
        };
        let compared = format!("{} comparisons, {} objects", self.comparisons, self.objects);
        none(ENTRIES, format!("{compared}; without answer: {} kept, {} not", self.kept, self.dropped));
        none(NODES, String::new());
        none(nodes::STANDING, format!("{} tries after restarts", self.probes));
        none(RETRIED, format!("{} of them", books.retried));
        none(BUNDLES, String::new());
        none(VERIFIES, format!("{} once more after a restart", self.reverified));
        none(INTENDED, format!("{} SVIDs, {} intents", books.received.len(), tally.intents));
        report.none(UNIQUE, &self.auditor.repeated, "");
        let lines = format!(
            "{} lines, {} starts, {} torn ends, {} intents of unknown outcome",
            tally.lines, tally.starts, tally.torn, tally.unknown
        );
        report.none(RECORD, &self.auditor.faults, &lines);
        let kept = format!(
            "{} segments, {} removed, at most {} KiB",
            tally.segments,
            tally.removed,
            self.most_bytes >> 10
        );
        // A segment is ended by the write after the one that fills it.
        let most = (RECORD_MIB << 20) + (1 << 20);
        report.fact(RETAINED, if self.most_bytes <= most { Ok(kept) } else { Err(anyhow!(kept)) });
        none(ANSWERED, String::new());
        let least = planned.div_ceil(GENERATING_SHARE);
        let generating = self.kills.get(&Phase::Generating).copied().unwrap_or(0);
        let enough = format!("{generating}, at least {least} asked for");
        let outcome = if generating >= least { Ok(enough) } else { Err(anyhow!(enough)) };
        report.fact("enough kills came while sled's snapshot was half-written", outcome);
        let absent: Vec<String> = Phase::ALL
            .iter()
            .filter(|phase| planned * phase.share() >= 100 && !self.kills.contains_key(phase))
            .map(|phase| phase.name().to_owned())
            .collect();
        report.none(
            "kills came in every phase",
            &absent,
            &format!("{} ended entries were due for pruning", self.due),
        );
    }
}

/// The phases of so many kills, in the order of a stack, by lot; the first kill comes under churn.
fn planned(kills: usize, dice: &mut Dice) -> Vec<Phase> {
    let mut phases = Vec::new();
    let mut owed = [0_usize; Phase::ALL.len()];
    while phases.len() < kills {
        // Whoever is owed most comes next.
        for (owed, phase) in owed.iter_mut().zip(Phase::ALL) {
            *owed += phase.share();
        }
        let most = (0..owed.len()).max_by_key(|at| owed[*at]).unwrap_or(0);
        owed[most] = owed[most].saturating_sub(100);
        phases.push(Phase::ALL[most]);
    }
    for at in (1..phases.len()).rev() {
        phases.swap(at, dice.below(at + 1));
    }
    let churn = phases.iter().position(|phase| *phase == Phase::Churn);
    let last = phases.len() - 1;
    phases.swap(churn.unwrap_or(last), last);
    phases
}

/// Waits until `is_so`, looking all the time; false if it did not come in time.
async fn within(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

/// Waits more finely than a timer can.
async fn spin(span: Duration) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        tokio::task::yield_now().await;
    }
}

fn alive(server: &mut Daemon) -> anyhow::Result<()> {
    match server.ended()? {
        None => Ok(()),
        Some(status) => bail!("the server ended by itself ({status}):\n{}", server.log()),
    }
}

/// Writes the server's configuration: short lives, a small record, two ways to attest.
fn configure(site: &Site, entries: usize) -> anyhow::Result<NodeCa> {
    let authority = NodeCa::new(site.dir())?;
    let tables = format!(
        "[decision_log]\nmax_size_mib = {RECORD_MIB}\n[[node_attestor]]\nmethod = \"join_token\"\n\
         [[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n\
         agent_path_template = \"/{{{{ .PluginName }}}}/{{{{ .Subject.CommonName }}}}\"\n",
        authority.file
    );
    site.configure(&ServerOptions { keys: lifetimes(entries), tables })?;
    // A line for each call would be most of what the server does.
    let text = std::fs::read_to_string(site.server_config())?;
    std::fs::write(site.server_config(), text.replace("level = \"debug\"", "level = \"info\""))?;
    Ok(authority)
}

/// The most entries of the server with a planted bug, which is not optimised.
const ABLATED_ENTRIES: usize = 20_000;

/// Kills a server whose cure for sled's leftovers is taken out until it does not start; after how many kills.
async fn ablated(entries: usize) -> anyhow::Result<String> {
    let site = Site::new(&ServerOptions::default())?;
    configure(&site, entries)?;
    let scene = Scene { site: &site, program: Program::with_bug("sled_cure") };
    let world = World::new(site.address(), site.server_socket(), entries);
    let mut server = scene.spawn()?;
    scene.answers(&mut server).await?;
    let seeded = async {
        world.see_bundle(&world.operator().await?).await?;
        churn::seed(&world).await
    };
    seeded.await.map_err(|Stopped| anyhow!("the server cannot be filled"))?;
    let mut kills = 0;
    for _ in 0..ABLATION_ROUNDS {
        // Something new, and a kill, so that the next start has a snapshot to write.
        churn::some(&world).await.map_err(|Stopped| anyhow!("the server cannot be written to"))?;
        server.kill()?;
        kills += 1;
        if let Err(why) = scene.kill_while_generating(scene.spawn()?).await {
            return Ok(format!("after {kills} kills: {why}"));
        }
        kills += 1;
        server = scene.spawn()?;
        if let Err(why) = scene.answers(&mut server).await {
            return Ok(format!("after {kills} kills: {why}"));
        }
    }
    bail!("it was started again after each of {kills} kills: the harness does not see what it is there for")
}

#[cfg(test)]
mod tests {
    use passant_core::Host;

    use super::*;

    #[test]
    fn every_phase_has_its_share_and_churn_comes_first() {
        assert_eq!(Phase::ALL.map(Phase::share).iter().sum::<usize>(), 100);
        let mut dice = Dice::new(&Host::system());
        for kills in [1, 20, 200] {
            let phases = planned(kills, &mut dice);
            assert_eq!(phases.len(), kills);
            if kills >= 20 {
                assert_eq!(phases.last(), Some(&Phase::Churn));
                let generating = phases.iter().filter(|phase| **phase == Phase::Generating).count();
                assert!(generating * GENERATING_SHARE >= kills, "{phases:?}");
                assert!(Phase::ALL.iter().all(|phase| phases.contains(phase)), "{phases:?}");
            }
        }
    }
}
