//! How do an orchestrator and Prometheus look at a daemon? Over one small HTTP/1.1 port.
//!
//! `GET /live`, `GET /ready` and `GET /metrics`; HEAD too. Nothing can be changed over it and no secret is told, but whoever
//! reaches it learns what is wrong with the daemon: so it stands on loopback unless the configuration says otherwise. Every
//! connection is bounded in number, size and time, and serves one request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::MEDIA_TYPE;
use crate::vitals::Vitals;

/// Connections at once. An orchestrator and a few scrapers need one each, for a moment.
const CONNECTIONS: usize = 32;

/// The most that a request line and its headers may take together, in bytes: hyper's least.
const HEAD_BYTES: usize = 8 * 1024;

/// How long a client may take to send them.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(10);

/// How long to wait after a connection could not be accepted: descriptors are short, and come back.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The port, bound.
#[derive(Debug)]
pub struct Probe {
    listener: TcpListener,
    address: SocketAddr,
}

/// The port, answering. It stops when this is dropped.
pub struct Probing {
    address: SocketAddr,
    vitals: Arc<OnceLock<Arc<dyn Vitals>>>,
    stop: CancellationToken,
}

/// Why the port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address} for probes; set another probe.listen")]
pub struct ProbeError {
    address: SocketAddr,
    source: io::Error,
}

/// Why a text cannot be where probes are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address and a port.
    #[error("is not an IP address and a port")]
    Malformed,
    /// Others than this machine could look.
    #[error("is not on loopback, so that whoever reaches it reads the metrics and what is wrong")]
    Remote,
}

impl AddressError {
    /// What to do about it, for the operator.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Malformed => "write it as in \"127.0.0.1:9090\"",
            Self::Remote => "use 127.0.0.1, or set allow_remote = true where the network keeps strangers out",
        }
    }
}

/// Reads where to listen; anything but loopback only if `allow_remote`.
///
/// # Errors
/// See [`AddressError`].
pub fn address(text: &str, allow_remote: bool) -> Result<SocketAddr, AddressError> {
    let address: SocketAddr = text.parse().map_err(|_| AddressError::Malformed)?;
    if allow_remote || address.ip().is_loopback() { Ok(address) } else { Err(AddressError::Remote) }
}

impl Probe {
    /// Binds `listen`.
    ///
    /// # Errors
    /// When it is in use, or not an address of this machine.
    pub async fn bind(listen: SocketAddr) -> Result<Self, ProbeError> {
        let failed = |source| ProbeError { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Begins to answer, within a tokio runtime: alive, and not ready until [`Probing::watch`].
    pub fn open(self) -> Probing {
        let (vitals, stop) = (Arc::new(OnceLock::new()), CancellationToken::new());
        tokio::spawn(accept(self.listener, Arc::clone(&vitals), stop.clone()));
        Probing { address: self.address, vitals, stop }
    }
}

impl Probing {
    /// Where it answers, with the real port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers on `listen`, if that is given: alive from now on, and not ready until [`Probing::watch`].
    ///
    /// # Errors
    /// As [`Probe::bind`].
    pub async fn begin(listen: Option<SocketAddr>) -> Result<Option<Self>, ProbeError> {
        match listen {
            Some(listen) => Ok(Some(Probe::bind(listen).await?.open())),
            None => Ok(None),
        }
    }

    /// Answers by `vitals` from now on. Only the first call counts.
    pub fn watch(&self, vitals: Arc<dyn Vitals>) {
        tracing::info!(address = %self.address, "probes and metrics are answered");
        // A second call would be a defect, and changes nothing.
        drop(self.vitals.set(vitals));
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Probing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probing").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, vitals: Arc<OnceLock<Arc<dyn Vitals>>>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "failed to accept a probe");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        // The newest is turned away: one that keeps coming gets its turn as others end, in ten seconds at most.
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        let (vitals, stop) = (Arc::clone(&vitals), stop.clone());
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(CONNECTION) => {}
                () = serve(stream, vitals) => {}
            }
        });
    }
}

async fn serve(stream: TcpStream, vitals: Arc<OnceLock<Arc<dyn Vitals>>>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), vitals.get().map(AsRef::as_ref));
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(error = &error as &dyn std::error::Error, "a probe went wrong");
    }
}

/// What `/live` says.
#[derive(Serialize)]
struct Live {
    live: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    troubles: BTreeMap<String, String>,
}

/// What `/ready` says.
#[derive(Serialize)]
struct Ready {
    ready: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    troubles: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    degraded: BTreeMap<String, String>,
}

