//! Are foreign bundles and federation relationships kept as SPIRE's clients expect, and the own bundle added to?

use passant_core::keys::KeyType;
use passant_core::{Reason, SpiffeId};
use passant_proto::bundle::batch_delete_federated_bundle_request::Mode;
use passant_proto::bundle::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, BatchUpdateFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest, PublishJwtAuthorityRequest,
    PublishWitAuthorityRequest,
};
use passant_proto::convert;
use passant_proto::entry::GetEntryRequest;
use passant_proto::federation::ListStatusRequest;
use passant_proto::federation::federation_client::FederationClient;
use passant_proto::trustdomain::trust_domain_client::TrustDomainClient;
use passant_proto::trustdomain::{
    BatchCreateFederationRelationshipRequest, BatchDeleteFederationRelationshipRequest,
    BatchUpdateFederationRelationshipRequest, GetFederationRelationshipRequest,
    ListFederationRelationshipsRequest, RefreshBundleRequest,
};
use passant_proto::types;
use passant_proto::types::federation_relationship::BundleEndpointProfile;
use tonic::Code;
use tonic::transport::Channel;

use crate::federation::testing::{Ca, FakeEndpoint, document, uri};

use super::rig::{Identity, Rig, bundles, entries, entry, refusal, trust_domain};

fn relationships(channel: Channel) -> TrustDomainClient<Channel> {
    TrustDomainClient::new(channel)
}

fn relationship(trust_domain: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: trust_domain.to_owned(),
        bundle_endpoint_url: format!("https://{trust_domain}/bundle"),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: format!("spiffe://{trust_domain}/endpoint"),
        })),
        trust_domain_bundle: None,
    }
}

fn bundle(trust_domain: &str, sequence_number: u64) -> types::Bundle {
    types::Bundle {
        trust_domain: trust_domain.to_owned(),
        sequence_number,
        refresh_hint: 60,
        ..types::Bundle::default()
    }
}

fn code(status: Option<&types::Status>) -> Code {
    Code::from_i32(status.unwrap().code)
}

fn jwt_key(rig: &Rig, key_id: &str) -> types::JwtKey {
    let key = rig.host.keys.generate(KeyType::EcP256).unwrap();
    types::JwtKey {
        public_key: key.public_key().to_vec(),
        key_id: key_id.to_owned(),
        expires_at: 0,
        tainted: true,
    }
}

/// The SVID of an entry of a new agent, changed by `change`.
async fn holder(rig: &Rig, path: &str, change: fn(&mut types::Entry)) -> Identity {
    let agent = rig.agent().await;
    let mut wanted = entry(agent.svid.id(), path, "unix:uid:7");
    change(&mut wanted);
    let entry = rig.register(vec![wanted]).await.remove(0);
    rig.svid_of(&agent, &entry.id).await
}

