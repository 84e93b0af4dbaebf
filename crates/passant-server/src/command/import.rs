//! What of another server of the trust domain is taken over, and what may be given back?
//!
//! What this server attested or renewed itself is never changed here: an agent that has come stays until it is evicted.

use std::collections::BTreeSet;
use std::sync::Arc;

use passant_core::bundle::X509Authority;
use passant_core::serial::Serial;
use passant_core::{Bundle, JwtAuthority, Refusal, Selectors, SpiffeId, UnixTime};

use super::entry::each;
use crate::state::change::Change;
use crate::state::{Adopted, AttestedNode, State};

/// An agent as another server of the trust domain knows it.
#[derive(Clone, Debug)]
pub(crate) struct ForeignAgent {
    pub(crate) id: SpiffeId,
    pub(crate) attestation_type: String,
    /// `None` if it is banned there.
    pub(crate) serial: Option<Serial>,
    pub(crate) not_after: UnixTime,
    pub(crate) selectors: Selectors,
    pub(crate) can_reattest: bool,
    pub(crate) agent_version: Option<String>,
}

/// What was done with an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// It was not known.
    New,
    /// It was adopted before, and was brought up to date.
    Refreshed,
    /// It was adopted before, and nothing is new.
    Unchanged,
    /// It was attested or renewed here.
    Kept,
}

/// What was done to give an agent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// It was forgotten.
    Done,
    /// It was not known.
    Gone,
    /// It has called here, and stays.
    Moved,
}

/// Takes agents over. Outcomes are in the order of the agents; one that is refused does not hold up the others.
pub(crate) fn adopt(
    state: &State,
    agents: Vec<ForeignAgent>,
    now: UnixTime,
) -> (Vec<Change>, Vec<Result<Adoption, Refusal>>) {
    each(state, agents, |so_far, agent, _| {
        let Some(row) = so_far.node(&agent.id) else {
            return Ok((Some(put(agent, now)), Adoption::New));
        };
        if row.adopted.is_none() || row.pending.is_some() {
            return match (agent.serial, row.is_banned()) {
                (None, false) => Err(Refusal::precondition(
                    "the agent is banned at the other server, but has an X509-SVID of this one: ban it here too",
                )),
                _ => Ok((None, Adoption::Kept)),
            };
        }
        let fresh = AttestedNode {
            attestation_type: agent.attestation_type,
            serial: agent.serial,
            not_after: agent.not_after,
            selectors: agent.selectors,
            can_reattest: agent.can_reattest,
            agent_version: agent.agent_version.or_else(|| row.agent_version.clone()),
            ..AttestedNode::clone(row)
        };
        match (row.is_banned(), fresh.is_banned()) {
            (true, false) => Err(Refusal::precondition(
                "the agent is banned here, but not at the other server: evict it here to adopt it again",
            )),
            // The other server may show an SVID that the agent has left behind already.
            (false, false) if fresh.not_after < row.not_after => Ok((None, Adoption::Unchanged)),
            _ if fresh == **row => Ok((None, Adoption::Unchanged)),
            _ => Ok((Some(Change::PutNode(Arc::new(fresh))), Adoption::Refreshed)),
        }
    })
}

fn put(agent: ForeignAgent, now: UnixTime) -> Change {
    Change::PutNode(Arc::new(AttestedNode {
        id: agent.id,
        attestation_type: agent.attestation_type,
        serial: agent.serial,
        not_after: agent.not_after,
        pending: None,
        selectors: agent.selectors,
        can_reattest: agent.can_reattest,
        agent_version: agent.agent_version,
        attested_at: now,
        adopted: Some(Adopted::Awaited),
    }))
}

/// Forgets adopted agents that have never called. Outcomes are in the order of the IDs.
pub(crate) fn release(state: &State, ids: Vec<SpiffeId>) -> (Vec<Change>, Vec<Result<Release, Refusal>>) {
    each(state, ids, |so_far, id, _| {
        Ok(match so_far.node(&id) {
            None => (None, Release::Gone),
            Some(row) if row.adopted == Some(Adopted::Awaited) && row.pending.is_none() => {
                (Some(Change::DeleteNode(id)), Release::Done)
            }
            Some(_) => (None, Release::Moved),
        })
    })
}

/// The authorities that [`remove_authorities`] took out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) x509: Vec<X509Authority>,
    pub(crate) jwt: Vec<JwtAuthority>,
}

