//! How is a state brought back from a backup, and what cannot be brought back?
//!
//! The data directory gets a new lineage, whose revisions begin above all that the lost journal may have given. What the
//! decision record in the directory tells of the time after the backup is done again: bans, evictions, stops and their ends,
//! deletions of entries, taints and revocations of authorities, and the serials of renewed node SVIDs; an authority that began to sign meanwhile does
//! not pass for one that never did. What it cannot tell is named, for the
//! operator to act on.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use passant_attest::node::join_token::TokenHash;
use passant_core::{
    Bundle, Entry, EntryId, FederationRelationship, Host, SpiffeId, Stop, StopTarget, TrustDomain, UnixTime,
};
use serde::Serialize;
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::authority_id;
use crate::backup::{BackupError, Header, Holds, Reader, verify};
use crate::command::node::is_token_alias;
use crate::keystore::{FILE as KEY_FILE, KeyFile, KeyStore, KeyStoreError};
use crate::record::history::{History, NodeHistory};
use crate::record::{Act, DecisionLog, Retention, verify_chain};
use crate::state::change::{Change, Cursor, Revision};
use crate::state::{AttestedNode, Authority, AuthorityId, JoinToken, PendingSerial, Phase};
use crate::store::StoreError;
use crate::store::sled::restoring::Restoring;
use crate::store::witness;

/// More commits than any journal takes in a second.
const COMMITS_PER_SECOND: u64 = 1 << 20;
/// How far the clock of the lost server and this one may be apart: a year.
const CLOCKS_APART: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Revisions stay far below what the wire can hold (signed 64 bits).
const REVISION_MOST: u64 = 1 << 62;

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct Order {
    /// The data directory. It must not hold state; `keys.json` and `decisions` that stand in it stay.
    pub data_dir: PathBuf,
    /// The trust domain that the backup must be of.
    pub trust_domain: TrustDomain,
    /// The file.
    pub backup: PathBuf,
    /// What becomes of join tokens that were not spent when the backup was made.
    pub tokens: UnspentTokens,
}

/// What becomes of join tokens that a backup holds unspent. They may have been spent since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnspentTokens {
    /// They are not restored, and so attest nobody.
    Void,
    /// They are restored, but for those of which the decision record says that they were spent.
    Keep,
}

/// What was restored, and what was not.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// What the backup says of itself.
    pub backup: Header,
    /// The new lineage, and the revision at which it begins.
    pub cursor: Cursor,
    /// What is in the store now.
    pub holds: Holds,
    /// What the decision record could tell.
    pub record: Record,
    /// What was done again, since the record tells of it.
    pub again: Again,
    /// What is known to be lost.
    pub lost: Lost,
    /// Active authorities whose private keys are not in `keys.json`: the server will not start without them.
    pub keys_missing: Vec<AuthorityId>,
}

/// How far the decision record tells of the time since the backup.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// From when on.
    pub begins: Option<UnixTime>,
    /// Until when: what was done later is unknown.
    pub ends: Option<UnixTime>,
    /// Why it tells nothing, or less than it should; empty when all is well.
    pub trouble: Vec<String>,
}

/// What was done after the backup and is done again.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Again {
    /// Agents that are banned again.
    pub banned: Vec<SpiffeId>,
    /// Agents that are evicted again.
    pub evicted: Vec<SpiffeId>,
    /// Entries that are deleted again.
    pub deleted_entries: Vec<EntryId>,
    /// Trust domains whose bundles are deleted again.
    pub deleted_bundles: Vec<TrustDomain>,
    /// Trust domains with which federation is ended again.
    pub ended_federation: Vec<TrustDomain>,
    /// Agents whose newer SVIDs are accepted.
    pub renewed: Vec<SpiffeId>,
    /// What is stopped again. What of it is lost is stopped if it comes back.
    pub stopped: Vec<StopTarget>,
    /// Stops of the backup that are ended again.
    pub resumed: Vec<StopTarget>,
    /// Authorities that are tainted again.
    pub tainted_authorities: Vec<AuthorityId>,
    /// Authorities that are revoked again: what they signed is not believed.
    pub revoked_authorities: Vec<AuthorityId>,
    /// Authorities that had been appended to the bundle and are taken out again. One that was appended anew since has to be
    /// appended once more.
    pub removed_authorities: Vec<String>,
}

