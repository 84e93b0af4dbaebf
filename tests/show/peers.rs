//! Which foreign programs are there, and how is each started as a workload of its own?
//!
//! Workloads are told apart by the path of their executable (`unix:path`): every one runs its own copy of its peer's
//! program. Unlike user ids this needs no root, and works the same with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::report::{Report, say};

/// A library nobody here wrote, with a program around it in tests/interop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// go-spiffe
    Go,
    /// py-spiffe
    Python,
    /// the `spiffe` crate
    Rust,
}

/// One executable of a peer and what must stand before its subcommand.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    executable: PathBuf,
    arguments: Vec<PathBuf>,
    environment: Vec<(&'static str, PathBuf)>,
    /// What the kernel calls the executable.
    pub(crate) path: PathBuf,
}

impl Peer {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Go, Self::Python, Self::Rust];

    /// As files and workloads are named.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Python => "python",
            Self::Rust => "rust",
        }
    }

    /// The program as it was built.
    pub(crate) fn program(self) -> Program {
        let here = interop().join(self.name());
        let (executable, arguments) = match self {
            Self::Go => (here.join("bin/interop"), Vec::new()),
            Self::Python => (here.join(".venv/bin/python"), vec![here.join("interop.py")]),
            Self::Rust => (here.join("target/debug/passant-interop"), Vec::new()),
        };
        Program { path: executable.clone(), executable, arguments, environment: Vec::new() }
    }

    /// A copy of the program in `dir` under `name`, so that no other workload has its path.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(crate) fn copy(self, dir: &Path, name: &str) -> anyhow::Result<Program> {
        let built = self.program();
        let place = dir.join(name);
        let program = match self {
            Self::Go | Self::Rust => {
                // A second name is as good as a copy, and costs nothing.
                fs::hard_link(&built.executable, &place)
                    .or_else(|_| fs::copy(&built.executable, &place).map(drop))
                    .with_context(|| format!("failed to copy {}", built.executable.display()))?;
                Program { path: place.clone(), executable: place, ..built }
            }
            Self::Python => {
                let made = Command::new(&built.executable)
                    .args(["-m", "venv", "--copies", "--without-pip"])
                    .arg(&place)
                    .output()?;
                ensure!(
                    made.status.success(),
                    "failed to copy Python: {}",
                    String::from_utf8_lossy(&made.stderr)
                );
                let executable = place.join("bin/python");
                Program {
                    path: executable_of(&executable)?,
                    executable,
                    environment: vec![("PYTHONPATH", site_packages()?)],
                    ..built
                }
            }
        };
        Ok(program)
    }
}

impl Program {
    /// A command that runs it as a workload of the agent behind `socket`.
    pub(crate) fn command(&self, socket: &Path) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()));
        command
    }

    /// Runs a subcommand to its end and reads the JSON object it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub(crate) async fn json(&self, socket: &Path, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut command = self.command(socket);
        command.args(arguments).stdin(Stdio::null());
        // The peers bound their calls themselves.
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// The runner of all peers, which also builds them.
pub(crate) fn runner() -> PathBuf {
    interop().join("run")
}

/// Builds the peers and tells their names and versions; each that cannot be built or run is a fact that does not hold.
///
/// # Errors
/// When there are peers that cannot run: no show can go on without them.
pub(crate) fn build(report: &Report) -> anyhow::Result<()> {
    let output = Command::new(runner())
        .arg("version")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start tests/interop/run: it needs Python 3")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        pass_on(report, line);
    }
    ensure!(output.status.success(), "a peer cannot run");
    Ok(())
}

/// Takes over a line of the runner: a verdict, its closing line (which ours replaces), or a remark.
pub(crate) fn pass_on(report: &Report, line: &str) {
    match line.split_once(' ') {
        Some(("ok", _)) => report.verdict_of_another(true, line),
        Some(("FAIL", _)) => report.verdict_of_another(false, line),
        _ if line.ends_with(" failed") => {}
        _ => say(line),
    }
}

fn interop() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop")
}

/// Where pip put the libraries.
fn site_packages() -> anyhow::Result<PathBuf> {
    let lib = interop().join("python/.venv/lib");
    for entry in fs::read_dir(&lib).with_context(|| format!("{}", lib.display()))? {
        let packages = entry?.path().join("site-packages");
        if packages.is_dir() {
            return Ok(packages);
        }
    }
    bail!("{} holds no site-packages", lib.display())
}

/// What the kernel says a Python interpreter runs.
fn executable_of(python: &Path) -> anyhow::Result<PathBuf> {
    let ask = "import os; print(os.readlink('/proc/self/exe'))";
    let output = Command::new(python).args(["-c", ask]).output()?;
    ensure!(output.status.success(), "{}: {}", python.display(), String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}
