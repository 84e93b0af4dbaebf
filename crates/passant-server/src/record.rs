//! What was signed, for whom and why? Nothing is signed before the answer is on disk.
//!
//! The decision record is one chain of JSON lines per server, in segments (see [`chain`] for the lines and
//! [`segments`] for the files). An [`Intent`] is made only here, and only once its line is durable; what signs takes
//! an `Intent`, so that nothing can be signed without one. The outcome is written later and is not waited for. An
//! intent without outcome becomes `unknown`, at the latest when the server starts again, and counts as issued.
//!
//! A write that fails stops all signing. The newest segment is then opened again, first at once and later after growing
//! pauses: what was not acknowledged is cut off, and the chain goes on with what became of the intents meanwhile.
//!
//! Beside intents the record holds what administrators did ([`Act`]) and whom the server refused ([`Refused`]).
//!
//! The chain shows whether lines between two known ones were changed or taken out. It does not show that the newest
//! lines were cut off: for that, keep the head that [`verify_chain`] reports somewhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::limits::{RECORD_BATCH, RECORD_ITEMS, RECORD_QUEUE};
use passant_core::{EntryId, Host, Instance, SpiffeId, Stop, StopReason, StopTarget, TrustDomain, UnixTime};
use passant_daemon::exit::with_causes;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::encoding;
use crate::state::authority::{AuthorityId, AuthorityKind};
use crate::state::change::{Lineage, Revision};
use crate::writer::{self, Next, Pauses, Place};

pub mod audit;
pub mod chain;
#[cfg(test)]
mod contract;
pub(crate) mod history;
mod line;
pub(crate) mod metered;
pub(crate) mod refusals;
pub mod segments;

use chain::{Body, Chain};
pub use chain::{Head, HeadError};
use segments::{FileSegments, Segments};

/// What was done by hand. Of some of it only state remembers, so that a state restored from before can be told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// The agent of a node was banned.
    BanAgent(SpiffeId),
    /// Agents were banned here since another server of the trust domain had banned them.
    BanAgents(Vec<SpiffeId>),
    /// A node was evicted, with the join token it spent and that token's alias entry.
    EvictAgent(SpiffeId),
    /// Agents that another server of the trust domain attested were taken over, or what is known of them was renewed.
    AdoptAgents(Vec<SpiffeId>),
    /// Agents that were taken over, and never came, were forgotten.
    ReleaseAgents(Vec<SpiffeId>),
    /// Authorities that had been appended were taken out of the bundle: X.509 ones by the IDs that their keys make, JWT ones
    /// by their key IDs.
    RemoveAuthorities {
        /// X.509 authorities.
        x509: Vec<AuthorityId>,
        /// JWT authorities.
        jwt: Vec<String>,
    },
    /// Registration entries were deleted.
    DeleteEntries(Vec<EntryId>),
    /// Bundles of foreign trust domains were made or replaced by hand.
    SetBundles(Vec<TrustDomain>),
    /// Bundles of foreign trust domains were deleted.
    DeleteBundles(Vec<TrustDomain>),
    /// Federation with trust domains was ended; their bundles were deleted with it.
    EndFederation(Vec<TrustDomain>),
    /// An authority was made and published; one that was prepared before made way.
    PrepareAuthority(AuthorityKind, AuthorityId),
    /// A prepared authority began to sign.
    ActivateAuthority(AuthorityKind, AuthorityId),
    /// An authority was declared untrustworthy.
    TaintAuthority(AuthorityKind, AuthorityId),
    /// An authority was taken out of the bundle: nothing that it signed verifies any more.
    RevokeAuthority(AuthorityKind, AuthorityId),
    /// Registration entries were created.
    CreateEntries(Vec<EntryId>),
    /// Registration entries were changed.
    UpdateEntries(Vec<EntryId>),
    /// A join token was made. Nothing of the token itself is on record: it may be one that can be guessed.
    CreateJoinToken {
        /// The SPIFFE ID that the node will stand for beside its own, if any.
        alias: Option<SpiffeId>,
        /// Until when it can be spent.
        expires_at: UnixTime,
    },
    /// Authorities of somebody else went into the own bundle: X.509 ones by the IDs that their keys make, JWT ones by their
    /// key IDs.
    AppendAuthorities {
        /// X.509 authorities.
        x509: Vec<AuthorityId>,
        /// JWT authorities.
        jwt: Vec<String>,
    },
    /// Federation with trust domains was begun.
    CreateFederation(Vec<Federated>),
    /// From where the bundles of trust domains are fetched was changed.
    UpdateFederation(Vec<Federated>),
    /// The bundle of a foreign trust domain was fetched at once.
    RefreshBundle(TrustDomain),
    /// The server logs as much as this until it is told otherwise.
    SetLogLevel(String),
    /// The server logs again what its configuration says.
    ResetLogLevel(String),
    /// A backup of the state was asked for, and begun.
    SendBackup {
        /// The revision at which the state stood.
        revision: Revision,
    },
    /// Something was stopped: from then on nothing was minted for it.
    Stop(Arc<Stop>),
    /// A stop was ended.
    Resume {
        /// What had been stopped.
        target: StopTarget,
        /// Which stop of it.
        stop_id: String,
        /// Why it was ended.
        reason: StopReason,
    },
    /// State was restored from a backup: what was done before it and after the backup is in the state only as far as
    /// this record tells of it.
    Restore {
        /// The second from which on the backup knows of nothing.
        made_at: UnixTime,
        /// The revision at which the restored store began.
        revision: Revision,
        /// Its lineage.
        lineage: Lineage,
    },
}

