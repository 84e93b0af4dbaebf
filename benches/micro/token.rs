//! What does a JWT-SVID cost, beside its signature?

use std::hint::black_box;

use anyhow::{Context, Result};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use crate::clock::on_this_core;
use crate::issuer::Rig;
use crate::lab::Lab;
use crate::row::{Row, Unit};

pub(crate) const TOKEN: Row = Row {
    key: "jwt",
    ours: "JWT-SVID from an entry ID to what may leave the server, for an agent with 100 entries; decision record in \
           memory",
    floor: "ring: one ES256 signature of as many bytes",
    aim: Some(1.15),
    unit: Unit::CpuTime,
};

const AUDIENCE: &str = "spiffe://bench.example.org/reports";

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    if !lab.wants(&TOKEN) {
        return Ok(());
    }
    let rig = Rig::new(None)?;
    let issue = |id: &str| {
        let audience = vec![AUDIENCE.to_owned()];
        let id = id.to_owned();
        let (issuer, agent) = (&rig.issuer, &rig.agent);
        async move { issuer.jwt(agent, &id, audience).await }
    };
    let first = rig.runtime.block_on(issue(&rig.entry_ids[0])).context("a JWT-SVID was refused")?;
    let (signed, _) = first.svid().token().rsplit_once('.').context("a token has no signature")?;
    let bare = Bare::new(signed.as_bytes().to_vec())?;
    let ours = |times: u64| {
        on_this_core(|| {
            rig.runtime.block_on(async {
                for (_, id) in (0..times).zip(rig.entry_ids.iter().cycle()) {
                    black_box(issue(id).await.expect("it was issued a moment ago"));
                }
            });
        })
    };
    lab.turns(&TOKEN, |times| on_this_core(|| bare.sign(times)), ours)
}

struct Bare {
    key: EcdsaKeyPair,
    random: SystemRandom,
    signed: Vec<u8>,
}

impl Bare {
    #[expect(clippy::disallowed_methods, reason = "the floor has nothing of ours between it and ring")]
    fn new(signed: Vec<u8>) -> Result<Self> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random)?;
        Ok(Self { key: EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)?, random, signed })
    }

    fn sign(&self, times: u64) {
        for _ in 0..times {
            black_box(self.key.sign(&self.random, &self.signed).expect("the system gives randomness"));
        }
    }
}
