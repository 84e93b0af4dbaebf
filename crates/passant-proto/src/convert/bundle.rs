//! How does a bundle convert?

use std::time::Duration;

use passant_core::limits::BUNDLE_AUTHORITIES;
use passant_core::{Bundle, JwtAuthority, TrustDomain, UnixTime, X509Authority, x509_svid};

use super::Malformed;
use crate::types;

/// Takes a bundle. Its WIT authorities are not looked at.
///
/// Whether an authority is tainted is taken over. That is for the owner of the trust domain to say: whoever
/// takes a bundle from somebody else decides what the flag is worth.
///
/// # Errors
/// The first field that is malformed, as when an authority is unusable: leaving it out instead would
/// distrust what it signed.
pub fn from_wire(bundle: &types::Bundle) -> Result<Bundle, Malformed> {
    let trust_domain = TrustDomain::parse(&bundle.trust_domain)
        .map_err(|cause| Malformed::field("invalid trust domain", &cause))?;
    let refresh_hint =
        u64::try_from(bundle.refresh_hint).map_err(|_| Malformed::new("refresh hint is negative"))?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: x509_authorities(&bundle.x509_authorities)?,
        jwt_authorities: jwt_authorities(&bundle.jwt_authorities)?,
        sequence: bundle.sequence_number,
        refresh_hint: (refresh_hint > 0).then(|| Duration::from_secs(refresh_hint)),
    })
}

/// Takes the bundle of a foreign trust domain. No authority of it counts as tainted: that is for its owner to say, and a
/// bundle endpoint has no way to say it.
///
/// # Errors
/// As [`from_wire`].
pub fn foreign_from_wire(bundle: &types::Bundle) -> Result<Bundle, Malformed> {
    let mut bundle = from_wire(bundle)?;
    bundle.x509_authorities.iter_mut().for_each(|authority| authority.tainted = false);
    bundle.jwt_authorities.iter_mut().for_each(|authority| authority.tainted = false);
    Ok(bundle)
}

/// What becomes of `held` when the fields that `mask` names (all, without one) are taken from `given`, a bundle of the same
/// trust domain.
pub fn apply_update(held: &Bundle, given: Bundle, mask: Option<&types::BundleMask>) -> Bundle {
    let Some(types::BundleMask {
        x509_authorities,
        jwt_authorities,
        refresh_hint,
        sequence_number,
        wit_authorities: _,
    }) = mask
    else {
        return given;
    };
    let mut updated = held.clone();
    if *x509_authorities {
        updated.x509_authorities = given.x509_authorities;
    }
    if *jwt_authorities {
        updated.jwt_authorities = given.jwt_authorities;
    }
    if *refresh_hint {
        updated.refresh_hint = given.refresh_hint;
    }
    if *sequence_number {
        updated.sequence = given.sequence;
    }
    updated
}

/// Lists a bundle, tainted authorities included and marked.
pub fn to_wire(bundle: &Bundle) -> types::Bundle {
    types::Bundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: bundle.x509_authorities.iter().map(x509_authority_to_wire).collect(),
        jwt_authorities: bundle.jwt_authorities.iter().map(jwt_authority_to_wire).collect(),
        refresh_hint: bundle.refresh_hint.map_or(0, |hint| i64::try_from(hint.as_secs()).unwrap_or(i64::MAX)),
        sequence_number: bundle.sequence,
        wit_authorities: Vec::new(),
    }
}

