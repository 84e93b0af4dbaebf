//! What do the processes of a simulation ask of their machine? A clock that may be wrong, drawn bytes, keys made beforehand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use passant_core::host::{Clock, Entropy, Keys};
use passant_core::keys::{KeyError, KeyType, SigningKey};
use passant_core::{Host, Secret, UnixTime};
use ring::digest::{SHA256, digest};
use tokio::time::Instant;

use crate::rng::Rng;

/// The second at which every simulation begins.
const BEGIN: i64 = 1_790_000_000;

/// Keys that one process may use before they come round again.
const SHARE: usize = 128;

/// Processes that have keys of their own: the server, five agents, and strangers.
const SHARES: usize = 8;

/// The wall clock of one machine: simulated time, and how far off it is.
#[derive(Clone)]
pub(crate) struct Wall {
    since: Instant,
    off_by_millis: Arc<AtomicI64>,
}

impl Wall {
    /// Right, until it is set off.
    pub(crate) fn new(since: Instant) -> Self {
        Self { since, off_by_millis: Arc::default() }
    }

    pub(crate) fn set_off(&self, millis: i64) {
        self.off_by_millis.store(millis, Ordering::SeqCst);
    }

    pub(crate) fn off_by_millis(&self) -> i64 {
        self.off_by_millis.load(Ordering::SeqCst)
    }

    /// The true second.
    pub(crate) fn truth(since: Instant) -> UnixTime {
        UnixTime::from_secs(BEGIN + i64::try_from(since.elapsed().as_secs()).unwrap_or(0))
    }
}

impl Clock for Wall {
    fn now(&self) -> UnixTime {
        let passed = i64::try_from(self.since.elapsed().as_millis()).unwrap_or(0);
        UnixTime::from_secs(BEGIN + (passed + self.off_by_millis()).div_euclid(1000))
    }
}

struct Drawn(Mutex<Rng>);

impl Entropy for Drawn {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
    }
}

/// Every key of this process, made once. Real keys, so that real checks are made of what they sign; in the order of
/// their hashes, so that whatever is ordered by a key's ID has the same order in each run, though not the same bytes.
struct Ring {
    keys: Vec<Arc<dyn SigningKey>>,
    by_pkcs8: BTreeMap<Vec<u8>, usize>,
}

fn ring() -> &'static Ring {
    static RING: OnceLock<Ring> = OnceLock::new();
    RING.get_or_init(|| {
        let source = Host::system().keys;
        let make = |_| source.generate(KeyType::EcP256).expect("the machine gives randomness");
        let mut keys: Vec<Arc<dyn SigningKey>> = (0..SHARE * SHARES).map(make).collect();
        keys.sort_by_cached_key(|key| digest(&SHA256, key.public_key()).as_ref().to_vec());
        let by_pkcs8 = keys.iter().enumerate().map(|(at, key)| (key.pkcs8().expose().clone(), at)).collect();
        Ring { keys, by_pkcs8 }
    })
}

/// The keys of one process, in an order that the seed chooses. Clones go on where the others are.
#[derive(Clone)]
pub(crate) struct KeyShare {
    order: Arc<Vec<usize>>,
    next: Arc<AtomicUsize>,
}

impl KeyShare {
    /// Share `number` of the keys; shares have no key in common.
    pub(crate) fn new(number: usize, rng: &mut Rng) -> Self {
        let mut order: Vec<usize> = (0..SHARE).map(|at| at * SHARES + number % SHARES).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, rng.index(at + 1));
        }
        Self { order: Arc::new(order), next: Arc::default() }
    }
}

impl Keys for KeyShare {
    fn generate(&self, key_type: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        if key_type != KeyType::EcP256 {
            return Err(KeyError::Failed);
        }
        let at = self.order[self.next.fetch_add(1, Ordering::SeqCst) % self.order.len()];
        Ok(Arc::clone(&ring().keys[at]))
    }

    fn load(&self, pkcs8: &Secret<Vec<u8>>) -> Result<Arc<dyn SigningKey>, KeyError> {
        let at = ring().by_pkcs8.get(pkcs8.expose()).ok_or(KeyError::Unreadable)?;
        Ok(Arc::clone(&ring().keys[*at]))
    }
}

/// The public half of a private key that was made here.
pub(crate) fn public_key_of(pkcs8: &[u8]) -> Option<&'static [u8]> {
    ring().by_pkcs8.get(pkcs8).map(|at| ring().keys[*at].public_key())
}

/// A machine with this clock and these keys, that draws from `rng`.
pub(crate) fn host(wall: &Wall, keys: &KeyShare, rng: Rng) -> Host {
    Host {
        clock: Arc::new(wall.clone()),
        entropy: Arc::new(Drawn(Mutex::new(rng))),
        keys: Arc::new(keys.clone()),
    }
}
