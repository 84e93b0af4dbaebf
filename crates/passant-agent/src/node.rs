//! How does the node come by its own SVID, keep it, and get it back when it is lost?
//!
//! [`next_step`] decides, purely; [`Node`] acts. Nothing here ends the agent: what cannot be done now is tried again with
//! backoff, and said in the health report.

mod data;
mod dialogue;

use std::sync::Arc;
use std::time::Duration;

use passant_attest::node::Prover;
use passant_attest::node::join_token::{JoinTokenProver, Token, TokenHash};
use passant_attest::node::x509pop::X509PopProver;
use passant_core::bundle::Bundle;
use passant_core::csr;
use passant_core::keys::{KeyType, SigningKey};
use passant_core::lifetime::renew_at;
use passant_core::{AgentFault, Host, Reason, Refusal, Stop, TrustDomain, UnixTime};
use passant_daemon::exit::with_causes;
use passant_daemon::label::Outcome;
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{AgentX509svidParams, PostStatusRequest, RenewAgentRequest};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backoff::{self, Backoff};
use crate::cache::{Cache, Stops};
use crate::config::{self, Bootstrap, FileError, NodeAttestor, TokenSource};
use crate::connect::{CallError, Link, NodeIdentity};
use crate::health::{Health, Part};
use crate::limits;
use crate::metrics::NodeStep;
use crate::trust::Vouching;

pub use data::{Damage, DataError, Disk, Stored, Unusable};
pub(crate) use data::{DataDir, Pending};

/// Told to workloads of a banned node.
pub(crate) const BANNED: &str = "this node is banned";

/// The node: its stored state, and what it does about its own SVID.
pub(crate) struct Node {
    trust_domain: TrustDomain,
    host: Host,
    link: Link,
    cache: Cache,
    health: Health,
    key_type: KeyType,
    attestor: NodeAttestor,
    bootstrap: Bootstrap,
    data: DataDir,
    stored: Stored,
    /// The stored state has changed and could not be written.
    unsaved: bool,
    renew_at: Option<UnixTime>,
    /// Whether an authority that is not tainted vouches for the SVID.
    vouched: bool,
    fault: Option<AgentFault>,
    /// No attempt before this.
    due: Instant,
    /// When the last attempt was made, if it failed because the server could not be reached.
    unreachable_at: Option<Instant>,
    unreachable: Backoff,
    refused: Backoff,
}

/// What is known of the SVID held, for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    not_after: UnixTime,
    renew_at: UnixTime,
    reattestable: bool,
    vouched: bool,
}

/// What to do about the node's SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing now.
    Hold,
    /// Ask for a new SVID with the one held.
    Renew,
    /// Prove the node anew.
    Attest,
    /// Nothing can be done without an operator; why.
    Stuck(&'static str),
}

/// Decides at `now`, holding `lease`, with the `fault` that the server last found in it, and with or without the means to
/// attest.
///
/// Re-attestation makes the old SVID useless at once, so it comes only where renewal is not offered. An SVID that has
/// expired by this host's clock is still tried where nothing else is left: the clock may be wrong.
fn next_step(now: UnixTime, lease: Option<Lease>, fault: Option<AgentFault>, can_attest: bool) -> Step {
    match (lease, fault) {
        (None, _) | (_, Some(_)) if can_attest => return Step::Attest,
        (_, Some(fault)) => return Step::Stuck(lost(fault)),
        (Some(_) | None, None) => {}
    }
    let Some(lease) = lease else {
        return Step::Stuck("no node SVID is stored and there is no unused join token");
    };
    let expired = lease.not_after <= now;
    let due = expired || lease.renew_at <= now || !lease.vouched;
    match (due, can_attest) {
        (false, _) => Step::Hold,
        (true, true) if expired || lease.reattestable => Step::Attest,
        (true, _) => Step::Renew,
    }
}

/// What to tell the operator of an attempt that failed with `error`.
///
/// A server refuses an expired SVID in the handshake already, which looks as if it could not be reached: say what the
/// agent knows itself.
fn trouble(error: &CallError, now: UnixTime, lease: Option<Lease>, can_attest: bool) -> String {
    match lease.filter(|lease| lease.not_after <= now && !can_attest) {
        Some(lease) => {
            format!("the node SVID expired {}; a new join token is needed ({error})", lease.not_after)
        }
        None => error.to_string(),
    }
}

