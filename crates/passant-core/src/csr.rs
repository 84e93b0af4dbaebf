//! What does a certificate signing request prove, and what of it do we take over?

use ring::digest;
use rustls_pki_types::CertificateSigningRequestDer;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_PKCS1_RSASSAPSS, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, Oid,
};
use x509_parser::prelude::FromDer;

use crate::der::{Reader, tag};
use crate::jwk::{Curve, PublicKey, PublicKeyError};
use crate::keys::{RcgenKey, SigningKey};
use crate::limits::{CSR_BYTES, CSR_RSA_MODULUS_BITS_MAX};
use crate::spiffe_id::SpiffeId;

/// A certificate signing request whose sender has proved to hold the private key.
///
/// Only the public key is meant to be taken over into a certificate. The names it asks for can be read, because SPIRE's
/// minting call names its subject that way, but nothing here vouches for them; key usages and all other extensions
/// are not even kept. As [`rcgen::PublicKeyData`] it can stand for the subject when rcgen signs a certificate.
#[derive(Clone, Debug)]
pub struct Csr {
    spki: Vec<u8>,
    /// Where in it the content of its bit string begins, which is its end.
    key_begins: usize,
    algorithm: &'static rcgen::SignatureAlgorithm,
    uris: Vec<String>,
    dns_names: Vec<String>,
}

