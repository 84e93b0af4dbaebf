//! Does an agent's watch work over the real port, and beside SPIRE's services?

use passant_core::{AgentFault, Reason};
use passant_proto::agent::BanAgentRequest;
use passant_proto::convert;
use passant_proto::entry::GetAuthorizedEntriesRequest;
use passant_proto::sync::sync_client::SyncClient;
use passant_proto::sync::watch_request::Request;
use passant_proto::sync::watch_response::Response;
use passant_proto::sync::{
    Ack, BatchMintX509svidRequest, Evidence, Hello, MintJwtsvidRequest, Update, WatchRequest, WatchResponse,
    batch_mint_x509svid_request::Item,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::rig::{Identity, Rig, agents, entries, entry, refusal, selector};

struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watch {
    async fn begin(channel: Channel) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(4);
        let hello = Hello { protocol: 1, version: "7.7".to_owned(), ..Hello::default() };
        requests.send(WatchRequest { request: Some(Request::Hello(hello)) }).await.unwrap();
        let answers = SyncClient::new(channel).watch(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, answers })
    }

    /// The next update, acknowledged.
    async fn update(&mut self) -> Update {
        loop {
            if let Response::Update(update) = self.answers.message().await.unwrap().unwrap().response.unwrap()
            {
                let ack = Ack { cursor: update.cursor.clone() };
                self.requests.send(WatchRequest { request: Some(Request::Ack(ack)) }).await.unwrap();
                return update;
            }
        }
    }
}

async fn mint(rig: &Rig, agent: &Identity, items: Vec<Item>) -> Vec<(i32, String, bool)> {
    let mut client = SyncClient::new(rig.remote(Some(agent)).await.unwrap());
    let answer = client.batch_mint_x509svid(BatchMintX509svidRequest { items }).await.unwrap().into_inner();
    let told = answer.results.into_iter().map(|result| {
        let status = result.status.unwrap();
        (status.code, status.message, result.svid.is_some())
    });
    told.collect()
}

#[tokio::test]
async fn a_watching_agent_hears_of_a_change_and_of_its_ban() {
    // Calls have one place in all, and a watch takes none.
    let rig = Rig::start_with("[limits]\ncalls = 16\ncalls_per_agent = 1").await;
    let agent = rig.agent().await;
    let channel = rig.remote(Some(&agent)).await.unwrap();
    let mut watch = Watch::begin(channel.clone()).await.unwrap();
    let first = watch.update().await;
    assert!(first.snapshot && first.entries.is_empty() && first.bundles.len() == 1);
    let made = rig.register(vec![entry(agent.svid.id(), "/w", "unix:uid:1")]).await;
    let delta = watch.update().await;
    let told = delta.entries[0].entry.clone().unwrap();
    assert_eq!((told.id, told.parent_id, delta.snapshot), (made[0].id.clone(), None, false));
    // The same truth for who polls.
    let polled =
        entries(channel).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap();
    assert_eq!(polled.into_inner().entries[0].id, made[0].id);

    let id = Some(convert::id::to_wire(agent.svid.id()));
    agents(rig.local().await).ban_agent(BanAgentRequest { id }).await.unwrap();
    let refused = refusal(watch.answers.message().await);
    assert_eq!((refused.reason, refused.agent_fault), (Reason::Denied, Some(AgentFault::Banned)));
}

#[tokio::test]
async fn a_watch_ends_when_the_server_stops() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let mut watch = Watch::begin(rig.remote(Some(&agent)).await.unwrap()).await.unwrap();
    watch.update().await;
    let (stopped, ended) = tokio::join!(rig.stop(), watch.answers.message());
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    drop(stopped);
}

#[tokio::test]
async fn nobody_but_agents_watches() {
    let rig = Rig::start().await;
    for channel in [rig.stranger().await, rig.local().await] {
        let refused = Watch::begin(channel).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn what_is_minted_on_evidence_is_held_against_the_entry() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let made = rig.register(vec![entry(agent.svid.id(), "/w", "unix:uid:1")]).await;
    let evidence = |texts: &[&str]| Evidence {
        selectors: texts.iter().map(|text| selector(text)).collect(),
        instance: "boot/7/9".to_owned(),
        attestors: vec!["unix".to_owned()],
        attested_at_millis: rig.host.now().secs() * 1000,
    };
    let item = |evidence| Item {
        entry_id: made[0].id.clone(),
        csr: passant_core::csr::make(&*rig.key(), None).unwrap(),
        evidence,
    };
    let outcomes = mint(
        &rig,
        &agent,
        vec![
            item(Some(evidence(&["unix:uid:1", "unix:gid:1"]))),
            item(Some(evidence(&["unix:gid:1"]))),
            item(Some(Evidence { instance: "7".to_owned(), ..evidence(&["unix:uid:1"]) })),
            item(None),
        ],
    )
    .await;
    let codes: Vec<(i32, bool)> = outcomes.iter().map(|(code, _, minted)| (*code, *minted)).collect();
    let (denied, invalid) = (Code::PermissionDenied as i32, Code::InvalidArgument as i32);
    assert_eq!(codes, [(0, true), (denied, false), (invalid, false), (0, true)], "{outcomes:?}");

    let mut client = SyncClient::new(rig.remote(Some(&agent)).await.unwrap());
    for (selectors, code) in [(&["unix:uid:1"], Code::Ok), (&["unix:uid:2"], Code::PermissionDenied)] {
        let request = MintJwtsvidRequest {
            entry_id: made[0].id.clone(),
            audience: vec!["db".to_owned()],
            evidence: Some(evidence(selectors)),
        };
        let minted = client.mint_jwtsvid(request).await;
        assert_eq!(minted.as_ref().err().map_or(Code::Ok, Status::code), code);
        assert_eq!(minted.is_ok_and(|minted| minted.into_inner().svid.is_some()), code == Code::Ok);
    }
    let empty = client.batch_mint_x509svid(BatchMintX509svidRequest::default()).await;
    assert_eq!(empty.unwrap_err().code(), Code::InvalidArgument);
}
