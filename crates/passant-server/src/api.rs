//! Which services does the server offer, and what do their methods share?
//!
//! A method decodes, calls and encodes; what is decided stands in `command`, `query`, `issue` and `attest_node`, and who
//! may call in [`authorize`].

mod access;
mod agent;
mod audit;
pub(crate) mod authorize;
mod bundle;
mod debug;
mod entry;
mod explain;
mod federation;
mod import;
mod local_authority;
mod logger;
mod options;
mod stop;
mod store;
mod svid;
pub(crate) mod sync;
#[cfg(test)]
mod tests;
mod trustdomain;

use std::net::IpAddr;
use std::sync::Arc;

use passant_core::{Host, Refusal, SpiffeId, TrustDomain};
use passant_daemon::grpc::{Health, ReflectionError, add_reflection};
use passant_daemon::log_rate::LogRate;
use passant_proto::access::access_server::AccessServer;
use passant_proto::agent::agent_server::AgentServer;
use passant_proto::audit::audit_server::AuditServer;
use passant_proto::bundle::bundle_server::BundleServer;
use passant_proto::debug::debug_server::DebugServer;
use passant_proto::descriptors;
use passant_proto::entry::entry_server::EntryServer;
use passant_proto::explain::explain_server::ExplainServer;
use passant_proto::federation::federation_server::FederationServer;
use passant_proto::import::import_server::ImportServer;
use passant_proto::localauthority::local_authority_server::LocalAuthorityServer;
use passant_proto::logger::logger_server::LoggerServer;
use passant_proto::options::entry_server::EntryServer as OptionsServer;
use passant_proto::status;
use passant_proto::stop::stop_server::StopServer;
use passant_proto::store::store_server::StoreServer;
use passant_proto::svid::svid_server::SvidServer;
use passant_proto::sync::sync_server::SyncServer;
use passant_proto::trustdomain::trust_domain_server::TrustDomainServer;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Extensions, Status};

use crate::attest_node::NodeAttestation;
use crate::authority::Authorities;
use crate::caller::{
    Actor, AgentCaller, Callers, ConnPeer, DownstreamCaller, LocalCaller, OperatorCaller, Rightful,
};
use crate::federation::Federation;
use crate::issue::Issuer;
use crate::journal::Journal;
use crate::limits::{BATCH_ITEM, MESSAGE, RESPONSE, STRANGERS_MESSAGE};
use crate::metrics::Metrics;
use crate::quota::Quotas;
use crate::record::refusals::{Refusals, deniedness, matters, place_of};
use crate::record::{Act, By, DecisionLog, Done};
use crate::serve::Guests;
use crate::tls::ServerIdentity;
use authorize::{Admitted, Called};

/// What the methods work with. Clones share it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) journal: Journal,
    pub(crate) issuer: Issuer,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) attestation: NodeAttestation,
    /// Whether nodes may attest by join token.
    pub(crate) join_tokens: bool,
    pub(crate) callers: Callers,
    /// Who is let in at the operator socket.
    pub(crate) guests: Arc<Guests>,
    pub(crate) record: DecisionLog,
    pub(crate) refusals: Refusals,
    /// Who reads the record now.
    pub(crate) auditors: Arc<audit::Auditors>,
    /// For each backup that may be sent now.
    pub(crate) backups: Arc<Semaphore>,
    /// For each explanation that may be found now.
    pub(crate) explanations: Arc<Semaphore>,
    pub(crate) federation: Federation,
    /// What watches of agents work with, and who watches.
    pub(crate) watches: Arc<sync::With>,
    /// What the port shows.
    pub(crate) identity: Arc<ServerIdentity>,
    /// When the server started.
    pub(crate) started: Instant,
    pub(crate) host: Host,
    pub(crate) metrics: Arc<Metrics>,
    /// How much callers may ask for.
    pub(crate) quotas: Arc<Quotas>,
    /// What the log is told of attestations that were refused, by address.
    pub(crate) attest_refusals: Arc<LogRate<Option<IpAddr>>>,
}

