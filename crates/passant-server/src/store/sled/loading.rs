//! How do all objects come out of sled quickly?
//!
//! One thread reads, since sled's order is that of its keys, and others decode what was read. They share one table of
//! texts, so that entries hold each text once, whoever decoded them.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use passant_core::Entry;
use passant_core::texts::ReadTexts;

use super::{OBJECTS, SledStore, checksum_in, io_error};
use crate::state::change::Change;
use crate::store::StoreError;

/// Threads that decode. Decoding takes not quite twice as long as reading does.
const DECODERS: usize = 2;
/// Records that are handed on at a time, few enough to be in the processor's cache still, and how many such parts wait to
/// be decoded.
const PART: usize = 128;
const PARTS_WAITING: usize = 16;

/// What was decoded.
pub(super) struct Decoded {
    /// In the order of their keys.
    pub(super) objects: Vec<Change>,
    /// The checksums of their records, added up.
    pub(super) sum: u64,
}

/// Records as they were read, their bytes one after the other: whoever decodes them frees nothing that sled made.
struct Part {
    /// Where it stands among all parts.
    number: usize,
    bytes: Vec<u8>,
    /// Where each key, and then its value, ends.
    ends: Vec<(usize, usize)>,
}

impl Part {
    /// An empty one, with room for `bytes`.
    fn new(number: usize, bytes: usize) -> Self {
        Self { number, bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(PART) }
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((end, self.bytes.len()));
    }

    /// Keys and values.
    fn records(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut at = 0;
        self.ends.iter().map(move |(key_end, end)| {
            let record = (&self.bytes[at..*key_end], &self.bytes[*key_end..*end]);
            at = *end;
            record
        })
    }
}

/// What one thread has decoded, up to a part that it could not.
#[derive(Default)]
struct Share {
    /// The numbers of its parts, in order, and how many objects each holds.
    parts: Vec<(usize, usize)>,
    objects: Vec<Waiting>,
    sum: u64,
    failed: Option<(usize, StoreError)>,
}

/// An object that waits to be put in order. Entries, of which there may be millions, take a small part of the room of a
/// change.
enum Waiting {
    Entry(Arc<Entry>),
    Other(Box<Change>),
}

impl From<Change> for Waiting {
    fn from(change: Change) -> Self {
        if let Change::PutEntry(entry) = change { Self::Entry(entry) } else { Self::Other(Box::new(change)) }
    }
}

impl From<Waiting> for Change {
    fn from(waiting: Waiting) -> Self {
        match waiting {
            Waiting::Entry(entry) => Self::PutEntry(entry),
            Waiting::Other(change) => *change,
        }
    }
}

