//! How do gRPC clients get through that send the socket's path as `:authority`?
//!
//! Clients built on gRPC's C core (Python, C++, Ruby, PHP) percent-encode the path of a unix socket into
//! `:authority`, and h2 refuses the request, because `%` is no part of a legal authority. This filter stands between
//! the accepted stream and h2. It walks the client's HTTP/2 frames (RFC 9113) and mends that one header; every other
//! byte passes as it came. What it cannot read it passes on unchanged, from there to the end of the connection: h2
//! refuses it by its own rules, so the filter never has to decide what a broken client gets.

mod hpack;
mod huffman;
mod stream;

use std::mem;

use super::limits::HEADER_BLOCK_BYTES;

use self::hpack::Mender;
pub(crate) use self::stream::MendedStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_LENGTH: usize = 5;
/// Largest frame payload that every HTTP/2 peer accepts (RFC 9113, section 6.5.2).
const FRAME_MAX: usize = 16_384;

/// The state of one connection, client to server.
///
/// Holds at most one header block (64 KiB, see `limits.rs`); the rest is passed on at once.
#[derive(Debug)]
pub struct Filter {
    state: State,
    mender: Mender,
}

#[derive(Debug)]
enum State {
    /// This many bytes of the client's preface have been seen.
    Preface(usize),
    /// A frame head is being collected.
    Head { head: [u8; HEAD], filled: usize, block: Option<Block> },
    /// This many bytes of a frame pass through.
    Payload(usize),
    /// This many bytes of a HEADERS or CONTINUATION frame are still to come.
    Fragment { block: Block, left: usize },
    /// Everything passes.
    Through,
}

/// A header block under way: one HEADERS frame and its CONTINUATION frames.
#[derive(Debug)]
struct Block {
    stream: [u8; 4],
    flags: u8,
    /// The frames exactly as they came.
    raw: Vec<u8>,
    /// Where the payload of the newest frame starts in `raw`.
    payload_at: usize,
    priority: Vec<u8>,
    /// The HPACK bytes of the complete frames.
    fragments: Vec<u8>,
    is_last_frame: bool,
}

impl Default for Filter {
    fn default() -> Self {
        Self::new()
    }
}

impl Filter {
    /// The state before the client's first byte.
    pub fn new() -> Self {
        Self { state: State::Preface(0), mender: Mender::new() }
    }

