//! How long is a condition waited for, and what is said when it does not come?

use std::future::Future;
use std::time::Duration;

use anyhow::bail;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(50);

/// What `attempt` gives as soon as it gives something.
///
/// # Errors
/// When `within` has passed; the error names `what` and the last failure.
pub async fn eventually<T, F>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = tokio::time::Instant::now() + within;
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                bail!("waited {within:?} for {what}; last: {error:#}");
            }
            Err(_) => {}
        }
    }
}
