//! One foreign program that watches the Workload API and writes down what it receives.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use passant_tests::daemon::Daemon;

use crate::judge::Client;
use crate::moment::Moment;
use crate::peers::{Peer, Program};
use crate::watch_log;

/// Longer than any show: watchers are stopped, they do not end.
const FOREVER: &str = "86400s";

/// A running watcher.
pub(crate) struct Watcher {
    pub(crate) peer: Peer,
    pub(crate) name: String,
    spiffe_id: String,
    log: PathBuf,
    process: Daemon,
}

impl Watcher {
    /// Starts `program` to watch, and to fetch a JWT-SVID for `audience` again and again; its files lie in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        peer: Peer,
        program: &Program,
        name: &str,
        spiffe_id: &str,
        socket: &Path,
        dir: &Path,
        (audience, every): (&str, Duration),
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.jsonl"));
        let mut command = program.command(socket);
        command.arg("watch").arg("--log").arg(&log).args(["--duration", FOREVER]);
        command.args(["--jwt-audience", audience, "--jwt-interval", &format!("{}s", every.as_secs())]);
        let process = Daemon::start(command, &dir.join(format!("{name}.out")))?;
        Ok(Self { peer, name: name.to_owned(), spiffe_id: spiffe_id.to_owned(), log, process })
    }

    /// What it has written so far, judged as if it were stopped now.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub(crate) fn so_far(&self) -> anyhow::Result<Client> {
        let lines = watch_log::read(&self.log)?;
        let (name, spiffe_id) = (self.name.clone(), self.spiffe_id.clone());
        Ok(Client { name, spiffe_id, lines, ended: Moment::now() })
    }

    /// Stops it and reads what it wrote.
    ///
    /// # Errors
    /// When it had ended by itself, or its log cannot be read.
    pub(crate) fn stop(mut self) -> anyhow::Result<Client> {
        let ended = Moment::now();
        if let Some(status) = self.process.ended()? {
            bail!("{} ended by itself ({status}): {}", self.name, self.process.log().trim());
        }
        self.process.kill()?;
        let lines = watch_log::read(&self.log)?;
        Ok(Client { name: self.name, spiffe_id: self.spiffe_id, lines, ended })
    }
}
