//! How is the certificate of an X509-SVID written?
//!
//! All leaves of one authority have one form: X509-SVID 4 and appendix A, as rcgen would write it. What is the same in all of
//! them is written once, when the authority is taken into use, and held against what rcgen makes of the same facts.

use passant_core::csr::key_hash;
use passant_core::der::{element, plain, tag, unsigned};
use passant_core::keys::{KeyType, RcgenKey, SigningKey};
use passant_core::serial::Serial;
use passant_core::{SpiffeId, UnixTime};

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};

use super::mint::{COUNTRY, KEY_ID_BYTES, MintError, ORGANIZATION, ia5, moment, subject};

/// RFC 5280 A.1, `ub-common-name`: longer DNS names are not repeated there.
const COMMON_NAME_BYTES: usize = 64;
/// What a leaf takes beside its names and its key, and a little more.
const LEAF_BYTES: usize = 480;

/// `version [0] { v3(2) }`.
const VERSION: [u8; 5] = [0xa0, 3, tag::INTEGER, 1, 2];
/// `id-at-countryName`, `organizationName`, `serialNumber` and `commonName`.
const COUNTRY_NAME: [u8; 3] = [0x55, 4, 6];
const ORGANIZATION_NAME: [u8; 3] = [0x55, 4, 10];
const UNIQUE_NAME: [u8; 3] = [0x55, 4, 5];
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
/// Extensions, each as RFC 5280 4.2.1 has it.
const SUBJECT_KEY_ID: [u8; 3] = [0x55, 0x1d, 14];
const KEY_USAGE: [u8; 3] = [0x55, 0x1d, 15];
const ALTERNATIVE_NAME: [u8; 3] = [0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 19];
const AUTHORITY_KEY_ID: [u8; 3] = [0x55, 0x1d, 35];
const EXTENDED_KEY_USAGE: [u8; 3] = [0x55, 0x1d, 37];
/// `digitalSignature` alone: seven bits are unused.
const DIGITAL_SIGNATURE: [u8; 4] = [tag::BIT_STRING, 2, 7, 0x80];
/// `id-kp-serverAuth`, then `id-kp-clientAuth`.
const BOTH_PURPOSES: [u8; 22] = [
    tag::SEQUENCE,
    20,
    tag::OBJECT_IDENTIFIER,
    8,
    0x2b,
    6,
    1,
    5,
    5,
    7,
    3,
    1,
    tag::OBJECT_IDENTIFIER,
    8,
    0x2b,
    6,
    1,
    5,
    5,
    7,
    3,
    2,
];
/// cA is false, which is its default.
const NO_AUTHORITY: [u8; 2] = [tag::SEQUENCE, 0];
const TRUE: [u8; 3] = [tag::BOOLEAN, 1, 0xff];

/// What the leaves of one authority have in common, in DER.
#[derive(Debug)]
pub(super) struct LeafForm {
    /// `AlgorithmIdentifier` of the signature.
    algorithm: &'static [u8],
    /// The authority's name.
    issuer: Vec<u8>,
    /// The country and organization of all subjects.
    subject: Vec<u8>,
    /// The extension that names the authority's key.
    authority_key_id: Vec<u8>,
    /// The extensions between the names and the subject's key: what the key is for.
    usages: Vec<u8>,
}

/// What one leaf says beside that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafFacts<'a> {
    pub(crate) serial: &'a Serial,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    pub(crate) spiffe_id: &'a SpiffeId,
    pub(crate) dns_names: &'a [String],
    /// DER SubjectPublicKeyInfo.
    pub(crate) public_key: &'a [u8],
    /// Its SHA-256.
    pub(crate) key_hash: &'a [u8; 32],
}

