//! How do the answers of Envoy's secret discovery come about, and what is read of those who ask?

use passant_core::pem_text::{secret_section, section};
use passant_core::{Bundle, Secret, X509Svid};
use prost::Message;
use prost_types::Any;
use prost_types::value::Kind;

use crate::discovery::DiscoveryResponse;
use crate::envoy_core::data_source::Specifier;
use crate::envoy_core::node::UserAgentVersionType;
use crate::envoy_core::{DataSource, Node, TypedExtensionConfig};
use crate::envoy_tls::secret::Type;
use crate::envoy_tls::spiffe_cert_validator_config::TrustDomain;
use crate::envoy_tls::{self, CertificateValidationContext, SpiffeCertValidatorConfig, TlsCertificate};

/// The type of every resource.
pub const SECRET_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The type by which Envoy chooses its validator of X509-SVIDs.
const VALIDATOR_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// What that validator is called there.
const VALIDATOR_NAME: &str = "envoy.tls.cert_validator.spiffe";
/// By this member of its metadata an Envoy chooses for itself.
const CHOICE: &str = "disable_spiffe_cert_validation";

/// How an Envoy is to check the certificates of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validator {
    /// By the bundle of the trust domain that the X509-SVID is of.
    Spiffe,
    /// As any chain of certificates, up to one of the authorities.
    Chain,
}

/// What an Envoy says of itself that matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Whether it wants [`Validator::Chain`]; nothing if it leaves that to the agent, or says what cannot be read.
    pub disables_spiffe: Option<bool>,
    /// The major and minor number of its release, if it tells.
    pub release: Option<(u32, u32)>,
}

impl Client {
    /// What `node` says.
    pub fn of(node: &Node) -> Self {
        let choice = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(CHOICE));
        let disables_spiffe = choice.and_then(|value| match &value.kind {
            Some(Kind::BoolValue(choice)) => Some(*choice),
            Some(Kind::StringValue(text)) => boolean(text),
            _ => None,
        });
        let release = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build.version,
            Some(UserAgentVersionType::UserAgentVersion(_)) | None => None,
        };
        Self { disables_spiffe, release: release.map(|it| (it.major_number, it.minor_number)) }
    }

    /// How it is to check, where the agent's setting is `disabled`. Envoy knows the validator of X509-SVIDs from 1.18 on;
    /// who does not tell its release is taken to.
    pub fn validator(&self, disabled: bool) -> Validator {
        let is_known = self.release.is_none_or(|release| release >= (1, 18));
        match is_known && !self.disables_spiffe.unwrap_or(disabled) {
            true => Validator::Spiffe,
            false => Validator::Chain,
        }
    }
}

/// The texts that SPIRE takes, which are those of Go's library.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The resource `name`: an X509-SVID with its key, which is PKCS#8 DER.
///
/// It holds the key in the clear: send it, drop it.
pub fn certificate(name: &str, svid: &X509Svid, key: &Secret<Vec<u8>>) -> Any {
    let chain: String = svid.chain().iter().map(|der| section("CERTIFICATE", der)).collect();
    let mut key = secret_section("PRIVATE KEY", key).expose().clone();
    let certificate = |key| TlsCertificate {
        certificate_chain: Some(inline(chain.into_bytes())),
        private_key: Some(inline(key)),
    };
    let mut secret = envoy_tls::Secret {
        name: name.to_owned(),
        r#type: Some(Type::TlsCertificate(certificate(std::mem::take(&mut key)))),
    };
    let resource = resource(&secret);
    // Its copy of the key is done with.
    if let Some(Type::TlsCertificate(certificate)) = &mut secret.r#type
        && let Some(Specifier::InlineBytes(key)) = certificate.private_key.take().and_then(|it| it.specifier)
    {
        drop(Secret::new(key));
    }
    resource
}

/// The resource `name`: whom to believe, by `validator`.
///
/// With [`Validator::Chain`] all authorities of `bundles` speak for every name: give it one bundle.
pub fn validation_context<'a>(
    name: &str,
    validator: Validator,
    bundles: impl IntoIterator<Item = &'a Bundle>,
) -> Any {
    let context = match validator {
        Validator::Chain => {
            let authorities: String = bundles.into_iter().map(Bundle::to_pem).collect();
            let trusted_ca = Some(inline(authorities.into_bytes()));
            CertificateValidationContext { trusted_ca, custom_validator_config: None }
        }
        Validator::Spiffe => {
            let trust_domain = |bundle: &Bundle| TrustDomain {
                name: bundle.trust_domain.as_str().to_owned(),
                trust_bundle: Some(inline(bundle.to_pem().into_bytes())),
            };
            let config =
                SpiffeCertValidatorConfig { trust_domains: bundles.into_iter().map(trust_domain).collect() };
            let config = TypedExtensionConfig {
                name: VALIDATOR_NAME.to_owned(),
                typed_config: Some(Any { type_url: VALIDATOR_URL.to_owned(), value: config.encode_to_vec() }),
            };
            CertificateValidationContext { trusted_ca: None, custom_validator_config: Some(config) }
        }
    };
    resource(&envoy_tls::Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) })
}

/// An answer. Version and nonce are empty on one to a call that asks once.
pub fn answer(version: String, nonce: String, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse { version_info: version, resources, type_url: SECRET_URL.to_owned(), nonce }
}

fn resource(secret: &envoy_tls::Secret) -> Any {
    // In one piece: encoding takes room for all of it first.
    Any { type_url: SECRET_URL.to_owned(), value: secret.encode_to_vec() }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_types::{Struct, Value};

    use super::*;
    use crate::envoy_core::BuildVersion;
    use crate::envoy_type::SemanticVersion;

    fn node(choice: Option<Kind>, release: Option<(u32, u32)>) -> Node {
        let fields = choice.map(|kind| (CHOICE.to_owned(), Value { kind: Some(kind) }));
        let build = release.map(|(major_number, minor_number)| BuildVersion {
            version: Some(SemanticVersion { major_number, minor_number, patch: 9 }),
        });
        Node {
            metadata: Some(Struct { fields: BTreeMap::from_iter(fields) }),
            user_agent_version_type: build.map(UserAgentVersionType::UserAgentBuildVersion),
            ..Node::default()
        }
    }

    #[test]
    fn an_envoy_chooses_its_validator_over_the_agent_and_its_release_over_both() {
        let check = |choice: Option<Kind>, release, disabled, expected| {
            let told = Client::of(&node(choice.clone(), release));
            assert_eq!(told.validator(disabled), expected, "{choice:?} {release:?} {disabled}");
        };
        let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
        let (spiffe, chain) = (Validator::Spiffe, Validator::Chain);
        check(None, None, false, spiffe);
        check(None, None, true, chain);
        for yes in [Some(Kind::BoolValue(true)), text("true"), text("1"), text("T")] {
            check(yes, None, false, chain);
        }
        for no in [Some(Kind::BoolValue(false)), text("false"), text("0"), text("F")] {
            check(no, None, true, spiffe);
        }
        for neither in
            [text("yes"), text(""), text("tRUE"), Some(Kind::NumberValue(1.0)), Some(Kind::NullValue(0))]
        {
            check(neither.clone(), None, false, spiffe);
            check(neither, None, true, chain);
        }
        for (release, expected) in
            [((1, 17), chain), ((1, 18), spiffe), ((0, 99), chain), ((2, 0), spiffe), ((0, 0), chain)]
        {
            check(None, Some(release), false, expected);
            check(Some(Kind::BoolValue(false)), Some(release), false, expected);
        }
        assert_eq!(Client::of(&Node::default()), Client::default());
    }
}
