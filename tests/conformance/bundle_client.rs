//! SPIFFE_Federation.md, as far as it binds whoever fetches bundles. With a real server, and endpoints of our own.

use std::time::Duration;

use anyhow::{Context, bail};
use passant_core::{Bundle, x509_svid};
use passant_proto::bundle::{BatchSetFederatedBundleRequest, GetFederatedBundleRequest};
use passant_proto::federation::{ListStatusRequest, RelationshipStatus};
use passant_proto::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest, RefreshBundleRequest,
};
use passant_proto::types::federation_relationship::BundleEndpointProfile;
use passant_proto::workload::ValidateJwtsvidRequest;
use passant_proto::{convert, types};
use passant_tests::api::{fetch_x509, with_header, workload_api};
use passant_tests::conformance::meets;
use passant_tests::daemon::Daemon;
use passant_tests::site::{ServerOptions, Site};
use passant_tests::wait::eventually;
use rcgen::{CertificateParams, DnType, SanType};
use serde_json::json;
use tonic::Code;

use crate::endpoint::{Endpoint, Shown};
use crate::samples::{
    AUDIENCE, Ca, Tokens, at, decode_jwt, ders, dns, lasting, mint_jwt, mint_x509, now, own_bundle, uri,
    x509_bundle,
};

const OTHER: &str = "other.test";
const OTHER_ENDPOINT: &str = "spiffe://other.test/endpoint";
const SOON: Duration = Duration::from_secs(60);

/// A server that believes `web` for the Web PKI, and an authority of other.test.
struct World {
    site: Site,
    server: Daemon,
    web: Ca,
    other: Ca,
}

impl World {
    async fn new() -> anyhow::Result<Self> {
        let (web, other) = (Ca::root_with("web.invalid", lasting), root());
        let site = Site::new(&ServerOptions::default())?;
        let roots = site.path("roots.pem");
        std::fs::write(&roots, x509_bundle("web.invalid", &[&web]).to_pem())?;
        site.configure(&ServerOptions {
            keys: String::new(),
            tables: format!("[federation]\nweb_roots = {roots:?}"),
        })?;
        let server = site.start_server().await?;
        Ok(Self { site, server, web, other })
    }

    /// An endpoint with a certificate of the Web PKI that serves `bundle` at `/`.
    async fn web_endpoint(&self, bundle: &Bundle) -> anyhow::Result<Endpoint> {
        let endpoint = Endpoint::start(self.web_leaf()).await?;
        endpoint.serve("/", bundle)?;
        Ok(endpoint)
    }

    fn web_leaf(&self) -> Shown {
        self.web.server(vec![loopback()], |_| {})
    }

    /// The bundle of other.test.
    fn bundle(&self, sequence: u64, hint: Option<u64>) -> Bundle {
        Bundle { sequence, refresh_hint: hint.map(Duration::from_secs), ..x509_bundle(OTHER, &[&self.other]) }
    }

    /// Federates with `trust_domain`: by https_spiffe with an endpoint ID, else by https_web.
    async fn federate(
        &self,
        trust_domain: &str,
        url: &str,
        endpoint_id: Option<&str>,
        bundle: Option<&Bundle>,
    ) -> anyhow::Result<()> {
        let relationship = types::FederationRelationship {
            trust_domain: trust_domain.to_owned(),
            bundle_endpoint_url: url.to_owned(),
            bundle_endpoint_profile: Some(profile(endpoint_id)),
            trust_domain_bundle: bundle.map(convert::bundle::to_wire),
        };
        let status = self.create(relationship).await?;
        if status.code != 0 {
            bail!("federation refused: {}", status.message);
        }
        Ok(())
    }

