//! Where does the one writer of a journal or of a record run?

use tokio::sync::mpsc::UnboundedReceiver;

/// Where blocking work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a thread of its own, since the work waits for a disk.
    Thread,
    /// In a task of the tokio runtime that is current, since the work never waits. This keeps a simulation on one
    /// thread, and its order the same every time.
    Task,
}

/// Starts the writer `name`: hands `work` whatever has queued up, at least one message and at most `most`, until it
/// answers `None` or every sender is gone. Then `work` is dropped, with all it owns.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn start<M, W>(
    name: &str,
    place: Place,
    mut queue: UnboundedReceiver<M>,
    most: usize,
    mut work: W,
) -> std::io::Result<()>
where
    M: Send + 'static,
    W: FnMut(Vec<M>) -> Option<()> + Send + 'static,
{
    match place {
        Place::Thread => {
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                while let Some(first) = queue.blocking_recv() {
                    if work(with_waiting(first, &mut queue, most)).is_none() {
                        break;
                    }
                }
            })?;
        }
        Place::Task => {
            tokio::spawn(async move {
                while let Some(first) = queue.recv().await {
                    if work(with_waiting(first, &mut queue, most)).is_none() {
                        break;
                    }
                }
            });
        }
    }
    Ok(())
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
