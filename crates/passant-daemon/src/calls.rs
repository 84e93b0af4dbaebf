//! How many calls come in over gRPC, and with which status do they end?
//!
//! A call ends either at once, with the status among its headers, or with the trailers that follow its messages.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Extensions, HeaderMap};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Keeps count of calls. Clones count together.
pub trait Tally: Clone + Send + Sync + 'static {
    /// What is remembered of a call until it has ended; dropped then.
    type Call: Send + Unpin + 'static;

    /// The method `path` is called, as in `/package.Service/Method`, on what `about` tells of.
    fn began(&self, path: &str, about: &Extensions) -> Self::Call;

    /// The call has ended with a status that is not OK, with its cause if it ended at once. Not told of a call whose client
    /// left before its end.
    fn refused(&self, call: &Self::Call, status: &Status);
}

/// The layer that counts.
#[derive(Clone, Debug)]
pub struct Count<T>(pub T);

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub struct Counted<S, T> {
    inner: S,
    tally: T,
}

impl<S, T: Clone> Layer<S> for Count<T> {
    type Service = Counted<S, T>;

    fn layer(&self, inner: S) -> Counted<S, T> {
        Counted { inner, tally: self.0.clone() }
    }
}

impl<S, T, B> Service<http::Request<B>> for Counted<S, T>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
    T: Tally + Unpin,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let call = self.tally.began(request.uri().path(), request.extensions());
        let end = End { call, tally: self.tally.clone() };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Ok(response) = answer.await;
            match response.extensions().get::<Status>().filter(|status| status.code() != Code::Ok) {
                // Whole, as it was made.
                Some(status) => end.tally.refused(&end.call, status),
                None => end.look(response.headers()),
            }
            Ok(response.map(|messages| Body::new(Messages { messages, end })))
        })
    }
}

/// Where the end of a call is counted.
struct End<T: Tally> {
    call: T::Call,
    tally: T,
}

impl<T: Tally> End<T> {
    /// Counts the status in `headers`, if there is one and it is a refusal.
    fn look(&self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) {
            self.tally.refused(&self.call, &status);
        }
    }
}

/// The messages of an answer, with an eye on the trailers.
struct Messages<T: Tally> {
    messages: Body,
    end: End<T>,
}

impl<T: Tally + Unpin> http_body::Body for Messages<T> {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.messages).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.end.look(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.messages.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    /// Remembers what it is told.
    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Vec<String>>>);

    impl Tally for Book {
        type Call = String;

        fn began(&self, path: &str, _: &Extensions) -> String {
            self.0.lock().unwrap().push(path.to_owned());
            path.to_owned()
        }

        fn refused(&self, call: &String, status: &Status) {
            let cause = std::error::Error::source(status).map(ToString::to_string).unwrap_or_default();
            let told = format!("{call} {:?} {cause}", status.code());
            self.0.lock().unwrap().push(told.trim_end().to_owned());
        }
    }

    async fn told(answer: impl Fn() -> Response<Body> + Clone + Send + 'static) -> Vec<String> {
        let book = Book::default();
        let inner = tower::service_fn(move |_: Request<()>| std::future::ready(Ok(answer())));
        let mut counted = Count(book.clone()).layer(inner);
        let response = counted.call(Request::builder().uri("/s/M").body(()).unwrap()).await.unwrap();
        response.into_body().collect().await.unwrap();
        book.0.lock().unwrap().clone()
    }

    fn with_trailers(code: &'static str) -> Response<Body> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        let frames = [
            Ok::<_, Infallible>(Frame::data(bytes::Bytes::from_static(b"x"))),
            Ok(Frame::trailers(trailers)),
        ];
        Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames))))
    }

    #[tokio::test]
    async fn a_refusal_counts_wherever_its_status_stands() {
        assert_eq!(told(|| Status::not_found("x").into_http()).await, ["/s/M", "/s/M NotFound"]);
        assert_eq!(told(|| with_trailers("14")).await, ["/s/M", "/s/M Unavailable"]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_once_and_with_its_cause() {
        let caused = || {
            let mut status = Status::permission_denied("x");
            status.set_source(Arc::new(std::io::Error::other("banned")));
            status.into_http()
        };
        assert_eq!(told(caused).await, ["/s/M", "/s/M PermissionDenied banned"]);
    }

    #[tokio::test]
    async fn success_and_a_missing_status_are_no_refusals() {
        assert_eq!(told(|| with_trailers("0")).await, ["/s/M"]);
        assert_eq!(told(|| Response::new(Body::new(Full::<bytes::Bytes>::default()))).await, ["/s/M"]);
    }
}
