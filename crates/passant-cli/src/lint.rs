//! What is wrong with a register of entries? The rules, and what each finding says.
//!
//! A rule is one line in [`Rule`] and one function in a file of `lint/`. None compares every entry with every other: what
//! belongs together is found by index.

mod breadth;
mod fields;
mod foreign;
mod overlap;
mod owners;
mod parents;
mod register;
pub(crate) mod sarif;
mod selectors;
#[cfg(test)]
mod tests;

use std::time::Duration;

use clap::ValueEnum;

pub(crate) use register::Register;
use register::Registered;

/// What a finding is about. The names are part of the interface: scripts and SARIF consumers keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Rule {
    /// Nothing but what unrelated workloads share.
    FleetWide,
    /// Fewer selectors than wanted.
    FewSelectors,
    /// Root, and nothing else.
    RootAlone,
    /// A name of a namespace, without the namespace.
    NoNamespace,
    /// An image by its tag.
    ImageTag,
    /// Selectors that no process and no node has.
    NeverMatches,
    /// The same entry twice.
    Duplicate,
    /// An entry that adds nothing to a wider one.
    Shadowed,
    /// One SPIFFE ID for workloads of different owners.
    SeveralOwners,
    /// A workload that gets several SPIFFE IDs.
    AmbiguousDefault,
    /// A parent that does not exist.
    MissingParent,
    /// Entries that are each other's parents.
    ParentCycle,
    /// An administrator of the server.
    Admin,
    /// A server below this one.
    Downstream,
    /// SVIDs that live long.
    LongTtl,
    /// A bundle that nobody gets.
    UnusedFederation,
    /// A trust domain without a bundle.
    MissingBundle,
}

/// How much a finding weighs. Later ones weigh more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Worth knowing.
    Note,
    /// To be looked at.
    Warning,
    /// To be mended.
    Error,
}

/// What a rule compares with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The longest lifetime of X509-SVIDs that is no finding.
    pub(crate) x509_ttl: Duration,
    /// The longest lifetime of JWT-SVIDs that is no finding.
    pub(crate) jwt_ttl: Duration,
    /// The fewest selectors that are no finding.
    pub(crate) selectors: usize,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) rule: Rule,
    pub(crate) level: Level,
    /// The entries it is about, as places in the register: first the one to change. Empty when it is about none.
    pub(crate) entries: Vec<usize>,
    /// What it is about when it is about no entry, or about several for one reason; else empty, and it is about the first.
    pub(crate) subject: String,
    /// What was seen.
    pub(crate) evidence: String,
    /// What to do.
    pub(crate) fix: String,
}

impl Finding {
    /// The entries that all have to be right for it to be no fault; the others only explain it.
    pub(crate) fn about(&self) -> &[usize] {
        let several = !self.subject.is_empty();
        if several { &self.entries } else { &self.entries[..self.entries.len().min(1)] }
    }
}

/// What was found, the heaviest first, and what could not be looked for.
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    pub(crate) not_checked: Vec<String>,
}

/// Holds the register against every rule.
pub(crate) fn check(register: &Register, limits: &Limits) -> Report {
    let mut found = Findings { register, all: Vec::new() };
    let mut not_checked = register.unknown();
    breadth::check(register, limits, &mut found);
    fields::check(register, limits, &mut found);
    not_checked.extend(overlap::check(register, &mut found));
    owners::check(register, &mut found);
    parents::check(register, &mut found);
    foreign::check(register, &mut found);
    let mut findings = found.all;
    // Stable: within a rule the order is that of the entries.
    findings.sort_by_key(|finding| (std::cmp::Reverse(finding.level), finding.rule));
    Report { findings, not_checked }
}

/// Where the rules put what they find.
struct Findings<'a> {
    register: &'a Register,
    all: Vec<Finding>,
}

