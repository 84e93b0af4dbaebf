//! Which user, groups and program does a process have?
//!
//! Selectors as SPIRE's `unix` attestor makes them: `uid`, `user`, `gid`, `group`, `supplementary_gid`,
//! `supplementary_group`, and, when asked for, `path` and `sha256` of the executable. Ids are decimal, effective ones;
//! names are left out where the node knows none.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use passant_core::host::Clock;
use passant_core::{Host, Selector, Selectors, UnixTime};
use ring::digest;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tracing::debug;

use super::{AttestError, WorkloadAttestor};
use crate::limits::{DIGESTS, UNIX_LOOKUPS};
use crate::peer::Peer;

/// The attestor's name and the kind of its selectors.
pub const METHOD: &str = "unix";

/// A file that was written to within this time may be written to again without a new time stamp.
const TIMESTAMP_GRAIN: Duration = Duration::from_secs(2);

/// How the attestor works; keys and meanings as SPIRE's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnixConfig {
    /// Whether `path` and `sha256` are made. The agent must then be able to read `/proc/<pid>/exe` of its workloads.
    pub discover_workload_path: bool,
    /// Largest executable, in bytes, whose digest is computed; a larger one fails the attestation. 0 sets no limit, a
    /// negative number leaves `sha256` out.
    pub workload_size_limit: i64,
}

/// The `unix` workload attestor.
pub struct Unix {
    facts: Arc<Facts>,
    lookups: Arc<Semaphore>,
}

struct Facts {
    config: UnixConfig,
    clock: Arc<dyn Clock>,
    /// By the identity of the file, so that the same bytes are hashed once.
    digests: Mutex<BTreeMap<FileIdentity, String>>,
}

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A caller that waits for an answer; when it is dropped, the lookup is given up.
#[derive(Default)]
struct Asked {
    given_up: Arc<AtomicBool>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Unix {
    /// An attestor that asks `host` for the time only.
    pub fn new(config: UnixConfig, host: &Host) -> Self {
        let clock = Arc::clone(&host.clock);
        let facts = Facts { config, clock, digests: Mutex::default() };
        Self { facts: Arc::new(facts), lookups: Arc::new(Semaphore::new(UNIX_LOOKUPS)) }
    }
}

impl WorkloadAttestor for Unix {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn attest<'a>(
        &'a self,
        peer: &'a Peer,
    ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
        // Names come from the system's name service, which may ask the network; digests read whole files.
        let (facts, lookups, peer) = (Arc::clone(&self.facts), Arc::clone(&self.lookups), peer.clone());
        Box::pin(async move {
            let lookup = lookups
                .acquire_owned()
                .await
                .map_err(|closed| failed("unix attestation was cut off", closed))?;
            let asked = Asked::default();
            let given_up = Arc::clone(&asked.given_up);
            let looked_up = tokio::task::spawn_blocking(move || {
                let selectors = facts.of(&peer, &given_up);
                drop(lookup);
                selectors
            });
            match looked_up.await {
                Ok(selectors) => selectors,
                Err(stopped) => Err(failed("unix attestation was cut off", stopped)),
            }
        })
    }
}

impl Facts {
    fn of(&self, peer: &Peer, given_up: &AtomicBool) -> Result<Selectors, AttestError> {
        let credentials = peer.credentials()?;
        let mut found = Vec::new();
        let mut add = |kind: &str, value: &str| found.push(format!("{kind}:{value}"));
        add("uid", &credentials.uid.to_string());
        if let Some(user) = user_name(credentials.uid) {
            add("user", &user);
        }
        add("gid", &credentials.gid.to_string());
        if let Some(group) = group_name(credentials.gid) {
            add("group", &group);
        }
        for gid in &credentials.supplementary_gids {
            add("supplementary_gid", &gid.to_string());
            if let Some(group) = group_name(*gid) {
                add("supplementary_group", &group);
            }
        }
        if self.config.discover_workload_path {
            let executable = peer.executable().ok_or_else(|| AttestError::Failed {
                what: "failed to read the executable of the workload: give the agent CAP_SYS_PTRACE, or turn off \
                       discover_workload_path"
                    .to_owned(),
                source: None,
            })?;
            match executable.path.to_str() {
                Some(path) => add("path", path),
                None => debug!(?peer, "path of the workload is not UTF-8; no unix:path selector"),
            }
            if self.config.workload_size_limit >= 0 {
                add("sha256", &self.digest(peer, given_up)?);
            }
        }
        Ok(found.iter().filter_map(|value| selector(value)).collect())
    }

    /// SHA-256 of the running executable, in hex.
    fn digest(&self, peer: &Peer, given_up: &AtomicBool) -> Result<String, AttestError> {
        let mut file = peer.confirmed(|process| File::open(process.executable()))?;
        let unreadable = |error| failed("failed to read the executable of the workload", error);
        let before = FileIdentity::of(&file.metadata().map_err(unreadable)?);
        if peer.executable().is_none_or(|it| (it.device, it.inode) != (before.device, before.inode)) {
            return Err(crate::peer::PeerError::Changed("executable").into());
        }
        if let Some(known) = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&before) {
            return Ok(known.clone());
        }
        let limit = u64::try_from(self.config.workload_size_limit).unwrap_or(0);
        if limit > 0 && before.size > limit {
            return Err(AttestError::Failed {
                what: format!(
                    "executable of the workload has {} bytes, over workload_size_limit ({limit})",
                    before.size
                ),
                source: None,
            });
        }
        let digest = sha256(&mut file, given_up).map_err(unreadable)?;
        let after = FileIdentity::of(&file.metadata().map_err(unreadable)?);
        if after != before {
            return Err(failed(
                "executable of the workload changed while it was read",
                io::Error::other("retry"),
            ));
        }
        if before.is_settled(self.clock.now()) {
            self.remember(before, digest.clone());
        }
        Ok(digest)
    }

    fn remember(&self, file: FileIdentity, digest: String) {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests.len() >= DIGESTS {
            // Rare and cheap to fill again; no bookkeeping of what was used last.
            digests.clear();
        }
        digests.insert(file, digest);
    }
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a later change would show. Within the grain of the time stamps it might not.
    fn is_settled(&self, now: UnixTime) -> bool {
        UnixTime::from_secs(self.changed.0).plus(TIMESTAMP_GRAIN) < now
    }
}

