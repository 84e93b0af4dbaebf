//! How are ten thousand agents told what to do? Some thousands live in a process, one task each at a time, and all processes
//! are told at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use passant_core::{Host, csr};
use passant_tests::usage::Usage;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use crate::agent::{Agent, Common};
use crate::control::{Asked, Part};
use crate::nodes::{Nodes, new_key};
use crate::options::Sizes;
use crate::order::{Act, Order, Outcome};
use crate::wire::Wire;

/// Agents in one process, at most.
pub(crate) const PER_PROCESS: usize = 10_000;
/// CSRs that the agents of a process share.
const CSRS: usize = 256;
/// What a process may take beyond what its agents may.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What a process that plays agents is told at its start.
#[derive(Args, Clone, Debug)]
pub(crate) struct Play {
    /// Where it is told what to do.
    #[arg(long)]
    control: PathBuf,
    /// The folder of the run.
    #[arg(long)]
    dir: PathBuf,
    /// The server.
    #[arg(long)]
    server: SocketAddr,
    /// The number of its first agent.
    #[arg(long)]
    from: usize,
    /// How many agents it plays.
    #[arg(long)]
    count: usize,
    /// Addresses from which the agents of all processes come.
    #[arg(long)]
    spread: usize,
}

/// All agents of a run, in one process or several.
pub(crate) struct Fleet {
    parts: Vec<(Part, usize)>,
    agents: usize,
}

impl Fleet {
    /// Starts as many processes as it takes.
    pub(crate) async fn start(dir: &Path, server: SocketAddr, sizes: Sizes) -> Result<Self> {
        let (agents, mut parts) = (sizes.agents, Vec::new());
        for from in (0..agents).step_by(sizes.per_process) {
            let count = sizes.per_process.min(agents - from);
            let [server, from, count_text, spread] =
                [server.to_string(), from.to_string(), count.to_string(), sizes.addresses.to_string()];
            let dir_text = dir.to_str().context("the folder's path is not UTF-8")?;
            let arguments = [
                "play",
                "--dir",
                dir_text,
                "--server",
                &server,
                "--from",
                &from,
                "--count",
                &count_text,
                "--spread",
                &spread,
            ];
            let socket = dir.join(format!("fleet-{from}.sock"));
            parts.push((Part::start(&socket, &arguments).await?, count));
        }
        Ok(Self { parts, agents })
    }

    /// What the processes of the fleet use together: resident memory in KiB, and CPU time.
    pub(crate) fn usage(&self) -> Result<(u64, Duration)> {
        let mut sum = (0, Duration::ZERO);
        for (part, _) in &self.parts {
            let usage = Usage::of(part.pid())?;
            sum = (sum.0 + usage.resident, sum.1 + usage.cpu);
        }
        Ok(sum)
    }

    /// Has all agents do `act`, `at_once` of each process at a time; each of them may take so long.
    pub(crate) async fn all(&mut self, act: Act, at_once: usize, within: Duration) -> Result<Outcome> {
        let agents = self.agents;
        self.first(agents, act, at_once, within).await
    }

    /// The same for the first `count` agents. Fails if one of them does.
    pub(crate) async fn first(
        &mut self,
        count: usize,
        act: Act,
        at_once: usize,
        within: Duration,
    ) -> Result<Outcome> {
        let said = format!("{act:?}");
        let outcome = self.tried(count, act, at_once, within).await?;
        ensure!(
            outcome.failed.is_empty(),
            "{said}: {} of {} agents failed: {:?}",
            outcome.failures(),
            outcome.failures() + outcome.done,
            outcome.failed
        );
        Ok(outcome)
    }

    /// The same, and tells of failures instead of failing.
    pub(crate) async fn tried(
        &mut self,
        count: usize,
        act: Act,
        at_once: usize,
        within: Duration,
    ) -> Result<Outcome> {
        self.tell(count, act, at_once, within).await?;
        self.outcome(count, at_once, within).await
    }

    /// Tells the first `count` agents, without waiting: [`Fleet::outcome`], told the same, does.
    pub(crate) async fn tell(
        &mut self,
        count: usize,
        act: Act,
        at_once: usize,
        within: Duration,
    ) -> Result<()> {
        let mut left = count;
        for (part, held) in &mut self.parts {
            let first = Some(left.min(*held));
            left -= left.min(*held);
            let within_ms = u64::try_from(within.as_millis())?;
            part.ask(&Order { act: act.clone(), first, at_once, within_ms }).await?;
        }
        Ok(())
    }

    /// What came of what was told.
    pub(crate) async fn outcome(
        &mut self,
        count: usize,
        at_once: usize,
        within: Duration,
    ) -> Result<Outcome> {
        let rounds = u32::try_from(count.div_ceil(at_once.max(1)))?;
        let mut sum = Outcome::default();
        for (part, _) in &mut self.parts {
            let outcome = part.answer::<Outcome>(within.saturating_mul(rounds) + ANSWER_WITHIN).await?;
            sum = sum.and(outcome);
        }
        Ok(sum)
    }
}

/// A process that plays agents: does what it is told until nobody tells it any more.
pub(crate) async fn play(told: &Play) -> Result<()> {
    ensure!((1..=PER_PROCESS).contains(&told.count), "a process plays 1 to {PER_PROCESS} agents");
    let host = Host::system();
    let csrs = (0..CSRS).map(|_| Ok(csr::make(&*new_key(&host)?, None)?));
    let common = Arc::new(Common {
        server: told.server,
        spread: told.spread,
        nodes: Nodes::held(&told.dir)?,
        wire: Wire::new(),
        csrs: csrs.collect::<Result<_>>()?,
        host,
    });
    let agents: Vec<_> = (told.from..told.from + told.count)
        .map(|number| Arc::new(Mutex::new(Agent::new(number, &common))))
        .collect();
    let mut asked = Asked::at(&told.control).await?;
    while let Some(order) = asked.next::<Order>().await? {
        let outcome = carry_out(&order, &agents, &common).await;
        asked.answer(outcome).await?;
    }
    Ok(())
}

async fn carry_out(order: &Order, agents: &[Arc<Mutex<Agent>>], common: &Arc<Common>) -> Result<Outcome> {
    let places = Arc::new(Semaphore::new(order.at_once.clamp(1, PER_PROCESS)));
    let within = Duration::from_millis(order.within_ms);
    let mut tasks = JoinSet::new();
    for agent in &agents[..order.first.unwrap_or(agents.len()).min(agents.len())] {
        let (agent, places, common, act) =
            (Arc::clone(agent), Arc::clone(&places), Arc::clone(common), order.act.clone());
        tasks.spawn(async move {
            let _place = places.acquire_owned().await?;
            let mut agent = agent.lock().await;
            let acted = tokio::time::timeout(within, Box::pin(agent.act(&act, &common))).await;
            acted.with_context(|| format!("not done within {within:?}"))?
        });
    }
    let mut outcome = Outcome { failed: BTreeMap::new(), ..Outcome::default() };
    while let Some(done) = tasks.join_next().await {
        match done? {
            Ok(done) => {
                outcome.done += 1;
                outcome.again += done.again;
                outcome.spans.extend(done.spans);
            }
            Err(error) => *outcome.failed.entry(brief(&error)).or_default() += 1,
        }
    }
    Ok(outcome)
}

/// The cause in one line, the same for all agents that it befell.
fn brief(error: &anyhow::Error) -> String {
    match error.downcast_ref::<tonic::Status>() {
        Some(status) => format!("{:?}: {}", status.code(), status.message()),
        None => format!("{error:#}"),
    }
}
