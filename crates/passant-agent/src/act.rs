//! How are the SVIDs that the plan asks for had from the server?

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use passant_core::bundle::Bundle;
use passant_core::csr;
use passant_core::jwt_svid::JwtSvid;
use passant_core::keys::{KeyType, SigningKey};
use passant_core::lifetime::renew_at;
use passant_core::x509_svid::X509Svid;
use passant_core::{AgentFault, AuthorizedEntry, Evidence, Host, Reason, Refusal, Secret};
use passant_daemon::label::Outcome;
use passant_daemon::vitals::Alive;
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use passant_proto::sync::batch_mint_x509svid_request::Item;
use passant_proto::sync::sync_client::SyncClient;
use passant_proto::sync::{BatchMintX509svidRequest, MintJwtsvidRequest};
use passant_proto::{convert, status, types};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backoff::{self, Backoff};
use crate::cache::{Cache, Look, MintFailure, Minted, Seat, Wish};
use crate::connect::{CallError, Link, told_to_workloads};
use crate::grounds;
use crate::health::{Health, Part};
use crate::jwt_cache::JwtIssuer;
use crate::limits;
use crate::metrics::Mint;
use crate::trust;

/// Keeps the cache supplied: plans, makes keys, asks in batches, checks what comes.
pub(crate) struct Minter {
    link: Link,
    cache: Cache,
    host: Host,
    health: Health,
    key_type: KeyType,
    /// Asks for a sync soon: what came back says that the view held is old.
    resync: Arc<Notify>,
    /// CSRs in the next call; halved by failures.
    batch: usize,
    backoff: Backoff,
    paused_until: Option<Instant>,
    /// When to look at the clock next.
    look_at: Instant,
}

struct Order {
    wish: Wish,
    key: Arc<dyn SigningKey>,
    csr: Vec<u8>,
}

impl Minter {
    pub(crate) fn new(
        link: Link,
        cache: Cache,
        host: Host,
        health: Health,
        key_type: KeyType,
        resync: Arc<Notify>,
    ) -> Self {
        Self {
            link,
            cache,
            host,
            health,
            key_type,
            resync,
            batch: limits::MINT_BATCH,
            backoff: Backoff::new(limits::MINT_AGAIN_FIRST, limits::MINT_CALL_AGAIN_LAST),
            paused_until: None,
            look_at: Instant::now() + limits::LOOK_AGAIN,
        }
    }

