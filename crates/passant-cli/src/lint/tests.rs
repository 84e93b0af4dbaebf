//! Does each rule find what was planted for it, and nothing where all is well?

use std::collections::BTreeSet;
use std::time::Duration;

use clap::ValueEnum;
use passant_core::UnixTime;
use passant_proto::types;

use super::{Level, Limits, Register, Report, Rule, check, sarif};

const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);
const LIMITS: Limits =
    Limits { x509_ttl: Duration::from_secs(86_400), jwt_ttl: Duration::from_secs(3_600), selectors: 2 };
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
}

fn selectors(texts: &str) -> Vec<types::Selector> {
    let one = |text: &str| {
        let (kind, value) = text.split_once(':').unwrap();
        types::Selector { r#type: kind.to_owned(), value: value.to_owned() }
    };
    texts.split_whitespace().map(one).collect()
}

fn entry(name: &str, parent: &str, path: &str, texts: &str) -> types::Entry {
    types::Entry {
        id: name.to_owned(),
        spiffe_id: id(path),
        parent_id: id(parent),
        selectors: selectors(texts),
        ..types::Entry::default()
    }
}

/// One as it should be, below `/node`.
fn good(name: &str, path: &str) -> types::Entry {
    entry(name, "/node", path, &format!("unix:uid:{} unix:path:/usr/bin{path}", 1000 + path.len()))
}

fn alias() -> types::Entry {
    entry("alias", "/spire/server", "/node", "x509pop:subject:cn:node")
}

/// A register with `/node` as alias, and these.
fn report(entries: Vec<types::Entry>) -> (Register, Report) {
    let mut register = Register::new(NOW);
    register.add(alias(), None);
    for entry in entries {
        register.add(entry, None);
    }
    register.know_agents(vec![agent("/spire/agent/x509pop/1", "x509pop:subject:cn:node x509pop:san:rack:4")]);
    register.know_bundles(BTreeSet::new());
    register.sort();
    let report = check(&register, &LIMITS);
    (register, report)
}

fn agent(path: &str, texts: &str) -> types::Agent {
    types::Agent { id: id(path), selectors: selectors(texts), ..types::Agent::default() }
}

/// Expects exactly these findings: of which rule, and about which entries.
fn expect(entries: Vec<types::Entry>, expected: &[(Rule, &str)]) {
    let (register, report) = report(entries);
    let found: Vec<(Rule, String)> = report
        .findings
        .iter()
        .map(|finding| {
            let ids: Vec<&str> = finding.entries.iter().map(|at| register.named(*at).0).collect();
            (finding.rule, ids.join(" "))
        })
        .collect();
    let expected: Vec<(Rule, String)> =
        expected.iter().map(|(rule, ids)| (*rule, (*ids).to_owned())).collect();
    assert_eq!(found, expected, "{:#?}", report.findings);
    assert!(report.findings.iter().all(|finding| !finding.evidence.is_empty() && !finding.fix.is_empty()));
}

fn expect_of(texts: &str, expected: &[Rule]) {
    let expected: Vec<(Rule, &str)> = expected.iter().map(|rule| (*rule, "a")).collect();
    expect(vec![entry("a", "/node", "/a", texts)], &expected);
}

fn changed(mut entry: types::Entry, change: impl FnOnce(&mut types::Entry)) -> types::Entry {
    change(&mut entry);
    entry
}

#[test]
fn a_good_entry_is_no_finding() {
    expect(vec![good("a", "/a")], &[]);
}

#[test]
fn selectors_that_the_fleet_shares_are_found() {
    expect_of("k8s:ns:web", &[Rule::FleetWide]);
    expect_of("k8s:ns:web k8s:node-name:n1 k8s:image-signature:verified", &[Rule::FleetWide]);
    expect_of("k8s:ns:web k8s:sa:web", &[]);
    // Root is on every node.
    expect_of("k8s:ns:prod unix:uid:0", &[Rule::FleetWide]);
    expect_of("k8s:ns:prod unix:user:root unix:gid:0", &[Rule::FleetWide]);
    expect_of("k8s:ns:prod unix:uid:0 k8s:sa:web", &[]);
    // What most SPIFFE IDs below one parent have is as good as nothing.
    let mut entries: Vec<types::Entry> = (0..30)
        .map(|n| {
            entry(
                &format!("e{n:02}"),
                "/node",
                &format!("/e{n}"),
                &format!("docker:label:env:prod docker:label:app:a{n}"),
            )
        })
        .collect();
    expect(entries.clone(), &[]);
    entries.push(entry("wide", "/node", "/wide", "docker:label:env:prod k8s:ns:x"));
    expect(entries, &[(Rule::FleetWide, "wide")]);
}

#[test]
fn few_selectors_are_found_unless_one_is_enough() {
    expect_of("unix:uid:1000", &[Rule::FewSelectors]);
    expect_of("unix:sha256:abc", &[]);
    expect_of("k8s:pod-uid:abc", &[]);
    expect_of(&format!("docker:image_id:web@{DIGEST}"), &[]);
}

#[test]
fn root_alone_is_found() {
    expect_of("unix:uid:0", &[Rule::RootAlone]);
    expect_of("unix:user:root unix:gid:0 unix:supplementary_gid:0", &[Rule::RootAlone]);
    expect_of("unix:uid:0 unix:path:/usr/bin/a", &[]);
}

#[test]
fn a_kubernetes_name_without_its_namespace_is_found() {
    expect_of("k8s:sa:web k8s:pod-label:app:web", &[Rule::NoNamespace]);
    expect_of("k8s:sa:web k8s:pod-uid:1", &[]);
}

#[test]
fn image_tags_are_found_where_no_digest_is_named() {
    expect_of("k8s:ns:web k8s:container-image:host:5000/web:1.2", &[Rule::ImageTag]);
    expect_of("docker:label:a:b docker:image_id:web:latest", &[Rule::ImageTag]);
    expect_of(&format!("k8s:ns:web k8s:container-image:web@{DIGEST}"), &[]);
    expect_of(&format!("docker:image_id:web:1 docker:image_config_digest:{DIGEST}"), &[]);
}

#[test]
fn selectors_that_nothing_has_together_are_found() {
    expect_of("unix:uid:1 unix:uid:2", &[Rule::NeverMatches]);
    expect_of("unix:uid:1 x509pop:subject:cn:node", &[Rule::NeverMatches]);
    let wrong = entry("a", "/spire/server", "/other-node", "unix:uid:1");
    expect(vec![wrong], &[(Rule::NeverMatches, "a")]);
}

#[test]
fn duplicates_are_found() {
    let other = changed(good("b", "/a"), |entry| entry.selectors.reverse());
    expect(vec![good("a", "/a"), other], &[(Rule::Duplicate, "a b")]);
    let differs = changed(good("b", "/a"), |entry| entry.hint = "blue".to_owned());
    let (_, report) = report(vec![good("a", "/a"), differs]);
    assert!(report.findings[0].evidence.contains("differ in hint"), "{:?}", report.findings);
}

#[test]
fn shadowed_entries_are_found() {
    let wide = entry("a", "/node", "/a", "unix:uid:1 unix:path:/a");
    let narrow = entry("b", "/node", "/a", "unix:uid:1 unix:path:/a unix:gid:1");
    expect(vec![wide.clone(), narrow], &[(Rule::Shadowed, "b a")]);
    let beside = entry("b", "/node", "/a", "unix:uid:1 unix:path:/b");
    expect(vec![wide, beside], &[]);
}

#[test]
fn an_entry_for_one_node_is_shadowed_by_one_for_all() {
    let all = entry("a", "/node", "/a", "unix:uid:1 unix:path:/a");
    let one = entry("b", "/spire/agent/x509pop/1", "/a", "unix:uid:1 unix:path:/a");
    expect(vec![all.clone(), one.clone()], &[(Rule::Shadowed, "b a")]);
    // The same below a narrower alias.
    let racked = entry("rack", "/spire/server", "/rack", "x509pop:subject:cn:node x509pop:san:rack:4");
    let below = changed(one.clone(), |entry| entry.parent_id = id("/rack"));
    expect(vec![all.clone(), below, racked], &[(Rule::Shadowed, "b a")]);
    // And below another alias of the same nodes: one of the two, not both.
    let same = entry("same", "/spire/server", "/same", "x509pop:subject:cn:node");
    let below = changed(one, |entry| entry.parent_id = id("/same"));
    expect(vec![all, below, same], &[(Rule::Shadowed, "b a")]);
}

#[test]
fn a_token_alias_is_another_name_of_its_node() {
    let agent_id = "spiffe://example.org/spire/agent/x509pop/1";
    let alias = entry("t", "/spire/agent/x509pop/1", "/mine", &format!("spiffe_id:{agent_id}"));
    let one = entry("a", "/spire/agent/x509pop/1", "/a", "unix:uid:1 unix:path:/a");
    let other = entry("b", "/mine", "/b", "unix:uid:1 unix:path:/a");
    expect(vec![alias, one, other], &[(Rule::AmbiguousDefault, "a b")]);
}

#[test]
fn several_owners_of_one_id_are_found() {
    let one = entry("a", "/node", "/a", "k8s:ns:blue k8s:sa:web");
    let other = entry("b", "/node", "/a", "k8s:ns:green k8s:sa:web");
    expect(vec![one.clone(), other], &[(Rule::SeveralOwners, "a b")]);
    let elsewhere = entry("b", "/spire/agent/x509pop/1", "/a", "k8s:ns:blue k8s:sa:web k8s:pod-uid:1");
    let (_, report) = report(vec![one, elsewhere]);
    assert!(report.findings.iter().all(|finding| finding.rule != Rule::SeveralOwners));
    let users = |n: u32| entry(&format!("u{n}"), "/node", "/u", &format!("unix:uid:{n} unix:path:/u"));
    expect(vec![users(1), users(2)], &[(Rule::SeveralOwners, "u1 u2")]);
}

#[test]
fn an_ambiguous_default_is_found_once_at_the_wider_entry() {
    let wide = entry("wide", "/node", "/wide", "unix:uid:1 unix:gid:1");
    let narrow = |n: u32| {
        entry(&format!("n{n}"), "/node", &format!("/n{n}"), &format!("unix:uid:1 unix:gid:1 unix:path:/n{n}"))
    };
    expect(vec![wide.clone(), narrow(1), narrow(2)], &[(Rule::AmbiguousDefault, "wide n1 n2")]);
    let alike =
        changed(wide.clone(), |entry| (entry.id, entry.spiffe_id) = ("other".to_owned(), id("/other")));
    expect(vec![wide.clone(), alike.clone()], &[(Rule::AmbiguousDefault, "wide other")]);
    // Hints tell them apart, if each has one.
    let hinted = |entry, hint: &str| changed(entry, |entry| entry.hint = hint.to_owned());
    expect(vec![hinted(wide.clone(), "a"), hinted(alike.clone(), "b")], &[]);
    expect(vec![hinted(wide.clone(), "a"), alike.clone()], &[(Rule::AmbiguousDefault, "wide other")]);
    expect(vec![hinted(wide.clone(), "a"), hinted(alike, "a")], &[(Rule::AmbiguousDefault, "wide other")]);
    // A secret store's entries are not served to workloads.
    let stored = changed(narrow(1), |entry| entry.store_svid = true);
    expect(vec![wide, stored], &[]);
}

#[test]
fn missing_parents_are_found_once_with_all_their_entries() {
    let below = |name: &str, parent: &str| {
        changed(good(name, &format!("/{name}")), |entry| entry.parent_id = id(parent))
    };
    expect(vec![below("a", "/gone"), below("b", "/gone"), below("c", "/a")], &[(Rule::MissingParent, "a b")]);
    expect(vec![below("a", "/spire/agent/x509pop/1")], &[]);
    expect(vec![below("a", "/spire/agent/x509pop/2")], &[(Rule::MissingParent, "a")]);
    // Whoever does not know the agents does not say that one is missing.
    let mut register = Register::new(NOW);
    register.add(below("a", "/spire/agent/x509pop/2"), None);
    register.add(below("b", "/a"), None);
    let report = check(&register, &LIMITS);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.not_checked.len(), 2);
}