/// From where the bundle of a trust domain is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Federated {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// Its endpoint.
    pub url: String,
    /// How the endpoint proves to be the right one.
    pub profile: String,
}

/// An act with the SPIFFE IDs of what it names, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What was done.
    pub act: Act,
    /// SPIFFE IDs that it concerns; of entries in the order in which the act names them.
    pub subjects: Vec<SpiffeId>,
}

impl Done {
    /// What was done to `entries`, in as many acts as it takes so that no line is too long.
    pub fn to_entries(entries: &[(EntryId, SpiffeId)], act: impl Fn(Vec<EntryId>) -> Act) -> Vec<Self> {
        let part = |part: &[(EntryId, SpiffeId)]| Self {
            act: act(part.iter().map(|(id, _)| id.clone()).collect()),
            subjects: part.iter().map(|(_, subject)| subject.clone()).collect(),
        };
        entries.chunks(RECORD_ITEMS).map(part).collect()
    }

    /// What was done to `things`, in as many acts as it takes so that no line is too long.
    pub fn to_each<T: Clone>(things: &[T], act: impl Fn(Vec<T>) -> Act) -> Vec<Self> {
        things.chunks(RECORD_ITEMS).map(|part| act(part.to_vec()).into()).collect()
    }
}

impl From<Act> for Done {
    fn from(act: Act) -> Self {
        Self { act, subjects: Vec::new() }
    }
}

/// Who had something done, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct By {
    /// Who, as far as it was verified.
    pub caller: String,
    /// The gRPC method that was called, as in `/package.Service/Method`; `None` if it was done without one.
    pub method: Option<String>,
    /// From where: an address and port, or the operators' socket.
    pub from: Option<String>,
    /// By which right.
    pub right: Option<String>,
}

impl From<String> for By {
    fn from(caller: String) -> Self {
        Self { caller, ..Self::default() }
    }
}

