//! Is everything found that is looked for, and every change of a record noticed?

use super::super::segments::MemorySegments;
use super::super::*;
use super::*;
use crate::state::samples::{at, entry_id, host_at, id};

fn by(caller: &str) -> By {
    By {
        caller: caller.to_owned(),
        method: Some("/s.Entry/BatchCreateEntry".to_owned()),
        from: Some("192.0.2.1:7".to_owned()),
        right: Some("role pay".to_owned()),
    }
}

fn refused(caller: Option<&str>) -> Refused {
    Refused {
        method: "/s.Agent/BanAgent".to_owned(),
        caller: caller.map(str::to_owned),
        from: "192.0.2.2:8".to_owned(),
        reason: "denied".to_owned(),
        why: "agent is banned".to_owned(),
        left_out: 0,
        left_out_of_others: 0,
    }
}

fn decision(serial: &str) -> Decision {
    Decision {
        kind: DecisionKind::X509Svid,
        serial: serial.to_owned(),
        spiffe_id: id("/w"),
        entry: Some((entry_id("e1"), 3)),
        key_hash: [7; 32],
        not_after: at(100),
        caller: "agent spiffe://example.org/spire/agent/x/1".to_owned(),
        reason: "entry e1".to_owned(),
        authority: None,
        at: at(5),
        grounds: None,
    }
}

/// In four seconds: an entry created, one refused and one signed, another deleted; every line in a segment of its own.
async fn record() -> MemorySegments {
    let segments = MemorySegments::default();
    let (host, clock) = host_at(10);
    let retention = Retention { segment_bytes: 1, ..Retention::default() };
    let log = DecisionLog::over(Box::new(segments.clone()), retention, host).unwrap();
    let created = Done::to_entries(&[(entry_id("e1"), id("/w"))], Act::CreateEntries);
    log.note_all(created, by("role pay spiffe://example.org/ci")).await.unwrap();
    clock.set(at(20));
    log.refused(refused(Some("agent spiffe://example.org/spire/agent/x/1")));
    drop(log.intend(vec![decision("0a1b")]).await.unwrap());
    clock.set(at(30));
    log.refused(refused(None));
    log.note(Act::DeleteEntries(vec![entry_id("e2")]), "local uid=0 gid=0".to_owned()).await.unwrap();
    log.close().await;
    segments
}

fn found_in(segments: &MemorySegments, query: &Query) -> Vec<String> {
    let mut told = Vec::new();
    let take = |text: &[u8]| {
        let line: Line = serde_json::from_slice(text).unwrap();
        let is_created = matches!(line.body, Body::Act { act: Act::CreateEntries(_), .. });
        let is_strangers = matches!(&line.body, Body::Refusal(refused) if refused.caller.is_none());
        let name = match Kind::of(&line.body).name() {
            "act" if is_created => "created",
            "act" => "deleted",
            "refusal" if is_strangers => "stranger",
            name => name,
        };
        told.push(name.to_owned());
        ControlFlow::Continue(())
    };
    search(&mut segments.clone(), query, || true, take).unwrap();
    told
}

#[tokio::test]
async fn lines_are_found_by_each_of_their_marks() {
    let segments = record().await;
    let all = [Kind::Act, Kind::Refusal, Kind::Intent].to_vec();
    let base = || Query { kinds: all.clone(), ..Query::default() };
    let text = |text: &str| Some(text.to_owned());
    let own = text("spiffe://example.org/spire/agent/x/1");
    for (query, expected) in [
        (base(), &["created", "refusal", "intent", "stranger", "deleted"][..]),
        (Query { since: Some(at(20)), ..base() }, &["refusal", "intent", "stranger", "deleted"]),
        (Query { since: Some(at(11)), until: Some(at(20)), ..base() }, &["refusal", "intent"]),
        (Query { until: Some(at(19)), ..base() }, &["created"]),
        (Query { kinds: vec![Kind::Refusal], ..base() }, &["refusal", "stranger"]),
        (Query { spiffe_id: text("spiffe://example.org/w"), ..base() }, &["created", "intent"]),
        (Query { spiffe_id: text("spiffe://example.org/ci"), ..base() }, &["created"]),
        (Query { spiffe_id: own, ..base() }, &["refusal", "intent"]),
        (Query { spiffe_id: text("spiffe://example.org/spire/agent/x"), ..base() }, &[]),
        (Query { serial: text("0A:1B"), ..base() }, &["intent"]),
        (Query { serial: text("2587"), ..base() }, &["intent"]),
        (Query { serial: text("0a1c"), ..base() }, &[]),
        (Query { entry: text("e1"), ..base() }, &["created", "intent"]),
        (Query { entry: text("e2"), ..base() }, &["deleted"]),
        (Query { caller: text("uid=0"), ..base() }, &["deleted"]),
        (Query { method: text("BanAgent"), ..base() }, &["refusal", "stranger"]),
        (Query { method: text("BatchCreateEntry"), ..base() }, &["created"]),
        (Query { reason: text("banned"), ..base() }, &["refusal", "stranger"]),
        (Query { reason: text("entry e1"), ..base() }, &["intent"]),
        (Query { newest: Some(2), ..base() }, &["stranger", "deleted"]),
        (Query { newest: Some(3), reason: text("denied"), ..base() }, &["refusal", "stranger"]),
        (Query { newest: Some(0), ..base() }, &[]),
    ] {
        assert_eq!(found_in(&segments, &query), expected, "{query:?}");
    }
}

