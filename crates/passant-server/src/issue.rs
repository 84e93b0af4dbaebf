//! How is an SVID issued?
//!
//! One straight path: wire bytes -> `Csr` -> caller -> order -> intent -> minted -> issued. Each step takes the value that
//! only the step before can make, so that none can be left out:
//!
//! - a [`Csr`] has a checked signature and key; nothing but its public key is taken over,
//! - an [`AgentCaller`] or [`Actor`] is verified and in good standing,
//! - an order (`issue/order.rs`) holds names, times and serial, which come from the entry, never from the CSR,
//! - an [`Intent`](crate::record::Intent) is made by the decision record once the decision is durable,
//! - what is minted (`issue/mint.rs`) uses up its intent and was read back and compared with its order,
//! - only [`IssuedX509`], [`IssuedJwt`] and [`IssuedDownstream`] show what was minted; for an agent that is after its row is journaled.

mod grounds;
mod mint;
mod order;
mod pool;

use std::sync::Arc;
use std::time::Duration;

use passant_core::csr::{self, Csr};
use passant_core::jwt_svid::JwtSvid;
use passant_core::keys::{KeyType, SigningKey};
use passant_core::x509_svid::X509Svid;
use passant_core::{AgentFault, Bundle, Entry, EntryId, Host, Refusal, SpiffeId, UnixTime};
use passant_daemon::label::Outcome as Went;
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use crate::attest_node::{self, NodeProof};
use crate::authority::{ActiveX509, Authorities};
use crate::caller::{Actor, AgentCaller, DownstreamCaller, at_fault, not_allowed};
use crate::journal::Journal;
use crate::metrics::{Kind, Metrics};
use crate::record::{DecisionLog, Outcome};
use crate::state::State;
pub use grounds::Plea;
use mint::{Approved, Minted};
pub(crate) use mint::{NodeSvidFacts, is_believed};
use order::{DownstreamOrder, JwtOrder, Ordered, X509Order};
pub use pool::{Asker, PoolError, SigningPool};

/// The lifetimes and names that entries leave open.
#[derive(Clone, Debug)]
pub struct IssueConfig {
    /// Lifetime of X509-SVIDs whose entry names none.
    pub x509_svid_ttl: Duration,
    /// Lifetime of JWT-SVIDs whose entry names none.
    pub jwt_svid_ttl: Duration,
    /// Lifetime of agents' X509-SVIDs.
    pub agent_ttl: Duration,
    /// Lifetime of the server's own X509-SVID.
    pub server_ttl: Duration,
    /// Lifetime of X.509 authorities of servers below that ask for none.
    pub downstream_ttl: Duration,
    /// The `iss` claim of JWT-SVIDs, if they are to have one.
    pub jwt_issuer: Option<String>,
    /// Kind of the server's own key.
    pub key_type: KeyType,
}

/// The lifetimes of workloads' SVIDs whose entries name none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ttls {
    pub(crate) x509_svid: Duration,
    pub(crate) jwt_svid: Duration,
}

/// Issues SVIDs. Clones share it.
#[derive(Clone)]
pub struct Issuer {
    journal: Journal,
    authorities: Arc<Authorities>,
    record: DecisionLog,
    host: Host,
    pool: SigningPool,
    config: Arc<IssueConfig>,
    metrics: Arc<Metrics>,
}

/// An X509-SVID that an agent asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// By which entry.
    pub entry_id: String,
    /// For whose key; a PKCS#10 request in DER.
    pub csr: Vec<u8>,
    /// On what grounds.
    pub plea: Plea,
}

/// An X509-SVID that may leave the server.
#[derive(Clone, Debug)]
pub struct IssuedX509 {
    svid: X509Svid,
}

/// A JWT-SVID that may leave the server.
#[derive(Clone, Debug)]
pub struct IssuedJwt {
    svid: JwtSvid,
}

/// The X.509 authority of a server below, which may leave this server.
#[derive(Clone, Debug)]
pub struct IssuedDownstream {
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<Bundle>,
}

/// The server's own X509-SVID with its key, which never rests anywhere.
pub struct ServerSvid {
    /// For `/spire/server`.
    pub svid: IssuedX509,
    /// Its private key.
    pub key: Arc<dyn SigningKey>,
}

/// What all orders of one request are measured against: the moment, and who signs at that moment.
#[derive(Clone)]
struct Scene {
    now: UnixTime,
    authority: Arc<ActiveX509>,
    host: Host,
}

