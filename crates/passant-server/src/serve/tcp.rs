//! How does a TCP connection become a verified peer?

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use passant_core::x509_svid::X509Svid;
use passant_core::{Host, SpiffeId, UnixTime};
use passant_daemon::goaway;
use passant_daemon::log_rate::LogRate;
use rustls_pki_types::CertificateDer;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::bounds::{Bounds, Shares, origin};
use super::conn::{Conn, Ends};
use super::line::Line;
use crate::caller::{ConnPeer, PeerSvid};
use crate::limits;
use crate::metrics::{Handshake, Metrics, Peer};

/// Where finished connections go.
#[derive(Clone)]
pub(super) struct Doors {
    /// Those of agents.
    pub(super) agents: mpsc::Sender<Conn>,
    /// All others.
    pub(super) others: mpsc::Sender<Conn>,
}

/// Slots that bound the port, for each kind of peer apart: strangers cannot keep agents out, and none can keep out all
/// others of its kind.
struct Slots {
    agents: Arc<Semaphore>,
    workloads: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    of_agent: Shares<SpiffeId>,
    of_workload: Shares<SpiffeId>,
    of_stranger: Shares<IpAddr>,
}

/// A connection whose handshake has not begun. It costs a descriptor, and hardly any memory.
struct Waiting {
    tcp: TcpStream,
    address: SocketAddr,
    since: Instant,
}

/// A handshake that is worked on: tells when it is no more.
struct Working {
    from: IpAddr,
    done: mpsc::UnboundedSender<IpAddr>,
}

impl Drop for Working {
    fn drop(&mut self) {
        if self.done.send(self.from).is_err() {
            tracing::trace!("nobody accepts any more");
        }
    }
}

/// Accepts until the stop, each handshake in its own task, and hands finished connections to `doors`.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    doors: Doors,
    bounds: Bounds,
    ends: Ends,
    (host, metrics): (Host, Arc<Metrics>),
) {
    let slots = Arc::new(Slots {
        agents: Arc::new(Semaphore::new(bounds.agents)),
        workloads: Arc::new(Semaphore::new(bounds.workloads)),
        strangers: Arc::new(Semaphore::new(bounds.strangers)),
        of_agent: Shares::new(limits::CONNECTIONS_PER_AGENT),
        of_workload: Shares::new(limits::CONNECTIONS_PER_AGENT),
        of_stranger: Shares::new(bounds.strangers.div_ceil(2)),
    });
    let each = bounds.handshakes.div_ceil(limits::HANDSHAKES_PART);
    let mut line: Line<IpAddr, Waiting> = Line::new(bounds.handshakes, each);
    let (done, mut freed) = mpsc::unbounded_channel();
    let (failures, refusals) = (LogRate::default(), Arc::new(LogRate::default()));
    // Handshakes end with the acceptor, not after it: a stopping server answers nobody new.
    let handshakes = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = ends.stop.told() => break,
            Some(from) = freed.recv() => {
                line.done(&from);
                None
            }
            accepted = listener.accept() => Some(accepted),
        };
        match accepted {
            None => {}
            Some(Ok((tcp, address))) => {
                // Whoever waits has a descriptor, of those that agents do not use.
                let free = slots.agents.available_permits().min(limits::HANDSHAKES_WAITING);
                let waiting = Waiting { tcp, address, since: Instant::now() };
                let pushed_out = line.join(origin(address), waiting, free.max(bounds.handshakes));
                if let Some((from, out)) = pushed_out {
                    metrics.handshakes.of(Handshake::Bound).inc();
                    if let Some(left_out) = refusals.line(from) {
                        let address = out.address;
                        tracing::info!(%address, left_out, "connection refused: too many handshakes at once");
                    }
                }
            }
            Some(Err(error)) => {
                if let Some(left_out) = failures.line(()) {
                    tracing::warn!(%error, left_out, "failed to accept a connection");
                }
                tokio::time::sleep(limits::ACCEPT_RETRY).await;
                continue;
            }
        }
        while let Some((from, Waiting { tcp, address, since })) = line.next() {
            if since.elapsed() > limits::HANDSHAKE_WAITS || has_left(&tcp) {
                line.done(&from);
                metrics.handshakes.of(Handshake::Timeout).inc();
                continue;
            }
            let working = Some(Working { from, done: done.clone() });
            let (acceptor, doors, ends, host) = (acceptor.clone(), doors.clone(), ends.clone(), host.clone());
            let (slots, metrics, refusals) =
                (Arc::clone(&slots), Arc::clone(&metrics), Arc::clone(&refusals));
            handshakes.spawn(async move {
                let began = Instant::now();
                // Until HTTP/2 has taken the connection.
                let mut working = working;
                let greeting =
                    greet(tcp, address, acceptor, (&slots, &mut working), &ends, (&host, &metrics));
                let greeted = tokio::select! {
                    biased;
                    () = ends.stop.told() => return,
                    greeted = tokio::time::timeout(limits::HANDSHAKE_WITHIN, greeting) => greeted,
                };
                let counts = match &greeted {
                    Ok(Ok(_)) => Handshake::Accepted,
                    Ok(Err(unwelcome)) => unwelcome.counts(),
                    Err(_) => Handshake::Timeout,
                };
                metrics.handshakes.of(counts).inc();
                let why = match greeted {
                    Ok(Ok((conn, is_agent))) => {
                        metrics.handshake.since(began);
                        let door = if is_agent { doors.agents } else { doors.others };
                        if door.send(conn).await.is_err() {
                            tracing::debug!(%address, "closed: the server is stopping");
                        }
                        return;
                    }
                    Ok(Err(why)) => why.to_string(),
                    Err(_) => "the handshake took too long".to_owned(),
                };
                if let Some(left_out) = refusals.line(origin(address)) {
                    tracing::info!(%address, left_out, "connection refused: {why}");
                }
            });
        }
    }
    handshakes.close();
}

