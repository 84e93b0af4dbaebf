//! When is a certificate chain a valid X509-SVID?

mod signed;

use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use thiserror::Error;
use webpki::ring::{
    ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    RSA_PSS_2048_8192_SHA384_LEGACY_KEY, RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS};
use x509_parser::prelude::FromDer;

use crate::bundle::{Bundle, may_sign_certificates};
use crate::limits::{CERTIFICATE_BYTES, CHAIN_CERTIFICATES};
use crate::serial::{Serial, SerialError};
use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::time::UnixTime;
use crate::trust_domain::TrustDomain;
pub use signed::{LeafOrder, NotAsOrdered};

/// The signatures that may stand in a chain. ring has neither P-521 nor SHA-1 for certificates.
static SIGNATURE_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    ECDSA_P256_SHA256,
    ECDSA_P256_SHA384,
    ECDSA_P384_SHA256,
    ECDSA_P384_SHA384,
    RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// A chain whose leaf has the form of an X509-SVID: one SPIFFE ID with a path, and no power to sign certificates.
///
/// Made by [`X509Svid::parse`] it says nothing about who signed it or whether it is valid now; made by [`verify`] it was
/// valid at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    serial: Serial,
    not_before: UnixTime,
    not_after: UnixTime,
    public_key: Vec<u8>,
    authority_key_id: Option<Vec<u8>>,
    dns_names: Vec<String>,
}