impl Issuer {
    /// An issuer over the server's one journal, authorities and record.
    pub fn new(
        journal: Journal,
        authorities: Arc<Authorities>,
        record: DecisionLog,
        host: Host,
        pool: SigningPool,
        config: IssueConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { journal, authorities, record, host, pool, config: Arc::new(config), metrics }
    }

    /// How long SVIDs live whose entries do not say.
    pub(crate) fn ttls(&self) -> Ttls {
        Ttls { x509_svid: self.config.x509_svid_ttl, jwt_svid: self.config.jwt_svid_ttl }
    }

    /// Where what is issued is counted.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Issues an X509-SVID for each pair of entry ID and DER CSR, as SPIRE's agents ask for them: see
    /// [`Issuer::x509_pleaded`].
    pub async fn x509_batch(
        &self,
        caller: &AgentCaller,
        requests: Vec<(String, Vec<u8>)>,
    ) -> Vec<Result<IssuedX509, Refusal>> {
        let untold = |(entry_id, csr)| Wanted { entry_id, csr, plea: Plea::Untold };
        self.x509_pleaded(caller, requests.into_iter().map(untold).collect()).await
    }

    /// Issues what is wanted; answers are in the order of the requests.
    ///
    /// The whole batch waits for the disk once and is signed on all cores.
    ///
    /// # Errors
    /// Each for itself: what the grounds are refused for; Invalid for an empty ID or a CSR that is empty, malformed, wrongly signed, of a weak or oversized
    /// key, or made out to another SPIFFE ID than the entry's; NotFound for an entry that does not exist, has ended, or is
    /// not of this agent; Denied for an agent that was banned or removed meanwhile; Unavailable while no signature can be recorded or no authority is valid.
    pub async fn x509_pleaded(
        &self,
        caller: &AgentCaller,
        requests: Vec<Wanted>,
    ) -> Vec<Result<IssuedX509, Refusal>> {
        let began = Instant::now();
        let scene = self.scene();
        let ordered_in = self.journal.state();
        let state = Arc::clone(&ordered_in);
        let (who, ttl, wanted) = (caller.clone(), self.config.x509_svid_ttl, requests.len());
        let pleas: Vec<Plea> = requests.iter().map(|wanted| wanted.plea.clone()).collect();
        let order = move |wanted: Wanted| {
            let Wanted { entry_id, csr, plea } = wanted;
            let entry = asked_for(&state, &who, &entry_id, &csr, scene.now)?;
            let grounds = plea.check(&state, &who, entry, scene.now)?;
            X509Order::workload(&scene, &who, (entry, grounds), read_csr(&csr)?, ttl)
        };
        let pool = self.pool_of(caller);
        let orders = pool.map(requests, order).await;
        let orders = orders.unwrap_or_else(|lost| each(wanted, || Refusal::internal(lost.to_string())));
        let grounds: Vec<_> =
            orders.iter().map(|order| order.as_ref().ok().and_then(|o| o.decision().entry.clone())).collect();
        let approved = self.approve(orders).await;
        let minted = self.mint(&pool, approved).await;
        let state = self.journal.state();
        // What this very state allowed when it was ordered, it allows.
        let is_unchanged = Arc::ptr_eq(&state, &ordered_in);
        let fault = fault_of(&state, caller);
        let release = |minted: Minted<X509Svid>, ground: Option<(EntryId, u64)>, plea: &Plea| {
            let ground = ground.as_ref().filter(|_| !is_unchanged);
            still_stands(&state, caller, fault, ground)?;
            plea.stands(&state, caller)?;
            Ok(IssuedX509 { svid: minted.release(&state)? })
        };
        let issued = minted.into_iter().zip(grounds).zip(&pleas);
        let issued = issued.map(|((minted, ground), plea)| release(minted?, ground, plea));
        issued
            .inspect(|one| self.metrics.issue.of((Kind::X509Svid, Went::of(one.as_ref()))).since(began))
            .collect()
    }

    /// Issues a JWT-SVID for an entry and one or more audiences, as SPIRE's agents ask for it: see [`Issuer::jwt_pleaded`].
    ///
    /// # Errors
    /// As there.
    pub async fn jwt(
        &self,
        caller: &AgentCaller,
        entry_id: &str,
        audience: Vec<String>,
    ) -> Result<IssuedJwt, Refusal> {
        self.jwt_pleaded(caller, entry_id, audience, &Plea::Untold).await
    }

