//! What survives a crash? What was synced, and of the rest as much as the seed lets stand.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_core::{Entry, Host, Secret, TrustDomain};
use passant_server::keystore::{KeyStore, KeyStoreError};
use passant_server::record::segments::Segments;
use passant_server::state::authority::AuthorityId;
use passant_server::state::change::{Change, Commit, Revision};
use passant_server::store::memory::{MemoryDisk, MemoryStore};
use passant_server::store::{AppendError, Loaded, Store, StoreError};

use crate::oracle::Oracle;
use crate::rng::Rng;

/// A disk, and the process that may use it. Clones are the same.
///
/// A process that has crashed may still run on for a moment, as a ghost; whatever it does reaches no disk.
#[derive(Clone)]
pub(crate) struct ServerDisk(Arc<Mutex<Platter>>);

struct Platter {
    store: MemoryDisk,
    /// The entries of nodes, as they stood when somebody made a backup.
    backup: Option<Vec<Arc<Entry>>>,
    segments: BTreeMap<u32, Segment>,
    keys: BTreeMap<AuthorityId, Vec<u8>>,
    life: Life,
    /// The disk refuses, or does not say what it did.
    is_failing: bool,
    rng: Rng,
    oracle: Oracle,
}

#[derive(Default)]
struct Segment {
    bytes: Vec<u8>,
    synced: usize,
}

/// Whose disk it is, and when the process dies over it.
struct Life {
    /// Counts processes.
    number: u64,
    /// After so many operations.
    dies_in: Option<u32>,
    /// Called at once when it has: nobody may hear of it any more.
    on_death: Arc<dyn Fn() + Send + Sync>,
}

/// What becomes of one operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is done.
    Done,
    /// It is done, and nobody hears of it.
    DoneUnheard,
    /// It is not done.
    Undone,
}

impl Life {
    fn new(on_death: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { number: 0, dies_in: None, on_death }
    }

    /// The fate of an operation of process `number`.
    fn spend(&mut self, number: u64, rng: &mut Rng) -> Fate {
        if number != self.number {
            return Fate::Undone;
        }
        match self.dies_in {
            None => Fate::Done,
            Some(0) => {
                self.end();
                (self.on_death)();
                if rng.permille(500) { Fate::DoneUnheard } else { Fate::Undone }
            }
            Some(left) => {
                self.dies_in = Some(left - 1);
                Fate::Done
            }
        }
    }

    fn end(&mut self) {
        self.number += 1;
        self.dies_in = None;
    }
}

fn gone() -> io::Error {
    io::Error::other("this process has crashed")
}

fn failing() -> io::Error {
    io::Error::other("the disk fails")
}

fn store_failing() -> StoreError {
    StoreError::Io { doing: "use", place: "the disk".to_owned(), source: failing() }
}

/// What a failing disk makes of an append.
const REFUSED: u64 = 0;
const NOT_KEPT: u64 = 1;
const KEPT: u64 = 2;

fn store_gone() -> StoreError {
    StoreError::Io { doing: "use", place: "the disk".to_owned(), source: gone() }
}