#[tokio::test]
async fn relationships_are_answered_where_they_were_asked_for() {
    let rig = Rig::start().await;
    let mut client = relationships(rig.local().await);
    let bad = |change: fn(&mut types::FederationRelationship)| {
        let mut relationship = relationship("bad.test");
        change(&mut relationship);
        relationship
    };
    let asked = vec![
        (relationship("one.test"), Code::Ok, ""),
        (relationship("example.org"), Code::InvalidArgument, "server trust domain"),
        (relationship("one.test"), Code::AlreadyExists, "already exists"),
        (bad(|it| it.trust_domain.clear()), Code::InvalidArgument, "trust domain"),
        (bad(|it| it.bundle_endpoint_url = "http://bad.test/".to_owned()), Code::InvalidArgument, "https"),
        (bad(|it| it.bundle_endpoint_url = "https://u@bad.test/".to_owned()), Code::InvalidArgument, "user"),
        (bad(|it| it.bundle_endpoint_profile = None), Code::InvalidArgument, "profile"),
        (
            bad(|it| it.trust_domain_bundle = Some(bundle("other.test", 1))),
            Code::InvalidArgument,
            "must match",
        ),
        (
            types::FederationRelationship {
                bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
                trust_domain_bundle: Some(bundle("two.test", 4)),
                ..relationship("two.test")
            },
            Code::Ok,
            "",
        ),
    ];
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: asked.iter().map(|(relationship, ..)| relationship.clone()).collect(),
        output_mask: None,
    };
    let results = client.batch_create_federation_relationship(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), asked.len());
    for (result, (given, expected, named)) in results.iter().zip(&asked) {
        let message = &result.status.as_ref().unwrap().message;
        assert_eq!(code(result.status.as_ref()), *expected, "{given:?}: {message}");
        assert!(message.contains(named), "{named}: {message}");
        let told = result.federation_relationship.as_ref();
        assert_eq!(told, (*expected == Code::Ok).then_some(given));
    }

    let mut token = String::new();
    let mut names = Vec::new();
    loop {
        let request = ListFederationRelationshipsRequest {
            output_mask: Some(types::FederationRelationshipMask::default()),
            page_size: 1,
            page_token: token,
        };
        let page = client.list_federation_relationships(request).await.unwrap().into_inner();
        let one = page.federation_relationships;
        assert!(one.len() == 1 && one[0].bundle_endpoint_url.is_empty(), "{one:?}");
        names.push(one[0].trust_domain.clone());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["one.test", "two.test"]);
    let get =
        |name: &str| GetFederationRelationshipRequest { trust_domain: name.to_owned(), output_mask: None };
    let two = client.get_federation_relationship(get("two.test")).await.unwrap().into_inner();
    assert_eq!(two, asked[8].0);
    for (name, expected) in [("three.test", Reason::NotFound), ("UPPER", Reason::Invalid)] {
        assert_eq!(refusal(client.get_federation_relationship(get(name)).await).reason, expected);
    }
}

#[tokio::test]
async fn a_relationship_is_changed_by_mask_and_ends_with_its_bundle() {
    let rig = Rig::start().await;
    let mut client = relationships(rig.local().await);
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![types::FederationRelationship {
            trust_domain_bundle: Some(bundle("one.test", 4)),
            ..relationship("one.test")
        }],
        output_mask: Some(types::FederationRelationshipMask::default()),
    };
    let results = client.batch_create_federation_relationship(request).await.unwrap().into_inner().results;
    let told = results[0].federation_relationship.as_ref().unwrap();
    assert!(told.bundle_endpoint_profile.is_none() && told.trust_domain_bundle.is_none());

    let changed = types::FederationRelationship {
        bundle_endpoint_url: "https://new.test/".to_owned(),
        bundle_endpoint_profile: None,
        ..relationship("one.test")
    };
    let request = BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![relationship("none.test"), changed],
        input_mask: Some(types::FederationRelationshipMask {
            bundle_endpoint_url: true,
            ..types::FederationRelationshipMask::default()
        }),
        output_mask: None,
    };
    let results = client.batch_update_federation_relationship(request).await.unwrap().into_inner().results;
    assert_eq!(code(results[0].status.as_ref()), Code::NotFound);
    let told = results[1].federation_relationship.as_ref().unwrap();
    assert_eq!(told.bundle_endpoint_url, "https://new.test/");
    assert_eq!(told.bundle_endpoint_profile, relationship("one.test").bundle_endpoint_profile);
    assert_eq!(told.trust_domain_bundle.as_ref().unwrap().sequence_number, 4);

    let request = BatchDeleteFederationRelationshipRequest {
        trust_domains: ["one.test", "one.test", "", "UPPER"].map(str::to_owned).to_vec(),
    };
    let results = client.batch_delete_federation_relationship(request).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::NotFound, Code::InvalidArgument, Code::InvalidArgument]);
    assert_eq!(results[3].trust_domain, "UPPER");
    let request = GetFederatedBundleRequest { trust_domain: "one.test".to_owned(), output_mask: None };
    let gone = bundles(rig.local().await).get_federated_bundle(request).await;
    assert_eq!(refusal(gone).reason, Reason::NotFound);
}

