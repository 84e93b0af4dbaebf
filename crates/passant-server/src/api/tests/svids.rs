//! Are SVIDs and bundles handed out as asked, to those who may have them?

use passant_core::{Reason, csr, jwt_svid::JwtSvid, x509_svid};
use passant_proto::bundle::{
    CountBundlesRequest, GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use passant_proto::convert;
use passant_proto::svid::{
    BatchNewX509svidRequest, MintJwtsvidRequest, MintWitsvidRequest, MintX509svidRequest,
    NewDownstreamX509caRequest, NewJwtsvidRequest, NewX509svidParams,
};
use passant_proto::types;
use std::sync::Arc;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::rig::{Identity, Rig, bundles, entry, refusal, svids, trust_domain, wire_id};

#[tokio::test]
async fn a_batch_of_x509_svids_is_answered_by_position() {
    let rig = Rig::start().await;
    let (agent, other) = (rig.agent().await, rig.agent().await);
    let wanted = types::Entry {
        dns_names: vec!["web.example.org".to_owned()],
        x509_svid_ttl: 60,
        ..entry(agent.svid.id(), "/web", "unix:uid:1")
    };
    let made = rig.register(vec![wanted, entry(other.svid.id(), "/other", "unix:uid:1")]).await;
    let csr = csr::make(&*rig.key(), None).unwrap();
    let ask =
        |entry_id: &str, csr: &[u8]| NewX509svidParams { entry_id: entry_id.to_owned(), csr: csr.to_vec() };
    let params = vec![
        ask(&made[1].id, &csr),
        ask(&made[0].id, b"rubbish"),
        ask("", &csr),
        ask(&made[0].id, b""),
        ask(&made[0].id, &csr),
    ];
    let mut client = svids(rig.remote(Some(&agent)).await.unwrap());
    let answer = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
    let codes: Vec<Code> =
        answer.results.iter().map(|result| Code::from_i32(result.status.as_ref().unwrap().code)).collect();
    assert_eq!(
        codes,
        [Code::NotFound, Code::InvalidArgument, Code::InvalidArgument, Code::InvalidArgument, Code::Ok]
    );
    let svid = convert::svid::x509_from_wire(answer.results[4].svid.as_ref().unwrap()).unwrap();
    assert_eq!(svid.id().path(), "/web");
    let now = rig.host.now();
    let verified = x509_svid::verify(svid.chain().to_vec(), &rig.running.bundle(), now).unwrap();
    assert!(verified.not_after() <= now.plus(std::time::Duration::from_secs(60)));

    let none = client.batch_new_x509svid(BatchNewX509svidRequest { params: Vec::new() }).await;
    assert_eq!(refusal(none).reason, Reason::Invalid);
}

#[tokio::test]
async fn a_batch_that_outgrows_one_message_is_answered_as_far_as_it_fits() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let label = "d".repeat(60);
    let dns_names = (0..240).map(|at| format!("n{at}.{label}.{label}.{label}.{label}")).collect();
    let large = types::Entry { dns_names, ..entry(agent.svid.id(), "/large", "unix:uid:1") };
    let made = rig.register(vec![large]).await;
    let csr = csr::make(&*rig.key(), None).unwrap();
    let param = NewX509svidParams { entry_id: made[0].id.clone(), csr };
    let mut client = svids(rig.remote(Some(&agent)).await.unwrap());
    let request = BatchNewX509svidRequest { params: vec![param; 90] };
    let results = client.batch_new_x509svid(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), 90);
    let codes: Vec<Code> =
        results.iter().map(|result| Code::from_i32(result.status.as_ref().unwrap().code)).collect();
    let fitting = codes.iter().take_while(|code| **code == Code::Ok).count();
    assert!((30..90).contains(&fitting), "{fitting}");
    assert!(codes[fitting..].iter().all(|code| *code == Code::ResourceExhausted), "{codes:?}");
}

