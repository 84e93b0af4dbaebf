//! Would a workload get an identity now, and if not, what stands in the way? Decided from the state alone; nothing is done.

mod chain;
mod secret;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use passant_attest::node::join_token::{self, Token};
use passant_core::explanation::{Candidate, Cause, Code, Distance, Explanation, Have, Nearest};
use passant_core::{Entry, EntryId, Selectors, SpiffeId, Stop, StopTarget, TrustDomain, UnixTime};
use passant_daemon::config::edits;

use self::chain::Reach;
use crate::federation::Status;
use crate::limits::{EXPLAINED_CANDIDATES, EXPLAINED_CAUSES, EXPLAINED_ENTRIES};
use crate::state::node::{Adopted, AttestedNode};
use crate::state::{AuthorityKind, Phase, State};

/// What is asked about. What is not given is left open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Question {
    /// What the workload is to have.
    pub(crate) spiffe_id: Option<SpiffeId>,
    /// What attestation finds out about it; empty: not given.
    pub(crate) selectors: Selectors,
    /// On whose node it runs.
    pub(crate) agent: Option<SpiffeId>,
}

/// What the answer is read from.
pub(crate) struct Scene<'a> {
    pub(crate) state: &'a State,
    pub(crate) now: UnixTime,
    /// Why nothing can be changed at present.
    pub(crate) store_fault: Option<Arc<String>>,
    /// Why nothing can be put on record at present.
    pub(crate) record_fault: Option<Arc<String>>,
    /// How the fetching of foreign bundles goes.
    pub(crate) fetches: &'a BTreeMap<TrustDomain, Status>,
    /// When the agent that is asked about last fetched the bundle, since the server started.
    pub(crate) last_sync: Option<UnixTime>,
    /// Whether an operator asks, and not the holder of a role.
    pub(crate) is_for_operator: bool,
}

/// A question while it is answered.
struct Case<'a> {
    question: &'a Question,
    scene: &'a Scene<'a>,
    /// What the workload has.
    have: Have<'a>,
    /// What may be served on the node that is asked about, in entry-ID order; `None` unless that is attested.
    of_node: Option<Vec<Arc<Entry>>>,
    /// What was found of node aliases.
    aliases: RefCell<BTreeMap<EntryId, Reach>>,
}

/// Answers `question`. Reads all entries if it names selectors without SPIFFE ID, or an ID that is not registered: not on
/// the I/O threads.
pub(crate) fn explain(question: &Question, scene: &Scene<'_>) -> Explanation {
    let scene = &scene.for_whom();
    let state = scene.state;
    let mut told = Explanation::default();
    let (entries, agents) = (state.entry_count(), state.node_count());
    let revision = state.cursor().revision;
    told.fact(
        "server",
        format!("{} at revision {revision}: {entries} entries, {agents} agents", state.trust_domain()),
    );
    signs(scene, &mut told);
    if let Some(agent) = &question.agent {
        node_given(agent, scene, &mut told);
    }
    let case = Case::new(question, scene);
    match &question.spiffe_id {
        Some(id) => by_spiffe_id(id, &case, &mut told),
        None if !question.selectors.is_empty() => by_selectors(&case, &mut told),
        None => by_node(&case, &mut told),
    }
    secret::hide(&mut told, state);
    told.in_order()
}

/// What the holder of a role is told in the place of a reason: what answers at which address, and where what lies on this
/// machine, is for operators.
const IN_LOG: &str = "the server's log says why";

impl Scene<'_> {
    /// The same, without what whoever asks is not to know.
    fn for_whom(&self) -> Self {
        let told = |fault: &Option<Arc<String>>| match (fault, self.is_for_operator) {
            (Some(_), false) => Some(Arc::new(IN_LOG.to_owned())),
            (fault, _) => fault.clone(),
        };
        Self { store_fault: told(&self.store_fault), record_fault: told(&self.record_fault), ..*self }
    }
}

