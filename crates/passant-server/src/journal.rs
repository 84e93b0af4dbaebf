//! How does a change become durable, then visible, then answered?

mod feed;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{JOURNAL_BATCH, JOURNAL_COMMITS_KEPT, JOURNAL_QUEUE, PRUNE_CHANGES};
use arc_swap::{ArcSwap, ArcSwapOption};
use passant_core::{Host, Refusal, TrustDomain, UnixTime};
use passant_daemon::exit::with_causes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::state::change::{Change, Commit, Cursor, RequestId, Revision};
use crate::state::{State, prune};
use crate::store::{AppendError, Store, StoreError};
use crate::writer::{self, Next, Pauses, Place};
use feed::Feed;
pub(crate) use feed::{Follower, Published};

/// The one way to read and to change the state. Clones share it.
///
/// A change is written by one writer, in the order of arrival, together with whatever else has queued up; it is
/// visible in [`Journal::state`] only once it is durable, and answered only after that. When the store fails, all of the
/// batch is answered Unavailable, and nothing can be changed until the store was opened again, holds all that was
/// acknowledged, and has taken a commit. That is tried at once, and then after growing pauses, for as long as it takes.
#[derive(Clone, Debug)]
pub struct Journal {
    queue: mpsc::UnboundedSender<Message>,
    room: Arc<Semaphore>,
    shown: Shown,
}

/// What the writer shows to everybody else.
#[derive(Clone, Debug)]
struct Shown {
    state: Arc<ArcSwap<State>>,
    revision: watch::Receiver<Revision>,
    /// Set while the store does not work.
    fault: Arc<ArcSwapOption<String>>,
    feed: Arc<Feed>,
}

enum Message {
    Command(Box<dyn Command>, OwnedSemaphorePermit),
    Close(oneshot::Sender<()>),
}

impl Journal {
    /// Loads `store` and starts the writer. Blocks while it reads the store.
    ///
    /// A store that answers at once (the memory store) is written by a task of the current tokio runtime, any other
    /// by a thread.
    ///
    /// # Errors
    /// When the store cannot be loaded or belongs to another trust domain.
    ///
    /// # Panics
    /// Outside a tokio runtime, with a store that answers at once.
    pub fn open(
        mut store: Box<dyn Store>,
        trust_domain: &TrustDomain,
        host: Host,
    ) -> Result<Self, StoreError> {
        let loaded = store.load()?;
        if loaded.trust_domain != *trust_domain {
            return Err(StoreError::OtherTrustDomain {
                place: "of the journal".to_owned(),
                stored: loaded.trust_domain,
                configured: trust_domain.clone(),
            });
        }
        let cursor = Cursor { lineage: loaded.lineage, revision: loaded.revision };
        let state = Arc::new(State::of_objects(loaded.trust_domain, cursor, loaded.objects));
        let (revision_shown, revision) = watch::channel(cursor.revision);
        let shown = Shown {
            state: Arc::new(ArcSwap::new(Arc::clone(&state))),
            revision,
            fault: Arc::default(),
            feed: Arc::default(),
        };
        let place = if store.is_instant() { Place::Task } else { Place::Thread };
        let mut writer = Some(Writer {
            store,
            host,
            state,
            shown: shown.clone(),
            revision_shown,
            compacted: 0,
            doubtful: None,
            pauses: Pauses::default(),
        });
        let (queue, messages) = mpsc::unbounded_channel();
        let work = move |batch| {
            let Some(working) = writer.as_mut() else { return Next::End };
            let (next, closer) = working.work(batch);
            if closer.is_none() {
                return next;
            }
            // In this order: who is told that the journal is closed may open the store.
            drop(writer.take());
            drop(closer);
            Next::End
        };
        writer::start("journal", place, messages, JOURNAL_BATCH, work).map_err(|source| StoreError::Io {
            doing: "start",
            place: "the journal's thread".to_owned(),
            source,
        })?;
        Ok(Self { queue, room: Arc::new(Semaphore::new(JOURNAL_QUEUE)), shown })
    }

    /// The newest durable state.
    pub fn state(&self) -> Arc<State> {
        self.shown.state.load_full()
    }

    /// Tells the revision of [`Journal::state`] whenever it moves on from now. It ends when the journal is closed.
    pub fn watch(&self) -> watch::Receiver<Revision> {
        let mut revision = self.shown.revision.clone();
        revision.mark_unchanged();
        revision
    }

