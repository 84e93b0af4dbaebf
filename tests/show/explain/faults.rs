//! Has the server failed, or is it away, or has the node not heard of it yet?

use std::fs;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use passant_core::Host;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use passant_tests::api::{selector, wire_id};
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::site::{NODE, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::{NAMED_WITHIN, NO_SERVER, Node, Table, WEB, admin, id_of, own_pid, own_uid, token, write};

/// Authorities that end soon, and what they sign sooner.
const BRIEF: &str =
    "ca_ttl = \"24s\"\ndefault_x509_svid_ttl = \"8s\"\nagent_ttl = \"8s\"\ndefault_jwt_svid_ttl = \"8s\"";
/// How many entries may be made until a store is full that has next to no room.
const FILLED_WITH: usize = 20_000;
/// As many entries as an agent has SVIDs minted for before anybody asks.
const PREFETCHED: usize = 1000;

/// The server goes away; one agent runs on, another one is started anew.
pub(super) async fn server_away(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let lasting = Node::join(&site, "lasting", "").await?;
    let restarted = Node::join(&site, "restarted", "").await?;
    let served = Node::join(&site, "served", "").await?;
    let (pid, brief) = (own_pid(), "spiffe://example.org/brief");
    let entry =
        ["entry", "create", "--spiffe-id", brief, "--parent-id", &served.id, "--selector", &own_uid()];
    write(&site, &[&entry[..], &["--x509-svid-ttl", "8s"]].concat())?;
    let of_brief = ["pid", &pid, "--spiffe-id", brief, "--agent-socket", &served.admin];
    table.nothing("a server that is there", &site, &of_brief).await;
    restarted.daemon.stop().await?;
    server.stop().await?;
    let _again = site.spawn_agent("restarted", &[])?;
    let planted = "a server that has gone, with an SVID that ends before the agent gives the server up";
    table.row("mint_failing", planted, "nothing can be minted", &site, &of_brief).await;
    let planted = "an agent that started while the server was away";
    let restarted = ["pid", &pid, "--agent-socket", &restarted.admin];
    table.row("never_synced", planted, &site.address(), &site, &restarted).await;
    let planted = "a server that is away for half a minute";
    let lasting = ["pid", &pid, "--spiffe-id", WEB, "--agent-socket", &lasting.admin];
    table.row("sync_failing", planted, &site.address(), &site, &lasting).await;
    Ok(())
}

/// The disk of the decision record is full.
pub(super) async fn record(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = start_on_small_disk(&site).await?;
    let node = Node::join(&site, "agent", "").await?;
    let entry = ["entry", "create", "--spiffe-id", WEB, "--parent-id", &node.id, "--selector", &own_uid()];
    write(&site, &[&entry[..], &["--x509-svid-ttl", "8s"]].concat())?;
    let (pid, socket) = (own_pid(), node.admin.clone());
    let of_web = ["pid", &pid, "--spiffe-id", WEB, "--agent-socket", &socket];
    table.nothing("a record with room", &site, &of_web).await;
    limit_files(&server, 1)?;
    let planted = "a decision record whose disk is full";
    table.row("record_stopped", planted, "make room on the disk", &site, &of_web).await;
    let planted = "a server that signs nothing, asked of the node alone";
    let alone = [&of_web[..], &NO_SERVER].concat();
    table.row("mint_refused", planted, "nothing is signed", &site, &alone).await;
    Ok(())
}

/// New keys cannot be kept, so that an authority ends without successor.
pub(super) async fn keys(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions { keys: BRIEF.to_owned(), tables: String::new() })?;
    let _server = site.start_server().await?;
    // In the way of the file that is to become keys.json.
    fs::create_dir(site.path("server-data/keys.json.next"))?;
    let node = Node::join(&site, "agent", "").await?;
    write(
        &site,
        &["entry", "create", "--spiffe-id", WEB, "--parent-id", &node.id, "--selector", &own_uid()],
    )?;
    let of_web = ["pid", &own_pid(), "--spiffe-id", WEB, "--agent-socket", &node.admin];
    let planted = "a directory in which no key can be kept until the authority has ended";
    table.row("authority_ended", planted, "no successor", &site, &of_web).await;
    Ok(())
}

