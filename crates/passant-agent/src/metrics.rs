//! What does an agent count and time?
//!
//! One struct, made at the start and handed down. What can be read off the cache or the link is not counted here a second
//! time: see `Metrics::registry`.

use std::sync::Arc;

use passant_core::{Host, Reason};
use passant_daemon::calls::Tally;
use passant_daemon::label::Outcome;
use passant_daemon::labels;
use passant_daemon::metrics::{Counter, Family, Gauge, Held, Registry, Seconds, Sizes};
use passant_daemon::process::seconds_of;
use passant_proto::status;
use tonic::Status;

use crate::cache::Cache;
use crate::connect::Link;

labels! {
    /// Which method is called on the Workload API's socket.
    pub enum Method: "method" {
        /// `FetchX509SVID`.
        FetchX509Svid = "fetch_x509_svid",
        /// `FetchX509Bundles`.
        FetchX509Bundles = "fetch_x509_bundles",
        /// `FetchJWTSVID`.
        FetchJwtSvid = "fetch_jwt_svid",
        /// `FetchJWTBundles`.
        FetchJwtBundles = "fetch_jwt_bundles",
        /// `ValidateJWTSVID`.
        ValidateJwtSvid = "validate_jwt_svid",
        /// `StreamSecrets`, of Envoy's secret discovery.
        StreamSecrets = "stream_secrets",
        /// `FetchSecrets`, of the same.
        FetchSecrets = "fetch_secrets",
        /// Health.
        Health = "health",
        /// Any other, of any service.
        Other = "other",
    }
}

labels! {
    /// What became of one X509-SVID that was asked for.
    pub enum Mint: "result" {
        /// It came, and fits.
        Minted = "minted",
        /// The server knows no such entry for this node.
        NotFound = "not_found",
        /// The server refused it for another reason.
        Refused = "refused",
        /// What came does not fit: another name or key, expired, or not under the bundle held.
        Unfit = "unfit",
    }
}

labels! {
    /// Which attestor of workloads.
    pub enum Attestor: "attestor" {
        /// User, group and executable.
        Unix = "unix",
        /// Containers of Docker and Podman.
        Docker = "docker",
        /// Units of systemd.
        Systemd = "systemd",
        /// Any other.
        Other = "other",
    }
}

labels! {
    /// What the agent did about its own SVID.
    pub enum NodeStep: "step" {
        /// It proved its node anew.
        Attest = "attest",
        /// It asked for a new one with the one held.
        Renew = "renew",
    }
}

/// Everything that an agent counts and times. Clones count together; without a registry nobody reads it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Syncs with the server.
    pub syncs: Family<Outcome, Counter>,
    /// How long the syncs took that went well.
    pub sync: Seconds,
    /// Watches of the server that have ended.
    pub watches: Family<Outcome, Counter>,
    /// Updates that a server pushed.
    pub updates: Counter,
    /// What a server pushed and that did not add up.
    pub push_faults: Counter,
    /// How long the calls took by which X509-SVIDs were asked for.
    pub mint: Family<Outcome, Seconds>,
    /// How many were asked for in one call.
    pub mint_batch: Sizes,
    /// Calls of that kind that failed as a whole.
    pub mint_failures: Family<Reason, Counter>,
    /// What became of each.
    pub minted: Family<Mint, Counter>,
    /// Attempts at an SVID for the node.
    pub node_svids: Family<(NodeStep, Outcome), Counter>,
    /// Connections to the server that were attempted.
    pub connections: Family<Outcome, Counter>,
    /// Calls of the Workload API socket.
    pub calls: Family<Method, Counter>,
    /// Calls of it that are open.
    pub open_calls: Family<Method, Gauge>,
    /// Calls of it that ended with another status than OK.
    pub refusals: Family<Reason, Counter>,
    /// Answers with secrets that an Envoy has rejected.
    pub rejected_secrets: Counter,
    /// How long attestors took.
    pub attestation: Family<Attestor, Seconds>,
    /// Attestors that failed or did not answer in time.
    pub attestation_failures: Family<Attestor, Counter>,
}

impl Method {
    fn of(path: &str) -> Self {
        match path {
            "/SpiffeWorkloadAPI/FetchX509SVID" => Self::FetchX509Svid,
            "/SpiffeWorkloadAPI/FetchX509Bundles" => Self::FetchX509Bundles,
            "/SpiffeWorkloadAPI/FetchJWTSVID" => Self::FetchJwtSvid,
            "/SpiffeWorkloadAPI/FetchJWTBundles" => Self::FetchJwtBundles,
            "/SpiffeWorkloadAPI/ValidateJWTSVID" => Self::ValidateJwtSvid,
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets" => Self::StreamSecrets,
            "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets" => Self::FetchSecrets,
            path if path.starts_with("/grpc.health.v1.Health/") => Self::Health,
            _ => Self::Other,
        }
    }
}

impl Attestor {
    /// What attestations by `method` count as.
    pub fn named(method: &str) -> Self {
        match method {
            "unix" => Self::Unix,
            "docker" => Self::Docker,
            "systemd" => Self::Systemd,
            _ => Self::Other,
        }
    }
}

