//! How does a played agent connect? From an address of its own, by TLS, with small windows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// HTTP/2 windows of an agent, in bytes.
const WINDOW: u32 = 64 * 1024;
/// Calls that wait in one agent's channel.
const WAITING: usize = 4;
/// From the first packet to the end of the handshake: the server's own bound, and some.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// Addresses from which agents come, at most: 127.1.0.1 and so on.
pub(crate) const ADDRESSES: usize = 250 * 250 * 100;

/// The certificate chain that an agent shows, and its private key.
pub(crate) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What all connections of a process share.
#[derive(Clone)]
pub(crate) struct Wire {
    provider: Arc<CryptoProvider>,
    verifier: Arc<Unverified>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Unverified(Arc::clone(&provider)));
        Self { provider, verifier }
    }

    /// A channel from `source` to `server`, which connects again by itself.
    ///
    /// # Errors
    /// When the first connection fails.
    pub(crate) async fn connect(
        &self,
        server: SocketAddr,
        source: IpAddr,
        shown: Option<Shown>,
    ) -> Result<Channel> {
        let tls = TlsConnector::from(Arc::new(self.tls(shown)?));
        let connect = move |_| {
            let tls = tls.clone();
            async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(source, 0))?;
                let stream = socket.connect(server).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::IpAddress(server.ip().into());
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        };
        // The scheme is http because TLS is not tonic's here.
        let endpoint = Endpoint::from_shared(format!("http://{server}"))?
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .buffer_size(WAITING);
        let connecting = endpoint.connect_with_connector(tower::service_fn(connect));
        Ok(tokio::time::timeout(CONNECT_WITHIN, connecting).await??)
    }

    fn tls(&self, shown: Option<Shown>) -> Result<ClientConfig> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier) as _);
        let mut config = match shown {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The address from which the agent with this number comes. `spread` addresses are shared by all.
pub(crate) fn source(number: usize, spread: usize) -> IpAddr {
    let number = number % spread.clamp(1, ADDRESSES);
    let part = |of: usize| u8::try_from(of % 250).unwrap_or_default();
    let high = u8::try_from(number / 62_500).unwrap_or_default();
    Ipv4Addr::new(127, 1 + high, part(number / 250), 1 + part(number)).into()
}

/// Takes every server: the run has started it itself, on loopback, and what agents verify is work on the cores that they
/// share here with the server, which they do not in life.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_has_an_address_on_loopback() {
        let text = |number, spread| source(number, spread).to_string();
        assert_eq!(text(0, 10_000), "127.1.0.1");
        assert_eq!(text(249, 10_000), "127.1.0.250");
        assert_eq!(text(250, 10_000), "127.1.1.1");
        assert_eq!(text(62_500, ADDRESSES), "127.2.0.1");
        assert_eq!(text(7, 3), "127.1.0.2");
        assert!(source(ADDRESSES - 1, ADDRESSES).is_loopback() && source(usize::MAX, 0).is_loopback());
    }
}
