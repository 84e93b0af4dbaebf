//! What do the fuzz targets share? One fixed second, fixed keys, and signatures over whatever is being fuzzed.
//!
//! A signature stops a fuzzer at once: no mutated certificate verifies. So targets behind one have two ways in: the bytes
//! as they come, and the bytes as the signed part, which is signed here. The keys are in the tree, and protect nothing.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use passant_core::csr::key_hash;
use passant_core::host::{Entropy, ManualClock};
use passant_core::keys::{RcgenKey, SignatureForm, SigningKey};
use passant_core::{Bundle, Host, JwtAuthority, Secret, TrustDomain, UnixTime, X509Authority};
use passant_server::record::chain::{Body, Line};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

/// The second that all targets live in.
pub const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

/// The key ID of [`TOKEN_KEY`] in [`BUNDLE`].
pub const KEY_ID: &str = "k1";

/// The trust domain that all targets live in.
pub static EXAMPLE: LazyLock<TrustDomain> =
    LazyLock::new(|| TrustDomain::parse("example.org").expect("example.org is a trust domain"));

/// A machine whose clock stands at [`NOW`] and whose random bytes are all 7.
pub static HOST: LazyLock<Host> = LazyLock::new(|| Host {
    clock: Arc::new(ManualClock::new(NOW)),
    entropy: Arc::new(Sevens),
    keys: Host::system().keys,
});

/// Signs certificates.
pub static AUTHORITY_KEY: LazyLock<Arc<dyn SigningKey>> =
    LazyLock::new(|| load(include_bytes!("keys/authority.p8")));
/// A workload's or a node's.
pub static LEAF_KEY: LazyLock<Arc<dyn SigningKey>> = LazyLock::new(|| load(include_bytes!("keys/leaf.p8")));
/// Signs tokens.
pub static TOKEN_KEY: LazyLock<Arc<dyn SigningKey>> = LazyLock::new(|| load(include_bytes!("keys/token.p8")));

/// The DER certificate of [`AUTHORITY_KEY`].
pub static AUTHORITY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let certificate = authority_params().self_signed(&RcgenKey(&**AUTHORITY_KEY));
    certificate.expect("a P-256 key signs").der().to_vec()
});

/// The bundle of [`EXAMPLE`]: both authorities.
pub static BUNDLE: LazyLock<Arc<Bundle>> = LazyLock::new(|| {
    let x509 = X509Authority::from_der(&AUTHORITY).expect("it is made as one");
    let jwt = JwtAuthority::new(KEY_ID, TOKEN_KEY.public_key(), None).expect("it is made as one");
    Arc::new(Bundle {
        x509_authorities: vec![x509],
        jwt_authorities: vec![jwt],
        sequence: 7,
        ..Bundle::empty(EXAMPLE.clone())
    })
});

/// Header and claims of the only tokens that [`TOKEN_KEY`] has ever signed outside a run.
pub const SIGNED_TOKENS: [(&str, &str); 3] = [
    (
        r#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#,
        r#"{"aud":["aud"],"exp":1790000300,"iat":1790000000,"sub":"spiffe://example.org/w"}"#,
    ),
    (
        r#"{"alg":"ES256"}"#,
        r#"{"aud":"aud","exp":1790000300.5,"nbf":1790000060,"sub":"spiffe://example.org/w","x":{"y":[1,null]}}"#,
    ),
    (
        r#"{"typ":"JOSE","alg":"ES256","kid":"k1","x":true}"#,
        r#"{"sub":"spiffe://example.org/a/b","aud":["other","aud"],"exp":1790000001,"jti":"j","iss":"i"}"#,
    ),
];

/// A leaf as [`AUTHORITY_KEY`] signs it for `id`, changed by `change` before.
pub fn leaf(id: &str, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = leaf_params(id);
    change(&mut params);
    let authority = authority_params();
    let issuer = Issuer::from_params(&authority, RcgenKey(&**AUTHORITY_KEY));
    params.signed_by(&RcgenKey(&**LEAF_KEY), &issuer).expect("a P-256 key signs").der().to_vec()
}

/// An intermediate authority under [`AUTHORITY`], whose key is [`TOKEN_KEY`], and a leaf for `id` under it.
pub fn intermediate(id: &str) -> (Vec<u8>, Vec<u8>) {
    let mut params = authority_params();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    let root = authority_params();
    let root = Issuer::from_params(&root, RcgenKey(&**AUTHORITY_KEY));
    let above = params.signed_by(&RcgenKey(&**TOKEN_KEY), &root).expect("a P-256 key signs").der().to_vec();
    let issuer = Issuer::from_params(&params, RcgenKey(&**TOKEN_KEY));
    let below =
        leaf_params(id).signed_by(&RcgenKey(&**LEAF_KEY), &issuer).expect("a P-256 key signs").der().to_vec();
    (above, below)
}

