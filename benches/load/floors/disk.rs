//! What do the disk and the bare store take for the same bytes?

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::numbers::figure;

/// As the product opens sled; see limits.rs of passant-server.
const CACHE: u64 = 16 * 1024 * 1024;

/// Milliseconds of each of `times` writes of `bytes` with `fdatasync`, into a file in `dir` that has its size already.
pub(crate) fn single(dir: &Path, bytes: usize, times: usize) -> Result<Vec<f64>> {
    let path = dir.join("floor-file");
    let (file, block) = (File::create(&path)?, vec![b'x'; bytes]);
    file.write_all_at(&block, 0)?;
    file.sync_all()?;
    let mut took = Vec::new();
    for _ in 0..times {
        let began = clock::now();
        file.write_all_at(&block, 0)?;
        file.sync_data()?;
        took.push(clock::now() - began);
    }
    std::fs::remove_file(path)?;
    Ok(took)
}

/// Milliseconds until `count` records of `bytes` are in a sled in `dir`, `per_batch` in a batch that is flushed.
pub(crate) fn bulk(dir: &Path, count: usize, bytes: usize, per_batch: usize) -> Result<f64> {
    let path = dir.join("floor-store");
    let db = sled::Config::default().path(&path).cache_capacity(CACHE).flush_every_ms(None).open()?;
    let began = clock::now();
    for from in (0..count).step_by(per_batch.max(1)) {
        let mut batch = sled::Batch::default();
        for number in from..count.min(from + per_batch) {
            // Keys in the order of their making, as the server's IDs are.
            let key = format!("o/{number:032x}");
            batch.insert(key.as_bytes(), vec![b'x'; bytes]);
        }
        db.apply_batch(batch)?;
        db.flush()?;
    }
    let took = clock::now() - began;
    drop(db);
    std::fs::remove_dir_all(path)?;
    Ok(took)
}

/// What a process is told that opens a store and reads it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Scan {
    /// The store.
    dir: PathBuf,
}

/// What it has found, as one line of JSON.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Scanned {
    /// Milliseconds.
    pub(crate) took: f64,
    /// Records of objects, and their bytes.
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Scanned {
    /// Bytes of one record.
    pub(crate) fn each(&self) -> f64 {
        figure(self.bytes) / figure(self.records.max(1))
    }
}

/// Opens the sled in `dir` in a process of its own and reads every object in it.
pub(crate) fn scanned(dir: &Path) -> Result<Scanned> {
    let output = Command::new(std::env::current_exe()?).arg("scan").arg(dir).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to read the store: {said}");
    serde_json::from_slice(&output.stdout).context("the other process did not answer")
}

/// The other process.
pub(crate) fn scan(told: &Scan) -> Result<()> {
    let began = clock::now();
    let db = sled::Config::default().path(&told.dir).cache_capacity(CACHE).flush_every_ms(None).open()?;
    let (mut records, mut bytes) = (0, 0);
    for record in db.scan_prefix("o/") {
        let (_, value) = record?;
        records += 1;
        bytes += value.len();
    }
    let scanned = Scanned { took: clock::now() - began, records, bytes };
    Ok(serde_json::to_writer(std::io::stdout().lock(), &scanned)?)
}

/// Copies the directory `from` to `to`, which must not be there.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let (from, to) = (file.path(), to.join(file.file_name()));
        if file.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            std::fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_measured_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(single(dir.path(), 100, 3).unwrap().len(), 3);
        assert!(bulk(dir.path(), 25, 100, 10).unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_is_copied_with_all_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/c"), "d").unwrap();
        copy(&dir.path().join("a"), &dir.path().join("e")).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("e/b/c")).unwrap(), "d");
    }
}
