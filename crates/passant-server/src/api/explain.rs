//! How is passant.explain.v1.Explain answered?

use passant_core::{Refusal, SpiffeId};
use passant_proto::convert::{explanation, selector};
use passant_proto::explain::explain_server::Explain;
use passant_proto::explain::{ExplainRequest, Explanation};
use tonic::{Request, Response, Status, async_trait};

use super::{Api, refuse};
use crate::access::{Target, Verb};
use crate::explain::{Question, Scene, explain};

#[async_trait]
impl Explain for Api {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Explanation>, Status> {
        let (_, call, request) = request.into_parts();
        let actor = self.actor(&call)?;
        let state = self.journal.state();
        actor.may(Verb::IdentityExplain, &Target::Whole, &state).map_err(refuse)?;
        let question = question(&request).map_err(refuse)?;
        // One at a time: it may read all entries, and nobody is in that much of a hurry.
        let _turn = self.explanations.acquire().await.map_err(|error| refuse(Refusal::internal(error)))?;
        let api = self.clone();
        let told = tokio::task::spawn_blocking(move || api.explained(&question)).await;
        let told = told.map_err(|error| refuse(Refusal::internal(error)))?;
        Ok(Response::new(told))
    }
}

impl Api {
    fn explained(&self, question: &Question) -> Explanation {
        let (state, fetches) = (self.journal.state(), self.federation.statuses());
        let last_sync = question.agent.as_ref().and_then(|agent| self.authorities.reach().last_fetch(agent));
        let scene = Scene {
            state: &state,
            now: self.host.now(),
            store_fault: self.journal.fault(),
            record_fault: self.record.fault(),
            fetches: &fetches,
            last_sync,
        };
        explanation::to_wire(explain(question, &scene))
    }
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
