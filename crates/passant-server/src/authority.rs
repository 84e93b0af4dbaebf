//! Which authorities sign, and how does one succeed another?
//!
//! The phases are state in the journal, the keys are in the key store, and what is due is decided in `slots`. This file
//! acts, always in the same order: key put into custody, decision on record, certificate signed, authority and bundle
//! journaled in one commit, and only then is the key used for anybody else. A crash anywhere in between leaves at most a
//! key that belongs to no authority, which the next start removes.

mod by_hand;
mod leaf;
mod mint;
mod reach;
mod slots;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use passant_core::bundle::{Bundle, BundleError, JwtAuthority, X509Authority};
use passant_core::csr::key_hash;
use passant_core::keys::{KeyError, KeyType, SigningKey};
use passant_core::limits::BACKDATE;
use passant_core::serial::Serial;
use passant_core::{Host, Refusal, SpiffeId, UnixTime};
use thiserror::Error;

use crate::issue::{PoolError, SigningPool};
use crate::journal::Journal;
use crate::keystore::{KeyStore, KeyStoreError};
use crate::record::{Decision, DecisionKind, DecisionLog, Outcome, RecordError};
use crate::state::State;
use crate::state::authority::{Authority, AuthorityId, AuthorityKind, Phase};
use crate::state::change::Change;

pub use by_hand::Slots;
pub(crate) use leaf::LeafFacts;
#[cfg(test)]
pub(crate) use mint::moment;
pub use mint::{ActiveJwt, ActiveX509, MintError};
pub(crate) use mint::{AuthorityFacts, KEY_ID_BYTES, authority_id};
pub use reach::Reach;
use slots::{Policy, Step};

/// More steps than one turn can need for one kind: prune a few, prepare, activate, prepare the next.
const STEPS_PER_TURN: usize = 16;

/// How long authorities live and what they are made for.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// Lifetime of an X.509 and of a JWT authority.
    pub ca_ttl: Duration,
    /// Kind of an X.509 authority's key.
    pub x509_key_type: KeyType,
    /// Kind of a JWT authority's key.
    pub jwt_key_type: KeyType,
    /// The longest default lifetime of what an X.509 authority signs: workloads, agents or the server itself.
    pub x509_leaf_ttl: Duration,
    /// The default lifetime of JWT-SVIDs.
    pub jwt_leaf_ttl: Duration,
    /// How long after its fetch an agent counts as having handed a bundle on to its workloads: a sync interval.
    pub settle: Duration,
    /// How often consumers of the own bundle should ask for a newer one.
    pub refresh_hint: Option<Duration>,
    /// Start although the key of an active authority is lost: it is retired and a new one signs at once. Agents that lack
    /// the new authority cannot verify the server until they have its bundle.
    pub accept_lost_keys: bool,
}

/// What authorities are made with.
#[derive(Clone)]
pub struct AuthorityParts {
    /// Where phases and bundle are.
    pub journal: Journal,
    /// Where the private keys are.
    pub keystore: Arc<dyn KeyStore>,
    /// Where every signature is announced.
    pub record: DecisionLog,
    /// Time, randomness and new keys.
    pub host: Host,
    /// Where blocking work is done.
    pub pool: SigningPool,
}

/// The X.509 and JWT authorities of this server.
pub struct Authorities {
    parts: AuthorityParts,
    config: AuthorityConfig,
    reach: Reach,
    x509: ArcSwap<ActiveX509>,
    jwt: ArcSwap<ActiveJwt>,
    forced: ArcSwapOption<ForcedActivation>,
    /// Held for a whole turn: steps of two turns never interleave.
    turn: tokio::sync::Mutex<()>,
}

/// An activation that could not wait for every agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedActivation {
    /// Which authority signs since then.
    pub id: AuthorityId,
    /// When.
    pub at: UnixTime,
    /// The agents that were not known to have it.
    pub lacking: Vec<SpiffeId>,
}

