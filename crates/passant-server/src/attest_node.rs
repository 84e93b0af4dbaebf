//! How does a node become an attested agent?
//!
//! Evidence -> [`NodeProof`] -> order -> intent -> minted -> one commit -> issued. The commit holds the node's row and, for a
//! join token, its spending and the alias entry: a crash leaves all of it or nothing, and the SVID is shown only after it.
//! Everything that was checked before signing is checked again inside the commit, where nothing can come in between.

use std::sync::Arc;
use std::time::Duration;

use passant_attest::node::join_token::{self, Token, TokenHash};
use passant_attest::node::{Dialog, Proof, Verifier};
use passant_core::{AgentFault, EntryDraft, EntryId, Host, Refusal, Selector, Selectors, SpiffeId, UnixTime};
use passant_daemon::label::Outcome;

use crate::access::Rights;
use crate::caller::{AgentCaller, at_fault};
use crate::issue::{Asker, IssuedX509, Issuer, NodeSvidFacts, is_believed};
use crate::journal::Journal;
use crate::metrics::Method;
use crate::state::State;
use crate::state::change::Change;
use crate::state::node::{AttestedNode, PendingSerial};
use crate::state::token::{JoinToken, Spent};

/// How long one attestation may take, challenges and the services that a verifier asks included.
const ATTEST_WITHIN: Duration = Duration::from_secs(60);

/// Attests nodes, by the methods that are configured.
#[derive(Clone)]
pub struct NodeAttestation {
    journal: Journal,
    issuer: Issuer,
    methods: Arc<[NodeMethod]>,
    rights: Arc<Rights>,
    host: Host,
}

/// A method by which nodes may attest.
#[derive(Clone)]
pub enum NodeMethod {
    /// By join token, which is state of the server and needs no verifier.
    JoinToken,
    /// By what a verifier finds out.
    Verified(Arc<dyn Verifier>),
}

/// What an attestation ends with.
#[derive(Clone, Debug)]
pub struct AttestedSvid {
    /// The agent's X509-SVID.
    pub svid: IssuedX509,
    /// Whether the agent attests anew instead of renewing.
    pub can_reattest: bool,
}

/// A node that has proved who it is, to this server, by a method that is enabled. Made only by [`NodeAttestation`].
#[derive(Clone, Debug)]
pub struct NodeProof {
    method: String,
    agent_id: SpiffeId,
    selectors: Selectors,
    can_reattest: bool,
    token: Option<TokenHash>,
    rights: Arc<Rights>,
    caller: String,
}

impl NodeAttestation {
    /// Evidence of any other method than `methods` is refused.
    pub fn new(journal: Journal, issuer: Issuer, methods: Vec<NodeMethod>, host: Host) -> Self {
        Self { journal, issuer, methods: Arc::from(methods), rights: Arc::default(), host }
    }

    /// With what the configuration gives to whom: a token that the holder of a role has made gives nothing of it.
    #[must_use]
    pub fn with_rights(self, rights: Arc<Rights>) -> Self {
        Self { rights, ..self }
    }

