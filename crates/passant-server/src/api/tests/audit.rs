//! Is every administrative write on record, and every refusal within its bounds, and who may read that?

use std::collections::BTreeSet;

use passant_core::keys::KeyType;
use passant_core::{Reason, csr};
use passant_proto::agent::{
    BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
};
use passant_proto::audit::audit_client::AuditClient;
use passant_proto::audit::{SearchRequest, VerifyRequest, VerifyResponse};
use passant_proto::bundle::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, BatchUpdateFederatedBundleRequest, PublishJwtAuthorityRequest,
};
use passant_proto::convert;
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetAuthorizedEntriesRequest,
    GetEntryRequest, SyncAuthorizedEntriesRequest,
};
use passant_proto::import::import_client::ImportClient;
use passant_proto::import::{AdoptAgentsRequest, ReleaseAgentsRequest, RemoveAuthoritiesRequest};
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, GetJwtAuthorityStateRequest,
    GetX509AuthorityStateRequest, PrepareJwtAuthorityRequest, PrepareX509AuthorityRequest,
    RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest, TaintJwtAuthorityRequest,
    TaintX509AuthorityRequest,
};
use passant_proto::stop::stop_client::StopClient;
use passant_proto::stop::{ResumeRequest, StopRequest, Target, target};
use passant_proto::store::BackupRequest;
use passant_proto::store::store_client::StoreClient;
use passant_proto::svid::{
    BatchNewX509svidRequest, MintJwtsvidRequest, MintX509svidRequest, NewJwtsvidRequest, NewX509svidParams,
};
use passant_proto::trustdomain::trust_domain_client::TrustDomainClient;
use passant_proto::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, RefreshBundleRequest,
};
use passant_proto::types::federation_relationship::BundleEndpointProfile;
use passant_proto::{options, types};
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::rig::{Identity, Rig, agents, bundles, entries, entry, selector, svids, trust_domain, wire_id};
use crate::api::authorize::{METHODS, Role};
use crate::federation::testing::{Ca, FakeEndpoint, document, uri};
use crate::limits::{ASK_AGAIN, REFUSALS_AT_ONCE, STRANGERS_REFUSALS_AT_ONCE};

/// The methods that write for administrators and servers below, and the line that each leaves.
const WRITES: &[(&str, &str)] = &[
    ("/passant.entry.v1.Entry/BatchCreateEntry", "create_entries"),
    ("/passant.entry.v1.Entry/BatchSetOptions", "update_entries"),
    ("/passant.import.v1.Import/AdoptAgents", "adopt_agents"),
    ("/passant.import.v1.Import/ReleaseAgents", "release_agents"),
    ("/passant.import.v1.Import/RemoveAuthorities", "remove_authorities"),
    ("/passant.stop.v1.Stop/Resume", "resume"),
    ("/passant.stop.v1.Stop/Stop", "stop"),
    ("/passant.store.v1.Store/Backup", "send_backup"),
    ("/spire.api.server.agent.v1.Agent/BanAgent", "ban_agent"),
    ("/spire.api.server.agent.v1.Agent/CreateJoinToken", "create_join_token"),
    ("/spire.api.server.agent.v1.Agent/DeleteAgent", "evict_agent"),
    ("/spire.api.server.bundle.v1.Bundle/AppendBundle", "append_authorities"),
    ("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", "set_bundles"),
    ("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", "delete_bundles"),
    ("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", "set_bundles"),
    ("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", "set_bundles"),
    ("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", "append_authorities"),
    ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", "create_entries"),
    ("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", "delete_entries"),
    ("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", "update_entries"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", "activate_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", "activate_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", "prepare_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", "prepare_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", "revoke_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", "revoke_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", "taint_authority"),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", "taint_authority"),
    ("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", "create_federation"),
    ("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", "end_federation"),
    ("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", "update_federation"),
    ("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", "refresh_bundle"),
];

