//! `passant access`: why the server lets a caller do something, or not.

use passant_proto::access::check_request::Caller;
use passant_proto::access::{CheckRequest, CheckResponse, LocalUser};
use passant_proto::convert::{id, selector};
use passant_proto::types;
use serde_json::{Value, json};

use crate::args::{Access, AccessCheck, ServerSocket};
use crate::connect::{Server, refused};
use crate::render::Output;

pub(crate) async fn run(command: Access, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    match command {
        Access::Check(args) => check(*args, &server, out).await,
    }
}

/// Prints what the server would decide; that it would refuse is something to look at, and no failure to find out.
async fn check(args: AccessCheck, server: &Server, out: &mut Output) -> anyhow::Result<()> {
    let (verb, request) = (args.verb.clone(), request(args));
    let answer = server.access().check(request).await.map_err(refused)?.into_inner();
    if !answer.allowed {
        out.note();
    }
    out.print(|| as_json(&answer), |to| print(to, &verb, &answer))
}

fn request(args: AccessCheck) -> CheckRequest {
    let AccessCheck { verb, caller, uid, gids, entry_id, spiffe_id, parent_id, selectors, target, .. } = args;
    let caller = match (caller, uid) {
        (Some(id), _) => Some(Caller::SpiffeId(id.to_string())),
        (None, Some(uid)) => Some(Caller::Local(LocalUser { uid, gids })),
        (None, None) => None,
    };
    let mask = types::EntryMask {
        spiffe_id: spiffe_id.is_some(),
        parent_id: parent_id.is_some(),
        selectors: !selectors.is_empty(),
        admin: args.admin,
        downstream: args.downstream,
        ..types::EntryMask::default()
    };
    let entry = (mask != types::EntryMask::default()).then(|| types::Entry {
        spiffe_id: spiffe_id.as_ref().map(id::to_wire),
        parent_id: parent_id.as_ref().map(id::to_wire),
        selectors: selector::to_wire(&selectors.into_iter().collect()),
        admin: args.admin,
        downstream: args.downstream,
        ..types::Entry::default()
    });
    CheckRequest {
        caller,
        verb,
        entry_id: entry_id.map(String::from).unwrap_or_default(),
        entry,
        input_mask: Some(mask),
        target: target.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn as_json(answer: &CheckResponse) -> Value {
    let roles = answer.roles.iter().map(|verdict| {
        json!({ "role": verdict.role, "held": verdict.held, "allows": verdict.allows, "lacks": verdict.lacks })
    });
    json!({
        "allowed": answer.allowed,
        "caller": answer.caller,
        "reason": answer.reason,
        "roles": roles.collect::<Value>(),
    })
}

fn print(to: &mut dyn std::io::Write, verb: &str, answer: &CheckResponse) -> std::io::Result<()> {
    let word = if answer.allowed { "allowed" } else { "denied" };
    writeln!(to, "{verb} {word} for {}: {}", answer.caller, answer.reason)?;
    for verdict in &answer.roles {
        let held = if verdict.held { "held" } else { "not held" };
        let says = if verdict.allows { "would allow it" } else { &verdict.lacks };
        writeln!(to, "  role {} ({held}): {says}", verdict.role)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn asked(arguments: &[&str]) -> CheckRequest {
        let cli = Cli::try_parse_from(["passant", "access", "check"].iter().chain(arguments)).unwrap();
        let Command::Access(Access::Check(args)) = cli.command else { panic!("another command") };
        request(*args)
    }

    #[test]
    fn only_what_was_named_is_changed() {
        let asked = asked(&[
            "entry.update",
            "--entry-id",
            "web",
            "--uid",
            "7",
            "--gid",
            "8",
            "--selector",
            "unix:uid:1",
        ]);
        assert_eq!(asked.caller, Some(Caller::Local(LocalUser { uid: 7, gids: vec![8] })));
        let mask = types::EntryMask { selectors: true, ..types::EntryMask::default() };
        assert_eq!((asked.input_mask, asked.entry_id.as_str()), (Some(mask), "web"));
        assert_eq!(asked.entry.unwrap().selectors.len(), 1);
    }

    #[test]
    fn without_a_caller_the_question_is_about_oneself() {
        let asked = asked(&["authority.read"]);
        assert_eq!((asked.caller, asked.entry, asked.target.as_str()), (None, None, ""));
    }
}
