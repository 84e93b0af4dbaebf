//! `passant entry`: register, change, delete, show, list and count entries; entries as files.

mod apply;
mod batch;
mod import;
mod list;
mod options;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use passant_core::{EntryId, Selector, TrustDomain, UnixTime};
use passant_proto::convert::{id, selector};
use passant_proto::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, GetEntryRequest,
};
use passant_proto::options::Options;
use passant_proto::types;
use serde_json::json;
use tonic::Code;

pub(crate) use self::list::{pages, selector_match};
use super::rollout::{self, Written, awaited};
use crate::args::{Entry, EntryCreate, EntryFields, EntryFilter, EntryUpdate, ServerSocket, Wait, wrong};
use crate::connect::{Server, refused};
use crate::json;
use crate::plain;
use crate::render::{Output, fields};

pub(crate) async fn run(command: Entry, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    check(&command)?;
    let server = Server::connect(socket).await?;
    match command {
        Entry::Create(args) => create(*args, &server, out).await,
        Entry::Update(args) => update(*args, &server, out).await,
        Entry::Delete { ids, wait } => delete(&ids, wait, &server, out).await,
        Entry::Show { id } => show(&id, &server, out).await,
        Entry::List(filter) => list::list(&filter, &server, out).await,
        Entry::Count(filter) => list::count(&filter, &server, out).await,
        Entry::Export(args) => list::export(*args, &server, out).await,
        Entry::Import(args) => import::run(args, &server, out).await,
        Entry::Apply(args) => apply::run(*args, &server, out).await,
    }
}

/// What clap does not see of the arguments.
fn check(command: &Entry) -> anyhow::Result<()> {
    if let Entry::Update(args) = command
        && args.is_empty()
    {
        return Err(wrong(&["entry", "update"], "nothing to change was named"));
    }
    if let Entry::Apply(args) = command
        && !args.prune
        && args.within != EntryFilter::default()
    {
        let message = "filters say what --prune may delete; without --prune they say nothing";
        return Err(wrong(&["entry", "apply"], message));
    }
    Ok(())
}

async fn create(args: EntryCreate, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let trust_domain = args.spiffe_id.trust_domain();
    let mut entry = types::Entry {
        id: args.id.map(String::from).unwrap_or_default(),
        parent_id: Some(id::to_wire(&args.parent_id.unwrap_or_else(|| trust_domain.server_id()))),
        spiffe_id: Some(id::to_wire(&args.spiffe_id)),
        selectors: wire_selectors(&args.selectors),
        ..types::Entry::default()
    };
    take_fields(args.fields, &mut entry, &mut types::EntryMask::default());
    let (wait, what) = (args.wait, "register the entry");
    if !args.options.is_empty() {
        let created = options::create(entry, args.options, server).await?;
        return one_entry(what, created, server, Vec::new(), wait, out).await;
    }
    let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
    let results = server.entries().batch_create_entry(request).await.map_err(refused)?.into_inner().results;
    let result = results.into_iter().next().map(|result| (result.status, result.entry, None));
    one_entry(what, result, server, Vec::new(), wait, out).await
}

async fn update(args: EntryUpdate, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let mut mask = types::EntryMask {
        spiffe_id: args.spiffe_id.is_some(),
        parent_id: args.parent_id.is_some(),
        selectors: !args.selectors.is_empty(),
        ..types::EntryMask::default()
    };
    let mut entry = types::Entry {
        id: String::from(args.id.clone()),
        spiffe_id: args.spiffe_id.as_ref().map(id::to_wire),
        parent_id: args.parent_id.as_ref().map(id::to_wire),
        selectors: wire_selectors(&args.selectors),
        ..types::Entry::default()
    };
    let mut parents = Vec::new();
    let moves = args.wait.within.is_some() && args.parent_id.is_some();
    if sets_attributes(&args.fields) || moves {
        // The two flags travel in one message, so the one that is not named must be read first.
        let request = GetEntryRequest { id: String::from(args.id.clone()), output_mask: None };
        let present = server.entries().get_entry(request).await.map_err(refused);
        let present =
            present.context("failed to change the entry; passant entry list shows which there are")?;
        let present = present.into_inner();
        parents.push(json::spiffe_id_text(present.parent_id.as_ref()));
        entry.additional_attributes = present.additional_attributes;
    }
    let what = "change the entry";
    let mut set = None;
    if !args.options.is_empty() {
        let (status, told) = options::update(&args.id, args.options, server).await?;
        if status.code != 0 {
            return one_entry(what, Some((Some(status), None, None)), server, parents, args.wait, out).await;
        }
        set = Some(told);
    }
    take_fields(args.fields, &mut entry, &mut mask);
    if set.is_some() && mask == types::EntryMask::default() {
        let request = GetEntryRequest { id: String::from(args.id), output_mask: None };
        let entry = server.entries().get_entry(request).await.map_err(refused)?.into_inner();
        let result = (Some(types::Status::default()), Some(entry), set);
        return one_entry(what, Some(result), server, parents, args.wait, out).await;
    }
    let request = BatchUpdateEntryRequest { entries: vec![entry], input_mask: Some(mask), output_mask: None };
    let results = server.entries().batch_update_entry(request).await.map_err(refused)?.into_inner().results;
    let told = match set {
        Some(told) => Some(told),
        None => options::of_one(&args.id, server).await?,
    };
    let result = results.into_iter().next().map(|result| (result.status, result.entry, told));
    one_entry(what, result, server, parents, args.wait, out).await
}

