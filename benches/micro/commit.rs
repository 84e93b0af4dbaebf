//! How many durable commits does the journal make, of those that the disk would allow?

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use passant_core::{Entry, Host};
use passant_server::journal::Journal;
use passant_server::state::Change;
use passant_server::store::sled::SledStore;
use tokio::task::JoinSet;

use crate::clock::on_the_wall;
use crate::entries;
use crate::lab::Lab;
use crate::row::{Row, Unit};

pub(crate) const COMMIT: Row = Row {
    key: "commit",
    ours: "one changed entry, durable in the journal on sled and answered, one after the other",
    floor: "one write of the entry into a file of fixed size, and `fdatasync`",
    aim: Some(1.67),
    unit: Unit::WallTime,
};

pub(crate) const COMMIT_64: Row = Row {
    key: "commit-64",
    ours: "64 callers change an entry each at the same time, until the last is answered",
    floor: "one write of 64 entries, and `fdatasync`",
    aim: None,
    unit: Unit::WallTime,
};

/// Entries that are changed in turn.
const ENTRIES: usize = 1_024;
/// Callers at the same time.
const CALLERS: usize = 64;

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    for (row, callers) in [(&COMMIT, 1), (&COMMIT_64, CALLERS)] {
        if lab.wants(row) {
            let side = Side::new(&lab.place.dir(row.key)?, callers)?;
            let mut file = Written::open(&lab.place.path("committed"))?;
            let size = serde_json::to_vec(&*side.entries[0])?.len();
            let bytes = vec![b'x'; size * callers];
            let floor = |times| {
                on_the_wall(|| {
                    for _ in 0..times {
                        file.write(&bytes);
                    }
                })
            };
            lab.turns(row, floor, |times| on_the_wall(|| side.commits(times)))?;
        }
    }
    Ok(())
}

/// Ours: a journal, and callers who change entries.
struct Side {
    runtime: tokio::runtime::Runtime,
    journal: Journal,
    entries: Vec<Arc<Entry>>,
    callers: usize,
}

impl Side {
    fn new(dir: &Path, callers: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (host, trust_domain) = (Host::system(), entries::trust_domain());
        let store = SledStore::open(dir, &trust_domain, &host)?;
        let journal = Journal::open(Box::new(store), &trust_domain, host)?;
        let entries = (0..ENTRIES).map(entries::entry).collect::<Result<Vec<_>>>()?;
        let changes: Vec<Change> = entries.iter().map(Arc::clone).map(Change::PutEntry).collect();
        runtime.block_on(journal.submit(move |_| Ok((changes, ())))).context("failed to register entries")?;
        Ok(Self { runtime, journal, entries, callers })
    }

    fn commits(&self, times: u64) {
        let mut entries = self.entries.iter().cycle();
        self.runtime.block_on(async {
            for _ in 0..times {
                let mut asked = JoinSet::new();
                for entry in entries.by_ref().take(self.callers) {
                    let (journal, change) = (self.journal.clone(), Change::PutEntry(Arc::clone(entry)));
                    asked.spawn(async move { journal.submit(move |_| Ok((vec![change], ()))).await });
                }
                for answer in asked.join_all().await {
                    answer.expect("the disk takes it");
                }
            }
        });
    }
}

/// A file that has its size already, so that a write to it changes nothing but its bytes: the least that a durable write
/// can cost.
pub(crate) struct Written {
    file: File,
    at: u64,
}

impl Written {
    const SIZE: u64 = 8 << 20;

    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..Self::SIZE).step_by(zeros.len()) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    /// Writes `bytes` behind those before, or at the beginning again, and returns once they are durable.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        if self.at + length > Self::SIZE {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at).expect("the disk takes it");
        self.file.sync_data().expect("the disk takes it");
        self.at += length;
    }
}
