//! How does an agent learn its entries over SyncAuthorizedEntries?
//!
//! A small set is sent whole. Of a large one the agent first gets every entry's revision, then asks for those that it
//! lacks; this is what SPIRE's agents expect, down to which field may stand in which message.

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_core::{Entry, SpiffeId};
use passant_daemon::metrics::Counter;
use passant_proto::entry::{EntryRevision, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse};
use passant_proto::types::EntryMask;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::shown;
use crate::api::authorize::Admitted;
use crate::api::{Api, misrouted, refuse};
use crate::caller::ConnPeer;
use crate::limits::{RESPONSE, STREAM_WAITING, SYNC_PAGE, SYNC_WITHIN};
use crate::state::Revision;
use crate::sync::held::is_fit;

/// The way to the agent, which counts the entries that it takes.
struct Out {
    to: mpsc::Sender<Result<SyncAuthorizedEntriesResponse, Status>>,
    sent: Counter,
}

/// Starts the exchange. It ends by itself with the agent's standing: evicted, banned or replaced, the agent reads so at
/// once.
pub(super) fn answer(
    api: Api,
    request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
) -> Result<Response<<Api as passant_proto::entry::entry_server::Entry>::SyncAuthorizedEntriesStream>, Status>
{
    let Some(Admitted::Agent(agent)) = request.extensions().get().cloned() else { return Err(misrouted()) };
    let peer = request.extensions().get::<ConnPeer>().cloned().ok_or_else(|| Status::internal("no peer"))?;
    let (entries, revision) = api.polled_entries(agent.id());
    api.metrics.syncs.inc();
    let (out, stream) = mpsc::channel(STREAM_WAITING);
    let out = Out { to: out, sent: api.metrics.synced_entries.clone() };
    api.watches.hub.polls(agent.id());
    tokio::spawn(async move {
        // Whether the agent has been handed all that it asked for.
        let mut has_all = false;
        let exchange = exchange(request.into_inner(), &entries, &out, &mut has_all);
        let ended = tokio::select! {
            biased;
            fallen = api.fallen(&peer) => Err(fallen),
            () = out.to.closed() => Ok(()),
            done = tokio::time::timeout(SYNC_WITHIN, exchange) => {
                done.unwrap_or_else(|_| Err(Status::deadline_exceeded("the synchronization took too long")))
            }
        };
        if ended.is_ok() && has_all {
            api.watches.hub.answered(agent.id(), revision);
        }
        if let Err(status) = ended
            && out.to.send(Err(status)).await.is_err()
        {
            tracing::debug!(agent = %agent.id(), "agent left before it could read why its stream ended");
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
}

impl Api {
    /// The entries of an agent that polls, and of which revision: it is one of SPIRE's, which knows nothing of what stands beside
    /// SPIRE's fields.
    pub(super) fn polled_entries(&self, agent: &SpiffeId) -> (Vec<Arc<Entry>>, Revision) {
        let state = self.journal.state();
        let mut entries = state.authorized_entries(agent, self.host.now());
        entries.retain(|entry| is_fit(entry, false));
        (entries, state.cursor().revision)
    }

    /// Resolves once the agent behind `peer` is no longer in good standing, with the reason it is to read.
    pub(in crate::api) async fn fallen(&self, peer: &ConnPeer) -> Status {
        let mut revisions = self.journal.watch();
        loop {
            if let Err(refusal) = self.callers.agent(peer).await {
                return refuse(refusal);
            }
            if revisions.changed().await.is_err() {
                return Status::unavailable("server is shutting down");
            }
        }
    }
}

/// The whole exchange. The agent may end it whenever it has what it wants.
async fn exchange(
    mut requests: Streaming<SyncAuthorizedEntriesRequest>,
    entries: &[Arc<Entry>],
    out: &Out,
    has_all: &mut bool,
) -> Result<(), Status> {
    let Some(first) = next(&mut requests).await? else {
        return Err(Status::invalid_argument("missing initial request"));
    };
    if !first.ids.is_empty() {
        return Err(Status::invalid_argument("specifying IDs on initial request is not supported"));
    }
    let mask = first.output_mask;
    if mask.is_some_and(|mask| !mask.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    if entries.len() <= SYNC_PAGE {
        let whole = SyncAuthorizedEntriesResponse {
            entries: entries.iter().map(|entry| shown(entry, mask.as_ref())).collect(),
            ..SyncAuthorizedEntriesResponse::default()
        };
        if whole.encoded_len() <= RESPONSE {
            send(out, whole).await?;
            *has_all = true;
            return Ok(());
        }
    }
    send_revisions(entries, out).await?;
    let by_id: BTreeMap<&str, &Arc<Entry>> = entries.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    loop {
        *has_all = true;
        let Some(request) = next(&mut requests).await? else { return Ok(()) };
        *has_all = false;
        send_entries(&by_id, request.ids, mask.as_ref(), out).await?;
    }
}

/// The next request; `None` when the agent has ended the exchange, by closing or by cancelling.
async fn next(
    requests: &mut Streaming<SyncAuthorizedEntriesRequest>,
) -> Result<Option<SyncAuthorizedEntriesRequest>, Status> {
    match requests.message().await {
        Ok(request) => Ok(request),
        Err(status) if status.code() == Code::Cancelled => Ok(None),
        Err(status) => Err(status),
    }
}

async fn send_revisions(entries: &[Arc<Entry>], out: &Out) -> Result<(), Status> {
    let mut pages = entries.chunks(SYNC_PAGE).peekable();
    while let Some(page) = pages.next() {
        let entry_revisions = page.iter().map(|entry| EntryRevision {
            id: entry.id.to_string(),
            revision_number: i64::try_from(entry.revision).unwrap_or(i64::MAX),
            created_at: entry.created_at.secs(),
        });
        let response = SyncAuthorizedEntriesResponse {
            entry_revisions: entry_revisions.collect(),
            entries: Vec::new(),
            more: pages.peek().is_some(),
        };
        send(out, response).await?;
    }
    Ok(())
}

/// Answers one request: the entries with these IDs in as many messages as it takes. An ID that is not the agent's is
/// left out without a word.
async fn send_entries(
    by_id: &BTreeMap<&str, &Arc<Entry>>,
    mut ids: Vec<String>,
    mask: Option<&EntryMask>,
    out: &Out,
) -> Result<(), Status> {
    ids.sort_unstable();
    ids.dedup();
    let mut page = SyncAuthorizedEntriesResponse::default();
    let mut weight = 0;
    for entry in ids.iter().filter_map(|id| by_id.get(id.as_str())) {
        let wire = shown(entry, mask);
        // Tag and length of a repeated message take at most six bytes more.
        let more = wire.encoded_len() + 6;
        if page.entries.len() == SYNC_PAGE || (weight + more > RESPONSE && !page.entries.is_empty()) {
            page.more = true;
            send(out, std::mem::take(&mut page)).await?;
            weight = 0;
        }
        weight += more;
        page.entries.push(wire);
    }
    send(out, page).await
}

async fn send(out: &Out, response: SyncAuthorizedEntriesResponse) -> Result<(), Status> {
    let entries = response.entries.len();
    out.to.send(Ok(response)).await.map_err(|_| Status::cancelled("the agent has left"))?;
    out.sent.add(entries);
    Ok(())
}
