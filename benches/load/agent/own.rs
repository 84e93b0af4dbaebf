//! How does a played agent get its own SVID?

use anyhow::{Context, Result, bail};
use passant_core::csr;
use passant_proto::agent::agent_client::AgentClient;
use passant_proto::agent::{
    AgentX509svidParams, AttestAgentRequest, attest_agent_request, attest_agent_response,
};
use passant_proto::types::AttestationData;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{AGAIN_FIRST, Agent, Common, Done, Identity, later};
use crate::clock;
use crate::nodes::new_key;

impl Agent {
    /// Attests, again and again while the server has no room for it. What is measured is the attempt that went well.
    pub(super) async fn attest(&mut self, common: &Common) -> Result<Done> {
        let key = new_key(&common.host)?;
        let csr = csr::make(&*key, None)?;
        let (mut pause, mut again) = (AGAIN_FIRST, 0);
        loop {
            let began = clock::now();
            match self.attested(&csr, common).await {
                Ok(chain) => {
                    self.identity = Some(Arc::new(Identity { chain, key }));
                    return Ok(Done { again, ..Done::since(began) });
                }
                Err(error) if is_refused_for_good(&error) => return Err(error),
                Err(_) => {}
            }
            again += 1;
            pause = later(pause, &common.host).await;
        }
    }

    async fn attested(
        &self,
        csr: &[u8],
        common: &Common,
    ) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>> {
        let channel = common.wire.connect(common.server, self.source, None).await?;
        let (requests, outgoing) = mpsc::channel(2);
        let params = attest_agent_request::Params {
            data: Some(AttestationData {
                r#type: "x509pop".to_owned(),
                payload: common.nodes.evidence(self.number)?,
            }),
            params: Some(AgentX509svidParams { csr: csr.to_vec() }),
        };
        let step = attest_agent_request::Step::Params(params);
        requests.send(AttestAgentRequest { step: Some(step) }).await?;
        let mut answers =
            AgentClient::new(channel).attest_agent(ReceiverStream::new(outgoing)).await?.into_inner();
        loop {
            match answers.message().await?.and_then(|answer| answer.step) {
                None => bail!("the server ended the attestation"),
                Some(attest_agent_response::Step::Challenge(challenge)) => {
                    let response = common.nodes.response(&challenge)?;
                    let step = attest_agent_request::Step::ChallengeResponse(response);
                    requests.send(AttestAgentRequest { step: Some(step) }).await?;
                }
                Some(attest_agent_response::Step::Result(result)) => {
                    let svid = result.svid.context("the answer holds no SVID")?;
                    return Ok(svid.cert_chain.into_iter().map(Into::into).collect());
                }
            }
        }
    }
}

/// Whether trying again is of no use.
fn is_refused_for_good(error: &anyhow::Error) -> bool {
    error.downcast_ref::<tonic::Status>().is_some_and(|status| {
        matches!(
            status.code(),
            tonic::Code::PermissionDenied | tonic::Code::InvalidArgument | tonic::Code::Unimplemented
        )
    })
}
