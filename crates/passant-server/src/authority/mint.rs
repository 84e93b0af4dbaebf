//! How does an authority look, and how does it sign?
//!
//! Every signature of an authority's key is made in this file, and each asks for the [`Intent`] that the decision record
//! handed out for it: without a durable record there is nothing to call these functions with.

use std::fmt;
use std::sync::Arc;

use passant_core::jwt_svid::{self, JwtClaims};
use passant_core::keys::{KeyError, KeyType, RcgenKey, SignatureForm, SigningKey};
use passant_core::limits::BACKDATE;
use passant_core::serial::Serial;
use passant_core::{SpiffeId, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Error};

use super::leaf::{LeafFacts, LeafForm};
use crate::encoding::from_hex;
use crate::record::Intent;
use crate::state::authority::{Authority, AuthorityId};

/// The length of a subject key identifier, as RFC 5280 4.2.1.2 suggests.
pub(crate) const KEY_ID_BYTES: usize = 20;
/// Names the country in subjects, as SPIRE does.
pub(super) const COUNTRY: &str = "US";
/// Names us in subjects.
pub(super) const ORGANIZATION: &str = "Passant";
/// Names the unit of a server one step below, as SPIRE does.
const DOWNSTREAM: &str = "DOWNSTREAM-1";
/// keyCertSign and cRLSign, as x509-parser holds them (RFC 5280 4.2.1.3: bits 5 and 6, from the left).
const SIGNS: u16 = (1 << 5) | (1 << 6);
/// `id-at-serialNumber`; tells one authority's name from the next one's.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// An X.509 authority with its key, ready to sign X509-SVIDs.
pub struct ActiveX509 {
    id: AuthorityId,
    key_id: [u8; KEY_ID_BYTES],
    key: Arc<dyn SigningKey>,
    not_before: UnixTime,
    not_after: UnixTime,
    /// What its certificates name as their issuer.
    names: CertificateParams,
    /// The same, as its own certificate says it.
    name: Vec<u8>,
    /// How the leaves look that it signs.
    leaves: LeafForm,
}

/// A JWT authority with its key, ready to sign JWT-SVIDs.
pub struct ActiveJwt {
    id: AuthorityId,
    key: Arc<dyn SigningKey>,
    not_after: UnixTime,
}

