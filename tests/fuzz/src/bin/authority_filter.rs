//! Does the `:authority` filter give the same bytes however its input is cut, and never many more than it took?
//!
//! The first two bytes say where the input is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_agent::workload_api::filter::Filter;

/// A frame's head, and the preface.
const SMALL: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let Some((at, input)) = bytes.split_first_chunk::<2>() else { return };
    let whole = through([input]);
    let (before, after) = input.split_at(usize::from(u16::from_be_bytes(*at)).min(input.len()));
    assert_eq!(through([before, after]), whole, "cut in two");
    assert_eq!(through(input.chunks(1)), whole, "byte by byte");
    // Huffman codes are at least five bits long, so that plain bytes are at most 8/5 of them; padding is dropped.
    assert!(whole.len() <= input.len() * 2 + SMALL, "{} bytes of {}", whole.len(), input.len());
    // What was mended needs no mending.
    assert_eq!(through([whole.as_slice()]), whole, "once more");
    if !input.starts_with(b"PRI * HTTP/2.0") {
        assert_eq!(whole, input);
    }
});

fn through<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut filter, mut out) = (Filter::new(), Vec::new());
    for part in parts {
        let (was_through, before) = (filter.is_through(), out.len());
        filter.push(part, &mut out);
        assert!(!was_through || out[before..] == *part, "bytes are held back for good");
    }
    filter.finish(&mut out);
    assert!(filter.is_through());
    out
}
