//! What does the agent hold, and how does each event change it? Pure: no clock, no waiting, no server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::matching::EntryIndex;
use passant_core::x509_svid::X509Svid;
use passant_core::{AuthorizedEntry, EntryId, Host, Secret, Selectors, TrustDomain, UnixTime};

use super::{Bundles, Identities, Identity, Update};
use crate::trust::Vouching;
use crate::{backoff, limits};

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

/// One entry and what is held for it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Arc<AuthorizedEntry>,
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

/// What a sync changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) entries: bool,
    pub(crate) bundle: bool,
}

/// Everything held. Entries for secret stores are not in it: they are never served to a workload.
#[derive(Default)]
pub(crate) struct State {
    slots: BTreeMap<EntryId, Slot>,
    /// As the server listed them, secret-store entries included, for the next sync to compare with.
    known: Arc<BTreeMap<EntryId, Arc<AuthorizedEntry>>>,
    index: EntryIndex,
    bundle: Option<Arc<Bundle>>,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    confirmed_at: Option<UnixTime>,
    withheld: Option<String>,
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
}

impl State {
    /// How much is held.
    pub(crate) fn census(&self) -> Census {
        let held = || self.slots.values().filter_map(|slot| slot.held.as_ref());
        Census {
            entries: self.known.len(),
            svids: held().count(),
            soonest_end: held().map(|held| held.svid.not_after()).min(),
        }
    }

    /// When the server last confirmed the view.
    pub(crate) fn confirmed_at(&self) -> Option<UnixTime> {
        self.confirmed_at
    }

