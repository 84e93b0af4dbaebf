//! How do connections reach the API: over TLS for the world, over a unix socket for operators?

mod arrivals;
mod bounds;
mod conn;
mod line;
mod local;
mod tcp;
mod under_way;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use passant_core::Host;
use passant_daemon::calls::Count;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::api::authorize::Authorize;
use crate::metrics::{Calls, Metrics};
use crate::quota::Quotas;
use crate::{config, limits, tls};
pub use arrivals::{Arrival, Shown};
use bounds::Bounds;
pub(crate) use bounds::origin;
pub use conn::Io;
use conn::{Conn, End, Ends};
use local::OperatorSocket;
pub use local::SocketError;
pub(crate) use local::{Guests, groups_of};
use under_way::UnderWay;

/// What every call passes before it reaches a method.
#[derive(Clone)]
pub(crate) struct Front {
    /// Who counts it, and hears how it ends.
    pub(crate) calls: Calls,
    /// Who decides whether it may go on.
    pub(crate) authorize: Authorize,
    /// How much is worked on at a time.
    pub(crate) quotas: Arc<Quotas>,
}

/// Both ports, bound and not yet answering.
#[derive(Debug)]
pub(crate) struct Ports {
    tcp: TcpListener,
    address: SocketAddr,
    socket: OperatorSocket,
    path: PathBuf,
}

/// Both ports, answering.
#[derive(Debug)]
pub(crate) struct Serving {
    ends: Ends,
    tasks: TaskTracker,
}

/// Why a port could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The TCP address.
    #[error("failed to listen on {address}; is another server running, or the address not this machine's?")]
    Tcp {
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The operator socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl Ports {
    /// Binds both, or neither.
    pub(crate) async fn bind(
        listen: SocketAddr,
        socket: &config::Socket,
        guests: Arc<Guests>,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError::Tcp { address: listen, source };
        let tcp = listener(listen).map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let path = socket.path.clone();
        let socket = OperatorSocket::bind(socket, guests)?;
        Ok(Self { tcp, address, socket, path })
    }

    /// The TCP address as bound, with the real port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the operator socket stands.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts answering with `routes`; every RPC passes `front` first: who may, and how much.
    pub(crate) fn open(
        self,
        tls: rustls::ServerConfig,
        routes: Routes,
        front: Front,
        (host, metrics): (&Host, &Arc<Metrics>),
    ) -> Serving {
        let bounds = Bounds::of_process();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (serving, to) = Serving::begin(routes, front);
        let doors = tcp::Doors { agents: to.agents, others: to.others };
        serving.tasks.spawn(tcp::accept(
            self.tcp,
            acceptor,
            doors,
            bounds,
            serving.ends.clone(),
            (host.clone(), Arc::clone(metrics)),
        ));
        serving.tasks.spawn(self.socket.accept(
            to.operators,
            bounds.local,
            serving.ends.clone(),
            Arc::clone(metrics),
        ));
        serving.tasks.close();
        serving
    }
}

/// As `TcpListener::bind`, with a longer line at the kernel.
fn listener(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of a server that has just ended do not keep this one from its address.
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(limits::BACKLOG)
}

/// Where accepted connections are handed in, by whose they are.
struct To {
    agents: mpsc::Sender<Conn>,
    others: mpsc::Sender<Conn>,
    operators: mpsc::Sender<Conn>,
}

impl Serving {
    /// Answers what `arrivals` brings, each peer verified by `door` as the TLS layer would.
    pub(crate) fn over(
        arrivals: mpsc::Receiver<Arrival>,
        door: tls::Door,
        routes: Routes,
        front: Front,
        host: Host,
    ) -> Self {
        let (serving, to) = Self::begin(routes, front);
        serving.tasks.spawn(arrivals::accept(arrivals, door, to, serving.ends.clone(), host));
        serving.tasks.close();
        serving
    }

    fn begin(routes: Routes, front: Front) -> (Self, To) {
        let (ends, tasks) = (Ends::default(), TaskTracker::new());
        let ((to_agents, agents), (to_others, others), (to_operators, operators)) = (
            mpsc::channel(limits::ACCEPTED),
            mpsc::channel(limits::ACCEPTED),
            mpsc::channel(limits::ACCEPTED),
        );
        for (arriving, guests) in
            [(agents, Arriving::Agents), (others, Arriving::Others), (operators, Arriving::Operators)]
        {
            let under_way = UnderWay::new(guests, Arc::clone(&front.quotas));
            let passed = (front.clone(), under_way);
            tasks.spawn(answer(arriving, guests, routes.clone(), passed, ends.stop.clone()));
        }
        (Self { ends, tasks }, To { agents: to_agents, others: to_others, operators: to_operators })
    }

    /// Stops accepting, lets RPCs in progress finish for a bounded time, then cuts what is left.
    pub(crate) async fn stop(&self) {
        self.ends.stop.tell();
        if tokio::time::timeout(limits::STOP_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::info!("cutting connections whose RPCs did not finish in time");
            self.ends.cut.tell();
            self.tasks.wait().await;
        }
    }

    /// Ends both ports and every connection at once.
    pub(crate) fn cut(&self) {
        self.ends.stop.tell();
        self.ends.cut.tell();
    }
}

/// Whose connections are answered.
#[derive(Clone, Copy, Debug)]
enum Arriving {
    /// Attested nodes.
    Agents,
    /// Whoever else comes over the network.
    Others,
    /// Whoever comes over the operator socket.
    Operators,
}

/// HTTP/2 and gRPC over the connections that arrive, until `stop` and the last of them.
async fn answer(
    arriving: mpsc::Receiver<Conn>,
    from: Arriving,
    routes: Routes,
    (Front { calls, authorize, .. }, under_way): (Front, UnderWay),
    stop: End,
) {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(limits::KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_WITHIN))
        .http2_max_header_list_size(limits::HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(limits::RESET_BEFORE_ACCEPT))
        .http2_max_local_error_reset_streams(Some(limits::RESET_FOR_ERRORS));
    server = match from {
        // As long as its X509-SVID: see `tcp`. It watches, and would have to begin anew.
        Arriving::Agents => server
            .http2_keepalive_interval(Some(limits::AGENTS_KEEPALIVE_EVERY))
            .max_concurrent_streams(limits::STREAMS)
            .initial_stream_window_size(limits::AGENTS_WINDOW)
            .initial_connection_window_size(2 * limits::AGENTS_WINDOW),
        Arriving::Others => server
            .max_concurrent_streams(limits::STRANGERS_STREAMS)
            .initial_stream_window_size(limits::STRANGERS_WINDOW)
            .initial_connection_window_size(limits::STRANGERS_WINDOW)
            .max_connection_age(limits::CONNECTION_AGE),
        // Whoever has left a group is looked at again then.
        Arriving::Operators => {
            server.max_concurrent_streams(limits::STREAMS).max_connection_age(limits::CONNECTION_AGE)
        }
    };
    let incoming = ReceiverStream::new(arriving).map(Ok::<_, Infallible>);
    let served = server
        .layer(Count(calls))
        .layer(authorize)
        .layer(under_way)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.told_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(error = &error as &dyn std::error::Error, "a port stopped answering");
    }
}
