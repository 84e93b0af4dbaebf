//! Does an agent come in, stay and go as it should?

use passant_core::{AgentFault, Reason, csr};
use passant_proto::agent::{
    AgentX509svidParams, BanAgentRequest, CountAgentsRequest, CreateJoinTokenRequest, DeleteAgentRequest,
    GetAgentRequest, ListAgentsRequest, PostStatusRequest, RenewAgentRequest, list_agents_request,
};
use passant_proto::convert;
use passant_proto::entry::GetAuthorizedEntriesRequest;
use passant_proto::types;

use super::rig::{Identity, Rig, agents, entries, entry, opening, refusal, trust_domain, wire_id};

fn of(identity: &Identity) -> Option<types::Spiffeid> {
    Some(convert::id::to_wire(identity.svid.id()))
}

#[tokio::test]
async fn a_join_token_makes_one_agent_that_can_call() {
    let rig = Rig::start().await;
    let token = rig.join_token("", None).await;
    let agent = rig.attest("join_token", &token, &rig.key()).await.unwrap();
    assert_eq!(agent.svid.id().path(), format!("/spire/agent/join_token/{token}"));

    let again = refusal(rig.attest("join_token", &token, &rig.key()).await.map(|_| ()));
    assert_eq!(again.reason, Reason::Invalid, "{again}");
    // The same key again is a retry after a lost reply.
    let retried = rig.attest("join_token", &token, &agent.key).await.unwrap();

    let channel = rig.remote(Some(&retried)).await.unwrap();
    agents(channel)
        .post_status(PostStatusRequest { agent_version: "1.2.3".to_owned(), ..PostStatusRequest::default() })
        .await
        .unwrap();
    let mut operator = agents(rig.local().await);
    let seen =
        operator.get_agent(GetAgentRequest { id: of(&agent), output_mask: None }).await.unwrap().into_inner();
    assert_eq!(
        (seen.attestation_type.as_str(), seen.agent_version.as_str(), seen.banned),
        ("join_token", "1.2.3", false)
    );
    assert_eq!(seen.x509svid_serial_number, retried.svid.serial().to_decimal());
    assert_eq!(seen.x509svid_expires_at, retried.svid.not_after().secs());
}

#[tokio::test]
async fn join_tokens_are_made_with_a_lifetime_and_once() {
    let rig = Rig::start().await;
    let mut operator = agents(rig.local().await);
    let mut ask = async |ttl, token: &str, agent_id| {
        let request = CreateJoinTokenRequest { ttl, token: token.to_owned(), agent_id };
        operator.create_join_token(request).await
    };
    for ttl in [0, -1] {
        let refused = refusal(ask(ttl, "", None).await);
        assert_eq!(refused.reason, Reason::Invalid);
        assert!(refused.public.contains("ttl"), "{refused}");
    }
    let before = rig.host.now();
    let token = ask(60, "", None).await.unwrap().into_inner();
    assert_eq!(token.value.len(), 36);
    assert!((60..70).contains(&(token.expires_at - before.secs())));
    assert_eq!(ask(60, "mine", None).await.unwrap().into_inner().value, "mine");
    assert_eq!(refusal(ask(60, "mine", None).await).reason, Reason::AlreadyExists);
    assert_eq!(refusal(ask(60, "not a token", None).await).reason, Reason::Invalid);
    let foreign = types::Spiffeid { trust_domain: "elsewhere.org".to_owned(), path: "/a".to_owned() };
    assert_eq!(refusal(ask(60, "", Some(foreign)).await).reason, Reason::Invalid);
}

#[tokio::test]
async fn a_method_that_is_not_configured_is_refused() {
    let rig = Rig::start_with("node_attestor = [{ method = \"join_token\" }]").await;
    let refused = refusal(rig.attest("k8s_psat", "{}", &rig.key()).await.map(|_| ()));
    assert_eq!(refused.reason, Reason::Precondition);
    assert!(refused.public.contains("k8s_psat"), "{refused}");
}

#[tokio::test]
async fn malformed_openings_are_named() {
    let rig = Rig::start().await;
    let csr = csr::make(&*rig.key(), None).unwrap();
    let mut nothing = opening("join_token", b"x", &csr);
    nothing.step = None;
    for (request, named) in [
        (opening("join_token", b"", &csr), "payload"),
        (opening("", b"x", &csr), "type"),
        (opening("join_token", b"x", b""), "CSR"),
        (nothing, "params"),
    ] {
        let mut answers = agents(rig.stranger().await)
            .attest_agent(tokio_stream::iter([request]))
            .await
            .unwrap()
            .into_inner();
        let refused = refusal(answers.message().await);
        assert_eq!(refused.reason, Reason::Invalid, "{named}");
        assert!(refused.public.contains(named), "{named}: {refused}");
    }
    let refused = refusal(rig.attest("join_token", "never-made", &rig.key()).await.map(|_| ()));
    assert_eq!(refused.reason, Reason::Invalid);
}

#[tokio::test]
async fn a_token_with_an_alias_lets_its_agent_stand_for_it() {
    let rig = Rig::start().await;
    let token = rig.join_token("", Some("/cluster/one")).await;
    let agent = rig.attest("join_token", &token, &rig.key()).await.unwrap();
    let alias = trust_domain().join("/cluster/one").unwrap();
    rig.register(vec![entry(&alias, "/below-alias", "unix:uid:1")]).await;
    let mut client = entries(rig.remote(Some(&agent)).await.unwrap());
    let authorized = client.get_authorized_entries(GetAuthorizedEntriesRequest { output_mask: None }).await;
    let authorized = authorized.unwrap().into_inner().entries;
    let paths: Vec<&str> =
        authorized.iter().map(|entry| entry.spiffe_id.as_ref().unwrap().path.as_str()).collect();
    assert!(paths.contains(&"/below-alias"), "{paths:?}");

    // The alias entry goes with its agent, and the token cannot bring either back.
    let mut operator = agents(rig.local().await);
    operator.delete_agent(DeleteAgentRequest { id: of(&agent) }).await.unwrap();
    let left =
        entries(rig.local().await).list_entries(super::entries::everything()).await.unwrap().into_inner();
    assert_eq!(left.entries.len(), 1);
    let refused = refusal(rig.attest("join_token", &token, &agent.key).await.map(|_| ()));
    assert_eq!(refused.reason, Reason::Invalid);
}