/// The ID of the agent that a join token makes.
const OF_TOKEN: &str = "/spire/agent/join_token/0b1c-secret";

#[test]
fn a_join_token_is_published_by_no_finding() {
    let alias = entry("t", OF_TOKEN, "/mine", &format!("spiffe_id:spiffe://example.org{OF_TOKEN}"));
    let other = entry("u", "/spire/agent/join_token/other-secret", "/yours", "unix:uid:1 unix:path:/a");
    let twin = changed(other.clone(), |entry| entry.id = "v".to_owned());
    let beside =
        changed(other.clone(), |entry| (entry.id, entry.spiffe_id) = ("w".to_owned(), id("/theirs")));
    let (register, report) = report(vec![alias, other, twin, beside]);
    assert_eq!(report.findings.len(), 4, "{:#?}", report.findings);
    let told = format!("{:?} {}", report.findings, sarif::log(&register, &report, None));
    assert!(!told.contains("secret"), "{told}");
    assert!(told.contains("/spire/agent/join_token/***: "), "{told}");
}

#[test]
fn an_unspent_join_token_is_only_a_note() {
    let alias = || entry("t", OF_TOKEN, "/mine", &format!("spiffe_id:spiffe://example.org{OF_TOKEN}"));
    let below = entry("b", "/mine", "/b", "unix:uid:1 unix:path:/b");
    let level = |entries: Vec<types::Entry>| {
        let (_, report) = report(entries);
        assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
        (report.findings[0].rule, report.findings[0].level)
    };
    assert_eq!(level(vec![alias(), below]), (Rule::MissingParent, Level::Note));
    let workload = entry("c", OF_TOKEN, "/c", "unix:uid:1 unix:path:/c");
    assert_eq!(level(vec![alias(), workload]), (Rule::MissingParent, Level::Warning));
}

