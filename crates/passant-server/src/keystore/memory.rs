//! Keys that live as long as the process: for development, tests and simulation.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use passant_core::secret::Secret;

use super::{KeyStore, KeyStoreError};
use crate::state::authority::AuthorityId;

/// A key store without a file. A restart of the process loses every key.
#[derive(Default)]
pub struct MemoryKeys {
    keys: Mutex<BTreeMap<AuthorityId, Secret<Vec<u8>>>>,
}

impl MemoryKeys {
    fn keys(&self) -> MutexGuard<'_, BTreeMap<AuthorityId, Secret<Vec<u8>>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyStore for MemoryKeys {
    fn put(&self, id: &AuthorityId, pkcs8: &Secret<Vec<u8>>) -> Result<(), KeyStoreError> {
        self.keys().insert(id.clone(), Secret::new(pkcs8.expose().clone()));
        Ok(())
    }

    fn get(&self, id: &AuthorityId) -> Result<Option<Secret<Vec<u8>>>, KeyStoreError> {
        Ok(self.keys().get(id).map(|key| Secret::new(key.expose().clone())))
    }

    fn remove(&self, id: &AuthorityId) -> Result<(), KeyStoreError> {
        self.keys().remove(id);
        Ok(())
    }

    fn ids(&self) -> Result<Vec<AuthorityId>, KeyStoreError> {
        Ok(self.keys().keys().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::contract;

    #[test]
    fn memory_keys_keep_the_contract() {
        contract::check(&MemoryKeys::default());
    }
}
