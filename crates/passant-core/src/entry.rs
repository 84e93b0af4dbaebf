//! What does a registration entry say, and when is one valid?

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{
    DNS_NAMES, ENTRY_FEDERATES_WITH, ENTRY_ID_BYTES, ENTRY_SELECTORS, HINT_BYTES, SVID_TTL_MAX,
};
use crate::selector::Selectors;
use crate::spiffe_id::SpiffeId;
use crate::text::{self, ShortText};
use crate::time::UnixTime;
use crate::trust_domain::TrustDomain;

/// The id of a registration entry: 1 to 255 bytes of `A-Z a-z 0-9 - . _`, chosen by the server or by the caller.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(ShortText);

/// A registration entry: which SPIFFE ID a workload with these selectors gets on the nodes below `parent_id`.
///
/// Made only by [`EntryDraft::register`], which checks all of it; the fields are open for reading, and a changed
/// entry goes through `register` again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its id, unique in the trust domain.
    pub id: EntryId,
    /// The SPIFFE ID that it issues.
    pub spiffe_id: SpiffeId,
    /// The agent, node alias or workload below which it applies; `/spire/server` makes it a node alias.
    pub parent_id: SpiffeId,
    /// All of these must be attested. Never empty.
    pub selectors: Selectors,
    /// Lifetime of its X509-SVIDs; the server's default when absent.
    pub x509_svid_ttl: Option<Duration>,
    /// Lifetime of its JWT-SVIDs; the server's default when absent.
    pub jwt_svid_ttl: Option<Duration>,
    /// Foreign trust domains whose bundles its workloads receive.
    pub federates_with: BTreeSet<TrustDomain>,
    /// Whether its X509-SVID may call the server API as an administrator.
    pub admin: bool,
    /// Whether its X509-SVID may ask for an intermediate authority.
    pub downstream: bool,
    /// Its end: nothing is minted for it from this second on, and no SVID of it is valid later.
    pub expires_at: Option<UnixTime>,
    /// DNS names put in its X509-SVIDs, in this order; the first is also the common name.
    pub dns_names: Vec<String>,
    /// Whether its SVIDs are for a secret store; such an entry is never served on the Workload API.
    pub store_svid: bool,
    /// A word that tells a workload with several identities which is which; may be empty.
    pub hint: String,
    /// Whether its JWT-SVIDs carry a `jti` and are never cached.
    pub jwt_svid_include_jti: bool,
    /// Whether agents mint its X509-SVID only when a workload asks.
    pub disable_x509_svid_prefetch: bool,
    /// What stands beside SPIRE's fields.
    #[serde(default, skip_serializing_if = "EntryOptions::is_default")]
    pub options: EntryOptions,
    /// Grows with each change of the entry. Deleted and made again, it gets one that no agent has seen for it.
    pub revision: u64,
    /// When it was first registered.
    pub created_at: UnixTime,
}

/// What a caller asks to be registered: an [`Entry`] not yet checked, without what the server decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryDraft {
    /// The id that the caller chose, if any.
    pub id: Option<EntryId>,
    /// See [`Entry::spiffe_id`].
    pub spiffe_id: SpiffeId,
    /// See [`Entry::parent_id`].
    pub parent_id: SpiffeId,
    /// See [`Entry::selectors`].
    pub selectors: Selectors,
    /// See [`Entry::x509_svid_ttl`].
    pub x509_svid_ttl: Option<Duration>,
    /// See [`Entry::jwt_svid_ttl`].
    pub jwt_svid_ttl: Option<Duration>,
    /// See [`Entry::federates_with`].
    pub federates_with: BTreeSet<TrustDomain>,
    /// See [`Entry::admin`].
    pub admin: bool,
    /// See [`Entry::downstream`].
    pub downstream: bool,
    /// See [`Entry::expires_at`].
    pub expires_at: Option<UnixTime>,
    /// See [`Entry::dns_names`].
    pub dns_names: Vec<String>,
    /// See [`Entry::store_svid`].
    pub store_svid: bool,
    /// See [`Entry::hint`].
    pub hint: String,
    /// See [`Entry::jwt_svid_include_jti`].
    pub jwt_svid_include_jti: bool,
    /// See [`Entry::disable_x509_svid_prefetch`].
    pub disable_x509_svid_prefetch: bool,
    /// See [`Entry::options`].
    pub options: EntryOptions,
}

