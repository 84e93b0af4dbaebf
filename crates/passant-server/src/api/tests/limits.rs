//! Do the limits of the configuration hold in a server that runs, and what do they leave to renewals?

use std::sync::Arc;
use std::time::Duration;

use passant_core::csr;
use passant_proto::agent::{AgentX509svidParams, ListAgentsRequest, PostStatusRequest, RenewAgentRequest};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::entry::{CountEntriesRequest, GetAuthorizedEntriesRequest, ListEntriesRequest};
use passant_proto::status;
use passant_proto::svid::{
    BatchNewX509svidRequest, MintJwtsvidRequest, NewDownstreamX509caRequest, NewJwtsvidRequest,
    NewX509svidParams,
};
use passant_proto::types;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::rig::{Rig, agents, bundles, entries, entry, svids, wire_id};

/// What makes a call again and again until it is refused; not more often than a machine that is much too slow would need.
async fn refusal_of<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Status {
    for _ in 0..10_000 {
        if let Err(status) = call().await
            && status.code() != Code::InvalidArgument
        {
            return status;
        }
    }
    panic!("nothing was refused")
}

fn check(rig: &Rig, refused: &Status, key: &str) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains(&format!("(limits.{key} of")), "{refused}");
    let wait = status::from_status(refused).retry_after.unwrap();
    assert!(!wait.is_zero() && wait < Duration::from_secs(60), "{wait:?}");
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"), "{refused:?}");
    let counted = format!("passant_server_limit_refusals_total{{limit=\"{key}\"}} ");
    let metrics = rig.running.metrics();
    let count = metrics.lines().find_map(|line| line.strip_prefix(&counted)).unwrap();
    assert!(count.parse::<u64>().unwrap() >= 1, "{metrics}");
}

fn csr_of(rig: &Rig) -> Vec<u8> {
    csr::make(&*rig.key(), None).unwrap()
}

#[tokio::test]
async fn what_the_configuration_says_of_one_caller_holds_and_others_are_served() {
    let rig = Rig::start_with(
        "[limits]\nattestations_per_address = { at_once = 6, per_second = 1 }\n\
         signatures_per_agent = { at_once = 6, per_second = 1 }\nmints_per_caller = { at_once = 3, per_second = 1 }\n\
         lists_per_caller = { at_once = 3, per_second = 1 }",
    )
    .await;
    let (greedy, modest) = (rig.agent().await, rig.agent().await);
    let made = rig.register(vec![entry(greedy.svid.id(), "/web", "unix:uid:1")]).await;
    let jwt = NewJwtsvidRequest { entry_id: made[0].id.clone(), audience: vec!["db".to_owned()] };
    let mut minting = svids(rig.remote(Some(&greedy)).await.unwrap());
    let refused = refusal_of(async || minting.new_jwtsvid(jwt.clone()).await).await;
    check(&rig, &refused, "signatures_per_agent");
    // Every one of a batch counts, and what never fits is told so.
    let param = NewX509svidParams { entry_id: made[0].id.clone(), csr: csr_of(&rig) };
    let batch = |count| BatchNewX509svidRequest { params: vec![param.clone(); count] };
    let refused = refusal_of(async || minting.batch_new_x509svid(batch(5)).await).await;
    check(&rig, &refused, "signatures_per_agent");
    let refused = minting.batch_new_x509svid(batch(6)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("limits.signatures_per_agent.at_once"), "{refused}");

    let mut syncing = entries(rig.remote(Some(&greedy)).await.unwrap());
    let sync = GetAuthorizedEntriesRequest { output_mask: None };
    let refused = refusal_of(async || syncing.get_authorized_entries(sync).await).await;
    check(&rig, &refused, "lists_per_caller");

    let (mut listing, mut counting) = (agents(rig.local().await), entries(rig.local().await));
    let refused = refusal_of(async || {
        listing.list_agents(ListAgentsRequest::default()).await?;
        counting.count_entries(CountEntriesRequest::default()).await
    })
    .await;
    check(&rig, &refused, "lists_per_caller");

    let mint = MintJwtsvidRequest { id: Some(wire_id("/minted")), audience: vec!["db".to_owned()], ttl: 0 };
    let mut minter = svids(rig.local().await);
    let refused = refusal_of(async || minter.mint_jwtsvid(mint.clone()).await).await;
    check(&rig, &refused, "mints_per_caller");

    let below = types::Entry { downstream: true, ..entry(modest.svid.id(), "/below", "unix:uid:1") };
    let below = rig.register(vec![below]).await.remove(0);
    let below = rig.svid_of(&modest, &below.id).await;
    let ask = NewDownstreamX509caRequest { csr: csr_of(&rig), preferred_ttl: 60 };
    let mut signing = svids(rig.remote(Some(&below)).await.unwrap());
    let refused = refusal_of(async || signing.new_downstream_x509ca(ask.clone()).await).await;
    check(&rig, &refused, "mints_per_caller");

    let mut stranger = bundles(rig.stranger().await);
    let bundle = GetBundleRequest { output_mask: None };
    let refused = refusal_of(async || stranger.get_bundle(bundle).await).await;
    check(&rig, &refused, "lists_per_caller");
    let refused = refusal_of(async || rig.attest("join_token", "guess", &rig.key()).await).await;
    check(&rig, &refused, "attestations_per_address");

    // None of it counts for another.
    let mut other = entries(rig.remote(Some(&modest)).await.unwrap());
    other.get_authorized_entries(sync).await.unwrap();
    let mut other = bundles(rig.remote(Some(&modest)).await.unwrap());
    for _ in 0..20 {
        other.get_bundle(bundle).await.unwrap();
    }
}

