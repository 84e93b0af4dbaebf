//! How are SVIDs minted while the server is killed? As agents do it for workloads, and as an operator does it by hand.

use std::sync::Arc;

use passant_core::keys::KeyType;
use passant_core::{JwtSvid, SpiffeId, csr};
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::svid::{
    BatchNewX509svidRequest, MintJwtsvidRequest, MintX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use passant_proto::types;
use passant_tests::api::{Operator, selector, wire_id};
use passant_tests::node::svid_for;
use passant_tests::site::TRUST_DOMAIN;
use tonic::Status;

use super::record::Received;
use super::world::{ANSWERED, Dice, Stopped, VERIFIES, Work, World};
use super::{churn, nodes};

const AUDIENCE: &str = "kills";
/// Entries of one node.
const ENTRIES: usize = 2;

/// Mints as nodes until the server is gone.
pub(crate) async fn run(world: Arc<World>) -> Result<(), Stopped> {
    let operator = world.operator().await?;
    let mut dice = Dice::new(&world.host);
    while !world.is_killing() {
        let now = world.now();
        if let Some(mut node) = nodes::take(&world, |node| node.can_call(now)) {
            let minted = as_node(&world, &mut node, &operator, &mut dice).await;
            nodes::give(&world, node);
            minted?;
        }
        tokio::time::sleep(dice.span(10)).await;
    }
    Ok(())
}

/// Mints as an operator, and looks at the bundle, until the server is gone.
pub(crate) async fn run_operator(world: Arc<World>) -> Result<(), Stopped> {
    let operator = world.operator().await?;
    let mut dice = Dice::new(&world.host);
    while !world.is_killing() {
        world.see_bundle(&operator).await?;
        let path = format!("/ops/{}", world.number());
        let busy = world.busy(Work::Minting);
        if dice.percent(50) {
            let id = SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}{path}"));
            let id = id.map_err(|error| failed(&world, error))?;
            let key = world.host.keys.generate(KeyType::EcP256).map_err(|error| failed(&world, error))?;
            let csr = csr::make(&*key, Some(&id)).map_err(|error| failed(&world, error))?;
            let minted = operator.svids().mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await;
            let minted = minted.map_err(|status| world.failed("mint an X509-SVID", &status))?.into_inner();
            let svid = svid_for(minted.svid.as_ref(), &*key);
            let svid = svid.map_err(|status| world.failed("mint an X509-SVID", &status))?;
            world.receive(&operator, &svid, "x509_svid").await?;
        } else {
            let id = wire_id(TRUST_DOMAIN, &path);
            let request = MintJwtsvidRequest { id, audience: vec![AUDIENCE.to_owned()], ttl: 0 };
            let minted = operator.svids().mint_jwtsvid(request).await;
            let minted = minted.map_err(|status| world.failed("mint a JWT-SVID", &status))?.into_inner();
            let svid = verified(&world, &operator, minted.svid).await?;
            // Such a token has no name of its own, but nobody else has its subject.
            world.books().received.push(Received::jwt_of(svid.id()));
        }
        drop(busy);
        tokio::time::sleep(dice.span(20)).await;
    }
    Ok(())
}

fn failed(world: &World, error: impl std::fmt::Display) -> Stopped {
    world.failed("prepare a request", &Status::internal(error.to_string()))
}

async fn as_node(
    world: &World,
    node: &mut nodes::Node,
    operator: &Operator,
    dice: &mut Dice,
) -> Result<(), Stopped> {
    while node.entries.len() < ENTRIES {
        let entry = register(world, operator, &node.path).await?;
        node.entries.push(entry);
    }
    nodes::confirm(world, node).await?;
    if node.held.is_none() {
        return Ok(());
    }
    let channel = node.call(world).await?;
    let busy = world.busy(Work::Minting);
    let key = world.host.keys.generate(KeyType::EcP256).map_err(|error| failed(world, error))?;
    let csr = csr::make(&*key, None).map_err(|error| failed(world, error))?;
    let asked: Vec<&(String, String)> =
        (0..=dice.below(6)).map(|_| &node.entries[dice.below(node.entries.len())]).collect();
    let params = asked.iter().map(|(id, _)| NewX509svidParams { entry_id: id.clone(), csr: csr.clone() });
    let request = BatchNewX509svidRequest { params: params.collect() };
    let answer = match SvidClient::new(channel.clone()).batch_new_x509svid(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return nodes::expired_or(world, node, "mint X509-SVIDs", &status),
    };
    for (result, (id, path)) in answer.results.into_iter().zip(asked) {
        let status = result.status.unwrap_or_default();
        if status.code != 0 {
            world.violation(ANSWERED, format!("mint for entry {id}: {} ({})", status.message, status.code));
            continue;
        }
        let svid = svid_for(result.svid.as_ref(), &*key);
        let svid = svid.map_err(|status| world.failed("mint an X509-SVID", &status))?;
        if svid.id().path() != path.as_str() {
            world.violation(VERIFIES, format!("{} was minted for {path}", svid.id()));
        }
        world.receive(operator, &svid, "x509_svid").await?;
    }
    let entry_id = node.entries[0].0.clone();
    let request = NewJwtsvidRequest { entry_id, audience: vec![AUDIENCE.to_owned()] };
    let minted = match SvidClient::new(channel).new_jwtsvid(request).await {
        Ok(minted) => minted.into_inner(),
        Err(status) => return nodes::expired_or(world, node, "mint a JWT-SVID", &status),
    };
    let svid = verified(world, operator, minted.svid).await?;
    match svid.claims().get("jti").and_then(|jti| jti.as_str()) {
        Some(jti) => world.books().received.push(Received::jwt(svid.id(), jti)),
        None => world.violation(VERIFIES, format!("the JWT-SVID of {} has no jti", svid.id())),
    }
    drop(busy);
    Ok(())
}

/// Registers a workload of the agent at `path`.
async fn register(world: &World, operator: &Operator, path: &str) -> Result<(String, String), Stopped> {
    let number = world.number();
    let (id, workload) = (format!("m-{number}"), format!("/minted/{number}"));
    let entry = types::Entry {
        id: id.clone(),
        spiffe_id: wire_id(TRUST_DOMAIN, &workload),
        parent_id: wire_id(TRUST_DOMAIN, path),
        selectors: vec![selector("unix", &format!("user:u{number}"))],
        additional_attributes: Some(types::entry::AdditionalAttributes {
            jwt_svid_include_jti: true,
            disable_x509_svid_prefetch: false,
        }),
        ..types::Entry::default()
    };
    churn::create(world, operator, vec![entry]).await?;
    Ok((id, workload))
}

/// The token that was received, once it is known to verify.
async fn verified(
    world: &World,
    operator: &Operator,
    wire: Option<types::Jwtsvid>,
) -> Result<JwtSvid, Stopped> {
    let token = wire.unwrap_or_default().token;
    let bundle = world.bundle()?;
    let now = world.now();
    if let Ok(svid) = JwtSvid::verify(&token, AUDIENCE, &|_| Some(Arc::clone(&bundle)), now) {
        return Ok(svid);
    }
    // An authority may have begun to sign since the bundle was asked for.
    let bundle = world.see_bundle(operator).await?;
    JwtSvid::verify(&token, AUDIENCE, &|_| Some(Arc::clone(&bundle)), now).map_err(|error| {
        world.violation(VERIFIES, error.to_string());
        Stopped
    })
}
