//! How is passant.stop.v1.Stop answered?

mod rollout;

use std::sync::Arc;
use std::time::Duration;

use passant_core::{EntryId, Refusal, SpiffeId, Stop, StopReason, StopTarget};
use passant_proto::convert::stop::{reason_from_wire, status_to_wire, target_from_wire};
use passant_proto::stop::stop_server;
use passant_proto::stop::{
    AwaitRolloutRequest, AwaitRolloutResponse, ListStopsRequest, ListStopsResponse, ResumeRequest,
    ResumeResponse, StopRequest, StopResponse, StopStatus, Target,
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, by, refuse, to_the_end};
use crate::caller::Actor;
use crate::command::stop::{self, Stopped, Wanted};
use crate::limits::{RESPONSE, ROLLOUT_ENTRIES, ROLLOUT_WITHIN, STOPS_PAGE};
use crate::query::Paging;
use crate::record::{Act, Done};
use crate::state::{Revision, State};
use rollout::{Concerned, Written};

#[async_trait]
impl stop_server::Stop for Api {
    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let (_, call, StopRequest { target, reason, wait_millis }) = request.into_parts();
        let actor = self.actor(&call)?;
        let (target, reason, until) = self.parsed(target.as_ref(), &reason, wait_millis)?;
        let by = by(&call, &actor);
        let wanted = Wanted { target, id: self.host.uuid(), reason, by: actor.to_string() };
        let (api, may) = (self.clone(), actor.clone());
        let stopped = to_the_end(async move {
            let host = api.host.clone();
            // Others may have to be written before.
            let command = move |state: &State| stop::stop(state, wanted, &may, host.now());
            let stopped = api.journal.submit(command).await?;
            if stopped.is_new {
                api.watches.hub.is_in_force(&stopped.stop);
                let Stop { target, reason, .. } = &*stopped.stop;
                tracing::info!(%target, %reason, caller = by.caller, "stopped");
                api.note(noted(&stopped, Act::Stop(Arc::clone(&stopped.stop))), &by).await;
            }
            Ok(stopped)
        })
        .await?;
        let Stopped { stop, is_new, .. } = stopped;
        let concerned = self.concerned_by(&stop, &self.journal.state());
        let rollout = self.come_to(&concerned, Revision::new(stop.revision), until, &actor).await;
        Ok(Response::new(StopResponse { stop: Some(status_to_wire(&stop, rollout)), created: is_new }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let (_, call, ResumeRequest { target, reason, wait_millis }) = request.into_parts();
        let actor = self.actor(&call)?;
        let (target, reason, until) = self.parsed(target.as_ref(), &reason, wait_millis)?;
        let by = by(&call, &actor);
        let (api, may) = (self.clone(), actor.clone());
        let (ended, revision) = to_the_end(async move {
            let resume = move |state: &State| {
                let revision = state.cursor().revision.next();
                stop::resume(state, &target, &may).map(|(changes, ended)| (changes, (ended, revision)))
            };
            let (ended, revision) = api.journal.submit(resume).await?;
            let Stop { target, id, .. } = &*ended.stop;
            tracing::info!(%target, %reason, caller = by.caller, "stop ended");
            let act = Act::Resume { target: target.clone(), stop_id: id.clone(), reason };
            api.note(noted(&ended, act), &by).await;
            Ok((ended, revision))
        })
        .await?;
        let (state, now) = (self.journal.state(), self.host.now());
        let concerned = Concerned::by_resume(&ended.stop, &state, now, self.issuer.ttls());
        let rollout = self.come_to(&concerned, revision, until, &actor).await;
        Ok(Response::new(ResumeResponse { stop_id: ended.stop.id.clone(), rollout: Some(rollout) }))
    }

    async fn list_stops(
        &self,
        request: Request<ListStopsRequest>,
    ) -> Result<Response<ListStopsResponse>, Status> {
        let (_, call, request) = request.into_parts();
        let actor = self.actor(&call)?;
        let state = self.journal.state();
        let only = request.target.as_ref().map(|target| target_from_wire(state.trust_domain(), Some(target)));
        let only = only.transpose().map_err(|malformed| refuse(malformed.into()))?;
        let most = i32::try_from(STOPS_PAGE).unwrap_or(i32::MAX);
        let size = if request.page_size <= 0 { most } else { request.page_size.min(most) };
        let paging = Paging::parse(size, &request.page_token).map_err(refuse)?;
        let api = self.clone();
        // Whom each concerns is found among all nodes: not on the I/O threads.
        let page = tokio::task::spawn_blocking(move || {
            let mut stops: Vec<(String, &Arc<Stop>)> = match &only {
                Some(target) => state.stop(target).into_iter().map(|stop| (place_of(stop), stop)).collect(),
                None => state.stops().map(|stop| (place_of(stop), stop)).collect(),
            };
            stops.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            let found = stops
                .into_iter()
                .filter(|(place, _)| paging.after().is_none_or(|after| place.as_str() > after))
                .filter(|(_, stop)| stop::sees(&state, &stop.target, &actor))
                .map(|(place, stop)| (place, api.status_of(stop, &state, &actor)));
            paging.fill(found, |(place, _)| place.as_str(), |(_, told)| told.encoded_len(), RESPONSE)
        })
        .await
        .map_err(|lost| refuse(Refusal::internal(lost)))?
        .map_err(refuse)?;
        let stops = page.items.into_iter().map(|(_, told)| told).collect();
        Ok(Response::new(ListStopsResponse { stops, next_page_token: page.next }))
    }

    async fn await_rollout(
        &self,
        request: Request<AwaitRolloutRequest>,
    ) -> Result<Response<AwaitRolloutResponse>, Status> {
        let (_, call, AwaitRolloutRequest { entry_ids, parent_ids, wait_millis }) = request.into_parts();
        let actor = self.actor(&call)?;
        let until = waits(wait_millis)?;
        if entry_ids.len() > ROLLOUT_ENTRIES || parent_ids.len() > ROLLOUT_ENTRIES {
            let most =
                format!("more than {ROLLOUT_ENTRIES} entries to wait for: wait for everything, without any");
            return Err(Status::resource_exhausted(most));
        }
        let ids = entry_ids.iter().map(|id| EntryId::parse(id)).collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| Status::invalid_argument(format!("entry_ids: {error}")))?;
        let parents = parent_ids.iter().map(|id| SpiffeId::parse(id)).collect::<Result<Vec<_>, _>>();
        let parents = parents.map_err(|error| Status::invalid_argument(format!("parent_ids: {error}")))?;
        let state = self.journal.state();
        let (revision, now, ttls) = (state.cursor().revision, self.host.now(), self.issuer.ttls());
        let may = actor.clone();
        let find = move || {
            let seen = ids.iter().map(|id| state.entry(id).filter(|entry| may.sees(entry)));
            Written::of(seen, parents).concerned(&state, now, ttls)
        };
        let concerned =
            tokio::task::spawn_blocking(find).await.map_err(|lost| refuse(Refusal::internal(lost)))?;
        let rollout = self.come_to(&concerned, revision, until, &actor).await;
        Ok(Response::new(AwaitRolloutResponse { rollout: Some(rollout) }))
    }
}

