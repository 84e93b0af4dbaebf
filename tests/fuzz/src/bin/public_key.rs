//! Does a public key keep its value from SubjectPublicKeyInfo and JWK, and through both?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::jwk::PublicKey;
use passant_core::limits::{RSA_MODULUS_BITS_MAX, RSA_MODULUS_BITS_MIN, SPKI_BYTES};
use serde_json::{Map, Value};

fuzz_target!(|bytes: &[u8]| {
    let from_jwk = serde_json::from_slice::<Map<String, Value>>(bytes).ok();
    let from_jwk = from_jwk.and_then(|jwk| PublicKey::from_jwk(&jwk).ok());
    for key in [PublicKey::from_spki(bytes).ok(), from_jwk].into_iter().flatten() {
        let spki = key.to_spki();
        assert!(spki.len() <= SPKI_BYTES);
        assert_eq!(PublicKey::from_spki(&spki).as_ref(), Ok(&key));
        assert_eq!(PublicKey::from_jwk(&key.to_jwk()).as_ref(), Ok(&key));
        assert!(spki.ends_with(&key.key_bytes()));
        let bits = key.rsa_bits().unwrap_or(RSA_MODULUS_BITS_MIN);
        assert!((RSA_MODULUS_BITS_MIN..=RSA_MODULUS_BITS_MAX).contains(&bits));
    }
});
