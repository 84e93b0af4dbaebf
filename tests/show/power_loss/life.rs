//! What was acknowledged to the clients of a server, and does it still hold?
//!
//! Clients keep what they were told in this process, which no power cut reaches. One client owns each thing it changes, and
//! makes one call at a time: what a cut interrupts is either as before the call or as after it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use passant_core::keys::KeyType;
use passant_core::{Host, SpiffeId, csr};
use passant_proto::agent::{BanAgentRequest, CreateJoinTokenRequest, ListAgentsRequest};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest,
};
use passant_proto::svid::MintX509svidRequest;
use passant_proto::types;
use passant_tests::api::{Operator, selector, wire_id};
use passant_tests::site::{NODE, TRUST_DOMAIN};

use super::image::Dice;
use crate::watch_log::same_serial;

/// Entries of one client: past this, it deletes.
const ENTRIES: usize = 120;
/// Entries of a large batch. Its commit fills more than one of the store's segments.
const LARGE: usize = 150;
/// How long a call may take before it counts as interrupted.
const CALL: Duration = Duration::from_secs(10);

/// What all clients were told.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Ledger>>);

/// The acknowledgements.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By SPIFFE ID path: the hint that the entry may have, none where it may be gone.
    entries: BTreeMap<String, Known>,
    /// Serials in hex that were received and not yet looked for.
    pub(crate) serials: BTreeSet<String>,
    /// Serials that were found on record.
    pub(crate) recorded: usize,
    /// Join tokens that were handed out and are not used.
    pub(crate) tokens: Vec<String>,
    /// Paths of agents that have attested, and whether they are banned.
    agents: BTreeMap<String, Vec<bool>>,
    /// X.509 authorities (DER) and JWT authorities (key IDs) that were in a bundle, with their ends.
    authorities: BTreeMap<Vec<u8>, i64>,
    sequence: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// An entry, as far as its client knows: one state, or, after an interrupted call, one of two.
#[derive(Clone, Debug)]
struct Known {
    id: Option<String>,
    hints: Vec<Option<String>>,
}

impl Told {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: &'static str) {
        *self.ledger().counts.entry(what).or_default() += 1;
    }
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    Ok(tokio::time::timeout(CALL, call).await??.into_inner())
}

/// Creates, updates and deletes entries until a call fails; then says why.
pub(crate) async fn churn_entries(told: Told, socket: PathBuf, client: usize, seed: u64) -> anyhow::Error {
    let mut dice = Dice::new(seed);
    let Err(why) = churn(&told, &socket, client, &mut dice).await;
    why
}

/// Never ends well.
enum Never {}

async fn churn(told: &Told, socket: &Path, client: usize, dice: &mut Dice) -> anyhow::Result<Never> {
    let operator = Operator::connect(socket).await?;
    let prefix = format!("/c{client}/");
    loop {
        let mine: Vec<String> = told
            .ledger()
            .entries
            .iter()
            .filter(|(path, known)| path.starts_with(&prefix) && known.hints != [None])
            .map(|(path, _)| path.clone())
            .collect();
        let hint = format!("h{:x}", dice.next());
        match dice.below(20) {
            0 if mine.len() < ENTRIES => create(told, &operator, &prefix, LARGE, &hint, dice).await?,
            0..=6 if mine.len() < ENTRIES => create(told, &operator, &prefix, 1, &hint, dice).await?,
            7..=12 if !mine.is_empty() => {
                update(told, &operator, &mine[dice.below(mine.len())], &hint).await?;
            }
            _ if !mine.is_empty() => {
                // The large batches go in large batches.
                let most = if mine.len() > ENTRIES { LARGE } else { 1 };
                let from = dice.below(mine.len().saturating_sub(most) + 1);
                delete(told, &operator, &mine[from..(from + most).min(mine.len())]).await?;
            }
            _ => {}
        }
    }
}

async fn create(
    told: &Told,
    operator: &Operator,
    prefix: &str,
    count: usize,
    hint: &str,
    dice: &mut Dice,
) -> anyhow::Result<()> {
    let paths: Vec<String> = (0..count).map(|_| format!("{prefix}{:016x}", dice.next())).collect();
    let entries = paths.iter().map(|path| types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, path),
        parent_id: wire_id(TRUST_DOMAIN, NODE),
        selectors: vec![selector("unix", "uid:4711"), selector("unix", &format!("path:/opt{path}"))],
        hint: hint.to_owned(),
        dns_names: vec![format!("{}.example.org", path.trim_start_matches('/').replace('/', "-"))],
        ..types::Entry::default()
    });
    for path in &paths {
        let hints = vec![None, Some(hint.to_owned())];
        told.ledger().entries.insert(path.clone(), Known { id: None, hints });
    }
    let request = BatchCreateEntryRequest { entries: entries.collect(), output_mask: None };
    let results = within(operator.entries().batch_create_entry(request)).await?.results;
    for (path, result) in paths.iter().zip(results) {
        accept(result.status.as_ref(), "create an entry")?;
        let id = result.entry.context("an entry")?.id;
        let hints = vec![Some(hint.to_owned())];
        told.ledger().entries.insert(path.clone(), Known { id: Some(id), hints });
        told.count("created");
    }
    Ok(())
}

