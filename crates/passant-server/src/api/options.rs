//! How is passant.entry.v1.Entry answered?

use std::sync::Arc;

use passant_core::{Entry, EntryDraft, EntryId, Refusal};
use passant_proto::convert::options;
use passant_proto::options::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchGetOptionsRequest, BatchGetOptionsResponse,
    BatchSetOptionsRequest, BatchSetOptionsResponse, EntryWithOptions, batch_create_entry_response,
    batch_get_options_response, batch_set_options_request, batch_set_options_response, entry_server,
};
use passant_proto::{status, types};
use prost::Message;
use tonic::{Request, Response, Status, async_trait};

use super::entry::{merged, named_by, sorted_out, twin};
use super::{Api, Room, bounded, refuse, refuse_item};
use crate::command::entry::Edit;
use crate::limits::{BATCH, RESPONSE};
use crate::query::Paging;

#[async_trait]
impl entry_server::Entry for Api {
    async fn batch_create_entry(
        &self,
        request: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        let (_, call, BatchCreateEntryRequest { entries }) = request.into_parts();
        let actor = self.actor(&call)?;
        bounded(entries.len(), BATCH)?;
        let (drafts, places) = sorted_out(entries.iter().map(|entry| self.draft_with_options(entry)));
        let created = self.created(&call, actor, drafts).await?;
        let mut room = Room::of(entries.len());
        let results = merged(places, created).map(|outcome| {
            let mut result = match outcome {
                Ok(created) => batch_create_entry_response::Result {
                    status: Some(if created.existed { twin() } else { status::ok() }),
                    entry: Some(options::entry_to_wire(&created.entry)),
                },
                Err(refusal) => {
                    batch_create_entry_response::Result { status: Some(refuse_item(refusal)), entry: None }
                }
            };
            if !room.takes(&result) {
                shorten(&mut result);
            }
            result
        });
        Ok(Response::new(BatchCreateEntryResponse { results: results.collect() }))
    }

    async fn batch_set_options(
        &self,
        request: Request<BatchSetOptionsRequest>,
    ) -> Result<Response<BatchSetOptionsResponse>, Status> {
        let (_, call, BatchSetOptionsRequest { items }) = request.into_parts();
        let actor = self.actor(&call)?;
        bounded(items.len(), BATCH)?;
        let (edits, places) = sorted_out(items.into_iter().map(edit));
        let updated = self.updated(&call, actor, edits).await?;
        let results = merged(places, updated).map(|outcome| match outcome {
            Ok(entry) => batch_set_options_response::Result {
                status: Some(status::ok()),
                revision_number: i64::try_from(entry.revision).unwrap_or(i64::MAX),
            },
            Err(refusal) => {
                batch_set_options_response::Result { status: Some(refuse_item(refusal)), revision_number: 0 }
            }
        });
        Ok(Response::new(BatchSetOptionsResponse { results: results.collect() }))
    }

    async fn batch_get_options(
        &self,
        request: Request<BatchGetOptionsRequest>,
    ) -> Result<Response<BatchGetOptionsResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let BatchGetOptionsRequest { mut entry_ids, page_size, page_token } = request;
        let actor = self.actor(&call)?;
        bounded(entry_ids.len(), BATCH)?;
        let paging = Paging::parse(page_size, &page_token).map_err(refuse)?;
        let after = paging.after_entry().map_err(refuse)?;
        let state = self.journal.state();
        entry_ids.sort_unstable();
        entry_ids.dedup();
        let asked: Box<dyn Iterator<Item = &Arc<Entry>> + Send> = if entry_ids.is_empty() {
            let all = state.entries_after(after.as_ref());
            Box::new(all.filter(|entry| !entry.options.is_default()))
        } else {
            Box::new(entry_ids.iter().filter_map(|id| state.entry(&EntryId::parse(id).ok()?)))
        };
        let found = asked
            .filter(|entry| after.as_ref().is_none_or(|after| entry.id > *after))
            .filter(|entry| actor.sees(entry))
            .map(|entry| batch_get_options_response::Item {
                entry_id: entry.id.to_string(),
                options: Some(options::to_wire(entry)),
            });
        let page = paging
            .fill(
                found,
                |item: &batch_get_options_response::Item| item.entry_id.as_str(),
                Message::encoded_len,
                RESPONSE,
            )
            .map_err(refuse)?;
        Ok(Response::new(BatchGetOptionsResponse { items: page.items, next_page_token: page.next }))
    }
}

impl Api {
    fn draft_with_options(&self, wire: &EntryWithOptions) -> Result<(EntryDraft, EntryId), Refusal> {
        let draft = options::draft_from_wire(wire).map_err(|e| e.during("failed to convert entry"))?;
        Ok((draft, self.fresh_entry_id()))
    }
}

fn edit(item: batch_set_options_request::Item) -> Result<(EntryId, Box<dyn Edit>), Refusal> {
    let batch_set_options_request::Item { entry_id, options: told } = item;
    let edit = move |entry: &Entry| {
        let mut draft = entry.to_draft();
        options::apply(&mut draft, told.as_ref())
            .map_err(|malformed| malformed.during("failed to convert options"))?;
        Ok(draft)
    };
    Ok((named_by(&entry_id)?, Box::new(edit)))
}

/// The shortest answer that still says what was done: of the entry only its ID, of the status only its code.
fn shorten(result: &mut batch_create_entry_response::Result) {
    if let Some(status) = &mut result.status {
        status.message.clear();
    }
    if let Some(entry) = result.entry.as_mut().and_then(|told| told.entry.as_mut()) {
        *entry = types::Entry { id: std::mem::take(&mut entry.id), ..types::Entry::default() };
    }
}
