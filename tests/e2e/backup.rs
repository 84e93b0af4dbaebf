//! Can a server's state be carried away while it works, and brought back; and are lost keys survived?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use passant_tests::api::{fetch_x509, selector, wire_id};
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;

/// Runs `passant store` with `arguments`; what it printed, and whether it said that all is well.
fn store(site: &Site, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let output = site.passant(["store"].iter().chain(arguments))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(said)?))
}

fn text(site: &Site, name: &str) -> String {
    site.path(name).display().to_string()
}

/// `passant store restore` of the file `name` by the site's configuration, as JSON.
fn restore(site: &Site, name: &str) -> anyhow::Result<serde_json::Value> {
    let (file, config) = (text(site, name), site.server_config().display().to_string());
    site.passant_json(&["store", "restore", &file, "--config", &config])
}

/// Takes the state away, as a lost disk would; keys and record stay.
fn lose_state(site: &Site) -> anyhow::Result<()> {
    Ok(fs::rename(site.path("server-data/state"), site.path("lost-state"))?)
}

async fn register_many(site: &Site, batch: u32, count: u32) -> anyhow::Result<()> {
    let entry = |n: u32| types::Entry {
        spiffe_id: wire_id("example.org", &format!("/many/{batch}/{n}")),
        parent_id: wire_id("example.org", "/elsewhere"),
        selectors: vec![selector("unix", &format!("uid:{n}"))],
        ..types::Entry::default()
    };
    let request = BatchCreateEntryRequest { entries: (0..count).map(entry).collect(), output_mask: None };
    let results = site.operator().await?.entries().batch_create_entry(request).await?.into_inner().results;
    ensure!(results.iter().all(|result| result.status.as_ref().is_some_and(|status| status.code == 0)));
    Ok(())
}

#[tokio::test]
async fn a_backup_under_churn_is_of_one_moment_and_anybody_can_read_it() -> anyhow::Result<()> {
    let site = Arc::new(Site::new(&ServerOptions::default())?);
    let server = site.start_server().await?;
    for batch in 0..25 {
        register_many(&site, batch, 2_000).await?;
    }
    let is_done = Arc::new(AtomicBool::new(false));
    let churn = tokio::spawn({
        let (site, is_done) = (Arc::clone(&site), Arc::clone(&is_done));
        async move {
            let mut made = 0;
            while !is_done.load(Ordering::Relaxed) {
                made += 1;
                register_many(&site, 1_000 + made, 10).await?;
            }
            anyhow::Ok(made)
        }
    });
    let file = text(&site, "backup");
    let taken = {
        let (site, file) = (Arc::clone(&site), file.clone());
        tokio::task::spawn_blocking(move || site.passant_json(&["store", "backup", &file])).await??
    };
    is_done.store(true, Ordering::Relaxed);
    ensure!(churn.await?? > 0);

    let lines = fs::read_to_string(&file)?;
    let header: serde_json::Value = serde_json::from_str(lines.lines().next().context("a first line")?)?;
    assert_eq!(header, taken["backup"]);
    let entries = lines.lines().filter(|line| line.starts_with("{\"put_entry\"")).count();
    ensure!(
        entries >= 50_000 && entries % 10 == 0,
        "{entries} entries: a batch of ten is there whole or not at all"
    );
    assert_eq!(header["holds"]["entries"], entries);
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    ensure!(!lines.contains("PRIVATE"));
    let (is_well, said) = store(&site, &["check", &file])?;
    ensure!(is_well && said.contains("example.org"), "{said}");

    // A file that is there is not replaced unasked, and none is left half written.
    let (is_well, said) = store(&site, &["backup", &file])?;
    ensure!(!is_well && said.contains("--force"), "{said}");
    let (is_well, said) = store(&site, &["backup", &file, "--force"])?;
    ensure!(is_well && said.contains("keys.json"), "{said}");
    let (is_well, _) = store(&site, &["backup", &text(&site, "no-such-dir/backup")])?;
    ensure!(!is_well);
    ensure!(
        fs::read_dir(site.dir())?
            .flatten()
            .all(|file| !file.file_name().to_string_lossy().contains("unfinished"))
    );

    // All of it comes back.
    server.stop().await?;
    let (is_well, said) = store(&site, &["check", &text(&site, "server-data")])?;
    ensure!(is_well, "{said}");
    lose_state(&site)?;
    let restored = restore(&site, "backup")?;
    let held = restored["holds"]["entries"].clone();
    let server = site.start_server().await?;
    assert_eq!(site.passant_json(&["entry", "count"])?["count"], held);
    server.stop().await
}

