//! Does an agent do the right thing when its server, its network or its disk does not?
//!
//! A whole agent except for the Workload API, against the server of `testing::server`, in paused time.

mod admin;
mod overload;
mod push;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use passant_attest::node::join_token::Token;
use passant_core::keys::KeyType;
use passant_core::{Host, Reason};
use passant_daemon::vitals::Vitals;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Subscription, Update};
use crate::config::{
    Bootstrap, Config, Log, LogFormat, NodeAttestor, ServerAddress, TokenSource, WorkloadApi,
};
use crate::connect::Route;
use crate::health::{HealthReport, Part};
use crate::node::DataDir;
use crate::testing::ca::{Ca, foreign_bundle};
use crate::testing::server::{Fake, wire_entry};
use crate::testing::{entry_id, following_host, id, secs, selectors, trust_domain, until};
use crate::vitals::AgentVitals;
use crate::{DataError, Parts, StartError};

/// A server and what agents leave behind.
struct Rig {
    host: Host,
    fake: Fake,
    dir: tempfile::TempDir,
}

/// An agent that runs.
struct Agent {
    cache: Cache,
    vitals: Arc<AgentVitals>,
    health: watch::Receiver<HealthReport>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Rig {
    fn new() -> Self {
        let host = following_host();
        let fake = Fake::start(&host);
        fake.register(&[("a", 1)]);
        Self { host, fake, dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self, token: Option<TokenSource>) -> Config {
        Config {
            trust_domain: trust_domain(),
            data_dir: self.dir.path().join("data"),
            server_address: ServerAddress::parse("server.example.org:8081").unwrap().into(),
            bootstrap: Bootstrap::Bundle(Box::new(self.fake.world().bundle.clone())),
            node_attestor: NodeAttestor::JoinToken(token),
            workload_api: WorkloadApi {
                socket: self.dir.path().join("api.sock"),
                allowed_foreign_jwt_claims: [].into(),
            },
            sds: Some(crate::config::Sds::default()),
            workload_attestors: Vec::new(),
            admin_socket: None,
            sync_interval: secs(5),
            evidence_max_age: secs(300),
            x509_key_type: KeyType::EcP256,
            probe: None,
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
        }
    }

    /// Starts an agent with the join token `token-1`.
    fn start(&self) -> Agent {
        self.start_with(self.config(Some(TokenSource::Given(Token::parse("token-1").unwrap()))))
    }

    fn assemble(&self, config: Config) -> Result<Parts, StartError> {
        let data = DataDir::open(&config.data_dir, &config.trust_domain)?;
        Parts::assemble(
            config,
            self.host.clone(),
            data,
            Route::Tls(Arc::new(self.fake.clone())),
            Arc::default(),
        )
    }

    fn start_with(&self, config: Config) -> Agent {
        let parts = self.assemble(config).unwrap();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let live = &parts.vitals.parts;
        tasks.spawn(parts.driver.run(stop.clone(), live.begin("drive")));
        tasks.spawn(parts.push.run(stop.clone(), live.begin("push")));
        tasks.spawn(parts.minter.run(stop.clone(), live.begin("mint")));
        Agent { cache: parts.cache, vitals: parts.vitals, health: parts.health, stop, tasks }
    }

    fn token_file(&self, token: &str) -> TokenSource {
        let path = self.dir.path().join("token");
        fs::write(&path, token).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        TokenSource::File(path)
    }

    fn stored(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.dir.path().join("data/agent-data.json")).unwrap()).unwrap()
    }
}

impl Agent {
    fn subscribe(&self, uid: u32) -> Subscription {
        self.cache.subscribe(&selectors(&[&format!("unix:uid:{uid}")]))
    }

    fn trouble(&self, part: Part) -> Option<String> {
        self.health.borrow().troubles.get(&part).cloned()
    }

    async fn ready(&self) {
        until("the agent is ready", || self.health.borrow().is_ready()).await;
    }

    /// Ends the agent in the middle of whatever it does, and gives its directory free.
    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// Whether its tasks still run.
    fn is_up(&mut self) -> bool {
        self.tasks.try_join_next().is_none()
    }
}

