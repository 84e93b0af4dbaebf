//! Does the system hold under faults? One server, five agents and dozens of workloads in one process, by a seed.
//!
//! `cargo test -p passant-sim --test sim -- --seeds N --from S` runs seeds, `--seed S --trace` shows one in every detail.

mod disk;
mod host;
mod log;
mod net;
mod node;
mod operator;
mod oracle;
mod process;
mod settings;
mod workload;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use passant_sim as rng;

use crate::log::Outcome;

/// How many seeds a plain `cargo test` runs, and how long their faults go on, in seconds.
const FEW: u64 = 2;
const SHORT: u64 = 120;

/// So many seeds are many: everything that may happen has happened.
const MANY: u64 = 200;

/// What must have happened in many seeds, or they prove nothing: every fault there is.
const FAULTS: &[&str] = &[
    "agent banned",
    "agent crashed",
    "agent died over its disk",
    "agent evicted",
    "agent stopped",
    "agent's clock skewed",
    "agent's clock stepped",
    "attestor failing",
    "attestors slow",
    "attestors slow with old facts",
    "connections broken",
    "delay",
    "entry changed",
    "entry created",
    "entry deleted",
    "entry stopped",
    "partition",
    "partition from the server",
    "partition to the server",
    "pid used again",
    "process moved",
    "reply lost",
    "server crashed",
    "server died over its disk",
    "server restarted",
    "server restored from a backup",
    "server's clock skewed",
    "server's clock stepped",
    "server's disk failing",
    "stolen token tried",
];

/// And everything that checks depend on.
const COUNTS: &[&str] = &[
    "JWT-SVIDs judged",
    "X509-SVIDs judged",
    "acknowledged bans audited",
    "acknowledged writes audited",
    "authorities pruned",
    "bundles looked at when an authority began to sign",
    "convergences",
    "join tokens spent again by their holder",
    "nodes rescued by an operator",
    "pairs of SVID and bundle judged",
    "refusals for want of an entry",
    "rotations of the JWT authority",
    "rotations of the X.509 authority",
    "spent tokens refused",
    "tokens validated by the agent",
    "workloads held against the truth",
    "agents named as unreachable by a stop",
    "stops taken back",
];

struct Arguments {
    from: u64,
    seeds: u64,
    jobs: usize,
    /// How long faults go on in each run, in seconds; as [`settings::troubled`] says if nobody does.
    troubled: Option<u64>,
    /// Runs each seed twice, and compares.
    twice: bool,
    trace: bool,
    /// Runs nothing: somebody asked for another test.
    is_idle: bool,
}

impl Arguments {
    /// Of the command line; what a test runner is told besides is passed over.
    fn read() -> Result<Self, String> {
        let mut read =
            Self { from: 1, seeds: 0, jobs: 1, troubled: None, twice: false, trace: false, is_idle: false };
        let mut given = std::env::args().skip(1);
        while let Some(name) = given.next() {
            let mut number = || -> Result<u64, String> {
                let text = given.next().ok_or_else(|| format!("{name} needs a number"))?;
                text.parse().map_err(|_| format!("{name} {text} is no number"))
            };
            match name.as_str() {
                "--seeds" => read.seeds = number()?,
                "--from" => read.from = number()?,
                "--seed" => (read.from, read.seeds) = (number()?, 1),
                "--jobs" => read.jobs = usize::try_from(number()?).map_err(|error| error.to_string())?,
                "--seconds" => read.troubled = Some(number()?),
                "--twice" => read.twice = true,
                "--trace" => read.trace = true,
                "--list" => read.is_idle = true,
                name if !name.starts_with('-') && !"sim".contains(name) => read.is_idle = true,
                _ => {}
            }
        }
        if read.seeds == 0 {
            (read.seeds, read.troubled, read.twice) = (FEW, Some(SHORT), true);
        }
        Ok(read)
    }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => {
            say(&error);
            return ExitCode::from(2);
        }
    };
    if arguments.is_idle {
        return ExitCode::SUCCESS;
    }
    // The product never panics; if it does, a task of it has silently gone.
    std::panic::set_hook(Box::new(|panic| PANICS.with(|panics| panics.borrow_mut().push(panic.to_string()))));
    let mut total = run_all(&arguments);
    if arguments.seeds >= MANY && std::env::var_os("PASSANT_ABLATION").is_none() {
        let lacks = |had: &BTreeMap<String, u64>, names: &[&str]| {
            names
                .iter()
                .filter(|&&name| !had.contains_key(name))
                .map(|name| format!("never: {name}"))
                .collect::<Vec<_>>()
        };
        let never = [lacks(&total.faults, FAULTS), lacks(&total.counts, COUNTS)].concat();
        never.iter().for_each(|never| say(&format!("FAIL {never}")));
        total.violations.extend(never);
    }
    for (name, times) in &total.faults {
        say(&format!("fault {name}: {times}"));
    }
    for (name, times) in &total.counts {
        say(&format!("count {name}: {times}"));
    }
    let failed = u64::try_from(total.violations.len()).unwrap_or(u64::MAX);
    say(&format!("{} passed, {failed} failed", total.counts.get("seeds that held").copied().unwrap_or(0)));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs all seeds, on as many threads as there are jobs; each run stays on one. With a bug planted, only up to the seed
/// that finds it.
fn run_all(arguments: &Arguments) -> Outcome {
    let planted = std::env::var("PASSANT_ABLATION").ok();
    let (next, is_found) = (AtomicU64::new(arguments.from), AtomicBool::new(false));
    let total = Mutex::new(Outcome::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= arguments.from + arguments.seeds || is_found.load(Ordering::SeqCst) {
                return;
            }
            let outcome = run(seed, arguments);
            if !outcome.violations.is_empty() && planted.is_some() {
                is_found.store(true, Ordering::SeqCst);
            }
            if let Ok(mut total) = total.lock() {
                total.add(outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..arguments.jobs {
            scope.spawn(work);
        }
        work();
    });
    total.into_inner().unwrap_or_default()
}

/// Runs one seed, and tells what was wrong and how to see it again.
fn run(seed: u64, arguments: &Arguments) -> Outcome {
    let troubled = arguments.troubled.map_or_else(|| settings::troubled(seed), Duration::from_secs);
    let (mut outcome, lines) = world::run(seed, troubled, arguments.trace);
    outcome.violations.extend(PANICS.with(|panics| std::mem::take(&mut *panics.borrow_mut())));
    if arguments.trace {
        lines.iter().for_each(|line| say(line));
        say(&format!("seed {seed} has trace {:016x}", outcome.hash));
    }
    if arguments.twice {
        let (again, _) = world::run(seed, troubled, false);
        if again.hash != outcome.hash {
            outcome.violations.push("two runs of it differ".to_owned());
        }
    }
    for violation in &outcome.violations {
        say(&format!("FAIL seed {seed}: {violation}"));
    }
    if outcome.violations.is_empty() {
        outcome.counts.insert("seeds that held".to_owned(), 1);
    } else {
        let seconds = troubled.as_secs();
        say(&format!(
            "replay: cargo test -p passant-sim --test sim -- --seed {seed} --seconds {seconds} --trace"
        ));
    }
    outcome
}

/// Prints one line.
#[expect(clippy::print_stdout, reason = "a test program speaks to whoever started it")]
fn say(line: &str) {
    println!("{line}");
}