/// Those that leave an intent, with its caller.
const MINTS: &[&str] = &[
    "/spire.api.server.svid.v1.SVID/MintX509SVID",
    "/spire.api.server.svid.v1.SVID/MintJWTSVID",
    "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
];

/// Those that need a log of the server's own, which a test does not have: the end-to-end tests do.
const ELSEWHERE: &[&str] =
    &["/spire.api.server.logger.v1.Logger/SetLogLevel", "/spire.api.server.logger.v1.Logger/ResetLogLevel"];

/// The beginnings of the names of methods that only read.
const READS: &[&str] =
    &["Count", "List", "Get", "Check", "Explain", "Search", "Verify", "Watch", "Server", "Await", "BatchGet"];

/// What this server does not offer: nothing is done.
const NOT_SERVED: &[&str] = &["WIT", "Upstream"];

async fn search(channel: Channel, request: SearchRequest) -> Result<Vec<Value>, Status> {
    let mut stream = AuditClient::new(channel).search(request).await?.into_inner();
    let mut text = Vec::new();
    while let Some(piece) = stream.message().await? {
        text.extend(piece.lines);
    }
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect())
}

async fn verify(channel: Channel, head: &str) -> Result<VerifyResponse, Status> {
    let request = VerifyRequest { head: head.to_owned() };
    let mut stream = AuditClient::new(channel).verify(request).await?.into_inner();
    Ok(stream.message().await?.unwrap())
}

async fn found(rig: &Rig, kind: &str) -> Vec<Value> {
    let request = SearchRequest { kinds: vec![kind.to_owned()], ..SearchRequest::default() };
    search(rig.local().await, request).await.unwrap()
}

fn bundle(trust_domain: &str, sequence_number: u64) -> types::Bundle {
    types::Bundle { trust_domain: trust_domain.to_owned(), sequence_number, ..types::Bundle::default() }
}

fn jwt_key(rig: &Rig, key_id: &str) -> types::JwtKey {
    let key = rig.host.keys.generate(KeyType::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public_key().to_vec(),
        key_id: key_id.to_owned(),
        ..types::JwtKey::default()
    }
}

#[test]
fn every_method_that_an_administrator_may_call_is_known_to_write_or_to_read() {
    let of = |list: &[&str], name: &str| list.contains(&name);
    for (name, roles) in METHODS {
        let method = name.rsplit('/').next().unwrap();
        let is_for_them = roles.iter().any(|role| !matches!(role, Role::Agent | Role::Anyone));
        let writes = WRITES.iter().any(|(write, _)| write == name) || of(MINTS, name) || of(ELSEWHERE, name);
        let reads = READS.iter().any(|read| method.starts_with(read));
        let is_served = !NOT_SERVED.iter().any(|word| method.contains(word));
        let expected = is_for_them && is_served && !reads;
        assert_eq!(writes, expected, "{name}: put it where it belongs, and into the test below");
    }
}

