//! Is everybody who may not refused, with the right reason, at the right moment?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::{AgentFault, EntryId, Reason, Refusal, SpiffeId, StopTarget, TrustDomain};

use super::{ConnPeer, LocalPeer};
use crate::access::{Holders, Prefix, Role, SelectorTypes, Target, Verb};
use crate::command;
use crate::command::import::ForeignAgent;
use crate::issue::IssuedX509;
use crate::rig::{HOUR, MINUTE, Rig, START, Settings, domain, id, operator, peer, stranger};
use crate::state::change::Change;
use crate::state::node::{Adopted, AttestedNode};
use crate::state::samples::stop;

fn why<T>(result: Result<T, Refusal>) -> (Reason, Option<AgentFault>) {
    let refusal = result.err().expect("must be refused");
    (refusal.reason, refusal.agent_fault)
}

fn agent_a() -> SpiffeId {
    id("/spire/agent/join_token/a")
}

/// An agent that renews, since it cannot attest again.
async fn renewing(rig: &Rig) -> IssuedX509 {
    rig.token("a", HOUR, None).await;
    rig.attest("join_token", "a", &rig.csr(None)).await.unwrap().svid
}

/// The X509-SVID of a workload, minted by an operator.
async fn workload(rig: &Rig, path: &str) -> IssuedX509 {
    let caller = rig.callers.actor(&operator()).unwrap();
    rig.issuer.mint_x509(&caller, &rig.csr(Some(&id(path))), None).await.unwrap()
}

#[tokio::test]
async fn an_agent_must_show_an_svid() {
    let rig = Rig::new().await;
    for nobody in [stranger(), operator()] {
        assert_eq!(why(rig.callers.agent(&nobody).await), (Reason::Denied, None));
    }
}

#[tokio::test]
async fn an_agent_is_told_what_is_wrong_with_it() {
    let rig = Rig::new().await;
    let svid = renewing(&rig).await;
    let conn = peer(&svid);
    assert_eq!(*rig.callers.agent(&conn).await.unwrap().id(), agent_a());

    let row = rig.node(&agent_a());
    let fault = async |fault| assert_eq!(why(rig.callers.agent(&conn).await), (Reason::Denied, Some(fault)));
    let other = Some(rig.agent("b").await.0.serial().clone());
    rig.commit(vec![Change::PutNode(Arc::new(AttestedNode { serial: other, ..AttestedNode::clone(&row) }))])
        .await;
    fault(AgentFault::NotActive).await;
    rig.commit(vec![Change::PutNode(Arc::new(AttestedNode { serial: None, ..AttestedNode::clone(&row) }))])
        .await;
    fault(AgentFault::Banned).await;
    rig.commit(vec![Change::DeleteNode(agent_a())]).await;
    fault(AgentFault::NotAttested).await;
    // Expired comes before everything else.
    rig.clock.set(svid.svid().not_after());
    fault(AgentFault::NotAttested).await;
    rig.clock.advance(Duration::from_secs(1));
    fault(AgentFault::Expired).await;
}

#[tokio::test]
async fn a_workload_is_no_agent() {
    let rig = Rig::new().await;
    let conn = peer(&workload(&rig, "/w").await);
    assert_eq!(why(rig.callers.agent(&conn).await), (Reason::Denied, Some(AgentFault::NotAttested)));
}

#[tokio::test]
async fn a_renewed_serial_is_promoted_by_its_first_use() {
    let rig = Rig::new().await;
    let old = renewing(&rig).await;
    let caller = rig.callers.agent(&peer(&old)).await.unwrap();
    rig.clock.advance(MINUTE);
    let lost = rig.issuer.renew(&caller, &rig.csr(None)).await.unwrap();
    let new = rig.issuer.renew(&caller, &rig.csr(None)).await.unwrap();
    assert_eq!(new.svid().not_after(), START.plus(MINUTE + HOUR));
    assert_eq!(rig.node(&agent_a()).serial.as_ref(), Some(old.svid().serial()));
    // Until the new one is used the old one does; the one that never arrived does not.
    assert!(rig.callers.agent(&peer(&old)).await.is_ok());
    assert_eq!(why(rig.callers.agent(&peer(&lost)).await).1, Some(AgentFault::NotActive));

    let conn = peer(&new);
    let (one, two) = tokio::join!(rig.callers.agent(&conn), rig.callers.agent(&conn));
    assert!(one.is_ok() && two.is_ok());
    let row = rig.node(&agent_a());
    assert_eq!((row.serial.as_ref(), &row.pending), (Some(new.svid().serial()), &None));
    assert_eq!(row.not_after, new.svid().not_after());
    assert_eq!(why(rig.callers.agent(&peer(&old)).await).1, Some(AgentFault::NotActive));
    // A call that was let in with the old serial cannot renew any more.
    assert_eq!(why(rig.issuer.renew(&caller, &rig.csr(None)).await).1, Some(AgentFault::NotActive));
}

