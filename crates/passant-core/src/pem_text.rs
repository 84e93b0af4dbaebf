//! How is DER written in PEM?

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

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
}
