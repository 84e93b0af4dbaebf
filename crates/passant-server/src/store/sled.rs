//! How is state kept on the disk of one server, in sled?
//!
//! What sled 0.34 leaves open is closed here:
//! - Killed while it recovers, it leaves a `snap.*.generating` behind that it later takes for a snapshot, and can
//!   then never be opened again. Such leftovers are removed before it is opened.
//! - Its flush ends in `sync_file_range`, which says nothing of file size and of the disk's own cache. After each flush
//!   its file is synced through a handle of our own, before anything is acknowledged.
//! - It never syncs the files that it keeps large values in, nor its file `conf`, nor any directory. All of that is synced
//!   here, before anything is acknowledged. Records are kept small, so that such values are rare: one that is lost with
//!   a commit that was not acknowledged would leave that commit half done.
//! - After a failed write nothing that it says is believed: the store answers [`StoreError::Unusable`] until it is
//!   opened again. Then, and whenever it is opened, its files are first synced and dropped from the page cache: after a
//!   failed sync the cache shows what may never have reached the disk, and so it does to the next process, too.
//!
//! - A damaged or shortened log is taken for a shorter one. The objects are added up in each commit, and the newest revision
//!   is written down beside the store (`witness.rs`), so that neither goes unnoticed.
//!
//! One sled tree holds everything, so that one batch, which sled applies atomically, makes a commit:
//!
//! | key | value |
//! |---|---|
//! | `meta` | format, trust domain and lineage; written once |
//! | `head` | the newest revision and the number of objects |
//! | `o/<key of the object>` | a put of the object |
//! | `j/<revision, 8 bytes><part, 4 bytes>` | request ID and changes of a commit, in parts |
//!
//! Every value is an envelope: one byte of record format, the CRC-32 (4 bytes, big endian) of key and content, then the
//! content as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::{STORE_CACHE_BYTES, STORE_RECORD_BYTES};
use passant_core::{Host, TrustDomain};
use passant_daemon::private_dir::{make_data_dir, make_private_dir};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sled::{Batch, IVec};

use self::loading::Decoded;
use self::read_ahead::ReadAhead;
use crate::keystore::FILE as KEY_FILE;
use crate::state::change::{Change, Commit, Lineage, RequestId, Revision};
use crate::store::witness::Witness;
use crate::store::{AppendError, Loaded, Store, StoreError, check_trust_domain};

mod loading;
mod read_ahead;
pub(crate) mod restoring;

/// The format of the store as a whole, in `meta`.
const STORE_FORMAT: u64 = 1;
/// The newest format of one record, its first byte.
const RECORD_FORMAT: u8 = 2;
/// The format of all records but those whose changes need the second one: as long as there are none of these, versions
/// that know the first alone read the store, too.
const FIRST_RECORD_FORMAT: u8 = 1;
const META: &[u8] = b"meta";
const HEAD: &[u8] = b"head";
const OBJECTS: &str = "o/";
const JOURNAL: &[u8] = b"j/";
/// Threads of a store that was dropped a moment ago may still hold sled's own lock: tries, and the wait between them.
const LINGERING_TRIES: u32 = 100;
const LINGERING_WAIT: Duration = Duration::from_millis(20);

/// State in the directory `state` of a server's data directory.
#[derive(Debug)]
pub struct SledStore {
    /// None from a failed write until it is opened again.
    db: Option<sled::Db>,
    data_dir: PathBuf,
    place: PathBuf,
    /// Our own handle of sled's file, to sync it.
    file: File,
    /// Our own handle of the directory where sled puts large values. Held open: a process that has run out of
    /// descriptors must still be able to write.
    blobs: File,
    meta: Meta,
    head: Head,
    /// The newest revision whose commit is no longer kept.
    compacted: Revision,
    /// sled's files for large values that have been synced.
    blobs_synced: BTreeSet<OsString>,
    witness: Witness,
    /// Holds the data directory. Declared last, to be let go after sled.
    _lock: File,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Meta {
    format: u64,
    trust_domain: TrustDomain,
    lineage: Lineage,
}

/// Read before [`Meta`], which a newer format may have changed.
#[derive(Deserialize)]
struct MetaFormat {
    format: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Head {
    revision: Revision,
    /// Counted so that lost records are noticed.
    objects: u64,
    /// The checksums of all objects, added up: sled takes a damaged part of its log for the end of it, and would then show
    /// objects as they were before. None in stores of the first versions, until their next commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<u64>,
}

/// One part of a commit.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct JournalRecord {
    request_id: RequestId,
    /// Whether no further part follows.
    is_last: bool,
    changes: Vec<Change>,
}

/// A change as it is written, to its object and to the journal alike.
struct Written {
    format: u8,
    json: Vec<u8>,
}

impl Written {
    fn of(change: &Change) -> Self {
        let format = if change.needs_second_format() { RECORD_FORMAT } else { FIRST_RECORD_FORMAT };
        Self { format, json: json(change) }
    }

