//! How do bytes travel? Over links that delay, hold back, lose and break, as the seed has it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use passant_agent::connect::{Network, Opened};
use passant_server::caller::LocalPeer;
use passant_server::serve::{Arrival, Shown};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use crate::log::Log;

/// From the one who connected, and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

impl Way {
    const fn index(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }

    const fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// One link, with all connections over it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Mutex<Line>>);

struct Line {
    blocked: [bool; 2],
    delay: [Duration; 2],
    /// The next connection that is opened loses what comes back after so many pieces.
    cut_next: Option<u32>,
    wires: Vec<Weak<Mutex<Wires>>>,
    /// Who waits to connect.
    waiting: Vec<Waker>,
    log: Log,
}

struct Wires {
    ways: [Track; 2],
    is_broken: bool,
    /// Pieces on the way down that still arrive; the one after them is lost with the connection.
    cut_after: Option<u32>,
}

#[derive(Default)]
struct Track {
    on_the_way: VecDeque<(Instant, Vec<u8>)>,
    is_closed: bool,
    reader: Option<Waker>,
}

/// One end of a connection.
pub(crate) struct End {
    line: Arc<Mutex<Line>>,
    wires: Arc<Mutex<Wires>>,
    /// The way that this end writes.
    out: Way,
    alarm: Pin<Box<Sleep>>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) fn new(log: Log) -> Self {
        Self(Arc::new(Mutex::new(Line {
            blocked: [false; 2],
            delay: [Duration::ZERO; 2],
            cut_next: None,
            wires: Vec::new(),
            waiting: Vec::new(),
            log,
        })))
    }