/// A call that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The gRPC method, as in `/package.Service/Method`, cut if it is too long to be one.
    pub method: String,
    /// Who called, as far as it was verified; `None` for strangers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// From where: an address and port, or the operators' socket.
    pub from: String,
    /// The kind of refusal: `denied`, `unauthenticated` or `exhausted`.
    pub reason: String,
    /// What the caller was told, and behind a colon what it was not told; cut if it is long.
    pub why: String,
    /// Refusals of the same caller (of all strangers, for a stranger) since the line before that are not on record.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// The same of callers that are not counted apart, since there were too many: since any line of a caller before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out_of_others: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One thing that is about to be signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What is signed.
    pub kind: DecisionKind,
    /// The serial number in hex, or the `jti` or another random name of a token; unique.
    pub serial: String,
    /// The subject.
    pub spiffe_id: SpiffeId,
    /// The registration entry that allows it, with its revision; `None` where no entry is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<(EntryId, u64)>,
    /// SHA-256 of the SPKI (DER) that the signature binds; of the subject's SPIFFE ID for a token, which binds none.
    #[serde(with = "encoding::hex")]
    pub key_hash: [u8; 32],
    /// When it ends.
    pub not_after: UnixTime,
    /// Who asked, as far as it was verified.
    pub caller: String,
    /// Why it was allowed.
    pub reason: String,
    /// The authority that signs; `None` for a self-signed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<AuthorityId>,
    /// When it was decided.
    pub at: UnixTime,
    /// On what grounds an agent asked; `None` where no agent asks for a workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grounds: Option<Grounds>,
}

/// On what grounds an agent has an SVID minted, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grounds {
    /// It did not say: SPIRE's protocol has no place for it.
    Untold,
    /// Nobody had asked it yet.
    Prefetched,
    /// A process had asked, which has all selectors of the entry.
    Attested {
        /// The process.
        instance: Instance,
        /// The workload attestors that found it out.
        attestors: Vec<String>,
        /// When, by the agent's clock.
        at: UnixTime,
    },
}

/// What a signature makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// The X509-SVID of a workload.
    X509Svid,
    /// The JWT-SVID of a workload.
    JwtSvid,
    /// The X509-SVID of an agent.
    NodeSvid,
    /// The server's own X509-SVID.
    ServerSvid,
    /// An X.509 authority.
    X509Authority,
    /// A JWT authority.
    JwtAuthority,
    /// The X.509 authority of a server below this one.
    DownstreamX509Ca,
}

/// What became of an intent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was signed.
    Signed,
    /// It was not signed, and never will be under this intent; why.
    NotSigned(String),
}

/// A decision that is durably on record: the permission to sign it, once.
///
/// Made only by [`DecisionLog::intend`] and not to be cloned. Dropped without an outcome it becomes `unknown`.
#[derive(Debug)]
pub struct Intent {
    decision: Arc<Decision>,
    receipt: Receipt,
}

/// What is left of an [`Intent`] once it was used: the duty to say what became of it.
#[derive(Debug)]
pub struct Receipt {
    seq: u64,
    /// Taken when the outcome is told.
    queue: Option<mpsc::UnboundedSender<Message>>,
}

impl Intent {
    /// What may be signed.
    pub fn decision(&self) -> &Arc<Decision> {
        &self.decision
    }

    /// Uses the intent up: keep the receipt for [`DecisionLog::outcome`].
    pub fn into_receipt(self) -> Receipt {
        self.receipt
    }
}

impl Receipt {
    /// The number of the intent's line.
    pub const fn seq(&self) -> u64 {
        self.seq
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            // Fails only when the writer has gone: then the next start writes `unknown`.
            drop(queue.send(Message::Unknown { of: self.seq }));
        }
    }
}

/// How much of the record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// A segment that has reached this size in bytes is ended, and a new one begun.
    pub segment_bytes: u64,
    /// Ended segments are removed, oldest first, while all together are larger than this.
    pub keep_bytes: u64,
    /// Ended segments are removed once their newest line is older than this.
    pub keep_for: Duration,
}

impl Default for Retention {
    /// Segments of 64 MiB, 2 GiB in all (about four million decisions), 400 days.
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            keep_bytes: 2 << 30,
            keep_for: Duration::from_secs(400 * 24 * 60 * 60),
        }
    }
}

