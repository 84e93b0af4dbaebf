//! With what do the tests of federation play the other side?

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use passant_core::bundle::X509Authority;
use passant_core::{Bundle, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub(crate) fn name(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

/// An authority, of SPIFFE or of the Web PKI.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: Vec<u8>,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Ca {
    pub(crate) fn new(uri: &str) -> Self {
        let mut params = params(vec![SanType::URI(uri.try_into().unwrap())]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key, der }
    }

    pub(crate) fn pem(&self) -> String {
        passant_core::pem_text::section("CERTIFICATE", &self.der)
    }

    /// The bundle of `trust_domain` with this authority alone.
    pub(crate) fn bundle(&self, trust_domain: &str, sequence: u64) -> Bundle {
        let authority = X509Authority::from_der(&self.der).unwrap();
        Bundle { x509_authorities: vec![authority], sequence, ..Bundle::empty(name(trust_domain)) }
    }

    pub(crate) fn leaf(&self, names: Vec<SanType>) -> Leaf {
        self.leaf_with(names, |_| {})
    }

    pub(crate) fn leaf_with(&self, names: Vec<SanType>, change: fn(&mut CertificateParams)) -> Leaf {
        let mut params = params(names);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
        Leaf { certificate, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
    }
}

fn params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.subject_alt_names = names;
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

pub(crate) fn loopback() -> SanType {
    SanType::IpAddress([127, 0, 0, 1].into())
}

/// A bundle endpoint on loopback, and the heads of the requests it got.
pub(crate) struct FakeEndpoint {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl FakeEndpoint {
    /// Shows `leaf`, and answers a request for a path and query with the bytes that `answer` makes.
    pub(crate) async fn start(leaf: Leaf, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.certificate], leaf.key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let heads = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that does not believe it goes away.
                drop(serve(&acceptor, stream, &heads, &answer).await);
            }
        });
        Self { address, requests, task }
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("https://{}{target}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Paths and queries that were asked for.
    pub(crate) fn targets(&self) -> Vec<String> {
        let target = |head: &String| head.split(' ').nth(1).unwrap().to_owned();
        self.requests().iter().map(target).collect()
    }
}

impl Drop for FakeEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    requests: &Mutex<Vec<String>>,
    answer: &impl Fn(&str) -> Vec<u8>,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let bytes = answer(head.split(' ').nth(1).unwrap());
    requests.lock().unwrap().push(head);
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

pub(crate) fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

pub(crate) fn document(bundle: &Bundle) -> Vec<u8> {
    let text = bundle.to_spiffe_json().unwrap();
    response("200 OK", "Content-Type: application/json\r\n", text.as_bytes())
}

pub(crate) fn redirect(status: &str, location: &str) -> Vec<u8> {
    response(status, &format!("Location: {location}\r\n"), b"")
}
