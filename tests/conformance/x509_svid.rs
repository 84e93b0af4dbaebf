//! X509-SVID.md: is every issued certificate in order, and is everything else refused?

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use passant_core::csr;
use passant_core::host::ManualClock;
use passant_core::keys::{KeyType, RcgenKey};
use passant_core::x509_svid::{self, X509SvidError};
use passant_core::{Bundle, Host, UnixTime};
use passant_tests::api::{fetch_x509, wire_id};
use passant_tests::conformance::meets;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::tls::{self, Shown};
use passant_tests::wait::eventually;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyUsagePurpose, SanType,
};
use serde_json::json;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::samples::{
    AUDIENCE, Ca, ID, NOW, Tokens, at, ders, dns, later, mint_csr, mint_x509, new_signing_key, now,
    own_bundle, uri, verify_leaf, verify_x509, x509_bundle,
};

#[test]
fn a_leaf_has_exactly_one_uri_name() {
    let _met = meets(&["X509-02", "X509-03", "X509-04"]);
    let names = |names: Vec<SanType>| verify_leaf(|params| params.subject_alt_names = names);
    assert!(names(vec![uri(ID)]).is_ok());
    for two in [
        vec![uri(ID), uri("spiffe://example.org/v")],
        vec![uri(ID), uri(ID)],
        vec![uri(ID), uri("https://example.org/w")],
        vec![uri("https://example.org/w"), uri(ID)],
    ] {
        assert!(matches!(names(two), Err(X509SvidError::UriNames(2))));
    }
    let others =
        vec![dns("a.test"), dns("b.test"), uri(ID), dns("c.test"), SanType::IpAddress([127, 0, 0, 1].into())];
    assert_eq!(names(others).unwrap().id().as_str(), ID);
    let elsewhere = verify_leaf(|params| {
        params.distinguished_name.push(DnType::CommonName, ID);
        params.subject_alt_names = vec![dns("w.example.org")];
    });
    assert!(matches!(elsewhere, Err(X509SvidError::UriNames(0))));
}

#[test]
fn the_uri_name_is_a_spiffe_id_with_a_path() {
    let _met = meets(&["X509-34", "X509-35"]);
    let name = |text: &str| verify_leaf(|params| params.subject_alt_names = vec![uri(text)]);
    assert!(name(ID).is_ok());
    assert!(matches!(name("https://example.org/w"), Err(X509SvidError::NotSpiffeId(_))));
    assert!(matches!(name("spiffe://example.org"), Err(X509SvidError::NoPath(_))));
}

#[test]
fn what_may_sign_authenticates_nobody() {
    let _met = meets(&["X509-05", "X509-31", "X509-32", "X509-33"]);
    let ca = Ca::root("example.org");
    let bundle = x509_bundle("example.org", &[&ca]);
    assert!(verify_x509(&[&ca.leaf(ID)], &bundle).is_ok());
    assert!(verify_x509(&[&ca.der], &bundle).is_err(), "the authority's own certificate");
    // Even one that has a path.
    let with_path = ca.intermediate("i", |params| params.subject_alt_names = vec![uri(ID)]);
    assert!(matches!(verify_x509(&[&with_path.der], &bundle), Err(X509SvidError::IsCa)));
    let signing = verify_leaf(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(matches!(signing, Err(X509SvidError::IsCa)));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let signing = verify_leaf(|params| params.key_usages.push(usage));
        assert!(matches!(signing, Err(X509SvidError::MaySign)), "{usage:?}");
    }
}

#[test]
fn optional_parts_may_differ() {
    let _met = meets(&["X509-08", "X509-23", "X509-27"]);
    let without_subject = verify_leaf(|params| params.distinguished_name = DistinguishedName::new());
    assert!(without_subject.is_ok(), "{without_subject:?}");
    let more = [KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement];
    assert!(verify_leaf(|params| params.key_usages.extend(more)).is_ok());
    let purposes = |critical: bool, purposes: &[u8]| {
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 37], purposes.to_vec());
        extension.set_criticality(critical);
        verify_leaf(|params| {
            params.extended_key_usages.clear();
            params.custom_extensions.push(extension);
        })
    };
    let server = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1];
    let client = [0x06, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];
    let both = [&[0x30, 20][..], &server, &client].concat();
    assert!(purposes(false, &both).is_ok());
    assert!(purposes(true, &both).is_ok());
    assert!(purposes(true, &[&[0x30, 10][..], &server].concat()).is_err(), "a leaf fits servers and clients");
}

