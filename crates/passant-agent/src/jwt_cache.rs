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
use passant_core::{AuthorizedEntry, EntryId, Evidence, Host, Refusal, UnixTime};
use tokio::task::JoinSet;
use tracing::warn;

use crate::limits;

/// Who issues JWT-SVIDs: the server, seen from the cache.
pub trait JwtIssuer: Send + Sync {
    /// Asks for one new JWT-SVID of `entry`, on what is known of the process that wants it. The answer is checked: it
    /// names the entry's SPIFFE ID and each audience.
    fn issue(
        &self,
        entry: Arc<AuthorizedEntry>,
        audience: Vec<String>,
        evidence: Option<Arc<Evidence>>,
    ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>>;
}

/// JWT-SVIDs by entry and audience. A token is fresh until half its life, spread; then a new one is fetched, and the old
/// one is returned as long as it is valid if the server fails, but not if it says that there is none. Requests for the same token share one fetch.
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
        evidence: Option<Arc<Evidence>>,
    ) -> Result<Vec<(Arc<AuthorizedEntry>, JwtSvid)>, Refusal> {
        let audience = checked(audience)?;
        let mut tasks = JoinSet::new();
        let mut waiting = entries.iter().cloned().enumerate();
        let mut done: BTreeMap<usize, JwtSvid> = BTreeMap::new();
        loop {
            while tasks.len() < limits::JWT_FETCHES_AT_ONCE {
                let Some((place, entry)) = waiting.next() else { break };
                let (inner, audience) = (Arc::clone(&self.inner), audience.clone());
                let evidence = evidence.clone();
                tasks.spawn(async move { (place, inner.fetch(entry, audience, evidence).await) });
            }
            match tasks.join_next().await {
                Some(Ok((place, svid))) => drop(done.insert(place, svid?)),
                Some(Err(failed)) => return Err(Refusal::internal(failed)),
                None => break,
            }
        }
        Ok(entries.into_iter().zip(done.into_values()).collect())
    }

    /// For how many of `entries` the server would have to be asked now.
    pub(crate) fn lacking(&self, entries: &[Arc<AuthorizedEntry>], audience: &[String]) -> usize {
        let now = self.inner.host.now();
        let audience: BTreeSet<String> = audience.iter().cloned().collect();
        let table = self.inner.table();
        let is_held = |entry: &&Arc<AuthorizedEntry>| {
            let key = Key { entry: entry.id.clone(), audience: audience.clone() };
            !entry.jwt_svid_include_jti
                && table.cells.get(&key).is_some_and(|used| used.cell.fresh(entry, now).is_some())
        };
        entries.len() - entries.iter().filter(is_held).count()
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

    /// How many tokens are held, expired ones included, and when the last of them ends.
    pub(crate) fn census(&self) -> (usize, Option<UnixTime>) {
        let table = self.inner.table();
        let ends = table.cells.values().filter_map(|used| Some(used.cell.held().as_ref()?.svid.expires_at()));
        ends.fold((0, None), |(count, last), end| (count + 1, last.max(Some(end))))
    }

    /// Drops the tokens of these entries.
    pub(crate) fn forget(&self, entries: &BTreeSet<&EntryId>) {
        if !entries.is_empty() {
            self.inner.table().cells.retain(|key, _| !entries.contains(&key.entry));
        }
    }

    /// Drops every token.
    pub(crate) fn clear(&self) {
        self.inner.table().cells.clear();
    }
}

