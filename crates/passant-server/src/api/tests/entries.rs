//! Are registration entries kept as their owners write them?

use passant_core::{Reason, SpiffeId};
use passant_proto::entry::{
    BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest, GetEntryRequest,
    ListEntriesRequest, list_entries_request,
};
use passant_proto::types;
use tonic::Code;

use super::rig::{Rig, entries, entry, refusal, selector, trust_domain, wire_id};

pub(super) fn everything() -> ListEntriesRequest {
    ListEntriesRequest { filter: None, output_mask: None, page_size: 0, page_token: String::new() }
}

fn node() -> SpiffeId {
    trust_domain().join("/node").unwrap()
}

fn code(status: Option<&types::Status>) -> Code {
    Code::from_i32(status.unwrap().code)
}

#[tokio::test]
async fn a_twin_is_answered_with_the_entry_that_stands() {
    let rig = Rig::start().await;
    let first = rig.register(vec![entry(&node(), "/a", "unix:uid:1")]).await.remove(0);
    assert!(!first.id.is_empty() && first.created_at > 0);
    let again = types::Entry { hint: "other".to_owned(), ..entry(&node(), "/a", "unix:uid:1") };
    let result = rig.create(vec![again]).await.remove(0);
    assert_eq!(code(result.status.as_ref()), Code::AlreadyExists);
    assert_eq!(result.entry.unwrap(), first);
}

#[tokio::test]
async fn what_was_done_is_acknowledged_even_where_the_entries_outgrow_the_answer() {
    let rig = Rig::start().await;
    let wanted: Vec<types::Entry> =
        (0..1000).map(|at| entry(&node(), &format!("/w{at}"), &format!("x:{}", "s".repeat(4_090)))).collect();
    let results = rig.create(wanted.clone()).await;
    assert_eq!(results.len(), wanted.len());
    for result in &results {
        assert_eq!(code(result.status.as_ref()), Code::Ok);
        assert!(!result.entry.as_ref().unwrap().id.is_empty());
    }
    let updates = results
        .iter()
        .map(|result| types::Entry {
            id: result.entry.as_ref().unwrap().id.clone(),
            hint: "h".repeat(100),
            ..types::Entry::default()
        })
        .collect();
    let request = BatchUpdateEntryRequest {
        entries: updates,
        input_mask: Some(types::EntryMask { hint: true, ..types::EntryMask::default() }),
        output_mask: None,
    };
    let results = entries(rig.local().await).batch_update_entry(request).await.unwrap().into_inner().results;
    assert!(results.iter().all(|result| code(result.status.as_ref()) == Code::Ok));
    assert_eq!(results[0].entry.as_ref().unwrap().hint.len(), 100);
    assert!(!results[999].entry.as_ref().unwrap().id.is_empty());
}

#[tokio::test]
async fn results_stand_where_their_requests_stood() {
    let rig = Rig::start().await;
    let bad = |change: fn(&mut types::Entry)| {
        let mut entry = entry(&node(), "/bad", "unix:uid:9");
        change(&mut entry);
        entry
    };
    let asked = vec![
        (entry(&node(), "/a", "unix:uid:1"), Code::Ok, ""),
        (bad(|e| e.spiffe_id = None), Code::InvalidArgument, "SPIFFE ID"),
        (bad(|e| e.parent_id = None), Code::InvalidArgument, "parent ID"),
        (bad(|e| e.selectors.clear()), Code::InvalidArgument, "selector"),
        (
            bad(|e| e.spiffe_id.as_mut().unwrap().trust_domain = "elsewhere.org".to_owned()),
            Code::InvalidArgument,
            "elsewhere.org",
        ),
        (
            bad(|e| e.parent_id.as_mut().unwrap().trust_domain = "elsewhere.org".to_owned()),
            Code::InvalidArgument,
            "elsewhere.org",
        ),
        (bad(|e| e.spiffe_id = Some(wire_id("/spire/agent/x"))), Code::InvalidArgument, "/spire"),
        (bad(|e| e.dns_names = vec!["-bad-".to_owned()]), Code::InvalidArgument, "DNS"),
        (bad(|e| e.x509_svid_ttl = -1), Code::InvalidArgument, "X509-SVID TTL"),
        (
            bad(|e| e.federates_with = vec!["elsewhere.org".to_owned()]),
            Code::FailedPrecondition,
            "elsewhere.org",
        ),
        (bad(|e| e.id = "no spaces".to_owned()), Code::InvalidArgument, "entry ID"),
        (entry(&node(), "/b", "unix:uid:1"), Code::Ok, ""),
    ];
    let results = rig.create(asked.iter().map(|(entry, ..)| entry.clone()).collect()).await;
    assert_eq!(results.len(), asked.len());
    for (result, (entry, expected, named)) in results.iter().zip(&asked) {
        let message = &result.status.as_ref().unwrap().message;
        assert_eq!(code(result.status.as_ref()), *expected, "{entry:?}: {message}");
        assert!(message.contains(named), "{named}: {message}");
        assert_eq!(result.entry.is_some(), *expected == Code::Ok);
    }
    let count = entries(rig.local().await).count_entries(CountEntriesRequest { filter: None }).await.unwrap();
    assert_eq!(count.into_inner().count, 2);
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names() {
    let rig = Rig::start().await;
    let mut client = entries(rig.local().await);
    let old = rig
        .register(vec![types::Entry { hint: "old".to_owned(), ..entry(&node(), "/a", "unix:uid:1") }])
        .await;
    let request = BatchUpdateEntryRequest {
        entries: vec![
            types::Entry {
                id: old[0].id.clone(),
                hint: "new".to_owned(),
                admin: true,
                ..types::Entry::default()
            },
            types::Entry { id: "nothing".to_owned(), hint: "new".to_owned(), ..types::Entry::default() },
            types::Entry::default(),
        ],
        input_mask: Some(types::EntryMask { hint: true, ..types::EntryMask::default() }),
        output_mask: None,
    };
    let results = client.batch_update_entry(request).await.unwrap().into_inner().results;
    let codes: Vec<Code> = results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::Ok, Code::NotFound, Code::InvalidArgument]);
    let new = results[0].entry.as_ref().unwrap();
    assert!(new.revision_number > old[0].revision_number);
    let expected =
        types::Entry { hint: "new".to_owned(), revision_number: new.revision_number, ..old[0].clone() };
    assert_eq!(*new, expected);

    let without_selectors = types::Entry { selectors: Vec::new(), ..new.clone() };
    let request =
        BatchUpdateEntryRequest { entries: vec![without_selectors], input_mask: None, output_mask: None };
    let results = client.batch_update_entry(request).await.unwrap().into_inner().results;
    assert_eq!(code(results[0].status.as_ref()), Code::InvalidArgument);
}

