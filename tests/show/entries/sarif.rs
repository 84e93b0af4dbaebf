//! Is a log as SARIF 2.1.0 and code scanning ask for it?

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Checks what the standard requires of a log, and of its results so many as `results`.
///
/// # Errors
/// What is missing, or is not one of the words that are allowed.
pub(super) fn check(log: &Value, results: usize) -> anyhow::Result<String> {
    ensure!(log["version"] == "2.1.0", "version is {}", log["version"]);
    let runs = log["runs"].as_array().context("no runs")?;
    ensure!(runs.len() == 1, "{} runs", runs.len());
    let driver = &runs[0]["tool"]["driver"];
    ensure!(!text(&driver["name"])?.is_empty(), "the driver has no name");
    let rules = driver["rules"].as_array().context("no rules")?;
    let ids = rules.iter().map(|rule| text(&rule["id"])).collect::<anyhow::Result<BTreeSet<&str>>>()?;
    ensure!(ids.len() == rules.len(), "a rule stands twice");
    for rule in rules {
        level(&rule["defaultConfiguration"]["level"])?;
        ensure!(!text(&rule["shortDescription"]["text"])?.is_empty(), "{rule} says nothing");
    }
    for invocation in runs[0]["invocations"].as_array().into_iter().flatten() {
        ensure!(invocation["executionSuccessful"].is_boolean(), "{invocation} does not say how it ended");
    }
    let found = runs[0]["results"].as_array().context("no results")?;
    ensure!(found.len() == results, "{} results, not {results}", found.len());
    found.iter().try_for_each(|result| check_result(result, rules))?;
    Ok(format!("{results} results of {} rules", ids.len()))
}

fn check_result(result: &Value, rules: &[Value]) -> anyhow::Result<()> {
    let id = text(&result["ruleId"])?;
    let index = result["ruleIndex"].as_u64().and_then(|index| usize::try_from(index).ok());
    let rule = index.and_then(|index| rules.get(index)).context("no rule of that index")?;
    ensure!(rule["id"] == id, "{id} is {}", rule["id"]);
    level(&result["level"])?;
    ensure!(!text(&result["message"]["text"])?.is_empty(), "{result} says nothing");
    let locations = result["locations"].as_array().filter(|all| !all.is_empty()).context("no location")?;
    for location in locations {
        let place = &location["physicalLocation"];
        ensure!(!text(&place["artifactLocation"]["uri"])?.is_empty(), "{location} names no file");
        ensure!(place["region"]["startLine"].as_u64().is_some_and(|line| line > 0), "{location}");
    }
    Ok(())
}

fn level(level: &Value) -> anyhow::Result<()> {
    ensure!(["none", "note", "warning", "error"].contains(&text(level)?), "{level} is no level");
    Ok(())
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}
