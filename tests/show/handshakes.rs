//! Do the workloads of two agents verify each other all the time?

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest};
use passant_tests::api::{with_header, workload_api};
use passant_tests::site::TRUST_DOMAIN;
use serde_json::Value;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::peers::{Peer, Program};

/// How often they shake hands.
const SHAKE_EVERY: Duration = Duration::from_secs(4);
/// Of their JWT-SVIDs.
pub(crate) const AUDIENCE: &str = "spire";
/// What this program is, at both agents.
pub(crate) const SHOW: &str = "/show";

/// A foreign program with an entry of its own, whose SPIFFE ID path is its name.
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) peer: Peer,
    pub(crate) name: String,
    pub(crate) program: Program,
    /// The Workload API of its agent.
    pub(crate) socket: PathBuf,
}

/// The programs of two agents, verifying each other until told to end.
pub(crate) struct Handshakes {
    is_over: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Handshakes {
    /// Each of `ends` as a server, and as clients those of the other agent that speak another language; and JWT-SVIDs between
    /// the agents behind `sockets`.
    pub(crate) fn start(ends: &[End], sockets: &[PathBuf; 2]) -> Self {
        let mut pairs = Vec::new();
        for server in ends {
            let others = ends.iter().filter(|one| one.peer != server.peer && one.socket != server.socket);
            pairs.extend(others.map(|client| (server.clone(), client.clone())));
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(look(pairs, sockets.clone(), Arc::clone(&is_over)));
        Self { is_over, task }
    }

    /// How often they verified each other, and what was wrong.
    ///
    /// # Errors
    /// When it was too seldom to say anything.
    pub(crate) async fn end(self) -> anyhow::Result<(usize, Vec<String>)> {
        self.is_over.store(true, Ordering::SeqCst);
        let (looks, wrong) = self.task.await?;
        ensure!(looks >= 20, "they verified each other only {looks} times");
        Ok((looks, wrong))
    }
}

async fn look(
    pairs: Vec<(End, End)>,
    sockets: [PathBuf; 2],
    is_over: Arc<AtomicBool>,
) -> (usize, Vec<String>) {
    let (mut looks, mut wrong) = (0, Vec::new());
    let mut ticks = tokio::time::interval(SHAKE_EVERY);
    while !is_over.load(Ordering::SeqCst) {
        ticks.tick().await;
        for (server, client) in pairs.clone() {
            let what = format!("{} as server, {} as client", server.name, client.name);
            let shaken = tokio::task::spawn_blocking(move || shake(&server, &client)).await;
            if let Err(why) = shaken.map_err(anyhow::Error::from).flatten() {
                wrong.push(format!("{what}: {why:#}"));
            }
            looks += 1;
        }
        let [one, other] = &sockets;
        for (of, at) in [(one, other), (other, one)] {
            if let Err(why) = validated(of, at).await {
                wrong.push(format!("a JWT-SVID of {} at {}: {why:#}", of.display(), at.display()));
            }
            looks += 1;
        }
    }
    (looks, wrong)
}

/// One server, one client, one line each way.
fn shake(server: &End, client: &End) -> anyhow::Result<()> {
    let id = |end: &End| spiffe_id(&format!("/{}", end.name));
    let mut serving = server.program.command(&server.socket);
    serving.args(["mtls-server", "--count", "1", "--authorize", &id(client)]);
    let mut serving = serving.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(serving.stdout.take().context("its output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    let spoken = serde_json::from_str::<Value>(&line).ok().and_then(|said| {
        let address = said["address"].as_str()?.to_owned();
        let mut calling = client.program.command(&client.socket);
        calling.args(["mtls-client", "--addr", &address, "--authorize", &id(server)]);
        Some(calling.stdin(Stdio::null()).output())
    });
    let Some(spoken) = spoken else {
        let mut why = String::new();
        serving.stderr.take().context("its errors")?.read_to_string(&mut why)?;
        serving.wait()?;
        anyhow::bail!("the server did not start: {}", why.trim());
    };
    let spoken = spoken?;
    if !spoken.status.success() {
        // It may wait for a client that never came.
        serving.kill()?;
    }
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    serving.wait()?;
    let said = String::from_utf8_lossy(&spoken.stderr);
    ensure!(spoken.status.success(), "the client: {}; the server: {}", said.trim(), rest.trim());
    let heard: Value = serde_json::from_str(&rest)?;
    ensure!(heard["peer_id"] == id(client), "the server heard {heard}");
    Ok(())
}

/// A JWT-SVID of one agent, validated by another.
///
/// # Errors
/// When there is none, or it is not valid there.
pub(crate) async fn validated(of: &Path, at: &Path) -> anyhow::Result<()> {
    let svid = match token(of).await {
        Ok(svid) => svid,
        Err(why) => return Err(why.context("fetch it")),
    };
    let request = ValidateJwtsvidRequest { audience: AUDIENCE.to_owned(), svid };
    match workload_api(at).await?.validate_jwtsvid(with_header(request)).await {
        Ok(valid) => {
            ensure!(valid.get_ref().spiffe_id == spiffe_id(SHOW), "it is of {}", valid.get_ref().spiffe_id);
            Ok(())
        }
        Err(status) if status.code() == Code::InvalidArgument => {
            anyhow::bail!("it is invalid: {}", status.message())
        }
        Err(status) => Err(status.into()),
    }
}

/// A JWT-SVID of this program.
///
/// # Errors
/// When the agent gives none.
pub(crate) async fn token(socket: &Path) -> anyhow::Result<String> {
    let request = JwtsvidRequest { audience: vec![AUDIENCE.to_owned()], spiffe_id: spiffe_id(SHOW) };
    let answer = workload_api(socket).await?.fetch_jwtsvid(with_header(request)).await?.into_inner();
    Ok(answer.svids.into_iter().next().context("no JWT-SVID")?.svid)
}

/// The SPIFFE ID with this path.
pub(crate) fn spiffe_id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}{path}")
}
