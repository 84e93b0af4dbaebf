//! Does the command line stay quick and small with entries by the hundred thousand, and does `lint` find what is planted
//! among them?

mod clean;
mod sarif;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::binaries::binaries;
use passant_tests::node_ca::NodeCa;
use passant_tests::site::{ServerOptions, Site, TRUST_DOMAIN};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::report::{Report, say};

/// So many entries, at the least, are held against the times that they may take; and only in a release build.
const TIMED_FROM: usize = 100_000;
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
/// How a command ends that failed.
const FAILED: i32 = 1;
/// How often a running command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A trust domain whose bundle nobody needs.
const UNUSED: &str = "unused.test";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// How long something may take.
#[derive(Clone, Copy)]
struct Bounds {
    import: Duration,
    read: Duration,
}

impl Bounds {
    /// For so many entries. Of fewer than the full number, or not optimised, times are only told.
    fn of(count: usize) -> Self {
        if count >= TIMED_FROM && !cfg!(debug_assertions) {
            Self { import: IMPORT_WITHIN, read: READ_WITHIN }
        } else {
            Self { import: Duration::MAX, read: Duration::MAX }
        }
    }
}

/// One run of the command line.
struct Run {
    code: Option<i32>,
    took: Duration,
    /// The most it held in memory, in KiB, as of the last look.
    peak: u64,
    printed: Vec<u8>,
    said: String,
}

/// Runs the show with `count` entries.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report, count: usize) -> anyhow::Result<()> {
    let bounds = Bounds::of(count);
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let good = site.path("good.json");
    write_entries(&good, count, &[])?;
    say(&format!("{count} entries, {} MB as a file", fs::metadata(&good)?.len() / 1_000_000));

    let everything = ["-o", "json", "entry", "apply", "--dry-run", "--prune", text(&good)?];
    let planned = passant(&site, &everything).await?;
    report.fact("a plan to create all is made in time", quick(&planned, DIFFERENCES, bounds.read, MEMORY));
    report.fact("the plan names each of them", plans(&planned, count));
    let imported = passant(&site, &["entry", "import", text(&good)?]).await?;
    report.fact("all entries are created in time", quick(&imported, DONE, bounds.import, MEMORY));
    let exported = passant(&site, &["entry", "export"]).await?;
    report.fact("they are exported in time", quick(&exported, DONE, bounds.read, MEMORY));
    let held = |run: &Run| -> anyhow::Result<String> {
        let lines = String::from_utf8_lossy(&run.printed).lines().count();
        // One more line for the node alias, and the first and the last.
        ensure!(lines == count + 3, "{lines} lines");
        Ok(String::new())
    };
    report.fact("the export holds each of them", held(&exported));
    for (name, format) in [("a table", "table"), ("JSON", "json")] {
        let listed = passant(&site, &["-o", format, "entry", "list"]).await?;
        report.fact(&format!("they are listed in time as {name}"), quick(&listed, DONE, bounds.read, MEMORY));
    }
    let applied = passant(&site, &["entry", "apply", "--dry-run", "--prune", text(&good)?]).await?;
    report.fact("the server has what the file says", same(&applied));
    report.fact("that is seen in time", quick(&applied, DONE, bounds.read, MEMORY));

    let linted = passant(&site, &["-o", "json", "lint", "--fail-on", "note"]).await?;
    report.fact("the linter reads the server in time", quick(&linted, DONE, bounds.read, u64::MAX));
    report.none("nothing is found in good entries", &beyond(&linted, &[])?, "");
    server.stop().await?;
    planted(report, &site, count).await?;
    clean_and_not(report).await?;
    applied_to_nothing(report, &good, count).await
}

/// Has a server without entries made to have those of a file.
async fn applied_to_nothing(report: &Report, file: &Path, count: usize) -> anyhow::Result<()> {
    let bounds = Bounds::of(count);
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let applied = passant(&site, &["-o", "json", "entry", "apply", "--yes", text(file)?]).await?;
    report.fact("all entries of a file are applied in time", quick(&applied, DONE, bounds.import, MEMORY));
    let created = || -> anyhow::Result<String> {
        let done = json_of(&applied)?;
        ensure!(done["created"] == count + 1, "{done}");
        Ok(String::new())
    };
    report.fact("each of them is created", created());
    server.stop().await?;
    Ok(())
}

/// Whether `entry apply --dry-run` is to create all entries and the node alias.
fn plans(run: &Run, count: usize) -> anyhow::Result<String> {
    let plan = json_of(run)?;
    let creates = plan["create"].as_array().context("no creations in the plan")?.len();
    ensure!(creates == count + 1, "{creates} creations");
    Ok(String::new())
}

