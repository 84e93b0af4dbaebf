//! What can be asked of `passant-agent` on its command line?

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use passant_agent::config::{Config, NodeAttestor, TokenSource};
use passant_agent::{Agent, StartError};
use passant_attest::node::join_token::Token;
use passant_core::Host;
use passant_daemon::exit::{self, EXIT_CODES, End, with_causes};
use passant_daemon::run;
use tracing::warn;
use zeroize::Zeroize;

/// Serves SPIFFE identities to the workloads of this node.
#[derive(Parser)]
#[command(name = "passant-agent", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT; SIGHUP makes it read log.level again.
    ///
    /// A second SIGTERM or SIGINT cuts what is still in progress.
    #[command(after_help = EXIT_CODES)]
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

/// Does what the command line asks.
pub(crate) fn main() -> ExitCode {
    match run::arguments::<Cli>() {
        Err(end) => end.into(),
        Ok(cli) => act(cli.command).into(),
    }
}

fn act(command: Command) -> End {
    match command {
        Command::Run(run) => {
            let file = run.config.clone();
            match configure(run) {
                Ok(config) => serve(config, &file),
                Err(fault) => complain(End::Config, &fault),
            }
        }
        Command::Check(check) => match Config::load(&check.config) {
            Ok(_) => End::Clean,
            Err(fault) => complain(End::Config, &fault),
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

fn serve(config: Config, file: &Path) -> End {
    let log = config.log.clone();
    let start = async || {
        if config.is_data_given_away() {
            warn!(data_dir = %config.data_dir.display(),
                "data_dir lies below the directory of workload_api.socket: a container that is given that directory is \
                 given the node's key");
        }
        let started = Agent::start(config, Host::system()).await;
        started.map_err(|error| complain(end_of(&error), &with_causes(&error)))
    };
    run::run(&log, start, || Config::load(file).map(|config| config.log))
}

fn end_of(error: &StartError) -> End {
    match error {
        StartError::Bootstrap(_) => End::Config,
        StartError::Admin(_) | StartError::Data(_) | StartError::Listen(_) | StartError::Probe(_) => {
            End::Unavailable
        }
        StartError::Internal(_) => End::Internal,
    }
}

fn complain(end: End, fault: &dyn fmt::Display) -> End {
    exit::complain(end, &format!("passant-agent: {fault}"))
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
