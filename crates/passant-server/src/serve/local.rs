//! Who may use the operator socket, and how is it put in place?

use std::ffi::CString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User};
use passant_daemon::goaway::Farewells;
use passant_daemon::log_rate::LogRate;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::bounds::Shares;
use super::conn::{Conn, Ends};
use crate::caller::{ConnPeer, LocalPeer};
use crate::metrics::{Metrics, Peer};
use crate::{config, limits};

/// The bound operator socket. Its file goes when this is dropped, unless somebody else has replaced it.
#[derive(Debug)]
pub(super) struct OperatorSocket {
    listener: UnixListener,
    _place: Place,
    guests: Guests,
}

/// The socket's file, remembered by inode so that only our own is removed.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

/// Who is let in: root, the server's own user, and members of the group.
#[derive(Clone, Debug)]
struct Guests {
    own: u32,
    group: Option<u32>,
}

/// Why the operator socket could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on it.
    #[error(
        "the operator socket {0} is in use by a running process; stop that server, or set another socket.path"
    )]
    InUse(PathBuf),
    /// Something that is not a socket stands there.
    #[error("{0} exists and is not a socket; remove it, or set another socket.path")]
    NotASocket(PathBuf),
    /// The configured group does not exist.
    #[error("the group \"{0}\" does not exist; create it, or set another socket.group")]
    NoSuchGroup(String),
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

impl OperatorSocket {
    /// Puts the socket in place with its mode and group already right: it is made under another name and renamed, so
    /// there is no moment in which it is open to more people than configured.
    pub(super) fn bind(socket: &config::Socket) -> Result<Self, SocketError> {
        let path = socket.path.as_path();
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { what, path, source }
        };
        let group = socket.group.as_deref().map(group_number).transpose()?;
        make_parent(path, socket.mode).map_err(io("make the directory of", path))?;
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
            let mode = std::fs::Permissions::from_mode(socket.mode);
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
        Ok(Self { listener, _place: place, guests: Guests { own: Uid::effective().as_raw(), group } })
    }

    /// Accepts until the stop. The file is removed when this returns.
    pub(super) async fn accept(self, to: mpsc::Sender<Conn>, most: usize, ends: Ends, metrics: Arc<Metrics>) {
        let slots = Arc::new(Semaphore::new(most));
        let of_user = Shares::new(most.div_ceil(limits::LOCAL_CONNECTIONS_PART));
        let (failures, refusals) = (LogRate::default(), Arc::new(LogRate::default()));
        let farewells = Farewells::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = ends.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, _) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(left_out) = failures.line(()) {
                        tracing::warn!(%error, left_out, "failed to accept on the operator socket");
                    }
                    tokio::time::sleep(limits::ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(uid) = stream.peer_cred().map(|peer| peer.uid()) else {
                tracing::debug!("operator socket: a connection has gone");
                continue;
            };
            let share =
                if uid == 0 || uid == self.guests.own { Some(None) } else { of_user.take(&uid).map(Some) };
            let (Some(share), Ok(slot)) = (share, Arc::clone(&slots).try_acquire_owned()) else {
                if let Some(left_out) = refusals.line(uid) {
                    tracing::warn!(uid, left_out, "operator socket: turned away, too many connections");
                }
                farewells.bid(stream, "too many connections; close others first");
                continue;
            };
            let slot = (slot, share, metrics.connections.of(Peer::Operator).hold());
            let (guests, to, ends) = (self.guests.clone(), to.clone(), ends.clone());
            let refusals = Arc::clone(&refusals);
            tokio::spawn(async move {
                // Not on the I/O threads, and nobody waits behind it: the user database may ask the network.
                let received =
                    tokio::task::spawn_blocking(move || guests.receive(&stream).map(|peer| (stream, peer)));
                let (stream, peer) = match received.await {
                    Ok(Ok((stream, peer))) => {
                        if let ConnPeer::Uninvited(LocalPeer { uid, gid, pid }) = peer
                            && let Some(left_out) = refusals.line(uid)
                        {
                            tracing::warn!(
                                uid,
                                gid,
                                pid,
                                left_out,
                                "operator socket: refused a user it is not for"
                            );
                        }
                        (stream, peer)
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "operator socket: turned away, the kernel did not name the peer");
                        return;
                    }
                    Err(error) => {
                        tracing::error!(%error, "operator socket: turned away, the peer could not be looked up");
                        return;
                    }
                };
                // Who is not let in hears so, and goes.
                let lease = matches!(peer, ConnPeer::Uninvited(_)).then_some(limits::PREFACE_WITHIN);
                let conn = Conn::new(stream, peer, &ends, Box::new(slot), limits::PREFACE_WITHIN, lease);
                if to.send(conn).await.is_err() {
                    tracing::debug!("operator socket: closed, the server is stopping");
                }
            });
        }
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

