//! `passant`: the command line for operators and for workloads. A table of contents; see `args.rs` for the commands.

mod args;
mod commands;
mod connect;
mod dev;
mod entry_file;
mod json;
mod lint;
mod plain;
mod progress;
mod render;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::render::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Output::stdout(cli.output);
    let ended = run(cli, &mut out);
    ExitCode::from(out.end(ended))
}

#[tokio::main]
async fn run(cli: Cli, out: &mut Output) -> anyhow::Result<()> {
    let server = cli.server;
    match cli.command {
        Command::Dev(args) => dev::run(args, out).await,
        Command::Entry(command) => commands::entry::run(command, &server, out).await,
        Command::Token(command) => commands::token::run(command, &server, out).await,
        Command::Agent(command) => commands::agent::run(command, &server, out).await,
        Command::Stop(command) => commands::stop::run(command, &server, out).await,
        Command::Access(command) => commands::access::run(command, &server, out).await,
        Command::Federation(command) => commands::federation::run(command, &server, out).await,
        Command::Import(command) => commands::import::run(command, &server, out).await,
        Command::Audit(command) => commands::audit::run(command, &server, out).await,
        Command::Authority(command) => commands::authority::run(command, &server, out).await,
        Command::Bundle(command) => commands::bundle::run(command, &server, out).await,
        Command::X509(command) => commands::x509::run(command, &server, out).await,
        Command::Jwt(command) => commands::jwt::run(command, &server, out).await,
        Command::Store(command) => commands::store::run(command, &server, out).await,
        Command::Svid(command) => commands::svid::run(command, out).await,
        Command::Logger(command) => commands::logger::run(command, &server, out).await,
        Command::Healthcheck(args) => commands::healthcheck::run(args, &server, out).await,
        Command::Explain(command) => commands::explain::run(command, &server, out).await,
        Command::Debug => commands::debug::run(&server, out).await,
        Command::Lint(args) => commands::lint::run(args, &server, out).await,
        Command::Completion { shell } => out.completion(shell),
    }
}
