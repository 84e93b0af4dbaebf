//! What do a real agent and its workloads see: how soon an SVID comes, how soon the agent serves, how big it is?

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use passant_proto::entry::{BatchCreateEntryRequest, BatchDeleteEntryRequest};
use passant_proto::types;
use passant_proto::workload::X509svidRequest;
use passant_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use passant_tests::api::{channel, with_header};
use passant_tests::daemon::Daemon;
use passant_tests::usage::Usage;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::Stage;
use super::hold::mb;
use crate::clock;
use crate::control::Part;
use crate::numbers::{Spread, median};
use crate::row::{Measured, Row, Target};
use crate::site::{Site, TRUST_DOMAIN, entry_here};
use crate::workload::When;

pub(crate) const CREATE: Row = Row {
    key: "create",
    what: "entry creation acknowledged to a workload having its SVID on an open stream: p99",
    floor: "",
    unit: "ms",
    target: Target::AtMost(100.0),
};

pub(crate) const START: Row = Row {
    key: "agent-start",
    what: "agent started anew to a workload having its SVID, attestation included",
    floor: "",
    unit: "ms",
    target: Target::AtMost(100.0),
};

pub(crate) const RESTART: Row = Row {
    key: "agent-restart",
    what: "agent started again to a workload having its SVID",
    floor: "",
    unit: "ms",
    target: Target::AtMost(50.0),
};

pub(crate) const IDLE_MEMORY: Row = Row {
    key: "agent-memory",
    what: "resident memory of an agent with one workload",
    floor: "",
    unit: "MB",
    target: Target::AtMost(15.0),
};

pub(crate) const BUSY_MEMORY: Row = Row {
    key: "agent-memory-100",
    what: "resident memory of an agent with 100 workloads, each with a stream and an SVID",
    floor: "",
    unit: "MB",
    target: Target::AtMost(25.0),
};

/// How long an agent may take until it serves, and an SVID until it is there: SPIRE's server rereads its entries every
/// five seconds, and an agent that polls asks every five.
const THERE_WITHIN: Duration = Duration::from_secs(60);
/// Between looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// After which an agent has settled.
const SETTLED: Duration = Duration::from_secs(2);
/// The SPIFFE ID of this very process.
const OWN: &str = "/bench/own";

/// A real agent, with a connection to its Workload API.
pub(super) struct Node {
    name: String,
    daemon: Daemon,
    socket: PathBuf,
    channel: Channel,
}

impl Node {
    /// A new one, that serves this process.
    pub(super) async fn started(stage: &Stage<'_>, name: &str) -> Result<Self> {
        configure(&stage.site, &stage.nodes, name)?;
        stage.site.register(std::iter::once(entry_here(OWN, name, None))).await?;
        Ok(Self::start(&stage.site, name).await?.0)
    }

