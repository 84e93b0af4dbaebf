//! What would a server answer? One that speaks SPIRE's services over real TLS on in-memory streams, whose every answer a
//! test can turn.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use passant_core::csr::Csr;
use passant_core::x509_svid::X509Svid;
use passant_core::{AgentFault, Host, Refusal, SpiffeId, UnixTime};
use passant_proto::agent::agent_server::{Agent, AgentServer};
use passant_proto::bundle::bundle_server::{Bundle, BundleServer};
use passant_proto::entry::entry_server::{Entry, EntryServer};
use passant_proto::svid::svid_server::{Svid, SvidServer};
use passant_proto::sync::sync_server::SyncServer;
use passant_proto::{agent, bundle, convert, entry, status, svid, types};
use rustls::DistinguishedName;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::ca::Ca;
use super::pushing::Pushing;
use super::trust_domain;
use crate::config::ServerAddress;
use crate::connect::{Dial, Wire};

/// Everything a test can turn, and everything it may want to look at afterwards.
pub(crate) struct World {
    pub(crate) ca: Ca,
    pub(crate) bundle: passant_core::bundle::Bundle,
    pub(crate) entries: BTreeMap<String, types::Entry>,
    pub(crate) federated: BTreeMap<String, passant_core::bundle::Bundle>,
    pub(crate) up: bool,
    pub(crate) offers_sync: bool,
    pub(crate) mixes_phases: bool,
    pub(crate) page: usize,
    pub(crate) svid_ttl: i64,
    pub(crate) node_ttl: i64,
    pub(crate) server_id: SpiffeId,
    /// Join tokens with the hash of the key that has spent them.
    pub(crate) tokens: BTreeMap<String, Option<[u8; 32]>>,
    /// The active and the pending serial of the one node; none when it is not attested.
    pub(crate) active: Option<String>,
    pub(crate) pending: Option<String>,
    pub(crate) banned: bool,
    pub(crate) reattestable: bool,
    /// Attests, and then keeps the answer to itself.
    pub(crate) loses_answers: bool,
    pub(crate) refused_entries: BTreeSet<String>,
    pub(crate) largest_batch: usize,
    /// Refuses these calls, by name, and says when to come again.
    pub(crate) overloaded: BTreeMap<&'static str, Duration>,
    pub(crate) calls: BTreeMap<&'static str, u32>,
    pub(crate) asked_ids: Vec<Vec<String>>,
    pub(crate) batches: Vec<usize>,
    pub(crate) bundle_serials: Vec<u64>,
    /// Addresses at which nobody answers, and those at which somebody did.
    pub(crate) dead: BTreeSet<String>,
    pub(crate) dialled: Vec<String>,
    pub(crate) push: Pushing,
}

/// The server; clones share.
#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    host: Host,
    accepted: mpsc::Sender<io::Result<Peer>>,
}

/// A TLS connection with the client's leaf.
struct Peer {
    stream: TlsStream<DuplexStream>,
    leaf: Option<CertificateDer<'static>>,
}

