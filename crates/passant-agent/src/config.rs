//! What may an operator configure, and is it sound?
//!
//! `agent.toml` is read key by key; every fault of the file is reported at once, with its key and a remedy. What comes
//! out holds only checked values. `config/agent.toml` in the repository shows every key.

mod sds;
mod section;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use passant_attest::node::join_token::{Token, TokenError};
use passant_attest::node::x509pop::X509PopProverConfig;
use passant_attest::workload::WorkloadMethod;
use passant_attest::workload::docker::{self, DockerConfig, SocketTemplate};
use passant_attest::workload::systemd::{self, SystemdConfig};
use passant_attest::workload::unix::{self, UnixConfig};
use passant_core::bundle::{Bundle, BundleError};
use passant_core::bundle_document::BundleDocumentError;
use passant_core::keys::KeyType;
use passant_core::{Secret, TrustDomain};
use passant_daemon::log::LevelError;
use rustls_pki_types::ServerName;
use zeroize::Zeroize;

use crate::limits;

pub use passant_daemon::config::{ConfigError, Fault};
pub use passant_daemon::log::{Log, LogFormat};
pub use sds::Sds;
use section::Section;

/// Where the Workload API is served unless configured otherwise. Its directory holds nothing else, so that it can be
/// mounted into containers as a whole.
pub const DEFAULT_SOCKET: &str = "/run/passant-agent/api.sock";

/// The name of the admin socket in the data directory, unless another is configured.
const ADMIN_SOCKET: &str = "admin.sock";

/// Everything an agent is told at its start.
#[derive(Debug)]
pub struct Config {
    /// The trust domain it belongs to.
    pub trust_domain: TrustDomain,
    /// Holds agent-data.json; made with mode 0700 if missing.
    pub data_dir: PathBuf,
    /// Where the servers of the trust domain listen.
    pub server_address: ServerAddresses,
    /// What the first connection is verified by, as long as no bundle is stored.
    pub bootstrap: Bootstrap,
    /// How the node proves itself.
    pub node_attestor: NodeAttestor,
    /// The Workload API.
    pub workload_api: WorkloadApi,
    /// Envoy's secret discovery on the same socket, if it is served.
    pub sds: Option<Sds>,
    /// Which facts are found out about workloads. Never empty.
    pub workload_attestors: Vec<WorkloadMethod>,
    /// Where administrators of the node ask the agent, if they may.
    pub admin_socket: Option<PathBuf>,
    /// How often the server is asked what has changed; 1 s to 1 min.
    pub sync_interval: Duration,
    /// How long an open stream keeps what was last attested while an attestor fails.
    pub evidence_max_age: Duration,
    /// The kind of key made for workloads and the node.
    pub x509_key_type: KeyType,
    /// Where probes and metrics are answered, if at all.
    pub probe: Option<SocketAddr>,
    /// What is logged, and how.
    pub log: Log,
}

/// Where the server listens: a host name or IP address, and a port.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Where the servers of one trust domain listen: one at least, and none twice.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerAddresses(Vec<ServerAddress>);

/// What the server is verified by before a bundle is stored.
#[derive(Clone, Debug)]
pub enum Bootstrap {
    /// The bundle in this file: PEM, or a SPIFFE bundle document.
    File(PathBuf),
    /// This bundle.
    Bundle(Box<Bundle>),
    /// Nothing but its claim to be the server: whoever answers first is believed.
    Insecure,
}

/// How the node proves itself to the server.
#[derive(Debug)]
pub enum NodeAttestor {
    /// By a token that works once. Without one, only what is stored from an earlier run can be used.
    JoinToken(Option<TokenSource>),
    /// By a certificate of an existing PKI and its key; the files are read again at each attestation.
    X509pop(X509PopProverConfig),
}

/// Where a join token comes from.
#[derive(Debug)]
pub enum TokenSource {
    /// It was handed over.
    Given(Token),
    /// It stands in this file, which is read again at each attempt: a new token may be put there at any time.
    File(PathBuf),
}

/// How the Workload API is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApi {
    /// The unix socket. Its directory must be one that workloads can reach.
    pub socket: PathBuf,
    /// Claims, beside `sub`, `aud` and `exp`, that ValidateJWTSVID tells of tokens of other trust domains.
    pub allowed_foreign_jwt_claims: BTreeSet<String>,
}

