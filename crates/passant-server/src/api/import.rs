//! How is passant.import.v1.Import answered?

use std::collections::BTreeSet;

use passant_core::limits::{ENTRY_SELECTORS, SELECTOR_KIND_BYTES};
use passant_core::serial::Serial;
use passant_core::{Refusal, SpiffeId, TrustDomain, UnixTime};
use passant_proto::import::import_server::Import;
use passant_proto::import::{
    AdoptAgentsRequest, AdoptAgentsResponse, Adoption, Release, ReleaseAgentsRequest, ReleaseAgentsResponse,
    RemoveAuthoritiesRequest, RemoveAuthoritiesResponse, adopt_agents_response, release_agents_response,
};
use passant_proto::{convert, status, types};
use tonic::{Request, Response, Status, async_trait};

use super::entry::{merged, sorted_out};
use super::{Api, bounded, by, refuse, refuse_item, to_the_end};
use crate::command;
use crate::command::import::ForeignAgent;
use crate::limits::{AGENT_VERSION, BATCH};
use crate::record::{Act, Done};
use crate::restore::id_of_certificate;
use crate::state::State;

#[async_trait]
impl Import for Api {
    async fn adopt_agents(
        &self,
        request: Request<AdoptAgentsRequest>,
    ) -> Result<Response<AdoptAgentsResponse>, Status> {
        let caller = self.local(request.extensions())?;
        let (api, by) = (self.clone(), by(request.extensions(), &caller));
        let AdoptAgentsRequest { agents, dry_run } = request.into_inner();
        bounded(agents.len(), BATCH)?;
        let now = self.host.now();
        let trust_domain = self.journal.state().trust_domain().clone();
        let (agents, places) = sorted_out(agents.into_iter().map(|wire| foreign(wire, &trust_domain)));
        let ids: Vec<(SpiffeId, bool)> =
            agents.iter().map(|agent| (agent.id.clone(), agent.serial.is_none())).collect();
        let adopted = if dry_run {
            command::import::adopt(&self.journal.state(), agents, now).1
        } else {
            let adopt = move |state: &State| Ok(command::import::adopt(state, agents, now));
            to_the_end(async move {
                let adopted = api.journal.submit(adopt).await?;
                let is_change = |outcome: &Result<command::import::Adoption, Refusal>| {
                    use command::import::Adoption::{New, Refreshed};
                    matches!(outcome, Ok(New | Refreshed))
                };
                let changed = ids.into_iter().zip(&adopted).filter(|(_, outcome)| is_change(outcome));
                let (banned, taken): (Vec<_>, Vec<_>) =
                    changed.map(|(agent, _)| agent).partition(|(_, is_banned)| *is_banned);
                let ids = |agents: Vec<(SpiffeId, bool)>| -> Vec<SpiffeId> {
 agents.into_iter().map(|(id, _)| id).collect() };
                let counts = (taken.len(), banned.len());
                if counts != (0, 0) {
                    tracing::info!(%caller, agents = counts.0, banned = counts.1, "adopted agents of another server");
                }
                if counts.0 > 0 {
                    api.note_all(Done::to_each(&ids(taken), Act::AdoptAgents), &by).await;
                }
                if counts.1 > 0 {
                    api.note_all(Done::to_each(&ids(banned), Act::BanAgents), &by).await;
                }
                Ok(adopted)
            })
            .await?
        };
        let results = merged(places, adopted).map(|outcome| {
            let (status, adoption) = match outcome {
                Ok(adoption) => (status::ok(), told_adoption(adoption)),
                Err(refusal) => (refuse_item(refusal), Adoption::Unspecified),
            };
            adopt_agents_response::Result { status: Some(status), adoption: adoption.into() }
        });
        Ok(Response::new(AdoptAgentsResponse {
            results: results.collect(),
            node_attestors: self.attestation.methods().map(str::to_owned).collect(),
        }))
    }

    async fn release_agents(
        &self,
        request: Request<ReleaseAgentsRequest>,
    ) -> Result<Response<ReleaseAgentsResponse>, Status> {
        let caller = self.local(request.extensions())?;
        let (api, by) = (self.clone(), by(request.extensions(), &caller));
        let ReleaseAgentsRequest { ids, dry_run } = request.into_inner();
        bounded(ids.len(), BATCH)?;
        let trust_domain = self.journal.state().trust_domain().clone();
        let (ids, places) = sorted_out(ids.iter().map(|id| {
            convert::id::agent_from_wire(&trust_domain, Some(id))
                .map_err(|malformed| malformed.during("invalid agent ID").into())
        }));
        let released = if dry_run {
            command::import::release(&self.journal.state(), ids).1
        } else {
            let asked = ids.clone();
            let release = move |state: &State| Ok(command::import::release(state, ids));
            to_the_end(async move {
                let released = api.journal.submit(release).await?;
                let is_done =
                    |outcome: &Result<_, Refusal>| matches!(outcome, Ok(command::import::Release::Done));
                let gone: Vec<SpiffeId> = asked
                    .into_iter()
                    .zip(&released)
                    .filter(|(_, outcome)| is_done(outcome))
                    .map(|(id, _)| id)
                    .collect();
                if !gone.is_empty() {
                    tracing::info!(%caller, agents = gone.len(), "released adopted agents");
                    api.note_all(Done::to_each(&gone, Act::ReleaseAgents), &by).await;
                }
                Ok(released)
            })
            .await?
        };
        let results = merged(places, released).map(|outcome| {
            let (status, release) = match outcome {
                Ok(release) => (status::ok(), told_release(release)),
                Err(refusal) => (refuse_item(refusal), Release::Unspecified),
            };
            release_agents_response::Result { status: Some(status), release: release.into() }
        });
        Ok(Response::new(ReleaseAgentsResponse { results: results.collect() }))
    }

