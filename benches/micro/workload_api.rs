//! What does a workload wait for its SVIDs, beside what gRPC takes anyway?
//!
//! A real server and a real agent run in this process, on a runtime with one thread; the bare service runs on the same
//! one. The workload is this thread.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use passant_agent::Agent;
use passant_core::Host;
use passant_proto::agent::CreateJoinTokenRequest;
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::types;
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use passant_proto::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use passant_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest, WitsvidResponse,
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use passant_server::Server;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::clock;
use crate::lab::Lab;
use crate::place::Place;
use crate::row::{Row, Unit, median};

pub(crate) const FETCH: Row = Row {
    key: "fetch",
    ours: "FetchX509SVID on an open connection, until the first message: SVID cached, process looked at",
    floor: "bare tonic: a unary call with an answer of the same size; both by p50",
    aim: Some(1.5),
    unit: Unit::WallTime,
};

pub(crate) const OPEN_STREAM: Row = Row {
    key: "open-stream",
    ours: "the same",
    floor: "bare tonic: a server stream, until its first message of the same size; both by p50",
    aim: None,
    unit: Unit::WallTime,
};

pub(crate) const FETCH_TOKEN: Row = Row {
    key: "fetch-jwt",
    ours: "FetchJWTSVID on an open connection: JWT-SVID cached, process looked at",
    floor: "bare tonic: a unary call with an answer of the same size; both by p50",
    aim: None,
    unit: Unit::WallTime,
};

/// How long server and agent may take until they serve this process.
const SERVED_TRIES: u32 = 600;
const SERVED_AGAIN: Duration = Duration::from_millis(50);

const AUDIENCE: &str = "reports";

type Workloads = SpiffeWorkloadApiClient<Channel>;

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    if ![&FETCH, &OPEN_STREAM, &FETCH_TOKEN].iter().any(|row| lab.wants(row)) {
        return Ok(());
    }
    let daemons = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let workload = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let site = daemons.block_on(Site::start(&lab.place))?;
    let mut ours =
        workload.block_on(async { Ok::<_, anyhow::Error>(Workloads::new(channel(&site.socket).await?)) })?;
    let svids = workload.block_on(served(&mut ours))?;
    let tokens = workload.block_on(token(&mut ours))?;

    let mut floors = Vec::new();
    for (name, svids, size) in
        [("svids", svids.clone(), svids.encoded_len()), ("tokens", svids, tokens.encoded_len())]
    {
        let socket = lab.place.path(&format!("{name}.sock"));
        daemons.block_on(bare(&socket, svids, size))?;
        floors.push(
            workload.block_on(async { Ok::<_, anyhow::Error>(Workloads::new(channel(&socket).await?)) })?,
        );
    }
    let [mut with_svids, mut with_tokens] =
        <[_; 2]>::try_from(floors).map_err(|_| anyhow::anyhow!("there are two floors"))?;

    let first = |client: &mut Workloads, times| {
        p50(&workload, times, client, async |client| {
            let mut stream = client.fetch_x509svid(asked(X509svidRequest {})).await?.into_inner();
            stream.message().await?.ok_or_else(|| Status::internal("no message came"))
        })
    };
    let unary =
        |client: &mut Workloads, times| p50(&workload, times, client, async |client| token_of(client).await);
    lab.turns(&FETCH, |times| unary(&mut with_svids, times), |times| first(&mut ours, times))?;
    lab.turns(&OPEN_STREAM, |times| first(&mut with_svids, times), |times| first(&mut ours, times))?;
    lab.turns(&FETCH_TOKEN, |times| unary(&mut with_tokens, times), |times| unary(&mut ours, times))?;
    daemons.block_on(site.stop());
    Ok(())
}

/// `times` times the p50 of as many calls: what criterion divides by `times` is then the p50.
fn p50<T>(
    workload: &Runtime,
    times: u64,
    client: &mut Workloads,
    call: impl AsyncFn(&mut Workloads) -> Result<T, Status>,
) -> Duration {
    let took = workload.block_on(async {
        let mut took = Vec::new();
        for _ in 0..times {
            let began = clock::now();
            call(client).await.expect("it was answered a moment ago");
            took.push(clock::now().saturating_sub(began).as_secs_f64());
        }
        took
    });
    #[expect(clippy::cast_precision_loss, reason = "nobody calls so often")]
    let times = times as f64;
    Duration::from_secs_f64(median(took).unwrap_or_default() * times)
}

/// With the header that the Workload API asks for.
fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

async fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connect = move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    };
    Ok(Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(connect)).await?)
}

