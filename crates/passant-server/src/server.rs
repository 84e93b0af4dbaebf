//! How is a server put together, started and stopped?

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use passant_attest::node::x509pop::X509PopVerifier;
use passant_core::bundle::Bundle;
use passant_core::{Host, TrustDomain};
use passant_daemon::exit;
use passant_daemon::grpc::Health;
use passant_daemon::probe::Probing;
use passant_daemon::process;
use passant_daemon::run::Daemon;
use passant_daemon::vitals::{Parts, Readiness, Vitals};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Rights;
use crate::api::Api;
use crate::api::authorize::Authorize;
use crate::api::sync::{Ticks, Wired, With};
use crate::attest_node::{NodeAttestation, NodeMethod};
use crate::authority::{Authorities, AuthorityConfig, AuthorityParts};
use crate::caller::Callers;
use crate::config::{Config, ConfigError, KeysMethod, NodeAttestor, StoreMethod};
use crate::federation::Federation;
use crate::federation::endpoint::WebRoots;
use crate::federation::fetch::{Fetch, Https, NoNetwork};
use crate::issue::{IssueConfig, Issuer, SigningPool};
use crate::journal::Journal;
use crate::keystore::{KeyFile, KeyStore, MemoryKeys};
use crate::metrics::{Calls, Metrics};
use crate::quota::Quotas;
use crate::record::refusals::Refusals;
use crate::record::segments::{FileSegments, MemorySegments, Segments};
use crate::record::{self, DecisionLog, RecordError, Retention};
use crate::rotate::Rotation;
use crate::serve::{Arrival, BindError, Front, Guests, Ports, Serving, SocketError};
use crate::store::memory::MemoryStore;
use crate::store::sled::SledStore;
use crate::store::{self, Store, StoreError};
use crate::sync::hub::Hub;
use crate::tls::{self, Bundles, ServerIdentity};
use crate::vitals::ServerVitals;

/// How often authorities are looked at: a step that is due is taken within this time.
const AUTHORITY_TURN: Duration = Duration::from_secs(1);

/// How often ended entries and expired tokens are cleared away. Nothing is issued for them meanwhile.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// How often agents and other consumers should look for a new bundle, and so how long after its fetch a bundle counts as
/// handed on: twice the interval in which SPIRE's agents synchronize.
const SETTLE: Duration = Duration::from_secs(10);

/// One lifetime's worth of hints: consumers that poll by it never miss an authority between preparation and use.
const REFRESH_HINT_MOST: Duration = Duration::from_secs(300);

/// A segment of the decision record, in bytes, unless little is kept in all.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Where a server begins.
#[derive(Debug)]
pub struct Server;

