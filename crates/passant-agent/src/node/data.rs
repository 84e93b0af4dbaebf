//! What does the agent keep on disk, and how does it survive a crash at any moment?
//!
//! One file, `agent-data.json`, mode 0600: the node SVID with its key, the bundle, what is stopped, and the key of an
//! attestation under way. It is replaced as a whole: written beside, synced, renamed, directory synced. Keys of workloads are never in it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use passant_attest::node::join_token::TokenHash;
use passant_core::bundle::Bundle;
use passant_core::keys::SigningKey;
use passant_core::x509_svid::X509Svid;
use passant_core::{Host, Secret, SpiffeId, Stop, TrustDomain};
use passant_daemon::private_dir::{Unsafe, make_data_dir, owned};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tracing::warn;
use zeroize::Zeroizing;

use crate::connect::NodeIdentity;
use crate::limits;

const FORMAT: u32 = 1;
const FILE: &str = "agent-data.json";
const BESIDE: &str = ".agent-data.json.new";
const UNREADABLE: &str = "agent-data.json.unreadable";
const LOCK: &str = "agent.lock";
const DIRECTORY_REMEDY: &str = "give the agent a directory of its own (chown it to the agent's user, chmod 0700, nothing of others in it)";
const FILE_REMEDY: &str = "remove it, and the node attests anew";

/// The data directory, held by this process alone.
pub(crate) struct DataDir {
    place: Place,
    trust_domain: TrustDomain,
}

enum Place {
    Directory {
        dir: PathBuf,
        /// Locked until dropped.
        _lock: File,
    },
    Disk(Arc<dyn Disk>),
}

/// What stands where the file should be.
enum Found {
    Nothing,
    Text(Zeroizing<Vec<u8>>),
    Damaged(Damage),
}

/// What stands for the data directory in a simulation: one file, replaced as a whole. Calls return at once.
pub trait Disk: Send + Sync {
    /// What the file holds; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;

    /// Puts `bytes` in place of what the file holds, durably.
    ///
    /// # Errors
    /// When that is not certain.
    fn replace(&self, bytes: &[u8]) -> io::Result<()>;
}

/// What the file holds. Its keys, SVID and bundle fit each other and the trust domain; whether they are still valid is not
/// looked at.
#[derive(Clone, Default)]
pub struct Stored {
    pub(crate) identity: Option<Arc<NodeIdentity>>,
    pub(crate) bundle: Option<Arc<Bundle>>,
    pub(crate) pending: Option<Pending>,
    /// The join token that the identity was, or a former one had been, attested with.
    pub(crate) spent: Option<TokenHash>,
    /// What the server last said is stopped.
    pub(crate) stops: Vec<Stop>,
}

/// The key of an attestation by join token whose answer was not yet stored. The same token with the same key is accepted
/// again by a Passant server, so that an answer lost in a crash does not cost the token.
#[derive(Clone)]
pub(crate) struct Pending {
    pub(crate) token: TokenHash,
    pub(crate) key: Arc<dyn SigningKey>,
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// It cannot be made or used.
    #[error("failed to use {} as the data directory: make it a directory that belongs to the agent's user", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others could have put there what is in it, or could replace it.
    #[error("{} {fault}: what is in it cannot be trusted; {remedy}", path.display())]
    Unsafe {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
        /// What helps.
        remedy: &'static str,
    },
    /// Another agent uses it.
    #[error("another agent is running with the data directory {}: give each agent its own", .0.display())]
    InUse(PathBuf),
    /// It belongs to another trust domain.
    #[error("{} holds the identity of trust domain {found}, not {wanted}: correct trust_domain, or use another data_dir",
        path.display())]
    OtherTrustDomain {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Which was configured.
        wanted: TrustDomain,
    },
    /// A newer agent wrote it.
    #[error("{} was written by a newer agent (format {found}): run that version, or use another data_dir", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u32,
    },
    /// It cannot be read or written.
    #[error("failed to {what} {}", path.display())]
    Io {
        /// "read" or "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What every format begins with.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    format: u32,
    trust_domain: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<RawIdentity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bundle: Option<Bundle>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<RawPending>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spent_token: Option<TokenHash>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stops: Vec<Stop>,
}

