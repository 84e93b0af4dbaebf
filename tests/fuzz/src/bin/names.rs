//! Do the short texts (entry IDs, serials, tokens, dates, addresses) that are taken keep their form?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_agent::config::ServerAddress;
use passant_attest::node::join_token::{Token, TokenHash};
use passant_attest::node::path_template::PathTemplate;
use passant_core::entry::is_dns_name;
use passant_core::limits::{ENTRY_ID_BYTES, SERIAL_BYTES};
use passant_core::{EntryId, Serial, UnixTime};
use passant_fuzz::EXAMPLE;
use passant_server::state::AuthorityId;

fuzz_target!(|text: &str| {
    if let Ok(id) = EntryId::parse(text) {
        assert!(id.as_str() == text && (1..=ENTRY_ID_BYTES).contains(&text.len()));
    }
    if let Ok(id) = AuthorityId::parse(text) {
        assert!(id.as_str() == text && EntryId::parse(text).is_ok());
    }
    if let Ok(serial) = text.parse::<Serial>() {
        check_serial(&serial);
        assert!(text.to_ascii_lowercase().trim_start_matches("00").ends_with(&serial.to_string()));
    }
    for serial in [Serial::from_der_content(text.as_bytes()), Serial::from_magnitude(text.as_bytes())] {
        serial.iter().for_each(check_serial);
    }
    if let Ok(token) = Token::parse(text) {
        let id = token.agent_id(&EXAMPLE).expect("a token is one segment of a path");
        assert!(id.is_agent() && id.path().split('/').count() == 5);
        assert_eq!(TokenHash::try_from(token.hash().to_string()), Ok(token.hash()));
    }
    if let Ok(hash) = TokenHash::try_from(text.to_owned()) {
        assert_eq!(hash.to_string(), text);
    }
    if let Some(at) = UnixTime::parse_rfc3339(text) {
        // What the year 0 becomes in UTC may lie before it, and is then written as seconds.
        let written = at.to_string();
        assert!(written.starts_with('@') || UnixTime::parse_rfc3339(&written) == Some(at), "{written}");
    }
    if is_dns_name(text) {
        assert!(text.is_ascii() && text.len() <= 253 && !text.contains("..") && !text.contains(' '));
    }
    if let Ok(address) = ServerAddress::parse(text) {
        assert_eq!(ServerAddress::parse(&address.to_string()).as_ref(), Ok(&address), "{address}");
    }
    if let Ok(template) = PathTemplate::parse(text, &["Name", "Other.Name"]) {
        if let Ok(id) = template.render(&EXAMPLE, |name| Some(name.replace('.', "-"))) {
            assert!(id.is_member_of(&EXAMPLE) && id.is_reserved(), "{id}");
        }
        // A value never leads out of its segment.
        assert!(!text.contains("{{") || template.render(&EXAMPLE, |_| Some("a/b".to_owned())).is_err());
    }
});

fn check_serial(serial: &Serial) {
    assert!((1..=SERIAL_BYTES).contains(&serial.as_bytes().len()) && serial.as_bytes()[0] != 0);
    assert_eq!(serial.to_string().parse().as_ref(), Ok(serial));
    assert_eq!(Serial::from_magnitude(serial.as_bytes()).as_ref(), Ok(serial));
    let decimal = serial.to_decimal();
    assert!(!decimal.starts_with('0') && decimal.bytes().all(|digit| digit.is_ascii_digit()));
}
