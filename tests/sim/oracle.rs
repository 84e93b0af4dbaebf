//! What must hold, and does it? Keeps a record of its own: of what became durable, of what was acknowledged, and of what
//! reached each workload.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passant_attest::node::join_token::TokenHash;
use passant_core::host::Clock;
use passant_core::jwt_svid::JwtSvid;
use passant_core::x509_svid::{self, split_der};
use passant_core::{Bundle, Entry, EntryId, SpiffeId, StopTarget, UnixTime, X509Svid};
use passant_proto::workload::X509svidResponse;
use passant_server::record::chain::{Body, Line};
use passant_server::record::{Decision, DecisionKind};
use passant_server::state::authority::{Authority, AuthorityId, AuthorityKind, Phase};
use passant_server::state::change::{Change, Commit, Revision};
use passant_server::state::node::AttestedNode;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::disk::is_of_node;
use crate::host::{Wall, public_key_of};
use crate::log::Log;
use crate::process::Process;
use crate::settings;

/// An agent in contact learns of a change within this: a sync interval with its spread, and what the answer takes.
const STALE: Duration = Duration::from_secs(15);

/// From the rotation point of an SVID to its end, and what a failed attempt to mint costs.
const RENEWED_WITHIN: Duration = Duration::from_secs(60);

/// An agent looks at the clock this often, and tells its workloads of what has ended meanwhile, as with its entry.
const NOTICED_WITHIN: Duration = Duration::from_secs(7);

/// A banned agent in contact has told its workloads by then.
const BANNED_WITHIN: Duration = Duration::from_secs(30);

/// More certificates than a bundle here ever holds.
const ROOTS: usize = 64;

/// Judges a run. Clones are the same.
#[derive(Clone)]
pub(crate) struct Oracle(Arc<Mutex<Book>>);

struct Book {
    log: Log,
    since: Instant,
    server: Wall,
    entries: BTreeMap<EntryId, Vec<Version>>,
    intents: BTreeMap<String, Intent>,
    /// The token intents, by subject and end.
    tokens: BTreeSet<(SpiffeId, UnixTime)>,
    /// What was delivered under each serial.
    delivered: BTreeMap<String, Vec<u8>>,
    authorities: BTreeMap<AuthorityId, Known>,
    roots: BTreeMap<Vec<u8>, AuthorityId>,
    bundle: Option<Arc<Bundle>>,
    nodes: BTreeMap<SpiffeId, Arc<AttestedNode>>,
    /// Bans that were acknowledged.
    banned: BTreeMap<SpiffeId, Ban>,
    /// Stops, those that were taken back too.
    stops: BTreeMap<StopTarget, Vec<Stopped>>,
    spent: BTreeSet<TokenHash>,
    places: Vec<Place>,
    workloads: BTreeMap<u32, Workload>,
    /// What operators were last told of each entry.
    told: BTreeMap<EntryId, Told>,
}

/// What operators know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// A change was asked for, and not answered.
    Nothing,
    /// It is deleted.
    Gone,
    /// It stands in this revision.
    Stands(u64),
}

/// One revision of an entry while it stood.
struct Version {
    entry: Arc<Entry>,
    from: Instant,
    to: Option<Instant>,
}

struct Intent {
    decision: Arc<Decision>,
    at: Instant,
}

struct Ban {
    at: Instant,
    /// Whether the agent was in contact then, so that it hears of the ban with its next sync.
    is_heard: bool,
}

/// One stop, from its commit to its end.
struct Stopped {
    from: Instant,
    to: Option<Instant>,
    /// When an operator was told of it.
    told: Option<Instant>,
    /// Who had applied it by then: of the agents that could be asked all that were not named.
    applied: BTreeSet<String>,
}

struct Known {
    authority: Authority,
    /// In the order of their making: the trace must not hold what differs from run to run.
    number: usize,
    /// It signs although it may not have reached all agents: the named exception.
    is_forced: bool,
}

/// What is known of one node and its agent.
pub(crate) struct Place {
    pub(crate) clock: Wall,
    /// The farthest its clock was ever off.
    pub(crate) off_at_most: Duration,
    pub(crate) agent: Option<SpiffeId>,
    /// Since when nothing stands between agent and server.
    pub(crate) reachable_since: Option<Instant>,
    /// Since when the agent hears the server without any trouble.
    pub(crate) in_contact_since: Option<Instant>,
    pub(crate) attestors_well_since: Option<Instant>,
}

struct Workload {
    process: Arc<Process>,
    place: usize,
    stream: Stream,
    svids: Vec<Holding>,
    /// The X.509 authorities of the bundle it holds.
    trusts: BTreeSet<AuthorityId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Open { since: Instant },
    Ended(Option<Code>),
}