/// Why the decision record cannot be used, so that nothing may be signed.
#[derive(Debug, Error)]
pub enum RecordError {
    /// A write failed. Nothing more is taken until the record was opened again, which is tried for as long as it takes.
    #[error("decision record has failed ({why}): nothing is signed until it works again")]
    Stopped {
        /// The failure.
        why: Arc<String>,
    },
    /// The record is closed.
    #[error("decision record is closed")]
    Closed,
    /// A line is not what follows from the one before it.
    #[error(
        "decision record {place} is broken at line {line} ({what}): keep the directory as evidence, move it away, \
         and a new chain begins"
    )]
    Broken {
        /// The segment.
        place: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A later version of this program wrote it.
    #[error(
        "decision record {place} has format {found}, but this version reads formats up to {known}: run the newer version"
    )]
    NewerFormat {
        /// The segment.
        place: String,
        /// The format that was found.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },
    /// A head that was kept elsewhere is no longer in the chain: newest lines were cut off.
    #[error(
        "decision record is cut off: line {} is missing, the newest line is {}",
        .kept.seq,
        .newest.map_or_else(|| "none".to_owned(), |newest| newest.to_string())
    )]
    CutOff {
        /// The head.
        kept: Head,
        /// The number of the newest line.
        newest: Option<u64>,
    },
    /// The line of a head that was kept elsewhere is another one now: the chain was written anew.
    #[error("decision record is another one: line {} does not have the hash that was kept", .0.seq)]
    OtherChain(Head),
    /// The line of a head that was kept elsewhere has gone with the oldest lines, so that nothing can be said of it.
    #[error("line {} is no longer kept: the oldest line is {first}; keep a newer head", .kept.seq)]
    NotKept {
        /// The head.
        kept: Head,
        /// The number of the oldest line.
        first: u64,
    },
    /// Whoever asked has left, and nothing more was read.
    #[error("nobody waits for what is on record any more")]
    Unwanted,
    /// The operating system refused.
    #[error("failed to {doing} decision record {place}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The segment or directory.
        place: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// The decision record, open for writing. Clones share it.
#[derive(Clone, Debug)]
pub struct DecisionLog {
    queue: mpsc::UnboundedSender<Message>,
    room: Arc<Semaphore>,
    /// Set while the record does not work.
    fault: Arc<ArcSwapOption<String>>,
    /// For those who read the record while it is written.
    reader: Option<Reader>,
}

