//! Does a node get in once, whole, and only with good evidence?

use std::time::Duration;

use passant_attest::node::join_token::TokenHash;
use passant_core::{Reason, Refusal, Selectors, SpiffeId};

use super::{AttestedSvid, NodeAttestation};
use crate::rig::{HOUR, MINUTE, Rig, START, Settings, Silent, domain, id, peer, selectors};
use crate::state::change::Change;
use crate::state::node::AttestedNode;
use crate::state::token::JoinToken;

const UNKNOWN: &str = "failed to attest: join token does not exist or has already been used";

fn refused(result: &Result<AttestedSvid, Refusal>) -> (Reason, &str) {
    let refusal = result.as_ref().expect_err("must be refused");
    assert_eq!(refusal.agent_fault, None, "agents must not act on details of a failed attestation");
    (refusal.reason, refusal.public.as_str())
}

fn token_agent() -> SpiffeId {
    domain().agent_id("join_token", "abc").unwrap()
}

async fn ban(rig: &Rig, agent_id: &SpiffeId) {
    let row = AttestedNode { serial: None, pending: None, ..AttestedNode::clone(&rig.node(agent_id)) };
    rig.commit(vec![Change::PutNode(row.into())]).await;
}

#[tokio::test]
async fn a_join_token_makes_an_agent() {
    let rig = Rig::with(Settings { agent_ttl: 2 * HOUR, ..Settings::default() }).await;
    rig.token("abc", HOUR, None).await;
    let attested = rig.attest("join_token", "abc", &rig.csr(None)).await.unwrap();
    let svid = attested.svid.svid();
    assert!(!attested.can_reattest);
    assert_eq!(*svid.id(), token_agent());
    assert_eq!(svid.not_after(), START.plus(2 * HOUR));
    svid.verify(&rig.bundle(), rig.now()).unwrap();
    let row = rig.node(&token_agent());
    assert_eq!((row.serial.as_ref(), row.not_after), (Some(svid.serial()), svid.not_after()));
    assert_eq!((row.attestation_type.as_str(), &row.selectors), ("join_token", &Selectors::new()));
    assert_eq!(row.attested_at, START);
    assert!(rig.callers.agent(&peer(&attested.svid)).await.is_ok());
    assert_eq!(rig.state().entry_count(), 0);
}

#[tokio::test]
async fn a_spent_token_is_good_for_the_same_key_only() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let csr = rig.csr(None);
    let first = rig.attest("join_token", "abc", &csr).await.unwrap();
    // The reply was lost; the agent tries again, perhaps much later.
    rig.clock.advance(30 * MINUTE);
    let second = rig.attest("join_token", "abc", &csr).await.unwrap();
    assert_ne!(first.svid.svid().serial(), second.svid.svid().serial());
    assert_eq!(rig.node(&token_agent()).serial.as_ref(), Some(second.svid.svid().serial()));
    for _ in 0..2 {
        let other = rig.attest("join_token", "abc", &rig.csr(None)).await;
        assert_eq!(refused(&other), (Reason::Invalid, UNKNOWN));
    }
    assert_eq!(rig.node(&token_agent()).serial.as_ref(), Some(second.svid.svid().serial()));
}

#[tokio::test]
async fn a_token_that_comes_again_does_not_take_the_place_of_its_agent() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let first = rig.attest("join_token", "abc", &rig.csr(None)).await.unwrap();
    rig.token("abc", HOUR, None).await;
    let refusal = rig.attest("join_token", "abc", &rig.csr(None)).await;
    assert_eq!(
        refused(&refusal),
        (Reason::Denied, "failed to attest: the agent of this join token is there already")
    );
    assert_eq!(rig.node(&token_agent()).serial.as_ref(), Some(first.svid.svid().serial()));
}

