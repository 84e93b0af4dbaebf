//! Does a signature over an x509pop challenge verify?
//!
//! ECDSA goes through ring. RSA does not: Go signs PSS with the longest salt that fits and ring accepts only a salt as
//! long as the hash, so the (public) RSA operation and the PSS encoding of RFC 8017 are checked here.

use ring::digest::{self, SHA256, SHA256_OUTPUT_LEN, digest};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::num_bigint::BigUint;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::public_key::PublicKey as ParsedKey;

use crate::limits::RSA_BITS_MIN;
use crate::node::Rejection;

/// A node's public key, of a kind that can be verified.
pub(super) enum PublicKey {
    /// Modulus and exponent.
    Rsa { modulus: BigUint, exponent: BigUint },
    /// The uncompressed point.
    P256(Vec<u8>),
    /// The uncompressed point.
    P384(Vec<u8>),
}

impl PublicKey {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Self, Rejection> {
        let key_info = certificate.public_key();
        let unusable = || {
            Rejection::denied(
                "key of the node's certificate cannot be used: expected RSA of 2048 bits or more, P-256 or P-384",
            )
        };
        if let Some((modulus, exponent)) = rsa_parts(certificate) {
            let is_sound = modulus.bits() >= RSA_BITS_MIN as u64
                && modulus.bit(0)
                && exponent.bit(0)
                && (2..=33).contains(&exponent.bits());
            return if is_sound { Ok(Self::Rsa { modulus, exponent }) } else { Err(unusable()) };
        }
        if key_info.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return Err(unusable());
        }
        let curve = key_info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        let curve = curve.ok_or_else(unusable)?;
        let point = key_info.subject_public_key.data.to_vec();
        if curve == OID_EC_P256 {
            Ok(Self::P256(point))
        } else if curve == OID_NIST_EC_P384 {
            Ok(Self::P384(point))
        } else {
            Err(unusable())
        }
    }
}

fn rsa_parts(certificate: &X509Certificate<'_>) -> Option<(BigUint, BigUint)> {
    match certificate.public_key().parsed().ok()? {
        ParsedKey::RSA(key) => {
            Some((BigUint::from_bytes_be(key.modulus), BigUint::from_bytes_be(key.exponent)))
        }
        ParsedKey::EC(_)
        | ParsedKey::DSA(_)
        | ParsedKey::GostR3410(_)
        | ParsedKey::GostR3410_2012(_)
        | ParsedKey::Unknown(_) => None,
    }
}

/// Refuses an RSA key over `most` bits before any work is done with it.
pub(super) fn check_rsa_bits(certificate: &X509Certificate<'_>, most: usize) -> Result<(), Rejection> {
    match rsa_parts(certificate) {
        Some((modulus, _)) if modulus.bits() > most as u64 => Err(Rejection::invalid(format!(
            "a certificate of the node has an RSA key of more than {most} bits"
        ))),
        _ => Ok(()),
    }
}

/// `r` and `s` big-endian, without sign.
pub(super) fn verify_ecdsa(is_p256: bool, point: &[u8], message: &[u8], r: &[u8], s: &[u8]) -> bool {
    let algorithm: &dyn VerificationAlgorithm =
        if is_p256 { &ECDSA_P256_SHA256_ASN1 } else { &ECDSA_P384_SHA256_ASN1 };
    let (Some(r), Some(s)) = (der_integer(r), der_integer(s)) else { return false };
    let Ok(length) = u8::try_from(r.len() + s.len()) else { return false };
    let header: &[u8] = if length < 0x80 { &[0x30, length] } else { &[0x30, 0x81, length] };
    UnparsedPublicKey::new(algorithm, point).verify(message, &[header, &r, &s].concat()).is_ok()
}

