//! Which selectors does a peer have, by all attestors together?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passant_attest::peer::{Peer, PeerError, PeerIdentity};
use passant_attest::workload::{AttestError, WorkloadAttestor};
use passant_core::Selectors;
use passant_daemon::log_rate::LogRate;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::metrics::{Attestor, Metrics};
use crate::workload_api::limits::{ATTESTATIONS, ATTESTATIONS_PER_USER, ATTESTOR};

/// Every attestor of this agent.
pub(crate) struct Attestation {
    attestors: Vec<Arc<dyn WorkloadAttestor>>,
    slots: Semaphore,
    /// Slots by user: one who makes attestation slow makes it slow for itself.
    slots_of: Mutex<BTreeMap<u32, Arc<Semaphore>>>,
    /// How long what an attestor found is kept while it cannot be asked.
    max_age: Duration,
    metrics: Arc<Metrics>,
    /// What the log is told of peers of which nothing could be found out, by user.
    pub(crate) failures: LogRate<u32>,
    /// What it is told of attestors that failed, by attestor and user.
    attestor_failures: LogRate<(&'static str, u32)>,
}

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// What the attestors found, now or not longer than `evidence_max_age` ago.
    pub(crate) selectors: Selectors,
    /// Whether an attestor could not be asked and nothing recent is known from it: that something does *not* match is
    /// then not known.
    pub(crate) is_partial: bool,
    /// The attestors that found it, in order of their names.
    pub(crate) attestors: Vec<&'static str>,
    /// When the oldest of it was found.
    pub(crate) at: Instant,
}

/// What was found of one peer so far, to be handed in again.
#[derive(Debug)]
pub(crate) struct Known {
    identity: PeerIdentity,
    findings: BTreeMap<&'static str, Finding>,
    evidence: Arc<Evidence>,
    at: Instant,
}

#[derive(Debug)]
struct Finding {
    selectors: Selectors,
    at: Instant,
}

/// Why one attestor told nothing.
#[derive(Debug, Error)]
pub(crate) enum Unanswered {
    /// It failed.
    #[error(transparent)]
    Failed(AttestError),
    /// It took longer than [`ATTESTOR`].
    #[error("workload attestor did not answer in time")]
    Late,
}

/// Why nothing is known of a peer.
#[derive(Debug, Error)]
pub(crate) enum AttestationError {
    /// The peer is gone, or not the process that connected.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// It moved to another control group in the middle, twice.
    #[error("control group of the peer keeps changing")]
    Unsteady,
    /// No attestor could tell anything.
    #[error("no workload attestor found out anything about the peer")]
    NothingFound,
}