#[test]
fn entries_that_are_each_others_parents_are_found() {
    let below = |name: &str, parent: &str| {
        changed(good(name, &format!("/{name}")), |entry| entry.parent_id = id(parent))
    };
    let all =
        vec![below("a", "/c"), below("b", "/a"), below("c", "/b"), below("d", "/c"), below("e", "/node")];
    expect(all, &[(Rule::ParentCycle, "a b c")]);
    expect(vec![below("a", "/a")], &[(Rule::ParentCycle, "a")]);
}

#[test]
fn powerful_flags_are_found_and_weigh_more_on_a_broad_entry() {
    expect(vec![changed(good("a", "/a"), |entry| entry.admin = true)], &[(Rule::Admin, "a")]);
    expect(vec![changed(good("a", "/a"), |entry| entry.downstream = true)], &[(Rule::Downstream, "a")]);
    let broad = changed(entry("a", "/node", "/a", "unix:uid:1"), |entry| entry.admin = true);
    expect(vec![broad.clone()], &[(Rule::FewSelectors, "a"), (Rule::Admin, "a")]);
    assert_eq!(report(vec![broad]).1.findings[0].level, Level::Error);
}

#[test]
fn long_lifetimes_are_found_from_the_first_second_over_the_limit() {
    let living =
        |x509, jwt| changed(good("a", "/a"), |entry| (entry.x509_svid_ttl, entry.jwt_svid_ttl) = (x509, jwt));
    expect(vec![living(86_400, 3_600)], &[]);
    expect(vec![living(86_401, 0)], &[(Rule::LongTtl, "a")]);
    expect(vec![living(0, 3_601)], &[(Rule::LongTtl, "a")]);
}

