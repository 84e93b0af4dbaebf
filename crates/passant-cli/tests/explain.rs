//! Does `passant explain` name the cause that was planted first, on a real server and a real node?

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_agent::Agent;
use passant_core::Host;
use passant_server::Server;
use serde_json::Value;
use tokio::time::Instant;

/// A server and an agent in this process, and the command line beside them.
struct Site {
    dir: tempfile::TempDir,
}

/// How long the agent may take to hear of a change.
const WITHIN: Duration = Duration::from_secs(60);

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command, and reads what it printed as JSON; it must not fail.
    fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_passant"))
            .args(["-o", "json"])
            .args(args)
            .env("PASSANT_SERVER_SOCKET", self.path("server.sock"))
            .env("PASSANT_AGENT_SOCKET", self.path("agent/admin.sock"))
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(matches!(output.status.code(), Some(0 | 3)), "{args:?}: {:?}: {said}", output.status);
        let told: Value = serde_json::from_slice(&output.stdout)?;
        if let Some(blocked) = told.get("blocked").and_then(Value::as_bool) {
            ensure!(output.status.code() == Some(if blocked { 3 } else { 0 }), "{args:?}: {told}");
        }
        Ok(told)
    }

    /// Sets fields of the entry `web`.
    fn update(&self, args: &[&str]) -> anyhow::Result<()> {
        let done = self.json(&[&["entry", "update", "web"], args].concat())?;
        ensure!(done["results"][0]["status"]["code"] == 0, "{args:?}: {done}");
        Ok(())
    }

    fn create(&self, args: &[&str]) -> anyhow::Result<()> {
        let done = self.json(&[&["entry", "create"], args].concat())?;
        ensure!(done["results"][0]["status"]["code"] == 0, "{args:?}: {done}");
        Ok(())
    }

    /// Asks until the first cause is `code` (none at all, if it is empty), since the agent hears of changes a little later.
    fn names(&self, code: &str, args: &[&str]) -> anyhow::Result<Value> {
        let began = Instant::now();
        loop {
            let told = self.json(args)?;
            // What the node still serves is not blocked yet, whatever the server says already.
            let is_first = told["causes"][0]["code"].as_str().unwrap_or_default() == code;
            if is_first && told["blocked"] == !code.is_empty() {
                return Ok(told);
            }
            if began.elapsed() > WITHIN {
                bail!("{code} is not named first: {told:#}");
            }
        }
    }
}

/// The agents of a site, by the SPIFFE IDs that their join tokens made.
struct Agents {
    /// The agent whose admin socket the commands use.
    own: String,
    /// One that hashes executables, and none larger than a byte: its attestor fails for every process.
    other: String,
}

/// Runs `test` beside a server and two agents.
async fn with(
    test: impl FnOnce(&Site, &Agents) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let site = Site { dir: tempfile::tempdir()? };
    let text = format!(
        "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\n[socket]\npath = {:?}\n",
        site.path("server.sock")
    );
    let server = Server::start(passant_server::Config::parse(&text, "test.toml")?, Host::system()).await?;
    std::fs::write(site.path("bundle.pem"), server.bundle().to_pem())?;
    let bootstrap = format!("bundle = {:?}", site.path("bundle.pem"));
    let tokens = tokio::task::spawn_blocking(move || {
        let token = || {
            let made = site.json(&["token", "generate"])?;
            Ok::<_, anyhow::Error>(made["value"].as_str().context("a token")?.to_owned())
        };
        let tokens = (token()?, token()?);
        Ok::<_, anyhow::Error>((site, tokens))
    });
    let (site, (own, other)) = tokens.await??;
    let address = server.address().to_string();
    let first = start_agent(&site, "agent", &address, &bootstrap, &own, "").await?;
    let hashing = "[workload_attestors.unix]\ndiscover_workload_path = true\nworkload_size_limit = 1\n";
    let second = start_agent(&site, "other", &address, &bootstrap, &other, hashing).await?;
    let id = |token| format!("spiffe://example.org/spire/agent/join_token/{token}");
    let agents = Agents { own: id(own), other: id(other) };
    let tested = tokio::task::spawn_blocking(move || test(&site, &agents)).await?;
    first.shutdown().await;
    second.shutdown().await;
    server.shutdown().await;
    tested
}

