//! How does the agent reach its server, and how does it know that it is the server?
//!
//! One `Link` holds what decides that: the address, the bundle to verify the server with, and the node SVID to be known
//! by. Its channel reconnects by itself; a new SVID gets a new channel, since the certificate is bound to the connection.

mod servers;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper_util::rt::TokioIo;
use passant_core::bundle::Bundle;
use passant_core::keys::SigningKey;
use passant_core::x509_svid::{self, X509Svid, X509SvidError};
use passant_core::{AgentFault, Host, Reason, Refusal, SpiffeId, TrustDomain, UnixTime, X509Authority};
use passant_daemon::label::Outcome;
use passant_proto::goodbye;
use passant_proto::status::from_status;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use self::servers::Servers;
use crate::config::{ServerAddress, ServerAddresses};
use crate::limits;
use crate::metrics::Metrics;

/// The agent's own identity: the node SVID and its key.
pub(crate) struct NodeIdentity {
    pub(crate) svid: X509Svid,
    pub(crate) key: Arc<dyn SigningKey>,
    /// Whether the server told this node to attest again instead of renewing.
    pub(crate) reattestable: bool,
}

/// The way to the server. Cheap to clone; all clones share.
#[derive(Clone)]
pub(crate) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Arc<Servers>,
    route: Route,
    provider: Arc<CryptoProvider>,
    verifier: Arc<ServerVerifier>,
    current: ArcSwapOption<Connection>,
    generations: AtomicU64,
    /// Counts the connections that were put in the place of others, and those that were given up.
    epoch: watch::Sender<u64>,
    /// Counts the streams to the server that came about.
    established: Arc<watch::Sender<u64>>,
    /// Whether the server takes evidence with what it is asked to mint.
    takes_evidence: AtomicBool,
    /// How many seconds the server's clock is ahead of this host's, where that is worth minding.
    clock_ahead: AtomicI64,
    /// The last fault that the server found in the identity of the current generation.
    fault: watch::Sender<Option<AgentFault>>,
    metrics: Arc<Metrics>,
}

/// A channel made with one node SVID.
struct Connection {
    generation: u64,
    identity: Arc<NodeIdentity>,
    channel: Channel,
}

/// A call to the server that failed.
#[derive(Debug)]
pub(crate) struct CallError {
    /// What was attempted, as in "failed to ...".
    pub(crate) what: &'static str,
    /// What the server, or the way to it, says.
    pub(crate) refusal: Refusal,
}

/// Why a connection could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The node key is of a kind that TLS cannot use.
    #[error("failed to use the node's key for TLS")]
    Key(#[source] rustls::Error),
    /// rustls refuses the configuration.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    /// The address is none.
    #[error("failed to use \"{0}\" as the address of the server")]
    Address(String),
}

impl Link {
    /// A link without identity and without bundle. With `insecure_bootstrap`, the server's chain is not verified as long
    /// as there is no bundle; its SPIFFE ID always is.
    pub(crate) fn new(
        addresses: ServerAddresses,
        trust_domain: &TrustDomain,
        insecure_bootstrap: bool,
        route: Route,
        host: Host,
        metrics: Arc<Metrics>,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let servers = Arc::new(Servers::new(addresses, &host));
        let verifier = Arc::new(ServerVerifier {
            server_id: trust_domain.server_id(),
            bundle: ArcSwapOption::empty(),
            insecure_bootstrap,
            host,
            provider: Arc::clone(&provider),
        });
        Self {
            inner: Arc::new(Inner {
                servers,
                route,
                provider,
                verifier,
                current: ArcSwapOption::empty(),
                generations: AtomicU64::new(0),
                epoch: watch::Sender::new(0),
                established: Arc::new(watch::Sender::new(0)),
                takes_evidence: AtomicBool::new(false),
                clock_ahead: AtomicI64::new(0),
                fault: watch::Sender::new(None),
                metrics,
            }),
        }
    }