/// Has the linter look for one fault of each kind among good entries in a file.
async fn planted(report: &Report, site: &Site, count: usize) -> anyhow::Result<()> {
    let file = site.path("bad.json");
    let faults = faults();
    let entries: Vec<Value> = faults.iter().flat_map(|(_, entries)| entries.clone()).collect();
    write_entries(&file, count, &entries)?;
    let linted = lint(site, &file, UNUSED, &[]).await?;
    for (rule, entries) in &faults {
        report.fact(&format!("the linter finds {rule}"), ensure_found(&linted, rule, entries));
    }
    report.none("it finds nothing in what is good", &beyond(&linted, &entries)?, "");
    report.fact(
        "it reads a file in time, and says that it found something",
        quick(&linted, DIFFERENCES, Bounds::of(count).read, u64::MAX),
    );
    Ok(())
}

/// A thousand entries as a company may have them, and the same with one fault of each kind; in SPIRE's form.
async fn clean_and_not(report: &Report) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let (clean, data) = (clean::entries(), site.path("clean-data.json"));
    ensure!(clean.len() == clean::COUNT, "{} clean entries", clean.len());
    fs::write(&data, json!({ "entries": clean }).to_string())?;
    let bundle = NodeCa::new(site.dir())?.file;
    let partner = ["--url", "https://127.0.0.1:1/", "--web", "--bundle", text(&bundle)?];
    site.passant_json(&[&["federation", "create", clean::PARTNER], &partner[..]].concat())?;
    let imported = passant(&site, &["-o", "json", "entry", "import", text(&data)?]).await?;
    report.fact("a thousand clean entries are taken by the server", ended(&imported, DONE));
    let strict = ["-o", "json", "lint", "--fail-on", "note"];
    let linted = passant(&site, &strict).await?;
    report.none("nothing is found in the thousand clean entries of a server", &beyond(&linted, &[])?, "");
    report.fact("that is no failure", ended(&linted, DONE));
    server.stop().await?;

    let (faults, shown) = (faults(), site.path("clean.json"));
    fs::write(&shown, as_spire_shows(&clean).to_string())?;
    let linted = lint(&site, &shown, clean::PARTNER, &strict[3..]).await?;
    report.none("nor in what SPIRE shows of them", &beyond(&linted, &[])?, "");
    report.fact("that is no failure either", ended(&linted, DONE));
    let log = lint(&site, &shown, clean::PARTNER, &["--sarif"]).await?;
    report.fact("their SARIF log is valid and empty", json_of(&log).and_then(|log| sarif::check(&log, 0)));

    let bad: Vec<Value> = faults.iter().flat_map(|(_, entries)| entries.clone()).collect();
    let file = site.path("faulty.json");
    fs::write(&file, as_spire_shows(&[clean, bad.clone()].concat()).to_string())?;
    let linted = lint(&site, &file, UNUSED, &[]).await?;
    let found = faults.iter().try_for_each(|(rule, entries)| ensure_found(&linted, rule, entries).map(drop));
    report.fact("all faults are found among them", found.map(|()| format!("{} rules", faults.len())));
    // The bundle of the partner is among those that the arguments leave out.
    let others = beyond(&linted, &bad)?.into_iter().filter(|found| !found.starts_with("missing-bundle"));
    report.none("and nothing else", &others.collect::<Vec<_>>(), "");
    let results = findings(&linted)?.len();
    let log = lint(&site, &file, UNUSED, &["--sarif"]).await?;
    report.fact("their SARIF log is valid", json_of(&log).and_then(|log| sarif::check(&log, results)));
    for (name, more, code) in [
        ("findings end it with 3", &[][..], DIFFERENCES),
        ("errors alone do, if it is told so", &["--fail-on", "error"], DIFFERENCES),
        ("none does, if it is told so", &["--fail-on", "never"], DONE),
        ("a log of SARIF ends it as well", &["--sarif"], DIFFERENCES),
    ] {
        report.fact(name, ended(&lint(&site, &file, UNUSED, more).await?, code));
    }
    fs::write(&file, "{\"entries\": [{\"id\"")?;
    report.fact("half a file is an error", ended(&lint(&site, &file, UNUSED, &[]).await?, FAILED));
    Ok(())
}

