//! How does a workload hear of its SVIDs? As a process of its own, over the Workload API of a real agent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use passant_proto::workload::X509svidRequest;
use passant_tests::api::{with_header, workload_api};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock;
use crate::control::Asked;

/// Before it asks again after an error: an agent that does not know the workload yet says so at once.
const AGAIN: Duration = Duration::from_millis(20);

/// What the process is told at its start.
#[derive(Args, Clone, Debug)]
pub(crate) struct Work {
    /// Where it is asked.
    #[arg(long)]
    control: PathBuf,
    /// The Workload API.
    #[arg(long)]
    socket: PathBuf,
}

/// What it is asked: when it first had an SVID with this SPIFFE ID.
#[derive(Serialize, Deserialize)]
pub(crate) struct When {
    pub(crate) id: String,
    /// How long it may wait for it, in milliseconds.
    pub(crate) within_ms: u64,
}

/// The process: follows its SVIDs until nobody asks any more.
pub(crate) async fn work(told: &Work) -> Result<()> {
    let had = watch::Sender::new(BTreeMap::new());
    let (socket, to) = (told.socket.clone(), had.clone());
    tokio::spawn(async move {
        loop {
            // It ends with the agent, and as long as there is no identity.
            drop(follow(&socket, &to).await);
            tokio::time::sleep(AGAIN).await;
        }
    });
    let mut asked = Asked::at(&told.control).await?;
    while let Some(When { id, within_ms }) = asked.next::<When>().await? {
        let mut had = had.subscribe();
        let wanted = had.wait_for(|had: &BTreeMap<String, f64>| had.contains_key(&id));
        let answer = match tokio::time::timeout(Duration::from_millis(within_ms), wanted).await {
            Ok(had) => had?.get(&id).copied().context("it was there a moment ago"),
            Err(_) => Err(anyhow::anyhow!("no SVID for {id} within {within_ms} ms")),
        };
        asked.answer(answer).await?;
    }
    Ok(())
}

async fn follow(socket: &std::path::Path, had: &watch::Sender<BTreeMap<String, f64>>) -> Result<()> {
    let mut client = workload_api(socket).await?;
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    while let Some(update) = stream.message().await? {
        let at = clock::now();
        had.send_modify(|had| {
            let held = std::mem::take(had);
            let ids = update.svids.into_iter().map(|svid| svid.spiffe_id);
            // What it has no more is forgotten: it may come again.
            *had = ids.map(|id| (id.clone(), held.get(&id).copied().unwrap_or(at))).collect();
        });
    }
    Ok(())
}
