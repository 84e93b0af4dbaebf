//! How are texts that many entries have in common kept only once?

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use crate::entry::Entry;
use crate::selector::Selector;
use crate::spiffe_id::SpiffeId;
use crate::trust_domain::TrustDomain;

/// From so many texts on they are looked through for those that nobody holds any more.
const SWEPT_FROM: usize = 1_024;

/// Parts of a table that several threads read with, so that they seldom wait for each other.
const SHARDS: usize = 128;

/// The selectors, SPIFFE IDs and trust domains of entries, one of each text.
///
/// A text that no entry holds any more is forgotten, though not at once: there are never more than twice as many as
/// there were in use when it was last looked through.
#[derive(Debug, Default)]
pub struct Texts {
    hasher: RandomState,
    pools: Pools,
}

impl Texts {
    /// Makes `entry` hold texts that are held already, where there are equal ones. The entry stays equal to itself.
    pub fn share(&mut self, entry: &mut Entry) {
        self.share_one(&mut entry.spiffe_id);
        self.share_one(&mut entry.parent_id);
        entry.selectors.replace_each(|selector| self.share_one(selector));
        if !entry.federates_with.is_empty() {
            let names = std::mem::take(&mut entry.federates_with).into_iter();
            entry.federates_with = names
                .map(|mut name| {
                    self.share_one(&mut name);
                    name
                })
                .collect();
        }
    }

    /// Whether every text of `entry` is the one that [`Texts::share`] would give it.
    pub fn holds(&self, entry: &Entry) -> bool {
        self.holds_one(&entry.spiffe_id)
            && self.holds_one(&entry.parent_id)
            && entry.selectors.iter().all(|selector| self.holds_one(selector))
            && entry.federates_with.iter().all(|name| self.holds_one(name))
    }

    fn share_one<T: Text>(&mut self, text: &mut T) {
        let hash = hash(&self.hasher, text.held());
        T::pool_mut(&mut self.pools).share(hash, text);
    }

    fn holds_one<T: Text>(&self, text: &T) -> bool {
        T::pool(&self.pools).holds(hash(&self.hasher, text.held()), text)
    }
}

/// The same texts while very many entries are read, by several threads if need be. Clones share them.
///
/// Nothing is forgotten as long as one of them is there: whoever has read all drops them.
#[derive(Clone, Debug)]
pub struct ReadTexts(Arc<Shards>);

#[derive(Debug)]
struct Shards {
    hasher: RandomState,
    shards: Vec<Mutex<Pools>>,
}

thread_local! {
    /// What this thread reads with at the moment.
    static READING: RefCell<Option<ReadTexts>> = const { RefCell::new(None) };
}

impl Default for ReadTexts {
    fn default() -> Self {
        let shards = std::iter::repeat_with(|| Mutex::new(Pools::unswept())).take(SHARDS);
        Self(Arc::new(Shards { hasher: RandomState::new(), shards: shards.collect() }))
    }
}

impl ReadTexts {
    /// Does `read`. Whatever it deserializes holds texts that were read with these before, where there are equal ones:
    /// they are neither copied nor checked again.
    pub fn reading<T>(&self, read: impl FnOnce() -> T) -> T {
        let before = READING.replace(Some(self.clone()));
        let done = read();
        READING.set(before);
        done
    }

    fn get_or_parse<T: Text, E>(&self, text: &str, parse: fn(&str) -> Result<T, E>) -> Result<T, E> {
        let hash = hash(&self.0.hasher, text);
        // By other bits than a table looks at.
        let shard = &self.0.shards[usize::from(hash.to_be_bytes()[2]) % SHARDS];
        let mut pools = shard.lock().unwrap_or_else(PoisonError::into_inner);
        T::pool_mut(&mut pools).get_or_parse(hash, text, parse)
    }
}

/// What `parse` makes of `text`, or the same that was read before, where this thread reads with [`ReadTexts::reading`].
pub(crate) fn known<T: Text, E>(text: &str, parse: fn(&str) -> Result<T, E>) -> Result<T, E> {
    READING.with_borrow(|reading| match reading {
        Some(texts) => texts.get_or_parse(text, parse),
        None => parse(text),
    })
}

fn hash(hasher: &RandomState, text: &str) -> u64 {
    hasher.hash_one(text)
}

