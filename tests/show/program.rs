//! Which server is run: the one that is shipped, or one with a planted bug awake?

use std::path::PathBuf;
use std::process::Command;

use passant_tests::binaries::{ablated_server, binaries};
use passant_tests::daemon::Daemon;
use passant_tests::site::Site;

/// A server's program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// The planted bug to wake in it.
    ablation: Option<&'static str>,
}

impl Program {
    /// The server as it is.
    pub(crate) fn sound() -> Self {
        Self { path: binaries().server.clone(), ablation: None }
    }

    /// The server with the bug of `tests/ablations/NAME.patch`.
    pub(crate) fn with_bug(name: &'static str) -> Self {
        Self { path: ablated_server(), ablation: Some(name) }
    }

    /// Starts it at `site` and does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn spawn(&self, site: &Site) -> anyhow::Result<Daemon> {
        let mut program = Command::new(&self.path);
        if let Some(name) = self.ablation {
            program.env("PASSANT_ABLATION", name);
        }
        site.spawn_server_as(program)
    }
}
