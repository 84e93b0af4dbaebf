//! What does it cost to let agents in: to attest them, and to connect those that have attested?

use anyhow::{Context, Result};

use super::{AT_ONCE, Stage, WITHIN};
use crate::floors::crypto::Crypto;
use crate::numbers::figure;
use crate::order::Act;
use crate::row::{Measured, Row, Target};

pub(crate) const ATTEST: Row = Row {
    key: "attest",
    what: "attestation by x509pop over TLS, durable, with a new X509-SVID: work of the server for each agent",
    floor: "ring: three verifications (the node's chain, its answer, the CSR) and two signatures (handshake, SVID)",
    unit: "us CPU",
    target: Target::None,
};

pub(crate) const CONNECT: Row = Row {
    key: "connect",
    what: "mutual TLS, the first synchronization by SPIRE's wire, and a watch where the server pushes: work of the \
           server for each agent",
    floor: "bare tonic: mutual TLS and a stream's first message",
    unit: "us CPU",
    target: Target::None,
};

/// Agents are attested in any case: without them there is nothing to measure.
pub(super) async fn measure(stage: &mut Stage<'_>) -> Result<()> {
    let before = Crypto::measured()?;
    let used = stage.site.usage()?.cpu;
    let outcome = stage.fleet.all(Act::Attest, AT_ONCE, WITHIN).await?;
    let worked = stage.site.usage()?.cpu.saturating_sub(used);
    let bare = before.and(Crypto::measured()?);
    let each = worked.as_secs_f64() * 1e6 / figure(stage.sizes.agents);
    let rate = figure(stage.sizes.agents) / (outcome.in_all() / 1e3);
    let took = outcome.took();
    let median = crate::numbers::median(&took).context("agents have attested")?;
    if stage.options.wants(&[&ATTEST]) {
        let floor = 3.0 * bare.verify + 2.0 * bare.sign;
        let measured = Measured::of(each, Some(floor)).note("median ms", median).note("per second", rate);
        stage.report.took(&ATTEST, measured.note("tried again", figure(outcome.again)));
    }
    Ok(())
}
