//! How are the seeds made that nobody can type? Run `cargo run --release --example seeds` here; it writes corpus/.
//!
//! A seed that is there stays as it is, since signatures differ from run to run: remove one that is no longer taken.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use passant_agent::Stored;
use passant_attest::node::join_token::TokenHash;
use passant_core::csr::{key_hash, make, make_with_dns_names};
use passant_core::jwk::PublicKey;
use passant_core::keys::KeyType;
use passant_core::{Bundle, Csr, EntryDraft, EntryId, JwtAuthority, JwtSvid, Secret, UnixTime, X509Svid};
use passant_fuzz::{
    AUTHORITY, AUTHORITY_KEY, BUNDLE, EXAMPLE, HOST, LEAF_KEY, NOW, SIGNED_TOKENS, TOKEN_KEY, chained,
    elements, intermediate, leaf, to_be_signed, token, x509pop_answer,
};
use passant_proto::convert::{bundle, svid, workload};
use passant_proto::{agent, entry, rpc, types, workload as wire};
use passant_server::backup::{Reader, pieces};
use passant_server::keystore::KeyFile;
use passant_server::state::{
    Adopted, AttestedNode, Authority, AuthorityId, AuthorityKind, Change, Commit, Cursor, JoinToken, Lineage,
    PendingSerial, Phase, RequestId, Revision, Spent, State,
};
use prost::Message;
use rcgen::{CertificateParams, DnType, SanType};
use serde_json::json;

const RSA_REQUEST: &[u8] = include_bytes!("../../../crates/passant-core/src/testdata/rsa2048.csr.der");
const WORKLOAD: &str = "spiffe://example.org/ns/a/sa/b";

fn main() -> Result<(), Box<dyn Error>> {
    keys_and_requests()?;
    certificates()?;
    tokens()?;
    bundles()?;
    http2()?;
    entries()?;
    requests()?;
    svids()?;
    node_attestation()?;
    files()
}

fn seed(target: &str, name: &str, bytes: impl AsRef<[u8]>) -> Result<(), Box<dyn Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    let path = dir.join(name);
    if path.exists() { Ok(()) } else { Ok(fs::write(path, bytes)?) }
}

/// A seed whose first byte chooses what the rest is.
fn way(target: &str, name: &str, way: u8, bytes: impl AsRef<[u8]>) -> Result<(), Box<dyn Error>> {
    seed(target, name, [&[way], bytes.as_ref()].concat())
}

fn keys_and_requests() -> Result<(), Box<dyn Error>> {
    let p384 = HOST.keys.generate(KeyType::EcP384)?;
    let rsa = Csr::parse(RSA_REQUEST)?;
    let spkis = [("p256", LEAF_KEY.public_key()), ("p384", p384.public_key()), ("rsa2048", rsa.public_key())];
    for (name, spki) in spkis {
        seed("public_key", &format!("{name}.spki"), spki)?;
        seed("public_key", &format!("{name}.jwk"), json!(PublicKey::from_spki(spki)?.to_jwk()).to_string())?;
    }
    let id = EXAMPLE.join("/w")?;
    let names = ["a.example".to_owned(), "b.example".to_owned()];
    let requests = [
        ("bare", make(&**LEAF_KEY, None)?),
        ("id", make(&**LEAF_KEY, Some(&id))?),
        ("names", make_with_dns_names(&**LEAF_KEY, Some(&id), &names)?),
    ];
    for (name, request) in requests {
        let info = to_be_signed(&request);
        way("csr", name, 0, &request)?;
        way("csr", &format!("{name}-info"), 2, info)?;
        if let Some(attributes) = elements(info).get(3) {
            way("csr", &format!("{name}-attributes"), 1, &attributes[2..])?;
        }
    }
    way("csr", "rsa2048", 0, RSA_REQUEST)
}

