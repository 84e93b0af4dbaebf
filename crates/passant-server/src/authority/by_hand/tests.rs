//! Can operators make authorities succeed each other without anybody noticing, and get rid of one?

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use passant_core::jwt_svid::JwtSvid;
use passant_core::{Reason, TrustDomain};

use super::*;
use crate::authority::succession;
use crate::keystore::KeyStore;
use crate::record::DecisionKind;
use crate::rig::{HOUR, Rig, START, Settings, domain, id};

const KINDS: [AuthorityKind; 2] = [AuthorityKind::X509, AuthorityKind::Jwt];

fn slots(rig: &Rig, kind: AuthorityKind) -> (Option<AuthorityId>, Option<AuthorityId>, Option<AuthorityId>) {
    let Slots { active, prepared, old } = rig.authorities.slots(kind);
    (active.map(|a| a.id), prepared.map(|a| a.id), old.map(|a| a.id))
}

/// What the bundle holds of a kind: IDs, and whether they are tainted.
fn published(rig: &Rig, kind: AuthorityKind) -> Vec<(AuthorityId, bool)> {
    let (state, bundle) = (rig.state(), rig.bundle());
    let is_marked = |authority: &Authority| match kind {
        AuthorityKind::X509 => bundle
            .x509_authorities
            .iter()
            .find(|one| Some(&one.der) == authority.certificate.as_ref())
            .map(|one| one.tainted),
        AuthorityKind::Jwt => bundle.jwt_authority(authority.id.as_str()).map(|one| one.tainted),
    };
    let known = state.authorities().filter(|a| a.kind == kind);
    let published: Vec<_> = known.filter_map(|a| Some((a.id.clone(), is_marked(a)?))).collect();
    let count = match kind {
        AuthorityKind::X509 => bundle.x509_authorities.len(),
        AuthorityKind::Jwt => bundle.jwt_authorities.len(),
    };
    assert_eq!(published.len(), count, "the bundle holds what nobody knows");
    published
}

/// Makes another authority sign; the IDs of the old one and the new one.
async fn succeed(rig: &Rig, kind: AuthorityKind) -> (AuthorityId, AuthorityId) {
    let old = rig.authorities.slots(kind).active.unwrap().id;
    let new = rig.authorities.prepare(kind, "an operator").await.unwrap().id;
    assert_eq!(rig.authorities.activate(kind, new.as_str()).await.unwrap().id, new);
    (old, new)
}

#[track_caller]
fn check<T: std::fmt::Debug>(answer: Result<T, Refusal>, reason: Reason, says: &str) {
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.reason, reason, "{refusal}");
    assert!(refusal.public.contains(says), "{refusal}");
}

#[tokio::test]
async fn a_prepared_authority_is_published_and_signs_once_it_is_activated() {
    for kind in KINDS {
        let rig = Rig::new().await;
        let (old, ..) = slots(&rig, kind);
        let sequence = rig.bundle().sequence;
        rig.clock.advance(HOUR);
        let prepared = rig.authorities.prepare(kind, "an operator").await.unwrap();
        assert_eq!(prepared.not_after, START.plus(25 * HOUR));
        assert_eq!((prepared.published, rig.bundle().sequence), (sequence + 1, sequence + 1));
        assert_eq!(slots(&rig, kind), (old.clone(), Some(prepared.id.clone()), None));
        assert_eq!(published(&rig, kind).len(), 2);

        let activated = rig.authorities.activate(kind, prepared.id.as_str()).await.unwrap();
        assert_eq!((activated.phase, activated.activated_at), (Phase::Active, Some(rig.now())));
        assert_eq!(slots(&rig, kind), (Some(prepared.id.clone()), None, old));
        let signer = match kind {
            AuthorityKind::X509 => rig.authorities.x509().id().clone(),
            AuthorityKind::Jwt => rig.authorities.jwt().id().clone(),
        };
        assert_eq!(signer, prepared.id);
        rig.authorities.tick().await.unwrap();
        assert_eq!(slots(&rig, kind).0, Some(prepared.id), "what is due by itself leaves it alone");
        rig.record.close().await;
        let by_operator: Vec<DecisionKind> = rig
            .decisions()
            .values()
            .filter(|(decision, _)| decision.caller == "an operator")
            .map(|(decision, _)| decision.kind)
            .collect();
        let expected = match kind {
            AuthorityKind::X509 => DecisionKind::X509Authority,
            AuthorityKind::Jwt => DecisionKind::JwtAuthority,
        };
        assert_eq!(by_operator, [expected]);
    }
}

