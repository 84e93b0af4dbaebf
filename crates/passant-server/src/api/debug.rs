//! How is spire.api.server.debug.v1.Debug answered?

use passant_core::x509_svid::X509Svid;
use passant_core::{Refusal, TrustDomain};
use passant_proto::convert::id;
use passant_proto::debug::debug_server::Debug;
use passant_proto::debug::{GetInfoRequest, GetInfoResponse, get_info_response::Cert};
use rustls_pki_types::CertificateDer;
use tonic::{Request, Response, Status, async_trait};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Api, refuse};

#[async_trait]
impl Debug for Api {
    async fn get_info(&self, request: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        self.local(request.extensions())?;
        let state = self.journal.state();
        let own = state.trust_domain();
        let foreign = state.bundles().filter(|bundle| bundle.trust_domain != *own).count();
        let uptime = i32::try_from(self.started.elapsed().as_secs()).unwrap_or(i32::MAX);
        Ok(Response::new(GetInfoResponse {
            svid_chain: self.shown_chain(own).map_err(refuse)?,
            uptime,
            agents_count: counted(state.node_count()),
            federated_bundles_count: counted(foreign),
            entries_count: counted(state.entry_count()),
        }))
    }
}

impl Api {
    /// What the port shows, and the authority that it is under, which is not sent there.
    fn shown_chain(&self, own: &TrustDomain) -> Result<Vec<Cert>, Refusal> {
        let mut chain = self.identity.chain();
        let leaf = X509Svid::parse(chain.clone()).map_err(Refusal::internal)?;
        chain.extend(self.issuer_of(&leaf));
        let ids = std::iter::once(leaf.id().clone()).chain(std::iter::repeat(own.id()));
        chain.iter().zip(ids).map(|(certificate, id)| shown(certificate, Some(id::to_wire(&id)))).collect()
    }

    fn issuer_of(&self, leaf: &X509Svid) -> Option<CertificateDer<'static>> {
        let wanted = leaf.authority_key_id()?;
        let state = self.journal.state();
        let authority = state.authorities().find(|authority| {
            authority.certificate.is_some() && authority.id.as_str() == crate::encoding::to_hex(wanted)
        })?;
        authority.certificate.clone().map(CertificateDer::from)
    }
}

fn shown(
    certificate: &CertificateDer<'_>,
    id: Option<passant_proto::types::Spiffeid>,
) -> Result<Cert, Refusal> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(Refusal::internal)?;
    let (expires_at, subject) = (parsed.validity().not_after.timestamp(), parsed.subject().to_string());
    Ok(Cert { id, expires_at, subject })
}

fn counted(many: usize) -> i32 {
    i32::try_from(many).unwrap_or(i32::MAX)
}
