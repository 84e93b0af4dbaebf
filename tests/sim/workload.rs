//! What does a workload do? It follows its X509-SVIDs, asks for a token now and then, and comes back when it is cut off.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use passant_agent::workload_api::Arrival;
use passant_attest::peer::{Listed, Peer};
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use passant_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest};
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::log::Log;
use crate::net::{End, Link};
use crate::oracle::Oracle;
use crate::process::Process;
use crate::rng::Rng;
use crate::settings;

/// Where the workloads of a node connect, while its agent runs.
#[derive(Clone, Default)]
pub(crate) struct Socket(Arc<Mutex<Option<mpsc::Sender<Arrival>>>>);

impl Socket {
    pub(crate) fn open(&self) -> mpsc::Receiver<Arrival> {
        let (to, arrivals) = mpsc::channel(64);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
        arrivals
    }

    pub(crate) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn connect(&self, link: &Link, process: &Arc<Process>) -> Option<End> {
        let to = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (near, far) = link.pair();
        let peer = Peer::listed(Arc::clone(process) as Arc<dyn Listed>);
        to.send(Arrival { stream: Box::new(far), peer }).await.ok()?;
        Some(near)
    }
}

/// One workload.
pub(crate) struct Workload {
    pub(crate) process: Arc<Process>,
    pub(crate) place: usize,
    pub(crate) socket: Socket,
    /// The unix socket's own; nothing happens to it but that one end dies.
    pub(crate) link: Link,
    pub(crate) oracle: Oracle,
    pub(crate) log: Log,
    pub(crate) rng: Rng,
}

impl Workload {
    /// Lives until its process exits.
    pub(crate) async fn live(mut self) {
        let exit = self.process.exit.clone();
        tokio::select! {
            biased;
            () = exit.cancelled() => {}
            () = self.follow() => {}
        }
        self.oracle.exited(&self.process);
    }

    async fn follow(&mut self) {
        loop {
            if let Some(end) = self.socket.connect(&self.link, &self.process).await
                && let Ok(channel) = over(end).await
            {
                self.oracle.connected(self.place, &self.process);
                let ended = self.stream(SpiffeWorkloadApiClient::new(channel)).await.err();
                self.oracle.ended(&self.process, ended.as_ref());
                // Who is told that it has no identity is in no hurry.
                if ended.is_some_and(|status| status.code() == Code::PermissionDenied) {
                    tokio::time::sleep(self.rng.millis(1000, 9000)).await;
                }
            }
            tokio::time::sleep(self.rng.millis(500, 4000)).await;
        }
    }

    async fn stream(&mut self, mut api: SpiffeWorkloadApiClient<Channel>) -> Result<(), Status> {
        let mut answers = api.fetch_x509svid(meant_for_us(X509svidRequest {})).await?.into_inner();
        let mut ask = Box::pin(tokio::time::sleep(self.rng.millis(5_000, 60_000)));
        loop {
            tokio::select! {
                biased;
                answer = answers.message() => match answer? {
                    Some(answer) => self.oracle.delivered(&self.process, &answer),
                    None => return Ok(()),
                },
                () = &mut ask => {
                    ask = Box::pin(tokio::time::sleep(self.rng.millis(30_000, 120_000)));
                    tokio::spawn(token(api.clone(), Arc::clone(&self.process), self.oracle.clone(), self.log.clone()));
                }
            }
        }
    }
}

/// Asks for a token, and has it validated.
async fn token(mut api: SpiffeWorkloadApiClient<Channel>, process: Arc<Process>, oracle: Oracle, log: Log) {
    let request = JwtsvidRequest { audience: vec![settings::AUDIENCE.to_owned()], spiffe_id: String::new() };
    let answer = match api.fetch_jwtsvid(meant_for_us(request)).await {
        Ok(answer) => answer.into_inner(),
        Err(_) => return log.count("tokens not had"),
    };
    // A process that has exited meanwhile reads nothing any more.
    if process.exit.is_cancelled() {
        return;
    }
    // They came together: what the agent says of the first must not make the others older.
    answer.svids.iter().for_each(|svid| oracle.delivered_token(&process, &svid.svid));
    for svid in answer.svids {
        if process.exit.is_cancelled() {
            return;
        }
        let request = ValidateJwtsvidRequest { audience: settings::AUDIENCE.to_owned(), svid: svid.svid };
        log.count(match api.validate_jwtsvid(meant_for_us(request)).await {
            Ok(_) => "tokens validated by the agent",
            Err(_) => "tokens not validated by the agent",
        });
    }
}

fn meant_for_us<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// A channel over one connection, which is not made again.
pub(crate) async fn over(end: End) -> Result<Channel, tonic::transport::Error> {
    let end = Mutex::new(Some(end));
    let connect = tower::service_fn(move |_| {
        let end = end.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(end.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://localhost").timeout(CALL).connect_with_connector(connect).await
}

/// Nobody waits longer for an answer. Streams do not count: their answer is their beginning.
const CALL: Duration = Duration::from_secs(30);
