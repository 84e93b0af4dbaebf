//! Which JWT-SVID does a workload get: a cached one, or a new one from the server?

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::jwt_svid::JwtSvid;
use passant_core::lifetime::renew_at;
use passant_core::refusal::Reason;
use passant_core::{AuthorizedEntry, EntryId, Host, Refusal, UnixTime};
use tokio::task::JoinSet;
use tracing::warn;

use crate::limits;

/// Who issues JWT-SVIDs: the server, seen from the cache.
pub trait JwtIssuer: Send + Sync {
    /// Asks for one new JWT-SVID of `entry`. The answer is checked: it names the entry's SPIFFE ID and each audience.
    fn issue(
        &self,
        entry: Arc<AuthorizedEntry>,
        audience: Vec<String>,
    ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>>;
}

/// JWT-SVIDs by entry and audience. A token is fresh until half its life, spread; then a new one is fetched, and the old
/// one is returned as long as it is valid if the server fails. Requests for the same token share one fetch.
#[derive(Clone)]
pub(crate) struct JwtCache {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    issuer: Arc<dyn JwtIssuer>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    cells: BTreeMap<Key, Used>,
    uses: u64,
    bundle: Option<Arc<Bundle>>,
}

struct Used {
    cell: Arc<Cell>,
    last_use: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    entry: EntryId,
    audience: BTreeSet<String>,
}

/// One token, and the one fetch that may be under way for it.
#[derive(Default)]
struct Cell {
    held: Mutex<Option<HeldToken>>,
    /// Fetches that have ended.
    ended: AtomicU64,
    /// Held during a fetch; keeps why the last one failed.
    flight: tokio::sync::Mutex<Option<(Reason, String)>>,
}

#[derive(Clone)]
struct HeldToken {
    svid: JwtSvid,
    revision: u64,
    renew_at: UnixTime,
}

impl JwtCache {
    /// An empty cache before `issuer`.
    pub(crate) fn new(host: Host, issuer: Arc<dyn JwtIssuer>) -> Self {
        Self { inner: Arc::new(Inner { host, issuer, table: Mutex::default() }) }
    }

    /// One token for each of `entries`, in their order.
    pub(crate) async fn fetch_all(
        &self,
        entries: Vec<Arc<AuthorizedEntry>>,
        audience: Vec<String>,
    ) -> Result<Vec<(Arc<AuthorizedEntry>, JwtSvid)>, Refusal> {
        let audience = checked(audience)?;
        let mut tasks = JoinSet::new();
        let mut waiting = entries.iter().cloned().enumerate();
        let mut done: BTreeMap<usize, JwtSvid> = BTreeMap::new();
        loop {
            while tasks.len() < limits::JWT_FETCHES_AT_ONCE {
                let Some((place, entry)) = waiting.next() else { break };
                let (inner, audience) = (Arc::clone(&self.inner), audience.clone());
                tasks.spawn(async move { (place, inner.fetch(entry, audience).await) });
            }
            match tasks.join_next().await {
                Some(Ok((place, svid))) => drop(done.insert(place, svid?)),
                Some(Err(failed)) => return Err(Refusal::internal(failed)),
                None => break,
            }
        }
        Ok(entries.into_iter().zip(done.into_values()).collect())
    }

    /// Drops the tokens whose key is tainted in `bundle` or not in it any more.
    pub(crate) fn purge(&self, bundle: &Arc<Bundle>) {
        let mut table = self.inner.table();
        table.bundle = Some(Arc::clone(bundle));
        for used in table.cells.values() {
            let mut held = used.cell.held();
            *held = held.take().filter(|token| standing(bundle, &token.svid) == Standing::Trusted);
        }
    }

    /// Drops every token.
    pub(crate) fn clear(&self) {
        self.inner.table().cells.clear();
    }
}

impl Inner {
    async fn fetch(&self, entry: Arc<AuthorizedEntry>, audience: Vec<String>) -> Result<JwtSvid, Refusal> {
        if entry.jwt_svid_include_jti {
            return self.issue(&entry, &audience, limits::JWT_BUDGET).await;
        }
        let cell = self.cell(&entry.id, &audience);
        if let Some(svid) = cell.fresh(&entry, self.host.now()) {
            return Ok(svid);
        }
        let ended = cell.ended.load(Ordering::SeqCst);
        let mut flight = cell.flight.lock().await;
        if let Some(svid) = cell.fresh(&entry, self.host.now()) {
            return Ok(svid);
        }
        let someone_just_failed = cell.ended.load(Ordering::SeqCst) != ended;
        if let (true, Some((reason, public))) = (someone_just_failed, flight.as_ref()) {
            let failure = Refusal::new(*reason, public.clone());
            return cell.spare(&entry, self.host.now()).ok_or(failure);
        }
        let spare = cell.spare(&entry, self.host.now());
        let budget = if spare.is_some() { limits::JWT_BUDGET_WITH_SPARE } else { limits::JWT_BUDGET };
        let outcome = self.issue(&entry, &audience, budget).await;
        cell.ended.fetch_add(1, Ordering::SeqCst);
        match outcome {
            Ok(svid) => {
                *flight = None;
                self.keep(&cell, &entry, &svid);
                Ok(svid)
            }
            Err(refusal) => {
                *flight = Some((refusal.reason, refusal.public.clone()));
                // Looked at again: the wait may have outlived it, or a taint may have purged it.
                let Some(spare) = cell.spare(&entry, self.host.now()) else { return Err(refusal) };
                warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id, error = %refusal,
                    "failed to refresh a JWT-SVID; the cached one is still valid and is served");
                Ok(spare)
            }
        }
    }

