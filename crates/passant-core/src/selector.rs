//! What is a selector, and when does one set of them contain another?

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{SELECTOR_KIND_BYTES, SELECTOR_VALUE_BYTES};

/// One attested fact about a node or a workload, written `kind:value`: `unix:uid:1000` has the kind `unix` and the
/// value `uid:1000`.
///
/// The kind is the attestor's file name and holds no colon; the value is free text and may hold colons.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    kind: Arc<str>,
    value: Arc<str>,
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
        Ok(Self { kind: Arc::from(kind), value: Arc::from(value) })
    }

    /// Parses `kind:value`.
    ///
    /// # Errors
    /// When there is no colon, or as [`Selector::new`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or(SelectorError::MissingColon)?;
        Self::new(kind, value)
    }

    /// The attestor that vouches for it.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The fact.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        Self::parse(&text)
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

/// A set of selectors in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selectors(BTreeSet<Selector>);

impl Selectors {
    /// The empty set.
    pub const fn new() -> Self {
        Self(BTreeSet::new())
    }

    /// The selectors, ordered by kind, then value.
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
        self.0.contains(selector)
    }

    /// Whether every selector of `wanted` is among these. True for an empty `wanted`.
    pub fn contains_all(&self, wanted: &Self) -> bool {
        wanted.0.is_subset(&self.0)
    }

    /// Whether at least one selector of `wanted` is among these.
    pub fn contains_any(&self, wanted: &Self) -> bool {
        !wanted.0.is_disjoint(&self.0)
    }

    /// Adds one; false when it was there.
    pub fn insert(&mut self, selector: Selector) -> bool {
        self.0.insert(selector)
    }
}

impl FromIterator<Selector> for Selectors {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        Self(selectors.into_iter().collect())
    }
}

impl Extend<Selector> for Selectors {
    fn extend<I: IntoIterator<Item = Selector>>(&mut self, selectors: I) {
        self.0.extend(selectors);
    }
}

impl<'a> IntoIterator for &'a Selectors {
    type Item = &'a Selector;
    type IntoIter = std::collections::btree_set::Iter<'a, Selector>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl IntoIterator for Selectors {
    type Item = Selector;
    type IntoIter = std::collections::btree_set::IntoIter<Selector>;

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
}
