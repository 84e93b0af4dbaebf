//! Where does the one writer of a journal or of a record run, and when is it called again?

use std::time::Duration;

use passant_core::Host;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use crate::limits::{HEAL_FIRST, HEAL_MOST};

/// Where blocking work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a thread of its own, since the work waits for a disk.
    Thread,
    /// In a task of the tokio runtime that is current, since the work never waits. This keeps a simulation on one
    /// thread, and its order the same every time.
    Task,
}

/// When the work is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When a message comes. A pause that was begun is forgotten.
    Message,
    /// When a message comes, or with none after this pause.
    After(Duration),
    /// When a message comes, or at the end of the pause that was begun before.
    Meanwhile,
    /// Never.
    End,
}

/// Starts the writer `name`: hands `work` whatever has queued up, at most `most` messages; none when a pause has ended.
/// It goes on until `work` says [`Next::End`] or every sender is gone. Then `work` is dropped, with all it owns.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn start<M, W>(
    name: &str,
    place: Place,
    queue: UnboundedReceiver<M>,
    most: usize,
    work: W,
) -> std::io::Result<()>
where
    M: Send + 'static,
    W: FnMut(Vec<M>) -> Next + Send + 'static,
{
    match place {
        Place::Thread => {
            // Only for its timer: the thread waits for the disk, so nothing else may run there.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || runtime.block_on(run(queue, most, work)))?;
        }
        Place::Task => drop(tokio::spawn(run(queue, most, work))),
    }
    Ok(())
}

async fn run<M>(mut queue: UnboundedReceiver<M>, most: usize, mut work: impl FnMut(Vec<M>) -> Next) {
    let mut due: Option<Instant> = None;
    loop {
        let first = match due {
            None => queue.recv().await.map(Some),
            Some(due) => timeout_at(due, queue.recv()).await.map_or(Some(None), |first| first.map(Some)),
        };
        let Some(first) = first else { return };
        let batch = first.map_or_else(Vec::new, |first| with_waiting(first, &mut queue, most));
        match work(batch) {
            Next::Message => due = None,
            Next::After(pause) => due = Some(Instant::now() + pause),
            Next::Meanwhile => {}
            Next::End => return,
        }
    }
}

fn with_waiting<M>(first: M, queue: &mut UnboundedReceiver<M>, most: usize) -> Vec<M> {
    let mut batch = vec![first];
    while batch.len() < most {
        match queue.try_recv() {
            Ok(message) => batch.push(message),
            Err(_) => break,
        }
    }
    batch
}

/// The pauses between attempts to open again what has failed: doubled each time, within bounds, and spread by a tenth.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    failures: u32,
}

impl Pauses {
    /// The pause after one more failure.
    pub(crate) fn next(&mut self, host: &Host) -> Duration {
        let pause = HEAL_FIRST.saturating_mul(2_u32.saturating_pow(self.failures.min(16))).min(HEAL_MOST);
        self.failures += 1;
        host.jitter().between(pause.mul_f64(0.9), pause.mul_f64(1.1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_with_no_message_and_messages_do_not_prolong_it() {
        let (queue, messages) = mpsc::unbounded_channel();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let began = Instant::now();
        let seen = Arc::clone(&calls);
        let work = move |batch: Vec<Next>| {
            seen.lock().unwrap().push((began.elapsed().as_secs(), batch.len()));
            batch.last().copied().unwrap_or(Next::Message)
        };
        start("test", Place::Task, messages, 8, work).unwrap();
        let wait = |secs| tokio::time::sleep(Duration::from_secs(secs));
        queue.send(Next::After(Duration::from_secs(10))).unwrap();
        wait(6).await;
        queue.send(Next::Meanwhile).unwrap();
        wait(60).await;
        queue.send(Next::End).unwrap();
        queue.closed().await;
        assert_eq!(*calls.lock().unwrap(), [(0, 1), (6, 1), (10, 0), (66, 1)]);
    }

    #[test]
    fn pauses_grow_within_bounds() {
        let host = Host::system();
        let mut pauses = Pauses::default();
        let all: Vec<Duration> = (0..40).map(|_| pauses.next(&host)).collect();
        assert!(all[0] <= HEAL_FIRST.mul_f64(1.1) && all[1] > all[0]);
        assert!(all[39] >= HEAL_MOST.mul_f64(0.9) && all[39] <= HEAL_MOST.mul_f64(1.1));
    }
}
