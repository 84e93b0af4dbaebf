//! Does the command line do on a running server what it says: files of entries, lint, agents?

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use passant_core::Host;
use passant_server::{Config, Server};
use serde_json::Value;

/// A server with everything in memory, and a folder.
struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    /// Runs `test` beside a server.
    async fn with(test: impl FnOnce(&Self) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
        let rig = Self { dir: tempfile::tempdir()? };
        let text = format!(
            "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\n[socket]\npath = {:?}\n",
            rig.path("api.sock")
        );
        let server = Server::start(Config::parse(&text, "test.toml")?, Host::system()).await?;
        let tested = tokio::task::spawn_blocking(move || test(&rig)).await?;
        server.shutdown().await;
        tested
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.path(name);
        std::fs::write(&path, text)?;
        Ok(text_of(&path)?.to_owned())
    }

    fn passant(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(env!("CARGO_BIN_EXE_passant"))
            .args(args)
            .env("PASSANT_SERVER_SOCKET", self.path("api.sock"))
            .stdin(Stdio::null())
            .output()?)
    }

    /// Runs a command that must end with `code`, and reads what it printed as JSON.
    fn json(&self, code: i32, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.passant(&[&["-o", "json"], args].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{args:?}: {:?}: {said}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Runs a command that must fail, and says what it printed as error.
    fn fails(&self, args: &[&str]) -> anyhow::Result<String> {
        self.ends(1, args)
    }

    /// Runs a command that must end with `code`, and says what it printed as error.
    fn ends(&self, code: i32, args: &[&str]) -> anyhow::Result<String> {
        let output = self.passant(args)?;
        ensure!(output.status.code() == Some(code), "{args:?}: {:?}", output.status);
        Ok(String::from_utf8(output.stderr)?)
    }

    /// Runs a command of which nobody reads what it prints: its exit code, and what it printed as error.
    fn unread(&self, args: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_passant"))
            .args(args)
            .env("PASSANT_SERVER_SOCKET", self.path("api.sock"))
            .stdin(Stdio::null())
            .stdout(writer)
            .output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    }
}

fn text_of(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of text")
}

/// An entry as SPIRE's `entry create -data` takes it.
fn data(id: &str, path: &str, selector: &str) -> String {
    format!(
        r#"{{"entry_id": "{id}", "spiffe_id": "spiffe://example.org{path}", "parent_id": "spiffe://example.org/node",
            "selectors": [{{"type": "unix", "value": "{selector}"}}, {{"type": "unix", "value": "path:/usr/bin{path}"}}]}}"#
    )
}

fn file_of(entries: &[String]) -> String {
    format!("{{\"entries\": [{}]}}", entries.join(",\n"))
}

