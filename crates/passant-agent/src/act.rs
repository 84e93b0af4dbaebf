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
use passant_core::{AuthorizedEntry, EntryId, Host, Reason, Refusal, Secret};
use passant_daemon::label::Outcome;
use passant_daemon::vitals::Alive;
use passant_proto::svid::svid_client::SvidClient;
use passant_proto::svid::{
    BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams, batch_new_x509svid_response,
};
use passant_proto::{convert, status};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backoff::{self, Backoff};
use crate::cache::{Cache, MintFailure, Minted};
use crate::connect::{CallError, Link, told_to_workloads};
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
}

struct Order {
    entry: Arc<AuthorizedEntry>,
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
        }
    }

    /// Runs until told to stop. Looks at the wall clock when the next SVID becomes due, so that renewals keep the spread
    /// that their jitter gave them, and at least every [`limits::LOOK_AGAIN`].
    pub(crate) async fn run(mut self, stop: CancellationToken, alive: Alive) {
        loop {
            alive.beat();
            let due = self.cache.next_due().map(|wait| Instant::now() + wait);
            let latest = Instant::now() + limits::LOOK_AGAIN;
            let look = [self.paused_until, due].into_iter().flatten().fold(latest, Instant::min);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.cache.work() => {}
                () = tokio::time::sleep_until(look) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.turn() => {}
            }
        }
    }

    /// Drops what has expired and mints what is due, until nothing is left or the server fails.
    async fn turn(&mut self) {
        let mut due = self.cache.plan();
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.paused_until = None;
        if due.is_empty() {
            // What failed before is not wanted any more, or not yet again.
            self.judge();
        }
        while !due.is_empty() {
            let rest = due.split_off(due.len().min(self.batch));
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
            due = rest;
        }
    }

    async fn mint(
        &self,
        entries: &[Arc<AuthorizedEntry>],
    ) -> Result<Vec<(EntryId, Result<Minted, MintFailure>)>, CallError> {
        let what = "mint X509-SVIDs";
        let orders = self.orders(entries).await.map_err(|refusal| CallError { what, refusal })?;
        let params: Vec<NewX509svidParams> = orders
            .iter()
            .map(|order| NewX509svidParams { entry_id: order.entry.id.to_string(), csr: order.csr.clone() })
            .collect();
        let answer = self
            .link
            .call(what, limits::CALL, |channel| {
                let params = params.clone();
                async move {
                    let mut client =
                        SvidClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES);
                    Ok(client.batch_new_x509svid(BatchNewX509svidRequest { params }).await?.into_inner())
                }
            })
            .await?;
        if answer.results.len() != orders.len() {
            let (got, asked) = (answer.results.len(), orders.len());
            return Err(CallError::unavailable(
                what,
                format!("the server answered {got} of {asked} requests"),
            ));
        }
        let outcome = |(order, result): (Order, _)| (order.entry.id.clone(), self.check(order, result));
        Ok(orders.into_iter().zip(answer.results).map(outcome).collect())
    }

    /// A fresh key and a CSR for each entry. Yields now and then: 500 keys take a while.
    async fn orders(&self, entries: &[Arc<AuthorizedEntry>]) -> Result<Vec<Order>, Refusal> {
        let mut orders = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = self.host.keys.generate(self.key_type).map_err(Refusal::internal)?;
            let csr = csr::make(&*key, Some(&entry.spiffe_id)).map_err(Refusal::internal)?;
            orders.push(Order { entry: Arc::clone(entry), key, csr });
            if orders.len() % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(orders)
    }

    /// Takes an SVID only if it was granted and fits.
    fn check(
        &self,
        order: Order,
        result: batch_new_x509svid_response::Result,
    ) -> Result<Minted, MintFailure> {
        let (counts, checked) = match status::from_item(result.status.as_ref()) {
            Ok(()) => {
                let taken = self.take(order, result);
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
    fn take(&self, order: Order, result: batch_new_x509svid_response::Result) -> Result<Minted, MintFailure> {
        let svid = result.svid.ok_or_else(|| MintFailure("the server sent no SVID".to_owned()))?;
        let svid = convert::svid::x509_from_wire(&svid).map_err(|error| MintFailure(error.to_string()))?;
        let (bundle, vouched) = self.fits(&order, &svid)?;
        let renew_at = renew_at(svid.not_before(), svid.not_after(), self.host.jitter());
        let key = Arc::new(Secret::new(order.key.pkcs8().expose().clone()));
        Ok(Minted { entry: order.entry, svid: Arc::new(svid), key, renew_at, bundle, vouched })
    }

    /// The bundle that vouches for it, and whether an authority does that is not tainted.
    fn fits(&self, order: &Order, svid: &X509Svid) -> Result<(Arc<Bundle>, bool), MintFailure> {
        if *svid.id() != order.entry.spiffe_id {
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

fn report(outcomes: &[(EntryId, Result<Minted, MintFailure>)]) {
    let mut failed = 0;
    for (id, outcome) in outcomes {
        match outcome {
            Ok(minted) => {
                let serial = minted.svid.serial();
                info!(entry = %id, spiffe_id = %minted.entry.spiffe_id, %serial,
                    not_after = %minted.svid.not_after(), "X509-SVID minted");
            }
            Err(MintFailure(why)) => {
                failed += 1;
                warn!(entry = %id, why, "failed to mint an X509-SVID");
            }
        }
    }
    debug!(count = outcomes.len(), failed, "batch done");
}

/// The server as the issuer of JWT-SVIDs.
pub(crate) struct ServerJwt {
    link: Link,
}

impl ServerJwt {
    pub(crate) const fn new(link: Link) -> Self {
        Self { link }
    }
}

impl JwtIssuer for ServerJwt {
    fn issue(
        &self,
        entry: Arc<AuthorizedEntry>,
        audience: Vec<String>,
    ) -> Pin<Box<dyn Future<Output = Result<JwtSvid, Refusal>> + Send>> {
        let link = self.link.clone();
        Box::pin(async move {
            fetch_jwt(&link, &entry, &audience).await.map_err(|refusal| {
                debug!(entry = %entry.id, error = %refusal, "failed to fetch a JWT-SVID");
                let public = format!("could not fetch JWT-SVID: {}", told_to_workloads(&refusal));
                Refusal { public, ..refusal }
            })
        })
    }
}

async fn fetch_jwt(link: &Link, entry: &AuthorizedEntry, audience: &[String]) -> Result<JwtSvid, Refusal> {
    let call = link.call("fetch a JWT-SVID", JWT_CALL, |channel| {
        let request = NewJwtsvidRequest { entry_id: entry.id.to_string(), audience: audience.to_vec() };
        async move { Ok(SvidClient::new(channel).new_jwtsvid(request).await?.into_inner()) }
    });
    let answer = call.await.map_err(|error| error.refusal)?;
    let wrong = |why: String| Refusal::unavailable(format!("the server sent {why}"));
    let wire = answer.svid.ok_or_else(|| wrong("no token".to_owned()))?;
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

/// One attempt; the cache retries within its own budget. Longer than the server lets a call wait in line by default, so that
/// its refusal is heard, with when to come again.
const JWT_CALL: Duration = Duration::from_secs(12);
