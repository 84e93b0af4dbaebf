//! Which agents have a change, which have not, and until when may those serve what was before?

use std::io::{self, Write};

use passant_core::UnixTime;
use passant_proto::stop::{AwaitRolloutRequest, Pending, PendingState, Rollout};
use serde_json::{Value, json};

use crate::args::Wait;
use crate::connect::{Server, refused};
use crate::plain;

/// Entries that the server takes in one question.
const ENTRIES: usize = 1_000;

/// What was written: the ids of entries, and the parents that they had before.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) entries: Vec<String>,
    pub(crate) parents: Vec<String>,
}

/// Waits, if that was asked for, until agents have what was written; how far it has come then.
pub(crate) async fn awaited(
    server: &Server,
    written: Written,
    wait: Wait,
) -> anyhow::Result<Option<Rollout>> {
    if wait.within.is_none() {
        return Ok(None);
    }
    let Written { entries: mut entry_ids, parents: mut parent_ids } = written;
    parent_ids.sort_unstable();
    parent_ids.dedup();
    let names_nodes = |parent: &String| parent.ends_with("/spire/server");
    if entry_ids.len() > ENTRIES || parent_ids.len() > ENTRIES || parent_ids.iter().any(names_nodes) {
        // Of so many, or of a node alias, it is everything that is waited for.
        (entry_ids, parent_ids) = (Vec::new(), Vec::new());
    }
    let request = AwaitRolloutRequest { entry_ids, parent_ids, wait_millis: wait.millis() };
    let answer = server.stops().await_rollout(request).await.map_err(refused)?;
    Ok(Some(answer.into_inner().rollout.unwrap_or_default()))
}

/// Whether somebody is not known to have it.
pub(crate) fn is_pending(rollout: &Rollout) -> bool {
    !rollout.pending.is_empty() || rollout.pending_left_out > 0
}

pub(crate) fn json(rollout: &Rollout) -> Value {
    let one = |pending: &Pending| {
        json!({
            "agent_id": pending.agent_id,
            "state": state(pending),
            "since": pending.since.to_string(),
            "may_serve_until": pending.may_serve_until.to_string(),
        })
    };
    json!({
        "applied": rollout.applied,
        "pending": rollout.pending.iter().map(one).collect::<Value>(),
        "pending_left_out": rollout.pending_left_out,
    })
}

pub(crate) fn tell(to: &mut dyn Write, rollout: &Rollout) -> io::Result<()> {
    writeln!(to, "{} have applied it", agents(rollout.applied))?;
    for pending in &rollout.pending {
        let since = match pending.since {
            0 => "not since the server started".to_owned(),
            secs => format!("since {}", UnixTime::from_secs(secs)),
        };
        let until = match pending.may_serve_until {
            0 => "serves on: it cannot stop single processes; stop the entry or the agent".to_owned(),
            secs => format!("may serve until {}", UnixTime::from_secs(secs)),
        };
        let state = state(pending);
        let line = format!("{}  {state} {since}, {until}", pending.agent_id);
        writeln!(to, "not yet  {}", plain::line(&line))?;
    }
    match rollout.pending_left_out {
        0 => Ok(()),
        some => writeln!(to, "not yet  {} more", agents(some)),
    }
}

fn agents(count: u32) -> String {
    if count == 1 { "1 agent".to_owned() } else { format!("{count} agents") }
}

fn state(pending: &Pending) -> &'static str {
    match pending.state() {
        PendingState::Awaited => "awaited",
        PendingState::Unreachable => "unreachable",
        PendingState::Polls => "polls",
        PendingState::Unable => "unable",
        PendingState::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_it_not_is_named_with_since_when_and_until_when() {
        let pending = |agent: &str, state: PendingState, since| Pending {
            agent_id: agent.to_owned(),
            state: state.into(),
            since,
            may_serve_until: if state == PendingState::Unable { 0 } else { 3_600 },
        };
        let rollout = Rollout {
            applied: 1,
            pending: vec![
                pending("spiffe://a.test/one", PendingState::Unreachable, 0),
                pending("spiffe://a.test/two", PendingState::Awaited, 60),
                pending("spiffe://a.test/old", PendingState::Unable, 60),
            ],
            pending_left_out: 2,
        };
        let mut told = Vec::new();
        tell(&mut told, &rollout).unwrap();
        assert_eq!(
            String::from_utf8(told).unwrap(),
            "1 agent have applied it\n\
             not yet  spiffe://a.test/one  unreachable not since the server started, may serve until 1970-01-01T01:00:00Z\n\
             not yet  spiffe://a.test/two  awaited since 1970-01-01T00:01:00Z, may serve until 1970-01-01T01:00:00Z\n\
             not yet  spiffe://a.test/old  unable since 1970-01-01T00:01:00Z, serves on: it cannot stop single processes; \
             stop the entry or the agent\n\
             not yet  2 agents more\n"
        );
        assert_eq!(json(&rollout)["pending"][1]["since"], "60");
        assert!(is_pending(&rollout) && !is_pending(&Rollout { applied: 9, ..Rollout::default() }));
        assert!(is_pending(&Rollout { pending_left_out: 1, ..Rollout::default() }));
    }
}
