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
    accepted.iter().any(|accept| {
        accept.rule == finding.rule
            && accept.of.as_ref().is_none_or(|of| match finding.entries.first() {
                None => finding.subject == *of,
                Some(at) => {
                    let (id, spiffe_id, _) = register.named(*at);
                    id == of || spiffe_id == of
                }
            })
    })
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
        writeln!(to, "{}[{}] {about}", finding.level.name(), finding.rule.name())?;
        writeln!(to, "  evidence: {}", finding.evidence)?;
        writeln!(to, "  risk:     {}", finding.rule.risk())?;
        writeln!(to, "  fix:      {}\n", finding.fix)?;
    }
    for what in &report.not_checked {
        writeln!(to, "Not checked: {what}.")?;
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
