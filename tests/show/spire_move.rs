//! Does a live SPIRE agent that attested by join token move here with its workloads, by import and address alone?
//!
//! Two of SPIRE's agents and a SPIRE server; one agent moves, one stays. The workloads of both verify each other all the
//! time, by the bundles that their agents serve them. The agents' own SVIDs live a minute, so that they are renewed at SPIRE
//! between import and move, and here after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_core::bundle::{Bundle, X509Authority};
use passant_core::x509_svid::{X509Svid, split_der};
use passant_core::{TrustDomain, UnixTime};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;
use passant_proto::entry::BatchCreateEntryRequest;
use passant_proto::types;
use passant_proto::workload::{JwtsvidRequest, ValidateJwtsvidRequest, X509svidResponse};
use passant_tests::api::{Operator, fetch_x509, selector, wire_id, with_header, workload_api};
use passant_tests::site::{ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::decisions;
use crate::moment::Moment;
use crate::report::{Report, say};
use crate::spire::Spire;

/// Lifetime of the agents' own SVIDs, at both servers.
const AGENT_TTL: Duration = Duration::from_secs(60);
/// Lifetime of the workloads' X509-SVIDs, in seconds.
const X509_TTL: i32 = 60;
/// How long SPIRE's agents get to fetch its bundle; they ask every 5 s.
const WAIT: &str = "15s";
/// How long anything may take that happens at half-life.
const RENEWED_WITHIN: Duration = Duration::from_secs(90);
/// How often the workloads look at each other.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The SPIFFE ID path of an administrator of SPIRE.
const ADMINISTRATOR: &str = "/ops";

/// Who moves and who stays: agent, SPIFFE ID path of its node, and of its workload.
const MOVING: Node = Node { name: "moving", alias: "/node/moving", workload: "/app/moving" };
const STAYING: Node = Node { name: "staying", alias: "/node/staying", workload: "/app/staying" };

struct Node {
    name: &'static str,
    alias: &'static str,
    workload: &'static str,
}

/// What a workload has at one moment.
#[derive(Clone)]
struct Held {
    svid: X509Svid,
    bundle: Bundle,
}

/// Runs the show, or says loudly that it cannot.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    let Some(spire) = Spire::found(AGENT_TTL)? else {
        say(
            "SKIPPED spire-move: SPIRE_BIN_DIR does not name a directory with spire-server and spire-agent, so NOTHING was \
             checked with SPIRE's own programs",
        );
        return Ok(());
    };
    let site = Site::new(&ServerOptions {
        keys: format!("agent_ttl = \"{}s\"\n", AGENT_TTL.as_secs()),
        tables: String::new(),
    })?;
    let spire_server = spire.start_server(&site).await?;
    register(&site).await?;
    let moving = spire.start_agent(&site, MOVING.name, MOVING.alias).await?;
    let staying = spire.start_agent(&site, STAYING.name, STAYING.alias).await?;
    let old = [held(&site, &MOVING).await?, held(&site, &STAYING).await?];
    let server = site.start_server().await?;
    let watch = Watch::start(&site);

    import(report, &site)?;
    report.fact("spire-move/an-administrator-sees-the-same-over-tcp", import_over_tcp(&site, spire.port()));
    let ours = own_bundle(&site.server_socket()).await?;
    let theirs = own_bundle(&Spire::server_socket(&site)).await?;
    let lacks = |bundle: &Bundle, other: &Bundle| {
        other.x509_authorities.iter().any(|one| !bundle.x509_authorities.contains(one))
    };
    let fact = if lacks(&ours, &theirs) || lacks(&theirs, &ours) {
        Err(anyhow::anyhow!("{ours:?}; {theirs:?}"))
    } else {
        Ok(format!("{} X.509 authorities", ours.x509_authorities.len()))
    };
    report.fact("spire-move/both-servers-have-the-same-authorities", fact);
    for node in [&MOVING, &STAYING] {
        let serves = held(&site, node).await.and_then(|held| {
            ensure!(!lacks(&held.bundle, &ours), "its workload has {:?}", held.bundle);
            Ok(String::new())
        });
        report.fact(&format!("spire-move/the-{}-agent-serves-them-before-the-move", node.name), serves);
    }

    // Its SVID is renewed by SPIRE after the import: what was imported is out of date when it moves.
    let serial = adopted_serial(&site)?;
    let data = Spire::agent_data(&site, MOVING.name);
    let renewed = eventually("SPIRE to renew the SVID of the agent", RENEWED_WITHIN, || async {
        let now = spire_serial(&site).await?;
        ensure!(now != serial, "it still has {serial}");
        Ok(format!("{serial} when imported, {now} when it moves"))
    });
    report.fact("spire-move/spire-renews-the-agent-between-import-and-move", renewed.await);
    moving.stop().await.context("the moving agent")?;
    let before = std::fs::read(&data)?;

    let port = site.address().rsplit(':').next().context("a port")?.parse()?;
    say(&format!("the agent goes from port {} to port {port}", spire.port()));
    let moved_at = Moment::now();
    let moved = spire.spawn_agent(&site, MOVING.name, port, &[])?;
    let socket = Spire::agent_socket(&site, MOVING.name);
    let new = eventually("the moved agent to serve an SVID of this server", RENEWED_WITHIN, || async {
        let answer = fetch_x509(&socket).await?;
        let held = Held::of(&answer, MOVING.workload)?;
        held.svid.verify(&only_ours(&site).await?, now())?;
        Ok(held)
    })
    .await
    .with_context(|| format!("the moved agent's log:\n{}", moved.log()))?;
    report.fact(
        "spire-move/the-moved-agents-workload-gets-svids-of-this-server",
        Ok(format!("{} s after its start", Moment::now().secs() - moved_at.secs())),
    );
    report.fact("spire-move/it-did-not-attest-again", did_not_attest(&site, &moved.log(), &before));
    everything_verifies(report, &site, &old, &new).await?;
    report.fact("spire-move/jwt-svids-of-either-validate-at-the-other", jwts_cross(&site).await);

    let renewed = eventually("this server to renew the SVID of the agent", RENEWED_WITHIN, || async {
        let log = decisions::read(&site.path("server-data").join("decisions"))?;
        let of_agent = log.into_iter().find(|one| one.kind == "node_svid" && one.at >= moved_at);
        let serial = of_agent.context("no node SVID is on record")?.serial;
        let shown = agents(&site)?.into_iter().find(|one| one.0 == serial);
        shown.map(|(serial, _)| serial).context("the renewed SVID was not used yet")
    });
    report.fact("spire-move/this-server-renews-the-moved-agent", renewed.await);
    report.fact("spire-move/undo-refuses-while-agents-live-here", undo_refuses(&site));

    let (looks, wrong) = watch.end().await?;
    report.none("spire-move/no-workload-failed-to-verify-the-other", &wrong, &format!("{looks} times"));
    for (name, daemon) in [
        ("moved-agent", moved),
        ("staying-agent", staying),
        ("spire-server", spire_server),
        ("server", server),
    ] {
        report.fact(
            &format!("spire-move/{name}-stops-when-told-to"),
            daemon.stop().await.map(|()| String::new()),
        );
    }
    Ok(())
}

