//! How do entries move, with their ids, however many there are?

use std::collections::{BTreeMap, BTreeSet};

use passant_core::{EntryId, TrustDomain, UnixTime};
use passant_proto::convert;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use prost::Message;

use super::ledger::{Ledger, Made, hash};
use super::report::{Kind, Report};
use super::spire::Move;
use super::{authorities, paired};
use crate::commands::entry::pages;
use crate::connect::{Server, refused};
use crate::json;
use crate::progress::Progress;

/// Entries of one batch, as many as SPIRE's own clients send.
const ITEMS: usize = 500;
/// Bytes of one batch: a quarter of what a message may have, so that the answer fits too.
const BYTES: usize = 1 << 20;

/// The entries of this server, as far as they can be in the way: some 400 bytes for each.
struct Here {
    /// What each is, by its id.
    ids: BTreeMap<String, String>,
    /// The id of the one with this parent, SPIFFE ID and selectors.
    twins: BTreeMap<String, String>,
}

/// One entry on its way.
struct Item {
    /// Its place in SPIRE's list, counted from 1.
    at: usize,
    entry: types::Entry,
    hash: String,
}

/// Copies the entries. `bundles` are the foreign trust domains whose bundles are here.
///
/// # Errors
/// When a server does not answer, or the ledger cannot be written; what was made by then stays, and is in the ledger.
pub(super) async fn copy(
    moving: &Move,
    bundles: &BTreeSet<String>,
    mut ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut here = Here::read(&moving.server).await?;
    let mut theirs = pages(&moving.spire, None, None);
    let mut progress = Progress::new("entries of SPIRE looked at");
    let (mut at, mut ended) = (0, 0);
    let mut batch: Vec<Item> = Vec::new();
    let mut bytes = 0;
    while let Some(page) = theirs.next().await? {
        progress.add(page.len());
        for wire in page {
            at += 1;
            let name = name_of(&wire);
            match here.decide(&moving.trust_domain, wire, bundles) {
                Decision::Copy(entry, hash) => {
                    let more = entry.encoded_len();
                    if batch.len() == ITEMS || bytes + more > BYTES {
                        create(moving, std::mem::take(&mut batch), ledger.as_deref_mut(), report).await?;
                        bytes = 0;
                    }
                    bytes += more;
                    batch.push(Item { at, entry: *entry, hash });
                }
                Decision::Same => report.already(Kind::Entries, 1),
                Decision::Ended => ended += 1,
                Decision::Leave(why) => report.left(Kind::Entries, Some(at), &name, why),
            }
        }
    }
    create(moving, batch, ledger, report).await?;
    if ended > 0 {
        report.note(format!("{ended} entries of SPIRE have ended and are not carried"));
    }
    Ok(())
}

/// Creates a batch, once the ledger tells of it.
async fn create(
    moving: &Move,
    batch: Vec<Item>,
    ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(ledger) = ledger else {
        report.done(Kind::Entries, batch.len());
        return Ok(());
    };
    if batch.is_empty() {
        return Ok(());
    }
    let made = |item: &Item| Made::Entry { id: item.entry.id.clone(), hash: item.hash.clone() };
    ledger.write(batch.iter().map(made).collect())?;
    let entries = batch.iter().map(|item| item.entry.clone()).collect();
    // The ids are enough of an answer.
    let request = BatchCreateEntryRequest { entries, output_mask: Some(types::EntryMask::default()) };
    let answer = moving.server.entries().batch_create_entry(request).await.map_err(refused)?.into_inner();
    for (item, result) in paired(batch, answer.results)? {
        let status = result.status.unwrap_or_default();
        if status.code == 0 {
            report.done(Kind::Entries, 1);
        } else {
            report.left(Kind::Entries, Some(item.at), &name_of(&item.entry), status.message);
        }
    }
    Ok(())
}

/// What is to become of an entry of SPIRE.
enum Decision {
    /// It is new here. With its hash.
    Copy(Box<types::Entry>, String),
    /// It is here as it is there.
    Same,
    /// It is over.
    Ended,
    Leave(String),
}

impl Here {
    async fn read(server: &Server) -> anyhow::Result<Self> {
        let mut here = Self { ids: BTreeMap::new(), twins: BTreeMap::new() };
        let mut ours = pages(server, None, None);
        while let Some(page) = ours.next().await? {
            for entry in page {
                here.twins.insert(twin(&entry), entry.id.clone());
                here.ids.insert(entry.id.clone(), hash_of(&entry));
            }
        }
        Ok(here)
    }

