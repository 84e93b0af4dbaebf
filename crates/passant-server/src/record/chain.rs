//! Which lines make a decision record, and do they hold together?
//!
//! Each line is one JSON object ended by a newline: `seq` (counted from 0), `prev` (SHA-256 in hex of the line before it,
//! without its newline; 64 zeros at the very beginning), `at`, `kind` and what the kind adds. Every segment begins
//! with a `start` line that repeats the intents still without outcome, so that the newest segment is enough to go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use passant_core::{Host, SpiffeId, UnixTime};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding;
use crate::limits::{RECORD_REFUSALS_KEPT, RECORD_UNSYNCED};
use crate::record::line;
use crate::record::segments::Segments;
use crate::record::{Act, By, ChainReport, Decision, Done, Outcome, RecordError, Refused, Retention};

/// The format of the lines, in each `start`. The first had no refusals and fewer acts, the second no stops: who reads only
/// that would take such a line at the end for a torn one, and cut it off.
const FORMAT: u32 = 3;

/// A number that no record reaches, with room behind it to count on.
const LAST: u64 = 1 << 62;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Counted from 0 over the whole record.
    pub seq: u64,
    /// SHA-256 of the line before.
    #[serde(with = "encoding::hex")]
    pub prev: [u8; 32],
    /// When it was written.
    pub at: UnixTime,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// A segment begins, or a server started.
    Start {
        /// The format of what follows.
        format: u32,
        /// Intents that have no outcome yet.
        open: Vec<OpenIntent>,
        /// Bytes of an unfinished line that were cut off before this one.
        torn_bytes: u64,
    },
    /// Something is about to be signed.
    Intent {
        /// What, for whom and why.
        decision: Arc<Decision>,
    },
    /// What became of an intent.
    Outcome {
        /// The number of the intent's line.
        of: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// Something was done by hand.
    Act {
        /// What.
        act: Act,
        /// By whom.
        caller: String,
        /// SPIFFE IDs that it concerns; of entries in the order in which the act names them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        subjects: Vec<SpiffeId>,
        /// The gRPC method.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method: Option<String>,
        /// From where.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// By which right.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        right: Option<String>,
    },
    /// A call was refused.
    Refusal(Refused),
    /// What became of an intent will never be known: it counts as issued.
    Unknown {
        /// The number of the intent's line.
        of: u64,
        /// The serial of its decision.
        serial: String,
    },
}

/// An intent without outcome, as a `start` line repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenIntent {
    /// The number of its line.
    pub seq: u64,
    /// The serial of its decision.
    pub serial: String,
}

impl Body {
    /// The line that tells of `done`.
    pub(super) fn of_act(done: Done, by: By) -> Self {
        let (Done { act, subjects }, By { caller, method, from, right }) = (done, by);
        Self::Act { act, caller, subjects, method, from, right }
    }
}

/// The newest line at some time, as an auditor keeps it elsewhere: written `HASH@SEQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the line.
    pub seq: u64,
    /// Its SHA-256.
    pub hash: [u8; 32],
}

/// Why a text is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected HASH@SEQ: 64 hexadecimal digits, @, and the number of a line")]
pub struct HeadError;

impl FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (hash, seq) = text.split_once('@').ok_or(HeadError)?;
        let hash = encoding::from_hex(&hash.to_ascii_lowercase()).ok_or(HeadError)?;
        Ok(Self { seq: seq.parse().map_err(|_| HeadError)?, hash })
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", encoding::to_hex(&self.hash), self.seq)
    }
}

/// Where the next line hooks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    seq: u64,
    prev: [u8; 32],
}

const GENESIS: Link = Link { seq: 0, prev: [0; 32] };

