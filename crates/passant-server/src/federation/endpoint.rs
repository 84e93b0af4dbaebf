//! How does a bundle endpoint prove who it is?
//!
//! By one of two profiles, and never by the other when one fails: https_web, by a certificate of the Web PKI for the URL's
//! host (SPIFFE Federation 5.2.1), and https_spiffe, by an X509-SVID of one SPIFFE ID (5.2.2).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use passant_core::x509_svid::{self, X509SvidError};
use passant_core::{Bundle, Host, SpiffeId};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// TLS 1.2 and 1.3, as Mozilla's intermediate profile has it.
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Where the known distributions of Linux keep the authorities of the Web PKI, in PEM.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// By what an endpoint proves itself.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// By a certificate of the Web PKI.
    Web,
    /// By an X509-SVID of `endpoint_id`, which verifies against `bundle`.
    Spiffe { endpoint_id: SpiffeId, bundle: Arc<Bundle> },
}

/// Where the authorities of the Web PKI are.
#[derive(Clone, Debug)]
pub(crate) enum WebRoots {
    /// Where this machine's distribution keeps them.
    System,
    /// In this PEM file, and nowhere else.
    File(PathBuf),
}

/// Why there are no authorities of the Web PKI.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    /// None of the files that are known to hold them is there.
    #[error(
        "found no authorities of the Web PKI on this machine: install ca-certificates, or set federation.web_roots"
    )]
    NoSystem,
    /// The file cannot be read.
    #[error("failed to read the authorities of the Web PKI from {path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no certificate of an authority in it.
    #[error("{path} holds no certificate of an authority in PEM")]
    Empty {
        /// The file.
        path: String,
    },
}

impl WebRoots {
    /// Reads them as they are now. Blocks.
    ///
    /// # Errors
    /// When there are none. What is no certificate is skipped, as long as there is one.
    pub(crate) fn load(&self) -> Result<RootCertStore, RootsError> {
        match self {
            Self::File(path) => load(path),
            Self::System => {
                let found = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
                load(found.ok_or(RootsError::NoSystem)?)
            }
        }
    }
}

fn load(path: &Path) -> Result<RootCertStore, RootsError> {
    let place = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| RootsError::Io { path: place(), source })?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    if added == 0 { Err(RootsError::Empty { path: place() }) } else { Ok(roots) }
}

/// TLS towards endpoints that prove themselves by a certificate below `roots` for the host's name.
///
/// # Errors
/// When rustls supports none of the versions.
pub(super) fn web(roots: RootCertStore, host: &Host) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_details(provider, Arc::new(HostTime(host.clone())))
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(finished(config))
}

/// TLS towards an endpoint that proves itself by an X509-SVID of `endpoint_id`. The host's name is not looked at.
///
/// # Errors
/// When rustls supports none of the versions.
pub(super) fn spiffe(
    endpoint_id: SpiffeId,
    bundle: Arc<Bundle>,
    host: &Host,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { endpoint_id, bundle, host: host.clone(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_details(provider, Arc::new(HostTime(host.clone())))
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(finished(config))
}

/// Every connection is verified anew, and speaks HTTP/1.
fn finished(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// rustls asks the host's clock.
struct HostTime(Host);

impl fmt::Debug for HostTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostTime")
    }
}

impl TimeProvider for HostTime {
    fn current_time(&self) -> Option<UnixTime> {
        let secs = u64::try_from(self.0.now().secs()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(secs)))
    }
}

/// Why an endpoint is not the one that was meant.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("the endpoint shows no X509-SVID that is trusted")]
    Svid(#[from] X509SvidError),
    #[error("the endpoint is \"{shown}\", and \"{expected}\" was expected")]
    OtherId { shown: SpiffeId, expected: SpiffeId },
}

/// Verifies that an endpoint shows an X509-SVID of one SPIFFE ID.
struct Verifier {
    endpoint_id: SpiffeId,
    bundle: Arc<Bundle>,
    host: Host,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(&self, chain: Vec<CertificateDer<'static>>) -> Result<(), Doubt> {
        let svid = x509_svid::verify(chain, &self.bundle, self.host.now())?;
        if *svid.id() != self.endpoint_id {
            return Err(Doubt::OtherId { shown: svid.id().clone(), expected: self.endpoint_id.clone() });
        }
        Ok(())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.endpoint_id)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain =
            std::iter::once(end_entity).chain(intermediates).map(|each| each.clone().into_owned()).collect();
        match self.check(chain) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(doubt) => Err(rustls::Error::Other(OtherError(Arc::new(doubt)))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_authority_is_no_source_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        let roots = WebRoots::File(path.clone());
        assert!(matches!(roots.load(), Err(RootsError::Io { .. })));
        for text in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(roots.load(), Err(RootsError::Empty { .. })), "{text}");
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
        std::fs::write(&path, format!("# a comment\n{root}")).unwrap();
        assert_eq!(roots.load().unwrap().len(), 1);
    }
}
