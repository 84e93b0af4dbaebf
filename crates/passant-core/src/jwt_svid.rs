//! When is a token a valid JWT-SVID, and how is one made?

mod signed;

use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::bundle::{Bundle, JwtAuthority};
use crate::jwk::{Curve, PublicKey};
use crate::keys::{KeyError, KeyType, SignatureForm, SigningKey};
use crate::limits::{JWT_AUDIENCES, JWT_CLOCK_SKEW, JWT_SVID_BYTES, KEY_ID_BYTES};
use crate::secret::Secret;
use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::strict_json;
use crate::time::UnixTime;
use crate::trust_domain::TrustDomain;
pub use signed::TokenNotAsOrdered;

/// 9999-12-31T23:59:59Z: a NumericDate beyond it is a slip, not a date.
const LATEST_DATE: f64 = 253_402_300_799.0;

/// What a JWT-SVID is to say (JWT-SVID 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtClaims {
    /// Whom the token is for. Has a path.
    pub sub: SpiffeId,
    /// Whom it may be shown to: 1 to 32 values, none empty, taken over as they are. One is the recommended number.
    pub aud: Vec<String>,
    /// The first second at which it is no longer valid.
    pub exp: UnixTime,
    /// When it is issued; before `exp`.
    pub iat: UnixTime,
    /// A name for this one token, for audits.
    pub jti: Option<String>,
    /// Who issues it; only OIDC relying parties look at it.
    pub iss: Option<String>,
}

/// A token that has the form of a JWT-SVID.
///
/// Made by [`JwtSvid::parse_unverified`] it says nothing about who signed it or whether it is valid now; made by
/// [`JwtSvid::verify`] it was valid at that moment. The token lets its holder act as the workload: it is wiped when the
/// last clone is dropped, and never printed.
#[derive(Clone)]
pub struct JwtSvid {
    id: SpiffeId,
    audience: Vec<String>,
    expires_at: UnixTime,
    issued_at: Option<UnixTime>,
    key_id: Option<String>,
    /// Not read before somebody asks, where they are known otherwise.
    claims: OnceLock<Map<String, Value>>,
    token: Arc<Secret<String>>,
}

