//! How is spire.api.server.trustdomain.v1.TrustDomain answered?

use passant_core::{FederationRelationship, Reason, Refusal, TrustDomain};
use passant_proto::convert::{self, mask};
use passant_proto::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchCreateFederationRelationshipResponse,
    BatchDeleteFederationRelationshipRequest, BatchDeleteFederationRelationshipResponse,
    BatchUpdateFederationRelationshipRequest, BatchUpdateFederationRelationshipResponse,
    GetFederationRelationshipRequest, ListFederationRelationshipsRequest,
    ListFederationRelationshipsResponse, RefreshBundleRequest, batch_create_federation_relationship_response,
    batch_delete_federation_relationship_response, batch_update_federation_relationship_response,
    trust_domain_server,
};
use passant_proto::{status, types};
use prost::Message;
use tonic::{Request, Response, Status, async_trait};

use super::entry::{merged, sorted_out};
use super::{Api, Room, bounded, by, refusals, refuse, refuse_item, to_the_end};
use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::command;
use crate::command::federation::{Edit, Standing};
use crate::limits::{BATCH, RESPONSE};
use crate::query::Paging;
use crate::record::{Act, By, Done, Federated};
use crate::state::{Change, State};

#[async_trait]
impl trust_domain_server::TrustDomain for Api {
    async fn list_federation_relationships(
        &self,
        request: Request<ListFederationRelationshipsRequest>,
    ) -> Result<Response<ListFederationRelationshipsResponse>, Status> {
        let request = request.get_ref();
        let paging = Paging::parse(request.page_size, &request.page_token).map_err(refuse)?;
        let state = self.journal.state();
        let found = state
            .relationships()
            .skip_while(|one| paging.after().is_some_and(|after| one.trust_domain.as_str() <= after))
            .map(|one| shown(&state, one, request.output_mask.as_ref()));
        let page = paging
            .fill(
                found,
                |one: &types::FederationRelationship| one.trust_domain.as_str(),
                Message::encoded_len,
                RESPONSE,
            )
            .map_err(refuse)?;
        Ok(Response::new(ListFederationRelationshipsResponse {
            federation_relationships: page.items,
            next_page_token: page.next,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let request = request.get_ref();
        let trust_domain = trust_domain(&request.trust_domain).map_err(refuse)?;
        let state = self.journal.state();
        let relationship = state
            .relationship(&trust_domain)
            .ok_or_else(|| Status::not_found("federation relationship does not exist"))?;
        Ok(Response::new(shown(&state, relationship, request.output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<BatchCreateFederationRelationshipResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchCreateFederationRelationshipRequest { federation_relationships, output_mask } = request;
        let actor = self.actor(&call)?;
        bounded(federation_relationships.len(), BATCH)?;
        let (given, places) = sorted_out(federation_relationships.iter().map(|wire| {
            let given = convert::federation::from_wire(wire);
            given.map_err(|e| e.during("failed to convert federation relationship").into())
        }));
        let created = if given.is_empty() {
            Vec::new()
        } else {
            let (noted, by) = (by(&call, &actor), actor.clone());
            let create = move |state: &_| Ok(command::federation::create(state, given, &by));
            self.stood(create, Act::CreateFederation, noted).await?
        };
        self.note_refused(&call, refusals(&created));
        let mut room = Room::of(places.len());
        let results = merged(places, created).map(|outcome| {
            let (status, federation_relationship) = item(outcome, output_mask.as_ref(), "created", &actor);
            let mut result =
                batch_create_federation_relationship_response::Result { status, federation_relationship };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.federation_relationship);
            }
            result
        });
        Ok(Response::new(BatchCreateFederationRelationshipResponse { results: results.collect() }))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<BatchUpdateFederationRelationshipResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchUpdateFederationRelationshipRequest { federation_relationships, input_mask, output_mask } =
            request;
        let actor = self.actor(&call)?;
        bounded(federation_relationships.len(), BATCH)?;
        let (edits, places) =
            sorted_out(federation_relationships.into_iter().map(|wire| edit(wire, input_mask)));
        let updated = if edits.is_empty() {
            Vec::new()
        } else {
            let (noted, by) = (by(&call, &actor), actor.clone());
            let update = move |state: &_| Ok(command::federation::update(state, edits, &by));
            self.stood(update, Act::UpdateFederation, noted).await?
        };
        self.note_refused(&call, refusals(&updated));
        let mut room = Room::of(places.len());
        let results = merged(places, updated).map(|outcome| {
            let (status, federation_relationship) = item(outcome, output_mask.as_ref(), "updated", &actor);
            let mut result =
                batch_update_federation_relationship_response::Result { status, federation_relationship };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.federation_relationship);
            }
            result
        });
        Ok(Response::new(BatchUpdateFederationRelationshipResponse { results: results.collect() }))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<BatchDeleteFederationRelationshipResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let texts = request.trust_domains;
        let (api, actor) = (self.clone(), self.actor(&call)?);
        bounded(texts.len(), BATCH)?;
        let (names, places) = sorted_out(texts.iter().map(|text| match text.as_str() {
            "" => Err(Refusal::invalid("missing trust domain")),
            text => trust_domain(text),
        }));
        let ended = if names.is_empty() {
            Vec::new()
        } else {
            let (asked, noted, by) = (names.clone(), by(&call, &actor), actor.clone());
            let end = move |state: &_| Ok(command::federation::end(state, names, &by));
            to_the_end(async move {
                let ended = api.journal.submit(end).await?;
                let gone = asked.into_iter().zip(&ended).filter(|(_, outcome)| outcome.is_ok());
                let gone: Vec<TrustDomain> = gone.map(|(name, _)| name).collect();
                if !gone.is_empty() {
                    tracing::info!(caller = %actor, trust_domains = ?gone, "ended federation");
                    api.note_all(Done::to_each(&gone, Act::EndFederation), &noted).await;
                }
                Ok(ended)
            })
            .await?
        };
        self.note_refused(&call, refusals(&ended));
        let results = merged(places, ended).zip(texts).map(|(outcome, trust_domain)| {
            let status = outcome.map_or_else(refuse_item, |()| status::ok());
            batch_delete_federation_relationship_response::Result { status: Some(status), trust_domain }
        });
        Ok(Response::new(BatchDeleteFederationRelationshipResponse { results: results.collect() }))
    }

    async fn refresh_bundle(&self, request: Request<RefreshBundleRequest>) -> Result<Response<()>, Status> {
        let (_, call, request) = request.into_parts();
        let actor = self.actor(&call)?;
        let trust_domain = trust_domain(&request.trust_domain).map_err(refuse)?;
        actor
            .may(Verb::FederationWrite, &Target::TrustDomain(&trust_domain), &self.journal.state())
            .map_err(refuse)?;
        let (api, by) = (self.clone(), by(&call, &actor));
        let refresh = async move {
            api.federation.refresh(trust_domain.clone()).await?;
            api.note(Act::RefreshBundle(trust_domain), &by).await;
            Ok(())
        };
        let refreshed = tokio::spawn(refresh).await.unwrap_or_else(|lost| Err(Refusal::internal(lost)));
        let refreshed = refreshed.map_err(|refusal| {
            // Whoever may say where to fetch from would see by the details what answers there, in a network that is not theirs.
            if refusal.reason == Reason::Internal && !actor.is_operator() {
                return Refusal::new(Reason::Internal, "failed to refresh bundle: the server's log says why");
            }
            refusal
        });
        refreshed.map_err(refuse)?;
        Ok(Response::new(()))
    }
}

impl Api {
    /// Has relationships changed, and puts on record which, and which bundles were set with them.
    async fn stood(
        &self,
        change: impl FnOnce(&State) -> Result<(Vec<Change>, Vec<Result<Standing, Refusal>>), Refusal>
        + Send
        + 'static,
        act: fn(Vec<Federated>) -> Act,
        by: By,
    ) -> Result<Vec<Result<Standing, Refusal>>, Status> {
        let api = self.clone();
        to_the_end(async move {
            let done = api.journal.submit(change).await?;
            let stand: Vec<_> = done.iter().flatten().map(named).collect();
            api.note_all(Done::to_each(&stand, act), &by).await;
            let with_bundle = done.iter().flatten().filter(|standing| standing.sets_bundle);
            let set = with_bundle.map(|standing| standing.relationship.trust_domain.clone()).collect();
            api.note_bundles(set, &by).await;
            Ok(done)
        })
        .await
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, Refusal> {
    convert::federation::trust_domain(text).map_err(Refusal::from)
}

fn edit(
    wire: types::FederationRelationship,
    input: Option<types::FederationRelationshipMask>,
) -> Result<(TrustDomain, Box<dyn Edit>), Refusal> {
    let trust_domain = trust_domain(&wire.trust_domain)?;
    let edit = move |held: &FederationRelationship| {
        convert::federation::apply_update(held, &wire, input.as_ref())
            .map_err(|malformed| malformed.during("failed to convert federation relationship").into())
    };
    Ok((trust_domain, Box::new(edit)))
}

/// The relationship as the record shows it.
fn named(standing: &Standing) -> Federated {
    let FederationRelationship { trust_domain, url, profile, .. } = &*standing.relationship;
    Federated { trust_domain: trust_domain.clone(), url: url.to_string(), profile: profile.name().to_owned() }
}

/// The relationship as the caller wants to see it.
fn shown(
    state: &State,
    relationship: &FederationRelationship,
    output: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    let bundle = state.bundle_of(&relationship.trust_domain);
    let mut wire = convert::federation::to_wire(relationship, bundle.as_deref());
    mask::relationship(&mut wire, output);
    wire
}

fn item(
    outcome: Result<Standing, Refusal>,
    output: Option<&types::FederationRelationshipMask>,
    done: &'static str,
    caller: &Actor,
) -> (Option<types::Status>, Option<types::FederationRelationship>) {
    match outcome {
        Ok(Standing { relationship, bundle, .. }) => {
            tracing::info!(
                %caller,
                trust_domain = %relationship.trust_domain,
                url = %relationship.url,
                profile = relationship.profile.name(),
                "{done} a federation relationship"
            );
            let mut wire = convert::federation::to_wire(&relationship, bundle.as_deref());
            mask::relationship(&mut wire, output);
            (Some(status::ok()), Some(wire))
        }
        Err(refusal) => (Some(refuse_item(refusal)), None),
    }
}

/// The shortest answer that still says what was done: of the relationship only its trust domain, of the status only its code.
fn shorten(status: &mut Option<types::Status>, relationship: &mut Option<types::FederationRelationship>) {
    if let Some(status) = status {
        status.message.clear();
    }
    if let Some(relationship) = relationship {
        *relationship = types::FederationRelationship {
            trust_domain: std::mem::take(&mut relationship.trust_domain),
            ..types::FederationRelationship::default()
        };
    }
}
