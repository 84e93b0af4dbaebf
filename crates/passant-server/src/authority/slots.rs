//! Which step in the life of the authorities is due?
//!
//! Two slots for each kind: one authority signs (Active), at most one more is Prepared, which means published and
//! waiting until it is known to have reached the agents. What signed before is Retired and stays published until
//! nothing it signed can be in use any more. This file decides only; `authority.rs` acts.

use std::time::Duration;

use passant_core::{SpiffeId, UnixTime};

use crate::state::authority::{Authority, AuthorityId, Phase};

/// An authority is prepared when its predecessor has at most half of its life left, and at most this.
const PREPARE_AT_MOST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// It begins to sign, once it has reached the agents, when its predecessor has a sixth of its life left, and at most this.
const ACTIVATE_AT_MOST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long an expired authority stays published, for those whose clock is behind; never longer than it lived.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// The spans, counted back from the end of the active authority, that decide when its successor comes.
///
/// `prepare > activate > bound`, whatever the two lifetimes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// A successor is prepared when less than this is left.
    prepare: Duration,
    /// It is activated when less than this is left and every agent has it.
    activate: Duration,
    /// It is activated when less than this is left, whoever lacks it: what is signed from now on would be cut short.
    bound: Duration,
    /// How long the expired authority stays in the bundle.
    grace: Duration,
}

/// A step that is due, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a new authority and publish it.
    Prepare,
    /// Let the prepared authority sign, and retire the active one.
    Activate {
        /// The prepared authority.
        id: AuthorityId,
        /// The agents that are not known to have it; not empty only when the bound forced the step.
        lacking: Vec<SpiffeId>,
    },
    /// Take an authority out of the bundle and forget it.
    Prune(AuthorityId),
}

impl Policy {
    /// The policy for authorities that live for `lifetime` and sign what lives for up to `leaf` by default.
    ///
    /// With a day and an hour: prepared 12 hours, activated 4 hours, at the latest 1 hour before the end. A `leaf` that
    /// is long beside `lifetime` cannot be covered whole; the bound is then half of the span for preparation.
    pub(super) fn new(lifetime: Duration, leaf: Duration) -> Self {
        let prepare = (lifetime / 2).min(PREPARE_AT_MOST);
        let bound = leaf.min(prepare / 2);
        let midway = (prepare + bound) / 2;
        let activate = (lifetime / 6).min(ACTIVATE_AT_MOST).max(midway.min(bound * 2));
        Self { prepare, activate, bound, grace: lifetime.min(GRACE) }
    }

    /// The step that is due at `now` among `authorities`, which are all of one kind.
    ///
    /// Steps come one at a time: take it, then ask again with what stands then. `lacks` names the agents that are not
    /// known to have a bundle of this sequence number. Ends after a few rounds, since each step removes its own cause.
    pub(super) fn due(
        &self,
        authorities: &[&Authority],
        lacks: impl Fn(u64) -> Vec<SpiffeId>,
        now: UnixTime,
    ) -> Option<Step> {
        if let Some(done) = authorities.iter().find(|authority| self.is_done(authority, now)) {
            return Some(Step::Prune(done.id.clone()));
        }
        let in_phase = |phase| authorities.iter().find(|a| a.phase == phase && a.not_after > now);
        // A tainted one comes of a restored backup alone. It makes way for the next.
        let prepared = in_phase(Phase::Prepared).filter(|prepared| !prepared.tainted);
        let active = in_phase(Phase::Active);
        let left = active.map(|active| now.until(active.not_after));
        // Comes of a restored backup alone. What it signs is believed until it is revoked, so agents are still waited for.
        let is_tainted = active.is_some_and(|active| active.tainted);
        match (prepared, left) {
            (None, None) => Some(Step::Prepare),
            (None, Some(left)) => (is_tainted || left < self.prepare).then_some(Step::Prepare),
            (Some(next), left) => {
                let left = left.unwrap_or(Duration::ZERO);
                if !is_tainted && left >= self.activate {
                    return None;
                }
                let lacking = lacks(next.published);
                (lacking.is_empty() || left < self.bound)
                    .then(|| Step::Activate { id: next.id.clone(), lacking })
            }
        }
    }

    /// Whether nothing needs the authority any more. One that never signed needs no grace.
    fn is_done(&self, authority: &Authority, now: UnixTime) -> bool {
        match authority.phase {
            Phase::Prepared => authority.not_after <= now,
            Phase::Active | Phase::Retired => authority.not_after.plus(self.grace) <= now,
        }
    }
}

#[cfg(test)]
mod tests {
    use passant_core::TrustDomain;
    use proptest::prelude::*;

    use super::*;
    use crate::state::authority::AuthorityKind;

    const HOUR: u64 = 3600;

    fn authority(name: &str, phase: Phase, not_after: i64) -> Authority {
        Authority {
            id: AuthorityId::parse(name).unwrap(),
            kind: AuthorityKind::X509,
            phase,
            tainted: false,
            certificate: None,
            public_key: Vec::new(),
            not_before: UnixTime::from_secs(0),
            not_after: UnixTime::from_secs(not_after),
            prepared_at: UnixTime::from_secs(0),
            activated_at: None,
            published: 7,
        }
    }

    fn agent() -> SpiffeId {
        TrustDomain::parse("example.org").unwrap().agent_id("x509pop", "a").unwrap()
    }

