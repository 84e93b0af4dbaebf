//! Which agents have applied a change, and which have not?

use std::time::Duration;

use passant_core::{SpiffeId, UnixTime};
use tokio::time::Instant;

use super::hub::{Contact, Hub, Watching};
use crate::limits::ROLLOUT_LOOKS;
use crate::state::Revision;

/// How far a change has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Agents that have applied it.
    pub applied: usize,
    /// All others, in order of their IDs.
    pub pending: Vec<Pending>,
}

/// An agent that is not known to have applied a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its SPIFFE ID.
    pub agent: SpiffeId,
    /// Why not.
    pub why: Why,
    /// Since when; `None`: not since the server started.
    pub since: Option<UnixTime>,
}

/// Why an agent is not known to have applied a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is in contact, and has not said so yet.
    Awaited,
    /// There is no contact.
    Unreachable,
    /// It polls, and is not known to have come by it.
    Polls,
    /// It is in contact, and cannot: it polls, or says that it knows no stops.
    Unable,
}

/// What an agent has to know for a change to take effect with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    /// Its entries, as whoever polls learns them.
    #[default]
    Entries,
    /// Stops, which are told only to who watches and knows of them.
    Stops,
}

/// An agent that polled within this time is in contact; SPIRE's do so every five seconds.
const POLLS_WITHIN: Duration = Duration::from_secs(60);

impl Hub {
    /// How far the change of `revision` has come with `concerned`: it has with an agent that acknowledged it or something later,
    /// with one for which there was nothing in it, and with one that polls, was answered since, and asked again after that. Who
    /// needs to know stops for it has to have said that it does.
    pub fn rollout(
        &self,
        concerned: &[SpiffeId],
        revision: Revision,
        needs: Needs,
        now: UnixTime,
    ) -> Rollout {
        // First: what was put into mailboxes up to here shows there.
        let is_told = self.processed() >= revision;
        let mut rollout = Rollout::default();
        self.look(|contacts| {
            for agent in concerned {
                let Some(contact) = contacts.get(agent) else {
                    let (agent, why, since) = (agent.clone(), Why::Unreachable, None);
                    rollout.pending.push(Pending { agent, why, since });
                    continue;
                };
                let pending = match needs {
                    Needs::Entries => pending(contact, revision, is_told, now),
                    Needs::Stops => pending_stop(contact, revision, is_told, now),
                };
                match pending {
                    None => rollout.applied += 1,
                    Some((why, since)) => {
                        rollout.pending.push(Pending { agent: agent.clone(), why, since });
                    }
                }
            }
        });
        rollout
    }

    /// Waits until the change of `revision` has come to all of `concerned`, or until `until`; then how far it has come.
    pub async fn rolled_out(
        &self,
        concerned: &[SpiffeId],
        revision: Revision,
        needs: Needs,
        until: Instant,
        now: impl Fn() -> UnixTime,
    ) -> Rollout {
        let mut progress = self.progress();
        let mut left = concerned.to_vec();
        loop {
            // Before it is looked at, so that what happens meanwhile is seen.
            progress.mark_unchanged();
            let rollout = self.rollout(&left, revision, needs, now());
            left = rollout.pending.into_iter().map(|one| one.agent).collect();
            if left.is_empty() || tokio::time::timeout_at(until, progress.changed()).await.is_err() {
                break;
            }
            // Acknowledgements come by the thousand; each one need not be looked at by itself.
            tokio::time::sleep_until(until.min(Instant::now() + ROLLOUT_LOOKS)).await;
        }
        self.rollout(concerned, revision, needs, now())
    }
}

/// Why the agent is not known to have applied a change, and since when.
fn pending(
    contact: &Contact,
    revision: Revision,
    is_told: bool,
    now: UnixTime,
) -> Option<(Why, Option<UnixTime>)> {
    if contact.polled.as_ref().is_some_and(|polled| polled.has >= Some(revision)) {
        return None;
    }
    if let Some(watch) = &contact.watch {
        return awaited(watch, revision, is_told);
    }
    if contact.acked.is_some_and(|acked| acked >= revision) {
        return None;
    }
    Some(out_of_watch(contact, now))
}

/// The same where it has to know stops. What it once knows it keeps, also while it polls.
fn pending_stop(
    contact: &Contact,
    revision: Revision,
    is_told: bool,
    now: UnixTime,
) -> Option<(Why, Option<UnixTime>)> {
    match &contact.watch {
        Some(watch) if contact.knows_stops => awaited(watch, revision, is_told),
        // Until it has said its hello, nothing is known.
        Some(watch) if watch.mailbox.progress().acked.is_none() => Some((Why::Awaited, Some(watch.since))),
        Some(watch) => Some((Why::Unable, Some(watch.since))),
        None if contact.knows_stops && contact.acked.is_some_and(|acked| acked >= revision) => None,
        None => {
            let (why, since) = out_of_watch(contact, now);
            Some((if why == Why::Polls { Why::Unable } else { why }, since))
        }
    }
}

fn awaited(watch: &Watching, revision: Revision, is_told: bool) -> Option<(Why, Option<UnixTime>)> {
    let progress = watch.mailbox.progress();
    let has_applied =
        progress.acked.is_some_and(|acked| acked >= revision) || (is_told && progress.owing_since.is_none());
    (!has_applied).then(|| (Why::Awaited, Some(progress.owing_since.unwrap_or(watch.since))))
}

fn out_of_watch(contact: &Contact, now: UnixTime) -> (Why, Option<UnixTime>) {
    match contact.polled.as_ref().map(|polled| polled.at) {
        Some(at) if contact.gone_since.is_none_or(|gone| gone <= at) => {
            let why = if at.plus(POLLS_WITHIN) >= now { Why::Polls } else { Why::Unreachable };
            (why, Some(at))
        }
        Some(_) | None => (Why::Unreachable, contact.gone_since),
    }
}
