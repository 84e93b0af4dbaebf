//! How are registration entries made, changed and deleted while the server is killed?

use std::collections::BTreeMap;
use std::sync::Arc;

use passant_core::UnixTime;
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, ListEntriesRequest,
};
use passant_proto::types;
use passant_tests::api::{Operator, selector, wire_id};
use passant_tests::site::TRUST_DOMAIN;

use super::ledger::Value;
use super::world::{ANSWERED, Dice, Stopped, Work, World};

/// Clients that churn, each with entries of its own.
pub(crate) const CLIENTS: usize = 3;
/// Entries made by one request at the beginning.
const SEED_BATCH: usize = 1_000;
/// Entries asked for at once; a page ends early by its weight.
const PAGE: i32 = 10_000;

/// An entry, as far as it is compared: everything.
#[derive(Clone, Debug)]
pub(crate) struct EntryValue {
    text: String,
    expires_at: i64,
    /// Revision number and time of creation; not known of what was only sent.
    stamp: Option<(i64, i64)>,
}

impl EntryValue {
    /// What a request says of an entry.
    fn sent(entry: &types::Entry) -> Self {
        Self { text: text(entry), expires_at: entry.expires_at, stamp: None }
    }

    /// What the server says of it.
    fn read(entry: &types::Entry) -> Self {
        Self { stamp: Some((entry.revision_number, entry.created_at)), ..Self::sent(entry) }
    }
}

impl Value for EntryValue {
    fn is(&self, found: &Self) -> bool {
        self.text == found.text && (self.stamp.is_none() || self.stamp == found.stamp)
    }

    fn may_be_gone(&self, now: UnixTime) -> bool {
        self.expires_at != 0 && self.expires_at <= now.secs()
    }

    fn tell(&self) -> String {
        format!("{} (revision and creation {:?})", self.text, self.stamp)
    }
}

/// All that an entry says, but for its ID and what the server adds.
fn text(entry: &types::Entry) -> String {
    let path = |id: &Option<types::Spiffeid>| id.as_ref().map_or_else(String::new, |id| id.path.clone());
    let mut selectors: Vec<String> =
        entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    selectors.sort();
    let more = entry.additional_attributes.unwrap_or_default();
    format!(
        "{} below {} for {} ttl {}/{} dns {} hint {:?} until {} flags {:?}",
        path(&entry.spiffe_id),
        path(&entry.parent_id),
        selectors.join(","),
        entry.x509_svid_ttl,
        entry.jwt_svid_ttl,
        entry.dns_names.join(","),
        entry.hint,
        entry.expires_at,
        [
            entry.admin,
            entry.downstream,
            entry.store_svid,
            more.jwt_svid_include_jti,
            more.disable_x509_svid_prefetch
        ],
    )
}

/// Makes the entries that the show begins with.
pub(crate) async fn seed(world: &World) -> Result<(), Stopped> {
    let operator = world.operator().await?;
    let mut dice = Dice::new(&world.host);
    let mut left = world.entries;
    while left > 0 {
        let some = left.min(SEED_BATCH);
        left -= some;
        let client = dice.below(CLIENTS);
        let entries = (0..some).map(|_| fresh(world, &mut dice, client, 0)).collect();
        create(world, &operator, entries).await?;
    }
    Ok(())
}

/// Gives each client its entries, by what the books hold.
pub(crate) fn put_on_shelves(world: &World) {
    let mut books = world.books();
    let mut shelves: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    // What has an end is left to the server.
    for (key, _) in books.entries.all_held().filter(|(_, entry)| entry.expires_at == 0) {
        let client = key.strip_prefix('c').and_then(|rest| rest.split_once('-')?.0.parse().ok());
        if let Some(client) = client {
            shelves.entry(client).or_default().push(key.clone());
        }
    }
    books.shelves = shelves;
}