    /// Follows what is changed from now on. What [`Journal::state`] shows after this is the newest that is not told of.
    pub(crate) fn follow(&self) -> Follower {
        Feed::follow(&self.shown.feed)
    }

    /// How many commands wait for the writer or are being written.
    pub(crate) fn waiting(&self) -> usize {
        JOURNAL_QUEUE.saturating_sub(self.room.available_permits())
    }

    /// Why nothing can be changed at present, since the store does not work; `None` in health.
    pub fn fault(&self) -> Option<Arc<String>> {
        self.shown.fault.load_full()
    }

    /// Decides and makes a change: `command` sees the newest state, including changes just before it that are still
    /// being written, and answers with the changes it wants, which are taken all or none, and a value for the caller.
    /// Returns once they are durable and visible, and everything that `command` saw, too.
    ///
    /// `command` runs on the writer: it must neither wait nor be slow. A caller that goes away before its turn came
    /// has changed nothing; after that, the change is made.
    ///
    /// # Errors
    /// What `command` refused with; Unavailable when the store failed or the journal is closed.
    pub async fn submit<T, F>(&self, command: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&State) -> Result<(Vec<Change>, T), Refusal> + Send + 'static,
    {
        self.submit_decided(move |state| {
            command(state).map(|(changes, value)| (Decided::from(changes), value))
        })
        .await
    }

    /// The same for a command that has made the state after its changes already, so that it need not be made again.
    ///
    /// # Errors
    /// As [`Journal::submit`].
    pub(crate) async fn submit_decided<T, F>(&self, command: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&State) -> Result<(Decided, T), Refusal> + Send + 'static,
    {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let command = Submitted { command: Some(command), decided: None, reply };
        self.queue.send(Message::Command(Box::new(command), room)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Deletes what has outlived its use at `now` (see [`prune::prune`]); how many objects that were.
    ///
    /// # Errors
    /// As [`Journal::submit`].
    pub async fn prune(&self, now: UnixTime) -> Result<usize, Refusal> {
        let mut pruned = 0;
        loop {
            // Searched here, so that the writer need not; there each is only looked at again.
            let found = prune::prune(&self.state(), now, PRUNE_CHANGES);
            let is_last = found.len() < PRUNE_CHANGES;
            if !found.is_empty() {
                let command = move |state: &State| {
                    let due = found.into_iter().filter(|delete| prune::is_due(state, delete, now));
                    let due: Vec<Change> = due.collect();
                    let some = due.len();
                    Ok((due, some))
                };
                pruned += self.submit(command).await?;
            }
            if is_last {
                break;
            }
        }
        if prune::own_bundle(&self.state(), now).is_some() {
            let command = move |state: &State| Ok((prune::own_bundle(state, now).into_iter().collect(), ()));
            self.submit(command).await?;
            pruned += 1;
        }
        Ok(pruned)
    }

    /// Prunes every `interval`, until dropped. Failures are logged, and tried again at the next turn.
    pub async fn keep_pruned(&self, host: Host, interval: Duration) {
        let mut turns = tokio::time::interval(interval);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            match self.prune(host.now()).await {
                Ok(0) => {}
                Ok(pruned) => tracing::info!(
                    pruned,
                    "pruned ended entries, expired join tokens and ended authorities that were appended"
                ),
                Err(refusal) => tracing::warn!(%refusal, "failed to prune the state"),
            }
        }
    }

    /// Takes no more commands, finishes those that were taken, and gives the store back to whoever opens it next.
    pub async fn close(&self) {
        self.room.close();
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).is_ok() {
            // The writer drops the sender, whether it says so or has gone already.
            drop(closed.await);
        }
    }
}

fn closed() -> Refusal {
    Refusal::unavailable("server is shutting down")
}

/// What a command wants to be changed.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// In the order in which they apply.
    pub(crate) changes: Vec<Change>,
    /// What they make of the state that the command was given, revision and all, if it knows that.
    pub(crate) after: Option<State>,
}

impl From<Vec<Change>> for Decided {
    fn from(changes: Vec<Change>) -> Self {
        Self { changes, after: None }
    }
}

/// A command whose types are hidden from the writer.
trait Command: Send {
    /// Decides against `state`; no changes when it refuses.
    fn decide(&mut self, state: &State) -> Decided;
    /// Answers what was decided, or that nothing came of it.
    fn answer(self: Box<Self>, fault: Option<Refusal>);
    /// Whether nobody waits for the answer.
    fn is_abandoned(&self) -> bool;
}

