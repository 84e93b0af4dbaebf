//! How do these tests reach a server? With clients of their own, over its real ports.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use passant_core::bundle::Bundle;
use passant_core::csr;
use passant_core::keys::{KeyType, SigningKey};
use passant_core::x509_svid::{self, X509Svid};
use passant_core::{Host, Refusal, SpiffeId, TrustDomain};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::attest_agent_request::{Params, Step as Asked};
use passant_proto::agent::attest_agent_response::Step;
use passant_proto::agent::{AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest};
use passant_proto::bundle::bundle_client::BundleClient;
use passant_proto::convert;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::entry::{BatchCreateEntryRequest, batch_create_entry_response};
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::svid::{BatchNewX509svidRequest, NewX509svidParams};
use passant_proto::types;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::config::Config;
use crate::server::{Running, Server};

/// A server on loopback with everything in memory.
pub(super) struct Rig {
    pub(super) running: Running,
    pub(super) host: Host,
    /// Holds the operator socket.
    dir: tempfile::TempDir,
}

/// An X509-SVID with its key.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) svid: X509Svid,
    pub(super) key: Arc<dyn SigningKey>,
}

impl Rig {
    pub(super) async fn start() -> Self {
        Self::start_with("").await
    }

    /// `more` is added to the configuration.
    pub(super) async fn start_with(more: &str) -> Self {
        Self::start_on(Host::system(), more).await
    }

    /// On a machine of the test's choice.
    pub(super) async fn start_on(host: Host, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let text = format!(
            "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\n{more}\n\
             [socket]\npath = \"{}\"\n",
            socket.display()
        );
        let running = Server::start(Config::parse(&text, "test.toml").unwrap(), host.clone()).await.unwrap();
        Self::around(running, host, dir)
    }

    /// With what a test has configured itself below `dir`.
    pub(super) fn around(running: Running, host: Host, dir: tempfile::TempDir) -> Self {
        Self { running, host, dir }
    }

    /// Stops the server; what it has written stays as long as the directory is held.
    pub(super) async fn stop(self) -> tempfile::TempDir {
        self.running.shutdown().await;
        self.dir
    }

    /// Over the operator socket.
    pub(super) async fn local(&self) -> Channel {
        let path = self.running.socket().to_owned();
        let connect = move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        };
        Endpoint::from_static("http://local")
            .connect_with_connector(tower::service_fn(connect))
            .await
            .unwrap()
    }

    /// Over TLS, without certificate or with one.
    pub(super) async fn remote(
        &self,
        identity: Option<&Identity>,
    ) -> Result<Channel, tonic::transport::Error> {
        let address = self.running.address();
        let config = client_config(self.running.bundle(), &self.host, identity);
        let connect = move |_| {
            let config = Arc::clone(&config);
            async move { handshake(address, config).await.map(TokioIo::new) }
        };
        Endpoint::from_static("http://remote").connect_with_connector(tower::service_fn(connect)).await
    }

    pub(super) async fn stranger(&self) -> Channel {
        self.remote(None).await.unwrap()
    }

    pub(super) fn key(&self) -> Arc<dyn SigningKey> {
        self.host.keys.generate(KeyType::EcP256).unwrap()
    }

    pub(super) async fn join_token(&self, token: &str, alias: Option<&str>) -> String {
        let agent_id = alias.map(wire_id);
        let request = CreateJoinTokenRequest { ttl: 60, token: token.to_owned(), agent_id };
        AgentClient::new(self.local().await).create_join_token(request).await.unwrap().into_inner().value
    }

    /// Attests a new agent by a join token.
    pub(super) async fn agent(&self) -> Identity {
        let token = self.join_token("", None).await;
        self.attest("join_token", &token, &self.key()).await.unwrap()
    }

    pub(super) async fn attest(
        &self,
        method: &str,
        payload: &str,
        key: &Arc<dyn SigningKey>,
    ) -> Result<Identity, Status> {
        let request = opening(method, payload.as_bytes(), &csr::make(&**key, None).unwrap());
        let requests = tokio_stream::iter([request]);
        let mut answers = AgentClient::new(self.stranger().await).attest_agent(requests).await?.into_inner();
        let Some(Step::Result(result)) = answers.message().await?.unwrap().step else { panic!("no result") };
        assert!(answers.message().await?.is_none());
        let svid = convert::svid::x509_from_wire(&result.svid.unwrap()).unwrap();
        Ok(Identity { svid, key: Arc::clone(key) })
    }

    /// Mints the X509-SVID of an entry of `agent`.
    pub(super) async fn svid_of(&self, agent: &Identity, entry_id: &str) -> Identity {
        let key = self.key();
        let params =
            vec![NewX509svidParams { entry_id: entry_id.to_owned(), csr: csr::make(&*key, None).unwrap() }];
        let mut client = svids(self.remote(Some(agent)).await.unwrap());
        let answer =
            client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
        let svid = convert::svid::x509_from_wire(answer.results[0].svid.as_ref().unwrap()).unwrap();
        Identity { svid, key }
    }

    /// Registers entries; every one must be new.
    pub(super) async fn register(&self, entries: Vec<types::Entry>) -> Vec<types::Entry> {
        let results = self.create(entries).await;
        results
            .into_iter()
            .map(|result| {
                assert_eq!(result.status.as_ref().unwrap().code, 0, "{:?}", result.status);
                result.entry.unwrap()
            })
            .collect()
    }

    pub(super) async fn create(
        &self,
        entries: Vec<types::Entry>,
    ) -> Vec<batch_create_entry_response::Result> {
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        EntryClient::new(self.local().await).batch_create_entry(request).await.unwrap().into_inner().results
    }
}

