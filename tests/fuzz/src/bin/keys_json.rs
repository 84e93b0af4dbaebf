//! Does a key file that is taken hold the same keys once written and read?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_fuzz::HOST;
use passant_server::keystore::KeyFile;

fuzz_target!(|text: &[u8]| {
    let Ok(keys) = KeyFile::parse(text) else { return };
    let again = KeyFile::parse(&KeyFile::to_json(&keys)).expect("it was written here");
    assert!(keys.keys().eq(again.keys()));
    assert!(keys.values().map(|key| key.expose()).eq(again.values().map(|key| key.expose())));
    for key in keys.values() {
        // Whatever the file holds for a key, loading it fails or gives that key.
        if let Ok(loaded) = HOST.keys.load(key) {
            assert_eq!(loaded.pkcs8().expose(), key.expose());
        }
    }
});
