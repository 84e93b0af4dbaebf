//! Does it work for real, with programs nobody here wrote, and for as long as it takes to see time pass?
//!
//! | show | what is seen |
//! |---|---|
//! | `interop` | the Go, Python and Rust libraries against a running server and agent, and the whole server API |
//! | `spire` | SPIRE's agents with this server, these agents with SPIRE's, for minutes; and SPIRE's command line; needs `SPIRE_BIN_DIR` |
//! | `spire-move` | an agent of SPIRE moves here with its workloads; needs SPIRE's programs, named by `SPIRE_BIN_DIR`; part of `interop` |
//! | `side-by-side` | a SPIRE agent and ours on one server make the same truth of it, change by change; needs `SPIRE_BIN_DIR` |
//! | `rotation` | many foreign clients with short-lived SVIDs; the server crashes in the middle |
//! | `outage` | the server is away for minutes; nobody notices who need not |
//! | `entry-end` | a registration entry has an end; nothing outlives it |
//! | `envoy` | two real Envoys do mutual TLS by the agent's secrets, through renewals, a new authority and a restart of the agent |
//! | `entries` | the command line with a hundred thousand entries: quick, small, and `lint` finds what is planted |
//! | `explain` | every cause of a missing identity, planted; `passant explain` names it first (root, for processes hidden in /proc) |
//! | `kills` | the server is killed at random moments, hundreds of times; what it acknowledged is compared each time |
//! | `power-loss` | the power fails under a server again and again, and its disk fails for a while (needs root and /dev/fuse) |
//! | `churn` | a day's changes of entries and rotations of the authorities in minutes; both daemons stay small |
//! | `create-to-svid` | how soon go-spiffe has the SVID of a new entry on an open watch |
//! | `docker` | containers of a real Docker are told apart by what it says of them; the engine goes away (root, and Debian's docker.io) |
//! | `storm` | thousands of short-lived processes; the agent stays small and quick |
//! | `dev` | what `passant dev` prints, judged by openssl and go-spiffe |
//! | `fuzz` | every parser of outside bytes under libFuzzer |
//! | `sim` | thousands of seeds of the simulation, and the bugs planted for it |
//!
//! Each starts real daemons in a folder of its own, prints one line for each fact (`ok` or `FAIL`) and closes with
//! `N passed, N failed`; the exit status is 1 if a fact did not hold or a peer could not run. Only `power-loss`, `explain` and `docker` need root.

mod caller;
mod churn;
mod create_to_svid;
mod decisions;
mod dev;
mod docker;
mod entries;
mod entry_end;
mod envoy;
mod explain;
mod follower;
mod fuzz;
mod handshakes;
mod held;
mod interop;
mod judge;
mod kills;
mod latency;
mod moment;
mod outage;
mod peers;
mod power_loss;
mod program;
mod registrar;
mod report;
mod rotation;
mod shipped;
mod side_by_side;
mod sim;
mod spire;
mod spire_commands;
mod spire_live;
mod spire_move;
mod spread;
mod storm;
mod synced;
mod truth;
mod watch_log;
mod watcher;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::report::{Report, say};

#[derive(Parser)]
#[command(name = "cargo xtask show", bin_name = "cargo xtask show")]
struct Arguments {
    #[command(subcommand)]
    show: Show,
}

#[derive(Subcommand)]
enum Show {
    /// Judge server and agent with the Go, Python and Rust peers.
    Interop,
    /// Live with SPIRE's programs on either side (SPIRE_BIN_DIR).
    Spire(SpireArgs),
    /// Move an agent of SPIRE here (SPIRE_BIN_DIR).
    SpireMove,
    /// Compare what a SPIRE agent and ours make of one server (SPIRE_BIN_DIR).
    SideBySide(SideBySideArgs),
    /// Watch rotations through a crash of the server.
    Rotation(RotationArgs),
    /// Take the server away and bring it back.
    Outage(OutageArgs),
    /// Let an entry end.
    EntryEnd,
    /// Let two real Envoys live on the agent's secrets.
    Envoy(EnvoyArgs),
    /// Move a hundred thousand entries, and lint them.
    Entries(EntriesArgs),
    /// Plant causes of "no identity issued", and ask for them.
    Explain,
    /// Change entries and rotate authorities, a day's worth in minutes.
    Churn(ChurnArgs),
    /// Measure how soon go-spiffe has the SVID of a new entry.
    CreateToSvid(CreateToSvidArgs),
    /// Start short-lived workloads without end.
    Storm(StormArgs),
    /// Judge what `passant dev` prints.
    Dev,
    /// Attest containers of a real Docker.
    Docker,
    /// Fuzz every parser of outside bytes.
    Fuzz(FuzzArgs),
    /// Kill the server again and again, and compare.
    Kills(KillsArgs),
    /// Run seeds of the simulation, and look for planted bugs.
    Sim(SimArgs),
    /// Cut the power under a server, on a disk that loses what was not synced.
    PowerLoss(PowerLossArgs),
    /// Be one short-lived workload; for `storm` and tests.
    #[command(hide = true)]
    Caller(caller::CallerArgs),
}

#[derive(Args)]
struct SpireArgs {
    /// How long to watch, on both sides at once.
    #[arg(long, default_value_t = 15)]
    minutes: u64,
    /// How often every authority is rotated meanwhile.
    #[arg(long, default_value_t = 3)]
    rotations: u32,
}

#[derive(Args)]
struct SideBySideArgs {
    /// Changes at the server, each compared at both agents.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
}

#[derive(Args)]
struct EnvoyArgs {
    /// How often the X509-SVIDs of both are renewed meanwhile.
    #[arg(long, default_value_t = 10)]
    rotations: usize,
}

