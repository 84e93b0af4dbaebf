//! How do nodes attest, renew, and get banned and evicted while the server is killed? The harness plays them all.

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_attest::node::Prover;
use passant_attest::node::join_token::{JoinTokenProver, Token};
use passant_attest::node::x509pop::{X509PopProver, X509PopProverConfig};
use passant_core::keys::{KeyType, SigningKey};
use passant_core::{AgentFault, UnixTime, csr};
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{
    AgentX509svidParams, BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, ListAgentsRequest,
    PostStatusRequest, RenewAgentRequest,
};
use passant_proto::status::from_status;
use passant_tests::api::{Operator, wire_id};
use passant_tests::node::{self, HeldSvid};
use passant_tests::node_ca::{NodeCa, NodeFiles};
use passant_tests::site::TRUST_DOMAIN;
use tonic::Status;
use tonic::transport::Channel;

use super::agent;
use super::ledger::Value;
use super::world::{ANSWERED, Dice, RETRIED, Stopped, Work, World};

/// The fact that the probes are about.
pub(crate) const STANDING: &str = "a spent token stays spent, a ban stays, an evicted node stays out";
/// Nodes that attest with a certificate.
pub(crate) const CERTIFIED: usize = 24;
/// Join-token nodes in play; beyond this the oldest go to rest: their rows stay, and are compared.
const TOKENS: usize = 60;
/// A join token outlives the show.
const TOKEN_TTL: i32 = 86_400;
/// Nodes of each standing that are probed after a restart.
const PROBED: usize = 3;
const PAGE: i32 = 1_000;

/// The row of a node, as far as it is compared.
#[derive(Clone, Debug)]
pub(crate) struct NodeValue {
    is_banned: bool,
    /// The serials that may be active, in decimal; empty where the answer, which names it, is missing.
    serials: Vec<String>,
    /// Whether an entry makes the agent stand for another SPIFFE ID, as its join token said.
    has_alias: bool,
}

impl Value for NodeValue {
    fn is(&self, found: &Self) -> bool {
        self.is_banned == found.is_banned
            && self.has_alias == found.has_alias
            && (self.is_banned
                || self.serials.is_empty()
                || found.serials.iter().all(|serial| self.serials.contains(serial)))
    }

    fn may_be_gone(&self, _: UnixTime) -> bool {
        false
    }

    fn tell(&self) -> String {
        let Self { is_banned, serials, has_alias } = self;
        format!("serials {serials:?}, banned {is_banned}, alias {has_alias}")
    }
}

/// A node that the harness plays.
pub(crate) struct Node {
    /// The path of its agent's SPIFFE ID.
    pub(crate) path: String,
    means: Means,
    /// The key it attests with, the same after a lost answer.
    key: Arc<dyn SigningKey>,
    pub(crate) held: Option<HeldSvid>,
    /// It holds a renewed SVID, of which the server has not said yet that it is the active one.
    unconfirmed: bool,
    standing: Standing,
    /// Entries that its workloads have: ID and SPIFFE ID path.
    pub(crate) entries: Vec<(String, String)>,
}

enum Means {
    Token(String),
    Certificate(NodeFiles),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not asked yet.
    Fresh,
    /// Asked, and the answer is missing.
    Asked,
    Attested,
    Banned,
    Evicted,
}

impl Node {
    fn alias(&self) -> bool {
        matches!(self.means, Means::Token(_))
    }

    /// Whether its SVID may be used for the next seconds.
    pub(crate) fn can_call(&self, now: UnixTime) -> bool {
        let valid = |held: &HeldSvid| held.svid.not_after().secs() > now.secs() + 2;
        self.standing == Standing::Attested && self.held.as_ref().is_some_and(valid)
    }

    fn has_expired(&self, world: &World) -> bool {
        self.held.as_ref().is_some_and(|held| held.svid.not_after() <= world.now())
    }

    fn wants_to_attest(&self, now: UnixTime) -> bool {
        match (self.standing, &self.means) {
            (Standing::Fresh | Standing::Asked, _) => true,
            (Standing::Attested | Standing::Evicted, Means::Certificate(_)) => !self.can_call(now),
            (Standing::Attested | Standing::Evicted, Means::Token(_)) | (Standing::Banned, _) => false,
        }
    }

    fn prover(&self, world: &World) -> anyhow::Result<Box<dyn Prover>> {
        Ok(match &self.means {
            Means::Token(token) => Box::new(JoinTokenProver::new(Token::parse(token)?)),
            Means::Certificate(files) => {
                let config = X509PopProverConfig {
                    private_key_path: files.key.clone(),
                    certificate_path: files.certificate.clone(),
                    intermediates_path: None,
                };
                Box::new(X509PopProver::open(config, world.host.clone())?)
            }
        })
    }

