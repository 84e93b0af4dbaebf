//! What does a server count and time?
//!
//! One struct, made at the start and handed down. What can be read off the state is not counted here a second time: see
//! `Metrics::registry`.

use std::sync::Arc;

use http::Extensions;
use passant_core::{Host, Refusal};
use passant_daemon::calls::Tally;
use passant_daemon::label::Outcome;
use passant_daemon::labels;
use passant_daemon::metrics::{Counter, Family, Gauge, Registry, Seconds, Sizes};
use passant_daemon::process::seconds_of;
use passant_proto::status;
use tokio::time::Instant;
use tonic::Status;

use crate::authority::Authorities;
use crate::caller::ConnPeer;
use crate::journal::Journal;
use crate::record::DecisionLog;
use crate::record::refusals::{Refusals, reason_behind};
use crate::state::authority::{AuthorityKind, Phase};

labels! {
    /// What is issued.
    pub enum Kind: "kind" {
        /// The X509-SVID of a workload.
        X509Svid = "x509_svid",
        /// The JWT-SVID of a workload.
        JwtSvid = "jwt_svid",
        /// The X509-SVID of an agent that attests.
        NodeSvid = "node_svid",
        /// The X509-SVID of an agent that renews.
        Renewal = "renewal",
        /// What an operator has minted, X.509 or JWT.
        Minted = "minted",
        /// The server's own X509-SVID.
        ServerSvid = "server_svid",
        /// The X.509 authority of a server below this one.
        DownstreamX509Ca = "downstream_x509_ca",
    }
}

labels! {
    /// By what a node attested.
    pub enum Method: "method" {
        /// By a join token.
        JoinToken = "join_token",
        /// By the key of a certificate.
        X509pop = "x509pop",
        /// By something that this server does not know.
        Unknown = "unknown",
    }
}

labels! {
    /// Which gRPC service was called.
    pub enum Service: "service" {
        /// `spire.api.server.agent.v1.Agent`.
        Agent = "agent",
        /// `spire.api.server.entry.v1.Entry`.
        Entry = "entry",
        /// `spire.api.server.svid.v1.SVID`.
        Svid = "svid",
        /// `spire.api.server.bundle.v1.Bundle`.
        Bundle = "bundle",
        /// `spire.api.server.trustdomain.v1.TrustDomain`.
        TrustDomain = "trustdomain",
        /// `passant.federation.v1.Federation`.
        Federation = "federation",
        /// `passant.sync.v1.Sync`.
        Sync = "sync",
        /// `spire.api.server.logger.v1.Logger`.
        Logger = "logger",
        /// `grpc.health.v1.Health`.
        Health = "health",
        /// `grpc.reflection`.
        Reflection = "reflection",
        /// Any other.
        Other = "other",
    }
}

labels! {
    /// Which limit of the configuration kept a call out. The values are the keys of its section `limits`.
    pub enum Limit: "limit" {
        /// Attestations from one address.
        AttestationsPerAddress = "attestations_per_address",
        /// Attestations in all.
        Attestations = "attestations",
        /// Signatures for one agent.
        SignaturesPerAgent = "signatures_per_agent",
        /// Signatures in all.
        Signatures = "signatures",
        /// SVIDs minted for one administrator or holder of a role.
        MintsPerCaller = "mints_per_caller",
        /// Lists for one caller.
        ListsPerCaller = "lists_per_caller",
        /// Lists in all.
        Lists = "lists",
        /// Calls of one agent under way, or of all.
        CallsPerAgent = "calls_per_agent",
        /// Calls from one address or of one other X509-SVID under way, or of all such.
        CallsPerAddress = "calls_per_address",
        /// Calls of one user of the operator socket under way, or of all.
        CallsPerOperator = "calls_per_operator",
        /// Explanations under way.
        Explanations = "explanations",
        /// Backups under way.
        Backups = "backups",
    }
}

labels! {
    /// How a connection over TLS began.
    pub enum Handshake: "result" {
        /// It was taken.
        Accepted = "accepted",
        /// It took too long.
        Timeout = "timeout",
        /// TLS failed: no agreement, or a certificate that does not verify.
        Tls = "tls",
        /// There were too many.
        Bound = "bound",
    }
}

labels! {
    /// Whose connection it is.
    pub enum Peer: "peer" {
        /// An attested node's.
        Agent = "agent",
        /// That of somebody else with an X509-SVID.
        Workload = "workload",
        /// That of somebody without one.
        Stranger = "stranger",
        /// An operator's.
        Operator = "operator",
    }
}

