//! Are bundles fetched when they should be, and kept when they should not be replaced?

use std::pin::Pin;
use std::time::Duration;

use passant_core::host::ManualClock;
use passant_core::{EndpointUrl, SpiffeId};

use super::testing::{Ca, name};
use super::*;
use crate::caller::Actor;
use crate::limits::POLL_WITHOUT;
use crate::state::Change;
use crate::state::samples::{host_at, relationship, trust_domain};
use crate::store::memory::MemoryStore;

const NOW: i64 = 1_000;

type Answer = Box<dyn Fn(&Order, usize) -> Result<Bundle, FetchError> + Send + Sync>;

/// Answers fetches by what a test says, the number of fetches before told, and remembers when they came.
struct Script {
    answer: Answer,
    asked: Mutex<Vec<(Instant, Order)>>,
    /// How long each fetch takes.
    takes: Duration,
}

impl Fetch for Script {
    fn fetch(&self, order: Order) -> Pin<Box<dyn Future<Output = Result<Bundle, FetchError>> + Send>> {
        let mut asked = self.asked.lock().unwrap();
        let answer = (self.answer)(&order, asked.len());
        asked.push((Instant::now(), order));
        let takes = self.takes;
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            answer
        })
    }
}

struct Bench {
    journal: Journal,
    clock: Arc<ManualClock>,
    federation: Federation,
    script: Arc<Script>,
    stop: CancellationToken,
}

impl Bench {
    fn new(answer: impl Fn(&Order, usize) -> Result<Bundle, FetchError> + Send + Sync + 'static) -> Self {
        Self::slow(Duration::ZERO, answer)
    }

    fn slow(
        takes: Duration,
        answer: impl Fn(&Order, usize) -> Result<Bundle, FetchError> + Send + Sync + 'static,
    ) -> Self {
        let (host, clock) = host_at(NOW);
        let store = Box::new(MemoryStore::ephemeral(&trust_domain(), &host));
        let journal = Journal::open(store, &trust_domain(), host.clone()).unwrap();
        let script = Arc::new(Script { answer: Box::new(answer), asked: Mutex::default(), takes });
        let fetch = Arc::<Script>::clone(&script);
        let (federation, refresher) = Federation::new(journal.clone(), fetch, host, Arc::default());
        let stop = CancellationToken::new();
        tokio::spawn(refresher.run(journal.watch(), stop.clone()));
        Self { journal, clock, federation, script, stop }
    }

    async fn commit(&self, changes: Vec<Change>) {
        self.journal.submit(move |_| Ok((changes, ()))).await.unwrap();
    }

    /// Federates with `trust_domain` by https_web.
    async fn federate(&self, trust_domain: &str) {
        self.commit(vec![Change::PutFederation(relationship(name(trust_domain), None))]).await;
    }

    fn held(&self, trust_domain: &str) -> Option<Arc<Bundle>> {
        self.journal.state().bundle_of(&name(trust_domain))
    }

    fn status(&self, trust_domain: &str) -> Status {
        self.federation.statuses().remove(&name(trust_domain)).unwrap()
    }

    fn asked(&self) -> usize {
        self.script.asked.lock().unwrap().len()
    }

