//! How do issued SVIDs convert, between server and agent?

use passant_core::jwt_svid::JwtSvid;
use passant_core::{SpiffeId, UnixTime, X509Svid};
use rustls_pki_types::CertificateDer;

use super::{Malformed, id};
use crate::types;

/// Lists an X509-SVID with the hint of its entry; its key is not part of it.
pub fn x509_to_wire(svid: &X509Svid, hint: &str) -> types::X509svid {
    types::X509svid {
        cert_chain: svid.chain().iter().map(|certificate| certificate.to_vec()).collect(),
        id: Some(id::to_wire(svid.id())),
        expires_at: svid.not_after().secs(),
        hint: hint.to_owned(),
    }
}

/// Takes an X509-SVID that a server issued. Its form is checked; that it verifies, and that it is for the
/// key that was asked for, is for the caller to check.
///
/// # Errors
/// When it is malformed, or the message names another SPIFFE ID than the leaf.
pub fn x509_from_wire(wire: &types::X509svid) -> Result<X509Svid, Malformed> {
    let chain = wire.cert_chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let svid = X509Svid::parse(chain).map_err(|cause| Malformed::field("invalid X509-SVID", &cause))?;
    same_id(wire.id.as_ref(), svid.id()).map_err(|cause| cause.during("invalid X509-SVID"))?;
    Ok(svid)
}

/// Lists a JWT-SVID with the hint of its entry.
pub fn jwt_to_wire(svid: &JwtSvid, hint: &str) -> types::Jwtsvid {
    types::Jwtsvid {
        token: svid.token().to_owned(),
        id: Some(id::to_wire(svid.id())),
        expires_at: svid.expires_at().secs(),
        issued_at: svid.issued_at().map_or(0, UnixTime::secs),
        hint: hint.to_owned(),
    }
}

/// Takes a JWT-SVID that a server issued. Its form is checked; that it verifies is for the caller to check.
///
/// # Errors
/// When it is malformed, or the message names another SPIFFE ID than the token.
pub fn jwt_from_wire(wire: &types::Jwtsvid) -> Result<JwtSvid, Malformed> {
    const INVALID: &str = "invalid JWT-SVID";
    let svid = JwtSvid::parse_unverified(&wire.token).map_err(|cause| Malformed::field(INVALID, &cause))?;
    same_id(wire.id.as_ref(), svid.id()).map_err(|cause| cause.during(INVALID))?;
    Ok(svid)
}

/// Whether the ID beside an SVID is that within; it may also be left out.
fn same_id(beside: Option<&types::Spiffeid>, within: &SpiffeId) -> Result<(), Malformed> {
    if beside.is_some() && id::from_wire(beside)? != *within {
        return Err(Malformed::new(format!("it is of \"{within}\", but sent as another's")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    use super::*;
    use crate::convert::test_certificates::{authority, leaf};

    const ID: &str = "spiffe://example.org/api";

    fn wire() -> types::X509svid {
        types::X509svid { cert_chain: vec![leaf(ID), authority()], ..types::X509svid::default() }
    }

    #[test]
    fn an_x509_svid_survives_the_wire() {
        let svid = x509_from_wire(&wire()).unwrap();
        let wire = x509_to_wire(&svid, "internal");
        assert_eq!((wire.expires_at, wire.hint.as_str()), (svid.not_after().secs(), "internal"));
        assert_eq!(x509_from_wire(&wire).unwrap(), svid);
    }

    #[test]
    fn an_x509_svid_of_another_id_is_refused() {
        let mut wire = wire();
        wire.id = Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: "/api".to_owned() });
        assert!(x509_from_wire(&wire).is_ok());
        wire.id.as_mut().unwrap().path = "/other".to_owned();
        assert!(x509_from_wire(&wire).is_err());
    }

    #[test]
    fn an_empty_or_broken_x509_svid_is_refused() {
        assert!(x509_from_wire(&types::X509svid::default()).is_err());
        let mut wire = wire();
        wire.cert_chain[0].push(0);
        assert!(x509_from_wire(&wire).is_err());
    }

    fn jwt() -> types::Jwtsvid {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let claims = r#"{"sub":"spiffe://example.org/api","aud":["a"],"exp":20,"iat":10}"#;
        let token =
            format!("{}.{}.{}", part(r#"{"alg":"ES256","kid":"k"}"#), part(claims), part("signature"));
        types::Jwtsvid { token, ..types::Jwtsvid::default() }
    }

    #[test]
    fn a_jwt_svid_survives_the_wire() {
        let svid = jwt_from_wire(&jwt()).unwrap();
        let wire = jwt_to_wire(&svid, "internal");
        assert_eq!((wire.issued_at, wire.expires_at, wire.hint.as_str()), (10, 20, "internal"));
        assert_eq!(jwt_from_wire(&wire).unwrap().token(), jwt().token);
    }

    #[test]
    fn a_jwt_svid_of_another_id_is_refused() {
        let mut wire = jwt();
        wire.id = Some(types::Spiffeid { trust_domain: "other.test".to_owned(), path: "/api".to_owned() });
        assert!(jwt_from_wire(&wire).is_err());
        assert!(jwt_from_wire(&types::Jwtsvid::default()).is_err());
    }
}
