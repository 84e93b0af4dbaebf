//! Does `passant audit` find what was done and refused on a real server, and every change of its record?

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_agent::Agent;
use passant_core::Host;
use passant_server::Server;
use serde_json::Value;
use tokio::time::Instant;

/// How long the agent may take to be refused.
const WITHIN: Duration = Duration::from_secs(60);

/// A server with a data directory, in this process, and the command line beside it.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(env!("CARGO_BIN_EXE_passant"))
            .args(args)
            .env("PASSANT_SERVER_SOCKET", self.path("server.sock"))
            .stdin(Stdio::null())
            .output()?)
    }

    /// What a command that must succeed printed.
    fn text(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.run(args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {:?}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.text(&[&["-o", "json"], args].concat())?)?)
    }

    /// The lines that a search finds.
    fn search(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = self.text(&[&["-o", "json", "audit", "search"], args].concat())?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// What a check says that must fail with exit code 1.
    fn fault(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.run(&[&["-o", "json", "audit", "verify"], args].concat())?;
        ensure!(output.status.code() == Some(1), "{args:?}: {:?}", output.status);
        let told: Value = serde_json::from_slice(&output.stdout)?;
        Ok(told["fault"].as_str().context("a fault")?.to_owned())
    }
}

/// Runs `test` beside a server and an agent, which is known by its SPIFFE ID.
async fn with(test: impl FnOnce(&Site, &str) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    let site = Site { dir: tempfile::tempdir()? };
    let text = format!(
        "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\n[socket]\npath = {:?}\n",
        site.path("server"),
        site.path("server.sock")
    );
    let server = Server::start(passant_server::Config::parse(&text, "test.toml")?, Host::system()).await?;
    std::fs::write(site.path("bundle.pem"), server.bundle().to_pem())?;
    let made = tokio::task::spawn_blocking(move || {
        let made = site.json(&["token", "generate", "--ttl", "600s"])?;
        Ok::<_, anyhow::Error>((site, made["value"].as_str().context("a token")?.to_owned()))
    });
    let (site, token) = made.await??;
    let token_file = site.path("token");
    std::fs::write(&token_file, &token)?;
    std::fs::set_permissions(&token_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let text = format!(
        "trust_domain = \"example.org\"\ndata_dir = {:?}\nserver_address = \"{}\"\nsync_interval = \"1s\"\n\
         [bootstrap]\nbundle = {:?}\n[node_attestor]\nmethod = \"join_token\"\njoin_token_file = {token_file:?}\n\
         [workload_api]\nsocket = {:?}\n",
        site.path("agent"),
        server.address(),
        site.path("bundle.pem"),
        site.path("workload/api.sock"),
    );
    let config = passant_agent::config::Config::parse("test.toml", &text)?;
    let agent = Agent::start(config, Host::system()).await?;
    let id = format!("spiffe://example.org/spire/agent/join_token/{token}");
    let tested = tokio::task::spawn_blocking(move || test(&site, &id)).await?;
    agent.shutdown().await;
    server.shutdown().await;
    tested
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_and_refused_is_found_and_a_changed_record_noticed() -> anyhow::Result<()> {
    with(|site, agent| {
        let web = "spiffe://example.org/web";
        let entry = ["--id", "web", "--spiffe-id", web, "--parent-id", agent, "--selector", "unix:uid:1"];
        site.text(&[&["entry", "create"], &entry[..]].concat())?;
        site.text(&["agent", "ban", agent])?;
        finds_all(site, agent, web)?;
        let verified = site.json(&["audit", "verify"])?;
        ensure!(verified["fault"].is_null() && verified["first_seq"] == 0, "{verified}");
        let head = verified["head"].as_str().context("a head")?.to_owned();
        site.text(&["audit", "verify", "--head", &head])?;
        site.text(&["entry", "delete", "web"])?;
        site.text(&["audit", "verify", "--head", &head])?;
        notices_changes(site, &head)
    })
    .await
}

/// Searches the running server.
fn finds_all(site: &Site, agent: &str, web: &str) -> anyhow::Result<()> {
    let uid = format!("local uid={}", nix::unistd::geteuid());
    let created = site.search(&["--kind", "act", "--spiffe-id", web])?;
    ensure!(created.len() == 1 && created[0]["act"]["create_entries"][0] == "web", "{created:?}");
    let who = created[0]["caller"].as_str().context("a caller")?;
    ensure!(who.starts_with(&uid) && created[0]["from"] == "operators' socket", "{created:?}");
    ensure!(created[0]["method"] == "/spire.api.server.entry.v1.Entry/BatchCreateEntry", "{created:?}");
    ensure!(created[0]["right"] == "operator", "{created:?}");
    ensure!(site.search(&["--kind", "act", "--entry", "web", "--since", "1h"])?.len() == 1);
    ensure!(site.search(&["--entry", "web", "--until", "1h"])?.is_empty());

    let banned = site.search(&["--kind", "act", "--method", "BanAgent", "--caller", &uid])?;
    ensure!(banned.len() == 1 && banned[0]["act"]["ban_agent"] == agent, "{banned:?}");

    let began = Instant::now();
    let refused = loop {
        let found = site.search(&["--kind", "refusal", "--spiffe-id", agent, "--reason", "is banned"])?;
        if let [first, ..] = &found[..] {
            break first.clone();
        }
        ensure!(began.elapsed() < WITHIN, "the banned agent's refusal is not on record");
    };
    ensure!(refused["caller"] == format!("agent {agent}") && refused["reason"] == "denied", "{refused}");
    ensure!(refused["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{refused}");

    let intents = site.search(&["--kind", "intent", "--spiffe-id", agent])?;
    let serial = intents.last().context("an intent")?["decision"]["serial"].as_str().context("a serial")?;
    ensure!(site.search(&["--kind", "intent", "--serial", serial])?.len() == 1);
    let newest = site.search(&["--limit", "2"])?;
    let all = site.search(&["--limit", "0"])?;
    ensure!(newest.len() == 2 && all.len() > 2, "{newest:?}");
    let told = site.text(&["audit", "search", "--kind", "act", "--limit", "1"])?;
    ensure!(told.contains("ban_agent") && told.contains("--limit 0"), "{told}");
    ensure!(site.text(&["audit", "search", "--entry", "none"])?.contains("Nothing on record"));
    Ok(())
}

/// Reads copies of the record, as an auditor would.
fn notices_changes(site: &Site, head: &str) -> anyhow::Result<()> {
    let segment = site.path("server/decisions/00000001.log");
    let text = std::fs::read_to_string(&segment)?;
    let copy = |name: &str, text: &str| {
        let dir = site.path(name);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("00000001.log"), text)?;
        Ok::<_, anyhow::Error>(dir)
    };
    let path = |dir: &Path| dir.to_str().map(str::to_owned).context("a path in UTF-8");

    let whole = path(&copy("whole", &text)?)?;
    ensure!(site.text(&["audit", "verify", "--record", &whole, "--head", head])?.contains("holds together"));
    let deleted = site.search(&["--record", &whole, "--entry", "web", "--method", "BatchDeleteEntry"])?;
    ensure!(deleted.len() == 1 && deleted[0]["subjects"][0] == "spiffe://example.org/web", "{deleted:?}");
    // The server's own directory, too, while it runs.
    let own = path(&site.path("server"))?;
    ensure!(!site.search(&["--record", &own])?.is_empty());

    let changed = path(&copy("changed", &text.replacen("BatchCreateEntry", "BatchUpdateEntry", 1))?)?;
    let fault = site.fault(&["--record", &changed])?;
    ensure!(fault.contains("is broken at line"), "{fault}");

    let kept: Vec<&str> = text.split_inclusive('\n').collect();
    let seq: usize = head.split_once('@').context("a head")?.1.parse()?;
    let cut = path(&copy("cut", &kept[..seq].concat())?)?;
    site.text(&["audit", "verify", "--record", &cut])?;
    let fault = site.fault(&["--record", &cut, "--head", head])?;
    ensure!(fault.contains("cut off"), "{fault}");

    let empty = path(&site.path("nothing"))?;
    for args in [["audit", "verify", "--record", &empty], ["audit", "search", "--record", &empty]] {
        ensure!(site.run(&args)?.status.code() == Some(1), "{args:?}");
    }
    Ok(())
}
