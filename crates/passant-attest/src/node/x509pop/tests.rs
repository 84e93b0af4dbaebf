//! The contract of both halves together, and what a hostile node tries.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use passant_core::Reason;
use passant_core::host::ManualClock;
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rcgen::{PKCS_ECDSA_P384_SHA384, SerialNumber};
use tempfile::TempDir;

use super::*;
use crate::node::{DialogError, ProveError, Prover};

const RSA_KEY: &str = include_str!("testdata/rsa2048.pem");
/// Over `passant x509pop fixture`, by openssl with the longest salt that fits, as Go signs.
const LONGEST_SALT: &[u8] = include_bytes!("testdata/rsa2048-pss-longest-salt.sig");

/// The key that signed the fixture on P-384 is not kept.
const P384_CERTIFICATE: &[u8] = include_bytes!("testdata/p384.crt.der");

/// 2024-01-01 and 2030-01-01.
const NOT_BEFORE: i64 = 1_704_067_200;
const NOT_AFTER: i64 = 1_893_456_000;
const NOW: UnixTime = UnixTime::from_secs(1_750_000_000);

/// A PKI: a root in a file, an intermediate, and node certificates.
struct Pki {
    dir: TempDir,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn node(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(SerialNumber::from_slice(&[0xab, 0xcd]));
    params
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority("root");
        let root = root_params.self_signed(&root_key).unwrap();
        fs::write(dir.path().join("ca.pem"), root.pem()).unwrap();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().unwrap();
        let params = authority("intermediate");
        let intermediate = params.signed_by(&key, &root_issuer).unwrap();
        Self {
            dir,
            intermediate: intermediate.der().clone(),
            issuer: Issuer::new(params, key),
            root: root.der().clone(),
        }
    }

    fn config(&self) -> X509PopConfig {
        X509PopConfig { ca_bundle_path: Some(self.dir.path().join("ca.pem")), ..X509PopConfig::default() }
    }

    fn verifier(&self) -> X509PopVerifier {
        self.verifier_with(&self.config()).unwrap()
    }

    fn verifier_with(&self, config: &X509PopConfig) -> Result<X509PopVerifier, X509PopConfigError> {
        X509PopVerifier::open(config, TrustDomain::parse("example.org").unwrap(), host())
    }

    fn prover(&self, params: &CertificateParams, key: &KeyPair) -> X509PopProver {
        self.try_prover(params, key, 0o600).unwrap()
    }

