//! `passant entry import`: how does a file of entries become entries of the server?

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use passant_proto::convert;
use serde_json::json;

use super::batch::{self, Batches, Failed, How, Item, Outcome};
use crate::args::EntryImport;
use crate::connect::Server;
use crate::entry_file::{self, Written};
use crate::json;
use crate::plain;
use crate::progress::Progress;
use crate::render::Output;

/// Faults that are told of a file; after so many the rest of it is not read.
const FAULTS: usize = 20;

pub(super) async fn run(args: EntryImport, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let file = EntryFile::open(&args.file)?;
    // All of it is read before anything is written: a file that is cut off changes nothing.
    let mut count = 0;
    file.read(args.skip_unknown_fields, |_| {
        count += 1;
        Ok(())
    })?;
    let (mut batches, queue) = Batches::new();
    let skip = args.skip_unknown_fields;
    let reading = tokio::task::spawn_blocking(move || {
        file.read(skip, |written| match batches.add(item(written)) {
            true => Ok(()),
            false => Err(anyhow!("the import ended early")),
        })?;
        batches.end();
        anyhow::Ok(())
    });
    let mut progress = Progress::of("entries imported", count);
    let outcome = batch::write(server, How::Create, queue, &mut progress).await;
    drop(progress);
    // What the server said explains more than that nobody read on.
    let outcome = outcome?;
    reading.await.context("the file was not read to its end")??;
    tell(&outcome, out)
}

fn item(written: Written) -> Item {
    let Written { entry, options, line, unknown: _ } = written;
    Item { line, entry, options, sets_options: false }
}

fn tell(outcome: &Outcome, out: &mut Output) -> anyhow::Result<()> {
    let Outcome { done, existing, failed } = outcome;
    if !failed.is_empty() {
        out.fail(anyhow!("{} entries were refused; mend them in the file and run it again", failed.len()));
    }
    out.print(
        || json!({ "created": done, "existing": existing, "failed": failed.iter().map(failure).collect::<serde_json::Value>() }),
        |to| {
            writeln!(to, "{done} entries created")?;
            if *existing > 0 {
                writeln!(
                    to,
                    "{existing} were there already, with the same parent, SPIFFE ID and selectors; they stay as they are \
                     (passant entry apply changes them)"
                )?;
            }
            tell_failed(to, failed)
        },
    )
}

/// For programs: an entry that was refused.
pub(super) fn failure(failed: &Failed) -> serde_json::Value {
    let Failed { line, id, spiffe_id, status } = failed;
    json!({ "line": line, "id": id, "spiffe_id": spiffe_id, "status": json::status(status) })
}

/// For people: the first entries that were refused.
pub(super) fn tell_failed(to: &mut dyn Write, failed: &[Failed]) -> io::Result<()> {
    for Failed { line, spiffe_id, status, .. } in failed.iter().take(FAULTS) {
        let message = &status.message;
        writeln!(to, "{}", plain::line(&format!("line {line}: {spiffe_id}: {message}")))?;
    }
    match failed.len().saturating_sub(FAULTS) {
        0 => Ok(()),
        more => writeln!(to, "and {more} more; -o json prints all"),
    }
}

/// A file that can be read more than once.
pub(super) struct EntryFile {
    name: PathBuf,
    file: File,
}

impl EntryFile {
    /// Opens the file. Standard input, `-`, and what else cannot be read twice is kept in a temporary file first.
    pub(super) fn open(name: &Path) -> anyhow::Result<Self> {
        let failed = || format!("failed to read {}", name.display());
        let name = name.to_owned();
        if name != Path::new("-") {
            let file = File::open(&name).with_context(failed)?;
            if file.metadata().with_context(failed)?.is_file() {
                return Ok(Self { name, file });
            }
            return Self::kept(name, file);
        }
        Self::kept(name, io::stdin())
    }

    fn kept(name: PathBuf, mut from: impl io::Read) -> anyhow::Result<Self> {
        let mut file = tempfile::tempfile().context("failed to make a temporary file for what is read")?;
        io::copy(&mut from, &mut file).with_context(|| format!("failed to read {}", name.display()))?;
        Ok(Self { name, file })
    }

    /// Reads it from its beginning, and checks of each entry what can be checked without the server.
    pub(super) fn read(
        &self,
        skip_unknown_fields: bool,
        mut take: impl FnMut(Written) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut file = &self.file;
        let mut faults = Vec::new();
        file.rewind().with_context(|| format!("failed to read {}", self.name.display()))?;
        entry_file::read(file, |written| {
            if let Some(fault) = fault(&written, skip_unknown_fields) {
                faults.push(format!("line {}: {fault}", written.line));
                if faults.len() == FAULTS {
                    bail!("too many faults to go on");
                }
                return Ok(());
            }
            if faults.is_empty() { take(written) } else { Ok(()) }
        })
        .or_else(|error| if faults.is_empty() { Err(error) } else { Ok(()) })
        .with_context(|| format!("failed to read {}", self.name.display()))?;
        match &faults[..] {
            [] => Ok(()),
            faults => bail!(
                "{} has faults, and nothing was changed:\n  {}",
                self.name.display(),
                faults.join("\n  ")
            ),
        }
    }
}

/// What is wrong with an entry, whatever the server has.
fn fault(written: &Written, skip_unknown_fields: bool) -> Option<String> {
    if !skip_unknown_fields && let Some(name) = written.unknown.first() {
        return Some(format!(
            "\"{name}\" is no field of an entry here: take it out, or leave all such out with --skip-unknown-fields"
        ));
    }
    convert::entry::draft_from_wire(&written.entry).err().map(|malformed| malformed.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, skip_unknown_fields: bool) -> Result<Vec<usize>, String> {
        let file = EntryFile::kept(PathBuf::from("a.json"), text.as_bytes()).unwrap();
        let mut lines = Vec::new();
        for _ in 0..2 {
            lines.clear();
            file.read(skip_unknown_fields, |written| {
                lines.push(written.line);
                Ok(())
            })
            .map_err(|error| format!("{error:#}"))?;
        }
        Ok(lines)
    }

    fn entry(more: &str) -> String {
        format!(
            r#"{{"spiffe_id": "spiffe://example.org/a", "parent_id": "spiffe://example.org/n",
                "selectors": [{{"type": "unix", "value": "uid:1"}}]{more}}}"#
        )
    }

    #[test]
    fn a_file_is_read_as_often_as_needed() {
        assert_eq!(read(&format!("[{},\n{}]", entry(""), entry("")), false), Ok(vec![1, 3]));
    }

    #[test]
    fn all_faults_are_told_with_their_lines() {
        let told =
            read(&format!("[{},\n{{}},\n{}]", entry(r#", "owner": "me""#), entry("")), false).unwrap_err();
        assert!(told.contains("line 1: \"owner\"") && told.contains("line 3: "), "{told}");
        assert_eq!(read(&format!("[{}]", entry(r#", "owner": "me""#)), true), Ok(vec![1]));
    }

    #[test]
    fn a_file_of_faults_is_not_read_to_its_end() {
        let told = read(&format!("[{}", "{},\n".repeat(100)), false).unwrap_err();
        assert!(told.contains("line 20: ") && !told.contains("line 21: "), "{told}");
    }
}
