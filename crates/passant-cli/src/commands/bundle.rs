//! `passant bundle`: show the trust domain's bundle.

use anyhow::Context;
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;

use crate::args::{Bundle, BundleFormat, ServerSocket};
use crate::connect::{Server, refused};
use crate::json;
use crate::render::Output;

pub(crate) async fn run(command: Bundle, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let Bundle::Show { format } = command;
    let server = Server::connect(socket).await?;
    let wire = server
        .bundles()
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .map_err(refused)?
        .into_inner();
    let bundle = convert::bundle::from_wire(&wire).context("the server's bundle cannot be read")?;
    let text = match format {
        BundleFormat::Pem => bundle.to_pem(),
        BundleFormat::Spiffe => bundle.to_spiffe_json()?,
        BundleFormat::Jwks => bundle.to_jwks_json(),
    };
    out.print(|| json::bundle(&wire), |to| writeln!(to, "{}", text.trim_end()))
}
