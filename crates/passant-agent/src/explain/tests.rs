//! Is the cause that was planted the one that is named first?

use std::collections::BTreeMap;
use std::io;

use passant_attest::peer::PeerError;
use passant_attest::workload::AttestError;
use passant_core::bundle::Bundle;
use passant_core::explanation::{Code, Explanation};
use passant_core::{AuthorizedEntry, StopReason, StopTarget, TrustDomain};

use super::*;
use crate::cache::Failed;
use crate::testing::{NOW, by_id, entry, id, secs, selectors, trust_domain};

/// An agent at which nothing is wrong, with one entry `/web`, and a process that matches it.
struct World {
    node: Option<(SpiffeId, UnixTime)>,
    fault: Option<AgentFault>,
    stops: Vec<Stop>,
    troubles: BTreeMap<Part, String>,
    attestors: Vec<&'static str>,
    confirmed: Option<(UnixTime, bool)>,
    mint_trouble: Option<String>,
    bundles: Bundles,
    entries: BTreeMap<EntryId, Arc<AuthorizedEntry>>,
    svid: SvidLook,
    process: Process,
    wanted: Option<SpiffeId>,
}

const fn at(secs: i64) -> UnixTime {
    UnixTime::from_secs(secs)
}

fn found(texts: &[&str]) -> Process {
    Process::Attested(BTreeMap::from([("unix", Ok(selectors(texts)))]))
}

