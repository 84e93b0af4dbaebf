//! Who is calling, and may they?
//!
//! A [`ConnPeer`] is what the transport knows of a connection. On every RPC the service asks [`Callers`] for the role it
//! needs and gets a value of that role or a refusal; the roles have no other constructor, so a function that takes an
//! [`AgentCaller`] cannot be reached by anybody else. Chains are verified again whenever the own bundle has lost an
//! authority since: a revoked one ends the standing of open connections too.

mod anchors;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use passant_core::serial::Serial;
use passant_core::x509_svid::{self, X509Svid};
use passant_core::{AgentFault, Entry, EntryId, Host, Reason, Refusal, SpiffeId, UnixTime};

use self::anchors::Anchors;
use crate::access::explain::refusal_of;
use crate::access::{Looks, Rights, Role, Target, Verb, Who};
use crate::journal::Journal;
use crate::state::State;
use crate::state::change::Change;
use crate::state::node::{Adopted, AttestedNode, PendingSerial};

/// The other end of a connection, as the transport found it. A request extension of every RPC.
///
/// It says who connected, not what they may do: that is decided anew for each RPC, because an open connection outlives
/// a ban.
#[derive(Clone, Debug)]
pub enum ConnPeer {
    /// Over TLS, or a simulation's stand-in for it.
    Remote {
        /// Where the connection came from.
        address: SocketAddr,
        /// What the client showed, and proved to hold the key of. `None`: it showed no certificate.
        svid: Option<Arc<PeerSvid>>,
    },
    /// Over the operator socket, admitted.
    Local(LocalPeer),
    /// Over the operator socket, by someone who holds a role and is no operator; with those of their groups that hold
    /// roles.
    Guest(LocalPeer, Arc<BTreeSet<u32>>),
    /// Over the operator socket, by someone it is not for. Every RPC is refused.
    Uninvited(LocalPeer),
}

/// The client certificate of one connection. Remembers against which authorities its chain was last verified.
#[derive(Debug)]
pub struct PeerSvid {
    svid: X509Svid,
    /// The mark of the authorities against which the chain was last verified, see [`Anchors`]; 0 for never.
    verified_at: AtomicU64,
}

/// A process of this machine, as the kernel named it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPeer {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, if the kernel knew it in our namespace.
    pub pid: Option<i32>,
}

/// A process on this machine that may use the server's own socket.
#[derive(Clone, Debug)]
pub struct LocalCaller(LocalPeer);

/// An attested agent in good standing: verified node SVID of the active serial, neither banned nor expired.
#[derive(Clone, Debug)]
pub struct AgentCaller {
    id: SpiffeId,
    serial: Serial,
}

/// Whoever may administer the server: a local process, or an X509-SVID of an admin entry or of `admin_ids`.
#[derive(Clone, Debug)]
pub struct OperatorCaller(Operator);

#[derive(Clone, Debug)]
enum Operator {
    Local(LocalCaller),
    Admin(SpiffeId),
}

/// Whoever holds a role, or several, and is no operator.
#[derive(Clone, Debug)]
pub struct HolderCaller {
    who: Who,
    roles: Vec<Arc<Role>>,
    rights: Arc<Rights>,
    /// As the record shows them.
    shown: String,
    /// What its request may cost yet.
    looks: Arc<Looks>,
}

/// Whoever acts on what the server keeps: an operator, or the holder of a role as far as the role goes.
#[derive(Clone, Debug)]
pub struct Actor(Acting);

#[derive(Clone, Debug)]
enum Acting {
    Operator(OperatorCaller),
    Holder(HolderCaller),
}

/// A server below this one: its X509-SVID is of a downstream entry.
#[derive(Clone, Debug)]
pub struct DownstreamCaller {
    id: SpiffeId,
    entry: EntryId,
}

/// Somebody who was let in by a right.
pub(crate) trait Rightful: fmt::Display + Sync {
    /// The right, as the record shows it.
    fn right(&self) -> String;
}

/// Decides who callers are, by the state of the moment.
#[derive(Clone)]
pub struct Callers {
    journal: Journal,
    rights: Arc<Rights>,
    anchors: Arc<Anchors>,
    host: Host,
}

