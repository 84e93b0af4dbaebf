//! How do attested agents move, so that they need not attest again?

use std::collections::{BTreeMap, BTreeSet};

use passant_proto::agent::ListAgentsRequest;
use passant_proto::import::{AdoptAgentsRequest, Adoption, adopt_agents_response};
use passant_proto::types;
use prost::Message;

use super::ledger::{Ledger, Made};
use super::paired;
use super::report::{Kind, Report};
use super::spire::Move;
use crate::connect::refused;
use crate::json;
use crate::progress::Progress;

/// How many agents are asked for, and adopted, at once.
const PAGE: i32 = 500;
/// Bytes of one request: a quarter of what a message may have.
const BYTES: usize = 1 << 20;

/// Has the server adopt the agents of SPIRE.
///
/// # Errors
/// When a server does not answer, or the ledger cannot be written.
pub(super) async fn adopt(
    moving: &Move,
    mut ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut progress = Progress::new("agents of SPIRE looked at");
    let mut page_token = String::new();
    let (mut at, mut homeless) = (0, BTreeMap::new());
    loop {
        let request = ListAgentsRequest { page_size: PAGE, page_token, ..ListAgentsRequest::default() };
        let page = moving.spire.agents().list_agents(request).await.map_err(refused)?.into_inner();
        progress.add(page.agents.len());
        let next = page.next_page_token;
        for batch in batches(page.agents) {
            if let Some(ledger) = ledger.as_deref_mut() {
                ledger.write(to_adopt(moving, &batch).await?)?;
            }
            let request = AdoptAgentsRequest { agents: batch.clone(), dry_run: ledger.is_none() };
            let answer = moving.server.import().adopt_agents(request).await.map_err(refused)?.into_inner();
            let methods: BTreeSet<String> = answer.node_attestors.into_iter().collect();
            for (agent, result) in paired(batch, answer.results)? {
                at += 1;
                take(at, &agent, &result, report);
                if agent.can_reattest && !agent.banned && !methods.contains(&agent.attestation_type) {
                    *homeless.entry(agent.attestation_type).or_insert(0_usize) += 1;
                }
            }
        }
        page_token = next;
        if page_token.is_empty() {
            break;
        }
    }
    for (method, count) in homeless {
        report.note(format!(
            "{count} agents of type {method} attest again instead of renewing their SVIDs, and this server has no such \
             node attestor: configure it before they move, or they come to a stop when their SVIDs are due"
        ));
    }
    Ok(())
}

/// Those that will be adopted, and not those that this server attested itself.
async fn to_adopt(moving: &Move, agents: &[types::Agent]) -> anyhow::Result<Vec<Made>> {
    let request = AdoptAgentsRequest { agents: agents.to_vec(), dry_run: true };
    let answer = moving.server.import().adopt_agents(request).await.map_err(refused)?.into_inner();
    let outcomes = paired(agents.iter().collect(), answer.results)?;
    let ours =
        outcomes.filter(|(_, result)| matches!(result.adoption(), Adoption::New | Adoption::Refreshed));
    Ok(ours.map(|(agent, _)| Made::Agent(json::spiffe_id_text(agent.id.as_ref()))).collect())
}

/// Takes over what was said of one agent.
fn take(at: usize, agent: &types::Agent, result: &adopt_agents_response::Result, report: &mut Report) {
    let status = result.status.clone().unwrap_or_default();
    if status.code != 0 {
        let name = json::spiffe_id_text(agent.id.as_ref());
        return report.left(Kind::Agents, Some(at), &name, status.message);
    }
    match result.adoption() {
        Adoption::New | Adoption::Refreshed => report.done(Kind::Agents, 1),
        Adoption::Unchanged | Adoption::Kept | Adoption::Unspecified => report.already(Kind::Agents, 1),
    }
}

/// Agents in parts that fit into one message each, however many selectors they have.
fn batches(agents: Vec<types::Agent>) -> Vec<Vec<types::Agent>> {
    let mut batches: Vec<Vec<types::Agent>> = Vec::new();
    let mut bytes = 0;
    for agent in agents {
        let more = agent.encoded_len();
        match batches.last_mut().filter(|_| bytes + more <= BYTES) {
            Some(batch) => batch.push(agent),
            None => {
                batches.push(vec![agent]);
                bytes = 0;
            }
        }
        bytes += more;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_with_many_selectors_are_sent_in_parts() {
        let large =
            |value: usize| types::Agent { agent_version: "v".repeat(value), ..types::Agent::default() };
        let sizes = |agents| batches(agents).iter().map(Vec::len).collect::<Vec<usize>>();
        assert_eq!(sizes(vec![large(1); 5]), [5]);
        assert_eq!(sizes(vec![large(BYTES / 2 - 100); 5]), [2, 2, 1]);
        assert_eq!(sizes(vec![large(BYTES + 1), large(1)]), [1, 1]);
        assert!(sizes(vec![]).is_empty());
    }
}