#[test]
fn intermediates_lead_to_the_bundle() {
    let _met = meets(&["X509-13", "X509-14", "X509-21", "X509-29", "X509-30", "RFC-08"]);
    let root = Ca::root("example.org");
    let bundle = x509_bundle("example.org", &[&root]);
    let good = root.intermediate("good", |_| {});
    assert!(verify_x509(&[&good.leaf(ID), &good.der], &bundle).is_ok());
    assert!(verify_x509(&[&good.leaf(ID)], &bundle).is_err(), "the intermediate is missing");
    let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let with_purposes = root.intermediate("purposes", |params| params.extended_key_usages = purposes);
    assert!(verify_x509(&[&with_purposes.leaf(ID), &with_purposes.der], &bundle).is_ok());

    let limited = root.intermediate("limited", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert!(verify_x509(&[&limited.leaf(ID), &limited.der], &bundle).is_ok());
    let lower = limited.intermediate("lower", |_| {});
    assert!(verify_x509(&[&lower.leaf(ID), &lower.der, &limited.der], &bundle).is_err());

    for change in [
        (|params| params.not_after = at(NOW - 1)) as fn(&mut CertificateParams),
        |params| params.not_before = at(NOW + 1),
        |params| params.is_ca = IsCa::ExplicitNoCa,
        |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
    ] {
        let bad = root.intermediate("bad", change);
        assert!(verify_x509(&[&bad.leaf(ID), &bad.der], &bundle).is_err());
    }
    assert!(verify_leaf(|params| params.not_after = at(NOW - 1)).is_err(), "an expired leaf");
    assert!(verify_leaf(|params| params.not_before = at(NOW + 1)).is_err(), "a leaf of the future");
    // Another key under the same name: the names match, the signature does not.
    assert!(verify_x509(&[&Ca::root("example.org").leaf(ID)], &bundle).is_err());
}

#[test]
fn unknown_critical_extensions_are_fatal() {
    let _met = meets(&["X509-30", "RFC-06"]);
    let extension = |critical: bool| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(critical);
        verify_leaf(|params| params.custom_extensions.push(extension))
    };
    assert!(extension(false).is_ok());
    assert!(extension(true).is_err());
}

#[test]
fn uri_name_constraints_are_never_ignored() {
    let _met = meets(&["X509-18"]);
    let root = Ca::root("example.org");
    let bundle = x509_bundle("example.org", &[&root]);
    // NameConstraints with one permitted subtree [6] URI.
    let constrained = |host: &[u8]| {
        let length = u8::try_from(host.len()).expect("a short name");
        let content =
            [&[0x30, length + 6, 0xa0, length + 4, 0x30, length + 2, 0x86, length][..], host].concat();
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
        extension.set_criticality(true);
        root.intermediate("constrained", |params| params.custom_extensions.push(extension))
    };
    let free = root.intermediate("free", |_| {});
    assert!(verify_x509(&[&free.leaf(ID), &free.der], &bundle).is_ok());
    // A constraint that would permit the name is refused too: it cannot be weighed (see Decisions).
    for host in [&b"other.test"[..], b"example.org"] {
        let constrained = constrained(host);
        assert!(verify_x509(&[&constrained.leaf(ID), &constrained.der], &bundle).is_err());
    }
}

