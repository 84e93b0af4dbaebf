//! What does an Envoy see that asks for secrets?

use passant_core::pem_text::section;
use passant_proto::convert::sds::SECRET_URL;
use passant_proto::discovery::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use passant_proto::envoy_core::data_source::Specifier;
use passant_proto::envoy_core::node::UserAgentVersionType;
use passant_proto::envoy_core::{BuildVersion, DataSource, Node};
use passant_proto::envoy_tls::secret::Type;
use passant_proto::envoy_tls::{Secret as EnvoySecret, SpiffeCertValidatorConfig};
use passant_proto::envoy_type::SemanticVersion;
use passant_proto::rpc;
use passant_proto::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use prost::Message;

use super::*;

const OWN: &str = "spiffe://example.org";
const OTHER: &str = "spiffe://other.test";
const A: &str = "spiffe://example.org/a";
const B: &str = "spiffe://example.org/b";

/// A world in which the caller has `/a` and `/b`, `/b` federates with other.test, and `/c` is somebody else's.
async fn federated() -> World {
    let mut world = World::new().await;
    let mut foreign = Bundle::empty(trust_domain("other.test"));
    foreign.x509_authorities = vec![X509Authority::from_der(&Authority::new().der).unwrap()];
    world.federated = BTreeMap::from([(trust_domain("other.test"), Arc::new(foreign))]);
    let mut b = entry("b", "/b", "t:1");
    b.federates_with = BTreeSet::from([trust_domain("other.test")]);
    world.put(vec![entry("a", "/a", "t:1"), b, entry("c", "/c", "t:2")]);
    world
}

fn ask(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        type_url: SECRET_URL.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// An Envoy of the release 1.`minor`, with `choice` in its metadata.
fn node(minor: u32, choice: Option<bool>) -> Node {
    let version = Some(SemanticVersion { major_number: 1, minor_number: minor, patch: 0 });
    let fields = choice.map(|choice| {
        let value = prost_types::Value { kind: Some(Kind::BoolValue(choice)) };
        ("disable_spiffe_cert_validation".to_owned(), value)
    });
    Node {
        metadata: Some(prost_types::Struct { fields: fields.into_iter().collect() }),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version })),
        ..Node::default()
    }
}

/// A client's end of a stream.
struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
    names: Vec<String>,
}

impl World {
    fn secrets(&self) -> SecretDiscoveryServiceClient<Channel> {
        SecretDiscoveryServiceClient::new(self.channel.clone())
    }

    async fn fetch(&self, request: DiscoveryRequest) -> Result<DiscoveryResponse, Status> {
        Ok(self.secrets().fetch_secrets(request).await?.into_inner())
    }

    /// A stream on which `first` was asked.
    async fn stream(&self, first: DiscoveryRequest) -> Result<Stream, Status> {
        let (requests, asked) = mpsc::channel(8);
        let names = first.resource_names.clone();
        requests.send(first).await.unwrap();
        let answers = self.secrets().stream_secrets(ReceiverStream::new(asked)).await?.into_inner();
        Ok(Stream { requests, answers, names })
    }

    fn renew(&self, entry_id: &str) {
        let entry = Arc::clone(&self.entries[&EntryId::parse(entry_id).unwrap()]);
        self.cache.minted(vec![(entry.id.clone().into(), Ok(self.authority.mint(&entry)))]);
    }

    fn add_authority(&mut self) {
        self.bundle.x509_authorities.push(X509Authority::from_der(&Authority::new().der).unwrap());
        self.sync();
    }
}

impl Stream {
    async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        next(&mut self.answers).await
    }

    async fn send(&self, request: DiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// Takes `answer`.
    async fn accept(&self, answer: &DiscoveryResponse) {
        self.send(self.reply(answer)).await;
    }

    /// Takes `answer` not, and goes on with version `held`.
    async fn reject(&self, answer: &DiscoveryResponse, held: &str) {
        let error = rpc::Status { code: 13, message: "cannot be loaded".to_owned(), details: Vec::new() };
        let version_info = held.to_owned();
        self.send(DiscoveryRequest { version_info, error_detail: Some(error), ..self.reply(answer) }).await;
    }

    fn reply(&self, answer: &DiscoveryResponse) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: answer.version_info.clone(),
            response_nonce: answer.nonce.clone(),
            resource_names: self.names.clone(),
            type_url: SECRET_URL.to_owned(),
            ..DiscoveryRequest::default()
        }
    }
}

