//! What does the server say this node may serve? One poll, call by call as SPIRE's agent makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use passant_core::bundle::Bundle;
use passant_core::{AuthorizedEntry, EntryId, Reason, TrustDomain};
use passant_proto::bundle::bundle_client::BundleClient;
use passant_proto::bundle::{GetBundleRequest, GetFederatedBundleRequest};
use passant_proto::convert;
use passant_proto::convert::entry::AUTHORIZED;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::entry::{
    EntryRevision, GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use passant_proto::types;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use crate::cache::View;
use crate::connect::{CallError, Link};
use crate::limits;

/// What the last sync left, to ask only for differences.
pub(crate) struct Known {
    pub(crate) entries: Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>>,
    pub(crate) federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

/// Asks for the entries, the bundle and the federated bundles, one after the other, within [`limits::SYNC`].
///
/// A federated bundle that cannot be had now stays as it was; one that the server does not have is left out.
///
/// # Errors
/// When the entries or the own bundle cannot be had: then nothing is taken over.
pub(crate) async fn poll(link: &Link, trust_domain: &TrustDomain, known: Known) -> Result<View, CallError> {
    let end = Instant::now() + limits::SYNC;
    let entries = entries(link, trust_domain, known.entries, end).await?;
    let bundle = own_bundle(link, trust_domain, end).await?;
    let wanted: BTreeSet<TrustDomain> =
        entries.values().flat_map(|entry| entry.federates_with.iter().cloned()).collect();
    let federated = federated_bundles(link, wanted, known.federated, end).await;
    Ok(View { entries, bundle, federated })
}

async fn entries(
    link: &Link,
    trust_domain: &TrustDomain,
    known: Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>>,
    end: Instant,
) -> Result<BTreeMap<EntryId, Arc<AuthorizedEntry>>, CallError> {
    let synced = link
        .call("sync entries", left(end), |channel| {
            let dialogue = Dialogue::new(trust_domain.clone(), Arc::clone(&known));
            dialogue.run(channel)
        })
        .await;
    match synced {
        Err(error) if error.is_unimplemented() => {
            debug!("the server does not offer SyncAuthorizedEntries; all entries are fetched each time");
            all_entries(link, trust_domain, end).await
        }
        other => other,
    }
}

async fn all_entries(
    link: &Link,
    trust_domain: &TrustDomain,
    end: Instant,
) -> Result<BTreeMap<EntryId, Arc<AuthorizedEntry>>, CallError> {
    let listed = link
        .call("fetch entries", left(end), |channel| async move {
            let mut client = EntryClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
            let request = GetAuthorizedEntriesRequest { output_mask: Some(AUTHORIZED) };
            Ok(client.get_authorized_entries(request).await?.into_inner())
        })
        .await?;
    let mut found = BTreeMap::new();
    let mut dialogue = Dialogue::new(trust_domain.clone(), Arc::default());
    dialogue
        .take(listed.entries, &mut found)
        .map_err(|status| CallError::unavailable("fetch entries", status.message()))?;
    Ok(found)
}

/// One SyncAuthorizedEntries stream.
struct Dialogue {
    trust_domain: TrustDomain,
    known: Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>>,
}

impl Dialogue {
    const fn new(trust_domain: TrustDomain, known: Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>>) -> Self {
        Self { trust_domain, known }
    }

    /// A small set comes whole in the first message. Of a large one come the revisions, page by page; then the agent asks
    /// for what it lacks, in sorted pages of the size the server used.
    async fn run(mut self, channel: Channel) -> Result<BTreeMap<EntryId, Arc<AuthorizedEntry>>, Status> {
        let mut client = EntryClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
        let (requests, outgoing) = mpsc::channel(1);
        send(&requests, SyncAuthorizedEntriesRequest { output_mask: Some(AUTHORIZED), ids: Vec::new() })
            .await?;
        let mut answers = client.sync_authorized_entries(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut found = BTreeMap::new();
        let first = next(&mut answers).await?;
        if first.entry_revisions.is_empty() {
            self.take(first.entries, &mut found)?;
            return Ok(found);
        }
        let page = first.entry_revisions.len();
        let lacking = self.revisions(first, &mut answers, &mut found).await?;
        for ids in lacking.chunks(page) {
            send(&requests, SyncAuthorizedEntriesRequest { output_mask: None, ids: ids.to_vec() }).await?;
            loop {
                let answer = next(&mut answers).await?;
                if !answer.entry_revisions.is_empty() {
                    return Err(Status::internal("the server sent revisions where entries were asked for"));
                }
                self.take(answer.entries, &mut found)?;
                if !answer.more {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Reads all revisions: what is known and unchanged goes to `found`, the ids of the rest are returned, sorted.
    async fn revisions(
        &self,
        first: SyncAuthorizedEntriesResponse,
        answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
        found: &mut BTreeMap<EntryId, Arc<AuthorizedEntry>>,
    ) -> Result<Vec<String>, Status> {
        let mut lacking = BTreeSet::new();
        let mut answer = first;
        loop {
            if !answer.entries.is_empty() {
                return Err(Status::internal("the server sent entries among the revisions"));
            }
            for revision in &answer.entry_revisions {
                match self.unchanged(revision) {
                    Some(entry) => drop(found.insert(entry.id.clone(), entry)),
                    None => drop(lacking.insert(revision.id.clone())),
                }
            }
            bounded(found.len() + lacking.len())?;
            if !answer.more {
                return Ok(lacking.into_iter().filter(|id| !id.is_empty()).collect());
            }
            answer = next(answers).await?;
        }
    }

    fn unchanged(&self, revision: &EntryRevision) -> Option<Arc<AuthorizedEntry>> {
        let entry = self.known.get(&EntryId::parse(&revision.id).ok()?)?;
        let same = u64::try_from(revision.revision_number) == Ok(entry.revision)
            && revision.created_at == entry.created_at.secs();
        same.then(|| Arc::clone(entry))
    }

    /// Takes entries over. One that is malformed or of another trust domain is left out, as if it were not authorized.
    fn take(
        &mut self,
        entries: Vec<types::Entry>,
        found: &mut BTreeMap<EntryId, Arc<AuthorizedEntry>>,
    ) -> Result<(), Status> {
        for wire in entries {
            match convert::entry::authorized_from_wire(&wire) {
                Ok(entry) if !entry.spiffe_id.is_member_of(&self.trust_domain) => {
                    warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id,
                        "the server sent an entry of another trust domain; it is left out");
                }
                Ok(entry) => {
                    // The same content stays the same allocation, so that nobody is woken for nothing.
                    let entry = match self.known.get(&entry.id) {
                        Some(known) if **known == entry => Arc::clone(known),
                        Some(_) | None => Arc::new(entry),
                    };
                    found.insert(entry.id.clone(), entry);
                }
                Err(error) => {
                    warn!(entry = wire.id, %error, "the server sent an entry that cannot be read; it is left out");
                }
            }
        }
        bounded(found.len())
    }
}

fn bounded(entries: usize) -> Result<(), Status> {
    match entries > limits::ENTRIES {
        true => {
            Err(Status::resource_exhausted(format!("the server sends more than {} entries", limits::ENTRIES)))
        }
        false => Ok(()),
    }
}

async fn send(
    requests: &mpsc::Sender<SyncAuthorizedEntriesRequest>,
    request: SyncAuthorizedEntriesRequest,
) -> Result<(), Status> {
    requests.send(request).await.map_err(|_| Status::unavailable("the server ended the sync stream early"))
}

async fn next(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unavailable("the server ended the sync stream early"))
}

async fn own_bundle(link: &Link, trust_domain: &TrustDomain, end: Instant) -> Result<Arc<Bundle>, CallError> {
    let what = "fetch the bundle";
    let wire = link.call(what, left(end), get_bundle).await?;
    read_own_bundle(&wire, trust_domain).map_err(|why| CallError::unavailable(what, why))
}

/// Asks for the bundle of the server's trust domain on `channel`.
pub(crate) async fn get_bundle(channel: Channel) -> Result<types::Bundle, Status> {
    let mut client = BundleClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
    Ok(client.get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner())
}

/// Takes the own bundle from the wire. One that is of another trust domain or could verify nobody is refused: the agent
/// could not reach its server any more.
pub(crate) fn read_own_bundle(
    wire: &types::Bundle,
    trust_domain: &TrustDomain,
) -> Result<Arc<Bundle>, String> {
    let bundle = convert::bundle::from_wire(wire).map_err(|error| error.to_string())?;
    if bundle.trust_domain != *trust_domain {
        return Err(format!("the server sent the bundle of {}", bundle.trust_domain));
    }
    if bundle.trust_anchors().is_empty() {
        return Err("the server sent a bundle without any X.509 authority".to_owned());
    }
    Ok(Arc::new(bundle))
}

async fn federated_bundles(
    link: &Link,
    wanted: BTreeSet<TrustDomain>,
    mut held: BTreeMap<TrustDomain, Arc<Bundle>>,
    end: Instant,
) -> BTreeMap<TrustDomain, Arc<Bundle>> {
    if wanted.len() > limits::FEDERATED_BUNDLES {
        warn!(count = wanted.len(), "too many federated trust domains; some bundles are left out");
    }
    held.retain(|trust_domain, _| wanted.contains(trust_domain));
    let mut waiting = wanted.into_iter().take(limits::FEDERATED_BUNDLES);
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < limits::BUNDLE_FETCHES_AT_ONCE {
            let Some(trust_domain) = waiting.next() else { break };
            let link = link.clone();
            tasks.spawn(async move {
                let fetched = federated_bundle(&link, &trust_domain, end).await;
                (trust_domain, fetched)
            });
        }
        match tasks.join_next().await {
            Some(Ok((trust_domain, Ok(Some(bundle))))) => drop(held.insert(trust_domain, bundle)),
            Some(Ok((trust_domain, Ok(None)))) => drop(held.remove(&trust_domain)),
            Some(Ok((trust_domain, Err(error)))) => {
                warn!(%trust_domain, %error, "the bundle held before, if any, is kept");
            }
            Some(Err(error)) => warn!(%error, "failed to fetch a federated bundle"),
            None => return held,
        }
    }
}

/// `None` when the server has no such bundle.
async fn federated_bundle(
    link: &Link,
    trust_domain: &TrustDomain,
    end: Instant,
) -> Result<Option<Arc<Bundle>>, CallError> {
    let what = "fetch a federated bundle";
    let fetched = link
        .call(what, left(end), |channel| async move {
            let mut client = BundleClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
            let trust_domain = trust_domain.as_str().to_owned();
            let request = GetFederatedBundleRequest { trust_domain, output_mask: None };
            Ok(client.get_federated_bundle(request).await?.into_inner())
        })
        .await;
    let wire = match fetched {
        Ok(wire) => wire,
        Err(error) if error.refusal.reason == Reason::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let bundle =
        convert::bundle::from_wire(&wire).map_err(|error| CallError::unavailable(what, error.to_string()))?;
    match bundle.trust_domain == *trust_domain {
        true => Ok(Some(Arc::new(bundle))),
        false => {
            Err(CallError::unavailable(what, format!("the server sent that of {}", bundle.trust_domain)))
        }
    }
}

fn left(end: Instant) -> std::time::Duration {
    end.saturating_duration_since(Instant::now())
}