#[tokio::test]
async fn a_jwt_svid_is_for_an_entry_of_the_agent_and_an_audience() {
    let rig = Rig::start_with("jwt_issuer = \"https://issuer.example.org\"").await;
    let (agent, other) = (rig.agent().await, rig.agent().await);
    let made = rig.register(vec![entry(agent.svid.id(), "/web", "unix:uid:1")]).await;
    let ask = |audience: &[&str]| NewJwtsvidRequest {
        entry_id: made[0].id.clone(),
        audience: audience.iter().map(|a| (*a).to_owned()).collect(),
    };
    let mut client = svids(rig.remote(Some(&agent)).await.unwrap());
    let svid = client.new_jwtsvid(ask(&["db", "cache"])).await.unwrap().into_inner().svid.unwrap();
    assert!(svid.issued_at > 0 && svid.expires_at > svid.issued_at);
    let bundle = rig.running.bundle();
    let lookup =
        |wanted: &passant_core::TrustDomain| (*wanted == trust_domain()).then(|| Arc::clone(&bundle));
    let verified = JwtSvid::verify(&svid.token, "db", &lookup, rig.host.now()).unwrap();
    assert_eq!(verified.id().path(), "/web");
    assert_eq!(verified.claims()["iss"], "https://issuer.example.org");

    assert_eq!(refusal(client.new_jwtsvid(ask(&[])).await).reason, Reason::Invalid);
    let mut stranger_to_it = svids(rig.remote(Some(&other)).await.unwrap());
    assert_eq!(refusal(stranger_to_it.new_jwtsvid(ask(&["db"])).await).reason, Reason::NotFound);
}

#[tokio::test]
async fn operators_mint_and_others_do_not() {
    let rig = Rig::start().await;
    let mut operator = svids(rig.local().await);
    let id = trust_domain().join("/minted").unwrap();
    let csr = csr::make(&*rig.key(), Some(&id)).unwrap();
    let minted =
        operator.mint_x509svid(MintX509svidRequest { csr: csr.clone(), ttl: 60 }).await.unwrap().into_inner();
    let svid = convert::svid::x509_from_wire(&minted.svid.unwrap()).unwrap();
    assert_eq!(*svid.id(), id);
    for (csr, ttl) in [(Vec::new(), 0), (csr.clone(), -1), (b"rubbish".to_vec(), 0)] {
        assert_eq!(
            refusal(operator.mint_x509svid(MintX509svidRequest { csr, ttl }).await).reason,
            Reason::Invalid
        );
    }
    let ask = |id, audience: &[&str]| MintJwtsvidRequest {
        id,
        audience: audience.iter().map(|a| (*a).to_owned()).collect(),
        ttl: 0,
    };
    let minted = operator.mint_jwtsvid(ask(Some(wire_id("/minted")), &["db"])).await.unwrap().into_inner();
    assert!(!minted.svid.unwrap().token.is_empty());
    for (id, audience) in
        [(None, &["db"][..]), (Some(wire_id("/spire/server")), &["db"]), (Some(wire_id("/a")), &[])]
    {
        assert_eq!(refusal(operator.mint_jwtsvid(ask(id, audience)).await).reason, Reason::Invalid);
    }
    assert_eq!(
        refusal(operator.mint_witsvid(MintWitsvidRequest::default()).await).reason,
        Reason::Unimplemented
    );
    let agent = rig.agent().await;
    let mut client = svids(rig.remote(Some(&agent)).await.unwrap());
    let refused = client.mint_x509svid(MintX509svidRequest { csr, ttl: 0 }).await;
    assert_eq!(refusal(refused).reason, Reason::Denied);
}

/// An entry's X509-SVID in the hands of its workload.
async fn workload(rig: &Rig, change: impl FnOnce(&mut types::Entry)) -> (Identity, String) {
    let agent = rig.agent().await;
    let mut wanted = entry(agent.svid.id(), "/chosen", "unix:uid:1");
    change(&mut wanted);
    let id = rig.register(vec![wanted]).await.remove(0).id;
    let key = rig.key();
    let params = vec![NewX509svidParams { entry_id: id.clone(), csr: csr::make(&*key, None).unwrap() }];
    let mut client = svids(rig.remote(Some(&agent)).await.unwrap());
    let answer = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
    let svid = convert::svid::x509_from_wire(answer.results[0].svid.as_ref().unwrap()).unwrap();
    (Identity { svid, key }, id)
}

#[tokio::test]
async fn an_admin_entry_administers_until_it_is_gone() {
    let rig = Rig::start().await;
    let (admin, id) = workload(&rig, |entry| entry.admin = true).await;
    let mut client = bundles(rig.remote(Some(&admin)).await.unwrap());
    assert_eq!(client.count_bundles(CountBundlesRequest {}).await.unwrap().into_inner().count, 1);
    let delete = passant_proto::entry::BatchDeleteEntryRequest { ids: vec![id] };
    super::rig::entries(rig.local().await).batch_delete_entry(delete).await.unwrap();
    assert_eq!(refusal(client.count_bundles(CountBundlesRequest {}).await).reason, Reason::Denied);
}

#[tokio::test]
async fn admin_ids_administer_without_an_entry_that_says_so() {
    let rig = Rig::start_with("admin_ids = [\"spiffe://example.org/chosen\"]").await;
    let (admin, _) = workload(&rig, |_| {}).await;
    let mut client = bundles(rig.remote(Some(&admin)).await.unwrap());
    client.count_bundles(CountBundlesRequest {}).await.unwrap();
}

