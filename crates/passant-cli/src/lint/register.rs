//! What do the rules look at? Entries with their texts as numbers, and what is known besides.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use passant_core::UnixTime;
use passant_proto::types;

/// A selector, SPIFFE ID or other text of the register: equal texts have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(usize);

/// What is to be looked at.
pub(crate) struct Register {
    /// In the order of their ids.
    pub(super) entries: Vec<Registered>,
    /// The agents of attested nodes, when they are known.
    pub(super) agents: Option<Vec<Agent>>,
    /// The foreign trust domains whose bundles are there, when they are known.
    pub(super) foreign: Option<BTreeSet<String>>,
    /// The foreign trust domains whose bundles are fetched, as far as that is known.
    pub(super) fetched: BTreeSet<String>,
    names: Names,
    now: UnixTime,
    ended: usize,
    /// What the file says of entries, and no entry has here.
    skipped: BTreeSet<String>,
}

/// An entry, as far as rules ask.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub(super) id: String,
    /// The line of the file on which it begins.
    pub(super) line: Option<usize>,
    pub(super) standing: Standing,
    pub(super) spiffe_id: Name,
    pub(super) parent_id: Name,
    /// Sorted, and each once.
    pub(super) selectors: Vec<Name>,
    pub(super) x509_svid_ttl: i32,
    pub(super) jwt_svid_ttl: i32,
    pub(super) federates_with: Vec<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) hint: String,
    pub(super) admin: bool,
    pub(super) downstream: bool,
}

/// Whom an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Standing {
    /// Workloads.
    Workload,
    /// A secret store: its selectors say where to put the SVID.
    Stored,
    /// Nodes with its selectors; its SPIFFE ID is another name for them.
    NodeAlias,
    /// The one node that spent a join token.
    TokenAlias,
}

/// An agent.
#[derive(Clone, Debug)]
pub(super) struct Agent {
    pub(super) id: Name,
    /// Sorted, and each once.
    pub(super) selectors: Vec<Name>,
}

#[derive(Default)]
struct Names {
    texts: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, Name>,
}

impl Register {
    /// An empty register. Entries that have ended by `now` are left out of it.
    pub(crate) fn new(now: UnixTime) -> Self {
        let names = Names::default();
        Self {
            entries: Vec::new(),
            agents: None,
            foreign: None,
            fetched: BTreeSet::new(),
            names,
            now,
            ended: 0,
            skipped: BTreeSet::new(),
        }
    }

    /// Takes in an entry, with its line in a file.
    pub(crate) fn add(&mut self, entry: types::Entry, line: Option<usize>) {
        if entry.expires_at != 0 && entry.expires_at <= self.now.secs() {
            self.ended += 1;
            return;
        }
        let spiffe_id = self.id(entry.spiffe_id.as_ref());
        let parent_id = self.id(entry.parent_id.as_ref());
        let standing = self.standing(&entry, parent_id);
        let selectors = self.selectors(&entry.selectors);
        self.entries.push(Registered {
            id: entry.id,
            line,
            standing,
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            federates_with: entry.federates_with,
            dns_names: entry.dns_names,
            hint: entry.hint,
            admin: entry.admin,
            downstream: entry.downstream,
        });
    }

    /// Says which fields of the file were not taken in.
    pub(crate) fn skip(&mut self, fields: Vec<String>) {
        self.skipped.extend(fields);
    }

    /// Says which agents there are.
    pub(crate) fn know_agents(&mut self, agents: Vec<types::Agent>) {
        let known = agents.into_iter().map(|agent| Agent {
            id: self.id(agent.id.as_ref()),
            selectors: self.selectors(&agent.selectors),
        });
        self.agents = Some(known.collect());
    }

    /// Says the bundles of which foreign trust domains there are.
    pub(crate) fn know_bundles(&mut self, trust_domains: BTreeSet<String>) {
        self.foreign = Some(trust_domains);
    }

    /// Says with which foreign trust domains there are federation relationships.
    pub(crate) fn know_relationships(&mut self, trust_domains: impl IntoIterator<Item = String>) {
        self.fetched.extend(trust_domains);
    }

