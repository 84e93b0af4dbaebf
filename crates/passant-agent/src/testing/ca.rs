//! Where do the tests of this crate get authorities, SVIDs and tokens?

use std::sync::Arc;

use passant_core::bundle::{Bundle, JwtAuthority, X509Authority};
use passant_core::jwt_svid::{self, JwtClaims};
use passant_core::keys::{KeyType, SigningKey};
use passant_core::x509_svid::X509Svid;
use passant_core::{Host, SpiffeId, TrustDomain, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{NOW, trust_domain};

/// An X.509 and a JWT authority of example.org.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    pub(crate) jwt_key: Arc<dyn SigningKey>,
    pub(crate) jwt_key_id: String,
}

impl Ca {
    /// Valid for a day around [`NOW`]. Authorities of different names have different subjects.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(&trust_domain().id(), NOW - 86_400, NOW + 86_400);
        params.distinguished_name.push(DnType::OrganizationalUnitName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let jwt_key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        Self { issuer: Issuer::new(params, key), der, jwt_key, jwt_key_id: format!("jwt-{name}") }
    }

    /// The bundle with just this.
    pub(crate) fn bundle(&self) -> Bundle {
        Self::bundle_of(&[(self, false)], 1)
    }

    /// The bundle with these, each tainted or not.
    pub(crate) fn bundle_of(authorities: &[(&Self, bool)], sequence: u64) -> Bundle {
        let x509 = |(ca, tainted): &(&Self, bool)| X509Authority { der: ca.der.clone(), tainted: *tainted };
        let jwt = |(ca, tainted): &(&Self, bool)| JwtAuthority {
            key_id: ca.jwt_key_id.clone(),
            public_key: ca.jwt_key.public_key().to_vec(),
            expires_at: None,
            tainted: *tainted,
        };
        Bundle {
            x509_authorities: authorities.iter().map(x509).collect(),
            jwt_authorities: authorities.iter().map(jwt).collect(),
            sequence,
            ..Bundle::empty(trust_domain())
        }
    }

    /// An SVID of `id` for the key `spki`, valid from `begin` to `end` in seconds.
    pub(crate) fn svid(&self, id: &SpiffeId, spki: &[u8], begin: i64, end: i64) -> X509Svid {
        let mut params = params(id, begin, end);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let mut serial: [u8; 16] = Host::system().random_bytes();
        serial[0] = serial[0] & 0x7f | 1;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let der = params.signed_by(&P256(spki), &self.issuer).unwrap().der().to_vec();
        X509Svid::parse(vec![CertificateDer::from(der)]).unwrap()
    }

    /// An SVID with a key of its own.
    pub(crate) fn svid_and_key(
        &self,
        id: &SpiffeId,
        begin: i64,
        end: i64,
    ) -> (X509Svid, Arc<dyn SigningKey>) {
        let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        (self.svid(id, key.public_key(), begin, end), key)
    }

    pub(crate) fn jwt(&self, sub: &SpiffeId, aud: Vec<String>, iat: UnixTime, exp: UnixTime) -> String {
        let claims = JwtClaims { sub: sub.clone(), aud, exp, iat, jti: None, iss: None };
        jwt_svid::sign(&claims, &*self.jwt_key, &self.jwt_key_id).unwrap()
    }
}

/// A P-256 key as DER SubjectPublicKeyInfo, of which rcgen wants the point.
struct P256<'a>(&'a [u8]);

impl PublicKeyData for P256<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.0[self.0.len() - 65..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// A bundle of another trust domain.
pub(crate) fn foreign_bundle(name: &str) -> Bundle {
    Bundle { trust_domain: TrustDomain::parse(name).unwrap(), ..Ca::new(name).bundle() }
}

fn params(id: &SpiffeId, begin: i64, end: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
    let at = |secs| OffsetDateTime::from_unix_timestamp(secs).unwrap();
    (params.not_before, params.not_after) = (at(begin), at(end));
    params
}
