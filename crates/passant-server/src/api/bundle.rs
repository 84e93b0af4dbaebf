//! How is spire.api.server.bundle.v1.Bundle answered?

use std::sync::Arc;

use passant_core::bundle::{JwtAuthority, X509Authority};
use passant_core::{Bundle as CoreBundle, Refusal, TrustDomain};
use passant_proto::bundle::bundle_server::Bundle;
use passant_proto::bundle::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchCreateFederatedBundleResponse,
    BatchDeleteFederatedBundleRequest, BatchDeleteFederatedBundleResponse, BatchSetFederatedBundleRequest,
    BatchSetFederatedBundleResponse, BatchUpdateFederatedBundleRequest, BatchUpdateFederatedBundleResponse,
    CountBundlesRequest, CountBundlesResponse, GetBundleRequest, GetFederatedBundleRequest,
    ListFederatedBundlesRequest, ListFederatedBundlesResponse, PublishJwtAuthorityRequest,
    PublishJwtAuthorityResponse, PublishWitAuthorityRequest, PublishWitAuthorityResponse,
    batch_create_federated_bundle_response, batch_delete_federated_bundle_request::Mode,
    batch_delete_federated_bundle_response, batch_set_federated_bundle_response,
    batch_update_federated_bundle_response,
};
use passant_proto::convert::{self, mask};
use passant_proto::{status, types};
use prost::Message;
use tonic::{Request, Response, Status, async_trait};

