//! Why would a caller be let do something, or not?

use std::sync::Arc;

use super::{Lack, Looks, Rights, Role, Target, Verb, Who};
use crate::state::State;

/// What the server would decide.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    /// What decides, in a sentence.
    pub(crate) reason: String,
    /// Every role, those that the caller holds first.
    pub(crate) roles: Vec<RoleVerdict>,
}

/// What one role says to it.
#[derive(Debug)]
pub(crate) struct RoleVerdict {
    pub(crate) role: Arc<Role>,
    pub(crate) held: bool,
    /// What keeps the role from allowing it.
    pub(crate) lack: Option<Lack>,
}

/// Decides whether `who` may do `verb` to all of `targets`. `operator` says what makes it an administrator, if anything.
pub(crate) fn explain(
    rights: &Rights,
    who: &Who,
    operator: Option<String>,
    verb: Verb,
    targets: &[Target<'_>],
    state: &State,
) -> Verdict {
    let held = rights.held_by(who);
    let judge = |role: &Arc<Role>| RoleVerdict {
        role: Arc::clone(role),
        held: held.contains(role),
        lack: targets
            .iter()
            .find_map(|target| role.lack(verb, target, state, rights, &Looks::of_one_request())),
    };
    let mut roles: Vec<RoleVerdict> = rights.roles().iter().map(judge).collect();
    roles.sort_by_key(|verdict| !verdict.held);
    if let Some(reason) = operator {
        return Verdict { allowed: true, reason, roles };
    }
    let looks = Looks::of_one_request();
    let refused = targets.iter().find_map(|target| refusal_of(&held, verb, target, state, rights, &looks));
    let allowed = refused.is_none() && !held.is_empty();
    let reason = match refused {
        _ if held.is_empty() => "it is no administrator and holds no role".to_owned(),
        Some(why) => why,
        None => match roles.iter().find(|verdict| verdict.held && verdict.lack.is_none()) {
            Some(verdict) => format!("role \"{}\" allows it", verdict.role.name),
            None => "its roles allow it together".to_owned(),
        },
    };
    Verdict { allowed, reason, roles }
}

/// Why none of `held` allows `verb` on `target`; `None` if one does.
pub(crate) fn refusal_of(
    held: &[Arc<Role>],
    verb: Verb,
    target: &Target<'_>,
    state: &State,
    rights: &Rights,
    looks: &Looks,
) -> Option<String> {
    let mut lacks = Vec::new();
    for role in held {
        lacks.push(format!("role \"{}\" {}", role.name, role.lack(verb, target, state, rights, looks)?));
    }
    Some(lacks.join("; "))
}
