//! Is every limit kept, and is there always something left for renewals?

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use passant_core::{Reason, Refusal, SpiffeId};
use passant_daemon::label::Label;
use tokio::time::{Instant, advance};

use super::{Caller, Quotas, Until, Work};
use crate::config::{Limits, Rate};
use crate::limits::CALLERS;
use crate::metrics::{Limit, Metrics};

const SECOND: Duration = Duration::from_secs(1);

impl Quotas {
    /// For a call that comes now, and begins its work at once.
    async fn admit(&self, work: Work, caller: &Caller, count: u32) -> Result<(), Refusal> {
        self.count(work, caller, count, self.until()).await.map(super::Counted::keep)
    }
}

fn quotas(change: impl FnOnce(&mut Limits)) -> (Quotas, Arc<Metrics>) {
    let (mut limits, metrics) = (Limits::default(), Arc::<Metrics>::default());
    change(&mut limits);
    (Quotas::new(&limits, Arc::clone(&metrics)), metrics)
}

fn rate(at_once: u32, per_second: u32) -> Rate {
    Rate { at_once, per_second }
}

fn agent(name: &str) -> Caller {
    Caller::Svid(SpiffeId::parse(&format!("spiffe://example.org/spire/agent/{name}")).unwrap())
}

fn address(number: u32) -> Caller {
    Caller::Address(IpAddr::V6(Ipv6Addr::from_bits(u128::from(number) << 64)))
}

fn refused(metrics: &Metrics, limit: Limit) -> u64 {
    metrics.limited.of(limit).count()
}

/// Lets all other tasks go on until they wait for time to pass.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

