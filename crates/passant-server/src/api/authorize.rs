//! Who may call which method?
//!
//! The table below is the whole answer. It is asked before a request's body is read, so a stranger cannot make the
//! server decode what it will not act on; and the role it finds is handed to the method as a value, so a method cannot
//! run for anybody else. A method without a row does not exist.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use passant_core::{Reason, Refusal};
use passant_proto::status;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::access::Verb;
use crate::caller::{AgentCaller, Callers, ConnPeer};
use crate::limits::ANYBODYS_MESSAGE;

/// Who a method is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Everybody, with or without an X509-SVID.
    Anyone,
    /// Attested nodes.
    Agent,
    /// Administrators over TLS, and whoever may use the operator socket.
    Operator,
    /// Whoever may use the operator socket, and no administrator over TLS.
    Local,
    /// Servers below this one.
    Downstream,
    /// Whoever holds a role with this verb, as far as the role goes. Where roles divide what a verb acts on, the method asks
    /// again for each thing.
    Granted(Verb),
    /// Whoever holds a role.
    Holder,
}

use Role::{Agent, Anyone, Downstream, Granted, Holder, Local, Operator};

/// The one unary method that is open to strangers; the others of its service take large bundles.
const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";

/// The method that lasts as long as the agent's connection.
pub(crate) const WATCH: &str = "/passant.sync.v1.Sync/Watch";

