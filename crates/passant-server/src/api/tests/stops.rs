//! Is what an operator stops not issued, told of with whom it has reached, and resumed?

use passant_core::{Reason, csr};
use passant_proto::agent::DeleteAgentRequest;
use passant_proto::convert;
use passant_proto::entry::{
    BatchDeleteEntryRequest, GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest,
};
use passant_proto::stop::stop_client::StopClient;
use passant_proto::stop::{
    AwaitRolloutRequest, Instance, ListStopsRequest, PendingState, ResumeRequest, StopRequest, StopStatus,
    Target, target,
};
use passant_proto::svid::{BatchNewX509svidRequest, NewX509svidParams};
use passant_proto::types;
use tonic::transport::Channel;

use super::rig::{Identity, Rig, agents, entries, entry, refusal, svids, trust_domain};

fn of_entry(id: &str) -> Option<Target> {
    Some(Target { target: Some(target::Target::EntryId(id.to_owned())) })
}

fn of_agent(agent: &Identity) -> Option<Target> {
    Some(Target { target: Some(target::Target::AgentId(agent.svid.id().to_string())) })
}

fn of_process(agent: &Identity, instance: &str) -> Option<Target> {
    let (agent_id, instance) = (agent.svid.id().to_string(), instance.to_owned());
    Some(Target { target: Some(target::Target::Instance(Instance { agent_id, instance })) })
}

fn stop(target: Option<Target>) -> StopRequest {
    StopRequest { target, reason: "compromised".to_owned(), wait_millis: 0 }
}

fn resume(target: Option<Target>) -> ResumeRequest {
    ResumeRequest { target, reason: "clean again".to_owned(), wait_millis: 0 }
}

async fn client(rig: &Rig) -> StopClient<Channel> {
    StopClient::new(rig.local().await)
}

/// Makes the agent ask for all of its entries, as SPIRE's do; their IDs.
async fn poll(rig: &Rig, agent: &Identity) -> Vec<String> {
    let mut client = entries(rig.remote(Some(agent)).await.unwrap());
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let answer = client.get_authorized_entries(request).await.unwrap().into_inner();
    answer.entries.into_iter().map(|entry| entry.id).collect()
}

async fn mint(rig: &Rig, agent: &Identity, entry_id: &str) -> i32 {
    let params =
        NewX509svidParams { entry_id: entry_id.to_owned(), csr: csr::make(&*rig.key(), None).unwrap() };
    let mut client = svids(rig.remote(Some(agent)).await.unwrap());
    let request = BatchNewX509svidRequest { params: vec![params] };
    let answer = client.batch_new_x509svid(request).await.unwrap().into_inner();
    answer.results[0].status.as_ref().unwrap().code
}

async fn listed(rig: &Rig) -> Vec<StopStatus> {
    let answer = client(rig).await.list_stops(ListStopsRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.next_page_token, "");
    answer.stops
}

