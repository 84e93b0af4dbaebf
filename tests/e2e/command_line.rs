//! Does the command line do what it says, for people and for programs?

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use passant_tests::binaries::binaries;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;

fn revision(entry: &serde_json::Value) -> Option<u64> {
    entry["revision_number"].as_str().and_then(|text| text.parse().ok())
}

#[tokio::test]
async fn what_operators_do_to_the_log_is_on_record_too() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.passant(["logger", "set", "debug"])?;
    site.passant(["logger", "reset"])?;
    for (method, act) in [("SetLogLevel", "set_log_level"), ("ResetLogLevel", "reset_log_level")] {
        let found = site.passant_json(&["audit", "search", "--kind", "act", "--method", method])?;
        let who = found["caller"].as_str().unwrap_or_default();
        assert!(found["act"].get(act).is_some() && who.starts_with("local uid="), "{found}");
        assert_eq!((&found["from"], &found["right"]), (&"operators' socket".into(), &"operator".into()));
    }
    let verified = site.passant_json(&["audit", "verify"])?;
    assert!(verified["fault"].is_null(), "{verified}");
    Ok(())
}

#[tokio::test]
async fn entries_are_managed_from_the_shell() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let created = site.passant_json(&[
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://example.org/web",
        "--parent-id",
        "spiffe://example.org/node",
        "--selector",
        "unix:uid:1000",
        "--selector",
        "unix:gid:1000",
        "--x509-svid-ttl",
        "30m",
        "--dns-name",
        "web",
        "--hint",
        "blue",
        "--jwt-svid-include-jti",
    ])?;
    let entry = &created["results"][0]["entry"];
    let id = entry["id"].as_str().context("an id")?.to_owned();
    let first_revision = revision(entry);
    assert_eq!((&entry["x509_svid_ttl"], &entry["hint"]), (&1800.into(), &"blue".into()));
    assert_eq!(entry["additional_attributes"]["jwt_svid_include_jti"], true);

    let updated = site.passant_json(&["entry", "update", &id, "--hint", "green", "--admin"])?;
    let entry = &updated["results"][0]["entry"];
    assert_eq!((&entry["hint"], &entry["admin"]), (&"green".into(), &true.into()));
    assert_eq!(entry["x509_svid_ttl"], 1800);
    assert!(revision(entry) > first_revision, "{entry}");
    assert_eq!(entry["additional_attributes"]["jwt_svid_include_jti"], true);

    let listed = site.passant_json(&["entry", "list", "--selector", "unix:uid:1000"])?;
    assert_eq!(listed["entries"].as_array().map(Vec::len), Some(1));
    let listed = site.passant_json(&["entry", "list", "--selector", "unix:uid:1000", "--match", "exact"])?;
    assert_eq!(listed["entries"].as_array().map(Vec::len), Some(0));
    let table = site.passant(["entry", "list"])?;
    let table = String::from_utf8(table.stdout)?;
    assert!(table.contains("SPIFFE ID") && table.contains("spiffe://example.org/web"), "{table}");

    let again = site.passant([
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://example.org/web",
        "--parent-id",
        "spiffe://example.org/node",
        "--selector",
        "unix:gid:1000",
        "--selector",
        "unix:uid:1000",
    ])?;
    let said = String::from_utf8(again.stderr)?;
    assert!(!again.status.success() && said.contains(&id), "{said}");
    site.passant_json(&["entry", "delete", &id])?;
    assert_eq!(site.passant_json(&["entry", "count"])?["count"], 0);
    assert!(!site.passant(["entry", "show", &id])?.status.success());
    Ok(())
}

