//! What exactly shall be signed?
//!
//! An order is decided before anything is put on record and does not change afterwards. Names and lifetimes come from the
//! registration entry, or from an operator; of the CSR only the public key counts. There is one constructor for each reason
//! to sign, and no other way to make an order.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use passant_core::csr::{Csr, key_hash};
use passant_core::entry::is_dns_name;
use passant_core::jwt_svid::{JwtClaims, JwtSvid};
use passant_core::lifetime;
use passant_core::limits::{DNS_NAMES, JWT_AUDIENCE_BYTES, JWT_AUDIENCES};
use passant_core::serial::Serial;
use passant_core::x509_svid::X509Svid;
use passant_core::{Entry, EntryId, Host, Refusal, SpiffeId, TrustDomain, UnixTime};
use rustls_pki_types::CertificateDer;

use super::Scene;
use crate::access::{Target, Verb};
use crate::attest_node::NodeProof;
use crate::authority::{ActiveJwt, ActiveX509, MintError};
use crate::caller::{Actor, AgentCaller, DownstreamCaller};
use crate::encoding::to_hex;
use crate::record::{Decision, DecisionKind, Grounds, Intent};
use crate::state::State;

/// What can be put on record and then minted.
pub(crate) trait Ordered: Send + 'static {
    /// What comes of it.
    type Svid: Send + 'static;

    /// What the record will say.
    fn decision(&self) -> &Arc<Decision>;

    /// Signs what was ordered, reads it back and compares. See `issue/mint.rs`.
    fn sign(&self, recorded: &Intent) -> Result<Self::Svid, MintError>;
}

/// An X509-SVID to be minted.
pub(crate) struct X509Order {
    pub(super) authority: Arc<ActiveX509>,
    pub(super) csr: Csr,
    pub(super) serial: Serial,
    pub(super) not_before: UnixTime,
    pub(super) dns_names: Vec<String>,
    /// Subject and end are in here.
    pub(super) decision: Arc<Decision>,
}

/// The X.509 authority of a server below, to be signed. It has no DNS names.
pub(crate) struct DownstreamOrder(pub(super) X509Order);

/// A JWT-SVID to be minted.
pub(crate) struct JwtOrder {
    pub(super) authority: Arc<ActiveJwt>,
    pub(super) claims: JwtClaims,
    pub(super) decision: Arc<Decision>,
}

/// What tokens are measured against: the moment, and who signs at that moment.
pub(super) struct TokenScene {
    pub(super) now: UnixTime,
    pub(super) authority: Arc<ActiveJwt>,
    pub(super) issuer: Option<String>,
    pub(super) host: Host,
}

/// Who asks for what and why: the part of a decision that does not depend on how it is signed.
struct Ask {
    kind: DecisionKind,
    spiffe_id: SpiffeId,
    entry: Option<(EntryId, u64)>,
    ends: Option<UnixTime>,
    ttl: Duration,
    caller: String,
    reason: String,
    grounds: Option<Grounds>,
}

/// SPIRE's words, for an entry that does not exist, has ended or is not the caller's: which of them is nobody's business.
pub(super) fn no_entry() -> Refusal {
    Refusal::not_found("entry not found or not authorized")
}

impl X509Order {
    /// For a workload, by its entry, which must be one of the caller's.
    pub(super) fn workload(
        scene: &Scene,
        caller: &AgentCaller,
        (entry, grounds): (&Entry, Grounds),
        csr: Csr,
        default_ttl: Duration,
    ) -> Result<Self, Refusal> {
        no_other_name(&csr, &entry.spiffe_id)?;
        let ttl = entry.x509_svid_ttl.unwrap_or(default_ttl);
        let ask = Ask::by_entry(DecisionKind::X509Svid, caller, (entry, grounds), ttl);
        Self::new(scene, ask, csr, entry.dns_names.clone())
    }

