//! What does the agent hold, and how does each event change it? Pure: no clock, no waiting, no server.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use passant_core::bundle::Bundle;
use passant_core::matching::EntryIndex;
use passant_core::x509_svid::X509Svid;
use passant_core::{
    AuthorizedEntry, EntryId, Host, Instance, Secret, Selectors, TrustDomain, UnixTime, view_digest,
};

use super::slot::{Failed, Held, Seat, Slot, Supply};
use super::stops::Stops;
use super::{Bundles, Identities, Identity, Update};
use crate::limits;
use crate::trust::Vouching;

/// Told to a workload whose entries are not known for certain.
pub(super) const UNCONFIRMED: &str =
    "no entry is known to match, and the server has not confirmed that within the last 30 s";
const UNSYNCED: &str = "the agent has not yet synced with its server";

/// Everything the server said in one sync.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// All entries authorized for this node, by id.
    pub(crate) entries: BTreeMap<EntryId, Arc<AuthorizedEntry>>,
    /// The bundle of the own trust domain.
    pub(crate) bundle: Arc<Bundle>,
    /// The bundles of the trust domains that some entry federates with.
    pub(crate) federated: BTreeMap<TrustDomain, Arc<Bundle>>,
}

/// A place in the history of the server's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) lineage: String,
    pub(crate) revision: u64,
}

/// What a server that pushes said at once: what has changed, or all there is.
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    /// Where the agent stands after it.
    pub(crate) cursor: Cursor,
    /// What [`State::digest`] is after it.
    pub(crate) digest: u64,
    /// What is not in it is forgotten.
    pub(crate) is_snapshot: bool,
    /// New or changed entries.
    pub(crate) put: Vec<AuthorizedEntry>,
    /// ID and revision of entries that came and cannot be used: nothing is served of them, but they count.
    pub(crate) left_out: Vec<(String, u64)>,
    /// IDs of entries that are the node's no more.
    pub(crate) removed: Vec<String>,
    /// The own bundle, if it was told.
    pub(crate) bundle: Option<Arc<Bundle>>,
    /// New or changed bundles of other trust domains.
    pub(crate) federated: Vec<Arc<Bundle>>,
    /// Trust domains whose bundles are gone.
    pub(crate) removed_federated: Vec<TrustDomain>,
    /// All stops, if they were told; a snapshot that does not tell them is not taken.
    pub(crate) stops: Option<Stops>,
}

/// One freshly minted SVID, verified.
#[derive(Clone, Debug)]
pub(crate) struct Minted {
    /// The entry as it was when the SVID was asked for.
    pub(crate) entry: Arc<AuthorizedEntry>,
    pub(crate) svid: Arc<X509Svid>,
    pub(crate) key: Arc<Secret<Vec<u8>>>,
    /// When to mint it again: half-life, spread over the fleet.
    pub(crate) renew_at: UnixTime,
    /// The bundle that it was verified against.
    pub(crate) bundle: Arc<Bundle>,
    /// Whether an authority of that bundle vouches for it that is not tainted.
    pub(crate) vouched: bool,
}

/// Why an entry has no new SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MintFailure(pub(crate) String);

/// What the server's words changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// The entries that are new, other or gone.
    pub(crate) ids: BTreeSet<EntryId>,
    /// Those of them that are there, as they are now.
    pub(crate) put: Vec<Arc<AuthorizedEntry>>,
    /// Whether the own bundle is another.
    pub(crate) bundle: bool,
    /// Whether a bundle of another trust domain is.
    pub(crate) federated: bool,
    /// Whether other processes are stopped than before.
    pub(crate) processes: bool,
}

/// Whether what was pushed adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Yes,
    /// The entries held are not those that the server means.
    No,
}

/// Everything held. Entries for secret stores and stopped ones have no slot: nothing of them is served to a workload.
#[derive(Default)]
pub(crate) struct State {
    slots: BTreeMap<EntryId, Slot>,
    /// As the server listed them, secret-store entries included, for the next sync to compare with.
    known: Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>>,
    /// The digest of `known`.
    digest: u64,
    /// Entries that the server pushed and that cannot be used, with their revisions.
    left_out: BTreeMap<String, u64>,
    /// Where in the server's history this stands; absent unless it was pushed.
    cursor: Option<Cursor>,
    index: EntryIndex,
    bundle: Option<Arc<Bundle>>,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    confirmed_at: Option<UnixTime>,
    withheld: Option<String>,
    stops: Stops,
    /// Places that processes have of their own, in all slots.
    seats: usize,
    /// Slots whose processes have their own.
    per_process: usize,
    mint_trouble: Option<String>,
    /// When the last SVID came.
    minted_at: Option<UnixTime>,
}