impl ConnPeer {
    /// Where the peer is on the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Remote { address, .. } => Some(*address),
            Self::Local(_) | Self::Guest(..) | Self::Uninvited(_) => None,
        }
    }

    /// When the X509-SVID ends that it showed.
    pub(crate) fn svid_end(&self) -> Option<UnixTime> {
        self.svid().map(PeerSvid::not_after)
    }

    fn svid(&self) -> Option<&PeerSvid> {
        match self {
            Self::Remote { svid, .. } => svid.as_deref(),
            Self::Local(_) | Self::Guest(..) | Self::Uninvited(_) => None,
        }
    }
}

impl Callers {
    /// `rights` are those that the configuration gives; their holders may lie in a federated trust domain.
    pub fn new(journal: Journal, rights: Arc<Rights>, host: Host) -> Self {
        Self { journal, rights, anchors: Arc::default(), host }
    }

    /// What the configuration gives to whom.
    pub(crate) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// The peer as an attested agent.
    ///
    /// The first call with a renewed SVID makes its serial the active one, durably, before it is answered; from then on
    /// the old serial is refused. That an adopted agent has come is written down in the same way.
    ///
    /// # Errors
    /// Denied, with the [`AgentFault`] that says what the agent should do; Unauthenticated when its chain does not verify
    /// against the bundle of the moment; Unavailable when a promotion could not be journaled.
    pub async fn agent(&self, peer: &ConnPeer) -> Result<AgentCaller, Refusal> {
        let presented = peer.svid().ok_or_else(|| Refusal::denied("caller does not have an X509-SVID"))?;
        let now = self.host.now();
        let state = self.journal.state();
        let svid = presented.verify(&state, (&self.rights, &self.anchors), now)?;
        match standing(&state, svid, now)? {
            Standing::Active => {}
            Standing::First(_) => self.settle(svid, now).await?,
        }
        Ok(AgentCaller { id: svid.id().clone(), serial: svid.serial().clone() })
    }

    /// The peer as an operator.
    ///
    /// # Errors
    /// Denied when it is none; Unauthenticated when its SVID does not verify or has expired.
    pub fn operator(&self, peer: &ConnPeer) -> Result<OperatorCaller, Refusal> {
        if let ConnPeer::Local(local) = peer {
            return Ok(OperatorCaller(Operator::Local(LocalCaller(*local))));
        }
        let (state, _, svid) = self.verified(peer)?;
        self.administers(svid.id(), &state).ok_or_else(not_allowed)?;
        Ok(OperatorCaller(Operator::Admin(svid.id().clone())))
    }

    /// What makes the bearer of this ID an administrator, if anything does.
    pub(crate) fn administers(&self, id: &SpiffeId, state: &State) -> Option<String> {
        if self.rights.makes_admin(id) {
            return Some("admin_ids of the configuration names it".to_owned());
        }
        let now = self.host.now();
        let gives = |entry: &&Arc<Entry>| {
            entry.admin && !entry.has_ended(now) && state.entry_stop(&entry.id).is_none()
        };
        let entry = state.entries_by_spiffe_id(id).find(gives)?;
        Some(format!("entry {} makes it an administrator", entry.id))
    }

    /// The peer as the holder of a role.
    ///
    /// # Errors
    /// Denied when it holds none; Unauthenticated when its SVID does not verify or has expired.
    pub fn holder(&self, peer: &ConnPeer) -> Result<HolderCaller, Refusal> {
        let (who, as_peer) = match peer {
            ConnPeer::Guest(local, gids) => {
                let gids = BTreeSet::clone(gids);
                (Who::User { uid: local.uid, gids }, LocalCaller(*local).to_string())
            }
            ConnPeer::Remote { .. } => {
                let (_, _, svid) = self.verified(peer)?;
                (Who::Bearer(svid.id().clone()), svid.id().to_string())
            }
            ConnPeer::Local(_) | ConnPeer::Uninvited(_) => return Err(not_allowed()),
        };
        let roles = self.rights.held_by(&who);
        if roles.is_empty() {
            return Err(not_allowed());
        }
        let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
        let shown = format!("role {} {as_peer}", names.join(","));
        let looks = Arc::new(Looks::of_one_request());
        Ok(HolderCaller { who, roles, rights: Arc::clone(&self.rights), shown, looks })
    }

