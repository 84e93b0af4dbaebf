//! Does the command line stay quick and small with entries by the hundred thousand, and does `lint` find what is planted
//! among them?

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::binaries::binaries;
use passant_tests::site::{ServerOptions, Site, TRUST_DOMAIN};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::report::{Report, say};

/// How long the creation of all entries may take.
const IMPORT_WITHIN: Duration = Duration::from_secs(60);
/// How long one reading of all entries may take: a list, an export, a run of the linter.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// What a command that moves entries may hold in memory, in KiB.
const MEMORY: u64 = 200 * 1024;
/// How a command ends that found nothing to look at.
const DONE: i32 = 0;
/// How a command ends that found something.
const DIFFERENCES: i32 = 3;
/// How often a running command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One run of the command line.
struct Run {
    code: Option<i32>,
    took: Duration,
    /// The most it held in memory, in KiB, as of the last look.
    peak: u64,
    stdout: PathBuf,
    said: String,
}

/// Runs the show with `count` entries.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, count: usize) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let good = site.path("good.json");
    write_entries(&good, count, &[])?;
    say(&format!("{count} entries, {} MB as a file", fs::metadata(&good)?.len() / 1_000_000));

    let everything = ["-o", "json", "entry", "apply", "--dry-run", "--prune", text(&good)?];
    let planned = passant(&site, &everything).await?;
    report.fact("a plan to create all is made in time", quick(&planned, DIFFERENCES, READ_WITHIN, MEMORY));
    report.fact("the plan names each of them", plans(&planned, count));
    let imported = passant(&site, &["entry", "import", text(&good)?]).await?;
    report.fact("all entries are created in time", quick(&imported, DONE, IMPORT_WITHIN, MEMORY));
    let exported = passant(&site, &["entry", "export"]).await?;
    report.fact("they are exported in time", quick(&exported, DONE, READ_WITHIN, MEMORY));
    let held = |run: &Run| -> anyhow::Result<String> {
        let lines = fs::read_to_string(&run.stdout)?.lines().count();
        // One more line for the node alias, and the first and the last.
        ensure!(lines == count + 3, "{lines} lines");
        Ok(String::new())
    };
    report.fact("the export holds each of them", held(&exported));
    for (name, format) in [("a table", "table"), ("JSON", "json")] {
        let listed = passant(&site, &["-o", format, "entry", "list"]).await?;
        report.fact(&format!("they are listed in time as {name}"), quick(&listed, DONE, READ_WITHIN, MEMORY));
    }
    let applied = passant(&site, &["entry", "apply", "--dry-run", "--prune", text(&good)?]).await?;
    report.fact("the server has what the file says", same(&applied));
    report.fact("that is seen in time", quick(&applied, DONE, READ_WITHIN, MEMORY));

    let linted = passant(&site, &["-o", "json", "lint", "--fail-on", "note"]).await?;
    report.fact("the linter reads the server in time", quick(&linted, DONE, READ_WITHIN, u64::MAX));
    report.none("nothing is found in good entries", &rules(&linted)?, "");
    server.stop().await?;
    planted(report, &site, count).await?;
    applied_to_nothing(report, &good, count).await
}

/// Has a server without entries made to have those of a file.
async fn applied_to_nothing(report: &Report, file: &Path, count: usize) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let applied = passant(&site, &["-o", "json", "entry", "apply", "--yes", text(file)?]).await?;
    report.fact("all entries of a file are applied in time", quick(&applied, DONE, IMPORT_WITHIN, MEMORY));
    let created = || -> anyhow::Result<String> {
        let done: Value = serde_json::from_slice(&fs::read(&applied.stdout)?)?;
        ensure!(done["created"] == count + 1, "{done}");
        Ok(String::new())
    };
    report.fact("each of them is created", created());
    server.stop().await?;
    Ok(())
}

/// Whether `entry apply --dry-run` is to create all entries and the node alias.
fn plans(run: &Run, count: usize) -> anyhow::Result<String> {
    let plan: Value = serde_json::from_slice(&fs::read(&run.stdout)?)?;
    let creates = plan["create"].as_array().context("no creations in the plan")?.len();
    ensure!(creates == count + 1, "{creates} creations");
    Ok(String::new())
}