#[tokio::test]
async fn renewal_is_refused_as_the_state_of_the_moment_says() {
    let rig = Rig::new().await;
    let (can_reattest, _) = rig.agent("b").await;
    let fault = why(rig.issuer.renew(&can_reattest, &rig.csr(None)).await);
    assert_eq!(fault, (Reason::Denied, Some(AgentFault::MustReattest)));

    let caller = rig.callers.agent(&peer(&renewing(&rig).await)).await.unwrap();
    for csr in [Vec::new(), rig.csr(Some(&id("/spire/agent/join_token/b")))] {
        assert_eq!(why(rig.issuer.renew(&caller, &csr).await), (Reason::Invalid, None));
    }
    let banned = AttestedNode { serial: None, ..AttestedNode::clone(&rig.node(&agent_a())) };
    rig.commit(vec![Change::PutNode(Arc::new(banned))]).await;
    assert_eq!(why(rig.issuer.renew(&caller, &rig.csr(None)).await).1, Some(AgentFault::Banned));
    rig.commit(vec![Change::DeleteNode(agent_a())]).await;
    assert_eq!(why(rig.issuer.renew(&caller, &rig.csr(None)).await).1, Some(AgentFault::NotAttested));
}

#[tokio::test]
async fn a_revoked_authority_ends_the_standing_of_open_connections() {
    let rig = Rig::new().await;
    let (_, conn) = rig.agent("a").await;
    let admin = rig.entry("admin", &id("/spire/agent/spoken/a"), |e| e.admin = true).await;
    let admin = peer(&workload(&rig, admin.spiffe_id.path()).await);
    assert!(rig.callers.agent(&conn).await.is_ok());
    assert!(rig.callers.operator(&admin).is_ok());

    let mut bundle = Bundle::clone(&rig.bundle());
    bundle.x509_authorities.clear();
    bundle.sequence += 1;
    rig.commit(vec![Change::PutBundle(Arc::new(bundle))]).await;
    assert_eq!(why(rig.callers.agent(&conn).await), (Reason::Unauthenticated, None));
    assert_eq!(why(rig.callers.operator(&admin)), (Reason::Unauthenticated, None));
    // Even once expired: who cannot be believed is not told of its standing.
    rig.clock.advance(2 * HOUR);
    assert_eq!(why(rig.callers.agent(&conn).await), (Reason::Unauthenticated, None));
}

#[tokio::test]
async fn an_admin_entry_makes_an_operator_until_its_end() {
    let rig = Rig::new().await;
    let end = START.plus(MINUTE);
    let parent = id("/spire/agent/spoken/a");
    rig.entry("plain", &parent, |_| {}).await;
    rig.entry("admin", &parent, |e| {
        e.admin = true;
        e.expires_at = Some(end);
    })
    .await;
    let plain = peer(&workload(&rig, "/workload/plain").await);
    let admin = peer(&workload(&rig, "/workload/admin").await);
    assert_eq!(why(rig.callers.operator(&plain)), (Reason::Denied, None));
    assert_eq!(
        rig.callers.operator(&admin).unwrap().to_string(),
        "admin spiffe://example.org/workload/admin"
    );
    assert_eq!(why(rig.callers.local(&admin)), (Reason::Denied, None));
    assert_eq!(why(rig.callers.downstream(&admin)), (Reason::Denied, None));
    rig.clock.set(end.minus(Duration::from_secs(1)));
    assert!(rig.callers.operator(&admin).is_ok());
    rig.clock.set(end);
    assert_eq!(why(rig.callers.operator(&admin)), (Reason::Denied, None));
}

