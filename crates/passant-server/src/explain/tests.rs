//! Is the cause that was planted the one that is named first?

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_core::explanation::{Code, Explanation};
use passant_core::{Entry, EntryDraft, Instance, Selectors, SpiffeId, StopTarget, TrustDomain};
use proptest::prelude::*;

use super::{Question, Scene, explain};
use crate::federation::Status;
use crate::state::samples::{
    any_commits, at, authority, bundle, commit, draft, entry_id, id, node, other_trust_domain, registered,
    relationship, selectors, stop, token, trust_domain,
};
use crate::state::{Adopted, AttestedNode, AuthorityKind, Change, Cursor, Lineage, Phase, Revision, State};

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
        is_for_operator: true,
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
    // An authority that has ended gets no successor without the store.
    let mut ended = authority("x1", AuthorityKind::X509, Phase::Active);
    ended.not_after = at(NOW);
    let state = with(vec![Change::PutAuthority(ended)]);
    let stuck =
        told_in(&state, &about_web(), |scene| scene.store_fault = Some(Arc::new("disk full".to_owned())));
    check(&stuck, Code::StoreStopped, "disk full");
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
fn a_holder_is_told_of_the_servers_faults_without_their_reasons() {
    let fault = || Some(Arc::new("/var/lib/passant: disk full".to_owned()));
    for is_for_operator in [true, false] {
        let explanation = told_in(&sound(), &about_web(), |scene| {
            (scene.store_fault, scene.record_fault) = (fault(), fault());
            scene.is_for_operator = is_for_operator;
        });
        assert_eq!(explanation.causes.len(), 2);
        for cause in explanation.causes {
            assert_eq!(cause.says.contains("/var/lib/passant"), is_for_operator, "{cause:?}");
            assert_eq!(cause.says.ends_with("the server's log says why"), !is_for_operator, "{cause:?}");
        }
    }
}

#[test]
fn a_missing_federated_bundle_limits_and_is_told_with_its_reason() {
    let federated = || web(|entry| entry.federates_with = [other_trust_domain()].into());
    let limit_for = |state: &State, fetches: &BTreeMap<TrustDomain, Status>, is_for_operator| {
        let scene = Scene {
            state,
            now: at(NOW),
            store_fault: None,
            record_fault: None,
            fetches,
            last_sync: Some(at(NOW)),
            is_for_operator,
        };
        let explanation = explain(&about_web(), &scene);
        explanation.causes.into_iter().map(|cause| (cause.code, cause.blocks, cause.says)).collect::<Vec<_>>()
    };
    let limit = |state: &State, fetches: &BTreeMap<TrustDomain, Status>| limit_for(state, fetches, true);
    let none = limit(&with(vec![federated()]), &BTreeMap::new());
    assert_eq!((none[0].0, none[0].1), (Code::FederatedBundleMissing, false));
    assert!(none[0].2.contains("no federation relationship"), "{none:?}");
    let failing = Status { last_error: Some("connection refused".to_owned()), ..Status::default() };
    let fetches = BTreeMap::from([(other_trust_domain(), failing)]);
    let related = || Change::PutFederation(relationship(other_trust_domain(), None));
    let failed = limit(&with(vec![federated(), related()]), &fetches);
    assert!(failed[0].2.contains("connection refused"), "{failed:?}");
    let to_holder = limit_for(&with(vec![federated(), related()]), &fetches, false);
    assert!(to_holder[0].2.ends_with("fetching it fails: the server's log says why"), "{to_holder:?}");
    let held = with(vec![federated(), Change::PutBundle(bundle(other_trust_domain(), 1, 20))]);
    assert_eq!(limit(&held, &BTreeMap::new()), []);
}

/// `many` nodes, each of which attested with a join token that makes it one of `/pool`.
fn pool(many: usize) -> Vec<Change> {
    let agent = |n: usize| format!("/spire/agent/join_token/t{n:05}");
    let alias = |n: usize| put(&format!("alias-{n:05}"), draft("/pool", &agent(n), &["x:token:1"]));
    (0..many).flat_map(|n| [put_node(&agent(n), &[], |_| {}), alias(n)]).collect()
}