pub(super) fn agents(channel: Channel) -> AgentClient<Channel> {
    AgentClient::new(channel)
}

pub(super) fn entries(channel: Channel) -> EntryClient<Channel> {
    EntryClient::new(channel)
}

pub(super) fn svids(channel: Channel) -> SvidClient<Channel> {
    SvidClient::new(channel)
}

pub(super) fn bundles(channel: Channel) -> BundleClient<Channel> {
    BundleClient::new(channel)
}

pub(super) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(super) fn wire_id(path: &str) -> types::Spiffeid {
    convert::id::to_wire(&trust_domain().join(path).unwrap())
}

pub(super) fn selector(text: &str) -> types::Selector {
    let (kind, value) = text.split_once(':').unwrap();
    types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
}

/// An entry below `parent` with one selector.
pub(super) fn entry(parent: &SpiffeId, path: &str, chosen: &str) -> types::Entry {
    types::Entry {
        spiffe_id: Some(wire_id(path)),
        parent_id: Some(convert::id::to_wire(parent)),
        selectors: vec![selector(chosen)],
        ..types::Entry::default()
    }
}

pub(super) fn opening(method: &str, payload: &[u8], csr: &[u8]) -> AttestAgentRequest {
    let data = types::AttestationData { r#type: method.to_owned(), payload: payload.to_vec() };
    let params = AgentX509svidParams { csr: csr.to_vec() };
    AttestAgentRequest { step: Some(Asked::Params(Params { data: Some(data), params: Some(params) })) }
}

/// What a failed call tells its client.
pub(super) fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> Refusal {
    passant_proto::status::from_status(&answer.unwrap_err())
}

pub(super) async fn handshake(
    address: std::net::SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("passant.invalid").unwrap();
    TlsConnector::from(config).connect(name, TcpStream::connect(address).await?).await
}

/// Verifies the server as an agent does: by the bundle and the SPIFFE ID, never by a DNS name.
pub(super) fn client_config(
    bundle: Arc<Bundle>,
    host: &Host,
    identity: Option<&Identity>,
) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(bundle, host));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.pkcs8().expose().clone()));
            builder.with_client_auth_cert(identity.svid.chain().to_vec(), key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

pub(super) fn verifier(bundle: Arc<Bundle>, host: &Host) -> Arc<dyn ServerCertVerifier> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Arc::new(Verifier { bundle, host: host.clone(), provider })
}

struct Verifier {
    bundle: Arc<Bundle>,
    host: Host,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain =
            std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        let svid = x509_svid::verify(chain, &self.bundle, self.host.now())
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        assert_eq!(*svid.id(), trust_domain().server_id());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
