//! Do roles let their holders do what they say, and nothing else, and is it explained?

use passant_proto::access::access_client::AccessClient;
use passant_proto::access::check_request::Caller;
use passant_proto::access::{CheckRequest, CheckResponse, LocalUser};
use passant_proto::agent::{BanAgentRequest, CreateJoinTokenRequest, ListAgentsRequest};
use passant_proto::bundle::{BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest};
use passant_proto::convert;
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest,
};
use passant_proto::federation::ListStatusRequest;
use passant_proto::federation::federation_client::FederationClient;
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{GetX509AuthorityStateRequest, PrepareX509AuthorityRequest};
use passant_proto::svid::{MintJwtsvidRequest, MintX509svidRequest};
use passant_proto::trustdomain::trust_domain_client::TrustDomainClient;
use passant_proto::trustdomain::{BatchCreateFederationRelationshipRequest, RefreshBundleRequest};
use passant_proto::types;
use passant_proto::types::federation_relationship::BundleEndpointProfile;
use tonic::{Code, Status};

use super::rig::{Identity, Rig, agents, bundles, entries, entry, svids, trust_domain, wire_id};

const ROLES: &str = "admin_ids = [\"spiffe://example.org/pay/boss\"]\n\
    [[role]]\nname = \"pay\"\nverbs = [\"entry.read\", \"entry.create\", \"entry.update\", \"entry.delete\", \"svid.mint\"]\n\
    spiffe_id_prefixes = [\"spiffe://example.org/pay\"]\n\
    parent_id_prefixes = [\"spiffe://example.org/node\", \"spiffe://example.org/spire/agent\"]\n\
    selector_types = [\"unix\"]\ngranted_to = { spiffe_ids = [\"spiffe://example.org/pay/ci\"] }\n\
    [[role]]\nname = \"watch\"\nverbs = [\"authority.read\", \"agent.read\"]\n\
    parent_id_prefixes = [\"spiffe://example.org/spire/agent/join_token\"]\n\
    granted_to = { spiffe_ids = [\"spiffe://example.org/watcher\"], uids = [4242] }\n";

/// A server with roles, one agent, and the holders of the roles.
struct Site {
    rig: Rig,
    agent: Identity,
    ci: Identity,
    watcher: Identity,
}

impl Site {
    async fn start() -> Self {
        let rig = Rig::start_with(ROLES).await;
        let agent = rig.agent().await;
        let own = |path, uid| entry(agent.svid.id(), path, uid);
        let made = rig.register(vec![own("/pay/ci", "unix:uid:1"), own("/watcher", "unix:uid:2")]).await;
        let ci = rig.svid_of(&agent, &made[0].id).await;
        let watcher = rig.svid_of(&agent, &made[1].id).await;
        Self { rig, agent, ci, watcher }
    }

    /// Registers what the role does not cover, and one that it does.
    async fn mixed(&self) -> Vec<types::Entry> {
        let node = trust_domain().join("/node").unwrap();
        self.rig
            .register(vec![
                entry(&node, "/pay/api", "unix:uid:1"),
                entry(&node, "/web", "unix:uid:1"),
                entry(&node, "/pay/pod", "k8s:ns:pay"),
                types::Entry { admin: true, ..entry(&node, "/pay/ops", "unix:uid:1") },
            ])
            .await
    }
}

fn codes(statuses: impl IntoIterator<Item = Option<types::Status>>) -> Vec<Code> {
    statuses.into_iter().map(|status| Code::from_i32(status.unwrap().code)).collect()
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

const FEDERATION: &str = "admin_ids = [\"spiffe://prod.test/boss\"]\n\
    [[role]]\nname = \"federation\"\n\
    verbs = [\"bundle.write\", \"federation.read\", \"federation.write\"]\n\
    granted_to = { spiffe_ids = [\"spiffe://example.org/federator\"] }\n";

fn relationship(trust_domain: &str, url: &str, endpoint_id: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: trust_domain.to_owned(),
        bundle_endpoint_url: url.to_owned(),
        bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: endpoint_id.to_owned(),
        })),
        trust_domain_bundle: None,
    }
}

