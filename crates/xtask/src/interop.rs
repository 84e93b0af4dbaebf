//! How are the foreign peers run? As one of the shows.

use std::path::Path;

use anyhow::Result;

/// Runs all of tests/interop against real daemons.
///
/// # Errors
/// When a peer cannot run, or a verdict is not good.
pub(crate) fn run(root: &Path) -> Result<()> {
    crate::show::run(root, &["interop".into()], false)
}
