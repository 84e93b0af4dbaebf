//! Which SVIDs must be minted or dropped now? Pure: a clock reading and the cache in, actions out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use passant_core::{AuthorizedEntry, EntryId, Instance, UnixTime};

use crate::cache::{Held, Seat, Slot, State, Supply};
use crate::limits;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Forget the SVID: it has expired, or nobody wants it and it is no longer right.
    Drop(Seat),
    /// Ask the server for a new SVID.
    Mint { seat: Seat, entry: Arc<AuthorizedEntry>, why: Why },
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
    let mut actions = Actions::default();
    let mut prefetched = state.prefetched().peekable();
    for (id, slot) in state.slots() {
        let prefetch = prefetched.next_if_eq(&id).is_some();
        let is_wanted = wanted.contains(id);
        actions.look(now, slot, is_wanted, is_wanted || prefetch);
    }
    actions.in_order()
}

/// The same for `news` alone: what has changed, or was asked for just now. What is only to be minted ahead and cannot be
/// told without looking at everything is left to [`plan`].
pub(crate) fn plan_news(
    now: UnixTime,
    state: &State,
    news: &BTreeSet<EntryId>,
    is_wanted: impl Fn(&EntryId) -> bool,
) -> Vec<Action> {
    let mut actions = Actions::default();
    for id in news {
        if let Some((slot, prefetch)) = state.slot(id) {
            let is_wanted = is_wanted(id);
            actions.look(now, slot, is_wanted, is_wanted || prefetch);
        }
    }
    actions.in_order()
}

#[derive(Default)]
struct Actions {
    drops: Vec<Action>,
    mints: Vec<(Why, Seat, Arc<AuthorizedEntry>)>,
}

impl Actions {
    /// One slot: the SVID that all its processes have, and those that each has of its own.
    fn look(&mut self, now: UnixTime, slot: &Slot, awaited: bool, keep: bool) {
        let is_shared = !slot.is_per_process();
        self.look_at(now, slot, None, &slot.shared, awaited && is_shared, keep && is_shared);
        for (process, own) in &slot.own {
            let is_open = own.idle_since.is_none();
            self.look_at(now, slot, Some(process), &own.supply, is_open, is_open);
        }
    }

    fn look_at(
        &mut self,
        now: UnixTime,
        slot: &Slot,
        process: Option<&Instance>,
        supply: &Supply,
        awaited: bool,
        keep: bool,
    ) {
        let entry = &slot.entry;
        let seat = || Seat { entry: entry.id.clone(), process: process.cloned() };
        if supply.held.is_some() && must_drop(now, entry, supply, keep) {
            self.drops.push(Action::Drop(seat()));
        }
        if let Some(why) = reason(now, entry, supply, awaited, keep) {
            self.mints.push((why, seat(), Arc::clone(entry)));
        }
    }

    fn in_order(self) -> Vec<Action> {
        let Self { drops: mut actions, mut mints } = self;
        mints.sort_by_key(|(why, ..)| *why);
        actions.extend(mints.into_iter().map(|(why, seat, entry)| Action::Mint { seat, entry, why }));
        actions
    }
}

/// Expired, or unwanted and no longer right: the next workload is to wait for a right one.
fn must_drop(now: UnixTime, entry: &AuthorizedEntry, supply: &Supply, keep: bool) -> bool {
    match supply.usable(now) {
        None => true,
        Some(held) => !keep && (!held.vouched || held.revision != entry.revision),
    }
}

fn reason(now: UnixTime, entry: &AuthorizedEntry, supply: &Supply, awaited: bool, keep: bool) -> Option<Why> {
    if !keep || supply.failed.as_ref().is_some_and(|failed| !has_passed(now, failed.at, failed.wait)) {
        return None;
    }
    match supply.usable(now) {
        None if awaited => Some(Why::Awaited),
        None => Some(Why::Prefetch),
        Some(held) => reason_to_replace(now, entry, held),
    }
}

