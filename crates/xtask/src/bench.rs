//! How fast and how big is it, as ratios to floors of the same run?

mod load;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use crate::cargo::cargo;
use crate::readme::with_table;

/// Where the benches are told of.
const README: &str = "benches/README.md";

/// What a person chooses.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    whole: Option<Whole>,
    /// Rows to measure, by parts of their keys; all of them if none is given.
    rows: Vec<String>,
    /// Few samples and a tenth of the entries: shows that everything runs, and measures badly.
    #[arg(long)]
    quick: bool,
    /// Entries where a row is about many.
    #[arg(long)]
    entries: Option<usize>,
    /// Write the table into benches/README.md, with what it was measured on. Rows that were not measured stay empty.
    #[arg(long, conflicts_with = "quick")]
    write: bool,
}

/// What is not measured within one process.
#[derive(Subcommand)]
enum Whole {
    /// Measure a whole server under a fleet of agents; `load --help` tells the flags.
    #[command(disable_help_flag = true)]
    Load(load::Options),
}

/// Builds the benches as they are shipped, optimized, and runs them.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if let Some(Whole::Load(options)) = &options.whole {
        return load::run(root, options);
    }
    let dir = tempfile::tempdir()?;
    let table = dir.path().join("table.md");
    let facts = facts(root)?;
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "passant-benches", "--bench", "micro"]);
    if options.quick {
        // Optimized in less time.
        bench.args(["--profile", "sim"]);
    }
    bench.args(["--", "--table"]).arg(&table).args(&options.rows).current_dir(root);
    if options.quick {
        bench.arg("--quick");
    }
    if let Some(entries) = options.entries {
        bench.args(["--entries", &entries.to_string()]);
    }
    ensure!(bench.status().context("failed to run cargo bench")?.success(), "the benches failed");
    writeln!(std::io::stdout().lock(), "\n{facts}")?;
    if options.write {
        let table = fs::read_to_string(&table).context("the benches have written no table")?;
        let path = root.join(README);
        let readme = fs::read_to_string(&path).context("failed to read benches/README.md")?;
        fs::write(&path, with_table(&readme, &format!("{facts}\n{table}"))?)?;
    }
    Ok(())
}

/// What was measured, when and on what.
fn facts(root: &Path) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("of an unknown kind", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    let mut facts = String::new();
    writeln!(facts, "- {} UTC, commit {}", said(root, "date", &["-u", "+%F %R"])?, commit(root)?)?;
    writeln!(facts, "- {cores} cores, {model}; load {load} at the beginning")?;
    writeln!(facts, "- Linux {}, {}", said(root, "uname", &["-r"])?, said(root, "rustc", &["--version"])?)?;
    Ok(facts)
}

/// The commit that was measured, and whether the tree differs from it.
fn commit(root: &Path) -> Result<String> {
    let commit = said(root, "git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = said(root, "git", &["status", "--porcelain", "--untracked-files=no"])?;
    Ok(if changed.is_empty() { commit } else { format!("{commit} with changes") })
}

fn said(root: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(root).output();
    let output = output.with_context(|| format!("failed to run {program}"))?;
    ensure!(output.status.success(), "{program} failed");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readme::with_part;

    #[test]
    fn the_readme_has_room_for_both_tables() {
        let readme = fs::read_to_string(crate::root().join(README)).unwrap();
        assert!(with_table(&readme, "").is_ok() && with_part(&readme, load::PART, "").is_ok());
    }
}