impl Findings<'_> {
    /// A finding about the first of `entries`, which is to be changed.
    fn add(&mut self, rule: Rule, entries: Vec<usize>, evidence: &str) {
        self.add_about(rule, "", entries, evidence);
    }

    /// A finding about `subject`, and about all of `entries` because of it.
    fn add_about(&mut self, rule: Rule, subject: &str, entries: Vec<usize>, evidence: &str) {
        let finding = self.finding(rule, subject, entries, evidence);
        self.all.push(finding);
    }

    /// The same, still to be added; with the rule's own level and fix.
    fn finding(&self, rule: Rule, subject: &str, entries: Vec<usize>, evidence: &str) -> Finding {
        let level = match entries.first() {
            Some(first) => rule.level_for(&self.register.entries[*first]),
            None => rule.level(),
        };
        let (subject, evidence) = (without_tokens(subject), without_tokens(evidence));
        Finding { rule, level, entries, subject, evidence, fix: rule.fix().to_owned() }
    }
}

/// What stands for a join token.
const HIDDEN: &str = "***";

/// A text without join tokens. One is a secret until it is spent, findings are published, and the ID of the agent that a
/// token makes ends with it.
fn without_tokens(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(parents::TOKENS) {
        let (before, token) = rest.split_at(at + parents::TOKENS.len());
        let end = token.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(token.len());
        let end = token[..end].trim_end_matches([':', ';', ')']).len();
        shown.push_str(before);
        shown.push_str(if end > 0 { HIDDEN } else { "" });
        rest = &token[end..];
    }
    shown + rest
}

/// So many entries, in words.
fn count(entries: usize) -> String {
    if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") }
}