fn lost(fault: AgentFault) -> &'static str {
    match fault {
        AgentFault::Expired => "the server says that the node SVID has expired; a new join token is needed",
        AgentFault::NotAttested => "the node was evicted; a new join token is needed",
        AgentFault::NotActive => {
            "the server knows a newer SVID of this node: was the data directory copied or restored? a new join token is needed"
        }
        AgentFault::MustReattest => "the server wants this node to attest again, and its join token is spent",
        AgentFault::Banned => BANNED,
    }
}

impl Node {
    /// Takes up what is stored, or what the configuration gives to begin with.
    ///
    /// # Errors
    /// When the stored state cannot be read or is not ours, or the bootstrap bundle is needed and cannot be read.
    #[expect(clippy::too_many_arguments, reason = "the parts of one agent meet here, each once")]
    pub(crate) fn open(
        trust_domain: TrustDomain,
        attestor: NodeAttestor,
        bootstrap: Bootstrap,
        key_type: KeyType,
        data: DataDir,
        link: Link,
        cache: Cache,
        health: Health,
        host: Host,
    ) -> Result<Self, OpenError> {
        let stored = data.load(&host)?;
        let mut node = Self {
            trust_domain,
            host,
            link,
            cache,
            health,
            key_type,
            attestor,
            bootstrap,
            data,
            stored,
            unsaved: false,
            renew_at: None,
            vouched: true,
            fault: None,
            due: Instant::now(),
            unreachable_at: None,
            unreachable: Backoff::new(limits::BACKOFF_FIRST, limits::BACKOFF_LAST),
            refused: Backoff::new(limits::REFUSED_FIRST, limits::REFUSED_LAST),
        };
        match node.stored.bundle.clone() {
            Some(bundle) => {
                node.link.trust(Arc::clone(&bundle));
                node.cache.learn_bundle(bundle);
            }
            None => node.trust_bootstrap()?,
        }
        node.cache.learn_stops(Stops::new(node.stored.stops.clone()));
        if let Some(identity) = node.stored.identity.clone() {
            info!(id = %identity.svid.id(), not_after = %identity.svid.not_after(), "node SVID loaded");
            node.assume(identity);
        }
        Ok(node)
    }

    /// Verifies the server by what the configuration gives.
    fn trust_bootstrap(&self) -> Result<(), FileError> {
        match &self.bootstrap {
            Bootstrap::File(path) => {
                let bundle = config::read_bundle(path, &self.trust_domain)?;
                self.link.trust(Arc::new(bundle));
            }
            Bootstrap::Bundle(bundle) => self.link.trust(Arc::new((**bundle).clone())),
            Bootstrap::Insecure => {}
        }
        Ok(())
    }

    /// When [`Self::tend`] next has something to do, as far as timers know.
    pub(crate) const fn due(&self) -> Instant {
        self.due
    }

    /// A workload waits. If the last attempt failed because the server was away, the next one comes no later than it would
    /// after a first failure.
    pub(crate) fn hurry(&mut self) {
        if let Some(failed_at) = self.unreachable_at {
            self.due = self.due.min(failed_at + limits::BACKOFF_FIRST);
        }
    }

    /// Does what is due about the node's own SVID.
    pub(crate) async fn tend(&mut self) {
        if self.unsaved {
            self.save().await;
        }
        if Instant::now() < self.due {
            return;
        }
        let token = self.usable_token();
        let can_attest = match (&self.attestor, &token) {
            (NodeAttestor::X509pop(_), _) | (NodeAttestor::JoinToken(_), Ok(Some(_))) => true,
            (NodeAttestor::JoinToken(_), Ok(None) | Err(_)) => false,
        };
        let step = next_step(self.host.now(), self.lease(), self.fault, can_attest);
        let (made, outcome) = match step {
            Step::Hold => {
                self.due = Instant::now() + limits::LOOK_AGAIN;
                return;
            }
            Step::Stuck(why) => {
                let detail = token.err().map(|error| format!(" ({error})")).unwrap_or_default();
                self.health.bad(Part::Node, &format!("{why}{detail}"));
                self.due = Instant::now() + limits::LOOK_AGAIN;
                return;
            }
            Step::Renew => (NodeStep::Renew, self.renew().await),
            Step::Attest => (NodeStep::Attest, self.attest(token.ok().flatten()).await),
        };
        let went = Outcome::of(outcome.as_ref().map_err(|error| &error.refusal));
        self.link.metrics().node_svids.of((made, went)).inc();
        self.due = Instant::now() + self.judge(outcome, can_attest).await;
    }