#[tokio::test]
async fn an_entry_that_is_stopped_gives_no_rights_on_open_connections_either() {
    let named = id("/workload/named");
    let granted_to = Holders { spiffe_ids: [id("/workload/holder")].into(), ..Holders::default() };
    let role = Role {
        name: "reader".to_owned(),
        verbs: [Verb::AuditRead].into(),
        spiffe_ids: vec![],
        parent_ids: vec![],
        selector_types: SelectorTypes::Any,
        granted_to,
    };
    let settings = Settings { admin_ids: [named].into(), roles: vec![role], ..Settings::default() };
    let rig = Rig::with(settings).await;
    let parent = id("/spire/agent/spoken/a");
    rig.entry("named", &parent, |_| {}).await;
    rig.entry("holder", &parent, |_| {}).await;
    rig.entry("admin", &parent, |e| e.admin = true).await;
    rig.entry("below", &parent, |e| e.downstream = true).await;
    for name in ["named", "holder", "admin", "below"] {
        let conn = peer(&workload(&rig, &format!("/workload/{name}")).await);
        let ask = || match name {
            "below" => rig.callers.downstream(&conn).map(drop),
            "holder" => rig.callers.holder(&conn).map(drop),
            _ => rig.callers.operator(&conn).map(drop),
        };
        ask().unwrap();
        let target = StopTarget::Entry(EntryId::parse(name).unwrap());
        rig.commit(vec![Change::PutStop(stop(target.clone()))]).await;
        assert_eq!(why(ask()), (Reason::Denied, None), "{name}");
        // One more entry for the ID gives it again, but not what the stopped one gave.
        let twin = format!("{name}-twin");
        rig.entry(&twin, &parent, |e| e.spiffe_id = id(&format!("/workload/{name}"))).await;
        assert_eq!(ask().is_ok(), ["named", "holder"].contains(&name), "{name}");
        rig.commit(vec![Change::DeleteStop(target)]).await;
        ask().unwrap();
    }
}

#[tokio::test]
async fn an_expired_admin_is_nobody() {
    let rig = Rig::new().await;
    rig.entry("admin", &id("/spire/agent/spoken/a"), |e| e.admin = true).await;
    let svid = workload(&rig, "/workload/admin").await;
    let admin = peer(&svid);
    rig.clock.set(svid.svid().not_after());
    assert!(rig.callers.operator(&admin).is_ok());
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(why(rig.callers.operator(&admin)), (Reason::Unauthenticated, None));
}

#[tokio::test]
async fn a_downstream_entry_makes_a_downstream_server() {
    let rig = Rig::new().await;
    rig.entry("below", &id("/spire/agent/spoken/a"), |e| e.downstream = true).await;
    let conn = peer(&workload(&rig, "/workload/below").await);
    let caller = rig.callers.downstream(&conn).unwrap();
    assert_eq!((caller.id(), caller.entry().as_str()), (&id("/workload/below"), "below"));
    assert_eq!(why(rig.callers.operator(&conn)), (Reason::Denied, None));
    for nobody in [stranger(), operator()] {
        assert_eq!(why(rig.callers.downstream(&nobody)), (Reason::Denied, None));
    }
}

#[tokio::test]
async fn configured_admins_need_no_entry_and_may_be_foreign() {
    let foreign = SpiffeId::parse("spiffe://other.test/admin").unwrap();
    let admin_ids = BTreeSet::from([id("/boss"), foreign.clone()]);
    let rig = Rig::with(Settings { admin_ids, ..Settings::default() }).await;
    assert!(rig.callers.operator(&peer(&workload(&rig, "/boss").await)).is_ok());
    assert_eq!(why(rig.callers.operator(&peer(&workload(&rig, "/worker").await))), (Reason::Denied, None));

    let (anchor, chain) = foreign_chain(foreign.as_str());
    let conn = chain(foreign.as_str());
    // Not before its bundle is known; and of that domain nobody else.
    assert_eq!(why(rig.callers.operator(&conn)), (Reason::Unauthenticated, None));
    rig.commit(vec![Change::PutBundle(Arc::new(anchor))]).await;
    assert!(rig.callers.operator(&conn).is_ok());
    assert_eq!(why(rig.callers.operator(&chain("spiffe://other.test/w"))), (Reason::Unauthenticated, None));
    // A foreign authority cannot speak for our own IDs.
    assert_eq!(
        why(rig.callers.operator(&chain("spiffe://example.org/boss"))),
        (Reason::Unauthenticated, None)
    );
}

#[tokio::test]
async fn the_operator_socket_is_for_those_it_admits() {
    let rig = Rig::new().await;
    assert_eq!(rig.callers.operator(&operator()).unwrap().to_string(), "local uid=0 gid=0 pid=1");
    assert_eq!(rig.callers.local(&operator()).unwrap().peer().uid, 0);
    let uninvited = ConnPeer::Uninvited(LocalPeer { uid: 1, gid: 1, pid: None });
    assert_eq!(why(rig.callers.operator(&uninvited)), (Reason::Denied, None));
    assert_eq!(why(rig.callers.local(&uninvited)), (Reason::Denied, None));
    assert_eq!(why(rig.callers.operator(&stranger())), (Reason::Denied, None));
}