/// An entry for every process of this user on either node, at SPIRE.
async fn register(site: &Site) -> anyhow::Result<()> {
    let entry = |node: &Node| types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, node.workload),
        parent_id: wire_id(TRUST_DOMAIN, node.alias),
        selectors: vec![selector("unix", &format!("uid:{}", nix::unistd::getuid()))],
        x509_svid_ttl: X509_TTL,
        hint: node.name.to_owned(),
        ..types::Entry::default()
    };
    // For nobody on the nodes: its X509-SVID is minted.
    let administrator = types::Entry {
        spiffe_id: wire_id(TRUST_DOMAIN, ADMINISTRATOR),
        selectors: vec![selector("unix", "uid:4294967294")],
        admin: true,
        ..entry(&STAYING)
    };
    let entries = vec![entry(&MOVING), entry(&STAYING), administrator];
    let request = BatchCreateEntryRequest { entries, output_mask: None };
    let operator = Operator::connect(&Spire::server_socket(site)).await?;
    for result in operator.entries().batch_create_entry(request).await?.into_inner().results {
        let status = result.status.unwrap_or_default();
        ensure!(status.code == 0, "SPIRE refused an entry: {}", status.message);
    }
    Ok(())
}

/// Imports, as an operator would: first to see, then to do, then once more.
fn import(report: &Report, site: &Site) -> anyhow::Result<()> {
    let socket = Spire::server_socket(site);
    let socket = socket.to_str().context("a path of text")?;
    let ledger = site.path("ledger");
    let ledger = ledger.to_str().context("a path of text")?;
    let command = ["import", "spire", "--spire-socket", socket, "--ledger", ledger];
    let planned = site.passant_json(&[&command[..], &["--dry-run"]].concat())?;
    let copied = site.passant_json(&[&command[..], &["--wait", WAIT]].concat())?;
    let again = site.passant_json(&[&command[..], &["--wait", WAIT]].concat())?;
    // Two entries of workloads, one of an administrator, and one alias for each token.
    for (kind, least) in [("authorities_here", 2), ("authorities_there", 2), ("entries", 5), ("agents", 2)] {
        let of = |json: &Value, what: &str| json[kind][what].as_u64().unwrap_or(0);
        let counts = format!("{} planned, {} copied", of(&planned, "done"), of(&copied, "done"));
        let held = of(&copied, "done") == least && of(&planned, "done") == least;
        let fact = if held { Ok(counts) } else { Err(anyhow::anyhow!("{counts}; {copied}")) };
        report.fact(&format!("spire-move/import-copies-{kind}"), fact);
        let changed = if kind == "agents" { 0 } else { of(&again, "done") };
        let fact = if changed == 0 { Ok(String::new()) } else { Err(anyhow::anyhow!("{again}")) };
        report.fact(&format!("spire-move/a-second-import-copies-no-{kind}"), fact);
    }
    Ok(())
}