/// Has the linter look at `file`, where there are no agents, and a bundle of the trust domain `bundle`.
async fn lint(site: &Site, file: &Path, bundle: &str, more: &[&str]) -> anyhow::Result<Run> {
    let (agents, bundles) = (site.path("agents.json"), site.path("bundles.json"));
    fs::write(&agents, json!({ "agents": [] }).to_string())?;
    fs::write(&bundles, json!({ "bundles": [{ "trust_domain": bundle }] }).to_string())?;
    let arguments =
        ["-o", "json", "lint", text(file)?, "--agents", text(&agents)?, "--bundles", text(&bundles)?];
    passant(site, &[&arguments[..], more].concat()).await
}

/// Whether `rule` was found of one of `entries`, or of something that is no entry.
fn ensure_found(linted: &Run, rule: &str, entries: &[Value]) -> anyhow::Result<String> {
    let names = |finding: &Value| match finding["entries"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => entries.is_empty(),
        about => about.iter().any(|about| entries.iter().any(|entry| entry["entry_id"] == about["id"])),
    };
    let findings = findings(linted)?;
    ensure!(findings.iter().any(|found| found["rule"] == rule && names(found)), "it found {findings:?}");
    Ok(String::new())
}

/// What was found of others than `entries`.
fn beyond(linted: &Run, entries: &[Value]) -> anyhow::Result<Vec<String>> {
    let is_planted = |about: &Value| entries.iter().any(|entry| entry["entry_id"] == about["id"]);
    let is_beyond = |finding: &Value| match finding["entries"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => entries.is_empty(),
        about => !about.iter().any(is_planted),
    };
    let told =
        |finding: Value| format!("{}: {}", finding["rule"].as_str().unwrap_or_default(), finding["evidence"]);
    Ok(findings(linted)?.into_iter().filter(is_beyond).map(told).collect())
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
    Ok(Run { code: status.code(), took, peak, printed: fs::read(&stdout)?, said })
}

/// The most that a process has held in memory so far, in KiB.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn quick(run: &Run, code: i32, within: Duration, memory: u64) -> anyhow::Result<String> {
    ended(run, code)?;
    ensure!(run.took <= within, "it took {} ms", run.took.as_millis());
    ensure!(run.peak <= memory, "it took {} KiB of memory", run.peak);
    Ok(format!("{} ms, {} MiB", run.took.as_millis(), run.peak / 1024))
}

/// Whether `entry apply --dry-run` saw no difference.
fn same(run: &Run) -> anyhow::Result<String> {
    ended(run, DONE)?;
    Ok(String::from_utf8_lossy(&run.printed).trim().to_owned())
}

/// What the linter found.
fn findings(run: &Run) -> anyhow::Result<Vec<Value>> {
    let mut told = json_of(run)?;
    let found = told["findings"].as_array_mut().context("no findings in what the linter printed")?;
    Ok(std::mem::take(found))
}

/// What a command printed as JSON.
fn json_of(run: &Run) -> anyhow::Result<Value> {
    serde_json::from_slice(&run.printed).with_context(|| format!("it printed no JSON: {}", run.said))
}

fn ended(run: &Run, code: i32) -> anyhow::Result<String> {
    ensure!(run.code == Some(code), "it ended with {:?}: {}", run.code, run.said);
    Ok(String::new())
}

/// The same entries as `spire-server entry show -output json` prints them.
fn as_spire_shows(entries: &[Value]) -> Value {
    let id = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        let id = text.strip_prefix("spiffe://").unwrap_or(text);
        let (trust_domain, path) = id.split_at(id.find('/').unwrap_or(id.len()));
        json!({ "trust_domain": trust_domain, "path": path })
    };
    let name = |text: &Value| id(text)["trust_domain"].clone();
    let or = |value: &Value, default: Value| if value.is_null() { default } else { value.clone() };
    let shown = entries.iter().map(|entry| {
        let federates_with: Vec<Value> =
            entry["federates_with"].as_array().into_iter().flatten().map(name).collect();
        json!({
            "id": entry["entry_id"],
            "spiffe_id": id(&entry["spiffe_id"]),
            "parent_id": id(&entry["parent_id"]),
            "selectors": entry["selectors"],
            "x509_svid_ttl": or(&entry["x509_svid_ttl"], json!(0)),
            "federates_with": federates_with,
            "admin": or(&entry["admin"], json!(false)),
            "downstream": or(&entry["downstream"], json!(false)),
            "expires_at": or(&entry["entryExpiry"], json!(0)).to_string(),
            "dns_names": or(&entry["dns_names"], json!([])),
            "revision_number": "0",
            "store_svid": false,
            "jwt_svid_ttl": or(&entry["jwt_svid_ttl"], json!(0)),
            "hint": or(&entry["hint"], json!("")),
            "created_at": "1700000000",
        })
    });
    json!({ "entries": shown.collect::<Value>(), "next_page_token": "" })
}