    /// For the agent of a node that has proved who it is.
    pub(super) fn node(scene: &Scene, proof: &NodeProof, csr: Csr, ttl: Duration) -> Result<Self, Refusal> {
        let reason = format!("node attested by {}", proof.method());
        Self::agent(scene, proof.agent_id(), csr, ttl, proof.caller().to_owned(), reason)
    }

    /// For an agent that renews.
    pub(super) fn renewal(
        scene: &Scene,
        caller: &AgentCaller,
        csr: Csr,
        ttl: Duration,
    ) -> Result<Self, Refusal> {
        let reason = format!("renewal of serial {}", caller.serial());
        Self::agent(scene, caller.id(), csr, ttl, caller.to_string(), reason)
    }

    fn agent(
        scene: &Scene,
        agent_id: &SpiffeId,
        csr: Csr,
        ttl: Duration,
        caller: String,
        reason: String,
    ) -> Result<Self, Refusal> {
        no_other_name(&csr, agent_id)?;
        let (kind, spiffe_id) = (DecisionKind::NodeSvid, agent_id.clone());
        Self::new(
            scene,
            Ask { kind, spiffe_id, entry: None, ends: None, ttl, caller, reason, grounds: None },
            csr,
            Vec::new(),
        )
    }

    /// For an operator, who names SPIFFE ID and DNS names in the CSR.
    pub(super) fn operator(
        scene: &Scene,
        caller: &Actor,
        csr: Csr,
        ttl: Duration,
        state: &State,
    ) -> Result<Self, Refusal> {
        let spiffe_id = match csr.spiffe_ids() {
            [] => return Err(Refusal::invalid("CSR URI SAN is required")),
            [uri] => SpiffeId::parse(uri)
                .map_err(|error| Refusal::invalid(format!("CSR URI SAN is invalid: {error}")))?,
            [_, _, ..] => return Err(Refusal::invalid("only one URI SAN is expected")),
        };
        workload_of(&spiffe_id, state.trust_domain())
            .map_err(|why| Refusal::invalid(format!("CSR URI SAN is invalid: {why}")))?;
        caller.may(Verb::SvidMint, &Target::Svid(&spiffe_id), state)?;
        let dns_names = csr.dns_names().to_vec();
        if dns_names.len() > DNS_NAMES {
            return Err(Refusal::invalid(format!("CSR has more than {DNS_NAMES} DNS names")));
        }
        if let Some(bad) = dns_names.iter().find(|name| !is_dns_name(name)) {
            return Err(Refusal::invalid(format!("CSR DNS name is invalid: \"{bad}\"")));
        }
        let ask = Ask::by_operator(DecisionKind::X509Svid, caller, spiffe_id, ttl);
        Self::new(scene, ask, csr, dns_names)
    }

    /// For the server itself.
    pub(super) fn server(
        scene: &Scene,
        server_id: SpiffeId,
        csr: Csr,
        ttl: Duration,
    ) -> Result<Self, Refusal> {
        let (kind, caller, reason) =
            (DecisionKind::ServerSvid, "server".to_owned(), "the server's own".to_owned());
        let ask =
            Ask { kind, spiffe_id: server_id, entry: None, ends: None, ttl, caller, reason, grounds: None };
        Self::new(scene, ask, csr, Vec::new())
    }

    fn new(scene: &Scene, ask: Ask, csr: Csr, dns_names: Vec<String>) -> Result<Self, Refusal> {
        let not_after = ask.not_after(scene.now, scene.authority.not_after())?;
        let serial = Serial::random(&scene.host);
        let not_before = scene.authority.backdate(scene.now);
        let authority = scene.authority.id().clone();
        let decision = Decision {
            kind: ask.kind,
            serial: serial.to_string(),
            spiffe_id: ask.spiffe_id,
            entry: ask.entry,
            key_hash: csr.key_hash(),
            not_after,
            caller: ask.caller,
            reason: ask.reason,
            authority: Some(authority),
            at: scene.now,
            grounds: ask.grounds,
        };
        let (authority, decision) = (Arc::clone(&scene.authority), Arc::new(decision));
        Ok(Self { authority, csr, serial, not_before, dns_names, decision })
    }
}

