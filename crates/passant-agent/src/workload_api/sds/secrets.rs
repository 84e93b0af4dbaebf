//! Which secrets are those that a request asks for, of what its caller may see?

use std::collections::BTreeSet;
use std::iter;
use std::sync::Arc;

use passant_core::Bundle;
use passant_proto::convert::sds::{Validator, certificate, validation_context};
use prost_types::Any;
use tonic::Status;

use super::wanted::Wanted;
use crate::cache::{Identities, Identity};
use crate::config::Sds;

/// One resource, as it is named to the client.
#[derive(Clone, Debug)]
pub(super) enum Resource {
    /// An X509-SVID and its key.
    Svid { name: String, identity: Identity },
    /// Whom to believe.
    Bundles { name: String, validator: Validator, bundles: Vec<Arc<Bundle>> },
}

/// What is there of the names that were asked for.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) resources: Vec<Resource>,
    /// The names that are not.
    pub(super) missing: Vec<String>,
}

impl Resource {
    /// Whether a client that has `other` learns nothing from `self`.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Svid { name, identity }, Self::Svid { name: other_name, identity: other }) => {
                name == other_name
                    && identity.svid.chain() == other.svid.chain()
                    && (Arc::ptr_eq(&identity.key, &other.key) || identity.key.expose() == other.key.expose())
            }
            (
                Self::Bundles { name, validator, bundles },
                Self::Bundles { name: other_name, validator: other_validator, bundles: others },
            ) => {
                let is_same = |one: &Arc<Bundle>, two: &Arc<Bundle>| {
                    Arc::ptr_eq(one, two)
                        || one.trust_domain == two.trust_domain && one.x509_der() == two.x509_der()
                };
                (name, validator, bundles.len()) == (other_name, other_validator, others.len())
                    && iter::zip(bundles, others).all(|(one, two)| is_same(one, two))
            }
            (Self::Svid { .. } | Self::Bundles { .. }, _) => false,
        }
    }

    /// Holds keys in the clear: send it, drop it.
    fn to_wire(&self) -> Any {
        match self {
            Self::Svid { name, identity } => certificate(name, &identity.svid, &identity.key),
            Self::Bundles { name, validator, bundles } => {
                validation_context(name, *validator, bundles.iter().map(|bundle| &**bundle))
            }
        }
    }
}

impl Found {
    pub(super) fn to_wire(&self) -> Vec<Any> {
        to_wire(&self.resources)
    }
}

/// Holds keys in the clear: send them, drop them.
pub(super) fn to_wire(resources: &[Resource]) -> Vec<Any> {
    resources.iter().map(Resource::to_wire).collect()
}

/// The secrets called as in `wanted`: bundles, the own one first, then X509-SVIDs in entry-id order. Of all that there
/// are, each has one name, its SPIFFE ID; a word of the configuration has to be asked for.
///
/// A bundle without X.509 authorities counts as missing: an Envoy refuses it.
///
/// # Errors
/// InvalidArgument if all bundles together are asked for by a client that has no validator for them.
pub(super) fn find(
    wanted: &Wanted,
    validator: Validator,
    sds: &Sds,
    identities: &Identities,
) -> Result<Found, Status> {
    let held: Vec<&Arc<Bundle>> = iter::once(&identities.bundle)
        .chain(identities.federated.values())
        .filter(|bundle| !bundle.x509_authorities.is_empty())
        .collect();
    let bundle = |name: &str, of: &Arc<Bundle>| Resource::Bundles {
        name: name.to_owned(),
        validator,
        bundles: vec![Arc::clone(of)],
    };
    let svid = |name: &str, identity: &Identity| Resource::Svid {
        name: name.to_owned(),
        identity: identity.clone(),
    };
    let mut resources = Vec::new();
    if wanted.is_all() {
        resources.extend(held.iter().map(|it| bundle(it.trust_domain.id().as_str(), it)));
        // Of several entries for one SPIFFE ID the first: names are unique.
        let mut named = BTreeSet::new();
        let first = identities.svids.iter().filter(|it| named.insert(it.entry.spiffe_id.as_str()));
        resources.extend(first.map(|it| svid(it.entry.spiffe_id.as_str(), it)));
        return Ok(Found { resources, missing: Vec::new() });
    }
    let (mut svids, mut missing) = (Vec::new(), Vec::new());
    for name in wanted.names() {
        let own = || held.first().filter(|it| it.trust_domain == identities.bundle.trust_domain);
        let of_trust_domain = || held.iter().find(|it| it.trust_domain.id().as_str() == name);
        let of_spiffe_id = || identities.svids.iter().find(|it| it.entry.spiffe_id.as_str() == name);
        if *name == sds.default_bundle_name
            && let Some(own) = own()
        {
            resources.push(bundle(name, own));
        } else if *name == sds.default_all_bundles_name && !held.is_empty() {
            resources.push(all(name, validator, &held)?);
        } else if *name == sds.default_svid_name
            && let Some(first) = identities.svids.first()
        {
            svids.push(svid(name, first));
        } else if let Some(of) = of_trust_domain() {
            resources.push(bundle(name, of));
        } else if let Some(identity) = of_spiffe_id() {
            svids.push(svid(name, identity));
        } else {
            missing.push(name.clone());
        }
    }
    resources.extend(svids);
    Ok(Found { resources, missing })
}

fn all(name: &str, validator: Validator, held: &[&Arc<Bundle>]) -> Result<Resource, Status> {
    match validator {
        Validator::Spiffe => {
            let bundles = held.iter().map(|&bundle| Arc::clone(bundle)).collect();
            Ok(Resource::Bundles { name: name.to_owned(), validator, bundles })
        }
        // Each authority would speak for every trust domain.
        Validator::Chain => Err(Status::invalid_argument(format!(
            "{name:?} needs the SPIFFE certificate validator: use Envoy 1.18 or later, and do not set \
             disable_spiffe_cert_validation; or ask for one trust domain"
        ))),
    }
}
