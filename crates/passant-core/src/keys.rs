//! What can a private key do here, and which kinds are there?

use std::fmt;

use ring::rand::SecureRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::der::{self, tag};
use crate::secret::Secret;

/// The kinds of key that are generated. RSA keys are accepted from others (in CSRs and bundles), never made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyType {
    /// ECDSA on P-256 with SHA-256; ES256 in tokens.
    EcP256,
    /// ECDSA on P-384 with SHA-384; ES384 in tokens.
    EcP384,
}

/// How the bytes of an ECDSA signature are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureForm {
    /// DER `SEQUENCE { r, s }`, as certificates hold it.
    Asn1,
    /// `r || s`, each as long as the field, as tokens hold it (RFC 7518 3.4).
    Fixed,
}

/// A private key that signs. In production the key is held in memory; a simulation brings a deterministic one.
pub trait SigningKey: Send + Sync {
    /// Its kind.
    fn key_type(&self) -> KeyType;

    /// The public half as a DER SubjectPublicKeyInfo.
    fn public_key(&self) -> &[u8];

    /// Signs `message` (not its digest), hashing as the key type says.
    ///
    /// # Errors
    /// When the signer fails.
    fn sign(&self, message: &[u8], form: SignatureForm) -> Result<Vec<u8>, KeyError>;

    /// The private key as PKCS#8 DER, unencrypted.
    fn pkcs8(&self) -> &Secret<Vec<u8>>;
}

/// Why a key cannot be made, read or used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The bytes are no PKCS#8 key of a kind that is generated here.
    #[error("private key is not a PKCS#8 key on P-256 or P-384")]
    Unreadable,
    /// The system gave no randomness, or the signature failed.
    #[error("failed to generate or use a private key")]
    Failed,
}

impl KeyType {
    /// The name that configuration uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
        }
    }

    /// The DER that precedes the public point in a SubjectPublicKeyInfo of this kind.
    const fn spki_prefix(self) -> &'static [u8] {
        match self {
            Self::EcP256 => &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
                0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
            Self::EcP384 => &[
                0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05,
                0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
            ],
        }
    }

    const fn algorithm(self) -> &'static ring::signature::EcdsaSigningAlgorithm {
        match self {
            Self::EcP256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::EcP384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }
}

/// A key held in this process and used through ring.
pub struct RingKey {
    key_type: KeyType,
    pair: EcdsaKeyPair,
    random: Box<dyn SecureRandom + Send + Sync>,
    spki: Vec<u8>,
    pkcs8: Secret<Vec<u8>>,
}

impl RingKey {
    /// A new key of kind `key_type`, from `random`.
    ///
    /// # Errors
    /// [`KeyError::Failed`] when the system gives no randomness.
    pub fn generate(
        key_type: KeyType,
        random: Box<dyn SecureRandom + Send + Sync>,
    ) -> Result<Self, KeyError> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(key_type.algorithm(), &*random).map_err(|_| KeyError::Failed)?;
        Self::of(key_type, Secret::new(pkcs8.as_ref().to_vec()), random)
    }

    /// Reads a key from unencrypted PKCS#8 DER.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`] when it is no such key, or its public half does not belong to it.
    pub fn load(
        pkcs8: &Secret<Vec<u8>>,
        random: Box<dyn SecureRandom + Send + Sync>,
    ) -> Result<Self, KeyError> {
        let reads = |key_type: KeyType| {
            EcdsaKeyPair::from_pkcs8(key_type.algorithm(), pkcs8.expose(), &*random).is_ok()
        };
        let key_type = [KeyType::EcP256, KeyType::EcP384].into_iter().find(|key_type| reads(*key_type));
        Self::of(key_type.ok_or(KeyError::Unreadable)?, Secret::new(pkcs8.expose().clone()), random)
    }

    fn of(
        key_type: KeyType,
        pkcs8: Secret<Vec<u8>>,
        random: Box<dyn SecureRandom + Send + Sync>,
    ) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(key_type.algorithm(), pkcs8.expose(), &*random)
            .map_err(|_| KeyError::Unreadable)?;
        let spki = [key_type.spki_prefix(), pair.public_key().as_ref()].concat();
        Ok(Self { key_type, pair, random, spki, pkcs8 })
    }
}

impl SigningKey for RingKey {
    fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn public_key(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8], form: SignatureForm) -> Result<Vec<u8>, KeyError> {
        let fixed = self.pair.sign(&*self.random, message).map_err(|_| KeyError::Failed)?;
        Ok(match form {
            SignatureForm::Fixed => fixed.as_ref().to_vec(),
            SignatureForm::Asn1 => asn1_signature(fixed.as_ref()),
        })
    }

    fn pkcs8(&self) -> &Secret<Vec<u8>> {
        &self.pkcs8
    }
}

impl fmt::Debug for RingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingKey({})", self.key_type.as_str())
    }
}

/// `r || s` as DER `SEQUENCE { INTEGER r, INTEGER s }`.
fn asn1_signature(fixed: &[u8]) -> Vec<u8> {
    let (r, s) = fixed.split_at(fixed.len() / 2);
    // Three headers of two bytes, and two signs at most.
    let mut out = Vec::with_capacity(fixed.len() + 8);
    der::element(&mut out, tag::SEQUENCE, |out| {
        der::unsigned(out, r);
        der::unsigned(out, s);
    });
    out
}

/// A [`SigningKey`] as rcgen wants it, to sign certificates and CSRs.
pub struct RcgenKey<'a>(pub &'a dyn SigningKey);

impl rcgen::PublicKeyData for RcgenKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.0.public_key()[self.0.key_type().spki_prefix().len()..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.0.key_type() {
            KeyType::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }
}

impl rcgen::SigningKey for RcgenKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message, SignatureForm::Asn1).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED,
        UnparsedPublicKey, VerificationAlgorithm,
    };

    use super::*;
    use crate::host::Host;

    fn check(
        key_type: KeyType,
        asn1: &'static dyn VerificationAlgorithm,
        fixed: &'static dyn VerificationAlgorithm,
    ) {
        let keys = Host::system().keys;
        let key = keys.generate(key_type).unwrap();
        let again = keys.load(key.pkcs8()).unwrap();
        assert_eq!((again.key_type(), again.public_key()), (key_type, key.public_key()));
        let rcgen_key = RcgenKey(&*again);
        let point = rcgen::PublicKeyData::der_bytes(&rcgen_key);
        // Many rounds, so that halves with a leading zero or a high bit occur.
        for round in 0..64u8 {
            let message = [round; 40];
            let signature = again.sign(&message, SignatureForm::Asn1).unwrap();
            UnparsedPublicKey::new(asn1, point).verify(&message, &signature).unwrap();
            let signature = again.sign(&message, SignatureForm::Fixed).unwrap();
            UnparsedPublicKey::new(fixed, point).verify(&message, &signature).unwrap();
        }
        let (_, spki) = <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<
            '_,
            _,
        >>::from_der(key.public_key())
        .unwrap();
        assert_eq!(spki.subject_public_key.data.as_ref(), point);
    }

    #[test]
    fn p256_signs_in_both_forms_and_reloads() {
        check(KeyType::EcP256, &ECDSA_P256_SHA256_ASN1, &ECDSA_P256_SHA256_FIXED);
    }

    #[test]
    fn p384_signs_in_both_forms_and_reloads() {
        check(KeyType::EcP384, &ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA384_FIXED);
    }

    #[test]
    fn rubbish_is_no_key() {
        assert!(Host::system().keys.load(&Secret::new(vec![1, 2, 3])).is_err());
    }
}
