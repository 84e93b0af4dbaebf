//! Do commits from the journal keep their value once written and read, and make the same state as its objects do?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_fuzz::{EXAMPLE, NOW};
use passant_server::state::{Change, Commit, Cursor, Lineage, Revision, State};

fuzz_target!(|text: &[u8]| {
    let lines = text.split(|byte| *byte == b'\n');
    let commits: Vec<Commit> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let start = Cursor { lineage: Lineage::new([3; 16]), revision: Revision::ZERO };
    let mut state = State::empty(EXAMPLE.clone(), start);
    for commit in &commits {
        let written = serde_json::to_vec(commit).expect("a commit has a stored form");
        assert_eq!(serde_json::from_slice::<Commit>(&written).ok().as_ref(), Some(commit));
        for change in &commit.changes {
            check_key(change);
        }
        state.apply(commit);
    }
    assert_eq!(usize::try_from(state.cursor().revision.number()), Ok(commits.len()));
    let rebuilt = State::of_objects(EXAMPLE.clone(), state.cursor(), state.objects().collect());
    assert_eq!(rebuilt, state, "a restart changes nothing");
    for node in state.nodes() {
        let served = state.authorized_entries(&node.id, NOW);
        assert!(served.iter().all(|entry| !entry.has_ended(NOW) && !entry.is_node_alias()));
    }
});

/// A put and the delete of the same object have one key, which tells kinds apart.
fn check_key(change: &Change) {
    let (delete, kind) = match change {
        Change::PutEntry(entry) => (Change::DeleteEntry(entry.id.clone()), "entry/"),
        Change::PutNode(node) => (Change::DeleteNode(node.id.clone()), "node/"),
        Change::PutToken(token) => (Change::DeleteToken(token.hash), "token/"),
        Change::PutAuthority(authority) => (Change::DeleteAuthority(authority.id.clone()), "authority/"),
        Change::PutBundle(bundle) => (Change::DeleteBundle(bundle.trust_domain.clone()), "bundle/"),
        Change::PutFederation(relationship) => {
            (Change::DeleteFederation(relationship.trust_domain.clone()), "federation/")
        }
        Change::PutStop(stop) => (Change::DeleteStop(stop.target.clone()), "stop/"),
        Change::DeleteEntry(_)
        | Change::DeleteNode(_)
        | Change::DeleteToken(_)
        | Change::DeleteAuthority(_)
        | Change::DeleteBundle(_)
        | Change::DeleteFederation(_)
        | Change::DeleteStop(_) => return assert!(!change.is_put()),
    };
    assert!(change.is_put() && change.key() == delete.key() && change.key().starts_with(kind));
}
