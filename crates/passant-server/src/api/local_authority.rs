//! How is spire.api.server.localauthority.v1.LocalAuthority answered?

use passant_core::Refusal;
use passant_proto::localauthority::local_authority_server::LocalAuthority;
use passant_proto::localauthority::{
    ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse, ActivateWitAuthorityRequest,
    ActivateWitAuthorityResponse, ActivateX509AuthorityRequest, ActivateX509AuthorityResponse,
    AuthorityState, GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse, GetWitAuthorityStateRequest,
    GetWitAuthorityStateResponse, GetX509AuthorityStateRequest, GetX509AuthorityStateResponse,
    PrepareJwtAuthorityRequest, PrepareJwtAuthorityResponse, PrepareWitAuthorityRequest,
    PrepareWitAuthorityResponse, PrepareX509AuthorityRequest, PrepareX509AuthorityResponse,
    RevokeJwtAuthorityRequest, RevokeJwtAuthorityResponse, RevokeWitAuthorityRequest,
    RevokeWitAuthorityResponse, RevokeX509AuthorityRequest, RevokeX509AuthorityResponse,
    RevokeX509UpstreamAuthorityRequest, RevokeX509UpstreamAuthorityResponse, TaintJwtAuthorityRequest,
    TaintJwtAuthorityResponse, TaintWitAuthorityRequest, TaintWitAuthorityResponse,
    TaintX509AuthorityRequest, TaintX509AuthorityResponse, TaintX509UpstreamAuthorityRequest,
    TaintX509UpstreamAuthorityResponse,
};
use tonic::{Extensions, Request, Response, Status, async_trait};

use super::{Api, by, refuse, to_the_end};
use crate::access::{Target, Verb};
use crate::authority::Slots;
use crate::caller::Actor;
use crate::record::Act;
use crate::state::{Authority, AuthorityId, AuthorityKind};

use AuthorityKind::{Jwt, X509};

#[async_trait]
impl LocalAuthority for Api {
    async fn get_jwt_authority_state(
        &self,
        request: Request<GetJwtAuthorityStateRequest>,
    ) -> Result<Response<GetJwtAuthorityStateResponse>, Status> {
        let Slots { active, prepared, old } = self.slots(request.extensions(), Jwt)?;
        let (active, prepared, old) = (active.map(shown), prepared.map(shown), old.map(shown));
        Ok(Response::new(GetJwtAuthorityStateResponse { active, prepared, old }))
    }