/// Has the linter look for one fault of each kind among good entries in a file.
async fn planted(report: &Report, site: &Site, count: usize) -> anyhow::Result<()> {
    let (file, agents, bundles) =
        (site.path("bad.json"), site.path("agents.json"), site.path("bundles.json"));
    let faults = faults();
    let entries: Vec<Value> = faults.iter().flat_map(|(_, entries)| entries.clone()).collect();
    write_entries(&file, count, &entries)?;
    fs::write(&agents, json!({ "agents": [] }).to_string())?;
    fs::write(&bundles, json!({ "bundles": [{ "trust_domain": "unused.test" }] }).to_string())?;
    let arguments =
        ["-o", "json", "lint", text(&file)?, "--agents", text(&agents)?, "--bundles", text(&bundles)?];
    let linted = passant(site, &arguments).await?;
    let found = rules(&linted)?;
    for (rule, _) in faults {
        let outcome = ensure_found(&found, rule);
        report.fact(&format!("the linter finds {rule}"), outcome);
    }
    report.fact(
        "it reads a file in time, and says that it found something",
        quick(&linted, DIFFERENCES, READ_WITHIN, u64::MAX),
    );
    Ok(())
}

fn ensure_found(found: &[String], rule: &str) -> anyhow::Result<String> {
    ensure!(found.iter().any(|name| name == rule), "it found {found:?}");
    Ok(String::new())
}

/// Faults by the rule that is to find them: the entries that have it.
fn faults() -> Vec<(&'static str, Vec<Value>)> {
    let wide = |id: &str, path: &str, selectors: &str| entry(id, "/node", path, selectors);
    let with = |mut entry: Value, field: &str, value: Value| {
        entry[field] = value;
        entry
    };
    let good = |id: &str| wide(id, &format!("/fault/{id}"), &format!("unix:uid:7 unix:path:/opt/{id}"));
    vec![
        ("fleet-wide", vec![wide("f01", "/f01", "k8s:ns:planted k8s:node-name:n")]),
        ("few-selectors", vec![wide("f02", "/f02", "unix:user:planted")]),
        ("root-alone", vec![wide("f03", "/f03", "unix:uid:0")]),
        ("no-namespace", vec![wide("f04", "/f04", "k8s:sa:planted k8s:pod-label:app:planted")]),
        ("image-tag", vec![wide("f05", "/f05", "k8s:ns:planted5 k8s:container-image:web:latest")]),
        ("never-matches", vec![wide("f06", "/f06", "unix:uid:11 unix:uid:12")]),
        ("duplicate", vec![good("f07"), with(good("f07"), "entry_id", json!("f07b"))]),
        (
            "shadowed",
            vec![
                wide("f08", "/f08", "unix:uid:8 unix:path:/f08"),
                wide("f08b", "/f08", "unix:uid:8 unix:path:/f08 unix:gid:8"),
            ],
        ),
        (
            "several-owners",
            vec![
                wide("f09", "/f09", "k8s:ns:blue k8s:sa:f09"),
                wide("f09b", "/f09", "k8s:ns:green k8s:sa:f09"),
            ],
        ),
        (
            "ambiguous-default",
            vec![
                wide("f10", "/f10", "unix:uid:10 unix:gid:10"),
                wide("f10b", "/f10b", "unix:uid:10 unix:gid:10 unix:path:/f10b"),
            ],
        ),
        ("missing-parent", vec![entry("f11", "/gone", "/f11", "unix:uid:11 unix:path:/f11")]),
        (
            "parent-cycle",
            vec![
                entry("f12", "/f12b", "/f12", "unix:uid:12 unix:path:/f12"),
                entry("f12b", "/f12", "/f12b", "unix:uid:12 unix:path:/f12b"),
            ],
        ),
        ("admin", vec![with(good("f13"), "admin", json!(true))]),
        ("downstream", vec![with(good("f14"), "downstream", json!(true))]),
        ("long-ttl", vec![with(good("f15"), "x509_svid_ttl", json!(30 * 24 * 3600))]),
        ("unused-federation", Vec::new()),
        ("missing-bundle", vec![with(good("f16"), "federates_with", json!(["spiffe://missing.test"]))]),
    ]
}