/// Looks again, at SPIRE's port and with an X509-SVID that SPIRE mints.
fn import_over_tcp(site: &Site, port: u16) -> anyhow::Result<String> {
    let text = |name: &str| -> anyhow::Result<String> {
        Ok(site.path(name).to_str().context("a path of text")?.to_owned())
    };
    let (socket, dir, bundle) = (text("spire-server.sock")?, text("ops")?, text("spire-bundle.pem")?);
    let (svid, key) = (format!("{dir}/svid.pem"), format!("{dir}/key.pem"));
    let id = format!("spiffe://{TRUST_DOMAIN}{ADMINISTRATOR}");
    site.passant_json(&["--server-socket", &socket, "x509", "mint", "--spiffe-id", &id, "--write", &dir])?;
    let address = format!("127.0.0.1:{port}");
    let seen = site.passant_json(&[
        "import",
        "spire",
        "--dry-run",
        "--spire-address",
        &address,
        "--spire-svid",
        &svid,
        "--spire-key",
        &key,
        "--spire-bundle",
        &bundle,
    ])?;
    let entries = seen["entries"]["already"].as_u64();
    ensure!(entries == Some(5) && seen["entries"]["done"] == 0, "{seen}");
    Ok(String::new())
}

/// Every SVID of before and after, by every bundle there is.
async fn everything_verifies(
    report: &Report,
    site: &Site,
    old: &[Held; 2],
    new: &Held,
) -> anyhow::Result<()> {
    let bundles = [
        ("this server", own_bundle(&site.server_socket()).await?),
        ("SPIRE's server", own_bundle(&Spire::server_socket(site)).await?),
        ("the moved agent", held(site, &MOVING).await?.bundle),
        ("the staying agent", held(site, &STAYING).await?.bundle),
    ];
    let svids = [
        ("the old SVID of the moved workload", &old[0].svid),
        ("the old SVID of the other workload", &old[1].svid),
        ("the new SVID of the moved workload", &new.svid),
    ];
    for (whose, bundle) in &bundles {
        let wrong: Vec<String> = svids
            .iter()
            // One that has expired by now is looked at as of its end.
            .filter_map(|(what, svid)| {
                svid.verify(bundle, now().min(svid.not_after())).err().map(|why| format!("{what}: {why}"))
            })
            .collect();
        report.none(
            &format!(
                "spire-move/old-and-new-svids-verify-by-the-bundle-of-{}",
                whose.replace([' ', '\''], "-")
            ),
            &wrong,
            "",
        );
    }
    Ok(())
}

