//! Which rows are there, in which order are they measured, and in what state is the world meanwhile?

mod admit;
mod hold;
mod issue;
mod node;
mod recover;
mod spread;
mod storm;

use std::time::Duration;

use anyhow::Result;
use passant_proto::types;
use passant_tests::api::{selector, wire_id};

use crate::clock;
use crate::fleet::Fleet;
use crate::nodes::Nodes;
use crate::options::{Options, Sizes};
use crate::order::Act;
use crate::report::{Report, say};
use crate::row::Row;
use crate::site::{Places, Site, TRUST_DOMAIN, entry, node_name};

/// All rows, in the order of the table.
pub(crate) const ROWS: [&Row; 26] = [
    &admit::ATTEST,
    &admit::CONNECT,
    &hold::MEMORY,
    &hold::IDLE,
    &hold::POLLS,
    &issue::MINT,
    &issue::MINT_ON_EVIDENCE,
    &issue::JWT,
    &issue::ROTATION,
    &issue::FETCH_MEANWHILE,
    &spread::BROADCAST,
    &spread::BROADCAST_LAST,
    &spread::STOP,
    &storm::RECONNECT,
    &storm::RECONNECT_CPU,
    &node::CREATE,
    &node::START,
    &node::RESTART,
    &node::IDLE_MEMORY,
    &node::BUSY_MEMORY,
    &recover::COMMIT,
    &recover::BULK,
    &recover::ENTRY_MEMORY,
    &recover::START,
    &recover::RECOVERY,
    &recover::STOP_TIME,
];

/// Where those begin that need no agents.
const RECOVERS: usize = 20;

/// The path of the SPIFFE ID that the first thousand nodes have besides their own.
pub(crate) const ALIAS: &str = "/fleet/first";
/// Agents that do something at the same time, where it is not all of them at once.
pub(crate) const AT_ONCE: usize = 64;
/// Agents with this many entries more than the others: those that have batches minted.
pub(crate) const MINTERS: usize = 8;
pub(crate) const OF_MINTERS: usize = 100;
/// How long one agent may take for something small while others do it too.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// A server with a fleet before it.
pub(crate) struct Stage<'a> {
    pub(crate) options: &'a Options,
    pub(crate) sizes: Sizes,
    pub(crate) report: &'a mut Report,
    pub(crate) site: Site,
    pub(crate) fleet: Fleet,
    pub(crate) nodes: Nodes,
    /// Whether the server pushes; else agents poll.
    pub(crate) pushes: bool,
    pub(crate) floors: Floors,
}

/// What was measured with the floor's server, for rows that come later.
#[derive(Default)]
pub(crate) struct Floors {
    pub(crate) broadcast: spread::FanOuts,
    /// Seconds until all are back, and what the floor's server worked for each, in microseconds.
    pub(crate) reconnect: Option<(f64, f64)>,
    /// What the floor's server worked for a call, in microseconds.
    pub(crate) call: Option<f64>,
}

/// Measures what is wanted. What fails is told, and the other rows are measured all the same.
///
/// # Errors
/// When something failed.
pub(crate) async fn measure(
    options: &Options,
    sizes: Sizes,
    places: &Places,
    report: &mut Report,
) -> Result<()> {
    if options.wants(&ROWS[..RECOVERS]) {
        let mut stage = Stage::set(options, sizes, places.clone(), report).await?;
        admit::measure(&mut stage).await?;
        hold::measure(&mut stage).await?;
        let issued = issue::measure(&mut stage).await;
        stage.report.judge("issuing", issued);
        let spread = spread::measure(&mut stage).await;
        stage.report.judge("spreading changes", spread);
        let served = node::measure(&mut stage).await;
        stage.report.judge("real agents", served);
        let back = storm::measure(&mut stage).await;
        stage.report.judge("coming back", back);
    }
    if options.wants(&ROWS[RECOVERS..]) {
        let recovered = recover::measure(options, sizes, places.clone(), report).await;
        report.judge("very many entries", recovered);
    }
    report.all_went_well()
}

impl<'a> Stage<'a> {
    /// Starts a server, and registers the entries of agents that have not come yet.
    async fn set(options: &'a Options, sizes: Sizes, places: Places, report: &'a mut Report) -> Result<Self> {
        let mut site = Site::new(places)?;
        site.start().await?;
        let nodes = Nodes::held(site.dir())?;
        let fleet = Fleet::start(site.dir(), site.address(), sizes).await?;
        let mut stage =
            Self { options, sizes, report, site, fleet, nodes, pushes: false, floors: Floors::default() };
        stage.register().await?;
        Ok(stage)
    }

    async fn register(&mut self) -> Result<()> {
        let agents = self.sizes.agents;
        let before = self.site.usage()?.resident;
        let each = (0..self.sizes.entries).map(|number| entry(number, &node_name(number % agents)));
        let more = (0..self.minters() * OF_MINTERS)
            .map(|number| entry(self.sizes.entries + number, &node_name(number % self.minters())));
        let alias = types::Entry {
            spiffe_id: wire_id(TRUST_DOMAIN, ALIAS),
            parent_id: wire_id(TRUST_DOMAIN, "/spire/server"),
            selectors: vec![selector("x509pop", &self.nodes.selector_of_first())],
            ..types::Entry::default()
        };
        self.site.register(each.chain(more).chain([alias])).await?;
        say(&format!(
            "{} entries registered for {agents} agents; the server grew by {} MB",
            self.sizes.entries,
            (self.site.usage()?.resident.saturating_sub(before)) / 1024
        ));
        Ok(())
    }

    /// Agents that have batches minted.
    pub(crate) fn minters(&self) -> usize {
        MINTERS.min(self.sizes.agents)
    }

    /// Whether the server takes watches: the first agent tries.
    pub(crate) async fn ask_whether_it_pushes(&mut self) -> Result<()> {
        self.fleet.first(1, Act::Watch, 1, WITHIN).await?;
        let heard = self.fleet.tried(1, Act::HeardAfter { at: 0.0 }, 1, Duration::from_secs(5)).await?;
        self.pushes = heard.failed.is_empty();
        if !self.pushes {
            self.report.left_out("passant.sync.v1: the server does not speak it, so agents poll in all rows");
        }
        Ok(())
    }

    /// Has all agents follow the server: by watching if it pushes, else by polls every five seconds.
    pub(crate) async fn follow(&mut self) -> Result<()> {
        let agents = self.sizes.agents;
        let act = if self.pushes { Act::Watch } else { Act::Poll { every_ms: 5_000 } };
        let at = clock::now();
        self.fleet.all(act, agents, WITHIN).await?;
        self.fleet.all(Act::HeardAfter { at }, agents, WITHIN).await?;
        Ok(())
    }
}
