//! How many calls may one caller have under way, and how much may they hold in memory?
//!
//! A call is under way from before its request is read until its answer has left, which is as late as the client likes: one
//! that asks for much and reads nothing keeps its answers in memory. So the bound is held by the bodies: [`Received`]
//! counts what has come, [`Sent`] hands the answer to HTTP/2 in small pieces and keeps the call's place to the end. Where
//! places are few, both have a time, after which the call ends and its place is another's.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};
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
    /// How long a request may take to come, and its answer to leave; then the call ends. `None`: as long as they like.
    pub within: Option<Duration>,
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
    within: Option<Duration>,
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
        self.enter_until(of, Instant::now() + self.bounds.wait).await
    }

    /// The same for one whose time to wait is over at `until`.
    ///
    /// # Errors
    /// ResourceExhausted when none becomes free in time.
    pub async fn enter_until(&self, of: K, until: Instant) -> Result<Call<K>, Status> {
        let Bounds { each, wait, bytes, within, .. } = self.bounds;
        let turn = tokio::time::timeout_at(until, self.turns.take(of.clone())).await.map_err(|_| {
            Status::resource_exhausted(format!(
                "too many calls are under way: of one caller {each} are worked on at a time, and this one has waited for \
                 {} s; read the answers or end streams, and ask again later",
                wait.as_secs()
            ))
        })?;
        let all = Arc::clone(&self.bytes);
        Ok(Call(Arc::new(Held { of, bytes: AtomicUsize::new(0), most: bytes, within, all, _turn: turn })))
    }
}

impl<K: Ord + Clone> Call<K> {
    /// What came of the request so far is held no more. For a call whose request is a stream: each message once it was
    /// read, or all that it ever sends would count.
    pub fn let_go(&self) {
        let held = &*self.0;
        let mut all = held.all.lock().unwrap_or_else(PoisonError::into_inner);
        held.give_back(held.bytes.swap(0, Ordering::Relaxed), &mut all);
    }

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

impl<K: Ord + Clone> Held<K> {
    fn give_back(&self, bytes: usize, all: &mut BTreeMap<K, usize>) {
        let left = all.get(&self.of).map_or(0, |sum| sum - bytes);
        if left == 0 {
            all.remove(&self.of);
        } else {
            all.insert(self.of.clone(), left);
        }
    }
}

impl<K: Ord + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        self.give_back(bytes, &mut all);
    }
}

/// The body of a request, whose bytes count.
pub struct Received<B, K: Ord + Clone> {
    body: B,
    call: Call<K>,
    /// When it should all have come.
    late: Option<Pin<Box<Sleep>>>,
}

impl<B, K: Ord + Clone> Received<B, K> {
    /// `body` of `call`.
    pub fn new(body: B, call: Call<K>) -> Self {
        let late = call.0.within.map(|within| Box::pin(tokio::time::sleep(within)));
        Self { body, call, late }
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
        if polled.is_pending()
            && let Some(late) = &mut self.late
            && late.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(late_by(self.call.0.within, "the request did not come"))));
        }
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

/// The body of an answer, in pieces. Its call is under way until the last one was taken, or it took too long.
pub struct Sent<B, K: Ord + Clone> {
    leaving: Arc<Mutex<Leaving<B, K>>>,
    /// What ends it when it takes too long. HTTP/2 asks nothing of the body of a client that takes nothing, so that it cannot
    /// look at the time by itself.
    clock: Option<AbortHandle>,
}

/// The body of an answer that lasts and holds no place, in pieces.
pub struct Pieces<B> {
    body: B,
    /// What is left of the frame that was taken from `body`.
    rest: Bytes,
}

