//! How is the server that is measured run? In a folder of its own, on loopback, as a process, with a configuration as an
//! operator would write it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use passant_tests::api::{Operator, selector, wire_id};
use passant_tests::daemon::Daemon;
use passant_tests::port::free_port;
use passant_tests::usage::Usage;
use tempfile::TempDir;

use crate::clock;
use crate::nodes::{self, Nodes};

/// The trust domain of every run.
pub(crate) const TRUST_DOMAIN: &str = "bench.example.org";
/// How long a server may take until it answers; one with a million entries reads them first.
const READY_WITHIN: Duration = Duration::from_secs(180);
/// Between looks whether it answers.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Entries in one request.
pub(crate) const PER_REQUEST: usize = 1_000;

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Make {
    /// passant-server.
    Passant,
    /// SPIRE's server, with its SQLite store.
    Spire,
}

/// Where programs lie and files go.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) make: Make,
    /// passant-server and passant-agent.
    pub(crate) programs: PathBuf,
    /// spire-server, where that is wanted.
    pub(crate) spire: Option<PathBuf>,
    /// On a real disk: stores and decision records go there.
    pub(crate) disk: PathBuf,
}

/// One trust domain.
pub(crate) struct Site {
    places: Places,
    /// Sockets, whose paths must be short, and small files.
    dir: TempDir,
    /// Data directories.
    data: TempDir,
    port: u16,
    daemon: Option<Daemon>,
}

impl Site {
    /// A folder with a configuration and a CA for nodes, nothing running yet.
    pub(crate) fn new(places: Places) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("passant-bench-").tempdir()?;
        let data = tempfile::Builder::new().prefix("bench-").tempdir_in(&places.disk);
        let data =
            data.with_context(|| format!("failed to make a directory in {}", places.disk.display()))?;
        // Let go of at once: the server takes it, and takes the same one again after a restart.
        let port = free_port()?;
        let site = Self { places, dir, data, port, daemon: None };
        Nodes::make(site.dir())?;
        let (name, text) = match site.places.make {
            Make::Passant => ("server.toml", site.passant()),
            Make::Spire => ("server.conf", site.spire()),
        };
        fs::create_dir_all(site.server_data())?;
        fs::write(site.path(name), text)?;
        Ok(site)
    }

    /// What an operator would write, but for the limits: one agent stands for many here.
    fn passant(&self) -> String {
        format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\ndata_dir = {:?}\nlisten = \"{}\"\n[socket]\npath = {:?}\n\
             [log]\nlevel = \"warn\"\n[limits]\n\
             signatures_per_agent = {{ at_once = 10000000, per_second = 1000000 }}\n\
             signatures = {{ at_once = 10000000, per_second = 1000000 }}\n\
             [[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n\
             agent_path_template = \"/x509pop/{{{{ .Subject.CommonName }}}}\"\n",
            self.server_data(),
            self.address(),
            self.socket(),
            nodes::ca_file(self.dir()),
        )
    }

    /// The same for SPIRE, its limits per address off, since all agents come from few.
    fn spire(&self) -> String {
        let data = self.server_data();
        format!(
            "server {{\n bind_address = \"127.0.0.1\"\n bind_port = \"{}\"\n trust_domain = \"{TRUST_DOMAIN}\"\n \
             data_dir = {data:?}\n socket_path = {:?}\n log_level = \"WARN\"\n \
             ratelimit {{ attestation = false signing = false }}\n}}\n\
             plugins {{\n DataStore \"sql\" {{ plugin_data {{ database_type = \"sqlite3\" connection_string = {:?} }} }}\n \
             KeyManager \"disk\" {{ plugin_data {{ keys_path = {:?} }} }}\n \
             NodeAttestor \"x509pop\" {{ plugin_data {{ ca_bundle_path = {:?} \
             agent_path_template = \"/x509pop/{{{{ .Subject.CommonName }}}}\" }} }}\n}}\n",
            self.port,
            self.socket(),
            data.join("datastore.sqlite3"),
            data.join("keys.json"),
            nodes::ca_file(self.dir()),
        )
    }

    /// Whose server it is.
    pub(crate) fn make(&self) -> Make {
        self.places.make
    }

    /// Where its programs are.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Where sockets and small files lie.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of `name` there.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The path of `name` on the disk.
    pub(crate) fn on_disk(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    /// The server's data directory.
    pub(crate) fn server_data(&self) -> PathBuf {
        self.on_disk("server")
    }

    /// Where the server listens for agents.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The socket for operators.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("server.sock")
    }

    /// What agents begin to trust by; written by [`Site::start`].
    pub(crate) fn bundle_file(&self) -> PathBuf {
        self.path("bundle.pem")
    }

    /// Starts the server, and says how many milliseconds it took until it answered on both ports.
    pub(crate) async fn start(&mut self) -> Result<f64> {
        let began = clock::now();
        let (program, arguments) = match self.places.make {
            Make::Passant => (self.places.programs.join("passant-server"), ["run", "--config"]),
            Make::Spire => {
                let dir = self.places.spire.as_ref().context("--spire-bin says where spire-server is")?;
                (dir.join("spire-server"), ["run", "-config"])
            }
        };
        let config = match self.places.make {
            Make::Passant => "server.toml",
            Make::Spire => "server.conf",
        };
        let mut command = Command::new(program);
        command.args(arguments).arg(self.path(config));
        let mut daemon = Daemon::start(command, &self.path("server.log"))?;
        loop {
            if let Ok(bundle) = self.bundle().await
                && tokio::net::TcpStream::connect(self.address()).await.is_ok()
            {
                let took = clock::now() - began;
                fs::write(self.bundle_file(), convert::bundle::from_wire(&bundle)?.to_pem())?;
                self.daemon = Some(daemon);
                return Ok(took);
            }
            let ended = daemon.ended()?;
            if ended.is_some() || clock::now() - began > READY_WITHIN.as_secs_f64() * 1e3 {
                bail!("the server does not answer; ended: {ended:?}; its log:\n{}", daemon.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks the server to stop, and waits for that.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("no server runs")?.stop().await
    }

    /// Kills it, as the OOM killer would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("no server runs")?.kill()
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("no server runs")?.pid())
    }

    /// What the server uses now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid()?)
    }

    /// The operators' clients.
    pub(crate) async fn operator(&self) -> Result<Operator> {
        Operator::connect(&self.socket()).await
    }

    /// The bundle as the server has it now.
    pub(crate) async fn bundle(&self) -> Result<types::Bundle> {
        let request = GetBundleRequest { output_mask: None };
        Ok(self.operator().await?.bundles().get_bundle(request).await?.into_inner())
    }

    /// Registers `entries`, a thousand in a request, and says how many milliseconds the requests took together.
    pub(crate) async fn register(&self, entries: impl Iterator<Item = types::Entry>) -> Result<f64> {
        let mut clients = self.operator().await?.entries().max_decoding_message_size(16 * 1024 * 1024);
        let mut entries = entries.peekable();
        let mut took = 0.0;
        while entries.peek().is_some() {
            let some: Vec<_> = entries.by_ref().take(PER_REQUEST).collect();
            let count = some.len();
            let output_mask = Some(types::EntryMask::default());
            let request = BatchCreateEntryRequest { entries: some, output_mask };
            let began = clock::now();
            let answer = clients.batch_create_entry(request).await?.into_inner();
            took += clock::now() - began;
            ensure!(answer.results.len() == count, "{} results for {count} entries", answer.results.len());
            for status in answer.results.into_iter().filter_map(|result| result.status) {
                ensure!(status.code == 0, "an entry was refused: {}", status.message);
            }
        }
        Ok(took)
    }
}

