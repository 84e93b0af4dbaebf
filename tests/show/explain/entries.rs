//! What is wrong with an entry, or does the workload not have?

use std::process::Command;
use std::time::Duration;

use passant_core::Host;
use passant_tests::node_ca::NodeCa;
use passant_tests::site::{ServerOptions, Site};

use super::{NO_SERVER, Node, Table, WEB, own_pid, own_uid, write};

/// The entry of [`WEB`] is changed from row to row; its node, and two more that look closer or not at all, stay.
pub(super) async fn run(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let unix = |keys: &str| format!("[workload_attestors.unix]\n{keys}\n");
    let node = Node::join(&site, "agent", "").await?;
    let (pid, uid) = (own_pid(), own_uid());
    let of_pid = ["pid", &pid, "--agent-socket", &node.admin];
    let of_web = [&of_pid[..], &["--spiffe-id", WEB]].concat();
    let of = |id| [&of_pid[..], &["--spiffe-id", id]].concat();
    let alone = [&of_web[..], &NO_SERVER].concat();

    table.row("node_without_entries", "a node without any entry", "--parent-id", &site, &of_pid).await;
    table.row("no_entry", "a SPIFFE ID that nobody registered", "no entry grants", &site, &of_web).await;
    let reserved = of("spiffe://example.org/spire/server");
    table.row("reserved_id", "a SPIFFE ID below /spire", "below /spire", &site, &reserved).await;
    let foreign = of("spiffe://other.test/web");
    let planted = "a SPIFFE ID of another trust domain";
    table.row("other_trust_domain", planted, "not of example.org", &site, &foreign).await;

    parents(table, &site, &node, &of_web).await?;
    let change = |args: &[&str]| write(&site, &[&["entry", "update", "web"], args].concat());
    change(&["--parent-id", &node.id])?;
    table.nothing("an entry as it should be", &site, &of_web).await;
    let slip = of("spiffe://example.org/wbe");
    table
        .row(
            "no_entry",
            "two letters that changed places",
            "did you mean spiffe://example.org/web",
            &site,
            &slip,
        )
        .await;
    let elsewhere = [&of("spiffe://example.org/db")[..], &NO_SERVER].concat();
    let planted = "an entry that this node was not given, asked of the node alone";
    table.row("not_on_node", planted, "no entry for", &site, &elsewhere).await;

    change(&["--selector", "unix:uid:4242424"])?;
    let words = format!("unix:uid:4242424 (it has {uid})");
    table.row("selectors_missing", "an entry for another user", &words, &site, &of_web).await;
    change(&["--selector", &uid, "--selector", "unix:supplementary_gid:4242424"])?;
    let words = "asks for unix:supplementary_gid:4242424";
    table
        .row("selectors_missing", "an entry for a group that the user is not in", words, &site, &alone)
        .await;
    change(&["--selector", "docker:label:app:web"])?;
    let planted = "an entry for containers, on an agent that knows none";
    table.row("attestor_missing", planted, "type docker", &site, &of_web).await;
    let of_pod = ["selectors", "k8s:ns:payments", "k8s:sa:api", "--agent", &node.id];
    table.row("no_entry_matches", "a pod that nobody registered", "register", &site, &of_pod).await;
    change(&["--selector", &uid, "--selector", "unix:path:/usr/bin/web"])?;
    let planted = "an entry by path, on an agent that looks at none";
    table.row("attestor_option_off", planted, "discover_workload_path = true", &site, &of_web).await;
    change(&["--selector", &uid, "--store-svid=true"])?;
    table.row("for_secret_store", "an entry for a secret store", "--store-svid=false", &site, &of_web).await;
    change(&["--store-svid=false"])?;

    let seeing = Node::join(&site, "seeing", &unix("discover_workload_path = true")).await?;
    change(&["--parent-id", &seeing.id, "--selector", "unix:path:/usr/bin/web"])?;
    let planted = "an entry of another node";
    table
        .row("of_another_node", planted, &format!("belongs to the node of {}", seeing.id), &site, &of_web)
        .await;
    let of_web_there = ["pid", &pid, "--agent-socket", &seeing.admin, "--spiffe-id", WEB];
    let planted = "an entry for a program at another path";
    table.row("selectors_missing", planted, "(it has unix:path:", &site, &of_web_there).await;
    change(&["--selector", &format!("unix:sha256:{}", "0".repeat(64))])?;
    let planted = "an entry for another build of the program, by its SHA-256";
    table.row("selectors_missing", planted, "(it has unix:sha256:", &site, &of_web_there).await;
    let quick = unix("discover_workload_path = true\nworkload_size_limit = -1");
    let quick = Node::join(&site, "quick", &quick).await?;
    change(&["--parent-id", &quick.id])?;
    let of_web_there = ["pid", &pid, "--agent-socket", &quick.admin, "--spiffe-id", WEB];
    let planted = "an entry by SHA-256, on an agent that hashes no program";
    table.row("attestor_option_off", planted, "workload_size_limit", &site, &of_web_there).await;
    let limited = unix("discover_workload_path = true\nworkload_size_limit = 1");
    let limited = Node::start(&site, "limited", &limited)?;
    let there = ["pid", &pid, "--agent-socket", &limited.admin];
    let planted = "a program that is larger than workload_size_limit";
    table.row("attestation_failed", planted, "unix: ", &site, &there).await;

    federation(table, &site, &node, &of_pid).await?;
    ends(table, &site, &node, &of_web).await?;
    let mut gone = Command::new("true").spawn()?;
    let gone_pid = gone.id().to_string();
    gone.wait()?;
    let of_gone = ["pid", &gone_pid, "--agent-socket", &node.admin];
    table.row("no_such_process", "a process that has ended", "no such process", &site, &of_gone).await;
    site.passant_json(&["agent", "ban", &node.id])?;
    table.row("node_banned", "a ban", "agent evict", &site, &of_web).await;
    Ok(())
}