/// Why nothing was signed, or what was signed was thrown away.
#[derive(Debug, Error)]
pub enum MintError {
    /// The certificate could not be made.
    #[error("failed to sign certificate")]
    Certificate(#[from] rcgen::Error),
    /// The token could not be made.
    #[error("failed to sign token")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A value does not fit the field it is for.
    #[error("failed to sign certificate: {0} cannot be written")]
    Unwritable(&'static str),
    /// What came out of the signer is not what was ordered. It is dropped.
    #[error("minted {what} does not match its order")]
    Mismatch {
        /// What differs.
        what: &'static str,
    },
    /// What came out of the signer does not parse as what it should be. It is dropped.
    #[error("minted SVID is not valid")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key that was put into custody is not the authority's.
    #[error("key of authority {0} does not belong to it: restore the key file from a backup")]
    ForeignKey(AuthorityId),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What the certificate of an X.509 authority says, this server's or that of a server below.
pub(crate) struct AuthorityFacts<'a> {
    /// The trust domain's ID, the authority's only name.
    pub(crate) trust_domain_id: &'a SpiffeId,
    /// DER SubjectPublicKeyInfo.
    pub(crate) public_key: &'a [u8],
    pub(crate) serial: &'a Serial,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// What a new X.509 authority will look like, decided before its intent is asked for.
pub(super) struct RootOrder {
    /// The trust domain's ID, the authority's only name.
    pub(super) trust_domain_id: SpiffeId,
    pub(super) serial: Serial,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
}

/// Names an authority after its public key (DER SubjectPublicKeyInfo): the first 20 bytes of its SHA-256.
pub(crate) fn authority_id(public_key: &[u8]) -> AuthorityId {
    AuthorityId::of_key(&key_id(public_key)).expect("20 bytes make an id")
}

fn key_id(public_key: &[u8]) -> [u8; KEY_ID_BYTES] {
    let mut id = [0; KEY_ID_BYTES];
    id.copy_from_slice(&digest(&SHA256, public_key).as_ref()[..KEY_ID_BYTES]);
    id
}

/// Makes the self-signed certificate of a new authority, reads it back and checks it against its order.
///
/// # Errors
/// When the signer fails or made something else than was ordered.
pub(super) fn root(
    _recorded: &Intent,
    order: &RootOrder,
    key: &dyn SigningKey,
) -> Result<Vec<u8>, MintError> {
    let facts = AuthorityFacts {
        trust_domain_id: &order.trust_domain_id,
        public_key: key.public_key(),
        serial: &order.serial,
        not_before: order.not_before,
        not_after: order.not_after,
    };
    let der = facts.params()?.self_signed(&RcgenKey(key))?.der().to_vec();
    let found = facts.read(&der)?;
    found.verify_signature(None).map_err(|error| MintError::Invalid(Box::new(error)))?;
    Ok(der)
}

impl AuthorityFacts<'_> {
    /// The certificate as rcgen takes it: SPIFFE's profile of a signing certificate (X509-SVID 4). The path below it may be
    /// of any length.
    pub(crate) fn params(&self) -> Result<CertificateParams, MintError> {
        let mut params = authority_params(key_id(self.public_key))?;
        params.serial_number = Some(SerialNumber::from(self.serial.as_bytes().to_vec()));
        params.not_before = moment(self.not_before)?;
        params.not_after = moment(self.not_after)?;
        params.subject_alt_names = vec![SanType::URI(ia5(self.trust_domain_id.as_str())?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    /// The same for the authority of a server below: its subject says so, as SPIRE's does.
    pub(crate) fn params_below(&self) -> Result<CertificateParams, MintError> {
        let mut params = self.params()?;
        params.distinguished_name.push(DnType::OrganizationalUnitName, printable(DOWNSTREAM)?);
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    /// Reads back what was signed, and holds it against these facts.
    ///
    /// # Errors
    /// When it is no certificate, or says anything else.
    pub(crate) fn read<'a>(&self, der: &'a [u8]) -> Result<X509Certificate<'a>, MintError> {
        let invalid = |error: X509Error| MintError::Invalid(Box::new(error));
        let (rest, found) =
            X509Certificate::from_der(der).map_err(|error| MintError::Invalid(Box::new(error)))?;
        let validity = found.validity();
        let names = found.subject_alternative_name().map_err(invalid)?;
        let names: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .map(|name| if let GeneralName::URI(uri) = name { *uri } else { "" })
            .collect();
        let constraints = found.basic_constraints().map_err(invalid)?;
        let is_ca = constraints.is_some_and(|found| {
            found.critical && found.value.ca && found.value.path_len_constraint.is_none()
        });
        let usage = found.key_usage().map_err(invalid)?;
        let only_signs = usage.is_some_and(|found| found.critical && found.value.flags == SIGNS);
        let own_key_id = found.extensions().iter().any(|extension| {
            matches!(extension.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(id)
                if id.0 == key_id(self.public_key))
        });
        let checks = [
            (rest.is_empty(), "length"),
            (found.public_key().raw == self.public_key, "public key"),
            (found.serial.to_bytes_be() == self.serial.as_bytes(), "serial number"),
            (validity.not_before.timestamp() == self.not_before.secs(), "not_before"),
            (validity.not_after.timestamp() == self.not_after.secs(), "not_after"),
            (names == [self.trust_domain_id.as_str()], "subject alternative name"),
            (is_ca, "basic constraints"),
            (only_signs, "key usage"),
            (own_key_id, "subject key identifier"),
        ];
        match checks.iter().find(|(matches, _)| !matches) {
            Some((_, what)) => Err(MintError::Mismatch { what }),
            None => Ok(found),
        }
    }
}

/// What all certificates of one authority name as their issuer, and its own certificate as its subject.
pub(super) fn authority_params(key_id: [u8; KEY_ID_BYTES]) -> Result<CertificateParams, MintError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject()?;
    let unique = crate::encoding::to_hex(&key_id);
    params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), printable(&unique)?);
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
    Ok(params)
}

/// `C=US,O=Passant`.
pub(super) fn subject() -> Result<DistinguishedName, MintError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, printable(COUNTRY)?);
    name.push(DnType::OrganizationName, printable(ORGANIZATION)?);
    Ok(name)
}

fn printable(text: &str) -> Result<DnValue, MintError> {
    let text = text.try_into().map_err(|_| MintError::Unwritable("subject"))?;
    Ok(DnValue::PrintableString(text))
}

/// A name as certificates hold it.
pub(super) fn ia5(text: &str) -> Result<rcgen::string::Ia5String, MintError> {
    text.try_into().map_err(|_| MintError::Unwritable("name"))
}