/// The client's leaf, as handlers find it.
#[derive(Clone)]
struct Leaf(Option<CertificateDer<'static>>);

impl World {
    /// What becomes of one request for an X509-SVID.
    pub(super) fn mint(
        &self,
        entry_id: &str,
        csr: &[u8],
        now: i64,
    ) -> (types::Status, Option<types::X509svid>) {
        let Some(entry) = self.entries.get(entry_id) else {
            return (status::to_item(&Refusal::not_found("entry not found or not authorized")), None);
        };
        if self.refused_entries.contains(&entry.id) {
            return (status::to_item(&Refusal::precondition("the entry has ended")), None);
        }
        let csr = Csr::parse(csr).unwrap();
        let id = convert::id::from_wire(entry.spiffe_id.as_ref()).unwrap();
        assert_eq!(csr.spiffe_ids(), [id.to_string()]);
        let svid = self.ca.svid(&id, csr.public_key(), now - 10, now + self.svid_ttl);
        (status::ok(), Some(convert::svid::x509_to_wire(&svid, "")))
    }

    /// What becomes of a request for a JWT-SVID.
    pub(super) fn mint_jwt(
        &self,
        entry_id: &str,
        audience: Vec<String>,
        now: UnixTime,
    ) -> Result<types::Jwtsvid, Status> {
        let entry = self.entries.get(entry_id).ok_or_else(|| Status::not_found("entry not found"))?;
        let id = convert::id::from_wire(entry.spiffe_id.as_ref()).unwrap();
        let expires_at = UnixTime::from_secs(now.secs() + 300);
        Ok(types::Jwtsvid {
            token: self.ca.jwt(&id, audience, now, expires_at),
            id: entry.spiffe_id.clone(),
            expires_at: expires_at.secs(),
            issued_at: now.secs(),
            hint: String::new(),
        })
    }
}

impl Fake {
    /// Serves from a task of the present runtime.
    pub(crate) fn start(host: &Host) -> Self {
        let ca = Ca::new("one");
        let world = World {
            bundle: ca.bundle(),
            ca,
            entries: BTreeMap::new(),
            federated: BTreeMap::new(),
            up: true,
            offers_sync: true,
            mixes_phases: false,
            page: 500,
            svid_ttl: 3600,
            node_ttl: 3600,
            server_id: trust_domain().server_id(),
            tokens: BTreeMap::from([("token-1".to_owned(), None)]),
            active: None,
            pending: None,
            banned: false,
            reattestable: false,
            loses_answers: false,
            refused_entries: BTreeSet::new(),
            largest_batch: 500,
            overloaded: BTreeMap::new(),
            calls: BTreeMap::new(),
            asked_ids: Vec::new(),
            batches: Vec::new(),
            bundle_serials: Vec::new(),
            dead: BTreeSet::new(),
            dialled: Vec::new(),
            push: Pushing::default(),
        };
        let (accepted, incoming) = mpsc::channel(16);
        let fake = Self { world: Arc::new(Mutex::new(world)), host: host.clone(), accepted };
        let serving = tonic::transport::Server::builder()
            .add_service(AgentServer::new(fake.clone()))
            .add_service(BundleServer::new(fake.clone()))
            .add_service(EntryServer::new(fake.clone()))
            .add_service(SvidServer::new(fake.clone()))
            .add_service(SyncServer::new(fake.clone()))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(serving);
        fake
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Registers entries for `/NAME` with `unix:uid:UID`.
    pub(crate) fn register(&self, entries: &[(&str, u32)]) {
        for (name, uid) in entries {
            self.world().entries.insert((*name).to_owned(), wire_entry(name, *uid));
        }
    }

    pub(crate) fn calls(&self, name: &str) -> u32 {
        self.world().calls.get(name).copied().unwrap_or(0)
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    fn called(&self, name: &'static str) -> Result<MutexGuard<'_, World>, Status> {
        let mut world = self.world();
        *world.calls.entry(name).or_default() += 1;
        if let Some(wait) = world.overloaded.get(name) {
            return Err(status::to_status(&Refusal::exhausted("too many").retry_in(*wait)));
        }
        if world.up { Ok(world) } else { Err(Status::unavailable("the fake is down")) }
    }

    /// The same for calls that need an attested node.
    pub(super) fn called_by_node<T>(
        &self,
        name: &'static str,
        request: &Request<T>,
    ) -> Result<MutexGuard<'_, World>, Status> {
        let leaf = request.extensions().get::<Leaf>().and_then(|leaf| leaf.0.clone());
        let leaf = leaf.ok_or_else(|| Status::permission_denied("no certificate"))?;
        let node = X509Svid::parse(vec![leaf]).unwrap();
        let mut world = self.called(name)?;
        let serial = node.serial().to_string();
        let fault = if world.banned {
            Some(AgentFault::Banned)
        } else if node.not_after() < self.host.now() {
            Some(AgentFault::Expired)
        } else if world.active.is_none() {
            Some(AgentFault::NotAttested)
        } else if world.pending.as_ref() == Some(&serial) {
            world.active = world.pending.take();
            None
        } else if world.active.as_ref() != Some(&serial) {
            Some(AgentFault::NotActive)
        } else {
            None
        };
        match fault {
            Some(fault) => {
                Err(status::to_status(&Refusal::denied("agent is not accepted").with_agent_fault(fault)))
            }
            None => Ok(world),
        }
    }

    async fn accept(self, stream: DuplexStream) {
        let acceptor = TlsAcceptor::from(Arc::new(self.tls()));
        if let Ok(stream) = acceptor.accept(stream).await {
            let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let leaf = leaf.map(|leaf| leaf.clone().into_owned());
            drop(self.accepted.send(Ok(Peer { stream, leaf })).await);
        }
    }

    fn tls(&self) -> rustls::ServerConfig {
        let now = self.host.now().secs();
        let world = self.world();
        let (svid, key) = world.ca.svid_and_key(&world.server_id, now - 10, now + 3600);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().expose().clone()));
        let provider = Arc::new(ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anyone(provider)))
            .with_single_cert(svid.chain().to_vec(), key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

impl Dial for Fake {
    fn dial(
        &self,
        address: &ServerAddress,
    ) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>> {
        let (fake, address) = (self.clone(), address.to_string());
        Box::pin(async move {
            {
                let mut world = fake.world();
                if !world.up || world.dead.contains(&address) {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                }
                world.dialled.push(address);
            }
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(fake.accept(theirs));
            Ok(Box::new(ours) as Box<dyn Wire>)
        })
    }
}

pub(crate) fn wire_entry(name: &str, uid: u32) -> types::Entry {
    types::Entry {
        id: name.to_owned(),
        spiffe_id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: format!("/{name}") }),
        selectors: vec![types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") }],
        created_at: super::NOW - 100,
        ..types::Entry::default()
    }
}

/// A service of the fake: the calls with a body, and those that an agent never makes.
macro_rules! service {
    ($service:path { $($body:tt)* } $($call:ident: $request:ty => $response:ty,)*) => {
        #[tonic::async_trait]
        impl $service for Fake {
            $($body)*
            $(
                async fn $call(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                    Err(Status::unimplemented("an agent does not call this"))
                }
            )*
        }
    };
}

service! { Agent {
    type AttestAgentStream = ReceiverStream<Result<agent::AttestAgentResponse, Status>>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let mut steps = request.into_inner();
        let Some(agent::attest_agent_request::Step::Params(params)) = steps.message().await?.unwrap().step else {
            return Err(Status::invalid_argument("no params"));
        };
        let token = String::from_utf8(params.data.unwrap().payload).unwrap();
        let csr = Csr::parse(&params.params.unwrap().csr).unwrap();
        let now = self.host.now().secs();
        let mut world = self.called("AttestAgent")?;
        if world.banned {
            return Err(Status::permission_denied("failed to attest: agent is banned"));
        }
        match world.tokens.get_mut(&token) {
            Some(spent) if spent.is_none_or(|key| key == csr.key_hash()) => *spent = Some(csr.key_hash()),
            Some(_) | None => return Err(Status::invalid_argument("join token does not exist or is spent")),
        }
        let id = trust_domain().agent_id("join_token", &token).unwrap();
        let svid = world.ca.svid(&id, csr.public_key(), now - 10, now + world.node_ttl);
        world.active = Some(svid.serial().to_string());
        world.pending = None;
        if world.loses_answers {
            return Err(Status::unavailable("the answer was lost"));
        }
        let result = agent::attest_agent_response::Result {
            svid: Some(convert::svid::x509_to_wire(&svid, "")),
            reattestable: world.reattestable,
        };
        let (answers, stream) = mpsc::channel(1);
        let step = Some(agent::attest_agent_response::Step::Result(result));
        answers.try_send(Ok(agent::AttestAgentResponse { step })).unwrap();
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew_agent(
        &self,
        request: Request<agent::RenewAgentRequest>,
    ) -> Result<Response<agent::RenewAgentResponse>, Status> {
        let now = self.host.now().secs();
        let mut world = self.called_by_node("RenewAgent", &request)?;
        let csr = Csr::parse(&request.into_inner().params.unwrap().csr).unwrap();
        let id = trust_domain().agent_id("join_token", "token-1").unwrap();
        let svid = world.ca.svid(&id, csr.public_key(), now - 10, now + world.node_ttl);
        world.pending = Some(svid.serial().to_string());
        Ok(Response::new(agent::RenewAgentResponse { svid: Some(convert::svid::x509_to_wire(&svid, "")) }))
    }

    async fn post_status(
        &self,
        request: Request<agent::PostStatusRequest>,
    ) -> Result<Response<agent::PostStatusResponse>, Status> {
        let mut world = self.called_by_node("PostStatus", &request)?;
        world.bundle_serials.push(request.into_inner().current_bundle_serial);
        Ok(Response::new(agent::PostStatusResponse {}))
    }
    }
    count_agents: agent::CountAgentsRequest => agent::CountAgentsResponse,
    list_agents: agent::ListAgentsRequest => agent::ListAgentsResponse,
    get_agent: agent::GetAgentRequest => types::Agent,
    delete_agent: agent::DeleteAgentRequest => (),
    ban_agent: agent::BanAgentRequest => (),
    create_join_token: agent::CreateJoinTokenRequest => types::JoinToken,
}

service! { Entry {
    async fn get_authorized_entries(
        &self,
        request: Request<entry::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<entry::GetAuthorizedEntriesResponse>, Status> {
        let world = self.called_by_node("GetAuthorizedEntries", &request)?;
        let entries = world.entries.values().cloned().collect();
        Ok(Response::new(entry::GetAuthorizedEntriesResponse { entries }))
    }

    type SyncAuthorizedEntriesStream = ReceiverStream<Result<entry::SyncAuthorizedEntriesResponse, Status>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        {
            let world = self.called_by_node("SyncAuthorizedEntries", &request)?;
            if !world.offers_sync {
                return Err(Status::unimplemented("unknown method"));
            }
        }
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(self.clone().sync(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
    }
    count_entries: entry::CountEntriesRequest => entry::CountEntriesResponse,
    list_entries: entry::ListEntriesRequest => entry::ListEntriesResponse,
    get_entry: entry::GetEntryRequest => types::Entry,
    batch_create_entry: entry::BatchCreateEntryRequest => entry::BatchCreateEntryResponse,
    batch_update_entry: entry::BatchUpdateEntryRequest => entry::BatchUpdateEntryResponse,
    batch_delete_entry: entry::BatchDeleteEntryRequest => entry::BatchDeleteEntryResponse,
}

impl Fake {
    /// The dialogue as SPIRE's server holds it: whole if small, else revisions and then what is asked for.
    async fn sync(
        self,
        mut requests: Streaming<entry::SyncAuthorizedEntriesRequest>,
        answers: mpsc::Sender<Result<entry::SyncAuthorizedEntriesResponse, Status>>,
    ) {
        let first = requests.message().await.unwrap().unwrap();
        assert!(first.ids.is_empty() && first.output_mask.is_some_and(|mask| mask.revision_number));
        let (entries, page, mixes) = {
            let world = self.world();
            (world.entries.clone(), world.page, world.mixes_phases)
        };
        let answer = |entries: Vec<types::Entry>, entry_revisions: Vec<entry::EntryRevision>, more| {
            Ok(entry::SyncAuthorizedEntriesResponse { entries, entry_revisions, more })
        };
        if entries.len() <= page {
            drop(answers.send(answer(entries.into_values().collect(), Vec::new(), false)).await);
            return;
        }
        let revisions: Vec<entry::EntryRevision> = entries
            .values()
            .map(|entry| entry::EntryRevision {
                id: entry.id.clone(),
                revision_number: entry.revision_number,
                created_at: entry.created_at,
            })
            .collect();
        let pages: Vec<_> = revisions.chunks(page).map(<[_]>::to_vec).collect();
        for (at, revisions) in pages.iter().enumerate() {
            let stray = if mixes { entries.values().take(1).cloned().collect() } else { Vec::new() };
            if answers.send(answer(stray, revisions.clone(), at + 1 < pages.len())).await.is_err() {
                return;
            }
        }
        while let Ok(Some(request)) = requests.message().await {
            assert!(request.ids.len() <= page && request.ids.is_sorted());
            self.world().asked_ids.push(request.ids.clone());
            let full = request.ids.iter().filter_map(|id| entries.get(id).cloned()).collect();
            if answers.send(answer(full, Vec::new(), false)).await.is_err() {
                return;
            }
        }
    }
}

service! { Bundle {
    async fn get_bundle(
        &self,
        _: Request<bundle::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let world = self.called("GetBundle")?;
        Ok(Response::new(convert::bundle::to_wire(&world.bundle)))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<bundle::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let world = self.called_by_node("GetFederatedBundle", &request)?;
        let wanted = request.into_inner().trust_domain;
        let bundle = world.federated.get(&wanted).ok_or_else(|| Status::not_found("no such bundle"))?;
        Ok(Response::new(convert::bundle::to_wire(bundle)))
    }
    }
    count_bundles: bundle::CountBundlesRequest => bundle::CountBundlesResponse,
    append_bundle: bundle::AppendBundleRequest => types::Bundle,
    publish_jwt_authority: bundle::PublishJwtAuthorityRequest => bundle::PublishJwtAuthorityResponse,
    publish_wit_authority: bundle::PublishWitAuthorityRequest => bundle::PublishWitAuthorityResponse,
    list_federated_bundles: bundle::ListFederatedBundlesRequest => bundle::ListFederatedBundlesResponse,
    batch_create_federated_bundle:
        bundle::BatchCreateFederatedBundleRequest => bundle::BatchCreateFederatedBundleResponse,
    batch_update_federated_bundle:
        bundle::BatchUpdateFederatedBundleRequest => bundle::BatchUpdateFederatedBundleResponse,
    batch_set_federated_bundle: bundle::BatchSetFederatedBundleRequest => bundle::BatchSetFederatedBundleResponse,
    batch_delete_federated_bundle:
        bundle::BatchDeleteFederatedBundleRequest => bundle::BatchDeleteFederatedBundleResponse,
}

service! { Svid {
    async fn batch_new_x509svid(
        &self,
        request: Request<svid::BatchNewX509svidRequest>,
    ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
        let now = self.host.now().secs();
        let mut world = self.called_by_node("BatchNewX509SVID", &request)?;
        let params = request.into_inner().params;
        world.batches.push(params.len());
        if params.len() > world.largest_batch {
            return Err(Status::resource_exhausted("too many"));
        }
        let one = |params: svid::NewX509svidParams| {
            let (status, svid) = world.mint(&params.entry_id, &params.csr, now);
            svid::batch_new_x509svid_response::Result { status: Some(status), svid }
        };
        let results = params.into_iter().map(one).collect();
        Ok(Response::new(svid::BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<svid::NewJwtsvidRequest>,
    ) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
        let now = self.host.now();
        let world = self.called_by_node("NewJWTSVID", &request)?;
        let request = request.into_inner();
        let svid = world.mint_jwt(&request.entry_id, request.audience, now)?;
        Ok(Response::new(svid::NewJwtsvidResponse { svid: Some(svid) }))
    }
    }
    mint_x509svid: svid::MintX509svidRequest => svid::MintX509svidResponse,
    mint_jwtsvid: svid::MintJwtsvidRequest => svid::MintJwtsvidResponse,
    mint_witsvid: svid::MintWitsvidRequest => svid::MintWitsvidResponse,
    batch_new_witsvid: svid::BatchNewWitsvidRequest => svid::BatchNewWitsvidResponse,
    new_downstream_x509ca: svid::NewDownstreamX509caRequest => svid::NewDownstreamX509caResponse,
}

impl Connected for Peer {
    type ConnectInfo = Leaf;

    fn connect_info(&self) -> Leaf {
        Leaf(self.leaf.clone())
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Takes any certificate: whose it is, the calls look at.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
