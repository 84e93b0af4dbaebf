//! Is a certificate that was signed a moment ago the leaf that was ordered?
//!
//! Whoever signs knows what has to come out, to the last extension. So this reads one form alone, and has no place for anything
//! that was not ordered: it refuses more than [`X509Svid::parse`] does, which takes what others sign, and takes a tenth of the time.

use rustls_pki_types::CertificateDer;
use thiserror::Error;

use super::X509Svid;
use crate::der::{Reader, tag};
use crate::limits::CERTIFICATE_BYTES;
use crate::serial::Serial;
use crate::spiffe_id::SpiffeId;
use crate::time::UnixTime;

/// `version [0] { v3(2) }`.
const VERSION: [u8; 5] = [0xa0, 3, tag::INTEGER, 1, 2];
const TRUE: [u8; 3] = [tag::BOOLEAN, 1, 0xff];
/// `digitalSignature` and nothing else.
const DIGITAL_SIGNATURE: [u8; 4] = [tag::BIT_STRING, 2, 7, 0x80];
/// cA is false, and there is no path.
const NO_AUTHORITY: [u8; 2] = [tag::SEQUENCE, 0];
/// What `id-kp-serverAuth` and `id-kp-clientAuth` begin with; one more byte follows.
const PURPOSE: [u8; 7] = [0x2b, 6, 1, 5, 5, 7, 3];
const SERVER_AND_CLIENT: [u8; 2] = [1, 2];
/// What the types of all extensions begin with that a leaf has; one more byte follows (RFC 5280 4.2.1).
const EXTENSION: [u8; 2] = [0x55, 0x1d];
const SUBJECT_KEY_ID: u8 = 14;
const KEY_USAGE: u8 = 15;
const ALTERNATIVE_NAME: u8 = 17;
const BASIC_CONSTRAINTS: u8 = 19;
const AUTHORITY_KEY_ID: u8 = 35;
const EXTENDED_KEY_USAGE: u8 = 37;
/// The longest signature here, of a key on P-384.
const SIGNATURE_BYTES: usize = 104;

/// What a leaf is to say.
#[derive(Clone, Copy, Debug)]
pub struct LeafOrder<'a> {
    /// Whose it is.
    pub spiffe_id: &'a SpiffeId,
    /// DNS names, in their order.
    pub dns_names: &'a [String],
    /// Its serial number.
    pub serial: &'a Serial,
    /// Its first valid second.
    pub not_before: UnixTime,
    /// Its last valid second.
    pub not_after: UnixTime,
    /// DER SubjectPublicKeyInfo.
    pub public_key: &'a [u8],
    /// What stands for that key.
    pub key_id: &'a [u8],
    /// The authority's name, a DER `Name`.
    pub issuer: &'a [u8],
    /// What stands for the authority's key.
    pub authority_key_id: &'a [u8],
}

