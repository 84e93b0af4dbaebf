//! What may an operator do to the authorities, beside what happens by itself?
//!
//! Each act takes its turn with the steps that are due by themselves, and is decided on the state that it changes: done
//! whole, or refused with what would help. What SPIRE answers InvalidArgument for is Invalid here; where it answers
//! Internal although the operator can mend it, it is Precondition.

use passant_core::{Refusal, SpiffeId};

use super::{Asked, Authorities, AuthorityError, Turns, kind_name, next_bundle, withdrawal};
use crate::limits::AUTHORITIES;
use crate::state::State;
use crate::state::authority::{Authority, AuthorityId, AuthorityKind, Phase};
use crate::state::change::Change;

/// Agents that are named where some lack an authority.
const NAMED: usize = 3;

/// The authorities of one kind that an operator deals with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// The one that signs.
    pub active: Option<Authority>,
    /// The one that signs next.
    pub prepared: Option<Authority>,
    /// The one that signed last before the active one, and is still in the bundle.
    pub old: Option<Authority>,
}

impl Authorities {
    /// Which authorities of this kind sign, signed, and will.
    pub fn slots(&self, kind: AuthorityKind) -> Slots {
        let state = self.parts.journal.state();
        let of = |phase| state.authorities().filter(move |a| a.kind == kind && a.phase == phase);
        Slots {
            active: of(Phase::Active).next().cloned(),
            prepared: of(Phase::Prepared).next().cloned(),
            old: of(Phase::Retired).max_by_key(|retired| retired.activated_at).cloned(),
        }
    }

    /// Makes a new authority and publishes it, for `caller`. One that was prepared before leaves the bundle in the same
    /// commit: it has signed nothing.
    ///
    /// # Errors
    /// Precondition when there are [`AUTHORITIES`] of this kind already; Unavailable when key, record or journal cannot be
    /// written.
    pub async fn prepare(&self, kind: AuthorityKind, caller: &str) -> Result<Authority, Refusal> {
        let _turn = self.turn.lock().await;
        let state = self.parts.journal.state();
        let others = state.authorities().filter(|a| a.kind == kind && a.phase != Phase::Prepared).count();
        if others >= AUTHORITIES {
            return Err(Refusal::precondition(format!(
                "the bundle holds {others} {} authorities already: taint and revoke old ones, or wait until they expire",
                kind_name(kind)
            )));
        }
        let turns = self.turns();
        let asked = Asked { caller: caller.to_owned(), reason: "prepared by an operator".to_owned() };
        let prepared = turns.prepare(kind, self.parts.host.now(), asked).await.map_err(refusal_of)?;
        forget_keys(&turns).await;
        Ok(prepared)
    }

    /// Makes the prepared authority `id` sign from now on, once every agent is known to have it.
    ///
    /// # Errors
    /// Invalid when `id` is no authority of this kind or signs already; Precondition when it has retired or ended, is tainted, or
    /// when agents lack it, with their count; Unavailable when its key or the journal cannot be used.
    pub async fn activate(&self, kind: AuthorityKind, id: &str) -> Result<Authority, Refusal> {
        let _turn = self.turn.lock().await;
        let (state, now) = (self.parts.journal.state(), self.parts.host.now());
        let prepared = named(&state, kind, id)?;
        match prepared.phase {
            Phase::Prepared if prepared.tainted => {
                return Err(Refusal::precondition("this authority is tainted: prepare another"));
            }
            Phase::Prepared if prepared.not_after > now => {}
            Phase::Prepared => {
                return Err(Refusal::precondition("this authority has ended: prepare another"));
            }
            Phase::Active => return Err(Refusal::invalid("this authority is active already")),
            Phase::Retired => {
                return Err(Refusal::precondition(
                    "this authority has retired and never signs again: prepare another",
                ));
            }
        }
        let lacking = self.reach.lacking(&state, prepared.published, now);
        if !lacking.is_empty() {
            return Err(not_reached(kind, &lacking));
        }
        let turns = self.turns();
        if !turns.activate(kind, &prepared.id, &[], now).await.map_err(refusal_of)? {
            return Err(Refusal::precondition("the private key of this authority is lost: prepare another"));
        }
        self.follow(&turns, kind).await.map_err(refusal_of)?;
        self.slots(kind).active.ok_or_else(|| refusal_of(AuthorityError::NoneActive(kind)))
    }

    /// Declares the retired authority `id` untrustworthy: it is marked in the bundle, so that agents have everything that it
    /// signed issued anew. It verifies until it is revoked. It signs no more, even if what was retired last was not followed yet.
    ///
    /// # Errors
    /// Invalid when `id` is no authority of this kind, signs, or is prepared; Precondition when it is tainted already;
    /// Unavailable when the journal cannot be written.
    pub async fn taint(&self, kind: AuthorityKind, id: &str) -> Result<Authority, Refusal> {
        let _turn = self.turn.lock().await;
        self.follow(&self.turns(), kind).await.map_err(refusal_of)?;
        let id = id.to_owned();
        self.parts.journal.submit(move |state| tainting(state, kind, &id)).await
    }