/// Why a token is no JWT-SVID, none to be trusted, or cannot be made.
#[derive(Debug, Error)]
pub enum JwtSvidError {
    /// More than 64 KiB.
    #[error("token is longer than 64 KiB")]
    TooLong,
    /// Not three non-empty base64url parts with dots between them.
    #[error("token is not a JWS in compact form")]
    NotCompact,
    /// The first part is no JSON object, or names a member twice.
    #[error("token has a malformed header")]
    MalformedHeader,
    /// `alg` is missing or none of RS, PS and ES with 256, 384 or 512.
    #[error("token has an unsupported signature algorithm")]
    UnsupportedAlgorithm,
    /// `typ` is there and is neither `JWT` nor `JOSE`.
    #[error("token has a \"typ\" other than JWT or JOSE")]
    UnsupportedType,
    /// `crit` is there, and no extension is understood here.
    #[error("token has critical header parameters, none of which is supported")]
    CriticalHeader,
    /// The second part is no JSON object, or names a member twice.
    #[error("token has malformed claims")]
    MalformedClaims,
    /// A claim that must be there is missing or empty.
    #[error("token has no {0:?} claim")]
    MissingClaim(&'static str),
    /// A claim or header parameter is of the wrong type or out of range.
    #[error("token has a malformed {0:?}")]
    BadMember(&'static str),
    /// `sub` is no SPIFFE ID.
    #[error("token has a subject that is not a SPIFFE ID")]
    NotSpiffeId(#[source] SpiffeIdError),
    /// `sub` names a trust domain, not a workload.
    #[error("token has subject {0}, which has no path")]
    NoPath(SpiffeId),
    /// There is no bundle of the subject's trust domain.
    #[error("no bundle of trust domain {0}")]
    NoBundle(TrustDomain),
    /// The bundle has no JWT authority that signs with the token's key ID.
    #[error("the bundle of trust domain {0} has no JWT authority with the token's key ID")]
    UnknownKeyId(TrustDomain),
    /// The token names no key, and the bundle has not exactly one.
    #[error(
        "token has no key ID, and the bundle of trust domain {0} does not have exactly one JWT authority"
    )]
    NoKeyId(TrustDomain),
    /// The key cannot have made a signature of this algorithm.
    #[error("token's signature algorithm does not fit the JWT authority's key")]
    WrongKey,
    /// ES512: ring has no P-521.
    #[error("token is signed with ES512, which cannot be verified here")]
    Unverifiable,
    /// The signature does not match.
    #[error("token has an invalid signature")]
    BadSignature,
    /// `exp` has come.
    #[error("token of {id} expired at {expires_at}")]
    Expired {
        /// Whose it is.
        id: SpiffeId,
        /// The first second at which it is no longer valid.
        expires_at: UnixTime,
    },
    /// `nbf` or `iat` lies ahead by more than a minute.
    #[error("token of {id} is not valid before {not_before}")]
    NotYetValid {
        /// Whose it is.
        id: SpiffeId,
        /// What the token says.
        not_before: UnixTime,
    },
    /// The expected audience is not among the token's.
    #[error("token of {id} is not for audience {expected:?}")]
    WrongAudience {
        /// Whose it is.
        id: SpiffeId,
        /// The audience asked for.
        expected: String,
    },
    /// The key ID to sign with is empty or too long.
    #[error("cannot sign a token with a key ID that is empty or longer than 1024 bytes")]
    BadKeyId,
    /// The signer failed.
    #[error("failed to sign a token")]
    Sign(#[source] KeyError),
}

/// The header of a token that is made here.
#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

/// The claims of a token that is made here.
#[derive(Serialize)]
struct Members<'a> {
    aud: &'a [String],
    exp: i64,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'a str>,
    sub: &'a str,
}

fn written(part: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(part).expect("texts and numbers can be written")
}

/// Makes a signed token: ES256 or ES384 as the key's type says, header `alg`, `kid` and `typ` only (JWT-SVID 2).
///
/// `aud` is always an array, as SPIRE writes it.
///
/// # Errors
/// When a claim is unfit, the key ID is empty or too long, or the key does not sign. Nothing is signed in the first two cases.
pub fn sign(claims: &JwtClaims, key: &dyn SigningKey, key_id: &str) -> Result<String, JwtSvidError> {
    if key_id.is_empty() || key_id.len() > KEY_ID_BYTES {
        return Err(JwtSvidError::BadKeyId);
    }
    claims.check()?;
    let algorithm = match key.key_type() {
        KeyType::EcP256 => Algorithm::Es256,
        KeyType::EcP384 => Algorithm::Es384,
    };
    let mut token = encode(&written(&Header { alg: algorithm.name(), kid: key_id, typ: "JWT" }));
    token.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(written(&claims.members()), &mut token);
    let signature = key.sign(token.as_bytes(), SignatureForm::Fixed).map_err(JwtSvidError::Sign)?;
    token.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(&signature, &mut token);
    if token.len() > JWT_SVID_BYTES { Err(JwtSvidError::TooLong) } else { Ok(token) }
}

impl JwtClaims {
    fn check(&self) -> Result<(), JwtSvidError> {
        if self.sub.is_trust_domain_id() {
            return Err(JwtSvidError::NoPath(self.sub.clone()));
        }
        if self.aud.is_empty() || self.aud.iter().any(String::is_empty) {
            return Err(JwtSvidError::MissingClaim("aud"));
        }
        if self.aud.len() > JWT_AUDIENCES {
            return Err(JwtSvidError::BadMember("aud"));
        }
        if self.exp <= self.iat { Err(JwtSvidError::BadMember("exp")) } else { Ok(()) }
    }

    fn members(&self) -> Members<'_> {
        Members {
            aud: &self.aud,
            exp: self.exp.secs(),
            iat: self.iat.secs(),
            iss: self.iss.as_deref(),
            jti: self.jti.as_deref(),
            sub: self.sub.as_str(),
        }
    }
}

impl JwtSvid {
    /// Reads a token without looking at its signature, its times or its audience: for tokens that come from a server over an
    /// authenticated connection.
    ///
    /// # Errors
    /// When it has not the form of a JWT-SVID: compact, a supported `alg`, no foreign `typ`, no `crit`, a subject that is a
    /// SPIFFE ID with a path, at least one audience, an `exp`; or an object in it names a member twice.
    pub fn parse_unverified(token: &str) -> Result<Self, JwtSvidError> {
        Ok(Token::parse(token)?.svid)
    }

    /// Verifies a token for a validator that calls itself `audience`, at `now` (JWT-SVID 4 and 6.2).
    ///
    /// Only the bundle of the subject's own trust domain is asked for, and of it only the JWT authority with the token's
    /// `kid`; a token without `kid` is taken when there is but one. `exp` has no leeway: at that second the token is over.
    /// `nbf` and `iat` may lie ahead by a minute, for clocks that differ. Header parameters that are not known are ignored.
    ///
    /// # Errors
    /// As [`JwtSvid::parse_unverified`], and when no key verifies it, it is not valid at `now`, or `audience` (compared
    /// exactly) is not among its audiences.
    pub fn verify(
        token: &str,
        audience: &str,
        bundles: &dyn Fn(&TrustDomain) -> Option<Arc<Bundle>>,
        now: UnixTime,
    ) -> Result<Self, JwtSvidError> {
        let token = Token::parse(token)?;
        let trust_domain = token.svid.id.trust_domain();
        let bundle = bundles(&trust_domain).filter(|bundle| bundle.trust_domain == trust_domain);
        let bundle = bundle.ok_or_else(|| JwtSvidError::NoBundle(trust_domain.clone()))?;
        token.verify_signature(token.authority(&bundle)?)?;
        token.svid.check_times(token.not_before, now)?;
        if audience.is_empty() || !token.svid.audience.iter().any(|one| one == audience) {
            let (id, expected) = (token.svid.id, audience.to_owned());
            return Err(JwtSvidError::WrongAudience { id, expected });
        }
        Ok(token.svid)
    }

