//! What does the server's decision record say it signed? Read from its files, as an auditor would.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use crate::moment::Moment;

/// One signature that was decided on.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    /// `x509_svid`, `jwt_svid` and so on.
    pub(crate) kind: String,
    pub(crate) serial: String,
    pub(crate) spiffe_id: String,
    pub(crate) at: Moment,
    pub(crate) not_after: Moment,
    pub(crate) fate: Fate,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was signed.
    Signed,
    /// It was not.
    NotSigned,
    /// The server ended before it could say.
    Unknown,
}

#[derive(Deserialize)]
struct RawLine {
    seq: u64,
    #[serde(flatten)]
    body: Body,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Intent {
        decision: RawDecision,
    },
    Outcome {
        of: u64,
        outcome: serde_json::Value,
    },
    /// Lines that say nothing about a single signature: an intent without outcome is unknown anyway.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct RawDecision {
    kind: String,
    serial: String,
    spiffe_id: String,
    at: i64,
    not_after: i64,
}

impl Decision {
    /// Whether it is about an X509-SVID of a workload with this SPIFFE ID.
    pub(crate) fn is_x509_of(&self, spiffe_id: &str) -> bool {
        self.kind == "x509_svid" && self.spiffe_id == spiffe_id
    }
}

/// All decisions on record in the directory `decisions` of a server's data directory, in order.
///
/// # Errors
/// When a file cannot be read or holds something else.
pub(crate) fn read(dir: &Path) -> anyhow::Result<Vec<Decision>> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .with_context(|| format!("{}", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    let texts: Vec<String> = files.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?;
    parse(&texts.concat())
}

fn parse(text: &str) -> anyhow::Result<Vec<Decision>> {
    let mut decisions = BTreeMap::new();
    for line in text.lines() {
        let raw: RawLine = serde_json::from_str(line).with_context(|| format!("cannot read {line:?}"))?;
        match raw.body {
            Body::Intent { decision } => {
                let decision = Decision {
                    kind: decision.kind,
                    serial: decision.serial,
                    spiffe_id: decision.spiffe_id,
                    at: Moment::from_secs(decision.at),
                    not_after: Moment::from_secs(decision.not_after),
                    fate: Fate::Unknown,
                };
                decisions.insert(raw.seq, decision);
            }
            Body::Outcome { of, outcome } => {
                if let Some(decision) = decisions.get_mut(&of) {
                    decision.fate = if outcome == "signed" { Fate::Signed } else { Fate::NotSigned };
                }
            }
            Body::Other => {}
        }
    }
    Ok(decisions.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_find_their_intents_and_missing_ones_are_unknown() {
        let intent = |seq: u64, serial: &str| {
            format!(
                concat!(
                    r#"{{"seq":{},"prev":"00","at":5,"kind":"intent","decision":{{"kind":"x509_svid","serial":"{}","#,
                    r#""spiffe_id":"spiffe://a/b","key_hash":"00","not_after":65,"caller":"c","reason":"r","at":5}}}}"#
                ),
                seq, serial
            )
        };
        let text = [
            r#"{"seq":0,"prev":"00","at":5,"kind":"start","format":1,"open":[],"torn_bytes":0}"#.to_owned(),
            intent(1, "aa"),
            intent(2, "bb"),
            intent(3, "cc"),
            r#"{"seq":4,"prev":"00","at":5,"kind":"outcome","of":1,"outcome":"signed"}"#.to_owned(),
            r#"{"seq":5,"prev":"00","at":5,"kind":"outcome","of":2,"outcome":{"not_signed":"why"}}"#
                .to_owned(),
            r#"{"seq":6,"prev":"00","at":5,"kind":"unknown","of":3,"serial":"cc"}"#.to_owned(),
        ]
        .join("\n");
        let fates: Vec<_> = parse(&text).unwrap().iter().map(|it| (it.serial.clone(), it.fate)).collect();
        let expected = [("aa", Fate::Signed), ("bb", Fate::NotSigned), ("cc", Fate::Unknown)];
        assert_eq!(fates, expected.map(|(serial, fate)| (serial.to_owned(), fate)));
        assert!(parse("{\"seq\":1}").is_err());
    }
}
