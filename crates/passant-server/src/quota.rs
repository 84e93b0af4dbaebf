//! How much may each caller ask for, and all together?
//!
//! Everything that costs the server a signature or a walk over its state is counted in token buckets: one for each caller, by
//! identity, and one for all. Whoever is beyond its own is refused at once and told when to come again; beyond that of all
//! calls wait in line. What keeps attested agents going is of a higher [`Rank`], for which a part of every bucket stays free
//! that lower ranks never take. How much is the configuration's ([`Limits`]).

mod buckets;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use passant_core::{Refusal, SpiffeId};
use passant_daemon::label::Label;
use tokio::time::Instant;

use crate::config::{Limits, Rate};
use crate::limits::{
    ASK_AGAIN, CALLS_PER_AGENT_TO_MINT, CALLS_PER_AGENT_TO_RENEW, RENEWALS_WAIT_MOST, WORK_WAITS,
};
use crate::metrics::{Limit, Metrics};
use buckets::{Each, Overall, Shape};

/// For whom is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Caller {
    /// Whoever holds an X509-SVID with this ID.
    Svid(SpiffeId),
    /// Whoever calls from this address, without an X509-SVID.
    Address(IpAddr),
    /// A user on this machine.
    User(u32),
}

/// What goes first where there is not enough for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Agents renew their own X509-SVIDs: without it they can do nothing else.
    Own,
    /// Attested agents renew X509-SVIDs of their workloads, and synchronize.
    Renewal,
    /// All else.
    Other,
}

/// Work that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A node attests.
    Attest,
    /// An agent renews its own X509-SVID.
    Renew,
    /// An agent asks for X509-SVIDs of its workloads.
    X509,
    /// An agent asks for a JWT-SVID of a workload.
    Jwt,
    /// An operator has an SVID minted, or a server below has its X.509 authority signed.
    Mint,
    /// An agent synchronizes its entries, or begins to watch them.
    Sync,
    /// The state is read through: lists, counts, explanations, backups.
    List,
    /// The bundle is read, which agents do with each synchronization.
    Bundle,
}

/// Keeps count of all callers.
pub(crate) struct Quotas {
    attestations_per_address: Each,
    attestations: Overall,
    signatures_per_agent: Each,
    signatures: Overall,
    mints_per_caller: Each,
    lists_per_caller: Each,
    lists: Overall,
    limits: Limits,
    metrics: Arc<Metrics>,
}

/// When a call's time to wait is over: it may have to wait for several things, one after another, and whoever called does not
/// wait longer for that. Goes with the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until(pub(crate) Instant);

/// What was counted for one call; given back unless it is kept.
#[derive(Debug)]
#[must_use = "what is dropped is given back"]
pub(crate) struct Counted<'a> {
    each: &'a Each,
    caller: Caller,
    rank: Rank,
    count: u32,
    of_all: Vec<&'a Overall>,
    kept: bool,
}

