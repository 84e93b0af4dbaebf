//! How is passant.sync.v1 answered?

mod outbox;
mod parts;
#[cfg(test)]
mod tests;
mod watch;
mod wired;

use std::sync::Arc;

use passant_core::Refusal;
use passant_proto::sync::batch_mint_x509svid_request::Item;
use passant_proto::sync::batch_mint_x509svid_response::Result as Outcome;
use passant_proto::sync::sync_server::Sync;
use passant_proto::sync::{
    BatchMintX509svidRequest, BatchMintX509svidResponse, Evidence, MintJwtsvidRequest, MintJwtsvidResponse,
    WatchRequest,
};
use passant_proto::{convert, status};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::authorize::Admitted;
use super::{Api, Room, bounded, misrouted, refuse, refuse_item};
use crate::caller::ConnPeer;
use crate::issue::{Plea, Wanted};
use crate::limits::SVID_BATCH;
use outbox::{Answers, outbox};
use watch::Watch;
pub(crate) use watch::{Ticks, With};
pub(crate) use wired::Wired;

#[async_trait]
impl Sync for Api {
    type WatchStream = Answers;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Answers>, Status> {
        let (_, call, requests) = request.into_parts();
        let Some(Admitted::Agent(agent)) = call.get() else { return Err(misrouted()) };
        let peer = call.get::<ConnPeer>().cloned().ok_or_else(misrouted)?;
        let (out, answers) = outbox();
        let watch = Watch::begin(Arc::clone(&self.watches), agent.id(), peer, requests, out)?;
        tokio::spawn(Box::new(watch).run());
        Ok(Response::new(answers))
    }

    async fn batch_mint_x509svid(
        &self,
        request: Request<BatchMintX509svidRequest>,
    ) -> Result<Response<BatchMintX509svidResponse>, Status> {
        let (_, call, BatchMintX509svidRequest { items }) = request.into_parts();
        let agent = self.agent(&call).await?;
        if items.is_empty() {
            return Err(Status::invalid_argument("missing items"));
        }
        bounded(items.len(), SVID_BATCH)?;
        let wanted = |item: Item| {
            Ok(Wanted { entry_id: item.entry_id, csr: item.csr, plea: plea(item.evidence.as_ref())? })
        };
        let outcomes = self.mint_all(&call, &agent, items.into_iter().map(wanted)).await?;
        let mut room = Room::of(outcomes.len());
        let results = outcomes.into_iter().map(|outcome| {
            let result = match outcome {
                Ok(issued) => Outcome {
                    status: Some(status::ok()),
                    svid: Some(convert::svid::x509_to_wire(issued.svid(), "")),
                },
                Err(refusal) => Outcome { status: Some(refuse_item(refusal)), svid: None },
            };
            if room.takes(&result) {
                return result;
            }
            let full = Refusal::exhausted("too much for one message; ask again with fewer at once");
            Outcome { status: Some(status::to_item(&full)), svid: None }
        });
        Ok(Response::new(BatchMintX509svidResponse { results: results.collect() }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        let agent = self.agent(request.extensions()).await?;
        let MintJwtsvidRequest { entry_id, audience, evidence } = request.into_inner();
        let plea = plea(evidence.as_ref()).map_err(refuse)?;
        let issued = self.issuer.jwt_pleaded(&agent, &entry_id, audience, &plea).await.map_err(refuse)?;
        Ok(Response::new(MintJwtsvidResponse { svid: Some(convert::svid::jwt_to_wire(issued.svid(), "")) }))
    }
}

/// On what grounds the agent asks.
fn plea(evidence: Option<&Evidence>) -> Result<Plea, Refusal> {
    let Some(evidence) = evidence else { return Ok(Plea::Prefetch) };
    let evidence = convert::evidence::from_wire(evidence).map_err(|e| e.during("invalid evidence"))?;
    Ok(Plea::Process(Arc::new(evidence)))
}