#[tokio::test]
async fn the_token_of_a_holder_lives_for_an_hour_at_most() {
    let rig = Rig::start_with(
        "[[role]]\nname = \"tokens\"\nverbs = [\"token.create\"]\n\
         spiffe_id_prefixes = [\"spiffe://example.org/pool\"]\n\
         parent_id_prefixes = [\"spiffe://example.org/spire/agent/join_token\"]\n\
         granted_to = { spiffe_ids = [\"spiffe://example.org/federator\"] }\n",
    )
    .await;
    let mut holder = agents(rig.remote(Some(&federator(&rig).await)).await.unwrap());
    let ask = |ttl| CreateJoinTokenRequest { ttl, ..CreateJoinTokenRequest::default() };
    assert_eq!(code(holder.create_join_token(ask(3_600)).await), Code::Ok);
    assert_eq!(code(holder.create_join_token(ask(3_601)).await), Code::InvalidArgument);
    assert_eq!(code(agents(rig.local().await).create_join_token(ask(3_601)).await), Code::Ok);
}

/// The holder of the role of [`FEDERATION`].
async fn federator(rig: &Rig) -> Identity {
    let agent = rig.agent().await;
    let made = rig.register(vec![entry(agent.svid.id(), "/federator", "unix:uid:1")]).await.remove(0);
    rig.svid_of(&agent, &made.id).await
}

#[tokio::test]
async fn a_holder_decides_about_no_trust_domain_that_leads_to_rights() {
    let rig = Rig::start_with(FEDERATION).await;
    let federator = rig.remote(Some(&federator(&rig).await)).await.unwrap();
    let given = relationship("prod.test", "https://127.0.0.1:1/", "spiffe://infra.test/ep");
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![given],
        ..Default::default()
    };
    TrustDomainClient::new(rig.local().await).batch_create_federation_relationship(request).await.unwrap();
    let names = ["prod.test", "infra.test", "shop.test"];
    let expected = [Code::PermissionDenied, Code::PermissionDenied, Code::Ok];
    let bundle = |name: &str| types::Bundle { trust_domain: name.to_owned(), ..types::Bundle::default() };
    let mut client = bundles(federator.clone());
    let request = BatchSetFederatedBundleRequest { bundle: names.map(bundle).into(), ..Default::default() };
    let results = client.batch_set_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(codes(results.into_iter().map(|result| result.status)), expected);
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: names.map(str::to_owned).into(),
        ..Default::default()
    };
    let results = client.batch_delete_federated_bundle(request).await.unwrap().into_inner().results;
    assert_eq!(codes(results.into_iter().map(|result| result.status)), expected);
    let all = names.map(|name| relationship(name, "https://127.0.0.1:1/", &format!("spiffe://{name}/ep")));
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: all.into(),
        ..Default::default()
    };
    let mut client = TrustDomainClient::new(federator);
    let results = client.batch_create_federation_relationship(request).await.unwrap().into_inner().results;
    assert_eq!(codes(results.into_iter().map(|result| result.status)), expected);
}

#[tokio::test]
async fn a_holder_is_not_told_what_answers_at_which_address() {
    let rig = Rig::start_with(FEDERATION).await;
    let holder = rig.remote(Some(&federator(&rig).await)).await.unwrap();
    let mut given = relationship("shop.test", "https://127.0.0.1:1/", "spiffe://shop.test/ep");
    given.bundle_endpoint_profile = Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}));
    let request = BatchCreateFederationRelationshipRequest {
        federation_relationships: vec![given],
        ..Default::default()
    };
    let mut client = TrustDomainClient::new(holder.clone());
    client.batch_create_federation_relationship(request).await.unwrap();
    let refresh = || RefreshBundleRequest { trust_domain: "shop.test".to_owned() };
    let refused = client.refresh_bundle(refresh()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert_eq!(refused.message(), "failed to refresh bundle: the server's log says why");
    let told = async |channel| {
        let request = ListStatusRequest::default();
        let answer = FederationClient::new(channel).list_status(request).await.unwrap();
        answer.into_inner().statuses.remove(0).last_error
    };
    assert_eq!(told(holder).await, "the server's log says why");
    let local = rig.local().await;
    let refused = TrustDomainClient::new(local.clone()).refresh_bundle(refresh()).await.unwrap_err();
    assert!(refused.message().len() > "failed to refresh bundle: the server's log says why".len());
    assert!(told(local).await != "the server's log says why");
}

