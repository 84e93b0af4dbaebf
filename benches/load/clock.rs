//! What time is it, for all processes of a run alike?

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on the clock that only moves on, which all processes of a machine share.
pub(crate) fn now() -> f64 {
    read(ClockId::Monotonic)
}

/// Milliseconds that the calling thread has worked so far.
pub(crate) fn worked() -> f64 {
    read(ClockId::ThreadCPUTime)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds of a second, and seconds since the machine's start"
)]
fn read(clock: ClockId) -> f64 {
    let at = clock_gettime(clock);
    at.tv_sec as f64 * 1e3 + at.tv_nsec as f64 / 1e6
}
