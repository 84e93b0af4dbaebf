//! What must a decision record keep, wherever its segments lie? One suite, run on each kind.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use passant_core::Host;

use super::chain::{Body, Line, verify_all};
use super::segments::{FileSegments, MemorySegments, Segments};
use super::*;
use crate::limits::{HEAL_MOST, RECORD_REFUSALS_KEPT};
use crate::state::samples::{at, entry_id, host_at, id};

/// A directory of segments that survives its log, and can be looked at and damaged.
trait Shelf {
    fn segments(&self) -> Box<dyn Segments>;
    /// The same contents elsewhere: what a killed server would leave.
    fn copy(&self) -> Box<dyn Shelf>;
}

impl Shelf for MemorySegments {
    fn segments(&self) -> Box<dyn Segments> {
        Box::new(self.clone())
    }

    fn copy(&self) -> Box<dyn Shelf> {
        let copy = Self::default();
        put_all(&mut copy.clone(), take_all(&mut self.clone()));
        Box::new(copy)
    }
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("decisions")
    }
}

impl Shelf for Dir {
    fn segments(&self) -> Box<dyn Segments> {
        Box::new(FileSegments::open(&self.path()).unwrap())
    }

    fn copy(&self) -> Box<dyn Shelf> {
        let copy = Self::new();
        put_all(&mut *copy.segments(), take_all(&mut *self.segments()));
        Box::new(copy)
    }
}

fn take_all(segments: &mut dyn Segments) -> Vec<(u32, Vec<u8>)> {
    segments.list().unwrap().into_iter().map(|number| (number, segments.read(number).unwrap())).collect()
}

fn put_all(segments: &mut dyn Segments, contents: Vec<(u32, Vec<u8>)>) {
    for (number, bytes) in contents {
        if segments.list().unwrap().contains(&number) {
            segments.remove(number).unwrap();
        }
        segments.create(number).unwrap();
        segments.append(number, &bytes).unwrap();
    }
}

macro_rules! contract {
    ($($fact:ident)*) => {
        mod in_memory {
            $(#[tokio::test(start_paused = true)] async fn $fact() {
                super::$fact(&super::MemorySegments::default()).await;
            })*
        }
        mod in_files {
            $(#[tokio::test] async fn $fact() { super::$fact(&super::Dir::new()).await; })*
        }
    };
}

contract! {
    an_intent_is_on_record_before_it_is_handed_out
    intents_come_in_the_order_of_their_decisions
    outcomes_follow_and_a_dropped_intent_becomes_unknown
    a_killed_server_leaves_unknown_intents
    the_chain_goes_on_over_restarts_and_segments
    a_torn_end_is_cut_off
    an_end_that_was_written_in_no_order_is_cut_off_unless_it_had_lasted
    a_change_in_the_middle_is_found
    a_segment_begun_at_the_last_moment_is_taken_up
    old_segments_are_removed_by_size_and_the_newest_stays
    old_segments_are_removed_by_age
    a_segment_that_somebody_took_away_stops_nothing
    a_newer_format_is_refused
    a_closed_record_takes_nothing
}

fn open(shelf: &dyn Shelf) -> DecisionLog {
    try_open(shelf).unwrap()
}

fn try_open(shelf: &dyn Shelf) -> Result<DecisionLog, RecordError> {
    DecisionLog::over(shelf.segments(), Retention::default(), host_at(5).0)
}

fn decision(serial: &str) -> Decision {
    Decision {
        kind: DecisionKind::X509Svid,
        serial: serial.to_owned(),
        spiffe_id: id("/w"),
        entry: Some((entry_id("e1"), 3)),
        key_hash: [7; 32],
        not_after: at(100),
        caller: "spiffe://example.org/spire/agent/x/1".to_owned(),
        reason: "renewal\nwith a line break".to_owned(),
        authority: Some(AuthorityId::parse("ab12").unwrap()),
        at: at(5),
        grounds: None,
    }
}

