//! How is a server configured, and is a configuration sound?
//!
//! server.toml is read into raw fields, then checked into [`Config`]. Nothing is guessed: unknown keys are refused, and
//! every fault of the file is reported at once, each with the key and what would mend it. `config/server.toml` in the
//! repository shows every key with its default.

mod limits;
mod raw;
mod roles;
mod suggest;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use passant_attest::node::x509pop::X509PopConfig;
use passant_core::keys::KeyType;
use passant_core::spiffe_id::SpiffeId;
use passant_core::trust_domain::TrustDomain;
use passant_daemon::config::{duration, quoted};
use passant_daemon::log::LevelError;
use serde::Deserialize;

use crate::access::Role;
pub use limits::{Limits, Rate};
pub use passant_daemon::config::{ConfigError, Fault};
pub use passant_daemon::log::{Log, LogFormat};
use raw::{Field, Raw, RawDecisionLog, RawFederation, RawLog, RawNodeAttestor, RawProbe, RawSocket};

/// Everything a server needs to know before it starts. Whoever holds one holds a checked one.
#[derive(Clone, Debug)]
pub struct Config {
    /// The one trust domain this server issues for.
    pub trust_domain: TrustDomain,
    /// Where the journal, the keys and the decision record stand. `None` only with the memory store.
    pub data_dir: Option<PathBuf>,
    /// Where agents connect, with TLS.
    pub listen: SocketAddr,
    /// Where operators on this machine connect.
    pub socket: Socket,
    /// What holds the journal.
    pub store: StoreMethod,
    /// What holds the authorities' private keys.
    pub keys: KeysMethod,
    /// Lifetime of an X.509 authority and of a JWT authority.
    pub ca_ttl: Duration,
    /// Key type of X.509 authorities.
    pub ca_key_type: KeyType,
    /// Key type of JWT authorities.
    pub jwt_key_type: KeyType,
    /// Lifetime of an X509-SVID whose entry names none.
    pub default_x509_svid_ttl: Duration,
    /// Lifetime of a JWT-SVID whose entry names none.
    pub default_jwt_svid_ttl: Duration,
    /// Lifetime of a node's X509-SVID.
    pub agent_ttl: Duration,
    /// Start although the key of an active authority is lost.
    pub accept_lost_keys: bool,
    /// The `iss` claim of JWT-SVIDs, if any.
    pub jwt_issuer: Option<String>,
    /// SPIFFE IDs that are administrators without an entry saying so.
    pub admin_ids: BTreeSet<SpiffeId>,
    /// What others may do, and who. Their names are unique.
    pub roles: Vec<Role>,
    /// How nodes may attest. Never empty.
    pub node_attestors: Vec<NodeAttestor>,
    /// Where probes and metrics are answered, if at all.
    pub probe: Option<SocketAddr>,
    /// What is logged, and how.
    pub log: Log,
    /// How long decisions are kept.
    pub decision_log: DecisionLogRetention,
    /// A PEM file with the authorities of the Web PKI that bundle endpoints are verified by; `None`: those of the machine.
    pub web_roots: Option<PathBuf>,
    /// How much callers may ask for.
    pub limits: Limits,
    /// What is allowed but probably not meant, for the log at start.
    pub warnings: Vec<String>,
}

/// The operator socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where it stands. At most 107 bytes.
    pub path: PathBuf,
    /// Permission bits; any for others only if a role is granted to users of this machine.
    pub mode: u32,
    /// Members of this group may connect besides root and the server's own user.
    pub group: Option<String>,
}

/// Stores of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMethod {
    /// Embedded, on disk.
    Sled,
    /// Forgets everything when the process ends.
    Memory,
}

/// Holders of private keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysMethod {
    /// `keys.json` in the data directory, mode 0600.
    Disk,
    /// Lost when the process ends.
    Memory,
}

/// A node attestor that is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeAttestor {
    /// One-time tokens made by an operator.
    JoinToken,
    /// Possession of the key of a certificate from a known CA.
    X509pop(X509PopConfig),
}

/// What is kept of the decision record. The newest segment always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionLogRetention {
    /// Segments older than this may go.
    pub max_age: Duration,
    /// Oldest segments go while the record is larger than this, in bytes.
    pub max_bytes: u64,
}

