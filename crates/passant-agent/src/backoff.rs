//! How long to wait before the next attempt?

use std::time::Duration;

use passant_core::Host;

use crate::limits;

/// Waits that grow by half from `first` to `last`, each spread by a tenth either way so that a fleet does not march in
/// step.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    last: Duration,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub(crate) const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, failures: 0 }
    }

    /// Forgets the failures.
    pub(crate) const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Counts one failure and says how long to wait.
    pub(crate) fn failed(&mut self, host: &Host) -> Duration {
        let wait = grown(self.first, self.last, self.failures);
        self.failures = self.failures.saturating_add(1);
        spread(wait, host)
    }
}

/// How long to wait before the next attempt: as the server said, if it did, and else `guess`.
///
/// Never less than it said, and up to a fifth more, so that those it has told the same do not come together; never more than
/// [`HINT_LAST`](limits::HINT_LAST), whatever it said. Nor less than [`HINT_LEAST`](limits::HINT_LEAST) and an eighth of
/// `guess`, which grows with each failure: a server that says "at once" again and again is asked less and less.
pub(crate) fn as_told(said: Option<Duration>, guess: Duration, host: &Host) -> Duration {
    let Some(said) = said else { return guess };
    let floor = (guess / 8).clamp(limits::HINT_LEAST, limits::HINT_LAST);
    let least = said.clamp(floor, limits::HINT_LAST);
    host.jitter().between(least, least.mul_f64(1.2))
}

/// `first` grown by half `failures` times, at most `last`.
pub(crate) fn grown(first: Duration, last: Duration, failures: u32) -> Duration {
    (0..failures.min(64)).fold(first, |wait, _| (wait + wait / 2).min(last)).min(last)
}

/// `span`, a tenth longer or shorter at random.
pub(crate) fn spread(span: Duration, host: &Host) -> Duration {
    host.jitter().between(span.mul_f64(0.9), span.mul_f64(1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_half_up_to_the_last() {
        let (first, last) = (Duration::from_secs(4), Duration::from_secs(12));
        let waits: Vec<u64> = (0..5).map(|n| grown(first, last, n).as_secs()).collect();
        assert_eq!(waits, [4, 6, 9, 12, 12]);
        assert_eq!(grown(first, last, u32::MAX), last);
    }

    #[test]
    fn what_the_server_says_counts_for_more_than_a_guess() {
        let host = Host::system();
        let (guess, said) = (Duration::from_secs(15), Duration::from_secs(2));
        assert_eq!(as_told(None, guess, &host), guess);
        for _ in 0..100 {
            assert!((said..=said.mul_f64(1.2)).contains(&as_told(Some(said), guess, &host)));
        }
        let last = limits::HINT_LAST;
        let whatever = as_told(Some(Duration::from_secs(86_400)), guess, &host);
        assert!((last..=last.mul_f64(1.2)).contains(&whatever), "{whatever:?}");
    }

    #[test]
    fn a_small_hint_makes_no_hot_loop_and_shortens_nothing_for_good() {
        let host = Host::system();
        let mut backoff = Backoff::new(limits::BACKOFF_FIRST, limits::BACKOFF_LAST);
        for said in [Duration::ZERO, Duration::from_millis(1), limits::HINT_LEAST] {
            assert!(as_told(Some(said), Duration::ZERO, &host) >= limits::HINT_LEAST, "{said:?}");
            assert!(as_told(Some(said), backoff.failed(&host), &host) >= limits::HINT_LEAST, "{said:?}");
            // After a long time of it.
            let grown = as_told(Some(said), limits::BACKOFF_LAST, &host);
            assert!(grown >= limits::BACKOFF_LAST / 8, "{said:?}: {grown:?}");
        }
        // Whatever is guessed, the bounds are in order.
        assert!(as_told(Some(Duration::ZERO), Duration::MAX, &host) >= limits::HINT_LAST);
    }

    #[test]
    fn a_wait_is_spread_by_at_most_a_tenth_and_success_starts_over() {
        let host = Host::system();
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(100));
        let within =
            |wait: Duration, middle: f64| (wait.as_secs_f64() - middle).abs() <= middle / 10.0 + 1e-6;
        assert!(within(backoff.failed(&host), 10.0));
        assert!(within(backoff.failed(&host), 15.0));
        backoff.succeeded();
        assert!(within(backoff.failed(&host), 10.0));
    }
}