    /// The envelope of the object.
    fn sealed(&self, key: &[u8]) -> Vec<u8> {
        sealed(self.format, key, &self.json)
    }
}

impl SledStore {
    /// Opens the store in `data_dir`, and creates directory and store where there are none. Holds `data_dir` until dropped, against every other process that asks.
    ///
    /// # Errors
    /// [`StoreError::Held`] when the data directory is in use, [`StoreError::StateGone`] when it has keys but no state, [`StoreError::OtherTrustDomain`],
    /// [`StoreError::NewerFormat`], [`StoreError::Corrupt`], or when the disk refuses.
    pub fn open(data_dir: &Path, trust_domain: &TrustDomain, host: &Host) -> Result<Self, StoreError> {
        make_data_dir(data_dir).map_err(io_error("create data directory", data_dir))?;
        let lock = hold(data_dir)?;
        restoring::refuse_unfinished(data_dir)?;
        let place = data_dir.join("state");
        // Before sled makes its files there: they would stand in the way of a restoration.
        if data_dir.join(KEY_FILE).exists() && !place.join("db").exists() {
            return Err(StoreError::StateGone { dir: data_dir.to_owned() });
        }
        make_private_dir(&place).map_err(io_error("create directory", &place))?;
        let opened = Opened::at(data_dir, &place)?;
        // Each time: whoever made what is in it may have been killed before this.
        sync(data_dir)?;
        let mut store = Self {
            db: Some(opened.db),
            file: opened.file,
            blobs: opened.blobs,
            meta: Meta {
                format: STORE_FORMAT,
                trust_domain: trust_domain.clone(),
                lineage: Lineage::new(host.random_bytes()),
            },
            head: Head { revision: Revision::ZERO, objects: 0, sum: Some(0) },
            compacted: Revision::ZERO,
            blobs_synced: opened.blobs_synced,
            data_dir: data_dir.to_owned(),
            place,
            witness: Witness::open(data_dir)?,
            _lock: lock,
        };
        if store.db()?.is_empty() {
            // Beside a new store these would be swept away as nobody's.
            if data_dir.join(KEY_FILE).exists() {
                return Err(StoreError::StateGone { dir: data_dir.to_owned() });
            }
            store.witness.check_empty(&store.place)?;
            store.create()?;
        } else {
            store.recognize(trust_domain)?;
        }
        Ok(store)
    }

    fn db(&self) -> Result<&sled::Db, StoreError> {
        self.db.as_ref().ok_or(StoreError::Unusable)
    }

    /// Lets go of sled. What it has not written by now it may write yet; whoever opens it again will see.
    fn let_go(&mut self) {
        let db = self.db.take();
        // On a disk that fails it panics while it closes its file.
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!(place = %self.place.display(), "sled panicked while the failed datastore was closed");
        }
    }