/// Why a file that the configuration names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("failed to read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// It is larger than anything of its kind.
    #[error("{} is larger than {} MiB", path.display(), limits::CONFIG_FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It holds a secret and everyone may read it.
    #[error("{} can be read by everyone: make it mode 0600 or 0640", path.display())]
    WorldReadable {
        /// The file.
        path: PathBuf,
    },
    /// It holds no bundle.
    #[error("{} holds no bundle: {why}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BundleFault,
    },
    /// It holds no join token.
    #[error("{} holds no join token: {error}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: TokenError,
    },
}

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleFault {
    /// As PEM.
    #[error(transparent)]
    Pem(BundleError),
    /// As a SPIFFE bundle document.
    #[error(transparent)]
    Document(BundleDocumentError),
    /// It could verify nobody.
    #[error("it has no X.509 authority")]
    Empty,
}

impl Config {
    /// Reads and checks the configuration file `path`, and the files it names.
    ///
    /// # Errors
    /// Every fault of the file at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = read_limited(path)
            .map_err(|error| ConfigError::single(&file, "", error.to_string(), "name a file that exists"))?;
        let text = String::from_utf8(text)
            .map_err(|_| ConfigError::single(&file, "", "is not UTF-8", "write it as UTF-8 text"))?;
        Self::parse(&file, &text)
    }

    /// Checks the configuration `text`; `file` is named in errors.
    ///
    /// # Errors
    /// Every fault at once.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let table = toml::from_str::<toml::Table>(text).map_err(|error| {
            ConfigError::single(
                file,
                "",
                format!("is not TOML: {}", error.to_string().trim_end()),
                "mend its syntax",
            )
        })?;
        let mut faults = Vec::new();
        let config = read(&mut Section::root(table, &mut faults));
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            Some(_) | None => Err(ConfigError::new(file, faults)),
        }
    }

    /// Whether what the agent keeps for itself lies below the directory of the Workload API's socket: containers that are given
    /// that directory are given the node's key, too.
    pub fn is_data_given_away(&self) -> bool {
        let workloads = self.workload_api.socket.parent();
        workloads.is_some_and(|directory| resolved(&self.data_dir).starts_with(resolved(directory)))
    }
}

