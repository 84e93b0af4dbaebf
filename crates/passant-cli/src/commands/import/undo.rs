//! `passant import undo`: what of an import is taken back?
//!
//! Only what the ledger tells of and still is as the import made it. Agents that have come stay, and keep the import from
//! being undone, unless that is forced: their workloads live on the entries.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use passant_proto::bundle::{BatchDeleteFederatedBundleRequest, batch_delete_federated_bundle_request::Mode};
use passant_proto::entry::BatchDeleteEntryRequest;
use passant_proto::import::{Release, ReleaseAgentsRequest, RemoveAuthoritiesRequest};
use passant_proto::trustdomain::BatchDeleteFederationRelationshipRequest;
use passant_proto::types;
use serde_json::json;
use tonic::Code;

use super::entries::hash_of;
use super::ledger::{Ledger, Made, hash, unhex};
use super::report::{Kind, Report};
use super::{federation, own_bundle, paired};
use crate::args::Undo;
use crate::commands::entry::pages;
use crate::connect::{Server, refused};
use crate::progress::Progress;
use crate::render::Output;

/// How much is taken back at once.
const ITEMS: usize = 500;
/// So many of the agents that keep the import from being undone are named.
const NAMED: usize = 5;
/// Why something that was made is left.
const CHANGED: &str = "it was changed since";

/// What the import made.
#[derive(Default)]
struct Imported {
    x509: Vec<Vec<u8>>,
    jwt: Vec<String>,
    told: bool,
    /// By the names of trust domains; with the hashes of what was made.
    bundles: BTreeMap<String, BTreeSet<String>>,
    /// Names of trust domains whose bundles were here before the import made a relationship with them.
    kept_bundles: BTreeSet<String>,
    relationships: BTreeMap<String, BTreeSet<String>>,
    /// By ids.
    entries: BTreeMap<String, BTreeSet<String>>,
    agents: Vec<String>,
}

pub(super) async fn run(args: Undo, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let (trust_domain, _) = own_bundle(server).await?;
    let path = args.ledger.of(&trust_domain);
    let made = Imported::of(Ledger::read(&path, &trust_domain)?);
    let mut report = Report::of_undo(args.dry_run);
    if !args.authorities_only {
        all_but_authorities(&made, &args, server, &mut report).await?;
    }
    let dry_run = args.dry_run;
    let named = made.x509.len() + made.jwt.len();
    let request =
        RemoveAuthoritiesRequest { x509_authorities: made.x509, jwt_authorities: made.jwt, dry_run };
    let removed = server.import().remove_authorities(request).await.map_err(refused)?.into_inner();
    let removed = usize::try_from(removed.x509_removed.saturating_add(removed.jwt_removed))?;
    report.done(Kind::AuthoritiesHere, removed);
    report.already(Kind::AuthoritiesHere, named.saturating_sub(removed));
    if made.told {
        report.note(
            "this server's authorities stay in SPIRE's bundle until they end: SPIRE's API has no method to take an \
             authority out of it",
        );
    }
    if !dry_run && !args.authorities_only && report.is_complete() {
        // What is made from now on is no longer the import's.
        Ledger::open(&path, &trust_domain)?.end()?;
    }
    report.tell(&[("ledger", json!(path))], out)
}

/// Agents first: each either has come, or never will. So nobody comes while the entries go.
async fn all_but_authorities(
    made: &Imported,
    args: &Undo,
    server: &Server,
    report: &mut Report,
) -> anyhow::Result<()> {
    let dry_run = args.dry_run;
    if !args.force {
        nobody_has_moved(&made.agents, server).await?;
    }
    release(&made.agents, server, dry_run, report).await?;
    if !args.force && report.has_left(Kind::Agents) {
        bail!(
            "agents have moved here meanwhile: the others were released, and nothing else was undone; run it again for \
             their names"
        );
    }
    delete_entries(&made.entries, server, dry_run, report).await?;
    end_relationships(made, server, dry_run, report).await?;
    delete_bundles(&made.bundles, server, dry_run, report).await
}

