//! How many calls may one caller have under way, and how much may they hold in memory?
//!
//! A call is under way from before its request is read until its answer has left, which is as late as the client likes: one
//! that asks for much and reads nothing keeps its answers in memory. So the bound is held by the bodies: [`Received`]
//! counts what has come, [`Sent`] hands the answer to HTTP/2 in small pieces and keeps the call's place to the end.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use crate::turns::{Turn, Turns};

/// What of an answer is handed to HTTP/2 at once, in bytes: its frame. More would be held there while the client does not
/// read, out of sight of the bounds here.
const PIECE: usize = 16 * 1024;

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Calls that are worked on, of all callers together.
    pub all: usize,
    /// Those of one caller. Its others wait.
    pub each: usize,
    /// How long they wait before they are refused.
    pub wait: Duration,
    /// Bytes of requests that one caller's calls may hold together.
    pub bytes: usize,
}

/// The calls under way, by caller. Clones count together.
pub struct Calls<K: Ord + Clone> {
    turns: Turns<K>,
    bounds: Bounds,
    bytes: Arc<Mutex<BTreeMap<K, usize>>>,
}

/// The place of one call, given back with all that it holds when the last clone is dropped.
pub struct Call<K: Ord + Clone>(Arc<Held<K>>);

struct Held<K: Ord + Clone> {
    of: K,
    /// Counted in `all` for the caller.
    bytes: AtomicUsize,
    most: usize,
    all: Arc<Mutex<BTreeMap<K, usize>>>,
    _turn: Turn<K>,
}

impl<K: Ord + Clone> Calls<K> {
    /// None under way.
    pub fn new(bounds: Bounds) -> Self {
        Self { turns: Turns::new(bounds.all, bounds.each), bounds, bytes: Arc::default() }
    }

    /// The next place of `of`; those who wait come in rotation.
    ///
    /// # Errors
    /// ResourceExhausted when none becomes free in time.
    pub async fn enter(&self, of: K) -> Result<Call<K>, Status> {
        let Bounds { each, wait, bytes, .. } = self.bounds;
        let turn = tokio::time::timeout(wait, self.turns.take(of.clone())).await.map_err(|_| {
            Status::resource_exhausted(format!(
                "too many calls are under way: of one caller {each} are worked on at a time, and this one has waited for \
                 {} s; read the answers or end streams, and ask again later",
                wait.as_secs()
            ))
        })?;
        let all = Arc::clone(&self.bytes);
        Ok(Call(Arc::new(Held { of, bytes: AtomicUsize::new(0), most: bytes, all, _turn: turn })))
    }
}

impl<K: Ord + Clone> Call<K> {
    /// Counts `more` bytes of the request.
    ///
    /// # Errors
    /// ResourceExhausted when all requests of the caller hold too many.
    fn hold(&self, more: usize) -> Result<(), Status> {
        let held = &*self.0;
        let mut all = held.all.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = all.get(&held.of).copied().unwrap_or(0) + more;
        if sum > held.most {
            return Err(Status::resource_exhausted(format!(
                "requests are too large: those of one caller that are under way may hold {} bytes together; ask for less \
                 at once",
                held.most
            )));
        }
        all.insert(held.of.clone(), sum);
        held.bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl<K: Ord + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let left = all.get(&self.of).map_or(0, |sum| sum - bytes);
        if left == 0 {
            all.remove(&self.of);
        } else {
            all.insert(self.of.clone(), left);
        }
    }
}

/// The body of a request, whose bytes count.
pub struct Received<B, K: Ord + Clone> {
    body: B,
    call: Call<K>,
}

impl<B, K: Ord + Clone> Received<B, K> {
    /// `body` of `call`.
    pub const fn new(body: B, call: Call<K>) -> Self {
        Self { body, call }
    }
}

