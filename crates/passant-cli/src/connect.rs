//! How is a daemon reached over its unix socket, and what does the user read when it is not?

pub(crate) mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use passant_core::TrustDomain;
use passant_proto::access::access_client::AccessClient;
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::audit::audit_client::AuditClient;
use passant_proto::bundle::bundle_client::BundleClient;
use passant_proto::debug::debug_client::DebugClient;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::explain::explain_client::ExplainClient;
use passant_proto::federation::federation_client::FederationClient;
use passant_proto::import::import_client::ImportClient;
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::logger::logger_client::LoggerClient;
use passant_proto::node::node_client::NodeClient;
use passant_proto::options::entry_client::EntryClient as OptionsClient;
use passant_proto::stop::stop_client::StopClient;
use passant_proto::store::store_client::StoreClient;
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::trustdomain::trust_domain_client::TrustDomainClient;
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::args::{AgentSocket, ServerSocket, WorkloadSocket};

/// What every call to the Workload API carries (SPIFFE Workload Endpoint 3).
#[derive(Clone)]
pub(crate) struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        Ok(request)
    }
}

pub(crate) type WorkloadApi = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// How long a daemon may take to answer: longer than an agent waits for its server, and short enough to be waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The largest answer taken, in bytes: a page of entries at its bounds, or thousands of SVIDs.
const ANSWER_BYTES: usize = 64 << 20;

/// A channel to the server's socket for operators. Clones share it.
#[derive(Clone)]
pub(crate) struct Server(Channel);

impl Server {
    pub(crate) async fn connect(socket: &ServerSocket) -> anyhow::Result<Self> {
        let path = PathBuf::from(socket.path.strip_prefix("unix://").unwrap_or(&socket.path));
        let channel = channel(&path).await.with_context(|| {
            format!(
                "no server answers at {}: is passant-server running? name its socket with --server-socket or \
                 PASSANT_SERVER_SOCKET",
                path.display()
            )
        })?;
        Ok(Self(channel))
    }

    /// A SPIRE server's own socket for operators.
    pub(crate) async fn spire(socket: &str) -> anyhow::Result<Self> {
        let path = PathBuf::from(socket.strip_prefix("unix://").unwrap_or(socket));
        let channel = channel(&path).await.with_context(|| {
            format!(
                "no SPIRE server answers at {}: run this where spire-server runs, as a user who may use its socket, and \
                 name that with --spire-socket",
                path.display()
            )
        })?;
        Ok(Self(channel))
    }

    /// A SPIRE server's address, for an administrator.
    pub(crate) async fn spire_at(
        address: &str,
        trust_domain: &TrustDomain,
        files: &tls::Files<'_>,
    ) -> anyhow::Result<Self> {
        let channel = tls::channel(address, trust_domain, files).await;
        Ok(Self(channel.with_context(|| format!("failed to reach the SPIRE server at {address}"))?))
    }

    pub(crate) fn access(&self) -> AccessClient<Channel> {
        AccessClient::new(self.0.clone())
    }

