//! `passant dev`: a server and an agent in this process, one registered workload (the caller), and its SVIDs.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use passant_agent::Agent;
use passant_core::pem_text::section;
use passant_core::{Host, SpiffeId, TrustDomain};
use passant_proto::agent::CreateJoinTokenRequest;
use passant_proto::convert::id;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use passant_server::Server;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, timeout};
use tonic::Code;

use crate::args::{Dev, ServerSocket, WorkloadSocket};
use crate::commands::entry::wire_secs;
use crate::commands::files;
use crate::commands::svid::{Identities, Identity, describe, fetch_jwt, fetch_x509};
use crate::connect::{self, refused, workload_api};
use crate::render::{Output, fields};

/// How long the agent may take until it serves the caller's SVID.
const SERVED_WITHIN: Duration = Duration::from_secs(60);
/// How often the agent is asked until then.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long a join token may be used; it is used at once.
const TOKEN_TTL: i32 = 600;

pub(crate) async fn run(args: Dev, out: &mut Output) -> anyhow::Result<()> {
    log_to_stderr();
    let place = Place::open(args.data_dir)?;
    let host = Host::system();
    let server = start_server(&place, &args.trust_domain, args.svid_ttl, host.clone()).await?;
    files::write_public(&place.dir, "bundle.pem", &server.bundle().to_pem())?;
    let server_socket = ServerSocket { path: place.server_socket().display().to_string() };
    let operator = connect::Server::connect(&server_socket).await?;
    let node = args.trust_domain.join("/dev-node")?;
    let token = join_token(&operator, &node).await?;
    files::write_secret(&place.dir, "join-token", &token)?;
    let workload = register(&operator, &node).await?;

    let address = server.address().to_string();
    let agent = start_agent(&place, &args.trust_domain, &address, host).await?;
    let served = timeout(SERVED_WITHIN, served(&place, &workload)).await;
    let (identities, jwt) =
        served.context("the agent did not serve an SVID in time; see its log above")??;
    let identity = identities.svids.first().context("the agent answered without an SVID")?;
    // Listened for before anyone is told that Ctrl-C ends it.
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else { bail!("failed to listen for Ctrl-C") };
    show(&place, &address, identity, &jwt, out)?;

    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    agent.shutdown().await;
    server.shutdown().await;
    Ok(())
}

/// Warnings and errors of both daemons go to standard error, or what `RUST_LOG` asks for.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// The folder of this run; a temporary one is removed with this value.
struct Place {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn open(data_dir: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(dir) = data_dir else {
            let temporary = tempfile::Builder::new().prefix("passant-dev-").tempdir()?;
            return Ok(Self { dir: temporary.path().to_owned(), _temporary: Some(temporary) });
        };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.with_context(|| format!("failed to make {}", dir.display()))?;
        // Sockets are named in addresses, which have to be absolute.
        let dir = dir.canonicalize().with_context(|| format!("failed to find {}", dir.display()))?;
        Ok(Self { dir, _temporary: None })
    }

    fn server_socket(&self) -> PathBuf {
        self.dir.join("server.sock")
    }

    fn agent_socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// A path below the folder as a TOML string.
    fn toml(&self, name: &str) -> String {
        let path = self.dir.join(name).display().to_string();
        format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
    }

    /// Writes a daemon's configuration, to be read and tried by whoever looks in the folder.
    fn configure(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        files::write_public(&self.dir, name, text)?;
        Ok(self.dir.join(name))
    }
}

async fn start_server(
    place: &Place,
    trust_domain: &TrustDomain,
    svid_ttl: Duration,
    host: Host,
) -> anyhow::Result<passant_server::Running> {
    let text = format!(
        "# Written by `passant dev`.\ntrust_domain = \"{trust_domain}\"\ndata_dir = {}\nlisten = \"127.0.0.1:0\"\n\
         default_x509_svid_ttl = \"{}s\"\n\n[socket]\npath = {}\n",
        place.toml("server"),
        svid_ttl.as_secs(),
        place.toml("server.sock"),
    );
    let file = place.configure("server.toml", &text)?;
    let config = passant_server::config::Config::load(&file)?;
    Server::start(config, host).await.context("failed to start the server")
}

async fn start_agent(
    place: &Place,
    trust_domain: &TrustDomain,
    address: &str,
    host: Host,
) -> anyhow::Result<passant_agent::Running> {
    let text = format!(
        "# Written by `passant dev`.\ntrust_domain = \"{trust_domain}\"\ndata_dir = {}\nserver_address = \"{address}\"\n\
         sync_interval = \"1s\"\n\n[bootstrap]\nbundle = {}\n\n[node_attestor]\nmethod = \"join_token\"\n\
         join_token_file = {}\n\n[workload_api]\nsocket = {}\n",
        place.toml("agent"),
        place.toml("bundle.pem"),
        place.toml("join-token"),
        place.toml("agent.sock"),
    );
    let file = place.configure("agent.toml", &text)?;
    let config = passant_agent::config::Config::load(&file)?;
    Agent::start(config, host).await.context("failed to start the agent")
}