impl Inner {
    async fn fetch(
        &self,
        entry: Arc<AuthorizedEntry>,
        audience: Vec<String>,
        evidence: Option<Arc<Evidence>>,
    ) -> Result<JwtSvid, Refusal> {
        if entry.jwt_svid_include_jti {
            return self.issue(&entry, &audience, evidence.as_ref(), limits::JWT_BUDGET).await;
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
            // If the server said that there is none, there is no spare any more.
            return cell.spare(&entry, self.host.now()).ok_or(failure);
        }
        let spare = cell.spare(&entry, self.host.now());
        let budget = if spare.is_some() { limits::JWT_BUDGET_WITH_SPARE } else { limits::JWT_BUDGET };
        let outcome = self.issue(&entry, &audience, evidence.as_ref(), budget).await;
        cell.ended.fetch_add(1, Ordering::SeqCst);
        match outcome {
            Ok(svid) => {
                *flight = None;
                self.keep(&cell, &entry, &svid);
                Ok(svid)
            }
            Err(refusal) => {
                *flight = Some((refusal.reason, refusal.public.clone()));
                if is_withdrawn(refusal.reason) {
                    *cell.held() = None;
                }
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
        evidence: Option<&Arc<Evidence>>,
        budget: Duration,
    ) -> Result<JwtSvid, Refusal> {
        let end = tokio::time::Instant::now() + budget;
        let mut wait = Duration::from_millis(500);
        loop {
            let asked = self.issuer.issue(Arc::clone(entry), audience.to_vec(), evidence.cloned());
            let refusal = match tokio::time::timeout_at(end, asked).await {
                Ok(Ok(svid)) if svid.expires_at() > self.host.now() => return Ok(svid),
                Ok(Ok(svid)) => {
                    let (ended, now) = (svid.expires_at(), self.host.now());
                    return Err(Refusal::unavailable(format!(
                        "could not fetch JWT-SVID: the new one ended {ended}, but this host's clock shows {now}"
                    )));
                }
                Ok(Err(refusal)) => refusal,
                Err(_) => {
                    return Err(Refusal::unavailable(
                        "could not fetch JWT-SVID: the server did not answer in time",
                    ));
                }
            };
            let pause = refusal.retry_after.map_or(wait, |said| said.max(wait));
            if !may_help_to_ask_again(refusal.reason) || tokio::time::Instant::now() + pause >= end {
                return Err(refusal);
            }
            tokio::time::sleep(pause).await;
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
            table.make_room();
        }
        let used = table.cells.entry(key).or_insert_with(|| Used { cell: Arc::default(), last_use: now });
        used.last_use = now;
        Arc::clone(&used.cell)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Drops one cell of the entry that has the most: one without a token if there is any, else the one that was used
    /// least recently. A workload that asks for ever new audiences so loses its own tokens and nobody else's.
    fn make_room(&mut self) {
        let mut counts: BTreeMap<&EntryId, usize> = BTreeMap::new();
        for key in self.cells.keys() {
            *counts.entry(&key.entry).or_default() += 1;
        }
        let Some((entry, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return };
        let of_entry = self.cells.iter().filter(|(key, _)| key.entry == *entry);
        let victim = of_entry.min_by_key(|(_, used)| (used.cell.held().is_some(), used.last_use));
        if let Some(key) = victim.map(|(key, _)| key.clone()) {
            self.cells.remove(&key);
        }
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

/// Whether the server has said that nothing is to be had: the entry is gone or stopped, or not the process's.
fn is_withdrawn(reason: Reason) -> bool {
    match reason {
        Reason::NotFound | Reason::Denied => true,
        Reason::Invalid
        | Reason::Unauthenticated
        | Reason::AlreadyExists
        | Reason::Precondition
        | Reason::Exhausted
        | Reason::Unavailable
        | Reason::Unimplemented
        | Reason::Internal => false,
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::testing::ca::Ca;
    use crate::testing::{entry, following_host, secs};

    /// Issues tokens of 300 s by `ca`, or fails.
    struct Server {
        ca: Ca,
        host: Host,
        asked: AtomicU32,
        fails_with: Mutex<Option<Reason>>,
        says_when: Mutex<Option<Duration>>,
        takes: Mutex<Duration>,
        behind: Mutex<Duration>,
    }

    impl JwtIssuer for Arc<Server> {
        fn issue(
            &self,
            entry: Arc<AuthorizedEntry>,
            audience: Vec<String>,
            _: Option<Arc<Evidence>>,
        ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>> {
            let server = Self::clone(self);
            Box::pin(async move {
                server.asked.fetch_add(1, Ordering::SeqCst);
                let takes = *server.takes.lock().unwrap();
                tokio::time::sleep(takes).await;
                if let Some(reason) = *server.fails_with.lock().unwrap() {
                    let retry_after = *server.says_when.lock().unwrap();
                    return Err(Refusal { retry_after, ..Refusal::new(reason, "the server fails") });
                }
                let now = server.host.now().minus(*server.behind.lock().unwrap());
                let token = server.ca.jwt(&entry.spiffe_id, audience, now, now.plus(secs(300)));
                Ok(JwtSvid::parse_unverified(&token).unwrap())
            })
        }
    }

    fn start() -> (Arc<Server>, JwtCache) {
        let host = following_host();
        let server = Arc::new(Server {
            ca: Ca::new("one"),
            host: host.clone(),
            asked: AtomicU32::new(0),
            fails_with: Mutex::new(None),
            says_when: Mutex::new(None),
            takes: Mutex::new(Duration::ZERO),
            behind: Mutex::new(Duration::ZERO),
        });
        let cache = JwtCache::new(host, Arc::new(Arc::clone(&server)));
        (server, cache)
    }

    impl Server {
        fn asked(&self) -> u32 {
            self.asked.load(Ordering::SeqCst)
        }

        fn fail(&self, reason: Option<Reason>) {
            *self.fails_with.lock().unwrap() = reason;
        }
    }

    async fn fetch(cache: &JwtCache, entry: &AuthorizedEntry, audience: &[&str]) -> Result<JwtSvid, Refusal> {
        let audience = audience.iter().map(|one| (*one).to_owned()).collect();
        let mut fetched = cache.fetch_all(vec![Arc::new(entry.clone())], audience, None).await?;
        Ok(fetched.remove(0).1)
    }

    #[tokio::test(start_paused = true)]
    async fn an_overloaded_server_is_asked_again_when_it_said_so_if_there_is_time() {
        let (server, cache) = start();
        server.fail(Some(Reason::Exhausted));
        *server.says_when.lock().unwrap() = Some(secs(6));
        let began = tokio::time::Instant::now();
        assert_eq!(fetch(&cache, &entry("a", 1), &["x"]).await.unwrap_err().reason, Reason::Exhausted);
        // At once, after 6 s and after 12 s; after 18 s nobody waits any more.
        assert_eq!((server.asked(), began.elapsed()), (3, secs(12)));
        *server.says_when.lock().unwrap() = Some(secs(60));
        assert!(fetch(&cache, &entry("b", 1), &["x"]).await.is_err());
        assert_eq!((server.asked(), began.elapsed()), (4, secs(12)), "it is told at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_reused_until_about_half_its_life() {
        let (server, cache) = start();
        let first = fetch(&cache, &entry("a", 1), &["x", "y"]).await.unwrap();
        tokio::time::advance(secs(119)).await;
        let again = fetch(&cache, &entry("a", 1), &["y", "x", "y"]).await.unwrap();
        assert_eq!((first.token(), server.asked()), (again.token(), 1));
        tokio::time::advance(secs(62)).await;
        let fresh = fetch(&cache, &entry("a", 1), &["x", "y"]).await.unwrap();
        assert_ne!(first.token(), fresh.token());
    }

    #[tokio::test(start_paused = true)]
    async fn other_audiences_entries_and_revisions_have_tokens_of_their_own() {
        let (server, cache) = start();
        let a = entry("a", 1);
        for (entry, audience) in [
            (a.clone(), "x"),
            (a.clone(), "y"),
            (entry("b", 1), "x"),
            (AuthorizedEntry { revision: 1, ..a.clone() }, "x"),
        ] {
            let asked = server.asked();
            let svid = fetch(&cache, &entry, &[audience]).await.unwrap();
            assert_eq!((svid.id(), svid.audience()), (&entry.spiffe_id, &[audience.to_owned()][..]));
            assert_eq!(server.asked(), asked + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_for_one_token_share_one_fetch_and_its_failure() {
        let (server, cache) = start();
        *server.takes.lock().unwrap() = secs(1);
        let a = entry("a", 1);
        let both = tokio::join!(fetch(&cache, &a, &["x"]), fetch(&cache, &a, &["x"]));
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(server.asked(), 1);
        server.fail(Some(Reason::Denied));
        let both = tokio::join!(fetch(&cache, &a, &["y"]), fetch(&cache, &a, &["y"]));
        assert_eq!(both.0.unwrap_err().reason, Reason::Denied);
        assert_eq!(both.1.unwrap_err().reason, Reason::Denied);
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_server_is_bridged_by_the_old_token_until_it_expires() {
        let (server, cache) = start();
        let a = entry("a", 1);
        let first = fetch(&cache, &a, &["x"]).await.unwrap();
        server.fail(Some(Reason::Unavailable));
        tokio::time::advance(secs(200)).await;
        assert_eq!(fetch(&cache, &a, &["x"]).await.unwrap().token(), first.token());
        tokio::time::advance(secs(100)).await;
        assert_eq!(fetch(&cache, &a, &["x"]).await.unwrap_err().reason, Reason::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn no_old_token_is_handed_out_once_the_server_has_said_that_there_is_none() {
        for reason in [Reason::NotFound, Reason::Denied] {
            let (server, cache) = start();
            let a = entry("a", 1);
            fetch(&cache, &a, &["x"]).await.unwrap();
            tokio::time::advance(secs(200)).await;
            server.fail(Some(reason));
            *server.takes.lock().unwrap() = secs(1);
            let both = tokio::join!(fetch(&cache, &a, &["x"]), fetch(&cache, &a, &["x"]));
            assert_eq!((both.0.unwrap_err().reason, both.1.unwrap_err().reason), (reason, reason));
            // Nor when it says nothing any more.
            server.fail(Some(Reason::Unavailable));
            assert_eq!(fetch(&cache, &a, &["x"]).await.unwrap_err().reason, Reason::Unavailable);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_the_server_does_not_know_yet_is_asked_for_again() {
        let (server, cache) = start();
        server.fail(Some(Reason::NotFound));
        let a = entry("a", 1);
        let healing = async {
            tokio::time::sleep(secs(2)).await;
            server.fail(None);
        };
        let (fetched, ()) = tokio::join!(fetch(&cache, &a, &["x"]), healing);
        assert!(fetched.is_ok());
        assert!(server.asked() > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_given_up_within_the_budget() {
        let (server, cache) = start();
        *server.takes.lock().unwrap() = secs(1000);
        let began = tokio::time::Instant::now();
        assert_eq!(fetch(&cache, &entry("a", 1), &["x"]).await.unwrap_err().reason, Reason::Unavailable);
        assert_eq!(began.elapsed(), limits::JWT_BUDGET);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_with_a_jti_are_never_reused() {
        let (server, cache) = start();
        let with_jti = AuthorizedEntry { jwt_svid_include_jti: true, ..entry("a", 1) };
        fetch(&cache, &with_jti, &["x"]).await.unwrap();
        fetch(&cache, &with_jti, &["x"]).await.unwrap();
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_of_tainted_and_removed_keys_are_dropped() {
        let (server, cache) = start();
        let a = entry("a", 1);
        let bundle = Arc::new(server.ca.bundle());
        cache.purge(&bundle);
        fetch(&cache, &a, &["x"]).await.unwrap();
        cache.purge(&bundle);
        fetch(&cache, &a, &["x"]).await.unwrap();
        assert_eq!(server.asked(), 1);
        cache.purge(&Arc::new(Ca::bundle_of(&[(&server.ca, true)], 2)));
        fetch(&cache, &a, &["x"]).await.unwrap();
        // One that was signed while the taint was on its way is not kept either.
        fetch(&cache, &a, &["x"]).await.unwrap();
        assert_eq!(server.asked(), 3);
        cache.purge(&bundle);
        fetch(&cache, &a, &["x"]).await.unwrap();
        cache.purge(&Arc::new(Ca::new("two").bundle()));
        fetch(&cache, &a, &["x"]).await.unwrap();
        assert_eq!(server.asked(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_token_makes_room() {
        let (server, cache) = start();
        let a = entry("a", 1);
        fetch(&cache, &a, &["0"]).await.unwrap();
        for n in 1..limits::JWT_SVIDS {
            cache.inner.cell(&a.id, &[n.to_string()]);
        }
        fetch(&cache, &a, &["0"]).await.unwrap();
        assert_eq!(server.asked(), 1);
        cache.inner.cell(&a.id, &["one more".to_owned()]);
        assert_eq!(cache.inner.table().cells.len(), limits::JWT_SVIDS);
        fetch(&cache, &a, &["0"]).await.unwrap();
        assert_eq!(server.asked(), 1, "the one in use stayed");
    }

    #[tokio::test(start_paused = true)]
    async fn audiences_must_be_there_and_few() {
        let (_, cache) = start();
        let many: Vec<String> = (0..=limits::AUDIENCES).map(|n| n.to_string()).collect();
        for audience in [vec![], vec![String::new()], many] {
            let refusal = cache.fetch_all(vec![Arc::new(entry("a", 1))], audience, None).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::Invalid);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_expired_when_it_comes_is_not_handed_out() {
        let (server, cache) = start();
        *server.takes.lock().unwrap() = secs(1);
        // The server's clock is 300 s behind: its tokens end just when they come.
        *server.behind.lock().unwrap() = secs(300);
        assert_eq!(fetch(&cache, &entry("a", 1), &["x"]).await.unwrap_err().reason, Reason::Unavailable);
        *server.behind.lock().unwrap() = secs(299);
        assert!(fetch(&cache, &entry("a", 1), &["x"]).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_workload_with_many_audiences_loses_only_its_own_tokens() {
        let (server, cache) = start();
        let (quiet, greedy) = (entry("a", 1), entry("b", 2));
        fetch(&cache, &quiet, &["x"]).await.unwrap();
        for n in 0..2 * limits::JWT_SVIDS {
            cache.inner.cell(&greedy.id, &[n.to_string()]);
        }
        assert_eq!(cache.inner.table().cells.len(), limits::JWT_SVIDS);
        fetch(&cache, &quiet, &["x"]).await.unwrap();
        assert_eq!(server.asked(), 1);
    }
}