    /// Whose it is: a SPIFFE ID with a path.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whom it may be shown to; at least one.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// The first second at which it is no longer valid.
    pub fn expires_at(&self) -> UnixTime {
        self.expires_at
    }

    /// When it was issued, if it says so.
    pub fn issued_at(&self) -> Option<UnixTime> {
        self.issued_at
    }

    /// The key ID of whoever signed it, if the token names one.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// Everything it says, as it says it.
    pub fn claims(&self) -> &Map<String, Value> {
        // A token whose claims cannot be read is made into no JWT-SVID, so there are some.
        self.claims.get_or_init(|| read_claims(self.token()).unwrap_or_default())
    }

    /// The token in compact form. Whoever sees it can act as the workload.
    pub fn token(&self) -> &str {
        self.token.expose()
    }

    fn check_times(&self, not_before: Option<UnixTime>, now: UnixTime) -> Result<(), JwtSvidError> {
        if now >= self.expires_at {
            return Err(JwtSvidError::Expired { id: self.id.clone(), expires_at: self.expires_at });
        }
        match [not_before, self.issued_at].into_iter().flatten().max() {
            Some(start) if start > now.plus(JWT_CLOCK_SKEW) => {
                Err(JwtSvidError::NotYetValid { id: self.id.clone(), not_before: start })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtSvid({} for {:?} until {})", self.id, self.audience, self.expires_at)
    }
}

/// A token taken apart, nothing of it verified.
struct Token<'a> {
    algorithm: Algorithm,
    signed: &'a str,
    signature: Vec<u8>,
    not_before: Option<UnixTime>,
    svid: JwtSvid,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Self, JwtSvidError> {
        if text.len() > JWT_SVID_BYTES {
            return Err(JwtSvidError::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtSvidError::NotCompact)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtSvidError::NotCompact)?;
        // A part with a dot in it, as of a JWE, is no base64url.
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let Ok(Value::Object(header)) = strict_json::parse(&header) else {
            return Err(JwtSvidError::MalformedHeader);
        };
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse);
        let algorithm = algorithm.ok_or(JwtSvidError::UnsupportedAlgorithm)?;
        match header.get("typ").map(Value::as_str) {
            None | Some(Some("JWT" | "JOSE")) => {}
            Some(_) => return Err(JwtSvidError::UnsupportedType),
        }
        if header.contains_key("crit") {
            return Err(JwtSvidError::CriticalHeader);
        }
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(key_id)) => Some(key_id.clone()),
            Some(_) => return Err(JwtSvidError::BadMember("kid")),
        };
        let Ok(Value::Object(claims)) = strict_json::parse(&claims) else {
            return Err(JwtSvidError::MalformedClaims);
        };
        let not_before = date(&claims, "nbf")?;
        let svid = JwtSvid {
            id: subject(&claims)?,
            audience: audience(&claims)?,
            expires_at: date(&claims, "exp")?.ok_or(JwtSvidError::MissingClaim("exp"))?,
            issued_at: date(&claims, "iat")?,
            key_id,
            token: Arc::new(Secret::new(text.to_owned())),
            claims: OnceLock::from(claims),
        };
        Ok(Self { algorithm, signed, signature, not_before, svid })
    }

    /// The one authority that may have signed this token.
    fn authority<'b>(&self, bundle: &'b Bundle) -> Result<&'b JwtAuthority, JwtSvidError> {
        match (&self.svid.key_id, &bundle.jwt_authorities[..]) {
            (Some(key_id), _) => bundle
                .jwt_authority(key_id)
                .ok_or_else(|| JwtSvidError::UnknownKeyId(bundle.trust_domain.clone())),
            (None, [only]) => Ok(only),
            (None, _) => Err(JwtSvidError::NoKeyId(bundle.trust_domain.clone())),
        }
    }

    fn verify_signature(&self, authority: &JwtAuthority) -> Result<(), JwtSvidError> {
        let key = PublicKey::from_spki(&authority.public_key).map_err(|_| JwtSvidError::WrongKey)?;
        let verification = self.algorithm.verification(&key)?;
        UnparsedPublicKey::new(verification, key.key_bytes())
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| JwtSvidError::BadSignature)
    }
}

/// The signature algorithms of JWT-SVID 2.1; all others are refused before anything else is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
}

