//! Does the command line of SPIRE's server manage this one, over its socket?
//!
//! Every subcommand that speaks to a server is called once or oftener, as its operators would, and its exit code and what it
//! prints are looked at. A second server of SPIRE is the other end of a federation.

use std::fs;

use anyhow::{Context, ensure};
use passant_tests::port::free_port;
use passant_tests::site::{NODE, ServerOptions, Site, TRUST_DOMAIN};
use serde_json::Value;

use crate::report::Report;
use crate::spire::{Place, Spire};

/// The other trust domain.
const FOREIGN: &str = "spire.test";
/// An ID that no agent has.
const NO_AGENT: &str = "/spire/agent/join_token/nobody";

/// The command line, at one server's socket.
struct Line<'a> {
    spire: &'a Spire,
    socket: String,
    report: &'a Report,
}

/// What a call must end with.
#[derive(Clone, Copy)]
enum Ends {
    Well,
    Badly,
}

use Ends::{Badly, Well};

/// Calls everything.
///
/// # Errors
/// What kept it from going through.
pub(crate) async fn run(report: &Report, spire: &Spire) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    let socket = site.server_socket().to_str().context("a path of text")?.to_owned();
    let line = Line { spire, socket, report };

    line.fact("answers-its-health-check", &["healthcheck"], Well, "Server is healthy");
    entries(&line)?;
    agents(&line, &site).await?;
    line.fact(
        "mints-an-x509-svid",
        &["x509", "mint", "-spiffeID", &id("/minted")],
        Well,
        "BEGIN CERTIFICATE",
    );
    let jwt = ["jwt", "mint", "-spiffeID", &id("/minted"), "-audience", "one"];
    line.fact("mints-a-jwt-svid", &jwt, Well, "eyJ");
    bundles(&line, &site)?;
    federation(&line).await?;
    for kind in ["x509", "jwt"] {
        authorities(&line, kind)?;
    }
    for verb in ["taint", "revoke"] {
        let call = ["upstreamauthority", verb, "-subjectKeyID", "00"];
        line.fact(
            &format!("is-told-that-there-is-no-upstream-to-{verb}"),
            &call,
            Badly,
            "FailedPrecondition",
        );
    }
    line.fact("sees-the-log-level", &["logger", "get"], Well, "Logger Level : debug");
    line.fact("sets-the-log-level", &["logger", "set", "-level", "warn"], Well, "Logger Level : warning");
    line.fact("resets-the-log-level", &["logger", "reset"], Well, "Logger Level : debug");
    let chain = format!("spiffe://{TRUST_DOMAIN}/spire/server");
    line.fact("sees-the-state-of-the-server", &["debug", "getinfo"], Well, &chain);
    report.fact("spire-command/server-stops-when-told-to", server.stop().await.map(|()| String::new()));
    Ok(())
}

fn entries(line: &Line<'_>) -> anyhow::Result<()> {
    let (app, node) = (id("/app"), id(NODE));
    let of_app = ["-spiffeID", &app, "-parentID", &node, "-selector", "unix:uid:1"];
    let create = [&["entry", "create"], &of_app[..]].concat();
    let full = [&create[..], &["-x509SVIDTTL", "60", "-dns", "app.example.org", "-hint", "first"]].concat();
    line.fact("creates-an-entry", &full, Well, "DNS name                : app.example.org");
    line.fact("is-told-that-an-entry-exists", &create, Badly, "AlreadyExists");
    line.fact("counts-entries", &["entry", "count"], Well, "1 registration entry");
    line.fact("shows-entries", &["entry", "show"], Well, "Hint                    : first");
    for relation in ["exact", "any", "superset", "subset"] {
        let call = ["entry", "show", "-selector", "unix:uid:1", "-matchSelectorsOn", relation];
        line.fact(&format!("finds-an-entry-by-selectors-{relation}"), &call, Well, "Found 1 entry");
    }
    let shown = line.json(&["entry", "show", "-spiffeID", &app])?;
    let entry = shown["entries"][0]["id"].as_str().context("an entry's id")?.to_owned();
    let update = [&["entry", "update", "-entryID", &entry, "-hint", "second"], &of_app[..]].concat();
    line.fact("updates-an-entry", &update, Well, "Hint                    : second");
    let delete = ["entry", "delete", "-entryID", &entry];
    line.fact("deletes-an-entry", &delete, Well, "Deleted 1 entries successfully");
    line.fact("is-told-that-an-entry-is-gone", &delete, Badly, "NotFound");
    line.fact("shows-that-there-are-no-entries", &["entry", "show"], Well, "Found 0 entries");
    Ok(())
}