fn check(refusal: &Refusal, limit: Limit, wait: Duration) {
    assert_eq!(refusal.reason, Reason::Exhausted, "{refusal}");
    let key = format!("(limits.{} of the server's configuration)", limit.value());
    assert!(refusal.public.contains(&key), "{refusal}");
    let said = refusal.retry_after.unwrap();
    // To the nanosecond, as far as thirds of seconds have any.
    assert!(said.abs_diff(wait) < Duration::from_micros(1), "{said:?} {wait:?}");
    let seconds = format!("ask again in {} s", said.as_millis().div_ceil(1000));
    assert!(refusal.public.ends_with(&seconds), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_what_the_limit_says_and_then_hears_when_there_is_more() {
    let small = |limits: &mut Limits| {
        let small = rate(8, 4);
        limits.attestations_per_address = small;
        limits.signatures_per_agent = small;
        limits.mints_per_caller = small;
        limits.lists_per_caller = small;
    };
    for (work, fit, fill_in_ms, limit, one, other) in [
        (Work::Attest, 8, 250, Limit::AttestationsPerAddress, address(1), address(2)),
        (Work::Renew, 8, 250, Limit::SignaturesPerAgent, agent("a"), agent("b")),
        // A fifth of the fourth that is reserved is not theirs, and JWT-SVIDs have nothing of it.
        (Work::X509, 7, 263, Limit::SignaturesPerAgent, agent("a"), agent("b")),
        (Work::Jwt, 6, 333, Limit::SignaturesPerAgent, agent("a"), agent("b")),
        (Work::Mint, 8, 250, Limit::MintsPerCaller, Caller::User(1), Caller::User(2)),
        (Work::Sync, 8, 250, Limit::ListsPerCaller, agent("a"), agent("b")),
        (Work::List, 8, 250, Limit::ListsPerCaller, Caller::User(1), agent("b")),
        (Work::Bundle, 8, 250, Limit::ListsPerCaller, address(1), address(2)),
    ] {
        let (quotas, metrics) = quotas(small);
        for _ in 0..fit {
            quotas.admit(work, &one, 1).await.unwrap();
        }
        assert_eq!(refused(&metrics, limit), 0);
        let refusal = quotas.admit(work, &one, 1).await.unwrap_err();
        let wait = refusal.retry_after.unwrap();
        assert!(wait.as_millis().abs_diff(fill_in_ms) <= 1, "{work:?}: {wait:?}");
        check(&refusal, limit, wait);
        assert_eq!(refused(&metrics, limit), 1, "{work:?}");
        // Others have their own.
        quotas.admit(work, &other, 1).await.unwrap();
        advance(wait - Duration::from_nanos(1)).await;
        quotas.admit(work, &one, 1).await.unwrap_err();
        advance(Duration::from_nanos(1)).await;
        quotas.admit(work, &one, 1).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_svid_of_a_batch_counts() {
    let (quotas, _) = quotas(|limits| limits.signatures_per_agent = rate(400, 100));
    quotas.admit(Work::X509, &agent("a"), 300).await.unwrap();
    let refusal = quotas.admit(Work::X509, &agent("a"), 100).await.unwrap_err();
    // Of 95 percent of 400, 80 are left; the other 20 come in as many 95ths of a second.
    check(&refusal, Limit::SignaturesPerAgent, SECOND * 20 / 95);
    quotas.admit(Work::X509, &agent("a"), 80).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_can_never_fit_is_invalid_and_names_the_limit() {
    let (quotas, metrics) = quotas(|limits| {
        limits.signatures_per_agent = rate(100, 100);
        limits.signatures = rate(100, 100);
        limits.mints_per_caller = rate(100, 100);
    });
    let refusal = quotas.admit(Work::X509, &agent("a"), 96).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_after), (Reason::Invalid, None));
    assert!(refusal.public.contains("limits.signatures_per_agent.at_once"), "{refusal}");
    assert!(refusal.public.contains("at most 95"), "{refusal}");
    assert_eq!(refused(&metrics, Limit::SignaturesPerAgent), 1);
    quotas.admit(Work::X509, &agent("a"), 95).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn beyond_what_all_may_have_calls_wait_in_line_and_a_long_line_is_refused_at_once() {
    for (work, limit) in
        [(Work::Attest, Limit::Attestations), (Work::Jwt, Limit::Signatures), (Work::List, Limit::Lists)]
    {
        // Half of it is reserved where there are ranks: four at once and two a second are left.
        let (quotas, metrics) = quotas(|limits| {
            limits.attestations = rate(4, 2);
            limits.lists = rate(8, 4);
            // Attestations are signatures too: for them there are enough.
            limits.signatures = if work == Work::Jwt { rate(8, 4) } else { rate(1_000, 1_000) };
            limits.reserved_for_renewals = 50;
            limits.call_waits = 2 * SECOND;
        });
        let quotas = Arc::new(quotas);
        let began = Instant::now();
        let who = |number: u32| if work == Work::Jwt { agent(&number.to_string()) } else { address(number) };
        for number in 0..4 {
            quotas.admit(work, &who(number), 1).await.unwrap();
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        let mut waiting = tokio::task::JoinSet::new();
        for number in 4..8 {
            let (quotas, caller) = (Arc::clone(&quotas), who(number));
            waiting.spawn(async move { (number, quotas.admit(work, &caller, 1).await, began.elapsed()) });
        }
        settle().await;
        let refusal = quotas.admit(work, &who(8), 1).await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::ZERO, "it would not have helped to wait");
        check(&refusal, limit, Duration::from_millis(2_500));
        assert_eq!(refused(&metrics, limit), 1);
        for number in 4..8 {
            let (came, admitted, after) = waiting.join_next().await.unwrap().unwrap();
            admitted.unwrap();
            let due = SECOND / 2 * (number - 3);
            assert_eq!(came, number);
            assert!(after.abs_diff(due) <= Duration::from_millis(2), "{after:?} {due:?}");
        }
        // What was refused has cost its caller nothing.
        advance(10 * SECOND).await;
        quotas.admit(work, &who(8), 1).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_never_wait_behind_anything_else() {
    let (quotas, _) = quotas(|limits| {
        limits.signatures = rate(1_000, 100);
        limits.signatures_per_agent = rate(1_000, 100);
        limits.mints_per_caller = rate(1_000, 100);
        limits.call_waits = 5 * SECOND;
    });
    let quotas = Arc::new(quotas);
    // Everybody else at their limits, and as many in line as may wait.
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..2_000 {
        let quotas = Arc::clone(&quotas);
        let (work, caller) = match number % 3 {
            0 => (Work::Jwt, agent("greedy")),
            1 => (Work::Attest, address(number)),
            _ => (Work::Mint, Caller::User(1)),
        };
        flood.spawn(async move { quotas.admit(work, &caller, 1).await });
    }
    settle().await;
    let began = Instant::now();
    // Of the fourth that is reserved, all but a fifth.
    quotas.admit(Work::X509, &agent("modest"), 200).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    // Then other agents renew at their limits; the agents' own X509-SVIDs have what is left.
    quotas.admit(Work::X509, &agent("busy"), 900).await.unwrap_err();
    for _ in 0..50 {
        quotas.admit(Work::Renew, &agent("modest"), 1).await.unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    // And so in every second from then on, whatever waits.
    for _ in 0..5 {
        advance(SECOND).await;
        settle().await;
        let now = Instant::now();
        quotas.admit(Work::X509, &agent("modest"), 19).await.unwrap();
        quotas.admit(Work::Renew, &agent("modest"), 1).await.unwrap();
        assert_eq!(now.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agents_own_workloads_do_not_keep_it_from_renewing() {
    let (quotas, _) = quotas(|limits| limits.signatures_per_agent = rate(100, 1));
    while quotas.admit(Work::Jwt, &agent("a"), 1).await.is_ok() {}
    quotas.admit(Work::X509, &agent("a"), 20).await.unwrap();
    quotas.admit(Work::X509, &agent("a"), 1).await.unwrap_err();
    quotas.admit(Work::Renew, &agent("a"), 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lists_of_operators_do_not_keep_agents_from_synchronizing() {
    let (quotas, _) = quotas(|limits| {
        limits.lists = rate(100, 1);
        limits.lists_per_caller = rate(100, 1);
        limits.call_waits = SECOND;
    });
    let mut lists = 0;
    while quotas.admit(Work::List, &Caller::User(0), 1).await.is_ok() {
        lists += 1;
    }
    assert_eq!(lists, 75);
    let began = Instant::now();
    quotas.admit(Work::Sync, &agent("a"), 1).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_leaves_the_line() {
    let (quotas, _) = quotas(|limits| {
        limits.attestations = rate(1, 1);
        limits.attestations_per_address = rate(1, 1);
        limits.call_waits = SECOND;
    });
    quotas.admit(Work::Attest, &address(0), 1).await.unwrap();
    for number in 1..100 {
        let caller = address(number);
        let mut waiting = Box::pin(quotas.admit(Work::Attest, &caller, 1));
        let polled = waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending), "{number}: {polled:?}");
    }
    quotas.admit(Work::Attest, &address(100), 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_for_a_call_that_ends_before_its_work_is_given_back() {
    let (quotas, _) = quotas(|limits| {
        limits.attestations = rate(1, 1);
        limits.attestations_per_address = rate(1, 1);
        limits.call_waits = 5 * SECOND;
    });
    // Its work is never begun.
    drop(quotas.count(Work::Attest, &address(0), 1, quotas.until()).await.unwrap());
    let began = Instant::now();
    quotas.admit(Work::Attest, &address(0), 1).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    // Whoever leaves the line has its own rate still.
    let one = address(1);
    let mut waiting = Box::pin(quotas.admit(Work::Attest, &one, 1));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(waiting);
    quotas.admit(Work::Attest, &one, 1).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_waited_elsewhere_waits_no_longer_than_its_time() {
    let (quotas, metrics) = quotas(|limits| {
        limits.attestations = rate(1, 1);
        limits.call_waits = 5 * SECOND;
    });
    quotas.admit(Work::Attest, &address(0), 1).await.unwrap();
    let until = Until(Instant::now() + SECOND / 2);
    let refusal = quotas.count(Work::Attest, &address(1), 1, until).await.unwrap_err();
    check(&refusal, Limit::Attestations, SECOND);
    assert_eq!(refused(&metrics, Limit::Attestations), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_who_make_up_addresses_neither_fill_memory_nor_gain() {
    let (quotas, _) = quotas(|limits| {
        limits.attestations_per_address = rate(3, 1);
        limits.attestations = rate(10_000_000, 1_000_000);
        limits.signatures = rate(10_000_000, 1_000_000);
    });
    let most = u32::try_from(CALLERS).unwrap();
    for number in 0..most {
        quotas.admit(Work::Attest, &address(number), 1).await.unwrap();
    }
    assert_eq!(quotas.attestations_per_address.remembered(), CALLERS);
    // All who are new count as one; those who are known keep what they have.
    let late = async |number| quotas.admit(Work::Attest, &address(number), 1).await;
    for number in most..most + 3 {
        late(number).await.unwrap();
    }
    check(&late(most + 3).await.unwrap_err(), Limit::AttestationsPerAddress, SECOND);
    late(7).await.unwrap();
    late(7).await.unwrap();
    late(7).await.unwrap_err();
    assert_eq!(quotas.attestations_per_address.remembered(), CALLERS);
    // Whose bucket is full again is forgotten.
    advance(3 * SECOND).await;
    late(most + 4).await.unwrap();
    assert_eq!(quotas.attestations_per_address.remembered(), 1);
}

#[tokio::test]
async fn who_finds_no_place_reads_which_limit_it_is() {
    let (quotas, metrics) = quotas(|limits| limits.explanations = 5);
    for (limit, number) in [
        (Limit::CallsPerAgent, "of one agent 16"),
        (Limit::CallsPerAddress, "of one address 16"),
        (Limit::CallsPerOperator, "of one user 128"),
        (Limit::Explanations, "5 are found"),
        (Limit::Backups, "2 are sent"),
    ] {
        let refusal = quotas.crowded(limit);
        // Half of what it has waited, so that it does not stand in line all the time.
        check(&refusal, limit, 5 * SECOND);
        assert!(refusal.public.contains(number), "{refusal}");
        assert_eq!(refused(&metrics, limit), 1);
    }
    let (quotas, _) = self::quotas(|limits| limits.call_waits = SECOND);
    check(&quotas.crowded(Limit::CallsPerAgent), Limit::CallsPerAgent, SECOND);
}