impl Imported {
    fn of(lines: BTreeSet<Made>) -> Self {
        let mut all = Self::default();
        for line in lines {
            match line {
                Made::Import { .. } | Made::Undone => {}
                Made::BundleBefore(trust_domain) => {
                    all.kept_bundles.insert(trust_domain);
                }
                Made::X509Authority(der) => all.x509.extend(unhex(&der)),
                Made::JwtAuthority(key_id) => all.jwt.push(key_id),
                Made::Told(_) => all.told = true,
                Made::Bundle { trust_domain, hash } => {
                    all.bundles.entry(trust_domain).or_default().insert(hash);
                }
                Made::Relationship { trust_domain, hash } => {
                    all.relationships.entry(trust_domain).or_default().insert(hash);
                }
                Made::Entry { id, hash } => {
                    all.entries.entry(id).or_default().insert(hash);
                }
                Made::Agent(id) => all.agents.push(id),
            }
        }
        all
    }
}

/// Refuses to go on while agents live here.
async fn nobody_has_moved(agents: &[String], server: &Server) -> anyhow::Result<()> {
    let mut moved = Vec::new();
    for ids in agents.chunks(ITEMS) {
        let released = released(ids, server, true).await?;
        moved.extend(released.into_iter().filter(|(_, what)| *what == Ok(Release::Moved)).map(|(id, _)| id));
    }
    if moved.is_empty() {
        return Ok(());
    }
    let named = moved.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if moved.len() > NAMED { ", ..." } else { "" };
    bail!(
        "{} agents have moved here ({named}{more}), and nothing was undone: without the imported entries their workloads \
         would lose their identities, without SPIRE's authorities some of the agents too. Once they are at SPIRE again, or \
         may be lost, add --force",
        moved.len()
    )
}

async fn delete_entries(
    made: &BTreeMap<String, BTreeSet<String>>,
    server: &Server,
    dry_run: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut found = BTreeSet::new();
    let mut ids = Vec::new();
    let mut ours = pages(server, None, None);
    while let Some(page) = ours.next().await? {
        for entry in page {
            let Some(hashes) = made.get(&entry.id) else { continue };
            if hashes.contains(&hash_of(&entry)) {
                ids.push(entry.id.clone());
            } else {
                report.left(Kind::Entries, None, &entry.id, CHANGED);
            }
            found.insert(entry.id);
        }
    }
    report.already(Kind::Entries, made.len().saturating_sub(found.len()));
    if dry_run {
        report.done(Kind::Entries, ids.len());
        return Ok(());
    }
    let mut progress = Progress::of("entries deleted", ids.len());
    for ids in ids.chunks(ITEMS) {
        let request = BatchDeleteEntryRequest { ids: ids.to_vec() };
        let answer = server.entries().batch_delete_entry(request).await.map_err(refused)?.into_inner();
        progress.add(ids.len());
        for (id, result) in paired(ids.to_vec(), answer.results)? {
            told(Kind::Entries, &id, &result.status.unwrap_or_default(), report);
        }
    }
    Ok(())
}

/// Ends what the import began. The bundles go with it, but those that were here before are put back.
async fn end_relationships(
    made: &Imported,
    server: &Server,
    dry_run: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let held = federation::relationships(server).await?;
    let hashes = held.iter().map(|(name, one)| (name.clone(), federation::hash_of(one))).collect();
    let names = unchanged(Kind::Relationships, &made.relationships, &hashes, report);
    if dry_run {
        report.done(Kind::Relationships, names.len());
        return Ok(());
    }
    let mut kept = federation::bundles(server).await?;
    kept.retain(|name, _| {
        names.contains(name) && made.kept_bundles.contains(name) && !made.bundles.contains_key(name)
    });
    for names in names.chunks(ITEMS) {
        let request = BatchDeleteFederationRelationshipRequest { trust_domains: names.to_vec() };
        let mut client = server.trust_domains();
        let answer =
            client.batch_delete_federation_relationship(request).await.map_err(refused)?.into_inner();
        for (name, result) in paired(names.to_vec(), answer.results)? {
            told(Kind::Relationships, &name, &result.status.unwrap_or_default(), report);
        }
    }
    federation::put_back(kept.into_values().collect(), server, report).await
}