async fn agents(line: &Line<'_>, site: &Site) -> anyhow::Result<()> {
    let token = ["token", "generate", "-spiffeID", &id(NODE), "-ttl", "60"];
    line.fact("generates-a-join-token", &token, Well, "Token: ");
    let agent = site.start_agent("agent").await?;
    line.fact("counts-agents", &["agent", "count"], Well, "1 attested agent");
    line.fact("lists-agents", &["agent", "list"], Well, "Attestation type  : join_token");
    let listed = line.json(&["agent", "list"])?;
    let path = listed["agents"][0]["id"]["path"].as_str().context("an agent's path")?;
    let agent_id = id(path);
    line.fact("shows-an-agent", &["agent", "show", "-spiffeID", &agent_id], Well, &agent_id);
    line.fact(
        "purges-no-agent-that-is-well",
        &["agent", "purge", "-expiredFor", "1h"],
        Well,
        "No agents to purge",
    );
    let ban = ["agent", "ban", "-spiffeID", &agent_id];
    line.fact("bans-an-agent", &ban, Well, "Agent banned successfully");
    let banned = ["agent", "list", "-banned", "true"];
    line.fact("lists-banned-agents", &banned, Well, &agent_id);
    let evict = ["agent", "evict", "-spiffeID", &agent_id];
    line.fact("evicts-an-agent", &evict, Well, "Agent evicted successfully");
    line.fact("is-told-that-an-agent-is-gone", &evict, Badly, "NotFound");
    let unknown = ["agent", "show", "-spiffeID", &id(NO_AGENT)];
    line.fact("is-told-that-an-agent-is-unknown", &unknown, Badly, "NotFound");
    agent.stop().await
}

fn bundles(line: &Line<'_>, site: &Site) -> anyhow::Result<()> {
    line.fact("shows-the-bundle-in-pem", &["bundle", "show"], Well, "BEGIN CERTIFICATE");
    let document = ["bundle", "show", "-format", "spiffe"];
    line.fact("shows-the-bundle-as-a-document", &document, Well, "\"x509-svid\"");
    let file = site.path("bundle.json");
    fs::write(&file, line.call(&document)?.1)?;
    let (name, file) = (format!("spiffe://{FOREIGN}"), file.to_str().context("a path of text")?.to_owned());
    let set = ["bundle", "set", "-format", "spiffe", "-id", &name, "-path", &file];
    line.fact("sets-a-foreign-bundle", &set, Well, "bundle set");
    line.fact("counts-bundles", &["bundle", "count"], Well, "2 bundles");
    line.fact("lists-foreign-bundles", &["bundle", "list"], Well, FOREIGN);
    let delete = ["bundle", "delete", "-id", &name, "-mode", "restrict"];
    line.fact("deletes-a-foreign-bundle", &delete, Well, "bundle deleted");
    line.fact("is-told-that-a-bundle-is-gone", &delete, Badly, "not found");
    Ok(())
}