/// A certificate is not the one that was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} of the certificate is not as ordered")]
pub struct NotAsOrdered(pub &'static str);

impl X509Svid {
    /// Reads `leaf`, and holds all of it but its subject against `ordered`. Of the signature only the form is looked at. The
    /// subject has no meaning to SPIFFE (X509-SVID 2), and only its form is looked at, too.
    ///
    /// # Errors
    /// At the first thing that is not as ordered, or was not ordered at all.
    pub fn of_signed(leaf: CertificateDer<'static>, ordered: &LeafOrder<'_>) -> Result<Self, NotAsOrdered> {
        is(leaf.len() <= CERTIFICATE_BYTES, "length")?;
        is(!ordered.spiffe_id.is_trust_domain_id(), "SPIFFE ID")?;
        read(&leaf, ordered)?;
        Ok(Self {
            id: ordered.spiffe_id.clone(),
            chain: vec![leaf],
            serial: ordered.serial.clone(),
            not_before: ordered.not_before,
            not_after: ordered.not_after,
            public_key: ordered.public_key.to_vec(),
            authority_key_id: Some(ordered.authority_key_id.to_vec()),
            dns_names: ordered.dns_names.to_vec(),
        })
    }
}

fn read(der: &[u8], ordered: &LeafOrder<'_>) -> Result<(), NotAsOrdered> {
    let form = || NotAsOrdered("form");
    let mut whole = Reader::new(der);
    let mut certificate = whole.within(tag::SEQUENCE).ok_or_else(form)?;
    let mut signed = certificate.within(tag::SEQUENCE).ok_or_else(form)?;
    let algorithm = certificate.element(tag::SEQUENCE).ok_or_else(form)?;
    let signature = certificate.element(tag::BIT_STRING).ok_or_else(form)?;
    whole.end().and(certificate.end()).ok_or_else(form)?;
    is(signature.first() == Some(&0) && signature.len() <= 1 + SIGNATURE_BYTES, "signature")?;
    signed.exactly(&VERSION).ok_or(NotAsOrdered("version"))?;
    let serial = signed.element(tag::INTEGER).map(Serial::from_der_content);
    is(matches!(serial, Some(Ok(serial)) if serial == *ordered.serial), "serial number")?;
    is(signed.element(tag::SEQUENCE) == Some(algorithm), "signature algorithm")?;
    signed.exactly(ordered.issuer).ok_or(NotAsOrdered("issuer"))?;
    let mut validity = signed.within(tag::SEQUENCE).ok_or_else(form)?;
    is(date(&mut validity) == Some(ordered.not_before), "not_before")?;
    is(date(&mut validity) == Some(ordered.not_after), "not_after")?;
    validity.end().ok_or(NotAsOrdered("validity"))?;
    signed.element(tag::SEQUENCE).ok_or(NotAsOrdered("subject"))?;
    signed.exactly(ordered.public_key).ok_or(NotAsOrdered("public key"))?;
    let mut extensions = signed.within(tag::CONTEXT | tag::CONSTRUCTED | 3).ok_or_else(form)?;
    signed.end().ok_or_else(form)?;
    let list = extensions.within(tag::SEQUENCE).ok_or_else(form)?;
    extensions.end().ok_or_else(form)?;
    each_once(list, ordered)
}

/// Goes through the extensions: the six that a leaf has, each once, in any order.
fn each_once(mut list: Reader<'_>, ordered: &LeafOrder<'_>) -> Result<(), NotAsOrdered> {
    const ALL: [u8; 6] = [
        SUBJECT_KEY_ID,
        KEY_USAGE,
        ALTERNATIVE_NAME,
        BASIC_CONSTRAINTS,
        AUTHORITY_KEY_ID,
        EXTENDED_KEY_USAGE,
    ];
    let mut missing = ALL.len();
    let mut seen = [false; ALL.len()];
    while list.end().is_none() {
        let (kind, is_critical, value) = extension(&mut list).ok_or(NotAsOrdered("form of an extension"))?;
        let place = ALL.iter().position(|known| *known == kind);
        let place = place.filter(|place| !std::mem::replace(&mut seen[*place], true));
        is(place.is_some(), "list of extensions")?;
        missing -= 1;
        let (is_right, what) = match kind {
            SUBJECT_KEY_ID => (!is_critical && is_key_id(value, ordered.key_id), "subject key identifier"),
            KEY_USAGE => (is_critical && value == DIGITAL_SIGNATURE, "key usage"),
            ALTERNATIVE_NAME => {
                (!is_critical && are_names(value, ordered).is_some(), "subject alternative name")
            }
            BASIC_CONSTRAINTS => (is_critical && value == NO_AUTHORITY, "basic constraints"),
            AUTHORITY_KEY_ID => (
                !is_critical && is_of_authority(value, ordered.authority_key_id).is_some(),
                "authority key identifier",
            ),
            _ => (!is_critical && are_both_purposes(value).is_some(), "extended key usage"),
        };
        is(is_right, what)?;
    }
    is(missing == 0, "list of extensions")
}

/// The last byte of the next extension's type, whether it is critical, and its value.
fn extension<'a>(list: &mut Reader<'a>) -> Option<(u8, bool, &'a [u8])> {
    let mut extension = list.within(tag::SEQUENCE)?;
    let [kind] = extension.element(tag::OBJECT_IDENTIFIER)?.strip_prefix(&EXTENSION)? else { return None };
    let is_critical = extension.exactly(&TRUE).is_some();
    let value = extension.element(tag::OCTET_STRING)?;
    extension.end()?;
    Some((*kind, is_critical, value))
}

fn is_key_id(value: &[u8], key_id: &[u8]) -> bool {
    let mut value = Reader::new(value);
    value.element(tag::OCTET_STRING) == Some(key_id) && value.end().is_some()
}

fn is_of_authority(value: &[u8], key_id: &[u8]) -> Option<()> {
    let mut value = Reader::new(value);
    let mut names = value.within(tag::SEQUENCE)?;
    value.end()?;
    (names.element(tag::CONTEXT)? == key_id).then_some(())?;
    names.end()
}

/// One URI, which is the SPIFFE ID, then the DNS names.
fn are_names(value: &[u8], ordered: &LeafOrder<'_>) -> Option<()> {
    let mut value = Reader::new(value);
    let mut names = value.within(tag::SEQUENCE)?;
    value.end()?;
    (names.element(tag::CONTEXT | 6)? == ordered.spiffe_id.as_str().as_bytes()).then_some(())?;
    for name in ordered.dns_names {
        (names.element(tag::CONTEXT | 2)? == name.as_bytes()).then_some(())?;
    }
    names.end()
}

