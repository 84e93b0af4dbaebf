//! `passant agent`: list, show, evict and ban the agents of attested nodes.

use passant_core::{SpiffeId, UnixTime};
use passant_proto::agent::{
    BanAgentRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest, list_agents_request,
};
use passant_proto::convert::id;
use passant_proto::types;
use serde_json::json;

use crate::args::{Agent, ServerSocket};
use crate::connect::{Server, refused};
use crate::json;
use crate::render::{Output, fields};

/// How many agents are asked for at once.
const PAGE: i32 = 500;

pub(crate) async fn run(command: Agent, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    match command {
        Agent::List { attestation_type, banned } => list(attestation_type, banned, &server, out).await,
        Agent::Show { spiffe_id } => show(&spiffe_id, &server, out).await,
        Agent::Evict { spiffe_id } => {
            let request = DeleteAgentRequest { id: Some(id::to_wire(&spiffe_id)) };
            server.agents().delete_agent(request).await.map_err(refused)?;
            done("evicted", &spiffe_id, out)
        }
        Agent::Ban { spiffe_id } => {
            let request = BanAgentRequest { id: Some(id::to_wire(&spiffe_id)) };
            server.agents().ban_agent(request).await.map_err(refused)?;
            done("banned", &spiffe_id, out)
        }
    }
}

fn done(what: &str, id: &SpiffeId, out: &mut Output) -> anyhow::Result<()> {
    out.print(|| json!({ what: id.as_str() }), |to| writeln!(to, "{what} {id}"))
}

async fn list(
    attestation_type: Option<String>,
    banned: Option<bool>,
    server: &Server,
    out: &mut Output,
) -> anyhow::Result<()> {
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let filter = list_agents_request::Filter {
            by_attestation_type: attestation_type.clone().unwrap_or_default(),
            by_banned: banned,
            ..list_agents_request::Filter::default()
        };
        let request =
            ListAgentsRequest { filter: Some(filter), output_mask: None, page_size: PAGE, page_token };
        let page = server.agents().list_agents(request).await.map_err(refused)?.into_inner();
        agents.extend(page.agents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    out.table(
        || json!({ "agents": agents.iter().map(json::agent).collect::<serde_json::Value>(), "next_page_token": "" }),
        &["SPIFFE ID", "ATTESTED BY", "SVID EXPIRES", "STANDING", "VERSION"],
        agents.iter().map(|agent| {
            vec![
                json::spiffe_id_text(agent.id.as_ref()),
                agent.attestation_type.clone(),
                UnixTime::from_secs(agent.x509svid_expires_at).to_string(),
                standing(agent).to_owned(),
                agent.agent_version.clone(),
            ]
        }),
    )
}

async fn show(id: &SpiffeId, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let request = GetAgentRequest { id: Some(id::to_wire(id)), output_mask: None };
    let agent = server.agents().get_agent(request).await.map_err(refused)?.into_inner();
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

fn standing(agent: &types::Agent) -> &'static str {
    if agent.banned { "banned" } else { "attested" }
}
