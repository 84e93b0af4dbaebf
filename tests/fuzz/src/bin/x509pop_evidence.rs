//! Is a node believed only with a certificate of the authority and a signature by its key?
//!
//! The first byte chooses what the rest is: 0 evidence, then, behind a zero byte, the answer to the challenge; 1 the signed
//! part of a certificate, which is signed here and for which the node answers rightly.
#![no_main]

use std::pin::Pin;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use libfuzzer_sys::fuzz_target;
use passant_attest::node::x509pop::{METHOD, X509PopConfig, X509PopVerifier};
use passant_attest::node::{Dialog, DialogError, Verifier};
use passant_core::Bundle;
use passant_fuzz::{AUTHORITY_KEY, BUNDLE, EXAMPLE, HOST, LEAF_KEY, NOW, at_once, signed};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

static VERIFIER: LazyLock<X509PopVerifier> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), Bundle::clone(&BUNDLE).to_pem()).expect("a temporary file");
    let config = X509PopConfig {
        ca_bundle_path: Some(file.path().to_owned()),
        agent_path_template: Some(
            "/{{ .PluginName }}/{{ .Subject.CommonName }}/{{ .SerialNumberHex }}".to_owned(),
        ),
        ..X509PopConfig::default()
    };
    X509PopVerifier::open(&config, EXAMPLE.clone(), HOST.clone()).expect("a sound configuration")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((way, rest)) = bytes.split_first() else { return };
    let certificate = (way % 2 == 1).then(|| signed(rest, &**AUTHORITY_KEY));
    let (evidence, answer) = match &certificate {
        Some(der) => (evidence(der), Answer::Right),
        None => {
            let zero = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
            (rest[..zero].to_vec(), Answer::Given(rest.get(zero + 1..).unwrap_or_default().to_vec()))
        }
    };
    let mut node = Node { answer, asked: 0 };
    let judged = at_once(VERIFIER.verify(&evidence, &mut node, NOW));
    assert!(node.asked <= 1);
    let Ok(proof) = judged else { return };
    assert_eq!(node.asked, 1, "believed without having been asked");
    assert!(proof.can_reattest && proof.agent_id.is_agent() && proof.agent_id.is_member_of(&EXAMPLE));
    assert!(proof.agent_id.path().starts_with("/spire/agent/x509pop/"), "{}", proof.agent_id);
    assert_eq!(proof.agent_id.path().split('/').count(), 6, "{}", proof.agent_id);
    assert!(proof.selectors.iter().all(|selector| selector.kind() == METHOD));
    // The verifier also takes a list for the object, and does not read the values of members that it does not know.
    let Ok(Value::Object(evidence)) = serde_json::from_slice(&evidence) else { return };
    let first = evidence.get("certificates").and_then(|all| all.get(0)).and_then(Value::as_str);
    let leaf = BASE64_STANDARD.decode(first.expect("it was read")).expect("it was read");
    let (_, leaf) = X509Certificate::from_der(&leaf).expect("it was read");
    // The parser takes other tags for the sequence around it; the key itself is what counts.
    let point = &leaf.public_key().subject_public_key.data;
    assert!(LEAF_KEY.public_key().ends_with(point) && point.len() == 65, "believed without the key");
});

enum Answer {
    Given(Vec<u8>),
    Right,
}

struct Node {
    answer: Answer,
    asked: usize,
}

impl Dialog for Node {
    fn challenge(
        &mut self,
        challenge: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, DialogError>> + Send + '_>> {
        self.asked += 1;
        let answer = match &self.answer {
            Answer::Given(answer) => answer.clone(),
            Answer::Right => passant_fuzz::x509pop_answer(&challenge),
        };
        Box::pin(async move { Ok(answer) })
    }
}

fn evidence(der: &[u8]) -> Vec<u8> {
    json!({ "certificates": [BASE64_STANDARD.encode(der)] }).to_string().into_bytes()
}
