//! How does a test meet the server's TLS port as somebody else than an agent? Any chain, any key, no questions asked.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What a client shows of itself.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The chain, leaf first, in DER.
    pub chain: Vec<Vec<u8>>,
    /// The private key, as PKCS#8, which need not be the leaf's.
    pub key: Vec<u8>,
}

/// Connects to a server, whoever it is, and shows `shown` if it asks for a certificate.
///
/// # Errors
/// When the handshake fails as far as the client can tell: with TLS 1.3 a refused certificate shows at the first read.
pub async fn connect(address: &str, shown: Option<&Shown>) -> anyhow::Result<TlsStream<TcpStream>> {
    let address: SocketAddr = address.parse()?;
    connect_over(TcpStream::connect(address).await?, shown).await
}

/// The same over a TCP connection that is there.
///
/// # Errors
/// As [`connect`].
pub async fn connect_over(stream: TcpStream, shown: Option<&Shown>) -> anyhow::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(Arc::clone(&provider))));
    let mut config = match shown {
        None => config.with_no_client_auth(),
        Some(shown) => {
            let chain = shown.chain.iter().cloned().map(CertificateDer::from).collect();
            let key = PrivateKeyDer::try_from(shown.key.clone()).map_err(anyhow::Error::msg)?;
            // Not checked against each other, unlike by the configuration's own builder.
            let certified = CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?);
            config.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}

/// Whether the server goes on with the connection: it sends its HTTP/2 settings only to whom it took.
///
/// # Errors
/// What ended the connection.
pub async fn is_taken(stream: &mut TlsStream<TcpStream>) -> anyhow::Result<()> {
    let mut first = [0; 9];
    stream.read_exact(&mut first).await.context("the server ended the connection")?;
    Ok(())
}

/// The chain that the server showed, leaf first, in DER.
pub fn server_chain(stream: &TlsStream<TcpStream>) -> Vec<Vec<u8>> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.iter().map(|certificate| certificate.to_vec()).collect()
}

/// Takes every server. The tests look at its chain themselves.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
