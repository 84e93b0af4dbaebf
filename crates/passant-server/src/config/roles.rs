//! Which roles are configured, and is each of them sound?

use std::collections::BTreeSet;

use passant_core::limits::SELECTOR_KIND_BYTES;
use passant_core::spiffe_id::SpiffeId;
use passant_core::trust_domain::TrustDomain;

use super::raw::{Field, RawHolders, RawRole};
use super::{Check, suggest};
use crate::access::{Holders, Prefix, Role, SelectorTypes, Verb};

/// What covers all types of selectors.
const ANY: &str = "*";
/// Bytes of a role's name, which stands in each line of the record that its holders cause.
const NAME_BYTES: usize = 64;

/// Whether any role is granted to users of this machine.
pub(super) fn has_local_holders(roles: &[Role]) -> bool {
    roles.iter().any(|role| !role.granted_to.uids.is_empty() || !role.granted_to.gids.is_empty())
}

impl Check {
    /// All roles. Without a sound trust domain their prefixes cannot be checked, and are not.
    pub(super) fn roles(
        &mut self,
        field: Field<Vec<RawRole>>,
        trust_domain: Option<&TrustDomain>,
    ) -> Option<Vec<Role>> {
        let raw = self.optional("role", field)?.unwrap_or_default();
        let (count, mut names) = (raw.len(), BTreeSet::new());
        let mut roles = Vec::new();
        for (at, one) in raw.into_iter().enumerate() {
            roles.extend(self.role(&format!("role[{at}]."), one, trust_domain, &mut names));
        }
        (roles.len() == count).then_some(roles)
    }

    fn role(
        &mut self,
        section: &str,
        raw: RawRole,
        trust_domain: Option<&TrustDomain>,
        names: &mut BTreeSet<String>,
    ) -> Option<Role> {
        self.unknown(section, &raw.unknown, RawRole::KEYS);
        let name = self.role_name(&format!("{section}name"), raw.name, names);
        let verbs = self.verbs(&format!("{section}verbs"), raw.verbs);
        let divided =
            |by: fn(Verb) -> bool| verbs.as_ref().is_some_and(|verbs| verbs.iter().any(|verb| by(*verb)));
        let (by_spiffe_id, by_parent_id, by_selector_type) = (
            divided(|verb| verb.divided().by_spiffe_id),
            divided(|verb| verb.divided().by_parent_id),
            divided(|verb| verb.divided().by_selector_type),
        );
        let key = format!("{section}spiffe_id_prefixes");
        let spiffe_ids = self.prefixes(&key, raw.spiffe_id_prefixes, trust_domain, by_spiffe_id);
        let key = format!("{section}parent_id_prefixes");
        let parent_ids = self.prefixes(&key, raw.parent_id_prefixes, trust_domain, by_parent_id);
        let key = format!("{section}selector_types");
        let selector_types = self.selector_types(&key, raw.selector_types, by_selector_type);
        let granted_to = self.holders(&format!("{section}granted_to"), raw.granted_to, trust_domain);
        Some(Role {
            name: name?,
            verbs: verbs?,
            spiffe_ids: spiffe_ids?,
            parent_ids: parent_ids?,
            selector_types: selector_types?,
            granted_to: granted_to?,
        })
    }

    fn role_name(&mut self, key: &str, field: Field<String>, names: &mut BTreeSet<String>) -> Option<String> {
        let remedy = "write a name of letters, numbers, dashes and underscores, as in name = \"payments\"";
        let Some(name) = self.optional(key, field)? else { return self.fault(key, "is missing", remedy) };
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(is_legal) {
            return self.fault(key, format!("must be 1 to {NAME_BYTES} plain characters"), remedy);
        }
        if name == "admin" {
            return self.fault(
                key,
                "\"admin\" is what administrators have",
                "choose another name; see admin_ids",
            );
        }
        if !names.insert(name.clone()) {
            return self.fault(key, format!("\"{name}\" comes twice"), "give each role a name of its own");
        }
        Some(name)
    }