impl<'a> Case<'a> {
    fn new(question: &'a Question, scene: &'a Scene<'a>) -> Self {
        let attested = question.agent.as_ref().filter(|agent| scene.state.node(agent).is_some());
        Self {
            question,
            scene,
            have: Have::new(&question.selectors),
            of_node: attested.map(|agent| scene.state.entries_of_node(agent, scene.now)),
            aliases: RefCell::default(),
        }
    }

    /// Whether the issuer would take `entry` from the agent that is asked about, but for stops.
    fn is_of_node(&self, entry: &Entry) -> bool {
        let of_node = self.of_node.as_deref().unwrap_or_default();
        of_node.binary_search_by(|known| known.id.cmp(&entry.id)).is_ok()
    }
}

/// What keeps the server from issuing anything at all.
fn signs(scene: &Scene<'_>, told: &mut Explanation) {
    if let Some(why) = &scene.record_fault {
        told.causes.push(Code::RecordStopped.blocks(
            format!("nothing is signed, since the decision record cannot be written: {why}"),
            "make room on the disk of the decision record, or mend it; signing goes on by itself",
        ));
    }
    for (kind, what, svids) in
        [(AuthorityKind::X509, "X.509", "X509-SVIDs"), (AuthorityKind::Jwt, "JWT", "JWT-SVIDs")]
    {
        let of = |phase| scene.state.authorities().filter(move |a| a.kind == kind && a.phase == phase);
        let cause = match of(Phase::Active).max_by_key(|active| active.not_after) {
            Some(active) if active.not_after > scene.now => {
                told.fact("authority", format!("{what} {} signs until {}", active.id, active.not_after));
                continue;
            }
            Some(active) => Code::AuthorityEnded.blocks(
                format!("the {what} authority {} ended {}: no {svids} are issued", active.id, active.not_after),
                "look at the server's log for why no successor could be made or activated, and at `passant authority x509 show`",
            ),
            None => {
                let waiting = of(Phase::Prepared).next();
                let more = waiting.map_or_else(String::new, |one| format!("; {} is only prepared", one.id));
                Code::NoActiveAuthority.blocks(
                    format!("no {what} authority is active{more}: no {svids} are issued"),
                    "look at `passant authority x509 show`, or look at the server's log for why none could be made",
                )
            }
        };
        // Without JWT-SVIDs a workload still has its X509-SVID.
        told.causes.push(Cause { blocks: kind == AuthorityKind::X509, ..cause });
    }
    if let Some(why) = &scene.store_fault {
        let cause = Code::StoreStopped.limits(
            format!("the server's store takes no changes: {why}"),
            "mend what the server's log names; the server goes on by itself once the store works again",
        );
        // What is issued needs no change of the state, but an authority that is to follow one that ended does.
        let needs_authority = |cause: &Cause| {
            cause.blocks && matches!(cause.code, Code::NoActiveAuthority | Code::AuthorityEnded)
        };
        let blocks = told.causes.iter().any(needs_authority);
        told.causes.push(Cause { blocks, ..cause });
    }
}

fn node_given(agent: &SpiffeId, scene: &Scene<'_>, told: &mut Explanation) {
    let Some(node) = scene.state.node(agent) else {
        told.causes.extend(scene.state.agent_stop(agent).map(|stop| stopped(stop)));
        told.causes.push(unknown_node(agent, scene));
        return;
    };
    let selectors: Vec<&str> = node.selectors.iter().map(|selector| selector.as_str()).collect();
    let attested = match node.adopted {
        None => format!("attested {}", node.attested_at),
        Some(_) => format!("taken over {} from another server, which attested it", node.attested_at),
    };
    told.fact("agent", format!("{agent}, {attested} by {}", node.attestation_type));
    told.fact("node_selectors", if selectors.is_empty() { "none".to_owned() } else { selectors.join(" ") });
    match scene.last_sync {
        Some(at) => told.fact("last_sync", at.to_string()),
        None => told.fact("last_sync", "not since this server started"),
    }
    told.causes.extend(bad_standing(node, scene));
    let of_node =
        |stop: &&Arc<Stop>| matches!(&stop.target, StopTarget::Instance { agent: of, .. } if of == agent);
    match scene.state.stops().filter(of_node).count() {
        0 => {}
        some => told.fact("stopped_processes", format!("{some}: see `passant stop list`")),
    }
}