    /// Reports the outcome of an attempt and says when to look again.
    async fn judge(&mut self, outcome: Result<(), CallError>, can_attest: bool) -> Duration {
        self.unreachable_at = None;
        let Err(error) = outcome else {
            self.unreachable.succeeded();
            self.refused.succeeded();
            self.health.good(Part::Node);
            return self.lease().map_or(limits::RENEWAL_FLOOR, |lease| look_after(self.host.now(), &lease));
        };
        self.health.bad(Part::Node, &trouble(&error, self.host.now(), self.lease(), can_attest));
        if let Some(fault) = error.refusal.agent_fault {
            self.found(fault).await;
        }
        match error.refusal.reason {
            Reason::Unavailable | Reason::Exhausted | Reason::Internal => {
                // Whoever was told when to come again does not come before, even if a workload waits.
                self.unreachable_at = error.refusal.retry_after.is_none().then(Instant::now);
                let guess = self.unreachable.failed(&self.host);
                backoff::as_told(error.refusal.retry_after, guess, &self.host)
            }
            Reason::Invalid
            | Reason::Unauthenticated
            | Reason::Denied
            | Reason::NotFound
            | Reason::AlreadyExists
            | Reason::Precondition
            | Reason::Unimplemented => self.refused.failed(&self.host),
        }
    }

    /// The server has found `fault` in the SVID now used.
    pub(crate) async fn found(&mut self, fault: AgentFault) {
        if self.fault == Some(fault) {
            return;
        }
        warn!(?fault, "the server does not accept this node's SVID");
        self.fault = Some(fault);
        self.due = Instant::now();
        match fault {
            AgentFault::Banned => self.give_up().await,
            AgentFault::MustReattest => self.mark_reattestable(),
            AgentFault::Expired | AgentFault::NotAttested | AgentFault::NotActive => {}
        }
    }

    /// The SVID was accepted: whatever was found before is over, unless more was found since.
    pub(crate) fn accepted(&mut self) {
        if self.link.fault().is_some() {
            return;
        }
        if self.fault.take().is_some() {
            self.refused.succeeded();
            self.health.good(Part::Node);
        }
    }

    /// Banned: nothing that was issued may be used any more. The bundle and the memory of the token stay.
    async fn give_up(&mut self) {
        self.cache.withhold(BANNED);
        self.link.forget_identity();
        self.stored.identity = None;
        self.stored.pending = None;
        self.renew_at = None;
        self.due = Instant::now() + self.refused.failed(&self.host);
        self.save().await;
        self.health.bad(Part::Node, BANNED);
    }

    fn mark_reattestable(&mut self) {
        if let Some(held) = &self.stored.identity
            && !held.reattestable
        {
            let identity =
                NodeIdentity { svid: held.svid.clone(), key: Arc::clone(&held.key), reattestable: true };
            self.stored.identity = Some(Arc::new(identity));
            self.unsaved = true;
        }
    }

    /// Takes over a bundle that the server told of: verifies the server by it, and looks whether it still vouches for us. True if it
    /// differs from the one held; then [`Self::keep_bundle`] is to follow.
    pub(crate) fn learn_bundle(&mut self, bundle: &Arc<Bundle>) -> bool {
        if self.stored.bundle.as_ref().is_some_and(|held| **held == **bundle) {
            return false;
        }
        info!(sequence = bundle.sequence, "bundle changed");
        self.stored.bundle = Some(Arc::clone(bundle));
        self.link.trust(Arc::clone(bundle));
        if let Some(identity) = &self.stored.identity {
            self.vouched = Vouching::of(bundle).covers(&identity.svid);
        }
        true
    }

