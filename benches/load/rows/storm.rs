//! How long until all agents are back after the server was killed and started again?

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Stage, WITHIN};
use crate::clock;
use crate::floors::fan_out::FanOut;
use crate::numbers::{Spread, figure};
use crate::order::Act;
use crate::row::{Measured, Row, Target};

pub(crate) const RECONNECT: Row = Row {
    key: "reconnect",
    what: "server killed and started at once: until the last agent has heard from it, each waiting a random part of a \
           second before its first attempt, then longer",
    floor: "bare tonic, running: all connect at once, until the last stream's first message",
    unit: "s",
    target: Target::AtMost(30.0),
};

pub(crate) const RECONNECT_CPU: Row = Row {
    key: "reconnect-work",
    what: "the same: work of the server for each agent, its start included",
    floor: "bare tonic",
    unit: "us CPU",
    target: Target::None,
};

/// An agent that is not back by then counts as refused.
const BACK_WITHIN: Duration = Duration::from_secs(120);

/// The floor: nobody is connected to it, and all connect.
pub(super) async fn floor(stage: &mut Stage<'_>, bare: &FanOut) -> Result<Option<(f64, f64)>> {
    if !stage.options.wants(&[&RECONNECT, &RECONNECT_CPU]) {
        return Ok(None);
    }
    let agents = stage.sizes.agents;
    let used = bare.usage()?.cpu;
    let outcome = stage.fleet.all(Act::Listen { at: bare.at() }, agents, BACK_WITHIN).await?;
    let worked = bare.usage()?.cpu.saturating_sub(used).as_secs_f64() * 1e6;
    Ok(Some((outcome.in_all() / 1e3, worked / figure(agents))))
}

/// All agents follow the server.
pub(super) async fn measure(stage: &mut Stage<'_>) -> Result<()> {
    if !stage.options.wants(&[&RECONNECT, &RECONNECT_CPU]) {
        return Ok(());
    }
    let agents = stage.sizes.agents;
    stage.site.kill()?;
    let at = clock::now();
    let start = stage.site.start().await?;
    let outcome = stage.fleet.tried(agents, Act::HeardAfter { at }, agents, BACK_WITHIN).await?;
    let worked = stage.site.usage()?.cpu.as_secs_f64() * 1e6 / figure(agents);
    let back: Vec<f64> = outcome.ended_after(at).iter().map(|ms| ms / 1e3).collect();
    let spread = Spread::of(&back).context("no agent is back")?;
    let lost = outcome.failures();
    let last = if lost == 0 { spread.most } else { BACK_WITHIN.as_secs_f64() };
    let (floor, bare) = stage.floors.reconnect.unzip();
    let measured = Measured::of(last, floor).over(&back);
    let measured = measured.note("never back", figure(lost)).note("start ms", start);
    stage.report.took(&RECONNECT, measured.note("attempts that failed", figure(outcome.again)));
    stage.report.took(&RECONNECT_CPU, Measured::of(worked, bare));
    if lost > 0 {
        stage.report.left_out(&format!("agents that never came back: {:?}", outcome.failed));
    }
    // So that what follows does not find them in the midst of an attempt.
    stage.fleet.all(Act::Leave, agents, WITHIN).await?;
    Ok(())
}
