//! How does an agent meet the floor's server? As it meets the real one: the same TLS, the same windows.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use passant_proto::workload::{JwtsvidRequest, X509BundlesRequest};

use super::{AGAIN_FIRST, Agent, Common, Done, later};
use crate::clock;

impl Agent {
    /// Connects, opens a stream, and hears what comes. Done with the first message.
    pub(super) async fn listen(&mut self, at: SocketAddr, common: &Common) -> Result<Done> {
        let began = clock::now();
        if self.standing.is_some() {
            return Ok(Done::default());
        }
        let chain = vec![common.nodes.certificate(self.number)?];
        let shown = (chain, common.nodes.private_key());
        let (mut pause, mut again) = (AGAIN_FIRST, 0);
        let channel = loop {
            let shown = (shown.0.clone(), shown.1.clone_key());
            match common.wire.connect(at, self.source, Some(shown)).await {
                Ok(channel) => break channel,
                Err(_) => again += 1,
            }
            pause = later(pause, &common.host).await;
        };
        let mut client = SpiffeWorkloadApiClient::new(channel.clone());
        let mut stream = client.fetch_x509_bundles(X509BundlesRequest {}).await?.into_inner();
        stream.message().await?.context("the floor sends nothing")?;
        let done = Done { again, ..Done::since(began) };
        let seen = Arc::clone(&self.seen);
        let task = tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                let number = message.bundles.keys().find_map(|key| key.parse().ok()).unwrap_or(0);
                seen.send_modify(|seen| {
                    seen.heard_at = clock::now();
                    seen.has_bundle(number);
                });
            }
        });
        self.channel = Some(channel);
        self.stand_by(task.abort_handle());
        Ok(done)
    }

    /// Calls, once after the other.
    pub(super) async fn call(&mut self, count: usize) -> Result<Done> {
        let mut client = SpiffeWorkloadApiClient::new(self.channel()?);
        let mut done = Done::default();
        for _ in 0..count {
            let began = clock::now();
            client.fetch_jwtsvid(JwtsvidRequest::default()).await?;
            done.spans.push([began, clock::now()]);
        }
        Ok(done)
    }
}
