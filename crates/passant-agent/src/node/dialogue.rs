//! How does a node without an SVID get one? Evidence, challenges and answers, then the SVID and the bundle.

use std::sync::Arc;

use passant_attest::node::Prover;
use passant_core::bundle::Bundle;
use passant_core::csr;
use passant_core::keys::SigningKey;
use passant_core::x509_svid::X509Svid;
use passant_core::{Refusal, TrustDomain};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, attest_agent_request, attest_agent_response,
};
use passant_proto::convert;
use passant_proto::types::{self, AttestationData};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::connect::{CallError, NodeIdentity, told};
use crate::{limits, sync, trust};

/// What an attestation yields.
pub(super) struct Attested {
    pub(super) identity: NodeIdentity,
    pub(super) bundle: Arc<Bundle>,
}

const WHAT: &str = "attest node";

/// Attests over `channel`, on which the agent is a stranger, within [`limits::ATTEST`]. The bundle comes over the same
/// connection; the SVID must be for `key`, name an agent of `trust_domain` and verify against that bundle.
///
/// # Errors
/// What the server says, what the prover says, or what is wrong with the answer.
pub(super) async fn attest(
    channel: Channel,
    trust_domain: &TrustDomain,
    prover: &mut dyn Prover,
    key: Arc<dyn SigningKey>,
) -> Result<Attested, CallError> {
    let dialogue = async {
        let result = exchange(channel.clone(), prover, &*key).await?;
        let wire = sync::get_bundle(channel).await.map_err(|status| refused(&status))?;
        let bundle =
            sync::read_own_bundle(&wire, trust_domain).map_err(|why| CallError::unavailable(WHAT, why))?;
        let reattestable = result.reattestable;
        let svid = read_svid(result.svid.as_ref(), trust_domain, &*key, &bundle)
            .map_err(|why| CallError::unavailable(WHAT, why))?;
        Ok(Attested { identity: NodeIdentity { svid, key, reattestable }, bundle })
    };
    match tokio::time::timeout(limits::ATTEST, dialogue).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError::unavailable(WHAT, "the server did not answer in time")),
    }
}

async fn exchange(
    channel: Channel,
    prover: &mut dyn Prover,
    key: &dyn SigningKey,
) -> Result<attest_agent_response::Result, CallError> {
    let payload = prover.evidence().await.map_err(unproven)?;
    let csr =
        csr::make(key, None).map_err(|error| CallError { what: WHAT, refusal: Refusal::internal(error) })?;
    let params = attest_agent_request::Params {
        data: Some(AttestationData { r#type: prover.method().to_owned(), payload }),
        params: Some(AgentX509svidParams { csr }),
    };
    let (requests, outgoing) = mpsc::channel(1);
    send(&requests, attest_agent_request::Step::Params(params)).await?;
    let mut client = AgentClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
    let mut answers = client
        .attest_agent(ReceiverStream::new(outgoing))
        .await
        .map_err(|status| refused(&status))?
        .into_inner();
    for _ in 0..=limits::CHALLENGES {
        match next(&mut answers).await? {
            attest_agent_response::Step::Result(result) => return Ok(result),
            attest_agent_response::Step::Challenge(challenge) => {
                let response = prover.respond(&challenge).await.map_err(unproven)?;
                send(&requests, attest_agent_request::Step::ChallengeResponse(response)).await?;
            }
        }
    }
    Err(CallError::unavailable(WHAT, format!("the server asked more than {} challenges", limits::CHALLENGES)))
}

async fn send(
    requests: &mpsc::Sender<AttestAgentRequest>,
    step: attest_agent_request::Step,
) -> Result<(), CallError> {
    requests
        .send(AttestAgentRequest { step: Some(step) })
        .await
        .map_err(|_| CallError::unavailable(WHAT, "the server ended the attestation early"))
}

async fn next(
    answers: &mut Streaming<AttestAgentResponse>,
) -> Result<attest_agent_response::Step, CallError> {
    let answer = answers.message().await.map_err(|status| refused(&status))?;
    answer
        .and_then(|answer| answer.step)
        .ok_or_else(|| CallError::unavailable(WHAT, "the server ended the attestation early"))
}

/// Takes a node SVID from the wire, whether of an attestation or of a renewal.
pub(super) fn read_svid(
    wire: Option<&types::X509svid>,
    trust_domain: &TrustDomain,
    key: &dyn SigningKey,
    bundle: &Bundle,
) -> Result<X509Svid, String> {
    let wire = wire.ok_or("the server sent no SVID")?;
    let svid = convert::svid::x509_from_wire(wire)
        .map_err(|error| format!("the server sent a bad SVID: {error}"))?;
    if !svid.id().is_member_of(trust_domain) || svid.id().path() == trust_domain.server_id().path() {
        return Err(format!(
            "the server sent an SVID for {}, which is no agent of {trust_domain}",
            svid.id()
        ));
    }
    if svid.public_key() != key.public_key() {
        return Err("the server sent an SVID for another key".to_owned());
    }
    trust::verify_issued(&svid, bundle)
        .map_err(|error| format!("the node SVID does not verify against the server's bundle: {error}"))?;
    Ok(svid)
}

fn refused(status: &Status) -> CallError {
    CallError { what: WHAT, refusal: told(status) }
}

/// The node's own fault; trying again soon will not help, but its files may be mended.
fn unproven(error: passant_attest::node::ProveError) -> CallError {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text = format!("{text}: {source}");
    }
    CallError { what: WHAT, refusal: Refusal::precondition(text).because(error) }
}