    /// Issues a JWT-SVID for an entry and one or more audiences. Empty audiences are dropped.
    ///
    /// # Errors
    /// What the grounds are refused for; NotFound for an entry that does not exist, has ended, or is not of this agent; Invalid without audience, or with too
    /// many or too long ones; Unavailable as [`Issuer::x509_batch`].
    pub async fn jwt_pleaded(
        &self,
        caller: &AgentCaller,
        entry_id: &str,
        audience: Vec<String>,
        plea: &Plea,
    ) -> Result<IssuedJwt, Refusal> {
        let issued = async {
            let now = self.host.now();
            let state = self.journal.state();
            let entry = find(&state, caller, entry_id, now)?;
            let entry = (entry, plea.check(&state, caller, entry, now)?);
            let order =
                JwtOrder::workload(&self.tokens(now), caller, entry, audience, self.config.jwt_svid_ttl)?;
            let ground = order.decision().entry.clone();
            let minted = self.mint_one(&self.pool_of(caller), order).await?;
            let state = self.journal.state();
            still_stands(&state, caller, fault_of(&state, caller), ground.as_ref())?;
            plea.stands(&state, caller)?;
            Ok(IssuedJwt { svid: minted.release(&state)? })
        };
        self.metrics.issuing(Kind::JwtSvid, issued).await
    }

    /// Issues the X509-SVID of a node that has just attested, and admits the node: its row, and for a join token the
    /// spending and the alias entry, are one commit, before the SVID is shown.
    ///
    /// # Errors
    /// Invalid for a CSR as in [`Issuer::x509_batch`]; Denied when the node is banned; Invalid when its join token was spent
    /// meanwhile; Unavailable as [`Issuer::x509_batch`].
    pub async fn node(&self, proof: NodeProof, csr: Csr) -> Result<IssuedX509, Refusal> {
        let issued = async {
            proof.check(&self.journal.state(), &csr.key_hash(), self.host.now())?;
            let order = X509Order::node(&self.scene(), &proof, csr, self.config.agent_ttl)?;
            let minted = self.mint_one(&self.pool.on_behalf_of(Asker::Nodes), order).await?;
            let (host, node) = (self.host.clone(), minted.about());
            self.journal.submit(move |state| proof.admit(state, &node, &host)).await?;
            Ok(IssuedX509 { svid: minted.release(&self.journal.state())? })
        };
        self.metrics.issuing(Kind::NodeSvid, issued).await
    }

    /// Renews an agent's X509-SVID. The new serial is journaled before it is shown; the old one stays valid until the agent
    /// calls with the new one.
    ///
    /// # Errors
    /// Denied with [`AgentFault::MustReattest`] when the node can attest again instead, and with the fault of the moment
    /// when it was banned or removed meanwhile; otherwise as [`Issuer::node`].
    pub async fn renew(&self, caller: &AgentCaller, csr: &[u8]) -> Result<IssuedX509, Refusal> {
        let issued = async {
            if self.journal.state().node(caller.id()).is_some_and(|node| node.can_reattest) {
                return Err(at_fault(caller.id(), AgentFault::MustReattest));
            }
            let csr = self.csr(Asker::Agent(caller.id().clone()), csr).await?;
            let order = X509Order::renewal(&self.scene(), caller, csr, self.config.agent_ttl)?;
            let minted = self.mint_one(&self.pool_of(caller), order).await?;
            let (caller, node) = (caller.clone(), minted.about());
            self.journal.submit(move |state| attest_node::renewed(state, &caller, &node)).await?;
            Ok(IssuedX509 { svid: minted.release(&self.journal.state())? })
        };
        self.metrics.issuing(Kind::Renewal, issued).await
    }

