//! How soon do all agents know of a change: of the bundle, and of a stop?

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use passant_proto::bundle::AppendBundleRequest;
use passant_proto::stop::stop_client::StopClient;
use passant_proto::stop::{StopRequest, Target as Stopped, target};
use passant_proto::types::X509Certificate;
use passant_tests::api::{channel, wire_id};
use prost::Message;

use super::{ALIAS, Stage, WITHIN};
use crate::clock;
use crate::floors::fan_out::FanOut;
use crate::nodes::FIRST;
use crate::numbers::{Spread, figure, median};
use crate::order::Act;
use crate::row::{Measured, Row, Target};
use crate::site::{TRUST_DOMAIN, entry};

pub(crate) const BROADCAST: Row = Row {
    key: "broadcast",
    what: "bundle change to all agents: work of the server, from the operator's call until the last one has it",
    floor: "bare tonic: a message of the bundle's size on as many streams",
    unit: "ms CPU",
    target: Target::Ratio(1.5),
};

pub(crate) const BROADCAST_LAST: Row = Row {
    key: "broadcast-last",
    what: "the same: time until the last agent has it, the commit and its record included; distribution over agents",
    floor: "bare tonic: time until the last stream has the message",
    unit: "ms",
    target: Target::Both(1.5, 1_000.0),
};

pub(crate) const STOP: Row = Row {
    key: "stop",
    what: "stop of an entry told to the server until an agent has acknowledged it: p99 over up to 1,000 agents",
    floor: "",
    unit: "ms",
    target: Target::AtMost(1_000.0),
};

/// Changes whose median counts.
const CHANGES: usize = 5;
/// Agents that poll hear of it at their next poll.
const HEARD_WITHIN: Duration = Duration::from_secs(40);
/// How long the server may wait for acknowledgments, in milliseconds.
const WAIT_MS: u32 = 10_000;

/// What fan-outs took: work of the server, and the last arrival, in milliseconds; and all arrivals.
#[derive(Clone, Debug, Default)]
pub(crate) struct FanOuts {
    cpu: Vec<f64>,
    last: Vec<f64>,
    all: Vec<f64>,
}

impl FanOuts {
    fn take(&mut self, worked: Duration, arrivals: &[f64]) {
        self.cpu.push(worked.as_secs_f64() * 1e3);
        self.last.extend(Spread::of(arrivals).map(|spread| spread.most));
        self.all.extend(arrivals);
    }
}

/// Bytes of the bundle on the wire, with the authorities that are going to be in it.
pub(super) async fn bundle_size(stage: &Stage<'_>) -> Result<usize> {
    let mut bundle = stage.site.bundle().await?;
    for _ in 0..CHANGES.div_ceil(2) {
        let asn1 = stage.nodes.another_authority("bench authority")?;
        bundle.x509_authorities.push(X509Certificate { asn1, tainted: false });
    }
    Ok(bundle.encoded_len())
}

/// The floor: as many fan-outs by bare tonic. All agents listen to it.
pub(super) async fn floor(stage: &mut Stage<'_>, bare: &mut FanOut) -> Result<FanOuts> {
    let mut took = FanOuts::default();
    if !stage.options.wants(&[&BROADCAST, &BROADCAST_LAST]) {
        return Ok(took);
    }
    for _ in 0..CHANGES {
        let used = bare.usage()?.cpu;
        let (sequence, at) = bare.send().await?;
        let agents = stage.sizes.agents;
        let heard = stage.fleet.all(Act::Bundle { sequence }, agents, HEARD_WITHIN).await?;
        took.take(bare.usage()?.cpu.saturating_sub(used), &heard.ended_after(at));
    }
    Ok(took)
}

pub(super) async fn measure(stage: &mut Stage<'_>) -> Result<()> {
    if stage.options.wants(&[&BROADCAST, &BROADCAST_LAST]) {
        broadcast(stage).await?;
    }
    if stage.options.wants(&[&STOP]) {
        if stage.pushes {
            stop(stage).await?;
        } else {
            stage.report.left_out("stop: the server has none");
        }
    }
    Ok(())
}