/// How it stands with the SVID of one entry, for an operator.
#[derive(Clone, Debug, Default)]
pub(crate) struct SvidLook {
    /// When the SVID held ends.
    pub(crate) not_after: Option<UnixTime>,
    /// How the last attempts to mint failed.
    pub(crate) failed: Option<Failed>,
    /// Whether it is minted only for a workload that asks, so that it is none that is missing.
    pub(crate) on_demand: bool,
}

/// How much is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) entries: usize,
    pub(crate) svids: usize,
    /// When the first of the SVIDs ends.
    pub(crate) soonest_end: Option<UnixTime>,
    /// When the last of them ends.
    pub(crate) last_end: Option<UnixTime>,
}

impl State {
    /// How much is held.
    pub(crate) fn census(&self) -> Census {
        let held = || self.supplies().filter_map(|supply| supply.held.as_ref());
        Census {
            entries: self.known.len(),
            svids: held().count(),
            soonest_end: held().map(|held| held.svid.not_after()).min(),
            last_end: held().map(|held| held.svid.not_after()).max(),
        }
    }

    fn supplies(&self) -> impl Iterator<Item = &Supply> {
        self.slots.values().flat_map(Slot::supplies).map(|(_, supply)| supply)
    }

    /// When the server last confirmed the view.
    pub(crate) fn confirmed_at(&self) -> Option<UnixTime> {
        self.confirmed_at
    }

    /// All that the server said, asked at `now`.
    pub(crate) fn learn(&mut self, view: View, now: UnixTime) -> Changed {
        let mut changed = Changed { bundle: self.learn_bundle(view.bundle), ..Changed::default() };
        self.keep_federated(&view.federated.keys().collect(), &mut changed);
        for bundle in view.federated.into_values() {
            self.put_federated(bundle, &mut changed);
        }
        self.keep_entries(&view.entries.keys().map(EntryId::as_str).collect(), &mut changed);
        for entry in view.entries.into_values() {
            self.put_entry(entry, &mut changed);
        }
        self.confirmed_at = Some(now);
        self.cursor = None;
        changed
    }

    /// What the server pushed, at `now`. Nothing while all is withheld: what was under way then is not taken up again.
    ///
    /// The view counts as confirmed only if its digest is as the server says.
    pub(crate) fn apply(&mut self, delta: Delta, now: UnixTime) -> Option<(Changed, Fit)> {
        if self.withheld.is_some() {
            return None;
        }
        let bundle = delta.bundle.is_some_and(|bundle| self.learn_bundle(bundle));
        let mut changed = Changed { bundle, ..Changed::default() };
        if let Some(stops) = delta.stops {
            self.learn_stops(stops, &mut changed);
        }
        if delta.is_snapshot {
            self.keep_federated(
                &delta.federated.iter().map(|bundle| &bundle.trust_domain).collect(),
                &mut changed,
            );
            self.keep_entries(&delta.put.iter().map(|entry| entry.id.as_str()).collect(), &mut changed);
        }
        for trust_domain in &delta.removed_federated {
            changed.federated |= self.federated.remove(trust_domain).is_some();
        }
        for bundle in delta.federated {
            self.put_federated(bundle, &mut changed);
        }
        for id in &delta.removed {
            self.remove_entry(id, &mut changed);
        }
        for entry in delta.put {
            self.put_entry(Arc::new(entry), &mut changed);
        }
        for (id, revision) in delta.left_out {
            self.remove_entry(&id, &mut changed);
            self.left_out.insert(id, revision);
        }
        let fit = if self.digest() == delta.digest { Fit::Yes } else { Fit::No };
        match fit {
            Fit::Yes => {
                self.confirmed_at = Some(now);
                self.cursor = Some(delta.cursor);
            }
            Fit::No => self.cursor = None,
        }
        Some((changed, fit))
    }