/// What became of one entry, and its options if the server tells of any.
type OneResult = (Option<types::Status>, Option<types::Entry>, Option<Options>);

/// Prints the one result of a batch, and fails if it was refused; waits for agents if that was asked for, for those of
/// the parents before too.
async fn one_entry(
    what: &str,
    result: Option<OneResult>,
    server: &Server,
    mut parents: Vec<String>,
    wait: Wait,
    out: &mut Output,
) -> anyhow::Result<()> {
    let Some((status, entry, options)) = result else {
        bail!("failed to {what}: the server answered with no result");
    };
    let status = status.unwrap_or_default();
    let entry = entry.unwrap_or_default();
    if status.code != 0 {
        let there = if entry.id.is_empty() { String::new() } else { format!("; its id is {}", entry.id) };
        bail!("failed to {what}{}: {}{there}", which_there_are(&status), status.message);
    }
    parents.push(json::spiffe_id_text(entry.parent_id.as_ref()));
    let came = awaited(server, Written { entries: vec![entry.id.clone()], parents }, wait).await?;
    if came.as_ref().is_some_and(rollout::is_pending) {
        out.note();
    }
    out.print(
        || {
            let entry = options::json(&entry, options.as_ref());
            let mut json = json!({ "results": [{ "status": json::status(&status), "entry": entry }] });
            if let Some(came) = &came {
                json["rollout"] = rollout::json(came);
            }
            json
        },
        |to| {
            print_entry(to, &entry, options.as_ref())?;
            came.as_ref().map_or(Ok(()), |came| rollout::tell(to, came))
        },
    )
}

/// The parents of those of these entries that are there.
async fn parents_of(ids: &[EntryId], server: &Server) -> anyhow::Result<Vec<String>> {
    let mut parents = Vec::new();
    for id in ids {
        let request = GetEntryRequest { id: id.to_string(), output_mask: None };
        match server.entries().get_entry(request).await {
            Ok(entry) => parents.push(json::spiffe_id_text(entry.into_inner().parent_id.as_ref())),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(refused(status)),
        }
    }
    Ok(parents)
}

async fn delete(ids: &[EntryId], wait: Wait, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    // Whom they belong to, nobody can say any more once they are gone.
    let parents = if wait.within.is_some() { parents_of(ids, server).await? } else { Vec::new() };
    let request = BatchDeleteEntryRequest { ids: ids.iter().map(ToString::to_string).collect() };
    let results = server.entries().batch_delete_entry(request).await.map_err(refused)?.into_inner().results;
    let statuses: Vec<(String, types::Status)> =
        results.into_iter().map(|result| (result.id, result.status.unwrap_or_default())).collect();
    let failed: Vec<&types::Status> =
        statuses.iter().map(|(_, status)| status).filter(|status| status.code != 0).collect();
    if !failed.is_empty() {
        let hint = failed.iter().map(|status| which_there_are(status)).max().unwrap_or_default();
        out.fail(anyhow!("failed to delete {} of {} entries{hint}", failed.len(), statuses.len()));
    }
    let came = if parents.is_empty() {
        None
    } else {
        awaited(server, Written { entries: Vec::new(), parents }, wait).await?
    };
    if came.as_ref().is_some_and(rollout::is_pending) {
        out.note();
    }
    out.print(
        || {
            let results =
                statuses.iter().map(|(id, status)| json!({ "id": id, "status": json::status(status) }));
            let mut json = json!({ "results": results.collect::<serde_json::Value>() });
            if let Some(came) = &came {
                json["rollout"] = rollout::json(came);
            }
            json
        },
        |to| {
            for (id, status) in &statuses {
                let what = if status.code == 0 { "deleted" } else { &status.message };
                writeln!(to, "{id}  {}", plain::line(what))?;
            }
            came.as_ref().map_or(Ok(()), |came| rollout::tell(to, came))
        },
    )
}

/// What helps where there is no such entry.
fn which_there_are(status: &types::Status) -> &'static str {
    if Code::from_i32(status.code) == Code::NotFound {
        "; passant entry list shows which there are"
    } else {
        ""
    }
}

async fn show(id: &EntryId, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let request = GetEntryRequest { id: id.to_string(), output_mask: None };
    let entry = server
        .entries()
        .get_entry(request)
        .await
        .map_err(refused)
        .with_context(|| no_entry(id))?
        .into_inner();
    let told = options::of_one(id, server).await?;
    out.print(|| options::json(&entry, told.as_ref()), |to| print_entry(to, &entry, told.as_ref()))
}

/// What is said of an entry that cannot be shown.
fn no_entry(id: &EntryId) -> String {
    format!("failed to show entry {id}; passant entry list shows which there are")
}

