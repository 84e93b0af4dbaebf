//! What must every store keep? One suite, run on each of them.

use passant_core::{Host, TrustDomain};
use proptest::prelude::*;

use crate::state::samples::{
    any_commits, bundle, commit, entry, entry_id, node, other_trust_domain, token, trust_domain,
};
use crate::state::{Change, Cursor, Revision, State};
use crate::store::memory::{MemoryDisk, MemoryStore};
use crate::store::sled::SledStore;
use crate::store::{AppendError, Store, StoreError};

/// Where a store lies, and lies on when the store is dropped.
trait Disk {
    fn try_open(&self, trust_domain: &TrustDomain) -> Result<Box<dyn Store>, StoreError>;

    fn open(&self) -> Box<dyn Store> {
        self.try_open(&trust_domain()).unwrap()
    }
}

impl Disk for MemoryDisk {
    fn try_open(&self, trust_domain: &TrustDomain) -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(MemoryStore::open(self, trust_domain, &Host::system())?))
    }
}

impl Disk for tempfile::TempDir {
    fn try_open(&self, trust_domain: &TrustDomain) -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(SledStore::open(self.path(), trust_domain, &Host::system())?))
    }
}

macro_rules! contract {
    ($($fact:ident)*) => {
        mod memory_store {
            $(#[test] fn $fact() { super::$fact(&super::MemoryDisk::default()); })*

            #[test]
            fn what_is_loaded_is_what_was_applied() {
                super::what_is_loaded_is_what_was_applied(|| super::MemoryDisk::default(), 256);
            }
        }
        mod sled_store {
            $(#[test] fn $fact() { super::$fact(&tempfile::tempdir().unwrap()); })*

            #[test]
            fn what_is_loaded_is_what_was_applied() {
                super::what_is_loaded_is_what_was_applied(|| tempfile::tempdir().unwrap(), 24);
            }
        }
    };
}

contract! {
    new_store_is_empty_and_has_a_lineage_of_its_own
    commits_survive_the_store
    appending_elsewhere_than_at_the_head_is_a_conflict
    appending_nothing_does_nothing
    an_empty_commit_takes_a_revision
    tail_tells_the_commits_after_a_revision
    compaction_forgets_commits_and_keeps_objects
    large_commits_are_one_commit
    a_store_is_open_once
    another_trust_domain_is_refused
}

fn rev(number: u64) -> Revision {
    Revision::new(number)
}

fn put(name: &str) -> Change {
    Change::PutEntry(entry(name, "/w", "/spire/agent/x/0"))
}

fn new_store_is_empty_and_has_a_lineage_of_its_own(disk: &dyn Disk) {
    let loaded = disk.open().load().unwrap();
    assert_eq!((loaded.revision, loaded.objects), (Revision::ZERO, Vec::new()));
    assert_eq!(loaded.trust_domain, trust_domain());
    assert_eq!(disk.open().load().unwrap().lineage, loaded.lineage);
    assert_ne!(MemoryDisk::default().open().load().unwrap().lineage, loaded.lineage);
}

fn commits_survive_the_store(disk: &dyn Disk) {
    let puts = vec![put("e1"), put("e2"), Change::PutNode(node("/spire/agent/x/0", &[]))];
    let deletes = vec![Change::DeleteEntry(entry_id("e1")), Change::PutToken(token("t", 5))];
    let first = commit(1, puts.clone());
    let second = commit(2, deletes.clone());
    disk.open().append(Revision::ZERO, &[first]).unwrap();
    disk.open().append(rev(1), &[second]).unwrap();
    let loaded = disk.open().load().unwrap();
    assert_eq!(loaded.revision, rev(2));
    assert_eq!(loaded.objects, [puts[1].clone(), puts[2].clone(), deletes[1].clone()]);
}

fn appending_elsewhere_than_at_the_head_is_a_conflict(disk: &dyn Disk) {
    let mut store = disk.open();
    store.append(Revision::ZERO, &[commit(1, vec![put("e1")])]).unwrap();
    for wrong in [0, 2] {
        let refused = store.append(rev(wrong), &[commit(2, vec![put("e2")])]);
        assert!(matches!(refused, Err(AppendError::Conflict { at }) if at == rev(1)), "{refused:?}");
    }
    assert_eq!(store.load().unwrap().objects, [put("e1")]);
}

fn appending_nothing_does_nothing(disk: &dyn Disk) {
    let mut store = disk.open();
    store.append(Revision::ZERO, &[]).unwrap();
    assert_eq!(store.load().unwrap().revision, Revision::ZERO);
}

fn an_empty_commit_takes_a_revision(disk: &dyn Disk) {
    disk.open().append(Revision::ZERO, &[commit(1, vec![])]).unwrap();
    let mut store = disk.open();
    assert_eq!(store.load().unwrap().revision, rev(1));
    assert_eq!(store.tail(Revision::ZERO).unwrap(), [(rev(1), commit(1, vec![]))]);
}

fn tail_tells_the_commits_after_a_revision(disk: &dyn Disk) {
    let commits = [1, 2, 3].map(|number| commit(number, vec![put(&format!("e{number}"))]));
    let mut store = disk.open();
    store.append(Revision::ZERO, &commits[..1]).unwrap();
    store.append(rev(1), &commits[1..]).unwrap();
    drop(store);
    let mut store = disk.open();
    let numbered: Vec<_> = (1..).map(rev).zip(commits).collect();
    for after in 0..=3 {
        assert_eq!(store.tail(rev(after)).unwrap(), numbered[usize::try_from(after).unwrap()..]);
    }
}

fn compaction_forgets_commits_and_keeps_objects(disk: &dyn Disk) {
    let commits = [1, 2, 3].map(|number| commit(number, vec![put(&format!("e{number}"))]));
    let mut store = disk.open();
    store.append(Revision::ZERO, &commits).unwrap();
    store.compact(rev(2)).unwrap();
    for _ in 0..2 {
        assert_eq!(store.load().unwrap().objects.len(), 3);
        assert_eq!(store.tail(rev(2)).unwrap(), [(rev(3), commits[2].clone())]);
        assert!(matches!(store.tail(rev(1)), Err(StoreError::Compacted { upto }) if upto == rev(2)));
        drop(store);
        store = disk.open();
    }
    store.compact(rev(1)).unwrap();
    assert_eq!(store.tail(rev(2)).unwrap().len(), 1);
    store.compact(rev(100)).unwrap();
    store.append(rev(3), &[commit(4, vec![put("e4")])]).unwrap();
    drop(store);
    let mut store = disk.open();
    assert_eq!(store.tail(rev(3)).unwrap(), [(rev(4), commit(4, vec![put("e4")]))]);
    assert!(matches!(store.tail(rev(2)), Err(StoreError::Compacted { upto }) if upto == rev(3)));
}

fn large_commits_are_one_commit(disk: &dyn Disk) {
    let mut changes: Vec<Change> = (0..500).map(|number| put(&format!("e{number:04}"))).collect();
    // Larger than what sled keeps in its log.
    changes.push(Change::PutBundle(bundle(other_trust_domain(), 1, 2_000_000)));
    let large = commit(1, changes.clone());
    disk.open().append(Revision::ZERO, std::slice::from_ref(&large)).unwrap();
    let mut store = disk.open();
    assert_eq!(store.tail(Revision::ZERO).unwrap(), [(rev(1), large)]);
    assert_eq!(store.load().unwrap().objects.len(), 501);
}

fn a_store_is_open_once(disk: &dyn Disk) {
    let store = disk.open();
    assert!(matches!(disk.try_open(&trust_domain()), Err(StoreError::Held { .. })));
    drop(store);
    assert!(disk.try_open(&trust_domain()).is_ok());
}

fn another_trust_domain_is_refused(disk: &dyn Disk) {
    disk.open().append(Revision::ZERO, &[commit(1, vec![put("e1")])]).unwrap();
    let refused = disk.try_open(&other_trust_domain()).err().unwrap();
    let StoreError::OtherTrustDomain { stored, configured, .. } = refused else { panic!("{refused}") };
    assert_eq!((stored, configured), (trust_domain(), other_trust_domain()));
    assert_eq!(disk.open().load().unwrap().objects.len(), 1);
}

fn what_is_loaded_is_what_was_applied<D: Disk>(new_disk: impl Fn() -> D, cases: u32) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(commits in any_commits(), together in 1..5_usize, compact_at in 0..12_u64)| {
        let disk = new_disk();
        let mut store = disk.open();
        let lineage = store.load().unwrap().lineage;
        let mut applied = State::empty(trust_domain(), Cursor { lineage, revision: Revision::ZERO });
        for group in commits.chunks(together) {
            store.append(applied.cursor().revision, group).unwrap();
            group.iter().for_each(|commit| applied.apply(commit));
        }
        store.compact(rev(compact_at)).unwrap();
        drop(store);
        let loaded = disk.open().load().unwrap();
        let cursor = Cursor { lineage: loaded.lineage, revision: loaded.revision };
        let loaded = State::of_objects(loaded.trust_domain, cursor, loaded.objects);
        prop_assert_eq!(loaded, applied);
    });
}