    /// Takes the next bytes from the client, and appends to `out` what h2 may read of them.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            self.state = match mem::replace(&mut self.state, State::Through) {
                State::Preface(seen) => pass_preface(seen, &mut input, out),
                State::Head { mut head, mut filled, block } => {
                    let taken = take(&mut input, HEAD - filled);
                    head[filled..filled + taken.len()].copy_from_slice(taken);
                    filled += taken.len();
                    if filled < HEAD {
                        State::Head { head, filled, block }
                    } else {
                        self.begin_frame(head, block, out)
                    }
                }
                State::Payload(left) => {
                    let taken = take(&mut input, left);
                    out.extend_from_slice(taken);
                    payload(left - taken.len())
                }
                State::Fragment { mut block, left } => {
                    let taken = take(&mut input, left);
                    block.raw.extend_from_slice(taken);
                    self.collect(block, left - taken.len(), out)
                }
                State::Through => {
                    out.extend_from_slice(mem::take(&mut input));
                    State::Through
                }
            };
        }
    }

    /// The client has sent its last byte: what was held back comes out as it is.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match mem::replace(&mut self.state, State::Through) {
            State::Head { head, filled, block } => {
                if let Some(block) = block {
                    out.extend_from_slice(&block.raw);
                }
                out.extend_from_slice(&head[..filled]);
            }
            State::Fragment { block, .. } => out.extend_from_slice(&block.raw),
            State::Preface(_) | State::Payload(_) | State::Through => {}
        }
    }

    /// Whether the filter holds nothing and will change nothing any more.
    pub fn is_through(&self) -> bool {
        matches!(self.state, State::Through)
    }

    fn begin_frame(&mut self, head: [u8; HEAD], block: Option<Block>, out: &mut Vec<u8>) -> State {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags, stream) = (head[3], head[4], [head[5], head[6], head[7], head[8]]);
        let is_due = match &block {
            Some(block) => kind == CONTINUATION && stream == block.stream,
            None => kind != CONTINUATION,
        };
        let held = block.as_ref().map_or(0, |block| block.raw.len());
        let is_small = kind != HEADERS && kind != CONTINUATION || held + HEAD + length <= HEADER_BLOCK_BYTES;
        if !is_due || !is_small {
            if let Some(block) = block {
                out.extend_from_slice(&block.raw);
            }
            out.extend_from_slice(&head);
            return State::Through;
        }
        if kind != HEADERS && kind != CONTINUATION {
            out.extend_from_slice(&head);
            return payload(length);
        }
        let mut block = block.unwrap_or(Block {
            stream,
            flags,
            raw: Vec::new(),
            payload_at: 0,
            priority: Vec::new(),
            fragments: Vec::new(),
            is_last_frame: false,
        });
        block.raw.extend_from_slice(&head);
        block.payload_at = block.raw.len();
        block.is_last_frame = flags & END_HEADERS != 0;
        self.collect(block, length, out)
    }

    /// Closes the frame when it is complete, and the block when this was its last frame.
    fn collect(&mut self, mut block: Block, left: usize, out: &mut Vec<u8>) -> State {
        if left > 0 {
            return State::Fragment { block, left };
        }
        if block.close_frame().is_none() {
            out.extend_from_slice(&block.raw);
            return State::Through;
        }
        if !block.is_last_frame {
            return State::Head { head: [0; HEAD], filled: 0, block: Some(block) };
        }
        match self.mender.mend(&block.fragments) {
            Ok(None) => out.extend_from_slice(&block.raw),
            Ok(Some(mended)) => block.write_with(&mended, out),
            Err(hpack::Unreadable) => {
                out.extend_from_slice(&block.raw);
                return State::Through;
            }
        }
        payload(0)
    }
}

impl Block {
    /// Adds the newest frame's share of the block; `None` when its padding or priority does not fit it.
    fn close_frame(&mut self) -> Option<()> {
        let mut payload = &self.raw[self.payload_at..];
        // Only a HEADERS frame is padded or has a priority; it is the first of its block.
        if self.payload_at == HEAD {
            let padding = if self.flags & PADDED == 0 { 0 } else { usize::from(*payload.split_off_first()?) };
            payload = payload.get(..payload.len().checked_sub(padding)?)?;
            if self.flags & PRIORITY != 0 {
                self.priority = payload.split_off(..PRIORITY_LENGTH)?.to_vec();
                // h2 refuses a stream that depends on itself without reading the block, and its table stays as it was.
                if stream_number(&self.priority) == stream_number(&self.stream) {
                    return None;
                }
            }
        }
        self.fragments.extend_from_slice(payload);
        Some(())
    }

    /// Writes the block anew around other HPACK bytes: same stream, END_STREAM and priority, no padding.
    fn write_with(&self, hpack: &[u8], out: &mut Vec<u8>) {
        let mut rest = hpack;
        let mut kind = HEADERS;
        let mut flags = self.flags & (END_STREAM | PRIORITY);
        let mut prefix: &[u8] = &self.priority;
        loop {
            let (now, later) = rest.split_at(rest.len().min(FRAME_MAX - prefix.len()));
            if later.is_empty() {
                flags |= END_HEADERS;
            }
            let length = (prefix.len() + now.len()).to_be_bytes();
            out.extend_from_slice(&length[length.len() - 3..]);
            out.extend_from_slice(&[kind, flags]);
            out.extend_from_slice(&self.stream);
            out.extend_from_slice(prefix);
            out.extend_from_slice(now);
            if later.is_empty() {
                return;
            }
            (rest, kind, flags, prefix) = (later, CONTINUATION, 0, &[]);
        }
    }
}

/// The 31 bits that name a stream, of bytes that begin with them (RFC 9113, sections 4.1 and 6.3).
fn stream_number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) & (u32::MAX >> 1))
}

