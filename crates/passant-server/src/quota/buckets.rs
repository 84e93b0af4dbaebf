//! How does a bucket keep a part of itself free for what goes first?
//!
//! It has a level for each rank. Whoever takes, takes from the level of its own rank and from those of all ranks before it:
//! the level of the last rank fills slower and holds less, and so leaves the rest of the first one to the ranks before.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Caller, Rank};
use crate::config::Rate;
use crate::limits::CALLERS;

/// Below this many callers a table is not looked through for those to forget.
const FEW: usize = 1_024;
/// How often a full table is looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How much each level holds, and how fast it fills.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    burst: [u32; Rank::COUNT],
    /// From one token to the next.
    every: [Duration; Rank::COUNT],
}

/// What is left in each level: when it will be full again, by what was taken of it.
#[derive(Clone, Copy, Debug)]
struct Levels([Instant; Rank::COUNT]);

/// One bucket for each caller.
#[derive(Debug)]
pub(super) struct Each {
    shape: Shape,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    /// Whose bucket is not full. The others need not be known.
    callers: BTreeMap<Caller, Levels>,
    /// For all who are new while the table is full: so strangers who make up addresses gain nothing, and cost nothing.
    crowd: Levels,
    /// How many there are when those are looked for whose bucket has filled.
    sweep_at: usize,
    /// When that was done last. A table that stays full is not looked through for every call.
    swept: Option<Instant>,
}

/// One bucket for all, and a line of those who wait at it.
#[derive(Debug)]
pub(super) struct Overall {
    shape: Shape,
    state: Mutex<State>,
    /// Held by the first one in the line of each rank.
    first: [tokio::sync::Mutex<()>; Rank::COUNT],
}

#[derive(Debug)]
struct State {
    levels: Levels,
    /// Tokens that are waited for.
    wanted: [u32; Rank::COUNT],
}

/// A place in the line, left when dropped.
struct Place<'a> {
    overall: &'a Overall,
    rank: Rank,
    count: u32,
}

impl Shape {
    /// A bucket of which `reserved` percent stay free for what goes first.
    pub(super) fn new(rate: Rate, reserved: u32) -> Self {
        let percent = Rank::ALL.map(|rank| rank.percent(reserved));
        let burst = percent.map(|percent| {
            let part = u64::from(rate.at_once) * u64::from(percent) / 100;
            u32::try_from(part).unwrap_or(u32::MAX).max(1)
        });
        let every = percent.map(|percent| {
            let each_second = u64::from(rate.per_second.max(1)) * u64::from(percent.max(1));
            Duration::from_nanos(100 * 1_000_000_000 / each_second)
        });
        Self { burst, every }
    }

    /// After how long `count` can be taken.
    fn wait(&self, levels: &Levels, rank: Rank, count: u32, now: Instant) -> Duration {
        let waits = (0..=rank as usize).map(|at| {
            let owed = levels.0[at].saturating_duration_since(now) + self.every[at] * count;
            owed.saturating_sub(self.every[at] * self.burst[at])
        });
        waits.max().unwrap_or_default()
    }

    fn take(&self, levels: &mut Levels, rank: Rank, count: u32, now: Instant) {
        for at in 0..=rank as usize {
            levels.0[at] = levels.0[at].max(now) + self.every[at] * count;
        }
    }

    fn give_back(&self, levels: &mut Levels, rank: Rank, count: u32) {
        for at in 0..=rank as usize {
            levels.0[at] = levels.0[at].checked_sub(self.every[at] * count).unwrap_or(levels.0[at]);
        }
    }
}

impl Levels {
    const fn full(now: Instant) -> Self {
        Self([now; Rank::COUNT])
    }

    fn is_full(&self, now: Instant) -> bool {
        self.0.iter().all(|full_at| *full_at <= now)
    }
}

impl Each {
    pub(super) fn new(shape: Shape) -> Self {
        let table = Table {
            callers: BTreeMap::new(),
            crowd: Levels::full(Instant::now()),
            sweep_at: FEW,
            swept: None,
        };
        Self { shape, table: Mutex::new(table) }
    }

    /// The most that there can be at once.
    pub(super) const fn most(&self, rank: Rank) -> u32 {
        self.shape.burst[rank as usize]
    }

