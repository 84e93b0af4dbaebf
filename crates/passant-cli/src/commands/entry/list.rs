//! `passant entry list`, `count`, `export`: how are entries read from the server, however many there are?

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use passant_core::{SpiffeId, TrustDomain};
use passant_proto::convert::filter::Relation;
use passant_proto::convert::id;
use passant_proto::entry::entry_client::EntryClient;
use passant_proto::entry::{
    CountEntriesRequest, ListEntriesRequest, count_entries_request, list_entries_request,
};
use passant_proto::types;
use serde_json::json;
use tonic::transport::Channel;

use super::{end_text, options, ttl_text, wire_selectors};
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
    let told = options::of_all(server).await?;
    let mut pages = pages(server, Some(wire_filter(filter)), None);
    let mut rows = out.list("entries", &["ID", "SPIFFE ID", "PARENT ID", "SELECTORS", "X509 TTL", "ENDS"]);
    while let Some(entries) = pages.next().await? {
        rows.page(
            &entries,
            |entry| options::json(entry, told.get(&entry.id)),
            |entry| {
                vec![
                    entry.id.clone(),
                    json::spiffe_id_text(entry.spiffe_id.as_ref()),
                    json::spiffe_id_text(entry.parent_id.as_ref()),
                    json::selectors_text(&entry.selectors),
                    ttl_text(entry.x509_svid_ttl),
                    end_text(entry.expires_at),
                ]
            },
        )?;
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

/// Writes entries as a file that `import`, `apply` and, in its own shape, SPIRE read.
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
    let told = options::of_all(server).await?;
    let mut pages = pages(server, Some(wire_filter(&args.filter)), None);
    let mut count = 0;
    write!(to, "{{\"entries\":[")?;
    while let Some(entries) = pages.next().await? {
        for entry in &entries {
            write!(to, "{}", if count == 0 { "\n" } else { ",\n" })?;
            let told = told.get(&entry.id);
            let entry = match args.shape {
                Shape::Show => json::entry(entry),
                Shape::Data => json::entry_data(entry),
            };
            let entry = options::with(entry, told);
            // As the error that it is: a closed pipe is to be known as one.
            serde_json::to_writer(&mut to, &entry).map_err(io::Error::from)?;
            count += 1;
        }
        progress.add(entries.len());
    }
    writeln!(to, "\n],\"next_page_token\":\"\"}}")?;
    to.flush()?;
    Ok(count)
}

/// Whether an entry passes `filter`, as [`wire_filter`] has a server decide it. Asked here where entries are deleted: a server
/// that does not know a filter lets everything pass.
pub(super) fn passes(filter: &EntryFilter, entry: &types::Entry) -> bool {
    let is = |id: &Option<types::Spiffeid>, wanted: &Option<SpiffeId>| {
        wanted.as_ref().is_none_or(|wanted| json::spiffe_id_text(id.as_ref()) == wanted.as_str())
    };
    let holds = |matching: Match, have: BTreeSet<String>, given: BTreeSet<String>| {
        given.is_empty() || relation(matching).holds(&have, &given)
    };
    is(&entry.spiffe_id, &filter.spiffe_id)
        && is(&entry.parent_id, &filter.parent_id)
        && holds(
            filter.matching,
            entry.selectors.iter().map(|s| format!("{}:{}", s.r#type, s.value)).collect(),
            filter.selectors.iter().map(ToString::to_string).collect(),
        )
        && holds(
            filter.match_federates_with,
            entry.federates_with.iter().cloned().collect(),
            filter.federates_with.iter().map(TrustDomain::to_string).collect(),
        )
        && filter.hint.as_ref().is_none_or(|hint| *hint == entry.hint)
        && filter.downstream.is_none_or(|downstream| downstream == entry.downstream)
}

fn relation(matching: Match) -> Relation {
    match matching {
        Match::Exact => Relation::Exact,
        Match::Any => Relation::Any,
        Match::Superset => Relation::Superset,
        Match::Subset => Relation::Subset,
    }
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

#[cfg(test)]
mod tests {
    use passant_core::{EntryId, Selector, UnixTime};
    use passant_proto::convert;

    use super::*;

    fn spiffe_id(path: &str) -> SpiffeId {
        TrustDomain::parse("example.org").unwrap().join(path).unwrap()
    }

    fn entry(path: &str, selectors: &[&str], hint: &str) -> types::Entry {
        let selectors: Vec<Selector> = selectors.iter().map(|text| Selector::parse(text).unwrap()).collect();
        types::Entry {
            id: "a".to_owned(),
            spiffe_id: Some(id::to_wire(&spiffe_id(path))),
            parent_id: Some(id::to_wire(&spiffe_id("/node"))),
            selectors: wire_selectors(&selectors),
            hint: hint.to_owned(),
            ..types::Entry::default()
        }
    }

    #[test]
    fn what_passes_here_passes_at_the_server() {
        let federating = types::Entry {
            federates_with: vec!["one.test".to_owned(), "two.test".to_owned()],
            downstream: true,
            ..entry("/b", &["unix:uid:1"], "")
        };
        let entries = [
            entry("/a", &["unix:uid:1", "unix:gid:1"], "blue"),
            entry("/a", &["unix:uid:2"], ""),
            entry("/b", &["unix:uid:1"], "green"),
            federating,
        ];
        let selecting = |matching, texts: &[&str]| EntryFilter {
            selectors: texts.iter().map(|text| Selector::parse(text).unwrap()).collect(),
            matching,
            ..EntryFilter::default()
        };
        let with = |match_federates_with, names: &[&str]| EntryFilter {
            federates_with: names.iter().map(|name| TrustDomain::parse(name).unwrap()).collect(),
            match_federates_with,
            ..EntryFilter::default()
        };
        let mut filters = vec![
            EntryFilter::default(),
            EntryFilter { spiffe_id: Some(spiffe_id("/a")), ..EntryFilter::default() },
            EntryFilter { parent_id: Some(spiffe_id("/node")), ..EntryFilter::default() },
            EntryFilter { parent_id: Some(spiffe_id("/other")), ..EntryFilter::default() },
            EntryFilter { hint: Some("blue".to_owned()), ..EntryFilter::default() },
            EntryFilter { downstream: Some(true), ..EntryFilter::default() },
            EntryFilter { downstream: Some(false), ..EntryFilter::default() },
        ];
        for matching in [Match::Exact, Match::Any, Match::Superset, Match::Subset] {
            filters.push(selecting(matching, &["unix:uid:1"]));
            filters.push(selecting(matching, &["unix:uid:1", "unix:gid:1", "unix:gid:2"]));
            filters.push(with(matching, &["one.test"]));
            filters.push(with(matching, &["one.test", "two.test", "three.test"]));
        }
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let mut passed = 0;
        for filter in &filters {
            let wire = wire_filter(filter);
            let theirs = convert::filter::EntryFilter::from_list(&trust_domain, Some(&wire)).unwrap();
            for entry in &entries {
                let draft = convert::entry::draft_from_wire(entry).unwrap();
                let id = EntryId::parse("a").unwrap();
                let registered = draft.register(&trust_domain, id, 1, UnixTime::from_secs(1)).unwrap();
                let passes = passes(filter, entry);
                assert_eq!(passes, theirs.passes(&registered), "{filter:?} {entry:?}");
                passed += usize::from(passes);
            }
        }
        assert!(passed > entries.len() && passed < filters.len() * entries.len());
    }
}
