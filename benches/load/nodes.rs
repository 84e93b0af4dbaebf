//! By what do the played nodes prove themselves? By certificates of two CAs that the run makes for itself.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use passant_core::keys::{KeyType, SignatureForm, SigningKey};
use passant_core::{Host, Secret};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use ring::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::site::node_name;

/// Nodes of the first CA; all others are of the second.
pub(crate) const FIRST: usize = 1_000;
/// The names of the two CAs.
const CAS: [&str; 2] = ["bench node CA 1", "bench node CA 2"];

/// The CAs, and the one key that all nodes share: what differs is their certificates.
pub(crate) struct Nodes {
    issuers: [Issuer<'static, KeyPair>; 2],
    certificates: [CertificateDer<'static>; 2],
    pair: KeyPair,
    key: Arc<dyn SigningKey>,
    host: Host,
}

impl Nodes {
    /// Makes the CAs and the nodes' key, kept in `dir` for the other processes of the run.
    pub(crate) fn make(dir: &Path) -> Result<()> {
        for (name, file) in CAS.iter().zip(["ca-1", "ca-2"]) {
            let key = KeyPair::generate()?;
            secret(&dir.join(format!("{file}.key")), &key.serialize_pem())?;
            fs::write(dir.join(format!("{file}.pem")), authority(name)?.self_signed(&key)?.pem())?;
        }
        let both = [read(dir, "ca-1.pem")?, read(dir, "ca-2.pem")?].concat();
        fs::write(ca_file(dir), both)?;
        secret(&dir.join("node.key"), &KeyPair::generate()?.serialize_pem())
    }

    /// What [`Nodes::make`] has left in `dir`.
    pub(crate) fn held(dir: &Path) -> Result<Self> {
        let issuer = |name, file: &str| -> Result<_> {
            Ok(Issuer::new(authority(name)?, KeyPair::from_pem(&read(dir, &format!("{file}.key"))?)?))
        };
        let issuers = [issuer(CAS[0], "ca-1")?, issuer(CAS[1], "ca-2")?];
        let certificate = |file: &str| -> Result<CertificateDer<'static>> {
            let pem = read(dir, &format!("{file}.pem"))?;
            Ok(CertificateDer::from_pem_slice(pem.as_bytes())?)
        };
        let certificates = [certificate("ca-1")?, certificate("ca-2")?];
        let pair = KeyPair::from_pem(&read(dir, "node.key")?)?;
        let host = Host::system();
        let key = host.keys.load(&Secret::new(pair.serialize_der()))?;
        Ok(Self { issuers, certificates, pair, key, host })
    }

    /// The CAs' own certificates.
    pub(crate) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The selector that the first [`FIRST`] nodes have, and no other.
    pub(crate) fn selector_of_first(&self) -> String {
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.certificates[0]);
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("ca:fingerprint:{hex}")
    }

    /// The private key of all nodes, for TLS.
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }

    /// The certificate of the node with this number. It is good for a server at 127.0.0.1, too.
    pub(crate) fn certificate(&self, number: usize) -> Result<CertificateDer<'static>> {
        let issuer = &self.issuers[usize::from(number >= FIRST)];
        Ok(self.signed(&node_name(number), issuer)?.der().clone())
    }

    /// A node's certificate and key as files in `dir`, for an agent of flesh and blood.
    pub(crate) fn files(&self, dir: &Path, name: &str) -> Result<[PathBuf; 2]> {
        let files = [dir.join(format!("{name}.pem")), dir.join(format!("{name}.key"))];
        fs::write(&files[0], self.signed(name, &self.issuers[1])?.pem())?;
        secret(&files[1], &self.pair.serialize_pem())?;
        Ok(files)
    }

    /// Another CA certificate, as operators append them to a bundle.
    pub(crate) fn another_authority(&self, name: &str) -> Result<Vec<u8>> {
        let mut params = authority(name)?;
        params.subject_alt_names =
            vec![SanType::URI(format!("spiffe://{}", crate::site::TRUST_DOMAIN).try_into()?)];
        Ok(params.self_signed(&KeyPair::generate()?)?.der().to_vec())
    }

    /// The first message of x509pop.
    pub(crate) fn evidence(&self, number: usize) -> Result<Vec<u8>> {
        let certificates = vec![STANDARD.encode(self.certificate(number)?)];
        Ok(serde_json::to_vec(&Evidence { certificates })?)
    }

    /// The answer to the challenge that comes next.
    pub(crate) fn response(&self, challenge: &[u8]) -> Result<Vec<u8>> {
        let challenge: Challenge = serde_json::from_slice(challenge).context("the challenge is not JSON")?;
        let asked = challenge.ecdsa_signature.context("the challenge is for another kind of key")?;
        let mut message = STANDARD.decode(asked.nonce)?;
        let own: [u8; 32] = self.host.random_bytes();
        ensure!(message.len() == own.len(), "the challenge has a nonce of {} bytes", message.len());
        message.extend(own);
        let signature = self.key.sign(&message, SignatureForm::Fixed)?;
        let (r, s) = signature.split_at(signature.len() / 2);
        let [nonce, r, s] = [&own[..], r, s].map(|bytes| STANDARD.encode(bytes));
        Ok(serde_json::to_vec(&Response { ecdsa_signature: Signature { nonce, r, s } })?)
    }

    fn signed(&self, name: &str, issuer: &Issuer<'_, KeyPair>) -> Result<rcgen::Certificate> {
        let mut params = named(name)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        Ok(params.signed_by(&self.pair, issuer)?)
    }
}

/// Where the CAs' certificates lie below `dir`.
pub(crate) fn ca_file(dir: &Path) -> PathBuf {
    dir.join("ca.pem")
}

/// A new key of the kind that agents have.
pub(crate) fn new_key(host: &Host) -> Result<Arc<dyn SigningKey>> {
    Ok(host.keys.generate(KeyType::EcP256)?)
}

fn named(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = named(name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn read(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
}

fn secret(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// As SPIRE's x509pop has them: JSON, bytes in base64.
#[derive(Serialize)]
struct Evidence {
    certificates: Vec<String>,
}

#[derive(Deserialize)]
struct Challenge {
    ecdsa_signature: Option<Nonce>,
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

#[derive(Serialize)]
struct Response {
    ecdsa_signature: Signature,
}

#[derive(Serialize)]
struct Signature {
    nonce: String,
    r: String,
    s: String,
}