/// Does everything in [`WRITES`] once.
async fn write_all(rig: &Rig) {
    let local = rig.local().await;
    let mut authorities = LocalAuthorityClient::new(local.clone());
    let state = authorities.get_x509_authority_state(GetX509AuthorityStateRequest {});
    let old = state.await.unwrap().into_inner().active.unwrap().authority_id;
    let new = authorities.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap().into_inner();
    let authority_id = new.prepared_authority.unwrap().authority_id;
    authorities.activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await.unwrap();
    authorities.taint_x509_authority(TaintX509AuthorityRequest { authority_id: old.clone() }).await.unwrap();
    authorities.revoke_x509_authority(RevokeX509AuthorityRequest { authority_id: old }).await.unwrap();
    let state = authorities.get_jwt_authority_state(GetJwtAuthorityStateRequest {});
    let old = state.await.unwrap().into_inner().active.unwrap().authority_id;
    let new = authorities.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await.unwrap().into_inner();
    let authority_id = new.prepared_authority.unwrap().authority_id;
    authorities.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id }).await.unwrap();
    authorities.taint_jwt_authority(TaintJwtAuthorityRequest { authority_id: old.clone() }).await.unwrap();
    authorities.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id: old }).await.unwrap();

    let node = trust_domain().join("/node").unwrap();
    let made = rig.register(vec![entry(&node, "/a", "unix:uid:1"), entry(&node, "/b", "unix:uid:1")]).await;
    let request = BatchUpdateEntryRequest {
        entries: vec![types::Entry { hint: "new".to_owned(), ..made[0].clone() }],
        ..BatchUpdateEntryRequest::default()
    };
    entries(local.clone()).batch_update_entry(request).await.unwrap();
    let request = BatchDeleteEntryRequest { ids: vec![made[1].id.clone(), "none".to_owned()] };
    entries(local.clone()).batch_delete_entry(request).await.unwrap();

    let agent = rig.agent().await;
    let below = types::Entry { downstream: true, ..entry(agent.svid.id(), "/below", "unix:uid:1") };
    let below = rig.register(vec![below]).await.remove(0);
    let below = rig.svid_of(&agent, &below.id).await;
    let request = PublishJwtAuthorityRequest { jwt_authority: Some(jwt_key(rig, "below")) };
    bundles(rig.remote(Some(&below)).await.unwrap()).publish_jwt_authority(request).await.unwrap();
    let request = AppendBundleRequest {
        jwt_authorities: vec![jwt_key(rig, "appended")],
        ..AppendBundleRequest::default()
    };
    bundles(local.clone()).append_bundle(request).await.unwrap();
    let mut import = ImportClient::new(local.clone());
    let request = RemoveAuthoritiesRequest {
        jwt_authorities: vec!["appended".to_owned()],
        ..RemoveAuthoritiesRequest::default()
    };
    import.remove_authorities(request).await.unwrap();
    let theirs = types::Agent {
        id: Some(wire_id("/spire/agent/x509pop/theirs")),
        attestation_type: "x509pop".to_owned(),
        x509svid_serial_number: "77".to_owned(),
        x509svid_expires_at: rig.host.now().secs() + 600,
        selectors: vec![selector("k:1")],
        ..types::Agent::default()
    };
    let ids = vec![theirs.id.clone().unwrap()];
    import.adopt_agents(AdoptAgentsRequest { agents: vec![theirs], dry_run: false }).await.unwrap();
    import.release_agents(ReleaseAgentsRequest { ids, dry_run: false }).await.unwrap();
    let with_options = options::EntryWithOptions {
        entry: Some(entry(&node, "/c", "unix:uid:1")),
        options: Some(options::Options { strict: true, ..options::Options::default() }),
    };
    let mut client = options::entry_client::EntryClient::new(local.clone());
    let request = options::BatchCreateEntryRequest { entries: vec![with_options] };
    client.batch_create_entry(request).await.unwrap();
    let item = options::batch_set_options_request::Item { entry_id: made[0].id.clone(), options: None };
    client.batch_set_options(options::BatchSetOptionsRequest { items: vec![item] }).await.unwrap();
    let mut client = StopClient::new(local.clone());
    let target = Some(Target { target: Some(target::Target::AgentId(agent.svid.id().to_string())) });
    let reason = "compromised".to_owned();
    let request = StopRequest { target: target.clone(), reason: reason.clone(), wait_millis: 0 };
    client.stop(request).await.unwrap();
    client.resume(ResumeRequest { target, reason, wait_millis: 0 }).await.unwrap();
    let id = Some(convert::id::to_wire(agent.svid.id()));
    agents(local.clone()).ban_agent(BanAgentRequest { id: id.clone() }).await.unwrap();
    agents(local.clone()).delete_agent(DeleteAgentRequest { id }).await.unwrap();
    write_foreign(local.clone()).await;
    let mut stream = StoreClient::new(local).backup(BackupRequest {}).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
}

