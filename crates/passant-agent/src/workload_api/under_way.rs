//! How many calls may one user have under way?
//!
//! Behind the check of the security header, and before a request is read. A stream is under way until it ends. A method whose
//! request is a stream finds its [`Place`] in the request.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use passant_daemon::under_way::{Bounds, Call, Calls, Received, Sent};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::caller::Caller;
use super::limits::{CALLS, CALLS_PER_USER, REQUEST_BYTES_PER_USER};

/// Puts [`Bounded`] around a service. Its clones count together.
#[derive(Clone, Debug)]
pub(super) struct UnderWay {
    calls: Calls<u32>,
}

/// What one call takes of its user's share, until the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Place(Call<u32>);

impl Place {
    /// The messages that have come were read, and are held no more.
    pub(super) fn let_go(&self) {
        self.0.let_go();
    }
}

/// A service that each user reaches a bounded number of times at once.
#[derive(Clone, Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    calls: Calls<u32>,
}

impl UnderWay {
    pub(super) fn new() -> Self {
        // Streams stay for as long as their processes live: there is nothing to wait for.
        let wait = Duration::ZERO;
        let bounds =
            Bounds { all: CALLS, each: CALLS_PER_USER, wait, bytes: REQUEST_BYTES_PER_USER, within: None };
        Self { calls: Calls::new(bounds) }
    }
}

impl<S> Layer<S> for UnderWay {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, calls: self.calls.clone() }
    }
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not ready; the one that was polled is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let calls = self.calls.clone();
        Box::pin(async move {
            let call = match request.extensions().get::<Caller>() {
                Some(caller) => calls.enter(caller.uid()).await,
                None => Err(Status::internal("connection does not say who opened it")),
            };
            let call = match call {
                Ok(call) => call,
                Err(refused) => return Ok(refused.into_http()),
            };
            let counted = call.clone();
            let mut request = request.map(|body| Body::new(Received::new(body, counted)));
            request.extensions_mut().insert(Place(call.clone()));
            let response = inner.call(request).await?;
            Ok(response.map(|body| Body::new(Sent::new(body, call))))
        })
    }
}
