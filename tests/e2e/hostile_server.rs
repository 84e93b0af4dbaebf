//! Does the server stay of use to honest callers, and within its memory and descriptors, while others misuse it?
//!
//! Attackers come from an address of their own where it matters, and are told why they are refused where the protocol has a
//! word for it. Sizes are judged loosely: each is far below what the attack takes where its bound is missing.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_attest::node::join_token::{JoinTokenProver, Token};
use passant_core::bundle::Bundle;
use passant_core::keys::KeyType;
use passant_core::{Host, csr};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{
    AgentX509svidParams, AttestAgentRequest, CountAgentsRequest, attest_agent_request,
};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::svid::{BatchNewX509svidRequest, NewX509svidParams};
use passant_proto::{convert, types};
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::hostile::{self, Abuse, GET_BUNDLE, Hostile};
use passant_tests::node::{self, HeldSvid};
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::tls::{self, Shown};
use passant_tests::usage::Usage;
use passant_tests::wait::eventually;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long an honest caller may have to wait on a loaded machine. Below every time limit that the server itself has for
/// who is slow, so that nobody is served only because an attack was given up.
const SERVED_WITHIN: Duration = Duration::from_secs(8);

async fn bundle(site: &Site) -> anyhow::Result<Arc<Bundle>> {
    let wire = site.operator().await?.bundles().get_bundle(GetBundleRequest { output_mask: None }).await?;
    Ok(Arc::new(convert::bundle::from_wire(&wire.into_inner())?))
}

/// A node that has attested, and its channel.
async fn new_node(site: &Site) -> anyhow::Result<(HeldSvid, Channel)> {
    let token = site.join_token().await?;
    let (bundle, key) = (bundle(site).await?, Host::system().keys.generate(KeyType::EcP256)?);
    let stranger = node::connect(&site.address(), Arc::clone(&bundle), None).await?;
    let mut prover = JoinTokenProver::new(Token::parse(&token)?);
    let svid = node::attest(stranger, &mut prover, &*key).await?;
    let held = HeldSvid { svid, key };
    let channel = node::connect(&site.address(), bundle, Some(&held)).await?;
    Ok((held, channel))
}

/// What everybody honest needs: a node attests, and gets an SVID of its entry; an operator is answered.
async fn honest_callers_are_served(site: &Site, entry: &str) -> anyhow::Result<()> {
    let served = async {
        let (_, channel) = new_node(site).await?;
        mint(channel, entry, 1).await?;
        site.operator().await?.agents().count_agents(CountAgentsRequest { filter: None }).await?;
        anyhow::Ok(())
    };
    tokio::time::timeout(SERVED_WITHIN, served).await.context("an honest caller was kept waiting")?
}

/// Has `count` SVIDs of one entry minted in one batch.
async fn mint(channel: Channel, entry: &str, count: usize) -> anyhow::Result<()> {
    let key = Host::system().keys.generate(KeyType::EcP256)?;
    let param = NewX509svidParams { entry_id: entry.to_owned(), csr: csr::make(&*key, None)? };
    let request = BatchNewX509svidRequest { params: vec![param; count] };
    let answer = SvidClient::new(channel).batch_new_x509svid(request).await?.into_inner();
    let fine = answer.results.iter().filter(|result| result.svid.is_some()).count();
    ensure!(fine == count, "{fine} of {count} were minted: {:?}", answer.results[0].status);
    Ok(())
}

fn shown(held: &HeldSvid) -> Shown {
    let chain = held.svid.chain().iter().map(|certificate| certificate.to_vec()).collect();
    Shown { chain, key: held.key.pkcs8().expose().clone() }
}

