//! How is a show run? By the program `passant-show` of the package passant-tests.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Builds and runs the program with `arguments`.
///
/// # Errors
/// When it does not build, or a fact does not hold; it has said which.
pub(crate) fn run(root: &Path, arguments: &[OsString]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the daemons, in one choice of features: the program would have them built otherwise, and most of it again.
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bins"])
        .current_dir(root)
        .status()
        .context("failed to run cargo")?;
    ensure!(built.success(), "the programs do not build");
    let here = std::env::current_exe().context("the path of this program is unknown")?;
    let status = Command::new(here.with_file_name("passant-show"))
        .args(arguments)
        .current_dir(root)
        .status()
        .context("failed to start passant-show")?;
    ensure!(status.success(), "the show did not hold");
    Ok(())
}
