//! Why has a workload no identity? The words in which server and agent say so, and how near an entry comes to matching.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::entry::EntryId;
use crate::selector::{Selector, Selectors};
use crate::spiffe_id::SpiffeId;

/// What can stand in the way of an identity, or limit it. In the order of how much it tells: what makes the question
/// itself moot comes before what is wrong with server and node, that before what is wrong with the entry, and that before a
/// bare "nothing matches". What may follow from something else comes after it: a node's SVID expires where no authority signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// No such process runs.
    NoSuchProcess,
    /// The agent cannot see into the process's pid namespace.
    ForeignPidNamespace,
    /// `/proc` tells nothing of the process.
    ProcessUnreadable,
    /// The SPIFFE ID is of another trust domain.
    OtherTrustDomain,
    /// The SPIFFE ID is one that no entry may grant.
    ReservedId,
    /// The node is banned.
    NodeBanned,
    /// The server does not know the agent.
    NodeUnknown,
    /// An operator stopped it: the entry, all that the agent has, or the process.
    Stopped,
    /// The server's store takes no changes.
    StoreStopped,
    /// The decision record takes nothing, so that nothing is signed.
    RecordStopped,
    /// No authority signs.
    NoActiveAuthority,
    /// The authority that signs has ended.
    AuthorityEnded,
    /// The agent has no SVID of its own.
    NodeNotAttested,
    /// The agent's own SVID has expired.
    NodeSvidExpired,
    /// The agent has learned nothing from its server yet.
    NeverSynced,
    /// The agent has not heard of its server for too long to say that nothing matches.
    SyncFailing,
    /// No attestor found out anything.
    AttestationFailed,
    /// No entry grants the SPIFFE ID.
    NoEntry,
    /// The entry has ended.
    EntryEnded,
    /// The entry is for a secret store, and not for the Workload API.
    ForSecretStore,
    /// The entry names nodes, not workloads.
    NodeAlias,
    /// An entry above has ended.
    ParentEnded,
    /// There is nothing of the parent ID.
    ParentUnknown,
    /// The parents lead in a circle, and to no node.
    ParentCycle,
    /// The node lacks selectors of the alias that the entry stands below.
    AliasSelectorsMissing,
    /// The entry belongs to another node.
    OfAnotherNode,
    /// The agent has not asked since the entry was made.
    NotYetSynced,
    /// The server has given the agent no entry for the SPIFFE ID.
    NotOnNode,
    /// There is no entry at all for the node.
    NodeWithoutEntries,
    /// No attestor of the agent finds selectors of the kind that the entry asks for.
    AttestorMissing,
    /// The attestor that would find them failed.
    AttestorFailed,
    /// The attestor would find them if it were told to look.
    AttestorOptionOff,
    /// The workload lacks selectors of the entry.
    SelectorsMissing,
    /// No entry comes near.
    NoEntryMatches,
    /// The server refuses to mint for the entry, or what it minted is not fit.
    MintRefused,
    /// Nothing can be minted at present.
    MintFailing,
    /// The SVID held has expired and was not replaced.
    SvidExpired,
    /// The SVID is being minted.
    BeingMinted,
    /// The bundle of a federated trust domain is not held.
    FederatedBundleMissing,
}

/// One thing that stands in the way of an identity, or limits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Which.
    pub code: Code,
    /// Whether there is no identity because of it; otherwise it limits the identity.
    pub blocks: bool,
    /// What is the case, in a sentence.
    pub says: String,
    /// What would change it.
    pub remedy: String,
    /// The entry that it is about.
    pub entry: Option<EntryId>,
}

/// An entry that was held against the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its ID.
    pub id: EntryId,
    /// What it grants.
    pub spiffe_id: SpiffeId,
    /// Below what it stands, if that is known.
    pub parent_id: Option<SpiffeId>,
    /// What it asks for.
    pub selectors: Selectors,
    /// What of that the workload lacks.
    pub missing: Selectors,
    /// What else there is to say about it; may be empty.
    pub note: String,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What.
    pub about: &'static str,
    /// How it is.
    pub says: String,
}

