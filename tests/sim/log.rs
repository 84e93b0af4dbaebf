//! What happened, how often, and was anything wrong?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// What everybody tells of a run. Clones are the same.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Book>>);

struct Book {
    since: Instant,
    hash: u64,
    /// The lines themselves, if somebody wants to read them.
    lines: Option<Vec<String>>,
    outcome: Outcome,
}

/// What came of one run, or of several together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// How often each fault occurred.
    pub(crate) faults: BTreeMap<String, u64>,
    /// How often each thing was checked or happened.
    pub(crate) counts: BTreeMap<String, u64>,
    /// What was wrong.
    pub(crate) violations: Vec<String>,
    /// Stands for all that happened, in its order.
    pub(crate) hash: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Self) {
        for (name, times) in other.faults {
            *self.faults.entry(name).or_default() += times;
        }
        for (name, times) in other.counts {
            *self.counts.entry(name).or_default() += times;
        }
        self.violations.extend(other.violations);
    }
}

impl Log {
    pub(crate) fn new(since: Instant, keeps_lines: bool) -> Self {
        let lines = keeps_lines.then(Vec::new);
        let hash = 0xcbf2_9ce4_8422_2325;
        Self(Arc::new(Mutex::new(Book { since, hash, lines, outcome: Outcome::default() })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something happened that must happen again when the seed is run again.
    pub(crate) fn trace(&self, what: impl AsRef<str>) {
        self.with(|book| book.line(what.as_ref()));
    }

    /// A fault occurred.
    pub(crate) fn fault(&self, name: &str) {
        self.with(|book| *book.outcome.faults.entry(name.to_owned()).or_default() += 1);
        self.trace(format!("fault: {name}"));
    }

    /// Something was checked, or happened that checks depend on.
    pub(crate) fn count(&self, name: &str) {
        self.with(|book| *book.outcome.counts.entry(name.to_owned()).or_default() += 1);
    }

    /// Something must not be as it is.
    pub(crate) fn violation(&self, what: &str) {
        self.trace(format!("VIOLATION: {what}"));
        self.with(|book| {
            let at = book.since.elapsed().as_secs_f64();
            book.outcome.violations.push(format!("after {at:.3} s: {what}"));
        });
    }

    pub(crate) fn is_violated(&self) -> bool {
        self.with(|book| !book.outcome.violations.is_empty())
    }

    /// What came of it, and the lines if they were kept.
    pub(crate) fn end(&self) -> (Outcome, Vec<String>) {
        self.with(|book| {
            let outcome = Outcome { hash: book.hash, ..std::mem::take(&mut book.outcome) };
            (outcome, book.lines.take().unwrap_or_default())
        })
    }
}

impl Book {
    fn line(&mut self, what: &str) {
        let line = format!("{:>9.3} {what}", self.since.elapsed().as_secs_f64());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }
}