impl Attestation {
    /// All of `attestors`; what one found is kept for `max_age` while it fails.
    pub(crate) fn new(
        attestors: Vec<Arc<dyn WorkloadAttestor>>,
        max_age: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            attestors,
            slots: Semaphore::new(ATTESTATIONS),
            slots_of: Mutex::default(),
            max_age,
            metrics,
            failures: LogRate::default(),
            attestor_failures: LogRate::default(),
        }
    }

    /// What is known of `peer` now, having asked less than `reuse` ago.
    ///
    /// The peer itself is read on every call, and again after the attestors have answered, so that the selectors are of
    /// the process that connected. Nothing found in another control group is kept.
    pub(crate) async fn of(
        &self,
        peer: &Peer,
        known: &mut Option<Known>,
        reuse: Duration,
    ) -> Result<Arc<Evidence>, AttestationError> {
        for _ in 0..2 {
            let identity = peer.identity()?;
            if known.as_ref().is_some_and(|known| known.identity != identity) {
                *known = None;
            }
            if let Some(known) = known
                && known.at.elapsed() < reuse
            {
                return known.tell();
            }
            // The semaphores are never closed; without them there would only be no bound.
            let own_slot = self.slots_of(peer.uid()).acquire_owned().await;
            let slot = self.slots.acquire().await;
            let answers = self.ask_all(peer).await;
            drop((own_slot, slot));
            if peer.identity()? != identity {
                *known = None;
                continue;
            }
            let findings = known.take().map(|known| known.findings).unwrap_or_default();
            return known.insert(self.combine(identity, findings, answers)).tell();
        }
        Err(AttestationError::Unsteady)
    }

    /// The slots of the user `uid`. Those of users who neither hold one nor wait for one are forgotten.
    fn slots_of(&self, uid: u32) -> Arc<Semaphore> {
        let mut slots = self.slots_of.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slots| Arc::strong_count(slots) > 1);
        Arc::clone(slots.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(ATTESTATIONS_PER_USER))))
    }

    /// The attestors that are asked.
    pub(crate) fn methods(&self) -> Vec<&'static str> {
        self.attestors.iter().map(|attestor| attestor.method()).collect()
    }

    /// Each attestor's selectors: none where it refused, no answer where it failed.
    async fn ask_all(&self, peer: &Peer) -> BTreeMap<&'static str, Selectors> {
        let mut answers = BTreeMap::new();
        for (method, answer) in self.ask_each(peer).await {
            match answer {
                Ok(selectors) => drop(answers.insert(method, selectors)),
                Err(Unanswered::Failed(AttestError::Peer(PeerError::Gone))) => {}
                Err(Unanswered::Failed(error)) => {
                    if let Some(left_out) = self.attestor_failures.line((method, peer.uid())) {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        warn!(method, pid = peer.pid(), %error, cause, left_out, "workload attestor failed");
                    }
                    if matches!(error, AttestError::Refused(_)) {
                        // That it has none is known; what was found before does not count any more.
                        answers.insert(method, Selectors::new());
                    }
                }
                Err(Unanswered::Late) => {
                    if let Some(left_out) = self.attestor_failures.line((method, peer.uid())) {
                        warn!(method, pid = peer.pid(), left_out, "workload attestor did not answer in time");
                    }
                }
            }
        }
        answers
    }

    /// What each attestor says of `peer`, within its time. One that broke is left out.
    pub(crate) async fn ask_each(
        &self,
        peer: &Peer,
    ) -> BTreeMap<&'static str, Result<Selectors, Unanswered>> {
        let mut asked = JoinSet::new();
        for attestor in &self.attestors {
            let (attestor, peer) = (Arc::clone(attestor), peer.clone());
            let metrics = Arc::clone(&self.metrics);
            asked.spawn(async move {
                let began = Instant::now();
                let answer = timeout(ATTESTOR, attestor.attest(&peer)).await;
                let label = Attestor::named(attestor.method());
                metrics.attestation.of(label).since(began);
                match &answer {
                    Ok(Ok(_) | Err(AttestError::Peer(PeerError::Gone))) => {}
                    Ok(Err(_)) | Err(_) => metrics.attestation_failures.of(label).inc(),
                }
                (attestor.method(), answer)
            });
        }
        let mut answers = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((method, Ok(answer))) => drop(answers.insert(method, answer.map_err(Unanswered::Failed))),
                Ok((method, Err(_))) => drop(answers.insert(method, Err(Unanswered::Late))),
                Err(error) => warn!(pid = peer.pid(), %error, "workload attestor broke"),
            }
        }
        answers
    }

    fn combine(
        &self,
        identity: PeerIdentity,
        mut findings: BTreeMap<&'static str, Finding>,
        answers: BTreeMap<&'static str, Selectors>,
    ) -> Known {
        let now = Instant::now();
        for (method, selectors) in answers {
            findings.insert(method, Finding { selectors, at: now });
        }
        findings.retain(|_, finding| now.duration_since(finding.at) <= self.max_age);
        let selectors = findings.values().flat_map(|finding| finding.selectors.iter().cloned()).collect();
        let is_partial = self.attestors.iter().any(|attestor| !findings.contains_key(attestor.method()));
        let attestors = findings.keys().copied().collect();
        let at = findings.values().map(|finding| finding.at).min().unwrap_or(now);
        Known {
            identity,
            findings,
            evidence: Arc::new(Evidence { selectors, is_partial, attestors, at }),
            at: now,
        }
    }
}

