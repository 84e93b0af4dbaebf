//! Do an entry's own selectors say whom it is for: not too many, and somebody at all?

use std::collections::{BTreeMap, HashMap, HashSet};

use super::register::{Name, Registered, Standing};
use super::selectors::{self, Breadth};
use super::{Findings, Limits, Register, Rule};

/// From this many SPIFFE IDs below one parent on, a selector of more than half of them is one of the fleet.
const FLEET: usize = 20;

pub(super) fn check(register: &Register, limits: &Limits, found: &mut Findings<'_>) {
    let common = Common::count(register);
    for (at, entry) in register.entries.iter().enumerate() {
        never_matches(register, at, entry, found);
        if !entry.is_workload() || entry.selectors.is_empty() {
            continue;
        }
        let texts: Vec<&str> = entry.selectors.iter().map(|name| register.text(*name)).collect();
        image_tag(&texts, at, found);
        // One finding about how broad it is: the gravest.
        if texts.iter().any(|s| selectors::is_root(s)) && texts.iter().all(|s| selectors::is_of_root(s)) {
            let evidence = format!("it is for root and no more: {}", texts.join(", "));
            found.add(Rule::RootAlone, vec![at], &evidence);
        } else if fleet_wide(register, entry, &common) {
            let evidence = format!(
                "unrelated workloads have all of its selectors: {}",
                register.texts(&entry.selectors)
            );
            found.add(Rule::FleetWide, vec![at], &evidence);
        } else if let Some(name) = lacks_namespace(&texts) {
            let evidence =
                format!("{name} says nothing without the namespace, which is not among its selectors");
            found.add(Rule::NoNamespace, vec![at], &evidence);
        } else if texts.len() < limits.selectors && !texts.iter().any(|s| is_enough(s)) {
            let evidence = format!(
                "it has {} of {} selectors wanted: {}",
                texts.len(),
                limits.selectors,
                texts.join(", ")
            );
            found.add(Rule::FewSelectors, vec![at], &evidence);
        }
    }
}

fn is_enough(selector: &str) -> bool {
    selectors::breadth(selector) == Breadth::One
}

/// Whether each of its selectors is shared by workloads that have nothing else to do with each other.
fn fleet_wide(register: &Register, entry: &Registered, common: &Common) -> bool {
    entry.selectors.iter().all(|name| {
        let text = register.text(*name);
        match selectors::breadth(text) {
            Breadth::Fleet => true,
            // Every node has processes of root's, and of root's in a container too.
            Breadth::Kind => selectors::is_of_root(text) || common.has(entry.parent_id, *name),
            Breadth::One => false,
        }
    })
}

/// How many SPIFFE IDs there are below each parent, and how many of them each selector has.
struct Common {
    below: HashMap<Name, usize>,
    with: HashMap<(Name, Name), usize>,
}

impl Common {
    fn count(register: &Register) -> Self {
        let mut seen = HashSet::new();
        let mut counted = Self { below: HashMap::new(), with: HashMap::new() };
        for entry in register.entries.iter().filter(|entry| entry.is_workload()) {
            if seen.insert((entry.parent_id, entry.spiffe_id, None)) {
                *counted.below.entry(entry.parent_id).or_default() += 1;
            }
            for name in &entry.selectors {
                if seen.insert((entry.parent_id, entry.spiffe_id, Some(*name))) {
                    *counted.with.entry((entry.parent_id, *name)).or_default() += 1;
                }
            }
        }
        counted
    }

    fn has(&self, parent: Name, selector: Name) -> bool {
        let below = self.below.get(&parent).copied().unwrap_or(0);
        let with = self.with.get(&(parent, selector)).copied().unwrap_or(0);
        below >= FLEET && with * 2 > below
    }
}

/// A selector that names nothing without a namespace, where none of them brings one.
fn lacks_namespace<'a>(texts: &[&'a str]) -> Option<&'a str> {
    let needs = texts.iter().find(|s| selectors::needs_namespace(s))?;
    let has = texts.iter().any(|s| selectors::has_namespace(s) || is_enough(s));
    (!has).then_some(*needs)
}

fn image_tag(texts: &[&str], at: usize, found: &mut Findings<'_>) {
    if texts.iter().any(|s| is_enough(s)) {
        return;
    }
    let tags = texts.iter().filter(|s| selectors::image(s).is_some_and(|image| !selectors::is_digest(image)));
    let tags: Vec<&str> = tags.copied().collect();
    if !tags.is_empty() {
        found.add(Rule::ImageTag, vec![at], &format!("it goes by a tag: {}", tags.join(", ")));
    }
}

fn never_matches(register: &Register, at: usize, entry: &Registered, found: &mut Findings<'_>) {
    let texts: Vec<&str> = entry.selectors.iter().map(|name| register.text(*name)).collect();
    let why = match entry.standing {
        Standing::Stored | Standing::TokenAlias => None,
        _ if texts.is_empty() => Some("it has no selectors".to_owned()),
        Standing::NodeAlias => {
            let wrong = texts.iter().find(|s| selectors::is_of_processes(s));
            wrong.map(|s| format!("its parent is the server, so it is for nodes; only processes have {s}"))
        }
        Standing::Workload => {
            let wrong = texts.iter().find(|s| selectors::is_of_nodes(s));
            wrong
                .map(|s| format!("its parent is not the server, so it is for processes; only nodes have {s}"))
                .or_else(|| two_of_one(&texts))
        }
    };
    if let Some(why) = why {
        found.add(Rule::NeverMatches, vec![at], &why);
    }
}

/// Two values of what a process has one of.
fn two_of_one(texts: &[&str]) -> Option<String> {
    let mut had: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for &text in texts {
        if let Some(one) = selectors::single(text)
            && let Some(other) = had.insert(one, text)
        {
            return Some(format!("no process has both {other} and {text}"));
        }
    }
    None
}
