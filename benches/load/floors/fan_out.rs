//! What does bare tonic take for as many connections and messages? A server in a process of its own, with mutual TLS and
//! nothing behind it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use passant_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use passant_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use passant_tests::usage::Usage;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::secured::Secured;
use crate::clock;
use crate::control::{Asked, Part};
use crate::nodes::Nodes;

/// Handshakes that are worked on at the same time.
const HANDSHAKES: usize = 256;
/// Handshakes that are done, and wait for tonic.
const WAITING: usize = 64;
/// HTTP/2 windows, in bytes; passant-server's for agents.
const WINDOW: u32 = 256 * 1024;
/// The number of its certificate: that of no agent.
const NUMBER: usize = usize::MAX;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What the process is told at its start.
#[derive(Args, Clone, Debug)]
pub(crate) struct Serve {
    /// Where it is told what to do.
    #[arg(long)]
    control: PathBuf,
    /// The folder of the run.
    #[arg(long)]
    dir: PathBuf,
    /// Bytes of each message.
    #[arg(long)]
    size: usize,
}

/// What it is asked.
#[derive(Serialize, Deserialize)]
enum Question {
    /// Where it listens.
    Address,
    /// To send the message with this number on every stream.
    Send(u64),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Address(SocketAddr),
    /// When it began to send.
    Sent(f64),
}

/// The floor's server, seen from outside.
pub(crate) struct FanOut {
    part: Part,
    at: SocketAddr,
    sent: u64,
}

impl FanOut {
    /// Starts one for the nodes of the run in `dir`, whose messages have `size` bytes.
    pub(crate) async fn start(dir: &Path, size: usize) -> Result<Self> {
        let dir_text = dir.to_str().context("the folder's path is not UTF-8")?;
        let arguments = ["floor", "--dir", dir_text, "--size", &size.to_string()];
        let mut part = Part::start(&dir.join("floor.sock"), &arguments).await?;
        part.ask(&Question::Address).await?;
        let Answer::Address(at) = part.answer(ANSWER_WITHIN).await? else {
            bail!("the floor does not say where it listens")
        };
        Ok(Self { part, at, sent: 0 })
    }

    /// Where it listens.
    pub(crate) fn at(&self) -> SocketAddr {
        self.at
    }

    /// What it uses.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.part.pid())
    }

    /// Sends a message on every stream; its number, and when that began.
    pub(crate) async fn send(&mut self) -> Result<(u64, f64)> {
        self.sent += 1;
        self.part.ask(&Question::Send(self.sent)).await?;
        match self.part.answer(ANSWER_WITHIN).await? {
            Answer::Sent(at) => Ok((self.sent, at)),
            Answer::Address(_) => bail!("the floor does not say when it sent"),
        }
    }
}

/// The process itself.
pub(crate) async fn serve(told: &Serve) -> Result<()> {
    let nodes = Nodes::held(&told.dir)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls(&nodes)?));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let at = listener.local_addr()?;
    let number = watch::Sender::new(0);
    let bare = Bare { number: number.clone(), size: told.size };
    let (to, incoming) = mpsc::channel(WAITING);
    tokio::spawn(accept(listener, acceptor, to));
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_service(SpiffeWorkloadApiServer::new(bare));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
    let mut asked = Asked::at(&told.control).await?;
    while let Some(question) = asked.next::<Question>().await? {
        let answer = match question {
            Question::Address => Answer::Address(at),
            Question::Send(value) => {
                let at = clock::now();
                number.send_replace(value);
                Answer::Sent(at)
            }
        };
        asked.answer(Ok(answer)).await?;
    }
    Ok(())
}

fn tls(nodes: &Nodes) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in nodes.authorities() {
        roots.add(authority.clone())?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![nodes.certificate(NUMBER)?], nodes.private_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, to: mpsc::Sender<std::io::Result<Secured>>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok((tcp, _)) = listener.accept().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (acceptor, to) = (acceptor.clone(), to.clone());
        tokio::spawn(async move {
            let _place = place;
            if tcp.set_nodelay(true).is_err() {
                return;
            }
            // Who cannot connect says so itself.
            if let Ok(tls) = acceptor.accept(tcp).await {
                drop(to.send(Ok(Secured(tls))).await);
            }
        });
    }
}

/// Sends what it is given, and looks at nothing.
struct Bare {
    number: watch::Sender<u64>,
    size: usize,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Bare {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<WitsvidResponse>;
    type FetchWITBundlesStream = Answers<WitBundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let size = self.size;
        let message = move |number: u64| {
            let bundles = BTreeMap::from([(number.to_string(), vec![b'x'; size])]);
            Ok(X509BundlesResponse { bundles, ..X509BundlesResponse::default() })
        };
        Ok(Response::new(Box::pin(WatchStream::new(self.number.subscribe()).map(message))))
    }

    async fn fetch_jwtsvid(
        &self,
        _request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let svid = Jwtsvid { spiffe_id: String::new(), svid: "x".repeat(self.size), hint: String::new() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    async fn fetch_x509svid(
        &self,
        _request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Err(not_part_of_the_floor())
    }

    async fn fetch_jwt_bundles(
        &self,
        _request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(not_part_of_the_floor())
    }

    async fn validate_jwtsvid(
        &self,
        _request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(not_part_of_the_floor())
    }

    async fn fetch_witsvid(
        &self,
        _request: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(not_part_of_the_floor())
    }

    async fn fetch_wit_bundles(
        &self,
        _request: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(not_part_of_the_floor())
    }
}

fn not_part_of_the_floor() -> Status {
    Status::unimplemented("not part of the floor")
}