/// What an operator stopped is what they want: it is told before anything else that is wrong with it.
fn stopped(stop: &Stop) -> Cause {
    let (what, argument) = match &stop.target {
        StopTarget::Entry(id) => (format!("the entry {id} is"), format!("entry {id}")),
        StopTarget::Agent(agent) => (format!("all of the agent {agent} is"), format!("agent {agent}")),
        StopTarget::Instance { agent, instance } => {
            (format!("the process {instance} of {agent} is"), format!("instance {agent} {instance}"))
        }
    };
    Code::Stopped.blocks(
        format!("{what} stopped since {} by {}: {}", stop.since, stop.by, stop.reason),
        format!("once its reason is gone: `passant stop resume {argument} --reason TEXT`"),
    )
}

fn unknown_node(agent: &SpiffeId, scene: &Scene<'_>) -> Cause {
    let state = scene.state;
    let none = "no node is attested under this ID: the agent must attest";
    if !agent.is_member_of(state.trust_domain()) || !agent.is_agent() {
        return Code::NodeUnknown.blocks(
            format!("{agent} is no agent of {}", state.trust_domain()),
            "name an agent as `passant agent list` shows it",
        );
    }
    let of_token = agent.path().strip_prefix(&format!("/spire/agent/{}/", join_token::METHOD));
    let Some(text) = of_token else {
        let remedy = "look at the agent's log for why attestation fails; it may have been evicted here";
        return Code::NodeUnknown.blocks(format!("{agent}: {none}"), remedy);
    };
    // Whether a token that somebody thought of is one is not told to whoever may make none.
    let token = Token::parse(text).ok().filter(|_| scene.is_for_operator);
    let token = token.and_then(|token| state.token(&token.hash()));
    let says = match token {
        Some(token) if token.expires_at < scene.now => {
            format!("its join token expired {} without being used", token.expires_at)
        }
        Some(_) => "its join token has not been used yet".to_owned(),
        None => none.to_owned(),
    };
    let remedy = "start the agent with a new join token from `passant token generate`";
    Code::NodeUnknown.blocks(format!("{agent}: {says}"), remedy)
}

/// Why this node gets nothing whatever its entries say.
fn bad_standing(node: &AttestedNode, scene: &Scene<'_>) -> Option<Cause> {
    let (id, now) = (&node.id, scene.now);
    if node.is_banned() {
        let remedy = format!(
            "if the node is to be trusted again: `passant agent evict {id}`, then let it attest anew"
        );
        return Some(Code::NodeBanned.blocks(format!("the node of {id} is banned"), remedy));
    }
    if let Some(stop) = scene.state.agent_stop(id) {
        return Some(stopped(stop));
    }
    // When its SVID ends is not known: the other server may have renewed it.
    if node.adopted == Some(Adopted::Awaited) {
        return Some(Code::NotYetSynced.blocks(
            format!("the agent {id} was taken over from another server, and has never called here"),
            "set the agent's server address to that of this server, and restart the agent",
        ));
    }
    let end = node.last_end();
    (end < now).then(|| {
        let remedy = if node.can_reattest {
            "start the agent, and look at its log for why it does not attest again by itself"
        } else {
            "start the agent with a new join token from `passant token generate`: it cannot attest again by itself"
        };
        Code::NodeSvidExpired.blocks(format!("the SVID of the agent {id} expired {end}, and was not renewed"), remedy)
    })
}

