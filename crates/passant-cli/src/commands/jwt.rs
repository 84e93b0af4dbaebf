//! `passant jwt mint`: a JWT-SVID minted by the server for an operator.

use anyhow::Context;
use passant_core::UnixTime;
use passant_proto::convert::id;
use passant_proto::svid::MintJwtsvidRequest;
use serde_json::json;

use crate::args::{Jwt, ServerSocket};
use crate::commands::entry::wire_secs;
use crate::commands::files;
use crate::connect::{Server, refused};
use crate::json;
use crate::render::Output;

pub(crate) async fn run(command: Jwt, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let Jwt::Mint { spiffe_id, audience, ttl, write } = command;
    let server = Server::connect(socket).await?;
    let request = MintJwtsvidRequest {
        id: Some(id::to_wire(&spiffe_id)),
        audience,
        ttl: ttl.map(wire_secs).unwrap_or_default(),
    };
    let svid = server.svids().mint_jwtsvid(request).await.map_err(refused)?.into_inner().svid;
    let svid = svid.context("the server answered without an SVID")?;
    let Some(path) = write else {
        return out.print(|| json!({ "svid": json::jwt_svid(&svid) }), |to| writeln!(to, "{}", svid.token));
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| ".".as_ref());
    let name = path.file_name().and_then(|name| name.to_str()).context("--write needs a file name")?;
    files::write_secret(dir, name, &svid.token)?;
    let (path, until) = (path.display(), UnixTime::from_secs(svid.expires_at));
    out.print(
        || json!({ "written": path.to_string() }),
        |to| writeln!(to, "wrote {path}, valid until {until}"),
    )
}