#[tokio::test]
async fn holders_of_roles_are_let_act_as_far_as_these_go_and_operators_stay_operators() {
    let foreign = SpiffeId::parse("spiffe://other.test/ci").unwrap();
    let role = Role {
        name: "bans".to_owned(),
        verbs: [Verb::AgentBan].into(),
        spiffe_ids: Vec::new(),
        parent_ids: vec![Prefix::new(id("/spire/agent/x509pop"))],
        selector_types: SelectorTypes::Any,
        granted_to: Holders {
            spiffe_ids: [id("/ci"), foreign.clone()].into(),
            uids: [1001].into(),
            gids: [50].into(),
        },
    };
    let rig = Rig::with(Settings { roles: vec![role], ..Settings::default() }).await;
    let guest = |uid, gids: &[u32]| {
        let local = LocalPeer { uid, gid: 9, pid: None };
        ConnPeer::Guest(local, Arc::new(gids.iter().copied().collect()))
    };
    let (anchor, chain) = foreign_chain(foreign.as_str());
    rig.commit(vec![Change::PutBundle(Arc::new(anchor))]).await;
    let state = rig.state();
    let (inside, outside) = (id("/spire/agent/x509pop/a"), id("/spire/agent/join_token/a"));
    for (conn, shown) in [
        (peer(&workload(&rig, "/ci").await), "role bans spiffe://example.org/ci"),
        (chain(foreign.as_str()), "role bans spiffe://other.test/ci"),
        (guest(1001, &[]), "role bans local uid=1001 gid=9"),
        (guest(1002, &[50]), "role bans local uid=1002 gid=9"),
    ] {
        assert!(rig.callers.operator(&conn).is_err() && rig.callers.local(&conn).is_err(), "{shown}");
        assert!(rig.callers.holder(&conn).unwrap().has(Verb::AgentBan));
        let actor = rig.callers.actor(&conn).unwrap();
        assert_eq!((actor.to_string().as_str(), actor.is_operator()), (shown, false));
        assert!(actor.may(Verb::AgentBan, &Target::Agent(&inside), &state).is_ok());
        assert_eq!(why(actor.may(Verb::AgentBan, &Target::Agent(&outside), &state)), (Reason::Denied, None));
        assert_eq!(why(actor.may(Verb::AgentEvict, &Target::Agent(&inside), &state)), (Reason::Denied, None));
        assert!(!actor.sees_agent(&inside), "to ban is not to see");
    }
    for conn in [
        peer(&workload(&rig, "/else").await),
        guest(1002, &[51]),
        stranger(),
        ConnPeer::Uninvited(LocalPeer { uid: 1001, gid: 50, pid: None }),
    ] {
        assert_eq!(why(rig.callers.holder(&conn)), (Reason::Denied, None));
        assert_eq!(why(rig.callers.actor(&conn)), (Reason::Denied, None));
    }
    assert_eq!(why(rig.callers.actor(&chain("spiffe://other.test/w"))), (Reason::Unauthenticated, None));
    let operator = rig.callers.actor(&operator()).unwrap();
    assert!(
        operator.is_operator() && operator.may(Verb::AgentEvict, &Target::Agent(&outside), &state).is_ok()
    );
}

/// The bundle of another trust domain, and a way to get connections with SVIDs below it.
fn foreign_chain(domain_of: &str) -> (Bundle, impl Fn(&str) -> ConnPeer) {
    use passant_core::x509_svid::X509Svid;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
    let window = |params: &mut CertificateParams| {
        params.not_before = crate::authority::moment(START.minus(MINUTE)).unwrap();
        params.not_after = crate::authority::moment(START.plus(HOUR)).unwrap();
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    window(&mut params);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().der().to_vec();
    let issuer = Issuer::new(params, key);
    let name = SpiffeId::parse(domain_of).unwrap().trust_domain();
    assert_ne!(name, domain());
    let mut bundle = Bundle::empty(TrustDomain::clone(&name));
    bundle.x509_authorities.push(passant_core::bundle::X509Authority::from_der(&root).unwrap());
    let connect = move |id: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        window(&mut params);
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let svid = X509Svid::parse(vec![leaf.der().clone()]).unwrap();
        let svid = Some(Arc::new(super::PeerSvid::new(svid)));
        ConnPeer::Remote { address: ([192, 0, 2, 9], 1).into(), svid }
    };
    (bundle, connect)
}

