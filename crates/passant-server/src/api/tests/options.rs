//! Are the options of entries kept, told, and honoured towards agents that cannot?

use passant_core::Reason;
use passant_core::csr;
use passant_proto::entry::{
    BatchUpdateEntryRequest, GetAuthorizedEntriesRequest, GetEntryRequest, SyncAuthorizedEntriesRequest,
};
use passant_proto::options::entry_client::EntryClient;
use passant_proto::options::{
    BatchCreateEntryRequest, BatchGetOptionsRequest, BatchSetOptionsRequest, EntryWithOptions, Issuance,
    KeyScope, Options, batch_set_options_request,
};
use passant_proto::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use passant_proto::types;
use tonic::Code;

use super::rig::{Identity, Rig, entries, entry, refusal, svids};

fn options(key_scope: KeyScope, issuance: Issuance, strict: bool) -> Options {
    Options { key_scope: key_scope.into(), issuance: issuance.into(), strict }
}

async fn create(rig: &Rig, wanted: Vec<(types::Entry, Options)>) -> Vec<(i32, EntryWithOptions)> {
    let with = |(entry, options)| EntryWithOptions { entry: Some(entry), options: Some(options) };
    let request = BatchCreateEntryRequest { entries: wanted.into_iter().map(with).collect() };
    let answer = EntryClient::new(rig.local().await).batch_create_entry(request).await.unwrap().into_inner();
    let results = answer.results.into_iter();
    results.map(|one| (one.status.unwrap().code, one.entry.unwrap_or_default())).collect()
}

/// The options of these entries; of all that have any, if none are named.
async fn told(rig: &Rig, ids: &[&str]) -> Vec<(String, Options)> {
    let request = BatchGetOptionsRequest {
        entry_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        page_size: 1,
        page_token: String::new(),
    };
    let (mut client, mut request, mut all) = (EntryClient::new(rig.local().await), request, Vec::new());
    loop {
        let page = client.batch_get_options(request.clone()).await.unwrap().into_inner();
        all.extend(page.items.into_iter().map(|item| (item.entry_id, item.options.unwrap())));
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

fn named(id: &str, agent: &Identity) -> types::Entry {
    types::Entry { id: id.to_owned(), ..entry(agent.svid.id(), &format!("/{id}"), "unix:uid:1") }
}

#[tokio::test]
async fn options_come_with_the_entry_and_stay_through_spires_writes() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let strict = options(KeyScope::Instance, Issuance::OnDemand, true);
    let wrong = Options { key_scope: 9, ..strict };
    let created = create(
        &rig,
        vec![
            (named("a", &agent), strict),
            (named("b", &agent), Options::default()),
            (named("a", &agent), Options::default()),
            (named("c", &agent), wrong),
        ],
    )
    .await;
    let codes: Vec<i32> = created.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 0, i32::from(Code::AlreadyExists), i32::from(Code::InvalidArgument)]);
    assert_eq!((created[0].1.options, created[2].1.options), (Some(strict), Some(strict)));
    let spires = |id: &str| GetEntryRequest { id: id.to_owned(), output_mask: None };
    let mut client = entries(rig.local().await);
    let shown = client.get_entry(spires("a")).await.unwrap().into_inner();
    assert!(shown.additional_attributes.unwrap().disable_x509_svid_prefetch);

    // The whole entry is written by one who has never heard of options.
    let request = BatchUpdateEntryRequest {
        entries: vec![types::Entry { hint: "new".to_owned(), ..shown }],
        ..BatchUpdateEntryRequest::default()
    };
    client.batch_update_entry(request).await.unwrap();
    assert_eq!(told(&rig, &[]).await, [("a".to_owned(), strict)]);
    assert_eq!(client.get_entry(spires("a")).await.unwrap().into_inner().hint, "new");
    let node = options(KeyScope::Node, Issuance::Prefetch, false);
    assert_eq!(
        told(&rig, &["b", "none", "a", "a"]).await,
        [("a".to_owned(), strict), ("b".to_owned(), node)]
    );
}

#[tokio::test]
async fn options_are_set_whole_and_nothing_else_is() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    let before = rig.register(vec![named("a", &agent)]).await.remove(0);
    let item = |entry_id: &str, options: Option<Options>| batch_set_options_request::Item {
        entry_id: entry_id.to_owned(),
        options,
    };
    let strict = options(KeyScope::Instance, Issuance::Unspecified, true);
    let items = vec![item("a", Some(strict)), item("none", None), item("", None)];
    let mut client = EntryClient::new(rig.local().await);
    let set = client.batch_set_options(BatchSetOptionsRequest { items }).await.unwrap().into_inner().results;
    let codes: Vec<i32> = set.iter().map(|one| one.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, i32::from(Code::NotFound), i32::from(Code::InvalidArgument)]);
    assert!(set[0].revision_number > before.revision_number);
    assert_eq!(told(&rig, &["a"]).await[0].1, options(KeyScope::Instance, Issuance::Prefetch, true));
    client.batch_set_options(BatchSetOptionsRequest { items: vec![item("a", None)] }).await.unwrap();
    assert_eq!(told(&rig, &[]).await, []);
    let request = GetEntryRequest { id: "a".to_owned(), output_mask: None };
    let after = entries(rig.local().await).get_entry(request).await.unwrap().into_inner();
    assert_eq!(types::Entry { revision_number: before.revision_number, ..after }, before);
}

#[tokio::test]
async fn a_strict_entry_is_kept_from_spires_methods() {
    let rig = Rig::start().await;
    let agent = rig.agent().await;
    create(
        &rig,
        vec![
            (named("strict", &agent), options(KeyScope::Instance, Issuance::Unspecified, true)),
            (named("loose", &agent), options(KeyScope::Instance, Issuance::Unspecified, false)),
            (named("plain", &agent), options(KeyScope::Node, Issuance::OnDemand, true)),
        ],
    )
    .await;
    let channel = rig.remote(Some(&agent)).await.unwrap();
    let mut client = entries(channel.clone());
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let got = client.get_authorized_entries(request).await.unwrap().into_inner().entries;
    let requests = tokio_stream::iter([SyncAuthorizedEntriesRequest::default()]);
    let mut synced = client.sync_authorized_entries(requests).await.unwrap().into_inner();
    let synced = synced.message().await.unwrap().unwrap().entries;
    for found in [got, synced] {
        let ids: Vec<&str> = found.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["loose", "plain"]);
    }
    let param =
        |id: &str| NewX509svidParams { entry_id: id.to_owned(), csr: csr::make(&*rig.key(), None).unwrap() };
    let params = vec![param("strict"), param("loose"), param("plain")];
    let mut client = svids(channel);
    let minted = client.batch_new_x509svid(BatchNewX509svidRequest { params }).await.unwrap().into_inner();
    let codes: Vec<i32> = minted.results.iter().map(|one| one.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [i32::from(Code::NotFound), 0, 0]);
    let token = |id: &str| NewJwtsvidRequest { entry_id: id.to_owned(), audience: vec!["db".to_owned()] };
    assert_eq!(refusal(client.new_jwtsvid(token("strict")).await).reason, Reason::NotFound);
    client.new_jwtsvid(token("loose")).await.unwrap();
}
