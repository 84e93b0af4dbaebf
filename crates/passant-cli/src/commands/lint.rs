//! `passant lint`: hold the entries of a server, or of a file, against the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use passant_core::Host;
use passant_proto::bundle::ListFederatedBundlesRequest;
use passant_proto::types;
use serde_json::{Value, json};
use tonic::Code;

use crate::args::{Accept, FailOn, Lint, ServerSocket};
use crate::commands::entry::pages;
use crate::commands::{agent, federation};
use crate::connect::{Server, refused};
use crate::entry_file;
use crate::lint::{Finding, Level, Limits, Register, Report, check, sarif};
use crate::plain;
use crate::progress::Progress;
use crate::render::Output;

/// How many bundles are asked for at once.
const PAGE: i32 = 500;

pub(crate) async fn run(args: Lint, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let mut register = Register::new(Host::system().now());
    match &args.file {
        Some(file) => read_file(file, &mut register)?,
        None => read_server(&args, socket, &mut register).await?,
    }
    // What a file says goes before what the server says.
    if let Some(file) = &args.agents {
        register.know_agents(agents_of(file)?);
    }
    if let Some(file) = &args.bundles {
        register.know_bundles(trust_domains_of(file)?);
    }
    register.sort();
    let limits = Limits {
        x509_ttl: args.max_x509_svid_ttl,
        jwt_ttl: args.max_jwt_svid_ttl,
        selectors: args.min_selectors,
    };
    let mut report = check(&register, &limits);
    report.findings.retain(|finding| !is_accepted(&register, finding, &args.accept));
    let weighs = match args.fail_on {
        FailOn::Error => Some(Level::Error),
        FailOn::Warning => Some(Level::Warning),
        FailOn::Note => Some(Level::Note),
        FailOn::Never => None,
    };
    if weighs.is_some_and(|least| report.findings.iter().any(|finding| finding.level >= least)) {
        out.note();
    }
    if args.sarif {
        let file = args.file.as_deref().filter(|file| *file != Path::new("-")).map(Path::to_string_lossy);
        let log = sarif::log(&register, &report, file.as_deref());
        return out.print(|| log.clone(), |to| writeln!(to, "{log}"));
    }
    out.print(|| as_json(&register, &report), |to| tell(BufWriter::new(to), &register, &report))
}

fn is_accepted(register: &Register, finding: &Finding, accepted: &[Accept]) -> bool {
    let of_rule = || accepted.iter().filter(|accept| accept.rule == finding.rule);
    let names = |name: &str| of_rule().any(|accept| accept.of.as_deref() == Some(name));
    let is_named = |at: &usize| {
        let (id, spiffe_id, _) = register.named(*at);
        names(id) || names(spiffe_id)
    };
    // Of a finding about several entries each has to be named: one that joins them later was not thought of.
    of_rule().any(|accept| accept.of.is_none())
        || names(&finding.subject)
        || (!finding.about().is_empty() && finding.about().iter().all(is_named))
}

fn read_file(file: &Path, register: &mut Register) -> anyhow::Result<()> {
    let mut progress = Progress::new("entries read");
    let named = || format!("failed to read {}", file.display());
    entry_file::read(open(file)?, |written| {
        register.skip(written.unknown);
        register.add(written.entry, Some(written.line));
        progress.add(1);
        Ok(())
    })
    .with_context(named)
}

fn open(file: &Path) -> anyhow::Result<Box<dyn Read>> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let opened = File::open(file).with_context(|| format!("failed to open {}", file.display()))?;
    Ok(Box::new(opened))
}

async fn read_server(args: &Lint, socket: &ServerSocket, register: &mut Register) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    let mut progress = Progress::new("entries read");
    let mut pages = pages(&server, None, None);
    while let Some(entries) = pages.next().await? {
        progress.add(entries.len());
        for entry in entries {
            register.add(entry, None);
        }
    }
    if args.agents.is_none() {
        let mask = types::AgentMask { selectors: true, ..types::AgentMask::default() };
        let mut agents = Vec::new();
        let mut pages = agent::pages(&server, None, Some(mask));
        while let Some(page) = pages.next().await? {
            agents.extend(page);
        }
        register.know_agents(agents);
    }
    if args.bundles.is_none()
        && let Some(bundles) = foreign_bundles(&server).await?
    {
        register.know_bundles(bundles);
        register.know_relationships(federation::trust_domains(&server).await?.unwrap_or_default());
    }
    Ok(())
}