#[tokio::test]
async fn a_holder_sees_what_the_role_covers() {
    let site = Site::start().await;
    let made = site.mixed().await;
    let mut client = entries(site.rig.remote(Some(&site.ci)).await.unwrap());
    let listed = client.list_entries(ListEntriesRequest::default()).await.unwrap().into_inner().entries;
    let mut paths: Vec<String> = listed.into_iter().map(|entry| entry.spiffe_id.unwrap().path).collect();
    paths.sort();
    assert_eq!(paths, ["/pay/api", "/pay/ci", "/pay/ops"]);
    let counted = client.count_entries(CountEntriesRequest::default()).await.unwrap().into_inner();
    assert_eq!(counted.count, 3);
    let mut seen = Vec::new();
    for entry in &made {
        seen.push(code(client.get_entry(GetEntryRequest { id: entry.id.clone(), output_mask: None }).await));
    }
    assert_eq!(seen, [Code::Ok, Code::NotFound, Code::NotFound, Code::Ok]);
    // Pages are filled with what is seen.
    let first = ListEntriesRequest { page_size: 2, ..ListEntriesRequest::default() };
    let page = client.list_entries(first).await.unwrap().into_inner();
    assert_eq!((page.entries.len(), page.next_page_token.is_empty()), (2, false));
    let next = ListEntriesRequest { page_size: 2, page_token: page.next_page_token, ..Default::default() };
    let page = client.list_entries(next).await.unwrap().into_inner();
    assert_eq!((page.entries.len(), page.next_page_token.is_empty()), (1, true));
}

#[tokio::test]
async fn a_holder_creates_what_the_role_covers() {
    let site = Site::start().await;
    let node = trust_domain().join("/node").unwrap();
    let server = trust_domain().server_id();
    let drafts = vec![
        entry(&node, "/web", "unix:uid:1"),
        entry(&node, "/pay/a", "unix:uid:1"),
        entry(&server, "/pay/b", "unix:uid:1"),
        entry(&node, "/pay/c", "k8s:ns:pay"),
        types::Entry { admin: true, ..entry(&node, "/pay/d", "unix:uid:1") },
        types::Entry { downstream: true, ..entry(&node, "/pay/e", "unix:uid:1") },
        entry(&node, "/pay/boss", "unix:uid:1"),
        entry(&node, "/pay/ci", "unix:uid:9"),
        entry(&node, "/payroll", "unix:uid:1"),
    ];
    let mut client = entries(site.rig.remote(Some(&site.ci)).await.unwrap());
    let request = BatchCreateEntryRequest { entries: drafts, output_mask: None };
    let results = client.batch_create_entry(request).await.unwrap().into_inner().results;
    let said = results[0].status.clone().unwrap().message;
    assert!(said.contains("role \"pay\" does not cover SPIFFE ID"), "{said}");
    let mut expected = [Code::PermissionDenied; 9];
    expected[1] = Code::Ok;
    assert_eq!(codes(results.into_iter().map(|result| result.status)), expected);
    let all = entries(site.rig.local().await).count_entries(CountEntriesRequest::default()).await.unwrap();
    assert_eq!(all.into_inner().count, 3);
}

#[tokio::test]
async fn an_update_must_be_covered_before_and_after() {
    let site = Site::start().await;
    let made = site.mixed().await;
    let mut client = entries(site.rig.remote(Some(&site.ci)).await.unwrap());
    let mut update = async |entry: types::Entry, input_mask: types::EntryMask| {
        let request =
            BatchUpdateEntryRequest { entries: vec![entry], input_mask: Some(input_mask), output_mask: None };
        let results = client.batch_update_entry(request).await.unwrap().into_inner().results;
        codes(results.into_iter().map(|result| result.status)).remove(0)
    };
    let hint = types::EntryMask { hint: true, ..types::EntryMask::default() };
    let hinted =
        |at: usize| types::Entry { id: made[at].id.clone(), hint: "x".to_owned(), ..Default::default() };
    assert_eq!(update(hinted(0), hint).await, Code::Ok);
    assert_eq!(update(hinted(1), hint).await, Code::NotFound);
    assert_eq!(update(hinted(2), hint).await, Code::NotFound);
    assert_eq!(update(hinted(3), hint).await, Code::PermissionDenied, "an administrator's entry");
    let id = made[0].id.clone();
    let moved = types::Entry { id: id.clone(), spiffe_id: Some(wire_id("/web")), ..Default::default() };
    let mask = types::EntryMask { spiffe_id: true, ..Default::default() };
    assert_eq!(update(moved, mask).await, Code::PermissionDenied);
    let raised = types::Entry { id: id.clone(), admin: true, ..Default::default() };
    let mask = types::EntryMask { admin: true, ..Default::default() };
    assert_eq!(update(raised, mask).await, Code::PermissionDenied);
    let below =
        types::Entry { id: id.clone(), parent_id: Some(wire_id("/spire/server")), ..Default::default() };
    let mask = types::EntryMask { parent_id: true, ..Default::default() };
    assert_eq!(update(below, mask).await, Code::PermissionDenied);
    let mut operator = entries(site.rig.local().await);
    let stands = operator.get_entry(GetEntryRequest { id, output_mask: None }).await.unwrap().into_inner();
    assert_eq!(
        (stands.hint.as_str(), stands.spiffe_id, stands.admin),
        ("x", Some(wire_id("/pay/api")), false)
    );
}