async fn update(told: &Told, operator: &Operator, path: &str, hint: &str) -> anyhow::Result<()> {
    let Some(mut known) = told.ledger().entries.get(path).cloned() else { return Ok(()) };
    let id = known.id.clone().context("an entry that is known has an id")?;
    known.hints.push(Some(hint.to_owned()));
    told.ledger().entries.insert(path.to_owned(), known);
    let request = BatchUpdateEntryRequest {
        entries: vec![types::Entry { id: id.clone(), hint: hint.to_owned(), ..types::Entry::default() }],
        input_mask: Some(types::EntryMask { hint: true, ..types::EntryMask::default() }),
        output_mask: None,
    };
    let results = within(operator.entries().batch_update_entry(request)).await?.results;
    accept(results.first().context("one result")?.status.as_ref(), "update an entry")?;
    told.ledger().entries.insert(path.to_owned(), Known { id: Some(id), hints: vec![Some(hint.to_owned())] });
    told.count("updated");
    Ok(())
}

async fn delete(told: &Told, operator: &Operator, paths: &[String]) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for path in paths {
        let mut ledger = told.ledger();
        let known = ledger.entries.get_mut(path).context("an entry that is known")?;
        known.hints.push(None);
        ids.push(known.id.clone().context("an entry that is known has an id")?);
    }
    let results =
        within(operator.entries().batch_delete_entry(BatchDeleteEntryRequest { ids })).await?.results;
    for (path, result) in paths.iter().zip(results) {
        accept(result.status.as_ref(), "delete an entry")?;
        told.ledger().entries.remove(path);
        told.count("deleted");
    }
    Ok(())
}

fn accept(status: Option<&types::Status>, doing: &str) -> anyhow::Result<()> {
    match status {
        Some(status) if status.code != 0 => bail!("failed to {doing}: {}", status.message),
        _ => Ok(()),
    }
}

/// Mints X509-SVIDs, hands out join tokens, reads the bundle and bans agents until a call fails; then says why.
pub(crate) async fn mint_and_ban(told: Told, socket: PathBuf, seed: u64) -> anyhow::Error {
    let mut dice = Dice::new(seed);
    let Err(why) = minting(&told, &socket, &mut dice).await;
    why
}

async fn minting(told: &Told, socket: &Path, dice: &mut Dice) -> anyhow::Result<Never> {
    let operator = Operator::connect(socket).await?;
    let csr = new_csr()?;
    loop {
        match dice.below(12) {
            0 => hand_out(told, &operator).await?,
            1 => read_bundle(told, &operator).await?,
            2 => ban(told, &operator, dice).await?,
            _ => mint(told, &operator, &csr).await?,
        }
    }
}

/// Mints one X509-SVID.
///
/// # Errors
/// When the server refuses.
pub(crate) async fn mint_once(told: &Told, socket: &Path) -> anyhow::Result<()> {
    let operator = Operator::connect(socket).await?;
    mint(told, &operator, &new_csr()?).await
}