#[tokio::test]
async fn deletes_are_answered_one_by_one() {
    let rig = Rig::start().await;
    let mut client = entries(rig.local().await);
    let id = rig.register(vec![entry(&node(), "/a", "unix:uid:1")]).await.remove(0).id;
    let ids = vec![String::new(), id.clone(), id.clone(), "no spaces".to_owned()];
    let results =
        client.batch_delete_entry(BatchDeleteEntryRequest { ids: ids.clone() }).await.unwrap().into_inner();
    let codes: Vec<Code> = results.results.iter().map(|result| code(result.status.as_ref())).collect();
    assert_eq!(codes, [Code::InvalidArgument, Code::Ok, Code::NotFound, Code::NotFound]);
    assert_eq!(results.results.into_iter().map(|result| result.id).collect::<Vec<_>>(), ids);
    let gone = client.get_entry(GetEntryRequest { id, output_mask: None }).await;
    assert_eq!(refusal(gone).reason, Reason::NotFound);
    let unnamed = client.get_entry(GetEntryRequest { id: String::new(), output_mask: None }).await;
    assert_eq!(refusal(unnamed).reason, Reason::Invalid);
}

#[tokio::test]
async fn entries_are_listed_by_filter_page_and_mask() {
    let rig = Rig::start().await;
    let mut client = entries(rig.local().await);
    let mut wanted: Vec<types::Entry> =
        (0..5).map(|uid| entry(&node(), "/a", &format!("unix:uid:{uid}"))).collect();
    wanted[0].selectors.push(selector("unix:gid:0"));
    wanted[1].downstream = true;
    wanted[2].spiffe_id = Some(wire_id("/b"));
    wanted[3].hint = "hinted".to_owned();
    rig.register(wanted).await;

    let check = async |filter: list_entries_request::Filter, expected: usize| {
        let request = ListEntriesRequest { filter: Some(filter.clone()), ..everything() };
        let found = entries(rig.local().await).list_entries(request).await.unwrap().into_inner().entries;
        assert_eq!(found.len(), expected, "{filter:?}");
    };
    let by = list_entries_request::Filter::default;
    let matching = |behavior: types::selector_match::MatchBehavior, texts: &[&str]| types::SelectorMatch {
        selectors: texts.iter().map(|text| selector(text)).collect(),
        r#match: behavior.into(),
    };
    use types::selector_match::MatchBehavior::{MatchAny, MatchExact, MatchSubset, MatchSuperset};
    check(list_entries_request::Filter { by_spiffe_id: Some(wire_id("/b")), ..by() }, 1).await;
    check(list_entries_request::Filter { by_parent_id: Some(wire_id("/node")), ..by() }, 5).await;
    check(list_entries_request::Filter { by_parent_id: Some(wire_id("/other")), ..by() }, 0).await;
    check(list_entries_request::Filter { by_hint: Some("hinted".to_owned()), ..by() }, 1).await;
    check(list_entries_request::Filter { by_downstream: Some(true), ..by() }, 1).await;
    let pair = ["unix:uid:0", "unix:gid:0"];
    for (behavior, texts, expected) in [
        (MatchExact, &pair[..1], 0),
        (MatchExact, &pair[..], 1),
        (MatchAny, &["unix:uid:0", "unix:uid:1"][..], 2),
        (MatchSuperset, &pair[..1], 1),
        (MatchSubset, &["unix:uid:0", "unix:gid:0", "unix:uid:1"][..], 2),
    ] {
        let by_selectors = Some(matching(behavior, texts));
        check(list_entries_request::Filter { by_selectors, ..by() }, expected).await;
    }
    let empty = list_entries_request::Filter { by_selectors: Some(matching(MatchExact, &[])), ..by() };
    let refused = client.list_entries(ListEntriesRequest { filter: Some(empty), ..everything() }).await;
    assert_eq!(refusal(refused).reason, Reason::Invalid);

    let mask = Some(types::EntryMask { spiffe_id: true, ..types::EntryMask::default() });
    let (mut token, mut sizes, mut ids) = (String::new(), Vec::new(), Vec::new());
    loop {
        let request = ListEntriesRequest { filter: None, output_mask: mask, page_size: 2, page_token: token };
        let page = client.list_entries(request).await.unwrap().into_inner();
        sizes.push(page.entries.len());
        assert!(page.entries.iter().all(|entry| entry.selectors.is_empty() && entry.parent_id.is_none()));
        ids.extend(page.entries.into_iter().map(|entry| entry.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [2, 2, 1]);
    assert!(ids.is_sorted());
    let foreign = ListEntriesRequest { page_size: 2, page_token: "?".to_owned(), ..everything() };
    assert_eq!(refusal(client.list_entries(foreign).await).reason, Reason::Invalid);
}