/// What was there after the backup and is not there now.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Agents that attested since, or were adopted: they have to attest again, or to be adopted again.
    pub agents: Vec<SpiffeId>,
    /// Entries for which something was issued since and that are not in the backup.
    pub entries: Vec<(EntryId, SpiffeId)>,
    /// Entries that were changed since: they are as they were.
    pub changed_entries: Vec<EntryId>,
    /// Join tokens that are void now.
    pub join_tokens: u64,
    /// Trust domains whose bundles were set by hand since. That of the backup does not stand, since trust may have been
    /// withdrawn by replacing it: it has to be set once more, or is fetched.
    pub bundles: Vec<TrustDomain>,
    /// Authorities that were made since: what they signed is no longer believed.
    pub authorities: Vec<AuthorityId>,
}

/// Why nothing was restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The backup cannot be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key file cannot be used.
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    /// No revision is left to begin with.
    #[error("revisions of the backup are too high to go on from: its header is not that of a server's state")]
    TooHigh,
    /// The work was lost.
    #[error("the restoration was interrupted")]
    Interrupted,
}

/// Restores a backup into a data directory without state, while no server runs there.
///
/// Everything is verified before anything is written; on an error the data directory has no state, as before.
///
/// # Errors
/// See [`RestoreError`].
pub async fn restore(order: Order, host: Host) -> Result<Restored, RestoreError> {
    let record_dir = order.data_dir.join("decisions");
    let blocking_host = host.clone();
    let work = move || restore_state(&order, &blocking_host);
    let (mut restored, _lock) =
        tokio::task::spawn_blocking(work).await.map_err(|_| RestoreError::Interrupted)??;
    if let Err(why) = note(&restored, &record_dir, host).await {
        restored.record.trouble.push(why);
    }
    Ok(restored)
}

/// Tells the decision record that state was restored. The data directory is held.
async fn note(restored: &Restored, dir: &Path, host: Host) -> Result<(), String> {
    // Nothing is removed from it here: how much is kept, the server's configuration says.
    let keep = Retention { keep_bytes: u64::MAX, keep_for: Duration::MAX, ..Retention::default() };
    let failed = |error| format!("the restoration could not be put on record: {error}");
    let record = DecisionLog::open(dir, keep, host).map_err(failed)?;
    let act = Act::Restore {
        made_at: restored.backup.made_at,
        revision: restored.cursor.revision,
        lineage: restored.cursor.lineage,
    };
    let noted = record.note(act, format!("local uid={}", Uid::effective())).await.map_err(failed);
    record.close().await;
    noted
}

fn restore_state(order: &Order, host: &Host) -> Result<(Restored, Option<File>), RestoreError> {
    let header = verify(&order.backup)?;
    if header.trust_domain != order.trust_domain {
        return Err(BackupError::OtherTrustDomain {
            place: order.backup.display().to_string(),
            found: header.trust_domain,
            wanted: order.trust_domain.clone(),
        }
        .into());
    }
    let keys = KeyFile::open(&order.data_dir)?.ids()?;
    let mut store = Restoring::begin(&order.data_dir, &order.trust_domain, host)?;
    let (record, history) = history_since(&order.data_dir.join("decisions"), header.made_at);
    let noted = witness::noted(&order.data_dir).unwrap_or(Revision::ZERO);
    let newest = header.revision.max(history.revision).max(noted);
    let revision = raised(newest, header.made_at, host.now()).ok_or(RestoreError::TooHigh)?;
    let mut revival = Revival::new(order, &header, record, history, revision, host.now());
    let mut reader = Reader::open(&order.backup)?;
    while let Some(object) = reader.next_object()? {
        if let Some(object) = revival.revive(object) {
            store.put(&object)?;
        }
    }
    for object in revival.remaining() {
        store.put(&object)?;
    }
    let (cursor, lock) = store.finish(revision)?;
    Ok((revival.finished(header, cursor, &keys, order), lock))
}

/// What the record in `dir` tells of the time from `since` on, and how far that can be believed.
fn history_since(dir: &Path, since: UnixTime) -> (Record, History) {
    let told_nothing =
        |why: String| (Record { begins: None, ends: None, trouble: vec![why] }, History::default());
    if !dir.exists() {
        return told_nothing("there is no decision record in the data directory".to_owned());
    }
    if let Err(error) = verify_chain(dir) {
        return told_nothing(format!("the decision record is not believed: {error}"));
    }
    let history = match History::read(dir, since) {
        Ok(history) => history,
        Err(error) => return told_nothing(format!("the decision record cannot be read: {error}")),
    };
    let mut trouble = Vec::new();
    if history.begins.is_none_or(|begins| begins > since) {
        trouble.push("the decision record begins after the backup was made".to_owned());
    }
    (Record { begins: history.begins, ends: history.ends, trouble }, history)
}

