//! How is a text held and written of which there are millions?

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// The longest text that is held in place: a UUID has 36 bytes, and two more take no more room.
const IN_PLACE: usize = 38;

/// A text that is held in place if it is short: without memory of its own, which would take twice as much.
#[derive(Clone)]
pub(crate) struct ShortText(Held);

/// Which of both depends on the length alone.
#[derive(Clone)]
enum Held {
    InPlace { len: u8, bytes: [u8; IN_PLACE] },
    Apart(Arc<str>),
}

impl ShortText {
    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; IN_PLACE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(text.as_bytes());
                Self(Held::InPlace { len, bytes })
            }
            _ => Self(Held::Apart(Arc::from(text))),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("it is made of a text")
    }

    fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Held::InPlace { len, bytes } => &bytes[..usize::from(*len)],
            Held::Apart(text) => text.as_bytes(),
        }
    }
}

impl PartialEq for ShortText {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ShortText {}

impl PartialOrd for ShortText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ShortText {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for ShortText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// Reads a text with `parse`, without a copy of the text in between.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: &'static str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Parsed { what, read, of: PhantomData })
}

struct Parsed<T, F> {
    what: &'static str,
    read: F,
    of: PhantomData<fn() -> T>,
}

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Parsed<T, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }
}

/// Writes a type with `as_str` as that text, and reads it with its `parse`; if it is `shared`, by `texts::known`.
macro_rules! serde_as_text {
    ($type:ty, $what:literal) => {
        $crate::text::serde_as_text!($type, $what, |text| Self::parse(text));
    };
    ($type:ty, $what:literal, shared) => {
        $crate::text::serde_as_text!($type, $what, |text| $crate::texts::known(text, Self::parse));
    };
    ($type:ty, $what:literal, |$text:ident| $read:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::text::deserialize(deserializer, $what, |$text| {
                    $read.map_err(|error| error.to_string())
                })
            }
        }
    };
}
pub(crate) use serde_as_text;

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn short_and_long_texts_are_the_same_as_strings(one in ".{0,80}", other in ".{0,80}") {
            let (a, b) = (ShortText::new(&one), ShortText::new(&other));
            prop_assert_eq!((a.as_str(), b.as_str()), (&*one, &*other));
            prop_assert_eq!(a.cmp(&b), one.cmp(&other));
            prop_assert_eq!(a == b, one == other);
            let hasher = RandomState::new();
            prop_assert_eq!(hasher.hash_one(&a), hasher.hash_one(ShortText::new(&one)));
        }
    }

    #[test]
    fn a_uuid_is_held_in_place_and_one_byte_too_many_is_not() {
        let in_place = |len: usize| matches!(ShortText::new(&"x".repeat(len)).0, Held::InPlace { .. });
        assert_eq!([36, IN_PLACE, IN_PLACE + 1, 255, 256].map(in_place), [true, true, false, false, false]);
        assert_eq!(size_of::<ShortText>(), 40);
    }
}
