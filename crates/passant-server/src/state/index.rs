//! How are entries found without a look at all of them, in any of many snapshots, in little memory?
//!
//! There may be millions, so that an index holds the entries' handles and nothing of their texts but what it files them
//! under, once. Snapshots share all that has not changed since.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet, ordset};
use passant_core::{Entry, EntryId};

/// Entries in one list at most; a longer one becomes a tree. With each change the whole list is copied, if a snapshot
/// shares it.
const LISTED: usize = 256;

/// Values that are put into a tree in another order than their own, at a time.
const PACKED: usize = 4_096;
/// So few texts are sorted by comparing them.
const FEW: usize = 32;

/// Entries in the order of their IDs, each ID once.
///
/// Inner nodes of the tree hold entries too, to tell its branches apart: of those that were replaced or removed, one in
/// eight may live on there, until its branch is divided otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries(OrdSet<ById>);

/// Entries filed under something that many of them may have in common.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Index<K: Ord>(OrdMap<K, Listed>);

/// What is filed in one place: at least one entry, in the order of IDs.
#[derive(Clone, Debug)]
enum Listed {
    One(Arc<Entry>),
    Few(Arc<Vec<Arc<Entry>>>),
    Many(Arc<Entries>),
}

/// An entry, as its ID says where it stands. That two are equal says the same of the IDs only.
#[derive(Clone, Debug)]
struct ById(Arc<Entry>);

impl Entries {
    pub(super) fn insert(&mut self, entry: Arc<Entry>) {
        self.0.insert(ById(entry));
    }

    pub(super) fn remove(&mut self, id: &EntryId) -> Option<Arc<Entry>> {
        self.0.remove(id).map(|removed| removed.0)
    }