    /// The two ends of a new connection: of who connects, and of who is connected to.
    pub(crate) fn pair(&self) -> (End, End) {
        let mut line = lock(&self.0);
        let cut_after = line.cut_next.take();
        let wires = Arc::new(Mutex::new(Wires { ways: Default::default(), is_broken: false, cut_after }));
        line.wires.retain(|wires| wires.strong_count() > 0);
        line.wires.push(Arc::downgrade(&wires));
        let end = |out| End {
            line: Arc::clone(&self.0),
            wires: Arc::clone(&wires),
            out,
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        (end(Way::Up), end(Way::Down))
    }

    pub(crate) fn block(&self, way: Way, blocked: bool) {
        let mut line = lock(&self.0);
        line.blocked[way.index()] = blocked;
        if !blocked {
            line.wake();
        }
    }

    pub(crate) fn is_blocked(&self) -> bool {
        lock(&self.0).blocked != [false; 2]
    }

    pub(crate) fn delay(&self, up: Duration, down: Duration) {
        lock(&self.0).delay = [up, down];
    }

    pub(crate) fn latency(&self) -> Duration {
        lock(&self.0).delay.iter().sum()
    }

    /// Loses what comes back after `pieces` more: on the connections there are, and on the next one.
    pub(crate) fn cut_after(&self, pieces: u32) {
        let mut line = lock(&self.0);
        line.cut_next = Some(pieces);
        for wires in line.wires.iter().filter_map(Weak::upgrade) {
            lock(&wires).cut_after = Some(pieces);
        }
    }

    /// Forgets [`Link::cut_after`].
    pub(crate) fn spare(&self) {
        let mut line = lock(&self.0);
        line.cut_next = None;
        for wires in line.wires.iter().filter_map(Weak::upgrade) {
            lock(&wires).cut_after = None;
        }
    }

    /// Breaks every connection.
    pub(crate) fn break_all(&self) {
        let line = lock(&self.0);
        for wires in line.wires.iter().filter_map(Weak::upgrade) {
            lock(&wires).break_off();
        }
    }

    /// Waits until bytes can pass both ways.
    async fn passable(&self) {
        std::future::poll_fn(|cx| {
            let mut line = lock(&self.0);
            if line.blocked == [false; 2] {
                return Poll::Ready(());
            }
            line.waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Line {
    fn wake(&mut self) {
        for waiting in self.waiting.drain(..) {
            waiting.wake();
        }
        for wires in self.wires.iter().filter_map(Weak::upgrade) {
            lock(&wires).wake();
        }
    }
}

impl Wires {
    fn wake(&mut self) {
        for reader in self.ways.iter_mut().filter_map(|track| track.reader.take()) {
            reader.wake();
        }
    }

    fn break_off(&mut self) {
        self.is_broken = true;
        self.wake();
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let way = this.out.back().index();
        let is_blocked = lock(&this.line).blocked[way];
        let mut wires = lock(&this.wires);
        let is_broken = wires.is_broken;
        let track = &mut wires.ways[way];
        // Behind a partition nobody hears that the other side has gone.
        if is_blocked {
            track.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match track.on_the_way.front_mut() {
            Some((due, bytes)) if *due <= Instant::now() => {
                let read = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..read]);
                if read == bytes.len() {
                    track.on_the_way.pop_front();
                } else {
                    bytes.drain(..read);
                }
                Poll::Ready(Ok(()))
            }
            Some((due, _)) => {
                this.alarm.as_mut().reset(*due);
                track.reader = Some(cx.waker().clone());
                drop(wires);
                if this.alarm.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            None if track.is_closed => Poll::Ready(Ok(())),
            None => {
                track.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let line = lock(&self.line);
        let (is_blocked, delay) = (line.blocked[self.out.index()], line.delay[self.out.index()]);
        let mut wires = lock(&self.wires);
        // Who reads nothing any more has gone; behind a partition that is not noticed.
        if !is_blocked && (wires.is_broken || wires.ways[self.out.back().index()].is_closed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.out == Way::Down {
            match wires.cut_after {
                Some(0) => {
                    wires.cut_after = None;
                    wires.break_off();
                    line.log.fault("reply lost");
                    return Poll::Ready(Ok(buf.len()));
                }
                Some(left) => wires.cut_after = Some(left - 1),
                None => {}
            }
        }
        let track = &mut wires.ways[self.out.index()];
        let due = track.on_the_way.back().map_or_else(Instant::now, |last| last.0);
        track.on_the_way.push_back((due.max(Instant::now() + delay), buf.to_vec()));
        if let Some(reader) = track.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.wires).ways[self.out.index()].is_closed = true;
        lock(&self.wires).wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut wires = lock(&self.wires);
        wires.ways[self.out.index()].is_closed = true;
        wires.wake();
    }
}

/// Where the server hears of connections, while it runs.
#[derive(Clone, Default)]
pub(crate) struct Port(Arc<Mutex<Option<mpsc::Sender<Arrival>>>>);

impl Port {
    pub(crate) fn open(&self) -> mpsc::Receiver<Arrival> {
        let (to, arrivals) = mpsc::channel(64);
        *lock(&self.0) = Some(to);
        arrivals
    }

    pub(crate) fn close(&self) {
        *lock(&self.0) = None;
    }

    async fn hand_in(&self, arrival: Arrival) -> io::Result<()> {
        let to = lock(&self.0).clone().ok_or(io::ErrorKind::ConnectionRefused)?;
        to.send(arrival).await.map_err(|_| io::ErrorKind::ConnectionReset.into())
    }
}

/// The way of one machine to the server.
#[derive(Clone)]
pub(crate) struct Road {
    pub(crate) link: Link,
    pub(crate) port: Port,
    pub(crate) address: SocketAddr,
}

impl Road {
    pub(crate) async fn open(&self, chain: Option<Vec<CertificateDer<'static>>>) -> io::Result<(End, Chain)> {
        self.link.passable().await;
        tokio::time::sleep(self.link.latency()).await;
        let (near, far) = self.link.pair();
        let (answer, admitted) = oneshot::channel();
        let shown = Shown::Remote { address: self.address, chain, answer };
        self.port.hand_in(Arrival { io: Box::new(far), shown }).await?;
        let server = admitted.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
        self.link.passable().await;
        Ok((near, Chain(server.map_err(io::Error::other)?)))
    }

    /// As an operator on the server's machine.
    pub(crate) async fn operate(&self) -> io::Result<End> {
        let (near, far) = self.link.pair();
        let shown = Shown::Operator(LocalPeer { uid: 0, gid: 0, pid: Some(1) });
        self.port.hand_in(Arrival { io: Box::new(far), shown }).await?;
        Ok(near)
    }
}

/// The certificates that the server showed, leaf first.
pub(crate) struct Chain(pub(crate) Vec<CertificateDer<'static>>);

impl Network for Road {
    fn open(
        &self,
        chain: Option<Vec<CertificateDer<'static>>>,
    ) -> Pin<Box<dyn Future<Output = io::Result<Opened>> + Send>> {
        let road = self.clone();
        Box::pin(async move {
            let (stream, Chain(server)) = Self::open(&road, chain).await?;
            Ok(Opened { stream: Box::new(stream), server })
        })
    }
}