#[tokio::test]
async fn a_holder_deletes_what_the_role_covers() {
    let site = Site::start().await;
    let ids = site.mixed().await.into_iter().map(|entry| entry.id).collect();
    let mut client = entries(site.rig.remote(Some(&site.ci)).await.unwrap());
    let results =
        client.batch_delete_entry(BatchDeleteEntryRequest { ids }).await.unwrap().into_inner().results;
    assert_eq!(
        codes(results.into_iter().map(|result| result.status)),
        [Code::Ok, Code::NotFound, Code::NotFound, Code::PermissionDenied]
    );
}

#[tokio::test]
async fn a_holder_mints_what_the_role_covers() {
    let site = Site::start().await;
    let mut client = svids(site.rig.remote(Some(&site.ci)).await.unwrap());
    for (path, expected) in [
        ("/pay/batch", Code::Ok),
        ("/web", Code::PermissionDenied),
        ("/pay/boss", Code::PermissionDenied),
        ("/pay/ci", Code::PermissionDenied),
    ] {
        let id = trust_domain().join(path).unwrap();
        let csr = passant_core::csr::make(&*site.rig.key(), Some(&id)).unwrap();
        let x509 = client.mint_x509svid(MintX509svidRequest { csr, ttl: 60 }).await;
        assert_eq!(code(x509), expected, "{path}");
        let request =
            MintJwtsvidRequest { id: Some(wire_id(path)), audience: vec!["db".to_owned()], ttl: 60 };
        assert_eq!(code(client.mint_jwtsvid(request).await), expected, "{path}");
    }
}