    /// Runs until told to stop. Looks at the wall clock when the next SVID becomes due, so that renewals keep the spread
    /// that their jitter gave them, and at least every [`limits::LOOK_AGAIN`].
    pub(crate) async fn run(mut self, stop: CancellationToken, alive: Alive) {
        loop {
            alive.beat();
            let due = self.cache.next_due().map(|wait| Instant::now() + wait);
            let at = [self.paused_until, due].into_iter().flatten().fold(self.look_at, Instant::min);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.cache.work() => {}
                () = tokio::time::sleep_until(at) => {}
            }
            // However much news there is.
            let look = if at <= Instant::now() { Look::Clock } else { Look::News };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.turn(look) => {}
            }
        }
    }

    /// Drops what has expired and mints what is due, until nothing is left or the server fails.
    async fn turn(&mut self, look: Look) {
        // After a pause, what came up in it is due too.
        let look = if self.paused_until.is_some() { Look::Clock } else { look };
        let mut due = self.cache.plan(look);
        if look == Look::Clock {
            self.look_at = Instant::now() + limits::LOOK_AGAIN;
        }
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.paused_until = None;
        if due.is_empty() && look == Look::Clock {
            // What failed before is not wanted any more, or not yet again.
            self.judge();
        }
        while !due.is_empty() {
            // What is minted ahead keeps nobody waiting.
            let awaited = due.iter().take_while(|wish| wish.is_awaited).count();
            let most = if awaited > 0 { awaited } else { due.len() };
            let mut rest = due.split_off(fitting(&due[..most], self.batch));
            let began = Instant::now();
            let minted = self.mint(&due).await;
            let metrics = self.link.metrics();
            metrics.mint.of(Outcome::of(minted.as_ref().map_err(|error| &error.refusal))).since(began);
            metrics.mint_batch.observe(due.len());
            match minted {
                Ok(outcomes) => {
                    self.backoff.succeeded();
                    self.batch = (self.batch * 2).min(limits::MINT_BATCH);
                    report(&outcomes);
                    self.cache.minted(outcomes);
                    self.judge();
                }
                Err(error) => {
                    metrics.mint_failures.of(error.refusal.reason).inc();
                    self.batch = (self.batch / 2).max(1);
                    let guess = self.backoff.failed(&self.host);
                    let wait = backoff::as_told(error.refusal.retry_after, guess, &self.host);
                    self.paused_until = Some(Instant::now() + wait);
                    self.health.bad(Part::Mint, &error.to_string());
                    self.cache.mint_trouble(Some(&told_to_workloads(&error.refusal)));
                    return;
                }
            }
            // Nor does the rest keep those waiting that have come meanwhile.
            due = self.cache.plan(Look::News);
            rest.retain(|wish| due.iter().all(|news| news.seat != wish.seat));
            due.append(&mut rest);
        }
    }

    async fn mint(&self, wishes: &[Wish]) -> Result<Vec<(Seat, Result<Minted, MintFailure>)>, CallError> {
        let what = "mint X509-SVIDs";
        let orders = self.orders(wishes).await.map_err(|refusal| CallError { what, refusal })?;
        let results = match self.link.takes_evidence() {
            true => match self.ask_on_evidence(what, &orders).await {
                Err(error) if error.is_unimplemented() => {
                    self.link.set_takes_evidence(false);
                    self.ask(what, &orders).await?
                }
                other => other?,
            },
            false => self.ask(what, &orders).await?,
        };
        if results.len() != orders.len() {
            let (got, asked) = (results.len(), orders.len());
            return Err(CallError::unavailable(
                what,
                format!("the server answered {got} of {asked} requests"),
            ));
        }
        let outcome = |(order, granted): (Order, _)| (order.wish.seat.clone(), self.check(order, granted));
        Ok(orders.into_iter().zip(results).map(outcome).collect())
    }

    /// Asks a Passant server.
    async fn ask_on_evidence(&self, what: &'static str, orders: &[Order]) -> Result<Vec<Granted>, CallError> {
        let item = |order: &Order| Item {
            entry_id: order.wish.entry.id.to_string(),
            csr: order.csr.clone(),
            evidence: order
                .wish
                .evidence
                .as_ref()
                .map(|it| grounds::to_wire(&self.link, it, &order.wish.entry)),
        };
        let items: Vec<Item> = orders.iter().map(item).collect();
        let asked = self.link.call(what, limits::CALL, |channel| {
            let items = items.clone();
            async move {
                let mut client = SyncClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
                Ok(client.batch_mint_x509svid(BatchMintX509svidRequest { items }).await?.into_inner())
            }
        });
        let results = asked.await?.results.into_iter();
        Ok(results.map(|result| Granted { status: result.status, svid: result.svid }).collect())
    }

    /// Asks a SPIRE server.
    async fn ask(&self, what: &'static str, orders: &[Order]) -> Result<Vec<Granted>, CallError> {
        let params: Vec<NewX509svidParams> = orders
            .iter()
            .map(|order| NewX509svidParams {
                entry_id: order.wish.entry.id.to_string(),
                csr: order.csr.clone(),
            })
            .collect();
        let asked = self.link.call(what, limits::CALL, |channel| {
            let params = params.clone();
            async move {
                let mut client = SvidClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
                Ok(client.batch_new_x509svid(BatchNewX509svidRequest { params }).await?.into_inner())
            }
        });
        let results = asked.await?.results.into_iter();
        Ok(results.map(|result| Granted { status: result.status, svid: result.svid }).collect())
    }

    /// A fresh key and a CSR for each entry. Yields now and then: 500 keys take a while.
    async fn orders(&self, wishes: &[Wish]) -> Result<Vec<Order>, Refusal> {
        let mut orders = Vec::with_capacity(wishes.len());
        for wish in wishes {
            let key = self.host.keys.generate(self.key_type).map_err(Refusal::internal)?;
            let csr = csr::make(&*key, Some(&wish.entry.spiffe_id)).map_err(Refusal::internal)?;
            orders.push(Order { wish: wish.clone(), key, csr });
            if orders.len() % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(orders)
    }

    /// Takes an SVID only if it was granted and fits.
    fn check(&self, order: Order, granted: Granted) -> Result<Minted, MintFailure> {
        let (counts, checked) = match status::from_item(granted.status.as_ref()) {
            Ok(()) => {
                let taken = self.take(order, granted);
                (if taken.is_ok() { Mint::Minted } else { Mint::Unfit }, taken)
            }
            Err(refusal) if refusal.reason == Reason::NotFound => {
                self.resync.notify_one();
                (Mint::NotFound, Err(MintFailure(refusal.public)))
            }
            Err(refusal) => (Mint::Refused, Err(MintFailure(refusal.public))),
        };
        self.link.metrics().minted.of(counts).inc();
        checked
    }

    /// Takes an SVID only if it is what was asked for and the bundle held vouches for it.
    fn take(&self, order: Order, granted: Granted) -> Result<Minted, MintFailure> {
        let svid = granted.svid.ok_or_else(|| MintFailure("the server sent no SVID".to_owned()))?;
        let svid = convert::svid::x509_from_wire(&svid).map_err(|error| MintFailure(error.to_string()))?;
        let (bundle, vouched) = self.fits(&order, &svid)?;
        let renew_at = renew_at(svid.not_before(), svid.not_after(), self.host.jitter());
        let key = Arc::new(Secret::new(order.key.pkcs8().expose().clone()));
        Ok(Minted { entry: order.wish.entry, svid: Arc::new(svid), key, renew_at, bundle, vouched })
    }

    /// The bundle that vouches for it, and whether an authority does that is not tainted.
    fn fits(&self, order: &Order, svid: &X509Svid) -> Result<(Arc<Bundle>, bool), MintFailure> {
        if *svid.id() != order.wish.entry.spiffe_id {
            return Err(MintFailure(format!("the server sent an SVID for {}", svid.id())));
        }
        if svid.public_key() != order.key.public_key() {
            return Err(MintFailure("the server sent an SVID for another key".to_owned()));
        }
        let now = self.host.now();
        if svid.not_after() <= now {
            let end = svid.not_after();
            return Err(MintFailure(format!("the new SVID ended {end}, but this host's clock shows {now}")));
        }
        let bundle = self.link.bundle().ok_or_else(|| MintFailure("no bundle is held".to_owned()))?;
        let vouched = trust::verify_issued(svid, &bundle).map_err(|error| {
            // Its authority may be newer than the bundle held; workloads get the SVID together with the bundle.
            self.resync.notify_one();
            MintFailure(format!("the new SVID does not verify against the bundle held: {error}"))
        })?;
        Ok((bundle, vouched))
    }

    /// The server answers; whether it mints is another question.
    fn judge(&self) {
        match self.cache.barren() {
            Some(why) => self.health.bad(Part::Mint, &why),
            None => self.health.good(Part::Mint),
        }
        self.cache.mint_trouble(None);
    }
}