/// Whether the client has closed the connection: it would not read what is signed for it.
fn has_left(tcp: &TcpStream) -> bool {
    let ready = std::pin::pin!(tcp.ready(Interest::READABLE));
    let ready = ready.poll(&mut Context::from_waker(Waker::noop()));
    matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

/// Why a connection is not taken, for the log, and as far as it can be told for the peer.
#[derive(Debug, thiserror::Error)]
enum Unwelcome {
    #[error("{0}")]
    Tls(String),
    #[error("too many connections; try again later")]
    Full,
    #[error("too many connections of {0}; close others first")]
    FullFor(SpiffeId),
}

impl Unwelcome {
    fn counts(&self) -> Handshake {
        match self {
            Self::Tls(_) => Handshake::Tls,
            Self::Full | Self::FullFor(_) => Handshake::Bound,
        }
    }
}

/// One handshake; the connection, and whether it is an agent's.
async fn greet(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    (slots, working): (&Slots, &mut Option<Working>),
    ends: &Ends,
    (host, metrics): (&Host, &Metrics),
) -> Result<(Conn, bool), Unwelcome> {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "failed to set TCP_NODELAY");
    }
    let tls = acceptor.accept(tcp).await.map_err(|error| Unwelcome::Tls(error.to_string()))?;
    let svid = shown(&tls)?;
    let is_agent = svid.as_ref().is_some_and(|svid| svid.id().is_agent());
    let (slot, lease) = match slots.of(svid.as_deref(), address, host.now(), metrics) {
        Ok(slot) => slot,
        Err(why) => {
            // The farewell is not to keep others waiting.
            drop(working.take());
            goaway::say(tls, &why.to_string()).await;
            return Err(why);
        }
    };
    let peer = ConnPeer::Remote { address, svid };
    Ok((Conn::new(tls, peer, ends, slot, limits::PREFACE_WITHIN, Some(lease)), is_agent))
}

impl Slots {
    /// What a connection holds that showed `svid`, and how long it may stay.
    fn of(
        &self,
        svid: Option<&PeerSvid>,
        address: SocketAddr,
        now: UnixTime,
        metrics: &Metrics,
    ) -> Result<(Box<dyn Send>, Duration), Unwelcome> {
        let slot_of =
            |slots: &Arc<Semaphore>| Arc::clone(slots).try_acquire_owned().map_err(|_| Unwelcome::Full);
        let counted = |peer| metrics.connections.of(peer).hold();
        let share_of = |shares: &Shares<SpiffeId>, id: &SpiffeId| {
            shares.take(id).ok_or_else(|| Unwelcome::FullFor(id.clone()))
        };
        Ok(match svid {
            Some(agent) if agent.id().is_agent() => {
                let share = share_of(&self.of_agent, agent.id())?;
                let held = (share, slot_of(&self.agents)?, counted(Peer::Agent));
                (Box::new(held), agents_lease(agent, now))
            }
            Some(other) => {
                let other = other.id();
                let held =
                    (share_of(&self.of_workload, other)?, slot_of(&self.workloads)?, counted(Peer::Workload));
                (Box::new(held), limits::CONNECTION_LEASE)
            }
            None => {
                let share = self.of_stranger.take(&origin(address)).ok_or(Unwelcome::Full)?;
                let held = (share, slot_of(&self.strangers)?, counted(Peer::Stranger));
                (Box::new(held), limits::STRANGER_LEASE)
            }
        })
    }
}

/// How long the connection of an agent may stay: as long as the X509-SVID that it showed, and a little more, in which it is told
/// that it has expired.
pub(super) fn agents_lease(svid: &PeerSvid, now: UnixTime) -> Duration {
    now.until(svid.not_after()).saturating_add(limits::CONNECTION_LEASE)
}

/// The X509-SVID that the handshake verified. Parsing cannot fail here, since verifying parsed it too; if it does, the
/// connection is refused rather than taken for a stranger's.
fn shown(tls: &TlsStream<TcpStream>) -> Result<Option<Arc<PeerSvid>>, Unwelcome> {
    let (_, session) = tls.get_ref();
    let Some(chain) = session.peer_certificates() else { return Ok(None) };
    let chain = chain.iter().map(|certificate| CertificateDer::into_owned(certificate.clone())).collect();
    let svid = X509Svid::parse(chain).map_err(|error| Unwelcome::Tls(error.to_string()))?;
    Ok(Some(Arc::new(PeerSvid::new(svid))))
}