impl SledStore {
    /// All objects in the order of their keys, and their checksums added up.
    ///
    /// # Errors
    /// The first record, in the order of keys, that cannot be taken for true; and when all of them are not what was written.
    pub(super) fn load_objects(&self) -> Result<Decoded, StoreError> {
        let (parts, read) = mpsc::sync_channel(PARTS_WAITING);
        let read = Arc::new(Mutex::new(read));
        let texts = ReadTexts::default();
        let shares = std::thread::scope(|scope| {
            let decoding = (0..DECODERS).map(|_| {
                let (read, texts) = (Arc::clone(&read), texts.clone());
                let decode = move || texts.reading(|| self.decode_parts(&read));
                Builder::new()
                    .spawn_scoped(scope, decode)
                    .map_err(io_error("start a thread to read", &self.place))
            });
            let decoding = decoding.collect::<Result<Vec<_>, _>>();
            // Only they hold it: once all of them have ended, nobody waits for room in it.
            drop(read);
            let decoding = decoding?;
            let done = self.read_objects(&parts);
            drop(parts);
            let shares = decoding
                .into_iter()
                .map(|decoding| decoding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let shares: Vec<Share> = shares.collect();
            done.map(|()| shares)
        })?;
        let decoded = put_together(shares)?;
        let found = u64::try_from(decoded.objects.len()).unwrap_or(u64::MAX);
        if found != self.head.objects {
            let what = format!("{} objects were written, {found} were found", self.head.objects);
            return Err(StoreError::Corrupt { place: self.place.display().to_string(), what });
        }
        if self.head.sum.is_some_and(|written| written != decoded.sum) {
            let what = "some of its objects are not the newest that were written".to_owned();
            return Err(StoreError::Corrupt { place: self.place.display().to_string(), what });
        }
        Ok(decoded)
    }

    /// Reads the records of all objects into `parts`, until nobody wants any more.
    fn read_objects(&self, parts: &SyncSender<Part>) -> Result<(), StoreError> {
        let mut records = self.db()?.scan_prefix(OBJECTS);
        let mut room = 0;
        for number in 0.. {
            let mut part = Part::new(number, room);
            for record in records.by_ref().take(PART) {
                let (key, value) = record.map_err(|source| self.sled_error("read", source))?;
                part.push(&key, &value);
            }
            room = part.bytes.len() + part.bytes.len() / 8;
            if part.ends.is_empty() || parts.send(part).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Decodes what is read, until there is no more or a record is not as it should be.
    fn decode_parts(&self, read: &Mutex<Receiver<Part>>) -> Share {
        let mut share = Share::default();
        loop {
            // Whoever waits for a part has the others wait for their turn.
            let next = read.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(part) = next else { break };
            if let Err(error) = self.decode_part(&part, &mut share) {
                share.failed = Some((part.number, error));
                break;
            }
        }
        share
    }

    fn decode_part(&self, part: &Part, share: &mut Share) -> Result<(), StoreError> {
        for (key, value) in part.records() {
            let object: Change = self.read(key, value)?;
            let is_under = key.strip_prefix(OBJECTS.as_bytes()).is_some_and(|key| object.has_key(key));
            if !object.is_put() || !is_under {
                return Err(self.corrupt(key, "it holds another object".to_owned()));
            }
            share.objects.push(object.into());
            share.sum = share.sum.wrapping_add(checksum_in(value));
        }
        share.parts.push((part.number, part.ends.len()));
        Ok(())
    }
}

/// All objects, in their order; the first failure instead, if there is one. Each thread has ended at its own first: the others
/// have decoded all that came before.
fn put_together(shares: Vec<Share>) -> Result<Decoded, StoreError> {
    let (mut parts, mut objects, mut failed, mut sum) = (Vec::new(), Vec::new(), Vec::new(), 0_u64);
    for (whose, share) in shares.into_iter().enumerate() {
        parts.extend(share.parts.into_iter().map(|(number, count)| (number, whose, count)));
        objects.push(share.objects.into_iter());
        failed.extend(share.failed);
        sum = sum.wrapping_add(share.sum);
    }
    if let Some((_, error)) = failed.into_iter().min_by_key(|(number, _)| *number) {
        return Err(error);
    }
    parts.sort_unstable();
    let mut all = Vec::with_capacity(objects.iter().map(ExactSizeIterator::len).sum());
    for (_, whose, count) in parts {
        all.extend(objects[whose].by_ref().take(count).map(Change::from));
    }
    Ok(Decoded { objects: all, sum })
}

#[cfg(test)]
mod tests {
    use passant_core::Host;

    use super::*;
    use crate::state::change::Revision;
    use crate::state::samples::{commit, entry, trust_domain};
    use crate::store::Store;

    const MANY: usize = PART * (PARTS_WAITING + 4) + 1;

    fn with_many(dir: &std::path::Path) -> (SledStore, Vec<Change>) {
        let mut store = SledStore::open(dir, &trust_domain(), &Host::system()).unwrap();
        let puts = (0..MANY).map(|number| Change::PutEntry(entry(&format!("e{number:06}"), "/w", "/p")));
        let puts: Vec<Change> = puts.collect();
        store.append(Revision::ZERO, &[commit(1, puts.clone())]).unwrap();
        (store, puts)
    }

    #[test]
    fn many_objects_come_in_the_order_of_their_keys_and_hold_each_text_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, puts) = with_many(dir.path());
        let loaded = store.load().unwrap().objects;
        assert_eq!(loaded, puts);
        let texts = loaded.iter().filter_map(|object| {
            let Change::PutEntry(entry) = object else { return None };
            Some(entry.spiffe_id.as_str().as_ptr())
        });
        assert_eq!(texts.collect::<std::collections::BTreeSet<_>>().len(), 1);
    }

    #[test]
    fn of_many_damaged_records_the_first_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = with_many(dir.path());
        for number in (PART * 3 + 5..MANY).step_by(PART) {
            let key = format!("o/entry/e{number:06}");
            let mut value = store.db().unwrap().get(&key).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            store.db().unwrap().insert(key, value).unwrap();
        }
        // So many that every thread ends early, and the one that reads with them.
        for _ in 0..5 {
            let refused = store.load().unwrap_err().to_string();
            let first = format!("o/entry/e{:06} ", PART * 3 + 5);
            assert!(refused.contains(&first) && refused.contains("checksum"), "{refused}");
        }
    }
}