/// Why a chain is no X509-SVID, or none to be trusted.
#[derive(Debug, Error)]
pub enum X509SvidError {
    /// There is no certificate at all.
    #[error("certificate chain is empty")]
    Empty,
    /// More than 16 certificates.
    #[error("certificate chain has more than 16 certificates")]
    TooManyCertificates,
    /// A certificate that is not one DER X.509 certificate of less than 64 KiB, or has an extension twice.
    #[error("certificate {at} of the chain is malformed or longer than 64 KiB")]
    Malformed {
        /// Where it stands; 0 is the leaf.
        at: usize,
    },
    /// An extension of the leaf is broken.
    #[error("leaf certificate has a malformed {0} extension")]
    BadExtension(&'static str),
    /// The leaf's serial number.
    #[error("leaf certificate has an unusable serial number")]
    BadSerial(#[source] SerialError),
    /// Not exactly one URI name.
    #[error("leaf certificate has {0} URI names, expected one SPIFFE ID")]
    UriNames(usize),
    /// The URI name is no SPIFFE ID.
    #[error("leaf certificate has a URI name that is not a SPIFFE ID")]
    NotSpiffeId(#[source] SpiffeIdError),
    /// The SPIFFE ID has no path: it names a trust domain, not a workload.
    #[error("leaf certificate has SPIFFE ID {0}, which has no path")]
    NoPath(SpiffeId),
    /// cA is true: a signing certificate does not authenticate anybody.
    #[error("leaf certificate is a CA certificate")]
    IsCa,
    /// The key usage has keyCertSign or cRLSign.
    #[error("leaf certificate may sign certificates or CRLs")]
    MaySign,
    /// The bundle is that of another trust domain.
    #[error("SPIFFE ID {id} is not in trust domain {expected}")]
    WrongTrustDomain {
        /// Whose chain it is.
        id: SpiffeId,
        /// Whose bundle was given.
        expected: TrustDomain,
    },
    /// The bundle has nothing that could verify an X509-SVID.
    #[error("the bundle of trust domain {0} has no X.509 authority")]
    NoAuthority(TrustDomain),
    /// The leaf's time has passed.
    #[error("X509-SVID of {id} expired at {not_after}")]
    Expired {
        /// Whose it is.
        id: SpiffeId,
        /// Its last valid second.
        not_after: UnixTime,
    },
    /// The leaf's time has not come.
    #[error("X509-SVID of {id} is not valid before {not_before}")]
    NotYetValid {
        /// Whose it is.
        id: SpiffeId,
        /// Its first valid second.
        not_before: UnixTime,
    },
    /// No valid path leads from the leaf to an authority of the bundle.
    #[error("X509-SVID of {id} does not chain to the bundle of its trust domain")]
    Untrusted {
        /// Whose it claims to be.
        id: SpiffeId,
        /// What path validation says.
        #[source]
        source: webpki::Error,
    },
}

/// Verifies `chain` (leaf first, then intermediates in any order) as an X509-SVID of `bundle`'s trust domain at `now`
/// (X509-SVID 5, RFC 5280 6.1).
///
/// The leaf must fit TLS server and client alike. A chain below an authority or intermediate with URI name constraints is
/// refused, whether or not the SPIFFE ID fits them: webpki cannot honour them, and they are never ignored. Revocation lists
/// are not consulted; SVIDs are short-lived instead.
///
/// # Errors
/// When the leaf breaks a rule of X509-SVID 5.2, `bundle` is of another trust domain or empty, or no path is valid at `now`.
pub fn verify(
    chain: Vec<CertificateDer<'static>>,
    bundle: &Bundle,
    now: UnixTime,
) -> Result<X509Svid, X509SvidError> {
    let svid = X509Svid::parse(chain)?;
    svid.verify(bundle, now)?;
    Ok(svid)
}

/// Takes DER certificates that stand one right after the other apart, as the Workload API carries chains and bundles.
///
/// # Errors
/// When something in between is no certificate, or there are more than `at_most`.
pub fn split_der(mut bytes: &[u8], at_most: usize) -> Result<Vec<CertificateDer<'static>>, X509SvidError> {
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        if certificates.len() == at_most {
            return Err(X509SvidError::TooManyCertificates);
        }
        let malformed = |_| X509SvidError::Malformed { at: certificates.len() };
        let (rest, _) = X509Certificate::from_der(bytes).map_err(malformed)?;
        certificates.push(CertificateDer::from(bytes[..bytes.len() - rest.len()].to_vec()));
        bytes = rest;
    }
    Ok(certificates)
}

impl X509Svid {
    /// Reads a chain, leaf first. Checks the form of the leaf, and that the others are certificates; no signature, no time.
    ///
    /// # Errors
    /// When there are none or more than 16 certificates, one is malformed, or the leaf breaks a rule of X509-SVID 5.2.
    pub fn parse(chain: Vec<CertificateDer<'static>>) -> Result<Self, X509SvidError> {
        if chain.len() > CHAIN_CERTIFICATES {
            return Err(X509SvidError::TooManyCertificates);
        }
        for (at, intermediate) in chain.iter().enumerate().skip(1) {
            parse_certificate(intermediate, at)?;
        }
        let leaf_der = chain.first().ok_or(X509SvidError::Empty)?;
        let leaf = parse_certificate(leaf_der, 0)?;
        let (id, dns_names) = leaf_names(&leaf)?;
        check_leaf_signs_nothing(&leaf)?;
        let serial = Serial::from_der_content(leaf.raw_serial()).map_err(X509SvidError::BadSerial)?;
        let not_before = UnixTime::from_secs(leaf.validity().not_before.timestamp());
        let not_after = UnixTime::from_secs(leaf.validity().not_after.timestamp());
        let public_key = leaf.public_key().raw.to_vec();
        let authority_key_id = authority_key_id(&leaf)?;
        Ok(Self { id, serial, not_before, not_after, public_key, authority_key_id, dns_names, chain })
    }

    /// Verifies the chain at `now`; see [`verify`].
    ///
    /// # Errors
    /// As [`verify`], except for the form of the leaf, which is known to be right.
    pub fn verify(&self, bundle: &Bundle, now: UnixTime) -> Result<(), X509SvidError> {
        if !self.id.is_member_of(&bundle.trust_domain) {
            let expected = bundle.trust_domain.clone();
            return Err(X509SvidError::WrongTrustDomain { id: self.id.clone(), expected });
        }
        let anchors = bundle.trust_anchors();
        if anchors.is_empty() {
            return Err(X509SvidError::NoAuthority(bundle.trust_domain.clone()));
        }
        if now > self.not_after {
            return Err(X509SvidError::Expired { id: self.id.clone(), not_after: self.not_after });
        }
        let since_epoch = u64::try_from(now.secs());
        let (Ok(secs), true) = (since_epoch, now >= self.not_before) else {
            return Err(X509SvidError::NotYetValid { id: self.id.clone(), not_before: self.not_before });
        };
        let time = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let untrusted = |source| X509SvidError::Untrusted { id: self.id.clone(), source };
        let leaf = webpki::EndEntityCert::try_from(&self.chain[0]).map_err(untrusted)?;
        let intermediates = self.signing_intermediates();
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            leaf.verify_for_usage(SIGNATURE_ALGORITHMS, &anchors, &intermediates, time, usage, None, None)
                .map_err(untrusted)?;
        }
        Ok(())
    }

