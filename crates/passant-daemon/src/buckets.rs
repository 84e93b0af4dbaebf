//! How fast may one caller go?

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Callers that are remembered; one who is forgotten begins with a full bucket. Far more than there are at a time, and
/// small: whoever fills this with callers that it makes up gains its own burst again, at the price of a new caller each.
const CALLERS: usize = 16_384;

/// A token bucket for each caller: a burst, and then so many in each second.
#[derive(Debug)]
pub struct Buckets<K> {
    burst: u32,
    /// From one token to the next.
    every: Duration,
    /// When the bucket of each caller will be full again, as seen by what it has taken.
    full_at: Mutex<BTreeMap<K, Instant>>,
}

impl<K: Ord> Buckets<K> {
    /// Buckets of `burst` tokens that fill with `per_second`; neither is zero.
    pub fn new(burst: u32, per_second: u32) -> Self {
        let every = Duration::from_secs(1) / per_second.max(1);
        Self { burst, every, full_at: Mutex::new(BTreeMap::new()) }
    }

    /// Takes `count` tokens of `of`, or none at all. One who asks for more than the burst is served from a full bucket.
    ///
    /// # Errors
    /// When they are not there: after how long they will be.
    pub fn take(&self, of: K, count: u32) -> Result<(), Duration> {
        let count = count.min(self.burst);
        let now = Instant::now();
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = full_at.get(&of).map_or(Duration::ZERO, |full| full.saturating_duration_since(now));
        let may_owe = self.every * (self.burst - count);
        if owed > may_owe {
            return Err(owed - may_owe);
        }
        if count == 0 {
            return Ok(());
        }
        if full_at.len() >= CALLERS && !full_at.contains_key(&of) {
            full_at.retain(|_, full| *full > now);
            if full_at.len() >= CALLERS {
                full_at.clear();
            }
        }
        full_at.insert(of, now + owed + self.every * count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn after_the_burst_tokens_come_at_their_rate() {
        let buckets = Buckets::new(3, 2);
        buckets.take("a", 2).unwrap();
        buckets.take("a", 1).unwrap();
        assert_eq!(buckets.take("a", 1), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take("a", 3), Err(Duration::from_millis(1500)));
        buckets.take("b", 3).unwrap();
        advance(Duration::from_millis(499)).await;
        assert_eq!(buckets.take("a", 1), Err(Duration::from_millis(1)));
        advance(Duration::from_millis(1)).await;
        buckets.take("a", 1).unwrap();
        buckets.take("a", 0).unwrap();
        advance(Duration::from_secs(3600)).await;
        buckets.take("a", 3).unwrap();
        assert!(buckets.take("a", 1).is_err(), "a bucket holds no more than its burst");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_burst_is_taken_from_a_full_bucket_only() {
        let buckets = Buckets::new(3, 1);
        buckets.take("a", 100).unwrap();
        assert_eq!(buckets.take("a", 100), Err(Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_forgotten() {
        let buckets = Buckets::new(1, 1);
        for caller in 0..3 * CALLERS {
            buckets.take(caller, 1).unwrap();
        }
        assert!(buckets.full_at.lock().unwrap().len() <= CALLERS);
    }
}
