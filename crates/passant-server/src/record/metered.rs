//! How long does the disk under the decision record take?

use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::segments::Segments;
use crate::metrics::Metrics;

/// Segments whose syncs are timed.
pub(crate) struct Metered {
    segments: Box<dyn Segments>,
    metrics: Arc<Metrics>,
}

impl Metered {
    pub(crate) fn new(segments: Box<dyn Segments>, metrics: Arc<Metrics>) -> Self {
        Self { segments, metrics }
    }

    fn counted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|_| self.metrics.record_failures.inc())
    }
}

impl Segments for Metered {
    fn name(&self, number: u32) -> String {
        self.segments.name(number)
    }

    fn list(&mut self) -> io::Result<Vec<u32>> {
        self.segments.list()
    }

    fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        self.segments.read(number)
    }

    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)> {
        self.segments.peek(number)
    }

    fn create(&mut self, number: u32) -> io::Result<()> {
        let done = self.segments.create(number);
        self.counted(done)
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        let done = self.segments.append(number, bytes);
        self.counted(done)
    }

    fn sync(&mut self, number: u32) -> io::Result<()> {
        let began = Instant::now();
        let done = self.segments.sync(number);
        self.metrics.record_sync.since(began);
        self.counted(done)
    }

    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()> {
        self.segments.truncate(number, len)
    }

    fn remove(&mut self, number: u32) -> io::Result<()> {
        self.segments.remove(number)
    }

    fn reopen(&mut self, number: u32) -> io::Result<()> {
        self.segments.reopen(number)
    }

    fn is_instant(&self) -> bool {
        self.segments.is_instant()
    }

    fn reader(&self) -> Option<Box<dyn Segments>> {
        self.segments.reader()
    }
}
