//! What is one node: its clock, its disk, its processes, its agent, and its way to the server?

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passant_agent::config::{Bootstrap, Config, NodeAttestor, TokenSource};
use passant_agent::health::{HealthReport, Part};
use passant_agent::{Agent, Running, Stage};
use passant_attest::node::join_token::Token;
use passant_core::{Bundle, SpiffeId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::disk::AgentDisk;
use crate::host::{self, KeyShare, Wall};
use crate::log::Log;
use crate::net::{Link, Port, Road};
use crate::oracle::Oracle;
use crate::process::{Attestor, Mood, Process, Table};
use crate::rng::Rng;
use crate::settings;
use crate::workload::{Socket, Workload};

/// Pids are few, so that they are soon used again.
const PIDS: u64 = 12;

/// A node that has not joined after this long is given up.
const JOINED_WITHIN: Duration = Duration::from_secs(300);

pub(crate) struct Node {
    pub(crate) place: usize,
    pub(crate) wall: Wall,
    pub(crate) road: Road,
    pub(crate) disk: AgentDisk,
    pub(crate) token: Option<String>,
    pub(crate) mood: Arc<Mutex<Mood>>,
    /// What loses its replies at the moment.
    pub(crate) is_cut: bool,
    table: Table,
    socket: Socket,
    local: Link,
    keys: KeyShare,
    running: Option<Running>,
    health: Option<watch::Receiver<HealthReport>>,
    /// The process of the disk that runs.
    life: u64,
    bundle: Option<Arc<Bundle>>,
    /// When it was given its token.
    installed: Option<Instant>,
    log: Log,
    oracle: Oracle,
    rng: Rng,
}

impl Node {
    pub(crate) fn new(
        place: usize,
        port: &Port,
        since: Instant,
        oracle: &Oracle,
        log: &Log,
        died: &Arc<Notify>,
        rng: &mut Rng,
    ) -> Self {
        let wall = Wall::new(since);
        oracle.add_place(wall.clone());
        let (link, local, socket) = (Link::new(log.clone()), Link::new(log.clone()), Socket::default());
        let address = SocketAddr::from(([10, 0, 0, u8::try_from(place + 1).unwrap_or(0)], 40_000));
        let on_death = {
            let (link, local, socket, died) = (link.clone(), local.clone(), socket.clone(), Arc::clone(died));
            Arc::new(move || {
                socket.close();
                link.break_all();
                local.break_all();
                died.notify_one();
            })
        };
        Self {
            place,
            wall,
            road: Road { link, port: port.clone(), address },
            disk: AgentDisk::new(rng.fork(), on_death),
            token: None,
            mood: Arc::new(Mutex::new(Mood::Well)),
            is_cut: false,
            table: Table::default(),
            socket,
            local,
            keys: KeyShare::new(place + 1, rng),
            running: None,
            health: None,
            life: 0,
            bundle: None,
            installed: None,
            log: log.clone(),
            oracle: oracle.clone(),
            rng: rng.fork(),
        }
    }

    /// The SPIFFE ID of the agent, once its token is spent.
    pub(crate) fn agent(&self) -> Option<SpiffeId> {
        let token = self.token.as_ref()?;
        settings::trust_domain().join(&format!("/spire/agent/join_token/{token}")).ok()
    }

    /// Gives the node a token, and the bundle to begin with.
    pub(crate) fn install(&mut self, token: String, bundle: Option<Arc<Bundle>>) {
        self.token = Some(token);
        self.bundle = bundle;
        self.installed = Some(Instant::now());
        let agent = self.agent();
        self.oracle.place(self.place, |place| place.agent = agent);
    }

    /// Whether it may still be about to spend its token.
    pub(crate) fn is_new(&self) -> bool {
        self.installed.is_some_and(|installed| installed.elapsed() < JOINED_WITHIN)
    }

    pub(crate) async fn start(&mut self) {
        let text = "trust_domain = \"example.org\"\nserver_address = \"server.example.org:8081\"\n\
                    data_dir = \"/nowhere\"\nsync_interval = \"5s\"\n[bootstrap]\ninsecure_bootstrap = true\n\
                    [node_attestor]\nmethod = \"join_token\"\n[workload_attestors.unix]\n";
        let config = Config::parse("simulated", text);
        let mut config = match config {
            Ok(config) => config,
            Err(error) => return self.log.violation(&format!("an agent's configuration: {error}")),
        };
        let token = self.token.as_deref().and_then(|token| Token::parse(token).ok());
        config.node_attestor = NodeAttestor::JoinToken(token.map(TokenSource::Given));
        if let Some(bundle) = &self.bundle {
            config.bootstrap = Bootstrap::Bundle(Box::new((**bundle).clone()));
        }
        let (disk, life) = self.disk.open();
        let stage = Stage {
            network: Arc::new(self.road.clone()),
            disk: Arc::new(disk),
            attestors: Attestor::all(&self.table, &self.mood),
            workloads: self.socket.open(),
        };
        let host = host::host(&self.wall, &self.keys, self.rng.fork());
        self.log.trace(format!("agent {} starts", self.place));
        match Box::pin(Agent::start_on(stage, config, host)).await {
            Ok(running) => {
                self.health = Some(running.health());
                self.running = Some(running);
                self.life = life;
            }
            Err(error) => self.log.violation(&format!("agent {} does not start: {error}", self.place)),
        }
    }

    /// Whether its agent runs, and has not died over its disk meanwhile.
    pub(crate) fn is_up(&self) -> bool {
        self.running.is_some() && self.disk.life() == self.life
    }

    /// Whether its agent has died over its disk, and nobody has noticed yet.
    pub(crate) fn has_died(&self) -> bool {
        self.running.is_some() && !self.is_up()
    }

    /// The agent ends at once, wherever it stands.
    pub(crate) fn crash(&mut self) {
        self.disk.crash();
        self.bury();
    }

    /// What is left to do when the process has died.
    pub(crate) fn bury(&mut self) {
        self.socket.close();
        self.road.link.break_all();
        self.local.break_all();
        self.running = None;
        self.health = None;
        self.log.trace(format!("agent {} is down", self.place));
    }

    /// Whether the agent says that it hears the server and has what it wants of it.
    pub(crate) fn is_content(&self) -> bool {
        self.health.as_ref().is_some_and(|health| {
            let report = health.borrow();
            // One that is refused every SVID is in contact all the same: what it lacks is for the oracle to find.
            let is_refused = |why: &String| why.starts_with("no X509-SVID could be minted");
            [Part::Node, Part::Sync].iter().all(|part| !report.troubles.contains_key(part))
                && report.troubles.get(&Part::Mint).is_none_or(is_refused)
        })
    }

    /// What is wrong, in the agent's words.
    pub(crate) fn troubles(&self) -> String {
        self.health.as_ref().map_or_else(|| "down".to_owned(), |health| health.borrow().to_string())
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
        let well = (mood == Mood::Well).then(Instant::now);
        self.oracle.place(self.place, |place| place.attestors_well_since = well);
    }

    /// Starts a workload: on a free pid, or on one that has just been left.
    pub(crate) fn spawn(&mut self, number: u32, pid: Option<u32>) {
        let pid = pid.unwrap_or_else(|| 100 + u32::try_from(self.rng.below(PIDS)).unwrap_or(0));
        if self.table.all().iter().any(|process| process.pid == pid) {
            return;
        }
        let uid = 1000 + u32::try_from(self.rng.below(settings::UIDS)).unwrap_or(0);
        let Some(pod) = self.rng.pick(settings::PODS) else { return };
        let process = Process::new(number, pid, uid, pod);
        self.table.put(&process);
        self.log.trace(format!(
            "workload {number} starts on node {}: pid {pid}, uid {uid}, pod {pod}",
            self.place
        ));
        let workload = Workload {
            process,
            place: self.place,
            socket: self.socket.clone(),
            link: self.local.clone(),
            oracle: self.oracle.clone(),
            log: self.log.clone(),
            rng: self.rng.fork(),
        };
        tokio::spawn(workload.live());
    }

    /// Ends one of the workloads, and says which pid it had.
    pub(crate) fn end_one(&mut self) -> Option<u32> {
        let process = Arc::clone(self.rng.pick(&self.table.all())?);
        self.table.end(process.pid);
        self.log.trace(format!("workload {} exits", process.number));
        Some(process.pid)
    }

    /// Moves one of the workloads to another pod.
    pub(crate) fn move_one(&mut self) {
        if let (Some(process), Some(pod)) =
            (self.rng.pick(&self.table.all()).cloned(), self.rng.pick(settings::PODS))
        {
            process.move_to(pod);
            self.log.trace(format!("workload {} moves to pod {pod}", process.number));
        }
    }

    pub(crate) fn workloads(&self) -> usize {
        self.table.all().len()
    }
}
