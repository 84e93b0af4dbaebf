//! How long do the bare signature and its verification take?

use std::hint::black_box;

use anyhow::{Context, Result};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};

use crate::clock;
use crate::numbers::median;

/// The signed part of a leaf with one SPIFFE ID, in bytes.
const SIGNED: usize = 440;
/// Of these rounds the median counts.
const ROUNDS: usize = 15;
const PER_ROUND: u32 = 100;

/// ECDSA on P-256 by ring, in microseconds of one core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crypto {
    pub(crate) sign: f64,
    pub(crate) verify: f64,
}

impl Crypto {
    /// Measures both now.
    #[expect(clippy::disallowed_methods, reason = "the floor has nothing of ours between it and ring")]
    pub(crate) fn measured() -> Result<Self> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random)?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)?;
        let message = vec![7; SIGNED];
        let signature = key.sign(&random, &message)?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref().to_vec());
        let sign = each(|| black_box(key.sign(&random, &message)).map(drop))?;
        let verify = each(|| public.verify(&message, black_box(signature.as_ref())))?;
        Ok(Self { sign, verify })
    }

    /// The mean of two looks, one before and one after what is measured against them.
    pub(crate) fn and(self, other: Self) -> Self {
        let mean = f64::midpoint;
        Self { sign: mean(self.sign, other.sign), verify: mean(self.verify, other.verify) }
    }
}

/// Microseconds of this thread's work for one `act`.
fn each(act: impl Fn() -> Result<(), ring::error::Unspecified>) -> Result<f64> {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let began = clock::worked();
        for _ in 0..PER_ROUND {
            act()?;
        }
        rounds.push((clock::worked() - began) * 1e3 / f64::from(PER_ROUND));
    }
    median(&rounds).context("there were rounds")
}
