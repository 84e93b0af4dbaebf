//! How much may each caller have under way, and begin?
//!
//! A layer behind the one that admits: it knows who calls, and no request was read yet. What is counted by [`Quotas`] is
//! counted here, before it has a place, unless only the request tells how much it is. Then each caller has so many calls
//! worked on at a time, over all its connections; its others wait in line, in which callers take turns. Agents' calls are
//! apart by rank, so that renewals never wait for a place behind anything else; of the few places for these an agent has
//! very few, and each only for seconds, so that neither a handful of agents nor silent ones keep the others from renewing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use passant_daemon::under_way::{Bounds, Call, Calls, Pieces, Received, Sent};
use passant_proto::status;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::Arriving;
use super::bounds::origin;
use crate::api::authorize::{Admitted, WATCH};
use crate::caller::ConnPeer;
use crate::config::Limits;
use crate::limits;
use crate::metrics::Limit;
use crate::quota::{Caller, Counted, Quotas, Rank, Until, Work};

/// The layer, for one kind of callers: agents, the rest of the network, operators. Its clones count together.
#[derive(Clone)]
pub(super) struct UnderWay {
    /// The places, by rank of what is done in them.
    places: [Calls<Caller>; Rank::COUNT],
    /// Which limit it is that there are no more of them.
    limit: Limit,
    quotas: Arc<Quotas>,
}

/// A service that a caller's calls reach a few at a time.
#[derive(Clone)]
pub(super) struct Bounded<S> {
    inner: S,
    under_way: UnderWay,
}

impl UnderWay {
    pub(super) fn new(from: Arriving, quotas: Arc<Quotas>) -> Self {
        let all = quotas.limits();
        let one = |bounds| {
            let calls = Calls::new(bounds);
            [calls.clone(), calls.clone(), calls]
        };
        let (limit, places) = match from {
            Arriving::Agents => (Limit::CallsPerAgent, of_agents(all).map(Calls::new)),
            Arriving::Others => (Limit::CallsPerAddress, one(of_others(all))),
            Arriving::Operators => (Limit::CallsPerOperator, one(of_operators(all))),
        };
        Self { places, limit, quotas }
    }

    /// The place of a call of `method`, once it may begin, if that is before its time to wait is over.
    async fn enter(
        &self,
        method: &str,
        call: &http::Extensions,
        until: Until,
    ) -> Result<Call<Caller>, Status> {
        let work = Work::of(method);
        let caller = caller(peer(call)?, call.get());
        let mut counted = None;
        if let Some(work) = work.filter(|work| is_counted_here(*work, call.get())) {
            counted = Some(self.count(work, call, until).await?);
        }
        let rank = work.map_or(Rank::Other, Work::rank_of_call);
        let until = self.quotas.until_place(rank, until);
        let entered = self.places[rank as usize].enter_until(caller, until).await;
        let entered = entered.map_err(|_| status::to_status(&self.quotas.crowded(self.limit)))?;
        if let Some(counted) = counted {
            counted.keep();
        }
        Ok(entered)
    }
}

impl UnderWay {
    /// Counts one piece of `work` for whoever calls.
    async fn count(&self, work: Work, call: &http::Extensions, until: Until) -> Result<Counted<'_>, Status> {
        let peer = peer(call)?;
        // Whoever attests is a stranger, whatever it shows.
        let address = peer.address().filter(|_| work == Work::Attest);
        let of = address.map_or_else(|| caller(peer, call.get()), |address| Caller::Address(origin(address)));
        self.quotas.count(work, &of, 1, until).await.map_err(|refusal| status::to_status(&refusal))
    }
}

fn peer(call: &http::Extensions) -> Result<&ConnPeer, Status> {
    call.get().ok_or_else(|| Status::internal("a connection without a peer reached the API"))
}

impl<S> Layer<S> for UnderWay {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { inner, under_way: self.clone() }
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

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The clone is not ready; the one that was polled is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let under_way = self.under_way.clone();
        Box::pin(async move {
            let until = under_way.quotas.until();
            if request.uri().path() == WATCH {
                // It lasts, and is one for each agent: no place among calls, which are few, and it holds next to nothing.
                let counted = under_way.count(Work::Sync, request.extensions(), until).await;
                return match counted {
                    Ok(counted) => {
                        counted.keep();
                        inner
                            .call(request)
                            .await
                            .map(|answer| answer.map(|body| Body::new(Pieces::new(body))))
                    }
                    Err(refused) => Ok(refused.into_http()),
                };
            }
            let entered = under_way.enter(request.uri().path(), request.extensions(), until).await;
            let call = match entered {
                Ok(call) => call,
                Err(refused) => return Ok(refused.into_http()),
            };
            // What its method still waits for, it waits for no longer.
            request.extensions_mut().insert(under_way.quotas.until_work(until));
            let counted = call.clone();
            let response = inner.call(request.map(|body| Body::new(Received::new(body, counted)))).await?;
            Ok(response.map(|body| Body::new(Sent::new(body, call))))
        })
    }
}

