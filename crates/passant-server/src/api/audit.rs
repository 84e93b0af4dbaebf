//! How is passant.audit.v1.Audit answered?

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use passant_core::{Refusal, UnixTime};
use passant_proto::audit::audit_server::Audit;
use passant_proto::audit::{SearchRequest, SearchResponse, VerifyRequest, VerifyResponse};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, async_trait};

use super::{Api, refuse};
use crate::access::{Target, Verb, Who};
use crate::caller::Actor;
use crate::limits::{ASK_AGAIN, AUDIT_NEWEST, AUDIT_PIECE, AUDIT_PIECE_WITHIN, AUDITS, STREAM_WAITING};
use crate::quota::Caller;
use crate::record::audit::{self, Kind, Query};
use crate::record::segments::Segments;
use crate::record::{ChainReport, Head, Healings, RecordError};

type Out = mpsc::Sender<Result<SearchResponse, Status>>;

#[async_trait]
impl Audit for Api {
    type SearchStream = Pin<Box<dyn Stream<Item = Result<SearchResponse, Status>> + Send>>;

    /// Reads on a thread of its own. Whoever does not read on, or leaves, is left, so that the thread is free for others.
    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let (_, call, request) = request.into_parts();
        let actor = self.auditor(&call)?;
        let query = query(request).map_err(refuse)?;
        let (turn, mut segments) = self.reading(&actor)?;
        let (out, stream) = mpsc::channel(STREAM_WAITING);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let sender = Sender { _turn: turn, out, runtime, piece: Vec::new(), is_left: false };
            if sender.send_all(&mut *segments, &query).is_break() {
                tracing::warn!(caller = %actor, "what was found on record was not read to its end");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type VerifyStream = Pin<Box<dyn Stream<Item = Result<VerifyResponse, Status>> + Send>>;

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let actor = self.auditor(request.extensions())?;
        let head = match request.get_ref().head.as_str() {
            "" => None,
            text => Some(
                text.parse::<Head>().map_err(|error| refuse(Refusal::invalid(format!("head: {error}"))))?,
            ),
        };
        let (turn, mut segments) = self.reading(&actor)?;
        let (out, stream) = mpsc::channel(1);
        let (record, runtime) = (self.record.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let before = runtime.block_on(record.sync());
            let verified = verify_for(&out, &mut *segments, head.as_ref());
            // All that was read lasts now, and so does the head.
            let answer = settled(verified, before, runtime.block_on(record.sync()));
            // Whoever has the answer may ask again at once.
            drop(turn);
            if out.blocking_send(answer).is_err() {
                tracing::debug!("nobody waits any more for a verified record");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Api {
    fn auditor(&self, call: &Extensions) -> Result<Actor, Status> {
        let actor = self.actor(call)?;
        actor.may(Verb::AuditRead, &Target::Whole, &self.journal.state()).map_err(refuse)?;
        Ok(actor)
    }

    /// A turn to read the record, and the record.
    fn reading(&self, actor: &Actor) -> Result<(Turn, Box<dyn Segments>), Status> {
        let caller = match actor.who() {
            Who::Bearer(id) => Caller::Svid(id),
            Who::User { uid, .. } => Caller::User(uid),
        };
        let turn = self.auditors.turn(caller, actor.is_operator()).map_err(refuse)?;
        let segments = self
            .record
            .reader()
            .ok_or_else(|| refuse(Refusal::unimplemented("this server keeps no record that can be read")))?;
        Ok((turn, segments))
    }
}

/// Who reads the record now: nobody twice at a time.
#[derive(Debug, Default)]
pub(crate) struct Auditors(Mutex<BTreeSet<Caller>>);

/// Somebody's reading of the record; over when dropped.
#[derive(Debug)]
struct Turn {
    auditors: Arc<Auditors>,
    of: Caller,
}

impl Auditors {
    fn turn(self: &Arc<Self>, of: Caller, is_operator: bool) -> Result<Turn, Refusal> {
        let most = if is_operator { AUDITS } else { AUDITS - 1 };
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let why = if reading.contains(&of) {
            "the caller reads the record already; wait until that is done"
        } else if reading.len() >= most {
            "the record is being read by as many as may be; wait until one of them is done"
        } else {
            reading.insert(of.clone());
            return Ok(Turn { auditors: Arc::clone(self), of });
        };
        Err(Refusal::exhausted(why).retry_in(ASK_AGAIN))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.auditors.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.of);
    }
}

/// Sends lines in pieces.
struct Sender {
    /// Before `out`: whoever has read to the end may ask again at once.
    _turn: Turn,
    out: Out,
    runtime: Handle,
    piece: Vec<u8>,
    is_left: bool,
}

impl Sender {
    /// Sends what is found, as long as somebody is there. Breaks if nobody reads on.
    fn send_all(mut self, segments: &mut dyn Segments, query: &Query) -> ControlFlow<()> {
        let out = self.out.clone();
        let done = audit::search(segments, query, || !out.is_closed(), |line| self.take(line));
        self.end(done)
    }

    fn take(&mut self, line: &[u8]) -> ControlFlow<()> {
        if !self.piece.is_empty() && self.piece.len() + line.len() > AUDIT_PIECE {
            self.send()?;
        }
        self.piece.extend_from_slice(line);
        ControlFlow::Continue(())
    }

    fn send(&mut self) -> ControlFlow<()> {
        let lines = std::mem::take(&mut self.piece);
        self.put(Ok(SearchResponse { lines }))
    }

    fn put(&mut self, message: Result<SearchResponse, Status>) -> ControlFlow<()> {
        if self.runtime.block_on(self.out.send_timeout(message, AUDIT_PIECE_WITHIN)).is_err() {
            self.is_left = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Sends what is left, and why the search has failed. Breaks if nobody reads on.
    fn end(mut self, done: Result<(), RecordError>) -> ControlFlow<()> {
        if self.is_left || matches!(done, Err(RecordError::Unwanted)) {
            return ControlFlow::Break(());
        }
        if !self.piece.is_empty() {
            self.send()?;
        }
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => self.put(Err(refuse(Refusal::internal(error)))),
        }
    }
}

fn query(request: SearchRequest) -> Result<Query, Refusal> {
    let SearchRequest { since, until, kinds, spiffe_id, serial, entry_id, caller, method, reason, newest } =
        request;
    let kind = |name: &String| {
        let names = Kind::ALL.map(Kind::name).join(", ");
        Kind::parse(name).ok_or_else(|| Refusal::invalid(format!("kind \"{name}\" is none of {names}")))
    };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let newest = usize::try_from(newest).unwrap_or(usize::MAX);
    if newest > AUDIT_NEWEST {
        return Err(Refusal::invalid(format!(
            "newest is at most {AUDIT_NEWEST}; leave it out to get all, or narrow the time"
        )));
    }
    Ok(Query {
        since: (since != 0).then(|| UnixTime::from_secs(since)),
        until: (until != 0).then(|| UnixTime::from_secs(until)),
        kinds: kinds.iter().map(kind).collect::<Result<_, _>>()?,
        spiffe_id: text(spiffe_id),
        serial: text(serial),
        entry: text(entry_id),
        caller: text(caller),
        method: text(method),
        reason: text(reason),
        newest: (newest != 0).then_some(newest),
    })
}

/// Verifies as long as somebody waits for it.
fn verify_for<T>(
    out: &mpsc::Sender<T>,
    segments: &mut dyn Segments,
    head: Option<&Head>,
) -> Result<ChainReport, RecordError> {
    audit::verify(segments, head, || !out.is_closed())
}

/// The answer, with what the record said of itself before and after it was read. A head is handed out only if its line lasts:
/// else it would accuse the record of what a crash has done. That lines are gone is told at any time.
fn settled(
    verified: Result<ChainReport, RecordError>,
    before: Result<Healings, RecordError>,
    after: Result<Healings, RecordError>,
) -> Result<VerifyResponse, Status> {
    let unsure =
        "the record fails, or failed while it was read: its newest lines may not last; verify it again";
    match (verified, before, after) {
        (_, Ok(before), Ok(after)) if before != after => Err(refuse(Refusal::unavailable(unsure))),
        (Ok(report), Ok(_), Ok(_)) => Ok(report.into()),
        (Ok(_), Err(error), _) | (Ok(_), _, Err(error)) => {
            Err(refuse(Refusal::unavailable(unsure).because(error)))
        }
        (Err(error), ..) => told_fault(error),
    }
}

/// The answer of a record that holds together.
impl From<ChainReport> for VerifyResponse {
    fn from(report: ChainReport) -> Self {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Self {
            fault: String::new(),
            segments: count(report.segments),
            lines: report.lines,
            first_seq: report.first_seq,
            head: report.head_seq.map(|seq| format!("{}@{seq}", report.head)).unwrap_or_default(),
            open: count(report.open.len()),
            torn_bytes: count(report.torn_bytes),
        }
    }
}

/// A record that does not hold together is an answer; one that cannot be read is none.
fn told_fault(error: RecordError) -> Result<VerifyResponse, Status> {
    match error {
        RecordError::Broken { .. }
        | RecordError::NewerFormat { .. }
        | RecordError::CutOff { .. }
        | RecordError::OtherChain(_)
        | RecordError::NotKept { .. } => {
            Ok(VerifyResponse { fault: error.to_string(), ..VerifyResponse::default() })
        }
        RecordError::Unwanted => Err(Status::cancelled(error.to_string())),
        RecordError::Stopped { .. } | RecordError::Closed | RecordError::Io { .. } => {
            Err(refuse(Refusal::internal(error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use passant_core::{Host, Reason};
    use tonic::Code;

    use super::*;
    use crate::record::segments::MemorySegments;
    use crate::record::{DecisionLog, Retention};

    fn user(uid: u32) -> Caller {
        Caller::User(uid)
    }

    #[test]
    fn a_caller_has_one_turn_and_the_last_is_for_operators() {
        let auditors = Arc::new(Auditors::default());
        let first = auditors.turn(user(1), false).unwrap();
        for is_operator in [false, true] {
            let again = auditors.turn(user(1), is_operator).unwrap_err();
            assert_eq!((again.reason, again.retry_after), (Reason::Exhausted, Some(ASK_AGAIN)));
        }
        let others: Vec<Turn> = (2..).map_while(|uid| auditors.turn(user(uid), false).ok()).collect();
        assert_eq!(others.len(), AUDITS - 2);
        let operator = auditors.turn(user(0), true).unwrap();
        let late = auditors.turn(user(100), true).unwrap_err();
        assert_eq!((late.reason, late.retry_after), (Reason::Exhausted, Some(ASK_AGAIN)));
        drop((first, operator));
        auditors.turn(user(1), false).unwrap();
    }

    #[tokio::test]
    async fn who_has_left_is_read_for_no_more() {
        let segments = MemorySegments::default();
        let log =
            DecisionLog::over(Box::new(segments.clone()), Retention::default(), Host::system()).unwrap();
        log.close().await;
        let (out, stream) = mpsc::channel::<()>(1);
        drop(stream);
        let left = verify_for(&out, &mut segments.clone(), None);
        assert!(matches!(left, Err(RecordError::Unwanted)), "{left:?}");
        // Nothing is found that could be sent: only asking shows that nobody is there.
        let query = Query { kinds: vec![Kind::Refusal], ..Query::default() };
        let (out, stream) = mpsc::channel(1);
        let search = |out, mut segments: MemorySegments| {
            let (query, runtime) = (query.clone(), Handle::current());
            tokio::task::spawn_blocking(move || {
                let turn = Arc::<Auditors>::default().turn(Caller::User(0), true).unwrap();
                let sender = Sender { _turn: turn, out, runtime, piece: Vec::new(), is_left: false };
                sender.send_all(&mut segments, &query)
            })
        };
        let found = search(out.clone(), segments.clone()).await.unwrap();
        assert!(found.is_continue());
        drop(stream);
        assert!(search(out, segments).await.unwrap().is_break());
    }

    #[tokio::test]
    async fn a_head_is_told_only_of_a_record_that_has_worked_all_the_while() {
        let segments = MemorySegments::default();
        let log =
            DecisionLog::over(Box::new(segments.clone()), Retention::default(), Host::system()).unwrap();
        let once = log.sync().await.unwrap();
        log.close().await;
        let report = || audit::verify(&mut segments.clone(), None, || true);
        let broken = || {
            let (place, what) = (String::new(), String::new());
            Err(RecordError::Broken { place, line: 1, what })
        };
        assert!(settled(report(), Ok(once), Ok(once)).unwrap().head.ends_with("@0"));
        assert!(!settled(broken(), Ok(once), Ok(once)).unwrap().fault.is_empty());
        let stopped = || Err(RecordError::Closed);
        for (before, after) in [
            (stopped(), stopped()),
            (stopped(), Ok(once)),
            (Ok(once), stopped()),
            (Ok(once), Ok(once.and_one())),
        ] {
            assert_eq!(settled(report(), before, after).unwrap_err().code(), Code::Unavailable);
        }
        assert!(!settled(broken(), stopped(), stopped()).unwrap().fault.is_empty(), "it is told anyway");
    }
}
