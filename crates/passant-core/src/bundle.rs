//! What is the bundle of a trust domain?

use std::time::Duration;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::jwk::{PublicKey, PublicKeyError};
use crate::limits::{BUNDLE_AUTHORITIES, BUNDLE_DOCUMENT_BYTES, CERTIFICATE_BYTES, KEY_ID_BYTES};
use crate::pem_text::section;
use crate::time::UnixTime;
use crate::trust_domain::TrustDomain;

/// The public keys by which SVIDs of one trust domain are recognised (SPIFFE Trust Domain and Bundle 3).
///
/// A bundle never goes without the name of its trust domain, and bundles of two trust domains are never merged. An empty
/// one means that no SVID of the trust domain is valid. The order of the authorities carries no meaning but is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The trust domain whose SVIDs these authorities sign.
    pub trust_domain: TrustDomain,
    /// What verifies X509-SVIDs. Tainted ones count until they are removed.
    pub x509_authorities: Vec<X509Authority>,
    /// What verifies JWT-SVIDs. Tainted ones count until they are removed.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// Rises with every change of content. Zero when the source gave none.
    pub sequence: u64,
    /// How often a consumer should ask for a newer bundle, in whole seconds.
    #[serde(with = "optional_seconds", default, skip_serializing_if = "Option::is_none")]
    pub refresh_hint: Option<Duration>,
}

/// A certificate that signs X509-SVIDs.
///
/// [`X509Authority::from_der`] is the checked way in; whoever fills the fields in by hand vouches for them. An authority
/// that could not have come through it is never used for verification ([`Bundle::trust_anchors`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X509Authority {
    /// The DER certificate. In JSON: standard base64.
    #[serde(with = "base64_bytes")]
    pub der: Vec<u8>,
    /// Whether it was declared untrustworthy: SVIDs under it are to be renewed, but verify until it is removed.
    #[serde(default)]
    pub tainted: bool,
}

/// A key that signs JWT-SVIDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtAuthority {
    /// The `kid` of the tokens it signs. Never empty.
    pub key_id: String,
    /// DER SubjectPublicKeyInfo. In JSON: standard base64.
    #[serde(with = "base64_bytes")]
    pub public_key: Vec<u8>,
    /// When its owner will stop using it, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixTime>,
    /// Whether it was declared untrustworthy: tokens by it are to be renewed, but verify until it is removed.
    #[serde(default)]
    pub tainted: bool,
}

/// Why something cannot be part of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// Not one DER certificate, or more than 64 KiB.
    #[error("X.509 authority is not a DER certificate of at most 64 KiB")]
    MalformedCertificate,
    /// The certificate may not sign others: without cA, or with a key usage that lacks keyCertSign.
    #[error("X.509 authority is not a CA certificate")]
    NotSigning,
    /// A negative serial number, or an extension that comes twice.
    #[error(
        "X.509 authority is a certificate that others refuse to read: its serial number is negative, or an extension comes twice"
    )]
    RefusedByOthers,
    /// A JWT authority without key ID, or with one of more than 1024 bytes.
    #[error("JWT authority has no key ID or one longer than 1024 bytes")]
    BadKeyId,
    /// The public key of a JWT authority.
    #[error("JWT authority has an unusable public key")]
    BadKey(#[source] PublicKeyError),
    /// The PEM text is broken.
    #[error("PEM is malformed")]
    MalformedPem,
    /// No certificate was found.
    #[error("no certificate found in the PEM")]
    NoCertificate,
    /// More than 1000 authorities of one kind, or more than 4 MiB of text.
    #[error("bundle is larger than 4 MiB or has more than 1000 authorities of one kind")]
    TooLarge,
}