/// Why a request is refused, or none could be made.
#[derive(Debug, Error)]
pub enum CsrError {
    /// More than 64 KiB.
    #[error("CSR is longer than 64 KiB")]
    TooLong,
    /// Not exactly one DER PKCS #10 request, or one that asks for extensions twice or in a broken form.
    #[error("CSR is malformed")]
    Malformed,
    /// The public key cannot be read.
    #[error("CSR has an unusable public key")]
    BadKey(#[source] PublicKeyError),
    /// The key policy refuses the public key.
    #[error("CSR has a key that is neither EC P-256, EC P-384, nor RSA of 2048 to 4096 bits")]
    UnfitKey,
    /// It is signed with SHA-1 or an algorithm that cannot be checked.
    #[error("CSR is signed with an unsupported algorithm")]
    UnsupportedSignature,
    /// The signature does not match: the sender may not hold the private key.
    #[error("CSR signature is invalid")]
    BadSignature,
    /// Making a request failed.
    #[error("failed to make a CSR")]
    Make(#[source] rcgen::Error),
}

impl Csr {
    /// Reads a DER PKCS #10 request (RFC 2986), and checks its signature and key.
    ///
    /// # Errors
    /// When it is too long or malformed, its key is not EC P-256, EC P-384 or RSA of 2048 to 4096 bits, or its signature
    /// is by SHA-1 or wrong.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_BYTES {
            return Err(CsrError::TooLong);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        if !is_canonical(der, &request) {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let key = PublicKey::from_parsed(&info.subject_pki).map_err(CsrError::BadKey)?;
        let algorithm = key_policy(&key)?;
        if !is_accepted_signature(&request.signature_algorithm.algorithm) {
            return Err(CsrError::UnsupportedSignature);
        }
        request.verify_signature().map_err(|_| CsrError::BadSignature)?;
        let (uris, dns_names) = names(&request)?;
        // The canonical form of what was understood, not the bytes that came.
        let spki = key.to_spki();
        let key_begins = spki.len() - key.key_len();
        Ok(Self { spki, key_begins, algorithm, uris, dns_names })
    }

    /// The public key as DER SubjectPublicKeyInfo.
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub fn key_hash(&self) -> [u8; 32] {
        key_hash(&self.spki)
    }

    /// The URI names that the request asks for, in its order and unparsed.
    pub fn spiffe_ids(&self) -> &[String] {
        &self.uris
    }

    /// The DNS names that the request asks for, in its order and unchecked.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }
}

impl rcgen::PublicKeyData for Csr {
    fn der_bytes(&self) -> &[u8] {
        &self.spki[self.key_begins..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

/// Makes a DER request for `key`, with `id` as its only name if given. The subject is empty.
///
/// # Errors
/// When the key does not sign.
pub fn make(key: &dyn SigningKey, id: Option<&SpiffeId>) -> Result<Vec<u8>, CsrError> {
    make_with_dns_names(key, id, &[])
}

/// As [`make`], with DNS names too: what an operator asks [`Csr::dns_names`] to be minted.
///
/// # Errors
/// When a name is not ASCII, or the key does not sign.
pub fn make_with_dns_names(
    key: &dyn SigningKey,
    id: Option<&SpiffeId>,
    dns_names: &[String],
) -> Result<Vec<u8>, CsrError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(id) = id {
        let uri = rcgen::string::Ia5String::try_from(id.as_str()).map_err(CsrError::Make)?;
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
    }
    for name in dns_names {
        let name = rcgen::string::Ia5String::try_from(name.as_str()).map_err(CsrError::Make)?;
        params.subject_alt_names.push(rcgen::SanType::DnsName(name));
    }
    let request = params.serialize_request(&RcgenKey(key)).map_err(CsrError::Make)?;
    Ok(CertificateSigningRequestDer::from(request).to_vec())
}

/// SHA-256 of a DER SubjectPublicKeyInfo: how records and tokens name a key.
pub fn key_hash(spki: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
    hash
}

fn key_policy(key: &PublicKey) -> Result<&'static rcgen::SignatureAlgorithm, CsrError> {
    match key {
        PublicKey::Ec { curve: Curve::P256, .. } => Ok(&rcgen::PKCS_ECDSA_P256_SHA256),
        PublicKey::Ec { curve: Curve::P384, .. } => Ok(&rcgen::PKCS_ECDSA_P384_SHA384),
        PublicKey::Rsa { .. } if key.rsa_bits() <= Some(CSR_RSA_MODULUS_BITS_MAX) => {
            Ok(&rcgen::PKCS_RSA_SHA256)
        }
        PublicKey::Ec { curve: Curve::P521, .. } | PublicKey::Rsa { .. } => Err(CsrError::UnfitKey),
    }
}

/// Is there nothing around the signed part but an algorithm and a signature, each in the one form that DER has for it?
///
/// x509-parser skips what follows the signature in the same sequence, and takes any parameters of an algorithm that has none.
fn is_canonical(der: &[u8], request: &X509CertificationRequest<'_>) -> bool {
    let is_whole = || {
        let mut outer = Reader::new(der);
        let mut content = outer.within(tag::SEQUENCE)?;
        outer.end()?;
        content.exactly(request.certification_request_info.raw)?;
        let mut identifier = content.within(tag::SEQUENCE)?;
        let mut signature = Reader::new(content.element(tag::BIT_STRING)?);
        content.end()?;
        signature.exactly(&[0])?;
        signature.exactly(&request.signature_value.data)?;
        signature.end()?;
        let algorithm = &request.signature_algorithm;
        (identifier.element(tag::OBJECT_IDENTIFIER)? == algorithm.algorithm.as_bytes()).then_some(())?;
        match &algorithm.parameters {
            None => {}
            // RSASSA-PSS names its hash here, which is weighed when the signature is.
            Some(parameters) if algorithm.algorithm == OID_PKCS1_RSASSAPSS => {
                (identifier.element(tag::SEQUENCE)? == parameters.data).then_some(())?;
            }
            // RFC 4055, clause 5: PKCS #1 v1.5 has NULL, and absent parameters are to be taken as well.
            Some(_) => identifier.element(tag::NULL)?.is_empty().then_some(())?,
        }
        identifier.end()
    };
    is_whole().is_some()
}

/// SHA-1 is left out, which x509-parser would still verify.
fn is_accepted_signature(algorithm: &Oid<'_>) -> bool {
    [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
        OID_PKCS1_RSASSAPSS,
    ]
    .contains(algorithm)
}

/// The URI and DNS names of the one subject alternative name extension that may be asked for.
fn names(request: &X509CertificationRequest<'_>) -> Result<(Vec<String>, Vec<String>), CsrError> {
    let mut extension_requests = 0;
    let mut name_extensions = 0;
    let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
        extension_requests += 1;
        for extension in &requested.extensions {
            if let ParsedExtension::ParseError { .. } = extension.parsed_extension() {
                return Err(CsrError::Malformed);
            }
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                continue;
            };
            name_extensions += 1;
            for name in &names.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(dns_name) => dns_names.push((*dns_name).to_owned()),
                    GeneralName::Invalid(..) => return Err(CsrError::Malformed),
                    GeneralName::OtherName(..)
                    | GeneralName::RFC822Name(_)
                    | GeneralName::X400Address(_)
                    | GeneralName::DirectoryName(_)
                    | GeneralName::EDIPartyName(_)
                    | GeneralName::IPAddress(_)
                    | GeneralName::RegisteredID(_) => {}
                }
            }
        }
    }
    if extension_requests > 1 || name_extensions > 1 {
        Err(CsrError::Malformed)
    } else {
        Ok((uris, dns_names))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::PublicKeyData;

    use super::*;
    use crate::host::Host;
    use crate::keys::KeyType;

    /// A CSR by openssl: RSA 2048, `CN=a`, URI:spiffe://example.org/w, signed with SHA-256.
    const RSA_2048: &[u8] = include_bytes!("testdata/rsa2048.csr.der");
    /// The same with a key of 1024 bits.
    const RSA_1024: &[u8] = include_bytes!("testdata/rsa1024.csr.der");
    /// The same with a key of 2048 bits, signed with SHA-1.
    const RSA_SHA1: &[u8] = include_bytes!("testdata/rsa2048-sha1.csr.der");
    /// The same with a key of 8192 bits.
    const RSA_8192: &[u8] = include_bytes!("testdata/rsa8192.csr.der");
    /// The same with a key on P-521.
    const P521: &[u8] = include_bytes!("testdata/p521.csr.der");

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://example.org/w").unwrap()
    }

    #[test]
    fn what_is_made_is_read_back() {
        for key_type in [KeyType::EcP256, KeyType::EcP384] {
            let key = Host::system().keys.generate(key_type).unwrap();
            let csr = Csr::parse(&make(key.as_ref(), Some(&id())).unwrap()).unwrap();
            assert_eq!(csr.public_key(), key.public_key());
            assert_eq!(csr.key_hash(), key_hash(key.public_key()));
            assert_eq!(csr.spiffe_ids(), [id().as_str()]);
            assert!(csr.dns_names().is_empty());
            assert_eq!(csr.subject_public_key_info(), key.public_key());
            let nameless = Csr::parse(&make(key.as_ref(), None).unwrap()).unwrap();
            assert!(nameless.spiffe_ids().is_empty());
        }
    }

    #[test]
    fn names_come_out_in_their_order() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["b.test".to_owned(), "a.test".to_owned()]).unwrap();
        for uri in ["spiffe://example.org/b", "https://example.org/a"] {
            params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        }
        let csr = Csr::parse(params.serialize_request(&key).unwrap().der()).unwrap();
        assert_eq!(csr.spiffe_ids(), ["spiffe://example.org/b", "https://example.org/a"]);
        assert_eq!(csr.dns_names(), ["b.test", "a.test"]);
    }

    #[test]
    fn rsa_requests_are_taken_within_the_key_policy() {
        let csr = Csr::parse(RSA_2048).unwrap();
        assert_eq!(csr.spiffe_ids(), ["spiffe://example.org/w"]);
        assert_eq!(csr.subject_public_key_info(), csr.public_key());
        assert!(matches!(Csr::parse(RSA_1024), Err(CsrError::BadKey(PublicKeyError::UnfitRsa))));
        assert!(matches!(Csr::parse(RSA_8192), Err(CsrError::UnfitKey)));
        assert!(matches!(Csr::parse(RSA_SHA1), Err(CsrError::UnsupportedSignature)));
        assert!(matches!(Csr::parse(P521), Err(CsrError::UnfitKey)));
    }

    #[test]
    fn ed25519_is_outside_the_key_policy() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let der = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        assert!(matches!(Csr::parse(der.der()), Err(CsrError::BadKey(PublicKeyError::UnsupportedKey))));
    }

    #[test]
    fn every_changed_byte_of_the_signed_part_is_noticed() {
        let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        let der = make(key.as_ref(), Some(&id())).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        let signed = request.certification_request_info.raw;
        let start = der.windows(signed.len()).position(|window| window == signed).unwrap();
        for at in start..start + signed.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            assert!(Csr::parse(&changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_request_is_whole_bounded_and_alone() {
        let mut longer = RSA_2048.to_vec();
        longer.push(0);
        assert!(matches!(Csr::parse(&longer), Err(CsrError::Malformed)));
        assert!(matches!(Csr::parse(&RSA_2048[..100]), Err(CsrError::Malformed)));
        assert!(matches!(Csr::parse(&[]), Err(CsrError::Malformed)));
        assert!(matches!(Csr::parse(&vec![0x30; CSR_BYTES + 1]), Err(CsrError::TooLong)));
    }

    #[test]
    fn nothing_is_hidden_around_the_signed_part() {
        /// sha256WithRSAEncryption and its NULL.
        const ALGORITHM: [u8; 15] = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 11, 5, 0];
        let (_, request) = X509CertificationRequest::from_der(RSA_2048).unwrap();
        let signed = request.certification_request_info.raw;
        let der = |tag: u8, parts: &[&[u8]]| {
            let mut element = Vec::new();
            crate::der::plain(&mut element, tag, &parts.concat());
            element
        };
        let bits = der(tag::BIT_STRING, &[&[0], request.signature_value.data.as_ref()]);
        let with = |algorithm: &[u8], after: &[u8]| {
            Csr::parse(&der(tag::SEQUENCE, &[signed, algorithm, &bits, after]))
        };
        let identifier = |parameters: &[u8]| der(tag::SEQUENCE, &[&ALGORITHM[2..13], parameters]);
        with(&ALGORITHM, &[]).expect("that is the request itself");
        with(&identifier(&[]), &[]).expect("RFC 4055 asks to take absent parameters");
        let elsewhere: [(&[u8], &[u8]); 5] = [
            (&ALGORITHM, &[0]),
            (&ALGORITHM, &[5, 0]),
            (&identifier(&[4, 1, 7]), &[]),
            (&identifier(&[5, 1, 7]), &[]),
            (&identifier(&[5, 0, 5, 0]), &[]),
        ];
        for (at, (algorithm, after)) in elsewhere.into_iter().enumerate() {
            assert!(matches!(with(algorithm, after), Err(CsrError::Malformed)), "case {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..RSA_2048.len(), byte: u8) {
            prop_assert!(Csr::parse(&bytes).is_err());
            let mut changed = RSA_2048.to_vec();
            changed[at] = byte;
            // Wherever the change is, the key that comes out is the one that signed.
            if let Ok(csr) = Csr::parse(&changed) {
                prop_assert_eq!(csr.key_hash(), Csr::parse(RSA_2048).unwrap().key_hash());
            }
        }
    }
}