/// Why a workload has an identity, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// What stands in the way, most telling first, and then what limits.
    pub causes: Vec<Cause>,
    /// The entries that match, and then those that nearly do.
    pub candidates: Vec<Candidate>,
    /// How many more of them there are.
    pub left_out: usize,
    /// What was looked at.
    pub facts: Vec<Fact>,
}

impl Code {
    /// All of them, in order.
    pub const ALL: [Self; 39] = [
        Self::NoSuchProcess,
        Self::ForeignPidNamespace,
        Self::ProcessUnreadable,
        Self::OtherTrustDomain,
        Self::ReservedId,
        Self::NodeBanned,
        Self::NodeUnknown,
        Self::Stopped,
        Self::StoreStopped,
        Self::RecordStopped,
        Self::NoActiveAuthority,
        Self::AuthorityEnded,
        Self::NodeNotAttested,
        Self::NodeSvidExpired,
        Self::NeverSynced,
        Self::SyncFailing,
        Self::AttestationFailed,
        Self::NoEntry,
        Self::EntryEnded,
        Self::ForSecretStore,
        Self::NodeAlias,
        Self::ParentEnded,
        Self::ParentUnknown,
        Self::ParentCycle,
        Self::AliasSelectorsMissing,
        Self::OfAnotherNode,
        Self::NotYetSynced,
        Self::NotOnNode,
        Self::NodeWithoutEntries,
        Self::AttestorMissing,
        Self::AttestorFailed,
        Self::AttestorOptionOff,
        Self::SelectorsMissing,
        Self::NoEntryMatches,
        Self::MintRefused,
        Self::MintFailing,
        Self::SvidExpired,
        Self::BeingMinted,
        Self::FederatedBundleMissing,
    ];

    /// As it stands on the wire and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSuchProcess => "no_such_process",
            Self::ForeignPidNamespace => "foreign_pid_namespace",
            Self::ProcessUnreadable => "process_unreadable",
            Self::OtherTrustDomain => "other_trust_domain",
            Self::ReservedId => "reserved_id",
            Self::NodeBanned => "node_banned",
            Self::NodeUnknown => "node_unknown",
            Self::Stopped => "stopped",
            Self::StoreStopped => "store_stopped",
            Self::RecordStopped => "record_stopped",
            Self::NoActiveAuthority => "no_active_authority",
            Self::AuthorityEnded => "authority_ended",
            Self::NodeNotAttested => "node_not_attested",
            Self::NodeSvidExpired => "node_svid_expired",
            Self::NeverSynced => "never_synced",
            Self::SyncFailing => "sync_failing",
            Self::AttestationFailed => "attestation_failed",
            Self::NoEntry => "no_entry",
            Self::EntryEnded => "entry_ended",
            Self::ForSecretStore => "for_secret_store",
            Self::NodeAlias => "node_alias",
            Self::ParentEnded => "parent_ended",
            Self::ParentUnknown => "parent_unknown",
            Self::ParentCycle => "parent_cycle",
            Self::AliasSelectorsMissing => "alias_selectors_missing",
            Self::OfAnotherNode => "of_another_node",
            Self::NotYetSynced => "not_yet_synced",
            Self::NotOnNode => "not_on_node",
            Self::NodeWithoutEntries => "node_without_entries",
            Self::AttestorMissing => "attestor_missing",
            Self::AttestorFailed => "attestor_failed",
            Self::AttestorOptionOff => "attestor_option_off",
            Self::SelectorsMissing => "selectors_missing",
            Self::NoEntryMatches => "no_entry_matches",
            Self::MintRefused => "mint_refused",
            Self::MintFailing => "mint_failing",
            Self::SvidExpired => "svid_expired",
            Self::BeingMinted => "being_minted",
            Self::FederatedBundleMissing => "federated_bundle_missing",
        }
    }

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// A cause without an entry, in whose way it stands.
    pub fn blocks(self, says: impl Into<String>, remedy: impl Into<String>) -> Cause {
        Cause { code: self, blocks: true, says: says.into(), remedy: remedy.into(), entry: None }
    }

    /// A cause without an entry, that only limits.
    pub fn limits(self, says: impl Into<String>, remedy: impl Into<String>) -> Cause {
        Cause { blocks: false, ..self.blocks(says, remedy) }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Cause {
    /// The same, about an entry.
    #[must_use]
    pub fn of(self, entry: &EntryId) -> Self {
        Self { entry: Some(entry.clone()), ..self }
    }
}

impl Explanation {
    /// Notes one thing that was looked at.
    pub fn fact(&mut self, about: &'static str, says: impl Into<String>) {
        self.facts.push(Fact { about, says: says.into() });
    }

    /// Puts the causes in order: what blocks before what limits, and most telling first.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.causes.sort_by_key(|cause| (!cause.blocks, cause.code));
        self
    }
}

