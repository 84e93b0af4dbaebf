//! What does an X509-SVID cost, beside the check of its CSR's signature and the signature of its own?

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use passant_core::Refusal;
use passant_server::issue::IssuedX509;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::clock::{on_the_wall, on_this_core};
use crate::commit::Written;
use crate::issuer::Rig;
use crate::lab::Lab;
use crate::row::{Row, Unit};

pub(crate) const MINT: Row = Row {
    key: "mint",
    ours: "X509-SVID from CSR bytes to what may leave the server, one of a batch of 100 for an agent with 100 \
           entries; decision record in memory",
    floor: "ring: one ECDSA P-256 verification of the CSR's signature and one signature of the certificate",
    aim: Some(1.25),
    unit: Unit::CpuTime,
};

pub(crate) const MINT_DURABLY: Row = Row {
    key: "mint-durably",
    ours: "the same for a single X509-SVID, its intent durable in the decision record before it is signed",
    floor: "the same, and one write of the intent's line with `fdatasync`",
    aim: None,
    unit: Unit::WallTime,
};

/// The bytes of an intent's line in the record, as they are on average.
const INTENT: usize = 640;
/// The signed part of a leaf with one SPIFFE ID.
const LEAF: usize = 440;

pub(crate) fn measure(lab: &mut Lab) -> Result<()> {
    if lab.wants(&MINT) {
        let rig = Rig::new(None)?;
        let csrs = rig.csrs()?;
        let bare = Bare::new(&csrs)?;
        let floor = |times| on_this_core(|| bare.batches(times)) / csrs_in(&csrs);
        let ours = |times| on_this_core(|| batches(&rig, &csrs, times)) / csrs_in(&csrs);
        check(&rig, &csrs)?;
        lab.turns(&MINT, floor, ours)?;
    }
    if lab.wants(&MINT_DURABLY) {
        let rig = Rig::new(Some(&lab.place.path("decisions")))?;
        let csrs = rig.csrs()?;
        let bare = Bare::new(&csrs)?;
        let mut file = Written::open(&lab.place.path("intents"))?;
        let line = vec![b'x'; INTENT];
        let floor = |times| on_the_wall(|| bare.durably(&mut file, &line, times));
        let ours = |times| on_the_wall(|| singly(&rig, &csrs, times));
        lab.turns(&MINT_DURABLY, floor, ours)?;
    }
    Ok(())
}

fn csrs_in(csrs: &[Vec<u8>]) -> u32 {
    u32::try_from(csrs.len()).expect("there are a hundred")
}

fn check(rig: &Rig, csrs: &[Vec<u8>]) -> Result<()> {
    let issued = rig.runtime.block_on(batch(rig, csrs));
    ensure!(issued.len() == csrs.len(), "{} SVIDs for {} CSRs", issued.len(), csrs.len());
    issued.into_iter().collect::<Result<Vec<_>, _>>().context("an SVID was refused")?;
    Ok(())
}

fn batches(rig: &Rig, csrs: &[Vec<u8>], times: u64) {
    rig.runtime.block_on(async {
        for _ in 0..times {
            black_box(batch(rig, csrs).await);
        }
    });
}

async fn batch(rig: &Rig, csrs: &[Vec<u8>]) -> Vec<Result<IssuedX509, Refusal>> {
    let requests = rig.entry_ids.iter().cloned().zip(csrs.iter().cloned()).collect();
    rig.issuer.x509_batch(&rig.agent, requests).await
}

fn singly(rig: &Rig, csrs: &[Vec<u8>], times: u64) {
    rig.runtime.block_on(async {
        for (id, csr) in rig.entry_ids.iter().zip(csrs).cycle().take(as_count(times)) {
            black_box(rig.issuer.x509_batch(&rig.agent, vec![(id.clone(), csr.clone())]).await);
        }
    });
}

fn as_count(times: u64) -> usize {
    usize::try_from(times).unwrap_or(usize::MAX)
}

/// Nothing but the cryptography, through ring.
struct Bare {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// Of each CSR: public key, what is signed, signature.
    requests: Vec<[Vec<u8>; 3]>,
    leaf: Vec<u8>,
}

impl Bare {
    #[expect(clippy::disallowed_methods, reason = "the floor has nothing of ours between it and ring")]
    fn new(csrs: &[Vec<u8>]) -> Result<Self> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random)?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)?;
        let requests = csrs.iter().map(|csr| {
            let (_, request) = X509CertificationRequest::from_der(csr)?;
            let info = &request.certification_request_info;
            let signature = request.signature_value.data.to_vec();
            Ok([info.subject_pki.subject_public_key.data.to_vec(), info.raw.to_vec(), signature])
        });
        Ok(Self { key, random, requests: requests.collect::<Result<_>>()?, leaf: vec![7; LEAF] })
    }

    fn one(&self, [key, signed, signature]: &[Vec<u8>; 3]) {
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(signed, signature);
        verified.expect("the CSR was signed with its key");
        black_box(self.key.sign(&self.random, &self.leaf).expect("the system gives randomness"));
    }

    fn batches(&self, times: u64) {
        for _ in 0..times {
            self.requests.iter().for_each(|request| self.one(request));
        }
    }

    fn durably(&self, file: &mut Written, line: &[u8], times: u64) {
        for request in self.requests.iter().cycle().take(as_count(times)) {
            file.write(line);
            self.one(request);
        }
    }
}