#[test]
fn only_x509_entries_of_a_bundle_document_are_authorities() {
    let _met = meets(&["X509-42", "X509-43", "X509-44", "BUNDLE-13", "BUNDLE-14"]);
    let (a, b) = (Ca::root("example.org"), Ca::root("example.org"));
    let document = |cas: &[&Ca]| -> serde_json::Value {
        serde_json::from_str(&x509_bundle("example.org", cas).to_spiffe_json().unwrap()).unwrap()
    };
    let read = |document: &serde_json::Value| {
        Bundle::from_spiffe_json(crate::samples::domain("example.org"), document.to_string().as_bytes())
            .unwrap()
    };
    let both = document(&[&a, &b]);
    assert!(verify_x509(&[&b.leaf(ID)], &read(&both)).is_ok());
    // Without x5c, or with an empty one, an entry is ignored; the other one stays.
    for change in [
        (|entry| {
            entry.as_object_mut().unwrap().remove("x5c");
        }) as fn(&mut serde_json::Value),
        |entry| entry["x5c"] = json!([]),
    ] {
        let mut changed = both.clone();
        change(&mut changed["keys"][1]);
        let bundle = read(&changed);
        assert_eq!(bundle.x509_authorities.len(), 1);
        assert!(verify_x509(&[&a.leaf(ID)], &bundle).is_ok());
        assert!(verify_x509(&[&b.leaf(ID)], &bundle).is_err());
    }
    // Of several certificates in an entry the first one counts.
    let mut several = document(&[&a]);
    let second = both["keys"][1]["x5c"][0].clone();
    several["keys"][0]["x5c"].as_array_mut().unwrap().push(second);
    assert!(verify_x509(&[&a.leaf(ID)], &read(&several)).is_ok());
    assert!(verify_x509(&[&b.leaf(ID)], &read(&several)).is_err());
    // Without any entry of this use there are no X509-SVIDs, and JWT-SVIDs still hold.
    let tokens = Tokens::of("example.org");
    let jwt_only: serde_json::Value = serde_json::from_str(&tokens.bundle.to_spiffe_json().unwrap()).unwrap();
    let bundle = Arc::new(read(&jwt_only));
    assert!(verify_x509(&[&a.leaf(ID)], &bundle).is_err());
    let token = tokens.with_claims(json!({}));
    assert!(crate::samples::verify_jwt(&token, AUDIENCE, &bundle, UnixTime::from_secs(NOW)).is_ok());
    // And with nothing usable at all, nothing holds.
    for empty in [json!({ "keys": [] }), json!({ "keys": [{ "kty": "EC", "use": "foo-svid" }] })] {
        let bundle = Arc::new(read(&empty));
        assert!(verify_x509(&[&a.leaf(ID)], &bundle).is_err());
        assert!(crate::samples::verify_jwt(&token, AUDIENCE, &bundle, UnixTime::from_secs(NOW)).is_err());
    }
}

/// What X509-SVID 3 and 4 and RFC 5280 ask of a leaf that the server at hand has issued.
fn check_leaf(leaf: &X509Certificate<'_>, id: &str, authority: &X509Certificate<'_>) -> anyhow::Result<()> {
    let names = leaf
        .extensions()
        .iter()
        .find(|one| one.oid == x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME);
    let names = names.context("no names")?;
    let ParsedExtension::SubjectAlternativeName(alternatives) = names.parsed_extension() else {
        anyhow::bail!("names that cannot be read")
    };
    let uris: Vec<&str> = alternatives
        .general_names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    assert_eq!(uris, [id]);
    let without_subject = leaf.subject().iter().next().is_none();
    assert!(!without_subject || names.critical, "{id}: without a subject the names are critical");

    let constraints = leaf.basic_constraints()?.context("no basic constraints")?;
    assert!(!constraints.value.ca, "{id}");
    let usage = leaf.key_usage()?.context("no key usage")?;
    assert!(usage.critical && usage.value.digital_signature(), "{id}");
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign(), "{id}");
    let purposes = leaf.extended_key_usage()?.context("no extended key usage")?.value;
    assert!(purposes.server_auth && purposes.client_auth, "{id}");

    assert_eq!(leaf.issuer().as_raw(), authority.subject().as_raw());
    assert!(leaf.issuer().iter().next().is_some(), "an issuer without a name");
    assert!(leaf.validity().not_after <= authority.validity().not_after);
    assert!(leaf.name_constraints()?.is_none());
    let serial = leaf.raw_serial();
    assert!(!serial.is_empty() && serial.len() <= 20 && serial[0] & 0x80 == 0, "{serial:?}");
    assert!(serial.iter().any(|byte| *byte != 0), "a serial number of zero");
    assert_eq!(authority_key_id(leaf)?, subject_key_id(authority)?);
    leaf.verify_signature(Some(authority.public_key()))?;
    Ok(())
}