#[test]
fn of_a_pool_of_thousands_of_nodes_a_few_are_named() {
    let mut changes = pool(3_000);
    for n in 0..200 {
        let entry = draft("/shop", "/pool", &["unix:uid:7", &format!("k8s:pod-name:{n}")]);
        changes.push(put(&format!("shop-{n:03}"), entry));
    }
    let state = with(changes);
    let pods: Vec<String> = (0..200).map(|n| format!("k8s:pod-name:{n}")).collect();
    let mut have = selectors(&pods.iter().map(String::as_str).collect::<Vec<_>>());
    have.insert(passant_core::Selector::parse("unix:uid:7").unwrap());
    let by_id = Question { spiffe_id: Some(id("/shop")), ..about_web() };
    for question in [by_id, Question { spiffe_id: None, selectors: have, agent: Some(id(AGENT)) }] {
        let explanation = told(&state, &question);
        check(&explanation, Code::OfAnotherNode, "/spire/agent/join_token/t0");
        assert!(explanation.causes.len() <= 10, "{}", explanation.causes.len());
        assert_eq!((explanation.candidates.len(), explanation.left_out), (10, 190));
        let wire = passant_proto::convert::explanation::to_wire(explanation);
        let bytes = prost::Message::encoded_len(&wire);
        assert!(bytes < 64 * 1024, "{bytes}");
    }
}

#[test]
fn the_last_node_of_a_pool_is_found_however_large_that_is() {
    let mut changes = pool(crate::limits::EXPLAINED_PARENTS + 2);
    changes.push(put("shop", draft("/shop", "/pool", &["unix:uid:7"])));
    let state = with(changes);
    for n in [0, crate::limits::EXPLAINED_PARENTS + 1] {
        let agent = id(&format!("/spire/agent/join_token/t{n:05}"));
        let question = Question { spiffe_id: Some(id("/shop")), agent: Some(agent), ..Question::default() };
        assert_eq!(told(&state, &question).causes, [], "{question:?}");
    }
    // Without an agent not all are looked at, so that nothing is said of none.
    let anywhere = Question { spiffe_id: Some(id("/shop")), ..Question::default() };
    assert_eq!(told(&state, &anywhere).causes, []);
}

#[test]
fn of_many_entries_that_of_the_own_node_counts() {
    let agent = |n: usize| format!("/spire/agent/x/n{n:04}");
    let mut changes = Vec::new();
    for n in 0..1_500 {
        changes.push(put_node(&agent(n), &[], |_| {}));
        changes.push(put(&format!("e{n:04}"), draft("/each", &agent(n), &["unix:uid:7"])));
    }
    let state = with(changes);
    for n in [0, 1_499] {
        let by_id =
            Question { spiffe_id: Some(id("/each")), selectors: selectors(&["unix:uid:7"]), ..about_web() };
        let by_id = Question { agent: Some(id(&agent(n))), ..by_id };
        let explanation = told(&state, &by_id);
        assert_eq!((explanation.causes.as_slice(), explanation.left_out), ([].as_slice(), 1_490), "{n}");
        let by_selectors = told(&state, &Question { spiffe_id: None, ..by_id });
        assert_eq!((by_selectors.causes.as_slice(), by_selectors.left_out), ([].as_slice(), 0), "{n}");
        assert_eq!(by_selectors.candidates[0].id, entry_id(&format!("e{n:04}")));
    }
}

