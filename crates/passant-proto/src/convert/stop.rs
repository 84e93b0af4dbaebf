//! How do stops convert, for operators and for agents?

use passant_core::{EntryId, Instance, SpiffeId, Stop, StopReason, StopTarget, TrustDomain, UnixTime};

use super::Malformed;
use crate::stop::target::Target as Wanted;
use crate::stop::{Instance as WireInstance, Rollout, StopStatus, Target};
use crate::sync::stop::Target as Concerned;
use crate::sync::{AllEntries, Stop as WireStop};

/// Bytes of a stop's ID that are believed; ours take 36.
const ID_BYTES: usize = 64;

/// What an operator wants stopped, or to know about.
///
/// # Errors
/// When it is missing or malformed, or an agent is none of `trust_domain`.
pub fn target_from_wire(trust_domain: &TrustDomain, wire: Option<&Target>) -> Result<StopTarget, Malformed> {
    match wire.and_then(|wire| wire.target.as_ref()) {
        None => Err(Malformed::new("target: missing")),
        Some(Wanted::EntryId(id)) => entry_id(id).map(StopTarget::Entry),
        Some(Wanted::AgentId(id)) => agent_id(trust_domain, id).map(StopTarget::Agent),
        Some(Wanted::Instance(WireInstance { agent_id: agent, instance: process })) => {
            let (agent, instance) = (agent_id(trust_domain, agent)?, instance(process)?);
            Ok(StopTarget::Instance { agent, instance })
        }
    }
}

/// Names what is stopped.
pub fn target_to_wire(target: &StopTarget) -> Target {
    let target = match target {
        StopTarget::Entry(id) => Wanted::EntryId(id.to_string()),
        StopTarget::Agent(id) => Wanted::AgentId(id.to_string()),
        StopTarget::Instance { agent, instance } => {
            Wanted::Instance(WireInstance { agent_id: agent.to_string(), instance: instance.to_string() })
        }
    };
    Target { target: Some(target) }
}

/// Why an operator stops something, or ends a stop.
///
/// # Errors
/// When nothing is said, or too much.
pub fn reason_from_wire(reason: &str) -> Result<StopReason, Malformed> {
    StopReason::parse(reason).map_err(|cause| Malformed::field("reason", &cause))
}

/// One stop, and how far it has come, for operators.
pub fn status_to_wire(stop: &Stop, rollout: Rollout) -> StopStatus {
    StopStatus {
        id: stop.id.clone(),
        target: Some(target_to_wire(&stop.target)),
        reason: stop.reason.to_string(),
        by: stop.by.clone(),
        since: stop.since.secs(),
        rollout: Some(rollout),
    }
}

/// A stop as `agent` is told of it; `None` if it is about another agent. Who made it is not told.
pub fn to_agent(agent: &SpiffeId, stop: &Stop) -> Option<WireStop> {
    let target = match &stop.target {
        StopTarget::Entry(id) => Concerned::EntryId(id.to_string()),
        StopTarget::Agent(of) => (of == agent).then_some(Concerned::Agent(AllEntries {}))?,
        StopTarget::Instance { agent: of, instance } => {
            (of == agent).then(|| Concerned::Instance(instance.to_string()))?
        }
    };
    Some(WireStop {
        id: stop.id.clone(),
        target: Some(target),
        reason: stop.reason.to_string(),
        since: stop.since.secs(),
    })
}

/// Takes a stop that a server told `agent` of. Who made it and its revision are not told: they are empty and 0.
///
/// # Errors
/// The first field that is malformed; also when nothing that this version knows is stopped: an agent that cannot tell
/// what it is to stop should not go on as if nothing were.
pub fn from_server(agent: &SpiffeId, wire: &WireStop) -> Result<Stop, Malformed> {
    let target = match &wire.target {
        None => return Err(Malformed::new("target: missing, or of a kind that this version does not know")),
        Some(Concerned::EntryId(id)) => StopTarget::Entry(entry_id(id)?),
        Some(Concerned::Agent(AllEntries {})) => StopTarget::Agent(agent.clone()),
        Some(Concerned::Instance(process)) => {
            StopTarget::Instance { agent: agent.clone(), instance: instance(process)? }
        }
    };
    if wire.id.is_empty() || wire.id.len() > ID_BYTES {
        return Err(Malformed::new(format!("id: 1 to {ID_BYTES} bytes are expected")));
    }
    Ok(Stop {
        target,
        id: wire.id.clone(),
        reason: reason_from_wire(&wire.reason)?,
        by: String::new(),
        since: UnixTime::from_secs(wire.since),
        revision: 0,
    })
}

