//! What must a durable store do?

use std::path::PathBuf;

use passant_core::TrustDomain;
use thiserror::Error;

use crate::state::change::{Change, Commit, Lineage, Revision};

#[cfg(test)]
mod contract;
pub mod memory;
pub(crate) mod metered;
pub mod sled;
pub(crate) mod witness;

/// A journal of commits, together with the objects that the commits made.
///
/// Calls block, and come from one thread at a time. A store belongs to one process: opening it a second time fails
/// with [`StoreError::Held`]. What the implementations promise is written down once, as the suite in
/// `store/contract.rs`.
pub trait Store: Send {
    /// All objects that stand, in the order of their keys, and where the store stands.
    ///
    /// # Errors
    /// When the store cannot be read, or holds what this version cannot take for true; see [`StoreError`].
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Appends `commits` as the revisions that follow `after`, all of them or none, and returns once they are
    /// durable. Appending nothing does nothing.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] when the store does not stand at `after`; otherwise see [`AppendError`].
    fn append(&mut self, after: Revision, commits: &[Commit]) -> Result<(), AppendError>;

    /// The commits after `after`, oldest first, each with its revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when some of them are no longer kept; otherwise as [`Store::load`].
    fn tail(&mut self, after: Revision) -> Result<Vec<(Revision, Commit)>, StoreError>;

    /// Forgets the commits up to and including `upto`. The objects they made stay.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn compact(&mut self, upto: Revision) -> Result<(), StoreError>;

    /// Lets go of everything that was read or opened, and opens it again. Afterwards only what the disk really holds is
    /// told: nothing is believed of a page that was written before and may never have reached it.
    ///
    /// # Errors
    /// As when a store is opened; then every call answers [`StoreError::Unusable`] until this succeeds.
    fn reopen(&mut self) -> Result<(), StoreError>;

    /// Whether calls return at once, so that they may be made on an I/O thread.
    fn is_instant(&self) -> bool {
        false
    }
}

/// What a store holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The life of this store.
    pub lineage: Lineage,
    /// The commits taken so far.
    pub revision: Revision,
    /// The trust domain it was created for.
    pub trust_domain: TrustDomain,
    /// A put for every object that stands, in the order of their keys.
    pub objects: Vec<Change>,
}

/// Why commits were not acknowledged.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Somebody else appended first; nothing was written.
    #[error("store stands at revision {at}, not where the commits were made for")]
    Conflict {
        /// Where the store stands.
        at: Revision,
    },
    /// The commits may or may not last: look for their request IDs in [`Store::tail`].
    #[error("store did not say whether the commits last")]
    Unknown(#[source] StoreError),
    /// Nothing was written.
    #[error("failed to append to the store")]
    Failed(#[source] StoreError),
}

/// Why a store cannot be used. Each is for the operator, and names the place.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store is open already.
    #[error(
        "data directory {dir} is held by another process: stop the other passant-server, or give this one a data \
         directory of its own"
    )]
    Held {
        /// The data directory.
        dir: PathBuf,
    },
    /// There are keys of authorities, but the state that says what they are for is not there.
    #[error(
        "data directory {dir} has keys.json but no state: bring it back with passant store restore, or move keys.json \
         and decisions away to start a new trust domain"
    )]
    StateGone {
        /// The data directory.
        dir: PathBuf,
    },
    /// State is to be restored where there is some.
    #[error(
        "{place} holds state already: restore into a data directory without state; if this one is damaged or to be \
         given up, move {place} away first, and leave keys.json and decisions where they are"
    )]
    StateThere {
        /// The directory that holds it.
        place: PathBuf,
    },
    /// There is nothing to look at.
    #[error("data directory {dir} has no state")]
    NoState {
        /// The data directory.
        dir: PathBuf,
    },
    /// A restoration did not come to its end.
    #[error(
        "{place} was left by a restoration that was interrupted: run passant store restore again, or remove it to \
         start without what was to be restored"
    )]
    RestoreUnfinished {
        /// What it left.
        place: PathBuf,
    },
    /// The store belongs to another trust domain.
    #[error(
        "store {place} holds trust domain {stored}, but the configuration says {configured}: correct trust_domain, \
         or use an empty data directory"
    )]
    OtherTrustDomain {
        /// Which store.
        place: String,
        /// The trust domain it was created for.
        stored: TrustDomain,
        /// The one that was asked for.
        configured: TrustDomain,
    },
    /// A later version of this program wrote it.
    #[error(
        "{place} has format {found}, but this version reads formats up to {known}: run the newer version that wrote it"
    )]
    NewerFormat {
        /// Which store or record.
        place: String,
        /// The format that was found.
        found: u64,
        /// The newest format that this version reads.
        known: u64,
    },
    /// What was read is not what was written, or was written by a version that knows more.
    #[error(
        "{place} is damaged ({what}): restore the data directory from a backup, or run the newer version that wrote it"
    )]
    Corrupt {
        /// Which store or record.
        place: String,
        /// What is wrong with it.
        what: String,
    },
    /// It stood further once: its newest commits are missing.
    #[error(
        "datastore {place} stands at revision {found}, but revision {acknowledged} was acknowledged: it is damaged, or an older \
         copy; restore the data directory from a backup, or, to go on without what is missing, remove {witness}"
    )]
    Behind {
        /// Which store.
        place: String,
        /// Where it stands.
        found: Revision,
        /// Where it stood.
        acknowledged: Revision,
        /// The file that says so.
        witness: PathBuf,
    },
    /// Commits were asked for that are no longer kept.
    #[error("commits up to revision {upto} are no longer kept")]
    Compacted {
        /// The newest revision that was forgotten.
        upto: Revision,
    },
    /// An earlier write failed, and only [`Store::reopen`] shows what became of it.
    #[error("store failed earlier and must be opened again")]
    Unusable,
    /// The operating system refused.
    #[error("failed to {doing} {place}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        place: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// sled refused.
    #[error("failed to {doing} {place}")]
    Sled {
        /// What was being done.
        doing: &'static str,
        /// To what.
        place: String,
        /// Why it failed.
        #[source]
        source: ::sled::Error,
    },
}

/// Refuses a store that was created for another trust domain.
fn check_trust_domain(place: &str, stored: &TrustDomain, configured: &TrustDomain) -> Result<(), StoreError> {
    if stored == configured {
        return Ok(());
    }
    Err(StoreError::OtherTrustDomain {
        place: place.to_owned(),
        stored: stored.clone(),
        configured: configured.clone(),
    })
}