    /// Writes the new bundle to disk.
    pub(crate) async fn keep_bundle(&mut self) {
        self.save().await;
    }

    /// Writes what is stopped to disk, so that it stays stopped when the agent starts anew.
    pub(crate) async fn keep_stops(&mut self, stops: &[Stop]) {
        self.stored.stops = stops.to_vec();
        self.save().await;
    }

    /// Tells the server which agent this is. Failure is only said: nothing depends on it.
    pub(crate) async fn post_status(&self) {
        let current_bundle_serial = self.stored.bundle.as_ref().map_or(0, |bundle| bundle.sequence);
        let posted = self
            .link
            .call("post status", limits::CALL, |channel| async move {
                let agent_version = concat!("passant ", env!("CARGO_PKG_VERSION")).to_owned();
                let request = PostStatusRequest { current_bundle_serial, agent_version };
                AgentClient::new(channel).post_status(request).await.map(drop)
            })
            .await;
        if let Err(error) = posted {
            warn!(%error, "the server does not know this agent's version");
        }
    }

    async fn renew(&mut self) -> Result<(), CallError> {
        let what = "renew the node SVID";
        let key = self.new_key(what)?;
        let csr =
            csr::make(&*key, None).map_err(|error| CallError { what, refusal: Refusal::internal(error) })?;
        let answer = self
            .link
            .call(what, limits::CALL, |channel| {
                let params = Some(AgentX509svidParams { csr: csr.clone() });
                async move {
                    let mut client =
                        AgentClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
                    Ok(client.renew_agent(RenewAgentRequest { params }).await?.into_inner())
                }
            })
            .await?;
        let bundle = self.link.bundle().ok_or_else(|| CallError::unavailable(what, "no bundle is held"))?;
        let svid = dialogue::read_svid(answer.svid.as_ref(), &self.trust_domain, &*key, &bundle)
            .map_err(|why| CallError::unavailable(what, why))?;
        let reattestable = self.stored.identity.as_ref().is_some_and(|held| held.reattestable);
        let identity = Arc::new(NodeIdentity { svid, key, reattestable });
        // On disk before its first use: the server forgets the old serial once it has seen the new one.
        let stored = Stored { identity: Some(Arc::clone(&identity)), ..self.stored.clone() };
        match self.data.save(&stored).await {
            Ok(()) => {
                self.unsaved = false;
                self.health.good(Part::Data);
            }
            Err(error) => {
                self.health.bad(Part::Data, &with_causes(&error));
                if !self.is_about_to_end() {
                    let refusal = Refusal::unavailable(with_causes(&error)).because(error);
                    return Err(CallError { what, refusal });
                }
                // Held in memory alone it can be lost; the one on disk is lost for certain.
                self.unsaved = true;
            }
        }
        self.stored = stored;
        info!(id = %identity.svid.id(), not_after = %identity.svid.not_after(), "node SVID renewed");
        self.assume(identity);
        Ok(())
    }

    async fn attest(&mut self, token: Option<Token>) -> Result<(), CallError> {
        let what = "attest node";
        if self.stored.bundle.is_none() {
            // The file may have been mended since the last attempt.
            self.trust_bootstrap().map_err(|error| unprepared(what, error))?;
            if matches!(self.bootstrap, Bootstrap::Insecure) {
                warn!("insecure_bootstrap: whoever answers first as the server is believed");
            }
        }
        let token_hash = token.as_ref().map(Token::hash);
        let key = match token_hash {
            Some(hash) => self.pending_key(hash, what).await?,
            None => self.new_key(what)?,
        };
        let mut prover = self.prover(token).map_err(|error| unprepared(what, error))?;
        let channel = self.link.stranger().map_err(|error| unprepared(what, error))?;
        let attested = dialogue::attest(channel, &self.trust_domain, &mut *prover, key).await?;
        let identity = Arc::new(attested.identity);
        info!(id = %identity.svid.id(), not_after = %identity.svid.not_after(),
            reattestable = identity.reattestable, "node attested");
        self.stored = Stored {
            identity: Some(Arc::clone(&identity)),
            bundle: Some(Arc::clone(&attested.bundle)),
            pending: None,
            spent: token_hash.or(self.stored.spent),
            stops: self.stored.stops.clone(),
        };
        self.save().await;
        self.link.trust(Arc::clone(&attested.bundle));
        self.cache.learn_bundle(attested.bundle);
        self.assume(identity);
        self.cache.lift();
        self.post_status().await;
        Ok(())
    }