#[tokio::test]
async fn a_renewed_svid_replaces_the_old_one_once_it_is_used() {
    let rig = Rig::start().await;
    let old = rig.agent().await;
    let mut with_old = agents(rig.remote(Some(&old)).await.unwrap());
    let key = rig.key();
    let params = Some(AgentX509svidParams { csr: csr::make(&*key, None).unwrap() });
    let renewed = with_old.renew_agent(RenewAgentRequest { params }).await.unwrap().into_inner();
    let svid = convert::svid::x509_from_wire(&renewed.svid.unwrap()).unwrap();
    assert_eq!(svid.id(), old.svid.id());
    let new = Identity { svid, key };

    // The reply might have been lost: both are good until the new one is used.
    with_old.post_status(PostStatusRequest::default()).await.unwrap();
    let mut with_new = agents(rig.remote(Some(&new)).await.unwrap());
    with_new.post_status(PostStatusRequest::default()).await.unwrap();
    let refused = refusal(with_old.post_status(PostStatusRequest::default()).await);
    assert_eq!((refused.reason, refused.agent_fault), (Reason::Denied, Some(AgentFault::NotActive)));

    let refused = refusal(with_new.renew_agent(RenewAgentRequest { params: None }).await);
    assert_eq!(refused.reason, Reason::Invalid);
}

#[tokio::test]
async fn banned_and_evicted_agents_are_cut_off_on_open_connections() {
    let rig = Rig::start().await;
    let mut operator = agents(rig.local().await);
    for (banned, fault) in [(true, AgentFault::Banned), (false, AgentFault::NotAttested)] {
        let agent = rig.agent().await;
        let mut client = agents(rig.remote(Some(&agent)).await.unwrap());
        client.post_status(PostStatusRequest::default()).await.unwrap();
        if banned {
            operator.ban_agent(BanAgentRequest { id: of(&agent) }).await.unwrap();
        } else {
            operator.delete_agent(DeleteAgentRequest { id: of(&agent) }).await.unwrap();
        }
        let refused = refusal(client.post_status(PostStatusRequest::default()).await);
        assert_eq!((refused.reason, refused.agent_fault), (Reason::Denied, Some(fault)));
    }
    let unknown = DeleteAgentRequest { id: Some(wire_id("/spire/agent/join_token/nobody")) };
    assert_eq!(refusal(operator.delete_agent(unknown).await).reason, Reason::NotFound);
    let no_agent = BanAgentRequest { id: Some(wire_id("/workload")) };
    assert_eq!(refusal(operator.ban_agent(no_agent).await).reason, Reason::Invalid);
}

#[tokio::test]
async fn agents_are_counted_listed_and_filtered() {
    let rig = Rig::start().await;
    let mut operator = agents(rig.local().await);
    let banned = rig.agent().await;
    for _ in 0..2 {
        rig.agent().await;
    }
    operator.ban_agent(BanAgentRequest { id: of(&banned) }).await.unwrap();
    assert_eq!(
        operator.count_agents(CountAgentsRequest { filter: None }).await.unwrap().into_inner().count,
        3
    );
    let filter = |by_banned| list_agents_request::Filter { by_banned: Some(by_banned), ..Default::default() };
    let ask = |filter, page_size, page_token: &str| ListAgentsRequest {
        filter,
        output_mask: Some(types::AgentMask { banned: true, ..types::AgentMask::default() }),
        page_size,
        page_token: page_token.to_owned(),
    };
    let page = operator.list_agents(ask(Some(filter(true)), 0, "")).await.unwrap().into_inner();
    assert_eq!(page.agents.len(), 1);
    assert_eq!((page.agents[0].id.clone(), page.agents[0].banned), (of(&banned), true));
    assert_eq!(page.agents[0].attestation_type, "");
    let first = operator.list_agents(ask(None, 2, "")).await.unwrap().into_inner();
    let second = operator.list_agents(ask(None, 2, &first.next_page_token)).await.unwrap().into_inner();
    assert_eq!((first.agents.len(), second.agents.len()), (2, 1));
    assert_eq!(second.next_page_token, "");
}

#[tokio::test]
async fn strangers_and_agents_are_kept_from_what_is_not_theirs() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    for channel in [rig.stranger().await, rig.remote(Some(&agent)).await.unwrap()] {
        let refused =
            refusal(agents(channel.clone()).count_agents(CountAgentsRequest { filter: None }).await);
        assert_eq!(refused.reason, Reason::Denied);
        let method = "/spire.api.server.agent.v1.Agent/CountAgents";
        assert_eq!(refused.public, format!("authorization denied for method {method}"));
        let list = entries(channel).list_entries(super::entries::everything()).await;
        assert_eq!(refusal(list).reason, Reason::Denied);
    }
    for channel in [rig.stranger().await, rig.local().await] {
        let refused = refusal(agents(channel).post_status(PostStatusRequest::default()).await);
        assert_eq!((refused.reason, refused.agent_fault), (Reason::Denied, None));
    }
}
