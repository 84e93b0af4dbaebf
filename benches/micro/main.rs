//! Which rows are there, and how is a run of them started?
//!
//! Every row measures ours and its floor in turns, in one process and one run, and says their ratio; see README.md beside
//! this directory. `cargo xtask bench` is the way to start it.

mod bulk;
mod clock;
mod commit;
mod entries;
mod issuer;
mod lab;
mod matching;
mod mint;
mod place;
mod row;
mod start;
mod table;
mod token;
mod workload_api;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use lab::Lab;
use row::Row;

/// All rows, in the order of the table.
const ROWS: [&Row; 14] = [
    &mint::MINT,
    &mint::MINT_DURABLY,
    &token::TOKEN,
    &matching::MATCH,
    &matching::AUTHORIZED,
    &workload_api::FETCH,
    &workload_api::OPEN_STREAM,
    &workload_api::FETCH_TOKEN,
    &commit::COMMIT,
    &commit::COMMIT_64,
    &bulk::BULK,
    &start::START,
    &start::MEMORY,
    &start::DISK,
];

/// Measures ours against floors.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
    /// Rows to measure, by parts of their keys; all of them if none is given.
    rows: Vec<String>,
    /// Few samples and a tenth of the entries: shows that everything runs, and measures badly.
    #[arg(long)]
    quick: bool,
    /// Entries where a row is about many.
    #[arg(long)]
    entries: Option<usize>,
    /// Write the table here as well, in Markdown.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Told by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Task {
    /// What a row has done in a process of its own.
    #[command(hide = true)]
    Open(start::Open),
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(Task::Open(open)) = args.task {
        return start::open(&open);
    }
    let entries = args.entries.unwrap_or(if args.quick { 100_000 } else { 1_000_000 });
    let mut lab = Lab::new(args.rows, args.quick, entries)?;
    mint::measure(&mut lab)?;
    token::measure(&mut lab)?;
    matching::measure(&mut lab)?;
    workload_api::measure(&mut lab)?;
    commit::measure(&mut lab)?;
    bulk::measure(&mut lab)?;
    start::measure(&mut lab)?;
    lab.tell(&ROWS, args.table.as_deref())
}
