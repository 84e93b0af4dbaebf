//! Do SPIRE's agents live with this server, and this project's agents with SPIRE's, through SVIDs of a minute, changes of
//! entries and rotations of every authority?
//!
//! On either side two agents attest, one by join token and one by x509pop; each serves a go-spiffe and a py-spiffe program
//! that watch it all the time. Beside that, programs of one agent shake hands with those of the other, JWT-SVIDs of one
//! agent are validated at the other, and this program, a workload of both, sees which authority signs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use passant_core::x509_svid::{X509Svid, split_der};
use passant_proto::agent::ListAgentsRequest;
use passant_proto::entry::{BatchDeleteEntryRequest, BatchUpdateEntryRequest};
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, GetJwtAuthorityStateRequest,
    GetX509AuthorityStateRequest, PrepareJwtAuthorityRequest, PrepareX509AuthorityRequest,
    RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest, TaintJwtAuthorityRequest,
    TaintX509AuthorityRequest,
};
use passant_proto::types;
use passant_proto::workload::{JwtBundlesRequest, X509svid};
use passant_tests::api::{channel, fetch_x509, selector, wire_id, with_header, workload_api};
use passant_tests::daemon::Daemon;
use passant_tests::node_ca::{NodeCa, NodeFiles};
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Channel;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::handshakes::{AUDIENCE, End, Handshakes, SHOW, spiffe_id, token};
use crate::judge::{Client, unrecorded};
use crate::peers::Peer;
use crate::report::{Report, say};
use crate::spire::{Place, Spire};
use crate::watcher::Watcher;
use crate::{decisions, peers, spire_commands};

/// Lifetime of the workloads' SVIDs, in seconds.
const SVID_TTL: i32 = 60;
/// Lifetime of the agents' own SVIDs: long enough for a sync to be missed, short enough to be renewed many times.
const AGENT_TTL: Duration = Duration::from_secs(120);
/// How often each client asks for a JWT-SVID.
const JWT_EVERY: Duration = Duration::from_secs(10);
/// How long a change may take to arrive: SPIRE's agents ask every 5 s, and its server looks at its entries as often.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take until everybody has SVIDs of a new authority: a renewal, and a sync.
const SIGNS_WITHIN: Duration = Duration::from_secs(150);
/// The node that attested by certificate, as entries name it.
const POP: &str = "/pop";
/// What it is for a while only.
const PASSING: &str = "/passing";

/// Who runs whose programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// SPIRE's agents, this project's server.
    SpiresAgents,
    /// This project's agents, SPIRE's server.
    OurAgents,
}

/// One side while it runs.
struct Stage<'a> {
    report: &'a Report,
    side: Side,
    site: Site,
    /// The Workload API of the agent that attested by join token, and of the one that did by certificate.
    sockets: [PathBuf; 2],
    crew: Vec<End>,
    /// Where the copies of programs lie, and the certificate that a node attests by: again and again, as long as it lives.
    _dirs: [tempfile::TempDir; 2],
    server: Daemon,
    agents: Vec<(&'static str, Daemon)>,
}

/// The kinds of authority.
#[derive(Clone, Copy, Debug)]
enum Kind {
    X509,
    Jwt,
}

/// Runs the show, or says loudly that it cannot.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, length: Duration, rotations: u32) -> anyhow::Result<()> {
    let Some(spire) = Spire::found(AGENT_TTL)? else {
        say(
            "SKIPPED spire: SPIRE_BIN_DIR does not name a directory with spire-server and spire-agent, so NOTHING was checked \
             with SPIRE's own programs",
        );
        return Ok(());
    };
    peers::build(report)?;
    spire_commands::run(report, &spire).await?;
    let (one, other) = tokio::join!(
        live(report, &spire, Side::SpiresAgents, length, rotations),
        live(report, &spire, Side::OurAgents, length, rotations),
    );
    for (side, lived) in [(Side::SpiresAgents, one), (Side::OurAgents, other)] {
        report.fact(&format!("{}/runs-to-its-end", side.name()), lived.map(|()| String::new()));
    }
    Ok(())
}