async fn intend(log: &DecisionLog, serial: &str) -> Intent {
    log.intend(vec![decision(serial)]).await.unwrap().pop().unwrap()
}

fn lines(shelf: &dyn Shelf) -> Vec<Line> {
    let text: Vec<u8> = take_all(&mut *shelf.segments()).into_iter().flat_map(|(_, bytes)| bytes).collect();
    text.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The lines in short: `start`, `intent a`, `signed 1`, `not signed 1`, `unknown a`.
fn story(shelf: &dyn Shelf) -> Vec<String> {
    let tell = |line: Line| match line.body {
        Body::Start { .. } => "start".to_owned(),
        Body::Intent { decision } => format!("intent {}", decision.serial),
        Body::Outcome { of, outcome: Outcome::Signed } => format!("signed {of}"),
        Body::Outcome { of, outcome: Outcome::NotSigned(_) } => format!("not signed {of}"),
        Body::Unknown { serial, .. } => format!("unknown {serial}"),
        Body::Act { act, .. } => format!("act {act:?}"),
        Body::Refusal(refused) => format!("refusal {}", refused.why),
    };
    lines(shelf).into_iter().map(tell).collect()
}

fn verify(shelf: &dyn Shelf) -> Result<ChainReport, RecordError> {
    verify_all(&mut *shelf.segments(), None)
}

async fn an_intent_is_on_record_before_it_is_handed_out(shelf: &dyn Shelf) {
    let log = open(shelf);
    let intent = intend(&log, "a").await;
    let Body::Intent { decision: written } = lines(shelf).pop().unwrap().body else { panic!("no intent") };
    assert_eq!((&*written, &**intent.decision()), (&decision("a"), &decision("a")));
}

async fn intents_come_in_the_order_of_their_decisions(shelf: &dyn Shelf) {
    let log = open(shelf);
    let group = |names: [&str; 2]| log.intend(names.map(decision).to_vec());
    let (one, two, none) =
        tokio::join!(group(["a", "b"]), group(["c", "d"]), log.intend(Vec::<Decision>::new()));
    let serials = |intents: Vec<Intent>| -> Vec<String> {
        intents.iter().map(|intent| intent.decision().serial.clone()).collect()
    };
    assert_eq!(serials(one.unwrap()), ["a", "b"]);
    assert_eq!(serials(two.unwrap()), ["c", "d"]);
    assert!(none.unwrap().is_empty());
}

async fn outcomes_follow_and_a_dropped_intent_becomes_unknown(shelf: &dyn Shelf) {
    let log = open(shelf);
    let (signed, failed, dropped) =
        (intend(&log, "a").await, intend(&log, "b").await, intend(&log, "c").await);
    let not_signed = Outcome::NotSigned("no key".to_owned());
    log.outcomes(vec![(signed.into_receipt(), Outcome::Signed), (failed.into_receipt(), not_signed)]);
    drop(dropped);
    log.close().await;
    let expected = ["start", "intent a", "intent b", "intent c", "signed 1", "not signed 2", "unknown c"];
    assert_eq!(story(shelf), expected);
    assert!(verify(shelf).unwrap().open.is_empty());
}

async fn a_killed_server_leaves_unknown_intents(shelf: &dyn Shelf) {
    let log = open(shelf);
    let (done, _open) = (intend(&log, "a").await, intend(&log, "b").await);
    log.outcome(done.into_receipt(), Outcome::Signed);
    // Written after the outcome, which is not waited for.
    let _also_open = intend(&log, "c").await;
    let left = shelf.copy();
    assert_eq!(verify(&*left).unwrap().open.into_values().collect::<Vec<_>>(), ["b", "c"]);
    open(&*left).close().await;
    open(&*left).close().await;
    let expected =
        ["start", "intent a", "intent b", "signed 1", "intent c", "start", "unknown b", "unknown c", "start"];
    assert_eq!(story(&*left), expected);
}

fn small() -> Retention {
    Retention { segment_bytes: 1_500, keep_bytes: u64::MAX, keep_for: Duration::MAX }
}

async fn fill(shelf: &dyn Shelf, retention: Retention, host: &Host, decisions: usize) {
    let log = DecisionLog::over(shelf.segments(), retention, host.clone()).unwrap();
    for number in 0..decisions {
        let intent = intend(&log, &format!("s{number}")).await;
        log.outcome(intent.into_receipt(), Outcome::Signed);
    }
    log.close().await;
}

async fn the_chain_goes_on_over_restarts_and_segments(shelf: &dyn Shelf) {
    let (host, _) = host_at(5);
    let log = DecisionLog::over(shelf.segments(), small(), host.clone()).unwrap();
    let _open = intend(&log, "open").await;
    for number in 0..20 {
        let intent = intend(&log, &format!("s{number}")).await;
        log.outcome(intent.into_receipt(), Outcome::Signed);
    }
    log.close().await;
    let before = verify(shelf).unwrap();
    assert!(before.segments > 3, "{before:?}");
    assert_eq!(before.open.values().collect::<Vec<_>>(), ["open"]);
    fill(shelf, small(), &host, 5).await;
    let after = verify(shelf).unwrap();
    assert!(after.open.is_empty());
    let lines = lines(shelf);
    assert_eq!(lines.iter().map(|line| line.seq).collect::<Vec<_>>(), (0..after.lines).collect::<Vec<_>>());
    // Whoever kept the old head finds it again.
    assert_eq!(lines.iter().filter(|line| encoding::to_hex(&line.prev) == before.head).count(), 1);
    assert_eq!(story(shelf).iter().filter(|line| *line == "unknown open").count(), 1);
}

async fn a_torn_end_is_cut_off(shelf: &dyn Shelf) {
    let ends: [&[u8]; 4] = [b"{\"seq\":3,\"pr", b"\0\0\0\0\0", b"x\ny\n", b"{\"seq\":99}\n\n\n{"];
    for end in ends {
        let shelf = shelf.copy();
        let log = open(&*shelf);
        log.outcome(intend(&log, "a").await.into_receipt(), Outcome::Signed);
        log.close().await;
        let before = verify(&*shelf).unwrap();
        shelf.segments().append(1, end).unwrap();
        assert_eq!(verify(&*shelf).unwrap(), ChainReport { torn_bytes: end.len(), ..before });
        open(&*shelf).close().await;
        assert_eq!(story(&*shelf), ["start", "intent a", "signed 1", "start"]);
        let Body::Start { torn_bytes, .. } = lines(&*shelf).pop().unwrap().body else { panic!("no start") };
        assert_eq!(usize::try_from(torn_bytes).unwrap(), end.len());
    }
}

async fn an_end_that_was_written_in_no_order_is_cut_off_unless_it_had_lasted(shelf: &dyn Shelf) {
    let log = open(shelf);
    let kept = intend(&log, "kept").await;
    let group = log.intend(["a", "b", "c"].map(decision).to_vec()).await.unwrap();
    let written = take_all(&mut *shelf.segments()).pop().unwrap().1;
    let lines: Vec<&[u8]> = written.split_inclusive(|byte| *byte == b'\n').collect();
    // A sector of the line of `a` never came to the disk, and those of `b` and `c` did.
    let torn = |lines: &[&[u8]]| {
        let mut bytes = lines.concat();
        let from = lines[..2].concat().len();
        bytes[from + 20..from + 90].fill(0);
        let shelf = shelf.copy();
        put_all(&mut *shelf.segments(), vec![(1, bytes)]);
        shelf
    };
    let cut = torn(&lines);
    assert!(matches!(verify(&*cut), Err(RecordError::Broken { line: 3, .. })), "who only reads cannot know");
    open(&*cut).close().await;
    assert_eq!(story(&*cut), ["start", "intent kept", "start", "unknown kept"]);
    drop((kept, group));
    log.close().await;
    // The same end, and then lines that are written only if it lasted.
    let written = take_all(&mut *shelf.segments()).pop().unwrap().1;
    let lines: Vec<&[u8]> = written.split_inclusive(|byte| *byte == b'\n').collect();
    assert!(matches!(try_open(&*torn(&lines)), Err(RecordError::Broken { line: 3, .. })));
}

async fn a_change_in_the_middle_is_found(shelf: &dyn Shelf) {
    fill(shelf, Retention::default(), &host_at(5).0, 3).await;
    let text = take_all(&mut *shelf.segments()).pop().unwrap().1;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let check = |damaged: Vec<u8>, at_line: usize| {
        let shelf = shelf.copy();
        put_all(&mut *shelf.segments(), vec![(1, damaged)]);
        for refused in [verify(&*shelf).err(), try_open(&*shelf).err()] {
            match refused {
                Some(RecordError::Broken { line, .. }) => assert_eq!(line, at_line),
                other => panic!("{other:?}"),
            }
        }
    };
    let forged = String::from_utf8(text.clone()).unwrap().replacen("\"s1\"", "\"s9\"", 1);
    // The line after the forged one no longer follows from it.
    check(forged.into_bytes(), 5);
    check([&lines[..2], &lines[3..]].concat().concat(), 3);
    check([&lines[..2], &[b"garbage\n".as_slice()], &lines[2..]].concat().concat(), 3);
    check([&lines[1..2], lines.as_slice()].concat().concat(), 1);
}

async fn a_segment_begun_at_the_last_moment_is_taken_up(shelf: &dyn Shelf) {
    for beginning in ["", "{\"seq\":"] {
        let shelf = shelf.copy();
        let log = open(&*shelf);
        let _open = intend(&log, "a").await;
        let shelf = shelf.copy();
        let mut segments = shelf.segments();
        segments.create(2).unwrap();
        segments.append(2, beginning.as_bytes()).unwrap();
        open(&*shelf).close().await;
        assert_eq!(story(&*shelf), ["start", "intent a", "start", "unknown a"]);
        assert_eq!(verify(&*shelf).unwrap().segments, 2);
    }
}

async fn old_segments_are_removed_by_size_and_the_newest_stays(shelf: &dyn Shelf) {
    let (host, _) = host_at(5);
    let tight = Retention { keep_bytes: 6_000, ..small() };
    fill(shelf, tight, &host, 40).await;
    let report = verify(shelf).unwrap();
    let bytes: usize = take_all(&mut *shelf.segments()).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(report.first_seq > 0 && report.segments > 1 && bytes <= 6_000, "{report:?} {bytes}");
    let none = Retention { keep_bytes: 0, ..small() };
    fill(shelf, none, &host, 1).await;
    assert_eq!(verify(shelf).unwrap().segments, 1);
}

async fn old_segments_are_removed_by_age(shelf: &dyn Shelf) {
    let (host, clock) = host_at(5);
    let aging = Retention { keep_for: Duration::from_secs(100), ..small() };
    fill(shelf, aging, &host, 20).await;
    let segments = verify(shelf).unwrap().segments;
    clock.set(at(105));
    fill(shelf, aging, &host, 0).await;
    assert_eq!(verify(shelf).unwrap().segments, segments);
    clock.set(at(106));
    fill(shelf, aging, &host, 0).await;
    assert_eq!(verify(shelf).unwrap().segments, 1);
}

async fn a_segment_that_somebody_took_away_stops_nothing(shelf: &dyn Shelf) {
    let (host, clock) = host_at(5);
    let aging = Retention { keep_for: Duration::from_secs(100), ..small() };
    fill(shelf, aging, &host, 20).await;
    let log = DecisionLog::over(shelf.segments(), aging, host.clone()).unwrap();
    let mut segments = shelf.segments();
    let oldest = segments.list().unwrap()[0];
    segments.remove(oldest).unwrap();
    clock.set(at(106));
    log.intend(vec![decision("next")]).await.unwrap();
    log.close().await;
}

async fn a_newer_format_is_refused(shelf: &dyn Shelf) {
    open(shelf).close().await;
    let text = String::from_utf8(take_all(&mut *shelf.segments()).pop().unwrap().1).unwrap();
    let newer = text.replace("\"format\":3", "\"format\":4").replace("torn_bytes", "something_new");
    put_all(&mut *shelf.segments(), vec![(1, newer.into_bytes())]);
    let refused = try_open(shelf).unwrap_err();
    assert!(matches!(refused, RecordError::NewerFormat { found: 4, known: 3, .. }), "{refused}");
}

async fn a_closed_record_takes_nothing(shelf: &dyn Shelf) {
    let log = open(shelf);
    let late = intend(&log, "a").await;
    log.close().await;
    assert!(matches!(log.intend(vec![decision("b")]).await, Err(RecordError::Closed)));
    log.outcome(late.into_receipt(), Outcome::Signed);
    log.close().await;
    assert_eq!(story(shelf), ["start", "intent a"]);
}

/// Segments that fail when told to, and count their syncs.
struct Failing {
    segments: MemorySegments,
    fail_append: Arc<AtomicBool>,
    fail_sync: Arc<AtomicBool>,
    fail_reopen: Arc<AtomicBool>,
    /// Whether what was not synced is gone when the segment is opened again.
    loses: Arc<AtomicBool>,
    /// Bytes of the only segment that are synced.
    synced: Arc<AtomicU64>,
    syncs: Arc<AtomicUsize>,
}

impl Failing {
    fn over(segments: &MemorySegments) -> Self {
        let flag = || Arc::new(AtomicBool::new(false));
        Self {
            segments: segments.clone(),
            fail_append: flag(),
            fail_sync: flag(),
            fail_reopen: flag(),
            loses: flag(),
            synced: Arc::default(),
            syncs: Arc::default(),
        }
    }
}

impl Segments for Failing {
    fn name(&self, number: u32) -> String {
        self.segments.name(number)
    }

    fn list(&mut self) -> io::Result<Vec<u32>> {
        self.segments.list()
    }

    fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        self.segments.read(number)
    }

    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)> {
        self.segments.peek(number)
    }

    fn create(&mut self, number: u32) -> io::Result<()> {
        self.segments.create(number)
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        if self.fail_append.load(Ordering::SeqCst) {
            // A disk that fills up takes a part.
            self.segments.append(number, &bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.segments.append(number, bytes)
    }

    fn sync(&mut self, number: u32) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk has gone"));
        }
        self.synced.store(self.segments.peek(number)?.1, Ordering::SeqCst);
        self.segments.sync(number)
    }

    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()> {
        self.segments.truncate(number, len)
    }

    fn remove(&mut self, number: u32) -> io::Result<()> {
        self.segments.remove(number)
    }

    fn reopen(&mut self, number: u32) -> io::Result<()> {
        if self.fail_reopen.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        // What was not synced never reached the disk.
        if self.loses.load(Ordering::SeqCst) {
            self.segments.truncate(number, self.synced.load(Ordering::SeqCst))?;
        }
        self.segments.reopen(number)
    }

    fn is_instant(&self) -> bool {
        true
    }
}

