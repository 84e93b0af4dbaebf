//! Is a backup what was written, and is anything else refused?

use std::collections::BTreeMap;

use passant_core::Host;
use passant_core::keys::KeyType;

use super::*;
use crate::authority::authority_id;
use crate::state::samples::{
    at, authority, bundle, commit, draft, entry, node, other_trust_domain, registered, relationship, token,
    trust_domain,
};
use crate::state::{Authority, AuthorityKind, Cursor, Phase};

/// A state that a server could have: a JWT authority in its bundle, a foreign bundle, tokens, nodes and entries.
pub(crate) fn state() -> State {
    let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
    let id = authority_id(key.public_key());
    let jwt = Authority {
        id: id.clone(),
        public_key: key.public_key().to_vec(),
        ..authority("a", AuthorityKind::Jwt, Phase::Active)
    };
    let published = passant_core::bundle::JwtAuthority::new(id.as_str(), key.public_key(), None).unwrap();
    let own = passant_core::bundle::Bundle {
        jwt_authorities: vec![published],
        sequence: 9,
        ..passant_core::bundle::Bundle::empty(trust_domain())
    };
    let mut federated = draft("/w/f", "/p", &["k:f"]);
    federated.federates_with.insert(other_trust_domain());
    let mut state =
        State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::new(41) });
    state.apply(&commit(
        1,
        vec![
            Change::PutBundle(own.into()),
            Change::PutBundle(passant_core::bundle::Bundle::empty(other_trust_domain()).into()),
            Change::PutFederation(relationship(other_trust_domain(), None)),
            Change::PutAuthority(jwt),
            Change::PutToken(token("t1", 50)),
            Change::PutToken(token("t2", 60)),
            Change::PutNode(node("/spire/agent/x509pop/1", &["x509pop:a"])),
            Change::PutEntry(registered("federated", federated)),
            Change::PutEntry(entry("plain", "/w/1", "/p")),
        ],
    ));
    state
}

pub(crate) fn text_of(state: &State) -> Vec<u8> {
    pieces(state, at(1_000)).flatten().collect()
}

fn read(text: &[u8]) -> Result<(Header, Vec<Change>), BackupError> {
    let mut reader = Reader::new(text, "here".to_owned())?;
    let mut objects = Vec::new();
    while let Some(object) = reader.next_object()? {
        objects.push(object);
    }
    assert!(reader.next_object()?.is_none());
    Ok((reader.header().clone(), objects))
}

/// What reading `text` says is damaged at `line`.
#[track_caller]
fn damaged(text: &[u8], line: u64) -> String {
    let error = read(text).unwrap_err();
    let BackupError::Damaged { line: found, what, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*found, line, "{error:?}");
    what.clone()
}

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// The backup whose lines are `lines`, the last one made anew to fit.
fn sealed(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut text: Vec<u8> = lines[..lines.len() - 1].concat();
    let mut sum = Context::new(&SHA256);
    sum.update(&text);
    let objects = u64::try_from(lines.len() - 2).unwrap();
    put_line(&mut text, &Trailer { objects, sha256: finished(&sum) });
    text
}

#[test]
fn what_is_written_is_read() {
    let state = state();
    let (header, objects) = read(&text_of(&state)).unwrap();
    assert_eq!((header.revision, header.made_at), (Revision::new(42), at(1_000)));
    let holds = Holds {
        bundles: 2,
        relationships: 1,
        authorities: 1,
        join_tokens: 2,
        nodes: 1,
        entries: 2,
        stops: 0,
    };
    assert_eq!(header.holds, holds);
    assert_eq!(State::of_objects(header.trust_domain, state.cursor(), objects), state);
}

#[test]
fn the_first_line_tells_a_stranger_what_it_is() {
    let text = text_of(&state());
    let first: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&lines(&text)[0]).unwrap();
    assert_eq!(first["passant_backup"], 2);
    assert_eq!(first["trust_domain"], "example.org");
    assert_eq!(first["made_at"], 1_000);
    assert_eq!(first["holds"]["entries"], 2);
}

#[test]
fn pieces_are_small_and_many() {
    let mut state = state();
    let changes = (0..4_000).map(|n| Change::PutEntry(entry(&format!("e{n}"), "/w/1", &format!("/p/{n}"))));
    state.apply(&commit(2, changes.collect()));
    let pieces: Vec<Vec<u8>> = pieces(&state, at(1)).collect();
    assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() <= BACKUP_PIECE));
    assert_eq!(read(&pieces.concat()).unwrap().1.len(), 4_009);
}

