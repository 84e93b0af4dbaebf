//! Where do these tests get authorities, certificates and tokens, good and bad ones, and issued ones?

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use passant_core::jwt_svid::JwtSvidError;
use passant_core::keys::{KeyType, SignatureForm, SigningKey};
use passant_core::x509_svid::{self, X509SvidError};
use passant_core::{
    Bundle, Host, JwtAuthority, JwtSvid, SpiffeId, TrustDomain, UnixTime, X509Authority, X509Svid, csr,
};
use passant_proto::bundle::GetBundleRequest;
use passant_proto::convert;
use passant_proto::svid::{MintJwtsvidRequest, MintX509svidRequest};
use passant_tests::api::wire_id;
use passant_tests::site::Site;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The second that samples live in.
pub(crate) const NOW: i64 = 1_790_000_000;
/// Whose the samples are.
pub(crate) const ID: &str = "spiffe://example.org/w";
/// Whom sample tokens are for.
pub(crate) const AUDIENCE: &str = "reports";

/// A signing certificate with its key.
pub(crate) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) der: Vec<u8>,
}

impl Ca {
    pub(crate) fn root(trust_domain: &str) -> Self {
        Self::root_with(trust_domain, |_| {})
    }

    pub(crate) fn root_with(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = signing_params(trust_domain, "root");
        change(&mut params);
        let key = new_key();
        let der = params.self_signed(&key).expect("a sample is signed").der().to_vec();
        Self { params, key, der }
    }

    /// A signing certificate below this one.
    pub(crate) fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = signing_params("example.org", name);
        change(&mut params);
        let key = new_key();
        let der = params.signed_by(&key, &self.issuer()).expect("a sample is signed").der().to_vec();
        Self { params, key, der }
    }

    pub(crate) fn leaf(&self, id: &str) -> Vec<u8> {
        self.leaf_with(id, |_| {})
    }

    pub(crate) fn leaf_with(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = params(id);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        params.signed_by(&new_key(), &self.issuer()).expect("a sample is signed").der().to_vec()
    }

    /// A certificate with its key that names `names` and lasts.
    pub(crate) fn server(
        &self,
        names: Vec<SanType>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let mut params = params("spiffe://unused.test");
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        lasting(&mut params);
        change(&mut params);
        let key = new_key();
        let certificate = params.signed_by(&key, &self.issuer()).expect("a sample is signed").der().clone();
        (certificate, PrivatePkcs8KeyDer::from(key.serialize_der()))
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

/// Makes a sample valid now, too.
pub(crate) fn lasting(params: &mut CertificateParams) {
    (params.not_before, params.not_after) = (at(NOW - 3600), at(NOW + 20 * 365 * 86_400));
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system has randomness")
}

pub(crate) fn at(secs: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(secs).expect("samples live in this age")
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("samples are ASCII"))
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("samples are ASCII"))
}

fn signing_params(trust_domain: &str, name: &str) -> CertificateParams {
    let mut params = params(&format!("spiffe://{trust_domain}"));
    params.distinguished_name.push(DnType::OrganizationalUnitName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.subject_alt_names = vec![uri(id)];
    (params.not_before, params.not_after) = (at(NOW - 10), at(NOW + 3600));
    params
}

/// A bundle with these X.509 authorities.
pub(crate) fn x509_bundle(trust_domain: &str, cas: &[&Ca]) -> Bundle {
    let mut bundle = Bundle::empty(domain(trust_domain));
    let authorities = cas.iter().map(|ca| X509Authority::from_der(&ca.der).expect("a sample authority"));
    bundle.x509_authorities = authorities.collect();
    bundle
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).expect("a legal trust domain")
}

/// Verifies a chain in the samples' second.
pub(crate) fn verify_x509(chain: &[&[u8]], bundle: &Bundle) -> Result<X509Svid, X509SvidError> {
    x509_svid::verify(ders(chain), bundle, UnixTime::from_secs(NOW))
}

pub(crate) fn ders(chain: &[&[u8]]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|one| CertificateDer::from(one.to_vec())).collect()
}

/// What becomes of a leaf that differs from a good one by `change`.
pub(crate) fn verify_leaf(change: impl FnOnce(&mut CertificateParams)) -> Result<X509Svid, X509SvidError> {
    let ca = Ca::root("example.org");
    verify_x509(&[&ca.leaf_with(ID, change)], &x509_bundle("example.org", &[&ca]))
}

/// A trust domain with one JWT key of id `k0`.
pub(crate) struct Tokens {
    pub(crate) key: Arc<dyn SigningKey>,
    pub(crate) bundle: Arc<Bundle>,
}