    async fn create(&self, relationship: types::FederationRelationship) -> anyhow::Result<types::Status> {
        let request = BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            output_mask: None,
        };
        let mut client = self.site.operator().await?.trust_domains();
        let results = client.batch_create_federation_relationship(request).await?.into_inner().results;
        results.into_iter().next().and_then(|result| result.status).context("one result")
    }

    /// Has the bundle fetched now; why it was not.
    async fn refresh(&self, trust_domain: &str) -> anyhow::Result<Result<(), String>> {
        let request = RefreshBundleRequest { trust_domain: trust_domain.to_owned() };
        let refreshed = self.site.operator().await?.trust_domains().refresh_bundle(request).await;
        Ok(refreshed.map(drop).map_err(|status| status.message().to_owned()))
    }

    async fn refreshed(&self, trust_domain: &str) -> anyhow::Result<Bundle> {
        self.refresh(trust_domain).await?.map_err(anyhow::Error::msg)?;
        self.held(trust_domain).await?.context("it was fetched")
    }

    async fn held(&self, trust_domain: &str) -> anyhow::Result<Option<Bundle>> {
        let request = GetFederatedBundleRequest { trust_domain: trust_domain.to_owned(), output_mask: None };
        match self.site.operator().await?.bundles().get_federated_bundle(request).await {
            Ok(bundle) => Ok(Some(convert::bundle::from_wire(bundle.get_ref())?)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    async fn set(&self, bundle: &Bundle) -> anyhow::Result<()> {
        let request = BatchSetFederatedBundleRequest {
            bundle: vec![convert::bundle::to_wire(bundle)],
            output_mask: None,
        };
        self.site.operator().await?.bundles().batch_set_federated_bundle(request).await?;
        Ok(())
    }

    async fn end(&self, trust_domain: &str) -> anyhow::Result<()> {
        let request =
            BatchDeleteFederationRelationshipRequest { trust_domains: vec![trust_domain.to_owned()] };
        self.site.operator().await?.trust_domains().batch_delete_federation_relationship(request).await?;
        Ok(())
    }

    async fn statuses(&self) -> anyhow::Result<Vec<RelationshipStatus>> {
        let request = ListStatusRequest { page_size: 0, page_token: String::new() };
        Ok(self.site.operator().await?.federation().list_status(request).await?.into_inner().statuses)
    }

    /// Seconds between the last attempt, which is over, and the next.
    async fn pause(&self, trust_domain: &str) -> anyhow::Result<i64> {
        let statuses = self.statuses().await?;
        let status = statuses.into_iter().find(|status| status.trust_domain == trust_domain);
        let status = status.context("there is a relationship")?;
        anyhow::ensure!(status.next_attempt > 0, "it is being tried: {status:?}");
        Ok(status.next_attempt - status.last_attempt)
    }
}

fn root() -> Ca {
    Ca::root_with(OTHER, lasting)
}

fn loopback() -> SanType {
    SanType::IpAddress([127, 0, 0, 1].into())
}

fn profile(endpoint_id: Option<&str>) -> BundleEndpointProfile {
    match endpoint_id {
        None => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        Some(id) => BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: id.to_owned(),
        }),
    }
}