#[test]
fn bundles_and_entries_are_held_against_each_other() {
    let mut register = Register::new(NOW);
    register.add(alias(), None);
    let federating = |name: &str, with: &str| {
        changed(good(name, &format!("/{name}")), |entry| entry.federates_with = vec![with.to_owned()])
    };
    register.add(federating("a", "known.test"), None);
    register.add(federating("b", "unknown.test"), None);
    register.know_bundles(["known.test".to_owned(), "unused.test".to_owned()].into());
    register.know_relationships(["fetched.test".to_owned(), "unused.test".to_owned()]);
    let findings = check(&register, &LIMITS).findings;
    let found: Vec<(Rule, &str, usize)> = findings
        .iter()
        .map(|finding| (finding.rule, finding.subject.as_str(), finding.entries.len()))
        .collect();
    let unused = |name| (Rule::UnusedFederation, name, 0);
    let missing = (Rule::MissingBundle, "unknown.test", 1);
    assert_eq!(found, [unused("fetched.test"), unused("unused.test"), missing]);
}

#[test]
fn fields_that_were_not_looked_at_are_named() {
    let mut register = fleet(0);
    register.skip(vec!["owner".to_owned(), "owner".to_owned(), "purpose".to_owned()]);
    let not_checked = check(&register, &LIMITS).not_checked;
    assert_eq!(not_checked, ["fields that no entry has here: owner, purpose"]);
}

