//! How does a TCP connection become a verified peer?

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use passant_core::SpiffeId;
use passant_core::x509_svid::X509Svid;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::bounds::{Bounds, Shares, origin};
use super::conn::{Conn, Ends};
use crate::caller::{ConnPeer, PeerSvid};
use crate::limits;

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
    handshakes: Arc<Semaphore>,
    agents: Arc<Semaphore>,
    workloads: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    of_agent: Shares<SpiffeId>,
    of_stranger: Shares<IpAddr>,
}

/// Accepts until the stop, each handshake in its own task, and hands finished connections to `doors`.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    doors: Doors,
    bounds: Bounds,
    ends: Ends,
) {
    let slots = Arc::new(Slots {
        handshakes: Arc::new(Semaphore::new(bounds.handshakes)),
        agents: Arc::new(Semaphore::new(bounds.agents)),
        workloads: Arc::new(Semaphore::new(bounds.workloads)),
        strangers: Arc::new(Semaphore::new(bounds.strangers)),
        of_agent: Shares::new(limits::CONNECTIONS_PER_AGENT),
        of_stranger: Shares::new(bounds.strangers.div_ceil(2)),
    });
    // Half of those that may wait in all: who is slow on purpose, from one place, leaves room for the others.
    let greeted_at_once = Shares::new(bounds.handshakes);
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
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(limits::ACCEPT_RETRY).await;
                continue;
            }
        };
        // Waiting for handshakes is bounded too: twice the slots, then the newest are turned away.
        if handshakes.len() >= 2 * bounds.handshakes {
            tracing::debug!(%address, "turned away: too many handshakes at once");
            continue;
        }
        let Some(share) = greeted_at_once.take(&origin(address)) else {
            tracing::debug!(%address, "turned away: too many handshakes at once from this address");
            continue;
        };
        let (acceptor, doors, ends) = (acceptor.clone(), doors.clone(), ends.clone());
        let slots = Arc::clone(&slots);
        handshakes.spawn(async move {
            let _share = share;
            let greeted = tokio::select! {
                biased;
                () = ends.stop.cancelled() => return,
                greeted = tokio::time::timeout(limits::HANDSHAKE_WITHIN, greet(tcp, address, acceptor, &slots, &ends)) => greeted,
            };
            match greeted {
                Ok(Ok((conn, is_agent))) => {
                    let door = if is_agent { doors.agents } else { doors.others };
                    if door.send(conn).await.is_err() {
                        tracing::debug!(%address, "closed: the server is stopping");
                    }
                }
                Ok(Err(why)) => tracing::info!(%address, "connection refused: {why}"),
                Err(_) => tracing::debug!(%address, "connection refused: the handshake took too long"),
            }
        });
    }
    handshakes.close();
}

/// One handshake; the connection, and whether it is an agent's. The error is for the log.
async fn greet(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    slots: &Slots,
    ends: &Ends,
) -> Result<(Conn, bool), String> {
    let _turn = slots.handshakes.acquire().await.map_err(|_| "the server is stopping".to_owned())?;
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "failed to set TCP_NODELAY");
    }
    let tls = acceptor.accept(tcp).await.map_err(|error| error.to_string())?;
    let svid = shown(&tls)?;
    let full = || "too many connections".to_owned();
    let slot_of = |slots: &Arc<Semaphore>| Arc::clone(slots).try_acquire_owned().map_err(|_| full());
    let agent = svid.as_ref().map(|svid| svid.id()).filter(|id| id.is_agent());
    let is_agent = agent.is_some();
    let (slot, lease): (Box<dyn Send>, _) = match (agent, &svid) {
        (Some(agent), _) => {
            let share = slots.of_agent.take(agent);
            let share = share.ok_or_else(|| format!("too many connections of {agent}"))?;
            (Box::new((slot_of(&slots.agents)?, share)), limits::CONNECTION_LEASE)
        }
        (None, Some(_)) => (Box::new(slot_of(&slots.workloads)?), limits::CONNECTION_LEASE),
        (None, None) => {
            let share = slots.of_stranger.take(&origin(address)).ok_or_else(full)?;
            (Box::new((slot_of(&slots.strangers)?, share)), limits::STRANGER_LEASE)
        }
    };
    let peer = ConnPeer::Remote { address, svid };
    Ok((Conn::new(tls, peer, ends, slot, limits::PREFACE_WITHIN, Some(lease)), is_agent))
}

/// The X509-SVID that the handshake verified. Parsing cannot fail here, since verifying parsed it too; if it does, the
/// connection is refused rather than taken for a stranger's.
fn shown(tls: &TlsStream<TcpStream>) -> Result<Option<Arc<PeerSvid>>, String> {
    let (_, session) = tls.get_ref();
    let Some(chain) = session.peer_certificates() else { return Ok(None) };
    let chain = chain.iter().map(|certificate| CertificateDer::into_owned(certificate.clone())).collect();
    X509Svid::parse(chain).map(|svid| Some(Arc::new(PeerSvid::new(svid)))).map_err(|error| error.to_string())
}