    pub(crate) fn agents(&self) -> AgentClient<Channel> {
        AgentClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn audit(&self) -> AuditClient<Channel> {
        AuditClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn authorities(&self) -> LocalAuthorityClient<Channel> {
        LocalAuthorityClient::new(self.0.clone())
    }

    pub(crate) fn debug(&self) -> DebugClient<Channel> {
        DebugClient::new(self.0.clone())
    }

    pub(crate) fn explain(&self) -> ExplainClient<Channel> {
        ExplainClient::new(self.0.clone())
    }

    pub(crate) fn federation(&self) -> FederationClient<Channel> {
        FederationClient::new(self.0.clone())
    }

    pub(crate) fn trust_domains(&self) -> TrustDomainClient<Channel> {
        TrustDomainClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn import(&self) -> ImportClient<Channel> {
        ImportClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn logger(&self) -> LoggerClient<Channel> {
        LoggerClient::new(self.0.clone())
    }

    /// For services without a client here.
    pub(crate) fn channel(&self) -> Channel {
        self.0.clone()
    }

    /// Entries with what stands beside SPIRE's fields.
    pub(crate) fn options(&self) -> OptionsClient<Channel> {
        OptionsClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn stops(&self) -> StopClient<Channel> {
        StopClient::new(self.0.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub(crate) fn store(&self) -> StoreClient<Channel> {
        StoreClient::new(self.0.clone())
    }

    pub(crate) fn svids(&self) -> SvidClient<Channel> {
        SvidClient::new(self.0.clone())
    }
}

/// A client of the agent's admin socket.
pub(crate) async fn node_admin(socket: &AgentSocket) -> anyhow::Result<NodeClient<Channel>> {
    let path = PathBuf::from(socket.admin.strip_prefix("unix://").unwrap_or(&socket.admin));
    let channel = channel(&path).await.with_context(|| {
        format!(
            "no agent answers at {}: is passant-agent running here, and are you root or its user? name its admin socket \
             (admin.sock in its data_dir) with --agent-socket or PASSANT_AGENT_SOCKET",
            path.display()
        )
    })?;
    Ok(NodeClient::new(channel))
}

/// A client of the Workload API.
pub(crate) async fn workload_api(socket: &WorkloadSocket) -> anyhow::Result<WorkloadApi> {
    let channel = workload_channel(socket).await?;
    Ok(SpiffeWorkloadApiClient::with_interceptor(channel, SecurityHeader)
        .max_decoding_message_size(ANSWER_BYTES))
}

/// A channel to the Workload API's socket, for whatever is served there.
pub(crate) async fn workload_channel(socket: &WorkloadSocket) -> anyhow::Result<Channel> {
    let path = endpoint_path(&socket.address)?;
    channel(&path).await.with_context(|| {
        format!(
            "no agent answers at {}: is passant-agent running? name its socket with --socket or SPIFFE_ENDPOINT_SOCKET",
            socket.address
        )
    })
}

/// The path of a Workload Endpoint address of the form `unix:///path` (SPIFFE Workload Endpoint 4).
fn endpoint_path(address: &str) -> anyhow::Result<PathBuf> {
    let Some(rest) = address.strip_prefix("unix:") else {
        bail!(
            "\"{address}\" is no address of a Workload API here: write it like unix:///run/passant-agent/api.sock"
        );
    };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') || path.contains(['?', '#']) {
        bail!("\"{address}\" must be unix:// and an absolute path, with no host, query or fragment");
    }
    Ok(PathBuf::from(path))
}

async fn channel(path: &Path) -> anyhow::Result<Channel> {
    let path = path.to_owned();
    // The name is not used: the connector goes to the socket. It becomes the `:authority` of each call.
    let endpoint = Endpoint::from_static("http://localhost").timeout(ANSWER_WITHIN);
    let connect = move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    };
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

/// What a user reads of a refused call: its code, its message, and what may help.
pub(crate) fn refused(status: Status) -> anyhow::Error {
    let code = format!("{:?}", status.code());
    let hint = if status.code() == Code::Unavailable {
        "; it may answer later: try again, or look at the daemon's log"
    } else if status.code() == Code::Cancelled || status.code() == Code::DeadlineExceeded {
        "; the daemon did not answer in time: is it stopped or overloaded?"
    } else if status.code() == Code::Unimplemented {
        "; this server does not offer that"
    } else {
        ""
    };
    anyhow::anyhow!("{} ({code}){hint}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_addresses_are_checked() {
        for good in ["unix:///run/a.sock", "unix:/run/a.sock"] {
            assert_eq!(endpoint_path(good).unwrap(), PathBuf::from("/run/a.sock"));
        }
        for bad in [
            "/run/a.sock",
            "unix://host/a.sock",
            "unix:a.sock",
            "unix:///a?b",
            "unix:///a#b",
            "tcp://1.2.3.4:5",
            "",
        ] {
            assert!(endpoint_path(bad).is_err(), "{bad}");
        }
    }
}