    /// The pauses between the fetches so far, in seconds.
    fn gaps(&self) -> Vec<f64> {
        let asked = self.script.asked.lock().unwrap();
        asked.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64()).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Lets everything happen that happens within `secs`.
async fn pass(secs: f64) {
    tokio::time::sleep(Duration::from_secs_f64(secs)).await;
}

fn bundle(trust_domain: &str, sequence: u64, hint: Option<u64>) -> Bundle {
    Bundle { sequence, refresh_hint: hint.map(Duration::from_secs), ..Bundle::empty(name(trust_domain)) }
}

/// The bundle after `before` others.
fn numbered(before: usize, hint: Option<u64>) -> Bundle {
    bundle("other.test", u64::try_from(before).unwrap() + 1, hint)
}

fn down() -> Result<Bundle, FetchError> {
    Err(FetchError::TimedOut)
}

#[tokio::test(start_paused = true)]
async fn bundles_are_polled_as_their_hint_says() {
    for (hint, least, most) in [(Some(60), 54.0, 60.1), (None, 270.0, 300.1)] {
        let bench = Bench::new(move |_, _| Ok(bundle("other.test", 7, hint)));
        bench.federate("other.test").await;
        pass(0.1).await;
        assert_eq!(bench.held("other.test").unwrap().sequence, 7, "the first time at once");
        pass(2_000.0).await;
        let gaps = bench.gaps();
        assert!(gaps.len() > 5 && gaps.iter().all(|gap| (least..most).contains(gap)), "{gaps:?}");
        let revision = bench.journal.state().cursor().revision;
        assert_eq!(revision, Revision::new(2), "what has not changed is not written again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_poll_waits_for_the_next_interval_and_changes_nothing() {
    let bench = Bench::new(|_, before| match before {
        0 => Ok(bundle("other.test", 7, Some(60))),
        1..=5 => down(),
        _ => Ok(bundle("other.test", 8, Some(60))),
    });
    bench.federate("other.test").await;
    pass(1.0).await;
    let status = bench.status("other.test");
    assert_eq!((status.failures, status.last_error), (0, None));
    assert_eq!(
        (status.last_success, status.last_attempt),
        (Some(UnixTime::from_secs(NOW)), Some(UnixTime::from_secs(NOW)))
    );
    bench.clock.advance(Duration::from_secs(500));
    pass(130.0).await;
    let status = bench.status("other.test");
    assert_eq!(status.failures, 2);
    assert!(status.last_error.unwrap().contains("longer than"));
    assert_eq!(status.last_success, Some(UnixTime::from_secs(NOW)));
    assert!(status.next_attempt > Some(UnixTime::from_secs(NOW + 500)));
    assert_eq!(bench.held("other.test").unwrap().sequence, 7);
    pass(2_000.0).await;
    let gaps = bench.gaps();
    let bounds = [(54.0, 60.1), (54.0, 60.1), (108.0, 120.1), (216.0, 240.1), (270.0, 300.1), (270.0, 300.1)];
    for (gap, (least, most)) in gaps.iter().zip(bounds) {
        assert!((least..most).contains(gap), "{gaps:?}");
    }
    assert_eq!(bench.held("other.test").unwrap().sequence, 8);
    let status = bench.status("other.test");
    assert_eq!((status.failures, status.last_error), (0, None));
}

#[tokio::test(start_paused = true)]
async fn an_older_bundle_is_not_taken_and_one_without_sequence_is() {
    let served = Arc::new(Mutex::new(7));
    let serves = Arc::clone(&served);
    let bench = Bench::new(move |_, _| Ok(bundle("other.test", *serves.lock().unwrap(), Some(60))));
    bench.federate("other.test").await;
    pass(1.0).await;
    *served.lock().unwrap() = 5;
    let refused = bench.federation.refresh(name("other.test")).await.unwrap_err();
    assert!(refused.public.contains("version 5") && refused.public.contains("older than 7"), "{refused}");
    assert_eq!(bench.held("other.test").unwrap().sequence, 7);
    assert!(bench.status("other.test").last_error.unwrap().contains("by hand"));
    // By hand it is taken, and from then on the endpoint is as new.
    bench.commit(vec![Change::PutBundle(bundle("other.test", 4, None).into())]).await;
    bench.federation.refresh(name("other.test")).await.unwrap();
    assert_eq!(bench.held("other.test").unwrap().sequence, 5);
    *served.lock().unwrap() = 0;
    bench.federation.refresh(name("other.test")).await.unwrap();
    assert_eq!(bench.held("other.test").unwrap().sequence, 0);
}

#[tokio::test(start_paused = true)]
async fn a_changed_relationship_is_asked_at_once_and_an_ended_one_no_more() {
    let bench = Bench::new(|order, _| Ok(bundle(order.relationship.trust_domain.as_str(), 7, Some(60))));
    bench.federate("other.test").await;
    pass(1.0).await;
    let changed = FederationRelationship {
        url: EndpointUrl::parse("https://new.test/").unwrap(),
        ..FederationRelationship::clone(&relationship(name("other.test"), None))
    };
    bench.commit(vec![Change::PutFederation(changed.into())]).await;
    pass(1.0).await;
    assert_eq!(bench.asked(), 2);
    assert_eq!(bench.script.asked.lock().unwrap()[1].1.relationship.url.as_str(), "https://new.test/");
    let end = |state: &State| Ok(command::federation::end(state, vec![name("other.test")], &Actor::root()));
    let ended = bench.journal.submit(end).await;
    assert!(ended.unwrap()[0].is_ok());
    pass(1_000.0).await;
    assert_eq!(bench.asked(), 2);
    assert!(bench.held("other.test").is_none() && bench.federation.statuses().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_after_the_end_of_a_relationship_is_dropped() {
    let bench = Bench::slow(Duration::from_secs(5), |_, _| Ok(bundle("other.test", 7, None)));
    bench.federate("other.test").await;
    pass(1.0).await;
    let refreshing = bench.federation.clone();
    let refreshed = tokio::spawn(async move { refreshing.refresh(name("other.test")).await });
    pass(1.0).await;
    bench.commit(vec![Change::DeleteFederation(name("other.test"))]).await;
    assert_eq!(refreshed.await.unwrap().unwrap_err().reason, Reason::NotFound);
    pass(100.0).await;
    assert!(bench.held("other.test").is_none());
    // Made anew while the old fetch is still under way, it has a fetch of its own.
    bench.federate("other.test").await;
    pass(1.0).await;
    bench.commit(vec![Change::DeleteFederation(name("other.test"))]).await;
    pass(0.1).await;
    bench.federate("other.test").await;
    pass(4.5).await;
    assert_eq!(bench.asked(), 3);
    assert!(bench.held("other.test").is_none(), "what came for the one before is not taken for this one");
    pass(1.0).await;
    assert_eq!(bench.asked(), 3);
    assert_eq!(bench.held("other.test").unwrap().sequence, 7);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_an_svid_waits_for_the_bundle_of_its_trust_domain() {
    let endpoint_id = SpiffeId::parse("spiffe://third.test/endpoint").unwrap();
    let bench = Bench::new(|_, before| Ok(numbered(before, Some(60))));
    let by_svid = relationship(name("other.test"), Some(endpoint_id));
    bench.commit(vec![Change::PutFederation(by_svid)]).await;
    pass(POLL_WITHOUT.as_secs_f64() * 1.5).await;
    assert_eq!(bench.asked(), 0, "there is nothing to verify it by");
    let status = bench.status("other.test");
    assert!(status.last_error.unwrap().contains("\"third.test\", whose bundle is not held"));
    assert!(status.failures > 0);
    let proofs = || -> Vec<u64> {
        let asked = bench.script.asked.lock().unwrap();
        asked
            .iter()
            .map(|(_, order)| match &order.proof {
                Proof::Spiffe { bundle, .. } if bundle.trust_domain == name("third.test") => bundle.sequence,
                proof @ (Proof::Web | Proof::Spiffe { .. }) => panic!("{proof:?}"),
            })
            .collect()
    };
    bench.commit(vec![Change::PutBundle(bundle("third.test", 1, None).into())]).await;
    pass(0.1).await;
    assert_eq!(proofs(), [1], "at once");
    bench.commit(vec![Change::PutBundle(bundle("third.test", 2, None).into())]).await;
    pass(61.0).await;
    assert_eq!(proofs(), [1, 2], "by the newest bundle");
}

#[tokio::test(start_paused = true)]
async fn what_was_proved_by_a_bundle_that_was_replaced_meanwhile_is_fetched_again() {
    let endpoint_id = SpiffeId::parse("spiffe://third.test/endpoint").unwrap();
    let bench = Bench::slow(Duration::from_secs(5), |_, before| Ok(numbered(before, None)));
    let (leaked, next) = (Ca::new("spiffe://third.test"), Ca::new("spiffe://third.test"));
    let by_svid = relationship(name("other.test"), Some(endpoint_id));
    let third = leaked.bundle("third.test", 1);
    bench.commit(vec![Change::PutBundle(third.into()), Change::PutFederation(by_svid)]).await;
    pass(1.0).await;
    assert_eq!(bench.asked(), 1);
    let refreshing = bench.federation.clone();
    let refreshed = tokio::spawn(async move { refreshing.refresh(name("other.test")).await });
    bench.commit(vec![Change::PutBundle(next.bundle("third.test", 2).into())]).await;
    pass(4.5).await;
    assert_eq!(bench.asked(), 2, "at once");
    assert!(bench.held("other.test").is_none(), "whoever has the leaked key may have answered");
    pass(5.0).await;
    assert_eq!(bench.held("other.test").unwrap().sequence, 2);
    assert_eq!(bench.status("other.test").failures, 0);
    refreshed.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_was_set_by_hand_makes_a_failed_fetch_due() {
    let endpoint_id = SpiffeId::parse("spiffe://third.test/endpoint").unwrap();
    let bench = Bench::slow(Duration::from_secs(2), |_, before| match before {
        0..=2 => down(),
        _ => Ok(numbered(before, None)),
    });
    let third = |sequence| Ca::new("spiffe://third.test").bundle("third.test", sequence);
    let by_svid = relationship(name("other.test"), Some(endpoint_id));
    bench.commit(vec![Change::PutBundle(third(1).into()), Change::PutFederation(by_svid)]).await;
    pass(2.5).await;
    assert_eq!((bench.asked(), bench.status("other.test").failures), (1, 1));
    // What it proves itself by.
    bench.commit(vec![Change::PutBundle(third(2).into())]).await;
    pass(1.0).await;
    assert_eq!(bench.asked(), 2);
    // While it is under way: its own.
    bench.commit(vec![Change::PutBundle(bundle("other.test", 1, None).into())]).await;
    pass(1.5).await;
    assert_eq!((bench.asked(), bench.status("other.test").failures), (3, 2));
    pass(2.0).await;
    assert_eq!((bench.asked(), bench.status("other.test").failures), (3, 3));
    // Nothing else does.
    bench.commit(vec![Change::PutBundle(bundle("fourth.test", 1, None).into())]).await;
    pass(10.0).await;
    assert_eq!(bench.asked(), 3);
    bench.commit(vec![Change::PutBundle(bundle("other.test", 2, None).into())]).await;
    pass(2.5).await;
    assert_eq!(bench.held("other.test").unwrap().sequence, 4);
}

#[tokio::test(start_paused = true)]
async fn dozens_of_endpoints_that_do_not_answer_keep_nobody_waiting() {
    let bench = Bench::slow(Duration::from_secs(29), |order, _| {
        Ok(bundle(order.relationship.trust_domain.as_str(), 1, None))
    });
    let puts = (0..60).map(|at| Change::PutFederation(relationship(name(&format!("td{at}.test")), None)));
    bench.commit(puts.collect()).await;
    pass(0.5).await;
    assert_eq!(bench.asked(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_waits_for_a_fetch_that_began_after_it() {
    let bench = Bench::slow(Duration::from_secs(5), |_, before| match before {
        3 => down(),
        _ => Ok(numbered(before, None)),
    });
    let none = bench.federation.refresh(name("other.test")).await.unwrap_err();
    assert_eq!(none.reason, Reason::NotFound);
    bench.federate("other.test").await;
    pass(1.0).await;
    let began = Instant::now();
    bench.federation.refresh(name("other.test")).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(9), "the one under way, and another");
    assert_eq!(bench.held("other.test").unwrap().sequence, 2);
    let two = tokio::join!(
        bench.federation.refresh(name("other.test")),
        bench.federation.refresh(name("other.test")),
    );
    assert!(two.0.is_ok() && two.1.is_ok());
    assert_eq!(bench.asked(), 3, "one fetch serves both");
    let failed = bench.federation.refresh(name("other.test")).await.unwrap_err();
    assert_eq!(failed.reason, Reason::Internal);
    assert!(failed.public.starts_with("failed to refresh bundle: took longer"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_are_fetched_at_once_and_none_is_forgotten() {
    let bench = Bench::slow(Duration::from_secs(1), |order, _| {
        Ok(bundle(order.relationship.trust_domain.as_str(), 1, None))
    });
    let names: Vec<String> = (0..3 * FETCHES).map(|at| format!("td{at}.test")).collect();
    let puts = names.iter().map(|one| Change::PutFederation(relationship(name(one), None)));
    bench.commit(puts.collect()).await;
    for turn in 1..=3 {
        pass(0.5).await;
        assert_eq!(bench.asked(), turn * FETCHES);
        pass(0.55).await;
    }
    assert!(names.iter().all(|one| bench.held(one).is_some()));
}