fn certificates() -> Result<(), Box<dyn Error>> {
    let plain = leaf(WORKLOAD, |_| {});
    let named = leaf(WORKLOAD, |params| {
        params
            .subject_alt_names
            .extend(["a.example", "b.example"].map(|name| SanType::DnsName(name.try_into().expect("ASCII"))));
        params.distinguished_name.push(DnType::CommonName, "a.example");
    });
    let (above, below) = intermediate(WORKLOAD);
    for der in [&plain, &named] {
        passant_core::x509_svid::verify(vec![der.clone().into()], &BUNDLE, NOW)?;
    }
    passant_core::x509_svid::verify(vec![below.clone().into(), above.clone().into()], &BUNDLE, NOW)?;
    way("x509_svid", "plain", 0, &plain)?;
    way("x509_svid", "chain", 0, [below, above].concat())?;
    way("x509_svid", "authority", 0, &*AUTHORITY)?;
    way("x509_svid", "plain-signed-part", 1, to_be_signed(&plain))?;
    way("x509_svid", "named-signed-part", 1, to_be_signed(&named))
}

fn tokens() -> Result<(), Box<dyn Error>> {
    for (at, (header, claims)) in SIGNED_TOKENS.iter().enumerate() {
        let token = token(header.as_bytes(), claims.as_bytes());
        JwtSvid::verify(&token, "aud", &|_| Some(BUNDLE.clone()), NOW)?;
        seed("jwt_svid", &format!("token-{at}"), token)?;
        seed("jwt_svid", &format!("parts-{at}"), format!("{header}\n{claims}"))?;
    }
    Ok(())
}

/// The bundle with authorities of all kinds.
fn full_bundle() -> Result<Bundle, Box<dyn Error>> {
    let mut full = Bundle::clone(&BUNDLE);
    let p384 = HOST.keys.generate(KeyType::EcP384)?;
    full.jwt_authorities.push(JwtAuthority::new("k2", p384.public_key(), Some(NOW))?);
    full.jwt_authorities.push(JwtAuthority::new("k3", Csr::parse(RSA_REQUEST)?.public_key(), None)?);
    full.jwt_authorities[1].tainted = true;
    full.refresh_hint = Some(std::time::Duration::from_secs(300));
    Ok(full)
}

fn bundles() -> Result<(), Box<dyn Error>> {
    let full = full_bundle()?;
    seed("bundle_document", "full", full.to_spiffe_json()?)?;
    seed("bundle_document", "jwks", full.to_jwks_json())?;
    seed("bundle_pem", "one", full.to_pem())?;
    seed(
        "bundle_pem",
        "two",
        format!("subject=x\n{}\n# again\n{}", full.to_pem(), full.to_pem().replace('\n', "\r\n")),
    )?;
    seed("wire_bundle", "full", bundle::to_wire(&full).encode_to_vec())?;
    seed("wire_bundle", "empty", bundle::to_wire(&Bundle::empty(EXAMPLE.clone())).encode_to_vec())
}

/// Frames with a good and with bad `:authority`s; in the first two bytes of each seed, where it is cut.
fn http2() -> Result<(), Box<dyn Error>> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const START: &[u8] = b"\x83\x86\x44\x04/a/b";
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).expect("a short frame");
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let headers = |flags: u8, authority: &[u8]| frame(1, flags, 1, &[START, authority].concat());
    let settings = frame(4, 0, 0, &[]);
    let plain = b"\x41\x15unix%3Arun%2Fapi.sock";
    // The index of `:authority` as it was put into the dynamic table by the request before.
    let again = frame(1, 5, 3, &[START, b"\xbe"].concat());
    let padded = frame(1, 0x2d, 1, &[b"\x03\x80\0\0\0\x10", START, b"\x01\x03a%b", b"\0\0\0"].concat());
    let continued = [headers(1, b"\x41\x15unix%3A"), frame(9, 4, 1, b"run%2Fapi.sock")].concat();
    let kinds: [(&str, Vec<u8>); 7] = [
        ("good", headers(5, b"\x41\x09localhost")),
        ("percent", headers(5, plain)),
        ("huffman", headers(5, b"\x41\x83\x55\x55\x55")),
        ("named", headers(5, b"\x40\x0a:authority\x03a/b")),
        ("twice", [headers(5, plain), again].concat()),
        ("padded", padded),
        ("continued", continued),
    ];
    for (name, frames) in kinds {
        let frames =
            [settings.clone(), frames, frame(6, 0, 0, b"12345678"), frame(0, 1, 1, b"data")].concat();
        seed("authority_filter", name, [&[0, 40], PREFACE, &frames].concat())?;
        seed("authority_h2", name, &frames)?;
    }
    Ok(())
}