#[tokio::test]
async fn activation_before_reach_is_refused_with_the_count_of_agents_that_lack_it() {
    let rig = Rig::new().await;
    let mut agents = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        agents.push(rig.agent(name).await.0.id().clone());
    }
    for kind in KINDS {
        let prepared = rig.authorities.prepare(kind, "an operator").await.unwrap();
        let activate = async || rig.authorities.activate(kind, prepared.id.as_str()).await;
        check(activate().await, Reason::Precondition, "5 agents lack this");
        let named = activate().await.unwrap_err().public;
        assert!(named.contains(agents[2].as_str()) && !named.contains(agents[3].as_str()), "{named}");
        for agent in &agents[1..] {
            rig.authorities.reach().saw_bundle(agent, prepared.published, rig.now());
        }
        rig.authorities.reach().saw_bundle(&agents[0], prepared.published - 1, rig.now());
        rig.clock.advance(Duration::from_secs(4));
        check(activate().await, Reason::Precondition, "5 agents lack this");
        rig.clock.advance(Duration::from_secs(1));
        check(activate().await, Reason::Precondition, "1 agent lacks this");
        assert_eq!(slots(&rig, kind).1, Some(prepared.id.clone()), "nothing has changed");
        rig.authorities.reach().saw_bundle(&agents[0], prepared.published, rig.now());
        rig.clock.advance(Duration::from_secs(5));
        activate().await.unwrap();
    }
}

#[tokio::test]
async fn a_second_preparation_takes_the_place_of_the_first() {
    let rig = Rig::new().await;
    for kind in KINDS {
        let first = rig.authorities.prepare(kind, "an operator").await.unwrap();
        let second = rig.authorities.prepare(kind, "an operator").await.unwrap();
        assert_eq!(slots(&rig, kind).1, Some(second.id.clone()));
        let ids: Vec<_> = published(&rig, kind).into_iter().map(|(id, _)| id).collect();
        assert!(ids.contains(&second.id) && !ids.contains(&first.id) && ids.len() == 2);
        assert!(rig.disk.keys.get(&first.id).unwrap().is_none(), "its key is of no use");
        assert!(second.published > first.published, "agents that have the first have to fetch the second");
        check(rig.authorities.activate(kind, first.id.as_str()).await, Reason::Invalid, "no ");
    }
}

