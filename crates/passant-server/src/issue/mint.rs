//! How does an approved order become an SVID?
//!
//! Signed, read back, and compared with the order field by field: what differs is dropped and never seen outside.

use passant_core::jwt_svid::{JwtSvid, TokenNotAsOrdered};
use passant_core::serial::Serial;
use passant_core::x509_svid::{LeafOrder, NotAsOrdered, X509Svid};
use passant_core::{Refusal, UnixTime};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;

use super::order::{JwtOrder, Ordered, X509Order};
use crate::authority::{AuthorityFacts, KEY_ID_BYTES, LeafFacts, MintError};
use crate::record::{Intent, Receipt};
use crate::state::{Authority, AuthorityId, Phase, State};

/// An order whose decision is durably on record.
pub(super) struct Approved<O> {
    order: O,
    intent: Intent,
}

/// A signed SVID that matches its order and has not left this module yet.
pub(super) struct Minted<S> {
    svid: S,
    authority: Option<AuthorityId>,
}

/// What is journaled of a node SVID before it is shown.
#[derive(Clone, Debug)]
pub(crate) struct NodeSvidFacts {
    /// Its serial.
    pub(crate) serial: Serial,
    /// Its last valid second.
    pub(crate) not_after: UnixTime,
    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub(crate) key_hash: [u8; 32],
    /// The authority that signed it.
    pub(crate) authority: Option<AuthorityId>,
}

impl<O: Ordered> Approved<O> {
    /// Takes the permission for exactly this order.
    pub(super) fn pair(order: O, intent: Option<Intent>) -> Result<Self, Refusal> {
        match intent {
            Some(intent) if intent.decision() == order.decision() => Ok(Self { order, intent }),
            _ => Err(Refusal::internal("decision record answered with another decision than was asked for")),
        }
    }

    /// Uses the permission up.
    pub(super) fn mint(self) -> (Result<Minted<O::Svid>, MintError>, Receipt) {
        let authority = self.intent.decision().authority.clone();
        let minted = self.order.sign(&self.intent).map(|svid| Minted { svid, authority });
        (minted, self.intent.into_receipt())
    }
}

impl<S> Minted<S> {
    /// Lets the SVID out. Called last, when everything that must stand before it is seen does stand.
    ///
    /// # Errors
    /// Unavailable when the authority that signed it is believed no longer in `state`, which is to be the newest.
    pub(super) fn release(self, state: &State) -> Result<S, Refusal> {
        is_believed(state, self.authority.as_ref())?;
        Ok(self.svid)
    }
}

impl Minted<X509Svid> {
    /// What the journal keeps of it.
    pub(super) fn about(&self) -> NodeSvidFacts {
        NodeSvidFacts {
            serial: self.svid.serial().clone(),
            not_after: self.svid.not_after(),
            key_hash: passant_core::csr::key_hash(self.svid.public_key()),
            authority: self.authority.clone(),
        }
    }
}

/// Whether what this authority has just signed may be handed out. Disk and signer were waited for, and it may have been
/// tainted or revoked meanwhile: agents that have replaced everything it had signed would not look at this again.
///
/// # Errors
/// Unavailable: by now another one signs.
pub(crate) fn is_believed(state: &State, authority: Option<&AuthorityId>) -> Result<(), Refusal> {
    let Some(id) = authority else { return Ok(()) };
    // One that is tainted and active comes of a restored backup, and signs until it is succeeded.
    let is_believed = |authority: &Authority| !authority.tainted || authority.phase == Phase::Active;
    if state.authority(id).is_some_and(is_believed) {
        return Ok(());
    }
    Err(Refusal::unavailable("the authority that signed was tainted or revoked meanwhile: ask again"))
}

