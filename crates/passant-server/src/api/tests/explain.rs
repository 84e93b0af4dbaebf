//! Who gets it explained why a workload has no identity, and who sees what the server holds?

use passant_proto::convert::id;
use passant_proto::debug::GetInfoRequest;
use passant_proto::debug::debug_client::DebugClient;
use passant_proto::explain::explain_client::ExplainClient;
use passant_proto::explain::{ExplainRequest, Explanation};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::rig::{Identity, Rig, agents, entry, trust_domain, wire_id};

const ROLES: &str = "admin_ids = [\"spiffe://example.org/boss\"]\n\
    [[role]]\nname = \"helpdesk\"\nverbs = [\"identity.explain\"]\n\
    granted_to = { spiffe_ids = [\"spiffe://example.org/helper\"] }\n\
    [[role]]\nname = \"watch\"\nverbs = [\"authority.read\"]\n\
    granted_to = { spiffe_ids = [\"spiffe://example.org/watcher\"] }\n";

async fn ask(channel: Channel, request: ExplainRequest) -> Result<Explanation, Status> {
    ExplainClient::new(channel).explain(request).await.map(tonic::Response::into_inner)
}

fn about(path: &str) -> ExplainRequest {
    ExplainRequest { spiffe_id: format!("spiffe://example.org{path}"), ..ExplainRequest::default() }
}

fn first(explanation: &Explanation) -> &str {
    explanation.causes.first().map_or("", |cause| cause.code.as_str())
}

/// A server, an agent, and whoever has the SVIDs of these paths.
async fn site(paths: &[&str]) -> (Rig, Identity, Vec<Identity>) {
    let rig = Rig::start_with(ROLES).await;
    let agent = rig.agent().await;
    let wanted = paths.iter().map(|path| entry(agent.svid.id(), path, "unix:uid:1")).collect();
    let mut holders = Vec::new();
    for made in rig.register(wanted).await {
        holders.push(rig.svid_of(&agent, &made.id).await);
    }
    (rig, agent, holders)
}

#[tokio::test]
async fn operators_and_holders_of_the_verb_are_told_and_nobody_else() {
    let (rig, agent, holders) = site(&["/boss", "/helper", "/watcher"]).await;
    assert_eq!(first(&ask(rig.local().await, about("/else")).await.unwrap()), "no_entry");
    for holder in &holders[..2] {
        let channel = rig.remote(Some(holder)).await.unwrap();
        assert_eq!(first(&ask(channel, about("/else")).await.unwrap()), "no_entry");
    }
    for channel in [
        rig.remote(Some(&holders[2])).await.unwrap(),
        rig.remote(Some(&agent)).await.unwrap(),
        rig.stranger().await,
    ] {
        assert_eq!(ask(channel, about("/else")).await.unwrap_err().code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn the_answer_follows_the_state_of_the_moment() {
    let (rig, agent, _) = site(&["/web"]).await;
    let told = ask(rig.local().await, about("/web")).await.unwrap();
    assert_eq!((first(&told), told.candidates.len()), ("", 1), "{told:?}");
    let of_agent = || ExplainRequest { agent_id: agent.svid.id().to_string(), ..about("/web") };
    assert_eq!(first(&ask(rig.local().await, of_agent()).await.unwrap()), "");
    let ban = passant_proto::agent::BanAgentRequest { id: Some(id::to_wire(agent.svid.id())) };
    agents(rig.local().await).ban_agent(ban).await.unwrap();
    let banned = ask(rig.local().await, of_agent()).await.unwrap();
    assert_eq!(first(&banned), "node_banned");
    assert!(banned.causes[0].blocks && banned.causes[0].remedy.contains("passant agent evict"), "{banned:?}");
}

#[tokio::test]
async fn a_holder_gets_no_word_of_a_token_that_somebody_else_made() {
    let (rig, _, holders) = site(&["/helper"]).await;
    let token = rig.join_token("", None).await;
    let request = || ExplainRequest {
        agent_id: format!("spiffe://example.org/spire/agent/join_token/{token}"),
        ..ExplainRequest::default()
    };
    let to_helper = ask(rig.remote(Some(&holders[0])).await.unwrap(), request()).await.unwrap();
    assert!(to_helper.causes[0].says.contains("no node is attested"), "{to_helper:?}");
    let to_operator = ask(rig.local().await, request()).await.unwrap();
    assert!(to_operator.causes[0].says.contains("has not been used yet"), "{to_operator:?}");
}

#[tokio::test]
async fn a_question_about_nothing_and_one_that_cannot_be_read_are_refused() {
    let (rig, ..) = site(&[]).await;
    let no_selector = passant_proto::types::Selector::default();
    for request in [
        ExplainRequest::default(),
        ExplainRequest { spiffe_id: "web".to_owned(), ..ExplainRequest::default() },
        ExplainRequest { agent_id: "http://example.org/a".to_owned(), ..ExplainRequest::default() },
        ExplainRequest { selectors: vec![no_selector], ..ExplainRequest::default() },
    ] {
        let status = ask(rig.local().await, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test]
async fn callers_on_the_servers_machine_see_what_it_holds() {
    let (rig, _, holders) = site(&["/boss", "/web"]).await;
    let info = DebugClient::new(rig.local().await).get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.agents_count, info.entries_count, info.federated_bundles_count), (1, 2, 0));
    assert!((0..600).contains(&info.uptime), "{}", info.uptime);
    let [leaf, authority] = info.svid_chain.as_slice() else { panic!("{info:?}") };
    assert_eq!(leaf.id, Some(wire_id("/spire/server")));
    assert_eq!(authority.id, Some(id::to_wire(&trust_domain().id())));
    assert!(leaf.expires_at <= authority.expires_at && !authority.subject.is_empty(), "{info:?}");
    for channel in [rig.remote(Some(&holders[0])).await.unwrap(), rig.stranger().await] {
        let refused = DebugClient::new(channel).get_info(GetInfoRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}
