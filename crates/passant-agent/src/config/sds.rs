//! By which names do Envoys ask for their secrets?

use std::collections::BTreeSet;

use super::section::Section;

/// How Envoy's secret discovery is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sds {
    /// Names the first X509-SVID of an Envoy.
    pub default_svid_name: String,
    /// Names the bundle of the agent's trust domain.
    pub default_bundle_name: String,
    /// Names all bundles that an Envoy may judge others by.
    pub default_all_bundles_name: String,
    /// Envoys that say nothing else check chains of certificates, not X509-SVIDs.
    pub disable_spiffe_cert_validation: bool,
}

impl Default for Sds {
    /// As SPIRE has it.
    fn default() -> Self {
        Self {
            default_svid_name: "default".to_owned(),
            default_bundle_name: "ROOTCA".to_owned(),
            default_all_bundles_name: "ALL".to_owned(),
            disable_spiffe_cert_validation: false,
        }
    }
}

/// The longest name that may be configured, in bytes.
const NAME_BYTES: usize = 256;

/// `None` if it is not to be served; without a value it leaves a fault behind.
pub(super) fn read(section: &mut Section<'_>) -> Option<Option<Sds>> {
    let enabled = section.boolean("enabled").unwrap_or(true);
    let defaults = Sds::default();
    let mut names = BTreeSet::new();
    let mut name = |section: &mut Section<'_>, key, default| {
        let name = section.string(key).unwrap_or(default);
        check(section, key, &name);
        if !names.insert(name.clone()) {
            let what = format!("\"{name}\" names another secret too");
            section.fault(key, &what, "give each of the three a name of its own");
        }
        name
    };
    let sds = Sds {
        default_svid_name: name(section, "default_svid_name", defaults.default_svid_name),
        default_bundle_name: name(section, "default_bundle_name", defaults.default_bundle_name),
        default_all_bundles_name: name(
            section,
            "default_all_bundles_name",
            defaults.default_all_bundles_name,
        ),
        disable_spiffe_cert_validation: section.boolean("disable_spiffe_cert_validation").unwrap_or(false),
    };
    Some(enabled.then_some(sds))
}

fn check(section: &mut Section<'_>, key: &'static str, name: &str) {
    const REMEDY: &str = "write a word, as Envoys ask for it";
    if name.is_empty() {
        section.fault(key, "is empty", REMEDY);
    } else if name.len() > NAME_BYTES {
        section.fault(key, &format!("has more than {NAME_BYTES} bytes"), REMEDY);
    } else if name.starts_with("spiffe://") {
        section.fault(key, "would hide a secret that has a SPIFFE ID for its name", REMEDY);
    } else if name.contains(char::is_control) {
        section.fault(key, "has a control character", REMEDY);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(sds: &str) -> Result<Option<Sds>, String> {
        let text = format!(
            "trust_domain = \"example.org\"\ndata_dir = \"/var/lib/passant/agent\"\nserver_address = \"a:1\"\n\
             [bootstrap]\ninsecure_bootstrap = true\n[node_attestor]\nmethod = \"join_token\"\n[sds]\n{sds}\n"
        );
        Config::parse("agent.toml", &text).map(|config| config.sds).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_as_configured_and_may_trade_places() {
        let sds = "default_svid_name = \"mine\"\ndefault_bundle_name = \"ALL\"\n\
                   default_all_bundles_name = \"ROOTCA\"\ndisable_spiffe_cert_validation = true";
        let expected = Sds {
            default_svid_name: "mine".to_owned(),
            default_bundle_name: "ALL".to_owned(),
            default_all_bundles_name: "ROOTCA".to_owned(),
            disable_spiffe_cert_validation: true,
        };
        assert_eq!(parse(sds).unwrap(), Some(expected));
        assert_eq!(parse("").unwrap(), Some(Sds::default()));
        assert_eq!(parse("enabled = false").unwrap(), None);
    }

    #[test]
    fn names_that_cannot_be_told_apart_are_refused_with_a_remedy() {
        let check = |line: &str, words: &str| {
            let fault = parse(line).unwrap_err();
            assert!(fault.contains(words) && fault.contains("sds."), "{line}: {fault}");
        };
        check("default_svid_name = \"\"", "is empty");
        check("default_svid_name = \"ROOTCA\"", "names another secret too");
        check("default_bundle_name = \"ALL\"", "names another secret too");
        check("default_all_bundles_name = \"spiffe://example.org\"", "SPIFFE ID");
        check("default_bundle_name = \"a\\nb\"", "control character");
        check(&format!("default_svid_name = \"{}\"", "a".repeat(NAME_BYTES + 1)), "bytes");
        check("default_svid_nam = \"a\"", "default_svid_name");
        check("disable_spiffe_cert_validation = \"true\"", "true or false");
        assert!(parse(&format!("default_svid_name = \"{}\"", "a".repeat(NAME_BYTES))).is_ok());
    }
}
