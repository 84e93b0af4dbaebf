//! Which requirements of the SPIFFE specifications are met by a test that passed just now?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cargo::cargo;
use crate::readme::with_table;

/// Where the suite stands in the tree.
const SUITE: &str = "tests/conformance";
/// The environment variable by which tests are told where to write; the harness knows it too.
const LOG: &str = "PASSANT_CONFORMANCE_LOG";
/// The documents that `--strict` is about, by the first part of their ids.
const STRICT_DOCUMENTS: [&str; 6] = ["SPIFFE-ID", "X509", "JWT", "WEND", "WAPI", "BUNDLE"];
/// The roles that `--strict` is about.
const STRICT_ROLES: [&str; 3] = ["issuer", "agent", "validator"];

/// What a person chooses.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the table into tests/conformance/README.md.
    #[arg(long)]
    write: bool,
    /// Fail while a MUST or SHOULD that binds issuer, agent or validator is open.
    #[arg(long)]
    strict: bool,
}

/// Runs the tests and reports.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let suite = root.join(SUITE);
    let read = |name: &str| {
        let path = suite.join(name);
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    };
    let requirements = requirements(&read("requirements.tsv")?)?;
    let excused = excused(&read("not_applicable.tsv")?)?;
    let ran = run_tests(root)?;
    let report = Report::new(&requirements, &excused, &ran)?;
    let mut text = report.table();
    text.push_str(&report.open_ids());
    write!(std::io::stdout().lock(), "{text}")?;
    ensure!(
        ran.succeeded,
        "the conformance tests failed; what failed is not counted, and nothing is written"
    );
    if options.write {
        let readme = read("README.md")?;
        fs::write(suite.join("README.md"), with_table(&readme, &text)?)?;
    }
    let open = report.strictly_open();
    ensure!(!options.strict || open.is_empty(), "open: {}", open.join(", "));
    Ok(())
}

/// One row of requirements.tsv.
#[derive(Debug)]
struct Requirement {
    id: String,
    level: String,
    binds: Vec<String>,
}

impl Requirement {
    /// The document that it stands in: the id without its number.
    fn document(&self) -> &str {
        self.id.rsplit_once('-').map_or(&self.id, |(document, _)| document)
    }
}

/// What a run of the tests brought.
struct Ran {
    succeeded: bool,
    /// The ids that tests which passed have named.
    met: BTreeSet<String>,
}

fn requirements(text: &str) -> Result<Vec<Requirement>> {
    let rows = text.lines().skip(1).map(|row| {
        let [id, level, binds, ..] = row.split('\t').collect::<Vec<_>>()[..] else {
            bail!("requirements.tsv: too few columns in {row:?}");
        };
        let binds = binds.split(',').map(str::to_owned).collect();
        Ok(Requirement { id: id.to_owned(), level: level.to_owned(), binds })
    });
    rows.collect()
}

/// The ids of not_applicable.tsv with their kind.
fn excused(text: &str) -> Result<BTreeMap<String, String>> {
    let mut excused = BTreeMap::new();
    for row in text.lines().skip(1) {
        let [id, kind, reason] = row.split('\t').collect::<Vec<_>>()[..] else {
            bail!("not_applicable.tsv: expected id, kind and reason in {row:?}");
        };
        ensure!(
            ["does not apply", "not built yet"].contains(&kind),
            "not_applicable.tsv: {id}: unknown kind {kind:?}"
        );
        ensure!(!reason.is_empty(), "not_applicable.tsv: {id}: no reason is given");
        ensure!(
            excused.insert(id.to_owned(), kind.to_owned()).is_none(),
            "not_applicable.tsv: {id} stands twice"
        );
    }
    Ok(excused)
}

fn run_tests(root: &Path) -> Result<Ran> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("met");
    let output = cargo()
        .args(["test", "-p", "passant-tests", "--test", "conformance"])
        .current_dir(root)
        .env(LOG, &log)
        .stderr(Stdio::inherit())
        .output()
        .context("failed to run cargo test")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        write!(std::io::stdout().lock(), "{said}")?;
    }
    let log = if log.exists() { fs::read_to_string(log)? } else { String::new() };
    Ok(Ran { succeeded: output.status.success(), met: met(&said, &log) })
}

/// The ids in `log` whose test the runner says has passed. A test that returns an error drops its guard without a panic,
/// so that the log alone proves nothing.
fn met(said: &str, log: &str) -> BTreeSet<String> {
    let passed: BTreeSet<&str> =
        said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok")).collect();
    let named = log.lines().filter_map(|line| line.split_once('\t'));
    named.filter(|(_, test)| passed.contains(test)).map(|(id, _)| id.to_owned()).collect()
}

/// Every requirement with its state.
struct Report<'a> {
    rows: Vec<(&'a Requirement, State)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Met,
    DoesNotApply,
    NotBuilt,
    Open,
}