impl ServerDisk {
    pub(crate) fn new(rng: Rng, oracle: Oracle, on_death: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            store: MemoryDisk::default(),
            backup: None,
            segments: BTreeMap::new(),
            keys: BTreeMap::new(),
            life: Life::new(on_death),
            is_failing: false,
            rng,
            oracle,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process ends now. What it had not synced is lost, or partly there.
    pub(crate) fn crash(&self) {
        let mut platter = self.lock();
        platter.life.end();
        platter.settle();
    }

    /// Keeps the entries of nodes as they stand in `oracle`'s book, which is what is durable.
    pub(crate) fn back_up(&self) {
        let mut platter = self.lock();
        platter.backup = Some(platter.oracle.standing());
    }

    /// Brings the entries of nodes back as they were, while no process runs: in a lineage of its own, which begins at the
    /// revision where the lost one stood, and has all of them changed there. Whatever else there is stands as it stood, as if
    /// the decision record told of all of it. Worse than the product's own restoration, which begins far above: a cursor has
    /// to be told from another's by its lineage alone.
    pub(crate) fn restore(&self, trust_domain: &TrustDomain, host: &Host) -> Result<(), StoreError> {
        let mut platter = self.lock();
        let Some(backup) = platter.backup.take() else { return Ok(()) };
        let stood = MemoryStore::open(&platter.store.image(), trust_domain, host)?.load()?;
        let is_of_node = |object: &Change| matches!(object, Change::PutEntry(entry) if is_of_node(entry));
        let mut objects: Vec<Change> =
            stood.objects.into_iter().filter(|object| !is_of_node(object)).collect();
        let again =
            |entry: &Arc<Entry>| Arc::new(Entry { revision: stood.revision.number(), ..Entry::clone(entry) });
        let entries: Vec<Arc<Entry>> = backup.iter().map(again).collect();
        objects.extend(entries.iter().map(|entry| Change::PutEntry(Arc::clone(entry))));
        platter.store = MemoryDisk::holding(trust_domain, stood.revision, objects, host);
        platter.oracle.restored(entries);
        Ok(())
    }

    /// The process dies over one of its next operations.
    pub(crate) fn die_in(&self, operations: u32) {
        self.lock().life.dies_in = Some(operations);
    }

    /// From now on the disk refuses, or does not say what it did; or it works again.
    pub(crate) fn fail(&self, is_failing: bool) {
        self.lock().is_failing = is_failing;
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.lock().is_failing
    }

    /// Counts the processes that have ended.
    pub(crate) fn life(&self) -> u64 {
        self.lock().life.number
    }

    /// Opens the disk for the present process.
    pub(crate) fn open(&self, trust_domain: &TrustDomain, host: &Host) -> Result<Opened, StoreError> {
        let (disk, number) = {
            let platter = self.lock();
            (platter.store.clone(), platter.life.number)
        };
        let store = MemoryStore::open(&disk, trust_domain, host)?;
        let handle = Handle { disk: self.clone(), number };
        Ok(Opened {
            store: Box::new(Journal { store, handle: handle.clone() }),
            segments: Box::new(handle.clone()),
            keys: Arc::new(handle),
        })
    }
}

/// Whether it says what processes of a node get.
pub(crate) fn is_of_node(entry: &Entry) -> bool {
    entry.parent_id.path().starts_with("/node/")
}

/// What a server opens.
pub(crate) struct Opened {
    pub(crate) store: Box<dyn Store>,
    pub(crate) segments: Box<dyn Segments>,
    pub(crate) keys: Arc<dyn KeyStore>,
}

impl Platter {
    /// What the next process finds.
    fn settle(&mut self) {
        self.store = self.store.image();
        self.settle_segments();
    }

    /// Of what was not synced, some may be there.
    fn settle_segments(&mut self) {
        for segment in self.segments.values_mut() {
            let loose = segment.bytes.len() - segment.synced;
            let kept = segment.synced + self.rng.index(loose + 1);
            segment.bytes.truncate(kept);
            // What stands after a crash stands.
            self.oracle.recorded(&segment.bytes[segment.synced..]);
            segment.synced = segment.bytes.len();
        }
    }
}

/// The disk in the hands of one process.
#[derive(Clone)]
struct Handle {
    disk: ServerDisk,
    number: u64,
}

impl Handle {
    /// Does `act`, unless the process is dead or dies over it.
    fn operate<T>(&self, act: impl FnOnce(&mut Platter) -> T) -> Option<T> {
        let mut platter = self.disk.lock();
        let before = platter.life.number;
        let mut rng = platter.rng.clone();
        let fate = platter.life.spend(self.number, &mut rng);
        platter.rng = rng;
        let done = (fate != Fate::Undone).then(|| act(&mut platter));
        if platter.life.number != before {
            platter.settle();
        }
        done.filter(|_| fate == Fate::Done)
    }

    fn segment<T>(&self, number: u32, act: impl FnOnce(&mut Segment) -> T) -> io::Result<T> {
        let found = self.operate(|platter| platter.segments.get_mut(&number).map(act)).ok_or_else(gone)?;
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

struct Journal {
    store: MemoryStore,
    handle: Handle,
}

impl Store for Journal {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.store.load()
    }

    fn append(&mut self, after: Revision, commits: &[Commit]) -> Result<(), AppendError> {
        let store = &mut self.store;
        let appended = self.handle.operate(|platter| {
            let fate = if platter.is_failing { platter.rng.below(3) } else { KEPT };
            if fate == REFUSED {
                return Err(AppendError::Failed(store_failing()));
            }
            if fate == NOT_KEPT {
                return Err(AppendError::Unknown(store_failing()));
            }
            store.append(after, commits)?;
            platter.oracle.committed(after, commits);
            if platter.is_failing { Err(AppendError::Unknown(store_failing())) } else { Ok(()) }
        });
        appended.unwrap_or_else(|| Err(AppendError::Failed(store_gone())))
    }

    fn tail(&mut self, after: Revision) -> Result<Vec<(Revision, Commit)>, StoreError> {
        self.store.tail(after)
    }

    fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
        self.store.compact(upto)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        let is_failing = self.handle.operate(|platter| platter.is_failing).ok_or_else(store_gone)?;
        if is_failing { Err(store_failing()) } else { self.store.reopen() }
    }

    fn is_instant(&self) -> bool {
        true
    }
}

impl Segments for Handle {
    fn name(&self, number: u32) -> String {
        format!("simulated segment {number}")
    }

    fn list(&mut self) -> io::Result<Vec<u32>> {
        Ok(self.disk.lock().segments.keys().copied().collect())
    }

    fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        self.segment(number, |segment| segment.bytes.clone())
    }

    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)> {
        self.segment(number, |segment| {
            let line = segment.bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
            (line.to_vec(), u64::try_from(segment.bytes.len()).unwrap_or(u64::MAX))
        })
    }

    fn create(&mut self, number: u32) -> io::Result<()> {
        let made = self.operate(|platter| platter.segments.insert(number, Segment::default()).is_none());
        match made {
            Some(true) => Ok(()),
            Some(false) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Err(gone()),
        }
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        let appended = self.operate(|platter| {
            let Platter { segments, rng, .. } = platter;
            let segment = segments.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
            if platter.is_failing {
                segment.bytes.extend_from_slice(&bytes[..rng.index(bytes.len() + 1)]);
                return Err(failing());
            }
            segment.bytes.extend_from_slice(bytes);
            Ok(())
        });
        appended.unwrap_or_else(|| Err(gone()))
    }

    fn sync(&mut self, number: u32) -> io::Result<()> {
        let synced = self.operate(|platter| {
            if platter.is_failing {
                return Err(failing());
            }
            let Platter { segments, oracle, .. } = platter;
            let segment = segments.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
            oracle.recorded(&segment.bytes[segment.synced..]);
            segment.synced = segment.bytes.len();
            Ok(())
        });
        synced.unwrap_or_else(|| Err(gone()))
    }

    fn reopen(&mut self, _: u32) -> io::Result<()> {
        let opened = self.operate(|platter| {
            if platter.is_failing {
                return Err(failing());
            }
            platter.settle_segments();
            Ok(())
        });
        opened.unwrap_or_else(|| Err(gone()))
    }

    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()> {
        self.segment(number, |segment| {
            segment.bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
            segment.synced = segment.synced.min(segment.bytes.len());
        })
    }

    fn remove(&mut self, number: u32) -> io::Result<()> {
        self.operate(|platter| drop(platter.segments.remove(&number))).ok_or_else(gone)
    }

    fn is_instant(&self) -> bool {
        true
    }
}

impl Handle {
    fn keys<T>(
        &self,
        act: impl FnOnce(&mut BTreeMap<AuthorityId, Vec<u8>>) -> T,
    ) -> Result<T, KeyStoreError> {
        let done = self.operate(|platter| act(&mut platter.keys));
        done.ok_or_else(|| KeyStoreError::Io { doing: "write", path: "simulated".into(), source: gone() })
    }
}

impl KeyStore for Handle {
    fn put(&self, id: &AuthorityId, pkcs8: &Secret<Vec<u8>>) -> Result<(), KeyStoreError> {
        self.keys(|keys| drop(keys.insert(id.clone(), pkcs8.expose().clone())))
    }

    fn get(&self, id: &AuthorityId) -> Result<Option<Secret<Vec<u8>>>, KeyStoreError> {
        Ok(self.disk.lock().keys.get(id).cloned().map(Secret::new))
    }

    fn remove(&self, id: &AuthorityId) -> Result<(), KeyStoreError> {
        self.keys(|keys| drop(keys.remove(id)))
    }

    fn ids(&self) -> Result<Vec<AuthorityId>, KeyStoreError> {
        Ok(self.disk.lock().keys.keys().cloned().collect())
    }
}

/// The one file of an agent. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct AgentDisk(Arc<Mutex<Sheet>>);

struct Sheet {
    bytes: Option<Vec<u8>>,
    life: Life,
    rng: Rng,
}

/// An agent's disk in the hands of one process.
pub(crate) struct AgentFile {
    disk: AgentDisk,
    number: u64,
}

impl AgentDisk {
    pub(crate) fn new(rng: Rng, on_death: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self(Arc::new(Mutex::new(Sheet { bytes: None, life: Life::new(on_death), rng })))
    }

    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process ends now.
    pub(crate) fn crash(&self) {
        self.lock().life.end();
    }

    /// The process dies over one of its next writes.
    pub(crate) fn die_in(&self, operations: u32) {
        self.lock().life.dies_in = Some(operations);
    }

    /// Counts the processes that have ended.
    pub(crate) fn life(&self) -> u64 {
        self.lock().life.number
    }

    /// Another node with nothing on its disk.
    pub(crate) fn wipe(&self) {
        self.lock().bytes = None;
    }

    /// The disk for the present process, and which one that is.
    pub(crate) fn open(&self) -> (AgentFile, u64) {
        let number = self.life();
        (AgentFile { disk: self.clone(), number }, number)
    }
}

impl passant_agent::Disk for AgentFile {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.disk.lock().bytes.clone())
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let mut sheet = self.disk.lock();
        let mut rng = sheet.rng.clone();
        let fate = sheet.life.spend(self.number, &mut rng);
        sheet.rng = rng;
        if fate != Fate::Undone {
            sheet.bytes = Some(bytes.to_vec());
        }
        if fate == Fate::Done { Ok(()) } else { Err(gone()) }
    }
}
