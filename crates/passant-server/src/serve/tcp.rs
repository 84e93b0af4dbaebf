//! How does a TCP connection become a verified peer?

use std::net::SocketAddr;
use std::sync::Arc;

use passant_core::x509_svid::X509Svid;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::conn::{Conn, Ends};
use crate::caller::{ConnPeer, PeerSvid};
use crate::limits;

/// Slots that bound the port.
struct Slots {
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// Accepts until the stop, each handshake in its own task, and hands finished connections to `to`.
pub(super) async fn accept(listener: TcpListener, acceptor: TlsAcceptor, to: mpsc::Sender<Conn>, ends: Ends) {
    let slots = Arc::new(Slots {
        handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES)),
        connections: Arc::new(Semaphore::new(limits::CONNECTIONS)),
        strangers: Arc::new(Semaphore::new(limits::STRANGERS)),
    });
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
        if handshakes.len() >= 2 * limits::HANDSHAKES {
            tracing::debug!(%address, "turned away: too many handshakes at once");
            continue;
        }
        let (acceptor, to, ends) = (acceptor.clone(), to.clone(), ends.clone());
        let slots = Arc::clone(&slots);
        handshakes.spawn(async move {
            let greeted = tokio::select! {
                biased;
                () = ends.stop.cancelled() => return,
                greeted = tokio::time::timeout(limits::HANDSHAKE_WITHIN, greet(tcp, address, acceptor, &slots, &ends)) => greeted,
            };
            match greeted {
                Ok(Ok(conn)) => {
                    if to.send(conn).await.is_err() {
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

/// One handshake. The error is for the log.
async fn greet(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    slots: &Slots,
    ends: &Ends,
) -> Result<Conn, String> {
    let _turn = slots.handshakes.acquire().await.map_err(|_| "the server is stopping".to_owned())?;
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "failed to set TCP_NODELAY");
    }
    let tls = acceptor.accept(tcp).await.map_err(|error| error.to_string())?;
    let svid = shown(&tls)?;
    let (slots, lease) = match svid {
        Some(_) => (&slots.connections, None),
        None => (&slots.strangers, Some(limits::STRANGER_LEASE)),
    };
    let slot = Arc::clone(slots).try_acquire_owned().map_err(|_| "too many connections".to_owned())?;
    let peer = ConnPeer::Remote { address, svid };
    Ok(Conn::new(tls, peer, ends, slot, limits::PREFACE_WITHIN, lease))
}

/// The X509-SVID that the handshake verified. Parsing cannot fail here, since verifying parsed it too; if it does, the
/// connection is refused rather than taken for a stranger's.
fn shown(tls: &TlsStream<TcpStream>) -> Result<Option<Arc<PeerSvid>>, String> {
    let (_, session) = tls.get_ref();
    let Some(chain) = session.peer_certificates() else { return Ok(None) };
    let chain = chain.iter().map(|certificate| CertificateDer::into_owned(certificate.clone())).collect();
    X509Svid::parse(chain).map(|svid| Some(Arc::new(PeerSvid::new(svid)))).map_err(|error| error.to_string())
}
