//! Does `passant explain` ask node and server, and put together what they say? Which cause comes first, of all that there
//! are, is seen by `cargo xtask show explain`.

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

/// Runs `test` beside a server and an agent, whose SPIFFE ID it is told.
async fn with(test: impl FnOnce(&Site, &str) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    let site = Site { dir: tempfile::tempdir()? };
    let text = format!(
        "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\n[socket]\npath = {:?}\n",
        site.path("server.sock")
    );
    let server = Server::start(passant_server::Config::parse(&text, "test.toml")?, Host::system()).await?;
    std::fs::write(site.path("bundle.pem"), server.bundle().to_pem())?;
    let made = tokio::task::spawn_blocking(move || {
        let made = site.json(&["token", "generate"])?;
        Ok::<_, anyhow::Error>((site, made["value"].as_str().context("a token")?.to_owned()))
    });
    let (site, token) = made.await??;
    let agent = start_agent(&site, &server.address().to_string(), &token).await?;
    let id = format!("spiffe://example.org/spire/agent/join_token/{token}");
    let tested = tokio::task::spawn_blocking(move || test(&site, &id)).await?;
    agent.shutdown().await;
    server.shutdown().await;
    tested
}

async fn start_agent(site: &Site, server: &str, token: &str) -> anyhow::Result<passant_agent::Running> {
    let token_file = site.path("token");
    std::fs::write(&token_file, token)?;
    std::fs::set_permissions(&token_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let text = format!(
        "trust_domain = \"example.org\"\ndata_dir = {:?}\nserver_address = \"{server}\"\nsync_interval = \"1s\"\n\
         [bootstrap]\nbundle = {:?}\n[node_attestor]\nmethod = \"join_token\"\njoin_token_file = {token_file:?}\n\
         [workload_api]\nsocket = {:?}\n",
        site.path("agent"),
        site.path("bundle.pem"),
        site.path("workload/api.sock"),
    );
    Ok(Agent::start(passant_agent::config::Config::parse("test.toml", &text)?, Host::system()).await?)
}

const WEB: &str = "spiffe://example.org/web";

#[tokio::test(flavor = "multi_thread")]
async fn node_and_server_are_asked_and_the_exit_code_says_what_they_found() -> anyhow::Result<()> {
    with(|site, agent| {
        let pid = std::process::id().to_string();
        let uid = format!("unix:uid:{}", nix::unistd::geteuid());
        let of_web = ["explain", "pid", &pid, "--spiffe-id", WEB];
        let told = site.names("no_entry", &of_web)?;
        ensure!(told["causes"][0]["side"] == "server" && told["causes"][1]["side"] == "node", "{told}");
        ensure!(told["not_asked"] == Value::Array(Vec::new()), "{told}");
        let alone =
            site.names("node_without_entries", &["explain", "node", "--server-socket", "/nowhere"])?;
        ensure!(alone["not_asked"][0].as_str().is_some_and(|why| why.contains("/nowhere")), "{alone}");

        let create = ["--id", "web", "--spiffe-id", WEB, "--parent-id", agent, "--selector"];
        site.create(&[&create[..], &["unix:uid:4242424"]].concat())?;
        let lacking = site.names("selectors_missing", &of_web)?;
        let says = lacking["causes"][0]["says"].as_str().context("a sentence")?;
        ensure!(says.contains(&format!("unix:uid:4242424 (it has {uid})")), "{says}");
        site.update(&["--selector", &uid])?;
        let served = site.names("", &of_web)?;
        ensure!(served["candidates"][0]["entry_id"] == "web", "{served}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_are_not_told_on_their_socket() -> anyhow::Result<()> {
    with(|site, _| {
        let socket = site.path("workload/api.sock").display().to_string();
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
