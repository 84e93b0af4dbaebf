//! How much may each caller have under way?
//!
//! A layer behind the one that admits: it knows who calls, and no request was read yet. Each caller has so many calls worked
//! on at a time, over all its connections; its others wait in line, in which callers take turns.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use passant_core::SpiffeId;
use passant_daemon::under_way::{Call, Calls, Received, Sent};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::bounds::origin;
use crate::api::authorize::Admitted;
use crate::caller::ConnPeer;
use crate::limits;

/// For whom calls are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    /// Whoever holds an X509-SVID with this ID.
    Svid(SpiffeId),
    /// Whoever calls from this address, without an X509-SVID.
    Address(IpAddr),
    /// A user on this machine.
    User(u32),
}

/// The layer, for one kind of callers: agents, the rest of the network, operators. Its clones count together.
#[derive(Clone)]
pub(super) struct UnderWay {
    calls: Calls<Caller>,
}

/// A service that a caller's calls reach a few at a time.
#[derive(Clone)]
pub(super) struct Bounded<S> {
    inner: S,
    calls: Calls<Caller>,
}

impl UnderWay {
    pub(super) fn new(bounds: passant_daemon::under_way::Bounds) -> Self {
        Self { calls: Calls::new(bounds) }
    }
}

impl<S> Layer<S> for UnderWay {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, calls: self.calls.clone() }
    }
}

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The clone is not ready; the one that was polled is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let calls = self.calls.clone();
        Box::pin(async move {
            let call = match caller(request.extensions()) {
                Some(caller) => calls.enter(caller).await,
                None => Err(Status::internal("a connection without a peer reached the API")),
            };
            let call: Call<Caller> = match call {
                Ok(call) => call,
                Err(refused) => return Ok(refused.into_http()),
            };
            let counted = call.clone();
            let response = inner.call(request.map(|body| Body::new(Received::new(body, counted)))).await?;
            Ok(response.map(|body| Body::new(Sent::new(body, call))))
        })
    }
}

fn caller(call: &http::Extensions) -> Option<Caller> {
    if let Some(Admitted::Agent(agent)) = call.get() {
        return Some(Caller::Svid(agent.id().clone()));
    }
    Some(match call.get::<ConnPeer>()? {
        ConnPeer::Remote { svid: Some(svid), .. } => Caller::Svid(svid.id().clone()),
        ConnPeer::Remote { address, svid: None } => Caller::Address(origin(*address)),
        ConnPeer::Local(local) | ConnPeer::Guest(local, _) | ConnPeer::Uninvited(local) => {
            Caller::User(local.uid)
        }
    })
}

/// Agents.
pub(super) const AGENTS: passant_daemon::under_way::Bounds = passant_daemon::under_way::Bounds {
    all: limits::CALLS,
    each: limits::CALLS_PER_AGENT,
    wait: limits::CALL_WAITS,
    bytes: limits::BYTES_PER_AGENT,
};

/// Whoever else comes over the network.
pub(super) const OTHERS: passant_daemon::under_way::Bounds = passant_daemon::under_way::Bounds {
    all: limits::STRANGERS_CALLS,
    each: limits::CALLS_PER_ADDRESS,
    wait: limits::CALL_WAITS,
    bytes: limits::BYTES_PER_ADDRESS,
};

/// Users of the operator socket, who are trusted: the bounds only keep a slip of one from hurting the others.
pub(super) const OPERATORS: passant_daemon::under_way::Bounds = passant_daemon::under_way::Bounds {
    all: 2 * limits::CALLS_PER_OPERATOR,
    each: limits::CALLS_PER_OPERATOR,
    wait: limits::CALL_WAITS,
    bytes: limits::BYTES_PER_OPERATOR,
};