#[tokio::test]
async fn a_stop_holds_until_it_is_resumed_and_says_whom_it_has_reached() {
    let rig = Rig::start().await;
    let (one, other) = (rig.agent().await, rig.agent().await);
    let made = rig
        .register(vec![
            types::Entry {
                x509_svid_ttl: 60,
                jwt_svid_ttl: 30,
                ..entry(one.svid.id(), "/web", "unix:uid:1")
            },
            entry(one.svid.id(), "/db", "unix:uid:2"),
            entry(other.svid.id(), "/web", "unix:uid:1"),
        ])
        .await;
    let web = made[0].id.clone();
    assert_eq!(poll(&rig, &one).await.len(), 2);
    let mut client = client(&rig).await;
    let before = rig.host.now().secs();
    let stopped = client.stop(stop(of_entry(&web))).await.unwrap().into_inner();
    let told = stopped.stop.unwrap();
    assert!(stopped.created && told.reason == "compromised" && told.by.starts_with("local uid="), "{told:?}");
    let rollout = told.rollout.unwrap();
    assert_eq!((rollout.applied, rollout.pending.len(), rollout.pending_left_out), (0, 1, 0));
    let pending = &rollout.pending[0];
    assert_eq!(pending.agent_id, one.svid.id().to_string());
    assert_eq!(pending.state(), PendingState::Polls);
    let end = pending.may_serve_until;
    assert!((before + 60..=rig.host.now().secs() + 60).contains(&end), "{end}");

    assert_eq!(mint(&rig, &one, &web).await, i32::from(tonic::Code::NotFound));
    // What was broken off brought nothing, and what was answered may be lost until the agent asks again.
    let broken_off = tokio_stream::pending::<SyncAuthorizedEntriesRequest>();
    drop(entries(rig.remote(Some(&one)).await.unwrap()).sync_authorized_entries(broken_off).await.unwrap());
    assert_eq!(poll(&rig, &one).await, [made[1].id.clone()]);
    let rollout = listed(&rig).await.remove(0).rollout.unwrap();
    assert_eq!((rollout.applied, rollout.pending[0].state()), (0, PendingState::Polls));
    poll(&rig, &one).await;
    assert_eq!(poll(&rig, &other).await.len(), 1);
    let again =
        client.stop(StopRequest { reason: "twice".to_owned(), ..stop(of_entry(&web)) }).await.unwrap();
    let again = again.into_inner();
    let (status, rollout) = (again.stop.clone().unwrap(), again.stop.unwrap().rollout.unwrap());
    assert!(!again.created && status.id == told.id && status.reason == "compromised");
    assert_eq!((rollout.applied, rollout.pending.len()), (1, 0), "it has polled since");
    assert_eq!(listed(&rig).await, [status]);

    let wait = ResumeRequest { wait_millis: 20, ..resume(of_entry(&web)) };
    let resumed = client.resume(wait).await.unwrap().into_inner();
    assert_eq!((resumed.stop_id, resumed.rollout.unwrap().pending.len()), (told.id, 1));
    assert_eq!(refusal(client.resume(resume(of_entry(&web))).await).reason, Reason::NotFound);
    assert_eq!((mint(&rig, &one, &web).await, listed(&rig).await), (0, vec![]));
}

#[tokio::test]
async fn a_whole_agent_is_stopped_and_stays_one() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let web = rig.register(vec![entry(agent.svid.id(), "/web", "unix:uid:1")]).await.remove(0).id;
    let mut client = client(&rig).await;
    client.stop(stop(of_agent(&agent))).await.unwrap();
    client.stop(stop(of_process(&agent, "boot/7/1"))).await.unwrap();
    assert_eq!(poll(&rig, &agent).await, Vec::<String>::new());
    assert_eq!(mint(&rig, &agent, &web).await, i32::from(tonic::Code::NotFound));
    let targets: Vec<_> = listed(&rig).await.into_iter().map(|stop| stop.target).collect();
    assert!(targets.contains(&of_agent(&agent)) && targets.contains(&of_process(&agent, "boot/7/1")));
    client.resume(resume(of_agent(&agent))).await.unwrap();
    assert_eq!((mint(&rig, &agent, &web).await, poll(&rig, &agent).await.len()), (0, 1));
}

#[tokio::test]
async fn a_stop_of_a_process_is_not_taken_for_applied_by_an_agent_that_polls() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    rig.register(vec![entry(agent.svid.id(), "/web", "unix:uid:1")]).await;
    client(&rig).await.stop(stop(of_process(&agent, "boot/7/1"))).await.unwrap();
    assert_eq!(poll(&rig, &agent).await.len(), 1, "it is served on");
    let rollout = listed(&rig).await.remove(0).rollout.unwrap();
    assert_eq!((rollout.applied, rollout.pending.len()), (0, 1));
    let told = &rollout.pending[0];
    assert_eq!((told.state(), told.may_serve_until), (PendingState::Unable, 0));
    let resumed = client(&rig).await.resume(resume(of_process(&agent, "boot/7/1"))).await.unwrap();
    poll(&rig, &agent).await;
    let rollout = resumed.into_inner().rollout.unwrap();
    assert_eq!(rollout.pending[0].state(), PendingState::Polls, "there is nothing it has to know");
}