/// What a segment holds.
#[derive(Debug)]
struct Checked {
    lines: u64,
    first_seq: Option<u64>,
    next: Option<Link>,
    open: BTreeMap<u64, String>,
    /// The line whose hash is asked for.
    watch: Option<u64>,
    /// Its hash, if it is here or the first line follows from it.
    watched: Option<[u8; 32]>,
    /// Bytes of good lines; what follows them is torn.
    good_bytes: usize,
    torn_bytes: usize,
}

/// Why a segment does not hold together.
#[derive(Debug)]
enum Fault {
    Broken { line: usize, what: &'static str },
    NewerFormat(u32),
}

/// Checks the lines of one segment; the first must hook on to `from` where that is known.
///
/// What stands behind the last good line, and holds no whole line, was being written when the machine stopped: it was
/// never acknowledged, and is called torn. Anything else that does not follow is broken.
fn check(bytes: &[u8], from: Option<Link>) -> Result<Checked, Fault> {
    check_for(None, bytes, from, |_, _| false)
}

/// As [`check`], for the newest segment when nobody writes to it: what was being written when the power failed reaches the disk in
/// any order, so that lines behind a broken one may be whole. Such an end is torn, too, unless it is long or has [`lasted`].
fn check_end(bytes: &[u8]) -> Result<Checked, Fault> {
    check_for(None, bytes, None, |checked, later| {
        let is_short = bytes.len() - checked.good_bytes <= RECORD_UNSYNCED;
        checked.next.is_some_and(|lost| is_short && !lasted(lost, later))
    })
}

/// Whether one of the lines behind a broken one shows that the line `lost` had lasted: the outcome of an intent behind it, which is
/// told only once the intent lasts; a start; or intents and acts of two moments, since those of the first were synced before the
/// others were written.
fn lasted(lost: Link, later: &[Line]) -> bool {
    let is_after_it = |line: &Line| match line.body {
        Body::Outcome { of, .. } | Body::Unknown { of, .. } => of >= lost.seq,
        Body::Start { .. } => true,
        Body::Intent { .. } | Body::Act { .. } | Body::Refusal { .. } => line.seq <= lost.seq,
    };
    let is_synced = |line: &&Line| matches!(line.body, Body::Intent { .. } | Body::Act { .. });
    let moments: BTreeSet<UnixTime> = later.iter().filter(is_synced).map(|line| line.at).collect();
    moments.len() > 1 || later.iter().any(is_after_it)
}

/// As [`check`], with an eye on the line `watch`. What follows the good lines is torn even if it holds whole ones where `is_torn` says
/// so of them.
fn check_for(
    watch: Option<u64>,
    bytes: &[u8],
    from: Option<Link>,
    is_torn: impl Fn(&Checked, &[Line]) -> bool,
) -> Result<Checked, Fault> {
    let mut checked = Checked {
        lines: 0,
        first_seq: None,
        next: from,
        open: BTreeMap::new(),
        watch,
        watched: None,
        good_bytes: 0,
        torn_bytes: 0,
    };
    let mut rest = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    while let Some((at, text)) = rest.next() {
        let Some(line) = whole_line(text) else {
            if let Some(format) = newer_format(text) {
                return Err(Fault::NewerFormat(format));
            }
            let later: Vec<Line> = rest.filter_map(|(_, later)| whole_line(later)).collect();
            if !later.is_empty() && !is_torn(&checked, &later) {
                return Err(Fault::Broken { line: at + 1, what: "it is no line of a record" });
            }
            checked.torn_bytes = bytes.len() - checked.good_bytes;
            break;
        };
        if let Some(format) = newer_format(text) {
            return Err(Fault::NewerFormat(format));
        }
        checked.take(&line, text).map_err(|what| Fault::Broken { line: at + 1, what })?;
    }
    Ok(checked)
}

impl Checked {
    fn take(&mut self, line: &Line, text: &[u8]) -> Result<(), &'static str> {
        let hook = Link { seq: line.seq, prev: line.prev };
        if self.next.is_some_and(|next| next != hook) {
            return Err("it does not follow from the line before it");
        }
        if line.seq > LAST {
            return Err("its number is larger than any that was ever written");
        }
        match &line.body {
            Body::Start { open, .. } => {
                self.open = open.iter().map(|open| (open.seq, open.serial.clone())).collect();
            }
            Body::Intent { .. }
            | Body::Outcome { .. }
            | Body::Unknown { .. }
            | Body::Act { .. }
            | Body::Refusal { .. }
                if self.lines == 0 =>
            {
                return Err("a segment must begin with a start line");
            }
            body @ (Body::Intent { .. }
            | Body::Outcome { .. }
            | Body::Unknown { .. }
            | Body::Act { .. }
            | Body::Refusal { .. }) => {
                follow(&mut self.open, line.seq, body);
            }
        }
        let own = hash(text);
        if self.watch == Some(line.seq) {
            self.watched = Some(own);
        } else if self.watch.is_some() && self.watch == line.seq.checked_sub(1) {
            self.watched = Some(line.prev);
        }
        self.lines += 1;
        self.first_seq.get_or_insert(line.seq);
        self.next = Some(Link { seq: line.seq + 1, prev: own });
        self.good_bytes += text.len();
        Ok(())
    }
}

