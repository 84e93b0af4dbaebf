//! When may a join token be handed out?

use passant_attest::node::join_token::TokenHash;
use passant_core::{Refusal, SpiffeId, UnixTime};

use crate::state::change::Change;
use crate::state::{JoinToken, State};

/// Keeps the hash of a token until `expires_at`. A node that spends it stands for `alias` too.
///
/// # Errors
/// Already exists, spent or not: a token that comes twice could be one that somebody else knows.
pub(crate) fn create(
    state: &State,
    hash: TokenHash,
    expires_at: UnixTime,
    alias: Option<SpiffeId>,
) -> Result<(Vec<Change>, ()), Refusal> {
    if state.token(&hash).is_some() {
        return Err(Refusal::already_exists(
            "this join token already exists; leave token out to get a random one",
        ));
    }
    Ok((vec![Change::PutToken(JoinToken { hash, expires_at, alias, spent: None })], ()))
}