#[test]
fn an_entry_of_the_own_node_that_lacks_one_selector_tells_more_than_one_of_others_that_matches() {
    let other = || put_node("/spire/agent/x/2", &[], |_| {});
    let own = |wanted: &[&str]| web(|entry| entry.selectors = selectors(wanted));
    let theirs = || put("theirs", draft("/web", "/spire/agent/x/2", &["unix:uid:1", "unix:gid:1"]));
    let by_selectors = Question { spiffe_id: None, ..about_web() };
    let near = with(vec![other(), theirs(), own(&["unix:uid:1", "unix:gid:2"])]);
    for question in [about_web(), by_selectors.clone()] {
        check(&told(&near, &question), Code::SelectorsMissing, "unix:gid:2 (it has unix:gid:1)");
    }
    let both = told(&near, &by_selectors);
    let codes: Vec<(Code, bool)> = both.causes.iter().map(|cause| (cause.code, cause.blocks)).collect();
    assert_eq!(codes, [(Code::SelectorsMissing, true), (Code::OfAnotherNode, false)]);
    // What lacks more may be another workload's.
    let far = with(vec![other(), theirs(), own(&["unix:uid:2", "unix:gid:2"])]);
    check(&told(&far, &by_selectors), Code::OfAnotherNode, "/spire/agent/x/2");
    // An entry that would be served here but for its end is nobody else's.
    let mut ended = draft("/old", AGENT, &["unix:uid:1"]);
    ended.expires_at = Some(at(NOW - 1));
    let state = with(vec![put("old", ended), own(&["unix:uid:1", "unix:gid:2"])]);
    check(&told(&state, &by_selectors), Code::EntryEnded, "entry old");
}

#[test]
fn a_token_that_is_not_spent_is_told_to_nobody() {
    let agent = "/spire/agent/join_token/t1";
    let all = |state: &State, question: &Question| format!("{:?}", told(state, question));
    let of_token = "spiffe_id:spiffe://example.org/spire/agent/join_token/t1";
    let unspent = vec![
        below(agent),
        put("alias", draft("/pool", "/spire/server", &[of_token])),
        put("pooled", draft("/pooled", "/pool", &["unix:uid:1"])),
        Change::PutToken(token("t1", NOW)),
    ];
    let spent = [unspent.clone(), vec![put_node(agent, &["x:y:z"], |_| {})]].concat();
    let (unspent, spent) = (with(unspent), with(spent));
    let ask = |spiffe_id: &str, agent: Option<&str>| Question {
        spiffe_id: Some(id(spiffe_id)),
        selectors: selectors(&["unix:uid:1", "unix:gid:1"]),
        agent: agent.map(id),
    };
    for question in [
        ask("/web", None),
        ask("/web", Some(AGENT)),
        ask("/pool", None),
        ask("/pooled", None),
        ask("/pooled", Some(AGENT)),
        Question { spiffe_id: None, ..ask("/web", Some(AGENT)) },
    ] {
        let told = all(&unspent, &question);
        assert!(!told.contains("join_token/t1") && told.contains("join_token/***"), "{question:?}: {told}");
        assert!(all(&spent, &question).contains("join_token/t1"), "{question:?}");
    }
}

#[test]
fn whether_a_token_is_known_is_told_to_operators_only() {
    let question = Question { agent: Some(id("/spire/agent/join_token/t1")), ..Question::default() };
    let by_holder = |state: &State| told_in(state, &question, |scene| scene.is_for_operator = false);
    let (known, unknown) = (with(vec![Change::PutToken(token("t1", NOW))]), with(Vec::new()));
    assert_eq!(by_holder(&known).causes, by_holder(&unknown).causes);
    assert_ne!(told(&known, &question).causes, told(&unknown, &question).causes);
}

