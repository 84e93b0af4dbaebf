//! How do the answers of the Workload API come about?

use std::collections::BTreeMap;

use passant_core::jwt_svid::JwtSvid;
use passant_core::{Bundle, Secret, SpiffeId, X509Svid};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::{Map, Value};

use crate::workload;

/// One X509-SVID as a workload receives it.
#[derive(Clone, Copy, Debug)]
pub struct X509Identity<'a> {
    /// The SVID.
    pub svid: &'a X509Svid,
    /// The key of its leaf, PKCS#8 DER.
    pub key: &'a Secret<Vec<u8>>,
    /// The bundle of its trust domain.
    pub bundle: &'a Bundle,
    /// What it is for; may be empty. That no hint comes twice is for the caller to see to.
    pub hint: &'a str,
}

/// X509-SVIDs in the given order, the first of which is the default one, with the bundles of the foreign
/// trust domains.
///
/// A foreign bundle without X.509 authorities is left out, which tells a workload the same (Workload API
/// 4.4), where an empty text confuses some.
///
/// The answer holds the keys in the clear: encode it, send it, drop it.
pub fn x509_svids<'a>(
    identities: impl IntoIterator<Item = X509Identity<'a>>,
    federated: impl IntoIterator<Item = &'a Bundle>,
) -> workload::X509svidResponse {
    workload::X509svidResponse {
        svids: identities.into_iter().map(x509_svid).collect(),
        crl: Vec::new(),
        federated_bundles: x509_der(federated),
    }
}

/// The X.509 part of the given bundles; those without X.509 authorities are left out.
pub fn x509_bundles<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> workload::X509BundlesResponse {
    workload::X509BundlesResponse { crl: Vec::new(), bundles: x509_der(bundles) }
}

/// One JWT-SVID with its hint, which may be empty. That no hint comes twice is for the caller to see to.
pub fn jwt_svid(svid: &JwtSvid, hint: &str) -> workload::Jwtsvid {
    workload::Jwtsvid {
        spiffe_id: svid.id().to_string(),
        svid: svid.token().to_owned(),
        hint: hint.to_owned(),
    }
}

/// The JWT part of the given bundles, as JWK Sets; one without JWT authorities is an empty set.
pub fn jwt_bundles<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> workload::JwtBundlesResponse {
    let one = |bundle: &Bundle| (bundle.trust_domain.id().to_string(), bundle.to_jwks_json().into_bytes());
    workload::JwtBundlesResponse { bundles: bundles.into_iter().map(one).collect() }
}

/// What a valid JWT-SVID of `id` says. The audience is always a list, as SPIRE gives it, also where the
/// token has a single one.
///
/// Numbers become doubles: integers beyond 2 to the 53 lose their last digits.
pub fn validated(id: &SpiffeId, claims: &Map<String, Value>) -> workload::ValidateJwtsvidResponse {
    let mut claims = object(claims);
    if let Some(audience) = claims.fields.get_mut("aud")
        && matches!(audience.kind, Some(Kind::StringValue(_)))
    {
        let values = vec![std::mem::take(audience)];
        audience.kind = Some(Kind::ListValue(ListValue { values }));
    }
    workload::ValidateJwtsvidResponse { spiffe_id: id.to_string(), claims: Some(claims) }
}

/// The claims of an answer as JSON. A number that is no finite double becomes null.
pub fn claims(answer: &workload::ValidateJwtsvidResponse) -> Map<String, Value> {
    answer.claims.as_ref().map(|claims| members(claims, CLAIMS_DEPTH)).unwrap_or_default()
}

/// How deep the claims of an answer are read; what lies deeper becomes null. An agent's JSON parser stops at 128.
const CLAIMS_DEPTH: usize = 128;

fn members(object: &Struct, depth: usize) -> Map<String, Value> {
    object.fields.iter().map(|(name, value)| (name.clone(), from_json(value, depth))).collect()
}

fn from_json(value: &prost_types::Value, depth: usize) -> Value {
    let Some(deeper) = depth.checked_sub(1) else {
        return Value::Null;
    };
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(number)) => whole(*number).unwrap_or_else(|| Value::from(*number)),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::ListValue(list)) => list.values.iter().map(|value| from_json(value, deeper)).collect(),
        Some(Kind::StructValue(object)) => Value::Object(members(object, deeper)),
    }
}

/// A double that holds a whole number as that number, so that times print as such.
fn whole(number: f64) -> Option<Value> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() != 0.0 || number.abs() > EXACT {
        return None;
    }
    format!("{number:.0}").parse::<i64>().ok().map(Value::from)
}

fn x509_svid(identity: X509Identity<'_>) -> workload::X509svid {
    workload::X509svid {
        spiffe_id: identity.svid.id().to_string(),
        x509_svid: identity.svid.chain_der(),
        x509_svid_key: identity.key.expose().clone(),
        bundle: identity.bundle.x509_der(),
        hint: identity.hint.to_owned(),
    }
}