labels! {
    /// What an authority signs.
    pub enum AuthorityOf: "kind" {
        /// X509-SVIDs.
        X509 = "x509",
        /// JWT-SVIDs.
        Jwt = "jwt",
    }
}

labels! {
    /// Where an authority stands in its life.
    pub enum AuthorityPhase: "phase" {
        /// Published, does not sign yet.
        Prepared = "prepared",
        /// Signs.
        Active = "active",
        /// Signs no more.
        Retired = "retired",
    }
}

labels! {
    /// What came of fetching a foreign bundle.
    pub enum FetchResult: "result" {
        /// It is held from now on.
        Taken = "taken",
        /// It is the one that is held.
        Same = "same",
        /// It is older than the one that is held.
        Older = "older",
        /// There is none.
        Failed = "failed",
    }
}

labels! {
    /// How a watching agent came by its entries in the beginning.
    pub enum Catching: "entries" {
        /// What it held was up to date.
        Same = "same",
        /// It was told the difference.
        Difference = "difference",
        /// It held nothing.
        First = "first",
        /// It held what another store told it.
        Lineage = "lineage",
        /// It held what this store has not come to.
        Future = "future",
        /// Nobody knows any more what it was sent.
        Unknown = "unknown",
        /// It asked for all of them in the course of its watch.
        Resync = "resync",
    }
}

labels! {
    /// Why an agent's watch ended.
    pub enum WatchEnd: "reason" {
        /// The agent left, or its connection did.
        Left = "left",
        /// The agent began another one.
        Replaced = "replaced",
        /// The agent lost its standing.
        Fallen = "fallen",
        /// It did not acknowledge or read in time, or never said hello.
        Late = "late",
        /// It asked for too much.
        Flood = "flood",
        /// What it said made no sense.
        Malformed = "malformed",
        /// The server stopped.
        Stopping = "stopping",
    }
}

/// Everything that a server counts and times. Clones count together; without a registry nobody reads it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// How long issuing took, from the request to the answer, each item of a batch for itself.
    pub issue: Family<(Kind, Outcome), Seconds>,
    /// How long an append to the store took, sync included.
    pub store_append: Seconds,
    /// How many commits shared an append.
    pub store_batch: Sizes,
    /// Appends that failed.
    pub store_failures: Counter,
    /// Commits that were made durable.
    pub commits: Counter,
    /// How long a sync of the decision record took.
    pub record_sync: Seconds,
    /// Writes and syncs of the decision record that failed.
    pub record_failures: Counter,
    /// Syncs that agents began.
    pub syncs: Counter,
    /// Entries that were sent to agents in syncs.
    pub synced_entries: Counter,
    /// Watches of agents that are open.
    pub watches: Gauge,
    /// Watches that began, and snapshots that were asked for later, by how the agent came by its entries.
    pub watch_began: Family<Catching, Counter>,
    /// Watches that ended.
    pub watch_ends: Family<WatchEnd, Counter>,
    /// Updates that were sent on watches, snapshots among them.
    pub watch_updates: Counter,
    /// Those that told everything anew.
    pub watch_snapshots: Counter,
    /// News for an agent that had not been sent older ones yet, and is told of both at once.
    pub watch_conflations: Counter,
    /// Attestations of nodes.
    pub attestations: Family<(Method, Outcome), Counter>,
    /// Calls, by service.
    pub calls: Family<Service, Counter>,
    /// Calls that ended with another status than OK.
    pub refusals: Family<(Service, passant_core::Reason), Counter>,
    /// Calls that a limit of the configuration kept out.
    pub limited: Family<Limit, Counter>,
    /// Calls that were refused for who called or how often, by whose they were.
    pub refused_callers: Family<(Peer, passant_core::Reason), Counter>,
    /// Those of them that are not on record, since there were too many.
    pub refusals_left_out: Counter,
    /// Users that came to the operators' socket, which is not for them.
    pub uninvited: Counter,
    /// Connections over TCP that ended or passed the handshake.
    pub handshakes: Family<Handshake, Counter>,
    /// How long the handshakes took that passed.
    pub handshake: Seconds,
    /// Connections that are open.
    pub connections: Family<Peer, Gauge>,
    /// Fetches of foreign bundles.
    pub federation_fetches: Family<FetchResult, Counter>,
}

