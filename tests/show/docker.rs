//! Are containers told apart by what a real Docker says of them, and by nothing else?
//!
//! A dockerd is started here; containers run go-spiffe, without a network and with nothing but the agent's socket. Entries
//! ask for a label, a variable, an image by name and one by digest. Processes that only look like a container's get nothing,
//! and the engine may go away and come back. Needs root, as dockerd does.

mod engine;
mod groups;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::api::selector;
use passant_tests::binaries::binaries;
use passant_tests::daemon::Daemon;
use passant_tests::site::{ServerOptions, Site, TRUST_DOMAIN};
use passant_tests::usage::Usage;
use passant_tests::wait::eventually;

use crate::held::{Line, Watch};
use crate::report::{Report, say};

use self::engine::Engine;
use self::groups::Groups;

/// How long anything may take until it shows: entries, containers, an agent that learns that its engine is back.
const WITHIN: Duration = Duration::from_secs(60);
/// Images with the same files, but not the same bytes.
const IMAGES: [&str; 2] = ["passant-show:one", "passant-show:two"];
/// What a container is asked to do by most rows.
const FOLLOW: [&str; 2] = ["/interop", "follow"];
/// More labels than a container may have.
const FLOOD: usize = 600;

/// A site with an agent that asks the engine.
struct Scene {
    agent: Daemon,
    engine: Engine,
    /// go-spiffe, in need of no library.
    interop: PathBuf,
    /// A folder that containers write to.
    out: PathBuf,
    /// Dropped last: the others have something in its folder.
    site: Site,
}

/// Runs the show.
///
/// # Errors
/// What kept it from running to its end.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "dockerd needs root");
    let site = Site::new(&ServerOptions::default())?;
    let engine = Engine::start(site.path("engine")).await?;
    let interop = images(&site, &engine)?;
    let kind = "{{.ServerVersion}}, cgroup driver {{.CgroupDriver}}, version {{.CgroupVersion}}";
    say(&format!("Docker {}", engine.docker(&["info", "--format", kind]).await?));

    let server = site.start_server().await?;
    let digest = engine.docker(&["image", "inspect", "--format", "{{.Id}}", IMAGES[0]]).await?;
    for (path, value) in [
        ("/label", "label:app:web".to_owned()),
        ("/env", "env:MODE=prod".to_owned()),
        ("/image", format!("image_id:{}", IMAGES[0])),
        ("/digest", format!("image_config_digest:{digest}")),
    ] {
        site.register(path, |entry| entry.selectors = vec![selector("docker", &value)]).await?;
    }
    let agent = agent(&site, &engine).await?;
    let out = site.path("out");
    fs::create_dir(&out)?;
    let mut scene = Scene { agent, engine, interop, out, site };

    selectors(report, &scene).await?;
    strangers(report, &scene).await?;
    outage(report, &mut scene).await?;
    removal(report, &scene).await?;

    let Scene { agent, engine, site, .. } = scene;
    report.fact("the agent stops when told to", agent.stop().await.map(|()| String::new()));
    report.fact("the server stops when told to", server.stop().await.map(|()| String::new()));
    engine.end().await?;
    drop(site);
    Ok(())
}

/// Builds go-spiffe's program so that it needs no library, and two images with it.
fn images(site: &Site, engine: &Engine) -> anyhow::Result<PathBuf> {
    let root = site.path("image");
    fs::create_dir(&root)?;
    let interop = root.join("interop");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&interop)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/go"))
        .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=readonly -buildvcs=false")])
        .status()
        .context("failed to start go")?;
    ensure!(built.success(), "the Go peer does not build");
    fs::copy("/bin/busybox", root.join("busybox")).context("busybox is of Debian's busybox-static")?;
    for name in IMAGES {
        fs::write(root.join("name"), name)?;
        engine.import(&root, name)?;
    }
    Ok(interop)
}

async fn agent(site: &Site, engine: &Engine) -> anyhow::Result<Daemon> {
    let socket = engine.socket();
    let tables = format!("[workload_attestors.docker]\ndocker_socket_path = \"unix://{}\"", socket.display());
    site.configure_agent("agent", &format!("method = \"join_token\"\n{tables}\n"), "")?;
    let token = site.join_token().await?;
    let agent = site.spawn_agent("agent", &["--join-token", &token])?;
    site.agent_serves("agent", &agent).await?;
    Ok(agent)
}

impl Scene {
    /// Runs a container in the background.
    async fn run(&self, name: &str, options: &[&str], image: &str, program: &[&str]) -> anyhow::Result<()> {
        let socket = self.site.agent_socket("agent");
        let socket = format!("{}:/agent.sock", socket.display());
        let out = format!("{}:/out", self.out.display());
        let mut arguments = vec!["run", "--detach", "--name", name, "--network", "none", "--volume", &socket];
        arguments.extend(["--volume", &out, "--env", "SPIFFE_ENDPOINT_SOCKET=unix:///agent.sock"]);
        arguments.extend(options.iter().chain(&[image]).chain(program));
        self.engine.docker(&arguments).await.map(drop)
    }

