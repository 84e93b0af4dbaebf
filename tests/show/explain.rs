//! Does `passant explain` name the planted cause first, whatever it is that keeps a workload from its identity?
//!
//! Each row of the table is a cause of its own, planted as it comes about in the field: by entries, by configuration, by
//! processes that are stopped, by disks that are full. The programs are the real ones.

mod entries;
mod faults;
mod nodes;
mod processes;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::site::Site;
use passant_tests::wait::eventually;
use serde_json::Value;

use crate::report::Report;

/// How long it may take until a planted cause shows: the longest is an agent that must miss its server for 30 s.
const NAMED_WITHIN: Duration = Duration::from_secs(120);
/// How many different causes there are at least.
const CAUSES: usize = 30;
/// How the command ends when something stands in the way, and when nothing does.
const BLOCKED: i32 = 3;
const NOT_BLOCKED: i32 = 0;
/// What limits an identity, and is none that is missing.
const LIMITS: [&str; 1] = ["federated_bundle_missing"];
/// The workload of most rows.
const WEB: &str = "spiffe://example.org/web";
/// Where no socket is: for what a node says alone.
const NO_SERVER: [&str; 2] = ["--server-socket", "/nowhere"];

/// Plants all causes, each group at its own site and most at the same time, since much of it is waiting.
///
/// # Errors
/// What kept the table from being whole.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    let table = Table { report, rows: RefCell::default() };
    // First and by itself: what it looks at is soon over.
    let minted = faults::many(&table).await;
    let groups = tokio::join!(
        entries::run(&table),
        nodes::attestation(&table),
        nodes::standing(&table),
        processes::run(&table),
        faults::server_away(&table),
        faults::record(&table),
        faults::keys(&table),
        faults::store(&table),
        faults::unheard(&table),
    );
    let (a, b, c, d, e, f, g, h, i) = groups;
    for (name, ended) in [
        ("entries", a),
        ("attestation", b),
        ("standing", c),
        ("processes", d),
        ("server away", e),
        ("record", f),
        ("keys", g),
        ("store", h),
        ("unheard", i),
        ("minted", minted),
    ] {
        if let Err(error) = ended {
            report.fact(&format!("the causes of the group \"{name}\" are planted"), Err(error));
        }
    }
    report.fact(&format!("at least {CAUSES} different causes are planted"), table.count());
    Ok(())
}

/// The table of causes: what was planted, by code.
struct Table<'a> {
    report: &'a Report,
    rows: RefCell<BTreeMap<String, BTreeSet<String>>>,
}

impl Table<'_> {
    /// One row: of `planted`, the cause `code` comes first when `args` are asked of `passant explain`, and it is told with
    /// `words`. Agents hear of changes a little later, so it is asked until then.
    async fn row(&self, code: &str, planted: &str, words: &str, site: &Site, args: &[&str]) {
        let named = eventually("the cause to be named first", NAMED_WITHIN, || async {
            is_first(code, words, &asked(site, args).await?)
        });
        let named = named.await.map(|()| String::new());
        self.report.fact(&format!("{code}: planted by {planted}"), named);
        self.rows.borrow_mut().entry(code.to_owned()).or_default().insert(planted.to_owned());
    }

    /// The other side of the rows: nothing stands in the way.
    async fn nothing(&self, planted: &str, site: &Site, args: &[&str]) {
        let served = eventually("nothing to stand in the way", NAMED_WITHIN, || async {
            let told = asked(site, args).await?;
            ensure!(told["blocked"] == false && told["causes"] == Value::Array(Vec::new()), "{told:#}");
            Ok(String::new())
        });
        self.report.fact(&format!("nothing is named: {planted}"), served.await);
    }

    fn count(&self) -> anyhow::Result<String> {
        let rows = self.rows.borrow();
        let (codes, causes) = (rows.len(), rows.values().map(BTreeSet::len).sum::<usize>());
        ensure!(codes >= CAUSES, "{causes} rows of {codes} codes");
        Ok(format!("{causes} rows of {codes} codes"))
    }
}

