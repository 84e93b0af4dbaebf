//! How does a node prove itself with a certificate of somebody else's PKI?
//!
//! x509pop as SPIRE speaks it: the evidence is a certificate chain, leaf first; the server verifies it against the
//! configured authorities and then has the node sign a fresh nonce, so that the chain alone, which is public, proves
//! nothing. Evidence, challenge and response are JSON with byte strings in base64.
//!
//! Narrower than SPIRE: ECDSA keys are on P-256 or P-384 (our own agents sign with P-256 or RSA only), a leaf that is
//! itself a certificate authority is refused, and `ca:fingerprint` selectors name the certificates of one verified path,
//! where SPIRE names those of every possible path.

mod prover;
mod signature;

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use passant_core::{Host, Selector, Selectors, TrustDomain, UnixTime};
use ring::digest;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use tracing::warn;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::path_template::{PathTemplate, PathTemplateError};
use super::{Dialog, Proof, Rejection, Verifier};
use crate::limits::{NODE_PAYLOAD_BYTES, X509POP_INTERMEDIATES, X509POP_NONCE_BYTES, X509POP_RSA_BITS};

pub use self::prover::{X509PopProver, X509PopProverConfig};
use self::signature::PublicKey;

/// The attestation type.
pub const METHOD: &str = "x509pop";

const DEFAULT_TEMPLATE: &str = "/{{ .PluginName }}/{{ .Fingerprint }}";
const TEMPLATE_NAMES: &[&str] =
    &["PluginName", "Fingerprint", "SerialNumberHex", "TrustDomain", "Subject.CommonName"];

/// The signature algorithms of the chain that are believed: no SHA-1, no RSA below 2048 bits.
const ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = webpki::ALL_VERIFICATION_ALGS;

/// How the server judges; keys and meanings as SPIRE's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct X509PopConfig {
    /// PEM file with the authorities that nodes' certificates come from.
    pub ca_bundle_path: Option<PathBuf>,
    /// Several such files, instead of `ca_bundle_path`.
    pub ca_bundle_paths: Vec<PathBuf>,
    /// The agent's path below `/spire/agent`; default `/x509pop/<fingerprint>`.
    pub agent_path_template: Option<String>,
    /// Most intermediate certificates in the evidence; default 4.
    pub max_intermediates: Option<usize>,
    /// Largest RSA key in bits; default 8192, which is also the most.
    pub max_rsa_key_size: Option<usize>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum X509PopConfigError {
    /// None or both of the two ways to name files.
    #[error("exactly one of ca_bundle_path and ca_bundle_paths must be set")]
    WhichBundle,
    /// A file that cannot be read as PEM.
    #[error("failed to read certificates from {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rustls_pki_types::pem::Error,
    },
    /// A file without a certificate.
    #[error("no certificate in {}", .0.display())]
    Empty(PathBuf),
    /// A certificate that cannot be an authority.
    #[error("certificate {index} in {} cannot be used as an authority", path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        index: usize,
        /// The cause.
        source: webpki::Error,
    },
    /// See [`PathTemplateError`].
    #[error(transparent)]
    Template(#[from] PathTemplateError),
    /// A bound of zero, or over what can be verified.
    #[error("{key} must be between 1 and {most}")]
    Bound {
        /// The configuration key.
        key: &'static str,
        /// The largest value.
        most: usize,
    },
    /// A private key of a kind that cannot sign here.
    #[error("private key in {} cannot be used: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What would help.
        why: &'static str,
    },
}

/// The server's half.
pub struct X509PopVerifier {
    trust_domain: TrustDomain,
    authorities: Vec<Authority>,
    template: PathTemplate,
    max_intermediates: usize,
    max_rsa_bits: usize,
    host: Host,
}

struct Authority {
    anchor: TrustAnchor<'static>,
    der: CertificateDer<'static>,
}

