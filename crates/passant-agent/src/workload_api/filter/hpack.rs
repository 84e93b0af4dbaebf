//! What does a header block hold, and how is a bad `:authority` in it mended?
//!
//! Both ends of an HPACK connection keep the same dynamic table, whose size counts *decoded* bytes (RFC 7541, section
//! 4.1). A mended value therefore has exactly as many bytes as the bad one: the reader behind us then inserts and
//! evicts in step with the sender, and a later reference by index finds the mended value. The representation (with,
//! without or never indexed) and the name stay as they were sent; only the value's string literal is written anew,
//! without Huffman coding.

use std::collections::VecDeque;

use http::uri::Authority;

use super::huffman;

/// A block that is not HPACK: whoever reads it next will say so; nobody can follow the connection's table from here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// The dynamic table that h2 announces (its default, which tonic does not change), in bytes of RFC 7541, section 4.1.
const TABLE_MAX: usize = 4096;
/// What each entry counts beside its name and value (RFC 7541, section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// Length of each name in the static table, from index 1 (RFC 7541, appendix A).
const STATIC_NAMES: [usize; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13,
    12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3,
    16,
];
const STATIC_AUTHORITY: usize = 1;

/// Follows the sender's dynamic table, and mends one block after another.
#[derive(Debug)]
pub(super) struct Mender {
    /// Newest first, as HPACK numbers them.
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    name: Name,
    size: usize,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    length: usize,
    is_authority: bool,
}

