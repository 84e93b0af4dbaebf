//! What do this crate's tests share? A clock that follows tokio's, a certificate authority, entries, and a server that
//! speaks SPIRE's services from memory.

pub(crate) mod ca;
pub(crate) mod pushing;
pub(crate) mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use passant_core::host::Clock;
use passant_core::{AuthorizedEntry, EntryId, Host, Selector, Selectors, SpiffeId, TrustDomain, UnixTime};
use tokio::time::Instant;

/// The second at which tests begin.
pub(crate) const NOW: i64 = 1_790_000_000;

/// A wall clock that moves with tokio's, so that paused time moves both.
struct Following {
    since: Instant,
}

impl Clock for Following {
    fn now(&self) -> UnixTime {
        UnixTime::from_secs(NOW).plus(self.since.elapsed())
    }
}

/// A host whose clock follows tokio's from [`NOW`]. Within a runtime only.
pub(crate) fn following_host() -> Host {
    host_with(Arc::new(Following { since: Instant::now() }))
}

/// A host with another clock.
pub(crate) fn host_with(clock: Arc<dyn Clock>) -> Host {
    Host { clock, ..Host::system() }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    trust_domain().join(path).unwrap()
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn entry_id(text: &str) -> EntryId {
    EntryId::parse(text).unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> Selectors {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

/// An entry `name` for `/name`, matched by `unix:uid:UID`.
pub(crate) fn entry(name: &str, uid: u32) -> AuthorizedEntry {
    AuthorizedEntry {
        id: entry_id(name),
        spiffe_id: id(&format!("/{name}")),
        selectors: selectors(&[&format!("unix:uid:{uid}")]),
        federates_with: [].into(),
        admin: false,
        downstream: false,
        store_svid: false,
        hint: String::new(),
        jwt_svid_include_jti: false,
        disable_x509_svid_prefetch: false,
        options: passant_core::entry::EntryOptions::default(),
        revision: 0,
        created_at: UnixTime::from_secs(NOW - 100),
    }
}

pub(crate) fn by_id(
    entries: impl IntoIterator<Item = AuthorizedEntry>,
) -> BTreeMap<EntryId, Arc<AuthorizedEntry>> {
    entries.into_iter().map(|entry| (entry.id.clone(), Arc::new(entry))).collect()
}

/// Waits, in tokio's time, until `met`; within an hour of it.
pub(crate) async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let end = Instant::now() + secs(3600);
    while !met() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
