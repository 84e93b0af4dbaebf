//! Do the crates depend on each other only downwards?

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Every crate under `crates/`, and which of its siblings it may depend on, in tests too.
const MAY: [(&str, &[&str]); 8] = [
    ("passant-core", &[]),
    ("passant-proto", &["passant-core"]),
    ("passant-attest", &["passant-core"]),
    ("passant-daemon", &["passant-core"]),
    ("passant-server", &["passant-attest", "passant-core", "passant-daemon", "passant-proto"]),
    ("passant-agent", &["passant-attest", "passant-core", "passant-daemon", "passant-proto"]),
    // The exception: `passant dev` runs a server and an agent in one process, `passant store` reads what a server keeps.
    (
        "passant-cli",
        &[
            "passant-agent",
            "passant-attest",
            "passant-core",
            "passant-daemon",
            "passant-proto",
            "passant-server",
        ],
    ),
    ("xtask", &[]),
];

/// Asks cargo for the edges between the packages of the workspace.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("failed to run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    faults(&serde_json::from_slice(&output.stdout).context("cargo metadata did not answer in JSON")?)
}

fn faults(metadata: &Value) -> Result<Vec<String>> {
    let root = text(metadata, "workspace_root")?;
    let mut faults = Vec::new();
    for package in list(metadata, "packages")? {
        let name = text(package, "name")?;
        let manifest = text(package, "manifest_path")?;
        if !manifest.strip_prefix(root).is_some_and(|path| path.starts_with("/crates/")) {
            continue;
        }
        let Some((_, may)) = MAY.iter().find(|(known, _)| *known == name) else {
            faults.push(format!(
                "{name}: not a crate of design.md; say in xtask's edges.rs what it may depend on"
            ));
            continue;
        };
        for dependency in list(package, "dependencies")? {
            let on = text(dependency, "name")?;
            let sibling = dependency.get("path").is_some_and(Value::is_string);
            if sibling && on != name && !may.contains(&on) {
                faults.push(format!("{name}: may not depend on {on}; arrows point down only, see design.md"));
            }
        }
    }
    Ok(faults)
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value.get(key).and_then(Value::as_str).with_context(|| format!("cargo metadata has no {key}"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value.get(key).and_then(Value::as_array).with_context(|| format!("cargo metadata has no {key}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults_of(name: &str, dir: &str, on: &str) -> usize {
        let metadata = json!({
            "workspace_root": "/here",
            "packages": [{
                "name": name,
                "manifest_path": format!("/here/{dir}/{name}/Cargo.toml"),
                "dependencies": [
                    { "name": "serde", "path": null },
                    { "name": on, "kind": "dev", "path": format!("/here/crates/{on}") },
                ],
            }],
        });
        faults(&metadata).unwrap().len()
    }

    #[test]
    fn arrows_point_down_only() {
        assert_eq!(faults_of("passant-server", "crates", "passant-proto"), 0);
        assert_eq!(faults_of("passant-server", "crates", "passant-agent"), 1);
        assert_eq!(faults_of("passant-agent", "crates", "passant-server"), 1);
        assert_eq!(faults_of("passant-attest", "crates", "passant-proto"), 1);
        assert_eq!(faults_of("passant-core", "crates", "passant-proto"), 1);
        assert_eq!(faults_of("passant-agent", "crates", "passant-daemon"), 0);
        assert_eq!(faults_of("passant-daemon", "crates", "passant-proto"), 1);
        assert_eq!(faults_of("passant-core", "crates", "passant-tests"), 1);
        assert_eq!(faults_of("passant-cli", "crates", "passant-server"), 0);
    }

    #[test]
    fn a_new_crate_must_be_placed() {
        assert_eq!(faults_of("passant-new", "crates", "passant-core"), 1);
    }

    #[test]
    fn tests_may_depend_on_anything() {
        assert_eq!(faults_of("passant-tests", ".", "passant-server"), 0);
    }
}