impl Mender {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, max: TABLE_MAX }
    }

    /// The block with every illegal `:authority` value mended, or `None` when it can go on as it is.
    ///
    /// After [`Unreadable`] the table is no longer in step and this must not be called again.
    pub(super) fn mend(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let mut reader = Reader { block, at: 0 };
        let mut mended = Vec::new();
        let mut copied = 0;
        let mut may_resize = true;
        while let Some(first) = reader.peek() {
            let is_resize = first.leading_zeros() == 2;
            // Behind a header a new size is a fault (RFC 7541, section 4.2), which h2 sees only within one frame.
            if is_resize && !may_resize {
                return Err(Unreadable);
            }
            may_resize = is_resize;
            match first.leading_zeros() {
                0 => {
                    let index = reader.integer(7)?;
                    self.name(index)?;
                }
                2 => {
                    let max = reader.integer(5)?;
                    self.resize(max)?;
                }
                zeros => {
                    let is_indexing = zeros == 1;
                    let name = self.literal_name(&mut reader, if is_indexing { 6 } else { 4 })?;
                    let before_value = reader.at;
                    let value = reader.string()?;
                    if let Some(good) = mend_value(name, &value) {
                        mended.extend_from_slice(&block[copied..before_value]);
                        push_string(&mut mended, &good);
                        copied = reader.at;
                    }
                    if is_indexing {
                        self.insert(name, value.len());
                    }
                }
            }
        }
        if copied == 0 {
            return Ok(None);
        }
        mended.extend_from_slice(&block[copied..]);
        Ok(Some(mended))
    }

    fn literal_name(&self, reader: &mut Reader<'_>, prefix: u32) -> Result<Name, Unreadable> {
        match reader.integer(prefix)? {
            0 => {
                let name = reader.string()?;
                // h2 does not insert it.
                if name.is_empty() {
                    return Err(Unreadable);
                }
                Ok(Name { length: name.len(), is_authority: name == b":authority" })
            }
            index => self.name(index),
        }
    }

    fn name(&self, index: usize) -> Result<Name, Unreadable> {
        let from_zero = index.checked_sub(1).ok_or(Unreadable)?;
        if let Some(length) = STATIC_NAMES.get(from_zero) {
            return Ok(Name { length: *length, is_authority: index == STATIC_AUTHORITY });
        }
        self.entries.get(from_zero - STATIC_NAMES.len()).map(|entry| entry.name).ok_or(Unreadable)
    }

    fn insert(&mut self, name: Name, value_length: usize) {
        let size = name.length + value_length + ENTRY_OVERHEAD;
        // An entry larger than the whole table empties it and is not inserted (RFC 7541, section 4.4).
        self.evict_down_to(self.max.saturating_sub(size));
        if size <= self.max {
            self.entries.push_front(Entry { name, size });
            self.size += size;
        }
    }

    fn resize(&mut self, max: usize) -> Result<(), Unreadable> {
        if max > TABLE_MAX {
            return Err(Unreadable);
        }
        self.max = max;
        self.evict_down_to(max);
        Ok(())
    }

    fn evict_down_to(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// As many bytes as `value`, and a legal authority; `None` when `value` may stay.
///
/// An empty value stays, for there is no legal authority of its length.
fn mend_value(name: Name, value: &[u8]) -> Option<Vec<u8>> {
    if !name.is_authority || value.is_empty() || Authority::try_from(value).is_ok() {
        return None;
    }
    Some(
        value
            .iter()
            .map(|byte| if byte.is_ascii_alphanumeric() || *byte == b'.' { *byte } else { b'-' })
            .collect(),
    )
}

fn push_string(block: &mut Vec<u8>, plain: &[u8]) {
    push_integer(block, 7, plain.len());
    block.extend_from_slice(plain);
}

/// RFC 7541, section 5.1; the bits before the prefix are zero.
fn push_integer(block: &mut Vec<u8>, prefix: u32, value: usize) {
    let full = (1_u8 << prefix) - 1;
    match u8::try_from(value) {
        Ok(small) if small < full => block.push(small),
        _ => {
            block.push(full);
            let mut rest = value - usize::from(full);
            while rest >= 128 {
                block.push((rest & 0x7f).to_le_bytes()[0] | 0x80);
                rest >>= 7;
            }
            block.push(rest.to_le_bytes()[0]);
        }
    }
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        let byte = self.peek().ok_or(Unreadable)?;
        self.at += 1;
        Ok(byte)
    }

    /// RFC 7541, section 5.1, in at most four bytes after the prefix: more than any length or index that fits a block.
    fn integer(&mut self, prefix: u32) -> Result<usize, Unreadable> {
        let full = (1_u8 << prefix) - 1;
        let first = self.byte()? & full;
        let mut value = usize::from(first);
        if first < full {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Unreadable)
    }

    /// A string literal's decoded bytes.
    fn string(&mut self) -> Result<Vec<u8>, Unreadable> {
        let is_huffman = self.peek().ok_or(Unreadable)? & 0x80 != 0;
        let length = self.integer(7)?;
        let end = self.at.checked_add(length).ok_or(Unreadable)?;
        let raw = self.block.get(self.at..end).ok_or(Unreadable)?;
        self.at = end;
        if is_huffman { huffman::decode(raw).ok_or(Unreadable) } else { Ok(raw.to_vec()) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A literal with incremental indexing (`0x40`), without (`0x00`) or never indexed (`0x10`), name as a string.
    pub(in super::super) fn literal(kind: u8, name: &[u8], value: &[u8], huffman: bool) -> Vec<u8> {
        let mut block = vec![kind];
        for text in [name, value] {
            let (flag, bytes) = if huffman { (0x80, huffman::encode(text)) } else { (0, text.to_vec()) };
            let at = block.len();
            push_string(&mut block, &bytes);
            block[at] |= flag;
        }
        block
    }

    fn indexed_name(kind: u8, prefix: u32, index: usize, value: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        push_integer(&mut block, prefix, index);
        block[0] |= kind;
        push_string(&mut block, value);
        block
    }

    #[test]
    fn percent_encoded_socket_path_is_mended_at_the_same_length() {
        let bad = b"tmp%2Fpassant_wl.sock";
        let good = b"tmp-2Fpassant-wl.sock";
        for kind in [0x40, 0x00, 0x10] {
            for huffman in [false, true] {
                let mended =
                    Mender::new().mend(&literal(kind, b":authority", bad, huffman)).unwrap().unwrap();
                let mut reader = Reader { block: &mended, at: 1 };
                assert_eq!(reader.string().unwrap(), b":authority");
                assert_eq!(reader.string().unwrap(), good, "kind {kind:#x} huffman {huffman}");
                assert_eq!(mended[0], kind);
                assert_eq!(reader.peek(), None);
            }
            let prefix = if kind == 0x40 { 6 } else { 4 };
            let mended =
                Mender::new().mend(&indexed_name(kind, prefix, STATIC_AUTHORITY, bad)).unwrap().unwrap();
            assert_eq!(mended, indexed_name(kind, prefix, STATIC_AUTHORITY, good));
        }
    }

    #[test]
    fn name_held_in_the_dynamic_table_is_recognised() {
        let mut mender = Mender::new();
        assert_eq!(mender.mend(&literal(0x40, b":authority", b"localhost", false)), Ok(None));
        assert_eq!(mender.mend(&literal(0x40, b"x", b"y", true)), Ok(None));
        // 62 is `x`, 63 is `:authority`.
        let mended = mender.mend(&indexed_name(0x40, 6, 63, b"a/b")).unwrap().unwrap();
        assert_eq!(mended, indexed_name(0x40, 6, 63, b"a-b"));
        assert_eq!(mender.mend(&indexed_name(0x40, 6, 63, b"a/b")), Ok(None), "63 is `x` now");
    }

    #[test]
    fn legal_and_empty_authorities_and_other_headers_stay() {
        for value in [&b"localhost"[..], b"example.org:443", b"[::1]:80", b"u@h", b""] {
            assert_eq!(Mender::new().mend(&literal(0x40, b":authority", value, true)), Ok(None));
        }
        assert_eq!(Mender::new().mend(&literal(0x40, b":path", b"/a%2Fb c", false)), Ok(None));
        assert_eq!(Mender::new().mend(&[0x82, 0x86, 0x84]), Ok(None));
    }

    #[test]
    fn bytes_around_a_mended_value_stay() {
        let mut block = vec![0x83, 0x86];
        block.extend(literal(0x40, b":authority", b"%", false));
        block.extend(literal(0x40, b"te", b"trailers", true));
        let mut expected = vec![0x83, 0x86];
        expected.extend(literal(0x40, b":authority", b"-", false));
        expected.extend(literal(0x40, b"te", b"trailers", true));
        assert_eq!(Mender::new().mend(&block), Ok(Some(expected)));
    }

    #[test]
    fn table_evicts_as_rfc_7541_says() {
        let mut mender = Mender::new();
        // Each entry counts 32 + 1 + 31 = 64 bytes; 64 of them fill the table.
        for _ in 0..64 {
            mender.mend(&literal(0x40, b"n", &[b'v'; 31], false)).unwrap();
        }
        assert_eq!((mender.size, mender.entries.len()), (4096, 64));
        mender.mend(&literal(0x40, b"n", &[b'v'; 32], false)).unwrap();
        assert_eq!((mender.size, mender.entries.len()), (62 * 64 + 65, 63));
        mender.mend(&[0x20 | 31, 69]).unwrap();
        assert_eq!((mender.max, mender.size, mender.entries.len()), (100, 65, 1));
        mender.mend(&literal(0x40, b"n", &[b'v'; 68], false)).unwrap();
        assert_eq!(
            (mender.size, mender.entries.len()),
            (0, 0),
            "an entry of 101 bytes empties a table of 100"
        );
        assert_eq!(mender.mend(&[0x20 | 31, 0xe2, 0x1f]), Err(Unreadable), "larger than announced");
    }

    #[test]
    fn broken_blocks_are_unreadable() {
        for block in [
            &[0x80_u8][..],                        // index zero
            &[0xff, 0x00],                         // index 127 of an empty dynamic table
            &[0x40],                               // no name
            &[0x40, 0x05, b'a'],                   // name cut
            &[0x40, 0x00, 0x01, b'a'],             // empty name
            &[0x82, 0x20],                         // new size behind a header
            &[0x41, 0x82, 0xff],                   // Huffman string cut
            &[0x41, 0x81, 0x00],                   // Huffman padding of zeros
            &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff], // length too long
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], // index too long
        ] {
            assert_eq!(Mender::new().mend(block), Err(Unreadable), "{block:02x?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_blocks_never_panic(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..5)) {
            let mut mender = Mender::new();
            for block in blocks {
                if mender.mend(&block).is_err() {
                    break;
                }
                prop_assert!(mender.size <= TABLE_MAX);
            }
        }

        #[test]
        fn any_authority_becomes_legal_and_is_left_alone_the_second_time(
            value in prop::collection::vec(any::<u8>(), 1..300), huffman: bool,
        ) {
            let block = literal(0x40, b":authority", &value, huffman);
            if let Some(mended) = Mender::new().mend(&block).unwrap() {
                let mut reader = Reader { block: &mended, at: 1 };
                prop_assert_eq!(reader.string().unwrap(), b":authority");
                let good = reader.string().unwrap();
                prop_assert_eq!(good.len(), value.len());
                prop_assert!(Authority::try_from(&good[..]).is_ok());
                prop_assert_eq!(Mender::new().mend(&mended), Ok(None));
            } else {
                prop_assert!(Authority::try_from(&value[..]).is_ok());
            }
        }

        #[test]
        fn integers_survive(value in 0_usize..1 << 20, prefix in 4_u32..=7) {
            let mut block = Vec::new();
            push_integer(&mut block, prefix, value);
            prop_assert_eq!(Reader { block: &block, at: 0 }.integer(prefix), Ok(value));
        }
    }
}