    /// The attestation types that are enabled.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().map(NodeMethod::name)
    }

    /// Attests one node and issues its agent's X509-SVID. `caller` says for the record where the evidence came from.
    ///
    /// The CSR is read first, so that a bad one costs neither a join token nor a challenge.
    ///
    /// # Errors
    /// Invalid for a CSR that is not acceptable, and for a join token that is unknown, expired, or spent with another key;
    /// Precondition for a method that is not enabled; Denied for evidence that does not convince and for a banned agent;
    /// Unavailable when verifying takes too long, nothing can be put on record, or no authority is valid.
    pub async fn attest(
        &self,
        method: &str,
        payload: &[u8],
        csr: &[u8],
        dialog: &mut dyn Dialog,
        caller: String,
    ) -> Result<AttestedSvid, Refusal> {
        let attested = self.attest_by(method, payload, csr, dialog, caller).await;
        self.issuer.metrics().attestations.of((Method::named(method), Outcome::of(attested.as_ref()))).inc();
        attested
    }

    async fn attest_by(
        &self,
        method: &str,
        payload: &[u8],
        csr: &[u8],
        dialog: &mut dyn Dialog,
        caller: String,
    ) -> Result<AttestedSvid, Refusal> {
        let csr = self.issuer.csr(Asker::Nodes, csr).await?;
        let proof = match self.methods.iter().find(|enabled| enabled.name() == method) {
            Some(NodeMethod::JoinToken) => self.prove_by_token(payload, caller)?,
            Some(NodeMethod::Verified(verifier)) => self.prove(&**verifier, payload, dialog, caller).await?,
            None => return Err(not_enabled(method)),
        };
        let can_reattest = proof.can_reattest;
        let svid = self.issuer.node(proof, csr).await?;
        Ok(AttestedSvid { svid, can_reattest })
    }

    /// A token's holder is the agent that the token makes. Whether the token is good is checked with the CSR at hand.
    fn prove_by_token(&self, payload: &[u8], caller: String) -> Result<NodeProof, Refusal> {
        let text = std::str::from_utf8(payload).map_err(|_| token_unknown())?;
        let token = Token::parse(text).map_err(|error| token_unknown().because(error))?;
        let state = self.journal.state();
        let agent_id =
            token.agent_id(state.trust_domain()).map_err(|error| token_unknown().because(error))?;
        Ok(NodeProof {
            method: join_token::METHOD.to_owned(),
            agent_id,
            selectors: Selectors::new(),
            can_reattest: false,
            token: Some(token.hash()),
            rights: Arc::clone(&self.rights),
            caller,
        })
    }

    async fn prove(
        &self,
        verifier: &dyn Verifier,
        payload: &[u8],
        dialog: &mut dyn Dialog,
        caller: String,
    ) -> Result<NodeProof, Refusal> {
        let method = verifier.method();
        let verified = verifier.verify(payload, dialog, self.host.now());
        let proof = tokio::time::timeout(ATTEST_WITHIN, verified)
            .await
            .map_err(|_| Refusal::unavailable("node attestation took too long"))??;
        let Proof { agent_id, selectors, can_reattest } = proof;
        let trust_domain = self.journal.state().trust_domain().clone();
        if !agent_id.is_member_of(&trust_domain) || !agent_id.is_agent() {
            return Err(Refusal::internal(format!("attestor {method} named an agent \"{agent_id}\"")));
        }
        let rights = Arc::clone(&self.rights);
        Ok(NodeProof {
            method: method.to_owned(),
            agent_id,
            selectors,
            can_reattest,
            token: None,
            rights,
            caller,
        })
    }
}

impl NodeMethod {
    /// The attestation type on the wire.
    fn name(&self) -> &str {
        match self {
            Self::JoinToken => join_token::METHOD,
            Self::Verified(verifier) => verifier.method(),
        }
    }
}

fn not_enabled(method: &str) -> Refusal {
    let name: String = method.chars().filter(char::is_ascii_graphic).take(64).collect();
    Refusal::precondition(format!("node attestor type \"{name}\" is not configured on this server"))
}

impl NodeProof {
    /// By which method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Who the node's agent is.
    pub fn agent_id(&self) -> &SpiffeId {
        &self.agent_id
    }

    /// Where the evidence came from, for the record.
    pub fn caller(&self) -> &str {
        &self.caller
    }

    /// Whether `state` lets the node in with a key of this hash.
    pub(crate) fn check(&self, state: &State, key_hash: &[u8; 32], now: UnixTime) -> Result<(), Refusal> {
        let row = state.node(&self.agent_id);
        let token = self.token.as_ref().map(|hash| state.token(hash));
        if let Some(token) = token {
            check_token(token, row.is_some(), key_hash, now)?;
        }
        let by_role = token.flatten().filter(|token| token.by_role && token.spent.is_none());
        if let Some(alias) = by_role.and_then(|token| token.alias.as_ref())
            && self.rights.elevate(alias, state)
        {
            return Err(Refusal::denied(
                "failed to attest: the alias of this join token has rights of its own by now, and the token was made by the holder \
                 of a role",
            ));
        }
        match row {
            // Without details, as in SPIRE: an agent that attests is not to act on them.
            Some(row) if row.is_banned() => Err(Refusal::denied("failed to attest: agent is banned")),
            Some(_) if self.token.is_none() && !self.can_reattest => {
                Err(Refusal::denied("failed to attest: this evidence has already attested an agent"))
            }
            // No token is made for an agent that is there; a restored one may be. Its agent keeps its place.
            Some(_) if token.flatten().is_some_and(|token| token.spent.is_none()) => {
                Err(Refusal::denied("failed to attest: the agent of this join token is there already"))
            }
            _ => Ok(()),
        }
    }

