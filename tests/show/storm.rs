//! Does the agent stay small and quick while thousands of short-lived processes ask it for their identities?
//!
//! Real processes start at a fixed pace. Most fetch their X509-SVIDs and exit; some vanish at every point before that. The
//! agent is watched from outside, by what `/proc` tells of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use passant_tests::api::fetch_x509;
use passant_tests::site::{READY_WITHIN, ServerOptions, Site};
use passant_tests::usage::Usage;
use passant_tests::wait::eventually;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use crate::caller::How;
use crate::report::{Report, say};

/// What twenty processes do, one after another.
const MIX: [How; 20] = {
    let mut mix = [How::Fetch; 20];
    mix[4] = How::Connect;
    mix[9] = How::Half;
    mix[14] = How::Ask;
    mix[19] = How::Jwt;
    mix
};
/// Entries that match each process: as many SVIDs are in each answer.
const ENTRIES: usize = 3;
/// How often the agent is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Processes that run at a time at most: the machine, not the agent, is too slow for more.
const AT_ONCE: usize = 200;
/// Share of the wanted pace that must be reached for the show to mean something, in percent.
const PACE_PERCENT: u128 = 95;
/// CPU of the agent, in percent of a core. A build without optimization is judged by five times of it.
const CPU_PERCENT: u128 = if cfg!(debug_assertions) { 50 } else { 10 };
/// How far apart the means of the first and the last third may be: what runs at a moment, and what an allocator keeps.
const DESCRIPTORS_APART: u64 = 16;
/// The same of resident memory, in KiB.
const RESIDENT_APART: u64 = 4 * 1024;
/// The same of threads: those that look at files come and go.
const THREADS_APART: u64 = 8;

/// Starts `per_minute` processes a minute for `length`.
///
/// # Errors
/// What kept the show from running to its end.
pub(crate) async fn run(report: &Report, per_minute: u32, length: Duration) -> anyhow::Result<()> {
    ensure!(per_minute > 0, "without processes there is nothing to see");
    let site = Site::new(&ServerOptions::default())?;
    let server = site.start_server().await?;
    for n in 0..ENTRIES {
        site.register(&format!("/w{n}"), |_| {}).await?;
    }
    configure(&site)?;
    let mut agent = site.spawn_agent("agent", &["--join-token", &site.join_token().await?])?;
    site.agent_serves("agent", &agent).await?;
    let socket = site.agent_socket("agent");
    eventually("the first SVIDs", READY_WITHIN, || async {
        ensure!(fetch_x509(&socket).await?.svids.len() == ENTRIES, "not all SVIDs are there");
        Ok(())
    })
    .await?;
    let before = Usage::of(agent.pid())?;
    say(&format!("before: {}", told(&before)));

    // Dropped at the end: that is the sign to stop watching.
    let (over, stop) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn(watch(agent.pid(), stop));
    let began = Instant::now();
    let crowd = start_all(&socket, per_minute, length).await?;
    let took = began.elapsed();
    drop::<tokio::sync::oneshot::Sender<()>>(over);
    let samples = watching.await??;
    let after = samples.last().copied().unwrap_or(before);
    judge_crowd(report, &crowd, per_minute, length, took);
    judge_agent(report, &before, &samples, took);

    let quiet = eventually("the agent to have forgotten them", READY_WITHIN, || async {
        let now = Usage::of(agent.pid())?;
        ensure!(
            now.descriptors <= before.descriptors + 2,
            "{} before, {} now",
            before.descriptors,
            now.descriptors
        );
        Ok(format!("{} descriptors before, {} now", before.descriptors, now.descriptors))
    });
    report.fact("nothing of them stays behind", quiet.await);
    say(&format!("after: {}", told(&after)));
    let lines = agent.log().lines().count();
    say(&format!("lines in the agent's log: {lines}"));
    let is_alive = agent.ended()?.is_none();
    report.fact("the agent lived through it", is_alive.then(String::new).context("it has ended"));
    report.fact("the agent stops when told to", agent.stop().await.map(|()| String::new()));
    report.fact("the server stops when told to", server.stop().await.map(|()| String::new()));
    Ok(())
}

/// An agent as one runs it: it tells only what matters, and looks at executables too.
fn configure(site: &Site) -> anyhow::Result<()> {
    site.configure_agent("agent", "method = \"join_token\"", "")?;
    let file = site.path("agent.toml");
    let text = fs::read_to_string(&file)?.replace("level = \"debug\"", "level = \"info\"");
    let attestor = "[workload_attestors.unix]\ndiscover_workload_path = true\n";
    Ok(fs::write(&file, format!("{text}\n{attestor}"))?)
}

/// What the processes came to.
#[derive(Default)]
struct Crowd {
    started: u64,
    honest: u64,
    failures: Vec<String>,
}

