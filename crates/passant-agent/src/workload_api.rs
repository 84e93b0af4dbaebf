//! How do workloads get their SVIDs from the agent?
//!
//! The SPIFFE Workload API on a unix socket. The path of a request: accepted, its process held by a pidfd; `:authority`
//! mended; security header checked; process attested; the entries that its selectors match looked up; answered at once,
//! and again at each change.
//!
//! | question | file |
//! |---|---|
//! | where do workloads connect, and who gets in? | `listen`, `share` |
//! | how do clients get through that send the socket's path as `:authority`? | `filter` |
//! | does a request say that it is meant for this API? | `header` |
//! | who is on this connection? | `caller` |
//! | how much may one user have under way, and how fast may it ask? | `under_way`, `pace` |
//! | what does an open stream hear, and when does it end? | `follow` |
//! | what does a caller get that reads late? | `latest` |
//! | what do the messages say? | `x509`, `jwt` |
//! | how does an Envoy get the same, by its own protocol? | `sds` |

mod caller;
pub mod filter;
mod follow;
mod header;
mod jwt;
mod latest;
pub(crate) mod limits;
mod listen;
mod pace;
pub mod sds;
mod share;
mod under_way;
mod x509;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use passant_attest::workload::WorkloadAttestor;
use passant_core::Host;
use passant_daemon::calls::Count;
use passant_daemon::log_rate::LogRate;
use passant_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use passant_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use self::caller::Caller;
use self::follow::Call;
use self::header::SecurityHeader;
use self::latest::Messages;
use self::listen::Listener;
pub use self::listen::{Arrival, ListenError};
use self::pace::Pace;
use self::under_way::UnderWay;
use crate::attest::Attestation;
use crate::cache::Cache;
use crate::config::Sds;
use crate::metrics::{Calls, Metrics};

/// The name of the service.
pub const SERVICE: &str = "SpiffeWorkloadAPI";

/// What the endpoint is told.
pub struct Settings {
    /// Where it listens, unless connections come otherwise.
    pub socket: PathBuf,
    /// The attestors that are asked about each workload.
    pub attestors: Vec<Arc<dyn WorkloadAttestor>>,
    /// How long what an attestor found is kept while it cannot be asked.
    pub evidence_max_age: Duration,
    /// Claims, beside `sub`, `aud` and `exp`, that ValidateJWTSVID tells of tokens of other trust domains.
    pub allowed_foreign_claims: BTreeSet<String>,
    /// Tells this boot of the machine from others: letters, digits and dashes.
    pub boot_id: String,
    /// What Envoys are served, if they are.
    pub sds: Option<Sds>,
    /// Where calls and attestations are counted.
    pub metrics: Arc<Metrics>,
}

/// The Workload API, listening.
pub struct Endpoint {
    door: Door,
    /// Other services on the socket. They are not asked for the security header.
    beside: Routes,
    sds: Option<Sds>,
    shared: Arc<Shared>,
}

/// How connections come in.
enum Door {
    Socket(Listener),
    Arrivals(mpsc::Receiver<Arrival>),
}

/// What all calls share.
struct Shared {
    cache: Cache,
    attestation: Arc<Attestation>,
    allowed_foreign_claims: BTreeSet<String>,
    pace: Pace,
    boot_id: String,
    /// What the log is told of callers without identity, by user.
    no_identity: LogRate<u32>,
    /// The same of tokens that are not valid.
    invalid_jwt: LogRate<u32>,
    /// The same of secrets that were asked for by who has no right to them.
    refused_secrets: LogRate<u32>,
    /// The same of secrets that an Envoy has rejected.
    rejected_secrets: LogRate<u32>,
    host: Host,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

struct Service {
    shared: Arc<Shared>,
}

impl Endpoint {
    /// Listens; to be called inside a tokio runtime. Clients can connect from now on and are answered once it is served.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(settings: Settings, cache: Cache, host: Host) -> Result<Self, ListenError> {
        let door = Door::Socket(Listener::bind(&settings.socket)?);
        Ok(Self::behind(door, settings, cache, host))
    }

    /// Serves the connections that `arrivals` brings, and listens nowhere.
    pub fn over(arrivals: mpsc::Receiver<Arrival>, settings: Settings, cache: Cache, host: Host) -> Self {
        Self::behind(Door::Arrivals(arrivals), settings, cache, host)
    }