impl Level {
    /// SARIF's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Rule {
    /// Its name, as it is written in output and arguments.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FleetWide => "fleet-wide",
            Self::FewSelectors => "few-selectors",
            Self::RootAlone => "root-alone",
            Self::NoNamespace => "no-namespace",
            Self::ImageTag => "image-tag",
            Self::NeverMatches => "never-matches",
            Self::Duplicate => "duplicate",
            Self::Shadowed => "shadowed",
            Self::SeveralOwners => "several-owners",
            Self::AmbiguousDefault => "ambiguous-default",
            Self::MissingParent => "missing-parent",
            Self::ParentCycle => "parent-cycle",
            Self::Admin => "admin",
            Self::Downstream => "downstream",
            Self::LongTtl => "long-ttl",
            Self::UnusedFederation => "unused-federation",
            Self::MissingBundle => "missing-bundle",
        }
    }

    /// How much its findings weigh.
    pub(crate) fn level(self) -> Level {
        match self {
            Self::RootAlone => Level::Error,
            Self::FleetWide
            | Self::NoNamespace
            | Self::ImageTag
            | Self::NeverMatches
            | Self::Duplicate
            | Self::Shadowed
            | Self::SeveralOwners
            | Self::AmbiguousDefault
            | Self::MissingParent
            | Self::ParentCycle
            | Self::Admin
            | Self::Downstream
            | Self::LongTtl
            | Self::UnusedFederation
            | Self::MissingBundle => Level::Warning,
            Self::FewSelectors => Level::Note,
        }
    }

    /// Who may administer the server or sign for others had better be known exactly.
    fn level_for(self, entry: &Registered) -> Level {
        let broad = matches!(self, Self::FleetWide | Self::FewSelectors | Self::NoNamespace);
        if broad && (entry.admin || entry.downstream) { Level::Error } else { self.level() }
    }

    /// What it looks for.
    pub(crate) fn looks_for(self) -> &'static str {
        match self {
            Self::FleetWide => "an entry with no selector but such as unrelated workloads share",
            Self::FewSelectors => "an entry with fewer selectors than wanted",
            Self::RootAlone => "an entry for every process of root",
            Self::NoNamespace => "a Kubernetes name without its namespace",
            Self::ImageTag => "an image selector that names a tag instead of a digest",
            Self::NeverMatches => "selectors that nothing can have together",
            Self::Duplicate => "two entries with the same parent, SPIFFE ID and selectors",
            Self::Shadowed => "an entry whose workloads get its SPIFFE ID from a wider one anyway",
            Self::SeveralOwners => "one SPIFFE ID for workloads of different owners",
            Self::AmbiguousDefault => "a workload that gets several SPIFFE IDs and cannot tell which to use",
            Self::MissingParent => "entries below a parent that does not exist",
            Self::ParentCycle => "entries that are each other's parents",
            Self::Admin => "an entry that administers the server",
            Self::Downstream => "an entry that may sign with an intermediate authority",
            Self::LongTtl => "a lifetime of SVIDs over the limit",
            Self::UnusedFederation => {
                "a foreign bundle or federation relationship that no entry federates with"
            }
            Self::MissingBundle => "an entry that federates with a trust domain whose bundle is not there",
        }
    }

    /// What may come of it.
    pub(crate) fn risk(self) -> &'static str {
        match self {
            Self::FleetWide | Self::FewSelectors => {
                "other workloads of the same nodes get this SPIFFE ID, and with it all that it is allowed"
            }
            Self::RootAlone => {
                "whoever runs anything as root on one of the nodes, host services and privileged containers among \
                 them, has this SPIFFE ID"
            }
            Self::NoNamespace => {
                "whoever may create that name in any namespace of the cluster gets this SPIFFE ID"
            }
            Self::ImageTag => {
                "a tag can be moved: whoever may push to the registry, or cut in between, decides what runs under this \
                 SPIFFE ID"
            }
            Self::NeverMatches => {
                "the workload it is for gets no identity, and somebody may widen another entry instead"
            }
            Self::Duplicate => {
                "a change or deletion of one of them leaves the other: what was taken away is still issued"
            }
            Self::Shadowed => {
                "it seems to narrow who gets the SPIFFE ID, and does not; deleting it takes nothing away"
            }
            Self::SeveralOwners => {
                "peers cannot tell the owners apart: each of them can act as the other, and logs name both alike"
            }
            Self::AmbiguousDefault => {
                "most clients take the first SVID they are given, and which that is hangs on the ids of the entries: it \
                 may change whenever one is made anew"
            }
            Self::MissingParent => {
                "no agent serves these entries; and whoever comes to have that parent ID has them at once"
            }
            Self::ParentCycle => "no agent serves these entries, nor any below them",
            Self::Admin => "its workload can register any SPIFFE ID for itself: it is as good as the server",
            Self::Downstream => {
                "its workload gets an authority that signs any SPIFFE ID of the trust domain, and agents do not see what"
            }
            Self::LongTtl => {
                "a stolen SVID stays good for that long: neither deleting the entry nor banning the node shortens it"
            }
            Self::UnusedFederation => {
                "a foreign trust domain is believed for nobody's sake: a bundle fewer to watch is a risk less"
            }
            Self::MissingBundle => {
                "its workload does not get that bundle, and so refuses the peers it is meant to talk to"
            }
        }
    }

    /// What to do about it.
    pub(crate) fn fix(self) -> &'static str {
        match self {
            Self::FleetWide | Self::FewSelectors => {
                "add a selector that only this workload has, such as unix:path or unix:sha256, k8s:sa with k8s:ns, \
                 k8s:pod-label, or a container image's digest"
            }
            Self::RootAlone => "run the workload as a user of its own, or add unix:path or unix:sha256",
            Self::NoNamespace => "add the selector k8s:ns",
            Self::ImageTag => "name the image by its digest: repository@sha256:...",
            Self::NeverMatches => {
                "take out the selector that is wrong; for either of two values make two entries"
            }
            Self::Duplicate => "delete all of them but one: passant entry delete ID",
            Self::Shadowed => {
                "delete it; or, if it is meant to narrow, delete or narrow the wider entry instead"
            }
            Self::SeveralOwners => "give each owner a SPIFFE ID of its own",
            Self::AmbiguousDefault => {
                "narrow the wider entry so that only its own workload matches, or give each entry another hint and have \
                 the workload choose by it"
            }
            Self::MissingParent => {
                "change the parent to an agent or node alias that exists (passant agent list, passant entry list \
                 --parent-id spiffe://TRUST_DOMAIN/spire/server), or delete the entries"
            }
            Self::ParentCycle => "change the parent of one of them to an agent or a node alias",
            Self::Admin => {
                "take the flag away if it is not needed (passant entry update ID --admin=false); if it is, accept it with \
                 --accept admin=ID"
            }
            Self::Downstream => {
                "take the flag away if this is no server (passant entry update ID --downstream=false); if it is, accept \
                 it with --accept downstream=ID"
            }
            Self::LongTtl => "shorten it: SVIDs are renewed by themselves, at half of their lifetime",
            Self::UnusedFederation => {
                "delete the federation relationship and its bundle, or name it in the entries that need it"
            }
            Self::MissingBundle => {
                "bring in the bundle, or take the trust domain out of the entry's federates_with"
            }
        }
    }
}
