//! How is a unix socket put in place that is not for everybody?

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A socket that is listened on. Its file goes when this is dropped, unless somebody else has replaced it.
#[derive(Debug)]
pub struct PrivateSocket {
    /// Accepts connections. The mode of the file is the first bar; whoever accepts asks who connected, too.
    pub listener: UnixListener,
    _place: Place,
}

/// The socket's file, remembered by inode so that only our own is removed.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

/// Why a socket could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Another process answers on it.
    #[error("the socket {0} is in use by a running process; stop that process, or configure another path")]
    InUse(PathBuf),
    /// Something that is not a socket stands there.
    #[error("{0} exists and is not a socket; remove it, or configure another path")]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("failed to {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PrivateSocket {
    /// Listens on `path`, inside a tokio runtime, with mode and group already right: the socket is made under another name
    /// and renamed, so there is no moment in which it is open to more people than configured. A socket that nobody listens
    /// on any more is replaced; a missing directory is made, closed to others if `mode` is.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, PlaceError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| PlaceError::Io { what, path, source }
        };
        make_parent(path, mode).map_err(io("make the directory of", path))?;
        refuse_if_in_use(path)?;
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}", std::process::id()));
        let aside = PathBuf::from(aside);
        // A leftover of a process with our number that died between two lines of this function.
        if let Err(error) = std::fs::remove_file(&aside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(io("remove", &aside)(error));
        }
        let listener = UnixListener::bind(&aside).map_err(io("bind", &aside))?;
        let placed = (|| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&aside, mode).map_err(io("set the mode of", &aside))?;
            std::os::unix::fs::chown(&aside, None, group).map_err(io("set the group of", &aside))?;
            let meta = std::fs::symlink_metadata(&aside).map_err(io("look at", &aside))?;
            std::fs::rename(&aside, path).map_err(io("put in place", path))?;
            Ok(Place { path: path.to_owned(), dev: meta.dev(), ino: meta.ino() })
        })();
        let place = placed.inspect_err(|_| {
            if let Err(error) = std::fs::remove_file(&aside) {
                tracing::debug!(%error, "failed to remove {}", aside.display());
            }
        })?;
        Ok(Self { listener, _place: place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| meta.dev() == self.dev && meta.ino() == self.ino);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "failed to remove {}", self.path.display());
        }
    }
}

/// Makes the directory if it is missing: closed when only one user may use the socket, else passable.
fn make_parent(path: &Path, mode: u32) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    let closed = mode & 0o077 == 0;
    std::fs::DirBuilder::new().recursive(true).mode(if closed { 0o700 } else { 0o755 }).create(parent)
}

fn refuse_if_in_use(path: &Path) -> Result<(), PlaceError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PlaceError::Io { what: "look at", path: path.to_owned(), source }),
        Ok(meta) if !meta.file_type().is_socket() => Err(PlaceError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(PlaceError::InUse(path.to_owned())),
            // Nobody listens any more: a leftover, which the rename replaces.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Someone listens but does not accept just now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(PlaceError::InUse(path.to_owned()))
            }
            Err(source) => Err(PlaceError::Io { what: "connect to", path: path.to_owned(), source }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> Result<PrivateSocket, PlaceError> {
        PrivateSocket::bind(path, 0o600, None)
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_and_goes_with_its_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/api.sock");
        let bound = bind(&path).unwrap();
        let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(bound);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(PlaceError::InUse(_))));
        drop(living);
        let bound = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(PlaceError::InUse(_))));
        drop(bound);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(PlaceError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_replaced_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let bound = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }
}
