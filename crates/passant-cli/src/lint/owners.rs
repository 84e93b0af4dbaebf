//! Do all entries of one SPIFFE ID name the same owner?
//!
//! An owner is a namespace, service account, user or unit. Entries that name none, such as those for one pod, say nothing
//! about it; neither do two that name owners in different respects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::register::Registered;
use super::{Findings, Register, Rule, selectors};

/// So many owners are named in the evidence.
const NAMED: usize = 5;

/// In which respect, which owners are named, and where first.
#[derive(Default)]
struct Owners(BTreeMap<&'static str, BTreeMap<String, usize>>);

pub(super) fn check(register: &Register, found: &mut Findings<'_>) {
    let mut of_id: HashMap<_, usize> = HashMap::new();
    let mut groups: Vec<Owners> = Vec::new();
    for (at, entry) in register.entries.iter().enumerate().filter(|(_, entry)| entry.is_workload()) {
        let group = *of_id.entry(entry.spiffe_id).or_insert_with(|| {
            groups.push(Owners::default());
            groups.len() - 1
        });
        for (respect, value) in owners(register, entry) {
            groups[group].0.entry(respect).or_default().entry(value).or_insert(at);
        }
    }
    for Owners(owners) in groups {
        // Namespaces that differ make all else differ: one finding tells it.
        let several = |values: &BTreeMap<String, usize>| values.values().collect::<BTreeSet<_>>().len() > 1;
        let Some((respect, values)) = owners.into_iter().find(|(_, values)| several(values)) else {
            continue;
        };
        let named: Vec<String> = values
            .iter()
            .take(NAMED)
            .map(|(value, at)| format!("{value} ({})", register.called(*at)))
            .collect();
        let more = values.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let entries: Vec<usize> = values.into_values().collect::<BTreeSet<_>>().into_iter().collect();
        let id = register.text(register.entries[entries[0]].spiffe_id);
        let evidence = format!("{id} is for more than one {respect}: {}{more}", named.join(", "));
        found.add_about(Rule::SeveralOwners, id, entries, &evidence);
    }
}

fn owners<'a>(
    register: &'a Register,
    entry: &'a Registered,
) -> impl Iterator<Item = (&'static str, String)> + 'a {
    let texts = entry.selectors.iter().map(|name| register.text(*name));
    let namespace = texts.clone().find_map(|text| text.strip_prefix("k8s:ns:")).unwrap_or("?");
    texts.filter_map(move |text| selectors::owner(text, namespace))
}
