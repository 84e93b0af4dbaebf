//! How does a TCP connection become a verified peer?

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use passant_core::SpiffeId;
use passant_core::x509_svid::X509Svid;
use passant_daemon::goaway;
use passant_daemon::log_rate::LogRate;
use passant_daemon::turns::Turns;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::bounds::{Bounds, Shares, origin};
use super::conn::{Conn, Ends};
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
    /// By address, which take turns: those that are slow on purpose are slow for themselves.
    handshakes: Turns<IpAddr>,
    agents: Arc<Semaphore>,
    workloads: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    of_agent: Shares<SpiffeId>,
    of_workload: Shares<SpiffeId>,
    of_stranger: Shares<IpAddr>,
}

/// Accepts until the stop, each handshake in its own task, and hands finished connections to `doors`.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    doors: Doors,
    bounds: Bounds,
    ends: Ends,
    metrics: Arc<Metrics>,
) {
    let each = bounds.handshakes.div_ceil(limits::HANDSHAKES_PART);
    let slots = Arc::new(Slots {
        handshakes: Turns::new(bounds.handshakes, each),
        agents: Arc::new(Semaphore::new(bounds.agents)),
        workloads: Arc::new(Semaphore::new(bounds.workloads)),
        strangers: Arc::new(Semaphore::new(bounds.strangers)),
        of_agent: Shares::new(limits::CONNECTIONS_PER_AGENT),
        of_workload: Shares::new(limits::CONNECTIONS_PER_AGENT),
        of_stranger: Shares::new(bounds.strangers.div_ceil(2)),
    });
    // Half of those that may wait in all: who is slow on purpose, from one place, leaves room for the others.
    let greeted_at_once = Shares::new(bounds.handshakes);
    let (failures, refusals) = (LogRate::default(), Arc::new(LogRate::default()));
    // Handshakes end with the acceptor, not after it: a stopping server answers nobody new.
    let handshakes = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = ends.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = failures.line(()) {
                    tracing::warn!(%error, left_out, "failed to accept a connection");
                }
                tokio::time::sleep(limits::ACCEPT_RETRY).await;
                continue;
            }
        };
        let refuse = |why: &str| {
            metrics.handshakes.of(Handshake::Bound).inc();
            if let Some(left_out) = refusals.line(origin(address)) {
                tracing::info!(%address, left_out, "connection refused: {why}");
            }
        };
        // Waiting for handshakes is bounded too: twice the slots, then the newest are turned away.
        if handshakes.len() >= 2 * bounds.handshakes {
            refuse("too many handshakes at once");
            continue;
        }
        let Some(share) = greeted_at_once.take(&origin(address)) else {
            refuse("too many handshakes at once from this address");
            continue;
        };
        let (acceptor, doors, ends) = (acceptor.clone(), doors.clone(), ends.clone());
        let (slots, metrics, refusals) = (Arc::clone(&slots), Arc::clone(&metrics), Arc::clone(&refusals));
        handshakes.spawn(async move {
            let _share = share;
            let began = Instant::now();
            let greeted = tokio::select! {
                biased;
                () = ends.stop.cancelled() => return,
                greeted = tokio::time::timeout(limits::HANDSHAKE_WITHIN, greet(tcp, address, acceptor, &slots, &ends, &metrics)) => greeted,
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
    handshakes.close();
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
    slots: &Slots,
    ends: &Ends,
    metrics: &Metrics,
) -> Result<(Conn, bool), Unwelcome> {
    let turn = slots.handshakes.take(origin(address)).await;
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "failed to set TCP_NODELAY");
    }
    let tls = acceptor.accept(tcp).await.map_err(|error| Unwelcome::Tls(error.to_string()))?;
    let svid = shown(&tls)?;
    let is_agent = svid.as_ref().is_some_and(|svid| svid.id().is_agent());
    let (slot, lease) = match slots.of(svid.as_deref(), address, metrics) {
        Ok(slot) => slot,
        Err(why) => {
            drop(turn);
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
        metrics: &Metrics,
    ) -> Result<(Box<dyn Send>, Duration), Unwelcome> {
        let slot_of =
            |slots: &Arc<Semaphore>| Arc::clone(slots).try_acquire_owned().map_err(|_| Unwelcome::Full);
        let counted = |peer| metrics.connections.of(peer).hold();
        let share_of = |shares: &Shares<SpiffeId>, id: &SpiffeId| {
            shares.take(id).ok_or_else(|| Unwelcome::FullFor(id.clone()))
        };
        Ok(match svid.map(PeerSvid::id) {
            Some(agent) if agent.is_agent() => {
                let held = (share_of(&self.of_agent, agent)?, slot_of(&self.agents)?, counted(Peer::Agent));
                (Box::new(held), limits::CONNECTION_LEASE)
            }
            Some(other) => {
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

/// The X509-SVID that the handshake verified. Parsing cannot fail here, since verifying parsed it too; if it does, the
/// connection is refused rather than taken for a stranger's.
fn shown(tls: &TlsStream<TcpStream>) -> Result<Option<Arc<PeerSvid>>, Unwelcome> {
    let (_, session) = tls.get_ref();
    let Some(chain) = session.peer_certificates() else { return Ok(None) };
    let chain = chain.iter().map(|certificate| CertificateDer::into_owned(certificate.clone())).collect();
    let svid = X509Svid::parse(chain).map_err(|error| Unwelcome::Tls(error.to_string()))?;
    Ok(Some(Arc::new(PeerSvid::new(svid))))
}