/// Certificates and keys in standard base64 of their DER.
#[derive(Serialize, Deserialize)]
struct RawIdentity {
    svid: Vec<String>,
    key: Zeroizing<String>,
    reattestable: bool,
}

#[derive(Serialize, Deserialize)]
struct RawPending {
    token: TokenHash,
    key: Zeroizing<String>,
}

/// Why the text of a data file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A newer agent wrote it, in this format.
    #[error("it has format {0}, which is newer than {FORMAT}")]
    Newer(u32),
    /// It belongs to this trust domain.
    #[error("it holds the identity of trust domain {0}")]
    OtherTrustDomain(String),
    /// It makes no sense.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

/// What makes no sense in a file of a known format.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It is not the JSON that is expected.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A certificate or key is not base64.
    #[error(transparent)]
    Base64(#[from] base64::DecodeError),
    /// The certificates are no X509-SVID.
    #[error(transparent)]
    Svid(#[from] passant_core::x509_svid::X509SvidError),
    /// A key is no private key.
    #[error(transparent)]
    Key(#[from] passant_core::keys::KeyError),
    /// The key is another's.
    #[error("the key does not belong to the SVID")]
    Mismatch,
    /// The SVID or the bundle is not of the trust domain that the file names.
    #[error("the SVID is not that of an agent of the trust domain, or the bundle is another's")]
    Foreign,
    /// More than any agent writes.
    #[error("it is larger than {} MiB", limits::DATA_FILE_BYTES >> 20)]
    TooLarge,
}

impl DataDir {
    /// Makes the directory if need be, and takes it for this process.
    ///
    /// # Errors
    /// When it cannot be used, or another agent uses it.
    pub(crate) fn open(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, DataError> {
        let failed = |source| DataError::Directory { dir: dir.to_owned(), source };
        make_data_dir(dir).map_err(|error| match error.downcast::<Unsafe>() {
            Ok(found) => {
                let (path, fault) = (dir.to_owned(), found.fault());
                DataError::Unsafe { path, fault, remedy: DIRECTORY_REMEDY }
            }
            Err(source) => failed(source),
        })?;
        let lock = open_private(&dir.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let place = Place::Directory { dir: dir.to_owned(), _lock: lock };
        Ok(Self { place, trust_domain: trust_domain.clone() })
    }

    /// Takes `disk` for the data directory.
    pub(crate) fn on(disk: Arc<dyn Disk>, trust_domain: &TrustDomain) -> Self {
        Self { place: Place::Disk(disk), trust_domain: trust_domain.clone() }
    }

    /// Reads what is stored. A file that makes no sense is set aside and counts as none: the agent attests anew.
    ///
    /// # Errors
    /// When the file cannot be read, or is of another trust domain or a newer format.
    pub(crate) fn load(&self, host: &Host) -> Result<Stored, DataError> {
        let path = self.file();
        let text = match self.read(&path)? {
            Found::Nothing => return Ok(Stored::default()),
            Found::Text(text) => text,
            Found::Damaged(damage) => return self.set_aside(&path, &damage),
        };
        match Stored::parse(&text, &self.trust_domain, host) {
            Ok(stored) => Ok(stored),
            Err(Unusable::Newer(found)) => Err(DataError::Newer { path, found }),
            Err(Unusable::OtherTrustDomain(found)) => {
                let wanted = self.trust_domain.clone();
                Err(DataError::OtherTrustDomain { path, found, wanted })
            }
            Err(Unusable::Damaged(damage)) => self.set_aside(&path, &damage),
        }
    }

    fn file(&self) -> PathBuf {
        match &self.place {
            Place::Directory { dir, .. } => dir.join(FILE),
            Place::Disk(_) => PathBuf::from(FILE),
        }
    }

    fn read(&self, path: &Path) -> Result<Found, DataError> {
        let unread = |source| DataError::Io { what: "read", path: path.to_owned(), source };
        if let Place::Disk(disk) = &self.place {
            let text = disk.read().map_err(unread)?;
            return Ok(text.map_or(Found::Nothing, |text| Found::Text(Zeroizing::new(text))));
        }
        let file = match open_existing(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                let fault = "is a symbolic link".to_owned();
                return Err(DataError::Unsafe { path: path.to_owned(), fault, remedy: FILE_REMEDY });
            }
            Err(error) => return Err(unread(error)),
        };
        check_file(&file, path)?;
        Ok(match read_bounded(file).map_err(unread)? {
            Ok(text) => Found::Text(text),
            Err(damage) => Found::Damaged(damage),
        })
    }

    /// Replaces what is stored. On disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written; then the old content stands.
    pub(crate) async fn save(&self, stored: &Stored) -> Result<(), DataError> {
        let path = self.file();
        let text = stored.to_json(&self.trust_domain);
        let written = match &self.place {
            Place::Directory { dir, .. } => {
                let dir = dir.clone();
                tokio::task::spawn_blocking(move || replace(&dir, &text)).await
            }
            Place::Disk(disk) => Ok(disk.replace(&text)),
        };
        let failed = |source| DataError::Io { what: "write", path, source };
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(failed(source)),
            Err(panicked) => Err(failed(io::Error::other(panicked))),
        }
    }

    fn set_aside(&self, path: &Path, damage: &Damage) -> Result<Stored, DataError> {
        let Place::Directory { dir, .. } = &self.place else { return Ok(Stored::default()) };
        let aside = dir.join(UNREADABLE);
        warn!(path = %path.display(), aside = %aside.display(), %damage,
            "the stored node identity cannot be used; it is set aside and the node attests anew");
        fs::rename(path, &aside).map_err(|source| DataError::Io {
            what: "set aside",
            path: path.to_owned(),
            source,
        })?;
        Ok(Stored::default())
    }
}

impl Stored {
    /// Reads the text of a file of an agent of `trust_domain`.
    ///
    /// # Errors
    /// When a newer agent wrote it, it is of another trust domain, or makes no sense.
    pub fn parse(text: &[u8], trust_domain: &TrustDomain, host: &Host) -> Result<Self, Unusable> {
        // A newer format may lack what this one needs: its number is read first.
        match serde_json::from_slice::<Head>(text).map_err(Damage::Json)? {
            Head { format } if format > FORMAT => return Err(Unusable::Newer(format)),
            Head { .. } => {}
        }
        let raw: Raw = serde_json::from_slice(text).map_err(Damage::Json)?;
        if raw.trust_domain != trust_domain.as_str() {
            return Err(Unusable::OtherTrustDomain(raw.trust_domain));
        }
        Ok(Self::read(raw, trust_domain, host)?)
    }

    /// The text of the file of an agent of `trust_domain` that holds this.
    pub fn to_json(&self, trust_domain: &TrustDomain) -> Zeroizing<Vec<u8>> {
        let key = |key: &Arc<dyn SigningKey>| Zeroizing::new(BASE64_STANDARD.encode(key.pkcs8().expose()));
        let raw = Raw {
            format: FORMAT,
            trust_domain: trust_domain.as_str().to_owned(),
            identity: self.identity.as_ref().map(|identity| RawIdentity {
                svid: identity.svid.chain().iter().map(|der| BASE64_STANDARD.encode(der)).collect(),
                key: key(&identity.key),
                reattestable: identity.reattestable,
            }),
            bundle: self.bundle.as_ref().map(|bundle| (**bundle).clone()),
            pending: self
                .pending
                .as_ref()
                .map(|pending| RawPending { token: pending.token, key: key(&pending.key) }),
            spent_token: self.spent,
            stops: self.stops.clone(),
        };
        Zeroizing::new(serde_json::to_vec(&raw).expect("text, numbers and lists always have a JSON form"))
    }

    fn read(raw: Raw, trust_domain: &TrustDomain, host: &Host) -> Result<Self, Damage> {
        let identity = raw.identity.map(|identity| read_identity(&identity, host)).transpose()?;
        let is_foreign = |id: &SpiffeId| !id.is_member_of(trust_domain) || !id.is_agent();
        if identity.as_ref().is_some_and(|identity| is_foreign(identity.svid.id()))
            || raw.stops.iter().filter_map(|stop| stop.target.agent()).any(is_foreign)
            || raw.bundle.as_ref().is_some_and(|bundle| bundle.trust_domain != *trust_domain)
        {
            return Err(Damage::Foreign);
        }
        if raw.stops.len() > limits::STOPS {
            return Err(Damage::TooLarge);
        }
        let pending = raw
            .pending
            .map(|pending| {
                Ok::<_, Damage>(Pending { token: pending.token, key: read_key(&pending.key, host)? })
            })
            .transpose()?;
        Ok(Self {
            identity: identity.map(Arc::new),
            bundle: raw.bundle.map(Arc::new),
            pending,
            spent: raw.spent_token,
            stops: raw.stops,
        })
    }
}

fn read_identity(raw: &RawIdentity, host: &Host) -> Result<NodeIdentity, Damage> {
    let chain: Vec<CertificateDer<'static>> = raw
        .svid
        .iter()
        .map(|text| Ok(CertificateDer::from(BASE64_STANDARD.decode(text)?)))
        .collect::<Result<_, base64::DecodeError>>()?;
    let svid = X509Svid::parse(chain)?;
    let key = read_key(&raw.key, host)?;
    if svid.public_key() != key.public_key() {
        return Err(Damage::Mismatch);
    }
    Ok(NodeIdentity { svid, key, reattestable: raw.reattestable })
}

fn read_key(text: &str, host: &Host) -> Result<Arc<dyn SigningKey>, Damage> {
    let pkcs8 = Secret::new(BASE64_STANDARD.decode(text)?);
    Ok(host.keys.load(&pkcs8)?)
}

/// Opens what stands at `path` itself, not what it may point to.
fn open_existing(path: &Path) -> io::Result<File> {
    let no_link = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(no_link.bits().cast_signed()).open(path)
}

/// A key that others could have read is still ours and is made private again; one that others could have put there is not.
fn check_file(file: &File, path: &Path) -> Result<(), DataError> {
    let failed = |source| DataError::Io { what: "look at", path: path.to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    let refused = |fault| DataError::Unsafe { path: path.to_owned(), fault, remedy: FILE_REMEDY };
    if !metadata.is_file() {
        return Err(refused("is no file".to_owned()));
    }
    let mode = owned(&metadata).map_err(|found| refused(found.fault()))?;
    if mode & 0o077 != 0 {
        warn!(path = %path.display(), mode = format!("{mode:o}"),
            "others could read the node's private key; the file is made mode 0600");
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    }
    Ok(())
}

fn read_bounded(file: File) -> io::Result<Result<Zeroizing<Vec<u8>>, Damage>> {
    let mut text = Zeroizing::new(Vec::new());
    file.take(limits::DATA_FILE_BYTES + 1).read_to_end(&mut text)?;
    let too_large = u64::try_from(text.len()).is_ok_and(|len| len > limits::DATA_FILE_BYTES);
    Ok(if too_large { Err(Damage::TooLarge) } else { Ok(text) })
}

/// The lock makes the name beside ours alone; one left by a crash is overwritten.
fn replace(dir: &Path, text: &[u8]) -> io::Result<()> {
    let beside = dir.join(BESIDE);
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = open_private(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn open_private(path: &Path) -> io::Result<File> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ca::Ca;

    const ORG: &str = "example.org";

    /// Whether an agent of example.org takes a file with an SVID of `id` and a bundle of `bundle`.
    fn check(id: &str, bundle: &str, is_taken: bool) {
        let (host, ours) = (Host::system(), TrustDomain::parse(ORG).unwrap());
        let (svid, key) = Ca::new(ORG).svid_and_key(&SpiffeId::parse(id).unwrap(), 0, 9);
        let identity = NodeIdentity { svid, key, reattestable: false };
        let stored = Stored {
            identity: Some(Arc::new(identity)),
            bundle: Some(Arc::new(Bundle::empty(TrustDomain::parse(bundle).unwrap()))),
            ..Stored::default()
        };
        let taken = Stored::parse(&stored.to_json(&ours), &ours, &host);
        assert_eq!(taken.is_ok(), is_taken, "{id} with the bundle of {bundle}");
    }

    #[test]
    fn what_is_not_this_agents_makes_no_sense_in_its_file() {
        check("spiffe://example.org/spire/agent/join_token/t", ORG, true);
        check("spiffe://other.org/spire/agent/join_token/t", ORG, false);
        check("spiffe://example.org/workload", ORG, false);
        check("spiffe://example.org/spire/agent/join_token/t", "other.org", false);
    }
}