async fn start_agent(
    site: &Site,
    name: &str,
    server: &str,
    bootstrap: &str,
    token: &str,
    more: &str,
) -> anyhow::Result<passant_agent::Running> {
    let token_file = site.path(&format!("{name}.token"));
    std::fs::write(&token_file, token)?;
    std::fs::set_permissions(&token_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let text = format!(
        "trust_domain = \"example.org\"\ndata_dir = {:?}\nserver_address = \"{server}\"\nsync_interval = \"1s\"\n\
         [bootstrap]\n{bootstrap}\n[node_attestor]\nmethod = \"join_token\"\njoin_token_file = {token_file:?}\n\
         [workload_api]\nsocket = {:?}\n{more}",
        site.path(name),
        site.path(&format!("{name}-workload/api.sock")),
    );
    Ok(Agent::start(passant_agent::config::Config::parse("test.toml", &text)?, Host::system()).await?)
}

const WEB: &str = "spiffe://example.org/web";

#[tokio::test(flavor = "multi_thread")]
async fn the_planted_cause_is_named_first_on_the_node() -> anyhow::Result<()> {
    with(|site, Agents { own: agent, other }| {
        let pid = std::process::id().to_string();
        let uid = format!("unix:uid:{}", nix::unistd::geteuid());
        let of_web = ["explain", "pid", &pid, "--spiffe-id", WEB];
        let names = |code: &str| site.names(code, &of_web);
        site.names("node_without_entries", &["explain", "pid", &pid])?;
        site.names("node_without_entries", &["explain", "node"])?;
        names("no_entry")?;
        site.names(
            "reserved_id",
            &["explain", "pid", &pid, "--spiffe-id", "spiffe://example.org/spire/server"],
        )?;
        site.names(
            "other_trust_domain",
            &["explain", "pid", &pid, "--spiffe-id", "spiffe://other.test/web"],
        )?;

        let nowhere = "spiffe://example.org/nowhere";
        site.create(&["--id", "web", "--spiffe-id", WEB, "--parent-id", nowhere, "--selector", &uid])?;
        names("parent_unknown")?;
        site.update(&["--parent-id", "spiffe://example.org/spire/agent/x509pop/gone"])?;
        names("parent_unknown")?;
        site.create(&[
            "--id",
            "pool",
            "--spiffe-id",
            nowhere,
            "--node",
            "--selector",
            "x509pop:subject:cn:db",
        ])?;
        site.update(&["--parent-id", nowhere])?;
        names("alias_selectors_missing")?;
        let circle = "spiffe://example.org/circle";
        site.create(&[
            "--id",
            "circle",
            "--spiffe-id",
            circle,
            "--parent-id",
            circle,
            "--selector",
            "unix:uid:77",
        ])?;
        site.update(&["--parent-id", circle])?;
        names("parent_cycle")?;
        site.update(&["--parent-id", "spiffe://example.org/spire/server"])?;
        names("node_alias")?;

        site.update(&["--parent-id", agent])?;
        let served = names("")?;
        ensure!(served["candidates"][0]["entry_id"] == "web", "{served}");
        site.update(&["--selector", "unix:uid:4242424"])?;
        let lacking = names("selectors_missing")?;
        let says = lacking["causes"][0]["says"].as_str().context("a sentence")?;
        ensure!(says.contains(&format!("unix:uid:4242424 (it has {uid})")), "{says}");
        site.update(&["--selector", "docker:label:app:web"])?;
        names("attestor_missing")?;
        site.update(&["--selector", &uid, "--selector", "unix:path:/usr/bin/web"])?;
        names("attestor_option_off")?;
        site.update(&["--selector", &uid, "--store-svid=true"])?;
        names("for_secret_store")?;
        site.update(&["--store-svid=false"])?;
        names("")?;

        // A node alone says less than with its server, and never what another says of it.
        let alone = ["explain", "pid", &pid, "--server-socket", "/nowhere", "--spiffe-id"];
        site.names("not_on_node", &[&alone[..], &["spiffe://example.org/db"]].concat())?;
        site.update(&["--selector", "unix:path:/usr/bin/web"])?;
        site.names("no_entry_matches", &["explain", "pid", &pid])?;
        site.update(&["--selector", &uid])?;
        let failing = site.path("other/admin.sock").display().to_string();
        site.names("attestation_failed", &["explain", "pid", &pid, "--agent-socket", &failing])?;
        site.update(&["--parent-id", other])?;
        names("of_another_node")?;

        let soon = || Host::system().now().plus(Duration::from_secs(2)).to_string();
        site.update(&["--parent-id", agent, "--expires-at", &soon()])?;
        names("entry_ended")?;
        let later = Host::system().now().plus(Duration::from_secs(3600)).to_string();
        site.update(&["--parent-id", circle, "--expires-at", &later])?;
        site.json(&["entry", "update", "circle", "--parent-id", agent, "--expires-at", &soon()])?;
        names("parent_ended")?;
        site.update(&["--parent-id", agent])?;
        names("")?;

        let mut gone = Command::new("/bin/true").spawn()?;
        let gone_pid = gone.id().to_string();
        gone.wait()?;
        site.names("no_such_process", &["explain", "pid", &gone_pid])?;

        site.json(&["agent", "ban", agent])?;
        names("node_banned")?;
        site.names("node_banned", &["explain", "node"])?;
        site.json(&["agent", "evict", agent])?;
        site.names("node_unknown", &["explain", "spiffe-id", WEB, "--agent", agent])?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_reach_its_server_says_so() -> anyhow::Result<()> {
    let site = Site { dir: tempfile::tempdir()? };
    // A port that nobody listens on: it was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let agent = start_agent(&site, "agent", &free, "insecure_bootstrap = true", "a-token", "").await?;
    let tested = tokio::task::spawn_blocking(move || {
        let pid = std::process::id().to_string();
        let began = Instant::now();
        loop {
            let told = site.names("node_not_attested", &["explain", "pid", &pid])?;
            let says = told["causes"][0]["says"].as_str().context("a sentence")?;
            if says.contains("failed to attest node") {
                ensure!(told["not_asked"][0].as_str().is_some_and(|why| why.contains("server")), "{told}");
                return Ok(());
            }
            ensure!(began.elapsed() < WITHIN, "{told}");
        }
    });
    let tested = tested.await?;
    agent.shutdown().await;
    tested
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_are_not_told_on_their_socket() -> anyhow::Result<()> {
    with(|site, _| {
        let socket = site.path("agent-workload/api.sock").display().to_string();
        let asked = site.json(&["explain", "node", "--agent-socket", &socket]);
        let refused = asked.err().context("the Workload API explains")?.to_string();
        ensure!(refused.contains("Unimplemented"), "{refused}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_what_it_holds() -> anyhow::Result<()> {
    with(|site, _| {
        site.create(&[
            "--spiffe-id",
            WEB,
            "--parent-id",
            "spiffe://example.org/node",
            "--selector",
            "unix:uid:1",
        ])?;
        let info = site.json(&["debug"])?;
        ensure!(info["entries_count"] == 1 && info["svid_chain"][1]["expires_at"].is_string(), "{info}");
        Ok(())
    })
    .await
}