    /// Verifies the server by `bundle` from the next handshake on.
    /// If an authority has gone, the connection is made anew, so that the server is verified again too. One more does not
    /// make a server doubtful that those before vouched for, and would make a whole fleet connect at once.
    pub(crate) fn trust(&self, bundle: Arc<Bundle>) {
        let before = self.inner.verifier.bundle.swap(Some(Arc::clone(&bundle)));
        let stays = |old: &X509Authority| bundle.x509_authorities.iter().any(|new| new.der == old.der);
        let has_lost = before.is_none_or(|before| !before.x509_authorities.iter().all(stays));
        if let (true, Some(connection)) = (has_lost, self.inner.current.load_full()) {
            self.replace(&connection);
        }
    }

    /// The bundle that the server is verified by.
    pub(crate) fn bundle(&self) -> Option<Arc<Bundle>> {
        self.inner.verifier.bundle.load_full()
    }

    /// Is known to the server by `identity` from now on, over a new connection.
    pub(crate) fn identify(&self, identity: Arc<NodeIdentity>) -> Result<(), LinkError> {
        let channel = self.inner.channel(Some(&identity))?;
        let generation = self.inner.generations.fetch_add(1, Ordering::SeqCst) + 1;
        self.inner.fault.send_replace(None);
        self.inner.current.store(Some(Arc::new(Connection { generation, identity, channel })));
        self.inner.turn_epoch();
        Ok(())
    }

    /// Forgets the identity: every call that needs it fails at once.
    pub(crate) fn forget_identity(&self) {
        self.inner.current.store(None);
        self.inner.turn_epoch();
    }

    /// Changes whenever calls go over another connection than before, or over none.
    pub(crate) fn epochs(&self) -> watch::Receiver<u64> {
        self.inner.epoch.subscribe()
    }

    /// Changes whenever a stream to the server has come about: another server may be at its end.
    pub(crate) fn established(&self) -> watch::Receiver<u64> {
        self.inner.established.subscribe()
    }

    /// Whether the server takes evidence with what it is asked to mint.
    pub(crate) fn takes_evidence(&self) -> bool {
        self.inner.takes_evidence.load(Ordering::SeqCst)
    }

    pub(crate) fn set_takes_evidence(&self, takes: bool) {
        self.inner.takes_evidence.store(takes, Ordering::SeqCst);
    }

    /// `at` by this host's clock, as the server's would show it if the two are far apart.
    pub(crate) fn as_the_server_counts(&self, at: UnixTime) -> UnixTime {
        UnixTime::from_secs(at.secs().saturating_add(self.inner.clock_ahead.load(Ordering::SeqCst)))
    }

    /// The server's clock is `seconds` ahead of this host's; how many it was thought to be.
    pub(crate) fn set_clock_ahead(&self, seconds: i64) -> i64 {
        self.inner.clock_ahead.swap(seconds, Ordering::SeqCst)
    }

    /// The connection now used is to be made anew: nothing is heard on it any more.
    pub(crate) fn give_up_connection(&self) {
        if let Some(connection) = self.inner.current.load_full() {
            self.replace(&connection);
        }
    }

    /// The server has found `fault` in the identity that was used as `generation`.
    pub(crate) fn found(&self, fault: AgentFault, generation: u64) {
        let current = self.inner.current.load();
        // One found under an older SVID is settled already.
        if current.as_ref().is_some_and(|now| now.generation == generation) {
            self.inner.fault.send_if_modified(|held| held.replace(fault) != Some(fault));
        }
    }

    /// Where what is done over this link is counted.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// The agent's SPIFFE ID, if it has an identity.
    pub(crate) fn id(&self) -> Option<SpiffeId> {
        self.inner.current.load().as_ref().map(|connection| connection.identity.svid.id().clone())
    }

    /// Where the server is looked for.
    pub(crate) fn address(&self) -> &ServerAddress {
        self.inner.servers.current()
    }

    /// The server that is asked now is of no use: the next one is asked, if there is another.
    pub(crate) fn leave_server(&self) {
        self.inner.servers.leave_current();
        self.give_up_connection();
    }

    /// Whether there is another server to go to.
    pub(crate) fn has_other_servers(&self) -> bool {
        self.inner.servers.are_several()
    }

