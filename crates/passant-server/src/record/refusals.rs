//! Which refusals go on record, and how many?
//!
//! Whoever is refused decides how often. So each caller has a few lines, and then one now and then; all together have no more
//! than keeps the record from being filled by them; and strangers, whom nobody knows, share a handful. What is left out is
//! counted, and told in the next line of the same caller. The metrics count all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passant_core::{Reason, SpiffeId};
use passant_daemon::label::Label;
use tokio::time::Instant;

use super::{DecisionLog, Refused};
use crate::caller::{ConnPeer, LocalCaller};
use crate::limits::{
    ALL_REFUSALS_AT_ONCE, ALL_REFUSALS_EVERY, REFUSAL_METHOD, REFUSAL_WHY, REFUSALS_AT_ONCE, REFUSALS_EVERY,
    REFUSED_CALLERS, STRANGERS_REFUSALS_AT_ONCE, STRANGERS_REFUSALS_EVERY,
};
use crate::metrics::{Metrics, Peer};

/// Puts refusals on record, within bounds. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    record: DecisionLog,
    metrics: Arc<Metrics>,
    pace: Arc<Mutex<Pace>>,
}

impl Refusals {
    pub(crate) fn new(record: DecisionLog, metrics: Arc<Metrics>) -> Self {
        Self { record, metrics, pace: Arc::default() }
    }

    /// `peer` was refused what it asked of `method`. Other reasons than those that tell of who asks, or how often, are the
    /// request's fault, and no matter for the record.
    pub(crate) fn refused(&self, peer: &ConnPeer, method: &str, reason: Reason, why: &str) {
        if !matters(reason) {
            return;
        }
        let caller = Caller::of(peer);
        self.metrics.refused_callers.of((kind_of(peer), reason)).inc();
        let left_out =
            self.pace.lock().unwrap_or_else(PoisonError::into_inner).line(caller.as_ref(), Instant::now());
        let Some(left_out) = left_out else {
            self.metrics.refusals_left_out.inc();
            return;
        };
        self.record.refused(Refused {
            method: cut(method, REFUSAL_METHOD).to_owned(),
            caller: shown(peer),
            from: place_of(peer),
            reason: reason.value().to_owned(),
            why: cut(why, REFUSAL_WHY).to_owned(),
            left_out,
        });
    }
}

/// Whether a refusal for `reason` is about who asks, or how often.
pub(crate) const fn matters(reason: Reason) -> bool {
    matches!(reason, Reason::Denied | Reason::Unauthenticated | Reason::Exhausted)
}

/// From where a peer calls, as the record shows it.
pub(crate) fn place_of(peer: &ConnPeer) -> String {
    peer.address().map_or_else(|| "operators' socket".to_owned(), |address| address.to_string())
}

/// Whose refusals are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Svid(SpiffeId),
    User(u32),
    /// Whoever is one too many.
    Others,
}

impl Caller {
    /// `None` for a stranger.
    fn of(peer: &ConnPeer) -> Option<Self> {
        match peer {
            ConnPeer::Remote { svid, .. } => svid.as_ref().map(|svid| Self::Svid(svid.id().clone())),
            ConnPeer::Local(local) | ConnPeer::Guest(local, _) | ConnPeer::Uninvited(local) => {
                Some(Self::User(local.uid))
            }
        }
    }
}

/// Who calls, as the record shows it; `None` for a stranger.
fn shown(peer: &ConnPeer) -> Option<String> {
    match peer {
        ConnPeer::Remote { svid, .. } => svid.as_ref().map(|svid| match svid.id().is_agent() {
            true => format!("agent {}", svid.id()),
            false => svid.id().to_string(),
        }),
        ConnPeer::Local(local) | ConnPeer::Guest(local, _) | ConnPeer::Uninvited(local) => {
            Some(LocalCaller::shown(*local))
        }
    }
}

fn kind_of(peer: &ConnPeer) -> Peer {
    match peer {
        ConnPeer::Remote { svid: Some(svid), .. } if svid.id().is_agent() => Peer::Agent,
        ConnPeer::Remote { svid: Some(_), .. } => Peer::Workload,
        ConnPeer::Remote { svid: None, .. } => Peer::Stranger,
        ConnPeer::Local(_) | ConnPeer::Guest(..) | ConnPeer::Uninvited(_) => Peer::Operator,
    }
}

/// The beginning of `text`, at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Who may have a line now?
#[derive(Debug, Default)]
struct Pace {
    all: Bucket,
    strangers: Bucket,
    callers: BTreeMap<Caller, Bucket>,
}