    /// What a container that follows has seen.
    async fn watch(&self, name: &str) -> anyhow::Result<Watch> {
        let lines = self.engine.docker(&["logs", name]).await?;
        let mut watch = Watch::default();
        for line in lines.lines().filter(|line| line.starts_with('{')) {
            watch.take(serde_json::from_str::<Line>(line).with_context(|| line.to_owned())?);
        }
        Ok(watch)
    }

    /// Waits until a container that follows holds exactly the SVIDs of `paths`.
    async fn holds(&self, name: &str, paths: &[&str]) -> anyhow::Result<String> {
        let mut wanted: Vec<String> =
            paths.iter().map(|path| format!("spiffe://{TRUST_DOMAIN}{path}")).collect();
        wanted.sort();
        eventually("the SVIDs of the container", WITHIN, || async {
            let watch = self.watch(name).await?;
            let mut held: Vec<String> = watch.svids.iter().map(|svid| svid.spiffe_id.clone()).collect();
            held.sort();
            ensure!(
                held == wanted && watch.wrong.is_empty(),
                "{held:?}, {:?}, {:?}",
                watch.failures,
                watch.wrong
            );
            Ok(held.join(" "))
        })
        .await
    }

    /// Waits until a container that follows was told that it has no identity; it must never have had one.
    async fn is_refused(&self, name: &str) -> anyhow::Result<String> {
        eventually("the container to be refused", WITHIN, || async {
            let watch = self.watch(name).await?;
            ensure!(watch.svids.is_empty() && watch.since.is_empty(), "it has SVIDs: {:?}", watch.since);
            let refused = watch.failures.iter().find(|why| why.contains("no identity issued"));
            Ok(refused.with_context(|| format!("{:?}", watch.failures))?.clone())
        })
        .await
    }

    /// A command in `sh` on this machine, whose Workload API is the agent's.
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]).stdin(Stdio::null());
        command
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", self.site.agent_socket("agent").display()));
        command
    }

    /// A line of shell that succeeds if it has no identity.
    fn expect_denied(&self) -> String {
        let interop = self.interop.display();
        format!(
            "exec {interop} expect-denied --expect PermissionDenied --expect-message 'no identity issued'"
        )
    }

    /// Whether `line` ends well.
    async fn succeeds(&self, line: &str) -> anyhow::Result<String> {
        let mut command = self.shell(line);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::new())
    }

    /// What `passant explain` says of a process of this node.
    fn explained(&self, pid: u32) -> anyhow::Result<String> {
        let mut command = Command::new(&binaries().passant);
        command.args(["explain", "pid", &pid.to_string(), "--server-socket", "/nowhere", "--agent-socket"]);
        command.arg(self.site.path("agent-data/admin.sock"));
        let output = command.output()?;
        Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until `passant explain` says `words` of the process.
    async fn explains(&self, pid: u32, words: &str) -> anyhow::Result<String> {
        eventually("the cause to be told", WITHIN, || async {
            let told = self.explained(pid)?;
            // Lines are broken to fit a terminal.
            let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(told.contains(words), "no {words:?} in: {told}");
            Ok(format!("\"{words}\""))
        })
        .await
    }
}

/// What is asked for is found, and nothing else.
async fn selectors(report: &Report, scene: &Scene) -> anyhow::Result<()> {
    scene.run("web", &["--label", "app=web", "--env", "MODE=prod"], IMAGES[0], &FOLLOW).await?;
    report.fact(
        "a container has the SVIDs of its label, variable, image and digest",
        scene.holds("web", &["/label", "/env", "/image", "/digest"]).await,
    );
    scene.run("mixed", &["--label", "app=web", "--env", "MODE=test"], IMAGES[1], &FOLLOW).await?;
    report.fact(
        "one of another image and variable has that of its label alone",
        scene.holds("mixed", &["/label"]).await,
    );
    scene.run("other", &["--label", "app=db"], IMAGES[1], &FOLLOW).await?;
    report.fact(
        "one with another label, image and without the variable has none",
        scene.is_refused("other").await,
    );
    // The name is given to another image; what runs is the same.
    scene.engine.docker(&["tag", IMAGES[1], IMAGES[0]]).await?;
    scene.run("renamed", &[], IMAGES[0], &FOLLOW).await?;
    report.fact(
        "an image under a name that was given to it has not the digest",
        scene.holds("renamed", &["/image"]).await,
    );
    let inside = scene.engine.docker(&["exec", "web", "/interop", "fetch", "--audience", "show"]).await;
    report.fact(
        "a process that is started in a running container counts as of it",
        inside.map(|_| String::new()),
    );
    let label = |nth: usize| format!("--label=l{nth}=x");
    let labels: Vec<String> = (0..FLOOD).map(label).collect();
    let mut options: Vec<&str> = labels.iter().map(String::as_str).collect();
    options.extend(["--label", "app=web"]);
    scene.run("flood", &options, IMAGES[1], &FOLLOW).await?;
    report.fact("one with a flood of labels has none", scene.is_refused("flood").await);
    let told = scene.explains(scene.engine.pid("flood").await?, "labels and variables, over").await;
    report.fact("and `passant explain` says so", told);
    for name in ["mixed", "other", "renamed", "flood"] {
        scene.engine.docker(&["rm", "--force", name]).await?;
    }
    Ok(())
}

