//! How is passant.explain.v1.Explain answered?

use std::sync::Arc;

use passant_core::{Refusal, SpiffeId};
use passant_proto::convert::{explanation, selector};
use passant_proto::explain::explain_server::Explain;
use passant_proto::explain::{ExplainRequest, Explanation};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, refuse};
use crate::access::{Target, Verb};
use crate::explain::{Question, Scene, explain};
use crate::limits::RESPONSE;
use crate::metrics::Limit;
use crate::quota::Until;

#[async_trait]
impl Explain for Api {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let (_, call, request) = request.into_parts();
        let actor = self.actor(&call)?;
        let state = self.journal.state();
        actor.may(Verb::IdentityExplain, &Target::Whole, &state).map_err(refuse)?;
        let question = question(&request).map_err(refuse)?;
        let (api, is_operator) = (self.clone(), actor.is_operator());
        // One at a time, unless the configuration says otherwise: it may read all entries, and nobody is in that much of a hurry.
        let turn = Arc::clone(&self.explanations).acquire_owned();
        let until = call.get::<Until>().copied().unwrap_or_else(|| self.quotas.until());
        let turn = tokio::time::timeout_at(until.0, turn).await;
        let turn = turn.map_err(|_| refuse(self.quotas.crowded(Limit::Explanations)))?;
        let turn = turn.map_err(|error| refuse(Refusal::internal(error)))?;
        let told = in_turn(turn, move || api.explained(&question, is_operator)).await;
        Ok(Response::new(told.map_err(refuse)?))
    }
}

/// What `work` gives. Work that has begun cannot be stopped, so it keeps its turn to its end, though whoever asked has left.
async fn in_turn<T: Send + 'static>(
    turn: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.map_err(Refusal::internal)
}

impl Api {
    fn explained(&self, question: &Question, is_for_operator: bool) -> Explanation {
        let (state, fetches) = (self.journal.state(), self.federation.statuses());
        let last_sync = question.agent.as_ref().and_then(|agent| match self.watches.hub.is_current(agent) {
            true => Some(self.host.now()),
            false => self.authorities.reach().last_fetch(agent),
        });
        let scene = Scene {
            state: &state,
            now: self.host.now(),
            store_fault: self.journal.fault(),
            record_fault: self.record.fault(),
            fetches: &fetches,
            last_sync,
            is_for_operator,
        };
        fitting(explanation::to_wire(explain(question, &scene)))
    }
}

/// As much as one response holds, the most telling first: selectors may be long.
fn fitting(mut told: Explanation) -> Explanation {
    while told.encoded_len() > RESPONSE && told.candidates.pop().is_some() {
        told.candidates_left_out = told.candidates_left_out.saturating_add(1);
    }
    while told.encoded_len() > RESPONSE && told.causes.pop().is_some() {}
    told
}

fn question(request: &ExplainRequest) -> Result<Question, Refusal> {
    let id = |text: &str, what: &str| match text {
        "" => Ok(None),
        text => SpiffeId::parse(text)
            .map(Some)
            .map_err(|error| Refusal::invalid(format!("{what}: {error}")).because(error)),
    };
    let question = Question {
        spiffe_id: id(&request.spiffe_id, "spiffe_id")?,
        selectors: selector::from_wire(&request.selectors)?,
        agent: id(&request.agent_id, "agent_id")?,
    };
    if question.spiffe_id.is_none() && question.selectors.is_empty() && question.agent.is_none() {
        return Err(Refusal::invalid("name a SPIFFE ID, selectors or an agent to explain"));
    }
    Ok(question)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use passant_proto::explain::{Candidate, Cause};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn whoever_leaves_gives_no_turn_back_before_the_work_has_ended() {
        let turns = Arc::new(Semaphore::new(1));
        let (began, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let turn = || Arc::clone(&turns).acquire_owned();
        let asked = turn().await.unwrap();
        let first = tokio::spawn(async move {
            in_turn(asked, move || {
                began.send(()).unwrap();
                may_end.recv().unwrap();
            })
            .await
        });
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert!(turns.try_acquire().is_err(), "it still works");
        end.send(()).unwrap();
        assert_eq!(in_turn(turn().await.unwrap(), || 7).await.unwrap(), 7);
    }

    #[test]
    fn an_answer_fits_a_response() {
        let note = "x".repeat(RESPONSE / 4);
        let candidates = vec![Candidate { note: note.clone(), ..Candidate::default() }; 6];
        let causes = vec![Cause { says: note, ..Cause::default() }; 2];
        let told = fitting(Explanation { causes, candidates, ..Explanation::default() });
        assert_eq!((told.causes.len(), told.candidates.len(), told.candidates_left_out), (2, 1, 5));
        let says = "x".repeat(RESPONSE / 2);
        let causes = vec![Cause { says, ..Cause::default() }; 2];
        assert_eq!(fitting(Explanation { causes, ..Explanation::default() }).causes.len(), 1);
    }
}