/// The way up from the entry of [`WEB`], which is made here.
async fn parents(table: &Table<'_>, site: &Site, node: &Node, of_web: &[&str]) -> anyhow::Result<()> {
    let (nowhere, circle) = ("spiffe://example.org/nowhere", "spiffe://example.org/circle");
    let create = |id: &str, spiffe_id: &str, more: &[&str]| {
        let named = ["entry", "create", "--id", id, "--spiffe-id", spiffe_id];
        write(site, &[&named[..], more].concat())
    };
    let below = |parent: &str| write(site, &["entry", "update", "web", "--parent-id", parent]);

    create("web", WEB, &["--parent-id", nowhere, "--selector", &own_uid()])?;
    let planted = "an entry below a SPIFFE ID that nothing has";
    table.row("parent_unknown", planted, "neither an agent nor an entry", site, of_web).await;
    below("spiffe://example.org/spire/agent/x509pop/gone")?;
    let planted = "an entry below an agent that is not there";
    table.row("parent_unknown", planted, "no such agent is attested", site, of_web).await;
    create("pool", nowhere, &["--node", "--selector", "x509pop:subject:cn:db"])?;
    below(nowhere)?;
    let planted = "an entry of nodes that this one is not among";
    table.row("alias_selectors_missing", planted, "x509pop:subject:cn:db", site, of_web).await;
    create("circle", circle, &["--parent-id", circle, "--selector", "unix:uid:77"])?;
    below(circle)?;
    table.row("parent_cycle", "an entry that is its own parent", "in a circle", site, of_web).await;
    below("spiffe://example.org/spire/server")?;
    let planted = "an entry with the server as its parent";
    table.row("node_alias", planted, "names nodes", site, of_web).await;
    below(&node.id)
}

/// What cannot be verified for want of a bundle.
async fn federation(table: &Table<'_>, site: &Site, node: &Node, of_pid: &[&str]) -> anyhow::Result<()> {
    let bundle = NodeCa::new(site.dir())?.file.display().to_string();
    let endpoint = ["other.test", "--url", "https://127.0.0.1:1/", "--web", "--bundle", &bundle];
    write(site, &[&["federation", "create"], &endpoint[..]].concat())?;
    let peer = "spiffe://example.org/peer";
    let named = ["entry", "create", "--spiffe-id", peer, "--parent-id", &node.id, "--selector", &own_uid()];
    write(site, &[&named[..], &["--federates-with", "other.test"]].concat())?;
    let of_peer = [of_pid, &["--spiffe-id", peer]].concat();
    table.nothing("an entry that federates", site, &of_peer).await;
    write(site, &["federation", "delete", "other.test"])?;
    let planted = "a federation that was ended";
    table.row("federated_bundle_missing", planted, "other.test", site, &of_peer).await;
    Ok(())
}

/// Entries that have ended.
async fn ends(table: &Table<'_>, site: &Site, node: &Node, of_web: &[&str]) -> anyhow::Result<()> {
    let instant = |secs| Host::system().now().plus(Duration::from_secs(secs)).to_string();
    let web = ["entry", "update", "web", "--selector", &own_uid(), "--parent-id"];
    write(site, &[&web[..], &[&node.id, "--expires-at", &instant(2)]].concat())?;
    table.row("entry_ended", "an entry that has ended", "--expires-at", site, of_web).await;
    let circle = "spiffe://example.org/circle";
    write(site, &[&web[..], &[circle, "--expires-at", &instant(3600)]].concat())?;
    write(site, &["entry", "update", "circle", "--parent-id", &node.id, "--expires-at", &instant(2)])?;
    table.row("parent_ended", "an entry above that has ended", "hangs below", site, of_web).await;
    write(site, &[&web[..], &[&node.id]].concat())?;
    table.nothing("what had ended goes on", site, of_web).await;
    Ok(())
}