/// `count` entries as they should be and the alias they stand below, then `more`, as SPIRE's `entry create -data` takes them.
fn write_entries(file: &Path, count: usize, more: &[Value]) -> anyhow::Result<()> {
    let mut to = BufWriter::new(File::create(file)?);
    let alias = entry("alias", "/spire/server", "/node", "x509pop:subject:cn:node");
    write!(to, "{{\"entries\": [\n{alias}")?;
    for n in 0..count {
        let selectors = match n % 3 {
            0 => format!("k8s:ns:team-{} k8s:sa:svc-{n}", n % 50),
            1 => format!("unix:uid:{} unix:path:/opt/svc-{n}/bin/svc", 1000 + n % 40),
            _ => format!("k8s:ns:team-{} k8s:pod-label:app:svc-{n} k8s:container-image:web@{DIGEST}", n % 50),
        };
        write!(to, ",\n{}", entry(&format!("e{n:06}"), "/node", &format!("/svc/{n}"), &selectors))?;
    }
    for entry in more {
        write!(to, ",\n{entry}")?;
    }
    writeln!(to, "\n]}}")?;
    Ok(to.flush()?)
}

fn entry(id: &str, parent: &str, path: &str, selectors: &str) -> Value {
    let selector = |text: &str| {
        let (kind, value) = text.split_once(':').unwrap_or((text, ""));
        json!({ "type": kind, "value": value })
    };
    json!({
        "entry_id": id,
        "spiffe_id": format!("spiffe://{TRUST_DOMAIN}{path}"),
        "parent_id": format!("spiffe://{TRUST_DOMAIN}{parent}"),
        "selectors": selectors.split_whitespace().map(selector).collect::<Value>(),
    })
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of text")
}

/// Runs the command line to its end, and looks at its memory all the while.
async fn passant(site: &Site, arguments: &[&str]) -> anyhow::Result<Run> {
    let (stdout, stderr) = (site.path("stdout"), site.path("stderr"));
    let began = Instant::now();
    let mut child = Command::new(&binaries().passant)
        .args(arguments)
        .env("PASSANT_SERVER_SOCKET", site.server_socket())
        .stdin(Stdio::null())
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?)
        .spawn()?;
    let mut peak = 0;
    let status = loop {
        // Gone once it has ended; what was seen before then counts.
        peak = peak.max(peak_of(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let took = began.elapsed();
    let said = fs::read_to_string(&stderr)?;
    say(&format!("passant {}: {} ms, {} MiB", arguments.join(" "), took.as_millis(), peak / 1024));
    Ok(Run { code: status.code(), took, peak, stdout, said })
}

/// The most that a process has held in memory so far, in KiB.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn quick(run: &Run, code: i32, within: Duration, memory: u64) -> anyhow::Result<String> {
    ensure!(run.code == Some(code), "it ended with {:?}: {}", run.code, run.said);
    ensure!(run.took <= within, "it took {} ms", run.took.as_millis());
    ensure!(run.peak <= memory, "it took {} KiB of memory", run.peak);
    Ok(format!("{} ms, {} MiB", run.took.as_millis(), run.peak / 1024))
}

/// Whether `entry apply --dry-run` saw no difference.
fn same(run: &Run) -> anyhow::Result<String> {
    ensure!(run.code == Some(0), "it ended with {:?}: {}", run.code, run.said);
    Ok(fs::read_to_string(&run.stdout)?.trim().to_owned())
}

/// The rules of the findings.
fn rules(run: &Run) -> anyhow::Result<Vec<String>> {
    let json: Value = serde_json::from_slice(&fs::read(&run.stdout)?)
        .with_context(|| format!("the linter printed no JSON: {}", run.said))?;
    let findings = json["findings"].as_array().context("no findings in what the linter printed")?;
    Ok(findings.iter().filter_map(|finding| finding["rule"].as_str()).map(str::to_owned).collect())
}