impl LeafForm {
    /// The form of the leaves that the key of kind `key_type` and identifier `key_id` signs.
    pub(super) fn new(key_type: KeyType, key_id: &[u8; KEY_ID_BYTES]) -> Self {
        let mut subject = Vec::new();
        name(&mut subject, &COUNTRY_NAME, tag::PRINTABLE_STRING, COUNTRY);
        name(&mut subject, &ORGANIZATION_NAME, tag::PRINTABLE_STRING, ORGANIZATION);
        let unique = crate::encoding::to_hex(key_id);
        let mut issuer = Vec::new();
        element(&mut issuer, tag::SEQUENCE, |out| {
            out.extend_from_slice(&subject);
            name(out, &UNIQUE_NAME, tag::PRINTABLE_STRING, &unique);
        });
        let mut authority_key_id = Vec::new();
        extension(&mut authority_key_id, &AUTHORITY_KEY_ID, false, |out| {
            element(out, tag::SEQUENCE, |out| plain(out, tag::CONTEXT, key_id));
        });
        let mut usages = Vec::new();
        extension(&mut usages, &KEY_USAGE, true, |out| out.extend(DIGITAL_SIGNATURE));
        extension(&mut usages, &EXTENDED_KEY_USAGE, false, |out| out.extend(BOTH_PURPOSES));
        Self { algorithm: algorithm(key_type), issuer, subject, authority_key_id, usages }
    }

    /// Writes a specimen, which nobody signs, and holds it against what rcgen makes of the same facts.
    ///
    /// # Errors
    /// [`MintError::Mismatch`] when they differ: then nothing is to be signed in this form.
    pub(super) fn check(&self, issuer: &CertificateParams, key: &dyn SigningKey) -> Result<(), MintError> {
        let public_key = key.public_key();
        let facts = LeafFacts {
            serial: &Serial::from_magnitude(&[0x70; 16]).expect("sixteen bytes are a serial number"),
            not_before: UnixTime::from_secs(0),
            // In 2100.
            not_after: UnixTime::from_secs(4_102_444_800),
            spiffe_id: &SpiffeId::parse("spiffe://example.org/specimen").expect("it is one"),
            dns_names: &["a.example.org".to_owned(), "b.example.org".to_owned()],
            public_key,
            key_hash: &key_hash(public_key),
        };
        let ours = self.certificate(&self.to_be_signed(&facts)?, &[]);
        if ours == facts.by_rcgen(issuer, key, &RcgenKey(key))? {
            Ok(())
        } else {
            Err(MintError::Mismatch { what: "form" })
        }
    }

    /// The part of a certificate that is signed.
    ///
    /// # Errors
    /// When a date cannot be written.
    pub(super) fn to_be_signed(&self, facts: &LeafFacts<'_>) -> Result<Vec<u8>, MintError> {
        let validity = (Moment::new(facts.not_before)?, Moment::new(facts.not_after)?);
        let names: usize = facts.dns_names.iter().map(|name| name.len() + 4).sum();
        let mut tbs = Vec::with_capacity(
            LEAF_BYTES + facts.spiffe_id.as_str().len() + names + COMMON_NAME_BYTES + facts.public_key.len(),
        );
        element(&mut tbs, tag::SEQUENCE, |out| {
            out.extend(VERSION);
            unsigned(out, facts.serial.as_bytes());
            out.extend_from_slice(self.algorithm);
            out.extend_from_slice(&self.issuer);
            element(out, tag::SEQUENCE, |out| {
                validity.0.write(out);
                validity.1.write(out);
            });
            element(out, tag::SEQUENCE, |out| {
                out.extend_from_slice(&self.subject);
                if let Some(first) = facts.dns_names.first().filter(|name| name.len() <= COMMON_NAME_BYTES) {
                    name(out, &COMMON_NAME, tag::UTF8_STRING, first);
                }
            });
            out.extend_from_slice(facts.public_key);
            element(out, tag::CONTEXT | tag::CONSTRUCTED | 3, |out| {
                element(out, tag::SEQUENCE, |out| self.extensions(out, facts));
            });
        });
        Ok(tbs)
    }

    fn extensions(&self, out: &mut Vec<u8>, facts: &LeafFacts<'_>) {
        out.extend_from_slice(&self.authority_key_id);
        extension(out, &ALTERNATIVE_NAME, false, |out| {
            element(out, tag::SEQUENCE, |out| {
                // GeneralName: uniformResourceIdentifier is [6], dNSName [2].
                plain(out, tag::CONTEXT | 6, facts.spiffe_id.as_str().as_bytes());
                for name in facts.dns_names {
                    plain(out, tag::CONTEXT | 2, name.as_bytes());
                }
            });
        });
        out.extend_from_slice(&self.usages);
        extension(out, &SUBJECT_KEY_ID, false, |out| {
            plain(out, tag::OCTET_STRING, &facts.key_hash[..KEY_ID_BYTES]);
        });
        extension(out, &BASIC_CONSTRAINTS, true, |out| out.extend(NO_AUTHORITY));
    }