fn subject_key_id(certificate: &X509Certificate<'_>) -> anyhow::Result<Vec<u8>> {
    let ids = certificate.extensions().iter().find_map(|one| {
        if let ParsedExtension::SubjectKeyIdentifier(id) = one.parsed_extension() {
            Some(id.0.to_vec())
        } else {
            None
        }
    });
    ids.context("no subject key identifier")
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> anyhow::Result<Vec<u8>> {
    let ids = certificate.extensions().iter().find_map(|one| {
        if let ParsedExtension::AuthorityKeyIdentifier(id) = one.parsed_extension() {
            id.key_identifier.as_ref().map(|id| id.0.to_vec())
        } else {
            None
        }
    });
    ids.context("no authority key identifier")
}

fn check_authority(authority: &X509Certificate<'_>) -> anyhow::Result<()> {
    let constraints = authority.basic_constraints()?.context("no basic constraints")?;
    assert!(constraints.value.ca && constraints.critical);
    let usage = authority.key_usage()?.context("no key usage")?;
    assert!(usage.critical && usage.value.key_cert_sign());
    // keyCertSign is bit 5, cRLSign bit 6, counted from the first.
    assert_eq!(usage.value.flags & !0b110_0000, 0, "further usages");
    assert!(authority.extended_key_usage()?.is_none());
    let names = authority.subject_alternative_name()?.context("no names")?;
    assert!(matches!(names.value.general_names[..], [GeneralName::URI("spiffe://example.org")]));
    assert!(authority.subject().iter().next().is_some(), "a subject without a name");
    if let Some(constraints) = authority.name_constraints()? {
        assert!(constraints.critical);
    }
    subject_key_id(authority)?;
    // Self-signed, as what is published as a root has to be.
    authority.verify_signature(None)?;
    Ok(())
}

#[tokio::test]
async fn everything_that_is_issued_is_in_order() -> anyhow::Result<()> {
    let _met = meets(&[
        "X509-01", "X509-06", "X509-07", "X509-09", "X509-10", "X509-11", "X509-12", "X509-15", "X509-16",
        "X509-19", "X509-20", "X509-22", "X509-24", "X509-25", "X509-26", "X509-28", "X509-40", "X509-45",
        "RFC-01", "RFC-02", "RFC-04", "RFC-05", "RFC-07", "RFC-09", "RFC-24",
    ]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    site.register("/web", |entry| entry.dns_names = vec!["web.example.org".into()]).await?;
    let _agent = site.start_agent("agent").await?;
    let bundle = own_bundle(&site).await?;
    let authorities: Vec<X509Certificate<'_>> = bundle
        .x509_authorities
        .iter()
        .map(|authority| X509Certificate::from_der(&authority.der).map(|(_, certificate)| certificate))
        .collect::<Result<_, _>>()?;
    assert!(!authorities.is_empty());
    for authority in &authorities {
        check_authority(authority)?;
    }

    let socket = site.agent_socket("agent");
    let fetched = eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    let mut leaves = vec![("spiffe://example.org/web".to_owned(), fetched.svids[0].x509_svid.clone())];
    // What the node itself holds, and what the server shows, are X509-SVIDs too.
    let (node, node_chain) = node_identity(&site)?;
    leaves.push((node, node_chain.chain.concat()));
    let stream = tls::connect(&site.address(), None).await?;
    leaves.push(("spiffe://example.org/spire/server".to_owned(), tls::server_chain(&stream).concat()));
    let ops = "spiffe://example.org/ops";
    // A year is asked for; then with a CSR that asks for the rights of an authority.
    leaves.push((ops.to_owned(), mint_x509(&site, ops, 365 * 24 * 3600).await?.concat()));
    let key = new_signing_key(KeyType::EcP384);
    let mut greedy = CertificateParams::default();
    greedy.subject_alt_names = vec![uri(ops)];
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let greedy = greedy.serialize_request(&RcgenKey(&*key))?.der().to_vec();
    leaves.push((ops.to_owned(), mint_csr(&site, greedy.clone(), 60).await?.concat()));

    for (id, chain) in &leaves {
        let chain = x509_svid::split_der(chain, 16)?;
        let (_, leaf) = X509Certificate::from_der(&chain[0])?;
        let key_id = authority_key_id(&leaf)?;
        let signer = authorities.iter().find(|one| subject_key_id(one).is_ok_and(|id| id == key_id));
        check_leaf(&leaf, id, signer.context("nobody in the bundle signed it")?)?;
        x509_svid::verify(chain, &bundle, now())?;
    }

    // A name without a path is for authorities alone.
    assert!(mint_x509(&site, "spiffe://example.org", 60).await.is_err());
    assert!(site.register("", |entry| entry.spiffe_id = wire_id("example.org", "")).await.is_err());
    // A CSR is signed by the key it names.
    let mut forged = greedy;
    if let Some(last) = forged.last_mut() {
        *last ^= 1;
    }
    assert!(mint_csr(&site, forged, 60).await.is_err());

    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let csr = csr::make(&*key, Some(&passant_core::SpiffeId::parse(ops)?))?;
        let chain = mint_csr(&site, csr, 60).await?;
        let svid = x509_svid::verify(ders(&[&chain[0]]), &bundle, now())?;
        assert!(svid.not_after() <= later(Duration::from_secs(60).as_secs()));
        assert!(serials.insert(svid.serial().to_string()), "a serial number came twice");
    }
    Ok(())
}

/// The SPIFFE ID of the site's agent, which the server tells, and its SVID and key, which stand in its data directory.
fn node_identity(site: &Site) -> anyhow::Result<(String, Shown)> {
    let listed = site.passant_json(&["agent", "list"])?;
    let id = &listed["agents"][0]["id"];
    let part = |name: &str| id[name].as_str().context("an agent's id");
    let id = format!("spiffe://{}{}", part("trust_domain")?, part("path")?);
    let data: serde_json::Value =
        serde_json::from_slice(&std::fs::read(site.path("agent-data/agent-data.json"))?)?;
    let decode =
        |text: &serde_json::Value| anyhow::Ok(BASE64_STANDARD.decode(text.as_str().context("text")?)?);
    let chain = data["identity"]["svid"].as_array().context("a chain")?;
    let chain = chain.iter().map(decode).collect::<anyhow::Result<_>>()?;
    Ok((id, Shown { chain, key: decode(&data["identity"]["key"])? }))
}

#[tokio::test]
async fn a_chain_without_its_key_opens_no_connection() -> anyhow::Result<()> {
    let _met = meets(&["RFC-23"]);
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let _agent = site.start_agent("agent").await?;
    let (_, own) = node_identity(&site)?;
    let try_with = async |shown: &Shown| {
        let mut stream = tls::connect(&site.address(), Some(shown)).await?;
        tls::is_taken(&mut stream).await
    };
    try_with(&own).await?;
    let other = new_signing_key(KeyType::EcP256).pkcs8().expose().clone();
    let stolen = try_with(&Shown { chain: own.chain, key: other }).await;
    assert!(stolen.is_err(), "somebody else's certificate was taken");
    Ok(())
}

#[tokio::test]
async fn dates_past_2049_have_four_digits_of_year() -> anyhow::Result<()> {
    let _met = meets(&["RFC-03"]);
    // 2026 and 2045; authorities live for ten years.
    for (now, is_general) in [(1_790_000_000, false), (2_380_000_000, true)] {
        let dir = tempfile::tempdir()?;
        let text = format!(
            "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\nca_ttl = \"3650d\"\nstore = \"memory\"\nkeys = \"memory\"\n\
             [socket]\npath = \"{}\"\n",
            dir.path().join("server.sock").display()
        );
        let config = passant_server::Config::parse(&text, "server.toml")?;
        let clock = Arc::new(ManualClock::new(UnixTime::from_secs(now)));
        let server = passant_server::Server::start(config, Host { clock, ..Host::system() }).await?;
        let bundle = server.bundle();
        let (_, authority) = X509Certificate::from_der(&bundle.x509_authorities[0].der)?;
        let validity = authority.validity();
        assert!(validity.not_before.is_utctime());
        assert_eq!(validity.not_after.is_generalizedtime(), is_general, "{}", validity.not_after);
        assert_eq!(validity.not_after.is_utctime(), !is_general);
        server.shutdown().await;
    }
    Ok(())
}