/// Processes of no container, whatever they look like.
async fn strangers(report: &Report, scene: &Scene) -> anyhow::Result<()> {
    let denied = scene.expect_denied();
    report.fact("a process of the host has none", scene.succeeds(&denied).await);

    let container = Groups::of(scene.engine.pid("web").await?)?;
    let spoof = container.named_alike(&format!("passant-show-{}", std::process::id()))?;
    let enter = spoof.enter();
    ensure!(!enter.is_empty(), "no control group could be named after the container");
    report.fact(
        "one in a control group that is named after a container has none",
        scene.succeeds(&format!("{enter}{denied}")).await,
    );
    let mut sleeping = scene.shell(&format!("{enter}exec sleep 600")).spawn()?;
    let told = scene.explains(sleeping.id(), "but is not that of the container").await;
    report.fact("and `passant explain` says why", told);
    end(&mut sleeping)?;
    drop(spoof);

    let mut mounts = String::new();
    for (mount, place) in container.places() {
        mounts += &format!("mount --bind {} {} && ", place.display(), mount.display());
    }
    let line = format!("unshare --mount --propagation private sh -c \"{mounts}{denied}\"");
    report.fact("one whose mounts are those of a container has none", scene.succeeds(&line).await);
    Ok(())
}

/// The engine goes away and comes back; neither agent nor containers are restarted.
async fn outage(report: &Report, scene: &mut Scene) -> anyhow::Result<()> {
    let again =
        "while :; do /interop fetch --audience show --timeout 3s >>/out/log 2>&1; /busybox sleep 1; done";
    scene.run("again", &["--label", "app=web"], IMAGES[1], &["/busybox", "sh", "-c", again]).await?;
    let log = scene.out.join("log");
    let said = |words: &'static str| {
        let log = &log;
        eventually(words, WITHIN, move || async move {
            let text = fs::read_to_string(log)?;
            let last = text.lines().last().unwrap_or_default().to_owned();
            ensure!(last.contains(words), "{last}");
            Ok(String::new())
        })
    };
    report.fact("a container that connects again and again is served", said("\"spiffe_id\"").await);
    let web = scene.engine.pid("web").await?;
    let before = scene.watch("web").await?.updates;

    scene.engine.stop().await?;
    fs::write(&log, "")?;
    report.fact("without the engine it is told to come again", said("Unavailable").await);
    let denials = fs::read_to_string(&log)?.matches("PermissionDenied").count();
    report.fact("and never that it has no identity", none(denials));
    let told = scene.explains(web, "failed to ask the engine at").await;
    report.fact("`passant explain` names the engine meanwhile", told);
    let warned = scene.agent.log().lines().any(|line| line.contains("failed to ask the engine at"));
    report.fact("and so does the agent's log", none(usize::from(!warned)));

    scene.engine.start_again().await?;
    report.fact("once the engine is back it is served again", said("\"spiffe_id\"").await);
    let watch = scene.watch("web").await?;
    let (lost, failures) = (watch.updates.saturating_sub(before), watch.failures.len());
    report.fact("the watch that was open has noticed nothing", none(lost + failures));
    scene.engine.docker(&["rm", "--force", "again"]).await?;
    Ok(())
}

/// A container is removed.
async fn removal(report: &Report, scene: &Scene) -> anyhow::Result<()> {
    let agent = scene.agent.pid();
    let open = Usage::of(agent)?.descriptors;
    scene.engine.docker(&["rm", "--force", "web"]).await?;
    let closed = eventually("the agent to let go of the connection", WITHIN, || async {
        let now = Usage::of(agent)?.descriptors;
        ensure!(now < open, "{now} descriptors of {open}");
        Ok(format!("{open} descriptors, then {now}"))
    });
    report.fact("the stream of a container that is removed ends", closed.await);
    scene.run("web", &["--label", "app=db"], IMAGES[1], &FOLLOW).await?;
    report.fact("another container of the same name has its own selectors", scene.is_refused("web").await);
    Ok(())
}

fn none(count: usize) -> anyhow::Result<String> {
    ensure!(count == 0, "{count} times");
    Ok(String::new())
}

fn end(child: &mut Child) -> anyhow::Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}