    /// Writes the first records.
    fn create(&mut self) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.insert(META, envelope(META, &self.meta));
        batch.insert(HEAD, envelope(HEAD, &self.head));
        self.write(batch)?;
        tracing::info!(place = %self.place.display(), lineage = %self.meta.lineage, "created a new datastore");
        Ok(())
    }

    /// Reads what an existing store says of itself.
    fn recognize(&mut self, trust_domain: &TrustDomain) -> Result<(), StoreError> {
        let content = self.content_of(META)?;
        let format = serde_json::from_slice::<MetaFormat>(&content)
            .map_err(|error| self.corrupt(META, error.to_string()))?
            .format;
        if format > STORE_FORMAT {
            let place = self.place.display().to_string();
            return Err(StoreError::NewerFormat { place, found: format, known: STORE_FORMAT });
        }
        self.meta =
            serde_json::from_slice(&content).map_err(|error| self.corrupt(META, error.to_string()))?;
        check_trust_domain(&self.place.display().to_string(), &self.meta.trust_domain, trust_domain)?;
        let head = self.content_of(HEAD)?;
        self.head = serde_json::from_slice(&head).map_err(|error| self.corrupt(HEAD, error.to_string()))?;
        self.compacted = match self.db()?.scan_prefix(JOURNAL).keys().next() {
            Some(key) => {
                let key = key.map_err(|source| self.sled_error("read", source))?;
                Revision::new(self.parse_journal_key(&key)?.0.number().saturating_sub(1))
            }
            None => self.head.revision,
        };
        self.witness.check(&self.place, self.meta.lineage, self.head.revision)
    }

    fn content_of(&self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
        let value = self.db()?.get(key).map_err(|source| self.sled_error("read", source))?;
        let value = value.ok_or_else(|| self.corrupt(key, "it is missing".to_owned()))?;
        self.content(key, &value).map(<[u8]>::to_vec)
    }

    /// The content of the envelope `value` under `key`.
    fn content<'a>(&self, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StoreError> {
        let Some((format, rest)) = value.split_first() else {
            return Err(self.corrupt(key, "it is empty".to_owned()));
        };
        if *format > RECORD_FORMAT {
            let place = self.record_name(key);
            return Err(StoreError::NewerFormat {
                place,
                found: u64::from(*format),
                known: u64::from(RECORD_FORMAT),
            });
        }
        match rest.split_first_chunk::<4>() {
            Some((sum, content)) if u32::from_be_bytes(*sum) == checksum(key, content) => Ok(content),
            _ => Err(self.corrupt(key, "its checksum does not fit".to_owned())),
        }
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8], value: &[u8]) -> Result<T, StoreError> {
        let content = self.content(key, value)?;
        serde_json::from_slice(content).map_err(|error| self.corrupt(key, error.to_string()))
    }

    fn parse_journal_key(&self, key: &[u8]) -> Result<(Revision, u32), StoreError> {
        let numbers = key.strip_prefix(JOURNAL).and_then(|numbers| {
            let (revision, part) = numbers.split_first_chunk::<8>()?;
            Some((Revision::new(u64::from_be_bytes(*revision)), u32::from_be_bytes(part.try_into().ok()?)))
        });
        numbers.ok_or_else(|| self.corrupt(key, "its key is not one of the journal".to_owned()))
    }

    /// The batch that makes `commits`, and the head after it.
    fn batch_of(&self, commits: &[Commit]) -> Result<(Batch, Head), StoreError> {
        let mut head = self.head;
        let mut batch = Batch::default();
        let written: Vec<Vec<Written>> =
            commits.iter().map(|commit| commit.changes.iter().map(Written::of).collect()).collect();
        let mut objects: BTreeMap<Vec<u8>, Option<&Written>> = BTreeMap::new();
        for (commit, written) in commits.iter().zip(&written) {
            head.revision = head.revision.next();
            for (change, written) in commit.changes.iter().zip(written) {
                objects.insert(object_key(change), change.is_put().then_some(written));
            }
            for (key, record) in journal_records(head.revision, commit.request_id, written) {
                batch.insert(key, record);
            }
        }
        for (key, object) in objects {
            let old = self.db()?.get(&key).map_err(|source| self.sled_error("read", source))?;
            if let Some(old) = old {
                head.objects = head.objects.saturating_sub(1);
                head.sum = head.sum.map(|sum| sum.wrapping_sub(checksum_in(&old)));
            }
            match object {
                Some(object) => {
                    let new = object.sealed(&key);
                    head.objects += 1;
                    head.sum = head.sum.map(|sum| sum.wrapping_add(checksum_in(&new)));
                    batch.insert(key.as_slice(), new);
                }
                None => batch.remove(key.as_slice()),
            }
        }
        batch.insert(HEAD, envelope(HEAD, &head));
        Ok((batch, head))
    }

    /// Writes `batch` and returns once it is durable. After a failure the store is unusable.
    fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        let db = self.db()?;
        let applied = unless_it_panics("writing", &self.place, || {
            db.apply_batch(batch).and_then(|()| db.flush()).map_err(|source| self.sled_error("write", source))
        });
        // Large values first: the log speaks of them.
        let written = applied
            .and_then(|_| self.sync_blobs())
            .and_then(|()| self.file.sync_data().map_err(io_error("sync", &self.place.join("db"))));
        if written.is_err() {
            self.let_go();
        }
        written
    }

    /// Makes sled's files for large values last.
    fn sync_blobs(&mut self) -> Result<(), StoreError> {
        sync_blobs(&self.place.join("blobs"), &self.blobs, &mut self.blobs_synced)
    }

    fn record_name(&self, key: &[u8]) -> String {
        format!("record {} of datastore {}", key.escape_ascii(), self.place.display())
    }

    fn corrupt(&self, key: &[u8], what: String) -> StoreError {
        StoreError::Corrupt { place: self.record_name(key), what }
    }

    fn sled_error(&self, doing: &'static str, source: sled::Error) -> StoreError {
        StoreError::Sled { doing, place: format!("datastore {}", self.place.display()), source }
    }
}