/// Why authorities cannot be opened or moved on.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The journal names an active authority whose key is not in the key store.
    #[error(
        "private key of the active {} authority {id} is lost: restore the key file that belongs to this data \
         directory from its backup; if it is gone for good, start once with accept_lost_keys = true, which retires the \
         authority and makes a new one at once (agents then need the new bundle to reconnect)",
        kind_name(*.kind)
    )]
    KeyLost {
        /// X.509 or JWT.
        kind: AuthorityKind,
        /// Which one.
        id: AuthorityId,
    },
    /// No authority is active after a turn that made no other error.
    #[error("no {} authority could be activated", kind_name(*.0))]
    NoneActive(AuthorityKind),
    /// The key store failed.
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    /// A key could not be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The decision record did not take the intent.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The certificate could not be made.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// What was made does not fit into a bundle.
    #[error("failed to publish a new authority")]
    Publish(#[from] BundleError),
    /// The journal did not take the change.
    #[error("failed to journal an authority")]
    Journal(#[from] Refusal),
    /// The work was lost.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl Authorities {
    /// Finds the active authorities of the journal and their keys. A store without usable ones gets new ones, which sign at
    /// once.
    ///
    /// # Errors
    /// [`AuthorityError::KeyLost`] when the key of an active authority is missing and `accept_lost_keys` is not set;
    /// otherwise whatever kept the first turn from being taken.
    pub async fn open(parts: AuthorityParts, config: AuthorityConfig) -> Result<Self, AuthorityError> {
        let reach = Reach::new(config.settle);
        let turns = Turns { parts: &parts, config: &config, reach: &reach };
        turns.check_keys().await?;
        let mut forced = None;
        for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
            forced = turns.take(kind).await?.forced.or(forced);
        }
        turns.sweep().await?;
        let x509 = ArcSwap::from_pointee(turns.active_x509().await?);
        let jwt = ArcSwap::from_pointee(turns.active_jwt().await?);
        let forced = ArcSwapOption::from_pointee(forced);
        Ok(Self { parts, config, reach, x509, jwt, forced, turn: tokio::sync::Mutex::new(()) })
    }

    /// The X.509 authority that signs now. Whoever uses it clamps to its end: it may have expired if no successor could be
    /// made.
    pub fn x509(&self) -> Arc<ActiveX509> {
        self.x509.load_full()
    }

    /// The JWT authority that signs now.
    pub fn jwt(&self) -> Arc<ActiveJwt> {
        self.jwt.load_full()
    }

    /// Which agents have which bundle.
    pub const fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The last activation that did not wait for all agents, since the start; for health and alerts.
    pub fn forced_activation(&self) -> Option<Arc<ForcedActivation>> {
        self.forced.load_full()
    }

    /// The agents that are not known to have the authority of this kind that signs next; `None` as long as none is prepared.
    pub fn lacking_prepared(&self, kind: AuthorityKind, now: UnixTime) -> Option<Vec<SpiffeId>> {
        let state = self.parts.journal.state();
        let next = state.authorities().find(|one| one.kind == kind && one.phase == Phase::Prepared)?;
        Some(self.reach.lacking(&state, next.published, now))
    }

    /// Takes the steps that are due now; to be called every second or so.
    ///
    /// # Errors
    /// The first failure; the other kind has been taken care of all the same. Try again at the next turn.
    pub async fn tick(&self) -> Result<(), AuthorityError> {
        let _turn = self.turn.lock().await;
        let turns = self.turns();
        let x509 = self.take(&turns, AuthorityKind::X509).await;
        let jwt = self.take(&turns, AuthorityKind::Jwt).await;
        x509.and(jwt)
    }

    const fn turns(&self) -> Turns<'_> {
        Turns { parts: &self.parts, config: &self.config, reach: &self.reach }
    }

    async fn take(&self, turns: &Turns<'_>, kind: AuthorityKind) -> Result<(), AuthorityError> {
        let taken = turns.take(kind).await;
        // Whatever steps were taken stand, even if a later one failed.
        let followed = self.follow(turns, kind).await;
        let taken = taken?;
        if let Some(forced) = taken.forced {
            self.forced.store(Some(Arc::new(forced)));
        }
        if taken.steps > 0 {
            turns.sweep().await?;
        }
        followed
    }

    /// Signs with the authority that the journal says is active.
    async fn follow(&self, turns: &Turns<'_>, kind: AuthorityKind) -> Result<(), AuthorityError> {
        let active = turns.active(kind)?.id;
        match kind {
            AuthorityKind::X509 if active != *self.x509.load().id() => {
                self.x509.store(Arc::new(turns.active_x509().await?));
            }
            AuthorityKind::Jwt if active != *self.jwt.load().id() => {
                self.jwt.store(Arc::new(turns.active_jwt().await?));
            }
            AuthorityKind::X509 | AuthorityKind::Jwt => {}
        }
        Ok(())
    }
}