    /// When the identity now used ends.
    pub(crate) fn not_after(&self) -> Option<UnixTime> {
        self.inner.current.load().as_ref().map(|connection| connection.identity.svid.not_after())
    }

    /// Counts the identities that were used so far: it changes with each new one.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.generations.load(Ordering::SeqCst)
    }

    /// The server accepts the identity that was used as `generation` after all: what it found before is not to be acted on
    /// again. To be called before anything else is heard of the server, which may be that it has found a fault since.
    pub(crate) fn accepted(&self, generation: u64) {
        if self.generation() == generation {
            self.inner.fault.send_if_modified(|held| held.take().is_some());
        }
    }

    /// The last fault that the server found in the identity now used.
    pub(crate) fn fault(&self) -> Option<AgentFault> {
        *self.inner.fault.borrow()
    }

    /// Whether there is an identity to call with.
    pub(crate) fn is_identified(&self) -> bool {
        self.inner.current.load().is_some()
    }

    /// A new channel on which the agent is a stranger, as attestation needs it.
    pub(crate) fn stranger(&self) -> Result<Channel, LinkError> {
        self.inner.channel(None)
    }

    /// Follows the faults that the server finds in the identity now used.
    pub(crate) fn faults(&self) -> watch::Receiver<Option<AgentFault>> {
        self.inner.fault.subscribe()
    }

    /// Calls the server as this node, within `limit`.
    ///
    /// A connection that dies under the call (the server closes each after some minutes) is replaced and the call made
    /// once more; every call here may safely be made twice. A call that gets no answer in time takes its connection down.
    pub(crate) async fn call<T, F>(
        &self,
        what: &'static str,
        limit: Duration,
        make: impl Fn(Channel) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let end = tokio::time::Instant::now() + limit;
        let mut second = false;
        loop {
            let Some(connection) = self.inner.current.load_full() else {
                return Err(CallError::unavailable(what, "the agent has no valid node SVID"));
            };
            let answer = tokio::time::timeout_at(end, make(connection.channel.clone())).await;
            let refusal = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) if !second && connection_died(&status) => {
                    second = true;
                    continue;
                }
                Ok(Err(status)) => told(&status),
                Err(_) => {
                    self.replace(&connection);
                    Refusal::unavailable("the server did not answer in time")
                }
            };
            if let Some(fault) = refusal.agent_fault {
                self.found(fault, connection.generation);
            }
            return Err(CallError { what, refusal });
        }
    }

    /// A new channel with the same identity instead of `dead`, unless somebody was faster.
    fn replace(&self, dead: &Arc<Connection>) {
        let Ok(channel) = self.inner.channel(Some(&dead.identity)) else { return };
        let fresh = Arc::new(Connection {
            generation: dead.generation,
            identity: Arc::clone(&dead.identity),
            channel,
        });
        self.inner.current.compare_and_swap(dead, Some(fresh));
        self.inner.turn_epoch();
    }
}