impl Store for SledStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.db()?;
        let Decoded { objects, sum } = unless_it_panics("reading", &self.place, || self.load_objects())?;
        self.head.sum = Some(sum);
        Ok(Loaded {
            lineage: self.meta.lineage,
            revision: self.head.revision,
            trust_domain: self.meta.trust_domain.clone(),
            objects,
        })
    }

    fn append(&mut self, after: Revision, commits: &[Commit]) -> Result<(), AppendError> {
        self.db().map_err(AppendError::Failed)?;
        if after != self.head.revision {
            return Err(AppendError::Conflict { at: self.head.revision });
        }
        if commits.is_empty() {
            return Ok(());
        }
        let (batch, head) = self.batch_of(commits).map_err(AppendError::Failed)?;
        self.write(batch).map_err(AppendError::Unknown)?;
        self.head = head;
        self.witness.note(self.meta.lineage, head.revision);
        Ok(())
    }

    fn tail(&mut self, after: Revision) -> Result<Vec<(Revision, Commit)>, StoreError> {
        let db = self.db()?;
        if after < self.compacted {
            return Err(StoreError::Compacted { upto: self.compacted });
        }
        let mut tail: Vec<(Revision, Commit)> = Vec::new();
        let mut is_open = false;
        for record in db.range(journal_key(after.next(), 0)..).take_while(is_journal_record) {
            let (key, value) = record.map_err(|source| self.sled_error("read", source))?;
            let (revision, part) = self.parse_journal_key(&key)?;
            let record: JournalRecord = self.read(&key, &value)?;
            let newest = tail.last().map_or(after, |(revision, _)| *revision);
            match tail.last_mut() {
                Some((open, commit)) if is_open && *open == revision && part > 0 => {
                    commit.changes.extend(record.changes);
                }
                _ if !is_open && revision == newest.next() && part == 0 => {
                    let commit = Commit { request_id: record.request_id, changes: record.changes };
                    tail.push((revision, commit));
                }
                _ => return Err(self.corrupt(&key, "commits before it are missing".to_owned())),
            }
            is_open = !record.is_last;
        }
        let newest = tail.last().map_or(after, |(revision, _)| *revision);
        if is_open || newest < self.head.revision {
            return Err(self.corrupt(&journal_key(newest.next(), 0), "it is missing".to_owned()));
        }
        Ok(tail)
    }

    fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
        let upto = upto.min(self.head.revision);
        loop {
            let mut batch = Batch::default();
            let mut most = 0;
            let old = journal_key(Revision::ZERO, 0)..journal_key(upto.next(), 0);
            for key in self.db()?.range(old).keys().take(1_000) {
                batch.remove(key.map_err(|source| self.sled_error("read", source))?);
                most += 1;
            }
            if most == 0 {
                break;
            }
            self.write(batch)?;
        }
        self.compacted = self.compacted.max(upto);
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.let_go();
        let opened = Opened::at(&self.data_dir, &self.place)?;
        (self.file, self.blobs, self.blobs_synced) = (opened.file, opened.blobs, opened.blobs_synced);
        self.db = Some(opened.db);
        let trust_domain = self.meta.trust_domain.clone();
        let recognized = self.recognize(&trust_domain);
        if recognized.is_err() {
            self.let_go();
        }
        recognized
    }
}

/// sled, open, with handles of our own.
struct Opened {
    db: sled::Db,
    file: File,
    blobs: File,
    blobs_synced: BTreeSet<OsString>,
}

impl Opened {
    fn at(data_dir: &Path, place: &Path) -> Result<Self, StoreError> {
        settle(place)?;
        remove_unfinished_snapshots(place)?;
        put_damaged_conf_aside(place)?;
        let db_path = place.join("db");
        let ahead = ReadAhead::begin(&db_path);
        let db = open_db(data_dir, place)?;
        drop(ahead);
        let file =
            OpenOptions::new().read(true).write(true).open(&db_path).map_err(io_error("open", &db_path))?;
        let blobs_path = place.join("blobs");
        let blobs = File::open(&blobs_path).map_err(io_error("open directory", &blobs_path))?;
        // What sled made or renamed while it opened, before anything rests on it.
        file.sync_all().map_err(io_error("sync", &db_path))?;
        let conf = place.join("conf");
        sync(&conf)?;
        let mut blobs_synced = BTreeSet::new();
        sync_blobs(&blobs_path, &blobs, &mut blobs_synced)?;
        sync(place)?;
        Ok(Self { db, file, blobs, blobs_synced })
    }
}

/// Syncs a file or a directory.
fn sync(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))
}

/// Syncs the files in the directory `path` that are not in `synced`, and, if there are any, the directory.
fn sync_blobs(path: &Path, dir: &File, synced: &mut BTreeSet<OsString>) -> Result<(), StoreError> {
    let failed = || io_error("list", path);
    let names = fs::read_dir(path).map_err(failed())?;
    let names = names.map(|file| Ok(file?.file_name())).collect::<io::Result<BTreeSet<OsString>>>();
    let names = names.map_err(failed())?;
    let mut is_new = false;
    for name in names.difference(synced) {
        // One that sled has removed meanwhile is of no more use.
        match sync(&path.join(name)) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        is_new = true;
    }
    if is_new {
        dir.sync_all().map_err(io_error("sync directory", path))?;
    }
    *synced = names;
    Ok(())
}

/// Syncs every file of the store and drops it from the page cache, so that what is read is what the disk holds.
fn settle(place: &Path) -> Result<(), StoreError> {
    for dir in [place.to_owned(), place.join("blobs")] {
        let files = match fs::read_dir(&dir) {
            Ok(files) => files.collect::<io::Result<Vec<_>>>().map_err(io_error("list", &dir))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error("list", &dir)(error)),
        };
        for path in files.into_iter().map(|file| file.path()).filter(|path| path.is_file()) {
            let file = File::open(&path).map_err(io_error("open", &path))?;
            file.sync_all().map_err(io_error("sync", &path))?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .map_err(|error| io_error("read anew", &path)(error.into()))?;
        }
        sync(&dir)?;
    }
    Ok(())
}

fn object_key(change: &Change) -> Vec<u8> {
    format!("{OBJECTS}{}", change.key()).into_bytes()
}

fn journal_key(revision: Revision, part: u32) -> Vec<u8> {
    [JOURNAL, &revision.number().to_be_bytes(), &part.to_be_bytes()].concat()
}

