//! How long does a store take?

use std::sync::Arc;

use tokio::time::Instant;

use super::{AppendError, Loaded, Store, StoreError};
use crate::metrics::Metrics;
use crate::state::change::{Commit, Revision};

/// A store whose appends are timed.
pub(crate) struct Metered {
    store: Box<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Metered {
    pub(crate) fn new(store: Box<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

impl Store for Metered {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.store.load()
    }

    fn append(&mut self, after: Revision, commits: &[Commit]) -> Result<(), AppendError> {
        let began = Instant::now();
        let done = self.store.append(after, commits);
        self.metrics.store_append.since(began);
        self.metrics.store_batch.observe(commits.len());
        match &done {
            Ok(()) => self.metrics.commits.add(commits.len()),
            Err(_) => self.metrics.store_failures.inc(),
        }
        done
    }

    fn tail(&mut self, after: Revision) -> Result<Vec<(Revision, Commit)>, StoreError> {
        self.store.tail(after)
    }

    fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
        self.store.compact(upto)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.store.reopen()
    }

    fn is_instant(&self) -> bool {
        self.store.is_instant()
    }
}
