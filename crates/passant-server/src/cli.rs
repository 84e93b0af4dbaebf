//! What can be asked on the command line, and what does the process say when it ends?

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use passant_core::Host;
use passant_daemon::exit::{EXIT_CODES, End, complain};
use passant_daemon::run;
use passant_server::config::{Config, ConfigError};
use passant_server::{Server, StartError};

/// Issues SPIFFE identities to attested nodes and their workloads.
#[derive(Debug, Parser)]
#[command(name = "passant-server", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT; SIGHUP makes it read log.level again.
    ///
    /// A second SIGTERM or SIGINT cuts what is still in progress.
    #[command(after_help = EXIT_CODES)]
    Run(Place),
    /// Check a configuration and report all of its faults.
    Check(Place),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        env = "PASSANT_SERVER_CONFIG",
        default_value = "/etc/passant/server.toml"
    )]
    config: PathBuf,
}

/// Does what the arguments ask for.
pub(crate) fn run() -> ExitCode {
    match run::arguments::<Cli>() {
        Err(end) => end.into(),
        Ok(cli) => act(cli.command).into(),
    }
}

fn act(command: Command) -> End {
    match command {
        Command::Check(place) => check(&place.config),
        Command::Run(place) => match load(&place.config) {
            Ok(config) => serve(config, &place.config),
            Err(error) => complain(End::Config, &error),
        },
    }
}

/// The configuration, with the files that it names looked at: whoever reads of a fault then knows which file to mend.
fn load(path: &Path) -> Result<Config, ConfigError> {
    let config = Config::load(path)?;
    passant_server::check(&config, path)?;
    Ok(config)
}

fn check(path: &Path) -> End {
    match load(path) {
        Ok(config) => {
            let warnings: String =
                config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            let said = format!("{warnings}{} is sound\n", path.display());
            if io::stdout().write_all(said.as_bytes()).is_ok() { End::Clean } else { End::Internal }
        }
        Err(error) => complain(End::Config, &error),
    }
}

fn serve(config: Config, file: &Path) -> End {
    let log = config.log.clone();
    let start = async || {
        Server::start(config, Host::system()).await.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the server did not start");
            end_of(&error)
        })
    };
    run::run(&log, start, || Config::load(file).map(|config| config.log))
}

fn end_of(error: &StartError) -> End {
    match error {
        StartError::Config(_) => End::Config,
        StartError::Unavailable(_) => End::Unavailable,
        StartError::Internal(_) => End::Internal,
    }
}