    /// The whole certificate.
    pub(super) fn certificate(&self, to_be_signed: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut der = Vec::with_capacity(to_be_signed.len() + signature.len() + self.algorithm.len() + 16);
        element(&mut der, tag::SEQUENCE, |out| {
            out.extend_from_slice(to_be_signed);
            out.extend_from_slice(self.algorithm);
            element(out, tag::BIT_STRING, |out| {
                out.push(0);
                out.extend_from_slice(signature);
            });
        });
        der
    }
}

impl LeafFacts<'_> {
    /// The same for rcgen.
    fn params(&self) -> Result<CertificateParams, MintError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject()?;
        if let Some(name) = self.dns_names.first().filter(|name| name.len() <= COMMON_NAME_BYTES) {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        params.serial_number = Some(SerialNumber::from(self.serial.as_bytes().to_vec()));
        params.not_before = moment(self.not_before)?;
        params.not_after = moment(self.not_after)?;
        params.subject_alt_names = vec![SanType::URI(ia5(self.spiffe_id.as_str())?)];
        for name in self.dns_names {
            params.subject_alt_names.push(SanType::DnsName(ia5(name)?));
        }
        // Written out: rust-spiffe refuses a leaf without the extension.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    /// The certificate with an empty signature, by rcgen.
    fn by_rcgen(
        &self,
        issuer: &CertificateParams,
        authority: &dyn SigningKey,
        subject: &impl PublicKeyData,
    ) -> Result<Vec<u8>, MintError> {
        let issuer = Issuer::from_params(issuer, Unsigning(RcgenKey(authority)));
        Ok(self.params()?.signed_by(subject, &issuer)?.der().to_vec())
    }
}

/// Stands for an authority's key, and signs nothing: there is no intent for a specimen.
struct Unsigning<'a>(RcgenKey<'a>);

impl PublicKeyData for Unsigning<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl rcgen::SigningKey for Unsigning<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// `ecdsa-with-SHA256` or `ecdsa-with-SHA384`, without parameters (RFC 5758 3.2).
const fn algorithm(key_type: KeyType) -> &'static [u8] {
    match key_type {
        KeyType::EcP256 => {
            &[tag::SEQUENCE, 10, tag::OBJECT_IDENTIFIER, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]
        }
        KeyType::EcP384 => {
            &[tag::SEQUENCE, 10, tag::OBJECT_IDENTIFIER, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3]
        }
    }
}

/// One part of a distinguished name.
fn name(out: &mut Vec<u8>, kind: &[u8], of: u8, text: &str) {
    element(out, tag::SET, |out| {
        element(out, tag::SEQUENCE, |out| {
            plain(out, tag::OBJECT_IDENTIFIER, kind);
            plain(out, of, text.as_bytes());
        });
    });
}

fn extension(out: &mut Vec<u8>, kind: &[u8], is_critical: bool, value: impl FnOnce(&mut Vec<u8>)) {
    element(out, tag::SEQUENCE, |out| {
        plain(out, tag::OBJECT_IDENTIFIER, kind);
        if is_critical {
            out.extend(TRUE);
        }
        element(out, tag::OCTET_STRING, value);
    });
}

/// A date as RFC 5280 4.1.2.5 has it written: `UTCTime` from 1950 to 2049, `GeneralizedTime` in all other years.
#[derive(Clone, Copy)]
struct Moment {
    tag: u8,
    digits: [u8; 15],
    from: usize,
}