/// A server that answers. Dropped without [`Running::shutdown`], it stops without finishing what is in progress.
pub struct Running {
    address: SocketAddr,
    socket: PathBuf,
    journal: Journal,
    record: DecisionLog,
    vitals: Arc<ServerVitals>,
    /// Until the process ends: who looks meanwhile reads that it stops.
    probing: Option<Probing>,
    /// Cancelled first when the server stops.
    leaving: CancellationToken,
    hub: Hub,
    serving: Serving,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a server does not start. By whose turn it is to act.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operator's, in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operator's, on the machine: an address in use, a store held or damaged, keys lost.
    #[error("something the server needs is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Ours.
    #[error("the server cannot start")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Checks what [`Config::load`] cannot: the files that `config` names. `path` is where it was read from.
///
/// # Errors
/// Every node attestor whose files cannot be used.
pub fn check(config: &Config, path: &Path) -> Result<(), ConfigError> {
    let file = path.display().to_string();
    node_methods(config, &Host::system(), &file)?;
    web_roots(config, &file).map(drop)
}

impl Server {
    /// Opens what `config` names and answers on both ports. Returns once agents and operators can connect.
    ///
    /// # Errors
    /// See [`StartError`]; what was opened is closed again.
    pub async fn start(config: Config, host: Host) -> Result<Running, StartError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let methods = node_methods(&config, &host, "given")?;
        let fetch = Arc::new(Https { host: host.clone(), roots: web_roots(&config, "given")? });
        // At once, so that it can be seen to live while it reads its store.
        let probing = Probing::begin(config.probe).await.map_err(unavailable)?;
        // The ports first: they are what a second server on this machine would collide on.
        let guests = guests(&config)?;
        let ports = Ports::bind(config.listen, &config.socket, guests).await.map_err(not_bound)?;
        let metrics = Arc::new(Metrics::default());
        let journal = open_journal(&config, &host, &metrics).await?;
        let record = match open_record(&config, &host, &metrics).await {
            Ok(record) => record,
            Err(error) => {
                journal.close().await;
                return Err(unavailable(error));
            }
        };
        let opened = (journal.clone(), record.clone());
        let started = async {
            let (keystore, pool) = (open_keys(&config)?, SigningPool::of_machine());
            assemble(
                config,
                host,
                methods,
                Way::Ports(ports),
                Held { journal, record, keystore, pool, metrics, fetch },
            )
            .await
        };
        let started = started.await;
        let mut running = match started {
            Ok(running) => running,
            Err(error) => {
                opened.1.close().await;
                opened.0.close().await;
                return Err(error);
            }
        };
        if let Some(probing) = &probing {
            probing.watch(Arc::<ServerVitals>::clone(&running.vitals));
        }
        running.probing = probing;
        Ok(running)
    }

    /// Starts a server that touches nothing of the machine: all it would find there is in `stage`. What `config` says of
    /// addresses, sockets and stores does not count.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_on(stage: Stage, config: Config, host: Host) -> Result<Running, StartError> {
        let methods = node_methods(&config, &host, "given")?;
        let metrics = Arc::new(Metrics::default());
        let journal = Journal::open(stage.store, &config.trust_domain, host.clone()).map_err(unavailable)?;
        let record =
            DecisionLog::over(stage.segments, retention(&config), host.clone()).map_err(unavailable)?;
        let (keystore, pool) = (stage.keys, SigningPool::inline());
        let held = Held { journal, record, keystore, pool, metrics, fetch: Arc::new(NoNetwork) };
        assemble(config, host, methods, Way::Arrivals(stage.arrivals), held).await
    }
}

/// What stands for the machine in a simulation. Everything answers at once, so that all runs on one thread.
pub struct Stage {
    /// Under the journal.
    pub store: Box<dyn Store>,
    /// Under the decision record.
    pub segments: Box<dyn Segments>,
    /// The authorities' keys.
    pub keys: Arc<dyn KeyStore>,
    /// The connections.
    pub arrivals: mpsc::Receiver<Arrival>,
}

/// How connections come in.
enum Way {
    Ports(Ports),
    Arrivals(mpsc::Receiver<Arrival>),
}

/// What is open already.
struct Held {
    journal: Journal,
    record: DecisionLog,
    keystore: Arc<dyn KeyStore>,
    pool: SigningPool,
    metrics: Arc<Metrics>,
    fetch: Arc<dyn Fetch>,
}

