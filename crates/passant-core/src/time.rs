//! What is an instant, as certificates, tokens and entries count it?

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An instant in whole seconds since 1970-01-01T00:00:00Z, leap seconds not counted.
///
/// X.509 validity and JWT NumericDate are both kept in whole seconds, so nothing finer is needed to decide whether
/// something is valid. Spans are [`Duration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(i64);

impl UnixTime {
    /// The instant `secs` seconds after the epoch; negative values lie before it.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs)
    }

    /// Seconds since the epoch.
    pub const fn secs(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339, with any offset; a fraction of a second is dropped. `None` when the text is something else.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(|at| Self(at.unix_timestamp()))
    }

    /// The instant `span` later. A fraction of a second is dropped; saturates at the end of time.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(whole_secs(span)))
    }

    /// The instant `span` earlier. A fraction of a second is dropped; saturates.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(whole_secs(span)))
    }

    /// How long until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_secs(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

fn whole_secs(span: Duration) -> i64 {
    i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC, or `@secs` outside the years that format can hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp(self.0).ok().and_then(|at| at.format(&Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_as_rfc_3339() {
        assert_eq!(UnixTime::from_secs(1_790_000_000).to_string(), "2026-09-21T14:13:20Z");
        assert_eq!(UnixTime::from_secs(i64::MAX).to_string(), format!("@{}", i64::MAX));
    }

    #[test]
    fn reads_rfc_3339_with_any_offset() {
        assert_eq!(UnixTime::parse_rfc3339("2026-09-21T14:13:20Z"), Some(UnixTime::from_secs(1_790_000_000)));
        assert_eq!(
            UnixTime::parse_rfc3339("2026-09-21T16:13:20.9+02:00"),
            Some(UnixTime::from_secs(1_790_000_000))
        );
        assert_eq!(UnixTime::parse_rfc3339("2026-09-21"), None);
    }

    #[test]
    fn arithmetic_saturates_and_never_goes_negative() {
        let now = UnixTime::from_secs(100);
        assert_eq!(now.plus(Duration::from_millis(1_999)).secs(), 101);
        assert_eq!(now.until(UnixTime::from_secs(130)), Duration::from_secs(30));
        assert_eq!(now.until(UnixTime::from_secs(99)), Duration::ZERO);
        assert_eq!(UnixTime::from_secs(i64::MAX).plus(Duration::MAX).secs(), i64::MAX);
        assert_eq!(UnixTime::from_secs(i64::MIN).minus(Duration::MAX).secs(), i64::MIN);
    }
}
