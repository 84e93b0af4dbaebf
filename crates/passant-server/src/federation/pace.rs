//! When is a foreign bundle fetched again?

use std::time::Duration;

use passant_core::Bundle;
use passant_core::lifetime::Jitter;

use crate::limits::{POLL_DEFAULT, POLL_LEAST, POLL_MOST, POLL_PATIENCE, POLL_WITHOUT};

/// How often the endpoint of `held`'s trust domain wants to be asked, within our bounds (SPIFFE Federation 4.1): by its
/// hint, or every five minutes without one. Without a bundle there is nothing to go by, and somebody waits for the first.
pub(super) fn interval(held: Option<&Bundle>) -> Duration {
    held.map_or(POLL_WITHOUT, |bundle| {
        bundle.refresh_hint.unwrap_or(POLL_DEFAULT).clamp(POLL_LEAST, POLL_MOST)
    })
}

/// The pause before the next attempt, when the last `failures` attempts failed.
///
/// It is never longer than `interval` after a success, nor after one failure (SPIFFE Federation 6.2); an endpoint that
/// fails again and again is left alone for longer, up to [`POLL_PATIENCE`] unless its interval is longer. Up to a tenth is
/// taken off by `jitter`, so that those who began together do not go on together.
pub(super) fn pause(interval: Duration, failures: u32, jitter: Jitter) -> Duration {
    let doubled = interval.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    let pause = doubled.min(POLL_PATIENCE).max(interval);
    jitter.between(pause.mul_f64(0.9), pause)
}

#[cfg(test)]
mod tests {
    use passant_core::TrustDomain;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn hints_count_within_bounds() {
        let hinted = |hint: Option<Duration>| Bundle {
            refresh_hint: hint,
            ..Bundle::empty(TrustDomain::parse("other.test").unwrap())
        };
        for (hint, expected) in [
            (None, POLL_DEFAULT),
            (Some(secs(1)), POLL_LEAST),
            (Some(POLL_LEAST), POLL_LEAST),
            (Some(secs(60)), secs(60)),
            (Some(POLL_MOST), POLL_MOST),
            (Some(secs(u64::MAX)), POLL_MOST),
        ] {
            assert_eq!(interval(Some(&hinted(hint))), expected, "{hint:?}");
        }
        assert_eq!(interval(None), POLL_WITHOUT);
        assert_eq!(POLL_DEFAULT, secs(300), "SPIFFE Federation 4.1");
    }

    #[test]
    fn only_repeated_failures_make_the_pause_longer_than_the_interval() {
        let check = |interval: u64, failures: u32, expected: u64| {
            assert_eq!(pause(secs(interval), failures, Jitter::LATEST), secs(expected), "{failures}");
            assert_eq!(pause(secs(interval), failures, Jitter::EARLIEST), secs(expected).mul_f64(0.9));
        };
        check(60, 0, 60);
        check(60, 1, 60);
        check(60, 2, 120);
        check(60, 3, 240);
        check(60, 4, 300);
        check(60, u32::MAX, 300);
        check(3_600, 5, 3_600);
    }
}
