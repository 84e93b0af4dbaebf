//! How is DER written and read where nothing but its one canonical form will do (X.690, clauses 8 and 10)?

/// Tags of universal types; those of `SEQUENCE` and `SET` say that they are constructed.
pub mod tag {
    /// `BOOLEAN`.
    pub const BOOLEAN: u8 = 1;
    /// `INTEGER`.
    pub const INTEGER: u8 = 2;
    /// `BIT STRING`.
    pub const BIT_STRING: u8 = 3;
    /// `OCTET STRING`.
    pub const OCTET_STRING: u8 = 4;
    /// `NULL`.
    pub const NULL: u8 = 5;
    /// `OBJECT IDENTIFIER`.
    pub const OBJECT_IDENTIFIER: u8 = 6;
    /// `UTF8String`.
    pub const UTF8_STRING: u8 = 12;
    /// `PrintableString`.
    pub const PRINTABLE_STRING: u8 = 19;
    /// `UTCTime`.
    pub const UTC_TIME: u8 = 23;
    /// `GeneralizedTime`.
    pub const GENERALIZED_TIME: u8 = 24;
    /// `SEQUENCE` and `SEQUENCE OF`.
    pub const SEQUENCE: u8 = 0x30;
    /// `SET` and `SET OF`.
    pub const SET: u8 = 0x31;
    /// `[0]` to `[30]`, of a simple type.
    pub const CONTEXT: u8 = 0x80;
    /// Added to [`CONTEXT`] where something constructed stands below.
    pub const CONSTRUCTED: u8 = 0x20;
}

/// From this length on, a length is written as the number of its bytes and these.
const LONG: usize = 0x80;

/// Appends an element whose content `write` appends.
pub fn element(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    // Most contents are short: room for one byte of length, and the content makes way where that was too little.
    out.extend([tag, 0]);
    let begins = out.len();
    write(out);
    let length = out.len() - begins;
    match u8::try_from(length) {
        Ok(short) if length < LONG => out[begins - 1] = short,
        _ => {
            let bytes = length.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let digits = &bytes[zeros..];
            out[begins - 1] = 0x80 | u8::try_from(digits.len()).expect("a length has at most eight bytes");
            out.splice(begins..begins, digits.iter().copied());
        }
    }
}

/// Appends an element with `content`, which has no parts or was written before.
pub fn plain(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    element(out, tag, |out| out.extend_from_slice(content));
}

/// Appends an `INTEGER` of an unsigned number in big-endian bytes, with or without leading zeros.
pub fn unsigned(out: &mut Vec<u8>, number: &[u8]) {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = &number[zeros..];
    element(out, tag::INTEGER, |out| {
        if digits.first().is_none_or(|first| first & 0x80 != 0) {
            out.push(0);
        }
        out.extend_from_slice(digits);
    });
}

/// Elements one after the other, read in order.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins at the first byte of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The content of the next element; `None` when its tag is another one, its length is not in the shortest form, or reaches
    /// beyond the end. Nothing is read then.
    pub fn element(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, after) = self.rest.split_first()?;
        let (first, after) = after.split_first()?;
        if *found != tag {
            return None;
        }
        let (length, after) = match usize::from(*first) {
            short if short < LONG => (short, after),
            long => {
                let (digits, after) = after.split_at_checked(long - LONG)?;
                let is_shortest = digits.first().is_some_and(|digit| *digit != 0);
                // No certificate or request is as long as three bytes can say.
                let length = match digits {
                    _ if !is_shortest => return None,
                    [one] => usize::from(*one),
                    [high, low] => usize::from(u16::from_be_bytes([*high, *low])),
                    [high, middle, low] => {
                        usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).ok()?
                    }
                    _ => return None,
                };
                if length < LONG {
                    return None;
                }
                (length, after)
            }
        };
        let (content, rest) = after.split_at_checked(length)?;
        self.rest = rest;
        Some(content)
    }

    /// The same for an element with elements in it.
    pub fn within(&mut self, tag: u8) -> Option<Self> {
        self.element(tag).map(Self::new)
    }

    /// Goes past `bytes`; `None` when something else comes.
    pub fn exactly(&mut self, bytes: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(bytes)?;
        Some(())
    }

    /// What was not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// `None` unless everything was read.
    pub fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_have_their_shortest_form_on_both_sides_of_every_boundary() {
        for (length, header) in [
            (0, &[4, 0][..]),
            (0x7f, &[4, 0x7f]),
            (0x80, &[4, 0x81, 0x80]),
            (0xff, &[4, 0x81, 0xff]),
            (0x100, &[4, 0x82, 1, 0]),
            (0xffff, &[4, 0x82, 0xff, 0xff]),
            (0x1_0000, &[4, 0x83, 1, 0, 0]),
        ] {
            let content = vec![7; length];
            let mut written = Vec::new();
            plain(&mut written, tag::OCTET_STRING, &content);
            assert_eq!(written, [header, &content].concat(), "{length}");
            let mut reader = Reader::new(&written);
            assert_eq!(reader.element(tag::OCTET_STRING), Some(&*content));
            assert_eq!(reader.end(), Some(()));
        }
    }

    #[test]
    fn other_forms_of_a_length_are_refused() {
        for header in [
            &[4, 0x81, 0x7f][..],
            &[4, 0x81, 0],
            &[4, 0x82, 0, 0x80],
            &[4, 0x80],
            &[4, 0x84, 0, 0, 0, 0x80],
            &[4, 0xff],
            &[5, 0],
            &[4, 0x81, 0x81],
        ] {
            let bytes = [header, &[1; 0x80]].concat();
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.element(tag::OCTET_STRING), None, "{header:?}");
            assert_eq!(reader.rest(), bytes);
        }
        assert_eq!(Reader::new(&[4]).element(tag::OCTET_STRING), None);
        assert_eq!(Reader::new(&[]).element(tag::OCTET_STRING), None);
    }

    proptest! {
        #[test]
        fn integers_are_minimal_and_positive(bytes in prop::collection::vec(any::<u8>(), 0..48)) {
            let mut der = Vec::new();
            unsigned(&mut der, &bytes);
            let content = Reader::new(&der).element(tag::INTEGER).unwrap();
            prop_assert!(content[0] & 0x80 == 0);
            prop_assert!(content.len() == 1 || content[0] != 0 || content[1] & 0x80 != 0);
            let number = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
            prop_assert_eq!(number(content), number(&bytes));
        }

        #[test]
        fn what_is_written_is_read(first in prop::collection::vec(any::<u8>(), 0..300), second in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut written = Vec::new();
            element(&mut written, tag::SEQUENCE, |out| {
                plain(out, tag::OCTET_STRING, &first);
                plain(out, tag::INTEGER, &second);
            });
            let mut outer = Reader::new(&written);
            let mut inner = outer.within(tag::SEQUENCE).unwrap();
            prop_assert_eq!(outer.end(), Some(()));
            prop_assert_eq!(inner.element(tag::INTEGER), None);
            prop_assert_eq!(inner.element(tag::OCTET_STRING), Some(&*first));
            prop_assert_eq!(inner.element(tag::INTEGER), Some(&*second));
            prop_assert_eq!(inner.end(), Some(()));
        }

        #[test]
        fn what_is_read_is_written_alike(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            if let Some(content) = bytes.first().and_then(|tag| reader.element(*tag)) {
                let mut again = Vec::new();
                plain(&mut again, bytes[0], content);
                prop_assert_eq!([&again, reader.rest()].concat(), bytes);
            }
        }
    }
}
