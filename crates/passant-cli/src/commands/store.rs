//! `passant store`: back up a server's state, restore it, check it.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use passant_core::Host;
use passant_proto::store::BackupRequest;
use passant_server::Config;
use passant_server::backup::{self, Header};
use passant_server::inspect;
use passant_server::restore::{Order, Restored, UnspentTokens, restore};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::args::{Restore, ServerSocket, Store};
use crate::connect::{Server, refused};
use crate::render::{Output, fields};

pub(crate) async fn run(command: Store, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    match command {
        Store::Backup { file, force } => make_backup(&file, force, socket, out).await,
        Store::Restore(args) => bring_back(args, out).await,
        Store::Check { what } => check(&what, out),
    }
}

/// Reads a backup or a data directory, and fails when there is a fault.
fn check(path: &Path, out: &mut Output) -> anyhow::Result<()> {
    let findings = match path.is_dir() {
        true => inspect::data_dir(path, &Host::system()),
        false => inspect::backup_file(path),
    };
    let rows = findings.iter().map(|finding| {
        let verdict = if finding.is_fault { "FAULT" } else { "ok" };
        vec![finding.part.to_owned(), verdict.to_owned(), finding.says.clone()]
    });
    match findings.iter().filter(|finding| finding.is_fault).count() {
        0 => {}
        1 => out.fail(anyhow!("1 fault in {}", path.display())),
        faults => out.fail(anyhow!("{faults} faults in {}", path.display())),
    }
    out.table(|| json!({ "findings": findings }), &["PART", "", "SAYS"], rows)
}

async fn bring_back(args: Restore, out: &mut Output) -> anyhow::Result<()> {
    let (data_dir, trust_domain) = match (args.config, args.data_dir, args.trust_domain) {
        (Some(file), _, _) => {
            let config = Config::load(&file)?;
            let data_dir = config.data_dir.context("the configuration names no data_dir to restore into")?;
            (data_dir, config.trust_domain)
        }
        (None, Some(data_dir), Some(trust_domain)) => (data_dir, trust_domain),
        (None, _, _) => bail!("name --config, or --data-dir and --trust-domain"),
    };
    let tokens = if args.keep_tokens { UnspentTokens::Keep } else { UnspentTokens::Void };
    let order = Order { data_dir: data_dir.clone(), trust_domain, backup: args.backup, tokens };
    let restored = restore(order, Host::system()).await?;
    out.print(|| json!(restored), |to| tell(to, &data_dir, &restored))
}

/// What was restored; and what was not, with what to do about it.
fn tell(to: &mut dyn Write, data_dir: &Path, restored: &Restored) -> std::io::Result<()> {
    let made_at = restored.backup.made_at;
    writeln!(to, "Restored into {}:\n", data_dir.display())?;
    let holds = restored.holds;
    fields(
        to,
        &[
            ("backup made at", &made_at),
            ("lineage", &restored.cursor.lineage),
            ("revision", &restored.cursor.revision),
            ("entries", &holds.entries),
            ("nodes", &holds.nodes),
            ("join tokens", &holds.join_tokens),
            ("authorities", &holds.authorities),
            ("bundles", &holds.bundles),
        ],
    )?;
    tell_again(to, restored)?;
    tell_lost(to, restored)?;
    if !restored.keys_missing.is_empty() {
        list(
            to,
            "The private keys of these active authorities are not in keys.json",
            &restored.keys_missing,
        )?;
        writeln!(
            to,
            "  Put back the keys.json that belongs to them. If it is lost for good, start the server once with\n               accept_lost_keys = true: it then makes new authorities, and the nodes need the new bundle."
        )?;
    }
    writeln!(to, "\nNow start the server, and make a new backup.")
}

fn tell_again(to: &mut dyn Write, restored: &Restored) -> std::io::Result<()> {
    let again = &restored.again;
    list(to, "Banned again, as the decision record tells", &again.banned)?;
    list(to, "Evicted again", &again.evicted)?;
    list(to, "Entries deleted again", &again.deleted_entries)?;
    list(to, "Federation ended again", &again.ended_federation)?;
    list(to, "Foreign bundles deleted again", &again.deleted_bundles)?;
    list(to, "Agents whose renewed SVIDs are accepted", &again.renewed)?;
    list(to, "Stopped again", &again.stopped)?;
    list(to, "Stops ended again", &again.resumed)?;
    list(to, "Authorities tainted again", &again.tainted_authorities)?;
    list(to, "Authorities revoked again: what they signed is not believed", &again.revoked_authorities)?;
    list(
        to,
        "Appended authorities taken out of the bundle again: append anew what was appended anew since",
        &again.removed_authorities,
    )
}

