//! How is the real server started, watched while it starts, and killed?

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use passant_proto::bundle::GetBundleRequest;
use passant_tests::api::Operator;
use passant_tests::daemon::Daemon;
use passant_tests::site::Site;
use tokio::time::Instant;

use crate::program::Program;

/// A start that takes longer has failed.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
/// How often a starting server is asked whether it answers.
const LOOK: Duration = Duration::from_millis(2);
/// How long a starting server runs between two looks at sled's snapshot, which is written within some ten of these.
const STEP: Duration = Duration::from_micros(20);
/// Lines of a log that are shown of a server that did not start.
const LOG_LINES: usize = 6;

/// What a kill during a start left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// sled's half-written snapshot: the server died while it stood there.
    Generating,
    /// No such thing.
    Nothing,
}

/// Where the server runs, and what of it can be seen from outside.
pub(crate) struct Scene<'a> {
    pub(crate) site: &'a Site,
    pub(crate) program: Program,
}

impl Scene<'_> {
    /// Starts the server and does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn spawn(&self) -> anyhow::Result<Daemon> {
        self.program.spawn(self.site)
    }

    /// Waits until the server answers, and says how long that took.
    ///
    /// # Errors
    /// When it ends instead, or does neither in time; with the end of its log.
    pub(crate) async fn answers(&self, server: &mut Daemon) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let socket = self.site.server_socket();
        loop {
            let left = STARTED_WITHIN.saturating_sub(began.elapsed());
            let attempt = async {
                let operator = Operator::connect(&socket).await?;
                operator.bundles().get_bundle(GetBundleRequest { output_mask: None }).await?;
                anyhow::Ok(())
            };
            match tokio::time::timeout(left, attempt).await {
                Ok(Ok(())) => return Ok(began.elapsed()),
                Ok(Err(_)) => {}
                Err(_) => {
                    let log = last_lines(&server.log());
                    bail!("the server did not answer within {STARTED_WITHIN:?}: {log}");
                }
            }
            if let Some(status) = server.ended()? {
                bail!("the server did not start ({status}): {}", last_lines(&server.log()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Kills a server that starts as soon as sled's half-written snapshot stands there; or, if none comes, once it has
    /// gone past it. What it left.
    ///
    /// # Errors
    /// When the server ends by itself, or nothing can be seen.
    pub(crate) async fn kill_while_generating(&self, server: Daemon) -> anyhow::Result<Left> {
        let state = self.state();
        let record = self.newest_segment()?;
        let watch = move || -> anyhow::Result<Daemon> {
            let mut server = server;
            let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
            let before = size(&record);
            let leftover = generating(&state)?;
            let began = Instant::now();
            // The record is opened after the store.
            while !stopped_while_generating(&server, &state, leftover.as_ref())? && size(&record) == before {
                let ran = Instant::now();
                while ran.elapsed() < STEP {
                    std::hint::spin_loop();
                }
                if let Some(status) = server.ended()? {
                    bail!("the server did not start ({status}): {}", last_lines(&server.log()));
                }
                if began.elapsed() > STARTED_WITHIN {
                    bail!(
                        "the server did not start within {STARTED_WITHIN:?}: {}",
                        last_lines(&server.log())
                    );
                }
            }
            Ok(server)
        };
        tokio::task::spawn_blocking(watch).await??.kill()?;
        self.left()
    }

    /// What a dead server left.
    ///
    /// # Errors
    /// When nothing can be seen.
    pub(crate) fn left(&self) -> anyhow::Result<Left> {
        Ok(if generating(&self.state())?.is_some() { Left::Generating } else { Left::Nothing })
    }

    /// What tells one version of the key file from the next.
    pub(crate) fn key_file(&self) -> u64 {
        fs::metadata(self.site.path("server-data").join("keys.json")).map_or(0, |file| file.ino())
    }

    fn state(&self) -> PathBuf {
        self.site.path("server-data").join("state")
    }

    fn newest_segment(&self) -> anyhow::Result<PathBuf> {
        let dir = self.decisions();
        let mut files: Vec<PathBuf> =
            fs::read_dir(&dir)?.map(|file| Ok(file?.path())).collect::<std::io::Result<_>>()?;
        files.sort();
        files.pop().with_context(|| format!("no segment in {}", dir.display()))
    }

    /// Where the decision record is.
    pub(crate) fn decisions(&self) -> PathBuf {
        self.site.path("server-data").join("decisions")
    }
}

/// Stops the server for a look at what it writes, and lets it go on unless sled's snapshot is half-written: without that, it
/// would mostly be whole when the kill arrives.
fn stopped_while_generating(
    server: &Daemon,
    state: &Path,
    leftover: Option<&Unfinished>,
) -> anyhow::Result<bool> {
    let pid = Pid::from_raw(i32::try_from(server.pid())?);
    signal::kill(pid, Signal::SIGSTOP)?;
    let found = generating(state)?;
    let is_generating = found.is_some() && found.as_ref() != leftover;
    if !is_generating {
        signal::kill(pid, Signal::SIGCONT)?;
    }
    Ok(is_generating)
}

/// sled's half-written snapshot: its name, when it was last written, in nanoseconds, and its length.
type Unfinished = (OsString, i64, u64);

fn generating(state: &Path) -> anyhow::Result<Option<Unfinished>> {
    for file in fs::read_dir(state)? {
        let file = file?;
        let name = file.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating")) {
            // It is renamed once it is whole.
            let Ok(meta) = file.metadata() else { continue };
            return Ok(Some((name, meta.mtime_nsec(), meta.len())));
        }
    }
    Ok(None)
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join(" | ")
}