    /// The server says at `now` that nothing has changed up to `cursor`. False where that cannot be.
    pub(crate) fn confirm(&mut self, cursor: Cursor, now: UnixTime) -> bool {
        let goes_on = self
            .cursor
            .as_ref()
            .is_some_and(|held| held.lineage == cursor.lineage && held.revision <= cursor.revision);
        if goes_on {
            self.confirmed_at = Some(now);
            self.cursor = Some(cursor);
        }
        goes_on
    }

    /// Where in the server's history this stands, if that is known.
    pub(crate) fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// The place in the history is worth nothing: the next one who pushes is to say all there is.
    pub(crate) fn lose_cursor(&mut self) {
        self.cursor = None;
    }

    /// The digest of all entries that the server has told of.
    pub(crate) fn digest(&self) -> u64 {
        let shares = self.left_out.iter().map(|(id, revision)| view_digest::share(id, *revision));
        shares.fold(self.digest, u64::wrapping_add)
    }

    /// The own bundle; true if it differs from the one held. SVIDs whose authority is now tainted or gone are marked.
    pub(crate) fn learn_bundle(&mut self, bundle: Arc<Bundle>) -> bool {
        if self.bundle.as_ref().is_some_and(|held| **held == *bundle) {
            return false;
        }
        let same_authorities =
            self.bundle.as_ref().is_some_and(|held| held.x509_authorities == bundle.x509_authorities);
        if !same_authorities {
            let vouching = Vouching::of(&bundle);
            let supplies = self.slots.values_mut().flat_map(Slot::supplies_mut);
            for held in supplies.filter_map(|supply| supply.held.as_mut()) {
                held.vouched = vouching.covers(&held.svid);
            }
        }
        self.bundle = Some(bundle);
        true
    }

    /// Forgets all entries but those with these IDs.
    fn keep_entries(&mut self, ids: &BTreeSet<&str>, changed: &mut Changed) {
        let known = self.known.keys().filter(|id| !ids.contains(id.as_str()));
        let gone: Vec<EntryId> = known.cloned().collect();
        for id in gone {
            self.remove_entry(id.as_str(), changed);
        }
        self.left_out.clear();
    }

    fn put_entry(&mut self, entry: Arc<AuthorizedEntry>, changed: &mut Changed) {
        let id = &entry.id;
        self.left_out.remove(id.as_str());
        if self.known.get(id).is_some_and(|held| *held == entry) {
            return;
        }
        let known = Arc::make_mut(&mut self.known);
        if let Some(old) = known.insert(id.clone(), Arc::clone(&entry)) {
            self.digest = self.digest.wrapping_sub(view_digest::share(id.as_str(), old.revision));
        }
        self.digest = self.digest.wrapping_add(view_digest::share(id.as_str(), entry.revision));
        self.serve(&entry);
        changed.ids.insert(id.clone());
        changed.put.push(entry);
    }

    /// Gives an entry that is known its slot, if it may have one; what is held for it stays as far as it is right.
    fn serve(&mut self, entry: &Arc<AuthorizedEntry>) {
        let slot = self.withdraw(&entry.id);
        if entry.store_svid || self.stops.cover(&entry.id) {
            return;
        }
        let slot = match slot {
            Some(slot) => slot.follow(entry),
            None => Slot::new(entry),
        };
        self.index.insert(entry);
        self.seats += slot.own.len();
        self.per_process += usize::from(slot.is_per_process());
        self.slots.insert(entry.id.clone(), slot);
    }

    fn withdraw(&mut self, id: &EntryId) -> Option<Slot> {
        let slot = self.slots.remove(id)?;
        self.index.remove(&slot.entry);
        self.seats -= slot.own.len();
        self.per_process -= usize::from(slot.is_per_process());
        Some(slot)
    }

    /// All stops there are: what is stopped goes, with its keys, and what is not any more is served again.
    pub(super) fn learn_stops(&mut self, stops: Stops, changed: &mut Changed) {
        let old = mem::replace(&mut self.stops, stops);
        let known = Arc::clone(&self.known);
        for id in self.stops.differing(&old, known.keys()).cloned().collect::<Vec<_>>() {
            if let Some(entry) = known.get(&id) {
                self.serve(entry);
                if !self.stops.cover(&id) {
                    changed.put.push(Arc::clone(entry));
                }
            }
            changed.ids.insert(id);
        }
        if old.processes() != self.stops.processes() {
            changed.processes = true;
            for process in self.stops.processes().clone() {
                self.forget_process(&process);
            }
        }
    }

