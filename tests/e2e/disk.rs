//! Does the server hold what it acknowledged when its disk is full, its files are damaged, or another version wrote them?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use passant_tests::api::{selector, wire_id};
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// How long after there is room again the server may take, the longest pause between two attempts included.
const HEALED_WITHIN: Duration = Duration::from_secs(40);

/// Registers so many entries in one call.
async fn register_many(site: &Site, batch: usize, count: usize) -> anyhow::Result<()> {
    let entries = (0..count).map(|nth| types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, &format!("/b{batch}/{nth}")),
        parent_id: wire_id(TRUST_DOMAIN, NODE),
        selectors: vec![selector("unix", &format!("path:/opt/{batch}/{nth}"))],
        ..types::Entry::default()
    });
    let request = BatchCreateEntryRequest { entries: entries.collect(), output_mask: None };
    let results = site.operator().await?.entries().batch_create_entry(request).await?.into_inner().results;
    for result in results {
        let status = result.status.unwrap_or_default();
        ensure!(status.code == 0, "refused: {}", status.message);
    }
    Ok(())
}

fn entry_count(site: &Site) -> anyhow::Result<u64> {
    site.passant_json(&["entry", "count"])?["count"].as_u64().context("a number")
}

/// Lets no file of a process grow past `bytes`; without, as far as the disk has room.
fn limit_files(daemon: &Daemon, bytes: Option<u64>) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(daemon.pid())?).context("a process id")?;
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None })?;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_stops_changes_until_there_is_room_and_nothing_acknowledged_is_lost() -> anyhow::Result<()>
{
    let site = Site::new(&ServerOptions::default())?;
    // Past its limit a write fails as on a full disk only where the signal is ignored.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(&binaries().server);
    command.args(["run", "--config"]).arg(site.server_config());
    let mut server = Daemon::start(command, &site.path("server.log"))?;
    eventually("the server to answer", READY_WITHIN, || site.write_bundle()).await?;
    let size = |name: &str| fs::metadata(site.path(name)).map_or(0, |facts| facts.len());
    let most = size("server-data/state/db").max(size("server.log")) + (512 << 10);
    limit_files(&server, Some(most))?;

    let mut acknowledged = 0;
    let refusal = loop {
        ensure!(acknowledged < 20_000, "the disk does not fill up");
        match register_many(&site, acknowledged, 50).await {
            Ok(()) => acknowledged += 50,
            Err(refusal) => break format!("{refusal:#}"),
        }
    };
    ensure!(refusal.contains("datastore"), "{refusal}");
    ensure!(entry_count(&site)? == u64::try_from(acknowledged)?, "what was refused is not there");
    let again = format!("{:#}", register_many(&site, acknowledged, 50).await.unwrap_err());
    ensure!(again.contains("datastore"), "{again}");

    limit_files(&server, None)?;
    let batch = acknowledged;
    eventually("changes to be taken again", HEALED_WITHIN, || register_many(&site, batch, 50)).await?;
    acknowledged += 50;
    ensure!(server.ended()?.is_none() && server.log().contains("works again"), "{}", server.log());
    server.stop().await?;
    let server = site.start_server().await?;
    ensure!(entry_count(&site)? == u64::try_from(acknowledged)?, "all is there after a restart");
    server.stop().await
}

/// What a start of the server on damaged files may come to.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// It has all that it had.
    Whole,
    /// It does not run, and says why.
    Refused(String),
}

/// What the server answers about its state.
async fn contents(site: &Site) -> anyhow::Result<(serde_json::Value, Vec<Vec<u8>>)> {
    let entries = site.passant_json(&["entry", "list"])?;
    let bundle = site.operator().await?.bundles().get_bundle(GetBundleRequest { output_mask: None }).await?;
    let x509 = bundle.into_inner().x509_authorities.into_iter().map(|authority| authority.asn1);
    Ok((entries, x509.collect()))
}