fn selectors() -> Vec<types::Selector> {
    let selector =
        |kind: &str, value: &str| types::Selector { r#type: kind.to_owned(), value: value.to_owned() };
    vec![selector("unix", "uid:1000"), selector("k8s", "ns:a")]
}

fn spiffe_id(path: &str) -> types::Spiffeid {
    types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() }
}

fn entries() -> Result<(), Box<dyn Error>> {
    let least = types::Entry {
        spiffe_id: Some(spiffe_id("/w")),
        parent_id: Some(spiffe_id("/spire/agent/join_token/t")),
        selectors: selectors(),
        ..types::Entry::default()
    };
    let full = types::Entry {
        id: "e-1".to_owned(),
        x509_svid_ttl: 3600,
        federates_with: vec!["other.org".to_owned(), "spiffe://third.org".to_owned()],
        admin: true,
        downstream: true,
        expires_at: NOW.secs(),
        dns_names: vec!["a.example".to_owned(), "*.b.example".to_owned()],
        revision_number: 9,
        jwt_svid_ttl: 300,
        hint: "hint".to_owned(),
        created_at: NOW.secs(),
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
        ..least.clone()
    };
    let stored = types::Entry { store_svid: true, selectors: selectors()[..1].to_vec(), ..least.clone() };
    for (name, entry) in [("least", least), ("full", full), ("stored", stored)] {
        seed("wire_entry", name, [&[0xff, 0xff], entry.encode_to_vec().as_slice()].concat())?;
        seed(
            "wire_entry",
            &format!("{name}-masked"),
            [&[0x15, 0x55], entry.encode_to_vec().as_slice()].concat(),
        )?;
    }
    Ok(())
}

fn requests() -> Result<(), Box<dyn Error>> {
    for (name, path) in [("member", "/w"), ("agent", "/spire/agent/x509pop/f"), ("domain", "")] {
        way("wire_requests", name, 0, spiffe_id(path).encode_to_vec())?;
    }
    let by_selectors = types::SelectorMatch { selectors: selectors(), r#match: 1 };
    way("wire_requests", "selectors", 1, by_selectors.encode_to_vec())?;
    let entries = entry::list_entries_request::Filter {
        by_spiffe_id: Some(spiffe_id("/w")),
        by_parent_id: Some(spiffe_id("/p")),
        by_selectors: Some(by_selectors.clone()),
        by_federates_with: Some(types::FederatesWithMatch {
            trust_domains: vec!["other.org".to_owned()],
            r#match: 3,
        }),
        by_hint: Some("hint".to_owned()),
        by_downstream: Some(true),
    };
    way("wire_requests", "entries", 2, entries.encode_to_vec())?;
    let agents = agent::list_agents_request::Filter {
        by_attestation_type: "x509pop".to_owned(),
        by_selector_match: Some(by_selectors),
        by_banned: Some(false),
        by_can_reattest: Some(true),
        by_expires_before: "2026-11-22 08:30:00 +0100 CET".to_owned(),
    };
    way("wire_requests", "agents", 3, agents.encode_to_vec())?;
    let listed = types::Agent {
        id: Some(spiffe_id("/spire/agent/x509pop/f")),
        attestation_type: "x509pop".to_owned(),
        x509svid_serial_number: "1234".to_owned(),
        selectors: selectors(),
        ..types::Agent::default()
    };
    way("wire_requests", "agent-listed", 4, listed.encode_to_vec())?;

    let detail = types::PermissionDeniedDetails {
        reason: types::permission_denied_details::Reason::AgentBanned.into(),
    };
    let detail = prost_types_any(
        "type.googleapis.com/spire.api.types.PermissionDeniedDetails",
        detail.encode_to_vec(),
    );
    let status = rpc::Status { code: 7, message: "banned".to_owned(), details: vec![detail] };
    seed("wire_status", "banned", [b"\x07\x06banned", status.encode_to_vec().as_slice()].concat())?;
    seed("wire_status", "long", b"\xe5\x10not found at all")
}

fn prost_types_any(type_url: &str, value: Vec<u8>) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value }
}

