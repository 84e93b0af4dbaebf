//! What would a SPIRE server answer? One that holds what a test put into it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_proto::agent::agent_server::{Agent, AgentServer};
use passant_proto::bundle::bundle_server::{Bundle, BundleServer};
use passant_proto::entry::entry_server::{Entry, EntryServer};
use passant_proto::trustdomain::trust_domain_server::{TrustDomain, TrustDomainServer};
use passant_proto::{agent, bundle, entry, trustdomain, types};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// What the server holds, and what was asked of it.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) bundle: types::Bundle,
    pub(crate) entries: Vec<types::Entry>,
    pub(crate) agents: Vec<types::Agent>,
    pub(crate) bundles: Vec<types::Bundle>,
    pub(crate) relationships: Vec<types::FederationRelationship>,
    /// Every call is refused.
    pub(crate) denies: bool,
    /// How many calls wrote something.
    pub(crate) writes: usize,
}

/// The server; clones share.
#[derive(Clone, Default)]
pub(crate) struct FakeSpire(Arc<Mutex<World>>);

impl FakeSpire {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves at `socket` until the task is aborted.
    pub(crate) fn serve(
        &self,
        socket: &Path,
    ) -> std::io::Result<JoinHandle<Result<(), tonic::transport::Error>>> {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket)?);
        let router = tonic::transport::Server::builder()
            .add_service(AgentServer::new(self.clone()))
            .add_service(BundleServer::new(self.clone()))
            .add_service(EntryServer::new(self.clone()))
            .add_service(TrustDomainServer::new(self.clone()));
        Ok(tokio::spawn(router.serve_with_incoming(incoming)))
    }

    fn asked(&self) -> Result<MutexGuard<'_, World>, Status> {
        let world = self.world();
        if world.denies {
            Err(Status::permission_denied("authorization denied for method"))
        } else {
            Ok(world)
        }
    }
}

/// One page: tokens are the number of items before it, as SPIRE's are numbers too.
fn page<T: Clone>(all: &[T], size: i32, token: &str) -> Result<(Vec<T>, String), Status> {
    let from = if token.is_empty() { Ok(0) } else { token.parse::<usize>() };
    let from = from.map_err(|_| Status::invalid_argument("could not parse token"))?;
    let size = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(all.len());
    let to = all.len().min(from.saturating_add(size));
    let next = if to < all.len() { to.to_string() } else { String::new() };
    Ok((all.get(from..to).unwrap_or_default().to_vec(), next))
}

/// A service of which the fake has only some methods.
macro_rules! serves {
    ($service:ident { $($have:tt)* } lacks { $($name:ident($asked:ty) -> $answer:ty;)* }) => {
        #[tonic::async_trait]
        impl $service for FakeSpire {
            $($have)*
            $(async fn $name(&self, _: Request<$asked>) -> Result<Response<$answer>, Status> {
                Err(Status::unimplemented("the import does not ask for this"))
            })*
        }
    };
}

serves!(Bundle {
    async fn get_bundle(
        &self,
        _: Request<bundle::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Ok(Response::new(self.asked()?.bundle.clone()))
    }

    async fn append_bundle(
        &self,
        request: Request<bundle::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let mut world = self.asked()?;
        let request = request.into_inner();
        world.writes += 1;
        world.bundle.x509_authorities.extend(request.x509_authorities);
        world.bundle.jwt_authorities.extend(request.jwt_authorities);
        Ok(Response::new(world.bundle.clone()))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<bundle::ListFederatedBundlesRequest>,
    ) -> Result<Response<bundle::ListFederatedBundlesResponse>, Status> {
        let world = self.asked()?;
        let request = request.get_ref();
        let (bundles, next_page_token) = page(&world.bundles, request.page_size, &request.page_token)?;
        Ok(Response::new(bundle::ListFederatedBundlesResponse { bundles, next_page_token }))
    }
} lacks {
    count_bundles(bundle::CountBundlesRequest) -> bundle::CountBundlesResponse;
    publish_jwt_authority(bundle::PublishJwtAuthorityRequest) -> bundle::PublishJwtAuthorityResponse;
    publish_wit_authority(bundle::PublishWitAuthorityRequest) -> bundle::PublishWitAuthorityResponse;
    get_federated_bundle(bundle::GetFederatedBundleRequest) -> types::Bundle;
    batch_create_federated_bundle(bundle::BatchCreateFederatedBundleRequest) -> bundle::BatchCreateFederatedBundleResponse;
    batch_update_federated_bundle(bundle::BatchUpdateFederatedBundleRequest) -> bundle::BatchUpdateFederatedBundleResponse;
    batch_set_federated_bundle(bundle::BatchSetFederatedBundleRequest) -> bundle::BatchSetFederatedBundleResponse;
    batch_delete_federated_bundle(bundle::BatchDeleteFederatedBundleRequest) -> bundle::BatchDeleteFederatedBundleResponse;
});