/// Takes appended authorities, by their certificates in DER and by key IDs, out of the own bundle. What is not in it is passed
/// over.
///
/// # Errors
/// Precondition, when one is the server's own; then none is taken out.
pub(crate) fn remove_authorities(
    state: &State,
    x509: &BTreeSet<Vec<u8>>,
    jwt: &BTreeSet<String>,
) -> Result<(Vec<Change>, Removed), Refusal> {
    let own = state.authorities().find(|own| {
        own.certificate.as_ref().is_some_and(|der| x509.contains(der)) || jwt.contains(own.id.as_str())
    });
    if let Some(own) = own {
        return Err(Refusal::precondition(format!(
            "{} is an authority of this server, which no one appended: taint and revoke it instead",
            own.id
        )));
    }
    let Some(held) = state.bundle() else { return Ok((Vec::new(), Removed::default())) };
    let mut bundle = Bundle::clone(&held);
    let removed = Removed {
        x509: bundle.x509_authorities.extract_if(.., |known| x509.contains(&known.der)).collect(),
        jwt: bundle.jwt_authorities.extract_if(.., |known| jwt.contains(&known.key_id)).collect(),
    };
    if removed == Removed::default() {
        return Ok((Vec::new(), removed));
    }
    bundle.sequence = bundle.sequence.saturating_add(1);
    Ok((vec![Change::PutBundle(Arc::new(bundle))], removed))
}

#[cfg(test)]
mod tests {
    use passant_core::Reason;

    use super::*;
    use crate::state::samples::{at, authority, commit, id, node, selectors, trust_domain};
    use crate::state::{AuthorityKind, Cursor, Lineage, PendingSerial, Phase, Revision};

    const AGENT: &str = "/spire/agent/join_token/a";