impl<B> Pieces<B> {
    /// `body`, piece by piece.
    pub const fn new(body: B) -> Self {
        Self { body, rest: Bytes::new() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end @ (Poll::Ready(None | Some(Err(_))) | Poll::Pending) => return end,
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

struct Leaving<B, K: Ord + Clone> {
    /// Gone once it has taken too long: then neither the answer nor its call is held any longer.
    answer: Option<Answer<B, K>>,
    within: Option<Duration>,
    /// Of who waits for more of the answer.
    waker: Option<Waker>,
}

struct Answer<B, K: Ord + Clone> {
    body: B,
    /// What is left of the frame that was taken from `body`.
    rest: Bytes,
    _call: Call<K>,
}

impl<B, K> Sent<B, K>
where
    B: Send + 'static,
    K: Ord + Clone + Send + Sync + 'static,
{
    /// `body`, the answer to `call`.
    pub fn new(body: B, call: Call<K>) -> Self {
        let within = call.0.within;
        let answer = Some(Answer { body, rest: Bytes::new(), _call: call });
        let leaving = Arc::new(Mutex::new(Leaving { answer, within, waker: None }));
        let clock = within.map(|within| {
            let leaving = Arc::clone(&leaving);
            let late = Instant::now() + within;
            let clock = async move {
                tokio::time::sleep_until(late).await;
                let (answer, waker) = {
                    let mut leaving = leaving.lock().unwrap_or_else(PoisonError::into_inner);
                    (leaving.answer.take(), leaving.waker.take())
                };
                drop(answer);
                if let Some(waker) = waker {
                    waker.wake();
                }
            };
            tokio::spawn(clock).abort_handle()
        });
        Self { leaving, clock }
    }
}

impl<B, K> Body for Sent<B, K>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
    K: Ord + Clone,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let leaving = &mut *leaving;
        let Some(answer) = &mut leaving.answer else {
            return Poll::Ready(Some(Err(late_by(leaving.within, "the answer was not read"))));
        };
        if answer.rest.is_empty() {
            match Pin::new(&mut answer.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => answer.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Pending => {
                    leaving.waker = leaving.within.map(|_| cx.waker().clone());
                    return Poll::Pending;
                }
                ready @ Poll::Ready(_) => return ready,
            }
        }
        let piece = answer.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(answer.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.answer.as_ref().is_some_and(|answer| answer.rest.is_empty() && answer.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answer) = &leaving.answer else { return SizeHint::default() };
        let mut hint = answer.body.size_hint();
        let rest = answer.rest.len() as u64;
        // The upper bound first: the lower one may not exceed it.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl<B, K: Ord + Clone> Drop for Sent<B, K> {
    fn drop(&mut self) {
        if let Some(clock) = self.clock.take() {
            clock.abort();
            // It goes when the runtime comes to it; the place is free now.
            self.leaving.lock().unwrap_or_else(PoisonError::into_inner).answer = None;
        }
    }
}

fn late_by(within: Option<Duration>, what: &str) -> Status {
    let seconds = within.unwrap_or_default().as_secs();
    Status::deadline_exceeded(format!("{what} within {seconds} s; its place is another call's now"))
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

    const BOUNDS: Bounds =
        Bounds { all: 3, each: 2, wait: Duration::from_secs(5), bytes: 100_000, within: None };
    const TIMED: Bounds = Bounds { all: 1, each: 1, within: Some(Duration::from_secs(3)), ..BOUNDS };

    /// Gives nothing, ever.
    struct Silence;

    impl Body for Silence {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

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
        let began = Instant::now();
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
    async fn a_stream_of_requests_counts_by_what_of_it_was_not_yet_read() {
        let calls = Calls::new(BOUNDS);
        let (one, two) = (calls.enter("a").await.unwrap(), calls.enter("a").await.unwrap());
        sizes(Received::new(frames(&[10_000]), two.clone())).await.unwrap();
        let mut body = Received::new(frames(&[60_000; 20]), one.clone());
        for _ in 0..10 {
            poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            one.let_go();
        }
        assert_eq!(calls.bytes.lock().unwrap()["a"], 10_000, "what others hold stays counted");
        let refused = sizes(body).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "what is not let go counts");
        drop((one, two));
        assert!(calls.bytes.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_answer_without_a_place_leaves_in_pieces_too() {
        let body = Pieces::new(frames(&[2 * PIECE + 5, 3]));
        assert_eq!(sizes(body).await.unwrap(), [PIECE, PIECE, 5, 3]);
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

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_ends_in_time_where_places_are_few() {
        let calls = Calls::new(TIMED);
        let began = Instant::now();
        let call = calls.enter("a").await.unwrap();
        let late = sizes(Received::new(Silence, call.clone())).await.unwrap_err();
        assert_eq!((late.code(), began.elapsed()), (Code::DeadlineExceeded, Duration::from_secs(3)));
        // One that has come is not late, however long the work on it takes.
        let mut body = Received::new(frames(&[5]), call);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_loses_its_place_in_time() {
        let calls = Calls::new(TIMED);
        // HTTP/2 does not even ask for it while the client takes nothing.
        let mut unread = Sent::new(frames(&[5]), calls.enter("a").await.unwrap());
        let began = Instant::now();
        let other = calls.enter("b").await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        let late = poll_fn(|cx| Pin::new(&mut unread).poll_frame(cx)).await.unwrap().unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        // Who waits for more of it hears of the end.
        let late = sizes(Sent::new(Silence, other)).await.unwrap_err();
        assert_eq!((late.code(), began.elapsed()), (Code::DeadlineExceeded, Duration::from_secs(6)));
        // One that is given up is given up at once.
        let answer = Sent::new(Silence, calls.enter("a").await.unwrap());
        drop(answer);
        assert!(calls.turns.try_take("a").is_some());
    }
}