/// `None` leaves a fault behind.
fn read(root: &mut Section<'_>) -> Option<Config> {
    let trust_domain =
        root.required("trust_domain", "write the name of your trust domain, as in \"example.org\"");
    let trust_domain =
        root.parse("trust_domain", trust_domain, TrustDomain::parse, "write a name as in \"example.org\"");
    let data_dir =
        root.required("data_dir", "name a directory that only the agent may read").map(PathBuf::from);
    let server_address = read_server_address(root);
    let sync_interval = root.duration("sync_interval", Duration::from_secs(5), (1, 60));
    // What is kept for longer, a server would not believe: identities would be kept that cannot be renewed.
    let evidence_max_age = (1, limits::EVIDENCE_AGE.as_secs());
    let evidence_max_age = root.duration("evidence_max_age", Duration::from_secs(300), evidence_max_age);
    let x509_key_type = root.choice(
        "x509_key_type",
        KeyType::EcP256,
        &[("ec-p256", KeyType::EcP256), ("ec-p384", KeyType::EcP384)],
    );

    let bootstrap = root.section("bootstrap", read_bootstrap);
    let node_attestor = root.section("node_attestor", read_node_attestor);
    let workload_api = root.section("workload_api", |section| {
        let socket = section.string("socket").unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
        let socket = PathBuf::from(socket);
        if !socket.is_absolute() {
            section.fault("socket", "is not an absolute path", "begin it with /");
        }
        let allowed_foreign_jwt_claims = section.strings("allowed_foreign_jwt_claims").into_iter().collect();
        Some(WorkloadApi { socket, allowed_foreign_jwt_claims })
    });
    let sds = root.section("sds", sds::read);
    let admin = root.section("admin", |section| {
        let enabled = section.boolean("enabled").unwrap_or(true);
        let socket = section.string("socket").map(PathBuf::from);
        let workloads = workload_api.as_ref().and_then(|api| api.socket.parent());
        match (enabled, socket, data_dir.as_ref()) {
            (true, Some(socket), _) => {
                check_admin_socket(section, &socket, workloads);
                Some(Some(socket))
            }
            (true, None, Some(data_dir)) => {
                let socket = data_dir.join(ADMIN_SOCKET);
                if socket.as_os_str().len() > limits::SOCKET_PATH_BYTES {
                    let what = "would be too long a path below data_dir";
                    section.fault("socket", what, "name a shorter one, or set admin.enabled = false");
                }
                Some(Some(socket))
            }
            (true, None, None) | (false, _, _) => Some(None),
        }
    });
    let workloads = workload_api.as_ref().and_then(|api| api.socket.parent());
    if let (Some(data_dir), Some(workloads)) = (&data_dir, workloads)
        && resolved(data_dir) == resolved(workloads)
    {
        root.fault(
            "data_dir",
            "is the directory of workload_api.socket, which workloads are given as a whole",
            "name a directory that only the agent may read",
        );
    }
    let workload_attestors = root.section("workload_attestors", read_workload_attestors);
    let probe = root.section("probe", |section| {
        let allow_remote = section.boolean("allow_remote").unwrap_or(false);
        let Some(listen) = section.string("listen") else { return Some(None) };
        match passant_daemon::probe::address(&listen, allow_remote) {
            Ok(address) => Some(Some(address)),
            Err(error) => {
                section.fault("listen", &format!("\"{listen}\" {error}"), error.remedy());
                None
            }
        }
    });
    let log = root.section("log", |section| {
        let level = section.string("level");
        let format = section.choice("format", LogFormat::Text, &LogFormat::NAMES);
        match passant_daemon::log::level(level) {
            Ok(level) => Some(Log { level, format }),
            Err(error) => {
                section.fault("level", &error.to_string(), LevelError::REMEDY);
                None
            }
        }
    });
    root.finish();
    Some(Config {
        trust_domain: trust_domain?,
        data_dir: data_dir?,
        server_address: server_address?,
        bootstrap: bootstrap?,
        node_attestor: node_attestor?,
        workload_api: workload_api?,
        sds: sds?,
        workload_attestors: workload_attestors?,
        admin_socket: admin?,
        sync_interval,
        evidence_max_age,
        x509_key_type,
        probe: probe?,
        log: log?,
    })
}

fn read_server_address(root: &mut Section<'_>) -> Option<ServerAddresses> {
    const REMEDY: &str =
        "write host:port, as in \"passant.example.org:8081\" or \"[2001:db8::1]:8081\", or a list of them";
    if !root.has("server_address") {
        root.fault("server_address", "is missing", REMEDY);
        return None;
    }
    let mut addresses = Vec::new();
    for text in root.one_or_more("server_address") {
        match ServerAddress::parse(&text) {
            Ok(address) => addresses.push(address),
            Err(what) => {
                root.fault("server_address", &what, REMEDY);
                return None;
            }
        }
    }
    match ServerAddresses::new(addresses) {
        Ok(addresses) => Some(addresses),
        Err(what) => {
            root.fault("server_address", &what, REMEDY);
            None
        }
    }
}

/// `workloads` is the directory of the Workload API: containers are given all of it.
fn check_admin_socket(section: &mut Section<'_>, socket: &Path, workloads: Option<&Path>) {
    if !socket.is_absolute() {
        section.fault("socket", "is not an absolute path", "begin it with /");
    } else if workloads.is_some_and(|directory| resolved(socket).starts_with(resolved(directory))) {
        section.fault(
            "socket",
            "lies in the directory of workload_api.socket, which workloads are given as a whole",
            "name a directory that only the agent's user can enter",
        );
    } else if socket.as_os_str().len() > limits::SOCKET_PATH_BYTES {
        section.fault("socket", "is too long for a socket", "name a shorter path");
    }
}

/// `path` as the kernel goes it: without symbolic links as far as it is there, and without `..`.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find_map(|there| Some((there, fs::canonicalize(there).ok()?)));
    let Some((there, mut real)) = there else { return path };
    for part in path.strip_prefix(there).unwrap_or(&path).components() {
        if part == Component::ParentDir {
            real.pop();
        } else {
            real.push(part);
        }
    }
    real
}

