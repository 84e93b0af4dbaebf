//! What do the clients of the crash harness share? Where the server is, what it acknowledged, and what must not be.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use passant_core::bundle::Bundle;
use passant_core::x509_svid::X509Svid;
use passant_core::{Host, UnixTime};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;
use passant_tests::api::Operator;
use tonic::Status;

use super::churn::EntryValue;
use super::ledger::Ledger;
use super::nodes::{Node, NodeValue};
use super::record::Received;

/// The facts that clients can find violated at any time.
pub(crate) const ANSWERED: &str = "the server answered every call until it was killed";
pub(crate) const VERIFIES: &str = "every SVID received verified against the bundle of the moment";
pub(crate) const BUNDLES: &str = "no bundle went back, and no authority left before its end";
pub(crate) const RETRIED: &str = "an attestation whose answer was lost succeeded with the same key";

/// X509-SVIDs looked at again after a restart: the newest.
const LATEST: usize = 64;

/// What a client has under way with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Churn,
    Attestation,
    Minting,
}

/// Shared by all clients, for the whole show.
pub(crate) struct World {
    pub(crate) address: String,
    pub(crate) socket: PathBuf,
    pub(crate) host: Host,
    /// Entries that churn keeps up.
    pub(crate) entries: usize,
    books: Mutex<Books>,
    busy: [AtomicUsize; 3],
    /// Set just before the signal: from then on answers may be lost.
    killing: AtomicBool,
    numbers: AtomicU64,
}

/// What the harness knows.
#[derive(Default)]
pub(crate) struct Books {
    pub(crate) entries: Ledger<EntryValue>,
    pub(crate) nodes: Ledger<NodeValue>,
    /// Nodes that no client has in hand.
    pub(crate) pool: VecDeque<Node>,
    /// Keys of entries, by the client that churns them.
    pub(crate) shelves: BTreeMap<usize, Vec<String>>,
    pub(crate) received: Vec<Received>,
    pub(crate) latest: VecDeque<X509Svid>,
    pub(crate) bundle: Option<Arc<Bundle>>,
    pub(crate) retried: usize,
    pub(crate) violations: BTreeMap<&'static str, Vec<String>>,
}

/// The server is gone, or said something that is on the books as a violation: this client is done.
#[derive(Debug)]
pub(crate) struct Stopped;

/// Counts a client as busy until dropped.
pub(crate) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl World {
    pub(crate) fn new(address: String, socket: PathBuf, entries: usize) -> Self {
        Self {
            address,
            socket,
            host: Host::system(),
            entries,
            books: Mutex::default(),
            busy: [const { AtomicUsize::new(0) }; 3],
            killing: AtomicBool::new(false),
            numbers: AtomicU64::new(0),
        }
    }

    /// The books. Never held while something is waited for.
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that was not given out before.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> UnixTime {
        self.host.now()
    }

    /// Counts a client as busy with `work`, until the answer is here.
    pub(crate) fn busy(&self, work: Work) -> Busy<'_> {
        let counter = self.counter(work);
        counter.fetch_add(1, Ordering::SeqCst);
        Busy(counter)
    }

    /// Whether some client waits for an answer in `work`.
    pub(crate) fn is_busy(&self, work: Work) -> bool {
        self.counter(work).load(Ordering::SeqCst) > 0
    }

    fn counter(&self, work: Work) -> &AtomicUsize {
        match work {
            Work::Churn => &self.busy[0],
            Work::Attestation => &self.busy[1],
            Work::Minting => &self.busy[2],
        }
    }

    /// Says whether the server is about to die: answers may be lost, and clients stop.
    pub(crate) fn set_killing(&self, killing: bool) {
        self.killing.store(killing, Ordering::SeqCst);
    }

    pub(crate) fn is_killing(&self) -> bool {
        self.killing.load(Ordering::SeqCst)
    }

    /// Puts down what must not be.
    pub(crate) fn violation(&self, fact: &'static str, what: String) {
        self.books().violations.entry(fact).or_default().push(what);
    }

    /// What to make of a call that failed: expected while the server dies, a violation before.
    pub(crate) fn failed(&self, what: &str, status: &Status) -> Stopped {
        if !self.is_killing() {
            self.violation(ANSWERED, format!("{what}: {status}"));
        }
        Stopped
    }

    /// As [`World::failed`], for a connection.
    pub(crate) fn no_connection(&self, error: &anyhow::Error) -> Stopped {
        if !self.is_killing() {
            self.violation(ANSWERED, format!("connect: {error:#}"));
        }
        Stopped
    }

    /// Clients of the operators' socket.
    pub(crate) async fn operator(&self) -> Result<Operator, Stopped> {
        Operator::connect(&self.socket).await.map_err(|error| self.no_connection(&error))
    }

    /// The newest bundle that was seen.
    pub(crate) fn bundle(&self) -> Result<Arc<Bundle>, Stopped> {
        self.books().bundle.clone().ok_or(Stopped)
    }

    /// Asks for the bundle, and looks whether it follows from the one before.
    pub(crate) async fn see_bundle(&self, operator: &Operator) -> Result<Arc<Bundle>, Stopped> {
        let asked = operator.bundles().get_bundle(GetBundleRequest { output_mask: None }).await;
        let wire = asked.map_err(|status| self.failed("get the bundle", &status))?.into_inner();
        let bundle = Arc::new(convert::bundle::from_wire(&wire).map_err(|error| {
            self.violation(BUNDLES, error.to_string());
            Stopped
        })?);
        let before = self.books().bundle.replace(Arc::clone(&bundle));
        for what in before.iter().flat_map(|before| lost(before, &bundle, self.now())) {
            self.violation(BUNDLES, what);
        }
        Ok(bundle)
    }

    /// Keeps an X509-SVID that was received, once it is known to verify.
    pub(crate) async fn receive(
        &self,
        operator: &Operator,
        svid: &X509Svid,
        kind: &'static str,
    ) -> Result<(), Stopped> {
        // An authority may have begun to sign since the bundle was asked for.
        if svid.verify(&*self.bundle()?, self.now()).is_err() {
            let bundle = self.see_bundle(operator).await?;
            if let Err(error) = svid.verify(&bundle, self.now()) {
                self.violation(VERIFIES, error.to_string());
            }
        }
        let mut books = self.books();
        books.received.push(Received::x509(svid, kind));
        books.latest.push_back(svid.clone());
        if books.latest.len() > LATEST {
            books.latest.pop_front();
        }
        Ok(())
    }

    /// Looks whether the X509-SVIDs received last still verify, those that have not expired.
    pub(crate) fn verify_latest(&self) -> anyhow::Result<usize> {
        let now = self.now();
        let mut books = self.books();
        let bundle = books.bundle.clone().context("no bundle was seen")?;
        let valid: Vec<&X509Svid> = books.latest.iter().filter(|svid| svid.not_after() > now).collect();
        let count = valid.len();
        let faults: Vec<String> = valid
            .into_iter()
            .filter_map(|svid| svid.verify(&bundle, now).err())
            .map(|error| format!("after a restart: {error}"))
            .collect();
        books.violations.entry(VERIFIES).or_default().extend(faults);
        Ok(count)
    }
}

