//! Does a node answer a challenge only with a signature over both nonces?
#![no_main]

use std::cell::RefCell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use libfuzzer_sys::fuzz_target;
use passant_attest::node::Prover;
use passant_attest::node::x509pop::{X509PopProver, X509PopProverConfig};
use passant_fuzz::{HOST, LEAF_KEY, at_once, leaf};
use serde_json::Value;

thread_local! {
    static PROVER: RefCell<X509PopProver> = RefCell::new(prover());
}

fuzz_target!(|challenge: &[u8]| {
    let answer = PROVER.with_borrow_mut(|prover| at_once(prover.respond(challenge)));
    let Ok(answer) = answer else { return };
    let answer: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
    let own = BASE64_STANDARD.decode(answer["ecdsa_signature"]["nonce"].as_str().unwrap_or_default());
    assert_eq!(own.as_deref(), Ok(&[7; 32][..]), "a nonce of its own");
    assert!(answer.get("rsa_signature").is_none_or(Value::is_null));
});

/// A prover that has shown its evidence.
fn prover() -> X509PopProver {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (certificate, key) = (dir.path().join("certificate.pem"), dir.path().join("key.pem"));
    let pem = |label: &str, der: &[u8]| {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
    };
    std::fs::write(&certificate, pem("CERTIFICATE", &leaf("spiffe://example.org/n", |_| {})))
        .expect("writable");
    std::fs::write(&key, pem("PRIVATE KEY", LEAF_KEY.pkcs8().expose())).expect("writable");
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("ours");
    let config = X509PopProverConfig {
        private_key_path: key,
        certificate_path: certificate,
        intermediates_path: None,
    };
    let mut prover = X509PopProver::open(config, HOST.clone()).expect("a sound configuration");
    at_once(prover.evidence()).expect("its files are there");
    prover
}
