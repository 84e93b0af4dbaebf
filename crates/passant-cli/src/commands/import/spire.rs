//! `passant import spire`: what of a SPIRE server is copied, and in which order?
//!
//! Trust first, since nothing of the rest is of use without; then what entries need, then entries; then SPIRE's agents get
//! the time to learn of this server; agents last, so that what is known of their SVIDs is fresh.

use std::path::Path;

use anyhow::{Context, bail};
use passant_core::{TrustDomain, UnixTime};
use serde_json::json;

use super::ledger::Ledger;
use super::report::Report;
use super::{agents, authorities, entries, federation, own_bundle};
use crate::args::Spire;
use crate::connect::Server;
use crate::connect::tls::Files;
use crate::render::Output;

/// The two servers of a move.
pub(super) struct Move {
    /// This one.
    pub(super) server: Server,
    /// The one that is left.
    pub(super) spire: Server,
    /// Of both.
    pub(super) trust_domain: TrustDomain,
}

pub(super) async fn run(args: Spire, server: Server, out: &mut Output) -> anyhow::Result<()> {
    let (trust_domain, ours) = own_bundle(&server).await.context("failed to get this server's bundle")?;
    let spire = connect(&args, &trust_domain).await?;
    let (theirs_of, theirs) = own_bundle(&spire).await.context("failed to get the SPIRE server's bundle")?;
    if theirs_of != trust_domain {
        bail!(
            "the SPIRE server is of trust domain {theirs_of}, this one of {trust_domain}: agents cannot move between \
             trust domains; federate the two instead"
        );
    }
    let moving = Move { server, spire, trust_domain };
    let path = args.ledger.of(&moving.trust_domain);
    let mut ledger = if args.dry_run { None } else { Some(Ledger::open(&path, &moving.trust_domain)?) };
    let mut report = Report::of_import(args.dry_run);
    let copied = copy(&moving, &args, ours, theirs, ledger.as_mut(), &mut report).await;
    copied.with_context(|| interrupted(&path, args.dry_run))?;

    let move_from = ledger.as_ref().and_then(|ledger| authorities::known_from(ledger, args.wait));
    if let Some(second) = move_from.filter(|_| args.no_wait) {
        report.note(format!(
            "agents should move from {} on: those that have not fetched SPIRE's bundle by then would take this server \
             for a stranger, and some come to a stop at that",
            UnixTime::from_secs(second)
        ));
    }
    report.note(
        "never carried: join tokens that were not used yet, what SPIRE's configuration says, and SPIRE's private keys; \
         entries begin new lives here as to creation time and revision",
    );
    if !args.dry_run {
        report.note(
            "as long as agents are at both servers, run this again after each new authority, agent or entry there, and \
             after each new authority here",
        );
    }
    let ledger = if args.dry_run { json!(null) } else { json!(path) };
    let more = [
        ("trust_domain", json!(moving.trust_domain.to_string())),
        ("ledger", ledger),
        ("move_from", json!(move_from)),
    ];
    report.tell(&more, out)
}

/// Reaches the SPIRE server by its socket, or by its address.
async fn connect(args: &Spire, trust_domain: &TrustDomain) -> anyhow::Result<Server> {
    let Spire { spire_address, spire_svid, spire_key, spire_bundle, .. } = args;
    let (Some(address), Some(svid), Some(key), Some(bundle)) =
        (spire_address, spire_svid, spire_key, spire_bundle)
    else {
        return Server::spire(&args.spire_socket).await;
    };
    Server::spire_at(address, trust_domain, &Files { svid, key, bundle }).await
}

async fn copy(
    moving: &Move,
    args: &Spire,
    ours: passant_proto::types::Bundle,
    theirs: passant_proto::types::Bundle,
    mut ledger: Option<&mut Ledger>,
    report: &mut Report,
) -> anyhow::Result<()> {
    authorities::exchange(moving, &ours, &theirs, ledger.as_deref_mut(), report).await?;
    let bundles = federation::copy(moving, ledger.as_deref_mut(), report)
        .await
        .context("failed to copy what is federated with")?;
    entries::copy(moving, &bundles, ledger.as_deref_mut(), report).await.context("failed to copy entries")?;
    let known_from = ledger.as_deref().and_then(|ledger| authorities::known_from(ledger, args.wait));
    if let Some(second) = known_from.filter(|_| !args.no_wait) {
        authorities::wait_until(second).await?;
    }
    agents::adopt(moving, ledger, report).await.context("failed to adopt agents")
}

fn interrupted(ledger: &Path, dry_run: bool) -> String {
    if dry_run {
        return "nothing was changed".to_owned();
    }
    format!(
        "the import is not complete: run it again to go on, or take back what was made by passant import undo --ledger {}",
        ledger.display()
    )
}