/// Where operators find the server when nothing else is configured.
pub const DEFAULT_SOCKET: &str = "/run/passant-server/api.sock";
/// Every address, on SPIRE's port: agents on other nodes are what a server is for.
const DEFAULT_LISTEN: &str = "0.0.0.0:8081";
/// `sun_path` holds 108 bytes with the closing zero.
const SOCKET_PATH_MAX: usize = 107;
/// Ten years: past any use, and far from where date arithmetic ends.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Below this an authority would rotate faster than agents ask.
const CA_TTL_MIN: Duration = Duration::from_secs(10);

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// Every fault of the file together, or the one that kept it from being read.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::single(
                &name,
                "",
                format!("cannot be read: {error}"),
                "give the path of a readable file with --config",
            )
        })?;
        Self::parse(&text, &name)
    }

    /// Checks `text`; `file` is the name that faults are reported under.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or(String::new(), |span| {
                let line =
                    text.as_bytes()[..span.start.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
                format!("line {line}: ")
            });
            ConfigError::single(file, "", format!("{place}{}", error.message()), "mend the TOML syntax")
        })?;
        let mut check = Check { faults: Vec::new() };
        match check.config(raw) {
            Some(config) if check.faults.is_empty() => Ok(config),
            Some(_) | None => Err(ConfigError::new(file, check.faults)),
        }
    }
}

/// Collects faults while fields are taken. A `None` from any method means that a fault was noted.
struct Check {
    faults: Vec<Fault>,
}

impl Check {
    fn config(&mut self, raw: Raw) -> Option<Config> {
        self.unknown("", &raw.unknown, Raw::KEYS);
        let trust_domain = self.trust_domain(raw.trust_domain);
        let store = self.choice(
            "store",
            raw.store,
            Some("sled"),
            &[("sled", StoreMethod::Sled), ("memory", StoreMethod::Memory)],
        );
        let default_keys = if store == Some(StoreMethod::Memory) { "memory" } else { "disk" };
        let keys = self.choice(
            "keys",
            raw.keys,
            Some(default_keys),
            &[("disk", KeysMethod::Disk), ("memory", KeysMethod::Memory)],
        );
        self.store_and_keys_agree(store, keys);
        let data_dir = self.data_dir(raw.data_dir, store, keys);
        let listen = self.listen(raw.listen);
        let key_types = [("ec-p256", KeyType::EcP256), ("ec-p384", KeyType::EcP384)];
        let ca_key_type = self.choice("ca_key_type", raw.ca_key_type, Some("ec-p256"), &key_types);
        let jwt_key_type = self.choice("jwt_key_type", raw.jwt_key_type, Some("ec-p256"), &key_types);
        let ca_ttl = self.ttl("ca_ttl", raw.ca_ttl, "24h", CA_TTL_MIN);
        let second = Duration::from_secs(1);
        let x509_ttl = self.ttl("default_x509_svid_ttl", raw.default_x509_svid_ttl, "1h", second);
        let jwt_ttl = self.ttl("default_jwt_svid_ttl", raw.default_jwt_svid_ttl, "5m", second);
        let agent_default = x509_ttl.map_or_else(|| "1h".to_owned(), duration::show);
        let agent_ttl = self.ttl("agent_ttl", raw.agent_ttl, &agent_default, second);
        let mut warnings = Vec::new();
        for (key, ttl) in
            [("default_x509_svid_ttl", x509_ttl), ("default_jwt_svid_ttl", jwt_ttl), ("agent_ttl", agent_ttl)]
        {
            warnings.extend(self.fits(key, ttl, ca_ttl));
        }
        let accept_lost_keys = self.optional("accept_lost_keys", raw.accept_lost_keys);
        if accept_lost_keys == Some(Some(true)) {
            warnings
                .push("accept_lost_keys is set: take it out again once the server has started".to_owned());
        }
        let jwt_issuer = self.jwt_issuer(raw.jwt_issuer);
        let admin_ids = self.admin_ids(raw.admin_ids);
        let roles = self.roles(raw.role, trust_domain.as_ref());
        let lets_in_holders = roles.as_deref().is_some_and(roles::has_local_holders);
        let socket = self.socket(raw.socket, lets_in_holders);
        if lets_in_holders && socket.as_ref().is_some_and(|socket| socket.mode & 0o002 == 0) {
            warnings.push(
                "roles are granted to users of this machine, whom socket.mode keeps from the operator socket unless they \
                 are in its group: leave socket.mode out, or use \"0666\"; the server looks at who calls"
                    .to_owned(),
            );
        }
        let probe = self.probe(raw.probe);
        let log = self.log(raw.log);
        let decision_log = self.decision_log(raw.decision_log);
        let web_roots = self.web_roots(raw.federation);
        let limits = self.limits(raw.limits);
        let node_attestors = self.node_attestors(raw.node_attestor);
        Some(Config {
            trust_domain: trust_domain?,
            data_dir: data_dir?,
            listen: listen?,
            socket: socket?,
            store: store?,
            keys: keys?,
            ca_ttl: ca_ttl?,
            ca_key_type: ca_key_type?,
            jwt_key_type: jwt_key_type?,
            default_x509_svid_ttl: x509_ttl?,
            default_jwt_svid_ttl: jwt_ttl?,
            agent_ttl: agent_ttl?,
            accept_lost_keys: accept_lost_keys?.unwrap_or(false),
            jwt_issuer: jwt_issuer?,
            admin_ids: admin_ids?,
            roles: roles?,
            node_attestors: node_attestors?,
            probe: probe?,
            log: log?,
            decision_log: decision_log?,
            web_roots: web_roots?,
            limits: limits?,
            warnings,
        })
    }

