//! Who is on this connection, and what is known of them?

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use passant_attest::peer::{Peer, PeerError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tonic::Status;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::filter::MendedStream;
use super::share::Share;
use crate::attest::{Attestation, AttestationError, Evidence, Known};
use crate::connect::Wire;

/// The process that opened a connection. All calls on the connection share it.
#[derive(Clone, Debug)]
pub(super) struct Caller(Arc<Accepted>);

#[derive(Debug)]
struct Accepted {
    uid: u32,
    peer: Result<Peer, PeerError>,
    known: Mutex<Option<Known>>,
}

impl Caller {
    /// To be called at once when `stream` was accepted. `uid` is the user that the socket names.
    pub(super) fn of(stream: &UnixStream, uid: u32) -> Self {
        let peer =
            Peer::of(stream).inspect_err(|error| warn!(uid, %error, "failed to find out who connected"));
        Self::known_as(uid, peer)
    }

    /// Whoever `peer` is, of the user `uid`.
    pub(super) fn known_as(uid: u32, peer: Result<Peer, PeerError>) -> Self {
        Self(Arc::new(Accepted { uid, peer, known: Mutex::default() }))
    }

    pub(super) fn uid(&self) -> u32 {
        self.0.uid
    }

    /// The process itself.
    ///
    /// # Errors
    /// Unavailable when it could not be found out who connected; with the remedy when that is a matter of how the agent
    /// is run.
    pub(super) fn peer(&self) -> Result<&Peer, Status> {
        self.0.peer.as_ref().map_err(|error| match error {
            PeerError::ForeignPidNamespace => {
                Status::unavailable(format!("workload attestation failed: {error}"))
            }
            PeerError::Gone | PeerError::Changed(_) | PeerError::Unreadable(_) | PeerError::Socket(_) => {
                attestation_failed()
            }
        })
    }

    /// What is known of the process now; attested not longer than `reuse` ago, and the process looked at just now.
    ///
    /// # Errors
    /// Unavailable when nothing could be found out.
    pub(super) async fn evidence(
        &self,
        attestation: &Attestation,
        reuse: Duration,
    ) -> Result<Arc<Evidence>, Status> {
        let peer = self.peer()?;
        // Held while the attestors are asked: calls that come at the same time wait for one answer.
        let mut known = self.0.known.lock().await;
        attestation.of(peer, &mut known, reuse).await.map_err(|error| {
            match &error {
                AttestationError::Peer(PeerError::Gone) => debug!(?peer, "workload has exited"),
                AttestationError::Peer(_) | AttestationError::Unsteady | AttestationError::NothingFound => {
                    warn!(?peer, %error, "workload attestation failed");
                }
            }
            attestation_failed()
        })
    }

    /// Waits until the process has exited.
    pub(super) async fn exited(&self) {
        match &self.0.peer {
            Ok(peer) => peer.exited().await,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The answer when a workload cannot be attested: it is no verdict on its identity, and may be asked again.
pub(super) fn attestation_failed() -> Status {
    Status::unavailable("workload attestation failed")
}

/// An accepted connection. It reads as ended once the process that opened it has exited, also if another process still
/// holds the socket.
pub(super) struct Connection {
    stream: MendedStream<Box<dyn Wire>>,
    caller: Caller,
    exited: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_exited: bool,
    _share: Share,
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Wire>, caller: Caller, share: Share) -> Self {
        let watched = caller.clone();
        let exited = Box::pin(async move { watched.exited().await });
        Self { stream: MendedStream::new(stream), caller, exited, has_exited: false, _share: share }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.has_exited = this.has_exited || this.exited.as_mut().poll(cx).is_ready();
        if this.has_exited {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{ErrorKind, Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::process::{Command, Stdio};

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    use super::super::share::Shares;
    use super::*;

    /// The child's part: connects, lets a process of its own hold the socket too, and exits when it is told to.
    #[expect(clippy::zombie_processes, reason = "whoever could wait for it exits first, on purpose")]
    fn connect_and_leave_the_socket_behind(socket: &str) {
        let mut stream = StdUnixStream::connect(socket).unwrap();
        let held = OwnedFd::from(stream.try_clone().unwrap());
        Command::new("/bin/cat").stdin(held).stdout(Stdio::null()).spawn().unwrap();
        stream.write_all(b"!").unwrap();
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    #[tokio::test]
    async fn connection_ends_with_the_process_that_opened_it() {
        if let Ok(socket) = env::var("PASSANT_TEST_SOCKET") {
            return connect_and_leave_the_socket_behind(&socket);
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let test = "workload_api::caller::tests::connection_ends_with_the_process_that_opened_it";
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads=1"])
            .env("PASSANT_TEST_SOCKET", &socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut same_socket = StdUnixStream::from(stream.as_fd().try_clone_to_owned().unwrap());
        let uid = stream.peer_cred().unwrap().uid();
        let caller = Caller::of(&stream, uid);
        assert_eq!(caller.peer().unwrap().pid(), child.id());
        let shares = Shares::new(1, 1);
        let mut connection = Connection::new(Box::new(stream), caller, shares.take(uid).unwrap());
        assert_eq!(connection.read_u8().await.unwrap(), b'!');
        drop(child.stdin.take());
        assert_eq!(connection.read(&mut [0; 8]).await.unwrap(), 0);
        let still_open = same_socket.read(&mut [0; 8]).unwrap_err();
        assert_eq!(still_open.kind(), ErrorKind::WouldBlock);
        assert!(shares.take(uid).is_none());
        drop(connection);
        assert!(shares.take(uid).is_some());
        child.wait().unwrap();
    }
}
