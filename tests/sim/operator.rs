//! What do operators and thieves do to the server?

use std::collections::{BTreeMap, BTreeSet};

use passant_core::host::Keys;
use passant_core::keys::KeyType;
use passant_core::{Entry, SpiffeId, StopTarget, csr};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::attest_agent_request::{Params, Step};
use passant_proto::agent::{
    AgentX509svidParams, AttestAgentRequest, BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest,
    ListAgentsRequest,
};
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest,
};
use passant_proto::stop::stop_client::StopClient;
use passant_proto::stop::{PendingState, ResumeRequest, StopRequest, Target, target};
use passant_proto::types::{self, AttestationData};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::host::KeyShare;
use crate::log::Log;
use crate::net::Road;
use crate::oracle::{Oracle, Told};
use crate::workload::over;

/// Works on the server's own socket, one call after the other, each on a connection of its own.
pub(crate) struct Operator {
    pub(crate) road: Road,
    pub(crate) oracle: Oracle,
    pub(crate) log: Log,
}

/// What a new or changed entry says.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) parent: SpiffeId,
    pub(crate) path: String,
    pub(crate) selectors: Vec<(String, String)>,
    pub(crate) expires_at: i64,
    pub(crate) hint: String,
}

impl Wish {
    fn wire(self, id: String) -> types::Entry {
        types::Entry {
            id,
            spiffe_id: wire_id(self.parent.trust_domain().as_str(), &self.path),
            parent_id: wire_id(self.parent.trust_domain().as_str(), self.parent.path()),
            selectors: self
                .selectors
                .into_iter()
                .map(|(kind, value)| types::Selector { r#type: kind, value })
                .collect(),
            expires_at: self.expires_at,
            hint: self.hint,
            ..Default::default()
        }
    }
}

fn wire_id(trust_domain: &str, path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
}

/// Whether a batch's item was refused for good, so that nothing has changed.
fn is_refused(status: Option<&types::Status>) -> bool {
    status.is_none_or(|status| status.code != 0)
}

fn stands(entry: &types::Entry) -> Told {
    u64::try_from(entry.revision_number).map_or(Told::Nothing, Told::Stands)
}

impl Operator {
    async fn channel(&self) -> Result<Channel, Status> {
        let end = self.road.operate().await.map_err(|error| Status::unavailable(error.to_string()))?;
        over(end).await.map_err(|error| Status::unavailable(error.to_string()))
    }

    pub(crate) async fn create(&self, wish: Wish) {
        let entries = vec![wish.wire(String::new())];
        let Ok(channel) = self.channel().await else { return };
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        // What was made without our hearing of it is nothing that was acknowledged.
        let Ok(answer) = EntryClient::new(channel).batch_create_entry(request).await else {
            return self.log.count("changes not acknowledged");
        };
        for entry in answer.into_inner().results.into_iter().filter_map(|result| result.entry) {
            self.oracle.tell(&entry.id, stands(&entry));
            self.log.count("entries created");
        }
    }

    pub(crate) async fn update(&self, entry: &Entry, wish: Wish) {
        let id = entry.id.as_str();
        let entries = vec![wish.wire(id.to_owned())];
        let Ok(channel) = self.channel().await else { return };
        self.oracle.tell(id, Told::Nothing);
        let request = BatchUpdateEntryRequest { entries, input_mask: None, output_mask: None };
        match EntryClient::new(channel).batch_update_entry(request).await {
            Ok(answer) => {
                for entry in answer.into_inner().results.into_iter().filter_map(|result| result.entry) {
                    self.oracle.tell(&entry.id, stands(&entry));
                    self.log.count("entries updated");
                }
            }
            Err(_) => self.log.count("changes not acknowledged"),
        }
    }

    pub(crate) async fn delete(&self, entry: &Entry) {
        let id = entry.id.as_str();
        let Ok(channel) = self.channel().await else { return };
        self.oracle.tell(id, Told::Nothing);
        let request = BatchDeleteEntryRequest { ids: vec![id.to_owned()] };
        match EntryClient::new(channel).batch_delete_entry(request).await {
            Ok(answer) => {
                for result in answer.into_inner().results {
                    if !is_refused(result.status.as_ref()) {
                        self.oracle.tell(&result.id, Told::Gone);
                        self.log.count("entries deleted");
                    }
                }
            }
            Err(_) => self.log.count("changes not acknowledged"),
        }
    }

    pub(crate) async fn ban(&self, agent: &SpiffeId) {
        let Ok(channel) = self.channel().await else { return };
        let request = BanAgentRequest { id: wire_id(agent.trust_domain().as_str(), agent.path()) };
        if AgentClient::new(channel).ban_agent(request).await.is_ok() {
            self.oracle.acknowledge_ban(agent);
            self.log.fault("agent banned");
        }
    }

    /// Stops something, and waits a while for the agents.
    pub(crate) async fn stop(&self, what: &StopTarget) {
        let Ok(channel) = self.channel().await else { return };
        let request = StopRequest {
            target: Some(wire_target(what)),
            reason: "a drill".to_owned(),
            wait_millis: AGENTS_WITHIN,
        };
        match StopClient::new(channel).stop(request).await {
            Ok(answer) => {
                let rollout = answer.into_inner().stop.and_then(|stop| stop.rollout).unwrap_or_default();
                self.log.fault(match what {
                    StopTarget::Entry(_) => "entry stopped",
                    StopTarget::Agent(_) | StopTarget::Instance { .. } => "agent stopped",
                });
                let count = |state| rollout.pending.iter().filter(|one| one.state() == state).count();
                for (state, name) in [
                    (PendingState::Unreachable, "agents named as unreachable by a stop"),
                    (PendingState::Awaited, "agents named as awaited by a stop"),
                ] {
                    (0..count(state)).for_each(|_| self.log.count(name));
                }
                let pending = rollout.pending.into_iter().map(|one| one.agent_id).collect();
                self.oracle.acknowledge_stop(what, &pending);
            }
            // What is gone meanwhile cannot be stopped.
            Err(_) => self.log.count("stops not acknowledged"),
        }
    }

    /// Takes a stop back.
    pub(crate) async fn resume(&self, what: &StopTarget) {
        let Ok(channel) = self.channel().await else { return };
        let request = ResumeRequest {
            target: Some(wire_target(what)),
            reason: "the drill is over".to_owned(),
            wait_millis: 0,
        };
        if StopClient::new(channel).resume(request).await.is_ok() {
            self.log.count("stops taken back");
        }
    }

    pub(crate) async fn evict(&self, agent: &SpiffeId) {
        let Ok(channel) = self.channel().await else { return };
        let request = DeleteAgentRequest { id: wire_id(agent.trust_domain().as_str(), agent.path()) };
        if AgentClient::new(channel).delete_agent(request).await.is_ok() {
            self.log.fault("agent evicted");
        }
    }

    /// A token whose node will stand for `alias` too.
    pub(crate) async fn token(&self, alias: &SpiffeId) -> Option<String> {
        let channel = self.channel().await.ok()?;
        let agent_id = wire_id(alias.trust_domain().as_str(), alias.path());
        let request = CreateJoinTokenRequest { ttl: 3600, token: String::new(), agent_id };
        Some(AgentClient::new(channel).create_join_token(request).await.ok()?.into_inner().value)
    }

    /// Compares what the server says with what was acknowledged.
    pub(crate) async fn audit(&self) -> Result<(), Status> {
        let channel = self.channel().await?;
        let mut entries = BTreeMap::new();
        let mut page_token = String::new();
        loop {
            let request = ListEntriesRequest { page_token, ..Default::default() };
            let answer = EntryClient::new(channel.clone()).list_entries(request).await?.into_inner();
            for entry in answer.entries {
                entries.insert(entry.id, u64::try_from(entry.revision_number).unwrap_or(0));
            }
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let agents = AgentClient::new(channel).list_agents(ListAgentsRequest::default()).await?.into_inner();
        let banned = agents.agents.into_iter().filter(|agent| agent.banned).filter_map(|agent| agent.id);
        let banned: BTreeSet<String> = banned.map(|id| id.path).collect();
        self.oracle.audit(&entries, &banned);
        Ok(())
    }
}

/// How long a stop waits for agents, in milliseconds.
const AGENTS_WITHIN: u32 = 5_000;

fn wire_target(what: &StopTarget) -> Target {
    let target = match what {
        StopTarget::Entry(id) => target::Target::EntryId(id.to_string()),
        StopTarget::Agent(agent) => target::Target::AgentId(agent.to_string()),
        StopTarget::Instance { agent, instance } => {
            let (agent_id, instance) = (agent.to_string(), instance.to_string());
            target::Target::Instance(passant_proto::stop::Instance { agent_id, instance })
        }
    };
    Target { target: Some(target) }
}

/// Somebody who has found a join token, and comes from a machine of their own.
pub(crate) struct Thief {
    pub(crate) road: Road,
    pub(crate) keys: KeyShare,
    pub(crate) log: Log,
}

impl Thief {
    /// Tries to attest with `token`; whether that gave an SVID.
    pub(crate) async fn attest(&self, token: &str) -> Result<bool, Status> {
        let failed = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let (end, _) = self.road.open(None).await.map_err(|error| failed(&error))?;
        let channel = over(end).await.map_err(|error| failed(&error))?;
        let key = self.keys.generate(KeyType::EcP256).map_err(|error| failed(&error))?;
        let csr = csr::make(&*key, None).map_err(|error| failed(&error))?;
        let data =
            Some(AttestationData { r#type: "join_token".to_owned(), payload: token.as_bytes().to_vec() });
        let step = Some(Step::Params(Params { data, params: Some(AgentX509svidParams { csr }) }));
        let requests = tokio_stream::iter([AttestAgentRequest { step }]).chain(tokio_stream::pending());
        let answer = AgentClient::new(channel).attest_agent(requests).await?.into_inner().message().await;
        match answer {
            Ok(Some(_)) => Ok(true),
            Ok(None) => Ok(false),
            Err(status) => {
                if status.code() == Code::InvalidArgument {
                    self.log.count("spent tokens refused");
                }
                Ok(false)
            }
        }
    }
}