fn alias() -> String {
    r#"{"entry_id": "alias", "spiffe_id": "spiffe://example.org/node", "parent_id": "spiffe://example.org/spire/server",
        "selectors": [{"type": "x509pop", "value": "subject:cn:node"}]}"#
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_go_in_by_the_thousand_and_come_out_the_same() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let entries: Vec<String> =
            (0..1_700).map(|n| data(&format!("e{n:04}"), &format!("/w{n}"), &format!("uid:{n}"))).collect();
        let file = rig.file("in.json", &file_of(&entries))?;
        let imported = rig.json(0, &["entry", "import", &file])?;
        assert_eq!((&imported["created"], &imported["existing"]), (&1_700.into(), &0.into()));
        let again = rig.json(0, &["entry", "import", &file])?;
        assert_eq!((&again["created"], &again["existing"]), (&0.into(), &1_700.into()));

        let shown = text_of(&rig.path("shown.json"))?.to_owned();
        assert_eq!(rig.json(0, &["entry", "export", &shown])?["entries"], 1_700);
        let listed = rig.json(0, &["entry", "list"])?;
        let exported: Value = serde_json::from_str(&std::fs::read_to_string(&shown)?)?;
        assert_eq!((&exported, listed["entries"].as_array().map(Vec::len)), (&listed, Some(1_700)));
        assert!(rig.fails(&["entry", "export", &shown])?.contains("--force"));
        let table = rig.passant(&["entry", "list"])?;
        assert_eq!(String::from_utf8(table.stdout)?.lines().count(), 1_701);

        // In either shape the file says what the server has.
        let data = rig.passant(&["entry", "export", "--shape", "data"])?;
        let data = rig.file("data.json", &String::from_utf8(data.stdout)?)?;
        for file in [&shown, &data] {
            let plan = rig.json(0, &["entry", "apply", "--dry-run", "--prune", file])?;
            assert_eq!(plan["same"], 1_700);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_applied_once_its_differences_were_seen() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let before = [alias(), data("a", "/a", "uid:1"), data("b", "/b", "uid:2"), data("c", "/c", "uid:3")];
        let before = rig.file("before.json", &file_of(&before))?;
        rig.json(0, &["entry", "import", &before])?;
        let after = [alias(), data("a", "/a", "uid:9"), data("", "/b", "uid:2"), data("d", "/d", "uid:4")];
        let after = rig.file("after.json", &file_of(&after))?;

        let plan = rig.json(3, &["entry", "apply", "--dry-run", "--prune", &after])?;
        assert_eq!((&plan["create"][0]["id"], &plan["delete"][0]["id"]), (&"d".into(), &"c".into()));
        assert_eq!((&plan["change"][0]["id"], &plan["same"]), (&"a".into(), &2.into()));
        assert_eq!(plan["change"][0]["fields"][0]["field"], "selectors");
        let told = rig.passant(&["entry", "apply", "--dry-run", &after])?;
        let told = String::from_utf8(told.stdout)?;
        assert!(
            told.contains("1 to create, 1 to change, 0 to delete; 2 are as in the file, 1 others stay"),
            "{told}"
        );
        // Nobody can be asked here.
        assert!(rig.fails(&["entry", "apply", &after])?.contains("--yes"));
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 4);

        let done = rig.json(0, &["entry", "apply", "--yes", &after])?;
        assert_eq!((&done["created"], &done["changed"], &done["deleted"]), (&1.into(), &1.into(), &0.into()));
        let scoped =
            ["entry", "apply", "--dry-run", "--prune", &after, "--spiffe-id", "spiffe://example.org/x"];
        assert_eq!(rig.json(0, &scoped)?["kept"], 1);
        let done = rig.json(0, &["entry", "apply", "--yes", "--prune", &after])?;
        assert_eq!((&done["changed"], &done["deleted"]), (&0.into(), &1.into()));
        assert_eq!(rig.json(0, &["entry", "apply", "--dry-run", "--prune", &after])?["same"], 4);
        // To the server an empty filter would let everything pass.
        for arguments in [&["--hint", ""][..], &["--hint="]] {
            let all = [&["entry", "apply", "--yes", "--prune", &before][..], arguments].concat();
            assert!(rig.ends(2, &all)?.contains("--hint"));
        }
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 4);
        let empty = rig.file("empty.json", "[]")?;
        assert!(rig.fails(&["entry", "apply", "--yes", "--prune", &empty])?.contains("no entries"));
        // People see both, and a file that changes nothing needs no answer.
        let told = rig.passant(&["entry", "apply", &after])?;
        let told = String::from_utf8(told.stdout)?;
        assert!(told.contains("4 are as in the file") && told.contains("0 created"), "{told}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_does_not_hang_on_who_reads_of_it() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let many: Vec<String> =
            (0..200).map(|n| data(&format!("e{n:03}"), &format!("/w{n}"), &format!("uid:{n}"))).collect();
        let many = rig.file("many.json", &file_of(&many))?;
        let done = (Some(0), String::new());
        assert_eq!(rig.unread(&["entry", "apply", "--yes", &many])?, done);
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 200);
        // Readers that have seen enough.
        for format in ["table", "json"] {
            assert_eq!(rig.unread(&["-o", format, "entry", "list"])?, done);
            let (code, said) =
                rig.unread(&["-o", format, "entry", "apply", "--dry-run", "--prune", &many])?;
            assert_eq!((code, said.as_str()), (Some(0), ""));
        }
        assert_eq!(rig.unread(&["entry", "export"])?, done);

        let (code, said) = rig.unread(&["entry", "delete", "e001", "none"])?;
        assert_eq!(code, Some(1));
        assert!(said.contains("failed to delete 1 of 2 entries; passant entry list shows"), "{said}");
        for change in [["--hint", "x"], ["--downstream=true", "--hint=x"]] {
            let (code, said) = rig.unread(&[&["entries", "update", "none"], &change[..]].concat())?;
            assert_eq!(code, Some(1));
            assert!(said.contains("passant entry list shows which there are"), "{said}");
        }
        let refused = data("b", "/b", "uid:2")
            .replace("\"selectors\"", "\"federates_with\": [\"none.test\"], \"selectors\"");
        let refused = rig.file("refused.json", &format!("[{refused}]"))?;
        for command in [&["entry", "import", &refused][..], &["entry", "apply", "--yes", &refused]] {
            let (code, said) = rig.unread(command)?;
            assert_eq!(code, Some(1), "{command:?}");
            assert!(said.contains("refused"), "{said}");
        }
        let nothing = text_of(&rig.path("nothing"))?.to_owned();
        let (code, said) = rig.unread(&["store", "check", &nothing])?;
        assert_eq!(code, Some(1));
        assert!(said.contains("1 fault in"), "{said}");
        assert_eq!(
            rig.unread(&["access", "check", "authority.read", "--uid", "4242", "--gid", "4242"])?.0,
            Some(3)
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_entry_takes_over_what_a_changed_one_gives_up() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let before =
            rig.file("before.json", &file_of(&[data("a", "/a", "uid:1"), data("x", "/x", "uid:7")]))?;
        rig.json(0, &["entry", "import", &before])?;
        let after = [data("a", "/a", "uid:9"), data("new", "/a", "uid:1")];
        let after = rig.file("after.json", &file_of(&after))?;
        let done = rig.json(0, &["entry", "apply", "--yes", "--prune", &after])?;
        assert_eq!((&done["created"], &done["changed"], &done["deleted"]), (&1.into(), &1.into(), &1.into()));
        let new = rig.json(0, &["entry", "show", "new"])?;
        assert_eq!(new["selectors"][1]["value"], "uid:1");

        // Unless that one is not changed after all.
        let after = data("a", "/a", "uid:8")
            .replace("\"selectors\"", "\"federates_with\": [\"none.test\"], \"selectors\"");
        let after = [after, data("new", "/a", "uid:1"), data("heir", "/a", "uid:9")];
        let after = rig.file("after.json", &file_of(&after))?;
        let done = rig.json(1, &["entry", "apply", "--yes", &after])?;
        assert_eq!((&done["created"], &done["changed"]), (&0.into(), &0.into()));
        let failed: Vec<&Value> =
            done["failed"].as_array().context("failed")?.iter().map(|f| &f["id"]).collect();
        assert_eq!(failed, ["a", "heir"]);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_shown_is_a_file() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let file = rig.file("in.json", &file_of(&[alias(), data("a", "/a", "uid:1")]))?;
        rig.json(0, &["entry", "import", &file])?;
        let shown = rig.json(0, &["entry", "show", "a"])?;
        let shown = rig.file("shown.json", &shown.to_string())?;
        assert_eq!(rig.json(0, &["entry", "import", &shown])?["existing"], 1);
        assert_eq!(rig.json(0, &["entry", "apply", "--dry-run", &shown])?["same"], 1);
        let nothing = rig.file("none.json", r#"{"agents": [], "bundles": []}"#)?;
        let linted = rig.json(3, &["lint", &shown, "--agents", &nothing, "--bundles", &nothing])?;
        assert_eq!(linted["findings"][0]["rule"], "missing-parent");
        Ok(())
    })
    .await
}

