//! How is spire.api.server.svid.v1.SVID answered?

use std::time::Duration;

use passant_core::Refusal;
use passant_proto::convert;
use passant_proto::status;
use passant_proto::svid::svid_server::Svid;
use passant_proto::svid::{
    BatchNewWitsvidRequest, BatchNewWitsvidResponse, BatchNewX509svidRequest, BatchNewX509svidResponse,
    MintJwtsvidRequest, MintJwtsvidResponse, MintWitsvidRequest, MintWitsvidResponse, MintX509svidRequest,
    MintX509svidResponse, NewDownstreamX509caRequest, NewDownstreamX509caResponse, NewJwtsvidRequest,
    NewJwtsvidResponse, NewX509svidParams, batch_new_x509svid_response,
};
use tonic::{Extensions, Request, Response, Status, async_trait};

use super::entry::{merged, sorted_out};
use super::{Api, Room, bounded, refusals, refuse, refuse_item};
use crate::caller::AgentCaller;
use crate::issue::{IssuedX509, Plea, Wanted};
use crate::limits::SVID_BATCH;
use crate::quota::{Caller, Until, Work};

#[async_trait]
impl Svid for Api {
    async fn mint_x509svid(
        &self,
        request: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let MintX509svidRequest { csr, ttl } = request.into_inner();
        if csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }
        let issued = self.issuer.mint_x509(&actor, &csr, lifetime(ttl)?).await.map_err(refuse)?;
        Ok(Response::new(MintX509svidResponse { svid: Some(convert::svid::x509_to_wire(issued.svid(), "")) }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let MintJwtsvidRequest { id, audience, ttl } = request.into_inner();
        let id = convert::id::workload_from_wire(self.journal.state().trust_domain(), id.as_ref())
            .map_err(|malformed| refuse(malformed.during("invalid SPIFFE ID").into()))?;
        let issued = self.issuer.mint_jwt(&actor, id, audience, lifetime(ttl)?).await.map_err(refuse)?;
        Ok(Response::new(MintJwtsvidResponse { svid: Some(convert::svid::jwt_to_wire(issued.svid(), "")) }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        let (_, call, BatchNewX509svidRequest { params }) = request.into_parts();
        let agent = self.agent(&call).await?;
        if params.is_empty() {
            return Err(Status::invalid_argument("missing parameters"));
        }
        bounded(params.len(), SVID_BATCH)?;
        let wanted = |param: NewX509svidParams| {
            Ok(Wanted { entry_id: param.entry_id, csr: param.csr, plea: Plea::Untold })
        };
        let outcomes = self.mint_all(&call, &agent, params.into_iter().map(wanted)).await?;
        let mut room = Room::of(outcomes.len());
        let results = outcomes.into_iter().map(|outcome| {
            let result = match outcome {
                Ok(issued) => batch_new_x509svid_response::Result {
                    status: Some(status::ok()),
                    svid: Some(convert::svid::x509_to_wire(issued.svid(), "")),
                },
                Err(refusal) => {
                    batch_new_x509svid_response::Result { status: Some(refuse_item(refusal)), svid: None }
                }
            };
            if room.takes(&result) {
                return result;
            }
            let full = Refusal::exhausted("too much for one message; ask again with fewer at once");
            batch_new_x509svid_response::Result { status: Some(status::to_item(&full)), svid: None }
        });
        Ok(Response::new(BatchNewX509svidResponse { results: results.collect() }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        let agent = self.agent(request.extensions()).await?;
        let NewJwtsvidRequest { entry_id, audience } = request.into_inner();
        let issued = self.issuer.jwt(&agent, &entry_id, audience).await.map_err(refuse)?;
        Ok(Response::new(NewJwtsvidResponse { svid: Some(convert::svid::jwt_to_wire(issued.svid(), "")) }))
    }

    async fn mint_witsvid(
        &self,
        _: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        Err(not_offered("WIT-SVIDs"))
    }

    async fn batch_new_witsvid(
        &self,
        _: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        Err(not_offered("WIT-SVIDs"))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        let caller = self.downstream(request.extensions())?;
        let NewDownstreamX509caRequest { csr, preferred_ttl } = request.into_inner();
        let issued = self.issuer.downstream(&caller, &csr, lifetime(preferred_ttl)?).await.map_err(refuse)?;
        tracing::info!(%caller, "signed the X.509 authority of a server below");
        let roots = &issued.roots().x509_authorities;
        Ok(Response::new(NewDownstreamX509caResponse {
            ca_cert_chain: issued.chain().iter().map(|certificate| certificate.to_vec()).collect(),
            x509_authorities: roots.iter().map(|authority| authority.der.clone()).collect(),
        }))
    }
}

impl Api {
    /// Issues what an agent asks for in one batch, once it may; what was refused goes on record.
    pub(super) async fn mint_all(
        &self,
        call: &Extensions,
        agent: &AgentCaller,
        wanted: impl ExactSizeIterator<Item = Result<Wanted, Refusal>>,
    ) -> Result<Vec<Result<IssuedX509, Refusal>>, Status> {
        let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        let until = call.get::<Until>().copied().unwrap_or_else(|| self.quotas.until());
        let caller = Caller::Svid(agent.id().clone());
        self.quotas.count(Work::X509, &caller, count, until).await.map_err(refuse)?.keep();
        let (sound, places) = sorted_out(wanted);
        let issued = self.issuer.x509_pleaded(agent, sound).await;
        let outcomes: Vec<_> = merged(places, issued).collect();
        self.note_refused(call, refusals(&outcomes));
        Ok(outcomes)
    }
}

/// Seconds; zero leaves it to the server.
fn lifetime(seconds: i32) -> Result<Option<Duration>, Status> {
    let seconds = u64::try_from(seconds).map_err(|_| Status::invalid_argument("ttl is negative"))?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn not_offered(what: &str) -> Status {
    refuse(Refusal::unimplemented(format!("this server does not issue {what}")))
}
