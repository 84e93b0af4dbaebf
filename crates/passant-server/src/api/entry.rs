//! How is spire.api.server.entry.v1.Entry answered?

mod sync;

use std::pin::Pin;
use std::sync::Arc;

use passant_core::{Entry, EntryDraft, EntryId, Refusal, SpiffeId};
use passant_proto::convert::filter::EntryFilter;
use passant_proto::convert::{self, mask};
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchDeleteEntryRequest, BatchDeleteEntryResponse,
    BatchUpdateEntryRequest, BatchUpdateEntryResponse, CountEntriesRequest, CountEntriesResponse,
    GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse, GetEntryRequest, ListEntriesRequest,
    ListEntriesResponse, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
    batch_create_entry_response, batch_delete_entry_response, batch_update_entry_response, entry_server,
};
use passant_proto::{status, types};
use prost::Message;
use tokio_stream::Stream;
use tonic::{Extensions, Request, Response, Status, Streaming, async_trait};

use super::{Api, Room, bounded, by, refusals, refuse, refuse_item, to_the_end};
use crate::caller::Actor;
use crate::command;
use crate::command::entry::{Created, Edit};
use crate::limits::{BATCH, RESPONSE};
use crate::query::{self, Paging};
use crate::record::{Act, Done};

#[async_trait]
impl entry_server::Entry for Api {
    async fn count_entries(
        &self,
        request: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let state = self.journal.state();
        let filter = EntryFilter::from_count(state.trust_domain(), request.get_ref().filter.as_ref())
            .map_err(|malformed| refuse(malformed.into()))?;
        let seen = query::entries(&state, &filter, None).filter(|entry| actor.sees(entry));
        let count = i32::try_from(seen.count()).unwrap_or(i32::MAX);
        Ok(Response::new(CountEntriesResponse { count }))
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let request = request.get_ref();
        let state = self.journal.state();
        let filter = EntryFilter::from_list(state.trust_domain(), request.filter.as_ref())
            .map_err(|malformed| refuse(malformed.into()))?;
        let paging = Paging::parse(request.page_size, &request.page_token).map_err(refuse)?;
        let after = paging.after_entry().map_err(refuse)?;
        let found = query::entries(&state, &filter, after.as_ref())
            .filter(|entry| actor.sees(entry))
            .map(|entry| shown(entry, request.output_mask.as_ref()));
        let page = paging
            .fill(found, |entry: &types::Entry| entry.id.as_str(), Message::encoded_len, RESPONSE)
            .map_err(refuse)?;
        Ok(Response::new(ListEntriesResponse { entries: page.items, next_page_token: page.next }))
    }