    /// Mints an X509-SVID for an operator: SPIFFE ID and DNS names are those of the CSR. `ttl` is the default one if `None`.
    ///
    /// # Errors
    /// Invalid for a CSR that is not acceptable, or does not name exactly one SPIFFE ID of a workload of this trust domain;
    /// Denied for one that no role of the caller covers; Precondition for an ID all of whose entries are stopped; Unavailable
    /// as [`Issuer::x509_batch`].
    pub async fn mint_x509(
        &self,
        caller: &Actor,
        csr: &[u8],
        ttl: Option<Duration>,
    ) -> Result<IssuedX509, Refusal> {
        let issued = async {
            let csr = self.csr(Asker::Operators, csr).await?;
            let ttl = ttl.unwrap_or(self.config.x509_svid_ttl);
            let state = self.journal.state();
            let order = X509Order::operator(&self.scene(), caller, csr, ttl, &state)?;
            let pool = self.pool.on_behalf_of(Asker::Operators);
            let spiffe_id = order.decision().spiffe_id.clone();
            not_stopped(&state, &spiffe_id, self.host.now())?;
            let minted = self.mint_one(&pool, order).await?;
            let state = self.journal.state();
            not_stopped(&state, &spiffe_id, self.host.now())?;
            Ok(IssuedX509 { svid: minted.release(&state)? })
        };
        self.metrics.issuing(Kind::Minted, issued).await
    }

    /// Mints a JWT-SVID for an operator. `ttl` is the default one if `None`.
    ///
    /// # Errors
    /// Invalid for an ID that is not of a workload of this trust domain, and for audiences as in [`Issuer::jwt`]; Denied for
    /// an ID that no role of the caller covers; Precondition for one all of whose entries are stopped; Unavailable as
    /// [`Issuer::x509_batch`].
    pub async fn mint_jwt(
        &self,
        caller: &Actor,
        spiffe_id: SpiffeId,
        audience: Vec<String>,
        ttl: Option<Duration>,
    ) -> Result<IssuedJwt, Refusal> {
        let issued = async {
            let ttl = ttl.unwrap_or(self.config.jwt_svid_ttl);
            let state = self.journal.state();
            let tokens = self.tokens(self.host.now());
            let order = JwtOrder::operator(&tokens, caller, spiffe_id.clone(), audience, ttl, &state)?;
            not_stopped(&state, &spiffe_id, self.host.now())?;
            let pool = self.pool.on_behalf_of(Asker::Operators);
            let minted = self.mint_one(&pool, order).await?;
            let state = self.journal.state();
            not_stopped(&state, &spiffe_id, self.host.now())?;
            Ok(IssuedJwt { svid: minted.release(&state)? })
        };
        self.metrics.issuing(Kind::Minted, issued).await
    }

    /// Signs the X.509 authority of a server below. `ttl` is the default one if `None`; it ends with the entry and with
    /// the authority that signs, if they end first.
    ///
    /// # Errors
    /// Invalid for a CSR as in [`Issuer::x509_batch`], or one made out to another name than the trust domain's; Denied when
    /// the entry was deleted or is no longer downstream; Unavailable as [`Issuer::x509_batch`], and while the authority
    /// that signs is tainted.
    pub async fn downstream(
        &self,
        caller: &DownstreamCaller,
        csr: &[u8],
        ttl: Option<Duration>,
    ) -> Result<IssuedDownstream, Refusal> {
        let issued = async {
            let asker = Asker::Downstream(caller.id().clone());
            let csr = self.csr(asker.clone(), csr).await?;
            let (scene, state) = (self.scene(), self.journal.state());
            mint::is_untainted(&state, scene.authority.id())?;
            let entry = below(&state, caller, scene.now)?;
            let ttl = ttl.unwrap_or(self.config.downstream_ttl);
            let order = DownstreamOrder::new(&scene, caller, entry, csr, ttl)?;
            let revision = entry.revision;
            let minted = self.mint_one(&self.pool.on_behalf_of(asker), order).await?;
            let state = self.journal.state();
            if below(&state, caller, self.host.now())?.revision != revision {
                return Err(Refusal::unavailable(
                    "entry was changed while the authority was signed: ask again",
                ));
            }
            mint::is_untainted(&state, scene.authority.id())?;
            let roots = state.bundle().ok_or_else(|| Refusal::internal("there is no bundle"))?;
            Ok(IssuedDownstream { chain: minted.release(&state)?, roots })
        };
        self.metrics.issuing(Kind::DownstreamX509Ca, issued).await
    }