fn report(outcomes: &[(Seat, Result<Minted, MintFailure>)]) {
    let mut failed = 0;
    for (Seat { entry, .. }, outcome) in outcomes {
        match outcome {
            Ok(minted) => {
                let serial = minted.svid.serial();
                info!(%entry, spiffe_id = %minted.entry.spiffe_id, %serial,
                    not_after = %minted.svid.not_after(), "X509-SVID minted");
            }
            Err(MintFailure(why)) => {
                failed += 1;
                warn!(%entry, why, "failed to mint an X509-SVID");
            }
        }
    }
    debug!(count = outcomes.len(), failed, "batch done");
}

/// What became of one order.
struct Granted {
    status: Option<types::Status>,
    svid: Option<types::X509svid>,
}

/// How many of the first of `wishes`, and of the first `most`, go into one call. One does in any case.
fn fitting(wishes: &[Wish], most: usize) -> usize {
    let bytes = wishes
        .iter()
        .map(|wish| wish.evidence.as_ref().map_or(0, |evidence| grounds::bytes(evidence, &wish.entry)));
    let sums = bytes.scan(0_usize, |sum, bytes| {
        *sum = sum.saturating_add(bytes);
        Some(*sum)
    });
    sums.take(most).take_while(|sum| *sum <= limits::MINT_EVIDENCE_BYTES).count().max(1)
}

/// The server as the issuer of JWT-SVIDs.
pub(crate) struct ServerJwt {
    link: Link,
    /// Asks for a sync soon, as [`Minter`] does.
    resync: Arc<Notify>,
}

impl ServerJwt {
    pub(crate) const fn new(link: Link, resync: Arc<Notify>) -> Self {
        Self { link, resync }
    }
}