/// What a workload has, arranged for asking how near an entry comes to matching.
#[derive(Debug)]
pub struct Have<'a> {
    selectors: &'a Selectors,
    /// Selectors by what they are about: `unix:uid` of `unix:uid:1000`.
    stems: BTreeMap<&'a str, Vec<&'a Selector>>,
}

/// How far an entry is from matching; less is nearer.
///
/// A selector whose place another one takes (`unix:uid:1000`, and the workload has `unix:uid:1001`) is nearer than one of
/// which nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance {
    weight: usize,
    shared: Reverse<usize>,
}

impl Distance {
    /// Whether all selectors are there.
    pub const fn is_match(self) -> bool {
        self.weight == 0
    }
}

impl<'a> Have<'a> {
    /// What a workload with these selectors has.
    pub fn new(selectors: &'a Selectors) -> Self {
        let mut stems: BTreeMap<&str, Vec<&Selector>> = BTreeMap::new();
        for selector in selectors.iter() {
            stems.entry(stem(selector)).or_default().push(selector);
        }
        Self { selectors, stems }
    }

    /// How near an entry with the selectors `wanted` comes; `None` if it has none, or nothing in common.
    pub fn distance(&self, wanted: &Selectors) -> Option<Distance> {
        let (mut shared, mut weight, mut alike) = (0, 0, 0);
        for selector in wanted.iter() {
            if self.selectors.contains(selector) {
                shared += 1;
            } else if self.stems.contains_key(stem(selector)) {
                alike += 1;
                weight += 1;
            } else {
                weight += 2;
            }
        }
        (shared + alike > 0).then_some(Distance { weight, shared: Reverse(shared) })
    }

    /// Which of `wanted` are not there.
    pub fn missing(&self, wanted: &Selectors) -> Selectors {
        wanted.iter().filter(|selector| !self.selectors.contains(selector)).cloned().collect()
    }

    /// What is there in the place of a selector that is not.
    pub fn instead_of(&self, missing: &Selector) -> &[&'a Selector] {
        self.stems.get(stem(missing)).map_or(&[], Vec::as_slice)
    }

    /// A sentence part for what is missing: `unix:uid:1000 (it has unix:uid:1001)`.
    pub fn describe(&self, missing: &Selectors) -> String {
        /// More of them help nobody.
        const SHOWN: usize = 3;
        const MISSING: usize = 10;
        let one = |selector: &Selector| match self.instead_of(selector) {
            [] => selector.to_string(),
            has => {
                let has: Vec<&str> = has.iter().take(SHOWN).map(|selector| selector.as_str()).collect();
                format!("{selector} (it has {})", has.join(", "))
            }
        };
        let mut told: Vec<String> = missing.iter().take(MISSING).map(one).collect();
        if missing.len() > MISSING {
            told.push(format!("{} more", missing.len() - MISSING));
        }
        told.join(" and ")
    }
}

/// What a selector is about: all of it up to the last colon.
fn stem(selector: &Selector) -> &str {
    let text = selector.as_str();
    text.rsplit_once(':').map_or(text, |(stem, _)| stem)
}

/// The nearest of many, at most a given number.
#[derive(Debug)]
pub struct Nearest {
    most: usize,
    kept: BTreeSet<(Distance, EntryId)>,
    left_out: usize,
}

impl Nearest {
    /// Keeps `most`.
    pub const fn new(most: usize) -> Self {
        Self { most, kept: BTreeSet::new(), left_out: 0 }
    }