#[tokio::test]
async fn what_no_role_of_the_caller_names_is_refused() {
    let site = Site::start().await;
    for (identity, reads_agents) in [(&site.ci, false), (&site.watcher, true), (&site.agent, false)] {
        let channel = site.rig.remote(Some(identity)).await.unwrap();
        let expected = if reads_agents { Code::Ok } else { Code::PermissionDenied };
        let listed = agents(channel.clone()).list_agents(ListAgentsRequest::default()).await;
        assert_eq!(code(listed), expected);
        let mut authorities = LocalAuthorityClient::new(channel.clone());
        let got = authorities.get_x509_authority_state(GetX509AuthorityStateRequest {}).await;
        assert_eq!(code(got), expected);
        let prepared = authorities.prepare_x509_authority(PrepareX509AuthorityRequest {}).await;
        assert_eq!(code(prepared), Code::PermissionDenied);
        let id = Some(convert::id::to_wire(site.agent.svid.id()));
        let banned = agents(channel.clone()).ban_agent(BanAgentRequest { id }).await;
        assert_eq!(code(banned), Code::PermissionDenied);
        let request = CreateJoinTokenRequest { ttl: 60, ..CreateJoinTokenRequest::default() };
        assert_eq!(code(agents(channel).create_join_token(request).await), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn decisions_are_explained_to_administrators_and_to_those_they_concern() {
    let site = Site::start().await;
    let made = site.mixed().await;
    let mut operator = AccessClient::new(site.rig.local().await);
    let ask = |path: &str, verb: &str| CheckRequest {
        caller: Some(Caller::SpiffeId(format!("spiffe://example.org{path}"))),
        verb: verb.to_owned(),
        ..CheckRequest::default()
    };
    let mut about =
        async |request: CheckRequest| operator.check(request).await.map(tonic::Response::into_inner);
    let check = |answer: CheckResponse, allowed: bool, reason: &str| {
        assert_eq!(answer.allowed, allowed, "{answer:?}");
        assert!(answer.reason.contains(reason), "{answer:?}");
    };
    let of = |at: usize, request| CheckRequest { entry_id: made[at].id.clone(), ..request };
    check(about(of(0, ask("/pay/ci", "entry.delete"))).await.unwrap(), true, "role \"pay\" allows it");
    check(about(of(1, ask("/pay/ci", "entry.delete"))).await.unwrap(), false, "SPIFFE ID");
    check(about(of(3, ask("/pay/ci", "entry.delete"))).await.unwrap(), false, "admin flag");
    check(about(of(1, ask("/pay/boss", "entry.delete"))).await.unwrap(), true, "admin_ids");
    check(about(of(1, ask("/pay/ops", "entry.delete"))).await.unwrap(), true, "makes it an administrator");
    check(about(of(1, ask("/else", "entry.delete"))).await.unwrap(), false, "holds no role");
    let moved = CheckRequest {
        entry: Some(types::Entry { spiffe_id: Some(wire_id("/web")), ..types::Entry::default() }),
        input_mask: Some(types::EntryMask { spiffe_id: true, ..types::EntryMask::default() }),
        ..of(0, ask("/pay/ci", "entry.update"))
    };
    check(about(moved).await.unwrap(), false, "/web");
    let target =
        CheckRequest { target: "spiffe://example.org/pay/x".to_owned(), ..ask("/pay/ci", "svid.mint") };
    check(about(target).await.unwrap(), true, "pay");
    let user = |uid| CheckRequest {
        caller: Some(Caller::Local(LocalUser { uid, gids: vec![1] })),
        ..ask("", "authority.read")
    };
    let trust =
        CheckRequest { target: "spiffe://other.org".to_owned(), ..ask("/pay/ci", "federation.write") };
    check(about(trust).await.unwrap(), false, "does not have the verb federation.write");
    check(about(user(0)).await.unwrap(), true, "root");
    check(about(user(4242)).await.unwrap(), true, "role \"watch\"");
    check(about(user(4243)).await.unwrap(), false, "holds no role");
    let answer = about(user(4242)).await.unwrap();
    let roles: Vec<_> = answer.roles.iter().map(|one| (one.role.as_str(), one.held, one.allows)).collect();
    assert_eq!(roles, [("watch", true, true), ("pay", false, false)]);
    for (bad, expected) in [
        (ask("/pay/ci", "entry.destroy"), Code::InvalidArgument),
        (ask("/pay/ci", "entry.update"), Code::InvalidArgument),
        (ask("/pay/ci", "entry.create"), Code::InvalidArgument),
        (ask("/pay/ci", "agent.ban"), Code::InvalidArgument),
        (ask("/pay/ci", "bundle.write"), Code::InvalidArgument),
        (ask("/a//b", "authority.read"), Code::InvalidArgument),
        (CheckRequest { entry_id: "absent".to_owned(), ..ask("/pay/ci", "entry.delete") }, Code::NotFound),
    ] {
        assert_eq!(code(about(bad.clone()).await), expected, "{bad:?}");
    }
    // Nothing was done.
    let count = entries(site.rig.local().await).count_entries(CountEntriesRequest::default()).await.unwrap();
    assert_eq!(count.into_inner().count, 6);

    let mut holder = AccessClient::new(site.rig.remote(Some(&site.ci)).await.unwrap());
    let own = CheckRequest { caller: None, ..of(0, ask("", "entry.delete")) };
    let answer = holder.check(own).await.unwrap().into_inner();
    assert!(answer.allowed && answer.caller.starts_with("role pay spiffe://"), "{answer:?}");
    assert_eq!(answer.roles.len(), 1, "of other roles it learns nothing");
    let hidden = CheckRequest { caller: None, ..of(1, ask("", "entry.delete")) };
    assert_eq!(code(holder.check(hidden).await), Code::NotFound);
    assert_eq!(code(holder.check(ask("/watcher", "agent.read")).await), Code::PermissionDenied);
    for identity in [None, Some(&site.agent)] {
        let mut nobody = AccessClient::new(site.rig.remote(identity).await.unwrap());
        assert_eq!(code(nobody.check(ask("/pay/ci", "bundle.read")).await), Code::PermissionDenied);
    }
}
