//! What of an explanation is a secret? A join token until it is spent: whoever knows it can attest with it, and it stands in the
//! SPIFFE ID of the agent that it makes, which entries may name before that agent is there.

use passant_core::explanation::{Candidate, Explanation};
use passant_core::{Selector, Selectors, SpiffeId};

use crate::state::State;

/// Below this are the agents that attested with a join token: the rest is the token.
const TOKENS: &str = "/spire/agent/join_token/";
/// What stands for it.
const HIDDEN: &str = "***";

/// Takes the join tokens out of all texts, except those whose agent is attested.
pub(super) fn hide(told: &mut Explanation, state: &State) {
    for cause in &mut told.causes {
        hide_in(&mut cause.says, state);
        hide_in(&mut cause.remedy, state);
    }
    for fact in &mut told.facts {
        hide_in(&mut fact.says, state);
    }
    for Candidate { id: _, spiffe_id: _, parent_id, selectors, missing, note } in &mut told.candidates {
        *parent_id = parent_id.take().filter(|parent| is_told(parent, state));
        hide_in(note, state);
        for selectors in [selectors, missing] {
            if selectors.iter().any(|selector| without_tokens(selector.as_str(), state).is_some()) {
                *selectors = shown(selectors, state);
            }
        }
    }
}

fn is_told(id: &SpiffeId, state: &State) -> bool {
    without_tokens(id.as_str(), state).is_none()
}

fn shown(selectors: &Selectors, state: &State) -> Selectors {
    let shown = selectors.iter().map(|selector| match without_tokens(selector.as_str(), state) {
        Some(text) => Selector::parse(&text).ok(),
        None => Some(selector.clone()),
    });
    shown.flatten().collect()
}

fn hide_in(text: &mut String, state: &State) {
    if let Some(hidden) = without_tokens(text, state) {
        *text = hidden;
    }
}

/// The text with each unspent token hidden; `None` if there is none in it.
fn without_tokens(text: &str, state: &State) -> Option<String> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(TOKENS) {
        let (before, after) = rest.split_at(at + TOKENS.len());
        let is_of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let end = after.find(|c| !is_of_token(c)).unwrap_or(after.len());
        let (token, left) = after.split_at(end);
        let agent = state.trust_domain().join(&format!("{TOKENS}{token}"));
        let is_attested = agent.is_ok_and(|agent| state.node(&agent).is_some());
        shown.push_str(before);
        shown.push_str(if is_attested || token.is_empty() { token } else { HIDDEN });
        rest = left;
    }
    shown.push_str(rest);
    (shown != text).then_some(shown)
}
