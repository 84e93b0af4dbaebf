//! Do authorities succeed each other without anybody noticing?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::jwt_svid::JwtSvid;
use passant_core::x509_svid::X509Svid;
use passant_core::{SpiffeId, TrustDomain, UnixTime};

use super::{AuthorityError, Reach};
use crate::keystore::KeyStore;
use crate::record::DecisionKind;
use crate::rig::{Disk, HOUR, MINUTE, Rig, START, Settings, domain, id, peer};
use crate::state::authority::{Authority, AuthorityId, AuthorityKind, Phase};
use crate::state::change::Change;
use crate::state::node::AttestedNode;

const SECOND: Duration = Duration::from_secs(1);

fn in_phase(rig: &Rig, kind: AuthorityKind, phase: Phase) -> Vec<Authority> {
    rig.state().authorities().filter(|a| a.kind == kind && a.phase == phase).cloned().collect()
}

fn the_one(rig: &Rig, kind: AuthorityKind, phase: Phase) -> Authority {
    let mut found = in_phase(rig, kind, phase);
    assert_eq!(found.len(), 1, "{kind:?} {phase:?}");
    found.remove(0)
}

fn published(bundle: &Bundle) -> (usize, usize) {
    (bundle.x509_authorities.len(), bundle.jwt_authorities.len())
}

/// Moves on to `now` and takes what is due.
async fn tick_at(rig: &Rig, now: UnixTime) {
    rig.clock.set(now);
    rig.authorities.tick().await.unwrap();
}

#[tokio::test]
async fn a_new_store_signs_at_once() {
    let rig = Rig::new().await;
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let active = the_one(&rig, kind, Phase::Active);
        assert_eq!((active.not_after, active.activated_at), (START.plus(24 * HOUR), Some(START)));
        assert!(rig.disk.keys.get(&active.id).unwrap().is_some());
    }
    let bundle = rig.bundle();
    assert_eq!(published(&bundle), (1, 1));
    assert_eq!((bundle.sequence, bundle.refresh_hint), (2, Some(5 * MINUTE)));
    assert_eq!(bundle.jwt_authorities[0].expires_at, Some(START.plus(24 * HOUR)));
    assert_eq!(bundle.jwt_authorities[0].key_id, rig.authorities.jwt().id().as_str());
    assert_eq!(rig.authorities.forced_activation(), None);
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let rig = Rig::new().await;
    let (x509, jwt) = (rig.authorities.x509().id().clone(), rig.authorities.jwt().id().clone());
    let sequence = rig.bundle().sequence;
    let (disk, now) = rig.stop().await;
    let rig = Rig::open(disk, now.plus(HOUR), Settings::default()).await.unwrap();
    assert_eq!((rig.authorities.x509().id(), rig.authorities.jwt().id()), (&x509, &jwt));
    assert_eq!(rig.bundle().sequence, sequence);
    rig.issuer.server_svid().await.unwrap().svid.svid().verify(&rig.bundle(), rig.now()).unwrap();
}