/// With a server of SPIRE whose bundle endpoint proves itself by its X509-SVID.
async fn federation(line: &Line<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let (port, endpoint) = (free_port()?, free_port()?);
    let socket = site.server_socket();
    let keys = format!(
        "federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = {endpoint} profile \"https_spiffe\" {{}} }} }}"
    );
    let place = Place { trust_domain: FOREIGN, socket: &socket, port, keys: &keys, plugins: "" };
    let foreign = line.spire.start_server_at(&site, &place).await?;
    let there = Line { socket: socket.to_str().context("a path of text")?.to_owned(), ..*line };
    let (url, file) = (format!("https://127.0.0.1:{endpoint}"), site.path("foreign.json"));
    fs::write(&file, there.call(&["bundle", "show", "-format", "spiffe"])?.1)?;
    let (file, proof) =
        (file.to_str().context("a path of text")?, format!("spiffe://{FOREIGN}/spire/server"));
    let by = ["-trustDomain", FOREIGN, "-bundleEndpointURL", &url, "-bundleEndpointProfile", "https_spiffe"];
    let by = [&by[..], &["-endpointSpiffeID", &proof]].concat();
    let with = ["-trustDomainBundlePath", file, "-trustDomainBundleFormat", "spiffe"];
    let create = [&["federation", "create"], &by[..], &with].concat();
    line.fact("federates", &create, Well, &proof);
    line.fact("is-told-that-it-federates-already", &create, Badly, "AlreadyExists");
    line.fact("lists-federation", &["federation", "list"], Well, "Found 1 federation relationship");
    line.fact("shows-federation", &["federation", "show", "-trustDomain", FOREIGN], Well, &url);
    line.fact(
        "has-the-bundle-fetched-from-spires-endpoint",
        &["federation", "refresh", "-id", FOREIGN],
        Well,
        "Bundle refreshed",
    );
    let prepared = there.json(&["localauthority", "x509", "prepare"])?;
    ensure!(prepared["prepared_authority"]["authority_id"].is_string(), "{prepared}");
    let before = line.call(&["bundle", "list", "-id", &format!("spiffe://{FOREIGN}")])?.1;
    line.call(&["federation", "refresh", "-id", FOREIGN])?;
    let after = line.call(&["bundle", "list", "-id", &format!("spiffe://{FOREIGN}")])?.1;
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    let (before, after) = (count(&before), count(&after));
    let came = if before == 1 && after == 2 {
        Ok(format!("{before} authority before, {after} after"))
    } else {
        Err(anyhow::anyhow!("{before} authorities before, {after} after"))
    };
    line.report.fact("spire-command/a-new-authority-of-spire-comes-with-it", came);
    let update = [&["federation", "update"], &by[..]].concat();
    line.fact("updates-federation", &update, Well, &proof);
    let end = ["federation", "delete", "-id", FOREIGN];
    line.fact("ends-federation", &end, Well, "federation relationship deleted");
    line.fact("is-told-that-it-does-not-federate", &end, Badly, "not found");
    foreign.stop().await
}

fn authorities(line: &Line<'_>, kind: &str) -> anyhow::Result<()> {
    let call = |verb: &'static str| ["localauthority", kind, verb];
    let label = if kind == "x509" { "X.509" } else { "JWT" };
    let name = |what: &str| format!("{what}-{kind}-authority");
    line.fact(&name("prepares-a-new"), &call("prepare"), Well, &format!("Prepared {label} authority"));
    line.fact(&name("shows-every"), &call("show"), Well, &format!("Active {label} authority"));
    let state = line.json(&call("show"))?;
    let known = |slot: &str| -> anyhow::Result<String> {
        Ok(state[slot]["authority_id"].as_str().with_context(|| format!("{slot}: {state}"))?.to_owned())
    };
    let (active, prepared) = (known("active")?, known("prepared")?);
    let on = |verb: &'static str, id: &str| {
        call(verb).iter().chain(&["-authorityID", id]).map(|&part| part.to_owned()).collect::<Vec<_>>()
    };
    let fact = |what: &str, verb, id: &str, ends, says: &str| {
        let arguments = on(verb, id);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        line.fact(&name(what), &arguments, ends, says);
    };
    fact("does-not-taint-the-active", "taint", &active, Badly, "InvalidArgument");
    fact("does-not-activate-an-unknown", "activate", "unknown", Badly, "InvalidArgument");
    fact("activates-the-prepared", "activate", &prepared, Well, &prepared);
    fact("does-not-revoke-an-untainted", "revoke", &active, Badly, "FailedPrecondition");
    fact("taints-the-old", "taint", &active, Well, &active);
    fact("revokes-the-old", "revoke", &active, Well, &active);
    Ok(())
}

impl Line<'_> {
    /// Calls and judges.
    fn fact(&self, name: &str, arguments: &[&str], ends: Ends, says: &str) {
        let judged = self.call(arguments).and_then(|(code, said)| {
            let ended_well = code == Some(0);
            ensure!(ended_well == matches!(ends, Well), "{arguments:?} ended with {code:?}: {said}");
            ensure!(said.contains(says), "{arguments:?} does not say {says:?}, but: {said}");
            Ok(format!("spire-server {}", arguments.iter().take(3).copied().collect::<Vec<_>>().join(" ")))
        });
        let remark = judged.map(|said| said.split(" -").next().unwrap_or_default().to_owned());
        self.report.fact(&format!("spire-command/{name}"), remark);
    }

    /// Exit code, and everything it said.
    fn call(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = self.spire.command().args(arguments).args(["-socketPath", &self.socket]).output()?;
        let mut said = String::from_utf8(output.stdout)?;
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code(), said))
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let (code, said) = self.call(&[arguments, &["-output", "json"]].concat())?;
        ensure!(code == Some(0), "{arguments:?} ended with {code:?}: {said}");
        serde_json::from_str(&said).with_context(|| format!("{arguments:?} printed {said}"))
    }
}

fn id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}{path}")
}