/// One side, from its start to its end.
async fn live(
    report: &Report,
    spire: &Spire,
    side: Side,
    length: Duration,
    rotations: u32,
) -> anyhow::Result<()> {
    let stage = Stage::set(report, spire, side).await?;
    let mut watchers = Vec::new();
    for End { peer, name, program, socket } in &stage.crew {
        let id = spiffe_id(&format!("/{name}"));
        let (dir, jwt) = (stage.site.dir(), (AUDIENCE, JWT_EVERY));
        watchers.push(Watcher::start(*peer, program, name, &id, socket, dir, jwt)?);
    }
    let shaking = Handshakes::start(&stage.crew, &stage.sockets);
    let begin = Instant::now();
    let (changed, rotated) = tokio::join!(
        stage.change_entries(begin, length),
        stage.rotate_all(&watchers, begin, length, rotations),
    );
    sleep_until(begin + length).await;
    for (what, outcome) in [("entry-changes", changed), ("rotations", rotated)] {
        stage.fact(&format!("{what}-run-to-their-end"), outcome.map(|()| String::new()));
    }
    let (shakes, wrong) = shaking.end().await?;
    stage.report.none(
        &stage.name("no-peer-failed-to-verify-another"),
        &wrong,
        &format!("{shakes} handshakes and JWT-SVIDs"),
    );
    stage.judge(watchers, length);
    stage.end().await
}

impl Side {
    /// As facts are named.
    const fn name(self) -> &'static str {
        match self {
            Self::SpiresAgents => "spires-agents",
            Self::OurAgents => "our-agents",
        }
    }
}

impl<'a> Stage<'a> {
    /// Starts server and agents, and registers everybody.
    async fn set(report: &'a Report, spire: &Spire, side: Side) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = NodeCa::new(dir.path())?;
        let site = Site::new(&ServerOptions {
            keys: format!("agent_ttl = \"{}s\"\n", AGENT_TTL.as_secs()),
            tables: format!(
                "[[node_attestor]]\nmethod = \"join_token\"\n[[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n",
                root.file
            ),
        })?;
        let node = root.node(dir.path(), "pop-node")?;
        let port = site.address().rsplit(':').next().context("a port")?.parse()?;
        let server = match side {
            Side::SpiresAgents => site.start_server().await?,
            Side::OurAgents => {
                let plugins = format!(
                    "NodeAttestor \"x509pop\" {{ plugin_data {{ ca_bundle_path = {:?} }} }}",
                    root.file
                );
                let socket = site.server_socket();
                let place =
                    Place { trust_domain: TRUST_DOMAIN, socket: &socket, port, keys: "", plugins: &plugins };
                let server = spire.start_server_at(&site, &place).await?;
                site.write_bundle().await?;
                server
            }
        };
        // Beside the program under test, where executables may lie and links to the peers' are likely possible.
        let here = std::env::current_exe()?;
        let copies = tempfile::tempdir_in(here.parent().context("this program lies in a folder")?)?;
        let sockets = ["token", "pop"].map(|name| match side {
            Side::SpiresAgents => Spire::agent_socket(&site, name),
            Side::OurAgents => site.agent_socket(name),
        });
        let crew = register(&site, copies.path(), &sockets).await?;
        let agents = start_agents(spire, side, &site, port, &node).await?;
        let stage = Self { report, side, site, sockets, crew, _dirs: [copies, dir], server, agents };
        for (socket, (name, agent)) in stage.sockets.iter().zip(&stage.agents) {
            eventually("the agent to serve", READY_WITHIN, || shown(socket, SHOW))
                .await
                .with_context(|| format!("the log of the agent {name}:\n{}", agent.log()))?;
        }
        let attested = stage.agents_by_method().await?;
        let methods: Vec<&str> = attested.keys().map(String::as_str).collect();
        let fact = if methods == ["join_token", "x509pop"] {
            Ok(methods.join(", "))
        } else {
            Err(anyhow::anyhow!("attested: {methods:?}"))
        };
        stage.fact("agents-attest", fact);
        Ok(stage)
    }

    fn name(&self, fact: &str) -> String {
        format!("{}/{fact}", self.side.name())
    }

    fn fact(&self, name: &str, outcome: anyhow::Result<String>) {
        self.report.fact(&self.name(name), outcome);
    }

    /// The serial of each agent's own SVID as the server knows it, by the method by which it attested.
    async fn agents_by_method(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let agents = self.site.operator().await?.agents().list_agents(ListAgentsRequest::default()).await?;
        let agents = agents.into_inner().agents;
        Ok(agents.into_iter().map(|agent| (agent.attestation_type, agent.x509svid_serial_number)).collect())
    }

