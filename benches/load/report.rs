//! How is told what was measured? A line for each row as it comes, a table at the end, JSON, Markdown and plots.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::plot;
use crate::row::{Measured, Row, Target};
use crate::rows::ROWS;

/// Cost against a count: ours, and the floor's where there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pub(crate) ours: Vec<(f64, f64)>,
    pub(crate) floor: Vec<(f64, f64)>,
}

/// What a run has brought so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    measured: BTreeMap<&'static str, Measured>,
    series: BTreeMap<&'static str, Series>,
    /// What was not measured, and why.
    left_out: Vec<String>,
    failures: usize,
}

impl Report {
    /// Takes what came of `row`, and says so.
    pub(crate) fn took(&mut self, row: &'static Row, measured: Measured) {
        say(&line(row, Some(&measured)));
        self.measured.insert(row.key, measured);
    }

    /// Takes a point of the plot called `name`.
    pub(crate) fn point(&mut self, name: &'static str, count: f64, ours: Option<f64>, floor: Option<f64>) {
        let series = self.series.entry(name).or_default();
        series.ours.extend(ours.map(|value| (count, value)));
        series.floor.extend(floor.map(|value| (count, value)));
    }

    /// Says that something was not measured.
    pub(crate) fn left_out(&mut self, what: &str) {
        say(&format!("left out: {what}"));
        self.left_out.push(what.to_owned());
    }

    /// Takes how a group of rows ended.
    pub(crate) fn judge(&mut self, group: &str, ended: Result<()>) {
        if let Err(error) = ended {
            self.failures += 1;
            self.left_out(&format!("FAILED {group}: {error:#}"));
        }
    }

    /// Whether nothing failed.
    ///
    /// # Errors
    /// When something did.
    pub(crate) fn all_went_well(&self) -> Result<()> {
        ensure!(self.failures == 0, "{} groups of rows failed; see above", self.failures);
        Ok(())
    }

    /// What came of the row called `key`.
    #[cfg(test)]
    fn measured(&self, key: &str) -> Option<&Measured> {
        self.measured.get(key)
    }

    /// The table, for a person.
    pub(crate) fn table(&self) -> String {
        let mut text = heading();
        for row in ROWS {
            writeln!(text, "{}", line(row, self.measured.get(row.key))).expect("a string takes all");
        }
        text
    }

    /// All that was measured, with `facts` of the run.
    pub(crate) fn json(&self, facts: &Value) -> Value {
        let rows = ROWS.iter().filter_map(|row| {
            let measured = self.measured.get(row.key)?;
            Some(json!({
                "row": row.key, "what": row.what, "floor_is": row.floor, "unit": row.unit,
                "target": target(row), "ratio": measured.ratio(), "met": measured.meets(row.target),
                "measured": measured,
            }))
        });
        let series = self
            .series
            .iter()
            .map(|(name, series)| json!({ "plot": name, "ours": series.ours, "floor": series.floor }));
        json!({
            "run": facts, "rows": rows.collect::<Vec<_>>(), "series": series.collect::<Vec<_>>(),
            "left_out": self.left_out,
        })
    }

    /// The rows as ratios, and those that have no floor against their targets.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(
            "| row | what | floor | ours / floor | target | part of the target | p99 / p50 | met |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for row in ROWS {
            let Row { key, what, floor, .. } = row;
            let measured = self.measured.get(key);
            let ratio = measured.and_then(Measured::ratio).map_or_else(String::new, number);
            let part = measured.and_then(|measured| Some(measured.ours / most(row.target)?));
            let part = part.map_or_else(String::new, |part| format!("{:.0} %", part * 100.0));
            let tail = measured.and_then(|measured| measured.spread);
            let tail = tail.filter(|spread| spread.p50 > 0.0).map(|spread| number(spread.p99 / spread.p50));
            let met = measured.map_or("", |measured| verdict(measured.meets(row.target)));
            writeln!(
                text,
                "| `{key}` | {what} | {floor} | {ratio} | {} | {part} | {} | {met} |",
                target(row),
                tail.unwrap_or_default()
            )
            .expect("a string takes all");
        }
        for what in &self.left_out {
            writeln!(text, "\nLeft out: {what}").expect("a string takes all");
        }
        text
    }

    /// Writes plots into the folder `dir`, which is made if need be; the names of the files.
    pub(crate) fn plots(&self, dir: &Path) -> Result<Vec<String>> {
        fs::create_dir_all(dir).with_context(|| format!("failed to make {}", dir.display()))?;
        let mut files = Vec::new();
        let spreads: Vec<_> = ROWS
            .iter()
            .filter_map(|row| Some((row, self.measured.get(row.key)?)))
            .filter(|(row, measured)| !measured.quantiles.is_empty() && row.unit == "ms")
            .map(|(row, measured)| (row.key, measured.quantiles.clone()))
            .collect();
        if !spreads.is_empty() {
            fs::write(dir.join("latency.svg"), plot::latencies(&spreads))?;
            files.push("latency.svg".to_owned());
        }
        for (name, series) in &self.series {
            let file = format!("{}.svg", name.replace([' ', ','], "-"));
            fs::write(dir.join(&file), plot::cost(name, &series.ours, &series.floor))?;
            files.push(file);
        }
        Ok(files)
    }
}

