//! How is what a daemon keeps on disk kept from other users?

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::Uid;

/// Why what a directory or file holds cannot be trusted: it may be another user's. As the cause of an [`io::Error`] it can
/// be had back by [`io::Error::downcast`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it {}: {}", self.fault(), self.remedy())]
pub enum Unsafe {
    /// It belongs to another user.
    Foreign {
        /// Whose it is.
        uid: u32,
        /// As whom this process runs.
        us: u32,
    },
    /// Others than its owner may write to it.
    Writable {
        /// Its permission bits.
        mode: u32,
    },
}

impl Unsafe {
    /// What is wrong with it, as in "belongs to user 7, and this process runs as user 0".
    pub fn fault(self) -> String {
        match self {
            Self::Foreign { uid, us } => format!("belongs to user {uid}, and this process runs as user {us}"),
            Self::Writable { mode } => format!("can be written by others (mode {mode:o})"),
        }
    }

    /// What to do about a directory.
    const fn remedy(self) -> &'static str {
        match self {
            Self::Foreign { .. } => "run chown on it after looking through it, or name another directory",
            Self::Writable { .. } => {
                "run chmod 700 on it after looking through it, or name another directory"
            }
        }
    }
}

/// The permission bits of a directory or file that only this process's user can have written to.
///
/// # Errors
/// When another could have.
pub fn owned(facts: &Metadata) -> Result<u32, Unsafe> {
    let (mode, us) = (facts.permissions().mode() & 0o7777, Uid::effective().as_raw());
    match facts.uid() {
        uid if uid != us => Err(Unsafe::Foreign { uid, us }),
        _ if mode & 0o022 != 0 => Err(Unsafe::Writable { mode }),
        _ => Ok(mode),
    }
}

/// Creates the data directory `dir`, with those above it, for its owner only (mode 0700). One that is there keeps its mode:
/// what a daemon puts in it is private by itself, and a slip such as `/var/lib` is not to be closed to everybody else.
/// That it is there lasts, when this returns.
///
/// # Errors
/// [`Unsafe`] when it belongs to another user, or others may write to it. Otherwise what the file system says.
pub fn make_data_dir(dir: &Path) -> io::Result<()> {
    let mode = make_own_dir(dir)?;
    if mode & 0o077 != 0 {
        let mode = format!("{mode:o}");
        tracing::warn!(dir = %dir.display(), mode, "others can list the data directory; chmod 700 would keep them out");
    }
    sync_above(dir)
}

/// Makes the names of `dir` and of the directories above it last: a file in it lasts only where they do. Each time, since
/// whoever made them may have been killed before this.
fn sync_above(dir: &Path) -> io::Result<()> {
    for (nth, above) in dir.ancestors().skip(1).enumerate() {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match File::open(above).and_then(|above| above.sync_all()) {
            Ok(()) => {}
            Err(error) if nth == 0 && error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            // Not ours to read, so not made by us.
            Err(_) => break,
        }
    }
    Ok(())
}

/// As [`make_data_dir`], for a directory inside it, which the daemon alone made: one that others may read is closed, with
/// a warning in the log.
///
/// # Errors
/// As [`make_data_dir`].
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    let mode = make_own_dir(dir)?;
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        tracing::warn!(dir = %dir.display(), was = format!("{mode:o}"), "made directory private (mode 700)");
    }
    Ok(())
}

/// The mode of `dir`, made if need be, once it is known to be ours alone to write to.
fn make_own_dir(dir: &Path) -> io::Result<u32> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    owned(&fs::metadata(dir)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_could_write_to_is_refused_and_left_as_it_is() {
        let above = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o1777, 0o720, 0o2770] {
            fs::set_permissions(above.path(), Permissions::from_mode(mode)).unwrap();
            for made in [make_private_dir(above.path()), make_data_dir(above.path())] {
                let refused = made.unwrap_err();
                assert!(refused.to_string().contains("chmod"), "{refused}");
                assert_eq!(refused.downcast::<Unsafe>().unwrap(), Unsafe::Writable { mode });
            }
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

    #[test]
    fn a_data_directory_that_is_there_keeps_its_mode() {
        let above = tempfile::tempdir().unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
        make_data_dir(&above.path().join("new")).unwrap();
        assert_eq!(mode(&above.path().join("new")), 0o700);
        fs::set_permissions(above.path(), Permissions::from_mode(0o755)).unwrap();
        make_data_dir(above.path()).unwrap();
        assert_eq!(mode(above.path()), 0o755);
    }
}
