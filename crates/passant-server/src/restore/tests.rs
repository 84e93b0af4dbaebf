//! Does a restored state hold what it should, and is what is missing named?

use std::os::unix::fs::PermissionsExt;

use passant_core::Instance;
use passant_core::bundle::{JwtAuthority, X509Authority};
use passant_core::keys::{KeyType, RcgenKey};
use passant_core::serial::Serial;

use super::*;
use crate::backup::tests::{state, text_of};
use crate::record::{Decision, DecisionKind};
use crate::state::samples::{
    self, at, commit, entry, entry_id, host_at, id, node, other_trust_domain, token, trust_domain,
};
use crate::state::{Adopted, AuthorityKind, State};
use crate::store::sled::SledStore;
use crate::store::{Loaded, Store};

const NOW: i64 = 2_000;

/// A data directory, and a backup made in second 1000.
struct Site {
    dir: tempfile::TempDir,
    host: Host,
}

impl Site {
    fn new(changes: Vec<Change>) -> Self {
        Self::over(state(), changes)
    }

    fn over(mut state: State, changes: Vec<Change>) -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap(), host: host_at(NOW).0 };
        state.apply(&commit(7, changes));
        std::fs::write(site.backup(), text_of(&state)).unwrap();
        site
    }

    fn backup(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn order(&self) -> Order {
        Order {
            data_dir: self.data_dir(),
            trust_domain: trust_domain(),
            backup: self.backup(),
            tokens: UnspentTokens::Void,
        }
    }

    async fn restore(&self) -> Result<Restored, RestoreError> {
        restore(self.order(), self.host.clone()).await
    }

    fn load(&self) -> Loaded {
        SledStore::open(&self.data_dir(), &trust_domain(), &self.host).unwrap().load().unwrap()
    }

    /// A record that begins before the backup was made, with `said` in it since.
    async fn record(&self, said: Vec<Said>) {
        let (host, clock) = host_at(500);
        std::fs::create_dir_all(self.data_dir()).unwrap();
        std::fs::set_permissions(self.data_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let log = DecisionLog::open(&self.data_dir().join("decisions"), Retention::default(), host).unwrap();
        // Too early to count.
        log.note(Act::DeleteEntries(vec![entry_id("plain")]), "operator".to_owned()).await.unwrap();
        clock.set(at(1_500));
        for said in said {
            match said {
                Said::Act(act) => log.note(act, "operator".to_owned()).await.unwrap(),
                Said::Issued(decision) => drop(log.intend(vec![decision]).await.unwrap()),
            }
        }
        log.close().await;
    }
}

enum Said {
    Act(Act),
    Issued(Decision),
}

fn issued(kind: DecisionKind, path: &str, serial: &str, entry: Option<(&str, u64)>) -> Said {
    Said::Issued(Decision {
        kind,
        serial: serial.to_owned(),
        spiffe_id: id(path),
        entry: entry.map(|(id, revision)| (entry_id(id), revision)),
        key_hash: [7; 32],
        not_after: at(9_000),
        caller: "somebody".to_owned(),
        reason: "test".to_owned(),
        authority: None,
        at: at(1_500),
        grounds: None,
    })
}

fn serial(text: &str) -> Serial {
    text.parse().unwrap()
}

fn node_of(loaded: &Loaded, path: &str) -> Option<Arc<AttestedNode>> {
    loaded.objects.iter().find_map(|object| {
        let Change::PutNode(node) = object else { return None };
        (node.id == id(path)).then(|| Arc::clone(node))
    })
}

fn has_entry(loaded: &Loaded, name: &str) -> bool {
    loaded.objects.iter().any(|object| object.key() == format!("entry/{name}"))
}

#[tokio::test]
async fn trust_that_was_withdrawn_since_is_not_given_again() {
    let other = other_trust_domain();
    let stands = |loaded: &Loaded, kind: &str| {
        loaded.objects.iter().any(|object| object.key() == format!("{kind}/{other}"))
    };
    let site = Site::new(vec![]);
    site.record(vec![Said::Act(Act::DeleteBundles(vec![other.clone()]))]).await;
    let again = site.restore().await.unwrap().again;
    assert_eq!((again.deleted_bundles, again.ended_federation), (vec![other.clone()], vec![]));
    assert!(stands(&site.load(), "federation") && !stands(&site.load(), "bundle"));

    let site = Site::new(vec![]);
    site.record(vec![Said::Act(Act::EndFederation(vec![other.clone()]))]).await;
    let again = site.restore().await.unwrap().again;
    assert_eq!((again.deleted_bundles, again.ended_federation), (vec![other.clone()], vec![other.clone()]));
    assert!(!stands(&site.load(), "federation") && !stands(&site.load(), "bundle"));
}

#[tokio::test]
async fn appended_authorities_that_were_taken_out_since_are_taken_out_again() {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
    let der = params.self_signed(&RcgenKey(&*key)).unwrap().der().to_vec();
    let removed = id_of_certificate(&der).unwrap();
    let jwt = |name| JwtAuthority::new(name, key.public_key(), None).unwrap();
    let own = Bundle {
        x509_authorities: vec![X509Authority::from_der(&der).unwrap()],
        jwt_authorities: vec![jwt("stays"), jwt("goes/out")],
        sequence: 9,
        ..Bundle::empty(trust_domain())
    };
    let before = state();
    let mut changes: Vec<Change> =
        before.authorities().map(|sample| Change::DeleteAuthority(sample.id.clone())).collect();
    changes.push(Change::PutBundle(own.into()));
    let site = Site::over(before, changes);
    let act = Act::RemoveAuthorities { x509: vec![removed.clone()], jwt: vec!["goes/out".to_owned()] };
    site.record(vec![Said::Act(act)]).await;
    let restored = site.restore().await.unwrap();
    assert_eq!(restored.again.removed_authorities, [removed.to_string(), "goes/out".to_owned()]);
    let own = site.load().objects.into_iter().find_map(|object| {
        let Change::PutBundle(bundle) = object else { return None };
        (bundle.trust_domain == trust_domain()).then_some(bundle)
    });
    let own = own.unwrap();
    assert_eq!((own.x509_authorities.len(), own.jwt_authorities.clone()), (0, vec![jwt("stays")]));
}

#[tokio::test]
async fn agents_that_were_adopted_since_are_named_and_released_ones_are_gone() {
    let agent = |name: &str| format!("/spire/agent/join_token/{name}");
    let site = Site::new(vec![Change::PutNode(node(&agent("released"), &[]))]);
    let ids = |names: &[&str]| -> Vec<SpiffeId> { names.iter().map(|name| id(&agent(name))).collect() };
    site.record(vec![
        Said::Act(Act::AdoptAgents(ids(&["new", "released"]))),
        Said::Act(Act::ReleaseAgents(ids(&["released"]))),
        Said::Act(Act::AdoptAgents(ids(&["released"]))),
    ])
    .await;
    let restored = site.restore().await.unwrap();
    assert_eq!(node_of(&site.load(), &agent("released")), None);
    assert_eq!(
        (restored.again.evicted, restored.lost.agents),
        (ids(&["released"]), ids(&["released", "new"]))
    );
}

#[tokio::test]
async fn a_ban_that_was_copied_stays() {
    let (known, new) = ("/spire/agent/x509pop/known", "/spire/agent/x509pop/new");
    let awaited = AttestedNode { adopted: Some(Adopted::Awaited), ..AttestedNode::clone(&node(known, &[])) };
    let site = Site::new(vec![Change::PutNode(Arc::new(awaited))]);
    site.record(vec![Said::Act(Act::BanAgents(vec![id(known), id(new)]))]).await;
    let restored = site.restore().await.unwrap();
    assert_eq!(restored.again.banned, [id(known), id(new)]);
    for name in [known, new] {
        let row = node_of(&site.load(), name).unwrap();
        assert!(row.is_banned() && row.adopted.is_none(), "{name}");
    }
}

#[tokio::test]
async fn a_restored_state_is_what_was_backed_up_in_a_life_of_its_own() {
    let site = Site::new(vec![]);
    let restored = site.restore().await.unwrap();
    let loaded = site.load();
    assert_eq!((loaded.lineage, loaded.revision), (restored.cursor.lineage, restored.cursor.revision));
    assert_ne!(loaded.lineage, restored.backup.lineage);
    let before: Vec<Change> = state().objects().collect();
    // All but the two tokens, which are void.
    assert_eq!(loaded.objects.len(), before.len() - 2);
    assert_eq!(restored.lost.join_tokens, 0, "both have expired");
    for object in &loaded.objects {
        #[expect(clippy::wildcard_enum_match_arm, reason = "whatever is not named must be as it was")]
        match object {
            Change::PutEntry(entry) => assert_eq!(entry.revision, loaded.revision.number()),
            Change::PutAuthority(authority) => assert!(authority.published > 9),
            Change::PutBundle(bundle) if bundle.trust_domain == trust_domain() => {
                assert!(bundle.sequence > 9)
            }
            other => assert!(before.contains(other), "{other:?}"),
        }
    }
    assert_eq!(restored.record.trouble, ["there is no decision record in the data directory"]);
    // The authority of the samples ended long ago.
    assert_eq!(restored.keys_missing, []);
    assert!(!site.data_dir().join("state.restoring").exists());
}

#[tokio::test]
async fn what_the_record_tells_is_done_again() {
    let agent = |name: &str| format!("/spire/agent/x509pop/{name}");
    let known = ["banned", "evicted", "renewed", "renewed-twice", "idle"];
    let mut changes: Vec<Change> =
        known.iter().map(|name| Change::PutNode(node(&agent(name), &[]))).collect();
    changes.push(Change::PutEntry(entry("doomed", "/w/d", "/p")));
    changes.push(Change::PutEntry(entry("renewed", "/w/r", "/p")));
    let site = Site::new(changes);
    let below = match issued(DecisionKind::DownstreamX509Ca, "/w/x", "15", Some(("below", 49))) {
        Said::Issued(decision) => {
            Said::Issued(Decision { caller: format!("downstream {}", id("/w/below")), ..decision })
        }
        act @ Said::Act(_) => act,
    };
    site.record(vec![
        below,
        Said::Act(Act::BanAgent(id(&agent("banned")))),
        Said::Act(Act::EvictAgent(id(&agent("evicted")))),
        issued(DecisionKind::NodeSvid, &agent("renewed"), "0a", None),
        issued(DecisionKind::NodeSvid, &agent("renewed-twice"), "0b", None),
        issued(DecisionKind::NodeSvid, &agent("renewed-twice"), "0c", None),
        issued(DecisionKind::NodeSvid, &agent("new"), "0d", None),
        issued(DecisionKind::NodeSvid, &agent("new-and-banned"), "0e", None),
        Said::Act(Act::BanAgent(id(&agent("new-and-banned")))),
        issued(DecisionKind::X509Svid, "/w/d", "0f", Some(("doomed", 3))),
        Said::Act(Act::DeleteEntries(vec![entry_id("doomed"), entry_id("renewed")])),
        // The mint was underway when the entry was deleted.
        issued(DecisionKind::X509Svid, "/w/d", "13", Some(("doomed", 3))),
        issued(DecisionKind::X509Svid, "/w/r", "14", Some(("renewed", 52))),
        issued(DecisionKind::X509Svid, "/w/new", "10", Some(("new", 50))),
        issued(DecisionKind::X509Svid, "/w/1", "11", Some(("plain", 51))),
        issued(DecisionKind::JwtAuthority, "/w/x", "12", None),
    ])
    .await;
    let restored = site.restore().await.unwrap();
    let loaded = site.load();
    assert!(node_of(&loaded, &agent("banned")).unwrap().is_banned());
    assert!(node_of(&loaded, &agent("new-and-banned")).unwrap().is_banned());
    assert_eq!(node_of(&loaded, &agent("evicted")), None);
    assert_eq!(node_of(&loaded, &agent("new")), None);
    let old = Serial::from_magnitude(&[1, 2, 3]).unwrap();
    for (name, active, pending) in [
        ("idle", old.clone(), None),
        ("renewed", old, Some(serial("0a"))),
        ("renewed-twice", serial("0b"), Some(serial("0c"))),
    ] {
        let node = node_of(&loaded, &agent(name)).unwrap();
        let found = (node.serial.clone(), node.pending.clone().map(|pending| pending.serial));
        assert_eq!(found, (Some(active), pending), "{name}");
    }
    assert!(!has_entry(&loaded, "doomed") && has_entry(&loaded, "plain"));
    let ids = |names: &[&str]| -> Vec<SpiffeId> { names.iter().map(|name| id(&agent(name))).collect() };
    assert_eq!(
        restored.again,
        Again {
            banned: ids(&["banned", "new-and-banned"]),
            evicted: ids(&["evicted"]),
            deleted_entries: vec![entry_id("doomed"), entry_id("renewed")],
            deleted_bundles: vec![],
            ended_federation: vec![],
            renewed: ids(&["renewed", "renewed-twice"]),
            ..Again::default()
        }
    );
    assert_eq!(
        restored.lost,
        Lost {
            agents: ids(&["new"]),
            // That of the server below is its own, and not the trust domain's.
            entries: vec![
                (entry_id("below"), id("/w/below")),
                (entry_id("new"), id("/w/new")),
                (entry_id("renewed"), id("/w/r")),
            ],
            changed_entries: vec![entry_id("plain")],
            join_tokens: 0,
            bundles: vec![],
            authorities: vec![AuthorityId::parse(&"07".repeat(20)).unwrap()],
        }
    );
    assert_eq!((restored.record.ends, restored.record.trouble.len()), (Some(at(1_500)), 0));
    // The restoration is on record itself, and the chain holds.
    let history = History::read(&site.data_dir().join("decisions"), at(NOW)).unwrap();
    assert_eq!(history.revision, restored.cursor.revision);
    verify_chain(&site.data_dir().join("decisions")).unwrap();
}

#[tokio::test]
async fn taints_and_revocations_of_authorities_are_done_again() {
    let mut own = Bundle { sequence: 9, ..Bundle::empty(trust_domain()) };
    let mut ids = Vec::new();
    let mut changes = Vec::new();
    for (kind, phase) in [
        (AuthorityKind::X509, Phase::Retired),
        (AuthorityKind::X509, Phase::Active),
        (AuthorityKind::Jwt, Phase::Retired),
        (AuthorityKind::Jwt, Phase::Active),
    ] {
        let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        let mut authority = Authority {
            id: authority_id(key.public_key()),
            public_key: key.public_key().to_vec(),
            certificate: None,
            not_after: at(9_000),
            ..samples::authority("a", kind, phase)
        };
        match kind {
            AuthorityKind::X509 => {
                let mut params = rcgen::CertificateParams::default();
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                let der = params.self_signed(&RcgenKey(&*key)).unwrap().der().to_vec();
                own.x509_authorities.push(X509Authority::from_der(&der).unwrap());
                let (_, certificate) = X509Certificate::from_der(&der).unwrap();
                authority.not_after = UnixTime::from_secs(certificate.validity().not_after.timestamp());
                authority.certificate = Some(der);
            }
            AuthorityKind::Jwt => own
                .jwt_authorities
                .push(JwtAuthority::new(authority.id.as_str(), key.public_key(), None).unwrap()),
        }
        ids.push(authority.id.clone());
        changes.push(Change::PutAuthority(authority));
    }
    let before = state();
    changes.extend(before.authorities().map(|sample| Change::DeleteAuthority(sample.id.clone())));
    changes.push(Change::PutBundle(own.into()));
    let site = Site::over(before, changes);
    let (kinds, mut said) = ([AuthorityKind::X509, AuthorityKind::Jwt], Vec::new());
    for (kind, ids) in kinds.into_iter().zip(ids.chunks(2)) {
        said.push(Said::Act(Act::TaintAuthority(kind, ids[0].clone())));
        said.push(Said::Act(Act::TaintAuthority(kind, ids[1].clone())));
        said.push(Said::Act(Act::RevokeAuthority(kind, ids[0].clone())));
    }
    site.record(said).await;
    let restored = site.restore().await.unwrap();
    let sorted = |mut ids: Vec<AuthorityId>| {
        ids.sort();
        ids
    };
    assert_eq!(
        sorted(restored.again.revoked_authorities.clone()),
        sorted(vec![ids[0].clone(), ids[2].clone()])
    );
    assert_eq!(
        sorted(restored.again.tainted_authorities.clone()),
        sorted(vec![ids[1].clone(), ids[3].clone()])
    );
    let loaded = State::of_objects(trust_domain(), restored.cursor, site.load().objects);
    let bundle = loaded.bundle().unwrap();
    let x509: Vec<_> =
        bundle.x509_authorities.iter().map(|a| (id_of_certificate(&a.der).unwrap(), a.tainted)).collect();
    let jwt: Vec<_> = bundle.jwt_authorities.iter().map(|a| (a.key_id.as_str(), a.tainted)).collect();
    assert_eq!((x509, jwt), (vec![(ids[1].clone(), true)], vec![(ids[3].as_str(), true)]));
    let mut left: Vec<_> = loaded.authorities().map(|a| (a.id.clone(), a.tainted, a.phase)).collect();
    left.sort();
    let mut expected = vec![(ids[1].clone(), true, Phase::Active), (ids[3].clone(), true, Phase::Active)];
    expected.sort();
    assert_eq!(left, expected);
}

#[tokio::test]
async fn a_prepared_authority_that_signed_since_or_was_tainted_is_restored_as_a_retired_one() {
    let decision = match issued(DecisionKind::JwtSvid, "/w/1", "0a", Some(("plain", 3))) {
        Said::Issued(decision) => decision,
        Said::Act(act) => panic!("{act:?}"),
    };
    let retired = |tainted| (Phase::Retired, tainted, Some(at(1_000)));
    let say: [fn(&Decision, AuthorityId) -> Vec<Said>; 4] = [
        |_, _| Vec::new(),
        |decision, id| vec![Said::Issued(Decision { authority: Some(id), ..decision.clone() })],
        |_, id| vec![Said::Act(Act::ActivateAuthority(AuthorityKind::Jwt, id))],
        |_, id| vec![Said::Act(Act::TaintAuthority(AuthorityKind::Jwt, id))],
    ];
    let expected = [(Phase::Prepared, false, None), retired(false), retired(false), retired(true)];
    for (since, expected) in say.into_iter().zip(expected) {
        let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        let authority = Authority {
            id: authority_id(key.public_key()),
            public_key: key.public_key().to_vec(),
            not_after: at(9_000),
            ..samples::authority("a", AuthorityKind::Jwt, Phase::Prepared)
        };
        let id = authority.id.clone();
        let mut own = Bundle { sequence: 9, ..Bundle::empty(trust_domain()) };
        own.jwt_authorities.push(JwtAuthority::new(id.as_str(), key.public_key(), None).unwrap());
        let before = state();
        let mut changes: Vec<_> =
            before.authorities().map(|sample| Change::DeleteAuthority(sample.id.clone())).collect();
        changes.extend([Change::PutAuthority(authority), Change::PutBundle(own.into())]);
        let site = Site::over(before, changes);
        site.record(since(&decision, id.clone())).await;
        let restored = site.restore().await.unwrap();
        let loaded = State::of_objects(trust_domain(), restored.cursor, site.load().objects);
        let authority = loaded.authority(&id).unwrap();
        assert_eq!((authority.phase, authority.tainted, authority.activated_at), expected);
    }
}

#[tokio::test]
async fn a_bundle_that_was_replaced_since_has_to_be_set_once_more() {
    let (other, new) = (other_trust_domain(), TrustDomain::parse("new.example").unwrap());
    let is_held = |site: &Site| {
        site.load().objects.iter().any(|object| object.key() == format!("bundle/{}", other_trust_domain()))
    };
    let site = Site::new(vec![]);
    site.record(vec![Said::Act(Act::SetBundles(vec![other.clone(), new.clone()]))]).await;
    let restored = site.restore().await.unwrap();
    assert_eq!(restored.lost.bundles, [new, other.clone()]);
    assert_eq!(restored.again.deleted_bundles, []);
    assert!(!is_held(&site), "what was in it may be believed no longer");

    let site = Site::new(vec![]);
    let acts = [
        Act::DeleteBundles(vec![other.clone()]),
        Act::SetBundles(vec![other.clone()]),
        Act::EndFederation(vec![other.clone()]),
    ];
    site.record(acts.into_iter().map(Said::Act).collect()).await;
    let restored = site.restore().await.unwrap();
    assert_eq!((restored.lost.bundles, restored.again.deleted_bundles), (vec![], vec![other]));
}

#[tokio::test]
async fn an_unspent_token_attests_nobody_unless_it_is_kept_and_was_not_spent_since() {
    let site =
        Site::new(vec![Change::PutToken(token("fresh", 5_000)), Change::PutToken(token("used", 5_000))]);
    let said = vec![issued(DecisionKind::NodeSvid, "/spire/agent/join_token/used", "0a", None)];
    site.record(said).await;
    let tokens = |loaded: &Loaded| -> Vec<TokenHash> {
        let tokens = loaded.objects.iter().filter_map(|object| {
            let Change::PutToken(token) = object else { return None };
            Some(token.hash)
        });
        tokens.collect()
    };
    let restored = site.restore().await.unwrap();
    assert_eq!((tokens(&site.load()), restored.lost.join_tokens), (vec![], 2));
    std::fs::remove_dir_all(site.data_dir().join("state")).unwrap();
    let order = Order { tokens: UnspentTokens::Keep, ..site.order() };
    let restored = restore(order, site.host.clone()).await.unwrap();
    let kept = tokens(&site.load());
    assert!(kept.contains(&TokenHash::of("fresh")) && !kept.contains(&TokenHash::of("used")));
    assert_eq!(restored.lost.join_tokens, 1);
}

#[tokio::test]
async fn state_that_stands_is_left_alone() {
    let site = Site::new(vec![]);
    let first = site.restore().await.unwrap();
    let refused = site.restore().await.unwrap_err();
    assert!(matches!(refused, RestoreError::Store(StoreError::StateThere { .. })), "{refused}");
    assert_eq!(site.load().lineage, first.cursor.lineage);
}

#[tokio::test]
async fn nothing_is_left_of_a_restoration_that_was_refused() {
    let site = Site::new(vec![]);
    let foreign = Order { trust_domain: other_trust_domain(), ..site.order() };
    let refused = restore(foreign, site.host.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("example.org"), "{refused}");
    let mut text = std::fs::read(site.backup()).unwrap();
    let middle = text.len() / 2;
    text[middle] ^= 4;
    std::fs::write(site.backup(), text).unwrap();
    let refused = site.restore().await.unwrap_err();
    assert!(refused.to_string().contains("damaged at line"), "{refused}");
    assert!(!site.data_dir().exists());
}

#[tokio::test]
async fn where_a_restoration_was_interrupted_no_server_starts_and_it_can_be_made_again() {
    let site = Site::new(vec![]);
    std::fs::create_dir_all(site.data_dir().join("state.restoring/blobs")).unwrap();
    let refused = SledStore::open(&site.data_dir(), &trust_domain(), &site.host).unwrap_err();
    assert!(refused.to_string().contains("passant store restore"), "{refused}");
    site.restore().await.unwrap();
    assert_eq!(site.load().trust_domain, trust_domain());
}

#[tokio::test]
async fn stops_and_their_ends_are_done_again() {
    let agent = |name: &str| format!("/spire/agent/x509pop/{name}");
    let of_agent = |name: &str| StopTarget::Agent(id(&agent(name)));
    let of_entry = |name: &str| StopTarget::Entry(entry_id(name));
    let process = |name: &str| {
        let instance = Instance::parse("boot/1/2").unwrap();
        StopTarget::Instance { agent: id(&agent(name)), instance }
    };
    let numbered = |target: &StopTarget, number: u64| {
        let revision = 50 + number;
        let stop = Stop {
            id: format!("{target} {number}"),
            revision,
            ..Stop::clone(&samples::stop(target.clone()))
        };
        Arc::new(stop)
    };
    let stop = |target: &StopTarget, number| Said::Act(Act::Stop(numbered(target, number)));
    let resume = |target: &StopTarget, number| {
        let reason = passant_core::StopReason::parse("over").unwrap();
        Said::Act(Act::Resume { target: target.clone(), stop_id: format!("{target} {number}"), reason })
    };
    let mut changes = vec![
        Change::PutNode(node(&agent("held"), &[])),
        Change::PutNode(node(&agent("evicted"), &[])),
        Change::PutEntry(entry("doomed", "/w/d", "/p")),
    ];
    let held =
        [of_entry("plain"), of_entry("doomed"), of_agent("evicted"), process("held"), of_agent("held")];
    let in_backup = |target: &StopTarget| {
        Change::PutStop(Arc::new(Stop { revision: 7, ..Stop::clone(&numbered(target, 0)) }))
    };
    let mut stops: Vec<Change> = held.iter().map(in_backup).collect();
    stops.sort_by_key(Change::key);
    changes.extend(stops);
    let site = Site::new(changes);
    site.record(vec![
        // Of the backup: one that stands, one that was ended, one that was ended and made again.
        resume(&process("held"), 0),
        resume(&of_agent("held"), 0),
        stop(&of_agent("held"), 1),
        // What they were about has gone; only an entry takes its stop with it.
        Said::Act(Act::DeleteEntries(vec![entry_id("doomed")])),
        Said::Act(Act::EvictAgent(id(&agent("evicted")))),
        // New ones: told in another order than done, ended, gone, and of what is lost.
        resume(&of_entry("e2"), 2),
        stop(&of_entry("e2"), 3),
        stop(&of_entry("e2"), 2),
        stop(&of_entry("e3"), 4),
        resume(&of_entry("e3"), 4),
        stop(&of_entry("e4"), 5),
        Said::Act(Act::DeleteEntries(vec![entry_id("e4")])),
        stop(&of_agent("new"), 6),
        stop(&of_agent("released"), 7),
        Said::Act(Act::ReleaseAgents(vec![id(&agent("released"))])),
    ])
    .await;
    let restored = site.restore().await.unwrap();
    let loaded = site.load();
    let stands = loaded.objects.iter().filter_map(|object| {
        let Change::PutStop(stop) = object else { return None };
        assert_eq!(stop.revision, restored.cursor.revision.number());
        Some(stop.id.clone())
    });
    let stands: BTreeSet<String> = stands.collect();
    let expected = [
        (of_entry("plain"), 0),
        (of_agent("evicted"), 0),
        (of_agent("held"), 1),
        (of_entry("e2"), 3),
        (of_agent("new"), 6),
        (of_agent("released"), 7),
    ];
    assert_eq!(stands, expected.iter().map(|(target, number)| format!("{target} {number}")).collect());
    assert_eq!(
        restored.again.stopped,
        [of_agent("held"), of_agent("new"), of_agent("released"), of_entry("e2")]
    );
    assert_eq!(restored.again.resumed, [process("held")]);
    assert_eq!(restored.holds.stops, 6);
}

#[tokio::test]
async fn a_record_that_does_not_hold_together_is_not_believed() {
    let site = Site::new(vec![Change::PutNode(node("/spire/agent/x509pop/a", &[]))]);
    site.record(vec![Said::Act(Act::BanAgent(id("/spire/agent/x509pop/a")))]).await;
    let segment = site.data_dir().join("decisions/00000001.log");
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replace("operator", "nobody")).unwrap();
    let restored = site.restore().await.unwrap();
    assert!(restored.record.trouble[0].contains("not believed"), "{:?}", restored.record);
    assert_eq!(restored.again, Again::default());
}

#[test]
fn revisions_begin_above_all_that_may_have_been_given() {
    let first = raised(Revision::new(100), at(1_000), at(2_000)).unwrap();
    // Lost again after a second of as many commits as can be, and restored from the same backup.
    let second = raised(Revision::new(100), at(1_000), at(2_001)).unwrap();
    assert!(second.number() >= first.number() + COMMITS_PER_SECOND);
    // Restored on a machine whose clock is far behind.
    assert!(raised(Revision::new(100), at(1_000), at(-20_000_000)).unwrap() > Revision::new(1 << 40));
    assert_eq!(raised(Revision::new(u64::MAX - 5), at(0), at(0)), None);
    assert_eq!(raised(Revision::ZERO, at(i64::MIN), at(i64::MAX)), None);
}
