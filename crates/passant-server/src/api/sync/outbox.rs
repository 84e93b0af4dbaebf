//! How do answers get from the task of a watch to HTTP/2? One at a time; and an end overtakes what was not taken.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use passant_proto::sync::WatchResponse;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;

/// The end of the task.
pub(crate) struct Outbox(Arc<Mutex<Slot>>);

/// The end of HTTP/2.
pub(crate) struct Answers(Arc<Mutex<Slot>>);

/// There is one per watch, and mostly nothing in it: a channel would take a hundred times the room.
#[derive(Default)]
struct Slot {
    next: Option<(Box<WatchResponse>, Instant)>,
    end: Option<Status>,
    /// The task puts in nothing more.
    is_ended: bool,
    /// HTTP/2 takes nothing more.
    is_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Whether the task has more to put in, and so wants to hear that there is room.
    is_room_wanted: bool,
}

/// Both ends.
pub(crate) fn outbox() -> (Outbox, Answers) {
    let slot = Arc::default();
    (Outbox(Arc::clone(&slot)), Answers(slot))
}

impl Outbox {
    /// Puts an answer in. There has to be room.
    pub(super) fn put(&self, answer: WatchResponse) {
        let mut slot = lock(&self.0);
        slot.next = Some((Box::new(answer), Instant::now()));
        wake(slot, |slot| slot.reader.take());
    }

    /// Ends the answers with `status`, at once.
    pub(super) fn end(&self, status: Status) {
        let mut slot = lock(&self.0);
        slot.end = Some(status);
        slot.next = None;
        wake(slot, |slot| slot.reader.take());
    }

    /// Whether an answer can be put in.
    pub(super) fn has_room(&self) -> bool {
        lock(&self.0).next.is_none()
    }

    /// Since when an answer has not been taken.
    pub(super) fn unread_since(&self) -> Option<Instant> {
        lock(&self.0).next.as_ref().map(|(_, since)| *since)
    }

    /// Resolves with false when nobody takes answers any more, and with true when there is room, if that is of interest.
    pub(super) async fn changed(&self, for_room: bool) -> bool {
        std::future::poll_fn(|cx| {
            let mut slot = lock(&self.0);
            if slot.is_gone {
                return Poll::Ready(false);
            }
            if for_room && slot.next.is_none() {
                return Poll::Ready(true);
            }
            slot.is_room_wanted = for_room;
            note(&mut slot.writer, cx);
            Poll::Pending
        })
        .await
    }
}

impl Stream for Answers {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut slot = lock(&self.0);
        if let Some(status) = slot.end.take() {
            slot.is_ended = true;
            return Poll::Ready(Some(Err(status)));
        }
        if let Some((answer, _)) = slot.next.take() {
            // A task is not woken for nothing, ten thousand times.
            wake(slot, |slot| if slot.is_room_wanted { slot.writer.take() } else { None });
            return Poll::Ready(Some(Ok(*answer)));
        }
        if slot.is_ended {
            return Poll::Ready(None);
        }
        note(&mut slot.reader, cx);
        Poll::Pending
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut slot = lock(&self.0);
        slot.is_ended = true;
        wake(slot, |slot| slot.reader.take());
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut slot = lock(&self.0);
        slot.is_gone = true;
        slot.next = None;
        wake(slot, |slot| slot.writer.take());
    }
}

/// Wakes after the lock was given back: whoever is woken takes it.
fn wake(mut slot: MutexGuard<'_, Slot>, whom: impl FnOnce(&mut Slot) -> Option<Waker>) {
    let waker = whom(&mut slot);
    drop(slot);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Remembers whom to wake.
fn note(whom: &mut Option<Waker>, cx: &Context<'_>) {
    match whom {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *whom = Some(cx.waker().clone()),
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;
    use passant_proto::sync::Welcome;
    use passant_proto::sync::watch_response::Response;
    use tokio_stream::StreamExt;

    /// Whether a task was woken.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn answer(protocol: u32) -> WatchResponse {
        WatchResponse { response: Some(Response::Welcome(Welcome { protocol, ..Welcome::default() })) }
    }

    #[tokio::test]
    async fn answers_come_in_order_and_then_the_stream_ends() {
        let (out, mut answers) = outbox();
        let writer = tokio::spawn(async move {
            for number in 1..=3 {
                assert!(out.changed(true).await);
                out.put(answer(number));
            }
        });
        for number in 1..=3 {
            assert_eq!(answers.next().await.unwrap().unwrap(), answer(number));
        }
        assert!(answers.next().await.is_none());
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn an_end_overtakes_what_was_not_taken() {
        let (out, mut answers) = outbox();
        out.put(answer(1));
        out.end(Status::permission_denied("banned"));
        drop(out);
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), tonic::Code::PermissionDenied);
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn a_task_without_more_to_say_is_woken_by_the_end_only() {
        for has_more in [false, true] {
            let (out, mut answers) = outbox();
            out.put(answer(1));
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut changed = std::pin::pin!(out.changed(has_more));
            assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            answers.next().await.unwrap().unwrap();
            assert_eq!(woken.0.load(Ordering::Relaxed), has_more);
            drop(answers);
            assert!(woken.0.load(Ordering::Relaxed));
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_any_more_is_noticed() {
        let (out, answers) = outbox();
        out.put(answer(1));
        assert!(out.unread_since().is_some());
        drop(answers);
        assert!(!out.changed(true).await);
    }
}