/// Nobody is asked for that: there is no server.
#[test]
fn wrong_arguments_end_with_2() -> anyhow::Result<()> {
    let rig = Rig { dir: tempfile::tempdir()? };
    for (arguments, says) in [
        (&["federation", "create", "other.test", "--web"][..], "--url"),
        (&["federation", "create", "other.test", "--url", "https://other.test/"], "--spiffe"),
        (&["federation", "update", "other.test"], "nothing to change"),
        (&["entry", "update", "web"], "nothing to change"),
        (&["entry", "apply", "--dry-run", "--hint", "blue", "a.json"], "--prune"),
    ] {
        let said = rig.ends(2, arguments)?;
        assert!(said.contains(says) && said.contains("Usage: passant "), "{said}");
    }
    let said = rig.ends(1, &["access", "check", "authority.read"])?;
    assert!(said.contains("no server answers"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_faults_changes_nothing() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let good = data("a", "/a", "uid:1");
        for (text, says) in [
            (format!("[{good}"), "EOF"),
            (format!("[{good}, {{\"spiffe_id\": null}}]"), "line "),
            (
                format!("[{good}, {}]", data("b", "/b", "uid:2").replace("entry_id", "owner")),
                "--skip-unknown-fields",
            ),
        ] {
            let file = rig.file("bad.json", &text)?;
            for command in [&["entry", "import", &file][..], &["entry", "apply", "--yes", &file]] {
                let said = rig.fails(command)?;
                assert!(said.contains(says), "{said}");
            }
        }
        let twice = rig.file("twice.json", &format!("[{good},\n{}]", data("b", "/a", "uid:1")))?;
        assert!(rig.fails(&["entry", "apply", "--yes", &twice])?.contains("lines 1 and 3"));
        assert_eq!(rig.json(0, &["entry", "count"])?["count"], 0);
        // What only the server can know is told for each entry, and does not hold up the others.
        let reserved = data("b", "/b", "uid:2")
            .replace("\"selectors\"", "\"federates_with\": [\"none.test\"], \"selectors\"");
        let file = rig.file("mixed.json", &format!("[{reserved},\n{good}]"))?;
        let told = rig.json(1, &["entry", "import", &file])?;
        assert_eq!((&told["created"], &told["failed"][0]["id"]), (&1.into(), &"b".into()));
        assert_eq!(
            (&told["failed"][0]["line"], &told["failed"][0]["status"]["code"]),
            (&1.into(), &9.into())
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_linter_finds_the_same_in_a_server_and_in_its_file() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let good = rig.file("good.json", &file_of(&[alias(), data("a", "/a", "uid:1")]))?;
        rig.json(0, &["entry", "import", &good])?;
        assert_eq!(rig.json(0, &["lint", "--fail-on", "note"])?["entries"], 2);
        let created = [
            "entry",
            "create",
            "--id",
            "bad",
            "--spiffe-id",
            "spiffe://example.org/r",
            "--selector",
            "unix:uid:0",
            "--parent-id",
            "spiffe://example.org/spire/agent/x509pop/gone",
        ];
        rig.json(0, &created)?;
        let found = rig.json(3, &["lint"])?;
        let rules: Vec<&str> = found["findings"]
            .as_array()
            .context("findings")?
            .iter()
            .filter_map(|f| f["rule"].as_str())
            .collect();
        assert_eq!(rules, ["root-alone", "missing-parent"]);
        assert_eq!((&found["errors"], &found["not_checked"]), (&1.into(), &Value::Array(Vec::new())));
        rig.json(0, &["lint", "--accept", "root-alone=bad", "--accept", "missing-parent"])?;
        rig.json(0, &["lint", "--fail-on", "never"])?;

        let file = text_of(&rig.path("entries.json"))?.to_owned();
        rig.json(0, &["entry", "export", &file])?;
        let agents = rig.passant(&["-o", "json", "agent", "list"])?;
        let agents = rig.file("agents.json", &String::from_utf8(agents.stdout)?)?;
        let bundles = rig.file("bundles.json", r#"{"bundles": [], "next_page_token": ""}"#)?;
        let same = rig.json(3, &["lint", &file, "--agents", &agents, "--bundles", &bundles])?;
        let mut told = String::new();
        for (one, other) in
            found["findings"].as_array().context("")?.iter().zip(same["findings"].as_array().context("")?)
        {
            assert_eq!(one["evidence"], other["evidence"]);
            writeln!(told, "{}", other["entries"][0]["line"])?;
        }
        assert_eq!(told, "4\n4\n");
        let log = rig.passant(&["lint", "--sarif", &file])?;
        assert_eq!(log.status.code(), Some(3));
        let log: Value = serde_json::from_slice(&log.stdout)?;
        assert_eq!(
            log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"],
            4
        );
        let denied = rig.json(3, &["access", "check", "authority.read", "--uid", "4242", "--gid", "4242"])?;
        assert_eq!(denied["allowed"], false);
        let text = String::from_utf8(rig.passant(&["lint"])?.stdout)?;
        for word in [
            "error[root-alone] spiffe://example.org/r (entry bad)",
            "evidence:",
            "risk:",
            "fix:",
            "3 entries: 1 errors",
        ] {
            assert!(text.contains(word), "{word} is missing in:\n{text}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_counted_purged_and_missed() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let filters = [
            "--expires-before",
            "2030-01-01T00:00:00Z",
            "--banned=false",
            "--can-reattest",
            "--selector",
            "x509pop:a:b",
        ];
        assert_eq!(rig.json(0, &[&["agent", "count"], &filters[..]].concat())?["count"], 0);
        assert_eq!(rig.json(0, &["agent", "list"])?["agents"], Value::Array(Vec::new()));
        assert_eq!(rig.json(0, &["agent", "purge", "--all"])?["expired_agents"], Value::Array(Vec::new()));
        for what in ["show", "ban", "evict"] {
            let said = rig.fails(&["agent", what, "spiffe://example.org/spire/agent/x509pop/none"])?;
            assert!(said.contains("passant agent list"), "{said}");
        }
        assert!(rig.fails(&["entry", "show", "none"])?.contains("passant entry list"));
        Ok(())
    })
    .await
}
