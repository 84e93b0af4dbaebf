//! How does a node attest over AttestAgent?
//!
//! The caller is a stranger until the end, so everything is bounded: the time, the evidence, the number of challenges.

use std::pin::Pin;

use passant_attest::node::{Dialog, DialogError};
use passant_core::Reason;
use passant_proto::agent::attest_agent_request::Step as Asked;
use passant_proto::agent::attest_agent_response::{Result as Attested, Step};
use passant_proto::agent::{AttestAgentRequest, AttestAgentResponse};
use passant_proto::convert;
use passant_proto::types::AttestationData;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::api::{Api, refuse};
use crate::caller::ConnPeer;
use crate::limits::{ATTEST_STREAM_WITHIN, CHALLENGES, EVIDENCE, EVIDENCE_WITHIN, STREAM_WAITING};
use crate::serve::origin;

/// As the record names it.
const ATTEST_AGENT: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";

type Out = mpsc::Sender<Result<AttestAgentResponse, Status>>;

/// Starts the attestation; it ends with the result, a refusal, or when the node leaves.
pub(super) fn answer(
    api: Api,
    request: Request<Streaming<AttestAgentRequest>>,
) -> Result<Response<<Api as passant_proto::agent::agent_server::Agent>::AttestAgentStream>, Status> {
    let caller = match request.extensions().get::<ConnPeer>() {
        Some(ConnPeer::Remote { address, .. }) => format!("node at {address}"),
        Some(ConnPeer::Local(local)) => format!("local uid={}", local.uid),
        // Nothing slows them down here, where no address tells one from another.
        Some(ConnPeer::Guest(..) | ConnPeer::Uninvited(_)) => {
            let remedy = "nodes attest over the network: this socket is for operators and holders of roles";
            return Err(Status::permission_denied(remedy));
        }
        None => return Err(Status::internal("no peer")),
    };
    let peer = request.extensions().get::<ConnPeer>().cloned();
    let (out, stream) = mpsc::channel(STREAM_WAITING);
    tokio::spawn(async move {
        let attested = tokio::select! {
            biased;
            () = out.closed() => return,
            done = tokio::time::timeout(ATTEST_STREAM_WITHIN, attest(&api, request.into_inner(), &out, caller, peer.as_ref())) => {
                done.unwrap_or_else(|_| Err(Status::deadline_exceeded("node attestation took too long")))
            }
        };
        if out.send(attested).await.is_err() {
            tracing::debug!("node left before the end of its attestation");
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

async fn attest(
    api: &Api,
    mut requests: Streaming<AttestAgentRequest>,
    out: &Out,
    caller: String,
    peer: Option<&ConnPeer>,
) -> Result<AttestAgentResponse, Status> {
    let first = tokio::time::timeout(EVIDENCE_WITHIN, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no evidence came in time"))??;
    let (data, csr) = opening(first)?;
    let mut dialog = GrpcDialog { requests, out: out.clone(), left: CHALLENGES };
    let attested = api
        .attestation
        .attest(&data.r#type, &data.payload, &csr, &mut dialog, caller.clone())
        .await
        .map_err(|refusal| {
            // A wrong token is a wrong request, and a guess.
            if let Some(peer) = peer.filter(|_| refusal.reason == Reason::Invalid) {
                api.refusals.refused(peer, ATTEST_AGENT, Reason::Unauthenticated, &refusal.public);
            }
            let address = peer.and_then(ConnPeer::address);
            if let Some(left_out) = api.attest_refusals.line(address.map(origin)) {
                let method = data.r#type.escape_default();
                tracing::info!(%method, caller, left_out, "node attestation refused: {refusal}");
            }
            refuse(refusal)
        })?;
    let svid = attested.svid.svid();
    tracing::info!(agent = %svid.id(), method = data.r#type, caller, "node attested");
    let result =
        Attested { svid: Some(convert::svid::x509_to_wire(svid, "")), reattestable: attested.can_reattest };
    Ok(AttestAgentResponse { step: Some(Step::Result(result)) })
}

/// Evidence and CSR from the first message.
fn opening(first: Option<AttestAgentRequest>) -> Result<(AttestationData, Vec<u8>), Status> {
    let malformed = |what: &str| Status::invalid_argument(format!("malformed param: {what}"));
    let Some(Asked::Params(params)) = first.and_then(|first| first.step) else {
        return Err(malformed("missing params"));
    };
    let data = params.data.ok_or_else(|| malformed("missing attestation data"))?;
    let csr = params.params.ok_or_else(|| malformed("missing X509-SVID parameters"))?.csr;
    if csr.is_empty() {
        return Err(malformed("missing CSR"));
    }
    if data.r#type.is_empty() {
        return Err(malformed("missing attestation data type"));
    }
    if data.payload.is_empty() {
        return Err(malformed("missing attestation data payload"));
    }
    if data.payload.len() > EVIDENCE {
        return Err(malformed("attestation data payload is too large"));
    }
    Ok((data, csr))
}

/// The way back to the node while its evidence is judged.
struct GrpcDialog {
    requests: Streaming<AttestAgentRequest>,
    out: Out,
    left: usize,
}

impl GrpcDialog {
    async fn ask(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, DialogError> {
        let failed = |why: &str| DialogError::new(Some(why.into()));
        self.left = self.left.checked_sub(1).ok_or_else(|| failed("too many challenges"))?;
        let challenge = AttestAgentResponse { step: Some(Step::Challenge(challenge)) };
        self.out.send(Ok(challenge)).await.map_err(|_| failed("the node has left"))?;
        let answer = self.requests.message().await.map_err(|status| DialogError::new(Some(status.into())))?;
        match answer.and_then(|answer| answer.step) {
            Some(Asked::ChallengeResponse(response)) if response.len() <= EVIDENCE => Ok(response),
            Some(Asked::ChallengeResponse(_)) => Err(failed("the challenge response is too large")),
            Some(Asked::Params(_)) => Err(failed("expected a challenge response, got params")),
            None => Err(failed("the node ended the attestation")),
        }
    }
}

impl Dialog for GrpcDialog {
    fn challenge(
        &mut self,
        challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>> {
        Box::pin(self.ask(challenge))
    }
}