/// The leaf, read once; nothing of it is believed before the path is verified.
struct Leaf {
    key: PublicKey,
    common_name: Option<String>,
    /// Lower-case hex, an even number of digits.
    serial_number: String,
    fingerprint: String,
    /// `name:value` from URIs `x509pop://<trust domain>/<name>/<value>`.
    san_selectors: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Evidence {
    certificates: Vec<Base64>,
}

#[derive(Serialize, Deserialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Serialize, Deserialize)]
struct Nonce {
    nonce: Base64,
}

#[derive(Serialize, Deserialize)]
struct Response {
    #[serde(default)]
    rsa_signature: Option<RsaResponse>,
    #[serde(default)]
    ecdsa_signature: Option<EcdsaResponse>,
}

#[derive(Serialize, Deserialize)]
struct RsaResponse {
    nonce: Base64,
    signature: Base64,
}

#[derive(Serialize, Deserialize)]
struct EcdsaResponse {
    nonce: Base64,
    r: Base64,
    s: Base64,
}

/// Bytes, in JSON as padded standard base64: the form of Go's `[]byte`.
struct Base64(Vec<u8>);

impl X509PopVerifier {
    /// Reads the configured files.
    ///
    /// # Errors
    /// See [`X509PopConfigError`].
    pub fn open(
        config: &X509PopConfig,
        trust_domain: TrustDomain,
        host: Host,
    ) -> Result<Self, X509PopConfigError> {
        let paths: Vec<&PathBuf> = match (&config.ca_bundle_path, config.ca_bundle_paths.as_slice()) {
            (Some(path), []) => vec![path],
            (None, paths @ [_, ..]) => paths.iter().collect(),
            (None, []) | (Some(_), [_, ..]) => return Err(X509PopConfigError::WhichBundle),
        };
        let mut authorities = Vec::new();
        for path in paths {
            authorities.extend(read_authorities(path)?);
        }
        let template = config.agent_path_template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
        let bound = |key, value: Option<usize>, default, most| match value.unwrap_or(default) {
            value if (1..=most).contains(&value) => Ok(value),
            _ => Err(X509PopConfigError::Bound { key, most }),
        };
        Ok(Self {
            trust_domain,
            authorities,
            template: PathTemplate::parse(template, TEMPLATE_NAMES)?,
            max_intermediates: bound(
                "max_intermediates",
                config.max_intermediates,
                X509POP_INTERMEDIATES,
                16,
            )?,
            max_rsa_bits: bound(
                "max_rsa_key_size",
                config.max_rsa_key_size,
                X509POP_RSA_BITS,
                X509POP_RSA_BITS,
            )?,
            host,
        })
    }

    async fn judge(
        &self,
        payload: &[u8],
        dialog: &mut dyn Dialog,
        now: UnixTime,
    ) -> Result<Proof, Rejection> {
        let chain = self.parse_evidence(payload)?;
        let leaf = Leaf::parse(&chain[0], &self.trust_domain, self.max_rsa_bits)?;
        let path = self.verify_path(&chain, now)?;
        let nonce: [u8; X509POP_NONCE_BYTES] = self.host.random_bytes();
        let asked = || Some(Nonce { nonce: Base64(nonce.to_vec()) });
        let challenge = match leaf.key {
            PublicKey::Rsa { .. } => Challenge { rsa_signature: asked(), ecdsa_signature: None },
            PublicKey::P256(_) | PublicKey::P384(_) => {
                Challenge { rsa_signature: None, ecdsa_signature: asked() }
            }
        };
        let challenge = serde_json::to_vec(&challenge).map_err(Rejection::internal)?;
        let response = dialog.challenge(challenge).await?;
        check_response(&leaf.key, &nonce, &response)?;
        self.proof(&leaf, &path)
    }

    fn parse_evidence(&self, payload: &[u8]) -> Result<Vec<CertificateDer<'static>>, Rejection> {
        if payload.len() > NODE_PAYLOAD_BYTES {
            return Err(Rejection::invalid("x509pop evidence is too large"));
        }
        let evidence: Evidence = serde_json::from_slice(payload)
            .map_err(|error| Rejection::invalid("failed to parse x509pop evidence").because(error))?;
        if evidence.certificates.is_empty() {
            return Err(Rejection::invalid("x509pop evidence holds no certificate"));
        }
        // Before anything is parsed: what it costs us is bounded by what we allow.
        if evidence.certificates.len() - 1 > self.max_intermediates {
            return Err(Rejection::invalid("x509pop evidence holds too many intermediate certificates"));
        }
        let chain: Vec<_> =
            evidence.certificates.into_iter().map(|Base64(der)| CertificateDer::from(der)).collect();
        for intermediate in &chain[1..] {
            let certificate = parse_certificate(intermediate)?;
            signature::check_rsa_bits(&certificate, self.max_rsa_bits)?;
        }
        Ok(chain)
    }