impl Method {
    /// What evidence of type `name` is counted as.
    pub fn named(name: &str) -> Self {
        match name {
            "join_token" => Self::JoinToken,
            "x509pop" => Self::X509pop,
            _ => Self::Unknown,
        }
    }
}

impl Service {
    /// The service of the gRPC method `path`, as in `/package.Service/Method`.
    pub fn of(path: &str) -> Self {
        let name = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match name {
            "spire.api.server.agent.v1.Agent" => Self::Agent,
            "spire.api.server.entry.v1.Entry" => Self::Entry,
            "spire.api.server.svid.v1.SVID" => Self::Svid,
            "spire.api.server.bundle.v1.Bundle" => Self::Bundle,
            "spire.api.server.trustdomain.v1.TrustDomain" => Self::TrustDomain,
            "passant.federation.v1.Federation" => Self::Federation,
            "passant.sync.v1.Sync" => Self::Sync,
            "spire.api.server.logger.v1.Logger" => Self::Logger,
            "grpc.health.v1.Health" => Self::Health,
            name if name.starts_with("grpc.reflection.") => Self::Reflection,
            _ => Self::Other,
        }
    }
}

impl Metrics {
    /// Times the issuing of one thing.
    pub async fn issuing<T>(
        &self,
        kind: Kind,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let began = Instant::now();
        let done = work.await;
        self.issue.of((kind, Outcome::of(done.as_ref()))).since(began);
        done
    }

    /// What is told to Prometheus: the metrics, and at each scrape what stands in the state of this server.
    pub(crate) fn registry(
        &self,
        journal: &Journal,
        record: &DecisionLog,
        authorities: &Arc<Authorities>,
        host: &Host,
    ) -> Registry {
        let mut registry = Registry::new("passant_server");
        registry.build(env!("CARGO_PKG_VERSION"));
        self.register(&mut registry);
        watch_state(&mut registry, journal, record);
        watch_authorities(&mut registry, journal, authorities, host);
        registry
    }

    fn register(&self, to: &mut Registry) {
        to.register(
            "issue_seconds",
            "Time from the request for an SVID to its answer, the waits for the disk and the signature included",
            &self.issue,
        );
        to.register(
            "store_append_seconds",
            "Time of an append to the store, sync included",
            &self.store_append,
        );
        to.register("store_append_commits", "Commits that shared one append", &self.store_batch);
        to.register("store_append_failures", "Appends that failed", &self.store_failures);
        to.register("commits", "Commits that were made durable", &self.commits);
        to.register("record_sync_seconds", "Time of a sync of the decision record", &self.record_sync);
        to.register(
            "record_failures",
            "Writes and syncs of the decision record that failed",
            &self.record_failures,
        );
        to.register("syncs", "Synchronizations that agents began", &self.syncs);
        to.register("sync_entries_sent", "Entries sent to agents in synchronizations", &self.synced_entries);
        to.register("watches", "Open watches of agents", &self.watches);
        to.register("watch_began", "How watching agents came by their entries", &self.watch_began);
        to.register("watch_ends", "Watches of agents that ended", &self.watch_ends);
        to.register("watch_updates", "Updates sent on watches, snapshots among them", &self.watch_updates);
        to.register("watch_snapshots", "Snapshots sent on watches", &self.watch_snapshots);
        to.register(
            "watch_conflations",
            "News that were joined with older ones, which an agent was not ready for",
            &self.watch_conflations,
        );
        to.register("node_attestations", "Attestations of nodes", &self.attestations);
        to.register("calls", "Calls of the gRPC API", &self.calls);
        to.register("refusals", "Calls that ended with another status than OK", &self.refusals);
        to.register(
            "limit_refusals",
            "Calls refused by a limit of the configuration, by its key",
            &self.limited,
        );
        to.register(
            "refused_callers",
            "Calls that were refused for who called or how often, by whose they were",
            &self.refused_callers,
        );
        to.register(
            "refusals_left_out",
            "Refusals of callers that are not on record, since there were too many",
            &self.refusals_left_out,
        );
        to.register(
            "uninvited",
            "Connections to the operators' socket of users it is not for",
            &self.uninvited,
        );
        to.register("handshakes", "TCP connections by how their TLS handshake ended", &self.handshakes);
        to.register("handshake_seconds", "Time of the TLS handshakes that passed", &self.handshake);
        to.register("connections", "Open connections", &self.connections);
        to.register("federation_fetches", "Fetches of foreign bundles", &self.federation_fetches);
    }
}