/// Starts processes at their pace, and waits for the last.
async fn start_all(socket: &Path, per_minute: u32, length: Duration) -> anyhow::Result<Crowd> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let wanted = u64::try_from(length.as_millis() * u128::from(per_minute) / 60_000)?;
    let mut pace = interval(Duration::from_secs(60) / per_minute);
    // The pace is kept on the whole: what was late is made up for.
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut crowd, mut running) = (Crowd::default(), JoinSet::new());
    for how in MIX.into_iter().cycle().take(usize::try_from(wanted)?) {
        pace.tick().await;
        while running.len() >= AT_ONCE {
            crowd.take(running.join_next().await.context("there are some")??);
        }
        while let Some(ended) = running.try_join_next() {
            crowd.take(ended?);
        }
        let mut command = Command::new(&program);
        command.args(["caller", "--how", how.name(), "--socket"]).arg(socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        crowd.started += 1;
        running.spawn_blocking(move || (how, command.output()));
    }
    while let Some(ended) = running.join_next().await {
        crowd.take(ended?);
    }
    Ok(crowd)
}

impl Crowd {
    fn take(&mut self, (how, ended): (How, std::io::Result<std::process::Output>)) {
        self.honest += u64::from(how.is_honest());
        match ended {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                self.failures.push(format!("{}: {}", how.name(), said.trim()));
            }
            Err(error) => self.failures.push(format!("{} did not start: {error}", how.name())),
        }
    }
}

/// Looks at the process `pid` until `stop` is dropped.
async fn watch(pid: u32, mut stop: tokio::sync::oneshot::Receiver<()>) -> anyhow::Result<Vec<Usage>> {
    let mut looks = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    let mut samples = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stop => return Ok(samples),
            _ = looks.tick() => samples.push(Usage::of(pid)?),
        }
    }
}

fn judge_crowd(report: &Report, crowd: &Crowd, per_minute: u32, length: Duration, took: Duration) {
    let reached = u128::from(crowd.started) * 60_000 / took.as_millis().max(1);
    say(&format!("{} processes in {} s: {reached} a minute", crowd.started, took.as_secs()));
    report.none("every honest process got its SVIDs", &crowd.failures, &format!("{} of them", crowd.honest));
    let is_enough = reached * 100 >= u128::from(per_minute) * PACE_PERCENT;
    let pace = is_enough.then(|| format!("{reached} a minute for {} s", length.as_secs()));
    report.fact(
        "processes started at their pace",
        pace.with_context(|| format!("only {reached} a minute: the machine is too slow for {per_minute}")),
    );
}

fn judge_agent(report: &Report, before: &Usage, samples: &[Usage], took: Duration) {
    let third = samples.len() / 3;
    if third == 0 {
        return report.fact("the agent was watched", Err(anyhow::anyhow!("the show was too short to tell")));
    }
    // The first look is taken when all caches are warm: that is what is to stay.
    let (first, last) = (&samples[..third], &samples[samples.len() - third..]);
    for line in samples.chunks(samples.len().div_ceil(10)).filter_map(<[Usage]>::last) {
        say(&format!("  {}", told(line)));
    }
    let flat = |name: &str, apart: u64, unit: &str, of: &dyn Fn(&Usage) -> u64| {
        let mean = |part: &[Usage]| part.iter().map(of).sum::<u64>() / third as u64;
        let most = samples.iter().map(of).max().unwrap_or(0);
        let (early, late) = (mean(first), mean(last));
        let text = format!("{early} in the first third, {late} in the last, {most} at most{unit}");
        let outcome = if late <= early + apart { Ok(text) } else { Err(anyhow::anyhow!(text)) };
        report.fact(&format!("the agent's {name} stay flat"), outcome);
    };
    flat("descriptors", DESCRIPTORS_APART, "", &|usage| usage.descriptors as u64);
    flat("resident pages", RESIDENT_APART, " KiB", &|usage| usage.resident);
    flat("threads", THREADS_APART, "", &|usage| usage.threads);
    let spent = samples.last().map_or(Duration::ZERO, |last| last.cpu.saturating_sub(before.cpu));
    let tenths = spent.as_millis() * 1000 / took.as_millis().max(1);
    let text = format!(
        "{} ms in {} s, {}.{} % of a core",
        spent.as_millis(),
        took.as_secs(),
        tenths / 10,
        tenths % 10
    );
    let outcome = if tenths < CPU_PERCENT * 10 { Ok(text) } else { Err(anyhow::anyhow!(text)) };
    report.fact(&format!("the agent takes less than {CPU_PERCENT} % of a core"), outcome);
}

fn told(usage: &Usage) -> String {
    let Usage { descriptors, resident, anonymous: _, threads, cpu } = usage;
    format!(
        "{descriptors} descriptors, {resident} KiB resident, {threads} threads, {} ms CPU",
        cpu.as_millis()
    )
}