#[tokio::test]
async fn lost_keys_stop_the_start_and_the_way_out_is_named() {
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let rig = Rig::new().await;
        let lost = the_one(&rig, kind, Phase::Active);
        let (disk, now) = rig.stop().await;
        disk.keys.remove(&lost.id).unwrap();
        let error = Rig::open(disk.clone(), now, Settings::default()).await.err().unwrap();
        assert!(matches!(&error, AuthorityError::KeyLost { id, .. } if *id == lost.id));
        let text = error.to_string();
        assert!(text.contains("backup") && text.contains("accept_lost_keys"), "{text}");

        let settings = Settings { accept_lost_keys: true, ..Settings::default() };
        let rig = Rig::open(disk, now, settings).await.unwrap();
        assert_ne!(the_one(&rig, kind, Phase::Active).id, lost.id);
        assert_eq!(the_one(&rig, kind, Phase::Retired).id, lost.id);
        // What the lost authority signed is still good.
        let (x509, jwt) = published(&rig.bundle());
        assert_eq!(x509 + jwt, 3);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_for_a_moment_takes_no_key_away() {
    let rig = Rig::new().await;
    let active = [AuthorityKind::X509, AuthorityKind::Jwt].map(|kind| the_one(&rig, kind, Phase::Active).id);
    rig.disk.is_full.store(true, Ordering::SeqCst);
    rig.clock.set(START.plus(25 * HOUR));
    rig.authorities.tick().await.unwrap_err();
    rig.disk.is_full.store(false, Ordering::SeqCst);
    let (disk, _) = rig.stop().await;
    let rig = Rig::open(disk, START.plus(HOUR), Settings::default()).await.unwrap();
    assert_eq!([rig.authorities.x509().id().clone(), rig.authorities.jwt().id().clone()], active);
}

#[tokio::test]
async fn another_servers_key_file_is_refused() {
    let rig = Rig::new().await;
    let active = the_one(&rig, AuthorityKind::X509, Phase::Active);
    let foreign = rig.key();
    let (disk, now) = rig.stop().await;
    disk.keys.put(&active.id, foreign.pkcs8()).unwrap();
    let error = Rig::open(disk, now, Settings::default()).await.err().unwrap();
    assert!(error.to_string().contains("does not belong to it"), "{error}");
}

#[tokio::test]
async fn keys_without_an_authority_are_removed_at_start() {
    let disk = Disk::default();
    let orphan = AuthorityId::parse("0a").unwrap();
    let rig = Rig::with(Settings::default()).await;
    disk.keys.put(&orphan, rig.key().pkcs8()).unwrap();
    let rig = Rig::open(disk, START, Settings::default()).await.unwrap();
    assert_eq!(rig.disk.keys.ids().unwrap().len(), 2);
    assert!(rig.disk.keys.get(&orphan).unwrap().is_none());
}

#[tokio::test]
async fn a_successor_waits_for_the_agents() {
    let rig = Rig::new().await;
    let (agent, _) = rig.agent("a").await;
    let old = rig.authorities.x509().id().clone();
    tick_at(&rig, START.plus(12 * HOUR)).await;
    assert_eq!(published(&rig.bundle()), (1, 1), "half of the life is left");
    // The agent keeps its SVID fresh, and has not seen the new bundle.
    let refresh = async || rig.attest("spoken", "a", &rig.csr(None)).await.unwrap();
    tick_at(&rig, START.plus(12 * HOUR + SECOND)).await;
    assert_eq!(published(&rig.bundle()), (2, 2));
    let next = the_one(&rig, AuthorityKind::X509, Phase::Prepared);
    assert_eq!(next.published, rig.bundle().sequence - 1);
    assert_eq!(*rig.authorities.x509().id(), old);

    rig.clock.set(START.plus(20 * HOUR));
    refresh().await;
    tick_at(&rig, START.plus(20 * HOUR + SECOND)).await;
    assert_eq!(*rig.authorities.x509().id(), old, "the agent lacks the new bundle");
    let sequence = rig.bundle().sequence;
    rig.authorities.reach().saw_bundle(agent.id(), next.published - 1, rig.now());
    tick_at(&rig, rig.now().plus(MINUTE)).await;
    assert_eq!(*rig.authorities.x509().id(), old, "an older bundle is not enough");
    rig.authorities.reach().saw_bundle(agent.id(), sequence, rig.now());
    tick_at(&rig, rig.now().plus(4 * SECOND)).await;
    assert_eq!(*rig.authorities.x509().id(), old, "its workloads may not have it yet");
    tick_at(&rig, rig.now().plus(SECOND)).await;
    assert_eq!(*rig.authorities.x509().id(), next.id);
    assert_eq!(the_one(&rig, AuthorityKind::X509, Phase::Retired).id, old);
    assert_eq!(rig.authorities.forced_activation(), None);
    assert_eq!(rig.bundle().sequence, sequence, "activation does not change the bundle");
}

#[tokio::test]
async fn at_the_bound_the_successor_signs_and_who_lacks_it_is_known() {
    let rig = Rig::new().await;
    let (agent, _) = rig.agent("a").await;
    tick_at(&rig, START.plus(13 * HOUR)).await;
    let next = the_one(&rig, AuthorityKind::X509, Phase::Prepared);
    rig.clock.set(START.plus(23 * HOUR));
    rig.attest("spoken", "a", &rig.csr(None)).await.unwrap();
    tick_at(&rig, rig.now()).await;
    assert_eq!(rig.authorities.forced_activation(), None);
    tick_at(&rig, rig.now().plus(SECOND)).await;
    let forced = rig.authorities.forced_activation().unwrap();
    assert_eq!(
        (&forced.id, forced.at, &forced.lacking[..]),
        (&next.id, rig.now(), &[agent.id().clone()][..])
    );
    assert_eq!(*rig.authorities.x509().id(), next.id);
}

#[tokio::test]
async fn agents_that_are_banned_expired_or_gone_hold_nothing_up() {
    let rig = Rig::new().await;
    let reach = Reach::new(5 * SECOND);
    let mut expected = Vec::new();
    for name in ["a", "b", "c", "d"] {
        expected.push(rig.agent(name).await.0.id().clone());
    }
    let lacking = |now| reach.lacking(&rig.state(), 7, now);
    assert_eq!(lacking(START), expected);
    reach.saw_bundle(&expected[0], 8, START);
    // Seeing it again does not start the wait anew.
    reach.saw_bundle(&expected[0], 8, START.plus(4 * SECOND));
    let banned = AttestedNode { serial: None, ..AttestedNode::clone(&rig.node(&expected[1])) };
    rig.commit(vec![Change::PutNode(Arc::new(banned)), Change::DeleteNode(expected[2].clone())]).await;
    assert_eq!(lacking(START.plus(4 * SECOND)), [expected[0].clone(), expected[3].clone()]);
    assert_eq!(lacking(START.plus(5 * SECOND)), [expected[3].clone()]);
    assert_eq!(lacking(START.plus(HOUR)), [expected[3].clone()]);
    assert_eq!(lacking(START.plus(HOUR + SECOND)), Vec::<SpiffeId>::new());
    // An agent that was removed and comes back has to fetch the bundle again.
    rig.commit(vec![Change::DeleteNode(expected[0].clone())]).await;
    assert!(lacking(START).contains(&expected[3]));
    rig.agent("a").await;
    assert!(lacking(START.plus(MINUTE)).contains(&expected[0]));
}

#[tokio::test]
async fn an_old_authority_leaves_bundle_and_journal_after_its_grace() {
    let rig = Rig::new().await;
    let old = the_one(&rig, AuthorityKind::X509, Phase::Active);
    for hours in 1..24 {
        tick_at(&rig, START.plus(hours * HOUR)).await;
    }
    assert_eq!(the_one(&rig, AuthorityKind::X509, Phase::Retired).id, old.id);
    assert!(rig.disk.keys.get(&old.id).unwrap().is_some());
    let der = old.certificate.clone().unwrap();
    let holds = |rig: &Rig| rig.bundle().x509_authorities.iter().any(|a| a.der == der);
    for hours in 24..48 {
        tick_at(&rig, START.plus(hours * HOUR)).await;
        assert!(holds(&rig));
    }
    assert!(rig.disk.keys.get(&old.id).unwrap().is_none(), "the key of an expired authority is of no use");
    tick_at(&rig, START.plus(48 * HOUR)).await;
    assert!(!holds(&rig));
    assert!(rig.state().authority(&old.id).is_none());
}

#[tokio::test]
async fn a_prepared_authority_whose_key_is_lost_is_replaced() {
    let rig = Rig::new().await;
    tick_at(&rig, START.plus(13 * HOUR)).await;
    let lost = the_one(&rig, AuthorityKind::X509, Phase::Prepared);
    rig.disk.keys.remove(&lost.id).unwrap();
    tick_at(&rig, START.plus(21 * HOUR)).await;
    assert!(rig.state().authority(&lost.id).is_none());
    let active = the_one(&rig, AuthorityKind::X509, Phase::Active);
    assert_ne!(active.id, lost.id);
    assert_eq!(active.prepared_at, START.plus(21 * HOUR));
}

#[tokio::test]
async fn a_server_that_was_down_for_long_starts_with_new_authorities() {
    let rig = Rig::new().await;
    let old = rig.authorities.x509().id().clone();
    let (disk, now) = rig.stop().await;
    let rig = Rig::open(disk, now.plus(30 * 24 * HOUR), Settings::default()).await.unwrap();
    assert_ne!(*rig.authorities.x509().id(), old);
    assert_eq!(published(&rig.bundle()), (1, 1));
    assert_eq!(rig.disk.keys.ids().unwrap().len(), 2);
}

#[tokio::test]
async fn without_a_record_no_authority_is_made() {
    let rig = Rig::new().await;
    let sequence = rig.bundle().sequence;
    rig.disk.is_full.store(true, Ordering::SeqCst);
    rig.clock.set(START.plus(13 * HOUR));
    assert!(matches!(rig.authorities.tick().await, Err(AuthorityError::Record(_))));
    assert_eq!(rig.bundle().sequence, sequence);
    assert_eq!(in_phase(&rig, AuthorityKind::X509, Phase::Prepared), []);
}

#[tokio::test]
async fn a_turn_that_fails_again_and_again_leaves_one_key_behind_at_most() {
    let rig = Rig::new().await;
    let before = rig.disk.keys.ids().unwrap().len();
    rig.disk.is_full.store(true, Ordering::SeqCst);
    for turn in 0..5 {
        rig.clock.set(START.plus(13 * HOUR + turn * SECOND));
        rig.authorities.tick().await.unwrap_err();
        // One of each kind.
        assert!(rig.disk.keys.ids().unwrap().len() <= before + 2, "turn {turn}");
    }
}

/// Everything that was issued and has not expired, and when it does.
#[derive(Default)]
struct Alive {
    x509: Vec<X509Svid>,
    jwt: Vec<JwtSvid>,
}

impl Alive {
    /// Drops what has expired; checks that all the rest verifies.
    fn check(&mut self, bundle: &Arc<Bundle>, now: UnixTime) {
        self.x509.retain(|svid| svid.not_after() >= now);
        self.jwt.retain(|svid| svid.expires_at() > now);
        for svid in &self.x509 {
            svid.verify(bundle, now).unwrap_or_else(|error| panic!("at {now}: {} {error}", svid.serial()));
        }
        let bundles = |name: &TrustDomain| (*name == domain()).then(|| Arc::clone(bundle));
        for svid in &self.jwt {
            JwtSvid::verify(svid.token(), "db", &bundles, now)
                .unwrap_or_else(|error| panic!("at {now}: {error}"));
        }
    }
}

#[tokio::test]
async fn many_rotations_of_short_lived_authorities_break_nothing() {
    let settings = Settings {
        ca_ttl: 5 * MINUTE,
        x509_svid_ttl: MINUTE,
        agent_ttl: MINUTE,
        jwt_svid_ttl: MINUTE,
        ..Settings::default()
    };
    let rig = Rig::with(settings).await;
    rig.entry("w", &id("/spire/agent/join_token/a"), |_| {}).await;
    rig.token("a", HOUR, None).await;
    let mut agent = peer(&rig.attest("join_token", "a", &rig.csr(None)).await.unwrap().svid);
    let (mut alive, mut signers) = (Alive::default(), BTreeMap::new());
    // What the agent's workloads verify with: the bundle it fetched last.
    let mut fetched = rig.bundle();
    for step in 0..300 {
        rig.clock.advance(5 * SECOND);
        rig.authorities.tick().await.unwrap();
        let now = rig.now();
        let caller = rig.callers.agent(&agent).await.unwrap_or_else(|error| panic!("step {step}: {error}"));
        alive.check(&fetched, now);
        fetched = rig.bundle();
        rig.authorities.reach().saw_bundle(caller.id(), fetched.sequence, now);
        if step % 6 == 5 {
            agent = peer(&rig.issuer.renew(&caller, &rig.csr(None)).await.unwrap());
        }
        let signer = rig.authorities.x509();
        *signers.entry(signer.id().clone()).or_insert(0) += 1;
        let issued =
            rig.issuer.x509_batch(&caller, vec![("w".to_owned(), rig.csr(None))]).await.remove(0).unwrap();
        assert!(issued.svid().not_after() <= signer.not_after());
        assert_eq!(issued.svid().not_after(), now.plus(MINUTE), "never cut short by a rotation");
        let token = rig.issuer.jwt(&caller, "w", vec!["db".to_owned()]).await.unwrap();
        assert!(token.svid().expires_at() <= rig.authorities.jwt().not_after());
        alive.x509.push(issued.svid().clone());
        alive.jwt.push(token.svid().clone());
        // Signed by an authority that the agent and its workloads had before it was used.
        alive.check(&fetched, now);
        let (x509, jwt) = published(&fetched);
        assert!(x509 <= 4 && jwt <= 4, "old authorities are pruned");
        assert!(rig.disk.keys.ids().unwrap().len() <= 6);
    }
    assert!(signers.len() >= 7, "{signers:?}");
    assert_eq!(rig.authorities.forced_activation(), None);
    rig.record.close().await;
    let made = rig.decisions().values().filter(|(d, _)| d.kind == DecisionKind::X509Authority).count();
    assert!(made >= signers.len());
}