#[tokio::test]
async fn whoever_has_seen_enough_is_told_no_more() {
    let segments = record().await;
    for newest in [None, Some(100)] {
        let mut lines = 0;
        let query = Query { newest, ..Query::default() };
        let once = |_: &[u8]| {
            lines += 1;
            ControlFlow::Break(())
        };
        search(&mut segments.clone(), &query, || true, once).unwrap();
        assert_eq!(lines, 1);
    }
}

#[tokio::test]
async fn nothing_more_is_read_for_whoever_has_left() {
    let mut segments = record().await;
    // Wanted for so many segments, each of which holds one line at least.
    let until = |segments: usize| {
        let asked = std::cell::Cell::new(0);
        move || asked.replace(asked.get() + 1) < segments
    };
    let all = segments.list().unwrap().len();
    for newest in [None, Some(100)] {
        for left_after in [0, 1, all - 1] {
            let query = Query { newest, ..Query::default() };
            let mut lines = 0;
            let take = |_: &[u8]| {
                lines += 1;
                ControlFlow::Continue(())
            };
            let done = search(&mut segments.clone(), &query, until(left_after), take);
            assert!(matches!(done, Err(RecordError::Unwanted)), "{newest:?} {left_after}");
            assert!(lines <= 2 * left_after, "{newest:?} {left_after}: {lines}");
        }
    }
    let left = verify(&mut segments.clone(), None, until(all - 1));
    assert!(matches!(left, Err(RecordError::Unwanted)), "{left:?}");
    assert!(verify(&mut segments, None, until(all)).is_ok());
}

#[tokio::test]
async fn a_head_kept_elsewhere_shows_that_the_newest_lines_were_cut_off() {
    let segments = record().await;
    let whole = verify(&mut segments.clone(), None, || true).unwrap();
    let (newest, hash) = (whole.head_seq.unwrap(), encoding::from_hex(&whole.head).unwrap());
    let head = Head { seq: newest, hash };
    assert_eq!(head.to_string().parse(), Ok(head));
    assert!(verify(&mut segments.clone(), Some(&head), || true).is_ok());
    // It grows: the head is one of its lines.
    let log = DecisionLog::over(Box::new(segments.clone()), Retention::default(), host_at(40).0).unwrap();
    log.close().await;
    assert!(verify(&mut segments.clone(), Some(&head), || true).is_ok());

    let other = Head { hash: [9; 32], ..head };
    assert!(matches!(verify(&mut segments.clone(), Some(&other), || true), Err(RecordError::OtherChain(_))));

    let mut cut = MemorySegments::default();
    let numbers = segments.clone().list().unwrap();
    for number in &numbers[..numbers.len() - 2] {
        cut.create(*number).unwrap();
        cut.append(*number, &segments.clone().read(*number).unwrap()).unwrap();
    }
    assert!(verify(&mut cut, None, || true).is_ok(), "a record that was cut off holds together");
    assert!(matches!(verify(&mut cut, Some(&head), || true), Err(RecordError::CutOff { .. })));

    let old = Head { seq: 0, hash: [0; 32] };
    let mut left = segments.clone();
    left.remove(numbers[0]).unwrap();
    left.remove(numbers[1]).unwrap();
    assert!(matches!(verify(&mut left, Some(&old), || true), Err(RecordError::NotKept { .. })));
    for text in ["", "@1", "ab@1", &"0".repeat(64), &format!("{}@x", "0".repeat(64))] {
        assert_eq!(text.parse::<Head>(), Err(HeadError), "{text}");
    }
}

#[test]
fn lines_of_the_first_format_are_read() {
    let line = r#"{"seq":4,"prev":"0000000000000000000000000000000000000000000000000000000000000000","at":5,"kind":"act","act":{"delete_entries":["e1"]},"caller":"local uid=0 gid=0"}"#;
    let read: Line = serde_json::from_str(line).unwrap();
    let Body::Act { act, caller, subjects, method, from, right } = read.body.clone() else {
        panic!("{read:?}")
    };
    assert_eq!((act, caller.as_str()), (Act::DeleteEntries(vec![entry_id("e1")]), "local uid=0 gid=0"));
    assert!(subjects.is_empty() && method.is_none() && from.is_none() && right.is_none());
    assert_eq!(serde_json::to_string(&read).unwrap(), line, "and written as they were");
}
