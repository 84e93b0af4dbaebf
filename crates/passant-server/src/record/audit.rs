//! What does the record say about somebody or something, and does it hold together?
//!
//! Reads segments and changes nothing; a server may be writing to them meanwhile. One segment is in memory at a time.

use std::collections::VecDeque;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use passant_core::UnixTime;
use passant_core::serial::Serial;
use serde_json::Value;

use super::chain::{Body, Head, Line, verify_while};
use super::segments::{FileSegments, Segments};
use super::{ChainReport, RecordError};

/// How often the record is read anew when its oldest segment goes meanwhile.
const ATTEMPTS: u32 = 3;

/// Which lines are looked for. What is not given does not count; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Written in this second or later.
    pub since: Option<UnixTime>,
    /// Written in this second or earlier.
    pub until: Option<UnixTime>,
    /// Of one of these kinds.
    pub kinds: Vec<Kind>,
    /// A SPIFFE ID that the line names: as subject, as caller, or in what was done.
    pub spiffe_id: Option<String>,
    /// The serial of what is signed, in hex or decimal, or the `jti` of a token.
    pub serial: Option<String>,
    /// The ID of a registration entry.
    pub entry: Option<String>,
    /// A part of what the line says of the caller.
    pub caller: Option<String>,
    /// A part of the gRPC method.
    pub method: Option<String>,
    /// A part of the reason.
    pub reason: Option<String>,
    /// Only so many of the newest that are found.
    pub newest: Option<usize>,
}

/// The kinds of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A segment begins, or a server started.
    Start,
    /// Something is about to be signed.
    Intent,
    /// What became of it.
    Outcome,
    /// What became of it will never be known.
    Unknown,
    /// Something was done by hand.
    Act,
    /// A call was refused.
    Refusal,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Start, Self::Intent, Self::Outcome, Self::Unknown, Self::Act, Self::Refusal];

    /// As the lines say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Intent => "intent",
            Self::Outcome => "outcome",
            Self::Unknown => "unknown",
            Self::Act => "act",
            Self::Refusal => "refusal",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn of(body: &Body) -> Self {
        match body {
            Body::Start { .. } => Self::Start,
            Body::Intent { .. } => Self::Intent,
            Body::Outcome { .. } => Self::Outcome,
            Body::Unknown { .. } => Self::Unknown,
            Body::Act { .. } => Self::Act,
            Body::Refusal(_) => Self::Refusal,
        }
    }
}

