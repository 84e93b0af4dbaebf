//! What does an open watch hold, since when, and was it ever expired or not what it should be? Pure: lines in, state out.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::moment::Moment;

/// The most violations that are kept of one watch: what goes wrong once goes wrong a thousand times.
const KEPT: usize = 50;

/// One line of the Go peer's `follow`, as tests/interop/README.md describes.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line {
    /// All that a watch holds from now on.
    Held {
        stream: usize,
        received: Moment,
        svids: Vec<Svid>,
        /// Names of authorities by trust domain, sorted: the SHA-256 of each certificate in hex.
        bundles: BTreeMap<String, Vec<String>>,
        /// What of it does not verify.
        faults: Vec<String>,
    },
    /// All that its watch of JWT bundles holds from now on: the ids of keys by trust domain, sorted.
    JwtBundles { stream: usize, received: Moment, bundles: BTreeMap<String, Vec<String>> },
    /// Something that failed.
    Error { stream: usize, received: Moment, of: String, code: String, error: String },
}

/// One X509-SVID that is held.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Svid {
    pub(crate) spiffe_id: String,
    pub(crate) hint: String,
    pub(crate) dns_names: Vec<String>,
    pub(crate) serial: String,
    pub(crate) not_after: Moment,
    /// The id of the authority that signed it, as the server names it.
    pub(crate) signer: String,
}

/// One open watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// When the last update came, of either kind.
    pub(crate) updated: Option<Moment>,
    pub(crate) updates: usize,
    pub(crate) svids: Vec<Svid>,
    pub(crate) bundles: BTreeMap<String, Vec<String>>,
    pub(crate) jwt_bundles: BTreeMap<String, Vec<String>>,
    /// When each SPIFFE ID that is held was first there.
    pub(crate) since: BTreeMap<String, Moment>,
    /// Every authority that signed what was held, in the order in which they were first seen.
    pub(crate) signers: Vec<String>,
    /// SVIDs that were held or came after their end.
    pub(crate) expired: Vec<String>,
    /// What did not verify.
    pub(crate) wrong: Vec<String>,
    /// What failed.
    pub(crate) failures: Vec<String>,
}

impl Line {
    /// The number of the watch that it is about.
    pub(crate) const fn stream(&self) -> usize {
        match self {
            Self::Held { stream, .. } | Self::JwtBundles { stream, .. } | Self::Error { stream, .. } => {
                *stream
            }
        }
    }
}

impl Watch {
    /// Takes over what a line says.
    pub(crate) fn take(&mut self, line: Line) {
        match line {
            Line::Held { received, svids, bundles, faults, .. } => {
                self.held_until(received);
                let ended = svids.iter().filter(|svid| received > svid.not_after);
                let ended =
                    ended.map(|svid| format!("{} came at {received}, {}", svid.spiffe_id, end_of(svid)));
                keep(&mut self.expired, ended.collect());
                keep(&mut self.wrong, faults);
                let since = |svid: &Svid| self.since.get(&svid.spiffe_id).copied().unwrap_or(received);
                self.since = svids.iter().map(|svid| (svid.spiffe_id.clone(), since(svid))).collect();
                for svid in &svids {
                    if !self.signers.contains(&svid.signer) {
                        self.signers.push(svid.signer.clone());
                    }
                }
                (self.svids, self.bundles) = (svids, bundles);
                self.updated(received);
            }
            Line::JwtBundles { received, bundles, .. } => {
                self.jwt_bundles = bundles;
                self.updated(received);
            }
            Line::Error { received, of, code, error, .. } => {
                keep(&mut self.failures, vec![format!("{of} at {received} ({code}): {error}")]);
            }
        }
    }

    /// Notes what has ended before `until`, and is held still.
    pub(crate) fn held_until(&mut self, until: Moment) {
        let ended = self.svids.iter().filter(|svid| until > svid.not_after);
        let ended = ended.map(|svid| format!("{} was held until {until}, {}", svid.spiffe_id, end_of(svid)));
        let ended = ended.collect();
        keep(&mut self.expired, ended);
    }

