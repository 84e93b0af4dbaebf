//! Does an agent's data file that is taken belong to the agent, and hold the same once written and read?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_agent::{Stored, Unusable};
use passant_core::{Bundle, SpiffeId, X509Svid};
use passant_fuzz::{EXAMPLE, HOST};
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    let stored = match Stored::parse(text, &EXAMPLE, &HOST) {
        Ok(stored) => stored,
        Err(Unusable::Newer(format)) => return assert!(format > 1),
        Err(Unusable::OtherTrustDomain(name)) => return assert_ne!(name, EXAMPLE.as_str()),
        Err(Unusable::Damaged(_)) => return,
    };
    let written = stored.to_json(&EXAMPLE);
    let again = Stored::parse(&written, &EXAMPLE, &HOST).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again.to_json(&EXAMPLE), written);
    let said: Value = serde_json::from_slice(&written).expect("it was written here");
    if let Some(bundle) = said.get("bundle") {
        let bundle: Bundle = serde_json::from_value(bundle.clone()).expect("it was written here");
        assert_eq!(bundle.trust_domain, *EXAMPLE);
    }
    if let Some(identity) = said.get("identity") {
        let svid = identity["svid"].as_array().expect("a list of certificates");
        let id = svid_id(svid);
        assert!(id.is_agent() && id.is_member_of(&EXAMPLE), "{id}");
    }
});

fn svid_id(chain: &[Value]) -> SpiffeId {
    use base64::Engine;
    let decode = |der: &Value| base64::prelude::BASE64_STANDARD.decode(der.as_str().unwrap_or_default());
    let chain = chain.iter().map(|der| decode(der).expect("it was written here").into()).collect();
    X509Svid::parse(chain).expect("it was read before").id().clone()
}