/// Segments to read, from which others are made for each who reads.
#[derive(Clone)]
struct Reader(Arc<Mutex<Box<dyn Segments>>>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

#[derive(Debug)]
enum Message {
    Group {
        decisions: Vec<Arc<Decision>>,
        reply: oneshot::Sender<Result<Vec<Receipt>, RecordError>>,
        room: OwnedSemaphorePermit,
    },
    /// What became of intents, by the numbers of their lines.
    Outcomes(Vec<(u64, Outcome)>),
    /// An intent was dropped.
    Unknown {
        of: u64,
    },
    Acts {
        done: Vec<Done>,
        by: By,
        reply: oneshot::Sender<Result<(), RecordError>>,
    },
    Refusal(Refused),
    Sync(oneshot::Sender<Result<Healings, RecordError>>),
    Close(oneshot::Sender<()>),
}

/// How often the record was opened again after a fault. What was read while it stayed the same has not been cut off since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Healings(u64);

impl Healings {
    pub(crate) const fn and_one(self) -> Self {
        Self(self.0 + 1)
    }
}

impl DecisionLog {
    /// Opens the record in `dir`, the directory `decisions` of a server's data directory, and creates it (mode 0700)
    /// when there is none. Blocks while it checks the newest segment.
    ///
    /// The data directory must be held (see [`crate::store::sled::SledStore`]): two writers would break the chain.
    ///
    /// # Errors
    /// [`RecordError::Broken`] when the newest segment does not hold together, or when the disk refuses.
    pub fn open(dir: &Path, retention: Retention, host: Host) -> Result<Self, RecordError> {
        let segments = FileSegments::open(dir).map_err(|source| RecordError::Io {
            doing: "open",
            place: dir.display().to_string(),
            source,
        })?;
        Self::over(Box::new(segments), retention, host)
    }

    /// Opens the record over `segments`: as [`DecisionLog::open`], for whatever stands for a directory. Segments
    /// that answer at once are written by a task of the current tokio runtime, others by a thread.
    ///
    /// # Errors
    /// As [`DecisionLog::open`].
    ///
    /// # Panics
    /// Outside a tokio runtime, with segments that answer at once.
    pub fn over(segments: Box<dyn Segments>, retention: Retention, host: Host) -> Result<Self, RecordError> {
        let place = if segments.is_instant() { Place::Task } else { Place::Thread };
        let fault = Arc::new(ArcSwapOption::empty());
        let reader = segments.reader().map(|segments| Reader(Arc::new(Mutex::new(segments))));
        let chain = Chain::open(segments, retention, host.clone())?;
        let (queue, messages) = mpsc::unbounded_channel();
        let mut writer = Some(Writer {
            chain,
            host,
            queue: queue.downgrade(),
            fault: Arc::clone(&fault),
            pauses: Pauses::default(),
            healings: Healings::default(),
        });
        let work = move |batch| {
            let Some(working) = writer.as_mut() else { return Next::End };
            let (next, closer) = working.work(batch);
            if closer.is_none() {
                return next;
            }
            drop(writer.take());
            drop(closer);
            Next::End
        };
        writer::start("decision-record", place, messages, RECORD_BATCH, work).map_err(|source| {
            RecordError::Io { doing: "start the thread of", place: String::new(), source }
        })?;
        Ok(Self { queue, room: Arc::new(Semaphore::new(RECORD_QUEUE)), fault, reader })
    }

    /// Puts `decisions` on record together, and returns the permissions to sign them, in the same order, once they
    /// are durable.
    ///
    /// # Errors
    /// [`RecordError::Stopped`] when the record could not be written, now or earlier; [`RecordError::Closed`].
    pub async fn intend(&self, decisions: Vec<impl Into<Arc<Decision>>>) -> Result<Vec<Intent>, RecordError> {
        if let Some(why) = self.fault.load_full() {
            return Err(RecordError::Stopped { why });
        }
        if decisions.is_empty() {
            return Ok(Vec::new());
        }
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| RecordError::Closed)?;
        let decisions: Vec<Arc<Decision>> = decisions.into_iter().map(Into::into).collect();
        let (reply, answer) = oneshot::channel();
        self.queue
            .send(Message::Group { decisions: decisions.clone(), reply, room })
            .map_err(|_| RecordError::Closed)?;
        let receipts = answer.await.map_err(|_| RecordError::Closed)??;
        Ok(decisions
            .into_iter()
            .zip(receipts)
            .map(|(decision, receipt)| Intent { decision, receipt })
            .collect())
    }

    /// Says what became of an intent. Written soon, with whatever is written next; not waited for.
    pub fn outcome(&self, receipt: Receipt, outcome: Outcome) {
        self.outcomes(vec![(receipt, outcome)]);
    }

    /// Says what became of intents, as [`DecisionLog::outcome`] does of one: the writer is woken once for all of them.
    pub fn outcomes(&self, outcomes: Vec<(Receipt, Outcome)>) {
        let settled = |(mut receipt, outcome): (Receipt, Outcome)| {
            let queue = receipt.queue.take();
            queue.map(|_| (receipt.seq, outcome))
        };
        let outcomes: Vec<_> = outcomes.into_iter().filter_map(settled).collect();
        if !outcomes.is_empty() {
            // Fails only when the writer has gone: then the next start writes `unknown`.
            drop(self.queue.send(Message::Outcomes(outcomes)));
        }
    }

    /// How many groups of decisions wait for the writer or are being written.
    pub(crate) fn waiting(&self) -> usize {
        RECORD_QUEUE.saturating_sub(self.room.available_permits())
    }

    /// Puts on record what `caller` has done, durably. After a failure it is written as soon as the record works again.
    ///
    /// # Errors
    /// [`RecordError::Stopped`] when the record cannot be written at present; [`RecordError::Closed`].
    pub async fn note(&self, act: Act, caller: String) -> Result<(), RecordError> {
        self.note_all(vec![act.into()], caller.into()).await
    }

    /// Puts on record what was done together, a line for each, as [`DecisionLog::note`] does.
    ///
    /// # Errors
    /// As [`DecisionLog::note`].
    pub async fn note_all(&self, done: Vec<Done>, by: By) -> Result<(), RecordError> {
        if done.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.queue.send(Message::Acts { done, by, reply }).map_err(|_| RecordError::Closed)?;
        answer.await.map_err(|_| RecordError::Closed)?
    }

    /// Puts on record that a call was refused: soon, with whatever is written next; not waited for. How often is for the
    /// caller to bound. While the record does not work, the first of them are kept.
    pub(crate) fn refused(&self, refused: Refused) {
        // Fails only when the record is closed, with the server.
        drop(self.queue.send(Message::Refusal(refused)));
    }

    /// Returns once all lines that are there now are durable: intents and acts are so anyway, refusals and outcomes are not.
    ///
    /// # Errors
    /// [`RecordError::Stopped`] when the record cannot be written at present; [`RecordError::Closed`].
    pub(crate) async fn sync(&self) -> Result<Healings, RecordError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Message::Sync(reply)).map_err(|_| RecordError::Closed)?;
        answer.await.map_err(|_| RecordError::Closed)?
    }

    /// The record as it lies there, to be read while it is written to. `None` where it lies in nothing that can be read so.
    pub(crate) fn reader(&self) -> Option<Box<dyn Segments>> {
        self.reader.as_ref()?.0.lock().unwrap_or_else(PoisonError::into_inner).reader()
    }

    /// Why nothing can be put on record at present; `None` in health.
    pub fn fault(&self) -> Option<Arc<String>> {
        self.fault.load_full()
    }

    /// Writes what is queued, syncs it, and takes no more.
    pub async fn close(&self) {
        self.room.close();
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).is_ok() {
            // The writer drops the sender, whether it says so or has gone already.
            drop(closed.await);
        }
    }
}