fn by_spiffe_id(id: &SpiffeId, case: &Case<'_>, told: &mut Explanation) {
    let state = case.scene.state;
    if !id.is_member_of(state.trust_domain()) {
        told.causes.push(Code::OtherTrustDomain.blocks(
            format!("{id} is not of {}, the trust domain of this server", state.trust_domain()),
            "ask the server of that trust domain; workloads here can only verify its SVIDs, by federation",
        ));
        return;
    }
    if id.is_reserved() || id.is_trust_domain_id() {
        told.causes.push(Code::ReservedId.blocks(
            format!("{id} can be no workload's: below /spire are the IDs of servers and agents"),
            "register the workload under another SPIFFE ID; explain an agent with --agent",
        ));
        return;
    }
    let entries: Vec<&Arc<Entry>> = state.entries_by_spiffe_id(id).collect();
    if entries.is_empty() {
        told.causes.push(no_entry(id, state));
        return;
    }
    weigh(entries, case, told);
}

fn no_entry(id: &SpiffeId, state: &State) -> Cause {
    let create = format!(
        "register it: `passant entry create --spiffe-id {id} --parent-id AGENT_OR_NODE_ALIAS --selector KIND:VALUE`"
    );
    let remedy = match nearest_id(id, state) {
        Some(near) => format!("did you mean {near}? Otherwise {create}"),
        None => create,
    };
    Code::NoEntry.blocks(format!("no entry grants {id}"), remedy)
}

/// The registered SPIFFE ID that is spelled most like `id`.
fn nearest_id<'a>(id: &SpiffeId, state: &'a State) -> Option<&'a SpiffeId> {
    /// More is another name, not a slip.
    const SLIPS: usize = 3;
    /// Counting slips takes the product of both lengths, for each entry.
    const PATH_BYTES: usize = 256;
    if id.path().len() > PATH_BYTES {
        return None;
    }
    let (path, longest) = (id.path(), id.path().len() + SLIPS);
    let near = |entry: &&Arc<Entry>| {
        (path.len().saturating_sub(SLIPS)..=longest).contains(&entry.spiffe_id.path().len())
    };
    let weighed = state.entries().filter(near).map(|entry| {
        let other = entry.spiffe_id.path();
        // Upper and lower case are the commonest slip, however many letters it is about.
        let slips = if other.eq_ignore_ascii_case(path) { 0 } else { edits(path, other) };
        (slips, &entry.spiffe_id)
    });
    weighed.min().filter(|(slips, _)| *slips <= SLIPS).map(|(_, id)| id)
}

fn by_selectors(case: &Case<'_>, told: &mut Explanation) {
    let (state, have) = (case.scene.state, &case.have);
    let is_match = |entry: &&Arc<Entry>| have.distance(&entry.selectors).is_some_and(Distance::is_match);
    let registered = || state.entries().filter(|entry| !entry.is_node_alias());
    let here = case.of_node.as_deref();
    let own: Vec<&Arc<Entry>> = here.into_iter().flatten().filter(is_match).collect();
    if !own.is_empty() {
        weigh(own, case, told);
        return;
    }
    let mut nearest = Nearest::new(EXPLAINED_CANDIDATES);
    let mut offer = |entry: &Arc<Entry>| {
        if let Some(distance) = have.distance(&entry.selectors) {
            nearest.offer(distance, &entry.id);
        }
    };
    match here {
        Some(entries) => entries.iter().for_each(&mut offer),
        None => registered().for_each(&mut offer),
    }
    let (near, left_out) = nearest.into_order();
    let near: Vec<&Arc<Entry>> = near.iter().filter_map(|(_, id)| state.entry(id)).collect();
    let matching: Vec<&Arc<Entry>> = registered().filter(is_match).collect();
    if !matching.is_empty() {
        weigh(matching, case, told);
        if here.is_some() {
            or_one_of_here(near.first().copied(), case, told);
        }
        return;
    }
    told.left_out = left_out;
    told.causes.push(match (near.first(), here) {
        (Some(entry), _) => lacks(entry, have),
        (None, Some([])) => without_entries(case.question),
        (None, _) => Code::NoEntryMatches.blocks(
            "no entry asks for any of these selectors, or for others of their kind",
            "register the workload: `passant entry create` with selectors that attestation finds out",
        ),
    });
    told.candidates =
        near.into_iter().map(|entry| candidate(entry, &have.missing(&entry.selectors), "")).collect();
}