    fn trust_domain(&mut self, field: Field<String>) -> Option<TrustDomain> {
        let remedy = "name the trust domain, as in trust_domain = \"example.org\"";
        let Some(text) = self.optional("trust_domain", field)? else {
            return self.fault("trust_domain", "is missing", remedy);
        };
        match TrustDomain::parse(&text) {
            Ok(trust_domain) => Some(trust_domain),
            Err(error) => self.fault("trust_domain", format!("\"{text}\": {error}"), remedy),
        }
    }

    fn store_and_keys_agree(&mut self, store: Option<StoreMethod>, keys: Option<KeysMethod>) {
        match (store, keys) {
            (Some(StoreMethod::Sled), Some(KeysMethod::Memory)) => {
                self.note(
                    "keys",
                    "\"memory\" with store = \"sled\" would lose every authority at a restart while the journal still names them",
                    "use keys = \"disk\", or store = \"memory\" for a server that may forget",
                );
            }
            (Some(StoreMethod::Memory), Some(KeysMethod::Disk)) => {
                self.note(
                    "keys",
                    "\"disk\" with store = \"memory\" would leave keys behind that no journal names",
                    "use keys = \"memory\", or store = \"sled\"",
                );
            }
            (Some(StoreMethod::Sled) | None, Some(KeysMethod::Disk) | None)
            | (Some(StoreMethod::Memory) | None, Some(KeysMethod::Memory) | None) => {}
        }
    }

    /// `Some(None)` when the configuration needs no directory and names none.
    fn data_dir(
        &mut self,
        field: Field<String>,
        store: Option<StoreMethod>,
        keys: Option<KeysMethod>,
    ) -> Option<Option<PathBuf>> {
        let needed = store != Some(StoreMethod::Memory) || keys == Some(KeysMethod::Disk);
        match self.optional("data_dir", field)? {
            Some(path) if path.is_empty() => {
                self.fault("data_dir", "is empty", "name a directory only the server can read")
            }
            Some(path) => Some(Some(PathBuf::from(path))),
            None if needed => self.fault(
                "data_dir",
                "is missing",
                "name a directory only the server can read, as in data_dir = \"/var/lib/passant/server\"",
            ),
            None => Some(None),
        }
    }

