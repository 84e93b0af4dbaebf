//! Is the cause that was planted the one that is named first?

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_core::explanation::{Code, Explanation};
use passant_core::{Entry, EntryDraft, Selectors, SpiffeId, TrustDomain};
use proptest::prelude::*;

use super::{Question, Scene, explain};
use crate::federation::Status;
use crate::state::samples::{
    any_commits, at, authority, bundle, commit, draft, entry_id, id, node, other_trust_domain, registered,
    relationship, selectors, token, trust_domain,
};
use crate::state::{AttestedNode, AuthorityKind, Change, Cursor, Lineage, Phase, Revision, State};

const AGENT: &str = "/spire/agent/x/1";
const NOW: i64 = 100;

fn put(name: &str, draft: EntryDraft) -> Change {
    Change::PutEntry(registered(name, draft))
}

fn put_node(path: &str, have: &[&str], change: impl FnOnce(&mut AttestedNode)) -> Change {
    let mut node = AttestedNode::clone(&node(path, have));
    change(&mut node);
    Change::PutNode(Arc::new(node))
}

/// A server at which nothing is wrong: an agent, an entry `web` for it, and authorities.
fn sound() -> State {
    let mut state =
        State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
    state.apply(&commit(
        1,
        vec![
            Change::PutAuthority(authority("x1", AuthorityKind::X509, Phase::Active)),
            Change::PutAuthority(authority("j1", AuthorityKind::Jwt, Phase::Active)),
            put_node(AGENT, &["x:cluster:a"], |_| {}),
            put("web", draft("/web", AGENT, &["unix:uid:1", "unix:gid:1"])),
        ],
    ));
    state
}

fn with(changes: Vec<Change>) -> State {
    let mut state = sound();
    state.apply(&commit(2, changes));
    state
}

/// About `/web`, on the agent's node, with what its entry asks for.
fn about_web() -> Question {
    Question {
        spiffe_id: Some(id("/web")),
        selectors: selectors(&["unix:uid:1", "unix:gid:1", "unix:path:/bin/web"]),
        agent: Some(id(AGENT)),
    }
}

fn told(state: &State, question: &Question) -> Explanation {
    told_in(state, question, |_| {})
}