    /// Asks the server, again and again within `budget` while that may help.
    async fn issue(
        &self,
        entry: &Arc<AuthorizedEntry>,
        audience: &[String],
        budget: Duration,
    ) -> Result<JwtSvid, Refusal> {
        let end = tokio::time::Instant::now() + budget;
        let mut wait = Duration::from_millis(500);
        loop {
            let asked = self.issuer.issue(Arc::clone(entry), audience.to_vec());
            let refusal = match tokio::time::timeout_at(end, asked).await {
                Ok(Ok(svid)) => return Ok(svid),
                Ok(Err(refusal)) => refusal,
                Err(_) => {
                    return Err(Refusal::unavailable(
                        "could not fetch JWT-SVID: the server did not answer in time",
                    ));
                }
            };
            if !may_help_to_ask_again(refusal.reason) || tokio::time::Instant::now() + wait >= end {
                return Err(refusal);
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// Caches `svid` unless its key is known to be tainted: it may have been signed while the taint was on its way.
    fn keep(&self, cell: &Cell, entry: &AuthorizedEntry, svid: &JwtSvid) {
        let tainted = match &self.table().bundle {
            Some(bundle) => standing(bundle, svid) == Standing::Tainted,
            None => false,
        };
        let issued_at = svid.issued_at().unwrap_or_else(|| self.host.now());
        let renew_at = renew_at(issued_at, svid.expires_at(), self.host.jitter());
        let token = HeldToken { svid: svid.clone(), revision: entry.revision, renew_at };
        *cell.held() = (!tainted).then_some(token);
    }

    fn cell(&self, entry: &EntryId, audience: &[String]) -> Arc<Cell> {
        let key = Key { entry: entry.clone(), audience: audience.iter().cloned().collect() };
        let mut table = self.table();
        table.uses += 1;
        let now = table.uses;
        if !table.cells.contains_key(&key) && table.cells.len() >= limits::JWT_SVIDS {
            let oldest = table.cells.iter().min_by_key(|(_, used)| used.last_use).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                table.cells.remove(&oldest);
            }
        }
        let used = table.cells.entry(key).or_insert_with(|| Used { cell: Arc::default(), last_use: now });
        used.last_use = now;
        Arc::clone(&used.cell)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cell {
    fn fresh(&self, entry: &AuthorizedEntry, now: UnixTime) -> Option<JwtSvid> {
        let held = self.held();
        held.as_ref()
            .filter(|token| token.is_for(entry, now) && now < token.renew_at)
            .map(|token| token.svid.clone())
    }

    /// A token past its half-life, but valid.
    fn spare(&self, entry: &AuthorizedEntry, now: UnixTime) -> Option<JwtSvid> {
        let held = self.held();
        held.as_ref().filter(|token| token.is_for(entry, now)).map(|token| token.svid.clone())
    }

    fn held(&self) -> MutexGuard<'_, Option<HeldToken>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldToken {
    fn is_for(&self, entry: &AuthorizedEntry, now: UnixTime) -> bool {
        self.revision == entry.revision && *self.svid.id() == entry.spiffe_id && now < self.svid.expires_at()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Trusted,
    Tainted,
    Unknown,
}

fn standing(bundle: &Bundle, svid: &JwtSvid) -> Standing {
    match svid.key_id().and_then(|key_id| bundle.jwt_authority(key_id)) {
        Some(authority) if authority.tainted => Standing::Tainted,
        Some(_) => Standing::Trusted,
        None => Standing::Unknown,
    }
}

/// A new entry may not have reached the server that was asked, hence not found.
fn may_help_to_ask_again(reason: Reason) -> bool {
    match reason {
        Reason::Unavailable | Reason::Exhausted | Reason::NotFound => true,
        Reason::Invalid
        | Reason::Unauthenticated
        | Reason::Denied
        | Reason::AlreadyExists
        | Reason::Precondition
        | Reason::Unimplemented
        | Reason::Internal => false,
    }
}

/// The audience without repetitions, in its order.
fn checked(audience: Vec<String>) -> Result<Vec<String>, Refusal> {
    let mut seen = BTreeSet::new();
    let audience: Vec<String> = audience.into_iter().filter(|one| seen.insert(one.clone())).collect();
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(Refusal::invalid("audience must be specified"));
    }
    if audience.len() > limits::AUDIENCES {
        return Err(Refusal::invalid(format!("at most {} audiences are allowed", limits::AUDIENCES)));
    }
    Ok(audience)
}
