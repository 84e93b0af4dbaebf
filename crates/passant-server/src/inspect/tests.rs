//! Is planted damage found, and is a sound directory left in peace?

use std::os::unix::fs::PermissionsExt;

use passant_core::bundle::{Bundle, JwtAuthority};
use passant_core::keys::KeyType;

use super::*;
use crate::authority::authority_id;
use crate::record::{Act, DecisionLog, Retention};
use crate::state::AuthorityKind;
use crate::state::change::Revision;
use crate::state::samples::{at, authority, commit, entry, host_at, node, trust_domain};

/// A sound data directory: a JWT authority with its key, an entry, a record of two lines.
async fn directory(more: Vec<Change>) -> (tempfile::TempDir, Host) {
    let (host, _) = host_at(500);
    let dir = tempfile::tempdir().unwrap();
    let key = host.keys.generate(KeyType::EcP256).unwrap();
    let id = authority_id(key.public_key());
    let row = Authority {
        id: id.clone(),
        public_key: key.public_key().to_vec(),
        ..authority("a", AuthorityKind::Jwt, Phase::Active)
    };
    let published = JwtAuthority::new(id.as_str(), key.public_key(), Some(at(1_000))).unwrap();
    let bundle = Bundle { jwt_authorities: vec![published], sequence: 7, ..Bundle::empty(trust_domain()) };
    let mut store = SledStore::open(dir.path(), &trust_domain(), &host).unwrap();
    let first = vec![Change::PutAuthority(row), Change::PutBundle(bundle.into())];
    let second = vec![Change::PutEntry(entry("e", "/w", "/p")), Change::PutEntry(entry("f", "/w/f", "/p"))];
    let commits = [
        commit(1, first),
        commit(2, second),
        commit(3, vec![Change::DeleteEntry(passant_core::EntryId::parse("f").unwrap())]),
    ];
    store.append(Revision::ZERO, &commits).unwrap();
    store.append(Revision::new(3), &[commit(4, more)]).unwrap();
    KeyFile::open(dir.path()).unwrap().put(&id, key.pkcs8()).unwrap();
    let record =
        DecisionLog::open(&dir.path().join("decisions"), Retention::default(), host.clone()).unwrap();
    record
        .note(Act::BanAgent(trust_domain().join("/spire/agent/x/1").unwrap()), "ops".to_owned())
        .await
        .unwrap();
    record.close().await;
    (dir, host)
}

#[track_caller]
fn faults(dir: &Path, host: &Host) -> Vec<Finding> {
    data_dir(dir, host).into_iter().filter(|finding| finding.is_fault).collect()
}

#[track_caller]
fn only_fault(dir: &Path, host: &Host, part: &str, says: &str) {
    let faults = faults(dir, host);
    assert!(matches!(&faults[..], [only] if only.part == part && only.says.contains(says)), "{faults:?}");
}

#[tokio::test]
async fn a_sound_directory_has_no_fault() {
    let (dir, host) = directory(vec![Change::PutNode(node("/spire/agent/x509pop/1", &["k:v"]))]).await;
    assert_eq!(faults(dir.path(), &host), []);
    let parts: Vec<&str> = data_dir(dir.path(), &host).iter().map(|finding| finding.part).collect();
    assert_eq!(parts, ["store", "objects", "journal", "keys", "record"]);
}

#[tokio::test]
async fn an_unsound_object_is_named() {
    let (dir, host) = directory(vec![Change::PutNode(node("/no/agent", &[]))]).await;
    only_fault(dir.path(), &host, "objects", "/no/agent");
}

#[tokio::test]
async fn a_bundle_that_lacks_an_authority_is_found() {
    let bundle = Bundle { sequence: 9, ..Bundle::empty(trust_domain()) };
    let (dir, host) = directory(vec![Change::PutBundle(bundle.into())]).await;
    only_fault(dir.path(), &host, "objects", "is not in the bundle");
}

#[tokio::test]
async fn lost_exposed_and_foreign_keys_are_found() {
    let (dir, host) = directory(vec![]).await;
    let file = dir.path().join("keys.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    only_fault(dir.path(), &host, "keys", "mode 644");
    std::fs::remove_file(&file).unwrap();
    only_fault(dir.path(), &host, "keys", "not in keys.json");
    let (other, _) = directory(vec![]).await;
    let foreign = std::fs::read_to_string(other.path().join("keys.json")).unwrap();
    let [ours, theirs] = [&text, &foreign].map(|text| {
        let keys: serde_json::Value = serde_json::from_str(text).unwrap();
        let (id, key) = keys["keys"].as_object().unwrap().iter().next().unwrap();
        (id.clone(), key.as_str().unwrap().to_owned())
    });
    // As somebody would who knows the file: with no checksum, as the first versions wrote it.
    let mut exchanged: serde_json::Value = serde_json::from_str(&text).unwrap();
    exchanged["keys"][&ours.0] = theirs.1.into();
    exchanged.as_object_mut().unwrap().remove("sum");
    std::fs::write(&file, exchanged.to_string()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    only_fault(dir.path(), &host, "keys", "another one's");
}

#[tokio::test]
async fn a_changed_record_is_found() {
    let (dir, host) = directory(vec![]).await;
    let segment = dir.path().join("decisions/00000001.log");
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replace("\"torn_bytes\":0", "\"torn_bytes\":1")).unwrap();
    only_fault(dir.path(), &host, "record", "line 2");
}

#[tokio::test]
async fn damaged_missing_and_used_stores_are_told_apart() {
    let (dir, host) = directory(vec![]).await;
    let held = SledStore::open(dir.path(), &trust_domain(), &host).unwrap();
    only_fault(dir.path(), &host, "store", "held by another process");
    drop(held);
    let db = dir.path().join("state/db");
    let bytes = std::fs::read(&db).unwrap();
    std::fs::write(&db, vec![0x55; bytes.len()]).unwrap();
    assert_eq!(faults(dir.path(), &host)[0].part, "store");
    std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    only_fault(dir.path(), &host, "store", "no state");
    assert!(!dir.path().join("state").exists(), "a check makes no store");
}