#[tokio::test]
async fn a_token_of_a_holder_gives_no_rights_that_its_alias_has_got_since() {
    let boss = id("/boss");
    let rig = Rig::with(Settings { admin_ids: [boss.clone()].into(), ..Settings::default() }).await;
    rig.entry("ops", &id("/node"), |draft| {
        draft.admin = true;
        draft.spiffe_id = id("/ops");
    })
    .await;
    for (at, (alias, by_role, is_let_in)) in
        [(&boss, true, false), (&id("/ops"), true, false), (&id("/web"), true, true), (&boss, false, true)]
            .into_iter()
            .enumerate()
    {
        let text = format!("token{at}");
        let token = JoinToken {
            hash: TokenHash::of(&text),
            expires_at: rig.now().plus(HOUR),
            alias: Some(alias.clone()),
            by_role,
            spent: None,
        };
        rig.commit(vec![Change::PutToken(token)]).await;
        let attested = rig.attest("join_token", &text, &rig.csr(None)).await;
        assert_eq!(attested.is_ok(), is_let_in, "{alias} {by_role}");
        if !is_let_in {
            let (reason, why) = refused(&attested);
            assert!(reason == Reason::Denied && why.contains("has rights of its own by now"), "{why}");
        }
    }
}

#[tokio::test]
async fn of_several_keys_that_spend_a_token_at_once_one_wins() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let csrs: Vec<_> = (0..4).map(|_| rig.csr(None)).collect();
    let (a, b, c, d) = tokio::join!(
        rig.attest("join_token", "abc", &csrs[0]),
        rig.attest("join_token", "abc", &csrs[1]),
        rig.attest("join_token", "abc", &csrs[2]),
        rig.attest("join_token", "abc", &csrs[3]),
    );
    let results = [a, b, c, d];
    let won: Vec<_> = results.iter().flatten().collect();
    assert_eq!(won.len(), 1);
    assert_eq!(rig.node(&token_agent()).serial.as_ref(), Some(won[0].svid.svid().serial()));
    for lost in results.iter().filter(|result| result.is_err()) {
        assert_eq!(refused(lost), (Reason::Invalid, UNKNOWN));
    }
}

#[tokio::test]
async fn a_token_is_good_until_its_last_second() {
    let rig = Rig::new().await;
    for (name, late, is_good) in [("a", 60, true), ("b", 61, false)] {
        rig.clock.set(START);
        rig.token(name, MINUTE, None).await;
        rig.clock.advance(Duration::from_secs(late));
        let answer = rig.attest("join_token", name, &rig.csr(None)).await;
        match is_good {
            true => assert!(answer.is_ok(), "{name}"),
            false => assert_eq!(refused(&answer), (Reason::Invalid, "join token expired")),
        }
    }
}

#[tokio::test]
async fn unknown_and_malformed_tokens_are_told_alike() {
    let rig = Rig::new().await;
    for text in ["abc", "", "a/b", "ä", &"a".repeat(10_000)] {
        let answer = rig.attest("join_token", text, &rig.csr(None)).await;
        assert_eq!(refused(&answer), (Reason::Invalid, UNKNOWN), "{text}");
    }
    assert_eq!(rig.state().node_count(), 0);
}

#[tokio::test]
async fn a_bad_csr_costs_no_token() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let foreign = rig.csr(Some(&id("/spire/agent/join_token/xyz")));
    for csr in [Vec::new(), b"no CSR".to_vec(), foreign] {
        assert_eq!(refused(&rig.attest("join_token", "abc", &csr).await).0, Reason::Invalid);
    }
    assert!(rig.attest("join_token", "abc", &rig.csr(Some(&token_agent()))).await.is_ok());
}

#[tokio::test]
async fn a_token_with_an_alias_makes_its_entry_once() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, Some(id("/cluster"))).await;
    rig.entry("w", &id("/cluster"), |_| {}).await;
    let csr = rig.csr(None);
    let attested = rig.attest("join_token", "abc", &csr).await.unwrap();
    rig.attest("join_token", "abc", &csr).await.unwrap();
    let state = rig.state();
    let aliases: Vec<_> = state.entries_by_spiffe_id(&id("/cluster")).collect();
    assert_eq!(aliases.len(), 1);
    assert_eq!(aliases[0].parent_id, token_agent());
    let selector = format!("spiffe_id:{}", token_agent());
    assert_eq!(aliases[0].selectors, selectors(&[&selector]));
    // What is registered below the alias flows to the agent.
    let mut agent = peer(&attested.svid);
    let names = |entries: Vec<std::sync::Arc<passant_core::Entry>>| {
        entries.iter().map(|e| e.spiffe_id.path().to_owned()).collect::<Vec<_>>()
    };
    assert!(names(state.authorized_entries(&token_agent(), rig.now())).contains(&"/workload/w".to_owned()));
    // The first SVID was replaced by the second attestation.
    assert!(rig.callers.agent(&agent).await.is_err());
    let third = rig.attest("join_token", "abc", &csr).await.unwrap();
    agent = peer(&third.svid);
    assert!(rig.callers.agent(&agent).await.is_ok());
}