/// Of an entry for other nodes that matches, and one of this node that lacks a single selector, the second tells more: the
/// first may well be somebody else's.
fn or_one_of_here(nearest: Option<&Arc<Entry>>, case: &Case<'_>, told: &mut Explanation) {
    let Some((entry, missing)) = nearest.map(|entry| (entry, case.have.missing(&entry.selectors))) else {
        return;
    };
    let of_others = |cause: &Cause| matches!(cause.code, Code::AliasSelectorsMissing | Code::OfAnotherNode);
    let mut blocking = told.causes.iter().filter(|cause| cause.blocks && cause.entry.is_some()).peekable();
    let is_for_others = blocking.peek().is_some() && blocking.all(of_others);
    if missing.len() > 1 || entry.selectors.len() < 2 || !is_for_others {
        return;
    }
    for cause in told.causes.iter_mut().filter(|cause| of_others(cause)) {
        cause.blocks = false;
    }
    told.causes.push(lacks(entry, &case.have));
    told.left_out += usize::from(told.candidates.len() == EXPLAINED_CANDIDATES);
    told.candidates.truncate(EXPLAINED_CANDIDATES - 1);
    told.candidates.push(candidate(entry, &missing, ""));
}

fn by_node(case: &Case<'_>, told: &mut Explanation) {
    let Some(entries) = &case.of_node else { return };
    told.fact("entries_of_node", entries.len().to_string());
    if entries.is_empty() {
        told.causes.push(without_entries(case.question));
    }
    told.left_out = entries.len().saturating_sub(EXPLAINED_CANDIDATES);
    let shown = entries.iter().take(EXPLAINED_CANDIDATES);
    told.candidates = shown.map(|entry| candidate(entry, &Selectors::new(), "")).collect();
}

fn without_entries(question: &Question) -> Cause {
    let agent = question.agent.as_ref().map_or_else(|| "the agent".to_owned(), ToString::to_string);
    Code::NodeWithoutEntries.blocks(
        format!("no entry belongs to the node of {agent}"),
        format!(
            "register entries with --parent-id {agent}, or with a node alias whose selectors the node has"
        ),
    )
}

/// Holds `entries` against the question, or the most promising of them, and tells of the one that is nearest to being issued.
fn weigh(mut entries: Vec<&Arc<Entry>>, case: &Case<'_>, told: &mut Explanation) {
    let (have, question) = (&case.have, case.question);
    entries.sort_by_cached_key(|entry| {
        let distance = have.distance(&entry.selectors);
        let is_below = question.agent.as_ref() == Some(&entry.parent_id);
        (!case.is_of_node(entry), !is_below, distance.is_none(), distance)
    });
    told.left_out = entries.len().saturating_sub(EXPLAINED_CANDIDATES);
    entries.truncate(EXPLAINED_ENTRIES);
    let judged = entries.into_iter().map(|entry| (judge(entry, case), entry));
    let mut judged: Vec<(Vec<Cause>, &Arc<Entry>)> = judged.collect();
    let blocking = |causes: &[Cause]| causes.iter().filter(|cause| cause.blocks).count();
    judged.sort_by_key(|(causes, entry)| {
        let distance = have.distance(&entry.selectors);
        let code = causes.first().map(|cause| cause.code);
        (blocking(causes), !case.is_of_node(entry), distance.is_none(), distance, code)
    });
    for (at, (causes, entry)) in judged.into_iter().enumerate().take(EXPLAINED_CANDIDATES) {
        let missing = match question.selectors.is_empty() {
            true => Selectors::new(),
            false => have.missing(&entry.selectors),
        };
        let note = causes.first().map_or("", |cause| cause.says.as_str());
        told.candidates.push(candidate(entry, &missing, note));
        if at == 0 {
            told.causes.extend(causes);
        }
    }
}

