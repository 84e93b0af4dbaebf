//! `passant store`: back up a server's state.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use passant_proto::store::BackupRequest;
use passant_server::backup::{self, Header};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::args::{ServerSocket, Store};
use crate::connect::{Server, refused};
use crate::render::{Output, fields};

pub(crate) async fn run(command: Store, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    match command {
        Store::Backup { file, force } => make_backup(&file, force, socket, out).await,
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