#[tokio::test]
async fn after_a_restoration_agents_go_on_and_what_is_lost_is_named() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let web = site.register("/web", |_| {}).await?;
    let doomed = site.register("/doomed", |_| {}).await?;
    let agent = site.start_agent("agent").await?;
    let bad = site.start_agent("bad").await?;
    let socket = site.agent_socket("agent");
    eventually("both SVIDs", READY_WITHIN, || async {
        ensure!(fetch_x509(&socket).await?.svids.len() == 2);
        Ok(())
    })
    .await?;
    let ids = |agents: &serde_json::Value| -> Vec<String> {
        let agents = agents["agents"].as_array().cloned().unwrap_or_default();
        agents
            .iter()
            .map(|a| format!("spiffe://example.org{}", a["id"]["path"].as_str().unwrap_or_default()))
            .collect()
    };
    let before_bad = ids(&site.passant_json(&["agent", "list"])?);
    let unspent = site.join_token().await?;
    site.passant_json(&["store", "backup", &text(&site, "backup")])?;

    // Everything that follows is not in the backup.
    let bad_id =
        before_bad.iter().find(|id| !agent_is(&site, "agent", id)).context("the other agent")?.clone();
    site.passant_json(&["agent", "ban", &bad_id])?;
    site.passant_json(&["entry", "delete", &doomed])?;
    site.passant_json(&["entry", "update", &web, "--hint", "changed"])?;
    let late_entry = site.register("/late", |_| {}).await?;
    let late = site.start_agent("late").await?;
    let late_socket = site.agent_socket("late");
    eventually("the late SVID", READY_WITHIN, || async {
        let svids = fetch_x509(&late_socket).await?.svids;
        ensure!(svids.iter().any(|svid| svid.spiffe_id.ends_with("/late")));
        Ok(())
    })
    .await?;
    let all = ids(&site.passant_json(&["agent", "list"])?);
    let late_id = all.iter().find(|id| !before_bad.contains(id)).context("the late agent")?.clone();
    server.stop().await?;
    let (is_well, said) = store(&site, &["check", &text(&site, "server-data")])?;
    ensure!(is_well, "{said}");
    lose_state(&site)?;
    // A server does not take what is left for a new one.
    let mut refusing = site.spawn_server()?;
    assert_eq!(refusing.wait(READY_WITHIN).await?.code(), Some(69), "{}", refusing.log());
    drop(refusing);
    let (is_well, said) = store(&site, &["check", &text(&site, "server-data")])?;
    ensure!(!is_well && said.contains("FAULT"), "{said}");

    let restored = restore(&site, "backup")?;
    assert_eq!(restored["again"]["banned"], serde_json::json!([bad_id]));
    assert_eq!(restored["again"]["deleted_entries"], serde_json::json!([doomed]));
    assert_eq!(restored["lost"]["agents"], serde_json::json!([late_id]));
    // The alias that the late agent has by its token is lost too, and named if the agent got that far.
    let lost = restored["lost"]["entries"].as_array().context("the lost entries")?;
    let (named, others): (Vec<_>, Vec<_>) = lost.iter().partition(|entry| entry[0] == late_entry.as_str());
    ensure!(named.len() == 1, "{restored}");
    ensure!(others.iter().all(|entry| entry[1] == "spiffe://example.org/node"), "{restored}");
    assert_eq!(restored["lost"]["changed_entries"], serde_json::json!([web]));
    assert_eq!(restored["lost"]["join_tokens"], 1);
    assert_eq!(restored["record"]["trouble"], serde_json::json!([]));
    assert_eq!(restored["keys_missing"], serde_json::json!([]));

    let server = site.start_server().await?;
    let shown = site.passant_json(&["entry", "show", &web])?;
    assert_eq!(shown["hint"], "");
    assert_eq!(site.passant_json(&["agent", "show", &bad_id])?["banned"], true);
    // The agent, which has seen the entries at later revisions, gets what stands now, and what is made from now on.
    let fresh = site.register("/fresh", |_| {}).await?;
    let updated = site.passant_json(&["entry", "update", &web, "--hint", "new"])?;
    ensure!(revision(&updated["results"][0]["entry"]) > revision(&shown), "{updated}");
    eventually("the agent to follow", READY_WITHIN, || async {
        let svids = fetch_x509(&socket).await?.svids;
        let mut found: Vec<(&str, &str)> =
            svids.iter().map(|svid| (svid.spiffe_id.as_str(), svid.hint.as_str())).collect();
        found.sort_unstable();
        let wanted = [("spiffe://example.org/fresh", ""), ("spiffe://example.org/web", "new")];
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })
    .await?;
    site.passant_json(&["entry", "show", &fresh])?;
    // The void token attests nobody.
    site.configure_agent("void", "method = \"join_token\"", "")?;
    let void = site.spawn_agent("void", &["--join-token", &unspent])?;
    eventually("the refusal", READY_WITHIN, || async {
        ensure!(void.log().contains("does not exist or has already been used"));
        Ok(())
    })
    .await?;
    for daemon in [agent, bad, late, void] {
        daemon.stop().await?;
    }
    server.stop().await
}

