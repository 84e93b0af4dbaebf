//! How does a whole server fare under a fleet of agents? `passant-bench` of the package passant-benches measures it.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{README, facts};
use crate::cargo::cargo;
use crate::readme::with_part;

/// The part of the README that tells of it.
pub(super) const PART: &str = "load";
/// Where the plots lie, beside the README.
const PLOTS: &str = "plots";
/// How the daemons are built to be measured: as one who runs thousands of agents builds them.
const FOR_REAL: &[&str] = &["--release", "--features", "passant-server/jemalloc"];

/// What a person chooses.
#[derive(Args)]
pub(crate) struct Options {
    /// Write table and plots into benches/. Rows that were not measured stay empty.
    #[arg(long)]
    write: bool,
    /// Rows and flags of passant-bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds the daemons and the bench as they are shipped, and runs it; a quick run takes what is built for tests.
pub(super) fn run(root: &Path, options: &Options) -> Result<()> {
    let is_quick = options.arguments.iter().any(|argument| argument == "--quick");
    ensure!(!(is_quick && options.write), "a quick run measures badly: nothing of it is written");
    let facts = facts(root)?;
    let profile: &[&str] = if is_quick { &[] } else { FOR_REAL };
    // All of them, in one choice of features, as the shows have them.
    let mut build = cargo();
    build.args(["build", "--quiet", "--workspace", "--bins"]).args(profile).current_dir(root);
    ensure!(build.status().context("failed to run cargo")?.success(), "the programs do not build");
    let here = std::env::current_exe().context("the path of this program is unknown")?;
    let target = here.ancestors().nth(2).context("this program lies in a profile's folder")?;
    let programs = target.join(if is_quick { "debug" } else { "release" });
    let dir = tempfile::tempdir()?;
    let table = dir.path().join("load.md");
    let mut bench = Command::new(programs.join("passant-bench"));
    bench.args(&options.arguments).current_dir(root);
    if options.write {
        bench.arg("--table").arg(&table).arg("--plots").arg(root.join("benches").join(PLOTS));
    }
    ensure!(bench.status().context("failed to start passant-bench")?.success(), "the bench failed");
    writeln!(std::io::stdout().lock(), "\n{facts}")?;
    if options.write {
        let table = fs::read_to_string(&table).context("passant-bench has written no table")?;
        let path = root.join(README);
        let readme = fs::read_to_string(&path).context("failed to read benches/README.md")?;
        fs::write(&path, with_part(&readme, PART, &format!("{facts}\n{table}\n{}", plots(root)?))?)?;
    }
    Ok(())
}

/// The plots, as Markdown shows them.
fn plots(root: &Path) -> Result<String> {
    let mut names = Vec::new();
    for file in fs::read_dir(root.join("benches").join(PLOTS)).context("passant-bench has drawn nothing")? {
        let name = file?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".svg").map(str::to_owned));
    }
    names.sort();
    Ok(names.iter().map(|name| format!("![{}]({PLOTS}/{name}.svg)\n", name.replace('-', " "))).collect())
}
