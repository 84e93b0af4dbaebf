//! How is a server of the trust domain reached over TCP, as the holder of an X509-SVID?

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use passant_core::x509_svid;
use passant_core::{Bundle, Host, TrustDomain};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::ANSWER_WITHIN;

/// Whom to be, and whom to believe; all in PEM.
pub(crate) struct Files<'a> {
    /// The X509-SVID with its intermediates.
    pub(crate) svid: &'a Path,
    /// Its private key.
    pub(crate) key: &'a Path,
    /// The bundle by which the server is known.
    pub(crate) bundle: &'a Path,
}

/// A channel to the server of `trust_domain` at `address`, which is `HOST:PORT`.
///
/// # Errors
/// When a file cannot be used, or nobody answers who has the server's SPIFFE ID by the bundle.
pub(crate) async fn channel(
    address: &str,
    trust_domain: &TrustDomain,
    files: &Files<'_>,
) -> anyhow::Result<Channel> {
    let config = config(trust_domain, files)?;
    let to = address.to_owned();
    let connect = move |_| {
        let (to, config) = (to.clone(), Arc::clone(&config));
        async move {
            let stream = TcpStream::connect(&to).await?;
            // Not looked at: the server is known by its SPIFFE ID.
            let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
            Ok::<_, io::Error>(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
        }
    };
    let endpoint = Endpoint::from_static("http://localhost").timeout(ANSWER_WITHIN);
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

fn config(trust_domain: &TrustDomain, files: &Files<'_>) -> anyhow::Result<Arc<ClientConfig>> {
    let unusable = |file: &Path, what: &str| format!("{} holds no {what} that can be used", file.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(files.svid)
        .and_then(Iterator::collect)
        .with_context(|| unusable(files.svid, "X509-SVID"))?;
    if chain.is_empty() {
        bail!(unusable(files.svid, "X509-SVID"));
    }
    let key = PrivateKeyDer::from_pem_file(files.key).with_context(|| unusable(files.key, "private key"))?;
    let text = std::fs::read(files.bundle).with_context(|| unusable(files.bundle, "bundle"))?;
    let bundle =
        Bundle::from_pem(trust_domain.clone(), &text).with_context(|| unusable(files.bundle, "bundle"))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = ServerVerifier { bundle, host: Host::system(), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .with_context(|| unusable(files.key, "private key of the X509-SVID"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Knows a server by the bundle and its SPIFFE ID, never by a host name.
struct ServerVerifier {
    bundle: Bundle,
    host: Host,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    fn check(&self, chain: Vec<CertificateDer<'static>>) -> Result<(), String> {
        let svid =
            x509_svid::verify(chain, &self.bundle, self.host.now()).map_err(|error| error.to_string())?;
        if *svid.id() == self.bundle.trust_domain.server_id() {
            return Ok(());
        }
        Err(format!("{} is not a server", svid.id()))
    }
}

impl std::fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerVerifier")
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let checked = self.check(chain).map(|()| ServerCertVerified::assertion());
        checked.map_err(|why| rustls::Error::Other(OtherError(Arc::from(Box::from(why)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
