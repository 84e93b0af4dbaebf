//! Which objects do the tests of state, store and journal use?

use std::sync::Arc;
use std::time::Duration;

use passant_attest::node::join_token::TokenHash;
use passant_core::bundle::{Bundle, JwtAuthority, X509Authority};
use passant_core::host::ManualClock;
use passant_core::serial::Serial;
use passant_core::{
    EndpointProfile, EndpointUrl, Entry, EntryDraft, EntryId, FederationRelationship, Host, Instance,
    Selector, Selectors, SpiffeId, Stop, StopReason, StopTarget, TrustDomain, UnixTime,
};
use proptest::prelude::*;

use crate::state::{
    AttestedNode, Authority, AuthorityId, AuthorityKind, Change, Commit, JoinToken, PendingSerial, Phase,
    RequestId, Spent,
};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn other_trust_domain() -> TrustDomain {
    TrustDomain::parse("other.example").unwrap()
}

pub(crate) fn at(secs: i64) -> UnixTime {
    UnixTime::from_secs(secs)
}

/// A host whose clock stands still, and the clock.
pub(crate) fn host_at(secs: i64) -> (Host, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(at(secs)));
    let host = Host { clock: Arc::<ManualClock>::clone(&clock), ..Host::system() };
    (host, clock)
}

pub(crate) fn id(path: &str) -> SpiffeId {
    trust_domain().join(path).unwrap()
}

