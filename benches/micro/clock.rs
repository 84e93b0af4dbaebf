//! How long did something take?

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time that the calling thread has worked while it did `work`. What other programs take is not in it.
pub(crate) fn on_this_core(work: impl FnOnce()) -> Duration {
    between(ClockId::ThreadCPUTime, work)
}

/// The time that has passed meanwhile, waiting included.
pub(crate) fn on_the_wall(work: impl FnOnce()) -> Duration {
    between(ClockId::Monotonic, work)
}

/// The present instant of a clock that only moves on.
pub(crate) fn now() -> Duration {
    read(ClockId::Monotonic)
}

fn between(clock: ClockId, work: impl FnOnce()) -> Duration {
    let began = read(clock);
    work();
    read(clock).saturating_sub(began)
}

fn read(clock: ClockId) -> Duration {
    let at = clock_gettime(clock);
    let whole = u64::try_from(at.tv_sec).expect("these clocks begin at zero");
    Duration::new(whole, u32::try_from(at.tv_nsec).expect("a second has fewer nanoseconds"))
}