impl Inner {
    fn turn_epoch(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    fn channel(&self, identity: Option<&Arc<NodeIdentity>>) -> Result<Channel, LinkError> {
        let authority = self.servers.current().to_string();
        // The scheme is http because TLS is ours, not tonic's; the server is told https, as it should be.
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))
            .and_then(|endpoint| endpoint.user_agent(concat!("passant-agent/", env!("CARGO_PKG_VERSION"))))
            .map_err(|_| LinkError::Address(authority.clone()))?;
        let origin = format!("https://{authority}").parse().map_err(|_| LinkError::Address(authority))?;
        match &self.route {
            Route::Tls(dial) => {
                let (tls, servers) = (Arc::new(self.tls(identity)?), Arc::clone(&self.servers));
                let (dial, metrics) = (Arc::clone(dial), Arc::clone(&self.metrics));
                let established = Arc::clone(&self.established);
                let connector = tower::service_fn(move |_: http::Uri| {
                    let tls = TlsConnector::from(Arc::clone(&tls));
                    let (servers, dial) = (Arc::clone(&servers), Arc::clone(&dial));
                    let (metrics, established) = (Arc::clone(&metrics), Arc::clone(&established));
                    async move {
                        let stream = connect_to_any(&servers, &*dial, &tls, &metrics).await?;
                        established.send_modify(|count| *count += 1);
                        Ok::<_, io::Error>(TokioIo::new(stream))
                    }
                });
                Ok(endpoint.origin(origin).connect_with_connector_lazy(connector))
            }
            Route::Plain(network) => {
                let (network, verifier) = (Arc::clone(network), Arc::clone(&self.verifier));
                let shown = identity.map(|identity| identity.svid.chain().to_vec());
                let established = Arc::clone(&self.established);
                let connector = tower::service_fn(move |_: http::Uri| {
                    let (opened, verifier) = (network.open(shown.clone()), Arc::clone(&verifier));
                    let established = Arc::clone(&established);
                    async move {
                        let stream = connect_plainly(opened, &verifier).await?;
                        established.send_modify(|count| *count += 1);
                        Ok::<_, io::Error>(TokioIo::new(stream))
                    }
                });
                Ok(endpoint.origin(origin).connect_with_connector_lazy(connector))
            }
        }
    }

    fn tls(&self, identity: Option<&Arc<NodeIdentity>>) -> Result<rustls::ClientConfig, LinkError> {
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(LinkError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as Arc<dyn ServerCertVerifier>);
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(NodeCertificate::of(identity)?)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Each connection is verified anew, on both sides.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A byte stream to the server, before TLS.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// How the agent gets to its server.
pub(crate) enum Route {
    /// By TLS over a stream that `Dial` opens.
    Tls(Arc<dyn Dial>),
    /// Over a network that is itself trusted to say who is at each end: that of a simulation.
    Plain(Arc<dyn Network>),
}

/// What a stream of a [`Network`] opens with: the stream, and the chain that the server shows, leaf first.
pub struct Opened {
    /// The stream.
    pub stream: Box<dyn Wire>,
    /// The server's chain. It is verified as the TLS layer would.
    pub server: Vec<CertificateDer<'static>>,
}

/// A network that carries who is at each end beside the bytes, in place of TLS: for a simulation, where nobody lies about
/// holding a key.
pub trait Network: Send + Sync {
    /// Opens one stream to the server, on which the agent shows `chain`, leaf first; none as a stranger. The caller sets
    /// the time limit.
    fn open(
        &self,
        chain: Option<Vec<CertificateDer<'static>>>,
    ) -> Pin<Box<dyn Future<Output = io::Result<Opened>> + Send>>;
}

/// How a byte stream to the server is opened: a seam, so that a simulation can bring its own network.
pub trait Dial: Send + Sync {
    /// Opens one stream to `address`. The caller sets the time limit.
    #[expect(
        clippy::type_complexity,
        reason = "a boxed future of a boxed stream, spelled out for whoever implements it"
    )]
    fn dial(
        &self,
        address: &ServerAddress,
    ) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;
}

/// Opens TCP connections. The name is resolved anew each time. Of several addresses, the first that answers counts: each
/// is given a head start before the next one is tried too, so that one that is dead costs little.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Dial for Tcp {
    fn dial(
        &self,
        address: &ServerAddress,
    ) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>> {
        let address = address.clone();
        Box::pin(async move {
            let failed = |error: io::Error| {
                io::Error::new(error.kind(), format!("failed to connect to {address}: {error}"))
            };
            let found = tokio::net::lookup_host((address.host(), address.port())).await.map_err(failed)?;
            let found = found.take(limits::ADDRESSES).map(TcpStream::connect);
            let stream = first_of(found.collect(), limits::HEAD_START).await.map_err(failed)?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    }
}

/// The first success of `attempts`. Each begins when the one before has failed or has had its `head_start`; those that
/// come too late are dropped.
async fn first_of<T: Send + 'static, F>(attempts: Vec<F>, head_start: Duration) -> io::Result<T>
where
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut waiting = attempts.into_iter();
    let mut tried = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        if let Some(attempt) = next {
            tried.spawn(attempt);
        }
        let patience = async {
            match is_last {
                true => std::future::pending().await,
                false => tokio::time::sleep(head_start).await,
            }
        };
        tokio::select! {
            biased;
            ended = tried.join_next() => match ended {
                Some(Ok(Ok(connected))) => return Ok(connected),
                Some(Ok(Err(error))) => last = error,
                Some(Err(cut_off)) => last = io::Error::other(cut_off),
                None => return Err(last),
            },
            () = patience => {}
        }
    }
}

