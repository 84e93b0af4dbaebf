//! One go-spiffe program with open watches, whose updates are known here as soon as it has them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::held::{Line, Watch};
use crate::moment::Moment;
use crate::peers::Program;

/// A running program of that kind.
pub(crate) struct Follower {
    pub(crate) name: String,
    process: Child,
    watches: watch::Receiver<Vec<Watch>>,
}

impl Follower {
    /// Starts a Go `program` with so many watches of the agent behind `socket`; what it complains of lies in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        program: &Program,
        name: &str,
        socket: &Path,
        dir: &Path,
        streams: usize,
    ) -> anyhow::Result<Self> {
        let mut command = program.command(socket);
        command.args(["follow", "--jwt-bundles", "--streams", &streams.to_string()]);
        let complaints = File::create(dir.join(format!("{name}.err")))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
        let mut process = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        let output = process.stdout.take().context("its output")?;
        let (told, watches) = watch::channel(vec![Watch::default(); streams]);
        // It ends with the program, whose output ends then.
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || read(BufReader::new(output), &told))?;
        Ok(Self { name: name.to_owned(), process, watches })
    }

    /// What its watches hold now.
    pub(crate) fn now(&self) -> Vec<Watch> {
        self.watches.borrow().clone()
    }

    /// Waits until all its watches are as wanted; gives them.
    ///
    /// # Errors
    /// When they are not after `within`.
    pub(crate) async fn until(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Watch) -> bool,
    ) -> anyhow::Result<Vec<Watch>> {
        let mut watches = self.watches.clone();
        let all = timeout(within, watches.wait_for(|watches| watches.iter().all(&wanted)));
        match all.await {
            Ok(Ok(watches)) => Ok(watches.clone()),
            Ok(Err(_)) => bail!("{} ended by itself while it was waited for {what}", self.name),
            Err(_) => bail!("{}: waited {within:?} for {what}", self.name),
        }
    }

    /// Stops it; gives what it held until now.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub(crate) fn stop(mut self) -> anyhow::Result<Vec<Watch>> {
        let ended = Moment::now();
        let mut watches = self.now();
        watches.iter_mut().for_each(|watch| watch.held_until(ended));
        let status = self.process.try_wait()?;
        ensure!(status.is_none(), "{} ended by itself: {status:?}", self.name);
        Ok(watches)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Takes over line by line. What cannot be read is a failure of the first watch: then the two programs do not understand
/// each other.
fn read(lines: impl BufRead, told: &watch::Sender<Vec<Watch>>) {
    for line in lines.lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str::<Line>(&line) {
            Ok(line) => told.send_modify(|watches| {
                if let Some(watch) = watches.get_mut(line.stream()) {
                    watch.take(line);
                }
            }),
            Err(error) => told.send_modify(|watches| {
                let failures = watches.iter_mut().take(1).map(|watch| &mut watch.failures);
                failures.for_each(|failures| failures.push(format!("cannot read {line:?}: {error}")));
            }),
        }
    }
}
