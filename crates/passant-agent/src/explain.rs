//! Would a process get an identity from this agent now, and if not, what stands in the way? Decided from what was looked up;
//! nothing is done.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_attest::peer::PeerError;
use passant_attest::workload::unix;
use passant_core::explanation::{Candidate, Cause, Code, Explanation, Have, Nearest};
use passant_core::{
    AgentFault, AuthorizedEntry, EntryId, Instance, Selector, Selectors, SpiffeId, Stop, TrustDomain,
    UnixTime,
};
use passant_daemon::exit::with_causes;

use crate::attest::Unanswered;
use crate::cache::{Bundles, Stops, SvidLook};
use crate::health::Part;
use crate::limits::EXPLAINED_CANDIDATES;
use crate::node::BANNED;

/// What was found out about the process.
pub(crate) enum Process {
    /// Only the node is asked about.
    None,
    /// It could not be looked at.
    Unknown(PeerError),
    /// What each attestor said.
    Attested(BTreeMap<&'static str, Result<Selectors, Unanswered>>),
}

/// What the answer is read from.
pub(crate) struct Scene<'a> {
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) now: UnixTime,
    /// The agent's SPIFFE ID, and when its SVID ends.
    pub(crate) node: Option<(SpiffeId, UnixTime)>,
    /// What the server last found wrong with that.
    pub(crate) fault: Option<AgentFault>,
    /// What operators have stopped.
    pub(crate) stops: &'a Stops,
    /// The process that is asked about, as stops name it, if it is there.
    pub(crate) instance: Option<Instance>,
    /// Where the server is looked for.
    pub(crate) server: String,
    pub(crate) troubles: &'a BTreeMap<Part, String>,
    /// The attestors that are configured.
    pub(crate) attestors: Vec<&'static str>,
    /// When the server last confirmed what the node may serve, and whether that still counts.
    pub(crate) confirmed: Option<(UnixTime, bool)>,
    /// Why nothing can be minted at present.
    pub(crate) mint_trouble: Option<String>,
    pub(crate) bundles: &'a Bundles,
    /// All entries of the node.
    pub(crate) entries: &'a BTreeMap<EntryId, Arc<AuthorizedEntry>>,
    pub(crate) svid_of: &'a dyn Fn(&EntryId) -> SvidLook,
}

impl Process {
    /// Everything that was found.
    pub(crate) fn selectors(&self) -> Selectors {
        match self {
            Self::None | Self::Unknown(_) => Selectors::new(),
            Self::Attested(answers) => answers.values().flatten().flatten().cloned().collect(),
        }
    }

    fn failures(&self) -> Vec<(&'static str, String)> {
        let Self::Attested(answers) = self else { return Vec::new() };
        let failed = answers.iter().filter_map(|(method, answer)| Some((*method, answer.as_ref().err()?)));
        failed.map(|(method, error)| (method, with_causes(error))).collect()
    }
}

/// Answers for `process`, which is to have the SPIFFE ID `wanted`, or any.
pub(crate) fn explain(process: &Process, wanted: Option<&SpiffeId>, scene: &Scene<'_>) -> Explanation {
    let mut told = Explanation::default();
    facts(process, scene, &mut told);
    let unknown = of_process(process);
    let stopped = of_whole(scene);
    let is_served = match process {
        Process::Attested(_) if unknown.is_none() => {
            of_entries(process, wanted, scene, &mut told) && stopped.is_empty()
        }
        Process::None | Process::Unknown(_) | Process::Attested(_) => false,
    };
    told.causes.extend(stopped);
    told.causes.extend(of_hidden(is_served, scene));
    if matches!(process, Process::None) && scene.confirmed.is_some() && scene.entries.is_empty() {
        told.causes.push(nothing_near(None, scene));
    }
    told.causes.extend(unknown);
    // Who is served from what is held is served on, whatever is wrong with node and server.
    let aside = [of_node(scene), of_sync(scene)].into_iter().flatten();
    told.causes.extend(aside.map(|cause| Cause { blocks: cause.blocks && !is_served, ..cause }));
    told.in_order()
}

