//! What is asked of the machine? Time, randomness and keys come through here, so that all of it can be replayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom, SystemRandom};

use crate::keys::{KeyError, KeyType, RingKey, SigningKey};
use crate::lifetime::Jitter;
use crate::secret::Secret;
use crate::time::UnixTime;

/// The seams: built once in `main` and passed down. Timers are tokio's.
#[derive(Clone)]
pub struct Host {
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Random bytes.
    pub entropy: Arc<dyn Entropy>,
    /// Private keys.
    pub keys: Arc<dyn Keys>,
}

/// The wall clock. It may step, backwards too: nothing may wait on it, only look.
pub trait Clock: Send + Sync {
    /// The present second.
    fn now(&self) -> UnixTime;
}

/// Random bytes that nobody can guess.
pub trait Entropy: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Where private keys come from.
pub trait Keys: Send + Sync {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    fn generate(&self, key_type: KeyType) -> Result<Arc<dyn SigningKey>, KeyError>;

    /// Reads a key from PKCS#8 DER.
    ///
    /// # Errors
    /// When it is no key of a kind that is generated here.
    fn load(&self, pkcs8: &Secret<Vec<u8>>) -> Result<Arc<dyn SigningKey>, KeyError>;
}

impl Host {
    /// The real machine: system clock, the operating system's randomness, keys by ring.
    #[expect(clippy::disallowed_methods, reason = "this is the real host")]
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy(SystemRandom::new())),
            keys: Arc::new(RingKeys),
        }
    }

    /// The present second.
    pub fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// `N` random bytes.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// A draw to spread renewals.
    pub fn jitter(&self) -> Jitter {
        Jitter::from_draw(u16::from_be_bytes(self.random_bytes()))
    }

    /// A random UUID (version 4), for ids that others may want to read as one.
    pub fn uuid(&self) -> String {
        uuid(self.random_bytes(), 4)
    }

    /// A UUID that begins with the second in which it is made and is random but for that (version 7): those that are made together
    /// stand together in whatever is sorted by them.
    pub fn uuid_by_time(&self) -> String {
        let mut bytes: [u8; 16] = self.random_bytes();
        let milliseconds = u64::try_from(self.now().secs()).unwrap_or(0).saturating_mul(1_000);
        bytes[..6].copy_from_slice(&milliseconds.to_be_bytes()[2..]);
        uuid(bytes, 7)
    }
}

fn uuid(mut bytes: [u8; 16], version: u8) -> String {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    let part = |from: u32, bits: u32| number >> from & ((1 << bits) - 1);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        part(96, 32),
        part(80, 16),
        part(64, 16),
        part(48, 16),
        part(0, 48)
    )
}

struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the real clock")]
    fn now(&self) -> UnixTime {
        let secs = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        UnixTime::from_secs(match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => secs(since),
            Err(before) => secs(before.duration()).saturating_neg(),
        })
    }
}

struct SystemEntropy(SystemRandom);

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("the operating system always gives randomness once it has booted");
    }
}

struct RingKeys;

impl Keys for RingKeys {
    #[expect(clippy::disallowed_methods, reason = "this is the real source of keys")]
    fn generate(&self, key_type: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        Ok(Arc::new(RingKey::generate(key_type, Box::new(SystemRandom::new()))?))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real source of keys")]
    fn load(&self, pkcs8: &Secret<Vec<u8>>) -> Result<Arc<dyn SigningKey>, KeyError> {
        Ok(Arc::new(RingKey::load(pkcs8, Box::new(SystemRandom::new()))?))
    }
}

/// A clock that stands still until it is told otherwise: for simulation and tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `now`.
    pub const fn new(now: UnixTime) -> Self {
        Self(AtomicI64::new(now.secs()))
    }

    /// Steps to `now`, which may lie in the past.
    pub fn set(&self, now: UnixTime) {
        self.0.store(now.secs(), Ordering::SeqCst);
    }

    /// Moves on by `span`, whole seconds.
    pub fn advance(&self, span: Duration) {
        self.set(self.now().plus(span));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_of_version_4_and_differ() {
        let host = Host::system();
        let (one, two) = (host.uuid(), host.uuid());
        assert_ne!(one, two);
        assert_eq!((one.len(), &one[14..15]), (36, "4"));
        assert!("89ab".contains(&one[19..20]));
    }

    #[test]
    fn uuids_by_time_stand_in_its_order() {
        let (mut host, clock) = (Host::system(), ManualClock::new(UnixTime::from_secs(1_790_000_000)));
        let clock = Arc::new(clock);
        host.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let (one, two) = (host.uuid_by_time(), host.uuid_by_time());
        clock.advance(Duration::from_secs(1));
        assert!(one != two && one.max(two.clone()) < host.uuid_by_time());
        let seconds = |uuid: &str| i64::from_str_radix(&uuid[..13].replace('-', ""), 16).unwrap() / 1_000;
        assert_eq!((two.len(), &two[14..15], seconds(&two)), (36, "7", 1_790_000_000));
        assert!("89ab".contains(&two[19..20]));
        clock.set(UnixTime::from_secs(-1));
        assert_eq!(seconds(&host.uuid_by_time()), 0);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(UnixTime::from_secs(5));
        clock.advance(Duration::from_secs(7));
        assert_eq!(clock.now().secs(), 12);
        clock.set(UnixTime::from_secs(1));
        assert_eq!(clock.now().secs(), 1);
    }

    #[test]
    fn the_system_clock_shows_this_century() {
        assert!(Host::system().now().secs() > 1_700_000_000);
    }
}
