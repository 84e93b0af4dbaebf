//! What can be asked on the command line, and what does the process say when it ends?

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use passant_core::Host;
use passant_daemon::exit::{EXIT_CODES, End, Signals, Told};
use passant_daemon::log::{self, Control};
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
            Ok(config) => serve(config, &place.config),
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

fn serve(config: Config, file: &Path) -> End {
    let log = match log::init(&config.log) {
        Ok(log) => log,
        Err(error) => {
            return match writeln!(io::stderr(), "failed to set up the log: {error}") {
                Ok(()) | Err(_) => End::Internal,
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to start the runtime");
            return End::Internal;
        }
    };
    let end = runtime.block_on(serve_until_told(config, file, log));
    // What was cut may hang on a disk: it is not waited for.
    runtime.shutdown_background();
    end
}

async fn serve_until_told(config: Config, file: &Path, log: &Control) -> End {
    // Listened for before anything is opened: a signal during the start must still end in a clean stop.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
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
    loop {
        let told = tokio::select! {
            biased;
            told = signals.next() => told,
            () = running.failed() => {
                running.shutdown().await;
                return End::Internal;
            }
        };
        match told {
            Told::Stop(signal) => {
                tracing::info!(signal = signal.name(), "stopping");
                return signals.unless_forced(running.shutdown()).await;
            }
            Told::Reload => reload(file, log),
        }
    }
}

/// Takes over the level of the log, if the file is sound. All else takes a restart.
fn reload(file: &Path, log: &Control) {
    match Config::load(file) {
        Ok(config) => match log.configure(&config.log.level) {
            Ok(()) => tracing::info!(level = config.log.level, "configuration read again: log level set"),
            Err(error) => tracing::error!(%error, "configuration read again: log level not set"),
        },
        Err(error) => {
            tracing::error!(%error, "configuration read again: it is at fault, nothing was changed")
        }
    }
}

fn end_of(error: &StartError) -> End {
    match error {
        StartError::Config(_) => End::Config,
        StartError::Unavailable(_) => End::Unavailable,
        StartError::Internal(_) => End::Internal,
    }
}
