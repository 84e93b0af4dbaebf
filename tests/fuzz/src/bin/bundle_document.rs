//! Is a bundle that was read from a JWK Set the same again once written and read?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::Bundle;
use passant_core::limits::BUNDLE_AUTHORITIES;
use passant_fuzz::EXAMPLE;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    let Ok(bundle) = Bundle::from_spiffe_json(EXAMPLE.clone(), text) else { return };
    assert_eq!(bundle.trust_domain, *EXAMPLE);
    assert!(bundle.x509_authorities.len() <= BUNDLE_AUTHORITIES);
    assert!(bundle.jwt_authorities.len() <= BUNDLE_AUTHORITIES);
    assert!(bundle.trust_anchors().len() <= bundle.x509_authorities.len());
    assert!(bundle.refresh_hint.is_none_or(|hint| hint.as_secs() > 0));

    let written = bundle.to_spiffe_json().expect("what was read can be written");
    let again = Bundle::from_spiffe_json(EXAMPLE.clone(), written.as_bytes());
    assert_eq!(again.ok().as_ref(), Some(&bundle));
    let stored = serde_json::to_vec(&bundle).expect("it has a stored form");
    assert_eq!(serde_json::from_slice::<Bundle>(&stored).ok().as_ref(), Some(&bundle));
    if let Ok(from_pem) = Bundle::from_pem(EXAMPLE.clone(), bundle.to_pem().as_bytes()) {
        assert_eq!(from_pem.x509_authorities, bundle.x509_authorities);
    } else {
        assert!(bundle.x509_authorities.is_empty());
    }
    let set: Value = serde_json::from_str(&bundle.to_jwks_json()).expect("it is JSON");
    assert_eq!(set["keys"].as_array().map(Vec::len), Some(bundle.jwt_authorities.len()));
});
