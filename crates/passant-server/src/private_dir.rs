//! How is a directory kept from other users?

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Creates `dir`, with those above it, for its owner only (mode 0700); takes other people's rights away from one that
/// is there, and says so in the log.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mode = fs::metadata(dir)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        tracing::warn!(dir = %dir.display(), was = format!("{mode:o}"), "made directory private (mode 700)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_and_kept_private() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("a/b");
        for _ in 0..2 {
            make_private_dir(&dir).unwrap();
            assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
            fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        }
    }
}