#[tokio::test]
async fn a_stopped_agent_that_is_evicted_and_comes_back_is_stopped() {
    let rig = Rig::start().await;
    let attest = async || {
        let token = rig.join_token("again", None).await;
        rig.attest("join_token", &token, &rig.key()).await.unwrap()
    };
    let agent = attest().await;
    let web = rig.register(vec![entry(agent.svid.id(), "/web", "unix:uid:1")]).await.remove(0).id;
    client(&rig).await.stop(stop(of_agent(&agent))).await.unwrap();
    client(&rig).await.stop(stop(of_process(&agent, "boot/7/1"))).await.unwrap();
    let evict = DeleteAgentRequest { id: Some(convert::id::to_wire(agent.svid.id())) };
    agents(rig.local().await).delete_agent(evict).await.unwrap();
    let back = attest().await;
    assert_eq!(back.svid.id(), agent.svid.id());
    assert_eq!(poll(&rig, &back).await, Vec::<String>::new());
    assert_eq!(mint(&rig, &back, &web).await, i32::from(tonic::Code::NotFound));
    assert_eq!(listed(&rig).await.len(), 2);
    client(&rig).await.resume(resume(of_agent(&agent))).await.unwrap();
    assert_eq!((mint(&rig, &back, &web).await, poll(&rig, &back).await.len()), (0, 1));
}

#[tokio::test]
async fn stops_go_with_their_entry() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let web = rig.register(vec![entry(agent.svid.id(), "/web", "unix:uid:1")]).await.remove(0).id;
    client(&rig).await.stop(stop(of_entry(&web))).await.unwrap();
    assert_eq!(listed(&rig).await.len(), 1);
    let delete = BatchDeleteEntryRequest { ids: vec![web] };
    entries(rig.local().await).batch_delete_entry(delete).await.unwrap();
    assert_eq!(listed(&rig).await, []);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told() {
    let rig = Rig::start().await;
    let mut client = client(&rig).await;
    let agent = rig.agent().await;
    for (request, reason) in [
        (stop(None), Reason::Invalid),
        (stop(of_entry("a/b")), Reason::Invalid),
        (stop(of_process(&agent, "1")), Reason::Invalid),
        (stop(of_entry("none")), Reason::NotFound),
        (StopRequest { reason: " ".to_owned(), ..stop(of_agent(&agent)) }, Reason::Invalid),
        (StopRequest { wait_millis: 60_001, ..stop(of_agent(&agent)) }, Reason::Invalid),
    ] {
        assert_eq!(refusal(client.stop(request.clone()).await).reason, reason, "{request:?}");
    }
    let many =
        AwaitRolloutRequest { entry_ids: vec!["e".to_owned(); 1_001], ..AwaitRolloutRequest::default() };
    assert_eq!(refusal(client.await_rollout(many).await).reason, Reason::Exhausted);
    let wrong = AwaitRolloutRequest { parent_ids: vec!["x".to_owned()], ..AwaitRolloutRequest::default() };
    assert_eq!(refusal(client.await_rollout(wrong).await).reason, Reason::Invalid);
}

#[tokio::test]
async fn lists_come_in_pages_and_oldest_first() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let mut client = client(&rig).await;
    for pid in 1..=60 {
        client.stop(stop(of_process(&agent, &format!("boot/{pid}/1")))).await.unwrap();
    }
    let (mut ids, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListStopsRequest { target: None, page_size: 1_000, page_token: token };
        let page = client.list_stops(request).await.unwrap().into_inner();
        pages += 1;
        ids.extend(page.stops.iter().map(|stop| (stop.since, stop.id.clone())));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((ids.len(), pages, ids.is_sorted()), (60, 2, true));
}