    /// Takes one in, and maybe another out.
    pub fn offer(&mut self, distance: Distance, id: &EntryId) {
        if self.kept.len() >= self.most {
            self.left_out += 1;
            // Most of many come too late: they cost no copy of their ID.
            if self.kept.last().is_none_or(|(worst, last)| (*worst, last) <= (distance, id)) {
                return;
            }
            self.kept.pop_last();
        }
        self.kept.insert((distance, id.clone()));
    }

    /// The nearest first, and how many were left out.
    pub fn into_order(self) -> (Vec<(Distance, EntryId)>, usize) {
        (self.kept.into_iter().collect(), self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selectors(texts: &[&str]) -> Selectors {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    fn entry(id: &str) -> EntryId {
        EntryId::parse(id).unwrap()
    }

    #[test]
    fn every_code_has_its_place_and_is_found_by_its_name() {
        for (at, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, at, "{code}");
            assert_eq!(Code::parse(code.name()), Some(code));
        }
        assert_eq!(Code::parse("else"), None);
    }

    #[test]
    fn what_blocks_comes_before_what_limits() {
        let causes = vec![
            Code::NodeBanned.limits("", ""),
            Code::NoEntryMatches.blocks("", ""),
            Code::SelectorsMissing.blocks("", ""),
        ];
        let explanation = Explanation { causes, ..Explanation::default() }.in_order();
        let codes: Vec<Code> = explanation.causes.iter().map(|cause| cause.code).collect();
        assert_eq!(codes, [Code::SelectorsMissing, Code::NoEntryMatches, Code::NodeBanned]);
    }

    #[test]
    fn an_entry_is_nearer_the_less_it_lacks() {
        let own = selectors(&["unix:uid:1001", "unix:gid:5", "k8s:ns:pay"]);
        let have = Have::new(&own);
        let at = |wanted: &[&str]| have.distance(&selectors(wanted));
        assert!(at(&["unix:uid:1001"]).unwrap().is_match());
        assert!(!at(&["unix:uid:1000"]).unwrap().is_match());
        // In its place there is another; and of this one nothing is known.
        assert!(at(&["unix:uid:1000"]) < at(&["k8s:sa:web", "k8s:ns:pay"]));
        assert!(at(&["unix:uid:1000", "unix:gid:5"]) < at(&["unix:uid:1000"]), "it shares one more");
        assert_eq!(at(&["docker:label:a:b"]), None);
        assert_eq!(at(&[]), None, "an entry without selectors matches nothing");
    }

    #[test]
    fn what_is_missing_is_told_with_what_is_there_instead() {
        let own = selectors(&["unix:uid:1001", "unix:gid:5"]);
        let have = Have::new(&own);
        let missing = have.missing(&selectors(&["unix:uid:1000", "unix:gid:5", "k8s:ns:pay"]));
        assert_eq!(missing, selectors(&["k8s:ns:pay", "unix:uid:1000"]));
        assert_eq!(have.describe(&missing), "k8s:ns:pay and unix:uid:1000 (it has unix:uid:1001)");
        let many: Selectors = (10..25).map(|n| Selector::parse(&format!("k8s:n:{n}")).unwrap()).collect();
        let told = have.describe(&many);
        assert!(told.starts_with("k8s:n:10 and ") && told.ends_with(" and k8s:n:19 and 5 more"), "{told}");
    }

    #[test]
    fn only_the_nearest_are_kept() {
        let own = selectors(&["k:a:1", "k:b:1"]);
        let have = Have::new(&own);
        let mut nearest = Nearest::new(2);
        let (far, near) = (selectors(&["k:a:2", "x:y"]), selectors(&["k:a:2"]));
        for (wanted, id) in [(&far, "one"), (&near, "two"), (&far, "three"), (&near, "four")] {
            nearest.offer(have.distance(wanted).unwrap(), &entry(id));
        }
        let (kept, left_out) = nearest.into_order();
        assert_eq!(kept.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), [entry("four"), entry("two")]);
        assert_eq!(left_out, 2);
    }
}