    fn verbs(&mut self, key: &str, field: Field<Vec<String>>) -> Option<BTreeSet<Verb>> {
        let names: Vec<&str> = Verb::ALL.iter().map(|verb| verb.name()).collect();
        let Some(texts) = self.optional(key, field)?.filter(|texts| !texts.is_empty()) else {
            return self.fault(key, "names no verb", format!("use some of {}", names.join(", ")));
        };
        let mut verbs = BTreeSet::new();
        let mut is_sound = true;
        for text in texts {
            if let Some(verb) = Verb::parse(&text) {
                verbs.insert(verb);
            } else {
                is_sound = false;
                self.note(key, format!("\"{text}\" is no verb"), suggest::suggest(&text, &names));
            }
        }
        is_sound.then_some(verbs)
    }

    /// Prefixes; some if they are `needed`.
    fn prefixes(
        &mut self,
        key: &str,
        field: Field<Vec<String>>,
        trust_domain: Option<&TrustDomain>,
        needed: bool,
    ) -> Option<Vec<Prefix>> {
        let all =
            trust_domain.map_or_else(|| "spiffe://example.org".to_owned(), |name| name.id().to_string());
        let texts = self.optional(key, field)?.unwrap_or_default();
        if texts.is_empty() && needed {
            let remedy =
                format!("name SPIFFE IDs that cover themselves and all below them; \"{all}\" covers all");
            return self.fault(key, "is needed by the verbs of this role", remedy);
        }
        let mut prefixes = Vec::new();
        let mut is_sound = true;
        for text in texts {
            match SpiffeId::parse(&text).map(Prefix::new) {
                Ok(prefix) if trust_domain.is_none_or(|name| prefix.is_of(name)) => prefixes.push(prefix),
                Ok(_) => {
                    is_sound = false;
                    self.note(
                        key,
                        format!("\"{text}\" is of another trust domain"),
                        format!("begin it with \"{all}\""),
                    );
                }
                Err(error) => {
                    is_sound = false;
                    let remedy =
                        format!("write a SPIFFE ID, without a slash at its end, as in \"{all}/payments\"");
                    self.note(key, format!("\"{text}\": {error}"), remedy);
                }
            }
        }
        is_sound.then_some(prefixes)
    }

    /// Types of selectors; some if they are `needed`.
    fn selector_types(
        &mut self,
        key: &str,
        field: Field<Vec<String>>,
        needed: bool,
    ) -> Option<SelectorTypes> {
        let remedy = "name types, as in [\"k8s\", \"unix\"], or [\"*\"] for all";
        let texts = self.optional(key, field)?.unwrap_or_default();
        if texts.is_empty() && needed {
            return self.fault(key, "is needed by the verbs of this role", remedy);
        }
        if texts == [ANY] {
            return Some(SelectorTypes::Any);
        }
        let is_type =
            |text: &str| !text.is_empty() && text.len() <= SELECTOR_KIND_BYTES && !text.contains([':', '*']);
        if let Some(bad) = texts.iter().find(|text| !is_type(text)) {
            return self.fault(key, format!("\"{bad}\" is no type of selectors"), remedy);
        }
        Some(SelectorTypes::These(texts.into_iter().collect()))
    }

    fn holders(
        &mut self,
        section: &str,
        field: Field<RawHolders>,
        trust_domain: Option<&TrustDomain>,
    ) -> Option<Holders> {
        let raw = self.optional(section, field)?.unwrap_or_default();
        self.unknown(&format!("{section}."), &raw.unknown, RawHolders::KEYS);
        let spiffe_ids = self.holding_ids(&format!("{section}.spiffe_ids"), raw.spiffe_ids, trust_domain);
        let uids = self.optional(&format!("{section}.uids"), raw.uids);
        let gids = self.optional(&format!("{section}.gids"), raw.gids);
        let holders = Holders {
            spiffe_ids: spiffe_ids?,
            uids: uids?.unwrap_or_default().into_iter().collect(),
            gids: gids?.unwrap_or_default().into_iter().collect(),
        };
        if holders == Holders::default() {
            let remedy = "grant the role to spiffe_ids, uids or gids, or take it out";
            return self.fault(section, "names nobody", remedy);
        }
        Some(holders)
    }

