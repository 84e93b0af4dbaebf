//! What must every key store do?

use passant_core::secret::Secret;

use super::KeyStore;
use crate::state::authority::AuthorityId;

/// Runs the whole contract against an empty store.
pub(super) fn check(store: &dyn KeyStore) {
    let id = |text: &str| AuthorityId::parse(text).unwrap();
    let put = |name: &str, bytes: &[u8]| store.put(&id(name), &Secret::new(bytes.to_vec())).unwrap();
    let get = |name: &str| store.get(&id(name)).unwrap().map(|key| key.expose().clone());

    assert!(store.ids().unwrap().is_empty(), "the contract starts from an empty store");
    assert_eq!(get("0a"), None, "an absent key is no error");
    store.remove(&id("0a")).unwrap();

    put("0b", b"second");
    put("0a", b"first");
    assert_eq!(get("0a").as_deref(), Some(b"first".as_slice()));
    assert_eq!(get("0b").as_deref(), Some(b"second".as_slice()));
    assert_eq!(store.ids().unwrap(), [id("0a"), id("0b")], "ids come in order");

    put("0a", b"replaced");
    assert_eq!(get("0a").as_deref(), Some(b"replaced".as_slice()), "the last put stands");

    store.remove(&id("0a")).unwrap();
    assert_eq!(get("0a"), None, "a removed key is gone");
    assert_eq!(store.ids().unwrap(), [id("0b")], "and only that one");
}