fn told_in(state: &State, question: &Question, change: impl FnOnce(&mut Scene<'_>)) -> Explanation {
    let fetches = BTreeMap::new();
    let mut scene = Scene {
        state,
        now: at(NOW),
        store_fault: None,
        record_fault: None,
        fetches: &fetches,
        last_sync: Some(at(NOW - 1)),
    };
    change(&mut scene);
    explain(question, &scene)
}

#[track_caller]
fn check(explanation: &Explanation, planted: Code, words: &str) {
    let first = explanation.causes.first().unwrap_or_else(|| panic!("nothing is named: {explanation:?}"));
    assert_eq!(first.code, planted, "{explanation:#?}");
    assert!(first.says.contains(words), "\"{words}\" is not in: {}", first.says);
    assert!(first.blocks && !first.remedy.is_empty(), "{first:?}");
}

#[test]
fn nothing_is_named_where_nothing_is_wrong() {
    let state = sound();
    let about = |question: Question| told(&state, &question);
    for question in [
        about_web(),
        Question { agent: None, ..about_web() },
        Question { selectors: Selectors::new(), ..about_web() },
        Question { spiffe_id: None, ..about_web() },
        Question { agent: Some(id(AGENT)), ..Question::default() },
    ] {
        let explanation = about(question.clone());
        assert_eq!(explanation.causes, [], "{question:?}");
        assert_eq!(explanation.candidates.len(), 1);
        assert!(explanation.facts.iter().any(|fact| fact.about == "authority"));
    }
}

/// The entry `web` changed by `change`.
fn web(change: impl FnOnce(&mut Entry)) -> Change {
    let mut entry = Entry::clone(&registered("web", draft("/web", AGENT, &["unix:uid:1", "unix:gid:1"])));
    change(&mut entry);
    Change::PutEntry(Arc::new(entry))
}

fn below(parent: &str) -> Change {
    web(|entry| entry.parent_id = id(parent))
}

#[test]
fn the_planted_cause_is_named_first() {
    let ended = |mut draft: EntryDraft| {
        draft.expires_at = Some(at(NOW - 10));
        draft
    };
    let other = || put_node("/spire/agent/x/2", &["x:cluster:b"], |_| {});
    let alias = |have: &[&str]| put("pool", draft("/pool", "/spire/server", have));
    for (planted, words, changes) in [
        (Code::NodeBanned, "banned", vec![put_node(AGENT, &[], |node| node.serial = None)]),
        (Code::NodeUnknown, "no node is attested", vec![Change::DeleteNode(id(AGENT))]),
        (Code::NodeSvidExpired, "expired", vec![put_node(AGENT, &[], |node| node.not_after = at(NOW - 1))]),
        (Code::NoEntry, "no entry grants", vec![Change::DeleteEntry(entry_id("web"))]),
        (Code::EntryEnded, "ended", vec![web(|entry| entry.expires_at = Some(at(NOW - 1)))]),
        (Code::ForSecretStore, "secret store", vec![web(|entry| entry.store_svid = true)]),
        (Code::NodeAlias, "names nodes", vec![below("/spire/server")]),
        (Code::ParentUnknown, "/nowhere", vec![below("/nowhere")]),
        (Code::ParentUnknown, "no such agent", vec![below("/spire/agent/x/9")]),
        (
            Code::ParentEnded,
            "entry mid",
            vec![below("/mid"), put("mid", ended(draft("/mid", AGENT, &["unix:uid:5"])))],
        ),
        (
            Code::ParentCycle,
            "circle",
            vec![
                below("/a"),
                put("a", draft("/a", "/b", &["unix:uid:5"])),
                put("b", draft("/b", "/a", &["unix:uid:5"])),
            ],
        ),
        (Code::OfAnotherNode, "/spire/agent/x/2", vec![other(), below("/spire/agent/x/2")]),
        (
            Code::AliasSelectorsMissing,
            "x:cluster:b (it has x:cluster:a)",
            vec![alias(&["x:cluster:b"]), below("/pool")],
        ),
        (
            Code::SelectorsMissing,
            "unix:uid:2 (it has unix:uid:1)",
            vec![web(|entry| entry.selectors = selectors(&["unix:uid:2", "unix:gid:1"]))],
        ),
        (Code::NotYetSynced, "last asked", vec![web(|entry| entry.created_at = at(NOW))]),
        (
            Code::AuthorityEnded,
            "ended",
            vec![Change::PutAuthority({
                let mut ended = authority("x1", AuthorityKind::X509, Phase::Active);
                ended.not_after = at(NOW);
                ended
            })],
        ),
        (
            Code::NoActiveAuthority,
            "only prepared",
            vec![Change::PutAuthority(authority("x1", AuthorityKind::X509, Phase::Prepared))],
        ),
    ] {
        let state = with(changes);
        check(&told(&state, &about_web()), planted, words);
    }
}

#[test]
fn a_fault_of_the_server_is_named_first() {
    let state = sound();
    let full =
        told_in(&state, &about_web(), |scene| scene.record_fault = Some(Arc::new("disk full".to_owned())));
    check(&full, Code::RecordStopped, "disk full");
    let stopped =
        told_in(&state, &about_web(), |scene| scene.store_fault = Some(Arc::new("gone".to_owned())));
    assert_eq!((stopped.causes[0].code, stopped.causes[0].blocks), (Code::StoreStopped, false));
    // What is issued needs no change of the state; but what is wrong with the entry still counts first.
    let absent = Question { spiffe_id: Some(id("/else")), ..about_web() };
    let both = told_in(&state, &absent, |scene| scene.store_fault = Some(Arc::new("gone".to_owned())));
    check(&both, Code::NoEntry, "/else");
}

#[test]
fn a_question_that_cannot_be_met_is_told_so() {
    let state = sound();
    let ask = |spiffe_id: SpiffeId| told(&state, &Question { spiffe_id: Some(spiffe_id), ..about_web() });
    let foreign = TrustDomain::parse("other.example").unwrap().join("/web").unwrap();
    check(&ask(foreign), Code::OtherTrustDomain, "other.example");
    check(&ask(id("/spire/agent/x/1")), Code::ReservedId, "/spire");
    let slip = ask(id("/wbe"));
    check(&slip, Code::NoEntry, "/wbe");
    assert!(slip.causes[0].remedy.contains("did you mean spiffe://example.org/web?"), "{slip:?}");
    let other = ask(id("/something/else"));
    assert!(!other.causes[0].remedy.contains("did you mean"), "{other:?}");
    let case = ask(id("/WEB"));
    assert!(case.causes[0].remedy.contains("did you mean spiffe://example.org/web?"), "{case:?}");
}

#[test]
fn selectors_alone_find_what_matches_or_comes_near() {
    let state = with(vec![put("db", draft("/db", AGENT, &["unix:uid:7"]))]);
    let ask = |have: &[&str], agent: Option<&str>| {
        let agent = agent.map(id);
        told(&state, &Question { spiffe_id: None, selectors: selectors(have), agent })
    };
    let near = ask(&["unix:uid:1", "unix:gid:2"], Some(AGENT));
    check(&near, Code::SelectorsMissing, "unix:gid:1 (it has unix:gid:2)");
    let ids: Vec<&str> = near.candidates.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, ["web", "db"], "nearest first");
    assert_eq!(near.candidates[0].missing, selectors(&["unix:gid:1"]));
    check(&ask(&["k8s:ns:pay"], Some(AGENT)), Code::NoEntryMatches, "no entry asks");
    check(&ask(&["k8s:ns:pay"], None), Code::NoEntryMatches, "no entry asks");
    // It matches an entry, but on another node.
    let state = with(vec![put_node("/spire/agent/x/2", &[], |_| {})]);
    let question = Question { spiffe_id: None, agent: Some(id("/spire/agent/x/2")), ..about_web() };
    check(&told(&state, &question), Code::OfAnotherNode, AGENT);
    let bare = Question { selectors: selectors(&["unix:uid:9"]), ..question };
    check(&told(&state, &bare), Code::NodeWithoutEntries, "no entry belongs");
    let alone = Question { selectors: Selectors::new(), ..bare };
    check(&told(&state, &alone), Code::NodeWithoutEntries, "no entry belongs");
}

