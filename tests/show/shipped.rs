//! How are the daemons configured as one runs them? At their defaults, where the tests' own sites are quicker and say more.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use passant_tests::daemon::Daemon;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Tells workloads apart by the path of their executable.
pub(crate) const BY_PATH: &str =
    "[workload_attestors.unix]\ndiscover_workload_path = true\nworkload_size_limit = -1\n";
/// On any free port.
const PROBE: &str = "[probe]\nlisten = \"127.0.0.1:0\"\n";

/// A site whose server says no more than a shipped one does.
///
/// # Errors
/// When its files cannot be written.
pub(crate) fn site(options: &ServerOptions) -> anyhow::Result<Site> {
    let site = Site::new(options)?;
    replace(&site.server_config(), "level = \"debug\"", "level = \"info\"")?;
    Ok(site)
}

/// Configures and starts an agent that syncs as often as a shipped one does, by a fresh join token, and does not wait.
///
/// # Errors
/// When it cannot be started.
pub(crate) async fn spawn_agent(site: &Site, name: &str) -> anyhow::Result<Daemon> {
    site.configure_agent(name, &format!("method = \"join_token\"\n{BY_PATH}{PROBE}"), "")?;
    let file = site.path(&format!("{name}.toml"));
    replace(&file, "level = \"debug\"", "level = \"info\"")?;
    replace(&file, "sync_interval = \"1s\"\n", "")?;
    let token = site.join_token().await?;
    site.spawn_agent(name, &["--join-token", &token])
}

fn replace(file: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(file)?;
    ensure!(text.contains(from), "{} has no {from:?}", file.display());
    Ok(fs::write(file, text.replace(from, to))?)
}

/// The samples of a daemon's metrics whose names begin with `start`, as its probe tells them, each on a line.
///
/// # Errors
/// When it does not answer.
pub(crate) async fn metrics(daemon: &Daemon, start: &str) -> anyhow::Result<String> {
    let address = eventually("the probe", READY_WITHIN, || async {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("probes and metrics are answered"));
        let address = line.and_then(|line| line.split("address=").nth(1)).context("not yet said")?;
        Ok(address.split_whitespace().next().unwrap_or_default().to_owned())
    })
    .await?;
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let samples: Vec<&str> = answer.lines().filter(|line| line.starts_with(start)).collect();
    Ok(samples.join("\n"))
}
