//! `passant agent`: list, count, show, evict, ban and purge the agents of attested nodes.

use anyhow::{Context, anyhow};
use passant_core::{Host, SpiffeId, UnixTime};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{
    BanAgentRequest, CountAgentsRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    count_agents_request, list_agents_request,
};
use passant_proto::convert::id;
use passant_proto::types;
use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

use crate::args::{Agent, AgentFilter, Purge, ServerSocket};
use crate::commands::entry::selector_match;
use crate::connect::{Server, refused};
use crate::json;
use crate::progress::Progress;
use crate::render::{Output, fields};

/// How many agents are asked for at once.
const PAGE: i32 = 500;

pub(crate) async fn run(command: Agent, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    match command {
        Agent::List(filter) => list(&filter, &server, out).await,
        Agent::Count(filter) => count(&filter, &server, out).await,
        Agent::Show { spiffe_id } => show(&spiffe_id, &server, out).await,
        Agent::Evict { spiffe_id } => {
            let request = DeleteAgentRequest { id: Some(id::to_wire(&spiffe_id)) };
            let evicted = server.agents().delete_agent(request).await;
            evicted.map_err(refused).with_context(|| unknown("evict", &spiffe_id))?;
            done("evicted", &spiffe_id, out)
        }
        Agent::Ban { spiffe_id } => {
            let request = BanAgentRequest { id: Some(id::to_wire(&spiffe_id)) };
            let banned = server.agents().ban_agent(request).await;
            banned.map_err(refused).with_context(|| unknown("ban", &spiffe_id))?;
            done("banned", &spiffe_id, out)
        }
        Agent::Purge(args) => purge(&args, &server, out).await,
    }
}

fn done(what: &str, id: &SpiffeId, out: &mut Output) -> anyhow::Result<()> {
    out.print(|| json!({ what: id.as_str() }), |to| writeln!(to, "{what} {id}"))
}

fn unknown(what: &str, id: &SpiffeId) -> String {
    format!("failed to {what} {id}; passant agent list shows which agents there are")
}

/// The agents that pass `filter`, with the fields of `output_mask`, page by page.
pub(crate) fn pages(
    server: &Server,
    filter: Option<list_agents_request::Filter>,
    output_mask: Option<types::AgentMask>,
) -> Pages {
    Pages { client: server.agents(), filter, output_mask, next: Some(String::new()) }
}

/// A list that is being read.
pub(crate) struct Pages {
    client: AgentClient<Channel>,
    filter: Option<list_agents_request::Filter>,
    output_mask: Option<types::AgentMask>,
    /// Names the next page; none after the last.
    next: Option<String>,
}

impl Pages {
    /// The next page, or none after the last.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<types::Agent>>> {
        let Some(page_token) = self.next.take() else { return Ok(None) };
        let request = ListAgentsRequest {
            filter: self.filter.clone(),
            output_mask: self.output_mask,
            page_size: PAGE,
            page_token,
        };
        let page = self.client.list_agents(request).await.map_err(refused)?.into_inner();
        self.next = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(Some(page.agents))
    }
}

async fn list(filter: &AgentFilter, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut pages = pages(server, Some(wire_filter(filter)), None);
    let mut rows = out.list("agents", &["SPIFFE ID", "ATTESTED BY", "SVID EXPIRES", "STANDING", "VERSION"]);
    while let Some(agents) = pages.next().await? {
        rows.page(&agents, json::agent, |agent| {
            vec![
                json::spiffe_id_text(agent.id.as_ref()),
                agent.attestation_type.clone(),
                UnixTime::from_secs(agent.x509svid_expires_at).to_string(),
                standing(agent).to_owned(),
                agent.agent_version.clone(),
            ]
        })?;
    }
    rows.end()
}

async fn count(filter: &AgentFilter, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let list_agents_request::Filter {
        by_attestation_type,
        by_selector_match,
        by_banned,
        by_can_reattest,
        by_expires_before,
    } = wire_filter(filter);
    let filter = count_agents_request::Filter {
        by_attestation_type,
        by_selector_match,
        by_banned,
        by_can_reattest,
        by_expires_before,
    };
    let request = CountAgentsRequest { filter: Some(filter) };
    let count = server.agents().count_agents(request).await.map_err(refused)?.into_inner().count;
    out.print(|| json!({ "count": count }), |to| writeln!(to, "{count}"))
}

async fn show(id: &SpiffeId, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let request = GetAgentRequest { id: Some(id::to_wire(id)), output_mask: None };
    let agent = server.agents().get_agent(request).await;
    let agent = agent.map_err(refused).with_context(|| unknown("show", id))?.into_inner();
    out.print(
        || json::agent(&agent),
        |to| {
            fields(
                to,
                &[
                    ("SPIFFE ID", &json::spiffe_id_text(agent.id.as_ref())),
                    ("attested by", &agent.attestation_type),
                    ("selectors", &json::selectors_text(&agent.selectors)),
                    ("SVID serial", &agent.x509svid_serial_number),
                    ("SVID expires", &UnixTime::from_secs(agent.x509svid_expires_at)),
                    ("can reattest", &agent.can_reattest),
                    ("standing", &standing(&agent)),
                    ("version", &agent.agent_version),
                ],
            )
        },
    )
}