fn x509_der<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> BTreeMap<String, Vec<u8>> {
    let with_any = bundles.into_iter().filter(|bundle| !bundle.x509_authorities.is_empty());
    with_any.map(|bundle| (bundle.trust_domain.id().to_string(), bundle.x509_der())).collect()
}

fn object(members: &Map<String, Value>) -> Struct {
    Struct { fields: members.iter().map(|(name, value)| (name.clone(), json(value))).collect() }
}

/// Goes as deep as `value` does, which the parser of JSON bounds.
fn json(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(prost_types::NullValue::NullValue.into()),
        Value::Bool(value) => Kind::BoolValue(*value),
        // Without the feature of arbitrary precision every number has a double.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(json).collect() }),
        Value::Object(members) => Kind::StructValue(object(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use passant_core::{TrustDomain, X509Authority};
    use proptest::prelude::*;
    use prost::Message;
    use serde_json::json;

    use super::*;
    use crate::convert::svid::x509_from_wire;
    use crate::convert::test_certificates::{authority, leaf};
    use crate::types;

    #[test]
    fn claims_read_back_as_they_were() {
        let id = SpiffeId::parse("spiffe://example.org/a").unwrap();
        let Value::Object(sent) =
            json!({ "exp": 1_790_000_000, "half": 0.5, "aud": ["a"], "more": { "x": [null, true] } })
        else {
            unreachable!("it is an object");
        };
        assert_eq!(super::claims(&validated(&id, &sent)), sent);
    }

    fn bundle(name: &str, authorities: usize) -> Bundle {
        let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
        bundle.x509_authorities =
            (0..authorities).map(|_| X509Authority::from_der(&authority()).unwrap()).collect();
        bundle
    }

    #[test]
    fn an_x509_answer_has_all_fields() {
        let chain = vec![leaf("spiffe://example.org/api"), authority()];
        let wire = types::X509svid { cert_chain: chain.clone(), ..types::X509svid::default() };
        let svid = x509_from_wire(&wire).unwrap();
        let key = Secret::new(vec![1, 2, 3]);
        let own = bundle("example.org", 2);
        let foreign = [bundle("other.test", 1), bundle("void.test", 0)];

        let identity = X509Identity { svid: &svid, key: &key, bundle: &own, hint: "internal" };
        let answer = x509_svids([identity], &foreign);

        let [first] = answer.svids.as_slice() else { panic!("{} SVIDs", answer.svids.len()) };
        assert_eq!(first.spiffe_id, "spiffe://example.org/api");
        assert_eq!(first.x509_svid, chain.concat());
        assert_eq!(first.x509_svid_key, [1, 2, 3]);
        assert_eq!(first.bundle, own.x509_der());
        assert_eq!(first.hint, "internal");
        let federated = BTreeMap::from([("spiffe://other.test".to_owned(), foreign[0].x509_der())]);
        assert_eq!(answer.federated_bundles, federated);
    }

    #[test]
    fn bundles_are_known_by_the_id_of_their_trust_domain() {
        let bundles = [bundle("example.org", 1), bundle("void.test", 0)];
        let x509 = x509_bundles(&bundles);
        assert_eq!(x509.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
        let jwt = jwt_bundles(&bundles);
        assert_eq!(jwt.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org", "spiffe://void.test"]);
        let document: Value = serde_json::from_slice(&jwt.bundles["spiffe://void.test"]).unwrap();
        assert_eq!(document, json!({ "keys": [] }));
    }

    fn claims(document: Value) -> Struct {
        let id = SpiffeId::parse("spiffe://example.org/api").unwrap();
        validated(&id, document.as_object().unwrap()).claims.unwrap()
    }

    #[test]
    fn the_audience_is_always_a_list() {
        assert_eq!(claims(json!({ "aud": "a" })), claims(json!({ "aud": ["a"] })));
        assert_eq!(to_json(&claims(json!({ "aud": "a" }))), json!({ "aud": ["a"] }));
        assert_eq!(to_json(&claims(json!({ "sub": "a" }))), json!({ "sub": "a" }));
    }

    fn to_json(object: &Struct) -> Value {
        Value::Object(
            object.fields.iter().map(|(name, value)| (name.clone(), value_to_json(value))).collect(),
        )
    }

    fn value_to_json(value: &prost_types::Value) -> Value {
        match value.kind.as_ref().unwrap() {
            Kind::NullValue(_) => Value::Null,
            Kind::NumberValue(number) => json!(number),
            Kind::StringValue(text) => json!(text),
            Kind::BoolValue(value) => json!(value),
            Kind::StructValue(object) => to_json(object),
            Kind::ListValue(list) => list.values.iter().map(value_to_json).collect(),
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>()
                .prop_filter("JSON has finite numbers", |number| number.is_finite())
                .prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{0,4}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn claims_survive_the_wire(value in any_json()) {
            let document = json!({ "claim": value });
            let encoded = claims(document.clone()).encode_to_vec();
            prop_assert_eq!(to_json(&Struct::decode(encoded.as_slice()).unwrap()), document);
        }
    }
}