/// Counts calls and how they are refused, and puts on record whom.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refusals: Refusals,
}

/// A call that is under way.
pub(crate) struct Call {
    service: Service,
    method: String,
    peer: Option<ConnPeer>,
}

impl Tally for Calls {
    type Call = Call;

    fn began(&self, path: &str, about: &Extensions) -> Call {
        let service = Service::of(path);
        self.metrics.calls.of(service).inc();
        Call { service, method: path.to_owned(), peer: about.get().cloned() }
    }

    fn refused(&self, call: &Call, status: &Status) {
        let reason = status::from_status(status).reason;
        self.metrics.refusals.of((call.service, reason)).inc();
        if let Some(peer) = &call.peer {
            self.refusals.refused(peer, &call.method, reason_behind(status), &why(status));
        }
    }
}

/// What the caller was told, and behind it what it was not told.
fn why(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let says = error.to_string();
        // Some causes repeat what they are the cause of.
        if !text.contains(&says) {
            text = format!("{text}: {says}");
        }
        cause = error.source();
    }
    text
}

fn watch_state(registry: &mut Registry, journal: &Journal, record: &DecisionLog) {
    let mut watch = |name, help, read: fn(&Journal) -> usize| {
        let journal = journal.clone();
        registry.watch(name, help, move |()| Some(count(read(&journal))));
    };
    watch("journal_queue", "Commands that wait for the journal or are being written", Journal::waiting);
    watch("entries", "Registration entries", |journal| journal.state().entry_count());
    watch("nodes", "Attested nodes", |journal| journal.state().node_count());
    watch("banned_nodes", "Attested nodes that are banned", |journal| {
        journal.state().nodes().filter(|node| node.is_banned()).count()
    });
    watch("join_tokens", "Join tokens, spent ones included", |journal| journal.state().tokens().count());
    watch("federation_relationships", "Trust domains whose bundles are fetched", |journal| {
        journal.state().relationship_count()
    });
    let queue = record.clone();
    registry.watch(
        "record_queue",
        "Groups of decisions that wait for the record or are being written",
        move |()| Some(count(queue.waiting())),
    );
}

fn watch_authorities(
    registry: &mut Registry,
    journal: &Journal,
    authorities: &Arc<Authorities>,
    host: &Host,
) {
    let state = journal.clone();
    registry.watch(
        "active_authority_not_after_seconds",
        "When the active authority ends, in seconds since 1970",
        move |of: AuthorityOf| {
            let state = state.state();
            let active =
                state.authorities().find(|one| one.kind == of.kind() && one.phase == Phase::Active)?;
            Some(seconds_of(active.not_after))
        },
    );
    let state = journal.clone();
    registry.watch(
        "authorities",
        "Authorities by phase",
        move |(of, phase): (AuthorityOf, AuthorityPhase)| {
            let state = state.state();
            let those = state.authorities().filter(|one| one.kind == of.kind() && one.phase == phase.phase());
            Some(count(those.count()))
        },
    );
    let (authorities, host) = (Arc::clone(authorities), host.clone());
    registry.watch(
        "agents_lacking_prepared_authority",
        "Agents that are not known to have the authority that signs next",
        move |of: AuthorityOf| {
            let lacking = authorities.lacking_prepared(of.kind(), host.now());
            Some(count(lacking.map_or(0, |agents| agents.len())))
        },
    );
}

impl AuthorityOf {
    fn kind(self) -> AuthorityKind {
        match self {
            Self::X509 => AuthorityKind::X509,
            Self::Jwt => AuthorityKind::Jwt,
        }
    }
}

impl AuthorityPhase {
    fn phase(self) -> Phase {
        match self {
            Self::Prepared => Phase::Prepared,
            Self::Active => Phase::Active,
            Self::Retired => Phase::Retired,
        }
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_known_by_their_path() {
        for (path, service) in [
            ("/spire.api.server.agent.v1.Agent/AttestAgent", Service::Agent),
            ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Service::Reflection),
            ("/grpc.health.v1.Health/Check", Service::Health),
            ("/", Service::Other),
            ("", Service::Other),
            ("/spire.api.server.agent.v1.AgentX/AttestAgent", Service::Other),
        ] {
            assert_eq!(Service::of(path), service, "{path}");
        }
    }
}