/// What Passant knows of an entry beyond SPIRE's fields. By default an entry behaves as with SPIRE.
///
/// When it is minted is no option: that is [`Entry::disable_x509_svid_prefetch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryOptions {
    /// For whom a key is made.
    #[serde(default)]
    pub key_scope: KeyScope,
    /// Whether the entry is kept from agents that cannot honour all of this, SPIRE's among them.
    #[serde(default)]
    pub strict: bool,
}

/// For whom a key, and the X509-SVID with it, is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyScope {
    /// One for all processes of a node that match, as with SPIRE.
    #[default]
    Node,
    /// One for each process, which its streams share until it exits.
    Instance,
}

/// What an agent is told of an entry: enough to match workloads and to ask for SVIDs by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizedEntry {
    /// See [`Entry::id`].
    pub id: EntryId,
    /// See [`Entry::spiffe_id`].
    pub spiffe_id: SpiffeId,
    /// See [`Entry::selectors`].
    pub selectors: Selectors,
    /// See [`Entry::federates_with`].
    pub federates_with: BTreeSet<TrustDomain>,
    /// See [`Entry::admin`].
    pub admin: bool,
    /// See [`Entry::downstream`].
    pub downstream: bool,
    /// See [`Entry::store_svid`].
    pub store_svid: bool,
    /// See [`Entry::hint`].
    pub hint: String,
    /// See [`Entry::jwt_svid_include_jti`].
    pub jwt_svid_include_jti: bool,
    /// See [`Entry::disable_x509_svid_prefetch`].
    pub disable_x509_svid_prefetch: bool,
    /// See [`Entry::options`].
    pub options: EntryOptions,
    /// See [`Entry::revision`].
    pub revision: u64,
    /// See [`Entry::created_at`].
    pub created_at: UnixTime,
}

/// Why an entry cannot be registered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// An id of another form.
    #[error(
        "invalid entry ID: 1 to {ENTRY_ID_BYTES} characters of letters, digits, '-', '.' and '_' are allowed"
    )]
    BadId,
    /// The SPIFFE ID names a trust domain.
    #[error("invalid SPIFFE ID: path cannot be empty")]
    SpiffeIdWithoutPath,
    /// The SPIFFE ID lies elsewhere.
    #[error("invalid SPIFFE ID: \"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    ForeignSpiffeId {
        /// The ID that was asked for.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// The SPIFFE ID lies where servers' and agents' own IDs do.
    #[error("invalid SPIFFE ID: \"{0}\" lies below /spire, which is reserved for servers and agents")]
    ReservedSpiffeId(SpiffeId),
    /// The parent ID names a trust domain.
    #[error("invalid parent ID: path cannot be empty")]
    ParentIdWithoutPath,
    /// The parent ID lies elsewhere.
    #[error("invalid parent ID: \"{id}\" is not a member of trust domain \"{trust_domain}\"")]
    ForeignParentId {
        /// The parent ID that was asked for.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// It would match every workload, or none.
    #[error("selector list is empty: name at least one, for example unix:uid:1000")]
    NoSelectors,
    /// More than `limits.rs` allows.
    #[error("too many {what}: at most {most} are allowed")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// The bound.
        most: usize,
    },
    /// A DNS name of another form.
    #[error(
        "invalid DNS name \"{0}\": letters, digits and inner dashes between dots, optionally one leading \"*.\""
    )]
    BadDnsName(String),
    /// A hint that clients would not keep.
    #[error("hint is too long, max length is {HINT_BYTES} characters")]
    HintTooLong,
    /// An entry cannot federate with the domain it lies in.
    #[error("invalid federated trust domain: \"{0}\" is this server's own trust domain")]
    FederatesWithItself(TrustDomain),
    /// A lifetime over the bound.
    #[error("{which} is too long: at most {} seconds are allowed", SVID_TTL_MAX.as_secs())]
    TtlTooLong {
        /// Which lifetime.
        which: &'static str,
    },
    /// A stored SVID is never on demand.
    #[error("store_svid cannot be combined with disable_x509_svid_prefetch")]
    StoredOnDemand,
    /// The selectors of a stored SVID name one store.
    #[error("selector types must be the same when store_svid is set")]
    MixedStoreSelectors,
}

