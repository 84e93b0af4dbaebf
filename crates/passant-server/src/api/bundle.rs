//! How is spire.api.server.bundle.v1.Bundle answered?

use passant_core::{Refusal, TrustDomain};
use passant_proto::bundle::bundle_server::Bundle;
use passant_proto::bundle::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchCreateFederatedBundleResponse,
    BatchDeleteFederatedBundleRequest, BatchDeleteFederatedBundleResponse, BatchSetFederatedBundleRequest,
    BatchSetFederatedBundleResponse, BatchUpdateFederatedBundleRequest, BatchUpdateFederatedBundleResponse,
    CountBundlesRequest, CountBundlesResponse, GetBundleRequest, GetFederatedBundleRequest,
    ListFederatedBundlesRequest, ListFederatedBundlesResponse, PublishJwtAuthorityRequest,
    PublishJwtAuthorityResponse, PublishWitAuthorityRequest, PublishWitAuthorityResponse,
};
use passant_proto::convert::{self, mask};
use passant_proto::types;
use prost::Message;
use tonic::{Request, Response, Status, async_trait};

use super::authorize::Admitted;
use super::{Api, refuse};
use crate::limits::RESPONSE;
use crate::query::Paging;

#[async_trait]
impl Bundle for Api {
    async fn count_bundles(
        &self,
        _: Request<CountBundlesRequest>,
    ) -> Result<Response<CountBundlesResponse>, Status> {
        let count = i32::try_from(self.journal.state().bundles().count()).unwrap_or(i32::MAX);
        Ok(Response::new(CountBundlesResponse { count }))
    }

    /// The own bundle, for anybody. An agent that asks on its own connection is noted to have it.
    async fn get_bundle(
        &self,
        request: Request<GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let state = self.journal.state();
        let bundle = state.bundle().ok_or_else(|| Status::not_found("bundle not found"))?;
        if let Some(Admitted::Agent(agent)) = request.extensions().get() {
            self.authorities.reach().saw_bundle(agent.id(), bundle.sequence, self.host.now());
        }
        let mut wire = convert::bundle::to_wire(&bundle);
        mask::bundle(&mut wire, request.get_ref().output_mask.as_ref());
        Ok(Response::new(wire))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let request = request.get_ref();
        let trust_domain = TrustDomain::parse(&request.trust_domain).map_err(|error| {
            Status::invalid_argument(format!("trust domain argument is not valid: {error}"))
        })?;
        let state = self.journal.state();
        if trust_domain == *state.trust_domain() {
            return Err(Status::invalid_argument("this is the server's own trust domain: call GetBundle"));
        }
        let bundle = state.bundle_of(&trust_domain).ok_or_else(|| Status::not_found("bundle not found"))?;
        let mut wire = convert::bundle::to_wire(&bundle);
        mask::bundle(&mut wire, request.output_mask.as_ref());
        Ok(Response::new(wire))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<ListFederatedBundlesRequest>,
    ) -> Result<Response<ListFederatedBundlesResponse>, Status> {
        let request = request.get_ref();
        let paging = Paging::parse(request.page_size, &request.page_token).map_err(refuse)?;
        let state = self.journal.state();
        let found = state
            .bundles()
            .filter(|bundle| bundle.trust_domain != *state.trust_domain())
            .skip_while(|bundle| paging.after().is_some_and(|after| bundle.trust_domain.as_str() <= after))
            .map(|bundle| {
                let mut wire = convert::bundle::to_wire(bundle);
                mask::bundle(&mut wire, request.output_mask.as_ref());
                wire
            });
        let page = paging
            .fill(
                found,
                |bundle: &types::Bundle| bundle.trust_domain.as_str(),
                Message::encoded_len,
                RESPONSE,
            )
            .map_err(refuse)?;
        Ok(Response::new(ListFederatedBundlesResponse { bundles: page.items, next_page_token: page.next }))
    }

    async fn append_bundle(
        &self,
        _: Request<AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(not_yet())
    }

    async fn publish_jwt_authority(
        &self,
        _: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        Err(not_yet())
    }

    async fn publish_wit_authority(
        &self,
        _: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        Err(not_yet())
    }

    async fn batch_create_federated_bundle(
        &self,
        _: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        Err(not_yet())
    }

    async fn batch_update_federated_bundle(
        &self,
        _: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        Err(not_yet())
    }

    async fn batch_set_federated_bundle(
        &self,
        _: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        Err(not_yet())
    }

    async fn batch_delete_federated_bundle(
        &self,
        _: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        Err(not_yet())
    }
}

fn not_yet() -> Status {
    refuse(Refusal::unimplemented("this server does not change bundles by this method"))
}