fn facts(process: &Process, scene: &Scene<'_>, told: &mut Explanation) {
    match &scene.node {
        Some((id, end)) => told.fact("agent", format!("{id}, SVID valid until {end}")),
        None => told.fact("agent", "has no SVID of its own"),
    }
    told.fact("server", scene.server.as_str());
    match scene.confirmed {
        Some((at, _)) => told.fact("last_sync", format!("{at}, {} entries", scene.entries.len())),
        None => told.fact("last_sync", "never"),
    }
    match &scene.bundles.own {
        Some(own) => told.fact(
            "bundle",
            format!("sequence number {}, {} X.509 authorities", own.sequence, own.x509_authorities.len()),
        ),
        None => told.fact("bundle", "none held"),
    }
    for (part, why) in scene.troubles {
        told.fact("trouble", format!("{part}: {why}"));
    }
    if let Process::Attested(answers) = process {
        for (method, answer) in answers {
            let says = match answer {
                Ok(found) if found.is_empty() => "found nothing".to_owned(),
                Ok(found) => found.iter().map(Selector::as_str).collect::<Vec<_>>().join(" "),
                Err(error) => format!("failed: {}", with_causes(error)),
            };
            told.fact("attestor", format!("{method}: {says}"));
        }
    }
}

/// Stops of all that the agent has, and of the process.
fn of_whole(scene: &Scene<'_>) -> Vec<Cause> {
    let agent = of_agent(scene);
    let all = scene.stops.of_agent().map(|stop| {
        let blocks = format!("all that this agent has is {}", stopped(stop));
        Code::Stopped.blocks(blocks, resume(&format!("agent {agent}")))
    });
    let process =
        scene.instance.as_ref().and_then(|process| Some((process, scene.stops.of_process(process)?)));
    let process = process.map(|(process, stop)| {
        let blocks = format!("the process {process} is {}", stopped(stop));
        Code::Stopped.blocks(blocks, resume(&format!("instance {agent} {process}")))
    });
    all.into_iter().chain(process).collect()
}

/// Stops of entries of which the server tells nothing else any more: whether the process matches one is not known here.
fn of_hidden(is_served: bool, scene: &Scene<'_>) -> Vec<Cause> {
    let hidden = scene.stops.of_entries().filter(|(id, _)| !scene.entries.contains_key(*id));
    let told = hidden.take(if is_served { 0 } else { EXPLAINED_CANDIDATES });
    let cause = |(id, stop): (&EntryId, &Stop)| {
        let limits = format!(
            "the entry {id} of this node is {}; for whom it is, only the server knows",
            stopped(stop)
        );
        Code::Stopped.limits(limits, resume(&format!("entry {id}"))).of(id)
    };
    told.map(cause).collect()
}

fn stopped(stop: &Stop) -> String {
    format!("stopped since {}: {}", stop.since, stop.reason)
}

fn resume(argument: &str) -> String {
    format!("once its reason is gone, at the server: `passant stop resume {argument} --reason TEXT`")
}

fn of_agent(scene: &Scene<'_>) -> String {
    scene.node.as_ref().map_or_else(|| "AGENT".to_owned(), |(id, _)| id.to_string())
}

