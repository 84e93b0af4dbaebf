//! Which agents are known to have a bundle?
//!
//! An agent has a bundle once it says that it serves it; one that does not say so, once it fetched it over its own
//! authenticated connection and had time to hand it to its workloads. Held in memory only: after a restart agents tell anew,
//! by their next poll or watch.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use passant_core::{SpiffeId, UnixTime};

use crate::state::State;

/// What each agent last fetched.
pub struct Reach {
    settle: Duration,
    seen: Mutex<BTreeMap<SpiffeId, Seen>>,
}

#[derive(Clone, Copy)]
struct Seen {
    sequence: u64,
    /// When the agent first fetched a bundle of this sequence number.
    since: UnixTime,
    /// When it last fetched one.
    last: UnixTime,
    /// Whether it said that its workloads have it.
    is_served: bool,
}

impl Reach {
    /// A tracker that has heard of no agent. `settle` is how long after its fetch a bundle counts as handed on.
    pub const fn new(settle: Duration) -> Self {
        Self { settle, seen: Mutex::new(BTreeMap::new()) }
    }

    /// Notes that an agent was given the own bundle of this sequence number, on its own authenticated connection.
    ///
    /// Grows by one row per attested agent at most, since only those are authenticated; [`Reach::lacking`] drops the rows
    /// of agents that are gone.
    pub fn saw_bundle(&self, agent_id: &SpiffeId, sequence: u64, at: UnixTime) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(agent_id) {
            Some(known) if known.sequence >= sequence => known.last = at,
            Some(known) => *known = Seen { sequence, since: at, last: at, is_served: false },
            None => {
                seen.insert(agent_id.clone(), Seen { sequence, since: at, last: at, is_served: false });
            }
        }
    }

    /// Notes that an agent has said, on its own authenticated connection, that it serves the own bundle of this sequence
    /// number to its workloads. It need not settle.
    pub fn serves(&self, agent_id: &SpiffeId, sequence: u64, at: UnixTime) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let served = Seen { sequence, since: at, last: at, is_served: true };
        match seen.get_mut(agent_id) {
            Some(known) if known.sequence > sequence => known.last = at,
            Some(known) => *known = served,
            None => drop(seen.insert(agent_id.clone(), served)),
        }
    }

    /// When the agent last fetched the own bundle, as it does at each sync; `None` if it has not since the server started.
    pub fn last_fetch(&self, agent_id: &SpiffeId) -> Option<UnixTime> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(agent_id).map(|seen| seen.last)
    }

    /// The agents not known to have a bundle of at least `sequence`, in order of their IDs.
    ///
    /// Banned agents and those whose SVID has expired do not count: they get nothing that would be verified.
    pub fn lacking(&self, state: &State, sequence: u64, now: UnixTime) -> Vec<SpiffeId> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|agent_id, _| state.node(agent_id).is_some());
        let has = |id: &SpiffeId| {
            seen.get(id)
                .is_some_and(|s| s.sequence >= sequence && (s.is_served || s.since.plus(self.settle) <= now))
        };
        state
            .nodes()
            .filter(|node| node.is_standing(now) && !has(&node.id))
            .map(|node| node.id.clone())
            .collect()
    }
}