fn failed(also: &[(&'static str, &[&str])]) -> Process {
    let broken = AttestError::Failed { what: "failed to hash the executable".to_owned(), source: None };
    let mut answers = BTreeMap::from([("unix", Err(Unanswered::Failed(broken)))]);
    answers.extend(also.iter().map(|(method, found)| (*method, Ok(selectors(found)))));
    Process::Attested(answers)
}

fn web(change: impl FnOnce(&mut AuthorizedEntry)) -> BTreeMap<EntryId, Arc<AuthorizedEntry>> {
    let mut web = entry("web", 1);
    change(&mut web);
    by_id([web])
}

impl World {
    fn sound() -> Self {
        Self {
            node: Some((id("/spire/agent/x/1"), at(NOW + 100))),
            fault: None,
            stops: Vec::new(),
            troubles: BTreeMap::new(),
            attestors: vec!["unix"],
            confirmed: Some((at(NOW - 5), true)),
            mint_trouble: None,
            bundles: Bundles {
                own: Some(Arc::new(Bundle::empty(trust_domain()))),
                federated: BTreeMap::new(),
            },
            entries: web(|_| {}),
            svid: SvidLook { not_after: Some(at(NOW + 60)), ..SvidLook::default() },
            process: found(&["unix:uid:1", "unix:gid:1"]),
            wanted: None,
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut world = Self::sound();
        change(&mut world);
        world
    }

    fn told(&self) -> Explanation {
        let (trust_domain, stops) = (trust_domain(), Stops::new(self.stops.clone()));
        let scene = Scene {
            trust_domain: &trust_domain,
            now: at(NOW),
            node: self.node.clone(),
            fault: self.fault,
            stops: &stops,
            instance: Instance::new("boot", 5, 7).ok(),
            server: "server.example.org:8081".to_owned(),
            troubles: &self.troubles,
            attestors: self.attestors.clone(),
            confirmed: self.confirmed,
            mint_trouble: self.mint_trouble.clone(),
            bundles: &self.bundles,
            entries: &self.entries,
            svid_of: &|_| self.svid.clone(),
        };
        explain(&self.process, self.wanted.as_ref(), &scene)
    }
}

fn stopping(target: StopTarget) -> Stop {
    Stop {
        target,
        id: "s".to_owned(),
        reason: StopReason::parse("found in a log").unwrap(),
        by: String::new(),
        since: at(NOW - 60),
        revision: 0,
    }
}

fn refused() -> SvidLook {
    let failed = Failed {
        times: 3,
        since: at(NOW - 9),
        at: at(NOW - 1),
        wait: secs(1),
        why: "the entry ended".to_owned(),
    };
    SvidLook { failed: Some(failed), ..SvidLook::default() }
}

#[test]
fn nothing_is_named_where_nothing_is_wrong() {
    let told = World::sound().told();
    assert_eq!(told.causes, []);
    assert_eq!(told.candidates.len(), 1);
    let facts: Vec<&str> = told.facts.iter().map(|fact| fact.about).collect();
    assert_eq!(facts, ["agent", "server", "last_sync", "bundle", "attestor"]);
    assert_eq!(World::with(|it| it.process = Process::None).told().causes, []);
    assert_eq!(World::with(|it| it.wanted = Some(id("/web"))).told().causes, []);
}

/// A cause, words that it must be told with, and how it is planted.
struct Planted(Code, &'static str, Box<dyn FnOnce(&mut World)>);

#[test]
fn the_planted_cause_is_named_first() {
    let agent = || id("/spire/agent/x/1");
    let planted: [Planted; 28] = [
        Planted(
            Code::Stopped,
            "stop resume agent spiffe://example.org/spire/agent/x/1",
            Box::new(move |it| {
                it.stops = vec![stopping(StopTarget::Agent(agent()))];
                it.entries = BTreeMap::new();
            }),
        ),
        Planted(
            Code::Stopped,
            "the process boot/5/7 is stopped",
            Box::new(move |it| {
                let [other, this] = [4, 5].map(|pid| Instance::new("boot", pid, 7).unwrap());
                let target = |instance| StopTarget::Instance { agent: agent(), instance };
                it.stops = vec![stopping(target(other)), stopping(target(this))];
            }),
        ),
        Planted(
            Code::Stopped,
            "found in a log",
            Box::new(|it| {
                it.stops = vec![stopping(StopTarget::Entry(entry("web", 1).id))];
                it.svid = SvidLook::default();
            }),
        ),
        Planted(
            Code::NoSuchProcess,
            "no such process",
            Box::new(|it| it.process = Process::Unknown(PeerError::Gone)),
        ),
        Planted(
            Code::ForeignPidNamespace,
            "hostPID",
            Box::new(|it| it.process = Process::Unknown(PeerError::ForeignPidNamespace)),
        ),
        Planted(
            Code::ProcessUnreadable,
            "/proc",
            Box::new(|it| {
                let denied = io::Error::from(io::ErrorKind::PermissionDenied);
                it.process = Process::Unknown(PeerError::Unreadable(denied));
            }),
        ),
        Planted(
            Code::NodeBanned,
            "banned",
            Box::new(|it| {
                it.troubles.insert(Part::Node, BANNED.to_owned());
                (it.node, it.confirmed, it.entries) = (None, None, BTreeMap::new());
            }),
        ),
        Planted(
            Code::NodeNotAttested,
            "no unused join token",
            Box::new(|it| {
                it.troubles.insert(Part::Node, "there is no unused join token".to_owned());
                (it.node, it.confirmed, it.entries) = (None, None, BTreeMap::new());
            }),
        ),
        Planted(
            Code::NodeSvidExpired,
            "expired",
            Box::new(|it| {
                it.node = Some((id("/spire/agent/x/1"), at(NOW)));
                it.svid = SvidLook::default();
            }),
        ),
        Planted(
            Code::NodeUnknown,
            "does not know the agent",
            Box::new(|it| (it.fault, it.svid) = (Some(AgentFault::NotAttested), SvidLook::default())),
        ),
        Planted(
            Code::NeverSynced,
            "connection refused",
            Box::new(|it| {
                it.troubles.insert(Part::Sync, "failed to sync entries: connection refused".to_owned());
                (it.confirmed, it.entries) = (None, BTreeMap::new());
            }),
        ),
        Planted(
            Code::SyncFailing,
            "certificate is not trusted",
            Box::new(|it| {
                it.troubles
                    .insert(Part::Sync, "failed to sync entries: certificate is not trusted".to_owned());
                (it.confirmed, it.entries) = (Some((at(NOW - 60), false)), BTreeMap::new());
            }),
        ),
        Planted(Code::AttestationFailed, "failed to hash", Box::new(|it| it.process = failed(&[]))),
        Planted(
            Code::AttestationFailed,
            "in time",
            Box::new(|it| it.process = Process::Attested(BTreeMap::from([("unix", Err(Unanswered::Late))]))),
        ),
        Planted(Code::NotOnNode, "/db", Box::new(|it| it.wanted = Some(id("/db")))),
        Planted(
            Code::OtherTrustDomain,
            "other.example",
            Box::new(|it| it.wanted = TrustDomain::parse("other.example").unwrap().join("/web").ok()),
        ),
        Planted(Code::NodeWithoutEntries, "no entry at all", Box::new(|it| it.entries = BTreeMap::new())),
        Planted(
            Code::AttestorMissing,
            "type docker",
            Box::new(|it| it.entries = web(|web| web.selectors = selectors(&["docker:label:a:b"]))),
        ),
        Planted(
            Code::AttestorMissing,
            "type k8s",
            Box::new(|it| it.entries = web(|web| web.selectors = selectors(&["unix:uid:1", "k8s:ns:pay"]))),
        ),
        Planted(
            Code::AttestorFailed,
            "failed to hash",
            Box::new(|it| {
                it.attestors = vec!["docker", "unix"];
                it.process = failed(&[("docker", &["docker:label:a:b"])]);
                it.entries = web(|web| web.selectors = selectors(&["docker:label:a:b", "unix:uid:1"]));
            }),
        ),
        Planted(
            Code::AttestorOptionOff,
            "does not look for",
            Box::new(|it| {
                it.entries = web(|web| web.selectors = selectors(&["unix:uid:1", "unix:path:/bin/web"]))
            }),
        ),
        Planted(
            Code::SelectorsMissing,
            "unix:path:/bin/web (it has unix:path:/bin/sh)",
            Box::new(|it| {
                it.entries = web(|web| web.selectors = selectors(&["unix:path:/bin/web"]));
                it.process = found(&["unix:uid:1", "unix:path:/bin/sh"]);
            }),
        ),
        Planted(
            Code::SelectorsMissing,
            "unix:uid:1 (it has unix:uid:2)",
            Box::new(|it| it.process = found(&["unix:uid:2"])),
        ),
        Planted(
            Code::NoEntryMatches,
            "none of the 1 entries",
            Box::new(|it| it.entries = web(|web| web.selectors = selectors(&["unix:user:web"]))),
        ),
        Planted(
            Code::ForSecretStore,
            "secret store",
            Box::new(|it| it.entries = web(|web| web.store_svid = true)),
        ),
        Planted(Code::MintRefused, "the entry ended", Box::new(|it| it.svid = refused())),
        Planted(
            Code::MintFailing,
            "no decision record",
            Box::new(|it| {
                it.svid = SvidLook::default();
                it.mint_trouble = Some("no decision record".to_owned());
            }),
        ),
        Planted(
            Code::SvidExpired,
            "was not replaced",
            Box::new(|it| it.svid = SvidLook { not_after: Some(at(NOW)), ..SvidLook::default() }),
        ),
    ];
    for Planted(code, words, plant) in planted {
        let told = World::with(plant).told();
        let first = told.causes.first().unwrap_or_else(|| panic!("nothing is named for {code}"));
        assert_eq!(first.code, code, "{told:#?}");
        assert!(first.says.contains(words) || first.remedy.contains(words), "{words}: {first:?}");
        assert!(first.blocks && !first.remedy.is_empty(), "{first:?}");
    }
}

#[test]
fn a_stopped_entry_of_which_nothing_else_is_told_may_be_the_one() {
    let stop = stopping(StopTarget::Entry(entry("db", 1).id));
    let told = World::with(|it| (it.stops, it.entries) = (vec![stop.clone()], BTreeMap::new())).told();
    let codes: Vec<(Code, bool)> = told.causes.iter().map(|cause| (cause.code, cause.blocks)).collect();
    assert_eq!(codes, [(Code::NodeWithoutEntries, true), (Code::Stopped, false)]);
    assert_eq!(World::with(|it| it.stops = vec![stop]).told().causes, [], "it is served by another");
}

#[test]
fn who_is_served_from_what_is_held_is_served_on() {
    let away = World::with(|it| {
        it.troubles.insert(Part::Sync, "connection refused".to_owned());
        it.confirmed = Some((at(NOW - 600), false));
        it.node = Some((id("/spire/agent/x/1"), at(NOW - 1)));
    });
    let told = away.told();
    let codes: Vec<(Code, bool)> = told.causes.iter().map(|cause| (cause.code, cause.blocks)).collect();
    assert_eq!(codes, [(Code::NodeSvidExpired, false), (Code::SyncFailing, false)]);
    // Asked about the node alone, they do stand in the way.
    let node = World { process: Process::None, ..away }.told();
    assert!(node.causes.iter().all(|cause| cause.blocks), "{node:?}");
    let bare = World::with(|it| (it.process, it.entries) = (Process::None, BTreeMap::new())).told();
    assert_eq!(bare.causes[0].code, Code::NodeWithoutEntries);
}

#[test]
fn an_agent_that_seldom_asks_its_server_is_none_whose_syncs_fail() {
    let told = World::with(|it| it.confirmed = Some((at(NOW - 59), false))).told();
    assert_eq!(told.causes, []);
}

#[test]
fn an_svid_that_is_minted_on_demand_is_nothing_that_is_missing() {
    let none = |it: &mut World| it.svid = SvidLook::default();
    assert_eq!(World::with(none).told().causes[0].code, Code::BeingMinted);
    let on_demand = World::with(|it| it.svid = SvidLook { on_demand: true, ..SvidLook::default() });
    assert_eq!(on_demand.told().causes, []);
}

#[test]
fn an_entry_that_is_served_does_not_hide_one_that_is_not() {
    let two = World::with(|it| {
        let mut stored = entry("stored", 1);
        stored.store_svid = true;
        it.entries = by_id([entry("web", 1), stored]);
    });
    let told = two.told();
    assert_eq!(told.candidates.len(), 2);
    let codes: Vec<(Code, bool)> = told.causes.iter().map(|cause| (cause.code, cause.blocks)).collect();
    assert_eq!(codes, [(Code::ForSecretStore, false)]);
}

#[test]
fn a_missing_federated_bundle_limits() {
    let federated = World::with(|it| {
        it.entries = web(|web| web.federates_with = [TrustDomain::parse("other.example").unwrap()].into());
    });
    let causes = federated.told().causes;
    assert_eq!((causes[0].code, causes[0].blocks), (Code::FederatedBundleMissing, false));
}

#[test]
fn the_nearest_entries_come_first_and_are_bounded() {
    let many = World::with(|it| {
        it.entries = by_id((0..30).map(|number| entry(&format!("e{number:02}"), 100 + number)));
    });
    let told = many.told();
    assert_eq!(told.candidates.len(), EXPLAINED_CANDIDATES);
    assert_eq!(told.left_out, 30 - EXPLAINED_CANDIDATES);
}