/// Every method of this server and who it is for: SPIRE's as in its default policy, and our own.
pub(super) const METHODS: &[(&str, &[Role])] = &[
    ("/spire.api.server.agent.v1.Agent/CountAgents", &[Operator, Granted(Verb::AgentRead)]),
    ("/spire.api.server.agent.v1.Agent/ListAgents", &[Operator, Granted(Verb::AgentRead)]),
    ("/spire.api.server.agent.v1.Agent/GetAgent", &[Operator, Granted(Verb::AgentRead)]),
    ("/spire.api.server.agent.v1.Agent/DeleteAgent", &[Operator, Granted(Verb::AgentEvict)]),
    ("/spire.api.server.agent.v1.Agent/BanAgent", &[Operator, Granted(Verb::AgentBan)]),
    ("/spire.api.server.agent.v1.Agent/CreateJoinToken", &[Operator, Granted(Verb::TokenCreate)]),
    ("/spire.api.server.agent.v1.Agent/AttestAgent", &[Anyone]),
    ("/spire.api.server.agent.v1.Agent/RenewAgent", &[Agent]),
    ("/spire.api.server.agent.v1.Agent/PostStatus", &[Agent]),
    ("/spire.api.server.entry.v1.Entry/CountEntries", &[Operator, Granted(Verb::EntryRead)]),
    ("/spire.api.server.entry.v1.Entry/ListEntries", &[Operator, Granted(Verb::EntryRead)]),
    ("/spire.api.server.entry.v1.Entry/GetEntry", &[Operator, Granted(Verb::EntryRead)]),
    ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", &[Operator, Granted(Verb::EntryCreate)]),
    ("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", &[Operator, Granted(Verb::EntryUpdate)]),
    ("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", &[Operator, Granted(Verb::EntryDelete)]),
    ("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", &[Agent]),
    ("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", &[Agent]),
    ("/spire.api.server.svid.v1.SVID/MintX509SVID", &[Operator, Granted(Verb::SvidMint)]),
    ("/spire.api.server.svid.v1.SVID/MintJWTSVID", &[Operator, Granted(Verb::SvidMint)]),
    ("/spire.api.server.svid.v1.SVID/MintWITSVID", &[Operator]),
    ("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", &[Agent]),
    ("/spire.api.server.svid.v1.SVID/NewJWTSVID", &[Agent]),
    ("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", &[Agent]),
    ("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA", &[Downstream]),
    (GET_BUNDLE, &[Anyone]),
    ("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", &[Agent, Operator, Granted(Verb::BundleRead)]),
    ("/spire.api.server.bundle.v1.Bundle/CountBundles", &[Operator, Granted(Verb::BundleRead)]),
    ("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", &[Operator, Granted(Verb::BundleRead)]),
    ("/spire.api.server.bundle.v1.Bundle/AppendBundle", &[Operator]),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle",
        &[Operator, Granted(Verb::BundleWrite)],
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle",
        &[Operator, Granted(Verb::BundleWrite)],
    ),
    ("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", &[Operator, Granted(Verb::BundleWrite)]),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle",
        &[Operator, Granted(Verb::BundleWrite)],
    ),
    ("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority", &[Downstream]),
    ("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority", &[Downstream]),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships",
        &[Operator, Granted(Verb::FederationRead)],
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship",
        &[Operator, Granted(Verb::FederationRead)],
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship",
        &[Operator, Granted(Verb::FederationWrite)],
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship",
        &[Operator, Granted(Verb::FederationWrite)],
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
        &[Operator, Granted(Verb::FederationWrite)],
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle",
        &[Operator, Granted(Verb::FederationWrite)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState",
        &[Operator, Granted(Verb::AuthorityRead)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority",
        &[Operator, Granted(Verb::AuthorityRotate)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority",
        &[Operator, Granted(Verb::AuthorityRotate)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority",
        &[Operator, Granted(Verb::AuthorityRevoke)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority",
        &[Operator, Granted(Verb::AuthorityRevoke)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState",
        &[Operator, Granted(Verb::AuthorityRead)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority",
        &[Operator, Granted(Verb::AuthorityRotate)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority",
        &[Operator, Granted(Verb::AuthorityRotate)],
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority",
        &[Operator, Granted(Verb::AuthorityRevoke)],
    ),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", &[Operator]),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority",
        &[Operator, Granted(Verb::AuthorityRevoke)],
    ),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", &[Operator]),
    ("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState", &[Operator]),
    ("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority", &[Operator]),
    ("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority", &[Operator]),
    ("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority", &[Operator]),
    ("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority", &[Operator]),
    ("/spire.api.server.logger.v1.Logger/GetLogger", &[Local]),
    ("/spire.api.server.logger.v1.Logger/SetLogLevel", &[Local]),
    ("/spire.api.server.logger.v1.Logger/ResetLogLevel", &[Local]),
    ("/passant.federation.v1.Federation/ListStatus", &[Operator, Granted(Verb::FederationRead)]),
    ("/spire.api.server.debug.v1.Debug/GetInfo", &[Local]),
    ("/passant.explain.v1.Explain/Explain", &[Operator, Granted(Verb::IdentityExplain)]),
    (WATCH, &[Agent]),
    ("/passant.sync.v1.Sync/BatchMintX509SVID", &[Agent]),
    ("/passant.sync.v1.Sync/MintJWTSVID", &[Agent]),
    ("/passant.audit.v1.Audit/Search", &[Operator, Granted(Verb::AuditRead)]),
    ("/passant.audit.v1.Audit/Verify", &[Operator, Granted(Verb::AuditRead)]),
    ("/passant.access.v1.Access/Check", &[Operator, Holder]),
    ("/passant.import.v1.Import/AdoptAgents", &[Local]),
    ("/passant.import.v1.Import/ReleaseAgents", &[Local]),
    ("/passant.import.v1.Import/RemoveAuthorities", &[Local]),
    ("/passant.store.v1.Store/Backup", &[Local]),
    ("/passant.entry.v1.Entry/BatchCreateEntry", &[Operator, Granted(Verb::EntryCreate)]),
    ("/passant.entry.v1.Entry/BatchSetOptions", &[Operator, Granted(Verb::EntryUpdate)]),
    ("/passant.entry.v1.Entry/BatchGetOptions", &[Operator, Granted(Verb::EntryRead)]),
    ("/passant.stop.v1.Stop/Stop", &[Operator, Granted(Verb::StopWrite)]),
    ("/passant.stop.v1.Stop/Resume", &[Operator, Granted(Verb::StopWrite)]),
    ("/passant.stop.v1.Stop/ListStops", &[Operator, Granted(Verb::StopRead)]),
    ("/passant.stop.v1.Stop/AwaitRollout", &[Operator, Granted(Verb::EntryRead)]),
    ("/grpc.health.v1.Health/Check", &[Local]),
    ("/grpc.health.v1.Health/Watch", &[Local]),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &[Local]),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &[Local]),
];

/// The role in which a call was admitted. A request extension of every call that reaches a method.
#[derive(Clone, Debug)]
pub(crate) enum Admitted {
    /// The method is for everybody, and the caller is no agent in good standing.
    Anyone,
    Agent(AgentCaller),
    Operator,
    Local,
    Downstream,
    /// Some role of the caller has the verb of the method, but perhaps not on what the call is about.
    Holder,
}

/// The name of the method that is called, from the table. A request extension of every call that reaches a method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Called(pub(crate) &'static str);

/// The layer that asks the table.
#[derive(Clone)]
pub(crate) struct Authorize {
    callers: Callers,
}

/// A service behind the table.
#[derive(Clone)]
pub(crate) struct Authorized<S> {
    inner: S,
    callers: Callers,
}

impl Authorize {
    pub(crate) fn new(callers: Callers) -> Self {
        Self { callers }
    }
}

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized { inner, callers: self.callers.clone() }
    }
}

impl<S> Service<http::Request<Body>> for Authorized<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The clone is not ready; the one that was polled is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let callers = self.callers.clone();
        Box::pin(async move {
            match admit(&callers, request.uri().path(), request.extensions().get::<ConnPeer>()).await {
                Ok((admitted, called)) => {
                    let is_open = request.uri().path() == GET_BUNDLE;
                    request.extensions_mut().insert(admitted);
                    request.extensions_mut().insert(called);
                    if is_open {
                        request = request.map(small);
                    }
                    inner.call(request).await
                }
                Err(refusal) => {
                    let mut status = status::to_status(&refusal);
                    // For the record; it is not sent.
                    status.set_source(Arc::new(refusal));
                    Ok(status.into_http())
                }
            }
        })
    }
}