#[tokio::test]
async fn foreign_bundles_are_created_changed_listed_and_deleted() {
    let rig = Rig::start().await;
    let mut client = bundles(rig.local().await);
    let given = vec![bundle("b.test", 1), bundle("example.org", 1), bundle("b.test", 2), bundle("", 1)];
    let request = BatchCreateFederatedBundleRequest { bundle: given.clone(), output_mask: None };
    let results = client.batch_create_federated_bundle(request).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument, Code::AlreadyExists, Code::InvalidArgument]);
    assert_eq!(results[0].bundle.as_ref(), Some(&given[0]));

    let request = BatchSetFederatedBundleRequest {
        bundle: vec![bundle("a.test", 5), bundle("b.test", 6), bundle("example.org", 1)],
        output_mask: Some(types::BundleMask { sequence_number: true, ..types::BundleMask::default() }),
    };
    let results = client.batch_set_federated_bundle(request).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::Ok, Code::InvalidArgument]);
    let told = results[1].bundle.as_ref().unwrap();
    assert_eq!((told.sequence_number, told.refresh_hint), (6, 0));

    let request = BatchUpdateFederatedBundleRequest {
        bundle: vec![bundle("b.test", 9), bundle("c.test", 9), bundle("example.org", 9)],
        input_mask: Some(types::BundleMask { refresh_hint: true, ..types::BundleMask::default() }),
        output_mask: None,
    };
    let results = client.batch_update_federated_bundle(request).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::NotFound, Code::InvalidArgument]);
    assert_eq!(results[0].bundle.as_ref().unwrap().sequence_number, 6, "the mask does not name it");

    let list =
        |page_token: String| ListFederatedBundlesRequest { output_mask: None, page_size: 1, page_token };
    let first = client.list_federated_bundles(list(String::new())).await.unwrap().into_inner();
    let second = client.list_federated_bundles(list(first.next_page_token)).await.unwrap().into_inner();
    assert_eq!((first.bundles[0].trust_domain.as_str(), second.next_page_token.as_str()), ("a.test", ""));
    assert_eq!(second.bundles[0].trust_domain, "b.test");
    let count = client.count_bundles(CountBundlesRequest {}).await.unwrap().into_inner().count;
    assert_eq!(count, 3, "the own one counts");

    let node = trust_domain().join("/node").unwrap();
    let federated = types::Entry {
        federates_with: vec!["a.test".to_owned(), "b.test".to_owned()],
        ..entry(&node, "/w", "unix:uid:1")
    };
    let id = rig.register(vec![federated]).await.remove(0).id;
    let delete = |names: &[&str], mode: i32| BatchDeleteFederatedBundleRequest {
        trust_domains: names.iter().map(|name| (*name).to_owned()).collect(),
        mode,
    };
    let asked = delete(&["a.test", "example.org", "c.test", "UPPER"], Mode::Restrict.into());
    let results = client.batch_delete_federated_bundle(asked).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(
        codes,
        [Code::FailedPrecondition, Code::InvalidArgument, Code::NotFound, Code::InvalidArgument]
    );
    let asked = delete(&["a.test"], Mode::Dissociate.into());
    client.batch_delete_federated_bundle(asked).await.unwrap();
    let get = || GetEntryRequest { id: id.clone(), output_mask: None };
    let left = entries(rig.local().await).get_entry(get()).await.unwrap().into_inner();
    assert_eq!(left.federates_with, ["b.test"]);
    client.batch_delete_federated_bundle(delete(&["b.test"], Mode::Delete.into())).await.unwrap();
    let gone = entries(rig.local().await).get_entry(get()).await;
    assert_eq!(refusal(gone).reason, Reason::NotFound);
    let unknown = client.batch_delete_federated_bundle(delete(&["b.test"], 7)).await;
    assert_eq!(refusal(unknown).reason, Reason::Invalid);
}

