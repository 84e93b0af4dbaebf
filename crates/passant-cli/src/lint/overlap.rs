//! Which entries does one workload get together, and which of them are one too many?
//!
//! Entries with the same parent and the same selectors are taken together as one set. A set stands in the index under its
//! selector that is rarest below that parent: whoever looks for the sets within another asks for each of its selectors, and
//! reads few that are not. Entries below different parents meet where one parent stands for all nodes of the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::register::{Name, Standing};
use super::{Findings, Register, Rule, count};

/// Sets looked at for one, after which the search for it ends: an honest register needs dozens.
const LOOKED_AT: usize = 2_000;
/// Sets found to be wider than one, after which the search ends: such a workload has worse than an ambiguous default.
const WIDER: usize = 64;
/// Entries of one set that are compared one by one with those of another.
const COMPARED: usize = 16;
/// Entries named in one finding.
const NAMED: usize = 20;

/// Finds duplicates, shadowed entries and ambiguous defaults. Says what it did not look at.
pub(super) fn check(register: &Register, found: &mut Findings<'_>) -> Option<String> {
    let sets = Sets::of(register);
    duplicates(register, &sets, found);
    let mut cut = sets.cut;
    // Of each set: the sets whose workloads all belong to it, too.
    let mut narrower: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..sets.all.len() {
        let (wider, whole) = sets.wider(at);
        cut += usize::from(!whole);
        shadowed(register, &sets, at, &wider, found);
        for wide in wider {
            narrower.entry(wide).or_default().push(at);
        }
    }
    for at in 0..sets.all.len() {
        let narrower = narrower.remove(&at).unwrap_or_default();
        ambiguous(register, &sets, at, &narrower, found);
    }
    (cut > 0).then(|| format!("all overlaps of {}: too many share their selectors", count(cut)))
}

/// Entries with the same parent and selectors.
struct Set {
    parent: Name,
    standing: Standing,
    selectors: Vec<Name>,
    entries: Vec<usize>,
    /// The first entry for each SPIFFE ID.
    by_id: BTreeMap<Name, usize>,
}

struct Sets {
    all: Vec<Set>,
    /// By parent and rarest selector.
    index: HashMap<(Name, Name), Vec<usize>>,
    /// For each parent, the others that stand for all of its nodes.
    covering: HashMap<Name, Vec<Name>>,
    /// Parents for which not all others were looked at.
    cut: usize,
}

impl Sets {
    fn of(register: &Register) -> Self {
        let mut all: Vec<Set> = Vec::new();
        let mut known: HashMap<(Name, Standing, &[Name]), usize> = HashMap::new();
        for (at, entry) in register.entries.iter().enumerate() {
            let key = (entry.parent_id, entry.standing, &entry.selectors[..]);
            let set = *known.entry(key).or_insert_with(|| {
                all.push(Set {
                    parent: entry.parent_id,
                    standing: entry.standing,
                    selectors: entry.selectors.clone(),
                    entries: Vec::new(),
                    by_id: BTreeMap::new(),
                });
                all.len() - 1
            });
            all[set].entries.push(at);
            all[set].by_id.entry(entry.spiffe_id).or_insert(at);
        }
        let mut uses: HashMap<(Name, Name), usize> = HashMap::new();
        for set in &all {
            for selector in &set.selectors {
                *uses.entry((set.parent, *selector)).or_default() += 1;
            }
        }
        let mut index: HashMap<(Name, Name), Vec<usize>> = HashMap::new();
        for (at, set) in all.iter().enumerate() {
            if let Some(rarest) = set.selectors.iter().min_by_key(|s| uses.get(&(set.parent, **s))) {
                index.entry((set.parent, *rarest)).or_default().push(at);
            }
        }
        let (covering, cut) = covering(register);
        Self { all, index, covering, cut }
    }

    /// The sets that every workload of the set at `at` belongs to as well, itself left out; and whether all were looked at.
    fn wider(&self, at: usize) -> (Vec<usize>, bool) {
        let set = &self.all[at];
        let mut found = Vec::new();
        let mut looked_at = 0;
        let others = self.covering.get(&set.parent).into_iter().flatten();
        for parent in std::iter::once(&set.parent).chain(others) {
            for other in set.selectors.iter().filter_map(|s| self.index.get(&(*parent, *s))).flatten() {
                if *other == at {
                    continue;
                }
                looked_at += 1;
                if looked_at > LOOKED_AT || found.len() == WIDER {
                    return (found, false);
                }
                if self.is_wider(*other, at) {
                    found.push(*other);
                }
            }
        }
        (found, true)
    }

    fn is_wider(&self, other: usize, at: usize) -> bool {
        let (wide, narrow) = (&self.all[other], &self.all[at]);
        if wide.standing != narrow.standing || !within(&wide.selectors, &narrow.selectors) {
            return false;
        }
        // Two that are alike, below parents that stand for the same nodes: one of them counts as the wider.
        let alike = wide.selectors.len() == narrow.selectors.len();
        let mutual = wide.parent != narrow.parent
            && self.covering.get(&wide.parent).is_some_and(|others| others.contains(&narrow.parent));
        !(alike && mutual) || other < at
    }
}