    /// Puts the entries in order: findings come alike whatever the order of the file.
    pub(crate) fn sort(&mut self) {
        self.entries.sort_by(|one, other| (&one.id, one.line).cmp(&(&other.id, other.line)));
    }

    /// How many entries are looked at.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What cannot be looked for, since it is not known.
    pub(super) fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        if self.agents.is_none() {
            unknown.push(
                "whether the agents exist that entries stand below: name them with --agents".to_owned(),
            );
        }
        if self.foreign.is_none() {
            unknown.push("whether foreign bundles are there and in use: name them with --bundles".to_owned());
        }
        if self.ended > 0 {
            unknown.push(format!("{} entries that have ended", self.ended));
        }
        if !self.skipped.is_empty() {
            let fields: Vec<&str> = self.skipped.iter().map(String::as_str).collect();
            unknown.push(format!("fields that no entry has here: {}", fields.join(", ")));
        }
        unknown
    }

    /// The text of a name.
    pub(super) fn text(&self, name: Name) -> &str {
        &self.names.texts[name.0]
    }

    /// The texts of selectors, in the order of the alphabet, for people.
    pub(super) fn texts(&self, names: &[Name]) -> String {
        let mut texts: Vec<&str> = names.iter().map(|name| self.text(*name)).collect();
        texts.sort_unstable();
        texts.join(", ")
    }

    /// What people know an entry by.
    pub(super) fn called(&self, at: usize) -> String {
        format!("entry {}", self.label(at))
    }

    /// Its id; in a file of entries that have none yet, its line.
    pub(super) fn label(&self, at: usize) -> String {
        let entry = &self.entries[at];
        match (entry.id.as_str(), entry.line) {
            ("", Some(line)) => format!("on line {line}"),
            (id, _) => id.to_owned(),
        }
    }

    /// What tells an entry from all others, in this file and in the next one: its id, else its parent and selectors.
    pub(super) fn identity(&self, at: usize) -> String {
        let entry = &self.entries[at];
        match entry.id.as_str() {
            "" => format!("below {} with {}", self.text(entry.parent_id), self.texts(&entry.selectors)),
            id => id.to_owned(),
        }
    }

    /// The id, SPIFFE ID and line of an entry.
    pub(crate) fn named(&self, at: usize) -> (&str, &str, Option<usize>) {
        let entry = &self.entries[at];
        (&entry.id, self.text(entry.spiffe_id), entry.line)
    }

    fn id(&mut self, id: Option<&types::Spiffeid>) -> Name {
        self.names.name(&crate::json::spiffe_id_text(id))
    }

    fn selectors(&mut self, wire: &[types::Selector]) -> Vec<Name> {
        let mut selectors: Vec<Name> =
            wire.iter().map(|s| self.names.name(&format!("{}:{}", s.r#type, s.value))).collect();
        selectors.sort_unstable();
        selectors.dedup();
        selectors
    }

    fn standing(&self, entry: &types::Entry, parent_id: Name) -> Standing {
        let parent = entry.parent_id.as_ref();
        if parent.is_some_and(|parent| parent.path == "/spire/server") {
            return Standing::NodeAlias;
        }
        if let [only] = &entry.selectors[..]
            && only.r#type == "spiffe_id"
            && only.value == self.text(parent_id)
        {
            return Standing::TokenAlias;
        }
        if entry.store_svid { Standing::Stored } else { Standing::Workload }
    }
}

impl Registered {
    pub(super) fn is_workload(&self) -> bool {
        self.standing == Standing::Workload
    }

    /// Whether it says which nodes its SPIFFE ID stands for.
    pub(super) fn is_alias(&self) -> bool {
        matches!(self.standing, Standing::NodeAlias | Standing::TokenAlias)
    }
}

impl Names {
    fn name(&mut self, text: &str) -> Name {
        if let Some(name) = self.numbers.get(text) {
            return *name;
        }
        let name = Name(self.texts.len());
        let text: Arc<str> = Arc::from(text);
        self.texts.push(Arc::clone(&text));
        self.numbers.insert(text, name);
        name
    }
}
