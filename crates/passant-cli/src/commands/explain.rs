//! `passant explain`: why a workload has an identity, or none, and what would change that.

use std::cmp::Reverse;
use std::io::Write;

use passant_core::explanation::Code;
use passant_core::{Selector, SpiffeId};
use passant_proto::convert::selector;
use passant_proto::explain::{Candidate, Cause, ExplainRequest, Explanation, Fact};
use passant_proto::node;
use serde_json::{Value, json};

use crate::args::{AgentSocket, Explain, ServerSocket};
use crate::connect::{Server, node_admin, refused};
use crate::plain::line;
use crate::render::Output;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Node,
    Server,
}

/// What both sides say, put together.
#[derive(Debug, Default)]
struct Report {
    causes: Vec<(Side, Cause)>,
    candidates: Vec<(Side, Candidate)>,
    facts: Vec<(Side, Fact)>,
    left_out: u32,
    /// Why a side was not asked.
    not_asked: Vec<String>,
}

/// Prints what stands in the way. Something that does is worth a look: the exit code says so.
pub(crate) async fn run(command: Explain, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let report = match command {
        Explain::Pid { pid, spiffe_id, agent } => of_node(pid, spiffe_id, &agent, socket).await?,
        Explain::Node { agent } => of_node(0, None, &agent, socket).await?,
        Explain::SpiffeId { id, agent, selectors } => {
            of_server(socket, request(Some(&id), agent.as_ref(), selectors)).await?
        }
        Explain::Selectors { selectors, agent } => {
            of_server(socket, request(None, agent.as_ref(), selectors)).await?
        }
        Explain::Agent { id } => of_server(socket, request(None, Some(&id), Vec::new())).await?,
    };
    if report.first_block().is_some() {
        out.note();
    }
    out.print(|| report.as_json(), |to| report.print(to))
}

fn request(id: Option<&SpiffeId>, agent: Option<&SpiffeId>, selectors: Vec<Selector>) -> ExplainRequest {
    let text = |id: Option<&SpiffeId>| id.map(ToString::to_string).unwrap_or_default();
    ExplainRequest {
        spiffe_id: text(id),
        agent_id: text(agent),
        selectors: selector::to_wire(&selectors.into_iter().collect()),
    }
}

async fn of_server(socket: &ServerSocket, request: ExplainRequest) -> anyhow::Result<Report> {
    let server = Server::connect(socket).await?;
    let told = server.explain().explain(request).await.map_err(refused)?.into_inner();
    Ok(Report::default().with(Side::Server, told).in_order())
}

/// Asks the agent, and then the server about what the agent found, if it is here too.
async fn of_node(
    pid: u32,
    wanted: Option<SpiffeId>,
    agent: &AgentSocket,
    socket: &ServerSocket,
) -> anyhow::Result<Report> {
    let mut client = node_admin(agent).await?;
    let spiffe_id = wanted.as_ref().map(ToString::to_string).unwrap_or_default();
    let asked = node::ExplainRequest { pid, spiffe_id: spiffe_id.clone() };
    let node::ExplainResponse { explanation, agent_id, selectors, attested } =
        client.explain(asked).await.map_err(refused)?.into_inner();
    let mut report = Report::default().with(Side::Node, explanation.unwrap_or_default());
    if pid != 0 && !attested {
        return Ok(report.in_order());
    }
    if agent_id.is_empty() {
        report.not_asked.push("the server was not asked: the agent has no SPIFFE ID to ask about".to_owned());
        return Ok(report.in_order());
    }
    match ask_server(socket, ExplainRequest { spiffe_id, selectors, agent_id }).await {
        Ok(told) => report = report.with(Side::Server, told),
        Err(error) => report.not_asked.push(format!("the server was not asked: {error}")),
    }
    Ok(report.in_order())
}

async fn ask_server(socket: &ServerSocket, request: ExplainRequest) -> anyhow::Result<Explanation> {
    let server = Server::connect(socket).await?;
    Ok(server.explain().explain(request).await.map_err(refused)?.into_inner())
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Server => "server",
        }
    }
}

