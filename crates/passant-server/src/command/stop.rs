//! What may be stopped, and who may end it?

use std::sync::Arc;

use passant_core::{Refusal, SpiffeId, Stop, StopReason, StopTarget, UnixTime};

use super::entry::may_touch;
use super::node::is_token_alias;
use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::limits::{STOPS, STOPS_OF_AGENT};
use crate::state::{Change, State};

/// A stop to make.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) target: StopTarget,
    /// What its ID will be.
    pub(crate) id: String,
    pub(crate) reason: StopReason,
    /// Who wants it, as the record shows callers.
    pub(crate) by: String,
}

/// A stop as it stands, or stood.
#[derive(Clone, Debug)]
pub(crate) struct Stopped {
    pub(crate) stop: Arc<Stop>,
    /// The SPIFFE ID that it is about: the entry's, or the agent's.
    pub(crate) subject: Option<SpiffeId>,
    /// Whether it was made just now.
    pub(crate) is_new: bool,
}

/// Stops something for `actor`. What is stopped stays stopped by the stop there is.
///
/// # Errors
/// Not found for an entry or agent that does not exist, or that the actor does not get to see; Denied for one that no role
/// of the actor covers; Precondition for an entry that names nodes, for which nothing is minted; Exhausted beyond [`STOPS`]
/// and [`STOPS_OF_AGENT`].
pub(crate) fn stop(
    state: &State,
    wanted: Wanted,
    actor: &Actor,
    now: UnixTime,
) -> Result<(Vec<Change>, Stopped), Refusal> {
    let Wanted { target, id, reason, by } = wanted;
    if let Some(stands) = state.stop(&target) {
        let subject = known(state, &target, Verb::StopWrite, actor)?;
        return Ok((Vec::new(), Stopped { stop: Arc::clone(stands), subject, is_new: false }));
    }
    let subject = Some(existing(state, &target, Verb::StopWrite, actor)?);
    if state.stop_count() >= STOPS {
        return Err(Refusal::exhausted(format!(
            "there are {STOPS} stops already: end those that are not needed any more, or ban the agents"
        )));
    }
    let is_of_its = |stop: &&Arc<Stop>| matches!((&stop.target, &target), (StopTarget::Instance { agent: one, .. }, StopTarget::Instance { agent, .. }) if one == agent);
    if state.stops().filter(is_of_its).count() >= STOPS_OF_AGENT {
        return Err(Refusal::exhausted(format!(
            "there are {STOPS_OF_AGENT} stops of processes of this agent already: stop the agent"
        )));
    }
    let revision = state.cursor().revision.next().number();
    let stop = Arc::new(Stop { target, id, reason, by, since: now, revision });
    Ok((vec![Change::PutStop(Arc::clone(&stop))], Stopped { stop, subject, is_new: true }))
}

/// Ends the stop of `target` for `actor`. What it was.
///
/// # Errors
/// Not found if it is not stopped, or the actor does not get to see it; Denied for what no role of the actor covers.
pub(crate) fn resume(
    state: &State,
    target: &StopTarget,
    actor: &Actor,
) -> Result<(Vec<Change>, Stopped), Refusal> {
    let subject = known(state, target, Verb::StopWrite, actor)?;
    let stop = state.stop(target).ok_or_else(|| Refusal::not_found(format!("{target} is not stopped")))?;
    let ended = Stopped { stop: Arc::clone(stop), subject, is_new: false };
    Ok((vec![Change::DeleteStop(target.clone())], ended))
}

/// Whether `actor` gets to see a stop of `target`.
pub(crate) fn sees(state: &State, target: &StopTarget, actor: &Actor) -> bool {
    known(state, target, Verb::StopRead, actor).is_ok()
}

