//! `passant entry apply`: what has to change so that the server has the entries of a file, and the change itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use passant_core::UnixTime;
use passant_proto::options::{KeyScope, Options};
use passant_proto::types;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tonic::Code;

use super::batch::{self, Batches, Failed, How, Item};
use super::import::{EntryFile, failure, tell_failed};
use super::list::{pages, passes};
use super::options;
use crate::args::{Apply, EntryFilter};
use crate::commands::rollout::{self, Written, awaited};
use crate::connect::Server;
use crate::json;
use crate::plain::{self, Plain};
use crate::progress::Progress;
use crate::render::Output;

/// How many differences of one kind people are shown; programs get all.
const SHOWN: usize = 20;

pub(super) async fn run(args: Apply, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut wanted = Wanted::read(&args, options::of_all(server).await?)?;
    if args.prune && wanted.items.is_empty() {
        bail!(
            "the file has no entries: with --prune that would delete all. Who wants that says passant entry delete"
        );
    }
    let mut others = Vec::new();
    let mut progress = Progress::new("entries compared");
    let mut pages = pages(server, None, None);
    while let Some(entries) = pages.next().await? {
        progress.add(entries.len());
        for entry in entries {
            if let Some(entry) = wanted.meet(entry) {
                others.push(entry);
            }
        }
    }
    drop(progress);
    let plan = wanted.plan(others);
    if args.dry_run {
        if !plan.is_empty() {
            out.note();
        }
        return out.print_long(|to| plan.write_json(to), |to| plan.tell(to));
    }
    if args.yes || plan.is_empty() {
        out.announce(|to| plan.tell(to))?;
    } else {
        let nobody = out.is_json() || args.file == Path::new("-") || !io::stdin().is_terminal();
        if nobody || io::stdout().is_terminal() {
            out.announce(|to| plan.tell(to))?;
        } else {
            // Whoever is asked sees what about.
            plan.tell(&mut Plain(io::stderr()))?;
        }
        if nobody {
            bail!("nothing was changed: look with --dry-run, and say --yes where nobody can be asked");
        }
        if !confirmed()? {
            bail!("nothing was changed");
        }
    }
    let wait = args.wait;
    let written = plan.written();
    let done = plan.carry_out(server).await?;
    // Where nothing was changed, nobody has anything to apply.
    let came = match written.entries.is_empty() && written.parents.is_empty() {
        true => None,
        false => awaited(server, written, wait).await?,
    };
    if came.as_ref().is_some_and(rollout::is_pending) {
        out.note();
    }
    let failed = done.failed.len() + done.not_deleted.len();
    if failed > 0 {
        out.fail(anyhow!(
            "{failed} changes were refused; the others were made. Mend the file and run it again"
        ));
    }
    out.print(
        || {
            let mut json = done.json();
            if let Some(came) = &came {
                json["rollout"] = rollout::json(came);
            }
            json
        },
        |to| {
            done.tell(to)?;
            came.as_ref().map_or(Ok(()), |came| rollout::tell(to, came))
        },
    )
}