impl Bundle {
    /// The bundle without any authority: nothing of `trust_domain` verifies against it.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            sequence: 0,
            refresh_hint: None,
        }
    }

    /// Reads the X.509 authorities from PEM, as operators hand them over. Sections other than `CERTIFICATE` and text between
    /// sections are skipped; a repeated certificate counts once.
    ///
    /// # Errors
    /// When the PEM is malformed, holds no certificate, or one that may not sign.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        if text.len() > BUNDLE_DOCUMENT_BYTES {
            return Err(BundleError::TooLarge);
        }
        let mut bundle = Self::empty(trust_domain);
        for certificate in CertificateDer::pem_slice_iter(text) {
            let certificate = certificate.map_err(|_: pem::Error| BundleError::MalformedPem)?;
            bundle.add_x509_authority(X509Authority::from_der(&certificate)?)?;
        }
        if bundle.x509_authorities.is_empty() { Err(BundleError::NoCertificate) } else { Ok(bundle) }
    }

    /// The X.509 authorities in PEM, one `CERTIFICATE` section each; the empty string when there are none.
    pub fn to_pem(&self) -> String {
        self.x509_authorities.iter().map(|authority| section("CERTIFICATE", &authority.der)).collect()
    }

    /// The X.509 authorities as DER, one right after the other, as the Workload API carries them.
    pub fn x509_der(&self) -> Vec<u8> {
        self.x509_authorities.iter().flat_map(|authority| authority.der.iter().copied()).collect()
    }

    /// The X.509 authorities in the form path validation wants, tainted ones included.
    ///
    /// One that is malformed or may not sign is left out, so that a leaf certificate that strayed into a bundle never
    /// becomes an authority.
    pub fn trust_anchors(&self) -> Vec<TrustAnchor<'static>> {
        let anchor = |authority: &X509Authority| {
            check_signing_certificate(&authority.der).ok()?;
            let der = CertificateDer::from(authority.der.as_slice());
            webpki::anchor_from_trusted_cert(&der).ok().map(|anchor| anchor.to_owned())
        };
        self.x509_authorities.iter().filter_map(anchor).collect()
    }

    /// Whether `other` says the same, whatever the order of its authorities.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        fn sorted(bundle: &Bundle) -> (Vec<&X509Authority>, Vec<&JwtAuthority>) {
            let mut x509: Vec<_> = bundle.x509_authorities.iter().collect();
            x509.sort_by_key(|authority| &authority.der);
            let mut jwt: Vec<_> = bundle.jwt_authorities.iter().collect();
            jwt.sort_by_key(|authority| &authority.key_id);
            (x509, jwt)
        }
        self.trust_domain == other.trust_domain
            && (self.sequence, self.refresh_hint) == (other.sequence, other.refresh_hint)
            && sorted(self) == sorted(other)
    }

    /// The JWT authority that signs with `key_id`.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|authority| authority.key_id == key_id)
    }

    /// Adds an X.509 authority unless it is there already.
    pub(crate) fn add_x509_authority(&mut self, authority: X509Authority) -> Result<(), BundleError> {
        if self.x509_authorities.iter().all(|known| known.der != authority.der) {
            if self.x509_authorities.len() == BUNDLE_AUTHORITIES {
                return Err(BundleError::TooLarge);
            }
            self.x509_authorities.push(authority);
        }
        Ok(())
    }

    /// Adds a JWT authority unless its key ID is taken: the first one counts.
    pub(crate) fn add_jwt_authority(&mut self, authority: JwtAuthority) -> Result<(), BundleError> {
        if self.jwt_authority(&authority.key_id).is_none() {
            if self.jwt_authorities.len() == BUNDLE_AUTHORITIES {
                return Err(BundleError::TooLarge);
            }
            self.jwt_authorities.push(authority);
        }
        Ok(())
    }
}

impl X509Authority {
    /// Takes one DER certificate that may sign others: cA is true and the key usage, if there is one, has keyCertSign.
    ///
    /// Neither its validity period nor its own signature is looked at: what is in a bundle is trusted (RFC 5280 6.1).
    ///
    /// # Errors
    /// When it is malformed, too long, may not sign, or is one that other implementations refuse to read: with it in a bundle
    /// they would refuse the whole bundle, and go on without news of it.
    pub fn from_der(der: &[u8]) -> Result<Self, BundleError> {
        check_signing_certificate(der)?;
        Ok(Self { der: der.to_vec(), tainted: false })
    }
}

