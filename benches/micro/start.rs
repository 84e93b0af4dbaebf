//! How long does a server with very many entries take to be there again, and how much memory and disk does it take?
//!
//! Each opening is made by a process of its own, so that none profits from what another has left in memory. The floor finds the
//! files in the page cache; the server drops them from it and reads them from the disk, as after a failure it must.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use passant_core::Host;
use passant_server::journal::Journal;
use passant_server::state::Change;
use passant_server::state::change::{Commit, RequestId, Revision};
use passant_server::store::Store;
use passant_server::store::sled::SledStore;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::entries;
use crate::lab::Lab;
use crate::row::{Row, Turn, Unit};

pub(crate) const START: Row = Row {
    key: "start",
    ours: "the journal of a server with 1,000,000 entries opened, and its state ready",
    floor: "the same sled opened, and every record of an entry read once",
    aim: Some(2.0),
    unit: Unit::WallTime,
};

pub(crate) const MEMORY: Row = Row {
    key: "memory",
    ours: "resident memory for each entry of that server, beyond what the floor's process took",
    floor: "the entry's record in the store",
    aim: None,
    unit: Unit::Bytes,
};

pub(crate) const DISK: Row = Row {
    key: "disk",
    ours: "bytes on disk for each entry, after 1,000,000 were registered in commits of 1,000",
    floor: "the entry's record in the store",
    aim: None,
    unit: Unit::Bytes,
};

/// Entries in one commit, as a client that registers many would send them.
const PER_COMMIT: usize = 1_000;

/// What the other process is told.
#[derive(Args)]
pub(crate) struct Open {
    /// Which side to be.
    side: Side,
    /// The data directory.
    dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    Floor,
    Ours,
}

/// What the other process answers, as one line of JSON.
#[derive(Serialize, Deserialize)]
struct Opened {
    nanoseconds: f64,
    /// Resident at the end, in bytes.
    resident: f64,
    entries: usize,
    /// Bytes of all entries' records, keys not counted.
    records: f64,
}

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    if ![&START, &MEMORY, &DISK].iter().any(|row| lab.wants(row)) {
        return Ok(());
    }
    let (dir, count) = (lab.place.dir("server")?, lab.entries);
    fill(&dir, count)?;
    let mut memory = Vec::new();
    let mut record = 0.0;
    // Even if only the others are wanted: their values come from here.
    lab.slow_turns(&START, || {
        let (floor, ours) = (in_a_process(Side::Floor, &dir)?, in_a_process(Side::Ours, &dir)?);
        ensure!(floor.entries == count && ours.entries == count, "there are entries missing");
        let each = |bytes: f64| vec![bytes / count_of(count)];
        record = floor.records / count_of(count);
        memory.push(Turn { floor: each(floor.records), ours: each(ours.resident - floor.resident) });
        Ok(Turn { floor: vec![floor.nanoseconds], ours: vec![ours.nanoseconds] })
    })?;
    lab.note(&MEMORY, memory);
    let on_disk = bytes_below(&dir)? / count_of(count);
    lab.note(&DISK, vec![Turn { floor: vec![record], ours: vec![on_disk] }]);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts entries beyond 2 to the 53")]
const fn count_of(entries: usize) -> f64 {
    entries as f64
}

/// Registers `count` entries.
fn fill(dir: &Path, count: usize) -> Result<()> {
    let host = Host::system();
    let mut store = SledStore::open(dir, &entries::trust_domain(), &host)?;
    let mut revision = Revision::ZERO;
    for from in (0..count).step_by(PER_COMMIT) {
        let numbers = from..count.min(from + PER_COMMIT);
        let changes = numbers.map(|number| Ok(Change::PutEntry(entries::entry(number)?)));
        let commit = Commit {
            request_id: RequestId::new(host.random_bytes()),
            changes: changes.collect::<Result<_>>()?,
        };
        store.append(revision, &[commit])?;
        revision = revision.next();
    }
    Ok(())
}

fn in_a_process(side: Side, dir: &Path) -> Result<Opened> {
    let side = match side {
        Side::Floor => "floor",
        Side::Ours => "ours",
    };
    let output = Command::new(std::env::current_exe()?).args(["open", side]).arg(dir).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to open the store: {said}");
    serde_json::from_slice(&output.stdout).context("the other process did not answer")
}

/// The other process.
pub(crate) fn open(open: &Open) -> Result<()> {
    let opened = match open.side {
        Side::Floor => scan(&open.dir)?,
        Side::Ours => load(&open.dir)?,
    };
    serde_json::to_writer(std::io::stdout().lock(), &opened)?;
    Ok(())
}

fn scan(dir: &Path) -> Result<Opened> {
    let began = clock::now();
    // As the product opens it; see limits.rs of passant-server.
    let cache = passant_server::limits::STORE_CACHE_BYTES;
    let db =
        sled::Config::default().path(dir.join("state")).cache_capacity(cache).flush_every_ms(None).open()?;
    let (mut entries, mut records) = (0, 0);
    for record in db.scan_prefix("o/") {
        let (_, value) = record?;
        entries += 1;
        records += value.len();
    }
    opened(clock::now().saturating_sub(began), entries, records)
}

fn load(dir: &Path) -> Result<Opened> {
    let (host, trust_domain) = (Host::system(), entries::trust_domain());
    let began = clock::now();
    let store = SledStore::open(dir, &trust_domain, &host)?;
    let journal = Journal::open(Box::new(store), &trust_domain, host)?;
    let state = journal.state();
    opened(clock::now().saturating_sub(began), state.entry_count(), 0)
}

fn opened(took: Duration, entries: usize, records: usize) -> Result<Opened> {
    let nanoseconds = took.as_secs_f64() * 1e9;
    Ok(Opened { nanoseconds, resident: resident()?, entries, records: count_of(records) })
}

/// The resident memory of this process, in bytes.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("the kernel does not say how much memory is resident")? * 1024.0)
}

fn bytes_below(dir: &Path) -> Result<f64> {
    let mut sum = 0.0;
    for file in fs::read_dir(dir)? {
        let file = file?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            sum += bytes_below(&file.path())?;
        } else {
            use std::os::unix::fs::MetadataExt;
            // What it takes, not what it could: sled's file may have holes.
            sum += count_of(usize::try_from(metadata.blocks())?) * 512.0;
        }
    }
    Ok(sum)
}