    /// The certificates above the leaf, up to and with the authority, in one path that verifies.
    fn verify_path(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Vec<Vec<u8>>, Rejection> {
        let denied = |error| {
            Rejection::denied("certificate of the node does not verify against the configured authorities")
                .because(error)
        };
        let seconds = u64::try_from(now.secs()).unwrap_or(0);
        let time = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let leaf = EndEntityCert::try_from(&chain[0]).map_err(denied)?;
        let anchors: Vec<_> = self.authorities.iter().map(|authority| authority.anchor.clone()).collect();
        let path = leaf
            .verify_for_usage(ALGORITHMS, &anchors, &chain[1..], time, AnyUsage, None, None)
            .map_err(denied)?;
        let mut above: Vec<Vec<u8>> = path.intermediate_certificates().map(|it| it.der().to_vec()).collect();
        let root = self.authorities.iter().find(|authority| authority.anchor == *path.anchor());
        above.extend(root.map(|authority| authority.der.to_vec()));
        Ok(above)
    }

    fn proof(&self, leaf: &Leaf, path: &[Vec<u8>]) -> Result<Proof, Rejection> {
        let value_of = |name| match name {
            "PluginName" => Some(METHOD.to_owned()),
            "Fingerprint" => Some(leaf.fingerprint.clone()),
            "SerialNumberHex" => Some(leaf.serial_number.clone()),
            "TrustDomain" => Some(self.trust_domain.as_str().to_owned()),
            "Subject.CommonName" => leaf.common_name.clone(),
            _ => None,
        };
        let agent_id = self
            .template
            .render(&self.trust_domain, value_of)
            .map_err(|error| Rejection::denied(error.to_string()).because(error))?;
        let mut values: Vec<String> =
            path.iter().map(|der| format!("ca:fingerprint:{}", fingerprint(der))).collect();
        values.push(format!("serialnumber:{}", leaf.serial_number));
        values.extend(leaf.common_name.as_ref().map(|name| format!("subject:cn:{name}")));
        values.extend(leaf.san_selectors.iter().map(|value| format!("san:{value}")));
        let selectors: Result<Selectors, _> = values
            .iter()
            .map(|value| Selector::new(METHOD, value))
            .collect::<Result<Vec<_>, _>>()
            .map(Selectors::from_iter);
        let selectors = selectors.map_err(|error| {
            Rejection::denied("certificate of the node makes an unusable selector").because(error)
        })?;
        Ok(Proof { agent_id, selectors, can_reattest: true })
    }
}

impl Verifier for X509PopVerifier {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn verify<'a>(
        &'a self,
        payload: &'a [u8],
        dialog: &'a mut dyn Dialog,
        now: UnixTime,
    ) -> Pin<Box<dyn Future<Output = Result<Proof, Rejection>> + Send + 'a>> {
        Box::pin(self.judge(payload, dialog, now))
    }
}

impl Leaf {
    fn parse(
        der: &CertificateDer<'_>,
        trust_domain: &TrustDomain,
        max_rsa_bits: usize,
    ) -> Result<Self, Rejection> {
        let certificate = parse_certificate(der)?;
        signature::check_rsa_bits(&certificate, max_rsa_bits)?;
        let usage = certificate.key_usage().ok().flatten();
        if !usage.is_some_and(|usage| usage.value.digital_signature()) {
            return Err(Rejection::denied("certificate of the node is not meant for digital signatures"));
        }
        let common_name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            key: PublicKey::of(&certificate)?,
            common_name: common_name.filter(|name| !name.is_empty()).map(str::to_owned),
            serial_number: serial_number(certificate.raw_serial()),
            fingerprint: fingerprint(der),
            san_selectors: san_selectors(&certificate, trust_domain),
        })
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Node certificates are made for many purposes: none is required, as in SPIRE.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// What both sides sign: the server's nonce, then the node's own, so that neither chooses all of it.
fn signed_message(challenge: &[u8], response: &[u8]) -> Vec<u8> {
    [challenge, response].concat()
}