impl Api {
    fn parsed(
        &self,
        target: Option<&Target>,
        reason: &str,
        wait_millis: u32,
    ) -> Result<(StopTarget, StopReason, Instant), Status> {
        let malformed = |malformed: passant_proto::convert::Malformed| refuse(malformed.into());
        let target = target_from_wire(self.journal.state().trust_domain(), target).map_err(malformed)?;
        Ok((target, reason_from_wire(reason).map_err(malformed)?, waits(wait_millis)?))
    }

    fn concerned_by(&self, stop: &Stop, state: &State) -> Concerned {
        let in_force = self.watches.hub.in_force_since(stop);
        Concerned::by_stop(stop, in_force, state, self.host.now(), self.issuer.ttls())
    }

    /// Waits until a change has come to all whom it concerns, and then tells `actor` how far it has come.
    async fn come_to(
        &self,
        concerned: &Concerned,
        revision: Revision,
        until: Instant,
        actor: &Actor,
    ) -> passant_proto::stop::Rollout {
        let host = self.host.clone();
        let (agents, now) = (concerned.agents(), move || host.now());
        let came = self.watches.hub.rolled_out(&agents, revision, concerned.needs, until, now).await;
        concerned.told(came, actor, &self.journal.state(), self.host.now())
    }

    fn status_of(&self, stop: &Stop, state: &State, actor: &Actor) -> StopStatus {
        let (concerned, now) = (self.concerned_by(stop, state), self.host.now());
        let (agents, revision) = (concerned.agents(), Revision::new(stop.revision));
        let came = self.watches.hub.rollout(&agents, revision, concerned.needs, now);
        status_to_wire(stop, concerned.told(came, actor, state, now))
    }
}

/// Where a stop stands in the list: behind those that are older.
fn place_of(stop: &Stop) -> String {
    format!("{:020} {}", stop.since.secs().max(0), stop.id)
}

fn noted(stopped: &Stopped, act: Act) -> Done {
    Done { act, subjects: stopped.subject.iter().cloned().collect() }
}

/// The end of a wait that begins now.
fn waits(millis: u32) -> Result<Instant, Status> {
    let wait = Duration::from_millis(millis.into());
    if wait > ROLLOUT_WITHIN {
        let most = ROLLOUT_WITHIN.as_millis();
        return Err(Status::invalid_argument(format!("wait_millis: at most {most} are waited")));
    }
    Ok(Instant::now() + wait)
}
