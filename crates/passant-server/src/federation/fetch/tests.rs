//! Does a fetch believe the right endpoints only, and bear with all others?

use std::error::Error;

use passant_core::{EndpointProfile, SpiffeId};

use super::*;
use crate::federation::testing::{
    Ca, FakeEndpoint, Leaf, dns, document, loopback, name, redirect, response, uri,
};

const ENDPOINT: &str = "spiffe://other.test/endpoint";

/// The authority of the Web PKI that is believed, and who asks.
struct Bench {
    web: Ca,
    spiffe: Ca,
    https: Https,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let (web, spiffe) = (Ca::new("https://ca.invalid"), Ca::new("spiffe://other.test"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        std::fs::write(&path, web.pem()).unwrap();
        let https = Https { host: Host::system(), roots: WebRoots::File(path) };
        Self { web, spiffe, https, _dir: dir }
    }

    fn web_leaf(&self) -> Leaf {
        self.web.leaf(vec![loopback()])
    }

    fn spiffe_leaf(&self) -> Leaf {
        self.spiffe.leaf(vec![uri(ENDPOINT)])
    }

    fn served(&self) -> Bundle {
        self.spiffe.bundle("other.test", 7)
    }

    async fn web(&self, url: &str) -> Result<Bundle, FetchError> {
        self.https.fetch(order(url, EndpointProfile::HttpsWeb, Proof::Web)).await
    }

    async fn spiffe(&self, url: &str) -> Result<Bundle, FetchError> {
        let endpoint_id = SpiffeId::parse(ENDPOINT).unwrap();
        let profile = EndpointProfile::HttpsSpiffe { endpoint_id: endpoint_id.clone() };
        let proof = Proof::Spiffe { endpoint_id, bundle: Arc::new(self.served()) };
        self.https.fetch(order(url, profile, proof)).await
    }
}

fn order(url: &str, profile: EndpointProfile, proof: Proof) -> Order {
    let (trust_domain, url) = (name("other.test"), EndpointUrl::parse(url).unwrap());
    Order { relationship: Arc::new(FederationRelationship { trust_domain, url, profile }), proof }
}

/// An endpoint that serves `bundle` wherever it is asked.
async fn serving(leaf: Leaf, bundle: Bundle) -> FakeEndpoint {
    FakeEndpoint::start(leaf, move |_| document(&bundle)).await
}

#[tokio::test]
async fn both_profiles_fetch_the_bundle_and_say_who_asks_for_what() {
    let bench = Bench::new();
    let web = serving(bench.web_leaf(), bench.served()).await;
    assert_eq!(bench.web(&web.url("/a?b=c")).await.unwrap(), bench.served());
    let head = web.requests().remove(0).to_lowercase();
    assert!(head.starts_with("get /a?b=c http/1.1\r\n"), "{head}");
    for line in [format!("host: {}\r\n", web.address), "accept: application/json\r\n".to_owned()] {
        assert!(head.contains(&line), "{head}");
    }
    assert!(!head.contains("authorization") && !head.contains("cookie"), "{head}");
    // No certificate names the host here.
    let spiffe = serving(bench.spiffe_leaf(), bench.served()).await;
    assert_eq!(bench.spiffe(&spiffe.url("")).await.unwrap(), bench.served());
    assert_eq!(spiffe.targets(), ["/"]);
}

#[tokio::test]
async fn https_web_believes_the_web_pki_for_the_host_alone() {
    let bench = Bench::new();
    let refused: [(&str, Leaf); 5] = [
        ("unknown authority", Ca::new("https://ca.invalid").leaf(vec![loopback()])),
        ("another host", bench.web.leaf(vec![dns("elsewhere.test")])),
        ("no name of a host", bench.web.leaf(vec![uri(ENDPOINT)])),
        ("an X509-SVID", bench.spiffe_leaf()),
        (
            "expired",
            bench.web.leaf_with(vec![loopback()], |params| {
                params.not_after = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
            }),
        ),
    ];
    for (what, leaf) in refused {
        let endpoint = serving(leaf, bench.served()).await;
        let error = bench.web(&endpoint.url("/")).await.unwrap_err();
        assert!(matches!(error, FetchError::Handshake { .. }), "{what}: {error:?}");
        assert!(endpoint.requests().is_empty(), "{what}: nothing is asked of it");
    }
}

#[tokio::test]
async fn https_spiffe_believes_one_spiffe_id_alone() {
    let bench = Bench::new();
    let refused: [(&str, Leaf); 5] = [
        ("another path", bench.spiffe.leaf(vec![uri("spiffe://other.test/other")])),
        ("another trust domain", bench.spiffe.leaf(vec![uri("spiffe://third.test/endpoint")])),
        ("unknown authority", Ca::new("spiffe://other.test").leaf(vec![uri(ENDPOINT)])),
        ("a good certificate of the Web PKI", bench.web_leaf()),
        ("two SPIFFE IDs", bench.spiffe.leaf(vec![uri(ENDPOINT), uri("spiffe://other.test/b")])),
    ];
    for (what, leaf) in refused {
        let endpoint = serving(leaf, bench.served()).await;
        let error = bench.spiffe(&endpoint.url("/")).await.unwrap_err();
        assert!(matches!(error, FetchError::Handshake { .. }), "{what}: {error:?}");
        assert!(endpoint.requests().is_empty(), "{what}: nothing is asked of it");
    }
}

#[tokio::test]
async fn redirects_are_followed_by_the_same_rules_and_forgotten() {
    let bench = Bench::new();
    let target = serving(bench.web_leaf(), bench.served()).await;
    let (served, away) = (bench.served(), target.url("/there"));
    let first = FakeEndpoint::start(bench.web_leaf(), move |asked| match asked {
        "/here" => document(&served),
        "/path" => redirect("302 Found", "/here"),
        _ => redirect(&format!("{} Redirect", asked.trim_start_matches('/')), &away),
    })
    .await;
    for status in ["301", "302", "303", "307", "308"] {
        assert_eq!(bench.web(&first.url(&format!("/{status}"))).await.unwrap().sequence, 7, "{status}");
    }
    assert_eq!(bench.web(&first.url("/path")).await.unwrap().sequence, 7);
    assert_eq!(bench.web(&first.url("/301")).await.unwrap().sequence, 7);
    assert_eq!(
        first.targets(),
        ["/301", "/302", "/303", "/307", "/308", "/path", "/here", "/301"],
        "each fetch begins at the configured URL"
    );
    assert_eq!(target.targets().len(), 6);
}

#[tokio::test]
async fn redirects_lead_to_no_weaker_place() {
    let bench = Bench::new();
    let untrusted = serving(Ca::new("https://ca.invalid").leaf(vec![loopback()]), bench.served()).await;
    let other_id = serving(bench.spiffe.leaf(vec![uri("spiffe://other.test/b")]), bench.served()).await;
    let web = serving(bench.web_leaf(), bench.served()).await;
    let (to_untrusted, to_other, to_web) = (untrusted.url("/"), other_id.url("/"), web.url("/"));
    let plain = format!("http://{}/", web.address);
    let with_user = format!("https://user@{}/", web.address);
    let answer = move |asked: &str| match asked {
        "/untrusted" => redirect("302 Found", &to_untrusted),
        "/other" => redirect("302 Found", &to_other),
        "/web" => redirect("302 Found", &to_web),
        "/plain" => redirect("302 Found", &plain),
        "/user" => redirect("302 Found", &with_user),
        "/nowhere" => response("302 Found", "", b""),
        asked => redirect("302 Found", asked),
    };
    let from_web = FakeEndpoint::start(bench.web_leaf(), answer.clone()).await;
    let from_spiffe = FakeEndpoint::start(bench.spiffe_leaf(), answer).await;

    let handshake = bench.web(&from_web.url("/untrusted")).await.unwrap_err();
    assert!(matches!(handshake, FetchError::Handshake { .. }), "{handshake:?}");
    for target in ["/other", "/web"] {
        let handshake = bench.spiffe(&from_spiffe.url(target)).await.unwrap_err();
        assert!(matches!(handshake, FetchError::Handshake { .. }), "{target}: {handshake:?}");
    }
    for (target, expected) in [
        ("/plain", EndpointUrlError::NotHttps),
        ("/user", EndpointUrlError::UserInfo),
        ("/nowhere", EndpointUrlError::RelativePath),
    ] {
        for error in [
            bench.web(&from_web.url(target)).await.unwrap_err(),
            bench.spiffe(&from_spiffe.url(target)).await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, FetchError::Redirect { source, .. } if *source == expected),
                "{target}: {error:?}"
            );
        }
    }
    let asked = from_web.requests().len();
    let endless = bench.web(&from_web.url("/loop")).await.unwrap_err();
    assert!(matches!(endless, FetchError::TooManyRedirects), "{endless:?}");
    assert_eq!(from_web.requests().len() - asked, ENDPOINT_REDIRECTS + 1);
    assert!(web.requests().is_empty(), "nobody was led there");
}

