//! Whom does a change concern, and until when may they serve what it takes away?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use passant_core::limits::SVID_TTL_MAX;
use passant_core::{Entry, SpiffeId, Stop, StopTarget, UnixTime};
use passant_proto::stop::{Pending, PendingState, Rollout};

use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::issue::Ttls;
use crate::limits::ROLLOUT_NAMED;
use crate::state::{AttestedNode, Phase, State};
use crate::sync::concerned::Above;
use crate::sync::rollout::{Needs, Rollout as Came, Why};

/// Agents that may hold something that a change takes away or alters, and until when it may verify: nobody was issued
/// anything of it later than at the moment of the change, and nothing outlives its entry or the authority that signed it.
///
/// An entry counts as it stands. What was issued before it was given an earlier end or a shorter lifetime may live longer.
#[derive(Debug, Default)]
pub(super) struct Concerned {
    until: BTreeMap<SpiffeId, UnixTime>,
    /// What they have to know for it.
    pub(super) needs: Needs,
}

/// Entries that were written.
pub(super) struct Written<'a> {
    entries: Vec<&'a Arc<Entry>>,
    /// Those that entries had before.
    parents: Vec<SpiffeId>,
    /// Anything may have been written.
    is_everything: bool,
}

impl Concerned {
    /// By a stop that was in force at `in_force`, if not before. An agent that was banned may not have heard of that, and serves
    /// on; one that was evicted likewise, and is named if an entry names it (who came by an alias is not known any more).
    pub(super) fn by_stop(
        stop: &Stop,
        in_force: Option<UnixTime>,
        state: &State,
        now: UnixTime,
        ttls: Ttls,
    ) -> Self {
        let issued = in_force.map_or(stop.since, |in_force| in_force.max(stop.since));
        let bounds = Bounds { state, now, issued, ttls };
        match &stop.target {
            StopTarget::Entry(id) => {
                let Some(entry) = state.entry(id) else { return Self::default() };
                let above = Above::of(state, &entry.parent_id);
                let latest = bounds.of_entry(entry);
                let mut concerned = Self::all(&bounds, |node| above.has(node), latest, bounds.longest(entry));
                above.agents.iter().for_each(|agent| concerned.and_evicted(agent, &bounds, latest));
                concerned
            }
            StopTarget::Agent(agent) => {
                let longest = bounds.longest_of(agent);
                let latest = issued.plus(longest);
                let mut concerned = Self::all(&bounds, |node| node.id == *agent, latest, longest);
                concerned.and_evicted(agent, &bounds, latest);
                concerned
            }
            // An agent that does not know of it goes on serving the process what it has for others, and renews that.
            StopTarget::Instance { agent, .. } => {
                let longest = bounds.longest_of(agent);
                let is_its = |node: &AttestedNode| node.id == *agent;
                let mut concerned = Self::all(&bounds, is_its, UnixTime::from_secs(i64::MAX), longest);
                concerned.and_evicted(agent, &bounds, issued.plus(longest));
                Self { needs: Needs::Stops, ..concerned }
            }
        }
    }

    /// By the end of a stop: those who are to serve again what it kept back.
    pub(super) fn by_resume(stop: &Stop, state: &State, now: UnixTime, ttls: Ttls) -> Self {
        let seen = match &stop.target {
            StopTarget::Entry(id) => match state.entry(id) {
                Some(entry) => Written::of(std::iter::once(Some(entry)), Vec::new()),
                None => return Self::default(),
            },
            StopTarget::Agent(agent) | StopTarget::Instance { agent, .. } => {
                Written::of(std::iter::empty(), vec![agent.clone()])
            }
        };
        seen.concerned(state, now, ttls)
    }

    /// Those of the nodes that `belong`, none of whose SVIDs was asked for with a lifetime of more than `longest`, or ends
    /// after `latest`.
    fn all(
        bounds: &Bounds<'_>,
        belong: impl Fn(&AttestedNode) -> bool,
        latest: UnixTime,
        longest: Duration,
    ) -> Self {
        let nodes = bounds.state.nodes().filter(|node| belong(node));
        let until = |node: &Arc<AttestedNode>| {
            // Nothing is minted for an agent whose own SVID has expired.
            let of_node = node.last_end().plus(longest);
            (node.id.clone(), latest.min(of_node).min(bounds.of_authorities()))
        };
        let until = nodes.map(until).filter(|(_, until)| *until > bounds.now).collect();
        Self { until, needs: Needs::default() }
    }

