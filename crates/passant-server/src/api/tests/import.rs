//! Who may take over what another server attested, and does it work on the wire?

use std::sync::Arc;

use passant_proto::agent::{BanAgentRequest, RenewAgentRequest};
use passant_proto::bundle::{AppendBundleRequest, GetBundleRequest};
use passant_proto::convert;
use passant_proto::import::import_client::ImportClient;
use passant_proto::import::{
    AdoptAgentsRequest, AdoptAgentsResponse, Adoption, Release, ReleaseAgentsRequest, ReleaseAgentsResponse,
    RemoveAuthoritiesRequest,
};
use passant_proto::types;
use tonic::Code;
use tonic::transport::Channel;

use super::rig::{Identity, Rig, agents, bundles, entry, selector};

/// The agent as SPIRE would list it.
fn listed(agent: &Identity) -> types::Agent {
    types::Agent {
        id: Some(convert::id::to_wire(agent.svid.id())),
        attestation_type: "join_token".to_owned(),
        x509svid_serial_number: agent.svid.serial().to_decimal(),
        x509svid_expires_at: agent.svid.not_after().secs(),
        selectors: vec![selector("k:1")],
        ..types::Agent::default()
    }
}

async fn adopt(rig: &Rig, agents: Vec<types::Agent>, dry_run: bool) -> AdoptAgentsResponse {
    let request = AdoptAgentsRequest { agents, dry_run };
    ImportClient::new(rig.local().await).adopt_agents(request).await.unwrap().into_inner()
}

fn said(answer: &AdoptAgentsResponse) -> Vec<(Code, Adoption)> {
    let one = |result: &passant_proto::import::adopt_agents_response::Result| {
        (Code::from_i32(result.status.as_ref().unwrap().code), result.adoption())
    };
    answer.results.iter().map(one).collect()
}

async fn release(rig: &Rig, agent: &types::Agent, dry_run: bool) -> Release {
    let request = ReleaseAgentsRequest { ids: vec![agent.id.clone().unwrap()], dry_run };
    let ReleaseAgentsResponse { results } =
        ImportClient::new(rig.local().await).release_agents(request).await.unwrap().into_inner();
    results[0].release()
}

async fn authorities(rig: &Rig) -> types::Bundle {
    let request = GetBundleRequest { output_mask: None };
    bundles(rig.local().await).get_bundle(request).await.unwrap().into_inner()
}

/// Whether an agent's calls are answered.
async fn calls(rig: &Rig, agent: &Identity) -> Result<(), Code> {
    let channel = rig.remote(Some(agent)).await.map_err(|_| Code::Unknown)?;
    let request = passant_proto::agent::PostStatusRequest::default();
    agents(channel).post_status(request).await.map(|_| ()).map_err(|status| status.code())
}

#[tokio::test]
async fn adopting_is_for_callers_on_this_machine_alone() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let admin = types::Entry { admin: true, ..entry(agent.svid.id(), "/ops", "unix:uid:1") };
    let admin = rig.register(vec![admin]).await.remove(0);
    let admin = rig.svid_of(&agent, &admin.id).await;
    let refused = async |channel: Channel| {
        let mut client = ImportClient::new(channel);
        let mut codes = Vec::new();
        codes.push(client.adopt_agents(AdoptAgentsRequest::default()).await.unwrap_err().code());
        codes.push(client.release_agents(ReleaseAgentsRequest::default()).await.unwrap_err().code());
        codes.push(client.remove_authorities(RemoveAuthoritiesRequest::default()).await.unwrap_err().code());
        codes
    };
    for channel in [
        rig.stranger().await,
        rig.remote(Some(&agent)).await.unwrap(),
        rig.remote(Some(&admin)).await.unwrap(),
    ] {
        assert_eq!(refused(channel).await, [Code::PermissionDenied; 3]);
    }
}