fn are_both_purposes(value: &[u8]) -> Option<()> {
    let mut value = Reader::new(value);
    let mut purposes = value.within(tag::SEQUENCE)?;
    value.end()?;
    for last in SERVER_AND_CLIENT {
        (purposes.element(tag::OBJECT_IDENTIFIER)?.strip_prefix(&PURPOSE)? == [last]).then_some(())?;
    }
    purposes.end()
}

/// A date in the one form that RFC 5280 4.1.2.5 has for its year.
fn date(validity: &mut Reader<'_>) -> Option<UnixTime> {
    let (digits, is_short) = match validity.element(tag::UTC_TIME) {
        Some(digits) => (digits, true),
        None => (validity.element(tag::GENERALIZED_TIME)?, false),
    };
    let digits = digits.strip_suffix(b"Z")?;
    if digits.len() != if is_short { 12 } else { 14 } || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut pairs = digits.chunks_exact(2).map(|pair| (pair[0] - b'0') * 10 + (pair[1] - b'0'));
    let mut next = || pairs.next();
    let year = if is_short {
        let year = i32::from(next()?);
        if year < 50 { 2000 + year } else { 1900 + year }
    } else {
        let year = i32::from(next()?) * 100 + i32::from(next()?);
        (!(1950..2050).contains(&year)).then_some(year)?
    };
    let month = time::Month::try_from(next()?).ok()?;
    let date = time::Date::from_calendar_date(year, month, next()?).ok()?;
    let at = date.with_hms(next()?, next()?, next()?).ok()?;
    Some(UnixTime::from_secs(at.assume_utc().unix_timestamp()))
}

