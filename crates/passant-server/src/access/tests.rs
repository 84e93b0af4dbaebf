//! Does a role allow what it says, and nothing that leads beyond it?

use super::explain::explain;
use super::*;
use crate::state::samples::{commit, draft, id, node, registered, relationship, trust_domain};
use crate::state::{AttestedNode, Change, Cursor, Lineage, Revision};

fn prefixes(ids: &[&str]) -> Vec<Prefix> {
    let parse = |text: &&str| Prefix::new(SpiffeId::parse(text).unwrap());
    ids.iter().map(parse).collect()
}

/// All verbs, on what is below /pay, under /node or /spire/agent/join_token, with selectors of type unix.
fn role(name: &str) -> Role {
    Role {
        name: name.to_owned(),
        verbs: Verb::ALL.into(),
        spiffe_ids: prefixes(&["spiffe://example.org/pay"]),
        parent_ids: prefixes(&["spiffe://example.org/node", "spiffe://example.org/spire/agent/join_token"]),
        selector_types: SelectorTypes::These(["unix".to_owned()].into()),
        granted_to: Holders { spiffe_ids: [id("/pay/ci")].into(), uids: [7].into(), gids: [70].into() },
    }
}

fn rights(roles: Vec<Role>) -> Rights {
    Rights::new([id("/pay/boss")].into(), roles)
}

fn state(entries: Vec<(&str, EntryDraft)>) -> State {
    let cursor = Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO };
    let mut state = State::empty(trust_domain(), cursor);
    let puts = entries.into_iter().map(|(name, draft)| Change::PutEntry(registered(name, draft)));
    state.apply(&commit(1, puts.collect()));
    state
}

fn plain(spiffe_id: &str, parent: &str) -> EntryDraft {
    draft(spiffe_id, parent, &["unix:uid:1"])
}

/// What keeps `role("a")` from making this draft an entry.
fn lack(draft: &EntryDraft, state: &State) -> Option<Lack> {
    let rights = rights(vec![role("a")]);
    role("a").lack(Verb::EntryCreate, &Target::Draft(draft.into()), state, &rights, &Looks::of_one_request())
}

#[test]
fn a_prefix_covers_whole_segments() {
    for (prefix, covered, expected) in [
        ("spiffe://example.org/pay", "spiffe://example.org/pay", true),
        ("spiffe://example.org/pay", "spiffe://example.org/pay/api", true),
        ("spiffe://example.org/pay", "spiffe://example.org/payroll", false),
        ("spiffe://example.org/pay", "spiffe://example.org", false),
        ("spiffe://example.org/pay", "spiffe://example.org/Pay", false),
        ("spiffe://example.org", "spiffe://example.org/pay", true),
        ("spiffe://example.org", "spiffe://example.org.evil/pay", false),
        ("spiffe://example.org", "spiffe://example.orgs/pay", false),
    ] {
        let covers = Prefix::new(SpiffeId::parse(prefix).unwrap()).covers(&SpiffeId::parse(covered).unwrap());
        assert_eq!(covers, expected, "{prefix} {covered}");
    }
}

#[test]
fn an_entry_must_be_covered_by_id_parent_and_every_selector() {
    let nothing = state(vec![]);
    assert_eq!(lack(&plain("/pay/api", "/node/1"), &nothing), None);
    let outside = lack(&plain("/web", "/node/1"), &nothing);
    assert_eq!(outside, Some(Lack::SpiffeId(id("/web"))));
    let elsewhere = lack(&plain("/pay/api", "/nodes"), &nothing);
    assert_eq!(elsewhere, Some(Lack::ParentId(id("/nodes"))));
    let alias = lack(&plain("/pay/api", "/spire/server"), &nothing);
    assert_eq!(alias, Some(Lack::ParentId(id("/spire/server"))));
    let mixed = lack(&draft("/pay/api", "/node/1", &["unix:uid:1", "k8s:ns:x"]), &nothing);
    assert_eq!(mixed, Some(Lack::SelectorType("k8s".to_owned())));
}

#[test]
fn a_role_without_the_verb_allows_nothing() {
    let (nothing, rights) = (state(vec![]), rights(vec![]));
    let reader = Role { verbs: [Verb::EntryRead].into(), ..role("a") };
    let draft = plain("/pay/api", "/node/1");
    for verb in Verb::ALL {
        let expected = (verb != Verb::EntryRead).then_some(Lack::Verb(verb));
        assert_eq!(
            reader.lack(verb, &Target::Entry((&draft).into()), &nothing, &rights, &Looks::of_one_request()),
            expected
        );
    }
}

