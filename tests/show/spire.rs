//! How are SPIRE's own server and agent run? In the folder of a [`Site`], from the programs of the directory that
//! `SPIRE_BIN_DIR` names. Nothing of SPIRE comes with this project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::agent::CreateJoinTokenRequest;
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;
use passant_tests::api::{Operator, fetch_x509, wire_id};
use passant_tests::daemon::Daemon;
use passant_tests::port::free_port;
use passant_tests::site::{READY_WITHIN, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;

/// SPIRE's programs.
pub(crate) struct Spire {
    dir: PathBuf,
    /// Of the server.
    port: u16,
    /// Lifetime of the agents' own SVIDs.
    agent_ttl: Duration,
}

/// Where and as what a server is to run.
pub(crate) struct Place<'a> {
    pub(crate) trust_domain: &'a str,
    /// For operators.
    pub(crate) socket: &'a Path,
    pub(crate) port: u16,
    /// Further lines of its `server` block.
    pub(crate) keys: &'a str,
    /// Plugins besides those that it always has: the store, keys in memory, attestation by join token.
    pub(crate) plugins: &'a str,
}

impl Spire {
    /// The programs, if the environment says where they are; a server will take a free port.
    ///
    /// # Errors
    /// When they are not there.
    pub(crate) fn found(agent_ttl: Duration) -> anyhow::Result<Option<Self>> {
        let Some(dir) = std::env::var_os("SPIRE_BIN_DIR").map(PathBuf::from) else { return Ok(None) };
        for name in ["spire-server", "spire-agent"] {
            ensure!(dir.join(name).is_file(), "SPIRE_BIN_DIR has no {name}: {}", dir.display());
        }
        let port = free_port()?;
        Ok(Some(Self { dir, port, agent_ttl }))
    }

    /// The server's socket for operators.
    pub(crate) fn server_socket(site: &Site) -> PathBuf {
        site.path("spire-server.sock")
    }

    /// The Workload API of the agent called `name`.
    pub(crate) fn agent_socket(site: &Site, name: &str) -> PathBuf {
        site.path(&format!("spire-{name}.sock"))
    }

    /// Where the agent called `name` keeps its own SVID.
    pub(crate) fn agent_data(site: &Site, name: &str) -> PathBuf {
        site.path(&format!("spire-{name}")).join("agent-data.json")
    }

    /// The server's port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts the server, waits until it answers, and writes its bundle for agents.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub(crate) async fn start_server(&self, site: &Site) -> anyhow::Result<Daemon> {
        let socket = Self::server_socket(site);
        let place =
            Place { trust_domain: TRUST_DOMAIN, socket: &socket, port: self.port, keys: "", plugins: "" };
        self.start_server_at(site, &place).await
    }

    /// Starts a server at `place`, waits until it answers, and writes its bundle for agents.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub(crate) async fn start_server_at(&self, site: &Site, place: &Place<'_>) -> anyhow::Result<Daemon> {
        let Place { trust_domain, socket, port, keys, plugins } = place;
        let data = site.path("spire-server");
        fs::create_dir_all(&data)?;
        let text = format!(
            "server {{\n bind_address = \"127.0.0.1\"\n bind_port = \"{port}\"\n trust_domain = \"{trust_domain}\"\n \
             data_dir = {data:?}\n socket_path = {socket:?}\n log_level = \"DEBUG\"\n agent_ttl = \"{}s\"\n {keys}\n}}\n\
             plugins {{\n DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" connection_string = {:?} }} }}\n \
             KeyManager \"memory\" {{ plugin_data {{}} }}\n NodeAttestor \"join_token\" {{ plugin_data {{}} }}\n {plugins}\n}}\n",
            self.agent_ttl.as_secs(),
            data.join("datastore.sqlite3"),
        );
        let config = site.path("spire-server.conf");
        fs::write(&config, text)?;
        let mut program = Command::new(self.dir.join("spire-server"));
        program.args(["run", "-config"]).arg(&config);
        let daemon = Daemon::start(program, &site.path("spire-server.log"))?;
        let bundle = eventually("the SPIRE server to answer", READY_WITHIN, || async {
            let operator = Operator::connect(socket).await?;
            Ok(operator.bundles().get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner())
        })
        .await
        .with_context(|| format!("the SPIRE server's log:\n{}", daemon.log()))?;
        fs::write(site.path("spire-bundle.pem"), convert::bundle::from_wire(&bundle)?.to_pem())?;
        Ok(daemon)
    }

    /// The command line of the server.
    pub(crate) fn command(&self) -> Command {
        Command::new(self.dir.join("spire-server"))
    }

    /// Starts an agent that attests with a fresh join token, whose node stands for `alias` too, and waits until it serves.
    ///
    /// # Errors
    /// When it does not serve in time.
    pub(crate) async fn start_agent(&self, site: &Site, name: &str, alias: &str) -> anyhow::Result<Daemon> {
        let operator = Operator::connect(&Self::server_socket(site)).await?;
        let request =
            CreateJoinTokenRequest { ttl: 600, token: String::new(), agent_id: wire_id(TRUST_DOMAIN, alias) };
        let token = operator.agents().create_join_token(request).await?.into_inner().value;
        let daemon = self.spawn_agent(site, name, self.port, &["-joinToken", &token])?;
        let socket = Self::agent_socket(site, name);
        eventually("the SPIRE agent to serve", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) })
            .await
            .with_context(|| format!("the SPIRE agent's log:\n{}", daemon.log()))?;
        Ok(daemon)
    }

    /// Starts the agent called `name` for the server at `port`, and does not wait. Only that port differs from one start
    /// to the next.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn spawn_agent(
        &self,
        site: &Site,
        name: &str,
        port: u16,
        more: &[&str],
    ) -> anyhow::Result<Daemon> {
        let bundle = site.path("spire-bundle.pem");
        let attestor = "NodeAttestor \"join_token\" { plugin_data {} }";
        self.spawn_agent_by(site, name, port, (attestor, &bundle), more)
    }

    /// As [`Spire::spawn_agent`], for an agent that attests by the plugin `attestor` and begins with the file `bundle`. It
    /// tells workloads apart by the path of their executable, too.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn spawn_agent_by(
        &self,
        site: &Site,
        name: &str,
        port: u16,
        (attestor, bundle): (&str, &Path),
        more: &[&str],
    ) -> anyhow::Result<Daemon> {
        let data = site.path(&format!("spire-{name}"));
        fs::create_dir_all(&data)?;
        let text = format!(
            "agent {{\n data_dir = {data:?}\n server_address = \"127.0.0.1\"\n server_port = \"{port}\"\n \
             socket_path = {:?}\n trust_bundle_path = {:?}\n trust_domain = \"{TRUST_DOMAIN}\"\n log_level = \"DEBUG\"\n}}\n\
             plugins {{\n {attestor}\n \
             KeyManager \"disk\" {{ plugin_data {{ directory = {data:?} }} }}\n WorkloadAttestor \"unix\" {{\n  \
             plugin_data {{ discover_workload_path = true workload_size_limit = -1 }}\n }}\n}}\n",
            Self::agent_socket(site, name),
            bundle,
        );
        let config = site.path(&format!("spire-{name}.conf"));
        fs::write(&config, text)?;
        let mut program = Command::new(self.dir.join("spire-agent"));
        program.args(["run", "-config"]).arg(&config).args(more);
        Daemon::start(program, &site.path(&format!("spire-{name}-{port}.log")))
    }
}