    /// Connects with the SVID it holds.
    pub(crate) async fn call(&self, world: &World) -> Result<Channel, Stopped> {
        let bundle = world.bundle()?;
        let connected = node::connect(&world.address, bundle, self.held.as_ref()).await;
        connected.map_err(|error| if self.has_expired(world) { Stopped } else { world.no_connection(&error) })
    }
}

/// Nodes with certificates of `authority`, whose files go to `dir`.
pub(crate) fn certified(world: &World, authority: &NodeCa, dir: &std::path::Path) -> anyhow::Result<()> {
    for number in 0..CERTIFIED {
        let name = format!("pop-{number}");
        let node = Node {
            path: format!("/spire/agent/x509pop/{name}"),
            means: Means::Certificate(authority.node(dir, &name)?),
            key: world.host.keys.generate(KeyType::EcP256)?,
            held: None,
            unconfirmed: false,
            standing: Standing::Fresh,
            entries: Vec::new(),
        };
        world.books().pool.push_back(node);
    }
    Ok(())
}

/// Attests, renews, bans and evicts until the server is gone.
pub(crate) async fn run(world: Arc<World>) -> Result<(), Stopped> {
    let operator = world.operator().await?;
    let mut dice = Dice::new(&world.host);
    while !world.is_killing() {
        let now = world.now();
        match dice.below(100) {
            0..20 => create_token(&world, &operator).await?,
            20..75 => with_node(&world, |node| node.wants_to_attest(now), Deed::Attest, &operator).await?,
            75..90 => {
                let renews = |node: &Node| node.can_call(now) && matches!(node.means, Means::Token(_));
                with_node(&world, renews, Deed::Renew, &operator).await?;
            }
            90..95 => {
                with_node(&world, |node| node.standing == Standing::Attested, Deed::Ban, &operator).await?;
            }
            _ => {
                let known = |node: &Node| matches!(node.standing, Standing::Attested | Standing::Banned);
                with_node(&world, known, Deed::Evict, &operator).await?;
            }
        }
        tokio::time::sleep(dice.span(12)).await;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Deed {
    Attest,
    Renew,
    Ban,
    Evict,
}

/// Takes a node that `fits` out of the pool, if there is one.
pub(crate) fn take(world: &World, fits: impl Fn(&Node) -> bool) -> Option<Node> {
    let mut books = world.books();
    let at = books.pool.iter().position(fits)?;
    books.pool.remove(at)
}

/// Gives a node back to the pool, behind all others.
pub(crate) fn give(world: &World, node: Node) {
    world.books().pool.push_back(node);
}

async fn with_node(
    world: &World,
    fits: impl Fn(&Node) -> bool,
    deed: Deed,
    operator: &Operator,
) -> Result<(), Stopped> {
    let Some(mut node) = take(world, fits) else { return Ok(()) };
    let busy = world.busy(Work::Attestation);
    let done = match deed {
        Deed::Attest => attest(world, &mut node, operator).await,
        Deed::Renew => renew(world, &mut node, operator).await,
        Deed::Ban => ban(world, &mut node, operator).await,
        Deed::Evict => evict(world, &mut node, operator).await,
    };
    drop(busy);
    give(world, node);
    done
}

async fn create_token(world: &World, operator: &Operator) -> Result<(), Stopped> {
    let number = world.number();
    let busy = world.busy(Work::Attestation);
    let agent_id = wire_id(TRUST_DOMAIN, &format!("/alias/{number}"));
    let request = CreateJoinTokenRequest { ttl: TOKEN_TTL, token: String::new(), agent_id };
    let created = operator.agents().create_join_token(request).await;
    let token = created.map_err(|status| world.failed("create a join token", &status))?.into_inner().value;
    drop(busy);
    let key = world.host.keys.generate(KeyType::EcP256);
    let node = Node {
        path: format!("/spire/agent/join_token/{token}"),
        means: Means::Token(token),
        key: key.map_err(|error| world.failed("make a key", &Status::internal(error.to_string())))?,
        held: None,
        unconfirmed: false,
        standing: Standing::Fresh,
        entries: Vec::new(),
    };
    give(world, node);
    Ok(())
}

async fn attest(world: &World, node: &mut Node, operator: &Operator) -> Result<(), Stopped> {
    let is_retry = node.standing == Standing::Asked && node.alias();
    let mut prover = node.prover(world).map_err(|error| world.no_connection(&error))?;
    let channel = node::connect(&world.address, world.bundle()?, None).await;
    let channel = channel.map_err(|error| world.no_connection(&error))?;
    let has_alias = node.alias();
    let row = |serials| NodeValue { is_banned: false, serials, has_alias };
    world.books().nodes.begin([(node.path.clone(), Some(row(Vec::new())))]);
    node.standing = Standing::Asked;
    node.held = None;
    let svid = match node::attest(channel, &mut *prover, &*node.key).await {
        Ok(svid) => svid,
        Err(status) => {
            let stopped = world.failed(&format!("attest {}", node.path), &status);
            if is_retry && !world.is_killing() {
                world.violation(RETRIED, format!("{}: {status}", node.path));
            }
            return Err(stopped);
        }
    };
    {
        let mut books = world.books();
        books.nodes.acknowledge(&node.path, Some(row(vec![svid.serial().to_decimal()])));
        books.retried += usize::from(is_retry);
    }
    if svid.id().path() != node.path {
        world.violation(ANSWERED, format!("{} attested as {}", node.path, svid.id()));
    }
    node.standing = Standing::Attested;
    node.held = Some(HeldSvid { svid: svid.clone(), key: Arc::clone(&node.key) });
    world.receive(operator, &svid, "node_svid").await
}

/// Renews, and uses the new SVID once, which makes it the active one.
async fn renew(world: &World, node: &mut Node, operator: &Operator) -> Result<(), Stopped> {
    confirm(world, node).await?;
    if node.held.is_none() {
        return Ok(());
    }
    let internal = |error: String| world.failed("renew", &Status::internal(error));
    let key = world.host.keys.generate(KeyType::EcP256).map_err(|error| internal(error.to_string()))?;
    let csr = csr::make(&*key, None).map_err(|error| internal(error.to_string()))?;
    let channel = node.call(world).await?;
    let request = RenewAgentRequest { params: Some(AgentX509svidParams { csr }) };
    let renewed = match AgentClient::new(channel).renew_agent(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return expired_or(world, node, "renew", &status),
    };
    let svid =
        node::svid_for(renewed.svid.as_ref(), &*key).map_err(|status| world.failed("renew", &status))?;
    world.receive(operator, &svid, "node_svid").await?;
    node.held = Some(HeldSvid { svid, key });
    node.unconfirmed = true;
    confirm(world, node).await
}

/// Uses a renewed SVID for the first time, which makes it the active one; a renewal that was answered lasts.
pub(crate) async fn confirm(world: &World, node: &mut Node) -> Result<(), Stopped> {
    let Some(held) = node.held.as_ref().filter(|_| node.unconfirmed) else { return Ok(()) };
    let new = held.svid.serial().to_decimal();
    let row = |serials| Some(NodeValue { is_banned: false, serials, has_alias: true });
    // Until the answer is here, the old one may be active still.
    world.books().nodes.begin([(node.path.clone(), row(Vec::new()))]);
    let channel = node.call(world).await?;
    let agent_version = format!("v{}", world.number());
    let request = PostStatusRequest { current_bundle_serial: 0, agent_version };
    match AgentClient::new(channel).post_status(request).await {
        Ok(_) => {
            world.books().nodes.acknowledge(&node.path, row(vec![new]));
            node.unconfirmed = false;
            Ok(())
        }
        Err(status) => expired_or(world, node, "use a renewed SVID", &status),
    }
}

/// An SVID may expire between the look at it and its use.
pub(crate) fn expired_or(world: &World, node: &mut Node, what: &str, status: &Status) -> Result<(), Stopped> {
    if from_status(status).agent_fault == Some(AgentFault::Expired) || node.has_expired(world) {
        node.held = None;
        return Ok(());
    }
    Err(world.failed(&format!("{what} as {}", node.path), status))
}

async fn ban(world: &World, node: &mut Node, operator: &Operator) -> Result<(), Stopped> {
    let row = NodeValue { is_banned: true, serials: Vec::new(), has_alias: node.alias() };
    world.books().nodes.begin([(node.path.clone(), Some(row.clone()))]);
    let request = BanAgentRequest { id: wire_id(TRUST_DOMAIN, &node.path) };
    operator.agents().ban_agent(request).await.map_err(|status| world.failed("ban", &status))?;
    world.books().nodes.acknowledge(&node.path, Some(row));
    node.standing = Standing::Banned;
    Ok(())
}

async fn evict(world: &World, node: &mut Node, operator: &Operator) -> Result<(), Stopped> {
    world.books().nodes.begin([(node.path.clone(), None)]);
    let request = DeleteAgentRequest { id: wire_id(TRUST_DOMAIN, &node.path) };
    operator.agents().delete_agent(request).await.map_err(|status| world.failed("evict", &status))?;
    world.books().nodes.acknowledge(&node.path, None);
    node.standing = Standing::Evicted;
    Ok(())
}

/// After a restart and its comparison: what had no answer has one now.
pub(crate) fn settle(world: &World) {
    let mut books = world.books();
    let held: BTreeMap<String, bool> =
        books.nodes.all_held().map(|(path, row)| (path.clone(), row.is_banned)).collect();
    for node in &mut books.pool {
        match (node.standing, held.get(&node.path)) {
            (Standing::Fresh | Standing::Asked, _) => {}
            (_, None) => node.standing = Standing::Evicted,
            (_, Some(true)) => node.standing = Standing::Banned,
            (_, Some(false)) => {}
        }
    }
    // The oldest join-token nodes make way; what the books say of them stays.
    let mut surplus = books.pool.iter().filter(|node| node.alias()).count().saturating_sub(TOKENS);
    books.pool.retain(|node| {
        let goes = surplus > 0 && node.alias() && node.standing != Standing::Asked;
        surplus -= usize::from(goes);
        !goes
    });
}

/// Lists the rows of all agents that the harness plays.
pub(crate) async fn list(
    operator: &Operator,
    aliases: &[String],
) -> anyhow::Result<BTreeMap<String, NodeValue>> {
    let mut found = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = ListAgentsRequest { filter: None, output_mask: None, page_size: PAGE, page_token };
        let page = operator.agents().list_agents(request).await?.into_inner();
        for agent in page.agents {
            let path = agent.id.map(|id| id.path).unwrap_or_default();
            if path != agent::PATH {
                let row = NodeValue {
                    is_banned: agent.banned,
                    serials: vec![agent.x509svid_serial_number],
                    has_alias: false,
                };
                found.insert(path, row);
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    for alias in aliases {
        let path =
            alias.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(_, path)| path);
        if let Some(row) = path.and_then(|path| found.get_mut(&format!("/{path}"))) {
            row.has_alias = true;
        }
    }
    Ok(found)
}

/// Tries after a restart what must not be possible; how many tries that were.
pub(crate) async fn probe(world: &World) -> Result<usize, Stopped> {
    let mut tries = 0;
    for standing in [Standing::Attested, Standing::Banned, Standing::Evicted] {
        for _ in 0..PROBED {
            // The pool is a queue, so that others come next time.
            let Some(node) = take(world, |node| node.standing == standing) else { break };
            let probed = probe_one(world, &node).await;
            give(world, node);
            tries += probed?;
        }
    }
    Ok(tries)
}

async fn probe_one(world: &World, node: &Node) -> Result<usize, Stopped> {
    let mut tries = 0;
    // A token was spent by its key; with another it is worth nothing. A banned node cannot come back by any evidence.
    if node.alias() || node.standing == Standing::Banned {
        let other = world.host.keys.generate(KeyType::EcP256);
        let other = other.map_err(|error| world.failed("probe", &Status::internal(error.to_string())))?;
        let mut prover = node.prover(world).map_err(|error| world.no_connection(&error))?;
        let channel = node::connect(&world.address, world.bundle()?, None).await;
        let channel = channel.map_err(|error| world.no_connection(&error))?;
        tries += 1;
        if node::attest(channel, &mut *prover, &*other).await.is_ok() {
            world.violation(STANDING, format!("{} ({:?}) attested again", node.path, node.standing));
        }
    }
    let expected = match node.standing {
        Standing::Banned => AgentFault::Banned,
        Standing::Evicted => AgentFault::NotAttested,
        Standing::Fresh | Standing::Asked | Standing::Attested => return Ok(tries),
    };
    if node.held.as_ref().is_some_and(|held| held.svid.not_after().secs() > world.now().secs() + 2) {
        let channel = node.call(world).await?;
        let request = PostStatusRequest { current_bundle_serial: 0, agent_version: "probe".to_owned() };
        tries += 1;
        let fault = AgentClient::new(channel).post_status(request).await.err();
        let fault = fault.and_then(|status| from_status(&status).agent_fault);
        if fault != Some(expected) && fault != Some(AgentFault::Expired) {
            world.violation(
                STANDING,
                format!("{} is {:?}, and was answered {fault:?}", node.path, node.standing),
            );
        }
    }
    Ok(tries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(is_banned: bool, serials: &[&str], has_alias: bool) -> NodeValue {
        let serials = serials.iter().map(|serial| (*serial).to_owned()).collect();
        NodeValue { is_banned, serials, has_alias }
    }

    #[test]
    fn a_row_is_compared_by_ban_serial_and_alias() {
        let expected = row(false, &["1", "2"], true);
        assert!(expected.is(&row(false, &["2"], true)));
        assert!(!expected.is(&row(false, &["3"], true)));
        assert!(!expected.is(&row(true, &[""], true)));
        assert!(!expected.is(&row(false, &["1"], false)), "the alias comes in the same commit");
        assert!(row(true, &[], false).is(&row(true, &[""], false)));
        assert!(!row(true, &[], false).is(&row(false, &["1"], false)), "a ban stays");
        assert!(row(false, &[], false).is(&row(false, &["9"], false)));
    }
}