/// What a resource holds, and its name.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// PEM of chain and key.
    Svid(String, String, String),
    /// PEM of the authorities.
    Chain(String, String),
    /// For each trust domain.
    Spiffe(String, Vec<(String, String)>),
}

fn told(answer: &DiscoveryResponse) -> Vec<Told> {
    assert_eq!(answer.type_url, SECRET_URL);
    answer.resources.iter().map(resource).collect()
}

fn resource(any: &prost_types::Any) -> Told {
    assert_eq!(any.type_url, SECRET_URL);
    let EnvoySecret { name, r#type } = EnvoySecret::decode(&*any.value).unwrap();
    match r#type.unwrap() {
        Type::TlsCertificate(it) => Told::Svid(name, text(it.certificate_chain), text(it.private_key)),
        Type::ValidationContext(it) => match it.custom_validator_config {
            None => Told::Chain(name, text(it.trusted_ca)),
            Some(config) => {
                assert_eq!((it.trusted_ca, &*config.name), (None, "envoy.tls.cert_validator.spiffe"));
                let config = config.typed_config.unwrap();
                assert_eq!(
                    config.type_url,
                    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
                );
                let config = SpiffeCertValidatorConfig::decode(&*config.value).unwrap();
                let each = config.trust_domains.into_iter().map(|it| (it.name, text(it.trust_bundle)));
                Told::Spiffe(name, each.collect())
            }
        },
    }
}

fn text(source: Option<DataSource>) -> String {
    let source = source.unwrap().specifier.unwrap();
    let Specifier::InlineBytes(bytes) = source else { panic!("{source:?}") };
    String::from_utf8(bytes).unwrap()
}

/// What `world` holds for `entry_id`, called `name`.
fn svid(world: &World, entry_id: &str, name: &str) -> Told {
    let mut held = world.cache.subscribe(&[Selector::parse("t:1").unwrap()].into_iter().collect());
    let crate::cache::Update::Ready(held) = held.current() else { panic!("nothing is held") };
    let identity = held.svids.iter().find(|identity| identity.entry.id.as_str() == entry_id).unwrap();
    let chain = identity.svid.chain().iter().map(|der| section("CERTIFICATE", der)).collect();
    Told::Svid(name.to_owned(), chain, section("PRIVATE KEY", identity.key.expose()))
}

fn own(world: &World, name: &str) -> Told {
    Told::Spiffe(name.to_owned(), vec![("example.org".to_owned(), world.bundle.to_pem())])
}

fn other(world: &World, name: &str) -> Told {
    let bundle = &world.federated[&trust_domain("other.test")];
    Told::Spiffe(name.to_owned(), vec![("other.test".to_owned(), bundle.to_pem())])
}

fn both(world: &World, name: &str) -> Told {
    let each = [own(world, name), other(world, name)].into_iter().flat_map(|told| match told {
        Told::Spiffe(_, each) => each,
        Told::Svid(..) | Told::Chain(..) => unreachable!("they are bundles"),
    });
    Told::Spiffe(name.to_owned(), each.collect())
}