#[tokio::test]
async fn what_was_done_is_acknowledged_even_where_the_bundles_outgrow_the_answer() {
    let rig = Rig::start().await;
    let keys: Vec<types::JwtKey> =
        (0..50).map(|at| jwt_key(&rig, &format!("{at}{}", "k".repeat(900)))).collect();
    let names: Vec<String> = (0..120).map(|at| format!("td{at}.test")).collect();
    let mut client = bundles(rig.local().await);
    for some in names.chunks(60) {
        let whole = |name: &String| types::Bundle { jwt_authorities: keys.clone(), ..bundle(name, 1) };
        let request =
            BatchSetFederatedBundleRequest { bundle: some.iter().map(whole).collect(), output_mask: None };
        client.batch_set_federated_bundle(request).await.unwrap();
    }
    let request = BatchUpdateFederatedBundleRequest {
        bundle: names.iter().map(|name| bundle(name, 2)).collect(),
        input_mask: Some(types::BundleMask { sequence_number: true, ..types::BundleMask::default() }),
        output_mask: None,
    };
    let results = client.batch_update_federated_bundle(request).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| code(result.status.as_ref()) == Code::Ok));
    let told: Vec<&types::Bundle> = results.iter().map(|result| result.bundle.as_ref().unwrap()).collect();
    assert!(told.iter().zip(&names).all(|(bundle, name)| bundle.trust_domain == *name));
    assert_eq!((told[0].jwt_authorities.len(), told[119].jwt_authorities.len()), (50, 0));
    assert!(!told[0].jwt_authorities[0].tainted, "of a foreign bundle nothing is tainted");
}

#[tokio::test]
async fn the_own_bundle_takes_what_operators_append_and_servers_below_publish() {
    let rig = Rig::start().await;
    let mut client = bundles(rig.local().await);
    let before = client.get_bundle(GetBundleRequest { output_mask: None }).await.unwrap().into_inner();
    let append = |jwt_authorities: Vec<types::JwtKey>, output_mask| AppendBundleRequest {
        x509_authorities: before.x509_authorities.clone(),
        jwt_authorities,
        output_mask,
        wit_authorities: Vec::new(),
    };
    let key = jwt_key(&rig, "appended");
    let after = client.append_bundle(append(vec![key.clone()], None)).await.unwrap().into_inner();
    assert_eq!(after.sequence_number, before.sequence_number + 1);
    assert_eq!(after.x509_authorities, before.x509_authorities);
    assert_eq!(after.jwt_authorities.len(), before.jwt_authorities.len() + 1);
    assert!(after.jwt_authorities.iter().all(|key| !key.tainted));
    let none = Some(types::BundleMask::default());
    let masked = client.append_bundle(append(vec![key], none)).await.unwrap().into_inner();
    assert_eq!(masked, types::Bundle { trust_domain: "example.org".to_owned(), ..types::Bundle::default() });
    let empty = AppendBundleRequest {
        x509_authorities: Vec::new(),
        jwt_authorities: Vec::new(),
        output_mask: None,
        wit_authorities: vec![types::WitKey::default()],
    };
    assert_eq!(refusal(client.append_bundle(empty).await).reason, Reason::Invalid);
    let other = jwt_key(&rig, "appended");
    let taken = client.append_bundle(append(vec![other], None)).await;
    assert_eq!(refusal(taken).reason, Reason::AlreadyExists);

    let below = holder(&rig, "/below", |entry| entry.downstream = true).await;
    let mut downstream = bundles(rig.remote(Some(&below)).await.unwrap());
    let request = PublishJwtAuthorityRequest { jwt_authority: Some(jwt_key(&rig, "below")) };
    let published = downstream.publish_jwt_authority(request.clone()).await.unwrap().into_inner();
    let ids: Vec<&str> = published.jwt_authorities.iter().map(|key| key.key_id.as_str()).collect();
    assert_eq!(ids.last(), Some(&"below"));
    assert_eq!(published.jwt_authorities.len(), after.jwt_authorities.len() + 1);
    let missing = downstream.publish_jwt_authority(PublishJwtAuthorityRequest { jwt_authority: None }).await;
    assert_eq!(refusal(missing).reason, Reason::Invalid);
    let wit = downstream.publish_wit_authority(PublishWitAuthorityRequest { wit_authority: None }).await;
    assert_eq!(refusal(wit).reason, Reason::Unimplemented);
    assert_eq!(refusal(client.publish_jwt_authority(request).await).reason, Reason::Denied);
}