impl DownstreamOrder {
    /// For a server below, by the entry that makes it one. The name is the trust domain's, whoever asks: what is signed
    /// with this authority may be any identity of it.
    pub(super) fn new(
        scene: &Scene,
        caller: &DownstreamCaller,
        entry: &Entry,
        csr: Csr,
        ttl: Duration,
    ) -> Result<Self, Refusal> {
        let spiffe_id = entry.spiffe_id.trust_domain().id();
        no_other_name(&csr, &spiffe_id)?;
        let ask = Ask {
            kind: DecisionKind::DownstreamX509Ca,
            spiffe_id,
            entry: Some((entry.id.clone(), entry.revision)),
            ends: entry.expires_at,
            ttl,
            caller: caller.to_string(),
            reason: "entry makes the caller a downstream server".to_owned(),
            grounds: None,
        };
        X509Order::new(scene, ask, csr, Vec::new()).map(Self)
    }
}

impl JwtOrder {
    /// For a workload, by its entry, which must be one of the caller's.
    pub(super) fn workload(
        scene: &TokenScene,
        caller: &AgentCaller,
        (entry, grounds): (&Entry, Grounds),
        audience: Vec<String>,
        default_ttl: Duration,
    ) -> Result<Self, Refusal> {
        let ttl = entry.jwt_svid_ttl.unwrap_or(default_ttl);
        let ask = Ask::by_entry(DecisionKind::JwtSvid, caller, (entry, grounds), ttl);
        Self::new(scene, ask, audience, entry.jwt_svid_include_jti)
    }

    /// For an operator, who names SPIFFE ID and audience.
    pub(super) fn operator(
        scene: &TokenScene,
        caller: &Actor,
        spiffe_id: SpiffeId,
        audience: Vec<String>,
        ttl: Duration,
        state: &State,
    ) -> Result<Self, Refusal> {
        workload_of(&spiffe_id, state.trust_domain())
            .map_err(|why| Refusal::invalid(format!("invalid SPIFFE ID: {why}")))?;
        caller.may(Verb::SvidMint, &Target::Svid(&spiffe_id), state)?;
        Self::new(scene, Ask::by_operator(DecisionKind::JwtSvid, caller, spiffe_id, ttl), audience, false)
    }

    fn new(scene: &TokenScene, ask: Ask, audience: Vec<String>, with_jti: bool) -> Result<Self, Refusal> {
        let aud = check_audience(audience)?;
        let not_after = ask.not_after(scene.now, scene.authority.not_after())?;
        let jti = with_jti.then(|| new_jti(&scene.host));
        let serial = jti.clone().unwrap_or_else(|| to_hex(&scene.host.random_bytes::<16>()));
        let claims = JwtClaims {
            sub: ask.spiffe_id.clone(),
            aud,
            exp: not_after,
            iat: scene.now,
            jti,
            iss: scene.issuer.clone(),
        };
        let decision = Decision {
            kind: ask.kind,
            serial,
            // A token binds no key; the record names its subject instead.
            key_hash: key_hash(ask.spiffe_id.as_str().as_bytes()),
            spiffe_id: ask.spiffe_id,
            entry: ask.entry,
            not_after,
            caller: ask.caller,
            reason: ask.reason,
            authority: Some(scene.authority.id().clone()),
            at: scene.now,
            grounds: ask.grounds,
        };
        Ok(Self { authority: Arc::clone(&scene.authority), claims, decision: Arc::new(decision) })
    }
}

impl Ask {
    fn by_entry(
        kind: DecisionKind,
        caller: &AgentCaller,
        (entry, grounds): (&Entry, Grounds),
        ttl: Duration,
    ) -> Self {
        Self {
            kind,
            spiffe_id: entry.spiffe_id.clone(),
            entry: Some((entry.id.clone(), entry.revision)),
            ends: entry.expires_at,
            ttl,
            caller: caller.to_string(),
            reason: "entry is authorized for the agent".to_owned(),
            grounds: Some(grounds),
        }
    }

