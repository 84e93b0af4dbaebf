//! What keeps somebody from an identity, and which stops go with what they are about?

use passant_core::{EntryId, Instance, SpiffeId, Stop, UnixTime};

use super::{Change, State};

impl State {
    /// How many stops there are.
    pub fn stop_count(&self) -> usize {
        self.stops.len()
    }

    /// The stop that keeps `agent` from what `entry` grants, for one of its processes if that is given.
    pub fn stop_between(
        &self,
        agent: &SpiffeId,
        entry: &EntryId,
        instance: Option<&Instance>,
    ) -> Option<&Stop> {
        let of_process = || instance.and_then(|instance| self.instance_stop(agent, instance));
        self.agent_stop(agent).or_else(|| self.entry_stop(entry)).or_else(of_process).map(AsRef::as_ref)
    }

    /// A stop of an entry for this SPIFFE ID, if all entries for it are stopped that have not ended at `now`. An SVID does
    /// not say which of several entries it was issued for.
    pub fn id_stop(&self, id: &SpiffeId, now: UnixTime) -> Option<&Stop> {
        if self.stops.is_empty() {
            return None;
        }
        let mut found = None;
        for entry in self.entries_by_spiffe_id(id).filter(|entry| !entry.has_ended(now)) {
            found = Some(self.entry_stop(&entry.id)?.as_ref());
        }
        found
    }

    /// The deletes of stops that belong to a commit of `changes`: those of entries that it deletes. Stops of agents and of
    /// their processes outlive the node: under the same ID it may attest anew.
    pub fn stops_ended_by(&self, changes: &[Change]) -> Vec<Change> {
        if self.stops.is_empty() {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for change in changes {
            match change {
                Change::DeleteEntry(id) => {
                    ended.extend(self.entry_stop(id).map(|stop| stop.target.clone()));
                }
                Change::PutEntry(_)
                | Change::PutNode(_)
                | Change::DeleteNode(_)
                | Change::PutToken(_)
                | Change::DeleteToken(_)
                | Change::PutAuthority(_)
                | Change::DeleteAuthority(_)
                | Change::PutBundle(_)
                | Change::DeleteBundle(_)
                | Change::PutFederation(_)
                | Change::DeleteFederation(_)
                | Change::PutStop(_)
                | Change::DeleteStop(_) => {}
            }
        }
        ended.into_iter().map(Change::DeleteStop).collect::<Vec<_>>()
    }
}

#[cfg(test)]
mod tests {
    use passant_core::StopTarget;

    use super::*;
    use crate::state::samples::{
        at, commit, draft, entry, entry_id, id, node, registered, stop, trust_domain,
    };
    use crate::state::{Cursor, Lineage, Revision};

    const AGENT: &str = "/spire/agent/x/1";

    fn process(text: &str) -> Instance {
        Instance::parse(text).unwrap()
    }

    fn of_process(text: &str) -> StopTarget {
        StopTarget::Instance { agent: id(AGENT), instance: process(text) }
    }

    fn with(targets: &[StopTarget]) -> State {
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        let mut ended = draft("/two", AGENT, &["k:3"]);
        ended.expires_at = Some(at(50));
        let mut changes = vec![
            Change::PutNode(node(AGENT, &[])),
            Change::PutEntry(entry("a", "/one", AGENT)),
            Change::PutEntry(registered("b", draft("/one", AGENT, &["k:2"]))),
            Change::PutEntry(registered("c", draft("/two", AGENT, &["k:2"]))),
            Change::PutEntry(registered("d", ended)),
        ];
        changes.extend(targets.iter().map(|target| Change::PutStop(stop(target.clone()))));
        state.apply(&commit(1, changes));
        state
    }

    #[test]
    fn each_target_keeps_from_what_it_is_about() {
        let other = id("/spire/agent/x/2");
        for (target, expected) in [
            (StopTarget::Agent(id(AGENT)), [true, true, true, false]),
            (StopTarget::Entry(entry_id("a")), [true, true, false, true]),
            (of_process("boot/1/2"), [false, true, false, false]),
        ] {
            let state = with(std::slice::from_ref(&target));
            let between = |agent: &SpiffeId, entry: &str, instance: Option<Instance>| {
                state.stop_between(agent, &entry_id(entry), instance.as_ref()).is_some()
            };
            let found = [
                between(&id(AGENT), "a", None),
                between(&id(AGENT), "a", Some(process("boot/1/2"))),
                between(&id(AGENT), "b", Some(process("boot/1/3"))),
                between(&other, "a", Some(process("boot/1/2"))),
            ];
            assert_eq!(found, expected, "{target}");
        }
    }

    #[test]
    fn an_id_is_stopped_once_all_its_entries_are() {
        let entry = |name: &str| StopTarget::Entry(entry_id(name));
        let stopped =
            |targets: &[StopTarget], path: &str, now| with(targets).id_stop(&id(path), at(now)).is_some();
        assert!(!stopped(&[], "/one", 10));
        assert!(!stopped(&[entry("a")], "/one", 10));
        assert!(stopped(&[entry("a"), entry("b")], "/one", 10));
        assert!(!stopped(&[entry("c")], "/two", 49), "the other one has not ended");
        assert!(stopped(&[entry("c")], "/two", 50));
        assert!(!stopped(&[entry("c")], "/none", 10));
        assert!(!stopped(&[StopTarget::Agent(id(AGENT))], "/one", 10));
    }

    #[test]
    fn stops_go_with_their_entry_and_outlive_a_node() {
        let targets =
            [StopTarget::Agent(id(AGENT)), StopTarget::Entry(entry_id("a")), of_process("boot/1/2")];
        let state = with(&targets);
        let [_, entry, _] = targets.map(Change::DeleteStop);
        let ended = |change: Change| state.stops_ended_by(&[change]);
        assert_eq!(ended(Change::DeleteEntry(entry_id("a"))), [entry]);
        assert_eq!(ended(Change::DeleteEntry(entry_id("b"))), []);
        assert_eq!(ended(Change::DeleteNode(id(AGENT))), []);
        assert_eq!(ended(Change::PutNode(node(AGENT, &[]))), [], "an agent that attests anew stays stopped");
    }
}