/// The trust domains of the bundles that the server has besides its own; none when it does not list them.
async fn foreign_bundles(server: &Server) -> anyhow::Result<Option<BTreeSet<String>>> {
    let mut all = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let output_mask = Some(types::BundleMask::default());
        let request = ListFederatedBundlesRequest { output_mask, page_size: PAGE, page_token };
        let page = match server.bundles().list_federated_bundles(request).await {
            Ok(page) => page.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(refused(status)),
        };
        all.extend(page.bundles.into_iter().map(|bundle| bundle.trust_domain));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(Some(all));
        }
    }
}

/// The members `name` of an object in a file.
fn list_in(file: &Path, names: &[&str]) -> anyhow::Result<Vec<Value>> {
    let named = || format!("failed to read {}", file.display());
    let mut json: Value = serde_json::from_reader(io::BufReader::new(open(file)?)).with_context(named)?;
    if json.get("next_page_token").and_then(Value::as_str).is_some_and(|token| !token.is_empty()) {
        bail!("{} holds only one page of a list", file.display());
    }
    let list = names.iter().find_map(|name| json.get_mut(*name)?.as_array_mut().map(std::mem::take));
    list.with_context(|| format!("{} has no list \"{}\"", file.display(), names.join("\" or \"")))
}

/// The agents of a file such as `passant agent list -o json` prints.
fn agents_of(file: &Path) -> anyhow::Result<Vec<types::Agent>> {
    let text = |json: &Value| json.as_str().unwrap_or_default().to_owned();
    let agent = |json: Value| {
        let id = types::Spiffeid {
            trust_domain: text(&json["id"]["trust_domain"]),
            path: text(&json["id"]["path"]),
        };
        let selectors = json["selectors"].as_array().into_iter().flatten();
        let selectors = selectors
            .map(|json| types::Selector { r#type: text(&json["type"]), value: text(&json["value"]) })
            .collect();
        if id.path.is_empty() {
            bail!("{} holds an agent without an id of trust_domain and path", file.display());
        }
        Ok(types::Agent { id: Some(id), selectors, ..types::Agent::default() })
    };
    list_in(file, &["agents"])?.into_iter().map(agent).collect()
}

/// The trust domains of a file such as SPIRE's `bundle list` or `federation list` print as JSON.
fn trust_domains_of(file: &Path) -> anyhow::Result<BTreeSet<String>> {
    let name = |json: Value| {
        let name = json["trust_domain"].as_str().map(str::to_owned);
        name.with_context(|| format!("{} holds a bundle without a trust_domain", file.display()))
    };
    list_in(file, &["bundles", "federation_relationships"])?.into_iter().map(name).collect()
}

/// How many findings there are of each level.
fn counts(report: &Report) -> BTreeMap<Level, usize> {
    let mut counts = BTreeMap::from([(Level::Error, 0), (Level::Warning, 0), (Level::Note, 0)]);
    for finding in &report.findings {
        *counts.entry(finding.level).or_default() += 1;
    }
    counts
}

fn as_json(register: &Register, report: &Report) -> Value {
    let findings = report.findings.iter().map(|finding| {
        let entries = finding.entries.iter().map(|at| {
            let (id, spiffe_id, line) = register.named(*at);
            json!({ "id": id, "spiffe_id": spiffe_id, "line": line })
        });
        json!({
            "rule": finding.rule.name(),
            "level": finding.level.name(),
            "entries": entries.collect::<Value>(),
            "subject": finding.subject,
            "evidence": finding.evidence,
            "risk": finding.rule.risk(),
            "fix": finding.fix,
        })
    });
    let findings: Value = findings.collect();
    let counts = counts(report);
    json!({
        "findings": findings,
        "entries": register.len(),
        "errors": counts[&Level::Error],
        "warnings": counts[&Level::Warning],
        "notes": counts[&Level::Note],
        "not_checked": report.not_checked,
    })
}

fn tell(mut to: impl Write, register: &Register, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        let about = match finding.entries.first() {
            None => finding.subject.clone(),
            Some(at) => about(register, *at),
        };
        writeln!(to, "{}[{}] {}", finding.level.name(), finding.rule.name(), plain::line(&about))?;
        if !finding.subject.is_empty() && !finding.entries.is_empty() {
            writeln!(to, "  subject:  {}", plain::line(&finding.subject))?;
        }
        writeln!(to, "  evidence: {}", plain::line(&finding.evidence))?;
        writeln!(to, "  risk:     {}", finding.rule.risk())?;
        writeln!(to, "  fix:      {}\n", finding.fix)?;
    }
    for what in &report.not_checked {
        writeln!(to, "Not checked: {}.", plain::line(what))?;
    }
    let counts = counts(report);
    writeln!(
        to,
        "{} entries: {} errors, {} warnings, {} notes.",
        register.len(),
        counts[&Level::Error],
        counts[&Level::Warning],
        counts[&Level::Note]
    )?;
    to.flush()
}

fn about(register: &Register, at: usize) -> String {
    let (id, spiffe_id, line) = register.named(at);
    let line = line.map(|line| format!("line {line}"));
    let id = (!id.is_empty()).then(|| format!("entry {id}"));
    let place: Vec<String> = id.into_iter().chain(line).collect();
    format!("{spiffe_id} ({})", place.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use passant_core::UnixTime;

    use super::*;
    use crate::lint::Rule;

    fn entry(id: &str, path: &str, selectors: &[&str]) -> types::Entry {
        let spiffe_id = |path: &str| {
            Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
        };
        let selector = |text: &&str| types::Selector { r#type: "unix".to_owned(), value: (*text).to_owned() };
        types::Entry {
            id: id.to_owned(),
            spiffe_id: spiffe_id(path),
            parent_id: spiffe_id("/gone"),
            selectors: selectors.iter().map(selector).collect(),
            ..types::Entry::default()
        }
    }

    fn found(entries: Vec<types::Entry>) -> (Register, Report) {
        let mut register = Register::new(UnixTime::from_secs(1));
        for entry in entries {
            register.add(entry, None);
        }
        register.know_agents(Vec::new());
        let limits = Limits { x509_ttl: Duration::MAX, jwt_ttl: Duration::MAX, selectors: 1 };
        let report = check(&register, &limits);
        (register, report)
    }

    /// The rules of what is left when these are accepted.
    fn left(entries: &[types::Entry], accepted: &[(Rule, Option<&str>)]) -> Vec<Rule> {
        let (register, report) = found(entries.to_vec());
        let accept = |(rule, of): &(Rule, Option<&str>)| Accept { rule: *rule, of: of.map(str::to_owned) };
        let accepted: Vec<Accept> = accepted.iter().map(accept).collect();
        let left = report.findings.iter().filter(|finding| !is_accepted(&register, finding, &accepted));
        left.map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_finding_about_several_entries_is_accepted_by_its_subject_or_by_all_of_them() {
        let both = [entry("a", "/a", &["uid:1", "path:/a"]), entry("b", "/b", &["uid:2", "path:/b"])];
        let missing = Rule::MissingParent;
        assert_eq!(left(&both, &[]), [missing]);
        assert_eq!(left(&both, &[(missing, Some("a"))]), [missing]);
        assert_eq!(left(&both, &[(missing, Some("b"))]), [missing]);
        assert_eq!(left(&both, &[(Rule::Admin, None)]), [missing]);
        assert!(left(&both, &[(missing, Some("a")), (missing, Some("spiffe://example.org/b"))]).is_empty());
        assert!(left(&both, &[(missing, Some("spiffe://example.org/gone"))]).is_empty());
        assert!(left(&both, &[(missing, None)]).is_empty());
    }

    #[test]
    fn a_finding_about_one_entry_is_accepted_by_it_whatever_explains_it() {
        let narrow = entry("a", "/a", &["uid:1", "path:/a", "gid:1"]);
        let both = [narrow, entry("b", "/a", &["uid:1", "path:/a"])];
        let gone = (Rule::MissingParent, None);
        assert_eq!(left(&both, &[gone]), [Rule::Shadowed]);
        assert_eq!(left(&both, &[gone, (Rule::Shadowed, Some("b"))]), [Rule::Shadowed]);
        assert!(left(&both, &[gone, (Rule::Shadowed, Some("a"))]).is_empty());
    }

    #[test]
    fn a_report_holds_no_commands_for_a_terminal() {
        let (register, report) = found(vec![entry("a", "/a\u{1b}[2J\n0 errors", &["uid:1"])]);
        let mut told = Vec::new();
        tell(&mut told, &register, &report).unwrap();
        let told = String::from_utf8(told).unwrap();
        assert!(told.contains("[2J") && !told.contains('\u{1b}'), "{told}");
        assert!(told.lines().all(|line| !line.starts_with("0 errors")), "{told}");
    }
}
