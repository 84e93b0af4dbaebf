//! How does the agent's half of x509pop answer?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use passant_core::keys::{KeyType, SignatureForm, SigningKey};
use passant_core::{Host, Secret};
use ring::rsa;
use ring::signature::RSA_PSS_SHA256;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use super::{
    Base64, Challenge, EcdsaResponse, Evidence, METHOD, Response, RsaResponse, X509PopConfigError,
    read_certificates, signed_message,
};
use crate::limits::{NODE_PAYLOAD_BYTES, X509POP_NONCE_BYTES};
use crate::node::{ProveError, Prover};

/// Where the agent's certificate is; keys and meanings as SPIRE's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509PopProverConfig {
    /// PEM file with the private key: PKCS#8 for P-256, PKCS#8 or PKCS#1 for RSA. Not readable by everybody.
    pub private_key_path: PathBuf,
    /// PEM file with the certificate, and possibly its intermediates behind it.
    pub certificate_path: PathBuf,
    /// PEM file with (further) intermediates.
    #[serde(default)]
    pub intermediates_path: Option<PathBuf>,
}

/// The agent's half. Reads its files anew for each attestation, so that a renewed certificate is picked up.
pub struct X509PopProver {
    config: X509PopProverConfig,
    host: Host,
    /// The key that belongs to the evidence under way.
    key: Option<ProverKey>,
}

enum ProverKey {
    P256(Arc<dyn SigningKey>),
    Rsa(Box<rsa::KeyPair>),
}

impl X509PopProver {
    /// A prover whose files were read once, so that a wrong configuration is found at the start.
    ///
    /// # Errors
    /// See [`X509PopConfigError`].
    pub fn open(config: X509PopProverConfig, host: Host) -> Result<Self, X509PopConfigError> {
        let prover = Self { config, host, key: None };
        prover.read()?;
        Ok(prover)
    }

    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, ProverKey), X509PopConfigError> {
        let mut chain = read_certificates(&self.config.certificate_path)?;
        if let Some(path) = &self.config.intermediates_path {
            chain.extend(read_certificates(path)?);
        }
        Ok((chain, ProverKey::read(&self.config.private_key_path, &self.host)?))
    }

    fn answer(&self, challenge: &[u8]) -> Result<Vec<u8>, ProveError> {
        if challenge.len() > NODE_PAYLOAD_BYTES {
            return Err(ProveError::new("x509pop challenge is too large"));
        }
        let challenge: Challenge = serde_json::from_slice(challenge)
            .map_err(|error| ProveError::new("failed to parse x509pop challenge").because(error))?;
        let key =
            self.key.as_ref().ok_or_else(|| ProveError::new("x509pop challenge came before the evidence"))?;
        let asked = match key {
            ProverKey::P256(_) => challenge.ecdsa_signature,
            ProverKey::Rsa(_) => challenge.rsa_signature,
        };
        let asked = asked.ok_or_else(|| ProveError::new("x509pop challenge is for another kind of key"))?;
        if asked.nonce.0.len() != X509POP_NONCE_BYTES {
            return Err(ProveError::new("x509pop challenge has a nonce of the wrong length"));
        }
        let nonce: [u8; X509POP_NONCE_BYTES] = self.host.random_bytes();
        let response = key.sign(&signed_message(&asked.nonce.0, &nonce), nonce)?;
        serde_json::to_vec(&response)
            .map_err(|error| ProveError::new("failed to write x509pop response").because(error))
    }
}

impl Prover for X509PopProver {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn evidence(&mut self) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ProveError>> + Send + '_>> {
        Box::pin(async {
            let (chain, key) = self
                .read()
                .map_err(|error| ProveError::new("failed to read x509pop files").because(error))?;
            self.key = Some(key);
            let certificates = chain.iter().map(|der| Base64(der.to_vec())).collect();
            serde_json::to_vec(&Evidence { certificates })
                .map_err(|error| ProveError::new("failed to write x509pop evidence").because(error))
        })
    }

    fn respond<'a>(
        &'a mut self,
        challenge: &'a [u8],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, ProveError>> + Send + 'a>> {
        Box::pin(async { self.answer(challenge) })
    }
}

impl ProverKey {
    fn read(path: &Path, host: &Host) -> Result<Self, X509PopConfigError> {
        let unusable = |why| X509PopConfigError::Key { path: path.to_owned(), why };
        let metadata = fs::metadata(path).map_err(|_| unusable("failed to open the file"))?;
        if metadata.permissions().mode() & 0o007 != 0 {
            return Err(unusable("everybody may read the file: chmod it to 0600"));
        }
        let pem = Secret::new(fs::read(path).map_err(|_| unusable("failed to read the file"))?);
        let key = PrivateKeyDer::from_pem_slice(pem.expose());
        match key.map_err(|_| unusable("no private key in the file"))? {
            PrivateKeyDer::Pkcs1(der) => {
                let pair = rsa::KeyPair::from_der(der.secret_pkcs1_der());
                let pair = pair.map_err(|_| unusable("RSA key is broken, or not of 2048 to 4096 bits"))?;
                Ok(Self::Rsa(Box::new(pair)))
            }
            PrivateKeyDer::Pkcs8(der) => {
                if let Ok(pair) = rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()) {
                    return Ok(Self::Rsa(Box::new(pair)));
                }
                let pkcs8 = Secret::new(der.secret_pkcs8_der().to_vec());
                match host.keys.load(&pkcs8) {
                    Ok(key) if key.key_type() == KeyType::EcP256 => Ok(Self::P256(key)),
                    _ => Err(unusable("expected RSA of 2048 to 4096 bits, or ECDSA on P-256")),
                }
            }
            PrivateKeyDer::Sec1(_) => {
                Err(unusable("it is in SEC 1 form: convert it with openssl pkcs8 -topk8 -nocrypt"))
            }
            _ => Err(unusable("unknown form of private key")),
        }
    }

    fn sign(&self, message: &[u8], nonce: [u8; X509POP_NONCE_BYTES]) -> Result<Response, ProveError> {
        let nonce = Base64(nonce.to_vec());
        match self {
            Self::P256(key) => {
                let signature = key.sign(message, SignatureForm::Fixed).map_err(|error| {
                    ProveError::new("failed to sign the x509pop challenge").because(error)
                })?;
                let (r, s) = signature.split_at(signature.len() / 2);
                let ecdsa = EcdsaResponse { nonce, r: Base64(r.to_vec()), s: Base64(s.to_vec()) };
                Ok(Response { rsa_signature: None, ecdsa_signature: Some(ecdsa) })
            }
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &salt_source(), message, &mut signature)
                    .map_err(|_| ProveError::new("failed to sign the x509pop challenge"))?;
                let rsa = RsaResponse { nonce, signature: Base64(signature) };
                Ok(Response { rsa_signature: Some(rsa), ecdsa_signature: None })
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "ring takes the salt of PSS from its own source only")]
fn salt_source() -> ring::rand::SystemRandom {
    ring::rand::SystemRandom::new()
}