#[tokio::test]
async fn a_tainted_authority_is_marked_and_a_revoked_one_is_gone() {
    for kind in KINDS {
        let rig = Rig::new().await;
        rig.entry("w", &id("/spire/agent/spoken/a"), |_| {}).await;
        let (agent, peer) = rig.agent("a").await;
        let x509 = rig.issuer.x509_batch(&agent, vec![("w".to_owned(), rig.csr(None))]).await.remove(0);
        let x509 = x509.unwrap();
        let jwt = rig.issuer.jwt(&agent, "w", vec!["db".to_owned()]).await.unwrap();
        let prepared = rig.authorities.prepare(kind, "an operator").await.unwrap();
        rig.authorities.reach().saw_bundle(agent.id(), prepared.published, rig.now());
        rig.clock.advance(Duration::from_secs(5));
        let old = slots(&rig, kind).0.unwrap();
        rig.authorities.activate(kind, prepared.id.as_str()).await.unwrap();

        let verifies = || {
            let bundle = rig.bundle();
            let bundles = |name: &TrustDomain| (*name == domain()).then(|| Arc::clone(&bundle));
            match kind {
                AuthorityKind::X509 => x509.svid().verify(&bundle, rig.now()).is_ok(),
                AuthorityKind::Jwt => JwtSvid::verify(jwt.svid().token(), "db", &bundles, rig.now()).is_ok(),
            }
        };
        let sequence = rig.bundle().sequence;
        let tainted = rig.authorities.taint(kind, old.as_str()).await.unwrap();
        assert_eq!((tainted.phase, tainted.tainted), (Phase::Retired, true));
        assert_eq!(rig.bundle().sequence, sequence + 1);
        let marks = published(&rig, kind);
        assert!(marks.contains(&(old.clone(), true)) && marks.contains(&(prepared.id.clone(), false)));
        assert!(verifies(), "what it signed is believed until it is revoked");
        assert_eq!(rig.callers.agent(&peer).await.unwrap().id(), agent.id());

        rig.authorities.revoke(kind, old.as_str()).await.unwrap();
        assert_eq!(rig.bundle().sequence, sequence + 2);
        assert_eq!(published(&rig, kind), [(prepared.id.clone(), false)]);
        assert_eq!(slots(&rig, kind), (Some(prepared.id.clone()), None, None));
        assert!(!verifies());
        assert!(rig.disk.keys.get(&old).unwrap().is_none(), "its key signs nothing more");
        // An agent whose own SVID it had signed is out, on an open connection too.
        let is_in = rig.callers.agent(&peer).await.is_ok();
        assert_eq!(is_in, kind == AuthorityKind::Jwt);
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let rig = Rig::new().await;
    let authorities = &rig.authorities;
    for kind in KINDS {
        let other = if kind == AuthorityKind::X509 { AuthorityKind::Jwt } else { AuthorityKind::X509 };
        let (old, active) = succeed(&rig, kind).await;
        let prepared = authorities.prepare(kind, "an operator").await.unwrap().id;
        let foreign = authorities.slots(other).active.unwrap().id;
        let revision = rig.state().cursor().revision;
        let unknown = "00".repeat(20);
        for id in ["", "a/b", "\u{0}", unknown.as_str(), foreign.as_str()] {
            let says = if id.is_empty() { "no authority ID" } else { "ID of no" };
            check(authorities.activate(kind, id).await, Reason::Invalid, says);
            check(authorities.taint(kind, id).await, Reason::Invalid, says);
            check(authorities.revoke(kind, id).await, Reason::Invalid, says);
        }
        check(authorities.activate(kind, active.as_str()).await, Reason::Invalid, "active already");
        check(authorities.taint(kind, active.as_str()).await, Reason::Invalid, "is active");
        check(authorities.revoke(kind, active.as_str()).await, Reason::Invalid, "is active");
        check(authorities.taint(kind, prepared.as_str()).await, Reason::Invalid, "signed nothing");
        check(authorities.revoke(kind, prepared.as_str()).await, Reason::Invalid, "signed nothing");
        check(authorities.activate(kind, old.as_str()).await, Reason::Precondition, "never signs again");
        check(authorities.revoke(kind, old.as_str()).await, Reason::Precondition, "taint it first");
        assert_eq!(rig.state().cursor().revision, revision);

        authorities.taint(kind, old.as_str()).await.unwrap();
        check(authorities.taint(kind, old.as_str()).await, Reason::Precondition, "already");
        check(authorities.activate(kind, old.as_str()).await, Reason::Precondition, "never signs again");
        authorities.revoke(kind, old.as_str()).await.unwrap();
        check(authorities.revoke(kind, old.as_str()).await, Reason::Invalid, "ID of no");
    }
}

#[tokio::test]
async fn an_ended_or_keyless_prepared_authority_does_not_sign() {
    let rig = Rig::new().await;
    let kind = AuthorityKind::X509;
    let lost = rig.authorities.prepare(kind, "an operator").await.unwrap();
    rig.disk.keys.remove(&lost.id).unwrap();
    check(rig.authorities.activate(kind, lost.id.as_str()).await, Reason::Precondition, "is lost");
    assert_eq!(slots(&rig, kind).1, None);
    let ended = rig.authorities.prepare(kind, "an operator").await.unwrap();
    rig.clock.set(ended.not_after);
    check(rig.authorities.activate(kind, ended.id.as_str()).await, Reason::Precondition, "has ended");
}

#[tokio::test]
async fn operators_cannot_fill_the_bundle() {
    let rig = Rig::new().await;
    let kind = AuthorityKind::Jwt;
    for _ in 1..AUTHORITIES {
        succeed(&rig, kind).await;
    }
    check(rig.authorities.prepare(kind, "an operator").await, Reason::Precondition, "taint and revoke");
    assert_eq!(published(&rig, kind).len(), AUTHORITIES);
    let old = slots(&rig, kind).2.unwrap();
    rig.authorities.taint(kind, old.as_str()).await.unwrap();
    rig.authorities.revoke(kind, old.as_str()).await.unwrap();
    succeed(&rig, kind).await;
}

#[tokio::test]
async fn what_is_tainted_or_revoked_signs_no_more_even_if_its_successor_was_not_taken_into_use() {
    for kind in KINDS {
        let rig = Rig::new().await;
        let signer = || match kind {
            AuthorityKind::X509 => rig.authorities.x509().id().clone(),
            AuthorityKind::Jwt => rig.authorities.jwt().id().clone(),
        };
        let old = signer();
        let next = rig.authorities.prepare(kind, "an operator").await.unwrap().id;
        // As it stands when the journal took the activation and what follows it failed.
        let now = rig.now();
        let succeeds = next.clone();
        let activate = move |state: &State| Ok((succession(state, kind, &succeeds, now), ()));
        rig.journal.submit(activate).await.unwrap();
        assert_eq!(signer(), old);
        let key = rig.disk.keys.get(&next).unwrap().unwrap();
        rig.disk.keys.remove(&next).unwrap();
        check(rig.authorities.taint(kind, old.as_str()).await, Reason::Internal, "");
        assert!(!rig.state().authority(&old).unwrap().tainted, "it signs still");
        rig.disk.keys.put(&next, &key).unwrap();
        rig.authorities.taint(kind, old.as_str()).await.unwrap();
        assert_eq!(signer(), next);
    }
}

#[tokio::test]
async fn a_tainted_prepared_authority_is_not_activated() {
    let rig = Rig::new().await;
    for kind in KINDS {
        let prepared = rig.authorities.prepare(kind, "an operator").await.unwrap();
        let tainted = Authority { tainted: true, ..prepared.clone() };
        rig.commit(vec![Change::PutAuthority(tainted)]).await;
        check(rig.authorities.activate(kind, prepared.id.as_str()).await, Reason::Precondition, "is tainted");
    }
}

#[tokio::test]
async fn without_a_record_no_authority_is_prepared() {
    let rig = Rig::new().await;
    rig.disk.is_full.store(true, Ordering::SeqCst);
    let sequence = rig.bundle().sequence;
    check(rig.authorities.prepare(AuthorityKind::X509, "op").await, Reason::Unavailable, "decision record");
    assert_eq!((rig.bundle().sequence, slots(&rig, AuthorityKind::X509).1), (sequence, None));
}

#[tokio::test]
async fn what_was_done_by_hand_outlives_a_restart() {
    let rig = Rig::new().await;
    let (old, new) = succeed(&rig, AuthorityKind::X509).await;
    rig.authorities.taint(AuthorityKind::X509, old.as_str()).await.unwrap();
    let (disk, now) = rig.stop().await;
    let rig = Rig::open(disk, now, Settings::default()).await.unwrap();
    assert_eq!(*rig.authorities.x509().id(), new);
    assert!(published(&rig, AuthorityKind::X509).contains(&(old.clone(), true)));
    rig.authorities.revoke(AuthorityKind::X509, old.as_str()).await.unwrap();
    rig.issuer.server_svid().await.unwrap().svid.svid().verify(&rig.bundle(), rig.now()).unwrap();
}
