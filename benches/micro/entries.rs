//! Which entries are there? As many as are asked for, alike on every run: a cluster of Kubernetes as it may be.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use passant_core::{
    AuthorizedEntry, Entry, EntryDraft, EntryId, Selector, Selectors, SpiffeId, TrustDomain, UnixTime,
};

/// Entries below one agent: the pods of a node.
pub(crate) const PER_AGENT: usize = 100;

/// When all of them were registered.
const REGISTERED: UnixTime = UnixTime::from_secs(1_790_000_000);

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("bench.example.org").expect("it is a trust domain")
}

/// The agent below which entry `number` stands.
pub(crate) fn agent_of(number: usize) -> SpiffeId {
    let node = number / PER_AGENT;
    trust_domain().agent_id("k8s_psat", &format!("cluster/{}", uuid(node, 1))).expect("it is an agent's path")
}

/// Three to five selectors: the namespace, the service account, a label, and for some a container and its image. At a
/// million entries about three hundred thousand are distinct.
fn selectors_of(number: usize) -> Vec<String> {
    let namespace = number / 500;
    let mut texts = vec![
        format!("k8s:ns:team-{namespace:05}"),
        format!("k8s:sa:service-{:06}", number / 5),
        format!("k8s:pod-label:app:component-{:03}", number % 500),
    ];
    if number.is_multiple_of(3) {
        texts.push(format!("k8s:container-name:main-{:02}", number % 40));
    }
    if number.is_multiple_of(10) {
        texts.push(format!("k8s:container-image:registry.example.org/team/app-{:05}:v1", number / 20));
    }
    texts
}

/// What a workload attestor would find out about the pod that entry `number` is for: its selectors and ten more that
/// others have, or nobody.
pub(crate) fn workload_of(number: usize) -> Vec<String> {
    let mut texts = selectors_of(number);
    texts.extend([
        format!("k8s:node-name:node-{:05}", number / PER_AGENT),
        format!("k8s:pod-uid:{}", uuid(number, 2)),
        format!("k8s:pod-name:component-{:03}-{}", number % 500, number % 7),
        "k8s:pod-owner:ReplicaSet:component".to_owned(),
        format!("k8s:pod-label:tier:tier-{}", number % 4),
        format!("k8s:pod-label:pod-template-hash:{:08x}", number % 100_000),
        "k8s:pod-image-count:1".to_owned(),
        "unix:uid:1000".to_owned(),
        "unix:gid:1000".to_owned(),
        "unix:user:app".to_owned(),
    ]);
    texts
}

pub(crate) fn parse(texts: &[String]) -> Result<Selectors> {
    texts.iter().map(|text| Ok(Selector::parse(text)?)).collect()
}

fn id_of(number: usize) -> Result<EntryId> {
    Ok(EntryId::parse(&uuid(number, 3))?)
}

fn spiffe_id_of(number: usize) -> Result<SpiffeId> {
    Ok(trust_domain().join(&format!("/ns/team-{:05}/sa/service-{:06}", number / 500, number / 5))?)
}

/// Entry `number` as the server has it.
pub(crate) fn entry(number: usize) -> Result<Arc<Entry>> {
    let draft = EntryDraft::new(spiffe_id_of(number)?, agent_of(number), parse(&selectors_of(number))?);
    Ok(Arc::new(draft.register(&trust_domain(), id_of(number)?, 1, REGISTERED)?))
}

/// Entry `number` as an agent has it, and its selectors as text.
pub(crate) fn authorized(number: usize) -> Result<(Arc<AuthorizedEntry>, Vec<String>)> {
    let texts = selectors_of(number);
    let entry = AuthorizedEntry {
        id: id_of(number)?,
        spiffe_id: spiffe_id_of(number)?,
        selectors: parse(&texts)?,
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        hint: String::new(),
        jwt_svid_include_jti: false,
        disable_x509_svid_prefetch: false,
        options: passant_core::EntryOptions::default(),
        revision: 1,
        created_at: REGISTERED,
    };
    Ok((Arc::new(entry), texts))
}

/// Something that looks like a random UUID and is always the same for the same number.
fn uuid(number: usize, kind: u64) -> String {
    let one = scattered(number as u64 ^ kind << 56);
    let two = scattered(one);
    let (a, b, c) = (one >> 32, one >> 16 & 0xffff, one & 0xfff);
    let (d, e) = (two >> 48 & 0x3fff | 0x8000, two & 0xffff_ffff_ffff);
    format!("{a:08x}-{b:04x}-4{c:03x}-{d:04x}-{e:012x}")
}

/// Numbers from 0 on, in an order that no cache foresees: for choosing among many.
pub(crate) struct Scattered(u64);

impl Scattered {
    pub(crate) const fn new() -> Self {
        Self(0)
    }

    /// The next number below `below`.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        self.0 += 1;
        usize::try_from(scattered(self.0) % below as u64).expect("it is below a usize")
    }
}

/// Splitmix64, by S. Vigna (public domain).
const fn scattered(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
