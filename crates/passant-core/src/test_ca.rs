//! Where do the tests of this crate get authorities and leaves, good and bad ones?

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;

/// The second that tests live in.
pub(crate) const NOW: i64 = 1_790_000_000;

/// A signing certificate with its key.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    der: Vec<u8>,
}

impl Ca {
    /// A self-signed authority. All of them have the same subject, so that only keys tell them apart.
    pub(crate) fn root(trust_domain: &str) -> Self {
        Self::root_with(trust_domain, |_| {})
    }

    pub(crate) fn root_with(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = signing_params(trust_domain, "root");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key, der }
    }

    pub(crate) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        // Named after its key, so that a chain of them is no loop.
        let name: String = key.public_key_raw()[1..9].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut params = signing_params("example.org", &name);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer()).unwrap().der().to_vec();
        Self { params, key, der }
    }

    /// Whoever holds a leaf under `ca`, and pretends that it signs.
    pub(crate) fn imposter(ca: &Self, id: &str) -> Self {
        let (params, key) = (leaf_params(id), KeyPair::generate().unwrap());
        let der = params.signed_by(&key, &ca.issuer()).unwrap().der().to_vec();
        Self { params, key, der }
    }

    pub(crate) fn leaf(&self, id: &str) -> Vec<u8> {
        self.leaf_with(id, |_| {})
    }

    pub(crate) fn leaf_with(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = leaf_params(id);
        change(&mut params);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer()).unwrap().der().to_vec()
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    pub(crate) fn key_id(&self) -> Vec<u8> {
        self.params.key_identifier(&self.key)
    }

    pub(crate) fn at(secs: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(secs).unwrap()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn signing_params(trust_domain: &str, name: &str) -> CertificateParams {
    let mut params = base_params(&format!("spiffe://{trust_domain}"));
    params.distinguished_name.push(DnType::OrganizationalUnitName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(id: &str) -> CertificateParams {
    let mut params = base_params(id);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn base_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.subject_alt_names = vec![uri(id)];
    (params.not_before, params.not_after) = (Ca::at(NOW - 10), Ca::at(NOW + 3600));
    params
}
