//! Does the command line stop, wait and resume as it says, and keep the options of entries?

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::ensure;
use hyper_util::rt::TokioIo;
use passant_core::Host;
use passant_proto::import::AdoptAgentsRequest;
use passant_proto::import::import_client::ImportClient;
use passant_proto::types;
use passant_server::{Config, Server};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

const AGENT: &str = "spiffe://example.org/spire/agent/x509pop/node";

/// A server with everything in memory, and an agent that is known and never comes.
struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    async fn with(test: impl FnOnce(&Self) -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
        let rig = Self { dir: tempfile::tempdir()? };
        let text = format!(
            "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory\"\n[socket]\npath = {:?}\n",
            rig.path("api.sock")
        );
        let server = Server::start(Config::parse(&text, "test.toml")?, Host::system()).await?;
        rig.adopt_agent().await?;
        let tested = tokio::task::spawn_blocking(move || test(&rig)).await?;
        server.shutdown().await;
        tested
    }

    async fn adopt_agent(&self) -> anyhow::Result<()> {
        let path = self.path("api.sock");
        let connect = move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        };
        let channel =
            Endpoint::from_static("http://local").connect_with_connector(tower::service_fn(connect)).await?;
        let path = "/spire/agent/x509pop/node".to_owned();
        let agent = types::Agent {
            id: Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path }),
            attestation_type: "x509pop".to_owned(),
            x509svid_serial_number: "77".to_owned(),
            x509svid_expires_at: Host::system().now().secs() + 3_600,
            selectors: vec![types::Selector { r#type: "k".to_owned(), value: "1".to_owned() }],
            ..types::Agent::default()
        };
        let request = AdoptAgentsRequest { agents: vec![agent], dry_run: false };
        ImportClient::new(channel).adopt_agents(request).await?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
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

    /// Runs a command that must end with `code`: what it printed, and what it printed as error.
    fn text(&self, code: i32, args: &[&str]) -> anyhow::Result<(String, String)> {
        let output = self.passant(args)?;
        let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(output.status.code() == Some(code), "{args:?}: {:?}: {out} {err}", output.status);
        Ok((out, err))
    }

    /// Registers an entry below the agent.
    fn entry(&self, code: i32, id: &str, more: &[&str]) -> anyhow::Result<Value> {
        let spiffe_id = format!("spiffe://example.org/{id}");
        let args = ["entry", "create", "--id", id, "--spiffe-id", &spiffe_id, "--parent-id", AGENT];
        self.json(code, &[&args[..], &["--selector", "unix:uid:1"], more].concat())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_made_shown_and_ended() -> anyhow::Result<()> {
    Rig::with(|rig| {
        rig.entry(0, "web", &["--x509-svid-ttl", "1m", "--jwt-svid-ttl", "1m"])?;
        assert_eq!(rig.text(0, &["stop", "status"])?.0, "nothing is stopped\n");
        let stop = ["stop", "entry", "web", "--reason", "stolen key"];
        let made = rig.json(0, &stop)?;
        assert_eq!(
            (&made["created"], &made["stop"]["target"]),
            (&true.into(), &json!({ "entry_id": "web" }))
        );
        assert_eq!(made["stop"]["reason"], "stolen key");
        let pending = &made["stop"]["rollout"]["pending"][0];
        assert_eq!((&pending["agent_id"], &pending["state"]), (&AGENT.into(), &"unreachable".into()));

        // Whoever waits is told by the exit code that somebody has not applied it.
        let again = rig.json(3, &[&stop[..], &["--wait", "1s"]].concat())?;
        assert_eq!((&again["created"], &again["stop"]["id"]), (&false.into(), &made["stop"]["id"]));
        let (told, _) = rig.text(3, &["stop", "status", "entry", "web"])?;
        for word in ["entry web", "stolen key", "0 agents have applied it", AGENT, "may serve until"] {
            assert!(told.contains(word), "{word} is missing in {told}");
        }
        rig.json(0, &["stop", "agent", AGENT, "--reason", "odd"])?;
        rig.json(0, &["stop", "instance", AGENT, "boot/7/1", "--reason", "odd"])?;
        assert_eq!(rig.json(0, &["stop", "list"])?["stops"].as_array().map(Vec::len), Some(3));
        assert!(rig.text(0, &["stops", "list"])?.0.contains(&format!("instance {AGENT} boot/7/1")));
        let explained = rig.json(3, &["explain", "spiffe-id", "spiffe://example.org/web"])?;
        assert_eq!(explained["causes"][0]["code"], "stopped");
        let remedy = explained["causes"][0]["remedy"].to_string();
        assert!(remedy.contains("passant stop resume entry web"), "{remedy}");

        let resume = ["stop", "resume", "entry", "web", "--reason", "new key"];
        let ended = rig.json(3, &[&resume[..], &["--wait", "1s"]].concat())?;
        assert_eq!(ended["stop_id"], made["stop"]["id"]);
        assert!(rig.text(1, &resume)?.1.contains("passant stop list"));
        assert!(rig.text(1, &["stop", "status", "entry", "web"])?.1.contains("is not stopped"));
        assert!(rig.text(1, &["stop", "entry", "none", "--reason", "x"])?.1.contains("entry not found"));
        for wrong in [
            &["stop", "entry", "web"][..],
            &["stop", "entry", "web", "--reason", " "],
            &["stop", "instance", AGENT, "7", "--reason", "x"],
            &["stop", "entry", "web", "--reason", "x", "--wait", "2m"],
        ] {
            rig.text(2, wrong)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_waits_and_names_who_has_it_not() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let wait = ["--wait", "1s"];
        let named = |told: &Value| {
            assert_eq!(told["rollout"]["pending"][0]["agent_id"], AGENT, "{told}");
        };
        named(&rig.entry(3, "web", &wait)?);
        named(&rig.json(3, &[&["entry", "update", "web", "--hint", "new"], &wait[..]].concat())?);
        let elsewhere = ["entry", "update", "web", "--parent-id", "spiffe://example.org/nowhere"];
        named(&rig.json(3, &[&elsewhere[..], &wait].concat())?);
        let there = rig.json(0, &[&["entry", "update", "web", "--hint", "newer"], &wait[..]].concat())?;
        assert_eq!(there["rollout"]["pending"], json!([]), "it is nobody's any more");
        rig.entry(0, "db", &[])?;
        named(&rig.json(3, &[&["entry", "delete", "db"], &wait[..]].concat())?);
        let file = rig.path("entries.json");
        let entry = rig.json(0, &["entry", "show", "web"])?;
        std::fs::write(&file, entry.to_string().replace("/nowhere", "/spire/agent/x509pop/node"))?;
        let file = file.display().to_string();
        let apply = ["entry", "apply", "--yes", &file, "--wait", "1s"];
        named(&rig.json(3, &apply)?);
        assert!(rig.json(0, &apply)?["rollout"].is_null(), "nothing was changed");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn options_go_around_through_commands_and_files() -> anyhow::Result<()> {
    Rig::with(|rig| {
        let strict = json!({ "key_scope": "instance", "strict": true });
        let made = rig.entry(0, "web", &["--key-scope", "instance", "--strict"])?;
        assert_eq!(made["results"][0]["entry"]["options"], strict);
        rig.entry(0, "db", &[])?;
        // What knows nothing of options keeps them.
        let updated = rig.json(0, &["entry", "update", "web", "--hint", "new"])?;
        assert_eq!(updated["results"][0]["entry"]["options"], strict);
        assert!(rig.text(0, &["entry", "show", "web"])?.0.contains("key_scope=instance strict"));
        let listed = rig.json(0, &["entry", "list"])?;
        assert!(listed["entries"][0]["options"].is_null() && listed["entries"][1]["options"] == strict);
        let loose = rig.json(0, &["entry", "update", "web", "--strict=false"])?;
        assert_eq!(loose["results"][0]["entry"]["options"], json!({ "key_scope": "instance" }));
        rig.json(0, &["entry", "update", "web", "--strict", "--hint", "newer"])?;

        for shape in ["show", "data"] {
            let file = rig.path(shape).display().to_string();
            rig.json(0, &["entry", "export", "--shape", shape, &file])?;
            let same = rig.json(0, &["entry", "apply", "--dry-run", "--prune", &file])?;
            assert_eq!(same["same"], 2, "{shape}");
            // Changed back by a file, and made anew from one.
            rig.json(0, &["entry", "update", "web", "--key-scope", "node", "--strict=false"])?;
            let plan = rig.json(3, &["entry", "apply", "--dry-run", &file])?;
            let fields: Vec<&Value> = plan["change"][0]["fields"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| &one["field"])
                .collect();
            assert_eq!(fields, ["key_scope", "strict"]);
            assert_eq!(rig.json(0, &["entry", "apply", "--yes", &file])?["changed"], 1);
            assert_eq!(rig.json(0, &["entry", "show", "web"])?["options"], strict);
            rig.json(0, &["entry", "delete", "web", "db"])?;
            assert_eq!(rig.json(0, &["entry", "import", &file])?["created"], 2);
            assert_eq!(rig.json(0, &["entry", "show", "web"])?["options"], strict);
            assert!(rig.json(0, &["entry", "show", "db"])?["options"].is_null());
        }
        let wrong = rig.path("wrong.json");
        let text = std::fs::read_to_string(rig.path("show"))?;
        for (from, to) in [("\"instance\"", "\"pod\""), ("\"strict\":true", "\"lax\":true")] {
            std::fs::write(&wrong, text.replace(from, to))?;
            rig.text(1, &["entry", "apply", "--yes", &wrong.display().to_string()])?;
        }
        Ok(())
    })
    .await
}