#[tokio::test]
async fn nothing_is_fetched_before_url_profile_and_trust_domain_are_known() -> anyhow::Result<()> {
    let _met = meets(&["FED-16", "FED-18", "FED-19", "FED-35", "FED-36"]);
    let world = World::new().await?;
    for endpoint_id in [None, Some(OTHER_ENDPOINT)] {
        let whole = types::FederationRelationship {
            trust_domain: OTHER.to_owned(),
            bundle_endpoint_url: "https://other.test/b".to_owned(),
            bundle_endpoint_profile: Some(profile(endpoint_id)),
            trust_domain_bundle: None,
        };
        let with_url = |url: &str| types::FederationRelationship {
            bundle_endpoint_url: url.to_owned(),
            ..whole.clone()
        };
        for refused in [
            types::FederationRelationship { trust_domain: String::new(), ..whole.clone() },
            types::FederationRelationship { bundle_endpoint_profile: None, ..whole.clone() },
            with_url(""),
            with_url("http://x/b"),
            with_url("https://u:p@x/b"),
            with_url("https://u@x/b"),
        ] {
            let status = world.create(refused.clone()).await?;
            assert_eq!(Code::from_i32(status.code), Code::InvalidArgument, "{refused:?}");
        }
    }
    assert!(world.statuses().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn both_profiles_are_polled_as_bundles_hint() -> anyhow::Result<()> {
    let _met = meets(&[
        "FED-05",
        "FED-06",
        "FED-07",
        "FED-13",
        "FED-20",
        "FED-31",
        "FED-57",
        "BUNDLE-10",
        "BUNDLE-23",
    ]);
    let world = World::new().await?;
    let web = world.web_endpoint(&world.bundle(7, Some(60))).await?;
    world.federate(OTHER, &web.url("/"), None, None).await?;
    // Whose bundle it is says the relationship; the URL is an address, and the document names nobody.
    assert_eq!(world.refreshed(OTHER).await?, world.bundle(7, Some(60)));
    let pause = world.pause(OTHER).await?;
    assert!((53..=61).contains(&pause), "{pause}");
    for (hint, bounds) in [(None, 269..=301), (Some(1), 8..=11), (Some(315_360_000), 77_759..=86_401)] {
        web.serve("/", &world.bundle(8 + hint.unwrap_or(0), hint))?;
        world.refreshed(OTHER).await?;
        let pause = world.pause(OTHER).await?;
        assert!(bounds.contains(&pause), "{hint:?}: {pause}");
    }
    let log = world.server.log();
    let told = |line: &&str| {
        line.contains("fetched a foreign bundle")
            && line.contains(&web.url("/"))
            && line.contains(OTHER)
            && line.contains("sequence=7")
    };
    assert!(log.lines().any(|line| told(&line)), "{log}");

    let spiffe =
        Endpoint::start(world.other.server(vec![uri("spiffe://third.test/endpoint")], |_| {})).await?;
    let third = Bundle { sequence: 3, ..x509_bundle("third.test", &[&world.other]) };
    let hinted = Bundle { refresh_hint: Some(Duration::from_secs(1)), ..third.clone() };
    spiffe.serve("/bundle", &hinted)?;
    let endpoint_id = Some("spiffe://third.test/endpoint");
    world.federate("third.test", &spiffe.url("/bundle"), endpoint_id, Some(&third)).await?;
    eventually("three polls", SOON, || async {
        anyhow::ensure!(spiffe.asked().len() >= 3, "{:?}", spiffe.asked());
        Ok(())
    })
    .await?;
    let asked = spiffe.asked();
    for pair in asked.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_secs(8), "not below the floor: {asked:?}");
    }
    Ok(())
}

