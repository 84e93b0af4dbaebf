//! Can the agent not see the process?

use std::fs;

use anyhow::{Context, ensure};
use nix::unistd::Uid;
use passant_tests::site::{ServerOptions, Site};

use super::{Node, Table, own_pid};

/// Agents that look at the machine from where they see too little of it.
pub(super) async fn run(table: &Table<'_>) -> anyhow::Result<()> {
    let site = Site::new(&ServerOptions::default())?;
    let _server = site.start_server().await?;
    let pid = own_pid();
    // As in a container without hostPID.
    let mut contained = vec!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !Uid::effective().is_root() {
        contained.extend(["--user", "--map-current-user"]);
    }
    let contained = Node::under(&site, "contained", &contained)?;
    let asked = ["pid", &pid, "--agent-socket", &contained.admin];
    let planted = "an agent in a pid namespace of its own";
    table.row("foreign_pid_namespace", planted, "hostPID: true", &site, &asked).await;

    may_hide_processes()?;
    for (hidepid, planted) in [
        ("1", "an agent without rights, where /proc shows nothing of others' processes (hidepid=1)"),
        ("2", "an agent without rights, where /proc does not show that they run (hidepid=2)"),
    ] {
        let name = format!("blind-{hidepid}");
        // Of the own user, but without the capabilities that this process has; and not of the group that is exempt.
        let hide = format!(
            "mount -t proc -o hidepid={hidepid},gid=65534 proc /proc && exec setpriv --bounding-set=-all --inh-caps=-all \"$@\""
        );
        let blind = Node::under(&site, &name, &["unshare", "--mount", "sh", "-c", &hide, "sh"])?;
        let asked = ["pid", &pid, "--agent-socket", &blind.admin];
        table.row("process_unreadable", planted, "hidepid", &site, &asked).await;
    }
    Ok(())
}

/// Whether /proc can be mounted again with other options, for one process alone.
fn may_hide_processes() -> anyhow::Result<()> {
    ensure!(Uid::effective().is_root(), "process_unreadable needs root, to mount /proc for an agent");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().context("no version")?, numbers.next().unwrap_or_default());
    // Before, the options of one mount were those of all.
    ensure!(version >= (5, 8), "process_unreadable needs Linux 5.8, this is {release}");
    Ok(())
}