    /// Whose it is: a SPIFFE ID with a path.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificates one right after the other, leaf first, as the Workload API carries them.
    pub fn chain_der(&self) -> Vec<u8> {
        self.chain.iter().flat_map(|certificate| certificate.iter().copied()).collect()
    }

    /// The leaf's serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The first second at which the leaf is valid.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// The last second at which the leaf is valid.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// The leaf's public key as DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// The key identifier of whoever signed the leaf, if the leaf names one.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// The leaf's DNS names in their order. They carry no SPIFFE meaning.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// The certificates after the leaf that may sign others: webpki checks cA but not keyCertSign (RFC 5280 6.1.4 n).
    fn signing_intermediates(&self) -> Vec<CertificateDer<'static>> {
        let may_sign = |der: &&CertificateDer<'static>| matches!(X509Certificate::from_der(der), Ok((_, certificate)) if may_sign_certificates(&certificate));
        self.chain[1..].iter().filter(may_sign).cloned().collect()
    }
}

fn parse_certificate<'a>(
    der: &'a CertificateDer<'_>,
    at: usize,
) -> Result<X509Certificate<'a>, X509SvidError> {
    if der.len() > CERTIFICATE_BYTES {
        return Err(X509SvidError::Malformed { at });
    }
    match X509Certificate::from_der(der) {
        // No extension stands in a certificate twice (RFC 5280 4.2).
        Ok(([], certificate)) if certificate.extensions_map().is_ok() => Ok(certificate),
        _ => Err(X509SvidError::Malformed { at }),
    }
}

/// The SPIFFE ID in the one URI name, and the DNS names (X509-SVID 2 and 5.2).
fn leaf_names(leaf: &X509Certificate<'_>) -> Result<(SpiffeId, Vec<String>), X509SvidError> {
    const NAME: &str = "subject alternative name";
    let names = leaf.subject_alternative_name().map_err(|_| X509SvidError::BadExtension(NAME))?;
    let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::DNSName(dns_name) => dns_names.push((*dns_name).to_owned()),
            // It could be a second URI.
            GeneralName::Invalid(..) => return Err(X509SvidError::BadExtension(NAME)),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    let [uri] = uris[..] else { return Err(X509SvidError::UriNames(uris.len())) };
    let id = SpiffeId::parse(uri).map_err(X509SvidError::NotSpiffeId)?;
    if id.is_trust_domain_id() { Err(X509SvidError::NoPath(id)) } else { Ok((id, dns_names)) }
}

/// cA, keyCertSign and cRLSign are all unset (X509-SVID 5.2). Absent extensions grant nothing.
fn check_leaf_signs_nothing(leaf: &X509Certificate<'_>) -> Result<(), X509SvidError> {
    const BASIC: &str = "basic constraints";
    let constraints = leaf
        .get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS)
        .map_err(|_| X509SvidError::BadExtension(BASIC))?;
    if let Some(extension) = constraints {
        let ParsedExtension::BasicConstraints(constraints) = extension.parsed_extension() else {
            return Err(X509SvidError::BadExtension(BASIC));
        };
        if constraints.ca {
            return Err(X509SvidError::IsCa);
        }
    }
    let usage = leaf.key_usage().map_err(|_| X509SvidError::BadExtension("key usage"))?;
    match usage {
        Some(usage) if usage.value.key_cert_sign() || usage.value.crl_sign() => Err(X509SvidError::MaySign),
        _ => Ok(()),
    }
}

