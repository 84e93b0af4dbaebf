//! Does a bundle keep its value on its way from the wire and back, and as a document?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::limits::BUNDLE_AUTHORITIES;
use passant_core::{Bundle, JwtAuthority, X509Authority};
use passant_proto::convert::{bundle, mask, workload};
use passant_proto::types;
use prost::Message;

fuzz_target!(|message: &[u8]| {
    let Ok(wire) = types::Bundle::decode(message) else { return };
    let Ok(read) = bundle::from_wire(&wire) else { return };
    assert!(read.x509_authorities.len() <= BUNDLE_AUTHORITIES);
    assert!(read.jwt_authorities.len() <= BUNDLE_AUTHORITIES);
    let mut written = bundle::to_wire(&read);
    assert_eq!(bundle::from_wire(&written).ok().as_ref(), Some(&read));
    check_workload_answers(&read);
    if let Ok(document) = read.to_spiffe_json() {
        let again = Bundle::from_spiffe_json(read.trust_domain.clone(), document.as_bytes());
        assert_eq!(again.ok(), Some(as_documented(&read)));
    }
    mask::bundle(&mut written, Some(&types::BundleMask::default()));
    assert_eq!(written, types::Bundle { trust_domain: read.trust_domain.to_string(), ..Default::default() });
});

/// The Workload API names each trust domain once, and never one without authorities where that would mean something else.
fn check_workload_answers(read: &Bundle) {
    let name = read.trust_domain.id().to_string();
    let x509 = workload::x509_bundles([read]);
    assert_eq!(
        x509.bundles.get(&name).map(Vec::is_empty),
        (!read.x509_authorities.is_empty()).then_some(false)
    );
    assert!(workload::jwt_bundles([read]).bundles.contains_key(&name));
}

/// What of a bundle a document can say.
fn as_documented(bundle: &Bundle) -> Bundle {
    let x509 = |authority: &X509Authority| X509Authority { tainted: false, ..authority.clone() };
    let jwt =
        |authority: &JwtAuthority| JwtAuthority { tainted: false, expires_at: None, ..authority.clone() };
    Bundle {
        x509_authorities: bundle.x509_authorities.iter().map(x509).collect(),
        jwt_authorities: bundle.jwt_authorities.iter().map(jwt).collect(),
        ..bundle.clone()
    }
}