fn paths(subscription: &mut Subscription) -> Vec<String> {
    match subscription.current() {
        Update::Ready(identities) => {
            identities.svids.iter().map(|identity| identity.svid.id().path().to_owned()).collect()
        }
        Update::NotReady(_) | Update::NoIdentity => Vec::new(),
    }
}

fn why(subscription: &mut Subscription) -> String {
    match subscription.current() {
        Update::NotReady(why) => why,
        Update::NoIdentity => "no identity".to_owned(),
        Update::Ready(_) => "ready".to_owned(),
    }
}

async fn serves(subscription: &mut Subscription, wanted: &[&str]) {
    until("these are served", || paths(subscription) == wanted).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_attests_syncs_and_mints() {
    let rig = Rig::new();
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    agent.ready().await;
    let Update::Ready(identities) = workload.current() else { panic!("not ready") };
    identities.svids[0].svid.verify(&identities.bundle, rig.host.now()).unwrap();
    let key = rig.host.keys.load(&identities.svids[0].key).unwrap();
    assert_eq!(key.public_key(), identities.svids[0].svid.public_key());
    assert_eq!(why(&mut agent.subscribe(2)), "no identity");
    assert!(rig.fake.calls("PostStatus") >= 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_server_adds_changes_and_removes_arrives_within_a_poll() {
    let rig = Rig::new();
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    let began = Instant::now();
    rig.fake.register(&[("b", 1)]);
    serves(&mut workload, &["/a", "/b"]).await;
    assert!(began.elapsed() < secs(7), "{:?}", began.elapsed());
    let Update::Ready(before) = workload.current() else { panic!("not ready") };
    rig.fake.world().entries.get_mut("b").unwrap().revision_number = 1;
    until("the changed entry is minted again", || match workload.current() {
        Update::Ready(now) => now.svids[1].svid.serial() != before.svids[1].svid.serial(),
        Update::NotReady(_) | Update::NoIdentity => false,
    })
    .await;
    rig.fake.world().entries.remove("a");
    serves(&mut workload, &["/b"]).await;
    rig.fake.world().entries.clear();
    until("nothing is left", || why(&mut workload) == "no identity").await;
}

#[tokio::test(start_paused = true)]
async fn large_sets_are_synced_by_revision_and_only_what_changed_is_asked_for() {
    let rig = Rig::new();
    rig.fake.world().page = 10;
    rig.fake.world().entries.clear();
    let names: Vec<String> = (0..25).map(|n| format!("e{n:02}")).collect();
    let entries: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    rig.fake.register(&entries);
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    let all: Vec<String> = names.iter().map(|name| format!("/{name}")).collect();
    serves(&mut workload, &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let sizes: Vec<usize> = rig.fake.world().asked_ids.iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 5]);

    rig.fake.world().asked_ids.clear();
    rig.fake.world().entries.get_mut("e07").unwrap().revision_number = 3;
    rig.fake.world().entries.get_mut("e08").unwrap().created_at += 1;
    rig.fake.world().entries.remove("e09");
    let known = || agent.cache.known();
    until("the change has arrived", || !known().contains_key(&entry_id("e09"))).await;
    assert_eq!(rig.fake.world().asked_ids, [["e07", "e08"]]);
    assert_eq!(known()[&entry_id("e07")].revision, 3);
    assert_eq!(known().len(), 24);
}

#[tokio::test(start_paused = true)]
async fn more_than_five_hundred_entries_are_minted_in_batches_that_the_server_takes() {
    let rig = Rig::new();
    rig.fake.world().entries.clear();
    let names: Vec<String> = (0..520).map(|n| format!("e{n:03}")).collect();
    rig.fake.register(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
    rig.fake.world().largest_batch = 130;
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    until("all are served", || paths(&mut workload).len() == 520).await;
    let batches = rig.fake.world().batches.clone();
    assert_eq!(batches[..3], [500, 250, 125]);
    assert_eq!(batches.iter().filter(|size| **size <= 130).sum::<usize>(), 520, "{batches:?}");
    let asked: usize = rig.fake.world().asked_ids.iter().map(Vec::len).sum();
    assert_eq!(asked, 520);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_sync_is_asked_for_all_entries() {
    let rig = Rig::new();
    rig.fake.world().offers_sync = false;
    let agent = rig.start();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    assert!(rig.fake.calls("GetAuthorizedEntries") >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_mixes_the_phases_of_a_sync_is_not_believed() {
    let rig = Rig::new();
    rig.fake.world().page = 1;
    rig.fake.register(&[("b", 1)]);
    let agent = rig.start();
    agent.ready().await;
    rig.fake.world().mixes_phases = true;
    rig.fake.world().entries.remove("a");
    rig.fake.register(&[("c", 1)]);
    until("the fault is seen", || agent.trouble(Part::Sync).is_some()).await;
    assert!(agent.cache.known().contains_key(&entry_id("a")), "the view held stays");
}

#[tokio::test(start_paused = true)]
async fn entries_of_another_trust_domain_and_malformed_ones_are_left_out() {
    let rig = Rig::new();
    {
        let mut world = rig.fake.world();
        let mut foreign = wire_entry("foreign", 1);
        foreign.spiffe_id.as_mut().unwrap().trust_domain = "other.org".to_owned();
        let mut malformed = wire_entry("malformed", 1);
        malformed.selectors.clear();
        world.entries.insert("foreign".to_owned(), foreign);
        world.entries.insert("malformed".to_owned(), malformed);
    }
    let agent = rig.start();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    assert_eq!(agent.cache.known().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn federated_bundles_come_with_the_entries_and_a_missing_one_hinders_nobody() {
    let rig = Rig::new();
    {
        let mut world = rig.fake.world();
        let entry = world.entries.get_mut("a").unwrap();
        entry.federates_with = vec!["there.test".to_owned(), "missing.test".to_owned()];
        world.federated.insert("there.test".to_owned(), foreign_bundle("there.test"));
    }
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    let Update::Ready(identities) = workload.current() else { panic!("not ready") };
    assert_eq!(identities.federated.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["there.test"]);
    rig.fake.world().federated.clear();
    until("it is gone", || agent.cache.bundles().federated.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_bridged_with_what_is_valid_and_ends_by_itself() {
    let rig = Rig::new();
    rig.fake.world().node_ttl = 80_000;
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    rig.fake.world().up = false;
    tokio::time::sleep(secs(1700)).await;
    assert_eq!(paths(&mut workload), ["/a"]);
    assert!(agent.trouble(Part::Sync).is_some());
    assert!(why(&mut agent.subscribe(9)).contains("has not confirmed"));
    let calls_in_outage = rig.fake.calls("SyncAuthorizedEntries");
    tokio::time::sleep(secs(2000)).await;
    assert!(paths(&mut workload).is_empty(), "its SVID has expired");
    rig.fake.world().up = true;
    let began = Instant::now();
    serves(&mut workload, &["/a"]).await;
    assert!(began.elapsed() < secs(300), "{:?}", began.elapsed());
    assert!(calls_in_outage < 60, "{calls_in_outage} calls in vain");
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn svids_are_renewed_at_about_half_their_life() {
    let rig = Rig::new();
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    let Update::Ready(first) = workload.current() else { panic!("not ready") };
    let began = Instant::now();
    workload.changed().await;
    let Update::Ready(second) = workload.current() else { panic!("not ready") };
    assert_ne!(first.svids[0].svid.serial(), second.svids[0].svid.serial());
    assert!((1400..2200).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_is_renewed_and_a_restart_goes_on_with_the_new_svid() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    until("the node SVID is renewed", || rig.fake.calls("RenewAgent") == 1).await;
    until("it is in use", || rig.fake.world().pending.is_none()).await;
    agent.stop().await;
    let agent = rig.start_with(rig.config(None));
    serves(&mut agent.subscribe(1), &["/a"]).await;
    assert_eq!(rig.fake.calls("AttestAgent"), 1);
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_does_not_cost_the_join_token() {
    let rig = Rig::new();
    rig.fake.world().loses_answers = true;
    let agent = rig.start();
    until("the token is spent", || rig.fake.world().tokens["token-1"].is_some()).await;
    agent.stop().await;
    rig.fake.world().loses_answers = false;
    let agent = rig.start();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    assert_eq!(rig.fake.calls("AttestAgent"), 2);
    assert!(rig.stored().get("pending").is_none(), "the key of the attempt is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_retried_slowly_and_a_new_one_is_taken_from_the_file() {
    let rig = Rig::new();
    let mut agent = rig.start_with(rig.config(Some(rig.token_file("unknown"))));
    until("the refusal is seen", || agent.trouble(Part::Node).is_some()).await;
    tokio::time::sleep(secs(3000)).await;
    let attempts = rig.fake.calls("AttestAgent");
    assert!((3..40).contains(&attempts), "{attempts} attempts");
    assert!(agent.is_up());
    rig.token_file("token-1\n");
    serves(&mut agent.subscribe(1), &["/a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_banned_agent_drops_everything_and_stays_up() {
    let rig = Rig::new();
    let mut agent = rig.start_with(rig.config(Some(rig.token_file("token-1"))));
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    rig.fake.world().banned = true;
    until("it knows", || why(&mut workload) == "this node is banned").await;
    until("the disk knows", || rig.stored().get("identity").is_none()).await;
    let refusal = agent.cache.jwt_svids(&selectors(&["unix:uid:1"]), vec!["x".to_owned()], None).await;
    assert_eq!(refusal.unwrap_err().reason, Reason::Unavailable);
    assert!(agent.trouble(Part::Node).is_some());

    let calls = rig.fake.world().calls.values().sum::<u32>();
    tokio::time::sleep(secs(600)).await;
    assert!(rig.fake.world().calls.values().sum::<u32>() - calls < 20, "it asks slowly");
    assert!(agent.is_up());

    // The operator lifts the ban and hands out a new token.
    rig.fake.world().banned = false;
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    rig.token_file("token-2");
    serves(&mut workload, &["/a"]).await;
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn an_evicted_agent_without_means_serves_on_and_asks_slowly() {
    let rig = Rig::new();
    let mut agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    rig.fake.world().active = None;
    until("it knows", || agent.trouble(Part::Node).is_some_and(|why| why.contains("evicted"))).await;
    assert_eq!(paths(&mut workload), ["/a"]);
    let calls = rig.fake.calls("SyncAuthorizedEntries");
    tokio::time::sleep(secs(600)).await;
    assert!(rig.fake.calls("SyncAuthorizedEntries") - calls < 15);
    assert_eq!(paths(&mut workload), ["/a"]);
    assert!(agent.is_up());
}

#[tokio::test(start_paused = true)]
async fn an_evicted_agent_with_a_new_token_attests_in_process() {
    let rig = Rig::new();
    let agent = rig.start_with(rig.config(Some(rig.token_file("token-1"))));
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    rig.token_file("token-2");
    rig.fake.world().active = None;
    until("it has attested again", || rig.fake.calls("AttestAgent") == 2).await;
    let attested = Instant::now();
    agent.ready().await;
    assert!(attested.elapsed() < secs(2), "it syncs at once, not when the refusal would have been over");
    assert_eq!(paths(&mut workload), ["/a"]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_the_node_svid_needs_a_token_but_no_restart() {
    let rig = Rig::new();
    let mut agent = rig.start_with(rig.config(Some(rig.token_file("token-1"))));
    agent.ready().await;
    rig.fake.world().up = false;
    tokio::time::sleep(secs(4000)).await;
    rig.fake.world().up = true;
    until("the server has said so", || agent.trouble(Part::Node).is_some()).await;
    assert!(agent.is_up());
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    rig.token_file("token-2");
    serves(&mut agent.subscribe(1), &["/a"]).await;
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_refused_hinders_only_its_own_workloads() {
    let rig = Rig::new();
    rig.fake.register(&[("b", 2)]);
    rig.fake.world().refused_entries.insert("b".to_owned());
    let agent = rig.start();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    let mut other = agent.subscribe(2);
    until("the reason is told", || why(&mut other).contains("the entry has ended")).await;
    rig.fake.world().refused_entries.clear();
    serves(&mut other, &["/b"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_for_which_nothing_is_minted_says_so_until_something_is() {
    let rig = Rig::new();
    rig.fake.world().refused_entries.insert("a".to_owned());
    let agent = rig.start();
    until("the trouble is told", || agent.trouble(Part::Mint).is_some()).await;
    assert!(agent.trouble(Part::Mint).unwrap().contains("the entry has ended"));
    assert_eq!(agent.trouble(Part::Sync), None);
    assert!(!agent.vitals.readiness().is_ready(), "its workloads ask in vain");
    let asked = rig.fake.calls("BatchNewX509SVID");
    until("it was asked again, in vain", || rig.fake.calls("BatchNewX509SVID") > asked + 3).await;
    assert!(agent.trouble(Part::Mint).is_some(), "nor is it in order between two attempts");

    // An entry that alone is refused is no trouble of the agent.
    rig.fake.register(&[("b", 2)]);
    serves(&mut agent.subscribe(2), &["/b"]).await;
    agent.ready().await;
    let asked = rig.fake.calls("BatchNewX509SVID");
    until("it was asked again", || rig.fake.calls("BatchNewX509SVID") > asked + 1).await;
    assert_eq!(agent.trouble(Part::Mint), None);

    // New ones are refused, and what is held can still be served.
    rig.fake.world().refused_entries.insert("c".to_owned());
    rig.fake.register(&[("c", 3)]);
    until("the trouble is told", || agent.trouble(Part::Mint).is_some()).await;
    assert!(agent.vitals.readiness().is_ready());
    rig.fake.world().refused_entries.clear();
    serves(&mut agent.subscribe(3), &["/c"]).await;
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_taint_svids_come_from_the_new_authority() {
    let rig = Rig::new();
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    let two = Ca::new("two");
    {
        let mut world = rig.fake.world();
        world.bundle = Ca::bundle_of(&[(&world.ca, true), (&two, false)], 2);
        world.ca = two;
    }
    let only_two = rig.fake.world().ca.bundle();
    until("the SVID is minted again", || match workload.current() {
        Update::Ready(now) => now.svids[0].svid.verify(&only_two, rig.host.now()).is_ok(),
        Update::NotReady(_) | Update::NoIdentity => false,
    })
    .await;
    until("the node SVID is renewed too", || rig.fake.calls("RenewAgent") >= 1).await;
    until("the server hears of the bundle", || rig.fake.world().bundle_serials.last() == Some(&2)).await;
}

#[tokio::test(start_paused = true)]
async fn an_svid_of_an_authority_that_is_not_published_is_not_served() {
    let rig = Rig::new();
    let agent = rig.start();
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    let two = Ca::new("two");
    let both = Ca::bundle_of(&[(&rig.fake.world().ca, false), (&two, false)], 2);
    rig.fake.world().ca = two;
    rig.fake.register(&[("b", 2)]);
    let mut other = agent.subscribe(2);
    until("the reason is told", || why(&mut other).contains("does not verify")).await;
    rig.fake.world().bundle = both;
    serves(&mut other, &["/b"]).await;
}

#[tokio::test(start_paused = true)]
async fn jwt_svids_come_from_the_server_for_the_entries_that_match() {
    let rig = Rig::new();
    let agent = rig.start();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    let uid_1 = selectors(&["unix:uid:1"]);
    let tokens = agent.cache.jwt_svids(&uid_1, vec!["x".to_owned()], None).await.unwrap();
    assert_eq!((tokens.len(), tokens[0].1.id()), (1, &id("/a")));
    let refusal = agent.cache.jwt_svids(&uid_1, vec!["x".to_owned()], Some(id("/other"))).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::Denied);
    rig.fake.world().up = false;
    let again = agent.cache.jwt_svids(&uid_1, vec!["x".to_owned()], None).await.unwrap();
    assert_eq!(again[0].1.token(), tokens[0].1.token());
    let refusal = agent.cache.jwt_svids(&uid_1, vec!["y".to_owned()], None).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::Unavailable);
    assert!(refusal.public.starts_with("could not fetch JWT-SVID"), "{}", refusal.public);
}

#[tokio::test(start_paused = true)]
async fn a_server_with_another_spiffe_id_is_not_talked_to() {
    let rig = Rig::new();
    rig.fake.world().server_id = id("/spire/agent/join_token/evil");
    let agent = rig.start();
    until("it is seen", || agent.trouble(Part::Node).is_some_and(|why| why.contains("it is spiffe://")))
        .await;
    assert_eq!(rig.fake.calls("AttestAgent"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_under_another_root_is_not_talked_to() {
    let rig = Rig::new();
    let config = Config {
        bootstrap: Bootstrap::Bundle(Box::new(Ca::new("stranger").bundle())),
        ..rig.config(Some(TokenSource::Given(Token::parse("token-1").unwrap())))
    };
    let agent = rig.start_with(config);
    until("it is seen", || {
        agent.trouble(Part::Node).is_some_and(|why| why.contains("bundle of example.org"))
    })
    .await;
    assert_eq!(rig.fake.calls("AttestAgent"), 0);
}

#[tokio::test(start_paused = true)]
async fn insecure_bootstrap_believes_the_first_server_and_no_other_afterwards() {
    let rig = Rig::new();
    let config = |token| Config { bootstrap: Bootstrap::Insecure, ..rig.config(token) };
    rig.fake.world().server_id = id("/not/the/server");
    let agent = rig.start_with(config(Some(rig.token_file("token-1"))));
    until("the ID counts even so", || agent.trouble(Part::Node).is_some()).await;
    assert_eq!(rig.fake.calls("AttestAgent"), 0);
    rig.fake.world().server_id = trust_domain().server_id();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    agent.stop().await;
    rig.fake.world().ca = Ca::new("imposter");
    rig.fake.world().calls.clear();
    let agent = rig.start_with(config(None));
    until("the imposter is seen", || {
        agent.trouble(Part::Sync).is_some_and(|why| why.contains("verify the server"))
    })
    .await;
    assert!(rig.fake.world().calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_directory_serves_one_agent_of_one_trust_domain() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    let again = rig.assemble(rig.config(None));
    assert!(matches!(again.err(), Some(StartError::Data(DataError::InUse(_)))));
    agent.stop().await;
    let other =
        Config { trust_domain: passant_core::TrustDomain::parse("other.org").unwrap(), ..rig.config(None) };
    let other = rig.assemble(other);
    assert!(matches!(other.err(), Some(StartError::Data(DataError::OtherTrustDomain { .. }))));
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_private_and_damage_is_set_aside() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    agent.stop().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = rig.dir.path().join("data/agent-data.json");
    assert_eq!((mode(file.parent().unwrap()), mode(&file)), (0o700, 0o600));

    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    let agent = rig.start_with(rig.config(Some(rig.token_file("token-2"))));
    serves(&mut agent.subscribe(1), &["/a"]).await;
    assert!(rig.dir.path().join("data/agent-data.json.unreadable").exists());
}

#[tokio::test(start_paused = true)]
async fn a_newer_format_is_not_touched() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    agent.stop().await;
    let mut stored = rig.stored();
    stored["format"] = 2.into();
    stored.as_object_mut().unwrap().remove("trust_domain");
    let file = rig.dir.path().join("data/agent-data.json");
    fs::write(&file, stored.to_string()).unwrap();
    let newer = rig.assemble(rig.config(None));
    assert!(matches!(newer.err(), Some(StartError::Data(DataError::Newer { found: 2, .. }))));
    assert!(file.exists());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_must_reattest_does_so_with_a_fresh_token() {
    let rig = Rig::new();
    rig.fake.world().reattestable = true;
    let agent = rig.start_with(rig.config(Some(rig.token_file("token-1"))));
    agent.ready().await;
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    rig.token_file("token-2");
    until("it attests instead of renewing", || rig.fake.calls("AttestAgent") == 2).await;
    assert_eq!(rig.fake.calls("RenewAgent"), 0);
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_eviction_the_agent_syncs_as_soon_as_it_has_attested_again() {
    let rig = Rig::new();
    let agent = rig.start_with(rig.config(Some(rig.token_file("token-1"))));
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    rig.token_file("token-2");
    rig.fake.world().active = None;
    until("it has attested again", || rig.fake.calls("AttestAgent") == 2).await;
    let began = Instant::now();
    rig.fake.register(&[("b", 1)]);
    serves(&mut workload, &["/a", "/b"]).await;
    assert!(began.elapsed() < secs(7), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_the_server_has_taken_back_is_not_acted_on_again() {
    let rig = Rig::new();
    let mut agent = rig.start();
    serves(&mut agent.subscribe(1), &["/a"]).await;
    let active = rig.fake.world().active.take();
    until("it knows", || agent.trouble(Part::Node).is_some()).await;
    rig.fake.world().active = active;
    agent.ready().await;
    for _ in 0..600 {
        tokio::time::sleep(secs(1)).await;
        assert_eq!(agent.trouble(Part::Node), None);
    }
    assert!(agent.is_up());
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_waits_ends_the_long_waits_of_an_outage() {
    let rig = Rig::new();
    rig.fake.world().node_ttl = 80_000;
    let agent = rig.start();
    agent.ready().await;
    agent.stop().await;
    rig.fake.world().up = false;
    let agent = rig.start();
    tokio::time::sleep(secs(1800)).await;
    rig.fake.world().up = true;
    let began = Instant::now();
    // As the Workload API does: each request waits a little, and is then told to come again.
    while paths(&mut agent.subscribe(1)).is_empty() {
        tokio::time::sleep(secs(3)).await;
    }
    assert!(began.elapsed() < secs(15), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_could_not_attest_in_an_outage_does_so_for_the_first_workload_after_it() {
    let rig = Rig::new();
    rig.fake.world().up = false;
    let agent = rig.start();
    tokio::time::sleep(secs(1800)).await;
    rig.fake.world().up = true;
    let began = Instant::now();
    while paths(&mut agent.subscribe(1)).is_empty() {
        tokio::time::sleep(secs(3)).await;
    }
    assert!(began.elapsed() < secs(15), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_banned_agent_without_a_token_keeps_saying_that_it_is_banned() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    rig.fake.world().banned = true;
    until("it knows", || agent.trouble(Part::Node).is_some()).await;
    tokio::time::sleep(secs(600)).await;
    assert_eq!(agent.trouble(Part::Node).as_deref(), Some("this node is banned"));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_written_does_not_cost_the_identity() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    let data = rig.dir.path().join("data");
    fs::rename(&data, rig.dir.path().join("away")).unwrap();
    tokio::time::sleep(secs(2 * 3600)).await;
    assert!(agent.trouble(Part::Data).is_some());
    assert_eq!(paths(&mut agent.subscribe(1)), ["/a"]);
    fs::rename(rig.dir.path().join("away"), &data).unwrap();
    until("it is written again", || agent.trouble(Part::Data).is_none()).await;
    agent.ready().await;
    agent.stop().await;
    let agent = rig.start_with(rig.config(None));
    agent.ready().await;
    assert_eq!(rig.fake.calls("AttestAgent"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_others_could_have_planted_is_refused_and_what_they_could_have_read_is_closed() {
    let rig = Rig::new();
    let agent = rig.start();
    agent.ready().await;
    agent.stop().await;
    let data = rig.dir.path().join("data");
    let file = data.join("agent-data.json");
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let assemble = || rig.assemble(rig.config(None)).err();
    let is_refused = || matches!(assemble(), Some(StartError::Data(DataError::Unsafe { .. })));
    for (path, open, good) in [(&data, 0o770, 0o700), (&data, 0o702, 0o700), (&file, 0o620, 0o600)] {
        set(path, open);
        assert!(is_refused(), "{} {open:o}", path.display());
        set(path, good);
    }
    set(&data, 0o755);
    set(&file, 0o644);
    assert!(assemble().is_none());
    assert_eq!((mode(&data), mode(&file)), (0o755, 0o600), "the directory is not ours to close");
    let elsewhere = rig.dir.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    assert!(is_refused(), "a symbolic link");
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&elsewhere, data.join("agent.lock.x")).unwrap();
    fs::rename(data.join("agent.lock.x"), data.join("agent.lock")).unwrap();
    assert!(matches!(assemble(), Some(StartError::Data(_))), "a lock that is a symbolic link");
}
