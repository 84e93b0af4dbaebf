//! How does a played agent keep up with the server? By asking every few seconds, or by watching.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::bundle::bundle_client::BundleClient;
use passant_proto::sync::sync_client::SyncClient;
use passant_proto::sync::watch_response::Response;
use passant_proto::sync::{Ack, Capability, Cursor, Hello, Report, WatchRequest, watch_request};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{AGAIN_FIRST, Agent, Common, Done, Seen, by_chance, later, synchronized};
use crate::clock;

/// Requests of an agent that wait: it acknowledges one update after the other.
const WAITING: usize = 8;
/// A poll that is answered no sooner has failed.
const POLL_WITHIN: Duration = Duration::from_secs(30);

/// Where an agent stands in what it follows.
#[derive(Clone, Debug, Default)]
struct Stand {
    cursor: Option<Cursor>,
    digest: u64,
}

impl Agent {
    /// Begins to poll, over the connection that it has; a dead one is replaced.
    pub(super) fn poll(&mut self, every: Duration, common: &Arc<Common>) -> Result<Done> {
        let began = clock::now();
        let (channel, seen, host) = (self.channel()?, Arc::clone(&self.seen), common.host.clone());
        let task = tokio::spawn(async move {
            // Not all at the same moment.
            tokio::time::sleep(by_chance(every, &host)).await;
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut pause = AGAIN_FIRST;
            loop {
                ticks.tick().await;
                let polled = tokio::time::timeout(POLL_WITHIN, polled(&channel, &seen)).await;
                if polled.is_ok_and(|polled| polled.is_ok()) {
                    pause = AGAIN_FIRST;
                } else {
                    seen.send_modify(|seen| seen.again += 1);
                    pause = later(pause, &host).await;
                    ticks.reset_immediately();
                }
            }
        });
        self.stand_by(task.abort_handle());
        Ok(Done::since(began))
    }

    /// Begins to watch, over the connection that it has; a dead one is replaced.
    pub(super) fn watch(&mut self, common: &Arc<Common>) -> Result<Done> {
        let began = clock::now();
        let (channel, seen, host) = (self.channel()?, Arc::clone(&self.seen), common.host.clone());
        let task = tokio::spawn(async move {
            let mut stand = Stand::default();
            let mut pause = AGAIN_FIRST;
            loop {
                let heard = seen.borrow().heard_at;
                // Why it ended does not matter: it is tried again.
                drop(watched(channel.clone(), &mut stand, &seen).await);
                // It was there for a while: the next attempt is a first one.
                if seen.borrow().heard_at > heard {
                    pause = AGAIN_FIRST;
                }
                seen.send_modify(|seen| seen.again += 1);
                pause = later(pause, &host).await;
            }
        });
        self.stand_by(task.abort_handle());
        Ok(Done::since(began))
    }

    pub(super) fn stand_by(&mut self, task: tokio::task::AbortHandle) {
        if let Some(before) = self.standing.replace(task) {
            before.abort();
        }
    }
}

/// One round of an agent that polls.
async fn polled(channel: &Channel, seen: &watch::Sender<Seen>) -> Result<()> {
    drop(synchronized(channel).await?);
    let request = GetBundleRequest { output_mask: None };
    let bundle = BundleClient::new(channel.clone()).get_bundle(request).await?.into_inner();
    seen.send_modify(|seen| {
        seen.heard_at = clock::now();
        seen.has_bundle(bundle.sequence_number);
    });
    Ok(())
}

/// Watches until the stream ends.
async fn watched(channel: Channel, stand: &mut Stand, seen: &watch::Sender<Seen>) -> Result<()> {
    let (requests, outgoing) = mpsc::channel(WAITING);
    let send = |request| {
        let sent = requests.try_send(WatchRequest { request: Some(request) });
        sent.context("the server takes no requests")
    };
    send(watch_request::Request::Hello(Hello {
        protocol: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: vec![Capability::EntryOptions.into(), Capability::Stops.into()],
        cursor: stand.cursor.clone(),
        digest: stand.digest,
    }))?;
    let mut answers = SyncClient::new(channel).watch(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut has_reported = false;
    loop {
        let answer = answers.message().await?.context("the server ended the watch")?;
        let update = match answer.response {
            Some(Response::Update(update)) => update,
            Some(Response::Heartbeat(_)) => {
                seen.send_modify(|seen| seen.heard_at = clock::now());
                continue;
            }
            Some(Response::Welcome(_)) => continue,
            None => bail!("the server said something unknown"),
        };
        let is_last = !update.more;
        let own =
            update.bundles.iter().find(|bundle| bundle.trust_domain.ends_with(crate::site::TRUST_DOMAIN));
        let at = clock::now();
        if is_last {
            stand.cursor.clone_from(&update.cursor);
            stand.digest = update.digest;
            send(watch_request::Request::Ack(Ack { cursor: update.cursor }))?;
        }
        let bundle = own.map(|bundle| bundle.sequence_number);
        seen.send_modify(|seen| {
            if is_last {
                seen.heard_at = at;
            }
            if let Some(sequence) = bundle {
                seen.has_bundle(sequence);
            }
            if let Some(stops) = &update.stops {
                (seen.stops, seen.stops_at) = (stops.stops.len(), at);
            }
        });
        if is_last && !has_reported {
            has_reported = true;
            let bundle_sequence = seen.borrow().bundle;
            send(watch_request::Request::Report(Report { bundle_sequence, ..Report::default() }))?;
        }
    }
}

impl Seen {
    pub(super) fn has_bundle(&mut self, sequence: u64) {
        if sequence != self.bundle {
            (self.bundle, self.bundle_at) = (sequence, clock::now());
        }
    }
}