/// Everything between an open store and an open port.
async fn assemble(
    config: Config,
    host: Host,
    methods: Vec<NodeMethod>,
    way: Way,
    held: Held,
) -> Result<Running, StartError> {
    let Held { journal, record, keystore, pool, metrics, fetch } = held;
    let parts = AuthorityParts {
        journal: journal.clone(),
        keystore,
        record: record.clone(),
        host: host.clone(),
        pool: pool.clone(),
    };
    let authorities =
        Arc::new(Authorities::open(parts, authority_config(&config)).await.map_err(unavailable)?);
    let issuer = Issuer::new(
        journal.clone(),
        Arc::clone(&authorities),
        record.clone(),
        host.clone(),
        pool,
        issue_config(&config),
        Arc::clone(&metrics),
    );
    let identity = Arc::new(ServerIdentity::default());
    let rotation =
        Rotation::begin(issuer.clone(), Arc::clone(&authorities), Arc::clone(&identity), host.clone())
            .await
            .map_err(internal)?;
    let bundles = Arc::new(JournalBundles(journal.clone()));
    let shown = Arc::clone(&identity);
    let guests = guests(&config)?;
    let rights = Arc::new(Rights::new(config.admin_ids.clone(), config.roles.clone()));
    let trusted = (config.trust_domain.clone(), rights.named_ids());
    let way = match way {
        Way::Ports(ports) => Opening::Ports(
            ports,
            Box::new(tls::server_config(identity, bundles, trusted.0, trusted.1, &host).map_err(internal)?),
        ),
        Way::Arrivals(arrivals) => {
            Opening::Arrivals(arrivals, tls::Door::new(identity, bundles, trusted.0, trusted.1, &host))
        }
    };
    let callers = Callers::new(journal.clone(), Arc::clone(&rights), host.clone());
    let attestation =
        NodeAttestation::new(journal.clone(), issuer.clone(), methods, host.clone()).with_rights(rights);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (federation, refresher) = Federation::new(journal.clone(), fetch, host.clone(), Arc::clone(&metrics));
    let quotas = Arc::new(Quotas::new(&config.limits, Arc::clone(&metrics)));
    let refusals = Refusals::new(record.clone(), Arc::clone(&metrics));
    let hub = Hub::new(journal.clone(), host.clone(), Arc::clone(&metrics));
    let follower = hub.follow();
    let watches = With {
        journal: journal.clone(),
        hub: hub.clone(),
        callers: callers.clone(),
        authorities: Arc::clone(&authorities),
        host: host.clone(),
        metrics: Arc::clone(&metrics),
        bundles: Wired::default(),
        ticks: Ticks::begin(),
    };
    let api = Api {
        journal: journal.clone(),
        issuer,
        authorities: Arc::clone(&authorities),
        attestation,
        join_tokens: config.node_attestors.contains(&NodeAttestor::JoinToken),
        callers: callers.clone(),
        guests,
        record: record.clone(),
        federation,
        watches: Arc::new(watches),
        refusals: refusals.clone(),
        auditors: Arc::default(),
        backups: Arc::new(Semaphore::new(config.limits.backups)),
        explanations: Arc::new(Semaphore::new(config.limits.explanations)),
        identity: shown,
        started: tokio::time::Instant::now(),
        host: host.clone(),
        metrics: Arc::clone(&metrics),
        quotas: Arc::clone(&quotas),
        attest_refusals: Arc::default(),
    };
    let vitals = Arc::new(ServerVitals {
        journal: journal.clone(),
        record: record.clone(),
        authorities: Arc::clone(&authorities),
        host: host.clone(),
        parts: Parts::default(),
        registries: vec![
            metrics.registry(&journal, &record, &authorities, &host),
            process::registry(host.now()),
        ],
        not_kept: Arc::default(),
    });
    let (health, leaving) = (Health::of(&[]).await, CancellationToken::new());
    let routes = api.routes(&health).map_err(internal)?;
    let calls = Calls { metrics: Arc::clone(&metrics), refusals };
    let front = Front { calls, authorize: Authorize::new(callers), quotas };
    let part = |name| vitals.parts.begin(name);
    tasks.spawn(part("rotation").during(rotation.run(journal.watch(), stop.clone())));
    let kept = keep_authorities(authorities, Arc::clone(&vitals.not_kept), stop.clone());
    tasks.spawn(part("authorities").during(kept));
    tasks.spawn(part("federation").during(refresher.run(journal.watch(), stop.clone())));
    tasks.spawn(part("hub").during(hub.clone().run(follower, stop.clone())));
    tasks.spawn(part("prune").during(keep_pruned(journal.clone(), host.clone(), stop.clone())));
    let said = health.keep(Arc::<ServerVitals>::clone(&vitals), leaving.clone());
    tasks.spawn(part("health").during(said));
    tasks.close();
    let (address, socket, serving) = match way {
        Opening::Ports(ports, tls) => {
            (ports.address(), ports.path().to_owned(), ports.open(*tls, routes, front, (&host, &metrics)))
        }
        Opening::Arrivals(arrivals, door) => {
            (config.listen, config.socket.path, Serving::over(arrivals, door, routes, front, host.clone()))
        }
    };
    tracing::info!(trust_domain = %config.trust_domain, %address, socket = %socket.display(), "the server is ready");
    let running = Running {
        address,
        socket,
        journal,
        record,
        vitals,
        probing: None,
        leaving,
        hub,
        serving,
        stop,
        tasks,
    };
    Ok(running)
}

