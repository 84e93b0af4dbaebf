//! Does a request say that it is meant for the Workload API?
//!
//! The metadata `workload.spiffe.io: true` keeps a server-side request forgery from reaching this API: whoever can make
//! a program fetch a URL cannot usually make it send this header (SPIFFE Workload Endpoint, section 3). The rule covers
//! every path below `/SpiffeWorkloadAPI/`, also of methods that do not exist, and comes before anything is attested.
//! Health, reflection and SDS on the same socket are exempt, as their clients do not know the header.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

const SERVICE: &str = "/SpiffeWorkloadAPI/";
const HEADER: &str = "workload.spiffe.io";

/// Puts [`Guarded`] around a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecurityHeader;

/// A service that only requests with the header reach.
#[derive(Clone, Debug)]
pub(super) struct Guarded<S> {
    inner: S,
}

impl<S> Layer<S> for SecurityHeader {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner }
    }
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.uri().path().starts_with(SERVICE) && !is_meant_for_us(request.headers()) {
            let refused = Status::invalid_argument("security header missing from request").into_http();
            return Box::pin(async { Ok(refused) });
        }
        Box::pin(self.inner.call(request))
    }
}

/// Exactly one value, and exactly `true`.
fn is_meant_for_us(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(HEADER).iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Reached;

    impl Service<Request<()>> for Reached {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request<()>) -> Self::Future {
            std::future::ready(Ok(Response::new(Body::empty())))
        }
    }

    async fn is_let_through(path: &str, values: &[&str]) -> bool {
        let mut request = Request::builder().uri(path);
        for value in values {
            request = request.header(HEADER, *value);
        }
        let response = SecurityHeader.layer(Reached).call(request.body(()).unwrap()).await.unwrap();
        match response.headers().get("grpc-status") {
            None => true,
            Some(code) => {
                assert_eq!(code, "3");
                assert_eq!(
                    response.headers()["grpc-message"],
                    "security%20header%20missing%20from%20request"
                );
                false
            }
        }
    }

    #[tokio::test]
    async fn exactly_one_value_true_is_let_through() {
        for path in
            ["/SpiffeWorkloadAPI/FetchX509SVID", "/SpiffeWorkloadAPI/NoSuchMethod", "/SpiffeWorkloadAPI/"]
        {
            assert!(is_let_through(path, &["true"]).await);
            for values in
                [&[][..], &["True"], &["TRUE"], &["false"], &["1"], &[""], &["true", "true"], &["true,true"]]
            {
                assert!(!is_let_through(path, values).await, "{path} {values:?}");
            }
        }
    }

    #[tokio::test]
    async fn other_services_are_exempt() {
        for path in [
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        ] {
            assert!(is_let_through(path, &[]).await);
        }
    }
}