    /// Takes the tainted authority `id` out of the bundle and forgets it with its key: nothing that it signed verifies any
    /// more.
    ///
    /// # Errors
    /// Invalid when `id` is no authority of this kind, signs, or is prepared; Precondition when it is not tainted;
    /// Unavailable when the journal cannot be written.
    pub async fn revoke(&self, kind: AuthorityKind, id: &str) -> Result<Authority, Refusal> {
        let _turn = self.turn.lock().await;
        self.follow(&self.turns(), kind).await.map_err(refusal_of)?;
        let id = id.to_owned();
        let revoked = self.parts.journal.submit(move |state| revocation(state, kind, &id)).await?;
        forget_keys(&self.turns()).await;
        Ok(revoked)
    }
}

/// The act is done. A key that stays goes at the next turn that makes an authority, or at the next start.
async fn forget_keys(turns: &Turns<'_>) {
    if let Err(error) = turns.sweep().await {
        let error: &dyn std::error::Error = &error;
        tracing::error!(error, "private keys that no authority needs could not be removed yet");
    }
}

/// The authority `id`, whatever its phase.
fn named<'a>(state: &'a State, kind: AuthorityKind, id: &str) -> Result<&'a Authority, Refusal> {
    if id.is_empty() {
        return Err(Refusal::invalid("no authority ID is given"));
    }
    let found = AuthorityId::parse(id).ok().and_then(|id| state.authority(&id)).filter(|a| a.kind == kind);
    found.ok_or_else(|| {
        let kind = kind_name(kind);
        Refusal::invalid(format!("this is the ID of no {kind} authority of this server: ask for their state"))
    })
}

fn not_reached(kind: AuthorityKind, lacking: &[SpiffeId]) -> Refusal {
    let (count, kind) = (lacking.len(), kind_name(kind));
    let some: Vec<&str> = lacking.iter().take(NAMED).map(SpiffeId::as_str).collect();
    let (agents, more) =
        (if count == 1 { "agent lacks" } else { "agents lack" }, if count > NAMED { ", ..." } else { "" });
    Refusal::precondition(format!(
        "{count} {agents} this {kind} authority: wait until all have fetched the bundle, or evict those that are gone ({}{more})",
        some.join(", ")
    ))
}

/// The authority `id`, which signed and signs no more.
fn retired<'a>(state: &'a State, kind: AuthorityKind, id: &str) -> Result<&'a Authority, Refusal> {
    let authority = named(state, kind, id)?;
    match authority.phase {
        Phase::Retired => Ok(authority),
        Phase::Active => {
            Err(Refusal::invalid("this authority is active: prepare and activate another one first"))
        }
        Phase::Prepared => Err(Refusal::invalid(
            "this authority is prepared and has signed nothing: prepare another, and it makes way",
        )),
    }
}

fn tainting(state: &State, kind: AuthorityKind, id: &str) -> Result<(Vec<Change>, Authority), Refusal> {
    let authority = retired(state, kind, id)?;
    if authority.tainted {
        return Err(Refusal::precondition(
            "this authority is tainted already; revoke it once agents have reacted",
        ));
    }
    let tainted = Authority { tainted: true, ..authority.clone() };
    let mut bundle = next_bundle(state);
    for published in &mut bundle.x509_authorities {
        published.tainted |= Some(&published.der) == tainted.certificate.as_ref();
    }
    for published in &mut bundle.jwt_authorities {
        published.tainted |= published.key_id == tainted.id.as_str();
    }
    let changes = vec![Change::PutAuthority(tainted.clone()), Change::PutBundle(bundle.into())];
    Ok((changes, tainted))
}

fn revocation(state: &State, kind: AuthorityKind, id: &str) -> Result<(Vec<Change>, Authority), Refusal> {
    let authority = retired(state, kind, id)?;
    if !authority.tainted {
        return Err(Refusal::precondition(
            "this authority is not tainted: taint it first, so that agents replace what it signed",
        ));
    }
    Ok((withdrawal(state, &authority.id), authority.clone()))
}

/// What an operator reads of a failure.
fn refusal_of(error: AuthorityError) -> Refusal {
    match error {
        AuthorityError::Journal(refusal) => refusal,
        AuthorityError::Record(_) => {
            Refusal::unavailable("the decision record cannot be written: no authority is made").because(error)
        }
        AuthorityError::KeyStore(_) => {
            Refusal::unavailable("the key store cannot be used: the server's log says why").because(error)
        }
        AuthorityError::KeyLost { .. }
        | AuthorityError::NoneActive(_)
        | AuthorityError::Key(_)
        | AuthorityError::Mint(_)
        | AuthorityError::Publish(_)
        | AuthorityError::Pool(_) => Refusal::internal(error),
    }
}

#[cfg(test)]
mod tests;