/// Hands the lines that `query` looks for to `to`, each as it stands in the record with its newline, oldest first, until it
/// breaks off. Whether they hold together is for [`verify`] to say; what is no line is passed over. `is_wanted` is asked
/// before each segment, since none of them may hold a line to hand out.
///
/// # Errors
/// When a segment cannot be read. One that retention removes meanwhile is passed over. [`RecordError::Unwanted`].
pub fn search(
    segments: &mut dyn Segments,
    query: &Query,
    is_wanted: impl Fn() -> bool,
    mut to: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), RecordError> {
    let wanted = Wanted::of(query);
    let numbers = numbers_since(segments, query.since)?;
    let Some(newest) = query.newest else {
        for number in numbers {
            let bytes = read_while(&is_wanted, segments, number)?;
            for range in found(&bytes, &wanted) {
                if to(&bytes[range]).is_break() {
                    return Ok(());
                }
            }
        }
        return Ok(());
    };
    // From the newest segment back, until there are enough; then forward.
    let mut left = newest;
    let mut hits: VecDeque<(u32, Vec<Range<usize>>)> = VecDeque::new();
    for number in numbers.into_iter().rev() {
        if left == 0 {
            break;
        }
        let mut ranges = found(&read_while(&is_wanted, segments, number)?, &wanted);
        ranges.drain(..ranges.len().saturating_sub(left));
        left -= ranges.len();
        if !ranges.is_empty() {
            hits.push_front((number, ranges));
        }
    }
    for (number, ranges) in hits {
        let bytes = read_while(&is_wanted, segments, number)?;
        for range in ranges {
            // Shorter only if the segment was removed, or its torn end cut off.
            if let Some(line) = bytes.get(range)
                && to(line).is_break()
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Checks every line, and that the line `kept`, a head from earlier, is still the same one.
///
/// # Errors
/// As [`super::verify_chain`]; [`RecordError::CutOff`], [`RecordError::OtherChain`] or [`RecordError::NotKept`] for the head;
/// [`RecordError::Unwanted`] once `is_wanted`, which is asked before each segment, says no.
pub fn verify(
    segments: &mut dyn Segments,
    kept: Option<&Head>,
    is_wanted: impl Fn() -> bool,
) -> Result<ChainReport, RecordError> {
    let mut attempt = 1;
    loop {
        match verify_while(segments, kept, &is_wanted) {
            // The oldest segment has gone since they were listed.
            Err(RecordError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            done => return done,
        }
    }
}

/// The segments in `dir`: a record, or the data directory that holds one as `decisions`. They are only read, and no server is
/// kept from anything.
///
/// # Errors
/// When there is no segment.
pub fn open(dir: &Path) -> Result<Box<dyn Segments>, RecordError> {
    let below = dir.join("decisions");
    let dir = if below.is_dir() { below } else { dir.to_owned() };
    let failed = |source| RecordError::Io { doing: "find", place: dir.display().to_string(), source };
    let mut segments = FileSegments::read_only(&dir);
    if segments.list().map_err(failed)?.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "there is no segment in this directory")));
    }
    Ok(Box::new(segments))
}

/// Segments that can hold lines written since then, ascending.
fn numbers_since(segments: &mut dyn Segments, since: Option<UnixTime>) -> Result<Vec<u32>, RecordError> {
    let numbers = segments.list().map_err(|source| failed(segments, 0, source))?;
    let Some(since) = since else { return Ok(numbers) };
    let mut from = 0;
    for (at, number) in numbers.iter().enumerate().skip(1) {
        match segments.peek(*number) {
            // What stands before its first line was written before that.
            Ok((first, _)) if line(&first).is_some_and(|line| line.at < since) => from = at,
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(segments, *number, error)),
        }
    }
    Ok(numbers[from..].to_vec())
}

fn read_while(
    is_wanted: impl Fn() -> bool,
    segments: &mut dyn Segments,
    number: u32,
) -> Result<Vec<u8>, RecordError> {
    if is_wanted() { read(segments, number) } else { Err(RecordError::Unwanted) }
}

fn read(segments: &mut dyn Segments, number: u32) -> Result<Vec<u8>, RecordError> {
    match segments.read(number) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|source| failed(segments, number, source)),
    }
}

fn failed(segments: &dyn Segments, number: u32, source: io::Error) -> RecordError {
    RecordError::Io { doing: "read", place: segments.name(number), source }
}

/// Where the wanted lines stand.
fn found(bytes: &[u8], wanted: &Wanted<'_>) -> Vec<Range<usize>> {
    let mut at = 0;
    let mut ranges = Vec::new();
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        let range = at..at + text.len();
        at = range.end;
        if line(text).is_some_and(|line| wanted.takes(&line)) {
            ranges.push(range);
        }
    }
    ranges
}

fn line(text: &[u8]) -> Option<Line> {
    serde_json::from_slice(text.strip_suffix(b"\n")?).ok()
}

/// A query, made ready.
struct Wanted<'a> {
    query: &'a Query,
    /// The ways in which the serial may be written.
    serials: Vec<String>,
}

impl<'a> Wanted<'a> {
    fn of(query: &'a Query) -> Self {
        let serials = query.serial.iter().flat_map(|text| {
            let hex = text.replace(':', "").to_ascii_lowercase();
            let decimal = Serial::from_decimal(text).ok().map(|serial| serial.to_string());
            [Some(text.clone()), Some(hex), decimal].into_iter().flatten()
        });
        Self { query, serials: serials.collect() }
    }