#[test]
fn ended_entries_are_not_looked_at() {
    let ends = |at| changed(entry("a", "/node", "/a", "unix:uid:0"), |entry| entry.expires_at = at);
    let (register, report) = report(vec![ends(NOW.secs())]);
    assert_eq!((register.len(), report.findings.len()), (1, 0));
    assert!(report.not_checked[0].contains("1 entries that have ended"), "{:?}", report.not_checked);
    expect(vec![ends(NOW.secs() + 1)], &[(Rule::RootAlone, "a")]);
}

/// A register such as one finds: a cluster and some machines, each entry as it should be.
fn fleet(count: usize) -> Register {
    let mut register = Register::new(NOW);
    register.add(entry("cluster", "/spire/server", "/cluster", "k8s_psat:cluster:one"), None);
    register.add(alias(), None);
    let mut agents = vec![agent("/spire/agent/x509pop/1", "x509pop:subject:cn:node")];
    for n in 0..count {
        let name = format!("e{n:06}");
        let path = format!("/svc/{n}");
        let made = match n % 4 {
            0 => entry(&name, "/cluster", &path, &format!("k8s:ns:team-{} k8s:sa:svc-{n}", n % 50)),
            1 => entry(
                &name,
                "/node",
                &path,
                &format!("unix:uid:{} unix:path:/opt/{n}/bin/svc", 1000 + n % 40),
            ),
            2 => entry(
                &name,
                "/cluster",
                &path,
                &format!("k8s:ns:team-{} k8s:pod-label:app:a{n} k8s:container-image:web@{DIGEST}", n % 50),
            ),
            _ => {
                let path = format!("/spire/agent/k8s_psat/one/{}", n % 1000);
                agents.push(agent(&path, "k8s_psat:cluster:one"));
                entry(&name, &path, &format!("/daemon/{n}"), &format!("k8s:ns:system k8s:pod-uid:{n}"))
            }
        };
        register.add(made, None);
    }
    register.know_agents(agents);
    register.know_bundles(BTreeSet::new());
    register.sort();
    register
}

#[test]
fn nothing_is_found_in_a_thousand_good_entries() {
    let report = check(&fleet(1000), &LIMITS);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert!(report.not_checked.is_empty());
}

#[test]
fn a_fault_is_found_among_a_thousand_good_entries() {
    let mut register = fleet(1000);
    register.add(entry("zz", "/cluster", "/zz", "k8s:ns:team-8"), None);
    let report = check(&register, &LIMITS);
    let rules: Vec<Rule> = report.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [Rule::FleetWide, Rule::AmbiguousDefault]);
}

/// Not about speed, which a busy machine decides, but about the bound that makes it: a register in which everything
/// overlaps with everything is given up on, and that is said.
#[test]
fn a_register_of_nothing_but_overlaps_is_cut_short_and_says_so() {
    let mut register = Register::new(NOW);
    register.add(alias(), None);
    for n in 0..200 {
        let texts: Vec<String> = (0..=n).map(|s| format!("docker:label:s{s:03}")).collect();
        register.add(entry(&format!("e{n:03}"), "/node", &format!("/e{n}"), &texts.join(" ")), None);
    }
    let report = check(&register, &LIMITS);
    assert!(
        report.not_checked.iter().any(|what| what.contains("overlaps of 135 entries")),
        "{:?}",
        report.not_checked
    );
    assert!(report.findings.iter().any(|finding| finding.rule == Rule::AmbiguousDefault));
}

#[test]
fn every_rule_is_described() {
    let readme = include_str!("../../README.md");
    for rule in Rule::value_variants() {
        assert_eq!(rule.to_possible_value().unwrap().get_name(), rule.name());
        assert!(
            readme.contains(&format!("| `{}` | {} |", rule.name(), rule.level().name())),
            "{}",
            rule.name()
        );
    }
}