    pub(super) fn get(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.0.get(id).map(|found| &found.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> + Send {
        self.0.iter().map(|entry| &entry.0)
    }

    /// Of entries in the order of their IDs, each ID once.
    pub(super) fn of_all(entries: &[Arc<Entry>]) -> Self {
        packed(entries).map(Arc::clone).collect()
    }

    /// Those after `id`; all without `id`.
    pub(super) fn after(&self, id: Option<&EntryId>) -> impl Iterator<Item = &Arc<Entry>> {
        let start = id.map_or(Unbounded, |id| Excluded(id.clone()));
        self.0.range((start, Unbounded)).map(|entry| &entry.0)
    }
}

impl FromIterator<Arc<Entry>> for Entries {
    fn from_iter<I: IntoIterator<Item = Arc<Entry>>>(entries: I) -> Self {
        Self(entries.into_iter().map(ById).collect())
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<K: Ord + Clone> Index<K> {
    pub(super) fn new() -> Self {
        Self(OrdMap::new())
    }

    /// Files `entry`, which replaces the one of the same ID in the same place.
    pub(super) fn insert(&mut self, under: &K, entry: &Arc<Entry>) {
        let entry = Arc::clone(entry);
        match self.0.get_mut(under) {
            Some(listed) => listed.insert(entry),
            None => {
                self.0.insert(under.clone(), Listed::One(entry));
            }
        }
    }

    /// Takes out the entry of this ID, if it is filed there.
    pub(super) fn remove(&mut self, under: &K, id: &EntryId) {
        if self.0.get_mut(under).is_some_and(|listed| listed.is_empty_without(id)) {
            self.0.remove(under);
        }
    }

    /// The entries filed there, in the order of their IDs.
    pub(super) fn get(&self, under: &K) -> impl Iterator<Item = &Arc<Entry>> + use<'_, K> {
        self.0.get(under).into_iter().flat_map(Listed::iter)
    }

    pub(super) fn contains(&self, under: &K) -> bool {
        // Asked for every entry of an agent, and mostly of an index that is empty.
        !self.0.is_empty() && self.0.contains_key(under)
    }

    /// Files all `entries`, which are in the order of their IDs: in the first index under the places that `is_first` says,
    /// in the second one under all others. Quick where equal places are mostly one text: `text` tells the text of a place.
    pub(super) fn of_all<'a>(
        entries: &'a [Arc<Entry>],
        under: impl Fn(&'a Entry) -> &'a K,
        text: impl Fn(&K) -> &str,
        is_first: impl Fn(&K) -> bool,
    ) -> (Self, Self)
    where
        K: 'a,
    {
        // Where the text is, and whose: numbers are compared quickly, and bring together what is in one place.
        let filed = entries.iter().enumerate().map(|(at, entry)| (text(under(entry)).as_ptr().addr(), at));
        let mut filed: Vec<(usize, usize)> = filed.collect();
        filed.sort_unstable();
        let places = filed.chunk_by(|(one, _), (other, _)| one == other);
        let mut places: Vec<(&K, &[(usize, usize)])> =
            places.map(|place| (under(&entries[place[0].1]), place)).collect();
        sort_by_text(&mut places, |(under, _)| text(under));
        let (first, second): (Vec<_>, Vec<_>) =
            places.chunk_by(|(one, _), (other, _)| one == other).partition(|equal| is_first(equal[0].0));
        let listed = |equal: &&[(&K, &[(usize, usize)])]| {
            let under = equal[0].0.clone();
            if let [(_, [(_, at)])] = equal {
                return Some((under, Listed::One(Arc::clone(&entries[*at]))));
            }
            let mut numbers: Vec<usize> =
                equal.iter().flat_map(|(_, place)| *place).map(|(_, at)| *at).collect();
            if equal.len() > 1 {
                numbers.sort_unstable();
            }
            Some((under, Listed::of(numbers.iter().map(|at| Arc::clone(&entries[*at])).collect())?))
        };
        let index = |places: &[&[_]]| Self(packed(places).filter_map(listed).collect());
        (index(&first), index(&second))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|listed| listed.iter().count()).sum()
    }
}

impl Listed {
    /// Of entries in the order of their IDs; `None` of none.
    fn of(mut entries: Vec<Arc<Entry>>) -> Option<Self> {
        if entries.len() > LISTED {
            return Some(Self::Many(Arc::new(Entries::of_all(&entries))));
        }
        if entries.len() > 1 {
            entries.shrink_to_fit();
            return Some(Self::Few(Arc::new(entries)));
        }
        entries.pop().map(Self::One)
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        match self {
            Self::One(one) => {
                let one = Arc::clone(one);
                *self = match one.id.cmp(&entry.id) {
                    Ordering::Equal => Self::One(entry),
                    Ordering::Less => Self::Few(Arc::new(vec![one, entry])),
                    Ordering::Greater => Self::Few(Arc::new(vec![entry, one])),
                };
            }
            Self::Few(few) => match place_of(few, &entry.id) {
                Ok(place) => Arc::make_mut(few)[place] = entry,
                Err(place) if few.len() < LISTED => Arc::make_mut(few).insert(place, entry),
                Err(_) => {
                    let mut many: Entries = few.iter().map(Arc::clone).collect();
                    many.insert(entry);
                    *self = Self::Many(Arc::new(many));
                }
            },
            Self::Many(many) => Arc::make_mut(many).insert(entry),
        }
    }

    /// Takes out the entry of this ID; whether nothing is left. It may then still hold that entry.
    fn is_empty_without(&mut self, id: &EntryId) -> bool {
        match self {
            Self::One(one) => one.id == *id,
            Self::Few(few) => {
                if let Ok(place) = place_of(few, id) {
                    Arc::make_mut(few).remove(place);
                }
                few.is_empty()
            }
            Self::Many(many) => {
                Arc::make_mut(many).remove(id);
                many.len() == 0
            }
        }
    }

    fn iter(&self) -> Iter<'_> {
        match self {
            Self::One(one) => Iter::Listed(std::slice::from_ref(one).iter()),
            Self::Few(few) => Iter::Listed(few.iter()),
            Self::Many(many) => Iter::InTree(many.0.iter()),
        }
    }
}

impl PartialEq for Listed {
    /// However they are held: that follows from what was there before.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Values that are sorted, in an order in which a tree that takes them one by one has full leaves at the end: taken in
/// their own order, each leaf would be left half empty when it is divided. Every second comes first, then those between.
fn packed<T>(sorted: &[T]) -> impl Iterator<Item = &T> {
    sorted.chunks(PACKED).flat_map(|some| some.iter().step_by(2).chain(some.iter().skip(1).step_by(2)))
}

/// Sorts by texts, which lie scattered in memory and mostly begin alike: looks at each only a few times.
fn sort_by_text<'a, T: Copy>(values: &mut [T], text: impl Fn(&T) -> &'a str + Copy) {
    sort_from(values, text, 0);
}

/// The same for texts whose first `from` bytes are the same.
fn sort_from<'a, T: Copy>(values: &mut [T], text: impl Fn(&T) -> &'a str + Copy, from: usize) {
    let Some(first) = values.first().map(|value| text(value).as_bytes()) else { return };
    let alike = |value: &T| {
        let both = first.iter().zip(text(value).as_bytes());
        both.skip(from).take_while(|(one, other)| one == other).count()
    };
    let shortest = values.iter().map(|value| text(value).len()).min().unwrap_or(0);
    if values.len() < FEW || shortest <= from {
        values.sort_unstable_by(|one, other| text(one).cmp(text(other)));
        return;
    }
    let from = from + values.iter().map(alike).min().unwrap_or(0);
    let next = |value: &T| {
        let mut next = [0; 8];
        let rest = text(value).as_bytes().get(from..).unwrap_or_default();
        let len = rest.len().min(next.len());
        next[..len].copy_from_slice(&rest[..len]);
        u64::from_be_bytes(next)
    };
    let mut by_next: Vec<(u64, T)> = values.iter().map(|value| (next(value), *value)).collect();
    by_next.sort_unstable_by_key(|(next, _)| *next);
    values.iter_mut().zip(&by_next).for_each(|(place, (_, value))| *place = *value);
    let mut at = 0;
    for equal in by_next.chunk_by(|(one, _), (other, _)| one == other) {
        let end = at + equal.len();
        if equal.len() > 1 {
            sort_from(&mut values[at..end], text, from + 8);
        }
        at = end;
    }
}