    /// Takes `count` of `caller`, or nothing.
    ///
    /// # Errors
    /// When there are not so many: after how long there will be.
    pub(super) fn take(&self, caller: &Caller, rank: Rank, count: u32) -> Result<(), Duration> {
        let now = Instant::now();
        let mut table = lock(&self.table);
        let levels = table.of(caller, now);
        let wait = self.shape.wait(levels, rank, count, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.shape.take(levels, rank, count, now);
        Ok(())
    }

    /// Undoes what [`Self::take`] did.
    pub(super) fn give_back(&self, caller: &Caller, rank: Rank, count: u32) {
        let mut table = lock(&self.table);
        // Who is forgotten has a full bucket.
        let Table { callers, crowd, .. } = &mut *table;
        if let Some(levels) = callers.get_mut(caller) {
            self.shape.give_back(levels, rank, count);
        } else if callers.len() >= CALLERS {
            self.shape.give_back(crowd, rank, count);
        }
    }

    /// How many callers are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        lock(&self.table).callers.len()
    }
}

impl Table {
    fn of(&mut self, caller: &Caller, now: Instant) -> &mut Levels {
        let is_new = !self.callers.contains_key(caller);
        let is_swept = self.callers.len() >= CALLERS
            && self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY);
        if is_new && self.callers.len() >= self.sweep_at && !is_swept {
            self.swept = Some(now);
            self.callers.retain(|_, levels| !levels.is_full(now));
            self.sweep_at = (2 * self.callers.len()).clamp(FEW, CALLERS);
        }
        if is_new && self.callers.len() >= CALLERS {
            return &mut self.crowd;
        }
        self.callers.entry(caller.clone()).or_insert_with(|| Levels::full(now))
    }
}

impl Overall {
    pub(super) fn new(shape: Shape) -> Self {
        let state = State { levels: Levels::full(Instant::now()), wanted: [0; Rank::COUNT] };
        Self { shape, state: Mutex::new(state), first: Default::default() }
    }

    /// The most that there can be at once.
    pub(super) const fn most(&self, rank: Rank) -> u32 {
        self.shape.burst[rank as usize]
    }

    /// Takes `count`, after those of the same rank who came before; waits for it within `patience`. Whoever stops waiting
    /// has taken nothing.
    ///
    /// # Errors
    /// When it would take longer: how long. It is told at once, as far as it can be known.
    pub(super) async fn take(&self, rank: Rank, count: u32, patience: Duration) -> Result<(), Duration> {
        let place = {
            let mut state = lock(&self.state);
            let now = Instant::now();
            let ahead = state.wanted[rank as usize];
            let wait = self.shape.wait(&state.levels, rank, ahead.saturating_add(count), now);
            if ahead == 0 && wait.is_zero() {
                self.shape.take(&mut state.levels, rank, count, now);
                return Ok(());
            }
            if wait > patience {
                return Err(wait);
            }
            state.wanted[rank as usize] += count;
            Place { overall: self, rank, count }
        };
        let in_turn = async {
            let _first = self.first[rank as usize].lock().await;
            while let Err(wait) = self.take_now(rank, count) {
                tokio::time::sleep(wait).await;
            }
        };
        let taken = tokio::time::timeout(patience, in_turn).await;
        drop(place);
        // Those of higher ranks came in between.
        taken.map_err(|_| {
            let state = lock(&self.state);
            let ahead = state.wanted[rank as usize].saturating_add(count);
            self.shape.wait(&state.levels, rank, ahead, Instant::now()).max(Duration::from_millis(1))
        })
    }

    /// Undoes what [`Self::take`] did.
    pub(super) fn give_back(&self, rank: Rank, count: u32) {
        self.shape.give_back(&mut lock(&self.state).levels, rank, count);
    }

    fn take_now(&self, rank: Rank, count: u32) -> Result<(), Duration> {
        let (mut state, now) = (lock(&self.state), Instant::now());
        let wait = self.shape.wait(&state.levels, rank, count, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.shape.take(&mut state.levels, rank, count, now);
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.overall.state).wanted[self.rank as usize] -= self.count;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