/// What is wrong with the node's own identity.
fn of_node(scene: &Scene<'_>) -> Option<Cause> {
    let trouble = scene.troubles.get(&Part::Node);
    let why = |otherwise: &str| trouble.map_or_else(|| otherwise.to_owned(), Clone::clone);
    if scene.fault == Some(AgentFault::Banned) || trouble.is_some_and(|why| why == BANNED) {
        return Some(Code::NodeBanned.blocks(
            "the server has banned this node",
            "if it is to be trusted again: `passant agent evict` at the server, and a new attestation",
        ));
    }
    let Some((id, end)) = &scene.node else {
        return Some(Code::NodeNotAttested.blocks(
            format!("this agent has no SVID of its own: {}", why("node attestation has not succeeded yet")),
            "mend what is named; with join tokens, give the agent a new one from `passant token generate`",
        ));
    };
    if *end <= scene.now {
        return Some(Code::NodeSvidExpired.blocks(
            format!("the SVID of this agent expired {end}: {}", why("it was not renewed")),
            "see that the server can be reached; an agent of a join token needs a new one",
        ));
    }
    scene.fault.map(|fault| {
        let what = match fault {
            AgentFault::Banned => BANNED,
            AgentFault::NotAttested => "it does not know the agent any more",
            AgentFault::NotActive => "another SVID than this one is active for the agent",
            AgentFault::MustReattest => "the agent is to attest anew",
            AgentFault::Expired => "the SVID has expired by its clock",
        };
        Code::NodeUnknown.blocks(
            format!("the server refuses {id}: {what}"),
            "let the agent attest anew; with join tokens, give it a new one from `passant token generate`",
        )
    })
}

/// Why the process itself cannot be known.
fn of_process(process: &Process) -> Option<Cause> {
    let error = match process {
        Process::None => return None,
        Process::Unknown(error) => error,
        Process::Attested(_) => {
            let failures = process.failures();
            if failures.is_empty() || !process.selectors().is_empty() {
                return None;
            }
            let failures: Vec<String> =
                failures.iter().map(|(method, why)| format!("{method}: {why}")).collect();
            return Some(Code::AttestationFailed.blocks(
                format!("no attestor found out anything about the process: {}", failures.join("; ")),
                "mend what the attestors name",
            ));
        }
    };
    Some(match error {
        PeerError::Gone => Code::NoSuchProcess.blocks(
            "there is no such process, as far as this agent sees",
            "name the pid as it is in the agent's pid namespace; it may have exited",
        ),
        PeerError::ForeignPidNamespace => Code::ForeignPidNamespace.blocks(
            "the process is in a pid namespace that this agent cannot see into: who asks is there too, and its pids are \
             others here",
            "run the agent on the host, or in a container with hostPID: true",
        ),
        PeerError::Changed(_) | PeerError::Unreadable(_) | PeerError::Socket(_) => Code::ProcessUnreadable
            .blocks(with_causes(error), "run the agent as root, or with CAP_SYS_PTRACE and without hidepid"),
    })
}

/// What is wrong with the way to the server.
fn of_sync(scene: &Scene<'_>) -> Option<Cause> {
    let trouble = scene.troubles.get(&Part::Sync);
    let remedy = format!(
        "see that {} can be reached from here and is the server; then the agent syncs by itself",
        scene.server
    );
    Some(match (scene.confirmed, trouble) {
        (None, why) => {
            let why = why.map_or("the first answer is awaited", String::as_str);
            Code::NeverSynced
                .blocks(format!("the agent has learned nothing from its server yet: {why}"), remedy)
        }
        // Between two syncs that lie far apart nothing is amiss: the server was asked, and answered.
        (Some(_), None) => return None,
        (Some((at, is_confirmed)), Some(why)) => {
            let cause = Code::SyncFailing
                .blocks(format!("the agent last heard of its server {at}; since then: {why}"), remedy);
            // What was confirmed a moment ago may be believed.
            Cause { blocks: !is_confirmed, ..cause }
        }
    })
}