async fn join_token(operator: &connect::Server, node: &SpiffeId) -> anyhow::Result<String> {
    let request =
        CreateJoinTokenRequest { ttl: TOKEN_TTL, token: String::new(), agent_id: Some(id::to_wire(node)) };
    Ok(operator.agents().create_join_token(request).await.map_err(refused)?.into_inner().value)
}

/// Registers the caller's uid, unless an earlier run in the same folder did.
async fn register(operator: &connect::Server, node: &SpiffeId) -> anyhow::Result<SpiffeId> {
    let uid = nix::unistd::getuid();
    let workload = node.trust_domain().join(&format!("/dev/uid/{uid}"))?;
    let entry = types::Entry {
        spiffe_id: Some(id::to_wire(&workload)),
        parent_id: Some(id::to_wire(node)),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
        jwt_svid_ttl: wire_secs(Duration::from_secs(300)),
        ..types::Entry::default()
    };
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let results = operator.entries().batch_create_entry(request).await.map_err(refused)?.into_inner().results;
    let status = results.into_iter().next().and_then(|result| result.status).unwrap_or_default();
    let code = Code::from_i32(status.code);
    if !matches!(code, Code::Ok | Code::AlreadyExists) {
        bail!("failed to register {workload}: {} ({code:?})", status.message);
    }
    Ok(workload)
}

/// Asks the Workload API, as any workload would, until it serves `workload`.
async fn served(place: &Place, workload: &SpiffeId) -> anyhow::Result<(Identities, String)> {
    let socket = WorkloadSocket { address: format!("unix://{}", place.agent_socket().display()) };
    let audience = workload.trust_domain().join("/dev-audience")?;
    let mut ticks = interval(ASK_EVERY);
    let started = Instant::now();
    loop {
        ticks.tick().await;
        let mut api = workload_api(&socket).await?;
        let identities = match fetch_x509(&mut api).await {
            Ok(identities) => identities,
            Err(error) if started.elapsed() > SERVED_WITHIN => return Err(error),
            Err(_) => continue,
        };
        if identities.svids.iter().any(|identity| identity.svid.id() == workload) {
            let tokens = fetch_jwt(&mut api, vec![audience.to_string()], String::new()).await?;
            let token = tokens.first().context("the agent answered without a JWT-SVID")?.token().to_owned();
            return Ok((identities, token));
        }
    }
}

fn show(
    place: &Place,
    address: &str,
    identity: &Identity,
    jwt: &str,
    out: &mut Output,
) -> anyhow::Result<()> {
    let svid: String = identity.chain_der.iter().map(|der| section("CERTIFICATE", der)).collect();
    let bundle: String = identity.bundle_der.iter().map(|der| section("CERTIFICATE", der)).collect();
    files::write_public(&place.dir, "svid.pem", &svid)?;
    files::write_public(&place.dir, "bundle.pem", &bundle)?;
    let dir = place.dir.display();
    out.print(
        || {
            json!({
                "server_address": address,
                "server_socket": place.server_socket(),
                "agent_socket": place.agent_socket(),
                "spiffe_id": identity.svid.id().as_str(),
                "x509_svid": svid,
                "bundle": bundle,
                "jwt_svid": jwt,
            })
        },
        |to| {
            writeln!(to, "A server and an agent run in this process.\n")?;
            fields(
                to,
                &[
                    ("server", &address),
                    ("operators' socket", &place.server_socket().display()),
                    ("Workload API", &format!("unix://{}", place.agent_socket().display())),
                ],
            )?;
            writeln!(to, "\nThis process asked the Workload API and got an X509-SVID:\n")?;
            describe(to, identity)?;
            write!(to, "{svid}")?;
            writeln!(to, "\nIt verifies against this bundle:\n")?;
            write!(to, "{bundle}")?;
            writeln!(to, "\nand a JWT-SVID:\n\n{jwt}\n")?;
            writeln!(to, "Try, in another terminal:\n")?;
            writeln!(to, "  openssl verify -CAfile {dir}/bundle.pem {dir}/svid.pem")?;
            writeln!(to, "  export SPIFFE_ENDPOINT_SOCKET=unix://{dir}/agent.sock")?;
            writeln!(to, "  export PASSANT_SERVER_SOCKET={dir}/server.sock")?;
            writeln!(to, "  passant svid watch")?;
            writeln!(to, "  passant svid jwt --audience spiffe://example.org/reports")?;
            writeln!(to, "  passant entry list")?;
            writeln!(to, "\nIt renews by itself. Ctrl-C ends it.")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_toml() {
        let place = Place { dir: PathBuf::from("/tmp/a\"b"), _temporary: None };
        assert_eq!(place.toml("x"), "\"/tmp/a\\\"b/x\"");
    }
}