async fn attest(channel: Channel, payload: Vec<u8>) -> Result<(), Status> {
    let params = attest_agent_request::Params {
        data: Some(types::AttestationData { r#type: "join_token".to_owned(), payload }),
        params: Some(AgentX509svidParams { csr: vec![1; 16] }),
    };
    let request = AttestAgentRequest { step: Some(attest_agent_request::Step::Params(params)) };
    let mut answers =
        AgentClient::new(channel).attest_agent(tokio_stream::iter([request])).await?.into_inner();
    answers.message().await.map(drop)
}

/// A channel of a stranger at [`hostile::ELSEWHERE`].
async fn stranger_elsewhere(site: &Site) -> anyhow::Result<Channel> {
    let address = site.address();
    let connect = move |_| {
        let address = address.clone();
        async move {
            let tcp = hostile::tcp_from_elsewhere(&address).await.map_err(std::io::Error::other)?;
            let tls = tls::connect_over(tcp, None).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls))
        }
    };
    let endpoint = tonic::transport::Endpoint::from_static("http://server");
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

#[tokio::test]
async fn half_open_handshakes_of_one_address_keep_nobody_out() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    let before = Usage::of(server.pid())?;
    let mut attackers = Vec::new();
    for n in 0..700 {
        let mut tcp = hostile::tcp_from_elsewhere(&site.address()).await?;
        if n % 2 == 0 {
            // The beginning of a ClientHello, and no more of it.
            drop(tcp.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await);
        }
        attackers.push(tcp);
    }
    honest_callers_are_served(&site, &entry).await?;
    let during = Usage::of(server.pid())?;
    // They wait, each for a descriptor; what a handshake takes, only a few have.
    ensure!(during.resident < before.resident + 16 * 1024, "{before:?} {during:?}");
    drop(attackers);
    eventually("the descriptors to be free again", READY_WITHIN, || async {
        let after = Usage::of(server.pid())?;
        ensure!(after.descriptors < before.descriptors + 20, "{before:?} {after:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn abuse_of_http2_costs_the_abuser_its_connection() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    honest_callers_are_served(&site, &entry).await?;
    let before = Usage::of(server.pid())?;
    for abuse in Abuse::ALL {
        let mut over_tls = Hostile::open(tls::connect(&site.address(), None).await?, 65_535).await;
        abuse.commit(&mut over_tls, GET_BUNDLE).await;
        let mut local = Hostile::open(UnixStream::connect(site.server_socket()).await?, 65_535).await;
        abuse.commit(&mut local, GET_BUNDLE).await;
        honest_callers_are_served(&site, &entry).await.with_context(|| format!("{abuse:?}"))?;
        if abuse.is_ended() {
            for end in [over_tls.ended().await, local.ended().await] {
                let end = end.with_context(|| format!("{abuse:?}"))?;
                if abuse == Abuse::RapidReset {
                    hostile::assert_told(&end, "")?;
                }
            }
        }
        let during = Usage::of(server.pid())?;
        ensure!(during.resident < before.resident + 64 * 1024, "{abuse:?}: {before:?} {during:?}");
    }
    Ok(())
}

#[tokio::test]
async fn oversize_messages_are_refused_with_their_size() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let stranger = node::connect(&site.address(), bundle(&site).await?, None).await?;
    let refused = attest(stranger, vec![b'x'; 300 * 1024]).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("too large"), "{refused}");
    let entry = types::Entry { hint: "x".repeat(5 << 20), ..types::Entry::default() };
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let refused = site.operator().await?.entries().batch_create_entry(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("too large"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_reads_no_answers_does_not_fill_the_memory() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    // Close to the largest answer there is: four hundred entries with long selectors.
    let long = |n: usize| types::Entry {
        spiffe_id: passant_tests::api::wire_id(TRUST_DOMAIN, &format!("/w{n}")),
        parent_id: passant_tests::api::wire_id(TRUST_DOMAIN, NODE),
        selectors: vec![passant_tests::api::selector("x", &"s".repeat(8000))],
        ..types::Entry::default()
    };
    let request = BatchCreateEntryRequest { entries: (0..400).map(long).collect(), output_mask: None };
    let made = site.operator().await?.entries().batch_create_entry(request).await?.into_inner().results;
    let refused = made.iter().find_map(|one| one.status.as_ref().filter(|status| status.code != 0));
    ensure!(refused.is_none(), "not registered: {refused:?}");
    let (held, channel) = new_node(&site).await?;
    let answer = EntryClient::new(channel)
        .get_authorized_entries(passant_proto::entry::GetAuthorizedEntriesRequest { output_mask: None })
        .await?;
    let heard = answer.get_ref().entries.len();
    ensure!(heard > 300, "{heard} entries are this node's");
    let before = Usage::of(server.pid())?;
    let mut attackers = Vec::new();
    for _ in 0..4 {
        let tls = tls::connect(&site.address(), Some(&shown(&held))).await?;
        let mut attacker = Hostile::open(tls, 0).await;
        let path = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
        attacker.flood(100, |n| hostile::call(u32::try_from(2 * n + 1).unwrap_or(1), path, &[])).await;
        attackers.push(attacker);
    }
    honest_callers_are_served(&site, &entry).await?;
    // Sixteen answers of three megabytes; where nobody counts, there are four hundred.
    let during = Usage::of(server.pid())?;
    ensure!(during.resident < before.resident + 200 * 1024, "{before:?} {during:?}");
    Ok(())
}

#[tokio::test]
async fn the_batches_of_one_agent_do_not_hold_up_another() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    let (_, greedy) = new_node(&site).await?;
    let mut batches = JoinSet::new();
    for _ in 0..100 {
        let (greedy, entry) = (greedy.clone(), entry.clone());
        batches.spawn(async move { mint(greedy, &entry, 1000).await });
    }
    // The first of them is being signed: the others are there.
    let first =
        tokio::time::timeout(READY_WITHIN, batches.join_next()).await.context("no batch was answered")?;
    first.context("a batch")???;
    for _ in 0..3 {
        honest_callers_are_served(&site, &entry).await?;
    }
    Ok(())
}

#[tokio::test]
async fn attestations_from_one_address_are_bounded_in_number() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    let mut guesses = JoinSet::new();
    for _ in 0..8 {
        let channel = stranger_elsewhere(&site).await?;
        guesses.spawn(async move {
            loop {
                let refused = attest(channel.clone(), b"guess".to_vec()).await.unwrap_err();
                if refused.code() == Code::ResourceExhausted {
                    return refused;
                }
            }
        });
    }
    let refused =
        tokio::time::timeout(READY_WITHIN, guesses.join_next()).await.context("nobody was refused")?;
    let refused = refused.context("a guess")??;
    assert!(refused.message().contains("too many attestations from this address"), "{refused}");
    honest_callers_are_served(&site, &entry).await
}

/// Starts the server where it may open no more than `files` files.
async fn start_with_files(site: &Site, files: u32) -> anyhow::Result<Daemon> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh"]);
    command.arg(&binaries().server).arg("run").arg("--config").arg(site.server_config());
    site.started(Daemon::start(command, &site.path("server.log"))?).await
}