impl Algorithm {
    const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
    ];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }

    /// How a signature by `key` is verified: the key must be of the kind, and on the curve, that the algorithm names.
    fn verification(self, key: &PublicKey) -> Result<&'static dyn VerificationAlgorithm, JwtSvidError> {
        let curve = match key {
            PublicKey::Ec { curve, .. } => Some(*curve),
            PublicKey::Rsa { .. } => None,
        };
        match (self, curve) {
            (Self::Rs256, None) => Ok(&RSA_PKCS1_2048_8192_SHA256),
            (Self::Rs384, None) => Ok(&RSA_PKCS1_2048_8192_SHA384),
            (Self::Rs512, None) => Ok(&RSA_PKCS1_2048_8192_SHA512),
            (Self::Ps256, None) => Ok(&RSA_PSS_2048_8192_SHA256),
            (Self::Ps384, None) => Ok(&RSA_PSS_2048_8192_SHA384),
            (Self::Ps512, None) => Ok(&RSA_PSS_2048_8192_SHA512),
            (Self::Es256, Some(Curve::P256)) => Ok(&ECDSA_P256_SHA256_FIXED),
            (Self::Es384, Some(Curve::P384)) => Ok(&ECDSA_P384_SHA384_FIXED),
            (Self::Es512, Some(Curve::P521)) => Err(JwtSvidError::Unverifiable),
            _ => Err(JwtSvidError::WrongKey),
        }
    }
}