impl EntryId {
    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`EntryError::BadId`].
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if (1..=ENTRY_ID_BYTES).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(ShortText::new(text)))
        } else {
            Err(EntryError::BadId)
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl EntryDraft {
    /// A draft with the three things every entry has and all else left at its default.
    pub fn new(spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: Selectors) -> Self {
        Self {
            id: None,
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: None,
            jwt_svid_ttl: None,
            federates_with: BTreeSet::new(),
            admin: false,
            downstream: false,
            expires_at: None,
            dns_names: Vec::new(),
            store_svid: false,
            hint: String::new(),
            jwt_svid_include_jti: false,
            disable_x509_svid_prefetch: false,
            options: EntryOptions::default(),
        }
    }

    /// Checks the draft against `trust_domain` and makes it an entry.
    ///
    /// Whether the bundles of `federates_with` are known is for the caller to check: that is state.
    ///
    /// # Errors
    /// The first fault found.
    pub fn register(
        self,
        trust_domain: &TrustDomain,
        id: EntryId,
        revision: u64,
        created_at: UnixTime,
    ) -> Result<Entry, EntryError> {
        self.check(trust_domain)?;
        Ok(Entry {
            id,
            spiffe_id: self.spiffe_id,
            parent_id: self.parent_id,
            selectors: self.selectors,
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: self.federates_with,
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.expires_at,
            dns_names: self.dns_names,
            store_svid: self.store_svid,
            hint: self.hint,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            options: self.options,
            revision,
            created_at,
        })
    }

    fn check(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        self.check_ids(trust_domain)?;
        if self.selectors.is_empty() {
            return Err(EntryError::NoSelectors);
        }
        at_most("selectors", self.selectors.len(), ENTRY_SELECTORS)?;
        at_most("DNS names", self.dns_names.len(), DNS_NAMES)?;
        at_most("federated trust domains", self.federates_with.len(), ENTRY_FEDERATES_WITH)?;
        if let Some(bad) = self.dns_names.iter().find(|name| !is_dns_name(name)) {
            return Err(EntryError::BadDnsName(bad.clone()));
        }
        if self.hint.len() > HINT_BYTES {
            return Err(EntryError::HintTooLong);
        }
        if self.federates_with.contains(trust_domain) {
            return Err(EntryError::FederatesWithItself(trust_domain.clone()));
        }
        if self.x509_svid_ttl.is_some_and(|ttl| ttl > SVID_TTL_MAX) {
            return Err(EntryError::TtlTooLong { which: "X509-SVID TTL" });
        }
        if self.jwt_svid_ttl.is_some_and(|ttl| ttl > SVID_TTL_MAX) {
            return Err(EntryError::TtlTooLong { which: "JWT-SVID TTL" });
        }
        self.check_store()
    }

    fn check_ids(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        if !self.spiffe_id.is_member_of(trust_domain) {
            return Err(EntryError::ForeignSpiffeId {
                id: self.spiffe_id.clone(),
                trust_domain: trust_domain.clone(),
            });
        }
        if self.spiffe_id.is_trust_domain_id() {
            return Err(EntryError::SpiffeIdWithoutPath);
        }
        if self.spiffe_id.is_reserved() {
            return Err(EntryError::ReservedSpiffeId(self.spiffe_id.clone()));
        }
        if !self.parent_id.is_member_of(trust_domain) {
            return Err(EntryError::ForeignParentId {
                id: self.parent_id.clone(),
                trust_domain: trust_domain.clone(),
            });
        }
        if self.parent_id.is_trust_domain_id() {
            return Err(EntryError::ParentIdWithoutPath);
        }
        Ok(())
    }

    fn check_store(&self) -> Result<(), EntryError> {
        if !self.store_svid {
            return Ok(());
        }
        if self.disable_x509_svid_prefetch {
            return Err(EntryError::StoredOnDemand);
        }
        let kinds: BTreeSet<&str> = self.selectors.iter().map(|selector| selector.kind()).collect();
        if kinds.len() > 1 { Err(EntryError::MixedStoreSelectors) } else { Ok(()) }
    }
}

fn at_most(what: &'static str, have: usize, most: usize) -> Result<(), EntryError> {
    if have > most { Err(EntryError::TooMany { what, most }) } else { Ok(()) }
}

impl EntryOptions {
    /// Whether nothing is said beyond SPIRE's fields.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Entry {
    /// Whether its end has come: true from the very second of [`Entry::expires_at`].
    pub fn has_ended(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }

    /// Whether it is a node alias: its parent is the server, its selectors are a node's.
    pub fn is_node_alias(&self) -> bool {
        is_server(&self.parent_id)
    }

    /// The draft that would register it again, for a change of some of its fields.
    pub fn to_draft(&self) -> EntryDraft {
        EntryDraft {
            id: Some(self.id.clone()),
            spiffe_id: self.spiffe_id.clone(),
            parent_id: self.parent_id.clone(),
            selectors: self.selectors.clone(),
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: self.federates_with.clone(),
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.expires_at,
            dns_names: self.dns_names.clone(),
            store_svid: self.store_svid,
            hint: self.hint.clone(),
            jwt_svid_include_jti: self.jwt_svid_include_jti,
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            options: self.options,
        }
    }
}

/// Whether `id` is that of servers: what stands below it are node aliases.
pub(crate) fn is_server(id: &SpiffeId) -> bool {
    id.path() == "/spire/server"
}

/// Whether `name` can stand as a DNS SAN: labels of letters, digits and inner dashes, optionally below one wildcard.
///
/// Internationalized names are taken in their ASCII form only.
pub fn is_dns_name(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (1..=253).contains(&name.len()) && host.split('.').all(label_ok)
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

text::serde_as_text!(EntryId, "an entry ID");

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::Selector;

    fn td() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn draft() -> EntryDraft {
        let selectors = [Selector::parse("unix:uid:1000").unwrap()].into_iter().collect();
        EntryDraft::new(td().join("/web").unwrap(), td().join("/spire/agent/x/y").unwrap(), selectors)
    }

    fn register(draft: EntryDraft) -> Result<Entry, EntryError> {
        draft.register(&td(), EntryId::parse("e1").unwrap(), 0, UnixTime::from_secs(0))
    }

    fn refused(change: impl FnOnce(&mut EntryDraft)) -> String {
        let mut draft = draft();
        change(&mut draft);
        register(draft).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_entry_is_accepted_and_survives_a_round_trip() {
        let entry = register(draft()).unwrap();
        assert_eq!(register(entry.to_draft()).unwrap(), entry);
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }

    #[test]
    fn each_fault_is_named() {
        let other = TrustDomain::parse("other.test").unwrap();
        assert!(
            refused(|d| d.spiffe_id = other.join("/a").unwrap()).contains("not a member of trust domain")
        );
        assert!(refused(|d| d.spiffe_id = td().id()).contains("path cannot be empty"));
        assert!(refused(|d| d.spiffe_id = td().server_id()).contains("reserved"));
        assert!(refused(|d| d.spiffe_id = td().join("/spire/agent/x/y").unwrap()).contains("reserved"));
        assert!(refused(|d| d.parent_id = other.join("/a").unwrap()).contains("invalid parent ID"));
        assert!(refused(|d| d.parent_id = td().id()).contains("invalid parent ID"));
        assert!(refused(|d| d.selectors = Selectors::new()).contains("selector list is empty"));
        assert!(refused(|d| d.dns_names = vec!["a..b".into()]).contains("invalid DNS name \"a..b\""));
        assert!(refused(|d| d.hint = "x".repeat(HINT_BYTES + 1)).contains("hint is too long"));
        assert!(refused(|d| d.federates_with.extend([td()])).contains("own trust domain"));
        assert!(
            refused(|d| d.x509_svid_ttl = Some(SVID_TTL_MAX + Duration::from_secs(1)))
                .contains("X509-SVID TTL")
        );
        assert!(
            refused(|d| d.jwt_svid_ttl = Some(SVID_TTL_MAX + Duration::from_secs(1)))
                .contains("JWT-SVID TTL")
        );
        assert!(
            refused(|d| (d.store_svid, d.disable_x509_svid_prefetch) = (true, true)).contains("store_svid")
        );
        assert!(
            refused(|d| {
                d.store_svid = true;
                d.selectors.insert(Selector::parse("disk:a").unwrap());
            })
            .contains("selector types")
        );
    }

    #[test]
    fn an_entry_ends_at_its_very_second() {
        let mut draft = draft();
        draft.expires_at = Some(UnixTime::from_secs(100));
        let entry = register(draft).unwrap();
        assert!(!entry.has_ended(UnixTime::from_secs(99)));
        assert!(entry.has_ended(UnixTime::from_secs(100)));
    }

    #[test]
    fn entry_ids_are_bounded() {
        assert!(EntryId::parse(&"a".repeat(255)).is_ok());
        for bad in ["", "a b", "a/b", "\u{e9}", &"a".repeat(256)] {
            assert_eq!(EntryId::parse(bad), Err(EntryError::BadId), "{bad}");
        }
    }

    #[test]
    fn dns_names_are_checked() {
        for good in ["a", "web.example.org", "*.example.org", "xn--bcher-kva.example", "1.2"] {
            assert!(is_dns_name(good), "{good}");
        }
        let long = format!("{}.example", "a".repeat(64));
        for bad in [
            "",
            "*",
            "*.*.example",
            "a.*.example",
            "-a",
            "a-",
            "a..b",
            "a.",
            ".a",
            "a_b",
            "a b",
            "b\u{fc}cher",
            &long,
        ] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }
}