/// A body that fails once it is larger than what a stranger has to say.
fn small(body: Body) -> Body {
    let failed = |error: Box<dyn Error + Send + Sync>| {
        if error.is::<LengthLimitError>() {
            return Status::out_of_range(format!("request is larger than {ANYBODYS_MESSAGE} bytes"));
        }
        Status::from_error(error)
    };
    Body::new(Limited::new(body, ANYBODYS_MESSAGE).map_err(failed))
}

async fn admit(
    callers: &Callers,
    method: &str,
    peer: Option<&ConnPeer>,
) -> Result<(Admitted, Called), Refusal> {
    let Some(peer) = peer else {
        return Err(Refusal::internal("a connection without a peer reached the API"));
    };
    if let ConnPeer::Uninvited(local) = peer {
        return Err(Refusal::denied(format!(
            "user {} may not use the operator socket: run as root or as the server's user, join the group that \
             socket.group names, or have a role granted",
            local.uid
        )));
    }
    let Some((name, roles)) = METHODS.iter().find(|(name, _)| *name == method) else {
        return Err(Refusal::unimplemented(format!("unknown method {method}")));
    };
    let mut denial = Refusal::denied(format!("authorization denied for method {method}"));
    for role in *roles {
        let refused = match (role, peer) {
            // Whoever comes with an SVID is told apart, but nobody is turned away.
            (Anyone, _) => {
                let admitted = callers.agent(peer).await.map_or(Admitted::Anyone, Admitted::Agent);
                return Ok((admitted, Called(name)));
            }
            (Agent, ConnPeer::Local(_)) => continue,
            (Agent, _) => callers.agent(peer).await.map(Admitted::Agent),
            (Operator, _) => callers.operator(peer).map(|_| Admitted::Operator),
            (Local, _) => callers.local(peer).map(|_| Admitted::Local),
            (Downstream, _) => callers.downstream(peer).map(|_| Admitted::Downstream),
            (Granted(verb), _) => match callers.holder(peer) {
                Ok(holder) if holder.has(*verb) => Ok(Admitted::Holder),
                Ok(_) => {
                    denial.public = format!(
                        "authorization denied for method {method}: no role of the caller has the verb {verb}"
                    );
                    continue;
                }
                Err(refusal) => Err(refusal),
            },
            (Holder, _) => callers.holder(peer).map(|_| Admitted::Holder),
        };
        match refused {
            Ok(admitted) => return Ok((admitted, Called(name))),
            // Why an agent is refused tells it what to do next.
            Err(refusal) if refusal.reason == Reason::Denied => {
                denial.agent_fault = refusal.agent_fault.or(denial.agent_fault);
                denial = denial.because(refusal);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    // Who shows an SVID is worth a line; anybody at all could fill the log otherwise.
    if let ConnPeer::Remote { address, svid: Some(_) } = peer {
        tracing::info!(%address, method, why = denial.source.as_ref().map(tracing::field::display), "call refused");
    }
    Err(denial)
}

#[cfg(test)]
mod tests {
    use super::{GET_BUNDLE, METHODS, WATCH, admit, small};
    use crate::caller::{ConnPeer, LocalPeer};
    use crate::limits::ANYBODYS_MESSAGE;
    use crate::quota::Work;
    use crate::rig::Rig;
    use http_body_util::{BodyExt, Full};
    use passant_core::Reason;
    use std::collections::BTreeSet;
    use tonic::body::Body;

    const PROTOS: &[&str] = &[
        include_str!("../../../../proto/spire/api/server/agent/v1/agent.proto"),
        include_str!("../../../../proto/spire/api/server/bundle/v1/bundle.proto"),
        include_str!("../../../../proto/spire/api/server/entry/v1/entry.proto"),
        include_str!("../../../../proto/spire/api/server/svid/v1/svid.proto"),
        include_str!("../../../../proto/spire/api/server/localauthority/v1/localauthority.proto"),
        include_str!("../../../../proto/spire/api/server/logger/v1/logger.proto"),
        include_str!("../../../../proto/spire/api/server/trustdomain/v1/trustdomain.proto"),
        include_str!("../../../../proto/passant/federation/v1/federation.proto"),
        include_str!("../../../../proto/spire/api/server/debug/v1/debug.proto"),
        include_str!("../../../../proto/passant/explain/v1/explain.proto"),
        include_str!("../../../../proto/passant/access/v1/access.proto"),
        include_str!("../../../../proto/passant/audit/v1/audit.proto"),
        include_str!("../../../../proto/passant/import/v1/import.proto"),
        include_str!("../../../../proto/passant/store/v1/store.proto"),
        include_str!("../../../../proto/passant/sync/v1/sync.proto"),
        include_str!("../../../../proto/passant/entry/v1/entry.proto"),
        include_str!("../../../../proto/passant/stop/v1/stop.proto"),
    ];

    /// A method that lists or signs, under whatever name it comes, is not to be left out of the limits.
    #[test]
    fn methods_that_sign_attest_or_list_are_counted() {
        let counted = [
            "List",
            "Count",
            "Sync",
            "GetAuthorized",
            "Mint",
            "New",
            "Renew",
            "Attest",
            "Explain",
            "Backup",
            "Await",
            "BatchGet",
        ];
        // It is not offered, and costs nothing.
        let refused = ["MintWITSVID"];
        for (path, _) in METHODS {
            let (_, method) = path.rsplit_once('/').unwrap();
            if counted.iter().any(|begin| method.starts_with(begin)) && !refused.contains(&method) {
                assert!(Work::of(path).is_some(), "{path} is not counted");
            }
        }
        for (path, work) in [
            ("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", Some(Work::X509)),
            ("/passant.sync.v1.Sync/BatchMintX509SVID", Some(Work::X509)),
            ("/passant.sync.v1.Sync/MintJWTSVID", Some(Work::Jwt)),
            (WATCH, Some(Work::Sync)),
            ("/grpc.health.v1.Health/Watch", None),
            (GET_BUNDLE, Some(Work::Bundle)),
            ("/spire.api.server.entry.v1.Entry/GetEntry", None),
            ("/spire.api.server.entry.v1.Entry/BatchCreateEntry", None),
            ("", None),
        ] {
            assert_eq!(Work::of(path), work, "{path}");
        }
    }

    #[test]
    fn every_method_of_the_protos_has_exactly_one_row() {
        let mut served = BTreeSet::new();
        for proto in PROTOS {
            let after = |line: &str, word: &str| {
                let rest = line.trim().strip_prefix(word)?.trim_start();
                let end =
                    rest.find(|c: char| !c.is_alphanumeric() && c != '.' && c != '_').unwrap_or(rest.len());
                Some(rest[..end].to_owned())
            };
            let package = proto.lines().find_map(|line| after(line, "package ")).unwrap();
            let service = proto.lines().find_map(|line| after(line, "service ")).unwrap();
            for method in proto.lines().filter_map(|line| after(line, "rpc ")) {
                served.insert(format!("/{package}.{service}/{method}"));
            }
        }
        // The rest is gRPC's own.
        served.extend(
            METHODS.iter().map(|(name, _)| (*name).to_owned()).filter(|name| name.starts_with("/grpc.")),
        );
        let rows: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
        let unique: BTreeSet<String> = rows.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(rows.len(), unique.len());
        assert_eq!(unique, served);
        assert!(METHODS.iter().all(|(_, roles)| !roles.is_empty()));
    }

    #[tokio::test]
    async fn whom_the_operator_socket_is_not_for_gets_nothing_at_all() {
        let rig = Rig::new().await;
        let peer = ConnPeer::Uninvited(LocalPeer { uid: 4242, gid: 4242, pid: None });
        for (method, _) in METHODS {
            let refusal = admit(&rig.callers, method, Some(&peer)).await.unwrap_err();
            assert_eq!(refusal.reason, Reason::Denied, "{method}");
            assert!(refusal.public.contains("4242"), "{refusal}");
        }
        let nobody = admit(&rig.callers, METHODS[0].0, None).await.unwrap_err();
        assert_eq!(nobody.reason, Reason::Internal);
    }

    #[tokio::test]
    async fn whoever_asks_for_the_bundle_sends_little() {
        for (bytes, is_taken) in [(ANYBODYS_MESSAGE, true), (ANYBODYS_MESSAGE + 1, false)] {
            let body = small(Body::new(Full::from(vec![0_u8; bytes])));
            let taken = body.collect().await;
            assert_eq!(taken.is_ok(), is_taken);
            if let Err(status) = taken {
                assert_eq!(status.code(), tonic::Code::OutOfRange);
            }
        }
    }
}