#[derive(Debug, Default)]
pub(crate) struct Pools {
    selectors: Pool<Selector>,
    spiffe_ids: Pool<SpiffeId>,
    trust_domains: Pool<TrustDomain>,
}

impl Pools {
    fn unswept() -> Self {
        Self { selectors: Pool::unswept(), spiffe_ids: Pool::unswept(), trust_domains: Pool::unswept() }
    }
}

/// What is held once. Nothing but its text makes it what it is.
pub(crate) trait Text: Clone {
    fn held(&self) -> &Arc<str>;
    fn pool(pools: &Pools) -> &Pool<Self>;
    fn pool_mut(pools: &mut Pools) -> &mut Pool<Self>;
}

/// Makes a type with a text in one of its fields one of those that are held once.
macro_rules! text {
    ($type:ident, $field:tt, $pool:ident) => {
        impl Text for $type {
            fn held(&self) -> &Arc<str> {
                &self.$field
            }

            fn pool(pools: &Pools) -> &Pool<Self> {
                &pools.$pool
            }

            fn pool_mut(pools: &mut Pools) -> &mut Pool<Self> {
                &mut pools.$pool
            }
        }
    };
}

text!(Selector, text, selectors);
text!(SpiffeId, text, spiffe_ids);
text!(TrustDomain, 0, trust_domains);

/// Texts by their hashes, which are kept beside them: a table that grows would have to look at every text again, each
/// in another place of the memory. Of two texts with one hash only the first is held here.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    known: HashMap<u64, T, BuildHasherDefault<Hashed>>,
    /// With so many it is looked through.
    sweep_at: usize,
}

/// The hash of what is a hash already.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashMap::default(), sweep_at: SWEPT_FROM }
    }
}

impl<T> Pool<T> {
    fn unswept() -> Self {
        Self { sweep_at: usize::MAX, ..Self::default() }
    }
}

impl<T: Text> Pool<T> {
    fn share(&mut self, hash: u64, text: &mut T) {
        match self.known.get(&hash) {
            Some(known) if Arc::ptr_eq(known.held(), text.held()) => {}
            Some(known) if known.held() == text.held() => *text = known.clone(),
            Some(_) => {}
            None => self.add(hash, text.clone()),
        }
    }

    fn holds(&self, hash: u64, text: &T) -> bool {
        self.known.get(&hash).is_some_and(|known| Arc::ptr_eq(known.held(), text.held()))
    }

    fn get_or_parse<E>(&mut self, hash: u64, text: &str, parse: fn(&str) -> Result<T, E>) -> Result<T, E> {
        let known = self.known.get(&hash);
        if let Some(known) = known.filter(|known| known.held().as_ref() == text) {
            return Ok(known.clone());
        }
        let is_new = known.is_none();
        let parsed = parse(text)?;
        // Of a trust domain there is another way to write it.
        if is_new && parsed.held().as_ref() == text {
            self.add(hash, parsed.clone());
        }
        Ok(parsed)
    }