fn reason_to_replace(now: UnixTime, entry: &AuthorizedEntry, held: &Held) -> Option<Why> {
    // Until then the other reasons stand: it must not expire in a workload's hands meanwhile.
    if !held.vouched && has_passed(now, held.minted_at, limits::DISTRUST_FLOOR) {
        return Some(Why::Distrusted);
    }
    if !has_passed(now, held.minted_at, limits::RENEWAL_FLOOR) {
        return None;
    }
    if held.revision != entry.revision {
        return Some(Why::Revised);
    }
    (held.renew_at <= now).then_some(Why::Due)
}

/// When the next SVID held becomes due after `now`; none while none is held.
pub(crate) fn next_due(now: UnixTime, state: &State) -> Option<UnixTime> {
    state
        .slots()
        .flat_map(|(_, slot)| slot.supplies())
        .filter_map(|(_, supply)| supply.held.as_ref().map(|held| held.renew_at))
        .filter(|due| now < *due)
        .min()
}

/// Whether `wait` has passed since `since`. A `since` in the future comes from a clock that was set back, and must not
/// stop everything until that future arrives.
fn has_passed(now: UnixTime, since: UnixTime, wait: Duration) -> bool {
    now < since || since.until(now) >= wait
}

#[cfg(test)]
mod tests {
    use passant_core::Secret;
    use passant_core::x509_svid::X509Svid;

    use super::*;
    use crate::cache::{MintFailure, Minted, View};
    use crate::testing::ca::Ca;
    use crate::testing::{NOW, by_id, entry, entry_id, following_host, id};

    struct Bench {
        ca: Ca,
        state: State,
    }

    impl Bench {
        fn new(entries: Vec<AuthorizedEntry>) -> Self {
            let mut bench = Self { ca: Ca::new("one"), state: State::default() };
            bench.learn(entries);
            bench
        }

        fn learn(&mut self, entries: Vec<AuthorizedEntry>) {
            let bundle = Arc::new(self.ca.bundle());
            let view = View { entries: by_id(entries), bundle, federated: [].into() };
            self.state.learn(view, at(0));
        }

        /// Holds an SVID minted at `minted` seconds, to renew at `renew` and to end at `end`.
        fn hold(&mut self, entry: &AuthorizedEntry, minted: i64, renew: i64, end: i64) {
            let (svid, key) = self.ca.svid_and_key(&entry.spiffe_id, NOW + minted - 10, NOW + end);
            let minted_svid = Minted {
                entry: Arc::new(entry.clone()),
                svid: Arc::new(svid),
                key: Arc::new(Secret::new(key.pkcs8().expose().clone())),
                renew_at: at(renew),
                bundle: Arc::new(self.ca.bundle()),
                vouched: true,
            };
            self.state.put(&entry.id.clone().into(), minted_svid, at(minted));
        }

