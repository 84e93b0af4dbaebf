//! What does a report look like as SARIF 2.1.0, for code scanning?

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{Finding, Register, Report, Rule};

/// Other entries of a finding that are located; the message counts the rest.
const RELATED: usize = 20;

/// The log of one run over `register`, which was read from `file` unless from a server.
pub(crate) fn log(register: &Register, report: &Report, file: Option<&str>) -> Value {
    let uri = file.map(uri);
    let rules: Vec<Value> = Rule::value_variants().iter().map(|rule| described(*rule)).collect();
    let results: Vec<Value> =
        report.findings.iter().map(|finding| result(register, finding, uri.as_deref())).collect();
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
        "partialFingerprints": { "passant/v1": fingerprint(register, finding) },
    });
    match &finding.entries[..] {
        [] => {
            let name = json!({ "fullyQualifiedName": finding.subject, "kind": "object" });
            result["locations"] = json!([{ "logicalLocations": [name] }]);
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
    let mut location = json!({
        "logicalLocations": [{ "name": id, "fullyQualifiedName": spiffe_id, "kind": "object" }],
    });
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

/// The same for the same finding in the next run, wherever the entry stands in the file then.
fn fingerprint(register: &Register, finding: &Finding) -> String {
    let of = finding.entries.first().map_or((finding.subject.as_str(), ""), |at| {
        let (id, spiffe_id, _) = register.named(*at);
        (spiffe_id, id)
    });
    format!("{} {} {}", finding.rule.name(), of.0, of.1)
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
