//! What happens in one run? Everything that the seed says, for some minutes; then all is mended, and must become well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use passant_core::{Entry, StopTarget};
use passant_server::server::Stage;
use passant_server::{Config, Running, Server};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::disk::ServerDisk;
use crate::host::{self, KeyShare, Wall};
use crate::log::{Log, Outcome};
use crate::net::{Link, Port, Road, Way};
use crate::node::Node;
use crate::operator::{Operator, Thief, Wish};
use crate::oracle::Oracle;
use crate::process::Mood;
use crate::rng::Rng;
use crate::settings;

/// Runs `seed`, with faults until `troubled` is over; what came of it, and what happened, line by line, if that is to be kept.
pub(crate) fn run(seed: u64, troubled: Duration, keeps_lines: bool) -> (Outcome, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without threads and sockets needs nothing of the machine");
    runtime.block_on(Box::pin(async move {
        let since = Instant::now();
        let log = Log::new(since, keeps_lines);
        let mut world = World::new(seed, since, log.clone());
        Box::pin(world.begin()).await;
        Box::pin(world.trouble(troubled)).await;
        Box::pin(world.heal()).await;
        log.end()
    }))
}

struct World {
    since: Instant,
    log: Log,
    oracle: Oracle,
    rng: Rng,
    /// How likely each fault is in a turn, out of a thousand.
    appetite: BTreeMap<Fault, u64>,
    /// What ends when.
    agenda: BTreeMap<(Instant, u64), Cure>,
    cures: u64,
    died: Arc<Notify>,
    server: ServerProcess,
    nodes: Vec<Node>,
    orders: mpsc::UnboundedSender<Order>,
    operator: Arc<Operator>,
    workloads: u32,
    names: u64,
}

struct ServerProcess {
    wall: Wall,
    keys: KeyShare,
    disk: ServerDisk,
    port: Port,
    running: Option<Running>,
    life: u64,
}

/// Whatever may happen in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Partition,
    OneWay,
    Delay,
    LostReply,
    Break,
    ServerCrash,
    ServerDies,
    ServerRestart,
    ServerDisk,
    Restore,
    Stop,
    AgentCrash,
    AgentDies,
    AgentClock,
    ServerClock,
    Attestors,
    Spawn,
    Exit,
    Move,
    Create,
    Update,
    Delete,
    Ban,
    Evict,
    Thief,
}

/// How likely each is in a turn of about a second, out of a thousand, in a run of middling luck.
const APPETITE: &[(Fault, u64)] = &[
    (Fault::Partition, 5),
    (Fault::OneWay, 5),
    (Fault::Delay, 6),
    (Fault::LostReply, 12),
    (Fault::Break, 6),
    (Fault::ServerCrash, 3),
    (Fault::ServerDies, 4),
    (Fault::ServerRestart, 1),
    (Fault::ServerDisk, 3),
    (Fault::Restore, 2),
    (Fault::Stop, 6),
    (Fault::AgentCrash, 4),
    (Fault::AgentDies, 4),
    (Fault::AgentClock, 4),
    (Fault::ServerClock, 2),
    (Fault::Attestors, 5),
    (Fault::Spawn, 15),
    (Fault::Exit, 15),
    (Fault::Move, 6),
    (Fault::Create, 12),
    (Fault::Update, 12),
    (Fault::Delete, 8),
    (Fault::Ban, 1),
    (Fault::Evict, 1),
    (Fault::Thief, 5),
];

/// What a server may take to stop, calls in progress included.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// What ends a fault.
#[derive(Clone, Debug)]
enum Cure {
    Pass(usize),
    Hasten(usize),
    Spare(usize),
    Well(usize),
    SetRight(Option<usize>),
    DiskWell,
    StartServer,
    StartAgent(usize),
    Rejoin(usize),
    Restore,
    Resume(StopTarget),
}

/// What an operator is to do, one after the other.
enum Order {
    Create(Wish),
    Update(Arc<Entry>, Wish),
    Delete(Arc<Entry>),
    Ban(passant_core::SpiffeId),
    Evict(passant_core::SpiffeId),
    Stop(StopTarget),
    Resume(StopTarget),
    Audit,
}