/// Churns as `client` until the server is gone.
pub(crate) async fn run(world: Arc<World>, client: usize) -> Result<(), Stopped> {
    let operator = world.operator().await?;
    let mut dice = Dice::new(&world.host);
    let mut mine = world.books().shelves.remove(&client).unwrap_or_default();
    while !world.is_killing() {
        let some = 1 + if dice.percent(5) { dice.below(200) } else { dice.below(12) };
        let busy = world.busy(Work::Churn);
        match dice.below(10) {
            0..5 => {
                let picked = pick(&mut dice, &mine, some);
                let entries = picked.iter().map(|id| body(&world, &mut dice, id.clone(), 0)).collect();
                update(&world, &operator, entries).await?;
            }
            // Some entries end soon, for the server to prune.
            5..7 => {
                let end = world.now().secs() + 1 + i64::try_from(dice.below(4)).unwrap_or(0);
                let ending = (0..some).map(|_| fresh(&world, &mut dice, client, end)).collect();
                create(&world, &operator, ending).await?;
            }
            _ if mine.len() * CLIENTS < world.entries => {
                let entries: Vec<_> = (0..some).map(|_| fresh(&world, &mut dice, client, 0)).collect();
                let ids: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
                create(&world, &operator, entries).await?;
                mine.extend(ids);
            }
            _ => {
                let picked = pick(&mut dice, &mine, some);
                delete(&world, &operator, &picked).await?;
                mine.retain(|id| picked.binary_search(id).is_err());
            }
        }
        drop(busy);
        tokio::time::sleep(dice.span(8)).await;
    }
    Ok(())
}

/// Up to `some` different ones of `ids`, sorted.
fn pick(dice: &mut Dice, ids: &[String], some: usize) -> Vec<String> {
    let mut picked: Vec<String> =
        (0..some.min(ids.len())).map(|_| ids[dice.below(ids.len())].clone()).collect();
    picked.sort();
    picked.dedup();
    picked
}

fn fresh(world: &World, dice: &mut Dice, client: usize, expires_at: i64) -> types::Entry {
    let id = format!("c{client}-{}", world.number());
    body(world, dice, id, expires_at)
}

/// An entry that differs from every other, and from what it was before.
fn body(world: &World, dice: &mut Dice, id: String, expires_at: i64) -> types::Entry {
    let number = world.number();
    types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, &format!("/churn/{id}/{number}")),
        parent_id: wire_id(TRUST_DOMAIN, &format!("/nodes/{}", dice.below(500))),
        selectors: vec![
            selector("k8s", &format!("ns:team-{}", dice.below(50))),
            selector("k8s", &format!("sa:{number}")),
        ],
        x509_svid_ttl: 60 + i32::try_from(dice.below(600)).unwrap_or(0),
        jwt_svid_ttl: 60,
        dns_names: vec![format!("n{number}.example.org")],
        hint: format!("h{number}"),
        expires_at,
        id,
        ..types::Entry::default()
    }
}

/// Creates `entries`, whose IDs are chosen, and puts it on the books.
pub(crate) async fn create(
    world: &World,
    operator: &Operator,
    entries: Vec<types::Entry>,
) -> Result<(), Stopped> {
    let keys: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
    world
        .books()
        .entries
        .begin(entries.iter().map(|entry| (entry.id.clone(), Some(EntryValue::sent(entry)))));
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let response = operator.entries().batch_create_entry(request).await;
    let results = response.map_err(|status| world.failed("create entries", &status))?.into_inner().results;
    let answers = results.into_iter().map(|result| (result.status, result.entry));
    note(world, "create", &keys, answers);
    Ok(())
}

async fn update(world: &World, operator: &Operator, entries: Vec<types::Entry>) -> Result<(), Stopped> {
    let keys: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
    world
        .books()
        .entries
        .begin(entries.iter().map(|entry| (entry.id.clone(), Some(EntryValue::sent(entry)))));
    let request = BatchUpdateEntryRequest { entries, input_mask: None, output_mask: None };
    let response = operator.entries().batch_update_entry(request).await;
    let results = response.map_err(|status| world.failed("update entries", &status))?.into_inner().results;
    let answers = results.into_iter().map(|result| (result.status, result.entry));
    note(world, "update", &keys, answers);
    Ok(())
}

