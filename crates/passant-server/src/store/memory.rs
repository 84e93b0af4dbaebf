//! How is state kept for development, tests and simulation?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_core::{Host, TrustDomain};

use crate::state::change::{Change, Commit, Lineage, Revision};
use crate::store::{AppendError, Loaded, Store, StoreError, check_trust_domain};

/// What survives when a [`MemoryStore`] is dropped, as a disk would. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    is_held: bool,
    contents: Option<Contents>,
}

#[derive(Clone, Debug)]
struct Contents {
    lineage: Lineage,
    trust_domain: TrustDomain,
    revision: Revision,
    compacted: Revision,
    objects: BTreeMap<String, Change>,
    journal: BTreeMap<Revision, Commit>,
}

/// A store that forgets everything with its [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryStore(MemoryDisk);

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryDisk {
    /// A disk with the same contents, held by nobody: what is found after a crash at this moment.
    #[must_use]
    pub fn image(&self) -> Self {
        let contents = self.lock().contents.clone();
        Self(Arc::new(Mutex::new(Disk { is_held: false, contents })))
    }

    /// A disk on which a store with these objects begins at `revision`, in a lineage of its own: what is found after a
    /// restoration.
    #[must_use]
    pub fn holding(
        trust_domain: &TrustDomain,
        revision: Revision,
        objects: Vec<Change>,
        host: &Host,
    ) -> Self {
        let contents = Contents {
            lineage: Lineage::new(host.random_bytes()),
            trust_domain: trust_domain.clone(),
            revision,
            compacted: revision,
            objects: objects.into_iter().map(|object| (object.key(), object)).collect(),
            journal: BTreeMap::new(),
        };
        Self(Arc::new(Mutex::new(Disk { is_held: false, contents: Some(contents) })))
    }
}

impl MemoryStore {
    /// Opens the store on `disk`, and creates it when there is none.
    ///
    /// # Errors
    /// [`StoreError::Held`] while another store is open on the disk, [`StoreError::OtherTrustDomain`] when it was
    /// created for another one.
    pub fn open(disk: &MemoryDisk, trust_domain: &TrustDomain, host: &Host) -> Result<Self, StoreError> {
        let mut held = disk.lock();
        if held.is_held {
            return Err(StoreError::Held { dir: "in memory".into() });
        }
        let contents = held.contents.get_or_insert_with(|| Contents {
            lineage: Lineage::new(host.random_bytes()),
            trust_domain: trust_domain.clone(),
            revision: Revision::ZERO,
            compacted: Revision::ZERO,
            objects: BTreeMap::new(),
            journal: BTreeMap::new(),
        });
        check_trust_domain("in memory", &contents.trust_domain, trust_domain)?;
        held.is_held = true;
        drop(held);
        Ok(Self(disk.clone()))
    }

    /// A store on a disk of its own.
    pub fn ephemeral(trust_domain: &TrustDomain, host: &Host) -> Self {
        Self::open(&MemoryDisk::default(), trust_domain, host).expect("nobody else has this disk")
    }

    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> T) -> T {
        act(self.0.lock().contents.as_mut().expect("open has filled the disk"))
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(self.with(|contents| Loaded {
            lineage: contents.lineage,
            revision: contents.revision,
            trust_domain: contents.trust_domain.clone(),
            objects: contents.objects.values().cloned().collect(),
        }))
    }

    fn append(&mut self, after: Revision, commits: &[Commit]) -> Result<(), AppendError> {
        self.with(|contents| {
            if contents.revision != after {
                return Err(AppendError::Conflict { at: contents.revision });
            }
            for commit in commits {
                contents.revision = contents.revision.next();
                for change in &commit.changes {
                    if change.is_put() {
                        contents.objects.insert(change.key(), change.clone());
                    } else {
                        contents.objects.remove(&change.key());
                    }
                }
                contents.journal.insert(contents.revision, commit.clone());
            }
            Ok(())
        })
    }

    fn tail(&mut self, after: Revision) -> Result<Vec<(Revision, Commit)>, StoreError> {
        self.with(|contents| {
            if after < contents.compacted {
                return Err(StoreError::Compacted { upto: contents.compacted });
            }
            let kept = contents.journal.range(after.next()..);
            Ok(kept.map(|(revision, commit)| (*revision, commit.clone())).collect())
        })
    }

    fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
        self.with(|contents| {
            let upto = upto.min(contents.revision);
            contents.journal = contents.journal.split_off(&upto.next());
            contents.compacted = contents.compacted.max(upto);
        });
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn is_instant(&self) -> bool {
        true
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.0.lock().is_held = false;
    }
}
