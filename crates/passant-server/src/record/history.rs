//! What does the record say was done since a moment, that a backup of that moment does not know?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use passant_core::serial::Serial;
use passant_core::{EntryId, SpiffeId, Stop, StopTarget, TrustDomain, UnixTime};

use super::chain::{Body, Line};
use super::segments::{FileSegments, Segments};
use super::{Act, Decision, DecisionKind, RecordError};
use crate::state::authority::AuthorityId;
use crate::state::change::Revision;

/// What was done since a moment.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// When the oldest line that is kept was written; the record says nothing of the time before.
    pub(crate) begins: Option<UnixTime>,
    /// When the newest line was written.
    pub(crate) ends: Option<UnixTime>,
    /// Nodes whose SVIDs were issued, and that were banned or evicted.
    pub(crate) nodes: BTreeMap<SpiffeId, NodeHistory>,
    /// Entries for which something was issued.
    pub(crate) entries: BTreeMap<EntryId, EntryHistory>,
    /// Entries that were deleted. What was issued for them before that is not among `entries`; what was underway then
    /// may be.
    pub(crate) deleted: BTreeSet<EntryId>,
    /// Foreign trust domains whose bundles were set by hand, and not deleted after that.
    pub(crate) set_bundles: BTreeSet<TrustDomain>,
    /// Foreign trust domains whose bundles were deleted, by themselves or with the federation.
    pub(crate) deleted_bundles: BTreeSet<TrustDomain>,
    /// Trust domains with which federation was ended.
    pub(crate) ended_federation: BTreeSet<TrustDomain>,
    /// Authorities that were made.
    pub(crate) authorities: Vec<Arc<Decision>>,
    /// Authorities that signed, or began to.
    pub(crate) signed: BTreeSet<AuthorityId>,
    /// Authorities that were tainted; those that were then revoked are not among them.
    pub(crate) tainted: BTreeSet<AuthorityId>,
    /// Authorities that were revoked.
    pub(crate) revoked: BTreeSet<AuthorityId>,
    /// X.509 authorities that had been appended and were taken out of the bundle.
    pub(crate) removed_x509: BTreeSet<AuthorityId>,
    /// Key IDs of JWT authorities that had been appended and were taken out of the bundle.
    pub(crate) removed_jwt: BTreeSet<String>,
    /// What was stopped and stayed so. Entries that were deleted after that are not among it.
    pub(crate) stops: BTreeMap<StopTarget, Arc<Stop>>,
    /// The IDs of stops that were ended.
    pub(crate) resumed: BTreeSet<String>,
    /// The highest revision that is named anywhere.
    pub(crate) revision: Revision,
}

/// What happened to one node.
#[derive(Debug, Default)]
pub(crate) struct NodeHistory {
    /// It was evicted; what else is told here happened after that.
    pub(crate) is_evicted: bool,
    /// It was taken over from another server.
    pub(crate) is_adopted: bool,
    /// It was banned.
    pub(crate) is_banned: bool,
    /// The SVID issued last, and the one before it.
    pub(crate) issued: (Option<IssuedNode>, Option<IssuedNode>),
}

/// An SVID of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssuedNode {
    pub(crate) serial: Serial,
    pub(crate) not_after: UnixTime,
}

/// What was issued last for one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryHistory {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) revision: u64,
}

