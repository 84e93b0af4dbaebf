//! What can be asked of `passant-agent` on its command line?

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use passant_agent::config::{Config, Log, LogFormat, NodeAttestor, TokenSource};
use passant_agent::{Agent, Running, StartError};
use passant_attest::node::join_token::Token;
use passant_core::Host;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroize;

/// The command line or the configuration is wrong.
const USAGE: u8 = 64;
/// The machine or the program is.
const SOFTWARE: u8 = 70;

/// Serves SPIFFE identities to the workloads of this node.
#[derive(Parser)]
#[command(name = "passant-agent", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until it is told to stop (SIGTERM or SIGINT).
    Run(Run),
    /// Check the configuration, report every fault at once, and exit.
    Check(Check),
}

#[derive(Args)]
struct Run {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The join token to attest with, if no node SVID is stored. Other users of this machine may see it in the list of
    /// processes until it is spent: better use --join-token-file.
    #[arg(long, value_name = "TOKEN", conflicts_with = "join_token_file")]
    join_token: Option<String>,
    /// A file with the join token, not readable by everyone.
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

#[derive(Args)]
struct Check {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Does what the command line asks, and says how the process ends: 0 done, 64 wrong usage or configuration, 70 failed.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            return if error.print().is_ok() { code } else { ExitCode::from(SOFTWARE) };
        }
    };
    match cli.command {
        Command::Run(run) => match configure(run) {
            Ok(config) => serve(config),
            Err(fault) => complain(USAGE, &fault),
        },
        Command::Check(check) => match Config::load(&check.config) {
            Ok(_) => ExitCode::SUCCESS,
            Err(fault) => complain(USAGE, &fault),
        },
    }
}

/// The configuration with what the command line adds. The token's text is wiped here; the process's argument list is out
/// of reach.
fn configure(run: Run) -> Result<Config, String> {
    let mut config = Config::load(&run.config).map_err(|error| error.to_string())?;
    let source = match (run.join_token, run.join_token_file) {
        (Some(mut text), _) => {
            let token = Token::parse(&text);
            text.zeroize();
            Some(TokenSource::Given(token.map_err(|error| format!("--join-token: {error}"))?))
        }
        (None, Some(path)) => Some(TokenSource::File(path)),
        (None, None) => None,
    };
    match (&mut config.node_attestor, source) {
        (NodeAttestor::JoinToken(slot), Some(source)) => *slot = Some(source),
        (NodeAttestor::X509pop(_), Some(_)) => {
            return Err("a join token was given, but node_attestor.method is \"x509pop\"".to_owned());
        }
        (NodeAttestor::JoinToken(_) | NodeAttestor::X509pop(_), None) => {}
    }
    Ok(config)
}

fn serve(config: Config) -> ExitCode {
    if let Err(error) = log(&config.log) {
        return complain(SOFTWARE, &format!("failed to set up the log: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(SOFTWARE, &format!("failed to start the runtime: {error}")),
    };
    runtime.block_on(async {
        let running = match Agent::start(config, Host::system()).await {
            Ok(running) => running,
            Err(error) => return complain(code_of(&error), &with_causes(&error)),
        };
        until_told(running).await
    })
}

async fn until_told(mut running: Running) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return complain(SOFTWARE, &"failed to listen for signals");
    };
    let code = tokio::select! {
        biased;
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        () = running.failed() => ExitCode::from(SOFTWARE),
    };
    info!("stopping");
    running.shutdown().await;
    code
}

fn code_of(error: &StartError) -> u8 {
    match error {
        StartError::Bootstrap(_) => USAGE,
        StartError::Data(_) | StartError::Listen(_) => SOFTWARE,
    }
}

fn log(log: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&log.level)?)
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Says what is wrong on standard error; where that is gone, the exit code has to do.
fn complain(code: u8, fault: &dyn fmt::Display) -> ExitCode {
    let said = writeln!(std::io::stderr(), "passant-agent: {fault}");
    ExitCode::from(if said.is_ok() { code } else { SOFTWARE })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_one_source_of_a_token_is_accepted() {
        let parse = |arguments: &[&str]| {
            Cli::try_parse_from(["passant-agent", "run", "--config", "f"].iter().chain(arguments))
        };
        assert!(parse(&["--join-token", "t"]).is_ok());
        assert!(parse(&["--join-token", "t", "--join-token-file", "f"]).is_err());
    }
}
