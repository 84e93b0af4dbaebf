//! What does it cost to hold connected agents: memory, and work while nothing changes?

use std::time::Duration;

use anyhow::Result;

use super::admit::CONNECT;
use super::{AT_ONCE, Stage, WITHIN};
use crate::floors::fan_out::FanOut;
use crate::numbers::figure;
use crate::order::Act;
use crate::row::{Measured, Row, Target};
use crate::rows::{issue, spread, storm};

pub(crate) const MEMORY: Row = Row {
    key: "agents-memory",
    what: "resident memory of the server with all agents connected, in all",
    floor: "bare tonic with as many connections and streams",
    unit: "MB",
    target: Target::AtMost(600.0),
};

pub(crate) const IDLE: Row = Row {
    key: "idle",
    what: "work of the server while nothing changes and all agents watch",
    floor: "",
    unit: "% core",
    target: Target::AtMost(5.0),
};

pub(crate) const POLLS: Row = Row {
    key: "idle-polls",
    what: "work of the server while nothing changes and all agents poll every 5 s, as SPIRE's do",
    floor: "",
    unit: "% core",
    target: Target::None,
};

/// Points of the plots.
const STEPS: usize = 4;
/// A name of a plot, and what stands below it.
const MEMORY_BY_AGENTS: &str = "server memory by agents";
const IDLE_BY_AGENTS: &str = "idle work of the server by agents";
const MB: f64 = 1024.0;

/// What bare tonic took.
pub(super) struct Bare {
    /// MB with all agents.
    memory: f64,
    /// Microseconds for each connection.
    connect: f64,
}

/// Agents are connected in any case.
pub(super) async fn measure(stage: &mut Stage<'_>) -> Result<()> {
    let bare = floor(stage).await?;
    let agents = stage.sizes.agents;
    let base = mb(stage.site.usage()?.resident);
    stage.report.point(MEMORY_BY_AGENTS, 0.0, Some(base), None);
    let least = (stage.sizes.entries / agents).max(1);
    let used = stage.site.usage()?.cpu;
    // The first one tells how the others go on.
    stage.fleet.first(1, Act::Connect { entries: least }, 1, WITHIN).await?;
    stage.ask_whether_it_pushes().await?;
    let mut again = 0;
    let mut steps = Vec::new();
    for step in 1..=STEPS {
        let count = (agents * step / STEPS).max(1);
        let connected = stage.fleet.first(count, Act::Connect { entries: least }, AT_ONCE, WITHIN).await?;
        again += connected.again;
        if stage.pushes {
            stage.fleet.first(count, Act::Watch, AT_ONCE, WITHIN).await?;
            stage.fleet.first(count, Act::HeardAfter { at: 0.0 }, count, WITHIN).await?;
        }
        let now = stage.site.usage()?;
        steps.push((count, now.cpu));
        stage.report.point(MEMORY_BY_AGENTS, figure(count), Some(mb(now.resident)), None);
        if step < STEPS && stage.options.wants(&[&IDLE]) {
            let share = idle(stage, stage.sizes.idle / 4).await?;
            stage.report.point(IDLE_BY_AGENTS, figure(count), Some(share), None);
        }
    }
    let now = stage.site.usage()?;
    if stage.options.wants(&[&CONNECT]) {
        let worked = now.cpu.saturating_sub(used).as_secs_f64() * 1e6 / figure(agents);
        let measured = Measured::of(worked, Some(bare.connect));
        stage.report.took(&CONNECT, measured.note("tried again", figure(again)));
    }
    if stage.options.wants(&[&MEMORY]) {
        let (all, (players, _)) = (mb(now.resident), stage.fleet.usage()?);
        let measured = Measured::of(all, Some(bare.memory))
            .note("before they came MB", base)
            .note("kB each", (all - base) * MB / figure(agents))
            .note("floor kB each", bare.memory * MB / figure(agents))
            .note("the fleet itself MB", mb(players));
        stage.report.took(&MEMORY, measured);
    }
    if stage.options.wants(&[&IDLE]) {
        let share = idle(stage, stage.sizes.idle).await?;
        stage.report.point(IDLE_BY_AGENTS, figure(agents), Some(share), None);
        if stage.pushes {
            stage.report.took(&IDLE, Measured::of(share, None));
        } else {
            stage
                .report
                .left_out(&format!("idle: no agent watches; connected and silent: {share:.2} % of a core"));
        }
    }
    if stage.options.wants(&[&POLLS]) {
        let at = crate::clock::now();
        stage.fleet.all(Act::Poll { every_ms: 5_000 }, agents, WITHIN).await?;
        stage.fleet.all(Act::HeardAfter { at }, agents, WITHIN).await?;
        let share = idle(stage, stage.sizes.idle).await?;
        let each = share * 1e4 / (figure(agents) / 5.0);
        let memory = mb(stage.site.usage()?.resident);
        stage
            .report
            .took(&POLLS, Measured::of(share, None).note("us a poll", each).note("memory MB", memory));
        return stage.follow().await;
    }
    // Who watches already goes on.
    if stage.pushes { Ok(()) } else { stage.follow().await }
}

/// The share of a core that the server works within `span`, in percent.
async fn idle(stage: &Stage<'_>, span: Duration) -> Result<f64> {
    let began = (crate::clock::now(), stage.site.usage()?.cpu);
    tokio::time::sleep(span).await;
    let worked = stage.site.usage()?.cpu.saturating_sub(began.1).as_secs_f64() * 1e3;
    Ok(worked / (crate::clock::now() - began.0) * 100.0)
}

/// The same with bare tonic; its server is gone afterwards, but for what [`spread`] measured with it.
async fn floor(stage: &mut Stage<'_>) -> Result<Bare> {
    let size = spread::bundle_size(stage).await?;
    let mut bare = FanOut::start(stage.site.dir(), size).await?;
    let agents = stage.sizes.agents;
    stage.report.point(MEMORY_BY_AGENTS, 0.0, None, Some(mb(bare.usage()?.resident)));
    let used = bare.usage()?.cpu;
    for step in 1..=STEPS {
        let count = (agents * step / STEPS).max(1);
        stage.fleet.first(count, Act::Listen { at: bare.at() }, AT_ONCE, WITHIN).await?;
        let now = bare.usage()?.resident;
        stage.report.point(MEMORY_BY_AGENTS, figure(count), None, Some(mb(now)));
    }
    let now = bare.usage()?;
    let connect = now.cpu.saturating_sub(used).as_secs_f64() * 1e6 / figure(agents);
    let memory = mb(now.resident);
    stage.floors.broadcast = spread::floor(stage, &mut bare).await?;
    stage.floors.call = issue::floor(stage, &bare).await?;
    stage.fleet.all(Act::Leave, agents, WITHIN).await?;
    stage.floors.reconnect = storm::floor(stage, &bare).await?;
    stage.fleet.all(Act::Leave, agents, WITHIN).await?;
    Ok(Bare { memory, connect })
}

#[expect(clippy::cast_precision_loss, reason = "no machine has so much memory")]
pub(super) fn mb(kib: u64) -> f64 {
    kib as f64 / MB
}
