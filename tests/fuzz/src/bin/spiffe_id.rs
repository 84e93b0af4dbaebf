//! Is every SPIFFE ID and trust domain that is taken a legal one, and written as it came?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::limits::{SPIFFE_ID_BYTES, TRUST_DOMAIN_BYTES};
use passant_core::{SpiffeId, TrustDomain};
use passant_fuzz::EXAMPLE;

fuzz_target!(|text: &str| {
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!(is_legal(text), "{text}");
        assert_eq!(format!("spiffe://{}{}", id.trust_domain_name(), id.path()), text);
        assert_eq!(id.trust_domain().join(id.path()), Ok(id.clone()));
        assert_eq!(SpiffeId::parse(&String::from(id.clone())), Ok(id.clone()));
        assert_eq!(id.is_trust_domain_id(), TrustDomain::parse(text).is_ok());
        assert!(id.is_member_of(&id.trust_domain()));
        assert!(!id.is_agent() || id.is_reserved());
    } else {
        assert!(!is_legal(text), "{text}");
    }
    if let Ok(name) = TrustDomain::parse(text) {
        assert!((1..=TRUST_DOMAIN_BYTES).contains(&name.as_str().len()));
        assert_eq!(SpiffeId::parse(name.id().as_str()), Ok(name.id()));
        assert_eq!(SpiffeId::parse(name.server_id().as_str()), Ok(name.server_id()));
    }
    if let Ok(id) = EXAMPLE.join(text) {
        assert!(id.is_member_of(&EXAMPLE) && id.path() == text);
    }
    if let Ok(id) = EXAMPLE.agent_id("x509pop", text) {
        assert!(id.is_agent() && id.path().ends_with(text));
    }
});

/// The grammar of SPIFFE-ID 2 once more, written another way.
fn is_legal(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let mut parts = text.split('/');
    let is_scheme = parts.next() == Some("spiffe:") && parts.next() == Some("");
    let name = parts.next().unwrap_or_default();
    let is_name = (1..=TRUST_DOMAIN_BYTES).contains(&name.len())
        && name.chars().all(|c| word(c) && !c.is_ascii_uppercase());
    let is_path = parts.all(|part| !["", ".", ".."].contains(&part) && part.chars().all(word));
    text.len() <= SPIFFE_ID_BYTES && is_scheme && is_name && is_path
}