/// The claims of a token in compact form.
fn read_claims(token: &str) -> Option<Map<String, Value>> {
    match strict_json::parse(&decode(token.split('.').nth(1)?).ok()?).ok()? {
        Value::Object(claims) => Some(claims),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    }
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// One part of a compact JWS: never empty, never padded (RFC 7515 2).
fn decode(part: &str) -> Result<Vec<u8>, JwtSvidError> {
    match BASE64_URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(JwtSvidError::NotCompact),
    }
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtSvidError> {
    let text = claims.get("sub").ok_or(JwtSvidError::MissingClaim("sub"))?;
    let text = text.as_str().ok_or(JwtSvidError::BadMember("sub"))?;
    let id = SpiffeId::parse(text).map_err(JwtSvidError::NotSpiffeId)?;
    if id.is_trust_domain_id() { Err(JwtSvidError::NoPath(id)) } else { Ok(id) }
}

/// A string or an array of strings, and not none (RFC 7519 4.1.3, JWT-SVID 3.2).
fn audience(claims: &Map<String, Value>) -> Result<Vec<String>, JwtSvidError> {
    let values = match claims.get("aud") {
        None => return Err(JwtSvidError::MissingClaim("aud")),
        Some(Value::Array(values)) => values.iter().collect(),
        Some(single) => vec![single],
    };
    if values.is_empty() {
        return Err(JwtSvidError::MissingClaim("aud"));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(JwtSvidError::BadMember("aud"));
    values.into_iter().map(text).collect()
}

/// A NumericDate (RFC 7519 2). A fraction counts up to the next whole second: no whole second lies between the two, so
/// "before" and "at or after" stay what they were.
fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<UnixTime>, JwtSvidError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let secs = value.as_f64().ok_or(JwtSvidError::BadMember(name))?.ceil();
    if !(-LATEST_DATE..=LATEST_DATE).contains(&secs) {
        return Err(JwtSvidError::BadMember(name));
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^38 by the lines above")]
    let secs = secs as i64;
    Ok(Some(UnixTime::from_secs(secs)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::host::Host;
    use crate::test_ca::{Ca, NOW};

    /// See the comment in the file.
    const TOKENS: &str = include_str!("testdata/tokens.txt");
    const ID: &str = "spiffe://example.org/w";

    fn now() -> UnixTime {
        UnixTime::from_secs(NOW)
    }

    fn claims() -> JwtClaims {
        JwtClaims {
            sub: SpiffeId::parse(ID).unwrap(),
            aud: vec!["reports".to_owned()],
            exp: now().plus(Duration::from_secs(300)),
            iat: now(),
            jti: None,
            iss: None,
        }
    }

    fn members() -> Map<String, Value> {
        serde_json::from_slice(&written(&claims().members())).unwrap()
    }

    /// A trust domain with keys `k0`, `k1`, ... of the given kinds.
    struct Issuer {
        keys: Vec<Arc<dyn SigningKey>>,
        bundle: Arc<Bundle>,
    }

    impl Issuer {
        fn new(trust_domain: &str, kinds: &[KeyType]) -> Self {
            let keys: Vec<_> =
                kinds.iter().map(|kind| Host::system().keys.generate(*kind).unwrap()).collect();
            let mut bundle = Bundle::empty(TrustDomain::parse(trust_domain).unwrap());
            for (at, key) in keys.iter().enumerate() {
                let authority = JwtAuthority::new(&format!("k{at}"), key.public_key(), None).unwrap();
                bundle.add_jwt_authority(authority).unwrap();
            }
            Self { keys, bundle: Arc::new(bundle) }
        }

        fn one() -> Self {
            Self::new("example.org", &[KeyType::EcP256])
        }

        /// Signs whatever is given with key `k0`.
        fn forge(&self, header: &str, claims: &str) -> String {
            let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
            let signature = self.keys[0].sign(signed.as_bytes(), SignatureForm::Fixed).unwrap();
            format!("{signed}.{}", encode(&signature))
        }

        /// A good token but for some claims; null takes one away.
        fn with_claims(&self, changes: Value) -> String {
            let mut members = members();
            members.extend(changes.as_object().unwrap().clone());
            members.retain(|_, value| !value.is_null());
            self.forge(r#"{"alg":"ES256","kid":"k0"}"#, &Value::Object(members).to_string())
        }

        fn with_header(&self, header: &str) -> String {
            self.forge(header, &Value::Object(members()).to_string())
        }

        fn verify_at(&self, token: &str, now: UnixTime) -> Result<JwtSvid, JwtSvidError> {
            let bundles =
                |name: &TrustDomain| (*name == self.bundle.trust_domain).then(|| Arc::clone(&self.bundle));
            JwtSvid::verify(token, "reports", &bundles, now)
        }

        fn verify(&self, token: &str) -> Result<JwtSvid, JwtSvidError> {
            self.verify_at(token, now())
        }
    }

    #[test]
    fn what_is_signed_is_verified_and_described() {
        for (kind, algorithm) in [(KeyType::EcP256, "ES256"), (KeyType::EcP384, "ES384")] {
            let issuer = Issuer::new("example.org", &[kind]);
            let claims =
                JwtClaims { jti: Some("j".to_owned()), iss: Some("https://i.test".to_owned()), ..claims() };
            let token = sign(&claims, issuer.keys[0].as_ref(), "k0").unwrap();
            let parts: Vec<&str> = token.split('.').collect();
            let header = String::from_utf8(decode(parts[0]).unwrap()).unwrap();
            assert_eq!(header, format!(r#"{{"alg":"{algorithm}","kid":"k0","typ":"JWT"}}"#));
            let svid = issuer.verify(&token).unwrap();
            assert_eq!((svid.id(), svid.audience()), (&claims.sub, &claims.aud[..]));
            assert_eq!((svid.expires_at(), svid.issued_at()), (claims.exp, Some(claims.iat)));
            let said = json!({ "sub": ID, "aud": ["reports"], "exp": NOW + 300, "iat": NOW, "jti": "j", "iss": "https://i.test" });
            assert_eq!(Value::Object(svid.claims().clone()), said);
            assert_eq!(svid.token(), token);
            assert!(!format!("{svid:?}").contains(parts[2]));
        }
    }

    #[test]
    fn unfit_claims_are_never_signed() {
        let key = Host::system().keys.generate(KeyType::EcP256).unwrap();
        let check = |change: fn(&mut JwtClaims), signed: bool| {
            let mut claims = claims();
            change(&mut claims);
            assert_eq!(sign(&claims, key.as_ref(), "k0").is_ok(), signed, "{claims:?}");
        };
        check(|_| {}, true);
        check(|claims| claims.sub = claims.sub.trust_domain().id(), false);
        check(|claims| claims.aud.clear(), false);
        check(|claims| claims.aud = vec![String::new()], false);
        check(|claims| claims.aud = vec!["a".to_owned(); JWT_AUDIENCES], true);
        check(|claims| claims.aud = vec!["a".to_owned(); JWT_AUDIENCES + 1], false);
        check(|claims| claims.aud = vec!["a".repeat(JWT_SVID_BYTES)], false);
        check(|claims| claims.exp = claims.iat, false);
        check(|claims| claims.exp = claims.iat.plus(Duration::from_secs(1)), true);
        for key_id in [String::new(), "k".repeat(KEY_ID_BYTES + 1)] {
            assert!(matches!(sign(&claims(), key.as_ref(), &key_id), Err(JwtSvidError::BadKeyId)));
        }
    }

    #[test]
    fn tokens_of_others_are_verified_in_every_algorithm_that_ring_has() {
        let lines = || TOKENS.lines().filter_map(|line| line.split_once(' '));
        let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        for (key_id, spki) in lines().filter(|(name, _)| ["rsa", "p521"].contains(name)) {
            let spki = BASE64_STANDARD.decode(spki).unwrap();
            bundle.add_jwt_authority(JwtAuthority::new(key_id, &spki, None).unwrap()).unwrap();
        }
        let issuer = Issuer { keys: Vec::new(), bundle: Arc::new(bundle) };
        let tokens: Vec<_> = lines().filter(|(name, _)| Algorithm::parse(name).is_some()).collect();
        assert_eq!(tokens.len(), 7);
        for (algorithm, token) in tokens {
            match issuer.verify(token) {
                Ok(svid) => assert_eq!(svid.id().as_str(), ID, "{algorithm}"),
                Err(JwtSvidError::Unverifiable) => assert_eq!(algorithm, "ES512"),
                Err(other) => panic!("{algorithm}: {other}"),
            }
            let mut changed = token.to_owned();
            let last_but_one = changed.len() - 2;
            let other = if changed.ends_with("AA") { "BA" } else { "AA" };
            changed.replace_range(last_but_one.., other);
            assert!(issuer.verify(&changed).is_err(), "{algorithm}");
        }
    }

    #[test]
    fn other_algorithms_are_refused_before_all_else() {
        let check = |header: &str| {
            let token = format!("{}.e30.AAAA", encode(header.as_bytes()));
            assert!(
                matches!(JwtSvid::parse_unverified(&token), Err(JwtSvidError::UnsupportedAlgorithm)),
                "{header}"
            );
        };
        for name in ["none", "None", "NONE", "HS256", "EdDSA", "ES256K", "es256", "RS1", ""] {
            check(&format!(r#"{{"alg":"{name}","typ":"at+jwt","crit":[]}}"#));
        }
        check("{}");
        check(r#"{"alg":256}"#);
        check(r#"{"alg":["ES256"]}"#);
    }

    #[test]
    fn a_public_key_is_no_hmac_secret() {
        let issuer = Issuer::one();
        let signed = format!("{}.{}", encode(br#"{"alg":"HS256","kid":"k0"}"#), encode(b"{}"));
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, issuer.keys[0].public_key());
        let token = format!("{signed}.{}", encode(ring::hmac::sign(&secret, signed.as_bytes()).as_ref()));
        assert!(matches!(issuer.verify(&token), Err(JwtSvidError::UnsupportedAlgorithm)));
    }

    #[test]
    fn typ_is_jwt_or_jose_or_absent() {
        let issuer = Issuer::one();
        assert!(issuer.verify(&issuer.with_header(r#"{"alg":"ES256","kid":"k0"}"#)).is_ok());
        let typ = |value: &str| {
            issuer.verify(&issuer.with_header(&format!(r#"{{"alg":"ES256","kid":"k0","typ":{value}}}"#)))
        };
        assert!(typ(r#""JWT""#).is_ok());
        assert!(typ(r#""JOSE""#).is_ok());
        for value in [r#""wit+jwt""#, r#""at+jwt""#, r#""jwt-bogus""#, r#""jwt""#, r#""""#, "null", "1"] {
            assert!(matches!(typ(value), Err(JwtSvidError::UnsupportedType)), "{value}");
        }
    }

    #[test]
    fn critical_parameters_are_refused_and_unknown_ones_ignored() {
        let issuer = Issuer::one();
        for crit in [r#"["exp"]"#, "[]", r#"["b64"]"#, "null"] {
            let token = issuer.with_header(&format!(r#"{{"alg":"ES256","kid":"k0","crit":{crit}}}"#));
            assert!(matches!(issuer.verify(&token), Err(JwtSvidError::CriticalHeader)), "{crit}");
        }
        let token = issuer.with_header(r#"{"alg":"ES256","kid":"k0","jku":"https://evil.test","jwk":{}}"#);
        assert!(issuer.verify(&token).is_ok());
    }

    #[test]
    fn members_given_twice_are_refused() {
        let issuer = Issuer::one();
        let token = issuer.with_header(r#"{"alg":"ES256","alg":"ES256","kid":"k0"}"#);
        assert!(matches!(issuer.verify(&token), Err(JwtSvidError::MalformedHeader)));
        let body =
            format!(r#"{{"sub":"{ID}","sub":"spiffe://example.org/v","aud":"reports","exp":{}}}"#, NOW + 300);
        let token = issuer.forge(r#"{"alg":"ES256","kid":"k0"}"#, &body);
        assert!(matches!(issuer.verify(&token), Err(JwtSvidError::MalformedClaims)));
    }

    #[test]
    fn only_the_compact_form_is_read() {
        let issuer = Issuer::one();
        let token = issuer.with_claims(json!({}));
        assert!(issuer.verify(&token).is_ok());
        let [header, body, signature] = token.split('.').collect::<Vec<_>>()[..] else { unreachable!() };
        for other in [
            String::new(),
            header.to_owned(),
            format!("{header}.{body}"),
            format!("{header}.{body}."),
            format!(".{body}.{signature}"),
            format!("{header}..{signature}"),
            format!("{token}.x.y"),
            format!("{token}="),
            format!("{header}=.{body}.{signature}"),
            format!("{token}\n"),
            format!(" {token}"),
            format!(r#"{{"payload":"{body}","protected":"{header}","signature":"{signature}"}}"#),
        ] {
            assert!(matches!(issuer.verify(&other), Err(JwtSvidError::NotCompact)), "{other}");
        }
        let standard = issuer.with_claims(json!({ "x": "\u{fff}?>~~~" })).replace('_', "/").replace('-', "+");
        assert!(standard.contains(['/', '+']));
        assert!(matches!(issuer.verify(&standard), Err(JwtSvidError::NotCompact)));
    }

    #[test]
    fn length_is_bounded() {
        let of = |len: usize| JwtSvid::parse_unverified(&"a".repeat(len));
        assert!(matches!(of(JWT_SVID_BYTES), Err(JwtSvidError::NotCompact)));
        assert!(matches!(of(JWT_SVID_BYTES + 1), Err(JwtSvidError::TooLong)));
    }

    #[test]
    fn the_key_is_found_by_its_id() {
        let (one, two) = (Issuer::one(), Issuer::new("example.org", &[KeyType::EcP256, KeyType::EcP256]));
        let anonymous = r#"{"alg":"ES256"}"#;
        assert!(one.verify(&one.with_header(anonymous)).is_ok());
        assert!(matches!(two.verify(&two.with_header(anonymous)), Err(JwtSvidError::NoKeyId(_))));
        let named = |id: &str| two.verify(&two.with_header(&format!(r#"{{"alg":"ES256","kid":{id}}}"#)));
        assert!(named(r#""k0""#).is_ok());
        assert!(matches!(named(r#""k1""#), Err(JwtSvidError::BadSignature)));
        assert!(matches!(named(r#""k2""#), Err(JwtSvidError::UnknownKeyId(_))));
        assert!(matches!(named("null"), Err(JwtSvidError::BadMember("kid"))));
    }

    #[test]
    fn tainted_keys_still_verify() {
        let mut issuer = Issuer::one();
        Arc::make_mut(&mut issuer.bundle).jwt_authorities[0].tainted = true;
        assert!(issuer.verify(&issuer.with_claims(json!({}))).is_ok());
    }

    #[test]
    fn only_jwt_authorities_verify_tokens() {
        let mut issuer = Issuer::one();
        let token = issuer.with_claims(json!({}));
        let anonymous = issuer.with_header(r#"{"alg":"ES256"}"#);
        let ca = Ca::root("example.org");
        let bundle = Arc::make_mut(&mut issuer.bundle);
        bundle.jwt_authorities.clear();
        bundle.x509_authorities.push(crate::bundle::X509Authority::from_der(ca.der()).unwrap());
        assert!(matches!(issuer.verify(&token), Err(JwtSvidError::UnknownKeyId(_))));
        assert!(matches!(issuer.verify(&anonymous), Err(JwtSvidError::NoKeyId(_))));
    }

    #[test]
    fn only_the_bundle_of_the_subjects_trust_domain_counts() {
        let (own, other) = (Issuer::one(), Issuer::new("other.test", &[KeyType::EcP256]));
        let foreign = own.with_claims(json!({ "sub": "spiffe://other.test/w" }));
        let both = |name: &TrustDomain| {
            [&own, &other]
                .iter()
                .find(|one| one.bundle.trust_domain == *name)
                .map(|one| Arc::clone(&one.bundle))
        };
        let verify = |token: &str| JwtSvid::verify(token, "reports", &both, now());
        assert!(matches!(verify(&foreign), Err(JwtSvidError::BadSignature)));
        assert!(verify(&own.with_claims(json!({}))).is_ok());
        assert!(verify(&other.with_claims(json!({ "sub": "spiffe://other.test/w" }))).is_ok());
        assert!(matches!(own.verify(&foreign), Err(JwtSvidError::NoBundle(_))));
        // A lookup that hands out somebody else's bundle is not believed.
        let muddled = |_: &TrustDomain| Some(Arc::clone(&own.bundle));
        let result = JwtSvid::verify(&foreign, "reports", &muddled, now());
        assert!(matches!(result, Err(JwtSvidError::NoBundle(_))));
    }

    #[test]
    fn the_algorithm_fits_the_key() {
        let p256 = Issuer::one();
        for name in ["ES384", "ES512", "RS256", "PS512"] {
            let token = p256.with_header(&format!(r#"{{"alg":"{name}","kid":"k0"}}"#));
            assert!(matches!(p256.verify(&token), Err(JwtSvidError::WrongKey)), "{name}");
        }
        let p384 = Issuer::new("example.org", &[KeyType::EcP384]);
        let token = p384.with_header(r#"{"alg":"ES256","kid":"k0"}"#);
        assert!(matches!(p384.verify(&token), Err(JwtSvidError::WrongKey)));
    }

    #[test]
    fn signatures_have_the_fixed_form() {
        let issuer = Issuer::one();
        let token = issuer.with_claims(json!({}));
        let (signed, _) = token.rsplit_once('.').unwrap();
        let der = issuer.keys[0].sign(signed.as_bytes(), SignatureForm::Asn1).unwrap();
        let result = issuer.verify(&format!("{signed}.{}", encode(&der)));
        assert!(matches!(result, Err(JwtSvidError::BadSignature)));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let issuer = Issuer::one();
        let token = issuer.with_claims(json!({}));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(issuer.verify(&String::from_utf8(changed).unwrap()).is_err(), "character {at}");
        }
    }

    #[test]
    fn times_are_kept_to_the_second() {
        let issuer = Issuer::one();
        let check = |claims: Value, at: i64, valid: bool| {
            let result = issuer.verify_at(&issuer.with_claims(claims.clone()), UnixTime::from_secs(at));
            assert_eq!(result.is_ok(), valid, "{claims} at {at}: {result:?}");
        };
        check(json!({}), NOW + 299, true);
        check(json!({}), NOW + 300, false);
        check(json!({ "exp": 300.5, "iat": null }), 300, true);
        check(json!({ "exp": 300.5, "iat": null }), 301, false);
        check(json!({ "exp": 1 }), NOW, false);
        check(json!({ "exp": -5 }), NOW, false);
        check(json!({ "nbf": NOW + 60 }), NOW, true);
        check(json!({ "nbf": NOW + 61 }), NOW, false);
        check(json!({ "nbf": NOW + 600 }), NOW, false);
        check(json!({ "iat": NOW + 60 }), NOW, true);
        check(json!({ "iat": NOW + 61 }), NOW, false);
        check(json!({ "iat": null }), NOW, true);
    }

    #[test]
    fn dates_are_numbers_of_this_age() {
        let issuer = Issuer::one();
        for name in ["exp", "nbf", "iat"] {
            for value in [
                json!("1790000300"),
                json!([]),
                json!({}),
                json!(true),
                json!(1e300),
                json!(-1e300),
                json!(u64::MAX),
            ] {
                let result = issuer.verify(&issuer.with_claims(json!({ name: value })));
                assert!(matches!(result, Err(JwtSvidError::BadMember(_))), "{name} {value}");
            }
        }
        let result = issuer.verify(&issuer.with_claims(json!({ "exp": null })));
        assert!(matches!(result, Err(JwtSvidError::MissingClaim("exp"))));
    }

    #[test]
    fn the_validators_own_audience_is_among_the_tokens() {
        let issuer = Issuer::one();
        let aud = |value: Value| issuer.verify(&issuer.with_claims(json!({ "aud": value })));
        assert!(aud(json!("reports")).is_ok());
        assert!(aud(json!(["reports"])).is_ok());
        assert_eq!(aud(json!(["a", "reports"])).unwrap().audience(), ["a", "reports"]);
        for other in [json!("Reports"), json!("report"), json!(["payments"]), json!("reports "), json!("")] {
            assert!(matches!(aud(other.clone()), Err(JwtSvidError::WrongAudience { .. })), "{other}");
        }
        assert!(matches!(aud(Value::Null), Err(JwtSvidError::MissingClaim("aud"))));
        assert!(matches!(aud(json!([])), Err(JwtSvidError::MissingClaim("aud"))));
        assert!(matches!(aud(json!([1])), Err(JwtSvidError::BadMember("aud"))));
        assert!(matches!(aud(json!({})), Err(JwtSvidError::BadMember("aud"))));
        let bundles = |_: &TrustDomain| Some(Arc::clone(&issuer.bundle));
        let result = JwtSvid::verify(&issuer.with_claims(json!({ "aud": "" })), "", &bundles, now());
        assert!(matches!(result, Err(JwtSvidError::WrongAudience { .. })));
    }

    #[test]
    fn the_subject_is_a_spiffe_id_with_a_path() {
        let issuer = Issuer::one();
        let sub = |value: Value| issuer.verify(&issuer.with_claims(json!({ "sub": value })));
        assert!(sub(json!(ID)).is_ok());
        assert!(matches!(sub(json!("spiffe://example.org")), Err(JwtSvidError::NoPath(_))));
        assert!(matches!(sub(json!("https://example.org/w")), Err(JwtSvidError::NotSpiffeId(_))));
        assert!(matches!(sub(json!("")), Err(JwtSvidError::NotSpiffeId(_))));
        assert!(matches!(sub(json!(7)), Err(JwtSvidError::BadMember("sub"))));
        assert!(matches!(sub(Value::Null), Err(JwtSvidError::MissingClaim("sub"))));
    }

    #[test]
    fn other_claims_pass_through_and_a_token_may_be_shown_twice() {
        let issuer = Issuer::one();
        let nested = json!({ "deep": [1, 2.5, { "x": null }] });
        let token = issuer.with_claims(json!({ "jti": "j", "iss": "i", "example.org/env": nested }));
        assert!(issuer.verify(&token).is_ok());
        assert_eq!(issuer.verify(&token).unwrap().claims()["example.org/env"], nested);
    }

    proptest! {
        #[test]
        fn no_token_makes_the_parser_panic(text in r"[A-Za-z0-9_.=-]{0,80}", header in ".{0,40}", body in ".{0,40}") {
            prop_assert!(JwtSvid::parse_unverified(&text).is_err());
            let token = format!("{}.{}.AA", encode(header.as_bytes()), encode(body.as_bytes()));
            prop_assert!(JwtSvid::parse_unverified(&token).is_err());
        }

        #[test]
        fn no_claims_make_the_parser_panic(exp in any::<f64>(), iat in any::<i64>(), aud in ".{0,8}") {
            let body = json!({ "sub": ID, "exp": exp, "iat": iat, "aud": aud }).to_string();
            let token = format!("{}.{}.AA", encode(br#"{"alg":"ES256"}"#), encode(body.as_bytes()));
            if let Ok(svid) = JwtSvid::parse_unverified(&token) {
                prop_assert_eq!(svid.audience(), [aud]);
            }
        }
    }
}