impl Guests {
    fn receive(&self, stream: &UnixStream) -> io::Result<ConnPeer> {
        let credentials = stream.peer_cred()?;
        let peer = LocalPeer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        if self.invites(peer, belongs) {
            return Ok(ConnPeer::Local(peer));
        }
        Ok(ConnPeer::Uninvited(peer))
    }

    /// `belongs` answers whether a user has a group among its supplementary ones.
    fn invites(&self, peer: LocalPeer, belongs: impl Fn(u32, u32) -> bool) -> bool {
        peer.uid == 0
            || peer.uid == self.own
            || self.group.is_some_and(|group| peer.gid == group || belongs(peer.uid, group))
    }
}

/// Whether the user database counts `group` among the groups of `uid`. An unknown user has none.
fn belongs(uid: u32, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    nix::unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
}

fn group_number(group: &str) -> Result<u32, SocketError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        Ok(None) | Err(_) => Err(SocketError::NoSuchGroup(group.to_owned())),
    }
}

/// Makes the directory if it is missing: closed when only the server's user may use the socket, else passable.
fn make_parent(path: &Path, mode: u32) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    let closed = mode & 0o077 == 0;
    std::fs::DirBuilder::new().recursive(true).mode(if closed { 0o700 } else { 0o755 }).create(parent)
}

fn refuse_if_in_use(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Io { what: "look at", path: path.to_owned(), source }),
        Ok(meta) if !meta.file_type().is_socket() => Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(SocketError::InUse(path.to_owned())),
            // Nobody listens any more: a leftover, which the rename replaces.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Someone listens but does not accept just now.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(SocketError::InUse(path.to_owned()))
            }
            Err(source) => Err(SocketError::Io { what: "connect to", path: path.to_owned(), source }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Guests, OperatorSocket, SocketError};
    use crate::caller::LocalPeer;
    use crate::config::Socket;
    use std::os::unix::fs::PermissionsExt;

    fn socket(path: &std::path::Path) -> Socket {
        Socket { path: path.to_owned(), mode: 0o600, group: None }
    }

    #[tokio::test]
    async fn the_socket_has_its_mode_and_goes_with_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/api.sock");
        let bound = OperatorSocket::bind(&socket(&path)).unwrap();
        let mode =
            |path: &std::path::Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
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
        assert!(matches!(OperatorSocket::bind(&socket(&path)), Err(SocketError::InUse(_))));
        drop(living);
        let bound = OperatorSocket::bind(&socket(&path)).unwrap();
        assert!(matches!(OperatorSocket::bind(&socket(&path)), Err(SocketError::InUse(_))));
        drop(bound);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(OperatorSocket::bind(&socket(&path)), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_replaced_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let bound = OperatorSocket::bind(&socket(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn an_unknown_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let with_group =
            Socket { group: Some("no-such-group-here".to_owned()), mode: 0o660, ..socket(&path) };
        let said = OperatorSocket::bind(&with_group).unwrap_err().to_string();
        assert!(said.contains("no-such-group-here"), "{said}");
        assert!(!path.exists());
    }

    #[test]
    fn only_root_the_own_user_and_the_group_are_let_in() {
        let peer = |uid, gid| LocalPeer { uid, gid, pid: None };
        let member_of_50 = |uid, group| uid == 1007 && group == 50;
        let guests = |group| Guests { own: 1000, group };
        for (group, peer, invited) in [
            (None, peer(0, 0), true),
            (None, peer(1000, 1000), true),
            (None, peer(1001, 1000), false),
            (None, peer(1007, 50), false),
            (Some(50), peer(1001, 1001), false),
            (Some(50), peer(1001, 50), true),
            (Some(50), peer(1007, 1007), true),
        ] {
            assert_eq!(guests(group).invites(peer, member_of_50), invited, "{group:?} {peer:?}");
        }
    }
}