/// A burst, and then one at a time; and what did not fit.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Option<Instant>,
    left_out: u64,
}

impl Bucket {
    fn owes(&self, now: Instant) -> Duration {
        self.full_at.map_or(Duration::ZERO, |full| full.saturating_duration_since(now))
    }

    fn has_one(&self, now: Instant, at_once: u32, every: Duration) -> bool {
        self.owes(now) <= every * at_once.saturating_sub(1)
    }

    fn take(&mut self, now: Instant, every: Duration) {
        self.full_at = Some(now + self.owes(now) + every);
    }
}

impl Pace {
    /// Whether `caller`, a stranger if none is given, has a line now; and if so, how many were left out since the one before.
    fn line(&mut self, caller: Option<&Caller>, now: Instant) -> Option<u64> {
        let Some(caller) = caller else {
            let has_one = self.strangers.has_one(now, STRANGERS_REFUSALS_AT_ONCE, STRANGERS_REFUSALS_EVERY);
            return granted(&mut self.strangers, has_one, now, STRANGERS_REFUSALS_EVERY);
        };
        let caller = self.known(caller, now);
        let has_room = self.all.has_one(now, ALL_REFUSALS_AT_ONCE, ALL_REFUSALS_EVERY);
        let own = self.callers.entry(caller).or_default();
        let has_one = has_room && own.has_one(now, REFUSALS_AT_ONCE, REFUSALS_EVERY);
        let line = granted(own, has_one, now, REFUSALS_EVERY);
        if line.is_some() {
            self.all.take(now, ALL_REFUSALS_EVERY);
        }
        line
    }

    /// Under whom `caller` is counted. Who has nothing to be told of is forgotten when there are too many.
    fn known(&mut self, caller: &Caller, now: Instant) -> Caller {
        if !self.callers.contains_key(caller) && self.callers.len() >= REFUSED_CALLERS {
            self.callers.retain(|_, bucket| bucket.left_out > 0 || !bucket.owes(now).is_zero());
            if self.callers.len() >= REFUSED_CALLERS {
                return Caller::Others;
            }
        }
        caller.clone()
    }
}

fn granted(bucket: &mut Bucket, has_one: bool, now: Instant, every: Duration) -> Option<u64> {
    if !has_one {
        bucket.left_out = bucket.left_out.saturating_add(1);
        return None;
    }
    bucket.take(now, every);
    Some(std::mem::take(&mut bucket.left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Caller {
        Caller::User(uid)
    }

    /// How many lines `count` refusals of `caller` make.
    fn lines(pace: &mut Pace, caller: Option<&Caller>, count: u32, now: Instant) -> u32 {
        (0..count).map(|_| u32::from(pace.line(caller, now).is_some())).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_has_its_lines_and_is_told_of_the_rest_in_the_next() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(lines(&mut pace, Some(&user(1)), 1_000, now), REFUSALS_AT_ONCE);
        assert_eq!(pace.line(Some(&user(2)), now), Some(0), "another caller has its own");
        let almost = now + REFUSALS_EVERY - Duration::from_millis(1);
        assert_eq!(pace.line(Some(&user(1)), almost), None);
        let later = now + REFUSALS_EVERY;
        assert_eq!(pace.line(Some(&user(1)), later), Some(u64::from(1_001 - REFUSALS_AT_ONCE)));
        assert_eq!(pace.line(Some(&user(1)), later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn all_callers_together_are_bounded() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let made: u32 = (0..10_000).map(|uid| lines(&mut pace, Some(&user(uid)), 3, now)).sum();
        assert_eq!(made, ALL_REFUSALS_AT_ONCE);
        assert!(pace.callers.len() <= REFUSED_CALLERS + 1);
        let later = now + ALL_REFUSALS_EVERY;
        assert_eq!(lines(&mut pace, Some(&user(20_000)), 3, later), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_share_a_handful_and_take_nothing_from_others() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(lines(&mut pace, None, 1_000, now), STRANGERS_REFUSALS_AT_ONCE);
        assert_eq!(pace.line(Some(&user(1)), now), Some(0));
        let later = now + STRANGERS_REFUSALS_EVERY;
        assert_eq!(pace.line(None, later), Some(u64::from(1_000 - STRANGERS_REFUSALS_AT_ONCE)));
        assert_eq!(pace.line(None, later), None);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("a", 512), "a");
    }
}
