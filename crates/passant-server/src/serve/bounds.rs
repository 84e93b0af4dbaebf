//! How many connections may there be at once, and how many of one peer?

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits;

/// What the limits on connections come down to in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Handshakes that are worked on. As many again may wait at least; more on descriptors that agents do not use.
    pub(super) handshakes: usize,
    /// Connections of agents.
    pub(super) agents: usize,
    /// Connections that showed any other X509-SVID.
    pub(super) workloads: usize,
    /// Connections that showed none.
    pub(super) strangers: usize,
    /// Connections on the operator socket.
    pub(super) local: usize,
}

impl Bounds {
    /// What the limits allow, within the files that this process may open. Asks the system for as many as it takes.
    ///
    /// Whoever can connect could else use up all descriptors, and the store and the decision record stop for good when
    /// they cannot open their files.
    pub(super) fn of_process() -> Self {
        Self::within(open_files())
    }

    fn within(files: u64) -> Self {
        let part = usize::try_from(files.saturating_sub(limits::FILES) / 16).unwrap_or(usize::MAX);
        let bound = |most: usize, parts: usize| most.min(part.saturating_mul(parts)).max(1);
        let (handshakes, workloads) = (bound(limits::HANDSHAKES, 1), bound(limits::WORKLOADS, 1));
        let (strangers, local) = (bound(limits::STRANGERS, 2), bound(limits::LOCAL_CONNECTIONS, 1));
        // Agents have what the others leave, which is more than half. Those whose handshake waits count too.
        let others = limits::FILES + (2 * handshakes + workloads + strangers + local) as u64;
        let left = usize::try_from(files.saturating_sub(others)).unwrap_or(usize::MAX);
        Self { handshakes, agents: left.clamp(1, limits::CONNECTIONS), workloads, strangers, local }
    }
}

/// How many files this process may open, after raising that as far as is allowed and of use. Shells and service managers
/// start processes with a low limit that they may raise themselves.
fn open_files() -> u64 {
    let wanted = limits::FILES.saturating_add(2 * limits::CONNECTIONS as u64);
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let most = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    if most < wanted && current < wanted {
        tracing::warn!(limit = most, wanted, "the limit of open files is low: fewer connections are taken");
    }
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, limit = current, "failed to raise the limit of open files");
            current
        }
    }
}

/// Bounds how much of something each of many may have. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Shares<K> {
    most: usize,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

/// One unit, given back when dropped.
#[derive(Debug)]
pub(super) struct Share<K: Ord> {
    of: K,
    taken: Arc<Mutex<BTreeMap<K, usize>>>,
}

impl<K: Ord + Clone> Shares<K> {
    /// At most `most`, which is not zero, for each.
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// One more for `of`, unless it has all it may have.
    pub(super) fn take(&self, of: &K) -> Option<Share<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.get(of).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        taken.insert(of.clone(), count + 1);
        Some(Share { of: of.clone(), taken: Arc::clone(&self.taken) })
    }
}

impl<K: Ord> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.of) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.of)),
        }
    }
}

/// Whom an address counts for: an IPv6 network of 64 bits is one peer, since whoever has one address there has all.
pub(crate) fn origin(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::{Bounds, Shares, origin};
    use crate::limits;

    #[test]
    fn all_connections_together_leave_files_for_the_rest() {
        for files in [64, 128, 256, 1024, 4096, 65_536, 1 << 20] {
            let bounds = Bounds::within(files);
            let Bounds { handshakes, agents, workloads, strangers, local } = bounds;
            let all = 2 * handshakes + agents + workloads + strangers + local;
            assert!(all as u64 + limits::FILES <= files.max(limits::FILES + 6), "{files}: {bounds:?}");
        }
        assert_eq!(Bounds::within(u64::MAX).agents, limits::CONNECTIONS);
        // As many as a fleet of ten thousand needs, where twenty thousand files are allowed.
        assert!(Bounds::within(20_000).agents > 15_000);
        assert_eq!(Bounds::within(u64::MAX).strangers, limits::STRANGERS);
    }

    #[test]
    fn each_has_its_share_and_gives_it_back() {
        let shares = Shares::new(2);
        let first = shares.take(&"a").unwrap();
        let _second = shares.take(&"a").unwrap();
        assert!(shares.take(&"a").is_none());
        assert!(shares.take(&"b").is_some());
        drop(first);
        let _third = shares.take(&"a").unwrap();
        assert!(shares.take(&"a").is_none());
        assert_eq!(shares.taken.lock().unwrap().len(), 1);
    }

    #[test]
    fn addresses_of_one_network_are_one_origin() {
        let origin = |text: &str| origin(text.parse().unwrap()).to_string();
        assert_eq!(origin("192.0.2.7:1"), "192.0.2.7");
        assert_eq!(origin("[::ffff:192.0.2.7]:1"), "192.0.2.7");
        assert_eq!(origin("[2001:db8:1:2:3:4:5:6]:1"), "2001:db8:1:2::");
    }
}
