//! When did something happen, finely enough to order what different programs write?

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use passant_core::UnixTime;
use serde::{Deserialize, Deserializer, de::Error};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An instant, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(i64);

impl Moment {
    /// Now, by the clock that the watching programs read too.
    #[expect(clippy::disallowed_methods, reason = "a show measures real programs by the real clock")]
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(0).plus(since)
    }

    /// A whole second.
    pub(crate) const fn from_secs(secs: i64) -> Self {
        Self(secs * 1_000_000)
    }

    /// The second that contains it, since 1970.
    pub(crate) const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// That much later.
    pub(crate) fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier`; zero if it was not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl From<UnixTime> for Moment {
    fn from(time: UnixTime) -> Self {
        Self::from_secs(time.secs())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_day = self.0.div_euclid(1000).rem_euclid(86_400_000);
        let (seconds, millis) = (of_day / 1000, of_day % 1000);
        write!(f, "{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

impl<'de> Deserialize<'de> for Moment {
    /// Reads RFC 3339, as the peers write it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(D::Error::custom)?;
        i64::try_from(time.unix_timestamp_nanos() / 1_000).map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_of_every_peer_are_read() {
        for text in
            ["2026-01-02T03:04:05.678901234Z", "2026-01-02T03:04:05.678Z", "2026-01-02T04:04:05.678+01:00"]
        {
            let moment: Moment = serde_json::from_value(text.into()).unwrap();
            assert_eq!(
                (moment.secs(), moment.to_string()),
                (1_767_323_045, "03:04:05.678".to_owned()),
                "{text}"
            );
        }
        assert!(serde_json::from_value::<Moment>("yesterday".into()).is_err());
    }
}
