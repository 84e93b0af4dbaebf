//! How does a SPIFFE ID convert?

use passant_core::{SpiffeId, TrustDomain};

use super::Malformed;
use crate::types;

/// Puts a SPIFFE ID together. The trust domain may also be given as its SPIFFE ID.
///
/// # Errors
/// When it is missing, or what it says is no SPIFFE ID.
pub fn from_wire(id: Option<&types::Spiffeid>) -> Result<SpiffeId, Malformed> {
    let id = id.ok_or_else(|| Malformed::new("missing SPIFFE ID"))?;
    let trust_domain =
        TrustDomain::parse(&id.trust_domain).map_err(|cause| Malformed::new(cause.to_string()))?;
    // Without its slash a path would run on from the trust domain's name.
    if !id.path.is_empty() && !id.path.starts_with('/') {
        return Err(Malformed::new("path must have a leading slash"));
    }
    trust_domain.join(&id.path).map_err(|cause| Malformed::new(cause.to_string()))
}

/// A SPIFFE ID with a path, of `trust_domain`.
///
/// # Errors
/// As [`from_wire`], and when it has no path or is of another trust domain.
pub fn member_from_wire(
    trust_domain: &TrustDomain,
    id: Option<&types::Spiffeid>,
) -> Result<SpiffeId, Malformed> {
    let id = from_wire(id)?;
    if !id.is_member_of(trust_domain) {
        return Err(Malformed::new(format!("\"{id}\" is not a member of trust domain \"{trust_domain}\"")));
    }
    if id.is_trust_domain_id() {
        return Err(Malformed::new(format!("\"{id}\" has no path")));
    }
    Ok(id)
}

/// The SPIFFE ID of an agent of `trust_domain`.
///
/// # Errors
/// As [`member_from_wire`], and when it is not below `/spire/agent/`.
pub fn agent_from_wire(
    trust_domain: &TrustDomain,
    id: Option<&types::Spiffeid>,
) -> Result<SpiffeId, Malformed> {
    let id = member_from_wire(trust_domain, id)?;
    if !id.is_agent() {
        return Err(Malformed::new(format!("\"{id}\" is not an agent: its path is not below /spire/agent")));
    }
    Ok(id)
}

/// A SPIFFE ID of `trust_domain` that a workload may have.
///
/// # Errors
/// As [`member_from_wire`], and when it is reserved for servers and agents.
pub fn workload_from_wire(
    trust_domain: &TrustDomain,
    id: Option<&types::Spiffeid>,
) -> Result<SpiffeId, Malformed> {
    let id = member_from_wire(trust_domain, id)?;
    not_reserved(&id)?;
    Ok(id)
}

/// Refuses what is reserved for servers and agents.
pub(super) fn not_reserved(id: &SpiffeId) -> Result<(), Malformed> {
    if id.is_reserved() {
        return Err(Malformed::new(format!("\"{id}\" is reserved: its path is /spire or below")));
    }
    Ok(())
}

/// Takes a SPIFFE ID apart.
pub fn to_wire(id: &SpiffeId) -> types::Spiffeid {
    types::Spiffeid { trust_domain: id.trust_domain_name().to_owned(), path: id.path().to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(trust_domain: &str, path: &str) -> types::Spiffeid {
        types::Spiffeid { trust_domain: trust_domain.to_owned(), path: path.to_owned() }
    }

    fn check(trust_domain: &str, path: &str, expected: Option<&str>) {
        let id = from_wire(Some(&wire(trust_domain, path))).ok();
        assert_eq!(id.as_ref().map(SpiffeId::as_str), expected, "{trust_domain} {path}");
    }

    #[test]
    fn parts_make_one_id() {
        check("example.org", "/a/b", Some("spiffe://example.org/a/b"));
        check("example.org", "", Some("spiffe://example.org"));
        check("spiffe://example.org", "/a", Some("spiffe://example.org/a"));
        assert!(from_wire(None).is_err());
    }

    #[test]
    fn parts_cannot_shift_into_each_other() {
        check("example.org", ".evil/a", None);
        check("example.org", "a", None);
        check("example.org/a", "/b", None);
        check("spiffe://example.org/a", "/b", None);
        check("", "/a", None);
        check("example.org", "/", None);
        check("example.org", "/a/../b", None);
        check("Example.org", "/a", None);
    }

    #[test]
    fn each_kind_of_id_has_its_place() {
        let td = TrustDomain::parse("example.org").unwrap();
        let member = wire("example.org", "/a");
        let agent = wire("example.org", "/spire/agent/x509pop/a");
        let server = wire("example.org", "/spire/server");
        let foreign = wire("other.test", "/a");
        let domain = wire("example.org", "");
        let verdicts = |id: &types::Spiffeid| {
            (
                member_from_wire(&td, Some(id)).is_ok(),
                agent_from_wire(&td, Some(id)).is_ok(),
                workload_from_wire(&td, Some(id)).is_ok(),
            )
        };
        assert_eq!(verdicts(&member), (true, false, true));
        assert_eq!(verdicts(&agent), (true, true, false));
        assert_eq!(verdicts(&server), (true, false, false));
        assert_eq!(verdicts(&foreign), (false, false, false));
        assert_eq!(verdicts(&domain), (false, false, false));
    }

    proptest! {
        #[test]
        fn an_id_survives_the_wire(path in "(/[a-zA-Z0-9_-]{1,8}){0,4}") {
            let id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
            prop_assert_eq!(from_wire(Some(&to_wire(&id))).unwrap(), id);
        }

        #[test]
        fn no_parts_make_a_foreign_id(trust_domain in ".{0,12}", path in ".{0,12}") {
            if let Ok(id) = from_wire(Some(&wire(&trust_domain, &path))) {
                prop_assert_eq!(id.trust_domain(), TrustDomain::parse(&trust_domain).unwrap());
                prop_assert_eq!(id.path(), path);
            }
        }
    }
}
