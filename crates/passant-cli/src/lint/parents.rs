//! Does every entry hang below an agent or a node alias?

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::register::{Name, Standing};
use super::{Findings, Level, Register, Rule, count};

/// Below this lie the IDs of agents.
const AGENTS: &str = "/spire/agent/";
/// Below this, those of agents that attested with a join token: it is the rest.
pub(super) const TOKENS: &str = "/spire/agent/join_token/";

pub(super) fn check(register: &Register, found: &mut Findings<'_>) {
    let graph = Graph::of(register);
    let mut served = graph.below(register, graph.roots(register));
    for (parent, children) in &graph.children {
        if served.contains(parent) || graph.granted.contains_key(parent) {
            continue;
        }
        let id = register.text(*parent);
        // What a server makes together with a join token, and what stands alone until that is spent.
        let waits = path(id).starts_with(TOKENS)
            && children.iter().all(|at| register.entries[*at].standing == Standing::TokenAlias);
        let what = if waits {
            "its join token is still to be spent, or the agent is gone"
        } else if path(id).starts_with(TOKENS) {
            "there is no such agent now, unless its join token is still to be spent"
        } else if path(id).starts_with(AGENTS) {
            "there is no such agent now"
        } else {
            "no entry issues that SPIFFE ID"
        };
        let evidence = format!("{} below {id}: {what}", count(children.len()));
        let mut finding = found.finding(Rule::MissingParent, id, children.clone(), &evidence);
        if waits {
            finding.level = Level::Note;
            finding.fix = "nothing while the token may still be spent; then delete them".to_owned();
        }
        found.all.push(finding);
        // What hangs below these entries is not a fault of its own.
        served.extend(graph.below(register, vec![*parent]));
    }
    cycles(register, &graph, served, found);
}

/// Whose parent is whom.
struct Graph {
    /// Entries by their parent ID.
    children: BTreeMap<Name, Vec<usize>>,
    /// Entries by the SPIFFE ID that they issue or stand for.
    granted: HashMap<Name, Vec<usize>>,
}

impl Graph {
    fn of(register: &Register) -> Self {
        let mut graph = Self { children: BTreeMap::new(), granted: HashMap::new() };
        for (at, entry) in register.entries.iter().enumerate() {
            if entry.standing != Standing::NodeAlias {
                graph.children.entry(entry.parent_id).or_default().push(at);
            }
            graph.granted.entry(entry.spiffe_id).or_default().push(at);
        }
        graph
    }

    /// The IDs that need nothing above them: agents, and what node aliases stand for. When agents are not known, every ID
    /// of an agent is taken for one.
    fn roots(&self, register: &Register) -> Vec<Name> {
        let aliases = register.entries.iter().filter(|entry| entry.standing == Standing::NodeAlias);
        let aliases = aliases.map(|entry| entry.spiffe_id);
        match &register.agents {
            Some(agents) => aliases.chain(agents.iter().map(|agent| agent.id)).collect(),
            None => {
                let parents = self.children.keys().copied();
                aliases.chain(parents.filter(|id| path(register.text(*id)).starts_with(AGENTS))).collect()
            }
        }
    }

    /// `from`, and all SPIFFE IDs of entries below.
    fn below(&self, register: &Register, from: Vec<Name>) -> HashSet<Name> {
        let mut seen: HashSet<Name> = HashSet::new();
        let mut open = from;
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                let children = self.children.get(&id).into_iter().flatten();
                open.extend(children.map(|at| register.entries[*at].spiffe_id));
            }
        }
        seen
    }
}

/// What is neither served nor below a missing parent is on a cycle, or below one.
fn cycles(register: &Register, graph: &Graph, mut explained: HashSet<Name>, found: &mut Findings<'_>) {
    for entry in register.entries.iter().filter(|entry| entry.standing != Standing::NodeAlias) {
        if explained.contains(&entry.parent_id) {
            continue;
        }
        // Upwards, always by the first entry: each ID here is issued by one whose parent is not explained either.
        let mut way: Vec<Name> = Vec::new();
        let mut at: HashMap<Name, usize> = HashMap::new();
        let mut id = entry.parent_id;
        let start = loop {
            if let Some(start) = at.get(&id) {
                break *start;
            }
            at.insert(id, way.len());
            way.push(id);
            match graph.granted.get(&id).and_then(|issuers| issuers.first()) {
                Some(issuer) => id = register.entries[*issuer].parent_id,
                None => break way.len(),
            }
        };
        let round: BTreeSet<Name> = way[start..].iter().copied().collect();
        let entries: BTreeSet<usize> =
            round.iter().filter_map(|id| graph.granted.get(id)?.first()).copied().collect();
        if !entries.is_empty() {
            let ids: Vec<&str> = way[start..].iter().rev().map(|id| register.text(*id)).collect();
            let evidence =
                format!("each is the parent of the next, and the last of the first: {}", ids.join(", "));
            // Whichever entry it was found by, the round is the same.
            let subject = ids.iter().min().copied().unwrap_or_default();
            found.add_about(Rule::ParentCycle, subject, entries.into_iter().collect(), &evidence);
        }
        explained.extend(graph.below(register, way));
    }
}

/// The path of a SPIFFE ID.
fn path(id: &str) -> &str {
    let rest = id.strip_prefix("spiffe://").unwrap_or(id);
    rest.find('/').map_or("", |at| &rest[at..])
}
