//! Where do workloads connect, and who gets in?

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use passant_attest::peer::Peer;
use passant_daemon::goaway::Farewells;
use passant_daemon::log_rate::LogRate;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::caller::{Caller, Connection};
use super::limits::{ACCEPT_AGAIN, CONNECTIONS, CONNECTIONS_PER_USER, FILES, USERS};
use super::share::Shares;
use crate::connect::Wire;

/// Every process may connect: who it is decides what it gets.
const SOCKET_MODE: u32 = 0o777;
/// Workloads must be able to reach the socket, and only the agent may replace it.
const DIRECTORY_MODE: u32 = 0o755;

/// The socket, listening. Its file is removed when this is dropped, unless another process has put its own there.
#[derive(Debug)]
pub(super) struct Listener {
    listener: UnixListener,
    /// Removed when dropped.
    _file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// A connection of a workload that comes by no socket: in a simulation.
pub struct Arrival {
    /// The bytes.
    pub stream: Box<dyn Wire>,
    /// Who connected.
    pub peer: Peer,
}

/// Why the agent cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A process answers there.
    #[error("another process listens on {}: is a second agent running?", .0.display())]
    InUse(PathBuf),
    /// A file that is not ours to remove.
    #[error("{} exists and is no socket: remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The path names no file in a directory.
    #[error("{} is no path of a socket", .0.display())]
    NoPath(PathBuf),
    /// The system refused.
    #[error("failed to {what} {}", path.display())]
    Failed {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Listener {
    /// Listens on `path`, inside a tokio runtime. A missing directory is made, a socket that nobody listens on any more
    /// is removed.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |what, at: &Path| {
            let path = at.to_owned();
            move |source| ListenError::Failed { what, path, source }
        };
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let directory = directory.ok_or_else(|| ListenError::NoPath(path.to_owned()))?;
        if !directory.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)
                .map_err(failed("make the directory", directory))?;
            // The file mode creation mask may have taken bits away.
            fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
                .map_err(failed("set the mode of", directory))?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
            .map_err(failed("set the mode of", path))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        let file = SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { listener, _file: file })
    }

    /// Accepts connections until `stop`, or until nobody takes them any more.
    pub(super) async fn accept_into(
        self,
        accepted: mpsc::Sender<io::Result<Connection>>,
        stop: CancellationToken,
    ) {
        let (each, all) = bounds_within(open_files());
        let shares = Shares::new(each, all);
        let (failures, unknown, turned_away) = (LogRate::default(), LogRate::default(), LogRate::default());
        let farewells = Farewells::default();
        loop {
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = accepted.closed() => return,
                stream = self.listener.accept() => stream,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if let Some(left_out) = failures.line(()) {
                        warn!(%error, left_out, "failed to accept a connection of a workload");
                    }
                    sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let uid = match stream.peer_cred() {
                Ok(credentials) => credentials.uid(),
                Err(error) => {
                    debug!(%error, "connection has gone");
                    continue;
                }
            };
            let Some(share) = shares.take(uid) else {
                if let Some(left_out) = turned_away.line(uid) {
                    warn!(
                        uid,
                        left_out, "too many connections of one user, or altogether; the newest was closed"
                    );
                }
                farewells.bid(stream, "too many connections of this user; close others first");
                continue;
            };
            let Some(caller) = Caller::of(&stream, uid, &unknown) else { continue };
            if accepted.send(Ok(Connection::new(Box::new(stream), caller, share))).await.is_err() {
                return;
            }
        }
    }
}

/// Accepts what `arrivals` brings until `stop`, or until nobody takes it any more. The bounds are those of a socket.
pub(super) async fn accept_arrivals(
    mut arrivals: mpsc::Receiver<Arrival>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let shares = Shares::new(CONNECTIONS_PER_USER, CONNECTIONS);
    loop {
        let arrival = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = accepted.closed() => return,
            arrival = arrivals.recv() => arrival,
        };
        let Some(Arrival { stream, peer }) = arrival else { return };
        let uid = peer.uid();
        let Some(share) = shares.take(uid) else {
            warn!(uid, "too many connections of one user, or altogether; the newest was closed");
            continue;
        };
        let caller = Caller::known_as(uid, Ok(peer));
        if accepted.send(Ok(Connection::new(stream, caller, share))).await.is_err() {
            return;
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|it| (it.dev(), it.ino()) == (self.device, self.inode));
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, path = %self.path.display(), "socket file stays behind");
        }
    }
}

/// Connections of one user, and of all, where `files` descriptors may be open: a socket and a pidfd for each, and what the
/// agent needs beside. Else one user's connections could use up what is needed to accept and attest others.
fn bounds_within(files: u64) -> (usize, usize) {
    let rest = FILES.min(files / 2);
    let room = usize::try_from((files - rest) / 2).unwrap_or(usize::MAX);
    let all = CONNECTIONS.min(room).max(1);
    (CONNECTIONS_PER_USER.min(all.div_ceil(USERS)), all)
}

/// How many files this process may open, after raising that as far as is allowed and of use. Shells and service managers
/// start processes with a low limit that they may raise themselves.
fn open_files() -> u64 {
    let wanted = FILES + 2 * CONNECTIONS as u64;
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let most = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    if most < wanted && current < wanted {
        warn!(
            limit = most,
            wanted, "the limit of open files is low: fewer connections of workloads are held"
        );
    }
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(error) => {
            warn!(%error, limit = current, "failed to raise the limit of open files");
            current
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |what| move |source| ListenError::Failed { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) => Err(failed("find out whether a process listens on")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdUnixListener;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn connections_leave_descriptors_for_the_rest_and_for_other_users() {
        for files in [16, 64, 256, 1024, 4096, 10_240, 1 << 20] {
            let (each, all) = bounds_within(files);
            assert!(2 * all as u64 + FILES.min(files / 2) <= files, "{files}: {all}");
            assert!((USERS - 1) * each <= all, "{files}: {each} of {all}");
        }
        assert_eq!(bounds_within(u64::MAX), (CONNECTIONS_PER_USER, CONNECTIONS));
    }

    #[tokio::test]
    async fn directory_is_made_and_everybody_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("api.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(mode(path.parent().unwrap()), DIRECTORY_MODE);
        assert_eq!(mode(&path), SOCKET_MODE);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let other = StdUnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        // A process that was killed leaves its socket behind.
        drop(other);
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        drop(listener);
    }

    #[tokio::test]
    async fn files_that_are_no_sockets_are_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Listener::bind(&link), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"data");
        assert!(matches!(Listener::bind(Path::new("bare")), Err(ListenError::NoPath(_))));
    }

    #[tokio::test]
    async fn a_successors_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // Another inode, as the file system may give the first one out again.
        let _place = fs::File::create(dir.path().join("place")).unwrap();
        let _successor = StdUnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }
}