#[tokio::test]
async fn bundles_are_fetched_on_demand_and_how_that_went_is_told() {
    let rig = Rig::start().await;
    let mut client = relationships(rig.local().await);
    let ca = Ca::new("spiffe://one.test");
    let served = document(&ca.bundle("one.test", 9));
    let leaf = ca.leaf(vec![uri("spiffe://one.test/endpoint")]);
    let endpoint = FakeEndpoint::start(leaf, move |_| served.clone()).await;
    let one = types::FederationRelationship {
        bundle_endpoint_url: endpoint.url("/"),
        trust_domain_bundle: Some(convert::bundle::to_wire(&ca.bundle("one.test", 1))),
        ..relationship("one.test")
    };
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![one, relationship("two.test")],
        output_mask: None,
    };
    client.batch_create_federation_relationship(request).await.unwrap();
    let refresh = |name: &str| RefreshBundleRequest { trust_domain: name.to_owned() };
    client.refresh_bundle(refresh("one.test")).await.unwrap();
    let request = GetFederatedBundleRequest { trust_domain: "one.test".to_owned(), output_mask: None };
    let agent = rig.agent().await;
    let fetched =
        bundles(rig.remote(Some(&agent)).await.unwrap()).get_federated_bundle(request).await.unwrap();
    assert_eq!(fetched.into_inner(), convert::bundle::to_wire(&ca.bundle("one.test", 9)));
    for (name, reason, said) in [
        ("two.test", Reason::Internal, "whose bundle is not held"),
        ("three.test", Reason::NotFound, "no relationship"),
        ("UPPER", Reason::Invalid, "trust domain"),
    ] {
        let refused = refusal(client.refresh_bundle(refresh(name)).await);
        assert_eq!(refused.reason, reason, "{refused}");
        assert!(refused.public.contains(said), "{refused}");
    }
    let list = |page_token: String| ListStatusRequest { page_size: 1, page_token };
    let mut federation = FederationClient::new(rig.local().await);
    let first = federation.list_status(list(String::new())).await.unwrap().into_inner();
    let second = federation.list_status(list(first.next_page_token)).await.unwrap().into_inner();
    let (one, two) = (&first.statuses[0], &second.statuses[0]);
    assert_eq!((one.trust_domain.as_str(), one.last_error.as_str(), one.failures), ("one.test", "", 0));
    assert!(one.last_success > 0 && one.last_attempt > 0 && one.next_attempt > one.last_attempt);
    assert_eq!((two.trust_domain.as_str(), two.last_success), ("two.test", 0));
    assert!(two.failures > 0 && two.last_error.contains("\"two.test\""), "{two:?}");
    let denied =
        FederationClient::new(rig.remote(Some(&agent)).await.unwrap()).list_status(list(String::new())).await;
    assert_eq!(refusal(denied).reason, Reason::Denied);
}