/// A way in, with what decides about those who come.
enum Opening {
    Ports(Ports, Box<rustls::ServerConfig>),
    Arrivals(mpsc::Receiver<Arrival>, tls::Door),
}

impl Running {
    /// Where agents connect, with the real port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The trust domain's bundle of this moment, for agents to begin with. A running server has one.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.journal
            .state()
            .bundle()
            .expect("authorities were opened before the server ran, and published then")
    }

    /// All metrics in the text format of OpenMetrics, as of now.
    pub fn metrics(&self) -> String {
        self.vitals.metrics()
    }

    /// Whether the server can be relied on, and what is wrong with it.
    pub fn readiness(&self) -> Readiness {
        self.vitals.readiness()
    }

    /// Where probes and metrics are answered, with the real port.
    pub fn probe_address(&self) -> Option<SocketAddr> {
        self.probing.as_ref().map(Probing::address)
    }

    /// Waits until a part of the server ends by itself, which is a fault of the program.
    pub async fn failed(&self) {
        self.vitals.parts.ended().await;
        for (part, why) in self.vitals.parts.dead() {
            tracing::error!(part, why, "a part of the server has failed");
        }
    }

    /// Stops taking calls, lets those in progress finish for at most ten seconds, and closes the store.
    pub async fn shutdown(self) {
        self.vitals.parts.stop();
        self.leaving.cancel();
        // They would not end by themselves.
        self.hub.close();
        self.serving.stop().await;
        self.stop.cancel();
        self.tasks.wait().await;
        self.record.close().await;
        self.journal.close().await;
        tracing::info!("the server has stopped");
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
        f.debug_struct("Running")
            .field("address", &self.address)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.vitals.parts.stop();
        self.leaving.cancel();
        self.stop.cancel();
        self.serving.cut();
    }
}

struct JournalBundles(Journal);

impl Bundles for JournalBundles {
    fn bundle_of(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.0.state().bundle_of(trust_domain)
    }
}

async fn keep_authorities(
    authorities: Arc<Authorities>,
    not_kept: Arc<ArcSwapOption<String>>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AUTHORITY_TURN) => {}
        }
        let kept = authorities.tick().await;
        if let Err(error) = &kept {
            tracing::error!(error = error as &dyn std::error::Error, "authorities could not be kept up");
        }
        not_kept.store(kept.err().map(|error| Arc::new(exit::with_causes(&error))));
    }
}

async fn keep_pruned(journal: Journal, host: Host, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = journal.keep_pruned(host, PRUNE_EVERY) => {}
    }
}

fn node_methods(config: &Config, host: &Host, file: &str) -> Result<Vec<NodeMethod>, ConfigError> {
    let mut methods = Vec::new();
    for (at, attestor) in config.node_attestors.iter().enumerate() {
        match attestor {
            NodeAttestor::JoinToken => methods.push(NodeMethod::JoinToken),
            NodeAttestor::X509pop(x509pop) => {
                let verifier = X509PopVerifier::open(x509pop, config.trust_domain.clone(), host.clone())
                    .map_err(|error| {
                        let remedy = "mend it, or take this node attestor out";
                        let section = format!("node_attestor[{at}]");
                        ConfigError::single(file, &section, exit::with_causes(&error), remedy)
                    })?;
                methods.push(NodeMethod::Verified(Arc::new(verifier)));
            }
        }
    }
    Ok(methods)
}