#[derive(Clone)]
struct Holding {
    id: SpiffeId,
    not_after: UnixTime,
    authority: Option<AuthorityId>,
}

impl Oracle {
    pub(crate) fn new(log: Log, since: Instant, server: Wall) -> Self {
        Self(Arc::new(Mutex::new(Book {
            log,
            since,
            server,
            entries: BTreeMap::new(),
            intents: BTreeMap::new(),
            tokens: BTreeSet::new(),
            delivered: BTreeMap::new(),
            authorities: BTreeMap::new(),
            roots: BTreeMap::new(),
            bundle: None,
            nodes: BTreeMap::new(),
            banned: BTreeMap::new(),
            stops: BTreeMap::new(),
            spent: BTreeSet::new(),
            places: Vec::new(),
            workloads: BTreeMap::new(),
            told: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_place(&self, clock: Wall) {
        self.lock().places.push(Place {
            clock,
            off_at_most: Duration::ZERO,
            agent: None,
            reachable_since: None,
            in_contact_since: None,
            attestors_well_since: Some(Instant::now()),
        });
    }

    pub(crate) fn place(&self, at: usize, change: impl FnOnce(&mut Place)) {
        change(&mut self.lock().places[at]);
    }

    /// The server made `commits` durable.
    pub(crate) fn committed(&self, after: Revision, commits: &[Commit]) {
        let mut book = self.lock();
        for (revision, commit) in (after.number() + 1..).zip(commits) {
            book.commit(revision, commit);
        }
    }

    /// A backup was restored: of what nodes are to get, `entries` stand now, and nothing else does.
    pub(crate) fn restored(&self, entries: Vec<Arc<Entry>>) {
        self.lock().restore(entries);
    }

    /// Lines of the decision record are durable.
    pub(crate) fn recorded(&self, lines: &[u8]) {
        let mut book = self.lock();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // What is torn counts for nothing.
            let Ok(Line { body: Body::Intent { decision }, .. }) = serde_json::from_slice(line) else {
                continue;
            };
            book.intend(decision);
        }
    }

    /// A workload has connected.
    pub(crate) fn connected(&self, place: usize, process: &Arc<Process>) {
        let workload = Workload {
            process: Arc::clone(process),
            place,
            stream: Stream::Open { since: Instant::now() },
            svids: Vec::new(),
            trusts: BTreeSet::new(),
        };
        self.lock().workloads.insert(process.number, workload);
    }

    /// A workload's stream was refused or has ended.
    pub(crate) fn ended(&self, process: &Process, status: Option<&Status>) {
        let mut book = self.lock();
        let code = status.map(Status::code);
        let said = code.map_or_else(|| "end".to_owned(), |code| format!("{code:?}"));
        book.log.trace(format!("workload {} hears {said}", process.number));
        if code == Some(Code::PermissionDenied) {
            book.denied(process);
        }
        if let Some(workload) = book.workloads.get_mut(&process.number) {
            workload.stream = Stream::Ended(code);
            workload.svids.clear();
        }
    }

    /// A process has exited.
    pub(crate) fn exited(&self, process: &Process) {
        self.lock().workloads.remove(&process.number);
    }

    /// An answer of the Workload API reached a workload.
    pub(crate) fn delivered(&self, process: &Process, answer: &X509svidResponse) {
        self.lock().deliver(process, answer);
    }

    /// A JWT-SVID reached a workload.
    pub(crate) fn delivered_token(&self, process: &Process, token: &str) {
        self.lock().deliver_token(process, token);
    }

    /// An operator was told how an entry stands, or asks for a change of it.
    pub(crate) fn tell(&self, id: &str, told: Told) {
        if let Ok(id) = EntryId::parse(id) {
            self.lock().told.insert(id, told);
        }
    }

    /// An operator was told that an agent is banned.
    pub(crate) fn acknowledge_ban(&self, agent: &SpiffeId) {
        let mut book = self.lock();
        let of_agent = |place: &&Place| place.agent.as_ref() == Some(agent);
        let is_heard =
            book.places.iter().find(of_agent).is_some_and(|place| place.in_contact_since.is_some());
        book.banned.insert(agent.clone(), Ban { at: Instant::now(), is_heard });
    }

    /// An operator was told that something is stopped, and which of the agents that it concerns are not known to have applied
    /// it.
    pub(crate) fn acknowledge_stop(&self, what: &StopTarget, pending: &BTreeSet<String>) {
        let mut book = self.lock();
        let is_right = book.server.off_by_millis().abs() <= 2_000;
        let known: Vec<String> = book.nodes.keys().map(SpiffeId::to_string).collect();
        let Some(stop) = book.stops.get_mut(what).and_then(|stops| stops.last_mut()) else {
            return book.violation(&format!("(6) the stop of {what} was acknowledged and is not durable"));
        };
        if stop.to.is_none() && stop.told.is_none() {
            stop.told = Some(Instant::now());
            // By a clock that is wrong, what agents still hold may have ended.
            if is_right {
                stop.applied = known.into_iter().filter(|agent| !pending.contains(agent)).collect();
            }
        }
    }

    /// What stands in the server after it started, as it tells operators: entries with their revisions, and banned agents.
    pub(crate) fn audit(&self, entries: &BTreeMap<String, u64>, banned: &BTreeSet<String>) {
        self.lock().audit(entries, banned);
    }

    /// Whether the server is believed by whoever has the right time: an authority that was made while its clock ran ahead
    /// is not, until that time has come.
    pub(crate) fn is_believed(&self) -> bool {
        let book = self.lock();
        let truth = book.truth();
        book.authorities.values().all(|known| {
            let signs = known.authority.phase == Phase::Active && known.authority.kind == AuthorityKind::X509;
            !signs || known.authority.not_before <= truth
        })
    }

    /// The entries that stand now, without those that make an agent stand for its node.
    pub(crate) fn standing(&self) -> Vec<Arc<Entry>> {
        let book = self.lock();
        book.versions()
            .filter(|version| version.to.is_none() && is_of_node(&version.entry))
            .map(|version| Arc::clone(&version.entry))
            .collect()
    }

    pub(crate) fn node(&self, agent: &SpiffeId) -> Option<Arc<AttestedNode>> {
        self.lock().nodes.get(agent).cloned()
    }

    pub(crate) fn bundle(&self) -> Option<Arc<Bundle>> {
        self.lock().bundle.clone()
    }

    /// Looks at everything that must hold at every moment.
    pub(crate) fn look(&self) {
        self.lock().look();
    }

    /// What is not yet as the server has it; nothing once all agents and workloads have caught up.
    pub(crate) fn behind(&self) -> Vec<String> {
        self.lock().behind()
    }
}

impl Book {
    fn violation(&self, what: &str) {
        self.log.violation(what);
    }

    fn versions(&self) -> impl Iterator<Item = &Version> {
        self.entries.values().flatten()
    }

    fn truth(&self) -> UnixTime {
        Wall::truth(self.since)
    }

    fn commit(&mut self, revision: u64, commit: &Commit) {
        let mut said = Vec::new();
        for change in &commit.changes {
            said.push(self.change(change));
        }
        self.log.count("commits");
        self.log.trace(format!("commit {revision}: {}", said.join(", ")));
    }

    /// Takes over a change, and says it in words that are the same in each run.
    fn change(&mut self, change: &Change) -> String {
        let now = Instant::now();
        match change {
            Change::PutEntry(entry) => {
                let versions = self.entries.entry(entry.id.clone()).or_default();
                versions.iter_mut().for_each(|version| version.end(now));
                versions.push(Version { entry: Arc::clone(entry), from: now, to: None });
            }
            Change::DeleteEntry(id) => {
                self.entries.entry(id.clone()).or_default().iter_mut().for_each(|version| version.end(now));
            }
            Change::PutNode(node) => self.put_node(node),
            Change::DeleteNode(id) => {
                self.nodes.remove(id);
                self.banned.remove(id);
            }
            Change::PutAuthority(authority) => return self.put_authority(authority),
            Change::DeleteAuthority(id) => {
                let number = self.authorities.get(id).map_or(0, |known| known.number);
                self.log.count("authorities pruned");
                return format!("-authority {number}");
            }
            Change::PutBundle(bundle) => {
                self.bundle = Some(Arc::clone(bundle));
                return format!("+bundle {}", bundle.sequence);
            }
            Change::PutToken(token) if token.spent.is_some() => {
                if !self.spent.insert(token.hash) {
                    self.log.count("join tokens spent again by their holder");
                }
            }
            Change::PutToken(_)
            | Change::DeleteToken(_)
            | Change::DeleteBundle(_)
            | Change::PutFederation(_)
            | Change::DeleteFederation(_) => {}
            Change::PutStop(stop) => {
                let stopped = Stopped { from: now, to: None, told: None, applied: BTreeSet::new() };
                let stops = self.stops.entry(stop.target.clone()).or_default();
                stops.iter_mut().for_each(|stop| stop.end(now));
                stops.push(stopped);
            }
            Change::DeleteStop(what) => {
                self.stops.entry(what.clone()).or_default().iter_mut().for_each(|stop| stop.end(now));
            }
        }
        let sign = if change.is_put() { '+' } else { '-' };
        format!("{sign}{}", change.key())
    }

    fn restore(&mut self, entries: Vec<Arc<Entry>>) {
        let now = Instant::now();
        let lost: Vec<EntryId> = self
            .versions()
            .filter(|version| version.to.is_none() && is_of_node(&version.entry))
            .map(|version| version.entry.id.clone())
            .collect();
        for id in lost {
            self.entries.entry(id.clone()).or_default().iter_mut().for_each(|version| version.end(now));
            self.told.insert(id, Told::Gone);
        }
        let said: Vec<&str> = entries.iter().map(|entry| entry.spiffe_id.path()).collect();
        self.log.trace(format!("restored: {said:?}"));
        for entry in entries {
            self.told.insert(entry.id.clone(), Told::Stands(entry.revision));
            let versions = self.entries.entry(entry.id.clone()).or_default();
            versions.push(Version { entry, from: now, to: None });
        }
    }

    fn put_node(&mut self, node: &Arc<AttestedNode>) {
        let was_banned = self.nodes.get(&node.id).is_some_and(|before| before.is_banned());
        if was_banned && !node.is_banned() {
            self.violation(&format!("banned agent {} came back by itself", node.id));
        }
        self.nodes.insert(node.id.clone(), Arc::clone(node));
    }

    fn put_authority(&mut self, authority: &Authority) -> String {
        let number = match self.authorities.get(&authority.id) {
            Some(known) => known.number,
            None => self.authorities.len(),
        };
        let before = self.authorities.get(&authority.id).map(|known| known.authority.phase);
        let was_active = before == Some(Phase::Active);
        let mut is_forced = self.authorities.get(&authority.id).is_some_and(|known| known.is_forced);
        if authority.phase == Phase::Active && !was_active {
            self.log.count(match authority.kind {
                AuthorityKind::X509 => "rotations of the X.509 authority",
                AuthorityKind::Jwt => "rotations of the JWT authority",
            });
            is_forced = self.is_past_the_bound(authority.kind);
            if is_forced {
                self.log.count("activations at the bound");
            } else if before == Some(Phase::Prepared) && authority.kind == AuthorityKind::X509 {
                self.look_at_reach(&authority.id, number);
            }
        }
        if let Some(der) = &authority.certificate {
            self.roots.insert(der.clone(), authority.id.clone());
        }
        let said = format!("+authority {number} {:?}", authority.phase);
        self.authorities
            .insert(authority.id.clone(), Known { authority: authority.clone(), number, is_forced });
        said
    }

    /// No authority signs before those have it who would meet what it signs. Agents whose SVIDs have ended by the server's
    /// clock, right or wrong, are not waited for.
    fn look_at_reach(&self, id: &AuthorityId, number: usize) {
        let now = self.server.now();
        let is_waited_for = |workload: &&Workload| {
            let agent = self.places[workload.place].agent.as_ref();
            agent.and_then(|agent| self.nodes.get(agent)).is_some_and(|node| node.is_standing(now))
        };
        let up_to_date = self.workloads.values().filter(|workload| self.is_up_to_date(workload));
        for workload in up_to_date.filter(is_waited_for) {
            self.log.count("bundles looked at when an authority began to sign");
            if !workload.trusts.contains(id) {
                self.violation(&format!(
                    "(2) authority {number} signs, and is not in the bundle of workload {} on node {}",
                    workload.process.number, workload.place
                ));
            }
        }
    }

    /// Whether the active authority of this kind can no longer cover one default lifetime, so that its successor signs
    /// whoever lacks it. The very first is had by all: nobody has attested before it signs.
    fn is_past_the_bound(&self, kind: AuthorityKind) -> bool {
        let now = self.server.now();
        let signing = |known: &&Known| {
            known.authority.kind == kind
                && known.authority.activated_at.is_some()
                && known.authority.not_after > now
        };
        let newest = self.authorities.values().filter(signing).map(|known| known.authority.not_after).max();
        !self.nodes.is_empty() && newest.is_none_or(|end| now.until(end) < settings::BOUND)
    }

    fn intend(&mut self, decision: Arc<Decision>) {
        self.log.count("intents");
        if decision.kind == DecisionKind::JwtSvid {
            self.tokens.insert((decision.spiffe_id.clone(), decision.not_after));
        }
        let serial = decision.serial.clone();
        if self.intents.contains_key(&serial) {
            self.violation(&format!("serial {serial} was intended twice"));
        }
        self.intents.insert(serial, Intent { decision, at: Instant::now() });
    }

    /// The stops of what an entry gives at `place`, those that were taken back too.
    fn stops_of(&self, place: usize, entry: &EntryId) -> impl Iterator<Item = &Stopped> {
        let agent = self.places[place].agent.clone().map(StopTarget::Agent);
        let targets = [Some(StopTarget::Entry(entry.clone())), agent];
        targets.into_iter().flatten().filter_map(|what| self.stops.get(&what)).flatten()
    }

    /// Whether the entry has been stopped at `place` for longer than `span`, and still is.
    fn is_stopped(&self, place: usize, entry: &EntryId, span: Duration) -> bool {
        self.stops_of(place, entry).any(|stop| stop.to.is_none() && stop.from.elapsed() > span)
    }

    /// Whether the agent at `place` has said that it applied a stop of the entry that still stands.
    fn is_withdrawn(&self, place: usize, entry: &EntryId) -> bool {
        let agent = self.places[place].agent.as_ref().map(SpiffeId::to_string);
        self.stops_of(place, entry).any(|stop| {
            stop.to.is_none()
                && stop.told.is_some()
                && agent.as_ref().is_some_and(|agent| stop.applied.contains(agent))
        })
    }

    /// Whether the server may have had the agent at `place` give `id` to `process` within the time that the agent may be
    /// behind.
    fn is_entitled(&self, place: usize, process: &Process, id: &SpiffeId) -> bool {
        let earliest = self.places[place].in_contact_since.filter(|since| since.elapsed() > STALE);
        let earliest = earliest.map(|_| Instant::now() - STALE);
        let (have, parent) = (process.selectors(), settings::alias(place));
        self.versions().any(|version| {
            version.entry.spiffe_id == *id
                && version.entry.parent_id == parent
                && have.contains_all(&version.entry.selectors)
                && version.to.is_none_or(|to| earliest.is_none_or(|earliest| to >= earliest))
                && !(earliest.is_some() && self.is_stopped(place, &version.entry.id, STALE))
                && !self.is_withdrawn(place, &version.entry.id)
        })
    }

    fn deliver(&mut self, process: &Process, answer: &X509svidResponse) {
        let Some(workload) = self.workloads.get(&process.number) else { return };
        let place = workload.place;
        let mut svids = Vec::new();
        let mut trusts = BTreeSet::new();
        for message in &answer.svids {
            trusts = self.roots_of(&message.bundle);
            match self.judge(process, place, &message.x509_svid, &message.x509_svid_key, &trusts) {
                Ok(holding) => svids.push(holding),
                Err(why) => {
                    self.violation(&format!("workload {} on node {place}: {why}", process.number));
                }
            }
        }
        let ids: Vec<&str> = svids.iter().map(|holding| holding.id.path()).collect();
        self.log.count("deliveries");
        self.log.trace(format!("workload {} gets {ids:?}, {} roots", process.number, trusts.len()));
        if let Some(workload) = self.workloads.get_mut(&process.number) {
            workload.svids = svids;
            workload.trusts = trusts;
        }
        self.look_at_bundles();
    }

    /// The authorities of a bundle in DER.
    fn roots_of(&self, der: &[u8]) -> BTreeSet<AuthorityId> {
        let roots = split_der(der, ROOTS).unwrap_or_default();
        roots.iter().filter_map(|root| self.roots.get(root.as_ref()).cloned()).collect()
    }

    /// What is wrong with one X509-SVID that reached `process`.
    fn judge(
        &mut self,
        process: &Process,
        place: usize,
        chain: &[u8],
        key: &[u8],
        trusts: &BTreeSet<AuthorityId>,
    ) -> Result<Holding, String> {
        let chain = split_der(chain, ROOTS).map_err(|error| error.to_string())?;
        let svid = X509Svid::parse(chain).map_err(|error| error.to_string())?;
        let (id, serial) = (svid.id().clone(), svid.serial().to_string());
        self.log.count("X509-SVIDs judged");
        if !id.is_member_of(&settings::trust_domain()) {
            return Err(format!("(1) {id} is of another trust domain"));
        }
        if public_key_of(key) != Some(svid.public_key()) {
            return Err(format!("the key that came with {id} is another"));
        }
        if !self.is_entitled(place, process, &id) && process.steady_since().elapsed() > LOOKED_AGAIN {
            return Err(format!("(1) it is given {id}, but no entry says so for {:?}", process.selectors()));
        }
        let clock = self.places[place].clock.now();
        if svid.not_after() < clock {
            return Err(format!(
                "(3) it is given {id}, which ended {} before",
                svid.not_after().until(clock).as_secs()
            ));
        }
        let Some(intent) = self.intents.get(&serial) else {
            return Err(format!("(4) {id} has serial {serial}, for which there is no durable intent"));
        };
        let decision = &intent.decision;
        if decision.kind != DecisionKind::X509Svid || decision.spiffe_id != id {
            return Err(format!("(4) serial {serial} was intended for {}", decision.spiffe_id));
        }
        if svid.not_after() > decision.not_after {
            return Err(format!("(4) {id} lives longer than was intended"));
        }
        if let Some((entry, revision)) = &decision.entry
            && let Some(end) =
                self.revision(entry, *revision, intent.at).and_then(|version| version.entry.expires_at)
            && svid.not_after() > end
        {
            return Err(format!("{id} outlives its entry by {} s", end.until(svid.not_after()).as_secs()));
        }
        let authority = decision.authority.clone();
        if let Some(end) =
            authority.as_ref().and_then(|id| self.authorities.get(id)).map(|it| it.authority.not_after)
            && svid.not_after() > end
        {
            return Err(format!(
                "{id} outlives its authority by {} s",
                end.until(svid.not_after()).as_secs()
            ));
        }
        if let Some(agent) = &self.places[place].agent
            && let Some(ban) = self.banned.get(agent)
            && intent.at > ban.at
        {
            return Err(format!("(5) {id} was signed for {agent} after its ban was acknowledged"));
        }
        if let Some((entry, _)) = &decision.entry {
            let meanwhile = |stop: &Stopped| {
                stop.told.is_some_and(|told| intent.at > told) && stop.to.is_none_or(|to| intent.at < to)
            };
            if self.stops_of(place, entry).any(meanwhile) {
                return Err(format!(
                    "(5) {id} was signed after the stop of its entry or agent was acknowledged"
                ));
            }
        }
        if authority.as_ref().is_none_or(|authority| !trusts.contains(authority)) {
            return Err(format!("(2) {id} does not verify against the bundle it came with"));
        }
        let leaf = svid.chain_der();
        match self.delivered.get(&serial) {
            Some(before) if *before != leaf => {
                return Err(format!("(4) serial {serial} is on two certificates"));
            }
            Some(_) => {}
            None => {
                let bundle = self.bundle.clone().ok_or("no bundle was ever committed")?;
                let issued = svid.not_before().plus(passant_core::limits::BACKDATE).min(svid.not_after());
                x509_svid::verify(svid.chain().to_vec(), &bundle, issued)
                    .map_err(|error| format!("(2) {id} does not verify: {error}"))?;
                self.delivered.insert(serial.clone(), leaf);
                self.log.count("serials delivered");
            }
        }
        Ok(Holding { id, not_after: svid.not_after(), authority })
    }

    /// What an entry said in `revision`, as it was known at `at`: after a restoration there may be another of that number.
    fn revision(&self, id: &EntryId, revision: u64, at: Instant) -> Option<&Version> {
        let then = |version: &&Version| version.entry.revision == revision && version.from <= at;
        self.entries.get(id)?.iter().rev().find(then)
    }

    fn deliver_token(&mut self, process: &Process, token: &str) {
        let Some(workload) = self.workloads.get(&process.number) else { return };
        let place = workload.place;
        if let Err(why) = self.judge_token(process, place, token) {
            self.violation(&format!("workload {} on node {place}: {why}", process.number));
        }
    }

    fn judge_token(&self, process: &Process, place: usize, token: &str) -> Result<(), String> {
        let svid = JwtSvid::parse_unverified(token).map_err(|error| error.to_string())?;
        let id = svid.id();
        self.log.count("JWT-SVIDs judged");
        self.log.trace(format!("workload {} gets a token for {}", process.number, id.path()));
        if !self.is_entitled(place, process, id) && process.steady_since().elapsed() > LOOKED_AGAIN {
            return Err(format!("(1) it is given a token for {id}, but no entry says so"));
        }
        if svid.expires_at() < self.places[place].clock.now() {
            return Err(format!("(3) it is given a token for {id} that has expired"));
        }
        if !self.tokens.contains(&(id.clone(), svid.expires_at())) {
            return Err(format!("(4) a token for {id} has no durable intent"));
        }
        let bundle = self.bundle.clone().ok_or("no bundle was ever committed")?;
        let of = |_: &_| Some(Arc::clone(&bundle));
        let at = svid.issued_at().unwrap_or_else(|| self.truth());
        JwtSvid::verify(token, settings::AUDIENCE, &of, at)
            .map(drop)
            .map_err(|error| format!("(2) a token for {id} does not verify: {error}"))
    }

    /// "No identity issued" needs a view that the server confirmed within half a minute.
    fn denied(&mut self, process: &Process) {
        let Some(workload) = self.workloads.get(&process.number) else { return };
        let place = workload.place;
        self.log.count("refusals for want of an entry");
        let window = CONFIRMED + self.places[place].off_at_most;
        let Some(begin) = Instant::now().checked_sub(window) else { return };
        if process.steady_since() > begin {
            return;
        }
        let (have, parent, truth) = (process.selectors(), settings::alias(place), self.truth());
        let all_along = self.versions().find(|version| {
            version.entry.parent_id == parent
                && !self.stops_of(place, &version.entry.id).any(|stop| stop.to.is_none_or(|to| to >= begin))
                && version.to.is_none()
                && version.from < begin
                && !version.entry.has_ended(truth.plus(settings::CLOCKS_OFF))
                && have.contains_all(&version.entry.selectors)
        });
        if let Some(version) = all_along {
            self.violation(&format!(
                "workload {} on node {place} is told that it has no identity, but {} stood for {} s",
                process.number,
                version.entry.spiffe_id,
                version.from.elapsed().as_secs()
            ));
        }
    }

    fn audit(&mut self, entries: &BTreeMap<String, u64>, banned: &BTreeSet<String>) {
        let now = self.truth();
        for (id, told) in &self.told {
            let wanted = match told {
                Told::Nothing => continue,
                Told::Gone => None,
                Told::Stands(revision) => Some(*revision),
            };
            self.log.count("acknowledged writes audited");
            let ends = self.entries.get(id).and_then(|versions| versions.last()?.entry.expires_at);
            // Cleared away, or about to be: clocks may be off.
            if ends.is_some_and(|end| end < now.plus(settings::CLOCKS_OFF)) {
                continue;
            }
            let found = entries.get(id.as_str()).copied();
            if found != wanted {
                let said = format!("(6) entry {id} was acknowledged as {told:?} and is now {found:?}");
                self.log.violation(&said);
            }
        }
        for agent in self.banned.keys() {
            self.log.count("acknowledged bans audited");
            if !banned.contains(agent.path()) {
                self.log.violation(&format!("(6) the ban of {agent} was acknowledged and is gone"));
            }
        }
    }

    fn look(&self) {
        self.log.count("looks");
        self.look_at_bundles();
        self.look_at_truth();
        let now = Instant::now();
        let truth = self.truth();
        for workload in self.workloads.values() {
            let Stream::Open { since } = workload.stream else { continue };
            let place = &self.places[workload.place];
            let (Some(contact), Some(attestors)) = (place.in_contact_since, place.attestors_well_since)
            else {
                continue;
            };
            let steady = since.max(contact).max(attestors).max(workload.process.steady_since());
            for held in &workload.svids {
                if now - steady > RENEWED_WITHIN && held.not_after.plus(NOTICED_WITHIN) < truth {
                    self.violation(&format!(
                        "(3) workload {} on node {} holds {}, which ended {} s ago",
                        workload.process.number,
                        workload.place,
                        held.id,
                        held.not_after.until(truth).as_secs()
                    ));
                }
            }
        }
        for workload in self.workloads.values().filter(|workload| !workload.svids.is_empty()) {
            let place = &self.places[workload.place];
            let banned = place.agent.as_ref().and_then(|agent| self.banned.get(agent));
            if let (Some(ban), Some(reachable)) = (banned, place.reachable_since)
                && ban.is_heard
                && reachable <= ban.at
                && now - ban.at > BANNED_WITHIN
            {
                let number = workload.process.number;
                self.violation(&format!("(5) workload {number} is served by a banned agent"));
            }
        }
    }

    /// Every SVID held below an agent in contact verifies against every bundle held below one.
    fn look_at_bundles(&self) {
        let contact = |workload: &&Workload| self.is_up_to_date(workload);
        let truth = self.truth();
        let mut used: BTreeMap<&AuthorityId, &Holding> = BTreeMap::new();
        for workload in self.workloads.values().filter(contact) {
            for held in workload.svids.iter().filter(|held| held.not_after > truth) {
                if let Some(authority) = &held.authority {
                    used.insert(authority, held);
                }
            }
        }
        used.retain(|authority, _| self.authorities.get(authority).is_some_and(|known| !known.is_forced));
        for workload in self.workloads.values().filter(contact) {
            for (authority, held) in &used {
                self.log.count("pairs of SVID and bundle judged");
                if !workload.trusts.contains(*authority) {
                    let number = self.authorities.get(*authority).map_or(0, |known| known.number);
                    self.violation(&format!(
                        "(2) {} of authority {number} does not verify against the bundle of workload {} on node {}",
                        held.id, workload.process.number, workload.place
                    ));
                }
            }
        }
    }

    /// Whether the workload has an open stream and SVIDs, and nothing has kept news from it for a while.
    fn is_up_to_date(&self, workload: &Workload) -> bool {
        let place = &self.places[workload.place];
        matches!(workload.stream, Stream::Open { .. })
            && !workload.svids.is_empty()
            && place.in_contact_since.is_some_and(|since| since.elapsed() > CONTACT)
            && place.attestors_well_since.is_some_and(|since| since.elapsed() > STALE)
            && workload.process.steady_since().elapsed() > STALE
    }

    /// No stale truth: below an agent in contact, nobody holds what entries ceased to say a while ago; and if it has long been in
    /// contact, who holds an open stream holds what the entries say.
    fn look_at_truth(&self) {
        let since = |when: Option<Instant>, least: Duration| when.is_some_and(|at| at.elapsed() > least);
        for workload in self.workloads.values() {
            let place = &self.places[workload.place];
            let Stream::Open { since: opened } = workload.stream else { continue };
            let is_told = since(place.in_contact_since, TOLD_WITHIN)
                && since(place.attestors_well_since, TOLD_WITHIN)
                && since(Some(opened.max(workload.process.steady_since())), TOLD_WITHIN);
            if !is_told {
                continue;
            }
            let is_recovered =
                since(place.in_contact_since, RECOVERED) && since(place.attestors_well_since, RECOVERED);
            self.log.count("workloads held against the truth");
            let (have, parent) = (workload.process.selectors(), settings::alias(workload.place));
            let of_it = |version: &&Version| {
                version.entry.parent_id == parent && have.contains_all(&version.entry.selectors)
            };
            let truth = self.truth();
            let lacks = self.versions().filter(of_it).find(|version| {
                is_recovered
                    && version.to.is_none()
                    && version.from.elapsed() > TOLD_WITHIN
                    && !self
                        .stops_of(workload.place, &version.entry.id)
                        .any(|stop| stop.to.is_none_or(|to| to.elapsed() <= TOLD_WITHIN))
                    && !version.entry.has_ended(truth.plus(settings::CLOCKS_OFF))
                    && !workload.svids.iter().any(|held| held.id == version.entry.spiffe_id)
            });
            if let Some(version) = lacks {
                self.violation(&format!(
                    "(7) workload {} on node {} lacks {}, for which an entry stands for {} s",
                    workload.process.number,
                    workload.place,
                    version.entry.spiffe_id,
                    version.from.elapsed().as_secs()
                ));
            }
            let is_said = |held: &&Holding| {
                self.versions().filter(of_it).any(|version| {
                    version.entry.spiffe_id == held.id
                        && version.to.is_none_or(|to| to.elapsed() <= TOLD_WITHIN)
                        && !self.is_stopped(workload.place, &version.entry.id, TOLD_WITHIN)
                })
            };
            if let Some(held) = workload.svids.iter().find(|held| !is_said(held)) {
                self.violation(&format!(
                    "(7) workload {} on node {} still holds {}, for which no entry has stood for {} s",
                    workload.process.number,
                    workload.place,
                    held.id,
                    TOLD_WITHIN.as_secs()
                ));
            }
        }
    }

    fn behind(&self) -> Vec<String> {
        let truth = self.truth();
        let roots: BTreeSet<AuthorityId> = self
            .bundle
            .iter()
            .flat_map(|bundle| &bundle.x509_authorities)
            .filter_map(|root| self.roots.get(&root.der).cloned())
            .collect();
        let mut behind = Vec::new();
        for workload in self.workloads.values() {
            let (have, parent) = (workload.process.selectors(), settings::alias(workload.place));
            let mut wanted: Vec<&str> = self
                .versions()
                .filter(|version| {
                    version.to.is_none()
                        && version.entry.parent_id == parent
                        && !version.entry.has_ended(truth)
                        && !self.is_stopped(workload.place, &version.entry.id, Duration::ZERO)
                        && have.contains_all(&version.entry.selectors)
                })
                .map(|version| version.entry.spiffe_id.path())
                .collect();
            let mut got: Vec<&str> = workload.svids.iter().map(|held| held.id.path()).collect();
            wanted.sort_unstable();
            got.sort_unstable();
            let is_told = match workload.stream {
                Stream::Open { .. } => !wanted.is_empty() && workload.trusts == roots,
                Stream::Ended(code) => wanted.is_empty() && code == Some(Code::PermissionDenied),
            };
            if got != wanted || !is_told {
                let (number, place) = (workload.process.number, workload.place);
                let stream = match workload.stream {
                    Stream::Open { .. } => "open".to_owned(),
                    Stream::Ended(code) => format!("ended {code:?}"),
                };
                behind.push(format!(
                    "workload {number} on node {place} ({stream}) holds {got:?} and should hold {wanted:?}"
                ));
            }
        }
        behind
    }
}

impl Stopped {
    fn end(&mut self, now: Instant) {
        self.to = self.to.or(Some(now));
    }
}

impl Version {
    fn end(&mut self, now: Instant) {
        self.to = self.to.or(Some(now));
    }
}

/// After this long without any trouble, an agent waits for nothing any more because of earlier trouble: twice the longest wait
/// between two attempts to mint.
const RECOVERED: Duration = Duration::from_secs(120);

/// A workload below such an agent holds what the entries say by then.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// A process that has moved is looked at again by then, and attested, which may take a while.
const LOOKED_AGAIN: Duration = Duration::from_secs(20);

/// After this long without any trouble, an agent has what it fetched, and so have its workloads.
const CONTACT: Duration = Duration::from_secs(20);

/// How old a view may be that says no, and what its transfer may have taken.
const CONFIRMED: Duration = Duration::from_secs(30 + 30);
