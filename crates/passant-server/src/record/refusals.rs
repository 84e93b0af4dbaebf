//! Which refusals go on record, and how many?
//!
//! Whoever is refused decides how often. So each caller has a few lines, and then one now and then; all together have no more
//! than keeps the record from being filled by them; and strangers, whom nobody knows, share a handful. Who asked too often is
//! counted apart from who may not: an overload, which is easily made, hides no denial. What is left out is counted, and told
//! in the next line of the same caller, or in anybody's next line once that caller is forgotten. The metrics count all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passant_core::{Reason, Refusal, SpiffeId};
use passant_daemon::label::Label;
use passant_proto::status::from_status;
use tokio::time::Instant;
use tonic::Status;

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
        let now = Instant::now();
        let line = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.of(reason).line(caller.as_ref(), now)
        };
        let Some(LeftOut { own, others }) = line else {
            self.metrics.refusals_left_out.inc();
            return;
        };
        self.record.refused(Refused {
            method: cut(method, REFUSAL_METHOD).to_owned(),
            caller: shown(peer),
            from: place_of(peer),
            reason: reason.value().to_owned(),
            why: cut(why, REFUSAL_WHY).to_owned(),
            left_out: own,
            left_out_of_others: others,
        });
    }
}

/// Whether a refusal for `reason` is about who asks, or how often.
pub(crate) const fn matters(reason: Reason) -> bool {
    matches!(reason, Reason::Denied | Reason::Unauthenticated | Reason::Exhausted)
}

/// The refusal, or the one behind it, that is about who asks: whoever does not get to see something is told that it is not
/// there.
pub(crate) fn deniedness(refusal: &Refusal) -> Option<&Refusal> {
    if refusal.reason == Reason::Denied {
        return Some(refusal);
    }
    let behind = refusal.source.as_ref()?.downcast_ref::<Refusal>()?;
    (behind.reason == Reason::Denied).then_some(behind)
}

/// Why `status` refuses: as it says, unless it hides a denial.
pub(crate) fn reason_behind(status: &Status) -> Reason {
    let behind = std::error::Error::source(status).and_then(|source| source.downcast_ref::<Refusal>());
    match behind.and_then(deniedness) {
        Some(denied) => denied.reason,
        None => from_status(status).reason,
    }
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

/// How often those are looked for of whom there is nothing to remember.
const CLEANED_EVERY: Duration = Duration::from_secs(1);

/// Who may have a line now?
#[derive(Debug, Default)]
struct Pace {
    /// Of who may not, or is nobody.
    denied: Shared,
    /// Of who asked too often.
    exhausted: Shared,
}

/// What refusals of one kind share.
#[derive(Debug, Default)]
struct Shared {
    all: Bucket,
    strangers: Bucket,
    callers: BTreeMap<Caller, Bucket>,
    /// For whoever is one too many; with what was left out of those who were forgotten.
    others: Bucket,
    /// When callers were forgotten last.
    cleaned: Option<Instant>,
}

/// Refusals that are not on record, as a line tells of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LeftOut {
    /// Of the line's caller.
    own: u64,
    /// Of callers that are not counted apart.
    others: u64,
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
    const fn of(&mut self, reason: Reason) -> &mut Shared {
        if matches!(reason, Reason::Exhausted) { &mut self.exhausted } else { &mut self.denied }
    }
}

impl Shared {
    /// Whether `caller`, a stranger if none is given, has a line now; and if so, how many were left out before it.
    fn line(&mut self, caller: Option<&Caller>, now: Instant) -> Option<LeftOut> {
        let Some(caller) = caller else {
            let has_one = self.strangers.has_one(now, STRANGERS_REFUSALS_AT_ONCE, STRANGERS_REFUSALS_EVERY);
            let own = granted(&mut self.strangers, has_one, now, STRANGERS_REFUSALS_EVERY)?;
            return Some(LeftOut { own, others: 0 });
        };
        let is_known = self.has_place(caller, now);
        let has_room = self.all.has_one(now, ALL_REFUSALS_AT_ONCE, ALL_REFUSALS_EVERY);
        let bucket =
            if is_known { self.callers.entry(caller.clone()).or_default() } else { &mut self.others };
        let has_one = has_room && bucket.has_one(now, REFUSALS_AT_ONCE, REFUSALS_EVERY);
        let left_out = granted(bucket, has_one, now, REFUSALS_EVERY)?;
        self.all.take(now, ALL_REFUSALS_EVERY);
        Some(match is_known {
            true => LeftOut { own: left_out, others: std::mem::take(&mut self.others.left_out) },
            false => LeftOut { own: 0, others: left_out },
        })
    }

