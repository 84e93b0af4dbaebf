//! Does the decision record hold together across all kills, and does it know everything that was received?
//!
//! Read from its files while the server is dead, as an auditor would who keeps the head of the chain: only what is new
//! since the last time, so that nothing that retention removes meanwhile is missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use passant_core::SpiffeId;
use passant_core::x509_svid::X509Svid;
use ring::digest::{SHA256, digest};
use serde::Deserialize;

/// How the record calls a JWT-SVID.
const JWT: &str = "jwt_svid";

/// An SVID that a client received.
#[derive(Debug)]
pub(crate) struct Received {
    kind: &'static str,
    spiffe_id: String,
    /// Serial in hex, or `jti`; none where the SPIFFE ID alone says which it is.
    serial: Option<String>,
}

impl Received {
    pub(crate) fn x509(svid: &X509Svid, kind: &'static str) -> Self {
        Self { kind, spiffe_id: svid.id().to_string(), serial: Some(svid.serial().to_string()) }
    }

    pub(crate) fn jwt(id: &SpiffeId, jti: &str) -> Self {
        Self { kind: JWT, spiffe_id: id.to_string(), serial: Some(jti.to_owned()) }
    }

    /// A token without a name, for a subject that no other one has.
    pub(crate) fn jwt_of(id: &SpiffeId) -> Self {
        Self { kind: JWT, spiffe_id: id.to_string(), serial: None }
    }
}

/// Reads on in the decision record, and keeps what it needs of it.
pub(crate) struct Auditor {
    dir: PathBuf,
    /// The segment that was read last, and how far.
    segment: u32,
    offset: usize,
    next: Option<(u64, String)>,
    /// By serial.
    intents: BTreeMap<String, Intended>,
    serials: BTreeMap<u64, String>,
    /// Subjects of JWT-SVIDs.
    subjects: BTreeSet<String>,
    pub(crate) tally: Tally,
    pub(crate) faults: Vec<String>,
    pub(crate) repeated: Vec<String>,
    /// Received SVIDs that were looked for.
    matched: usize,
}

/// What was read so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) lines: u64,
    pub(crate) starts: u64,
    pub(crate) intents: u64,
    pub(crate) unknown: u64,
    pub(crate) torn: u64,
    pub(crate) segments: u32,
    pub(crate) removed: u32,
    /// Bytes of all segments that stand.
    pub(crate) bytes: u64,
}

struct Intended {
    kind: String,
    spiffe_id: String,
    is_refused: bool,
}

#[derive(Deserialize)]
struct Line {
    seq: u64,
    prev: String,
    #[serde(flatten)]
    body: Body,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Start {
        torn_bytes: u64,
    },
    Intent {
        decision: Decision,
    },
    Outcome {
        of: u64,
        outcome: serde_json::Value,
    },
    Unknown {},
    /// What says nothing of a signature, such as what an operator did.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Decision {
    kind: String,
    serial: String,
    spiffe_id: String,
}

impl Auditor {
    /// Begins with the first line of the record in `dir`.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            segment: 0,
            offset: 0,
            next: None,
            intents: BTreeMap::new(),
            serials: BTreeMap::new(),
            subjects: BTreeSet::new(),
            tally: Tally::default(),
            faults: Vec::new(),
            repeated: Vec::new(),
            matched: 0,
        }
    }

    /// Reads what is new. The server must not run: then every line but the very last is whole.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn read_on(&mut self) -> anyhow::Result<()> {
        let numbers = segments(&self.dir)?;
        self.tally.bytes = 0;
        self.tally.removed = numbers.first().map_or(0, |first| first.saturating_sub(1));
        for number in &numbers {
            let path = self.dir.join(format!("{number:08}.log"));
            self.tally.bytes += fs::metadata(&path).with_context(|| path.display().to_string())?.len();
            if *number < self.segment {
                continue;
            }
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            if *number > self.segment {
                self.segment = *number;
                self.offset = 0;
                self.tally.segments += 1;
            }
            let is_newest = Some(number) == numbers.last();
            if let Err(what) = self.read_segment(&text, is_newest) {
                self.faults.push(format!("{}: {what}", path.display()));
            }
        }
        Ok(())
    }

    fn read_segment(&mut self, text: &[u8], is_newest: bool) -> Result<(), String> {
        let new = text.get(self.offset..).ok_or("it is shorter than it was")?;
        for line in new.split_inclusive(|byte| *byte == b'\n') {
            let whole =
                line.strip_suffix(b"\n").and_then(|text| Some((serde_json::from_slice(text).ok()?, text)));
            let Some((parsed, text)) = whole else {
                let is_torn = is_newest && self.offset + line.len() == text.len();
                return if is_torn { Ok(()) } else { Err(format!("no line at byte {}", self.offset)) };
            };
            self.take(parsed, text)?;
            self.offset += line.len();
        }
        Ok(())
    }

    fn take(&mut self, line: Line, text: &[u8]) -> Result<(), String> {
        if let Some((seq, prev)) = &self.next
            && (line.seq != *seq || line.prev != *prev)
        {
            return Err(format!("line {} does not follow from line {}", line.seq, seq.saturating_sub(1)));
        }
        self.next = Some((line.seq + 1, hex(digest(&SHA256, text).as_ref())));
        self.tally.lines += 1;
        match line.body {
            Body::Start { torn_bytes } => {
                self.tally.starts += 1;
                self.tally.torn += u64::from(torn_bytes > 0);
            }
            Body::Intent { decision: Decision { kind, serial, spiffe_id } } => {
                self.tally.intents += 1;
                self.serials.insert(line.seq, serial.clone());
                if kind == JWT {
                    self.subjects.insert(spiffe_id.clone());
                }
                let intended = Intended { kind, spiffe_id, is_refused: false };
                if self.intents.insert(serial.clone(), intended).is_some() {
                    self.repeated.push(format!("serial {serial} was decided on twice"));
                }
            }
            Body::Outcome { of, outcome } => {
                let serial = self.serials.remove(&of);
                let intended = serial.and_then(|serial| self.intents.get_mut(&serial));
                if let Some(intended) = intended.filter(|_| outcome != "signed") {
                    intended.is_refused = true;
                }
            }
            Body::Unknown {} => self.tally.unknown += 1,
            Body::Other => {}
        }
        Ok(())
    }

    /// The SVIDs of `received` that have no intent, those looked at earlier left out.
    pub(crate) fn unrecorded(&mut self, received: &[Received]) -> Vec<String> {
        let new = received.get(self.matched..).unwrap_or_default();
        let missing = new.iter().filter(|one| match &one.serial {
            Some(serial) => !self.intents.get(serial).is_some_and(|intended| {
                intended.kind == one.kind && intended.spiffe_id == one.spiffe_id && !intended.is_refused
            }),
            None => !self.subjects.contains(&one.spiffe_id),
        });
        let missing = missing.map(|one| format!("{one:?}")).collect();
        self.matched = received.len();
        missing
    }
}