#[test]
fn every_cut_is_noticed() {
    let text = text_of(&state());
    for cut in 0..text.len() {
        assert!(read(&text[..cut]).is_err(), "cut after {cut} bytes");
    }
    assert!(damaged(&lines(&text)[..5].concat(), 6).contains("cut off"));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let text = text_of(&state());
    for at in 0..text.len() {
        let mut flipped = text.clone();
        flipped[at] ^= 1;
        assert!(read(&flipped).is_err(), "byte {at}");
    }
}

#[test]
fn lines_taken_out_doubled_or_added_are_noticed() {
    let whole = lines(&text_of(&state()));
    let mut less = whole.clone();
    less.remove(3);
    assert!(damaged(&less.concat(), 10).contains("number"), "the header says how many there are");
    let mut more = whole.clone();
    more.insert(4, whole[4].clone());
    assert!(damaged(&sealed(&more), 6).contains("twice"));
    let mut after = whole.concat();
    after.extend(b"{}\n");
    assert!(damaged(&after, 11).contains("after"));
}

#[test]
fn what_no_server_would_hold_is_refused_though_the_checksum_fits() {
    let swap = |find: &str, put: &str| -> Vec<u8> {
        let text = String::from_utf8(text_of(&state())).unwrap();
        assert!(text.contains(find), "{find}");
        let changed: Vec<Vec<u8>> = lines(text.replacen(find, put, 1).as_bytes());
        sealed(&changed)
    };
    let said = damaged(&swap("spiffe://example.org/w/1", "spiffe://example.org/spire/x"), 10);
    assert!(said.contains("reserved"), "{said}");
    assert!(damaged(&swap("/spire/agent/x509pop/1", "/no/agent"), 8).contains("no agent"));
    assert!(damaged(&swap("\"revision\":0", "\"revision\":43"), 9).contains("newer"));
    assert!(damaged(&swap("put_token", "put_whatever"), 6).contains("put_whatever"));
    let error = read(&swap("\"published\":7", "\"published\":10")).unwrap_err();
    assert!(
        matches!(&error, BackupError::Unsound { what, .. } if what.contains("later bundle")),
        "{error:?}"
    );
}

#[test]
fn bundle_and_authorities_must_agree() {
    let state = state();
    let check = |change: Change, expected: &str| {
        let mut state = state.clone();
        state.apply(&commit(2, vec![change]));
        let error = read(&text_of(&state)).unwrap_err();
        assert!(matches!(&error, BackupError::Unsound { what, .. } if what.contains(expected)), "{error:?}");
    };
    check(Change::PutBundle(passant_core::bundle::Bundle::empty(trust_domain()).into()), "not in the bundle");
    check(Change::DeleteBundle(trust_domain()), "no bundle");
    let own = Change::PutFederation(relationship(trust_domain(), None));
    let mut with_own = state.clone();
    with_own.apply(&commit(2, vec![own]));
    assert!(damaged(&text_of(&with_own), 4).contains("own trust domain"));
    let bad = Change::PutBundle(bundle(trust_domain(), 1, 5));
    let mut with_bad = state.clone();
    with_bad.apply(&commit(2, vec![bad]));
    assert!(damaged(&text_of(&with_bad), 2).contains("bundle of example.org"));
}

#[test]
fn appended_authorities_and_entries_that_wait_for_a_bundle_are_sound() {
    let mut state = state();
    let mut own = passant_core::bundle::Bundle::clone(&state.bundle().unwrap());
    let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
    own.jwt_authorities
        .push(passant_core::bundle::JwtAuthority::new("of-a-server-below", key.public_key(), None).unwrap());
    state.apply(&commit(2, vec![Change::PutBundle(own.into()), Change::DeleteBundle(other_trust_domain())]));
    let (header, objects) = read(&text_of(&state)).unwrap();
    assert_eq!(State::of_objects(header.trust_domain, state.cursor(), objects), state);
}

#[test]
fn other_files_and_newer_formats_are_told_apart() {
    for text in ["", "\n", "{}\n", "{\"format\":1,\"keys\":{}}\n", "-----BEGIN CERTIFICATE-----\n"] {
        let error = read(text.as_bytes()).unwrap_err();
        assert!(matches!(error, BackupError::NotABackup { .. }), "{text}: {error:?}");
    }
    let error = read(b"{\"passant_backup\":3,\"whatever\":true}\n").unwrap_err();
    assert!(matches!(error, BackupError::NewerFormat { found: 3, .. }), "{error:?}");
    assert!(damaged(b"{\"passant_backup\":1}\n", 1).contains("trust_domain"));
}
