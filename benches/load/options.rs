//! What does the person choose who starts a run, and what follows from that?

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fleet::PER_PROCESS;
use crate::row::Row;
use crate::rows::ROWS;
use crate::site::{Make, Places};

/// What may be chosen.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rows to measure, by parts of their keys; all of them if none is given.
    rows: Vec<String>,
    /// Agents of all processes together.
    #[arg(long, value_parser = count(1, 1_000_000))]
    agents: Option<usize>,
    /// Entries of these agents together.
    #[arg(long, value_parser = count(1, 2_000_000))]
    entries: Option<usize>,
    /// Entries where a row is about very many.
    #[arg(long, value_parser = count(1_000, 4_000_000))]
    many: Option<usize>,
    /// X509-SVIDs that are minted in batches of 100.
    #[arg(long, value_parser = count(100, 10_000_000))]
    mints: Option<usize>,
    /// JWT-SVIDs that are minted.
    #[arg(long, value_parser = count(1, 10_000_000))]
    jwts: Option<usize>,
    /// Entries that are created one after the other, until a workload has the SVID.
    #[arg(long, value_parser = count(1, 100_000))]
    creates: Option<usize>,
    /// Workloads of one real agent.
    #[arg(long, value_parser = count(1, 1_000))]
    workloads: Option<usize>,
    /// Seconds for which idle servers are looked at.
    #[arg(long, value_parser = count(1, 3_600))]
    seconds: Option<usize>,
    /// Agents that one process plays.
    #[arg(long, default_value_t = PER_PROCESS, value_parser = count(1, PER_PROCESS))]
    per_process: usize,
    /// Addresses of 127.0.0.0/8 from which the agents come; one for each agent if not given.
    #[arg(long, value_parser = count(1, crate::wire::ADDRESSES))]
    addresses: Option<usize>,
    /// Few of everything: shows that every row runs, in a minute, and measures badly.
    #[arg(long)]
    quick: bool,
    /// Whose server is measured. Rows about agents run passant-agent either way.
    #[arg(long, value_enum, default_value_t = Make::Passant)]
    server: Make,
    /// Where passant-server and passant-agent are; where this program is, if not given.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Where spire-server is.
    #[arg(long, required_if_eq("server", "spire"))]
    spire_bin: Option<PathBuf>,
    /// For stores and decision records: a directory on a real disk. Where this program is, if not given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write everything here as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Write the table here in Markdown, as ratios.
    #[arg(long)]
    pub(crate) table: Option<PathBuf>,
    /// Draw plots into this directory.
    #[arg(long)]
    pub(crate) plots: Option<PathBuf>,
}

fn count(least: usize, most: usize) -> RangedU64ValueParser<usize> {
    let wide = |number| u64::try_from(number).unwrap_or(u64::MAX);
    RangedU64ValueParser::new().range(wide(least)..=wide(most))
}

/// How much of everything there is in a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) agents: usize,
    pub(crate) entries: usize,
    pub(crate) many: usize,
    pub(crate) mints: usize,
    pub(crate) jwts: usize,
    pub(crate) creates: usize,
    pub(crate) workloads: usize,
    pub(crate) idle: Duration,
    pub(crate) addresses: usize,
    pub(crate) per_process: usize,
    /// How often something is done whose median counts and that takes a while.
    pub(crate) turns: usize,
}

impl Options {
    /// Refuses what cannot be run, and says what would help.
    ///
    /// # Errors
    /// When a row is asked for that there is not, a program or directory is missing, or files are too few.
    pub(crate) fn checked(&self) -> Result<(Sizes, Places)> {
        for part in &self.rows {
            let is_known = ROWS.iter().any(|row| row.key.contains(part.as_str()));
            ensure!(is_known, "no row's key has {part:?} in it; the keys are {}", keys());
        }
        let here = std::env::current_exe().context("the path of this program is unknown")?;
        let here = here.parent().context("this program lies in no directory")?.to_owned();
        let programs = self.bin.clone().unwrap_or_else(|| here.clone());
        let ours = match self.server {
            Make::Passant => vec!["passant-server", "passant-agent"],
            Make::Spire => vec!["passant-agent"],
        };
        for name in ours {
            let path = programs.join(name);
            ensure!(path.is_file(), "{} is missing: build it, or say with --bin where it is", path.display());
        }
        if let (Make::Spire, Some(dir)) = (self.server, &self.spire_bin) {
            ensure!(dir.join("spire-server").is_file(), "{} has no spire-server", dir.display());
        }
        let disk = self.dir.clone().unwrap_or(here);
        ensure!(disk.is_dir(), "{} is no directory", disk.display());
        let sizes = self.sizes();
        ensure!(
            sizes.entries >= sizes.agents,
            "{} entries are too few for {} agents: each has one",
            sizes.entries,
            sizes.agents
        );
        enough_files(sizes.agents)?;
        let places = Places { make: self.server, programs, spire: self.spire_bin.clone(), disk };
        Ok((sizes, places))
    }