fn segments(dir: &Path) -> anyhow::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let name = file?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
        numbers.extend(digits.and_then(|digits| digits.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A record in a folder, written line by line.
    struct Written {
        dir: tempfile::TempDir,
        seq: u64,
        prev: String,
    }

    impl Written {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), seq: 0, prev: "0".repeat(64) }
        }

        fn append(&mut self, segment: u32, text: &[u8]) {
            let path = self.dir.path().join(format!("{segment:08}.log"));
            let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
            file.write_all(text).unwrap();
        }

        fn line(&mut self, segment: u32, body: &str) {
            let line = format!(r#"{{"seq":{},"prev":"{}","at":1,{body}}}"#, self.seq, self.prev);
            self.append(segment, format!("{line}\n").as_bytes());
            self.seq += 1;
            self.prev = hex(digest(&SHA256, line.as_bytes()).as_ref());
        }

        fn start(&mut self, segment: u32) {
            self.line(segment, r#""kind":"start","format":1,"open":[],"torn_bytes":0"#);
        }

        fn intent(&mut self, segment: u32, serial: &str, id: &str) {
            let decision = format!(r#""kind":"x509_svid","serial":"{serial}","spiffe_id":"{id}""#);
            self.line(segment, &format!(r#""kind":"intent","decision":{{{decision}}}"#));
        }

        fn auditor(&self) -> Auditor {
            Auditor::new(self.dir.path().to_owned())
        }
    }

    const ID: &str = "spiffe://example.org/w";

    fn received(serial: &str) -> Received {
        Received { kind: "x509_svid", spiffe_id: ID.to_owned(), serial: Some(serial.to_owned()) }
    }

    #[test]
    fn what_was_received_needs_an_intent_for_its_owner() {
        let mut written = Written::new();
        written.start(1);
        written.intent(1, "aa", ID);
        written.intent(1, "bb", "spiffe://example.org/other");
        written.intent(1, "cc", ID);
        written.line(1, r#""kind":"outcome","of":3,"outcome":{"not_signed":"why"}"#);
        written.line(
            1,
            r#""kind":"act","act":{"ban":{"agent":"spiffe://example.org/spire/agent/a"}},"caller":"c""#,
        );
        let mut auditor = written.auditor();
        auditor.read_on().unwrap();
        assert_eq!(auditor.faults, Vec::<String>::new());
        let all = [received("aa"), received("bb"), received("cc"), received("dd")];
        assert_eq!(auditor.unrecorded(&all).len(), 3, "another's, one not signed, and none");
        assert_eq!(auditor.unrecorded(&all).len(), 0, "only what is new");
    }

    #[test]
    fn the_chain_is_followed_over_segments_torn_ends_and_removed_segments() {
        let mut written = Written::new();
        written.start(1);
        let mut auditor = written.auditor();
        written.append(1, b"{\"seq\":1,\"pre");
        auditor.read_on().unwrap();
        assert_eq!((auditor.tally.lines, auditor.faults.len()), (1, 0));
        // The server cuts the torn end, goes on, and begins another segment; the first is then removed.
        let path = written.dir.path().join("00000001.log");
        let whole = fs::read(&path).unwrap().split_inclusive(|byte| *byte == b'\n').next().unwrap().to_vec();
        fs::write(&path, whole).unwrap();
        written.intent(1, "aa", ID);
        written.start(2);
        auditor.read_on().unwrap();
        fs::remove_file(path).unwrap();
        written.intent(2, "bb", ID);
        auditor.read_on().unwrap();
        assert_eq!((auditor.tally.lines, auditor.tally.intents, auditor.faults.len()), (4, 2, 0));
        assert_eq!((auditor.tally.segments, auditor.tally.removed), (2, 1));
    }

    #[test]
    fn a_changed_line_a_lost_line_and_a_repeated_serial_are_noticed() {
        let mut written = Written::new();
        written.start(1);
        written.intent(1, "aa", ID);
        written.intent(1, "aa", ID);
        let mut auditor = written.auditor();
        auditor.read_on().unwrap();
        assert_eq!((auditor.repeated.len(), auditor.faults.len()), (1, 0));
        written.seq += 1;
        written.intent(1, "bb", ID);
        auditor.read_on().unwrap();
        assert_eq!(auditor.faults.len(), 1);

        let mut written = Written::new();
        written.start(1);
        written.append(1, b"rubbish\n");
        written.start(1);
        let mut auditor = written.auditor();
        auditor.read_on().unwrap();
        assert_eq!(auditor.faults.len(), 1);
    }
}