/// One turn over the authorities.
struct Turns<'a> {
    parts: &'a AuthorityParts,
    config: &'a AuthorityConfig,
    reach: &'a Reach,
}

#[derive(Default)]
struct Taken {
    steps: usize,
    forced: Option<ForcedActivation>,
}

/// Who wants a new authority, and why; for the record.
struct Asked {
    caller: String,
    reason: String,
}

impl Asked {
    fn by_rotation() -> Self {
        Self { caller: "server".to_owned(), reason: "rotation of authorities".to_owned() }
    }
}

impl Turns<'_> {
    /// Takes every step that is due for one kind.
    async fn take(&self, kind: AuthorityKind) -> Result<Taken, AuthorityError> {
        let leaf = match kind {
            AuthorityKind::X509 => self.config.x509_leaf_ttl,
            AuthorityKind::Jwt => self.config.jwt_leaf_ttl,
        };
        let policy = Policy::new(self.config.ca_ttl, leaf);
        let mut taken = Taken::default();
        while taken.steps < STEPS_PER_TURN {
            let now = self.parts.host.now();
            let state = self.parts.journal.state();
            let authorities: Vec<&Authority> = state.authorities().filter(|a| a.kind == kind).collect();
            let lacks = |sequence| self.reach.lacking(&state, sequence, now);
            let Some(step) = policy.due(&authorities, lacks, now) else { break };
            match step {
                Step::Prepare => drop(self.prepare(kind, now, Asked::by_rotation()).await?),
                Step::Activate { id, lacking } => {
                    if self.activate(kind, &id, &lacking, now).await? && !lacking.is_empty() {
                        taken.forced = Some(ForcedActivation { id, at: now, lacking });
                    }
                }
                Step::Prune(id) => self.prune(&id).await?,
            }
            taken.steps += 1;
        }
        Ok(taken)
    }

    /// Makes a new authority and publishes it.
    async fn prepare(
        &self,
        kind: AuthorityKind,
        now: UnixTime,
        asked: Asked,
    ) -> Result<Authority, AuthorityError> {
        // Its key would be made in vain, at every turn another one.
        if let Some(why) = self.parts.journal.fault() {
            return Err(Refusal::unavailable("the datastore has failed and is being opened again")
                .because(why.to_string())
                .into());
        }
        // The key of an attempt that failed after custody belongs to no authority.
        self.sweep().await?;
        let key = self.new_key(kind).await?;
        let id = authority_id(key.public_key());
        let authority = match kind {
            AuthorityKind::X509 => self.new_x509(&id, &key, now, asked).await?,
            AuthorityKind::Jwt => self.new_jwt(&id, &key, now, asked).await?,
        };
        let refresh_hint = self.config.refresh_hint;
        let published =
            self.parts.journal.submit(move |state| publish(state, authority, refresh_hint)).await?;
        tracing::info!(authority = %id, kind = kind_name(kind), "prepared a new authority");
        Ok(published)
    }

    /// A new key, in custody.
    async fn new_key(&self, kind: AuthorityKind) -> Result<Arc<dyn SigningKey>, AuthorityError> {
        let keys = Arc::clone(&self.parts.host.keys);
        let keystore = Arc::clone(&self.parts.keystore);
        let key_type = match kind {
            AuthorityKind::X509 => self.config.x509_key_type,
            AuthorityKind::Jwt => self.config.jwt_key_type,
        };
        let work = move || -> Result<_, AuthorityError> {
            let key = keys.generate(key_type)?;
            keystore.put(&authority_id(key.public_key()), key.pkcs8())?;
            Ok(key)
        };
        self.parts.pool.run(work).await?
    }

    async fn new_x509(
        &self,
        id: &AuthorityId,
        key: &Arc<dyn SigningKey>,
        now: UnixTime,
        asked: Asked,
    ) -> Result<Authority, AuthorityError> {
        let order = mint::RootOrder {
            trust_domain_id: self.parts.journal.state().trust_domain().id(),
            serial: Serial::random(&self.parts.host),
            not_before: now.minus(BACKDATE),
            not_after: now.plus(self.config.ca_ttl),
        };
        let (not_before, not_after) = (order.not_before, order.not_after);
        let named = (DecisionKind::X509Authority, order.serial.to_string());
        let decision = self.decision(named, key, (now, not_after), asked);
        let signer = Arc::clone(key);
        let certificate = self.recorded(decision, move |intent| mint::root(intent, &order, &*signer)).await?;
        Ok(Authority {
            certificate: Some(certificate),
            ..self.new_authority(id, AuthorityKind::X509, key, (not_before, not_after), now)
        })
    }

    async fn new_jwt(
        &self,
        id: &AuthorityId,
        key: &Arc<dyn SigningKey>,
        now: UnixTime,
        asked: Asked,
    ) -> Result<Authority, AuthorityError> {
        let not_after = now.plus(self.config.ca_ttl);
        // Nothing is signed, but whoever audits tokens wants to know where their key comes from.
        let named = (DecisionKind::JwtAuthority, id.to_string());
        let decision = self.decision(named, key, (now, not_after), asked);
        self.recorded(decision, |_| Ok(())).await?;
        Ok(self.new_authority(id, AuthorityKind::Jwt, key, (now, not_after), now))
    }

    fn new_authority(
        &self,
        id: &AuthorityId,
        kind: AuthorityKind,
        key: &Arc<dyn SigningKey>,
        (not_before, not_after): (UnixTime, UnixTime),
        now: UnixTime,
    ) -> Authority {
        Authority {
            id: id.clone(),
            kind,
            phase: Phase::Prepared,
            tainted: false,
            certificate: None,
            public_key: key.public_key().to_vec(),
            not_before,
            not_after,
            prepared_at: now,
            activated_at: None,
            // Known once the bundle is: see `publish`.
            published: 0,
        }
    }

    fn decision(
        &self,
        (kind, serial): (DecisionKind, String),
        key: &Arc<dyn SigningKey>,
        (at, not_after): (UnixTime, UnixTime),
        asked: Asked,
    ) -> Decision {
        Decision {
            kind,
            serial,
            spiffe_id: self.parts.journal.state().trust_domain().id(),
            entry: None,
            key_hash: key_hash(key.public_key()),
            not_after,
            caller: asked.caller,
            reason: asked.reason,
            authority: None,
            at,
            grounds: None,
        }
    }

    /// Puts `decision` on record, does `work` with the permission, and tells the record what became of it.
    async fn recorded<T: Send + 'static>(
        &self,
        decision: Decision,
        work: impl FnOnce(&crate::record::Intent) -> Result<T, MintError> + Send + 'static,
    ) -> Result<T, AuthorityError> {
        let mut intents = self.parts.record.intend(vec![decision]).await?;
        let intent = intents.pop().ok_or(RecordError::Closed)?;
        let run = move || {
            let done = work(&intent);
            (done, intent.into_receipt())
        };
        let (done, receipt) = self.parts.pool.run(run).await?;
        let outcome = match &done {
            Ok(_) => Outcome::Signed,
            Err(error) => Outcome::NotSigned(error.to_string()),
        };
        self.parts.record.outcome(receipt, outcome);
        Ok(done?)
    }

    /// Lets a prepared authority sign; whether it does now. One whose key is lost is taken back instead, so that the next
    /// step prepares another.
    async fn activate(
        &self,
        kind: AuthorityKind,
        id: &AuthorityId,
        lacking: &[SpiffeId],
        now: UnixTime,
    ) -> Result<bool, AuthorityError> {
        if self.load(id).await?.is_none() {
            tracing::error!(authority = %id, "private key of a prepared authority is lost: taking the authority back");
            self.prune(id).await?;
            return Ok(false);
        }
        let next = id.clone();
        self.parts.journal.submit(move |state| Ok((succession(state, kind, &next, now), ()))).await?;
        if lacking.is_empty() {
            tracing::info!(authority = %id, kind = kind_name(kind), "activated an authority");
        } else {
            let some: Vec<&str> = lacking.iter().take(10).map(SpiffeId::as_str).collect();
            tracing::error!(
                authority = %id,
                kind = kind_name(kind),
                lacking = lacking.len(),
                agents = ?some,
                "activated an authority that is not known to have reached all agents: the active one could no longer cover \
                 a default lifetime; workloads below these agents may refuse new SVIDs until their agents have synced"
            );
        }
        Ok(true)
    }

    /// Forgets an authority and takes it out of the bundle, in one commit. Its key follows in `sweep`.
    async fn prune(&self, id: &AuthorityId) -> Result<(), AuthorityError> {
        let gone = id.clone();
        self.parts.journal.submit(move |state| Ok((withdrawal(state, &gone), ()))).await?;
        tracing::info!(authority = %id, "pruned an authority");
        Ok(())
    }

    /// Refuses to go on without the key of an active authority, or retires that authority if so configured.
    async fn check_keys(&self) -> Result<(), AuthorityError> {
        let state = self.parts.journal.state();
        let now = self.parts.host.now();
        for authority in state.authorities().filter(|a| a.phase == Phase::Active && a.not_after > now) {
            if self.load(&authority.id).await?.is_some() {
                continue;
            }
            if !self.config.accept_lost_keys {
                return Err(AuthorityError::KeyLost { kind: authority.kind, id: authority.id.clone() });
            }
            tracing::error!(authority = %authority.id, "private key of an active authority is lost: retiring it, as configured");
            let retired = Authority { phase: Phase::Retired, ..authority.clone() };
            self.parts.journal.submit(move |_| Ok((vec![Change::PutAuthority(retired)], ()))).await?;
        }
        Ok(())
    }

    /// Removes the keys of authorities that are gone, or retired and expired. One that signs, or is to sign next, keeps its
    /// key whatever the clock says: a clock that is wrong for a moment would take it away for ever.
    async fn sweep(&self) -> Result<(), AuthorityError> {
        let now = self.parts.host.now();
        let state = self.parts.journal.state();
        let is_needed = |a: &&Authority| a.phase != Phase::Retired || a.not_after > now;
        let needed: BTreeSet<AuthorityId> =
            state.authorities().filter(is_needed).map(|a| a.id.clone()).collect();
        let keystore = Arc::clone(&self.parts.keystore);
        let work = move || {
            let mut spare = keystore.ids()?.into_iter().filter(|id| !needed.contains(id));
            spare.try_for_each(|id| keystore.remove(&id))
        };
        Ok(self.parts.pool.run(work).await??)
    }

    async fn load(&self, id: &AuthorityId) -> Result<Option<Arc<dyn SigningKey>>, AuthorityError> {
        let keys = Arc::clone(&self.parts.host.keys);
        let keystore = Arc::clone(&self.parts.keystore);
        let id = id.clone();
        let work = move || -> Result<_, AuthorityError> {
            let pkcs8 = keystore.get(&id)?;
            Ok(pkcs8.map(|pkcs8| keys.load(&pkcs8)).transpose()?)
        };
        self.parts.pool.run(work).await?
    }

    fn active(&self, kind: AuthorityKind) -> Result<Authority, AuthorityError> {
        let state = self.parts.journal.state();
        let active = state.authorities().find(|a| a.kind == kind && a.phase == Phase::Active);
        active.cloned().ok_or(AuthorityError::NoneActive(kind))
    }

    async fn active_x509(&self) -> Result<ActiveX509, AuthorityError> {
        let (authority, key) = self.active_with_key(AuthorityKind::X509).await?;
        Ok(ActiveX509::new(&authority, key)?)
    }

    async fn active_jwt(&self) -> Result<ActiveJwt, AuthorityError> {
        let (authority, key) = self.active_with_key(AuthorityKind::Jwt).await?;
        Ok(ActiveJwt::new(&authority, key)?)
    }

    async fn active_with_key(
        &self,
        kind: AuthorityKind,
    ) -> Result<(Authority, Arc<dyn SigningKey>), AuthorityError> {
        let authority = self.active(kind)?;
        let key = self.load(&authority.id).await?;
        let key = key.ok_or_else(|| AuthorityError::KeyLost { kind, id: authority.id.clone() })?;
        Ok((authority, key))
    }
}

