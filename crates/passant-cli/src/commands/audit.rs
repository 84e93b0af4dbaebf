//! `passant audit`: search and verify the decision record, of a running server or in a directory.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, anyhow};
use passant_core::UnixTime;
use passant_proto::audit::{SearchRequest, VerifyRequest, VerifyResponse};
use passant_server::record::audit::{self, Kind, Query};
use passant_server::record::{Head, HeadError, RecordError};
use serde_json::{Value, json};

use crate::args::{Audit, AuditSearch, RecordKind, ServerSocket, wrong};
use crate::connect::{Server, refused};
use crate::plain::{self, Plain};
use crate::render::{Output, fields};

/// Things of one act that people are shown; programs get all.
const SHOWN: usize = 3;

pub(crate) async fn run(command: Audit, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    match command {
        Audit::Search(args) => search(*args, socket, out).await,
        Audit::Verify { record, head } => {
            let head = head.map(|text| text.parse()).transpose();
            let head =
                head.map_err(|error: HeadError| wrong(&["audit", "verify"], format!("--head: {error}")))?;
            let report = match record {
                Some(dir) => verify_here(&dir, head.as_ref())?,
                None => verify_there(socket, head).await?,
            };
            told(&report, out)
        }
    }
}

const fn kind(kind: RecordKind) -> Kind {
    match kind {
        RecordKind::Start => Kind::Start,
        RecordKind::Intent => Kind::Intent,
        RecordKind::Outcome => Kind::Outcome,
        RecordKind::Unknown => Kind::Unknown,
        RecordKind::Act => Kind::Act,
        RecordKind::Refusal => Kind::Refusal,
    }
}

async fn search(args: AuditSearch, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let limit = usize::try_from(args.limit)?;
    let mut printer = Printer { out, lines: 0 };
    match &args.record {
        Some(dir) => {
            let query = query(&args, limit);
            let mut printed = Ok(());
            let take = |line: &[u8]| {
                printed = printer.print(line);
                if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            audit::search(&mut *audit::open(dir)?, &query, || true, take)?;
            printed?;
        }
        None => {
            let server = Server::connect(socket).await?;
            let mut found = server.audit().search(request(args)).await.map_err(refused)?.into_inner();
            while let Some(piece) = found.message().await.map_err(refused)? {
                for line in piece.lines.split_inclusive(|byte| *byte == b'\n') {
                    printer.print(line)?;
                }
            }
        }
    }
    printer.end(limit)
}

/// Prints lines as they come.
struct Printer<'a> {
    out: &'a mut Output,
    lines: usize,
}

impl Printer<'_> {
    fn print(&mut self, line: &[u8]) -> io::Result<()> {
        self.lines += 1;
        if self.out.is_json() {
            return self.out.writer().write_all(line);
        }
        let text = match serde_json::from_slice(line) {
            Ok(line) => for_people(&line),
            Err(_) => String::from_utf8_lossy(line).into_owned(),
        };
        writeln!(Plain(self.out.writer()), "{}", plain::line(&text))
    }

    fn end(self, limit: usize) -> anyhow::Result<()> {
        self.out.writer().flush()?;
        self.out.announce(|to| match self.lines {
            0 => writeln!(to, "Nothing on record is like that."),
            lines if lines == limit => {
                writeln!(to, "\nThese are the newest {limit}; --limit 0 prints all.")
            }
            _ => Ok(()),
        })
    }
}

fn query(args: &AuditSearch, limit: usize) -> Query {
    Query {
        since: args.since,
        until: args.until,
        kinds: args.kinds.iter().copied().map(kind).collect(),
        spiffe_id: args.spiffe_id.as_ref().map(ToString::to_string),
        serial: args.serial.clone(),
        entry: args.entry.as_ref().map(ToString::to_string),
        caller: args.caller.clone(),
        method: args.method.clone(),
        reason: args.reason.clone(),
        newest: (limit > 0).then_some(limit),
    }
}

fn request(args: AuditSearch) -> SearchRequest {
    let text = |text: Option<String>| text.unwrap_or_default();
    SearchRequest {
        since: args.since.map_or(0, UnixTime::secs),
        until: args.until.map_or(0, UnixTime::secs),
        kinds: args.kinds.into_iter().map(|of| kind(of).name().to_owned()).collect(),
        spiffe_id: text(args.spiffe_id.map(|id| id.to_string())),
        serial: text(args.serial),
        entry_id: text(args.entry.map(|id| id.to_string())),
        caller: text(args.caller),
        method: text(args.method),
        reason: text(args.reason),
        newest: args.limit,
    }
}

/// One line of the record on one line for people.
fn for_people(line: &Value) -> String {
    let at = line["at"].as_i64().map_or_else(String::new, |at| UnixTime::from_secs(at).to_string());
    let kind = line["kind"].as_str().unwrap_or("?");
    format!("{at}  {:>8}  {kind:<7}  {}", line["seq"], says(kind, line))
}