use super::authorize::Admitted;
use super::entry::{merged, sorted_out};
use super::{Api, Room, bounded, by, refusals, refuse, refuse_item, to_the_end};
use crate::command;
use crate::command::bundle::{DeleteMode, Edit};
use crate::limits::{BATCH, RECORD_ITEMS, RESPONSE};
use crate::query::Paging;
use crate::record::{Act, By, Done};
use crate::restore::id_of_certificate;
use crate::state::{Change, State};

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
        Ok(Response::new(shown(&bundle, request.get_ref().output_mask.as_ref())))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let request = request.get_ref();
        let trust_domain = trust_domain(&request.trust_domain).map_err(refuse)?;
        let state = self.journal.state();
        if trust_domain == *state.trust_domain() {
            return Err(Status::invalid_argument("this is the server's own trust domain: call GetBundle"));
        }
        let bundle = state.bundle_of(&trust_domain).ok_or_else(|| Status::not_found("bundle not found"))?;
        Ok(Response::new(shown(&bundle, request.output_mask.as_ref())))
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
            .map(|bundle| shown(bundle, request.output_mask.as_ref()));
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
        request: Request<AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let (_, call, request) = request.into_parts();
        let AppendBundleRequest { x509_authorities, jwt_authorities, output_mask, wit_authorities: _ } =
            request;
        let operator = self.operator(&call)?;
        if x509_authorities.is_empty() && jwt_authorities.is_empty() {
            return Err(Status::invalid_argument("no authorities to append"));
        }
        let mut jwt = convert::bundle::jwt_authorities(&jwt_authorities)
            .map_err(|e| refuse(e.during("failed to convert JWT authority").into()))?;
        let mut x509 = convert::bundle::x509_authorities(&x509_authorities)
            .map_err(|e| refuse(e.during("failed to convert X.509 authority").into()))?;
        // Which of the own authorities are tainted is said where they are kept.
        x509.iter_mut().for_each(|authority| authority.tainted = false);
        jwt.iter_mut().for_each(|authority| authority.tainted = false);
        let (some_x509, some_jwt) = (x509.len(), jwt.len());
        let (api, by) = (self.clone(), by(&call, &operator));
        let bundle = to_the_end(async move {
            let bundle = api.append(x509, jwt, &by).await?;
            tracing::info!(caller = %operator, x509 = some_x509, jwt = some_jwt, "appended authorities to the bundle");
            Ok(bundle)
        })
        .await?;
        Ok(Response::new(shown(&bundle, output_mask.as_ref())))
    }

    /// The JWT authority of a server below goes into the own bundle: what it signs is of this trust domain.
    async fn publish_jwt_authority(
        &self,
        request: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let caller = self.downstream(&call)?;
        let wire = request.jwt_authority.ok_or_else(|| Status::invalid_argument("missing JWT authority"))?;
        let mut authority = convert::bundle::jwt_authority(&wire)
            .map_err(|e| refuse(e.during("invalid JWT authority").into()))?;
        authority.tainted = false;
        let key_id = authority.key_id.clone();
        let (api, by) = (self.clone(), by(&call, &caller));
        let bundle = to_the_end(async move {
            let bundle = api.append(Vec::new(), vec![authority], &by).await?;
            tracing::info!(%caller, %key_id, "published the JWT authority of a server below");
            Ok(bundle)
        })
        .await?;
        Ok(Response::new(PublishJwtAuthorityResponse {
            jwt_authorities: convert::bundle::to_wire(&bundle).jwt_authorities,
        }))
    }

    async fn publish_wit_authority(
        &self,
        _: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        Err(refuse(Refusal::unimplemented("the WIT-SVID profile is not served")))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchCreateFederatedBundleRequest { bundle, output_mask } = request;
        let actor = self.actor(&call)?;
        bounded(bundle.len(), BATCH)?;
        let (bundles, places) = sorted_out(bundle.iter().map(foreign));
        let created = if bundles.is_empty() {
            Vec::new()
        } else {
            let by = by(&call, &actor);
            let create = move |state: &_| Ok(command::bundle::create(state, bundles, &actor));
            self.set(create, by).await?
        };
        self.note_refused(&call, refusals(&created));
        let mut room = Room::of(places.len());
        let results = merged(places, created).map(|outcome| {
            let (status, bundle) = item(outcome, output_mask.as_ref());
            let mut result = batch_create_federated_bundle_response::Result { status, bundle };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.bundle);
            }
            result
        });
        Ok(Response::new(BatchCreateFederatedBundleResponse { results: results.collect() }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchUpdateFederatedBundleRequest { bundle, input_mask, output_mask } = request;
        let actor = self.actor(&call)?;
        bounded(bundle.len(), BATCH)?;
        let edit = |wire: &types::Bundle| {
            let given = foreign(wire)?;
            let trust_domain = given.trust_domain.clone();
            let edit =
                move |held: &CoreBundle| convert::bundle::apply_update(held, given, input_mask.as_ref());
            Ok((trust_domain, Box::new(edit) as Box<dyn Edit>))
        };
        let (edits, places) = sorted_out(bundle.iter().map(edit));
        let updated = if edits.is_empty() {
            Vec::new()
        } else {
            let by = by(&call, &actor);
            let update = move |state: &_| Ok(command::bundle::update(state, edits, &actor));
            self.set(update, by).await?
        };
        self.note_refused(&call, refusals(&updated));
        let mut room = Room::of(places.len());
        let results = merged(places, updated).map(|outcome| {
            let (status, bundle) = item(outcome, output_mask.as_ref());
            let mut result = batch_update_federated_bundle_response::Result { status, bundle };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.bundle);
            }
            result
        });
        Ok(Response::new(BatchUpdateFederatedBundleResponse { results: results.collect() }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchSetFederatedBundleRequest { bundle, output_mask } = request;
        let actor = self.actor(&call)?;
        bounded(bundle.len(), BATCH)?;
        let (bundles, places) = sorted_out(bundle.iter().map(foreign));
        let set = if bundles.is_empty() {
            Vec::new()
        } else {
            let by = by(&call, &actor);
            let set = move |state: &_| Ok(command::bundle::set(state, bundles, &actor));
            self.set(set, by).await?
        };
        self.note_refused(&call, refusals(&set));
        let mut room = Room::of(places.len());
        let results = merged(places, set).map(|outcome| {
            let (status, bundle) = item(outcome, output_mask.as_ref());
            let mut result = batch_set_federated_bundle_response::Result { status, bundle };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.bundle);
            }
            result
        });
        Ok(Response::new(BatchSetFederatedBundleResponse { results: results.collect() }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchDeleteFederatedBundleRequest { trust_domains: texts, mode } = request;
        let (api, actor) = (self.clone(), self.actor(&call)?);
        bounded(texts.len(), BATCH)?;
        let mode = match Mode::try_from(mode) {
            Ok(Mode::Restrict) => DeleteMode::Restrict,
            Ok(Mode::Delete) => DeleteMode::Delete,
            Ok(Mode::Dissociate) => DeleteMode::Dissociate,
            Err(_) => return Err(Status::invalid_argument(format!("unknown deletion mode {mode}"))),
        };
        if mode != DeleteMode::Restrict && !actor.is_operator() {
            let why = "this mode changes entries, too, and is for administrators: only RESTRICT is for roles";
            return Err(Status::permission_denied(why));
        }
        let (names, places) = sorted_out(texts.iter().map(|text| trust_domain(text)));
        let deleted = if names.is_empty() {
            Vec::new()
        } else {
            let (asked, by) = (names.clone(), by(&call, &actor));
            let before = self.journal.state();
            let delete = move |state: &_| Ok(command::bundle::delete(state, names, mode, &actor));
            to_the_end(async move {
                let deleted = api.journal.submit(delete).await?;
                let gone = asked.into_iter().zip(&deleted).filter(|(_, outcome)| outcome.is_ok());
                let gone: Vec<TrustDomain> = gone.map(|(name, _)| name).collect();
                let mut done = Vec::new();
                for entries in deleted.iter().flatten().flatten().collect::<Vec<_>>().chunks(RECORD_ITEMS) {
                    let act = Act::DeleteEntries(entries.iter().copied().cloned().collect());
                    // One that was made in this moment is missing among them.
                    let known = entries.iter().filter_map(|id| before.entry(id));
                    done.push(Done { act, subjects: known.map(|entry| entry.spiffe_id.clone()).collect() });
                }
                done.extend(Done::to_each(&gone, Act::DeleteBundles));
                api.note_all(done, &by).await;
                Ok(deleted)
            })
            .await?
        };
        self.note_refused(&call, refusals(&deleted));
        let results = merged(places, deleted).zip(texts).map(|(outcome, trust_domain)| {
            let status = outcome.map_or_else(refuse_item, |_| status::ok());
            batch_delete_federated_bundle_response::Result { status: Some(status), trust_domain }
        });
        Ok(Response::new(BatchDeleteFederatedBundleResponse { results: results.collect() }))
    }
}