fn pass_preface(seen: usize, input: &mut &[u8], out: &mut Vec<u8>) -> State {
    let taken = take(input, PREFACE.len() - seen);
    out.extend_from_slice(taken);
    let seen_now = seen + taken.len();
    if taken != &PREFACE[seen..seen_now] {
        State::Through
    } else if seen_now == PREFACE.len() {
        payload(0)
    } else {
        State::Preface(seen_now)
    }
}

fn payload(left: usize) -> State {
    if left == 0 { State::Head { head: [0; HEAD], filled: 0, block: None } } else { State::Payload(left) }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::hpack::tests::literal;
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frames.concat());
        bytes
    }

    fn run(input: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut filter = Filter::new();
        let mut out = Vec::new();
        let mut rest = input;
        let mut sizes = sizes.iter().cycle();
        while !rest.is_empty() {
            let taken = take(&mut rest, *sizes.next().unwrap());
            filter.push(taken, &mut out);
        }
        filter.finish(&mut out);
        out
    }

    fn check(input: &[u8], expected: &[u8]) {
        for sizes in [&[usize::MAX][..], &[1], &[2, 7], &[9]] {
            assert_eq!(run(input, sizes), expected, "in pieces of {sizes:?}");
        }
    }

    const SETTINGS: u8 = 0x4;
    const DATA: u8 = 0x0;
    const BAD: &[u8] = b"tmp%2Fwl.sock";
    const GOOD: &[u8] = b"tmp-2Fwl.sock";

    fn block(authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        block.extend(literal(0x40, b":path", b"/SpiffeWorkloadAPI/FetchX509SVID", false));
        block.extend(literal(0x40, b":authority", authority, false));
        block.extend(literal(0x10, b"workload.spiffe.io", b"true", true));
        block
    }

    #[test]
    fn plain_header_frame_is_mended() {
        let data = frame(DATA, END_STREAM, 1, b"\0\0\0\0\0");
        let input = connection(&[
            frame(SETTINGS, 0, 0, &[]),
            frame(HEADERS, END_HEADERS, 1, &block(BAD)),
            data.clone(),
            // The second request refers to the inserted entries by index.
            frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x83, 0x86, 0xbe, 0xbf]),
        ]);
        let expected = connection(&[
            frame(SETTINGS, 0, 0, &[]),
            frame(HEADERS, END_HEADERS, 1, &block(GOOD)),
            data,
            frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x83, 0x86, 0xbe, 0xbf]),
        ]);
        check(&input, &expected);
    }

    #[test]
    fn padded_prioritised_and_continued_block_is_mended() {
        let priority = [0x80, 0, 0, 0, 15];
        let bad = block(BAD);
        let (first, rest) = bad.split_at(7);
        let (second, third) = rest.split_at(30);
        let mut payload = vec![4];
        payload.extend(priority);
        payload.extend(first);
        payload.extend([0; 4]);
        let input = connection(&[
            frame(HEADERS, PADDED | PRIORITY | END_STREAM, 5, &payload),
            frame(CONTINUATION, 0, 5, second),
            frame(CONTINUATION, 0, 5, &[]),
            frame(CONTINUATION, END_HEADERS, 5, third),
            frame(DATA, 0, 5, b"x"),
        ]);
        let mut expected = priority.to_vec();
        expected.extend(block(GOOD));
        let expected = connection(&[
            frame(HEADERS, PRIORITY | END_STREAM | END_HEADERS, 5, &expected),
            frame(DATA, 0, 5, b"x"),
        ]);
        check(&input, &expected);
    }

    #[test]
    fn mended_block_over_one_frame_is_continued() {
        let mut hpack = literal(0x00, b":authority", BAD, false);
        hpack.extend(literal(0x00, b"x", &[b'v'; 20_000], false));
        let (first, rest) = hpack.split_at(FRAME_MAX);
        let input = connection(&[frame(HEADERS, 0, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)]);
        let mut hpack = literal(0x00, b":authority", GOOD, false);
        hpack.extend(literal(0x00, b"x", &[b'v'; 20_000], false));
        let (first, rest) = hpack.split_at(FRAME_MAX);
        let expected = connection(&[frame(HEADERS, 0, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)]);
        check(&input, &expected);
    }

    #[test]
    fn what_cannot_be_read_passes_to_the_end_of_the_connection() {
        let bad = frame(HEADERS, END_HEADERS, 7, &block(BAD));
        for (fact, frames) in [
            (
                "a continuation of nothing",
                vec![frame(CONTINUATION, END_HEADERS, 1, &block(BAD)), bad.clone()],
            ),
            (
                "another frame inside a block",
                vec![frame(HEADERS, 0, 1, &block(BAD)), frame(DATA, 0, 1, b"x"), bad.clone()],
            ),
            (
                "a continuation on another stream",
                vec![
                    frame(HEADERS, 0, 1, &block(BAD)),
                    frame(CONTINUATION, END_HEADERS, 3, b""),
                    bad.clone(),
                ],
            ),
            (
                "padding longer than the frame",
                vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]), bad.clone()],
            ),
            (
                "a padded frame without payload",
                vec![frame(HEADERS, END_HEADERS | PADDED, 1, &[]), bad.clone()],
            ),
            ("a priority cut short", vec![frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0, 0]), bad.clone()]),
            (
                "a stream that depends on itself",
                vec![
                    frame(
                        HEADERS,
                        END_HEADERS | PRIORITY,
                        1,
                        &[&[0x80, 0, 0, 1, 15], block(BAD).as_slice()].concat(),
                    ),
                    bad.clone(),
                ],
            ),
            ("broken hpack", vec![frame(HEADERS, END_HEADERS, 1, &[0x80]), bad.clone()]),
            (
                "a block over the bound",
                vec![frame(HEADERS, 0, 1, &vec![0x82; HEADER_BLOCK_BYTES]), bad.clone()],
            ),
        ] {
            let input = connection(&frames);
            for sizes in [&[usize::MAX][..], &[1], &[5, 3]] {
                assert_eq!(run(&input, sizes), input, "{fact}");
            }
        }
        let mut other = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        other.extend(bad);
        check(&other, &other);
    }

    #[test]
    fn cut_connections_lose_nothing() {
        let input =
            connection(&[frame(HEADERS, 0, 1, &block(BAD)), frame(CONTINUATION, END_HEADERS, 1, &[0x82])]);
        for cut in 0..input.len() {
            check(&input[..cut], &input[..cut]);
        }
    }

    #[test]
    fn endless_continuations_are_not_held() {
        let mut filter = Filter::new();
        let mut out = Vec::new();
        filter.push(&connection(&[frame(HEADERS, 0, 1, &[0x82])]), &mut out);
        for _ in 0..HEADER_BLOCK_BYTES {
            filter.push(&frame(CONTINUATION, 0, 1, &[]), &mut out);
        }
        assert!(filter.is_through());
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        (
            prop::sample::select(vec![0_u8, 1, 1, 1, 4, 9, 9, 0xc]),
            any::<u8>(),
            0_u32..3,
            prop::collection::vec(any::<u8>(), 0..40),
        )
            .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
    }

    fn request(authority: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        (authority, prop::sample::select(vec![0x40_u8, 0, 0x10]), any::<bool>(), 0_usize..60).prop_map(
            |(authority, kind, huffman, split)| {
                let hpack = literal(kind, b":authority", &authority, huffman);
                let (first, rest) = hpack.split_at(split.min(hpack.len()));
                [frame(HEADERS, 0, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)].concat()
            },
        )
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            frames in prop::collection::vec(prop_oneof![any_frame(), request(prop::collection::vec(any::<u8>(), 0..40))], 0..12),
            sizes in prop::collection::vec(1_usize..50, 1..10),
        ) {
            let input = connection(&frames);
            prop_assert_eq!(run(&input, &sizes), run(&input, &[usize::MAX]));
        }

        #[test]
        fn legal_connections_pass_unchanged(
            frames in prop::collection::vec(request(prop::sample::select(vec![b"localhost".to_vec(), b"a.b:1".to_vec(), b"[::1]".to_vec()])), 0..12),
        ) {
            let input = connection(&frames);
            prop_assert_eq!(run(&input, &[3]), input);
        }

        #[test]
        fn hostile_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..600), preface: bool) {
            let input = if preface { [PREFACE, &input].concat() } else { input };
            run(&input, &[13]);
        }
    }
}