impl JwtIssuer for ServerJwt {
    fn issue(
        &self,
        entry: Arc<AuthorizedEntry>,
        audience: Vec<String>,
        evidence: Option<Arc<Evidence>>,
    ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>> {
        let (link, resync) = (self.link.clone(), Arc::clone(&self.resync));
        Box::pin(async move {
            fetch_jwt(&link, &entry, &audience, evidence.as_deref()).await.map_err(|refusal| {
                let refusal = of_the_token(refusal);
                if refusal.reason == Reason::NotFound {
                    resync.notify_one();
                }
                debug!(entry = %entry.id, error = %refusal, "failed to fetch a JWT-SVID");
                let public = format!("could not fetch JWT-SVID: {}", told_to_workloads(&refusal));
                Refusal { public, ..refusal }
            })
        })
    }
}

/// What a refusal says of the token that was asked for. An agent that has to attest or to renew is refused whatever it asks, and
/// soon no more: that is no word on the entry. Of a ban nothing is to be held back until all else is.
fn of_the_token(refusal: Refusal) -> Refusal {
    match refusal.agent_fault {
        Some(AgentFault::Banned) | None => refusal,
        Some(_) => Refusal { reason: Reason::Unavailable, ..refusal },
    }
}

async fn fetch_jwt(
    link: &Link,
    entry: &AuthorizedEntry,
    audience: &[String],
    evidence: Option<&Evidence>,
) -> Result<JwtSvid, Refusal> {
    let asked = match link.takes_evidence() {
        true => match ask_jwt_on_evidence(link, entry, audience, evidence).await {
            Err(error) if error.is_unimplemented() => {
                link.set_takes_evidence(false);
                ask_jwt(link, entry, audience).await
            }
            other => other,
        },
        false => ask_jwt(link, entry, audience).await,
    };
    let answer = asked.map_err(|error| error.refusal)?;
    let wrong = |why: String| Refusal::unavailable(format!("the server sent {why}"));
    let wire = answer.ok_or_else(|| wrong("no token".to_owned()))?;
    let svid =
        convert::svid::jwt_from_wire(&wire).map_err(|error| wrong(format!("a malformed token: {error}")))?;
    if *svid.id() != entry.spiffe_id {
        return Err(wrong(format!("a token for {}", svid.id())));
    }
    if let Some(missing) = audience.iter().find(|one| !svid.audience().contains(one)) {
        return Err(wrong(format!("a token without the audience \"{missing}\"")));
    }
    Ok(svid)
}

async fn ask_jwt_on_evidence(
    link: &Link,
    entry: &AuthorizedEntry,
    audience: &[String],
    evidence: Option<&Evidence>,
) -> Result<Option<types::Jwtsvid>, CallError> {
    let request = MintJwtsvidRequest {
        entry_id: entry.id.to_string(),
        audience: audience.to_vec(),
        evidence: evidence.map(|evidence| grounds::to_wire(link, evidence, entry)),
    };
    let call = link.call(JWT, JWT_CALL, |channel| {
        let request = request.clone();
        async move { Ok(SyncClient::new(channel).mint_jwtsvid(request).await?.into_inner()) }
    });
    Ok(call.await?.svid)
}

async fn ask_jwt(
    link: &Link,
    entry: &AuthorizedEntry,
    audience: &[String],
) -> Result<Option<types::Jwtsvid>, CallError> {
    let call = link.call(JWT, JWT_CALL, |channel| {
        let request = NewJwtsvidRequest { entry_id: entry.id.to_string(), audience: audience.to_vec() };
        async move { Ok(SvidClient::new(channel).new_jwtsvid(request).await?.into_inner()) }
    });
    Ok(call.await?.svid)
}

const JWT: &str = "fetch a JWT-SVID";

/// One attempt; the cache retries within its own budget. Longer than the server lets a call wait in line by default, so that
/// its refusal is heard, with when to come again.
const JWT_CALL: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_lacks_is_no_word_on_a_token() {
        use AgentFault::{Banned, Expired, MustReattest, NotActive, NotAttested};
        let refused = |fault| of_the_token(Refusal::denied("agent is not accepted").with_agent_fault(fault));
        for fault in [Expired, NotAttested, NotActive, MustReattest] {
            assert_eq!(refused(fault).reason, Reason::Unavailable, "{fault:?}");
        }
        assert_eq!(refused(Banned).reason, Reason::Denied);
        for reason in [Reason::Denied, Reason::NotFound] {
            assert_eq!(of_the_token(Refusal::new(reason, "no")).reason, reason);
        }
    }
}