fn tell_lost(to: &mut dyn Write, restored: &Restored) -> std::io::Result<()> {
    let (lost, record) = (&restored.lost, &restored.record);
    list(
        to,
        "Lost agents, which attested after the backup: they attest again, by join_token with a new token",
        &lost.agents,
    )?;
    let entries: Vec<String> =
        lost.entries.iter().map(|(id, spiffe_id)| format!("{id}  {spiffe_id}")).collect();
    list(to, "Lost entries, made after the backup: register them again with passant entry create", &entries)?;
    list(
        to,
        "Entries changed after the backup are as they were: passant entry update",
        &lost.changed_entries,
    )?;
    list(
        to,
        "Foreign bundles set by hand after the backup, and not restored as they were before: set them anew, unless they are \
         fetched",
        &lost.bundles,
    )?;
    list(
        to,
        "Lost authorities, made after the backup: what they signed is no longer believed, and agents that hold such an SVID \
         attest again once it has expired",
        &lost.authorities,
    )?;
    if lost.join_tokens > 0 {
        writeln!(
            to,
            "\n{} join tokens are void, since they may have been spent: make new ones with passant token generate",
            lost.join_tokens
        )?;
    }
    writeln!(to, "\nNot known, and so not brought back:")?;
    for why in &record.trouble {
        writeln!(to, "  {why}")?;
    }
    let until = match (&record.trouble[..], record.ends) {
        ([], Some(ends)) => ends,
        _ => restored.backup.made_at,
    };
    writeln!(
        to,
        "  bans, evictions and deletions of entries after {until}: passant agent ban, agent evict, entry delete\n  entries \
         made or changed after {} for which nothing was issued\n  authorities revoked after {}: replace them before the \
         server is started, see SECURITY.md",
        restored.backup.made_at, restored.backup.made_at
    )
}

/// How many of a list people are shown; programs get all.
const SHOWN: usize = 20;

fn list<T: std::fmt::Display>(to: &mut dyn Write, what: &str, items: &[T]) -> std::io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(to, "\n{what} ({}):", items.len())?;
    for item in items.iter().take(SHOWN) {
        writeln!(to, "  {item}")?;
    }
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(to, "  and {more} more; -o json prints all"),
    }
}

/// Takes a backup into a file of another name, and puts it in place once it was read back whole.
async fn make_backup(
    file: &Path,
    force: bool,
    socket: &ServerSocket,
    out: &mut Output,
) -> anyhow::Result<()> {
    if !force && file.symlink_metadata().is_ok() {
        bail!("{} exists: choose another name, or replace it with --force", file.display());
    }
    let server = Server::connect(socket).await?;
    let failed = || format!("failed to write {}", file.display());
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made with mode 0600, and removed again on any error.
    let mut next = tempfile::Builder::new()
        .prefix(".passant-backup-")
        .suffix(".unfinished")
        .tempfile_in(dir)
        .with_context(failed)?;
    let mut pieces = server.store().backup(BackupRequest {}).await.map_err(refused)?.into_inner();
    let mut bytes = 0_usize;
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        next.write_all(&piece.data).with_context(failed)?;
        bytes += piece.data.len();
    }
    next.as_file().sync_all().with_context(failed)?;
    // Read back from the disk: what cannot be restored is no backup.
    let header = backup::verify(next.path()).context("what the server sent is no sound backup")?;
    put_in_place(next, file, force).with_context(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(failed)?;
    out.print(
        || with(json!({ "file": file, "bytes": bytes }), &header),
        |to| {
            fields(to, &[("file", &file.display()), ("bytes", &bytes)])?;
            describe(to, &header)?;
            writeln!(
                to,
                "\nThe private keys of the authorities are not in it: keep a copy of keys.json from the server's data \
                 directory as well,\nas the secret it is. `passant store restore` needs both."
            )
        },
    )
}

fn put_in_place(next: NamedTempFile, file: &Path, force: bool) -> std::io::Result<()> {
    let placed = if force { next.persist(file) } else { next.persist_noclobber(file) };
    placed.map(drop).map_err(|error| error.error)
}

/// For people: what a backup is of, and what it holds.
fn describe(to: &mut dyn Write, header: &Header) -> std::io::Result<()> {
    let holds = header.holds;
    fields(
        to,
        &[
            ("trust domain", &header.trust_domain),
            ("revision", &header.revision),
            ("made at", &header.made_at),
            ("by version", &header.server_version),
            ("entries", &holds.entries),
            ("nodes", &holds.nodes),
            ("join tokens", &holds.join_tokens),
            ("authorities", &holds.authorities),
            ("bundles", &holds.bundles),
        ],
    )
}

/// For programs: the same beside what is in `json`.
fn with(mut json: Value, header: &Header) -> Value {
    json["backup"] = json!(header);
    json
}