#[tokio::test]
async fn versions_are_ordered_by_sequence_where_there_is_one() -> anyhow::Result<()> {
    let _met = meets(&["FED-09", "FED-10", "FED-11"]);
    let world = World::new().await?;
    let endpoint = world.web_endpoint(&world.bundle(7, None)).await?;
    world.federate(OTHER, &endpoint.url("/"), None, None).await?;
    world.refreshed(OTHER).await?;
    endpoint.serve("/", &world.bundle(5, None))?;
    let refused = world.refresh(OTHER).await?;
    assert!(refused.is_err_and(|why| why.contains("older than 7")));
    assert_eq!(world.held(OTHER).await?.map(|bundle| bundle.sequence), Some(7));
    // A document without the member: whichever came last.
    for hint in [1, 2] {
        let text = format!("{{\"keys\":[],\"spiffe_refresh_hint\":{hint}}}");
        endpoint.answer("/", "200 OK", "", &text);
        let held = world.refreshed(OTHER).await?;
        assert_eq!((held.sequence, held.refresh_hint), (0, Some(Duration::from_secs(hint))));
    }
    let by_hand = world.bundle(0, None);
    world.set(&by_hand).await?;
    assert_eq!(world.held(OTHER).await?, Some(by_hand));
    assert!(world.refreshed(OTHER).await?.x509_authorities.is_empty(), "until the next refresh");
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_does_not_prove_itself_is_not_believed_in_any_other_way() -> anyhow::Result<()> {
    let _met = meets(&["FED-30", "FED-47", "FED-52", "FED-58", "RFC-22"]);
    let world = World::new().await?;
    let held = world.bundle(7, Some(60));
    let web = world.web_endpoint(&held).await?;
    world.federate(OTHER, &web.url("/"), None, None).await?;
    world.refreshed(OTHER).await?;
    web.serve("/", &world.bundle(8, Some(60)))?;
    let by_name = |params: &mut CertificateParams| {
        params.distinguished_name.push(DnType::CommonName, "127.0.0.1");
    };
    let expired = |params: &mut CertificateParams| params.not_after = at(1_700_000_000);
    let unknown = Ca::root_with("web.invalid", lasting);
    for (what, shown) in [
        ("of an unknown authority", unknown.server(vec![loopback()], |_| {})),
        ("for another host", world.web.server(vec![dns("elsewhere.test")], |_| {})),
        ("with the host as common name only", world.web.server(vec![dns("elsewhere.test")], by_name)),
        ("expired", world.web.server(vec![loopback()], expired)),
        ("with a SPIFFE ID only", world.web.server(vec![uri(OTHER_ENDPOINT)], |_| {})),
        (
            "an X509-SVID that would do for https_spiffe",
            world.other.server(vec![uri(OTHER_ENDPOINT)], |_| {}),
        ),
    ] {
        web.show(shown)?;
        let refused = world.refresh(OTHER).await?;
        assert!(refused.is_err_and(|why| why.contains("TLS handshake")), "{what}");
        assert_eq!(world.held(OTHER).await?.as_ref(), Some(&held), "{what}");
    }
    web.show(world.web_leaf())?;
    world.refreshed(OTHER).await?;
    let asked = web.asked().len();
    web.answer("/", "500 Internal Server Error", "", "");
    let refused = world.refresh(OTHER).await?;
    assert!(refused.is_err_and(|why| why.contains("status 500")));
    let pause = world.pause(OTHER).await?;
    assert!((53..=61).contains(&pause), "one interval: {pause}");
    assert_eq!(web.asked().len(), asked + 1, "not at once again");

    // The host's certificate is good, and its host is called as a trust domain might be: no help.
    let third = x509_bundle("third.test", &[&world.other]);
    let spiffe = world.web_endpoint(&third).await?;
    world
        .federate("third.test", &spiffe.url("/"), Some("spiffe://third.test/endpoint"), Some(&third))
        .await?;
    for (what, shown) in [
        ("a good certificate of the Web PKI", world.web_leaf()),
        ("another path", world.other.server(vec![uri("spiffe://third.test/other")], |_| {})),
        ("another trust domain", world.other.server(vec![uri(OTHER_ENDPOINT)], |_| {})),
    ] {
        spiffe.show(shown)?;
        let refused = world.refresh("third.test").await?;
        assert!(refused.is_err_and(|why| why.contains("TLS handshake")), "{what}");
    }
    assert!(spiffe.asked().is_empty());
    let elsewhere = vec![uri("spiffe://third.test/endpoint"), dns("elsewhere.test")];
    spiffe.show(world.other.server(elsewhere, |_| {}))?;
    world.refreshed("third.test").await?;
    Ok(())
}

#[tokio::test]
async fn redirects_are_followed_by_the_same_rules_and_forgotten() -> anyhow::Result<()> {
    let _met = meets(&["FED-32", "FED-33", "FED-34", "FED-50", "FED-56"]);
    let world = World::new().await?;
    let target = world.web_endpoint(&world.bundle(7, None)).await?;
    let web = Endpoint::start(world.web_leaf()).await?;
    web.serve("/b", &world.bundle(7, None))?;
    world.federate(OTHER, &web.url("/b"), None, None).await?;
    // The fetch that a new relationship begins with is over.
    world.refreshed(OTHER).await?;
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let asked = target.asked().len();
        web.redirect("/b", status, &target.url("/"));
        world.refreshed(OTHER).await?;
        assert_eq!(target.asked().len(), asked + 1, "{status}");
    }
    web.serve("/b", &world.bundle(8, None))?;
    let asked = target.asked().len();
    assert_eq!(world.refreshed(OTHER).await?.sequence, 8, "it begins at the configured URL");
    assert_eq!(target.asked().len(), asked);
    web.redirect("/b", "302 Found", &target.url("/").replace("https://", "http://"));
    assert!(world.refresh(OTHER).await?.is_err_and(|why| why.contains("https scheme")));
    web.redirect("/b", "302 Found", &target.url("/").replace("https://", "https://u@"));
    assert!(world.refresh(OTHER).await?.is_err_and(|why| why.contains("user info")));
    target.show(Ca::root_with("web.invalid", lasting).server(vec![loopback()], |_| {}))?;
    web.redirect("/b", "302 Found", &target.url("/"));
    assert!(world.refresh(OTHER).await?.is_err_and(|why| why.contains("TLS handshake")));
    assert_eq!(target.asked().len(), asked);

    let endpoint_id = "spiffe://third.test/endpoint";
    let third = x509_bundle("third.test", &[&world.other]);
    let spiffe = Endpoint::start(world.other.server(vec![uri(endpoint_id)], |_| {})).await?;
    world.federate("third.test", &spiffe.url("/b"), Some(endpoint_id), Some(&third)).await?;
    let second = Endpoint::start(world.other.server(vec![uri(endpoint_id)], |_| {})).await?;
    second.serve("/", &third)?;
    spiffe.redirect("/b", "302 Found", &second.url("/"));
    world.refreshed("third.test").await?;
    let asked = second.asked().len();
    for shown in [world.other.server(vec![uri("spiffe://third.test/other")], |_| {}), world.web_leaf()] {
        second.show(shown)?;
        assert!(world.refresh("third.test").await?.is_err_and(|why| why.contains("TLS handshake")));
    }
    assert_eq!(second.asked().len(), asked);
    Ok(())
}