/// A connection to the server that is used, or else to the next one that answers. Whoever does not wait for the end finds
/// the next one in use already.
async fn connect_to_any(
    servers: &Servers,
    dial: &dyn Dial,
    tls: &TlsConnector,
    metrics: &Metrics,
) -> io::Result<TlsStream<Box<dyn Wire>>> {
    let mut last = None;
    for (place, address) in servers.in_turn() {
        let connected = connect(dial.dial(address), address.server_name(), tls).await;
        let outcome = if connected.is_ok() { Outcome::Done } else { Outcome::Failed };
        metrics.connections.of(outcome).inc();
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                servers.leave(place);
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no server")))
}

async fn connect(
    dialled: impl Future<Output = io::Result<Box<dyn Wire>>>,
    name: ServerName<'static>,
    tls: &TlsConnector,
) -> io::Result<TlsStream<Box<dyn Wire>>> {
    let stream = tokio::time::timeout(limits::CONNECT, dialled)
        .await
        .map_err(|_| timed_out("connect to the server"))??;
    tokio::time::timeout(limits::CONNECT, tls.connect(name, stream))
        .await
        .map_err(|_| timed_out("finish the TLS handshake with the server"))?
}

async fn connect_plainly(
    opened: impl Future<Output = io::Result<Opened>>,
    verifier: &ServerVerifier,
) -> io::Result<Box<dyn Wire>> {
    let opened = tokio::time::timeout(limits::CONNECT, opened)
        .await
        .map_err(|_| timed_out("connect to the server"))??;
    verifier.check(opened.server).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
    Ok(opened.stream)
}

fn timed_out(what: &str) -> io::Error {
    let secs = limits::CONNECT.as_secs();
    io::Error::new(io::ErrorKind::TimedOut, format!("failed to {what} within {secs} s"))
}

/// What a status says, with the causes that tonic keeps apart from its message: "transport error" alone helps nobody.
pub(crate) fn told(status: &Status) -> Refusal {
    let mut refusal = from_status(status);
    if refusal.reason == Reason::Internal && status.source().is_some() {
        // Not said by the server: the way to it failed.
        refusal.reason = Reason::Unavailable;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !refusal.public.contains(&text) {
            refusal.public = format!("{}: {text}", refusal.public);
        }
        cause = error.source();
    }
    refusal
}

/// What a workload may read of `refusal`: what is wrong, and neither where the server is nor who this agent is.
pub(crate) fn told_to_workloads(refusal: &Refusal) -> String {
    match refusal.reason {
        // The way to the server failed, and the text tells of addresses; what the server itself says has no cause here.
        Reason::Unavailable | Reason::Internal if refusal.source().is_some() => {
            "the server cannot be reached".to_owned()
        }
        Reason::Denied | Reason::Unauthenticated => "the server refuses this agent".to_owned(),
        Reason::Unavailable
        | Reason::Internal
        | Reason::Exhausted
        | Reason::NotFound
        | Reason::Invalid
        | Reason::AlreadyExists
        | Reason::Precondition
        | Reason::Unimplemented => refusal.public.clone(),
    }
}

/// Whether no answer came because the connection ended, as opposed to a refusal by the server.
fn connection_died(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            // A connect or a handshake that failed would only fail again.
            return matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
            );
        }
        cause = error.source();
    }
    goodbye::overtook(status)
        || status.message().contains("GOAWAY")
        || status.message().contains("connection closed")
}

impl CallError {
    pub(crate) fn unavailable(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, refusal: Refusal::unavailable(why) }
    }

    /// The server does not offer this call.
    pub(crate) fn is_unimplemented(&self) -> bool {
        self.refusal.reason == Reason::Unimplemented
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.what, self.refusal)
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.refusal.source()
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("id", self.svid.id())
            .field("not_after", &self.svid.not_after())
            .field("reattestable", &self.reattestable)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("address", self.address()).finish_non_exhaustive()
    }
}