#[tokio::test]
async fn a_banned_agent_stays_out() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let csr = rig.csr(None);
    rig.attest("join_token", "abc", &csr).await.unwrap();
    ban(&rig, &token_agent()).await;
    let denied = (Reason::Denied, "failed to attest: agent is banned");
    assert_eq!(refused(&rig.attest("join_token", "abc", &csr).await), denied);
    rig.agent("a").await;
    ban(&rig, &id("/spire/agent/spoken/a")).await;
    assert_eq!(refused(&rig.attest("spoken", "a", &rig.csr(None)).await), denied);
    assert!(rig.node(&id("/spire/agent/spoken/a")).is_banned());
}

#[tokio::test]
async fn an_evicted_agent_needs_a_new_token() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let csr = rig.csr(None);
    rig.attest("join_token", "abc", &csr).await.unwrap();
    rig.commit(vec![Change::DeleteNode(token_agent())]).await;
    assert_eq!(refused(&rig.attest("join_token", "abc", &csr).await), (Reason::Invalid, UNKNOWN));
    assert!(rig.state().node(&token_agent()).is_none());
}

#[tokio::test]
async fn a_node_that_can_reattest_does_so_at_any_time() {
    let rig = Rig::new().await;
    let first = rig.attest("spoken", "a", &rig.csr(None)).await.unwrap();
    assert!(first.can_reattest);
    let agent_id = id("/spire/agent/spoken/a");
    let row =
        AttestedNode { agent_version: Some("1.0".to_owned()), ..AttestedNode::clone(&rig.node(&agent_id)) };
    rig.commit(vec![Change::PutNode(row.into())]).await;
    rig.clock.advance(MINUTE);
    let second = rig.attest("spoken", "a", &rig.csr(None)).await.unwrap();
    let row = rig.node(&agent_id);
    assert_eq!(row.serial.as_ref(), Some(second.svid.svid().serial()));
    assert_eq!((row.attested_at, row.agent_version.as_deref()), (START.plus(MINUTE), Some("1.0")));
    assert_eq!(row.selectors, selectors(&["spoken:yes"]));
    // The old SVID is over at once.
    assert!(rig.callers.agent(&peer(&first.svid)).await.is_err());
    assert!(rig.callers.agent(&peer(&second.svid)).await.is_ok());
}

#[tokio::test]
async fn evidence_that_cannot_be_repeated_attests_once() {
    let rig = Rig::new().await;
    rig.attest("once", "a", &rig.csr(None)).await.unwrap();
    let again = rig.attest("once", "a", &rig.csr(None)).await;
    assert_eq!(refused(&again).0, Reason::Denied);
    rig.commit(vec![Change::DeleteNode(id("/spire/agent/once/a"))]).await;
    assert!(rig.attest("once", "a", &rig.csr(None)).await.is_ok());
}

#[tokio::test]
async fn what_a_verifier_says_is_not_taken_on_trust() {
    let rig = Rig::new().await;
    assert_eq!(
        refused(&rig.attest("spoken", "liar", &rig.csr(None)).await),
        (Reason::Denied, "not believed")
    );
    for strange in ["stray", "server"] {
        assert_eq!(refused(&rig.attest("spoken", strange, &rig.csr(None)).await).0, Reason::Internal);
    }
    assert_eq!(refused(&rig.attest("psychic", "a", &rig.csr(None)).await).0, Reason::Precondition);
    assert_eq!(rig.state().node_count(), 0);
}

#[tokio::test]
async fn a_join_token_is_of_no_use_where_the_method_is_off() {
    let rig = Rig::new().await;
    rig.token("abc", HOUR, None).await;
    let nodes = NodeAttestation::new(rig.journal.clone(), rig.issuer.clone(), Vec::new(), rig.host.clone());
    let answer = nodes.attest("join_token", b"abc", &rig.csr(None), &mut Silent, String::new()).await;
    assert_eq!(refused(&answer).0, Reason::Precondition);
    assert!(rig.attest("join_token", "abc", &rig.csr(None)).await.is_ok());
}