/// A disk that fails and works again, in every way that a record may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It takes a part of what is written, as a full disk does.
    Write,
    /// It takes all, and does not say that it lasts; and so it does.
    Sync,
    /// It takes all, and none of it lasts.
    SyncAndLose,
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_stops_signing_until_the_disk_works_again_and_nothing_acknowledged_is_lost() {
    for fault in [Fault::Write, Fault::Sync, Fault::SyncAndLose] {
        let disk = MemorySegments::default();
        let failing = Failing::over(&disk);
        failing.loses.store(fault == Fault::SyncAndLose, Ordering::SeqCst);
        let fails = Arc::clone(if fault == Fault::Write { &failing.fail_append } else { &failing.fail_sync });
        let fails_reopen = Arc::clone(&failing.fail_reopen);
        let log = DecisionLog::over(Box::new(failing), Retention::default(), host_at(5).0).unwrap();
        let (early, held) = (intend(&log, "a").await, intend(&log, "b").await);
        // Written and not synced when the disk fails.
        log.outcome(early.into_receipt(), Outcome::Signed);
        tokio::task::yield_now().await;
        fails.store(true, Ordering::SeqCst);
        fails_reopen.store(true, Ordering::SeqCst);
        let refused = log.intend(vec![decision("c")]).await.unwrap_err();
        assert!(matches!(refused, RecordError::Stopped { .. }), "{refused}");
        fails.store(false, Ordering::SeqCst);
        // It could be written to, but has not been opened again.
        let refused = log.intend(vec![decision("d")]).await.unwrap_err();
        assert!(matches!(refused, RecordError::Stopped { .. }), "{refused}");
        assert!(log.fault().unwrap().contains("open"), "{:?}", log.fault());
        // What was granted before is still told.
        log.outcome(held.into_receipt(), Outcome::NotSigned("too late".to_owned()));
        tokio::time::sleep(HEAL_MOST * 3).await;
        assert!(log.fault().is_some());
        fails_reopen.store(false, Ordering::SeqCst);
        tokio::time::sleep(HEAL_MOST * 2).await;
        assert_eq!(log.fault(), None, "{fault:?}");
        log.outcome(intend(&log, "e").await.into_receipt(), Outcome::Signed);
        log.close().await;
        let expected =
            ["start", "intent a", "intent b", "start", "signed 1", "not signed 2", "intent e", "signed 6"];
        assert_eq!(story(&disk), expected, "{fault:?}");
        assert!(verify(&disk).unwrap().open.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_passes_at_once_costs_one_refusal() {
    let disk = MemorySegments::default();
    let failing = Failing::over(&disk);
    let fails = Arc::clone(&failing.fail_append);
    let log = DecisionLog::over(Box::new(failing), small(), host_at(5).0).unwrap();
    for round in 0..12 {
        fails.store(true, Ordering::SeqCst);
        assert!(log.intend(vec![decision("no")]).await.is_err());
        fails.store(false, Ordering::SeqCst);
        tokio::time::sleep(HEAL_MOST * 2).await;
        let intent = intend(&log, &format!("yes {round}")).await;
        log.outcome(intent.into_receipt(), Outcome::Signed);
    }
    log.close().await;
    let story = story(&disk);
    assert_eq!(story.iter().filter(|line| line.starts_with("intent")).count(), 12);
    assert!(!story.contains(&"intent no".to_owned()), "{story:?}");
    let report = verify(&disk).unwrap();
    assert!(report.segments > 2 && report.open.is_empty(), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_done_and_the_first_refusals_are_written_once_the_record_works_again() {
    let disk = MemorySegments::default();
    let failing = Failing::over(&disk);
    let fails = Arc::clone(&failing.fail_append);
    let log = DecisionLog::over(Box::new(failing), Retention::default(), host_at(5).0).unwrap();
    fails.store(true, Ordering::SeqCst);
    let done = Done::to_entries(&[(entry_id("e1"), id("/w"))], Act::CreateEntries);
    assert!(log.note_all(done, By::from("ops".to_owned())).await.is_err());
    let refused = |why: String| Refused {
        method: "/s/M".to_owned(),
        caller: None,
        from: "192.0.2.1:7".to_owned(),
        reason: "denied".to_owned(),
        why,
        left_out: 0,
        left_out_of_others: 0,
    };
    (0..RECORD_REFUSALS_KEPT + 10).for_each(|n| log.refused(refused(n.to_string())));
    assert!(log.intend(vec![decision("no")]).await.is_err());
    fails.store(false, Ordering::SeqCst);
    tokio::time::sleep(HEAL_MOST * 2).await;
    log.close().await;
    let story = story(&disk);
    assert_eq!(story.iter().filter(|line| line.starts_with("act CreateEntries")).count(), 1, "{story:?}");
    assert_eq!(story.iter().filter(|line| line.starts_with("refusal")).count(), RECORD_REFUSALS_KEPT);
    assert!(verify(&disk).is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_sync_is_still_there_after_a_fault() {
    let disk = MemorySegments::default();
    let failing = Failing::over(&disk);
    let (fails, loses) = (Arc::clone(&failing.fail_sync), Arc::clone(&failing.loses));
    let log = DecisionLog::over(Box::new(failing), Retention::default(), host_at(5).0).unwrap();
    // An outcome and a dropped intent are not waited for.
    log.outcome(intend(&log, "a").await.into_receipt(), Outcome::Signed);
    tokio::task::yield_now().await;
    let read = verify(&disk).unwrap();
    assert_eq!(read.head_seq, Some(2));
    let before = log.sync().await.unwrap();
    loses.store(true, Ordering::SeqCst);
    fails.store(true, Ordering::SeqCst);
    assert!(log.intend(vec![decision("no")]).await.is_err());
    assert!(matches!(log.sync().await, Err(RecordError::Stopped { .. })));
    fails.store(false, Ordering::SeqCst);
    tokio::time::sleep(HEAL_MOST * 2).await;
    assert_ne!(log.sync().await.unwrap(), before, "lines that were read meanwhile may be gone");
    let head: Head = format!("{}@2", read.head).parse().unwrap();
    verify_all(&mut disk.clone(), Some(&head)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_record_that_lost_acknowledged_lines_stays_stopped() {
    let disk = MemorySegments::default();
    let failing = Failing::over(&disk);
    let fails = Arc::clone(&failing.fail_sync);
    let log = DecisionLog::over(Box::new(failing), Retention::default(), host_at(5).0).unwrap();
    let _intent = intend(&log, "a").await;
    fails.store(true, Ordering::SeqCst);
    disk.clone().truncate(1, 100).unwrap();
    assert!(log.intend(vec![decision("b")]).await.is_err());
    fails.store(false, Ordering::SeqCst);
    tokio::time::sleep(HEAL_MOST * 3).await;
    assert!(log.fault().unwrap().contains("are gone"), "{:?}", log.fault());
    assert!(log.intend(vec![decision("c")]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn groups_that_queue_up_share_one_sync() {
    let failing = Failing::over(&MemorySegments::default());
    let syncs = Arc::clone(&failing.syncs);
    let log = DecisionLog::over(Box::new(failing), Retention::default(), host_at(5).0).unwrap();
    let before = syncs.load(Ordering::SeqCst);
    let group = |name| log.intend(vec![decision(name)]);
    let (one, two, three) = tokio::join!(group("a"), group("b"), group("c"));
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    assert_eq!(syncs.load(Ordering::SeqCst) - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_left_leaves_nothing_open() {
    let disk = MemorySegments::default();
    let log = open(&disk);
    let mut early = Box::pin(log.intend(vec![decision("a")]));
    tokio::select! {
        biased;
        _ = &mut early => panic!("the writer has not run yet"),
        () = std::future::ready(()) => {}
    }
    // The writer answers, but nobody takes the answer any more.
    tokio::task::yield_now().await;
    drop(early);
    log.close().await;
    assert_eq!(story(&disk), ["start", "intent a", "unknown a"]);
}

#[tokio::test]
async fn files_are_private_and_can_be_verified_in_place() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let log = DecisionLog::open(&dir.path(), Retention::default(), host_at(5).0).unwrap();
    let _open = intend(&log, "a").await;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(dir.path()), mode(dir.path().join("00000001.log"))), (0o700, 0o600));
    let report = verify_chain(&dir.path()).unwrap();
    assert_eq!((report.lines, report.segments, report.open.len()), (2, 1, 1));
}