fn revision(entry: &serde_json::Value) -> Option<u64> {
    entry["revision_number"].as_str().and_then(|text| text.parse().ok())
}

/// Whether the agent called `name` says in its log that it is `id`.
fn agent_is(site: &Site, name: &str, id: &str) -> bool {
    fs::read_to_string(site.path(&format!("{name}.log"))).is_ok_and(|log| log.contains(id))
}

#[tokio::test]
async fn a_damaged_or_foreign_backup_and_a_directory_in_use_are_refused() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let file = text(&site, "backup");
    site.passant_json(&["store", "backup", &file])?;
    let config = site.server_config().display().to_string();

    let (is_well, said) = store(&site, &["restore", &file, "--config", &config])?;
    ensure!(!is_well && said.contains("held by another process"), "{said}");
    let (is_well, said) = store(&site, &["check", &text(&site, "server-data")])?;
    ensure!(!is_well && said.contains("held by another process"), "{said}");
    server.stop().await?;
    let (is_well, said) = store(&site, &["restore", &file, "--config", &config])?;
    ensure!(!is_well && said.contains("holds state already"), "{said}");
    let dir = text(&site, "elsewhere");
    let (is_well, said) =
        store(&site, &["restore", &file, "--data-dir", &dir, "--trust-domain", "other.test"])?;
    ensure!(!is_well && said.contains("example.org") && said.contains("other.test"), "{said}");

    let sound = fs::read_to_string(&file)?;
    let damaged = sound.replacen("/web", "/wex", 1);
    let line = 1 + sound.lines().position(|line| line.contains("/web")).context("the entry")?;
    fs::write(&file, damaged)?;
    let (is_well, said) =
        store(&site, &["restore", &file, "--data-dir", &dir, "--trust-domain", "example.org"])?;
    ensure!(!is_well && said.contains(&file) && said.contains("checksum"), "{said}");
    fs::write(&file, sound.replacen("/web", "//web", 1))?;
    let (is_well, said) = store(&site, &["check", &file])?;
    ensure!(!is_well && said.contains(&format!("line {line}")), "{said}");
    ensure!(!site.path("elsewhere").exists(), "nothing is made before all was verified");
    Ok(())
}

#[tokio::test]
async fn a_server_that_lost_its_keys_goes_on_under_new_authorities_once_told_to() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    let old = eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    server.stop().await?;
    fs::remove_file(site.path("server-data/keys.json"))?;

    let (is_well, said) = store(&site, &["check", &text(&site, "server-data")])?;
    ensure!(!is_well && said.contains("accept_lost_keys"), "{said}");
    let mut refusing = site.spawn_server()?;
    assert_eq!(refusing.wait(READY_WITHIN).await?.code(), Some(69));
    ensure!(refusing.log().contains("accept_lost_keys = true"), "{}", refusing.log());
    drop(refusing);

    site.configure(&ServerOptions { keys: "accept_lost_keys = true".to_owned(), tables: String::new() })?;
    let server = site.start_server().await?;
    // Once is enough.
    server.stop().await?;
    site.configure(&ServerOptions::default())?;
    let server = site.start_server().await?;

    // The node: the new bundle (which start_server has written), no memory of the old one, a new token.
    agent.stop().await?;
    fs::remove_file(site.path("agent-data/agent-data.json"))?;
    let token = site.join_token().await?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    site.agent_serves("agent", &agent).await?;
    let new = eventually("a new SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    ensure!(new.svids[0].x509_svid != old.svids[0].x509_svid);
    // Those that still hold SVIDs of the lost authority are believed until these end.
    ensure!(new.svids[0].bundle.windows(old.svids[0].bundle.len()).any(|part| part == old.svids[0].bundle));
    agent.stop().await?;
    server.stop().await
}
