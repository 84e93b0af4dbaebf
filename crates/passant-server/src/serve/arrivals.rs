//! How do connections come in that come by no socket? In a simulation, whose network says who is at each end.

use std::net::SocketAddr;
use std::sync::Arc;

use passant_core::Host;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};

use super::To;
use super::conn::{Conn, Ends, Io};
use super::tcp::agents_lease;
use crate::caller::{ConnPeer, LocalPeer};
use crate::limits;
use crate::tls::Door;

/// One connection.
pub struct Arrival {
    /// The bytes, without TLS.
    pub io: Box<dyn Io>,
    /// Who comes.
    pub shown: Shown,
}

/// What the other end of a connection shows of itself.
pub enum Shown {
    /// An operator on this machine, who may use the server's own socket.
    Operator(LocalPeer),
    /// Somebody from the network.
    Remote {
        /// From where.
        address: SocketAddr,
        /// The certificate chain, leaf first; none for a stranger. Nobody lies here about holding the key.
        chain: Option<Vec<CertificateDer<'static>>>,
        /// Gets the server's own chain once the one shown was verified, or why it was not.
        answer: oneshot::Sender<Result<Vec<CertificateDer<'static>>, String>>,
    },
}

/// Admits until the stop, and hands connections on. The bounds of the real port do not apply.
pub(super) async fn accept(
    mut arrivals: mpsc::Receiver<Arrival>,
    door: Door,
    to: To,
    ends: Ends,
    host: Host,
) {
    loop {
        let arrival = tokio::select! {
            biased;
            () = ends.stop.told() => return,
            arrival = arrivals.recv() => arrival,
        };
        let Some(Arrival { io, shown }) = arrival else { return };
        let (peer, lease, to) = match shown {
            Shown::Operator(peer) => (ConnPeer::Local(peer), None, &to.operators),
            Shown::Remote { address, chain, answer } => match door.admit(chain) {
                Ok((svid, own)) => {
                    let is_agent = svid.as_ref().is_some_and(|svid| svid.id().is_agent());
                    let lease = match &svid {
                        Some(agent) if is_agent => agents_lease(agent, host.now()),
                        Some(_) => limits::CONNECTION_LEASE,
                        None => limits::STRANGER_LEASE,
                    };
                    if answer.send(Ok(own)).is_err() {
                        continue;
                    }
                    let to = if is_agent { &to.agents } else { &to.others };
                    (ConnPeer::Remote { address, svid: svid.map(Arc::new) }, Some(lease), to)
                }
                Err(why) => {
                    tracing::info!(%address, "connection refused: {why}");
                    // Who does not wait for it need not know.
                    drop(answer.send(Err(why)));
                    continue;
                }
            },
        };
        let conn = Conn::new(io, peer, &ends, Box::new(()), limits::PREFACE_WITHIN, lease);
        if to.send(conn).await.is_err() {
            return;
        }
    }
}
