//! Does everyone go on with what is valid while the server is away, and does all heal alone when it is back?
//!
//! Three sites side by side: one whose agent keeps a valid SVID of its own, and two whose agents' own SVIDs expire
//! while the server is away: one that can prove itself again by its certificate, and one whose join token is spent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_core::jwt_svid::JwtSvid;
use passant_core::{UnixTime, x509_svid};
use passant_proto::workload::{JwtsvidRequest, X509svidRequest, X509svidResponse};
use passant_tests::api::{fetch_x509, selector, wire_id, with_header, workload_api};
use passant_tests::daemon::Daemon;
use passant_tests::node_ca::{NodeCa, write_secret};
use passant_tests::site::{NODE, READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use tonic::{Code, Status, Streaming};

use crate::judge::Client;
use crate::moment::Moment;
use crate::peers::{self, Peer};
use crate::report::{Report, say};
use crate::watcher::Watcher;

/// The audience of the JWT-SVIDs that are cached before the outage.
const KNOWN: &str = "known";
/// How often the agent is looked at during the outage.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long anything may take to heal after an outage of `away`: waits between attempts grow by half, so the last one
/// is at most half the outage and a little; they never pass four minutes.
fn healed_in(away: Duration) -> Duration {
    away.mul_f64(0.6).min(Duration::from_secs(270)) + Duration::from_secs(30)
}

/// Runs the show with the server away for `away`.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, away: Duration) -> anyhow::Result<()> {
    ensure!(away >= Duration::from_secs(20), "an outage shorter than 20 s shows nothing");
    peers::build(report)?;
    say(&format!("three servers go away for {} s", away.as_secs()));
    let (steady, certificate, token) = tokio::join!(
        Box::pin(steady(report, away)),
        Box::pin(expired(report, away, Means::Certificate)),
        Box::pin(expired(report, away, Means::Token)),
    );
    for (name, ended) in [("steady", steady), ("certificate", certificate), ("token", token)] {
        report.fact(&format!("{name}: the scene is played to its end"), ended.map(|()| String::new()));
    }
    Ok(())
}

/// The agent's own SVID outlasts the outage; those of workloads too, but half of their life passes in it.
async fn steady(report: &Report, away: Duration) -> anyhow::Result<()> {
    let fact = |name: &str, outcome: anyhow::Result<String>| report.fact(&format!("steady: {name}"), outcome);
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    // The agent tries to mint at least every 15 s, so 40 s are enough to renew after the return.
    let ttl = i32::try_from(away.as_secs() + 40)?;
    site.register("/web", |entry| (entry.x509_svid_ttl, entry.jwt_svid_ttl) = (ttl, ttl)).await?;
    let mut agent = site.start_agent("agent").await?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) }).await?;
    fetch_jwt(&socket, KNOWN).await?;
    let watchers = watch_with_every_peer(&site, &socket, "/web").await?;
    let mut stream = open(&socket).await?;
    let first = message(&mut stream).await?;

    server.stop().await?;
    let gone = Moment::now();
    let (asked, mut looks) = (try_new_audience(&socket), 0_u32);
    let watched = async {
        while Moment::now().since(gone) < away {
            running(&mut agent)?;
            serves_valid(&socket).await?;
            fetch_jwt(&socket, KNOWN).await.context("the JWT-SVID for a known audience")?;
            looks += 1;
            tokio::time::sleep(LOOK_EVERY.min(away.saturating_sub(Moment::now().since(gone)))).await;
        }
        anyhow::Ok(format!("{looks} new connections served, cached JWT-SVIDs too, over {} s", away.as_secs()))
    };
    let fetched = fetch_with_every_peer(&socket);
    let (watched, asked, fetched) = tokio::join!(watched, asked, fetched);
    fact("new connections are served while the server is away", watched);
    fact("a JWT-SVID for a new audience is Unavailable then", asked);
    fact("go-spiffe, py-spiffe and the spiffe crate fetch all they need then", fetched);
    let held = first.svids.first().context("an SVID")?;
    fact("the open stream still holds what it held", valid(&first).map(|()| held.spiffe_id.clone()));

    let server = site.start_server().await?;
    let back = Moment::now();
    let bound = healed_in(away);
    say(&format!("steady: the server is back after {} s", back.since(gone).as_secs()));
    let jwt = eventually("a JWT-SVID for a new audience", bound, || fetch_jwt(&socket, "after")).await;
    fact("after the return a JWT-SVID for a new audience comes", jwt.map(|_| taken(back)));
    site.register("/late", |_| {}).await?;
    let late = reaches(&mut stream, "/late", bound).await;
    fact("after the return a new entry reaches the open stream", late.map(|()| taken(back)));
    let old = held.x509_svid.clone();
    let renewed = eventually("a renewed SVID", bound, || async {
        let now = fetch_x509(&socket).await?;
        let same = now.svids.iter().any(|svid| svid.x509_svid == old);
        ensure!(!same, "it is the old one");
        valid(&now)
    })
    .await;
    fact("after the return SVIDs are renewed before they end", renewed.map(|()| taken(back)));
    fact("the agent never exited", running(&mut agent).map(|()| String::new()));

    let mut clients = Vec::new();
    for watcher in watchers {
        clients.push(watcher.stop()?);
    }
    let all = |of: &dyn Fn(&Client) -> Vec<String>| clients.iter().flat_map(of).collect::<Vec<_>>();
    report.none("steady: no foreign client ever held an expired SVID", &all(&Client::expired), "");
    report.none("steady: no foreign client saw a failure", &all(&Client::failures), "");
    agent.stop().await?;
    server.stop().await
}