/// Whether all of `few` are among `many`; both are sorted.
fn within(few: &[Name], many: &[Name]) -> bool {
    let mut rest = many.iter();
    few.len() <= many.len() && few.iter().all(|one| rest.any(|other| other == one))
}

/// Which nodes a parent ID stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Nodes {
    /// The one of this agent.
    Of(Name),
    /// All that have these selectors.
    With(Vec<Name>),
}

/// For each parent ID, the other parent IDs that stand for all of its nodes; and for how many that was not looked for.
fn covering(register: &Register) -> (HashMap<Name, Vec<Name>>, usize) {
    let mut stands_for: BTreeMap<Name, BTreeSet<Nodes>> = BTreeMap::new();
    for entry in register.entries.iter().filter(|entry| entry.is_alias()) {
        let nodes = match entry.standing {
            Standing::TokenAlias => Nodes::Of(entry.parent_id),
            Standing::NodeAlias | Standing::Workload | Standing::Stored => {
                Nodes::With(entry.selectors.clone())
            }
        };
        stands_for.entry(entry.spiffe_id).or_default().insert(nodes);
    }
    let aliases = Aliases::of(&stands_for);
    let agents = register.agents.iter().flatten();
    let of_agent: HashMap<Name, &[Name]> = agents.map(|agent| (agent.id, &agent.selectors[..])).collect();
    let mut all: BTreeMap<Name, BTreeSet<Nodes>> = stands_for.clone();
    for entry in register.entries.iter().filter(|entry| entry.is_workload()) {
        all.entry(entry.parent_id).or_insert_with(|| BTreeSet::from([Nodes::Of(entry.parent_id)]));
    }
    let mut covering = HashMap::new();
    let mut cut = 0;
    for (parent, nodes) in &all {
        let above: Option<Vec<BTreeSet<Name>>> =
            nodes.iter().map(|nodes| aliases.above(nodes, &of_agent)).collect();
        let Some(above) = above else {
            cut += 1;
            continue;
        };
        let common = above.into_iter().reduce(|one, other| one.intersection(&other).copied().collect());
        let others: Vec<Name> = common.into_iter().flatten().filter(|other| other != parent).collect();
        if !others.is_empty() {
            covering.insert(*parent, others);
        }
    }
    (covering, cut)
}

/// Aliases by what they stand for.
struct Aliases<'a> {
    by_agent: HashMap<Name, Vec<Name>>,
    /// Under the rarest of their selectors.
    by_selector: HashMap<Name, Vec<(Name, &'a [Name])>>,
}

impl<'a> Aliases<'a> {
    fn of(stands_for: &'a BTreeMap<Name, BTreeSet<Nodes>>) -> Self {
        let mut uses: HashMap<Name, usize> = HashMap::new();
        for nodes in stands_for.values().flatten() {
            if let Nodes::With(selectors) = nodes {
                for selector in selectors {
                    *uses.entry(*selector).or_default() += 1;
                }
            }
        }
        let mut aliases = Self { by_agent: HashMap::new(), by_selector: HashMap::new() };
        for (alias, nodes) in
            stands_for.iter().flat_map(|(alias, all)| all.iter().map(move |one| (*alias, one)))
        {
            match nodes {
                Nodes::Of(agent) => aliases.by_agent.entry(*agent).or_default().push(alias),
                Nodes::With(selectors) => {
                    if let Some(rarest) = selectors.iter().min_by_key(|s| uses.get(s)) {
                        aliases.by_selector.entry(*rarest).or_default().push((alias, selectors));
                    }
                }
            }
        }
        aliases
    }

    /// The IDs that stand for all of `nodes`: aliases, and the ID of an only agent. None when there are too many to look at.
    fn above(&self, nodes: &Nodes, of_agent: &HashMap<Name, &[Name]>) -> Option<BTreeSet<Name>> {
        let (agent, selectors) = match nodes {
            Nodes::Of(agent) => (Some(*agent), of_agent.get(agent).copied().unwrap_or_default()),
            Nodes::With(selectors) => (None, &selectors[..]),
        };
        let by_agent = agent.and_then(|agent| self.by_agent.get(&agent)).into_iter().flatten();
        let mut found: BTreeSet<Name> = by_agent.copied().chain(agent).collect();
        let near = selectors.iter().filter_map(|selector| self.by_selector.get(selector)).flatten();
        for (looked_at, (alias, wanted)) in near.enumerate() {
            if looked_at == LOOKED_AT {
                return None;
            }
            if within(wanted, selectors) {
                found.insert(*alias);
            }
        }
        Some(found)
    }
}