fn print_entry(
    to: &mut dyn std::io::Write,
    entry: &types::Entry,
    options: Option<&Options>,
) -> std::io::Result<()> {
    let more = entry.additional_attributes.unwrap_or_default();
    let flags = [
        ("admin", entry.admin),
        ("downstream", entry.downstream),
        ("store_svid", entry.store_svid),
        ("jwt_svid_include_jti", more.jwt_svid_include_jti),
        ("disable_x509_svid_prefetch", more.disable_x509_svid_prefetch),
    ];
    let flags: Vec<&str> = flags.into_iter().filter_map(|(name, set)| set.then_some(name)).collect();
    fields(
        to,
        &[
            ("id", &entry.id),
            ("SPIFFE ID", &json::spiffe_id_text(entry.spiffe_id.as_ref())),
            ("parent ID", &json::spiffe_id_text(entry.parent_id.as_ref())),
            ("selectors", &json::selectors_text(&entry.selectors)),
            ("X509-SVID TTL", &ttl_text(entry.x509_svid_ttl)),
            ("JWT-SVID TTL", &ttl_text(entry.jwt_svid_ttl)),
            ("DNS names", &entry.dns_names.join(" ")),
            ("federates with", &entry.federates_with.join(" ")),
            ("hint", &entry.hint),
            ("flags", &flags.join(" ")),
            ("options", &options::text(options)),
            ("ends", &end_text(entry.expires_at)),
            ("revision", &entry.revision_number),
            ("created", &UnixTime::from_secs(entry.created_at)),
        ],
    )
}

fn ttl_text(secs: i32) -> String {
    if secs == 0 { "default".to_owned() } else { format!("{secs}s") }
}

fn end_text(secs: i64) -> String {
    if secs == 0 { "never".to_owned() } else { UnixTime::from_secs(secs).to_string() }
}

/// Puts the flags that were given into `entry`, and notes them in `mask`.
fn take_fields(fields: EntryFields, entry: &mut types::Entry, mask: &mut types::EntryMask) {
    let sets_attributes = sets_attributes(&fields);
    if let Some(ttl) = fields.x509_svid_ttl {
        (entry.x509_svid_ttl, mask.x509_svid_ttl) = (wire_secs(ttl), true);
    }
    if let Some(ttl) = fields.jwt_svid_ttl {
        (entry.jwt_svid_ttl, mask.jwt_svid_ttl) = (wire_secs(ttl), true);
    }
    if !fields.federates_with.is_empty() {
        entry.federates_with = fields.federates_with.iter().map(TrustDomain::to_string).collect();
        mask.federates_with = true;
    }
    if !fields.dns_names.is_empty() {
        (entry.dns_names, mask.dns_names) = (fields.dns_names, true);
    }
    if let Some(end) = fields.expires_at {
        (entry.expires_at, mask.expires_at) = (end.secs(), true);
    }
    if let Some(hint) = fields.hint {
        (entry.hint, mask.hint) = (hint, true);
    }
    if let Some(admin) = fields.admin {
        (entry.admin, mask.admin) = (admin, true);
    }
    if let Some(downstream) = fields.downstream {
        (entry.downstream, mask.downstream) = (downstream, true);
    }
    if let Some(store_svid) = fields.store_svid {
        (entry.store_svid, mask.store_svid) = (store_svid, true);
    }
    if sets_attributes {
        let more = entry.additional_attributes.get_or_insert_default();
        more.jwt_svid_include_jti = fields.jwt_svid_include_jti.unwrap_or(more.jwt_svid_include_jti);
        more.disable_x509_svid_prefetch =
            fields.disable_x509_svid_prefetch.unwrap_or(more.disable_x509_svid_prefetch);
        mask.additional_attributes = true;
    }
}

fn sets_attributes(fields: &EntryFields) -> bool {
    fields.jwt_svid_include_jti.is_some() || fields.disable_x509_svid_prefetch.is_some()
}

/// Whole seconds as the wire counts them; a span too long for it becomes the longest, which the server refuses.
pub(crate) fn wire_secs(span: Duration) -> i32 {
    i32::try_from(span.as_secs()).unwrap_or(i32::MAX)
}

fn wire_selectors(selectors: &[Selector]) -> Vec<types::Selector> {
    selector::to_wire(&selectors.iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_fields_are_masked() {
        let mut entry = types::Entry::default();
        let mut mask = types::EntryMask::default();
        let fields = EntryFields {
            x509_svid_ttl: Some(Duration::from_secs(60)),
            jwt_svid_ttl: None,
            federates_with: Vec::new(),
            dns_names: Vec::new(),
            expires_at: None,
            hint: None,
            admin: Some(false),
            downstream: None,
            store_svid: None,
            jwt_svid_include_jti: None,
            disable_x509_svid_prefetch: None,
        };
        take_fields(fields, &mut entry, &mut mask);
        let expected = types::EntryMask { x509_svid_ttl: true, admin: true, ..types::EntryMask::default() };
        assert_eq!((entry.x509_svid_ttl, mask), (60, expected));
    }

    #[test]
    fn a_span_too_long_for_the_wire_does_not_wrap() {
        assert_eq!(wire_secs(Duration::MAX), i32::MAX);
    }
}
