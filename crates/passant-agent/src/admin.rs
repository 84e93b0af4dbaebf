//! Who may ask the agent about its node, and how is that served?
//!
//! On a unix socket of its own, never where workloads connect: what is told here (selectors, entries, what the server said)
//! is nothing that a workload learns. Root and the agent's own user are let in; the kernel says who connected.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::unistd::Uid;
use passant_attest::peer::{Peer, PeerError};
use passant_core::{Instance, SpiffeId};
use passant_daemon::goaway::Farewells;
use passant_daemon::grpc::{ReflectionError, add_reflection};
use passant_daemon::log_rate::LogRate;
use passant_daemon::private_socket::{PlaceError, PrivateSocket};
use passant_proto::convert::{explanation, selector};
use passant_proto::descriptors;
use passant_proto::node::node_server::{Node, NodeServer};
use passant_proto::node::{ExplainRequest, ExplainResponse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};
use tracing::{debug, warn};

use crate::attest::Attestation;
use crate::explain::{Process, Scene, explain};
use crate::limits::{ADMIN_ACCEPT_AGAIN, ADMIN_CALLS, ADMIN_CONNECTIONS, ADMIN_REQUEST_BYTES};
use crate::vitals::AgentVitals;

/// Its mode: nobody but the owner, and root, who needs no mode.
const MODE: u32 = 0o600;

/// The admin socket, listening.
pub(crate) struct Admin {
    socket: PrivateSocket,
    attestation: Arc<Attestation>,
    boot_id: String,
}

/// What calls are answered from.
struct Service {
    vitals: Arc<AgentVitals>,
    attestation: Arc<Attestation>,
    boot_id: String,
}

impl Admin {
    /// Listens on `path`; clients are answered once it is served. Inside a tokio runtime. Processes are those of the boot
    /// `boot_id`.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub(crate) fn bind(
        path: &Path,
        attestation: Arc<Attestation>,
        boot_id: String,
    ) -> Result<Self, PlaceError> {
        Ok(Self { socket: PrivateSocket::bind(path, MODE, None)?, attestation, boot_id })
    }

    /// What is served: with reflection.
    ///
    /// # Errors
    /// When reflection cannot be served.
    pub(crate) fn serving(
        self,
        vitals: Arc<AgentVitals>,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + 'static, ReflectionError> {
        let Self { socket, attestation, boot_id } = self;
        let service = NodeServer::new(Service { vitals, attestation, boot_id });
        let routes = add_reflection(Routes::default(), &[descriptors::NODE])?;
        let routes = routes.add_service(service.max_decoding_message_size(ADMIN_REQUEST_BYTES));
        Ok(async move {
            let (accepted, incoming) = mpsc::channel(1);
            let accepting = tokio::spawn(accept(socket, accepted, stop.clone()));
            let served = Server::builder()
                .max_concurrent_streams(ADMIN_CALLS)
                .add_routes(routes.prepare())
                .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
                    stop.cancelled().await;
                });
            if let Err(error) = served.await {
                warn!(%error, "the admin socket failed");
            }
            accepting.abort();
        })
    }
}

/// Accepts connections until `stop`, and lets in who may ask.
async fn accept(socket: PrivateSocket, to: mpsc::Sender<io::Result<Connection>>, stop: CancellationToken) {
    let own = Uid::effective().as_raw();
    let slots = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let (failures, refusals) = (LogRate::default(), LogRate::default());
    let farewells = Farewells::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = to.closed() => return,
            accepted = socket.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(left_out) = failures.line(()) {
                    warn!(%error, left_out, "failed to accept on the admin socket");
                }
                sleep(ADMIN_ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(peer) = stream.peer_cred() else {
            debug!("admin socket: a connection has gone");
            continue;
        };
        let uid = peer.uid();
        if !may_ask(uid, own) {
            if let Some(left_out) = refusals.line(uid) {
                warn!(uid, left_out, "admin socket: refused a user it is not for");
            }
            farewells.bid(stream, "the agent's admin socket is for root and the agent's own user");
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            farewells.bid(stream, "too many connections; close others first");
            continue;
        };
        let caller = Caller { pid: peer.pid().unwrap_or_default() };
        if to.send(Ok(Connection { stream, caller, _slot: slot })).await.is_err() {
            return;
        }
    }
}

