//! How do the files under `proto/` become the generated modules of passant-proto?

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the generated files stand, below the workspace.
const OUT: &str = "crates/passant-proto/src/gen";

/// What every generated file begins with.
const HEADER: &str = "// Generated from proto/ by `cargo xtask codegen`; do not edit.\n\n";

/// One proto package, which becomes one module.
struct Module {
    /// Name of the Rust file, and of the module.
    name: &'static str,
    /// The package; empty for the Workload API, which has none.
    package: &'static str,
    /// A file, or a directory of files, below `proto/`.
    source: &'static str,
}

const MODULES: [Module; 26] = [
    Module { name: "workload", package: "", source: "spiffe/workload" },
    Module { name: "rpc", package: "google.rpc", source: "google/rpc" },
    Module { name: "types", package: "spire.api.types", source: "spire/api/types" },
    Module { name: "agent", package: "spire.api.server.agent.v1", source: "spire/api/server/agent/v1" },
    Module { name: "entry", package: "spire.api.server.entry.v1", source: "spire/api/server/entry/v1" },
    Module { name: "svid", package: "spire.api.server.svid.v1", source: "spire/api/server/svid/v1" },
    Module { name: "bundle", package: "spire.api.server.bundle.v1", source: "spire/api/server/bundle/v1" },
    Module { name: "debug", package: "spire.api.server.debug.v1", source: "spire/api/server/debug/v1" },
    Module { name: "logger", package: "spire.api.server.logger.v1", source: "spire/api/server/logger/v1" },
    Module {
        name: "trustdomain",
        package: "spire.api.server.trustdomain.v1",
        source: "spire/api/server/trustdomain/v1",
    },
    Module {
        name: "localauthority",
        package: "spire.api.server.localauthority.v1",
        source: "spire/api/server/localauthority/v1",
    },
    Module { name: "federation", package: "passant.federation.v1", source: "passant/federation/v1" },
    Module { name: "access", package: "passant.access.v1", source: "passant/access/v1" },
    Module { name: "audit", package: "passant.audit.v1", source: "passant/audit/v1" },
    Module { name: "import", package: "passant.import.v1", source: "passant/import/v1" },
    Module { name: "store", package: "passant.store.v1", source: "passant/store/v1" },
    Module { name: "explain", package: "passant.explain.v1", source: "passant/explain/v1" },
    Module { name: "node", package: "passant.node.v1", source: "passant/node/v1" },
    Module { name: "options", package: "passant.entry.v1", source: "passant/entry/v1" },
    Module { name: "sync", package: "passant.sync.v1", source: "passant/sync/v1" },
    Module { name: "stop", package: "passant.stop.v1", source: "passant/stop/v1" },
    Module { name: "envoy_type", package: "envoy.type.v3", source: "envoy/type/v3" },
    Module { name: "envoy_core", package: "envoy.config.core.v3", source: "envoy/config/core/v3" },
    Module {
        name: "envoy_tls",
        package: "envoy.extensions.transport_sockets.tls.v3",
        source: "envoy/extensions/transport_sockets/tls/v3",
    },
    Module { name: "discovery", package: "envoy.service.discovery.v3", source: "envoy/service/discovery/v3" },
    Module { name: "secret", package: "envoy.service.secret.v3", source: "envoy/service/secret/v3" },
];

/// Descriptions of services, for reflection: the name of the file, and the directories of protos that it describes.
const DESCRIPTIONS: [(&str, &[&str]); 4] = [
    ("node.bin", &["passant/node/v1"]),
    ("secret.bin", &["envoy/service/secret/v3"]),
    ("workload.bin", &["spiffe/workload"]),
    (
        "server.bin",
        &[
            "passant/access/v1",
            "passant/audit/v1",
            "passant/entry/v1",
            "passant/explain/v1",
            "passant/federation/v1",
            "passant/import/v1",
            "passant/stop/v1",
            "passant/store/v1",
            "passant/sync/v1",
            "spire/api/server/agent/v1",
            "spire/api/server/bundle/v1",
            "spire/api/server/debug/v1",
            "spire/api/server/entry/v1",
            "spire/api/server/localauthority/v1",
            "spire/api/server/logger/v1",
            "spire/api/server/svid/v1",
            "spire/api/server/trustdomain/v1",
        ],
    ),
];

