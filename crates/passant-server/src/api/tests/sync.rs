//! Does SyncAuthorizedEntries keep to the exchange that SPIRE's agents know?

use std::collections::BTreeSet;

use passant_core::{AgentFault, Reason, csr};
use passant_proto::agent::{AgentX509svidParams, BanAgentRequest, GetAgentRequest, RenewAgentRequest};
use passant_proto::convert;
use passant_proto::entry::SyncAuthorizedEntriesRequest;
use passant_proto::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::rig::{Identity, Rig, agents, entries, entry, refusal};

struct Exchange {
    requests: mpsc::Sender<SyncAuthorizedEntriesRequest>,
    answers: Streaming<passant_proto::entry::SyncAuthorizedEntriesResponse>,
}

impl Exchange {
    async fn begin(rig: &Rig, agent: &Identity, first: SyncAuthorizedEntriesRequest) -> Self {
        let (requests, stream) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let mut client = entries(rig.remote(Some(agent)).await.unwrap());
        let answers = client.sync_authorized_entries(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn ask(&self, ids: &[&str]) {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        self.requests.send(SyncAuthorizedEntriesRequest { output_mask: None, ids }).await.unwrap();
    }
}

fn first() -> SyncAuthorizedEntriesRequest {
    SyncAuthorizedEntriesRequest { output_mask: Some(convert::entry::AUTHORIZED), ids: Vec::new() }
}

/// So many entries below `agent`, in batches that fit one message.
async fn register_many(rig: &Rig, agent: &Identity, many: usize) -> Vec<types::Entry> {
    let wanted = (0..many).map(|at| types::Entry {
        id: format!("e{at:04}"),
        ..entry(agent.svid.id(), &format!("/w{at}"), "unix:uid:1")
    });
    rig.register(wanted.collect()).await
}

#[tokio::test]
async fn a_small_set_comes_whole_and_the_stream_ends() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let mut empty = Exchange::begin(&rig, &agent, first()).await;
    let answer = empty.answers.message().await.unwrap().unwrap();
    assert_eq!((answer.entries.len(), answer.entry_revisions.len(), answer.more), (0, 0, false));
    assert!(empty.answers.message().await.unwrap().is_none());

    register_many(&rig, &agent, 500).await;
    let mut whole = Exchange::begin(&rig, &agent, first()).await;
    let answer = whole.answers.message().await.unwrap().unwrap();
    assert_eq!((answer.entries.len(), answer.entry_revisions.len()), (500, 0));
    assert!(answer.entries.iter().all(|entry| entry.parent_id.is_none() && entry.spiffe_id.is_some()));
    assert!(whole.answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn of_a_large_set_revisions_come_first_and_entries_on_demand() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let made = register_many(&rig, &agent, 501).await;
    let mut exchange = Exchange::begin(&rig, &agent, first()).await;
    let mut revisions = Vec::new();
    for (size, more) in [(500, true), (1, false)] {
        let answer = exchange.answers.message().await.unwrap().unwrap();
        assert_eq!((answer.entry_revisions.len(), answer.entries.len(), answer.more), (size, 0, more));
        revisions.extend(answer.entry_revisions);
    }
    let seen: BTreeSet<_> =
        revisions.iter().map(|r| (r.id.as_str(), r.revision_number, r.created_at)).collect();
    let expected: BTreeSet<_> =
        made.iter().map(|entry| (entry.id.as_str(), entry.revision_number, entry.created_at)).collect();
    assert_eq!(seen, expected);

    exchange.ask(&["e0500", "not-ours", "e0001"]).await;
    let answer = exchange.answers.message().await.unwrap().unwrap();
    let ids: Vec<&str> = answer.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!((ids, answer.more, answer.entry_revisions.len()), (vec!["e0001", "e0500"], false, 0));
    // The mask of the first request holds for all of them.
    assert!(answer.entries.iter().all(|entry| entry.parent_id.is_none()));

    let all: Vec<&str> = made.iter().map(|entry| entry.id.as_str()).collect();
    exchange.ask(&all).await;
    for (size, more) in [(500, true), (1, false)] {
        let answer = exchange.answers.message().await.unwrap().unwrap();
        assert_eq!((answer.entries.len(), answer.more), (size, more));
    }
    exchange.ask(&[]).await;
    let answer = exchange.answers.message().await.unwrap().unwrap();
    assert_eq!((answer.entries.len(), answer.more), (0, false));
    drop(exchange.requests);
    assert!(exchange.answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn large_entries_come_in_messages_that_clients_accept() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    // 60 entries of about 100 kB are few, but more than one message may hold.
    let value = "x".repeat(8_000);
    for batch in 0..6 {
        let wanted = (0..10).map(|at| {
            let mut entry = entry(agent.svid.id(), &format!("/w{batch}-{at}"), "unix:uid:1");
            entry.selectors =
                (0..13).map(|n| super::rig::selector(&format!("unix:path:{n}{value}"))).collect();
            entry
        });
        rig.register(wanted.collect()).await;
    }
    let mut exchange = Exchange::begin(&rig, &agent, first()).await;
    let revisions = exchange.answers.message().await.unwrap().unwrap();
    assert_eq!((revisions.entry_revisions.len(), revisions.more), (60, false));
    let ids: Vec<&str> = revisions.entry_revisions.iter().map(|revision| revision.id.as_str()).collect();
    exchange.ask(&ids).await;
    let (mut got, mut messages) = (0, 0);
    loop {
        let answer = exchange.answers.message().await.unwrap().unwrap();
        got += answer.entries.len();
        messages += 1;
        if !answer.more {
            break;
        }
    }
    assert_eq!(got, 60);
    assert!(messages > 1);
}

#[tokio::test]
async fn a_first_request_of_the_wrong_form_is_refused() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let with_ids = SyncAuthorizedEntriesRequest { output_mask: None, ids: vec!["a".to_owned()] };
    let masked = SyncAuthorizedEntriesRequest {
        output_mask: Some(types::EntryMask { spiffe_id: true, ..types::EntryMask::default() }),
        ids: Vec::new(),
    };
    for (request, named) in [(with_ids, "IDs"), (masked, "revision number")] {
        let mut exchange = Exchange::begin(&rig, &agent, request).await;
        let refused = refusal(exchange.answers.message().await);
        assert_eq!(refused.reason, Reason::Invalid);
        assert!(refused.public.contains(named), "{refused}");
    }
}

#[tokio::test]
async fn a_request_that_arrives_slowly_is_judged_when_it_is_there() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let key = rig.key();
    let params = Some(AgentX509svidParams { csr: csr::make(&*key, None).unwrap() });
    let mut renewing = agents(rig.remote(Some(&agent)).await.unwrap());
    let renewed = renewing.renew_agent(RenewAgentRequest { params }).await.unwrap().into_inner();
    let renewed =
        Identity { svid: convert::svid::x509_from_wire(renewed.svid.as_ref().unwrap()).unwrap(), key };

    // A unary call whose only message is held back; it is wired like a first message of the stream.
    let (message, held) = mpsc::channel(1);
    let channel = rig.remote(Some(&renewed)).await.unwrap();
    let unary = tower::util::MapRequest::new(channel, |mut request: http::Request<tonic::body::Body>| {
        *request.uri_mut() =
            http::Uri::from_static("http://x/spire.api.server.entry.v1.Entry/GetAuthorizedEntries");
        request
    });
    let mut client = passant_proto::entry::entry_client::EntryClient::new(unary);
    let call =
        tokio::spawn(
            async move { client.sync_authorized_entries(ReceiverStream::new(held)).await.map(drop) },
        );

    // That it was let in shows in the agent's serial: the first call with the renewed SVID makes it the active one.
    let id = Some(convert::id::to_wire(agent.svid.id()));
    let mut operator = agents(rig.local().await);
    let is_let_in = async {
        let serial = renewed.svid.serial().to_decimal();
        let asked = GetAgentRequest { id: id.clone(), output_mask: None };
        while operator.get_agent(asked.clone()).await.unwrap().into_inner().x509svid_serial_number != serial {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), is_let_in).await.unwrap();
    operator.ban_agent(BanAgentRequest { id }).await.unwrap();
    message.send(first()).await.unwrap();
    drop(message);
    let refused = refusal(call.await.unwrap());
    assert_eq!((refused.reason, refused.agent_fault), (Reason::Denied, Some(AgentFault::Banned)));
}

#[tokio::test]
async fn an_open_stream_ends_when_its_agent_is_banned() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    register_many(&rig, &agent, 501).await;
    let mut exchange = Exchange::begin(&rig, &agent, first()).await;
    for _ in 0..2 {
        exchange.answers.message().await.unwrap().unwrap();
    }
    let id = Some(convert::id::to_wire(agent.svid.id()));
    agents(rig.local().await).ban_agent(BanAgentRequest { id }).await.unwrap();
    let refused = refusal(exchange.answers.message().await);
    assert_eq!((refused.reason, refused.agent_fault), (Reason::Denied, Some(AgentFault::Banned)));
}
