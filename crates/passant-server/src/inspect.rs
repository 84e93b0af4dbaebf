//! Is a data directory whole, and do its parts agree with each other?
//!
//! Looked at while no server runs there. Nothing is mended, but for what every start does to sled's own files.

use std::collections::BTreeMap;
use std::path::Path;

use passant_core::{Host, UnixTime};
use passant_daemon::exit::with_causes;
use serde::Serialize;

use crate::backup;
use crate::keystore::{FILE as KEY_FILE, KeyFile, KeyStore, KeyStoreError};
use crate::record::verify_chain;
use crate::soundness::Audit;
use crate::state::change::Change;
use crate::state::{Authority, Phase};
use crate::store::sled::{SledStore, restoring};
use crate::store::{Loaded, Store, StoreError};

/// What was found of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which part: `store`, `objects`, `journal`, `keys`, `record` or `backup`.
    pub part: &'static str,
    /// Whether something is wrong with it.
    pub is_fault: bool,
    /// What it holds, or what is wrong.
    pub says: String,
}

impl Finding {
    fn good(part: &'static str, says: impl Into<String>) -> Self {
        Self { part, is_fault: false, says: says.into() }
    }

    fn fault(part: &'static str, says: impl Into<String>) -> Self {
        Self { part, is_fault: true, says: says.into() }
    }

    fn error(part: &'static str, error: &dyn std::error::Error) -> Self {
        Self::fault(part, with_causes(error))
    }
}

/// Checks a backup.
pub fn backup_file(path: &Path) -> Vec<Finding> {
    vec![match backup::verify(path) {
        Ok(header) => Finding::good(
            "backup",
            format!(
                "of trust domain {} at revision {}, made at {} by version {}; {}",
                header.trust_domain,
                header.revision,
                header.made_at,
                header.server_version,
                counts(&header.holds)
            ),
        ),
        Err(error) => Finding::error("backup", &error),
    }]
}

/// Checks the data directory of a server that does not run.
pub fn data_dir(dir: &Path, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    match load(dir, host) {
        Ok((loaded, journal)) => {
            findings.push(Finding::good(
                "store",
                format!(
                    "trust domain {}, lineage {}, revision {}",
                    loaded.trust_domain, loaded.lineage, loaded.revision
                ),
            ));
            findings.extend(objects(&loaded));
            findings.push(journal);
            findings.extend(keys(dir, &loaded, host));
        }
        Err(error) => findings.push(Finding::error("store", &error)),
    }
    findings.push(record(dir));
    findings
}

fn counts(holds: &backup::Holds) -> String {
    format!(
        "{} entries, {} nodes, {} join tokens, {} authorities, {} bundles, {} federation relationships, {} stops",
        holds.entries,
        holds.nodes,
        holds.join_tokens,
        holds.authorities,
        holds.bundles,
        holds.relationships,
        holds.stops
    )
}

/// What the store holds, and whether its journal led there.
fn load(dir: &Path, host: &Host) -> Result<(Loaded, Finding), StoreError> {
    let trust_domain = restoring::trust_domain_of(dir)?;
    let mut store = SledStore::open(dir, &trust_domain, host)?;
    let loaded = store.load()?;
    let tail = match store.tail(crate::state::change::Revision::ZERO) {
        Err(StoreError::Compacted { upto }) => store.tail(upto),
        tail => tail,
    };
    let journal = match tail {
        Err(error) => Finding::error("journal", &error),
        Ok(tail) => {
            // What the kept commits say last of each object is how it must stand.
            let mut last: BTreeMap<String, &Change> = BTreeMap::new();
            for change in tail.iter().flat_map(|(_, commit)| &commit.changes) {
                last.insert(change.key(), change);
            }
            let standing: BTreeMap<String, &Change> = match last.is_empty() {
                true => BTreeMap::new(),
                false => loaded.objects.iter().map(|object| (object.key(), object)).collect(),
            };
            let differs = |(key, change): &(&String, &&Change)| match standing.get(*key) {
                Some(object) => *object != **change,
                None => change.is_put(),
            };
            match last.iter().find(differs) {
                Some((key, _)) => {
                    Finding::fault("journal", format!("{key} does not stand as the last commit left it"))
                }
                None => Finding::good(
                    "journal",
                    format!("{} commits are kept, and led to what stands", tail.len()),
                ),
            }
        }
    };
    Ok((loaded, journal))
}

/// Whether each object is sound, and all of them fit together.
fn objects(loaded: &Loaded) -> Vec<Finding> {
    let mut audit = Audit::new(loaded.trust_domain.clone(), loaded.revision);
    let mut faults: Vec<String> = Vec::new();
    for object in &loaded.objects {
        faults.extend(audit.take(object).err());
    }
    faults.extend(audit.faults());
    if faults.is_empty() {
        return vec![Finding::good("objects", counts(&audit.holds()))];
    }
    faults.into_iter().map(|fault| Finding::fault("objects", fault)).collect()
}

/// Whether the private keys are there that the authorities need.
fn keys(dir: &Path, loaded: &Loaded, host: &Host) -> Vec<Finding> {
    let now = host.now();
    let needed = loaded.objects.iter().filter_map(|object| {
        let Change::PutAuthority(authority) = object else { return None };
        signs(authority, now).then_some(authority)
    });
    let needed: Vec<&Authority> = needed.collect();
    let file = match KeyFile::open(dir) {
        Ok(file) => file,
        Err(error) => return vec![Finding::error("keys", &error)],
    };
    let mut findings = Vec::new();
    for authority in &needed {
        match fits(&file, authority, host) {
            Ok(true) => {}
            Ok(false) => findings.push(Finding::fault(
                "keys",
                format!(
                    "the private key of authority {} is not in {KEY_FILE}: restore the file from its backup, or see \
                     accept_lost_keys",
                    authority.id
                ),
            )),
            Err(error) => findings.push(Finding::error("keys", &*error)),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good("keys", format!("{} authorities have their keys", needed.len())));
    }
    findings
}

/// Whether the authority signs, or is to.
fn signs(authority: &Authority, now: UnixTime) -> bool {
    matches!(authority.phase, Phase::Active | Phase::Prepared) && authority.not_after > now
}

fn fits(file: &KeyFile, authority: &Authority, host: &Host) -> Result<bool, Box<dyn std::error::Error>> {
    let Some(pkcs8) = file.get(&authority.id).map_err(|error: KeyStoreError| Box::new(error))? else {
        return Ok(false);
    };
    let key = host.keys.load(&pkcs8)?;
    if key.public_key() != authority.public_key.as_slice() {
        return Err(format!("the key under authority {} is another one's", authority.id).into());
    }
    Ok(true)
}

/// Whether the decision record holds together.
fn record(dir: &Path) -> Finding {
    let dir = dir.join("decisions");
    if !dir.exists() {
        return Finding::good("record", "there is none: nothing was ever signed here, or it was taken away");
    }
    match verify_chain(&dir) {
        Ok(report) => Finding::good(
            "record",
            format!(
                "{} lines in {} segments, from line {}; {} intents without outcome, {} torn bytes; head {}",
                report.lines,
                report.segments,
                report.first_seq,
                report.open.len(),
                report.torn_bytes,
                report.head
            ),
        ),
        Err(error) => Finding::error("record", &error),
    }
}

#[cfg(test)]
mod tests;
