//! Does a decision record hold together only as it was written, and does it go on after any torn end?
//!
//! The first byte chooses what the rest is: 0 a segment, 1 what its lines say, chained here. The second is how many of its
//! last bytes are torn off.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_fuzz::{HOST, chained};
use passant_server::record::segments::{MemorySegments, Segments};
use passant_server::record::{ChainReport, DecisionLog, RecordError, Retention, verify_segments};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
}

fuzz_target!(|bytes: &[u8]| {
    let Some(([way, torn], rest)) = bytes.split_first_chunk::<2>() else { return };
    let (segment, lines) = match way % 2 {
        0 => (rest.to_vec(), None),
        _ => {
            let (segment, lines) = chained(rest);
            (segment, Some(lines))
        }
    };
    let mut segments = segments(&segment);
    let whole = verify_segments(&mut segments);
    if let (Some(lines), Ok(report)) = (lines, &whole) {
        assert_eq!((report.lines, report.torn_bytes), (lines, 0));
    }
    if whole.is_ok() {
        reopen(&mut segments, &whole);
    }
    // A crash while the last line was written.
    let len = segment.len().saturating_sub(usize::from(*torn));
    let mut cut = self::segments(&segment[..len]);
    let report = verify_segments(&mut cut);
    if whole.is_ok() {
        // What is left of the torn end may be the start line of a newer server.
        let is_expected = matches!(report, Ok(_) | Err(RecordError::NewerFormat { .. }));
        assert!(is_expected, "a record with its end torn off: {report:?}");
    }
    reopen(&mut cut, &report);
});

/// Opens the record for writing, which adds lines to it and changes none.
fn reopen(segments: &mut MemorySegments, before: &Result<ChainReport, RecordError>) {
    let opened = RUNTIME.with(|runtime| {
        let _inside = runtime.enter();
        let log = DecisionLog::over(Box::new(segments.clone()), Retention::default(), HOST.clone());
        runtime.block_on(async {
            match log {
                Ok(log) => {
                    log.close().await;
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    });
    let Ok(before) = before else { return };
    opened.expect("what holds together can be gone on with");
    let after = verify_segments(segments).expect("it still holds together");
    assert_eq!(
        after.lines,
        before.lines + 1 + before.open.len() as u64,
        "a start, and an unknown for each open intent"
    );
    assert!(after.open.is_empty() && after.torn_bytes == 0);
}

fn segments(segment: &[u8]) -> MemorySegments {
    let mut segments = MemorySegments::default();
    segments.create(1).and_then(|()| segments.append(1, segment)).expect("memory takes everything");
    segments
}
