//! How is DER written in PEM?

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroize;

use crate::Secret;

/// Bytes that one line of 64 characters stands for.
const LINE: usize = 48;

/// One section of the kind `label` (`CERTIFICATE`, `PRIVATE KEY`) around `der`, in lines of 64 characters (RFC 7468 3).
pub fn section(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----");
    for (at, character) in BASE64_STANDARD.encode(der).chars().enumerate() {
        if at % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

/// The same around a secret. No other copy of it stays behind in memory.
pub fn secret_section(label: &str, der: &Secret<Vec<u8>>) -> Secret<Vec<u8>> {
    let (begin, end) = (format!("-----BEGIN {label}-----\n"), format!("-----END {label}-----\n"));
    let lines = der.expose().chunks(LINE);
    // Of its final size from the start: a text that grows is copied, and the copies are not overwritten.
    let mut text = Vec::with_capacity(begin.len() + lines.len() * (LINE / 3 * 4 + 1) + end.len());
    text.extend_from_slice(begin.as_bytes());
    let mut line = [0; LINE / 3 * 4];
    for bytes in lines {
        let length = BASE64_STANDARD.encode_slice(bytes, &mut line).expect("it has room for a whole line");
        text.extend_from_slice(&line[..length]);
        text.push(b'\n');
    }
    line.zeroize();
    text.extend_from_slice(end.as_bytes());
    Secret::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_64_characters() {
        let full = section("X", &[0; 48]);
        assert_eq!(full, format!("-----BEGIN X-----\n{}\n-----END X-----\n", "A".repeat(64)));
        let over = section("X", &[0; 49]);
        assert_eq!(over, format!("-----BEGIN X-----\n{}\nAA==\n-----END X-----\n", "A".repeat(64)));
    }

    #[test]
    fn a_secret_is_written_as_anything_else_and_in_one_piece() {
        for length in [1, 47, 48, 49, 138] {
            let der = vec![7; length];
            let text = secret_section("PRIVATE KEY", &Secret::new(der.clone()));
            assert_eq!(text.expose(), section("PRIVATE KEY", &der).as_bytes(), "{length}");
            assert!(
                text.expose().len() + 65 > text.expose().capacity(),
                "it was not of its size from the start"
            );
        }
    }
}
