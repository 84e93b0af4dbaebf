//! How do many entries reach the server: in batches, a few of them under way at a time?

use anyhow::{Context, bail};
use passant_proto::entry::{BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest};
use passant_proto::options::{self, EntryWithOptions, Options, batch_set_options_request};
use passant_proto::types;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Code;

use super::options::is_default;
use crate::connect::{Server, refused};
use crate::json;
use crate::progress::Progress;

/// Entries of one batch, as many as SPIRE's own clients send.
const ITEMS: usize = 500;
/// Bytes of one batch: a quarter of what a message may have, so that the answer fits too.
const BYTES: usize = 1 << 20;
/// Batches under way. The server makes them durable together.
const AT_ONCE: usize = 4;
/// Batches that wait for their turn.
const WAITING: usize = 2;

/// An entry to be written, and where it came from.
pub(super) struct Item {
    pub(super) line: usize,
    pub(super) entry: types::Entry,
    /// What it says beside SPIRE's fields.
    pub(super) options: Options,
    /// Whether an update is to set them.
    pub(super) sets_options: bool,
}

/// What is done with entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Made anew.
    Create,
    /// Written over those with their ids.
    Update,
}

/// What became of them.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) done: usize,
    /// Not made, since one with the same parent, SPIFFE ID and selectors is there.
    pub(super) existing: usize,
    pub(super) failed: Vec<Failed>,
}

/// An entry that the server refused.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) line: usize,
    pub(super) id: String,
    pub(super) spiffe_id: String,
    pub(super) status: types::Status,
}

impl Failed {
    /// An entry, and what the server says of it.
    pub(super) fn of(item: &Item, status: types::Status) -> Self {
        let spiffe_id = json::spiffe_id_text(item.entry.spiffe_id.as_ref());
        Self { line: item.line, id: item.entry.id.clone(), spiffe_id, status }
    }
}

/// Where batches are put together.
pub(super) struct Batches {
    to: mpsc::Sender<Vec<Item>>,
    batch: Vec<Item>,
    bytes: usize,
}

impl Batches {
    /// A queue for batches, and its other end.
    pub(super) fn new() -> (Self, mpsc::Receiver<Vec<Item>>) {
        let (to, from) = mpsc::channel(WAITING);
        (Self { to, batch: Vec::new(), bytes: 0 }, from)
    }

    /// Adds one; waits, on a thread that may wait, until there is room. False when nobody takes batches any more.
    pub(super) fn add(&mut self, item: Item) -> bool {
        let bytes = item.entry.encoded_len();
        let full = self.batch.len() == ITEMS || self.bytes + bytes > BYTES;
        if full && !self.flush() {
            return false;
        }
        self.bytes += bytes;
        self.batch.push(item);
        true
    }

    /// Sends what is left. False when nobody takes it.
    pub(super) fn end(mut self) -> bool {
        self.flush()
    }

    fn flush(&mut self) -> bool {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        batch.is_empty() || self.to.blocking_send(batch).is_ok()
    }
}

/// Writes all that comes from the queue.
///
/// # Errors
/// When the server does not answer; what was written by then stays.
pub(super) async fn write(
    server: &Server,
    how: How,
    mut from: mpsc::Receiver<Vec<Item>>,
    progress: &mut Progress,
) -> anyhow::Result<Outcome> {
    let mut all = Outcome::default();
    let mut under_way = JoinSet::new();
    let mut trouble = None;
    loop {
        let batch = if trouble.is_none() { from.recv().await } else { None };
        let ended = batch.is_none();
        if let Some(batch) = batch {
            under_way.spawn(send(server.clone(), how, batch));
        }
        // Room for the next; in the end, none left.
        while under_way.len() >= AT_ONCE || (ended && !under_way.is_empty()) {
            let Some(sent) = under_way.join_next().await else { break };
            match sent.context("a batch was lost").and_then(|sent| sent) {
                Ok(sent) => {
                    progress.add(sent.done + sent.existing + sent.failed.len());
                    all.done += sent.done;
                    all.existing += sent.existing;
                    all.failed.extend(sent.failed);
                }
                Err(error) => trouble = Some(error),
            }
        }
        if ended {
            break;
        }
    }
    all.failed.sort_by_key(|failed| failed.line);
    match trouble {
        None => Ok(all),
        Some(error) => Err(error.context(format!(
            "stopped after {} entries were written; run it again to go on, what was written stays",
            all.done
        ))),
    }
}

