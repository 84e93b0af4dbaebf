//! When may a join token be handed out?

use passant_attest::node::join_token::TokenHash;
use passant_core::{Refusal, SpiffeId, UnixTime};

use crate::access::{Target, Verb};
use crate::caller::Actor;
use crate::state::change::Change;
use crate::state::{JoinToken, State};

/// Keeps the hash of a token until `expires_at`, for `actor`. A node that spends it becomes `agent`, and stands for `alias` too.
///
/// # Errors
/// Already exists, spent or not: a token that comes twice could be one that somebody else knows. Also when `agent` is attested:
/// its ID tells the token that it once spent, and whoever spent that again would take its place.
pub(crate) fn create(
    state: &State,
    hash: TokenHash,
    agent: &SpiffeId,
    expires_at: UnixTime,
    alias: Option<SpiffeId>,
    actor: &Actor,
) -> Result<(Vec<Change>, ()), Refusal> {
    actor.may(Verb::TokenCreate, &Target::Token { agent, alias: alias.as_ref() }, state)?;
    if state.token(&hash).is_some() {
        return Err(Refusal::already_exists(
            "this join token already exists; leave token out to get a random one",
        ));
    }
    if state.node(agent).is_some() {
        return Err(Refusal::already_exists(format!(
            "agent \"{agent}\" has attested by this join token; evict it first, or leave token out to get a random one"
        )));
    }
    Ok((
        vec![Change::PutToken(JoinToken {
            hash,
            expires_at,
            alias,
            by_role: !actor.is_operator(),
            spent: None,
        })],
        (),
    ))
}

#[cfg(test)]
mod tests {
    use passant_attest::node::join_token::Token;
    use passant_core::Reason;

    use super::*;
    use crate::state::samples::{at, commit, node, trust_domain};
    use crate::state::{Cursor, Lineage, Revision};

    #[test]
    fn nobody_gets_the_token_of_an_agent_that_is_there() {
        let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
        let mut state = State::empty(trust_domain(), cursor);
        let token = Token::parse("known").unwrap();
        let agent = token.agent_id(state.trust_domain()).unwrap();
        let made = |state: &State| create(state, token.hash(), &agent, at(9), None, &Actor::root());
        assert!(made(&state).is_ok());
        state.apply(&commit(1, vec![Change::PutNode(node(agent.path(), &[]))]));
        let refusal = made(&state).unwrap_err();
        assert_eq!(refusal.reason, Reason::AlreadyExists);
        assert!(refusal.public.contains("evict it first"), "{refusal}");
        state.apply(&commit(2, vec![Change::DeleteNode(agent.clone())]));
        assert!(made(&state).is_ok());
    }
}
