//! How often do the authorities succeed each other, and what becomes of those that are tainted and revoked meanwhile?

use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::agent::ListAgentsRequest;
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    GetJwtAuthorityStateRequest, GetX509AuthorityStateRequest, RevokeX509AuthorityRequest,
    TaintX509AuthorityRequest,
};
use passant_tests::api::{channel, past_goodbye};
use passant_tests::site::{Site, TRUST_DOMAIN};
use passant_tests::wait::eventually;
use tokio::time::{Instant, interval, sleep_until};
use tonic::transport::Channel;

use crate::follower::Follower;
use crate::registrar::Registrar;
use crate::truth::Truth;

/// How often it is looked which authority signs.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Of so many authorities that signed, one is tainted and revoked.
const REVOKE_EVERY: usize = 6;
/// How long it may take until nobody has anything of a tainted authority, and until a revoked one is gone from bundles.
const WITHIN: Duration = Duration::from_secs(15);

/// What was seen.
#[derive(Default)]
pub(super) struct Rotated {
    /// Successions of the X.509 authority.
    pub(super) x509: usize,
    /// The same of the JWT authority.
    pub(super) jwt: usize,
    pub(super) revoked: usize,
    pub(super) failures: Vec<String>,
    /// How many authorities signed what each watch held, one after the other.
    pub(super) signers: Vec<usize>,
}

/// Watches until `end`. `life` is how long SVIDs live.
///
/// # Errors
/// When the server does not tell.
pub(super) async fn run(
    site: &Site,
    followers: &[Follower],
    life: Duration,
    end: Instant,
) -> anyhow::Result<Rotated> {
    let api = LocalAuthorityClient::new(channel(&site.server_socket()).await?);
    let mut rotated = Rotated::default();
    let (mut x509, mut jwt) = (active_x509(&api).await?, active_jwt(&api).await?);
    let mut looks = interval(LOOK_EVERY);
    while Instant::now() < end {
        looks.tick().await;
        let now = active_jwt(&api).await?;
        if now != jwt {
            jwt = now;
            rotated.jwt += 1;
        }
        let now = active_x509(&api).await?;
        if now != x509 {
            let before = std::mem::replace(&mut x509, now);
            rotated.x509 += 1;
            if rotated.x509 % REVOKE_EVERY == 1 {
                match revoke(site, &api, followers, life, &before).await {
                    Ok(()) => rotated.revoked += 1,
                    Err(why) => rotated.failures.push(format!("{before}: {why:#}")),
                }
            }
        }
    }
    let watches = followers.iter().flat_map(Follower::now);
    rotated.signers = watches.map(|watch| watch.signers.len()).collect();
    Ok(rotated)
}

/// Taints an authority that signed until now, waits until nothing of it is in use, and revokes it.
async fn revoke(
    site: &Site,
    api: &LocalAuthorityClient<Channel>,
    followers: &[Follower],
    life: Duration,
    id: &str,
) -> anyhow::Result<()> {
    let agents_own = agent_serial(site).await?;
    let request = TaintX509AuthorityRequest { authority_id: id.to_owned() };
    past_goodbye(api, request, |mut api, request| async move { api.taint_x509_authority(request).await })
        .await
        .context("taint it")?;
    let tainted = Instant::now();
    for follower in followers {
        let replaced = "its SVIDs of a tainted authority to be replaced";
        follower.until(replaced, WITHIN, |watch| watch.svids.iter().all(|svid| svid.signer != id)).await?;
    }
    eventually("the agent's own SVID to be replaced", WITHIN, || async {
        ensure!(agent_serial(site).await? != agents_own, "it is not");
        Ok(())
    })
    .await?;
    // The programs whose entries stay tell only at the end what they hold. By then nothing of it can be left with them.
    sleep_until(tainted + life).await;
    let request = RevokeX509AuthorityRequest { authority_id: id.to_owned() };
    past_goodbye(api, request, |mut api, request| async move { api.revoke_x509_authority(request).await })
        .await
        .context("revoke it")?;
    let registrar = Registrar::connect(site).await?;
    eventually("it to go from all bundles", WITHIN, || async {
        let due = Truth::read(site, &registrar).await?;
        for follower in followers {
            for watch in follower.now() {
                let (held, due) = (watch.bundles.get(TRUST_DOMAIN), due.own_x509());
                ensure!(held == due, "{} holds {held:?}, due is {due:?}", follower.name);
            }
        }
        Ok(())
    })
    .await
}

/// The serial of the only agent's own SVID.
async fn agent_serial(site: &Site) -> anyhow::Result<String> {
    let agents = site.operator().await?.agents().list_agents(ListAgentsRequest::default()).await?;
    let agent = agents.into_inner().agents.into_iter().next().context("an agent")?;
    Ok(agent.x509svid_serial_number)
}

async fn active_x509(api: &LocalAuthorityClient<Channel>) -> anyhow::Result<String> {
    let state = past_goodbye(api, GetX509AuthorityStateRequest {}, |mut api, request| async move {
        api.get_x509_authority_state(request).await
    })
    .await?
    .into_inner();
    Ok(state.active.context("an active X.509 authority")?.authority_id)
}

async fn active_jwt(api: &LocalAuthorityClient<Channel>) -> anyhow::Result<String> {
    let state = past_goodbye(api, GetJwtAuthorityStateRequest {}, |mut api, request| async move {
        api.get_jwt_authority_state(request).await
    })
    .await?
    .into_inner();
    Ok(state.active.context("an active JWT authority")?.authority_id)
}