    /// An entry comes, is changed and goes, and this program sees it.
    async fn change_entries(&self, begin: Instant, length: Duration) -> anyhow::Result<()> {
        let [socket, _] = &self.sockets;
        let mut id = String::new();
        for (part, what) in [(0.15, "created"), (0.4, "updated"), (0.65, "deleted")] {
            sleep_until(begin + length.mul_f64(part)).await;
            let from = Instant::now();
            match what {
                "created" => {
                    let own = std::env::current_exe()?;
                    id = self
                        .site
                        .register(PASSING, |entry| {
                            entry.selectors = vec![by_path(&own)];
                            entry.x509_svid_ttl = SVID_TTL;
                        })
                        .await?;
                }
                "updated" => {
                    let entry = types::Entry {
                        id: id.clone(),
                        dns_names: vec!["passing.example.org".to_owned()],
                        hint: "changed".to_owned(),
                        ..types::Entry::default()
                    };
                    let mask =
                        types::EntryMask { dns_names: true, hint: true, ..types::EntryMask::default() };
                    let request = BatchUpdateEntryRequest {
                        entries: vec![entry],
                        input_mask: Some(mask),
                        output_mask: None,
                    };
                    let done = self.site.operator().await?.entries().batch_update_entry(request).await?;
                    all_well(done.into_inner().results.into_iter().map(|result| result.status))?;
                }
                _ => {
                    let request = BatchDeleteEntryRequest { ids: vec![id.clone()] };
                    let done = self.site.operator().await?.entries().batch_delete_entry(request).await?;
                    all_well(done.into_inner().results.into_iter().map(|result| result.status))?;
                }
            }
            let arrived = eventually("the change to arrive", ARRIVES_WITHIN, || async {
                let passing = shown(socket, PASSING).await;
                match what {
                    "created" => drop(passing?),
                    "updated" => {
                        let svid = passing?;
                        let parsed = X509Svid::parse(split_der(&svid.x509_svid, 16)?)?;
                        ensure!(svid.hint == "changed", "its hint is {:?}", svid.hint);
                        ensure!(
                            parsed.dns_names() == ["passing.example.org"],
                            "its DNS names did not change"
                        );
                    }
                    _ => ensure!(passing.is_err(), "it is still served"),
                }
                Ok(format!("after {:.1} s", from.elapsed().as_secs_f64()))
            });
            self.fact(&format!("entry-that-is-{what}-arrives"), arrived.await);
        }
        Ok(())
    }

    /// All rotations, spread over the time.
    async fn rotate_all(
        &self,
        watchers: &[Watcher],
        begin: Instant,
        length: Duration,
        rotations: u32,
    ) -> anyhow::Result<()> {
        for nth in 1..=rotations {
            sleep_until(begin + length * (nth - 1) / rotations + length.mul_f64(0.1) / rotations).await;
            let rotated = self.rotate_x509(watchers).await;
            self.fact(&format!("rotation-{nth}-of-the-x509-authority"), rotated);
            let rotated = self.rotate_jwt().await;
            self.fact(&format!("rotation-{nth}-of-the-jwt-authority"), rotated);
        }
        Ok(())
    }

    /// Prepared, waited for, activated, the old one tainted, waited for again, and revoked.
    async fn rotate_x509(&self, watchers: &[Watcher]) -> anyhow::Result<String> {
        let from = Instant::now();
        let mut api = self.authorities().await?;
        let (old, new) = self.activate(&mut api, Kind::X509).await?;
        let activated = from.elapsed();
        let held = last_serials(watchers)?;
        let own = self.agents_by_method().await?;
        let request = TaintX509AuthorityRequest { authority_id: old.clone() };
        api.taint_x509_authority(request).await.context("taint the old one")?;
        eventually("everybody to have SVIDs of the new authority", SIGNS_WITHIN, || async {
            for socket in &self.sockets {
                let by = signed_by(&shown(socket, SHOW).await?)?;
                ensure!(by == new, "{} has one that {by} signed", socket.display());
            }
            for ((name, before), (_, now)) in held.iter().zip(last_serials(watchers)?) {
                ensure!(*before != now, "{name} still has {before}");
            }
            for (method, now) in self.agents_by_method().await? {
                ensure!(own.get(&method) != Some(&now), "the agent of {method} still has its own SVID {now}");
            }
            Ok(())
        })
        .await?;
        let signs = from.elapsed();
        let request = RevokeX509AuthorityRequest { authority_id: old.clone() };
        api.revoke_x509_authority(request).await.context("revoke the old one")?;
        self.until_at_agents(Kind::X509, "to lose the old one", |ids| !ids.contains(&old)).await?;
        Ok(format!(
            "active after {} s, tainted and signing everywhere after {} s, the old one gone after {} s",
            activated.as_secs(),
            signs.as_secs(),
            from.elapsed().as_secs()
        ))
    }