    /// The key for an attestation by the token `hash`: the one of the last attempt with it, or a new one that is on disk
    /// before the server hears of it.
    async fn pending_key(
        &mut self,
        hash: TokenHash,
        what: &'static str,
    ) -> Result<Arc<dyn SigningKey>, CallError> {
        if let Some(pending) = self.stored.pending.as_ref().filter(|pending| pending.token == hash) {
            return Ok(Arc::clone(&pending.key));
        }
        let key = self.new_key(what)?;
        let pending = Some(Pending { token: hash, key: Arc::clone(&key) });
        let stored = Stored { pending, ..self.stored.clone() };
        self.data.save(&stored).await.map_err(|error| {
            self.health.bad(Part::Data, &with_causes(&error));
            CallError { what, refusal: Refusal::unavailable(with_causes(&error)).because(error) }
        })?;
        self.health.good(Part::Data);
        self.stored = stored;
        Ok(key)
    }

    fn prover(&self, token: Option<Token>) -> Result<Box<dyn Prover>, Unprepared> {
        match (&self.attestor, token) {
            (NodeAttestor::JoinToken(_), Some(token)) => Ok(Box::new(JoinTokenProver::new(token))),
            (NodeAttestor::JoinToken(_), None) => Err(Unprepared::NoToken),
            (NodeAttestor::X509pop(config), _) => {
                Ok(Box::new(X509PopProver::open(config.clone(), self.host.clone()).map_err(Box::new)?))
            }
        }
    }

    /// The join token that may be tried: there is one, and no attestation has succeeded with it yet.
    fn usable_token(&self) -> Result<Option<Token>, FileError> {
        let token = match &self.attestor {
            NodeAttestor::JoinToken(Some(TokenSource::Given(token))) => Token::parse(token.expose()).ok(),
            NodeAttestor::JoinToken(Some(TokenSource::File(path))) => Some(config::read_token(path)?),
            NodeAttestor::JoinToken(None) | NodeAttestor::X509pop(_) => None,
        };
        Ok(token.filter(|token| self.stored.spent != Some(token.hash())))
    }

    /// Is known by `identity` from now on.
    fn assume(&mut self, identity: Arc<NodeIdentity>) {
        let (begin, end) = (identity.svid.not_before(), identity.svid.not_after());
        self.renew_at = Some(renew_at(begin, end, self.host.jitter()));
        self.vouched = match self.stored.bundle.as_ref() {
            Some(bundle) => Vouching::of(bundle).covers(&identity.svid),
            None => true,
        };
        self.fault = None;
        if let Err(error) = self.link.identify(identity) {
            self.health.bad(Part::Node, &with_causes(&error));
        }
    }

    /// Whether less than a quarter of the life of the SVID held is left.
    fn is_about_to_end(&self) -> bool {
        self.stored.identity.as_ref().is_none_or(|identity| {
            let (begin, end) = (identity.svid.not_before(), identity.svid.not_after());
            self.host.now().until(end) < begin.until(end) / 4
        })
    }

    fn lease(&self) -> Option<Lease> {
        let identity = self.stored.identity.as_ref()?;
        Some(Lease {
            not_after: identity.svid.not_after(),
            renew_at: self.renew_at?,
            reattestable: identity.reattestable,
            vouched: self.vouched,
        })
    }

    async fn save(&mut self) {
        match self.data.save(&self.stored).await {
            Ok(()) => {
                self.unsaved = false;
                self.health.good(Part::Data);
            }
            Err(error) => {
                self.unsaved = true;
                self.health.bad(Part::Data, &with_causes(&error));
            }
        }
    }

    fn new_key(&self, what: &'static str) -> Result<Arc<dyn SigningKey>, CallError> {
        let key = self.host.keys.generate(self.key_type);
        key.map_err(|error| CallError { what, refusal: Refusal::internal(error) })
    }
}

/// Why a node cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Bootstrap(#[from] FileError),
}

