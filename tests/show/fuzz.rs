//! Does any input make a parser of outside bytes panic, hang, eat memory, or take what it should refuse?
//!
//! Builds the targets of tests/fuzz once, instrumented by flags of the stable compiler, and lets libFuzzer run each for the
//! given time. What a run finds is kept in the target directory, and the next run goes on from there.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use passant_tests::binaries::cargo;

use crate::report::{Report, say};

/// What `cargo fuzz` passes too, without the sanitizer that only a nightly compiler has.
const INSTRUMENTED: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];
/// Longest input of most targets, in bytes: past every bound of a short thing, and quick to run.
const INPUT: usize = 16 << 10;
/// A header block that is longer than what the filter holds.
const FILTER_INPUT: usize = 80 << 10;
/// Memory that one target may use, in MiB, all it has found included.
const MEMORY_MIB: usize = 1024;
/// Seconds that one input may take.
const INPUT_SECONDS: u64 = 10;

/// What to run.
pub(crate) struct Plan {
    /// For how long each target runs.
    pub(crate) seconds: u64,
    /// Only this target.
    pub(crate) target: Option<String>,
    /// How many run at a time.
    pub(crate) jobs: usize,
}

/// What one run came to.
struct Outcome {
    executions: u64,
    edges: u64,
    features: u64,
    inputs: u64,
}

/// Builds the targets and runs them.
///
/// # Errors
/// When they do not build, or there is no such target.
pub(crate) fn run(report: &Report, plan: &Plan) -> anyhow::Result<()> {
    ensure!(plan.seconds > 0, "to libFuzzer, 0 seconds are without end");
    let here = here();
    let mut targets = targets(&here)?;
    if let Some(only) = &plan.target {
        targets.retain(|target| target == only);
        ensure!(!targets.is_empty(), "there is no target {only}: see tests/fuzz/src/bin");
    }
    let place = place()?;
    let programs = build(&here, &place)?;

    let waiting = Mutex::new(targets.iter().collect::<VecDeque<_>>());
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs.clamp(1, targets.len()) {
            scope.spawn(|| {
                loop {
                    // In a statement of its own, lest the others wait for this target to end.
                    let next = locked(&waiting).pop_front();
                    let Some(target) = next else { return };
                    let outcome = fuzz(&here, &place, &programs.join(target), target, plan.seconds);
                    if let Ok(outcome) = &outcome {
                        locked(&rows).push((target.clone(), outcome.row(plan.seconds)));
                    }
                    report.fact(target, outcome.map(|outcome| format!("{} executions", outcome.executions)));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort();
    say(&format!(
        "{:<18}{:>14}{:>12}{:>8}{:>10}{:>8}",
        "target", "executions", "a second", "edges", "features", "inputs"
    ));
    for (target, row) in rows {
        say(&format!("{target:<18}{row}"));
    }
    Ok(())
}

/// Builds the targets and runs none.
///
/// # Errors
/// When they do not build.
pub(crate) fn build_only(report: &Report) -> anyhow::Result<()> {
    let here = here();
    let programs = build(&here, &place()?)?;
    for target in targets(&here)? {
        ensure!(programs.join(&target).exists(), "{target} was not built");
        report.fact(&target, Ok("built".to_owned()));
    }
    Ok(())
}

/// Where the targets stand.
fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// What is built and found goes here.
fn place() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.ancestors().nth(2).context("this program lies in a target directory")?.join("fuzz"))
}

impl Outcome {
    fn row(&self, seconds: u64) -> String {
        let a_second = self.executions / seconds.max(1);
        format!(
            "{:>14}{a_second:>12}{:>8}{:>10}{:>8}",
            self.executions, self.edges, self.features, self.inputs
        )
    }
}

/// The names of the targets, which are those of their files.
fn targets(here: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(here.join("src/bin"))? {
        let path = file?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; the directory in which they are.
fn build(here: &Path, place: &Path) -> anyhow::Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().context("failed to run rustc")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it builds for")?;
    let dir = place.join("build");
    let mut build = cargo();
    // With a target named, build scripts and macros are built without the flags.
    build.args(["build", "--quiet", "--release", "--locked", "--bins", "--target", host, "--target-dir"]);
    build.arg(&dir).current_dir(here).env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTED.join("\x1f"));
    let built = build.status().context("failed to run cargo")?;
    ensure!(built.success(), "the fuzz targets do not build");
    Ok(dir.join(host).join("release"))
}

/// Runs one target for `seconds`, from the checked-in corpus and what earlier runs have found.
fn fuzz(here: &Path, place: &Path, program: &Path, target: &str, seconds: u64) -> anyhow::Result<Outcome> {
    let seeds = here.join("corpus").join(target);
    ensure!(
        fs::read_dir(&seeds).is_ok_and(|mut dir| dir.next().is_some()),
        "no seeds in {}",
        seeds.display()
    );
    let [found, faults, logs] = ["corpus", "artifacts", "logs"].map(|name| place.join(name));
    let found = found.join(target);
    for dir in [&found, &faults, &logs] {
        fs::create_dir_all(dir)?;
    }
    let log = logs.join(target);
    let longest = if target.starts_with("authority_") { FILTER_INPUT } else { INPUT };
    let status = Command::new(program)
        .args([&found, &seeds])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={longest}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/{target}-", faults.display()))
        .arg("-print_final_stats=1")
        .stdout(File::create(&log)?)
        .stderr(File::create(&log)?)
        .status()
        .with_context(|| format!("failed to run {}", program.display()))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        return outcome(&said)
            .with_context(|| format!("libFuzzer does not say what it did: {}", log.display()));
    }
    match said.lines().find_map(|line| line.split_once("Test unit written to ")) {
        Some((_, input)) => {
            let tells = |line: &&str| line.contains("panicked at") || line.contains("ERROR: ");
            let mut why = said.lines().skip_while(|line| !tells(line));
            let (at, what) = (why.next().unwrap_or("it ended"), why.next().unwrap_or_default());
            // What CI finds is lost with its machine, but for what it prints.
            let bytes = fs::read(input).with_context(|| format!("failed to read {input}"))?;
            say(&format!("{target}: the input in base64: {}", BASE64_STANDARD.encode(bytes)));
            bail!("{at} {what}; again: {} {input}", program.display())
        }
        None => bail!("it ended ({status}): see {}", log.display()),
    }
}

/// What libFuzzer says at its end.
fn outcome(said: &str) -> Option<Outcome> {
    let done = said.lines().rev().find(|line| line.contains("DONE") && line.contains("cov: "))?;
    let number = |after: &str| {
        let (_, rest) = done.split_once(after)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let executions = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    Some(Outcome {
        executions: executions.trim().parse().ok()?,
        edges: number("cov: ")?,
        features: number("ft: ")?,
        inputs: number("corp: ")?,
    })
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_did_is_read_from_its_last_words() {
        let said = "#5\tINITED cov: 3 ft: 4 corp: 1/1b\n#75\tDONE   cov: 59 ft: 193 corp: 126/8800b lim: 4096\n\
                    Done 75 runs in 9 second(s)\nstat::number_of_executed_units: 75\n";
        let outcome = outcome(said).unwrap();
        let counts = [outcome.executions, outcome.edges, outcome.features, outcome.inputs];
        assert_eq!(counts, [75, 59, 193, 126]);
        assert!(super::outcome("#75\tREDUCE cov: 59 ft: 193 corp: 126/8800b\n").is_none());
    }
}
