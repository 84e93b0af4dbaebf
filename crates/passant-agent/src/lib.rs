//! The node agent: attests its node, keeps the SVIDs of its workloads fresh, and serves them.
//!
//! | question | file |
//! |---|---|
//! | what may an operator configure? | [`config`] |
//! | how is the server reached and known? | [`connect`] |
//! | how does the node come by its own SVID, and keep it? | `node` |
//! | how does the agent hear at once of what has changed? | `push` |
//! | when is a server asked that cannot push, and what does it say? | `drive`, `sync` |
//! | what may each workload see, and when does it hear of a change? | [`cache`] |
//! | which SVIDs must be minted or dropped now, and how are they had? | `plan`, `act` |
//! | what is a server told of the process that asks? | `grounds` |
//! | which JWT-SVID does a workload get? | [`jwt_cache`] |
//! | what is wrong with this agent right now? | [`health`] |
//! | which selectors does a peer have? | `attest` |
//! | how do workloads get their SVIDs? | [`workload_api`] |
//! | why has a process no identity, and who may ask that? | `explain`, `admin` |
//! | what is bounded, and why? | [`limits`] |
//! | what is counted and timed? | [`metrics`] |
//! | can it be relied on? | `vitals` |
//!
//! Four tasks run: one drives (the node's own SVID, and polls where need be), one watches the server, one mints, one serves
//! the Workload API. They share the [`cache::Cache`] and the link to the server, and little else.

mod act;
mod admin;
mod attest;
mod backoff;
pub mod cache;
pub mod config;
pub mod connect;
mod drive;
mod explain;
mod grounds;
pub mod health;
pub mod jwt_cache;
pub mod limits;
pub mod metrics;
mod node;
mod plan;
mod push;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trust;
mod vitals;
pub mod workload_api;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use passant_attest::workload::WorkloadAttestor;
use passant_core::{Host, Instance};
use passant_daemon::grpc::{Health as GrpcHealth, ReflectionError, add_reflection};
use passant_daemon::private_socket::PlaceError;
use passant_daemon::probe::{ProbeError, Probing};
use passant_daemon::process;
use passant_daemon::run::Daemon;
use passant_daemon::vitals::{Parts as LiveParts, Readiness, Vitals};
use passant_proto::descriptors;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tracing::{error, info};

use crate::act::{Minter, ServerJwt};
use crate::admin::Admin;
use crate::cache::Cache;
use crate::config::{Bootstrap, Config, FileError};
use crate::connect::{Link, Network, Route, Tcp};
use crate::drive::Driver;
use crate::health::{Health, HealthReport};
use crate::metrics::Metrics;
use crate::node::{DataDir, Node, OpenError};
use crate::push::{Push, Ties};
use crate::vitals::AgentVitals;
use crate::workload_api::{Arrival, Endpoint};

pub use crate::node::{Damage, DataError, Disk, Stored, Unusable};
pub use crate::workload_api::ListenError;

/// An agent that is yet to run.
#[derive(Debug)]
pub struct Agent;

/// An agent that runs. Dropping it stops it without waiting; [`Running::shutdown`] waits.
pub struct Running {
    socket: PathBuf,
    health: watch::Receiver<HealthReport>,
    vitals: Arc<AgentVitals>,
    /// Until the process ends: who looks meanwhile reads that it stops.
    probing: Option<Probing>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
    tasks: JoinSet<()>,
}

