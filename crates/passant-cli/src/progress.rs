//! What does somebody see who waits at a terminal?

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

/// No more often than the eye follows.
const EVERY: Duration = Duration::from_millis(100);
/// Work that is done sooner needs no word.
const SILENT: Duration = Duration::from_millis(500);

/// One line on standard error that counts, while the work takes long enough to wonder; nothing where that is no terminal.
pub(crate) struct Progress {
    what: &'static str,
    done: usize,
    of: Option<usize>,
    next: Option<Instant>,
    shown: bool,
}

impl Progress {
    /// `what` is counted, such as "entries read".
    pub(crate) fn new(what: &'static str) -> Self {
        let next = io::stderr().is_terminal().then(|| Instant::now() + SILENT);
        Self { what, done: 0, of: None, next, shown: false }
    }

    /// The same, when it is known how many there are.
    pub(crate) fn of(what: &'static str, all: usize) -> Self {
        Self { of: Some(all), ..Self::new(what) }
    }

    /// So many more are done.
    pub(crate) fn add(&mut self, more: usize) {
        self.done += more;
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now >= next {
            self.next = Some(now + EVERY);
            self.shown = true;
            self.write(&self.line());
        }
    }

    fn line(&self) -> String {
        let Self { what, done, .. } = self;
        match self.of {
            Some(all) => format!("{done} of {all} {what}"),
            None => format!("{done} {what}"),
        }
    }

    /// Over what stood there before.
    fn write(&self, text: &str) {
        let mut to = io::stderr();
        // Nobody is harmed by a line that is not seen.
        drop(write!(to, "\r\x1b[K{text}").and_then(|()| to.flush()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            self.write("");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts() {
        let mut progress = Progress { what: "entries", done: 0, of: None, next: None, shown: false };
        progress.add(7);
        assert_eq!(progress.line(), "7 entries");
        assert_eq!(Progress { of: Some(9), ..progress }.line(), "7 of 9 entries");
    }
}