#[tokio::test]
async fn only_operators_federate() {
    let rig = Rig::start().await;
    let (agent, admin) = (rig.agent().await, holder(&rig, "/admin", |entry| entry.admin = true).await);
    let below = holder(&rig, "/below", |entry| entry.downstream = true).await;
    let everything =
        || ListFederationRelationshipsRequest { output_mask: None, page_size: 0, page_token: String::new() };
    let set = || BatchSetFederatedBundleRequest { bundle: vec![bundle("a.test", 1)], output_mask: None };
    for (who, is_allowed) in
        [(None, false), (Some(&agent), false), (Some(&below), false), (Some(&admin), true)]
    {
        let channel = rig.remote(who).await.unwrap();
        let listed = relationships(channel.clone()).list_federation_relationships(everything()).await;
        let set = bundles(channel).batch_set_federated_bundle(set()).await;
        assert_eq!((listed.is_ok(), set.is_ok()), (is_allowed, is_allowed), "{:?}", who.map(id));
        if !is_allowed {
            assert_eq!(refusal(listed).reason, Reason::Denied);
            assert_eq!(refusal(set).reason, Reason::Denied);
        }
    }
    let request = GetFederatedBundleRequest { trust_domain: "a.test".to_owned(), output_mask: None };
    let fetched = bundles(rig.remote(Some(&agent)).await.unwrap()).get_federated_bundle(request).await;
    assert_eq!(
        fetched.unwrap().into_inner(),
        bundle("a.test", 1),
        "agents get what their entries federate with"
    );
}

fn id(identity: &Identity) -> &SpiffeId {
    identity.svid.id()
}

#[tokio::test]
async fn a_role_federates_only_with_trust_domains_that_have_no_rights_here() {
    let rig = Rig::start_with(
        "admin_ids = [\"spiffe://ally.org/admin\"]\n\
         [[role]]\nname = \"trust\"\nverbs = [\"bundle.write\", \"federation.read\", \"federation.write\"]\n\
         granted_to = { spiffe_ids = [\"spiffe://example.org/fed\"] }\n",
    )
    .await;
    let fed = holder(&rig, "/fed", |_| {}).await;
    let channel = rig.remote(Some(&fed)).await.unwrap();
    let (mut trust, mut sets) = (relationships(channel.clone()), bundles(channel));
    let create = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![relationship("other.org"), relationship("ally.org")],
        output_mask: None,
    };
    let results = trust.batch_create_federation_relationship(create).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::PermissionDenied]);
    let said = &results[1].status.as_ref().unwrap().message;
    assert!(said.contains("\"ally.org\", whose keys lead to rights that the configuration gives"), "{said}");
    let listed = trust.list_federation_relationships(ListFederationRelationshipsRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().federation_relationships.len(), 1);

    let both = vec![bundle("other.org", 1), bundle("ally.org", 1)];
    let set = BatchSetFederatedBundleRequest { bundle: both, output_mask: None };
    let results = sets.batch_set_federated_bundle(set).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::PermissionDenied]);
    let listed = sets.list_federated_bundles(ListFederatedBundlesRequest::default()).await.unwrap_err();
    assert_eq!(listed.code(), Code::PermissionDenied, "the role does not have bundle.read");
    let append = sets.append_bundle(AppendBundleRequest::default()).await.unwrap_err();
    assert_eq!(append.code(), Code::PermissionDenied);

    let delete = |mode| BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["other.org".to_owned(), "ally.org".to_owned()],
        mode: i32::from(mode),
    };
    for mode in [Mode::Delete, Mode::Dissociate] {
        let refused = sets.batch_delete_federated_bundle(delete(mode)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{mode:?} changes entries");
    }
    let results =
        sets.batch_delete_federated_bundle(delete(Mode::Restrict)).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::PermissionDenied]);
    let refresh = RefreshBundleRequest { trust_domain: "ally.org".to_owned() };
    assert_eq!(trust.refresh_bundle(refresh).await.unwrap_err().code(), Code::PermissionDenied);
    let end = BatchDeleteFederationRelationshipRequest {
        trust_domains: vec!["ally.org".to_owned(), "other.org".to_owned()],
    };
    let results = trust.batch_delete_federation_relationship(end).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::PermissionDenied, Code::Ok]);
}
