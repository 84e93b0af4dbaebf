//! Which bundle endpoint do these tests fetch from? One of their own, whose certificate and answers they choose.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use passant_core::Bundle;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// A certificate with its key.
pub(crate) type Shown = (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>);

/// A bundle endpoint on loopback. It asks for no client certificate.
pub(crate) struct Endpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    shown: Mutex<Option<Arc<CertifiedKey>>>,
    /// Whole answers by path.
    answers: Mutex<BTreeMap<String, Vec<u8>>>,
    /// When which request came, line and headers.
    requests: Mutex<Vec<(Instant, String)>>,
}

impl Endpoint {
    /// Proves itself by `shown`, and knows no path yet.
    pub(crate) async fn start(shown: Shown) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Shared>::clone(&shared));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not believe it goes away.
                drop(serve(&acceptor, stream, &serving).await);
            }
        });
        let endpoint = Self { address, shared, task };
        endpoint.show(shown)?;
        Ok(endpoint)
    }

    /// Proves itself by `shown` from the next connection on.
    pub(crate) fn show(&self, (certificate, key): Shown) -> anyhow::Result<()> {
        let key = rustls::crypto::ring::sign::any_supported_type(&PrivateKeyDer::from(key))?;
        let shown = Arc::new(CertifiedKey::new(vec![certificate], key));
        *self.shared.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(())
    }

    /// Answers `path` by a status, headers (each with its line end) and a body.
    pub(crate) fn answer(&self, path: &str, status: &str, headers: &str, body: &str) {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
            .into_bytes();
        self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), answer);
    }

    /// Serves `bundle` at `path`.
    pub(crate) fn serve(&self, path: &str, bundle: &Bundle) -> anyhow::Result<()> {
        self.answer(path, "200 OK", "Content-Type: application/json\r\n", &bundle.to_spiffe_json()?);
        Ok(())
    }

    /// Redirects from `path` to `location`.
    pub(crate) fn redirect(&self, path: &str, status: &str, location: &str) {
        self.answer(path, status, &format!("Location: {location}\r\n"), "");
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// When which path was asked for.
    pub(crate) fn asked(&self) -> Vec<(Instant, String)> {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let path = |head: &str| head.split(' ').nth(1).unwrap_or_default().to_owned();
        requests.iter().map(|(at, head)| (*at, path(head))).collect()
    }

    /// The first lines of all requests, with their headers.
    pub(crate) fn heads(&self) -> Vec<String> {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(_, head)| head.clone()).collect()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ResolvesServerCert for Shared {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(acceptor: &TlsAcceptor, stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    shared.requests.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), head));
    let answer = shared.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
    let unknown = || b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    stream.write_all(&answer.unwrap_or_else(unknown)).await?;
    stream.shutdown().await
}
