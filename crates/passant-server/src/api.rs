//! Which services does the server offer, and what do their methods share?
//!
//! A method decodes, calls and encodes; what is decided stands in `command`, `query`, `issue` and `attest_node`, and who
//! may call in [`authorize`].

mod agent;
pub(crate) mod authorize;
mod bundle;
mod entry;
mod svid;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use passant_core::{Host, Refusal};
use passant_proto::agent::agent_server::AgentServer;
use passant_proto::bundle::bundle_server::BundleServer;
use passant_proto::entry::entry_server::EntryServer;
use passant_proto::status;
use passant_proto::svid::svid_server::SvidServer;
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::attest_node::NodeAttestation;
use crate::authority::Authorities;
use crate::caller::{AgentCaller, Callers, OperatorCaller};
use crate::issue::Issuer;
use crate::journal::Journal;
use crate::limits::{BATCH, MESSAGE, STRANGERS_MESSAGE};
use authorize::Admitted;

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
    pub(crate) host: Host,
}

impl Api {
    /// All services, with SPIRE's names and numbers.
    pub(crate) fn routes(self) -> Routes {
        let (agent, bundle) = (AgentServer::new(self.clone()), BundleServer::new(self.clone()));
        let (entry, svid) = (EntryServer::new(self.clone()), SvidServer::new(self));
        Routes::default()
            .add_service(
                agent.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(
                bundle.max_decoding_message_size(STRANGERS_MESSAGE).max_encoding_message_size(MESSAGE),
            )
            .add_service(entry.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .add_service(svid.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE))
            .prepare()
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
    status::to_status(&refusal)
}

/// The status of one item of a batch, after its cause went to the log.
fn refuse_item(refusal: Refusal) -> passant_proto::types::Status {
    let item = status::to_item(&refusal);
    drop(refuse(refusal));
    item
}

/// Refuses a batch that no client needs.
fn bounded(items: usize) -> Result<(), Status> {
    if items > BATCH {
        return Err(Status::resource_exhausted(format!("{items} items in one batch; send at most {BATCH}")));
    }
    Ok(())
}

/// The agent that [`authorize`] let in.
fn agent<T>(request: &Request<T>) -> Result<AgentCaller, Status> {
    match request.extensions().get() {
        Some(Admitted::Agent(agent)) => Ok(agent.clone()),
        Some(Admitted::Anyone | Admitted::Operator(_) | Admitted::Downstream) | None => Err(misrouted()),
    }
}

/// The operator that [`authorize`] let in.
fn operator<T>(request: &Request<T>) -> Result<OperatorCaller, Status> {
    match request.extensions().get() {
        Some(Admitted::Operator(operator)) => Ok(operator.clone()),
        Some(Admitted::Anyone | Admitted::Agent(_) | Admitted::Downstream) | None => Err(misrouted()),
    }
}

/// A method and its row in the table do not agree.
fn misrouted() -> Status {
    Status::permission_denied("authorization denied")
}
