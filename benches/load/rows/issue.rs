//! What does it cost to issue: in batches, one token at a time, and for a whole fleet at once?

use anyhow::{Context, Result, ensure};

use super::{MINTERS, OF_MINTERS, Stage};
use crate::floors::crypto::Crypto;
use crate::floors::fan_out::FanOut;
use crate::numbers::{Spread, figure};
use crate::order::Act;
use crate::row::{Measured, Row, Target};
use crate::rows::node::Node;
use std::time::Duration;

pub(crate) const MINT: Row = Row {
    key: "mint",
    what: "X509-SVID over mutual TLS in batches of 100, decision record on disk: work of the server for each",
    floor: "ring: one verification of the CSR's signature and one signature",
    unit: "us CPU",
    target: Target::Ratio(1.4),
};

pub(crate) const MINT_ON_EVIDENCE: Row = Row {
    key: "mint-evidence",
    what: "the same by passant.sync.v1, each on evidence, which is checked again and recorded",
    floor: "ring: one verification of the CSR's signature and one signature",
    unit: "us CPU",
    target: Target::Ratio(1.4),
};

pub(crate) const JWT: Row = Row {
    key: "jwt",
    what: "JWT-SVID over mutual TLS, one a call, decision record on disk: work of the server for each",
    floor: "ring: one ES256 signature; and a unary call of bare tonic over mutual TLS",
    unit: "us CPU",
    target: Target::None,
};

pub(crate) const ROTATION: Row = Row {
    key: "rotation",
    what: "all X509-SVIDs of all agents at once: work of the server for each 100,000",
    floor: "ring: as many verifications and signatures",
    unit: "core-s",
    target: Target::AtMost(20.0),
};

pub(crate) const FETCH_MEANWHILE: Row = Row {
    key: "fetch-meanwhile",
    what: "p99 of FetchX509SVID at a real agent's Workload API meanwhile, until the first message",
    floor: "the same p99 while nothing else happens",
    unit: "ms",
    target: Target::Ratio(5.0),
};

/// X509-SVIDs in a batch.
const BATCH: usize = 100;
/// Agents that ask for JWT-SVIDs at the same time.
const CALLERS: usize = 64;
/// Calls of the Workload API while nothing else happens.
const FETCHES: usize = 1_000;
/// How long one agent may take for all that it has minted: rooms for calls are shared, and waited for.
const MINT_WITHIN: Duration = Duration::from_secs(600);

/// The floor of a call: what bare tonic works for one. All agents have a channel to it.
pub(super) async fn floor(stage: &mut Stage<'_>, bare: &FanOut) -> Result<Option<f64>> {
    if !stage.options.wants(&[&JWT]) {
        return Ok(None);
    }
    let callers = CALLERS.min(stage.sizes.agents);
    let count = stage.sizes.jwts.div_ceil(callers);
    let used = bare.usage()?.cpu;
    stage.fleet.first(callers, Act::Call { count }, callers, MINT_WITHIN).await?;
    let worked = bare.usage()?.cpu.saturating_sub(used);
    Ok(Some(worked.as_secs_f64() * 1e6 / figure(count * callers)))
}

pub(super) async fn measure(stage: &mut Stage<'_>) -> Result<()> {
    if stage.options.wants(&[&MINT, &MINT_ON_EVIDENCE]) {
        let minters = MINTERS.min(stage.sizes.agents);
        let batches = stage.sizes.mints.div_ceil(BATCH * minters);
        for (row, on_evidence) in [(&MINT, false), (&MINT_ON_EVIDENCE, true)] {
            if on_evidence && !stage.pushes {
                continue;
            }
            let act = Act::Mint { batches, size: BATCH, on_evidence };
            let (measured, bare) = worked(stage, minters, act, BATCH).await?;
            stage.report.took(row, Measured { floor: Some(bare.verify + bare.sign), ..measured });
        }
    }
    if stage.options.wants(&[&JWT]) {
        let callers = CALLERS.min(stage.sizes.agents);
        let count = stage.sizes.jwts.div_ceil(callers);
        let (measured, bare) = worked(stage, callers, Act::Jwt { count }, 1).await?;
        let floor = stage.floors.call.map(|call| call + bare.sign);
        stage.report.took(&JWT, Measured { floor, ..measured }.note("signature us", bare.sign));
    }
    if stage.options.wants(&[&ROTATION, &FETCH_MEANWHILE]) {
        rotation(stage).await?;
    }
    Ok(())
}

/// Microseconds of the server for each SVID while the first `callers` agents do `act`; with the rate and the calls' times.
async fn worked(
    stage: &mut Stage<'_>,
    callers: usize,
    act: Act,
    of_call: usize,
) -> Result<(Measured, Crypto)> {
    let before = Crypto::measured()?;
    let used = stage.site.usage()?.cpu;
    let outcome = stage.fleet.first(callers, act, callers, MINT_WITHIN).await?;
    let worked = stage.site.usage()?.cpu.saturating_sub(used);
    let bare = before.and(Crypto::measured()?);
    let count = figure(outcome.spans.len() * of_call);
    let spread = Spread::of(&outcome.took()).context("nothing was minted")?;
    let measured = Measured::of(worked.as_secs_f64() * 1e6 / count, None)
        .note("per second", count / (outcome.in_all() / 1e3))
        .note("a call's p50 ms", spread.p50)
        .note("p99 ms", spread.p99)
        .note("tried again", figure(outcome.again));
    Ok((measured, bare))
}

async fn rotation(stage: &mut Stage<'_>) -> Result<()> {
    let (agents, entries) = (stage.sizes.agents, stage.sizes.entries + stage.minters() * OF_MINTERS);
    let node = Node::started(stage, "fetching").await?;
    let idle = node.fetches(FETCHES).await?;
    let before = Crypto::measured()?;
    let (used, began) = (stage.site.usage()?.cpu, crate::clock::now());
    let act = Act::Renew { on_evidence: stage.pushes };
    stage.fleet.tell(agents, act, agents, MINT_WITHIN).await?;
    let mut meanwhile = Vec::new();
    let outcome = {
        let mut outcome = std::pin::pin!(stage.fleet.outcome(agents, agents, MINT_WITHIN));
        loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => break outcome?,
                fetched = node.fetch() => meanwhile.push(fetched?),
            }
        }
    };
    ensure!(outcome.failed.is_empty(), "not all SVIDs were renewed: {:?}", outcome.failed);
    let took = (crate::clock::now() - began) / 1e3;
    let worked = stage.site.usage()?.cpu.saturating_sub(used).as_secs_f64();
    let bare = before.and(Crypto::measured()?);
    node.stop().await?;
    let scale = 100_000.0 / figure(entries);
    let floor = (bare.verify + bare.sign) * figure(entries) / 1e6;
    let measured = Measured::of(worked * scale, Some(floor * scale))
        .note("SVIDs", figure(entries))
        .note("seconds", took)
        .note("tried again", figure(outcome.again));
    stage.report.took(&ROTATION, measured);
    let p99 = |values: &[f64]| Spread::of(values).map(|spread| spread.p99).context("nothing was fetched");
    let measured = Measured::of(p99(&meanwhile)?, Some(p99(&idle)?)).over(&meanwhile);
    stage.report.took(&FETCH_MEANWHILE, measured);
    Ok(())
}