/// Prints a line.
pub(crate) fn say(line: &str) {
    // Whoever reads no further needs no more lines.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// What stands above the lines.
pub(crate) fn heading() -> String {
    format!(
        "{:16} {:>9} {:>11} {:>11} {:>7} {:>18} {:>6}  {}\n",
        "row", "unit", "floor", "ours", "ratio", "target", "met", "spread and notes"
    )
}

fn line(row: &Row, measured: Option<&Measured>) -> String {
    let value = |value: Option<f64>| value.map_or_else(String::new, number);
    let mut more = Vec::new();
    if let Some(measured) = measured {
        more.extend(measured.spread.map(|spread| {
            let [p50, p90, p99, most] = [spread.p50, spread.p90, spread.p99, spread.most].map(number);
            format!("p50 {p50}, p90 {p90}, p99 {p99}, most {most} of {}", spread.count)
        }));
        more.extend(measured.notes.iter().map(|(what, value)| format!("{what} {}", number(*value))));
    }
    format!(
        "{:16} {:>9} {:>11} {:>11} {:>7} {:>18} {:>6}  {}",
        row.key,
        row.unit,
        value(measured.and_then(|measured| measured.floor)),
        value(measured.map(|measured| measured.ours)),
        value(measured.and_then(Measured::ratio)),
        target(row),
        measured.map_or("", |measured| verdict(measured.meets(row.target))),
        more.join("; ")
    )
}

fn verdict(met: Option<bool>) -> &'static str {
    match met {
        None => "",
        Some(true) => "yes",
        Some(false) => "SHORT",
    }
}

fn target(row: &Row) -> String {
    match row.target {
        Target::None => String::new(),
        Target::Ratio(most) => format!("≤ {}x", number(most)),
        Target::AtMost(most) => format!("≤ {} {}", number(most), row.unit),
        Target::Both(ratio, most) => format!("≤ {}x, {} {}", number(ratio), number(most), row.unit),
    }
}

fn most(target: Target) -> Option<f64> {
    match target {
        Target::None | Target::Ratio(_) => None,
        Target::AtMost(most) | Target::Both(_, most) => Some(most),
    }
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if value == value.trunc() || size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_key_of_its_own_and_a_line() {
        let report = Report::default();
        let keys: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), ROWS.len());
        assert_eq!(report.table().lines().count(), ROWS.len() + 1);
        assert_eq!(report.markdown().lines().count(), ROWS.len() + 2);
    }

    #[test]
    fn what_was_measured_is_told_in_every_form() {
        let mut report = Report::default();
        let row = ROWS.iter().find(|row| row.unit == "ms").unwrap();
        report.took(row, Measured::of(3.0, Some(2.0)).over(&[1.0, 3.0, 9.0]).note("tries", 4.0));
        report.point("memory by agents", 10.0, Some(5.0), Some(4.0));
        assert_eq!(report.measured(row.key).unwrap().ratio(), Some(1.5));
        assert!(report.table().contains("p99 9") && report.table().contains("tries 4"));
        assert!(report.markdown().contains("| 1.50 |"));
        let json = report.json(&json!({"agents": 10}));
        assert_eq!((&json["rows"][0]["ratio"], &json["run"]["agents"]), (&json!(1.5), &json!(10)));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(report.plots(dir.path()).unwrap(), ["latency.svg", "memory-by-agents.svg"]);
    }

    #[test]
    fn a_failure_is_told_and_fails_the_run() {
        let mut report = Report::default();
        report.judge("one group", Ok(()));
        assert!(report.all_went_well().is_ok());
        report.judge("another", Err(anyhow::anyhow!("refused")));
        assert!(report.all_went_well().is_err() && report.markdown().contains("FAILED another: refused"));
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let told = [0.0, 0.012_34, 1.234, 12.34, 1234.5, 7.0].map(number);
        assert_eq!(told, ["0", "0.0123", "1.23", "12.3", "1234", "7"]);
    }
}