fn says(kind: &str, line: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match kind {
        "intent" => {
            let decision = &line["decision"];
            let not_after = decision["not_after"].as_i64().map(UnixTime::from_secs);
            format!(
                "{} {}, serial {}, until {}, for {}: {}",
                text(&decision["kind"]),
                text(&decision["spiffe_id"]),
                text(&decision["serial"]),
                not_after.map_or_else(String::new, |at| at.to_string()),
                text(&decision["caller"]),
                text(&decision["reason"]),
            )
        }
        "outcome" => format!("of {}: {}", line["of"], text(&line["outcome"])),
        "unknown" => format!("of {}, serial {}", line["of"], text(&line["serial"])),
        "start" => format!("format {}", line["format"]),
        "act" => {
            let (name, about) = line["act"].as_object().and_then(|act| act.iter().next()).unzip();
            let about = about.map_or_else(String::new, |about| shortened(about).to_string());
            let mut says = format!("{} {about}", name.map_or("?", String::as_str));
            if let Some(subjects) = line.get("subjects") {
                says = format!("{says} of {}", shortened(subjects));
            }
            says = format!("{says}, by {}", text(&line["caller"]));
            for (word, field) in [("as", "right"), ("from", "from"), ("over", "method")] {
                if let Some(value) = line.get(field) {
                    says = format!("{says}, {word} {}", text(value));
                }
            }
            says
        }
        "refusal" => {
            let caller = line.get("caller").map_or_else(|| "a stranger".to_owned(), text);
            let mut says = format!(
                "{} to {caller}, from {}: {}: {}",
                text(&line["method"]),
                text(&line["from"]),
                text(&line["reason"]),
                text(&line["why"])
            );
            if let Some(left_out) = line.get("left_out") {
                says = format!("{says} ({left_out} more before this are not on record)");
            }
            if let Some(left_out) = line.get("left_out_of_others") {
                says = format!("{says} ({left_out} of other callers are not on record)");
            }
            says
        }
        _ => line.to_string(),
    }
}

/// The first of many things.
fn shortened(value: &Value) -> Value {
    let Some(some) = value.as_array().filter(|some| some.len() > SHOWN) else { return value.clone() };
    let more = json!(format!("and {} more", some.len() - SHOWN));
    some.iter().take(SHOWN).cloned().chain([more]).collect()
}

fn verify_here(dir: &Path, head: Option<&Head>) -> anyhow::Result<VerifyResponse> {
    match audit::verify(&mut *audit::open(dir)?, head, || true) {
        Ok(report) => Ok(report.into()),
        Err(error @ RecordError::Io { .. }) => Err(error.into()),
        Err(error) => Ok(VerifyResponse { fault: error.to_string(), ..VerifyResponse::default() }),
    }
}

async fn verify_there(socket: &ServerSocket, head: Option<Head>) -> anyhow::Result<VerifyResponse> {
    let request = VerifyRequest { head: head.map(|head| head.to_string()).unwrap_or_default() };
    let server = Server::connect(socket).await?;
    let mut answer = server.audit().verify(request).await.map_err(refused)?.into_inner();
    answer.message().await.map_err(refused)?.context("the server ended its answer before it was done")
}

/// Prints what was found, and fails if the record does not hold together.
fn told(report: &VerifyResponse, out: &mut Output) -> anyhow::Result<()> {
    let VerifyResponse { fault, segments, lines, first_seq, head, open, torn_bytes } = report;
    if !fault.is_empty() {
        out.fail(anyhow!("{fault}"));
        return out.print(|| json!({ "fault": fault }), |_| Ok(()));
    }
    out.print(
        || {
            json!({
                "fault": null, "segments": segments, "lines": lines, "first_seq": first_seq, "head": head,
                "open": open, "torn_bytes": torn_bytes,
            })
        },
        |to| {
            writeln!(to, "The record holds together.\n")?;
            fields(
                to,
                &[
                    ("segments", segments),
                    ("lines", lines),
                    ("oldest line", first_seq),
                    ("head", head),
                    ("intents open", open),
                    ("torn bytes", torn_bytes),
                ],
            )?;
            writeln!(
                to,
                "\nKeep the head somewhere else: the next check with --head shows whether lines are missing."
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_with_who_what_from_where_and_why() {
        let act = json!({
            "seq": 7, "prev": "", "at": 1_790_000_000, "kind": "act",
            "act": { "delete_entries": ["a", "b", "c", "d", "e"] }, "caller": "role pay spiffe://example.org/ci",
            "subjects": ["spiffe://example.org/w"], "method": "/s.Entry/BatchDeleteEntry",
            "from": "192.0.2.1:7", "right": "role pay",
        });
        let told = for_people(&act);
        for part in [
            "2026-09-21T14:13:20Z",
            "7  act",
            "delete_entries",
            "and 2 more",
            "spiffe://example.org/w",
            "by role pay spiffe://example.org/ci",
            "from 192.0.2.1:7",
            "over /s.Entry/BatchDeleteEntry",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let refusal = json!({
            "seq": 8, "prev": "", "at": 1_790_000_000, "kind": "refusal", "method": "/s.Agent/BanAgent",
            "from": "192.0.2.1:7", "reason": "denied", "why": "no right", "left_out": 3,
            "left_out_of_others": 9,
        });
        let told = for_people(&refusal);
        assert!(told.contains("a stranger") && told.contains("denied: no right (3 more"), "{told}");
        assert!(told.contains("(9 of other callers"), "{told}");
    }
}