#[tokio::test]
async fn a_workload_fetches_watches_and_validates_from_the_shell() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let _agent = site.start_agent("agent").await?;
    let fetched =
        eventually("an SVID", READY_WITHIN, || async { site.passant_json(&["svid", "x509"]) }).await?;
    assert_eq!(fetched["svids"][0]["spiffe_id"], "spiffe://example.org/web");
    let dir = site.path("out");
    let dir = dir.to_str().context("a path of text")?;
    site.passant_json(&["svid", "x509", "--write", dir])?;
    for name in ["svid.0.pem", "svid.0.key", "bundle.0.pem"] {
        assert!(site.path("out").join(name).exists(), "{name}");
    }
    let tokens = site.passant_json(&["svid", "jwt", "--audience", "reports"])?;
    let token = tokens["svids"][0]["svid"].as_str().context("a token")?;
    let valid = site.passant_json(&["svid", "validate", "--audience", "reports", token])?;
    assert_eq!(valid["claims"]["sub"], "spiffe://example.org/web");
    assert!(!site.passant(["svid", "validate", "--audience", "other", token])?.status.success());

    let mut watch = Command::new(&binaries().passant)
        .args(["-o", "json", "svid", "watch"])
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", site.agent_socket("agent").display()))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(watch.stdout.take().context("its output")?).read_line(&mut line)?;
    watch.kill()?;
    watch.wait()?;
    let update: serde_json::Value = serde_json::from_str(&line)?;
    assert_eq!(update["svids"][0]["spiffe_id"], "spiffe://example.org/web");
    assert!(update["svids"][0].get("x509_svid_key").is_none(), "a log of updates shows no key");
    Ok(())
}

#[tokio::test]
async fn operators_mint_for_themselves() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let dir = site.path("minted");
    let dir = dir.to_str().context("a path of text")?;
    let id = "spiffe://example.org/ops";
    site.passant_json(&[
        "x509",
        "mint",
        "--spiffe-id",
        id,
        "--ttl",
        "5m",
        "--dns-name",
        "ops.example.org",
        "--write",
        dir,
    ])?;
    let chain = std::fs::read_to_string(site.path("minted").join("svid.pem"))?;
    assert!(chain.starts_with("-----BEGIN CERTIFICATE-----"));
    let minted = site.passant_json(&["jwt", "mint", "--spiffe-id", id, "--audience", "reports"])?;
    assert_eq!(minted["svid"]["token"].as_str().map(|token| token.matches('.').count()), Some(2));
    let bundle = site.passant(["bundle", "show", "--format", "spiffe"])?;
    let bundle: serde_json::Value = serde_json::from_slice(&bundle.stdout)?;
    assert_eq!(bundle["keys"].as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn a_closed_pipe_is_no_error() -> anyhow::Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(&binaries().passant).args(["completion", shell]).stdout(writer).output()?;
        let said = String::from_utf8(output.stderr)?;
        assert!(output.status.success() && said.is_empty(), "{shell}: {said}");
    }
    Ok(())
}

#[test]
fn a_missing_server_is_named() -> anyhow::Result<()> {
    let output = Command::new(&binaries().passant)
        .args(["--server-socket", "/nonexistent/api.sock", "entry", "list"])
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    assert!(!output.status.success());
    assert!(said.contains("/nonexistent/api.sock") && said.contains("PASSANT_SERVER_SOCKET"), "{said}");
    Ok(())
}

#[tokio::test]
async fn dev_shows_the_whole_job_and_stays_until_interrupted() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for round in 0..2 {
        let mut dev = Command::new(&binaries().passant)
            .args(["dev", "--data-dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = dev.stdout.take().context("its output")?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            let mut lines = BufReader::new(output).lines();
            while let Some(Ok(line)) = lines.next() {
                said.push_str(&line);
                said.push('\n');
                if line.contains("Ctrl-C") {
                    break;
                }
            }
            (said, lines)
        });
        let (said, _lines) = tokio::time::timeout(Duration::from_secs(60), reading).await??;
        for word in ["BEGIN CERTIFICATE", "JWT-SVID", "spiffe://example.org/", "Ctrl-C"] {
            assert!(said.contains(word), "round {round}: {word} is missing in:\n{said}");
        }
        for socket in ["server.sock", "agent.sock"] {
            assert!(dir.path().join(socket).exists(), "{socket}");
        }
        assert!(dev.try_wait()?.is_none());
        kill(Pid::from_raw(i32::try_from(dev.id())?), Signal::SIGINT)?;
        let ended = eventually("dev to end", READY_WITHIN, || {
            let ended = dev.try_wait();
            async move { ended?.context("it runs") }
        })
        .await?;
        assert_eq!(ended.code(), Some(0));
    }
    Ok(())
}
