//! How is passant.audit.v1.Audit answered?

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;

use passant_core::{Refusal, UnixTime};
use passant_proto::audit::audit_server::Audit;
use passant_proto::audit::{SearchRequest, SearchResponse, VerifyRequest, VerifyResponse};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, async_trait};

use super::{Api, refuse};
use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::limits::{AUDIT_NEWEST, AUDIT_PIECE, AUDIT_PIECE_WITHIN, STREAM_WAITING};
use crate::record::audit::{self, Kind, Query};
use crate::record::segments::Segments;
use crate::record::{ChainReport, Head, RecordError};

type Out = mpsc::Sender<Result<SearchResponse, Status>>;

#[async_trait]
impl Audit for Api {
    type SearchStream = Pin<Box<dyn Stream<Item = Result<SearchResponse, Status>> + Send>>;

    /// Reads on a thread of its own. Whoever does not read on is left, so that the thread is free for others.
    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let (_, call, request) = request.into_parts();
        let actor = self.auditor(&call)?;
        let query = query(request).map_err(refuse)?;
        let (turn, mut segments) = self.reading()?;
        let (out, stream) = mpsc::channel(STREAM_WAITING);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut sender = Sender { out, runtime, piece: Vec::new(), is_left: false };
            let done = audit::search(&mut *segments, &query, |line| sender.take(line));
            if sender.end(done).is_break() {
                tracing::warn!(caller = %actor, "what was found on record was not read to its end");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type VerifyStream = Pin<Box<dyn Stream<Item = Result<VerifyResponse, Status>> + Send>>;

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        self.auditor(request.extensions())?;
        let head = match request.get_ref().head.as_str() {
            "" => None,
            text => Some(
                text.parse::<Head>().map_err(|error| refuse(Refusal::invalid(format!("head: {error}"))))?,
            ),
        };
        let (turn, mut segments) = self.reading()?;
        let (out, stream) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let verified = audit::verify(&mut *segments, head.as_ref());
            let answer = verified.map_or_else(told_fault, |report| Ok(told(&report)));
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
    fn reading(&self) -> Result<(OwnedSemaphorePermit, Box<dyn Segments>), Status> {
        let turn = Arc::clone(&self.audits).try_acquire_owned().map_err(|_| {
            refuse(Refusal::exhausted(
                "the record is being read by as many as may be; wait until one of them is done",
            ))
        })?;
        let segments = self
            .record
            .reader()
            .ok_or_else(|| refuse(Refusal::unimplemented("this server keeps no record that can be read")))?;
        Ok((turn, segments))
    }
}

/// Sends lines in pieces.
struct Sender {
    out: Out,
    runtime: Handle,
    piece: Vec<u8>,
    is_left: bool,
}

impl Sender {
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
        if self.is_left {
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

fn told(report: &ChainReport) -> VerifyResponse {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    VerifyResponse {
        fault: String::new(),
        segments: count(report.segments),
        lines: report.lines,
        first_seq: report.first_seq,
        head: report.head_seq.map(|seq| format!("{}@{seq}", report.head)).unwrap_or_default(),
        open: count(report.open.len()),
        torn_bytes: count(report.torn_bytes),
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
        RecordError::Stopped { .. } | RecordError::Closed | RecordError::Io { .. } => {
            Err(refuse(Refusal::internal(error)))
        }
    }
}
