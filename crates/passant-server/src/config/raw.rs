//! What may be written in server.toml, before anything is checked?

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// One key: a value of the wrong type is kept as a fault instead of ending the reading, so that all faults of a file
/// are reported together.
#[derive(Debug, Default)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Good(T),
    /// Has the wrong type; the text says how.
    Bad(String),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Field<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        Ok(match T::deserialize(value) {
            Ok(good) => Self::Good(good),
            Err(error) => Self::Bad(error.message().to_owned()),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Raw {
    pub(super) trust_domain: Field<String>,
    pub(super) data_dir: Field<String>,
    pub(super) listen: Field<String>,
    pub(super) store: Field<String>,
    pub(super) keys: Field<String>,
    pub(super) ca_ttl: Field<String>,
    pub(super) ca_key_type: Field<String>,
    pub(super) jwt_key_type: Field<String>,
    pub(super) default_x509_svid_ttl: Field<String>,
    pub(super) default_jwt_svid_ttl: Field<String>,
    pub(super) agent_ttl: Field<String>,
    pub(super) accept_lost_keys: Field<bool>,
    pub(super) jwt_issuer: Field<String>,
    pub(super) admin_ids: Field<Vec<String>>,
    pub(super) role: Field<Vec<RawRole>>,
    pub(super) socket: Field<RawSocket>,
    pub(super) probe: Field<RawProbe>,
    pub(super) log: Field<RawLog>,
    pub(super) decision_log: Field<RawDecisionLog>,
    pub(super) federation: Field<RawFederation>,
    pub(super) limits: Field<RawLimits>,
    pub(super) node_attestor: Field<Vec<RawNodeAttestor>>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl Raw {
    pub(super) const KEYS: &[&str] = &[
        "trust_domain",
        "data_dir",
        "listen",
        "store",
        "keys",
        "ca_ttl",
        "ca_key_type",
        "jwt_key_type",
        "default_x509_svid_ttl",
        "default_jwt_svid_ttl",
        "agent_ttl",
        "accept_lost_keys",
        "jwt_issuer",
        "admin_ids",
        "role",
        "socket",
        "probe",
        "log",
        "decision_log",
        "federation",
        "limits",
        "node_attestor",
    ];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawSocket {
    pub(super) path: Field<String>,
    pub(super) mode: Field<String>,
    pub(super) group: Field<String>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawSocket {
    pub(super) const KEYS: &[&str] = &["path", "mode", "group"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawProbe {
    pub(super) listen: Field<String>,
    pub(super) allow_remote: Field<bool>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawProbe {
    pub(super) const KEYS: &[&str] = &["listen", "allow_remote"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawLog {
    pub(super) level: Field<String>,
    pub(super) format: Field<String>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawLog {
    pub(super) const KEYS: &[&str] = &["level", "format"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawDecisionLog {
    pub(super) max_age: Field<String>,
    pub(super) max_size_mib: Field<u64>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawDecisionLog {
    pub(super) const KEYS: &[&str] = &["max_age", "max_size_mib"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawFederation {
    pub(super) web_roots: Field<String>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawFederation {
    pub(super) const KEYS: &[&str] = &["web_roots"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawLimits {
    pub(super) attestations_per_address: Field<RawRate>,
    pub(super) attestations: Field<RawRate>,
    pub(super) signatures_per_agent: Field<RawRate>,
    pub(super) signatures: Field<RawRate>,
    pub(super) mints_per_caller: Field<RawRate>,
    pub(super) lists_per_caller: Field<RawRate>,
    pub(super) lists: Field<RawRate>,
    pub(super) reserved_for_renewals: Field<u64>,
    pub(super) calls: Field<u64>,
    pub(super) calls_per_agent: Field<u64>,
    pub(super) strangers_calls: Field<u64>,
    pub(super) calls_per_address: Field<u64>,
    pub(super) operators_calls: Field<u64>,
    pub(super) calls_per_operator: Field<u64>,
    pub(super) call_waits: Field<String>,
    pub(super) explanations: Field<u64>,
    pub(super) backups: Field<u64>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawLimits {
    pub(super) const KEYS: &[&str] = &[
        "attestations_per_address",
        "attestations",
        "signatures_per_agent",
        "signatures",
        "mints_per_caller",
        "lists_per_caller",
        "lists",
        "reserved_for_renewals",
        "calls",
        "calls_per_agent",
        "strangers_calls",
        "calls_per_address",
        "operators_calls",
        "calls_per_operator",
        "call_waits",
        "explanations",
        "backups",
    ];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawRate {
    pub(super) at_once: Field<u64>,
    pub(super) per_second: Field<u64>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawRate {
    pub(super) const KEYS: &[&str] = &["at_once", "per_second"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawRole {
    pub(super) name: Field<String>,
    pub(super) verbs: Field<Vec<String>>,
    pub(super) spiffe_id_prefixes: Field<Vec<String>>,
    pub(super) parent_id_prefixes: Field<Vec<String>>,
    pub(super) selector_types: Field<Vec<String>>,
    pub(super) granted_to: Field<RawHolders>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawRole {
    pub(super) const KEYS: &[&str] =
        &["name", "verbs", "spiffe_id_prefixes", "parent_id_prefixes", "selector_types", "granted_to"];
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawHolders {
    pub(super) spiffe_ids: Field<Vec<String>>,
    pub(super) uids: Field<Vec<u32>>,
    pub(super) gids: Field<Vec<u32>>,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, toml::Value>,
}

impl RawHolders {
    pub(super) const KEYS: &[&str] = &["spiffe_ids", "uids", "gids"];
}

/// The options of a method are read by the method.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawNodeAttestor {
    pub(super) method: Field<String>,
    #[serde(flatten)]
    pub(super) options: BTreeMap<String, toml::Value>,
}

impl RawNodeAttestor {
    pub(super) const X509POP: &[&str] = &[
        "ca_bundle_path",
        "ca_bundle_paths",
        "agent_path_template",
        "max_intermediates",
        "max_rsa_key_size",
    ];
}