/// What one kind of work is counted in.
struct Buckets<'a> {
    of_caller: (Limit, &'a Each),
    of_all: Vec<(Limit, &'a Overall)>,
}

impl Rank {
    /// How many there are.
    pub(crate) const COUNT: usize = 3;

    /// All, the first one first.
    pub(crate) const ALL: [Self; Self::COUNT] = [Self::Own, Self::Renewal, Self::Other];

    /// What part of everything it and those after it may use, in percent.
    const fn percent(self, reserved: u32) -> u32 {
        match self {
            Self::Own => 100,
            Self::Renewal => 100 - reserved.div_ceil(5),
            Self::Other => 100 - reserved,
        }
    }
}

impl Work {
    /// The work behind the gRPC method `path`; `None` if it is not counted.
    pub(crate) fn of(path: &str) -> Option<Self> {
        let (service, method) = path.rsplit_once('/')?;
        if service == "/passant.sync.v1.Sync" {
            return match method {
                "Watch" => Some(Self::Sync),
                "BatchMintX509SVID" => Some(Self::X509),
                "MintJWTSVID" => Some(Self::Jwt),
                _ => None,
            };
        }
        Some(match method {
            "AttestAgent" => Self::Attest,
            "RenewAgent" => Self::Renew,
            "BatchNewX509SVID" => Self::X509,
            "NewJWTSVID" => Self::Jwt,
            "MintX509SVID" | "MintJWTSVID" | "NewDownstreamX509CA" => Self::Mint,
            "GetAuthorizedEntries" | "SyncAuthorizedEntries" => Self::Sync,
            "Explain" | "Backup" | "Search" | "Verify" | "AwaitRollout" | "BatchGetOptions" => Self::List,
            "GetBundle" => Self::Bundle,
            list if list.starts_with("List") || list.starts_with("Count") => Self::List,
            _ => return None,
        })
    }

    /// What goes before what.
    pub(crate) const fn rank(self) -> Rank {
        match self {
            Self::Renew => Rank::Own,
            Self::X509 | Self::Sync => Rank::Renewal,
            Self::Attest | Self::Jwt | Self::Mint | Self::List | Self::Bundle => Rank::Other,
        }
    }

    /// Which places its calls take: synchronizations are many, and long, and are not to hold up what renews.
    pub(crate) const fn rank_of_call(self) -> Rank {
        match self {
            Self::Sync => Rank::Other,
            Self::Attest | Self::Renew | Self::X509 | Self::Jwt | Self::Mint | Self::List | Self::Bundle => {
                self.rank()
            }
        }
    }
}

impl Quotas {
    /// Full buckets for everybody.
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Self {
        let reserved = limits.reserved_for_renewals;
        // What has one rank only is not divided.
        let (divided, whole) = (|rate| Shape::new(rate, reserved), |rate| Shape::new(rate, 0));
        Self {
            attestations_per_address: Each::new(whole(limits.attestations_per_address)),
            attestations: Overall::new(whole(limits.attestations)),
            signatures_per_agent: Each::new(divided(limits.signatures_per_agent)),
            signatures: Overall::new(divided(limits.signatures)),
            mints_per_caller: Each::new(whole(limits.mints_per_caller)),
            // What an agent lists keeps nobody from synchronizing but itself, and it does nothing else.
            lists_per_caller: Each::new(whole(limits.lists_per_caller)),
            lists: Overall::new(divided(limits.lists)),
            limits: limits.clone(),
            metrics,
        }
    }

    /// Counts `count` pieces of `work` for `caller`, waiting in line if all together are too fast, until its time to wait is
    /// over. Nothing stays counted unless what is returned is kept: a call that ends before its work begins has cost nothing.
    ///
    /// # Errors
    /// Exhausted, with when to ask again, when the caller has asked for too much, or the line is too long; Invalid for more
    /// at once than there can ever be. Nothing is counted then.
    pub(crate) async fn count(
        &self,
        work: Work,
        caller: &Caller,
        count: u32,
        Until(until): Until,
    ) -> Result<Counted<'_>, Refusal> {
        let rank = work.rank();
        let buckets = self.buckets_of(work);
        self.fits(rank, count, &buckets)?;
        let Buckets { of_caller: (own, each), of_all } = buckets;
        each.take(caller, rank, count).map_err(|wait| self.refused(own, wait))?;
        let caller = caller.clone();
        let mut counted =
            Counted { each, caller, rank, count, of_all: Vec::with_capacity(of_all.len()), kept: false };
        for (limit, overall) in of_all {
            let patience = until.saturating_duration_since(Instant::now());
            overall.take(rank, count, patience).await.map_err(|wait| self.refused(limit, wait))?;
            counted.of_all.push(overall);
        }
        Ok(counted)
    }

    /// Until when a call waits that comes now, whatever it waits for.
    pub(crate) fn until(&self) -> Until {
        Until(Instant::now() + self.limits.call_waits)
    }

    /// Until when such a call waits for a place, if that is later than `until`. What renews waits longer, so that a whole fleet
    /// that renews at once is served in its order: who was refused would only come again, and be last.
    pub(crate) fn until_place(&self, rank: Rank, Until(until): Until) -> Instant {
        let waits = self.limits.call_waits;
        match rank {
            Rank::Own | Rank::Renewal => {
                until + (waits * 3 / 2).min(RENEWALS_WAIT_MOST.saturating_sub(waits))
            }
            Rank::Other => until,
        }
    }

    /// Until when a call that has its place now waits for the rest: until `until`, and for a moment if that is past. Who waited
    /// longest for a place would otherwise be the first to be refused.
    pub(crate) fn until_work(&self, Until(until): Until) -> Until {
        Until(until.max(Instant::now() + WORK_WAITS.min(self.limits.call_waits)))
    }

    /// What they are.
    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Refuses a call that had no place among those under way, although it waited or was not to wait. It is to stay away for
    /// half as long as calls wait: who finds no place again and again is not to stand in line nearly all the time.
    pub(crate) fn crowded(&self, limit: Limit) -> Refusal {
        self.refused(limit, ASK_AGAIN.max(self.limits.call_waits / 2))
    }

    fn buckets_of(&self, work: Work) -> Buckets<'_> {
        let signatures = (Limit::Signatures, &self.signatures);
        match work {
            Work::Attest => Buckets {
                of_caller: (Limit::AttestationsPerAddress, &self.attestations_per_address),
                of_all: vec![(Limit::Attestations, &self.attestations), signatures],
            },
            Work::Renew | Work::X509 | Work::Jwt => Buckets {
                of_caller: (Limit::SignaturesPerAgent, &self.signatures_per_agent),
                of_all: vec![signatures],
            },
            Work::Mint => Buckets {
                of_caller: (Limit::MintsPerCaller, &self.mints_per_caller),
                of_all: vec![signatures],
            },
            Work::Sync | Work::List | Work::Bundle => Buckets {
                of_caller: (Limit::ListsPerCaller, &self.lists_per_caller),
                of_all: vec![(Limit::Lists, &self.lists)],
            },
        }
    }

    /// Waiting does not help who asks for more at once than a full bucket holds.
    fn fits(&self, rank: Rank, count: u32, buckets: &Buckets<'_>) -> Result<(), Refusal> {
        let (own, each) = buckets.of_caller;
        let of_all = buckets.of_all.iter().map(|(limit, overall)| (*limit, overall.most(rank)));
        let narrowest = [(own, each.most(rank))].into_iter().chain(of_all).min_by_key(|(_, most)| *most);
        match narrowest {
            Some((limit, most)) if count > most => {
                self.metrics.limited.of(limit).inc();
                Err(Refusal::invalid(format!(
                    "{count} at once are more than limits.{}.at_once of the server's configuration ever allows; ask for at \
                     most {most} in one batch",
                    limit.value()
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses what is beyond `limit`; after `wait` there may be room.
    fn refused(&self, limit: Limit, wait: Duration) -> Refusal {
        self.metrics.limited.of(limit).inc();
        let limits = &self.limits;
        let fast = |what: &str, Rate { at_once, per_second }: Rate| {
            format!("too many {what}: {per_second} a second after {at_once} at once")
        };
        let under_way = |whose: &str, each: usize, all: usize| {
            format!("too many calls are under way: of {whose} {each} are worked on at a time, of all {all}")
        };
        let what = match limit {
            Limit::AttestationsPerAddress => {
                fast("attestations from this address", limits.attestations_per_address)
            }
            Limit::Attestations => fast("attestations in all", limits.attestations),
            Limit::SignaturesPerAgent => fast("signatures for this agent", limits.signatures_per_agent),
            Limit::Signatures => fast("signatures in all", limits.signatures),
            Limit::MintsPerCaller => fast("SVIDs minted for this caller", limits.mints_per_caller),
            Limit::ListsPerCaller => fast("lists for this caller", limits.lists_per_caller),
            Limit::Lists => fast("lists in all", limits.lists),
            Limit::CallsPerAgent => format!(
                "{}; fewer of them X509-SVIDs: {CALLS_PER_AGENT_TO_MINT} batches, {CALLS_PER_AGENT_TO_RENEW} of its own",
                under_way("one agent", limits.calls_per_agent, limits.calls)
            ),
            Limit::CallsPerAddress => {
                under_way("one address", limits.calls_per_address, limits.strangers_calls)
            }
            Limit::CallsPerOperator => {
                under_way("one user", limits.calls_per_operator, limits.operators_calls)
            }
            Limit::Explanations => {
                format!("too many explanations: {} are found at a time", limits.explanations)
            }
            Limit::Backups => format!("too many backups: {} are sent at a time", limits.backups),
        };
        Refusal::exhausted(format!(
            "{what} (limits.{} of the server's configuration); ask again in {} s",
            limit.value(),
            wait.as_millis().div_ceil(1000)
        ))
        .retry_in(wait)
    }
}

impl Counted<'_> {
    /// The work begins, and costs what was counted.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.each.give_back(&self.caller, self.rank, self.count);
        for overall in &self.of_all {
            overall.give_back(self.rank, self.count);
        }
    }
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