    async fn prepare_jwt_authority(
        &self,
        request: Request<PrepareJwtAuthorityRequest>,
    ) -> Result<Response<PrepareJwtAuthorityResponse>, Status> {
        let prepared_authority = Some(self.prepare(request.extensions(), Jwt).await?);
        Ok(Response::new(PrepareJwtAuthorityResponse { prepared_authority }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<ActivateJwtAuthorityRequest>,
    ) -> Result<Response<ActivateJwtAuthorityResponse>, Status> {
        let id = &request.get_ref().authority_id;
        let activated_authority = Some(self.activate(request.extensions(), Jwt, id).await?);
        Ok(Response::new(ActivateJwtAuthorityResponse { activated_authority }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<TaintJwtAuthorityRequest>,
    ) -> Result<Response<TaintJwtAuthorityResponse>, Status> {
        let id = &request.get_ref().authority_id;
        let tainted_authority = Some(self.taint(request.extensions(), Jwt, id).await?);
        Ok(Response::new(TaintJwtAuthorityResponse { tainted_authority }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<RevokeJwtAuthorityRequest>,
    ) -> Result<Response<RevokeJwtAuthorityResponse>, Status> {
        let id = &request.get_ref().authority_id;
        let revoked_authority = Some(self.revoke(request.extensions(), Jwt, id).await?);
        Ok(Response::new(RevokeJwtAuthorityResponse { revoked_authority }))
    }

    async fn get_x509_authority_state(
        &self,
        request: Request<GetX509AuthorityStateRequest>,
    ) -> Result<Response<GetX509AuthorityStateResponse>, Status> {
        let Slots { active, prepared, old } = self.slots(request.extensions(), X509)?;
        let (active, prepared, old) = (active.map(shown), prepared.map(shown), old.map(shown));
        Ok(Response::new(GetX509AuthorityStateResponse { active, prepared, old }))
    }

    async fn prepare_x509_authority(
        &self,
        request: Request<PrepareX509AuthorityRequest>,
    ) -> Result<Response<PrepareX509AuthorityResponse>, Status> {
        let prepared_authority = Some(self.prepare(request.extensions(), X509).await?);
        Ok(Response::new(PrepareX509AuthorityResponse { prepared_authority }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<ActivateX509AuthorityRequest>,
    ) -> Result<Response<ActivateX509AuthorityResponse>, Status> {
        let id = &request.get_ref().authority_id;
        let activated_authority = Some(self.activate(request.extensions(), X509, id).await?);
        Ok(Response::new(ActivateX509AuthorityResponse { activated_authority }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<TaintX509AuthorityRequest>,
    ) -> Result<Response<TaintX509AuthorityResponse>, Status> {
        let id = &request.get_ref().authority_id;
        let tainted_authority = Some(self.taint(request.extensions(), X509, id).await?);
        Ok(Response::new(TaintX509AuthorityResponse { tainted_authority }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        _: Request<TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<TaintX509UpstreamAuthorityResponse>, Status> {
        Err(no_upstream_authority())
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<RevokeX509AuthorityRequest>,
    ) -> Result<Response<RevokeX509AuthorityResponse>, Status> {
        let id = &request.get_ref().authority_id;
        let revoked_authority = Some(self.revoke(request.extensions(), X509, id).await?);
        Ok(Response::new(RevokeX509AuthorityResponse { revoked_authority }))
    }

    async fn revoke_x509_upstream_authority(
        &self,
        _: Request<RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<RevokeX509UpstreamAuthorityResponse>, Status> {
        Err(no_upstream_authority())
    }

    async fn get_wit_authority_state(
        &self,
        _: Request<GetWitAuthorityStateRequest>,
    ) -> Result<Response<GetWitAuthorityStateResponse>, Status> {
        Err(no_wit())
    }

    async fn prepare_wit_authority(
        &self,
        _: Request<PrepareWitAuthorityRequest>,
    ) -> Result<Response<PrepareWitAuthorityResponse>, Status> {
        Err(no_wit())
    }

    async fn activate_wit_authority(
        &self,
        _: Request<ActivateWitAuthorityRequest>,
    ) -> Result<Response<ActivateWitAuthorityResponse>, Status> {
        Err(no_wit())
    }

    async fn taint_wit_authority(
        &self,
        _: Request<TaintWitAuthorityRequest>,
    ) -> Result<Response<TaintWitAuthorityResponse>, Status> {
        Err(no_wit())
    }

    async fn revoke_wit_authority(
        &self,
        _: Request<RevokeWitAuthorityRequest>,
    ) -> Result<Response<RevokeWitAuthorityResponse>, Status> {
        Err(no_wit())
    }
}

/// The same for both kinds.
impl Api {
    fn may(&self, call: &Extensions, verb: Verb) -> Result<Actor, Status> {
        let actor = self.actor(call)?;
        actor.may(verb, &Target::Whole, &self.journal.state()).map_err(refuse)?;
        Ok(actor)
    }

    fn slots(&self, call: &Extensions, kind: AuthorityKind) -> Result<Slots, Status> {
        self.may(call, Verb::AuthorityRead)?;
        let slots = self.authorities.slots(kind);
        if slots.active.is_none() {
            return Err(refuse(Refusal::unavailable("no authority of this kind is active at present")));
        }
        Ok(slots)
    }

    async fn prepare(&self, call: &Extensions, kind: AuthorityKind) -> Result<AuthorityState, Status> {
        let (api, actor) = (self.clone(), self.may(call, Verb::AuthorityRotate)?);
        let by = by(call, &actor);
        to_the_end(async move {
            let prepared = api.authorities.prepare(kind, &actor.to_string()).await?;
            tracing::info!(authority = %prepared.id, caller = %actor, "authority prepared by an operator");
            api.note(Act::PrepareAuthority(kind, prepared.id.clone()), &by).await;
            Ok(shown(prepared))
        })
        .await
    }

    async fn activate(
        &self,
        call: &Extensions,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<AuthorityState, Status> {
        let (api, actor, id) = (self.clone(), self.may(call, Verb::AuthorityRotate)?, id.to_owned());
        let by = by(call, &actor);
        to_the_end(async move {
            let activated = api.authorities.activate(kind, &id).await?;
            tracing::info!(authority = %activated.id, caller = %actor, "authority activated by an operator");
            api.note(Act::ActivateAuthority(kind, activated.id.clone()), &by).await;
            Ok(shown(activated))
        })
        .await
    }

    async fn taint(
        &self,
        call: &Extensions,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<AuthorityState, Status> {
        let (api, actor, id) = (self.clone(), self.may(call, Verb::AuthorityRevoke)?, id.to_owned());
        let by = by(call, &actor);
        to_the_end(async move {
            let tainted = match api.authorities.taint(kind, &id).await {
                Ok(tainted) => tainted,
                Err(refusal) => {
                    // Whoever asks again may do so because the record failed the first time.
                    if let Some(already) = api.authority(kind, &id).filter(|authority| authority.tainted) {
                        api.note(Act::TaintAuthority(kind, already.id), &by).await;
                    }
                    return Err(refusal);
                }
            };
            tracing::warn!(authority = %tainted.id, caller = %actor, "authority tainted");
            api.note(Act::TaintAuthority(kind, tainted.id.clone()), &by).await;
            Ok(shown(tainted))
        })
        .await
    }

    fn authority(&self, kind: AuthorityKind, id: &str) -> Option<Authority> {
        let id = AuthorityId::parse(id).ok()?;
        self.journal.state().authority(&id).filter(|authority| authority.kind == kind).cloned()
    }

    async fn revoke(
        &self,
        call: &Extensions,
        kind: AuthorityKind,
        id: &str,
    ) -> Result<AuthorityState, Status> {
        let (api, actor, id) = (self.clone(), self.may(call, Verb::AuthorityRevoke)?, id.to_owned());
        let by = by(call, &actor);
        to_the_end(async move {
            let revoked = api.authorities.revoke(kind, &id).await?;
            tracing::warn!(authority = %revoked.id, caller = %actor, "authority revoked");
            api.note(Act::RevokeAuthority(kind, revoked.id.clone()), &by).await;
            Ok(shown(revoked))
        })
        .await
    }
}

fn shown(authority: Authority) -> AuthorityState {
    AuthorityState {
        authority_id: authority.id.to_string(),
        expires_at: authority.not_after.secs(),
        upstream_authority_subject_key_id: String::new(),
    }
}

fn no_upstream_authority() -> Status {
    refuse(Refusal::precondition("this server has no upstream authority"))
}

fn no_wit() -> Status {
    refuse(Refusal::unimplemented("this server issues no WIT-SVIDs"))
}