    fn holding_ids(
        &mut self,
        key: &str,
        field: Field<Vec<String>>,
        trust_domain: Option<&TrustDomain>,
    ) -> Option<BTreeSet<SpiffeId>> {
        let mut ids = BTreeSet::new();
        let mut is_sound = true;
        for text in self.optional(key, field)?.unwrap_or_default() {
            let remedy = "write the SPIFFE IDs of workloads, as in \"spiffe://example.org/ci\"";
            match SpiffeId::parse(&text) {
                Ok(id) if id.is_trust_domain_id() => {
                    is_sound = false;
                    self.note(key, format!("\"{text}\" has no path"), remedy);
                }
                Ok(id) if id.is_reserved() && trust_domain.is_none_or(|name| id.is_member_of(name)) => {
                    is_sound = false;
                    self.note(key, format!("\"{text}\" is no workload's"), remedy);
                }
                Ok(id) => {
                    ids.insert(id);
                }
                Err(error) => {
                    is_sound = false;
                    self.note(key, format!("\"{text}\": {error}"), remedy);
                }
            }
        }
        is_sound.then_some(ids)
    }
}

#[cfg(test)]
mod tests {
    use crate::access::{SelectorTypes, Verb};
    use crate::config::Config;

    const LEAST: &str = "trust_domain = \"example.org\"\nstore = \"memory\"\n";
    const SOUND: &str = "[[role]]\nname = \"payments\"\nverbs = [\"entry.read\", \"entry.update\"]\n\
                         spiffe_id_prefixes = [\"spiffe://example.org/payments\"]\n\
                         parent_id_prefixes = [\"spiffe://example.org\"]\nselector_types = [\"k8s\"]\n\
                         granted_to = { spiffe_ids = [\"spiffe://elsewhere.org/ci\"], uids = [1001], gids = [50] }\n";

    fn faults(text: &str) -> Vec<(String, String)> {
        let error = Config::parse(&format!("{LEAST}{text}"), "server.toml").expect_err(text);
        error.faults().iter().map(|fault| (fault.key.clone(), fault.remedy.clone())).collect()
    }

    #[test]
    fn a_role_is_read_as_it_is_written() {
        let config = Config::parse(&format!("{LEAST}{SOUND}"), "x").unwrap();
        let [role] = &config.roles[..] else { panic!("{:?}", config.roles) };
        assert_eq!((role.name.as_str(), role.verbs.len()), ("payments", 2));
        assert!(role.verbs.contains(&Verb::EntryUpdate));
        assert_eq!(role.spiffe_ids[0].id().as_str(), "spiffe://example.org/payments");
        assert_eq!(role.selector_types, SelectorTypes::These(["k8s".to_owned()].into()));
        assert_eq!((role.granted_to.uids.len(), role.granted_to.gids.len()), (1, 1));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let all = SOUND.replace("[\"k8s\"]", "[\"*\"]");
        let config = Config::parse(&format!("{LEAST}{all}"), "x").unwrap();
        assert_eq!(config.roles[0].selector_types, SelectorTypes::Any);
    }

    #[test]
    fn the_example_role_is_sound() {
        let text = include_str!("../../../../config/server.toml");
        let lines = text.lines().skip_while(|line| *line != "# [[role]]").take_while(|line| !line.is_empty());
        let example: String = lines.map(|line| format!("{}\n", line.strip_prefix("# ").unwrap())).collect();
        assert_eq!(Config::parse(&format!("{LEAST}{example}"), "x").unwrap().roles.len(), 1, "{example}");
    }