    fn try_prover(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
        mode: u32,
    ) -> Result<X509PopProver, X509PopConfigError> {
        let path = |name: &str| self.dir.path().join(name);
        let leaf = params.signed_by(key, &self.issuer).unwrap();
        fs::write(path("node.pem"), leaf.pem()).unwrap();
        let intermediate = pem(&self.intermediate);
        fs::write(path("chain.pem"), intermediate).unwrap();
        fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        fs::set_permissions(path("key.pem"), fs::Permissions::from_mode(mode)).unwrap();
        let config = X509PopProverConfig {
            private_key_path: path("key.pem"),
            certificate_path: path("node.pem"),
            intermediates_path: Some(path("chain.pem")),
        };
        X509PopProver::open(config, host())
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

fn host() -> Host {
    Host { clock: std::sync::Arc::new(ManualClock::new(NOW)), ..Host::system() }
}

fn rsa_key() -> KeyPair {
    KeyPair::from_pkcs8_pem_and_sign_algo(RSA_KEY, &rcgen::PKCS_RSA_SHA256).unwrap()
}

/// A node that answers through `prover`, with each answer passed through `tamper`.
struct Answering<'a> {
    prover: &'a mut X509PopProver,
    tamper: fn(Vec<u8>) -> Vec<u8>,
    challenges: Vec<Vec<u8>>,
}

impl Dialog for Answering<'_> {
    fn challenge(
        &mut self,
        challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>> {
        Box::pin(async move {
            self.challenges.push(challenge.clone());
            let answer = self.prover.respond(&challenge).await;
            answer.map(self.tamper).map_err(|error| DialogError::new(Some(Box::new(error))))
        })
    }
}

async fn attest(
    verifier: &X509PopVerifier,
    prover: &mut X509PopProver,
    now: UnixTime,
    tamper: fn(Vec<u8>) -> Vec<u8>,
) -> Result<Proof, Rejection> {
    let evidence = prover.evidence().await.unwrap();
    let mut dialog = Answering { prover, tamper, challenges: Vec::new() };
    verifier.verify(&evidence, &mut dialog, now).await
}

fn unchanged(answer: Vec<u8>) -> Vec<u8> {
    answer
}

#[tokio::test]
async fn both_kinds_of_key_prove_a_node() {
    let pki = Pki::new();
    for key in [KeyPair::generate().unwrap(), rsa_key()] {
        let mut prover = pki.prover(&node("web-1"), &key);
        let proof = attest(&pki.verifier(), &mut prover, NOW, unchanged).await.unwrap();
        let leaf = CertificateDer::from_pem_file(pki.dir.path().join("node.pem")).unwrap();
        let id = format!("spiffe://example.org/spire/agent/x509pop/{}", fingerprint(&leaf));
        assert_eq!(proof.agent_id.as_str(), id);
        assert!(proof.can_reattest);
        let selectors: Vec<String> = proof.selectors.iter().map(ToString::to_string).collect();
        let mut expected = vec![
            format!("x509pop:ca:fingerprint:{}", fingerprint(&pki.intermediate)),
            format!("x509pop:ca:fingerprint:{}", fingerprint(&pki.root)),
            "x509pop:serialnumber:abcd".to_owned(),
            "x509pop:subject:cn:web-1".to_owned(),
        ];
        expected.sort();
        assert_eq!(selectors, expected);
    }
}

#[tokio::test]
async fn template_and_san_selectors_are_honoured() {
    let pki = Pki::new();
    let config = X509PopConfig {
        agent_path_template: Some("/{{ .PluginName }}/cn/{{ .Subject.CommonName }}".to_owned()),
        ..pki.config()
    };
    let verifier = pki.verifier_with(&config).unwrap();
    let mut params = node("web-1");
    for uri in
        ["x509pop://example.org/role/front/end", "x509pop://other.org/role/x", "x509pop://example.org/role"]
    {
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    }
    let mut prover = pki.prover(&params, &KeyPair::generate().unwrap());
    let proof = attest(&verifier, &mut prover, NOW, unchanged).await.unwrap();
    assert_eq!(proof.agent_id.as_str(), "spiffe://example.org/spire/agent/x509pop/cn/web-1");
    let sans: Vec<_> = proof.selectors.iter().filter(|it| it.value().starts_with("san:")).collect();
    assert_eq!(sans, [&Selector::parse("x509pop:san:role:front/end").unwrap()]);

    let mut prover = pki.prover(&node("../web-2"), &KeyPair::generate().unwrap());
    let rejection = attest(&verifier, &mut prover, NOW, unchanged).await.unwrap_err();
    assert_eq!(rejection.reason, Reason::Denied);
}

#[tokio::test]
async fn validity_is_checked_on_both_sides() {
    let pki = Pki::new();
    let mut prover = pki.prover(&node("n"), &KeyPair::generate().unwrap());
    for (at, is_valid) in
        [(NOT_BEFORE - 1, false), (NOT_BEFORE, true), (NOT_AFTER, true), (NOT_AFTER + 1, false)]
    {
        let result = attest(&pki.verifier(), &mut prover, UnixTime::from_secs(at), unchanged).await;
        assert_eq!(result.is_ok(), is_valid, "at {at}");
    }
}

#[tokio::test]
async fn certificates_that_must_not_attest_are_refused() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    let key = KeyPair::generate().unwrap();
    let without_usage = params("n");
    let mut for_encipherment = params("n");
    for_encipherment.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let mut sub_authority = authority("n");
    sub_authority.key_usages.push(KeyUsagePurpose::DigitalSignature);
    for (fact, params) in [
        ("no key usage", without_usage),
        ("other key usage", for_encipherment),
        ("an authority", sub_authority),
    ] {
        let rejection = attest(&verifier, &mut pki.prover(&params, &key), NOW, unchanged).await.unwrap_err();
        assert_eq!(rejection.reason, Reason::Denied, "{fact}");
    }
    let stranger = Pki::new();
    let rejection =
        attest(&verifier, &mut stranger.prover(&node("n"), &key), NOW, unchanged).await.unwrap_err();
    assert_eq!(rejection.reason, Reason::Denied, "another PKI");
}