fn is(right: bool, what: &'static str) -> Result<(), NotAsOrdered> {
    if right { Ok(()) } else { Err(NotAsOrdered(what)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
        KeyUsagePurpose, SanType,
    };
    use x509_parser::certificate::X509Certificate;
    use x509_parser::prelude::FromDer;

    use super::*;
    use crate::test_ca::{Ca, NOW, uri};

    const ID: &str = "spiffe://example.org/w";

    /// What a leaf says, as x509-parser reads it.
    struct Said {
        svid: X509Svid,
        key_id: Vec<u8>,
        issuer: Vec<u8>,
    }

    impl Said {
        fn by(der: &[u8]) -> Self {
            let svid = X509Svid::parse(vec![CertificateDer::from(der.to_vec())]).unwrap();
            let (_, leaf) = X509Certificate::from_der(der).unwrap();
            let key_id = crate::csr::key_hash(leaf.public_key().raw)[..20].to_vec();
            Self { svid, key_id, issuer: leaf.issuer().as_raw().to_vec() }
        }

        fn ordered(&self) -> LeafOrder<'_> {
            let svid = &self.svid;
            LeafOrder {
                spiffe_id: svid.id(),
                dns_names: svid.dns_names(),
                serial: svid.serial(),
                not_before: svid.not_before(),
                not_after: svid.not_after(),
                public_key: svid.public_key(),
                key_id: &self.key_id,
                issuer: &self.issuer,
                authority_key_id: svid.authority_key_id().unwrap(),
            }
        }
    }

    fn of_signed(der: &[u8], ordered: &LeafOrder<'_>) -> Result<X509Svid, NotAsOrdered> {
        X509Svid::of_signed(CertificateDer::from(der.to_vec()), ordered)
    }

    /// Whether a leaf that differs from a good one by `change` is taken for what it says itself.
    fn check(change: impl FnOnce(&mut CertificateParams)) -> Result<X509Svid, NotAsOrdered> {
        let leaf = Ca::root("example.org").leaf_with(ID, change);
        of_signed(&leaf, &Said::by(&leaf).ordered())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn what_was_ordered_is_taken_and_nothing_beside_it() {
        check(|_| {}).unwrap();
        check(|params| params.distinguished_name.push(DnType::CommonName, "w.test")).unwrap();
        check(|params| params.subject_alt_names.push(dns("w.test"))).unwrap();
        let refused = |what, change: &dyn Fn(&mut CertificateParams)| {
            assert_eq!(check(|params| change(params)).unwrap_err(), NotAsOrdered(what));
        };
        refused("subject alternative name", &|params| {
            params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        });
        refused("subject alternative name", &|params| {
            params.subject_alt_names = vec![dns("w.test"), uri(ID)]
        });
        refused("key usage", &|params| params.key_usages.push(KeyUsagePurpose::KeyAgreement));
        refused("list of extensions", &|params| params.key_usages.clear());
        refused("extended key usage", &|params| {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning);
        });
        refused("extended key usage", &|params| drop(params.extended_key_usages.pop()));
        refused("list of extensions", &|params| params.extended_key_usages.clear());
        refused("list of extensions", &|params| params.is_ca = IsCa::NoCa);
        refused("list of extensions", &|params| {
            let more = CustomExtension::from_oid_content(&[2, 5, 29, 18], vec![0x30, 0]);
            params.custom_extensions.push(more);
        });
        refused("form of an extension", &|params| {
            params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6], vec![5, 0]));
        });
    }

    #[test]
    fn an_authority_is_no_leaf() {
        let ca = Ca::root("example.org");
        let leaf = ca.leaf_with(ID, |_| {});
        let said = Said::by(&leaf);
        let signing = ca.leaf_with(ID, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert!(of_signed(&signing, &said.ordered()).is_err());
        let no_path: SpiffeId = said.svid.id().trust_domain().id();
        assert!(of_signed(&leaf, &LeafOrder { spiffe_id: &no_path, ..said.ordered() }).is_err());
    }

    #[test]
    fn every_difference_to_the_order_is_told() {
        let leaf = Ca::root("example.org").leaf(ID);
        let said = Said::by(&leaf);
        let ordered = said.ordered();
        let (id, serial) = (SpiffeId::parse("spiffe://example.org/v").unwrap(), "01".parse().unwrap());
        let name = ["w.test".to_owned()];
        for (what, other) in [
            ("subject alternative name", LeafOrder { spiffe_id: &id, ..ordered }),
            ("subject alternative name", LeafOrder { dns_names: &name, ..ordered }),
            ("serial number", LeafOrder { serial: &serial, ..ordered }),
            ("not_before", LeafOrder { not_before: UnixTime::from_secs(NOW - 11), ..ordered }),
            ("not_after", LeafOrder { not_after: UnixTime::from_secs(NOW + 3601), ..ordered }),
            ("public key", LeafOrder { public_key: &ordered.public_key[1..], ..ordered }),
            ("subject key identifier", LeafOrder { key_id: &[7; 20], ..ordered }),
            ("issuer", LeafOrder { issuer: &[tag::SEQUENCE, 0], ..ordered }),
            ("authority key identifier", LeafOrder { authority_key_id: &[7; 20], ..ordered }),
        ] {
            assert_eq!(of_signed(&leaf, &other).unwrap_err(), NotAsOrdered(what));
        }
    }

    #[test]
    fn every_changed_bit_is_noticed_but_those_of_subject_and_signature() {
        let leaf =
            Ca::root("example.org").leaf_with(ID, |params| params.subject_alt_names.push(dns("w.test")));
        let said = Said::by(&leaf);
        let (_, read) = X509Certificate::from_der(&leaf).unwrap();
        let place = |part: &[u8]| {
            // Of equal parts the last: the subject stands behind the issuer.
            let from = leaf.windows(part.len()).rposition(|window| window == part).unwrap();
            from..from + part.len()
        };
        let subject = place(read.subject().as_raw());
        // Its integers, not its length and its unused bits.
        let signature = place(read.signature_value.data.as_ref());
        for at in (0..leaf.len()).filter(|at| !signature.contains(at)) {
            for bit in 0..8 {
                let mut changed = leaf.clone();
                changed[at] ^= 1 << bit;
                let is_of_subject = subject.contains(&at) && at >= subject.start + 2;
                assert_eq!(
                    of_signed(&changed, &said.ordered()).is_ok(),
                    is_of_subject,
                    "bit {bit} of byte {at}"
                );
            }
            let shorter = &leaf[..at];
            assert!(of_signed(shorter, &said.ordered()).is_err(), "{at} bytes");
        }
        assert!(of_signed(&[leaf.as_slice(), &[0]].concat(), &said.ordered()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_taken_is_read_alike_by_everybody(
            serial in prop::collection::vec(any::<u8>(), 1..=20),
            dates in prop::array::uniform2(prop_oneof![-2_177_452_800_i64..253_402_300_800, 2_524_607_000_i64..2_524_609_000]),
            path in "/[a-z]{1,300}",
            dns_names in prop::collection::vec("[a-z]{1,70}", 0..4),
        ) {
            prop_assume!(Serial::from_magnitude(&serial).is_ok());
            let leaf = Ca::root("example.org").leaf_with(&format!("spiffe://example.org{path}"), |params| {
                params.serial_number = Some(serial.into());
                (params.not_before, params.not_after) = (Ca::at(dates[0]), Ca::at(dates[1]));
                params.subject_alt_names.extend(dns_names.iter().map(|name| dns(name)));
            });
            let said = Said::by(&leaf);
            let taken = of_signed(&leaf, &said.ordered());
            prop_assert_eq!(taken, Ok(said.svid));
        }
    }
}
