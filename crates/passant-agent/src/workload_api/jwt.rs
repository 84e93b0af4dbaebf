//! What do the JWT calls of the Workload API answer?

use std::collections::BTreeSet;
use std::sync::Arc;

use passant_core::jwt_svid::JwtSvid;
use passant_core::{Reason, SpiffeId, UnixTime};
use passant_proto::convert::workload::{jwt_bundles, jwt_svid, validated};
use passant_proto::status::to_status;
use passant_proto::workload::{
    JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use tonic::Status;
use tracing::warn;

use super::follow::{Call, no_identity};
use super::limits::{LOOK_AGAIN, SAME_LOOK};
use super::x509::{all_bundles, hint_owners, served_hint};
use crate::cache::Identities;

/// Claims that say whom a token is for and until when. They are told of every valid token.
const ALWAYS_TOLD: [&str; 3] = ["sub", "aud", "exp"];

/// A request whose fields are what they must be. Looked at before the caller is attested.
pub(super) struct SvidRequest {
    audience: Vec<String>,
    spiffe_id: Option<SpiffeId>,
}

impl SvidRequest {
    /// # Errors
    /// InvalidArgument without an audience, or for a `spiffe_id` that is none.
    pub(super) fn parse(request: JwtsvidRequest) -> Result<Self, Status> {
        if request.audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let spiffe_id = match request.spiffe_id.as_str() {
            "" => None,
            text => Some(SpiffeId::parse(text).map_err(|error| {
                Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}"))
            })?),
        };
        Ok(Self { audience: request.audience, spiffe_id })
    }
}

/// A JWT-SVID for each of the caller's identities, or for the one asked for.
pub(super) async fn svids(call: Call, request: SvidRequest) -> Result<JwtsvidResponse, Status> {
    let evidence = call.evidence(SAME_LOOK).await?;
    let cache = &call.shared.cache;
    let lacking = cache.jwt_svids_lacking(&evidence.selectors, &request.audience, request.spiffe_id.as_ref());
    call.shared.pace.take(&call.caller, lacking)?;
    let believable = call.believable(&evidence)?;
    let issued = cache.jwt_svids_as(&believable, request.audience, request.spiffe_id).await;
    let issued = issued.map_err(|refusal| {
        if refusal.reason == Reason::Denied { no_identity(&call, &evidence) } else { to_status(&refusal) }
    })?;
    // The server was asked meanwhile: the tokens are for the process that asked, if it still has these identities.
    if call.evidence(LOOK_AGAIN).await?.selectors != evidence.selectors {
        return Err(Status::unavailable("workload has changed while its JWT-SVIDs were issued"));
    }
    if issued.is_empty() {
        return Err(no_identity(&call, &evidence));
    }
    all_stand(issued.iter().map(|(_, svid)| svid.expires_at()), call.shared.host.now())?;
    let entries = cache.entries(&evidence.selectors);
    let owners = hint_owners(entries.iter().map(|entry| &**entry));
    let svids = issued.iter().map(|(entry, svid)| jwt_svid(svid, served_hint(entry, &owners))).collect();
    Ok(JwtsvidResponse { svids })
}

/// Some tokens come from the cache at once, others are waited for, and so is the attestor: what has ended meanwhile is not
/// handed out.
fn all_stand(ends: impl IntoIterator<Item = UnixTime>, now: UnixTime) -> Result<(), Status> {
    match ends.into_iter().all(|end| now < end) {
        true => Ok(()),
        false => Err(Status::unavailable("a JWT-SVID has ended while the others were issued; ask again")),
    }
}

/// Whether a token is valid for an audience, by the bundles that the caller may see.
pub(super) async fn validate(
    call: Call,
    request: ValidateJwtsvidRequest,
) -> Result<ValidateJwtsvidResponse, Status> {
    if request.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if request.svid.is_empty() {
        return Err(Status::invalid_argument("svid must be specified"));
    }
    let evidence = call.evidence(SAME_LOOK).await?;
    if call.is_stopped() {
        return Err(no_identity(&call, &evidence));
    }
    let shared = &call.shared;
    let bundles = shared.cache.bundles().for_entries(&shared.cache.entries(&evidence.selectors));
    if bundles.own.is_none() {
        return Err(Status::unavailable("agent holds no bundle yet"));
    }
    let now = shared.host.now();
    let svid =
        JwtSvid::verify(&request.svid, &request.audience, &|trust_domain| bundles.of(trust_domain), now)
            .map_err(|error| {
                if let Some(left_out) = shared.invalid_jwt.line(call.caller.uid()) {
                    warn!(%error, left_out, "JWT-SVID is not valid");
                }
                Status::invalid_argument(error.to_string())
            })?;
    if svid.id().is_member_of(shared.cache.trust_domain()) {
        return Ok(validated(svid.id(), svid.claims()));
    }
    let mut claims = svid.claims().clone();
    claims.retain(|claim, _| is_told_of_foreign(claim, &shared.allowed_foreign_claims));
    Ok(validated(svid.id(), &claims))
}

/// The JWT authorities of the own and of federated trust domains.
pub(super) fn bundles() -> impl FnMut(&Arc<Identities>) -> Option<JwtBundlesResponse> + Send + 'static {
    let mut told = None;
    move |identities| {
        let message = jwt_bundles(all_bundles(identities));
        if told.as_ref() == Some(&message) {
            return None;
        }
        told = Some(message.clone());
        Some(message)
    }
}

/// Another trust domain says what it likes in its tokens; a workload that believed a claim `role` would let it decide.
fn is_told_of_foreign(claim: &str, allowed: &BTreeSet<String>) -> bool {
    ALWAYS_TOLD.contains(&claim) || allowed.contains(claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulation: one token ended while the server was slow with another.
    #[test]
    fn a_token_that_ends_while_others_are_waited_for_is_not_handed_out() {
        let at = UnixTime::from_secs;
        assert!(all_stand([at(61), at(70)], at(60)).is_ok());
        assert!(all_stand([at(70), at(60)], at(60)).is_err());
    }
}
