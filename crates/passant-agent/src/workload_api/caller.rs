//! Who is on this connection, and what is known of them?

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use passant_attest::peer::{Peer, PeerError};
use passant_daemon::log_rate::LogRate;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::filter::MendedStream;
use super::limits::PREFACE;
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
    ///
    /// `None` when the process has exited already: nobody is there to be answered, and nothing to be watched.
    pub(super) fn of(stream: &UnixStream, uid: u32, unknown: &LogRate<u32>) -> Option<Self> {
        let peer = Peer::of(stream);
        match &peer {
            Ok(_) => {}
            Err(PeerError::Gone) => {
                debug!(uid, "workload has exited before it was looked at");
                return None;
            }
            Err(error) => {
                if let Some(left_out) = unknown.line(uid) {
                    warn!(uid, %error, left_out, "failed to find out who connected");
                }
            }
        }
        Some(Self::known_as(uid, peer))
    }

    /// Whoever `peer` is, of the user `uid`.
    pub(super) fn known_as(uid: u32, peer: Result<Peer, PeerError>) -> Self {
        Self(Arc::new(Accepted { uid, peer, known: Mutex::default() }))
    }

    pub(super) fn uid(&self) -> u32 {
        self.0.uid
    }

    /// Pid and start time; `None` when it could not be found out who connected.
    pub(super) fn process(&self) -> Option<(u32, u64)> {
        self.0.peer.as_ref().ok().map(|peer| (peer.pid(), peer.start_time()))
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
                    if let Some(left_out) = attestation.failures.line(self.uid()) {
                        warn!(?peer, %error, left_out, "workload attestation failed");
                    }
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
/// holds the socket; and when the client has not sent the first bytes of HTTP/2 in time.
pub(super) struct Connection {
    stream: MendedStream<Box<dyn Wire>>,
    caller: Caller,
    exited: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
    /// When to stop waiting for the client's preface; absent once it has come.
    silent_until: Option<Pin<Box<Sleep>>>,
    preface_left: usize,
    _share: Share,
}

/// The length of what every HTTP/2 client sends first.
const PREFACE_LENGTH: usize = 24;

impl Connection {
    pub(super) fn new(stream: Box<dyn Wire>, caller: Caller, share: Share) -> Self {
        let watched = caller.clone();
        let exited = Box::pin(async move { watched.exited().await });
        Self {
            stream: MendedStream::new(stream),
            caller,
            exited,
            has_ended: false,
            silent_until: Some(Box::pin(sleep(PREFACE))),
            preface_left: PREFACE_LENGTH,
            _share: share,
        }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> bool {
        self.has_ended = self.has_ended
            || self.exited.as_mut().poll(cx).is_ready()
            || self.silent_until.as_mut().is_some_and(|silent| silent.as_mut().poll(cx).is_ready());
        self.has_ended
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
        if this.poll_ended(cx) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.preface_left = this.preface_left.saturating_sub(buf.filled().len() - before);
        if this.preface_left == 0 {
            this.silent_until = None;
        }
        polled
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

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
        let caller = Caller::of(&stream, uid, &LogRate::default()).unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn who_does_not_begin_to_speak_http2_is_not_waited_for() {
        for (sent, ends) in [(&[b' '; 23][..], true), (&[b' '; 24], false)] {
            let (near, mut far) = UnixStream::pair().unwrap();
            let shares = Shares::new(1, 1);
            let caller = Caller::of(&near, 0, &LogRate::default()).unwrap();
            let mut connection = Connection::new(Box::new(near), caller, shares.take(0).unwrap());
            far.write_all(sent).await.unwrap();
            let mut read = [0; 64];
            let mut got = 0;
            while got < sent.len() {
                got += connection.read(&mut read).await.unwrap();
            }
            let more = tokio::time::timeout(2 * PREFACE, connection.read(&mut read)).await;
            assert_eq!(more.is_ok_and(|more| more.unwrap() == 0), ends);
        }
    }
}