/// Where the authorities of the Web PKI are. Whether those of the machine are there shows once they are needed.
fn web_roots(config: &Config, file: &str) -> Result<WebRoots, ConfigError> {
    let Some(path) = &config.web_roots else { return Ok(WebRoots::System) };
    let roots = WebRoots::File(path.clone());
    roots.load().map_err(|error| {
        let remedy = "name a PEM file with authorities of the Web PKI, or leave it out";
        ConfigError::single(file, "federation.web_roots", exit::with_causes(&error), remedy)
    })?;
    Ok(roots)
}

async fn open_journal(config: &Config, host: &Host, metrics: &Arc<Metrics>) -> Result<Journal, StartError> {
    let (trust_domain, host, metrics) = (config.trust_domain.clone(), host.clone(), Arc::clone(metrics));
    let dir = match config.store {
        StoreMethod::Memory => None,
        StoreMethod::Sled => Some(data_dir(config)?.to_owned()),
    };
    let open = move || -> Result<Journal, StoreError> {
        let store: Box<dyn Store> = match dir {
            Some(dir) => Box::new(SledStore::open(&dir, &trust_domain, &host)?),
            None => Box::new(MemoryStore::ephemeral(&trust_domain, &host)),
        };
        let store = Box::new(store::metered::Metered::new(store, metrics));
        Journal::open(store, &trust_domain, host)
    };
    tokio::task::spawn_blocking(open).await.map_err(internal)?.map_err(unavailable)
}

async fn open_record(
    config: &Config,
    host: &Host,
    metrics: &Arc<Metrics>,
) -> Result<DecisionLog, RecordError> {
    let (retention, host, metrics) = (retention(config), host.clone(), Arc::clone(metrics));
    // With a memory store nothing on the disk would belong together.
    let dir = match config.store {
        StoreMethod::Memory => None,
        StoreMethod::Sled => config.data_dir.as_deref().map(|dir| dir.join("decisions")),
    };
    let open = move || {
        let segments: Box<dyn Segments> = match dir {
            Some(dir) => Box::new(FileSegments::open(&dir).map_err(|source| RecordError::Io {
                doing: "open",
                place: dir.display().to_string(),
                source,
            })?),
            None => Box::new(MemorySegments::default()),
        };
        let segments = Box::new(record::metered::Metered::new(segments, metrics));
        DecisionLog::over(segments, retention, host)
    };
    tokio::task::spawn_blocking(open).await.map_err(|_| RecordError::Closed)?
}

fn retention(config: &Config) -> Retention {
    let keep_bytes = config.decision_log.max_bytes;
    Retention {
        segment_bytes: SEGMENT_BYTES.min(keep_bytes / 4),
        keep_bytes,
        keep_for: config.decision_log.max_age,
    }
}

fn open_keys(config: &Config) -> Result<Arc<dyn KeyStore>, StartError> {
    match config.keys {
        KeysMethod::Memory => Ok(Arc::new(MemoryKeys::default())),
        KeysMethod::Disk => Ok(Arc::new(KeyFile::open(data_dir(config)?).map_err(unavailable)?)),
    }
}

/// The data directory that the chosen store or key store stands in.
fn data_dir(config: &Config) -> Result<&Path, StartError> {
    config.data_dir.as_deref().ok_or_else(|| {
        let remedy = "name a directory only the server can read";
        StartError::Config(ConfigError::single("given", "data_dir", "is missing", remedy))
    })
}

fn authority_config(config: &Config) -> AuthorityConfig {
    AuthorityConfig {
        ca_ttl: config.ca_ttl,
        x509_key_type: config.ca_key_type,
        jwt_key_type: config.jwt_key_type,
        x509_leaf_ttl: config.default_x509_svid_ttl.max(config.agent_ttl),
        jwt_leaf_ttl: config.default_jwt_svid_ttl,
        settle: SETTLE.min(config.ca_ttl / 20),
        refresh_hint: Some(REFRESH_HINT_MOST.min(config.ca_ttl / 20).max(Duration::from_secs(1))),
        accept_lost_keys: config.accept_lost_keys,
    }
}

