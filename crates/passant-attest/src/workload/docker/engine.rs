//! How is a container engine asked for one container?
//!
//! By the HTTP interface that Docker has and Podman copies, over a unix socket. Each question has a connection of its
//! own, so that an engine that was restarted is asked like any other. Versions are negotiated as clients of Docker do: the
//! engine says which it speaks, and the older of that and ours is spoken. Answers are bounded.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use http::header::HOST;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use crate::cgroup::ContainerId;
use crate::limits::{ENGINE_ANSWER_BYTES, ENGINE_HEADER_BYTES, ENGINE_MESSAGE_CHARS};

/// The newest version of the interface that is spoken; what is asked for has been there since the first.
const NEWEST: ApiVersion = ApiVersion { major: 1, minor: 51 };

/// One engine, by its socket.
pub(super) struct Engine {
    socket: PathBuf,
    /// Who has to be at the other end, where it matters; root may be too.
    user: Option<u32>,
}

/// What an engine says of a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    #[serde(deserialize_with = "parsed")]
    pub(super) id: ContainerId,
    state: State,
    /// The image's ID, `sha256:` and hexadecimal digits.
    #[serde(default, deserialize_with = "digest")]
    pub(super) image: Option<String>,
    pub(super) config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: i64,
}

/// How the container was made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    /// Each `NAME=VALUE`.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    /// The image's name, as whoever made the container wrote it.
    #[serde(default)]
    pub(super) image: Option<String>,
}

/// Why an engine did not tell.
#[derive(Debug, Error)]
pub(super) enum EngineError {
    /// It does not know the container.
    #[error("no such container")]
    Unknown,
    /// Nobody is at the socket.
    #[error("failed to connect: see that the engine runs and that the agent may use its socket")]
    Connect(#[source] io::Error),
    /// Somebody else is.
    #[error("the socket is of user {found}, expected {expected}")]
    Stranger { found: u32, expected: u32 },
    /// It did not answer within the time that it has.
    #[error("it did not answer in time")]
    Late,
    /// It does not speak HTTP, or stopped.
    #[error("failed to read its answer")]
    Http(#[from] hyper::Error),
    /// The answer is too long, or was cut off.
    #[error("failed to read its answer, of which at most {ENGINE_ANSWER_BYTES} bytes are read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It says which version it speaks, but not as engines do.
    #[error("it speaks no version of the interface that could be told: {0:?}")]
    Version(String),
    /// It refuses.
    #[error("it answered with status {status}: {message:?}")]
    Status { status: StatusCode, message: String },
    /// The answer is not as the interface describes it.
    #[error("its answer is not as expected")]
    Answer(#[source] serde_json::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion {
    major: u16,
    minor: u16,
}

/// An open connection; closed when dropped.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Engine {
    /// The engine at `socket`, whoever runs it.
    pub(super) const fn new(socket: PathBuf) -> Self {
        Self { socket, user: None }
    }

    /// The engine at `socket` that `uid` runs.
    pub(super) const fn of_user(socket: PathBuf, uid: u32) -> Self {
        Self { socket, user: Some(uid) }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the engine says of the container `id` now. The caller sets the time limit.
    pub(super) async fn inspect(&self, id: &ContainerId) -> Result<Container, EngineError> {
        let mut connection = self.connect().await?;
        let hello = connection.get("/_ping".to_owned()).await?;
        let version = hello.headers().get("api-version").map(|version| version.as_bytes().to_vec());
        // To its end, so that the connection can be used again.
        body_of(hello).await?;
        let path = match version {
            Some(version) => format!("/v{}/containers/{id}/json", ApiVersion::parse(&version)?.min(NEWEST)),
            None => format!("/containers/{id}/json"),
        };
        let answer = connection.get(path).await?;
        let status = answer.status();
        let body = body_of(answer).await?;
        match status {
            StatusCode::OK => read(&body),
            StatusCode::NOT_FOUND => Err(EngineError::Unknown),
            status => Err(EngineError::Status { status, message: message_in(&body) }),
        }
    }

    async fn connect(&self) -> Result<Connection, EngineError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(EngineError::Connect)?;
        if let Some(expected) = self.user {
            let found = stream.peer_cred().map_err(EngineError::Connect)?.uid();
            if found != expected && found != 0 {
                return Err(EngineError::Stranger { found, expected });
            }
        }
        let mut builder = http1::Builder::new();
        builder.max_buf_size(ENGINE_HEADER_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // What ends it is told to whoever waits for an answer.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Connection { sender, driver })
    }
}

impl Connection {
    async fn get(&mut self, path: String) -> Result<Response<Incoming>, EngineError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = path.parse().expect("a container ID and a version are digits and letters");
        request.headers_mut().insert(HOST, http::HeaderValue::from_static("localhost"));
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

impl Container {
    /// The process that the container began with, while it runs.
    pub(super) fn first_process(&self) -> Option<u32> {
        let pid = u32::try_from(self.state.pid).ok().filter(|pid| *pid != 0);
        pid.filter(|_| self.state.running)
    }
}

impl ApiVersion {
    /// Reads `MAJOR.MINOR`.
    fn parse(text: &[u8]) -> Result<Self, EngineError> {
        let parsed = str::from_utf8(text).ok().and_then(|text| text.trim().split_once('.'));
        let parsed = parsed
            .and_then(|(major, minor)| Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? }));
        parsed.ok_or_else(|| EngineError::Version(shortened(&String::from_utf8_lossy(text))))
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

async fn body_of(answer: Response<Incoming>) -> Result<Bytes, EngineError> {
    let body = Limited::new(answer.into_body(), ENGINE_ANSWER_BYTES).collect().await;
    Ok(body.map_err(EngineError::Body)?.to_bytes())
}

fn read(body: &[u8]) -> Result<Container, EngineError> {
    serde_json::from_slice(body).map_err(EngineError::Answer)
}

/// The text of `{"message": "..."}`, or the beginning of whatever is there.
fn message_in(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Fault {
        message: String,
    }

    let said = serde_json::from_slice(body).map(|Fault { message }| message);
    shortened(&said.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned()))
}

fn shortened(text: &str) -> String {
    text.chars().take(ENGINE_MESSAGE_CHARS).collect()
}

fn parsed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ContainerId, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Engines leave out the algorithm at times. What is no digest at all is left out.
fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    let digits = text.strip_prefix("sha256:").unwrap_or(&text);
    Ok(digits.parse::<ContainerId>().ok().map(|digits| format!("sha256:{digits}")))
}

/// `null` stands for an empty list or map.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