/// By identity, if it has one.
fn caller(peer: &ConnPeer, admitted: Option<&Admitted>) -> Caller {
    if let Some(Admitted::Agent(agent)) = admitted {
        return Caller::Svid(agent.id().clone());
    }
    match peer {
        ConnPeer::Remote { svid: Some(svid), .. } => Caller::Svid(svid.id().clone()),
        ConnPeer::Remote { address, svid: None } => Caller::Address(origin(*address)),
        ConnPeer::Local(local) | ConnPeer::Guest(local, _) | ConnPeer::Uninvited(local) => {
            Caller::User(local.uid)
        }
    }
}

/// Of agents the bundle is not counted: they read it with each synchronization, which is.
fn is_counted_here(work: Work, admitted: Option<&Admitted>) -> bool {
    match work {
        Work::X509 => false,
        Work::Bundle => !matches!(admitted, Some(Admitted::Agent(_))),
        Work::Attest | Work::Renew | Work::Jwt | Work::Mint | Work::Sync | Work::List => true,
    }
}

/// Places for agents, by rank.
fn of_agents(all: &Limits) -> [Bounds; Rank::COUNT] {
    let places_of_all = places_of_agents(all);
    let each = [limits::CALLS_PER_AGENT_TO_RENEW, limits::CALLS_PER_AGENT_TO_MINT, all.calls_per_agent];
    let within = [Some(limits::RENEWAL_WITHIN), Some(limits::MINT_WITHIN), None];
    let (to_renew, to_mint) = (limits::BYTES_PER_AGENT_TO_RENEW, limits::BYTES_PER_AGENT_TO_MINT);
    let bytes = [to_renew, to_mint, limits::BYTES_PER_AGENT - to_renew - to_mint];
    Rank::ALL.map(|rank| {
        let at = rank as usize;
        Bounds {
            all: places_of_all[at],
            each: each[at].min(all.calls_per_agent).min(places_of_all[at]),
            wait: all.call_waits,
            bytes: bytes[at],
            within: within[at],
        }
    })
}

/// How many there are of each rank.
fn places_of_agents(all: &Limits) -> [usize; Rank::COUNT] {
    let reserved = usize::try_from(all.reserved_for_renewals).unwrap_or(0);
    let own = (all.calls * reserved / 500).max(1);
    let renewals = (all.calls * reserved / 100).saturating_sub(own).max(1);
    let others = all.calls.saturating_sub(own + renewals).max(1);
    [own, renewals, others]
}

/// Places for whoever else comes over the network.
fn of_others(all: &Limits) -> Bounds {
    let (each, bytes) = (all.calls_per_address, limits::BYTES_PER_ADDRESS);
    Bounds { all: all.strangers_calls, each, wait: all.call_waits, bytes, within: None }
}

