//! How is a show run? By the program `passant-show` of the package passant-tests.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::ablate;
use crate::cargo::cargo;

/// Shows of the product as it is shipped, optimised; `--dev` saves that time.
const IN_RELEASE: [&str; 5] = ["churn", "create-to-svid", "entries", "kills", "storm"];
/// Shows that run the server with planted bugs too. That one is not optimised: a bug is found without.
const ABLATED: [&str; 2] = ["kills", "power-loss"];

/// Builds and runs the program with `arguments`, the show's name first.
///
/// # Errors
/// When it does not build, or a fact does not hold; it has said which.
pub(crate) fn run(root: &Path, arguments: &[OsString], dev: bool) -> Result<()> {
    let is_among = |names: &[&str]| arguments.first().is_some_and(|name| names.iter().any(|one| name == one));
    let profile: &[&str] = if is_among(&IN_RELEASE) && !dev { &["--release"] } else { &[] };
    // With the daemons, in one choice of features: the program would have them built otherwise, and most of it again.
    let built = cargo()
        .args(["build", "--quiet", "--workspace", "--bins"])
        .args(profile)
        .current_dir(root)
        .status()
        .context("failed to run cargo")?;
    ensure!(built.success(), "the programs do not build");
    if is_among(&ABLATED) {
        ablate::run(root, &["build", "--quiet", "--package", "passant-server"].map(OsString::from))?;
    }
    let here = std::env::current_exe().context("the path of this program is unknown")?;
    let target = here.ancestors().nth(2).context("this program lies in a profile's folder")?;
    let program = target.join(if profile.is_empty() { "debug" } else { "release" }).join("passant-show");
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .status()
        .context("failed to start passant-show")?;
    ensure!(status.success(), "the show did not hold");
    Ok(())
}
