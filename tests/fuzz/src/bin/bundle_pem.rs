//! Is a bundle that was read from PEM the same again once written and read?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::limits::BUNDLE_AUTHORITIES;
use passant_core::x509_svid::split_der;
use passant_core::{Bundle, X509Authority};
use passant_fuzz::EXAMPLE;

fuzz_target!(|text: &[u8]| {
    let Ok(bundle) = Bundle::from_pem(EXAMPLE.clone(), text) else { return };
    assert!((1..=BUNDLE_AUTHORITIES).contains(&bundle.x509_authorities.len()));
    assert!(bundle.jwt_authorities.is_empty());
    assert_eq!(Bundle::from_pem(EXAMPLE.clone(), bundle.to_pem().as_bytes()).as_ref(), Ok(&bundle));
    let split = split_der(&bundle.x509_der(), BUNDLE_AUTHORITIES).expect("each is a certificate");
    for (der, authority) in split.iter().zip(&bundle.x509_authorities) {
        assert_eq!(X509Authority::from_der(der).as_ref(), Ok(authority));
    }
    assert_eq!(split.len(), bundle.x509_authorities.len());
    assert!(bundle.trust_anchors().len() <= bundle.x509_authorities.len());
});