fn place_of(entries: &[Arc<Entry>], id: &EntryId) -> Result<usize, usize> {
    entries.binary_search_by(|entry| entry.id.cmp(id))
}

enum Iter<'a> {
    Listed(std::slice::Iter<'a, Arc<Entry>>),
    InTree(ordset::Iter<'a, ById, imbl::shared_ptr::DefaultSharedPtr>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Listed(entries) => entries.next(),
            Self::InTree(entries) => entries.next().map(|entry| &entry.0),
        }
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl Borrow<EntryId> for ById {
    fn borrow(&self) -> &EntryId {
        &self.0.id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::state::samples::{draft, entry_id, registered};

    fn entry(number: usize, hint: &str) -> Arc<Entry> {
        let draft = passant_core::EntryDraft { hint: hint.to_owned(), ..draft("/w", "/p", &["k:1"]) };
        registered(&format!("e{number:04}"), draft)
    }

    fn ids(index: &Index<u8>, under: u8) -> Vec<&str> {
        index.get(&under).map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn a_list_grows_into_a_tree_and_shrinks_to_nothing() {
        let mut index = Index::new();
        let numbers = || (0..LISTED + 2).map(|number| number * 7 % (LISTED + 2));
        for (count, number) in numbers().enumerate() {
            let before = index.clone();
            index.insert(&1, &entry(number, ""));
            assert_eq!((before.len(), index.len()), (count, count + 1), "a snapshot does not change");
        }
        assert!(matches!(index.0[&1], Listed::Many(_)));
        assert!(index.get(&1).is_sorted_by(|one, other| one.id < other.id));
        index.insert(&1, &entry(3, "new"));
        assert_eq!(index.get(&1).filter(|entry| entry.hint == "new").count(), 1);
        numbers().for_each(|number| index.remove(&1, &entry(number, "").id));
        assert!(!index.contains(&1) && index == Index::new());
    }

    #[test]
    fn how_entries_came_together_makes_no_difference() {
        let mut shrunk = Index::new();
        (0..LISTED + 1).for_each(|number| shrunk.insert(&1, &entry(number, "")));
        (2..LISTED + 1).for_each(|number| shrunk.remove(&1, &entry(number, "").id));
        let mut grown = Index::new();
        [1, 0].into_iter().for_each(|number| grown.insert(&1, &entry(number, "")));
        assert_eq!(shrunk, grown);
        grown.insert(&1, &entry(0, "new"));
        assert_ne!(shrunk, grown, "the same IDs, but another entry");
        grown.remove(&1, &entry_id("e0000"));
        assert_eq!(ids(&grown, 1), ["e0001"]);
        let one = [entry(1, "")].into_iter().collect::<Entries>();
        assert_ne!(one, [entry(1, "new")].into_iter().collect());
    }

    #[test]
    fn a_tree_of_what_was_packed_holds_all_of_it() {
        for count in [0, 1, 2, PACKED - 1, PACKED, PACKED * 2 + 3] {
            let numbers: Vec<usize> = (0..count).collect();
            let mut taken: Vec<usize> = packed(&numbers).copied().collect();
            assert!(count < 3 || taken != numbers);
            taken.sort_unstable();
            assert_eq!(taken, numbers);
        }
    }

    proptest! {
        #[test]
        fn texts_are_sorted_as_they_compare(
            texts in prop::collection::vec("(a{1,12}|a[bc]{7,9}|)[a\\x00é]{0,3}", 0..200),
        ) {
            let mut sorted: Vec<&str> = texts.iter().map(String::as_str).collect();
            sort_by_text(&mut sorted, |text| *text);
            let mut expected: Vec<&str> = texts.iter().map(String::as_str).collect();
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }

        #[test]
        fn an_index_holds_what_a_table_of_tables_would(
            steps in prop::collection::vec((any::<bool>(), 0..3_u8, 0..5_usize), 0..60),
        ) {
            let mut index = Index::new();
            let mut table: BTreeMap<u8, BTreeMap<EntryId, Arc<Entry>>> = BTreeMap::new();
            for (is_put, under, number) in steps {
                let entry = entry(number, "");
                if is_put {
                    index.insert(&under, &entry);
                    table.entry(under).or_default().insert(entry.id.clone(), entry);
                } else {
                    index.remove(&under, &entry.id);
                    table.entry(under).or_default().remove(&entry.id);
                }
                for under in 0..3 {
                    let expected: Vec<_> = table.get(&under).into_iter().flat_map(BTreeMap::values).collect();
                    prop_assert_eq!(index.get(&under).collect::<Vec<_>>(), expected);
                    prop_assert_eq!(index.contains(&under), index.get(&under).count() > 0);
                }
            }
        }
    }
}
