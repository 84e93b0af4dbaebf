//! How does a played agent have SVIDs minted?

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use passant_core::Host;
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use passant_proto::sync::sync_client::SyncClient;
use passant_proto::sync::{BatchMintX509svidRequest, Evidence, batch_mint_x509svid_request};
use passant_proto::types;
use tonic::{Code, Status};

use super::{AGAIN_FIRST, Agent, Common, Done, Held, later};
use crate::clock;

/// X509-SVIDs in one batch at most, as SPIRE's agents ask for.
const BATCH: usize = 500;
/// An answer with so many chains.
const ANSWER: usize = 16 * 1024 * 1024;
/// A call that is answered no sooner is made again.
const CALL_WITHIN: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) async fn mint(
        &mut self,
        batches: usize,
        size: usize,
        on_evidence: bool,
        common: &Common,
    ) -> Result<Done> {
        ensure!(!self.entries.is_empty(), "the agent has no entries");
        let mut done = Done::default();
        for batch in 0..batches {
            let from = batch * size;
            let entries = self.entries.iter().cycle().skip(from % self.entries.len()).take(size);
            self.batch(&entries.collect::<Vec<_>>(), from, on_evidence, common, &mut done).await?;
        }
        Ok(done)
    }

    pub(super) async fn renew(&mut self, on_evidence: bool, common: &Common) -> Result<Done> {
        ensure!(!self.entries.is_empty(), "the agent has no entries");
        let mut done = Done::default();
        let entries: Vec<&Held> = self.entries.iter().collect();
        for (number, entries) in entries.chunks(BATCH).enumerate() {
            self.batch(entries, number * BATCH, on_evidence, common, &mut done).await?;
        }
        Ok(done)
    }

    /// One batch, for `entries`, with CSRs from the one at `from` on.
    async fn batch(
        &self,
        entries: &[&Held],
        from: usize,
        on_evidence: bool,
        common: &Common,
        done: &mut Done,
    ) -> Result<()> {
        let csrs = common.csrs.iter().cycle().skip((from + self.number) % common.csrs.len());
        let each = entries.iter().zip(csrs);
        let statuses = if on_evidence {
            let items = each.map(|(entry, csr)| batch_mint_x509svid_request::Item {
                entry_id: entry.id.clone(),
                csr: csr.clone(),
                evidence: Some(evidence(entry, &common.host)),
            });
            let request = BatchMintX509svidRequest { items: items.collect() };
            let client = SyncClient::new(self.channel()?).max_decoding_message_size(ANSWER);
            let call = || {
                let (mut client, request) = (client.clone(), request.clone());
                async move {
                    let results = client.batch_mint_x509svid(request).await?.into_inner().results;
                    all_good(results.into_iter().map(|result| result.status))
                }
            };
            patiently(&common.host, done, call).await?
        } else {
            let params =
                each.map(|(entry, csr)| NewX509svidParams { entry_id: entry.id.clone(), csr: csr.clone() });
            let request = BatchNewX509svidRequest { params: params.collect() };
            let client = SvidClient::new(self.channel()?).max_decoding_message_size(ANSWER);
            let call = || {
                let (mut client, request) = (client.clone(), request.clone());
                async move {
                    let results = client.batch_new_x509svid(request).await?.into_inner().results;
                    all_good(results.into_iter().map(|result| result.status))
                }
            };
            patiently(&common.host, done, call).await?
        };
        ensure!(statuses == entries.len(), "{statuses} SVIDs for {} entries", entries.len());
        Ok(())
    }

    pub(super) async fn jwt(&mut self, count: usize) -> Result<Done> {
        ensure!(!self.entries.is_empty(), "the agent has no entries");
        let client = SvidClient::new(self.channel()?);
        let (host, mut done) = (Host::system(), Done::default());
        for entry in self.entries.iter().cycle().take(count) {
            let request =
                NewJwtsvidRequest { entry_id: entry.id.clone(), audience: vec!["reports".to_owned()] };
            let call = || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.new_jwtsvid(request).await }
            };
            patiently(&host, &mut done, call).await?;
        }
        Ok(done)
    }
}

/// How many there are, if all of them are good. What was refused for want of room is asked for again with all others.
fn all_good(statuses: impl Iterator<Item = Option<types::Status>>) -> Result<usize, Status> {
    let mut count = 0;
    for status in statuses.flatten() {
        if status.code != 0 {
            return Err(Status::new(Code::from_i32(status.code), status.message));
        }
        count += 1;
    }
    Ok(count)
}

/// As an agent would have attested a workload a moment ago.
fn evidence(entry: &Held, host: &Host) -> Evidence {
    Evidence {
        selectors: entry.selectors.clone(),
        instance: "b0075a1e-0000-4000-8000-000000000000/4711/815".to_owned(),
        attestors: vec!["k8s".to_owned(), "unix".to_owned()],
        attested_at_millis: host.now().secs() * 1_000,
    }
}

/// Calls until there is an answer that is not "later", and notes how long that took in all.
async fn patiently<T, F>(host: &Host, done: &mut Done, call: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let began = clock::now();
    let mut pause = AGAIN_FIRST;
    loop {
        let status = match tokio::time::timeout(CALL_WITHIN, call()).await {
            Ok(Ok(answer)) => {
                done.spans.push([began, clock::now()]);
                return Ok(answer);
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        if !matches!(status.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded) {
            bail!(status);
        }
        done.again += 1;
        pause = later(pause, host).await;
    }
}