fn is_journal_record(record: &Result<(IVec, IVec), sled::Error>) -> bool {
    record.as_ref().map_or(true, |(key, _)| key.starts_with(JOURNAL))
}

/// Keys and envelopes of the parts of a commit: each a [`JournalRecord`], around changes that are written already.
fn journal_records(
    revision: Revision,
    request_id: RequestId,
    changes: &[Written],
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut parts = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, change) in changes.iter().enumerate() {
        if bytes + change.json.len() > STORE_RECORD_BYTES && at > from {
            parts.push(&changes[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += change.json.len();
    }
    let last = (&changes[from..], true);
    let parts = parts.into_iter().map(|part| (part, false)).chain([last]);
    let record = |(part, (changes, is_last)): (u32, (&[Written], bool))| {
        let mut content =
            format!("{{\"request_id\":\"{request_id}\",\"is_last\":{is_last},\"changes\":[").into_bytes();
        for (at, change) in changes.iter().enumerate() {
            content.extend_from_slice(if at > 0 { b"," } else { b"" });
            content.extend_from_slice(&change.json);
        }
        content.extend_from_slice(b"]}");
        let format = changes.iter().map(|change| change.format).max().unwrap_or(FIRST_RECORD_FORMAT);
        let key = journal_key(revision, part);
        let record = sealed(format, &key, &content);
        (key, record)
    };
    (0..).zip(parts).map(record).collect()
}

fn checksum(key: &[u8], content: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key);
    sum.update(content);
    sum.finalize()
}

/// The checksum in an envelope.
fn checksum_in(value: &[u8]) -> u64 {
    value.get(1..5).and_then(|sum| sum.try_into().ok()).map_or(0, |sum| u32::from_be_bytes(sum).into())
}

/// The envelope of a record without changes.
fn envelope<T: Serialize>(key: &[u8], content: &T) -> Vec<u8> {
    sealed(FIRST_RECORD_FORMAT, key, &json(content))
}

fn sealed(format: u8, key: &[u8], content: &[u8]) -> Vec<u8> {
    let sum = checksum(key, content).to_be_bytes();
    [&[format], sum.as_slice(), content].concat()
}

fn json<T: Serialize>(content: &T) -> Vec<u8> {
    serde_json::to_vec(content).expect("our records have string keys and no failing serializers")
}

/// Locks the data directory through a file of its own, which is empty and stays.
fn hold(data_dir: &Path) -> Result<File, StoreError> {
    let path = data_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Held { dir: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

fn snapshots(place: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = io_error("list", place);
    let names = fs::read_dir(place).and_then(|dir| {
        dir.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()
    });
    let names = names.map_err(failed)?;
    Ok(names.iter().filter(|name| name.starts_with("snap.")).map(|name| place.join(name)).collect())
}

fn remove_unfinished_snapshots(place: &Path) -> Result<(), StoreError> {
    for path in snapshots(place)? {
        if path.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
            tracing::warn!(file = %path.display(), "removed what an interrupted start left in the datastore");
        }
    }
    Ok(())
}

/// Puts sled's file `conf` aside when it is damaged. sled never syncs it, would take it at its word, and writes the same
/// one again: we have only ever used one configuration.
fn put_damaged_conf_aside(place: &Path) -> Result<(), StoreError> {
    let conf = place.join("conf");
    let content = match fs::read(&conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        content => content.map_err(io_error("read", &conf))?,
    };
    let is_good = content.split_last_chunk::<4>().is_some_and(|(content, sum)| {
        content.len() > 4 && crc32fast::hash(content) == u32::from_le_bytes(*sum)
    });
    if !is_good {
        put_aside(place, &conf, "put sled's damaged configuration aside")?;
    }
    Ok(())
}

fn put_aside(place: &Path, file: &Path, why: &str) -> Result<(), StoreError> {
    let aside = place.join(format!("aside.{}", file.file_name().unwrap_or_default().display()));
    fs::rename(file, &aside).map_err(io_error("rename", file))?;
    tracing::warn!(file = %aside.display(), "{why}");
    Ok(())
}

/// Opens sled; when its snapshot of the index is damaged, once more without it: sled rebuilds the index from its log.
fn open_db(data_dir: &Path, place: &Path) -> Result<sled::Db, StoreError> {
    match try_open_db(data_dir, place) {
        Err(StoreError::Sled { source: sled::Error::Corruption { .. }, .. }) => {
            for path in snapshots(place)? {
                put_aside(place, &path, "put a damaged index of the datastore aside")?;
            }
            try_open_db(data_dir, place)
        }
        opened => opened,
    }
}

fn try_open_db(data_dir: &Path, place: &Path) -> Result<sled::Db, StoreError> {
    let config = sled::Config::default().path(place).cache_capacity(STORE_CACHE_BYTES).flush_every_ms(None);
    for _ in 0..LINGERING_TRIES {
        match unless_it_panics("opening", place, || Ok(config.open()))? {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::park_timeout(LINGERING_WAIT);
            }
            Err(source) => {
                let place = format!("datastore {}", place.display());
                return Err(StoreError::Sled { doing: "open", place, source });
            }
            Ok(db) => return Ok(db),
        }
    }
    Err(StoreError::Held { dir: data_dir.to_owned() })
}

/// sled panics on some kinds of damage.
fn unless_it_panics<T>(
    doing: &str,
    place: &Path,
    act: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        Err(StoreError::Corrupt {
            place: format!("datastore {}", place.display()),
            what: format!("sled panicked while {doing} it"),
        })
    })
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let place = path.display().to_string();
    move |source| StoreError::Io { doing, place, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;
    use passant_core::StopTarget;

    use crate::state::samples::{commit, draft, entry, entry_id, registered, stop, trust_domain};

    fn open(dir: &Path) -> Result<SledStore, StoreError> {
        SledStore::open(dir, &trust_domain(), &Host::system())
    }

    fn put(name: &str) -> Change {
        Change::PutEntry(entry(name, "/w", "/p"))
    }

    /// A store with the entry `e1`, open.
    fn with_one_entry(dir: &Path) -> SledStore {
        let mut store = open(dir).unwrap();
        store.append(Revision::ZERO, &[commit(1, vec![put("e1")])]).unwrap();
        store
    }

    /// The files of a store as they stand this instant: what a killed server would leave.
    fn copy(dir: &Path) -> TempDir {
        fn copy_dir(from: &Path, to: &Path) {
            for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
                let to = to.join(file.file_name());
                if file.file_type().unwrap().is_dir() {
                    fs::create_dir(&to).unwrap();
                    copy_dir(&file.path(), &to);
                } else {
                    fs::copy(file.path(), to).unwrap();
                }
            }
        }
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir, copy.path());
        copy
    }

    /// What opening and loading the store says after `damage` was done to it through sled.
    fn damaged(damage: impl FnOnce(&sled::Db)) -> StoreError {
        let dir = tempfile::tempdir().unwrap();
        drop(with_one_entry(dir.path()));
        let db = try_open_db(dir.path(), &dir.path().join("state")).unwrap();
        damage(&db);
        db.flush().unwrap();
        drop(db);
        open(dir.path()).and_then(|mut store| store.load()).unwrap_err()
    }

    /// Numbers that follow from a seed.
    fn draw(seed: &mut u64, most: usize) -> usize {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*seed >> 33).unwrap() % most.max(1)
    }

    #[test]
    fn a_part_of_a_commit_is_written_as_its_serializer_would() {
        let commit = commit(7, (0..40).map(|number| put(&format!("e{number}"))).collect());
        for changes in [&commit.changes[..0], &commit.changes[..1], &commit.changes] {
            let written: Vec<Written> = changes.iter().map(Written::of).collect();
            let records = journal_records(Revision::new(3), commit.request_id, &written);
            let mut read = Vec::new();
            for (at, (key, record)) in records.iter().enumerate() {
                assert_eq!(*key, journal_key(Revision::new(3), u32::try_from(at).unwrap()));
                let content = &record[5..];
                let part: JournalRecord = serde_json::from_slice(content).unwrap();
                assert_eq!(json(&part), content);
                assert_eq!(*record, sealed(FIRST_RECORD_FORMAT, key, content));
                assert!(part.changes.len() == 1 || content.len() <= STORE_RECORD_BYTES + 200);
                assert_eq!((part.request_id, part.is_last), (commit.request_id, at + 1 == records.len()));
                read.extend(part.changes);
            }
            assert_eq!(read, changes);
            assert_eq!(records.len() > 1, changes.len() == 40);
        }
    }

    #[test]
    fn a_store_with_a_damaged_file_is_as_it_was_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path()).unwrap();
        for number in 0..40 {
            let hint = |entry: u64| put(&format!("e{}", entry % 25));
            let changes = vec![hint(number), hint(number * 7), Change::DeleteEntry(entry_id("e3"))];
            store.append(Revision::new(number), &[commit(number, changes)]).unwrap();
        }
        let expected = store.load().unwrap();
        drop(store);
        // Opened once more, so that there is an index.
        drop(open(dir.path()).unwrap());
        let names = fs::read_dir(dir.path().join("state")).unwrap().map(|file| file.unwrap());
        let files: Vec<PathBuf> = names
            .filter(|file| file.path().is_file())
            .map(|file| Path::new("state").join(file.file_name()))
            .collect();
        assert!(files.len() >= 3, "{files:?}");
        let mut seed = 7;
        let (mut held, mut refused) = (0, 0);
        for file in files.iter().cycle().take(files.len() * 30) {
            let copy = copy(dir.path());
            let path = copy.path().join(file);
            let mut content = fs::read(&path).unwrap();
            // The log has room behind its end, where damage hurts nobody.
            let written = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
            let at = draw(&mut seed, written);
            match draw(&mut seed, 3) {
                0 => content.truncate(at),
                1 => content[at] ^= 1 << draw(&mut seed, 8),
                _ => {
                    let end = (at + 512).min(content.len());
                    content[at..end].fill(0);
                }
            }
            fs::write(&path, content).unwrap();
            match open(copy.path()).and_then(|mut store| store.load()) {
                Ok(loaded) => {
                    assert_eq!(loaded, expected, "{} damaged at {at}", file.display());
                    held += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains(copy.path().to_str().unwrap()), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(held > 0 && refused > 0, "{held} {refused}");
    }

    #[test]
    fn a_store_that_lost_its_newest_commits_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = with_one_entry(dir.path());
        let older = copy(dir.path());
        store.append(Revision::new(1), &[commit(2, vec![put("e2")])]).unwrap();
        drop(store);
        fs::copy(dir.path().join("revision"), older.path().join("revision")).unwrap();
        let refused = open(older.path()).unwrap_err().to_string();
        assert!(refused.contains("stands at revision 1") && refused.contains("revision 2"), "{refused}");
        // Nor is one that lost them all taken for a new one, whether or not it has keys.
        let empty = copy(older.path());
        fs::remove_dir_all(empty.path().join("state")).unwrap();
        let refused = open(empty.path()).unwrap_err().to_string();
        assert!(refused.contains("stands at revision 0") && refused.contains("revision 2"), "{refused}");
        fs::remove_file(older.path().join("revision")).unwrap();
        assert_eq!(open(older.path()).unwrap().load().unwrap().objects, [put("e1")]);
    }

    fn is_corrupt(error: &StoreError, place: &str, what: &str) -> bool {
        matches!(error, StoreError::Corrupt { place: p, what: w } if p.contains(place) && w.contains(what))
    }

    #[test]
    fn keys_without_their_state_are_not_taken_for_a_new_server() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("keys.json"), "{}").unwrap();
        let refused = open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("keys.json but no state"), "{refused}");
        assert!(
            !dir.path().join("state").exists(),
            "what sled makes would stand in the way of a restoration"
        );
        fs::remove_file(dir.path().join("keys.json")).unwrap();
        drop(open(dir.path()).unwrap());
        // A store that is there may have keys beside it.
        fs::write(dir.path().join("keys.json"), "{}").unwrap();
        drop(open(dir.path()).unwrap());
    }

    #[test]
    fn what_was_acknowledged_survives_a_kill_at_any_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path()).unwrap();
        for number in 0..20 {
            let name = format!("e{number}");
            store.append(Revision::new(number), &[commit(number, vec![put(&name)])]).unwrap();
            if number % 5 == 0 {
                let left = copy(dir.path());
                let loaded = open(left.path()).unwrap().load().unwrap();
                assert_eq!(loaded.revision, Revision::new(number + 1));
                assert_eq!(loaded.objects.len(), usize::try_from(number).unwrap() + 1);
            }
        }
    }

    #[test]
    fn leftovers_of_an_interrupted_start_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(with_one_entry(dir.path()));
        let leftover = dir.path().join("state/snap.FFFFFFFFFFFFFFF0.generating");
        fs::write(&leftover, b"half a snapshot").unwrap();
        assert_eq!(open(dir.path()).unwrap().load().unwrap().objects, [put("e1")]);
        assert!(!leftover.exists());
    }

    #[test]
    fn a_damaged_snapshot_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        drop(with_one_entry(dir.path()));
        let state = dir.path().join("state");
        fs::write(state.join("snap.FFFFFFFFFFFFFFF0"), b"no snapshot").unwrap();
        assert_eq!(open(dir.path()).unwrap().load().unwrap().objects, [put("e1")]);
        assert!(state.join("aside.snap.FFFFFFFFFFFFFFF0").exists());
    }

    #[test]
    fn a_held_data_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _store = open(dir.path()).unwrap();
        let refused = open(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains("held by another process") && refused.contains(dir.path().to_str().unwrap())
        );
    }

    #[test]
    fn the_data_directory_is_private() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("data");
        let _store = open(&dir).unwrap();
        for (path, expected) in [("", 0o700), ("state", 0o700), ("lock", 0o600)] {
            let mode = fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, expected, "{path}");
        }
    }

    #[test]
    fn a_damaged_record_is_named() {
        let error = damaged(|db| {
            let mut value = db.get("o/entry/e1").unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            db.insert("o/entry/e1", value).unwrap();
        });
        assert!(is_corrupt(&error, "o/entry/e1", "checksum"), "{error}");
    }

    #[test]
    fn a_record_under_another_key_is_noticed() {
        let error = damaged(|db| {
            let value = db.remove("o/entry/e1").unwrap().unwrap();
            db.insert("o/entry/e2", value).unwrap();
        });
        assert!(is_corrupt(&error, "o/entry/e2", "checksum"), "{error}");
    }

    #[test]
    fn a_lost_record_is_noticed() {
        let error = damaged(|db| drop(db.remove("o/entry/e1").unwrap()));
        assert!(is_corrupt(&error, "state", "1 objects were written, 0 were found"), "{error}");
        let error = damaged(|db| drop(db.remove(HEAD).unwrap()));
        assert!(is_corrupt(&error, "head", "missing"), "{error}");
    }

    #[test]
    fn an_unknown_change_is_refused() {
        let error = damaged(|db| {
            let key = b"o/entry/e1";
            let future = serde_json::json!({ "put_whatever_comes": { "id": "e1" } });
            db.insert(key, envelope(key, &future)).unwrap();
        });
        assert!(is_corrupt(&error, "o/entry/e1", "put_whatever_comes"), "{error}");
    }

    #[test]
    fn newer_formats_are_refused() {
        let error = damaged(|db| {
            let future = serde_json::json!({ "format": 2, "what": "ever" });
            db.insert(META, envelope(META, &future)).unwrap();
        });
        assert!(matches!(error, StoreError::NewerFormat { found: 2, known: 1, .. }), "{error}");
        let error = damaged(|db| {
            let mut value = db.get("o/entry/e1").unwrap().unwrap().to_vec();
            value[0] = 3;
            db.insert("o/entry/e1", value).unwrap();
        });
        assert!(matches!(error, StoreError::NewerFormat { found: 3, known: 2, .. }), "{error}");
    }

    #[test]
    fn what_older_versions_would_lose_is_not_theirs_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = with_one_entry(dir.path());
        let format = |store: &SledStore, key: &[u8]| store.db().unwrap().get(key).unwrap().unwrap()[0];
        let mut with_options = draft("/w/2", "/p", &["k:1"]);
        with_options.options.strict = true;
        let stopped = StopTarget::Entry(entry_id("e1"));
        let commits = [
            vec![Change::PutEntry(registered("e2", with_options))],
            vec![Change::PutStop(stop(stopped.clone()))],
            vec![put("e3"), Change::DeleteStop(stopped)],
        ];
        let commits: Vec<_> = (2..).zip(commits).map(|(number, changes)| commit(number, changes)).collect();
        store.append(Revision::new(1), &commits[..2]).unwrap();
        for (key, expected) in [("o/entry/e1", 1), ("o/entry/e2", 2), ("o/stop/entry e1", 2), ("head", 1)] {
            assert_eq!(format(&store, key.as_bytes()), expected, "{key}");
        }
        store.append(Revision::new(3), &commits[2..]).unwrap();
        assert_eq!(format(&store, b"o/entry/e3"), 1);
        for (revision, expected) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
            let key = journal_key(Revision::new(revision), 0);
            assert_eq!(format(&store, &key), expected, "commit {revision}");
        }
    }

    #[test]
    fn a_gap_in_the_journal_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = with_one_entry(dir.path());
        let commits = [2, 3].map(|number| commit(number, vec![put(&format!("e{number}"))]));
        store.append(Revision::new(1), &commits).unwrap();
        store.db().unwrap().remove(journal_key(Revision::new(2), 0)).unwrap();
        let error = store.tail(Revision::ZERO).unwrap_err();
        assert!(is_corrupt(&error, "j/", "missing"), "{error}");
        store.db().unwrap().remove(journal_key(Revision::new(3), 0)).unwrap();
        assert!(is_corrupt(&store.tail(Revision::new(2)).unwrap_err(), "j/", "missing"));
    }

    #[test]
    fn somebody_elses_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let db = try_open_db(dir.path(), &dir.path().join("state")).unwrap();
        db.insert("k", "v").unwrap();
        db.flush().unwrap();
        drop(db);
        assert!(is_corrupt(&open(dir.path()).unwrap_err(), "meta", "missing"));
    }

    #[test]
    fn after_a_failed_write_nothing_is_believed_until_the_store_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = with_one_entry(dir.path());
        // A file that cannot be synced stands for a disk that fails.
        store.file = File::open("/dev/null").unwrap();
        let two = [commit(2, vec![put("e2")])];
        assert!(matches!(store.append(Revision::new(1), &two), Err(AppendError::Unknown(_))));
        assert!(matches!(
            store.append(Revision::new(1), &two),
            Err(AppendError::Failed(StoreError::Unusable))
        ));
        assert!(matches!(store.tail(Revision::ZERO), Err(StoreError::Unusable)));
        assert!(matches!(store.load(), Err(StoreError::Unusable)));
        // The write itself had gone well.
        store.reopen().unwrap();
        assert_eq!(store.load().unwrap().objects, [put("e1"), put("e2")]);
        store.append(Revision::new(2), &[commit(3, vec![put("e3")])]).unwrap();
        drop(store);
        assert_eq!(open(dir.path()).unwrap().load().unwrap().objects, [put("e1"), put("e2"), put("e3")]);
    }

    #[test]
    fn a_store_that_cannot_be_opened_again_stays_unusable_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = with_one_entry(dir.path());
        let (db, away) = (dir.path().join("state/db"), dir.path().join("away"));
        fs::rename(&db, &away).unwrap();
        fs::create_dir(&db).unwrap();
        assert!(store.reopen().is_err());
        assert!(matches!(store.load(), Err(StoreError::Unusable)));
        fs::remove_dir(&db).unwrap();
        fs::rename(&away, &db).unwrap();
        store.reopen().unwrap();
        assert_eq!(store.load().unwrap().objects, [put("e1")]);
    }
}