/// The name of a played node, which is also the last part of its SPIFFE ID.
pub(crate) fn node_name(number: usize) -> String {
    format!("agent-{number:07}")
}

/// The path of the SPIFFE ID of the node called `name`.
pub(crate) fn node_path(name: &str) -> String {
    format!("/spire/agent/x509pop/{name}")
}

/// The entry with this number, for a workload of the node called `node`.
pub(crate) fn entry(number: usize, node: &str) -> types::Entry {
    types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, &format!("/ns/bench-{:04}/sa/workload-{number:07}", number % 1_000)),
        parent_id: wire_id(TRUST_DOMAIN, &node_path(node)),
        selectors: vec![
            selector("k8s", &format!("ns:bench-{:04}", number % 1_000)),
            selector("k8s", &format!("sa:workload-{number:07}")),
            selector("k8s", &format!("pod-label:app:service-{:05}", number % 50_000)),
        ],
        ..types::Entry::default()
    }
}

/// An entry for every process of this user at the node called `node`, and of the executable at `path` if that is given.
pub(crate) fn entry_here(id: &str, node: &str, path: Option<&Path>) -> types::Entry {
    let mut selectors = vec![selector("unix", &format!("uid:{}", rustix::process::getuid().as_raw()))];
    selectors.extend(path.map(|path| selector("unix", &format!("path:{}", path.display()))));
    types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, id),
        parent_id: wire_id(TRUST_DOMAIN, &node_path(node)),
        selectors,
        ..types::Entry::default()
    }
}