impl World {
    fn new(seed: u64, since: Instant, log: Log) -> Self {
        let mut rng = Rng::new(seed);
        let (wall, port, died) = (Wall::new(since), Port::default(), Arc::new(Notify::new()));
        let oracle = Oracle::new(log.clone(), since, wall.clone());
        let nodes: Vec<Node> = (0..settings::NODES)
            .map(|place| Node::new(place, &port, since, &oracle, &log, &died, &mut rng))
            .collect();
        let link = Link::new(log.clone());
        let on_death = {
            let mut links: Vec<Link> = nodes.iter().map(|node| node.road.link.clone()).collect();
            links.push(link.clone());
            let (port, died) = (port.clone(), Arc::clone(&died));
            Arc::new(move || {
                port.close();
                links.iter().for_each(Link::break_all);
                died.notify_one();
            })
        };
        let disk = ServerDisk::new(rng.fork(), oracle.clone(), on_death);
        let road = Road { link, port: port.clone(), address: SocketAddr::from(([10, 0, 0, 100], 40_000)) };
        let operator = Arc::new(Operator { road, oracle: oracle.clone(), log: log.clone() });
        let (orders, queue) = mpsc::unbounded_channel();
        tokio::spawn(work(Arc::clone(&operator), queue));
        let moods = [0, 0, 1, 1, 2, 4];
        let appetite = APPETITE.iter().map(|(fault, times)| {
            let mood = rng.pick(&moods).copied().unwrap_or(1);
            let least =
                u64::from(matches!(fault, Fault::Create | Fault::Update | Fault::Spawn | Fault::Exit));
            (*fault, times * mood.max(least))
        });
        let appetite = appetite.collect();
        let keys = KeyShare::new(0, &mut rng);
        let server = ServerProcess { wall, keys, disk, port, running: None, life: 0 };
        Self {
            since,
            log,
            oracle,
            rng,
            appetite,
            agenda: BTreeMap::new(),
            cures: 0,
            died,
            server,
            nodes,
            orders,
            operator,
            workloads: 0,
            names: 0,
        }
    }

    /// All is well at first.
    async fn begin(&mut self) {
        Box::pin(self.start_server()).await;
        for place in 0..self.nodes.len() {
            for _ in 0..4 {
                self.create(place);
            }
            Box::pin(self.rejoin(place)).await;
            for _ in 0..5 {
                self.spawn(place, None);
            }
        }
        self.pass(Duration::from_secs(20)).await;
    }

    /// Faults come and go.
    async fn trouble(&mut self, troubled: Duration) {
        while self.since.elapsed() < troubled && !self.log.is_violated() {
            let pause = self.rng.millis(200, 1800);
            self.pass(pause).await;
            for (fault, times) in self.appetite.clone() {
                if self.rng.permille(times) {
                    Box::pin(self.strike(fault)).await;
                }
            }
        }
    }

    /// Mends everything, and waits until all is as it should be. Only a node that the server does not know any more, or
    /// whose SVID has ended, needs an operator.
    async fn heal(&mut self) {
        self.log.trace("all is mended");
        self.appetite.clear();
        let due: Vec<Cure> = std::mem::take(&mut self.agenda).into_values().collect();
        for cure in due {
            Box::pin(self.cure(cure)).await;
        }
        for place in 0..self.nodes.len() {
            for cure in [Cure::Pass(place), Cure::Hasten(place), Cure::Spare(place), Cure::Well(place)] {
                Box::pin(self.cure(cure)).await;
            }
            Box::pin(self.cure(Cure::SetRight(Some(place)))).await;
            if !self.nodes[place].is_up() {
                Box::pin(self.cure(Cure::StartAgent(place))).await;
            }
        }
        Box::pin(self.cure(Cure::SetRight(None))).await;
        Box::pin(self.cure(Cure::DiskWell)).await;
        if !self.is_server_up() {
            Box::pin(self.cure(Cure::StartServer)).await;
        }
        let end = Instant::now() + settings::CONVERGED_WITHIN;
        let mut behind = vec!["nobody has looked yet".to_owned()];
        while Instant::now() < end && !behind.is_empty() && !self.log.is_violated() {
            self.pass(Duration::from_secs(5)).await;
            for place in 0..self.nodes.len() {
                if self.is_lost(place) {
                    self.log.count("nodes rescued by an operator");
                    Box::pin(self.rejoin(place)).await;
                }
            }
            behind = self.oracle.behind();
        }
        if self.log.is_violated() {
            return;
        }
        if !behind.is_empty() {
            let troubles: Vec<String> = self.nodes.iter().map(Node::troubles).collect();
            self.log.violation(&format!(
                "(7) not well again in time: {}; agents say {troubles:?}",
                behind.join("; ")
            ));
        }
        self.log.count("convergences");
        self.order(Order::Audit);
        self.pass(Duration::from_secs(2)).await;
    }