#[test]
fn no_role_reaches_entries_with_flags() {
    let nothing = state(vec![]);
    let admin = EntryDraft { admin: true, ..plain("/pay/api", "/node/1") };
    let downstream = EntryDraft { downstream: true, ..plain("/pay/api", "/node/1") };
    assert_eq!(lack(&admin, &nothing), Some(Lack::Flag("admin")));
    assert_eq!(lack(&downstream, &nothing), Some(Lack::Flag("downstream")));
    let rights = rights(vec![]);
    let of = |verb| {
        role("a").lack(verb, &Target::Entry((&admin).into()), &nothing, &rights, &Looks::of_one_request())
    };
    // One that stands may be looked at, and neither taken over nor removed.
    assert_eq!(of(Verb::EntryRead), None);
    assert_eq!(of(Verb::StopRead), None);
    assert_eq!(of(Verb::StopWrite), Some(Lack::Flag("admin")));
    assert_eq!(of(Verb::EntryUpdate), Some(Lack::Flag("admin")));
    assert_eq!(of(Verb::EntryDelete), Some(Lack::Flag("admin")));
}

#[test]
fn no_role_gives_out_an_id_that_has_rights_of_its_own() {
    let admin = EntryDraft { admin: true, ..draft("/pay/ops", "/node/9", &["unix:uid:0"]) };
    let below = EntryDraft { downstream: true, ..draft("/pay/sub", "/node/9", &["unix:uid:0"]) };
    let state = state(vec![("ops", admin), ("sub", below)]);
    let rights = rights(vec![role("a")]);
    for path in ["/pay/ops", "/pay/sub", "/pay/boss", "/pay/ci"] {
        assert_eq!(lack(&plain(path, "/node/1"), &state), Some(Lack::RightsOf(id(path))), "{path}");
        let of = |target: &Target<'_>, verb| {
            role("a").lack(verb, target, &state, &rights, &Looks::of_one_request())
        };
        assert_eq!(of(&Target::Svid(&id(path)), Verb::SvidMint), Some(Lack::RightsOf(id(path))), "{path}");
        let agent = id("/spire/agent/join_token/t");
        let token = of(&Target::Token { agent: &agent, alias: Some(&id(path)) }, Verb::TokenCreate);
        assert_eq!(token, Some(Lack::RightsOf(id(path))), "{path}");
    }
}

#[test]
fn no_role_gives_out_an_id_below_which_others_have_entries() {
    let admin = EntryDraft { admin: true, ..plain("/pay/deep", "/pay/middle") };
    let state = state(vec![
        ("covered", plain("/pay/a", "/pay/pool")),
        ("foreign", plain("/web", "/pay/shared")),
        ("step", plain("/pay/middle", "/pay/top")),
        ("admin", admin),
        ("loop", plain("/pay/loop", "/pay/loop2")),
        ("loop2", plain("/pay/loop2", "/pay/loop")),
        ("waiting", plain("/web", "/spire/agent/join_token/known")),
    ]);
    assert_eq!(lack(&plain("/pay/pool", "/node/1"), &state), None, "what is below it is covered");
    assert_eq!(lack(&plain("/pay/loop", "/node/1"), &state), None);
    for path in ["/pay/shared", "/pay/top", "/pay/middle"] {
        assert_eq!(lack(&plain(path, "/node/1"), &state), Some(Lack::Below(id(path))), "{path}");
    }
    let rights = rights(vec![]);
    let token = |agent: &str, alias: Option<&str>| {
        let (agent, alias) = (id(agent), alias.map(id));
        let target = Target::Token { agent: &agent, alias: alias.as_ref() };
        role("a").lack(Verb::TokenCreate, &target, &state, &rights, &Looks::of_one_request())
    };
    assert_eq!(token("/spire/agent/join_token/x", None), None);
    assert_eq!(token("/spire/agent/join_token/x", Some("/pay/pool")), None);
    let known = id("/spire/agent/join_token/known");
    assert_eq!(token("/spire/agent/join_token/known", None), Some(Lack::Below(known)));
    let shared = token("/spire/agent/join_token/x", Some("/pay/shared"));
    assert_eq!(shared, Some(Lack::Below(id("/pay/shared"))));
    assert_eq!(token("/spire/agent/join_token/x", Some("/web")), Some(Lack::SpiffeId(id("/web"))));
}

