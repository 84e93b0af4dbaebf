//! When does an SVID end, and when is it renewed?

use std::time::Duration;

use crate::time::UnixTime;

/// A draw that spreads renewals over a fleet: uniform over 0 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jitter(u16);

impl Jitter {
    /// The earliest of all draws.
    pub const EARLIEST: Self = Self(0);
    /// The middle of all draws.
    pub const MIDDLE: Self = Self(1 << 15);
    /// The latest of all draws.
    pub const LATEST: Self = Self(u16::MAX);

    /// A draw; take it from `Host`.
    pub const fn from_draw(draw: u16) -> Self {
        Self(draw)
    }

    /// A span between `least` and `most`, both included; `least` when they are the wrong way round.
    pub fn between(self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(f64::from(self.0) / f64::from(u16::MAX))
    }
}

/// The end of what is minted at `now`: the earliest of the TTL, the entry's end and the authority's end.
///
/// `None` when that would not be later than `now`: then nothing is minted.
pub fn not_after(
    now: UnixTime,
    ttl: Duration,
    entry_end: Option<UnixTime>,
    authority_end: UnixTime,
) -> Option<UnixTime> {
    let end = now.plus(ttl).min(authority_end).min(entry_end.unwrap_or(authority_end));
    (end > now).then_some(end)
}

/// When to renew what is valid from `not_before` to `not_after`: at half its life, 10 % of its life earlier or later by
/// `jitter`, so that a fleet that started together does not renew together.
pub fn renew_at(not_before: UnixTime, not_after: UnixTime, jitter: Jitter) -> UnixTime {
    let life = not_before.until(not_after);
    not_before.plus(jitter.between(life.mul_f64(0.4), life.mul_f64(0.6)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    #[test]
    fn the_earliest_end_wins() {
        let hour = Duration::from_secs(3600);
        assert_eq!(not_after(at(0), hour, None, at(10_000)), Some(at(3600)));
        assert_eq!(not_after(at(0), hour, Some(at(60)), at(10_000)), Some(at(60)));
        assert_eq!(not_after(at(0), hour, Some(at(5000)), at(30)), Some(at(30)));
    }

    #[test]
    fn nothing_is_minted_from_the_very_second_of_an_end() {
        let hour = Duration::from_secs(3600);
        assert_eq!(not_after(at(59), hour, Some(at(60)), at(10_000)), Some(at(60)));
        assert_eq!(not_after(at(60), hour, Some(at(60)), at(10_000)), None);
        assert_eq!(not_after(at(30), hour, None, at(30)), None);
        assert_eq!(not_after(at(30), Duration::ZERO, None, at(60)), None);
    }

    #[test]
    fn renewal_lies_around_half_life() {
        assert_eq!(renew_at(at(0), at(1000), Jitter::EARLIEST), at(400));
        assert_eq!(renew_at(at(0), at(1000), Jitter::MIDDLE), at(500));
        assert_eq!(renew_at(at(0), at(1000), Jitter::LATEST), at(600));
    }

    proptest! {
        #[test]
        fn renewal_comes_before_the_end(start in -1_000i64..1_000, life in 3i64..10_000_000, draw: u16) {
            let renewal = renew_at(at(start), at(start + life), Jitter::from_draw(draw));
            prop_assert!(at(start) < renewal && renewal < at(start + life));
        }
    }
}