    fn by_operator(kind: DecisionKind, caller: &Actor, spiffe_id: SpiffeId, ttl: Duration) -> Self {
        let (caller, reason) = (caller.to_string(), "minted for an operator".to_owned());
        Self { kind, spiffe_id, entry: None, ends: None, ttl, caller, reason, grounds: None }
    }

    /// The earliest of TTL, end of the entry and end of the authority.
    fn not_after(&self, now: UnixTime, authority_end: UnixTime) -> Result<UnixTime, Refusal> {
        if self.ends.is_some_and(|end| end <= now) {
            return Err(no_entry());
        }
        lifetime::not_after(now, self.ttl, self.ends, authority_end).ok_or_else(|| {
            tracing::error!(%authority_end, "nothing can be signed: the active authority has expired");
            Refusal::unavailable("no authority is valid at this moment")
        })
    }
}

/// A CSR may leave its names out, and those it has are not taken over; but one made out to somebody else is a mistake or an
/// attack, and is not answered with a certificate for another name.
fn no_other_name(csr: &Csr, id: &SpiffeId) -> Result<(), Refusal> {
    match csr.spiffe_ids().iter().find(|uri| uri.as_str() != id.as_str()) {
        Some(foreign) => {
            let foreign: String = foreign.chars().filter(|c| !c.is_control()).take(2048).collect();
            Err(Refusal::invalid(format!("CSR names \"{foreign}\" as a URI SAN, expected \"{id}\" or none")))
        }
        None => Ok(()),
    }
}

/// Whether an operator may mint for `id`: a workload's ID of this trust domain, not one reserved for agents and servers.
fn workload_of(id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), String> {
    if !id.is_member_of(trust_domain) {
        return Err(format!("\"{id}\" is not a member of trust domain \"{trust_domain}\""));
    }
    if id.is_trust_domain_id() {
        return Err(format!("\"{id}\" is not a workload: path is empty"));
    }
    if id.is_reserved() {
        return Err(format!("\"{id}\" is not a workload: path is in the reserved namespace"));
    }
    Ok(())
}

fn check_audience(audience: Vec<String>) -> Result<Vec<String>, Refusal> {
    let audience: Vec<String> = audience.into_iter().filter(|value| !value.is_empty()).collect();
    if audience.is_empty() {
        return Err(Refusal::invalid("at least one audience is required"));
    }
    if audience.len() > JWT_AUDIENCES {
        return Err(Refusal::invalid(format!("too many audiences: at most {JWT_AUDIENCES} are allowed")));
    }
    if audience.iter().any(|value| value.len() > JWT_AUDIENCE_BYTES) {
        return Err(Refusal::invalid(format!("audience is longer than {JWT_AUDIENCE_BYTES} bytes")));
    }
    Ok(audience)
}

/// A random UUID (version 4) in base64url, as SPIRE writes it.
fn new_jti(host: &Host) -> String {
    let mut bytes: [u8; 16] = host.random_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Ordered for X509Order {
    type Svid = X509Svid;

    fn decision(&self) -> &Arc<Decision> {
        &self.decision
    }

    fn sign(&self, recorded: &Intent) -> Result<X509Svid, MintError> {
        super::mint::x509(self, recorded)
    }
}

impl Ordered for DownstreamOrder {
    type Svid = Vec<CertificateDer<'static>>;

    fn decision(&self) -> &Arc<Decision> {
        &self.0.decision
    }

    fn sign(&self, recorded: &Intent) -> Result<Self::Svid, MintError> {
        super::mint::downstream(&self.0, recorded)
    }
}

impl Ordered for JwtOrder {
    type Svid = JwtSvid;

    fn decision(&self) -> &Arc<Decision> {
        &self.decision
    }

    fn sign(&self, recorded: &Intent) -> Result<JwtSvid, MintError> {
        super::mint::jwt(self, recorded)
    }
}