/// Asks on the terminal.
fn confirmed() -> anyhow::Result<bool> {
    let mut to = io::stderr();
    write!(to, "Make these changes? [y/N] ")?;
    to.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The entries of the file, and what the server has of them.
struct Wanted {
    items: Vec<Item>,
    /// The options that the server's entries have.
    their_options: BTreeMap<String, Options>,
    by_id: HashMap<String, usize>,
    by_triple: HashMap<String, usize>,
    /// What of the server's entries may be deleted; nothing if none.
    prune: Option<EntryFilter>,
    /// For each entry of which the server has one with its id: what is to be changed.
    with_id: HashMap<usize, Vec<Change>>,
    /// For each entry: one of the server with its parent, SPIFFE ID and selectors.
    with_triple: HashMap<usize, Met>,
    /// Entries whose parent, SPIFFE ID and selectors the server has in an entry that another one here changes.
    heirs: HashSet<usize>,
}

/// An entry of the server that one of the file stands for.
struct Met {
    theirs: Other,
    changes: Vec<Change>,
}

/// What is kept of an entry of the server, however many there are.
struct Other {
    id: String,
    spiffe_id: String,
    parent_id: String,
    selectors: String,
    /// Whether it may be deleted when the file does not have it.
    prunable: bool,
}

/// A field that is to be changed.
struct Change {
    field: &'static str,
    old: String,
    new: String,
}

impl Wanted {
    fn read(args: &Apply, their_options: BTreeMap<String, Options>) -> anyhow::Result<Self> {
        let file = EntryFile::open(&args.file)?;
        let (mut by_id, mut by_triple) = (HashMap::new(), HashMap::new());
        let mut items: Vec<Item> = Vec::new();
        file.read(args.skip_unknown_fields, |written| {
            let (line, entry, options) = (written.line, written.entry, written.options);
            let twice = |what: &str, first: usize| {
                format!(
                    "lines {} and {line} have the same {what}: one of them is too many",
                    items[first].line
                )
            };
            if let Some(first) = by_triple.insert(triple(&entry), items.len()) {
                bail!(twice("parent, SPIFFE ID and selectors", first));
            }
            if !entry.id.is_empty()
                && let Some(first) = by_id.insert(entry.id.clone(), items.len())
            {
                bail!(twice("id", first));
            }
            items.push(Item { line, entry, options, sets_options: false });
            Ok(())
        })?;
        let prune = args.prune.then(|| args.within.clone());
        Ok(Self { by_id, by_triple, their_options, ..Self::new(items, prune) })
    }

    fn new(items: Vec<Item>, prune: Option<EntryFilter>) -> Self {
        Self {
            items,
            their_options: BTreeMap::new(),
            by_id: HashMap::new(),
            by_triple: HashMap::new(),
            prune,
            with_id: HashMap::new(),
            with_triple: HashMap::new(),
            heirs: HashSet::new(),
        }
    }

    /// Compares an entry of the server with the one of the file that stands for it; given back when there is none.
    fn meet(&mut self, theirs: types::Entry) -> Option<Other> {
        let prunable = self.prune.as_ref().is_some_and(|within| passes(within, &theirs));
        let twin = self.by_triple.get(&triple(&theirs)).copied();
        if let Some(at) = self.by_id.get(&theirs.id) {
            self.heirs.extend(twin.filter(|heir| heir != at));
            let changes = changes(&theirs, self.options_of(&theirs), &self.items[*at]);
            self.with_id.insert(*at, changes);
            return None;
        }
        let theirs_now = Other::of(&theirs, prunable);
        if let Some(at) = twin.filter(|at| !self.with_triple.contains_key(at)) {
            let changes = changes(&theirs, self.options_of(&theirs), &self.items[at]);
            self.with_triple.insert(at, Met { theirs: theirs_now, changes });
            return None;
        }
        Some(theirs_now)
    }

    fn options_of(&self, theirs: &types::Entry) -> Options {
        self.their_options.get(&theirs.id).copied().unwrap_or_default()
    }

    /// Puts together what is to be done.
    fn plan(mut self, mut others: Vec<Other>) -> Plan {
        let mut plan = Plan::default();
        for (at, mut item) in self.items.into_iter().enumerate() {
            let twin = self.with_triple.remove(&at);
            let changes = match (self.with_id.remove(&at), twin) {
                (Some(changes), twin) => {
                    // The id decides; its twin under another id is a further entry.
                    others.extend(twin.map(|twin| twin.theirs));
                    Some(changes)
                }
                (None, Some(twin)) => {
                    item.entry.id = twin.theirs.id;
                    Some(twin.changes)
                }
                (None, None) => None,
            };
            match changes {
                None if self.heirs.contains(&at) => plan.inherit.push(item),
                None => plan.create.push(item),
                Some(changes) if changes.is_empty() => plan.same += 1,
                Some(changes) => {
                    item.sets_options = changes.iter().any(|change| OPTIONS.contains(&change.field));
                    plan.change.push((item, changes));
                }
            }
        }
        for other in others {
            // Made by the server for a node that attested with a join token, and gone with that node.
            let of_token = other.selectors == format!("spiffe_id:{}", other.parent_id);
            if other.prunable && !of_token { plan.delete.push(other) } else { plan.kept += 1 }
        }
        plan.delete.sort_by(|one, other| one.id.cmp(&other.id));
        plan
    }
}

impl Other {
    fn of(entry: &types::Entry, prunable: bool) -> Self {
        Self {
            id: entry.id.clone(),
            spiffe_id: json::spiffe_id_text(entry.spiffe_id.as_ref()),
            parent_id: json::spiffe_id_text(entry.parent_id.as_ref()),
            selectors: json::selectors_text(&entry.selectors),
            prunable,
        }
    }

    fn json(&self) -> Value {
        let Self { id, spiffe_id, parent_id, selectors, prunable: _ } = self;
        json!({ "id": id, "spiffe_id": spiffe_id, "parent_id": parent_id, "selectors": selectors })
    }
}

/// What makes two entries the same to SPIRE, as one text.
fn triple(entry: &types::Entry) -> String {
    let selectors: BTreeSet<String> =
        entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    let ids = [&entry.parent_id, &entry.spiffe_id].map(|id| json::spiffe_id_text(id.as_ref()));
    // Lengths, since a selector may hold any character.
    let selectors: Vec<String> = selectors.iter().map(|text| format!("{}:{text}", text.len())).collect();
    format!("{} {} {}", ids[0], ids[1], selectors.join(" "))
}

/// The fields in which the file's entry differs from the server's.
fn changes(theirs: &types::Entry, options: Options, ours: &Item) -> Vec<Change> {
    let both = fields(theirs, options).into_iter().zip(fields(&ours.entry, ours.options));
    let changes = both.map(|((field, old), (_, new))| Change { field, old, new });
    changes.filter(|change| change.old != change.new).collect()
}

/// The fields that are options.
const OPTIONS: [&str; 2] = ["key_scope", "strict"];

/// All that a file says of an entry but its id, in words. Sets are in order.
fn fields(entry: &types::Entry, options: Options) -> [(&'static str, String); 16] {
    let selectors: BTreeSet<String> =
        entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect();
    let federates_with: BTreeSet<&String> = entry.federates_with.iter().collect();
    let more = entry.additional_attributes.unwrap_or_default();
    let expires_at = match entry.expires_at {
        0 => "never".to_owned(),
        secs => UnixTime::from_secs(secs).to_string(),
    };
    [
        ("spiffe_id", json::spiffe_id_text(entry.spiffe_id.as_ref())),
        ("parent_id", json::spiffe_id_text(entry.parent_id.as_ref())),
        ("selectors", format!("{selectors:?}")),
        ("x509_svid_ttl", entry.x509_svid_ttl.to_string()),
        ("jwt_svid_ttl", entry.jwt_svid_ttl.to_string()),
        ("federates_with", format!("{federates_with:?}")),
        ("admin", entry.admin.to_string()),
        ("downstream", entry.downstream.to_string()),
        ("expires_at", expires_at),
        ("dns_names", format!("{:?}", entry.dns_names)),
        ("store_svid", entry.store_svid.to_string()),
        ("hint", format!("{:?}", entry.hint)),
        ("jwt_svid_include_jti", more.jwt_svid_include_jti.to_string()),
        ("disable_x509_svid_prefetch", more.disable_x509_svid_prefetch.to_string()),
        (OPTIONS[0], if options.key_scope() == KeyScope::Instance { "instance" } else { "node" }.to_owned()),
        (OPTIONS[1], options.strict.to_string()),
    ]
}

/// What is to be done.
#[derive(Default)]
struct Plan {
    create: Vec<Item>,
    /// To be created, too, once what is changed has given up their parent, SPIFFE ID and selectors.
    inherit: Vec<Item>,
    change: Vec<(Item, Vec<Change>)>,
    delete: Vec<Other>,
    /// Entries that are as the file has them.
    same: usize,
    /// Entries of the server that the file does not have, and that stay.
    kept: usize,
}

/// What was done.
struct Done {
    created: usize,
    changed: usize,
    deleted: usize,
    same: usize,
    kept: usize,
    failed: Vec<Failed>,
    not_deleted: Vec<(String, types::Status)>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.create.is_empty() && self.inherit.is_empty() && self.change.is_empty() && self.delete.is_empty()
    }

    /// All that is to be created.
    fn creates(&self) -> Vec<&Item> {
        self.create.iter().chain(&self.inherit).collect()
    }

    fn tell(&self, to: &mut dyn Write) -> io::Result<()> {
        shown(to, &self.creates(), |to, item| {
            let entry = &item.entry;
            let (spiffe_id, parent_id) = (entry.spiffe_id.as_ref(), entry.parent_id.as_ref());
            let (spiffe_id, parent_id) = (json::spiffe_id_text(spiffe_id), json::spiffe_id_text(parent_id));
            let selectors = json::selectors_text(&entry.selectors);
            writeln!(to, "+ create  {}", plain::line(&format!("{spiffe_id}  below {parent_id}  {selectors}")))
        })?;
        shown(to, &self.change, |to, (item, changes)| {
            let spiffe_id = json::spiffe_id_text(item.entry.spiffe_id.as_ref());
            writeln!(to, "~ change  {}", plain::line(&format!("{spiffe_id}  {}", item.entry.id)))?;
            for Change { field, old, new } in changes {
                writeln!(to, "    {field}: {}", plain::line(&format!("{old} -> {new}")))?;
            }
            Ok(())
        })?;
        shown(to, &self.delete, |to, other| {
            let Other { id, spiffe_id, parent_id, selectors, prunable: _ } = other;
            let other = format!("{spiffe_id}  {id}  below {parent_id}  {selectors}");
            writeln!(to, "- delete  {}", plain::line(&other))
        })?;
        writeln!(
            to,
            "{} to create, {} to change, {} to delete; {} are as in the file, {} others stay",
            self.creates().len(),
            self.change.len(),
            self.delete.len(),
            self.same,
            self.kept
        )
    }

    /// Item by item: as one value, a plan for many entries takes more memory than they do.
    fn write_json(&self, to: &mut dyn Write) -> io::Result<()> {
        let change = |(item, changes): &(Item, Vec<Change>)| {
            let fields = changes
                .iter()
                .map(|Change { field, old, new }| json!({ "field": field, "old": old, "new": new }));
            json!({
                "id": item.entry.id,
                "line": item.line,
                "spiffe_id": json::spiffe_id_text(item.entry.spiffe_id.as_ref()),
                "fields": fields.collect::<Value>(),
            })
        };
        write!(to, "{{\"create\":")?;
        write_list(
            to,
            self.creates().into_iter().map(|item| options::json(&item.entry, Some(&item.options))),
        )?;
        write!(to, ",\"change\":")?;
        write_list(to, self.change.iter().map(change))?;
        write!(to, ",\"delete\":")?;
        write_list(to, self.delete.iter().map(Other::json))?;
        write!(to, ",\"same\":{},\"kept\":{}}}", self.same, self.kept)
    }

    /// Whose agents have something to apply. Entries to be created may have no ids yet: their parents tell, too.
    fn written(&self) -> Written {
        let mut written = Written::default();
        for item in self.creates() {
            written.parents.push(json::spiffe_id_text(item.entry.parent_id.as_ref()));
        }
        for (item, changes) in &self.change {
            written.entries.push(item.entry.id.clone());
            written.parents.push(json::spiffe_id_text(item.entry.parent_id.as_ref()));
            let moved = changes.iter().find(|change| change.field == "parent_id");
            written.parents.extend(moved.map(|change| change.old.clone()));
        }
        written.parents.extend(self.delete.iter().map(|other| other.parent_id.clone()));
        written
    }

    /// Creates first and deletes last, so that no workload is without an identity in between.
    async fn carry_out(self, server: &Server) -> anyhow::Result<Done> {
        let Self { create, inherit, change, delete, same, kept } = self;
        let all = create.len() + inherit.len() + change.len() + delete.len();
        let mut progress = Progress::of("changes made", all);
        let created = written(server, How::Create, create, &mut progress).await?;
        let change = change.into_iter().map(|(item, _)| item).collect();
        let changed = written(server, How::Update, change, &mut progress).await?;
        // What they are to take over may not have been given up.
        let inherited = if changed.failed.is_empty() {
            written(server, How::Create, inherit, &mut progress).await?
        } else {
            let failed = inherit.iter().map(|item| Failed::of(item, not_made("not created")));
            batch::Outcome { failed: failed.collect(), ..batch::Outcome::default() }
        };
        let existing = created.existing + inherited.existing;
        if existing > 0 {
            bail!(
                "{existing} entries to be created were made by somebody else meanwhile: look again with --dry-run"
            );
        }
        let mut failed = created.failed;
        failed.extend(changed.failed);
        failed.extend(inherited.failed);
        let ids: Vec<String> = delete.into_iter().map(|other| other.id).collect();
        let not_deleted = if failed.is_empty() {
            batch::delete(server, &ids, &mut progress).await?
        } else {
            // What was to take their place may be among the refused.
            let why = not_made("not deleted");
            ids.iter().map(|id| (id.clone(), why.clone())).collect()
        };
        let deleted = ids.len() - not_deleted.len();
        let created = created.done + inherited.done;
        Ok(Done { created, changed: changed.done, deleted, same, kept, failed, not_deleted })
    }
}

/// Why a change was not tried.
fn not_made(what: &str) -> types::Status {
    let message = format!("{what}, since other changes were refused");
    types::Status { code: Code::FailedPrecondition.into(), message }
}

/// Writes a list as JSON.
fn write_list(to: &mut dyn Write, items: impl Iterator<Item = Value>) -> io::Result<()> {
    let mut before = "[";
    for item in items {
        write!(to, "{before}{item}")?;
        before = ",";
    }
    write!(to, "{}]", if before == "[" { "[" } else { "" })
}

/// Writes entries, and lets go of each once it is sent.
async fn written(
    server: &Server,
    how: How,
    items: Vec<Item>,
    progress: &mut Progress,
) -> anyhow::Result<batch::Outcome> {
    let (mut batches, queue) = Batches::new();
    let feeding = spawn_blocking(move || {
        if items.into_iter().all(|item| batches.add(item)) {
            batches.end();
        }
    });
    let outcome = batch::write(server, how, queue, progress).await?;
    feeding.await.context("the entries were not all sent")?;
    Ok(outcome)
}

impl Done {
    fn json(&self) -> Value {
        let not_deleted = self.not_deleted.iter();
        let not_deleted = not_deleted.map(|(id, status)| json!({ "id": id, "status": json::status(status) }));
        json!({
            "created": self.created,
            "changed": self.changed,
            "deleted": self.deleted,
            "same": self.same,
            "kept": self.kept,
            "failed": self.failed.iter().map(failure).collect::<Value>(),
            "not_deleted": not_deleted.collect::<Value>(),
        })
    }

    fn tell(&self, to: &mut dyn Write) -> io::Result<()> {
        writeln!(to, "{} created, {} changed, {} deleted", self.created, self.changed, self.deleted)?;
        tell_failed(to, &self.failed)?;
        shown(to, &self.not_deleted, |to, (id, status)| {
            writeln!(to, "{}", plain::line(&format!("{id}: {}", status.message)))
        })
    }
}

/// The first of a list, and how many more there are.
fn shown<T>(
    to: &mut dyn Write,
    all: &[T],
    mut line: impl FnMut(&mut dyn Write, &T) -> io::Result<()>,
) -> io::Result<()> {
    for one in all.iter().take(SHOWN) {
        line(to, one)?;
    }
    match all.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => writeln!(to, "  and {more} more of these; -o json prints all"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, path: &str, uid: u32) -> types::Entry {
        let spiffe_id = |path: &str| {
            Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
        };
        types::Entry {
            id: id.to_owned(),
            spiffe_id: spiffe_id(path),
            parent_id: spiffe_id("/node"),
            selectors: vec![
                types::Selector { r#type: "unix".to_owned(), value: format!("uid:{uid}") },
                types::Selector { r#type: "unix".to_owned(), value: "path:/a".to_owned() },
            ],
            ..types::Entry::default()
        }
    }

    fn planned(file: Vec<types::Entry>, server: Vec<types::Entry>, prune: Option<EntryFilter>) -> Plan {
        let mut wanted = Wanted::new(Vec::new(), prune);
        for (line, entry) in file.into_iter().enumerate() {
            wanted.by_triple.insert(triple(&entry), line);
            if !entry.id.is_empty() {
                wanted.by_id.insert(entry.id.clone(), line);
            }
            wanted.items.push(Item { line, entry, options: Options::default(), sets_options: false });
        }
        let others: Vec<Other> = server.into_iter().filter_map(|entry| wanted.meet(entry)).collect();
        wanted.plan(others)
    }

    /// The ids that are created, changed and deleted.
    fn plan(
        file: Vec<types::Entry>,
        server: Vec<types::Entry>,
        prune: Option<EntryFilter>,
    ) -> [Vec<String>; 3] {
        let plan = planned(file, server, prune);
        [
            plan.creates().iter().map(|item| item.entry.id.clone()).collect(),
            plan.change.iter().map(|(item, _)| item.entry.id.clone()).collect(),
            plan.delete.iter().map(|other| other.id.clone()).collect(),
        ]
    }

    fn check(
        file: Vec<types::Entry>,
        server: Vec<types::Entry>,
        prune: Option<EntryFilter>,
        expected: [&[&str]; 3],
    ) {
        let expected = expected.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<String>>());
        assert_eq!(plan(file, server, prune), expected);
    }

    fn all() -> EntryFilter {
        EntryFilter::default()
    }

    #[test]
    fn what_is_taken_over_is_created_once_it_was_given_up() {
        let file = || vec![entry("a", "/a", 9), entry("", "/a", 1), entry("d", "/d", 4)];
        let plan = planned(file(), vec![entry("a", "/a", 1)], None);
        assert_eq!((plan.create.len(), plan.inherit.len(), plan.change.len()), (1, 1, 1));
        assert_eq!((plan.create[0].entry.id.as_str(), plan.inherit[0].line), ("d", 1));
        // Nothing is given up where nothing is changed, or where another entry of the server is the one.
        let plan = planned(vec![entry("a", "/a", 1)], vec![entry("a", "/a", 1)], None);
        assert!(plan.is_empty());
        let plan = planned(file(), vec![entry("a", "/a", 1), entry("b", "/a", 1)], None);
        assert_eq!((plan.create.len(), plan.inherit.len(), plan.change.len()), (1, 0, 1));
    }

    #[test]
    fn a_plan_is_written_as_one_document() {
        let written = |plan: &Plan| -> Value {
            let mut to = Vec::new();
            plan.write_json(&mut to).unwrap();
            serde_json::from_slice(&to).unwrap()
        };
        let nothing = json!({ "create": [], "change": [], "delete": [], "same": 0, "kept": 0 });
        assert_eq!(written(&Plan::default()), nothing);
        let file = vec![entry("a", "/a", 9), entry("", "/a", 1), entry("d", "/d", 4)];
        let server = vec![entry("a", "/a", 1), entry("x", "/x", 7), entry("y", "/y", 8)];
        let plan = written(&planned(file, server, Some(all())));
        assert_eq!((&plan["create"][0]["id"], &plan["create"][1]["id"]), (&json!("d"), &json!("")));
        assert_eq!((&plan["change"][0]["id"], &plan["change"][0]["line"]), (&json!("a"), &json!(0)));
        assert_eq!((&plan["delete"][0]["id"], &plan["delete"][1]["id"]), (&json!("x"), &json!("y")));
    }

    #[test]
    fn nothing_in_an_entry_hides_what_is_asked() {
        let mut hostile = entry("a", "/a", 1);
        hostile.selectors[0].value = "uid:1\r\u{1b}[2K\n0 to create".to_owned();
        let mut told = Vec::new();
        planned(vec![hostile.clone()], Vec::new(), None).tell(&mut told).unwrap();
        planned(Vec::new(), vec![hostile], Some(all())).tell(&mut told).unwrap();
        let told = String::from_utf8(told).unwrap();
        assert!(!told.contains(['\r', '\u{1b}']) && told.lines().count() == 4, "{told}");
    }

    #[test]
    fn what_is_the_same_is_left_alone_whatever_the_order_of_selectors() {
        let mut turned = entry("a", "/a", 1);
        turned.selectors.reverse();
        check(vec![entry("a", "/a", 1)], vec![turned], Some(all()), [&[], &[], &[]]);
    }

    #[test]
    fn entries_are_known_by_id_else_by_parent_id_and_selectors() {
        let hinted = |mut entry: types::Entry| {
            entry.hint = "blue".to_owned();
            entry
        };
        check(vec![hinted(entry("a", "/a", 1))], vec![entry("a", "/a", 1)], None, [&[], &["a"], &[]]);
        check(vec![hinted(entry("", "/a", 1))], vec![entry("b", "/a", 1)], None, [&[], &["b"], &[]]);
        // An id that the server does not know, for an entry that it has.
        check(vec![hinted(entry("a", "/a", 1))], vec![entry("b", "/a", 1)], None, [&[], &["b"], &[]]);
        check(vec![entry("a", "/a", 2)], vec![entry("a", "/a", 1)], None, [&[], &["a"], &[]]);
        // The id decides, wherever its twin comes in the list.
        for server in [[entry("a", "/a", 1), entry("b", "/a", 2)], [entry("b", "/a", 2), entry("a", "/a", 1)]]
        {
            let file = vec![entry("a", "/a", 2)];
            check(file, server.to_vec(), Some(all()), [&[], &["a"], &["b"]]);
        }
        check(vec![entry("", "/a", 2)], vec![entry("a", "/a", 1)], None, [&[""], &[], &[]]);
    }

    #[test]
    fn only_what_may_be_pruned_is_deleted() {
        let server = || vec![entry("a", "/a", 1), entry("b", "/b", 2)];
        check(Vec::new(), server(), None, [&[], &[], &[]]);
        check(Vec::new(), server(), Some(all()), [&[], &[], &["a", "b"]]);
        let some = EntryFilter { hint: Some("blue".to_owned()), ..EntryFilter::default() };
        let hinted = types::Entry { hint: "blue".to_owned(), ..entry("c", "/c", 3) };
        let both = server().into_iter().chain([hinted]).collect();
        check(Vec::new(), both, Some(some), [&[], &[], &["c"]]);
        let mut token = entry("t", "/node-1", 1);
        token.selectors = vec![types::Selector {
            r#type: "spiffe_id".to_owned(),
            value: "spiffe://example.org/node".to_owned(),
        }];
        check(Vec::new(), vec![token], Some(all()), [&[], &[], &[]]);
    }

    #[test]
    fn every_field_counts() {
        let base = entry("a", "/a", 1);
        let compare = |entry: types::Entry, options: Options| {
            let ours = Item { line: 1, entry, options, sets_options: false };
            let theirs = Options { key_scope: KeyScope::Node.into(), ..Options::default() };
            changes(&base, theirs, &ours).iter().map(|change| change.field).collect::<Vec<_>>()
        };
        let check = |field: &str, edit: fn(&mut types::Entry)| {
            let mut other = base.clone();
            edit(&mut other);
            assert_eq!(compare(other, Options::default()), [field]);
        };
        let strict = Options { key_scope: KeyScope::Instance.into(), strict: true, ..Options::default() };
        assert_eq!(compare(base.clone(), strict), ["key_scope", "strict"]);
        check("spiffe_id", |e| e.spiffe_id = None);
        check("parent_id", |e| e.parent_id = None);
        check("selectors", |e| e.selectors.clear());
        check("x509_svid_ttl", |e| e.x509_svid_ttl = 1);
        check("jwt_svid_ttl", |e| e.jwt_svid_ttl = 1);
        check("federates_with", |e| e.federates_with.push("b".to_owned()));
        check("admin", |e| e.admin = true);
        check("downstream", |e| e.downstream = true);
        check("expires_at", |e| e.expires_at = 1);
        check("dns_names", |e| e.dns_names.push("b".to_owned()));
        check("store_svid", |e| e.store_svid = true);
        check("hint", |e| e.hint.push('b'));
        check("jwt_svid_include_jti", |e| {
            e.additional_attributes.get_or_insert_default().jwt_svid_include_jti = true;
        });
        check("disable_x509_svid_prefetch", |e| {
            e.additional_attributes.get_or_insert_default().disable_x509_svid_prefetch = true;
        });
        // The server's own fields are not the file's to say.
        let mut later = base.clone();
        (later.revision_number, later.created_at) = (9, 9);
        later.additional_attributes = Some(types::entry::AdditionalAttributes::default());
        assert_eq!(compare(later, Options::default()), Vec::<&str>::new());
    }
}