/// The SPIFFE ID of what `actor` may do `verb` to: of agents also of those that are not attested any more. `None` if a
/// restored state knows of the stop and has lost the entry that it is about.
fn known(state: &State, target: &StopTarget, verb: Verb, actor: &Actor) -> Result<Option<SpiffeId>, Refusal> {
    let is_lost = match target {
        StopTarget::Entry(id) => state.entry(id).is_none(),
        // By its ID alone it is known which roles cover it.
        StopTarget::Agent(agent) | StopTarget::Instance { agent, .. } => {
            actor.may(verb, &Target::Agent(agent), state)?;
            return Ok(Some(agent.clone()));
        }
    };
    if is_lost && actor.is_operator() && state.stop(target).is_some() {
        return Ok(None);
    }
    existing(state, target, verb, actor).map(Some)
}

/// The SPIFFE ID of what `actor` may do `verb` to.
fn existing(state: &State, target: &StopTarget, verb: Verb, actor: &Actor) -> Result<SpiffeId, Refusal> {
    match target {
        StopTarget::Entry(id) => {
            let entry = state.entry(id).ok_or_else(|| Refusal::not_found("entry not found"))?;
            may_touch(actor, verb, entry, state)?;
            if entry.is_node_alias() || is_token_alias(entry) {
                return Err(Refusal::precondition(format!(
                    "entry {id} names nodes, and nothing is minted for it: stop the entries below it, or the agents"
                )));
            }
            Ok(entry.spiffe_id.clone())
        }
        StopTarget::Agent(agent) | StopTarget::Instance { agent, .. } => {
            actor.may(verb, &Target::Agent(agent), state)?;
            let node = state.node(agent).ok_or_else(|| Refusal::not_found("agent not found"))?;
            Ok(node.id.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use passant_core::{Instance, Reason};

    use super::*;
    use crate::state::samples::{at, commit, draft, entry, entry_id, id, node, registered, trust_domain};
    use crate::state::{Cursor, Lineage, Revision};

    const AGENT: &str = "/spire/agent/x/1";

    fn state() -> State {
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        let of_token = format!("spiffe_id:{}", id(AGENT));
        state.apply(&commit(
            1,
            vec![
                Change::PutNode(node(AGENT, &[])),
                Change::PutEntry(entry("web", "/web", AGENT)),
                Change::PutEntry(registered("pool", draft("/pool", "/spire/server", &["k:1"]))),
                Change::PutEntry(registered("token", draft("/alias", AGENT, &[&of_token]))),
            ],
        ));
        state
    }

    fn wanted(target: StopTarget) -> Wanted {
        Wanted {
            target,
            id: "s1".to_owned(),
            reason: StopReason::parse("stolen").unwrap(),
            by: "root".to_owned(),
        }
    }

    fn process(agent: &str) -> StopTarget {
        StopTarget::Instance { agent: id(agent), instance: Instance::parse("boot/1/2").unwrap() }
    }

    #[test]
    fn what_is_there_is_stopped_once_and_resumed_once() {
        let mut state = state();
        let root = Actor::root();
        for (target, subject) in [
            (StopTarget::Entry(entry_id("web")), "/web"),
            (StopTarget::Agent(id(AGENT)), AGENT),
            (process(AGENT), AGENT),
        ] {
            let (changes, made) = stop(&state, wanted(target.clone()), &root, at(9)).unwrap();
            state.apply(&commit(2, changes));
            let next = state.cursor().revision.number();
            assert!(
                made.is_new && made.subject == Some(id(subject)) && made.stop.revision == next,
                "{target}"
            );
            let other = Wanted { id: "s2".to_owned(), ..wanted(target.clone()) };
            let (changes, again) = stop(&state, other, &root, at(9)).unwrap();
            assert_eq!((changes.len(), again.is_new, again.stop.id.as_str()), (0, false, "s1"));
            assert!(sees(&state, &target, &root));
            let (changes, ended) = resume(&state, &target, &root).unwrap();
            assert_eq!((ended.stop.id.as_str(), changes.len()), ("s1", 1));
            state.apply(&commit(3, changes));
            assert_eq!(resume(&state, &target, &root).unwrap_err().reason, Reason::NotFound);
        }
    }

    #[test]
    fn what_is_not_there_or_names_nodes_is_not_stopped() {
        let state = state();
        for (target, reason) in [
            (StopTarget::Entry(entry_id("none")), Reason::NotFound),
            (StopTarget::Agent(id("/spire/agent/x/2")), Reason::NotFound),
            (process("/spire/agent/x/2"), Reason::NotFound),
            (StopTarget::Entry(entry_id("pool")), Reason::Precondition),
            (StopTarget::Entry(entry_id("token")), Reason::Precondition),
        ] {
            assert_eq!(stop(&state, wanted(target), &Actor::root(), at(9)).unwrap_err().reason, reason);
        }
    }

    #[test]
    fn what_a_restoration_lost_can_be_resumed() {
        let mut state = state();
        let target = StopTarget::Entry(entry_id("lost"));
        state.apply(&commit(2, vec![Change::PutStop(crate::state::samples::stop(target.clone()))]));
        let (changes, ended) = resume(&state, &target, &Actor::root()).unwrap();
        assert_eq!((changes, ended.subject), (vec![Change::DeleteStop(target)], None));
    }

    #[test]
    fn what_is_stopped_of_an_agent_outlives_it() {
        let mut state = state();
        let root = Actor::root();
        for target in [StopTarget::Agent(id(AGENT)), process(AGENT)] {
            let (changes, _) = stop(&state, wanted(target), &root, at(9)).unwrap();
            state.apply(&commit(2, changes));
        }
        let evict = crate::command::node::evict(&state, &id(AGENT)).unwrap().0;
        let ended = state.stops_ended_by(&evict);
        state.apply(&commit(3, [evict, ended].concat()));
        for target in [StopTarget::Agent(id(AGENT)), process(AGENT)] {
            let (changes, again) = stop(&state, wanted(target.clone()), &root, at(9)).unwrap();
            assert_eq!((changes.len(), again.is_new), (0, false), "{target}");
            let (changes, _) = resume(&state, &target, &root).unwrap();
            state.apply(&commit(4, changes));
            assert_eq!(stop(&state, wanted(target), &root, at(9)).unwrap_err().reason, Reason::NotFound);
        }
    }

    #[test]
    fn stops_are_bounded() {
        let mut state = state();
        let of_process = |agent: &str, pid: usize| {
            let instance = Instance::parse(&format!("boot/{pid}/2")).unwrap();
            StopTarget::Instance { agent: id(agent), instance }
        };
        let stops = (1..=STOPS).map(|pid| {
            let agent = if pid < STOPS_OF_AGENT { AGENT.to_owned() } else { format!("{AGENT}{pid}") };
            Change::PutStop(crate::state::samples::stop(of_process(&agent, pid)))
        });
        let mut stops: Vec<Change> = stops.collect();
        let last = stops.pop();
        state.apply(&commit(2, stops));
        let one_more = wanted(of_process(AGENT, STOPS + 1));
        let (changes, _) = stop(&state, one_more, &Actor::root(), at(9)).unwrap();
        let mut full = state.clone();
        full.apply(&commit(3, changes));
        full.apply(&commit(4, vec![Change::DeleteStop(of_process(&format!("{AGENT}5000"), 5_000))]));
        let one_more = wanted(of_process(AGENT, STOPS + 2));
        let refused = stop(&full, one_more, &Actor::root(), at(9)).unwrap_err();
        assert!(refused.to_string().contains("1000 stops of processes"), "{refused}");
        assert!(stop(&state, wanted(StopTarget::Agent(id(AGENT))), &Actor::root(), at(9)).is_ok());
        state.apply(&commit(3, last.into_iter().collect()));
        let refused = stop(&state, wanted(StopTarget::Agent(id(AGENT))), &Actor::root(), at(9)).unwrap_err();
        assert_eq!(refused.reason, Reason::Exhausted);
    }
}