/// The writes that concern other trust domains.
async fn write_foreign(local: Channel) {
    let mut client = bundles(local.clone());
    let request = BatchCreateFederatedBundleRequest { bundle: vec![bundle("b.test", 1)], output_mask: None };
    client.batch_create_federated_bundle(request).await.unwrap();
    let request = BatchUpdateFederatedBundleRequest {
        bundle: vec![bundle("b.test", 2)],
        ..BatchUpdateFederatedBundleRequest::default()
    };
    client.batch_update_federated_bundle(request).await.unwrap();
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle("b.test", 3)], output_mask: None };
    client.batch_set_federated_bundle(request).await.unwrap();
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["b.test".to_owned()],
        ..BatchDeleteFederatedBundleRequest::default()
    };
    client.batch_delete_federated_bundle(request).await.unwrap();

    let ca = Ca::new("spiffe://one.test");
    let served = document(&ca.bundle("one.test", 9));
    let leaf = ca.leaf(vec![uri("spiffe://one.test/endpoint")]);
    let endpoint = FakeEndpoint::start(leaf, move |_| served.clone()).await;
    let one = types::FederationRelationship {
        trust_domain: "one.test".to_owned(),
        bundle_endpoint_url: endpoint.url("/"),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: "spiffe://one.test/endpoint".to_owned(),
        })),
        trust_domain_bundle: Some(convert::bundle::to_wire(&ca.bundle("one.test", 1))),
    };
    let mut client = TrustDomainClient::new(local);
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![one.clone()],
        output_mask: None,
    };
    client.batch_create_federation_relationship(request).await.unwrap();
    client.refresh_bundle(RefreshBundleRequest { trust_domain: "one.test".to_owned() }).await.unwrap();
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![types::FederationRelationship { trust_domain_bundle: None, ..one }],
        ..BatchUpdateFederationRelationshipRequest::default()
    };
    client.batch_update_federation_relationship(request).await.unwrap();
    let request = BatchDeleteFederationRelationshipRequest { trust_domains: vec!["one.test".to_owned()] };
    client.batch_delete_federation_relationship(request).await.unwrap();
}