#[test]
fn without_an_agent_every_node_is_looked_at() {
    let question = Question { agent: None, ..about_web() };
    check(
        &told(&with(vec![put_node(AGENT, &[], |node| node.serial = None)]), &question),
        Code::NodeBanned,
        AGENT,
    );
    let last_second = with(vec![put_node(AGENT, &[], |node| node.not_after = at(NOW))]);
    assert_eq!(told(&last_second, &question).causes, []);
    let alias = put("pool", draft("/pool", "/spire/server", &["x:cluster:b"]));
    let state = with(vec![alias.clone(), below("/pool")]);
    check(&told(&state, &question), Code::AliasSelectorsMissing, "x:cluster:b");
    let served = with(vec![alias, below("/pool"), put_node("/spire/agent/x/2", &["x:cluster:b"], |_| {})]);
    assert_eq!(told(&served, &question).causes, []);
}

#[test]
fn of_several_entries_the_one_that_is_issued_counts() {
    let mut second = draft("/web", AGENT, &["unix:uid:1"]);
    second.expires_at = Some(at(NOW - 1));
    let state = with(vec![put("old", second)]);
    let explanation = told(&state, &about_web());
    assert_eq!(explanation.causes, []);
    let notes: Vec<bool> = explanation.candidates.iter().map(|one| one.note.is_empty()).collect();
    assert_eq!(notes, [true, false], "{explanation:?}");
}

#[test]
fn an_unspent_join_token_is_told_of() {
    let agent = "/spire/agent/join_token/t1";
    let question = Question { agent: Some(id(agent)), ..Question::default() };
    check(
        &told(&with(vec![Change::PutToken(token("t1", NOW))]), &question),
        Code::NodeUnknown,
        "not been used",
    );
    check(
        &told(&with(vec![Change::PutToken(token("t1", NOW - 1))]), &question),
        Code::NodeUnknown,
        "expired",
    );
    check(&told(&sound(), &question), Code::NodeUnknown, "no node is attested");
    let nonsense = Question { agent: Some(id("/web")), ..Question::default() };
    check(&told(&sound(), &nonsense), Code::NodeUnknown, "no agent of example.org");
}

#[test]
fn a_missing_federated_bundle_limits_and_is_told_with_its_reason() {
    let federated = || web(|entry| entry.federates_with = [other_trust_domain()].into());
    let limit = |state: &State, fetches: &BTreeMap<TrustDomain, Status>| {
        let scene = Scene {
            state,
            now: at(NOW),
            store_fault: None,
            record_fault: None,
            fetches,
            last_sync: Some(at(NOW)),
        };
        let explanation = explain(&about_web(), &scene);
        explanation.causes.into_iter().map(|cause| (cause.code, cause.blocks, cause.says)).collect::<Vec<_>>()
    };
    let none = limit(&with(vec![federated()]), &BTreeMap::new());
    assert_eq!((none[0].0, none[0].1), (Code::FederatedBundleMissing, false));
    assert!(none[0].2.contains("no federation relationship"), "{none:?}");
    let failing = Status { last_error: Some("connection refused".to_owned()), ..Status::default() };
    let fetches = BTreeMap::from([(other_trust_domain(), failing)]);
    let related = Change::PutFederation(relationship(other_trust_domain(), None));
    let failed = limit(&with(vec![federated(), related]), &fetches);
    assert!(failed[0].2.contains("connection refused"), "{failed:?}");
    let held = with(vec![federated(), Change::PutBundle(bundle(other_trust_domain(), 1, 20))]);
    assert_eq!(limit(&held, &BTreeMap::new()), []);
}

proptest! {
    /// Nothing stands in the way exactly where the issuer would take the entry.
    #[test]
    fn explanation_and_issuer_agree(commits in any_commits()) {
        let mut state = sound();
        commits.iter().for_each(|commit| state.apply(commit));
        let agent = id("/spire/agent/x/0");
        let Some(node) = state.node(&agent) else { return Ok(()) };
        prop_assume!(!node.is_banned());
        for entry in state.entries().filter(|entry| !entry.store_svid) {
            let question =
                Question { spiffe_id: Some(entry.spiffe_id.clone()), agent: Some(agent.clone()), ..Question::default() };
            let same = state.entries_by_spiffe_id(&entry.spiffe_id);
            let issued = same.filter(|same| state.authorized_entry(&agent, &same.id, at(NOW)).is_some()).count() > 0;
            let blocked = told_in(&state, &question, |scene| scene.now = at(NOW)).causes;
            let entry_blocked = blocked.iter().any(|cause| cause.blocks && cause.entry.is_some());
            prop_assert_eq!(issued, !entry_blocked, "{} {:?}", entry.id, blocked);
        }
    }
}