/// What `passant explain` prints as JSON; its exit code must say the same.
async fn asked(site: &Site, args: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(&binaries().passant);
    command.args(["-o", "json", "explain"]).args(args).env("PASSANT_SERVER_SOCKET", site.server_socket());
    // Not here, since the other groups have something to do meanwhile.
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{args:?}: {said}"))?;
    let code = if told["blocked"] == true { BLOCKED } else { NOT_BLOCKED };
    ensure!(output.status.code() == Some(code), "{:?}, though it told: {told:#}", output.status);
    Ok(told)
}

fn is_first(code: &str, words: &str, told: &Value) -> anyhow::Result<()> {
    let first = &told["causes"][0];
    let text = |field: &str| first[field].as_str().unwrap_or_default();
    ensure!(text("code") == code, "{} is named first: {told:#}", first["code"]);
    ensure!(first["blocks"] == !LIMITS.contains(&code) && told["blocked"] == first["blocks"], "{told:#}");
    ensure!(
        text("says").contains(words) || text("remedy").contains(words),
        "no word of {words:?}: {first:#}"
    );
    ensure!(!text("remedy").is_empty(), "no remedy: {first:#}");
    Ok(())
}

/// A running agent.
struct Node {
    daemon: Daemon,
    /// Its SPIFFE ID, if it attests with a join token.
    id: String,
    /// Its socket for administrators.
    admin: String,
}

impl Node {
    /// Starts an agent with a new join token and more `tables` of configuration, and waits until it serves.
    async fn join(site: &Site, name: &str, tables: &str) -> anyhow::Result<Self> {
        let node = Self::start(site, name, tables)?;
        site.agent_serves(name, &node.daemon).await?;
        Ok(node)
    }

    /// As [`Node::join`], and does not wait.
    fn start(site: &Site, name: &str, tables: &str) -> anyhow::Result<Self> {
        Self::with_token(site, name, tables, &token(site, "10m")?)
    }

    /// As [`Node::start`], with a token that is there.
    fn with_token(site: &Site, name: &str, tables: &str, token: &str) -> anyhow::Result<Self> {
        site.configure_agent(name, &format!("method = \"join_token\"\n{tables}"), "")?;
        Ok(Self::named(site, name, token, site.spawn_agent(name, &["--join-token", token])?))
    }

    /// Starts an agent with a new join token under `wrapper`, a command that runs another one.
    fn under(site: &Site, name: &str, wrapper: &[&str]) -> anyhow::Result<Self> {
        site.configure_agent(name, "method = \"join_token\"", "")?;
        let token = token(site, "10m")?;
        let (program, arguments) = wrapper.split_first().context("a wrapper")?;
        let mut command = Command::new(program);
        command.args(arguments).arg(&binaries().agent).arg("run").arg("--config");
        command.arg(site.path(&format!("{name}.toml"))).args(["--join-token", &token]);
        let daemon = Daemon::start(command, &site.path(&format!("{name}.log")))?;
        Ok(Self::named(site, name, &token, daemon))
    }

    fn named(site: &Site, name: &str, token: &str, daemon: Daemon) -> Self {
        Self { daemon, id: id_of(token), admin: admin(site, name) }
    }
}

/// A new join token.
fn token(site: &Site, ttl: &str) -> anyhow::Result<String> {
    let made = site.passant_json(&["token", "generate", "--ttl", ttl])?;
    Ok(made["value"].as_str().context("a token")?.to_owned())
}

/// The SPIFFE ID of the agent that attests with `token`.
fn id_of(token: &str) -> String {
    format!("spiffe://example.org/spire/agent/join_token/{token}")
}

/// The socket for administrators of the agent called `name`.
fn admin(site: &Site, name: &str) -> String {
    site.path(&format!("{name}-data/admin.sock")).display().to_string()
}

/// Runs a command that writes one entry.
fn write(site: &Site, args: &[&str]) -> anyhow::Result<()> {
    let done = site.passant_json(args)?;
    ensure!(done["results"][0]["status"]["code"] == 0, "{args:?}: {done}");
    Ok(())
}

/// Replaces what stands in the configuration of the agent called `name`.
fn edit(site: &Site, name: &str, from: &str, to: &str) -> anyhow::Result<()> {
    let file = site.path(&format!("{name}.toml"));
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains(from), "no {from} in {text}");
    Ok(fs::write(&file, text.replace(from, to))?)
}

/// The selector that every process of this user has.
fn own_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

/// This process: the workload of most rows.
fn own_pid() -> String {
    std::process::id().to_string()
}