/// DER INTEGER of a positive number of at most 48 bytes; `None` for zero and for longer ones.
fn der_integer(big_endian: &[u8]) -> Option<Vec<u8>> {
    let first = big_endian.iter().position(|byte| *byte != 0)?;
    let digits = &big_endian[first..];
    if digits.len() > 48 {
        return None;
    }
    let sign: &[u8] = if digits[0] & 0x80 == 0 { &[] } else { &[0] };
    let length = u8::try_from(sign.len() + digits.len()).ok()?;
    Some([&[0x02, length], sign, digits].concat())
}

/// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of any length (RFC 8017, sections 8.1.2 and 9.1.2).
pub(super) fn verify_rsa_pss(
    modulus: &BigUint,
    exponent: &BigUint,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let modulus_bits = modulus.bits();
    let number = BigUint::from_bytes_be(signature);
    if signature.len() as u64 != modulus_bits.div_ceil(8) || number >= *modulus {
        return false;
    }
    let encoded_bits = modulus_bits - 1;
    let Ok(encoded_length) = usize::try_from(encoded_bits.div_ceil(8)) else { return false };
    let digits = number.modpow(exponent, modulus).to_bytes_be();
    let Some(zeros) = encoded_length.checked_sub(digits.len()) else { return false };
    let encoded = [vec![0; zeros], digits].concat();
    is_pss_encoding(&encoded, encoded_bits, digest(&SHA256, message).as_ref())
}

fn is_pss_encoding(encoded: &[u8], encoded_bits: u64, message_hash: &[u8]) -> bool {
    let Some(at) = encoded.len().checked_sub(SHA256_OUTPUT_LEN + 1) else { return false };
    let (masked, [hash @ .., 0xbc]) = encoded.split_at(at) else { return false };
    // The bits that stand before `encoded_bits` in the first byte.
    let used_mask = 0xff_u8 >> (encoded.len() as u64 * 8 - encoded_bits);
    let Some(first) = masked.first() else { return false };
    if first & !used_mask != 0 {
        return false;
    }
    let mut block: Vec<u8> =
        masked.iter().zip(mgf1(hash, masked.len())).map(|(byte, mask)| byte ^ mask).collect();
    block[0] &= used_mask;
    let Some(separator) = block.iter().position(|byte| *byte != 0) else { return false };
    if block[separator] != 1 {
        return false;
    }
    let mut context = digest::Context::new(&SHA256);
    context.update(&[0; 8]);
    context.update(message_hash);
    context.update(&block[separator + 1..]);
    context.finish().as_ref() == hash
}

fn mgf1(seed: &[u8], length: usize) -> Vec<u8> {
    let mut mask = Vec::with_capacity(length + SHA256_OUTPUT_LEN);
    let mut counter = 0_u32;
    while mask.len() < length {
        let mut context = digest::Context::new(&SHA256);
        context.update(seed);
        context.update(&counter.to_be_bytes());
        mask.extend_from_slice(context.finish().as_ref());
        counter += 1;
    }
    mask.truncate(length);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_integers_are_minimal_and_positive() {
        assert_eq!(der_integer(&[0, 0, 1]), Some(vec![2, 1, 1]));
        assert_eq!(der_integer(&[0x80]), Some(vec![2, 2, 0, 0x80]));
        assert_eq!(der_integer(&[]), None);
        assert_eq!(der_integer(&[0; 48]), None);
        assert!(der_integer(&[1; 48]).is_some());
        assert_eq!(der_integer(&[1; 49]), None);
    }

    #[test]
    fn hostile_lengths_are_only_refused() {
        let modulus = BigUint::from_bytes_be(&[0xff; 256]);
        let exponent = BigUint::from(65_537_u32);
        for signature in [&[][..], &[0; 255], &[0; 256], &[0xff; 256], &[1; 257]] {
            assert!(!verify_rsa_pss(&modulus, &exponent, b"m", signature));
        }
        for encoded in [&[][..], &[0xbc], &[0xbc; 33], &[0xbc; 34]] {
            assert!(!is_pss_encoding(encoded, encoded.len() as u64 * 8, &[0; 32]));
        }
    }
}