    async fn rotate_jwt(&self) -> anyhow::Result<String> {
        let from = Instant::now();
        let mut api = self.authorities().await?;
        let (old, new) = self.activate(&mut api, Kind::Jwt).await?;
        let activated = from.elapsed();
        let request = TaintJwtAuthorityRequest { authority_id: old.clone() };
        api.taint_jwt_authority(request).await.context("taint the old one")?;
        eventually("everybody to have JWT-SVIDs of the new authority", SIGNS_WITHIN, || async {
            for socket in &self.sockets {
                let by = key_id(&token(socket).await?)?;
                ensure!(by == new, "{} has one that {by} signed", socket.display());
            }
            Ok(())
        })
        .await?;
        // What the clients of the agents fetched before is asked for again within this time.
        sleep(JWT_EVERY).await;
        let request = RevokeJwtAuthorityRequest { authority_id: old.clone() };
        api.revoke_jwt_authority(request).await.context("revoke the old one")?;
        self.until_at_agents(Kind::Jwt, "to lose the old one", |ids| !ids.contains(&old)).await?;
        Ok(format!(
            "active after {} s, the old one gone after {} s",
            activated.as_secs(),
            from.elapsed().as_secs()
        ))
    }

    async fn authorities(&self) -> anyhow::Result<LocalAuthorityClient<Channel>> {
        Ok(LocalAuthorityClient::new(channel(&self.site.server_socket()).await?))
    }

    /// Prepares an authority and activates it once it is at the agents; gives the ids of the one before and of this one.
    async fn activate(
        &self,
        api: &mut LocalAuthorityClient<Channel>,
        kind: Kind,
    ) -> anyhow::Result<(String, String)> {
        let prepared = match kind {
            Kind::X509 => {
                api.prepare_x509_authority(PrepareX509AuthorityRequest {})
                    .await?
                    .into_inner()
                    .prepared_authority
            }
            Kind::Jwt => {
                api.prepare_jwt_authority(PrepareJwtAuthorityRequest {})
                    .await?
                    .into_inner()
                    .prepared_authority
            }
        };
        let new = prepared.context("a prepared authority")?.authority_id;
        self.until_at_agents(kind, "to get the new one", |ids| ids.contains(&new)).await?;
        // This server refuses until it knows so, too; SPIRE's activates whenever it is told to.
        let api = api.clone();
        eventually("the activation", ARRIVES_WITHIN, || async {
            let (mut api, authority_id) = (api.clone(), new.clone());
            match kind {
                Kind::X509 => {
                    drop(api.activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await?)
                }
                Kind::Jwt => {
                    drop(api.activate_jwt_authority(ActivateJwtAuthorityRequest { authority_id }).await?)
                }
            }
            Ok(())
        })
        .await?;
        let mut api = api;
        let (active, old) = match kind {
            Kind::X509 => {
                let state = api.get_x509_authority_state(GetX509AuthorityStateRequest {}).await?.into_inner();
                (state.active, state.old)
            }
            Kind::Jwt => {
                let state = api.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await?.into_inner();
                (state.active, state.old)
            }
        };
        ensure!(active.is_some_and(|active| active.authority_id == new), "another one is active");
        Ok((old.context("the authority before")?.authority_id, new))
    }

    /// Waits until what both agents serve as the ids of authorities is as wanted.
    async fn until_at_agents(
        &self,
        kind: Kind,
        what: &str,
        wanted: impl Fn(&[String]) -> bool,
    ) -> anyhow::Result<()> {
        eventually(&format!("both agents {what}"), ARRIVES_WITHIN, || async {
            for socket in &self.sockets {
                let ids = match kind {
                    Kind::X509 => x509_authorities(&shown(socket, SHOW).await?)?,
                    Kind::Jwt => jwt_authorities(socket).await?,
                };
                ensure!(wanted(&ids), "{} has {ids:?}", socket.display());
            }
            Ok(())
        })
        .await
    }