async fn delete_bundles(
    made: &BTreeMap<String, BTreeSet<String>>,
    server: &Server,
    dry_run: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let held = federation::bundles(server).await?;
    let hashes = held.iter().map(|(name, bundle)| (name.clone(), hash(bundle))).collect();
    let names = unchanged(Kind::Bundles, made, &hashes, report);
    if dry_run {
        report.done(Kind::Bundles, names.len());
        return Ok(());
    }
    for names in names.chunks(ITEMS) {
        let request =
            BatchDeleteFederatedBundleRequest { trust_domains: names.to_vec(), mode: Mode::Restrict.into() };
        let mut client = server.bundles();
        let answer = client.batch_delete_federated_bundle(request).await.map_err(refused)?.into_inner();
        for (name, result) in paired(names.to_vec(), answer.results)? {
            told(Kind::Bundles, &name, &result.status.unwrap_or_default(), report);
        }
    }
    Ok(())
}

/// The names of what still is as it was made.
fn unchanged(
    kind: Kind,
    made: &BTreeMap<String, BTreeSet<String>>,
    held: &BTreeMap<String, String>,
    report: &mut Report,
) -> Vec<String> {
    let mut names = Vec::new();
    for (name, hashes) in made {
        match held.get(name) {
            None => report.already(kind, 1),
            Some(held) if hashes.contains(held) => names.push(name.clone()),
            Some(_) => report.left(kind, None, name, CHANGED),
        }
    }
    names
}

/// Takes over what was said of one deletion.
fn told(kind: Kind, name: &str, status: &types::Status, report: &mut Report) {
    let code = Code::from_i32(status.code);
    if code == Code::Ok {
        report.done(kind, 1);
    } else if code == Code::NotFound {
        report.already(kind, 1);
    } else {
        report.left(kind, None, name, status.message.clone());
    }
}

async fn release(
    agents: &[String],
    server: &Server,
    dry_run: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    for ids in agents.chunks(ITEMS) {
        for (id, what) in released(ids, server, dry_run).await? {
            match what {
                Ok(Release::Done) => report.done(Kind::Agents, 1),
                Ok(Release::Gone) => report.already(Kind::Agents, 1),
                Ok(Release::Moved | Release::Unspecified) => {
                    report.left(Kind::Agents, None, &id, "it has moved here; passant agent evict forgets it");
                }
                Err(why) => report.left(Kind::Agents, None, &id, why),
            }
        }
    }
    Ok(())
}

/// What becomes of agents that were adopted.
async fn released(
    ids: &[String],
    server: &Server,
    dry_run: bool,
) -> anyhow::Result<Vec<(String, Result<Release, String>)>> {
    let wire = |id: &String| {
        let (trust_domain, path) =
            id.strip_prefix("spiffe://").and_then(|id| id.split_once('/')).unwrap_or_default();
        types::Spiffeid { trust_domain: trust_domain.to_owned(), path: format!("/{path}") }
    };
    let request = ReleaseAgentsRequest { ids: ids.iter().map(wire).collect(), dry_run };
    let answer = server.import().release_agents(request).await.map_err(refused)?.into_inner();
    let outcomes = paired(ids.to_vec(), answer.results)?.map(|(id, result)| {
        let status = result.status.clone().unwrap_or_default();
        let what = if status.code == 0 { Ok(result.release()) } else { Err(status.message) };
        (id, what)
    });
    Ok(outcomes.collect())
}
