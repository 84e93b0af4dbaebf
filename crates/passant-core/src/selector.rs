//! What is a selector, and when does one set of them contain another?

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{SELECTOR_KIND_BYTES, SELECTOR_VALUE_BYTES};
use crate::text;

/// One attested fact about a node or a workload, written `kind:value`: `unix:uid:1000` has the kind `unix` and the
/// value `uid:1000`.
///
/// The kind is the attestor's file name and holds no colon; the value is free text and may hold colons.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Both parts and the colon between them: there are millions of selectors, and one text takes less than two.
    pub(crate) text: Arc<str>,
}

/// Why something is no selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// There is no colon in the text.
    #[error("selector must be written kind:value, for example unix:uid:1000")]
    MissingColon,
    /// The kind is empty.
    #[error("missing selector type")]
    MissingKind,
    /// The kind holds a colon.
    #[error("selector type contains ':'")]
    ColonInKind,
    /// The value is empty.
    #[error("missing selector value")]
    MissingValue,
    /// The kind or the value is longer than `limits.rs` allows.
    #[error("selector is too long")]
    TooLong,
}

impl Selector {
    /// A selector of its two parts.
    ///
    /// # Errors
    /// When a part is empty or too long, or the kind holds a colon.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        check(kind, value)?;
        Ok(Self { text: Arc::from([kind, ":", value].concat()) })
    }

    /// Parses `kind:value`.
    ///
    /// # Errors
    /// When there is no colon, or as [`Selector::new`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or(SelectorError::MissingColon)?;
        check(kind, value)?;
        Ok(Self { text: Arc::from(text) })
    }

    /// The attestor that vouches for it.
    pub fn kind(&self) -> &str {
        self.parts().0
    }

    /// The fact.
    pub fn value(&self) -> &str {
        self.parts().1
    }

    /// The selector as it is written, `kind:value`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn parts(&self) -> (&str, &str) {
        self.text.split_once(':').expect("a selector is made with its colon")
    }
}

fn check(kind: &str, value: &str) -> Result<(), SelectorError> {
    if kind.is_empty() {
        return Err(SelectorError::MissingKind);
    }
    if kind.contains(':') {
        return Err(SelectorError::ColonInKind);
    }
    if value.is_empty() {
        return Err(SelectorError::MissingValue);
    }
    if kind.len() > SELECTOR_KIND_BYTES || value.len() > SELECTOR_VALUE_BYTES {
        return Err(SelectorError::TooLong);
    }
    Ok(())
}

text::serde_as_text!(Selector, "a selector", shared);

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

/// A set of selectors in a fixed order.
///
/// Sets are small, and there are millions: a sorted list takes a third of a tree of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Selector>")]
pub struct Selectors(Vec<Selector>);

impl Selectors {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The selectors, in the order of their texts.
    pub fn iter(&self) -> impl Iterator<Item = &Selector> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `selector` is among them.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// Whether every selector of `wanted` is among these. True for an empty `wanted`.
    pub fn contains_all(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|selector| self.contains(selector))
    }

    /// Whether at least one selector of `wanted` is among these.
    pub fn contains_any(&self, wanted: &Self) -> bool {
        wanted.0.iter().any(|selector| self.contains(selector))
    }

    /// Puts what `equal` makes of each in its place: the same selector, in other memory.
    pub(crate) fn replace_each(&mut self, equal: impl FnMut(&mut Selector)) {
        self.0.iter_mut().for_each(equal);
    }

    /// Adds one; false when it was there.
    pub fn insert(&mut self, selector: Selector) -> bool {
        let place = self.0.binary_search(&selector);
        if let Err(place) = place {
            self.0.insert(place, selector);
        }
        place.is_err()
    }
}

impl From<Vec<Selector>> for Selectors {
    fn from(mut selectors: Vec<Selector>) -> Self {
        selectors.sort_unstable();
        selectors.dedup();
        selectors.shrink_to_fit();
        Self(selectors)
    }
}

impl FromIterator<Selector> for Selectors {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        Self::from(Vec::from_iter(selectors))
    }
}

impl Extend<Selector> for Selectors {
    fn extend<I: IntoIterator<Item = Selector>>(&mut self, selectors: I) {
        let mut all = std::mem::take(&mut self.0);
        all.extend(selectors);
        *self = Self::from(all);
    }
}

impl<'a> IntoIterator for &'a Selectors {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl IntoIterator for Selectors {
    type Item = Selector;
    type IntoIter = std::vec::IntoIter<Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> Selectors {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    #[test]
    fn the_first_colon_parts_kind_and_value() {
        let selector = Selector::parse("unix:uid:1000").unwrap();
        assert_eq!((selector.kind(), selector.value()), ("unix", "uid:1000"));
        assert_eq!(selector.to_string(), "unix:uid:1000");
    }

    #[test]
    fn malformed_selectors_are_refused() {
        assert_eq!(Selector::parse("unix"), Err(SelectorError::MissingColon));
        assert_eq!(Selector::parse(":x"), Err(SelectorError::MissingKind));
        assert_eq!(Selector::parse("unix:"), Err(SelectorError::MissingValue));
        assert_eq!(Selector::new("a:b", "c"), Err(SelectorError::ColonInKind));
        assert!(Selector::new("unix", &"x".repeat(SELECTOR_VALUE_BYTES)).is_ok());
        assert_eq!(Selector::new("unix", &"x".repeat(SELECTOR_VALUE_BYTES + 1)), Err(SelectorError::TooLong));
    }

    #[test]
    fn containment_is_by_subset() {
        let have = set(&["unix:uid:1", "unix:gid:1", "unix:path:/bin/a"]);
        assert!(have.contains_all(&set(&["unix:uid:1", "unix:gid:1"])));
        assert!(!have.contains_all(&set(&["unix:uid:1", "unix:gid:2"])));
        assert!(have.contains_any(&set(&["unix:uid:1", "unix:gid:2"])));
        assert!(have.contains_all(&Selectors::new()));
    }

    #[test]
    fn a_set_is_the_same_however_it_was_made() {
        let texts = ["unix:uid:1", "k8s:ns:a", "unix:gid:1"];
        let made = set(&texts);
        let mut inserted = Selectors::new();
        for text in texts.iter().rev().chain(&texts) {
            inserted.insert(Selector::parse(text).unwrap());
        }
        let mut extended = set(&texts[..2]);
        extended.extend(set(&texts[1..]));
        let read: Selectors =
            serde_json::from_str(r#"["unix:gid:1","unix:uid:1","k8s:ns:a","unix:uid:1"]"#).unwrap();
        for other in [&inserted, &extended, &read] {
            assert_eq!((other, other.len()), (&made, 3));
        }
        assert_eq!(serde_json::to_string(&made).unwrap(), r#"["k8s:ns:a","unix:gid:1","unix:uid:1"]"#);
        assert!(!inserted.insert(Selector::parse("k8s:ns:a").unwrap()));
        assert!(texts.iter().all(|text| inserted.contains(&Selector::parse(text).unwrap())));
    }
}
