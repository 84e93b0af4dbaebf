//! What do the tests of the issue path stand on? A whole issuer in memory, under a clock that the test moves.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use passant_attest::node::join_token::TokenHash;
use passant_attest::node::{Dialog, DialogError, Proof, Rejection, Verifier};
use passant_core::bundle::Bundle;
use passant_core::csr;
use passant_core::host::ManualClock;
use passant_core::keys::{KeyType, SigningKey};
use passant_core::{
    Entry, EntryDraft, EntryId, Host, Refusal, Selector, Selectors, SpiffeId, TrustDomain, UnixTime,
};

use crate::access::{Rights, Role};
use crate::attest_node::{AttestedSvid, NodeAttestation, NodeMethod};
use crate::authority::{Authorities, AuthorityConfig, AuthorityError, AuthorityParts};
use crate::caller::{AgentCaller, Callers, ConnPeer, LocalPeer, PeerSvid};
use crate::issue::{IssueConfig, IssuedX509, Issuer, SigningPool};
use crate::journal::Journal;
use crate::keystore::MemoryKeys;
use crate::record::chain::{Body, Line};
use crate::record::segments::{MemorySegments, Segments};
use crate::record::{Decision, DecisionLog, Outcome, Retention};
use crate::state::State;
use crate::state::change::Change;
use crate::state::node::AttestedNode;
use crate::state::token::JoinToken;
use crate::store::memory::{MemoryDisk, MemoryStore};

/// The second at which every rig starts.
pub(crate) const START: UnixTime = UnixTime::from_secs(1_790_000_000);

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// What outlives a restart of the server.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    store: MemoryDisk,
    segments: MemorySegments,
    pub(crate) keys: Arc<MemoryKeys>,
    /// Set to make the decision record's disk refuse.
    pub(crate) is_full: Arc<AtomicBool>,
    /// What happens while the next decision is being written.
    pub(crate) meanwhile: Meanwhile,
}

type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

pub(crate) struct Rig {
    pub(crate) disk: Disk,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) host: Host,
    pub(crate) journal: Journal,
    pub(crate) record: DecisionLog,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) issuer: Issuer,
    pub(crate) callers: Callers,
    pub(crate) nodes: NodeAttestation,
}

