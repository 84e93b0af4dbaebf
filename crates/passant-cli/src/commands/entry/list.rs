//! `passant entry list`, `count`, `export`: how are entries read from the server, however many there are?

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use passant_core::TrustDomain;
use passant_proto::convert::id;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::entry::{
    CountEntriesRequest, ListEntriesRequest, count_entries_request, list_entries_request,
};
use passant_proto::types;
use serde_json::json;
use tonic::transport::Channel;

use super::{end_text, ttl_text, wire_selectors};
use crate::args::{EntryFilter, Export, Match, Shape};
use crate::connect::{Server, refused};
use crate::json;
use crate::progress::Progress;
use crate::render::Output;

/// How many entries are asked for at once. The server sends fewer where they are large.
const PAGE: i32 = 1_000;

/// The entries that pass `filter`, with the fields of `output_mask`, page by page.
///
/// Each page is of one moment, the whole is not: what is made or deleted meanwhile may be in it or not.
pub(crate) fn pages(
    server: &Server,
    filter: Option<list_entries_request::Filter>,
    output_mask: Option<types::EntryMask>,
) -> Pages {
    Pages { client: server.entries(), filter, output_mask, next: Some(String::new()) }
}

/// A list that is being read.
pub(crate) struct Pages {
    client: EntryClient<Channel>,
    filter: Option<list_entries_request::Filter>,
    output_mask: Option<types::EntryMask>,
    /// Names the next page; none after the last.
    next: Option<String>,
}

impl Pages {
    /// The next page, or none after the last.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Vec<types::Entry>>> {
        let Some(page_token) = self.next.take() else { return Ok(None) };
        let request = ListEntriesRequest {
            filter: self.filter.clone(),
            output_mask: self.output_mask,
            page_size: PAGE,
            page_token,
        };
        let page = self.client.list_entries(request).await.map_err(refused)?.into_inner();
        self.next = Some(page.next_page_token).filter(|token| !token.is_empty());
        Ok(Some(page.entries))
    }
}

pub(super) async fn list(filter: &EntryFilter, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut pages = pages(server, Some(wire_filter(filter)), None);
    let mut rows = out.list("entries", &["ID", "SPIFFE ID", "PARENT ID", "SELECTORS", "X509 TTL", "ENDS"]);
    while let Some(entries) = pages.next().await? {
        rows.page(&entries, json::entry, |entry| {
            vec![
                entry.id.clone(),
                json::spiffe_id_text(entry.spiffe_id.as_ref()),
                json::spiffe_id_text(entry.parent_id.as_ref()),
                json::selectors_text(&entry.selectors),
                ttl_text(entry.x509_svid_ttl),
                end_text(entry.expires_at),
            ]
        })?;
    }
    rows.end()
}

pub(super) async fn count(filter: &EntryFilter, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let list_entries_request::Filter {
        by_spiffe_id,
        by_parent_id,
        by_selectors,
        by_federates_with,
        by_hint,
        by_downstream,
    } = wire_filter(filter);
    let filter = count_entries_request::Filter {
        by_spiffe_id,
        by_parent_id,
        by_selectors,
        by_federates_with,
        by_hint,
        by_downstream,
    };
    let request = CountEntriesRequest { filter: Some(filter) };
    let count = server.entries().count_entries(request).await.map_err(refused)?.into_inner().count;
    out.print(|| json!({ "count": count }), |to| writeln!(to, "{count}"))
}

/// Writes entries as a file that `import`, `apply` and SPIRE read.
pub(super) async fn export(args: Export, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let Some(file) = args.file.as_deref().filter(|file| *file != Path::new("-")) else {
        return write(&args, server, out.writer()).await.map(drop);
    };
    if !args.force && file.symlink_metadata().is_ok() {
        bail!("{} exists: choose another name, or replace it with --force", file.display());
    }
    let failed = || format!("failed to write {}", file.display());
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Removed again on any error: whoever finds the file finds it whole.
    let mut next =
        tempfile::Builder::new().prefix(".passant-entries-").tempfile_in(dir).with_context(failed)?;
    let count = write(&args, server, next.as_file_mut()).await?;
    next.as_file().sync_all().with_context(failed)?;
    let placed = if args.force { next.persist(file) } else { next.persist_noclobber(file) };
    placed.map_err(|error| error.error).with_context(failed)?;
    out.print(
        || json!({ "file": file, "entries": count }),
        |to| writeln!(to, "wrote {count} entries to {}", file.display()),
    )
}

/// One entry on a line, so that files can be compared and kept with their history.
async fn write(args: &Export, server: &Server, to: &mut dyn Write) -> anyhow::Result<usize> {
    let mut to = BufWriter::new(to);
    let mut progress = Progress::new("entries written");
    let mut pages = pages(server, Some(wire_filter(&args.filter)), None);
    let mut count = 0;
    write!(to, "{{\"entries\":[")?;
    while let Some(entries) = pages.next().await? {
        for entry in &entries {
            write!(to, "{}", if count == 0 { "\n" } else { ",\n" })?;
            let entry = match args.shape {
                Shape::Show => json::entry(entry),
                Shape::Data => json::entry_data(entry),
            };
            serde_json::to_writer(&mut to, &entry)?;
            count += 1;
        }
        progress.add(entries.len());
    }
    writeln!(to, "\n],\"next_page_token\":\"\"}}")?;
    to.flush()?;
    Ok(count)
}

pub(super) fn wire_filter(filter: &EntryFilter) -> list_entries_request::Filter {
    list_entries_request::Filter {
        by_spiffe_id: filter.spiffe_id.as_ref().map(id::to_wire),
        by_parent_id: filter.parent_id.as_ref().map(id::to_wire),
        by_selectors: selector_match(&filter.selectors, filter.matching),
        by_federates_with: (!filter.federates_with.is_empty()).then(|| types::FederatesWithMatch {
            trust_domains: filter.federates_with.iter().map(TrustDomain::to_string).collect(),
            // Both kinds of match have the same numbers.
            r#match: behavior(filter.match_federates_with).into(),
        }),
        by_hint: filter.hint.clone(),
        by_downstream: filter.downstream,
    }
}

pub(crate) fn selector_match(
    selectors: &[passant_core::Selector],
    matching: Match,
) -> Option<types::SelectorMatch> {
    let selectors = wire_selectors(selectors);
    (!selectors.is_empty()).then(|| types::SelectorMatch { selectors, r#match: behavior(matching).into() })
}

fn behavior(matching: Match) -> types::selector_match::MatchBehavior {
    use types::selector_match::MatchBehavior;
    match matching {
        Match::Exact => MatchBehavior::MatchExact,
        Match::Any => MatchBehavior::MatchAny,
        Match::Superset => MatchBehavior::MatchSuperset,
        Match::Subset => MatchBehavior::MatchSubset,
    }
}