fn issue_config(config: &Config) -> IssueConfig {
    IssueConfig {
        x509_svid_ttl: config.default_x509_svid_ttl,
        jwt_svid_ttl: config.default_jwt_svid_ttl,
        agent_ttl: config.agent_ttl,
        server_ttl: config.default_x509_svid_ttl,
        downstream_ttl: config.ca_ttl,
        jwt_issuer: config.jwt_issuer.clone(),
        key_type: config.ca_key_type,
    }
}

/// Who is let in at the operator socket.
fn guests(config: &Config) -> Result<Arc<Guests>, StartError> {
    let rights = Rights::new(config.admin_ids.clone(), config.roles.clone());
    Guests::of(&config.socket, &rights).map(Arc::new).map_err(|error| not_bound(error.into()))
}

/// A group that does not exist is mended in the configuration; all else on the machine.
fn not_bound(error: BindError) -> StartError {
    match error {
        BindError::Socket(SocketError::NoSuchGroup(group)) => StartError::Config(ConfigError::single(
            "given",
            "socket.group",
            format!("the group \"{group}\" does not exist"),
            "create it, or name another",
        )),
        BindError::Socket(_) | BindError::Tcp { .. } => unavailable(error),
    }
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> StartError {
    StartError::Unavailable(Box::new(error))
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> StartError {
    StartError::Internal(Box::new(error))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use passant_core::Host;

    use super::{Server, StartError, check};
    use crate::config::Config;

    fn config(dir: &Path, more: &str) -> Config {
        let text = format!(
            "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\ndata_dir = \"{0}/data\"\n{more}\n[socket]\n\
             path = \"{0}/api.sock\"\n",
            dir.display()
        );
        Config::parse(&text, "server.toml").unwrap()
    }

    #[tokio::test]
    async fn a_restarted_server_is_the_same_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = Server::start(config(dir.path(), ""), Host::system()).await.unwrap();
        let bundle = first.bundle();
        first.shutdown().await;
        let second = Server::start(config(dir.path(), ""), Host::system()).await.unwrap();
        assert_eq!(second.bundle(), bundle);
        second.shutdown().await;
    }

    #[tokio::test]
    async fn a_second_server_is_refused_and_leaves_the_first_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Server::start(config(dir.path(), ""), Host::system()).await.unwrap();
        let refused = Server::start(config(dir.path(), ""), Host::system()).await.unwrap_err();
        assert!(matches!(refused, StartError::Unavailable(_)), "{refused:?}");
        assert!(first.socket().exists());

        // Another socket, the same data directory: the store is held, and the other socket goes again.
        let mut other = config(dir.path(), "");
        other.socket.path = dir.path().join("other.sock");
        let socket = other.socket.path.clone();
        let refused = Server::start(other, Host::system()).await.unwrap_err();
        assert!(matches!(refused, StartError::Unavailable(_)), "{refused:?}");
        assert!(!socket.exists());
        first.shutdown().await;
    }

    #[tokio::test]
    async fn what_the_configuration_names_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let missing = config(
            dir.path(),
            "node_attestor = [{ method = \"x509pop\", ca_bundle_path = \"/nowhere/ca.pem\" }]",
        );
        let said = check(&missing, Path::new("server.toml")).unwrap_err().to_string();
        assert!(said.contains("node_attestor[0]") && said.contains("/nowhere/ca.pem"), "{said}");
        assert!(matches!(Server::start(missing, Host::system()).await, Err(StartError::Config(_))));

        let mut group = config(dir.path(), "");
        group.socket.group = Some("no-such-group-here".to_owned());
        assert!(matches!(Server::start(group, Host::system()).await, Err(StartError::Config(_))));
    }
}
