//! How are texts that many entries have in common kept only once?

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::entry::Entry;
use crate::selector::Selector;
use crate::spiffe_id::SpiffeId;
use crate::trust_domain::TrustDomain;

/// From so many texts on they are looked through for those that nobody holds any more.
const SWEPT_FROM: usize = 1_024;

/// The selectors, SPIFFE IDs and trust domains of entries, one of each text.
///
/// A text that no entry holds any more is forgotten, though not at once: there are never more than twice as many as
/// there were in use when it was last looked through.
#[derive(Debug, Default)]
pub struct Texts {
    selectors: Pool<Selector>,
    spiffe_ids: Pool<SpiffeId>,
    trust_domains: Pool<TrustDomain>,
}

thread_local! {
    /// What this thread reads with at the moment.
    static READING: RefCell<Option<Texts>> = const { RefCell::new(None) };
}

impl Texts {
    /// Makes `entry` hold texts that are held already, where there are equal ones. The entry stays equal to itself.
    pub fn share(&mut self, entry: &mut Entry) {
        self.spiffe_ids.share(&mut entry.spiffe_id);
        self.spiffe_ids.share(&mut entry.parent_id);
        entry.selectors.replace_each(|selector| self.selectors.share(selector));
        if !entry.federates_with.is_empty() {
            let names = std::mem::take(&mut entry.federates_with).into_iter();
            entry.federates_with = names
                .map(|mut name| {
                    self.trust_domains.share(&mut name);
                    name
                })
                .collect();
        }
    }

    /// Whether every text of `entry` is the one that [`Texts::share`] would give it.
    pub fn holds(&self, entry: &Entry) -> bool {
        self.spiffe_ids.holds(&entry.spiffe_id)
            && self.spiffe_ids.holds(&entry.parent_id)
            && entry.selectors.iter().all(|selector| self.selectors.holds(selector))
            && entry.federates_with.iter().all(|name| self.trust_domains.holds(name))
    }

    /// Does `read`. Whatever it deserializes holds texts that are held already, where there are equal ones: these are
    /// neither copied nor checked again.
    pub fn reading<T>(&mut self, read: impl FnOnce() -> T) -> T {
        let before = READING.replace(Some(std::mem::take(self)));
        let done = read();
        *self = READING.replace(before).unwrap_or_default();
        done
    }
}

/// What `parse` makes of `text`, or the same that this thread has read before, where it reads with [`Texts::reading`].
pub(crate) fn known<T: Text, E>(text: &str, parse: fn(&str) -> Result<T, E>) -> Result<T, E> {
    READING.with_borrow_mut(|reading| match reading {
        Some(texts) => T::pool(texts).get_or_parse(text, parse),
        None => parse(text),
    })
}

/// What is held once. Nothing but its text makes it what it is.
pub(crate) trait Text: Clone {
    fn held(&self) -> &Arc<str>;
    fn pool(texts: &mut Texts) -> &mut Pool<Self>;
}

/// Makes a type with a text in one of its fields one of those that are held once.
macro_rules! text {
    ($type:ident, $field:tt, $pool:ident) => {
        impl Text for $type {
            fn held(&self) -> &Arc<str> {
                &self.$field
            }

            fn pool(texts: &mut Texts) -> &mut Pool<Self> {
                &mut texts.$pool
            }
        }
    };
}

text!(Selector, text, selectors);
text!(SpiffeId, text, spiffe_ids);
text!(TrustDomain, 0, trust_domains);

/// One that is found by its text.
#[derive(Debug)]
struct Known<T>(T);

impl<T: Text> Borrow<str> for Known<T> {
    fn borrow(&self) -> &str {
        self.0.held()
    }
}

impl<T: Text> Hash for Known<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.held().hash(state);
    }
}

impl<T: Text> PartialEq for Known<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.held() == other.0.held()
    }
}

impl<T: Text> Eq for Known<T> {}

#[derive(Debug)]
pub(crate) struct Pool<T> {
    known: HashSet<Known<T>>,
    /// With so many it is looked through.
    sweep_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SWEPT_FROM }
    }
}

impl<T: Text> Pool<T> {
    fn share(&mut self, text: &mut T) {
        match self.known.get(text.held().as_ref()) {
            Some(Known(known)) if Arc::ptr_eq(known.held(), text.held()) => {}
            Some(Known(known)) => *text = known.clone(),
            None => self.add(text.clone()),
        }
    }

    fn holds(&self, text: &T) -> bool {
        self.known
            .get(text.held().as_ref())
            .is_some_and(|Known(known)| Arc::ptr_eq(known.held(), text.held()))
    }

    fn get_or_parse<E>(&mut self, text: &str, parse: fn(&str) -> Result<T, E>) -> Result<T, E> {
        if let Some(Known(known)) = self.known.get(text) {
            return Ok(known.clone());
        }
        let parsed = parse(text)?;
        // Of a trust domain there is another way to write it.
        if parsed.held().as_ref() == text {
            self.add(parsed.clone());
        }
        Ok(parsed)
    }

    fn add(&mut self, text: T) {
        if self.known.len() >= self.sweep_at {
            // Whose only holder is this pool.
            self.known.retain(|Known(known)| Arc::strong_count(known.held()) > 1);
            self.sweep_at = SWEPT_FROM.max(2 * self.known.len());
        }
        self.known.insert(Known(text));
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
        let mut texts = Texts::default();
        let [one, other] = [&json[0], &json[1]].map(|json| texts.reading(|| read(json)));
        assert_eq!((&one, &other), (&entry(1), &entry(2)));
        assert!(Arc::ptr_eq(one.spiffe_id.held(), other.parent_id.held()));
        let mut third = entry(3);
        assert!(texts.holds(&one) && !texts.holds(&third));
        texts.share(&mut third);
        assert!(texts.holds(&third));
        assert!(Arc::ptr_eq(one.spiffe_id.held(), third.spiffe_id.held()), "by either way");
        assert!(
            !Arc::ptr_eq(one.spiffe_id.held(), read(&json[0]).spiffe_id.held()),
            "outside of it nothing is shared"
        );
        let refused = texts.reading(|| serde_json::from_str::<SpiffeId>(r#""spiffe://Example.org/a""#));
        assert!(refused.unwrap_err().to_string().contains("lowercase"));
    }

    #[test]
    fn a_trust_domain_is_what_it_is_however_it_is_written() {
        let mut texts = Texts::default();
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
            assert!(texts.selectors.known.len() <= SWEPT_FROM);
        }
        let mut again = entry(0);
        texts.share(&mut again);
        assert_eq!(kept, again);
        assert!(kept.selectors.iter().zip(&again.selectors).all(|(a, b)| Arc::ptr_eq(a.held(), b.held())));
    }
}
