//! Does `passant import` copy what a SPIRE server has, once, and take it back?

mod fake_spire;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use passant_core::Host;
use passant_proto::{convert, types};
use passant_server::{Config, Running, Server};
use serde_json::{Value, json};

use crate::fake_spire::FakeSpire;

/// More than two pages, and no multiple of a batch.
const MANY: usize = 2_345;

/// A server beside one of SPIRE, and a folder.
struct Rig {
    dir: tempfile::TempDir,
    spire: FakeSpire,
}

impl Rig {
    /// Runs `test` beside the two servers.
    async fn with(test: impl FnOnce(&Self) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
        let rig = Self { dir: tempfile::tempdir()?, spire: FakeSpire::default() };
        let server = rig.start("example.org", "api.sock").await?;
        // Whose authorities are SPIRE's.
        let other = rig.start("example.org", "other.sock").await?;
        rig.spire.world().bundle = convert::bundle::to_wire(&other.bundle());
        other.shutdown().await;
        let serving = rig.spire.serve(&rig.path("spire.sock"))?;
        let tested = tokio::task::spawn_blocking(move || test(&rig)).await?;
        serving.abort();
        server.shutdown().await;
        tested
    }

    async fn start(&self, trust_domain: &str, socket: &str) -> anyhow::Result<Running> {
        let text = format!(
            "trust_domain = \"{trust_domain}\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\n[socket]\npath = {:?}\n",
            self.path(socket)
        );
        Ok(Server::start(Config::parse(&text, "test.toml")?, Host::system()).await?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn passant(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(env!("CARGO_BIN_EXE_passant"))
            .args(args)
            .env("PASSANT_SERVER_SOCKET", self.path("api.sock"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()?)
    }

    /// Runs a command that must end with `code`, and reads what it printed as JSON.
    fn json(&self, code: i32, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.passant(&[&["-o", "json"], args].concat())?;
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(output.status.code() == Some(code), "{args:?}: {:?}: {said}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Imports; ends with `code`.
    fn import(&self, code: i32, more: &[&str]) -> anyhow::Result<Value> {
        let mut args = vec!["import", "spire", "--spire-socket", "spire.sock"];
        if !more.contains(&"--wait") {
            args.push("--no-wait");
        }
        args.extend(more);
        self.json(code, &args)
    }

    /// An import that must fail, and what it says.
    fn import_fails(&self) -> anyhow::Result<String> {
        let output = self.passant(&["import", "spire", "--spire-socket", "spire.sock"])?;
        ensure!(output.status.code() == Some(1), "{:?}", output.status);
        Ok(String::from_utf8(output.stderr)?)
    }

    fn ledger(&self) -> PathBuf {
        self.path("passant-import-example.org.jsonl")
    }

    /// Everything that this server has, as its commands show it.
    fn state(&self) -> anyhow::Result<[Value; 5]> {
        let mut own = self.json(0, &["bundle", "show"])?;
        own["sequence_number"] = json!(null);
        Ok([
            own,
            self.json(0, &["bundle", "list"])?,
            self.json(0, &["federation", "list"])?,
            self.json(0, &["entry", "list"])?,
            self.json(0, &["agent", "list"])?,
        ])
    }
}

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
}

fn selector(value: &str) -> types::Selector {
    types::Selector { r#type: "unix".to_owned(), value: value.to_owned() }
}

fn entry(name: &str) -> types::Entry {
    types::Entry {
        id: name.to_owned(),
        spiffe_id: id(&format!("/w/{name}")),
        parent_id: id("/spire/agent/join_token/one"),
        selectors: vec![selector("uid:1")],
        revision_number: 3,
        created_at: 1_700_000_000,
        ..types::Entry::default()
    }
}

/// Every field that an entry has.
fn full_entry() -> types::Entry {
    types::Entry {
        selectors: vec![selector("uid:7"), selector("gid:7")],
        x509_svid_ttl: 90,
        jwt_svid_ttl: 80,
        federates_with: vec!["other.test".to_owned()],
        admin: true,
        downstream: true,
        expires_at: 4_000_000_000,
        dns_names: vec!["b.example".to_owned(), "a.example".to_owned()],
        store_svid: true,
        hint: "blue".to_owned(),
        additional_attributes: Some(types::entry::AdditionalAttributes {
            // What is stored is never fetched on demand.
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: true,
        }),
        ..entry("full")
    }
}

fn agent(name: &str) -> types::Agent {
    types::Agent {
        id: id(&format!("/spire/agent/join_token/{name}")),
        attestation_type: "join_token".to_owned(),
        x509svid_serial_number: "255".to_owned(),
        x509svid_expires_at: 4_000_000_000,
        selectors: vec![selector("k:1")],
        agent_version: "1.15.3".to_owned(),
        ..types::Agent::default()
    }
}

fn banned(name: &str) -> types::Agent {
    types::Agent { banned: true, x509svid_serial_number: String::new(), ..agent(name) }
}

/// SPIRE with something of each kind.
fn fill(rig: &Rig) {
    let mut world = rig.spire.world();
    let foreign = types::Bundle { trust_domain: "other.test".to_owned(), ..world.bundle.clone() };
    world.entries = vec![full_entry(), entry("plain")];
    world.agents = vec![agent("one"), banned("two")];
    world.relationships = vec![types::FederationRelationship {
        trust_domain: "other.test".to_owned(),
        bundle_endpoint_url: "https://127.0.0.1:1/bundle".to_owned(),
        bundle_endpoint_profile: Some(types::federation_relationship::BundleEndpointProfile::HttpsWeb(
            types::HttpsWebProfile {},
        )),
        trust_domain_bundle: Some(foreign.clone()),
    }];
    world.bundles = vec![foreign];
}

fn counts(report: &Value, of: &str) -> [u64; 3] {
    ["done", "already", "left"].map(|what| report[of][what].as_u64().unwrap_or(0))
}

const KINDS: [&str; 6] =
    ["authorities_here", "authorities_there", "bundles", "federation_relationships", "entries", "agents"];

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_is_copied_once_and_taken_back() -> anyhow::Result<()> {
    Rig::with(|rig| {
        fill(rig);
        let before = rig.state()?;
        let planned = rig.import(0, &["--dry-run"])?;
        assert_eq!(rig.state()?, before);
        assert!(!rig.ledger().exists() && rig.spire.world().writes == 0);

        let copied = rig.import(0, &[])?;
        for kind in KINDS {
            let [done, already, left] = counts(&copied, kind);
            assert_eq!(counts(&planned, kind), [done, already, left], "{kind}");
            assert!(done > 0 && already + left == 0, "{kind}: {done} {already} {left}");
        }
        let after = rig.state()?;
        let shown = rig.json(0, &["entry", "show", "full"])?;
        let wanted = full_entry();
        for (field, value) in [
            ("hint", json!(wanted.hint)),
            ("dns_names", json!(wanted.dns_names)),
            ("federates_with", json!(wanted.federates_with)),
            ("x509_svid_ttl", json!(wanted.x509_svid_ttl)),
            ("jwt_svid_ttl", json!(wanted.jwt_svid_ttl)),
            ("expires_at", json!(wanted.expires_at.to_string())),
            ("admin", json!(true)),
            ("downstream", json!(true)),
            ("store_svid", json!(true)),
            (
                "additional_attributes",
                json!({"disable_x509_svid_prefetch": false, "jwt_svid_include_jti": true}),
            ),
        ] {
            assert_eq!(shown[field], value, "{field} of {shown}");
        }
        let agents = &after[4]["agents"];
        assert_eq!(agents[0]["x509svid_serial_number"], "255");
        assert_eq!(agents[0]["agent_version"], "1.15.3");
        assert_eq!(agents[1]["banned"], true);
        let known = |world: &types::Bundle| (world.x509_authorities.len(), world.jwt_authorities.len());
        assert_eq!(known(&rig.spire.world().bundle), (2, 2));

        let again = rig.import(0, &[])?;
        for kind in KINDS {
            let [done, already, left] = counts(&again, kind);
            assert!(done + left == 0 && already > 0, "{kind}: {done} {already} {left}");
        }
        assert_eq!((rig.state()?, rig.spire.world().writes), (after.clone(), 1));

        rig.json(0, &["import", "undo", "--dry-run"])?;
        assert_eq!(rig.state()?, after);
        let undone = rig.json(0, &["import", "undo"])?;
        assert_eq!(undone["left"], json!([]));
        assert!(undone["notes"][0].as_str().is_some_and(|note| note.contains("SPIRE's API has no method")));
        assert_eq!(rig.state()?, before);
        let nothing = rig.json(0, &["import", "undo"])?;
        assert!(KINDS.iter().all(|kind| counts(&nothing, kind)[0] == 0), "{nothing}");
        rig.import(0, &[])?;
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 2);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_stays_as_it_is_and_is_named_with_its_place() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let create = |name: &str, path: &str| {
            let spiffe_id = format!("spiffe://example.org{path}");
            let parent = "spiffe://example.org/spire/agent/join_token/one";
            let args = ["entry", "create", "--id", name, "--spiffe-id", &spiffe_id, "--parent-id", parent];
            rig.json(0, &[&args[..], &["--selector", "unix:uid:1"]].concat()).map(drop)
        };
        create("taken", "/mine")?;
        create("own-id", "/w/twin")?;
        let before = rig.state()?;
        rig.spire.world().entries = vec![
            entry("good"),
            types::Entry { spiffe_id: id("/spire/agent/x"), ..entry("reserved") },
            entry("taken"),
            entry("twin"),
            types::Entry { federates_with: vec!["none.test".to_owned()], ..entry("federated") },
            types::Entry { expires_at: 1_600_000_000, ..entry("ended") },
            types::Entry { selectors: vec![], ..entry("unselective") },
        ];
        rig.spire.world().agents =
            vec![types::Agent { x509svid_serial_number: "x".to_owned(), ..agent("bad") }, agent("one")];
        let tainted =
            types::X509Certificate { tainted: true, ..rig.spire.world().bundle.x509_authorities[0].clone() };
        rig.spire.world().bundle.x509_authorities[0] = tainted;
        for args in [&["--dry-run"][..], &[]] {
            let report = rig.import(3, args)?;
            assert_eq!(counts(&report, "entries"), [1, 0, 5], "{report}");
            let left: Vec<(Option<&str>, Option<u64>)> = report["left"]
                .as_array()
                .context("left")?
                .iter()
                .map(|one| (one["kind"].as_str(), one["at"].as_u64()))
                .collect();
            let entries = [2, 3, 4, 5, 7].map(|at| (Some("entries"), Some(at)));
            assert_eq!(left[0], (Some("authorities_here"), None));
            assert_eq!((&left[1..6], left[6]), (&entries[..], (Some("agents"), Some(1))));
            let notes = report["notes"].to_string();
            assert!(notes.contains("1 entries of SPIRE have ended"), "{notes}");
        }
        let again = rig.import(3, &[])?;
        assert_eq!(counts(&again, "entries"), [0, 1, 5]);
        // What was changed since is no longer the import's.
        rig.json(0, &["entry", "update", "good", "--hint", "changed"])?;
        let undone = rig.json(3, &["import", "undo"])?;
        assert_eq!(counts(&undone, "entries"), [0, 0, 1]);
        assert_eq!(undone["left"][0]["why"], "it was changed since");
        rig.json(0, &["entry", "delete", "good"])?;
        assert_eq!(rig.state()?, before);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_move_takes_out_authorities_and_nothing_else() -> anyhow::Result<()> {
    Rig::with(|rig| {
        fill(rig);
        let [own, ..] = rig.state()?;
        rig.import(0, &[])?;
        let [with_theirs, bundles, federation, entries, agents] = rig.state()?;
        assert_ne!(with_theirs, own);
        rig.json(0, &["import", "undo", "--authorities-only"])?;
        assert_eq!(rig.state()?, [own, bundles, federation, entries, agents]);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_was_here_before_is_here_after_the_undo() -> anyhow::Result<()> {
    Rig::with(|rig| {
        fill(rig);
        let shown = rig.passant(&["bundle", "show", "--format", "pem"])?;
        std::fs::write(rig.path("mine.pem"), shown.stdout)?;
        rig.json(0, &["bundle", "set", "other.test", "mine.pem"])?;
        let before = rig.state()?;
        let copied = rig.import(3, &[])?;
        assert_eq!(counts(&copied, "federation_relationships"), [1, 0, 0]);
        assert_eq!(counts(&copied, "bundles"), [0, 0, 1]);
        rig.json(0, &["import", "undo"])?;
        let mut after = rig.state()?;
        after[1]["bundles"][0]["sequence_number"] = before[1]["bundles"][0]["sequence_number"].clone();
        assert_eq!(after, before);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_entries_and_agents_come_in_pages() -> anyhow::Result<()> {
    Rig::with(|rig| {
        rig.spire.world().entries = (0..MANY).map(|n| entry(&format!("e{n:06}"))).collect();
        rig.spire.world().agents = (0..MANY).map(|n| agent(&format!("a{n:06}"))).collect();
        let many = u64::try_from(MANY)?;
        let copied = rig.import(0, &[])?;
        assert_eq!((counts(&copied, "entries"), counts(&copied, "agents")), ([many, 0, 0], [many, 0, 0]));
        let again = rig.import(0, &[])?;
        assert_eq!((counts(&again, "entries"), counts(&again, "agents")), ([0, many, 0], [0, many, 0]));
        let undone = rig.json(0, &["import", "undo"])?;
        assert_eq!((counts(&undone, "entries"), counts(&undone, "agents")), ([many, 0, 0], [many, 0, 0]));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_imported_from_changes_nothing() -> anyhow::Result<()> {
    Rig::with(|rig| {
        fill(rig);
        let before = rig.state()?;
        rig.spire.world().denies = true;
        let said = rig.import_fails()?;
        assert!(said.contains("PermissionDenied") && said.contains("SPIRE server's bundle"), "{said}");
        rig.spire.world().denies = false;
        rig.spire.world().bundle.trust_domain = "other.test".to_owned();
        let said = rig.import_fails()?;
        assert!(said.contains("of trust domain other.test") && said.contains("federate"), "{said}");
        let output = rig.passant(&["import", "spire", "--spire-socket", "none.sock"])?;
        let said = String::from_utf8(output.stderr)?;
        assert!(said.contains("no SPIRE server answers at none.sock"), "{said}");
        assert_eq!(rig.state()?, before);
        assert!(!Path::new(&rig.ledger()).exists());
        let output = rig.passant(&["import", "undo"])?;
        assert!(String::from_utf8(output.stderr)?.contains("--ledger"));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_comes_with_the_next_import() -> anyhow::Result<()> {
    Rig::with(|rig| {
        fill(rig);
        let before = rig.state()?;
        rig.spire.world().agents =
            vec![types::Agent { selectors: vec![types::Selector::default()], ..agent("one") }];
        assert_eq!(counts(&rig.import(3, &[])?, "agents"), [0, 0, 1]);
        rig.spire.world().agents = vec![agent("one")];
        let report = rig.import(0, &["--wait", "1s"])?;
        assert_eq!(counts(&report, "agents"), [1, 0, 0]);
        assert!(report["move_from"].as_i64().is_some());
        rig.json(0, &["import", "undo"])?;
        assert_eq!(rig.state()?, before);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_imports_over_tcp_and_knows_the_server_by_its_bundle() -> anyhow::Result<()> {
    let rig = Rig { dir: tempfile::tempdir()?, spire: FakeSpire::default() };
    let server = rig.start("example.org", "api.sock").await?;
    let other = rig.start("example.org", "other.sock").await?;
    let address = other.address().to_string();
    let test = move || -> anyhow::Result<()> {
        let id = ["--spiffe-id", "spiffe://example.org/ops"];
        let create =
            ["--server-socket", "other.sock", "entry", "create", "--parent-id", "spiffe://example.org/n"];
        rig.json(0, &[&create[..], &id, &["--selector", "unix:uid:1", "--admin"]].concat())?;
        let mint = ["x509", "mint", "--write"];
        rig.json(0, &[&["--server-socket", "other.sock"], &mint[..], &["ops"], &id].concat())?;
        rig.json(0, &[&mint[..], &["stranger"], &id].concat())?;
        let import = |who: &str, bundle: &str| {
            let [svid, key, bundle] =
                [format!("{who}/svid.pem"), format!("{who}/key.pem"), format!("{bundle}/bundle.pem")];
            let args = ["import", "spire", "--no-wait", "--spire-address", &address];
            let files = ["--spire-svid", &svid, "--spire-key", &key, "--spire-bundle", &bundle];
            rig.passant(&[&args[..], &files].concat())
        };
        for (who, bundle, says) in [
            ("none", "ops", "none/svid.pem holds no X509-SVID"),
            ("ops", "none", "none/bundle.pem holds no bundle"),
            ("ops", "stranger", "failed to reach the SPIRE server"),
            ("stranger", "ops", "SPIRE server"),
        ] {
            let output = import(who, bundle)?;
            let said = String::from_utf8(output.stderr)?;
            ensure!(output.status.code() == Some(1) && said.contains(says), "{who}, {bundle}: {said}");
        }
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 0);
        let output = import("ops", "ops")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 1);
        Ok(())
    };
    let tested = tokio::task::spawn_blocking(test).await?;
    other.shutdown().await;
    server.shutdown().await;
    tested
}