async fn delete(world: &World, operator: &Operator, ids: &[String]) -> Result<(), Stopped> {
    world.books().entries.begin(ids.iter().map(|id| (id.clone(), None)));
    let request = BatchDeleteEntryRequest { ids: ids.to_vec() };
    let response = operator.entries().batch_delete_entry(request).await;
    let results = response.map_err(|status| world.failed("delete entries", &status))?.into_inner().results;
    note(world, "delete", ids, results.into_iter().map(|result| (result.status, None)));
    Ok(())
}

/// Puts answers on the books, one for each of `keys`.
fn note(
    world: &World,
    what: &str,
    keys: &[String],
    answers: impl ExactSizeIterator<Item = (Option<types::Status>, Option<types::Entry>)>,
) {
    let mut refused = Vec::new();
    if answers.len() != keys.len() {
        refused.push(format!("{what}: {} answers to {} items", answers.len(), keys.len()));
    }
    let mut books = world.books();
    for (key, (status, entry)) in keys.iter().zip(answers) {
        let status = status.unwrap_or_default();
        if status.code == 0 {
            books.entries.acknowledge(key, entry.as_ref().map(EntryValue::read));
        } else {
            books.entries.refused(key);
            refused.push(format!("{what} {key}: {} ({})", status.message, status.code));
        }
    }
    books.violations.entry(ANSWERED).or_default().extend(refused);
}

/// All entries that the server has.
pub(crate) struct Found {
    pub(crate) entries: BTreeMap<String, EntryValue>,
    /// The SPIFFE IDs of agents that an entry makes stand for another SPIFFE ID.
    pub(crate) aliases: Vec<String>,
}

/// Whether the ID is of an entry that the harness keeps books on.
fn is_ours(id: &str) -> bool {
    id.split_once('-').is_some_and(|(first, _)| first == "m" || (first.len() == 2 && first.starts_with('c')))
}

/// Makes a few entries more.
pub(crate) async fn some(world: &World) -> Result<(), Stopped> {
    let operator = world.operator().await?;
    let mut dice = Dice::new(&world.host);
    let entries = (0..100).map(|_| fresh(world, &mut dice, 0, 0)).collect();
    create(world, &operator, entries).await
}

/// Lists all entries.
pub(crate) async fn list(operator: &Operator) -> anyhow::Result<Found> {
    let mut found = Found { entries: BTreeMap::new(), aliases: Vec::new() };
    let mut page_token = String::new();
    loop {
        let request = ListEntriesRequest { filter: None, output_mask: None, page_size: PAGE, page_token };
        let page = operator.entries().list_entries(request).await?.into_inner();
        for entry in page.entries {
            match entry.selectors.as_slice() {
                [only] if only.r#type == "spiffe_id" => found.aliases.push(only.value.clone()),
                _ if is_ours(&entry.id) => {
                    found.entries.insert(entry.id.clone(), EntryValue::read(&entry));
                }
                _ => {}
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_an_entry_is_compared() {
        let entry = types::Entry {
            id: "c0-1".to_owned(),
            revision_number: 4,
            created_at: 5,
            ..types::Entry::default()
        };
        let is_same = |change: fn(&mut types::Entry)| {
            let mut other = entry.clone();
            change(&mut other);
            EntryValue::read(&entry).is(&EntryValue::read(&other))
        };
        assert!(is_same(|_| {}));
        for change in [
            (|e| e.revision_number = 5) as fn(&mut types::Entry),
            |e| e.created_at = 6,
            |e| e.spiffe_id = wire_id("example.org", "/a"),
            |e| e.parent_id = wire_id("example.org", "/a"),
            |e| e.selectors = vec![selector("a", "b")],
            |e| e.x509_svid_ttl = 1,
            |e| e.jwt_svid_ttl = 1,
            |e| e.dns_names = vec!["a".to_owned()],
            |e| e.hint = "a".to_owned(),
            |e| e.expires_at = 1,
            |e| e.admin = true,
            |e| e.downstream = true,
            |e| e.store_svid = true,
        ] {
            assert!(!is_same(change));
        }
        // Of what had no answer, revision and creation are not known.
        assert!(EntryValue::sent(&entry).is(&EntryValue::read(&entry)));
    }
}