#[tokio::test]
async fn whatever_an_endpoint_answers_the_fetch_ends() {
    let bench = Bench::new();
    let answer = |asked: &str| match asked {
        "/500" => response("500 Internal Server Error", "", b"{\"keys\":[]}"),
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/html" => response("200 OK", "Content-Type: text/html\r\n", b"<html></html>"),
        "/empty" => response("200 OK", "", b""),
        "/latin" => response("200 OK", "", b"{\"keys\":[],\"\xe9\":1}"),
        "/short" => b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"keys\":[]}".to_vec(),
        "/large" => response("200 OK", "", &vec![b' '; FETCHED_DOCUMENT + 1]),
        "/headers" => response("200 OK", &format!("X: {}\r\n", "x".repeat(8 * ENDPOINT_HEADERS)), b"{}"),
        "/close" => Vec::new(),
        _ => b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(),
    };
    let endpoint = FakeEndpoint::start(bench.web_leaf(), answer).await;
    let at = async |target: &str| bench.web(&endpoint.url(target)).await.unwrap_err();
    for status in ["/500", "/204"] {
        let error = at(status).await;
        assert!(matches!(error, FetchError::Status { .. }), "{status}: {error:?}");
    }
    for garbage in ["/html", "/empty", "/latin"] {
        let error = at(garbage).await;
        assert!(matches!(error, FetchError::Document(_)), "{garbage}: {error:?}");
    }
    let error = at("/large").await;
    assert!(matches!(error, FetchError::TooLarge(_)), "{error:?}");
    for broken in ["/short", "/headers", "/close", "/ssh"] {
        let error = at(broken).await;
        assert!(matches!(error, FetchError::Http { .. }), "{broken}: {error:?}");
    }
}