#[tokio::test]
async fn a_rollout_is_of_those_that_an_entry_belongs_to_or_did() {
    let rig = Rig::start().await;
    let (one, other) = (rig.agent().await, rig.agent().await);
    let web = rig.register(vec![entry(one.svid.id(), "/web", "unix:uid:1")]).await.remove(0).id;
    let mut client = client(&rig).await;
    let mut pending = async |entry_ids: &[&str], parent_ids: &[&Identity]| {
        let entry_ids = entry_ids.iter().map(|id| (*id).to_owned()).collect();
        let parent_ids = parent_ids.iter().map(|agent| agent.svid.id().to_string()).collect();
        let request = AwaitRolloutRequest { entry_ids, parent_ids, wait_millis: 0 };
        let rollout = client.await_rollout(request).await.unwrap().into_inner().rollout.unwrap();
        rollout.pending.into_iter().map(|pending| pending.agent_id).collect::<Vec<_>>()
    };
    let id = |agent: &Identity| agent.svid.id().to_string();
    let mut both = vec![id(&one), id(&other)];
    both.sort();
    assert_eq!(pending(&[&web], &[]).await, [id(&one)]);
    assert_eq!(pending(&[], &[]).await, both);
    assert_eq!(pending(&["gone"], &[]).await, both, "nobody knows whose it was");
    assert_eq!(pending(&["gone"], &[&other]).await, [id(&other)]);
    assert_eq!(pending(&[&web], &[&other]).await, both);
    for _ in 0..2 {
        poll(&rig, &one).await;
    }
    assert_eq!(pending(&[&web], &[&other]).await, [id(&other)]);
}

#[tokio::test]
async fn a_role_stops_what_it_covers() {
    let rig = Rig::start_with(
        "[[role]]\nname = \"warden\"\nverbs = [\"stop.read\", \"stop.write\"]\n\
         spiffe_id_prefixes = [\"spiffe://example.org/pay\"]\n\
         parent_id_prefixes = [\"spiffe://example.org/spire/agent/join_token\"]\nselector_types = [\"unix\"]\n\
         [role.granted_to]\nspiffe_ids = [\"spiffe://example.org/warden\"]\n",
    )
    .await;
    let agent = rig.agent().await;
    let foreign = trust_domain().join("/spire/agent/x509pop/other").unwrap();
    let made = rig
        .register(vec![
            entry(agent.svid.id(), "/warden", "unix:uid:9"),
            entry(agent.svid.id(), "/pay/web", "unix:uid:1"),
            entry(agent.svid.id(), "/web", "unix:uid:1"),
            types::Entry { admin: true, ..entry(agent.svid.id(), "/pay/boss", "unix:uid:1") },
        ])
        .await;
    let warden = rig.svid_of(&agent, &made[0].id).await;
    let mut by_role = StopClient::new(rig.remote(Some(&warden)).await.unwrap());
    let stopped = by_role.stop(stop(of_entry(&made[1].id))).await.unwrap().into_inner().stop.unwrap();
    assert_eq!(stopped.by, "role warden spiffe://example.org/warden");
    assert_eq!(stopped.rollout.unwrap().pending[0].agent_id, agent.svid.id().to_string());
    by_role.stop(stop(of_process(&agent, "boot/1/1"))).await.unwrap();
    let of_foreign = Some(Target { target: Some(target::Target::AgentId(foreign.to_string())) });
    for (target, reason) in [
        (of_entry(&made[2].id), Reason::NotFound),
        (of_entry(&made[3].id), Reason::NotFound),
        (of_foreign, Reason::Denied),
    ] {
        assert_eq!(refusal(by_role.stop(stop(target.clone())).await).reason, reason, "{target:?}");
    }
    client(&rig).await.stop(stop(of_entry(&made[2].id))).await.unwrap();
    let seen = by_role.list_stops(ListStopsRequest::default()).await.unwrap().into_inner().stops;
    assert_eq!((seen.len(), listed(&rig).await.len()), (2, 3), "what it does not cover it does not see");
    assert_eq!(refusal(by_role.resume(resume(of_entry(&made[2].id))).await).reason, Reason::NotFound);
    by_role.resume(resume(of_entry(&made[1].id))).await.unwrap();
    let everything = AwaitRolloutRequest::default();
    assert_eq!(refusal(by_role.await_rollout(everything).await).reason, Reason::Denied);
    // The warden's own entry is stopped: no more of that.
    client(&rig).await.stop(stop(of_entry(&made[0].id))).await.unwrap();
    assert_eq!(refusal(by_role.list_stops(ListStopsRequest::default()).await).reason, Reason::Denied);
}
