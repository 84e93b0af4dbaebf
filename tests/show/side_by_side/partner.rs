//! A foreign trust domain, as far as it is known by its bundle.

use passant_proto::bundle::BatchSetFederatedBundleRequest;
use passant_proto::types;
use passant_tests::site::Site;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::all_well;
use crate::moment::Moment;

/// Gives the server a bundle with two new X.509 authorities and a new JWT authority, named by `number`; when that was
/// acknowledged.
///
/// # Errors
/// When it is refused.
pub(super) async fn set(site: &Site, trust_domain: &str, number: usize) -> anyhow::Result<Moment> {
    let (one, other) = (authority(trust_domain)?, authority(trust_domain)?);
    let (_, certificate) = X509Certificate::from_der(&one)?;
    let key = types::JwtKey {
        public_key: certificate.public_key().raw.to_vec(),
        key_id: format!("{trust_domain}-{number}"),
        expires_at: 0,
        tainted: false,
    };
    let x509 = |asn1: &Vec<u8>| types::X509Certificate { asn1: asn1.clone(), tainted: false };
    let bundle = types::Bundle {
        trust_domain: trust_domain.to_owned(),
        x509_authorities: vec![x509(&one), x509(&other)],
        jwt_authorities: vec![key],
        sequence_number: u64::try_from(number)?,
        ..types::Bundle::default()
    };
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
    let response = site.operator().await?.bundles().batch_set_federated_bundle(request).await?.into_inner();
    let at = Moment::now();
    all_well(response.results.into_iter().map(|result| result.status))?;
    Ok(at)
}

/// A CA certificate of the trust domain, DER.
fn authority(trust_domain: &str) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    Ok(params.self_signed(&KeyPair::generate()?)?.der().to_vec())
}
