//! A thousand entries as they should be: what a company with two clusters, some machines and a partner might register.

use serde_json::{Value, json};

use super::{DIGEST, entry};

/// How many there are, those of nodes among them.
pub(super) const COUNT: usize = 1000;
/// The trust domain that some of them federate with.
pub(super) const PARTNER: &str = "partner.test";

const CLUSTERS: [&str; 2] = ["east", "west"];
const TEAMS: [&str; 8] = ["payments", "orders", "search", "billing", "identity", "media", "mail", "reports"];

/// The entries, as SPIRE's `entry create -data` takes them.
pub(super) fn entries() -> Vec<Value> {
    let mut all = nodes();
    for (n, cluster) in (0..).zip(CLUSTERS.into_iter().cycle()) {
        if all.len() >= COUNT {
            break;
        }
        all.extend(match n % 5 {
            0 => service(n, cluster),
            1 => replicated(n),
            2 => program(n),
            3 => unit(n),
            _ => twofold(n, cluster),
        });
    }
    all.truncate(COUNT);
    all
}

/// What the entries of workloads stand below.
fn nodes() -> Vec<Value> {
    let alias = |id: &str, path: &str, selectors: &str| entry(id, "/spire/server", path, selectors);
    let mut nodes: Vec<Value> = CLUSTERS
        .iter()
        .map(|name| {
            let selectors =
                format!("k8s_psat:cluster:{name} k8s_psat:agent_ns:passant k8s_psat:agent_sa:agent");
            alias(&format!("node-{name}"), &format!("/cluster/{name}"), &selectors)
        })
        .collect();
    nodes.push(alias("node-rack", "/rack", "x509pop:subject:cn:rack.example.org"));
    nodes
}

/// A service of one namespace, with what operators set besides: an owner, names, lifetimes, a partner.
fn service(n: usize, cluster: &str) -> Vec<Value> {
    let team = TEAMS[n % TEAMS.len()];
    let selectors = format!("k8s:ns:{team} k8s:sa:svc-{n} k8s:pod-label:owner:{team}");
    let mut service =
        below(n, "svc", &format!("/cluster/{cluster}"), &format!("/{team}/svc-{n}"), &selectors);
    service["x509_svid_ttl"] = json!(3600);
    service["jwt_svid_ttl"] = json!(300);
    service["dns_names"] = json!([format!("svc-{n}.{team}.svc.cluster.local")]);
    if n.is_multiple_of(3) {
        service["federates_with"] = json!([format!("spiffe://{PARTNER}")]);
    }
    vec![service]
}

/// The same service in both clusters, by one SPIFFE ID.
fn replicated(n: usize) -> Vec<Value> {
    let team = TEAMS[n % TEAMS.len()];
    let selectors =
        format!("k8s:ns:{team} k8s:sa:api-{n} k8s:container-image:registry.example.org/api-{n}@{DIGEST}");
    let one = |cluster: &str| {
        below(n, cluster, &format!("/cluster/{cluster}"), &format!("/{team}/api-{n}"), &selectors)
    };
    CLUSTERS.map(one).to_vec()
}

/// A program of a user of its own.
fn program(n: usize) -> Vec<Value> {
    let selectors = format!("unix:uid:{} unix:path:/opt/job-{n}/bin/job", 2000 + n);
    let mut program = below(n, "job", "/rack", &format!("/jobs/{n}"), &selectors);
    program["entryExpiry"] = json!(4_000_000_000_i64);
    vec![program]
}

/// A program of a user that runs several, told apart by what they are built of.
fn unit(n: usize) -> Vec<Value> {
    let selectors = format!("unix:uid:990 unix:path:/usr/lib/unit-{n} unix:sha256:{n:064x}");
    vec![below(n, "unit", "/rack", &format!("/units/{n}"), &selectors)]
}

/// A workload that has two SPIFFE IDs, and is told by hints which is which.
fn twofold(n: usize, cluster: &str) -> Vec<Value> {
    let team = TEAMS[n % TEAMS.len()];
    let one = |hint: &str| {
        let selectors = format!("k8s:ns:{team} k8s:sa:gate-{n}");
        let path = format!("/{team}/gate-{n}/{hint}");
        let mut one = below(n, hint, &format!("/cluster/{cluster}"), &path, &selectors);
        one["hint"] = json!(hint);
        one
    };
    ["inside", "outside"].map(one).to_vec()
}

fn below(n: usize, kind: &str, parent: &str, path: &str, selectors: &str) -> Value {
    entry(&format!("c{n:04}-{kind}"), parent, path, selectors)
}