/// Why an agent cannot start: its configuration or its machine is at fault, never its server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The bundle to begin with cannot be read.
    #[error(transparent)]
    Bootstrap(FileError),
    /// The port for probes cannot be listened on.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The program is at fault.
    #[error("failed to describe the Workload API")]
    Internal(#[from] ReflectionError),
    /// The admin socket cannot be listened on.
    #[error("failed to serve the admin socket")]
    Admin(#[from] PlaceError),
    /// The socket cannot be listened on.
    #[error("failed to serve the Workload API")]
    Listen(#[from] ListenError),
}

impl Agent {
    /// Starts an agent; must be called within a tokio runtime. It returns once the Workload API can be connected to, not
    /// once it is ready: the server may be away for as long as it likes.
    ///
    /// # Errors
    /// When the data directory, the bootstrap bundle or the socket cannot be used.
    pub async fn start(config: Config, host: Host) -> Result<Running, StartError> {
        // At once, so that it can be seen to live.
        let probing = Probing::begin(config.probe).await?;
        let data = DataDir::open(&config.data_dir, &config.trust_domain)?;
        let attestors = config.workload_attestors.iter();
        let attestors = attestors.map(|method| Arc::from(method.clone().attestor(&host))).collect();
        let metrics = Arc::new(Metrics::default());
        let boot_id = boot_id(&host);
        let settings = settings(&config, attestors, boot_id.clone(), &metrics);
        let admin_socket = config.admin_socket.clone();
        let parts = Parts::assemble(config, host.clone(), data, Route::Tls(Arc::new(Tcp)), metrics)?;
        let endpoint = Endpoint::bind(settings, parts.cache.clone(), host)?;
        let admin =
            admin_socket.map(|path| Admin::bind(&path, endpoint.attestation(), boot_id)).transpose()?;
        let mut running = parts.run(endpoint, admin).await?;
        if let Some(probing) = &probing {
            probing.watch(Arc::<AgentVitals>::clone(&running.vitals));
        }
        running.probing = probing;
        Ok(running)
    }

    /// Starts an agent that touches nothing of the machine: all it would find there is in `stage`.
    ///
    /// # Errors
    /// When the bootstrap bundle or what is stored cannot be used.
    pub async fn start_on(stage: Stage, config: Config, host: Host) -> Result<Running, StartError> {
        let data = DataDir::on(stage.disk, &config.trust_domain);
        let metrics = Arc::new(Metrics::default());
        let settings = settings(&config, stage.attestors, STAGE_BOOT.to_owned(), &metrics);
        let parts = Parts::assemble(config, host.clone(), data, Route::Plain(stage.network), metrics)?;
        let endpoint = Endpoint::over(stage.workloads, settings, parts.cache.clone(), host);
        parts.run(endpoint, None).await
    }
}

/// What stands for the machine in a simulation.
pub struct Stage {
    /// The way to the server.
    pub network: Arc<dyn Network>,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// Who finds out facts about workloads.
    pub attestors: Vec<Arc<dyn WorkloadAttestor>>,
    /// The connections of workloads.
    pub workloads: mpsc::Receiver<Arrival>,
}

fn settings(
    config: &Config,
    attestors: Vec<Arc<dyn WorkloadAttestor>>,
    boot_id: String,
    metrics: &Arc<Metrics>,
) -> workload_api::Settings {
    workload_api::Settings {
        socket: config.workload_api.socket.clone(),
        attestors,
        evidence_max_age: config.evidence_max_age,
        allowed_foreign_claims: config.workload_api.allowed_foreign_jwt_claims.clone(),
        boot_id,
        sds: config.sds.clone(),
        metrics: Arc::clone(metrics),
    }
}

/// The boot of a machine that is none.
const STAGE_BOOT: &str = "stage";

/// What the kernel calls this boot. Where it does not tell, no other boot is mistaken for this run of the agent.
fn boot_id(host: &Host) -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let id = read.as_deref().map(str::trim).unwrap_or_default();
    match Instance::new(id, 1, 0) {
        Ok(_) => id.to_owned(),
        Err(_) => host.uuid(),
    }
}

/// What talks to the server, put together and not yet running.
struct Parts {
    socket: PathBuf,
    serves_secrets: bool,
    cache: Cache,
    vitals: Arc<AgentVitals>,
    driver: Driver,
    push: Push,
    minter: Minter,
    health: watch::Receiver<HealthReport>,
}

impl Parts {
    fn assemble(
        config: Config,
        host: Host,
        data: DataDir,
        route: Route,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let trust_domain = config.trust_domain;
        let insecure = matches!(config.bootstrap, Bootstrap::Insecure);
        let link = Link::new(
            config.server_address,
            &trust_domain,
            insecure,
            route,
            host.clone(),
            Arc::clone(&metrics),
        );
        let resync = Arc::new(Notify::new());
        let issuer = Arc::new(ServerJwt::new(link.clone(), Arc::clone(&resync)));
        let cache = Cache::new(trust_domain.clone(), host.clone(), issuer);
        let health = Health::new();
        let node = Node::open(
            trust_domain.clone(),
            config.node_attestor,
            config.bootstrap,
            config.x509_key_type,
            data,
            link.clone(),
            cache.clone(),
            health.clone(),
            host.clone(),
        )?;
        let minter = Minter::new(
            link.clone(),
            cache.clone(),
            host.clone(),
            health.clone(),
            config.x509_key_type,
            Arc::clone(&resync),
        );
        let watch = health.watch();
        let sync_interval = config.sync_interval;
        let vitals = Arc::new(AgentVitals {
            health: health.watch(),
            cache: cache.clone(),
            link: link.clone(),
            host: host.clone(),
            parts: LiveParts::default(),
            registries: vec![metrics.registry(&cache, &link, &host), process::registry(host.now())],
        });
        let ties = Arc::new(Ties::default());
        let push = Push::new(
            trust_domain.clone(),
            host.clone(),
            link.clone(),
            cache.clone(),
            health.clone(),
            Arc::clone(&ties),
        );
        let driver = Driver {
            trust_domain,
            host,
            link,
            cache: cache.clone(),
            health,
            node,
            sync_interval,
            resync,
            ties,
        };
        let (socket, serves_secrets) = (config.workload_api.socket, config.sds.is_some());
        Ok(Self { socket, serves_secrets, cache, vitals, driver, push, minter, health: watch })
    }

    async fn run(self, endpoint: Endpoint, admin: Option<Admin>) -> Result<Running, StartError> {
        let (services, described): (&[&str], &[&[u8]]) = match self.serves_secrets {
            true => (
                &[workload_api::SERVICE, workload_api::sds::SERVICE],
                &[descriptors::WORKLOAD, descriptors::SECRET],
            ),
            false => (&[workload_api::SERVICE], &[descriptors::WORKLOAD]),
        };
        let said = GrpcHealth::of(services).await;
        let others = add_reflection(said.add_to(Routes::default()), described)?;
        let endpoint = endpoint.beside(others);
        let part = |name| self.vitals.parts.begin(name);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(self.driver.run(stop.clone(), part("drive")));
        tasks.spawn(self.push.run(stop.clone(), part("push")));
        tasks.spawn(self.minter.run(stop.clone(), part("mint")));
        tasks.spawn(part("workload_api").during(serve(endpoint, stop.clone())));
        if let Some(admin) = admin {
            let serving = admin.serving(Arc::clone(&self.vitals), stop.clone())?;
            tasks.spawn(part("admin").during(serving));
        }
        tasks.spawn(said.keep(Arc::<AgentVitals>::clone(&self.vitals), stop.clone()));
        info!(socket = %self.socket.display(), "agent started");
        let guard = stop.clone().drop_guard();
        Ok(Running {
            socket: self.socket,
            health: self.health,
            vitals: self.vitals,
            probing: None,
            stop,
            _stop_on_drop: guard,
            tasks,
        })
    }
}

async fn serve(endpoint: Endpoint, stop: CancellationToken) {
    if let Err(error) = endpoint.serve(stop).await {
        error!(%error, "the Workload API failed");
    }
}

impl Running {
    /// Where the Workload API is served.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Follows what is wrong with the agent.
    pub fn health(&self) -> watch::Receiver<HealthReport> {
        self.health.clone()
    }

    /// All metrics in the text format of OpenMetrics, as of now.
    pub fn metrics(&self) -> String {
        self.vitals.metrics()
    }

    /// Whether the agent can be relied on, and what is wrong with it.
    pub fn readiness(&self) -> Readiness {
        self.vitals.readiness()
    }

    /// Where probes and metrics are answered, with the real port.
    pub fn probe_address(&self) -> Option<SocketAddr> {
        self.probing.as_ref().map(Probing::address)
    }

    /// Waits until a part of the agent ends by itself, which is a fault of the program.
    pub async fn failed(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(())) => error!("a part of the agent ended by itself"),
            Some(Err(error)) => error!(%error, "a part of the agent failed"),
            None => {}
        }
    }

    /// Ends streams, stops every task and waits for them, at most [`limits::SHUTDOWN`].
    pub async fn shutdown(mut self) {
        self.vitals.parts.stop();
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::SHUTDOWN, ended).await.is_err() {
            self.tasks.abort_all();
        }
        info!("agent stopped");
    }
}

impl Daemon for Running {
    async fn failed(&mut self) {
        Self::failed(self).await;
    }

    async fn shutdown(self) {
        Self::shutdown(self).await;
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Data(error) => Self::Data(error),
            OpenError::Bootstrap(error) => Self::Bootstrap(error),
        }
    }
}
