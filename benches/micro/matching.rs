//! How long does it take to find a workload's entries, or an agent's, among very many?

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Result, ensure};
use passant_core::matching::EntryIndex;
use passant_core::{AuthorizedEntry, Entry, Selectors, SpiffeId, UnixTime};
use passant_server::state::{Change, Cursor, Lineage, Revision, State};

use crate::clock::on_this_core;
use crate::entries::{self, Scattered};
use crate::lab::Lab;
use crate::row::{Row, Unit};

pub(crate) const MATCH: Row = Row {
    key: "match",
    ours: "the entries that match a workload of 13 to 15 selectors, among 1,000,000 entries",
    floor: "a bare inverted index: interned selectors, each entry below its rarest one, numbers for results",
    aim: Some(5.0),
    unit: Unit::CpuTime,
};

pub(crate) const AUTHORIZED: Row = Row {
    key: "authorized",
    ours: "the 100 entries that an agent may serve, among 1,000,000 entries of the server's state",
    floor: "a hash table from parent to entries: one lookup, and the entries' handles cloned",
    aim: None,
    unit: Unit::CpuTime,
};

/// Workloads that ask in turn.
const WORKLOADS: usize = 4_096;

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    if lab.wants(&MATCH) {
        matching(lab)?;
    }
    if lab.wants(&AUTHORIZED) {
        authorized(lab)?;
    }
    Ok(())
}

fn matching(lab: &mut Lab) -> Result<()> {
    let mut entries = Vec::with_capacity(lab.entries);
    let mut texts = Vec::with_capacity(lab.entries);
    for number in 0..lab.entries {
        let (entry, selectors) = entries::authorized(number)?;
        entries.push(entry);
        texts.push(selectors);
    }
    let index = EntryIndex::new(&entries);
    let bare = Bare::new(&texts);
    drop((entries, texts));
    let mut chosen = Scattered::new();
    let workloads: Vec<(Vec<String>, Selectors)> = (0..WORKLOADS)
        .map(|_| {
            let texts = entries::workload_of(chosen.below(lab.entries));
            let selectors = entries::parse(&texts)?;
            Ok((texts, selectors))
        })
        .collect::<Result<_>>()?;
    for (texts, selectors) in &workloads {
        let (ours, floor) = (index.matching(selectors).len(), bare.matching(texts).len());
        ensure!(ours == floor && ours > 0, "{ours} entries match by our index, {floor} by the bare one");
    }
    let mut at = Scattered::new();
    let floor = |times| {
        on_this_core(|| {
            for _ in 0..times {
                black_box(bare.matching(&workloads[at.below(WORKLOADS)].0));
            }
        })
    };
    let mut at = Scattered::new();
    let ours = |times| {
        on_this_core(|| {
            for _ in 0..times {
                black_box::<Vec<Arc<AuthorizedEntry>>>(index.matching(&workloads[at.below(WORKLOADS)].1));
            }
        })
    };
    lab.turns(&MATCH, floor, ours)
}

/// The least that finds the same: everything is a number but the texts that come in.
struct Bare {
    numbers: HashMap<String, u32>,
    /// By selector: the entries of which it is the rarest.
    below: Vec<Vec<u32>>,
    /// By entry: its selectors, ascending.
    selectors: Vec<Box<[u32]>>,
}

impl Bare {
    fn new(texts: &[Vec<String>]) -> Self {
        let mut numbers = HashMap::new();
        let mut common: Vec<usize> = Vec::new();
        let mut selectors = Vec::with_capacity(texts.len());
        for texts in texts {
            let mut own = Vec::with_capacity(texts.len());
            for text in texts {
                let next = u32::try_from(numbers.len()).expect("there are fewer selectors");
                let number = *numbers.entry(text.clone()).or_insert(next);
                if number == next {
                    common.push(0);
                }
                common[number as usize] += 1;
                own.push(number);
            }
            own.sort_unstable();
            selectors.push(own.into_boxed_slice());
        }
        let mut below = vec![Vec::new(); common.len()];
        for (entry, own) in (0..).zip(&selectors) {
            let rarest = own.iter().min_by_key(|number| common[**number as usize]);
            below[*rarest.expect("every entry has selectors") as usize].push(entry);
        }
        Self { numbers, below, selectors }
    }

    fn matching(&self, workload: &[String]) -> Vec<u32> {
        let mut have: Vec<u32> = workload.iter().filter_map(|text| self.numbers.get(text).copied()).collect();
        have.sort_unstable();
        let fits = |entry: &u32| {
            self.selectors[*entry as usize].iter().all(|wanted| have.binary_search(wanted).is_ok())
        };
        have.iter().flat_map(|number| &self.below[*number as usize]).copied().filter(fits).collect()
    }
}

fn authorized(lab: &mut Lab) -> Result<()> {
    let entries = (0..lab.entries).map(entries::entry).collect::<Result<Vec<_>>>()?;
    let mut bare: HashMap<SpiffeId, Vec<Arc<Entry>>> = HashMap::new();
    for entry in &entries {
        bare.entry(entry.parent_id.clone()).or_default().push(Arc::clone(entry));
    }
    let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
    let objects = entries.into_iter().map(Change::PutEntry).collect();
    let state = State::of_objects(entries::trust_domain(), cursor, objects);
    let agents: Vec<SpiffeId> = (0..lab.entries).step_by(entries::PER_AGENT).map(entries::agent_of).collect();
    let now = UnixTime::from_secs(1_790_000_000);
    for agent in &agents {
        let (ours, floor) = (state.authorized_entries(agent, now).len(), bare[agent].len());
        ensure!(ours == floor, "{agent}: {ours} entries by the state, {floor} by the bare table");
    }
    let mut at = Scattered::new();
    let floor = |times| {
        on_this_core(|| {
            for _ in 0..times {
                black_box(bare.get(&agents[at.below(agents.len())]).cloned());
            }
        })
    };
    let mut at = Scattered::new();
    let ours = |times| {
        on_this_core(|| {
            for _ in 0..times {
                black_box(state.authorized_entries(&agents[at.below(agents.len())], now));
            }
        })
    };
    lab.turns(&AUTHORIZED, floor, ours)
}
