//! How do tests speak to the daemons? Plain generated clients over the unix sockets.

use std::path::Path;

use hyper_util::rt::TokioIo;
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::bundle::bundle_client::BundleClient;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::federation::federation_client::FederationClient;
use passant_proto::goodbye;
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::trustdomain::trust_domain_client::TrustDomainClient;
use passant_proto::types;
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A channel to a unix socket.
///
/// # Errors
/// When nothing answers there.
pub async fn channel(socket: &Path) -> anyhow::Result<Channel> {
    let socket = socket.to_owned();
    let connect = move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    };
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(connect)).await?)
}

/// Asks `request` of `client`, and once more on a new connection if the server's goodbye to this one overtook it. Servers end a connection
/// after some minutes; clients of other libraries ask again by themselves.
///
/// # Errors
/// What the server, or the second goodbye, says.
pub async fn past_goodbye<C: Clone, R: Clone, A, F>(
    client: &C,
    request: R,
    ask: impl Fn(C, R) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<A, Status>>,
{
    match ask(client.clone(), request.clone()).await {
        Err(status) if goodbye::overtook(&status) => ask(client.clone(), request).await,
        other => other,
    }
}

/// The operators' clients on one connection.
pub struct Operator(Channel);

impl Operator {
    /// Connects to a server's socket.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        Ok(Self(channel(socket).await?))
    }

    /// The Agent service.
    pub fn agents(&self) -> AgentClient<Channel> {
        AgentClient::new(self.0.clone())
    }

    /// The Bundle service.
    pub fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.0.clone())
    }

    /// The Entry service.
    pub fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.0.clone())
    }

    /// The TrustDomain service.
    pub fn trust_domains(&self) -> TrustDomainClient<Channel> {
        TrustDomainClient::new(self.0.clone())
    }

    /// Our own Federation service.
    pub fn federation(&self) -> FederationClient<Channel> {
        FederationClient::new(self.0.clone())
    }

    /// The SVID service.
    pub fn svids(&self) -> SvidClient<Channel> {
        SvidClient::new(self.0.clone())
    }
}

/// A client of the Workload API that sends no header by itself: wrap requests in [`with_header`].
///
/// # Errors
/// When nothing answers there.
pub async fn workload_api(socket: &Path) -> anyhow::Result<SpiffeWorkloadApiClient<Channel>> {
    Ok(SpiffeWorkloadApiClient::new(channel(socket).await?))
}

/// A request with the security header.
pub fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// The first X.509 answer of the Workload API.
///
/// # Errors
/// The status it answers with; Unavailable when nothing answers.
pub async fn fetch_x509(socket: &Path) -> Result<passant_proto::workload::X509svidResponse, Status> {
    let mut api = workload_api(socket).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut stream =
        api.fetch_x509svid(with_header(passant_proto::workload::X509svidRequest {})).await?.into_inner();
    stream.message().await?.ok_or_else(|| Status::internal("the stream ended without a message"))
}

/// A SPIFFE ID as the wire has it.
pub fn wire_id(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
}

/// A selector as the wire has it.
pub fn selector(kind: &str, value: &str) -> types::Selector {
    types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
}