/// A revision above every one that a journal may have given that stood at `newest` at `made_at` or later: it took fewer than
/// [`COMMITS_PER_SECOND`] since, by clocks that are not more than [`CLOCKS_APART`] apart.
fn raised(newest: Revision, made_at: UnixTime, now: UnixTime) -> Option<Revision> {
    let seconds = made_at.until(now).as_secs().checked_add(CLOCKS_APART.as_secs())?;
    let above = newest.number().checked_add(seconds.checked_mul(COMMITS_PER_SECOND)?)?;
    (above < REVISION_MOST).then(|| Revision::new(above))
}

/// Makes of each object of the backup what stands now.
struct Revival {
    tokens: UnspentTokens,
    now: UnixTime,
    trust_domain: TrustDomain,
    made_at: UnixTime,
    backup_revision: Revision,
    revision: Revision,
    /// Of the own bundle.
    sequence: u64,
    /// What has not been met in the backup stays in it.
    history: History,
    evicted: BTreeSet<SpiffeId>,
    spent: BTreeSet<TokenHash>,
    active: Vec<AuthorityId>,
    holds: Holds,
    record: Record,
    again: Again,
    lost: Lost,
}

impl Revival {
    fn new(
        order: &Order,
        header: &Header,
        record: Record,
        history: History,
        revision: Revision,
        now: UnixTime,
    ) -> Self {
        let evicted = history.nodes.iter().filter(|(_, node)| node.is_evicted).map(|(id, _)| id.clone());
        // The SPIFFE ID of an agent that attested by token tells the token.
        let spent = history.nodes.keys().filter_map(|id| id.path().strip_prefix("/spire/agent/join_token/"));
        Self {
            tokens: order.tokens,
            now,
            trust_domain: order.trust_domain.clone(),
            made_at: header.made_at,
            backup_revision: header.revision,
            revision,
            sequence: 0,
            evicted: evicted.collect(),
            spent: spent.map(TokenHash::of).collect(),
            history,
            active: Vec::new(),
            holds: Holds::default(),
            record,
            again: Again::default(),
            lost: Lost::default(),
        }
    }

    /// What stands for `object` of the backup now. Bundles come before authorities.
    fn revive(&mut self, object: Change) -> Option<Change> {
        let stands = match object {
            Change::PutBundle(mut bundle) => {
                if bundle.trust_domain == self.trust_domain {
                    // Whoever holds a bundle of the lost server is not to be taken for one who has the next of ours.
                    let jump = self.revision.number().saturating_sub(self.backup_revision.number());
                    self.sequence = bundle.sequence.saturating_add(jump);
                    let bundle = Arc::make_mut(&mut bundle);
                    bundle.sequence = self.sequence;
                    self.own_bundle(bundle);
                }
                self.bundle(bundle).map(Change::PutBundle)
            }
            Change::PutFederation(relationship) => self.relationship(relationship).map(Change::PutFederation),
            Change::PutAuthority(authority) => self.authority(authority).map(Change::PutAuthority),
            Change::PutToken(token) => self.token(token).map(Change::PutToken),
            Change::PutNode(node) => self.node(&node).map(|node| Change::PutNode(Arc::new(node))),
            Change::PutEntry(entry) => self.entry(&entry).map(|entry| Change::PutEntry(Arc::new(entry))),
            Change::PutStop(stop) => self.stop(stop).map(Change::PutStop),
            Change::DeleteBundle(_)
            | Change::DeleteFederation(_)
            | Change::DeleteAuthority(_)
            | Change::DeleteToken(_)
            | Change::DeleteNode(_)
            | Change::DeleteEntry(_)
            | Change::DeleteStop(_) => None,
        };
        if let Some(object) = &stands {
            self.holds.count(object);
        }
        stands
    }

    /// Trust that was withdrawn since is not given again: whoever still wants it says so.
    fn bundle(&mut self, bundle: Arc<Bundle>) -> Option<Arc<Bundle>> {
        if self.history.deleted_bundles.contains(&bundle.trust_domain) {
            self.again.deleted_bundles.push(bundle.trust_domain.clone());
            return None;
        }
        (!self.history.set_bundles.contains(&bundle.trust_domain)).then_some(bundle)
    }