    /// What is stopped.
    pub(crate) fn stops(&self) -> &Stops {
        &self.stops
    }

    fn remove_entry(&mut self, id: &str, changed: &mut Changed) {
        self.left_out.remove(id);
        let Ok(id) = EntryId::parse(id) else { return };
        if !self.known.contains_key(&id) {
            return;
        }
        if let Some(old) = Arc::make_mut(&mut self.known).remove(&id) {
            self.digest = self.digest.wrapping_sub(view_digest::share(id.as_str(), old.revision));
        }
        self.withdraw(&id);
        changed.ids.insert(id);
    }

    fn keep_federated(&mut self, names: &BTreeSet<&TrustDomain>, changed: &mut Changed) {
        let before = self.federated.len();
        self.federated.retain(|name, _| names.contains(name));
        changed.federated |= self.federated.len() != before;
    }

    fn put_federated(&mut self, bundle: Arc<Bundle>, changed: &mut Changed) {
        if self.federated.get(&bundle.trust_domain).is_some_and(|held| *held == bundle) {
            return;
        }
        self.federated.insert(bundle.trust_domain.clone(), bundle);
        changed.federated = true;
    }

    /// A minted SVID. It is dropped if the entry has gone or now names another SPIFFE ID. The bundle may have changed while it
    /// was minted: one whose authority is tainted or gone by now is marked like those that were held. Only then is it verified
    /// again: everybody waits meanwhile.
    pub(crate) fn put(&mut self, seat: &Seat, minted: Minted, now: UnixTime) {
        self.minted_at = Some(now);
        let vouched = match &self.bundle {
            Some(held) if held.x509_authorities != minted.bundle.x509_authorities => {
                Vouching::of(held).covers(&minted.svid)
            }
            Some(_) | None => minted.vouched,
        };
        let Some(slot) = self.slots.get_mut(&seat.entry) else { return };
        if *minted.svid.id() != slot.entry.spiffe_id {
            return;
        }
        let Some(supply) = slot.supply_mut(seat.process.as_ref()) else { return };
        supply.failed = None;
        supply.held = Some(Held {
            svid: minted.svid,
            key: minted.key,
            revision: minted.entry.revision,
            minted_at: now,
            renew_at: minted.renew_at,
            vouched,
        });
    }

    /// A failed attempt to mint; the SVID held before stays.
    pub(crate) fn fail(&mut self, seat: &Seat, failure: MintFailure, now: UnixTime, host: &Host) {
        if let Some(supply) = self.supply_mut(seat) {
            supply.fail(failure.0, now, host);
        }
    }

    fn supply_mut(&mut self, seat: &Seat) -> Option<&mut Supply> {
        self.slots.get_mut(&seat.entry)?.supply_mut(seat.process.as_ref())
    }

    /// Since when, and why, attempts to mint have failed while not one has succeeded. An entry that alone is refused counts
    /// only until the next SVID of another comes.
    pub(super) fn barren(&self) -> Option<(UnixTime, &str)> {
        let failed = self.supplies().filter_map(|supply| supply.failed.as_ref());
        let first =
            failed.filter(|failed| self.minted_at < Some(failed.since)).min_by_key(|failed| failed.since)?;
        Some((first.since, &first.why))
    }

    /// Whether there are entries, and none of them has an SVID that is valid at `now`.
    pub(super) fn lacks_all(&self, now: UnixTime) -> bool {
        !self.slots.is_empty() && self.supplies().all(|supply| supply.usable(now).is_none())
    }

    /// Why no SVID can be had at present; true if that is news.
    pub(super) fn mint_trouble(&mut self, why: Option<&str>) -> bool {
        let is_news = self.mint_trouble.as_deref() != why;
        self.mint_trouble = why.map(str::to_owned);
        is_news
    }

    /// Forgets an SVID and its key.
    pub(super) fn drop_svid(&mut self, seat: &Seat) {
        if let Some(supply) = self.supply_mut(seat) {
            supply.held = None;
        }
    }