fn svids() -> Result<(), Box<dyn Error>> {
    let x509 = X509Svid::parse(vec![leaf(WORKLOAD, |_| {}).into()])?;
    way("wire_svid", "x509", 0, svid::x509_to_wire(&x509, "hint").encode_to_vec())?;
    let (header, claims) = SIGNED_TOKENS[1];
    let jwt = JwtSvid::parse_unverified(&token(header.as_bytes(), claims.as_bytes()))?;
    way("wire_svid", "jwt", 1, svid::jwt_to_wire(&jwt, "").encode_to_vec())?;
    let answer: wire::ValidateJwtsvidResponse = workload::validated(jwt.id(), jwt.claims());
    way("wire_svid", "claims", 2, answer.encode_to_vec())?;
    way("wire_svid", "json", 3, claims)?;
    way(
        "wire_svid",
        "numbers",
        3,
        r#"{"a":-0.0,"b":9007199254740993,"c":1e300,"d":[[{"e":0.5}]],"f":-1,"g":null}"#,
    )
}

fn node_attestation() -> Result<(), Box<dyn Error>> {
    let node = |change: fn(&mut CertificateParams)| {
        leaf("x509pop://example.org/region/eu", move |params| {
            params.distinguished_name.push(DnType::CommonName, "node-1");
            change(params);
        })
    };
    let plain = node(|_| {});
    let evidence = json!({ "certificates": [BASE64_STANDARD.encode(&plain)] }).to_string();
    let challenge = json!({ "ecdsa_signature": { "nonce": BASE64_STANDARD.encode([7; 32]) } }).to_string();
    let answer = x509pop_answer(challenge.as_bytes());
    way("x509pop_evidence", "answered", 0, [evidence.as_bytes(), &[0], &answer].concat())?;
    way("x509pop_evidence", "signed-part", 1, to_be_signed(&plain))?;
    let slash = node(|params| params.distinguished_name.push(DnType::CommonName, "a/b"));
    way("x509pop_evidence", "slash", 1, to_be_signed(&slash))?;
    seed("x509pop_challenge", "ecdsa", &challenge)?;
    seed("x509pop_challenge", "rsa", challenge.replace("ecdsa", "rsa"))
}

