//! What can agents be told to do, and what do they answer?

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Told to all agents of a fleet, or to the first of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) act: Act,
    /// How many agents, of all processes together; none: all.
    pub(crate) first: Option<usize>,
    /// How many of a process do it at the same time.
    pub(crate) at_once: usize,
    /// How long each may take, in milliseconds.
    pub(crate) within_ms: u64,
}

/// What one agent does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Attests by x509pop and takes its X509-SVID.
    Attest,
    /// Connects with its SVID, and synchronizes until it has so many entries.
    Connect { entries: usize },
    /// From now on asks for its entries and the bundle, again and again.
    Poll { every_ms: u64 },
    /// From now on watches, and acknowledges what comes.
    Watch,
    /// Waits until it has heard from the server after this moment, by whatever it has begun.
    HeardAfter { at: f64 },
    /// Waits until it has a bundle of at least this sequence number, or so many messages of the floor.
    Bundle { sequence: u64 },
    /// Waits until it has so many stops, and has acknowledged them.
    Stops { count: usize },
    /// Ends what it has begun and closes its connections.
    Leave,
    /// Has X509-SVIDs minted, so many in a batch, one batch after the other; its entries in turns. With the evidence for
    /// each, by `passant.sync.v1`, or by SPIRE's wire, which has no place for it.
    Mint { batches: usize, size: usize, on_evidence: bool },
    /// Has an X509-SVID minted for each of its entries, in batches of at most 500.
    Renew { on_evidence: bool },
    /// Has so many JWT-SVIDs minted, one after the other.
    Jwt { count: usize },
    /// Opens a stream of the floor's server.
    Listen { at: SocketAddr },
    /// Calls the floor's server so many times.
    Call { count: usize },
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Agents that did it.
    pub(crate) done: usize,
    /// When each call, or whatever it was, began and ended; see [`crate::clock::now`].
    pub(crate) spans: Vec<[f64; 2]>,
    /// How often something was tried again because the server asked for that, or was not there.
    pub(crate) again: usize,
    /// Agents that failed, by the cause.
    pub(crate) failed: BTreeMap<String, usize>,
}

impl Outcome {
    /// This and that.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.done += other.done;
        self.spans.extend(other.spans);
        self.again += other.again;
        for (why, count) in other.failed {
            *self.failed.entry(why).or_default() += count;
        }
        self
    }

    /// How long each took, in milliseconds.
    pub(crate) fn took(&self) -> Vec<f64> {
        self.spans.iter().map(|[began, ended]| ended - began).collect()
    }

    /// When each ended, in milliseconds after `at`.
    pub(crate) fn ended_after(&self, at: f64) -> Vec<f64> {
        self.spans.iter().map(|[_, ended]| ended - at).collect()
    }

    /// From the first beginning to the last end, in milliseconds.
    pub(crate) fn in_all(&self) -> f64 {
        let first = self.spans.iter().map(|span| span[0]).fold(f64::INFINITY, f64::min);
        let last = self.spans.iter().map(|span| span[1]).fold(first, f64::max);
        if self.spans.is_empty() { 0.0 } else { last - first }
    }

    /// How many agents failed.
    pub(crate) fn failures(&self) -> usize {
        self.failed.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_two_processes_are_one() {
        let failed = |count| BTreeMap::from([("refused".to_owned(), count)]);
        let one = Outcome { done: 1, spans: vec![[10.0, 12.0]], again: 1, failed: failed(1) };
        let both = one.and(Outcome { done: 2, spans: vec![[11.0, 15.0]], again: 0, failed: failed(2) });
        assert_eq!((both.done, both.again, both.failures()), (3, 1, 3));
        assert_eq!((both.took(), both.in_all()), (vec![2.0, 4.0], 5.0));
        assert_eq!(both.ended_after(10.0), [2.0, 5.0]);
        assert_eq!(Outcome::default().in_all(), 0.0);
    }
}