/// Accepts the server of our trust domain and nobody else. The host name means nothing.
struct ServerVerifier {
    server_id: SpiffeId,
    bundle: ArcSwapOption<Bundle>,
    insecure_bootstrap: bool,
    host: Host,
    provider: Arc<CryptoProvider>,
}

/// Why the peer is not taken for our server.
#[derive(Debug, thiserror::Error)]
enum NotOurServer {
    #[error("failed to verify the server against the bundle of {trust_domain}: {error}")]
    Chain { trust_domain: TrustDomain, error: X509SvidError },
    #[error("failed to read the server's certificate as an X509-SVID: {0}")]
    Svid(X509SvidError),
    #[error("failed to verify the server: it is {found}, not {wanted}")]
    Id { found: SpiffeId, wanted: SpiffeId },
    #[error("failed to verify the server: there is no bundle and insecure_bootstrap is off")]
    NoBundle,
}

impl ServerVerifier {
    fn check(&self, chain: Vec<CertificateDer<'static>>) -> Result<(), NotOurServer> {
        let svid = match self.bundle.load_full() {
            Some(bundle) => x509_svid::verify(chain, &bundle, self.host.now())
                .map_err(|error| NotOurServer::Chain { trust_domain: bundle.trust_domain.clone(), error })?,
            None if self.insecure_bootstrap => X509Svid::parse(chain).map_err(NotOurServer::Svid)?,
            None => return Err(NotOurServer::NoBundle),
        };
        if *svid.id() != self.server_id {
            return Err(NotOurServer::Id { found: svid.id().clone(), wanted: self.server_id.clone() });
        }
        Ok(())
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain =
            std::iter::once(end_entity).chain(intermediates).map(|each| each.clone().into_owned()).collect();
        match self.check(chain) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(why) => Err(rustls::Error::Other(OtherError(Arc::new(why)))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("server_id", &self.server_id).finish_non_exhaustive()
    }
}

/// Shows the node SVID to whoever asks for a certificate. The server names no issuers worth filtering by.
#[derive(Debug)]
struct NodeCertificate(Arc<CertifiedKey>);

impl NodeCertificate {
    fn of(identity: &NodeIdentity) -> Result<Self, LinkError> {
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.pkcs8().expose().as_slice()));
        let key = rustls::crypto::ring::sign::any_supported_type(&pkcs8).map_err(LinkError::Key)?;
        Ok(Self(Arc::new(CertifiedKey::new(identity.svid.chain().to_vec(), key))))
    }
}

impl ResolvesClientCert for NodeCertificate {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use passant_proto::sync::BatchMintX509svidRequest;
    use passant_proto::sync::sync_client::SyncClient;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::ca::Ca;
    use crate::testing::{NOW, following_host, id, trust_domain};

    fn link(insecure_bootstrap: bool) -> Link {
        let address = ServerAddress::parse("server.example.org:8081").unwrap();
        let route = Route::Tls(Arc::new(Tcp));
        Link::new(
            address.into(),
            &trust_domain(),
            insecure_bootstrap,
            route,
            following_host(),
            Arc::default(),
        )
    }

    fn identity(ca: &Ca) -> Arc<NodeIdentity> {
        let (svid, key) = ca.svid_and_key(&id("/spire/agent/join_token/one"), NOW - 10, NOW + 100);
        Arc::new(NodeIdentity { svid, key, reattestable: false })
    }

