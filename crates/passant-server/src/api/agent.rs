//! How is spire.api.server.agent.v1.Agent answered?

mod attest;

use std::pin::Pin;
use std::time::Duration;

use passant_attest::node::join_token::Token;
use passant_core::{Refusal, SpiffeId};
use passant_proto::agent::agent_server::Agent;
use passant_proto::agent::{
    AttestAgentRequest, AttestAgentResponse, BanAgentRequest, CountAgentsRequest, CountAgentsResponse,
    CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest, ListAgentsResponse,
    PostStatusRequest, PostStatusResponse, RenewAgentRequest, RenewAgentResponse,
};
use passant_proto::convert::filter::AgentFilter;
use passant_proto::convert::{self, mask};
use passant_proto::types;
use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Api, about, by, refuse, to_the_end};
use crate::access::{Target, Verb};
use crate::command;
use crate::limits::{AGENT_VERSION, HOLDERS_TOKEN, RESPONSE};
use crate::query::{self, Paging};
use crate::record::Act;
use crate::state::{AttestedNode, State};

#[async_trait]
impl Agent for Api {
    async fn count_agents(
        &self,
        request: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let filter = AgentFilter::from_count(request.get_ref().filter.as_ref())
            .map_err(|malformed| refuse(malformed.into()))?;
        let state = self.journal.state();
        let seen = query::nodes(&state, &filter, None).filter(|node| actor.sees_agent(&node.id));
        let count = i32::try_from(seen.count()).unwrap_or(i32::MAX);
        Ok(Response::new(CountAgentsResponse { count }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let request = request.get_ref();
        let filter =
            AgentFilter::from_list(request.filter.as_ref()).map_err(|malformed| refuse(malformed.into()))?;
        let paging = Paging::parse(request.page_size, &request.page_token).map_err(refuse)?;
        let state = self.journal.state();
        let found = query::nodes(&state, &filter, paging.after())
            .filter(|node| actor.sees_agent(&node.id))
            .map(|node| (node, shown(node, request.output_mask.as_ref())));
        let page = paging
            .fill(found, |(node, _)| node.id.as_str(), |(_, wire)| wire.encoded_len(), RESPONSE)
            .map_err(refuse)?;
        let agents = page.items.into_iter().map(|(_, wire)| wire).collect();
        Ok(Response::new(ListAgentsResponse { agents, next_page_token: page.next }))
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Result<Response<types::Agent>, Status> {
        let actor = self.actor(request.extensions())?;
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        let state = self.journal.state();
        let not_found = || Refusal::not_found("agent not found");
        let node = state.node(&id).ok_or_else(|| refuse(not_found()))?;
        if !actor.sees_agent(&node.id) {
            let denied = Refusal::denied("no role of the caller reaches the agent");
            return Err(refuse(not_found().because(denied)));
        }
        Ok(Response::new(shown(node, request.get_ref().output_mask.as_ref())))
    }

    async fn delete_agent(&self, request: Request<DeleteAgentRequest>) -> Result<Response<()>, Status> {
        let (api, actor) = (self.clone(), self.actor(request.extensions())?);
        let by = by(request.extensions(), &actor);
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        let (may, evicted) = (actor.clone(), id.clone());
        let evict = move |state: &State| {
            may.may(Verb::AgentEvict, &Target::Agent(&evicted), state)?;
            command::node::evict(state, &evicted)
        };
        to_the_end(async move {
            api.journal.submit(evict).await?;
            tracing::info!(agent = %id, caller = %actor, "agent evicted");
            api.note(Act::EvictAgent(id), &by).await;
            Ok(Response::new(()))
        })
        .await
    }

    async fn ban_agent(&self, request: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        let (api, actor) = (self.clone(), self.actor(request.extensions())?);
        let by = by(request.extensions(), &actor);
        let id = self.agent_id(request.get_ref().id.as_ref())?;
        let (may, banned) = (actor.clone(), id.clone());
        let ban = move |state: &State| {
            may.may(Verb::AgentBan, &Target::Agent(&banned), state)?;
            command::node::ban(state, &banned)
        };
        to_the_end(async move {
            api.journal.submit(ban).await?;
            tracing::info!(agent = %id, caller = %actor, "agent banned");
            api.note(Act::BanAgent(id), &by).await;
            Ok(Response::new(()))
        })
        .await
    }

    type AttestAgentStream = Pin<Box<dyn Stream<Item = Result<AttestAgentResponse, Status>> + Send>>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        attest::answer(self.clone(), request)
    }

    async fn renew_agent(
        &self,
        request: Request<RenewAgentRequest>,
    ) -> Result<Response<RenewAgentResponse>, Status> {
        let agent = self.agent(request.extensions()).await?;
        // An agent that must attest again is told so even if it forgot the CSR: the issuer looks at that first.
        let csr = request.into_inner().params.map(|params| params.csr).unwrap_or_default();
        let issued = self.issuer.renew(&agent, &csr).await.map_err(refuse)?;
        Ok(Response::new(RenewAgentResponse { svid: Some(convert::svid::x509_to_wire(issued.svid(), "")) }))
    }

    async fn post_status(
        &self,
        request: Request<PostStatusRequest>,
    ) -> Result<Response<PostStatusResponse>, Status> {
        let agent = self.agent(request.extensions()).await?;
        let PostStatusRequest { current_bundle_serial, agent_version } = request.into_inner();
        if agent_version.len() > AGENT_VERSION {
            return Err(Status::invalid_argument(format!(
                "agent_version is longer than {AGENT_VERSION} bytes"
            )));
        }
        if agent_version.chars().any(char::is_control) {
            return Err(Status::invalid_argument("agent_version has a control character"));
        }
        if current_bundle_serial > 0 {
            // Nobody has a bundle that was never published.
            let newest = self.journal.state().bundle().map_or(0, |bundle| bundle.sequence);
            let sequence = current_bundle_serial.min(newest);
            self.authorities.reach().saw_bundle(agent.id(), sequence, self.host.now());
        }
        if !agent_version.is_empty() {
            let report = move |state: &_| command::node::report(state, agent.id(), agent_version);
            self.journal.submit(report).await.map_err(refuse)?;
        }
        Ok(Response::new(PostStatusResponse {}))
    }

    /// The token is shown once, here; the server keeps only its hash.
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let actor = self.actor(request.extensions())?;
        let noted = by(request.extensions(), &actor);
        let CreateJoinTokenRequest { ttl, token, agent_id } = request.into_inner();
        let ttl = u64::try_from(ttl).ok().filter(|ttl| *ttl >= 1);
        let ttl = ttl.ok_or_else(|| Status::invalid_argument("ttl is required: give at least 1 second"))?;
        if ttl > HOLDERS_TOKEN.as_secs() && !actor.is_operator() {
            let most = HOLDERS_TOKEN.as_secs();
            return Err(Status::invalid_argument(format!(
                "ttl of a join token by the holder of a role is at most {most} seconds"
            )));
        }
        if !self.join_tokens {
            return Err(refuse(Refusal::precondition(
                "node attestor \"join_token\" is not configured on this server",
            )));
        }
        let alias = agent_id.map(|id| {
            convert::id::workload_from_wire(self.journal.state().trust_domain(), Some(&id))
                .map_err(|malformed| refuse(malformed.during("invalid agent ID").into()))
        });
        let alias = alias.transpose()?;
        let value = if token.is_empty() { self.host.uuid() } else { token };
        let token = Token::parse(&value).map_err(|error| refuse(Refusal::invalid(error.to_string())))?;
        let agent = token
            .agent_id(self.journal.state().trust_domain())
            .map_err(|error| refuse(Refusal::invalid(format!("token: {error}"))))?;
        let expires_at = self.host.now().plus(Duration::from_secs(ttl));
        let hash = token.hash();
        let act = Act::CreateJoinToken { alias: alias.clone(), expires_at };
        let done = alias.clone().map_or_else(|| act.clone().into(), |alias| about(act.clone(), alias));
        let (api, by) = (self.clone(), actor.clone());
        let create = move |state: &State| command::token::create(state, hash, &agent, expires_at, alias, &by);
        to_the_end(async move {
            api.journal.submit(create).await?;
            tracing::info!(caller = %actor, until = %expires_at, "join token created");
            api.note(done, &noted).await;
            Ok(())
        })
        .await?;
        Ok(Response::new(types::JoinToken { value, expires_at: expires_at.secs() }))
    }
}

impl Api {
    fn agent_id(&self, id: Option<&types::Spiffeid>) -> Result<SpiffeId, Status> {
        convert::id::agent_from_wire(self.journal.state().trust_domain(), id)
            .map_err(|malformed| refuse(malformed.during("invalid agent ID").into()))
    }
}

/// The agent as the caller wants to see it.
fn shown(node: &AttestedNode, output: Option<&types::AgentMask>) -> types::Agent {
    let mut wire = types::Agent {
        id: Some(convert::id::to_wire(&node.id)),
        attestation_type: node.attestation_type.clone(),
        x509svid_serial_number: node.serial.as_ref().map(|serial| serial.to_decimal()).unwrap_or_default(),
        x509svid_expires_at: node.not_after.secs(),
        selectors: convert::selector::to_wire(&node.selectors),
        banned: node.is_banned(),
        can_reattest: node.can_reattest,
        agent_version: node.agent_version.clone().unwrap_or_default(),
    };
    mask::agent(&mut wire, output);
    wire
}