    /// Whether it holds an SVID of this SPIFFE ID.
    pub(crate) fn has(&self, spiffe_id: &str) -> bool {
        self.since.contains_key(spiffe_id)
    }

    fn updated(&mut self, at: Moment) {
        self.updated = Some(at);
        self.updates += 1;
    }
}

fn end_of(svid: &Svid) -> String {
    format!("serial {} ended {}", svid.serial, svid.not_after)
}

fn keep(all: &mut Vec<String>, more: Vec<String>) {
    let room = KEPT.saturating_sub(all.len());
    all.extend(more.into_iter().take(room));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SVID: &str = r#"{"spiffe_id":"spiffe://a/b","hint":"h","dns_names":["d"],"serial":"1","not_after":"2026-01-02T03:05:00Z","signer":"aa"}"#;

    fn held(received: &str, svids: &str, faults: &str) -> Line {
        let text = format!(
            r#"{{"kind":"held","stream":1,"received":"{received}","svids":[{svids}],"bundles":{{"a":["00"]}},"faults":[{faults}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn watch(lines: Vec<Line>) -> Watch {
        let mut watch = Watch::default();
        lines.into_iter().for_each(|line| watch.take(line));
        watch
    }

    #[test]
    fn every_kind_of_line_is_read_and_told_apart_by_stream() {
        let line = held("2026-01-02T03:04:05.000001Z", SVID, "");
        assert_eq!(line.stream(), 1);
        let text =
            r#"{"kind":"jwt_bundles","stream":0,"received":"2026-01-02T03:04:05Z","bundles":{"a":["k"]}}"#;
        let bundles: Line = serde_json::from_str(text).unwrap();
        let text = r#"{"stream":2,"kind":"error","received":"2026-01-02T03:04:05Z","of":"x509","code":"Unavailable","error":"away"}"#;
        let failed: Line = serde_json::from_str(text).unwrap();
        assert_eq!(failed.stream(), 2);
        let watch = watch(vec![line, bundles, failed]);
        assert_eq!((watch.updates, watch.failures.len(), watch.signers.len()), (2, 1, 1));
        assert_eq!(watch.jwt_bundles["a"], ["k"]);
    }

    #[test]
    fn an_svid_may_be_held_to_its_last_second_and_no_longer() {
        let came = || held("2026-01-02T03:04:05Z", SVID, "");
        assert!(watch(vec![came(), held("2026-01-02T03:05:00Z", "", "")]).expired.is_empty());
        assert_eq!(watch(vec![came(), held("2026-01-02T03:05:00.000001Z", "", "")]).expired.len(), 1);
        assert_eq!(watch(vec![held("2026-01-02T03:05:01Z", SVID, "")]).expired.len(), 1, "it came expired");
        let mut still = watch(vec![came()]);
        still.held_until(still.svids[0].not_after);
        assert!(still.expired.is_empty());
    }

    #[test]
    fn a_spiffe_id_is_there_since_it_first_came_and_anew_after_it_was_gone() {
        let at = |second: &str| format!("2026-01-02T03:04:{second}Z");
        let renewed = SVID.replace("\"serial\":\"1\"", "\"serial\":\"2\"");
        let lines = vec![held(&at("01"), SVID, ""), held(&at("02"), &renewed, "\"unverified\"")];
        let watch = |lines| watch(lines).since["spiffe://a/b"].to_string();
        assert_eq!(watch(lines), "03:04:01.000");
        let lines = vec![held(&at("01"), SVID, ""), held(&at("02"), "", ""), held(&at("03"), SVID, "")];
        assert_eq!(watch(lines), "03:04:03.000");
    }

    #[test]
    fn what_does_not_verify_is_told_and_not_without_bound() {
        let lines = (0..100).map(|_| held("2026-01-02T03:04:05Z", SVID, "\"unverified\"")).collect();
        assert_eq!(watch(lines).wrong.len(), KEPT);
    }
}
