//! What did a watching peer write down? One JSON object a line, as tests/interop/README.md describes.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use crate::moment::Moment;

/// One line.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line {
    /// An update of the X.509 watch.
    X509(X509),
    /// A JWT-SVID that was fetched.
    Jwt(Jwt),
    /// Something that failed.
    Error(Fault),
}

/// The default SVID of an update.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct X509 {
    pub(crate) received: Moment,
    pub(crate) spiffe_id: String,
    /// In hex, as the peer likes it; compare with [`same_serial`].
    pub(crate) serial: String,
    pub(crate) not_before: Moment,
    pub(crate) not_after: Moment,
    /// Whether the peer verified it against the bundle that came with it.
    pub(crate) verified: bool,
}

/// A JWT-SVID.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Jwt {
    pub(crate) received: Moment,
    pub(crate) spiffe_id: String,
    pub(crate) expires_at: Moment,
}

/// A failure: of what, with which code, and how it was put.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Fault {
    pub(crate) received: Moment,
    pub(crate) of: String,
    pub(crate) code: String,
    pub(crate) error: String,
}

/// Reads a log; one that was never begun is empty.
///
/// # Errors
/// When a line is not of a known kind: then the peer and this program do not understand each other.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    parse(&std::fs::read_to_string(path)?).with_context(|| format!("{}", path.display()))
}

/// Reads the text of a log. A last line that was cut off when the peer was killed does not count.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Line>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("cannot read {line:?}")))
        .collect()
}

/// A serial in hex without what libraries differ in: case and leading zeros.
pub(crate) fn same_serial(serial: &str) -> String {
    serial.trim_start_matches('0').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind_are_read_and_a_cut_off_one_is_not() {
        let text = concat!(
            r#"{"kind":"x509","received":"2026-01-02T03:04:05.5Z","spiffe_id":"spiffe://a/b","serial":"0A","#,
            r#""not_before":"2026-01-02T03:04:00Z","not_after":"2026-01-02T03:05:00Z","svids":1,"verified":true}"#,
            "\n",
            r#"{"kind":"jwt","received":"2026-01-02T03:04:05.5Z","spiffe_id":"spiffe://a/b","expires_at":"2026-01-02T03:05:00Z"}"#,
            "\n",
            r#"{"kind":"error","received":"2026-01-02T03:04:05.5Z","of":"x509","code":"Unavailable","error":"away"}"#,
            "\n",
            r#"{"kind":"x509","rec"#,
        );
        let lines = parse(text).unwrap();
        assert!(matches!(&lines[..], [Line::X509(_), Line::Jwt(_), Line::Error(_)]), "{lines:?}");
        assert!(parse("{\"kind\":\"else\"}\n").is_err());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn serials_are_compared_as_numbers() {
        assert_eq!(same_serial("0A01"), same_serial("a01"));
        assert_ne!(same_serial("a010"), same_serial("a01"));
    }
}
