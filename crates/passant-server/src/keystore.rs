//! Where do the private keys of authorities rest?
//!
//! A key is put here before its authority is journaled and removed once the authority is gone, or retired and expired, so that
//! the journal never names a usable authority whose key was not yet safe. Two stores keep one contract (`keystore/contract.rs`):
//! [`KeyFile`] for real servers and [`MemoryKeys`] for development and tests.

mod file;
mod memory;

#[cfg(test)]
mod contract;

use std::path::PathBuf;

use passant_core::secret::Secret;
use thiserror::Error;

use crate::state::authority::AuthorityId;

pub(crate) use file::FILE;
pub use file::KeyFile;
pub use memory::MemoryKeys;

/// Keeps private keys by the authority they belong to.
///
/// Every call blocks until it is durable; the caller runs it off the I/O threads. Keys are PKCS#8 DER.
pub trait KeyStore: Send + Sync {
    /// Keeps a key, durably. Putting the same authority again replaces its key.
    ///
    /// # Errors
    /// When the key could not be made durable; the store then holds what it held before.
    fn put(&self, id: &AuthorityId, pkcs8: &Secret<Vec<u8>>) -> Result<(), KeyStoreError>;

    /// The key of an authority, or `None` when it is not kept here.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, id: &AuthorityId) -> Result<Option<Secret<Vec<u8>>>, KeyStoreError>;

    /// Forgets a key, durably. Removing an absent key succeeds.
    ///
    /// # Errors
    /// When the removal could not be made durable.
    fn remove(&self, id: &AuthorityId) -> Result<(), KeyStoreError>;

    /// Whose keys are kept, in id order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn ids(&self) -> Result<Vec<AuthorityId>, KeyStoreError>;
}

/// Why a key store could not do what was asked.
#[derive(Debug, Error)]
pub enum KeyStoreError {
    /// The file system refused.
    #[error("failed to {doing} key file {path}")]
    Io {
        /// What was being done, for example `write`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// Somebody else than the owner may read the keys.
    #[error(
        "key file {path} has mode {mode:03o}: it holds the private keys of the trust domain and must be readable by its \
         owner only; run chmod 600 on it after making sure that nobody copied it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not what this version writes.
    #[error("key file {path} is damaged or from a newer version ({why}); restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}