impl Known {
    fn tell(&self) -> Result<Arc<Evidence>, AttestationError> {
        if self.evidence.is_partial && self.evidence.selectors.is_empty() {
            return Err(AttestationError::NothingFound);
        }
        Ok(Arc::clone(&self.evidence))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use passant_core::Selector;
    use tokio::net::UnixStream;
    use tokio::time::advance;

    use super::*;

    /// What [`Scripted`] is told to refuse by.
    const REFUSES: &str = "!";

    /// Answers what it was told to; `None` fails.
    pub(crate) struct Scripted {
        method: &'static str,
        answer: Mutex<Option<&'static str>>,
    }

    impl Scripted {
        pub(crate) fn new(method: &'static str, answer: Option<&'static str>) -> Arc<Self> {
            Arc::new(Self { method, answer: Mutex::new(answer) })
        }

        pub(crate) fn set(&self, answer: Option<&'static str>) {
            *self.answer.lock().unwrap() = answer;
        }
    }

    impl WorkloadAttestor for Scripted {
        fn method(&self) -> &'static str {
            self.method
        }

        fn attest<'a>(
            &'a self,
            _peer: &'a Peer,
        ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
            let answer = *self.answer.lock().unwrap();
            Box::pin(async move {
                let text = answer.ok_or(AttestError::Failed { what: "told to".to_owned(), source: None })?;
                if text == REFUSES {
                    return Err(AttestError::Refused("told to".to_owned()));
                }
                Ok(text.split_whitespace().map(|it| Selector::parse(it).unwrap()).collect())
            })
        }
    }

    struct Never;

    impl WorkloadAttestor for Never {
        fn method(&self) -> &'static str {
            "never"
        }

        fn attest<'a>(
            &'a self,
            _peer: &'a Peer,
        ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
            Box::pin(std::future::pending())
        }
    }

    const MAX_AGE: Duration = Duration::from_secs(300);

    fn of(attestors: &[&Arc<Scripted>]) -> Attestation {
        let attestors = attestors.iter().map(|it| Arc::clone(it) as Arc<dyn WorkloadAttestor>).collect();
        Attestation::new(attestors, MAX_AGE, Arc::default())
    }

    fn own_peer() -> (Peer, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        (Peer::of(&one).unwrap(), two)
    }

    fn texts(evidence: &Evidence) -> Vec<String> {
        evidence.selectors.iter().map(ToString::to_string).collect()
    }

    /// Takes a second for each peer, and counts the peers that it works on.
    #[derive(Default)]
    struct Slow {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl WorkloadAttestor for Slow {
        fn method(&self) -> &'static str {
            "slow"
        }

        fn attest<'a>(
            &'a self,
            _peer: &'a Peer,
        ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
            Box::pin(async {
                let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.now.fetch_sub(1, Ordering::SeqCst);
                Ok(Selectors::default())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_is_attested_a_few_times_at_once_and_is_forgotten_afterwards() {
        let slow = Arc::new(Slow::default());
        let attestation = Arc::new(Attestation::new(vec![Arc::clone(&slow) as _], MAX_AGE, Arc::default()));
        let mut calls = JoinSet::new();
        for _ in 0..3 * ATTESTATIONS_PER_USER {
            let attestation = Arc::clone(&attestation);
            calls.spawn(async move {
                let (peer, _open) = own_peer();
                attestation.of(&peer, &mut None, Duration::ZERO).await.map(drop)
            });
        }
        for ended in calls.join_all().await {
            ended.unwrap();
        }
        assert_eq!(slow.most.load(Ordering::SeqCst), ATTESTATIONS_PER_USER);
        drop(attestation.slots_of(u32::MAX));
        assert_eq!(attestation.slots_of.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn attestors_add_up() {
        let (peer, _open) = own_peer();
        let (a, b) = (Scripted::new("a", Some("a:1")), Scripted::new("b", Some("b:1 b:2")));
        let evidence = of(&[&a, &b]).of(&peer, &mut None, Duration::ZERO).await.unwrap();
        assert_eq!(texts(&evidence), ["a:1", "b:1", "b:2"]);
        assert!(!evidence.is_partial);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_attestor_finds_counts_although_another_fails() {
        let (peer, _open) = own_peer();
        let (a, b) = (Scripted::new("a", Some("a:1")), Scripted::new("b", None));
        let evidence = of(&[&a, &b]).of(&peer, &mut None, Duration::ZERO).await.unwrap();
        assert_eq!(texts(&evidence), ["a:1"]);
        assert!(evidence.is_partial);
    }

    #[tokio::test(start_paused = true)]
    async fn all_failing_is_no_evidence_and_none_at_all_is_complete() {
        let (peer, _open) = own_peer();
        let a = Scripted::new("a", None);
        let error = of(&[&a]).of(&peer, &mut None, Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, AttestationError::NothingFound));
        a.set(Some(""));
        assert!(!of(&[&a]).of(&peer, &mut None, Duration::ZERO).await.unwrap().is_partial);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_attestor_keeps_its_last_answer_up_to_the_maximum_age() {
        let (peer, _open) = own_peer();
        let a = Scripted::new("a", Some("a:1"));
        let attestation = of(&[&a]);
        let mut known = None;
        attestation.of(&peer, &mut known, Duration::ZERO).await.unwrap();
        a.set(None);
        advance(MAX_AGE).await;
        let evidence = attestation.of(&peer, &mut known, Duration::ZERO).await.unwrap();
        assert_eq!((texts(&evidence), evidence.is_partial), (vec!["a:1".to_owned()], false));
        advance(Duration::from_millis(1)).await;
        assert!(attestation.of(&peer, &mut known, Duration::ZERO).await.is_err());
        a.set(Some("a:2"));
        assert_eq!(texts(&attestation.of(&peer, &mut known, Duration::ZERO).await.unwrap()), ["a:2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusing_attestor_takes_back_its_last_answer_at_once() {
        let (fine, refusing) = (Scripted::new("a", Some("a:1")), Scripted::new("b", Some("b:2")));
        let attestation = of(&[&fine, &refusing]);
        let (peer, _end) = own_peer();
        let mut known = None;
        let evidence = attestation.of(&peer, &mut known, Duration::ZERO).await.unwrap();
        assert_eq!(texts(&evidence), ["a:1", "b:2"]);
        refusing.set(Some(REFUSES));
        let evidence = attestation.of(&peer, &mut known, Duration::ZERO).await.unwrap();
        assert_eq!((texts(&evidence), evidence.is_partial), (vec!["a:1".to_owned()], false));
        // Alone it says definitely that there is nothing.
        let attestation = of(&[&refusing]);
        let evidence = attestation.of(&peer, &mut None, Duration::ZERO).await.unwrap();
        assert_eq!((texts(&evidence), evidence.is_partial), (Vec::new(), false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_shared_for_as_long_as_asked() {
        let (peer, _open) = own_peer();
        let a = Scripted::new("a", Some("a:1"));
        let attestation = of(&[&a]);
        let mut known = None;
        attestation.of(&peer, &mut known, Duration::ZERO).await.unwrap();
        a.set(Some("a:2"));
        let reuse = Duration::from_secs(1);
        advance(Duration::from_millis(999)).await;
        assert_eq!(texts(&attestation.of(&peer, &mut known, reuse).await.unwrap()), ["a:1"]);
        advance(Duration::from_millis(1)).await;
        assert_eq!(texts(&attestation.of(&peer, &mut known, reuse).await.unwrap()), ["a:2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestor_that_hangs_is_given_up() {
        let (peer, _open) = own_peer();
        let a = Scripted::new("a", Some("a:1"));
        let attestation = Attestation::new(vec![a, Arc::new(Never)], MAX_AGE, Arc::default());
        let start = Instant::now();
        let evidence = attestation.of(&peer, &mut None, Duration::ZERO).await.unwrap();
        assert_eq!((texts(&evidence), evidence.is_partial), (vec!["a:1".to_owned()], true));
        assert!(start.elapsed() >= ATTESTOR);
    }
}