/// What an agent has to prove itself again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Certificate,
    Token,
}

/// The agent's own SVID expires while the server is away; those of workloads do not.
async fn expired(report: &Report, away: Duration, means: Means) -> anyhow::Result<()> {
    let scene = match means {
        Means::Certificate => "certificate",
        Means::Token => "token",
    };
    let fact =
        |name: &str, outcome: anyhow::Result<String>| report.fact(&format!("{scene}: {name}"), outcome);
    // Renewed about every 5 s, so that more than half the outage passes without a valid one.
    let agent_ttl = (away.as_secs() / 3).min(15);
    let ca_dir = tempfile::tempdir()?;
    let ca = NodeCa::new(ca_dir.path())?;
    let site = Site::new(&ServerOptions {
        keys: format!("agent_ttl = \"{agent_ttl}s\"\n"),
        tables: format!(
            "[[node_attestor]]\nmethod = \"join_token\"\n[[node_attestor]]\nmethod = \"x509pop\"\nca_bundle_path = {:?}\n",
            ca.file
        ),
    })?;
    let server = site.start_server().await?;
    site.register("/web", |_| {}).await?;
    let token_file = site.path("join-token");
    match means {
        Means::Certificate => {
            let node = ca.node(ca_dir.path(), "node-1")?;
            let attestor = format!(
                "method = \"x509pop\"\ncertificate = {:?}\nprivate_key = {:?}\n",
                node.certificate, node.key
            );
            site.configure_agent("agent", &attestor, "")?;
            site.register(NODE, |alias| {
                alias.parent_id = wire_id(TRUST_DOMAIN, "/spire/server");
                alias.selectors = vec![selector("x509pop", "subject:cn:node-1")];
            })
            .await?;
        }
        Means::Token => {
            write_secret(&token_file, &site.join_token().await?)?;
            site.configure_agent(
                "agent",
                &format!("method = \"join_token\"\njoin_token_file = {token_file:?}\n"),
                "",
            )?;
        }
    }
    let mut agent = site.spawn_agent("agent", &[])?;
    let socket = site.agent_socket("agent");
    eventually("an SVID", READY_WITHIN, || async { Ok(fetch_x509(&socket).await?) })
        .await
        .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    let mut stream = open(&socket).await?;
    let first = message(&mut stream).await?;

    server.stop().await?;
    let gone = Moment::now();
    let watched = async {
        while Moment::now().since(gone) < away {
            running(&mut agent)?;
            serves_valid(&socket).await?;
            tokio::time::sleep(LOOK_EVERY.min(away.saturating_sub(Moment::now().since(gone)))).await;
        }
        anyhow::Ok(format!("agent_ttl {agent_ttl} s, away for {} s", away.as_secs()))
    };
    fact("workloads are served although the agent's own SVID has expired", watched.await);
    let said_before = agent.log().len();
    let server = site.start_server().await?;
    let back = Moment::now();
    let bound = healed_in(away);
    site.register("/late", |_| {}).await?;
    match means {
        Means::Certificate => {
            let late = reaches(&mut stream, "/late", bound).await;
            fact(
                "after the return it attests again by itself, and a new entry comes",
                late.map(|()| taken(back)),
            );
        }
        Means::Token => {
            let said = eventually("the agent to say what it needs", bound, || async {
                let log = agent.log();
                let trouble =
                    log.get(said_before..).and_then(|new| new.lines().find(|line| needs_token(line)));
                trouble.map(str::to_owned).context("nothing yet")
            })
            .await;
            fact("after the return it says that it needs a new join token", said.map(|_| taken(back)));
            running(&mut agent)?;
            fact("it goes on serving what is valid", serves_valid(&socket).await.map(|()| String::new()));
            write_secret(&token_file, &site.join_token().await?)?;
            let given = Moment::now();
            // After a refusal that only an operator can lift, the agent waits a minute.
            let late = reaches(&mut stream, "/late", bound + Duration::from_secs(70)).await;
            fact("given a new join token it attests, and a new entry comes", late.map(|()| taken(given)));
        }
    }
    fact("the open stream held valid SVIDs throughout", valid(&first).map(|()| String::new()));
    fact("the agent never exited", running(&mut agent).map(|()| String::new()));
    agent.stop().await?;
    server.stop().await
}

