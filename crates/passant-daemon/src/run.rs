//! How does a daemon go from its command line to its end?

use clap::Parser;

use crate::config::ConfigError;
use crate::exit::{End, Signals, Told, complain};
use crate::log::{self, Control, Log};

/// A daemon that has started.
pub trait Daemon {
    /// Waits until a part of it ends by itself, which is a fault of the program. Cancel safe.
    fn failed(&mut self) -> impl Future<Output = ()>;

    /// Stops it, within bounds, and waits for that.
    fn shutdown(self) -> impl Future<Output = ()>;
}

/// What the command line asks for.
///
/// # Errors
/// How the process ends: what was wrong has been said on standard error, or help or version on standard output.
pub fn arguments<A: Parser>() -> Result<A, End> {
    A::try_parse().map_err(|error| {
        let end = if error.use_stderr() { End::Config } else { End::Clean };
        if error.print().is_ok() { end } else { End::Internal }
    })
}

/// Runs what `start` starts, until a signal tells it to stop or a part of it fails. The log goes as `log` says, and after
/// each SIGHUP as `read_again` does. `start` says itself why it fails.
pub fn run<D: Daemon>(
    log: &Log,
    start: impl AsyncFnOnce() -> Result<D, End>,
    read_again: impl Fn() -> Result<Log, ConfigError>,
) -> End {
    let control = match log::init(log) {
        Ok(control) => control,
        Err(error) => return complain(End::Internal, &format!("failed to set up the log: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to start the runtime");
            return End::Internal;
        }
    };
    let end = runtime.block_on(async {
        // Listened for before anything is opened: a signal during the start must still end in a clean stop.
        let signals = match Signals::listen() {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "failed to listen for signals");
                return End::Internal;
            }
        };
        match start().await {
            Ok(daemon) => until_told(daemon, signals, || reload(control, read_again())).await,
            Err(end) => end,
        }
    });
    // What was cut may hang on a disk: it is not waited for.
    runtime.shutdown_background();
    end
}

async fn until_told(mut daemon: impl Daemon, mut signals: Signals, reload: impl Fn()) -> End {
    loop {
        let told = tokio::select! {
            biased;
            told = signals.next() => told,
            () = daemon.failed() => {
                daemon.shutdown().await;
                return End::Internal;
            }
        };
        match told {
            Told::Stop(signal) => {
                tracing::info!(signal = signal.name(), "stopping");
                return signals.unless_forced(daemon.shutdown()).await;
            }
            Told::Reload => reload(),
        }
    }
}

/// Takes over the level of the log, if the file is sound. All else takes a restart.
fn reload(log: &Control, read: Result<Log, ConfigError>) {
    match read.map(|read| (log.configure(&read.level), read.level)) {
        Ok((Ok(()), level)) => tracing::info!(level, "configuration read again: log level set"),
        Ok((Err(error), _)) => tracing::error!(%error, "configuration read again: log level not set"),
        Err(error) => {
            tracing::error!(%error, "configuration read again: it is at fault, nothing was changed");
        }
    }
}