/// The signed structure of X.509 and PKCS #10 around `to_be_signed`: ecdsa-with-SHA256 by `key`.
pub fn signed(to_be_signed: &[u8], key: &dyn SigningKey) -> Vec<u8> {
    const ECDSA_SHA256: [u8; 12] = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let signature = key.sign(to_be_signed, SignatureForm::Asn1).expect("a P-256 key signs");
    let bits = der(0x03, &[&[0], signature.as_slice()].concat());
    der(0x30, &[to_be_signed, &ECDSA_SHA256, &bits].concat())
}

/// What [`signed`] or any other signer signed in `whole`: the first element in its sequence.
pub fn to_be_signed(whole: &[u8]) -> &[u8] {
    let (_, content) = element(whole);
    element(content).0
}

/// The DER elements that follow each other in the DER element `outer`. Both are known to be well formed.
pub fn elements(outer: &[u8]) -> Vec<&[u8]> {
    let (_, mut rest) = element(outer);
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let (next, _) = element(rest);
        elements.push(next);
        rest = &rest[next.len()..];
    }
    elements
}

/// One DER element.
pub fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut element = vec![tag];
    match u16::try_from(content.len()) {
        Ok(short @ 0..=0x7f) => element.push(short.to_be_bytes()[1]),
        Ok(length) => {
            element.push(0x82);
            element.extend(length.to_be_bytes());
        }
        Err(_) => {
            element.push(0x83);
            element.extend(&content.len().to_be_bytes()[size_of::<usize>() - 3..]);
        }
    }
    element.extend(content);
    element
}

/// The token of `header` and `claims`, signed by [`TOKEN_KEY`].
pub fn token(header: &[u8], claims: &[u8]) -> String {
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = TOKEN_KEY.sign(signed.as_bytes(), SignatureForm::Fixed).expect("a P-256 key signs");
    format!("{signed}.{}", encode(&signature))
}

/// The right answer of [`LEAF_KEY`]'s holder to an x509pop challenge; nothing to what is none.
pub fn x509pop_answer(challenge: &[u8]) -> Vec<u8> {
    use base64::Engine;
    let base64 = base64::prelude::BASE64_STANDARD;
    let challenge: serde_json::Value = serde_json::from_slice(challenge).unwrap_or_default();
    let asked = base64.decode(challenge["ecdsa_signature"]["nonce"].as_str().unwrap_or_default());
    let own = [9; 32];
    let message = [asked.unwrap_or_default().as_slice(), &own].concat();
    let signature = LEAF_KEY.sign(&message, SignatureForm::Fixed).expect("a P-256 key signs");
    let (r, s) = signature.split_at(signature.len() / 2);
    let [r, s, nonce] = [r, s, &own].map(|bytes| base64.encode(bytes));
    serde_json::json!({ "ecdsa_signature": { "r": r, "s": s, "nonce": nonce } }).to_string().into_bytes()
}

/// A segment of the decision record with one line for each body in `text`, hooked on to the one before; and how many there are.
pub fn chained(text: &[u8]) -> (Vec<u8>, u64) {
    let bodies =
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Body>(line).ok());
    let (mut segment, mut prev, mut lines) = (Vec::new(), [0; 32], 0);
    for body in bodies {
        let line = Line { seq: lines, prev, at: NOW, body };
        let written = serde_json::to_vec(&line).expect("a line has a stored form");
        assert_eq!(serde_json::from_slice::<Line>(&written).ok(), Some(line), "a line keeps its value");
        // SHA-256, whatever it is of.
        prev = key_hash(&written);
        segment.extend(written);
        segment.push(b'\n');
        lines += 1;
    }
    (segment, lines)
}

/// What `future` comes to, which never has to wait.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits, where nothing is there to be waited for"),
    }
}

/// The DER element at the start of `bytes`, whole, and its content.
fn element(bytes: &[u8]) -> (&[u8], &[u8]) {
    let long = usize::from(bytes[1].saturating_sub(0x80));
    let length = match long {
        0 => usize::from(bytes[1]),
        _ => bytes[2..2 + long].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    };
    let end = 2 + long + length;
    (&bytes[..end], &bytes[2 + long..end])
}

fn leaf_params(id: &str) -> CertificateParams {
    let mut params = params();
    params.subject_alt_names.extend(id.try_into().map(SanType::URI));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_params() -> CertificateParams {
    let mut params = params();
    params.distinguished_name.push(DnType::OrganizationalUnitName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params() -> CertificateParams {
    let at = |secs| OffsetDateTime::from_unix_timestamp(NOW.secs() + secs).expect("near NOW");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    (params.not_before, params.not_after) = (at(-10), at(3600));
    params
}

fn load(pkcs8: &[u8]) -> Arc<dyn SigningKey> {
    Host::system().keys.load(&Secret::new(pkcs8.to_vec())).expect("the keys in the tree are P-256 keys")
}

struct Sevens;

impl Entropy for Sevens {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}