#[test]
fn too_many_entries_below_an_id_are_not_looked_through() {
    let names: Vec<String> = (0..=ENTRIES_BELOW).map(|n| format!("e{n}")).collect();
    let below = |count: usize| {
        let entries = names.iter().take(count).enumerate();
        state(entries.map(|(n, name)| (name.as_str(), plain(&format!("/pay/{n}"), "/pay/pool"))).collect())
    };
    assert_eq!(lack(&plain("/pay/pool", "/node/1"), &below(ENTRIES_BELOW)), None);
    let many = lack(&plain("/pay/pool", "/node/1"), &below(ENTRIES_BELOW + 1));
    assert_eq!(many, Some(Lack::Below(id("/pay/pool"))));
}

#[test]
fn one_request_looks_at_so_many_entries_and_no_more() {
    let names: Vec<String> = (0..ENTRIES_BELOW).map(|n| format!("e{n}")).collect();
    // All of them grant one ID.
    let entries = names.iter().enumerate().map(|(n, name)| {
        (name.as_str(), draft("/pay/api", "/pay/pool", &[format!("unix:uid:{n}").as_str()]))
    });
    let (state, rights, looks) = (state(entries.collect()), rights(vec![]), Looks::of_one_request());
    let (pool, leaf) = (plain("/pay/pool", "/node/1"), plain("/pay/leaf", "/node/1"));
    let lack = |draft: &EntryDraft, looks: &Looks| {
        role("a").lack(Verb::EntryCreate, &Target::Draft(draft.into()), &state, &rights, looks)
    };
    for _ in 0..ENTRIES_LOOKED_AT / ENTRIES_BELOW {
        assert_eq!(lack(&pool, &looks), None);
    }
    assert_eq!(lack(&pool, &looks), Some(Lack::Below(id("/pay/pool"))));
    assert_eq!(lack(&leaf, &looks), None, "there is nothing to look at");
    assert_eq!(lack(&pool, &Looks::of_one_request()), None, "another request");
}

#[test]
fn no_role_reaches_the_keys_of_a_trust_domain_that_rights_lie_in() {
    let foreign = |text: &str| SpiffeId::parse(text).unwrap();
    let domain = |text: &str| TrustDomain::parse(text).unwrap();
    let endpoint = |of: &str, endpoint_id: &str| {
        Change::PutFederation(relationship(domain(of), Some(foreign(endpoint_id))))
    };
    let mut state = state(vec![("below", plain("/pay/endpoint", "/pay/pool"))]);
    let relationships = vec![
        endpoint("prod.test", "spiffe://infra.test/ep"),
        endpoint("infra.test", "spiffe://base.test/ep"),
        endpoint("base.test", "spiffe://example.org/pay/endpoint"),
        endpoint("plain.test", "spiffe://shop.test/ep"),
    ];
    state.apply(&commit(2, relationships));
    let rights = Rights::new([foreign("spiffe://prod.test/boss")].into(), vec![role("a")]);
    let of =
        |verb, target: &Target<'_>| role("a").lack(verb, target, &state, &rights, &Looks::of_one_request());
    for (name, is_guarded) in [
        ("prod.test", true),
        ("infra.test", true),
        ("base.test", true),
        ("example.org", true),
        ("plain.test", false),
        ("shop.test", false),
        ("unknown.test", false),
    ] {
        let name = domain(name);
        let expected = is_guarded.then(|| Lack::RightsIn(name.clone()));
        for verb in [Verb::BundleWrite, Verb::FederationWrite] {
            assert_eq!(of(verb, &Target::TrustDomain(&name)), expected, "{name}");
        }
    }
    // Who answers for an endpoint says which keys there are.
    let answering = id("/pay/endpoint");
    assert_eq!(of(Verb::SvidMint, &Target::Svid(&answering)), Some(Lack::RightsOf(answering.clone())));
    let entry = plain("/pay/endpoint", "/node/1");
    assert_eq!(of(Verb::EntryCreate, &Target::Draft((&entry).into())), Some(Lack::RightsOf(answering)));
    let pool = plain("/pay/pool", "/node/1");
    let below = of(Verb::EntryCreate, &Target::Draft((&pool).into()));
    assert_eq!(below, Some(Lack::Below(id("/pay/pool"))));
    assert_eq!(of(Verb::SvidMint, &Target::Svid(&id("/pay/other"))), None);
}