impl Report {
    /// Takes in what one side says. What the node serves stays served: causes of the server, asked after it, then only limit.
    fn with(mut self, side: Side, told: Explanation) -> Self {
        let is_served = self.candidates.iter().any(|(_, candidate)| candidate.missing.is_empty())
            && self.first_block().is_none();
        for mut cause in told.causes {
            cause.blocks &= !is_served;
            let is_told =
                |(_, known): &(Side, Cause)| known.code == cause.code && known.entry_id == cause.entry_id;
            if !self.causes.iter().any(is_told) {
                self.causes.push((side, cause));
            }
        }
        for candidate in told.candidates {
            if !self.candidates.iter().any(|(_, known)| known.entry_id == candidate.entry_id) {
                self.candidates.push((side, candidate));
            }
        }
        self.facts.extend(told.facts.into_iter().map(|fact| (side, fact)));
        self.left_out = self.left_out.max(told.candidates_left_out);
        self
    }

    /// What blocks before what limits, and most telling first; what this command does not know comes last.
    fn in_order(mut self) -> Self {
        self.causes.sort_by_key(|(_, cause)| {
            let rank = Code::parse(&cause.code);
            (Reverse(cause.blocks), rank.is_none(), rank)
        });
        self
    }

    fn first_block(&self) -> Option<&Cause> {
        self.causes.iter().map(|(_, cause)| cause).find(|cause| cause.blocks)
    }

    fn as_json(&self) -> Value {
        let causes = self.causes.iter().map(|(side, cause)| {
            json!({
                "code": cause.code,
                "blocks": cause.blocks,
                "says": cause.says,
                "remedy": cause.remedy,
                "entry_id": cause.entry_id,
                "side": side.name(),
            })
        });
        let candidates = self.candidates.iter().map(|(side, one)| {
            json!({
                "entry_id": one.entry_id,
                "spiffe_id": one.spiffe_id,
                "parent_id": one.parent_id,
                "selectors": one.selectors,
                "missing": one.missing,
                "note": one.note,
                "side": side.name(),
            })
        });
        let facts = self
            .facts
            .iter()
            .map(|(side, fact)| json!({ "about": fact.about, "says": fact.says, "side": side.name() }));
        json!({
            "blocked": self.first_block().is_some(),
            "causes": causes.collect::<Value>(),
            "candidates": candidates.collect::<Value>(),
            "candidates_left_out": self.left_out,
            "facts": facts.collect::<Value>(),
            "not_asked": self.not_asked,
        })
    }