    /// Gives `process` its places with all entries among `ids` that want one for each; false if one was refused.
    pub(super) fn admit(&mut self, process: &Instance, ids: &BTreeSet<EntryId>, now: UnixTime) -> bool {
        if self.per_process == 0 || self.stops.cover_process(process) {
            return true;
        }
        let mut is_admitted = true;
        for id in ids {
            let Some(slot) = self.slots.get_mut(id).filter(|slot| slot.is_per_process()) else { continue };
            let before = slot.own.len();
            is_admitted &= slot.admit(process, self.seats < limits::PROCESSES, now);
            self.seats += slot.own.len() - before;
        }
        is_admitted
    }

    /// `process` has no stream open any more: what it has of its own is kept for a while.
    pub(super) fn idle(&mut self, process: &Instance, now: UnixTime) {
        if self.per_process > 0 {
            for own in self.slots.values_mut().filter_map(|slot| slot.own.get_mut(process)) {
                own.idle_since = Some(now);
            }
        }
    }

    /// `process` has exited, or is stopped: what it has of its own goes.
    pub(super) fn forget_process(&mut self, process: &Instance) {
        if self.seats > 0 {
            for slot in self.slots.values_mut() {
                self.seats -= usize::from(slot.own.remove(process).is_some());
            }
        }
    }

    /// Forgets what processes have that have had no stream open for too long.
    pub(super) fn forget_idle(&mut self, now: UnixTime) {
        let is_over = |since: UnixTime| now < since || since.until(now) >= limits::PROCESS_IDLE;
        if self.seats > 0 {
            for slot in self.slots.values_mut() {
                let before = slot.own.len();
                slot.own.retain(|_, own| !own.idle_since.is_some_and(is_over));
                self.seats -= before - slot.own.len();
            }
        }
    }

    /// Places that processes have of their own.
    pub(crate) fn seats(&self) -> usize {
        self.seats
    }

    /// Forgets all but the bundles, and says `why` to everyone from now on.
    pub(super) fn withhold(&mut self, why: &str) {
        self.slots.clear();
        self.seats = 0;
        self.per_process = 0;
        self.known = Arc::default();
        self.digest = 0;
        self.left_out.clear();
        self.cursor = None;
        self.index = EntryIndex::default();
        self.confirmed_at = None;
        self.withheld = Some(why.to_owned());
    }

    pub(super) fn lift(&mut self) {
        self.withheld = None;
    }

    /// Why nothing at all can be answered, if so.
    pub(super) fn not_ready(&self) -> Option<&str> {
        match (&self.withheld, self.confirmed_at) {
            (Some(why), _) => Some(why),
            (None, None) => Some(UNSYNCED),
            (None, Some(_)) => None,
        }
    }

    /// Whether the last sync succeeded within [`limits::CONFIRMED_FOR`]. A sync in the future of a clock that was set
    /// back confirms nothing.
    pub(super) fn is_confirmed(&self, now: UnixTime) -> bool {
        self.withheld.is_none()
            && self.confirmed_at.is_some_and(|at| at <= now && at.until(now) <= limits::CONFIRMED_FOR)
    }

    pub(super) fn matching(&self, selectors: &Selectors) -> Vec<Arc<AuthorizedEntry>> {
        self.index.matching(selectors)
    }

    pub(super) fn bundles(&self) -> Bundles {
        Bundles { own: self.bundle.clone(), federated: self.federated.clone() }
    }

    pub(super) fn known(&self) -> Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>> {
        Arc::clone(&self.known)
    }

    /// How it stands with the SVID of one entry.
    pub(crate) fn svid_of(&self, id: &EntryId) -> SvidLook {
        let Some(slot) = self.slots.get(id) else { return SvidLook::default() };
        let prefetched = self.prefetched().any(|prefetched| prefetched == id);
        let held = slot.supplies().filter_map(|(_, supply)| supply.held.as_ref());
        SvidLook {
            not_after: held.map(|held| held.svid.not_after()).max(),
            failed: slot.supplies().find_map(|(_, supply)| supply.failed.clone()),
            on_demand: !prefetched,
        }
    }

    /// The entries whose SVIDs are minted before anybody asks for them.
    pub(crate) fn prefetched(&self) -> impl Iterator<Item = &EntryId> {
        let may = self.slots.iter().filter(|(_, slot)| slot.may_be_prefetched());
        may.map(|(id, _)| id).take(limits::PREFETCHED)
    }