/// What became of an agent that was to be forgotten.
struct Purged {
    id: String,
    expired_at: UnixTime,
    error: Option<String>,
}

/// Forgets expired agents. A banned one stays, since forgetting it would lift the ban.
async fn purge(args: &Purge, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let before = Host::system().now().minus(args.expired_for);
    let filter = list_agents_request::Filter {
        by_banned: Some(false),
        by_can_reattest: (!args.all).then_some(true),
        by_expires_before: wire_instant(before),
        ..list_agents_request::Filter::default()
    };
    let mask = types::AgentMask {
        x509svid_expires_at: true,
        banned: true,
        can_reattest: true,
        ..types::AgentMask::default()
    };
    let mut pages = pages(server, Some(filter), Some(mask));
    let mut expired = Vec::new();
    while let Some(page) = pages.next().await? {
        expired.extend(page.into_iter().filter(|agent| may_go(agent, before, args.all)));
    }
    let mut progress = Progress::of("agents purged", expired.len());
    let mut purged = Vec::with_capacity(expired.len());
    for agent in expired {
        let id = json::spiffe_id_text(agent.id.as_ref());
        let expired_at = UnixTime::from_secs(agent.x509svid_expires_at);
        let error = if args.dry_run { None } else { evict(agent, server).await? };
        purged.push(Purged { id, expired_at, error });
        progress.add(1);
    }
    drop(progress);
    let failed = purged.iter().filter(|purged| purged.error.is_some()).count();
    if failed > 0 {
        out.fail(anyhow!("failed to purge {failed} of {} agents; run it again", purged.len()));
    }
    if args.dry_run && !purged.is_empty() {
        out.note();
    }
    // The names are those of SPIRE's `agent purge -output json`.
    let json = |purged: &Purged| {
        let mut json = json!({ "agent_id": purged.id, "deleted": !args.dry_run && purged.error.is_none() });
        if let Some(error) = &purged.error {
            json["error"] = json!(error);
        }
        json
    };
    out.print(
        || json!({ "expired_agents": purged.iter().map(json).collect::<serde_json::Value>() }),
        |to| {
            for Purged { id, expired_at, error } in &purged {
                let what = match error {
                    Some(error) => error,
                    None if args.dry_run => "would be purged",
                    None => "purged",
                };
                writeln!(to, "{id}  expired {expired_at}  {what}")?;
            }
            writeln!(to, "{} expired agents", purged.len())
        },
    )
}

/// Whether an agent may be forgotten. Asked again of what the server lists: one that does not know a filter must not make us
/// forget the living, lift a ban, or shut out a node that has no token.
fn may_go(agent: &types::Agent, expired_before: UnixTime, all: bool) -> bool {
    let expired = agent.x509svid_expires_at < expired_before.secs();
    expired && !agent.banned && (all || agent.can_reattest)
}

/// Forgets an agent; says why not. One that is gone already is no failure.
async fn evict(agent: types::Agent, server: &Server) -> anyhow::Result<Option<String>> {
    match server.agents().delete_agent(DeleteAgentRequest { id: agent.id }).await {
        Ok(_) => Ok(None),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        // The next would fare no better.
        Err(status) if status.code() == Code::Unavailable => Err(refused(status)),
        Err(status) => Ok(Some(refused(status).to_string())),
    }
}

fn wire_filter(filter: &AgentFilter) -> list_agents_request::Filter {
    list_agents_request::Filter {
        by_attestation_type: filter.attestation_type.clone().unwrap_or_default(),
        by_selector_match: selector_match(&filter.selectors, filter.matching),
        by_banned: filter.banned,
        by_can_reattest: filter.can_reattest,
        by_expires_before: filter.expires_before.map(wire_instant).unwrap_or_default(),
    }
}

/// An instant in the form that SPIRE's filter has: `2026-09-21 14:13:20 +0000 +00`.
fn wire_instant(at: UnixTime) -> String {
    at.to_string().replace('T', " ").replace('Z', " +0000 +00")
}

fn standing(agent: &types::Agent) -> &'static str {
    if agent.banned { "banned" } else { "attested" }
}

#[cfg(test)]
mod tests {
    use passant_proto::convert::filter::AgentFilter;

    use super::*;

    #[test]
    fn only_the_expired_go_and_no_banned_ones() {
        let before = UnixTime::from_secs(100);
        let agent = |x509svid_expires_at, banned, can_reattest| types::Agent {
            x509svid_expires_at,
            banned,
            can_reattest,
            ..types::Agent::default()
        };
        for (agent, goes, goes_with_all) in [
            (agent(99, false, true), true, true),
            (agent(100, false, true), false, false),
            (agent(99, true, true), false, false),
            (agent(99, false, false), false, true),
        ] {
            let found = (may_go(&agent, before, false), may_go(&agent, before, true));
            assert_eq!(found, (goes, goes_with_all), "{agent:?}");
        }
    }

    #[test]
    fn the_server_reads_the_instants_that_are_sent() {
        let at = UnixTime::from_secs(1_790_000_000);
        assert_eq!(wire_instant(at), "2026-09-21 14:13:20 +0000 +00");
        let filter =
            list_agents_request::Filter { by_expires_before: wire_instant(at), ..Default::default() };
        assert_eq!(AgentFilter::from_list(Some(&filter)).unwrap().expires_before, Some(at));
    }
}