/// Takes X.509 authorities, of which one field may hold several; a repeated certificate counts once, as
/// tainted if it is once.
///
/// # Errors
/// When something is no CA certificate, or there are too many.
pub fn x509_authorities(wire: &[types::X509Certificate]) -> Result<Vec<X509Authority>, Malformed> {
    const FAILED: &str = "unable to parse X.509 authority";
    let mut authorities: Vec<X509Authority> = Vec::new();
    for certificates in wire {
        let split = x509_svid::split_der(&certificates.asn1, BUNDLE_AUTHORITIES)
            .map_err(|cause| Malformed::field(FAILED, &cause))?;
        if split.is_empty() {
            return Err(Malformed::new(format!("{FAILED}: certificate is empty")));
        }
        for der in split {
            let known = authorities.iter_mut().find(|known| known.der.as_slice() == &*der);
            if let Some(known) = known {
                known.tainted |= certificates.tainted;
                continue;
            }
            not_too_many(authorities.len())?;
            let authority =
                X509Authority::from_der(&der).map_err(|cause| Malformed::field(FAILED, &cause))?;
            authorities.push(X509Authority { tainted: certificates.tainted, ..authority });
        }
    }
    Ok(authorities)
}

/// Takes JWT authorities; of two with one key ID the first counts.
///
/// # Errors
/// When one has no key ID or an unusable key, or there are too many.
pub fn jwt_authorities(wire: &[types::JwtKey]) -> Result<Vec<JwtAuthority>, Malformed> {
    let mut authorities: Vec<JwtAuthority> = Vec::new();
    for key in wire {
        if authorities.iter().any(|known| known.key_id == key.key_id) {
            continue;
        }
        not_too_many(authorities.len())?;
        authorities.push(jwt_authority(key)?);
    }
    Ok(authorities)
}

/// Takes one JWT authority.
///
/// # Errors
/// When it has no key ID or an unusable key.
pub fn jwt_authority(wire: &types::JwtKey) -> Result<JwtAuthority, Malformed> {
    let expires_at = (wire.expires_at != 0).then(|| UnixTime::from_secs(wire.expires_at));
    let authority = JwtAuthority::new(&wire.key_id, &wire.public_key, expires_at)
        .map_err(|cause| Malformed::field("unable to parse JWT authority", &cause))?;
    Ok(JwtAuthority { tainted: wire.tainted, ..authority })
}

fn not_too_many(have: usize) -> Result<(), Malformed> {
    if have < BUNDLE_AUTHORITIES {
        Ok(())
    } else {
        Err(Malformed::new(format!("more than {BUNDLE_AUTHORITIES} authorities of one kind")))
    }
}

fn x509_authority_to_wire(authority: &X509Authority) -> types::X509Certificate {
    types::X509Certificate { asn1: authority.der.clone(), tainted: authority.tainted }
}

