//! What a client of the socket sees: a real one, over a real socket.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;

use hyper_util::rt::TokioIo;
use passant_attest::peer::Peer;
use passant_core::jwt_svid::{JwtClaims, JwtSvid, sign};
use passant_core::keys::{KeyType, SigningKey};
use passant_core::{
    AuthorizedEntry, Bundle, EntryId, JwtAuthority, Refusal, Secret, Selector, SpiffeId, TrustDomain,
    UnixTime, X509Authority, X509Svid,
};
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use prost_types::value::Kind;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint as ClientEndpoint};
use tonic::{Code, Streaming};
use tower::service_fn;

mod secrets;

use super::*;
use crate::attest::tests::Scripted;
use crate::cache::{Minted, View};
use crate::jwt_cache::JwtIssuer;

const MAX_AGE: Duration = Duration::from_secs(300);

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

fn trust_domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// An X.509 authority of one trust domain.
struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        Self { der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::empty(trust_domain("example.org"));
        bundle.x509_authorities = vec![X509Authority::from_der(&self.der).unwrap()];
        bundle
    }

    fn mint(&self, entry: &Arc<AuthorizedEntry>) -> Minted {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2099, 1, 1);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(entry.spiffe_id.as_str().try_into().unwrap())];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Minted {
            entry: Arc::clone(entry),
            svid: Arc::new(X509Svid::parse(vec![leaf.der().clone()]).unwrap()),
            key: Arc::new(Secret::new(key.serialize_der())),
            renew_at: UnixTime::from_secs(4_000_000_000),
            bundle: Arc::new(self.bundle()),
            vouched: true,
        }
    }
}

/// A JWT authority, which is its own server.
struct JwtServer {
    key: Arc<dyn SigningKey>,
    host: Host,
    is_down: Mutex<bool>,
}

impl JwtServer {
    fn token(&self, subject: &SpiffeId, audience: Vec<String>) -> String {
        let now = self.host.now();
        let claims = JwtClaims {
            sub: subject.clone(),
            aud: audience,
            exp: now.plus(Duration::from_secs(300)),
            iat: now,
            jti: None,
            iss: Some("https://issuer.test".to_owned()),
        };
        sign(&claims, &*self.key, "key-1").unwrap()
    }
}

impl JwtIssuer for JwtServer {
    fn issue(
        &self,
        entry: Arc<AuthorizedEntry>,
        audience: Vec<String>,
        _: Option<Arc<passant_core::Evidence>>,
    ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>> {
        let result = if *self.is_down.lock().unwrap() {
            Err(Refusal::invalid("server refuses"))
        } else {
            Ok(JwtSvid::parse_unverified(&self.token(&entry.spiffe_id, audience)).unwrap())
        };
        Box::pin(async { result })
    }
}

fn entry(entry_id: &str, path: &str, selectors: &str) -> AuthorizedEntry {
    AuthorizedEntry {
        id: EntryId::parse(entry_id).unwrap(),
        spiffe_id: id(path),
        selectors: selectors.split_whitespace().map(|it| Selector::parse(it).unwrap()).collect(),
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        hint: String::new(),
        jwt_svid_include_jti: false,
        disable_x509_svid_prefetch: false,
        options: passant_core::entry::EntryOptions::default(),
        revision: 0,
        created_at: UnixTime::from_secs(0),
    }
}

/// An endpoint that serves what the test puts in its cache, to a client in this process.
struct World {
    dir: TempDir,
    cache: Cache,
    attestor: Arc<Scripted>,
    authority: Authority,
    jwt: Arc<JwtServer>,
    bundle: Bundle,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    entries: BTreeMap<EntryId, Arc<AuthorizedEntry>>,
    stop: CancellationToken,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
    channel: Channel,
    client: SpiffeWorkloadApiClient<Channel>,
    /// What the client talks to.
    service: Service,
}

impl World {
    /// Nothing synced yet; the caller is attested as `t:1`.
    async fn new() -> Self {
        Self::attested_by(Vec::new()).await
    }

