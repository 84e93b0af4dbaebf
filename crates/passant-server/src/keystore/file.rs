//! Keys in one file, `keys.json`, mode 0600.
//!
//! Every change writes the whole file anew beside the old one, syncs it, renames it over the old one and syncs the
//! directory: a crash leaves the old keys or the new ones, never half of them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use passant_core::secret::Secret;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{KeyStore, KeyStoreError};
use crate::state::authority::AuthorityId;

/// The file's name in the data directory.
pub(crate) const FILE: &str = "keys.json";
/// Where the next version is written before it takes the file's place.
const NEXT: &str = "keys.json.next";
/// Owner may read and write, nobody else.
const MODE: u32 = 0o600;
/// The layout that this version reads and writes.
const FORMAT: u32 = 1;
/// A few authorities of at most a few KiB each; a longer file is not ours.
const FILE_BYTES: u64 = 1 << 20;

/// The keys of a server in `keys.json` of its data directory.
///
/// Belongs to one process: the file is read once, at open.
pub struct KeyFile {
    directory: PathBuf,
    keys: Mutex<BTreeMap<AuthorityId, Secret<Vec<u8>>>>,
}

/// The file as JSON: authority id to base64 of PKCS#8 DER.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    format: u32,
    /// CRC-32 of ids and keys, so that damage is told from keys that are no keys. None in files of the first versions.
    #[serde(default)]
    sum: Option<u32>,
    keys: BTreeMap<AuthorityId, String>,
}

impl Layout {
    fn sum_of_keys(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        for (id, text) in &self.keys {
            sum.update(id.to_string().as_bytes());
            sum.update(text.as_bytes());
        }
        sum.finalize()
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        for text in self.keys.values_mut() {
            text.zeroize();
        }
    }
}

impl KeyFile {
    /// Opens the key file in `directory`, which must exist; an absent file is an empty store.
    ///
    /// # Errors
    /// [`KeyStoreError::Exposed`] when group or others have any right to the file, [`KeyStoreError::Damaged`] when it is
    /// not ours, [`KeyStoreError::Io`] when it cannot be read.
    pub fn open(directory: &Path) -> Result<Self, KeyStoreError> {
        let keys = read(&directory.join(FILE))?;
        Ok(Self { directory: directory.to_owned(), keys: Mutex::new(keys) })
    }

    /// Reads the text of a key file: each authority's key as PKCS#8 DER, which nobody has looked into yet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<BTreeMap<AuthorityId, Secret<Vec<u8>>>, &'static str> {
        let layout: Layout = serde_json::from_slice(text).map_err(|_| "not the JSON that is expected")?;
        if layout.format != FORMAT {
            return Err("another format number");
        }
        if layout.sum.is_some_and(|sum| sum != layout.sum_of_keys()) {
            return Err("its checksum does not fit");
        }
        let decode = |(id, text): (&AuthorityId, &String)| {
            let key = BASE64.decode(text).map_err(|_| "a key is not base64")?;
            Ok((id.clone(), Secret::new(key)))
        };
        layout.keys.iter().map(decode).collect()
    }

    /// The text of a key file that holds `keys`.
    pub fn to_json(keys: &BTreeMap<AuthorityId, Secret<Vec<u8>>>) -> Zeroizing<Vec<u8>> {
        let keys = keys.iter().map(|(id, key)| (id.clone(), BASE64.encode(key.expose()))).collect();
        let mut layout = Layout { format: FORMAT, sum: None, keys };
        layout.sum = Some(layout.sum_of_keys());
        let text = serde_json::to_vec_pretty(&layout).expect("strings and a number always serialize");
        Zeroizing::new(text)
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<AuthorityId, Secret<Vec<u8>>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `keys` the content of the file.
    fn write(&self, keys: &BTreeMap<AuthorityId, Secret<Vec<u8>>>) -> Result<(), KeyStoreError> {
        let path = self.directory.join(FILE);
        let next = self.directory.join(NEXT);
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| KeyStoreError::Io { doing, path, source }
        };
        remove_if_there(&next).map_err(failed("replace", &next))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&next)
            .map_err(failed("create", &next))?;
        // The umask may have taken bits away, never added any; state the mode all the same.
        file.set_permissions(Permissions::from_mode(MODE)).map_err(failed("protect", &next))?;
        file.write_all(&Self::to_json(keys))
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &next))?;
        fs::rename(&next, &path).map_err(failed("replace", &path))?;
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync the directory of", &path))
    }
}

impl KeyStore for KeyFile {
    fn put(&self, id: &AuthorityId, pkcs8: &Secret<Vec<u8>>) -> Result<(), KeyStoreError> {
        let mut held = self.keys();
        let mut keys = copy(&held);
        keys.insert(id.clone(), Secret::new(pkcs8.expose().clone()));
        self.write(&keys)?;
        *held = keys;
        Ok(())
    }

