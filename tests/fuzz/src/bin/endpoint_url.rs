//! Does every URL that is taken for a bundle endpoint lead to the host that it names, and do redirects?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_core::EndpointUrl;
use passant_core::limits::ENDPOINT_URL_BYTES;

fuzz_target!(|text: &str| {
    let (first, location) = text.split_once('\n').unwrap_or((text, "/"));
    let Ok(url) = EndpointUrl::parse(first) else { return };
    assert_eq!(url.as_str(), first);
    check(&url);
    if let Ok(next) = url.redirect(location) {
        check(&next);
    }
});

/// An HTTP library takes it apart as we do.
fn check(url: &EndpointUrl) {
    assert!(url.as_str().len() <= ENDPOINT_URL_BYTES);
    assert_eq!(EndpointUrl::parse(url.as_str()).as_ref(), Ok(url));
    assert!(url.target().starts_with('/') && !url.authority().contains('@'));
    let Ok(uri) = url.as_str().parse::<http::Uri>() else { return };
    assert_eq!(uri.scheme_str(), Some("https"));
    assert_eq!(uri.host().map(|host| host.trim_matches(['[', ']'])), Some(url.host()));
    assert_eq!(uri.port_u16().unwrap_or(443), url.port());
}