    /// Starts the agent `name`; and how many milliseconds it took until this process had an SVID.
    async fn start(site: &Site, name: &str) -> Result<(Self, f64)> {
        let socket = site.path(&format!("{name}.sock"));
        let mut command = Command::new(site.places().programs.join("passant-agent"));
        command.args(["run", "--config"]).arg(site.path(&format!("{name}.toml")));
        let began = clock::now();
        let mut daemon = Daemon::start(command, &site.path(&format!("{name}.log")))?;
        loop {
            if let Ok(channel) = channel(&socket).await
                && let Ok(Ok(_)) = timeout(THERE_WITHIN, first(channel.clone())).await
            {
                let took = clock::now() - began;
                return Ok((Self { name: name.to_owned(), daemon, socket, channel }, took));
            }
            let ended = daemon.ended()?;
            if ended.is_some() || clock::now() - began > THERE_WITHIN.as_secs_f64() * 1e3 {
                bail!("the agent does not serve; ended: {ended:?}; its log:\n{}", daemon.log());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Milliseconds of one FetchX509SVID, until its first message.
    pub(super) async fn fetch(&self) -> Result<f64> {
        let began = clock::now();
        timeout(THERE_WITHIN, first(self.channel.clone())).await.context("the agent does not answer")??;
        Ok(clock::now() - began)
    }

    /// The same, again and again.
    pub(super) async fn fetches(&self, count: usize) -> Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..count {
            took.push(self.fetch().await?);
        }
        Ok(took)
    }

    fn resident(&self) -> Result<f64> {
        Ok(mb(Usage::of(self.daemon.pid())?.resident))
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.daemon.stop().await
    }
}

async fn first(channel: Channel) -> Result<usize> {
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
    Ok(stream.message().await?.context("the stream ended without a message")?.svids.len())
}

fn configure(site: &Site, nodes: &crate::nodes::Nodes, name: &str) -> Result<()> {
    let [certificate, key] = nodes.files(site.dir(), name)?;
    let text = format!(
        "trust_domain = \"{TRUST_DOMAIN}\"\ndata_dir = {:?}\nserver_address = \"{}\"\n[bootstrap]\nbundle = {:?}\n\
         [node_attestor]\nmethod = \"x509pop\"\ncertificate = {certificate:?}\nprivate_key = {key:?}\n\
         [workload_api]\nsocket = {:?}\n[workload_attestors.unix]\ndiscover_workload_path = true\n\
         workload_size_limit = -1\n[log]\nlevel = \"warn\"\n",
        site.on_disk(name),
        site.address(),
        site.bundle_file(),
        site.path(&format!("{name}.sock")),
    );
    Ok(fs::write(site.path(&format!("{name}.toml")), text)?)
}

pub(super) async fn measure(stage: &mut Stage<'_>) -> Result<()> {
    if stage.options.wants(&[&CREATE]) {
        create(stage).await?;
    }
    if stage.options.wants(&[&START, &RESTART]) {
        starts(stage).await?;
    }
    if stage.options.wants(&[&IDLE_MEMORY, &BUSY_MEMORY]) {
        memory(stage).await?;
    }
    Ok(())
}

/// Starts this program as the workload `number` of `node`, by a path of its own.
async fn workload(stage: &Stage<'_>, node: &Node, number: usize) -> Result<(Part, PathBuf)> {
    let program = stage.site.on_disk(&format!("{}-{number}", node.name));
    let here = std::env::current_exe()?;
    // Not on one file system: then it has to be a copy.
    if fs::hard_link(&here, &program).is_err() {
        fs::copy(&here, &program)?;
    }
    let control = stage.site.path(&format!("{}-{number}.sock", node.name));
    let socket = node.socket.to_str().context("the socket's path is not UTF-8")?;
    let part = Part::start_program(&program, &control, &["workload", "--socket", socket]).await?;
    Ok((part, program))
}

/// When the workload first had the SPIFFE ID with this path.
async fn had(workload: &mut Part, path: &str) -> Result<f64> {
    let within_ms = u64::try_from(THERE_WITHIN.as_millis())?;
    workload.ask(&When { id: format!("spiffe://{TRUST_DOMAIN}{path}"), within_ms }).await?;
    workload.answer(THERE_WITHIN + Duration::from_secs(5)).await
}

async fn create(stage: &mut Stage<'_>) -> Result<()> {
    let node = Node::started(stage, "creating").await?;
    let (mut workload, program) = workload(stage, &node, 0).await?;
    had(&mut workload, OWN).await?;
    let clients = stage.site.operator().await?.entries();
    let (mut took, mut writes) = (Vec::new(), Vec::new());
    for number in 0..stage.sizes.creates {
        let path = format!("/bench/created-{number}");
        let entry = entry_here(&path, &node.name, Some(&program));
        let request = BatchCreateEntryRequest { entries: vec![entry], output_mask: None };
        let began = clock::now();
        let answer = clients.clone().batch_create_entry(request).await?.into_inner();
        let acknowledged = clock::now();
        writes.push(acknowledged - began);
        let at = had(&mut workload, &path).await?;
        // Before the answer of the operator's call, the workload may have it already.
        took.push((at - acknowledged).max(0.0));
        let entry = answer.results.into_iter().next().and_then(|result| result.entry);
        let ids = vec![entry.unwrap_or_else(types::Entry::default).id];
        clients.clone().batch_delete_entry(BatchDeleteEntryRequest { ids }).await?;
    }
    let spread = Spread::of(&took).context("nothing was created")?;
    let measured = Measured::of(spread.p99, None).over(&took);
    let measured = measured.note("the write's p50 ms", median(&writes).unwrap_or_default());
    stage.report.took(&CREATE, measured);
    drop(workload);
    node.stop().await
}

async fn starts(stage: &mut Stage<'_>) -> Result<()> {
    let (mut anew, mut again) = (Vec::new(), Vec::new());
    for turn in 0..stage.sizes.turns {
        let name = format!("starting-{turn}");
        configure(&stage.site, &stage.nodes, &name)?;
        stage.site.register(std::iter::once(entry_here(OWN, &name, None))).await?;
        // A SPIRE server reads its entries every few seconds; ours has them.
        let (node, took) = Node::start(&stage.site, &name).await?;
        anew.push(took);
        node.stop().await?;
        let (node, took) = Node::start(&stage.site, &name).await?;
        again.push(took);
        node.stop().await?;
    }
    for (row, took) in [(&START, anew), (&RESTART, again)] {
        let middle = median(&took).context("no agent was started")?;
        stage.report.took(row, Measured::of(middle, None).over(&took));
    }
    Ok(())
}

async fn memory(stage: &mut Stage<'_>) -> Result<()> {
    let node = Node::started(stage, "holding").await?;
    let count = stage.sizes.workloads;
    let (mut first, _) = workload(stage, &node, 0).await?;
    had(&mut first, OWN).await?;
    tokio::time::sleep(SETTLED).await;
    let idle = node.resident()?;
    stage.report.took(&IDLE_MEMORY, Measured::of(idle, None));
    let program = |number: usize| stage.site.on_disk(&format!("{}-{number}", node.name));
    let path = |number: usize| format!("/bench/workload-{number}");
    let entries = (1..=count).map(|number| entry_here(&path(number), &node.name, Some(&program(number))));
    stage.site.register(entries).await?;
    let mut workloads = vec![first];
    for number in 1..=count {
        workloads.push(workload(stage, &node, number).await?.0);
    }
    for (number, workload) in workloads.iter_mut().enumerate().skip(1) {
        had(workload, &path(number)).await?;
    }
    tokio::time::sleep(SETTLED).await;
    let busy = node.resident()?;
    let each = (busy - idle) * 1024.0 / crate::numbers::figure(count);
    let measured = Measured::of(busy, None).note("workloads", crate::numbers::figure(count));
    stage.report.took(&BUSY_MEMORY, measured.note("kB each", each));
    drop(workloads);
    node.stop().await
}