        /// What is planned at `now`, as text.
        fn at(&self, now: i64, wanted: &[&str]) -> Vec<String> {
            let wanted = wanted.iter().map(|id| entry_id(id)).collect();
            let text = |action| match action {
                Action::Drop(seat) => format!("drop {}", seat.entry),
                Action::Mint { entry, why, .. } => format!("{why:?} {}", entry.id),
            };
            plan(at(now), &self.state, &wanted).into_iter().map(text).collect()
        }
    }

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(NOW + secs)
    }

    #[test]
    fn what_workloads_wait_for_is_minted_before_what_is_prefetched() {
        let bench = Bench::new(vec![entry("a", 1), entry("b", 2), entry("c", 3)]);
        assert_eq!(bench.at(0, &["c"]), ["Awaited c", "Prefetch a", "Prefetch b"]);
    }

    #[test]
    fn an_entry_on_demand_is_minted_only_when_somebody_wants_it() {
        let on_demand = AuthorizedEntry { disable_x509_svid_prefetch: true, ..entry("a", 1) };
        let bench = Bench::new(vec![on_demand]);
        assert!(bench.at(0, &[]).is_empty());
        assert_eq!(bench.at(0, &["a"]), ["Awaited a"]);
    }

    #[test]
    fn an_entry_for_a_secret_store_is_never_minted_here() {
        let bench = Bench::new(vec![AuthorizedEntry { store_svid: true, ..entry("a", 1) }]);
        assert!(bench.at(0, &["a"]).is_empty());
    }

    #[test]
    fn only_so_many_entries_are_prefetched_but_a_wanted_one_always_comes() {
        let entries = (0..limits::PREFETCHED + 5).map(|n| entry(&format!("e{n:05}"), 1)).collect();
        let bench = Bench::new(entries);
        assert_eq!(bench.at(0, &[]).len(), limits::PREFETCHED);
        let last = format!("e{:05}", limits::PREFETCHED + 4);
        assert_eq!(bench.at(0, &[&last])[0], format!("Awaited {last}"));
        // An administrator who asks is told which are which.
        let on_demand = |n: usize| bench.state.svid_of(&entry_id(&format!("e{n:05}"))).on_demand;
        assert!(!on_demand(limits::PREFETCHED - 1) && on_demand(limits::PREFETCHED));
    }

    #[test]
    fn an_svid_is_renewed_from_the_second_it_is_due() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        assert!(bench.at(1799, &["a"]).is_empty());
        assert_eq!(bench.at(1800, &["a"]), ["Due a"]);
    }

    #[test]
    fn the_next_one_due_is_the_earliest_that_is_not_due_yet() {
        let mut bench = Bench::new(vec![entry("a", 1), entry("b", 2)]);
        assert_eq!(next_due(at(0), &bench.state), None);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        bench.hold(&entry("b", 2), 0, 1700, 3600);
        assert_eq!(next_due(at(1699), &bench.state), Some(at(1700)));
        assert_eq!(next_due(at(1700), &bench.state), Some(at(1800)));
        assert_eq!(next_due(at(1800), &bench.state), None);
    }

    #[test]
    fn an_svid_is_dropped_before_its_last_second_and_minted_anew() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        assert_eq!(bench.at(3599, &["a"]), ["Due a"]);
        assert_eq!(bench.at(3600, &["a"]), ["drop a", "Awaited a"]);
    }

    #[test]
    fn no_entry_is_minted_twice_within_the_floor() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 1, 10);
        assert!(bench.at(4, &["a"]).is_empty());
        assert_eq!(bench.at(5, &["a"]), ["Due a"]);
    }

    #[test]
    fn a_clock_set_back_does_not_stop_renewal() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 1000, -60, 3600);
        assert_eq!(bench.at(0, &["a"]), ["Due a"]);
    }

    #[test]
    fn a_changed_entry_is_minted_again_and_the_old_svid_serves_meanwhile() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        bench.learn(vec![AuthorizedEntry { revision: 1, ..entry("a", 1) }]);
        assert_eq!(bench.at(10, &["a"]), ["Revised a"]);
        bench.learn(vec![AuthorizedEntry { revision: 2, spiffe_id: id("/other"), ..entry("a", 1) }]);
        assert_eq!(bench.at(10, &["a"]), ["Awaited a"]);
    }

    #[test]
    fn a_tainted_authority_has_its_svids_minted_again_after_a_longer_floor() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        let next = Ca::new("two");
        bench.state.learn_bundle(Arc::new(Ca::bundle_of(&[(&bench.ca, true), (&next, false)], 2)));
        assert!(bench.at(59, &["a"]).is_empty());
        assert_eq!(bench.at(60, &["a"]), ["Distrusted a"]);
        // It verifies until its authority is gone, so it goes on being served; unwanted ones need not.
        bench.learn(vec![AuthorizedEntry { disable_x509_svid_prefetch: true, ..entry("a", 1) }]);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        bench.state.learn_bundle(Arc::new(next.bundle()));
        assert_eq!(bench.at(10, &[]), ["drop a"]);
    }

    #[test]
    fn a_short_lived_svid_of_a_tainted_authority_is_renewed_at_half_its_life() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 30, 60);
        let next = Ca::new("two");
        bench.state.learn_bundle(Arc::new(Ca::bundle_of(&[(&bench.ca, true), (&next, false)], 2)));
        assert!(bench.at(29, &["a"]).is_empty());
        assert_eq!(bench.at(30, &["a"]), ["Due a"]);
        // A changed entry is no reason to wait either.
        bench.learn(vec![AuthorizedEntry { revision: 1, ..entry("a", 1) }]);
        assert_eq!(bench.at(10, &["a"]), ["Revised a"]);
    }

    #[test]
    fn adding_an_authority_disturbs_nothing() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.hold(&entry("a", 1), 0, 1800, 3600);
        let next = Ca::new("two");
        bench.state.learn_bundle(Arc::new(Ca::bundle_of(&[(&bench.ca, false), (&next, false)], 2)));
        assert!(bench.at(100, &["a"]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_mint_waits_longer_each_time_and_a_changed_entry_starts_over() {
        let host = following_host();
        let mut bench = Bench::new(vec![entry("a", 1)]);
        bench.state.fail(&entry_id("a").into(), MintFailure("no".to_owned()), at(0), &host);
        assert!(bench.at(0, &["a"]).is_empty());
        assert_eq!(bench.at(2, &["a"]), ["Awaited a"]);
        for _ in 0..20 {
            bench.state.fail(&entry_id("a").into(), MintFailure("no".to_owned()), at(0), &host);
        }
        assert!(bench.at(50, &["a"]).is_empty());
        assert_eq!(bench.at(70, &["a"]), ["Awaited a"]);
        bench.learn(vec![AuthorizedEntry { revision: 1, ..entry("a", 1) }]);
        assert_eq!(bench.at(50, &["a"]), ["Awaited a"]);
    }

    #[test]
    fn urgency_orders_all_reasons() {
        let mut bench =
            Bench::new(vec![entry("a", 1), entry("b", 1), entry("c", 1), entry("d", 1), entry("e", 1)]);
        bench.hold(&entry("b", 1), 0, 50, 3600);
        bench.hold(&entry("c", 1), 0, 3000, 3600);
        let changed = AuthorizedEntry { revision: 1, ..entry("c", 1) };
        bench.learn(vec![entry("a", 1), entry("b", 1), changed, entry("d", 1), entry("e", 1)]);
        let order = bench.at(100, &["d"]);
        assert_eq!(order, ["Awaited d", "Revised c", "Due b", "Prefetch a", "Prefetch e"]);
    }

    #[test]
    fn what_an_authority_signed_just_before_it_was_tainted_is_minted_again() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        let next = Ca::new("two");
        bench.state.learn_bundle(Arc::new(Ca::bundle_of(&[(&bench.ca, true), (&next, false)], 2)));
        // It was under way.
        bench.hold(&entry("a", 1), 0, 3000, 3600);
        assert!(bench.at(59, &["a"]).is_empty());
        assert_eq!(bench.at(60, &["a"]), ["Distrusted a"]);
    }

    #[test]
    fn what_was_verified_against_the_bundle_held_is_not_verified_again() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        // No bundle here vouches for it: only what the minter found is asked.
        let (svid, key) = Ca::new("two").svid_and_key(&entry("a", 1).spiffe_id, NOW - 10, NOW + 3600);
        let minted = |vouched| Minted {
            entry: Arc::new(entry("a", 1)),
            svid: Arc::new(svid.clone()),
            key: Arc::new(Secret::new(key.pkcs8().expose().clone())),
            renew_at: at(3000),
            bundle: Arc::new(bench.ca.bundle()),
            vouched,
        };
        for (minted, due) in [(minted(true), vec![]), (minted(false), vec!["Distrusted a".to_owned()])] {
            bench.state.put(&entry_id("a").into(), minted, at(0));
            assert_eq!(bench.at(60, &["a"]), due);
        }
    }

    #[test]
    fn an_svid_for_another_spiffe_id_is_not_taken() {
        let mut bench = Bench::new(vec![entry("a", 1)]);
        let (svid, key) = bench.ca.svid_and_key(&id("/b"), NOW, NOW + 100);
        let svid: Arc<X509Svid> = Arc::new(svid);
        let key = Arc::new(Secret::new(key.pkcs8().expose().clone()));
        let bundle = Arc::new(bench.ca.bundle());
        let minted =
            Minted { entry: Arc::new(entry("a", 1)), svid, key, renew_at: at(50), bundle, vouched: true };
        bench.state.put(&entry_id("a").into(), minted, at(0));
        assert_eq!(bench.at(0, &["a"]), ["Awaited a"]);
    }
}