fn new_csr() -> anyhow::Result<Vec<u8>> {
    let key = Host::system().keys.generate(KeyType::EcP256)?;
    Ok(csr::make(&*key, Some(&SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}/minted"))?))?)
}

async fn mint(told: &Told, operator: &Operator, csr: &[u8]) -> anyhow::Result<()> {
    let request = MintX509svidRequest { csr: csr.to_vec(), ttl: 60 };
    let minted = within(operator.svids().mint_x509svid(request)).await?;
    let chain = minted.svid.context("an SVID")?.cert_chain;
    told.ledger().serials.insert(serial(chain.first().context("a certificate")?)?);
    told.count("minted");
    Ok(())
}

/// The serial number of a certificate (DER) in hex, as the decision record has it.
fn serial(der: &[u8]) -> anyhow::Result<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)?;
    Ok(same_serial(&certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

async fn hand_out(told: &Told, operator: &Operator) -> anyhow::Result<()> {
    let request =
        CreateJoinTokenRequest { ttl: 86_400, token: String::new(), agent_id: wire_id(TRUST_DOMAIN, NODE) };
    let token = within(operator.agents().create_join_token(request)).await?.value;
    told.ledger().tokens.push(token);
    told.count("tokens");
    Ok(())
}

async fn read_bundle(told: &Told, operator: &Operator) -> anyhow::Result<()> {
    let bundle = within(operator.bundles().get_bundle(GetBundleRequest { output_mask: None })).await?;
    let mut ledger = told.ledger();
    ledger.sequence = ledger.sequence.max(bundle.sequence_number);
    for authority in &bundle.x509_authorities {
        let (_, certificate) = x509_parser::parse_x509_certificate(&authority.asn1)?;
        ledger.authorities.insert(authority.asn1.clone(), certificate.validity().not_after.timestamp());
    }
    for authority in &bundle.jwt_authorities {
        ledger.authorities.insert(authority.key_id.clone().into_bytes(), authority.expires_at);
    }
    Ok(())
}

async fn ban(told: &Told, operator: &Operator, dice: &mut Dice) -> anyhow::Result<()> {
    let path = {
        let mut ledger = told.ledger();
        let free: Vec<String> = ledger
            .agents
            .iter()
            .filter(|(_, banned)| **banned == [false])
            .map(|(path, _)| path.clone())
            .collect();
        // One agent at least stays, to be looked at.
        if free.len() < 2 {
            return Ok(());
        }
        let path = free[dice.below(free.len())].clone();
        ledger.agents.insert(path.clone(), vec![false, true]);
        path
    };
    within(operator.agents().ban_agent(BanAgentRequest { id: wire_id(TRUST_DOMAIN, &path) })).await?;
    told.ledger().agents.insert(path, vec![true]);
    told.count("banned");
    Ok(())
}

/// Notes that an agent has attested with `token`.
pub(crate) fn attested(told: &Told, token: &str) {
    told.ledger().agents.insert(format!("/spire/agent/join_token/{token}"), vec![false]);
    told.count("attested");
}

/// What of all that was acknowledged does not hold, each in a sentence; and goes on from what does.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn compare(told: &Told, socket: &Path, now: i64) -> anyhow::Result<Vec<String>> {
    let operator = Operator::connect(socket).await?;
    let mut violations = compare_entries(told, &operator).await?;
    let listed = within(operator.agents().list_agents(ListAgentsRequest::default())).await?.agents;
    let listed: BTreeMap<String, bool> =
        listed.into_iter().filter_map(|agent| Some((agent.id?.path, agent.banned))).collect();
    let bundle = within(operator.bundles().get_bundle(GetBundleRequest { output_mask: None })).await?;
    let served: BTreeSet<Vec<u8>> = bundle
        .x509_authorities
        .iter()
        .map(|authority| authority.asn1.clone())
        .chain(bundle.jwt_authorities.iter().map(|authority| authority.key_id.clone().into_bytes()))
        .collect();
    violations.extend(compare_agents(told, &listed));
    violations.extend(compare_bundle(told, bundle.sequence_number, &served, now));
    read_bundle(told, &operator).await?;
    Ok(violations)
}

fn compare_agents(told: &Told, listed: &BTreeMap<String, bool>) -> Vec<String> {
    let mut violations = Vec::new();
    for (path, banned) in &mut told.ledger().agents {
        match listed.get(path) {
            Some(is) if banned.contains(is) => *banned = vec![*is],
            Some(is) => violations.push(format!("agent {path} is banned: {is}, acknowledged: {banned:?}")),
            None => violations.push(format!("agent {path} has attested and is not there")),
        }
    }
    violations
}

fn compare_bundle(told: &Told, sequence: u64, served: &BTreeSet<Vec<u8>>, now: i64) -> Vec<String> {
    let ledger = told.ledger();
    let mut violations = Vec::new();
    if sequence < ledger.sequence {
        violations
            .push(format!("the bundle has sequence number {sequence}, and {} was read", ledger.sequence));
    }
    for (authority, ends) in &ledger.authorities {
        if *ends > now && !served.contains(authority) {
            violations.push(format!("an authority that was published and ends in {} s is gone", ends - now));
        }
    }
    violations
}

async fn compare_entries(told: &Told, operator: &Operator) -> anyhow::Result<Vec<String>> {
    let mut listed: BTreeMap<String, types::Entry> = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest { page_size: 500, page_token, ..ListEntriesRequest::default() };
        let page = within(operator.entries().list_entries(request)).await?;
        for entry in page.entries {
            let path = entry.spiffe_id.clone().unwrap_or_default().path;
            listed.insert(path, entry);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let mut violations = Vec::new();
    let mut ledger = told.ledger();
    let mut gone = Vec::new();
    for (path, known) in &mut ledger.entries {
        let found = listed.remove(path);
        let hint = found.as_ref().map(|entry| entry.hint.clone());
        if !known.hints.contains(&hint) {
            violations.push(format!("entry {path} has hint {hint:?}, acknowledged: {:?}", known.hints));
        }
        match found {
            Some(entry) => *known = Known { id: Some(entry.id), hints: vec![hint] },
            None => gone.push(path.clone()),
        }
    }
    for path in gone {
        ledger.entries.remove(&path);
    }
    // Entries stand in the place of tokens for agents; those are not ours.
    let strange = listed.keys().filter(|path| path.starts_with("/c"));
    violations.extend(strange.map(|path| format!("entry {path} was deleted, or never made")));
    Ok(violations)
}

/// Serials that were received and have no intent in the decision record.
pub(crate) fn unrecorded(told: &Told, intents: &BTreeSet<String>) -> Vec<String> {
    let mut ledger = told.ledger();
    let received = std::mem::take(&mut ledger.serials);
    ledger.recorded += received.len();
    received
        .difference(intents)
        .map(|serial| format!("serial {serial} was received and has no intent"))
        .collect()
}