    fn listen(&mut self, field: Field<String>) -> Option<SocketAddr> {
        let text = self.optional("listen", field)?.unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) => self.fault(
                "listen",
                format!("\"{text}\" is not an IP address and port"),
                "write an address and a port, as in \"0.0.0.0:8081\" or \"[::]:8081\"",
            ),
        }
    }

    fn ttl(&mut self, key: &str, field: Field<String>, default: &str, least: Duration) -> Option<Duration> {
        let text = self.optional(key, field)?.unwrap_or_else(|| default.to_owned());
        match duration::parse(&text) {
            Ok(ttl) if ttl < least => self.fault(
                key,
                format!("\"{text}\" is too short"),
                format!("use at least {}", duration::show(least)),
            ),
            Ok(ttl) if ttl > TTL_MAX => {
                self.fault(key, format!("\"{text}\" is too long"), "use at most 3650d")
            }
            Ok(ttl) => Some(ttl),
            Err(said) => self.fault(key, said, format!("the default is \"{default}\"")),
        }
    }

    /// Refuses an SVID lifetime that no authority could cover; returns a warning for one that it could only partly.
    fn fits(&mut self, key: &str, ttl: Option<Duration>, ca_ttl: Option<Duration>) -> Option<String> {
        let (ttl, ca_ttl) = (ttl?, ca_ttl?);
        if ttl > ca_ttl {
            return self.fault(
                key,
                format!("{} is longer than ca_ttl ({})", duration::show(ttl), duration::show(ca_ttl)),
                format!("raise ca_ttl to {} or lower {key}", duration::show(ttl.saturating_mul(6))),
            );
        }
        // An authority is replaced when a sixth of its life remains, so what fits into a sixth is never cut short.
        (ttl > ca_ttl / 6).then(|| {
            format!(
                "{key} ({}) is more than a sixth of ca_ttl ({}): SVIDs may be given less than their full lifetime",
                duration::show(ttl),
                duration::show(ca_ttl)
            )
        })
    }

    /// `Some(None)` when absent.
    fn jwt_issuer(&mut self, field: Field<String>) -> Option<Option<String>> {
        match self.optional("jwt_issuer", field)? {
            Some(issuer)
                if issuer.is_empty() || issuer.len() > 1024 || issuer.chars().any(char::is_control) =>
            {
                self.fault(
                    "jwt_issuer",
                    "must be 1 to 1024 characters without control characters",
                    "write the URL under which verifiers find the keys, or leave it out",
                )
            }
            issuer => Some(issuer),
        }
    }

    fn admin_ids(&mut self, field: Field<Vec<String>>) -> Option<BTreeSet<SpiffeId>> {
        let mut ids = BTreeSet::new();
        let mut sound = true;
        for text in self.optional("admin_ids", field)?.unwrap_or_default() {
            match SpiffeId::parse(&text) {
                Ok(id) if !id.is_trust_domain_id() => {
                    ids.insert(id);
                }
                Ok(_) => {
                    sound = false;
                    self.note(
                        "admin_ids",
                        format!("\"{text}\" has no path"),
                        "name one workload, not a trust domain",
                    );
                }
                Err(error) => {
                    sound = false;
                    self.note(
                        "admin_ids",
                        format!("\"{text}\": {error}"),
                        "write SPIFFE IDs, as in \"spiffe://example.org/admin\"",
                    );
                }
            }
        }
        sound.then_some(ids)
    }

    /// With `lets_in_holders` others than operators are to reach the socket, and are told apart by their credentials.
    fn socket(&mut self, field: Field<RawSocket>, lets_in_holders: bool) -> Option<Socket> {
        let raw = self.optional("socket", field)?.unwrap_or_default();
        self.unknown("socket.", &raw.unknown, RawSocket::KEYS);
        let path = match self.optional("socket.path", raw.path)?.unwrap_or_else(|| DEFAULT_SOCKET.to_owned())
        {
            path if path.is_empty() => {
                self.fault("socket.path", "is empty", "name a path for the operator socket")
            }
            path if path.len() > SOCKET_PATH_MAX => self.fault(
                "socket.path",
                format!("is {} bytes long", path.len()),
                format!("use at most {SOCKET_PATH_MAX} bytes, the most a unix socket address can hold"),
            ),
            path => Some(PathBuf::from(path)),
        };
        let group = self.optional("socket.group", raw.group)?;
        let mode_text = self.optional("socket.mode", raw.mode)?;
        let default_mode = match (lets_in_holders, &group) {
            (true, _) => 0o666,
            (false, Some(_)) => 0o660,
            (false, None) => 0o600,
        };
        let mode = match mode_text {
            None => Some(default_mode),
            Some(text) => self.mode(&text, group.is_some(), lets_in_holders),
        };
        Some(Socket { path: path?, mode: mode?, group })
    }

    fn mode(&mut self, text: &str, has_group: bool, lets_in_holders: bool) -> Option<u32> {
        let key = "socket.mode";
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode > 0o777 || mode & 0o600 != 0o600 => self.fault(
                key,
                format!("\"{text}\" does not let the server's own user in"),
                "use \"0600\", or \"0660\" with socket.group",
            ),
            Ok(mode) if mode & 0o007 != 0 && !lets_in_holders => self.fault(
                key,
                format!("\"{text}\" opens the operator socket to everyone on this machine"),
                "use \"0600\", or \"0660\" with socket.group; it may be open only if a role is granted to uids or gids",
            ),
            Ok(mode) if mode & 0o070 != 0 && !has_group && !lets_in_holders => self.fault(
                key,
                format!("\"{text}\" opens the operator socket to a group, but none is named"),
                "name it with socket.group, or use \"0600\"",
            ),
            Ok(mode) => Some(mode),
            Err(_) => self.fault(key, format!("\"{text}\" is not an octal file mode"), "use \"0600\""),
        }
    }

    /// `Some(None)` when there is no probe.
    fn probe(&mut self, field: Field<RawProbe>) -> Option<Option<SocketAddr>> {
        let raw = self.optional("probe", field)?.unwrap_or_default();
        self.unknown("probe.", &raw.unknown, RawProbe::KEYS);
        let listen = self.optional("probe.listen", raw.listen)?;
        let allow_remote = self.optional("probe.allow_remote", raw.allow_remote)?.unwrap_or(false);
        let Some(listen) = listen else { return Some(None) };
        match passant_daemon::probe::address(&listen, allow_remote) {
            Ok(address) => Some(Some(address)),
            Err(error) => self.fault("probe.listen", format!("\"{listen}\" {error}"), error.remedy()),
        }
    }

    fn log(&mut self, field: Field<RawLog>) -> Option<Log> {
        let raw = self.optional("log", field)?.unwrap_or_default();
        self.unknown("log.", &raw.unknown, RawLog::KEYS);
        let level = match passant_daemon::log::level(self.optional("log.level", raw.level)?) {
            Ok(level) => Some(level),
            Err(error) => self.fault("log.level", error.to_string(), LevelError::REMEDY),
        };
        let format = self.choice("log.format", raw.format, Some("text"), &LogFormat::NAMES);
        Some(Log { level: level?, format: format? })
    }

    fn web_roots(&mut self, field: Field<RawFederation>) -> Option<Option<PathBuf>> {
        let raw = self.optional("federation", field)?.unwrap_or_default();
        self.unknown("federation.", &raw.unknown, RawFederation::KEYS);
        match self.optional("federation.web_roots", raw.web_roots)? {
            Some(path) if path.is_empty() => self.fault(
                "federation.web_roots",
                "is empty",
                "name a PEM file, or leave it out to use the authorities of this machine",
            ),
            path => Some(path.map(PathBuf::from)),
        }
    }

    fn decision_log(&mut self, field: Field<RawDecisionLog>) -> Option<DecisionLogRetention> {
        let raw = self.optional("decision_log", field)?.unwrap_or_default();
        self.unknown("decision_log.", &raw.unknown, RawDecisionLog::KEYS);
        let max_age = self.ttl("decision_log.max_age", raw.max_age, "400d", Duration::from_secs(3_600));
        let mib = self.optional("decision_log.max_size_mib", raw.max_size_mib)?.unwrap_or(2_048);
        let max_bytes = match mib {
            16..=16_777_216 => Some(mib << 20),
            _ => self.fault(
                "decision_log.max_size_mib",
                format!("{mib} is out of range"),
                "use 16 to 16777216",
            ),
        };
        Some(DecisionLogRetention { max_age: max_age?, max_bytes: max_bytes? })
    }

    fn node_attestors(&mut self, field: Field<Vec<RawNodeAttestor>>) -> Option<Vec<NodeAttestor>> {
        let Some(raw) = self.optional("node_attestor", field)? else {
            return Some(vec![NodeAttestor::JoinToken]);
        };
        if raw.is_empty() {
            return self.fault(
                "node_attestor",
                "is empty",
                "name at least one method, or leave it out for join_token",
            );
        }
        let mut attestors = Vec::new();
        let mut seen = BTreeSet::new();
        let mut sound = true;
        for (at, one) in raw.into_iter().enumerate() {
            match self.node_attestor(&format!("node_attestor[{at}]."), one, &mut seen) {
                Some(attestor) => attestors.push(attestor),
                None => sound = false,
            }
        }
        sound.then_some(attestors)
    }

    fn node_attestor(
        &mut self,
        section: &str,
        raw: RawNodeAttestor,
        seen: &mut BTreeSet<String>,
    ) -> Option<NodeAttestor> {
        let key = format!("{section}method");
        let methods = "use \"join_token\" or \"x509pop\"";
        let Some(method) = self.optional(&key, raw.method)? else {
            return self.fault(&key, "is missing", methods);
        };
        if !seen.insert(method.clone()) {
            return self.fault(&key, format!("\"{method}\" is configured twice"), "keep one of them");
        }
        match method.as_str() {
            "join_token" => {
                self.unknown(section, &raw.options, &[]);
                Some(NodeAttestor::JoinToken)
            }
            "x509pop" => self.x509pop(section, raw.options).map(NodeAttestor::X509pop),
            _ => self.fault(&key, format!("\"{method}\" is not a node attestor of this version"), methods),
        }
    }

    fn x509pop(&mut self, section: &str, options: BTreeMap<String, toml::Value>) -> Option<X509PopConfig> {
        let (known, unknown): (BTreeMap<_, _>, BTreeMap<_, _>) =
            options.into_iter().partition(|(key, _)| RawNodeAttestor::X509POP.contains(&key.as_str()));
        self.unknown(section, &unknown, RawNodeAttestor::X509POP);
        match X509PopConfig::deserialize(toml::Table::from_iter(known)) {
            Ok(x509pop) => Some(x509pop),
            Err(error) => self.fault(
                section.trim_end_matches('.'),
                error.message(),
                "see config/server.toml for an example",
            ),
        }
    }

    fn choice<T: Copy>(
        &mut self,
        key: &str,
        field: Field<String>,
        default: Option<&str>,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let given = self.optional(key, field)?;
        let text = given.as_deref().or(default)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.fault(key, format!("\"{text}\" is not supported"), format!("use {}", names.join(" or ")))
    }

    /// `Some(None)` when absent, `None` after a fault.
    fn optional<T>(&mut self, key: &str, field: Field<T>) -> Option<Option<T>> {
        match field {
            Field::Absent => Some(None),
            Field::Good(value) => Some(Some(value)),
            Field::Bad(said) => self.fault(key, said, "see config/server.toml for an example"),
        }
    }

    fn unknown(&mut self, section: &str, unknown: &BTreeMap<String, toml::Value>, known: &[&str]) {
        for key in unknown.keys() {
            self.note(&format!("{section}{}", quoted(key)), "unknown key", suggest::suggest(key, known));
        }
    }

    fn note(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.faults.push(Fault { key: key.to_owned(), what: what.into(), remedy: remedy.into() });
    }

    fn fault<T>(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Option<T> {
        self.note(key, what, remedy);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, KeysMethod, NodeAttestor, StoreMethod};
    use crate::config::raw::{Raw, RawHolders, RawLimits, RawNodeAttestor, RawRole};
    use std::time::Duration;

    const LEAST: &str = "trust_domain = \"example.org\"\ndata_dir = \"/var/lib/passant/server\"\n";

    fn keys_at_fault(text: &str) -> Vec<String> {
        Config::parse(text, "server.toml").expect_err(text).faults().iter().map(|f| f.key.clone()).collect()
    }

    #[test]
    fn two_keys_are_enough() {
        let config = Config::parse(LEAST, "server.toml").unwrap();
        assert_eq!(config.trust_domain.as_str(), "example.org");
        assert_eq!(config.listen, "0.0.0.0:8081".parse().unwrap());
        assert_eq!((config.store, config.keys), (StoreMethod::Sled, KeysMethod::Disk));
        assert_eq!(config.ca_ttl, Duration::from_secs(86_400));
        assert_eq!(config.agent_ttl, config.default_x509_svid_ttl);
        assert_eq!(config.socket.mode, 0o600);
        assert_eq!(config.node_attestors, [NodeAttestor::JoinToken]);
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn the_example_file_is_sound_and_names_every_key() {
        let text = include_str!("../../../config/server.toml");
        Config::parse(text, "config/server.toml").unwrap();
        // Every key is there, set or commented out, so the file is the documentation.
        for key in Raw::KEYS
            .iter()
            .copied()
            .chain([
                "path",
                "mode",
                "group",
                "allow_remote",
                "level",
                "format",
                "max_age",
                "max_size_mib",
                "web_roots",
                "method",
            ])
            .chain(RawNodeAttestor::X509POP.iter().copied())
            .chain(RawRole::KEYS.iter().copied())
            .chain(RawHolders::KEYS.iter().copied())
            .chain(RawLimits::KEYS.iter().copied())
        {
            let named = text.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ', '[']).trim_start_matches("role.");
                line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']']))
            });
            assert!(named, "config/server.toml does not show {key}");
        }
        // Uncommented settings show the defaults: leaving them out changes nothing.
        let shown = Config::parse(text, "config/server.toml").unwrap();
        let least = Config::parse(LEAST, "server.toml").unwrap();
        assert_eq!(format!("{shown:?}"), format!("{least:?}"));
    }

    #[test]
    fn all_faults_are_reported_together() {
        let text = "trust_domian = \"example.org\"\nlisten = 8081\nca_ttl = \"1\"\nkeys = \"memory\"\n\
                    admin_ids = [\"spiffe://example.org\", \"http://x\"]\n[socket]\nmode = \"0666\"\ncolour = 1\n\
                    [[node_attestor]]\nmethod = \"x509pop\"\nca_bundel_path = \"x\"\n[[node_attestor]]\nmethod = \"x509pop\"\n";
        let mut keys = keys_at_fault(text);
        keys.sort();
        assert_eq!(
            keys,
            [
                "admin_ids",
                "admin_ids",
                "ca_ttl",
                "data_dir",
                "keys",
                "listen",
                "node_attestor[0].ca_bundel_path",
                "node_attestor[1].method",
                "socket.colour",
                "socket.mode",
                "trust_domain",
                "trust_domian",
            ]
        );
        let said = Config::parse(text, "server.toml").unwrap_err().to_string();
        assert!(said.contains("server.toml"), "{said}");
        assert!(said.contains("did you mean trust_domain?"), "{said}");
    }

    #[test]
    fn unsafe_combinations_are_refused() {
        for (extra, key) in [
            ("keys = \"memory\"\n", "keys"),
            ("store = \"memory\"\nkeys = \"disk\"\n", "keys"),
            ("default_x509_svid_ttl = \"25h\"\n", "default_x509_svid_ttl"),
            ("ca_key_type = \"rsa-2048\"\n", "ca_key_type"),
            ("socket = { mode = \"0660\" }\n", "socket.mode"),
            ("socket = { mode = \"0400\" }\n", "socket.mode"),
            ("node_attestor = []\n", "node_attestor"),
            ("node_attestor = [{ method = \"k8s_psat\" }]\n", "node_attestor[0].method"),
            (
                "node_attestor = [{ method = \"join_token\", ca_bundle_path = \"x\" }]\n",
                "node_attestor[0].ca_bundle_path",
            ),
            ("decision_log = { max_size_mib = 1 }\n", "decision_log.max_size_mib"),
            ("probe = { listen = \"0.0.0.0:9090\" }\n", "probe.listen"),
            ("probe = { listen = \"9090\" }\n", "probe.listen"),
            ("log = { level = \"loud\" }\n", "log.level"),
        ] {
            let keys = keys_at_fault(&format!("{LEAST}{extra}"));
            assert!(keys.iter().any(|found| found == key), "{extra}: {keys:?}");
        }
    }

    #[test]
    fn a_lifetime_over_a_sixth_of_the_authoritys_warns() {
        let warnings = |ttl: &str| {
            Config::parse(&format!("{LEAST}default_x509_svid_ttl = \"{ttl}\"\nagent_ttl = \"1h\"\n"), "x")
                .unwrap()
                .warnings
        };
        assert_eq!(warnings("4h").len(), 0);
        assert_eq!(warnings("4h1s").len(), 1);
    }

    #[test]
    fn broken_toml_names_its_line() {
        let said = Config::parse("trust_domain = \"example.org\"\nlisten = = 1\n", "server.toml")
            .unwrap_err()
            .to_string();
        assert!(said.contains("line 2"), "{said}");
    }
}