fn kind_name(kind: AuthorityKind) -> &'static str {
    match kind {
        AuthorityKind::X509 => "X.509",
        AuthorityKind::Jwt => "JWT",
    }
}

/// The own bundle as it stands, to be changed: its sequence number is one higher already.
fn next_bundle(state: &State) -> Bundle {
    let mut bundle =
        state.bundle().map_or_else(|| Bundle::empty(state.trust_domain().clone()), Arc::unwrap_or_clone);
    bundle.sequence = bundle.sequence.saturating_add(1);
    bundle
}

/// The authority and the bundle that holds it. One of its kind that is still prepared makes way.
fn publish(
    state: &State,
    mut authority: Authority,
    refresh_hint: Option<Duration>,
) -> Result<(Vec<Change>, Authority), Refusal> {
    let mut bundle = next_bundle(state);
    bundle.refresh_hint = refresh_hint;
    let mut changes = Vec::new();
    let is_replaced = |other: &&Authority| other.kind == authority.kind && other.phase == Phase::Prepared;
    for replaced in state.authorities().filter(is_replaced) {
        take_out(&mut bundle, replaced);
        changes.push(Change::DeleteAuthority(replaced.id.clone()));
    }
    match &authority.certificate {
        Some(der) => {
            bundle.x509_authorities.push(X509Authority::from_der(der).map_err(Refusal::internal)?);
        }
        None => {
            let (id, end) = (authority.id.as_str(), Some(authority.not_after));
            let published = JwtAuthority::new(id, &authority.public_key, end).map_err(Refusal::internal)?;
            bundle.jwt_authorities.push(published);
        }
    }
    authority.published = bundle.sequence;
    changes.extend([Change::PutAuthority(authority.clone()), Change::PutBundle(Arc::new(bundle))]);
    Ok((changes, authority))
}