    fn relationship(
        &mut self,
        relationship: Arc<FederationRelationship>,
    ) -> Option<Arc<FederationRelationship>> {
        if !self.history.ended_federation.contains(&relationship.trust_domain) {
            return Some(relationship);
        }
        self.again.ended_federation.push(relationship.trust_domain.clone());
        None
    }

    /// Takes out of the own bundle what was revoked or taken out since, and marks what was tainted.
    fn own_bundle(&mut self, bundle: &mut Bundle) {
        let (revoked, tainted) = (&self.history.revoked, &self.history.tainted);
        let (removed_x509, removed_jwt) = (&self.history.removed_x509, &self.history.removed_jwt);
        let removed = &mut self.again.removed_authorities;
        bundle.x509_authorities.retain_mut(|published| {
            let Some(id) = id_of_certificate(&published.der) else { return true };
            if removed_x509.contains(&id) {
                removed.push(id.to_string());
                return false;
            }
            published.tainted |= tainted.contains(&id);
            !revoked.contains(&id)
        });
        bundle.jwt_authorities.retain_mut(|published| {
            if removed_jwt.contains(&published.key_id) {
                removed.push(published.key_id.clone());
                return false;
            }
            let Ok(id) = AuthorityId::parse(&published.key_id) else { return true };
            published.tainted |= tainted.contains(&id);
            !revoked.contains(&id)
        });
    }

    fn authority(&mut self, authority: Authority) -> Option<Authority> {
        self.history.authorities.retain(|made| id_of_key(&made.key_hash).as_ref() != Some(&authority.id));
        if self.history.revoked.contains(&authority.id) {
            self.again.revoked_authorities.push(authority.id);
            return None;
        }
        if authority.phase == Phase::Active && authority.not_after > self.now {
            self.active.push(authority.id.clone());
        }
        let was_tainted = self.history.tainted.contains(&authority.id);
        if was_tainted {
            self.again.tainted_authorities.push(authority.id.clone());
        }
        let authority =
            Authority { published: self.sequence, tainted: authority.tainted || was_tainted, ..authority };
        // As a prepared one it would make way for the next, and what it signed with it; and one that is not to be trusted would
        // be let sign.
        let has_signed = was_tainted || self.history.signed.contains(&authority.id);
        if authority.phase == Phase::Prepared && has_signed {
            return Some(Authority { phase: Phase::Retired, activated_at: Some(self.made_at), ..authority });
        }
        Some(authority)
    }

    /// A token that may have been spent since would attest a second node.
    fn token(&mut self, token: JoinToken) -> Option<JoinToken> {
        let keep = match self.tokens {
            UnspentTokens::Void => false,
            UnspentTokens::Keep => !self.spent.contains(&token.hash),
        };
        if token.spent.is_some() || keep {
            return Some(token);
        }
        self.lost.join_tokens += u64::from(token.expires_at >= self.now);
        None
    }

    fn node(&mut self, node: &AttestedNode) -> Option<AttestedNode> {
        let Some(since) = self.history.nodes.remove(&node.id) else { return Some(node.clone()) };
        if since.is_evicted {
            return self.new_node(&node.id, &since);
        }
        if since.is_banned {
            self.again.banned.push(node.id.clone());
            return Some(AttestedNode { serial: None, pending: None, adopted: None, ..node.clone() });
        }
        if node.is_banned() {
            return Some(node.clone());
        }
        let (Some(newest), before) = since.issued else { return Some(node.clone()) };
        let is_pending = node.pending.as_ref().is_some_and(|pending| pending.serial == newest.serial);
        if is_pending || node.serial.as_ref() == Some(&newest.serial) {
            return Some(node.clone());
        }
        // The reply that carried the newest may have been lost: then the agent calls with the one before.
        let mut node = node.clone();
        let before = before.map(|before| (before.serial, before.not_after));
        let before = before.or(node.pending.map(|pending| (pending.serial, pending.not_after)));
        if let Some((serial, not_after)) = before {
            (node.serial, node.not_after, node.adopted) = (Some(serial), not_after, None);
        }
        node.pending = Some(PendingSerial { serial: newest.serial, not_after: newest.not_after });
        self.again.renewed.push(node.id.clone());
        Some(node)
    }

