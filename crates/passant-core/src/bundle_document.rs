//! How is a bundle written as a JWK Set, and read from one?

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::bundle::{Bundle, BundleError, JwtAuthority, X509Authority};
use crate::jwk::PublicKey;
use crate::limits::BUNDLE_DOCUMENT_BYTES;
use crate::strict_json;
use crate::trust_domain::TrustDomain;

const X509_SVID_USE: &str = "x509-svid";
const JWT_SVID_USE: &str = "jwt-svid";

/// Why a bundle document is refused as a whole, or cannot be written.
#[derive(Debug, Error)]
pub enum BundleDocumentError {
    /// More than 4 MiB, or more than 1000 authorities of one kind.
    #[error("bundle document is larger than 4 MiB or has more than 1000 authorities of one kind")]
    TooLarge,
    /// Not JSON, or an object in it names a member twice.
    #[error("bundle document is not valid JSON")]
    NotJson(#[source] serde_json::Error),
    /// The top level is no object, or `keys` is missing or no array.
    #[error("bundle document has no \"keys\" array")]
    NoKeys,
    /// `spiffe_sequence` or `spiffe_refresh_hint` is no integer of 64 bits without sign.
    #[error("bundle document has a {0:?} that is not a non-negative integer")]
    BadInteger(&'static str),
    /// An authority's key is of a kind that no JWK known to SPIFFE can hold.
    #[error("an authority of trust domain {trust_domain} has a key that a bundle document cannot hold")]
    UnwritableKey {
        /// The trust domain whose bundle it is.
        trust_domain: TrustDomain,
    },
}

impl Bundle {
    /// Writes the SPIFFE bundle document: every authority with its `use`, the sequence number always, the refresh hint if
    /// there is one of at least a second (SPIFFE Trust Domain and Bundle 4).
    ///
    /// # Errors
    /// When an authority's key is neither RSA nor on a NIST curve. Leaving it out instead would tell the world to distrust it.
    pub fn to_spiffe_json(&self) -> Result<String, BundleDocumentError> {
        let unwritable = || BundleDocumentError::UnwritableKey { trust_domain: self.trust_domain.clone() };
        let mut keys = Vec::new();
        for authority in &self.x509_authorities {
            keys.push(Value::Object(x509_entry(authority).ok_or_else(unwritable)?));
        }
        for authority in &self.jwt_authorities {
            let mut entry = jwt_entry(authority).ok_or_else(unwritable)?;
            entry.insert("use".to_owned(), JWT_SVID_USE.into());
            keys.push(Value::Object(entry));
        }
        let mut document = json!({ "keys": keys, "spiffe_sequence": self.sequence });
        if let Some(hint) = self.refresh_hint.filter(|hint| hint.as_secs() > 0) {
            document["spiffe_refresh_hint"] = hint.as_secs().into();
        }
        Ok(document.to_string())
    }

    /// Writes the JWT authorities alone as a plain JWK Set (RFC 7517), as the Workload API carries them.
    ///
    /// Like SPIRE's, its entries have a `kid` and no `use`, and the set has no `spiffe_` members: some consumers take these
    /// for faults. An authority whose key no JWK can hold is left out, as the set may be a part (Workload API 6.2.2).
    pub fn to_jwks_json(&self) -> String {
        let keys: Vec<Value> = self.jwt_authorities.iter().filter_map(jwt_entry).map(Value::Object).collect();
        json!({ "keys": keys }).to_string()
    }

    /// Reads a SPIFFE bundle document as the bundle of `trust_domain`; the document does not say whose it is.
    ///
    /// An entry is skipped, and the others kept, when its `use` or `kty` is missing or unknown (values compare with case), a
    /// parameter is missing or malformed, `x5c` is absent or empty, its first certificate is no CA certificate, is one that
    /// other implementations refuse to read, or has another key than the entry, or a `kid` is missing where one is due. Of
    /// `x5c` only the first certificate counts; of two entries with one `kid`, the first. A document without a usable entry is a bundle that
    /// distrusts everything.
    ///
    /// # Errors
    /// When it is too large, no JSON, names a member twice, has no `keys` array, or a `spiffe_` number that is none.
    /// The caller then keeps the bundle it has.
    pub fn from_spiffe_json(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleDocumentError> {
        if text.len() > BUNDLE_DOCUMENT_BYTES {
            return Err(BundleDocumentError::TooLarge);
        }
        let document = strict_json::parse(text).map_err(BundleDocumentError::NotJson)?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(BundleDocumentError::NoKeys)?;
        let mut bundle = Self::empty(trust_domain);
        for entry in keys.iter().filter_map(Value::as_object) {
            let added = match entry.get("use").and_then(Value::as_str) {
                Some(X509_SVID_USE) => {
                    read_x509_entry(entry).map(|authority| bundle.add_x509_authority(authority))
                }
                Some(JWT_SVID_USE) => {
                    read_jwt_entry(entry).map(|authority| bundle.add_jwt_authority(authority))
                }
                _ => None,
            };
            added.unwrap_or(Ok(())).map_err(|_: BundleError| BundleDocumentError::TooLarge)?;
        }
        bundle.sequence = integer(&document, "spiffe_sequence")?.unwrap_or(0);
        let hint = integer(&document, "spiffe_refresh_hint")?;
        bundle.refresh_hint = hint.filter(|secs| *secs > 0).map(Duration::from_secs);
        Ok(bundle)
    }
}

/// The entry of an X.509 authority: `use`, the key's members, `x5c` with the one certificate, and no `kid` (X509-SVID 6.1).
fn x509_entry(authority: &X509Authority) -> Option<Map<String, Value>> {
    let mut entry = certificate_key(&authority.der)?.to_jwk();
    entry.insert("use".to_owned(), X509_SVID_USE.into());
    entry.insert("x5c".to_owned(), json!([BASE64_STANDARD.encode(&authority.der)]));
    Some(entry)
}

/// The entry of a JWT authority without its `use`: the key's members and `kid` (JWT-SVID 6.1).
fn jwt_entry(authority: &JwtAuthority) -> Option<Map<String, Value>> {
    let mut entry = PublicKey::from_spki(&authority.public_key).ok()?.to_jwk();
    entry.insert("kid".to_owned(), authority.key_id.as_str().into());
    Some(entry)
}

fn read_x509_entry(entry: &Map<String, Value>) -> Option<X509Authority> {
    let key = PublicKey::from_jwk(entry).ok()?;
    let first = entry.get("x5c")?.as_array()?.first()?.as_str()?;
    let der = BASE64_STANDARD.decode(first).ok()?;
    let authority = X509Authority::from_der(&der).ok()?;
    // RFC 7517 4.7: the key in the first certificate is the key that the other members describe.
    (certificate_key(&authority.der)? == key).then_some(authority)
}

fn read_jwt_entry(entry: &Map<String, Value>) -> Option<JwtAuthority> {
    let key = PublicKey::from_jwk(entry).ok()?;
    let key_id = entry.get("kid")?.as_str()?;
    JwtAuthority::new(key_id, &key.to_spki(), None).ok()
}

fn certificate_key(der: &[u8]) -> Option<PublicKey> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    PublicKey::from_spki(certificate.public_key().raw).ok()
}

fn integer(document: &Value, name: &'static str) -> Result<Option<u64>, BundleDocumentError> {
    match document.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(BundleDocumentError::BadInteger(name)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_ca::Ca;

    fn example() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn bundle(cas: &[&Ca], key_ids: &[&str]) -> Bundle {
        let mut bundle = Bundle::empty(example());
        for ca in cas {
            bundle.add_x509_authority(X509Authority::from_der(ca.der()).unwrap()).unwrap();
        }
        for key_id in key_ids {
            let authority = JwtAuthority::new(key_id, &Ca::root("example.org").spki(), None).unwrap();
            bundle.add_jwt_authority(authority).unwrap();
        }
        bundle
    }

    fn document(bundle: &Bundle) -> Value {
        serde_json::from_str(&bundle.to_spiffe_json().unwrap()).unwrap()
    }

    fn read(document: &Value) -> Bundle {
        Bundle::from_spiffe_json(example(), document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_document_gives_the_same_bundle_back() {
        let (a, b) = (Ca::root("example.org"), Ca::root("example.org"));
        let mut original = bundle(&[&a, &b], &["k1", "k2"]);
        original.sequence = u64::MAX;
        original.refresh_hint = Some(Duration::from_secs(600));
        assert_eq!(read(&document(&original)), original);
    }

    #[test]
    fn entries_hold_what_the_specification_names_and_nothing_else() {
        let ca = Ca::root("example.org");
        let document = document(&bundle(&[&ca], &["k1"]));
        let members =
            |at: usize| document["keys"][at].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(members(0), ["crv", "kty", "use", "x", "x5c", "y"]);
        assert_eq!(members(1), ["crv", "kid", "kty", "use", "x", "y"]);
        assert_eq!(document["keys"][0]["x5c"], json!([BASE64_STANDARD.encode(ca.der())]));
        assert_eq!(
            (&document["keys"][0]["use"], &document["keys"][1]["use"]),
            (&json!("x509-svid"), &json!("jwt-svid"))
        );
        assert_eq!(document["spiffe_sequence"], 0);
        assert!(document.get("spiffe_refresh_hint").is_none());
    }

    #[test]
    fn the_empty_bundle_still_has_keys() {
        assert_eq!(document(&bundle(&[], &[]))["keys"], json!([]));
        assert_eq!(bundle(&[], &[]).to_jwks_json(), r#"{"keys":[]}"#);
    }

    #[test]
    fn the_plain_set_has_only_jwt_keys_with_kid_and_no_use() {
        let set: Value =
            serde_json::from_str(&bundle(&[&Ca::root("example.org")], &["k1", "k2"]).to_jwks_json()).unwrap();
        assert_eq!(set.as_object().unwrap().len(), 1);
        let keys = set["keys"].as_array().unwrap();
        assert_eq!(keys.iter().map(|key| key["kid"].as_str().unwrap()).collect::<Vec<_>>(), ["k1", "k2"]);
        assert!(keys.iter().all(|key| key.get("use").is_none() && key.get("x5c").is_none()));
    }

    #[test]
    fn unknown_and_broken_entries_are_skipped_and_the_others_kept() {
        let (ca, other) = (Ca::root("example.org"), Ca::root("example.org"));
        let original = bundle(&[&ca], &["k1"]);
        let good = document(&original);
        let (x509, jwt) = (&good["keys"][0], &good["keys"][1]);
        let with = |entry: &Value, name: &str, value: Value| {
            let mut entry = entry.clone();
            entry[name] = value;
            entry
        };
        let without = |entry: &Value, name: &str| {
            let mut entry = entry.clone();
            entry.as_object_mut().unwrap().remove(name);
            entry
        };
        let leaf = BASE64_STANDARD.encode(ca.leaf("spiffe://example.org/w"));
        let other_x509 = &document(&bundle(&[&other], &[]))["keys"][0];
        for skipped in [
            json!("not an object"),
            json!({ "kty": "FOO", "use": "x509-svid" }),
            json!({ "kty": "OKP", "use": "jwt-svid", "kid": "k9", "crv": "Ed25519", "x": "AAAA" }),
            without(other_x509, "kty"),
            without(other_x509, "use"),
            with(other_x509, "use", json!("foo-svid")),
            with(other_x509, "use", json!("X509-SVID")),
            with(other_x509, "use", json!("sig")),
            without(other_x509, "x5c"),
            with(other_x509, "x5c", json!([])),
            with(other_x509, "x5c", json!([7])),
            with(other_x509, "x5c", json!(["!"])),
            with(other_x509, "x5c", json!([leaf])),
            with(other_x509, "x5c", json!([BASE64_STANDARD.encode(ca.der())])),
            without(other_x509, "x"),
            with(&with(jwt, "kid", json!("k2")), "use", json!("wit-svid")),
            without(&with(jwt, "kid", json!("k2")), "use"),
            without(jwt, "kid"),
            with(jwt, "kid", json!("")),
            with(&with(jwt, "kid", json!("k2")), "y", json!("AA")),
        ] {
            let text = json!({ "keys": [skipped, x509, jwt], "foo": 1 });
            assert_eq!(read(&text), original, "{skipped}");
        }
    }

    #[test]
    fn only_the_first_certificate_counts() {
        let (a, b) = (Ca::root("example.org"), Ca::root("example.org"));
        let mut text = document(&bundle(&[&a], &[]));
        text["keys"][0]["x5c"] = json!([BASE64_STANDARD.encode(a.der()), BASE64_STANDARD.encode(b.der())]);
        assert_eq!(read(&text), bundle(&[&a], &[]));
    }

    #[test]
    fn of_two_keys_with_one_kid_the_first_counts() {
        let (a, b) = (bundle(&[], &["k"]), bundle(&[], &["k"]));
        let keys = json!({ "keys": [document(&a)["keys"][0], document(&b)["keys"][0]] });
        assert_eq!(read(&keys), a);
    }

    #[test]
    fn nothing_usable_is_an_empty_bundle_and_not_an_error() {
        assert_eq!(read(&json!({ "keys": [] })), Bundle::empty(example()));
        assert_eq!(read(&json!({ "keys": [{ "kty": "EC", "use": "foo-svid" }] })), Bundle::empty(example()));
    }

    #[test]
    fn documents_that_are_none_are_refused() {
        for text in [
            "",
            "[]",
            "7",
            "{}",
            r#"{"keys":null}"#,
            r#"{"keys":{}}"#,
            r#"{"keys":[],"keys":[]}"#,
            r#"{"keys":[{"use":"jwt-svid","use":"x509-svid"}]}"#,
            r#"{"keys":[]} x"#,
            r#"{"keys":[],"spiffe_sequence":-1}"#,
            r#"{"keys":[],"spiffe_sequence":"1"}"#,
            r#"{"keys":[],"spiffe_sequence":1.5}"#,
            r#"{"keys":[],"spiffe_sequence":18446744073709551616}"#,
            r#"{"keys":[],"spiffe_refresh_hint":-1}"#,
            r#"{"keys":[],"spiffe_refresh_hint":"10m"}"#,
        ] {
            assert!(Bundle::from_spiffe_json(example(), text.as_bytes()).is_err(), "{text}");
        }
        let padded = |len: usize| format!("{{\"keys\":[]{}}}", " ".repeat(len - r#"{"keys":[]}"#.len()));
        assert!(Bundle::from_spiffe_json(example(), padded(BUNDLE_DOCUMENT_BYTES).as_bytes()).is_ok());
        assert!(Bundle::from_spiffe_json(example(), padded(BUNDLE_DOCUMENT_BYTES + 1).as_bytes()).is_err());
    }

    #[test]
    fn large_sequences_stay_exact() {
        for sequence in [9_007_199_254_740_993, i64::MAX.unsigned_abs(), u64::MAX] {
            assert_eq!(read(&json!({ "keys": [], "spiffe_sequence": sequence })).sequence, sequence);
        }
        assert_eq!(read(&json!({ "keys": [], "spiffe_refresh_hint": 0 })).refresh_hint, None);
    }

    proptest! {
        #[test]
        fn no_document_makes_the_reader_panic(
            text in prop_oneof![".{0,64}", r#"\{"keys":\[(\{("(kty|use|kid|crv|x|y|n|e|x5c)":("(EC|RSA|P-256|jwt-svid|x509-svid|AAAA)"|\["AAAA"\]|1),?){0,6}\},?){0,3}\]\}"#],
        ) {
            if let Ok(bundle) = Bundle::from_spiffe_json(example(), text.as_bytes()) {
                prop_assert!(bundle.x509_authorities.is_empty());
            }
        }
    }
}
