//! Do operators make authorities succeed each other over the wire, as SPIRE's clients expect, and nobody else?

use passant_core::Host;
use passant_proto::bundle::GetBundleRequest;
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    ActivateJwtAuthorityRequest, ActivateWitAuthorityRequest, ActivateX509AuthorityRequest,
    GetJwtAuthorityStateRequest, GetWitAuthorityStateRequest, GetX509AuthorityStateRequest,
    PrepareJwtAuthorityRequest, PrepareWitAuthorityRequest, PrepareX509AuthorityRequest,
    RevokeJwtAuthorityRequest, RevokeWitAuthorityRequest, RevokeX509AuthorityRequest,
    RevokeX509UpstreamAuthorityRequest, TaintJwtAuthorityRequest, TaintWitAuthorityRequest,
    TaintX509AuthorityRequest, TaintX509UpstreamAuthorityRequest,
};
use passant_proto::types;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::rig::{Rig, bundles, entry};
use crate::config::Config;
use crate::record::history::History;
use crate::server::Server;

fn authorities(channel: Channel) -> LocalAuthorityClient<Channel> {
    LocalAuthorityClient::new(channel)
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.unwrap_err().code()
}

fn hex(bytes: &[u8]) -> String {
    crate::encoding::to_hex(bytes)
}

#[tokio::test]
async fn x509_authorities_are_prepared_activated_tainted_and_revoked() {
    let rig = Rig::start().await;
    let mut client = authorities(rig.local().await);
    let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    assert_eq!((&state.prepared, &state.old), (&None, &None));
    let first = state.active.unwrap();
    assert!(first.expires_at > rig.host.now().secs() && first.upstream_authority_subject_key_id.is_empty());

    let answer = client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap().into_inner();
    let prepared = answer.prepared_authority.unwrap();
    let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    assert_eq!((state.active, state.prepared), (Some(first.clone()), Some(prepared.clone())));

    let authority_id = prepared.authority_id.clone();
    let answer = client.activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await.unwrap();
    assert_eq!(answer.into_inner().activated_authority, Some(prepared.clone()));
    let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    assert_eq!((state.active, state.old), (Some(prepared), Some(first.clone())));

    let authority_id = first.authority_id.clone();
    let answer = client.taint_x509_authority(TaintX509AuthorityRequest { authority_id }).await.unwrap();
    assert_eq!(answer.into_inner().tainted_authority, Some(first.clone()));
    let mut everybody = bundles(rig.stranger().await);
    let bundle = everybody.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let tainted: Vec<bool> = bundle.x509_authorities.iter().map(|authority| authority.tainted).collect();
    assert_eq!(tainted, [true, false]);

    let authority_id = first.authority_id.clone();
    let answer = client.revoke_x509_authority(RevokeX509AuthorityRequest { authority_id }).await.unwrap();
    assert_eq!(answer.into_inner().revoked_authority.unwrap().authority_id, first.authority_id);
    let mut everybody = bundles(rig.stranger().await);
    let bundle = everybody.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert_eq!(bundle.x509_authorities.len(), 1);
    let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    assert_eq!(state.old, None);
}

#[tokio::test]
async fn jwt_authorities_are_prepared_activated_tainted_and_revoked() {
    let rig = Rig::start().await;
    let mut client = authorities(rig.local().await);
    let state = client.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await.unwrap().into_inner();
    let first = state.active.unwrap();
    let answer = client.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await.unwrap().into_inner();
    let prepared = answer.prepared_authority.unwrap();
    let authority_id = prepared.authority_id.clone();
    client.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id }).await.unwrap();
    let state = client.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await.unwrap().into_inner();
    assert_eq!((state.active, state.prepared, state.old), (Some(prepared), None, Some(first.clone())));
    let authority_id = first.authority_id.clone();
    client.taint_jwt_authority(TaintJwtAuthorityRequest { authority_id }).await.unwrap();
    let mut everybody = bundles(rig.stranger().await);
    let bundle = everybody.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    let marks: Vec<_> = bundle.jwt_authorities.iter().map(|key| (key.key_id.as_str(), key.tainted)).collect();
    assert!(marks.contains(&(first.authority_id.as_str(), true)), "{marks:?}");
    let authority_id = first.authority_id.clone();
    client.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id }).await.unwrap();
    let bundle = everybody.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner();
    assert!(bundle.jwt_authorities.iter().all(|key| key.key_id != first.authority_id));
}

#[tokio::test]
async fn mistakes_have_the_codes_that_operators_can_act_on() {
    let rig = Rig::start().await;
    rig.agent().await;
    let mut client = authorities(rig.local().await);
    let state = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await.unwrap().into_inner();
    let active = state.active.unwrap().authority_id;
    for authority_id in [String::new(), "nobody's".to_owned(), hex(&[7; 20]), active.clone()] {
        let request = ActivateX509AuthorityRequest { authority_id: authority_id.clone() };
        assert_eq!(code(client.activate_x509_authority(request).await), Code::InvalidArgument);
        let request = TaintX509AuthorityRequest { authority_id: authority_id.clone() };
        assert_eq!(code(client.taint_x509_authority(request).await), Code::InvalidArgument);
        let request = RevokeX509AuthorityRequest { authority_id };
        assert_eq!(code(client.revoke_x509_authority(request).await), Code::InvalidArgument);
    }
    // The agent has attested and not asked for a bundle since.
    let answer = client.prepare_x509_authority(PrepareX509AuthorityRequest {}).await.unwrap().into_inner();
    let authority_id = answer.prepared_authority.unwrap().authority_id;
    let early = client.activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await;
    let early = early.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    assert!(early.message().starts_with("1 agent lacks"), "{early}");
    let answer = client.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await.unwrap().into_inner();
    let authority_id = answer.prepared_authority.unwrap().authority_id;
    let early = client.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id }).await;
    assert_eq!(code(early), Code::FailedPrecondition);
}