    /// Each text on one line: what a process is called, and what an entry asks for, others have written.
    fn print(&self, to: &mut dyn Write) -> std::io::Result<()> {
        let mut rest = self.causes.iter().map(|(_, cause)| cause);
        match self.first_block() {
            Some(first) => {
                writeln!(to, "No identity: {}. ({})", line(&first.says), line(&first.code))?;
                writeln!(to, "What to do: {}.", line(&first.remedy))?;
                rest.next();
            }
            None => writeln!(to, "Nothing that was looked at stands in the way of an identity.")?,
        }
        for Cause { says, code, remedy, blocks, entry_id: _ } in rest {
            let word = if *blocks { "Then" } else { "Besides" };
            writeln!(to, "\n{word}: {}. ({})", line(says), line(code))?;
            writeln!(to, "What to do: {}.", line(remedy))?;
        }
        if !self.candidates.is_empty() {
            writeln!(to, "\nEntries:")?;
        }
        for (_, one) in &self.candidates {
            let missing = match one.missing.as_slice() {
                [] => "matches".to_owned(),
                missing => format!("lacks {}", missing.join(" ")),
            };
            writeln!(to, "  {}  {}  {}", line(&one.entry_id), line(&one.spiffe_id), line(&missing))?;
            writeln!(to, "      asks for {}", line(&one.selectors.join(" ")))?;
            if !one.note.is_empty() {
                writeln!(to, "      {}", line(&one.note))?;
            }
        }
        if self.left_out > 0 {
            writeln!(to, "  and {} more", self.left_out)?;
        }
        writeln!(to, "\nSeen:")?;
        for (side, fact) in &self.facts {
            writeln!(to, "  {:<7} {:<16} {}", side.name(), line(&fact.about), line(&fact.says))?;
        }
        for why in &self.not_asked {
            writeln!(to, "  {}", line(why))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn cause(code: Code, blocks: bool, says: &str) -> Cause {
        Cause {
            code: code.name().to_owned(),
            blocks,
            says: says.to_owned(),
            remedy: "mend it".to_owned(),
            entry_id: String::new(),
        }
    }

    fn told(causes: Vec<Cause>) -> Explanation {
        Explanation { causes, ..Explanation::default() }
    }

    fn codes(report: &Report) -> Vec<(&str, bool)> {
        report.causes.iter().map(|(_, cause)| (cause.code.as_str(), cause.blocks)).collect()
    }

    #[test]
    fn each_socket_has_its_own_flag() {
        let args = ["passant", "explain", "node", "--agent-socket", "/a", "--server-socket", "/s"];
        let cli = Cli::try_parse_from(args).unwrap();
        let Command::Explain(Explain::Node { agent }) = cli.command else { panic!("another command") };
        assert_eq!((agent.admin.as_str(), cli.server.path.as_str()), ("/a", "/s"));
    }

    #[test]
    fn what_the_server_knows_better_comes_first() {
        let node = told(vec![cause(Code::NotOnNode, true, "the agent has none")]);
        let server = told(vec![
            cause(Code::EntryEnded, true, "it ended"),
            cause(Code::FederatedBundleMissing, false, "no bundle"),
            Cause { code: "new_one".to_owned(), ..cause(Code::EntryEnded, true, "unheard of") },
        ]);
        let report = Report::default().with(Side::Node, node).with(Side::Server, server).in_order();
        let expected = [
            ("entry_ended", true),
            ("not_on_node", true),
            ("new_one", true),
            ("federated_bundle_missing", false),
        ];
        assert_eq!(codes(&report), expected);
        assert_eq!(report.first_block().unwrap().says, "it ended");
    }

    #[test]
    fn what_both_sides_say_is_said_once() {
        let both = || told(vec![cause(Code::NodeBanned, true, "banned")]);
        let report = Report::default().with(Side::Node, both()).with(Side::Server, both()).in_order();
        assert_eq!(codes(&report), [("node_banned", true)]);
    }

    #[test]
    fn what_the_node_serves_is_not_called_missing() {
        let served = Explanation {
            candidates: vec![Candidate { entry_id: "web".to_owned(), ..Candidate::default() }],
            ..Explanation::default()
        };
        let ending = told(vec![cause(Code::EntryEnded, true, "it ended")]);
        let report = Report::default().with(Side::Node, served).with(Side::Server, ending).in_order();
        assert_eq!(codes(&report), [("entry_ended", false)]);
        assert!(report.first_block().is_none());
    }

    #[test]
    fn what_others_wrote_makes_no_lines_of_its_own() {
        let text = || "a\nNo identity: forged".to_owned();
        let cause = |blocks| Cause { code: text(), blocks, says: text(), remedy: text(), entry_id: text() };
        let candidate = Candidate {
            entry_id: text(),
            spiffe_id: text(),
            parent_id: text(),
            selectors: vec![text()],
            missing: vec![text()],
            note: text(),
        };
        let told = Explanation {
            causes: vec![cause(true), Cause { code: "b".to_owned(), ..cause(false) }],
            candidates: vec![candidate],
            facts: vec![Fact { about: text(), says: text() }],
            candidates_left_out: 0,
        };
        let mut report = Report::default().with(Side::Server, told);
        report.not_asked.push(text());
        let mut shown = Vec::new();
        report.print(&mut shown).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let forged: Vec<&str> =
            shown.lines().filter(|line| line.starts_with("No identity: forged")).collect();
        assert!(forged.is_empty() && shown.contains(r"a\nNo identity: forged"), "{shown}");
        assert_eq!(shown.lines().count(), 14, "{shown}");
    }

    #[test]
    fn people_read_the_first_cause_and_what_to_do_in_the_first_lines() {
        let report = Report::default()
            .with(Side::Node, told(vec![cause(Code::NodeBanned, true, "the node is banned")]))
            .in_order();
        let mut text = Vec::new();
        report.print(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("No identity: the node is banned. (node_banned)\nWhat to do: mend it.\n"),
            "{text}"
        );
        assert_eq!(report.as_json()["blocked"], true);
    }
}
