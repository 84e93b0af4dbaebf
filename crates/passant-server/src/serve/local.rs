//! Who may use the operator socket, and how is it put in place?

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use passant_daemon::goaway::Farewells;
use passant_daemon::log_rate::LogRate;
use passant_daemon::private_socket::{PlaceError, PrivateSocket};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use super::bounds::Shares;
use super::conn::{Conn, Ends};
use crate::access::Rights;
use crate::caller::{ConnPeer, LocalPeer};
use crate::metrics::{Metrics, Peer};
use crate::{config, limits};

/// The bound operator socket. Its file goes when this is dropped, unless somebody else has replaced it.
#[derive(Debug)]
pub(super) struct OperatorSocket {
    socket: PrivateSocket,
    guests: Arc<Guests>,
}

/// Who is let in: root, the server's own user, and members of the group, as operators; and whoever holds a role.
#[derive(Clone, Debug)]
pub(crate) struct Guests {
    own: u32,
    group: Option<u32>,
    /// Users that hold a role.
    uids: BTreeSet<u32>,
    /// Groups that hold a role.
    gids: BTreeSet<u32>,
}

/// Why the operator socket could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// At its path.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The configured group does not exist.
    #[error("the group \"{0}\" does not exist; create it, or set another socket.group")]
    NoSuchGroup(String),
}

impl OperatorSocket {
    /// Puts the socket in place with its mode and group already right.
    pub(super) fn bind(socket: &config::Socket, guests: Arc<Guests>) -> Result<Self, SocketError> {
        let bound = PrivateSocket::bind(&socket.path, socket.mode, guests.group)?;
        Ok(Self { socket: bound, guests })
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
                () = ends.stop.told() => return,
                accepted = self.socket.listener.accept() => accepted,
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
            let (guests, to, ends) = (Arc::clone(&self.guests), to.clone(), ends.clone());
            let (refusals, uninvited) = (Arc::clone(&refusals), metrics.uninvited.clone());
            tokio::spawn(async move {
                // Not on the I/O threads, and nobody waits behind it: the user database may ask the network.
                let received =
                    tokio::task::spawn_blocking(move || guests.receive(&stream).map(|peer| (stream, peer)));
                let (stream, peer) = match received.await {
                    Ok(Ok((stream, peer))) => {
                        if let ConnPeer::Uninvited(LocalPeer { uid, gid, pid }) = peer {
                            uninvited.inc();
                            if let Some(left_out) = refusals.line(uid) {
                                tracing::warn!(
                                    uid,
                                    gid,
                                    pid,
                                    left_out,
                                    "operator socket: refused a user it is not for"
                                );
                            }
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
                let lease = lease(&peer);
                let conn = Conn::new(stream, peer, &ends, Box::new(slot), limits::PREFACE_WITHIN, lease);
                if to.send(conn).await.is_err() {
                    tracing::debug!("operator socket: closed, the server is stopping");
                }
            });
        }
    }
}

/// How long a connection may stay, whatever it does.
const fn lease(peer: &ConnPeer) -> Option<Duration> {
    match peer {
        // Who is not let in hears so, and goes.
        ConnPeer::Uninvited(_) => Some(limits::PREFACE_WITHIN),
        // Their groups were looked up when they came, and may be others by then.
        ConnPeer::Guest(..) => Some(limits::CONNECTION_LEASE),
        ConnPeer::Local(_) | ConnPeer::Remote { .. } => None,
    }
}

impl Guests {
    /// Those whom `socket` and the roles of `rights` let in.
    ///
    /// # Errors
    /// [`SocketError::NoSuchGroup`].
    pub(crate) fn of(socket: &config::Socket, rights: &Rights) -> Result<Self, SocketError> {
        let group = socket.group.as_deref().map(group_number).transpose()?;
        let (uids, gids) = rights.local_holders();
        Ok(Self { own: Uid::effective().as_raw(), group, uids, gids })
    }

    fn receive(&self, stream: &UnixStream) -> io::Result<ConnPeer> {
        let credentials = stream.peer_cred()?;
        let peer = LocalPeer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        Ok(self.peer(peer, groups_of))
    }

    /// `groups` answers which groups a user has by the user database.
    fn peer(&self, peer: LocalPeer, groups: impl Fn(u32) -> BTreeSet<u32>) -> ConnPeer {
        let mut own_groups = BTreeSet::from([peer.gid]);
        if self.administers(peer.uid, &own_groups).is_some() {
            return ConnPeer::Local(peer);
        }
        if self.group.is_some() || !self.gids.is_empty() {
            own_groups.extend(groups(peer.uid));
        }
        if self.administers(peer.uid, &own_groups).is_some() {
            return ConnPeer::Local(peer);
        }
        own_groups.retain(|gid| self.gids.contains(gid));
        if self.uids.contains(&peer.uid) || !own_groups.is_empty() {
            return ConnPeer::Guest(peer, Arc::new(own_groups));
        }
        ConnPeer::Uninvited(peer)
    }

    /// What makes this user, with these groups, an operator; `None` for everybody else.
    pub(crate) fn administers(&self, uid: u32, gids: &BTreeSet<u32>) -> Option<&'static str> {
        if uid == 0 {
            return Some("it is root");
        }
        if uid == self.own {
            return Some("it is the server's own user");
        }
        let is_member = self.group.is_some_and(|group| gids.contains(&group));
        is_member.then_some("it is in the group of the operator socket")
    }
}

/// The groups that the user database gives to `uid`. An unknown user has none.
pub(crate) fn groups_of(uid: u32) -> BTreeSet<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return BTreeSet::new() };
    let Ok(name) = CString::new(user.name) else { return BTreeSet::new() };
    let groups = nix::unistd::getgrouplist(&name, user.gid).unwrap_or_default();
    groups.into_iter().map(Gid::as_raw).collect()
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

