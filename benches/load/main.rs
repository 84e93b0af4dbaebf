//! How fast, how big and how patient is a server under a whole fleet? Which parts has a run, and how is one started?
//!
//! One process measures. It starts a server, processes that play agents, a floor's server, real agents and workloads, all
//! on loopback; see README.md beside this directory. `cargo xtask bench load` is the way to start it.

mod agent;
mod clock;
mod control;
mod fleet;
mod floors;
mod nodes;
mod numbers;
mod options;
mod order;
mod plot;
mod report;
mod row;
mod rows;
mod site;
mod wire;
mod workload;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

use options::Options;
use report::{Report, heading, say};

/// Plays a fleet of agents against a server, and measures both beside their floors.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Program {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What other processes of a run do.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Play(fleet::Play),
    #[command(hide = true)]
    Floor(floors::fan_out::Serve),
    #[command(hide = true)]
    Workload(workload::Work),
    #[command(hide = true)]
    Scan(floors::disk::Scan),
}

fn main() -> Result<()> {
    let program = Program::parse();
    let many = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match program.part {
        None => many()?.block_on(run(&program.options)),
        Some(Part::Play(told)) => many()?.block_on(fleet::play(&told)),
        Some(Part::Floor(told)) => many()?.block_on(floors::fan_out::serve(&told)),
        Some(Part::Workload(told)) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(workload::work(&told)),
        Some(Part::Scan(told)) => floors::disk::scan(&told),
    }
}

async fn run(options: &Options) -> Result<()> {
    let (sizes, places) = options.checked()?;
    let mut report = Report::default();
    say(heading().trim_end());
    let measured = rows::measure(options, sizes, &places, &mut report).await;
    // What was measured before a failure is told all the same.
    say(&format!("\n{}", report.table()));
    let facts = json!({
        "server": format!("{:?}", places.make).to_lowercase(),
        "agents": sizes.agents, "entries": sizes.entries, "many_entries": sizes.many,
        "cores": std::thread::available_parallelism()?.get(),
        "unix_time": passant_core::Host::system().now().secs(),
    });
    if let Some(file) = &options.json {
        write(file, &serde_json::to_string_pretty(&report.json(&facts))?)?;
    }
    if let Some(file) = &options.table {
        write(file, &report.markdown())?;
    }
    if let Some(dir) = &options.plots {
        let files = report.plots(dir)?;
        say(&format!("plots in {}: {}", dir.display(), files.join(", ")));
    }
    measured
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))
}