fn read_bootstrap(section: &mut Section<'_>) -> Option<Bootstrap> {
    let bundle = section.string("bundle");
    let insecure = section.boolean("insecure_bootstrap").unwrap_or(false);
    match (bundle, insecure) {
        (Some(path), false) => Some(Bootstrap::File(PathBuf::from(path))),
        (None, true) => Some(Bootstrap::Insecure),
        (Some(_), true) => {
            section.fault("insecure_bootstrap", "contradicts bundle", "remove one of the two");
            None
        }
        (None, false) => {
            section.fault(
                "bundle",
                "is missing: the first connection to the server could not be verified",
                "name a file with the server's bundle (passant bundle show), or, where nobody can interfere, set \
                 insecure_bootstrap = true",
            );
            None
        }
    }
}

fn read_node_attestor(section: &mut Section<'_>) -> Option<NodeAttestor> {
    let Some(method) = section.required("method", "write \"join_token\" or \"x509pop\"") else {
        section.ignore_rest();
        return None;
    };
    match method.as_str() {
        "join_token" => {
            let file = section.string("join_token_file").map(PathBuf::from);
            Some(NodeAttestor::JoinToken(file.map(TokenSource::File)))
        }
        "x509pop" => {
            let certificate = section.required("certificate", "name a PEM file with the node's certificate");
            let private_key = section.required("private_key", "name a PEM file with its private key");
            let intermediates = section.string("intermediates").map(PathBuf::from);
            if let Some(path) = &private_key
                && let Err(FileError::WorldReadable { .. }) = refuse_world_readable(Path::new(path))
            {
                section.fault("private_key", "can be read by everyone", "make the file mode 0600 or 0640");
            }
            Some(NodeAttestor::X509pop(X509PopProverConfig {
                certificate_path: PathBuf::from(certificate?),
                private_key_path: PathBuf::from(private_key?),
                intermediates_path: intermediates,
            }))
        }
        other => {
            section.fault(
                "method",
                &format!("\"{other}\" is no node attestor"),
                "write \"join_token\" or \"x509pop\"",
            );
            section.ignore_rest();
            None
        }
    }
}

fn read_workload_attestors(section: &mut Section<'_>) -> Option<Vec<WorkloadMethod>> {
    let mut methods = Vec::new();
    if section.is_empty() {
        methods.push(WorkloadMethod::Unix(UnixConfig::default()));
    }
    if section.has(unix::METHOD) {
        let unix = section.section(unix::METHOD, |unix| {
            Some(UnixConfig {
                discover_workload_path: unix.boolean("discover_workload_path").unwrap_or(false),
                workload_size_limit: unix.integer("workload_size_limit").unwrap_or(0),
            })
        });
        methods.push(WorkloadMethod::Unix(unix?));
    }
    if section.has(docker::METHOD) {
        let docker = section.section(docker::METHOD, |docker| Some(read_docker(docker)));
        methods.push(WorkloadMethod::Docker(docker?));
    }
    if section.has(systemd::METHOD) {
        let systemd = section.section(systemd::METHOD, |systemd| {
            let bus_address = systemd.string("bus_address");
            Some(bus_address.map_or_else(SystemdConfig::default, |bus_address| SystemdConfig { bus_address }))
        });
        methods.push(WorkloadMethod::Systemd(systemd?));
    }
    Some(methods)
}

/// What is wrong is reported, and stands at its default meanwhile.
fn read_docker(section: &mut Section<'_>) -> DockerConfig {
    let mut socket = |key, default: PathBuf| {
        let text = section.string(key);
        section
            .parse(key, text, docker::socket_path, "write unix:///var/run/docker.sock, for instance")
            .unwrap_or(default)
    };
    let default = DockerConfig::default();
    let docker_socket_path = socket("docker_socket_path", default.docker_socket_path);
    let podman_socket_path = socket("podman_socket_path", default.podman_socket_path);
    let mut template = |key, default: SocketTemplate| {
        let text = section.string(key);
        let remedy = "write unix:///run/user/%d/podman/podman.sock, for instance";
        section.parse(key, text, SocketTemplate::parse, remedy).unwrap_or(default)
    };
    DockerConfig {
        docker_socket_path,
        podman_socket_path,
        docker_socket_path_template: template(
            "docker_socket_path_template",
            default.docker_socket_path_template,
        ),
        podman_socket_path_template: template(
            "podman_socket_path_template",
            default.podman_socket_path_template,
        ),
        rootless_users: section
            .numbers("rootless_users", "a list of user ids: [1000, 1001]")
            .into_iter()
            .collect(),
    }
}