    fn decide(&mut self, of: &TrustDomain, wire: types::Entry, bundles: &BTreeSet<String>) -> Decision {
        let entry = match normal(of, &wire) {
            Ok(entry) => entry,
            Err(why) => return Decision::Leave(why),
        };
        if entry.expires_at != 0 && authorities::now().is_ok_and(|now| now >= entry.expires_at) {
            return Decision::Ended;
        }
        let (hash, twin) = (hash_of(&entry), twin(&entry));
        if let Some(held) = self.ids.get(&entry.id) {
            if *held == hash {
                return Decision::Same;
            }
            return Decision::Leave(
                "an entry with this id is here and is another one, or was changed; it stays as it is"
                    .to_owned(),
            );
        }
        if let Some(held) = self.twins.get(&twin) {
            return Decision::Leave(format!(
                "entry {held} is here with the same parent, SPIFFE ID and selectors; it stays as it is, with its own id"
            ));
        }
        if let Some(foreign) = entry.federates_with.iter().find(|foreign| !bundles.contains(*foreign)) {
            return Decision::Leave(format!("there is no bundle of {foreign}, with which it federates"));
        }
        self.twins.insert(twin, entry.id.clone());
        self.ids.insert(entry.id.clone(), hash.clone());
        Decision::Copy(Box::new(entry), hash)
    }
}

/// An entry as this server would show it once it is registered, or why it would refuse it.
fn normal(of: &TrustDomain, wire: &types::Entry) -> Result<types::Entry, String> {
    let draft = convert::entry::draft_from_wire(wire).map_err(|malformed| malformed.to_string())?;
    let id = draft.id.clone().map_or_else(|| EntryId::parse(&wire.id), Ok);
    let id = id.map_err(|error| error.to_string())?;
    let entry = draft.register(of, id, 0, UnixTime::from_secs(0)).map_err(|error| error.to_string())?;
    Ok(convert::entry::to_wire(&entry))
}

/// What an entry is, whenever it was made and however often it was written.
pub(super) fn hash_of(entry: &types::Entry) -> String {
    hash(&types::Entry { revision_number: 0, created_at: 0, ..entry.clone() })
}

fn twin(entry: &types::Entry) -> String {
    hash(&types::Entry {
        spiffe_id: entry.spiffe_id.clone(),
        parent_id: entry.parent_id.clone(),
        selectors: entry.selectors.clone(),
        ..types::Entry::default()
    })
}

fn name_of(entry: &types::Entry) -> String {
    format!("{} ({})", entry.id, json::spiffe_id_text(entry.spiffe_id.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, path: &str) -> types::Entry {
        let of = |path: &str| {
            Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
        };
        types::Entry {
            id: id.to_owned(),
            spiffe_id: of(path),
            parent_id: of("/node"),
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            ..types::Entry::default()
        }
    }

    fn decided(here: &mut Here, entry: types::Entry) -> String {
        let bundles = BTreeSet::from(["known.test".to_owned()]);
        match here.decide(&TrustDomain::parse("example.org").unwrap(), entry, &bundles) {
            Decision::Copy(entry, _) => format!("copy {}", entry.id),
            Decision::Same => "same".to_owned(),
            Decision::Ended => "ended".to_owned(),
            Decision::Leave(why) => why,
        }
    }

    #[test]
    fn an_entry_is_copied_unless_it_is_here_or_something_is_in_its_way() {
        let mut here = Here { ids: BTreeMap::new(), twins: BTreeMap::new() };
        assert_eq!(decided(&mut here, entry("a", "/a")), "copy a");
        let later = types::Entry { revision_number: 7, created_at: 9, ..entry("a", "/a") };
        assert_eq!(decided(&mut here, later), "same");
        let changed = types::Entry { hint: "h".to_owned(), ..entry("a", "/a") };
        assert!(decided(&mut here, changed).contains("with this id"));
        assert!(decided(&mut here, entry("b", "/a")).contains("entry a is here"));
        let federated = |name: &str| types::Entry {
            federates_with: vec![name.to_owned()],
            ..entry(name, &format!("/{name}"))
        };
        assert_eq!(decided(&mut here, federated("known.test")), "copy known.test");
        assert!(decided(&mut here, federated("none.test")).contains("none.test"));
        assert_eq!(decided(&mut here, types::Entry { expires_at: 5, ..entry("c", "/c") }), "ended");
        for refused in [
            entry("d", "/spire/agent/x"),
            entry("", "/e"),
            types::Entry { selectors: vec![], ..entry("f", "/f") },
        ] {
            let why = decided(&mut here, refused);
            assert!(!why.starts_with("copy") && why != "same", "{why}");
        }
    }
}