/// The parts of the configuration that tests turn.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) ca_ttl: Duration,
    pub(crate) x509_svid_ttl: Duration,
    pub(crate) agent_ttl: Duration,
    pub(crate) jwt_svid_ttl: Duration,
    pub(crate) key_type: KeyType,
    pub(crate) jwt_issuer: Option<String>,
    pub(crate) admin_ids: BTreeSet<SpiffeId>,
    pub(crate) roles: Vec<Role>,
    pub(crate) accept_lost_keys: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ca_ttl: 24 * HOUR,
            x509_svid_ttl: HOUR,
            agent_ttl: HOUR,
            jwt_svid_ttl: 5 * MINUTE,
            key_type: KeyType::EcP256,
            jwt_issuer: None,
            admin_ids: BTreeSet::new(),
            roles: Vec::new(),
            accept_lost_keys: false,
        }
    }
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    domain().join(path).unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> Selectors {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        Self::open(Disk::default(), START, settings).await.unwrap()
    }

    /// Starts a server over `disk`.
    pub(crate) async fn open(disk: Disk, now: UnixTime, settings: Settings) -> Result<Self, AuthorityError> {
        let clock = Arc::new(ManualClock::new(now));
        let host = Host { clock: Arc::clone(&clock) as _, ..Host::system() };
        let store = MemoryStore::open(&disk.store, &domain(), &host).unwrap();
        let journal = Journal::open(Box::new(store), &domain(), host.clone()).unwrap();
        let segments = Box::new(Fragile {
            segments: disk.segments.clone(),
            is_full: Arc::clone(&disk.is_full),
            meanwhile: Arc::clone(&disk.meanwhile),
        });
        let record = DecisionLog::over(segments, Retention::default(), host.clone()).unwrap();
        let pool = SigningPool::threads(NonZeroUsize::new(2).unwrap());
        let parts = AuthorityParts {
            journal: journal.clone(),
            keystore: Arc::clone(&disk.keys) as _,
            record: record.clone(),
            host: host.clone(),
            pool: pool.clone(),
        };
        let config = AuthorityConfig {
            ca_ttl: settings.ca_ttl,
            x509_key_type: settings.key_type,
            jwt_key_type: settings.key_type,
            x509_leaf_ttl: settings.x509_svid_ttl.max(settings.agent_ttl),
            jwt_leaf_ttl: settings.jwt_svid_ttl,
            settle: Duration::from_secs(5),
            refresh_hint: Some(5 * MINUTE),
            accept_lost_keys: settings.accept_lost_keys,
        };
        let authorities = match Authorities::open(parts, config).await {
            Ok(authorities) => Arc::new(authorities),
            Err(error) => {
                journal.close().await;
                return Err(error);
            }
        };
        let config = IssueConfig {
            x509_svid_ttl: settings.x509_svid_ttl,
            jwt_svid_ttl: settings.jwt_svid_ttl,
            agent_ttl: settings.agent_ttl,
            server_ttl: HOUR,
            downstream_ttl: settings.ca_ttl,
            jwt_issuer: settings.jwt_issuer,
            key_type: settings.key_type,
        };
        let issuer = Issuer::new(
            journal.clone(),
            Arc::clone(&authorities),
            record.clone(),
            host.clone(),
            pool,
            config,
            Arc::default(),
        );
        let rights = Arc::new(Rights::new(settings.admin_ids, settings.roles));
        let callers = Callers::new(journal.clone(), Arc::clone(&rights), host.clone());
        let spoken = |method, can_reattest| NodeMethod::Verified(Arc::new(Spoken { method, can_reattest }));
        let methods = vec![NodeMethod::JoinToken, spoken("spoken", true), spoken("once", false)];
        let nodes =
            NodeAttestation::new(journal.clone(), issuer.clone(), methods, host.clone()).with_rights(rights);
        Ok(Self { disk, clock, host, journal, record, authorities, issuer, callers, nodes })
    }

    /// Stops the server; what is on its disk stays.
    pub(crate) async fn stop(self) -> (Disk, UnixTime) {
        self.journal.close().await;
        self.record.close().await;
        (self.disk, self.host.now())
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.journal.state()
    }

    pub(crate) fn bundle(&self) -> Arc<Bundle> {
        self.state().bundle().unwrap()
    }

    pub(crate) fn now(&self) -> UnixTime {
        self.host.now()
    }

    pub(crate) fn key(&self) -> Arc<dyn SigningKey> {
        self.host.keys.generate(KeyType::EcP256).unwrap()
    }

    /// A CSR with a new key, made out to `id` if given.
    pub(crate) fn csr(&self, id: Option<&SpiffeId>) -> Vec<u8> {
        csr::make(&*self.key(), id).unwrap()
    }

    pub(crate) async fn commit(&self, changes: Vec<Change>) {
        self.journal.submit(move |_| Ok((changes, ()))).await.unwrap();
    }

    /// Registers an entry for a workload below `parent`.
    pub(crate) async fn entry(
        &self,
        name: &str,
        parent: &SpiffeId,
        change: impl FnOnce(&mut EntryDraft),
    ) -> Arc<Entry> {
        let mut draft =
            EntryDraft::new(id(&format!("/workload/{name}")), parent.clone(), selectors(&["unix:uid:1"]));
        change(&mut draft);
        let entry = draft.register(&domain(), EntryId::parse(name).unwrap(), 3, self.now()).unwrap();
        let entry = Arc::new(entry);
        self.commit(vec![Change::PutEntry(Arc::clone(&entry))]).await;
        entry
    }

    pub(crate) async fn token(&self, text: &str, ttl: Duration, alias: Option<SpiffeId>) {
        let expires_at = self.now().plus(ttl);
        let token = JoinToken { hash: TokenHash::of(text), expires_at, alias, by_role: false, spent: None };
        self.commit(vec![Change::PutToken(token)]).await;
    }

    /// Attests with the evidence `payload` and a CSR.
    pub(crate) async fn attest(
        &self,
        method: &str,
        payload: &str,
        csr: &[u8],
    ) -> Result<AttestedSvid, Refusal> {
        let caller = "node at 192.0.2.1".to_owned();
        self.nodes.attest(method, payload.as_bytes(), csr, &mut Silent, caller).await
    }

    /// A freshly attested agent `/spire/agent/spoken/<name>` and the connection it calls on.
    pub(crate) async fn agent(&self, name: &str) -> (AgentCaller, ConnPeer) {
        let attested = self.attest("spoken", name, &self.csr(None)).await.unwrap();
        let peer = peer(&attested.svid);
        (self.callers.agent(&peer).await.unwrap(), peer)
    }

    pub(crate) fn node(&self, agent_id: &SpiffeId) -> Arc<AttestedNode> {
        Arc::clone(self.state().node(agent_id).unwrap())
    }

    /// Every decision on record with its outcome, by serial.
    pub(crate) fn decisions(&self) -> BTreeMap<String, (Arc<Decision>, Option<Outcome>)> {
        let mut segments = self.disk.segments.clone();
        let mut by_line = BTreeMap::new();
        for number in segments.list().unwrap() {
            for line in segments.read(number).unwrap().split(|byte| *byte == b'\n').filter(|l| !l.is_empty())
            {
                let line: Line = serde_json::from_slice(line).unwrap();
                match line.body {
                    Body::Intent { decision } => {
                        by_line.insert(line.seq, (decision, None));
                    }
                    Body::Outcome { of, outcome } => {
                        by_line.get_mut(&of).unwrap().1 = Some(outcome);
                    }
                    Body::Start { .. } | Body::Unknown { .. } | Body::Act { .. } | Body::Refusal(_) => {}
                }
            }
        }
        let count = by_line.len();
        let by_serial: BTreeMap<_, _> = by_line
            .into_values()
            .map(|(decision, outcome)| (decision.serial.clone(), (decision, outcome)))
            .collect();
        assert_eq!(by_serial.len(), count, "serials are unique");
        by_serial
    }
}