/// What servers and agents keep on disk.
fn files() -> Result<(), Box<dyn Error>> {
    let ids = ["a1", "b2"].map(AuthorityId::parse);
    let keys = ids.into_iter().zip([&**AUTHORITY_KEY, &**TOKEN_KEY]);
    let keys = keys.map(|(id, key)| Ok((id?, Secret::new(key.pkcs8().expose().clone()))));
    seed("keys_json", "two", KeyFile::to_json(&keys.collect::<Result<_, Box<dyn Error>>>()?))?;

    let svid = leaf("spiffe://example.org/spire/agent/x509pop/f", |_| {});
    let key = BASE64_STANDARD.encode(LEAF_KEY.pkcs8().expose());
    let data = json!({
        "format": 1,
        "trust_domain": "example.org",
        "identity": { "svid": [BASE64_STANDARD.encode(svid)], "key": &key, "reattestable": true },
        "bundle": full_bundle()?,
        "pending": { "token": TokenHash::of("t"), "key": &key },
        "spent_token": TokenHash::of("s"),
    });
    Stored::parse(data.to_string().as_bytes(), &EXAMPLE, &HOST)?;
    seed("agent_data", "full", data.to_string())?;
    seed("agent_data", "least", r#"{"format":1,"trust_domain":"example.org"}"#)?;

    let objects = objects()?;
    let mut lines = Vec::new();
    for change in &objects {
        serde_json::to_writer(&mut lines, change)?;
        lines.push(b'\n');
    }
    way("backup", "objects", 1, &lines)?;
    let cursor = Cursor { lineage: Lineage::new([3; 16]), revision: Revision::new(9) };
    let state = State::of_objects(EXAMPLE.clone(), cursor, objects.clone());
    let written: Vec<u8> = pieces(&state, NOW).flatten().collect();
    let mut reader = Reader::new(written.as_slice(), "the seed".to_owned())?;
    while reader.next_object()?.is_some() {}
    way("backup", "whole", 0, &written)?;

    let commit = |number, changes| {
        serde_json::to_string(&Commit { request_id: RequestId::new([number; 16]), changes })
    };
    let deletes = [&objects[3], &objects[4]].map(|change| match change {
        Change::PutNode(node) => Change::DeleteNode(node.id.clone()),
        _ => Change::DeleteEntry(EntryId::parse("e").expect("an entry ID")),
    });
    let both = format!("{}\n{}\n", commit(1, objects)?, commit(2, deletes.to_vec())?);
    seed("journal", "two", both)?;

    let decision = json!({
        "kind": "x509_svid", "serial": "0a", "spiffe_id": WORKLOAD, "entry": ["e", 3], "key_hash": "07".repeat(32),
        "not_after": NOW, "caller": "agent", "reason": "entry", "authority": "a1", "at": NOW,
    });
    let bodies = [
        json!({ "kind": "start", "format": 1, "open": [{ "seq": 0, "serial": "09" }], "torn_bytes": 3 }),
        json!({ "kind": "intent", "decision": decision }),
        json!({ "kind": "intent", "decision": decision }),
        json!({ "kind": "outcome", "of": 1, "outcome": "signed" }),
        json!({ "kind": "unknown", "of": 2, "serial": "0a" }),
        json!({ "kind": "intent", "decision": decision }),
        json!({ "kind": "outcome", "of": 5, "outcome": { "not_signed": "why" } }),
    ];
    let bodies = bodies.map(|body| body.to_string()).join("\n");
    let (segment, lines) = chained(bodies.as_bytes());
    assert_eq!(lines, 7, "a body is no longer taken");
    seed("decision_record", "bodies", [b"\x01\x05", bodies.as_bytes()].concat())?;
    seed("decision_record", "segment", [b"\x00\x05", segment.as_slice()].concat())
}

/// One object of each kind, which fit together.
fn objects() -> Result<Vec<Change>, Box<dyn Error>> {
    let now = NOW;
    let agent = EXAMPLE.agent_id("x509pop", "f")?;
    let selectors: passant_core::Selectors =
        [passant_core::Selector::parse("unix:uid:0")?].into_iter().collect();
    let bundle = Bundle { jwt_authorities: Vec::new(), ..Bundle::clone(&BUNDLE) };
    let authority = Authority {
        id: AuthorityId::of_key(&key_hash(AUTHORITY_KEY.public_key())[..20])?,
        kind: AuthorityKind::X509,
        phase: Phase::Active,
        tainted: false,
        certificate: Some(AUTHORITY.clone()),
        public_key: AUTHORITY_KEY.public_key().to_vec(),
        not_before: now,
        not_after: UnixTime::from_secs(now.secs() + 3600),
        prepared_at: now,
        activated_at: Some(now),
        published: 1,
    };
    let spent = Spent { key_hash: [7; 32], agent_id: agent.clone(), at: now };
    let token = JoinToken {
        hash: TokenHash::of("t"),
        expires_at: now,
        alias: None,
        by_role: false,
        spent: Some(spent),
    };
    let node = AttestedNode {
        id: agent.clone(),
        attestation_type: "x509pop".to_owned(),
        serial: Some("0a1b".parse()?),
        not_after: now,
        pending: Some(PendingSerial { serial: "0c".parse()?, not_after: now }),
        selectors: selectors.clone(),
        can_reattest: true,
        agent_version: Some("1".to_owned()),
        attested_at: now,
        adopted: Some(Adopted::Awaited),
    };
    let draft = EntryDraft::new(EXAMPLE.join("/w")?, agent, selectors);
    let entry = draft.register(&EXAMPLE, EntryId::parse("e")?, 3, now)?;
    Ok(vec![
        Change::PutBundle(Arc::new(bundle)),
        Change::PutAuthority(authority),
        Change::PutToken(token),
        Change::PutNode(Arc::new(node)),
        Change::PutEntry(Arc::new(entry)),
    ])
}
