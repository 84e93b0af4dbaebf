//! Do entries and foreign bundles fit each other?

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, Register, Rule, count};

pub(super) fn check(register: &Register, found: &mut Findings<'_>) {
    let Some(bundles) = &register.foreign else { return };
    let mut used: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, entry) in register.entries.iter().enumerate() {
        for trust_domain in entry.federates_with.iter().map(String::as_str).collect::<BTreeSet<_>>() {
            used.entry(trust_domain).or_default().push(at);
        }
    }
    for trust_domain in bundles.union(&register.fetched) {
        if used.contains_key(trust_domain.as_str()) {
            continue;
        }
        let there = match (bundles.contains(trust_domain), register.fetched.contains(trust_domain)) {
            (true, false) => "the bundle of",
            (false, _) => "a federation relationship with",
            (true, true) => "a federation relationship with, and the bundle of",
        };
        let evidence = format!("there is {there} {trust_domain}, and no entry federates with it");
        found.add_about(Rule::UnusedFederation, trust_domain, Vec::new(), &evidence);
    }
    for (trust_domain, entries) in used {
        if !bundles.contains(trust_domain) {
            let evidence =
                format!("{} federating with {trust_domain}: its bundle is not there", count(entries.len()));
            found.add_about(Rule::MissingBundle, trust_domain, entries, &evidence);
        }
    }
}
