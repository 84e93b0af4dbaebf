//! What can be asked on the command line, and what does the process say when it ends?

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use passant_core::Host;
use passant_server::config::{Config, ConfigError, Log, LogFormat};
use passant_server::{Server, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Issues SPIFFE identities to attested nodes and their workloads.
#[derive(Debug, Parser)]
#[command(name = "passant-server", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT.
    ///
    /// Exits with 0 after a clean stop, 64 when the configuration is at fault, 69 when something the server needs is not
    /// available (an address in use, a held or damaged store, lost keys), 70 on an internal error.
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

/// How a process ends, as sysexits.h counts it.
#[derive(Clone, Copy)]
enum End {
    Clean = 0,
    Config = 64,
    Unavailable = 69,
    Internal = 70,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        Self::from(end as u8)
    }
}

/// Does what the arguments ask for.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let end = if error.use_stderr() { End::Config } else { End::Clean };
            return if error.print().is_ok() { end.into() } else { End::Internal.into() };
        }
    };
    match cli.command {
        Command::Check(place) => check(&place.config),
        Command::Run(place) => match load(&place.config) {
            Ok(config) => serve(config),
            Err(error) => complain(&error),
        },
    }
    .into()
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
        Err(error) => complain(&error),
    }
}

/// Before logging is set up, and for what is read by a person at a terminal.
fn complain(error: &ConfigError) -> End {
    match writeln!(io::stderr(), "{error}") {
        Ok(()) => End::Config,
        Err(_) => End::Internal,
    }
}

fn serve(config: Config) -> End {
    init_logging(&config.log);
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(serve_until_told(config)),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to start the runtime");
            End::Internal
        }
    }
}

async fn serve_until_told(config: Config) -> End {
    // Listened for before anything is opened: a signal during the start must still end in a clean stop.
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "failed to listen for signals");
                return End::Internal;
            }
        };
    let running = match Server::start(config, Host::system()).await {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the server did not start");
            return end_of(&error);
        }
    };
    let name = tokio::select! {
        biased;
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "stopping");
    running.shutdown().await;
    End::Clean
}

fn end_of(error: &StartError) -> End {
    match error {
        StartError::Config(_) => End::Config,
        StartError::Unavailable(_) => End::Unavailable,
        StartError::Internal(_) => End::Internal,
    }
}

fn init_logging(log: &Log) {
    // The filter was parsed when the configuration was checked.
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match log.format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
}
