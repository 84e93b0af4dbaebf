//! How does a public key turn from SubjectPublicKeyInfo into a JWK, and back?

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use thiserror::Error;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::der::{self, tag};
use crate::limits::{RSA_MODULUS_BITS_MAX, RSA_MODULUS_BITS_MIN, SPKI_BYTES};

/// As long as the SubjectPublicKeyInfo of most keys is, or longer.
const EC_SPKI_BYTES: usize = 128;

/// A public key of a kind that SPIFFE's JSON forms can hold: EC on a NIST curve, or RSA of 2048 to 8192 bits.
///
/// Only the form is checked: whether a point lies on its curve shows when a signature is verified with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// An elliptic curve key.
    Ec {
        /// The curve it lies on.
        curve: Curve,
        /// The uncompressed point: `0x04`, then x and y at full length.
        point: Vec<u8>,
    },
    /// An RSA key.
    Rsa {
        /// The modulus, big endian without leading zeros.
        modulus: Vec<u8>,
        /// The public exponent, big endian without leading zeros; odd, and at least 3.
        exponent: Vec<u8>,
    },
}

/// A curve with a name in RFC 7518 6.2.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521. Carried through bundles so that others can use it; ring cannot verify with it.
    P521,
}

/// Why some bytes or a JWK are no usable public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublicKeyError {
    /// Not one DER SubjectPublicKeyInfo, or longer than the bound.
    #[error("public key is not a DER SubjectPublicKeyInfo")]
    MalformedSpki,
    /// An algorithm or curve other than RSA, P-256, P-384 and P-521.
    #[error("public key is neither RSA nor EC on P-256, P-384 or P-521")]
    UnsupportedKey,
    /// An EC point that is compressed or has the wrong length.
    #[error("EC point is not uncompressed and of the curve's length")]
    MalformedPoint,
    /// An RSA modulus outside 2048 to 8192 bits, or an exponent that is even or below 3.
    #[error("RSA key is outside 2048 to 8192 bits, or its exponent is even or below 3")]
    UnfitRsa,
    /// A JWK `kty` that is absent or neither `EC` nor `RSA`.
    #[error("JWK has no kty that is known here")]
    UnknownKty,
    /// A JWK parameter is missing or not base64url without padding.
    #[error("JWK parameter {0:?} is missing or malformed")]
    BadParameter(&'static str),
}

impl PublicKey {
    /// Reads a DER SubjectPublicKeyInfo (RFC 5280 4.1.2.7) and nothing after it.
    ///
    /// # Errors
    /// When it is malformed, of an unknown kind, or an RSA key of unfit size.
    pub fn from_spki(der: &[u8]) -> Result<Self, PublicKeyError> {
        if der.len() > SPKI_BYTES {
            return Err(PublicKeyError::MalformedSpki);
        }
        let (rest, spki) = SubjectPublicKeyInfo::from_der(der).map_err(|_| PublicKeyError::MalformedSpki)?;
        if rest.is_empty() { Self::from_parsed(&spki) } else { Err(PublicKeyError::MalformedSpki) }
    }

