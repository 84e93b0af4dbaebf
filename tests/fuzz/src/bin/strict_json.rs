//! Does the strict reader read what serde_json reads, and refuse nothing else than members given twice?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::strict_json::parse;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    match (parse(text), serde_json::from_slice::<Value>(text)) {
        (Ok(strict), Ok(lenient)) => {
            assert_eq!(strict, lenient);
            let written = lenient.to_string();
            assert!(parse(written.as_bytes()).is_ok(), "{written}");
        }
        (Err(error), Ok(_)) => assert!(error.to_string().contains("is given twice"), "{error}"),
        (Err(_), Err(_)) => {}
        (Ok(strict), Err(error)) => panic!("{strict} is taken, which serde_json refuses: {error}"),
    }
});