/// Fails as soon as `given_up` is set: nobody waits for the digest any more, and an endless file must not keep the thread.
fn sha256(file: &mut impl Read, given_up: &AtomicBool) -> io::Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if given_up.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match file.read(&mut chunk)? {
            0 => break,
            length => context.update(&chunk[..length]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

fn group_name(gid: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name)
}

/// A name or path that no entry can hold anyway (empty or far too long) makes no selector.
fn selector(value: &str) -> Option<Selector> {
    Selector::new(METHOD, value).inspect_err(|error| debug!(%error, "no selector made")).ok()
}

fn failed(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> AttestError {
    AttestError::Failed { what: what.to_owned(), source: Some(Box::new(source)) }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;

    use tokio::net::UnixStream;

    use super::*;

    async fn attest(config: UnixConfig) -> Result<Vec<String>, AttestError> {
        let (one, _two) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        let unix = Unix::new(config, &Host::system());
        let first = unix.attest(&peer).await;
        let second = unix.attest(&peer).await;
        assert_eq!(first.as_ref().ok(), second.as_ref().ok(), "the same from the cache");
        first.map(|selectors| selectors.iter().map(ToString::to_string).collect())
    }

    fn own_digest() -> String {
        let bytes = fs::read(env::current_exe().unwrap()).unwrap();
        let digest = digest::digest(&digest::SHA256, &bytes);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[tokio::test]
    async fn user_and_groups_are_selectors() {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let selectors = attest(UnixConfig::default()).await.unwrap();
        assert!(selectors.contains(&format!("unix:uid:{uid}")), "{selectors:?}");
        assert!(selectors.contains(&format!("unix:gid:{gid}")), "{selectors:?}");
        if let Some(user) = User::from_uid(uid).unwrap() {
            assert!(selectors.contains(&format!("unix:user:{}", user.name)), "{selectors:?}");
        }
        if let Some(group) = Group::from_gid(gid).unwrap() {
            assert!(selectors.contains(&format!("unix:group:{}", group.name)), "{selectors:?}");
        }
        for group in nix::unistd::getgroups().unwrap() {
            assert!(selectors.contains(&format!("unix:supplementary_gid:{group}")), "{selectors:?}");
        }
        assert!(!selectors.iter().any(|it| it.starts_with("unix:path:") || it.starts_with("unix:sha256:")));
    }

    #[tokio::test]
    async fn path_and_digest_are_made_when_asked_for() {
        let config = UnixConfig { discover_workload_path: true, workload_size_limit: 0 };
        let selectors = attest(config).await.unwrap();
        assert!(selectors.contains(&format!("unix:path:{}", env::current_exe().unwrap().display())));
        assert!(selectors.contains(&format!("unix:sha256:{}", own_digest())));
    }

    #[tokio::test]
    async fn size_limit_is_kept_on_both_sides() {
        let size = i64::try_from(fs::metadata(env::current_exe().unwrap()).unwrap().len()).unwrap();
        let with = |limit| UnixConfig { discover_workload_path: true, workload_size_limit: limit };
        assert!(attest(with(size)).await.is_ok());
        assert!(matches!(attest(with(size - 1)).await, Err(AttestError::Failed { .. })));
        let selectors = attest(with(-1)).await.unwrap();
        assert!(selectors.iter().any(|it| it.starts_with("unix:path:")));
        assert!(!selectors.iter().any(|it| it.starts_with("unix:sha256:")));
    }

    #[test]
    fn fresh_files_are_not_remembered() {
        let file = FileIdentity { device: 1, inode: 2, size: 3, modified: (100, 0), changed: (100, 0) };
        assert!(!file.is_settled(UnixTime::from_secs(102)));
        assert!(file.is_settled(UnixTime::from_secs(103)));
    }

    #[test]
    fn remembered_digests_are_bounded() {
        let unix = Unix::new(UnixConfig::default(), &Host::system());
        for inode in 0..=DIGESTS as u64 {
            let file = FileIdentity { device: 1, inode, size: 3, modified: (0, 0), changed: (0, 0) };
            unix.facts.remember(file, String::new());
        }
        assert_eq!(unix.facts.digests.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_digest_that_nobody_waits_for_is_given_up() {
        /// Never ends; whoever asked goes away at the third read.
        struct Endless<'a>(usize, &'a Asked);

        impl Read for Endless<'_> {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                assert!(self.0 <= 3, "it reads on");
                if self.0 == 3 {
                    self.1.given_up.store(true, Ordering::Relaxed);
                }
                Ok(bytes.len())
            }
        }

        let asked = Asked::default();
        let given_up = Arc::clone(&asked.given_up);
        let error = sha256(&mut Endless(0, &asked), &given_up).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        given_up.store(false, Ordering::Relaxed);
        drop(asked);
        assert!(given_up.load(Ordering::Relaxed), "dropping the caller gives up");
    }
}