#[tokio::test(start_paused = true)]
async fn secrets_go_by_spiffe_ids_and_by_the_words_that_spire_knows() {
    let world = federated().await;
    let check = async |names: &[&str], expected: Vec<Told>| {
        let answer = world.fetch(ask(names)).await.unwrap();
        assert_eq!(told(&answer), expected, "{names:?}");
        assert_eq!((answer.version_info, answer.nonce), (String::new(), String::new()));
    };
    check(&["default"], vec![svid(&world, "a", "default")]).await;
    check(&[A], vec![svid(&world, "a", A)]).await;
    check(&[B], vec![svid(&world, "b", B)]).await;
    check(&["ROOTCA"], vec![own(&world, "ROOTCA")]).await;
    check(&[OWN], vec![own(&world, OWN)]).await;
    check(&[OTHER], vec![other(&world, OTHER)]).await;
    check(&["ALL"], vec![both(&world, "ALL")]).await;
    // Together, too, which SPIRE refuses.
    check(&["ROOTCA", OWN, B], vec![own(&world, "ROOTCA"), own(&world, OWN), svid(&world, "b", B)]).await;
    let all = vec![own(&world, OWN), other(&world, OTHER), svid(&world, "a", A), svid(&world, "b", B)];
    check(&[], all).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_the_callers_is_refused_whether_or_not_it_exists() {
    let world = federated().await;
    for (names, told) in [
        (&["spiffe://example.org/c"][..], r#"["spiffe://example.org/c"]"#),
        (&["spiffe://example.org/nobody"], r#"["spiffe://example.org/nobody"]"#),
        (&["spiffe://else.test"], r#"["spiffe://else.test"]"#),
        (&["b", A, "file-root:/etc/ca.pem"], r#"["b" "file-root:/etc/ca.pem"]"#),
        (&["rootca"], r#"["rootca"]"#),
    ] {
        let message = format!("workload is not authorized for the requested identities {told}");
        assert_refused(world.fetch(ask(names)).await, Code::InvalidArgument, &message);
        let mut stream = world.stream(ask(names)).await.unwrap();
        assert_refused(stream.next().await, Code::InvalidArgument, &message);
    }
    let many: Vec<String> = (0..limits::SECRET_NAMES + 1).map(|nth| nth.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(world.fetch(ask(&many)).await.unwrap_err().code(), Code::InvalidArgument);
    let mut stream = world.stream(ask(&many)).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code(), Code::InvalidArgument);
    let delta = ReceiverStream::new(mpsc::channel::<DeltaDiscoveryRequest>(1).1);
    assert_eq!(world.secrets().delta_secrets(delta).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_identity_has_no_secrets() {
    let world = World::with(vec![entry("a", "/a", "t:2")]).await;
    let (code, message) = (Code::PermissionDenied, "no identity issued");
    assert_refused(world.fetch(ask(&["ROOTCA"])).await, code, message);
    assert_refused(world.stream(ask(&["ROOTCA"])).await, code, message);
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    world.attestor.set(None);
    let (code, message) = (Code::Unavailable, "workload attestation failed");
    assert_refused(world.fetch(ask(&["ROOTCA"])).await, code, message);
    assert_refused(world.stream(ask(&["ROOTCA"])).await, code, message);
    let early = World::new().await;
    assert_eq!(early.fetch(ask(&["default"])).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(early.stream(ask(&["default"])).await.map(drop).unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_stream_hears_at_once_of_what_it_asked_for_and_of_nothing_else() {
    let mut world = federated().await;
    let mut svids = world.stream(ask(&[A])).await.unwrap();
    let mut bundles = world.stream(ask(&["ROOTCA"])).await.unwrap();
    let first = svids.next().await.unwrap();
    assert_eq!(told(&first), [svid(&world, "a", A)]);
    svids.accept(&first).await;
    let bundle = bundles.next().await.unwrap();
    bundles.accept(&bundle).await;
    assert_silent(&mut svids.answers).await;

    world.renew("a");
    let second = svids.next().await.unwrap();
    assert_eq!(told(&second), [svid(&world, "a", A)]);
    assert_ne!(told(&second), told(&first));
    assert_ne!((&second.version_info, &second.nonce), (&first.version_info, &first.nonce));
    svids.accept(&second).await;
    world.renew("b");
    assert_silent(&mut svids.answers).await;
    assert_silent(&mut bundles.answers).await;

    world.add_authority();
    let grown = bundles.next().await.unwrap();
    assert_eq!(told(&grown), [own(&world, "ROOTCA")]);
    assert_ne!(told(&grown), told(&bundle));
    // A JWT authority is no news to an Envoy.
    bundles.accept(&grown).await;
    world.bundle.jwt_authorities.clear();
    world.sync();
    assert_silent(&mut bundles.answers).await;
    assert_silent(&mut svids.answers).await;

    world.put(vec![entry("b", "/b", "t:1")]);
    let message = format!("workload is not authorized for the requested identities [{A:?}]");
    assert_refused(svids.next().await, Code::InvalidArgument, &message);
    world.put(Vec::new());
    assert_refused(bundles.next().await, Code::PermissionDenied, "no identity issued");
}

#[tokio::test(start_paused = true)]
async fn what_an_envoy_rejected_it_is_not_sent_again_until_it_changes() {
    let world = federated().await;
    let mut stream = world.stream(ask(&["default"])).await.unwrap();
    let first = stream.next().await.unwrap();
    stream.accept(&first).await;
    world.renew("a");
    let second = stream.next().await.unwrap();
    for _ in 0..3 {
        stream.reject(&second, &first.version_info).await;
    }
    assert_silent(&mut stream.answers).await;
    assert_eq!(world.service.shared.metrics.rejected_secrets.count(), 3);
    // One that only stays with an older version has rejected it, too.
    stream.send(DiscoveryRequest { version_info: "0".to_owned(), ..stream.reply(&second) }).await;
    assert_silent(&mut stream.answers).await;
    assert_eq!(world.service.shared.metrics.rejected_secrets.count(), 4);
    world.renew("a");
    let third = stream.next().await.unwrap();
    assert_eq!(told(&third), [svid(&world, "a", "default")]);
    // It may ask for something else in the same breath.
    stream.names = vec!["ROOTCA".to_owned()];
    stream.reject(&third, &first.version_info).await;
    assert_eq!(told(&stream.next().await.unwrap()), [own(&world, "ROOTCA")]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_follows_an_older_answer_is_passed_over() {
    let world = federated().await;
    // As after a restart of the agent.
    let again = DiscoveryRequest {
        version_info: "17".to_owned(),
        response_nonce: "0badcafe".to_owned(),
        ..ask(&["default"])
    };
    let mut stream = world.stream(again).await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!((&*first.version_info, first.nonce.len()), ("1", 8));
    world.renew("a");
    let second = stream.next().await.unwrap();
    let stale = DiscoveryRequest { resource_names: vec!["nobody's".to_owned()], ..stream.reply(&first) };
    stream.send(stale).await;
    assert_silent(&mut stream.answers).await;
    assert_eq!(world.service.shared.metrics.rejected_secrets.count(), 0);
    stream.accept(&second).await;
    // Other names; and the first ones again, of which the client has let go meanwhile.
    let mut last = second;
    for names in [&["ROOTCA"][..], &["default"], &["default", "ROOTCA"]] {
        stream.names = names.iter().map(|&name| name.to_owned()).collect();
        stream.accept(&last).await;
        last = stream.next().await.unwrap();
        assert_eq!(last.resources.len(), names.len());
    }
    // The same names in another order are no others.
    stream.names.reverse();
    stream.accept(&last).await;
    assert_silent(&mut stream.answers).await;
}

#[tokio::test(start_paused = true)]
async fn an_envoy_that_does_not_know_the_spiffe_validator_or_want_it_gets_a_chain_to_check() {
    let mut world = federated().await;
    let with = |node: Node, names: &[&str]| DiscoveryRequest { node: Some(node), ..ask(names) };
    let chain = |world: &World, name: &str| [Told::Chain(name.to_owned(), world.bundle.to_pem())];
    for node in [node(17, None), node(17, Some(false)), node(40, Some(true))] {
        let answer = world.fetch(with(node.clone(), &["ROOTCA"])).await.unwrap();
        assert_eq!(told(&answer), chain(&world, "ROOTCA"), "{node:?}");
        let refused = world.fetch(with(node, &["ALL"])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("disable_spiffe_cert_validation"), "{refused}");
    }
    for node in [node(18, None), node(40, Some(false))] {
        let answer = world.fetch(with(node, &["ROOTCA"])).await.unwrap();
        assert_eq!(told(&answer), [own(&world, "ROOTCA")]);
    }
    // What the first request says holds for those that say nothing.
    let mut stream = world.stream(with(node(40, Some(true)), &["ROOTCA"])).await.unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!(told(&first), chain(&world, "ROOTCA"));
    stream.accept(&first).await;
    world.add_authority();
    let second = stream.next().await.unwrap();
    assert_eq!(told(&second), chain(&world, "ROOTCA"));
    // And is replaced by what a later one says.
    stream.send(DiscoveryRequest { node: Some(node(40, None)), ..stream.reply(&second) }).await;
    assert_eq!(told(&stream.next().await.unwrap()), [own(&world, "ROOTCA")]);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_is_yet_to_come_is_waited_for() {
    let mut world = federated().await;
    let foreign = std::mem::take(&mut world.federated);
    world.sync();
    let early = world.fetch(ask(&[OTHER])).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable, "{early}");
    let mut stream = world.stream(ask(&[OTHER])).await.unwrap();
    assert_silent(&mut stream.answers).await;
    world.federated = foreign;
    world.sync();
    assert_eq!(told(&stream.next().await.unwrap()), [other(&world, OTHER)]);
    // One without X.509 authorities would be rejected, and those of others with it.
    world.federated =
        BTreeMap::from([(trust_domain("other.test"), Arc::new(Bundle::empty(trust_domain("other.test"))))]);
    world.sync();
    assert_eq!(told(&world.fetch(ask(&["ALL"])).await.unwrap()), [own(&world, "ALL")]);
    assert_silent(&mut stream.answers).await;
}

#[tokio::test(start_paused = true)]
async fn an_attestor_that_fails_makes_no_name_unknown() {
    let mut world = World::attested_by(vec![Scripted::new("u", None)]).await;
    world.put(vec![entry("a", "/a", "t:1")]);
    assert_eq!(told(&world.fetch(ask(&[A])).await.unwrap()), [svid(&world, "a", A)]);
    let (code, message) = (Code::Unavailable, "workload attestation failed");
    assert_refused(world.fetch(ask(&[B])).await, code, message);
    assert_refused(world.stream(ask(&[B])).await.unwrap().next().await, code, message);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_once_and_says_so_is_answered_and_left() {
    let world = federated().await;
    let mut stream = world.stream(ask(&["default"])).await.unwrap();
    drop(stream.requests);
    assert_eq!(told(&next(&mut stream.answers).await.unwrap()), [svid(&world, "a", "default")]);
    assert!(stream.answers.message().await.unwrap().is_none());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.cache.served().streams, 0);
}

#[tokio::test(start_paused = true)]
async fn an_envoy_that_says_all_of_itself_each_time_does_not_use_up_what_its_user_may_hold() {
    let world = federated().await;
    // As long as Envoy's list of its extensions, and a little more than is sent at once.
    let node = Node { id: "n".repeat(100_000), ..node(40, None) };
    let mut stream =
        world.stream(DiscoveryRequest { node: Some(node.clone()), ..ask(&["default"]) }).await.unwrap();
    let answer = stream.next().await.unwrap();
    for _ in 0..2 * limits::REQUEST_BYTES_PER_USER / 100_000 {
        stream.send(DiscoveryRequest { node: Some(node.clone()), ..stream.reply(&answer) }).await;
    }
    world.renew("a");
    assert_eq!(told(&stream.next().await.unwrap()), [svid(&world, "a", "default")]);
    let long = Node { id: "n".repeat(limits::SECRET_REQUEST_BYTES), ..Node::default() };
    stream.send(DiscoveryRequest { node: Some(long), ..ask(&["default"]) }).await;
    assert_eq!(stream.next().await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_streams_of_secrets_too() {
    let world = federated().await;
    let mut stream = world.stream(ask(&["default"])).await.unwrap();
    stream.next().await.unwrap();
    world.stop.cancel();
    assert_refused(stream.next().await, Code::Unavailable, "agent is stopping");
}