/// Whether an authority may sign one below it, and hand it out: not even a tainted one that is still active may, since what
/// is signed below it would be of a tainted authority for as long as it lives.
///
/// # Errors
/// Unavailable: another one is to sign first.
pub(super) fn is_untainted(state: &State, authority: &AuthorityId) -> Result<(), Refusal> {
    if state.authority(authority).is_some_and(|authority| !authority.tainted) {
        return Ok(());
    }
    Err(Refusal::unavailable(
        "the authority that signs is tainted or was revoked: ask again once another one signs",
    ))
}

/// Signs and checks an X509-SVID.
pub(super) fn x509(order: &X509Order, recorded: &Intent) -> Result<X509Svid, MintError> {
    let ordered = &order.decision;
    let facts = LeafFacts {
        serial: &order.serial,
        not_before: order.not_before,
        not_after: ordered.not_after,
        spiffe_id: &ordered.spiffe_id,
        dns_names: &order.dns_names,
        public_key: order.csr.public_key(),
        key_hash: &ordered.key_hash,
    };
    let leaf = order.authority.sign_leaf(recorded, &facts)?;
    let svid = X509Svid::of_signed(
        leaf,
        &LeafOrder {
            spiffe_id: &ordered.spiffe_id,
            dns_names: &order.dns_names,
            serial: &order.serial,
            not_before: order.not_before,
            not_after: ordered.not_after,
            public_key: order.csr.public_key(),
            key_id: &ordered.key_hash[..KEY_ID_BYTES],
            issuer: order.authority.name(),
            authority_key_id: order.authority.key_id(),
        },
    );
    let svid = svid.map_err(|NotAsOrdered(what)| MintError::Mismatch { what })?;
    matches(&[(svid.not_after() <= order.authority.not_after(), "end of the authority")])?;
    Ok(svid)
}

/// Signs and checks the certificate of an authority below.
pub(super) fn downstream(
    order: &X509Order,
    recorded: &Intent,
) -> Result<Vec<CertificateDer<'static>>, MintError> {
    let (ordered, authority) = (&order.decision, &order.authority);
    let facts = AuthorityFacts {
        trust_domain_id: &ordered.spiffe_id,
        public_key: order.csr.public_key(),
        serial: &order.serial,
        not_before: order.not_before,
        not_after: ordered.not_after,
    };
    let chain = authority.sign(recorded, &facts.params_below()?, &order.csr)?;
    let [certificate] = chain.as_slice() else { return Err(MintError::Mismatch { what: "chain" }) };
    let found = facts.read(certificate)?;
    let issuer_key_id = found.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(issuer) = extension.parsed_extension() else {
            return None;
        };
        issuer.key_identifier.as_ref()
    });
    matches(&[
        (ordered.not_after <= authority.not_after(), "end of the authority"),
        (issuer_key_id.is_some_and(|id| id.0 == authority.key_id()), "authority key identifier"),
    ])?;
    Ok(chain)
}

/// Signs and checks a JWT-SVID.
pub(super) fn jwt(order: &JwtOrder, recorded: &Intent) -> Result<JwtSvid, MintError> {
    let claims = &order.claims;
    let token = order.authority.sign(recorded, claims)?;
    // As with certificates, the signature itself is the signer's affair: that the key is the authority's was seen when it was
    // taken into use.
    let svid = JwtSvid::of_signed(token, claims, (order.authority.key_type(), order.authority.id().as_str()));
    let svid = svid.map_err(|TokenNotAsOrdered(what)| MintError::Mismatch { what })?;
    matches(&[
        (*svid.id() == order.decision.spiffe_id, "SPIFFE ID"),
        (claims.exp == order.decision.not_after, "exp"),
        (claims.exp <= order.authority.not_after(), "end of the authority"),
    ])?;
    Ok(svid)
}

fn matches(checks: &[(bool, &'static str)]) -> Result<(), MintError> {
    match checks.iter().find(|(is_same, _)| !is_same) {
        Some((_, what)) => Err(MintError::Mismatch { what }),
        None => Ok(()),
    }
}