/// Whether the user `uid` may ask an agent that runs as `own`.
const fn may_ask(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

/// A connection that was let in, with its place among them.
struct Connection {
    stream: UnixStream,
    caller: Caller,
    _slot: OwnedSemaphorePermit,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct Caller {
    /// Its process as this agent sees it; 0 if that is in a pid namespace that the agent cannot see into.
    pid: i32,
}

impl Caller {
    /// Whether the pids it names are, as far as this agent can know, those of other processes than here.
    const fn is_foreign(self) -> bool {
        self.pid <= 0
    }
}

impl Service {
    /// Attests the process as if it had connected, so that what is told is what would happen. And names it as stops do.
    async fn process(&self, pid: u32, caller: Caller) -> (Process, Option<Instance>) {
        if pid == 0 {
            return (Process::None, None);
        }
        // Here, another process may well have that number.
        if caller.is_foreign() {
            return (Process::Unknown(PeerError::ForeignPidNamespace), None);
        }
        match Peer::of_pid(pid) {
            Ok(peer) => {
                let instance = Instance::new(&self.boot_id, peer.pid(), peer.start_time()).ok();
                (Process::Attested(self.attestation.ask_each(&peer).await), instance)
            }
            Err(error) => (Process::Unknown(error), None),
        }
    }

    fn explained(
        &self,
        process: &Process,
        instance: Option<Instance>,
        wanted: Option<&SpiffeId>,
    ) -> ExplainResponse {
        let AgentVitals { health, cache, link, host, .. } = &*self.vitals;
        let (bundles, entries, report) = (cache.bundles(), cache.known(), health.borrow().clone());
        let svid_of = |id: &_| cache.svid_of(id);
        let is_confirmed = cache.is_confirmed();
        let (not_ready, mint_trouble) = cache.troubles();
        let stops = cache.stops();
        let scene = Scene {
            trust_domain: cache.trust_domain(),
            now: host.now(),
            node: link.id().zip(link.not_after()),
            fault: link.fault(),
            stops: &stops,
            instance,
            server: link.address().to_string(),
            troubles: &report.troubles,
            attestors: self.attestation.methods(),
            // What is withheld is as good as never learned.
            confirmed: cache.confirmed_at().filter(|_| not_ready.is_none()).map(|at| (at, is_confirmed)),
            mint_trouble,
            bundles: &bundles,
            entries: &entries,
            svid_of: &svid_of,
        };
        let agent_id = scene.node.as_ref().map(|(id, _)| id.to_string()).unwrap_or_default();
        ExplainResponse {
            explanation: Some(explanation::to_wire(explain(process, wanted, &scene))),
            agent_id,
            selectors: selector::to_wire(&process.selectors()),
            attested: matches!(process, Process::Attested(_)),
        }
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let caller = request.extensions().get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Status::internal("the connection does not say who asks"))?;
        let ExplainRequest { pid, spiffe_id } = request.into_inner();
        let wanted = match spiffe_id.as_str() {
            "" => None,
            text => Some(
                SpiffeId::parse(text)
                    .map_err(|error| Status::invalid_argument(format!("spiffe_id: {error}")))?,
            ),
        };
        let (process, instance) = self.process(pid, caller).await;
        Ok(Response::new(self.explained(&process, instance, wanted.as_ref())))
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{Caller, may_ask};

    #[test]
    fn only_root_and_the_own_user_may_ask() {
        assert!(may_ask(0, 500) && may_ask(500, 500));
        assert!(!may_ask(501, 500) && !may_ask(500, 0));
    }

    #[test]
    fn whoever_the_kernel_shows_without_a_pid_names_pids_of_another_namespace() {
        assert!(Caller { pid: 0 }.is_foreign() && !Caller { pid: 1 }.is_foreign());
    }
}