    fn add(&mut self, hash: u64, text: T) {
        if self.known.len() >= self.sweep_at {
            // Whose only holder is this pool.
            self.known.retain(|_, known| Arc::strong_count(known.held()) > 1);
            self.sweep_at = SWEPT_FROM.max(2 * self.known.len());
        }
        self.known.insert(hash, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryDraft, EntryId};
    use crate::time::UnixTime;

    fn entry(number: usize) -> Entry {
        let td = TrustDomain::parse("example.org").unwrap();
        let selectors = ["unix:uid:1".to_owned(), format!("k8s:pod-uid:{number}")];
        let selectors = selectors.iter().map(|text| Selector::parse(text).unwrap()).collect();
        let mut draft = EntryDraft::new(td.join("/w").unwrap(), td.join("/w").unwrap(), selectors);
        draft.federates_with = [TrustDomain::parse("other.test").unwrap()].into();
        let id = EntryId::parse(&format!("e{number}")).unwrap();
        draft.register(&td, id, 1, UnixTime::from_secs(0)).unwrap()
    }

    #[test]
    fn equal_texts_are_held_once_and_entries_stay_what_they_were() {
        let mut texts = Texts::default();
        let (mut one, mut other) = (entry(1), entry(2));
        texts.share(&mut one);
        texts.share(&mut other);
        assert_eq!((&one, &other), (&entry(1), &entry(2)));
        for id in [&one.parent_id, &other.spiffe_id, &other.parent_id] {
            assert!(Arc::ptr_eq(one.spiffe_id.held(), id.held()));
        }
        let uid = |entry: &Entry| {
            let uid = entry.selectors.iter().find(|selector| selector.kind() == "unix");
            Arc::clone(uid.unwrap().held())
        };
        assert!(Arc::ptr_eq(&uid(&one), &uid(&other)));
        let name = |entry: &Entry| Arc::clone(entry.federates_with.first().unwrap().held());
        assert!(Arc::ptr_eq(&name(&one), &name(&other)));
    }

    #[test]
    fn what_is_read_holds_what_was_read_before() {
        let json = [1, 2].map(|number| serde_json::to_string(&entry(number)).unwrap());
        let read = |json: &str| serde_json::from_str::<Entry>(json).unwrap();
        let texts = ReadTexts::default();
        let [one, other] = [&json[0], &json[1]].map(|json| texts.reading(|| read(json)));
        assert_eq!((&one, &other), (&entry(1), &entry(2)));
        assert!(Arc::ptr_eq(one.spiffe_id.held(), other.parent_id.held()));
        assert!(
            !Arc::ptr_eq(one.spiffe_id.held(), read(&json[0]).spiffe_id.held()),
            "outside of it nothing is shared"
        );
        let refused = texts.reading(|| serde_json::from_str::<SpiffeId>(r#""spiffe://Example.org/a""#));
        assert!(refused.unwrap_err().to_string().contains("lowercase"));
    }

    #[test]
    fn threads_that_read_with_the_same_texts_hold_each_text_once() {
        let json: Vec<String> =
            (0..2_000).map(|number| serde_json::to_string(&entry(number % 500)).unwrap()).collect();
        let texts = ReadTexts::default();
        let read = || texts.reading(|| json.iter().map(|json| serde_json::from_str(json).unwrap()).collect());
        let (ours, theirs): (Vec<Entry>, Vec<Entry>) = std::thread::scope(|scope| {
            let theirs = scope.spawn(read);
            (read(), theirs.join().unwrap())
        });
        assert_eq!(ours, theirs);
        let held = |entry: &Entry| {
            let selectors: Vec<_> =
                entry.selectors.iter().map(|selector| Arc::as_ptr(selector.held())).collect();
            (Arc::as_ptr(entry.spiffe_id.held()), selectors)
        };
        assert!(ours.iter().zip(&theirs).all(|(one, other)| held(one) == held(other)));
        assert!(held(&ours[0]) == held(&ours[500]) && held(&ours[0]) != held(&ours[1]));
    }

    #[test]
    fn of_two_texts_with_one_hash_each_stays_what_it_is() {
        let mut pool = Pool::default();
        let [mut one, mut other] = ["k:1", "k:2"].map(|text| Selector::parse(text).unwrap());
        pool.share(7, &mut one);
        pool.share(7, &mut other);
        assert_eq!((one.as_str(), other.as_str()), ("k:1", "k:2"));
        assert!(pool.holds(7, &one) && !pool.holds(7, &other));
        for text in ["k:1", "k:2", "k:3"] {
            assert_eq!(pool.get_or_parse(7, text, Selector::parse).unwrap().as_str(), text);
        }
        assert!(pool.get_or_parse(7, "none", Selector::parse).is_err());
    }

    #[test]
    fn a_trust_domain_is_what_it_is_however_it_is_written() {
        let texts = ReadTexts::default();
        let read = |json: &str| serde_json::from_str::<TrustDomain>(json).unwrap();
        for _ in 0..2 {
            let names = texts.reading(|| [read(r#""a.test""#), read(r#""spiffe://a.test""#)]);
            assert!(names.iter().all(|name| name.as_str() == "a.test"), "{names:?}");
        }
    }

    #[test]
    fn texts_that_nobody_holds_any_more_are_forgotten() {
        let mut texts = Texts::default();
        let mut kept = entry(0);
        texts.share(&mut kept);
        for number in 1..20 * SWEPT_FROM {
            texts.share(&mut entry(number));
            assert!(texts.pools.selectors.known.len() <= SWEPT_FROM);
        }
        let mut again = entry(0);
        texts.share(&mut again);
        assert_eq!(kept, again);
        assert!(kept.selectors.iter().zip(&again.selectors).all(|(a, b)| Arc::ptr_eq(a.held(), b.held())));
    }
}
