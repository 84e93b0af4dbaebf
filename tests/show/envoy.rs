//! Do real Envoys live on the agent's secrets, and does nobody notice when these change?
//!
//! Two Envoys, each with an entry of its own, do mutual TLS between them. Connections that last and new ones go through
//! both all the time, while X509-SVIDs of a few seconds are renewed, the X.509 authority is replaced and the old one
//! revoked, and the agent is killed and starts again.

mod config;
mod program;
mod traffic;

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    ActivateX509AuthorityRequest, GetX509AuthorityStateRequest, PrepareX509AuthorityRequest,
    RevokeX509AuthorityRequest, TaintX509AuthorityRequest,
};
use passant_proto::types;
use passant_tests::api::{channel, selector};
use passant_tests::daemon::Daemon;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use tokio::time::Instant;

use self::program::Envoy;
use self::traffic::{Traffic, echo, one_line};
use crate::report::{Report, say};

/// How long the X509-SVIDs of the Envoys live, in seconds.
const TTL: i32 = 20;
/// One is renewed at half its life; this is the whole, and time for a loaded machine.
const RENEWED_WITHIN: Duration = Duration::from_secs(40);
/// A new authority is not activated before it has reached the agent.
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);

/// Runs the show through `rotations` of both X509-SVIDs.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, rotations: usize) -> anyhow::Result<()> {
    ensure!(rotations > 0, "without rotations there is nothing to see");
    let envoy = program::install().context("failed to install Envoy")?;
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    // Beside the program under test, where executables may lie; a program of its own for each, to be known by its path.
    let here = std::env::current_exe()?;
    let copies = tempfile::tempdir_in(here.parent().context("this program lies in a folder")?)?;
    let (inner_id, outer_id) =
        (format!("spiffe://{TRUST_DOMAIN}/inner"), format!("spiffe://{TRUST_DOMAIN}/outer"));
    let mut programs = Vec::new();
    for name in ["inner", "outer"] {
        let copy = copies.path().join(name);
        fs::hard_link(&envoy, &copy).or_else(|_| fs::copy(&envoy, &copy).map(drop))?;
        let by_path = selector("unix", &format!("path:{}", copy.display()));
        let short = |entry: &mut types::Entry| {
            (entry.selectors, entry.x509_svid_ttl) = (vec![by_path], TTL);
        };
        site.register(&format!("/{name}"), short).await?;
        programs.push(copy);
    }
    let mut agent = start_agent(&site, &["--join-token", &site.join_token().await?])?;

    let socket = site.agent_socket("agent");
    let inner = config::inner(&socket, &inner_id, &outer_id, echo().await?);
    let inner = Envoy::start(&programs[0], site.dir(), "inner", &inner).await?;
    let outer = config::outer(&socket, &inner_id, inner.listener("mtls").await?);
    let outer = Envoy::start(&programs[1], site.dir(), "outer", &outer).await?;
    let right = outer.listener("right").await?;
    eventually("the first line", READY_WITHIN, || one_line(right))
        .await
        .with_context(|| outer.daemon.log())?;
    report.fact("two Envoys speak to each other by the agent's secrets", Ok(String::new()));
    let pair = Pair { inner, outer, inner_id, outer_id };
    refusals(report, &pair, "at first").await?;

    let traffic = Traffic::start(right);
    let mut held = pair.serials().await?;
    for nth in 1..=rotations {
        if nth == rotations.div_ceil(2) {
            report.fact("the X.509 authority is replaced under them", replace_authority(&site, &pair).await);
            held = pair.serials().await?;
        }
        if nth == rotations {
            agent.kill()?;
            agent = start_agent(&site, &[])?;
            say("the agent was killed, and has started again");
        }
        let began = Instant::now();
        held = pair.renewed(&held).await.with_context(|| format!("rotation {nth}; {}", agent.log()))?;
        say(&format!(
            "rotation {nth} after {:.1} s: {} and {}",
            began.elapsed().as_secs_f64(),
            held.0,
            held.1
        ));
    }
    report.fact("both Envoys took every X509-SVID", Ok(format!("{rotations} rotations")));
    let (lasting, new) = traffic.stop().await?;
    let told = |it: &traffic::Tally| format!("{} connections, {} lines", it.connections, it.lines);
    report.none("no connection that lasted was dropped", &lasting.faults, &told(&lasting));
    report.none("no new connection failed", &new.faults, &told(&new));
    refusals(report, &pair, "at last").await?;
    report.fact("neither Envoy rejected a secret", pair.rejected_none(&agent).await);
    let confused = config::confused(&socket, right);
    let confused = Envoy::start(&programs[1], site.dir(), "confused", &confused).await?;
    report.fact(
        "an Envoy that rejects its secrets is not sent them again",
        rejected_once(&confused, &pair, &agent).await,
    );
    report.fact("the agent stops when told to", agent.stop().await.map(|()| String::new()));
    report.fact("the server stops when told to", server.stop().await.map(|()| String::new()));
    Ok(())
}

/// Starts an agent that tells workloads apart by path. The Envoys wait for it.
fn start_agent(site: &Site, arguments: &[&str]) -> anyhow::Result<Daemon> {
    let attestor = "method = \"join_token\"\n[workload_attestors.unix]\ndiscover_workload_path = true\n\
                    workload_size_limit = -1\n";
    site.configure_agent("agent", attestor, "")?;
    site.spawn_agent("agent", arguments)
}