/// The packages that others import, and where the crate has them.
const SHARED: [(&str, &str); 8] = [
    ("google.rpc", "crate::rpc"),
    ("envoy.type.v3", "crate::envoy_type"),
    ("envoy.config.core.v3", "crate::envoy_core"),
    ("envoy.extensions.transport_sockets.tls.v3", "crate::envoy_tls"),
    ("envoy.service.discovery.v3", "crate::discovery"),
    ("spire.api.types", "crate::types"),
    ("passant.explain.v1", "crate::explain"),
    ("passant.entry.v1", "crate::options"),
];

/// Writes the generated files, leaving those alone that are current.
pub(crate) fn run(root: &Path) -> Result<()> {
    let out = root.join(OUT);
    for (name, text) in generate(&root.join("proto"))? {
        let path = out.join(name);
        if fs::read(&path).is_ok_and(|old| old == text) {
            continue;
        }
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// Compiles the protos; gives name and content of every file.
fn generate(proto: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let modules = MODULES
        .iter()
        .map(|module| Ok((format!("{}.rs", module.name), module.generate(proto)?.into_bytes())));
    let descriptions = DESCRIPTIONS.iter().map(|(name, of)| Ok(((*name).to_owned(), describe(proto, of)?)));
    modules.chain(descriptions).collect()
}

/// The encoded `FileDescriptorSet` of all protos in `dirs` and of what they import, without comments.
fn describe(proto: &Path, dirs: &[&str]) -> Result<Vec<u8>> {
    let mut compiler = protox::Compiler::new([proto]).context("failed to read the protos")?;
    compiler.include_imports(true).include_source_info(false);
    for dir in dirs {
        compiler.open_files(protos_in(&proto.join(dir))?).context("failed to compile the protos")?;
    }
    Ok(compiler.encode_file_descriptor_set())
}

impl Module {
    fn generate(&self, proto: &Path) -> Result<String> {
        let sources = protos_in(&proto.join(self.source))?;
        let descriptors = protox::compile(sources, [proto]).context("failed to compile the protos")?;

        let scratch = tempfile::tempdir().context("failed to make a scratch directory")?;
        // Without transport: whoever calls brings a channel, which decides on TLS and the peer.
        // With ordered maps: the same message always has the same bytes.
        let mut build =
            tonic_prost_build::configure().build_transport(false).btree_map(".").out_dir(scratch.path());
        for (package, module) in SHARED.iter().filter(|(package, _)| self.package != *package) {
            build = build.extern_path(format!(".{package}"), *module);
        }
        if self.name == "sync" {
            // Agents watch by the thousand, and mostly nothing is said.
            build = build.codec_path("crate::lean_codec::LeanCodec");
            // A bundle goes out to all of them.
            build =
                build.extern_path(".spire.api.types.Bundle", "crate::shared::Shared<crate::types::Bundle>");
        }
        build.compile_fds(descriptors).with_context(|| format!("failed to generate {}", self.name))?;

        // Named as the Rust module would be, where `type` needs a mark.
        let file = if self.package.is_empty() { "_" } else { &self.package.replace(".type.", ".r#type.") };
        let path = scratch.path().join(format!("{file}.rs"));
        let text = fs::read_to_string(&path)
            .with_context(|| format!("found no code for package {}", self.package))?;
        Ok(format!("{HEADER}{}", without_allows(&text)))
    }
}

/// The proto files directly in a directory, in order of their names.
fn protos_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("failed to list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Drops the `allow` attributes: which lints do not apply is said once, in `generated.rs`.
fn without_allows(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut inside = false;
    for line in text.lines() {
        let start = line.trim_start();
        inside |= start.starts_with("#![allow(") || start.starts_with("#[allow(");
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
        inside &= !line.trim_end().ends_with(")]");
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_code_is_what_the_protos_say() {
        let root = crate::root();
        let expected = generate(&root.join("proto")).unwrap();

        for (name, text) in &expected {
            let committed = fs::read(root.join(OUT).join(name)).unwrap_or_default();
            assert!(committed == *text, "{OUT}/{name} is not current: run `cargo xtask codegen`");
        }
        for entry in fs::read_dir(root.join(OUT)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(expected.contains_key(&name), "{OUT}/{name} belongs to no proto: delete it");
        }
    }

    #[test]
    fn allows_are_dropped() {
        let text =
            "mod a {\n    #![allow(\n        dead_code,\n    )]\n    fn b() {}\n}\n#[allow(x)]\nfn c() {}\n";
        assert_eq!(without_allows(text), "mod a {\n    fn b() {}\n}\nfn c() {}\n");
    }
}
