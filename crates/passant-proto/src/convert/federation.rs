//! How does a federation relationship convert?

use passant_core::{Bundle, EndpointProfile, EndpointUrl, FederationRelationship, SpiffeId, TrustDomain};

use super::{Malformed, bundle};
use crate::types;
use crate::types::federation_relationship::BundleEndpointProfile;

/// Takes a new relationship, and the bundle that its trust domain is to have at once, if one is given.
///
/// # Errors
/// The first field that is missing or malformed, or a bundle of another trust domain.
pub fn from_wire(
    wire: &types::FederationRelationship,
) -> Result<(FederationRelationship, Option<Bundle>), Malformed> {
    let trust_domain = trust_domain(&wire.trust_domain)?;
    let relationship = FederationRelationship {
        url: url(&wire.bundle_endpoint_url)?,
        profile: profile(wire.bundle_endpoint_profile.as_ref())?,
        trust_domain,
    };
    let bundle = bundle_of(&relationship.trust_domain, wire)?;
    Ok((relationship, bundle))
}

/// What becomes of `held` when the fields that `mask` names (all, without one) are taken from `wire`, and the bundle that
/// its trust domain is to have at once, if one is given. Only these fields are looked at.
///
/// # Errors
/// As [`from_wire`].
pub fn apply_update(
    held: &FederationRelationship,
    wire: &types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Result<(FederationRelationship, Option<Bundle>), Malformed> {
    let whole = types::FederationRelationshipMask {
        bundle_endpoint_url: true,
        bundle_endpoint_profile: true,
        trust_domain_bundle: true,
    };
    let mask = mask.unwrap_or(&whole);
    let mut updated = held.clone();
    if mask.bundle_endpoint_url {
        updated.url = url(&wire.bundle_endpoint_url)?;
    }
    if mask.bundle_endpoint_profile {
        updated.profile = profile(wire.bundle_endpoint_profile.as_ref())?;
    }
    let bundle = if mask.trust_domain_bundle { bundle_of(&held.trust_domain, wire)? } else { None };
    Ok((updated, bundle))
}

/// Tells a relationship, with the bundle that is held of its trust domain.
pub fn to_wire(
    relationship: &FederationRelationship,
    held: Option<&Bundle>,
) -> types::FederationRelationship {
    let profile = match &relationship.profile {
        EndpointProfile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
        EndpointProfile::HttpsSpiffe { endpoint_id } => {
            BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: endpoint_id.to_string(),
            })
        }
    };
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.url.to_string(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: held.map(bundle::to_wire),
    }
}

/// The trust domain that a relationship is with.
///
/// # Errors
/// When it is no name of one.
pub fn trust_domain(text: &str) -> Result<TrustDomain, Malformed> {
    TrustDomain::parse(text).map_err(|cause| Malformed::field("failed to parse trust domain", &cause))
}

fn url(text: &str) -> Result<EndpointUrl, Malformed> {
    EndpointUrl::parse(text).map_err(|cause| Malformed::new(cause.to_string()))
}

fn profile(wire: Option<&BundleEndpointProfile>) -> Result<EndpointProfile, Malformed> {
    match wire {
        Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})) => Ok(EndpointProfile::HttpsWeb),
        Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile { endpoint_spiffe_id })) => {
            let endpoint_id = SpiffeId::parse(endpoint_spiffe_id)
                .map_err(|cause| Malformed::field("failed to parse endpoint SPIFFE ID", &cause))?;
            Ok(EndpointProfile::HttpsSpiffe { endpoint_id })
        }
        None => Err(Malformed::new("missing bundle endpoint profile")),
    }
}

fn bundle_of(
    trust_domain: &TrustDomain,
    wire: &types::FederationRelationship,
) -> Result<Option<Bundle>, Malformed> {
    let Some(given) = &wire.trust_domain_bundle else { return Ok(None) };
    let given = bundle::foreign_from_wire(given).map_err(|e| e.during("failed to parse bundle"))?;
    if given.trust_domain != *trust_domain {
        return Err(Malformed::new(format!(
            "trust domain bundle (\"{}\") must match the trust domain of the federation relationship \
             (\"{trust_domain}\")",
            given.trust_domain
        )));
    }
    Ok(Some(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> types::FederationRelationship {
        types::FederationRelationship {
            trust_domain: "other.test".to_owned(),
            bundle_endpoint_url: "https://other.test/bundle".to_owned(),
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: "spiffe://other.test/endpoint".to_owned(),
            })),
            trust_domain_bundle: Some(types::Bundle {
                trust_domain: "other.test".to_owned(),
                sequence_number: 7,
                ..types::Bundle::default()
            }),
        }
    }

    #[test]
    fn a_relationship_survives_the_wire() {
        let web = types::FederationRelationship {
            bundle_endpoint_profile: Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {})),
            trust_domain_bundle: None,
            ..wire()
        };
        for wire in [wire(), web] {
            let (relationship, bundle) = from_wire(&wire).unwrap();
            assert_eq!(to_wire(&relationship, bundle.as_ref()), wire);
        }
    }

    #[test]
    fn faults_name_their_field() {
        let check = |change: fn(&mut types::FederationRelationship), expected: &str| {
            let mut wire = wire();
            change(&mut wire);
            let error = from_wire(&wire).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        };
        check(|wire| wire.trust_domain.clear(), "failed to parse trust domain: ");
        check(|wire| wire.bundle_endpoint_url = "http://x".to_owned(), "bundle endpoint URL must use");
        check(|wire| wire.bundle_endpoint_profile = None, "missing bundle endpoint profile");
        check(
            |wire| {
                wire.bundle_endpoint_profile =
                    Some(BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile::default()));
            },
            "failed to parse endpoint SPIFFE ID: ",
        );
        check(|wire| wire.trust_domain = "third.test".to_owned(), "trust domain bundle (\"other.test\")");
        check(
            |wire| wire.trust_domain_bundle.as_mut().unwrap().refresh_hint = -1,
            "failed to parse bundle: refresh hint",
        );
    }

    #[test]
    fn an_update_takes_what_its_mask_names_and_looks_at_nothing_else() {
        let (held, _) = from_wire(&wire()).unwrap();
        let mut given = types::FederationRelationship {
            bundle_endpoint_url: "https://new.test/".to_owned(),
            bundle_endpoint_profile: None,
            ..wire()
        };
        let mask = |url, profile, bundle| types::FederationRelationshipMask {
            bundle_endpoint_url: url,
            bundle_endpoint_profile: profile,
            trust_domain_bundle: bundle,
        };
        let (updated, bundle) = apply_update(&held, &given, Some(&mask(true, false, false))).unwrap();
        assert_eq!((updated.url.as_str(), &updated.profile), ("https://new.test/", &held.profile));
        assert!(bundle.is_none());
        let (same, bundle) = apply_update(&held, &given, Some(&mask(false, false, true))).unwrap();
        assert_eq!((same, bundle.unwrap().sequence), (held.clone(), 7));
        assert!(apply_update(&held, &given, None).is_err(), "without a mask the profile is due");
        given.bundle_endpoint_profile = Some(BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}));
        let (all, _) = apply_update(&held, &given, None).unwrap();
        assert_eq!(all.profile, EndpointProfile::HttpsWeb);
    }
}
