//! Which of a node's entries does a workload with these selectors get?

use std::collections::HashMap;
use std::sync::Arc;

use crate::entry::AuthorizedEntry;
use crate::selector::{Selector, Selectors};

/// A node's entries, indexed so that matching reads only entries that share a selector with the workload.
///
/// Each entry stands under one of its selectors: the one that fewest entries of the set have. A workload that lacks it
/// cannot match, so no other place is needed.
#[derive(Clone, Debug, Default)]
pub struct EntryIndex {
    /// Asked by selector only: in which order they lie does not matter.
    by_selector: HashMap<Selector, Vec<Arc<AuthorizedEntry>>>,
}

impl EntryIndex {
    /// Indexes `entries`. One without selectors is left out: it matches nothing.
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a Arc<AuthorizedEntry>> + Clone) -> Self {
        let mut common: HashMap<&Selector, usize> = HashMap::new();
        for selector in entries.clone().into_iter().flat_map(|entry| entry.selectors.iter()) {
            *common.entry(selector).or_default() += 1;
        }
        let mut by_selector: HashMap<Selector, Vec<Arc<AuthorizedEntry>>> = HashMap::new();
        for entry in entries {
            if let Some(rarest) = entry.selectors.iter().min_by_key(|selector| common.get(selector)) {
                by_selector.entry(rarest.clone()).or_default().push(Arc::clone(entry));
            }
        }
        Self { by_selector }
    }

    /// Takes in one more entry, whose ID no entry of the set has. One without selectors is left out.
    ///
    /// It stands under the selector that fewest others stand under. That is not always the rarest one, but what many
    /// entries share fills up first, so that the next one finds room elsewhere.
    pub fn insert(&mut self, entry: &Arc<AuthorizedEntry>) {
        let crowd = |selector: &&Selector| self.by_selector.get(*selector).map_or(0, Vec::len);
        if let Some(free) = entry.selectors.iter().min_by_key(crowd) {
            self.by_selector.entry(free.clone()).or_default().push(Arc::clone(entry));
        }
    }

    /// Takes out the entry with the ID of `entry`, which stands there with the selectors of `entry`.
    pub fn remove(&mut self, entry: &AuthorizedEntry) {
        for selector in entry.selectors.iter() {
            let Some(there) = self.by_selector.get_mut(selector) else { continue };
            let Some(place) = there.iter().position(|held| held.id == entry.id) else { continue };
            there.swap_remove(place);
            if there.is_empty() {
                self.by_selector.remove(selector);
            }
            return;
        }
    }

    /// Entries whose selectors are all present in `have`, in entry-id order.
    pub fn matching(&self, have: &Selectors) -> Vec<Arc<AuthorizedEntry>> {
        let near = have.iter().filter_map(|selector| self.by_selector.get(selector)).flatten();
        let mut found: Vec<_> =
            near.filter(|entry| have.contains_all(&entry.selectors)).map(Arc::clone).collect();
        // None comes twice: each stands under one selector.
        found.sort_unstable_by(|one, two| one.id.cmp(&two.id));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::entry::EntryId;
    use crate::spiffe_id::SpiffeId;
    use crate::time::UnixTime;

    fn entry(id: usize, selectors: &[u8]) -> Arc<AuthorizedEntry> {
        Arc::new(AuthorizedEntry {
            id: EntryId::parse(&format!("e{id:03}")).unwrap(),
            spiffe_id: SpiffeId::parse("spiffe://example.org/a").unwrap(),
            selectors: set(selectors),
            federates_with: BTreeSet::new(),
            admin: false,
            downstream: false,
            store_svid: false,
            hint: String::new(),
            jwt_svid_include_jti: false,
            disable_x509_svid_prefetch: false,
            options: crate::entry::EntryOptions::default(),
            revision: 0,
            created_at: UnixTime::from_secs(0),
        })
    }

    fn set(selectors: &[u8]) -> Selectors {
        selectors.iter().map(|s| Selector::new("t", &s.to_string()).unwrap()).collect()
    }

    #[test]
    fn an_entry_without_selectors_matches_nothing() {
        let index = EntryIndex::new(&[entry(1, &[])]);
        assert!(index.matching(&set(&[1, 2])).is_empty());
        assert!(index.matching(&Selectors::new()).is_empty());
    }

    #[test]
    fn all_selectors_must_be_present() {
        let entries = [entry(2, &[1, 2]), entry(1, &[1]), entry(3, &[3])];
        let index = EntryIndex::new(&entries);
        let ids: Vec<_> = index.matching(&set(&[1, 2])).iter().map(|e| e.id.to_string()).collect();
        assert_eq!(ids, ["e001", "e002"]);
        assert_eq!(index.matching(&set(&[2])).len(), 0);
    }

    proptest! {
        #[test]
        fn matching_equals_reading_every_entry(
            entries in prop::collection::vec(prop::collection::vec(0u8..6, 0..4), 0..30),
            have in prop::collection::vec(0u8..6, 0..6),
        ) {
            let entries: Vec<_> = entries.iter().enumerate().map(|(id, selectors)| entry(id, selectors)).collect();
            let have = set(&have);
            let expected: Vec<_> =
                entries.iter().filter(|e| !e.selectors.is_empty() && have.contains_all(&e.selectors)).cloned().collect();
            prop_assert_eq!(EntryIndex::new(&entries).matching(&have), expected);
        }

        #[test]
        fn an_index_that_grew_and_shrank_finds_what_a_new_one_finds(
            entries in prop::collection::vec((prop::collection::vec(0u8..6, 0..4), any::<bool>()), 0..30),
            have in prop::collection::vec(0u8..6, 0..6),
        ) {
            let all = entries.iter().enumerate().map(|(id, (selectors, goes))| (entry(id, selectors), *goes));
            let all: Vec<_> = all.collect();
            let mut grown = EntryIndex::default();
            all.iter().for_each(|(entry, _)| grown.insert(entry));
            all.iter().filter(|(_, goes)| *goes).for_each(|(entry, _)| grown.remove(entry));
            let left: Vec<_> = all.iter().filter(|(_, goes)| !goes).map(|(entry, _)| Arc::clone(entry)).collect();
            let have = set(&have);
            prop_assert_eq!(grown.matching(&have), EntryIndex::new(&left).matching(&have));
            left.iter().for_each(|entry| grown.remove(entry));
            prop_assert!(grown.by_selector.is_empty());
        }
    }
}