    /// Why no SVID can be had at present.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.mint_trouble.as_deref()
    }

    /// One slot, and whether it is one whose SVID is minted before anybody asks; that is known at once only where there
    /// are so few entries that all can be.
    pub(crate) fn slot(&self, id: &EntryId) -> Option<(&Slot, bool)> {
        let slot = self.slots.get(id)?;
        let all_can_be = self.slots.len() <= limits::PREFETCHED;
        Some((slot, all_can_be && slot.may_be_prefetched()))
    }

    /// Every slot, in entry-id order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&EntryId, &Slot)> {
        self.slots.iter()
    }

    /// Whether one of `ids` is an entry of which `process` has no unexpired SVID.
    pub(super) fn lacks_any(
        &self,
        ids: &BTreeSet<EntryId>,
        process: Option<&Instance>,
        now: UnixTime,
    ) -> bool {
        let mut slots = ids.iter().filter_map(|id| self.slots.get(id));
        slots.any(|slot| slot.supply(process).is_none_or(|supply| supply.usable(now).is_none()))
    }

    /// Whether one of `ids` is an entry whose SVID may still come: `process` has no unexpired one of it, and no attempt has
    /// failed.
    pub(super) fn awaits_any(
        &self,
        ids: &BTreeSet<EntryId>,
        process: Option<&Instance>,
        now: UnixTime,
    ) -> bool {
        let slots = ids.iter().filter_map(|id| self.slots.get(id));
        let mut supplies = slots.filter_map(|slot| slot.supply(process));
        supplies.any(|supply| supply.usable(now).is_none() && supply.failed.is_none())
    }

    /// What the workload `process` may see at `now` of `entries`, which are all that match. The complete set is demanded
    /// unless it was given once.
    pub(super) fn seen_by(
        &self,
        entries: &[Arc<AuthorizedEntry>],
        process: Option<&Instance>,
        complete_once: bool,
        now: UnixTime,
    ) -> Update {
        if process.is_some_and(|process| self.stops.cover_process(process)) {
            return Update::NoIdentity;
        }
        if let Some(why) = self.not_ready() {
            return Update::NotReady(why.to_owned());
        }
        if entries.is_empty() {
            return match self.is_confirmed(now) {
                true => Update::NoIdentity,
                false => Update::NotReady(UNCONFIRMED.to_owned()),
            };
        }
        self.identities(entries, process, complete_once, now)
    }

    fn identities(
        &self,
        entries: &[Arc<AuthorizedEntry>],
        process: Option<&Instance>,
        complete_once: bool,
        now: UnixTime,
    ) -> Update {
        let Some(bundle) = &self.bundle else { return Update::NotReady(UNSYNCED.to_owned()) };
        let mut svids = Vec::with_capacity(entries.len());
        let mut lacking = None;
        for slot in entries.iter().filter_map(|entry| self.slots.get(&entry.id)) {
            match slot.supply(process).and_then(|supply| supply.usable(now)) {
                Some(held) => svids.push(Identity {
                    entry: Arc::clone(&slot.entry),
                    svid: Arc::clone(&held.svid),
                    key: Arc::clone(&held.key),
                }),
                None => lacking = lacking.or(Some(slot)),
            }
        }
        match lacking {
            Some(slot) if svids.is_empty() || !complete_once => {
                return Update::NotReady(self.why_lacking(slot, process));
            }
            Some(_) | None => {}
        }
        let federated = entries
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .filter_map(|trust_domain| {
                self.federated.get(trust_domain).map(|bundle| (trust_domain.clone(), Arc::clone(bundle)))
            })
            .collect();
        Update::Ready(Arc::new(Identities { svids, bundle: Arc::clone(bundle), federated }))
    }

    fn why_lacking(&self, slot: &Slot, process: Option<&Instance>) -> String {
        let id = &slot.entry.spiffe_id;
        let Some(supply) = slot.supply(process) else {
            let (most, (_, per_second)) = (limits::PROCESSES_PER_ENTRY, limits::PROCESS_KEYS);
            return format!(
                "too many processes want an X509-SVID of {id}, of which each has its own: at most {most} have one, and {per_second} more get one in a second; ask again later"
            );
        };
        match (&supply.failed, &self.mint_trouble) {
            (Some(failed), _) => format!("the X509-SVID of {id} could not be issued: {}", failed.why),
            (None, Some(why)) => format!("the X509-SVID of {id} is not yet issued: {why}"),
            (None, None) => format!("the X509-SVID of {id} is not yet issued"),
        }
    }
}