    /// The peer as an operator, or else as the holder of a role.
    ///
    /// # Errors
    /// Denied when it is neither; Unauthenticated when its SVID does not verify or has expired.
    pub fn actor(&self, peer: &ConnPeer) -> Result<Actor, Refusal> {
        match self.operator(peer) {
            Ok(operator) => Ok(Actor(Acting::Operator(operator))),
            Err(refusal) if refusal.reason == Reason::Denied => {
                self.holder(peer).map(|holder| Actor(Acting::Holder(holder)))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The peer as a process on this machine; some calls are for nobody else, not even an administrator.
    ///
    /// # Errors
    /// Denied when it came over the network.
    pub fn local(&self, peer: &ConnPeer) -> Result<LocalCaller, Refusal> {
        match peer {
            ConnPeer::Local(local) => Ok(LocalCaller(*local)),
            ConnPeer::Remote { .. } | ConnPeer::Guest(..) | ConnPeer::Uninvited(_) => Err(not_allowed()),
        }
    }

    /// The peer as a downstream server.
    ///
    /// # Errors
    /// Denied when it is none; Unauthenticated when its SVID does not verify or has expired.
    pub fn downstream(&self, peer: &ConnPeer) -> Result<DownstreamCaller, Refusal> {
        let (state, now, svid) = self.verified(peer)?;
        let entry = state
            .entries_by_spiffe_id(svid.id())
            .find(|entry| entry.downstream && !entry.has_ended(now) && state.entry_stop(&entry.id).is_none())
            .ok_or_else(not_allowed)?;
        Ok(DownstreamCaller { id: svid.id().clone(), entry: entry.id.clone() })
    }

    /// The SVID of a peer who is asked for nothing but a valid one, of an ID that is not stopped.
    fn verified<'a>(&self, peer: &'a ConnPeer) -> Result<(Arc<State>, UnixTime, &'a X509Svid), Refusal> {
        let presented = peer.svid().ok_or_else(not_allowed)?;
        let now = self.host.now();
        let state = self.journal.state();
        let svid = presented.verify(&state, (&self.rights, &self.anchors), now)?;
        if now > svid.not_after() {
            return Err(Refusal::unauthenticated("X509-SVID of the caller has expired"));
        }
        if state.id_stop(svid.id(), now).is_some() {
            return Err(not_allowed().because(Refusal::denied("what is issued to the caller is stopped")));
        }
        Ok((state, now, svid))
    }

    /// Makes the SVID that the agent calls with for the first time its active one.
    async fn settle(&self, svid: &X509Svid, now: UnixTime) -> Result<(), Refusal> {
        let svid = svid.clone();
        let command = move |state: &State| match standing(state, &svid, now)? {
            Standing::First(row) => Ok((vec![Change::PutNode(Arc::new(row))], ())),
            // Another call of the same agent was faster.
            Standing::Active => Ok((Vec::new(), ())),
        };
        self.journal.submit(command).await
    }
}

/// Who calls may not, and is not told what would be needed.
pub(crate) fn not_allowed() -> Refusal {
    Refusal::denied("caller is not allowed to call this method")
}

impl PeerSvid {
    /// The chain of the handshake. It is verified here, on each call that depends on it.
    pub const fn new(svid: X509Svid) -> Self {
        Self { svid, verified_at: AtomicU64::new(0) }
    }

    /// Whose it is. The handshake verified that; what it allows now is asked of [`Callers`].
    pub fn id(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// When it ends.
    pub(crate) fn not_after(&self) -> UnixTime {
        self.svid.not_after()
    }

    /// The SVID, once its chain is known to verify against the bundle of the moment.
    ///
    /// Does not refuse an SVID for having expired since: who asks decides, since an agent is to be told so. A chain that
    /// had expired is verified as of its last second, so that a revoked authority still shows.
    fn verify(
        &self,
        state: &State,
        (rights, anchors): (&Rights, &Anchors),
        now: UnixTime,
    ) -> Result<&X509Svid, Refusal> {
        let untrusted = || Refusal::unauthenticated("X509-SVID of the caller is not trusted");
        let is_own = self.svid.id().is_member_of(state.trust_domain());
        // Of other trust domains only those are known that the configuration names.
        if !is_own && !rights.names(self.svid.id()) {
            return Err(untrusted());
        }
        let bundle = state.bundle_of(&self.svid.id().trust_domain()).ok_or_else(untrusted)?;
        let mark = if is_own { anchors.mark(&bundle) } else { 0 };
        if mark != 0 && self.verified_at.load(Ordering::Acquire) == mark {
            return Ok(&self.svid);
        }
        let at = now.min(self.svid.not_after());
        x509_svid::verify(self.svid.chain().to_vec(), &bundle, at)
            .map_err(|error| untrusted().because(error))?;
        if mark != 0 {
            self.verified_at.store(mark, Ordering::Release);
        }
        Ok(&self.svid)
    }
}

enum Standing {
    /// It calls with its active serial.
    Active,
    /// It calls with this SVID for the first time, which leaves this row.
    First(AttestedNode),
}

/// Whether an agent may call with this SVID. The order of the refusals is SPIRE's.
fn standing(state: &State, svid: &X509Svid, now: UnixTime) -> Result<Standing, Refusal> {
    if now > svid.not_after() {
        return Err(at_fault(svid.id(), AgentFault::Expired));
    }
    let row = state.node(svid.id());
    let row = row.ok_or_else(|| at_fault(svid.id(), AgentFault::NotAttested))?;
    if row.is_banned() {
        return Err(at_fault(svid.id(), AgentFault::Banned));
    }
    let is_awaited = row.adopted == Some(Adopted::Awaited);
    if row.serial.as_ref() == Some(svid.serial()) {
        return Ok(if is_awaited { Standing::First(arrived(row, svid)) } else { Standing::Active });
    }
    if let Some(PendingSerial { serial, not_after }) = &row.pending
        && serial == svid.serial()
    {
        let (serial, not_after) = (Some(serial.clone()), *not_after);
        return Ok(Standing::First(AttestedNode {
            serial,
            not_after,
            pending: None,
            adopted: None,
            ..AttestedNode::clone(row)
        }));
    }
    if is_awaited && svid.not_after() > row.not_after && is_of_another_server(state, svid, now) {
        return Ok(Standing::First(arrived(row, svid)));
    }
    Err(at_fault(svid.id(), AgentFault::NotActive))
}

/// The row of an adopted agent that has come, with the SVID it came with.
fn arrived(row: &AttestedNode, svid: &X509Svid) -> AttestedNode {
    let (serial, not_after) = (Some(svid.serial().clone()), svid.not_after());
    AttestedNode { serial, not_after, adopted: Some(Adopted::Arrived), ..row.clone() }
}

/// Whether the SVID verifies by an authority that was appended to the own bundle: so the server that the agent comes from
/// renewed it. One of our own would be of an agent that was evicted here before.
fn is_of_another_server(state: &State, svid: &X509Svid, now: UnixTime) -> bool {
    let Some(bundle) = state.bundle() else { return false };
    let mut others = passant_core::Bundle::clone(&bundle);
    let is_ours = |der: &Vec<u8>| state.authorities().any(|own| own.certificate.as_ref() == Some(der));
    others.x509_authorities.retain(|authority| !is_ours(&authority.der));
    svid.verify(&others, now).is_ok()
}

/// Refuses an agent for what is wrong with its own standing.
pub(crate) fn at_fault(id: &SpiffeId, fault: AgentFault) -> Refusal {
    let text = match fault {
        AgentFault::Expired => format!("X509-SVID of agent \"{id}\" has expired"),
        AgentFault::NotAttested => format!("agent \"{id}\" is not attested"),
        AgentFault::Banned => format!("agent \"{id}\" is banned"),
        AgentFault::NotActive => format!("X509-SVID of agent \"{id}\" is not its active one"),
        AgentFault::MustReattest => format!("agent \"{id}\" must attest again instead of renewing its SVID"),
    };
    Refusal::denied(text).with_agent_fault(fault)
}

impl LocalCaller {
    /// How the record shows a process, whether it may use the socket or not.
    pub(crate) fn shown(peer: LocalPeer) -> String {
        Self(peer).to_string()
    }

    /// The process, as the kernel named it.
    pub const fn peer(&self) -> LocalPeer {
        self.0
    }
}

impl AgentCaller {
    /// The agent's SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The serial of the SVID it calls with, which is its active one.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }
}

impl HolderCaller {
    /// Whether one of the roles has this verb, on whatever.
    pub fn has(&self, verb: Verb) -> bool {
        self.roles.iter().any(|role| role.verbs.contains(&verb))
    }
}

impl Actor {
    /// Whether it may do everything.
    pub(crate) const fn is_operator(&self) -> bool {
        matches!(self.0, Acting::Operator(_))
    }

    /// Who it is, to the configuration.
    pub(crate) fn who(&self) -> Who {
        match &self.0 {
            Acting::Operator(OperatorCaller(Operator::Admin(id))) => Who::Bearer(id.clone()),
            Acting::Operator(OperatorCaller(Operator::Local(LocalCaller(local)))) => {
                Who::User { uid: local.uid, gids: BTreeSet::from([local.gid]) }
            }
            Acting::Holder(holder) => holder.who.clone(),
        }
    }

    /// Lets it do `verb` to `target` as `state` stands.
    ///
    /// # Errors
    /// Denied when none of its roles allows it, with what each of them lacks.
    pub(crate) fn may(&self, verb: Verb, target: &Target<'_>, state: &State) -> Result<(), Refusal> {
        let Acting::Holder(HolderCaller { roles, rights, looks, .. }) = &self.0 else { return Ok(()) };
        match refusal_of(roles, verb, target, state, rights, looks) {
            None => Ok(()),
            Some(why) => Err(Refusal::denied(format!("authorization denied for {verb}: {why}"))),
        }
    }

    /// Whether it gets to see an entry.
    pub(crate) fn sees(&self, entry: &Entry) -> bool {
        match &self.0 {
            Acting::Operator(_) => true,
            Acting::Holder(holder) => holder.roles.iter().any(|role| role.shows(&entry.into())),
        }
    }

    /// Whether it gets to see an agent.
    pub(crate) fn sees_agent(&self, id: &SpiffeId) -> bool {
        match &self.0 {
            Acting::Operator(_) => true,
            Acting::Holder(holder) => holder.roles.iter().any(|role| role.shows_agent(id)),
        }
    }
}

#[cfg(test)]
impl Actor {
    /// Root, over the operator socket.
    pub(crate) fn root() -> Self {
        let local = LocalCaller(LocalPeer { uid: 0, gid: 0, pid: Some(1) });
        Self(Acting::Operator(OperatorCaller(Operator::Local(local))))
    }
}

impl DownstreamCaller {
    /// The downstream server's SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The entry that makes it one.
    pub fn entry(&self) -> &EntryId {
        &self.entry
    }
}

impl Rightful for LocalCaller {
    fn right(&self) -> String {
        "operator".to_owned()
    }
}

impl Rightful for OperatorCaller {
    fn right(&self) -> String {
        match &self.0 {
            Operator::Local(local) => local.right(),
            Operator::Admin(_) => "administrator".to_owned(),
        }
    }
}

impl Rightful for Actor {
    fn right(&self) -> String {
        match &self.0 {
            Acting::Operator(operator) => operator.right(),
            Acting::Holder(HolderCaller { roles, .. }) => {
                let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
                format!("role {}", names.join(","))
            }
        }
    }
}

impl Rightful for DownstreamCaller {
    fn right(&self) -> String {
        format!("downstream entry {}", self.entry)
    }
}

impl fmt::Display for LocalCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local uid={} gid={}", self.0.uid, self.0.gid)?;
        self.0.pid.map_or(Ok(()), |pid| write!(f, " pid={pid}"))
    }
}

impl fmt::Display for AgentCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent {}", self.id)
    }
}

impl fmt::Display for OperatorCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Operator::Local(local) => local.fmt(f),
            Operator::Admin(id) => write!(f, "admin {id}"),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Acting::Operator(operator) => operator.fmt(f),
            Acting::Holder(holder) => f.write_str(&holder.shown),
        }
    }
}

impl fmt::Display for DownstreamCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "downstream {}", self.id)
    }
}

#[cfg(test)]
mod tests;