/// The fingerprints of a SARIF log, in order.
fn fingerprints(entries: Vec<types::Entry>) -> Vec<String> {
    let (register, report) = report(entries);
    let log = sarif::log(&register, &report, None);
    let results = log["runs"][0]["results"].as_array().unwrap();
    let text =
        |result: &serde_json::Value| result["partialFingerprints"]["passant/v1"].as_str().map(str::to_owned);
    results.iter().map(|result| text(result).unwrap()).collect()
}

#[test]
fn a_finding_keeps_its_fingerprint_whatever_joins_it() {
    let below = |name: &str| changed(good(name, &format!("/{name}")), |entry| entry.parent_id = id("/gone"));
    let first = fingerprints(vec![below("m")]);
    assert_eq!(first, ["missing-parent spiffe://example.org/gone"]);
    assert_eq!(fingerprints(vec![below("m"), below("a"), below("z")]), first);
    let owned = |name: &str, ns: &str| entry(name, "/node", "/a", &format!("k8s:ns:{ns} k8s:sa:web"));
    let first = fingerprints(vec![owned("m", "one"), owned("n", "two")]);
    assert_eq!(fingerprints(vec![owned("m", "one"), owned("n", "two"), owned("a", "three")]), first);
}

#[test]
fn no_two_findings_have_the_same_fingerprint() {
    let nameless = |uid: u32| entry("", "/node", "/a", &format!("unix:uid:{uid}"));
    let long = changed(good("l", "/l"), |entry| (entry.x509_svid_ttl, entry.jwt_svid_ttl) = (90_000, 9_000));
    let parent = |name: &str, token: &str| {
        let path = format!("/spire/agent/join_token/{token}");
        entry(name, &path, &format!("/{name}"), "unix:uid:7 unix:path:/x")
    };
    let all = vec![
        nameless(1),
        nameless(2),
        nameless(2),
        nameless(3),
        long,
        parent("p", "one"),
        parent("q", "two"),
    ];
    let found = fingerprints(all);
    let distinct: BTreeSet<&String> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "{found:#?}");
    assert!(found.len() > 7, "{found:#?}");
}

#[test]
fn every_result_has_a_place_in_the_file() {
    let (register, mut report) = report(vec![entry("a", "/node", "/a", "unix:uid:0")]);
    let mut unused = report.findings[0].clone();
    (unused.rule, unused.subject) = (Rule::UnusedFederation, "unused.test".to_owned());
    unused.entries.clear();
    report.findings.push(unused);
    let log = sarif::log(&register, &report, Some("entries.json"));
    let results = log["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "entries.json");
        assert_eq!(place["region"]["startLine"], 1);
    }
}

#[test]
fn a_sarif_log_locates_findings_in_the_file() {
    let mut register = Register::new(NOW);
    register.add(alias(), Some(2));
    register.add(entry("a", "/node", "/a", "unix:uid:0"), Some(7));
    register.know_agents(Vec::new());
    let report = check(&register, &LIMITS);
    let log = sarif::log(&register, &report, Some("entries.json"));
    let result = &log["runs"][0]["results"][0];
    assert_eq!((&log["version"], &result["ruleId"]), (&"2.1.0".into(), &"root-alone".into()));
    let rule = result["ruleIndex"].as_u64().unwrap();
    assert_eq!(log["runs"][0]["tool"]["driver"]["rules"][usize::try_from(rule).unwrap()]["id"], "root-alone");
    let place = &result["locations"][0];
    assert_eq!(place["physicalLocation"]["artifactLocation"]["uri"], "entries.json");
    assert_eq!(place["physicalLocation"]["region"]["startLine"], 7);
    assert_eq!(place["logicalLocations"][0]["fullyQualifiedName"], "spiffe://example.org/a");
    let notes = log["runs"][0]["invocations"][0]["toolExecutionNotifications"].as_array().unwrap();
    assert_eq!(notes.len(), 1);
    for text in ["shortDescription", "fullDescription", "help"] {
        let rules = log["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
        assert!(rules.iter().all(|rule| rule[text]["text"].as_str().is_some_and(|text| text.ends_with('.'))));
    }
}