/// Starts the server; `expected` is what it must have if it runs.
async fn start(site: &Site, expected: &(serde_json::Value, Vec<Vec<u8>>)) -> anyhow::Result<Start> {
    fs::remove_file(site.path("server.log"))?;
    let mut server = site.spawn_server()?;
    let ended = std::cell::RefCell::new(&mut server);
    let refused = eventually("the server to answer or to end", READY_WITHIN, || async {
        if let Some(ended) = ended.borrow_mut().ended()? {
            return Ok(Some(ended));
        }
        site.write_bundle().await.map(|()| None)
    })
    .await?;
    match refused {
        Some(status) => {
            ensure!(status.code() == Some(69), "ended with {status}: {}", server.log());
            let log = server.log();
            Ok(Start::Refused(log.lines().last().unwrap_or_default().to_owned()))
        }
        None => {
            let found = contents(site).await?;
            ensure!(found == *expected, "the server has {found:?}, expected {expected:?}");
            // It signs with the key that it had.
            site.passant_json(&["x509", "mint", "--spiffe-id", "spiffe://example.org/minted"])?;
            server.kill()?;
            Ok(Start::Whole)
        }
    }
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let to = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            copy_dir(&file.path(), &to)?;
        } else {
            fs::copy(file.path(), to)?;
        }
    }
    Ok(())
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    files.sort();
    Ok(files)
}

/// A site whose server has stopped, with entries of which some were changed and removed; and what it held.
async fn stopped_site() -> anyhow::Result<(Site, (serde_json::Value, Vec<Vec<u8>>))> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    register_many(&site, 0, 40).await?;
    for nth in 0..5 {
        let id = site.register(&format!("/n{nth}"), |_| {}).await?;
        if nth % 2 == 0 {
            ensure!(site.passant(["entry", "delete", &id])?.status.success(), "an entry can be deleted");
        }
    }
    let expected = contents(&site).await?;
    server.stop().await?;
    // Once more, so that every file is there that a start makes.
    let server = site.start_server().await?;
    server.stop().await?;
    Ok((site, expected))
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_or_harmless() -> anyhow::Result<()> {
    let (site, expected) = stopped_site().await?;
    let (data, good) = (site.path("server-data"), site.path("good"));
    copy_dir(&data, &good)?;
    let files = files_below(&good)?;
    let names: Vec<PathBuf> =
        files.iter().map(|file| Ok(file.strip_prefix(&good)?.to_owned())).collect::<anyhow::Result<_>>()?;
    for needed in ["keys.json", "revision", "state/db", "state/conf", "decisions/00000001.log"] {
        ensure!(names.iter().any(|name| name == Path::new(needed)), "{needed} is not in {names:?}");
    }
    let mut refused = 0;
    for name in &names {
        let content = fs::read(good.join(name))?;
        if content.is_empty() {
            continue;
        }
        let written = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let half = content[..written / 2].to_vec();
        let mut flipped = content.clone();
        flipped[written * 2 / 3] ^= 4;
        for (damage, content) in [("cut in half", half), ("one bit flipped", flipped)] {
            fs::remove_dir_all(&data)?;
            copy_dir(&good, &data)?;
            fs::write(data.join(name), content)?;
            let started = start(&site, &expected).await;
            let started = started.with_context(|| format!("{} {damage}", name.display()))?;
            if let Start::Refused(said) = started {
                // The file, or the store it is a part of.
                let part = name.iter().next().context("a name")?.to_string_lossy().into_owned();
                ensure!(said.contains(&part), "{} {damage}: {said}", name.display());
                refused += 1;
            }
        }
    }
    ensure!(refused >= 4, "only {refused} damages were noticed");
    Ok(())
}

#[tokio::test]
async fn files_of_a_newer_version_are_refused_with_the_remedy() -> anyhow::Result<()> {
    let (site, expected) = stopped_site().await?;
    for (name, from, to) in [
        ("keys.json", "\"format\": 1", "\"format\": 2"),
        ("decisions/00000001.log", "\"format\":3", "\"format\":4"),
    ] {
        let path = site.path("server-data").join(name);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to))?;
        let Start::Refused(said) = start(&site, &expected).await? else { bail!("{name} was taken") };
        ensure!(said.contains(name) && said.contains("newer version"), "{said}");
        fs::write(&path, text)?;
    }
    ensure!(start(&site, &expected).await? == Start::Whole, "the files are as they were");
    Ok(())
}

#[tokio::test]
async fn an_agent_with_a_damaged_file_says_so_and_attests_anew() -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.start_agent("agent").await?.stop().await?;
    let path = site.path("agent-data").join("agent-data.json");
    let good = fs::read(&path)?;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 4;
    for content in [good[..good.len() / 2].to_vec(), flipped, Vec::new()] {
        fs::write(&path, content)?;
        fs::remove_file(site.path("agent.log"))?;
        let token = site.join_token().await?;
        let agent = site.spawn_agent("agent", &["--join-token", &token])?;
        site.agent_serves("agent", &agent).await?;
        ensure!(agent.log().contains("agent-data.json"), "{}", agent.log());
        agent.stop().await?;
    }
    Ok(())
}