    /// Every fact about what the clients received.
    fn judge(&self, watchers: Vec<Watcher>, length: Duration) {
        let (mut clients, mut ended) = (Vec::new(), Vec::new());
        for watcher in watchers {
            match watcher.stop() {
                Ok(client) => clients.push(client),
                Err(why) => ended.push(format!("{why:#}")),
            }
        }
        self.report.none(&self.name("every-client-watched-to-the-end"), &ended, "");
        let all = |of: &dyn Fn(&Client) -> Vec<String>| clients.iter().flat_map(of).collect::<Vec<_>>();
        let svids: usize = clients.iter().map(|client| client.svids().len()).sum();
        let jwts: usize = clients.iter().map(|client| client.jwt().len()).sum();
        let seen = format!("{} clients, {svids} X509-SVIDs, {jwts} JWT-SVIDs", clients.len());
        self.report.none(&self.name("no-client-got-or-held-an-expired-svid"), &all(&Client::expired), &seen);
        self.report.none(&self.name("every-svid-was-the-clients-own-and-verified"), &all(&Client::wrong), "");
        let failures = match self.side {
            Side::SpiresAgents => all(&Client::failures_once_served),
            Side::OurAgents => all(&Client::failures),
        };
        self.report.none(&self.name("no-client-saw-a-failure"), &failures, "");
        // No SVID serves longer than it lives.
        let least = length.as_secs() / SVID_TTL.unsigned_abs() as u64;
        let changes = |client: &Client| client.rotations().len();
        let few: Vec<String> = clients
            .iter()
            .filter(|client| (changes(client) as u64) < least)
            .map(|client| format!("{} saw {} changes", client.name, changes(client)))
            .collect();
        let counts: Vec<String> =
            clients.iter().map(|client| format!("{} {}", client.name, changes(client))).collect();
        self.report.none(
            &self.name("every-client-saw-its-serial-change"),
            &few,
            &format!("at least {least} each: {}", counts.join(", ")),
        );
        if self.side == Side::SpiresAgents {
            let recorded = decisions::read(&self.site.path("server-data").join("decisions"));
            let fact = recorded.and_then(|decided| {
                let violations = unrecorded(&clients, &decided);
                ensure!(violations.is_empty(), "{}", violations.join("; "));
                Ok(String::new())
            });
            self.fact("every-svid-seen-is-on-record", fact);
        }
    }

    /// Stops everybody, who must have lived until now.
    async fn end(self) -> anyhow::Result<()> {
        let side = self.side.name();
        let daemons = self.agents.into_iter().chain([("server", self.server)]);
        for (name, mut daemon) in daemons {
            let lived = match daemon.ended()? {
                None => Ok(String::new()),
                Some(status) => Err(anyhow::anyhow!("it ended: {status}; its log:\n{}", daemon.log())),
            };
            let lived = match lived {
                Ok(_) => daemon.stop().await.map(|()| String::new()),
                Err(ended) => Err(ended),
            };
            self.report.fact(&format!("{side}/{name}-lives-through-it-and-stops-when-told-to"), lived);
        }
        Ok(())
    }
}

/// An entry for each program, told apart by its path, and for this one; and the alias of the node with a certificate.
async fn register(site: &Site, dir: &Path, sockets: &[PathBuf; 2]) -> anyhow::Result<Vec<End>> {
    site.register(POP, |entry| {
        entry.parent_id = wire_id(TRUST_DOMAIN, "/spire/server");
        entry.selectors = vec![selector("x509pop", "subject:cn:pop-node")];
    })
    .await?;
    let mut crew = Vec::new();
    let own = std::env::current_exe()?;
    for (node, socket) in [NODE, POP].into_iter().zip(sockets) {
        let mine = |entry: &mut types::Entry, path: &Path| {
            entry.parent_id = wire_id(TRUST_DOMAIN, node);
            entry.selectors = vec![by_path(path)];
            entry.x509_svid_ttl = SVID_TTL;
            entry.jwt_svid_ttl = SVID_TTL;
        };
        site.register(SHOW, |entry| mine(entry, &own)).await?;
        for peer in [Peer::Go, Peer::Python] {
            let name = format!("{}-at-{}", peer.name(), node.trim_start_matches('/'));
            let program = peer.copy(dir, &name)?;
            site.register(&format!("/{name}"), |entry| mine(entry, &program.path)).await?;
            crew.push(End { peer, name, program, socket: socket.clone() });
        }
    }
    Ok(crew)
}