/// What `after` lacks of `before` at `now`.
fn lost(before: &Bundle, after: &Bundle, now: UnixTime) -> Vec<String> {
    let mut lost = Vec::new();
    if after.sequence < before.sequence {
        lost.push(format!("sequence {} came after {}", after.sequence, before.sequence));
    }
    for authority in &before.x509_authorities {
        let ended = x509_end(&authority.der).is_none_or(|end| end <= now);
        if !ended && !after.x509_authorities.contains(authority) {
            lost.push(format!("an X.509 authority of sequence {} is gone", before.sequence));
        }
    }
    for authority in &before.jwt_authorities {
        let ended = authority.expires_at.is_none_or(|end| end <= now);
        if !ended && !after.jwt_authorities.iter().any(|one| one.key_id == authority.key_id) {
            lost.push(format!("JWT authority {} is gone", authority.key_id));
        }
    }
    lost
}

fn x509_end(der: &[u8]) -> Option<UnixTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(UnixTime::from_secs(certificate.validity().not_after.timestamp()))
}

/// Draws by lot.
pub(crate) struct Dice(Host);

impl Dice {
    pub(crate) fn new(host: &Host) -> Self {
        Self(host.clone())
    }

    /// A number below `bound`; 0 when that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let drawn = usize::from_ne_bytes(self.0.random_bytes());
        if bound == 0 { 0 } else { drawn % bound }
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A span of up to `most` milliseconds, in microseconds.
    pub(crate) fn span(&mut self, most: usize) -> std::time::Duration {
        let micros = self.below(most * 1000);
        std::time::Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use passant_core::TrustDomain;
    use passant_core::bundle::JwtAuthority;

    use super::*;

    #[test]
    fn a_bundle_that_goes_back_or_loses_an_authority_is_noticed() {
        let with = |sequence, keys: &[(&str, i64)]| {
            let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
            bundle.sequence = sequence;
            bundle.jwt_authorities = keys
                .iter()
                .map(|(key_id, end)| JwtAuthority {
                    key_id: (*key_id).to_owned(),
                    public_key: Vec::new(),
                    expires_at: Some(UnixTime::from_secs(*end)),
                    tainted: false,
                })
                .collect();
            bundle
        };
        let now = UnixTime::from_secs(100);
        let before = with(4, &[("a", 100), ("b", 101)]);
        assert_eq!(lost(&before, &with(4, &[("a", 100), ("b", 101)]), now), Vec::<String>::new());
        assert_eq!(lost(&before, &with(5, &[("b", 101), ("c", 500)]), now), Vec::<String>::new());
        assert_eq!(lost(&before, &with(5, &[("a", 100)]), now).len(), 1);
        assert_eq!(lost(&before, &with(3, &[("b", 101)]), now).len(), 1);
    }
}
