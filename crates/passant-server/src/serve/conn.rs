//! What is an accepted connection, and when does it end by itself?

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::caller::ConnPeer;

/// The length of what every HTTP/2 client sends first.
const PREFACE: usize = 24;

/// An accepted connection, ready for HTTP/2.
///
/// It ends by itself when it is cut, when it outlives its `lease`, and, as long as the client has not sent its preface,
/// when that takes too long or the server stops. It gives back its slot when dropped.
pub(crate) struct Conn {
    io: Box<dyn Io>,
    peer: ConnPeer,
    /// The end of all connections; before the preface, the stop of the server.
    end: End,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    cut: End,
    /// Whom `ended` and `deadline` wake.
    waits: Option<Waker>,
    /// When to stop waiting for the preface or, without one outstanding, when the lease ends.
    deadline: Pin<Box<Sleep>>,
    lease: Option<Instant>,
    preface_left: usize,
    _slot: Box<dyn Send>,
}

/// How a server ends its connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    /// No new ones, and no new RPCs on those there are.
    pub(crate) stop: End,
    /// All of them, at once. Follows `stop`.
    pub(crate) cut: End,
}

/// One end, which comes once. To ask whether it has come costs next to nothing: every connection does, whenever it reads or writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    token: CancellationToken,
    has_come: Arc<AtomicBool>,
}

impl End {
    /// Tells everybody, for good.
    pub(crate) fn tell(&self) {
        self.has_come.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Resolves when it has come.
    pub(crate) async fn told(&self) {
        self.token.cancelled().await;
    }

    /// The same, for a task that outlives its caller.
    pub(crate) fn told_owned(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Acquire)
    }
}

/// Any byte stream: TLS, unix socket, or in memory.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Far enough off to never come while the process lives.
const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);

impl Conn {
    /// `lease` bounds how long the connection may be open at all; `preface_within` how long the client may take to
    /// speak. `slot` is what it holds of the bounds on connections, given back when it is dropped.
    pub(crate) fn new(
        io: impl Io,
        peer: ConnPeer,
        ends: &Ends,
        slot: Box<dyn Send>,
        preface_within: Duration,
        lease: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        Self {
            io: Box::new(io),
            peer,
            end: ends.stop.clone(),
            ended: Box::pin(ends.stop.told_owned()),
            cut: ends.cut.clone(),
            waits: None,
            deadline: Box::pin(tokio::time::sleep_until(now + preface_within)),
            lease: lease.map(|lease| now + lease),
            preface_left: PREFACE,
            _slot: slot,
        }
    }

    /// An error once the connection must end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let is_due = self.end.has_come() || self.deadline.is_elapsed();
        if !is_due && self.waits.as_ref().is_some_and(|waits| waits.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waits = Some(cx.waker().clone());
        // Both take the waker, however much the task has done at a stretch.
        if pin!(unconstrained(self.ended.as_mut())).poll(cx).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is stopping"));
        }
        if pin!(unconstrained(self.deadline.as_mut())).poll(cx).is_ready() {
            let why = if self.preface_left > 0 {
                "the client did not speak in time"
            } else {
                "the connection's time is over"
            };
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Poll::Pending
    }

    fn note_read(&mut self, bytes: usize) {
        if self.preface_left == 0 {
            return;
        }
        self.preface_left = self.preface_left.saturating_sub(bytes);
        if self.preface_left == 0 {
            let end = self.lease.unwrap_or_else(|| Instant::now() + NEVER);
            self.deadline.as_mut().reset(end);
            self.end = self.cut.clone();
            self.ended = Box::pin(self.cut.told_owned());
            self.waits = None;
        }
    }
}

impl Connected for Conn {
    type ConnectInfo = ConnPeer;

    fn connect_info(&self) -> ConnPeer {
        self.peer.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(end) = self.poll_end(cx) {
            return Poll::Ready(Err(end));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        self.note_read(read);
        polled
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(end) = self.poll_end(cx) {
            return Poll::Ready(Err(end));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(end) = self.poll_end(cx) {
            return Poll::Ready(Err(end));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::{Conn, Ends};
    use crate::caller::{ConnPeer, LocalPeer};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;

    fn conn(lease: Option<Duration>) -> (Conn, DuplexStream, Ends, Arc<Semaphore>) {
        let slots = Arc::new(Semaphore::new(1));
        let slot = Arc::clone(&slots).try_acquire_owned().unwrap();
        let (near, far) = tokio::io::duplex(1024);
        let ends = Ends::default();
        let peer = ConnPeer::Local(LocalPeer { uid: 0, gid: 0, pid: None });
        (Conn::new(near, peer, &ends, Box::new(slot), Duration::from_secs(10), lease), far, ends, slots)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_dropped_and_its_slot_is_free_again() {
        let (mut conn, mut far, _ends, slots) = conn(None);
        far.write_all(&[0; 23]).await.unwrap();
        let mut read = [0; 64];
        assert_eq!(conn.read(&mut read).await.unwrap(), 23);
        assert_eq!(conn.read(&mut read).await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        drop(conn);
        assert_eq!(slots.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_preface_only_the_lease_counts() {
        for (lease, over) in [(None, false), (Some(Duration::from_secs(60)), true)] {
            let (mut conn, mut far, _ends, _slots) = conn(lease);
            far.write_all(&[0; 24]).await.unwrap();
            let mut read = [0; 64];
            assert_eq!(conn.read(&mut read).await.unwrap(), 24);
            let ended = tokio::time::timeout(Duration::from_secs(3600), conn.read(&mut read)).await;
            assert_eq!(ended.is_ok(), over);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_ends_a_connection_whose_task_never_rests() {
        let (mut conn, mut far, _ends, _slots) = conn(Some(Duration::from_secs(60)));
        far.write_all(&[0; 24]).await.unwrap();
        let mut read = [0; 24];
        conn.read_exact(&mut read).await.unwrap();
        // As a task that has used up what it may do at a stretch.
        let reading = tokio::spawn(async move {
            while tokio::task::coop::has_budget_remaining() {
                tokio::task::coop::consume_budget().await;
            }
            conn.read(&mut [0; 8]).await
        });
        let ended = tokio::time::timeout(Duration::from_secs(3600), reading).await;
        assert_eq!(ended.unwrap().unwrap().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_stop_ends_who_has_not_spoken_and_a_cut_ends_everybody() {
        let aborted = std::io::ErrorKind::ConnectionAborted;
        let (mut silent, _far, ends, _slots) = conn(None);
        ends.stop.tell();
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap_err().kind(), aborted);

        let (mut spoken, mut far, ends, _slots) = conn(None);
        far.write_all(&[0; 24]).await.unwrap();
        assert_eq!(spoken.read(&mut [0; 24]).await.unwrap(), 24);
        ends.stop.tell();
        spoken.write_all(b"x").await.unwrap();
        ends.cut.tell();
        assert_eq!(spoken.read(&mut [0; 8]).await.unwrap_err().kind(), aborted);
        assert_eq!(spoken.write(b"x").await.unwrap_err().kind(), aborted);
    }
}