    /// The same, where others attest the caller as well.
    async fn attested_by(others: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/api.sock");
        let host = Host::system();
        let key = host.keys.generate(KeyType::EcP256).unwrap();
        let authority = Authority::new();
        let mut bundle = authority.bundle();
        bundle.jwt_authorities = vec![JwtAuthority::new("key-1", key.public_key(), None).unwrap()];
        let jwt = Arc::new(JwtServer { key, host: host.clone(), is_down: Mutex::new(false) });
        let issuer: Arc<dyn JwtIssuer> = Arc::<JwtServer>::clone(&jwt);
        let cache = Cache::new(trust_domain("example.org"), host.clone(), issuer);
        let attestor = Scripted::new("t", Some("t:1"));
        let mut attestors = others;
        attestors.push(Arc::<Scripted>::clone(&attestor));
        let settings = Settings {
            socket: socket.clone(),
            attestors,
            evidence_max_age: MAX_AGE,
            allowed_foreign_claims: BTreeSet::from(["role".to_owned()]),
            boot_id: "boot".to_owned(),
            sds: Some(Sds::default()),
            metrics: Arc::default(),
        };
        let endpoint = Endpoint::bind(settings, cache.clone(), host).unwrap();
        let service = Service { shared: Arc::clone(&endpoint.shared) };
        let stop = CancellationToken::new();
        let served = tokio::spawn(endpoint.serve(stop.clone()));
        let connect = move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        };
        let target = ClientEndpoint::from_static("http://localhost");
        let channel = target.connect_with_connector(service_fn(connect));
        let channel = channel.await.unwrap();
        let client = SpiffeWorkloadApiClient::new(channel.clone());
        Self {
            dir,
            cache,
            attestor,
            authority,
            jwt,
            bundle,
            federated: BTreeMap::new(),
            entries: BTreeMap::new(),
            stop,
            served,
            channel,
            client,
            service,
        }
    }

    /// One whose server has said that these are all entries, all minted.
    async fn with(entries: Vec<AuthorizedEntry>) -> Self {
        let mut world = Self::new().await;
        world.put(entries);
        world
    }

    fn put(&mut self, entries: Vec<AuthorizedEntry>) {
        self.entries = entries.into_iter().map(|entry| (entry.id.clone(), Arc::new(entry))).collect();
        self.sync();
        self.mint();
    }

    fn sync(&self) {
        let view = View {
            entries: self.entries.clone(),
            bundle: Arc::new(self.bundle.clone()),
            federated: self.federated.clone(),
        };
        self.cache.learn(view, self.cache.pushes());
    }

    fn mint(&self) {
        let minted =
            self.entries.values().map(|entry| (entry.id.clone().into(), Ok(self.authority.mint(entry))));
        self.cache.minted(minted.collect());
    }

    /// A stream as it is before anybody reads of it, of a process of this one's user.
    async fn unread_x509(&self) -> Messages<Result<X509svidResponse, Status>> {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut request = Request::new(X509svidRequest {});
        request.extensions_mut().insert(Caller::known_as(0, Peer::of(&near)));
        self.service.fetch_x509svid(request).await.unwrap().into_inner()
    }

    async fn x509(&self) -> Result<Streaming<X509svidResponse>, Status> {
        let mut client = self.client.clone();
        Ok(client.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner())
    }

    async fn jwt(
        &self,
        audience: &[&str],
        spiffe_id: &str,
    ) -> Result<Vec<passant_proto::workload::Jwtsvid>, Status> {
        let audience = audience.iter().map(|it| (*it).to_owned()).collect();
        let request = with_header(JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() });
        Ok(self.client.clone().fetch_jwtsvid(request).await?.into_inner().svids)
    }

    async fn validate(&self, audience: &str, svid: &str) -> Result<ValidateJwtsvidResponse, Status> {
        let message = ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
        Ok(self.client.clone().validate_jwtsvid(with_header(message)).await?.into_inner())
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    stream.message().await.map(|message| message.expect("a stream ends with a status other than OK"))
}

/// Nothing comes within ten looks.
async fn assert_silent<T: std::fmt::Debug>(stream: &mut Streaming<T>) {
    let result = timeout(10 * limits::LOOK_AGAIN, stream.message()).await;
    assert!(result.is_err(), "unexpected: {result:?}");
}

#[track_caller]
fn assert_refused<T>(result: Result<T, Status>, code: Code, message: &str) {
    let Err(status) = result else { panic!("not refused") };
    assert_eq!((status.code(), status.message()), (code, message));
}