    /// Whether `caller` is counted apart. When there are too many, those are forgotten who would have all their lines again;
    /// what was left out of them is kept.
    fn has_place(&mut self, caller: &Caller, now: Instant) -> bool {
        if self.callers.len() < REFUSED_CALLERS || self.callers.contains_key(caller) {
            return true;
        }
        if self.cleaned.is_none_or(|cleaned| now >= cleaned + CLEANED_EVERY) {
            self.cleaned = Some(now);
            let mut untold: u64 = 0;
            self.callers.retain(|_, bucket| {
                let stays = !bucket.owes(now).is_zero();
                untold = untold.saturating_add(if stays { 0 } else { bucket.left_out });
                stays
            });
            self.others.left_out = self.others.left_out.saturating_add(untold);
        }
        self.callers.len() < REFUSED_CALLERS
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
    fn lines(shared: &mut Shared, caller: Option<&Caller>, count: u32, now: Instant) -> u32 {
        (0..count).map(|_| u32::from(shared.line(caller, now).is_some())).sum()
    }

    const fn left_out(own: u64, others: u64) -> Option<LeftOut> {
        Some(LeftOut { own, others })
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_has_its_lines_and_is_told_of_the_rest_in_the_next() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        assert_eq!(lines(&mut shared, Some(&user(1)), 1_000, now), REFUSALS_AT_ONCE);
        assert_eq!(shared.line(Some(&user(2)), now), left_out(0, 0), "another caller has its own");
        let almost = now + REFUSALS_EVERY - Duration::from_millis(1);
        assert_eq!(shared.line(Some(&user(1)), almost), None);
        let later = now + REFUSALS_EVERY;
        assert_eq!(shared.line(Some(&user(1)), later), left_out(u64::from(1_001 - REFUSALS_AT_ONCE), 0));
        assert_eq!(shared.line(Some(&user(1)), later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn all_callers_together_are_bounded() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        let made: u32 = (0..10_000).map(|uid| lines(&mut shared, Some(&user(uid)), 3, now)).sum();
        assert_eq!(made, ALL_REFUSALS_AT_ONCE);
        assert!(shared.callers.len() <= REFUSED_CALLERS);
        let later = now + ALL_REFUSALS_EVERY;
        assert_eq!(lines(&mut shared, Some(&user(20_000)), 3, later), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_never_come_again_take_no_place_from_new_ones_and_what_was_left_out_is_told() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        let made: u32 = (0..10_000).map(|uid| lines(&mut shared, Some(&user(uid)), 1, now)).sum();
        let later = now + ALL_REFUSALS_EVERY * ALL_REFUSALS_AT_ONCE;
        let untold = u64::from(10_000 - made);
        assert_eq!(shared.line(Some(&user(20_000)), later), left_out(0, untold), "all that was not written");
        // Lines of its own, and another new caller's beside them.
        assert_eq!(lines(&mut shared, Some(&user(20_000)), 1_000, later), REFUSALS_AT_ONCE - 1);
        assert_eq!(lines(&mut shared, Some(&user(20_001)), 1_000, later), REFUSALS_AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_is_looked_through_once_a_second() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        let full = u32::try_from(REFUSED_CALLERS).unwrap();
        // None of them has had a line: there is nothing to remember of them.
        shared.all.full_at = Some(now + ALL_REFUSALS_EVERY * ALL_REFUSALS_AT_ONCE);
        (0..full).for_each(|uid| assert_eq!(shared.line(Some(&user(uid)), now), None));
        shared.cleaned = Some(now);
        let almost = now + CLEANED_EVERY - Duration::from_millis(1);
        assert_eq!(shared.line(Some(&user(full)), almost), None);
        assert_eq!((shared.callers.len(), shared.others.left_out), (REFUSED_CALLERS, 1));
        assert_eq!(shared.line(Some(&user(full)), now + CLEANED_EVERY), None);
        assert_eq!((shared.callers.len(), shared.others.left_out), (1, u64::from(full) + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_overload_hides_no_denial() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for uid in 0..10_000 {
            lines(pace.of(Reason::Exhausted), Some(&user(uid)), 2, now);
        }
        lines(pace.of(Reason::Exhausted), Some(&user(1)), 100, now);
        lines(pace.of(Reason::Exhausted), None, 100, now);
        for reason in [Reason::Denied, Reason::Unauthenticated] {
            assert_eq!(pace.of(reason).line(Some(&user(1)), now), left_out(0, 0), "{reason:?}");
            assert_eq!(pace.of(reason).line(None, now), left_out(0, 0), "{reason:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_share_a_handful_and_take_nothing_from_others() {
        let (mut shared, now) = (Shared::default(), Instant::now());
        assert_eq!(lines(&mut shared, None, 1_000, now), STRANGERS_REFUSALS_AT_ONCE);
        assert_eq!(shared.line(Some(&user(1)), now), left_out(0, 0));
        let later = now + STRANGERS_REFUSALS_EVERY;
        assert_eq!(shared.line(None, later), left_out(u64::from(1_000 - STRANGERS_REFUSALS_AT_ONCE), 0));
        assert_eq!(shared.line(None, later), None);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("a", 512), "a");
    }
}