fn authority_key_id(leaf: &X509Certificate<'_>) -> Result<Option<Vec<u8>>, X509SvidError> {
    const NAME: &str = "authority key identifier";
    let extension = leaf
        .get_extension_unique(&OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)
        .map_err(|_| X509SvidError::BadExtension(NAME))?;
    match extension.map(|extension| extension.parsed_extension()) {
        None => Ok(None),
        Some(ParsedExtension::AuthorityKeyIdentifier(names)) => {
            Ok(names.key_identifier.as_ref().map(|key_id| key_id.0.to_vec()))
        }
        Some(_) => Err(X509SvidError::BadExtension(NAME)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::bundle::X509Authority;
    use crate::test_ca::{Ca, NOW, uri};

    const ID: &str = "spiffe://example.org/w";

    fn bundle(trust_domain: &str, cas: &[&Ca]) -> Bundle {
        let mut bundle = Bundle::empty(TrustDomain::parse(trust_domain).unwrap());
        bundle.x509_authorities = cas.iter().map(|ca| X509Authority::from_der(ca.der()).unwrap()).collect();
        bundle
    }

    fn der(certificate: &[u8]) -> CertificateDer<'static> {
        CertificateDer::from(certificate.to_vec())
    }

    fn check(chain: &[&[u8]], bundle: &Bundle, at: i64) -> Result<X509Svid, X509SvidError> {
        verify(chain.iter().map(|one| der(one)).collect(), bundle, UnixTime::from_secs(at))
    }

    /// What becomes of a leaf that differs from a good one by `change`.
    fn check_leaf(change: impl FnOnce(&mut CertificateParams)) -> Result<X509Svid, X509SvidError> {
        let ca = Ca::root("example.org");
        check(&[&ca.leaf_with(ID, change)], &bundle("example.org", &[&ca]), NOW)
    }

    #[test]
    fn a_good_leaf_is_verified_and_described() {
        let ca = Ca::root("example.org");
        let leaf = ca.leaf_with(ID, |params| params.serial_number = Some(vec![0x11; 16].into()));
        let svid = check(&[&leaf], &bundle("example.org", &[&ca]), NOW).unwrap();
        assert_eq!(svid.id().as_str(), ID);
        assert_eq!(svid.serial().to_string(), "11".repeat(16));
        assert_eq!((svid.not_before().secs(), svid.not_after().secs()), (NOW - 10, NOW + 3600));
        assert_eq!(svid.authority_key_id(), Some(&ca.key_id()[..]));
        assert_eq!(svid.chain_der(), leaf);
        assert!(svid.public_key().starts_with(&[0x30, 0x59]));
    }

    #[test]
    fn the_first_and_the_last_second_are_valid() {
        let ca = Ca::root("example.org");
        let (leaf, bundle) = (ca.leaf(ID), bundle("example.org", &[&ca]));
        assert!(matches!(check(&[&leaf], &bundle, NOW - 11), Err(X509SvidError::NotYetValid { .. })));
        assert!(check(&[&leaf], &bundle, NOW - 10).is_ok());
        assert!(check(&[&leaf], &bundle, NOW + 3600).is_ok());
        assert!(matches!(check(&[&leaf], &bundle, NOW + 3601), Err(X509SvidError::Expired { .. })));
        assert!(matches!(check(&[&leaf], &bundle, -1), Err(X509SvidError::NotYetValid { .. })));
    }

    #[test]
    fn exactly_one_uri_name_is_taken() {
        let names = |uris: &[&str]| {
            let uris: Vec<SanType> = uris.iter().map(|text| uri(text)).collect();
            check_leaf(|params| params.subject_alt_names = uris)
        };
        assert!(matches!(names(&[]), Err(X509SvidError::UriNames(0))));
        assert!(names(&[ID]).is_ok());
        for several in
            [&[ID, ID][..], &[ID, "spiffe://example.org/v"], &[ID, "https://a.test"], &["https://a.test", ID]]
        {
            assert!(matches!(names(several), Err(X509SvidError::UriNames(2))), "{several:?}");
        }
    }

    #[test]
    fn the_id_comes_from_the_uri_name_only() {
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let only_dns = check_leaf(|params| {
            params.distinguished_name.push(rcgen::DnType::CommonName, ID);
            params.subject_alt_names = vec![dns("w.example.org")];
        });
        assert!(matches!(only_dns, Err(X509SvidError::UriNames(0))));
        let svid = check_leaf(|params| {
            params.subject_alt_names.extend([dns("b.test"), dns("a.test")]);
            params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        })
        .unwrap();
        assert_eq!(
            (svid.id().as_str(), svid.dns_names()),
            (ID, &["b.test".to_owned(), "a.test".to_owned()][..])
        );
    }

    #[test]
    fn the_uri_name_is_a_spiffe_id_with_a_path() {
        let name = |text: &str| check_leaf(|params| params.subject_alt_names = vec![uri(text)]);
        assert!(matches!(
            name("https://example.org/w"),
            Err(X509SvidError::NotSpiffeId(SpiffeIdError::WrongScheme))
        ));
        assert!(matches!(name("spiffe://example.org/w/"), Err(X509SvidError::NotSpiffeId(_))));
        assert!(matches!(name("spiffe://example.org"), Err(X509SvidError::NoPath(_))));
        let longest = format!("spiffe://example.org/{}", "a".repeat(2048 - 21));
        assert_eq!(name(&longest).unwrap().id().as_str(), longest);
    }

    #[test]
    fn signing_certificates_authenticate_nobody() {
        let ca = Ca::root("example.org");
        let bundle = bundle("example.org", &[&ca]);
        assert!(matches!(check(&[ca.der()], &bundle, NOW), Err(X509SvidError::NoPath(_))));
        let signing =
            check_leaf(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        assert!(matches!(signing, Err(X509SvidError::IsCa)));
        for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            let signing = check_leaf(|params| params.key_usages.push(usage));
            assert!(matches!(signing, Err(X509SvidError::MaySign)), "{usage:?}");
        }
    }

    #[test]
    fn optional_parts_may_differ() {
        let more = [KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement];
        assert!(check_leaf(|params| params.key_usages.extend(more)).is_ok());
        assert!(check_leaf(|params| params.distinguished_name = rcgen::DistinguishedName::new()).is_ok());
        assert!(check_leaf(|params| params.extended_key_usages.clear()).is_ok());
        assert!(check_leaf(|params| params.is_ca = rcgen::IsCa::NoCa).is_ok());
    }

    #[test]
    fn a_leaf_fits_server_and_client_alike() {
        for only in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
            let svid = check_leaf(|params| params.extended_key_usages = vec![only.clone()]);
            assert!(matches!(svid, Err(X509SvidError::Untrusted { .. })), "{only:?}");
        }
    }

    #[test]
    fn unknown_critical_extensions_are_fatal() {
        let extension = |critical: bool| {
            let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            extension.set_criticality(critical);
            check_leaf(|params| params.custom_extensions.push(extension))
        };
        assert!(extension(false).is_ok());
        assert!(matches!(extension(true), Err(X509SvidError::Untrusted { .. })));
    }

    #[test]
    fn repeated_extensions_are_refused() {
        let other = Ca::root("example.org").leaf("spiffe://example.org/v");
        let (_, other) = X509Certificate::from_der(&other).unwrap();
        for extension in other.extensions() {
            let oid: Vec<u64> = extension.oid.iter().unwrap().collect();
            let again = CustomExtension::from_oid_content(&oid, extension.value.to_vec());
            assert!(check_leaf(|params| params.custom_extensions.push(again)).is_err(), "{}", extension.oid);
        }
    }

    #[test]
    fn only_the_bundle_of_its_own_trust_domain_counts() {
        let (own, other) = (Ca::root("example.org"), Ca::root("other.test"));
        let leaf = own.leaf(ID);
        let foreign = own.leaf("spiffe://other.test/w");
        assert!(check(&[&leaf], &bundle("example.org", &[&own]), NOW).is_ok());
        let result = check(&[&leaf], &bundle("other.test", &[&own, &other]), NOW);
        assert!(matches!(result, Err(X509SvidError::WrongTrustDomain { .. })));
        let result = check(&[&foreign], &bundle("other.test", &[&other]), NOW);
        assert!(matches!(result, Err(X509SvidError::Untrusted { .. })));
        let result = check(&[&leaf], &bundle("example.org", &[]), NOW);
        assert!(matches!(result, Err(X509SvidError::NoAuthority(_))));
    }

    #[test]
    fn every_authority_counts_tainted_ones_too() {
        let (old, new) = (Ca::root("example.org"), Ca::root("example.org"));
        let mut bundle = bundle("example.org", &[&old, &new]);
        bundle.x509_authorities[0].tainted = true;
        for ca in [&old, &new] {
            assert!(check(&[&ca.leaf(ID)], &bundle, NOW).is_ok());
        }
        bundle.x509_authorities.remove(0);
        assert!(check(&[&old.leaf(ID)], &bundle, NOW).is_err());
    }

    #[test]
    fn a_leaf_in_the_bundle_signs_nothing() {
        let ca = Ca::root("example.org");
        let imposter = Ca::imposter(&ca, ID);
        let mut bundle = bundle("example.org", &[&ca]);
        let authority = X509Authority { der: imposter.der().to_vec(), tainted: false };
        bundle.x509_authorities.push(authority.clone());
        let leaf = imposter.leaf("spiffe://example.org/victim");
        assert!(check(&[&leaf, imposter.der()], &bundle, NOW).is_err());
        bundle.x509_authorities = vec![authority];
        assert!(matches!(check(&[&leaf], &bundle, NOW), Err(X509SvidError::NoAuthority(_))));
    }

    #[test]
    fn intermediates_are_checked_like_the_leaf() {
        let root = Ca::root("example.org");
        let bundle = bundle("example.org", &[&root]);
        let good = root.intermediate(|_| {});
        let lower = good.intermediate(|_| {});
        let leaf = lower.leaf(ID);
        assert!(check(&[&leaf, lower.der(), good.der()], &bundle, NOW).is_ok());
        assert!(check(&[&leaf, good.der(), lower.der()], &bundle, NOW).is_ok());
        assert!(check(&[&leaf, lower.der()], &bundle, NOW).is_err(), "one is missing");
        for change in [
            (|params| params.not_after = Ca::at(NOW - 1)) as fn(&mut CertificateParams),
            |params| params.not_before = Ca::at(NOW + 1),
            |params| params.is_ca = rcgen::IsCa::ExplicitNoCa,
            |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
            |params| params.is_ca = rcgen::IsCa::NoCa,
        ] {
            let bad = root.intermediate(change);
            assert!(check(&[&bad.leaf(ID), bad.der()], &bundle, NOW).is_err());
        }
        let without_usage = root.intermediate(|params| params.key_usages.clear());
        assert!(check(&[&without_usage.leaf(ID), without_usage.der()], &bundle, NOW).is_ok());
    }

    #[test]
    fn path_length_is_enforced() {
        let limited = |params: &mut CertificateParams| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        };
        let root = Ca::root("example.org");
        let bundle = bundle("example.org", &[&root]);
        let upper = root.intermediate(limited);
        assert!(check(&[&upper.leaf(ID), upper.der()], &bundle, NOW).is_ok());
        let lower = upper.intermediate(|_| {});
        assert!(check(&[&lower.leaf(ID), lower.der(), upper.der()], &bundle, NOW).is_err());
    }

    #[test]
    fn uri_name_constraints_are_never_ignored() {
        // NameConstraints with one subtree [6] URI: permitted is [0], excluded [1].
        let constraints = |tag: u8, host: &[u8]| {
            let host_len = u8::try_from(host.len()).unwrap();
            let base = [&[0x86, host_len][..], host].concat();
            let subtree = [&[0x30, host_len + 2][..], &base].concat();
            let subtrees = [&[tag, host_len + 4][..], &subtree].concat();
            let mut extension = CustomExtension::from_oid_content(
                &[2, 5, 29, 30],
                [&[0x30, host_len + 6][..], &subtrees].concat(),
            );
            extension.set_criticality(true);
            extension
        };
        for (tag, host) in [(0xa0, &b"other.test"[..]), (0xa0, b"example.org"), (0xa1, b"example.org")] {
            let root = Ca::root("example.org");
            let constrained =
                root.intermediate(|params| params.custom_extensions.push(constraints(tag, host)));
            let result =
                check(&[&constrained.leaf(ID), constrained.der()], &bundle("example.org", &[&root]), NOW);
            assert!(matches!(result, Err(X509SvidError::Untrusted { .. })));
            let constrained =
                Ca::root_with("example.org", |params| params.custom_extensions.push(constraints(tag, host)));
            let result = check(&[&constrained.leaf(ID)], &bundle("example.org", &[&constrained]), NOW);
            assert!(matches!(result, Err(X509SvidError::Untrusted { .. })));
        }
        let dns_only = Ca::root_with("example.org", |params| {
            params.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("a.test".into())],
                excluded_subtrees: vec![],
            });
        });
        assert!(check(&[&dns_only.leaf(ID)], &bundle("example.org", &[&dns_only]), NOW).is_ok());
    }

    #[test]
    fn authorities_of_other_makers_verify_where_ring_has_the_algorithm() {
        let pairs: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(include_bytes!("testdata/chains.pem"))
                .map(Result::unwrap)
                .collect();
        let verified: Vec<bool> = pairs
            .chunks(2)
            .map(|pair| {
                let mut bundle = bundle("example.org", &[]);
                bundle.x509_authorities.push(X509Authority::from_der(&pair[0]).unwrap());
                check(&[&pair[1]], &bundle, NOW).is_ok()
            })
            .collect();
        // RSA with SHA-256, with SHA-512, as PSS; P-384; then RSA of 1024 bits and P-521.
        assert_eq!(verified, [true, true, true, true, false, false]);
    }

    #[test]
    fn every_changed_byte_of_a_leaf_is_noticed() {
        let ca = Ca::root("example.org");
        let (leaf, bundle) = (ca.leaf(ID), bundle("example.org", &[&ca]));
        for at in 0..leaf.len() {
            let mut changed = leaf.clone();
            changed[at] ^= 1;
            assert!(check(&[&changed], &bundle, NOW).is_err(), "byte {at}");
        }
    }

    #[test]
    fn chains_are_bounded_and_whole() {
        let ca = Ca::root("example.org");
        let leaf = ca.leaf(ID);
        let chain = |certificates: usize| {
            X509Svid::parse(
                std::iter::once(leaf.as_slice()).chain(vec![ca.der(); certificates - 1]).map(der).collect(),
            )
        };
        assert!(matches!(X509Svid::parse(Vec::new()), Err(X509SvidError::Empty)));
        assert!(chain(CHAIN_CERTIFICATES).is_ok());
        assert!(matches!(chain(CHAIN_CERTIFICATES + 1), Err(X509SvidError::TooManyCertificates)));
        let parse = |one: &[u8]| X509Svid::parse(vec![der(one)]);
        assert!(matches!(parse(&[&leaf[..], &[0]].concat()), Err(X509SvidError::Malformed { at: 0 })));
        assert!(matches!(parse(&leaf[..leaf.len() - 1]), Err(X509SvidError::Malformed { at: 0 })));
        let tail = X509Svid::parse(vec![der(&leaf), der(b"x")]);
        assert!(matches!(tail, Err(X509SvidError::Malformed { at: 1 })));
    }

    #[test]
    fn back_to_back_certificates_come_apart() {
        let ca = Ca::root("example.org");
        let leaf = ca.leaf(ID);
        let both = [&leaf, ca.der()].concat();
        assert_eq!(split_der(&both, 2).unwrap(), [der(&leaf), der(ca.der())]);
        assert!(split_der(&[], 2).unwrap().is_empty());
        assert!(matches!(split_der(&both, 1), Err(X509SvidError::TooManyCertificates)));
        assert!(matches!(split_der(&both[..both.len() - 1], 2), Err(X509SvidError::Malformed { at: 1 })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, byte: u8) {
            prop_assert!(X509Svid::parse(vec![der(&bytes)]).is_err());
            let mut changed = Ca::root("example.org").leaf(ID);
            let at = at.index(changed.len());
            changed[at] = byte;
            if let Ok(svid) = X509Svid::parse(vec![der(&changed)]) {
                prop_assert!(!svid.id().is_trust_domain_id());
            }
        }
    }
}
