//! How is a directory kept from other users?

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::Uid;

/// Creates `dir`, with those above it, for its owner only (mode 0700); takes the right to read away from others in one
/// that is there, and says so in the log.
///
/// # Errors
/// When it belongs to another user, or others may write to it: what is in it may be theirs, and it may be no directory
/// to be closed, as `/tmp` is not. Otherwise what the file system says.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let facts = fs::metadata(dir)?;
    let (mode, us) = (facts.permissions().mode() & 0o7777, Uid::effective().as_raw());
    if facts.uid() != us {
        return Err(io::Error::other(format!(
            "it belongs to user {}, and the server runs as user {us}: run chown on it after looking through it, or name \
             another directory",
            facts.uid()
        )));
    }
    if mode & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "its mode {mode:o} lets others write to it: run chmod 700 on it after looking through it, or name another \
             directory"
        )));
    }
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
    fn a_directory_that_others_could_write_to_is_refused_and_left_as_it_is() {
        let above = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o1777, 0o720, 0o2770] {
            fs::set_permissions(above.path(), Permissions::from_mode(mode)).unwrap();
            let said = make_private_dir(above.path()).unwrap_err().to_string();
            assert!(said.contains("chmod"), "{said}");
            assert_eq!(fs::metadata(above.path()).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

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
