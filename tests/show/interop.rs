//! Do programs nobody here wrote work against a running server and agent? All of tests/interop, against real daemons.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use passant_tests::daemon::Daemon;
use passant_tests::node_ca::NodeCa;
use passant_tests::site::{NODE, ServerOptions, Site, TRUST_DOMAIN};

use crate::peers::{pass_on, runner};
use crate::report::Report;

/// Lifetime of the X509-SVIDs that the peers watch, in seconds: short enough to see them renewed.
const X509_TTL: u32 = 20;
/// Lifetime of nodes at the second server: short enough to see them expire.
const SHORT_AGENT_TTL: &str = "agent_ttl = \"8s\"\n";
/// Whom the configuration of the third server makes an administrator.
const ADMINISTRATOR: &str = "spiffe://example.org/interop/configured-admin";

/// Runs the show.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let root = NodeCa::new(dir.path())?;
    let ca = root.intermediate(dir.path(), "node-ca-2")?;
    let node = ca.node(dir.path(), "node-ec")?;
    let rsa = ca.node_with_key(dir.path(), "node-rsa", &rsa_key(dir.path())?)?;

    let site = Site::new(&ServerOptions { keys: String::new(), tables: attestors(&root) })?;
    let mut server = site.start_server().await?;
    let mut agent = site.start_agent("agent").await?;
    let short = Site::new(&ServerOptions { keys: SHORT_AGENT_TTL.to_owned(), tables: String::new() })?;
    let mut short_server = short.start_server().await?;
    let api = Site::new(&ServerOptions {
        keys: format!("admin_ids = [{ADMINISTRATOR:?}]\n"),
        tables: attestors(&root),
    })?;
    let mut api_server = api.start_server().await?;

    let mut command = Command::new(runner());
    command
        .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", site.agent_socket("agent").display()))
        .env("PASSANT_TRUST_DOMAIN", TRUST_DOMAIN)
        .env("PASSANT_SERVER_ADDR", site.address())
        .env("PASSANT_SERVER_SOCKET", site.server_socket())
        .env("PASSANT_BUNDLE_PEM", site.bundle_file())
        .env("PASSANT_WORKLOAD_PARENT", format!("spiffe://{TRUST_DOMAIN}{NODE}"))
        .env("PASSANT_X509_TTL", X509_TTL.to_string())
        .env("PASSANT_X509POP_CERT", &node.certificate)
        .env("PASSANT_X509POP_KEY", &node.key)
        .env("PASSANT_X509POP_INTERMEDIATES", &ca.file)
        .env("PASSANT_X509POP_RSA_CERT", &rsa.certificate)
        .env("PASSANT_X509POP_RSA_KEY", &rsa.key)
        .env("PASSANT_SHORT_SERVER_ADDR", short.address())
        .env("PASSANT_SHORT_SERVER_SOCKET", short.server_socket())
        .env("PASSANT_SHORT_BUNDLE_PEM", short.bundle_file())
        .env("PASSANT_API_SERVER_ADDR", api.address())
        .env("PASSANT_API_SERVER_SOCKET", api.server_socket())
        .env("PASSANT_API_BUNDLE_PEM", api.bundle_file())
        .env("PASSANT_API_ADMIN_ID", ADMINISTRATOR)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    run_peers(report, command)?;

    for (name, daemon) in [
        ("server", &mut server),
        ("agent", &mut agent),
        ("second server", &mut short_server),
        ("third server", &mut api_server),
    ] {
        report.fact(&format!("daemons/{name}-lived-through-it"), unharmed(daemon));
    }
    for (name, daemon) in
        [("agent", agent), ("server", server), ("second server", short_server), ("third server", api_server)]
    {
        report
            .fact(&format!("daemons/{name}-stops-when-told-to"), daemon.stop().await.map(|()| String::new()));
    }
    Ok(())
}

/// Attestation by join token, and by certificates of `root`.
fn attestors(root: &NodeCa) -> String {
    format!(
        "[[node_attestor]]\nmethod = \"join_token\"\n[[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n",
        root.file
    )
}

/// Runs tests/interop/run and takes over its verdicts as they come.
fn run_peers(report: &Report, mut command: Command) -> anyhow::Result<()> {
    let before = report.counts();
    let mut running = command.spawn().context("failed to start tests/interop/run: it needs Python 3")?;
    let output = BufReader::new(running.stdout.take().context("its output")?);
    let mut last = String::new();
    for line in output.lines() {
        last = line?;
        pass_on(report, &last);
    }
    let status = running.wait()?;
    let (passed, failed) = report.counts();
    let counted = format!("{} passed, {} failed", passed - before.0, failed - before.1);
    ensure!(last == counted, "tests/interop/run closed with {last:?}, but its verdicts are {counted}");
    ensure!(status.success() == (failed == before.1), "tests/interop/run ended with {status}");
    Ok(())
}

fn unharmed(daemon: &mut Daemon) -> anyhow::Result<String> {
    let ended = daemon.ended()?;
    ensure!(ended.is_none(), "it ended: {ended:?}; its log:\n{}", daemon.log());
    let log = daemon.log();
    let panic = log.lines().find(|line| line.contains("panicked at"));
    ensure!(panic.is_none(), "{}", panic.unwrap_or_default());
    Ok(String::new())
}

/// An RSA key in PEM, made by openssl because ring makes none.
fn rsa_key(dir: &Path) -> anyhow::Result<String> {
    let file = dir.join("rsa.key");
    let made = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"])
        .arg(&file)
        .output()
        .context("failed to start openssl")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(std::fs::read_to_string(file)?)
}
