//! Which requirements of the specifications does a test meet?
//!
//! A test says so with a guard. What it names is written to the log that `cargo xtask conformance` reads, and counts there
//! only if the test runner says that this very test passed.

use std::fs::File;
use std::io::Write;

/// All requirements; the id is the first column.
const REQUIREMENTS: &str = include_str!("../conformance/requirements.tsv");

/// The environment variable that names the log. Without it nothing is written.
pub const LOG: &str = "PASSANT_CONFORMANCE_LOG";

/// Says on drop that the requirements are met, unless the test panics.
#[derive(Debug)]
#[must_use = "the requirements count when this is dropped at the end of the test"]
pub struct Met {
    ids: Vec<String>,
    test: String,
}

/// Held by the running test to its end: it meets the requirements with these ids.
///
/// # Panics
/// When an id is unknown, so that a slip is no silent gap.
pub fn meets(ids: &[&str]) -> Met {
    for id in ids {
        let known = REQUIREMENTS.lines().skip(1).any(|row| row.split('\t').next() == Some(id));
        assert!(known, "{id} is no requirement of requirements.tsv");
    }
    let test = std::thread::current().name().unwrap_or("unnamed").to_owned();
    Met { ids: ids.iter().map(|id| (*id).to_owned()).collect(), test }
}

impl Drop for Met {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let Some(path) = std::env::var_os(LOG) else { return };
        let lines: String = self.ids.iter().map(|id| format!("{id}\t{}\n", self.test)).collect();
        // One write in append mode: lines of tests that end together do not mix.
        let written = File::options()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut log| log.write_all(lines.as_bytes()));
        written.expect("the conformance log can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_ids_are_refused() {
        assert!(std::panic::catch_unwind(|| drop(meets(&["X509-99"]))).is_err());
        drop(meets(&["X509-02", "JWT-01"]));
    }
}
