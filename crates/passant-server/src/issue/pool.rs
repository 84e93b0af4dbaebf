//! On which threads is signed?
//!
//! Signatures, and the checks of signatures in CSRs, take a tenth of a millisecond each and come in batches: they are made
//! on the blocking threads, as many at a time as there are cores, so that the I/O threads stay free to answer. Those for
//! whom is signed take turns: an agent with a hundred large batches delays its own requests, and each other's by one part.

use std::num::NonZeroUsize;
use std::sync::Arc;

use passant_core::SpiffeId;
use passant_daemon::turns::Turns;
use thiserror::Error;
use tokio::task::JoinHandle;

/// How many items one turn on a thread takes at most, so that a lone request gets in between the parts of a large batch.
const PART: usize = 16;

/// Where signing work is done, and for whom. Clones share the threads.
#[derive(Clone, Debug)]
pub struct SigningPool {
    place: Place,
    asker: Asker,
}

#[derive(Clone, Debug)]
enum Place {
    /// At the caller, at once: for simulation and tests, where order must not depend on threads.
    Inline,
    /// On tokio's blocking threads, so many at a time as there are turns.
    Threads(Turns<Asker>),
}

/// For whom is signed. Each takes its turn after the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// The server itself: authorities and its own SVID.
    Server,
    /// Operators, all together.
    Operators,
    /// Nodes that attest, all together; who they are is not known yet, and how many there may be at a time is bounded.
    Nodes,
    /// One agent.
    Agent(SpiffeId),
    /// One server below this one.
    Downstream(SpiffeId),
}

/// Work was lost because it panicked, or the runtime is going down.
#[derive(Debug, Error)]
#[error("signing work did not finish")]
pub struct PoolError(#[from] tokio::task::JoinError);

impl SigningPool {
    /// Does all work at the caller, in order.
    pub const fn inline() -> Self {
        Self { place: Place::Inline, asker: Asker::Server }
    }

    /// Does work on `width` threads at a time.
    pub fn threads(width: NonZeroUsize) -> Self {
        // One asker may have all threads while nobody else wants them.
        Self { place: Place::Threads(Turns::new(width.get(), width.get())), asker: Asker::Server }
    }

    /// One thread for each core of the machine.
    pub fn of_machine() -> Self {
        Self::threads(std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// The same threads, for `asker` in its turn.
    #[must_use]
    pub fn on_behalf_of(&self, asker: Asker) -> Self {
        Self { place: self.place.clone(), asker }
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
        self.map_parts(items, move |part| part.into_iter().map(&work).collect()).await
    }

    /// The same for `work` that takes all items of one turn together, and gives a result for each in their order.
    ///
    /// # Errors
    /// As [`SigningPool::map`].
    pub async fn map_parts<I, O, F>(&self, items: Vec<I>, work: F) -> Result<Vec<O>, PoolError>
    where
        I: Send + 'static,
        O: Send + 'static,
        F: Fn(Vec<I>) -> Vec<O> + Send + Sync + 'static,
    {
        let turns = match &self.place {
            Place::Inline => return Ok(work(items)),
            Place::Threads(turns) => turns,
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
            let turn = turns.take(self.asker.clone()).await;
            let work = Arc::clone(&work);
            parts.push(tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work(part)
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
        let turns = match &self.place {
            Place::Inline => return Ok(work()),
            Place::Threads(turns) => turns,
        };
        let turn = turns.take(self.asker.clone()).await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
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
    async fn the_items_of_one_turn_come_together() {
        let pool = SigningPool::threads(NonZeroUsize::new(3).unwrap());
        let sizes =
            pool.map_parts(vec![(); 2 * PART + 3], |part| vec![part.len(); part.len()]).await.unwrap();
        assert_eq!(sizes, [vec![PART; 2 * PART], vec![3; 3]].concat());
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
    async fn a_lone_request_gets_in_between_the_parts_of_anothers_batches() {
        let pool = SigningPool::threads(NonZeroUsize::MIN);
        let agent = |name: &str| {
            pool.on_behalf_of(Asker::Agent(
                SpiffeId::parse(&format!("spiffe://example.org/spire/agent/{name}")).unwrap(),
            ))
        };
        let done = Arc::new(AtomicUsize::new(0));
        let mut batches = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (greedy, done) = (agent("greedy"), Arc::clone(&done));
            batches.spawn(async move {
                greedy.map(vec![(); 4 * PART], move |()| done.fetch_add(1, Ordering::SeqCst)).await
            });
        }
        // On this one thread, all of them have begun to wait once this task runs again.
        tokio::task::yield_now().await;
        let seen = Arc::clone(&done);
        let before = agent("modest").run(move || seen.load(Ordering::SeqCst)).await.unwrap();
        assert!(before <= 3 * PART, "{before} signatures of another agent came first");
        batches.join_all().await.into_iter().for_each(|batch| drop(batch.unwrap()));
        assert_eq!(done.load(Ordering::SeqCst), 50 * 4 * PART);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_costs_no_thread() {
        let pool = SigningPool::threads(NonZeroUsize::MIN);
        assert!(pool.map(vec![1, 2], |n: i32| assert_ne!(n, 2)).await.is_err());
        assert_eq!(pool.run(|| 1).await.unwrap(), 1);
    }
}