/// Another server of the trust domain, whose authority is in the bundle of `rig`.
async fn beside(rig: &Rig) -> Rig {
    let other = Rig::new().await;
    let appended = other.bundle().x509_authorities.clone();
    rig.journal.submit(move |state| command::bundle::append(state, appended, Vec::new())).await.unwrap();
    other
}

/// Adopts the agent as the other server knows it now.
async fn adopt(rig: &Rig, other: &Rig) {
    let AttestedNode {
        id, attestation_type, serial, not_after, selectors, can_reattest, agent_version, ..
    } = AttestedNode::clone(&other.node(&agent_a()));
    let agent =
        ForeignAgent { id, attestation_type, serial, not_after, selectors, can_reattest, agent_version };
    let now = rig.now();
    let outcomes =
        rig.journal.submit(move |state| Ok(command::import::adopt(state, vec![agent], now))).await.unwrap();
    assert!(outcomes[0].is_ok(), "{outcomes:?}");
}

#[tokio::test]
async fn an_adopted_agent_calls_with_what_the_other_server_gave_it_and_is_renewed_here() {
    let rig = Rig::new().await;
    let other = beside(&rig).await;
    let theirs = renewing(&other).await;
    let conn = peer(&theirs);
    assert_eq!(why(rig.callers.agent(&conn).await).1, Some(AgentFault::NotAttested));
    adopt(&rig, &other).await;
    assert_eq!(rig.node(&agent_a()).adopted, Some(Adopted::Awaited));
    let caller = rig.callers.agent(&conn).await.unwrap();
    assert_eq!(rig.node(&agent_a()).adopted, Some(Adopted::Arrived));
    rig.clock.advance(MINUTE);
    let ours = rig.issuer.renew(&caller, &rig.csr(None)).await.unwrap();
    assert!(rig.callers.agent(&conn).await.is_ok(), "the reply may have been lost");
    assert!(rig.callers.agent(&peer(&ours)).await.is_ok());
    assert_eq!(rig.node(&agent_a()).adopted, None);
    assert_eq!(why(rig.callers.agent(&conn).await).1, Some(AgentFault::NotActive));
}

#[tokio::test]
async fn an_awaited_agent_may_have_been_renewed_by_the_other_server_meanwhile() {
    let rig = Rig::new().await;
    let other = beside(&rig).await;
    let first = renewing(&other).await;
    adopt(&rig, &other).await;
    let caller = other.callers.agent(&peer(&first)).await.unwrap();
    other.clock.advance(MINUTE);
    rig.clock.advance(MINUTE);
    let second = other.issuer.renew(&caller, &other.csr(None)).await.unwrap();
    other.clock.advance(MINUTE);
    rig.clock.advance(MINUTE);
    let third = other.issuer.renew(&caller, &other.csr(None)).await.unwrap();

    assert!(rig.callers.agent(&peer(&second)).await.is_ok());
    let row = rig.node(&agent_a());
    assert_eq!(
        (row.serial.as_ref(), row.not_after),
        (Some(second.svid().serial()), second.svid().not_after())
    );
    // Once it has come nothing but what this server gives it is taken, neither older nor newer.
    for other in [&first, &third] {
        assert_eq!(why(rig.callers.agent(&peer(other)).await).1, Some(AgentFault::NotActive));
    }
}

#[tokio::test]
async fn what_this_server_issued_before_an_agent_was_evicted_stays_void_when_it_is_adopted() {
    let rig = Rig::new().await;
    let other = beside(&rig).await;
    renewing(&other).await;
    rig.clock.advance(MINUTE);
    let ours = renewing(&rig).await;
    rig.commit(vec![Change::DeleteNode(agent_a())]).await;
    adopt(&rig, &other).await;
    assert!(ours.svid().not_after() > rig.node(&agent_a()).not_after);
    assert_eq!(why(rig.callers.agent(&peer(&ours)).await).1, Some(AgentFault::NotActive));
}

#[tokio::test]
async fn an_agent_whose_authority_was_taken_out_again_is_refused() {
    let rig = Rig::new().await;
    let other = beside(&rig).await;
    let theirs = renewing(&other).await;
    adopt(&rig, &other).await;
    let conn = peer(&theirs);
    assert!(rig.callers.agent(&conn).await.is_ok());
    let appended = other.bundle().x509_authorities.iter().map(|one| one.der.clone()).collect();
    let remove = move |state: &_| command::import::remove_authorities(state, &appended, &BTreeSet::new());
    rig.journal.submit(remove).await.unwrap();
    assert_eq!(why(rig.callers.agent(&conn).await).0, Reason::Unauthenticated);
}