fn needs_token(line: &str) -> bool {
    line.contains("in trouble") && line.contains("node") && line.contains("join token")
}

fn taken(since: Moment) -> String {
    format!("{:.1} s", Moment::now().since(since).as_secs_f64())
}

fn running(daemon: &mut Daemon) -> anyhow::Result<()> {
    match daemon.ended()? {
        None => Ok(()),
        Some(status) => bail!("the agent ended: {status}; its log:\n{}", daemon.log()),
    }
}

fn now() -> UnixTime {
    UnixTime::from_secs(Moment::now().secs())
}

async fn serves_valid(socket: &Path) -> anyhow::Result<()> {
    valid(&fetch_x509(socket).await?)
}

/// Whether every SVID in an answer is valid now.
fn valid(answer: &X509svidResponse) -> anyhow::Result<()> {
    ensure!(!answer.svids.is_empty(), "no SVID");
    for svid in &answer.svids {
        let parsed = x509_svid::X509Svid::parse(x509_svid::split_der(&svid.x509_svid, 16)?)?;
        ensure!(now() <= parsed.not_after(), "the SVID of {} ended {}", svid.spiffe_id, parsed.not_after());
    }
    Ok(())
}

async fn open(socket: &Path) -> anyhow::Result<Streaming<X509svidResponse>> {
    let mut api = workload_api(socket).await?;
    Ok(api.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner())
}

async fn message(stream: &mut Streaming<X509svidResponse>) -> anyhow::Result<X509svidResponse> {
    let next = tokio::time::timeout(READY_WITHIN, stream.message()).await.context("no message came")?;
    next?.context("the stream ended")
}

/// Waits until an SVID for `path` comes on the open stream.
async fn reaches(
    stream: &mut Streaming<X509svidResponse>,
    path: &str,
    within: Duration,
) -> anyhow::Result<()> {
    let id = format!("spiffe://{TRUST_DOMAIN}{path}");
    let wait = async {
        loop {
            let answer = stream.message().await?.context("the stream ended")?;
            if answer.svids.iter().any(|svid| svid.spiffe_id == id) {
                return valid(&answer);
            }
        }
    };
    tokio::time::timeout(within, wait)
        .await
        .with_context(|| format!("{id} did not come within {within:?}"))?
}

async fn ask_jwt(socket: &Path, audience: &str) -> Result<String, Status> {
    let mut api = workload_api(socket).await.map_err(|error| Status::internal(error.to_string()))?;
    let request = JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    let answer = api.fetch_jwtsvid(with_header(request)).await?.into_inner();
    answer.svids.into_iter().next().map(|svid| svid.svid).ok_or_else(|| Status::internal("no SVID"))
}

async fn fetch_jwt(socket: &Path, audience: &str) -> anyhow::Result<()> {
    let token = ask_jwt(socket, audience).await?;
    let end = JwtSvid::parse_unverified(&token)?.expires_at();
    ensure!(now() < end, "the JWT-SVID ended {end}");
    Ok(())
}

async fn try_new_audience(socket: &Path) -> anyhow::Result<String> {
    match ask_jwt(socket, "never asked for before").await {
        Err(status) if status.code() == Code::Unavailable => Ok(status.message().to_owned()),
        Err(status) => bail!("expected Unavailable, got {status}"),
        Ok(_) => bail!("a token came although nobody could sign it"),
    }
}

async fn fetch_with_every_peer(socket: &Path) -> anyhow::Result<String> {
    for peer in Peer::ALL {
        peer.program().json(socket, &["fetch", "--audience", KNOWN]).await.context(peer.name())?;
    }
    Ok(String::new())
}

/// One watcher of each library, all of which have received something.
async fn watch_with_every_peer(site: &Site, socket: &Path, path: &str) -> anyhow::Result<Vec<Watcher>> {
    let id = format!("spiffe://{TRUST_DOMAIN}{path}");
    let mut watchers = Vec::new();
    for peer in Peer::ALL {
        let jwt = (KNOWN, LOOK_EVERY);
        watchers.push(Watcher::start(peer, &peer.program(), peer.name(), &id, socket, site.dir(), jwt)?);
    }
    eventually("every watcher to receive an SVID", READY_WITHIN, || async {
        for watcher in &watchers {
            let client = watcher.so_far()?;
            ensure!(
                !client.x509().is_empty() && !client.jwt().is_empty(),
                "{} has received nothing",
                watcher.name
            );
        }
        Ok(())
    })
    .await?;
    Ok(watchers)
}
