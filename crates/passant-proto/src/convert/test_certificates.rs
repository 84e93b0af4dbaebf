//! Where do the tests of this crate get certificates?

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SanType};

/// A CA certificate, DER.
pub(crate) fn authority() -> Vec<u8> {
    ca().0
}

/// The chain of an X509-SVID, DER, leaf first, without an intermediate.
pub(crate) fn leaf(id: &str) -> Vec<u8> {
    let (_, params, key) = ca();
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    leaf.is_ca = IsCa::ExplicitNoCa;
    let issuer = Issuer::from_params(&params, &key);
    leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().to_vec()
}

/// SubjectPublicKeyInfo of a new key, DER.
pub(crate) fn public_key() -> Vec<u8> {
    KeyPair::generate().unwrap().subject_public_key_info()
}

fn ca() -> (Vec<u8>, CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    (der, params, key)
}
