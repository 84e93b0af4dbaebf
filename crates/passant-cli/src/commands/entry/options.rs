//! How are the options of entries given to the server, read from it, and shown?

use std::collections::BTreeMap;

use anyhow::Context;
use passant_core::EntryId;
use passant_proto::options::{
    BatchCreateEntryRequest, BatchGetOptionsRequest, BatchSetOptionsRequest, EntryWithOptions, Issuance,
    KeyScope, Options, batch_set_options_request,
};
use passant_proto::types;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

use super::OneResult;
use crate::args;
use crate::connect::{Server, refused};
use crate::json;

/// Options to ask for in one page.
const PAGE: i32 = 500;

/// Registers one entry with its options.
pub(super) async fn create(
    entry: types::Entry,
    given: args::EntryOptions,
    server: &Server,
) -> anyhow::Result<Option<OneResult>> {
    let mut options = Options::default();
    take(given, &mut options);
    let request = BatchCreateEntryRequest {
        entries: vec![EntryWithOptions { entry: Some(entry), options: Some(options) }],
    };
    let results = server.options().batch_create_entry(request).await.map_err(refused)?.into_inner().results;
    Ok(results.into_iter().next().map(|result| {
        let EntryWithOptions { entry, options } = result.entry.unwrap_or_default();
        (result.status, entry, options)
    }))
}

/// Sets those options of one entry that are given; what became of it, and all of its options.
pub(super) async fn update(
    id: &EntryId,
    given: args::EntryOptions,
    server: &Server,
) -> anyhow::Result<(types::Status, Options)> {
    // They are set whole, so those that are not named must be read first.
    let present = ask(vec![id.to_string()], server).await.map_err(refused)?;
    let mut options = present.into_values().next().unwrap_or_default();
    // What SPIRE's field says stays.
    options.issuance = Issuance::Unspecified.into();
    take(given, &mut options);
    let item = batch_set_options_request::Item { entry_id: id.to_string(), options: Some(options) };
    let request = BatchSetOptionsRequest { items: vec![item] };
    let results = server.options().batch_set_options(request).await.map_err(refused)?.into_inner().results;
    let result = results.into_iter().next().context("the server answered with no result")?;
    Ok((result.status.unwrap_or_default(), options))
}

fn take(given: args::EntryOptions, options: &mut Options) {
    if let Some(key_scope) = given.key_scope {
        let key_scope = match key_scope {
            args::KeyScope::Node => KeyScope::Node,
            args::KeyScope::Instance => KeyScope::Instance,
        };
        options.key_scope = key_scope.into();
    }
    options.strict = given.strict.unwrap_or(options.strict);
}

/// The options of one entry; `None` if the server knows of none, or does not tell.
pub(super) async fn of_one(id: &EntryId, server: &Server) -> anyhow::Result<Option<Options>> {
    let told = or_none(ask(vec![id.to_string()], server).await)?;
    Ok(told.into_values().next())
}

/// The options of all entries that have any.
pub(super) async fn of_all(server: &Server) -> anyhow::Result<BTreeMap<String, Options>> {
    or_none(ask(Vec::new(), server).await)
}

/// Of a server that has no options, SPIRE's or an older one, entries have none; nor are they shown to who may not read entries.
fn or_none(told: Result<BTreeMap<String, Options>, Status>) -> anyhow::Result<BTreeMap<String, Options>> {
    match told {
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::PermissionDenied) => {
            Ok(BTreeMap::new())
        }
        told => told.map_err(refused),
    }
}

async fn ask(entry_ids: Vec<String>, server: &Server) -> Result<BTreeMap<String, Options>, Status> {
    let mut request = BatchGetOptionsRequest { entry_ids, page_size: PAGE, page_token: String::new() };
    let mut all = BTreeMap::new();
    loop {
        let page = server.options().batch_get_options(request.clone()).await?.into_inner();
        all.extend(page.items.into_iter().filter_map(|item| Some((item.entry_id, item.options?))));
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        if page.next_page_token == request.page_token {
            return Err(Status::internal("the server gives the same page again and again"));
        }
        request.page_token = page.next_page_token;
    }
}

/// What `entry` and `told` come to in JSON.
pub(super) fn with(mut entry: Value, told: Option<&Options>) -> Value {
    if let Some(told) = told.and_then(value) {
        entry["options"] = told;
    }
    entry
}

/// An entry as JSON, with those of its options that are not as with SPIRE.
pub(super) fn json(entry: &types::Entry, options: Option<&Options>) -> Value {
    with(json::entry(entry), options)
}

/// Whether all is as with SPIRE.
pub(super) fn is_default(options: &Options) -> bool {
    value(options).is_none()
}

/// The options that are not as with SPIRE; when an X509-SVID is minted is among SPIRE's fields.
pub(super) fn value(options: &Options) -> Option<Value> {
    let mut told = Map::new();
    if options.key_scope() == KeyScope::Instance {
        told.insert("key_scope".to_owned(), json!("instance"));
    }
    if options.strict {
        told.insert("strict".to_owned(), json!(true));
    }
    (!told.is_empty()).then_some(Value::Object(told))
}

/// The same for people.
pub(super) fn text(options: Option<&Options>) -> String {
    let Some(options) = options else { return String::new() };
    let key_scope = (options.key_scope() == KeyScope::Instance).then_some("key_scope=instance");
    let told: Vec<&str> = key_scope.into_iter().chain(options.strict.then_some("strict")).collect();
    told.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_changed() {
        let before = Options { key_scope: KeyScope::Instance.into(), strict: false, ..Options::default() };
        let mut options = before;
        take(args::EntryOptions { key_scope: None, strict: Some(true) }, &mut options);
        assert_eq!(options, Options { strict: true, ..before });
        take(args::EntryOptions { key_scope: Some(args::KeyScope::Node), strict: None }, &mut options);
        assert_eq!((options.key_scope(), options.strict), (KeyScope::Node, true));
    }

    #[test]
    fn what_is_as_with_spire_is_not_told() {
        assert_eq!(value(&Options { key_scope: KeyScope::Node.into(), ..Options::default() }), None);
        let strict = Options { key_scope: KeyScope::Instance.into(), strict: true, ..Options::default() };
        assert_eq!(value(&strict), Some(json!({ "key_scope": "instance", "strict": true })));
        assert_eq!(
            (text(Some(&strict)), text(None)),
            ("key_scope=instance strict".to_owned(), String::new())
        );
    }
}
