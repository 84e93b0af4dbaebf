//! How does an Envoy get its X509-SVID and the bundles, by its own protocol?
//!
//! Envoy's secret discovery, version 3, on the same socket and with the same path of a request as the Workload API; only
//! the security header is not asked for, which Envoys do not send. What is served, by which names, and what a name that is
//! not the caller's is answered with, is as SPIRE's agent has it.
//!
//! | question | file |
//! |---|---|
//! | what does a request ask for? | `wanted` |
//! | which secrets are that, of what the caller may see? | `secrets` |
//! | what was said on a stream, and is there anything new to say? | `dialogue` |
//! | who hears of it when? | here |

mod dialogue;
mod secrets;
mod wanted;

use std::sync::Arc;

use passant_proto::convert::sds::answer;
use passant_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use passant_proto::secret::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use self::dialogue::{Dialogue, Heard};
use self::secrets::Found;
use self::wanted::Wanted;
use super::caller::{Caller, attestation_failed};
use super::follow::{self, Call, no_identity};
use super::latest::{Messages, Teller, latest};
use super::limits::{LOOK_AGAIN, SECRET_ERROR_SHOWN, SECRET_NAMES_SHOWN, SECRET_REQUEST_BYTES};
use super::under_way::Place;
use super::{Service, Shared};
use crate::cache::Identities;
use crate::config::Sds;

/// The name of the service.
pub const SERVICE: &str = "envoy.service.secret.v3.SecretDiscoveryService";

/// Secret discovery, as `sds` says.
pub(super) fn server(shared: &Arc<Shared>, sds: Sds) -> SecretDiscoveryServiceServer<Secrets> {
    let service = Service { shared: Arc::clone(shared) };
    let secrets = Secrets { service, sds: Arc::new(sds) };
    SecretDiscoveryServiceServer::new(secrets).max_decoding_message_size(SECRET_REQUEST_BYTES)
}

pub(super) struct Secrets {
    service: Service,
    sds: Arc<Sds>,
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Messages<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let place = request.extensions().get::<Place>().cloned();
        let place = place.ok_or_else(|| Status::internal("call has no place among those under way"))?;
        let (call, requests) = self.service.admit(request)?;
        let identities = follow::open(call.clone(), |identities| Some(Arc::clone(identities))).await?;
        let (teller, messages) = latest();
        let talk = Talk { call, sds: Arc::clone(&self.sds), place, dialogue: Dialogue::default() };
        tokio::spawn(talk.go_on(requests, identities, teller));
        Ok(Response::new(messages))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let (call, message) = self.service.admit(request)?;
        let (wanted, client) = (Wanted::parse(&message)?, dialogue::client(&message));
        let identities = follow::once(call.clone()).await?;
        let validator = client.validator(self.sds.disable_spiffe_cert_validation);
        let found = secrets::find(&wanted, validator, &self.sds, &identities)?;
        if !found.missing.is_empty() {
            judge(&call, &self.sds, &found.missing).await?;
            return Err(Status::unavailable("not all of these secrets are there yet; ask again"));
        }
        Ok(Response::new(answer(String::new(), String::new(), found.to_wire())))
    }

    async fn delta_secrets(
        &self,
        _request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("secrets are not offered as deltas: configure api_type GRPC"))
    }
}

/// One open stream.
struct Talk {
    call: Call,
    sds: Arc<Sds>,
    place: Place,
    dialogue: Dialogue,
}

impl Talk {
    /// Answers what is asked, and again at each change of it, until the caller leaves or has no identity any more.
    async fn go_on(
        mut self,
        mut requests: Streaming<DiscoveryRequest>,
        mut identities: Messages<Result<Arc<Identities>, Status>>,
        teller: Teller<Result<DiscoveryResponse, Status>>,
    ) {
        let mut seen = None;
        let mut is_asking = true;
        loop {
            tokio::select! {
                biased;
                () = teller.left() => return,
                next = identities.next() => match next {
                    Some(Ok(identities)) => seen = Some(identities),
                    Some(Err(status)) => return teller.tell(Err(status)),
                    None => return,
                },
                request = requests.message(), if is_asking => match request {
                    Ok(Some(request)) => {
                        self.place.let_go();
                        if let Err(status) = self.hear(&request) {
                            return teller.tell(Err(status));
                        }
                    }
                    // What was asked before the end is answered.
                    Ok(None) => is_asking = false,
                    Err(status) => return teller.tell(Err(status)),
                },
            }
            if let Some(identities) = &seen {
                match self.answer(identities).await {
                    Ok(Some(response)) => teller.tell(Ok(response)),
                    Ok(None) => {}
                    Err(status) => return teller.tell(Err(status)),
                }
            }
            if !is_asking && !self.dialogue.is_waited_for() {
                return;
            }
        }
    }