    fn takes(&self, line: &Line) -> bool {
        let Query { since, until, kinds, spiffe_id, serial, entry, caller, method, reason, newest: _ } =
            self.query;
        let is = |wanted: &Option<String>, holds: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(holds);
        since.is_none_or(|since| line.at >= since)
            && until.is_none_or(|until| line.at <= until)
            && (kinds.is_empty() || kinds.contains(&Kind::of(&line.body)))
            && (serial.is_none() || self.has_serial(&line.body))
            && is(spiffe_id, &|id| names_id(&line.body, id))
            && is(entry, &|id| names_entry(&line.body, id))
            && is(caller, &|part| caller_of(&line.body).is_some_and(|caller| caller.contains(part)))
            && is(method, &|part| method_of(&line.body).is_some_and(|method| method.contains(part)))
            && is(reason, &|part| reasons_of(&line.body).iter().any(|reason| reason.contains(part)))
    }

    fn has_serial(&self, body: &Body) -> bool {
        let serial = match body {
            Body::Intent { decision } => &decision.serial,
            Body::Unknown { serial, .. } => serial,
            Body::Start { .. } | Body::Outcome { .. } | Body::Act { .. } | Body::Refusal(_) => return false,
        };
        self.serials.contains(serial)
    }
}

fn caller_of(body: &Body) -> Option<&str> {
    match body {
        Body::Intent { decision } => Some(&decision.caller),
        Body::Act { caller, .. } => Some(caller),
        Body::Refusal(refused) => refused.caller.as_deref(),
        Body::Start { .. } | Body::Outcome { .. } | Body::Unknown { .. } => None,
    }
}

fn method_of(body: &Body) -> Option<&str> {
    match body {
        Body::Act { method, .. } => method.as_deref(),
        Body::Refusal(refused) => Some(&refused.method),
        Body::Start { .. } | Body::Intent { .. } | Body::Outcome { .. } | Body::Unknown { .. } => None,
    }
}

fn reasons_of(body: &Body) -> Vec<&str> {
    match body {
        Body::Intent { decision } => vec![&decision.reason],
        Body::Refusal(refused) => vec![&refused.reason, &refused.why],
        Body::Start { .. } | Body::Outcome { .. } | Body::Unknown { .. } | Body::Act { .. } => Vec::new(),
    }
}

fn names_id(body: &Body, id: &str) -> bool {
    let is_caller = || caller_of(body).is_some_and(|caller| caller.split(' ').any(|word| word == id));
    is_caller()
        || match body {
            Body::Intent { decision } => decision.spiffe_id.as_str() == id,
            Body::Act { act, subjects, .. } => {
                subjects.iter().any(|subject| subject.as_str() == id) || names(act, id)
            }
            Body::Start { .. } | Body::Outcome { .. } | Body::Unknown { .. } | Body::Refusal(_) => false,
        }
}

fn names_entry(body: &Body, id: &str) -> bool {
    match body {
        Body::Intent { decision } => decision.entry.as_ref().is_some_and(|(entry, _)| entry.as_str() == id),
        Body::Act { act, .. } => names(act, id),
        Body::Start { .. } | Body::Outcome { .. } | Body::Unknown { .. } | Body::Refusal(_) => false,
    }
}

/// Whether `text` is one of the texts in what was done.
fn names(act: &super::Act, text: &str) -> bool {
    fn holds(value: &Value, text: &str) -> bool {
        match value {
            Value::String(own) => own == text,
            Value::Array(some) => some.iter().any(|one| holds(one, text)),
            Value::Object(fields) => fields.values().any(|one| holds(one, text)),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }
    serde_json::to_value(act).is_ok_and(|act| holds(&act, text))
}

#[cfg(test)]
mod tests;
