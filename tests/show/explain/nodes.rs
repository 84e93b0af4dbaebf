//! What is wrong with the node: does it not get in, or has it lost what it had?

use std::fs;
use std::time::Duration;

use passant_tests::daemon::Daemon;
use passant_tests::node_ca::{NodeCa, NodeFiles};
use passant_tests::port::free_port;
use passant_tests::site::{ServerOptions, Site};

use super::{Node, Table, admin, edit, id_of, own_pid, token};

/// Lifetime of the agents' own SVIDs where they are to end.
const AGENT_TTL: Duration = Duration::from_secs(10);

/// Agents that cannot attest, each for a reason of its own, and agents of which there is only a token.
pub(super) async fn attestation(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let ca = NodeCa::new(site.dir())?;
    site.configure(&taking(&ca, ""))?;
    let tokens_only = Site::new(&ServerOptions::default())?;
    let _servers = (site.start_server().await?, tokens_only.start_server().await?);
    let told = async |site: &Site, name: &str, planted: &str, words: &str| {
        let (pid, socket) = (own_pid(), admin(site, name));
        table.row("node_not_attested", planted, words, site, &["pid", &pid, "--agent-socket", &socket]).await;
    };

    // First, since an expired token is cleared away with the first minute of the server.
    let brief = token(&site, "1s")?;
    let planted = "an agent whose join token expired before it came";
    table.row("node_unknown", planted, "expired", &site, &["agent", &id_of(&brief)]).await;
    let _late = Node::with_token(&site, "late", "", &brief)?;
    told(&site, "late", "a join token that has expired", "join token expired").await;
    let spent = token(&site, "10m")?;
    let first = Node::with_token(&site, "first", "", &spent)?;
    site.agent_serves("first", &first.daemon).await?;
    let _second = Node::with_token(&site, "second", "", &spent)?;
    told(&site, "second", "a join token that was used already", "has already been used").await;
    let unused = id_of(&token(&site, "10m")?);
    let planted = "an agent whose join token waits to be used";
    table.row("node_unknown", planted, "has not been used yet", &site, &["agent", &unused]).await;

    let strangers = site.path("strangers");
    fs::create_dir(&strangers)?;
    let stranger = NodeCa::new(&strangers)?.node(&strangers, "node")?;
    let _foreign = with_certificate(&site, "foreign", &stranger)?;
    told(&site, "foreign", "a certificate of a CA that the server does not take", "certificate").await;
    let node = ca.node(site.dir(), "node")?;
    let _unasked = with_certificate(&tokens_only, "unasked", &node)?;
    told(&tokens_only, "unasked", "a way to attest that the server has not configured", "x509pop").await;

    let changed = |name: &str, from: &str, to: &str| -> anyhow::Result<Daemon> {
        site.configure_agent(name, "method = \"join_token\"", "")?;
        edit(&site, name, from, to)?;
        site.spawn_agent(name, &["--join-token", &token(&site, "10m")?])
    };
    // Nobody listens there.
    let nobody = format!("127.0.0.1:{}", free_port()?);
    let _astray = changed("astray", &site.address(), &nobody)?;
    told(&site, "astray", "an address where no server is", &nobody).await;
    let (own, other) = (site.bundle_file(), tokens_only.bundle_file());
    let _misled = changed("misled", &own.display().to_string(), &other.display().to_string())?;
    told(&site, "misled", "a bootstrap bundle of another server", "verif").await;
    let _elsewhere = changed("elsewhere", "\"example.org\"", "\"other.test\"")?;
    told(&site, "elsewhere", "an agent of another trust domain", "other.test").await;
    Ok(())
}

/// Agents that had an SVID, and lost it.
pub(super) async fn standing(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let ca = NodeCa::new(site.dir())?;
    site.configure(&taking(&ca, &format!("agent_ttl = \"{}s\"", AGENT_TTL.as_secs())))?;
    let server = site.start_server().await?;

    let evicted = Node::join(&site, "evicted", "").await?;
    site.passant_json(&["agent", "evict", &evicted.id])?;
    let of_node = ["node", "--agent-socket", &evicted.admin];
    table.row("node_unknown", "an eviction", "token generate", &site, &of_node).await;

    let stopped = Node::join(&site, "stopped", "").await?;
    let files = ca.node(site.dir(), "node")?;
    let certified = with_certificate(&site, "certified", &files)?;
    site.agent_serves("certified", &certified).await?;
    let agents = site.passant_json(&["agent", "list", "--attestation-type", "x509pop"])?;
    let path = agents["agents"][0]["id"]["path"].as_str().unwrap_or_default();
    let certified_id = format!("spiffe://example.org{path}");
    let left = Node::join(&site, "left", "").await?;
    stopped.daemon.stop().await?;
    certified.stop().await?;
    let planted = "an agent of a join token that does not run";
    table.row("node_svid_expired", planted, "new join token", &site, &["agent", &stopped.id]).await;
    let planted = "an agent that does not run, and could attest again";
    table.row("node_svid_expired", planted, "does not attest again", &site, &["agent", &certified_id]).await;
    server.stop().await?;
    let planted = "a server that is away for longer than the agent's SVID lives";
    let of_node = ["pid", &own_pid(), "--agent-socket", &left.admin];
    table.row("node_svid_expired", planted, "server can be reached", &site, &of_node).await;
    Ok(())
}

/// A server that takes join tokens, and certificates of one CA.
fn taking(ca: &NodeCa, keys: &str) -> ServerOptions {
    let x509pop = format!("[[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n", ca.file);
    ServerOptions {
        keys: keys.to_owned(),
        tables: format!("[[node_attestor]]\nmethod = \"join_token\"\n{x509pop}"),
    }
}

/// Starts an agent that attests with a certificate, and does not wait.
fn with_certificate(site: &Site, name: &str, files: &NodeFiles) -> anyhow::Result<Daemon> {
    let NodeFiles { certificate, key } = files;
    let attestor = format!("method = \"x509pop\"\ncertificate = {certificate:?}\nprivate_key = {key:?}\n");
    site.configure_agent(name, &attestor, "")?;
    site.spawn_agent(name, &[])
}