    /// Names an agent of which the state knows nothing any more. What it was minted between a stop of a process and its eviction
    /// is not known either.
    fn and_evicted(&mut self, agent: &SpiffeId, bounds: &Bounds<'_>, latest: UnixTime) {
        let until = latest.min(bounds.of_authorities());
        if bounds.state.node(agent).is_none() && until > bounds.now {
            self.until.insert(agent.clone(), until);
        }
    }

    /// Their SPIFFE IDs, in order.
    pub(super) fn agents(&self) -> Vec<SpiffeId> {
        self.until.keys().cloned().collect()
    }

    /// How far it has come, for `actor`. Agents that they do not get to see are counted and not named; what has ended by
    /// now nobody has to give up any more.
    pub(super) fn told(&self, came: Came, actor: &Actor, state: &State, now: UnixTime) -> Rollout {
        let sees = |agent: &SpiffeId| {
            actor.sees_agent(agent) || actor.may(Verb::StopRead, &Target::Agent(agent), state).is_ok()
        };
        let mut told = Rollout { applied: count(came.applied), ..Rollout::default() };
        for pending in came.pending {
            let until = self.until.get(&pending.agent).copied().unwrap_or(now);
            if until <= now {
                continue;
            }
            if told.pending.len() >= ROLLOUT_NAMED || !sees(&pending.agent) {
                told.pending_left_out = told.pending_left_out.saturating_add(1);
                continue;
            }
            told.pending.push(Pending {
                agent_id: pending.agent.to_string(),
                state: state_of(pending.why).into(),
                since: pending.since.map_or(0, UnixTime::secs),
                may_serve_until: if pending.why == Why::Unable { 0 } else { until.secs() },
            });
        }
        told
    }
}

impl<'a> Written<'a> {
    /// `entries` as far as they are there, and whatever hung below `parents` before.
    pub(super) fn of(entries: impl Iterator<Item = Option<&'a Arc<Entry>>>, parents: Vec<SpiffeId>) -> Self {
        let (mut there, mut is_everything, mut is_any) = (Vec::new(), false, !parents.is_empty());
        for entry in entries {
            is_any = true;
            match entry {
                Some(entry) => there.push(entry),
                None => is_everything |= parents.is_empty(),
            }
        }
        Self { entries: there, parents, is_everything: is_everything || !is_any }
    }

    /// Those to whose agents they belong, or did before.
    pub(super) fn concerned(self, state: &State, now: UnixTime, ttls: Ttls) -> Concerned {
        let bounds = Bounds { state, now, issued: now, ttls };
        let mut ways: Vec<Above> = self.parents.iter().map(|parent| Above::of(state, parent)).collect();
        for entry in &self.entries {
            ways.push(match entry.is_node_alias() {
                true => Above { aliases: vec![Arc::clone(*entry)], ..Above::default() },
                false => Above::of(state, &entry.parent_id),
            });
        }
        let belongs = |node: &AttestedNode| self.is_everything || ways.iter().any(|above| above.has(node));
        // What the entries were before is not known. An agent that has not renewed its own SVID for longer than theirs live is
        // gone for good, as far as anybody can tell.
        let lives = self.entries.iter().map(|entry| bounds.longest(entry)).max();
        let lives = lives.unwrap_or(ttls.x509_svid).max(ttls.x509_svid).max(ttls.jwt_svid);
        // Who is banned is to drop everything, and is waited for by nobody.
        let stays =
            |node: &AttestedNode| !node.is_banned() && belongs(node) && node.last_end().plus(lives) > now;
        Concerned::all(&bounds, stays, now.plus(SVID_TTL_MAX), SVID_TTL_MAX)
    }
}

/// What bounds the ends of SVIDs that were issued up to a moment.
struct Bounds<'a> {
    state: &'a State,
    now: UnixTime,
    /// The last moment at which any was.
    issued: UnixTime,
    ttls: Ttls,
}