    /// Takes note of a request.
    fn hear(&mut self, request: &DiscoveryRequest) -> Result<(), Status> {
        let Call { shared, caller } = &self.call;
        match self.dialogue.hear(request)? {
            Heard::Taken => {}
            Heard::Stale => debug!(pid = pid(caller), "request follows an older answer, and is passed over"),
            Heard::Rejected => {
                shared.metrics.rejected_secrets.inc();
                if let Some(left_out) = shared.rejected_secrets.line(caller.uid()) {
                    let error = request.error_detail.as_ref().map_or("", |detail| detail.message.as_str());
                    let error = cut(error, SECRET_ERROR_SHOWN);
                    let (pid, names) = (pid(caller), shown(&request.resource_names));
                    warn!(
                        pid,
                        uid = caller.uid(),
                        names,
                        ?error,
                        left_out,
                        "client has rejected its secrets"
                    );
                }
            }
        }
        Ok(())
    }

    /// What is new for the client.
    async fn answer(&mut self, identities: &Identities) -> Result<Option<DiscoveryResponse>, Status> {
        let Some(Found { resources, missing }) = self.dialogue.find(&self.sds, identities)? else {
            return Ok(None);
        };
        if !missing.is_empty() {
            judge(&self.call, &self.sds, &missing).await?;
            debug!(pid = pid(&self.call.caller), names = shown(&missing), "secrets are not there yet");
        }
        Ok(self.dialogue.tell(resources, &self.call.shared.host))
    }
}

/// Whether the caller may come to have the secrets `missing`: of an entry of its own that has no X509-SVID yet, or of a
/// trust domain it federates with whose bundle is not held yet.
///
/// # Errors
/// InvalidArgument for a name that is not the caller's, whether or not it exists; Unavailable if that is not known.
async fn judge(call: &Call, sds: &Sds, missing: &[String]) -> Result<(), Status> {
    let evidence = call.evidence(LOOK_AGAIN).await?;
    if call.is_stopped() {
        return Err(no_identity(call, &evidence));
    }
    let cache = &call.shared.cache;
    let entries = cache.entries(&evidence.selectors);
    let may_come = |name: &String| {
        [&sds.default_bundle_name, &sds.default_all_bundles_name].contains(&name)
            || cache.trust_domain().id().as_str() == name
            || entries.iter().any(|entry| {
                entry.spiffe_id.as_str() == name
                    || entry.federates_with.iter().any(|trust_domain| trust_domain.id().as_str() == name)
            })
    };
    let foreign: Vec<&String> = missing.iter().filter(|name| !may_come(name)).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    if evidence.is_partial {
        // An attestor that failed might have found what an entry asks for.
        return Err(attestation_failed());
    }
    if !cache.is_confirmed() {
        return Err(Status::unavailable("agent has not heard of its server lately; ask again"));
    }
    let names = shown(&foreign);
    if let Some(left_out) = call.shared.refused_secrets.line(call.caller.uid()) {
        let (pid, uid) = (pid(&call.caller), call.caller.uid());
        info!(pid, uid, names, left_out, "secrets were asked for that are not this workload's");
    }
    // SPIRE's words.
    let refused = format!("workload is not authorized for the requested identities {names}");
    Err(Status::invalid_argument(refused))
}

fn pid(caller: &Caller) -> u32 {
    caller.process().map_or(0, |(pid, _)| pid)
}

/// The first of `names`, for logs and answers.
fn shown(names: &[impl AsRef<str>]) -> String {
    let some: Vec<String> =
        names.iter().take(SECRET_NAMES_SHOWN).map(|name| format!("{:?}", name.as_ref())).collect();
    match names.len() - some.len() {
        0 => format!("[{}]", some.join(" ")),
        more => format!("[{} and {more} more]", some.join(" ")),
    }
}

/// `text` with at most `most` of its characters.
fn cut(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(at, _)| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_write_is_shown_in_part() {
        assert_eq!(shown(&["a", "b\n"]), r#"["a" "b\n"]"#);
        let many: Vec<String> = (0..SECRET_NAMES_SHOWN + 2).map(|it| it.to_string()).collect();
        assert!(shown(&many).ends_with(" and 2 more]"), "{}", shown(&many));
        assert_eq!(shown(&[""; 0]), "[]");
        assert_eq!((cut("äöü", 2), cut("äöü", 3), cut("", 0)), ("äö", "äöü", ""));
    }
}