impl<B, K> Body for Received<B, K>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
    K: Ord + Clone + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(bytes) = frame.data_ref()
            && let Err(exhausted) = self.call.hold(bytes.len())
        {
            return Poll::Ready(Some(Err(exhausted)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, in pieces. Its call is under way until the last one was taken.
pub struct Sent<B, K: Ord + Clone> {
    body: B,
    /// What is left of the frame that was taken from `body`.
    rest: Bytes,
    _call: Call<K>,
}

impl<B, K: Ord + Clone> Sent<B, K> {
    /// `body`, the answer to `call`.
    pub const fn new(body: B, call: Call<K>) -> Self {
        Self { body, rest: Bytes::new(), _call: call }
    }
}

impl<B, K> Body for Sent<B, K>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
    K: Ord + Clone + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other @ (Poll::Ready(_) | Poll::Pending) => return other,
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        // The upper bound first: the lower one may not exceed it.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl<K: Ord + Clone> Clone for Calls<K> {
    fn clone(&self) -> Self {
        Self { turns: self.turns.clone(), bounds: self.bounds, bytes: Arc::clone(&self.bytes) }
    }
}

impl<K: Ord + Clone> Clone for Call<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Ord + Clone> fmt::Debug for Calls<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls")
            .field("bounds", &self.bounds)
            .field("turns", &self.turns)
            .finish_non_exhaustive()
    }
}

impl<K: Ord + Clone> fmt::Debug for Call<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("bytes", &self.0.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use tonic::Code;

    use super::*;

    const BOUNDS: Bounds = Bounds { all: 3, each: 2, wait: Duration::from_secs(5), bytes: 100_000 };

    /// Gives these frames, one after another.
    struct Frames(VecDeque<Bytes>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }
    }

    fn frames(sizes: &[usize]) -> Frames {
        Frames(sizes.iter().map(|size| Bytes::from(vec![7; *size])).collect())
    }

    async fn sizes(mut body: impl Body<Data = Bytes, Error = Status> + Unpin) -> Result<Vec<usize>, Status> {
        let mut sizes = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            sizes.push(frame?.into_data().unwrap().len());
        }
        Ok(sizes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_too_many_waits_and_is_told_why_in_the_end() {
        let calls = Calls::new(BOUNDS);
        let (one, two) = (calls.enter("a").await.unwrap(), calls.enter("a").await.unwrap());
        let began = tokio::time::Instant::now();
        let refused = calls.enter("a").await.unwrap_err();
        assert_eq!((refused.code(), began.elapsed()), (Code::ResourceExhausted, BOUNDS.wait));
        assert!(refused.message().contains("of one caller 2"), "{refused}");
        let other = calls.enter("b").await.unwrap();
        drop(one);
        let three = calls.enter("a").await.unwrap();
        drop((two, three, other));
    }

    #[tokio::test]
    async fn the_bytes_of_all_requests_of_a_caller_count_until_their_calls_end() {
        let calls = Calls::new(BOUNDS);
        let (one, two) = (calls.enter("a").await.unwrap(), calls.enter("a").await.unwrap());
        assert_eq!(sizes(Received::new(frames(&[30_000, 30_000]), one.clone())).await.unwrap(), [30_000; 2]);
        let refused = sizes(Received::new(frames(&[40_000, 1]), two)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("100000 bytes"), "{refused}");
        let other = calls.enter("b").await.unwrap();
        sizes(Received::new(frames(&[100_000]), other)).await.unwrap();
        drop(one);
        let again = calls.enter("a").await.unwrap();
        sizes(Received::new(frames(&[100_000]), again)).await.unwrap();
        assert!(calls.bytes.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_answer_leaves_in_pieces_and_keeps_its_place_till_then() {
        let calls = Calls::new(Bounds { all: 1, each: 1, ..BOUNDS });
        let call = calls.enter("a").await.unwrap();
        let mut body = Sent::new(frames(&[2 * PIECE + 5, 3]), call);
        assert_eq!(
            poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len(),
            PIECE
        );
        assert!(!body.is_end_stream());
        assert!(calls.turns.try_take("a").is_none());
        assert_eq!(sizes(body).await.unwrap(), [PIECE, 5, 3]);
        assert!(calls.turns.try_take("a").is_some());
    }
}