#[tokio::test]
async fn every_administrative_write_is_on_record() {
    let rig = Rig::start().await;
    write_all(&rig).await;
    let acts = found(&rig, "act").await;
    let mut seen = BTreeSet::new();
    for act in &acts {
        let name = act["act"].as_object().unwrap().keys().next().unwrap().as_str();
        let method = act["method"].as_str().unwrap();
        seen.insert((method, name));
        let is_below = method.ends_with("PublishJWTAuthority");
        let (who, right) = match is_below {
            true => ("downstream spiffe://example.org/below", "downstream entry "),
            false => ("local uid=", "operator"),
        };
        assert!(act["caller"].as_str().unwrap().starts_with(who), "{act}");
        assert!(act["right"].as_str().unwrap().starts_with(right), "{act}");
        let from = act["from"].as_str().unwrap();
        assert!(if is_below { from.starts_with("127.0.0.1:") } else { from == "operators' socket" }, "{act}");
    }
    let missing: Vec<_> = WRITES.iter().filter(|write| !seen.contains(*write)).collect();
    assert!(missing.is_empty(), "not on record: {missing:?}");
    let act = |name: &str| acts.iter().find(|act| act["act"].get(name).is_some()).unwrap();
    assert_eq!(act("delete_entries")["subjects"][0], "spiffe://example.org/b");
    assert_eq!(act("create_entries")["subjects"][1], "spiffe://example.org/b");
    assert_eq!(act("create_federation")["act"]["create_federation"][0]["profile"], "https_spiffe");
    let removed = acts.iter().find(|act| act["method"].as_str().unwrap().ends_with("BatchDeleteEntry"));
    assert_eq!(removed.unwrap()["act"]["delete_entries"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_an_operator_mints_is_an_intent_with_its_caller() {
    let rig = Rig::start().await;
    let id = trust_domain().join("/minted").unwrap();
    let csr = csr::make(&*rig.key(), Some(&id)).unwrap();
    let mut client = svids(rig.local().await);
    client.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await.unwrap();
    let request = MintJwtsvidRequest { id: Some(wire_id("/minted")), audience: vec!["a".to_owned()], ttl: 0 };
    client.mint_jwtsvid(request).await.unwrap();
    let intents = found(&rig, "intent").await;
    let minted = intents.iter().filter(|line| line["decision"]["spiffe_id"] == id.as_str());
    let callers: Vec<&str> = minted.map(|line| line["decision"]["caller"].as_str().unwrap()).collect();
    // The third is no operator's: the tests of SVIDs look at its intent.
    assert_eq!(callers.len(), MINTS.len() - 1);
    assert!(callers.iter().all(|caller| caller.starts_with("local uid=")), "{callers:?}");
}

#[tokio::test]
async fn a_join_token_is_on_record_without_the_token() {
    let rig = Rig::start().await;
    let request = CreateJoinTokenRequest {
        ttl: 60,
        token: "guess-me-if-you-can".to_owned(),
        agent_id: Some(wire_id("/nodes/a")),
    };
    agents(rig.local().await).create_join_token(request).await.unwrap();
    let all = search(rig.local().await, SearchRequest::default()).await.unwrap();
    let text = serde_json::to_string(&all).unwrap();
    assert!(text.contains("create_join_token") && text.contains("spiffe://example.org/nodes/a"), "{text}");
    let hash = passant_attest::node::join_token::TokenHash::of("guess-me-if-you-can");
    assert!(!text.contains("guess-me") && !text.contains(&serde_json::to_string(&hash).unwrap()), "{text}");
}

#[tokio::test]
async fn large_batches_take_several_lines() {
    let rig = Rig::start().await;
    let node = trust_domain().join("/node").unwrap();
    let many = crate::limits::RECORD_ITEMS + 1;
    rig.register((0..many).map(|n| entry(&node, &format!("/w{n}"), "unix:uid:1")).collect()).await;
    let acts = found(&rig, "act").await;
    let counts: Vec<usize> =
        acts.iter().map(|act| act["act"]["create_entries"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [crate::limits::RECORD_ITEMS, 1]);
}

const ROLES: &str = "[[role]]\nname = \"pay\"\nverbs = [\"entry.create\", \"entry.delete\"]\n\
    spiffe_id_prefixes = [\"spiffe://example.org/pay\"]\n\
    parent_id_prefixes = [\"spiffe://example.org/node\"]\nselector_types = [\"unix\"]\n\
    granted_to = { spiffe_ids = [\"spiffe://example.org/ci\"] }\n\
    [[role]]\nname = \"auditors\"\nverbs = [\"audit.read\"]\n\
    granted_to = { spiffe_ids = [\"spiffe://example.org/auditor\"] }\n";

/// An agent, and the holders of the two roles.
async fn holders(rig: &Rig) -> (Identity, Identity, Identity) {
    let agent = rig.agent().await;
    let own = |path| entry(agent.svid.id(), path, "unix:uid:1");
    let made = rig.register(vec![own("/ci"), own("/auditor")]).await;
    let ci = rig.svid_of(&agent, &made[0].id).await;
    let auditor = rig.svid_of(&agent, &made[1].id).await;
    (agent, ci, auditor)
}

#[tokio::test]
async fn refusals_of_callers_are_on_record_with_who_what_from_where_and_why() {
    let rig = Rig::start_with(ROLES).await;
    let (agent, ci, _) = holders(&rig).await;
    // A holder, for the method; in a batch, for what its role does not cover and for what it does not see.
    let channel = rig.remote(Some(&ci)).await.unwrap();
    agents(channel.clone()).list_agents(ListAgentsRequest::default()).await.unwrap_err();
    let node = trust_domain().join("/node").unwrap();
    let hidden = rig.register(vec![entry(&node, "/hidden", "unix:uid:1")]).await.remove(0).id;
    let request = BatchCreateEntryRequest {
        entries: vec![entry(&node, "/pay/a", "unix:uid:1"), entry(&node, "/web", "unix:uid:1")],
        output_mask: None,
    };
    entries(channel.clone()).batch_create_entry(request).await.unwrap();
    entries(channel).batch_delete_entry(BatchDeleteEntryRequest { ids: vec![hidden] }).await.unwrap();
    // A banned agent, for what it begins, and for what it has under way.
    let channel = rig.remote(Some(&agent)).await.unwrap();
    let silent = tokio_stream::pending::<SyncAuthorizedEntriesRequest>();
    let mut client = entries(channel.clone());
    let mut stream = client.sync_authorized_entries(silent).await.unwrap().into_inner();
    let id = Some(convert::id::to_wire(agent.svid.id()));
    agents(rig.local().await).ban_agent(BanAgentRequest { id }).await.unwrap();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::PermissionDenied);
    entries(channel).get_authorized_entries(GetAuthorizedEntriesRequest::default()).await.unwrap_err();

    let refusals = found(&rig, "refusal").await;
    let told: Vec<(&str, &str, &str)> = refusals
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap();
            assert_eq!(text("reason"), "denied", "{line}");
            assert!(text("from").starts_with("127.0.0.1:"), "{line}");
            (text("method").rsplit('/').next().unwrap(), text("caller"), text("why"))
        })
        .collect();
    let by_agent = format!("agent {}", agent.svid.id());
    let expected = [
        ("ListAgents", "spiffe://example.org/ci", "no role of the caller has the verb agent.read"),
        ("BatchCreateEntry", "spiffe://example.org/ci", "entry.create"),
        ("BatchDeleteEntry", "spiffe://example.org/ci", "entry.delete"),
        ("SyncAuthorizedEntries", &by_agent, "is banned"),
        ("GetAuthorizedEntries", &by_agent, "is banned"),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ((method, caller, why), (wanted, by, part)) in told.into_iter().zip(expected) {
        assert_eq!((method, caller), (wanted, by));
        assert!(why.contains(part), "{method}: {why}");
    }
    // What the holder was allowed is on record with its role.
    let acts = found(&rig, "act").await;
    let paid = acts.iter().find(|act| act["subjects"][0] == "spiffe://example.org/pay/a").unwrap();
    assert_eq!(paid["right"], "role pay");
    assert_eq!(paid["caller"], "role pay spiffe://example.org/ci");
}

#[tokio::test]
async fn who_asks_for_what_is_there_and_hidden_is_on_record_and_does_not_learn_it() {
    let rig =
        Rig::start_with(&ROLES.replace("entry.create", "agent.read\", \"entry.read\", \"entry.create")).await;
    let (agent, ci, _) = holders(&rig).await;
    let node = trust_domain().join("/node").unwrap();
    let hidden = rig.register(vec![entry(&node, "/hidden", "unix:uid:1")]).await.remove(0).id;
    let over = types::Entry { expires_at: 1, ..entry(agent.svid.id(), "/over", "unix:uid:1") };
    let over = rig.register(vec![over]).await.remove(0).id;
    let (holder, own) = (rig.remote(Some(&ci)).await.unwrap(), rig.remote(Some(&agent)).await.unwrap());
    let there = Some(convert::id::to_wire(agent.svid.id()));
    let not_there = Some(wire_id("/spire/agent/join_token/none"));
    let csr = csr::make(&*rig.key(), None).unwrap();
    let mut told = Vec::new();
    for (entry_id, agent_id) in [("none", not_there), (over.as_str(), None), (hidden.as_str(), there)] {
        let get = GetEntryRequest { id: entry_id.to_owned(), output_mask: None };
        let entry = entries(holder.clone()).get_entry(get).await.unwrap_err();
        let audience = vec!["them".to_owned()];
        let jwt = NewJwtsvidRequest { entry_id: entry_id.to_owned(), audience };
        let jwt = svids(own.clone()).new_jwtsvid(jwt).await.unwrap_err();
        let order = || NewX509svidParams { entry_id: entry_id.to_owned(), csr: csr.clone() };
        let batch = BatchNewX509svidRequest { params: vec![order(), order()] };
        let batch = svids(own.clone()).batch_new_x509svid(batch).await.unwrap().into_inner();
        let mut says: Vec<_> = [entry, jwt].iter().map(|s| (s.code(), s.message().to_owned())).collect();
        let items = batch.results.into_iter().map(|result| result.status.unwrap());
        says.extend(items.map(|item| (Code::from_i32(item.code), item.message)));
        if let Some(id) = agent_id {
            let get = GetAgentRequest { id: Some(id), output_mask: None };
            let agent = agents(holder.clone()).get_agent(get).await.unwrap_err();
            says.push((agent.code(), agent.message().to_owned()));
        }
        assert!(says.iter().all(|(code, _)| *code == Code::NotFound), "{says:?}");
        told.push(says);
    }
    assert_eq!(told[0], told[2], "what is hidden is as if it were not there");
    let refusals = found(&rig, "refusal").await;
    let told: Vec<(&str, &str)> = refusals
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap();
            assert_eq!(text("reason"), "denied", "{line}");
            (text("method").rsplit('/').next().unwrap(), text("why"))
        })
        .collect();
    let expected = [
        ("GetEntry", "entry not found: no role of the caller reaches the entry"),
        ("GetEntry", "entry not found: no role of the caller reaches the entry"),
        ("NewJWTSVID", "entry not found or not authorized: the entry is not one of the agent's"),
        ("BatchNewX509SVID", "the entry is not one of the agent's (and 1 more items of the batch)"),
        ("GetAgent", "agent not found: no role of the caller reaches the agent"),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn whoever_is_refused_again_and_again_does_not_fill_the_record() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let (own, none) = (rig.remote(Some(&agent)).await.unwrap(), rig.stranger().await);
    for _ in 0..2 * REFUSALS_AT_ONCE {
        agents(own.clone()).list_agents(ListAgentsRequest::default()).await.unwrap_err();
        agents(none.clone()).list_agents(ListAgentsRequest::default()).await.unwrap_err();
    }
    let refusals = found(&rig, "refusal").await;
    let (strangers, callers): (Vec<_>, Vec<_>) =
        refusals.iter().partition(|line| line.get("caller").is_none());
    assert_eq!(strangers.len(), usize::try_from(STRANGERS_REFUSALS_AT_ONCE).unwrap());
    assert_eq!(callers.len(), usize::try_from(REFUSALS_AT_ONCE).unwrap());
    let metrics = rig.running.metrics();
    for (peer, count) in [("agent", 40), ("stranger", 40)] {
        let line =
            format!("passant_server_refused_callers_total{{peer=\"{peer}\",reason=\"denied\"}} {count}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    assert!(metrics.contains("passant_server_refusals_left_out_total 50"), "{metrics}");
}

#[tokio::test]
async fn a_guessed_join_token_is_on_record_as_a_strangers() {
    let rig = Rig::start().await;
    assert!(rig.attest("join_token", "guessed-it-perhaps", &rig.key()).await.is_err());
    let refusals = found(&rig, "refusal").await;
    let [guess] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!((guess.get("caller"), guess["reason"].as_str()), (None, Some("unauthenticated")));
    assert!(guess["why"].as_str().unwrap().contains("join token does not exist"), "{guess}");
    assert!(!guess.to_string().contains("guessed-it"), "{guess}");
}

#[tokio::test]
async fn the_record_is_for_operators_and_for_holders_of_its_verb() {
    let rig = Rig::start_with(ROLES).await;
    let (agent, ci, auditor) = holders(&rig).await;
    for (channel, expected) in [
        (rig.stranger().await, Code::PermissionDenied),
        (rig.remote(Some(&agent)).await.unwrap(), Code::PermissionDenied),
        (rig.remote(Some(&ci)).await.unwrap(), Code::PermissionDenied),
        (rig.remote(Some(&auditor)).await.unwrap(), Code::Ok),
        (rig.local().await, Code::Ok),
    ] {
        let found = search(channel.clone(), SearchRequest::default()).await;
        assert_eq!(found.map_or_else(|status| status.code(), |_| Code::Ok), expected);
        let verified = verify(channel, "").await;
        assert_eq!(verified.map_or_else(|status| status.code(), |_| Code::Ok), expected);
    }
}

#[tokio::test]
async fn a_caller_reads_the_record_once_at_a_time() {
    let rig = Rig::start_with(ROLES).await;
    let (_, _, auditor) = holders(&rig).await;
    let node = trust_domain().join("/node").unwrap();
    // Larger than what is on its way at any time: whoever does not read keeps it from being done.
    let long = "x".repeat(1_900);
    for round in 0..3 {
        let one = |n| entry(&node, &format!("/w{round}-{n}/{long}"), "unix:uid:1");
        rig.register((0..900).map(one).collect()).await;
    }
    let mut client = AuditClient::new(rig.local().await);
    let held = client.search(SearchRequest::default()).await.unwrap().into_inner();
    let again = search(rig.local().await, SearchRequest::default()).await.unwrap_err();
    let again = passant_proto::status::from_status(&again);
    assert_eq!((again.reason, again.retry_after), (Reason::Exhausted, Some(ASK_AGAIN)));
    assert_eq!(verify(rig.local().await, "").await.unwrap_err().code(), Code::ResourceExhausted);
    // Another caller has a turn of its own.
    verify(rig.remote(Some(&auditor)).await.unwrap(), "").await.unwrap();
    // Whoever goes makes room.
    drop(held);
    loop {
        match search(rig.local().await, SearchRequest::default()).await {
            Ok(lines) => break assert!(lines.len() > 6),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
    }
    // Who overloads the server is on record, too.
    let exhausted = found(&rig, "refusal").await;
    assert!(exhausted.iter().any(|line| line["reason"] == "exhausted"), "{exhausted:?}");
}

#[tokio::test]
async fn a_head_is_told_once_its_line_is_durable() {
    let rig = Rig::start().await;
    let syncs = || {
        let metrics = rig.running.metrics();
        let line = metrics.lines().find(|line| line.starts_with("passant_server_record_sync_seconds_count"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // A line that nobody waits for.
    agents(rig.stranger().await).list_agents(ListAgentsRequest::default()).await.unwrap_err();
    let before = syncs();
    verify(rig.local().await, "").await.unwrap();
    assert!(syncs() > before);
}

#[tokio::test]
async fn a_record_is_verified_while_it_is_written_to() {
    let rig = Rig::start().await;
    let local = rig.local().await;
    let first = verify(local.clone(), "").await.unwrap();
    assert!(first.fault.is_empty() && first.lines > 0, "{first:?}");
    rig.agent().await;
    let later = verify(local.clone(), &first.head).await.unwrap();
    assert!(later.fault.is_empty() && later.lines > first.lines, "{later:?}");
    let (hash, _) = first.head.split_once('@').unwrap();
    let cut = verify(local.clone(), &format!("{hash}@1000000")).await.unwrap();
    assert!(cut.fault.contains("cut off"), "{cut:?}");
    let other = verify(local.clone(), &format!("{}@1", "0".repeat(64))).await.unwrap();
    assert!(other.fault.contains("does not have the hash"), "{other:?}");
    for (head, newest, kind) in [("x", 0, ""), ("", 100_001, ""), ("", 0, "nothing")] {
        let code = match head {
            "" => {
                let kinds = Some(kind.to_owned()).filter(|kind| !kind.is_empty()).into_iter().collect();
                let request = SearchRequest { newest, kinds, ..SearchRequest::default() };
                search(rig.local().await, request).await.unwrap_err().code()
            }
            head => verify(local.clone(), head).await.unwrap_err().code(),
        };
        assert_eq!(code, Code::InvalidArgument);
    }
}