#[tokio::test]
async fn descriptors_that_run_out_do_not_stop_what_needs_them() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = start_with_files(&site, 224).await?;
    let entry = site.register("/web", |_| {}).await?;
    let mut attackers = Vec::new();
    for n in 0..300 {
        let tcp = hostile::tcp_from_elsewhere(&site.address()).await?;
        if n < 40 {
            // Some are open as strangers' connections are, and say nothing.
            if let Ok(tls) = tls::connect_over(tcp, None).await {
                attackers.push((Some(tls), None));
            }
        } else {
            attackers.push((None, Some(tcp)));
        }
    }
    honest_callers_are_served(&site, &entry).await?;
    site.register("/more", |_| {}).await?;
    let during = Usage::of(server.pid())?;
    ensure!(during.descriptors < 224, "{during:?}");
    Ok(())
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let entry = site.register("/web", |_| {}).await?;
    let (held, _channel) = new_node(&site).await?;
    let mut open = Vec::new();
    let told = loop {
        ensure!(open.len() < 100, "an agent may have any number of connections");
        let tls = tls::connect(&site.address(), Some(&shown(&held))).await?;
        let mut connection = Hostile::open(tls, 65_535).await;
        // The first frame is the server's settings in any case; the second tells.
        connection.next().await?;
        let (kind, _, _) = connection.next().await?;
        if kind == 7 {
            break connection;
        }
        open.push(connection);
    };
    drop(told);
    let tls = tls::connect(&site.address(), Some(&shown(&held))).await?;
    let end = Hostile::open(tls, 65_535).await.ended().await?;
    hostile::assert_told(&end, "too many connections of spiffe://example.org/spire/agent/")?;
    honest_callers_are_served(&site, &entry).await?;

    let mut local = Vec::new();
    let end = loop {
        ensure!(local.len() < 500, "an operator may have any number of connections");
        let mut connection = Hostile::open(UnixStream::connect(site.server_socket()).await?, 65_535).await;
        connection.next().await?;
        match connection.next().await {
            Ok((7, _, payload)) => break String::from_utf8_lossy(&payload[8..]).into_owned(),
            Ok(_) => local.push(connection),
            Err(error) => return Err(error),
        }
    };
    assert!(end.contains("too many connections"), "{end}");
    drop(local);
    eventually("the operator socket to be free again", READY_WITHIN, || async {
        site.operator().await?.agents().count_agents(CountAgentsRequest { filter: None }).await?;
        Ok(())
    })
    .await
}
