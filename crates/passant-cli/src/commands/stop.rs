//! `passant stop`: stop what is served of an entry, on a node or to a process at once, see whom it has reached, end it.

use std::io::{self, Write};

use anyhow::{Context, bail};
use passant_core::{StopTarget, UnixTime};
use passant_proto::convert::stop::target_to_wire;
use passant_proto::stop::target::Target as Named;
use passant_proto::stop::{ListStopsRequest, ResumeRequest, StopRequest, StopStatus, Target};
use serde_json::{Value, json};

use super::rollout;
use crate::args::{ResumeTarget, ServerSocket, StatusTarget, Stop, StopHow};
use crate::connect::{Server, refused};
use crate::render::{Output, fields};

pub(crate) async fn run(command: Stop, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    match command {
        Stop::Entry { id, how } => stop(&StopTarget::Entry(id), &how, &server, out).await,
        Stop::Agent { agent, how } => stop(&StopTarget::Agent(agent), &how, &server, out).await,
        Stop::Instance { agent, instance, how } => {
            stop(&StopTarget::Instance { agent, instance }, &how, &server, out).await
        }
        Stop::Resume { target } => {
            let (target, how) = match target {
                ResumeTarget::Entry { id, how } => (StopTarget::Entry(id), how),
                ResumeTarget::Agent { agent, how } => (StopTarget::Agent(agent), how),
                ResumeTarget::Instance { agent, instance, how } => {
                    (StopTarget::Instance { agent, instance }, how)
                }
            };
            resume(&target, &how, &server, out).await
        }
        Stop::List => list(&server, out).await,
        Stop::Status { target } => status(target.map(of_status), &server, out).await,
    }
}

fn of_status(target: StatusTarget) -> StopTarget {
    match target {
        StatusTarget::Entry { id } => StopTarget::Entry(id),
        StatusTarget::Agent { agent } => StopTarget::Agent(agent),
        StatusTarget::Instance { agent, instance } => StopTarget::Instance { agent, instance },
    }
}

async fn stop(target: &StopTarget, how: &StopHow, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let request = StopRequest {
        target: Some(target_to_wire(target)),
        reason: how.reason.to_string(),
        wait_millis: how.wait.millis(),
    };
    let answer = server.stops().stop(request).await.map_err(refused);
    let answer = answer.with_context(|| format!("failed to stop {target}"))?.into_inner();
    let stopped = answer.stop.context("the server answered without the stop")?;
    if how.wait.within.is_some() && is_pending(&stopped) {
        out.note();
    }
    let created = answer.created;
    out.print(
        || json!({ "stop": status_json(&stopped), "created": created }),
        |to| {
            if !created {
                writeln!(to, "it was stopped already, and stays so:")?;
            }
            print_stop(to, &stopped)
        },
    )
}

async fn resume(target: &StopTarget, how: &StopHow, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let request = ResumeRequest {
        target: Some(target_to_wire(target)),
        reason: how.reason.to_string(),
        wait_millis: how.wait.millis(),
    };
    let answer = server.stops().resume(request).await.map_err(refused);
    let answer = answer
        .with_context(|| format!("failed to resume {target}; passant stop list shows what is stopped"))?
        .into_inner();
    let came = answer.rollout.unwrap_or_default();
    if how.wait.within.is_some() && rollout::is_pending(&came) {
        out.note();
    }
    out.print(
        || json!({ "stop_id": answer.stop_id, "rollout": rollout::json(&came) }),
        |to| {
            writeln!(to, "the stop of {target} is ended")?;
            rollout::tell(to, &came)
        },
    )
}

/// All stops, or that of one target.
async fn stops(target: Option<Target>, server: &Server) -> anyhow::Result<Vec<StopStatus>> {
    let mut request = ListStopsRequest { target, ..ListStopsRequest::default() };
    let mut all = Vec::new();
    loop {
        let page = server.stops().list_stops(request.clone()).await.map_err(refused)?.into_inner();
        all.extend(page.stops);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        if page.next_page_token == request.page_token {
            bail!("the server gives the same page again and again");
        }
        request.page_token = page.next_page_token;
    }
}

async fn list(server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let all = stops(None, server).await?;
    let row = |stop: &StopStatus| {
        let came = stop.rollout.clone().unwrap_or_default();
        let pending = came.pending.len() + usize::try_from(came.pending_left_out).unwrap_or(usize::MAX);
        vec![
            target_text(stop.target.as_ref()),
            UnixTime::from_secs(stop.since).to_string(),
            stop.by.clone(),
            came.applied.to_string(),
            pending.to_string(),
            stop.reason.clone(),
        ]
    };
    out.table(
        || json!({ "stops": all.iter().map(status_json).collect::<Value>() }),
        &["STOPPED", "SINCE", "BY", "APPLIED", "PENDING", "REASON"],
        all.iter().map(row),
    )
}

async fn status(target: Option<StopTarget>, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let all = stops(target.as_ref().map(target_to_wire), server).await?;
    if let Some(target) = &target
        && all.is_empty()
    {
        bail!("{target} is not stopped; passant stop list shows what is");
    }
    if all.iter().any(is_pending) {
        out.note();
    }
    out.print(
        || json!({ "stops": all.iter().map(status_json).collect::<Value>() }),
        |to| {
            if all.is_empty() {
                return writeln!(to, "nothing is stopped");
            }
            for (at, stop) in all.iter().enumerate() {
                if at > 0 {
                    writeln!(to)?;
                }
                print_stop(to, stop)?;
            }
            Ok(())
        },
    )
}

fn is_pending(stop: &StopStatus) -> bool {
    stop.rollout.as_ref().is_some_and(rollout::is_pending)
}

fn print_stop(to: &mut dyn Write, stop: &StopStatus) -> io::Result<()> {
    fields(
        to,
        &[
            ("stopped", &target_text(stop.target.as_ref())),
            ("since", &UnixTime::from_secs(stop.since)),
            ("by", &stop.by),
            ("reason", &stop.reason),
        ],
    )?;
    rollout::tell(to, &stop.rollout.clone().unwrap_or_default())
}

/// As the arguments of `passant stop resume` name it.
fn target_text(target: Option<&Target>) -> String {
    match target.and_then(|target| target.target.as_ref()) {
        None => "?".to_owned(),
        Some(Named::EntryId(id)) => format!("entry {id}"),
        Some(Named::AgentId(id)) => format!("agent {id}"),
        Some(Named::Instance(one)) => format!("instance {} {}", one.agent_id, one.instance),
    }
}

fn status_json(stop: &StopStatus) -> Value {
    let target = match stop.target.as_ref().and_then(|target| target.target.as_ref()) {
        None => Value::Null,
        Some(Named::EntryId(id)) => json!({ "entry_id": id }),
        Some(Named::AgentId(id)) => json!({ "agent_id": id }),
        Some(Named::Instance(one)) => {
            json!({ "instance": { "agent_id": one.agent_id, "instance": one.instance } })
        }
    };
    json!({
        "id": stop.id,
        "target": target,
        "reason": stop.reason,
        "by": stop.by,
        "since": stop.since.to_string(),
        "rollout": rollout::json(&stop.rollout.clone().unwrap_or_default()),
    })
}