/// What the agent serves this process, once it does.
async fn served(client: &mut Workloads) -> Result<X509svidResponse> {
    let mut last = None;
    for _ in 0..SERVED_TRIES {
        match client.fetch_x509svid(asked(X509svidRequest {})).await {
            Ok(stream) => {
                return stream.into_inner().message().await?.context("the stream ended without a message");
            }
            Err(status) => last = Some(status),
        }
        tokio::time::sleep(SERVED_AGAIN).await;
    }
    bail!("the agent does not serve this process: {last:?}")
}

async fn token(client: &mut Workloads) -> Result<JwtsvidResponse> {
    token_of(client).await.context("the agent does not serve this process a JWT-SVID")
}

async fn token_of(client: &mut Workloads) -> Result<JwtsvidResponse, Status> {
    let request = JwtsvidRequest { audience: vec![AUDIENCE.to_owned()], spiffe_id: String::new() };
    Ok(client.fetch_jwtsvid(asked(request)).await?.into_inner())
}

/// A server, and an agent with an entry for this process.
struct Site {
    server: passant_server::Running,
    agent: passant_agent::Running,
    socket: PathBuf,
}

impl Site {
    async fn start(place: &Place) -> Result<Self> {
        let host = Host::system();
        let dir = place.dir("site")?;
        let shown = dir.display();
        let config = format!(
            "trust_domain = \"bench.example.org\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\nkeys = \"memory\"\n\
             [socket]\npath = \"{shown}/server.sock\"\n"
        );
        let server =
            Server::start(passant_server::Config::parse(&config, "server.toml")?, host.clone()).await?;
        fs::write(dir.join("bundle.pem"), server.bundle().to_pem())?;
        let operator = channel(server.socket()).await?;
        let node = types::Spiffeid { trust_domain: "bench.example.org".to_owned(), path: "/node".to_owned() };
        let request = CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: Some(node.clone()) };
        let token = AgentClient::new(operator.clone()).create_join_token(request).await?.into_inner().value;
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(dir.join("join-token"))?;
        file.write_all(token.as_bytes())?;
        register(operator, node).await?;
        let config = format!(
            "trust_domain = \"bench.example.org\"\ndata_dir = \"{shown}/agent\"\nserver_address = \"{}\"\n\
             [bootstrap]\nbundle = \"{shown}/bundle.pem\"\n[node_attestor]\nmethod = \"join_token\"\n\
             join_token_file = \"{shown}/join-token\"\n[workload_api]\nsocket = \"{shown}/agent.sock\"\n",
            server.address(),
        );
        let agent = Agent::start(passant_agent::config::Config::parse("agent.toml", &config)?, host).await?;
        let socket = agent.socket().to_owned();
        Ok(Self { server, agent, socket })
    }

    async fn stop(self) {
        self.agent.shutdown().await;
        self.server.shutdown().await;
    }
}

/// Registers an entry for the user of this process.
async fn register(operator: Channel, node: types::Spiffeid) -> Result<()> {
    let uid = nix::unistd::getuid();
    let workload = types::Spiffeid { path: "/ns/reports/sa/builder".to_owned(), ..node.clone() };
    let entry = types::Entry {
        spiffe_id: Some(workload),
        parent_id: Some(node),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
        ..types::Entry::default()
    };
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    EntryClient::new(operator).batch_create_entry(request).await?;
    Ok(())
}

/// Serves [`Bare`] on `socket` for as long as the runtime lives.
async fn bare(socket: &Path, svids: X509svidResponse, size: usize) -> Result<()> {
    let incoming = UnixListenerStream::new(UnixListener::bind(socket)?);
    // The same message, but for the size of its one text. A few bytes more or less for its length do not matter.
    let token = Jwtsvid { spiffe_id: String::new(), svid: "x".repeat(size), hint: String::new() };
    let service = Bare { svids: Arc::new(svids), token: JwtsvidResponse { svids: vec![token] } };
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(SpiffeWorkloadApiServer::new(service))
            .serve_with_incoming(incoming),
    );
    Ok(())
}

/// Answers at once what it was given, and looks at nothing.
struct Bare {
    svids: Arc<X509svidResponse>,
    token: JwtsvidResponse,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Bare {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<WitsvidResponse>;
    type FetchWITBundlesStream = Answers<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let first = tokio_stream::once(Ok(X509svidResponse::clone(&self.svids)));
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }

    async fn fetch_jwtsvid(
        &self,
        _request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        Ok(Response::new(self.token.clone()))
    }

    async fn fetch_x509_bundles(
        &self,
        _request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
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
