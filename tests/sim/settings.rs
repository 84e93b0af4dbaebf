//! How is the simulated trust domain configured? With lifetimes of minutes, so that a run sees several rotations.

use std::time::Duration;

use passant_core::{SpiffeId, TrustDomain};

/// Nodes, each with one agent.
pub(crate) const NODES: usize = 5;

/// Users that workloads run as.
pub(crate) const UIDS: u64 = 3;

/// Pods that workloads belong to.
pub(crate) const PODS: &[&str] = &["a", "b", "c"];

/// The audience of every token.
pub(crate) const AUDIENCE: &str = "spiffe://example.org/audience";

/// An authority has less than this left when its successor signs whoever lacks it: half of the half of its life in which
/// a successor is prepared.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// What clocks are off by at most, and a bit.
pub(crate) const CLOCKS_OFF: Duration = Duration::from_secs(300);

/// How long faults occur.
const TROUBLED: Duration = Duration::from_secs(260);

/// How long they do in one run of fifty: until authorities are forgotten, which is as long after their end as they lived.
const LONG_TROUBLED: Duration = Duration::from_secs(700);

/// How long faults occur in the run of this seed, unless said otherwise.
pub(crate) const fn troubled(seed: u64) -> Duration {
    if seed.is_multiple_of(50) { LONG_TROUBLED } else { TROUBLED }
}

/// How long it may take until all is as it should be again: the longest wait between two attempts after a refusal, and a
/// few rounds more.
pub(crate) const CONVERGED_WITHIN: Duration = Duration::from_secs(900);

/// The server's configuration.
pub(crate) const SERVER: &str = r#"
trust_domain = "example.org"
store = "memory"
keys = "memory"
ca_ttl = "4m"
default_x509_svid_ttl = "80s"
default_jwt_svid_ttl = "1m"
agent_ttl = "2m"
"#;

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("it is a name")
}

/// What the node at `place` is called, whatever its agent is called at the moment.
pub(crate) fn alias(place: usize) -> SpiffeId {
    trust_domain().join(&format!("/node/{place}")).expect("it is a path")
}