    fn behind(door: Door, settings: Settings, cache: Cache, host: Host) -> Self {
        let shared = Shared {
            cache,
            attestation: Arc::new(Attestation::new(
                settings.attestors,
                settings.evidence_max_age,
                Arc::clone(&settings.metrics),
            )),
            allowed_foreign_claims: settings.allowed_foreign_claims,
            pace: Pace::new(),
            boot_id: settings.boot_id,
            no_identity: LogRate::default(),
            invalid_jwt: LogRate::default(),
            refused_secrets: LogRate::default(),
            rejected_secrets: LogRate::default(),
            host,
            metrics: settings.metrics,
            stop: CancellationToken::new(),
        };
        Self { door, beside: Routes::default(), sds: settings.sds, shared: Arc::new(shared) }
    }

    /// The attestors, as workloads are attested by them.
    pub(crate) fn attestation(&self) -> Arc<Attestation> {
        Arc::clone(&self.shared.attestation)
    }

    /// Serves `others` on the same socket too.
    #[must_use]
    pub fn beside(mut self, others: Routes) -> Self {
        self.beside = others;
        self
    }

    /// Serves until `stop`; then ends the open streams with Unavailable and waits until the clients have taken note.
    ///
    /// # Errors
    /// When the HTTP/2 server fails.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
        let Self { door, beside, sds, shared } = self;
        let (accepted, incoming) = mpsc::channel(limits::ACCEPTED);
        let streams_stop = shared.stop.clone();
        let count = Count(Calls(Arc::clone(&shared.metrics)));
        let beside = match sds {
            Some(sds) => beside.add_service(sds::server(&shared, sds)),
            None => beside,
        };
        let service =
            SpiffeWorkloadApiServer::new(Service { shared }).max_decoding_message_size(limits::REQUEST_BYTES);
        // Ends with `stop`, so that a successor can listen while old streams still end.
        let accepting = match door {
            Door::Socket(listener) => tokio::spawn(listener.accept_into(accepted, stop.clone())),
            Door::Arrivals(arrivals) => {
                tokio::spawn(listen::accept_arrivals(arrivals, accepted, stop.clone()))
            }
        };
        let served = Server::builder()
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
            .initial_stream_window_size(limits::WINDOW)
            .initial_connection_window_size(2 * limits::WINDOW)
            .http2_max_header_list_size(limits::HEADER_LIST_BYTES)
            .http2_max_pending_accept_reset_streams(Some(limits::RESET_BEFORE_ACCEPT))
            .http2_max_local_error_reset_streams(Some(limits::RESET_FOR_ERRORS))
            .layer(count)
            .layer(SecurityHeader)
            .layer(UnderWay::new())
            .add_routes(beside.add_service(service).prepare())
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
                stop.cancelled().await;
                streams_stop.cancel();
            })
            .await;
        accepting.abort();
        drop(accepting.await);
        served
    }
}

impl Service {
    /// The call of `request`, and its message.
    fn admit<T>(&self, request: Request<T>) -> Result<(Call, T), Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("connection does not say who opened it"))?;
        Ok((Call { shared: Arc::clone(&self.shared), caller }, request.into_inner()))
    }
}

fn no_wit_svids() -> Status {
    Status::unimplemented("WIT-SVIDs are not offered")
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Messages<Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = Messages<Result<X509BundlesResponse, Status>>;
    type FetchJWTBundlesStream = Messages<Result<JwtBundlesResponse, Status>>;
    type FetchWITSVIDStream = ReceiverStream<Result<WitsvidResponse, Status>>;
    type FetchWITBundlesStream = ReceiverStream<Result<WitBundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (call, _) = self.admit(request)?;
        Ok(Response::new(follow::open(call, x509::svids()).await?))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (call, _) = self.admit(request)?;
        Ok(Response::new(follow::open(call, x509::bundles()).await?))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let (call, message) = self.admit(request)?;
        let message = jwt::SvidRequest::parse(message)?;
        Ok(Response::new(jwt::svids(call, message).await?))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let (call, _) = self.admit(request)?;
        Ok(Response::new(follow::open(call, jwt::bundles()).await?))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let (call, message) = self.admit(request)?;
        Ok(Response::new(jwt::validate(call, message).await?))
    }

    async fn fetch_witsvid(
        &self,
        _request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(no_wit_svids())
    }

    async fn fetch_wit_bundles(
        &self,
        _request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(no_wit_svids())
    }
}

#[cfg(test)]
mod tests;