/// Whether the process is served, or would be with the next SVID; else what of the entries stands in the way.
fn of_entries(
    process: &Process,
    wanted: Option<&SpiffeId>,
    scene: &Scene<'_>,
    told: &mut Explanation,
) -> bool {
    let own = process.selectors();
    let have = Have::new(&own);
    let mut nearest = Nearest::new(EXPLAINED_CANDIDATES);
    let mut matching = Vec::new();
    let mut far = None;
    let considered = || scene.entries.values().filter(|entry| wanted.is_none_or(|id| entry.spiffe_id == *id));
    for entry in considered() {
        match have.distance(&entry.selectors) {
            Some(distance) if distance.is_match() => matching.push(entry),
            Some(distance) => nearest.offer(distance, &entry.id),
            None => far = far.or(Some(entry)),
        }
    }
    let (near, left_out) = nearest.into_order();
    let near: Vec<&Arc<AuthorizedEntry>> = near.iter().filter_map(|(_, id)| scene.entries.get(id)).collect();
    told.left_out = left_out + matching.len().saturating_sub(EXPLAINED_CANDIDATES);
    let is_served = judge_matching(&matching, scene, told);
    for entry in &near {
        told.candidates.push(candidate(entry, have.missing(&entry.selectors), String::new()));
    }
    if matching.is_empty() && scene.confirmed.is_some() {
        told.causes.push(match (near.first(), far) {
            (Some(entry), _) => lacks(entry, process, &have, scene),
            // It was named; or it can only be missing what nobody here looks for.
            (None, Some(entry)) if wanted.is_some() || unasked(entry, scene).is_some() => {
                lacks(entry, process, &have, scene)
            }
            (None, _) => nothing_near(wanted, scene),
        });
    }
    is_served
}

/// Says of each entry that matches how it stands with its SVID; true if one is served.
fn judge_matching(matching: &[&Arc<AuthorizedEntry>], scene: &Scene<'_>, told: &mut Explanation) -> bool {
    let judged: Vec<_> = matching.iter().map(|entry| (*entry, of_svid(entry, scene))).collect();
    let is_served = judged.iter().any(|(_, cause)| cause.as_ref().is_none_or(|cause| !cause.blocks));
    for (at, (entry, cause)) in judged.into_iter().enumerate() {
        if at < EXPLAINED_CANDIDATES {
            let note = cause.as_ref().map(|cause| cause.says.clone()).unwrap_or_default();
            told.candidates.push(candidate(entry, Selectors::new(), note));
        }
        // One entry that is served does not make up for another; but the workload has an identity.
        told.causes
            .extend(cause.map(|cause| Cause { blocks: cause.blocks && !is_served, ..cause }.of(&entry.id)));
        for name in entry.federates_with.iter().filter(|name| !scene.bundles.federated.contains_key(*name)) {
            told.causes.push(
                Code::FederatedBundleMissing
                    .limits(
                        format!(
                            "the bundle of {name} is not held here, so that its workloads cannot be verified"
                        ),
                        format!(
                            "see `passant federation status` at the server, and `passant bundle show {name}`"
                        ),
                    )
                    .of(&entry.id),
            );
        }
    }
    is_served
}

/// Why the process does not get the SVID of an entry that it matches; none if it does.
fn of_svid(entry: &AuthorizedEntry, scene: &Scene<'_>) -> Option<Cause> {
    let id = &entry.id;
    if entry.store_svid {
        return Some(Code::ForSecretStore.blocks(
            format!("the entry {id} is for a secret store (store_svid): it is not served to workloads"),
            format!("if a workload is to have it: `passant entry update {id} --store-svid=false`"),
        ));
    }
    if let Some((_, stop)) = scene.stops.of_entries().find(|(stopped, _)| *stopped == id) {
        let blocks = format!("the entry {id} is {}", stopped(stop));
        return Some(Code::Stopped.blocks(blocks, resume(&format!("entry {id}"))));
    }
    let SvidLook { not_after, failed, on_demand } = (scene.svid_of)(id);
    if not_after.is_some_and(|end| scene.now < end) {
        return None;
    }
    let spiffe_id = &entry.spiffe_id;
    if let Some(failed) = failed {
        return Some(Code::MintRefused.blocks(
            format!(
                "the X509-SVID of {spiffe_id} could not be had {} times, last {}: {}",
                failed.times, failed.at, failed.why
            ),
            format!(
                "ask the server: `passant explain spiffe-id {spiffe_id}`; the agent tries again by itself"
            ),
        ));
    }
    if let Some(why) = &scene.mint_trouble {
        return Some(Code::MintFailing.blocks(
            format!("nothing can be minted at present: {why}"),
            "mend what is named; the agent tries again by itself",
        ));
    }
    if let Some(end) = not_after.filter(|_| !on_demand) {
        return Some(Code::SvidExpired.blocks(
            format!("the X509-SVID of {spiffe_id} expired {end}, and was not replaced"),
            "look at the agent's log; it tries again by itself",
        ));
    }
    (!on_demand).then(|| {
        Code::BeingMinted
            .blocks(format!("the X509-SVID of {spiffe_id} is being minted"), "ask again in a few seconds")
    })
}

