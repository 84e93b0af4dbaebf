//! How is passant.federation.v1.Federation answered?

use passant_core::{TrustDomain, UnixTime};
use passant_proto::federation::{
    ListStatusRequest, ListStatusResponse, RelationshipStatus, federation_server,
};
use prost::Message;
use tonic::{Request, Response, Status, async_trait};

use super::{Api, refuse};
use crate::federation;
use crate::limits::RESPONSE;
use crate::query::Paging;

#[async_trait]
impl federation_server::Federation for Api {
    async fn list_status(
        &self,
        request: Request<ListStatusRequest>,
    ) -> Result<Response<ListStatusResponse>, Status> {
        let actor = self.actor(request.extensions())?;
        let request = request.get_ref();
        let paging = Paging::parse(request.page_size, &request.page_token).map_err(refuse)?;
        let mut statuses = self.federation.statuses();
        let state = self.journal.state();
        let found = state
            .relationships()
            .map(|relationship| &relationship.trust_domain)
            .skip_while(|name| paging.after().is_some_and(|after| name.as_str() <= after))
            .map(|name| {
                let mut status = statuses.remove(name).unwrap_or_default();
                // What answers at which address is not for whoever may say where to fetch from.
                if !actor.is_operator() {
                    status.last_error = status.last_error.map(|_| "the server's log says why".to_owned());
                }
                shown(name, status)
            });
        let page = paging
            .fill(found, |one: &RelationshipStatus| one.trust_domain.as_str(), Message::encoded_len, RESPONSE)
            .map_err(refuse)?;
        Ok(Response::new(ListStatusResponse { statuses: page.items, next_page_token: page.next }))
    }
}

fn shown(trust_domain: &TrustDomain, status: federation::Status) -> RelationshipStatus {
    let secs = |at: Option<UnixTime>| at.map_or(0, UnixTime::secs);
    RelationshipStatus {
        trust_domain: trust_domain.to_string(),
        last_success: secs(status.last_success),
        last_attempt: secs(status.last_attempt),
        last_error: status.last_error.unwrap_or_default(),
        failures: status.failures,
        next_attempt: secs(status.next_attempt),
    }
}
