//! Does an agent follow a server that pushes, and find out when it does not?

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use passant_attest::node::join_token::Token;
use passant_core::{Evidence, Instance, Reason, Selector};
use passant_proto::options::{KeyScope, Options};
use passant_proto::sync::stop::Target;
use passant_proto::sync::watch_response::Response as Told;
use passant_proto::sync::{AllEntries, Cursor, Heartbeat, Stop, Stops, Update};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Agent, Rig, paths, serves, why};
use crate::cache::Subscription;
use crate::config::{ServerAddress, ServerAddresses, TokenSource};
use crate::health::Part;
use crate::limits;
use crate::testing::ca::Ca;
use crate::testing::server::wire_entry;
use crate::testing::{entry_id, secs, selectors, until};

/// Longer than anything takes that needs no timer.
const SOON: Duration = Duration::from_millis(200);

impl Rig {
    /// A rig whose server pushes.
    fn pushing() -> Self {
        let rig = Self::new();
        rig.fake.world().push.is_on = true;
        rig.fake.world().node_ttl = 80_000;
        rig
    }

    async fn started(&self) -> Agent {
        let agent = self.start();
        agent.ready().await;
        serves(&mut agent.subscribe(1), &["/a"]).await;
        agent
    }
}

#[tokio::test(start_paused = true)]
async fn what_changes_arrives_at_once_and_nothing_is_polled() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    let mut workload = agent.subscribe(1);
    rig.fake.register(&[("b", 1)]);
    rig.fake.world().publish();
    let began = Instant::now();
    serves(&mut workload, &["/a", "/b"]).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());

    rig.fake.world().entries.remove("a");
    rig.fake.world().publish();
    sleep(SOON).await;
    assert_eq!(paths(&mut workload), ["/b"]);
    rig.fake.world().entries.clear();
    rig.fake.world().publish();
    sleep(SOON).await;
    assert_eq!(why(&mut workload), "no identity");

    sleep(secs(3_600)).await;
    assert_eq!(why(&mut agent.subscribe(9)), "no identity", "heartbeats confirm the view");
    assert_eq!(rig.fake.calls("SyncAuthorizedEntries"), 0);
    assert_eq!(rig.fake.calls("GetBundle"), 1, "with the attestation");
    assert_eq!((rig.fake.calls("Watch"), rig.fake.world().push.resyncs.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_large_snapshot_comes_in_parts_and_takes_effect_whole() {
    let rig = Rig::pushing();
    rig.fake.world().push.part = 10;
    let names: Vec<String> = (0..25).map(|n| format!("e{n:02}")).collect();
    rig.fake.register(&names.iter().map(|name| (name.as_str(), 2)).collect::<Vec<_>>());
    let agent = rig.started().await;
    assert_eq!(agent.cache.known().len(), 26);
    assert_eq!(rig.fake.world().push.acks, [1]);
}

#[tokio::test(start_paused = true)]
async fn an_update_is_acknowledged_once_workloads_have_it_or_it_takes_too_long() {
    let rig = Rig::pushing();
    rig.fake.register(&[("b", 1)]);
    let agent = rig.start();
    agent.ready().await;
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a", "/b"]).await;
    let acks = || rig.fake.world().push.acks.clone();
    let blink = SOON / 10;
    sleep(secs(1)).await;
    assert_eq!(acks(), [1]);

    rig.fake.world().entries.remove("b");
    rig.fake.world().publish();
    sleep(limits::TAKEN_UP / 2).await;
    assert_eq!(acks(), [1], "the workload has not looked yet");
    assert_eq!(paths(&mut workload), ["/a"]);
    sleep(blink).await;
    assert_eq!(acks(), [1, 2]);

    rig.fake.register(&[("c", 1)]);
    rig.fake.world().refused_entries.insert("c".to_owned());
    rig.fake.world().publish();
    sleep(SOON).await;
    assert_eq!(acks(), [1, 2, 3], "its SVID cannot be had");

    rig.fake.world().entries.remove("a");
    rig.fake.world().publish();
    sleep(limits::TAKEN_UP - blink).await;
    assert_eq!(acks(), [1, 2, 3]);
    sleep(2 * blink).await;
    assert_eq!(acks(), [1, 2, 3, 4], "nobody is waited for without end");
    drop(workload);
    rig.fake.world().publish();
    sleep(blink).await;
    assert_eq!(acks(), [1, 2, 3, 4, 5], "whoever has gone is not waited for");
}

#[tokio::test(start_paused = true)]
async fn a_lost_delta_is_found_by_the_digest_and_repaired_by_a_snapshot() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    rig.fake.register(&[("lost", 1)]);
    // Whoever watches is told of another change only.
    let watchers = {
        let mut world = rig.fake.world();
        let digest_with_lost = Update {
            cursor: Some(Cursor { lineage: "one".to_owned(), revision: 7 }),
            digest: 12,
            ..Update::default()
        };
        world.push.revision = 7;
        world.say(&Told::Update(digest_with_lost));
        world.watchers()
    };
    assert_eq!(watchers, 1);
    serves(&mut agent.subscribe(1), &["/a", "/lost"]).await;
    sleep(SOON).await;
    let mut world = rig.fake.world();
    assert_eq!((world.push.resyncs.len(), world.push.hellos.len(), world.watchers()), (1, 1, 1));
    assert_eq!(world.push.acks, [1, 7], "what does not add up is not acknowledged");
}

#[tokio::test(start_paused = true)]
async fn a_fault_in_the_middle_of_an_update_is_mended_by_one_snapshot() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    {
        let mut world = rig.fake.world();
        world.push.revision = 5;
        let cursor = Some(Cursor { lineage: "one".to_owned(), revision: 5 });
        let part = |more| Update { cursor: cursor.clone(), more, ..Update::default() };
        let unknown = Stops { stops: vec![Stop::default()] };
        for part in [Update { stops: Some(unknown), ..part(true) }, part(true), part(false)] {
            world.say(&Told::Update(part));
        }
    }
    rig.fake.register(&[("b", 1)]);
    serves(&mut agent.subscribe(1), &["/a", "/b"]).await;
    sleep(SOON).await;
    let mut world = rig.fake.world();
    assert_eq!((world.push.resyncs.len(), world.push.hellos.len(), world.watchers()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_stays_wrong_is_followed_from_nothing_and_then_polled() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    rig.fake.world().push.is_deaf = true;
    for watch in 1..=2 {
        until("it watches", || rig.fake.world().push.hellos.len() == watch).await;
        until("it has a view", || rig.fake.world().push.acks.len() == watch).await;
        for revision in [5, 6] {
            let cursor = Some(Cursor { lineage: "one".to_owned(), revision });
            rig.fake.world().say(&Told::Update(Update { cursor, digest: 1, ..Update::default() }));
        }
    }
    rig.fake.register(&[("b", 1)]);
    rig.fake.world().push.is_on = false;
    serves(&mut agent.subscribe(1), &["/a", "/b"]).await;
    let hellos = rig.fake.world().push.hellos.clone();
    assert!(hellos.iter().all(|hello| hello.cursor.is_none()), "{hellos:?}");
    assert!(rig.fake.calls("SyncAuthorizedEntries") >= 1);
    agent.ready().await;

    let began = Instant::now();
    rig.fake.world().push.is_on = true;
    rig.fake.world().push.is_deaf = false;
    until("it watches again", || rig.fake.world().watchers() == 1).await;
    assert!(began.elapsed() < limits::WATCH_ANEW + secs(60), "{:?}", began.elapsed());
    sleep(secs(10)).await;
    let polls = rig.fake.calls("SyncAuthorizedEntries");
    sleep(secs(600)).await;
    assert_eq!(rig.fake.calls("SyncAuthorizedEntries"), polls);
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_another_lineage_or_from_the_future_confirms_nothing() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    for (round, cursor) in [
        Cursor { lineage: "two".to_owned(), revision: 9 },
        Cursor { lineage: "one".to_owned(), revision: 0 },
        Cursor::default(),
    ]
    .into_iter()
    .enumerate()
    {
        let heartbeat = Heartbeat { cursor: Some(cursor), server_time_millis: 0 };
        rig.fake.world().say(&Told::Heartbeat(heartbeat));
        until("all is asked for again", || rig.fake.world().push.resyncs.len() == round + 1).await;
        sleep(SOON).await;
        assert_eq!(rig.fake.world().push.hellos.len(), 1);
    }
    assert_eq!(paths(&mut agent.subscribe(1)), ["/a"]);
    // The store was restored.
    rig.fake.world().push.lineage = "two".to_owned();
    rig.fake.world().entries.clear();
    rig.fake.register(&[("c", 1)]);
    rig.fake.world().cut();
    serves(&mut agent.subscribe(1), &["/c"]).await;
    assert!(!agent.cache.known().contains_key(&entry_id("a")));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_goes_on_where_it_was() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    let minted = rig.fake.world().batches.len();
    for round in 2..6 {
        sleep(secs(100)).await;
        let began = Instant::now();
        rig.fake.world().cut();
        until("it is back", || rig.fake.world().push.hellos.len() == round).await;
        assert!(began.elapsed() < secs(3), "{:?}", began.elapsed());
    }
    let hello = rig.fake.world().push.hellos.last().cloned().unwrap();
    assert_eq!(hello.cursor, Some(Cursor { lineage: "one".to_owned(), revision: 1 }));
    assert_ne!(hello.digest, 0);
    assert_eq!(rig.fake.world().batches.len(), minted, "nothing is minted again for it");
    assert_eq!(paths(&mut workload), ["/a"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_is_left_and_its_view_is_not_believed_meanwhile() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    rig.fake.world().push.beats = false;
    sleep(limits::CONFIRMED_FOR + secs(3)).await;
    assert!(why(&mut agent.subscribe(9)).contains("has not confirmed"));
    until("another watch is opened", || rig.fake.calls("Watch") >= 2).await;
    assert_eq!(paths(&mut agent.subscribe(1)), ["/a"]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_bridged_and_the_agent_is_back_soon_after_it() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    rig.fake.world().up = false;
    rig.fake.world().cut();
    sleep(secs(1_500)).await;
    assert_eq!(paths(&mut agent.subscribe(1)), ["/a"]);
    assert!(agent.trouble(Part::Sync).is_some());
    rig.fake.register(&[("b", 1)]);
    rig.fake.world().up = true;
    let began = Instant::now();
    serves(&mut agent.subscribe(1), &["/a", "/b"]).await;
    assert!(began.elapsed() < 2 * limits::WATCH_AGAIN_LAST + secs(5), "{:?}", began.elapsed());
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_with_the_new_svid_of_the_node() {
    let rig = Rig::pushing();
    rig.fake.world().node_ttl = 3_600;
    let agent = rig.started().await;
    until("the node SVID is renewed", || rig.fake.calls("RenewAgent") == 1).await;
    until("another watch is opened", || rig.fake.world().push.hellos.len() == 2).await;
    until("it is in use", || rig.fake.world().pending.is_none()).await;
    rig.fake.register(&[("b", 1)]);
    rig.fake.world().publish();
    serves(&mut agent.subscribe(1), &["/a", "/b"]).await;
    agent.ready().await;
    assert_eq!(rig.fake.calls("AttestAgent"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_banned_while_it_watches_drops_everything_and_comes_back_from_nothing() {
    let rig = Rig::pushing();
    let agent = rig.start_with(rig.config(Some(rig.token_file("token-1"))));
    let mut workload = agent.subscribe(1);
    serves(&mut workload, &["/a"]).await;
    until("it watches", || rig.fake.world().watchers() == 1).await;
    let calls = rig.fake.world().calls.clone();
    rig.fake.world().ban();
    sleep(SOON).await;
    assert_eq!(why(&mut workload), "this node is banned");
    assert_eq!(rig.fake.world().calls, calls, "it need not ask to know");
    assert!(agent.cache.known().is_empty());
    rig.fake.world().banned = false;
    rig.fake.world().tokens.insert("token-2".to_owned(), None);
    rig.token_file("token-2");
    serves(&mut workload, &["/a"]).await;
    assert_eq!(rig.fake.world().push.hellos.last().unwrap().cursor, None);
    agent.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_ban_after_a_welcome_counts_though_both_are_heard_of_late() {
    let rig = Rig::pushing();
    let token = TokenSource::Given(Token::parse("token-1").unwrap());
    let parts = rig.assemble(rig.config(Some(token))).unwrap();
    let (stop, mut tasks, cache) = (CancellationToken::new(), JoinSet::new(), parts.cache);
    let live = &parts.vitals.parts;
    tasks.spawn(parts.push.run(stop.clone(), live.begin("push")));
    tasks.spawn(parts.minter.run(stop.clone(), live.begin("mint")));
    let mut driving = pin!(parts.driver.run(stop.clone(), live.begin("drive")));
    let mut workload = cache.subscribe(&selectors(&["unix:uid:1"]));
    assert!(timeout(secs(10), &mut driving).await.is_err());
    assert_eq!(paths(&mut workload), ["/a"]);
    // From now on it is busy with something else.
    rig.fake.world().cut();
    until("another watch is opened", || rig.fake.world().push.hellos.len() == 2).await;
    sleep(SOON).await;
    rig.fake.world().ban();
    sleep(SOON).await;
    assert_eq!(paths(&mut workload), ["/a"]);
    assert!(timeout(SOON, &mut driving).await.is_err());
    assert_eq!(why(&mut workload), "this node is banned");
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_is_pushed_is_kept_reported_and_used() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    let two = Ca::new("two");
    {
        let mut world = rig.fake.world();
        world.bundle = Ca::bundle_of(&[(&world.ca, true), (&two, false)], 2);
        world.ca = two;
        world.publish();
    }
    sleep(SOON).await;
    assert_eq!(rig.fake.world().push.reports.last().unwrap().bundle_sequence, 2);
    assert_eq!(rig.stored()["bundle"]["sequence"], 2);
    until("the node SVID is renewed too", || rig.fake.calls("RenewAgent") >= 1).await;
    let only_two = rig.fake.world().ca.bundle();
    let mut workload = agent.subscribe(1);
    until("the SVID is minted again", || match workload.current() {
        crate::cache::Update::Ready(now) => now.svids[0].svid.verify(&only_two, rig.host.now()).is_ok(),
        crate::cache::Update::NotReady(_) | crate::cache::Update::NoIdentity => false,
    })
    .await;
    assert_eq!(rig.fake.calls("SyncAuthorizedEntries"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_served_is_reported_when_it_changes() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    let workload = agent.subscribe(1);
    sleep(2 * limits::REPORT).await;
    let report = rig.fake.world().push.reports.last().copied().unwrap();
    assert_eq!((report.x509_svids, report.jwt_svids, report.streams), (1, 0, 1));
    assert!(report.last_end > rig.host.now().secs());
    let reports = rig.fake.world().push.reports.len();
    sleep(20 * limits::REPORT).await;
    assert_eq!(rig.fake.world().push.reports.len(), reports);
    drop(workload);
    sleep(2 * limits::REPORT).await;
    assert_eq!(rig.fake.world().push.reports.len(), reports + 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_the_server_does_not_know_when_asked_makes_the_agent_ask_for_everything() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    let known = rig.fake.world().entries.clone();
    rig.fake.register(&[("b", 1)]);
    rig.fake.world().publish();
    // Gone again, and nobody says so.
    rig.fake.world().entries = known;
    until("it asks", || rig.fake.world().push.resyncs.len() == 1).await;
    sleep(SOON).await;
    assert!(!agent.cache.known().contains_key(&entry_id("b")));
    assert_eq!(paths(&mut agent.subscribe(1)), ["/a"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_server_does_not_give_makes_the_agent_ask_for_everything() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    // Nobody says so.
    rig.fake.world().entries.clear();
    let uid_1 = selectors(&["unix:uid:1"]);
    assert!(agent.cache.jwt_svids(&uid_1, vec!["x".to_owned()], None).await.is_err());
    assert!(!rig.fake.world().push.resyncs.is_empty());
    assert!(agent.cache.known().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_cannot_be_used_is_left_out_and_disturbs_nothing() {
    let rig = Rig::pushing();
    let mut foreign = wire_entry("foreign", 1);
    foreign.spiffe_id.as_mut().unwrap().trust_domain = "other.org".to_owned();
    rig.fake.world().entries.insert("foreign".to_owned(), foreign);
    let agent = rig.started().await;
    assert_eq!(agent.cache.known().len(), 1);
    rig.fake.world().cut();
    until("it is back", || rig.fake.world().push.hellos.len() == 2).await;
    rig.fake.world().entries.remove("foreign");
    rig.fake.world().publish();
    sleep(SOON).await;
    let world = rig.fake.world();
    assert!(world.push.resyncs.is_empty(), "{:?}", world.push.resyncs);
    assert!(world.push.hellos[1].cursor.is_some());
}

/// What is known of a process of the user 1.
fn evidence(rig: &Rig, pid: u32) -> Arc<Evidence> {
    Arc::new(Evidence {
        selectors: selectors(&["unix:uid:1"]),
        instance: Instance::new("boot", pid, 7).unwrap(),
        attestors: vec!["unix".to_owned()],
        attested_at: rig.host.now(),
    })
}

fn stop(target: Target) -> Stop {
    Stop { id: "s".to_owned(), reason: "found in a log".to_owned(), since: 1, target: Some(target) }
}

fn serial(subscription: &mut Subscription) -> String {
    match subscription.current() {
        crate::cache::Update::Ready(identities) => identities.svids[0].svid.serial().to_string(),
        crate::cache::Update::NotReady(_) | crate::cache::Update::NoIdentity => String::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_process_waits_for_is_minted_on_what_is_known_of_it() {
    let rig = Rig::pushing();
    let agent = rig.start();
    agent.ready().await;
    until("it is prefetched", || rig.fake.world().push.evidence.len() == 1).await;
    assert_eq!(rig.fake.world().push.evidence[0], ("a".to_owned(), None));
    assert_eq!(rig.fake.calls("BatchNewX509SVID"), 0);

    let known = evidence(&rig, 5);
    let mut workload = agent.cache.subscribe_as(&known);
    rig.fake.register(&[("b", 1)]);
    rig.fake.world().publish();
    serves(&mut workload, &["/a", "/b"]).await;
    assert_eq!(rig.fake.world().push.evidence[1], ("b".to_owned(), Some((*known).clone())));
    // Also when it is renewed: by then, more is known.
    let later = Arc::new(Evidence { attested_at: rig.host.now().plus(secs(1)), ..(*known).clone() });
    workload.renew_evidence(&later);
    rig.fake.world().entries.get_mut("b").unwrap().revision_number = 1;
    rig.fake.world().publish();
    until("it is minted again", || rig.fake.world().push.evidence.len() == 3).await;
    assert_eq!(rig.fake.world().push.evidence[2].1.as_ref(), Some(&*later));

    agent.cache.jwt_svids_as(&known, vec!["x".to_owned()], None).await.unwrap();
    assert!(rig.fake.world().push.evidence[3..].iter().all(|(_, told)| told.as_ref() == Some(&*known)));
    assert_eq!(rig.fake.world().push.evidence.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn evidence_is_told_by_the_servers_clock_whenever_that_or_this_hosts_is_set() {
    for (at_first, later) in [(0, -120), (300, 0), (0, 900), (-700, 300)] {
        let rig = Rig::pushing();
        rig.fake.world().push.ahead = at_first;
        let agent = rig.started().await;
        rig.fake.world().push.ahead = later;
        sleep(secs(16)).await;
        let mut workload = agent.cache.subscribe_as(&evidence(&rig, 5));
        rig.fake.register(&[("b", 1)]);
        rig.fake.world().publish();
        serves(&mut workload, &["/a", "/b"]).await;
        let told = rig.fake.world().push.evidence.last().unwrap().1.clone().unwrap().attested_at;
        let apart = told.secs().abs_diff(rig.host.now().secs() + later);
        assert!(apart <= limits::CLOCKS_APART.as_secs(), "{at_first} {later}: {apart} s");
        assert_eq!(rig.fake.calls("Watch"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_evidence_is_asked_as_spires_is() {
    let rig = Rig::pushing();
    rig.fake.world().push.mints_plainly = true;
    let agent = rig.start();
    let mut workload = agent.cache.subscribe_as(&evidence(&rig, 5));
    serves(&mut workload, &["/a"]).await;
    assert!(rig.fake.calls("BatchNewX509SVID") >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_entry_or_agent_is_withdrawn_before_it_is_acknowledged_and_comes_back() {
    for target in [Target::EntryId("a".to_owned()), Target::Agent(AllEntries {})] {
        let rig = Rig::pushing();
        let agent = rig.started().await;
        let mut workload = agent.cache.subscribe_as(&evidence(&rig, 5));
        serves(&mut workload, &["/a"]).await;
        let uid_1 = selectors(&["unix:uid:1"]);
        let jwt = || agent.cache.jwt_svids(&uid_1, vec!["x".to_owned()], None);
        jwt().await.unwrap();
        // Even if the server went on telling of the entry.
        rig.fake.world().push.stops = vec![stop(target.clone())];
        rig.fake.world().publish();
        sleep(limits::TAKEN_UP / 2).await;
        assert_eq!(rig.fake.world().push.acks, [1]);
        assert_eq!(why(&mut workload), "no identity");
        assert_eq!(jwt().await.unwrap_err().reason, Reason::Denied);
        sleep(SOON).await;
        assert_eq!(rig.fake.world().push.acks, [1, 2]);
        assert_eq!(rig.stored()["stops"][0]["reason"], "found in a log");
        assert_eq!((agent.cache.served().x509_svids, agent.cache.served().jwt_svids), (0, 0));

        // It stays stopped, whatever happens meanwhile.
        rig.fake.world().up = false;
        rig.fake.world().cut();
        agent.stop().await;
        rig.fake.world().up = true;
        rig.fake.world().push.is_on = false;
        let agent = rig.start_with(rig.config(None));
        until("it polls", || rig.fake.calls("SyncAuthorizedEntries") >= 2).await;
        let mut workload = agent.cache.subscribe_as(&evidence(&rig, 5));
        assert_eq!(why(&mut workload), "no identity");

        rig.fake.world().push.is_on = true;
        rig.fake.world().push.stops.clear();
        serves(&mut workload, &["/a"]).await;
        until("the disk knows", || rig.stored().get("stops").is_none()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_process_gets_nothing_and_others_go_on() {
    let rig = Rig::pushing();
    let agent = rig.started().await;
    let (bad, good) = (evidence(&rig, 5), evidence(&rig, 6));
    let mut stopped = agent.cache.subscribe_as(&bad);
    let mut other = agent.cache.subscribe_as(&good);
    serves(&mut stopped, &["/a"]).await;
    serves(&mut other, &["/a"]).await;
    let before = serial(&mut other);
    rig.fake.world().push.stops = vec![stop(Target::Instance("boot/5/7".to_owned()))];
    rig.fake.world().publish();
    sleep(SOON).await;
    assert_eq!((why(&mut stopped), serial(&mut other)), ("no identity".to_owned(), before));
    assert_eq!(why(&mut agent.cache.subscribe_as(&bad)), "no identity");
    let asked = |who| agent.cache.jwt_svids_as(who, vec!["x".to_owned()], None);
    assert_eq!(asked(&bad).await.unwrap_err().reason, Reason::Denied);
    asked(&good).await.unwrap();
    // Nor is anything minted on what is known of it.
    let minted = rig.fake.world().push.evidence.len();
    sleep(secs(2 * 3_600)).await;
    let of_bad = |told: &Option<Evidence>| told.as_ref().is_some_and(|told| told.instance == bad.instance);
    let world = rig.fake.world();
    assert!(
        world.push.evidence.len() > minted && !world.push.evidence[minted..].iter().any(|one| of_bad(&one.1))
    );
}

impl Rig {
    /// A rig whose entry `a` gives each process an SVID of its own.
    fn per_process() -> Self {
        let rig = Self::pushing();
        let own = Options { key_scope: KeyScope::Instance.into(), ..Options::default() };
        rig.fake.world().push.options.insert("a".to_owned(), own);
        rig
    }
}

#[tokio::test(start_paused = true)]
async fn each_process_has_a_key_of_its_own_that_its_streams_share() {
    let rig = Rig::per_process();
    let agent = rig.start();
    agent.ready().await;
    sleep(secs(60)).await;
    assert!(rig.fake.world().push.evidence.is_empty(), "nothing is minted ahead");
    let mut first = agent.cache.subscribe_as(&evidence(&rig, 1));
    let mut same = agent.cache.subscribe_as(&evidence(&rig, 1));
    let mut second = agent.cache.subscribe_as(&evidence(&rig, 2));
    for workload in [&mut first, &mut same, &mut second] {
        serves(workload, &["/a"]).await;
    }
    assert_eq!(serial(&mut first), serial(&mut same));
    assert_ne!(serial(&mut first), serial(&mut second));
    let told = rig.fake.world().push.evidence.clone();
    let pids: Vec<_> = told.iter().map(|(_, told)| told.as_ref().unwrap().instance.to_string()).collect();
    assert_eq!(pids, ["boot/1/7", "boot/2/7"]);
    assert!(paths(&mut agent.subscribe(1)).is_empty(), "of whom nothing is known");

    // It is renewed, and kept while the process connects anew.
    let before = serial(&mut first);
    sleep(secs(2_400)).await;
    assert_ne!(serial(&mut first), before);
    let before = serial(&mut second);
    drop(second);
    sleep(limits::PROCESS_IDLE - secs(10)).await;
    let mut second = agent.cache.subscribe_as(&evidence(&rig, 2));
    assert_eq!(serial(&mut second), before);
    drop(second);
    sleep(limits::PROCESS_IDLE + secs(10)).await;
    assert_eq!(agent.cache.processes().0, 1);
    agent.cache.exited(&evidence(&rig, 1).instance);
    assert_eq!(agent.cache.processes().0, 0);
}

#[tokio::test(start_paused = true)]
async fn processes_that_come_too_fast_for_a_key_of_their_own_wait() {
    let rig = Rig::per_process();
    let agent = rig.start();
    agent.ready().await;
    let (burst, _) = limits::PROCESS_KEYS;
    let mut workloads: Vec<_> =
        (1..=burst + 3).map(|pid| agent.cache.subscribe_as(&evidence(&rig, pid))).collect();
    sleep(SOON).await;
    let mut last = workloads.pop().unwrap();
    assert!(why(&mut last).contains("too many processes"), "{}", why(&mut last));
    assert_eq!(agent.cache.processes(), (usize::try_from(burst).unwrap(), 3));
    assert_eq!(rig.fake.world().push.evidence.len(), usize::try_from(burst).unwrap());
    serves(&mut last, &["/a"]).await;
    // Those that have gone leave room.
    drop((workloads, last));
    sleep(2 * limits::PROCESS_IDLE).await;
    assert_eq!(agent.cache.processes(), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn an_agent_stays_with_a_server_that_answers_and_leaves_one_that_does_not() {
    let rig = Rig::pushing();
    let mut config = rig.config(Some(rig.token_file("token-1")));
    let both = ["one.example:1", "two.example:1"].map(|text| ServerAddress::parse(text).unwrap());
    config.server_address = ServerAddresses::new(both.to_vec()).unwrap();
    let agent = rig.start_with(config);
    agent.ready().await;
    let used = || rig.fake.world().dialled.last().cloned().unwrap();
    let first = used();
    for round in 2..6 {
        sleep(limits::WATCH_LIVED).await;
        rig.fake.world().cut();
        until("it is back", || rig.fake.world().push.hellos.len() == round).await;
        assert_eq!(used(), first);
    }
    rig.fake.world().dead.insert(first.clone());
    rig.fake.world().push.beats = false;
    until("it has found another", || used() != first).await;
    rig.fake.world().push.beats = true;
    rig.fake.world().dead.clear();
    let second = used();
    sleep(secs(3_600)).await;
    assert_eq!(used(), second, "nor does it go back without need");
    agent.ready().await;
    serves(&mut agent.subscribe(1), &["/a"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_workload_waits_for_is_not_minted_together_with_what_is_minted_ahead() {
    let rig = Rig::pushing();
    rig.fake.world().entries.clear();
    let names: Vec<String> = (0..700).map(|n| format!("e{n:03}")).collect();
    rig.fake.register(&names.iter().map(|name| (name.as_str(), 2)).collect::<Vec<_>>());
    rig.fake.register(&[("z", 1)]);
    let agent = rig.start();
    let mut workload = agent.cache.subscribe_as(&evidence(&rig, 5));
    serves(&mut workload, &["/z"]).await;
    until("all are minted", || agent.cache.served().x509_svids == 701).await;
    assert_eq!(rig.fake.world().batches, [1, 500, 200]);
}

#[tokio::test(start_paused = true)]
async fn what_a_server_cannot_read_in_one_call_is_asked_for_in_several() {
    let rig = Rig::pushing();
    rig.fake.world().entries.clear();
    let agent = rig.start();
    agent.ready().await;
    let mut known = (*evidence(&rig, 5)).clone();
    known.selectors.extend((0..100).map(|n| Selector::new("x", &format!("{n:0>1000}")).unwrap()));
    let _workload = agent.cache.subscribe_as(&Arc::new(known));
    let names: Vec<String> = (0..50).map(|n| format!("e{n:02}")).collect();
    rig.fake.register(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>());
    rig.fake.world().publish();
    until("all are minted", || agent.cache.served().x509_svids == 50).await;
    assert_eq!(rig.fake.world().batches, [20, 20, 10]);
}