/// The prepared authority active, and whatever was active retired. Nothing when it is no longer prepared.
fn succession(state: &State, kind: AuthorityKind, next: &AuthorityId, now: UnixTime) -> Vec<Change> {
    let Some(prepared) = state.authority(next).filter(|a| a.phase == Phase::Prepared) else {
        return Vec::new();
    };
    let retire = state
        .authorities()
        .filter(|a| a.kind == kind && a.phase == Phase::Active)
        .map(|active| Authority { phase: Phase::Retired, ..active.clone() });
    let activate = Authority { phase: Phase::Active, activated_at: Some(now), ..prepared.clone() };
    retire.chain([activate]).map(Change::PutAuthority).collect()
}

/// The authority forgotten, and a bundle without it.
fn withdrawal(state: &State, id: &AuthorityId) -> Vec<Change> {
    let Some(authority) = state.authority(id) else { return Vec::new() };
    let mut changes = vec![Change::DeleteAuthority(id.clone())];
    let mut bundle = next_bundle(state);
    if take_out(&mut bundle, authority) {
        changes.push(Change::PutBundle(Arc::new(bundle)));
    }
    changes
}

/// The bundle without the authority; whether it held it.
fn take_out(bundle: &mut Bundle, authority: &Authority) -> bool {
    let before = bundle.x509_authorities.len() + bundle.jwt_authorities.len();
    bundle.x509_authorities.retain(|published| Some(&published.der) != authority.certificate.as_ref());
    bundle.jwt_authorities.retain(|published| published.key_id != authority.id.as_str());
    bundle.x509_authorities.len() + bundle.jwt_authorities.len() < before
}

#[cfg(test)]
mod tests;
