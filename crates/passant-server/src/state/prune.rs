//! Which objects have outlived their use?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use passant_core::{Bundle, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::state::State;
use crate::state::change::Change;

/// How long an authority stays in the own bundle after its end, if it was appended to it (as in SPIRE): long after anything
/// it signed can be valid, and time to notice that no successor came.
const APPENDED_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The deletes that clear `state` of entries past their end and of join tokens that have expired, at most `most`.
///
/// For tidiness only: nothing is issued for an ended entry or an expired token, pruned or not. Nodes are kept,
/// since a banned node must stay banned and an expired one tells the operator that it fell silent. Authorities are
/// pruned by their own machine, after what they signed has ended.
pub fn prune(state: &State, now: UnixTime, most: usize) -> Vec<Change> {
    let entries = state.entries().filter(|entry| entry.has_ended(now));
    let tokens = state.tokens().filter(|token| token.expires_at < now);
    let deletes = entries.map(|entry| Change::DeleteEntry(entry.id.clone()));
    deletes.chain(tokens.map(|token| Change::DeleteToken(token.hash))).take(most).collect()
}

/// Whether `delete` is one that [`prune`] would make.
///
/// Lets the journal's writer look again at what somebody else found in an earlier state, without a search of its own.
pub fn is_due(state: &State, delete: &Change, now: UnixTime) -> bool {
    match delete {
        Change::DeleteEntry(id) => state.entry(id).is_some_and(|entry| entry.has_ended(now)),
        Change::DeleteToken(hash) => state.token(hash).is_some_and(|token| token.expires_at < now),
        Change::PutEntry(_)
        | Change::PutNode(_)
        | Change::DeleteNode(_)
        | Change::PutToken(_)
        | Change::PutAuthority(_)
        | Change::DeleteAuthority(_)
        | Change::PutBundle(_)
        | Change::DeleteBundle(_)
        | Change::PutFederation(_)
        | Change::DeleteFederation(_)
        | Change::PutStop(_)
        | Change::DeleteStop(_) => false,
    }
}

/// The own bundle without authorities that operators or servers below appended and whose end is a day past; `None` if there
/// are none. This server's own authorities are pruned by their own machine.
pub fn own_bundle(state: &State, now: UnixTime) -> Option<Change> {
    let held = state.bundle()?;
    let ended = |end: UnixTime| end.plus(APPENDED_KEPT) < now;
    let x509: BTreeSet<&[u8]> = state.authorities().filter_map(|own| own.certificate.as_deref()).collect();
    let mut bundle = Bundle::clone(&held);
    bundle.x509_authorities.retain(|authority| {
        x509.contains(authority.der.as_slice()) || !certificate_end(&authority.der).is_some_and(ended)
    });
    bundle.jwt_authorities.retain(|authority| {
        let is_own = state.authorities().any(|own| own.id.as_str() == authority.key_id);
        is_own || !authority.expires_at.is_some_and(ended)
    });
    if bundle == *held {
        return None;
    }
    bundle.sequence = bundle.sequence.saturating_add(1);
    Some(Change::PutBundle(Arc::new(bundle)))
}

fn certificate_end(der: &[u8]) -> Option<UnixTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(UnixTime::from_secs(certificate.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use passant_core::JwtAuthority;

    use super::*;
    use crate::state::samples::{
        at, authority, bundle, commit, draft, entry_id, node, registered, token, trust_domain,
    };
    use crate::state::{AuthorityKind, Cursor, Lineage, Phase, Revision};

    #[test]
    fn ends_are_exact_and_nodes_stay() {
        let mut ending = draft("/w", "/p", &["k:1"]);
        ending.expires_at = Some(at(100));
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        state.apply(&commit(
            1,
            vec![
                Change::PutEntry(registered("endless", draft("/v", "/p", &["k:1"]))),
                Change::PutEntry(registered("ending", ending)),
                Change::PutNode(node("/spire/agent/x/1", &[])),
                Change::PutToken(token("t", 100)),
            ],
        ));
        let entry = Change::DeleteEntry(entry_id("ending"));
        let token = Change::DeleteToken(token("t", 100).hash);
        assert_eq!(prune(&state, at(99), 10), []);
        // An entry has ended at its end; a token may still be spent in its last second.
        assert_eq!(prune(&state, at(100), 10), vec![entry.clone()]);
        assert_eq!(prune(&state, at(101), 10), [entry.clone(), token]);
        assert_eq!(prune(&state, at(5_000), 1), [entry]);
        for now in [99, 100, 101] {
            let due = prune(&state, at(now), 10);
            for delete in prune(&state, at(5_000), 10) {
                assert_eq!(is_due(&state, &delete, at(now)), due.contains(&delete), "{delete:?} at {now}");
            }
        }
    }

    #[test]
    fn appended_authorities_leave_a_day_after_their_end() {
        let day = i64::try_from(APPENDED_KEPT.as_secs()).unwrap();
        let mut own = Bundle::clone(&bundle(trust_domain(), 3, 5));
        let jwt = |key_id: &str, expires_at| JwtAuthority {
            key_id: key_id.to_owned(),
            public_key: vec![1],
            expires_at,
            tainted: false,
        };
        own.jwt_authorities = vec![jwt("a", Some(at(9))), jwt("b", Some(at(9))), jwt("c", None)];
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        let ours = authority("a", AuthorityKind::Jwt, Phase::Active);
        state.apply(&commit(1, vec![Change::PutBundle(own.into()), Change::PutAuthority(ours)]));
        assert_eq!(own_bundle(&state, at(9 + day)), None);
        let Some(Change::PutBundle(left)) = own_bundle(&state, at(10 + day)) else { panic!("nothing ended") };
        let ids: Vec<&str> = left.jwt_authorities.iter().map(|one| one.key_id.as_str()).collect();
        assert_eq!((ids, left.sequence), (vec!["a", "c"], 4));
        assert_eq!(left.x509_authorities.len(), 1, "whose end cannot be read stays");
    }
}
