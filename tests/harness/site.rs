//! One trust domain on this machine: a folder with configuration, a server, agents, and the command line.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, bail};
use passant_proto::agent::CreateJoinTokenRequest;
use passant_proto::bundle::GetBundleRequest;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::{convert, types};

use crate::api::{Operator, fetch_x509, selector, wire_id};
use crate::binaries::binaries;
use crate::daemon::Daemon;
use crate::port::free_port;
use crate::wait::eventually;

/// The trust domain of every site.
pub const TRUST_DOMAIN: &str = "example.org";
/// The SPIFFE ID path that join tokens stand for here, for entries to name as their parent.
pub const NODE: &str = "/node";
/// How long a daemon may take to answer after its start, on a loaded machine.
pub const READY_WITHIN: Duration = Duration::from_secs(30);

/// What of the server's configuration a test chooses.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Lines put before the first table: top-level keys.
    pub keys: String,
    /// Tables put at the end.
    pub tables: String,
}

/// A folder in which daemons run.
pub struct Site {
    dir: tempfile::TempDir,
    port: u16,
}

impl Site {
    /// A site with a server's configuration as `options` say, nothing running yet.
    ///
    /// # Errors
    /// When the folder or the configuration cannot be written.
    pub fn new(options: &ServerOptions) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("passant-").tempdir()?;
        // Let go of at once: the server takes it, and takes the same one again after a restart.
        let port = free_port()?;
        let site = Self { dir, port };
        site.configure(options)?;
        Ok(site)
    }

    /// Writes the server's configuration anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, options: &ServerOptions) -> anyhow::Result<()> {
        let text = format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\ndata_dir = {:?}\nlisten = \"{}\"\n{}\n[socket]\npath = {:?}\n\
             [log]\nlevel = \"debug\"\n{}\n",
            self.path("server-data"),
            self.address(),
            options.keys,
            self.server_socket(),
            options.tables,
        );
        Ok(fs::write(self.server_config(), text)?)
    }

    /// A path in the site's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves the folder where it is when the site goes, for somebody to look into.
    pub fn keep(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// `host:port` of the server.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The server's socket for operators.
    pub fn server_socket(&self) -> PathBuf {
        self.path("server.sock")
    }

    /// The server's configuration file.
    pub fn server_config(&self) -> PathBuf {
        self.path("server.toml")
    }

    /// The Workload API socket of the agent called `name`.
    pub fn agent_socket(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.sock"))
    }

    /// The file that agents bootstrap with; written by [`Site::start_server`].
    pub fn bundle_file(&self) -> PathBuf {
        self.path("bundle.pem")
    }

    /// Starts the server, waits until it answers, and writes its bundle for agents.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn start_server(&self) -> anyhow::Result<Daemon> {
        self.started(self.spawn_server()?).await
    }

    /// As [`Site::start_server`], for a server that was started otherwise.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn started(&self, mut daemon: Daemon) -> anyhow::Result<Daemon> {
        let ready = eventually("the server to answer", READY_WITHIN, || self.write_bundle()).await;
        if let Err(error) = ready {
            bail!("{error:#}; ended: {:?}; its log:\n{}", daemon.ended()?, daemon.log());
        }
        Ok(daemon)
    }

    /// Starts the server and does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_server(&self) -> anyhow::Result<Daemon> {
        self.spawn_server_as(Command::new(&binaries().server))
    }

    /// Starts the server that `program` is, and does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_server_as(&self, mut program: Command) -> anyhow::Result<Daemon> {
        program.arg("run").arg("--config").arg(self.server_config());
        Daemon::start(program, &self.path("server.log"))
    }

    /// Writes the server's bundle for agents.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn write_bundle(&self) -> anyhow::Result<()> {
        let operator = Operator::connect(&self.server_socket()).await?;
        let bundle =
            operator.bundles().get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner();
        let bundle = convert::bundle::from_wire(&bundle)?;
        Ok(fs::write(self.bundle_file(), bundle.to_pem())?)
    }

    /// The operators' clients.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn operator(&self) -> anyhow::Result<Operator> {
        Operator::connect(&self.server_socket()).await
    }

    /// A join token whose node gets the SPIFFE ID path [`NODE`] too.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn join_token(&self) -> anyhow::Result<String> {
        let request =
            CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: wire_id(TRUST_DOMAIN, NODE) };
        Ok(self.operator().await?.agents().create_join_token(request).await?.into_inner().value)
    }

    /// Writes the configuration of the agent called `name`. `attestor` is the body of its `[node_attestor]` table;
    /// `keys` are further top-level keys.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure_agent(&self, name: &str, attestor: &str, keys: &str) -> anyhow::Result<()> {
        let text = format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\ndata_dir = {:?}\nserver_address = \"{}\"\nsync_interval = \"1s\"\n{keys}\n\
             [bootstrap]\nbundle = {:?}\n[workload_api]\nsocket = {:?}\n[log]\nlevel = \"debug\"\n[node_attestor]\n{attestor}\n",
            self.path(&format!("{name}-data")),
            self.address(),
            self.bundle_file(),
            self.agent_socket(name),
        );
        Ok(fs::write(self.path(&format!("{name}.toml")), text)?)
    }

    /// Starts the configured agent called `name` with more `arguments`, and does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn_agent(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Daemon> {
        let mut command = Command::new(&binaries().agent);
        command.arg("run").arg("--config").arg(self.path(&format!("{name}.toml"))).args(arguments);
        Daemon::start(command, &self.path(&format!("{name}.log")))
    }

    /// Starts an agent that attests with a fresh join token, and waits until it serves.
    ///
    /// # Errors
    /// When it does not serve in time.
    pub async fn start_agent(&self, name: &str) -> anyhow::Result<Daemon> {
        self.configure_agent(name, "method = \"join_token\"", "")?;
        let token = self.join_token().await?;
        let daemon = self.spawn_agent(name, &["--join-token", &token])?;
        self.agent_serves(name, &daemon).await?;
        Ok(daemon)
    }

    /// Waits until the agent called `name` answers definitely: with SVIDs, or that there is no identity.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn agent_serves(&self, name: &str, daemon: &Daemon) -> anyhow::Result<()> {
        let socket = self.agent_socket(name);
        eventually("the agent to serve", READY_WITHIN, || async {
            match fetch_x509(&socket).await {
                Ok(_) => Ok(()),
                Err(status) if status.code() == tonic::Code::PermissionDenied => Ok(()),
                Err(status) => bail!("{status}"),
            }
        })
        .await
        .with_context(|| format!("the agent's log:\n{}", daemon.log()))
    }

    /// Registers an entry for every process of this user, below [`NODE`], and gives its id.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn register(
        &self,
        path: &str,
        change: impl FnOnce(&mut types::Entry),
    ) -> anyhow::Result<String> {
        let mut entry = types::Entry {
            spiffe_id: wire_id(TRUST_DOMAIN, path),
            parent_id: wire_id(TRUST_DOMAIN, NODE),
            selectors: vec![selector("unix", &format!("uid:{}", nix::unistd::getuid()))],
            ..types::Entry::default()
        };
        change(&mut entry);
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let response = self.operator().await?.entries().batch_create_entry(request).await?.into_inner();
        let result = response.results.into_iter().next().context("one result")?;
        let status = result.status.unwrap_or_default();
        if status.code != 0 {
            bail!("registration refused: {}", status.message);
        }
        Ok(result.entry.context("an entry")?.id)
    }

    /// Runs `passant` with the site's sockets in its environment.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn passant(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Output> {
        let mut command = Command::new(&binaries().passant);
        command
            .args(arguments)
            .env("PASSANT_SERVER_SOCKET", self.server_socket())
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.agent_socket("agent").display()));
        Ok(command.output()?)
    }

    /// Runs `passant -o json` and reads what it prints.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn passant_json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.passant(["-o", "json"].iter().chain(arguments))?;
        if !output.status.success() {
            bail!("passant {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
