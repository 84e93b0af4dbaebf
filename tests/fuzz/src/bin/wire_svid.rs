//! Do SVIDs and claims from the wire keep their value on the way back?
//!
//! The first byte chooses the message: 0 an X509-SVID, 1 a JWT-SVID, 2 the claims of a validated one, 3 claims as JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::limits::{CHAIN_CERTIFICATES, JWT_SVID_BYTES};
use passant_fuzz::EXAMPLE;
use passant_proto::convert::{svid, workload};
use passant_proto::{types, workload as wire};
use prost::Message;
use serde_json::{Map, Value};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, message)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => check_x509(message),
        1 => check_jwt(message),
        2 => {
            if let Ok(answer) = wire::ValidateJwtsvidResponse::decode(message) {
                check_claims(&workload::claims(&answer));
            }
        }
        _ => {
            if let Ok(claims) = serde_json::from_slice(message) {
                check_claims(&claims);
            }
        }
    }
});

fn check_x509(message: &[u8]) {
    let Ok(wire) = types::X509svid::decode(message) else { return };
    let Ok(read) = svid::x509_from_wire(&wire) else { return };
    assert!((1..=CHAIN_CERTIFICATES).contains(&read.chain().len()));
    let written = svid::x509_to_wire(&read, &wire.hint);
    assert_eq!(written.cert_chain, wire.cert_chain);
    assert_eq!(svid::x509_from_wire(&written).ok(), Some(read));
}

fn check_jwt(message: &[u8]) {
    let Ok(wire) = types::Jwtsvid::decode(message) else { return };
    let Ok(read) = svid::jwt_from_wire(&wire) else { return };
    assert!(read.token().len() <= JWT_SVID_BYTES);
    let written = svid::jwt_to_wire(&read, &wire.hint);
    let again = svid::jwt_from_wire(&written).expect("it was written here");
    assert_eq!((again.token(), again.id(), again.claims()), (read.token(), read.id(), read.claims()));
    check_claims(read.claims());
}

/// Once through a workload's answer, claims no longer change.
fn check_claims(claims: &Map<String, Value>) {
    let id = EXAMPLE.join("/w").expect("a path");
    let through = |claims: &Map<String, Value>| {
        let encoded = workload::validated(&id, claims).encode_to_vec();
        wire::ValidateJwtsvidResponse::decode(encoded.as_slice()).map(|answer| workload::claims(&answer))
    };
    // prost reads messages about as deep as it is told to; JSON goes deeper.
    let Ok(once) = through(claims) else { return };
    assert_eq!(once.len(), claims.len());
    assert!(!once.get("aud").is_some_and(Value::is_string), "the audience is a list");
    assert_eq!(through(&once).ok(), Some(once));
}