#[cfg(test)]
mod tests {
    use super::{Guests, OperatorSocket, SocketError, lease, limits};
    use crate::access::Rights;
    use crate::caller::{ConnPeer, LocalPeer};
    use crate::config::Socket;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn bind(socket: &Socket) -> Result<OperatorSocket, SocketError> {
        OperatorSocket::bind(socket, Arc::new(Guests::of(socket, &Rights::default())?))
    }

    fn socket(path: &std::path::Path) -> Socket {
        Socket { path: path.to_owned(), mode: 0o600, group: None }
    }

    #[tokio::test]
    async fn an_unknown_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let with_group =
            Socket { group: Some("no-such-group-here".to_owned()), mode: 0o660, ..socket(&path) };
        let said = bind(&with_group).unwrap_err().to_string();
        assert!(said.contains("no-such-group-here"), "{said}");
        assert!(!path.exists());
    }

    #[test]
    fn only_operators_stay_as_long_as_they_like() {
        let peer = LocalPeer { uid: 7, gid: 7, pid: None };
        assert_eq!(lease(&ConnPeer::Local(peer)), None);
        assert_eq!(lease(&ConnPeer::Guest(peer, Arc::default())), Some(limits::CONNECTION_LEASE));
        assert_eq!(lease(&ConnPeer::Uninvited(peer)), Some(limits::PREFACE_WITHIN));
    }

    #[test]
    fn only_root_the_own_user_the_group_and_holders_of_roles_are_let_in() {
        let peer = |uid, gid| LocalPeer { uid, gid, pid: None };
        let groups = |uid| if uid == 1007 { BTreeSet::from([50, 60, 70]) } else { BTreeSet::new() };
        let operator = |peer: LocalPeer| format!("{:?}", ConnPeer::Local(peer));
        let holder = |peer, gids: &[u32]| {
            format!("{:?}", ConnPeer::Guest(peer, Arc::new(gids.iter().copied().collect())))
        };
        let nobody = |peer| format!("{:?}", ConnPeer::Uninvited(peer));
        let guests = |group, uids: &[u32], gids: &[u32]| Guests {
            own: 1000,
            group,
            uids: uids.iter().copied().collect(),
            gids: gids.iter().copied().collect(),
        };
        for (guests, peer, expected) in [
            (guests(None, &[], &[]), peer(0, 0), operator(peer(0, 0))),
            (guests(None, &[], &[]), peer(1000, 1000), operator(peer(1000, 1000))),
            (guests(None, &[], &[]), peer(1001, 1000), nobody(peer(1001, 1000))),
            (guests(None, &[], &[]), peer(1007, 50), nobody(peer(1007, 50))),
            (guests(Some(50), &[], &[]), peer(1001, 1001), nobody(peer(1001, 1001))),
            (guests(Some(50), &[], &[]), peer(1001, 50), operator(peer(1001, 50))),
            (guests(Some(50), &[], &[]), peer(1007, 1007), operator(peer(1007, 1007))),
            (guests(None, &[1001], &[]), peer(1001, 1001), holder(peer(1001, 1001), &[])),
            (guests(None, &[1001], &[]), peer(1002, 1001), nobody(peer(1002, 1001))),
            (guests(None, &[], &[60, 80]), peer(1007, 1007), holder(peer(1007, 1007), &[60])),
            (guests(None, &[], &[60, 80]), peer(1002, 80), holder(peer(1002, 80), &[80])),
            (guests(None, &[], &[60, 80]), peer(1002, 81), nobody(peer(1002, 81))),
            // Who is both is an operator.
            (guests(Some(50), &[1007], &[60]), peer(1007, 1007), operator(peer(1007, 1007))),
            (guests(None, &[0, 1000], &[0]), peer(1000, 0), operator(peer(1000, 0))),
        ] {
            assert_eq!(format!("{:?}", guests.peer(peer, groups)), expected, "{guests:?}");
        }
    }
}