async fn broadcast(stage: &mut Stage<'_>) -> Result<()> {
    let agents = stage.sizes.agents;
    let (mut took, mut answered) = (FanOuts::default(), Vec::new());
    let clients = stage.site.operator().await?.bundles();
    for number in 0..CHANGES {
        let asn1 = stage.nodes.another_authority(&format!("bench authority {number}"))?;
        let request = AppendBundleRequest {
            x509_authorities: vec![X509Certificate { asn1, tainted: false }],
            ..AppendBundleRequest::default()
        };
        let used = stage.site.usage()?.cpu;
        // From before the call: some have it before it is answered.
        let at = clock::now();
        let bundle = clients.clone().append_bundle(request).await?.into_inner();
        answered.push(clock::now() - at);
        let act = Act::Bundle { sequence: bundle.sequence_number };
        let heard = stage.fleet.all(act, agents, HEARD_WITHIN).await?;
        ensure!(heard.done == agents, "{} of {agents} agents have the bundle", heard.done);
        took.take(stage.site.usage()?.cpu.saturating_sub(used), &heard.ended_after(at));
    }
    let how = if stage.pushes { "pushed" } else { "polled" };
    let ours = |values: &[f64]| median(values).with_context(|| format!("nothing was {how}"));
    let floor = &stage.floors.broadcast;
    // The system counts work in hundredths of a second: of all changes together it is told more exactly.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / figure(values.len().max(1));
    let cpu = Measured::of(mean(&took.cpu), (!floor.cpu.is_empty()).then(|| mean(&floor.cpu)))
        .note("us an agent", mean(&took.cpu) * 1e3 / figure(agents));
    let last = Measured::of(ours(&took.last)?, median(&floor.last)).over(&took.all);
    let last = last
        .note("floor p50", median(&floor.all).unwrap_or_default())
        .note("answered after ms", median(&answered).unwrap_or_default());
    if !stage.pushes {
        stage.report.left_out("broadcast: nothing is pushed; the rows tell of polls, their work included");
    }
    stage.report.took(&BROADCAST, cpu);
    stage.report.took(&BROADCAST_LAST, last);
    Ok(())
}

/// One entry that all of the first thousand agents have is stopped and resumed.
async fn stop(stage: &mut Stage<'_>) -> Result<()> {
    let agents = stage.sizes.agents.min(FIRST);
    let mut shared = entry(usize::MAX / 2, "none");
    shared.spiffe_id = wire_id(TRUST_DOMAIN, "/fleet/shared");
    shared.parent_id = wire_id(TRUST_DOMAIN, ALIAS);
    let request = passant_proto::entry::BatchCreateEntryRequest { entries: vec![shared], output_mask: None };
    let answer = stage.site.operator().await?.entries().batch_create_entry(request).await?.into_inner();
    let entry = answer.results.into_iter().next().and_then(|result| result.entry).context("no entry")?;
    let mut clients = StopClient::new(channel(&stage.site.socket()).await?);
    let (mut all, mut answers, mut pending) = (Vec::new(), Vec::new(), 0);
    for _ in 0..stage.sizes.turns.min(3) {
        let target = || Some(Stopped { target: Some(target::Target::EntryId(entry.id.clone())) });
        let reason = "bench".to_owned();
        let request = StopRequest { target: target(), reason: reason.clone(), wait_millis: WAIT_MS };
        let at = clock::now();
        let answer = clients.stop(request).await?.into_inner();
        answers.push(clock::now() - at);
        let rollout = answer.stop.and_then(|stop| stop.rollout).context("no word of the rollout")?;
        pending += rollout.pending.len();
        let heard = stage.fleet.first(agents, Act::Stops { count: 1 }, agents, WITHIN).await?;
        all.extend(heard.ended_after(at));
        let request = passant_proto::stop::ResumeRequest { target: target(), reason, wait_millis: WAIT_MS };
        clients.resume(request).await?;
        stage.fleet.first(agents, Act::Stops { count: 0 }, agents, WITHIN).await?;
    }
    let spread = Spread::of(&all).context("no agent has acknowledged")?;
    let measured = Measured::of(spread.p99, None).over(&all);
    let measured = measured.note("agents", figure(agents)).note("pending", figure(pending));
    stage.report.took(&STOP, measured.note("server's answer ms", median(&answers).unwrap_or_default()));
    Ok(())
}