/// A token of each workload is validated by the agent of the other.
async fn jwts_cross(site: &Site) -> anyhow::Result<String> {
    let audience = "spire-move".to_owned();
    for (of, at) in [(&MOVING, &STAYING), (&STAYING, &MOVING)] {
        let mut api = workload_api(&Spire::agent_socket(site, of.name)).await?;
        let request = JwtsvidRequest { audience: vec![audience.clone()], spiffe_id: String::new() };
        let answer = api.fetch_jwtsvid(with_header(request)).await?.into_inner();
        let svid = answer.svids.into_iter().next().context("no token")?.svid;
        let mut api = workload_api(&Spire::agent_socket(site, at.name)).await?;
        let request = ValidateJwtsvidRequest { audience: audience.clone(), svid };
        let valid = api.validate_jwtsvid(with_header(request)).await;
        let valid = valid.with_context(|| format!("a token of {} at the agent {}", of.workload, at.name))?;
        ensure!(valid.get_ref().spiffe_id.ends_with(of.workload), "{valid:?}");
    }
    Ok(String::new())
}

/// What the agent and this server say of its coming.
fn did_not_attest(site: &Site, log: &str, before: &[u8]) -> anyhow::Result<String> {
    for said in ["Starting node attestation", "Node attestation was successful"] {
        ensure!(!log.contains(said), "its log says: {said}");
    }
    ensure!(log.contains("SVID loaded"), "its log does not say that it took up the SVID it had");
    ensure!(!before.is_empty(), "it had no data");
    let server = std::fs::read_to_string(site.path("server.log"))?;
    ensure!(!server.contains("node attest"), "this server was asked to attest");
    Ok("its log says \"SVID loaded\"".to_owned())
}

fn undo_refuses(site: &Site) -> anyhow::Result<String> {
    let ledger = site.path("ledger");
    let output =
        site.passant(["import".as_ref(), "undo".as_ref(), "--ledger".as_ref(), ledger.as_os_str()])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("1 agents have moved here"), "{said}");
    Ok(String::new())
}

/// Serials in hex, and SPIFFE IDs, of the agents that this server knows.
fn agents(site: &Site) -> anyhow::Result<Vec<(String, String)>> {
    let listed = site.passant_json(&["agent", "list"])?;
    let one = |agent: &Value| -> anyhow::Result<(String, String)> {
        let serial: u128 = agent["x509svid_serial_number"].as_str().unwrap_or_default().parse()?;
        Ok((format!("{serial:032x}"), agent["id"]["path"].as_str().unwrap_or_default().to_owned()))
    };
    listed["agents"].as_array().context("agents")?.iter().map(one).collect()
}

/// Where the alias of the moving agent's token leads: the agent's own path.
fn moving_agent(site: &Site) -> anyhow::Result<String> {
    let alias = format!("spiffe://{TRUST_DOMAIN}{}", MOVING.alias);
    let listed = site.passant_json(&["entry", "list", "--spiffe-id", &alias])?;
    Ok(listed["entries"][0]["parent_id"]["path"].as_str().context("the alias")?.to_owned())
}

/// The serial of the moving agent's SVID as it was imported.
fn adopted_serial(site: &Site) -> anyhow::Result<String> {
    let path = moving_agent(site)?;
    agents(site)?.into_iter().find(|one| one.1 == path).map(|one| one.0).context("it was not adopted")
}