impl Api {
    /// Puts authorities into the own bundle, and on record which.
    async fn append(
        &self,
        x509: Vec<X509Authority>,
        jwt: Vec<JwtAuthority>,
        by: &By,
    ) -> Result<Arc<CoreBundle>, Refusal> {
        let act = Act::AppendAuthorities {
            x509: x509.iter().filter_map(|authority| id_of_certificate(&authority.der)).collect(),
            jwt: jwt.iter().map(|authority| authority.key_id.clone()).collect(),
        };
        let append = move |state: &_| command::bundle::append(state, x509, jwt);
        let bundle = self.journal.submit(append).await?;
        self.note(act, by).await;
        Ok(bundle)
    }

    /// Has foreign bundles set, and puts on record which.
    async fn set(
        &self,
        change: impl FnOnce(&State) -> Result<(Vec<Change>, Vec<Result<Arc<CoreBundle>, Refusal>>), Refusal>
        + Send
        + 'static,
        by: By,
    ) -> Result<Vec<Result<Arc<CoreBundle>, Refusal>>, Status> {
        let api = self.clone();
        to_the_end(async move {
            let done = api.journal.submit(change).await?;
            let set = done.iter().flatten().map(|bundle| bundle.trust_domain.clone()).collect();
            api.note_bundles(set, &by).await;
            Ok(done)
        })
        .await
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, Refusal> {
    TrustDomain::parse(text)
        .map_err(|error| Refusal::invalid(format!("trust domain argument is not valid: {error}")))
}

fn foreign(wire: &types::Bundle) -> Result<CoreBundle, Refusal> {
    trust_domain(&wire.trust_domain)?;
    convert::bundle::foreign_from_wire(wire).map_err(|e| e.during("failed to convert bundle").into())
}

/// The bundle as the caller wants to see it.
fn shown(bundle: &CoreBundle, output: Option<&types::BundleMask>) -> types::Bundle {
    let mut wire = convert::bundle::to_wire(bundle);
    mask::bundle(&mut wire, output);
    wire
}

fn item(
    outcome: Result<Arc<CoreBundle>, Refusal>,
    output: Option<&types::BundleMask>,
) -> (Option<types::Status>, Option<types::Bundle>) {
    match outcome {
        Ok(bundle) => (Some(status::ok()), Some(shown(&bundle, output))),
        Err(refusal) => (Some(refuse_item(refusal)), None),
    }
}

/// The shortest answer that still says what was done: of the bundle only its trust domain, of the status only its code.
fn shorten(status: &mut Option<types::Status>, bundle: &mut Option<types::Bundle>) {
    if let Some(status) = status {
        status.message.clear();
    }
    if let Some(bundle) = bundle {
        *bundle = types::Bundle {
            trust_domain: std::mem::take(&mut bundle.trust_domain),
            ..types::Bundle::default()
        };
    }
}
