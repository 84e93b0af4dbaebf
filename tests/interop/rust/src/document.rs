//! What does an SVID say, and does it verify against a bundle?

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use spiffe::{JwtSvid, X509BundleSet, X509Svid};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Verifies a chain with webpki against the bundle of its own trust domain only.
pub fn verify(svid: &X509Svid, bundles: &X509BundleSet) -> Result<()> {
    let id = svid.spiffe_id();
    let bundle =
        bundles.get(id.trust_domain()).with_context(|| format!("no bundle for the trust domain of {id}"))?;
    let roots: Vec<_> =
        bundle.authorities().iter().map(|root| CertificateDer::from(root.as_bytes())).collect();
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let chain: Vec<_> = svid.cert_chain().iter().map(|cert| CertificateDer::from(cert.as_bytes())).collect();
    let leaf = EndEntityCert::try_from(&chain[0])?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &chain[1..],
            UnixTime::now(),
            usage,
            None,
            None,
        )
        .with_context(|| format!("X509-SVID of {id} does not verify against its bundle"))?;
    }
    let said = svid.leaf().spiffe_id()?;
    ensure!(said == *id, "X509-SVID is announced as {id} but says {said}");
    Ok(())
}

/// The X.509 part of a report.
pub fn describe_x509(svid: &X509Svid) -> Result<Value> {
    let (_, leaf) = X509Certificate::from_der(svid.leaf().as_bytes())?;
    Ok(json!({
        "spiffe_id": svid.spiffe_id().to_string(),
        "serial": leaf.tbs_certificate.serial.to_str_radix(16),
        "not_before": instant(leaf.validity().not_before.to_datetime())?,
        "not_after": instant(leaf.validity().not_after.to_datetime())?,
    }))
}

/// The JWT part of a report. Reads the issue time, which the library does not keep, out of a token that was
/// parsed before.
pub fn describe_jwt(svid: &JwtSvid) -> Result<Value> {
    let claims = svid.token().split('.').nth(1).ok_or_else(|| anyhow!("the token has no claims"))?;
    let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
    let issued_at = match claims["iat"].as_i64() {
        Some(seconds) => instant(OffsetDateTime::from_unix_timestamp(seconds)?)?,
        None => String::new(),
    };
    Ok(json!({
        "spiffe_id": svid.spiffe_id().to_string(),
        "audience": svid.audience(),
        "key_id": svid.key_id(),
        "issued_at": issued_at,
        "expires_at": instant(svid.expiry())?,
    }))
}

/// Adds the members of one object to another.
pub fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn instant(at: OffsetDateTime) -> Result<String> {
    Ok(at.format(&Rfc3339)?)
}
