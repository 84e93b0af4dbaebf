//! How does a backup hold a server's state, and how is one read?
//!
//! A backup is text, one JSON object a line:
//!
//! | line | holds |
//! |---|---|
//! | the first | format number, trust domain, lineage, revision, time, version of the server, how much of what follows |
//! | one for each object | the put of the object, as the journal has it: bundles, authorities, join tokens, nodes, entries |
//! | the last | the number of objects, and the SHA-256 of all lines before it with their newlines |
//!
//! It has no private key in it, and of a join token only the hash. Writing and reading hold one line and one piece in
//! memory, whatever the size of the whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use passant_core::{TrustDomain, UnixTime};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding;
use crate::limits::{BACKUP_LINE, BACKUP_PIECE};
use crate::soundness::Audit;
use crate::state::State;
use crate::state::change::{Change, Lineage, Revision};

/// The format that this version writes, and the newest that it reads. The first knew neither stops nor entry options: who
/// reads only that would lose them.
const FORMAT: u64 = 2;

/// The first line of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The format of the whole.
    pub passant_backup: u64,
    /// Whose state it is.
    pub trust_domain: TrustDomain,
    /// The life of the store that it was taken from.
    pub lineage: Lineage,
    /// The revision at which all of it stood.
    pub revision: Revision,
    /// Nothing that changed after this second is in it; what changed within it may be.
    pub made_at: UnixTime,
    /// The version of the server that made it.
    pub server_version: String,
    /// How much follows.
    pub holds: Holds,
}

/// How many objects there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// Bundles, the own one among them.
    pub bundles: u64,
    /// Federation relationships. Backups made before there were any do not name it.
    #[serde(default)]
    pub relationships: u64,
    /// Authorities of the trust domain.
    pub authorities: u64,
    /// Join tokens, spent ones among them.
    pub join_tokens: u64,
    /// Attested nodes, banned and expired ones among them.
    pub nodes: u64,
    /// Registration entries.
    pub entries: u64,
    /// Stops. Backups made before there were any do not name them.
    #[serde(default)]
    pub stops: u64,
}

/// The last line of a backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    objects: u64,
    #[serde(with = "encoding::hex")]
    sha256: [u8; 32],
}

/// Read before [`Header`], which a newer format may have changed.
#[derive(Deserialize)]
struct HeaderFormat {
    passant_backup: u64,
}