    fn get(&self, id: &AuthorityId) -> Result<Option<Secret<Vec<u8>>>, KeyStoreError> {
        Ok(self.keys().get(id).map(|key| Secret::new(key.expose().clone())))
    }

    fn remove(&self, id: &AuthorityId) -> Result<(), KeyStoreError> {
        let mut held = self.keys();
        if !held.contains_key(id) {
            return Ok(());
        }
        let mut keys = copy(&held);
        keys.remove(id);
        self.write(&keys)?;
        *held = keys;
        Ok(())
    }

    fn ids(&self) -> Result<Vec<AuthorityId>, KeyStoreError> {
        Ok(self.keys().keys().cloned().collect())
    }
}

fn copy(keys: &BTreeMap<AuthorityId, Secret<Vec<u8>>>) -> BTreeMap<AuthorityId, Secret<Vec<u8>>> {
    keys.iter().map(|(id, key)| (id.clone(), Secret::new(key.expose().clone()))).collect()
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<BTreeMap<AuthorityId, Secret<Vec<u8>>>, KeyStoreError> {
    let failed = |source| KeyStoreError::Io { doing: "read", path: path.to_owned(), source };
    let damaged = |why| KeyStoreError::Damaged { path: path.to_owned(), why };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let facts = file.metadata().map_err(failed)?;
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyStoreError::Exposed { path: path.to_owned(), mode });
    }
    if facts.len() > FILE_BYTES {
        return Err(damaged("longer than 1 MiB"));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(facts.len()).unwrap_or(0) + 1));
    file.read_to_end(&mut text).map_err(failed)?;
    KeyFile::parse(&text).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::contract;

    fn key(bytes: &[u8]) -> Secret<Vec<u8>> {
        Secret::new(bytes.to_vec())
    }

    #[test]
    fn a_key_file_keeps_the_contract() {
        let home = tempfile::tempdir().unwrap();
        contract::check(&KeyFile::open(home.path()).unwrap());
    }

    #[test]
    fn keys_are_there_after_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let id = AuthorityId::parse("0a").unwrap();
        KeyFile::open(home.path()).unwrap().put(&id, &key(b"kept")).unwrap();
        let again = KeyFile::open(home.path()).unwrap();
        assert_eq!(again.get(&id).unwrap().unwrap().expose(), b"kept");
    }

    #[test]
    fn the_file_is_for_its_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let store = KeyFile::open(home.path()).unwrap();
        store.put(&AuthorityId::parse("0a").unwrap(), &key(b"x")).unwrap();
        let path = home.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        for exposed in [0o640, 0o604, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(exposed)).unwrap();
            assert!(
                matches!(KeyFile::open(home.path()), Err(KeyStoreError::Exposed { mode, .. }) if mode == exposed),
                "mode {exposed:o}"
            );
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(KeyFile::open(home.path()).is_ok());
    }

    #[test]
    fn a_leftover_of_a_crash_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(NEXT), b"half of a fi").unwrap();
        let store = KeyFile::open(home.path()).unwrap();
        store.put(&AuthorityId::parse("0a").unwrap(), &key(b"x")).unwrap();
        assert!(!home.path().join(NEXT).exists());
        assert_eq!(KeyFile::open(home.path()).unwrap().ids().unwrap().len(), 1);
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE);
        for text in ["", "{}", r#"{"format":2,"keys":{}}"#, r#"{"format":1,"keys":{"0a":"*"}}"#, "not json"] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(MODE)).unwrap();
            assert!(matches!(KeyFile::open(home.path()), Err(KeyStoreError::Damaged { .. })), "{text}");
        }
    }

    #[test]
    fn a_key_that_is_not_what_was_written_is_noticed() {
        let home = tempfile::tempdir().unwrap();
        let id = AuthorityId::parse("0a").unwrap();
        KeyFile::open(home.path()).unwrap().put(&id, &key(b"abcdefghi")).unwrap();
        let path = home.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let written = BASE64.encode(b"abcdefghi");
        for damaged in
            [text.replace(&written, &BASE64.encode(b"abcdefghj")), text.replace("\"0a\"", "\"0b\"")]
        {
            assert_ne!(damaged, text);
            fs::write(&path, damaged).unwrap();
            let refused = KeyFile::open(home.path()).err().unwrap().to_string();
            assert!(refused.contains("checksum") && refused.contains("keys.json"), "{refused}");
        }
        // Files of the first versions have none.
        fs::write(&path, r#"{"format":1,"keys":{"0a":"YWJj"}}"#).unwrap();
        assert_eq!(KeyFile::open(home.path()).unwrap().get(&id).unwrap().unwrap().expose(), b"abc");
    }
}