fn duplicates(register: &Register, sets: &Sets, found: &mut Findings<'_>) {
    for set in &sets.all {
        let mut twins: BTreeMap<Name, Vec<usize>> = BTreeMap::new();
        for at in &set.entries {
            twins.entry(register.entries[*at].spiffe_id).or_default().push(*at);
        }
        for twins in twins.into_values().filter(|twins| twins.len() > 1) {
            let differ = differences(register, twins[0], twins[1]);
            let differ = if differ.is_empty() { String::new() } else { format!("; they differ in {differ}") };
            let evidence = format!(
                "{} have the same parent, SPIFFE ID and selectors: {}{differ}",
                count(twins.len()),
                names(register, &twins)
            );
            let (id, parent) =
                (register.text(register.entries[twins[0]].spiffe_id), register.text(set.parent));
            let subject = format!("{id} below {parent} with {}", register.texts(&set.selectors));
            found.add_about(Rule::Duplicate, &subject, twins, &evidence);
        }
    }
}

fn shadowed(register: &Register, sets: &Sets, at: usize, wider: &[usize], found: &mut Findings<'_>) {
    let set = &sets.all[at];
    if !matches!(set.standing, Standing::Workload | Standing::NodeAlias) {
        return;
    }
    for (id, entry) in &set.by_id {
        let Some(over) = wider.iter().find_map(|wide| sets.all[*wide].by_id.get(id)) else { continue };
        let wide = &register.entries[*over];
        let below = if wide.parent_id == set.parent {
            String::new()
        } else {
            format!(", below {}", register.text(wide.parent_id))
        };
        let differ = differences(register, *entry, *over);
        let differ = if differ.is_empty() || set.standing == Standing::NodeAlias {
            String::new()
        } else {
            format!("; as they differ in {differ}, its workloads get two SVIDs of that ID")
        };
        let evidence = format!(
            "{} gives the same SPIFFE ID to all that match it: it asks for {} only{below}{differ}",
            register.called(*over),
            register.texts(&wide.selectors)
        );
        found.add(Rule::Shadowed, vec![*entry, *over], &evidence);
    }
}

/// Looks at the entries of one set together with those of all sets that lie within it.
fn ambiguous(register: &Register, sets: &Sets, at: usize, narrower: &[usize], found: &mut Findings<'_>) {
    let set = &sets.all[at];
    if set.standing != Standing::Workload {
        return;
    }
    let own = own_ambiguity(register, set);
    let mut others: Vec<usize> = Vec::new();
    for narrow in narrower {
        let theirs = sets.all[*narrow].by_id.values().take(COMPARED);
        let unclear = theirs.filter(|theirs| {
            set.by_id.values().take(COMPARED).any(|ours| !can_tell_apart(register, *ours, **theirs))
        });
        others.extend(unclear);
    }
    if own.is_empty() && others.is_empty() {
        return;
    }
    let mut says = Vec::new();
    if !own.is_empty() {
        says.push(format!(
            "{} with other SPIFFE IDs have the very same parent and selectors ({}): {}",
            count(own.len()),
            register.texts(&set.selectors),
            names(register, &own)
        ));
    }
    if !others.is_empty() {
        says.push(format!(
            "its selectors ({}) are among those of {} with other SPIFFE IDs, whose workloads get both: {}",
            register.texts(&set.selectors),
            count(others.len()),
            names(register, &others)
        ));
    }
    let mut entries = if own.is_empty() { vec![set.entries[0]] } else { own };
    entries.extend(others);
    let subject = format!("below {} with {}", register.text(set.parent), register.texts(&set.selectors));
    found.add_about(Rule::AmbiguousDefault, &subject, entries, &says.join("; and "));
}

/// The entries of a set, one for each SPIFFE ID, if its workloads cannot tell their SVIDs apart.
fn own_ambiguity(register: &Register, set: &Set) -> Vec<usize> {
    let hints: BTreeSet<&str> = set.by_id.values().map(|at| &*register.entries[*at].hint).collect();
    let clear = set.by_id.len() < 2 || (hints.len() == set.by_id.len() && !hints.contains(""));
    if clear { Vec::new() } else { set.by_id.values().copied().collect() }
}

/// Whether a workload that gets both knows which SVID is for what: there is one SPIFFE ID, or a hint for each.
fn can_tell_apart(register: &Register, one: usize, other: usize) -> bool {
    let (one, other) = (&register.entries[one], &register.entries[other]);
    one.spiffe_id == other.spiffe_id
        || (one.hint != other.hint && !one.hint.is_empty() && !other.hint.is_empty())
}

/// In which fields two entries differ, for people; empty when in none.
fn differences(register: &Register, one: usize, other: usize) -> String {
    let (one, other) = (&register.entries[one], &register.entries[other]);
    let differ = [
        ("X509-SVID TTL", one.x509_svid_ttl != other.x509_svid_ttl),
        ("JWT-SVID TTL", one.jwt_svid_ttl != other.jwt_svid_ttl),
        ("DNS names", one.dns_names != other.dns_names),
        ("federates_with", one.federates_with != other.federates_with),
        ("hint", one.hint != other.hint),
        ("admin", one.admin != other.admin),
        ("downstream", one.downstream != other.downstream),
    ];
    let names: Vec<&str> = differ.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect();
    names.join(", ")
}

/// The ids of the first entries, and how many more there are.
fn names(register: &Register, entries: &[usize]) -> String {
    let first: Vec<String> = entries.iter().take(NAMED).map(|at| register.label(*at)).collect();
    match entries.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