impl History {
    /// Reads the record in `dir`, of which all lines from the second `since` on count. Whether its lines hold together is
    /// for [`super::verify_chain`] to say.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub(crate) fn read(dir: &Path, since: UnixTime) -> Result<Self, RecordError> {
        let mut segments = FileSegments::read_only(dir);
        let failed = |place: String| move |source| RecordError::Io { doing: "read", place, source };
        let numbers = segments.list().map_err(failed(dir.display().to_string()))?;
        let mut history = Self::default();
        for (at, number) in numbers.iter().enumerate() {
            let place = segments.name(*number);
            if at == 0 {
                let (first, _) = segments.peek(*number).map_err(failed(place.clone()))?;
                history.begins = line(&first).map(|line| line.at);
            }
            if let Some(next) = numbers.get(at + 1) {
                let (first, _) = segments.peek(*next).map_err(failed(segments.name(*next)))?;
                if line(&first).is_some_and(|line| line.at < since) {
                    continue;
                }
            }
            let bytes = segments.read(*number).map_err(failed(place))?;
            for line in bytes.split_inclusive(|byte| *byte == b'\n').filter_map(line) {
                history.ends = Some(line.at);
                if line.at >= since {
                    history.take(line);
                }
            }
        }
        // By its ID: acts are on record in the order in which they were told, not always in that in which they were done.
        let History { stops, resumed, .. } = &mut history;
        stops.retain(|_, stop| !resumed.contains(&stop.id));
        Ok(history)
    }

    fn take(&mut self, line: Line) {
        match line.body {
            Body::Intent { decision } => self.take_decision(decision),
            Body::Act { act, .. } => self.take_act(act),
            Body::Start { .. } | Body::Outcome { .. } | Body::Unknown { .. } | Body::Refusal { .. } => {}
        }
    }

    fn take_act(&mut self, act: Act) {
        match act {
            Act::BanAgent(id) => self.nodes.entry(id).or_default().is_banned = true,
            Act::BanAgents(ids) => {
                for id in ids {
                    self.nodes.entry(id).or_default().is_banned = true;
                }
            }
            Act::EvictAgent(id) => self.forget(id),
            Act::AdoptAgents(ids) => {
                for id in ids {
                    self.nodes.entry(id).or_default().is_adopted = true;
                }
            }
            Act::ReleaseAgents(ids) => ids.into_iter().for_each(|id| self.forget(id)),
            Act::RemoveAuthorities { x509, jwt } => {
                self.removed_x509.extend(x509);
                self.removed_jwt.extend(jwt);
            }
            Act::Stop(stop) => {
                self.revision = self.revision.max(Revision::new(stop.revision));
                let held = self.stops.get(&stop.target);
                if held.is_none_or(|held| held.revision <= stop.revision) {
                    self.stops.insert(stop.target.clone(), stop);
                }
            }
            Act::Resume { stop_id, .. } => {
                self.resumed.insert(stop_id);
            }
            Act::DeleteEntries(ids) => {
                for id in ids {
                    self.stops.remove(&StopTarget::Entry(id.clone()));
                    self.entries.remove(&id);
                    self.deleted.insert(id);
                }
            }
            Act::SetBundles(names) => self.set_bundles.extend(names),
            Act::DeleteBundles(names) => self.delete_bundles(names),
            Act::EndFederation(names) => {
                self.ended_federation.extend(names.iter().cloned());
                self.delete_bundles(names);
            }
            Act::TaintAuthority(_, id) => {
                self.tainted.insert(id);
            }
            Act::RevokeAuthority(_, id) => {
                self.tainted.remove(&id);
                self.revoked.insert(id);
            }
            // Which authority signs is decided anew, by what the agents have.
            Act::ActivateAuthority(_, id) => {
                self.signed.insert(id);
            }
            // State as it was is as good: nobody is to be kept from anything by these.
            Act::PrepareAuthority(..)
            | Act::CreateEntries(_)
            | Act::UpdateEntries(_)
            | Act::CreateJoinToken { .. }
            | Act::AppendAuthorities { .. }
            | Act::CreateFederation(_)
            | Act::UpdateFederation(_)
            | Act::RefreshBundle(_)
            | Act::SetLogLevel(_)
            | Act::ResetLogLevel(_)
            | Act::SendBackup { .. } => {}
            Act::Restore { revision, .. } => self.revision = self.revision.max(revision),
        }
    }

    fn delete_bundles(&mut self, names: Vec<TrustDomain>) {
        self.set_bundles.retain(|set| !names.contains(set));
        self.deleted_bundles.extend(names);
    }

    fn forget(&mut self, id: SpiffeId) {
        self.nodes.insert(id, NodeHistory { is_evicted: true, ..NodeHistory::default() });
    }

    /// An intent counts as issued, whatever became of it.
    fn take_decision(&mut self, decision: Arc<Decision>) {
        if let Some(authority) = &decision.authority
            && !self.signed.contains(authority)
        {
            self.signed.insert(authority.clone());
        }
        if let Some((id, revision)) = &decision.entry {
            self.revision = self.revision.max(Revision::new(*revision));
            let last = EntryHistory { spiffe_id: holder(&decision), revision: *revision };
            self.entries.insert(id.clone(), last);
        }
        match decision.kind {
            DecisionKind::NodeSvid => {
                let Ok(serial) = decision.serial.parse() else { return };
                let node = self.nodes.entry(decision.spiffe_id.clone()).or_default();
                let issued = IssuedNode { serial, not_after: decision.not_after };
                node.issued = (Some(issued), node.issued.0.take());
            }
            DecisionKind::X509Authority | DecisionKind::JwtAuthority => self.authorities.push(decision),
            DecisionKind::X509Svid
            | DecisionKind::JwtSvid
            | DecisionKind::ServerSvid
            | DecisionKind::DownstreamX509Ca => {}
        }
    }
}

/// Whose entry a decision stands on: the subject's, but for the authority of a server below that server's, who asked.
fn holder(decision: &Decision) -> SpiffeId {
    let is_below = decision.kind == DecisionKind::DownstreamX509Ca;
    let below = decision.caller.strip_prefix("downstream ").filter(|_| is_below);
    below.and_then(|id| SpiffeId::parse(id).ok()).unwrap_or_else(|| decision.spiffe_id.clone())
}

fn line(text: &[u8]) -> Option<Line> {
    serde_json::from_slice(text.strip_suffix(b"\n")?).ok()
}
