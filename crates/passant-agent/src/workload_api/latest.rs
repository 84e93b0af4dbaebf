//! What does a caller get that reads late? The latest message: each is complete, and replaces the one before.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio_stream::Stream;

/// Both ends of a stream in which one message waits at most.
pub(super) fn latest<T>() -> (Teller<T>, Messages<T>) {
    let place = Place { waiting: None, reader: None, is_over: false, has_left: false };
    let shared = Arc::new(Shared { place: Mutex::new(place), left: Notify::new() });
    (Teller { shared: Arc::clone(&shared) }, Messages { shared })
}

/// The end that is told to. The stream ends with it.
pub(super) struct Teller<T> {
    shared: Arc<Shared<T>>,
}

/// The end that is read.
pub(super) struct Messages<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    place: Mutex<Place<T>>,
    left: Notify,
}

struct Place<T> {
    waiting: Option<T>,
    reader: Option<Waker>,
    /// Nothing more will come.
    is_over: bool,
    /// Nobody reads any more.
    has_left: bool,
}

impl<T> Teller<T> {
    /// Puts `message` in the place of the one that still waits, if one does. That one is gone.
    pub(super) fn tell(&self, message: T) {
        let mut place = self.shared.place();
        place.waiting = Some(message);
        place.wake();
    }

    /// Resolves once nobody reads any more. Cancel safe.
    pub(super) async fn left(&self) {
        while !self.shared.place().has_left {
            self.shared.left.notified().await;
        }
    }
}

impl<T> Drop for Teller<T> {
    fn drop(&mut self) {
        let mut place = self.shared.place();
        place.is_over = true;
        place.wake();
    }
}

impl<T> Stream for Messages<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut place = self.shared.place();
        match place.waiting.take() {
            Some(message) => Poll::Ready(Some(message)),
            None if place.is_over => Poll::Ready(None),
            None => {
                place.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Messages<T> {
    fn drop(&mut self) {
        let mut place = self.shared.place();
        place.has_left = true;
        place.waiting = None;
        self.shared.left.notify_one();
    }
}

impl<T> Shared<T> {
    fn place(&self) -> MutexGuard<'_, Place<T>> {
        // Nothing panics while it is held.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Place<T> {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn only_the_latest_message_waits_and_the_last_one_is_read_after_the_end() {
        let (teller, mut messages) = latest();
        teller.tell(1);
        assert_eq!(messages.next().await, Some(1));
        teller.tell(2);
        teller.tell(3);
        assert_eq!(messages.next().await, Some(3));
        let reading = tokio::spawn(async move { (messages.next().await, messages.next().await, messages) });
        tokio::task::yield_now().await;
        teller.tell(4);
        drop(teller);
        let (last, end, _messages) = reading.await.unwrap();
        assert_eq!((last, end), (Some(4), None));
    }

    #[tokio::test]
    async fn a_reader_that_leaves_is_noticed_by_whoever_waits_for_it_before_or_after() {
        let (teller, messages) = latest::<()>();
        let waiting = tokio::spawn(async move {
            teller.left().await;
            teller
        });
        tokio::task::yield_now().await;
        drop(messages);
        let teller = waiting.await.unwrap();
        teller.left().await;
    }
}