serves!(Entry {
    async fn list_entries(
        &self,
        request: Request<entry::ListEntriesRequest>,
    ) -> Result<Response<entry::ListEntriesResponse>, Status> {
        let world = self.asked()?;
        let request = request.get_ref();
        let (entries, next_page_token) = page(&world.entries, request.page_size, &request.page_token)?;
        Ok(Response::new(entry::ListEntriesResponse { entries, next_page_token }))
    }

    type SyncAuthorizedEntriesStream = tokio_stream::Empty<Result<entry::SyncAuthorizedEntriesResponse, Status>>;

    async fn sync_authorized_entries(
        &self,
        _: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        Err(Status::unimplemented("the import does not ask for this"))
    }
} lacks {
    count_entries(entry::CountEntriesRequest) -> entry::CountEntriesResponse;
    get_entry(entry::GetEntryRequest) -> types::Entry;
    batch_create_entry(entry::BatchCreateEntryRequest) -> entry::BatchCreateEntryResponse;
    batch_update_entry(entry::BatchUpdateEntryRequest) -> entry::BatchUpdateEntryResponse;
    batch_delete_entry(entry::BatchDeleteEntryRequest) -> entry::BatchDeleteEntryResponse;
    get_authorized_entries(entry::GetAuthorizedEntriesRequest) -> entry::GetAuthorizedEntriesResponse;
});

serves!(Agent {
    async fn list_agents(
        &self,
        request: Request<agent::ListAgentsRequest>,
    ) -> Result<Response<agent::ListAgentsResponse>, Status> {
        let world = self.asked()?;
        let request = request.get_ref();
        let (agents, next_page_token) = page(&world.agents, request.page_size, &request.page_token)?;
        Ok(Response::new(agent::ListAgentsResponse { agents, next_page_token }))
    }

    type AttestAgentStream = tokio_stream::Empty<Result<agent::AttestAgentResponse, Status>>;

    async fn attest_agent(
        &self,
        _: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        Err(Status::unimplemented("the import does not ask for this"))
    }
} lacks {
    count_agents(agent::CountAgentsRequest) -> agent::CountAgentsResponse;
    get_agent(agent::GetAgentRequest) -> types::Agent;
    delete_agent(agent::DeleteAgentRequest) -> ();
    ban_agent(agent::BanAgentRequest) -> ();
    renew_agent(agent::RenewAgentRequest) -> agent::RenewAgentResponse;
    create_join_token(agent::CreateJoinTokenRequest) -> types::JoinToken;
    post_status(agent::PostStatusRequest) -> agent::PostStatusResponse;
});

serves!(TrustDomain {
    async fn list_federation_relationships(
        &self,
        request: Request<trustdomain::ListFederationRelationshipsRequest>,
    ) -> Result<Response<trustdomain::ListFederationRelationshipsResponse>, Status> {
        let world = self.asked()?;
        let request = request.get_ref();
        let (federation_relationships, next_page_token) =
            page(&world.relationships, request.page_size, &request.page_token)?;
        Ok(Response::new(trustdomain::ListFederationRelationshipsResponse { federation_relationships, next_page_token }))
    }
} lacks {
    get_federation_relationship(trustdomain::GetFederationRelationshipRequest) -> types::FederationRelationship;
    batch_create_federation_relationship(trustdomain::BatchCreateFederationRelationshipRequest) -> trustdomain::BatchCreateFederationRelationshipResponse;
    batch_update_federation_relationship(trustdomain::BatchUpdateFederationRelationshipRequest) -> trustdomain::BatchUpdateFederationRelationshipResponse;
    batch_delete_federation_relationship(trustdomain::BatchDeleteFederationRelationshipRequest) -> trustdomain::BatchDeleteFederationRelationshipResponse;
    refresh_bundle(trustdomain::RefreshBundleRequest) -> ();
});
