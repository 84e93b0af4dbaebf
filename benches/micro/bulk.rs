//! How fast does the journal take entries that are registered by the thousand, of what its store could take?

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use passant_core::{Entry, Host};
use passant_server::journal::Journal;
use passant_server::state::Change;
use passant_server::store::sled::SledStore;

use crate::clock::on_the_wall;
use crate::entries;
use crate::lab::Lab;
use crate::row::{Row, Unit};

pub(crate) const BULK: Row = Row {
    key: "bulk",
    ours: "1,000 new entries in one commit, durable in the journal on sled and answered",
    floor: "sled alone: the same 1,000 objects in one batch, flushed",
    aim: Some(1.67),
    unit: Unit::WallTime,
};

/// Entries in one commit.
const PER_COMMIT: usize = 1_000;

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    if !lab.wants(&BULK) {
        return Ok(());
    }
    let cache = passant_server::limits::STORE_CACHE_BYTES;
    let path = lab.place.path("bulk-floor");
    let db = sled::Config::default().path(path).cache_capacity(cache).flush_every_ms(None).open()?;
    let mut at = 0;
    let floor = |times: u64| {
        (0..times).fold(Duration::ZERO, |took, _| {
            let mut batch = sled::Batch::default();
            for entry in next(&mut at) {
                let record = serde_json::to_vec(&*entry).expect("an entry is JSON");
                batch.insert(format!("o/entry/{}", entry.id).as_bytes(), record);
            }
            let write = || db.apply_batch(batch).and_then(|()| db.flush()).map(drop);
            took + on_the_wall(|| write().expect("the disk takes it"))
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (host, trust_domain) = (Host::system(), entries::trust_domain());
    let store = SledStore::open(&lab.place.dir("bulk")?, &trust_domain, &host)?;
    let journal = Journal::open(Box::new(store), &trust_domain, host)?;
    let mut at = 0;
    let ours = |times: u64| {
        (0..times).fold(Duration::ZERO, |took, _| {
            let changes: Vec<Change> = next(&mut at).into_iter().map(Change::PutEntry).collect();
            let commit = journal.submit(move |_| Ok((changes, ())));
            took + on_the_wall(|| runtime.block_on(commit).expect("the disk takes it"))
        })
    };
    lab.turns(&BULK, floor, ours)
}

/// The entries of the next commit.
fn next(at: &mut usize) -> Vec<Arc<Entry>> {
    let numbers = *at..*at + PER_COMMIT;
    *at = numbers.end;
    numbers.map(|number| entries::entry(number).expect("it is an entry")).collect()
}
