//! Does a certificate signing request that is taken come from whoever holds its key?
//!
//! The first byte chooses what the rest is: 0 a request, 1 the attributes of one that is signed here, 2 all of its signed part.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use passant_core::csr::{Csr, key_hash};
use passant_core::jwk::PublicKey;
use passant_core::limits::CSR_RSA_MODULUS_BITS_MAX;
use passant_fuzz::{LEAF_KEY, der, signed, to_be_signed};

/// The holder of the one RSA key in the corpus.
const RSA_REQUEST: &[u8] = include_bytes!("../../../../crates/passant-core/src/testdata/rsa2048.csr.der");

/// The same without the parameters of its algorithm, which RFC 4055 (clause 5) asks to take as well.
static RSA_REQUEST_WITHOUT_NULL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    /// sha256WithRSAEncryption in its sequence.
    const ALGORITHM: [u8; 13] = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11];
    let signed = to_be_signed(RSA_REQUEST);
    let bits = &RSA_REQUEST[RSA_REQUEST.len() - SIGNATURE_BITS..];
    der(0x30, &[signed, &der(0x30, &ALGORITHM[2..]), bits].concat())
});
/// Bytes of a BIT STRING that holds a signature by 2048 bits.
const SIGNATURE_BITS: usize = 4 + 1 + 2048 / 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((way, rest)) = bytes.split_first() else { return };
    let request = match way % 3 {
        0 => rest.to_vec(),
        1 => signed(&info(rest), &**LEAF_KEY),
        _ => signed(rest, &**LEAF_KEY),
    };
    let Ok(csr) = Csr::parse(&request) else { return };
    let key = PublicKey::from_spki(csr.public_key()).expect("the key was understood");
    assert_eq!(key.to_spki(), csr.public_key(), "the key is in its canonical form");
    assert!(key.rsa_bits().is_none_or(|bits| bits <= CSR_RSA_MODULUS_BITS_MAX));
    assert_eq!(csr.key_hash(), key_hash(csr.public_key()));
    let rsa_holder = Csr::parse(RSA_REQUEST).expect("it is one of the seeds");
    let holders = [LEAF_KEY.public_key(), rsa_holder.public_key()];
    assert!(holders.contains(&csr.public_key()), "a request was taken from somebody without a key");
    if *way % 3 == 0 && csr.public_key() == rsa_holder.public_key() {
        let same = request == RSA_REQUEST || request == *RSA_REQUEST_WITHOUT_NULL;
        assert!(same, "a signature vouches for what was not signed");
    }
});

/// CertificationRequestInfo: version 0, no subject, the leaf's key.
fn info(attributes: &[u8]) -> Vec<u8> {
    const VERSION_AND_SUBJECT: [u8; 5] = [2, 1, 0, 0x30, 0];
    der(0x30, &[&VERSION_AND_SUBJECT, LEAF_KEY.public_key(), &der(0xa0, attributes)].concat())
}