    /// Issues the server's own X509-SVID, with a new key.
    ///
    /// # Errors
    /// Unavailable as [`Issuer::x509_batch`]; Internal when no key can be made.
    pub async fn server_svid(&self) -> Result<ServerSvid, Refusal> {
        let issued = async {
            let (keys, key_type) = (Arc::clone(&self.host.keys), self.config.key_type);
            let key = self.pool.run(move || keys.generate(key_type)).await.map_err(Refusal::internal)?;
            let key = key.map_err(Refusal::internal)?;
            let csr = csr::make(&*key, None).and_then(|der| Csr::parse(&der)).map_err(Refusal::internal)?;
            let server_id = self.journal.state().trust_domain().server_id();
            let order = X509Order::server(&self.scene(), server_id, csr, self.config.server_ttl)?;
            let minted = self.mint_one(&self.pool, order).await?;
            let svid = IssuedX509 { svid: minted.release(&self.journal.state())? };
            Ok(ServerSvid { svid, key })
        };
        self.metrics.issuing(Kind::ServerSvid, issued).await
    }

    /// Reads one CSR off the I/O threads, in the turn of `asker`.
    ///
    /// # Errors
    /// Invalid when it is empty, malformed, wrongly signed or of an unfit key.
    pub(crate) async fn csr(&self, asker: Asker, der: &[u8]) -> Result<Csr, Refusal> {
        let der = der.to_vec();
        self.pool.on_behalf_of(asker).run(move || read_csr(&der)).await.map_err(Refusal::internal)?
    }

    fn pool_of(&self, caller: &AgentCaller) -> SigningPool {
        self.pool.on_behalf_of(Asker::Agent(caller.id().clone()))
    }

    fn scene(&self) -> Scene {
        Scene { now: self.host.now(), authority: self.authorities.x509(), host: self.host.clone() }
    }

    fn tokens(&self, now: UnixTime) -> order::TokenScene {
        let (authority, issuer) = (self.authorities.jwt(), self.config.jwt_issuer.clone());
        order::TokenScene { now, authority, issuer, host: self.host.clone() }
    }

    /// Puts all orders on record with one sync, and pairs each with its permission.
    async fn approve<O: Ordered>(
        &self,
        orders: Vec<Result<O, Refusal>>,
    ) -> Vec<Result<Approved<O>, Refusal>> {
        let decisions: Vec<_> = orders.iter().flatten().map(|order| Arc::clone(order.decision())).collect();
        match self.record.intend(decisions).await {
            Ok(intents) => {
                let mut intents = intents.into_iter();
                orders.into_iter().map(|order| Approved::pair(order?, intents.next())).collect()
            }
            Err(error) => {
                let refuse =
                    || Refusal::unavailable("the decision record cannot be written: nothing is signed");
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "nothing is signed: no decision record"
                );
                orders.into_iter().map(|order| Err(order.err().unwrap_or_else(refuse))).collect()
            }
        }
    }

    /// Signs all that was approved, and tells the record how it went.
    async fn mint<O: Ordered>(
        &self,
        pool: &SigningPool,
        approved: Vec<Result<Approved<O>, Refusal>>,
    ) -> Vec<Result<Minted<O::Svid>, Refusal>> {
        let wanted = approved.len();
        let record = self.record.clone();
        let mint = move |part: Vec<Result<Approved<O>, Refusal>>| {
            let mut outcomes = Vec::with_capacity(part.len());
            let mint = |approved: Result<Approved<O>, Refusal>| {
                let (minted, receipt) = approved?.mint();
                let outcome =
                    minted.as_ref().map_or_else(|e| Outcome::NotSigned(e.to_string()), |_| Outcome::Signed);
                outcomes.push((receipt, outcome));
                minted.map_err(Refusal::internal)
            };
            let minted = part.into_iter().map(mint).collect();
            record.outcomes(outcomes);
            minted
        };
        let minted = pool.map_parts(approved, mint).await;
        minted.unwrap_or_else(|lost| each(wanted, || Refusal::internal(lost.to_string())))
    }

    async fn mint_one<O: Ordered>(&self, pool: &SigningPool, order: O) -> Result<Minted<O::Svid>, Refusal> {
        let approved = self.approve(vec![Ok(order)]).await;
        let minted = self.mint(pool, approved).await.pop();
        minted.unwrap_or_else(|| Err(Refusal::internal("one order made no result")))
    }
}

fn read_csr(der: &[u8]) -> Result<Csr, Refusal> {
    if der.is_empty() {
        return Err(Refusal::invalid("missing CSR"));
    }
    Csr::parse(der).map_err(|error| Refusal::invalid(error.to_string()).because(error))
}