impl<'a> Report<'a> {
    fn new(requirements: &'a [Requirement], excused: &BTreeMap<String, String>, ran: &Ran) -> Result<Self> {
        let mut rows = Vec::new();
        for requirement in requirements {
            let id = &requirement.id;
            let state = match (ran.met.contains(id), excused.get(id).map(String::as_str)) {
                (true, None) => State::Met,
                (true, Some(_)) => bail!("{id} is met by a test: take it out of not_applicable.tsv"),
                (false, Some("not built yet")) => State::NotBuilt,
                (false, Some(_)) => State::DoesNotApply,
                (false, None) => State::Open,
            };
            rows.push((requirement, state));
        }
        let known = |id: &&String| requirements.iter().any(|requirement| requirement.id == **id);
        if let Some(unknown) = excused.keys().find(|id| !known(id)) {
            bail!("not_applicable.tsv: {unknown} is no requirement");
        }
        Ok(Self { rows })
    }

    /// Counts by document, level and whom they bind, as a Markdown table; the total counts every id once.
    fn table(&self) -> String {
        let mut counts: BTreeMap<(&str, usize, &str), [usize; 4]> = BTreeMap::new();
        let mut total = [0; 4];
        for (requirement, state) in &self.rows {
            let state = *state as usize;
            total[state] += 1;
            let level = ["MUST", "SHOULD", "MAY"].iter().position(|level| *level == requirement.level);
            for role in &requirement.binds {
                counts.entry((requirement.document(), level.unwrap_or(3), role)).or_default()[state] += 1;
            }
        }
        let mut text = String::from(
            "| document | level | binds | met | does not apply | not built yet | open |\n|---|---|---|---:|---:|---:|---:|\n",
        );
        let mut line = |document: &str, level: &str, role: &str, counts: &[usize; 4]| {
            let [met, not_applicable, not_built, open] = counts;
            writeln!(
                text,
                "| {document} | {level} | {role} | {met} | {not_applicable} | {not_built} | {open} |"
            )
            .expect("writing to a string does not fail");
        };
        for ((document, level, role), counts) in &counts {
            line(document, ["MUST", "SHOULD", "MAY", "other"][*level], role, counts);
        }
        line("all", "", "ids", &total);
        text
    }

    /// The open ids, a line for each document.
    fn open_ids(&self) -> String {
        let mut open: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (requirement, _) in self.rows.iter().filter(|(_, state)| *state == State::Open) {
            let said = format!("{} ({}, {})", requirement.id, requirement.level, requirement.binds.join(" "));
            open.entry(requirement.document()).or_default().push(said);
        }
        let mut text = String::from("\nOpen:\n\n");
        for (document, ids) in open {
            writeln!(text, "- {document}: {}", ids.join(", ")).expect("writing to a string does not fail");
        }
        text
    }

    fn strictly_open(&self) -> Vec<&str> {
        let counts = |requirement: &Requirement| {
            STRICT_DOCUMENTS.contains(&requirement.document())
                && requirement.level != "MAY"
                && requirement.binds.iter().any(|role| STRICT_ROLES.contains(&role.as_str()))
        };
        let open =
            self.rows.iter().filter(|(requirement, state)| *state == State::Open && counts(requirement));
        open.map(|(requirement, _)| requirement.id.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "id\tlevel\tbinds\nX509-01\tMUST\tissuer\nX509-02\tMUST\tclient,validator\nJWT-01\tMAY\tissuer\nFED-01\tMUST\tissuer\n";

    fn ran(met: &[&str]) -> Ran {
        Ran { succeeded: true, met: met.iter().map(|id| (*id).to_owned()).collect() }
    }

    #[test]
    fn only_a_test_that_passed_counts() {
        let said = "running 2 tests\ntest a::good ... ok\ntest a::bad ... FAILED\n";
        let log = "X509-01\ta::good\nX509-02\ta::bad\nJWT-01\ta::absent\n";
        assert_eq!(met(said, log).into_iter().collect::<Vec<_>>(), ["X509-01"]);
    }

    #[test]
    fn what_is_neither_met_nor_excused_is_open() {
        let requirements = requirements(ROWS).unwrap();
        let excused = excused("id\tkind\treason\nFED-01\tnot built yet\tlater\n").unwrap();
        let nothing = ran(&[]);
        let report = Report::new(&requirements, &excused, &nothing).unwrap();
        assert_eq!(report.strictly_open(), ["X509-01", "X509-02"]);
        let some = ran(&["X509-02"]);
        let report = Report::new(&requirements, &excused, &some).unwrap();
        assert_eq!(report.strictly_open(), ["X509-01"]);
        let table = report.table();
        assert!(table.contains("| X509 | MUST | validator | 1 | 0 | 0 | 0 |\n"), "{table}");
        assert!(table.ends_with("| all |  | ids | 1 | 0 | 1 | 2 |\n"), "{table}");
        assert!(report.open_ids().contains("- JWT: JWT-01 (MAY, issuer)"));
    }

    #[test]
    fn an_excuse_for_what_is_met_or_unknown_is_an_error() {
        let requirements = requirements(ROWS).unwrap();
        for (excuse, met) in [("X509-01", &["X509-01"][..]), ("X509-77", &[])] {
            let excused = excused(&format!("id\tkind\treason\n{excuse}\tdoes not apply\tbecause\n")).unwrap();
            assert!(Report::new(&requirements, &excused, &ran(met)).is_err(), "{excuse}");
        }
        for bad in ["X509-01\tperhaps\tbecause", "X509-01\tdoes not apply\t", "X509-01"] {
            assert!(excused(&format!("id\tkind\treason\n{bad}\n")).is_err(), "{bad}");
        }
    }
}