/// Sets the options of entries, each with its place; the places of those that were refused.
async fn set_options(
    server: &Server,
    set: Vec<(usize, String, Options)>,
) -> anyhow::Result<Vec<(usize, types::Status)>> {
    if set.is_empty() {
        return Ok(Vec::new());
    }
    let (places, items): (Vec<usize>, Vec<_>) = set
        .into_iter()
        .map(|(at, entry_id, options)| {
            (at, batch_set_options_request::Item { entry_id, options: Some(options) })
        })
        .unzip();
    let request = options::BatchSetOptionsRequest { items };
    let results = server.options().batch_set_options(request).await.map_err(refused)?.into_inner().results;
    if results.len() != places.len() {
        bail!("the server answered {} entries with {} results", places.len(), results.len());
    }
    let statuses = results.into_iter().map(|result| result.status.unwrap_or_default());
    Ok(places.into_iter().zip(statuses).filter(|(_, status)| status.code != 0).collect())
}

async fn send(server: Server, how: How, items: Vec<Item>) -> anyhow::Result<Outcome> {
    let mut named: Vec<Failed> = Vec::with_capacity(items.len());
    let mut entries: Vec<types::Entry> = Vec::with_capacity(items.len());
    let (mut options, mut set) = (Vec::new(), Vec::new());
    for (at, item) in items.into_iter().enumerate() {
        named.push(Failed::of(&item, types::Status::default()));
        if item.sets_options {
            set.push((at, item.entry.id.clone(), item.options));
        }
        options.push(item.options);
        entries.push(item.entry);
    }
    // The ids are enough of an answer.
    let output_mask = Some(types::EntryMask::default());
    let mut results: Vec<(Option<types::Status>, Option<types::Entry>)> = match how {
        How::Create if !options.iter().all(is_default) => {
            let with = |(entry, options)| EntryWithOptions { entry: Some(entry), options: Some(options) };
            let entries = entries.into_iter().zip(options).map(with).collect();
            let request = options::BatchCreateEntryRequest { entries };
            let answer = server.options().batch_create_entry(request).await.map_err(refused)?.into_inner();
            let entry = |told: Option<EntryWithOptions>| told.and_then(|told| told.entry);
            answer.results.into_iter().map(|result| (result.status, entry(result.entry))).collect()
        }
        How::Create => {
            let request = BatchCreateEntryRequest { entries, output_mask };
            let answer = server.entries().batch_create_entry(request).await.map_err(refused)?.into_inner();
            answer.results.into_iter().map(|result| (result.status, result.entry)).collect()
        }
        How::Update => {
            let request = BatchUpdateEntryRequest { entries, input_mask: None, output_mask };
            let answer = server.entries().batch_update_entry(request).await.map_err(refused)?.into_inner();
            answer.results.into_iter().map(|result| (result.status, result.entry)).collect()
        }
    };
    if results.len() != named.len() {
        bail!("the server answered {} entries with {} results", named.len(), results.len());
    }
    // Those that were refused keep the options that they have.
    let is_done =
        |(status, _): &(Option<types::Status>, _)| status.as_ref().is_none_or(|status| status.code == 0);
    set.retain(|(at, ..)| is_done(&results[*at]));
    for (at, status) in set_options(&server, set).await? {
        results[at].0 = Some(status);
    }
    let mut outcome = Outcome::default();
    for (named, (status, entry)) in named.into_iter().zip(results) {
        let status = status.unwrap_or_default();
        // With the entry that stands; without one it is the id that another entry has.
        let exists = Code::from_i32(status.code) == Code::AlreadyExists && entry.is_some();
        if status.code == 0 {
            outcome.done += 1;
        } else if exists && how == How::Create {
            outcome.existing += 1;
        } else {
            outcome.failed.push(Failed { status, ..named });
        }
    }
    Ok(outcome)
}

/// Deletes entries; answers with those that were refused, each with its id. One that is gone already is not.
pub(super) async fn delete(
    server: &Server,
    ids: &[String],
    progress: &mut Progress,
) -> anyhow::Result<Vec<(String, types::Status)>> {
    let mut failed = Vec::new();
    for ids in ids.chunks(ITEMS) {
        let request = BatchDeleteEntryRequest { ids: ids.to_vec() };
        let answer = server.entries().batch_delete_entry(request).await.map_err(refused)?.into_inner();
        progress.add(ids.len());
        for result in answer.results {
            let status = result.status.unwrap_or_default();
            if status.code != 0 && Code::from_i32(status.code) != Code::NotFound {
                failed.push((result.id, status));
            }
        }
    }
    Ok(failed)
}