impl Bounds<'_> {
    fn longest(&self, entry: &Entry) -> Duration {
        let Ttls { x509_svid, jwt_svid } = self.ttls;
        entry.x509_svid_ttl.unwrap_or(x509_svid).max(entry.jwt_svid_ttl.unwrap_or(jwt_svid))
    }

    /// Of what the agent has, or had a moment ago.
    fn longest_of(&self, agent: &SpiffeId) -> Duration {
        let entries = self.state.entries_of_node(agent, self.now);
        let longest = entries.iter().map(|entry| self.longest(entry)).max().unwrap_or_default();
        longest.max(self.ttls.x509_svid).max(self.ttls.jwt_svid)
    }

    fn of_entry(&self, entry: &Entry) -> UnixTime {
        let by_ttl = self.issued.plus(self.longest(entry));
        entry.expires_at.map_or(by_ttl, |end| end.min(by_ttl))
    }

    /// The last end of an authority that may have signed.
    fn of_authorities(&self) -> UnixTime {
        let signed = self.state.authorities().filter(|authority| authority.phase != Phase::Prepared);
        signed.map(|authority| authority.not_after).max().unwrap_or(self.issued)
    }
}

fn state_of(why: Why) -> PendingState {
    match why {
        Why::Awaited => PendingState::Awaited,
        Why::Unreachable => PendingState::Unreachable,
        Why::Polls => PendingState::Polls,
        Why::Unable => PendingState::Unable,
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use passant_core::{Instance, StopReason};

    use super::*;
    use crate::state::samples::{at, authority, commit, draft, entry_id, id, node, registered, trust_domain};
    use crate::state::{Authority, AuthorityKind, Change, Cursor, Lineage, Revision};
    use crate::sync::rollout::Pending as Left;

    const TTLS: Ttls = Ttls { x509_svid: Duration::from_secs(100), jwt_svid: Duration::from_secs(10) };
    const ONE: &str = "/spire/agent/x/1";
    const TWO: &str = "/spire/agent/x/2";

    fn stop(target: StopTarget) -> Stop {
        Stop {
            target,
            id: "s".to_owned(),
            reason: StopReason::parse("odd").unwrap(),
            by: "root".to_owned(),
            since: at(1_000),
            revision: 2,
        }
    }

    /// Two nodes, `own` for the first one, `pooled` for both, and authorities until 5000.
    fn state(change: impl FnOnce(&mut Entry), ends: [i64; 2], authority_end: i64) -> State {
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        let ending = |path: &str, end: i64| {
            let node = AttestedNode { not_after: at(end), ..AttestedNode::clone(&node(path, &["x:a"])) };
            Change::PutNode(Arc::new(node))
        };
        let signs = |name: &str, kind, phase, end: i64| {
            Change::PutAuthority(Authority { not_after: at(end), ..authority(name, kind, phase) })
        };
        let mut own = Entry::clone(&registered("own", draft("/own", ONE, &["k:1"])));
        change(&mut own);
        state.apply(&commit(
            1,
            vec![
                ending(ONE, ends[0]),
                ending(TWO, ends[1]),
                Change::PutEntry(Arc::new(own)),
                Change::PutEntry(registered("pool", draft("/pool", "/spire/server", &["x:a"]))),
                Change::PutEntry(registered("pooled", draft("/pooled", "/pool", &["k:1"]))),
                signs("x1", AuthorityKind::X509, Phase::Active, authority_end),
                signs("x2", AuthorityKind::X509, Phase::Prepared, 90_000),
            ],
        ));
        state
    }

    fn found(state: &State, target: StopTarget, now: i64) -> Vec<(SpiffeId, i64)> {
        let concerned = Concerned::by_stop(&stop(target), None, state, at(now), TTLS);
        concerned.until.into_iter().map(|(agent, until)| (agent, until.secs())).collect()
    }

    #[test]
    fn nothing_that_is_stopped_verifies_longer_than_told() {
        let own = || StopTarget::Entry(entry_id("own"));
        let until = |state: &State| found(state, own(), 1_000).first().map(|(_, until)| *until);
        let plain = |ends, authority| state(|_| {}, ends, authority);
        assert_eq!(until(&plain([9_000; 2], 5_000)), Some(1_100), "one default lifetime after the stop");
        let long = |entry: &mut Entry| entry.jwt_svid_ttl = Some(Duration::from_secs(500));
        assert_eq!(until(&state(long, [9_000; 2], 5_000)), Some(1_500), "the longer lifetime counts");
        let ending = |entry: &mut Entry| entry.expires_at = Some(at(1_050));
        assert_eq!(until(&state(ending, [9_000; 2], 5_000)), Some(1_050));
        assert_eq!(until(&plain([9_000; 2], 1_020)), Some(1_020), "nothing outlives what signed it");
        assert_eq!(until(&plain([950, 9_000], 5_000)), Some(1_050), "an expired agent is issued nothing");
        assert_eq!(until(&plain([900, 9_000], 5_000)), None, "and has nothing left some time later");
        let state = plain([9_000; 2], 5_000);
        assert_eq!(found(&state, own(), 1_099).len(), 1);
        assert_eq!(found(&state, own(), 1_100), []);
    }

    #[test]
    fn a_stop_concerns_those_who_serve_what_is_stopped() {
        let state = state(|entry| entry.x509_svid_ttl = Some(Duration::from_secs(300)), [9_000; 2], 5_000);
        let (one, two) = (id(ONE), id(TWO));
        let pooled = found(&state, StopTarget::Entry(entry_id("pooled")), 1_000);
        assert_eq!(pooled, [(one.clone(), 1_100), (two.clone(), 1_100)]);
        let instance = Instance::parse("boot/1/1").unwrap();
        let agent = StopTarget::Agent(one.clone());
        assert_eq!(found(&state, agent, 1_000), [(one.clone(), 1_300)], "the longest of its entries");
        let process = StopTarget::Instance { agent: one.clone(), instance };
        for now in [1_000, 2_000] {
            assert_eq!(found(&state, process.clone(), now), [(one.clone(), 5_000)], "it may be renewed");
        }
        assert_eq!(found(&state, StopTarget::Agent(two.clone()), 1_000), [(two, 1_100)]);
        assert_eq!(found(&state, StopTarget::Entry(entry_id("lost")), 1_000), []);
    }

    #[test]
    fn who_cannot_be_asked_may_serve_what_it_had() {
        let long = |entry: &mut Entry| entry.x509_svid_ttl = Some(Duration::from_secs(300));
        let agent = || StopTarget::Agent(id(ONE));
        let then = |changes: Vec<Change>| {
            let mut state = state(long, [9_000; 2], 5_000);
            state.apply(&commit(2, changes));
            state
        };
        let ban = |state: &State| crate::command::node::ban(state, &id(ONE)).unwrap().0;
        let banned = then(ban(&state(long, [9_000; 2], 5_000)));
        let own = StopTarget::Entry(entry_id("own"));
        assert_eq!(found(&banned, own, 1_000), [(id(ONE), 1_300)], "it may not have heard of its ban");
        let written = Written::of(std::iter::empty(), vec![id(ONE)]);
        assert!(written.concerned(&banned, at(1_000), TTLS).agents().is_empty(), "nobody waits for it");
        let deleted =
            then(vec![Change::DeleteEntry(entry_id("own")), Change::DeleteEntry(entry_id("pooled"))]);
        assert_eq!(found(&deleted, agent(), 1_000), [(id(ONE), 1_100)], "its entries went after the stop");
        let evicted = then(vec![Change::DeleteNode(id(ONE))]);
        assert_eq!(found(&evicted, agent(), 1_099).len(), 1);
        let own = StopTarget::Entry(entry_id("own"));
        assert_eq!(found(&evicted, own, 1_000), [(id(ONE), 1_300)], "it may not have heard of its eviction");
        assert_eq!(found(&evicted, agent(), 1_400), []);
    }

    #[test]
    fn the_end_of_a_ban_is_that_of_the_last_svid() {
        let renewed = AttestedNode {
            pending: Some(crate::state::node::PendingSerial {
                serial: node(ONE, &[]).serial.clone().unwrap(),
                not_after: at(1_040),
            }),
            not_after: at(950),
            ..AttestedNode::clone(&node(ONE, &["x:a"]))
        };
        let mut state = state(|_| {}, [9_000; 2], 5_000);
        state.apply(&commit(2, vec![Change::PutNode(Arc::new(renewed))]));
        let ban = crate::command::node::ban(&state, &id(ONE)).unwrap().0;
        state.apply(&commit(3, ban));
        let instance = Instance::parse("boot/1/1").unwrap();
        let process = StopTarget::Instance { agent: id(ONE), instance };
        assert_eq!(found(&state, process, 1_060), [(id(ONE), 1_140)]);
    }

    #[test]
    fn a_stop_counts_from_when_it_was_in_force() {
        let state = state(|_| {}, [9_000; 2], 5_000);
        let until = |in_force: Option<i64>| {
            let own = stop(StopTarget::Entry(entry_id("own")));
            let concerned = Concerned::by_stop(&own, in_force.map(at), &state, at(1_000), TTLS);
            concerned.until[&id(ONE)].secs()
        };
        assert_eq!((until(None), until(Some(990)), until(Some(1_020))), (1_100, 1_100, 1_120));
    }

    #[test]
    fn who_gets_it_again_is_known_long_after_the_stop() {
        let state = state(|_| {}, [9_000; 2], 5_000);
        for target in [StopTarget::Entry(entry_id("own")), StopTarget::Agent(id(ONE))] {
            let concerned = Concerned::by_resume(&stop(target), &state, at(4_000), TTLS);
            assert_eq!(concerned.agents(), [id(ONE)]);
        }
        let lost = Concerned::by_resume(&stop(StopTarget::Entry(entry_id("lost"))), &state, at(4_000), TTLS);
        assert!(lost.agents().is_empty());
    }

    #[test]
    fn what_was_written_concerns_those_below_what_it_is_and_was() {
        let state = state(|_| {}, [9_000; 2], 5_000);
        let concerned = |entries: &[Option<&str>], parents: &[&str]| {
            let entries = entries.iter().map(|name| name.and_then(|name| state.entry(&entry_id(name))));
            let parents = parents.iter().map(|parent| id(parent)).collect();
            Written::of(entries, parents).concerned(&state, at(1_000), TTLS).agents()
        };
        let (one, two) = (id(ONE), id(TWO));
        assert_eq!(concerned(&[Some("own")], &[]), vec![one.clone()]);
        assert_eq!(concerned(&[Some("own")], &[TWO]), [one.clone(), two.clone()]);
        assert_eq!(concerned(&[None], &[TWO]), vec![two.clone()]);
        for (entries, parents) in [
            (&[][..], &[][..]),
            (&[None], &[]),
            (&[Some("pool")], &[]),
            (&[Some("pooled")], &[]),
            (&[], &["/pool"]),
        ] {
            assert_eq!(concerned(entries, parents), [one.clone(), two.clone()], "{entries:?} {parents:?}");
        }
    }

    #[test]
    fn nobody_waits_for_an_agent_that_is_long_gone() {
        for (end, is_there) in [(899, false), (900, false), (901, true)] {
            let state = state(|_| {}, [end, 9_000], 5_000);
            let everything = Written::of(std::iter::empty(), Vec::new());
            let agents = everything.concerned(&state, at(1_000), TTLS).agents();
            assert_eq!(agents.contains(&id(ONE)), is_there, "{end}");
        }
    }

    #[test]
    fn a_rollout_names_so_many_and_leaves_out_what_has_ended() {
        let state = state(|_| {}, [9_000; 2], 5_000);
        let stop = stop(StopTarget::Agent(id(ONE)));
        let concerned = Concerned::by_stop(&stop, None, &state, at(1_000), TTLS);
        let left = |path: &str| Left { agent: id(path), why: Why::Awaited, since: Some(at(7)) };
        let many = (0..ROLLOUT_NAMED + 3).map(|_| left(ONE)).collect();
        let told = concerned.told(Came { applied: 2, pending: many }, &Actor::root(), &state, at(1_000));
        assert_eq!((told.applied, told.pending.len(), told.pending_left_out), (2, ROLLOUT_NAMED, 3));
        let first = &told.pending[0];
        assert_eq!((first.state(), first.since, first.may_serve_until), (PendingState::Awaited, 7, 1_100));
        let later = Came { applied: 2, pending: vec![left(ONE), left(TWO)] };
        let told = concerned.told(later, &Actor::root(), &state, at(1_100));
        assert_eq!((told.applied, told.pending.len(), told.pending_left_out), (2, 0, 0));
    }
}