#[tokio::test]
async fn floods_at_their_limits_leave_another_agents_renewals_alone() {
    let small = "{ at_once = 60, per_second = 1 }";
    let rig = Rig::start_with(&format!(
        "[limits]\nsignatures = {small}\nsignatures_per_agent = {small}\nmints_per_caller = {small}\nlists = {small}\n\
         lists_per_caller = {small}\nattestations = {small}\nattestations_per_address = {small}\n\
         reserved_for_renewals = 60\ncall_waits = \"1s\"\ncalls = 16\nstrangers_calls = 16"
    ))
    .await;
    let (greedy, modest) = (rig.agent().await, rig.agent().await);
    let made = rig
        .register(vec![
            entry(greedy.svid.id(), "/greedy", "unix:uid:1"),
            entry(modest.svid.id(), "/modest", "unix:uid:1"),
        ])
        .await;
    let rig = Arc::new(rig);
    let jwt = NewJwtsvidRequest { entry_id: made[0].id.clone(), audience: vec!["db".to_owned()] };
    let mut flood = JoinSet::new();
    let (over, mut told) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..24 {
        let (rig, greedy, jwt, over) = (Arc::clone(&rig), greedy.clone(), jwt.clone(), over.clone());
        flood.spawn(async move {
            let mut minting = svids(rig.remote(Some(&greedy)).await.unwrap());
            let mut listing = entries(rig.local().await);
            loop {
                let answered = match number % 3 {
                    0 => minting.new_jwtsvid(jwt.clone()).await.map(drop),
                    1 => listing.list_entries(ListEntriesRequest::default()).await.map(drop),
                    _ => rig.attest("join_token", "guess", &rig.key()).await.map(drop),
                };
                let is_over = answered.is_err_and(|refused| refused.code() == Code::ResourceExhausted);
                if is_over && over.send(number % 3).is_err() {
                    return;
                }
            }
        });
    }
    // Once each kind has been refused, all is used up that they may use.
    let mut kinds = std::collections::BTreeSet::new();
    while kinds.len() < 3 {
        kinds.insert(told.recv().await.unwrap());
    }
    let mut renewing = agents(rig.remote(Some(&modest)).await.unwrap());
    let mut minting = svids(rig.remote(Some(&modest)).await.unwrap());
    let mut syncing = entries(rig.remote(Some(&modest)).await.unwrap());
    for _ in 0..3 {
        let params = vec![NewX509svidParams { entry_id: made[1].id.clone(), csr: csr_of(&rig) }; 5];
        let answer = minting.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap();
        let results = answer.into_inner().results;
        assert!(results.iter().all(|result| result.status.as_ref().unwrap().code == 0), "{results:?}");
        let params = Some(AgentX509svidParams { csr: csr_of(&rig) });
        renewing.renew_agent(RenewAgentRequest { params }).await.unwrap();
        syncing.get_authorized_entries(GetAuthorizedEntriesRequest { output_mask: None }).await.unwrap();
    }
    flood.shutdown().await;
}

#[tokio::test]
async fn places_for_calls_are_as_configured() {
    let rig =
        Rig::start_with("[limits]\nstrangers_calls = 2\ncalls_per_address = 1\ncall_waits = \"1s\"").await;
    // An attestation that says nothing keeps its place, which is the only one of its address.
    let (_silent, requests) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let _held = agents(rig.stranger().await).attest_agent(requests).await.unwrap();
    let mut other = bundles(rig.stranger().await);
    let refused = other.get_bundle(GetBundleRequest { output_mask: None }).await.unwrap_err();
    check(&rig, &refused, "calls_per_address");
    // Operators are apart from it.
    bundles(rig.local().await).get_bundle(GetBundleRequest { output_mask: None }).await.unwrap();
}

#[tokio::test]
async fn renewals_have_places_that_no_other_calls_take() {
    // Of sixteen places, three are for X509-SVIDs of workloads and one for those of agents.
    let rig = Rig::start_with("[limits]\ncalls = 16\ncall_waits = \"1s\"\nreserved_for_renewals = 25").await;
    let (greedy, modest) = (rig.agent().await, rig.agent().await);
    let made = rig.register(vec![entry(modest.svid.id(), "/modest", "unix:uid:1")]).await;
    let mut syncing = entries(rig.remote(Some(&greedy)).await.unwrap());
    let mut held = Vec::new();
    for _ in 0..13 {
        // A synchronization in which nothing is said stays under way.
        let (silent, requests) = tokio::sync::mpsc::channel(1);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        match syncing.sync_authorized_entries(requests).await {
            Ok(answers) => held.push((silent, answers)),
            Err(refused) => check(&rig, &refused, "calls_per_agent"),
        }
    }
    assert_eq!(held.len(), 12);
    let mut other = agents(rig.remote(Some(&modest)).await.unwrap());
    let refused = other.post_status(PostStatusRequest::default()).await.unwrap_err();
    check(&rig, &refused, "calls_per_agent");
    let params = Some(AgentX509svidParams { csr: csr_of(&rig) });
    other.renew_agent(RenewAgentRequest { params }).await.unwrap();
    let params = vec![NewX509svidParams { entry_id: made[0].id.clone(), csr: csr_of(&rig) }];
    let mut minting = svids(rig.remote(Some(&modest)).await.unwrap());
    minting.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap();
}
