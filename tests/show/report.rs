//! Which facts held, and how is that said?

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts facts as they are told. Displayed, it is the closing line of a show.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: AtomicUsize,
    failed: AtomicUsize,
}

impl Report {
    /// Tells whether the fact `name` held: `Ok` with a remark, which may be empty, or why not.
    pub(crate) fn fact(&self, name: &str, outcome: anyhow::Result<String>) {
        match outcome {
            Ok(remark) if remark.is_empty() => self.passed(&format!("ok {name}")),
            Ok(remark) => self.passed(&format!("ok {name} ({remark})")),
            Err(why) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                say(&format!("FAIL {name}: {why:#}"));
            }
        }
    }

    /// The fact `name` holds if there is no violation of it; the first few are told.
    pub(crate) fn none(&self, name: &str, violations: &[String], remark: &str) {
        const SHOWN: usize = 5;
        match violations {
            [] => self.fact(name, Ok(remark.to_owned())),
            some => {
                let shown = some[..some.len().min(SHOWN)].join("; ");
                self.fact(name, Err(anyhow::anyhow!("{} violations: {shown}", some.len())));
            }
        }
    }

    /// Tells a verdict of another runner, whose line is passed on as it is.
    pub(crate) fn verdict_of_another(&self, passed: bool, line: &str) {
        if passed {
            self.passed(line);
        } else {
            self.failed.fetch_add(1, Ordering::Relaxed);
            say(line);
        }
    }

    /// Facts that held and facts that did not.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.passed.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Whether there were facts, and all held.
    pub(crate) fn holds(&self) -> bool {
        let (passed, failed) = self.counts();
        passed > 0 && failed == 0
    }

    fn passed(&self, line: &str) {
        self.passed.fetch_add(1, Ordering::Relaxed);
        say(line);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, failed) = self.counts();
        write!(f, "{passed} passed, {failed} failed")
    }
}

/// Prints one line.
#[expect(clippy::print_stdout, reason = "a show speaks to whoever started it")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_show_without_facts_does_not_hold() {
        assert!(!Report::default().holds());
    }

    #[test]
    fn one_violation_fails_a_fact_and_the_show() {
        let report = Report::default();
        report.none("nothing expires", &[], "");
        assert!(report.holds());
        report.none("nothing expires", &["it expired".to_owned()], "");
        assert!(!report.holds());
        assert_eq!(report.to_string(), "1 passed, 1 failed");
    }
}
