//! Does a real agent that is killed at random moments serve again by itself, whatever becomes of its server?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_core::x509_svid::{X509Svid, split_der};
use passant_tests::api::fetch_x509;
use passant_tests::node_ca::NodeCa;
use passant_tests::site::Site;
use tokio::time::Instant;

use super::record::Received;
use super::world::{Dice, World};

/// The name of the agent's certificate, and so the end of its SPIFFE ID.
const NODE: &str = "agent";
/// The path of its SPIFFE ID.
pub(crate) const PATH: &str = "/spire/agent/x509pop/agent";
/// The entry of the harness itself.
pub(crate) const ENTRY: &str = "/kills/harness";
/// How long it may take to serve again, while its server is killed over and over.
const SERVES_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
/// Milliseconds that it may live after it served.
const LIVES: usize = 4_000;

/// What was seen of the agent.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) kills: usize,
    pub(crate) longest: Duration,
    pub(crate) faults: Vec<String>,
}

/// Writes the agent's configuration and its certificate.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn configure(site: &Site, authority: &NodeCa) -> anyhow::Result<()> {
    let files = authority.node(site.dir(), NODE)?;
    let attestor =
        format!("method = \"x509pop\"\ncertificate = {:?}\nprivate_key = {:?}", files.certificate, files.key);
    site.configure_agent("agent", &attestor, "")
}

/// Starts the agent, waits until it serves, kills it at a random moment, and so on until `stop`.
///
/// # Errors
/// When the program cannot be started, or does not serve again in time.
pub(crate) async fn run(world: &World, site: &Site, stop: &AtomicBool) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let mut dice = Dice::new(&world.host);
    loop {
        let mut agent = site.spawn_agent("agent", &[])?;
        let began = Instant::now();
        // One time in four it does not even get as far as serving.
        if !dice.percent(25) || stop.load(Ordering::SeqCst) {
            serves(world, site, began).await.with_context(|| {
                let log = agent.log();
                format!("the agent's log ends with {:?}", log.lines().last().unwrap_or_default())
            })?;
            seen.longest = seen.longest.max(began.elapsed());
            if stop.load(Ordering::SeqCst) {
                agent.stop().await?;
                return Ok(seen);
            }
        }
        tokio::time::sleep(dice.span(LIVES)).await;
        if let Some(status) = agent.ended()? {
            bail!("the agent ended by itself ({status}):\n{}", agent.log());
        }
        agent.kill()?;
        seen.kills += 1;
        if let Err(error) = whole(site) {
            seen.faults.push(format!("{error:#}"));
        }
    }
}

/// Waits until the agent serves the harness an SVID that is its own.
async fn serves(world: &World, site: &Site, began: Instant) -> anyhow::Result<()> {
    loop {
        match fetch_x509(&site.agent_socket("agent")).await {
            Ok(answer) => {
                let svid = answer.svids.first().context("an answer without an SVID")?;
                let svid = X509Svid::parse(split_der(&svid.x509_svid, 4)?)?;
                ensure!(svid.id().path() == ENTRY, "the agent served {}", svid.id());
                world.books().received.push(Received::x509(&svid, "x509_svid"));
                return Ok(());
            }
            Err(status) if began.elapsed() > SERVES_WITHIN => {
                bail!("the agent did not serve within {SERVES_WITHIN:?}: {status}")
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Looks at the file that a killed agent left: it is private, and whole, or not there.
fn whole(site: &Site) -> anyhow::Result<()> {
    let path = site.path("agent-data").join("agent-data.json");
    let Ok(text) = fs::read(&path) else { return Ok(()) };
    serde_json::from_slice::<serde_json::Value>(&text).context("agent-data.json is half-written")?;
    let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "agent-data.json has mode {mode:o}");
    ensure!(
        !site.path("agent-data").join("agent-data.json.unreadable").exists(),
        "an agent set its file aside"
    );
    Ok(())
}