    /// Of a node that attested after the backup nothing is known but its name; a banned one stays banned.
    fn new_node(&mut self, id: &SpiffeId, since: &NodeHistory) -> Option<AttestedNode> {
        if since.is_evicted {
            self.again.evicted.push(id.clone());
        }
        if !since.is_banned {
            if since.issued.0.is_some() || since.is_adopted {
                self.lost.agents.push(id.clone());
            }
            return None;
        }
        self.again.banned.push(id.clone());
        Some(AttestedNode {
            id: id.clone(),
            attestation_type: id.path().split('/').nth(3).unwrap_or_default().to_owned(),
            serial: None,
            not_after: self.made_at,
            pending: None,
            selectors: passant_core::Selectors::new(),
            can_reattest: false,
            agent_version: None,
            attested_at: self.made_at,
            adopted: None,
        })
    }

    fn entry(&mut self, entry: &Entry) -> Option<Entry> {
        if self.history.deleted.contains(&entry.id) {
            // What was underway for it when it was deleted can stand after that. One made anew under its id is lost.
            let newest = self.backup_revision.number();
            if self.history.entries.get(&entry.id).is_some_and(|since| since.revision <= newest) {
                self.history.entries.remove(&entry.id);
            }
            self.again.deleted_entries.push(entry.id.clone());
            return None;
        }
        if self.evicted.contains(&entry.parent_id) && is_token_alias(entry) {
            return None;
        }
        let since = self.history.entries.remove(&entry.id);
        if since.is_some_and(|since| since.revision > self.backup_revision.number()) {
            self.lost.changed_entries.push(entry.id.clone());
        }
        Some(Entry { revision: self.revision.number(), ..entry.clone() })
    }

    /// A stop of the backup stands unless it was ended since, or went with its entry. A newer one is met later.
    fn stop(&mut self, stop: Arc<Stop>) -> Option<Arc<Stop>> {
        if let Some(newer) = self.history.stops.get(&stop.target)
            && newer.id != stop.id
        {
            return None;
        }
        self.history.stops.remove(&stop.target);
        if self.history.resumed.contains(&stop.id) {
            self.again.resumed.push(stop.target.clone());
            return None;
        }
        let is_gone = match &stop.target {
            StopTarget::Entry(id) => self.history.deleted.contains(id),
            StopTarget::Agent(_) | StopTarget::Instance { .. } => false,
        };
        (!is_gone).then(|| self.renumbered(&stop))
    }

    fn renumbered(&self, stop: &Stop) -> Arc<Stop> {
        Arc::new(Stop { revision: self.revision.number(), ..stop.clone() })
    }

    /// What stands now and was not in the backup. To be asked once all of it was revived.
    fn remaining(&mut self) -> Vec<Change> {
        let mut objects = Vec::new();
        for (id, since) in std::mem::take(&mut self.history.nodes) {
            let is_ours = id.is_member_of(&self.trust_domain) && id.is_agent();
            if let Some(node) = is_ours.then(|| self.new_node(&id, &since)).flatten() {
                let node = Change::PutNode(Arc::new(node));
                self.holds.count(&node);
                objects.push(node);
            }
        }
        for (target, stop) in std::mem::take(&mut self.history.stops) {
            let stop = Change::PutStop(self.renumbered(&stop));
            self.holds.count(&stop);
            objects.push(stop);
            self.again.stopped.push(target);
        }
        let entries = std::mem::take(&mut self.history.entries);
        self.lost.entries = entries.into_iter().map(|(id, since)| (id, since.spiffe_id)).collect();
        objects
    }

    fn finished(mut self, backup: Header, cursor: Cursor, keys: &[AuthorityId], order: &Order) -> Restored {
        self.lost.bundles = std::mem::take(&mut self.history.set_bundles).into_iter().collect();
        let made = self.history.authorities.iter().filter_map(|made| id_of_key(&made.key_hash));
        self.lost.authorities = made.filter(|id| !self.history.revoked.contains(id)).collect();
        let keys_missing: Vec<AuthorityId> =
            self.active.into_iter().filter(|id| !keys.contains(id)).collect();
        if !keys_missing.is_empty() {
            let file = order.data_dir.join(KEY_FILE);
            tracing::warn!(file = %file.display(), "keys of active authorities are missing");
        }
        Restored {
            backup,
            cursor,
            holds: self.holds,
            record: self.record,
            again: self.again,
            lost: self.lost,
            keys_missing,
        }
    }
}

/// The authority with this certificate, unless it is one that no server of ours can have made.
pub(crate) fn id_of_certificate(der: &[u8]) -> Option<AuthorityId> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(authority_id(certificate.public_key().raw))
}

/// The authority of the public key with this SHA-256.
fn id_of_key(key_hash: &[u8; 32]) -> Option<AuthorityId> {
    AuthorityId::of_key(&key_hash[..20]).ok()
}

#[cfg(test)]
mod tests;