fn ids(message: &X509svidResponse) -> Vec<&str> {
    message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_message_holds_every_identity_completely() {
    let mut admin = entry("b", "/admin", "t:1");
    admin.admin = true;
    admin.downstream = true;
    admin.federates_with = BTreeSet::from([trust_domain("other.test")]);
    let mut world = World::new().await;
    let mut foreign = Bundle::empty(trust_domain("other.test"));
    foreign.x509_authorities = vec![X509Authority::from_der(&Authority::new().der).unwrap()];
    world.federated = BTreeMap::from([(trust_domain("other.test"), Arc::new(foreign.clone()))]);
    world.put(vec![entry("c", "/c", "t:1"), admin, entry("a", "/a", "t:1"), entry("d", "/d", "t:1 t:2")]);

    let message = next(&mut world.x509().await.unwrap()).await.unwrap();
    assert_eq!(
        ids(&message),
        ["spiffe://example.org/a", "spiffe://example.org/admin", "spiffe://example.org/c"]
    );
    for served in &message.svids {
        let svid = X509Svid::parse(vec![CertificateDer::from(served.x509_svid.clone())]).unwrap();
        assert_eq!(svid.id().as_str(), served.spiffe_id);
        let key = Host::system().keys.load(&Secret::new(served.x509_svid_key.clone())).unwrap();
        assert_eq!(key.public_key(), svid.public_key());
        assert_eq!(served.bundle, world.authority.der.to_vec());
        svid.verify(&world.bundle, Host::system().now()).unwrap();
    }
    assert_eq!(message.federated_bundles.len(), 1);
    assert_eq!(message.federated_bundles["spiffe://other.test"], foreign.x509_der());
    assert!(message.crl.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_repeated_hint_is_served_once_and_no_identity_is_lost() {
    let hinted = |entry_id, path, hint: &str, created_at| AuthorizedEntry {
        hint: hint.to_owned(),
        created_at: UnixTime::from_secs(created_at),
        ..entry(entry_id, path, "t:1")
    };
    let world = World::with(vec![
        hinted("a", "/young", "internal", 2),
        hinted("b", "/old", "internal", 1),
        hinted("c", "/other", "external", 3),
    ])
    .await;
    let expected = [("/young", ""), ("/old", "internal"), ("/other", "external")]
        .map(|(path, hint)| (id(path).to_string(), hint.to_owned()));
    let message = next(&mut world.x509().await.unwrap()).await.unwrap();
    assert_eq!(message.svids.into_iter().map(|it| (it.spiffe_id, it.hint)).collect::<Vec<_>>(), expected);
    let tokens = world.jwt(&["x"], "").await.unwrap();
    assert_eq!(tokens.into_iter().map(|it| (it.spiffe_id, it.hint)).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn every_method_wants_the_header() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    // No attestor could answer: the header comes before attestation.
    world.attestor.set(None);
    let mut client = world.client.clone();
    let message = "security header missing from request";
    let jwt = JwtsvidRequest::default();
    assert_refused(client.fetch_x509svid(X509svidRequest {}).await, Code::InvalidArgument, message);
    assert_refused(client.fetch_x509_bundles(X509BundlesRequest {}).await, Code::InvalidArgument, message);
    assert_refused(client.fetch_jwtsvid(jwt).await, Code::InvalidArgument, message);
    assert_refused(client.fetch_jwt_bundles(JwtBundlesRequest {}).await, Code::InvalidArgument, message);
    let validate = ValidateJwtsvidRequest::default();
    assert_refused(client.validate_jwtsvid(validate).await, Code::InvalidArgument, message);
    assert_refused(client.fetch_witsvid(WitsvidRequest::default()).await, Code::InvalidArgument, message);
    assert_refused(client.fetch_wit_bundles(WitBundlesRequest {}).await, Code::InvalidArgument, message);
}

#[tokio::test(start_paused = true)]
async fn wit_svids_are_not_offered() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    let mut client = world.client.clone();
    let wit = client.fetch_witsvid(with_header(WitsvidRequest::default())).await;
    assert_eq!(wit.unwrap_err().code(), Code::Unimplemented);
    let wit = client.fetch_wit_bundles(with_header(WitBundlesRequest {})).await;
    assert_eq!(wit.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_an_entry_is_denied_in_the_words_that_clients_know() {
    let world = World::with(vec![entry("a", "/a", "t:2")]).await;
    let mut client = world.client.clone();
    let (code, message) = (Code::PermissionDenied, "no identity issued");
    assert_refused(world.x509().await, code, message);
    assert_refused(client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await, code, message);
    assert_refused(client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await, code, message);
    assert_refused(world.jwt(&["x"], "").await, code, message);
    assert_refused(world.jwt(&["x"], "spiffe://example.org/a").await, code, message);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_know_yet_is_unavailable() {
    let world = World::new().await;
    assert_eq!(world.x509().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(world.jwt(&["x"], "").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(world.validate("x", "token").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_a_little_for_svids_under_way() {
    let mut world = World::new().await;
    let one = Arc::new(entry("a", "/a", "t:1"));
    world.entries = BTreeMap::from([(one.id.clone(), Arc::clone(&one))]);
    world.sync();
    let (stream, ()) = tokio::join!(world.x509(), async {
        sleep(limits::FIRST_ANSWER / 2).await;
        world.mint();
    });
    assert_eq!(ids(&next(&mut stream.unwrap()).await.unwrap()), ["spiffe://example.org/a"]);
}

#[tokio::test(start_paused = true)]
async fn failed_attestation_is_no_verdict() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    world.attestor.set(None);
    let (code, message) = (Code::Unavailable, "workload attestation failed");
    assert_refused(world.x509().await, code, message);
    assert_refused(world.jwt(&["x"], "").await, code, message);
    assert_refused(world.validate("x", "token").await, code, message);
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_hears_of_each_change_once() {
    let mut world = World::with(vec![entry("a", "/a", "t:1"), entry("b", "/b", "t:1")]).await;
    let mut stream = world.x509().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    world.sync();
    assert_silent(&mut stream).await;

    // One SVID is renewed: the message has both.
    let renewed = Arc::clone(&world.entries[&EntryId::parse("b").unwrap()]);
    world.cache.minted(vec![(renewed.id.clone().into(), Ok(world.authority.mint(&renewed)))]);
    let second = next(&mut stream).await.unwrap();
    assert_eq!(ids(&second), ids(&first));
    assert_eq!(second.svids[0], first.svids[0]);
    assert_ne!(second.svids[1].x509_svid, first.svids[1].x509_svid);

    // An X.509 authority is added.
    let added = Authority::new();
    world.bundle.x509_authorities.push(X509Authority::from_der(&added.der).unwrap());
    world.sync();
    let third = next(&mut stream).await.unwrap();
    assert!(third.svids.iter().all(|svid| svid.bundle == world.bundle.x509_der()));

    // A JWT authority is added: nothing of this message.
    let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
    world.bundle.jwt_authorities.push(JwtAuthority::new("key-2", key.public_key(), None).unwrap());
    world.sync();
    assert_silent(&mut stream).await;

    // An entry goes, then the last one.
    world.entries.retain(|entry_id, _| entry_id.as_str() == "a");
    world.sync();
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["spiffe://example.org/a"]);
    world.entries.clear();
    world.sync();
    assert_refused(next(&mut stream).await, Code::PermissionDenied, "no identity issued");
}

#[tokio::test(start_paused = true)]
async fn bundle_streams_hear_of_their_own_kind_only() {
    let mut federated = entry("a", "/a", "t:1");
    federated.federates_with = BTreeSet::from([trust_domain("other.test")]);
    let mut world = World::new().await;
    let mut foreign = Bundle::empty(trust_domain("other.test"));
    foreign.x509_authorities = vec![X509Authority::from_der(&Authority::new().der).unwrap()];
    world.federated = BTreeMap::from([(trust_domain("other.test"), Arc::new(foreign))]);
    world.put(vec![federated]);
    let mut client = world.client.clone();
    let mut x509 = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    let mut jwt = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let first = next(&mut x509).await.unwrap();
    assert_eq!(first.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org", "spiffe://other.test"]);
    assert_eq!(first.bundles["spiffe://example.org"], world.bundle.x509_der());
    let first = next(&mut jwt).await.unwrap();
    let keys: serde_json::Value = serde_json::from_slice(&first.bundles["spiffe://example.org"]).unwrap();
    assert_eq!(keys["keys"][0]["kid"], "key-1");
    assert!(keys.get("spiffe_sequence").is_none());

    let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
    world.bundle.jwt_authorities.push(JwtAuthority::new("key-2", key.public_key(), None).unwrap());
    world.sync();
    let second = next(&mut jwt).await.unwrap();
    assert_ne!(second, first);
    assert_silent(&mut x509).await;
    world.federated.clear();
    world.sync();
    assert_eq!(next(&mut x509).await.unwrap().bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_follows_what_the_workload_is() {
    let world = World::with(vec![entry("a", "/a", "t:1"), entry("b", "/b", "t:2")]).await;
    let mut stream = world.x509().await.unwrap();
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["spiffe://example.org/a"]);
    world.attestor.set(Some("t:1 t:2"));
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["spiffe://example.org/a", "spiffe://example.org/b"]);
    world.attestor.set(Some("t:3"));
    assert_refused(next(&mut stream).await, Code::PermissionDenied, "no identity issued");
}

#[tokio::test(start_paused = true)]
async fn a_failing_attestor_ends_a_stream_only_after_the_maximum_age() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    let mut stream = world.x509().await.unwrap();
    next(&mut stream).await.unwrap();
    let start = tokio::time::Instant::now();
    world.attestor.set(None);
    assert_refused(next(&mut stream).await, Code::Unavailable, "workload attestation failed");
    let lasted = start.elapsed();
    assert!(
        lasted >= MAX_AGE - limits::LOOK_AGAIN && lasted <= MAX_AGE + 2 * limits::LOOK_AGAIN,
        "{lasted:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn entries_for_secret_stores_are_never_served() {
    let mut stored = entry("a", "/stored", "t:1");
    stored.store_svid = true;
    let mut world = World::with(vec![stored.clone()]).await;
    assert_refused(world.x509().await, Code::PermissionDenied, "no identity issued");
    assert_refused(world.jwt(&["x"], "").await, Code::PermissionDenied, "no identity issued");
    world.put(vec![stored, entry("b", "/b", "t:1")]);
    assert_eq!(ids(&next(&mut world.x509().await.unwrap()).await.unwrap()), ["spiffe://example.org/b"]);
    let tokens = world.jwt(&["x"], "").await.unwrap();
    assert_eq!(tokens.iter().map(|it| it.spiffe_id.as_str()).collect::<Vec<_>>(), ["spiffe://example.org/b"]);
}

#[tokio::test(start_paused = true)]
async fn jwt_svids_are_for_every_identity_or_the_one_asked_for() {
    let world =
        World::with(vec![entry("a", "/a", "t:1"), entry("b", "/b", "t:1"), entry("c", "/c", "t:2")]).await;
    let tokens = world.jwt(&["x", "y"], "").await.unwrap();
    let subjects: Vec<_> = tokens.iter().map(|it| it.spiffe_id.as_str()).collect();
    assert_eq!(subjects, ["spiffe://example.org/a", "spiffe://example.org/b"]);
    for token in &tokens {
        let svid = JwtSvid::parse_unverified(&token.svid).unwrap();
        assert_eq!(
            (svid.id().as_str(), svid.audience()),
            (token.spiffe_id.as_str(), &["x".to_owned(), "y".to_owned()][..])
        );
    }
    let tokens = world.jwt(&["x"], "spiffe://example.org/b").await.unwrap();
    assert_eq!(tokens.iter().map(|it| it.spiffe_id.as_str()).collect::<Vec<_>>(), ["spiffe://example.org/b"]);
    let (code, message) = (Code::PermissionDenied, "no identity issued");
    assert_refused(world.jwt(&["x"], "spiffe://example.org/c").await, code, message);
    assert_refused(world.jwt(&["x"], "spiffe://example.org/nobody").await, code, message);
}

#[tokio::test(start_paused = true)]
async fn jwt_requests_of_the_wrong_form_are_refused_before_attestation() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    world.attestor.set(None);
    assert_refused(world.jwt(&[], "").await, Code::InvalidArgument, "audience must be specified");
    assert_refused(world.validate("", "token").await, Code::InvalidArgument, "audience must be specified");
    assert_refused(world.validate("x", "").await, Code::InvalidArgument, "svid must be specified");
    let status = world.jwt(&["x"], "spiffe://example.org/a/").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("invalid requested SPIFFE ID: "), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_is_no_denial() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    *world.jwt.is_down.lock().unwrap() = true;
    assert_ne!(world.jwt(&["x"], "").await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn valid_jwt_svids_are_told_completely_and_others_refused() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    let token = world.jwt.token(&id("/somebody"), vec!["x".to_owned()]);
    let answer = world.validate("x", &token).await.unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/somebody");
    let claims = answer.claims.unwrap().fields;
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["aud", "exp", "iat", "iss", "sub"]);
    assert!(matches!(claims["aud"].kind, Some(Kind::ListValue(_))));
    assert_eq!(world.validate("y", &token).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(world.validate("x", "a.b.c").await.unwrap_err().code(), Code::InvalidArgument);
    let mut cut = token.clone();
    cut.truncate(cut.len() - 4);
    assert_eq!(world.validate("x", &cut).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn foreign_tokens_are_believed_by_their_own_bundle_and_only_in_part() {
    let host = Host::system();
    let server = JwtServer {
        key: host.keys.generate(KeyType::EcP256).unwrap(),
        host: host.clone(),
        is_down: Mutex::new(false),
    };
    let subject = SpiffeId::parse("spiffe://other.test/w").unwrap();
    let token = server.token(&subject, vec!["x".to_owned()]);
    let mut foreign = Bundle::empty(trust_domain("other.test"));
    foreign.jwt_authorities = vec![JwtAuthority::new("key-1", server.key.public_key(), None).unwrap()];
    let mut world = World::new().await;
    world.federated = BTreeMap::from([(trust_domain("other.test"), Arc::new(foreign))]);
    // The bundle is held, but not for this workload.
    let mut elsewhere = entry("b", "/b", "t:2");
    elsewhere.federates_with = BTreeSet::from([trust_domain("other.test")]);
    world.put(vec![entry("a", "/a", "t:1"), elsewhere]);
    assert_eq!(world.validate("x", &token).await.unwrap_err().code(), Code::InvalidArgument);

    let mut federated = entry("a", "/a", "t:1");
    federated.federates_with = BTreeSet::from([trust_domain("other.test")]);
    world.put(vec![federated]);
    let answer = world.validate("x", &token).await.unwrap();
    assert_eq!(answer.claims.unwrap().fields.keys().collect::<Vec<_>>(), ["aud", "exp", "sub"]);
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_streams_and_removes_the_socket() {
    let world = World::with(vec![entry("a", "/a", "t:1")]).await;
    let mut stream = world.x509().await.unwrap();
    next(&mut stream).await.unwrap();
    world.stop.cancel();
    assert_refused(next(&mut stream).await, Code::Unavailable, "agent is stopping");
    drop((stream, world.client, world.channel));
    world.served.await.unwrap().unwrap();
    assert!(!world.dir.path().join("run/api.sock").exists());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_is_looked_at_again_all_the_same() {
    let mut world = World::with(vec![entry("a", "/a", "t:1")]).await;
    let stream = world.unread_x509().await;
    for path in ["/b", "/c", "/d"] {
        world.put(vec![entry("a", path, "t:1")]);
        sleep(2 * limits::LOOK_AGAIN).await;
        assert_eq!(world.cache.served().streams, 1);
    }
    world.attestor.set(Some("t:2"));
    sleep(2 * limits::LOOK_AGAIN).await;
    assert_eq!(world.cache.served().streams, 0, "nobody has the entry any more");
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_yet_read_is_withdrawn_too() {
    let mut world = World::with(vec![entry("a", "/a", "t:1")]).await;
    let mut stream = world.unread_x509().await;
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(ids(&first), ["spiffe://example.org/a"]);
    world.put(vec![entry("a", "/b", "t:1")]);
    sleep(limits::LOOK_AGAIN).await;
    world.put(Vec::new());
    sleep(limits::LOOK_AGAIN).await;
    assert_refused(stream.next().await.unwrap(), Code::PermissionDenied, "no identity issued");
    assert!(stream.next().await.is_none());
}