#[tokio::test]
async fn an_agent_of_another_server_moves_with_the_svid_it_holds() {
    let (rig, other) = (Rig::start().await, Rig::start().await);
    let agent = other.agent().await;
    let theirs = authorities(&other).await;
    let append = AppendBundleRequest {
        x509_authorities: theirs.x509_authorities.clone(),
        jwt_authorities: theirs.jwt_authorities.clone(),
        ..AppendBundleRequest::default()
    };
    assert!(calls(&rig, &agent).await.is_err());
    bundles(rig.local().await).append_bundle(append).await.unwrap();
    assert_eq!(calls(&rig, &agent).await, Err(Code::PermissionDenied));

    let answer = adopt(&rig, vec![listed(&agent)], true).await;
    assert_eq!(said(&answer), [(Code::Ok, Adoption::New)]);
    assert_eq!(answer.node_attestors, ["join_token"]);
    assert_eq!(calls(&rig, &agent).await, Err(Code::PermissionDenied), "nothing was done");
    assert_eq!(said(&adopt(&rig, vec![listed(&agent)], false).await), [(Code::Ok, Adoption::New)]);
    assert_eq!(said(&adopt(&rig, vec![listed(&agent)], false).await), [(Code::Ok, Adoption::Unchanged)]);
    assert_eq!(release(&rig, &listed(&agent), true).await, Release::Done);
    assert_eq!(calls(&rig, &agent).await, Ok(()));
    assert_eq!(release(&rig, &listed(&agent), false).await, Release::Moved);

    let csr = passant_core::csr::make(&*agent.key, None).unwrap();
    let params = Some(passant_proto::agent::AgentX509svidParams { csr });
    let mut client = agents(rig.remote(Some(&agent)).await.unwrap());
    let renewed = client.renew_agent(RenewAgentRequest { params }).await.unwrap().into_inner().svid.unwrap();
    let svid = convert::svid::x509_from_wire(&renewed).unwrap();
    let renewed = Identity { svid, key: Arc::clone(&agent.key) };
    assert_eq!(calls(&rig, &renewed).await, Ok(()));
    assert_eq!(said(&adopt(&rig, vec![listed(&agent)], false).await), [(Code::Ok, Adoption::Kept)]);

    let remove = |own: &types::Bundle| RemoveAuthoritiesRequest {
        x509_authorities: own.x509_authorities.iter().map(|one| one.asn1.clone()).collect(),
        jwt_authorities: own.jwt_authorities.iter().map(|one| one.key_id.clone()).collect(),
        dry_run: false,
    };
    let mut client = ImportClient::new(rig.local().await);
    let whole = remove(&authorities(&rig).await);
    assert_eq!(client.remove_authorities(whole).await.unwrap_err().code(), Code::FailedPrecondition);
    let removed = client.remove_authorities(remove(&theirs)).await.unwrap().into_inner();
    assert_eq!((removed.x509_removed, removed.jwt_removed), (1, 1));
    assert_eq!(authorities(&rig).await.x509_authorities.len(), 1);
    assert_eq!(calls(&rig, &renewed).await, Ok(()));
}

#[tokio::test]
async fn what_is_wrong_with_an_agent_is_said_at_its_place() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let good =
        types::Agent { id: Some(super::rig::wire_id("/spire/agent/join_token/other")), ..listed(&agent) };
    let foreign =
        types::Spiffeid { trust_domain: "other.test".to_owned(), path: "/spire/agent/a/b".to_owned() };
    let bad = [
        types::Agent { id: None, ..good.clone() },
        types::Agent { id: Some(foreign), ..good.clone() },
        types::Agent { id: Some(super::rig::wire_id("/w")), ..good.clone() },
        types::Agent { attestation_type: String::new(), ..good.clone() },
        types::Agent { attestation_type: "a\nb".to_owned(), ..good.clone() },
        types::Agent { x509svid_serial_number: String::new(), ..good.clone() },
        types::Agent { x509svid_serial_number: "12x".to_owned(), ..good.clone() },
        types::Agent { x509svid_expires_at: -1, ..good.clone() },
        types::Agent { agent_version: "v".repeat(5_000), ..good.clone() },
        types::Agent { selectors: vec![types::Selector::default()], ..good.clone() },
    ];
    let banned = types::Agent {
        id: Some(super::rig::wire_id("/spire/agent/join_token/banned")),
        banned: true,
        x509svid_serial_number: String::new(),
        ..good.clone()
    };
    let mut asked = bad.to_vec();
    asked.extend([good, banned, listed(&agent)]);
    let answer = said(&adopt(&rig, asked, false).await);
    let (wrong, right) = answer.split_at(bad.len());
    assert!(wrong.iter().all(|(code, _)| *code == Code::InvalidArgument), "{wrong:?}");
    assert_eq!(right, [(Code::Ok, Adoption::New), (Code::Ok, Adoption::New), (Code::Ok, Adoption::Kept)]);
    let mut operator = agents(rig.local().await);
    let id = listed(&agent).id;
    operator.ban_agent(BanAgentRequest { id }).await.unwrap();
    assert_eq!(said(&adopt(&rig, vec![listed(&agent)], false).await), [(Code::Ok, Adoption::Kept)]);
    assert_eq!(calls(&rig, &agent).await, Err(Code::PermissionDenied), "the ban holds");
}
