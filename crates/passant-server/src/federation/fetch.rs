//! How is a bundle fetched from its endpoint?
//!
//! By GET over HTTPS, following a few redirects. Each hop is a URL by the same rules as the configured one, and proves
//! itself by the same profile; the next fetch begins at the configured URL again. Time, bytes and hops are bounded: the
//! endpoint belongs to somebody else.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use passant_core::bundle_document::BundleDocumentError;
use passant_core::federation::EndpointUrlError;
use passant_core::{Bundle, EndpointUrl, FederationRelationship, Host, TrustDomain};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::endpoint::{self, Proof, RootsError, WebRoots};
use crate::limits::{
    ENDPOINT_ADDRESSES, ENDPOINT_CONNECT_WITHIN, ENDPOINT_HEADERS, ENDPOINT_REDIRECTS, FETCH_WITHIN,
    FETCHED_DOCUMENT,
};

const AGENT: &str = concat!("passant-server/", env!("CARGO_PKG_VERSION"));

/// What is to be fetched, and how its endpoint proves itself.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) relationship: Arc<FederationRelationship>,
    pub(crate) proof: Proof,
}

/// Fetches bundles: a seam, so that tests and the simulation need no network.
pub(crate) trait Fetch: Send + Sync + 'static {
    /// The bundle that the endpoint serves now.
    fn fetch(&self, order: Order) -> Pin<Box<dyn Future<Output = Result<Bundle, FetchError>> + Send>>;
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// Nothing is held that an X509-SVID of the endpoint could be verified by.
    #[error(
        "the endpoint proves itself by an X509-SVID of \"{0}\", whose bundle is not held: set it by hand, or federate with \
         that trust domain too"
    )]
    NoBundle(TrustDomain),
    /// The authorities of the Web PKI are missing.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// TLS cannot be set up.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    /// The host is no name that a certificate could have.
    #[error("\"{0}\" is no name of a host")]
    Name(String),
    /// The host's name was not resolved.
    #[error("failed to resolve \"{host}\"")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No connection.
    #[error("failed to connect to {address} for \"{host}\"")]
    Connect {
        /// The name.
        host: String,
        /// The last address that was tried.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A redirect leads into a private network.
    #[error("redirect from a public address leads to \"{host}\" at {address}, which is none: refused")]
    Private {
        /// The name.
        host: String,
        /// Its address.
        address: IpAddr,
    },
    /// The endpoint did not prove itself.
    #[error("TLS handshake with {url} failed")]
    Handshake {
        /// The hop.
        url: EndpointUrl,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The request cannot be written.
    #[error("{url} cannot be requested")]
    Request {
        /// The hop.
        url: EndpointUrl,
        /// Why.
        #[source]
        source: http::Error,
    },
    /// The endpoint speaks no HTTP, or stopped.
    #[error("failed to read the answer of {url}")]
    Http {
        /// The hop.
        url: EndpointUrl,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answered with something else.
    #[error("{url} answered with status {status}")]
    Status {
        /// The hop.
        url: EndpointUrl,
        /// The status.
        status: StatusCode,
    },
    /// A redirect leads to no bundle endpoint.
    #[error("redirect of {url} cannot be followed")]
    Redirect {
        /// The hop.
        url: EndpointUrl,
        /// Why.
        #[source]
        source: EndpointUrlError,
    },
    /// Redirects do not end.
    #[error("more than {ENDPOINT_REDIRECTS} redirects")]
    TooManyRedirects,
    /// The answer does not end.
    #[error("the answer of {0} is larger than {FETCHED_DOCUMENT} bytes")]
    TooLarge(EndpointUrl),
    /// All of it took too long.
    #[error("took longer than {} seconds", FETCH_WITHIN.as_secs())]
    TimedOut,
    /// What came is no bundle.
    #[error("the answer is not a bundle")]
    Document(#[from] BundleDocumentError),
    /// The work was lost.
    #[error("the answer could not be read")]
    Lost(#[from] JoinError),
    /// There is nothing to fetch over.
    #[error("this server has no network")]
    NoNetwork,
}

/// Fetches over the machine's network.
pub(crate) struct Https {
    pub(crate) host: Host,
    pub(crate) roots: WebRoots,
}

impl Fetch for Https {
    fn fetch(&self, order: Order) -> Pin<Box<dyn Future<Output = Result<Bundle, FetchError>> + Send>> {
        let (host, roots) = (self.host.clone(), self.roots.clone());
        Box::pin(async move {
            timeout(FETCH_WITHIN, follow(order, host, roots)).await.unwrap_or(Err(FetchError::TimedOut))
        })
    }
}

/// Stands where there is no network.
pub(crate) struct NoNetwork;

impl Fetch for NoNetwork {
    fn fetch(&self, _: Order) -> Pin<Box<dyn Future<Output = Result<Bundle, FetchError>> + Send>> {
        Box::pin(async { Err(FetchError::NoNetwork) })
    }
}

/// What an endpoint answers.
enum Answer {
    Document(Bytes),
    Redirect(String),
}

/// Where a hop may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Where an operator says.
    Anywhere,
    /// Not into networks that only we can reach: a stranger says it.
    Public,
}

async fn follow(order: Order, host: Host, roots: WebRoots) -> Result<Bundle, FetchError> {
    let Order { relationship, proof } = order;
    let tls = match proof {
        Proof::Web => {
            let read = tokio::task::spawn_blocking(move || roots.load()).await;
            endpoint::web(read.unwrap_or(Err(RootsError::NoSystem))?, &host)
        }
        Proof::Spiffe { endpoint_id, bundle } => endpoint::spiffe(endpoint_id, bundle, &host),
    };
    let tls = TlsConnector::from(Arc::new(tls.map_err(FetchError::Tls)?));
    let (mut url, mut reach) = (relationship.url.clone(), Reach::Anywhere);
    for hop in 0..=ENDPOINT_REDIRECTS {
        let (stream, address) = dial(&url, reach).await?;
        match get(&url, &tls, stream).await? {
            Answer::Document(text) => {
                let trust_domain = relationship.trust_domain.clone();
                // Hundreds of certificates may be in it: not on the I/O threads.
                let read = move || Bundle::from_spiffe_json(trust_domain, &text);
                return Ok(tokio::task::spawn_blocking(read).await??);
            }
            Answer::Redirect(location) => {
                let next = url.redirect(&location);
                let next = next.map_err(|source| FetchError::Redirect { url: url.clone(), source })?;
                tracing::debug!(trust_domain = %relationship.trust_domain, from = %url, to = %next, "redirected");
                // Whoever federates within a private network may be led about in it.
                if hop == 0 && is_public(address) {
                    reach = Reach::Public;
                }
                url = next;
            }
        }
    }
    Err(FetchError::TooManyRedirects)
}

/// Connects to the first address that answers.
async fn dial(url: &EndpointUrl, reach: Reach) -> Result<(TcpStream, IpAddr), FetchError> {
    let host = || url.host().to_owned();
    let unresolved = |source| FetchError::Resolve { host: host(), source };
    let found = tokio::net::lookup_host((url.host(), url.port())).await.map_err(unresolved)?;
    let mut failed = unresolved(io::ErrorKind::NotFound.into());
    for address in found.take(ENDPOINT_ADDRESSES) {
        if reach == Reach::Public && !is_public(address.ip()) {
            failed = FetchError::Private { host: host(), address: address.ip() };
            continue;
        }
        let connected = timeout(ENDPOINT_CONNECT_WITHIN, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok((stream, address.ip())),
            Err(source) => failed = FetchError::Connect { host: host(), address, source },
        }
    }
    Err(failed)
}

async fn get(url: &EndpointUrl, tls: &TlsConnector, stream: TcpStream) -> Result<Answer, FetchError> {
    let name = ServerName::try_from(url.host().to_owned());
    let name = name.map_err(|_| FetchError::Name(url.host().to_owned()))?;
    let stream = tls
        .connect(name, stream)
        .await
        .map_err(|source| FetchError::Handshake { url: url.clone(), source })?;
    let unread = |source: Box<dyn std::error::Error + Send + Sync>| {
        if source.is::<LengthLimitError>() {
            return FetchError::TooLarge(url.clone());
        }
        FetchError::Http { url: url.clone(), source }
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(ENDPOINT_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unread(error.into()))?;
    let request = Request::get(url.target())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|source| FetchError::Request { url: url.clone(), source })?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| unread(error.into()))?;
        match response.status().as_u16() {
            200 => {
                let whole = Limited::new(response.into_body(), FETCHED_DOCUMENT).collect().await;
                Ok(Answer::Document(whole.map_err(unread)?.to_bytes()))
            }
            // One that calls itself permanent is followed, and forgotten, like any other (SPIFFE Federation 7.5.1).
            301 | 302 | 303 | 307 | 308 => {
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                Ok(Answer::Redirect(location.unwrap_or_default().to_owned()))
            }
            _ => Err(FetchError::Status { url: url.clone(), status: response.status() }),
        }
    };
    // The connection is driven as long as the exchange goes on, which learns by itself when it has failed.
    let driven = async {
        drop(connection.await);
        pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        answer = exchange => answer,
        never = driven => match never {},
    }
}

/// Whether anybody on the Internet could reach the address: what IANA's registries of special addresses do not say otherwise of.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let is_shared = first == 100 && (64..128).contains(&second);
    let is_of_protocols = (first, second, third) == (192, 0, 0);
    let is_of_benchmarks = first == 198 && matches!(second, 18 | 19);
    // From 224 on: to many, or reserved.
    !(first == 0
        || first >= 224
        || is_shared
        || is_of_protocols
        || is_of_benchmarks
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [.., high, low] = segments;
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    let embedded = Ipv4Addr::new(a, b, c, d);
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(embedded),
        // What is tunnelled by Teredo or 6to4 comes out elsewhere; the rest of the former is for protocols.
        [0x2001, second, ..] => second >= 0x200,
        [0x2002, ..] => false,
        // All else that was ever given out.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests;
