//! How do entries come, change and go, by the thousand and at a steady pace?

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use passant_proto::types;
use passant_tests::api::{selector, wire_id};
use passant_tests::site::{NODE, Site, TRUST_DOMAIN};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::latency::Latencies;
use crate::registrar::Registrar;

/// Operators that change entries at the same time, each its own.
const OPERATORS: usize = 4;
/// Of so many rounds of creation, change and deletion one is about workloads with open watches.
const SERVED_EVERY: usize = 8;
/// One of so many other entries is of this agent's node, of a process that never comes.
const HERE_EVERY: usize = 8;
/// Entries made by one request at the beginning.
const SEED_BATCH: usize = 500;

/// All entries that come and go.
pub(super) struct Crowd {
    operators: Vec<Shelf>,
}

/// The entries of one operator, oldest first.
struct Shelf {
    number: usize,
    /// The executables of the workloads.
    paths: Vec<PathBuf>,
    served: VecDeque<types::Entry>,
    others: VecDeque<types::Entry>,
    /// How many it has made, and how many of them for workloads.
    made: usize,
    made_served: usize,
}

/// What an operator does in turn.
#[derive(Clone, Copy)]
enum Step {
    Create,
    Update,
    Delete,
}

/// What was changed.
#[derive(Default)]
pub(super) struct Changed {
    created: usize,
    updated: usize,
    deleted: usize,
    /// From call to answer.
    pub(super) latencies: Latencies,
    pub(super) took: Duration,
    pub(super) failures: Vec<String>,
}

impl Changed {
    /// Changes that were acknowledged.
    pub(super) const fn acknowledged(&self) -> usize {
        self.created + self.updated + self.deleted
    }

    /// Of each kind.
    pub(super) fn told(&self) -> String {
        format!("{}, {} and {}", self.created, self.updated, self.deleted)
    }

    fn add(&mut self, other: Self) {
        self.created += other.created;
        self.updated += other.updated;
        self.deleted += other.deleted;
        self.latencies.extend(&other.latencies);
        self.failures.extend(other.failures);
    }
}

impl Crowd {
    /// Makes the entries that the show begins with: one for each workload of each operator, and others up to `count`.
    ///
    /// # Errors
    /// When the server refuses one.
    pub(super) async fn seed(registrar: &Registrar, paths: &[PathBuf], count: usize) -> anyhow::Result<Self> {
        let mut operators = Vec::new();
        for number in 0..OPERATORS {
            let mut shelf = Shelf {
                number,
                paths: paths.to_vec(),
                served: VecDeque::new(),
                others: VecDeque::new(),
                made: 0,
                made_served: 0,
            };
            let served = (0..paths.len()).map(|_| shelf.fresh(true)).collect();
            shelf.served = registrar.create(served).await?.0.into();
            let mut left = (count / OPERATORS).saturating_sub(paths.len());
            while left > 0 {
                let some = left.min(SEED_BATCH);
                left -= some;
                let others = (0..some).map(|_| shelf.fresh(false)).collect();
                shelf.others.extend(registrar.create(others).await?.0);
            }
            operators.push(shelf);
        }
        Ok(Self { operators })
    }

    /// What the server must have of them: hint and DNS names of each, by id.
    pub(super) fn books(&self) -> BTreeMap<&str, (&str, &[String])> {
        let all = self.operators.iter().flat_map(|shelf| shelf.served.iter().chain(&shelf.others));
        all.map(|entry| (&*entry.id, (&*entry.hint, &*entry.dns_names))).collect()
    }
}

/// Makes so many changes within `length`, spread over it.
pub(super) async fn run(site: &Site, crowd: &mut Crowd, changes: usize, length: Duration) -> Changed {
    let began = Instant::now();
    let mut operators = JoinSet::new();
    let shelves = std::mem::take(&mut crowd.operators);
    for (nth, shelf) in shelves.into_iter().enumerate() {
        let mine = changes / OPERATORS + usize::from(nth < changes % OPERATORS);
        let registrar = Registrar::connect(site).await;
        operators.spawn(async move {
            match registrar {
                Ok(registrar) => operate(&registrar, shelf, mine, length).await,
                Err(why) => (shelf, Changed { failures: vec![format!("{why:#}")], ..Changed::default() }),
            }
        });
    }
    let mut changed = Changed::default();
    while let Some(ended) = operators.join_next().await {
        match ended {
            Ok((shelf, one)) => {
                crowd.operators.push(shelf);
                changed.add(one);
            }
            Err(why) => changed.failures.push(format!("an operator was lost: {why}")),
        }
    }
    changed.took = began.elapsed();
    changed
}