/// Places for users of the operator socket, who are trusted: the bounds only keep a slip of one from hurting the others.
fn of_operators(all: &Limits) -> Bounds {
    let (each, bytes) = (all.calls_per_operator, limits::BYTES_PER_OPERATOR);
    Bounds { all: all.operators_calls, each, wait: all.call_waits, bytes, within: None }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use http_body_util::BodyExt as _;
    use hyper::body::{Bytes, Frame};
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;
    use crate::metrics::Metrics;

    const RENEW: &str = "/spire.api.server.agent.v1.Agent/RenewAgent";
    const MINT: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";
    const LIST: &str = "/spire.api.server.entry.v1.Entry/ListEntries";

    /// Reads the request to its end, and answers with it.
    #[derive(Clone)]
    struct Echo;

    impl Service<http::Request<Body>> for Echo {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async move {
                Ok(match request.into_body().collect().await {
                    Ok(read) => http::Response::new(Body::new(read)),
                    Err(status) => status.into_http(),
                })
            })
        }
    }

    /// A request of which nothing comes.
    struct Silence;

    impl hyper::body::Body for Silence {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    fn agents(limits: &Limits) -> Bounded<Echo> {
        let quotas = Arc::new(Quotas::new(limits, Arc::<Metrics>::default()));
        UnderWay::new(Arriving::Agents, quotas).layer(Echo)
    }

    /// Calls of so many agents that never say anything, in their order.
    async fn silent(
        agents: &Bounded<Echo>,
        method: &'static str,
        count: u8,
    ) -> tokio::task::JoinSet<Result<http::Response<Body>, Infallible>> {
        let mut silent = tokio::task::JoinSet::new();
        for agent in 0..count {
            let mut agents = agents.clone();
            let request = request(method, agent, Body::new(Silence));
            silent.spawn(async move { agents.call(request).await });
            tokio::task::yield_now().await;
        }
        silent
    }

    /// An agent is told from the others by its address here.
    fn request(method: &str, agent: u8, body: Body) -> http::Request<Body> {
        let address = SocketAddr::from(([192, 0, 2, agent], 1));
        let mut request = http::Request::new(body);
        *request.uri_mut() = method.parse().unwrap();
        request.extensions_mut().insert(ConnPeer::Remote { address, svid: None });
        request
    }

    fn refusal(answer: &http::Response<Body>) -> Option<Code> {
        Status::from_header_map(answer.headers()).map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_renewals_of_many_agents_hold_their_places_for_seconds_only() {
        // One place for renewals of agents' own X509-SVIDs, three for those of their workloads.
        let limits = Limits { calls: 16, ..Limits::default() };
        for (method, places, within) in [(RENEW, 1, limits::RENEWAL_WITHIN), (MINT, 3, limits::MINT_WITHIN)] {
            let agents = agents(&limits);
            let mut silent = silent(&agents, method, places).await;
            let began = Instant::now();
            let answer = agents.clone().call(request(method, 9, Body::empty())).await.unwrap();
            assert_eq!((refusal(&answer), began.elapsed()), (None, within), "{method}");
            while let Some(late) = silent.join_next().await {
                assert_eq!(refusal(&late.unwrap().unwrap()), Some(Code::DeadlineExceeded), "{method}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_renews_waits_in_line_for_longer_than_other_calls() {
        let limits = Limits { calls: 16, ..Limits::default() };
        for (method, places, within) in [(RENEW, 1, limits::RENEWAL_WITHIN), (MINT, 3, limits::MINT_WITHIN)] {
            let agents = agents(&limits);
            let rounds = u8::try_from(limits.call_waits.as_secs() / within.as_secs()).unwrap() + 1;
            let _silent = silent(&agents, method, places * rounds).await;
            let began = Instant::now();
            let answer = agents.clone().call(request(method, 99, Body::empty())).await.unwrap();
            assert_eq!((refusal(&answer), began.elapsed()), (None, within * rounds.into()), "{method}");
            assert!(began.elapsed() > limits.call_waits);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_agent_holds_few_of_the_places_for_renewals() {
        let limits = Limits::default();
        for (method, few) in
            [(RENEW, limits::CALLS_PER_AGENT_TO_RENEW), (MINT, limits::CALLS_PER_AGENT_TO_MINT)]
        {
            let agents = agents(&limits);
            let mut unread = Vec::new();
            let next = || agents.clone().call(request(method, 1, Body::empty()));
            for _ in 0..few {
                // HTTP/2 does not touch an answer that the client does not take.
                unread.push(next().await.unwrap());
            }
            let began = Instant::now();
            assert_eq!(refusal(&next().await.unwrap()), None);
            let least = limits::RENEWAL_WITHIN.min(limits::MINT_WITHIN);
            assert!((least..limits.call_waits).contains(&began.elapsed()), "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn both_waits_of_a_call_end_together_and_what_was_counted_is_given_back() {
        // One list a second, so that the second one waits half of its time for that; then there is no place.
        let slow = crate::config::Rate { at_once: 1, per_second: 1 };
        let waits = Duration::from_secs(2);
        let limits = Limits {
            strangers_calls: 1,
            calls_per_address: 1,
            lists: slow,
            reserved_for_renewals: 10,
            call_waits: waits,
            ..Limits::default()
        };
        let quotas = Arc::new(Quotas::new(&limits, Arc::<Metrics>::default()));
        let mut others = UnderWay::new(Arriving::Others, Arc::clone(&quotas)).layer(Echo);
        let held = others.call(request(LIST, 1, Body::empty())).await.unwrap();
        let began = Instant::now();
        let refused = others.call(request(LIST, 2, Body::empty())).await.unwrap();
        assert_eq!((refusal(&refused), began.elapsed()), (Some(Code::ResourceExhausted), waits));
        drop(held);
        // The second was counted a second ago; a call now finds what it gave back.
        let began = Instant::now();
        assert_eq!(refusal(&others.call(request(LIST, 3, Body::empty())).await.unwrap()), None);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[test]
    fn agents_have_no_more_places_and_bytes_by_rank_than_together() {
        for (calls, reserved) in [(16, 10), (16, 90), (2_048, 25), (65_536, 50)] {
            let all = Limits { calls, reserved_for_renewals: reserved, ..Limits::default() };
            let bounds = of_agents(&all);
            assert_eq!(bounds.iter().map(|bounds| bounds.all).sum::<usize>(), calls, "{bounds:?}");
            assert_eq!(bounds.iter().map(|bounds| bounds.bytes).sum::<usize>(), limits::BYTES_PER_AGENT);
            assert!(bounds.iter().all(|bounds| (1..=bounds.all).contains(&bounds.each)), "{bounds:?}");
            // Fifty agents are needed to fill what is for renewals, and whoever waits has its turn before it is refused.
            if calls == limits::CALLS {
                assert!(
                    bounds[0].all / bounds[0].each >= 50 && bounds[1].all / bounds[1].each >= 50,
                    "{bounds:?}"
                );
            }
            assert!(bounds[..2].iter().all(|bounds| bounds.within.unwrap() < Limits::default().call_waits));
            // What each rank may receive at all, it may hold.
            assert!(bounds[0].bytes >= limits::STRANGERS_MESSAGE && bounds[2].bytes >= limits::MESSAGE);
        }
    }
}
