//! What does a running process use of the machine?

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// One look at a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Resident memory, in KiB.
    pub resident: u64,
    /// What of it no file backs, in KiB: heap and stacks.
    pub anonymous: u64,
    /// Threads.
    pub threads: u64,
    /// CPU time spent so far, in user and kernel mode.
    pub cpu: Duration,
}

impl Usage {
    /// What the process `pid` uses now.
    ///
    /// # Errors
    /// When it is gone, or of another user.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = value.and_then(|value| value.split_ascii_whitespace().next());
            Ok(value.with_context(|| format!("no {name} in status"))?.parse()?)
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let (resident, anonymous, threads) = (field("VmRSS")?, field("RssAnon")?, field("Threads")?);
        Ok(Self { descriptors, resident, anonymous, threads, cpu: cpu(pid)? })
    }
}

fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("stat without a command")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || -> anyhow::Result<u64> { Ok(fields.next().context("a short stat")?.parse()?) };
    let spent = ticks()? + ticks()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    let per_second = u64::try_from(per_second)?;
    Ok(Duration::from_millis(spent * 1000 / per_second.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_uses_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.descriptors >= 3 && usage.resident > 0 && usage.threads >= 1, "{usage:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }
}