/// The disk of the store is full, so that an authority ends without successor.
pub(super) async fn store(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions { keys: BRIEF.to_owned(), tables: String::new() })?;
    let server = start_on_small_disk(&site).await?;
    let size = |name: &str| fs::metadata(site.path(name)).map_or(0, |facts| facts.len());
    limit_files(&server, size("server-data/state/db").max(size("server.log")) + (64 << 10))?;
    let mut made = 0;
    while register(&site, NODE, made, 50).await.is_ok() {
        made += 50;
        ensure!(made < FILLED_WITH, "the disk does not fill up");
    }
    let planted = "a store whose disk is full until the authority has ended";
    table
        .row("store_stopped", planted, "takes no changes", &site, &["spiffe-id", "spiffe://example.org/b/0"])
        .await;
    Ok(())
}

/// An agent that does not run: one that does hears at once.
pub(super) async fn unheard(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.configure_agent("agent", "method = \"join_token\"", "")?;
    let secret = token(&site, "10m")?;
    let id = id_of(&secret);
    let agent = site.spawn_agent("agent", &["--join-token", &secret])?;
    site.agent_serves("agent", &agent).await?;
    agent.stop().await?;
    let uid = own_uid();
    let of_web = ["spiffe-id", WEB, "--agent", &id, "--selector", &uid];
    // A moment that is told in seconds must have passed.
    let before = Host::system().now();
    let later = async || {
        ensure!(Host::system().now() > before, "the same second");
        Ok(())
    };
    eventually("the next second", NAMED_WITHIN, later).await?;
    write(&site, &["entry", "create", "--spiffe-id", WEB, "--parent-id", &id, "--selector", &uid])?;
    let planted = "an entry that was made since the agent last heard anything";
    table.row("not_yet_synced", planted, "next sync", &site, &of_web).await;
    Ok(())
}

/// A node with as many entries as its agent mints for in advance; the last of them comes last.
pub(super) async fn many(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    // Keys that take longer to make.
    site.configure_agent("agent", "method = \"join_token\"", "x509_key_type = \"ec-p384\"")?;
    let secret = token(&site, "10m")?;
    let agent = site.spawn_agent("agent", &["--join-token", &secret])?;
    site.agent_serves("agent", &agent).await?;
    let path = id_of(&secret);
    let path = path.strip_prefix("spiffe://example.org").context("a SPIFFE ID of the site")?;
    register(&site, path, 0, PREFETCHED).await?;
    let last = format!("spiffe://example.org/b/{}", PREFETCHED - 1);
    let (pid, socket) = (own_pid(), admin(&site, "agent"));
    let of_last = ["pid", &pid, "--agent-socket", &socket, "--spiffe-id", &last];
    let planted = "a thousand new entries, of which this one comes last";
    table.row("being_minted", planted, "in a few seconds", &site, &of_last).await;
    table.nothing("its turn came", &site, &of_last).await;
    Ok(())
}

/// Starts a server for which a write past the limit of [`limit_files`] fails as on a full disk.
async fn start_on_small_disk(site: &Site) -> anyhow::Result<Daemon> {
    // Otherwise the signal would end it.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(&binaries().server);
    command.args(["run", "--config"]).arg(site.server_config());
    site.started(Daemon::start(command, &site.path("server.log"))?).await
}

/// Lets no file of a process grow past `bytes`.
fn limit_files(daemon: &Daemon, bytes: u64) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(daemon.pid())?).context("a process id")?;
    Ok(prlimit(Some(pid), Resource::Fsize, Rlimit { current: Some(bytes), maximum: None }).map(drop)?)
}

/// Registers so many entries for this user in one call, from the number `from` on.
async fn register(site: &Site, parent: &str, from: usize, count: usize) -> anyhow::Result<()> {
    let entries = (from..from + count).map(|nth| types::Entry {
        id: format!("b{nth:05}"),
        spiffe_id: wire_id(TRUST_DOMAIN, &format!("/b/{nth}")),
        parent_id: wire_id(TRUST_DOMAIN, parent),
        selectors: vec![selector("unix", &format!("uid:{}", nix::unistd::geteuid()))],
        ..types::Entry::default()
    });
    let request = BatchCreateEntryRequest { entries: entries.collect(), output_mask: None };
    let results = site.operator().await?.entries().batch_create_entry(request).await?.into_inner().results;
    match results.into_iter().filter_map(|result| result.status).find(|status| status.code != 0) {
        Some(refused) => bail!("{}", refused.message),
        None => Ok(()),
    }
}