impl ServerAddress {
    /// Reads `host:port`; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare == host && host.contains(':') {
            return Err("has an IPv6 address without brackets".to_owned());
        }
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or("has no port from 1 to 65535")?;
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| format!("\"{bare}\" is neither a host name nor an IP address"))?;
        Ok(Self { host: bare.to_owned(), port, name })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// What TLS calls the server. It is sent, and not verified.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl ServerAddresses {
    /// Takes one address to [`limits::SERVERS`] of them.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn new(addresses: Vec<ServerAddress>) -> Result<Self, String> {
        if addresses.is_empty() {
            return Err("names no server".to_owned());
        }
        if addresses.len() > limits::SERVERS {
            return Err(format!("names more than {} servers", limits::SERVERS));
        }
        let twice = |place: usize| addresses[..place].contains(&addresses[place]);
        match (0..addresses.len()).find(|place| twice(*place)) {
            Some(place) => Err(format!("names {} twice", addresses[place])),
            None => Ok(Self(addresses)),
        }
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> &[ServerAddress] {
        &self.0
    }
}

impl From<ServerAddress> for ServerAddresses {
    fn from(address: ServerAddress) -> Self {
        Self(vec![address])
    }
}

impl fmt::Debug for ServerAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads a bundle from a file: a SPIFFE bundle document if it begins like JSON, else PEM.
///
/// # Errors
/// When the file cannot be read, or holds no X.509 authority.
pub fn read_bundle(path: &Path, trust_domain: &TrustDomain) -> Result<Bundle, FileError> {
    let text = read_limited(path)?;
    let is_json = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let bundle = match is_json {
        true => Bundle::from_spiffe_json(trust_domain.clone(), &text).map_err(BundleFault::Document),
        false => Bundle::from_pem(trust_domain.clone(), &text).map_err(BundleFault::Pem),
    };
    bundle
        .and_then(
            |bundle| if bundle.x509_authorities.is_empty() { Err(BundleFault::Empty) } else { Ok(bundle) },
        )
        .map_err(|why| FileError::Bundle { path: path.to_owned(), why })
}

/// Reads a join token from a file that not everyone may read; white space around it is dropped.
///
/// # Errors
/// When the file cannot be read, is open to the world, or holds no token.
pub fn read_token(path: &Path) -> Result<Token, FileError> {
    let text = read_secret(path)?;
    let text = std::str::from_utf8(text.expose()).unwrap_or_default().trim();
    Token::parse(text).map_err(|error| FileError::Token { path: path.to_owned(), error })
}

/// Reads a file that holds a secret.
///
/// # Errors
/// When it cannot be read or is open to the world.
pub fn read_secret(path: &Path) -> Result<Secret<Vec<u8>>, FileError> {
    refuse_world_readable(path)?;
    read_limited(path).map(Secret::new)
}