#[test]
fn a_ban_is_undone_by_those_alone_who_may_ban() {
    let evictor = Role { verbs: [Verb::AgentEvict].into(), ..role("evictor") };
    let path = |name: &str| format!("/spire/agent/join_token/{name}");
    let mut state = state(vec![]);
    let banned = AttestedNode { serial: None, ..AttestedNode::clone(&node(&path("bad"), &[])) };
    state.apply(&commit(2, vec![Change::PutNode(banned.into()), Change::PutNode(node(&path("good"), &[]))]));
    let rights = rights(vec![]);
    for (role, name, expected) in [
        (&evictor, "good", None),
        (&evictor, "unknown", None),
        (&evictor, "bad", Some(Lack::Unban)),
        (&role("a"), "bad", None),
    ] {
        let (agent, looks) = (id(&path(name)), Looks::of_one_request());
        let lack = role.lack(Verb::AgentEvict, &Target::Agent(&agent), &state, &rights, &looks);
        assert_eq!(lack, expected, "{name}");
    }
}

#[test]
fn roles_are_held_by_id_user_or_group() {
    let rights = rights(vec![role("a")]);
    let user = |uid, gids: &[u32]| Who::User { uid, gids: gids.iter().copied().collect() };
    for (who, held) in [
        (Who::Bearer(id("/pay/ci")), true),
        (Who::Bearer(id("/pay/ci/x")), false),
        (Who::Bearer(SpiffeId::parse("spiffe://other.example/pay/ci").unwrap()), false),
        (user(7, &[]), true),
        (user(8, &[7]), false),
        (user(8, &[1, 70]), true),
    ] {
        assert_eq!(rights.held_by(&who).len(), usize::from(held), "{who:?}");
    }
}

#[test]
fn an_explanation_says_what_decides_and_what_each_role_lacks() {
    let narrow = Role {
        granted_to: Holders::default(),
        spiffe_ids: prefixes(&["spiffe://example.org/web"]),
        ..role("web")
    };
    let reader = Role { verbs: [Verb::EntryRead].into(), ..role("reader") };
    let rights = rights(vec![narrow, reader, role("pay")]);
    let nothing = state(vec![]);
    let holder = Who::Bearer(id("/pay/ci"));
    let ask = |who: &Who, operator: Option<&str>, verb, old: &EntryDraft, new: &EntryDraft| {
        let targets = [Target::Entry(old.into()), Target::Draft(new.into())];
        explain(&rights, who, operator.map(str::to_owned), verb, &targets, &nothing)
    };
    let (pay, web) = (plain("/pay/a", "/node/1"), plain("/web/a", "/node/1"));
    let allowed = ask(&holder, None, Verb::EntryUpdate, &pay, &pay);
    assert!(allowed.allowed);
    assert_eq!(allowed.reason, "role \"pay\" allows it");
    let names: Vec<_> = allowed.roles.iter().map(|one| (one.role.name.as_str(), one.held)).collect();
    assert_eq!(names, [("reader", true), ("pay", true), ("web", false)]);
    assert_eq!(allowed.roles[0].lack, Some(Lack::Verb(Verb::EntryUpdate)));
    // Both the entry as it is and as it becomes count.
    for (old, new) in [(&pay, &web), (&web, &pay)] {
        let denied = ask(&holder, None, Verb::EntryUpdate, old, new);
        assert!(!denied.allowed);
        assert!(denied.reason.contains("role \"pay\" does not cover SPIFFE ID"), "{}", denied.reason);
    }
    let nobody = ask(&Who::Bearer(id("/else")), None, Verb::EntryUpdate, &pay, &pay);
    assert!(!nobody.allowed && nobody.reason.contains("holds no role"));
    let operator = ask(&holder, Some("it is root"), Verb::EntryUpdate, &web, &web);
    assert!(operator.allowed && operator.reason == "it is root");
}

#[test]
fn what_one_role_does_not_cover_another_may() {
    let web = Role { spiffe_ids: prefixes(&["spiffe://example.org/web"]), ..role("web") };
    let rights = rights(vec![role("pay"), web]);
    let nothing = state(vec![]);
    let (old, new) = (plain("/pay/a", "/node/1"), plain("/web/a", "/node/1"));
    let targets = [Target::Entry((&old).into()), Target::Draft((&new).into())];
    let verdict = explain(&rights, &Who::Bearer(id("/pay/ci")), None, Verb::EntryUpdate, &targets, &nothing);
    assert!(verdict.allowed);
    assert_eq!(verdict.reason, "its roles allow it together");
}