#[tokio::test]
async fn authorities_below_are_for_downstream_servers_only_and_as_long_as_they_are() {
    let rig = Rig::start().await;
    let (below, id) = workload(&rig, |entry| entry.downstream = true).await;
    let agent = rig.agent().await;
    let (admin, _) =
        workload(&rig, |entry| (entry.spiffe_id, entry.admin) = (Some(wire_id("/admin")), true)).await;
    let (plain, _) = workload(&rig, |entry| entry.spiffe_id = Some(wire_id("/plain"))).await;
    let ask = || NewDownstreamX509caRequest {
        csr: csr::make(&*rig.key(), Some(&trust_domain().id())).unwrap(),
        preferred_ttl: 60,
    };
    let mut others = vec![rig.local().await, rig.stranger().await];
    for other in [&agent, &admin, &plain] {
        others.push(rig.remote(Some(other)).await.unwrap());
    }
    for channel in others {
        let refused = svids(channel).new_downstream_x509ca(ask()).await;
        assert_eq!(refusal(refused).reason, Reason::Denied);
    }

    let mut client = svids(rig.remote(Some(&below)).await.unwrap());
    let answer = client.new_downstream_x509ca(ask()).await.unwrap().into_inner();
    assert_eq!(answer.ca_cert_chain.len(), 1);
    let published = &rig.running.bundle().x509_authorities;
    assert!(answer.x509_authorities.iter().eq(published.iter().map(|authority| &authority.der)));
    let (_, ca) = X509Certificate::from_der(&answer.ca_cert_chain[0]).unwrap();
    let (_, root) = X509Certificate::from_der(&answer.x509_authorities[0]).unwrap();
    ca.verify_signature(Some(root.public_key())).unwrap();
    let left = ca.validity().not_after.timestamp() - rig.host.now().secs();
    assert!((1..=60).contains(&left), "{left}");

    for (request, said) in [
        (NewDownstreamX509caRequest { csr: Vec::new(), ..ask() }, "missing CSR"),
        (NewDownstreamX509caRequest { csr: b"rubbish".to_vec(), ..ask() }, "malformed"),
        (NewDownstreamX509caRequest { preferred_ttl: -1, ..ask() }, "negative"),
    ] {
        let refused = refusal(client.new_downstream_x509ca(request).await);
        assert_eq!(refused.reason, Reason::Invalid, "{refused}");
        assert!(refused.public.contains(said), "{refused}");
    }

    // Its connection and its X509-SVID are as good as before.
    let delete = passant_proto::entry::BatchDeleteEntryRequest { ids: vec![id] };
    super::rig::entries(rig.local().await).batch_delete_entry(delete).await.unwrap();
    assert_eq!(refusal(client.new_downstream_x509ca(ask()).await).reason, Reason::Denied);
}

#[tokio::test]
async fn the_bundle_is_for_everybody() {
    let rig = Rig::start().await;
    let own = rig.running.bundle();
    let agent = rig.agent().await;
    for channel in [rig.stranger().await, rig.remote(Some(&agent)).await.unwrap(), rig.local().await] {
        let got =
            bundles(channel).get_bundle(GetBundleRequest { output_mask: None }).await.unwrap().into_inner();
        assert_eq!(convert::bundle::from_wire(&got).unwrap(), *own);
    }
    let mask = Some(types::BundleMask { sequence_number: true, ..types::BundleMask::default() });
    let got = bundles(rig.stranger().await).get_bundle(GetBundleRequest { output_mask: mask }).await.unwrap();
    assert!(got.get_ref().x509_authorities.is_empty() && got.get_ref().sequence_number > 0);
}

#[tokio::test]
async fn federated_bundles_are_looked_up() {
    let rig = Rig::start().await;
    let mut operator = bundles(rig.local().await);
    for (trust_domain, reason) in [
        ("elsewhere.org", Reason::NotFound),
        ("example.org", Reason::Invalid),
        ("Not A Domain", Reason::Invalid),
    ] {
        let request = GetFederatedBundleRequest { trust_domain: trust_domain.to_owned(), output_mask: None };
        assert_eq!(refusal(operator.get_federated_bundle(request).await).reason, reason, "{trust_domain}");
    }
    let all = operator.list_federated_bundles(ListFederatedBundlesRequest::default()).await.unwrap();
    assert!(all.get_ref().bundles.is_empty());
    let request = GetFederatedBundleRequest { trust_domain: "elsewhere.org".to_owned(), output_mask: None };
    let refused = bundles(rig.stranger().await).get_federated_bundle(request).await;
    assert_eq!(refusal(refused).reason, Reason::Denied);
}
