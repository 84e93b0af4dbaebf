//! What does a report look like as SARIF 2.1.0, for code scanning?

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{Finding, HIDDEN, Register, Report, Rule, without_tokens};

/// Other entries of a finding that are located; the message counts the rest.
const RELATED: usize = 20;

/// The log of one run over `register`, which was read from `file` unless from a server.
pub(crate) fn log(register: &Register, report: &Report, file: Option<&str>) -> Value {
    let uri = file.map(uri);
    let rules: Vec<Value> = Rule::value_variants().iter().map(|rule| described(*rule)).collect();
    let mut fingerprints: BTreeMap<String, usize> = BTreeMap::new();
    let results = report.findings.iter().map(|finding| {
        let mut result = result(register, finding, uri.as_deref());
        let fingerprint = fingerprint(register, finding);
        let before = fingerprints.entry(fingerprint.clone()).or_default();
        *before += 1;
        // What cannot be told apart is counted: consumers take two results with one fingerprint for the same.
        let nth = if *before > 1 { format!(" {before}") } else { String::new() };
        result["partialFingerprints"] = json!({ "passant/v1": fingerprint + &nth });
        result
    });
    let results: Vec<Value> = results.collect();
    let notes: Vec<Value> = report
        .not_checked
        .iter()
        .map(|what| json!({ "level": "note", "message": { "text": format!("Not checked: {what}.") } }))
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "passant lint",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "invocations": [{ "executionSuccessful": true, "toolExecutionNotifications": notes }],
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn described(rule: Rule) -> Value {
    json!({
        "id": rule.name(),
        "shortDescription": { "text": sentence(rule.looks_for()) },
        "fullDescription": { "text": format!("{} Risk: {}", sentence(rule.looks_for()), sentence(rule.risk())) },
        "help": { "text": format!("Fix: {}", sentence(rule.fix())) },
        "defaultConfiguration": { "level": rule.level().name() },
    })
}

fn result(register: &Register, finding: &Finding, uri: Option<&str>) -> Value {
    let text = format!(
        "{} Risk: {} Fix: {}",
        sentence(&finding.evidence),
        sentence(finding.rule.risk()),
        sentence(&finding.fix)
    );
    let index = Rule::value_variants().iter().position(|rule| *rule == finding.rule);
    let mut result = json!({
        "ruleId": finding.rule.name(),
        "ruleIndex": index,
        "level": finding.level.name(),
        "message": { "text": text },
    });
    match &finding.entries[..] {
        [] => {
            let name = json!({ "fullyQualifiedName": finding.subject, "kind": "object" });
            let location = json!({ "logicalLocations": [name] });
            result["locations"] = json!([placed(location, None, uri)]);
        }
        [first, others @ ..] => {
            result["locations"] = json!([location(register, *first, uri)]);
            let others = others.iter().take(RELATED).zip(1..);
            let others = others.map(|(at, id)| with_id(location(register, *at, uri), id));
            result["relatedLocations"] = others.collect();
        }
    }
    result
}

fn location(register: &Register, at: usize, uri: Option<&str>) -> Value {
    let (id, spiffe_id, line) = register.named(at);
    let location = json!({
        "logicalLocations": [{ "name": id, "fullyQualifiedName": spiffe_id, "kind": "object" }],
    });
    placed(location, line, uri)
}

/// A location with its place in the file, if there is one: the first line where there is no better. Code scanning takes no
/// result without.
fn placed(mut location: Value, line: Option<usize>, uri: Option<&str>) -> Value {
    if let Some(uri) = uri {
        location["physicalLocation"] = json!({
            "artifactLocation": { "uri": uri },
            "region": { "startLine": line.unwrap_or(1) },
        });
    }
    location
}

fn with_id(mut location: Value, id: usize) -> Value {
    location["id"] = json!(id);
    location
}

/// The same for the same finding in the next run, wherever the entry stands in the file then, and whatever other entries
/// the finding is about by then.
fn fingerprint(register: &Register, finding: &Finding) -> String {
    let (rule, subject) = (finding.rule.name(), finding.subject.as_str());
    let entry = |at: usize| without_tokens(&register.identity(at));
    match finding.entries.first() {
        // Which token it is is not said.
        Some(first) if subject.ends_with(HIDDEN) => format!("{rule} {subject} {}", entry(*first)),
        Some(first) if subject.is_empty() => {
            format!("{rule} {} {}", register.named(*first).1, entry(*first))
        }
        Some(_) | None => format!("{rule} {subject}"),
    }
}

/// With a capital and a full stop, as SARIF's viewers show it.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str())
}

/// The path of a file as a URI reference: relative to where the command runs, unless it is absolute.
fn uri(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encoded: String = path
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let encoded = encoded.strip_prefix("./").unwrap_or(&encoded);
    if encoded.starts_with('/') { format!("file://{encoded}") } else { encoded.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_uris() {
        assert_eq!(uri("./entries/a b.json"), "entries/a%20b.json");
        assert_eq!(uri("/srv/e.json"), "file:///srv/e.json");
    }
}