    #[test]
    fn every_fault_of_a_role_is_named_with_its_remedy() {
        for (from, to, key, remedy) in [
            ("name = \"payments\"", "", "role[0].name", "payments"),
            ("\"payments\"\n", "\"pay ments\"\n", "role[0].name", "letters"),
            ("\"payments\"\n", "\"admin\"\n", "role[0].name", "admin_ids"),
            ("\"entry.update\"", "\"entry.updat\"", "role[0].verbs", "entry.update"),
            ("[\"entry.read\", \"entry.update\"]", "[]", "role[0].verbs", "authority.rotate"),
            ("spiffe_id_prefixes", "spiffe_id_prefix", "role[0].spiffe_id_prefix", "spiffe_id_prefixes"),
            ("org/payments\"]", "org/payments/\"]", "role[0].spiffe_id_prefixes", "without a slash"),
            (
                "example.org/payments",
                "other.org/payments",
                "role[0].spiffe_id_prefixes",
                "spiffe://example.org",
            ),
            ("[\"spiffe://example.org\"]", "[]", "role[0].parent_id_prefixes", "covers all"),
            ("[\"k8s\"]", "[\"k8s:ns\"]", "role[0].selector_types", "for all"),
            ("[\"k8s\"]", "[\"k8s\", \"*\"]", "role[0].selector_types", "for all"),
            ("selector_types = [\"k8s\"]\n", "", "role[0].selector_types", "for all"),
            ("uids = [1001]", "uids = [-1]", "role[0].granted_to.uids", "config/server.toml"),
            ("uids =", "users =", "role[0].granted_to.users", "uids"),
            ("elsewhere.org/ci", "elsewhere.org", "role[0].granted_to.spiffe_ids", "workloads"),
            ("elsewhere.org/ci", "example.org/spire/agent/x/1", "role[0].granted_to.spiffe_ids", "workloads"),
        ] {
            let text = SOUND.replacen(from, to, 1);
            assert_ne!(text, SOUND, "{from}");
            let found = faults(&text);
            let named = found.iter().any(|(at, what)| at == key && what.contains(remedy));
            assert!(named, "{to}: {key} with \"{remedy}\" is not in {found:?}");
        }
        let named = include_str!("../../../../config/server.toml");
        assert!(
            Verb::ALL.iter().all(|verb| named.contains(verb.name())),
            "the example file names every verb"
        );
        let nobody = SOUND.split("granted_to").next().unwrap();
        assert_eq!(faults(nobody)[0].0, "role[0].granted_to");
        assert_eq!(faults(&format!("{SOUND}{SOUND}"))[0].0, "role[1].name");
    }

    #[test]
    fn verbs_need_only_what_divides_their_targets() {
        let role = |verbs: &str| {
            format!("{LEAST}[[role]]\nname = \"a\"\nverbs = {verbs}\ngranted_to = {{ uids = [7] }}\n")
        };
        let undivided = role("[\"authority.read\", \"bundle.read\"]");
        assert!(Config::parse(&undivided, "x").is_ok());
        let keys = |verbs: &str| -> Vec<String> {
            let error = Config::parse(&role(verbs), "x").unwrap_err();
            error.faults().iter().map(|fault| fault.key.trim_start_matches("role[0].").to_owned()).collect()
        };
        assert_eq!(keys("[\"agent.ban\"]"), ["parent_id_prefixes"]);
        assert_eq!(keys("[\"svid.mint\"]"), ["spiffe_id_prefixes"]);
        assert_eq!(keys("[\"token.create\"]"), ["spiffe_id_prefixes", "parent_id_prefixes"]);
        assert_eq!(keys("[\"entry.read\"]").len(), 3);
    }

    #[test]
    fn the_operator_socket_opens_to_others_only_for_holders_of_roles() {
        let parse = |text: String| Config::parse(&text, "x");
        let mode = |socket: &str| parse(format!("{LEAST}{SOUND}{socket}")).map(|config| config.socket.mode);
        assert_eq!(mode("").unwrap(), 0o666);
        assert_eq!(mode("[socket]\nmode = \"0666\"\n").unwrap(), 0o666);
        let closed = parse(format!("{LEAST}{SOUND}[socket]\nmode = \"0600\"\n")).unwrap();
        assert_eq!((closed.socket.mode, closed.warnings.len()), (0o600, 1));
        let remote = SOUND.replace(", uids = [1001], gids = [50]", "");
        let config = parse(format!("{LEAST}{remote}")).unwrap();
        assert_eq!(config.socket.mode, 0o600);
        assert!(parse(format!("{LEAST}{remote}[socket]\nmode = \"0666\"\n")).is_err());
    }
}
