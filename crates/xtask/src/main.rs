//! What can our automation do? One subcommand, one file.

mod ablate;
mod bench;
mod cargo;
mod codegen;
mod conformance;
mod interop;
mod readme;
mod show;
mod tidy;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

/// Our automation: what a person would otherwise have to remember.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run cargo in a copy of the tree with the bugs of tests/ablations planted; `PASSANT_ABLATION` wakes one.
    Ablate {
        /// The arguments of cargo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        cargo: Vec<OsString>,
    },
    /// Measure how fast and how big we are, against floors of the same run.
    #[command(args_conflicts_with_subcommands = true)]
    Bench(bench::Options),
    /// Compile proto/ and write the Rust of passant-proto.
    Codegen,
    /// Run the conformance tests and say which requirements of the specifications are met.
    Conformance(conformance::Options),
    /// Check what the compiler does not: layers, sources, locked packages.
    Tidy,
    /// Judge server and agent with programs nobody here wrote; builds those first.
    Interop,
    /// Run a long show: `rotation`, `outage`, `entry-end`, `storm`, `dev`, `sim`, `kills`; `show help` tells their flags.
    Show {
        /// Without optimisation, where a show has it otherwise.
        #[arg(long)]
        dev: bool,
        /// Name and flags of the show.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        show: Vec<OsString>,
    },
}

fn main() -> anyhow::Result<()> {
    let root = root();
    match Args::parse().task {
        Task::Ablate { cargo } => ablate::run(&root, &cargo),
        Task::Bench(options) => bench::run(&root, &options),
        Task::Codegen => codegen::run(&root),
        Task::Conformance(options) => conformance::run(&root, &options),
        Task::Tidy => tidy::run(&root),
        Task::Interop => interop::run(&root),
        Task::Show { dev, show } => show::run(&root, &show, dev),
    }
}

/// The directory of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("xtask stands two levels below the workspace").to_path_buf()
}
