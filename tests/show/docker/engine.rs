//! How is a container engine started, stopped and told what to run? A dockerd of this show alone, with Debian's docker.io.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::daemon::Daemon;
use passant_tests::wait::eventually;

/// How long dockerd may take until it answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A dockerd with images, containers and sockets of its own. What runs in it is removed at its end.
pub(super) struct Engine {
    dir: PathBuf,
    daemon: Option<Daemon>,
}

impl Engine {
    /// Starts it in `dir`, which must not be there yet.
    pub(super) async fn start(dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&dir)?;
        fs::write(dir.join("daemon.json"), "{}")?;
        let mut engine = Self { dir, daemon: None };
        engine.start_again().await?;
        Ok(engine)
    }

    /// Starts it with what it had. Containers have run on meanwhile.
    pub(super) async fn start_again(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new("dockerd");
        let place = |name: &str| self.dir.join(name);
        command.arg("--config-file").arg(place("daemon.json"));
        command.arg("--data-root").arg(place("data")).arg("--exec-root").arg(place("exec"));
        command.arg("--pidfile").arg(place("dockerd.pid"));
        command.arg("--host").arg(format!("unix://{}", self.socket().display()));
        // Nothing of the machine's network is touched; any file system will do.
        command.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--storage-driver=vfs",
            "--live-restore",
        ]);
        let daemon =
            Daemon::start(command, &place("dockerd.log")).context("dockerd is of Debian's docker.io")?;
        let daemon = self.daemon.insert(daemon);
        let dir = &self.dir;
        let answers = eventually("dockerd to answer", ANSWERS_WITHIN, || async {
            docker(dir, &["version", "--format", "{{.Server.Version}}"]).await
        });
        answers.await.map(drop).with_context(|| format!("its log:\n{}", daemon.log()))
    }

    /// Stops it; its containers run on.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.daemon.take().context("it does not run")?.stop().await
    }

    /// Removes its containers, and stops it.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.remove_all();
        self.stop().await
    }

    /// As far as that is possible.
    fn remove_all(&self) {
        let Ok(all) = command(&self.dir).args(["ps", "--all", "--quiet"]).output() else { return };
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        drop(command(&self.dir).args(["rm", "--force"]).args(all.split_whitespace()).output());
    }

    /// Its socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// Runs `docker`; gives what it prints.
    pub(super) async fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        docker(&self.dir, arguments).await
    }

    /// Makes an image of the files in `root`.
    pub(super) fn import(&self, root: &Path, name: &str) -> anyhow::Result<()> {
        let mut tar =
            Command::new("tar").arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
        let files = tar.stdout.take().context("what tar packs")?;
        let output = command(&self.dir).args(["import", "-", name]).stdin(files).output()?;
        ensure!(
            tar.wait()?.success() && output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The pid of the first process of a container.
    pub(super) async fn pid(&self, container: &str) -> anyhow::Result<u32> {
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", container]).await?;
        pid.parse().with_context(|| format!("{pid:?} is no pid"))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.remove_all();
            self.daemon = None;
        }
        // It mounts its folder on itself, and takes that back only when it is stopped.
        drop(Command::new("umount").args(["--quiet", "--lazy"]).arg(self.dir.join("data")).output());
    }
}

async fn docker(dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = command(dir);
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.context("docker is of Debian's docker.io")?;
    ensure!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new("docker");
    command.arg("--host").arg(format!("unix://{}", dir.join("docker.sock").display()));
    // No settings of whoever runs the show.
    command.env("DOCKER_CONFIG", dir.join("client"));
    command
}