    /// The changes that admit the node with the SVID that was minted for it.
    pub(crate) fn admit(
        self,
        state: &State,
        svid: &NodeSvidFacts,
        host: &Host,
    ) -> Result<(Vec<Change>, ()), Refusal> {
        let now = host.now();
        self.check(state, &svid.key_hash, now)?;
        is_believed(state, svid.authority.as_ref())?;
        let mut changes = Vec::new();
        if let Some(token) = self.token.and_then(|hash| state.token(&hash)) {
            changes.extend(alias(state, token, &self.agent_id, host)?);
            let spent = token.spent.clone().unwrap_or(Spent {
                key_hash: svid.key_hash,
                agent_id: self.agent_id.clone(),
                at: now,
            });
            changes.push(Change::PutToken(JoinToken { spent: Some(spent), ..token.clone() }));
        }
        let agent_version = state.node(&self.agent_id).and_then(|row| row.agent_version.clone());
        changes.push(Change::PutNode(Arc::new(AttestedNode {
            id: self.agent_id,
            attestation_type: self.method,
            serial: Some(svid.serial.clone()),
            not_after: svid.not_after,
            pending: None,
            selectors: self.selectors,
            can_reattest: self.can_reattest,
            agent_version,
            attested_at: now,
            adopted: None,
        })));
        Ok((changes, ()))
    }
}

/// A token is good once; or again, for the same key, as long as the agent it made is still there: then the reply was lost.
fn check_token(
    token: Option<&JoinToken>,
    has_agent: bool,
    key_hash: &[u8; 32],
    now: UnixTime,
) -> Result<(), Refusal> {
    let token = token.ok_or_else(token_unknown)?;
    if now > token.expires_at {
        return Err(Refusal::invalid("join token expired"));
    }
    match &token.spent {
        None => Ok(()),
        Some(spent) if spent.key_hash == *key_hash && has_agent => Ok(()),
        Some(_) => Err(token_unknown()),
    }
}

fn token_unknown() -> Refusal {
    Refusal::invalid("failed to attest: join token does not exist or has already been used")
}

/// The entry that lets a token's agent stand for the SPIFFE ID the operator asked for, unless it is there.
fn alias(
    state: &State,
    token: &JoinToken,
    agent_id: &SpiffeId,
    host: &Host,
) -> Result<Option<Change>, Refusal> {
    let Some(alias) = &token.alias else { return Ok(None) };
    let selector = Selector::new("spiffe_id", agent_id.as_str()).map_err(Refusal::internal)?;
    let draft = EntryDraft::new(alias.clone(), agent_id.clone(), Selectors::from_iter([selector]));
    if state.find_duplicate(&draft).is_some() {
        return Ok(None);
    }
    let id = EntryId::parse(&host.uuid_by_time()).map_err(Refusal::internal)?;
    let entry = draft.register(state.trust_domain(), id, 0, host.now()).map_err(Refusal::internal)?;
    Ok(Some(Change::PutEntry(Arc::new(entry))))
}

/// The change that makes a renewed serial acceptable beside the active one.
pub(crate) fn renewed(
    state: &State,
    caller: &AgentCaller,
    svid: &NodeSvidFacts,
) -> Result<(Vec<Change>, ()), Refusal> {
    let row = state.node(caller.id()).ok_or_else(|| at_fault(caller.id(), AgentFault::NotAttested))?;
    if row.is_banned() {
        return Err(at_fault(caller.id(), AgentFault::Banned));
    }
    if row.serial.as_ref() != Some(caller.serial()) {
        return Err(at_fault(caller.id(), AgentFault::NotActive));
    }
    is_believed(state, svid.authority.as_ref())?;
    let pending = PendingSerial { serial: svid.serial.clone(), not_after: svid.not_after };
    let row = AttestedNode { pending: Some(pending), ..AttestedNode::clone(row) };
    Ok((vec![Change::PutNode(Arc::new(row))], ()))
}

#[cfg(test)]
mod tests;