    /// What is due with a day-long active authority that ends at second 0 and an hour for leaves.
    fn due(authorities: &[Authority], reached: bool, now: i64) -> Option<Step> {
        let day = Policy::new(Duration::from_secs(24 * HOUR), Duration::from_secs(HOUR));
        let lacks = |sequence| {
            assert_eq!(sequence, 7, "asked for the bundle that first held the prepared authority");
            if reached { Vec::new() } else { vec![agent()] }
        };
        day.due(&authorities.iter().collect::<Vec<_>>(), lacks, UnixTime::from_secs(now))
    }

    fn activate(name: &str, lacking: Vec<SpiffeId>) -> Option<Step> {
        Some(Step::Activate { id: AuthorityId::parse(name).unwrap(), lacking })
    }

    const HOURS: i64 = 3600;

    #[test]
    fn a_store_without_authorities_prepares_and_activates_at_once() {
        assert_eq!(due(&[], false, 0), Some(Step::Prepare));
        let prepared = [authority("b", Phase::Prepared, 24 * HOURS)];
        assert_eq!(due(&prepared, true, 0), activate("b", Vec::new()));
        assert_eq!(due(&prepared, false, 0), activate("b", vec![agent()]));
    }

    #[test]
    fn a_successor_is_prepared_after_half_of_the_life() {
        let active = [authority("a", Phase::Active, 0)];
        assert_eq!(due(&active, true, -12 * HOURS), None);
        assert_eq!(due(&active, true, -12 * HOURS + 1), Some(Step::Prepare));
    }

    #[test]
    fn a_successor_that_reached_the_agents_signs_in_the_last_sixth() {
        let both = [authority("a", Phase::Active, 0), authority("b", Phase::Prepared, 12 * HOURS)];
        assert_eq!(due(&both, true, -4 * HOURS), None);
        assert_eq!(due(&both, true, -4 * HOURS + 1), activate("b", Vec::new()));
    }

    #[test]
    fn a_successor_that_somebody_lacks_waits_until_the_bound() {
        let both = [authority("a", Phase::Active, 0), authority("b", Phase::Prepared, 12 * HOURS)];
        assert_eq!(due(&both, false, -4 * HOURS + 1), None);
        assert_eq!(due(&both, false, -HOURS), None);
        assert_eq!(due(&both, false, -HOURS + 1), activate("b", vec![agent()]));
    }

    #[test]
    fn an_expired_active_authority_is_replaced_at_once() {
        let active = [authority("a", Phase::Active, 0)];
        assert_eq!(due(&active, false, 0), Some(Step::Prepare));
        let both = [authority("a", Phase::Active, 0), authority("b", Phase::Prepared, 12 * HOURS)];
        assert_eq!(due(&both, false, 0), activate("b", vec![agent()]));
    }

    #[test]
    fn a_tainted_one_that_signs_is_succeeded_as_soon_as_the_agents_have_another() {
        let tainted = Authority { tainted: true, ..authority("a", Phase::Active, 0) };
        assert_eq!(due(std::slice::from_ref(&tainted), true, -23 * HOURS), Some(Step::Prepare));
        let both = [tainted, authority("b", Phase::Prepared, 12 * HOURS)];
        assert_eq!(due(&both, false, -23 * HOURS), None);
        assert_eq!(due(&both, true, -23 * HOURS), activate("b", Vec::new()));
    }

    #[test]
    fn a_tainted_one_is_never_let_sign() {
        let tainted = Authority { tainted: true, ..authority("b", Phase::Prepared, 12 * HOURS) };
        let both = [authority("a", Phase::Active, 0), tainted.clone()];
        assert_eq!(due(&both, true, -12 * HOURS), None);
        assert_eq!(due(&both, true, -HOURS), Some(Step::Prepare));
        assert_eq!(due(&[tainted], true, 0), Some(Step::Prepare));
    }

    #[test]
    fn retired_authorities_are_pruned_a_day_after_their_end() {
        let all = [authority("b", Phase::Active, 48 * HOURS), authority("a", Phase::Retired, 0)];
        assert_eq!(due(&all, true, 24 * HOURS - 1), None);
        assert_eq!(due(&all, true, 24 * HOURS), Some(Step::Prune(AuthorityId::parse("a").unwrap())));
    }

    #[test]
    fn a_prepared_authority_that_ended_unused_makes_way() {
        let all = [authority("a", Phase::Active, 48 * HOURS), authority("b", Phase::Prepared, 0)];
        assert_eq!(due(&all, true, 0), Some(Step::Prune(AuthorityId::parse("b").unwrap())));
    }

    #[test]
    fn tiny_lifetimes_scale_the_spans_down() {
        let tiny = Policy::new(Duration::from_secs(300), Duration::from_secs(60));
        let secs = Duration::from_secs;
        assert_eq!(
            tiny,
            Policy { prepare: secs(150), activate: secs(105), bound: secs(60), grace: secs(300) }
        );
        let year = Policy::new(secs(365 * 24 * HOUR), secs(HOUR));
        assert_eq!((year.prepare, year.activate), (PREPARE_AT_MOST, ACTIVATE_AT_MOST));
    }

    proptest! {
        #[test]
        fn the_spans_keep_their_order(lifetime in 8u64..100_000_000, leaf in 1u64..100_000_000) {
            let policy = Policy::new(Duration::from_secs(lifetime), Duration::from_secs(leaf));
            prop_assert!(policy.prepare > policy.activate);
            prop_assert!(policy.activate > policy.bound);
            prop_assert!(policy.bound > Duration::ZERO);
            prop_assert!(policy.prepare <= Duration::from_secs(lifetime) / 2);
        }
    }
}