struct Submitted<T, F> {
    command: Option<F>,
    decided: Option<Result<T, Refusal>>,
    reply: oneshot::Sender<Result<T, Refusal>>,
}

impl<T, F> Command for Submitted<T, F>
where
    T: Send,
    F: FnOnce(&State) -> Result<(Decided, T), Refusal> + Send,
{
    fn decide(&mut self, state: &State) -> Decided {
        let Some(command) = self.command.take() else { return Decided::default() };
        // One command's defect must not stop everybody's journal; it sees the state through a shared reference only.
        let decided = catch_unwind(AssertUnwindSafe(|| command(state)))
            .unwrap_or_else(|_| Err(Refusal::internal("a journal command panicked")));
        match decided {
            Ok((decided, value)) => {
                self.decided = Some(Ok(value));
                decided
            }
            Err(refusal) => {
                self.decided = Some(Err(refusal));
                Decided::default()
            }
        }
    }

    fn answer(self: Box<Self>, fault: Option<Refusal>) {
        let answer = match (fault, self.decided) {
            (Some(fault), _) => Err(fault),
            (None, Some(decided)) => decided,
            (None, None) => return,
        };
        // Fails only when the caller has gone; the change stands all the same.
        drop(self.reply.send(answer));
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

struct Writer {
    store: Box<dyn Store>,
    host: Host,
    /// The newest durable state.
    state: Arc<State>,
    shown: Shown,
    revision_shown: watch::Sender<Revision>,
    /// The number of the revision up to which commits were forgotten in this run.
    compacted: u64,
    /// What the store did not say whether it kept it.
    doubtful: Option<Doubtful>,
    pauses: Pauses,
}

/// Commits that may or may not last, and the state after them.
struct Doubtful {
    requests: Vec<RequestId>,
    state: State,
}

/// What the store has kept of the doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    All,
    Nothing,
}

/// What callers are told while the store does not work.
const FAILED: &str = "the datastore has failed and is being opened again: nothing can be changed meanwhile";
/// The same, to those whose change the store may have kept.
const UNKNOWN: &str =
    "the datastore failed while it took the change: whether it was kept is known once it works again";

impl Writer {
    /// Commits and answers the commands of `batch`, or tries to heal when there is none. When to go on, and who is to be
    /// told if the journal is to close.
    fn work(&mut self, batch: Vec<Message>) -> (Next, Option<oneshot::Sender<()>>) {
        if batch.is_empty() {
            return (self.heal_again(), None);
        }
        let mut commands = Vec::with_capacity(batch.len());
        let mut closer = None;
        for message in batch {
            match message {
                Message::Command(command, room) => commands.push((command, room)),
                Message::Close(done) => closer = Some(done),
            }
        }
        let was_well = self.is_well();
        let outcome = if was_well { self.commit(&mut commands) } else { Err(FAILED) };
        for (command, _room) in commands {
            command.answer(outcome.err().map(Refusal::unavailable));
        }
        if self.is_well() {
            self.compact();
        }
        let next = match (was_well, self.is_well()) {
            (_, true) => Next::Message,
            (true, false) => Next::After(self.pauses.next(&self.host)),
            (false, false) => Next::Meanwhile,
        };
        (next, closer)
    }

    fn is_well(&self) -> bool {
        self.shown.fault.load().is_none()
    }

    /// Decides all commands in order, makes their changes durable together, then visible. Fails with what the
    /// callers may read.
    fn commit(
        &mut self,
        commands: &mut Vec<(Box<dyn Command>, OwnedSemaphorePermit)>,
    ) -> Result<(), &'static str> {
        commands.retain(|(command, _)| !command.is_abandoned());
        let mut next = State::clone(&self.state);
        let mut commits = Vec::new();
        for (command, _) in commands.iter_mut() {
            let Decided { mut changes, after } = command.decide(&next);
            if !changes.is_empty() {
                // Whatever deletes an entry: its stop goes with it.
                let ended = next.stops_ended_by(&changes);
                let after = after.filter(|_| ended.is_empty());
                changes.extend(ended);
                let commit = Commit { request_id: RequestId::new(self.host.random_bytes()), changes };
                match after {
                    Some(after) => next = after,
                    None => next.apply(&commit),
                }
                commits.push(commit);
            }
        }
        if commits.is_empty() {
            return Ok(());
        }
        if let Err(why) = self.append(&commits, next) {
            self.fail(why);
            // At once, too: a fault that has passed already then costs the callers little.
            let (kept, healed) = self.heal();
            self.note(&healed);
            return match kept {
                Some(Kept::All) => Ok(()),
                Some(Kept::Nothing) if healed.is_ok() => Err("the datastore did not keep the change"),
                None if self.doubtful.is_some() => Err(UNKNOWN),
                Some(Kept::Nothing) | None => Err(FAILED),
            };
        }
        Ok(())
    }

    /// Makes `commits` durable, and the state after them, `next`, visible. Says what went wrong.
    fn append(&mut self, commits: &[Commit], next: State) -> Result<(), String> {
        match self.store.append(self.state.cursor().revision, commits) {
            Ok(()) => {
                let changes = || commits.iter().flat_map(|commit| commit.changes.iter().cloned()).collect();
                let changes = self.shown.feed.is_followed().then(changes);
                self.show(next, changes);
                Ok(())
            }
            Err(error) => {
                if matches!(error, AppendError::Unknown(_)) {
                    let requests = commits.iter().map(|commit| commit.request_id).collect();
                    self.doubtful = Some(Doubtful { requests, state: next });
                }
                Err(with_causes(&error))
            }
        }
    }

    fn fail(&mut self, why: String) {
        tracing::error!(why, "the datastore has failed: nothing can be changed until it works again");
        self.shown.fault.store(Some(Arc::new(why)));
    }

    fn heal_again(&mut self) -> Next {
        if self.is_well() {
            return Next::Message;
        }
        let (_, healed) = self.heal();
        self.note(&healed);
        if healed.is_ok() { Next::Message } else { Next::After(self.pauses.next(&self.host)) }
    }

    /// Tells everybody what became of an attempt to heal.
    fn note(&mut self, healed: &Result<(), String>) {
        match healed {
            Ok(()) => {
                self.shown.fault.store(None);
                self.pauses = Pauses::default();
                tracing::warn!(
                    revision = %self.state.cursor().revision,
                    "the datastore works again, and holds all that was acknowledged: changes are taken again"
                );
            }
            Err(why) => {
                tracing::error!(why, "the datastore still does not work");
                self.shown.fault.store(Some(Arc::new(why.clone())));
            }
        }
    }

    /// Opens the store again, and sees whether it works. What became of the doubtful, where that is known, and why the
    /// store cannot be used.
    fn heal(&mut self) -> (Option<Kept>, Result<(), String>) {
        let reopened = self.store.reopen().map_err(|error| with_causes(&error));
        match reopened.and_then(|()| self.compare()) {
            Ok(kept) => (Some(kept), self.probe()),
            Err(why) => (None, Err(why)),
        }
    }

    /// Has the store take a commit that changes nothing: what reads well may still not be written to.
    fn probe(&mut self) -> Result<(), String> {
        let commit = Commit { request_id: RequestId::new(self.host.random_bytes()), changes: Vec::new() };
        let mut next = State::clone(&self.state);
        next.apply(&commit);
        self.append(&[commit], next)
    }

    /// Compares what the store holds with what was acknowledged, and shows doubtful commits that it has kept.
    fn compare(&mut self) -> Result<Kept, String> {
        let loaded = self.store.load().map_err(|error| with_causes(&error))?;
        let (ours, theirs) =
            (self.state.cursor(), Cursor { lineage: loaded.lineage, revision: loaded.revision });
        let stands = State::of_objects(loaded.trust_domain, theirs, loaded.objects);
        if stands == *self.state {
            if self.doubtful.take().is_some() {
                tracing::warn!("the datastore did not keep the changes that it failed on");
            }
            return Ok(Kept::Nothing);
        }
        let tail = match &self.doubtful {
            Some(doubtful) if doubtful.state == stands => {
                self.store.tail(ours.revision).map_err(|error| with_causes(&error))?
            }
            Some(_) | None => Vec::new(),
        };
        match self.doubtful.take_if(|doubtful| {
            tail.iter().map(|(_, commit)| &commit.request_id).eq(doubtful.requests.iter())
        }) {
            Some(doubtful) => {
                tracing::warn!(commits = tail.len(), "the datastore kept the changes that it failed on");
                self.show(doubtful.state, None);
                Ok(Kept::All)
            }
            None => Err(format!(
                "it stands at revision {} of lineage {} and does not hold what was acknowledged up to revision {} of \
                 lineage {}: keep the data directory, and stop the server",
                theirs.revision, theirs.lineage, ours.revision, ours.lineage
            )),
        }
    }

    /// Makes `state` the one that everybody reads. `changes` led to it, if that is known.
    fn show(&mut self, state: State, changes: Option<Vec<Change>>) {
        let revision = state.cursor().revision;
        let before = std::mem::replace(&mut self.state, Arc::new(state));
        self.shown.state.store(Arc::clone(&self.state));
        self.shown.feed.publish(Published { before, after: Arc::clone(&self.state), changes });
        self.revision_shown.send_replace(revision);
    }

    /// Forgets old commits now and then.
    fn compact(&mut self) {
        let newest = self.state.cursor().revision.number();
        if newest.saturating_sub(self.compacted) < JOURNAL_COMMITS_KEPT * 2 {
            return;
        }
        self.compacted = newest - JOURNAL_COMMITS_KEPT;
        if let Err(error) = self.store.compact(Revision::new(self.compacted)) {
            self.fail(with_causes(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use passant_core::{Reason, StopTarget};

    use super::*;
    use crate::limits::HEAL_MOST;
    use crate::state::samples::{
        at, commit, draft, entry, entry_id, host_at, id, node, other_trust_domain, registered, stop, token,
        trust_domain,
    };
    use crate::store::Loaded;
    use crate::store::memory::{MemoryDisk, MemoryStore};
    use crate::store::sled::SledStore;

    fn memory(disk: &MemoryDisk) -> Box<dyn Store> {
        Box::new(MemoryStore::open(disk, &trust_domain(), &Host::system()).unwrap())
    }

    fn open(store: Box<dyn Store>) -> Journal {
        Journal::open(store, &trust_domain(), host_at(0).0).unwrap()
    }

    fn put(name: &str) -> Change {
        Change::PutEntry(entry(name, "/w", "/p"))
    }

    async fn submit(journal: &Journal, change: Change) -> Result<(), Reason> {
        journal.submit(|_| Ok((vec![change], ()))).await.map_err(|refusal| refusal.reason)
    }

    fn has(journal: &Journal, name: &str) -> bool {
        journal.state().entry(&entry_id(name)).is_some()
    }

    /// A memory store whose appends go as scripted, and well after that.
    struct Scripted {
        store: Box<dyn Store>,
        script: Vec<Go>,
        appends: Arc<AtomicUsize>,
        /// Whether it fails to be opened again.
        is_stuck: Arc<AtomicBool>,
        /// What it finds when it is opened again.
        swap: Option<MemoryDisk>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Go {
        Fail,
        KeepAndForget,
        LoseAndForget,
        Conflict,
    }

    impl Scripted {
        fn new(disk: &MemoryDisk, script: &[Go]) -> Box<Self> {
            let script = script.iter().rev().copied().collect();
            let (appends, is_stuck) = (Arc::default(), Arc::default());
            Box::new(Self { store: memory(disk), script, appends, is_stuck, swap: None })
        }
    }

    fn broken() -> StoreError {
        StoreError::Unusable
    }

    impl Store for Scripted {
        fn load(&mut self) -> Result<Loaded, StoreError> {
            self.store.load()
        }

        fn append(&mut self, after: Revision, commits: &[Commit]) -> Result<(), AppendError> {
            self.appends.fetch_add(1, Ordering::SeqCst);
            match self.script.pop() {
                None => self.store.append(after, commits),
                Some(Go::Fail) => Err(AppendError::Failed(broken())),
                Some(Go::Conflict) => Err(AppendError::Conflict { at: after.next() }),
                Some(Go::LoseAndForget) => Err(AppendError::Unknown(broken())),
                Some(Go::KeepAndForget) => {
                    self.store.append(after, commits)?;
                    Err(AppendError::Unknown(broken()))
                }
            }
        }

        fn tail(&mut self, after: Revision) -> Result<Vec<(Revision, Commit)>, StoreError> {
            self.store.tail(after)
        }

        fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
            self.store.compact(upto)
        }

        fn reopen(&mut self) -> Result<(), StoreError> {
            if self.is_stuck.load(Ordering::SeqCst) {
                return Err(broken());
            }
            if let Some(disk) = self.swap.take() {
                self.store = memory(&disk);
            }
            self.store.reopen()
        }

        fn is_instant(&self) -> bool {
            true
        }
    }

    /// Long enough for any pause between two attempts.
    async fn a_while() {
        tokio::time::sleep(HEAL_MOST * 2).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_visible_and_durable_once_answered() {
        let disk = MemoryDisk::default();
        let journal = open(memory(&disk));
        let mut revisions = journal.watch();
        submit(&journal, put("a")).await.unwrap();
        assert!(has(&journal, "a"));
        revisions.changed().await.unwrap();
        assert_eq!(*revisions.borrow(), Revision::new(1));
        let before = journal.state();
        journal.close().await;
        assert_eq!(open(memory(&disk)).state(), before);
    }

    #[tokio::test]
    async fn a_change_survives_in_sled() {
        let dir = tempfile::tempdir().unwrap();
        let sled = || Box::new(SledStore::open(dir.path(), &trust_domain(), &Host::system()).unwrap());
        let journal = open(sled());
        submit(&journal, put("a")).await.unwrap();
        let before = journal.state();
        journal.close().await;
        assert_eq!(open(sled()).state(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_command_changes_nothing() {
        let journal = open(memory(&MemoryDisk::default()));
        let refused: Result<(), _> = journal.submit(|_| Err(Refusal::not_found("no such entry"))).await;
        assert_eq!(refused.unwrap_err().reason, Reason::NotFound);
        assert_eq!(journal.state().cursor().revision, Revision::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_sees_the_changes_before_it_and_all_share_one_append() {
        let store = Scripted::new(&MemoryDisk::default(), &[]);
        let appends = Arc::clone(&store.appends);
        let journal = open(store);
        let add_unless_there = |name: &'static str| {
            journal.submit(move |state| match state.entry(&entry_id(name)) {
                Some(_) => Err(Refusal::already_exists("entry exists")),
                None => Ok((vec![put(name)], state.entry_count())),
            })
        };
        let (one, two, three) =
            tokio::join!(add_unless_there("a"), add_unless_there("a"), add_unless_there("b"));
        assert_eq!(one.unwrap(), 0);
        assert_eq!(two.unwrap_err().reason, Reason::AlreadyExists);
        assert_eq!(three.unwrap(), 1);
        assert_eq!(appends.load(Ordering::SeqCst), 1);
        assert_eq!(journal.state().cursor().revision, Revision::new(2));
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_store_fails_the_whole_batch_is_unavailable_and_nothing_visible() {
        for go in [Go::Fail, Go::LoseAndForget, Go::Conflict] {
            let journal = open(Scripted::new(&MemoryDisk::default(), &[go]));
            // The refusal of the second rests on the change of the first, which never happened.
            let second = journal.submit(|state| match state.entry(&entry_id("a")) {
                Some(_) => Err::<(Vec<Change>, ()), _>(Refusal::already_exists("entry exists")),
                None => Ok((vec![], ())),
            });
            let (one, two) = tokio::join!(submit(&journal, put("a")), second);
            assert_eq!(one, Err(Reason::Unavailable), "{go:?}");
            assert_eq!(two.unwrap_err().reason, Reason::Unavailable, "{go:?}");
            assert!(!has(&journal, "a"));
            assert_eq!(journal.fault(), None);
            submit(&journal, put("b")).await.unwrap();
            assert!(has(&journal, "b"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_store_kept_without_saying_so_is_answered_as_done() {
        let disk = MemoryDisk::default();
        let journal = open(Scripted::new(&disk, &[Go::KeepAndForget]));
        submit(&journal, put("a")).await.unwrap();
        submit(&journal, put("b")).await.unwrap();
        let before = journal.state();
        journal.close().await;
        assert_eq!(open(memory(&disk)).state(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_changed_until_the_store_works_again_and_then_it_holds_what_it_kept() {
        for go in [Go::Fail, Go::LoseAndForget, Go::KeepAndForget, Go::Conflict] {
            let disk = MemoryDisk::default();
            let store = Scripted::new(&disk, &[go]);
            let is_stuck = Arc::clone(&store.is_stuck);
            let journal = open(store);
            is_stuck.store(true, Ordering::SeqCst);
            let refused = journal.submit(|_| Ok((vec![put("a")], ()))).await.unwrap_err();
            assert_eq!(refused.reason, Reason::Unavailable, "{go:?}");
            let is_unknown = [Go::LoseAndForget, Go::KeepAndForget].contains(&go);
            assert_eq!(refused.to_string().contains("whether it was kept"), is_unknown, "{go:?}: {refused}");
            let looked = Arc::new(AtomicUsize::new(0));
            for _ in 0..3 {
                assert!(journal.fault().is_some());
                let counter = Arc::clone(&looked);
                let refused = journal.submit(move |_| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    Ok((vec![], ()))
                });
                assert_eq!(refused.await.unwrap_err().reason, Reason::Unavailable);
                a_while().await;
            }
            assert_eq!(looked.load(Ordering::SeqCst), 0);
            assert!(!has(&journal, "a"));
            is_stuck.store(false, Ordering::SeqCst);
            a_while().await;
            assert_eq!(journal.fault(), None, "{go:?}");
            assert_eq!(has(&journal, "a"), go == Go::KeepAndForget, "{go:?}");
            submit(&journal, put("b")).await.unwrap();
            let before = journal.state();
            journal.close().await;
            assert_eq!(open(memory(&disk)).state(), before);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_reads_but_does_not_write_has_not_healed() {
        let disk = MemoryDisk::default();
        let script = [Go::Fail, Go::Fail, Go::LoseAndForget, Go::KeepAndForget, Go::Fail];
        let store = Scripted::new(&disk, &script);
        let appends = Arc::clone(&store.appends);
        let journal = open(store);
        assert_eq!(submit(&journal, put("a")).await, Err(Reason::Unavailable));
        assert!(journal.fault().is_some());
        tokio::time::sleep(HEAL_MOST * 10).await;
        assert_eq!((journal.fault(), appends.load(Ordering::SeqCst)), (None, script.len() + 1));
        submit(&journal, put("b")).await.unwrap();
        let before = journal.state();
        journal.close().await;
        assert_eq!(open(memory(&disk)).state(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_lost_what_was_acknowledged_is_never_used_again() {
        let mut store = Scripted::new(&MemoryDisk::default(), &[]);
        store.script = vec![Go::Fail, Go::Fail];
        store.swap = Some(MemoryDisk::default());
        let journal = open(store);
        assert_eq!(submit(&journal, put("a")).await, Err(Reason::Unavailable));
        for _ in 0..3 {
            a_while().await;
            let fault = journal.fault().unwrap();
            assert!(fault.contains("does not hold what was acknowledged"), "{fault}");
        }
        assert_eq!(submit(&journal, put("b")).await, Err(Reason::Unavailable));
        journal.close().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_left_before_its_turn_has_changed_nothing() {
        let journal = open(memory(&MemoryDisk::default()));
        tokio::select! {
            biased;
            _ = submit(&journal, put("a")) => panic!("the writer has not run yet"),
            () = std::future::ready(()) => {}
        }
        submit(&journal, put("b")).await.unwrap();
        assert!(!has(&journal, "a") && has(&journal, "b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_command_fails_alone() {
        let journal = open(memory(&MemoryDisk::default()));
        let panics = journal.submit(|_| -> Result<(Vec<Change>, ()), Refusal> { panic!("a defect") });
        let (panicked, other) = tokio::join!(panics, submit(&journal, put("a")));
        assert_eq!(panicked.unwrap_err().reason, Reason::Internal);
        assert_eq!(other, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_journal_takes_nothing_and_has_finished_what_it_took() {
        let disk = MemoryDisk::default();
        let journal = open(memory(&disk));
        let (taken, ()) = tokio::join!(submit(&journal, put("a")), journal.close());
        assert_eq!(taken, Ok(()));
        assert_eq!(submit(&journal, put("b")).await, Err(Reason::Unavailable));
        journal.close().await;
        assert!(has(&open(memory(&disk)), "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn another_trust_domain_is_refused() {
        let opened = Journal::open(memory(&MemoryDisk::default()), &other_trust_domain(), Host::system());
        assert!(matches!(opened, Err(StoreError::OtherTrustDomain { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn ended_entries_and_expired_tokens_are_pruned_in_bounded_commits() {
        let journal = open(memory(&MemoryDisk::default()));
        let ending = |number: usize| {
            let mut draft = draft("/w", "/p", &["k:1"]);
            draft.expires_at = Some(at(100));
            Change::PutEntry(registered(&format!("e{number}"), draft))
        };
        let mut changes: Vec<Change> = (0..PRUNE_CHANGES).map(ending).collect();
        changes.extend([Change::PutToken(token("t", 99)), put("endless")]);
        journal.submit(|_| Ok((changes, ()))).await.unwrap();
        assert_eq!(journal.prune(at(99)).await.unwrap(), 0);
        assert_eq!(journal.prune(at(100)).await.unwrap(), PRUNE_CHANGES + 1);
        assert_eq!(journal.state().entry_count(), 1);
        assert_eq!(journal.state().cursor().revision, Revision::new(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_a_command_has_made_is_not_made_again() {
        let disk = MemoryDisk::default();
        let journal = open(memory(&disk));
        let make = |state: &State| {
            let (put, mut after) = (put("a"), state.clone());
            after.change(put.clone());
            after.commit();
            let handle = after.entry(&entry_id("a")).map(Arc::clone).unwrap();
            Ok((Decided { changes: vec![put], after: Some(after) }, handle))
        };
        let handle = journal.submit_decided(make).await.unwrap();
        assert!(Arc::ptr_eq(journal.state().entry(&entry_id("a")).unwrap(), &handle));
        submit(&journal, Change::PutStop(stop(StopTarget::Entry(entry_id("a"))))).await.unwrap();
        let delete = |state: &State| {
            let mut after = state.clone();
            let delete = Change::DeleteEntry(entry_id("a"));
            after.change(delete.clone());
            after.commit();
            Ok((Decided { changes: vec![delete], after: Some(after) }, ()))
        };
        journal.submit_decided(delete).await.unwrap();
        let state = journal.state();
        assert_eq!((state.stop_count(), state.cursor().revision), (0, Revision::new(3)), "but for its stop");
        journal.close().await;
        assert_eq!(open(memory(&disk)).state(), state);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_goes_with_what_it_is_about_in_one_commit() {
        let disk = MemoryDisk::default();
        let journal = open(memory(&disk));
        let mut ending = draft("/w", "/p", &["k:1"]);
        ending.expires_at = Some(at(100));
        let of_entry = |name: &str| Change::PutStop(stop(StopTarget::Entry(entry_id(name))));
        let agent = id("/spire/agent/x/1");
        let changes = vec![
            put("a"),
            Change::PutEntry(registered("b", ending)),
            Change::PutNode(node("/spire/agent/x/1", &[])),
            of_entry("a"),
            of_entry("b"),
            Change::PutStop(stop(StopTarget::Agent(agent.clone()))),
        ];
        journal.submit(|_| Ok((changes, ()))).await.unwrap();
        for (number, delete) in [(2, Change::DeleteEntry(entry_id("a"))), (2, Change::DeleteNode(agent))] {
            submit(&journal, delete).await.unwrap();
            assert_eq!(journal.state().stop_count(), number);
        }
        journal.prune(at(100)).await.unwrap();
        let state = journal.state();
        assert_eq!((state.stop_count(), state.cursor().revision), (1, Revision::new(4)));
        journal.close().await;
        assert_eq!(open(memory(&disk)).state(), state, "on disk, too");
    }

    #[tokio::test(start_paused = true)]
    async fn pruning_goes_on_by_the_hosts_clock() {
        let (host, clock) = host_at(0);
        let journal = open(memory(&MemoryDisk::default()));
        submit(&journal, Change::PutToken(token("t", 99))).await.unwrap();
        let mut revisions = journal.watch();
        let pruning = journal.keep_pruned(host, Duration::from_secs(60));
        let check = async {
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!(journal.state().tokens().count(), 1);
            clock.set(at(100));
            revisions.changed().await.unwrap();
            assert_eq!(journal.state().tokens().count(), 0);
        };
        tokio::select! {
            biased;
            () = check => {}
            () = pruning => panic!("pruning never ends"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_commits_are_forgotten() {
        let disk = MemoryDisk::default();
        let many: Vec<Commit> = (0..JOURNAL_COMMITS_KEPT * 2).map(|number| commit(number, vec![])).collect();
        memory(&disk).append(Revision::ZERO, &many).unwrap();
        let journal = open(memory(&disk));
        submit(&journal, put("a")).await.unwrap();
        journal.close().await;
        let mut store = memory(&disk);
        let kept_after = Revision::new(JOURNAL_COMMITS_KEPT + 1);
        assert!(
            matches!(store.tail(Revision::ZERO), Err(StoreError::Compacted { upto }) if upto == kept_after)
        );
        assert_eq!(store.load().unwrap().objects.len(), 1);
    }
}
