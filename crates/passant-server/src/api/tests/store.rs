//! Who gets a backup, and is it the state of one moment?

use passant_proto::store::BackupRequest;
use passant_proto::store::store_client::StoreClient;
use passant_proto::types;
use tonic::Code;
use tonic::transport::Channel;

use super::rig::{Rig, entry, trust_domain};
use crate::backup::Reader;
use crate::state::change::Change;

async fn backup(channel: Channel) -> Result<Vec<u8>, tonic::Status> {
    let mut stream = StoreClient::new(channel).backup(BackupRequest {}).await?.into_inner();
    let mut text = Vec::new();
    while let Some(piece) = stream.message().await? {
        text.extend(piece.data);
    }
    Ok(text)
}

#[tokio::test]
async fn a_backup_is_for_callers_on_this_machine_alone() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let admin = types::Entry { admin: true, ..entry(agent.svid.id(), "/ops", "unix:uid:1") };
    let admin = rig.register(vec![admin]).await.remove(0);
    let admin = rig.svid_of(&agent, &admin.id).await;
    for channel in [
        rig.stranger().await,
        rig.remote(Some(&agent)).await.unwrap(),
        rig.remote(Some(&admin)).await.unwrap(),
    ] {
        assert_eq!(backup(channel).await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert!(backup(rig.local().await).await.is_ok());
}

#[tokio::test]
async fn a_backup_holds_what_stood_when_it_was_asked_for() {
    let rig = Rig::start().await;
    rig.agent().await;
    let node = trust_domain().join("/node").unwrap();
    rig.register((0..200).map(|n| entry(&node, &format!("/w{n}"), "unix:uid:1")).collect()).await;
    let text = backup(rig.local().await).await.unwrap();
    let mut reader = Reader::new(&text[..], "sent".to_owned()).unwrap();
    let mut entries = 0;
    while let Some(object) = reader.next_object().unwrap() {
        entries += usize::from(matches!(object, Change::PutEntry(_)));
    }
    assert_eq!((entries, reader.header().holds.nodes), (200, 1));
    assert!(!String::from_utf8(text).unwrap().contains("PRIVATE"));
}

#[tokio::test]
async fn no_more_backups_are_sent_at_once_than_are_allowed() {
    let rig = Rig::start().await;
    let node = trust_domain().join("/node").unwrap();
    // Larger than what is on its way at any time: whoever does not read keeps it from being done.
    let selector = format!("unix:{}", "x".repeat(4_000));
    rig.register((0..900).map(|n| entry(&node, &format!("/w{n}"), &selector)).collect()).await;
    let mut held = Vec::new();
    for _ in 0..crate::limits::BACKUPS {
        let mut client = StoreClient::new(rig.local().await);
        held.push(client.backup(BackupRequest {}).await.unwrap().into_inner());
    }
    assert_eq!(backup(rig.local().await).await.unwrap_err().code(), Code::ResourceExhausted);
    // Whoever goes makes room.
    held.clear();
    loop {
        match backup(rig.local().await).await {
            Ok(text) => break assert!(text.len() > 3_000_000),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
    }
}