impl Metrics {
    /// What is told to Prometheus: the metrics, and at each scrape what the agent holds.
    pub(crate) fn registry(&self, cache: &Cache, link: &Link, host: &Host) -> Registry {
        let mut registry = Registry::new("passant_agent");
        registry.build(env!("CARGO_PKG_VERSION"));
        self.register(&mut registry);
        watch_cache(&mut registry, cache, host);
        let link = link.clone();
        registry.watch(
            "node_svid_not_after_seconds",
            "When the node's own X509-SVID ends, in seconds since 1970",
            move |()| link.not_after().map(seconds_of),
        );
        registry
    }

    fn register(&self, to: &mut Registry) {
        to.register("syncs", "Synchronizations with the server", &self.syncs);
        to.register("sync_seconds", "Time of the synchronizations that went well", &self.sync);
        to.register("watches", "Watches of the server that have ended", &self.watches);
        to.register("updates", "Updates that the server has pushed", &self.updates);
        to.register("push_faults", "What the server has pushed and that did not add up", &self.push_faults);
        to.register("mint_seconds", "Time of the calls by which X509-SVIDs were asked for", &self.mint);
        to.register("mint_batch_svids", "X509-SVIDs that were asked for in one call", &self.mint_batch);
        to.register("mint_failures", "Calls for X509-SVIDs that failed as a whole", &self.mint_failures);
        to.register("minted", "X509-SVIDs by what became of the request for them", &self.minted);
        to.register("node_svids", "Attempts at an SVID for the node itself", &self.node_svids);
        to.register("connections", "Connections to the server that were attempted", &self.connections);
        to.register("workload_calls", "Calls on the Workload API socket", &self.calls);
        to.register(
            "workload_open_calls",
            "Calls on the Workload API socket that are open",
            &self.open_calls,
        );
        to.register(
            "workload_refusals",
            "Calls on the Workload API socket that ended with another status than OK",
            &self.refusals,
        );
        to.register(
            "rejected_secrets",
            "Answers with secrets that an SDS client has rejected",
            &self.rejected_secrets,
        );
        to.register("attestation_seconds", "Time an attestor took for a workload", &self.attestation);
        to.register(
            "attestation_failures",
            "Attestations in which an attestor failed or did not answer in time",
            &self.attestation_failures,
        );
    }
}

fn watch_cache(registry: &mut Registry, cache: &Cache, host: &Host) {
    let (held, clock, started) = (cache.clone(), host.clone(), host.now());
    registry.watch(
        "sync_lag_seconds",
        "Time since the server last confirmed what this node may serve, or since the start if it has not yet",
        move |()| {
            let since = held.confirmed_at().unwrap_or(started);
            Some((seconds_of(clock.now()) - seconds_of(since)).max(0.0))
        },
    );
    let held = cache.clone();
    registry
        .watch("entries", "Registration entries of this node", move |()| Some(count(held.census().entries)));
    let held = cache.clone();
    registry.watch("stops", "Stops that concern this node", move |()| Some(count(held.stops().list().len())));
    let held = cache.clone();
    registry.watch(
        "processes_with_own_svid",
        "Places of processes that have an X509-SVID of their own",
        move |()| Some(count(held.processes().0)),
    );
    let held = cache.clone();
    registry.watch_counter(
        "processes_refused",
        "Processes that were refused an X509-SVID of their own",
        move || Some(f64::from(u32::try_from(held.processes().1).unwrap_or(u32::MAX))),
    );
    let held = cache.clone();
    registry.watch("x509_svids", "X509-SVIDs held for workloads", move |()| Some(count(held.census().svids)));
    let held = cache.clone();
    registry.watch(
        "soonest_x509_svid_not_after_seconds",
        "When the first of the X509-SVIDs held ends, in seconds since 1970",
        move |()| held.census().soonest_end.map(seconds_of),
    );
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// Counts the calls of the Workload API and how they are refused.
#[derive(Clone, Debug)]
pub(crate) struct Calls(pub(crate) Arc<Metrics>);

impl Tally for Calls {
    type Call = Held;

    fn began(&self, path: &str, _: &http::Extensions) -> Held {
        let method = Method::of(path);
        self.0.calls.of(method).inc();
        self.0.open_calls.of(method).hold()
    }

    fn refused(&self, _call: &Held, status: &Status) {
        self.0.refusals.of(status::from_status(status).reason).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_their_path() {
        for (path, method) in [
            ("/SpiffeWorkloadAPI/FetchX509SVID", Method::FetchX509Svid),
            ("/SpiffeWorkloadAPI/ValidateJWTSVID", Method::ValidateJwtSvid),
            ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", Method::StreamSecrets),
            ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", Method::FetchSecrets),
            ("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", Method::Other),
            ("/grpc.health.v1.Health/Watch", Method::Health),
            ("/SpiffeWorkloadAPI/FetchWITSVID", Method::Other),
            ("", Method::Other),
        ] {
            assert_eq!(Method::of(path), method, "{path}");
        }
    }

    #[test]
    fn a_call_is_open_until_its_answer_has_gone() {
        let metrics = Arc::new(Metrics::default());
        let call =
            Calls(Arc::clone(&metrics)).began("/SpiffeWorkloadAPI/FetchX509SVID", &http::Extensions::new());
        assert_eq!(metrics.open_calls.of(Method::FetchX509Svid).value(), 1);
        drop(call);
        assert_eq!(metrics.open_calls.of(Method::FetchX509Svid).value(), 0);
        assert_eq!(metrics.calls.of(Method::FetchX509Svid).count(), 1);
    }
}