/// Keeps `open`, the intents without outcome, up to date.
fn follow(open: &mut BTreeMap<u64, String>, seq: u64, body: &Body) {
    match body {
        Body::Intent { decision } => {
            open.insert(seq, decision.serial.clone());
        }
        Body::Outcome { of, .. } | Body::Unknown { of, .. } => {
            open.remove(of);
        }
        Body::Start { .. } | Body::Act { .. } | Body::Refusal { .. } => {}
    }
}

fn whole_line(text: &[u8]) -> Option<Line> {
    serde_json::from_slice(text.strip_suffix(b"\n")?).ok()
}

/// The format of a `start` line, if it is newer than ours; whatever else the line holds.
fn newer_format(text: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Start {
        kind: String,
        format: u32,
    }
    let start: Start = serde_json::from_slice(text).ok()?;
    (start.kind == "start" && start.format > FORMAT).then_some(start.format)
}

/// SHA-256 of a line without its newline.
fn hash(text: &[u8]) -> [u8; 32] {
    let digest = digest(&SHA256, text.strip_suffix(b"\n").unwrap_or(text));
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The chain, open for writing.
pub(super) struct Chain {
    segments: Box<dyn Segments>,
    retention: Retention,
    host: Host,
    current: u32,
    current_bytes: u64,
    next: Link,
    open: BTreeMap<u64, String>,
    /// The segments before the current one, oldest first.
    ended: VecDeque<Ended>,
    /// Up to where the chain is known to last.
    durable: Durable,
    /// What became of intents, in lines that are not yet known to last.
    unsynced: Vec<Body>,
    /// How many of them are refusals.
    unsynced_refusals: usize,
}

/// The end of what lasts.
#[derive(Clone, Copy, Debug)]
struct Durable {
    segment: u32,
    bytes: u64,
    next: Link,
}

struct Ended {
    number: u32,
    bytes: u64,
    at: UnixTime,
}

impl Chain {
    /// Checks the newest segment, cuts off a torn end, and writes `start`, then `unknown` for every open intent.
    pub(super) fn open(
        mut segments: Box<dyn Segments>,
        retention: Retention,
        host: Host,
    ) -> Result<Self, RecordError> {
        let numbers = segments.list().map_err(io_error("list segments of", ""))?;
        let mut chain = Self {
            segments,
            retention,
            host,
            current: numbers.last().copied().unwrap_or(1),
            current_bytes: 0,
            next: GENESIS,
            open: BTreeMap::new(),
            ended: VecDeque::new(),
            durable: Durable { segment: 1, bytes: 0, next: GENESIS },
            unsynced: Vec::new(),
            unsynced_refusals: 0,
        };
        let torn_bytes = match numbers.as_slice() {
            [] => {
                let created = chain.segments.create(chain.current);
                created.map_err(chain.failed("create"))?;
                0
            }
            [ended @ .., newest] => {
                chain.note_ended(ended, *newest)?;
                chain.resume(ended.last().copied(), *newest)?
            }
        };
        chain.start(torn_bytes)?;
        chain.retain()?;
        Ok(chain)
    }

    /// Takes up the chain at the end of segment `newest`. How many torn bytes were cut off.
    fn resume(&mut self, before: Option<u32>, newest: u32) -> Result<u64, RecordError> {
        self.segments.reopen(newest).map_err(self.failed("open"))?;
        let bytes = self.segments.read(newest).map_err(self.failed("read"))?;
        let checked = check_end(&bytes).map_err(|fault| self.fault(newest, fault))?;
        self.current_bytes = len(checked.good_bytes);
        if checked.torn_bytes > 0 {
            tracing::warn!(
                segment = self.segments.name(newest),
                torn_bytes = checked.torn_bytes,
                "cut off lines of the decision record that were being written when the server stopped"
            );
            let cut = self.segments.truncate(newest, self.current_bytes);
            cut.map_err(self.failed("cut"))?;
        }
        let torn_bytes = len(checked.torn_bytes);
        // A segment without any line was begun just when the server stopped: go on from the one before it.
        let last = match (checked.lines, before) {
            (0, Some(before)) => {
                let bytes = self.segments.read(before).map_err(self.failed("read"))?;
                check(&bytes, None).map_err(|fault| self.fault(before, fault))?
            }
            _ => checked,
        };
        self.next = last.next.unwrap_or(GENESIS);
        self.open = last.open;
        Ok(torn_bytes)
    }

    /// Notes size and age of the segments before the newest, for retention.
    fn note_ended(&mut self, ended: &[u32], newest: u32) -> Result<(), RecordError> {
        for (number, following) in ended.iter().zip(ended.iter().skip(1).chain([&newest])) {
            let (_, bytes) = self.segments.peek(*number).map_err(self.failed("read"))?;
            let (first, _) = self.segments.peek(*following).map_err(self.failed("read"))?;
            // One that cannot be read is as good as new: it is kept.
            let at = whole_line(&first).map_or_else(|| self.host.now(), |line| line.at);
            self.ended.push_back(Ended { number: *number, bytes, at });
        }
        Ok(())
    }

    fn start(&mut self, torn_bytes: u64) -> Result<(), RecordError> {
        let unknown: Vec<Body> = self.open.keys().filter_map(|of| self.unknown(*of)).collect();
        if !unknown.is_empty() {
            tracing::warn!(
                intents = unknown.len(),
                "the server stopped while it signed: what became of these intents is unknown"
            );
        }
        let start = self.start_line(torn_bytes);
        self.append([start].into_iter().chain(unknown).collect())?;
        self.sync()
    }

    fn start_line(&self, torn_bytes: u64) -> Body {
        let open = |(seq, serial): (&u64, &String)| OpenIntent { seq: *seq, serial: serial.clone() };
        Body::Start { format: FORMAT, open: self.open.iter().map(open).collect(), torn_bytes }
    }

    /// The line that gives up on an open intent; `None` when `of` is none.
    pub(super) fn unknown(&self, of: u64) -> Option<Body> {
        self.open.get(&of).map(|serial| Body::Unknown { of, serial: serial.clone() })
    }

    /// Appends a line for each of `bodies`, durably if it `must_last`. The numbers of the intents among them.
    ///
    /// After an error the chain must be opened again ([`Chain::reopen`]) before it is written to.
    pub(super) fn write(&mut self, bodies: Vec<Body>, must_last: bool) -> Result<Vec<u64>, RecordError> {
        let is_full = !bodies.is_empty() && self.current_bytes >= self.retention.segment_bytes;
        let ready = if is_full { self.roll() } else { Ok(()) };
        // Old segments go before the lines come: lines that last are granted in any case.
        if let Err(error) = ready.and_then(|()| self.retain()) {
            bodies.into_iter().for_each(|body| self.hold(body));
            return Err(error);
        }
        let numbers = self.append(bodies)?;
        if must_last {
            self.sync()?;
        }
        Ok(numbers)
    }

    /// Keeps what became of an intent, what was done, and the first refusals, for when the chain can be written to again. All
    /// else is dropped.
    pub(super) fn hold(&mut self, body: Body) {
        match body {
            Body::Refusal { .. } => {
                if self.unsynced_refusals < RECORD_REFUSALS_KEPT {
                    self.unsynced_refusals += 1;
                    self.unsynced.push(body);
                }
            }
            Body::Outcome { .. } | Body::Unknown { .. } | Body::Act { .. } => self.unsynced.push(body),
            Body::Start { .. } | Body::Intent { .. } => {}
        }
    }

    /// After an error: opens the newest segment again, cuts off what is not known to last, and goes on from there. What was
    /// cut of the fates of intents is written again, and that this happened.
    pub(super) fn reopen(&mut self) -> Result<(), RecordError> {
        let durable = self.durable;
        self.current = durable.segment;
        self.segments.reopen(durable.segment).map_err(self.failed("open"))?;
        let numbers = self.segments.list().map_err(self.failed("list the segments after"))?;
        for begun in numbers.into_iter().filter(|number| *number > durable.segment) {
            self.segments.remove(begun).map_err(self.failed("remove the segment after"))?;
        }
        self.ended.retain(|ended| ended.number < durable.segment);
        let bytes = self.segments.read(durable.segment).map_err(self.failed("read"))?;
        let lasting = usize::try_from(durable.bytes).ok().and_then(|end| bytes.get(..end)).unwrap_or(&bytes);
        let checked = check(lasting, None).map_err(|fault| self.fault(durable.segment, fault))?;
        if len(lasting.len()) != durable.bytes || checked.next != Some(durable.next) {
            let line = usize::try_from(checked.lines).unwrap_or(usize::MAX).saturating_add(1);
            let what = "lines that were on record are gone";
            return Err(self.fault(durable.segment, Fault::Broken { line, what }));
        }
        let cut = bytes.len() - lasting.len();
        if cut > 0 {
            let name = self.segments.name(durable.segment);
            tracing::warn!(segment = name, bytes = cut, "cut off lines that nobody was told of");
            self.segments.truncate(durable.segment, durable.bytes).map_err(self.failed("cut"))?;
        }
        self.current_bytes = durable.bytes;
        self.next = durable.next;
        self.open = checked.open;
        let start = self.start_line(len(cut));
        let again = std::mem::take(&mut self.unsynced);
        self.unsynced_refusals = 0;
        let again = again.into_iter().filter(|body| match body {
            Body::Outcome { of, .. } | Body::Unknown { of, .. } => self.open.contains_key(of),
            Body::Act { .. } | Body::Refusal { .. } => true,
            Body::Start { .. } | Body::Intent { .. } => false,
        });
        let lines = [start].into_iter().chain(again).collect();
        self.append(lines)?;
        self.sync()
    }

    fn append(&mut self, bodies: Vec<Body>) -> Result<Vec<u64>, RecordError> {
        let at = self.host.now();
        let mut text = Vec::new();
        let mut intents = Vec::new();
        for body in bodies {
            let line = Line { seq: self.next.seq, prev: self.next.prev, at, body };
            let from = text.len();
            line::write(&mut text, &line);
            self.next = Link { seq: line.seq + 1, prev: hash(&text[from..]) };
            follow(&mut self.open, line.seq, &line.body);
            text.push(b'\n');
            match line.body {
                Body::Intent { .. } => intents.push(line.seq),
                body @ (Body::Outcome { .. }
                | Body::Unknown { .. }
                | Body::Act { .. }
                | Body::Refusal { .. }
                | Body::Start { .. }) => self.hold(body),
            }
        }
        if !text.is_empty() {
            let appended = self.segments.append(self.current, &text);
            appended.map_err(self.failed("write"))?;
        }
        self.current_bytes += len(text.len());
        Ok(intents)
    }

    fn sync(&mut self) -> Result<(), RecordError> {
        let synced = self.segments.sync(self.current);
        synced.map_err(self.failed("sync"))?;
        self.durable = Durable { segment: self.current, bytes: self.current_bytes, next: self.next };
        self.unsynced.clear();
        self.unsynced_refusals = 0;
        Ok(())
    }

    /// Ends the current segment and begins the next.
    fn roll(&mut self) -> Result<(), RecordError> {
        self.sync()?;
        let ended = Ended { number: self.current, bytes: self.current_bytes, at: self.host.now() };
        self.current += 1;
        self.current_bytes = 0;
        let created = self.segments.create(self.current);
        created.map_err(self.failed("create"))?;
        self.ended.push_back(ended);
        let start = self.start_line(0);
        self.append(vec![start])?;
        self.sync()
    }

    /// Removes the oldest segments that retention no longer covers; never the current one.
    fn retain(&mut self) -> Result<(), RecordError> {
        let now = self.host.now();
        let mut total: u64 = self.current_bytes + self.ended.iter().map(|ended| ended.bytes).sum::<u64>();
        while let Some(oldest) = self.ended.front() {
            let is_old = oldest.at.plus(self.retention.keep_for) < now;
            if total <= self.retention.keep_bytes && !is_old {
                break;
            }
            total -= oldest.bytes;
            let name = self.segments.name(oldest.number);
            self.segments.remove(oldest.number).map_err(io_error("remove", &name))?;
            if is_old {
                tracing::info!(segment = name, "removed the oldest segment of the decision record");
            } else {
                // Acts and refusals in it are gone too: whoever has much signed on purpose may want just that.
                tracing::warn!(
                    segment = name,
                    age_secs = oldest.at.until(now).as_secs(),
                    "removed the oldest segment of the decision record for its size, before its age: raise \
                     decision_log.max_size_mib, or look for who has so much signed (passant audit search)"
                );
            }
            self.ended.pop_front();
        }
        Ok(())
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> RecordError + use<> {
        io_error(doing, &self.segments.name(self.current))
    }

    fn fault(&self, number: u32, fault: Fault) -> RecordError {
        fault.in_segment(self.segments.name(number))
    }
}

impl Fault {
    fn in_segment(self, place: String) -> RecordError {
        match self {
            Self::Broken { line, what } => RecordError::Broken { place, line, what: what.to_owned() },
            Self::NewerFormat(found) => RecordError::NewerFormat { place, found, known: FORMAT },
        }
    }
}

/// Checks every line of every segment, and that the line `kept` is among them.
pub(super) fn verify_all(
    segments: &mut dyn Segments,
    kept: Option<&Head>,
) -> Result<ChainReport, RecordError> {
    verify_while(segments, kept, &|| true)
}

/// As [`verify_all`], as long as it is wanted.
pub(super) fn verify_while(
    segments: &mut dyn Segments,
    kept: Option<&Head>,
    is_wanted: &dyn Fn() -> bool,
) -> Result<ChainReport, RecordError> {
    let numbers = segments.list().map_err(io_error("list segments of", ""))?;
    let mut report = ChainReport {
        segments: numbers.len(),
        lines: 0,
        first_seq: 0,
        head: encoding::to_hex(&GENESIS.prev),
        head_seq: None,
        open: BTreeMap::new(),
        torn_bytes: 0,
    };
    let (mut next, mut watched) = (None, None);
    for (at, number) in numbers.iter().enumerate() {
        if !is_wanted() {
            return Err(RecordError::Unwanted);
        }
        let place = segments.name(*number);
        let bytes = segments.read(*number).map_err(io_error("read", &place))?;
        // Segment 1 begins the chain; of a later one that is the first, those before it were removed.
        let from = next.or((*number == 1).then_some(GENESIS));
        let checked = check_for(kept.map(|kept| kept.seq), &bytes, from, |_, _| false)
            .map_err(|fault| fault.in_segment(place.clone()))?;
        if checked.torn_bytes > 0 && at + 1 < numbers.len() {
            let line = usize::try_from(checked.lines).unwrap_or(usize::MAX).saturating_add(1);
            return Err(RecordError::Broken { place, line, what: "it is no line of a record".to_owned() });
        }
        if at == 0 {
            report.first_seq = checked.first_seq.unwrap_or(0);
        }
        report.lines += checked.lines;
        report.torn_bytes = checked.torn_bytes;
        if checked.lines > 0 {
            report.open = checked.open;
        }
        watched = checked.watched.or(watched);
        next = checked.next;
    }
    if let Some(next) = next {
        report.head = encoding::to_hex(&next.prev);
        report.head_seq = next.seq.checked_sub(1);
    }
    match kept {
        Some(kept) => has(*kept, watched, &report).map(|()| report),
        None => Ok(report),
    }
}

/// Whether `watched`, the hash of the line that `kept` names, is the one that was kept.
fn has(kept: Head, watched: Option<[u8; 32]>, report: &ChainReport) -> Result<(), RecordError> {
    match watched {
        Some(hash) if hash == kept.hash => Ok(()),
        Some(_) => Err(RecordError::OtherChain(kept)),
        None if report.head_seq.is_some_and(|newest| kept.seq <= newest) => {
            Err(RecordError::NotKept { kept, first: report.first_seq })
        }
        None => Err(RecordError::CutOff { kept, newest: report.head_seq }),
    }
}

fn len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn io_error(doing: &'static str, place: &str) -> impl FnOnce(io::Error) -> RecordError + use<> {
    let place = place.to_owned();
    move |source| RecordError::Io { doing, place, source }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::record::segments::MemorySegments;
    use crate::state::samples::host_at;

    /// A segment that begins with a line of number `seq`, as if those before it had been removed.
    fn check(seq: u64, is_taken: bool) {
        let body = Body::Start { format: FORMAT, open: Vec::new(), torn_bytes: 0 };
        let line = Line { seq, prev: [0; 32], at: UnixTime::from_secs(0), body };
        let mut segments = MemorySegments::default();
        segments.create(2).unwrap();
        segments.append(2, &[serde_json::to_vec(&line).unwrap(), b"\n".to_vec()].concat()).unwrap();
        assert_eq!(verify_all(&mut segments, None).is_ok(), is_taken, "{seq}");
    }

    /// Counts warnings.
    struct Warnings(Arc<AtomicUsize>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn it_is_said_when_a_segment_goes_before_its_age() {
        let day = Duration::from_secs(86_400);
        for (keep_bytes, keep_for, is_said) in [(1, 400 * day, true), (u64::MAX, day, false)] {
            let (host, clock) = host_at(5);
            let warnings = Arc::<AtomicUsize>::default();
            tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
                let retention = Retention { segment_bytes: 1, keep_bytes, keep_for };
                let mut segments = MemorySegments::default();
                let mut chain = Chain::open(Box::new(segments.clone()), retention, host).unwrap();
                for _ in 0..3 {
                    clock.advance(2 * day);
                    let line = chain.start_line(0);
                    chain.write(vec![line], true).unwrap();
                }
                assert!(segments.list().unwrap().len() <= 2, "the others are gone");
            });
            assert_eq!(warnings.load(Ordering::Relaxed) > 0, is_said);
        }
    }

    #[test]
    fn a_line_behind_which_nobody_could_count_on_is_refused() {
        check(LAST, true);
        check(LAST + 1, false);
        check(u64::MAX, false);
    }
}
