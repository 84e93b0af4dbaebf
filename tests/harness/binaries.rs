//! Where are the binaries under test?

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The daemons and the command line.
#[derive(Debug)]
pub struct Binaries {
    /// `passant-server`
    pub server: PathBuf,
    /// `passant-agent`
    pub agent: PathBuf,
    /// `passant`
    pub passant: PathBuf,
    /// `passant-show`, which can be a workload.
    pub show: PathBuf,
}

/// Cargo, without what it has set for the test or show that asks: left in place, that makes build scripts run again, and
/// everything after them.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let ours = |name: &str| ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    cargo
}

/// The binaries of this tree, built in the profile of the test that asks; built at most once in a process.
///
/// # Panics
/// When they do not build: no test could say anything then.
pub fn binaries() -> &'static Binaries {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = profile_dir();
        let mut build = cargo();
        // The whole workspace, so that features are chosen as `cargo xtask show` has them and nothing is built twice.
        build.args(["build", "--quiet", "--workspace", "--bins"]);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
        if dir.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        if let Some(target) = dir.parent() {
            build.env("CARGO_TARGET_DIR", target);
        }
        let built = build.status().expect("cargo runs, since it ran this test");
        assert!(built.success(), "the binaries under test do not build");
        Binaries {
            server: dir.join("passant-server"),
            agent: dir.join("passant-agent"),
            passant: dir.join("passant"),
            show: dir.join("passant-show"),
        }
    })
}

/// The server with planted bugs, not optimised. `cargo xtask show` builds it for the shows that need it.
pub fn ablated_server() -> PathBuf {
    profile_dir().with_file_name("ablations").join("build/debug/passant-server")
}

/// `target/debug` or `target/release`: where the running executable was built.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the running test is known");
    let dir = exe.parent().expect("an executable lies in a folder");
    let dir =
        if dir.ends_with("deps") { dir.parent().expect("deps lies in the profile's folder") } else { dir };
    dir.to_owned()
}
