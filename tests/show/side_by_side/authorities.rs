//! How is an authority of the server replaced by hand, from its preparation to the end of the one before?

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_proto::agent::ListAgentsRequest;
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, PrepareJwtAuthorityRequest,
    PrepareX509AuthorityRequest, RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest,
    TaintJwtAuthorityRequest, TaintX509AuthorityRequest,
};
use passant_proto::localauthority::{GetJwtAuthorityStateRequest, GetX509AuthorityStateRequest};
use passant_tests::api::channel;
use passant_tests::wait::eventually;

use super::{NAMES, Stage};
use crate::handshakes::token;
use crate::moment::Moment;
use crate::spire_live::key_id;

/// How long it may take until the server knows that all agents have an authority.
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take until everybody has SVIDs of a new authority: a renewal, and a sync.
const SIGNS_WITHIN: Duration = Duration::from_secs(150);

/// The kinds of authority.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    X509,
    Jwt,
}

impl Stage<'_> {
    /// Prepares an authority, waits until the workloads of both agents have it, activates it, taints the one before, waits
    /// until nobody has anything that it signed, and revokes it; when that last step was acknowledged.
    pub(super) async fn rotate(&self, kind: Kind) -> anyhow::Result<Moment> {
        let api = LocalAuthorityClient::new(channel(&self.site.server_socket()).await?);
        let new = match kind {
            Kind::X509 => {
                let prepared = api.clone().prepare_x509_authority(PrepareX509AuthorityRequest {}).await?;
                prepared.into_inner().prepared_authority
            }
            Kind::Jwt => {
                let prepared = api.clone().prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await?;
                prepared.into_inner().prepared_authority
            }
        };
        let new = new.context("a prepared authority")?.authority_id;
        self.arrives("the prepared authority").await?;
        // The server refuses until it knows so, too.
        eventually("the activation", ACTIVE_WITHIN, || async {
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
        match kind {
            Kind::X509 => {
                let agents = self.agents().await?;
                let state = api.get_x509_authority_state(GetX509AuthorityStateRequest {}).await?.into_inner();
                let authority_id = state.old.context("the authority before")?.authority_id;
                let request = TaintX509AuthorityRequest { authority_id: authority_id.clone() };
                api.taint_x509_authority(request).await.context("taint it")?;
                self.signs(&new, &agents).await?;
                api.revoke_x509_authority(RevokeX509AuthorityRequest { authority_id })
                    .await
                    .context("revoke it")?;
            }
            Kind::Jwt => {
                let state = api.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await?.into_inner();
                let authority_id = state.old.context("the authority before")?.authority_id;
                let request = TaintJwtAuthorityRequest { authority_id: authority_id.clone() };
                api.taint_jwt_authority(request).await.context("taint it")?;
                for socket in &self.sockets {
                    eventually("JWT-SVIDs of the new authority", SIGNS_WITHIN, || async {
                        let by = key_id(&token(socket).await?)?;
                        ensure!(by == new, "{} has one that {by} signed", socket.display());
                        Ok(())
                    })
                    .await?;
                }
                api.revoke_jwt_authority(RevokeJwtAuthorityRequest { authority_id })
                    .await
                    .context("revoke it")?;
            }
        }
        Ok(Moment::now())
    }

    /// Waits until the workloads of both agents hold what the server says now.
    async fn arrives(&self, what: &str) -> anyhow::Result<()> {
        for (name, time) in NAMES.iter().zip(self.settled(Moment::now()).await?) {
            time.with_context(|| format!("{what}, at {name}"))?;
        }
        Ok(())
    }

    /// Waits until all that the workloads hold is signed by `new`, and no agent has the SVID of its own that it had.
    async fn signs(&self, new: &str, agents: &BTreeMap<String, String>) -> anyhow::Result<()> {
        for follower in self.workloads.iter().flat_map(|workload| &workload.runs) {
            let signed = "SVIDs of the new authority";
            follower
                .until(signed, SIGNS_WITHIN, |watch| watch.svids.iter().all(|svid| svid.signer == new))
                .await?;
        }
        eventually("the agents' own SVIDs to be replaced", SIGNS_WITHIN, || async {
            for (id, serial) in self.agents().await? {
                ensure!(agents.get(&id) != Some(&serial), "{id} still has {serial}");
            }
            Ok(())
        })
        .await
    }

    /// The serial of each agent's own SVID, by the agent's SPIFFE ID.
    async fn agents(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let agents = self.site.operator().await?.agents().list_agents(ListAgentsRequest::default()).await?;
        let row = |agent: passant_proto::types::Agent| {
            (agent.id.unwrap_or_default().path, agent.x509svid_serial_number)
        };
        Ok(agents.into_inner().agents.into_iter().map(row).collect())
    }
}
