//! How does the server prove who it is, and whom does it believe during a handshake?

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use passant_core::bundle::Bundle;
use passant_core::x509_svid::{self, X509Svid};
use passant_core::{Host, Secret, SpiffeId, TrustDomain};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::caller::PeerSvid;

/// The server's own X509-SVID as the next handshake will show it. Replaced while the port stays open.
#[derive(Default)]
pub struct ServerIdentity(ArcSwapOption<CertifiedKey>);

/// Finds the bundle of a trust domain as it stands now.
pub trait Bundles: Send + Sync + 'static {
    /// The newest bundle, `None` for a trust domain without one.
    fn bundle_of(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>>;
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key of the server's own X509-SVID cannot be used.
    #[error("the key of the server's X509-SVID cannot be used for TLS")]
    Key(#[source] rustls::Error),
    /// No protocol version is supported.
    #[error("TLS cannot be set up")]
    Config(#[source] rustls::Error),
}

/// The TLS side of the server's port: TLS 1.2 and 1.3, HTTP/2, no session resumption (so that every connection is
/// verified against the bundle of its day), client certificate optional.
///
/// A client certificate that is sent must be an X509-SVID of `trust_domain`, or one of `named_ids`, and verify
/// against the current bundle; otherwise the handshake fails.
///
/// # Errors
/// [`TlsError::Config`] when rustls supports none of the versions.
pub fn server_config(
    identity: Arc<ServerIdentity>,
    bundles: Arc<dyn Bundles>,
    trust_domain: TrustDomain,
    named_ids: BTreeSet<SpiffeId>,
    host: &Host,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        Verifier { bundles, trust_domain, named_ids, host: host.clone(), provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// What the TLS side decides, without TLS: for a network that is itself trusted to say who is at each end.
pub(crate) struct Door {
    identity: Arc<ServerIdentity>,
    verifier: Verifier,
}

impl Door {
    /// As [`server_config`].
    pub(crate) fn new(
        identity: Arc<ServerIdentity>,
        bundles: Arc<dyn Bundles>,
        trust_domain: TrustDomain,
        named_ids: BTreeSet<SpiffeId>,
        host: &Host,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier { bundles, trust_domain, named_ids, host: host.clone(), provider };
        Self { identity, verifier }
    }

    /// The peer that showed `chain`, if any, and the chain that the server shows. The error is what a handshake would
    /// fail with.
    pub(crate) fn admit(
        &self,
        chain: Option<Vec<CertificateDer<'static>>>,
    ) -> Result<(Option<PeerSvid>, Vec<CertificateDer<'static>>), String> {
        let own = self.identity.0.load_full().ok_or("the server has no X509-SVID")?;
        let svid = chain.map(|chain| {
            self.verifier.verify(chain.clone()).map_err(|doubt| doubt.to_string())?;
            X509Svid::parse(chain).map(PeerSvid::new).map_err(|error| error.to_string())
        });
        Ok((svid.transpose()?, own.cert.clone()))
    }
}

impl ServerIdentity {
    /// What the next handshake shows, leaf first; empty before the first SVID.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.load().as_ref().map(|shown| shown.cert.clone()).unwrap_or_default()
    }

    /// Shows `svid` from the next handshake on. `key` is its private key, PKCS#8 DER.
    ///
    /// # Errors
    /// [`TlsError::Key`] when the key is of no kind that TLS can use.
    pub fn show(&self, svid: &X509Svid, key: &Secret<Vec<u8>>) -> Result<(), TlsError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.expose().as_slice()));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&der).map_err(TlsError::Key)?;
        self.0.store(Some(Arc::new(CertifiedKey::new(svid.chain().to_vec(), key))));
        Ok(())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.load().is_some() { "ServerIdentity(shown)" } else { "ServerIdentity(none)" })
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Verifies client certificates as X509-SVIDs, against the bundle at the moment of the handshake.
struct Verifier {
    bundles: Arc<dyn Bundles>,
    trust_domain: TrustDomain,
    named_ids: BTreeSet<SpiffeId>,
    host: Host,
    provider: Arc<CryptoProvider>,
}

/// Why a client certificate is not believed. For the log; the client gets a TLS alert.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("X509-SVID of \"{0}\" is of another trust domain, and the configuration does not name it")]
    Foreign(SpiffeId),
    #[error("there is no bundle of trust domain \"{0}\"")]
    NoBundle(TrustDomain),
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.trust_domain)
    }
}

impl Verifier {
    fn verify(
        &self,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let svid = X509Svid::parse(chain.clone())?;
        let id = svid.id();
        if !id.is_member_of(&self.trust_domain) && !self.named_ids.contains(id) {
            return Err(Doubt::Foreign(id.clone()).into());
        }
        let trust_domain = id.trust_domain();
        let bundle = self.bundles.bundle_of(&trust_domain).ok_or(Doubt::NoBundle(trust_domain))?;
        x509_svid::verify(chain, &bundle, self.host.now())?;
        Ok(())
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    /// Ignores rustls's idea of the time: the server has one clock.
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain =
            std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        self.verify(chain)
            .map(|()| ClientCertVerified::assertion())
            .map_err(|doubt| CertificateError::Other(OtherError(Arc::from(doubt))).into())
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
