//! `passant token`: make join tokens.

use passant_core::UnixTime;
use passant_proto::agent::CreateJoinTokenRequest;
use passant_proto::convert::id;
use serde_json::json;

use crate::args::{ServerSocket, Token};
use crate::commands::entry::wire_secs;
use crate::connect::{Server, refused};
use crate::render::Output;

pub(crate) async fn run(command: Token, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let Token::Generate { ttl, spiffe_id } = command;
    let server = Server::connect(socket).await?;
    let request = CreateJoinTokenRequest {
        ttl: wire_secs(ttl),
        token: String::new(),
        agent_id: spiffe_id.as_ref().map(id::to_wire),
    };
    let token = server.agents().create_join_token(request).await.map_err(refused)?.into_inner();
    out.print(
        || json!({ "value": token.value, "expires_at": token.expires_at.to_string() }),
        |to| {
            writeln!(to, "Token: {}", token.value)?;
            writeln!(to, "It attests one node once, until {}.", UnixTime::from_secs(token.expires_at))
        },
    )
}