#[tokio::test]
async fn wrong_answers_are_refused() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    fn with(answer: Vec<u8>, field: &str, zeros: usize) -> Vec<u8> {
        let mut json: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        json["ecdsa_signature"][field] = STANDARD.encode(vec![0; zeros]).into();
        serde_json::to_vec(&json).unwrap()
    }
    type Change = fn(Vec<u8>) -> Vec<u8>;
    let tampers: [(&str, Change, Reason); 5] = [
        ("no json", |_| b"{".to_vec(), Reason::Invalid),
        ("no signature", |_| b"{}".to_vec(), Reason::Denied),
        ("another nonce", |answer| with(answer, "nonce", X509POP_NONCE_BYTES), Reason::Denied),
        ("a short nonce", |answer| with(answer, "nonce", 1), Reason::Denied),
        ("a zero signature", |answer| with(with(answer, "r", 32), "s", 32), Reason::Denied),
    ];
    for (fact, tamper, reason) in tampers {
        let mut prover = pki.prover(&node("n"), &KeyPair::generate().unwrap());
        let rejection = attest(&verifier, &mut prover, NOW, tamper).await.unwrap_err();
        assert_eq!(rejection.reason, reason, "{fact}");
    }
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_proves_nothing() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    let evidence = pki.prover(&node("n"), &KeyPair::generate().unwrap()).evidence().await.unwrap();
    let mut thief = pki.prover(&node("m"), &KeyPair::generate().unwrap());
    thief.evidence().await.unwrap();
    let mut dialog = Answering { prover: &mut thief, tamper: unchanged, challenges: Vec::new() };
    let rejection = verifier.verify(&evidence, &mut dialog, NOW).await.unwrap_err();
    assert_eq!(rejection.reason, Reason::Denied);
}

#[tokio::test]
async fn every_challenge_is_fresh_and_of_spires_form() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    let mut prover = pki.prover(&node("n"), &KeyPair::generate().unwrap());
    let evidence = prover.evidence().await.unwrap();
    let mut dialog = Answering { prover: &mut prover, tamper: unchanged, challenges: Vec::new() };
    for _ in 0..2 {
        verifier.verify(&evidence, &mut dialog, NOW).await.unwrap();
    }
    assert_ne!(dialog.challenges[0], dialog.challenges[1]);
    let json: serde_json::Value = serde_json::from_slice(&dialog.challenges[0]).unwrap();
    assert!(json["rsa_signature"].is_null());
    let nonce = STANDARD.decode(json["ecdsa_signature"]["nonce"].as_str().unwrap()).unwrap();
    assert_eq!(nonce.len(), 32);
}

#[tokio::test]
async fn intermediates_are_bounded() {
    let pki = Pki::new();
    let verifier = pki.verifier();
    let mut prover = pki.prover(&node("n"), &KeyPair::generate().unwrap());
    let evidence = prover.evidence().await.unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&evidence).unwrap();
    let certificates = json["certificates"].as_array_mut().unwrap();
    let intermediate = certificates[1].clone();
    certificates.resize(1 + X509POP_INTERMEDIATES, intermediate.clone());
    let at_most = serde_json::to_vec(&json).unwrap();
    json["certificates"].as_array_mut().unwrap().push(intermediate);
    let too_many = serde_json::to_vec(&json).unwrap();
    let mut dialog = Answering { prover: &mut prover, tamper: unchanged, challenges: Vec::new() };
    assert!(verifier.verify(&at_most, &mut dialog, NOW).await.is_ok());
    assert_eq!(verifier.verify(&too_many, &mut dialog, NOW).await.unwrap_err().reason, Reason::Invalid);
}

#[tokio::test]
async fn rsa_keys_over_the_bound_are_refused() {
    let pki = Pki::new();
    let mut prover = pki.prover(&node("n"), &rsa_key());
    for (bits, is_accepted) in [(2048, true), (2047, false)] {
        let config = X509PopConfig { max_rsa_key_size: Some(bits), ..pki.config() };
        let verifier = pki.verifier_with(&config).unwrap();
        assert_eq!(attest(&verifier, &mut prover, NOW, unchanged).await.is_ok(), is_accepted, "{bits}");
    }
}