#[tokio::test]
async fn there_is_no_upstream_authority_and_no_wit() {
    let rig = Rig::start().await;
    let mut client = authorities(rig.local().await);
    for subject_key_id in ["", "ab"] {
        let subject_key_id = subject_key_id.to_owned();
        let request = TaintX509UpstreamAuthorityRequest { subject_key_id: subject_key_id.clone() };
        assert_eq!(code(client.taint_x509_upstream_authority(request).await), Code::FailedPrecondition);
        let request = RevokeX509UpstreamAuthorityRequest { subject_key_id };
        assert_eq!(code(client.revoke_x509_upstream_authority(request).await), Code::FailedPrecondition);
    }
    let codes = [
        code(client.get_wit_authority_state(GetWitAuthorityStateRequest::default()).await),
        code(client.prepare_wit_authority(PrepareWitAuthorityRequest::default()).await),
        code(client.activate_wit_authority(ActivateWitAuthorityRequest::default()).await),
        code(client.taint_wit_authority(TaintWitAuthorityRequest::default()).await),
        code(client.revoke_wit_authority(RevokeWitAuthorityRequest::default()).await),
    ];
    assert_eq!(codes, [Code::Unimplemented; 5]);
}

#[tokio::test]
async fn authorities_are_for_operators_alone() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let drafts = vec![
        types::Entry { admin: true, ..entry(agent.svid.id(), "/ops", "unix:uid:1") },
        types::Entry { downstream: true, ..entry(agent.svid.id(), "/below", "unix:uid:2") },
        entry(agent.svid.id(), "/plain", "unix:uid:3"),
    ];
    let mut identities = Vec::new();
    for entry in rig.register(drafts).await {
        identities.push(rig.svid_of(&agent, &entry.id).await);
    }
    for (identity, expected) in [
        (None, Code::PermissionDenied),
        (Some(&agent), Code::PermissionDenied),
        (Some(&identities[1]), Code::PermissionDenied),
        (Some(&identities[2]), Code::PermissionDenied),
        (Some(&identities[0]), Code::Ok),
    ] {
        let mut client = authorities(rig.remote(identity).await.unwrap());
        let got = client.get_x509_authority_state(GetX509AuthorityStateRequest {}).await;
        assert_eq!(got.map_or_else(|status| status.code(), |_| Code::Ok), expected);
        let prepared = client.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await;
        assert_eq!(prepared.map_or_else(|status| status.code(), |_| Code::Ok), expected);
        let revoked = client.revoke_x509_authority(RevokeX509AuthorityRequest::default()).await;
        let expected = if expected == Code::Ok { Code::InvalidArgument } else { expected };
        assert_eq!(code(revoked), expected);
    }
}

#[tokio::test]
async fn what_was_done_is_on_record_with_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\ndata_dir = \"{0}/data\"\n[socket]\n\
         path = \"{0}/api.sock\"\n",
        dir.path().display()
    );
    let host = Host::system();
    let running = Server::start(Config::parse(&text, "x").unwrap(), host.clone()).await.unwrap();
    let rig = Rig::around(running, host.clone(), dir);
    let mut client = authorities(rig.local().await);
    let state = client.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await.unwrap().into_inner();
    let first = state.active.unwrap().authority_id;
    let answer = client.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await.unwrap().into_inner();
    let second = answer.prepared_authority.unwrap().authority_id;
    let request = ActivateJwtAuthorityRequest { authority_id: second.clone() };
    client.activate_jwt_authority(request).await.unwrap();
    let request = TaintJwtAuthorityRequest { authority_id: first.clone() };
    client.taint_jwt_authority(request.clone()).await.unwrap();
    client.taint_jwt_authority(request).await.unwrap_err();
    client.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id: first.clone() }).await.unwrap();
    drop(client);
    let dir = rig.stop().await;
    let record = dir.path().join("data/decisions");
    let text: String = std::fs::read_dir(&record)
        .unwrap()
        .map(|segment| std::fs::read_to_string(segment.unwrap().path()).unwrap())
        .collect();
    let acts: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["kind"] == "act")
        .collect();
    let expected = [
        serde_json::json!({ "prepare_authority": ["jwt", second] }),
        serde_json::json!({ "activate_authority": ["jwt", second] }),
        serde_json::json!({ "taint_authority": ["jwt", first] }),
        // Whoever asks again may do so because the record failed the first time.
        serde_json::json!({ "taint_authority": ["jwt", first] }),
        serde_json::json!({ "revoke_authority": ["jwt", first] }),
    ];
    assert_eq!(acts.iter().map(|line| line["act"].clone()).collect::<Vec<_>>(), expected);
    for line in &acts {
        assert!(line["caller"].as_str().unwrap().starts_with("local uid="), "{line}");
    }
    let history = History::read(&record, host.now().minus(std::time::Duration::from_secs(3600))).unwrap();
    assert_eq!(history.revoked.iter().map(ToString::to_string).collect::<Vec<_>>(), [first]);
    assert!(history.tainted.is_empty());
}