fn check_response(key: &PublicKey, nonce: &[u8], response: &[u8]) -> Result<(), Rejection> {
    if response.len() > NODE_PAYLOAD_BYTES {
        return Err(Rejection::invalid("x509pop response is too large"));
    }
    let response: Response = serde_json::from_slice(response)
        .map_err(|error| Rejection::invalid("failed to parse x509pop response").because(error))?;
    let wrong_kind = || Rejection::denied("x509pop response is for another kind of key");
    let (own_nonce, is_signed) = match key {
        PublicKey::Rsa { modulus, exponent } => {
            let response = response.rsa_signature.ok_or_else(wrong_kind)?;
            let message = signed_message(nonce, &response.nonce.0);
            let is_signed = signature::verify_rsa_pss(modulus, exponent, &message, &response.signature.0);
            (response.nonce.0, is_signed)
        }
        PublicKey::P256(point) | PublicKey::P384(point) => {
            let response = response.ecdsa_signature.ok_or_else(wrong_kind)?;
            let message = signed_message(nonce, &response.nonce.0);
            let is_p256 = matches!(key, PublicKey::P256(_));
            let is_signed = signature::verify_ecdsa(is_p256, point, &message, &response.r.0, &response.s.0);
            (response.nonce.0, is_signed)
        }
    };
    if own_nonce.len() != X509POP_NONCE_BYTES {
        return Err(Rejection::denied("x509pop response has a nonce of the wrong length"));
    }
    if !is_signed {
        return Err(Rejection::denied("node does not hold the private key of its certificate"));
    }
    Ok(())
}

fn parse_certificate<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Rejection> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| {
        Rejection::invalid("failed to parse a certificate of the node").because(error.to_string())
    })?;
    if !rest.is_empty() {
        return Err(Rejection::invalid("a certificate of the node is followed by other bytes"));
    }
    Ok(certificate)
}

/// SHA-1 of the DER in hex, as SPIRE names certificates. It identifies; nothing is trusted for it.
fn fingerprint(der: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der);
    hex(digest.as_ref())
}

/// DER puts a zero byte before a positive number with its top bit set; SPIRE writes the number without it.
fn serial_number(raw: &[u8]) -> String {
    match raw {
        [0, rest @ ..] if !rest.is_empty() => hex(rest),
        _ => hex(raw),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn san_selectors(certificate: &X509Certificate<'_>, trust_domain: &TrustDomain) -> Vec<String> {
    let prefix = format!("x509pop://{trust_domain}/");
    let mut selectors = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        for name in &names.general_names {
            let GeneralName::URI(uri) = name else { continue };
            let Some(path) = uri.strip_prefix(&prefix) else { continue };
            match path.trim_matches('/').split_once('/') {
                Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                    selectors.push(format!("{name}:{value}"));
                }
                _ => warn!(
                    uri,
                    "URI makes no x509pop selector: expected x509pop://<trust domain>/<name>/<value>"
                ),
            }
        }
    }
    selectors
}

fn read_authorities(path: &Path) -> Result<Vec<Authority>, X509PopConfigError> {
    let certificates = read_certificates(path)?;
    let mut authorities = Vec::new();
    for (at, der) in certificates.into_iter().enumerate() {
        let anchor = anchor_from_trusted_cert(&der)
            .map_err(|source| X509PopConfigError::NoAuthority {
                path: path.to_owned(),
                index: at + 1,
                source,
            })?
            .to_owned();
        authorities.push(Authority { anchor, der });
    }
    Ok(authorities)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, X509PopConfigError> {
    let unreadable = |source| X509PopConfigError::Unreadable { path: path.to_owned(), source };
    let pem = fs::read(path).map_err(|error| unreadable(rustls_pki_types::pem::Error::Io(error)))?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(X509PopConfigError::Empty(path.to_owned()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests;