/// An instant as rcgen takes it.
pub(crate) fn moment(at: UnixTime) -> Result<OffsetDateTime, MintError> {
    OffsetDateTime::from_unix_timestamp(at.secs()).map_err(|_| MintError::Unwritable("date"))
}

impl ActiveX509 {
    /// Takes an authority and its key.
    ///
    /// # Errors
    /// [`MintError::ForeignKey`] when they do not belong together; [`MintError::Mismatch`] when what would be signed is not
    /// what rcgen writes; and when there is no certificate of it.
    pub(super) fn new(authority: &Authority, key: Arc<dyn SigningKey>) -> Result<Self, MintError> {
        let foreign = || MintError::ForeignKey(authority.id.clone());
        let key_id = from_hex(authority.id.as_str()).ok_or_else(foreign)?;
        if key.public_key() != authority.public_key.as_slice() {
            return Err(foreign());
        }
        let (not_before, not_after) = (authority.not_before, authority.not_after);
        let names = authority_params(key_id)?;
        let leaves = LeafForm::new(key.key_type(), &key_id);
        leaves.check(&names, &*key)?;
        let own = authority.certificate.as_deref().ok_or(MintError::Mismatch { what: "authority" })?;
        let (_, own) = X509Certificate::from_der(own).map_err(|error| MintError::Invalid(Box::new(error)))?;
        let name = own.subject().as_raw().to_vec();
        Ok(Self { id: authority.id.clone(), key_id, key, not_before, not_after, names, name, leaves })
    }

    /// The subject key identifier in hex.
    pub fn id(&self) -> &AuthorityId {
        &self.id
    }

    /// What the authority identifier extension of its certificates holds.
    pub(crate) fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// Its name in DER, the subject of its own certificate.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Its last valid second: nothing it signs outlives it.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// From when a certificate made at `now` is valid: a little earlier, for peers whose clock is behind, but not before
    /// the authority itself.
    pub fn backdate(&self, now: UnixTime) -> UnixTime {
        now.minus(BACKDATE).max(self.not_before)
    }

    /// Signs the certificate of an X509-SVID.
    ///
    /// # Errors
    /// When a date cannot be written, or the signer fails.
    pub(crate) fn sign_leaf(
        &self,
        _recorded: &Intent,
        facts: &LeafFacts<'_>,
    ) -> Result<CertificateDer<'static>, MintError> {
        let to_be_signed = self.leaves.to_be_signed(facts)?;
        let signature = self.key.sign(&to_be_signed, SignatureForm::Asn1)?;
        Ok(self.leaves.certificate(&to_be_signed, &signature).into())
    }

    /// Signs one certificate; issuer and authority key identifier are this authority's. Leaf first, no root.
    ///
    /// # Errors
    /// When the signer fails.
    pub(crate) fn sign(
        &self,
        _recorded: &Intent,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, MintError> {
        let issuer = Issuer::from_params(&self.names, RcgenKey(&*self.key));
        Ok(vec![params.signed_by(public_key, &issuer)?.into()])
    }
}

impl ActiveJwt {
    /// Takes an authority and its key.
    ///
    /// # Errors
    /// [`MintError::ForeignKey`] when they do not belong together.
    pub(super) fn new(authority: &Authority, key: Arc<dyn SigningKey>) -> Result<Self, MintError> {
        if key.public_key() != authority.public_key.as_slice() {
            return Err(MintError::ForeignKey(authority.id.clone()));
        }
        Ok(Self { id: authority.id.clone(), key, not_after: authority.not_after })
    }

    /// The key ID that tokens carry.
    pub fn id(&self) -> &AuthorityId {
        &self.id
    }

    /// The kind of its key.
    pub(crate) fn key_type(&self) -> KeyType {
        self.key.key_type()
    }

    /// The last second a token of it may be valid.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Signs one token.
    ///
    /// # Errors
    /// When the signer fails.
    pub(crate) fn sign(&self, _recorded: &Intent, claims: &JwtClaims) -> Result<String, MintError> {
        jwt_svid::sign(claims, &*self.key, self.id.as_str())
            .map_err(|error| MintError::Token(Box::new(error)))
    }
}

impl fmt::Debug for ActiveX509 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X.509 authority {} until {}", self.id, self.not_after)
    }
}

impl fmt::Debug for ActiveJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JWT authority {} until {}", self.id, self.not_after)
    }
}
