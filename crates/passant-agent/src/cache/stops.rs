//! What is stopped on this node, as the server last said?

use std::collections::BTreeSet;

use passant_core::{EntryId, Instance, Stop, StopTarget};

/// All stops that concern this agent. Nothing of what they name is served, whatever else the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stops {
    list: Vec<Stop>,
    agent: bool,
    entries: BTreeSet<EntryId>,
    processes: BTreeSet<Instance>,
}

impl Stops {
    /// Those of `list`. Each is about this agent: see `convert::stop::from_server`.
    pub(crate) fn new(list: Vec<Stop>) -> Self {
        let mut stops = Self { list, ..Self::default() };
        for stop in &stops.list {
            match &stop.target {
                StopTarget::Agent(_) => stops.agent = true,
                StopTarget::Entry(id) => drop(stops.entries.insert(id.clone())),
                StopTarget::Instance { instance, .. } => drop(stops.processes.insert(instance.clone())),
            }
        }
        stops
    }

    /// All of them, as they are kept on disk.
    pub(crate) fn list(&self) -> &[Stop] {
        &self.list
    }

    /// The stop of all that the agent has.
    pub(crate) fn of_agent(&self) -> Option<&Stop> {
        self.list.iter().find(|stop| matches!(stop.target, StopTarget::Agent(_)))
    }

    /// The stops of single entries.
    pub(crate) fn of_entries(&self) -> impl Iterator<Item = (&EntryId, &Stop)> {
        self.list.iter().filter_map(|stop| match &stop.target {
            StopTarget::Entry(id) => Some((id, stop)),
            StopTarget::Agent(_) | StopTarget::Instance { .. } => None,
        })
    }

    /// The stop of the process.
    pub(crate) fn of_process(&self, process: &Instance) -> Option<&Stop> {
        let is_it = |stop: &&Stop| matches!(&stop.target, StopTarget::Instance { instance, .. } if instance == process);
        self.list.iter().find(is_it)
    }

    /// Whether nothing that the entry grants is to be served.
    pub(crate) fn cover(&self, entry: &EntryId) -> bool {
        self.agent || self.entries.contains(entry)
    }

    /// Whether nothing is to be served to the process.
    pub(crate) fn cover_process(&self, process: &Instance) -> bool {
        self.processes.contains(process)
    }

    /// The processes that are stopped.
    pub(super) fn processes(&self) -> &BTreeSet<Instance> {
        &self.processes
    }

    /// The entries of `known` for which it differs whether they are stopped.
    pub(super) fn differing<'a>(
        &'a self,
        other: &'a Self,
        known: impl Iterator<Item = &'a EntryId> + 'a,
    ) -> impl Iterator<Item = &'a EntryId> + 'a {
        known.filter(|id| self.cover(id) != other.cover(id))
    }
}
