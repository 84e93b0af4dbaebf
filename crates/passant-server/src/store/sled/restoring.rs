//! How does a restored state come into a data directory: whole, or not at all?
//!
//! It is written in `state.restoring`, beside the place where a server looks for its state, and takes that place once all
//! of it is on the disk. A server does not start where a restoration was interrupted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use passant_core::{Host, TrustDomain};
use passant_daemon::private_dir::{make_data_dir, make_private_dir};
use sled::Batch;

use super::{
    HEAD, Head, LINGERING_TRIES, LINGERING_WAIT, META, Meta, STORE_FORMAT, Written, checksum_in, envelope,
    hold, io_error, object_key, open_db, sync,
};
use crate::limits::RESTORE_BATCH;
use crate::state::change::{Change, Cursor, Lineage, Revision};
use crate::store::StoreError;

/// Where state is written until all of it is there.
const BESIDE: &str = "state.restoring";

/// A store in the making. Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Restoring {
    db: Option<sled::Db>,
    data_dir: PathBuf,
    beside: PathBuf,
    meta: Meta,
    objects: u64,
    sum: u64,
    batch: Batch,
    waiting: usize,
    is_done: bool,
    /// Holds the data directory.
    lock: Option<File>,
}

impl Restoring {
    /// Begins a new lineage for `trust_domain` in `data_dir`, which is created if need be and held from now on.
    ///
    /// # Errors
    /// [`StoreError::Held`] when the data directory is in use, [`StoreError::StateThere`] when it has state, or when the
    /// disk refuses.
    pub(crate) fn begin(
        data_dir: &Path,
        trust_domain: &TrustDomain,
        host: &Host,
    ) -> Result<Self, StoreError> {
        make_data_dir(data_dir).map_err(io_error("create data directory", data_dir))?;
        let lock = hold(data_dir)?;
        let place = data_dir.join("state");
        if fs::read_dir(&place).is_ok_and(|mut files| files.next().is_some()) {
            return Err(StoreError::StateThere { place });
        }
        let beside = data_dir.join(BESIDE);
        remove(&beside)?;
        make_private_dir(&beside).map_err(io_error("create directory", &beside))?;
        let db = open_db(data_dir, &beside)?;
        let lineage = Lineage::new(host.random_bytes());
        Ok(Self {
            db: Some(db),
            data_dir: data_dir.to_owned(),
            beside,
            meta: Meta { format: STORE_FORMAT, trust_domain: trust_domain.clone(), lineage },
            objects: 0,
            sum: 0,
            batch: Batch::default(),
            waiting: 0,
            is_done: false,
            lock: Some(lock),
        })
    }

    /// Puts one object, under a key that was not put before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn put(&mut self, object: &Change) -> Result<(), StoreError> {
        let key = object_key(object);
        let value = Written::of(object).sealed(&key);
        self.sum = self.sum.wrapping_add(checksum_in(&value));
        self.batch.insert(key.as_slice(), value);
        self.objects += 1;
        self.waiting += 1;
        if self.waiting == RESTORE_BATCH { self.write() } else { Ok(()) }
    }

    /// Makes what was put the state of the data directory, at `revision` of its new lineage. The lock on the directory,
    /// to be held as long as nobody else may come.
    ///
    /// # Errors
    /// When the disk refuses; then the data directory has no state, as before.
    pub(crate) fn finish(mut self, revision: Revision) -> Result<(Cursor, Option<File>), StoreError> {
        self.batch.insert(META, envelope(META, &self.meta));
        self.batch
            .insert(HEAD, envelope(HEAD, &Head { revision, objects: self.objects, sum: Some(self.sum) }));
        self.write()?;
        self.close()?;
        sync_all(&self.beside)?;
        let place = self.data_dir.join("state");
        fs::rename(&self.beside, &place).map_err(io_error("put in place", &place))?;
        self.is_done = true;
        sync(&self.data_dir)?;
        Ok((Cursor { lineage: self.meta.lineage, revision }, self.lock.take()))
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut self.batch);
        self.waiting = 0;
        let Some(db) = &self.db else { return Ok(()) };
        db.apply_batch(batch).and_then(|()| db.flush()).map(drop).map_err(|source| StoreError::Sled {
            doing: "write",
            place: format!("datastore {}", self.beside.display()),
            source,
        })
    }

    /// Lets go of sled, and waits until its threads have let go of the files.
    fn close(&mut self) -> Result<(), StoreError> {
        let path = self.beside.join("db");
        drop(self.db.take());
        let file = File::open(&path).map_err(io_error("open", &path))?;
        for _ in 0..LINGERING_TRIES {
            if file.try_lock().is_ok() {
                return Ok(());
            }
            std::thread::park_timeout(LINGERING_WAIT);
        }
        Err(StoreError::Held { dir: self.beside.clone() })
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        drop(self.db.take());
        if let Err(error) = remove(&self.beside) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an unfinished restoration was left behind"
            );
        }
    }
}

/// Refuses a data directory in which a restoration was interrupted: what is missing there must not be taken for new.
pub(super) fn refuse_unfinished(data_dir: &Path) -> Result<(), StoreError> {
    let beside = data_dir.join(BESIDE);
    if beside.exists() { Err(StoreError::RestoreUnfinished { place: beside }) } else { Ok(()) }
}

/// The trust domain of the state in `data_dir`, as it says itself.
///
/// # Errors
/// [`StoreError::NoState`] when there is none, [`StoreError::Held`] while a server runs there; [`StoreError::Corrupt`]
/// when it does not say.
pub(crate) fn trust_domain_of(data_dir: &Path) -> Result<TrustDomain, StoreError> {
    let place = data_dir.join("state");
    if !place.join("db").exists() {
        return Err(StoreError::NoState { dir: data_dir.to_owned() });
    }
    let _lock = hold(data_dir)?;
    super::remove_unfinished_snapshots(&place)?;
    let db = open_db(data_dir, &place)?;
    let unreadable = |what: String| StoreError::Corrupt {
        place: format!("record meta of datastore {}", place.display()),
        what,
    };
    let value = db.get(META).map_err(|source| StoreError::Sled {
        doing: "read",
        place: format!("datastore {}", place.display()),
        source,
    })?;
    let value = value.ok_or_else(|| unreadable("it is missing".to_owned()))?;
    // A byte of format and four of checksum come first; whoever opens the store checks them.
    let meta: Meta = serde_json::from_slice(value.get(5..).unwrap_or_default())
        .map_err(|error| unreadable(error.to_string()))?;
    Ok(meta.trust_domain)
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Makes all files and directories below `path` last.
fn sync_all(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        for file in fs::read_dir(path).map_err(io_error("list", path))? {
            sync_all(&file.map_err(io_error("list", path))?.path())?;
        }
    }
    sync(path)
}
