//! Does the simulation hold for thousands of seeds, and does it find the bugs that are planted for it?

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use passant_tests::binaries::cargo;

use crate::report::{Report, say};

/// The bugs in `tests/ablations` that the simulation must find.
const PLANTED: &[&str] = &[
    "activate_before_reach",
    "skip_intent",
    "forget_clamp",
    "serve_before_sync",
    "token_twice",
    "serve_expired",
    "lost_delta",
    "cursor_across_lineages",
];

/// The simulation, as `cargo test` knows it.
const TEST: &[&str] = &["test", "--quiet", "--profile", "sim", "--package", "passant-sim", "--test", "sim"];

/// Runs `seeds` seeds; then looks for each planted bug in up to `within` seeds.
pub(crate) fn run(report: &Report, seeds: u64, within: u64, jobs: usize) -> Result<()> {
    let ran = simulate(TEST, None, seeds, jobs)?;
    ran.told.iter().for_each(|line| say(line));
    let held = format!("{seeds} seeds hold, and every fault occurred");
    report.fact(&held, if ran.passed { Ok(String::new()) } else { Err(anyhow::anyhow!("see above")) });
    if within == 0 {
        return Ok(());
    }
    let planted: Vec<&str> = ["xtask", "ablate", "--"].iter().chain(TEST).copied().collect();
    for name in PLANTED {
        let found = simulate(&planted, Some(name), within, jobs)
            .and_then(|ran| ran.found.with_context(|| format!("not found within {within} seeds")));
        report.fact(&format!("the planted bug {name} is found within {within} seeds"), found);
    }
    Ok(())
}

struct Ran {
    passed: bool,
    /// What it said in the end.
    told: Vec<String>,
    /// The first seed that failed, and why.
    found: Option<String>,
}

/// Runs seeds from 1 by `cargo` with `arguments`, with the bug `planted` awake.
fn simulate(arguments: &[&str], planted: Option<&str>, seeds: u64, jobs: usize) -> Result<Ran> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package has no workspace")?;
    let mut command = cargo();
    command.args(arguments).args(["--", "--seeds", &seeds.to_string(), "--jobs", &jobs.to_string()]);
    match planted {
        Some(name) => command.env("PASSANT_ABLATION", name),
        None => command.env_remove("PASSANT_ABLATION"),
    };
    let mut child =
        command.current_dir(root).stdout(Stdio::piped()).spawn().context("failed to run cargo")?;
    let Some(output) = child.stdout.take() else { bail!("cargo says nothing") };
    let mut ran = Ran { passed: false, told: Vec::new(), found: None };
    let mut ended = false;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(failure) = line.strip_prefix("FAIL seed ") {
            ran.found.get_or_insert_with(|| format!("seed {failure}"));
        }
        ended = ended || line.ends_with(" failed");
        ran.told.push(line);
    }
    ran.passed = child.wait()?.success();
    if !ended {
        bail!("the simulation did not run: {}", ran.told.last().map_or("it says nothing", String::as_str));
    }
    Ok(ran)
}