#[derive(Args)]
struct EntriesArgs {
    /// Registration entries.
    #[arg(long, default_value_t = 100_000)]
    entries: usize,
}

#[derive(Args)]
struct SimArgs {
    /// How many seeds must hold.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Within how many seeds each planted bug must be found; 0 looks for none.
    #[arg(long, default_value_t = 200)]
    within: u64,
    /// Seeds that run at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

#[derive(Args)]
struct PowerLossArgs {
    /// How often the power fails.
    #[arg(long, default_value_t = 200)]
    cuts: usize,
    /// What chooses the moments and what is left.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct ChurnArgs {
    /// Entries to create, change and delete, in all.
    #[arg(long, default_value_t = 86_400)]
    changes: usize,
    /// Rotations of the X.509 and of the JWT authority, each.
    #[arg(long, default_value_t = 24)]
    rotations: usize,
    /// In how many minutes.
    #[arg(long, default_value_t = 20, conflicts_with = "seconds")]
    minutes: u64,
    /// In how many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Registration entries that there are at any time.
    #[arg(long, default_value_t = 4_000)]
    entries: usize,
}

#[derive(Args)]
struct CreateToSvidArgs {
    /// Entries to create, one after the other.
    #[arg(long, default_value_t = 500)]
    creations: usize,
    /// Workloads that are there all the time, each a process with an identity of its own.
    #[arg(long, default_value_t = 20)]
    workloads: usize,
    /// Open watches of each workload.
    #[arg(long, default_value_t = 2)]
    watches: usize,
}

#[derive(Args)]
struct StormArgs {
    /// Processes that start in each minute.
    #[arg(long, default_value_t = 2000)]
    starts_per_minute: u32,
    /// For how long.
    #[arg(long, default_value_t = 10, conflicts_with = "seconds")]
    minutes: u64,
    /// For how long, in seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

#[derive(Args)]
struct RotationArgs {
    /// How long to watch.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Watching processes, each with an entry of its own.
    #[arg(long, default_value_t = 50)]
    workloads: usize,
    /// Lifetime of X509-SVIDs and JWT-SVIDs, in seconds.
    #[arg(long, default_value_t = 60)]
    svid_ttl: u32,
}

#[derive(Args)]
struct KillsArgs {
    /// How often to kill.
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// Registration entries.
    #[arg(long, default_value_t = 100_000)]
    entries: usize,
}

#[derive(Args)]
struct OutageArgs {
    /// How long the server is away.
    #[arg(long, default_value_t = 5, conflicts_with = "seconds")]
    minutes: u64,
    /// How long the server is away, in seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

#[derive(Args)]
struct FuzzArgs {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run only this target, a file of tests/fuzz/src/bin.
    #[arg(long)]
    target: Option<String>,
    /// How many targets run at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only build them.
    #[arg(long)]
    no_run: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let show = Arguments::parse().show;
    let report = Report::default();
    let ran = match show {
        Show::Interop => {
            let judged = interop::run(&report).await;
            match spire_move::run(&report).await {
                Ok(()) => judged,
                Err(error) => judged.and(Err(error)),
            }
        }
        Show::Spire(args) => {
            let length = Duration::from_secs(args.minutes * 60);
            Box::pin(spire_live::run(&report, length, args.rotations)).await
        }
        Show::SpireMove => spire_move::run(&report).await,
        Show::SideBySide(args) => Box::pin(side_by_side::run(&report, args.rounds)).await,
        Show::Rotation(args) => {
            let length = Duration::from_secs(args.minutes * 60);
            rotation::run(&report, length, args.workloads, args.svid_ttl).await
        }
        Show::Outage(args) => {
            outage::run(&report, Duration::from_secs(args.seconds.unwrap_or(args.minutes * 60))).await
        }
        Show::Envoy(args) => Box::pin(envoy::run(&report, args.rotations)).await,
        Show::Entries(args) => entries::run(&report, args.entries).await,
        Show::Explain => Box::pin(explain::run(&report)).await,
        Show::EntryEnd => entry_end::run(&report).await,
        Show::Churn(ChurnArgs { changes, rotations, minutes, seconds, entries }) => {
            let length = Duration::from_secs(seconds.unwrap_or(minutes * 60));
            Box::pin(churn::run(&report, &churn::Plan { changes, rotations, length, entries })).await
        }
        Show::CreateToSvid(CreateToSvidArgs { creations, workloads, watches }) => {
            create_to_svid::run(&report, &create_to_svid::Plan { creations, workloads, watches }).await
        }
        Show::Storm(args) => {
            let length = Duration::from_secs(args.seconds.unwrap_or(args.minutes * 60));
            storm::run(&report, args.starts_per_minute, length).await
        }
        Show::Dev => dev::run(&report).await,
        Show::Docker => Box::pin(docker::run(&report)).await,
        Show::Fuzz(FuzzArgs { no_run: true, .. }) => fuzz::build_only(&report),
        Show::Fuzz(FuzzArgs { seconds, target, jobs, no_run: false }) => {
            fuzz::run(&report, &fuzz::Plan { seconds, target, jobs })
        }
        Show::Kills(args) => Box::pin(kills::run(&report, args.kills, args.entries)).await,
        Show::Sim(args) => sim::run(&report, args.seeds, args.within, args.jobs),
        Show::PowerLoss(args) => power_loss::run(&report, args.cuts, args.seed).await,
        Show::Caller(args) => return caller::run(args).await,
    };
    if let Err(error) = ran {
        report.fact("the show runs to its end", Err(error));
    }
    say(&report.to_string());
    if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