/// Why an attestation cannot even be tried.
#[derive(Debug, thiserror::Error)]
enum Unprepared {
    #[error("there is no unused join token")]
    NoToken,
    #[error(transparent)]
    X509pop(#[from] Box<passant_attest::node::x509pop::X509PopConfigError>),
}

/// The node's own fault: trying again soon will not help, but files may be mended.
fn unprepared(what: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> CallError {
    CallError { what, refusal: Refusal::precondition(with_causes(&error)).because(error) }
}

/// When to look again at an SVID that has just come.
fn look_after(now: UnixTime, lease: &Lease) -> Duration {
    if lease.vouched {
        return limits::RENEWAL_FLOOR;
    }
    // The server may go on signing with a tainted authority for a while, but the SVID must not expire meanwhile.
    now.until(lease.renew_at).clamp(limits::RENEWAL_FLOOR, limits::DISTRUST_FLOOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(not_after: i64, renew_at: i64, reattestable: bool) -> Lease {
        Lease {
            not_after: UnixTime::from_secs(not_after),
            renew_at: UnixTime::from_secs(renew_at),
            reattestable,
            vouched: true,
        }
    }

    #[test]
    fn an_svid_of_a_tainted_authority_is_renewed_before_it_expires() {
        let of = |renew_at, vouched| {
            look_after(UnixTime::from_secs(0), &Lease { vouched, ..lease(2 * renew_at, renew_at, false) })
                .as_secs()
        };
        assert_eq!([of(30, true), of(30, false), of(1, false), of(1_800, false)], [5, 30, 5, 60]);
    }

    #[track_caller]
    fn check(now: i64, lease: Option<Lease>, fault: Option<AgentFault>, can_attest: bool, step: Step) {
        assert_eq!(next_step(UnixTime::from_secs(now), lease, fault, can_attest), step);
    }

    #[test]
    fn a_node_without_svid_attests_if_it_can() {
        check(0, None, None, true, Step::Attest);
        assert!(matches!(next_step(UnixTime::from_secs(0), None, None, false), Step::Stuck(_)));
    }

    #[test]
    fn an_svid_is_held_until_its_renewal_and_then_renewed_as_the_server_said() {
        let (renews, reattests) = (Some(lease(100, 50, false)), Some(lease(100, 50, true)));
        check(49, renews, None, true, Step::Hold);
        check(50, renews, None, false, Step::Renew);
        check(50, renews, None, true, Step::Renew);
        check(50, reattests, None, true, Step::Attest);
        check(50, reattests, None, false, Step::Renew);
    }

    #[test]
    fn an_expired_svid_is_replaced_by_attestation_or_tried_as_a_last_resort() {
        let held = Some(lease(100, 50, false));
        check(99, held, None, true, Step::Renew);
        check(100, held, None, true, Step::Attest);
        check(100, held, None, false, Step::Renew);
    }

    #[test]
    fn a_node_that_cannot_help_itself_says_that_it_needs_a_join_token() {
        let error = CallError::unavailable("renew the node SVID", "handshake failed");
        let told = |now, can_attest| {
            trouble(&error, UnixTime::from_secs(now), Some(lease(100, 50, false)), can_attest)
        };
        assert_eq!(told(99, false), error.to_string());
        assert_eq!(told(100, true), error.to_string());
        let needed = told(100, false);
        assert!(needed.contains("expired") && needed.contains("a new join token is needed"), "{needed}");
        assert!(needed.contains(&error.to_string()), "{needed}");
    }

    #[test]
    fn a_tainted_authority_makes_renewal_due_at_once() {
        let tainted = Lease { vouched: false, ..lease(100, 50, false) };
        check(10, Some(tainted), None, false, Step::Renew);
    }

    #[test]
    fn a_fault_leads_to_attestation_or_to_an_operator() {
        let held = Some(lease(100, 50, false));
        for fault in
            [AgentFault::Expired, AgentFault::NotAttested, AgentFault::NotActive, AgentFault::MustReattest]
        {
            check(10, held, Some(fault), true, Step::Attest);
            check(10, held, Some(fault), false, Step::Stuck(lost(fault)));
        }
        check(10, None, Some(AgentFault::Banned), true, Step::Attest);
    }
}