#[test]
fn an_agent_that_is_still_to_come_from_another_server_is_told_of() {
    let awaited = |node: &mut AttestedNode| {
        node.adopted = Some(Adopted::Awaited);
        // The other server may have renewed what was imported.
        node.not_after = at(NOW - 1);
    };
    let state = with(vec![put_node(AGENT, &["x:cluster:a"], awaited)]);
    let alone = Question { agent: Some(id(AGENT)), ..Question::default() };
    for question in [about_web(), alone, Question { agent: None, ..about_web() }] {
        let explanation = told_in(&state, &question, |scene| scene.last_sync = None);
        check(&explanation, Code::NotYetSynced, "has never called here");
    }
    let explanation = told(&state, &about_web());
    let agent = explanation.facts.iter().find(|fact| fact.about == "agent").unwrap();
    assert!(agent.says.contains("taken over") && agent.says.contains("from another server"), "{agent:?}");
    // The same behind a node alias, unless another node of it is there.
    let pool = || [below("/pool"), put("pool", draft("/pool", "/spire/server", &["x:cluster:a"]))];
    let anywhere = Question { agent: None, ..about_web() };
    let state = with([pool().to_vec(), vec![put_node(AGENT, &["x:cluster:a"], awaited)]].concat());
    check(&told(&state, &anywhere), Code::NotYetSynced, "has never called here");
    let second = put_node("/spire/agent/x/2", &["x:cluster:a"], |_| {});
    let state = with([pool().to_vec(), vec![put_node(AGENT, &["x:cluster:a"], awaited), second]].concat());
    assert_eq!(told(&state, &anywhere).causes, []);
    // One that has come is as good as any.
    let arrived = |node: &mut AttestedNode| node.adopted = Some(Adopted::Arrived);
    assert_eq!(told(&with(vec![put_node(AGENT, &[], arrived)]), &about_web()).causes, []);
}

#[test]
fn what_is_stopped_is_named_first_with_its_end() {
    let anywhere = Question { agent: None, ..about_web() };
    let of_node = Question { agent: Some(id(AGENT)), ..Question::default() };
    let stops = |target: StopTarget| Change::PutStop(stop(target));
    let entry = with(vec![
        stops(StopTarget::Entry(entry_id("web"))),
        web(|entry| entry.expires_at = Some(at(NOW - 1))),
    ]);
    for question in [about_web(), anywhere.clone(), Question { spiffe_id: None, ..about_web() }] {
        let explanation = told(&entry, &question);
        check(
            &explanation,
            Code::Stopped,
            "the entry web is stopped since 1970-01-01T00:00:05Z by root: compromised",
        );
        assert!(explanation.causes[0].remedy.contains("`passant stop resume entry web --reason TEXT`"));
    }
    let agent = StopTarget::Agent(id(AGENT));
    let pool = [below("/pool"), put("pool", draft("/pool", "/spire/server", &["x:cluster:a"]))];
    for more in [vec![], pool.to_vec()] {
        let state = with([vec![stops(agent.clone())], more].concat());
        for question in [about_web(), anywhere.clone(), of_node.clone()] {
            check(
                &told(&state, &question),
                Code::Stopped,
                "all of the agent spiffe://example.org/spire/agent/x/1 is",
            );
        }
    }
    let evicted = told(&with(vec![stops(agent), Change::DeleteNode(id(AGENT))]), &of_node);
    let codes: Vec<Code> = evicted.causes.iter().map(|cause| cause.code).collect();
    assert_eq!(codes, [Code::NodeUnknown, Code::Stopped], "it would have to attest, and be stopped still");
    let process = StopTarget::Instance { agent: id(AGENT), instance: Instance::parse("boot/1/2").unwrap() };
    let explanation = told(&with(vec![stops(process)]), &of_node);
    assert_eq!(explanation.causes, []);
    assert!(explanation.facts.iter().any(|fact| fact.about == "stopped_processes"));
}

#[test]
fn slips_are_looked_for_in_short_ids_only() {
    for (long, is_near) in [(200, true), (300, false)] {
        let path = format!("/{}", "a".repeat(long));
        let state = with(vec![put("long", draft(&path, AGENT, &["unix:uid:5"]))]);
        let question = Question { spiffe_id: Some(id(&format!("{path}b"))), ..Question::default() };
        let remedy = &told(&state, &question).causes[0].remedy;
        assert_eq!(remedy.contains("did you mean"), is_near, "{long}");
    }
}

proptest! {
    /// Nothing stands in the way exactly where the issuer would take the entry.
    #[test]
    fn explanation_and_issuer_agree(commits in any_commits()) {
        let mut state = sound();
        commits.iter().for_each(|commit| state.apply(commit));
        let agent = id("/spire/agent/x/0");
        let Some(node) = state.node(&agent) else { return Ok(()) };
        prop_assume!(!node.is_banned() && state.agent_stop(&agent).is_none());
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