    /// Lets time pass, tends to what is due, and looks at everything once a second.
    async fn pass(&mut self, span: Duration) {
        let end = Instant::now() + span;
        let mut look = Instant::now() + Duration::from_secs(1);
        loop {
            let due = self.agenda.keys().next().map_or(end, |(due, _)| *due);
            let died = Arc::clone(&self.died);
            tokio::select! {
                biased;
                () = died.notified() => {}
                () = tokio::time::sleep_until(due.min(end).min(look)) => {}
            }
            self.bury();
            while let Some(entry) = self.agenda.first_entry()
                && entry.key().0 <= Instant::now()
            {
                let cure = entry.remove();
                Box::pin(self.cure(cure)).await;
            }
            if Instant::now() >= look || Instant::now() >= end {
                self.look();
                look = Instant::now() + Duration::from_secs(1);
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// Notices who has died.
    fn bury(&mut self) {
        if self.server.running.is_some() && self.server.disk.life() != self.server.life {
            self.log.fault("server died over its disk");
            self.down();
        }
        for place in 0..self.nodes.len() {
            if self.nodes[place].has_died() {
                self.log.fault("agent died over its disk");
                self.nodes[place].bury();
                self.later(200, 8_000, Cure::StartAgent(place));
            }
        }
    }

    fn is_server_up(&self) -> bool {
        self.server.running.is_some() && self.server.disk.life() == self.server.life
    }

    /// What is left to do when the server has died.
    fn down(&mut self) {
        self.server.port.close();
        self.server.running = None;
        for node in &self.nodes {
            node.road.link.break_all();
        }
        self.operator.road.link.break_all();
        self.log.trace("the server is down");
        self.later(200, 15_000, Cure::StartServer);
    }

    fn look(&self) {
        let now = Instant::now();
        let is_right = |wall: &Wall| wall.off_by_millis().abs() <= 2_000;
        let is_believed = self.oracle.is_believed();
        for node in &self.nodes {
            let is_reachable = self.is_server_up()
                && !self.server.disk.is_failing()
                && node.is_up()
                && !node.is_cut
                && !node.road.link.is_blocked()
                && node.road.link.latency() <= Duration::from_millis(500)
                && is_right(&node.wall)
                && is_right(&self.server.wall)
                && is_believed;
            let is_known =
                node.agent().and_then(|agent| self.oracle.node(&agent)).is_some_and(|row| !row.is_banned());
            let is_in_contact = is_reachable && is_known && node.is_content();
            self.oracle.place(node.place, |place| {
                place.reachable_since = is_reachable.then(|| place.reachable_since.unwrap_or(now));
                place.in_contact_since = is_in_contact.then(|| place.in_contact_since.unwrap_or(now));
            });
        }
        self.oracle.look();
    }

    /// Whether only an operator can bring the node back.
    fn is_lost(&self, place: usize) -> bool {
        let row = self.nodes[place].agent().and_then(|agent| self.oracle.node(&agent));
        let truth = Wall::truth(self.since);
        match row {
            None => !self.nodes[place].is_new(),
            Some(row) => {
                let end = row
                    .pending
                    .as_ref()
                    .map_or(row.not_after, |pending| pending.not_after.max(row.not_after));
                row.is_banned() || end < truth
            }
        }
    }

    fn later(&mut self, least: u64, most: u64, cure: Cure) {
        let due = Instant::now() + self.rng.millis(least, most);
        self.cures += 1;
        self.agenda.insert((due, self.cures), cure);
    }

    fn order(&self, order: Order) {
        // The operator works as long as the run lasts.
        drop(self.orders.send(order));
    }

    fn spawn(&mut self, place: usize, pid: Option<u32>) {
        self.workloads += 1;
        self.nodes[place].spawn(self.workloads, pid);
    }

    /// What an entry of the node at `place` may say.
    fn wish(&mut self, place: usize, path: Option<String>) -> Wish {
        self.names += 1;
        let path = path.unwrap_or_else(|| format!("/n{place}/w{}", self.names % 40));
        let uid = ("unix".to_owned(), format!("uid:{}", 1000 + self.rng.below(settings::UIDS)));
        let pod = ("pod".to_owned(), self.rng.pick(settings::PODS).map_or("a", |&pod| pod).to_owned());
        let selectors = match self.rng.below(3) {
            0 => vec![uid],
            1 => vec![pod],
            _ => vec![uid, pod],
        };
        let life = i64::try_from(self.rng.between(20, 200)).unwrap_or(0);
        let expires_at = if self.rng.permille(250) { Wall::truth(self.since).secs() + life } else { 0 };
        let hint = if self.rng.permille(300) { "internal".to_owned() } else { String::new() };
        Wish { parent: settings::alias(place), path, selectors, expires_at, hint }
    }

    fn create(&mut self, place: usize) {
        let wish = self.wish(place, None);
        self.order(Order::Create(wish));
    }

    async fn start_server(&mut self) {
        let host = host::host(&self.server.wall, &self.server.keys, self.rng.fork());
        let config = match Config::parse(settings::SERVER, "simulated") {
            Ok(config) => config,
            Err(error) => return self.log.violation(&format!("the server's configuration: {error}")),
        };
        let life = self.server.disk.life();
        self.log.trace("the server starts");
        let opened = match self.server.disk.open(&config.trust_domain, &host) {
            Ok(opened) => opened,
            Err(error) => return self.log.violation(&format!("(6) the disk cannot be opened: {error}")),
        };
        let arrivals = self.server.port.open();
        let stage = Stage { store: opened.store, segments: opened.segments, keys: opened.keys, arrivals };
        match Box::pin(Server::start_on(stage, config, host)).await {
            Ok(running) => {
                self.server.running = Some(running);
                self.server.life = life;
                self.log.count("starts of the server");
                self.order(Order::Audit);
            }
            Err(_) if self.server.disk.life() != life => {
                self.log.fault("server died over its disk");
                self.down();
            }
            Err(_) if self.server.disk.is_failing() => {
                self.log.fault("start of the server on a failing disk");
                self.server.disk.crash();
                self.down();
            }
            Err(error) => self.log.violation(&format!("(6) the server does not start: {error:?}")),
        }
    }

    /// Gives the node a new token, and a disk without a past.
    async fn rejoin(&mut self, place: usize) {
        let token = Box::pin(self.operator.token(&settings::alias(place))).await;
        let Some(token) = token else {
            return self.later(2_000, 10_000, Cure::Rejoin(place));
        };
        self.nodes[place].crash();
        self.nodes[place].disk.wipe();
        self.nodes[place].install(token, self.oracle.bundle());
        self.log.count("tokens given out");
        if !self.appetite.is_empty() && self.since.elapsed() > Duration::ZERO && self.rng.permille(250) {
            self.cut(place);
        }
        Box::pin(self.nodes[place].start()).await;
    }

    fn cut(&mut self, place: usize) {
        let pieces = u32::try_from(self.rng.below(7)).unwrap_or(0);
        self.nodes[place].road.link.cut_after(pieces);
        self.nodes[place].is_cut = true;
        self.later(5_000, 20_000, Cure::Spare(place));
    }

    async fn strike(&mut self, fault: Fault) {
        let place = self.rng.index(self.nodes.len());
        let link = self.nodes[place].road.link.clone();
        match fault {
            Fault::Partition => {
                self.log.fault("partition");
                link.block(Way::Up, true);
                link.block(Way::Down, true);
                self.later(2_000, 40_000, Cure::Pass(place));
            }
            Fault::OneWay => {
                let way = if self.rng.permille(500) { Way::Up } else { Way::Down };
                self.log.fault(if way == Way::Up {
                    "partition to the server"
                } else {
                    "partition from the server"
                });
                link.block(way, true);
                self.later(2_000, 40_000, Cure::Pass(place));
            }
            Fault::Delay => {
                self.log.fault("delay");
                link.delay(self.rng.millis(1, 4_000), self.rng.millis(1, 4_000));
                self.later(3_000, 40_000, Cure::Hasten(place));
            }
            Fault::LostReply => self.cut(place),
            Fault::Break => {
                self.log.fault("connections broken");
                link.break_all();
            }
            Fault::ServerCrash if self.is_server_up() => {
                self.log.fault("server crashed");
                self.server.disk.crash();
                self.down();
            }
            Fault::ServerDies if self.is_server_up() => {
                let operations = u32::try_from(self.rng.below(12)).unwrap_or(0);
                self.server.disk.die_in(operations);
            }
            Fault::ServerRestart if self.is_server_up() => {
                self.log.fault("server restarted");
                self.server.port.close();
                if let Some(running) = self.server.running.take() {
                    let stopped = Box::pin(tokio::time::timeout(STOPPED_WITHIN, running.shutdown())).await;
                    if stopped.is_err() && !self.server.disk.is_failing() {
                        self.log.violation("the server does not stop in time");
                    }
                }
                self.server.disk.crash();
                self.later(200, 3_000, Cure::StartServer);
            }
            Fault::ServerDisk => {
                self.log.fault("server's disk failing");
                self.server.disk.fail(true);
                self.later(100, 15_000, Cure::DiskWell);
            }
            Fault::Stop => self.stop(place),
            Fault::Restore => {
                self.server.disk.back_up();
                // A restoration that loses nothing shows nothing.
                for place in 0..self.nodes.len() {
                    self.churn(Fault::Create, place);
                }
                self.later(3_000, 40_000, Cure::Restore);
            }
            Fault::AgentCrash if self.nodes[place].is_up() => {
                self.log.fault("agent crashed");
                self.nodes[place].crash();
                self.later(200, 15_000, Cure::StartAgent(place));
            }
            Fault::AgentDies if self.nodes[place].is_up() => {
                self.nodes[place].disk.die_in(u32::from(self.rng.permille(300)));
            }
            Fault::AgentClock => self.set_off(Some(place)),
            Fault::ServerClock => self.set_off(None),
            Fault::Attestors => {
                let span = self.rng.millis(100, 12_000);
                let (mood, name) = match self.rng.below(3) {
                    0 => (Mood::Failing, "attestor failing"),
                    1 => (Mood::Slow(span), "attestors slow"),
                    _ => (Mood::Stale(span), "attestors slow with old facts"),
                };
                self.log.fault(name);
                self.nodes[place].set_mood(mood);
                self.later(3_000, 40_000, Cure::Well(place));
            }
            Fault::Spawn if self.nodes[place].workloads() < 10 => self.spawn(place, None),
            Fault::Exit => {
                let left = self.nodes[place].end_one();
                if left.is_some() && self.rng.permille(400) {
                    self.log.fault("pid used again");
                    self.spawn(place, left);
                }
            }
            Fault::Move => {
                self.log.fault("process moved");
                self.nodes[place].move_one();
            }
            Fault::Create | Fault::Update | Fault::Delete => self.churn(fault, place),
            Fault::Ban | Fault::Evict => {
                if let Some(agent) = self.nodes[place].agent() {
                    self.order(if fault == Fault::Ban { Order::Ban(agent) } else { Order::Evict(agent) });
                    self.later(20_000, 60_000, Cure::Rejoin(place));
                }
            }
            Fault::Thief => self.steal(place),
            Fault::ServerCrash
            | Fault::ServerDies
            | Fault::ServerRestart
            | Fault::AgentCrash
            | Fault::AgentDies
            | Fault::Spawn => {}
        }
    }

    fn churn(&mut self, fault: Fault, place: usize) {
        let standing = self.oracle.standing();
        let some = self.rng.pick(&standing).cloned();
        match (fault, some) {
            (Fault::Update, Some(entry)) => {
                self.log.fault("entry changed");
                let path = self.rng.permille(800).then(|| entry.spiffe_id.path().to_owned());
                let parent = (0..settings::NODES).find(|at| entry.parent_id == settings::alias(*at));
                let wish = self.wish(parent.unwrap_or(place), path);
                self.order(Order::Update(entry, wish));
            }
            (Fault::Delete, Some(entry)) => {
                self.log.fault("entry deleted");
                self.order(Order::Delete(entry));
            }
            (_, Some(entry)) if standing.len() > 30 => self.order(Order::Delete(entry)),
            _ => {
                self.log.fault("entry created");
                self.create(place);
            }
        }
    }

    /// A step, forth or back, or a little skew.
    fn set_off(&mut self, whose: Option<usize>) {
        let seconds = if self.rng.permille(600) { self.rng.between(0, 4) } else { self.rng.between(20, 250) };
        let millis = i64::try_from(seconds * 1000 + self.rng.below(1000)).unwrap_or(0);
        let millis = if self.rng.permille(500) { millis } else { -millis };
        let name = match (whose, seconds < 5) {
            (Some(_), true) => "agent's clock skewed",
            (Some(_), false) => "agent's clock stepped",
            (None, true) => "server's clock skewed",
            (None, false) => "server's clock stepped",
        };
        self.log.fault(name);
        match whose {
            Some(place) => {
                self.nodes[place].wall.set_off(millis);
                let off = Duration::from_millis(millis.unsigned_abs());
                self.oracle.place(place, |place| place.off_at_most = place.off_at_most.max(off));
            }
            None => self.server.wall.set_off(millis),
        }
        // Nobody may notice for minutes.
        let longest = if self.rng.permille(300) { 300_000 } else { 40_000 };
        self.later(4_000, longest, Cure::SetRight(whose));
    }

    /// Somebody else tries a token that its node has spent.
    fn steal(&mut self, place: usize) {
        let (Some(token), Some(agent)) = (self.nodes[place].token.clone(), self.nodes[place].agent()) else {
            return;
        };
        if self.oracle.node(&agent).is_none() {
            return;
        }
        self.log.fault("stolen token tried");
        let road = Road { link: Link::new(self.log.clone()), ..self.operator.road.clone() };
        let thief =
            Thief { road, keys: KeyShare::new(settings::NODES + 1, &mut self.rng), log: self.log.clone() };
        let log = self.log.clone();
        tokio::spawn(async move {
            if matches!(thief.attest(&token).await, Ok(true)) {
                log.violation(&format!("(5) the join token of node {place} has attested twice"));
            }
        });
    }

    async fn cure(&mut self, cure: Cure) {
        match cure {
            Cure::Pass(place) => {
                let link = self.nodes[place].road.link.clone();
                let was_blocked = link.is_blocked();
                link.block(Way::Up, false);
                link.block(Way::Down, false);
                if was_blocked && self.rng.permille(300) {
                    link.break_all();
                }
            }
            Cure::Hasten(place) => self.nodes[place].road.link.delay(Duration::ZERO, Duration::ZERO),
            Cure::Spare(place) => {
                self.nodes[place].road.link.spare();
                self.nodes[place].is_cut = false;
            }
            Cure::Well(place) => self.nodes[place].set_mood(Mood::Well),
            Cure::SetRight(Some(place)) => self.nodes[place].wall.set_off(0),
            Cure::SetRight(None) => self.server.wall.set_off(0),
            Cure::DiskWell => self.server.disk.fail(false),
            Cure::StartServer if !self.is_server_up() => Box::pin(self.start_server()).await,
            Cure::StartAgent(place) if !self.nodes[place].is_up() => {
                Box::pin(self.nodes[place].start()).await;
            }
            Cure::Rejoin(place) => {
                if self.is_lost(place) {
                    Box::pin(self.rejoin(place)).await;
                }
            }
            Cure::Restore => self.restore(),
            Cure::Resume(what) => self.order(Order::Resume(what)),
            Cure::StartServer | Cure::StartAgent(_) => {}
        }
    }

    /// Somebody stops an entry or an agent; mostly it is taken back.
    fn stop(&mut self, place: usize) {
        let standing = self.oracle.standing();
        let what = match (self.rng.pick(&standing), self.nodes[place].agent()) {
            (Some(entry), _) if self.rng.permille(700) => StopTarget::Entry(entry.id.clone()),
            (_, Some(agent)) => StopTarget::Agent(agent),
            (Some(entry), None) => StopTarget::Entry(entry.id.clone()),
            (None, None) => return,
        };
        self.order(Order::Stop(what.clone()));
        if self.rng.permille(800) {
            self.later(5_000, 60_000, Cure::Resume(what));
        }
    }

    /// The server is lost, and begins again from the backup.
    fn restore(&mut self) {
        self.log.fault("server restored from a backup");
        if self.is_server_up() {
            self.server.disk.crash();
            self.down();
        }
        let host = host::host(&self.server.wall, &self.server.keys, self.rng.fork());
        if let Err(error) = self.server.disk.restore(&settings::trust_domain(), &host) {
            self.log.violation(&format!("the backup cannot be restored: {error}"));
        }
    }
}

/// Does what operators are told to.
async fn work(operator: Arc<Operator>, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Create(wish) => Box::pin(operator.create(wish)).await,
            Order::Update(entry, wish) => Box::pin(operator.update(&entry, wish)).await,
            Order::Delete(entry) => Box::pin(operator.delete(&entry)).await,
            Order::Ban(agent) => Box::pin(operator.ban(&agent)).await,
            Order::Evict(agent) => Box::pin(operator.evict(&agent)).await,
            Order::Stop(what) => Box::pin(operator.stop(&what)).await,
            Order::Resume(what) => Box::pin(operator.resume(&what)).await,
            Order::Audit => match Box::pin(operator.audit()).await {
                Ok(()) => operator.log.count("audits"),
                Err(_) => operator.log.count("audits cut short"),
            },
        }
    }
}