#[tokio::test]
async fn endpoints_with_svids_are_verified_by_the_latest_bundle_of_their_trust_domain() -> anyhow::Result<()>
{
    let _met = meets(&["FED-37", "FED-40", "FED-41", "FED-48", "FED-49"]);
    let world = World::new().await?;
    // Without the endpoint's ID there is no such relationship.
    let without = types::FederationRelationship {
        trust_domain: "prod.test".to_owned(),
        bundle_endpoint_url: "https://prod.test/".to_owned(),
        bundle_endpoint_profile: Some(profile(Some(""))),
        trust_domain_bundle: None,
    };
    assert_eq!(Code::from_i32(world.create(without).await?.code), Code::InvalidArgument);
    // The endpoint's trust domain is another one, and nothing is known of it yet.
    let prod = Bundle { sequence: 1, ..x509_bundle("prod.test", &[&Ca::root_with("prod.test", lasting)]) };
    let for_prod = Endpoint::start(world.other.server(vec![uri(OTHER_ENDPOINT)], |_| {})).await?;
    for_prod.serve("/prod", &prod)?;
    world.federate("prod.test", &for_prod.url("/prod"), Some(OTHER_ENDPOINT), Some(&prod)).await?;
    let held = world.refresh("prod.test").await?;
    assert!(held.is_err_and(|why| why.contains("\"other.test\", whose bundle is not held")));
    assert!(for_prod.asked().is_empty());
    let for_other = world.web_endpoint(&world.bundle(1, None)).await?;
    world.federate(OTHER, &for_other.url("/"), None, None).await?;
    world.refreshed(OTHER).await?;
    world.refreshed("prod.test").await?;
    // Its trust domain rotates.
    let next = root();
    let both = Bundle { sequence: 2, ..x509_bundle(OTHER, &[&world.other, &next]) };
    for_other.serve("/", &both)?;
    world.refreshed(OTHER).await?;
    for_prod.show(next.server(vec![uri(OTHER_ENDPOINT)], |_| {}))?;
    world.refreshed("prod.test").await?;

    // One that serves its own trust domain's bundle rotates twice.
    let (first, second, third) = (root(), root(), root());
    let id = "spiffe://self.test/endpoint";
    let of = |sequence, cas: &[&Ca]| Bundle { sequence, ..x509_bundle("self.test", cas) };
    let own = Endpoint::start(first.server(vec![uri(id)], |_| {})).await?;
    own.serve("/", &of(2, &[&first, &second]))?;
    world.federate("self.test", &own.url("/"), Some(id), Some(&of(1, &[&first]))).await?;
    world.refreshed("self.test").await?;
    own.show(second.server(vec![uri(id)], |_| {}))?;
    own.serve("/", &of(3, &[&second, &third]))?;
    world.refreshed("self.test").await?;
    own.show(third.server(vec![uri(id)], |_| {}))?;
    own.serve("/", &of(4, &[&third]))?;
    assert_eq!(world.refreshed("self.test").await?, of(4, &[&third]));
    own.show(first.server(vec![uri(id)], |_| {}))?;
    let refused = world.refresh("self.test").await?;
    assert!(refused.is_err_and(|why| why.contains("TLS handshake")), "the bootstrap bundle counts no more");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_give_the_first_bundle_as_a_file_in_either_form() -> anyhow::Result<()> {
    let _met = meets(&["FED-38", "FED-39"]);
    let world = World::new().await?;
    let first = root();
    for (trust_domain, form) in [("document.test", "spiffe"), ("pem.test", "pem")] {
        let id = format!("spiffe://{trust_domain}/endpoint");
        let held = x509_bundle(trust_domain, &[&first]);
        let file = world.site.path(form);
        let text = if form == "pem" { held.to_pem() } else { held.to_spiffe_json()? };
        std::fs::write(&file, text)?;
        let endpoint = Endpoint::start(first.server(vec![uri(&id)], |_| {})).await?;
        let served = Bundle { sequence: 3, ..held };
        endpoint.serve("/", &served)?;
        let (url, file) = (endpoint.url("/"), file.to_str().context("a path in UTF-8")?);
        let create = ["federation", "create", trust_domain, "--url", &url, "--spiffe", &id];
        let refused = world.site.passant([&create[..], &["--bundle", "/dev/null"]].concat())?;
        assert!(!refused.status.success(), "an empty file is no bundle");
        assert!(world.held(trust_domain).await?.is_none() && world.refresh(trust_domain).await?.is_err());
        let created = world.site.passant([&create[..], &["--bundle", file]].concat())?;
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let fetched = world.site.passant(["federation", "refresh", trust_domain])?;
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        assert_eq!(world.held(trust_domain).await?, Some(served));
    }
    Ok(())
}

#[tokio::test]
async fn what_was_fetched_outlasts_a_restart_without_the_endpoint() -> anyhow::Result<()> {
    let _met = meets(&["FED-08"]);
    let world = World::new().await?;
    let endpoint = world.web_endpoint(&world.bundle(7, None)).await?;
    world.federate(OTHER, &endpoint.url("/"), None, None).await?;
    let fetched = world.refreshed(OTHER).await?;
    drop(endpoint);
    let World { site, server, web, other } = world;
    server.kill()?;
    let server = site.start_server().await?;
    let world = World { site, server, web, other };
    assert!(world.refresh(OTHER).await?.is_err());
    let held = world.held(OTHER).await?.context("it is held")?;
    assert_eq!(held, fetched);
    let (leaf, _) = world.other.server(vec![uri("spiffe://other.test/w")], |_| {});
    assert!(x509_svid::verify(vec![leaf], &held, now()).is_ok());
    Ok(())
}

#[tokio::test]
async fn workloads_get_what_is_fetched_and_lose_it_when_federation_ends() -> anyhow::Result<()> {
    let _met = meets(&["FED-17", "FED-51", "FED-53", "FED-54"]);
    let world = World::new().await?;
    let (leaves, stays) = (world.bundle(1, None).x509_authorities, root());
    let mut both = x509_bundle(OTHER, &[&stays]);
    both.x509_authorities.extend(leaves);
    both.sequence = 1;
    let endpoint = world.web_endpoint(&both).await?;
    world.federate(OTHER, &endpoint.url("/"), None, None).await?;
    world.refreshed(OTHER).await?;
    world.site.register("/w", |entry| entry.federates_with = vec![OTHER.to_owned()]).await?;
    let _agent = world.site.start_agent("agent").await?;
    let socket = world.site.agent_socket("agent");
    // What the workload has of other.test, as the authorities behind each other.
    let federated = async || anyhow::Ok(fetch_x509(&socket).await?.federated_bundles);
    let (leaf, _) = world.other.server(vec![uri("spiffe://other.test/w")], |_| {});
    let verifies = |der: &[u8]| -> anyhow::Result<bool> {
        let mut bundle = Bundle::empty(both.trust_domain.clone());
        for one in x509_svid::split_der(der, 10)? {
            bundle.x509_authorities.push(passant_core::X509Authority::from_der(&one)?);
        }
        Ok(x509_svid::verify(vec![leaf.clone()], &bundle, now()).is_ok())
    };
    eventually("the foreign bundle to arrive", SOON, || async {
        let bundles = federated().await?;
        let der = bundles.get("spiffe://other.test").with_context(|| format!("{bundles:?}"))?;
        anyhow::ensure!(bundles.len() == 1 && verifies(der)?, "{bundles:?}");
        Ok(())
    })
    .await?;
    // Nobody believes us for that: the endpoint was asked for its bundle, and told nothing.
    let chain = mint_x509(&world.site, "spiffe://example.org/w", 60).await?;
    let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    assert!(x509_svid::verify(ders(&chain), &*own_bundle(&world.site).await?, now()).is_ok());
    assert!(x509_svid::verify(ders(&chain), &both, now()).is_err());
    assert!(endpoint.heads().iter().all(|head| head.starts_with("GET / HTTP/1.1\r\n")));

    let mut fewer = x509_bundle(OTHER, &[&stays]);
    fewer.sequence = 2;
    endpoint.serve("/", &fewer)?;
    world.refreshed(OTHER).await?;
    eventually("the dropped key to be gone", SOON, || async {
        let bundles = federated().await?;
        let der = bundles.get("spiffe://other.test").context("still federated")?;
        anyhow::ensure!(!verifies(der)?, "still believed");
        Ok(())
    })
    .await?;

    world.end(OTHER).await?;
    let asked = endpoint.asked().len();
    eventually("the foreign bundle to go", SOON, || async {
        let bundles = federated().await?;
        anyhow::ensure!(bundles.is_empty(), "{bundles:?}");
        Ok(())
    })
    .await?;
    assert!(world.statuses().await?.is_empty() && world.held(OTHER).await?.is_none());
    assert_eq!(endpoint.asked().len(), asked, "no more is asked of it");
    Ok(())
}

#[tokio::test]
async fn of_foreign_tokens_only_the_claims_on_the_list_are_told() -> anyhow::Result<()> {
    let _met = meets(&["WAPI-53"]);
    let world = World::new().await?;
    let tokens = Tokens::of(OTHER);
    world.set(&tokens.bundle).await?;
    world.site.register("/w", |entry| entry.federates_with = vec![OTHER.to_owned()]).await?;
    let attestor = "method = \"join_token\"";
    world.site.configure_agent("agent", attestor, "")?;
    let config = world.site.path("agent.toml");
    let text = std::fs::read_to_string(&config)?;
    let listed = "[workload_api]\nallowed_foreign_jwt_claims = [\"team\"]";
    std::fs::write(&config, text.replace("[workload_api]", listed))?;
    let token = world.site.join_token().await?;
    let agent = world.site.spawn_agent("agent", &["--join-token", &token])?;
    world.site.agent_serves("agent", &agent).await?;
    let end = now().secs() + 300;
    let foreign = tokens.with_claims(json!({
        "sub": "spiffe://other.test/w", "exp": end, "iat": now().secs(), "role": "r", "team": "t",
    }));
    let validate = async |svid: &str| {
        let mut api = workload_api(&world.site.agent_socket("agent")).await?;
        let request = ValidateJwtsvidRequest { audience: AUDIENCE.to_owned(), svid: svid.to_owned() };
        anyhow::Ok(api.validate_jwtsvid(with_header(request)).await?.into_inner())
    };
    eventually("the foreign bundle to arrive", SOON, || async {
        let told = validate(&foreign).await?;
        anyhow::ensure!(told.spiffe_id == "spiffe://other.test/w");
        let claims = told.claims.context("claims")?.fields;
        anyhow::ensure!(claims.contains_key("team") && !claims.contains_key("role"), "{claims:?}");
        Ok(())
    })
    .await?;
    let local = mint_jwt(&world.site, "/w", &[AUDIENCE], 60).await?;
    let claims = validate(&local).await?.claims.context("claims")?.fields;
    for claim in decode_jwt(&local)?.1.as_object().context("claims")?.keys() {
        assert!(claims.contains_key(claim), "{claim} of the own trust domain: {claims:?}");
    }
    Ok(())
}
