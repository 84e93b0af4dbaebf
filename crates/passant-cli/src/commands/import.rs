//! `passant import`: how does a trust domain move here from SPIRE, and back?

mod agents;
mod authorities;
mod entries;
mod federation;
mod ledger;
mod report;
mod spire;
mod undo;

use std::path::PathBuf;

use anyhow::{Context, bail};
use passant_core::TrustDomain;
use passant_proto::bundle::GetBundleRequest;
use passant_proto::types;

use crate::args::{Import, LedgerFile, ServerSocket};
use crate::connect::{Server, refused};
use crate::render::Output;

pub(crate) async fn run(command: Import, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    match command {
        Import::Spire(args) => spire::run(args, server, out).await,
        Import::Undo(args) => undo::run(args, &server, out).await,
    }
}

/// The own bundle of a server, which names its trust domain.
async fn own_bundle(server: &Server) -> anyhow::Result<(TrustDomain, types::Bundle)> {
    let bundle =
        server.bundles().get_bundle(GetBundleRequest { output_mask: None }).await.map_err(refused)?;
    let bundle = bundle.into_inner();
    let trust_domain =
        TrustDomain::parse(&bundle.trust_domain).context("the trust domain of the bundle cannot be read")?;
    Ok((trust_domain, bundle))
}

impl LedgerFile {
    fn of(&self, trust_domain: &TrustDomain) -> PathBuf {
        self.file.clone().unwrap_or_else(|| PathBuf::from(format!("passant-import-{trust_domain}.jsonl")))
    }
}

/// The results of a batch, each with what was asked for at its place.
fn paired<A, R>(asked: Vec<A>, results: Vec<R>) -> anyhow::Result<impl Iterator<Item = (A, R)>> {
    if asked.len() != results.len() {
        bail!("the server answered {} items with {} results", asked.len(), results.len());
    }
    Ok(asked.into_iter().zip(results))
}