pub(crate) fn selectors(texts: &[&str]) -> Selectors {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

pub(crate) fn entry_id(text: &str) -> EntryId {
    EntryId::parse(text).unwrap()
}

pub(crate) fn draft(spiffe_id: &str, parent: &str, have: &[&str]) -> EntryDraft {
    EntryDraft::new(id(spiffe_id), id(parent), selectors(have))
}

pub(crate) fn registered(name: &str, draft: EntryDraft) -> Arc<Entry> {
    Arc::new(draft.register(&trust_domain(), entry_id(name), 0, at(1)).unwrap())
}

pub(crate) fn entry(name: &str, spiffe_id: &str, parent: &str) -> Arc<Entry> {
    registered(name, draft(spiffe_id, parent, &["unix:uid:1"]))
}

pub(crate) fn node(path: &str, have: &[&str]) -> Arc<AttestedNode> {
    Arc::new(AttestedNode {
        id: id(path),
        attestation_type: "x509pop".to_owned(),
        serial: Some(Serial::from_magnitude(&[1, 2, 3]).unwrap()),
        not_after: at(1_000),
        pending: None,
        selectors: selectors(have),
        can_reattest: true,
        agent_version: Some("1.0".to_owned()),
        attested_at: at(1),
        adopted: None,
    })
}

pub(crate) fn token(text: &str, expires_at: i64) -> JoinToken {
    JoinToken {
        hash: TokenHash::of(text),
        expires_at: at(expires_at),
        alias: None,
        by_role: false,
        spent: None,
    }
}

pub(crate) fn authority(name: &str, kind: AuthorityKind, phase: Phase) -> Authority {
    Authority {
        id: AuthorityId::parse(name).unwrap(),
        kind,
        phase,
        tainted: false,
        certificate: (kind == AuthorityKind::X509).then(|| vec![0x30, 0, 0xff]),
        public_key: vec![0x30, 1, 2],
        not_before: at(1),
        not_after: at(1_000),
        prepared_at: at(2),
        activated_at: (phase != Phase::Prepared).then(|| at(3)),
        published: 7,
    }
}

pub(crate) fn bundle(trust_domain: TrustDomain, sequence: u64, der_bytes: usize) -> Arc<Bundle> {
    Arc::new(Bundle {
        trust_domain,
        x509_authorities: vec![X509Authority { der: vec![7; der_bytes], tainted: false }],
        jwt_authorities: vec![JwtAuthority {
            key_id: "k1".to_owned(),
            public_key: vec![1, 2, 3],
            expires_at: Some(at(9)),
            tainted: true,
        }],
        sequence,
        refresh_hint: Some(Duration::from_secs(300)),
    })
}

/// The relationship with `trust_domain`, whose endpoint proves itself by https_spiffe if it has an ID, else by https_web.
pub(crate) fn relationship(
    trust_domain: TrustDomain,
    endpoint_id: Option<SpiffeId>,
) -> Arc<FederationRelationship> {
    Arc::new(FederationRelationship {
        url: EndpointUrl::parse(&format!("https://{trust_domain}/bundle")).unwrap(),
        profile: endpoint_id
            .map_or(EndpointProfile::HttpsWeb, |endpoint_id| EndpointProfile::HttpsSpiffe { endpoint_id }),
        trust_domain,
    })
}

pub(crate) fn stop(target: StopTarget) -> Arc<Stop> {
    Arc::new(Stop {
        id: format!("stop of {target}"),
        target,
        reason: StopReason::parse("compromised").unwrap(),
        by: "root".to_owned(),
        since: at(5),
        revision: 1,
    })
}

/// A commit of `changes`, whose request ID is `number`.
pub(crate) fn commit(number: u64, changes: Vec<Change>) -> Commit {
    let mut request_id = [0; 16];
    request_id[..8].copy_from_slice(&number.to_be_bytes());
    Commit { request_id: RequestId::new(request_id), changes }
}

/// Puts and deletes over so few keys that they meet.
pub(crate) fn any_change() -> impl Strategy<Value = Change> {
    let key = 0..4_u8;
    let parent = prop_oneof![Just("/spire/server"), Just("/spire/agent/x/0"), Just("/w/1")];
    prop_oneof![
        4 => (key.clone(), 0..3_u8, parent, 1..3_u8).prop_map(|(key, path, parent, uid)| {
            let draft = draft(&format!("/w/{path}"), parent, &[&format!("unix:uid:{uid}"), "unix:gid:1"]);
            Change::PutEntry(registered(&format!("e{key}"), draft))
        }),
        2 => key.clone().prop_map(|key| Change::DeleteEntry(entry_id(&format!("e{key}")))),
        2 => (key.clone(), any::<[bool; 3]>()).prop_map(|(key, [banned, pending, silent])| {
            let mut node = AttestedNode::clone(&node(&format!("/spire/agent/x/{key}"), &["unix:uid:1"]));
            if banned {
                node.serial = None;
            }
            if pending {
                let serial = Serial::from_magnitude(&[9, key]).unwrap();
                node.pending = Some(PendingSerial { serial, not_after: at(77) });
            }
            if silent {
                node.agent_version = None;
            }
            Change::PutNode(Arc::new(node))
        }),
        1 => key.clone().prop_map(|key| Change::DeleteNode(id(&format!("/spire/agent/x/{key}")))),
        2 => (key.clone(), any::<bool>()).prop_map(|(key, is_spent)| {
            let mut token = token(&format!("token-{key}"), 50);
            if is_spent {
                token.alias = Some(id("/alias"));
                token.by_role = true;
                token.spent = Some(Spent { key_hash: [key; 32], agent_id: id("/spire/agent/join_token/a"), at: at(4) });
            }
            Change::PutToken(token)
        }),
        1 => key.clone().prop_map(|key| Change::DeleteToken(TokenHash::of(&format!("token-{key}")))),
        1 => (key.clone(), any::<bool>()).prop_map(|(key, jwt)| {
            let kind = if jwt { AuthorityKind::Jwt } else { AuthorityKind::X509 };
            Change::PutAuthority(authority(&format!("a{key}"), kind, Phase::Active))
        }),
        1 => key.prop_map(|key| Change::DeleteAuthority(AuthorityId::parse(&format!("a{key}")).unwrap())),
        1 => (any::<bool>(), 0..9_u64).prop_map(|(own, sequence)| {
            Change::PutBundle(bundle(if own { trust_domain() } else { other_trust_domain() }, sequence, 20))
        }),
        1 => any::<bool>().prop_map(|own| {
            Change::DeleteBundle(if own { trust_domain() } else { other_trust_domain() })
        }),
        1 => any::<[bool; 2]>().prop_map(|[put, web]| {
            let other = other_trust_domain();
            if !put {
                return Change::DeleteFederation(other);
            }
            let endpoint_id = (!web).then(|| other.join("/endpoint").unwrap());
            Change::PutFederation(relationship(other, endpoint_id))
        }),
        1 => (0..4_u8, 0..3_u8, any::<bool>()).prop_map(|(key, kind, put)| {
            let agent = id(&format!("/spire/agent/x/{key}"));
            let target = match kind {
                0 => StopTarget::Agent(agent),
                1 => StopTarget::Entry(entry_id(&format!("e{key}"))),
                _ => StopTarget::Instance { agent, instance: Instance::parse("boot/1/2").unwrap() },
            };
            if put { Change::PutStop(stop(target)) } else { Change::DeleteStop(target) }
        }),
    ]
}

/// Up to twelve commits.
pub(crate) fn any_commits() -> impl Strategy<Value = Vec<Commit>> {
    let changes = proptest::collection::vec(any_change(), 0..6);
    proptest::collection::vec(changes, 0..12)
        .prop_map(|commits| (0..).zip(commits).map(|(number, changes)| commit(number, changes)).collect())
}