impl Api {
    /// All services, with SPIRE's names and numbers, and our own.
    ///
    /// # Errors
    /// When reflection cannot be served.
    pub(crate) fn routes(self, health: &Health) -> Result<Routes, ReflectionError> {
        let (agent, bundle) = (AgentServer::new(self.clone()), BundleServer::new(self.clone()));
        let (entry, svid) = (EntryServer::new(self.clone()), SvidServer::new(self.clone()));
        let (trust_domain, federation) =
            (TrustDomainServer::new(self.clone()), FederationServer::new(self.clone()));
        let (logger, authority) = (LoggerServer::new(self.clone()), LocalAuthorityServer::new(self.clone()));
        let (access, import) = (AccessServer::new(self.clone()), ImportServer::new(self.clone()));
        let (debug, explain) = (DebugServer::new(self.clone()), ExplainServer::new(self.clone()));
        let (store, sync) = (StoreServer::new(self.clone()), SyncServer::new(self.clone()));
        let (stop, options) = (StopServer::new(self.clone()), OptionsServer::new(self.clone()));
        let audit = AuditServer::new(self);
        let routes = health.add_to(Routes::default());
        let routes = add_reflection(routes, &[descriptors::SERVER])?;
        Ok(routes
            .add_service(
                access.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                audit.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                agent.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                debug.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                explain.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(bundle.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(entry.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(
                authority.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                logger.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                store.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(options.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(stop.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(
                federation.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(import.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(trust_domain.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(svid.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(sync.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .prepare())
    }
}

/// The status for `refusal`, after its cause went to the log.
fn refuse(refusal: Refusal) -> Status {
    if let Some(source) = &refusal.source {
        let error: &dyn std::error::Error = source.as_ref();
        match refusal.retry() {
            passant_core::refusal::Retry::WithBackoff => tracing::error!(error, "call failed: {refusal}"),
            passant_core::refusal::Retry::No => tracing::debug!(error, "call refused: {refusal}"),
        }
    }
    let mut status = status::to_status(&refusal);
    if refusal.source.is_some() && (matters(refusal.reason) || deniedness(&refusal).is_some()) {
        // For the record; it is not sent.
        status.set_source(Arc::new(refusal));
    }
    status
}

/// Does `act` whole and puts it on record, even if the caller goes away meanwhile.
async fn to_the_end<T: Send + 'static>(
    act: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::spawn(act).await.unwrap_or_else(|lost| Err(Refusal::internal(lost)));
    done.map_err(refuse)
}

/// The status of one item of a batch, after its cause went to the log.
fn refuse_item(refusal: Refusal) -> passant_proto::types::Status {
    let item = status::to_item(&refusal);
    drop(refuse(refusal));
    item
}

/// Refuses a batch that no client needs.
fn bounded(items: usize, most: usize) -> Result<(), Status> {
    if items > most {
        return Err(Status::resource_exhausted(format!("{items} items in one batch; send at most {most}")));
    }
    Ok(())
}

impl Api {
    /// The agent that [`authorize`] let in, as it stands now that its whole request has arrived. That may have taken it
    /// long, and whoever was banned meanwhile gets nothing for having asked early.
    async fn agent(&self, call: &Extensions) -> Result<AgentCaller, Status> {
        match (call.get(), call.get::<ConnPeer>()) {
            (Some(Admitted::Agent(_)), Some(peer)) => self.callers.agent(peer).await.map_err(refuse),
            _ => Err(misrouted()),
        }
    }

    /// The operator that [`authorize`] let in, as it stands now that its whole request has arrived.
    fn operator(&self, call: &Extensions) -> Result<OperatorCaller, Status> {
        match (call.get(), call.get::<ConnPeer>()) {
            (Some(Admitted::Operator), Some(peer)) => self.callers.operator(peer).map_err(refuse),
            _ => Err(misrouted()),
        }
    }

    /// The server below that [`authorize`] let in, as it stands now that its whole request has arrived.
    fn downstream(&self, call: &Extensions) -> Result<DownstreamCaller, Status> {
        match (call.get(), call.get::<ConnPeer>()) {
            (Some(Admitted::Downstream), Some(peer)) => self.callers.downstream(peer).map_err(refuse),
            _ => Err(misrouted()),
        }
    }

    /// The operator or holder of a role that [`authorize`] let in, as it stands now that its whole request has arrived. What
    /// it may do is to be asked of it for each thing that it acts on.
    fn actor(&self, call: &Extensions) -> Result<Actor, Status> {
        match (call.get(), call.get::<ConnPeer>()) {
            (Some(Admitted::Operator | Admitted::Holder), Some(peer)) => {
                self.callers.actor(peer).map_err(refuse)
            }
            _ => Err(misrouted()),
        }
    }

    /// Puts on record what was done. It is done, and lasts: a record that fails does not undo it.
    async fn note(&self, done: impl Into<Done>, by: &By) {
        self.note_all(vec![done.into()], by).await;
    }

    /// The same for what was done together.
    async fn note_all(&self, done: Vec<Done>, by: &By) {
        if let Err(error) = self.record.note_all(done, by.clone()).await {
            let error: &dyn std::error::Error = &error;
            let caller = &by.caller;
            tracing::error!(
                error,
                caller,
                "what was done is not on record yet: a backup restored now would not know of it"
            );
        }
    }

    /// Puts on record which foreign bundles were set.
    async fn note_bundles(&self, set: Vec<TrustDomain>, by: &By) {
        self.note_all(Done::to_each(&set, Act::SetBundles), by).await;
    }

    /// Puts on record what was refused to the caller among the items of a batch, all of it as one refusal.
    fn note_refused<'a>(&self, call: &Extensions, refusals: impl Iterator<Item = &'a Refusal>) {
        let mut refusals = refusals.filter_map(deniedness);
        let (Some(first), Some(peer)) = (refusals.next(), call.get::<ConnPeer>()) else { return };
        let why = match refusals.count() {
            0 => first.public.clone(),
            more => format!("{} (and {more} more items of the batch)", first.public),
        };
        let method = call.get::<Called>().map_or("", |called| called.0);
        self.refusals.refused(peer, method, first.reason, &why);
    }

    /// The local process that [`authorize`] let in.
    fn local(&self, call: &Extensions) -> Result<LocalCaller, Status> {
        match (call.get(), call.get::<ConnPeer>()) {
            (Some(Admitted::Local), Some(peer)) => self.callers.local(peer).map_err(refuse),
            _ => Err(misrouted()),
        }
    }
}

/// Who has something done in `call`, how, from where and by which right, as the record shows it.
fn by(call: &Extensions, caller: &impl Rightful) -> By {
    By {
        caller: caller.to_string(),
        method: call.get::<Called>().map(|called| called.0.to_owned()),
        from: call.get::<ConnPeer>().map(place_of),
        right: Some(caller.right()),
    }
}

/// The refusals among outcomes.
fn refusals<T>(outcomes: &[Result<T, Refusal>]) -> impl Iterator<Item = &Refusal> {
    outcomes.iter().filter_map(|outcome| outcome.as_ref().err())
}

/// The SPIFFE ID of what was done to one agent, entry or alias.
fn about(act: Act, subject: SpiffeId) -> Done {
    Done { act, subjects: vec![subject] }
}

/// What an answer to a batch has left for details, besides the short answer that every item is sure of. A client that
/// cannot read the answer does not know what was done.
struct Room(usize);

impl Room {
    fn of(items: usize) -> Self {
        Self(RESPONSE.saturating_sub(items.saturating_mul(BATCH_ITEM)))
    }

    /// Whether an item fits in whole.
    fn takes(&mut self, item: &impl Message) -> bool {
        // Tag and length of a repeated message take at most six bytes more.
        let more = (item.encoded_len() + 6).saturating_sub(BATCH_ITEM);
        let left = self.0.checked_sub(more);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// A method and its row in the table do not agree.
fn misrouted() -> Status {
    Status::permission_denied("authorization denied")
}
