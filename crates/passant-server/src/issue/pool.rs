//! On which threads is signed?
//!
//! Signatures, and the checks of signatures in CSRs, take a tenth of a millisecond each and come in batches: they are made
//! on the blocking threads, as many at a time as there are cores, so that the I/O threads stay free to answer.

use std::num::NonZeroUsize;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// How many items one turn on a thread takes at most, so that a lone request gets in between the parts of a large batch.
const PART: usize = 16;

/// Where signing work is done. Clones share the threads.
#[derive(Clone, Debug)]
pub struct SigningPool(Place);

#[derive(Clone, Debug)]
enum Place {
    /// At the caller, at once: for simulation and tests, where order must not depend on threads.
    Inline,
    /// On tokio's blocking threads, so many at a time as there are permits.
    Threads(Arc<Semaphore>),
}

/// Work was lost because it panicked, or the runtime is going down.
#[derive(Debug, Error)]
#[error("signing work did not finish")]
pub struct PoolError(#[from] tokio::task::JoinError);

impl SigningPool {
    /// Does all work at the caller, in order.
    pub const fn inline() -> Self {
        Self(Place::Inline)
    }

    /// Does work on `width` threads at a time.
    pub fn threads(width: NonZeroUsize) -> Self {
        Self(Place::Threads(Arc::new(Semaphore::new(width.get()))))
    }

    /// One thread for each core of the machine.
    pub fn of_machine() -> Self {
        Self::threads(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Does `work` on every item; results are in the order of the items.
    ///
    /// # Errors
    /// When the work on some item panicked: then nothing of the batch is known.
    pub async fn map<I, O, F>(&self, items: Vec<I>, work: F) -> Result<Vec<O>, PoolError>
    where
        I: Send + 'static,
        O: Send + 'static,
        F: Fn(I) -> O + Send + Sync + 'static,
    {
        let permits = match &self.0 {
            Place::Inline => return Ok(items.into_iter().map(work).collect()),
            Place::Threads(permits) => permits,
        };
        let work = Arc::new(work);
        let mut parts: Vec<JoinHandle<Vec<O>>> = Vec::with_capacity(items.len().div_ceil(PART));
        let mut results = Vec::with_capacity(items.len());
        let mut items = items.into_iter();
        loop {
            let part: Vec<I> = items.by_ref().take(PART).collect();
            if part.is_empty() {
                break;
            }
            let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
            let work = Arc::clone(&work);
            parts.push(tokio::task::spawn_blocking(move || {
                let _permit = permit;
                part.into_iter().map(&*work).collect()
            }));
        }
        for part in parts {
            results.extend(part.await?);
        }
        Ok(results)
    }

    /// Does one piece of work.
    ///
    /// # Errors
    /// When it panicked.
    pub async fn run<O, F>(&self, work: F) -> Result<O, PoolError>
    where
        O: Send + 'static,
        F: FnOnce() -> O + Send + 'static,
    {
        let permits = match &self.0 {
            Place::Inline => return Ok(work()),
            Place::Threads(permits) => permits,
        };
        let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        Ok(done.await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn both() -> [SigningPool; 2] {
        [SigningPool::inline(), SigningPool::threads(NonZeroUsize::new(3).unwrap())]
    }

    #[tokio::test]
    async fn results_come_in_the_order_of_the_items() {
        for pool in both() {
            for count in [0, 1, PART, PART + 1, 10 * PART + 3] {
                let doubled = pool.map((0..count).collect(), |n| n * 2).await.unwrap();
                assert_eq!(doubled, (0..count).map(|n| n * 2).collect::<Vec<_>>(), "{pool:?} {count}");
            }
            assert_eq!(pool.run(|| 7).await.unwrap(), 7);
        }
    }

    #[tokio::test]
    async fn no_more_threads_work_than_the_pool_is_wide() {
        let pool = SigningPool::threads(NonZeroUsize::new(2).unwrap());
        let working = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (now, peak) = (Arc::clone(&working), Arc::clone(&most));
        let work = move |_| {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
        };
        pool.map(vec![(); 40 * PART], work).await.unwrap();
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_costs_no_thread() {
        let pool = SigningPool::threads(NonZeroUsize::MIN);
        assert!(pool.map(vec![1, 2], |n: i32| assert_ne!(n, 2)).await.is_err());
        assert_eq!(pool.run(|| 1).await.unwrap(), 1);
    }
}