impl Moment {
    fn new(at: UnixTime) -> Result<Self, MintError> {
        let at = moment(at)?;
        let year = at.year();
        // Four digits are all that there is room for.
        let two = |part: i32| u8::try_from(part).ok().filter(|part| *part < 100);
        let (Some(century), Some(of_century)) = (two(year / 100), two(year % 100)) else {
            return Err(MintError::Unwritable("date"));
        };
        let parts =
            [century, of_century, u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second()];
        let mut digits = [b'Z'; 15];
        for (place, part) in digits.chunks_exact_mut(2).zip(parts) {
            place.copy_from_slice(&[b'0' + part / 10, b'0' + part % 10]);
        }
        let is_short = (1950..2050).contains(&year);
        let (tag, from) = if is_short { (tag::UTC_TIME, 2) } else { (tag::GENERALIZED_TIME, 0) };
        Ok(Self { tag, digits, from })
    }

    fn write(&self, out: &mut Vec<u8>) {
        plain(out, self.tag, &self.digits[self.from..]);
    }
}

#[cfg(test)]
mod tests {
    use passant_core::{Csr, Host, csr};
    use proptest::prelude::*;

    use super::*;
    use crate::authority::mint::authority_params;

    /// A CSR by openssl: RSA 2048.
    const RSA: &[u8] = include_bytes!("../../../passant-core/src/testdata/rsa2048.csr.der");

    /// What the same leaf is by us and by rcgen.
    fn both(facts: &LeafFacts<'_>, authority: &dyn SigningKey, csr: &Csr) -> (Vec<u8>, Vec<u8>) {
        let key_id = [0x5a; KEY_ID_BYTES];
        let form = LeafForm::new(authority.key_type(), &key_id);
        let ours = form.certificate(&form.to_be_signed(facts).unwrap(), &[]);
        let issuer = authority_params(key_id).unwrap();
        (ours, facts.by_rcgen(&issuer, authority, csr).unwrap())
    }

    fn csrs() -> Vec<Csr> {
        let of = |key_type| csr::make(&*Host::system().keys.generate(key_type).unwrap(), None).unwrap();
        let ders = [of(KeyType::EcP256), of(KeyType::EcP384), RSA.to_vec()];
        ders.iter().map(|der| Csr::parse(der).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn a_leaf_is_byte_for_byte_what_rcgen_makes(
            serial in prop::collection::vec(any::<u8>(), 1..=20),
            // From 1901 until 9999, and around the year in which the form of dates changes.
            dates in prop::array::uniform2(prop_oneof![-2_177_452_800_i64..253_402_300_800, 2_524_607_000_i64..2_524_609_000]),
            path in "/[a-z]{1,300}",
            dns_names in prop::collection::vec("[a-z]{1,70}", 0..4),
            of_authority in prop_oneof![Just(KeyType::EcP256), Just(KeyType::EcP384)],
        ) {
            let Ok(serial) = Serial::from_magnitude(&serial) else { return Ok(()) };
            let authority = Host::system().keys.generate(of_authority).unwrap();
            let spiffe_id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
            for csr in csrs() {
                let facts = LeafFacts {
                    serial: &serial,
                    not_before: UnixTime::from_secs(dates[0]),
                    not_after: UnixTime::from_secs(dates[1]),
                    spiffe_id: &spiffe_id,
                    dns_names: &dns_names,
                    public_key: csr.public_key(),
                    key_hash: &csr.key_hash(),
                };
                let (ours, theirs) = both(&facts, &*authority, &csr);
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn years_that_four_digits_cannot_say_are_refused() {
        let last = 253_402_300_799;
        assert!(Moment::new(UnixTime::from_secs(last)).is_ok());
        assert!(Moment::new(UnixTime::from_secs(last + 1)).is_err());
        assert!(Moment::new(UnixTime::from_secs(-62_167_219_200)).is_ok());
        assert!(Moment::new(UnixTime::from_secs(-62_167_219_201)).is_err());
    }

    #[test]
    fn a_form_that_differs_is_not_taken() {
        let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        let key_id = [1; KEY_ID_BYTES];
        let mut form = LeafForm::new(KeyType::EcP256, &key_id);
        let names = authority_params(key_id).unwrap();
        form.check(&names, &*key).unwrap();
        let last = form.usages.len() - 1;
        form.usages[last] ^= 1;
        assert!(matches!(form.check(&names, &*key), Err(MintError::Mismatch { .. })));
    }
}
