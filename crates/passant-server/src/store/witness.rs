//! Does a store still stand where it stood?
//!
//! A store whose log lost its end looks like one that never had it. So the newest revision is written beside it as well, in the
//! file `revision`, after each commit that lasts. That file is not synced: it says less than the truth after a power cut, and
//! never more.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::state::change::{Lineage, Revision};
use crate::store::StoreError;

/// The file's name in the data directory.
const FILE: &str = "revision";

/// The file `revision`.
#[derive(Debug)]
pub(super) struct Witness {
    path: PathBuf,
    file: File,
}

impl Witness {
    /// Opens the file in `data_dir`, and makes it where there is none.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let failed = |source| StoreError::Io { doing: "open", place: path.display().to_string(), source };
        Ok(Self { file: file.map_err(failed)?, path })
    }

    /// Writes down that `revision` is acknowledged. Failing costs nothing but the second opinion.
    pub(super) fn note(&self, lineage: Lineage, revision: Revision) {
        if let Err(error) = self.file.write_all_at(line(lineage, revision).as_bytes(), 0) {
            tracing::warn!(%error, file = %self.path.display(), "failed to write down the newest revision");
        }
    }

    /// Compares where the store `place` stands with what was written down of this life of it.
    ///
    /// # Errors
    /// [`StoreError::Behind`].
    pub(super) fn check(&self, place: &Path, lineage: Lineage, found: Revision) -> Result<(), StoreError> {
        match self.newest() {
            Some((of, acknowledged)) if of == lineage.to_string() && acknowledged > found => {
                Err(self.behind(place, found, acknowledged))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Compares a store `place` that is empty with what was written down: damage at the beginning of its log makes it so.
    ///
    /// # Errors
    /// [`StoreError::Behind`].
    pub(super) fn check_empty(&self, place: &Path) -> Result<(), StoreError> {
        match self.newest() {
            Some((_, acknowledged)) => Err(self.behind(place, Revision::ZERO, acknowledged)),
            None => Ok(()),
        }
    }

    /// The life of the store and the newest revision of it that were written down, if the line is whole.
    fn newest(&self) -> Option<(String, Revision)> {
        let mut text = [0; 256];
        let read = self.file.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..read]).ok()?;
        let (says, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
        let lineage = says.split(' ').next()?;
        let is_whole = format!("{:08x}", crc32fast::hash(says.as_bytes())) == sum;
        if is_whole { Some((lineage.to_owned(), read_line(text.as_bytes())?)) } else { None }
    }

    fn behind(&self, place: &Path, found: Revision, acknowledged: Revision) -> StoreError {
        let place = place.display().to_string();
        StoreError::Behind { place, found, acknowledged, witness: self.path.clone() }
    }
}

/// The newest revision that was written down in `data_dir`, of whatever life of its store.
pub(crate) fn noted(data_dir: &Path) -> Option<Revision> {
    read_line(&std::fs::read(data_dir.join(FILE)).ok()?)
}

/// One line, always of the same length: the lineage, the revision and their checksum.
fn line(lineage: Lineage, revision: Revision) -> String {
    let says = format!("{lineage} {:020}", revision.number());
    format!("{says} {:08x}\n", crc32fast::hash(says.as_bytes()))
}

/// The revision in a line; the line is not otherwise looked at.
fn read_line(text: &[u8]) -> Option<Revision> {
    let text = std::str::from_utf8(text).ok()?;
    Some(Revision::new(text.split(' ').nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_of_the_same_life_speaks() {
        let dir = tempfile::tempdir().unwrap();
        let witness = Witness::open(dir.path()).unwrap();
        let (ours, other) = (Lineage::new([1; 16]), Lineage::new([2; 16]));
        let check = |lineage, revision| {
            Witness::open(dir.path()).unwrap().check(Path::new("x"), lineage, Revision::new(revision)).is_ok()
        };
        assert!(check(ours, 0));
        witness.note(ours, Revision::new(12));
        assert!(check(ours, 12) && check(ours, 13) && check(other, 3));
        assert!(!check(ours, 11));
        witness.note(ours, Revision::new(9));
        assert!(check(ours, 9) && !check(ours, 8));
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in
            [text.replace('9', "8"), text.replacen('9', "99", 1), String::new(), "x y z".to_owned()]
        {
            std::fs::write(&path, damaged).unwrap();
            assert!(check(ours, 0));
        }
    }
}