fn entry_id(text: &str) -> Result<EntryId, Malformed> {
    EntryId::parse(text).map_err(|cause| Malformed::field("entry_id", &cause))
}

fn agent_id(trust_domain: &TrustDomain, text: &str) -> Result<SpiffeId, Malformed> {
    let id = SpiffeId::parse(text).map_err(|cause| Malformed::field("agent_id", &cause))?;
    if !(id.is_member_of(trust_domain) && id.is_agent()) {
        return Err(Malformed::new(format!("agent_id: \"{id}\" is no agent of {trust_domain}")));
    }
    Ok(id)
}

fn instance(text: &str) -> Result<Instance, Malformed> {
    Instance::parse(text).map_err(|cause| Malformed::field("instance", &cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "spiffe://example.org/spire/agent/x509pop/a";

    fn trust_domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn agent(id: &str) -> SpiffeId {
        SpiffeId::parse(id).unwrap()
    }

    fn stop(target: StopTarget) -> Stop {
        Stop {
            target,
            id: "s1".to_owned(),
            reason: StopReason::parse("stolen").unwrap(),
            by: "root".to_owned(),
            since: UnixTime::from_secs(7),
            revision: 9,
        }
    }

    fn targets() -> [StopTarget; 3] {
        let instance = Instance::parse("boot/1/2").unwrap();
        [
            StopTarget::Entry(EntryId::parse("e1").unwrap()),
            StopTarget::Agent(agent(AGENT)),
            StopTarget::Instance { agent: agent(AGENT), instance },
        ]
    }

    #[test]
    fn a_target_survives_the_wire() {
        for target in targets() {
            let wire = target_to_wire(&target);
            assert_eq!(target_from_wire(&trust_domain(), Some(&wire)).unwrap(), target);
        }
    }

    #[test]
    fn a_malformed_target_names_its_field() {
        let check = |target: Option<Wanted>, field: &str| {
            let refused = target_from_wire(&trust_domain(), Some(&Target { target })).unwrap_err();
            assert!(refused.to_string().starts_with(field), "{refused}");
        };
        let instance = |agent: &str, instance: &str| {
            let (agent_id, instance) = (agent.to_owned(), instance.to_owned());
            Some(Wanted::Instance(WireInstance { agent_id, instance }))
        };
        check(None, "target");
        check(Some(Wanted::EntryId("a/b".to_owned())), "entry_id");
        check(Some(Wanted::AgentId("x".to_owned())), "agent_id");
        check(Some(Wanted::AgentId("spiffe://example.org/web".to_owned())), "agent_id");
        check(Some(Wanted::AgentId("spiffe://other.test/spire/agent/x509pop/a".to_owned())), "agent_id");
        check(instance("", "boot/1/2"), "agent_id");
        check(instance(AGENT, "boot/1"), "instance");
        assert!(target_from_wire(&trust_domain(), None).is_err());
        assert!(reason_from_wire("").is_err());
    }

    #[test]
    fn an_agent_is_told_what_concerns_it_and_no_more() {
        for target in targets() {
            let stop = stop(target);
            let told = to_agent(&agent(AGENT), &stop).unwrap();
            let learned = from_server(&agent(AGENT), &told).unwrap();
            assert_eq!(learned, Stop { by: String::new(), revision: 0, ..stop.clone() });
            let is_for_all = stop.target.agent().is_none();
            assert_eq!(
                to_agent(&agent("spiffe://example.org/spire/agent/x509pop/b"), &stop).is_some(),
                is_for_all
            );
        }
    }

    #[test]
    fn an_agent_believes_no_stop_that_it_cannot_read() {
        let [entry, ..] = targets();
        let good = to_agent(&agent(AGENT), &stop(entry)).unwrap();
        for bad in [
            WireStop { target: None, ..good.clone() },
            WireStop { target: Some(Concerned::EntryId(String::new())), ..good.clone() },
            WireStop { target: Some(Concerned::Instance("x".to_owned())), ..good.clone() },
            WireStop { id: String::new(), ..good.clone() },
            WireStop { id: "x".repeat(ID_BYTES + 1), ..good.clone() },
            WireStop { reason: "\n".to_owned(), ..good },
        ] {
            assert!(from_server(&agent(AGENT), &bad).is_err(), "{bad:?}");
        }
    }
}
