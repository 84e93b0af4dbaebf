//! How does a daemon end, and what is it told by signals?

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How a process ends. The numbers are those of sysexits.h; a stop that was forced ends as the signal would have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to stop, and has: 0.
    Clean,
    /// The command line or the configuration is at fault: 64.
    Config,
    /// Something that it needs is not available on this machine: 69.
    Unavailable,
    /// The program is at fault: 70.
    Internal,
    /// It was told twice to stop, and did not finish what was in progress: 130 after SIGINT, 143 after SIGTERM.
    Forced(Stop),
}

/// Signals that ask to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM.
    Terminate,
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// To stop.
    Stop(Stop),
    /// To read the configuration again: SIGHUP.
    Reload,
}

/// The signals that a daemon listens for. From the moment this is made none of them ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// For `--help`.
pub const EXIT_CODES: &str = "Exit codes: 0 after a clean stop, 64 when the command line or the configuration is at \
    fault, 69 when something that is needed is not available (an address or a data directory in use, a damaged file, \
    lost keys), 70 when the program is at fault, 130 or 143 when a second SIGINT or SIGTERM cut the stop short.";

impl End {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Config => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Forced(Stop::Interrupt) => 130,
            Self::Forced(Stop::Terminate) => 143,
        }
    }
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        Self::from(end.code())
    }
}

impl Stop {
    /// The signal's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }
}

impl Signals {
    /// Begins to listen, within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal. Cancel safe.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Told::Stop(Stop::Terminate),
            _ = self.interrupt.recv() => Told::Stop(Stop::Interrupt),
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Waits for `stopping`, unless told to stop once more.
    pub async fn unless_forced(&mut self, stopping: impl Future<Output = ()>) -> End {
        let mut stopping = std::pin::pin!(stopping);
        loop {
            let told = tokio::select! {
                biased;
                () = &mut stopping => return End::Clean,
                told = self.next() => told,
            };
            match told {
                Told::Stop(again) => {
                    tracing::warn!(signal = again.name(), "stopping at once: what is in progress is cut");
                    return End::Forced(again);
                }
                Told::Reload => {}
            }
        }
    }
}

/// Says on standard error, which a person reads, why the process ends as `end`; where that is gone, the exit code has to do.
pub fn complain(end: End, why: &dyn fmt::Display) -> End {
    if writeln!(io::stderr(), "{why}").is_ok() { end } else { End::Internal }
}

/// An error with all its causes, on one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_own_code_and_help_names_it() {
        let ends = [
            End::Clean,
            End::Config,
            End::Unavailable,
            End::Internal,
            End::Forced(Stop::Interrupt),
            End::Forced(Stop::Terminate),
        ];
        let codes: Vec<u8> = ends.iter().map(|end| end.code()).collect();
        assert_eq!(codes, [0, 64, 69, 70, 130, 143]);
        for code in codes {
            assert!(EXIT_CODES.contains(&format!(" {code} ")), "{code}");
        }
    }
}