/// What stands most in the way of one entry.
fn judge(entry: &Arc<Entry>, case: &Case<'_>) -> Vec<Cause> {
    let (question, scene, have) = (case.question, case.scene, &case.have);
    let id = &entry.id;
    let mut causes = Vec::new();
    causes.extend(scene.state.entry_stop(id).map(|stop| stopped(stop)));
    if let Some(end) = entry.expires_at.filter(|_| entry.has_ended(scene.now)) {
        causes.push(Code::EntryEnded.blocks(
            format!("the entry {id} for {} ended {end}", entry.spiffe_id),
            format!("if it is to go on: `passant entry update {id} --expires-at RFC3339`"),
        ));
    }
    if entry.is_node_alias() {
        causes.push(Code::NodeAlias.blocks(
            format!(
                "the entry {id} names nodes as {}: its parent is the server, so no workload is issued it",
                entry.spiffe_id
            ),
            format!(
                "register the workload below it: `passant entry create --parent-id {} ...`",
                entry.spiffe_id
            ),
        ));
        return about(causes, id);
    }
    if entry.store_svid {
        causes.push(Code::ForSecretStore.blocks(
            format!("the entry {id} is for a secret store (store_svid): agents do not serve it to workloads"),
            format!("if a workload is to have it: `passant entry update {id} --store-svid=false`"),
        ));
    }
    causes.extend(chain::broken(entry, case));
    if causes.is_empty() {
        causes.extend(unheard(entry, question, scene));
    }
    if !question.selectors.is_empty() && !question.selectors.contains_all(&entry.selectors) {
        causes.push(lacks(entry, have));
    }
    causes.extend(federation(entry, scene));
    causes.sort_by_key(|cause| (!cause.blocks, cause.code));
    causes.truncate(EXPLAINED_CAUSES);
    about(causes, id)
}

fn about(causes: Vec<Cause>, entry: &EntryId) -> Vec<Cause> {
    causes.into_iter().map(|cause| cause.of(entry)).collect()
}

fn lacks(entry: &Entry, have: &Have<'_>) -> Cause {
    let missing = have.describe(&have.missing(&entry.selectors));
    let (id, spiffe_id) = (&entry.id, &entry.spiffe_id);
    let says = format!("the entry {id} for {spiffe_id} asks for {missing}, which the workload does not have");
    let remedy = format!(
        "run the workload so that it has it, or change the entry: `passant entry update {id} --selector KIND:VALUE` \
         with each selector that it is to ask for"
    );
    Code::SelectorsMissing.blocks(says, remedy).of(id)
}

/// Whether the agent cannot know of the entry yet.
fn unheard(entry: &Entry, question: &Question, scene: &Scene<'_>) -> Option<Cause> {
    question.agent.as_ref()?;
    let at = scene.last_sync?;
    (at < entry.created_at).then(|| {
        Code::NotYetSynced.blocks(
            format!("the entry {} was made {}, and the agent has last asked {at}", entry.id, entry.created_at),
            "wait for the agent's next sync; if it does not come, look at the agent's log and at the way to this server",
        )
    })
}

/// Which peers the workload could not verify.
fn federation<'a>(entry: &'a Entry, scene: &'a Scene<'_>) -> impl Iterator<Item = Cause> + 'a {
    let missing = entry.federates_with.iter().filter(|name| scene.state.bundle_of(name).is_none());
    missing.map(|name| {
        let why = match (scene.state.relationship(name), scene.fetches.get(name)) {
            (None, _) => "there is no federation relationship with it".to_owned(),
            (Some(_), Some(Status { last_error: Some(error), .. })) => {
                let error = if scene.is_for_operator { error.as_str() } else { IN_LOG };
                format!("fetching it fails: {error}")
            }
            (Some(_), _) => "it has not been fetched yet".to_owned(),
        };
        Code::FederatedBundleMissing.limits(
            format!("the bundle of {name} is not held, so that its workloads cannot be verified: {why}"),
            format!("mend what is named, and then `passant federation refresh {name}`, or set it with `passant bundle set`"),
        )
    })
}

fn candidate(entry: &Entry, missing: &Selectors, note: &str) -> Candidate {
    Candidate {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        parent_id: Some(entry.parent_id.clone()),
        selectors: entry.selectors.clone(),
        missing: missing.clone(),
        note: note.to_owned(),
    }
}