/// One operator: creates, changes and deletes in turn. Ends at the first failure.
async fn operate(
    registrar: &Registrar,
    mut shelf: Shelf,
    changes: usize,
    length: Duration,
) -> (Shelf, Changed) {
    let mut changed = Changed::default();
    let pace = length.div_f64(u32::try_from(changes.max(1)).map_or(f64::MAX, f64::from));
    let mut ticks = interval(pace.max(Duration::from_micros(1)));
    // The pace is kept on the whole: what was late is made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for nth in 0..changes {
        ticks.tick().await;
        let step = [Step::Create, Step::Update, Step::Delete][nth % 3];
        let from = Instant::now();
        match shelf.take(registrar, step, nth / 3).await {
            Ok(()) => {
                changed.latencies.push(from.elapsed());
                match step {
                    Step::Create => changed.created += 1,
                    Step::Update => changed.updated += 1,
                    Step::Delete => changed.deleted += 1,
                }
            }
            Err(why) => {
                changed.failures.push(format!("operator {}, change {nth}: {why:#}", shelf.number));
                break;
            }
        }
    }
    (shelf, changed)
}

impl Shelf {
    /// Takes one step of a round.
    async fn take(&mut self, registrar: &Registrar, step: Step, round: usize) -> anyhow::Result<()> {
        let is_served = round.is_multiple_of(SERVED_EVERY);
        match step {
            Step::Create => {
                let fresh = self.fresh(is_served);
                let made = registrar.create(vec![fresh]).await?.0;
                self.row(is_served).extend(made);
            }
            Step::Update => {
                let number = self.number;
                let row = self.row(is_served);
                // Any of them, as long as it is another one each time.
                let at = round * 31 % row.len().max(1);
                let entry = row.get_mut(at).context("there is an entry")?;
                let mut changed = entry.clone();
                changed.hint = format!("changed-{number}-{round}");
                changed.dns_names = vec![format!("c{round}-{number}.example.org")];
                let mask = types::EntryMask { hint: true, dns_names: true, ..types::EntryMask::default() };
                registrar.update(changed.clone(), mask).await?;
                *entry = changed;
            }
            Step::Delete => {
                let row = self.row(is_served);
                let id = row.front().context("there is an entry")?.id.clone();
                registrar.delete(vec![id]).await?;
                row.pop_front();
            }
        }
        Ok(())
    }

    fn row(&mut self, is_served: bool) -> &mut VecDeque<types::Entry> {
        if is_served { &mut self.served } else { &mut self.others }
    }

    /// A new entry: of the workload whose turn it is, or of no process that is there.
    fn fresh(&mut self, is_served: bool) -> types::Entry {
        self.made += 1;
        let (operator, number) = (self.number, self.made);
        let (kind, parent, path) = if is_served {
            self.made_served += 1;
            let path = &self.paths[self.made_served % self.paths.len()];
            ("served", NODE.to_owned(), path.display().to_string())
        } else if number.is_multiple_of(HERE_EVERY) {
            ("absent", NODE.to_owned(), format!("/nowhere/{operator}/{number}"))
        } else {
            ("elsewhere", format!("/elsewhere/{}", number % 100), format!("/nowhere/{number}"))
        };
        types::Entry {
            spiffe_id: wire_id(TRUST_DOMAIN, &format!("/{kind}/{operator}/{number}")),
            parent_id: wire_id(TRUST_DOMAIN, &parent),
            selectors: vec![selector("unix", &format!("path:{path}"))],
            ..types::Entry::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_get_entries_in_turn_whatever_is_made_between() {
        let paths = [PathBuf::from("/one"), PathBuf::from("/two")];
        let row = VecDeque::new;
        let mut shelf =
            Shelf { number: 3, paths: paths.to_vec(), served: row(), others: row(), made: 0, made_served: 0 };
        let mut served = Vec::new();
        for _ in 0..4 {
            drop(shelf.fresh(false));
            served.push(shelf.fresh(true).selectors[0].value.clone());
            drop(shelf.fresh(false));
        }
        assert_eq!(served, ["path:/two", "path:/one", "path:/two", "path:/one"]);
    }
}