/// Why a backup cannot be used.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The file cannot be read.
    #[error("failed to read backup {place}")]
    Io {
        /// The file.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{place} is no backup of a passant-server: its first line is not a backup's")]
    NotABackup {
        /// The file.
        place: String,
    },
    /// A later version of this program wrote it.
    #[error(
        "backup {place} has format {found}, but this version reads formats up to {FORMAT}: use the newer version"
    )]
    NewerFormat {
        /// The file.
        place: String,
        /// The format that was found.
        found: u64,
    },
    /// What is in it is not what was written, or could never have been a server's state.
    #[error("backup {place} is damaged at line {line} ({what}): use another backup")]
    Damaged {
        /// The file.
        place: String,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// Each line is fine, and they do not fit together.
    #[error("backup {place} does not hold together ({what}): use another backup")]
    Unsound {
        /// The file.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// It belongs to another trust domain.
    #[error("backup {place} holds trust domain {found}, not {wanted}")]
    OtherTrustDomain {
        /// The file.
        place: String,
        /// The trust domain it was made of.
        found: TrustDomain,
        /// The one that was asked for.
        wanted: TrustDomain,
    },
}

impl Holds {
    /// What `state` holds.
    pub fn of(state: &State) -> Self {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Self {
            bundles: count(state.bundles().count()),
            relationships: count(state.relationship_count()),
            authorities: count(state.authorities().count()),
            join_tokens: count(state.tokens().count()),
            nodes: count(state.node_count()),
            entries: count(state.entry_count()),
            stops: count(state.stops().count()),
        }
    }

    /// All objects.
    pub const fn objects(&self) -> u64 {
        self.bundles
            + self.relationships
            + self.authorities
            + self.join_tokens
            + self.nodes
            + self.entries
            + self.stops
    }

    /// Counts one put more.
    pub(crate) const fn count(&mut self, put: &Change) {
        match put {
            Change::PutBundle(_) => self.bundles += 1,
            Change::PutFederation(_) => self.relationships += 1,
            Change::PutAuthority(_) => self.authorities += 1,
            Change::PutToken(_) => self.join_tokens += 1,
            Change::PutNode(_) => self.nodes += 1,
            Change::PutEntry(_) => self.entries += 1,
            Change::PutStop(_) => self.stops += 1,
            Change::DeleteBundle(_)
            | Change::DeleteFederation(_)
            | Change::DeleteAuthority(_)
            | Change::DeleteToken(_)
            | Change::DeleteNode(_)
            | Change::DeleteEntry(_)
            | Change::DeleteStop(_) => {}
        }
    }
}

/// The bytes of a backup of `state`, in pieces of at most [`BACKUP_PIECE`]. `made_at` must be read before `state` is, so
/// that no change is later and yet left out.
pub fn pieces(state: &State, made_at: UnixTime) -> impl Iterator<Item = Vec<u8>> + Send {
    let header = Header {
        passant_backup: FORMAT,
        trust_domain: state.trust_domain().clone(),
        lineage: state.cursor().lineage,
        revision: state.cursor().revision,
        made_at,
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        holds: Holds::of(state),
    };
    let mut waiting = Vec::new();
    let mut sum = Context::new(&SHA256);
    put_line(&mut waiting, &header);
    sum.update(&waiting);
    let mut objects = state.objects();
    let mut count = 0;
    let mut is_whole = false;
    std::iter::from_fn(move || {
        while waiting.len() < BACKUP_PIECE && !is_whole {
            let start = waiting.len();
            match objects.next() {
                Some(object) => {
                    put_line(&mut waiting, &object);
                    sum.update(&waiting[start..]);
                    count += 1;
                }
                None => {
                    put_line(&mut waiting, &Trailer { objects: count, sha256: finished(&sum) });
                    is_whole = true;
                }
            }
        }
        let piece: Vec<u8> = waiting.drain(..waiting.len().min(BACKUP_PIECE)).collect();
        (!piece.is_empty()).then_some(piece)
    })
}

fn put_line<T: Serialize>(to: &mut Vec<u8>, line: &T) {
    serde_json::to_writer(&mut *to, line).expect("our lines have string keys, and a Vec takes everything");
    to.push(b'\n');
}

fn finished(sum: &Context) -> [u8; 32] {
    sum.clone().finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A backup, read line by line. What it yields is only to be believed once it has ended well.
pub struct Reader<R> {
    from: R,
    place: String,
    header: Header,
    audit: Audit,
    sum: Context,
    /// The number of the line read last.
    line: u64,
    is_at_end: bool,
}

impl Reader<BufReader<File>> {
    /// Opens the backup in the file `path`.
    ///
    /// # Errors
    /// See [`Reader::new`].
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let place = path.display().to_string();
        let file = File::open(path).map_err(|source| BackupError::Io { place: place.clone(), source })?;
        Self::new(BufReader::new(file), place)
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads the header. `place` is what errors call the backup.
    ///
    /// # Errors
    /// When it cannot be read, is no backup, or has a newer format.
    pub fn new(mut from: R, place: String) -> Result<Self, BackupError> {
        let first =
            read_line(&mut from).map_err(|source| BackupError::Io { place: place.clone(), source })?;
        let Ok(format) = serde_json::from_slice::<HeaderFormat>(&first) else {
            return Err(BackupError::NotABackup { place });
        };
        if format.passant_backup > FORMAT {
            return Err(BackupError::NewerFormat { place, found: format.passant_backup });
        }
        let header: Header = serde_json::from_slice(&first).map_err(|error| BackupError::Damaged {
            place: place.clone(),
            line: 1,
            what: error.to_string(),
        })?;
        let mut sum = Context::new(&SHA256);
        sum.update(&first);
        let audit = Audit::new(header.trust_domain.clone(), header.revision);
        Ok(Self { from, place, header, audit, sum, line: 1, is_at_end: false })
    }

    /// The first line.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The put of the next object; `None` once everything was read, and is what was written.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] at the first line that is not what it should be, a missing end among them;
    /// [`BackupError::Unsound`] at the end; or when the file cannot be read.
    pub fn next_object(&mut self) -> Result<Option<Change>, BackupError> {
        if self.is_at_end {
            return Ok(None);
        }
        let text = read_line(&mut self.from)
            .map_err(|source| BackupError::Io { place: self.place.clone(), source })?;
        self.line += 1;
        if text.is_empty() {
            return Err(self.damaged("the end is missing: the file was cut off"));
        }
        if text.last() != Some(&b'\n') {
            return Err(self.damaged("the line has no end: the file was cut off, or the line is too long"));
        }
        if let Ok(trailer) = serde_json::from_slice::<Trailer>(&text) {
            return self.end(&trailer).map(|()| None);
        }
        let object: Change = serde_json::from_slice(&text).map_err(|error| self.damaged(error))?;
        self.sum.update(&text);
        self.audit.take(&object).map_err(|what| self.damaged(what))?;
        Ok(Some(object))
    }

    fn end(&mut self, trailer: &Trailer) -> Result<(), BackupError> {
        let seen = self.audit.holds();
        if trailer.objects != seen.objects() || seen != self.header.holds {
            return Err(
                self.damaged(format!("{} objects were read, another number was written", seen.objects()))
            );
        }
        if trailer.sha256 != finished(&self.sum) {
            return Err(self.damaged("the checksum of what stands before it is another one"));
        }
        let after = read_line(&mut self.from)
            .map_err(|source| BackupError::Io { place: self.place.clone(), source })?;
        if !after.is_empty() {
            return Err(self.damaged("more follows after the last line"));
        }
        self.is_at_end = true;
        match self.audit.faults().into_iter().next() {
            None => Ok(()),
            Some(what) => Err(BackupError::Unsound { place: self.place.clone(), what }),
        }
    }

    fn damaged(&self, what: impl ToString) -> BackupError {
        BackupError::Damaged { place: self.place.clone(), line: self.line, what: what.to_string() }
    }
}

/// One line with its newline; nothing at the end. A line beyond all bounds is cut, and then lacks its newline.
fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(BACKUP_LINE).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Reads the whole backup in `path`, and says what it holds.
///
/// # Errors
/// As [`Reader::next_object`].
pub fn verify(path: &Path) -> Result<Header, BackupError> {
    let mut reader = Reader::open(path)?;
    while reader.next_object()?.is_some() {}
    Ok(reader.header)
}

#[cfg(test)]
pub(crate) mod tests;