    fn sizes(&self) -> Sizes {
        let chosen =
            |chosen: Option<usize>, quick, full| chosen.unwrap_or(if self.quick { quick } else { full });
        let agents = chosen(self.agents, 40, 10_000);
        let seconds = chosen(self.seconds, 3, 60);
        Sizes {
            agents,
            entries: chosen(self.entries, (4 * agents).max(400), (10 * agents).max(1_000)),
            many: chosen(self.many, 5_000, 1_000_000),
            mints: chosen(self.mints, 400, 40_000),
            jwts: chosen(self.jwts, 400, 40_000),
            creates: chosen(self.creates, 3, 200),
            workloads: chosen(self.workloads, 5, 100),
            idle: Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)),
            addresses: self.addresses.unwrap_or(agents),
            per_process: self.per_process,
            turns: if self.quick { 1 } else { 5 },
        }
    }

    /// Whether one of `rows` is to be measured.
    pub(crate) fn wants(&self, rows: &[&Row]) -> bool {
        let is_wanted = |row: &&Row| self.rows.iter().any(|part| row.key.contains(part.as_str()));
        self.rows.is_empty() || rows.iter().any(is_wanted)
    }
}

fn keys() -> String {
    ROWS.iter().map(|row| row.key).collect::<Vec<_>>().join(", ")
}

/// Raises the limit of open files as far as it takes, for this process and those that it starts.
fn enough_files(agents: usize) -> Result<()> {
    // Each agent of a process has a connection, and another one to the floor; the server has one for each agent of all.
    let wanted = u64::try_from(2 * agents.min(PER_PROCESS).max(agents / 2) + 512)?;
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if current < most {
        // As far as it goes: the server asks for as much, too.
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    let least = wanted / 2;
    ensure!(
        most >= least,
        "{agents} agents need {least} open files, and this process may have {most}: raise it with ulimit -n, or take \
         fewer --agents"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        let program = Program::try_parse_from(std::iter::once(&"passant-bench").chain(arguments));
        program.map(|program| program.options).map_err(|error| error.to_string())
    }

    fn check(arguments: &[&str], said: &str) {
        let error = match parsed(arguments) {
            Err(error) => error,
            Ok(options) => options.checked().unwrap_err().to_string(),
        };
        assert!(error.contains(said), "{error}");
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        check(&["--per-process", "10001"], "10001 is not in 1..=10000");
        check(&["--agents", "0"], "0 is not in 1..=1000000");
        check(&["--agents", "many"], "invalid digit");
        check(&["--server", "spire"], "--spire-bin");
        check(&["nothing-like-it"], "the keys are");
        check(&["--bin", "/nowhere"], "/nowhere/passant-server is missing");
    }

    #[test]
    fn rows_are_chosen_by_parts_of_their_keys() {
        let row = ROWS.iter().find(|row| row.key == "mint").unwrap();
        assert!(parsed(&[]).unwrap().wants(&[row]));
        assert!(parsed(&["min"]).unwrap().wants(&[row]));
        assert!(!parsed(&["attest"]).unwrap().wants(&[row]));
    }

    #[test]
    fn a_quick_run_is_small_and_what_is_given_counts() {
        let sizes = parsed(&["--quick", "--agents", "7"]).unwrap().sizes();
        assert!(sizes.agents == 7 && sizes.entries >= 7 && sizes.many <= 10_000);
        let sizes = parsed(&[]).unwrap().sizes();
        assert_eq!((sizes.agents, sizes.entries, sizes.many), (10_000, 100_000, 1_000_000));
    }
}