fn jwt_authority_to_wire(authority: &JwtAuthority) -> types::JwtKey {
    types::JwtKey {
        public_key: authority.public_key.clone(),
        key_id: authority.key_id.clone(),
        expires_at: authority.expires_at.map_or(0, UnixTime::secs),
        tainted: authority.tainted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::test_certificates::{authority, leaf, public_key};

    fn wire() -> types::Bundle {
        types::Bundle {
            trust_domain: "example.org".to_owned(),
            x509_authorities: vec![
                types::X509Certificate { asn1: authority(), tainted: false },
                types::X509Certificate { asn1: authority(), tainted: true },
            ],
            jwt_authorities: vec![
                types::JwtKey {
                    public_key: public_key(),
                    key_id: "a".to_owned(),
                    expires_at: 5,
                    tainted: true,
                },
                types::JwtKey {
                    public_key: public_key(),
                    key_id: "b".to_owned(),
                    expires_at: 0,
                    tainted: false,
                },
            ],
            refresh_hint: 300,
            sequence_number: 7,
            wit_authorities: Vec::new(),
        }
    }

    fn check(change: impl FnOnce(&mut types::Bundle), expected: &str) {
        let mut wire = wire();
        change(&mut wire);
        let error = from_wire(&wire).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn a_bundle_survives_the_wire() {
        let wire = wire();
        assert_eq!(to_wire(&from_wire(&wire).unwrap()), wire);
        let empty = types::Bundle { trust_domain: "example.org".to_owned(), ..types::Bundle::default() };
        assert_eq!(to_wire(&from_wire(&empty).unwrap()), empty);
    }

    #[test]
    fn faults_name_their_field() {
        check(|bundle| bundle.trust_domain = "A".to_owned(), "invalid trust domain: ");
        check(|bundle| bundle.refresh_hint = -1, "refresh hint is negative");
        check(|bundle| bundle.x509_authorities[0].asn1.clear(), "unable to parse X.509 authority: ");
        check(|bundle| bundle.x509_authorities[0].asn1.push(0), "unable to parse X.509 authority: ");
        check(|bundle| bundle.jwt_authorities[0].key_id.clear(), "unable to parse JWT authority: ");
        check(|bundle| bundle.jwt_authorities[0].public_key.push(0), "unable to parse JWT authority: ");
    }

    #[test]
    fn nothing_of_a_foreign_bundle_is_tainted() {
        let bundle = foreign_from_wire(&wire()).unwrap();
        assert!(bundle.x509_authorities.iter().all(|authority| !authority.tainted));
        assert!(bundle.jwt_authorities.iter().all(|authority| !authority.tainted));
        assert_eq!((bundle.x509_authorities.len(), bundle.jwt_authorities.len()), (2, 2));
    }

    #[test]
    fn an_update_takes_what_its_mask_names() {
        let held = from_wire(&wire()).unwrap();
        let given = Bundle { sequence: 9, ..Bundle::empty(held.trust_domain.clone()) };
        let under = |mask: types::BundleMask| apply_update(&held, given.clone(), Some(&mask));
        assert_eq!(apply_update(&held, given.clone(), None), given);
        assert_eq!(under(types::BundleMask::default()), held);
        let mask = types::BundleMask { x509_authorities: true, ..types::BundleMask::default() };
        assert_eq!(under(mask), Bundle { x509_authorities: Vec::new(), ..held.clone() });
        let mask = types::BundleMask { jwt_authorities: true, ..types::BundleMask::default() };
        assert_eq!(under(mask), Bundle { jwt_authorities: Vec::new(), ..held.clone() });
        let mask = types::BundleMask { refresh_hint: true, ..types::BundleMask::default() };
        assert_eq!(under(mask), Bundle { refresh_hint: None, ..held.clone() });
        let mask = types::BundleMask { sequence_number: true, ..types::BundleMask::default() };
        assert_eq!(under(mask), Bundle { sequence: 9, ..held.clone() });
    }

    #[test]
    fn a_leaf_never_becomes_an_authority() {
        let asn1 = leaf("spiffe://example.org/a");
        check(|bundle| bundle.x509_authorities[0].asn1 = asn1, "unable to parse X.509 authority: ");
    }

    #[test]
    fn several_certificates_in_one_field_are_taken_apart() {
        let (first, second) = (authority(), authority());
        let both = types::X509Certificate { asn1: [first.clone(), second.clone()].concat(), tainted: false };
        let again = types::X509Certificate { asn1: second.clone(), tainted: true };
        let authorities = x509_authorities(&[both, again]).unwrap();
        let found: Vec<_> =
            authorities.into_iter().map(|authority| (authority.der, authority.tainted)).collect();
        assert_eq!(found, [(first, false), (second, true)]);
    }

    #[test]
    fn of_two_keys_with_one_id_the_first_counts() {
        let mut wire = wire();
        wire.jwt_authorities[1].key_id = "a".to_owned();
        let bundle = from_wire(&wire).unwrap();
        assert_eq!(bundle.jwt_authorities.len(), 1);
        assert_eq!(bundle.jwt_authorities[0].public_key, wire.jwt_authorities[0].public_key);
    }

    #[test]
    fn authorities_are_bounded() {
        let key = public_key();
        let keys = |count: usize| -> Vec<types::JwtKey> {
            let one =
                |n| types::JwtKey { key_id: format!("{n}"), public_key: key.clone(), ..Default::default() };
            (0..count).map(one).collect()
        };
        assert!(jwt_authorities(&keys(BUNDLE_AUTHORITIES)).is_ok());
        assert!(jwt_authorities(&keys(BUNDLE_AUTHORITIES + 1)).is_err());
    }
}