#[tokio::test]
async fn a_document_of_half_a_megabyte_is_read_and_no_larger_one() {
    let bench = Bench::new();
    let served = bench.served();
    let text = served.to_spiffe_json().unwrap();
    let endpoint = FakeEndpoint::start(bench.web_leaf(), move |asked| {
        let most = FETCHED_DOCUMENT + usize::from(asked == "/more");
        response("200 OK", "", (text.clone() + &" ".repeat(most - text.len())).as_bytes())
    })
    .await;
    assert_eq!(FETCHED_DOCUMENT, 512 * 1024);
    assert_eq!(bench.web(&endpoint.url("/most")).await.unwrap(), served);
    let error = bench.web(&endpoint.url("/more")).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLarge(_)), "{error:?}");
}

#[tokio::test]
async fn nobody_at_home_is_an_error_that_names_the_place() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = bench.web(&format!("https://{address}/")).await.unwrap_err();
    assert!(matches!(error, FetchError::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()) && error.source().is_some());
}

#[tokio::test]
async fn a_stranger_leads_nobody_into_a_private_network() {
    let url = EndpointUrl::parse("https://127.0.0.1:1/").unwrap();
    let error = dial(&url, Reach::Public).await.unwrap_err();
    assert!(matches!(error, FetchError::Private { .. }), "{error:?}");
    for (text, expected) in [
        ("8.8.8.8", true),
        ("100.63.255.255", true),
        ("100.64.0.1", false),
        ("100.127.255.255", false),
        ("100.128.0.0", true),
        ("10.0.0.1", false),
        ("172.16.0.1", false),
        ("192.168.0.1", false),
        ("127.9.9.9", false),
        ("169.254.169.254", false),
        ("0.1.2.3", false),
        ("224.0.0.1", false),
        ("255.255.255.255", false),
        ("192.0.0.10", false),
        ("192.0.1.1", true),
        ("198.17.255.255", true),
        ("198.18.0.1", false),
        ("198.19.255.255", false),
        ("198.20.0.0", true),
        ("223.255.255.255", true),
        ("240.0.0.1", false),
        ("2001:4860:4860::8888", true),
        ("2001::a00:1", false),
        ("2001:1ff::1", false),
        ("2001:200::1", true),
        ("2002:a00:1::1", false),
        ("2003::1", true),
        ("3fff:ffff::1", true),
        ("4000::1", false),
        ("1fff::1", false),
        ("64:ff9b::a00:1", false),
        ("64:ff9b::808:808", true),
        ("64:ff9b:1::808:808", false),
        ("::10.0.0.1", false),
        ("::8.8.8.8", false),
        ("fec0::1", false),
        ("::ffff:10.0.0.1", false),
        ("::ffff:8.8.8.8", true),
        ("::1", false),
        ("::", false),
        ("fd00::1", false),
        ("fe80::1", false),
        ("ff02::1", false),
    ] {
        assert_eq!(is_public(text.parse().unwrap()), expected, "{text}");
    }
}