#[test]
fn signature_with_the_longest_salt_verifies() {
    let key = rsa_key();
    let certificate = node("n").self_signed(&key).unwrap();
    let parsed = parse_certificate(certificate.der()).unwrap();
    let PublicKey::Rsa { modulus, exponent } = PublicKey::of(&parsed).unwrap() else { panic!("RSA") };
    let verify =
        |message: &[u8], signature: &[u8]| signature::verify_rsa_pss(&modulus, &exponent, message, signature);
    assert!(verify(b"passant x509pop fixture", LONGEST_SALT));
    assert!(!verify(b"passant x509pop fixturE", LONGEST_SALT));
    for at in [0, 100, 255] {
        let mut broken = LONGEST_SALT.to_vec();
        broken[at] ^= 1;
        assert!(!verify(b"passant x509pop fixture", &broken), "byte {at}");
    }
}

#[test]
fn p384_signature_over_sha256_verifies() {
    // By openssl: P-384 over a SHA-256 digest, as a Go agent signs.
    let number = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    let r = number(
        "0b47d952df39de4caeb8f6d404c31e7d5c546d7207edb3e39946c5258158ad6cbcbf73199e73384aee28bc102eb9952e",
    );
    let s = number(
        "f2da3744f8649b5f8786fb35a04c872ab1583b82c3a338db673621fc63172dc8e11fa3d230c07e40cb3259227adcf1b6",
    );
    let der = CertificateDer::from(P384_CERTIFICATE);
    let certificate = parse_certificate(&der).unwrap();
    let PublicKey::P384(point) = PublicKey::of(&certificate).unwrap() else { panic!("P-384") };
    assert!(signature::verify_ecdsa(false, &point, b"passant x509pop fixture", &r, &s));
    assert!(!signature::verify_ecdsa(false, &point, b"passant x509pop fixturE", &r, &s));
    assert!(!signature::verify_ecdsa(false, &point, b"passant x509pop fixture", &s, &r));
}

#[test]
fn wrong_configurations_are_named() {
    let pki = Pki::new();
    let both = X509PopConfig { ca_bundle_paths: vec![pki.dir.path().join("ca.pem")], ..pki.config() };
    assert!(matches!(pki.verifier_with(&both), Err(X509PopConfigError::WhichBundle)));
    assert!(matches!(pki.verifier_with(&X509PopConfig::default()), Err(X509PopConfigError::WhichBundle)));
    let missing =
        X509PopConfig { ca_bundle_path: Some(pki.dir.path().join("no")), ..X509PopConfig::default() };
    assert!(matches!(pki.verifier_with(&missing), Err(X509PopConfigError::Unreadable { .. })));
    fs::write(pki.dir.path().join("empty"), "").unwrap();
    let empty =
        X509PopConfig { ca_bundle_path: Some(pki.dir.path().join("empty")), ..X509PopConfig::default() };
    assert!(matches!(pki.verifier_with(&empty), Err(X509PopConfigError::Empty(_))));
    for bits in [0, X509POP_RSA_BITS + 1] {
        let config = X509PopConfig { max_rsa_key_size: Some(bits), ..pki.config() };
        assert!(matches!(pki.verifier_with(&config), Err(X509PopConfigError::Bound { .. })));
    }
    let key = KeyPair::generate().unwrap();
    assert!(matches!(pki.try_prover(&node("n"), &key, 0o604), Err(X509PopConfigError::Key { .. })));
    assert!(pki.try_prover(&node("n"), &key, 0o640).is_ok());
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(matches!(pki.try_prover(&node("n"), &p384, 0o600), Err(X509PopConfigError::Key { .. })));
}

/// A dialog with a node that has gone.
struct Silent;

impl Dialog for Silent {
    fn challenge(
        &mut self,
        _challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>> {
        Box::pin(async { Err(DialogError::new(Some(Box::new(ProveError::new("gone"))))) })
    }
}

#[tokio::test]
async fn a_node_that_leaves_is_no_proof() {
    let pki = Pki::new();
    let evidence = pki.prover(&node("n"), &KeyPair::generate().unwrap()).evidence().await.unwrap();
    let rejection = pki.verifier().verify(&evidence, &mut Silent, NOW).await.unwrap_err();
    assert_eq!(rejection.reason, Reason::Invalid);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_evidence_is_only_refused(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let pki = Pki::new();
        let verifier = pki.verifier();
        let wrapped = serde_json::to_vec(&Evidence { certificates: vec![Base64(payload.clone())] }).unwrap();
        for bytes in [payload, wrapped] {
            let leaf = verifier.parse_evidence(&bytes).and_then(|chain| {
                Leaf::parse(&chain[0], &verifier.trust_domain, verifier.max_rsa_bits)
            });
            prop_assert!(leaf.is_err());
        }
    }
}
