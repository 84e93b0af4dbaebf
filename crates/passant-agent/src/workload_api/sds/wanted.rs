//! What does a request for secrets ask for?

use std::collections::BTreeSet;

use passant_proto::convert::sds::SECRET_URL;
use passant_proto::discovery::DiscoveryRequest;
use tonic::Status;

use super::super::limits::{SECRET_NAME_BYTES, SECRET_NAMES};

/// The names of the secrets that a request asks for; none for all that the caller may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted(BTreeSet<String>);

impl Wanted {
    /// # Errors
    /// InvalidArgument for resources of another type, too many names, or one that is too long.
    pub(super) fn parse(request: &DiscoveryRequest) -> Result<Self, Status> {
        if !request.type_url.is_empty() && request.type_url != SECRET_URL {
            let message = format!("only resources of type {SECRET_URL} are served here");
            return Err(Status::invalid_argument(message));
        }
        if request.resource_names.len() > SECRET_NAMES {
            let message = format!("more than {SECRET_NAMES} names in one request; ask on several streams");
            return Err(Status::invalid_argument(message));
        }
        if request.resource_names.iter().any(|name| name.len() > SECRET_NAME_BYTES) {
            let message = format!("a name has more than {SECRET_NAME_BYTES} bytes: no secret is called so");
            return Err(Status::invalid_argument(message));
        }
        // An empty name counts for nothing, as with SPIRE.
        Ok(Self(request.resource_names.iter().filter(|name| !name.is_empty()).cloned().collect()))
    }

    pub(super) fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// In order.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(type_url: &str, names: Vec<String>, expected: Result<&[&str], &str>) {
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: names,
            ..DiscoveryRequest::default()
        };
        match (Wanted::parse(&request), expected) {
            (Ok(wanted), Ok(names)) => {
                assert_eq!(wanted.names().collect::<Vec<_>>(), names);
                assert_eq!(wanted.is_all(), names.is_empty());
            }
            (Err(status), Err(words)) => {
                assert_eq!(status.code(), tonic::Code::InvalidArgument);
                assert!(status.message().contains(words), "{status}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_count_once_and_are_bounded() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        check("", names(&["b", "a", "b", ""]), Ok(&["a", "b"]));
        check(SECRET_URL, names(&[""]), Ok(&[]));
        check("type.googleapis.com/envoy.config.cluster.v3.Cluster", vec![], Err("only resources of type"));
        check("", vec!["a".repeat(SECRET_NAME_BYTES)], Ok(&[&*"a".repeat(SECRET_NAME_BYTES)]));
        check("", vec!["a".repeat(SECRET_NAME_BYTES + 1)], Err("bytes"));
        check("", vec!["a".to_owned(); SECRET_NAMES], Ok(&["a"]));
        check("", vec!["a".to_owned(); SECRET_NAMES + 1], Err("names in one request"));
    }
}