    async fn get_entry(&self, request: Request<GetEntryRequest>) -> Result<Response<types::Entry>, Status> {
        let actor = self.actor(request.extensions())?;
        let request = request.get_ref();
        if request.id.is_empty() {
            return Err(Status::invalid_argument("missing ID"));
        }
        let state = self.journal.state();
        // What can be no ID names no entry.
        let entry = EntryId::parse(&request.id).ok().and_then(|id| state.entry(&id).map(Arc::clone));
        let entry = command::entry::seen(entry, &actor).map_err(refuse)?;
        Ok(Response::new(shown(&entry, request.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchCreateEntryRequest { entries, output_mask } = request;
        let actor = self.actor(&call)?;
        bounded(entries.len(), BATCH)?;
        let (drafts, places) = sorted_out(entries.iter().map(|entry| self.draft(entry)));
        let created = self.created(&call, actor, drafts).await?;
        let mut room = Room::of(entries.len());
        let results = merged(places, created).map(|outcome| {
            let mut result = match outcome {
                Ok(created) => batch_create_entry_response::Result {
                    status: Some(if created.existed { twin() } else { status::ok() }),
                    entry: Some(shown(&created.entry, output_mask.as_ref())),
                },
                Err(refusal) => {
                    batch_create_entry_response::Result { status: Some(refuse_item(refusal)), entry: None }
                }
            };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.entry);
            }
            result
        });
        Ok(Response::new(BatchCreateEntryResponse { results: results.collect() }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchUpdateEntryRequest { entries, input_mask, output_mask } = request;
        let actor = self.actor(&call)?;
        bounded(entries.len(), BATCH)?;
        let (edits, places) = sorted_out(entries.into_iter().map(|entry| edit(entry, input_mask)));
        let updated = self.updated(&call, actor, edits).await?;
        let mut room = Room::of(places.len());
        let results = merged(places, updated).map(|outcome| {
            let mut result = match outcome {
                Ok(entry) => batch_update_entry_response::Result {
                    status: Some(status::ok()),
                    entry: Some(shown(&entry, output_mask.as_ref())),
                },
                Err(refusal) => {
                    batch_update_entry_response::Result { status: Some(refuse_item(refusal)), entry: None }
                }
            };
            if !room.takes(&result) {
                shorten(&mut result.status, &mut result.entry);
            }
            result
        });
        Ok(Response::new(BatchUpdateEntryResponse { results: results.collect() }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let texts = request.ids;
        let actor = self.actor(&call)?;
        bounded(texts.len(), BATCH)?;
        let (ids, places) = sorted_out(texts.iter().map(|text| named_by(text)));
        let deleted = if ids.is_empty() {
            Vec::new()
        } else {
            let (api, asked, by) = (self.clone(), ids.clone(), by(&call, &actor));
            let delete = move |state: &_| Ok(command::entry::delete(state, ids, &actor));
            to_the_end(async move {
                let deleted = api.journal.submit_decided(delete).await?;
                let gone = asked.into_iter().zip(&deleted);
                let gone: Vec<_> =
                    gone.filter_map(|(id, outcome)| Some((id, outcome.as_ref().ok()?.clone()))).collect();
                api.note_all(Done::to_entries(&gone, Act::DeleteEntries), &by).await;
                Ok(deleted)
            })
            .await?
        };
        self.note_refused(&call, refusals(&deleted));
        let results = merged(places, deleted).zip(texts).map(|(outcome, id)| {
            let status = outcome.map_or_else(refuse_item, |_| status::ok());
            batch_delete_entry_response::Result { status: Some(status), id }
        });
        Ok(Response::new(BatchDeleteEntryResponse { results: results.collect() }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        let agent = self.agent(request.extensions()).await?;
        self.watches.hub.polls(agent.id());
        let mask = request.get_ref().output_mask;
        let (authorized, revision) = self.polled_entries(agent.id());
        let entries: Vec<types::Entry> = authorized.iter().map(|entry| shown(entry, mask.as_ref())).collect();
        let response = GetAuthorizedEntriesResponse { entries };
        if response.encoded_len() > RESPONSE {
            let remedy = "the entries of this agent are too much for one message; call SyncAuthorizedEntries";
            return Err(Status::resource_exhausted(remedy));
        }
        self.watches.hub.answered(agent.id(), revision);
        Ok(Response::new(response))
    }

    type SyncAuthorizedEntriesStream =
        Pin<Box<dyn Stream<Item = Result<SyncAuthorizedEntriesResponse, Status>> + Send>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        sync::answer(self.clone(), request)
    }
}

impl Api {
    fn draft(&self, wire: &types::Entry) -> Result<(EntryDraft, EntryId), Refusal> {
        let draft = convert::entry::draft_from_wire(wire).map_err(|e| e.during("failed to convert entry"))?;
        Ok((draft, self.fresh_entry_id()))
    }

    /// By time, so that the store writes what is registered together to few places.
    pub(super) fn fresh_entry_id(&self) -> EntryId {
        EntryId::parse(&self.host.uuid_by_time()).expect("a UUID is an entry ID")
    }

    /// Creates entries in one commit, and puts on record which, and which were refused.
    pub(super) async fn created(
        &self,
        call: &Extensions,
        actor: Actor,
        drafts: Vec<(EntryDraft, EntryId)>,
    ) -> Result<Vec<Result<Created, Refusal>>, Status> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        let (api, by, now) = (self.clone(), by(call, &actor), self.host.now());
        let create = move |state: &_| Ok(command::entry::create(state, drafts, &actor, now));
        let created = to_the_end(async move {
            let created = api.journal.submit_decided(create).await?;
            let new = created.iter().flatten().filter(|created| !created.existed);
            let new: Vec<_> = new.map(|created| named(&created.entry)).collect();
            api.note_all(Done::to_entries(&new, Act::CreateEntries), &by).await;
            Ok(created)
        })
        .await?;
        self.note_refused(call, refusals(&created));
        Ok(created)
    }

    /// The same for changes of entries.
    pub(super) async fn updated(
        &self,
        call: &Extensions,
        actor: Actor,
        edits: Vec<(EntryId, Box<dyn Edit>)>,
    ) -> Result<Vec<Result<Arc<Entry>, Refusal>>, Status> {
        if edits.is_empty() {
            return Ok(Vec::new());
        }
        let (api, by) = (self.clone(), by(call, &actor));
        let update = move |state: &_| Ok(command::entry::update(state, edits, &actor));
        let updated = to_the_end(async move {
            let updated = api.journal.submit_decided(update).await?;
            let changed: Vec<_> = updated.iter().flatten().map(|entry| named(entry)).collect();
            api.note_all(Done::to_entries(&changed, Act::UpdateEntries), &by).await;
            Ok(updated)
        })
        .await?;
        self.note_refused(call, refusals(&updated));
        Ok(updated)
    }
}

/// The entry as the record names it.
fn named(entry: &Entry) -> (EntryId, SpiffeId) {
    (entry.id.clone(), entry.spiffe_id.clone())
}

/// The entry as the caller wants to see it.
fn shown(entry: &Entry, output: Option<&types::EntryMask>) -> types::Entry {
    let mut wire = convert::entry::to_wire(entry);
    mask::entry(&mut wire, output);
    wire
}

fn edit(wire: types::Entry, input: Option<types::EntryMask>) -> Result<(EntryId, Box<dyn Edit>), Refusal> {
    let id = named_by(&wire.id)?;
    let edit = move |entry: &Entry| {
        convert::entry::apply_update(entry, &wire, input.as_ref())
            .map_err(|malformed| malformed.during("failed to convert entry").into())
    };
    Ok((id, Box::new(edit)))
}

/// The entry that an item of a batch names. What can be no ID names none.
pub(super) fn named_by(id: &str) -> Result<EntryId, Refusal> {
    match id {
        "" => Err(Refusal::invalid("missing entry ID")),
        id => EntryId::parse(id).map_err(|_| Refusal::not_found("entry not found")),
    }
}

/// The shortest answer that still says what was done, where the whole one does not fit into the message: of the entry only
/// its ID, of the status only its code.
fn shorten(status: &mut Option<types::Status>, entry: &mut Option<types::Entry>) {
    if let Some(status) = status {
        status.message.clear();
    }
    if let Some(entry) = entry {
        *entry = types::Entry { id: std::mem::take(&mut entry.id), ..types::Entry::default() };
    }
}

/// What SPIRE says of an entry that stands already; clients look at the code.
pub(super) fn twin() -> types::Status {
    status::to_item(&Refusal::already_exists("similar entry already exists"))
}

/// Takes out what could not be decoded, keeping the places: `Ok` where a decided outcome belongs.
pub(super) fn sorted_out<T>(
    items: impl Iterator<Item = Result<T, Refusal>>,
) -> (Vec<T>, Vec<Result<(), Refusal>>) {
    let mut sound = Vec::new();
    let places = items.map(|item| item.map(|item| sound.push(item))).collect();
    (sound, places)
}

/// Puts outcomes back into their places.
pub(super) fn merged<T>(
    places: Vec<Result<(), Refusal>>,
    outcomes: Vec<Result<T, Refusal>>,
) -> impl Iterator<Item = Result<T, Refusal>> {
    let mut outcomes = outcomes.into_iter();
    let missing = || Err(Refusal::internal("a batch lost one of its outcomes"));
    places.into_iter().map(move |place| place.and_then(|()| outcomes.next().unwrap_or_else(missing)))
}
