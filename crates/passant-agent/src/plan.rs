//! Which SVIDs must be minted or dropped now? Pure: a clock reading and the cache in, actions out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use passant_core::{AuthorizedEntry, EntryId, UnixTime};

use crate::cache::{Held, Slot, State};
use crate::limits;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Forget the SVID: it has expired, or nobody wants it and it is no longer right.
    Drop(EntryId),
    /// Ask the server for a new SVID.
    Mint { entry: Arc<AuthorizedEntry>, why: Why },
}

/// Why an SVID is minted; the order is the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// A workload waits for it.
    Awaited,
    /// Its authority is tainted or gone.
    Distrusted,
    /// Its entry has changed.
    Revised,
    /// Half of its life is over.
    Due,
    /// It may be asked for soon.
    Prefetch,
}

/// What to do at `now`: first what to drop, then what to mint, most urgent first and in entry-id order within.
///
/// `wanted` are the entries that some workload is subscribed to. Minting has a floor: one entry is not minted again
/// within [`limits::RENEWAL_FLOOR`] of the last time, nor before the wait after a failure is over.
pub(crate) fn plan(now: UnixTime, state: &State, wanted: &BTreeSet<EntryId>) -> Vec<Action> {
    let mut drops = Vec::new();
    let mut mints: Vec<(Why, Arc<AuthorizedEntry>)> = Vec::new();
    let mut prefetched = 0;
    for (id, slot) in state.slots() {
        let prefetch = !slot.entry.disable_x509_svid_prefetch && prefetched < limits::PREFETCHED;
        prefetched += usize::from(prefetch);
        let keep = wanted.contains(id) || prefetch;
        if slot.held.is_some() && must_drop(now, slot, keep) {
            drops.push(Action::Drop(id.clone()));
        }
        if let Some(why) = reason(now, slot, wanted.contains(id), keep) {
            mints.push((why, Arc::clone(&slot.entry)));
        }
    }
    mints.sort_by_key(|(why, _)| *why);
    drops.extend(mints.into_iter().map(|(why, entry)| Action::Mint { entry, why }));
    drops
}

/// Expired, or unwanted and no longer right: the next workload is to wait for a right one.
fn must_drop(now: UnixTime, slot: &Slot, keep: bool) -> bool {
    match slot.usable(now) {
        None => true,
        Some(held) => !keep && (!held.vouched || held.revision != slot.entry.revision),
    }
}

fn reason(now: UnixTime, slot: &Slot, awaited: bool, keep: bool) -> Option<Why> {
    if !keep || slot.failed.as_ref().is_some_and(|failed| !has_passed(now, failed.at, failed.wait)) {
        return None;
    }
    match slot.usable(now) {
        None if awaited => Some(Why::Awaited),
        None => Some(Why::Prefetch),
        Some(held) => reason_to_replace(now, slot, held),
    }
}

fn reason_to_replace(now: UnixTime, slot: &Slot, held: &Held) -> Option<Why> {
    if !held.vouched {
        return has_passed(now, held.minted_at, limits::DISTRUST_FLOOR).then_some(Why::Distrusted);
    }
    if !has_passed(now, held.minted_at, limits::RENEWAL_FLOOR) {
        return None;
    }
    if held.revision != slot.entry.revision {
        return Some(Why::Revised);
    }
    (held.renew_at <= now).then_some(Why::Due)
}

/// Whether `wait` has passed since `since`. A `since` in the future comes from a clock that was set back, and must not
/// stop everything until that future arrives.
fn has_passed(now: UnixTime, since: UnixTime, wait: Duration) -> bool {
    now < since || since.until(now) >= wait
}