    fn shown(ca: &Ca, path: &str, end: i64) -> Vec<CertificateDer<'static>> {
        ca.svid_and_key(&id(path), NOW - 10, NOW + end).0.chain().to_vec()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_found_under_an_older_svid_is_settled_already() {
        let (ca, link) = (Ca::new("one"), link(false));
        link.identify(identity(&ca)).unwrap();
        let older = link.inner.current.load_full().unwrap();
        link.identify(identity(&ca)).unwrap();
        let newer = link.inner.current.load_full().unwrap();
        link.found(AgentFault::NotActive, older.generation);
        assert_eq!(*link.faults().borrow(), None);
        link.found(AgentFault::NotActive, newer.generation);
        assert_eq!(*link.faults().borrow(), Some(AgentFault::NotActive));
        link.identify(identity(&ca)).unwrap();
        assert_eq!(*link.faults().borrow(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_address_costs_a_head_start_and_a_refusing_one_nothing() {
        type Attempt = Pin<Box<dyn Future<Output = io::Result<u8>> + Send>>;
        let dead = || -> Attempt { Box::pin(std::future::pending()) };
        let refusing = || -> Attempt { Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }) };
        let good = |n| -> Attempt { Box::pin(async move { Ok(n) }) };
        let head_start = Duration::from_millis(300);
        let began = tokio::time::Instant::now();
        assert_eq!(first_of(vec![refusing(), good(2)], head_start).await.unwrap(), 2);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(first_of(vec![dead(), refusing(), dead(), good(4)], head_start).await.unwrap(), 4);
        assert_eq!(began.elapsed(), head_start * 2);
        let error = first_of(vec![refusing(), refusing()], head_start).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            first_of::<u8, Attempt>(vec![], head_start).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    /// A server that takes a request, and instead of looking at it says goodbye.
    async fn says_goodbye(mut io: tokio::io::DuplexStream) -> io::Result<()> {
        const HEADERS: u8 = 1;
        io.read_exact(&mut [0; 24]).await?;
        io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
        loop {
            let mut head = [0; 9];
            io.read_exact(&mut head).await?;
            let mut rest = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            io.read_exact(&mut rest).await?;
            if head[3] == HEADERS {
                break;
            }
        }
        // No stream was worked on, and there is no error.
        io.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await?;
        tokio::io::copy(&mut io, &mut tokio::io::sink()).await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_a_goodbye_overtook_died_with_its_connection() {
        let connect = |_| async {
            let (near, far) = tokio::io::duplex(4096);
            tokio::spawn(says_goodbye(far));
            Ok::<_, io::Error>(TokioIo::new(near))
        };
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(connect));
        let status = SyncClient::new(channel)
            .batch_mint_x509svid(BatchMintX509svidRequest::default())
            .await
            .unwrap_err();
        assert!(connection_died(&status), "{status:?}");
        assert!(!connection_died(&Status::internal("refused by the server")));
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_identity_a_call_fails_at_once() {
        let called = link(false).call("try", limits::CALL, |_| async { Ok(()) }).await;
        assert_eq!(called.unwrap_err().refusal.reason, Reason::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_unexpired_server_id_under_the_bundle_is_the_server() {
        let (ca, stranger, link) = (Ca::new("one"), Ca::new("two"), link(false));
        let verifier = &link.inner.verifier;
        let server = trust_domain().server_id();
        assert!(matches!(verifier.check(shown(&ca, server.path(), 100)), Err(NotOurServer::NoBundle)));
        link.trust(Arc::new(ca.bundle()));
        verifier.check(shown(&ca, server.path(), 100)).unwrap();
        for (chain, fault) in [
            (shown(&ca, "/spire/server/x", 100), "Id"),
            (shown(&ca, "/spire/agent/join_token/one", 100), "Id"),
            (shown(&ca, server.path(), -1), "Chain"),
            (shown(&stranger, server.path(), 100), "Chain"),
            (Vec::new(), "Chain"),
        ] {
            let error = verifier.check(chain).unwrap_err();
            assert!(format!("{error:?}").starts_with(fault), "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn insecure_bootstrap_ends_with_the_first_bundle() {
        let (ca, stranger, link) = (Ca::new("one"), Ca::new("two"), link(true));
        let verifier = &link.inner.verifier;
        let server = trust_domain().server_id();
        verifier.check(shown(&stranger, server.path(), 100)).unwrap();
        assert!(matches!(verifier.check(shown(&stranger, "/other", 100)), Err(NotOurServer::Id { .. })));
        link.trust(Arc::new(ca.bundle()));
        assert!(matches!(
            verifier.check(shown(&stranger, server.path(), 100)),
            Err(NotOurServer::Chain { .. })
        ));
    }
}