struct Writer {
    chain: Chain,
    host: Host,
    /// For receipts. Weak, so that the writer ends once every log and every receipt has gone.
    queue: mpsc::WeakUnboundedSender<Message>,
    fault: Arc<ArcSwapOption<String>>,
    pauses: Pauses,
    healings: Healings,
}

impl Writer {
    /// Writes `batch` with one sync and answers, or tries to heal when there is none. When to go on, and who is to be told
    /// if the record is to close.
    fn work(&mut self, batch: Vec<Message>) -> (Next, Option<oneshot::Sender<()>>) {
        if batch.is_empty() {
            return (self.heal(), None);
        }
        let was_well = self.fault.load().is_none();
        let mut closer = None;
        let mut bodies = Vec::new();
        let mut groups = Vec::new();
        let mut acts = Vec::new();
        let mut syncs = Vec::new();
        for message in batch {
            match message {
                // Nobody waits for it: nothing will be signed.
                Message::Group { reply, .. } if reply.is_closed() => {}
                Message::Group { decisions, reply, room } => {
                    groups.push((decisions.len(), reply, room));
                    bodies.extend(decisions.into_iter().map(|decision| Body::Intent { decision }));
                }
                Message::Outcomes(outcomes) => {
                    bodies.extend(outcomes.into_iter().map(|(of, outcome)| Body::Outcome { of, outcome }));
                }
                Message::Unknown { of } => bodies.extend(self.chain.unknown(of)),
                Message::Acts { done, by, reply } => {
                    bodies.extend(done.into_iter().map(|done| Body::of_act(done, by.clone())));
                    acts.push(reply);
                }
                Message::Refusal(refused) => bodies.push(Body::Refusal(refused)),
                Message::Sync(reply) => syncs.push(reply),
                Message::Close(done) => closer = Some(done),
            }
        }
        let must_last = !groups.is_empty() || !acts.is_empty() || !syncs.is_empty() || closer.is_some();
        let written = self.write(bodies, must_last);
        let mut numbers = written.as_ref().map_or(&[][..], Vec::as_slice).iter().copied();
        for (len, reply, _room) in groups {
            let answer = match &written {
                Ok(_) => Ok(numbers.by_ref().take(len).map(|seq| self.receipt(seq)).collect()),
                Err(why) => Err(RecordError::Stopped { why: Arc::clone(why) }),
            };
            // When the caller has gone, the receipts are dropped, and so become unknown.
            drop(reply.send(answer));
        }
        for reply in acts {
            let answer =
                written.as_ref().map(drop).map_err(|why| RecordError::Stopped { why: Arc::clone(why) });
            // Whoever went away does not care.
            drop(reply.send(answer));
        }
        for reply in syncs {
            let answer = match &written {
                Ok(_) => Ok(self.healings),
                Err(why) => Err(RecordError::Stopped { why: Arc::clone(why) }),
            };
            drop(reply.send(answer));
        }
        let next = match (was_well, &written) {
            (_, Ok(_)) => Next::Message,
            // At once, first: the fault may have passed already.
            (true, Err(_)) => self.heal(),
            (false, Err(_)) => Next::Meanwhile,
        };
        (next, closer)
    }