    /// The server's view as of `now`.
    pub(crate) fn learn(&mut self, view: View, now: UnixTime) -> Changed {
        let bundle = self.learn_bundle(view.bundle);
        self.federated = view
            .federated
            .into_iter()
            .map(|(trust_domain, bundle)| {
                let bundle = keep_if_equal(self.federated.get(&trust_domain), bundle);
                (trust_domain, bundle)
            })
            .collect();
        let entries = self.learn_entries(view.entries);
        self.confirmed_at = Some(now);
        Changed { entries, bundle }
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
            for held in self.slots.values_mut().filter_map(|slot| slot.held.as_mut()) {
                held.vouched = vouching.covers(&held.svid);
            }
        }
        self.bundle = Some(bundle);
        true
    }

    fn learn_entries(&mut self, entries: BTreeMap<EntryId, Arc<AuthorizedEntry>>) -> bool {
        let unchanged = self.known.len() == entries.len()
            && self.known.iter().zip(&entries).all(|(one, two)| one.0 == two.0 && one.1 == two.1);
        if unchanged {
            return false;
        }
        let mut slots = BTreeMap::new();
        for (id, entry) in entries.iter().filter(|(_, entry)| !entry.store_svid) {
            let slot = match self.slots.remove(id) {
                Some(slot) => slot.follow(entry),
                None => Slot { entry: Arc::clone(entry), held: None, failed: None },
            };
            slots.insert(id.clone(), slot);
        }
        self.slots = slots;
        self.index = EntryIndex::new(self.slots.values().map(|slot| &slot.entry));
        self.known = Arc::new(entries);
        true
    }

    /// A minted SVID. It is dropped if the entry has gone or now names another SPIFFE ID. The bundle may have changed while it
    /// was minted: one whose authority is tainted or gone by now is marked like those that were held. Only then is it verified
    /// again: everybody waits meanwhile.
    pub(crate) fn put(&mut self, id: &EntryId, minted: Minted, now: UnixTime) {
        self.minted_at = Some(now);
        let vouched = match &self.bundle {
            Some(held) if held.x509_authorities != minted.bundle.x509_authorities => {
                Vouching::of(held).covers(&minted.svid)
            }
            Some(_) | None => minted.vouched,
        };
        let Some(slot) = self.slots.get_mut(id) else { return };
        if *minted.svid.id() != slot.entry.spiffe_id {
            return;
        }
        slot.failed = None;
        slot.held = Some(Held {
            svid: minted.svid,
            key: minted.key,
            revision: minted.entry.revision,
            minted_at: now,
            renew_at: minted.renew_at,
            vouched,
        });
    }

    /// A failed attempt to mint; the SVID held before stays.
    pub(crate) fn fail(&mut self, id: &EntryId, failure: MintFailure, now: UnixTime, host: &Host) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let (times, since) = slot.failed.as_ref().map_or((0, now), |failed| (failed.times, failed.since));
        let wait = backoff::grown(limits::MINT_AGAIN_FIRST, limits::MINT_AGAIN_LAST, times);
        let wait = backoff::spread(wait, host);
        slot.failed = Some(Failed { times: times.saturating_add(1), since, at: now, wait, why: failure.0 });
    }

    /// Since when, and why, attempts to mint have failed while not one has succeeded. An entry that alone is refused counts
    /// only until the next SVID of another comes.
    pub(super) fn barren(&self) -> Option<(UnixTime, &str)> {
        let failed = self.slots.values().filter_map(|slot| slot.failed.as_ref());
        let first =
            failed.filter(|failed| self.minted_at < Some(failed.since)).min_by_key(|failed| failed.since)?;
        Some((first.since, &first.why))
    }

    /// Whether there are entries, and none of them has an SVID that is valid at `now`.
    pub(super) fn lacks_all(&self, now: UnixTime) -> bool {
        !self.slots.is_empty() && self.slots.values().all(|slot| slot.usable(now).is_none())
    }

    /// Why no SVID can be had at present; true if that is news.
    pub(super) fn mint_trouble(&mut self, why: Option<&str>) -> bool {
        let is_news = self.mint_trouble.as_deref() != why;
        self.mint_trouble = why.map(str::to_owned);
        is_news
    }

    /// Forgets the SVID and key of one entry.
    pub(super) fn drop_svid(&mut self, id: &EntryId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.held = None;
        }
    }

    /// Forgets all but the bundles, and says `why` to everyone from now on.
    pub(super) fn withhold(&mut self, why: &str) {
        self.slots.clear();
        self.known = Arc::default();
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
        SvidLook {
            not_after: slot.held.as_ref().map(|held| held.svid.not_after()),
            failed: slot.failed.clone(),
            on_demand: !prefetched,
        }
    }

    /// The entries whose SVIDs are minted before anybody asks for them.
    pub(crate) fn prefetched(&self) -> impl Iterator<Item = &EntryId> {
        let may = self.slots.iter().filter(|(_, slot)| !slot.entry.disable_x509_svid_prefetch);
        may.map(|(id, _)| id).take(limits::PREFETCHED)
    }

    /// Why no SVID can be had at present.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.mint_trouble.as_deref()
    }

    /// Every slot, in entry-id order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&EntryId, &Slot)> {
        self.slots.iter()
    }

    /// Whether one of `ids` is an entry without an unexpired SVID.
    pub(super) fn lacks_any(&self, ids: &BTreeSet<EntryId>, now: UnixTime) -> bool {
        ids.iter().filter_map(|id| self.slots.get(id)).any(|slot| slot.usable(now).is_none())
    }

    /// What a workload with `selectors` may see at `now`, and the ids of its entries. The complete set is demanded
    /// unless it was given once.
    pub(super) fn seen_by(
        &self,
        selectors: &Selectors,
        complete_once: bool,
        now: UnixTime,
    ) -> (Update, BTreeSet<EntryId>) {
        if let Some(why) = self.not_ready() {
            return (Update::NotReady(why.to_owned()), BTreeSet::new());
        }
        let entries = self.index.matching(selectors);
        if entries.is_empty() {
            let update = match self.is_confirmed(now) {
                true => Update::NoIdentity,
                false => Update::NotReady(UNCONFIRMED.to_owned()),
            };
            return (update, BTreeSet::new());
        }
        let matched = entries.iter().map(|entry| entry.id.clone()).collect();
        (self.identities(&entries, complete_once, now), matched)
    }

    fn identities(&self, entries: &[Arc<AuthorizedEntry>], complete_once: bool, now: UnixTime) -> Update {
        let Some(bundle) = &self.bundle else { return Update::NotReady(UNSYNCED.to_owned()) };
        let mut svids = Vec::with_capacity(entries.len());
        let mut lacking = None;
        for slot in entries.iter().filter_map(|entry| self.slots.get(&entry.id)) {
            match slot.usable(now) {
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
                return Update::NotReady(self.why_lacking(slot));
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

    fn why_lacking(&self, slot: &Slot) -> String {
        let id = &slot.entry.spiffe_id;
        match (&slot.failed, &self.mint_trouble) {
            (Some(failed), _) => format!("the X509-SVID of {id} could not be issued: {}", failed.why),
            (None, Some(why)) => format!("the X509-SVID of {id} is not yet issued: {why}"),
            (None, None) => format!("the X509-SVID of {id} is not yet issued"),
        }
    }
}

impl Slot {
    /// The SVID held, if it is unexpired at `now`. The last valid second is not used up.
    pub(crate) fn usable(&self, now: UnixTime) -> Option<&Held> {
        self.held.as_ref().filter(|held| now < held.svid.not_after())
    }

    /// The slot once the server tells of `entry`. An SVID for another SPIFFE ID goes; otherwise the old one is served
    /// until the new one is there.
    fn follow(mut self, entry: &Arc<AuthorizedEntry>) -> Self {
        if *self.entry == **entry {
            return self;
        }
        self.held = self.held.take().filter(|held| *held.svid.id() == entry.spiffe_id);
        self.failed = None;
        self.entry = Arc::clone(entry);
        self
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

fn keep_if_equal(held: Option<&Arc<Bundle>>, new: Arc<Bundle>) -> Arc<Bundle> {
    match held {
        Some(held) if **held == *new => Arc::clone(held),
        Some(_) | None => new,
    }
}