/// The serial of the moving agent's SVID as SPIRE knows it.
async fn spire_serial(site: &Site) -> anyhow::Result<String> {
    let path = moving_agent(site)?;
    let operator = Operator::connect(&Spire::server_socket(site)).await?;
    let request =
        passant_proto::agent::GetAgentRequest { id: wire_id(TRUST_DOMAIN, &path), output_mask: None };
    let agent = operator.agents().get_agent(request).await?.into_inner();
    Ok(format!("{:032x}", agent.x509svid_serial_number.parse::<u128>()?))
}

async fn own_bundle(socket: &Path) -> anyhow::Result<Bundle> {
    let operator = Operator::connect(socket).await?;
    let bundle = operator.bundles().get_bundle(GetBundleRequest { output_mask: None }).await?.into_inner();
    Ok(convert::bundle::from_wire(&bundle)?)
}

/// This server's bundle without SPIRE's authorities: by it only what this server signed verifies.
async fn only_ours(site: &Site) -> anyhow::Result<Bundle> {
    let mut bundle = own_bundle(&site.server_socket()).await?;
    let spires =
        Bundle::from_pem(TrustDomain::parse(TRUST_DOMAIN)?, &std::fs::read(site.path("spire-bundle.pem"))?)?;
    bundle.x509_authorities.retain(|one| spires.x509_authorities.iter().all(|theirs| theirs.der != one.der));
    Ok(bundle)
}

async fn held(site: &Site, node: &Node) -> anyhow::Result<Held> {
    Held::of(&fetch_x509(&Spire::agent_socket(site, node.name)).await?, node.workload)
}

fn now() -> UnixTime {
    UnixTime::from_secs(Moment::now().secs())
}

impl Held {
    fn of(answer: &X509svidResponse, path: &str) -> anyhow::Result<Self> {
        let id = format!("spiffe://{TRUST_DOMAIN}{path}");
        let found = answer.svids.iter().find(|svid| svid.spiffe_id == id).context("it has no such SVID")?;
        let mut bundle = Bundle::empty(TrustDomain::parse(TRUST_DOMAIN)?);
        for der in split_der(&found.bundle, 100)? {
            bundle.x509_authorities.push(X509Authority::from_der(&der)?);
        }
        Ok(Self { svid: X509Svid::parse(split_der(&found.x509_svid, 16)?)?, bundle })
    }
}

/// The two workloads, looking at each other.
struct Watch {
    is_over: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Watch {
    fn start(site: &Site) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let sockets = [&MOVING, &STAYING].map(|node| Spire::agent_socket(site, node.name));
        Self { is_over, task: tokio::spawn(look(sockets, over)) }
    }

    /// How often they looked, and what was wrong.
    async fn end(self) -> anyhow::Result<(usize, Vec<String>)> {
        self.is_over.store(true, Ordering::SeqCst);
        let (looks, wrong) = self.task.await?;
        if looks < 20 {
            bail!("they looked only {looks} times");
        }
        Ok((looks, wrong))
    }
}

/// Each verifies what the other shows by what it holds itself. While an agent is away its workload goes on with what it has.
async fn look(sockets: [PathBuf; 2], is_over: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let mut last: [Option<Held>; 2] = [None, None];
    let (mut looks, mut wrong) = (0, Vec::new());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    while !is_over.load(Ordering::SeqCst) {
        ticks.tick().await;
        for (at, (socket, path)) in sockets.iter().zip([MOVING.workload, STAYING.workload]).enumerate() {
            if let Ok(answer) = fetch_x509(socket).await {
                match Held::of(&answer, path) {
                    Ok(held) => last[at] = Some(held),
                    Err(error) => wrong.push(format!("{path}: {error:#}")),
                }
            }
        }
        let [Some(moving), Some(staying)] = &last else { continue };
        looks += 1;
        for (verifier, shown) in [(moving, staying), (staying, moving), (moving, moving), (staying, staying)]
        {
            if let Err(error) = shown.svid.verify(&verifier.bundle, now()) {
                wrong.push(format!(
                    "at {}: {} by {}: {error}",
                    Moment::now(),
                    shown.svid.id(),
                    verifier.svid.id()
                ));
            }
        }
    }
    (looks, wrong)
}
