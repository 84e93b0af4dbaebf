//! Does a federation relationship keep its value on its way from the wire and back?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::FederationRelationship;
use passant_proto::convert::{federation, mask};
use passant_proto::types;
use prost::Message;

fuzz_target!(|message: &[u8]| {
    let Ok(wire) = types::FederationRelationship::decode(message) else { return };
    let Ok((read, bundle)) = federation::from_wire(&wire) else { return };
    assert!(bundle.as_ref().is_none_or(|bundle| bundle.trust_domain == read.trust_domain));
    let mut written = federation::to_wire(&read, bundle.as_ref());
    assert_eq!(federation::from_wire(&written), Ok((read.clone(), bundle.clone())));
    assert_eq!(federation::apply_update(&read, &written, None), Ok((read.clone(), bundle)));
    let stored = serde_json::to_string(&read).expect("a relationship has a stored form");
    assert_eq!(serde_json::from_str::<FederationRelationship>(&stored).ok().as_ref(), Some(&read));
    mask::relationship(&mut written, Some(&types::FederationRelationshipMask::default()));
    let name =
        types::FederationRelationship { trust_domain: read.trust_domain.to_string(), ..Default::default() };
    assert_eq!(written, name);
});
