//! Which flags has `passant import`?

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::span;

#[derive(Subcommand)]
pub(crate) enum Import {
    /// Copy what a running SPIRE server of this trust domain knows, so that its agents can move here
    ///
    /// Authorities go both ways; entries keep their ids; then SPIRE's agents are given time to learn of this server's
    /// authorities; then they are adopted, so that they need not attest again. Run it as often as you like: what is here
    /// already stays as it is.
    Spire(Spire),
    /// Take back what the import made and nobody changed since
    Undo(Undo),
}

#[derive(Args)]
pub(crate) struct Spire {
    /// The SPIRE server's socket for operators: a path, with or without unix://
    #[arg(long, value_name = "PATH", default_value = "/tmp/spire-server/private/api.sock")]
    pub(crate) spire_socket: String,
    /// The SPIRE server's address instead, for an administrator with an X509-SVID
    #[arg(
        long,
        value_name = "HOST:PORT",
        conflicts_with = "spire_socket",
        requires_all = ["spire_svid", "spire_key", "spire_bundle"]
    )]
    pub(crate) spire_address: Option<String>,
    /// The administrator's X509-SVID with its intermediates, in PEM
    #[arg(long, value_name = "FILE", requires = "spire_address")]
    pub(crate) spire_svid: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "spire_address")]
    pub(crate) spire_key: Option<PathBuf>,
    /// The bundle by which the SPIRE server is known, in PEM
    #[arg(long, value_name = "FILE", requires = "spire_address")]
    pub(crate) spire_bundle: Option<PathBuf>,
    /// Only show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long SPIRE's agents get to fetch its bundle after this server's authorities came into it
    ///
    /// They ask every 5 seconds when all is well, and no more seldom than every 4 minutes after failures.
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = span)]
    pub(crate) wait: Duration,
    /// Do not wait for SPIRE's agents; the output says from when on they can move
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) ledger: LedgerFile,
}

#[derive(Args)]
pub(crate) struct Undo {
    /// Only show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Go on although agents have moved here; they stay, and what they rely on is taken away
    #[arg(long)]
    pub(crate) force: bool,
    /// Only take SPIRE's authorities out of this server's bundle, and leave all else: the end of a move
    ///
    /// What SPIRE signed stops being believed at once, of agents that this server has not renewed yet too.
    #[arg(long, conflicts_with = "force")]
    pub(crate) authorities_only: bool,
    #[command(flatten)]
    pub(crate) ledger: LedgerFile,
}

/// Where is written what the import makes?
#[derive(Args)]
pub(crate) struct LedgerFile {
    /// The file in which the import writes down what it makes, for undo; keep it [default: passant-import-TRUST_DOMAIN.jsonl]
    #[arg(long = "ledger", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}
