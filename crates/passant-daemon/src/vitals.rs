//! Is this daemon alive, and can it be relied on? What the probes and `grpc.health.v1` answer with.
//!
//! *Live* says that the process does its work at all: it is about the process, never about the network or another machine,
//! since whoever asks will restart it if it is not. *Ready* says whether callers get what they ask for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a daemon says about itself.
pub trait Vitals: Send + Sync + 'static {
    /// Whether callers get what they ask for.
    fn readiness(&self) -> Readiness;

    /// What keeps the process from working at all, by part; empty if it is alive.
    fn dead(&self) -> BTreeMap<String, String>;

    /// All metrics in the text format of OpenMetrics.
    fn metrics(&self) -> String;
}

/// Whether a daemon is ready, and what is wrong with it. The texts are for operators and hold no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// What keeps callers from getting what they ask for, by part. Ready if empty.
    pub troubles: BTreeMap<String, String>,
    /// What is wrong, but does not keep callers from it, or not yet.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub degraded: BTreeMap<String, String>,
}

impl Readiness {
    /// Whether callers get what they ask for.
    pub fn is_ready(&self) -> bool {
        self.troubles.is_empty()
    }

    /// Notes what keeps callers from it.
    pub fn trouble(&mut self, part: impl fmt::Display, why: impl Into<String>) {
        self.troubles.insert(part.to_string(), why.into());
    }

    /// Notes what is wrong all the same.
    pub fn degraded(&mut self, part: impl fmt::Display, why: impl Into<String>) {
        self.degraded.insert(part.to_string(), why.into());
    }
}

/// A part that has not given a sign for so long is stuck. Well above every time limit that a part waits within.
const STUCK: Duration = Duration::from_secs(600);

/// The parts of a daemon that must run as long as it does. Clones share.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    parts: Arc<Mutex<BTreeMap<&'static str, Life>>>,
    ended: Arc<Notify>,
}

/// Held by a part that runs. Dropped while the part should still run, the part counts as dead.
#[derive(Debug)]
pub struct Alive {
    name: &'static str,
    parts: Parts,
}

#[derive(Clone, Copy, Debug)]
enum Life {
    /// It runs, and gives no signs.
    Runs,
    /// It gave a sign then.
    Beat(Instant),
    Ended,
}

impl Parts {
    /// A part that begins to run.
    #[must_use]
    pub fn begin(&self, name: &'static str) -> Alive {
        self.lock().insert(name, Life::Runs);
        Alive { name, parts: self.clone() }
    }

    /// From now on parts may end: the daemon stops.
    pub fn stop(&self) {
        self.lock().clear();
    }

    /// Waits until a part has ended although the daemon does not stop.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// The parts that have ended or are stuck, and how.
    pub fn dead(&self) -> BTreeMap<String, String> {
        let dead = |life: &Life| match life {
            Life::Ended => Some("it has ended".to_owned()),
            Life::Beat(at) if at.elapsed() > STUCK => {
                Some(format!("it has given no sign for {} s", at.elapsed().as_secs()))
            }
            Life::Runs | Life::Beat(_) => None,
        };
        let parts = self.lock();
        parts.iter().filter_map(|(name, life)| Some(((*name).to_owned(), dead(life)?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Life>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alive {
    /// A sign of life. A part that has given one must give one at least every few minutes.
    pub fn beat(&self) {
        if let Some(life) = self.parts.lock().get_mut(self.name) {
            *life = Life::Beat(Instant::now());
        }
    }

    /// Does `work`, during which the part counts as alive.
    pub async fn during(self, work: impl Future<Output = ()>) {
        work.await;
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some(life) = self.parts.lock().get_mut(self.name) {
            *life = Life::Ended;
            self.parts.ended.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_ends_or_falls_silent_is_dead() {
        let parts = Parts::default();
        let (quiet, beating) = (parts.begin("quiet"), parts.begin("beating"));
        tokio::time::advance(STUCK * 2).await;
        assert!(parts.dead().is_empty());
        beating.beat();
        tokio::time::advance(STUCK).await;
        assert!(parts.dead().is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(parts.dead().into_keys().collect::<Vec<_>>(), ["beating"]);
        beating.beat();
        drop(quiet);
        assert_eq!(parts.dead().into_keys().collect::<Vec<_>>(), ["quiet"]);
        parts.ended().await;
    }

    #[tokio::test]
    async fn a_part_may_end_once_the_daemon_stops() {
        let parts = Parts::default();
        let part = parts.begin("part");
        parts.stop();
        part.beat();
        drop(part);
        assert!(parts.dead().is_empty());
    }

    #[test]
    fn a_daemon_with_small_troubles_is_ready() {
        let mut readiness = Readiness::default();
        readiness.degraded("sync", "the server is away");
        assert!(readiness.is_ready());
        readiness.trouble("node", "banned");
        assert!(!readiness.is_ready());
    }
}