/// A TLS peer that showed this SVID.
pub(crate) fn peer(svid: &IssuedX509) -> ConnPeer {
    let address = SocketAddr::from(([192, 0, 2, 1], 40_000));
    ConnPeer::Remote { address, svid: Some(Arc::new(PeerSvid::new(svid.svid().clone()))) }
}

/// A TLS peer without certificate.
pub(crate) fn stranger() -> ConnPeer {
    ConnPeer::Remote { address: SocketAddr::from(([192, 0, 2, 1], 40_000)), svid: None }
}

pub(crate) fn operator() -> ConnPeer {
    ConnPeer::Local(LocalPeer { uid: 0, gid: 0, pid: Some(1) })
}

/// A node that answers no challenge.
pub(crate) struct Silent;

impl Dialog for Silent {
    fn challenge(
        &mut self,
        _challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>> {
        Box::pin(async { Err(DialogError::new(None)) })
    }
}

/// A method that believes what it is told: the evidence is the agent's name.
struct Spoken {
    method: &'static str,
    can_reattest: bool,
}

impl Verifier for Spoken {
    fn method(&self) -> &'static str {
        self.method
    }

    fn verify<'a>(
        &'a self,
        payload: &'a [u8],
        _dialog: &'a mut dyn Dialog,
        _now: UnixTime,
    ) -> Pin<Box<dyn Future<Output = Result<Proof, Rejection>> + Send + 'a>> {
        Box::pin(async {
            let name = std::str::from_utf8(payload).unwrap();
            let agent_id = match name {
                "liar" => return Err(Rejection::denied("not believed")),
                "stray" => SpiffeId::parse("spiffe://other.test/spire/agent/spoken/x").unwrap(),
                "server" => domain().server_id(),
                name => domain().agent_id(self.method, name).unwrap(),
            };
            Ok(Proof { agent_id, selectors: selectors(&["spoken:yes"]), can_reattest: self.can_reattest })
        })
    }
}

/// Segments on a disk that can be full.
struct Fragile {
    segments: MemorySegments,
    is_full: Arc<AtomicBool>,
    meanwhile: Meanwhile,
}

impl Segments for Fragile {
    fn name(&self, number: u32) -> String {
        self.segments.name(number)
    }

    fn list(&mut self) -> io::Result<Vec<u32>> {
        self.segments.list()
    }

    fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        self.segments.read(number)
    }

    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)> {
        self.segments.peek(number)
    }

    fn create(&mut self, number: u32) -> io::Result<()> {
        self.segments.create(number)
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(act) = self.meanwhile.lock().unwrap().take() {
            act();
        }
        self.segments.append(number, bytes)
    }

    fn sync(&mut self, number: u32) -> io::Result<()> {
        self.segments.sync(number)
    }

    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()> {
        self.segments.truncate(number, len)
    }

    fn remove(&mut self, number: u32) -> io::Result<()> {
        self.segments.remove(number)
    }

    fn reopen(&mut self, number: u32) -> io::Result<()> {
        self.segments.reopen(number)
    }

    fn is_instant(&self) -> bool {
        true
    }

    fn reader(&self) -> Option<Box<dyn Segments>> {
        self.segments.reader()
    }
}