    fn empty() -> State {
        State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO })
    }

    fn serial(number: u8) -> Serial {
        Serial::from_magnitude(&[number]).unwrap()
    }

    fn foreign(number: u8, not_after: i64) -> ForeignAgent {
        ForeignAgent {
            id: id(AGENT),
            attestation_type: "join_token".to_owned(),
            serial: Some(serial(number)),
            not_after: at(not_after),
            selectors: selectors(&["k:1"]),
            can_reattest: false,
            agent_version: None,
        }
    }

    fn banned() -> ForeignAgent {
        ForeignAgent { serial: None, ..foreign(1, 100) }
    }

    fn with(row: AttestedNode) -> State {
        let mut state = empty();
        state.apply(&commit(1, vec![Change::PutNode(Arc::new(row))]));
        state
    }

    /// The row that adopting leaves, and what was said of it.
    fn adopted(state: &mut State, agent: ForeignAgent) -> Result<(AttestedNode, Adoption), Reason> {
        let (changes, mut outcomes) = adopt(state, vec![agent], at(50));
        state.apply(&commit(2, changes));
        let outcome = outcomes.remove(0).map_err(|refusal| refusal.reason)?;
        Ok((AttestedNode::clone(state.node(&id(AGENT)).unwrap()), outcome))
    }

    #[test]
    fn an_agent_is_taken_over_once_and_then_kept_up_to_date() {
        let mut state = empty();
        let (row, outcome) = adopted(&mut state, foreign(1, 100)).unwrap();
        assert_eq!((outcome, row.adopted), (Adoption::New, Some(Adopted::Awaited)));
        assert_eq!((row.serial, row.not_after, row.attested_at), (Some(serial(1)), at(100), at(50)));
        assert_eq!(adopted(&mut state, foreign(1, 100)).unwrap().1, Adoption::Unchanged);
        let (row, outcome) = adopted(&mut state, foreign(2, 200)).unwrap();
        assert_eq!((outcome, row.serial, row.not_after), (Adoption::Refreshed, Some(serial(2)), at(200)));
        // What is older than what is known does not come back.
        let (row, outcome) = adopted(&mut state, foreign(1, 100)).unwrap();
        assert_eq!((outcome, row.serial), (Adoption::Unchanged, Some(serial(2))));
    }

    #[test]
    fn a_ban_is_taken_over_and_never_lifted() {
        let mut state = empty();
        adopted(&mut state, foreign(1, 100)).unwrap();
        let (row, outcome) = adopted(&mut state, banned()).unwrap();
        assert_eq!((outcome, row.is_banned()), (Adoption::Refreshed, true));
        assert_eq!(adopted(&mut state, foreign(2, 200)).unwrap_err(), Reason::Precondition);
        assert_eq!(adopted(&mut state, banned()).unwrap().1, Adoption::Unchanged);
    }

    #[test]
    fn what_this_server_attested_or_renewed_is_not_touched() {
        let native = AttestedNode::clone(&node(AGENT, &["k:2"]));
        let pending = Some(PendingSerial { serial: serial(9), not_after: at(900) });
        let renewed =
            AttestedNode { adopted: Some(Adopted::Arrived), pending, can_reattest: false, ..native.clone() };
        for row in [native, renewed] {
            let mut state = with(row.clone());
            assert_eq!(adopted(&mut state, foreign(1, 5_000)), Ok((row.clone(), Adoption::Kept)));
            assert_eq!(adopted(&mut state, banned()), Err(Reason::Precondition));
            let (changes, outcomes) = release(&state, vec![row.id]);
            assert_eq!((changes.len(), outcomes[0].as_ref().unwrap()), (0, &Release::Moved));
        }
    }

    #[test]
    fn only_who_never_came_is_given_back() {
        let mut state = empty();
        adopted(&mut state, foreign(1, 100)).unwrap();
        let (changes, outcomes) = release(&state, vec![id(AGENT), id(AGENT)]);
        assert_eq!(changes, [Change::DeleteNode(id(AGENT))]);
        let outcomes: Vec<Release> = outcomes.into_iter().map(Result::unwrap).collect();
        assert_eq!(outcomes, [Release::Done, Release::Gone]);
        let arrived = AttestedNode {
            adopted: Some(Adopted::Arrived),
            ..AttestedNode::clone(state.node(&id(AGENT)).unwrap())
        };
        let (changes, outcomes) = release(&with(arrived), vec![id(AGENT)]);
        assert_eq!((changes.len(), outcomes[0].as_ref().unwrap()), (0, &Release::Moved));
    }

    #[test]
    fn a_ban_made_here_is_not_given_back() {
        for agent in [foreign(1, 100), banned()] {
            let mut state = empty();
            adopted(&mut state, agent).unwrap();
            let (changes, ()) = crate::command::node::ban(&state, &id(AGENT)).unwrap();
            state.apply(&commit(3, changes));
            let (changes, outcomes) = release(&state, vec![id(AGENT)]);
            assert_eq!((changes.len(), outcomes[0].as_ref().unwrap()), (0, &Release::Moved));
            assert!(state.node(&id(AGENT)).unwrap().is_banned());
            let (changes, ()) = crate::command::node::ban(&state, &id(AGENT)).unwrap();
            assert!(changes.is_empty(), "it is banned already");
        }
    }

    #[test]
    fn appended_authorities_are_taken_out_and_own_ones_are_not() {
        let own = authority("own", AuthorityKind::X509, Phase::Active);
        let own_der = own.certificate.clone().unwrap();
        let x509 = |der: &[u8]| X509Authority { der: der.to_vec(), tainted: false };
        let bundle = Bundle {
            x509_authorities: vec![x509(&own_der), x509(&[7])],
            sequence: 4,
            ..Bundle::empty(trust_domain())
        };
        let mut state = empty();
        state.apply(&commit(1, vec![Change::PutAuthority(own), Change::PutBundle(Arc::new(bundle))]));
        let none = BTreeSet::new();
        for refused in [
            remove_authorities(&state, &BTreeSet::from([own_der.clone(), vec![7]]), &none),
            remove_authorities(&state, &BTreeSet::new(), &BTreeSet::from(["own".to_owned()])),
        ] {
            assert_eq!(refused.unwrap_err().reason, Reason::Precondition);
        }
        let (changes, removed) =
            remove_authorities(&state, &BTreeSet::from([vec![7], vec![8]]), &none).unwrap();
        assert_eq!(removed.x509, [x509(&[7])]);
        state.apply(&commit(2, changes));
        let left = state.bundle().unwrap();
        assert_eq!((left.sequence, left.x509_authorities.clone()), (5, vec![x509(&own_der)]));
        let (changes, removed) = remove_authorities(&state, &BTreeSet::from([vec![7]]), &none).unwrap();
        assert_eq!((changes.len(), removed), (0, Removed::default()));
    }
}
