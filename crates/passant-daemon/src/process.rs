//! What does the process itself use: memory, descriptors, processor time?
//!
//! Names are those that every Prometheus client gives, so that common dashboards find them.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use passant_core::UnixTime;

use crate::metrics::Registry;

/// A registry that tells the use of this process, which began at `started`.
pub fn registry(started: UnixTime) -> Registry {
    let mut registry = Registry::without_prefix();
    registry.watch("process_resident_memory_bytes", "Memory of the process that is in use", |()| {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        Some(kib(&status, "VmRSS:")? * 1024.0)
    });
    registry.watch("process_open_fds", "Open file descriptors", |()| {
        // Reading the directory opens one more.
        let open = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
        Some(f64::from(u32::try_from(open).ok()?))
    });
    registry.watch("process_max_fds", "The most file descriptors that may be open", |()| {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        Some(f64::from(u32::try_from(soft).unwrap_or(u32::MAX)))
    });
    registry.watch_counter("process_cpu_seconds", "Processor time spent in user and system mode", || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        Some(seconds(usage.user_time()) + seconds(usage.system_time()))
    });
    let started = seconds_of(started);
    registry.watch(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970",
        move |()| Some(started),
    );
    registry
}

/// A moment as Prometheus wants it: seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "a date in seconds is far below 2^53")]
pub fn seconds_of(moment: UnixTime) -> f64 {
    moment.secs() as f64
}

fn kib(status: &str, key: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "seconds and microseconds of processor time are far below 2^53"
)]
fn seconds(time: nix::sys::time::TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::encode;

    /// Other tests of this process open, close and free what they like meanwhile, and a kernel may add up memory over its
    /// processors only now and then: so what is looked for is held by this test, and is much.
    #[test]
    fn what_this_process_holds_is_in_its_numbers() {
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let files: Vec<fs::File> = (0..40).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let text = encode([&registry(UnixTime::from_secs(1_790_000_000))]).unwrap();
        drop((memory, files));
        let check = |name: &str, least: f64, most: f64| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value: f64 = line.unwrap_or_else(|| panic!("no {name}in\n{text}")).trim().parse().unwrap();
            assert!((least..=most).contains(&value), "{name}is not from {least} to {most} in\n{text}");
            value
        };
        let most = check("process_max_fds ", 40.0, f64::MAX);
        check("process_open_fds ", 40.0, most);
        check("process_resident_memory_bytes ", f64::from(32 << 20), f64::MAX);
        check("process_cpu_seconds_total ", 0.0, f64::MAX);
        check("process_start_time_seconds ", 1_790_000_000.0, 1_790_000_000.0);
    }

    #[test]
    fn a_key_that_is_not_there_has_no_value() {
        assert_eq!(kib("VmSize:\t 12 kB\nVmRSS:\t 34 kB\n", "VmRSS:"), Some(34.0));
        assert_eq!(kib("VmSize:\t 12 kB\n", "VmRSS:"), None);
    }
}