/// The answer to one request; `vitals` is `None` as long as the daemon starts.
fn answer(method: &Method, path: &str, vitals: Option<&dyn Vitals>) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "use GET\n");
        refused.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/live" => {
            let troubles = vitals.map(Vitals::dead).unwrap_or_default();
            json(troubles.is_empty(), &Live { live: troubles.is_empty(), troubles })
        }
        "/ready" => {
            let said = vitals.map(Vitals::readiness).unwrap_or_else(|| {
                let mut starting = crate::vitals::Readiness::default();
                starting.trouble("start", "not yet serving");
                starting
            });
            let ready = said.is_ready();
            json(ready, &Ready { ready, troubles: said.troubles, degraded: said.degraded })
        }
        "/metrics" => match vitals {
            Some(vitals) => text(StatusCode::OK, MEDIA_TYPE, vitals.metrics()),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not yet serving\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "text/plain", "there is /live, /ready and /metrics\n"),
    }
}

fn json(well: bool, said: &impl Serialize) -> Response<Full<Bytes>> {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let said = serde_json::to_string(said).expect("maps of text are JSON");
    text(status, "application/json", format!("{said}\n"))
}

fn text(status: StatusCode, media_type: &'static str, said: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(said.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::vitals::Readiness;

    #[derive(Default)]
    struct Told {
        readiness: Mutex<Readiness>,
        dead: Mutex<BTreeMap<String, String>>,
    }

    impl Vitals for Told {
        fn readiness(&self) -> Readiness {
            self.readiness.lock().unwrap().clone()
        }

        fn dead(&self) -> BTreeMap<String, String> {
            self.dead.lock().unwrap().clone()
        }

        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }
    }

    async fn open() -> (Probing, Arc<Told>) {
        let probing = Probe::bind("127.0.0.1:0".parse().unwrap()).await.unwrap().open();
        (probing, Arc::default())
    }

    /// What comes back until the connection ends.
    async fn say(probing: &Probing, words: &str) -> String {
        let mut stream = TcpStream::connect(probing.address()).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(probing: &Probing, path: &str) -> (String, String) {
        let answer = say(probing, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[test]
    fn only_loopback_is_listened_on_unless_allowed() {
        assert!(address("127.0.0.1:0", false).is_ok() && address("[::1]:9090", false).is_ok());
        assert_eq!(address("0.0.0.0:9090", false), Err(AddressError::Remote));
        assert_eq!(address("[::]:9090", false), Err(AddressError::Remote));
        assert!(address("0.0.0.0:9090", true).is_ok());
        assert_eq!(address("9090", true), Err(AddressError::Malformed));
    }

    #[tokio::test]
    async fn a_daemon_that_starts_is_alive_and_not_ready() {
        let (probing, vitals) = open().await;
        assert_eq!(get(&probing, "/live").await.0, "HTTP/1.1 200 OK");
        let (status, body) = get(&probing, "/ready").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(body, "{\"ready\":false,\"troubles\":{\"start\":\"not yet serving\"}}\n");
        assert_eq!(get(&probing, "/metrics").await.0, "HTTP/1.1 503 Service Unavailable");
        probing.watch(vitals);
        assert_eq!(get(&probing, "/ready").await.1, "{\"ready\":true}\n");
        assert_eq!(get(&probing, "/metrics").await.1, "# EOF\n");
    }

    #[tokio::test]
    async fn what_is_wrong_is_said() {
        let (probing, vitals) = open().await;
        probing.watch(Arc::<Told>::clone(&vitals));
        vitals.readiness.lock().unwrap().degraded("sync", "the server is away");
        let (status, body) = get(&probing, "/ready").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(body, "{\"ready\":true,\"degraded\":{\"sync\":\"the server is away\"}}\n");
        vitals.dead.lock().unwrap().insert("mint".to_owned(), "it has ended".to_owned());
        let (status, body) = get(&probing, "/live").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(body, "{\"live\":false,\"troubles\":{\"mint\":\"it has ended\"}}\n");
    }

    #[tokio::test]
    async fn only_looking_is_possible() {
        let (probing, vitals) = open().await;
        probing.watch(vitals);
        for (words, status) in [
            ("POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
            ("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("GET /metrics/../live HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
            ("HEAD /ready HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            let answer = say(&probing, words).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{words}: {answer}");
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            assert_eq!(words.starts_with("HEAD"), body.is_empty() && status == "200", "{words}: {body}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(HEAD_BYTES));
        let mut stream = TcpStream::connect(probing.address()).await.unwrap();
        // The answer may come, and the connection end, before all of it was sent.
        let sent = stream.write_all(long.as_bytes()).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sent:?} {read:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_and_does_not_keep_others_out() {
        let (probing, vitals) = open().await;
        probing.watch(vitals);
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(probing.address()).await.unwrap());
        }
        // Their time passes, since nothing else is to be done.
        for stream in &mut silent {
            let mut rest = Vec::new();
            let ended = stream.read_to_end(&mut rest).await;
            assert!(ended.is_err() || !rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
        }
        assert_eq!(get(&probing, "/live").await.0, "HTTP/1.1 200 OK");
    }
}