fn asked_for<'a>(
    state: &'a State,
    caller: &AgentCaller,
    entry_id: &str,
    csr: &[u8],
    now: UnixTime,
) -> Result<&'a Entry, Refusal> {
    if entry_id.is_empty() {
        return Err(Refusal::invalid("missing entry ID"));
    }
    if csr.is_empty() {
        return Err(Refusal::invalid("missing CSR"));
    }
    find(state, caller, entry_id, now)
}

fn find<'a>(
    state: &'a State,
    caller: &AgentCaller,
    entry_id: &str,
    now: UnixTime,
) -> Result<&'a Entry, Refusal> {
    let id = EntryId::parse(entry_id).map_err(|_| order::no_entry())?;
    if let Some(entry) = state.authorized_entry(caller.id(), &id, now) {
        return Ok(entry);
    }
    match state.entry(&id) {
        Some(_) if state.stop_between(caller.id(), &id, None).is_some() => Err(stopped()),
        // It may have been the agent's while it lived.
        Some(entry) if !entry.has_ended(now) => {
            Err(order::no_entry().because(Refusal::denied("the entry is not one of the agent's")))
        }
        _ => Err(order::no_entry()),
    }
}

/// The entry that makes the caller a server below, as long as it does.
fn below<'a>(state: &'a State, caller: &DownstreamCaller, now: UnixTime) -> Result<&'a Entry, Refusal> {
    let stands =
        |entry: &&Arc<Entry>| entry.downstream && entry.spiffe_id == *caller.id() && !entry.has_ended(now);
    let is_stopped = |entry: &&Arc<Entry>| state.entry_stop(&entry.id).is_some();
    state
        .entry(caller.entry())
        .filter(stands)
        .filter(|entry| !is_stopped(entry))
        .map(AsRef::as_ref)
        .ok_or_else(not_allowed)
}

/// Whether what was ordered on the ground of an entry, in its revision of then, may leave the server now. Disk and signer
/// were waited for meanwhile: what an operator stopped in that time, and was told to be stopped, is not handed out.
fn still_stands(
    state: &State,
    caller: &AgentCaller,
    fault: Option<AgentFault>,
    ground: Option<&(EntryId, u64)>,
) -> Result<(), Refusal> {
    if let Some(fault) = fault {
        return Err(at_fault(caller.id(), fault));
    }
    let Some((id, revision)) = ground else { return Ok(()) };
    match state.entry(id) {
        None => Err(order::no_entry()),
        Some(_) if state.stop_between(caller.id(), id, None).is_some() => Err(stopped()),
        Some(entry) if entry.revision != *revision => {
            Err(Refusal::unavailable("entry was changed while its SVID was signed: ask again"))
        }
        Some(_) => Ok(()),
    }
}

/// Why the caller may have nothing any more, if so.
fn fault_of(state: &State, caller: &AgentCaller) -> Option<AgentFault> {
    match state.node(caller.id()) {
        None => Some(AgentFault::NotAttested),
        Some(node) => node.is_banned().then_some(AgentFault::Banned),
    }
}

/// To an agent, what is stopped is not there: it drops what it has of it, as SPIRE's do. The record learns why.
fn stopped() -> Refusal {
    order::no_entry().because(Refusal::denied("the entry, or all of the agent, is stopped"))
}

/// Refuses an operator an SVID that the entries for its ID give to nobody at present.
fn not_stopped(state: &State, id: &SpiffeId, now: UnixTime) -> Result<(), Refusal> {
    let Some(stop) = state.id_stop(id, now) else { return Ok(()) };
    Err(Refusal::precondition(format!(
        "\"{id}\" is stopped since {} ({}): see `passant stop list`",
        stop.since, stop.reason
    )))
}

/// The same refusal for every item of a batch.
fn each<T>(wanted: usize, refuse: impl Fn() -> Refusal) -> Vec<Result<T, Refusal>> {
    std::iter::repeat_with(|| Err(refuse())).take(wanted).collect()
}

impl IssuedX509 {
    /// The chain, leaf first, no root, with its SPIFFE ID and times.
    pub const fn svid(&self) -> &X509Svid {
        &self.svid
    }
}

impl IssuedDownstream {
    /// DER certificates: the new authority's, then what leads to a root; no root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The own bundle, which it verifies against.
    pub fn roots(&self) -> &Bundle {
        &self.roots
    }
}

impl IssuedJwt {
    /// The token with its SPIFFE ID and times.
    pub const fn svid(&self) -> &JwtSvid {
        &self.svid
    }
}

#[cfg(test)]
mod tests;