async fn start_agents(
    spire: &Spire,
    side: Side,
    site: &Site,
    port: u16,
    node: &NodeFiles,
) -> anyhow::Result<Vec<(&'static str, Daemon)>> {
    let token = site.join_token().await?;
    let NodeFiles { certificate, key } = node;
    let started = match side {
        Side::SpiresAgents => {
            let bundle = site.bundle_file();
            let by_token = ("NodeAttestor \"join_token\" { plugin_data {} }", bundle.as_path());
            let by_certificate = format!(
                "NodeAttestor \"x509pop\" {{ plugin_data {{ private_key_path = {key:?} certificate_path = {certificate:?} }} }}"
            );
            [
                spire.spawn_agent_by(site, "token", port, by_token, &["-joinToken", &token])?,
                spire.spawn_agent_by(site, "pop", port, (&by_certificate, &bundle), &[])?,
            ]
        }
        Side::OurAgents => {
            let unix = "[workload_attestors.unix]\ndiscover_workload_path = true\nworkload_size_limit = -1\n";
            site.configure_agent("token", &format!("method = \"join_token\"\n{unix}"), "")?;
            let by_certificate =
                format!("method = \"x509pop\"\ncertificate = {certificate:?}\nprivate_key = {key:?}\n{unix}");
            site.configure_agent("pop", &by_certificate, "")?;
            [site.spawn_agent("token", &["--join-token", &token])?, site.spawn_agent("pop", &[])?]
        }
    };
    Ok(["agent-by-join-token", "agent-by-x509pop"].into_iter().zip(started).collect())
}

fn by_path(path: &Path) -> types::Selector {
    selector("unix", &format!("path:{}", path.display()))
}

fn all_well(statuses: impl Iterator<Item = Option<types::Status>>) -> anyhow::Result<()> {
    for status in statuses {
        let status = status.context("a status")?;
        ensure!(status.code == 0, "{}", status.message);
    }
    Ok(())
}

/// The serial that each watcher has now, with its name.
fn last_serials(watchers: &[Watcher]) -> anyhow::Result<Vec<(String, String)>> {
    watchers
        .iter()
        .map(|watcher| {
            let client = watcher.so_far()?;
            let last = client.svids().last().map(|svid| svid.serial.clone());
            Ok((client.name, last.context("a watcher has no SVID")?))
        })
        .collect()
}

/// What this program has as `path` at an agent.
async fn shown(socket: &Path, path: &str) -> anyhow::Result<X509svid> {
    let id = spiffe_id(path);
    let answer = fetch_x509(socket).await?;
    answer.svids.into_iter().find(|svid| svid.spiffe_id == id).with_context(|| format!("no SVID of {id}"))
}

/// The id of the authority that signed it.
fn signed_by(svid: &X509svid) -> anyhow::Result<String> {
    let chain = split_der(&svid.x509_svid, 16)?;
    let last = X509Svid::parse(chain)?;
    Ok(hex(last.authority_key_id().context("an authority key identifier")?))
}

/// The ids of the X.509 authorities in the bundle that came with it.
fn x509_authorities(svid: &X509svid) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for der in split_der(&svid.bundle, 100)? {
        let (_, certificate) = X509Certificate::from_der(&der)?;
        let id = certificate.extensions().iter().find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else { return None };
            Some(hex(id.0))
        });
        ids.push(id.context("a subject key identifier")?);
    }
    Ok(ids)
}

/// The ids of the JWT authorities that an agent serves.
async fn jwt_authorities(socket: &Path) -> anyhow::Result<Vec<String>> {
    let mut api = workload_api(socket).await?;
    let mut stream = api.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await?.into_inner();
    let bundles = stream.message().await?.context("a message")?.bundles;
    let own = bundles.get(&format!("spiffe://{TRUST_DOMAIN}")).context("the own bundle")?;
    let document: Value = serde_json::from_slice(own)?;
    let keys = document["keys"].as_array().context("keys")?;
    Ok(keys.iter().filter_map(|key| Some(key["kid"].as_str()?.to_owned())).collect())
}

/// The id of the authority that signed a JWT-SVID.
///
/// # Errors
/// When it is none.
pub(crate) fn key_id(token: &str) -> anyhow::Result<String> {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap_or_default())?;
    let header: Value = serde_json::from_slice(&header)?;
    Ok(header["kid"].as_str().context("a kid")?.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
