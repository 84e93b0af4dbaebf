//! Which bytes does an HPACK Huffman string hold?
//!
//! RFC 7541, section 5.2 and appendix B. The code is canonical: ordered by length and then by symbol, so the lengths
//! alone give the codes.

/// The symbol that ends a string; a decoder refuses it inside one (RFC 7541, section 5.2).
const END: u16 = 256;
const LONGEST: usize = 30;

/// Code length in bits of each symbol 0..=256 (RFC 7541, appendix B).
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

static CODE: Code = Code::build();

/// Canonical decoding tables: codes of length `n` are `first[n]..first[n] + count[n]` and stand for
/// `symbols[offset[n]..]`.
struct Code {
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    offset: [u32; LONGEST + 1],
    symbols: [u16; 257],
}

impl Code {
    const fn build() -> Self {
        let mut code = Self {
            first: [0; LONGEST + 1],
            count: [0; LONGEST + 1],
            offset: [0; LONGEST + 1],
            symbols: [0; 257],
        };
        let mut next_code = 0_u32;
        let mut placed = 0_u32;
        let mut length = 1;
        while length <= LONGEST {
            next_code <<= 1;
            code.first[length] = next_code;
            code.offset[length] = placed;
            let mut symbol = 0_u16;
            while symbol <= END {
                if LENGTHS[symbol as usize] as usize == length {
                    code.symbols[placed as usize] = symbol;
                    placed += 1;
                    code.count[length] += 1;
                }
                symbol += 1;
            }
            next_code += code.count[length];
            length += 1;
        }
        code
    }
}

/// The decoded bytes, or `None` when `coded` is not a Huffman string (a code that does not exist, the end symbol, or
/// padding that is longer than seven bits or not all ones).
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    // The shortest code has five bits.
    let mut decoded = Vec::with_capacity(coded.len() * 8 / 5);
    let mut code = 0_u32;
    let mut length = 0_usize;
    for byte in coded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            if length > LONGEST {
                return None;
            }
            let ahead = code.wrapping_sub(CODE.first[length]);
            if ahead < CODE.count[length] {
                let symbol = CODE.symbols[(CODE.offset[length] + ahead) as usize];
                decoded.push(u8::try_from(symbol).ok()?);
                (code, length) = (0, 0);
            }
        }
    }
    let padding_is_ones = code == (1 << length) - 1;
    (length < 8 && padding_is_ones).then_some(decoded)
}

#[cfg(test)]
pub(super) fn encode(plain: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for byte in plain {
        let place = CODE.symbols.iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
        let place = u32::try_from(place).unwrap();
        let length = usize::from(LENGTHS[usize::from(*byte)]);
        let code = CODE.first[length] + place - CODE.offset[length];
        bits.push_str(&format!("{code:0length$b}"));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|octet| u8::from_str_radix(str::from_utf8(octet).unwrap(), 2).unwrap())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.split_whitespace().map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect()
    }

    #[test]
    fn examples_of_rfc_7541_appendix_c_decode() {
        for (coded, plain) in [
            ("f1 e3 c2 e5 f2 3a 6b a0 ab 90 f4 ff", "www.example.com"),
            ("a8 eb 10 64 9c bf", "no-cache"),
            ("25 a8 49 e9 5b a9 7d 7f", "custom-key"),
            ("25 a8 49 e9 5b b8 e8 b4 bf", "custom-value"),
            (
                "d0 7a be 94 10 54 d4 44 a8 20 05 95 04 0b 81 66 e0 82 a6 2d 1b ff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ] {
            assert_eq!(decode(&hex(coded)).as_deref(), Some(plain.as_bytes()), "{plain}");
            assert_eq!(encode(plain.as_bytes()), hex(coded), "{plain}");
        }
    }

    #[test]
    fn every_byte_survives_encode_and_decode() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
    }

    #[test]
    fn end_symbol_and_bad_padding_are_refused() {
        assert_eq!(decode(&hex("ff ff ff ff")), None, "end of string symbol");
        assert_eq!(decode(&hex("ff")), None, "eight bits of padding");
        assert_eq!(decode(&hex("00 00")), None, "padding of zeros");
        assert_eq!(decode(&[]), Some(Vec::new()));
    }
}
