//! What was said on one stream of secrets, and is there anything new to say?
//!
//! Each answer has a version and a nonce. A client answers it with a request that repeats the nonce; the version too if it
//! has taken the secrets, else it goes on with what it had and waits for other ones. So nothing is sent twice: not to a
//! client that took it, and not to one that rejected it, unless that asks for other names.

use passant_core::Host;
use passant_proto::convert::sds::{Client, answer};
use passant_proto::discovery::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;

use super::secrets::{Found, Resource, find, to_wire};
use super::wanted::Wanted;
use crate::cache::Identities;
use crate::config::Sds;

/// One side of the exchange, the agent's.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    /// What was last asked for.
    wanted: Option<Wanted>,
    /// As the last request says that has any word on it.
    client: Client,
    /// What it was last told of that; nothing since it asked for other names.
    told: Option<Vec<Resource>>,
    /// How many answers there were.
    answers: u64,
    /// The nonce of the last one.
    nonce: Option<String>,
}

/// What a request amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It counts.
    Taken,
    /// It counts, and the client has rejected the last answer.
    Rejected,
    /// The client has not yet read the last answer: it will ask again.
    Stale,
}

/// What a request says of who sent it.
pub(super) fn client(request: &DiscoveryRequest) -> Client {
    request.node.as_ref().map(Client::of).unwrap_or_default()
}

impl Dialogue {
    /// Takes note of a request. The first of a stream may name any version and nonce: those of an agent that was
    /// restarted.
    ///
    /// # Errors
    /// See [`Wanted::parse`].
    pub(super) fn hear(&mut self, request: &DiscoveryRequest) -> Result<Heard, Status> {
        let wanted = Wanted::parse(request)?;
        if self.nonce.as_ref().is_some_and(|nonce| *nonce != request.response_nonce) {
            return Ok(Heard::Stale);
        }
        let is_rejected = request.error_detail.is_some()
            || self.nonce.is_some() && request.version_info != self.answers.to_string();
        if request.node.is_some() {
            self.client = client(request);
        }
        if self.wanted.as_ref() != Some(&wanted) {
            self.wanted = Some(wanted);
            self.told = None;
        }
        Ok(if is_rejected { Heard::Rejected } else { Heard::Taken })
    }

    /// The secrets that were asked for; `None` as long as nothing was.
    ///
    /// # Errors
    /// See [`find`].
    pub(super) fn find(&self, sds: &Sds, identities: &Identities) -> Result<Option<Found>, Status> {
        let Some(wanted) = &self.wanted else { return Ok(None) };
        let validator = self.client.validator(sds.disable_spiffe_cert_validation);
        find(wanted, validator, sds, identities).map(Some)
    }

    /// The answer that `resources` make; none if the client was told them already, or if there are none.
    pub(super) fn tell(&mut self, resources: Vec<Resource>, host: &Host) -> Option<DiscoveryResponse> {
        let is_told = |told: &Vec<Resource>| {
            told.len() == resources.len()
                && told.iter().zip(&resources).all(|(one, two)| one.says_the_same(two))
        };
        if resources.is_empty() || self.told.as_ref().is_some_and(is_told) {
            return None;
        }
        self.answers += 1;
        let nonce = u32::from_be_bytes(host.random_bytes());
        let nonce = format!("{nonce:08x}");
        self.nonce = Some(nonce.clone());
        let response = answer(self.answers.to_string(), nonce, to_wire(&resources));
        self.told = Some(resources);
        Some(response)
    }

    /// Whether something was asked for and not yet answered.
    pub(super) fn is_waited_for(&self) -> bool {
        self.wanted.is_some() && self.told.is_none()
    }
}