    async fn remove_authorities(
        &self,
        request: Request<RemoveAuthoritiesRequest>,
    ) -> Result<Response<RemoveAuthoritiesResponse>, Status> {
        let caller = self.local(request.extensions())?;
        let (api, by) = (self.clone(), by(request.extensions(), &caller));
        let RemoveAuthoritiesRequest { x509_authorities, jwt_authorities, dry_run } = request.into_inner();
        bounded(x509_authorities.len().max(jwt_authorities.len()), BATCH)?;
        let x509: BTreeSet<Vec<u8>> = x509_authorities.into_iter().collect();
        let jwt: BTreeSet<String> = jwt_authorities.into_iter().collect();
        let removed = if dry_run {
            command::import::remove_authorities(&self.journal.state(), &x509, &jwt).map_err(refuse)?.1
        } else {
            let remove = move |state: &State| command::import::remove_authorities(state, &x509, &jwt);
            to_the_end(async move {
                let removed = api.journal.submit(remove).await?;
                if !removed.x509.is_empty() || !removed.jwt.is_empty() {
                    let x509 = removed.x509.iter().filter_map(|one| id_of_certificate(&one.der)).collect();
                    let jwt = removed.jwt.iter().map(|one| one.key_id.clone()).collect();
                    tracing::info!(%caller, x509 = removed.x509.len(), jwt = removed.jwt.len(), "removed appended authorities");
                    api.note(Act::RemoveAuthorities { x509, jwt }, &by).await;
                }
                Ok(removed)
            })
            .await?
        };
        let count = |some: usize| u32::try_from(some).unwrap_or(u32::MAX);
        Ok(Response::new(RemoveAuthoritiesResponse {
            x509_removed: count(removed.x509.len()),
            jwt_removed: count(removed.jwt.len()),
        }))
    }
}

/// An agent as the other server lists it, checked as if that server could not be believed.
fn foreign(wire: types::Agent, trust_domain: &TrustDomain) -> Result<ForeignAgent, Refusal> {
    let id = convert::id::agent_from_wire(trust_domain, wire.id.as_ref())
        .map_err(|malformed| malformed.during("invalid agent ID"))?;
    let attestation_type = wire.attestation_type;
    is_text(&attestation_type, SELECTOR_KIND_BYTES, "attestation_type")?;
    if attestation_type.is_empty() {
        return Err(Refusal::invalid("attestation_type is missing"));
    }
    is_text(&wire.agent_version, AGENT_VERSION, "agent_version")?;
    if wire.selectors.len() > ENTRY_SELECTORS {
        return Err(Refusal::invalid(format!("selectors: more than {ENTRY_SELECTORS}")));
    }
    let selectors =
        convert::selector::from_wire(&wire.selectors).map_err(|malformed| malformed.during("selectors"))?;
    let serial = if wire.banned {
        None
    } else {
        let serial = Serial::from_decimal(&wire.x509svid_serial_number);
        Some(serial.map_err(|error| Refusal::invalid(format!("x509svid_serial_number: {error}")))?)
    };
    if wire.x509svid_expires_at < 0 {
        return Err(Refusal::invalid("x509svid_expires_at is negative"));
    }
    Ok(ForeignAgent {
        id,
        attestation_type,
        serial,
        not_after: UnixTime::from_secs(wire.x509svid_expires_at),
        selectors,
        can_reattest: wire.can_reattest,
        agent_version: Some(wire.agent_version).filter(|version| !version.is_empty()),
    })
}

fn is_text(text: &str, most: usize, field: &str) -> Result<(), Refusal> {
    if text.len() > most {
        return Err(Refusal::invalid(format!("{field} is longer than {most} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::invalid(format!("{field} has a control character")));
    }
    Ok(())
}

fn told_adoption(adoption: command::import::Adoption) -> Adoption {
    match adoption {
        command::import::Adoption::New => Adoption::New,
        command::import::Adoption::Refreshed => Adoption::Refreshed,
        command::import::Adoption::Unchanged => Adoption::Unchanged,
        command::import::Adoption::Kept => Adoption::Kept,
    }
}

fn told_release(release: command::import::Release) -> Release {
    match release {
        command::import::Release::Done => Release::Done,
        command::import::Release::Gone => Release::Gone,
        command::import::Release::Moved => Release::Moved,
    }
}