impl JwtAuthority {
    /// Takes a key ID and a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// When the key ID is empty or too long, or the key is of a kind that a JWK cannot hold.
    pub fn new(key_id: &str, public_key: &[u8], expires_at: Option<UnixTime>) -> Result<Self, BundleError> {
        if key_id.is_empty() || key_id.len() > KEY_ID_BYTES {
            return Err(BundleError::BadKeyId);
        }
        let public_key = PublicKey::from_spki(public_key).map_err(BundleError::BadKey)?.to_spki();
        Ok(Self { key_id: key_id.to_owned(), public_key, expires_at, tainted: false })
    }
}

fn check_signing_certificate(der: &[u8]) -> Result<(), BundleError> {
    if der.len() > CERTIFICATE_BYTES {
        return Err(BundleError::MalformedCertificate);
    }
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| BundleError::MalformedCertificate)?;
    if !rest.is_empty() {
        return Err(BundleError::MalformedCertificate);
    }
    // Go reads neither, and whoever is written in it drops the whole bundle with the one certificate.
    let is_negative = certificate.raw_serial().first().is_none_or(|first| *first >= 0x80);
    if is_negative || certificate.extensions_map().is_err() {
        return Err(BundleError::RefusedByOthers);
    }
    if !may_sign_certificates(&certificate) {
        return Err(BundleError::NotSigning);
    }
    webpki::anchor_from_trusted_cert(&CertificateDer::from(der)).map_err(|_| BundleError::RefusedByOthers)?;
    Ok(())
}

/// Whether a certificate may sign others: cA is true, and the key usage is absent or has keyCertSign (RFC 5280 6.1.4 k and n).
pub(crate) fn may_sign_certificates(certificate: &X509Certificate<'_>) -> bool {
    let is_ca = matches!(certificate.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    let signs = match certificate.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    is_ca && signs
}

mod base64_bytes {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(de::Error::custom)
    }
}

mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        span.map(|span| span.as_secs()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_ca::Ca;

    fn example() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn bundle_of(authorities: &[&[u8]]) -> Bundle {
        let mut bundle = Bundle::empty(example());
        for der in authorities {
            bundle.x509_authorities.push(X509Authority { der: der.to_vec(), tainted: false });
        }
        bundle
    }

    #[test]
    fn pem_goes_both_ways_and_repeats_count_once() {
        let (a, b) = (Ca::root("example.org"), Ca::root("example.org"));
        let bundle = bundle_of(&[a.der(), b.der()]);
        let text = bundle.to_pem();
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(Bundle::from_pem(example(), text.as_bytes()), Ok(bundle.clone()));
        assert_eq!(Bundle::from_pem(example(), format!("a comment\n{text}\n{text}").as_bytes()), Ok(bundle));
    }

    #[test]
    fn pem_without_a_usable_certificate_is_refused() {
        let check =
            |text: &str, expected| assert_eq!(Bundle::from_pem(example(), text.as_bytes()), Err(expected));
        check("", BundleError::NoCertificate);
        check("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", BundleError::NoCertificate);
        check("-----BEGIN CERTIFICATE-----\nAAAA\n", BundleError::MalformedPem);
        check(
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            BundleError::MalformedCertificate,
        );
        let leaf = Ca::root("example.org").leaf("spiffe://example.org/w");
        check(&section("CERTIFICATE", &leaf), BundleError::NotSigning);
    }

    #[test]
    fn der_is_back_to_back() {
        let (a, b) = (Ca::root("example.org"), Ca::root("example.org"));
        assert_eq!(bundle_of(&[a.der(), b.der()]).x509_der(), [a.der(), b.der()].concat());
        assert!(Bundle::empty(example()).x509_der().is_empty());
    }

    #[test]
    fn only_whole_signing_certificates_become_authorities() {
        let ca = Ca::root("example.org");
        assert!(X509Authority::from_der(ca.der()).is_ok());
        let leaf = ca.leaf("spiffe://example.org/w");
        assert_eq!(X509Authority::from_der(&leaf), Err(BundleError::NotSigning));
        let two = [ca.der(), ca.der()].concat();
        for bytes in [&two[..], &ca.der()[..ca.der().len() - 1], &[], &vec![0; CERTIFICATE_BYTES + 1]] {
            assert_eq!(X509Authority::from_der(bytes), Err(BundleError::MalformedCertificate));
        }
        assert_eq!(bundle_of(&[ca.der(), &leaf, &two]).trust_anchors().len(), 1);
    }

    #[test]
    fn what_other_implementations_refuse_to_read_is_no_authority() {
        let serial = [0x11; 16];
        let ca = Ca::root_with("example.org", |params| params.serial_number = Some(serial.to_vec().into()));
        assert!(X509Authority::from_der(ca.der()).is_ok());
        let at = ca.der().windows(serial.len()).position(|bytes| bytes == serial).unwrap();
        for (first, expected) in [(0x7f, Ok(())), (0x80, Err(BundleError::RefusedByOthers))] {
            let mut der = ca.der().to_vec();
            der[at] = first;
            assert_eq!(X509Authority::from_der(&der).map(|_| ()), expected, "{first:x}");
        }
        let extension = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        for (times, expected) in [(1, Ok(())), (2, Err(BundleError::RefusedByOthers))] {
            let extensions = vec![extension.clone(); times];
            let ca = Ca::root_with("example.org", |params| params.custom_extensions = extensions);
            assert_eq!(X509Authority::from_der(ca.der()).map(|_| ()), expected, "{times}");
        }
    }

    #[test]
    fn the_order_of_authorities_says_nothing() {
        let (a, b) = (Ca::root("example.org"), Ca::root("example.org"));
        let jwt = |name: &str| JwtAuthority::new(name, &a.spki(), None).unwrap();
        let with = |x509: &[&[u8]], names: &[&str]| Bundle {
            jwt_authorities: names.iter().map(|name| jwt(name)).collect(),
            ..bundle_of(x509)
        };
        let one = with(&[a.der(), b.der()], &["j", "k"]);
        assert!(one.says_the_same_as(&with(&[b.der(), a.der()], &["k", "j"])));
        for other in [
            with(&[a.der()], &["j", "k"]),
            with(&[a.der(), b.der()], &["j", "l"]),
            Bundle { sequence: 1, ..one.clone() },
            Bundle { refresh_hint: Some(Duration::from_secs(1)), ..one.clone() },
            Bundle { trust_domain: TrustDomain::parse("other.test").unwrap(), ..one.clone() },
        ] {
            assert!(!one.says_the_same_as(&other));
        }
        let mut tainted = one.clone();
        tainted.x509_authorities[0].tainted = true;
        assert!(!one.says_the_same_as(&tainted));
    }

    #[test]
    fn tainted_authorities_still_anchor() {
        let mut bundle = bundle_of(&[Ca::root("example.org").der()]);
        bundle.x509_authorities[0].tainted = true;
        assert_eq!(bundle.trust_anchors().len(), 1);
    }

    #[test]
    fn jwt_authorities_need_a_key_id_and_a_known_key() {
        let key = Ca::root("example.org").spki();
        assert!(JwtAuthority::new("a", &key, None).is_ok());
        assert!(JwtAuthority::new(&"a".repeat(KEY_ID_BYTES), &key, None).is_ok());
        assert_eq!(JwtAuthority::new("", &key, None), Err(BundleError::BadKeyId));
        assert_eq!(JwtAuthority::new(&"a".repeat(KEY_ID_BYTES + 1), &key, None), Err(BundleError::BadKeyId));
        assert!(matches!(JwtAuthority::new("a", b"key", None), Err(BundleError::BadKey(_))));
    }

    #[test]
    fn the_stored_form_gives_the_same_bundle_back() {
        let ca = Ca::root("example.org");
        let mut bundle = bundle_of(&[ca.der()]);
        bundle.x509_authorities[0].tainted = true;
        bundle
            .jwt_authorities
            .push(JwtAuthority::new("k", &ca.spki(), Some(UnixTime::from_secs(5))).unwrap());
        (bundle.sequence, bundle.refresh_hint) = (u64::MAX, Some(Duration::from_secs(300)));
        let text = serde_json::to_string(&bundle).unwrap();
        assert_eq!(serde_json::from_str::<Bundle>(&text).unwrap(), bundle);
    }
}