/// That secrets are not only had but heeded: nobody speaks to who is somebody else, or to who shows nothing.
async fn refusals(report: &Report, pair: &Pair, when: &str) -> anyhow::Result<()> {
    let refused = async |at, by: &Envoy, part, reason| {
        let before = by.count(part, reason).await?;
        ensure!(one_line(at).await.is_err(), "the line came back");
        ensure!(by.count(part, reason).await? > before, "for another reason than {reason}");
        Ok(when.to_owned())
    };
    let (wrong, bare) = (pair.outer.listener("wrong").await?, pair.outer.listener("bare").await?);
    let outcome = refused(wrong, &pair.outer, "cluster.wrong.", "ssl.fail_verify_san").await;
    report.fact("an Envoy refuses a server with another ID", outcome);
    let outcome = refused(bare, &pair.inner, "listener.", "ssl.fail_verify_no_cert").await;
    report.fact("an Envoy refuses a client without an SVID", outcome);
    Ok(())
}

/// That `envoy` rejects what it is sent, and is not sent it again while `pair` hears of something new.
async fn rejected_once(envoy: &Envoy, pair: &Pair, agent: &Daemon) -> anyhow::Result<String> {
    let rejected = || envoy.count("sds.", ".update_rejected");
    eventually("a rejection", READY_WITHIN, || async {
        ensure!(rejected().await? > 0, "it took everything");
        ensure!(agent.log().contains("client has rejected its secrets"), "the agent does not say so");
        Ok(())
    })
    .await?;
    // As long as it takes others to hear of something new, of which nothing concerns this one.
    pair.renewed(&pair.serials().await?).await?;
    match rejected().await? {
        1 => Ok(String::new()),
        more => bail!("{more} rejections of one secret"),
    }
}

/// Both Envoys.
struct Pair {
    inner: Envoy,
    outer: Envoy,
    inner_id: String,
    outer_id: String,
}

impl Pair {
    /// Of the X509-SVIDs they use now.
    async fn serials(&self) -> anyhow::Result<(String, String)> {
        Ok((self.inner.serial(&self.inner_id).await?, self.outer.serial(&self.outer_id).await?))
    }

    /// Waits until neither uses what it did.
    async fn renewed(&self, held: &(String, String)) -> anyhow::Result<(String, String)> {
        eventually("both Envoys to use new X509-SVIDs", RENEWED_WITHIN, || async {
            let now = self.serials().await?;
            ensure!(now.0 != held.0 && now.1 != held.1, "in use: {now:?}, before: {held:?}");
            Ok(now)
        })
        .await
    }

    /// By their own account, and by the agent's.
    async fn rejected_none(&self, agent: &Daemon) -> anyhow::Result<String> {
        let mut taken = 0;
        for envoy in [&self.inner, &self.outer] {
            let rejected = envoy.count("sds.", ".update_rejected").await?;
            ensure!(rejected == 0, "{rejected} were rejected:\n{}", envoy.daemon.log());
            taken += envoy.count("sds.", ".update_success").await?;
        }
        ensure!(taken > 0, "they do not count what they take");
        if agent.log().contains("client has rejected its secrets") {
            bail!("the agent says so");
        }
        Ok(format!("{taken} taken"))
    }
}

/// Prepares a new authority, activates it once it is at the agent, and taints and revokes the old one.
async fn replace_authority(site: &Site, pair: &Pair) -> anyhow::Result<String> {
    let began = Instant::now();
    let api = LocalAuthorityClient::new(channel(&site.server_socket()).await?);
    let state = api.clone().get_x509_authority_state(GetX509AuthorityStateRequest {}).await?.into_inner();
    let old = state.active.context("an active authority")?.authority_id;
    let prepared = api.clone().prepare_x509_authority(PrepareX509AuthorityRequest {}).await?.into_inner();
    let new = prepared.prepared_authority.context("a prepared authority")?.authority_id;
    eventually("the activation", ACTIVE_WITHIN, || async {
        let authority_id = new.clone();
        api.clone().activate_x509_authority(ActivateX509AuthorityRequest { authority_id }).await?;
        Ok(())
    })
    .await?;
    let held = pair.serials().await?;
    api.clone().taint_x509_authority(TaintX509AuthorityRequest { authority_id: old.clone() }).await?;
    pair.renewed(&held).await?;
    api.clone().revoke_x509_authority(RevokeX509AuthorityRequest { authority_id: old }).await?;
    Ok(format!("after {:.1} s", began.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_inner_envoy_asks_by_its_id_and_requires_a_certificate() {
        let echo = "127.0.0.1:1".parse().unwrap();
        let config = config::inner(
            Path::new("/run/api.sock"),
            "spiffe://example.org/i",
            "spiffe://example.org/o",
            echo,
        );
        let tls = &config["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"]["typed_config"];
        assert_eq!(tls["require_client_certificate"], true);
        let secrets = &tls["common_tls_context"]["tls_certificate_sds_secret_configs"];
        assert_eq!(secrets[0]["name"], "spiffe://example.org/i");
    }
}
