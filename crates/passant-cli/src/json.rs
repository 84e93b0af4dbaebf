//! What do the server's messages look like as JSON?
//!
//! Field for field as `spire-server ... -output json` prints them, so that scripts keep working: proto names,
//! 64-bit integers as strings, bytes in standard base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use passant_proto::types;
use serde_json::{Value, json};

pub(crate) fn spiffe_id(id: Option<&types::Spiffeid>) -> Value {
    id.map_or(Value::Null, |id| json!({ "trust_domain": id.trust_domain, "path": id.path }))
}

/// The text form of an ID on the wire, empty when there is none.
pub(crate) fn spiffe_id_text(id: Option<&types::Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path)).unwrap_or_default()
}

pub(crate) fn selectors(selectors: &[types::Selector]) -> Value {
    selectors.iter().map(|s| json!({ "type": s.r#type, "value": s.value })).collect()
}

pub(crate) fn selectors_text(selectors: &[types::Selector]) -> String {
    selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect::<Vec<_>>().join(" ")
}

pub(crate) fn entry(entry: &types::Entry) -> Value {
    let mut json = json!({
        "id": entry.id,
        "spiffe_id": spiffe_id(entry.spiffe_id.as_ref()),
        "parent_id": spiffe_id(entry.parent_id.as_ref()),
        "selectors": selectors(&entry.selectors),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "federates_with": entry.federates_with,
        "admin": entry.admin,
        "downstream": entry.downstream,
        "expires_at": entry.expires_at.to_string(),
        "dns_names": entry.dns_names,
        "revision_number": entry.revision_number.to_string(),
        "store_svid": entry.store_svid,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "hint": entry.hint,
        "created_at": entry.created_at.to_string(),
    });
    if let Some(more) = &entry.additional_attributes {
        json["additional_attributes"] = attributes(more);
    }
    json
}

/// An entry as `spire-server entry create -data` takes it: IDs as texts, without what only a server says.
pub(crate) fn entry_data(entry: &types::Entry) -> Value {
    let mut json = json!({
        "entry_id": entry.id,
        "spiffe_id": spiffe_id_text(entry.spiffe_id.as_ref()),
        "parent_id": spiffe_id_text(entry.parent_id.as_ref()),
        "selectors": selectors(&entry.selectors),
        "x509_svid_ttl": entry.x509_svid_ttl,
        "jwt_svid_ttl": entry.jwt_svid_ttl,
        "federates_with": entry.federates_with.iter().map(|name| format!("spiffe://{name}")).collect::<Value>(),
        "admin": entry.admin,
        "downstream": entry.downstream,
        "entryExpiry": entry.expires_at,
        "dns_names": entry.dns_names,
        "store_svid": entry.store_svid,
        "hint": entry.hint,
    });
    if let Some(more) = &entry.additional_attributes {
        json["additional_attributes"] = attributes(more);
    }
    json
}

fn attributes(more: &types::entry::AdditionalAttributes) -> Value {
    json!({
        "disable_x509_svid_prefetch": more.disable_x509_svid_prefetch,
        "jwt_svid_include_jti": more.jwt_svid_include_jti,
    })
}

pub(crate) fn jwt_svid(svid: &types::Jwtsvid) -> Value {
    json!({
        "token": svid.token,
        "id": spiffe_id(svid.id.as_ref()),
        "expires_at": svid.expires_at.to_string(),
        "issued_at": svid.issued_at.to_string(),
        "hint": svid.hint,
    })
}

pub(crate) fn agent(agent: &types::Agent) -> Value {
    json!({
        "id": spiffe_id(agent.id.as_ref()),
        "attestation_type": agent.attestation_type,
        "x509svid_serial_number": agent.x509svid_serial_number,
        "x509svid_expires_at": agent.x509svid_expires_at.to_string(),
        "selectors": selectors(&agent.selectors),
        "banned": agent.banned,
        "can_reattest": agent.can_reattest,
        "agent_version": agent.agent_version,
    })
}

pub(crate) fn bundle(bundle: &types::Bundle) -> Value {
    let x509 = bundle.x509_authorities.iter();
    let jwt = bundle.jwt_authorities.iter();
    json!({
        "trust_domain": bundle.trust_domain,
        "x509_authorities": x509.map(|a| json!({ "asn1": STANDARD.encode(&a.asn1), "tainted": a.tainted })).collect::<Value>(),
        "jwt_authorities": jwt.map(|key| json!({
            "public_key": STANDARD.encode(&key.public_key),
            "key_id": key.key_id,
            "expires_at": key.expires_at.to_string(),
            "tainted": key.tainted,
        })).collect::<Value>(),
        "wit_authorities": [],
        "refresh_hint": bundle.refresh_hint.to_string(),
        "sequence_number": bundle.sequence_number.to_string(),
    })
}

pub(crate) fn status(status: &types::Status) -> Value {
    json!({ "code": status.code, "message": status.message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_in_either_shape() {
        let id = |path: &str| {
            Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
        };
        let wire = types::Entry {
            id: "one".to_owned(),
            spiffe_id: id("/web"),
            parent_id: id("/node"),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            x509_svid_ttl: 60,
            federates_with: vec!["other.test".to_owned()],
            admin: true,
            downstream: true,
            expires_at: 1_790_000_000,
            dns_names: vec!["web".to_owned()],
            revision_number: 7,
            store_svid: true,
            jwt_svid_ttl: 30,
            hint: "blue".to_owned(),
            created_at: 5,
            additional_attributes: Some(types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
        };
        let back = |json: Value| {
            let mut found = Vec::new();
            crate::entry_file::read(json!([json]).to_string().as_bytes(), |written| {
                assert!(written.unknown.is_empty(), "{:?}", written.unknown);
                found.push(written.entry);
                Ok(())
            })
            .unwrap();
            found.remove(0)
        };
        assert_eq!(back(entry(&wire)), wire);
        let written = types::Entry { revision_number: 0, created_at: 0, ..wire.clone() };
        assert_eq!(back(entry_data(&wire)), written);
    }

    #[test]
    fn an_entry_without_further_attributes_names_none() {
        let mut wire = types::Entry::default();
        assert!(entry(&wire).get("additional_attributes").is_none());
        wire.additional_attributes = Some(types::entry::AdditionalAttributes::default());
        assert_eq!(entry(&wire)["additional_attributes"]["jwt_svid_include_jti"], false);
    }
}
