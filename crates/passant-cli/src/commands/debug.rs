//! `passant debug`: what the server holds, in a few numbers.

use passant_core::UnixTime;
use passant_proto::debug::{GetInfoRequest, GetInfoResponse};
use serde_json::{Value, json};

use crate::args::ServerSocket;
use crate::connect::{Server, refused};
use crate::json;
use crate::render::Output;

pub(crate) async fn run(socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    let info = server.debug().get_info(GetInfoRequest {}).await.map_err(refused)?.into_inner();
    out.print(
        || as_json(&info),
        |to| {
            writeln!(to, "Uptime:             {} s", info.uptime)?;
            writeln!(to, "Agents:             {}", info.agents_count)?;
            writeln!(to, "Entries:            {}", info.entries_count)?;
            writeln!(to, "Federated bundles:  {}", info.federated_bundles_count)?;
            for one in &info.svid_chain {
                let id = json::spiffe_id_text(one.id.as_ref());
                writeln!(
                    to,
                    "Certificate:        {id} until {}, {}",
                    UnixTime::from_secs(one.expires_at),
                    one.subject
                )?;
            }
            Ok(())
        },
    )
}

/// 64-bit numbers as texts, as in all that SPIRE prints.
fn as_json(info: &GetInfoResponse) -> Value {
    let chain = info.svid_chain.iter().map(|one| {
        json!({
            "id": json::spiffe_id(one.id.as_ref()),
            "expires_at": one.expires_at.to_string(),
            "subject": one.subject,
        })
    });
    json!({
        "svid_chain": chain.collect::<Value>(),
        "uptime": info.uptime,
        "agents_count": info.agents_count,
        "federated_bundles_count": info.federated_bundles_count,
        "entries_count": info.entries_count,
    })
}