    /// As [`PublicKey::from_spki`], of one that was read already.
    pub(crate) fn from_parsed(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, PublicKeyError> {
        if spki.raw.len() > SPKI_BYTES || spki.subject_public_key.unused_bits != 0 {
            return Err(PublicKeyError::MalformedSpki);
        }
        let bits = &*spki.subject_public_key.data;
        let algorithm = &spki.algorithm;
        if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let named = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            let curve = match named {
                Some(oid) if oid == OID_EC_P256 => Curve::P256,
                Some(oid) if oid == OID_NIST_EC_P384 => Curve::P384,
                Some(oid) if oid == OID_NIST_EC_P521 => Curve::P521,
                _ => return Err(PublicKeyError::UnsupportedKey),
            };
            Self::ec(curve, bits.to_vec())
        } else if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            let (rest, rsa) = RSAPublicKey::from_der(bits).map_err(|_| PublicKeyError::MalformedSpki)?;
            let negative = |number: &[u8]| number.first().is_none_or(|first| first & 0x80 != 0);
            if !rest.is_empty() || negative(rsa.modulus) || negative(rsa.exponent) {
                return Err(PublicKeyError::MalformedSpki);
            }
            Self::rsa(rsa.modulus, rsa.exponent)
        } else {
            Err(PublicKeyError::UnsupportedKey)
        }
    }

    /// The DER SubjectPublicKeyInfo, always in the one canonical form.
    pub fn to_spki(&self) -> Vec<u8> {
        let algorithm: &[u8] = match self {
            Self::Ec { curve, .. } => curve.algorithm_identifier(),
            // rsaEncryption with NULL parameters (RFC 3279 2.3.1).
            Self::Rsa { .. } => &[0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0],
        };
        let mut spki = Vec::with_capacity(EC_SPKI_BYTES);
        der::element(&mut spki, tag::SEQUENCE, |out| {
            out.extend_from_slice(algorithm);
            der::element(out, tag::BIT_STRING, |out| {
                out.push(0);
                self.write_key(out);
            });
        });
        spki
    }

    /// What the SubjectPublicKeyInfo's bit string holds: the EC point, or the DER RSAPublicKey.
    pub fn key_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_key(&mut bytes);
        bytes
    }

    /// How long [`PublicKey::key_bytes`] is.
    pub(crate) fn key_len(&self) -> usize {
        match self {
            Self::Ec { point, .. } => point.len(),
            Self::Rsa { .. } => self.key_bytes().len(),
        }
    }

    fn write_key(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ec { point, .. } => out.extend_from_slice(point),
            Self::Rsa { modulus, exponent } => der::element(out, tag::SEQUENCE, |out| {
                der::unsigned(out, modulus);
                der::unsigned(out, exponent);
            }),
        }
    }

    /// Reads the key out of a JWK; members that do not describe the key are not looked at (RFC 7517 4).
    ///
    /// # Errors
    /// When `kty` or `crv` is not known, or a parameter is missing, malformed or unfit.
    pub fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, PublicKeyError> {
        match jwk.get("kty").and_then(Value::as_str) {
            Some("EC") => {
                let curve = match jwk.get("crv").and_then(Value::as_str) {
                    Some("P-256") => Curve::P256,
                    Some("P-384") => Curve::P384,
                    Some("P-521") => Curve::P521,
                    Some(_) => return Err(PublicKeyError::UnsupportedKey),
                    None => return Err(PublicKeyError::BadParameter("crv")),
                };
                let (x, y) = (parameter(jwk, "x")?, parameter(jwk, "y")?);
                // Both at full length, leading zeros kept (RFC 7518 6.2.1.2).
                if x.len() != curve.coordinate_bytes() || y.len() != curve.coordinate_bytes() {
                    return Err(PublicKeyError::MalformedPoint);
                }
                Self::ec(curve, [&[4][..], &x, &y].concat())
            }
            Some("RSA") => Self::rsa(&parameter(jwk, "n")?, &parameter(jwk, "e")?),
            _ => Err(PublicKeyError::UnknownKty),
        }
    }

    /// The members that describe the key: `kty` with `crv`, `x`, `y` or with `n`, `e`. Nothing else, no `alg`.
    pub fn to_jwk(&self) -> Map<String, Value> {
        let text = |bytes: &[u8]| Value::String(BASE64_URL_SAFE_NO_PAD.encode(bytes));
        let members = match self {
            Self::Ec { curve, point } => {
                let (x, y) = point[1..].split_at(curve.coordinate_bytes());
                vec![("kty", "EC".into()), ("crv", curve.name().into()), ("x", text(x)), ("y", text(y))]
            }
            Self::Rsa { modulus, exponent } => {
                vec![("kty", "RSA".into()), ("n", text(modulus)), ("e", text(exponent))]
            }
        };
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn ec(curve: Curve, point: Vec<u8>) -> Result<Self, PublicKeyError> {
        if point.len() != 1 + 2 * curve.coordinate_bytes() || point[0] != 4 {
            return Err(PublicKeyError::MalformedPoint);
        }
        Ok(Self::Ec { curve, point })
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, PublicKeyError> {
        let (modulus, exponent) = (without_leading_zeros(modulus), without_leading_zeros(exponent));
        let odd_and_at_least_three = match exponent {
            [] => false,
            [only] => *only >= 3 && only & 1 == 1,
            // ring's own bound is 33 bits; five bytes hold it.
            [.., last] => exponent.len() <= 5 && last & 1 == 1,
        };
        let bits = bit_length(modulus);
        if !(RSA_MODULUS_BITS_MIN..=RSA_MODULUS_BITS_MAX).contains(&bits) || !odd_and_at_least_three {
            return Err(PublicKeyError::UnfitRsa);
        }
        Ok(Self::Rsa { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    /// The size of an RSA modulus in bits, `None` for an EC key.
    pub fn rsa_bits(&self) -> Option<usize> {
        match self {
            Self::Ec { .. } => None,
            Self::Rsa { modulus, .. } => Some(bit_length(modulus)),
        }
    }
}

impl Curve {
    /// The name in a JWK's `crv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// How many bytes each coordinate takes.
    pub fn coordinate_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// DER AlgorithmIdentifier: id-ecPublicKey with the named curve (RFC 5480 2.1.1).
    fn algorithm_identifier(self) -> &'static [u8] {
        match self {
            Self::P256 => &[
                0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1,
                7,
            ],
            Self::P384 => &[0x30, 16, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x22],
            Self::P521 => &[0x30, 16, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x23],
        }
    }
}

fn parameter(jwk: &Map<String, Value>, name: &'static str) -> Result<Vec<u8>, PublicKeyError> {
    let text = jwk.get(name).and_then(Value::as_str).ok_or(PublicKeyError::BadParameter(name))?;
    if text.len() > SPKI_BYTES * 2 {
        return Err(PublicKeyError::BadParameter(name));
    }
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| PublicKeyError::BadParameter(name))
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// Bits of a big-endian number without leading zero bytes.
fn bit_length(number: &[u8]) -> usize {
    match number.first() {
        Some(first) => (number.len() - 1) * 8 + (u8::BITS - first.leading_zeros()) as usize,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::host::Host;
    use crate::keys::KeyType;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn rsa_of(bits: usize) -> PublicKey {
        let mut modulus = vec![0xff; bits.div_ceil(8)];
        if !bits.is_multiple_of(8) {
            modulus[0] = (1 << (bits % 8)) - 1;
        }
        PublicKey::Rsa { modulus, exponent: vec![1, 0, 1] }
    }

    #[test]
    fn generated_keys_keep_their_bytes_through_both_forms() {
        for key_type in [KeyType::EcP256, KeyType::EcP384] {
            let key = Host::system().keys.generate(key_type).unwrap();
            let public = PublicKey::from_spki(key.public_key()).unwrap();
            assert_eq!(public.to_spki(), key.public_key());
            assert_eq!(PublicKey::from_jwk(&public.to_jwk()), Ok(public));
        }
    }

    #[test]
    fn every_kind_keeps_its_value_through_both_forms() {
        let point = |curve: Curve| {
            let mut point = vec![7; 1 + 2 * curve.coordinate_bytes()];
            point[0] = 4;
            point[1] = 0;
            PublicKey::Ec { curve, point }
        };
        for key in [
            point(Curve::P256),
            point(Curve::P384),
            point(Curve::P521),
            rsa_of(2048),
            rsa_of(4096),
            rsa_of(8192),
        ] {
            assert_eq!(PublicKey::from_spki(&key.to_spki()), Ok(key.clone()));
            assert_eq!(PublicKey::from_jwk(&key.to_jwk()), Ok(key));
        }
    }

    #[test]
    fn rfc_7517_example_keys_are_read() {
        // RFC 7517 appendix A.1.
        let ec = PublicKey::from_jwk(&object(json!({
            "kty": "EC", "crv": "P-256", "use": "enc", "kid": "1",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        })));
        assert!(matches!(ec, Ok(PublicKey::Ec { curve: Curve::P256, .. })));
        let rsa = PublicKey::from_jwk(&object(json!({
            "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        })))
        .unwrap();
        assert_eq!(rsa.rsa_bits(), Some(2048));
    }

    #[test]
    fn coordinates_keep_their_leading_zeros_and_full_length() {
        let mut point = vec![9; 65];
        (point[0], point[1]) = (4, 0);
        let jwk = PublicKey::Ec { curve: Curve::P256, point }.to_jwk();
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap().len(), 32);
        let mut short = jwk;
        short.insert("x".into(), Value::String(BASE64_URL_SAFE_NO_PAD.encode([9; 31])));
        assert_eq!(PublicKey::from_jwk(&short), Err(PublicKeyError::MalformedPoint));
    }

    #[test]
    fn rsa_size_and_exponent_are_bounded() {
        let check = |key: PublicKey, fits: bool| {
            let expected = if fits { Ok(key.clone()) } else { Err(PublicKeyError::UnfitRsa) };
            assert_eq!(PublicKey::from_jwk(&key.to_jwk()), expected);
            assert_eq!(PublicKey::from_spki(&key.to_spki()), expected);
        };
        check(rsa_of(2047), false);
        check(rsa_of(2048), true);
        check(rsa_of(8192), true);
        check(rsa_of(8193), false);
        let with_exponent = |exponent: &[u8]| match rsa_of(2048) {
            PublicKey::Rsa { modulus, .. } => PublicKey::Rsa { modulus, exponent: exponent.to_vec() },
            PublicKey::Ec { .. } => unreachable!(),
        };
        for (exponent, fits) in [
            (&[1][..], false),
            (&[2], false),
            (&[3], true),
            (&[1, 0, 0], false),
            (&[1, 0, 1], true),
            (&[1; 6], false),
        ] {
            check(with_exponent(exponent), fits);
        }
    }

    #[test]
    fn unusable_jwks_say_what_is_wrong() {
        let check = |jwk: Value, expected| assert_eq!(PublicKey::from_jwk(&object(jwk)), Err(expected));
        check(json!({}), PublicKeyError::UnknownKty);
        check(json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" }), PublicKeyError::UnknownKty);
        check(json!({ "kty": "ec" }), PublicKeyError::UnknownKty);
        check(json!({ "kty": "EC" }), PublicKeyError::BadParameter("crv"));
        check(json!({ "kty": "EC", "crv": "secp256k1" }), PublicKeyError::UnsupportedKey);
        check(json!({ "kty": "EC", "crv": "P-256" }), PublicKeyError::BadParameter("x"));
        check(
            json!({ "kty": "EC", "crv": "P-256", "x": "AA==", "y": "AA" }),
            PublicKeyError::BadParameter("x"),
        );
        check(json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": 1 }), PublicKeyError::BadParameter("y"));
        check(json!({ "kty": "RSA", "e": "AQAB" }), PublicKeyError::BadParameter("n"));
        check(json!({ "kty": "RSA", "n": "+/", "e": "AQAB" }), PublicKeyError::BadParameter("n"));
    }

    #[test]
    fn bytes_after_the_key_are_refused() {
        let mut spki = rsa_of(2048).to_spki();
        spki.push(0);
        assert_eq!(PublicKey::from_spki(&spki), Err(PublicKeyError::MalformedSpki));
        assert_eq!(PublicKey::from_spki(&[]), Err(PublicKeyError::MalformedSpki));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..128), at in 0usize..90, byte: u8) {
            prop_assert!(PublicKey::from_spki(&bytes).is_err());
            let mut spki = rsa_of(2048).to_spki();
            spki[at] = byte;
            if let Ok(key) = PublicKey::from_spki(&spki) {
                prop_assert_eq!(PublicKey::from_spki(&key.to_spki()), Ok(key));
            }
        }
    }
}
