//! How does a test play a node? Over the wire, as an agent does: it attests, keeps its X509-SVID, and verifies the server.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use passant_attest::node::Prover;
use passant_core::bundle::Bundle;
use passant_core::keys::SigningKey;
use passant_core::x509_svid::X509Svid;
use passant_core::{Host, csr};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_request, attest_agent_response,
};
use passant_proto::{convert, types};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// An X509-SVID with its key.
#[derive(Clone)]
pub struct HeldSvid {
    /// The SVID.
    pub svid: X509Svid,
    /// Its private key.
    pub key: Arc<dyn SigningKey>,
}

/// A channel to the server at `address`, which must show its X509-SVID under `bundle`; with `shown` as client
/// certificate, or as a stranger.
///
/// # Errors
/// When nothing answers there, or it is not the server, or TLS cannot be set up.
pub async fn connect(
    address: &str,
    bundle: Arc<Bundle>,
    shown: Option<&HeldSvid>,
) -> anyhow::Result<Channel> {
    let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address"))?;
    let tls = TlsConnector::from(Arc::new(tls(bundle, shown)?));
    let connect = move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::IpAddress(address.ip().into());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    };
    // The scheme is http because TLS is not tonic's here.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

/// Attests the node that `prover` speaks for, and takes an X509-SVID for `key`.
///
/// # Errors
/// What the server says, or what is wrong with its answer: it must be for `key`.
pub async fn attest(
    channel: Channel,
    prover: &mut dyn Prover,
    key: &dyn SigningKey,
) -> Result<X509Svid, Status> {
    let payload = prover.evidence().await.map_err(|error| Status::internal(error.to_string()))?;
    let csr = csr::make(key, None).map_err(|error| Status::internal(error.to_string()))?;
    let params = attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: prover.method().to_owned(), payload }),
        params: Some(AgentX509svidParams { csr }),
    };
    let (requests, outgoing) = mpsc::channel(2);
    let send = |step| {
        let sent = requests.try_send(AttestAgentRequest { step: Some(step) });
        sent.map_err(|_| Status::unavailable("the server ended the attestation"))
    };
    send(attest_agent_request::Step::Params(params))?;
    let mut answers =
        AgentClient::new(channel).attest_agent(ReceiverStream::new(outgoing)).await?.into_inner();
    loop {
        match answers.message().await?.and_then(|answer| answer.step) {
            None => return Err(Status::unavailable("the server ended the attestation")),
            Some(attest_agent_response::Step::Challenge(challenge)) => {
                let response = prover.respond(&challenge).await;
                let response = response.map_err(|error| Status::internal(error.to_string()))?;
                send(attest_agent_request::Step::ChallengeResponse(response))?;
            }
            Some(attest_agent_response::Step::Result(result)) => return svid_for(result.svid.as_ref(), key),
        }
    }
}

/// The X509-SVID that the server sent, if it is for `key`.
///
/// # Errors
/// Data loss, when it is something else.
pub fn svid_for(wire: Option<&types::X509svid>, key: &dyn SigningKey) -> Result<X509Svid, Status> {
    let wire = wire.ok_or_else(|| Status::data_loss("the answer holds no SVID"))?;
    let svid = convert::svid::x509_from_wire(wire).map_err(|error| Status::data_loss(error.to_string()))?;
    if svid.public_key() == key.public_key() {
        Ok(svid)
    } else {
        Err(Status::new(Code::DataLoss, "the SVID is for another key"))
    }
}

fn tls(bundle: Arc<Bundle>, shown: Option<&HeldSvid>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = ServerIs { bundle, host: Host::system(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some(held) => {
            let key = PrivatePkcs8KeyDer::from(held.key.pkcs8().expose().clone());
            config.with_client_auth_cert(held.svid.chain().to_vec(), PrivateKeyDer::Pkcs8(key))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Takes only the server of the bundle's trust domain.
struct ServerIs {
    bundle: Arc<Bundle>,
    host: Host,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for ServerIs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerIs({})", self.bundle.trust_domain.server_id())
    }
}

impl ServerCertVerifier for ServerIs {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = |error: String| Error::Other(OtherError(Arc::from(Box::from(error))));
        let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let svid = X509Svid::parse(chain).map_err(|error| refused(error.to_string()))?;
        svid.verify(&self.bundle, self.host.now()).map_err(|error| refused(error.to_string()))?;
        if *svid.id() == self.bundle.trust_domain.server_id() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(format!("{} is not the server", svid.id())))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
