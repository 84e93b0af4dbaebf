//! What is held for one entry: an SVID for all its processes, or one for each?

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use passant_core::x509_svid::X509Svid;
use passant_core::{AuthorizedEntry, EntryId, Host, Instance, KeyScope, Secret, UnixTime};

use crate::{backoff, limits};

/// For whom an SVID is: for all processes that match an entry, or for one of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seat {
    pub(crate) entry: EntryId,
    /// The one process that has it.
    pub(crate) process: Option<Instance>,
}

impl From<EntryId> for Seat {
    fn from(entry: EntryId) -> Self {
        Self { entry, process: None }
    }
}

/// One entry and what is held for it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Arc<AuthorizedEntry>,
    /// What all its processes have; nothing if each has its own.
    pub(crate) shared: Supply,
    /// What each of its processes has, if the entry says so.
    pub(crate) own: BTreeMap<Instance, Own>,
    keys: Bucket,
}

/// What one process has of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    pub(crate) supply: Supply,
    /// Since when the process has no stream open.
    pub(crate) idle_since: Option<UnixTime>,
}

/// An SVID, or why there is none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Supply {
    pub(crate) held: Option<Held>,
    pub(crate) failed: Option<Failed>,
}

/// An SVID in the cache.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) svid: Arc<X509Svid>,
    pub(crate) key: Arc<Secret<Vec<u8>>>,
    /// The revision of the entry it was minted for.
    pub(crate) revision: u64,
    pub(crate) minted_at: UnixTime,
    pub(crate) renew_at: UnixTime,
    /// Whether an authority that is not tainted vouches for it.
    pub(crate) vouched: bool,
}

/// The last attempts to mint.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) times: u32,
    /// When the first of them failed.
    pub(crate) since: UnixTime,
    pub(crate) at: UnixTime,
    pub(crate) wait: Duration,
    pub(crate) why: String,
}

/// How many more processes may have a key of their own now.
#[derive(Clone, Debug)]
struct Bucket {
    left: u32,
    at: Option<UnixTime>,
}

impl Slot {
    pub(super) fn new(entry: &Arc<AuthorizedEntry>) -> Self {
        Self {
            entry: Arc::clone(entry),
            shared: Supply::default(),
            own: BTreeMap::new(),
            keys: Bucket { left: limits::PROCESS_KEYS.0, at: None },
        }
    }

    /// Whether each process has its own SVID.
    pub(crate) fn is_per_process(&self) -> bool {
        self.entry.options.key_scope == KeyScope::Instance
    }

    /// Whether its SVID may be minted before anybody asks.
    pub(super) fn may_be_prefetched(&self) -> bool {
        !self.is_per_process() && !self.entry.disable_x509_svid_prefetch
    }

    /// What `process` gets of it; nothing if it needs a place of its own and has none.
    pub(crate) fn supply(&self, process: Option<&Instance>) -> Option<&Supply> {
        match self.is_per_process() {
            false => Some(&self.shared),
            true => self.own.get(process?).map(|own| &own.supply),
        }
    }

    /// The place of an SVID; none if the entry is not, or not any more, of that kind, or the process has gone.
    pub(super) fn supply_mut(&mut self, process: Option<&Instance>) -> Option<&mut Supply> {
        match (self.is_per_process(), process) {
            (false, None) => Some(&mut self.shared),
            (true, Some(process)) => self.own.get_mut(process).map(|own| &mut own.supply),
            (false, Some(_)) | (true, None) => None,
        }
    }

    /// Everything that can hold an SVID, and for whom.
    pub(crate) fn supplies(&self) -> impl Iterator<Item = (Option<&Instance>, &Supply)> {
        let own = self.own.iter().map(|(process, own)| (Some(process), &own.supply));
        std::iter::once((None, &self.shared)).chain(own)
    }

    pub(super) fn supplies_mut(&mut self) -> impl Iterator<Item = &mut Supply> {
        std::iter::once(&mut self.shared).chain(self.own.values_mut().map(|own| &mut own.supply))
    }

    /// Gives `process` a place of its own, unless it has one; false if there are too many, or come too fast.
    ///
    /// `is_room` is false when there are too many of all entries together.
    pub(super) fn admit(&mut self, process: &Instance, is_room: bool, now: UnixTime) -> bool {
        if let Some(own) = self.own.get_mut(process) {
            own.idle_since = None;
            return true;
        }
        if !is_room || self.own.len() >= limits::PROCESSES_PER_ENTRY || !self.keys.take(now) {
            return false;
        }
        self.own.insert(process.clone(), Own::default());
        true
    }

    /// The slot once the server tells of `entry`. An SVID for another SPIFFE ID, or for others than before, goes; otherwise
    /// the old one is served until the new one is there.
    pub(super) fn follow(mut self, entry: &Arc<AuthorizedEntry>) -> Self {
        if *self.entry == **entry {
            return self;
        }
        let was_per_process = self.is_per_process();
        self.entry = Arc::clone(entry);
        if was_per_process != self.is_per_process() {
            self.shared = Supply::default();
            self.own.clear();
        }
        for supply in self.supplies_mut() {
            supply.held = supply.held.take().filter(|held| *held.svid.id() == entry.spiffe_id);
            supply.failed = None;
        }
        self
    }
}

impl Supply {
    /// The SVID held, if it is unexpired at `now`. The last valid second is not used up.
    pub(crate) fn usable(&self, now: UnixTime) -> Option<&Held> {
        self.held.as_ref().filter(|held| now < held.svid.not_after())
    }

    /// One more attempt has failed; the SVID held before stays.
    pub(super) fn fail(&mut self, why: String, now: UnixTime, host: &Host) {
        let (times, since) = self.failed.as_ref().map_or((0, now), |failed| (failed.times, failed.since));
        let wait = backoff::grown(limits::MINT_AGAIN_FIRST, limits::MINT_AGAIN_LAST, times);
        let wait = backoff::spread(wait, host);
        self.failed = Some(Failed { times: times.saturating_add(1), since, at: now, wait, why });
    }
}

impl Bucket {
    fn take(&mut self, now: UnixTime) -> bool {
        let (most, per_second) = limits::PROCESS_KEYS;
        // A clock that was set back fills nothing and takes nothing away.
        let passed = self.at.map_or(0, |at| at.until(now).as_secs());
        let more = u32::try_from(passed).unwrap_or(u32::MAX).saturating_mul(per_second);
        self.left = self.left.saturating_add(more).min(most);
        self.at = Some(now);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("id", self.svid.id())
            .field("revision", &self.revision)
            .field("renew_at", &self.renew_at)
            .field("vouched", &self.vouched)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_so_many_a_second() {
        let (most, per_second) = limits::PROCESS_KEYS;
        let mut bucket = Bucket { left: most, at: None };
        let at = UnixTime::from_secs;
        let mut taken = |now, of: u32| (0..of).filter(|_| bucket.take(at(now))).count();
        assert_eq!(taken(0, most + 5), usize::try_from(most).unwrap());
        assert_eq!(taken(1, 2 * per_second), usize::try_from(per_second).unwrap());
        assert_eq!(taken(0, 1), 0, "a clock set back");
        assert_eq!(taken(1_000_000, most + 5), usize::try_from(most).unwrap());
    }
}