/// Reads a file of at most [`limits::CONFIG_FILE_BYTES`].
///
/// # Errors
/// When it cannot be read or is larger.
pub fn read_limited(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |error| FileError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limits::CONFIG_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > limits::CONFIG_FILE_BYTES) {
        bytes.zeroize();
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn refuse_world_readable(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(|error| FileError::Read { path: path.to_owned(), error })?;
    match metadata.permissions().mode() & 0o007 {
        0 => Ok(()),
        _ => Err(FileError::WorldReadable { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
        trust_domain = "example.org"
        data_dir = "/var/lib/passant/agent"
        server_address = "passant.example.org:8081"
        [bootstrap]
        bundle = "/etc/passant/bundle.pem"
        [node_attestor]
        method = "join_token"
    "#;

    #[test]
    fn the_least_configuration_takes_every_default() {
        let config = Config::parse("agent.toml", LEAST).unwrap();
        assert_eq!(config.trust_domain.as_str(), "example.org");
        assert_eq!(format!("{:?}", config.server_address), "[passant.example.org:8081]");
        assert_eq!(config.workload_api.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.admin_socket.as_deref(), Some(Path::new("/var/lib/passant/agent/admin.sock")));
        assert_eq!(config.sds, Some(Sds::default()));
        assert_eq!(config.sync_interval, Duration::from_secs(5));
        assert_eq!(config.evidence_max_age, Duration::from_secs(300));
        assert_eq!(config.x509_key_type, KeyType::EcP256);
        assert_eq!(config.workload_attestors, [WorkloadMethod::Unix(UnixConfig::default())]);
        assert_eq!(config.log, Log { level: "info".to_owned(), format: LogFormat::Text });
        assert!(matches!(config.node_attestor, NodeAttestor::JoinToken(None)));
        assert!(matches!(config.bootstrap, Bootstrap::File(_)));
    }

    #[test]
    fn the_published_configuration_is_accepted_and_holds_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/agent.toml");
        let published = Config::load(&path).unwrap();
        let least = Config::parse("agent.toml", LEAST).unwrap();
        assert_eq!(published.workload_api, least.workload_api);
        assert_eq!(published.sds, least.sds);
        assert_eq!(published.admin_socket, least.admin_socket);
        assert_eq!(published.workload_attestors, least.workload_attestors);
        assert_eq!(published.sync_interval, least.sync_interval);
        assert_eq!(published.evidence_max_age, least.evidence_max_age);
        assert_eq!(published.x509_key_type, least.x509_key_type);
        assert_eq!(published.log, least.log);
        assert_eq!((published.probe, least.probe), (None, None));
    }

    #[test]
    fn attestors_of_containers_and_units_are_asked_only_where_configured() {
        let parsed = |tables: &str| Config::parse("agent.toml", &format!("{LEAST}{tables}"));
        let attestors = |tables: &str| parsed(tables).unwrap().workload_attestors;
        let docker = WorkloadMethod::Docker(DockerConfig::default());
        let systemd = WorkloadMethod::Systemd(SystemdConfig::default());
        let unix = WorkloadMethod::Unix(UnixConfig::default());
        assert_eq!(attestors("[workload_attestors.docker]"), std::slice::from_ref(&docker));
        let all = "[workload_attestors.systemd]\n[workload_attestors.docker]\n[workload_attestors.unix]\n";
        assert_eq!(attestors(all), [unix, docker, systemd]);

        let own = "[workload_attestors.docker]\ndocker_socket_path = \"unix:///run/d.sock\"\n\
                   podman_socket_path_template = \"/home/%d/p.sock\"\nrootless_users = [1000, 0, 4294967295]\n\
                   [workload_attestors.systemd]\nbus_address = \"unix:path=/host/bus\"\n";
        let expected = DockerConfig {
            docker_socket_path: PathBuf::from("/run/d.sock"),
            podman_socket_path_template: SocketTemplate::parse("/home/%d/p.sock").unwrap(),
            rootless_users: BTreeSet::from([0, 1000, u32::MAX]),
            ..DockerConfig::default()
        };
        let systemd = SystemdConfig { bus_address: "unix:path=/host/bus".to_owned() };
        assert_eq!(attestors(own), [WorkloadMethod::Docker(expected), WorkloadMethod::Systemd(systemd)]);

        for (key, value) in [
            ("docker_socket_path", "\"tcp://127.0.0.1:2375\""),
            ("podman_socket_path", "\"podman.sock\""),
            ("docker_socket_path_template", "\"/run/docker.sock\""),
            ("podman_socket_path_template", "\"/run/%d/%d\""),
            ("rootless_users", "[-1]"),
            ("rootless_users", "[4294967296]"),
            ("rootless_users", "[\"root\"]"),
            ("socket", "\"/x\""),
        ] {
            let error = parsed(&format!("[workload_attestors.docker]\n{key} = {value}\n")).unwrap_err();
            let keys: Vec<&str> = error.faults().iter().map(|fault| fault.key.as_str()).collect();
            assert_eq!(keys, [format!("workload_attestors.docker.{key}")], "{value}");
        }
    }

    #[test]
    fn the_admin_socket_is_never_where_workloads_connect() {
        let parsed = |admin: &str| Config::parse("agent.toml", &format!("{LEAST}[admin]\n{admin}\n"));
        assert_eq!(parsed("enabled = false").unwrap().admin_socket, None);
        let own = parsed("socket = \"/run/admin/agent.sock\"").unwrap().admin_socket;
        assert_eq!(own.as_deref(), Some(Path::new("/run/admin/agent.sock")));
        let long = format!("/{}", "a".repeat(limits::SOCKET_PATH_BYTES));
        for (socket, fault) in [
            ("admin.sock", "not an absolute path"),
            ("/run/passant-agent/admin.sock", "workloads are given"),
            ("/run/passant-agent/admin/agent.sock", "workloads are given"),
            (long.as_str(), "too long"),
        ] {
            let error = parsed(&format!("socket = \"{socket}\"")).unwrap_err().to_string();
            assert!(error.contains("admin.socket") && error.contains(fault), "{socket}: {error}");
        }
    }

    #[test]
    fn another_way_to_where_workloads_connect_is_no_other_place() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        fs::create_dir(dir.path().join("api")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("api"), dir.path().join("link")).unwrap();
        let parsed = |data: &str, admin: &str| {
            let least = LEAST.replace("/var/lib/passant/agent", &format!("{shown}/{data}"));
            let api = format!("[workload_api]\nsocket = \"{shown}/api/api.sock\"\n");
            Config::parse("agent.toml", &format!("{least}{api}[admin]\nsocket = \"{shown}/{admin}\"\n"))
        };
        for admin in ["api/a.sock", "link/a.sock", "link/new/a.sock", "new/../api/a.sock"] {
            let error = parsed("data", admin).unwrap_err();
            assert_eq!(error.faults()[0].key, "admin.socket", "{admin}: {error}");
            assert!(error.faults()[0].what.contains("which workloads are given as a whole"), "{error}");
        }
        assert!(!parsed("data", "own/a.sock").unwrap().is_data_given_away());
        for data in ["api", "link", "new/../api"] {
            let error = parsed(data, "own/a.sock").unwrap_err();
            assert_eq!(error.faults()[0].key, "data_dir", "{data}: {error}");
        }
        assert!(parsed("link/data", "own/a.sock").unwrap().is_data_given_away());
    }

    #[test]
    fn every_key_that_stands_commented_out_in_the_published_configuration_is_known() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/agent.toml");
        let text = fs::read_to_string(path).unwrap();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => {
                    format!("{rest}\n")
                }
                Some(rest) if rest.starts_with('[') && rest.ends_with(']') => format!("{rest}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        assert!(uncommented.contains("\ninsecure_bootstrap = true"), "{uncommented}");
        assert!(uncommented.contains("\nprivate_key = "), "{uncommented}");
        assert!(
            uncommented.contains("\n[workload_attestors.docker]\ndocker_socket_path = "),
            "{uncommented}"
        );
        // A key of one method is unknown to the other, so each must be known to one of them.
        let unknown = |text: &str| -> BTreeSet<String> {
            let error = Config::parse("agent.toml", text).unwrap_err();
            let unknown = error.faults().iter().filter(|fault| fault.what.contains("unknown"));
            unknown.map(|fault| fault.key.clone()).collect()
        };
        let with_token = unknown(&uncommented);
        let with_certificate =
            unknown(&uncommented.replace("method = \"join_token\"", "method = \"x509pop\""));
        let unknown_to_both: Vec<_> = with_token.intersection(&with_certificate).collect();
        assert!(unknown_to_both.is_empty(), "{unknown_to_both:?}");
        assert!(with_token.contains("node_attestor.certificate"), "{with_token:?}");
    }

    fn is_key(text: &str) -> bool {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
    }

    #[test]
    fn all_faults_are_told_together_with_key_and_remedy() {
        let error = Config::parse(
            "agent.toml",
            r#"
            trust_domain = "Not A Domain"
            server_adress = "passant:8081"
            sync_interval = "5"
            x509_key_type = "rsa-2048"
            [bootstrap]
            bundle = "b.pem"
            insecure_bootstrap = true
            [node_attestor]
            method = "x509pop"
            certificate = 7
            [workload_attestors.unix]
            discover_workload_paths = true
            [log]
            format = "xml"
            [probe]
            listen = "0.0.0.0:9090"
            "#,
        )
        .unwrap_err();
        let keys: Vec<&str> = error.faults().iter().map(|fault| fault.key.as_str()).collect();
        for key in [
            "trust_domain",
            "data_dir",
            "server_address",
            "server_adress",
            "sync_interval",
            "x509_key_type",
            "bootstrap.insecure_bootstrap",
            "node_attestor.certificate",
            "node_attestor.private_key",
            "workload_attestors.unix.discover_workload_paths",
            "log.format",
            "probe.listen",
        ] {
            assert!(keys.contains(&key), "{key} is not among {keys:?}");
        }
        let text = error.to_string();
        assert!(text.contains("did you mean server_address?"), "{text}");
        assert!(text.contains("did you mean discover_workload_path?"), "{text}");
        assert!(error.faults().iter().all(|fault| !fault.remedy.is_empty()));
    }

    #[test]
    fn evidence_is_not_kept_for_longer_than_a_server_believes_it() {
        let with = |age: &str| Config::parse("f", &format!("evidence_max_age = \"{age}\"\n{LEAST}"));
        assert_eq!(with("8m").unwrap().evidence_max_age, limits::EVIDENCE_AGE);
        let fault = with("8m1s").unwrap_err().faults()[0].clone();
        assert_eq!(fault.key, "evidence_max_age");
        assert_eq!(fault.remedy, "write a time from 1 to 480 seconds, as in \"300s\"");
    }

    #[test]
    fn exactly_one_way_to_bootstrap_is_demanded() {
        let with = |bootstrap: &str| {
            Config::parse("f", &LEAST.replace("bundle = \"/etc/passant/bundle.pem\"", bootstrap))
        };
        assert!(matches!(with("insecure_bootstrap = true").unwrap().bootstrap, Bootstrap::Insecure));
        for wrong in ["", "insecure_bootstrap = false", "bundle = \"b\"\ninsecure_bootstrap = true"] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn server_addresses_need_a_host_and_a_port() {
        for (text, shown) in [
            ("a.example:1", "a.example:1"),
            ("127.0.0.1:8081", "127.0.0.1:8081"),
            ("[::1]:65535", "[::1]:65535"),
        ] {
            assert_eq!(ServerAddress::parse(text).unwrap().to_string(), shown);
        }
        for wrong in
            ["", "a.example", "a.example:", "a.example:0", "a.example:65536", "::1:80", "a b:80", ":80"]
        {
            assert!(ServerAddress::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn several_servers_may_be_named_each_once() {
        let with = |servers: &str| {
            Config::parse("agent.toml", &LEAST.replace("\"passant.example.org:8081\"", servers))
        };
        let config = with("[\"a.example:1\", \"[::1]:2\"]").unwrap();
        assert_eq!(format!("{:?}", config.server_address), "[a.example:1, [::1]:2]");
        let many =
            (1..=limits::SERVERS + 1).map(|port| format!("\"a:{port}\"")).collect::<Vec<_>>().join(", ");
        for (servers, fault) in [
            ("[]", "names no server"),
            ("[\"a:1\", \"b\"]", "has no port"),
            ("[\"a:1\", \"b:1\", \"a:1\"]", "names a:1 twice"),
            (&format!("[{many}]"), "more than 16"),
            ("7", "has the wrong type"),
        ] {
            let error = with(servers).unwrap_err().to_string();
            assert!(error.contains("server_address") && error.contains(fault), "{servers}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_as_it_is_written() {
        for (written, named) in [("'' = 1", "\"\""), ("\"a b\" = 1", "\"a b\""), ("colour = 1", "colour")] {
            let error = Config::parse("agent.toml", written).unwrap_err();
            assert!(error.faults().iter().any(|fault| fault.key == named), "{error}");
        }
    }

    #[test]
    fn a_token_file_open_to_the_world_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, " a-token\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_token(&path).unwrap().expose(), "a-token");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read_token(&path), Err(FileError::WorldReadable { .. })));
    }
}
