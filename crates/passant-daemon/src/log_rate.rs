//! How often is the log told of what a stranger can cause?

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines about one cause in one [`WINDOW`].
const LINES: u32 = 5;
/// How long the lines are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// Causes that are told apart. Beyond, all others share the lines of one.
const CAUSES: usize = 64;

/// Bounds the lines about one kind of event: a few in ten seconds for each cause, which is an address or a user, so that who
/// floods the log hides nobody else's lines. What was left out is counted, and told with the next line that is written.
#[derive(Debug)]
pub struct LogRate<K> {
    causes: Mutex<BTreeMap<Option<K>, Window>>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl<K> Default for LogRate<K> {
    fn default() -> Self {
        Self { causes: Mutex::new(BTreeMap::new()) }
    }
}

impl<K: Ord> LogRate<K> {
    /// Whether a line about `cause` is to be written now; and if so, how many were left out since the one before.
    pub fn line(&self, cause: K) -> Option<u64> {
        let now = Instant::now();
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |window: &Window| now.duration_since(window.began) >= WINDOW;
        let mut cause = Some(cause);
        if !causes.contains_key(&cause) && causes.len() >= CAUSES {
            // Those that are still owed a count stay, until they are too many.
            causes.retain(|_, window| !is_over(window) || window.left_out > 0);
            if causes.len() >= CAUSES {
                causes.retain(|_, window| !is_over(window));
            }
            if causes.len() >= CAUSES {
                cause = None;
            }
        }
        let window = causes.entry(cause).or_insert_with(|| Window { began: now, lines: 0, left_out: 0 });
        if is_over(window) {
            (window.began, window.lines) = (now, 0);
        }
        if window.lines == LINES {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_and_told_with_the_next_line() {
        let rate = LogRate::default();
        for _ in 0..LINES {
            assert_eq!(rate.line("a"), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(rate.line("a"), None);
        }
        assert_eq!(rate.line("b"), Some(0), "another cause has its own lines");
        advance(WINDOW).await;
        assert_eq!(rate.line("a"), Some(1000));
        assert_eq!(rate.line("a"), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn many_causes_share_and_take_bounded_memory() {
        let rate = LogRate::default();
        let lines = (0..100_000).filter(|cause| rate.line(*cause).is_some()).count();
        assert_eq!(lines, CAUSES + LINES as usize);
        assert_eq!(rate.causes.lock().unwrap().len(), CAUSES + 1);
        advance(WINDOW).await;
        assert_eq!(rate.line(100_001), Some(0), "the old ones are forgotten");
        assert_eq!(rate.causes.lock().unwrap().len(), 2);
    }
}