impl Tokens {
    pub(crate) fn of(trust_domain: &str) -> Self {
        let key = new_signing_key(KeyType::EcP256);
        let mut bundle = Bundle::empty(domain(trust_domain));
        bundle.jwt_authorities.push(jwt_authority("k0", &*key));
        Self { key, bundle: Arc::new(bundle) }
    }

    /// Signs whatever is given.
    pub(crate) fn forge(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
        let signature = self.key.sign(signed.as_bytes(), SignatureForm::Fixed).expect("a sample is signed");
        format!("{signed}.{}", encode(&signature))
    }

    /// A good token but for its header.
    pub(crate) fn with_header(&self, header: &str) -> String {
        self.forge(header, &Value::Object(claims(json!({}))).to_string())
    }

    /// A good token but for some claims; null takes one away.
    pub(crate) fn with_claims(&self, changes: Value) -> String {
        self.forge(r#"{"alg":"ES256","kid":"k0"}"#, &Value::Object(claims(changes)).to_string())
    }

    pub(crate) fn verify(&self, token: &str) -> Result<JwtSvid, JwtSvidError> {
        verify_jwt(token, AUDIENCE, &self.bundle, UnixTime::from_secs(NOW))
    }
}

pub(crate) fn verify_jwt(
    token: &str,
    audience: &str,
    bundle: &Arc<Bundle>,
    now: UnixTime,
) -> Result<JwtSvid, JwtSvidError> {
    let bundles = |name: &TrustDomain| (*name == bundle.trust_domain).then(|| Arc::clone(bundle));
    JwtSvid::verify(token, audience, &bundles, now)
}

fn claims(changes: Value) -> Map<String, Value> {
    let mut members = json!({ "sub": ID, "aud": [AUDIENCE], "exp": NOW + 300, "iat": NOW });
    let members = members.as_object_mut().expect("it is an object");
    if let Value::Object(changes) = changes {
        members.extend(changes);
    }
    members.retain(|_, value| !value.is_null());
    members.clone()
}

pub(crate) fn new_signing_key(kind: KeyType) -> Arc<dyn SigningKey> {
    Host::system().keys.generate(kind).expect("the system has randomness")
}

pub(crate) fn jwt_authority(key_id: &str, key: &dyn SigningKey) -> JwtAuthority {
    JwtAuthority::new(key_id, key.public_key(), None).expect("a sample authority")
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// The header and the claims of a token, read without the product.
pub(crate) fn decode_jwt(token: &str) -> anyhow::Result<(Value, Value)> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, _] = parts[..] else { anyhow::bail!("{} parts", parts.len()) };
    let read = |part: &str| anyhow::Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part)?)?);
    Ok((read(header)?, read(claims)?))
}

/// The site's own bundle.
pub(crate) async fn own_bundle(site: &Site) -> anyhow::Result<Arc<Bundle>> {
    let request = GetBundleRequest { output_mask: None };
    let bundle = site.operator().await?.bundles().get_bundle(request).await?.into_inner();
    Ok(Arc::new(convert::bundle::from_wire(&bundle)?))
}

/// Has the server mint an X509-SVID for a new key: the chain, leaf first.
pub(crate) async fn mint_x509(site: &Site, id: &str, ttl: i32) -> anyhow::Result<Vec<Vec<u8>>> {
    let csr = csr::make(&*new_signing_key(KeyType::EcP256), Some(&SpiffeId::parse(id)?))?;
    mint_csr(site, csr, ttl).await
}

/// Has the server mint an X509-SVID by a CSR.
pub(crate) async fn mint_csr(site: &Site, csr: Vec<u8>, ttl: i32) -> anyhow::Result<Vec<Vec<u8>>> {
    let request = MintX509svidRequest { csr, ttl };
    let minted = site.operator().await?.svids().mint_x509svid(request).await?.into_inner();
    Ok(minted.svid.context("an SVID")?.cert_chain)
}

/// Has the server mint a JWT-SVID.
pub(crate) async fn mint_jwt(site: &Site, path: &str, audience: &[&str], ttl: i32) -> anyhow::Result<String> {
    let audience = audience.iter().map(|one| (*one).to_owned()).collect();
    let request = MintJwtsvidRequest { id: wire_id("example.org", path), audience, ttl };
    let minted = site.operator().await?.svids().mint_jwtsvid(request).await?.into_inner();
    Ok(minted.svid.context("an SVID")?.token)
}

/// Now, and a span later.
pub(crate) fn now() -> UnixTime {
    Host::system().now()
}

pub(crate) fn later(secs: u64) -> UnixTime {
    now().plus(Duration::from_secs(secs))
}