/// Why the process does not have all selectors of `entry`.
fn lacks(entry: &AuthorizedEntry, process: &Process, have: &Have<'_>, scene: &Scene<'_>) -> Cause {
    let missing = have.missing(&entry.selectors);
    let (id, spiffe_id) = (&entry.id, &entry.spiffe_id);
    let asks = format!("the entry {id} for {spiffe_id} asks for {}", have.describe(&missing));
    if let Some(selector) = unasked(entry, scene) {
        let kind = selector.kind();
        return Code::AttestorMissing
            .blocks(
                format!("{asks}, and no attestor of this agent finds selectors of type {kind}"),
                format!("configure workload_attestors.{kind} if this agent has it, or change the entry"),
            )
            .of(id);
    }
    if let Some((method, why)) =
        process.failures().iter().find(|(method, _)| missing.iter().any(|one| one.kind() == *method))
    {
        return Code::AttestorFailed
            .blocks(
                format!("{asks}, and the attestor {method} failed: {why}"),
                "mend what the attestor names",
            )
            .of(id);
    }
    if missing.iter().all(|one| is_discovered(one) && have.instead_of(one).is_empty()) {
        return Code::AttestorOptionOff
            .blocks(
                format!("{asks}, which this agent does not look for"),
                "set discover_workload_path = true under [workload_attestors.unix], and for sha256 a \
                 workload_size_limit that the program does not exceed",
            )
            .of(id);
    }
    Code::SelectorsMissing
        .blocks(
            format!("{asks}, which the process does not have"),
            format!(
                "run the process so that it has it, or change the entry: `passant entry update {id} --selector \
                 KIND:VALUE` with each selector that it is to ask for"
            ),
        )
        .of(id)
}

/// A selector of `entry` that no attestor here could ever find.
fn unasked<'a>(entry: &'a AuthorizedEntry, scene: &Scene<'_>) -> Option<&'a Selector> {
    entry.selectors.iter().find(|selector| !scene.attestors.contains(&selector.kind()))
}

/// Whether the unix attestor finds it only when it is told to look at executables.
fn is_discovered(selector: &Selector) -> bool {
    let about_executable = ["path:", "sha256:"].iter().any(|start| selector.value().starts_with(start));
    selector.kind() == unix::METHOD && about_executable
}

fn nothing_near(wanted: Option<&SpiffeId>, scene: &Scene<'_>) -> Cause {
    let agent = of_agent(scene);
    match wanted {
        Some(id) if !id.is_member_of(scene.trust_domain) => Code::OtherTrustDomain.blocks(
            format!("{id} is not of {}, the trust domain of this agent", scene.trust_domain),
            "workloads get SVIDs of their own trust domain only",
        ),
        Some(id) => Code::NotOnNode.blocks(
            format!("the server has given this agent no entry for {id}"),
            format!("ask the server why: `passant explain spiffe-id {id} --agent {agent}`"),
        ),
        None if scene.entries.is_empty() => Code::NodeWithoutEntries.blocks(
            "the server has given this agent no entry at all",
            format!("register entries with --parent-id {agent}, or with a node alias whose selectors this node has"),
        ),
        None => Code::NoEntryMatches.blocks(
            format!(
                "none of the {} entries of this node asks for any of the process's selectors, or for others of their kind",
                scene.entries.len()
            ),
            "register the process: `passant entry create` with selectors that are listed here",
        ),
    }
}

fn candidate(entry: &AuthorizedEntry, missing: Selectors, note: String) -> Candidate {
    Candidate {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        parent_id: None,
        selectors: entry.selectors.clone(),
        missing,
        note,
    }
}