    fn receipt(&self, seq: u64) -> Receipt {
        Receipt { seq, queue: self.queue.upgrade() }
    }

    /// Writes the lines of `bodies`; the numbers of the intents among them, in order. While the record does not work, what
    /// became of intents is kept, and nothing else.
    fn write(&mut self, bodies: Vec<Body>, must_last: bool) -> Result<Vec<u64>, Arc<String>> {
        if let Some(why) = self.fault.load_full() {
            bodies.into_iter().for_each(|body| self.chain.hold(body));
            return Err(why);
        }
        self.chain.write(bodies, must_last).map_err(|error| {
            let why = Arc::new(with_causes(&error));
            tracing::error!(
                why = *why,
                "the decision record has failed: nothing is signed until it works again"
            );
            self.fault.store(Some(Arc::clone(&why)));
            why
        })
    }

    /// Opens the record again after a fault.
    fn heal(&mut self) -> Next {
        if self.fault.load().is_none() {
            return Next::Message;
        }
        match self.chain.reopen() {
            Ok(()) => {
                tracing::warn!(
                    "the decision record works again, and goes on from its last acknowledged line"
                );
                self.fault.store(None);
                self.pauses = Pauses::default();
                self.healings = self.healings.and_one();
                Next::Message
            }
            Err(error) => {
                let why = with_causes(&error);
                tracing::error!(why, "the decision record still does not work");
                self.fault.store(Some(Arc::new(why)));
                Next::After(self.pauses.next(&self.host))
            }
        }
    }
}

/// What a whole record holds, as [`verify_chain`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainReport {
    /// Segments that are kept.
    pub segments: usize,
    /// Lines in them.
    pub lines: u64,
    /// The number of the first line that is kept: 0 unless old segments were removed.
    pub first_seq: u64,
    /// SHA-256 of the newest line, in hex. Whoever kept an earlier one can find it as `prev` of some line.
    pub head: String,
    /// The number of the newest line; `None` while there is none.
    pub head_seq: Option<u64>,
    /// Intents that have neither outcome nor `unknown` yet: number and serial.
    pub open: BTreeMap<u64, String>,
    /// Bytes of an unfinished line at the end.
    pub torn_bytes: usize,
}

/// Checks every line of the record in `dir` without changing anything. A server may be writing to it meanwhile.
///
/// # Errors
/// [`RecordError::Broken`] at the first line that does not follow from the one before it, or when the disk refuses.
pub fn verify_chain(dir: &Path) -> Result<ChainReport, RecordError> {
    verify_segments(&mut FileSegments::read_only(dir))
}

/// As [`verify_chain`], for whatever stands for a directory.
///
/// # Errors
/// As [`verify_chain`].
pub fn verify_segments(segments: &mut dyn Segments) -> Result<ChainReport, RecordError> {
    chain::verify_all(segments, None)
}
