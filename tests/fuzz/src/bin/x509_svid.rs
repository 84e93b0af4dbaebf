//! Does a chain that is taken for an X509-SVID have the form of one, and did our authority sign what verifies?
//!
//! The first byte chooses what the rest is: 0 certificates back to back, 1 the signed part of a leaf that is signed here.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use passant_core::limits::{CHAIN_CERTIFICATES, SERIAL_BYTES};
use passant_core::x509_svid::{split_der, verify};
use passant_core::{Bundle, TrustDomain, X509Svid};
use passant_fuzz::{AUTHORITY, AUTHORITY_KEY, BUNDLE, EXAMPLE, NOW, signed};
use x509_parser::prelude::{FromDer, X509Certificate};

fuzz_target!(|bytes: &[u8]| {
    let Some((way, rest)) = bytes.split_first() else { return };
    let chain_der = if way % 2 == 0 { rest.to_vec() } else { signed(rest, &**AUTHORITY_KEY) };
    let Ok(chain) = split_der(&chain_der, CHAIN_CERTIFICATES) else { return };
    assert!(chain.iter().flat_map(|der| der.iter()).eq(&chain_der));
    assert!(chain.len() <= CHAIN_CERTIFICATES);
    let Ok(svid) = X509Svid::parse(chain.clone()) else {
        assert!(verify(chain, &BUNDLE, NOW).is_err());
        return;
    };
    assert_eq!(svid.chain_der(), chain_der);
    assert_eq!(X509Svid::parse(svid.chain().to_vec()).ok().as_ref(), Some(&svid));
    assert!(!svid.id().is_trust_domain_id());
    assert!((1..=SERIAL_BYTES).contains(&svid.serial().as_bytes().len()));
    if svid.verify(&BUNDLE, NOW).is_ok() {
        check_verified(&svid);
    }
});

fn check_verified(svid: &X509Svid) {
    assert!(svid.id().is_member_of(&EXAMPLE));
    assert!(svid.not_before() <= NOW && NOW <= svid.not_after());
    let second = Duration::from_secs(1);
    assert!(svid.verify(&BUNDLE, svid.not_after().plus(second)).is_err());
    assert!(svid.verify(&BUNDLE, svid.not_before().minus(second)).is_err());
    assert!(svid.verify(&Bundle::empty(EXAMPLE.clone()), NOW).is_err());
    let other = TrustDomain::parse("other.org").expect("a trust domain");
    assert!(svid.verify(&Bundle { trust_domain: other, ..Bundle::clone(&BUNDLE) }, NOW).is_err());
    if let [only] = svid.chain() {
        let (_, leaf) = X509Certificate::from_der(only).expect("it was parsed before");
        let (_, authority) = X509Certificate::from_der(&AUTHORITY).expect("it is made as one");
        assert!(leaf.verify_signature(Some(authority.public_key())).is_ok(), "not signed by the authority");
        assert!(!leaf.is_ca());
    }
}
