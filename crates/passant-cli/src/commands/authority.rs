//! `passant authority`: the keys that the server signs with itself, and how one succeeds another.

use anyhow::Context;
use passant_core::UnixTime;
use passant_proto::localauthority::local_authority_client::LocalAuthorityClient;
use passant_proto::localauthority::{
    ActivateJwtAuthorityRequest, ActivateX509AuthorityRequest, AuthorityState, GetJwtAuthorityStateRequest,
    GetX509AuthorityStateRequest, PrepareJwtAuthorityRequest, PrepareX509AuthorityRequest,
    RevokeJwtAuthorityRequest, RevokeX509AuthorityRequest, TaintJwtAuthorityRequest,
    TaintX509AuthorityRequest,
};
use serde_json::{Map, Value, json};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::args::{Authority, AuthorityStep, ServerSocket};
use crate::connect::{Server, refused};
use crate::render::Output;

/// What kind of SVIDs an authority signs.
#[derive(Clone, Copy)]
enum Kind {
    X509,
    Jwt,
}

/// An answer: its members by their names in SPIRE's messages.
struct Told(Vec<(&'static str, Option<AuthorityState>)>);

pub(crate) async fn run(command: Authority, socket: &ServerSocket, out: &mut Output) -> anyhow::Result<()> {
    let server = Server::connect(socket).await?;
    let (kind, step) = match command {
        Authority::X509(step) => (Kind::X509, step),
        Authority::Jwt(step) => (Kind::Jwt, step),
    };
    let told = match kind {
        Kind::X509 => x509(&step, server.authorities()).await,
        Kind::Jwt => jwt(&step, server.authorities()).await,
    };
    let Told(told) = told.map_err(refused).with_context(|| failed(kind, &step))?;
    let json = || {
        let members =
            told.iter().filter_map(|(name, state)| Some(((*name).to_owned(), state_json(state.as_ref()?))));
        Value::Object(members.collect::<Map<String, Value>>())
    };
    if matches!(step, AuthorityStep::Show) {
        let rows = told.iter().filter_map(|(slot, state)| Some(row(slot, state.as_ref()?)));
        return out.table(json, &["SLOT", "AUTHORITY ID", "EXPIRES", "UPSTREAM AUTHORITY"], rows);
    }
    let was_activated = matches!(step, AuthorityStep::Activate { .. });
    let before = if was_activated && !out.is_json() { before(kind, &server).await } else { None };
    let id =
        told.iter().find_map(|(_, state)| Some(state.as_ref()?.authority_id.clone())).unwrap_or_default();
    out.print(json, |to| writeln!(to, "{}", next(kind, &step, &id, before.as_deref())))
}

/// The id of the authority that signed before; none when the server does not tell.
async fn before(kind: Kind, server: &Server) -> Option<String> {
    let told = match kind {
        Kind::X509 => x509(&AuthorityStep::Show, server.authorities()).await,
        Kind::Jwt => jwt(&AuthorityStep::Show, server.authorities()).await,
    };
    let Told(slots) = told.ok()?;
    let (_, old) = slots.into_iter().find(|(slot, _)| *slot == "old")?;
    old.map(|old| old.authority_id)
}

async fn x509(step: &AuthorityStep, mut server: LocalAuthorityClient<Channel>) -> Result<Told, Status> {
    Ok(Told(match step {
        AuthorityStep::Show => {
            let state = server.get_x509_authority_state(GetX509AuthorityStateRequest {}).await?.into_inner();
            vec![("active", state.active), ("prepared", state.prepared), ("old", state.old)]
        }
        AuthorityStep::Prepare => {
            let done = server.prepare_x509_authority(PrepareX509AuthorityRequest {}).await;
            vec![("prepared_authority", done?.into_inner().prepared_authority)]
        }
        AuthorityStep::Activate { id } => {
            let request = ActivateX509AuthorityRequest { authority_id: id.clone() };
            let done = server.activate_x509_authority(request).await.map(Response::into_inner)?;
            vec![("activated_authority", done.activated_authority)]
        }
        AuthorityStep::Taint { id } => {
            let request = TaintX509AuthorityRequest { authority_id: id.clone() };
            let done = server.taint_x509_authority(request).await.map(Response::into_inner)?;
            vec![("tainted_authority", done.tainted_authority)]
        }
        AuthorityStep::Revoke { id } => {
            let request = RevokeX509AuthorityRequest { authority_id: id.clone() };
            let done = server.revoke_x509_authority(request).await.map(Response::into_inner)?;
            vec![("revoked_authority", done.revoked_authority)]
        }
    }))
}

async fn jwt(step: &AuthorityStep, mut server: LocalAuthorityClient<Channel>) -> Result<Told, Status> {
    Ok(Told(match step {
        AuthorityStep::Show => {
            let state = server.get_jwt_authority_state(GetJwtAuthorityStateRequest {}).await?.into_inner();
            vec![("active", state.active), ("prepared", state.prepared), ("old", state.old)]
        }
        AuthorityStep::Prepare => {
            let done = server.prepare_jwt_authority(PrepareJwtAuthorityRequest {}).await;
            vec![("prepared_authority", done?.into_inner().prepared_authority)]
        }
        AuthorityStep::Activate { id } => {
            let request = ActivateJwtAuthorityRequest { authority_id: id.clone() };
            let done = server.activate_jwt_authority(request).await.map(Response::into_inner)?;
            vec![("activated_authority", done.activated_authority)]
        }
        AuthorityStep::Taint { id } => {
            let request = TaintJwtAuthorityRequest { authority_id: id.clone() };
            let done = server.taint_jwt_authority(request).await.map(Response::into_inner)?;
            vec![("tainted_authority", done.tainted_authority)]
        }
        AuthorityStep::Revoke { id } => {
            let request = RevokeJwtAuthorityRequest { authority_id: id.clone() };
            let done = server.revoke_jwt_authority(request).await.map(Response::into_inner)?;
            vec![("revoked_authority", done.revoked_authority)]
        }
    }))
}

fn state_json(state: &AuthorityState) -> Value {
    json!({
        "authority_id": state.authority_id,
        "expires_at": state.expires_at.to_string(),
        "upstream_authority_subject_key_id": state.upstream_authority_subject_key_id,
    })
}

fn row(slot: &str, state: &AuthorityState) -> Vec<String> {
    vec![
        slot.to_owned(),
        state.authority_id.clone(),
        UnixTime::from_secs(state.expires_at).to_string(),
        state.upstream_authority_subject_key_id.clone(),
    ]
}

fn failed(kind: Kind, step: &AuthorityStep) -> String {
    let (noun, command) = names(kind);
    let what = match step {
        AuthorityStep::Show => return format!("failed to show the {noun} authorities"),
        AuthorityStep::Prepare => return format!("failed to prepare {noun} authority"),
        AuthorityStep::Activate { id } => format!("activate {noun} authority {id}"),
        AuthorityStep::Taint { id } => format!("taint {noun} authority {id}"),
        AuthorityStep::Revoke { id } => format!("revoke {noun} authority {id}"),
    };
    format!("failed to {what}; passant authority {command} show says which there are")
}

/// What was done, and what comes next. `before` is the authority that signed until then, if it is known.
fn next(kind: Kind, step: &AuthorityStep, id: &str, before: Option<&str>) -> String {
    let (noun, command) = names(kind);
    match step {
        AuthorityStep::Show => String::new(),
        AuthorityStep::Prepare => format!(
            "prepared {noun} authority {id}: it is in the bundle, and signs nothing yet.\nNext, once the agents have it: \
             passant authority {command} activate {id}"
        ),
        AuthorityStep::Activate { .. } => {
            let before = match before {
                Some(before) => format!("passant authority {command} taint {before}"),
                None => format!(
                    "passant authority {command} taint ID, with the ID that passant authority {command} show calls old,"
                ),
            };
            format!(
                "activated {noun} authority {id}: it signs from now on.\nThe one before it stays in the bundle; {before} has \
                 what it signed replaced."
            )
        }
        AuthorityStep::Taint { .. } => format!(
            "tainted {noun} authority {id}: agents replace what it signed.\nNext, once they have: passant authority {command} \
             revoke {id}"
        ),
        AuthorityStep::Revoke { .. } => {
            format!(
                "revoked {noun} authority {id}: what it signed verifies nowhere once the bundle is renewed."
            )
        }
    }
}

fn names(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::X509 => ("X.509", "x509"),
        Kind::Jwt => ("JWT", "jwt"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_names_the_next() {
        let id = "abc".to_owned();
        let prepared = next(Kind::X509, &AuthorityStep::Prepare, &id, None);
        assert!(prepared.contains("passant authority x509 activate abc"), "{prepared}");
        let activate = AuthorityStep::Activate { id: id.clone() };
        let activated = next(Kind::Jwt, &activate, &id, Some("def"));
        assert!(activated.contains("passant authority jwt taint def has"), "{activated}");
        let activated = next(Kind::Jwt, &activate, &id, None);
        assert!(activated.contains("passant authority jwt show"), "{activated}");
        let tainted = next(Kind::Jwt, &AuthorityStep::Taint { id: id.clone() }, &id, None);
        assert!(tainted.contains("passant authority jwt revoke abc"), "{tainted}");
        let refused = failed(Kind::X509, &AuthorityStep::Revoke { id });
        assert!(refused.contains("passant authority x509 show"), "{refused}");
    }

    #[test]
    fn a_state_has_the_names_of_spire() {
        let state = AuthorityState {
            authority_id: "abc".to_owned(),
            expires_at: 1_790_000_000,
            upstream_authority_subject_key_id: String::new(),
        };
        let json = state_json(&state);
        assert_eq!((&json["authority_id"], &json["expires_at"]), (&"abc".into(), &"1790000000".into()));
        assert_eq!(row("active", &state)[2], "2026-09-21T14:13:20Z");
    }
}
