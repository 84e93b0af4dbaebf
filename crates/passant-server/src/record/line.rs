//! How are the lines of the decision record written that come with every signature?
//!
//! An intent and an outcome for each SVID are nearly all of the record. These two are put together here, byte for byte as
//! serde_json writes them, which writes all other lines and reads every one.

use passant_core::UnixTime;

use super::chain::{Body, Line};
use crate::record::{Decision, DecisionKind, Grounds, Outcome};

/// Appends `line`, without its newline.
pub(super) fn write(out: &mut Vec<u8>, line: &Line) {
    match &line.body {
        Body::Intent { decision } => {
            begin(out, line, "intent");
            out.extend(b",\"decision\":");
            write_decision(out, decision);
            out.push(b'}');
        }
        Body::Outcome { of, outcome } => {
            begin(out, line, "outcome");
            out.extend(b",\"of\":");
            unsigned(out, *of);
            out.extend(b",\"outcome\":");
            match outcome {
                Outcome::Signed => out.extend(b"\"signed\"}"),
                Outcome::NotSigned(why) => {
                    out.extend(b"{\"not_signed\":");
                    text(out, why);
                    out.extend(b"}}");
                }
            }
        }
        Body::Start { .. } | Body::Act { .. } | Body::Refusal { .. } | Body::Unknown { .. } => {
            serde_json::to_writer(out, line).expect("a line has string keys and no failing serializers");
        }
    }
}

fn begin(out: &mut Vec<u8>, line: &Line, kind: &str) {
    out.extend(b"{\"seq\":");
    unsigned(out, line.seq);
    out.extend(b",\"prev\":\"");
    hex(out, &line.prev);
    out.extend(b"\",\"at\":");
    moment(out, line.at);
    out.extend(b",\"kind\":\"");
    out.extend(kind.as_bytes());
    out.push(b'"');
}

fn write_decision(out: &mut Vec<u8>, decision: &Decision) {
    out.extend(b"{\"kind\":\"");
    out.extend(kind(decision.kind).as_bytes());
    out.extend(b"\",\"serial\":");
    text(out, &decision.serial);
    out.extend(b",\"spiffe_id\":");
    text(out, decision.spiffe_id.as_str());
    if let Some((id, revision)) = &decision.entry {
        out.extend(b",\"entry\":[");
        text(out, id.as_str());
        out.push(b',');
        unsigned(out, *revision);
        out.push(b']');
    }
    out.extend(b",\"key_hash\":\"");
    hex(out, &decision.key_hash);
    out.extend(b"\",\"not_after\":");
    moment(out, decision.not_after);
    out.extend(b",\"caller\":");
    text(out, &decision.caller);
    out.extend(b",\"reason\":");
    text(out, &decision.reason);
    if let Some(authority) = &decision.authority {
        out.extend(b",\"authority\":");
        text(out, authority.as_str());
    }
    out.extend(b",\"at\":");
    moment(out, decision.at);
    if let Some(grounds) = &decision.grounds {
        out.extend(b",\"grounds\":");
        write_grounds(out, grounds);
    }
    out.push(b'}');
}

fn write_grounds(out: &mut Vec<u8>, grounds: &Grounds) {
    match grounds {
        Grounds::Untold => out.extend(b"\"untold\""),
        Grounds::Prefetched => out.extend(b"\"prefetched\""),
        Grounds::Attested { instance, attestors, at } => {
            out.extend(b"{\"attested\":{\"instance\":");
            text(out, instance.as_str());
            out.extend(b",\"attestors\":[");
            for (place, attestor) in attestors.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                text(out, attestor);
            }
            out.extend(b"],\"at\":");
            moment(out, *at);
            out.extend(b"}}");
        }
    }
}

const fn kind(kind: DecisionKind) -> &'static str {
    match kind {
        DecisionKind::X509Svid => "x509_svid",
        DecisionKind::JwtSvid => "jwt_svid",
        DecisionKind::NodeSvid => "node_svid",
        DecisionKind::ServerSvid => "server_svid",
        DecisionKind::X509Authority => "x509_authority",
        DecisionKind::JwtAuthority => "jwt_authority",
        DecisionKind::DownstreamX509Ca => "downstream_x509_ca",
    }
}

/// A text in quotes. One with something in it that JSON escapes is left to serde_json.
fn text(out: &mut Vec<u8>, text: &str) {
    let is_escaped = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    // All of them, without a stop: so many are looked at at once.
    if text.bytes().fold(false, |any, byte| any | is_escaped(byte)) {
        serde_json::to_writer(out, text).expect("a text can be written");
        return;
    }
    out.push(b'"');
    out.extend(text.as_bytes());
    out.push(b'"');
}

fn hex(out: &mut Vec<u8>, bytes: &[u8; 32]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0; 64];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0x0f)]]);
    }
    out.extend(digits);
}

fn moment(out: &mut Vec<u8>, at: UnixTime) {
    let secs = at.secs();
    if secs < 0 {
        out.push(b'-');
    }
    unsigned(out, secs.unsigned_abs());
}

fn unsigned(out: &mut Vec<u8>, number: u64) {
    // As many digits as the largest number has.
    let mut digits = [0; 20];
    let mut rest = number;
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b'0' + u8::try_from(rest % 10).expect("a digit is below ten");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend(&digits[from..]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use passant_core::{EntryId, Instance, SpiffeId};
    use proptest::prelude::*;

    use super::*;
    use crate::state::authority::AuthorityId;

    fn any_kind() -> impl Strategy<Value = DecisionKind> {
        prop_oneof![
            Just(DecisionKind::X509Svid),
            Just(DecisionKind::JwtSvid),
            Just(DecisionKind::NodeSvid),
            Just(DecisionKind::ServerSvid),
            Just(DecisionKind::X509Authority),
            Just(DecisionKind::JwtAuthority),
            Just(DecisionKind::DownstreamX509Ca),
        ]
    }

    fn any_time() -> impl Strategy<Value = UnixTime> {
        prop_oneof![any::<i64>(), 0..4_000_000_000_i64].prop_map(UnixTime::from_secs)
    }

    /// Plain and wild ones.
    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "[ -~]{0,60}", "[a-z \"\\\\\n\u{0}\u{7f}\u{e9}\u{2028}]{0,12}"]
    }

    fn any_grounds() -> impl Strategy<Value = Grounds> {
        let attested =
            ("[a-z0-9-]{1,20}/[1-9]{1,4}/[1-9]{1,4}", prop::collection::vec(any_text(), 0..4), any_time())
                .prop_map(|(instance, attestors, at)| {
                    let instance = Instance::parse(&instance).unwrap();
                    Grounds::Attested { instance, attestors, at }
                });
        prop_oneof![Just(Grounds::Untold), Just(Grounds::Prefetched), attested]
    }

    prop_compose! {
        fn any_decision()(
            (kind, serial, path) in (any_kind(), any_text(), "(/[A-Za-z0-9._-]{1,9}x){0,3}"),
            entry in prop::option::of(("[A-Za-z0-9._-]{1,60}", any::<u64>())),
            (key_hash, not_after, at) in (any::<[u8; 32]>(), any_time(), any_time()),
            (caller, reason) in (any_text(), any_text()),
            authority in prop::option::of("[A-Za-z0-9_-]{1,40}"),
            grounds in prop::option::of(any_grounds()),
        ) -> Decision {
            let spiffe_id = SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
            let entry = entry.map(|(id, revision)| (EntryId::parse(&id).unwrap(), revision));
            let authority = authority.map(|id| AuthorityId::parse(&id).unwrap());
            Decision { kind, serial, spiffe_id, entry, key_hash, not_after, caller, reason, authority, at, grounds }
        }
    }

    fn any_body() -> impl Strategy<Value = Body> {
        let outcome = prop_oneof![Just(Outcome::Signed), any_text().prop_map(Outcome::NotSigned)];
        prop_oneof![
            4 => any_decision().prop_map(|decision| Body::Intent { decision: Arc::new(decision) }),
            2 => (any::<u64>(), outcome).prop_map(|(of, outcome)| Body::Outcome { of, outcome }),
            1 => (any::<u64>(), any_text()).prop_map(|(of, serial)| Body::Unknown { of, serial }),
        ]
    }

    proptest! {
        #[test]
        fn a_line_is_byte_for_byte_what_serde_json_writes(
            before in prop::collection::vec(any::<u8>(), 0..4),
            seq in any::<u64>(),
            prev in any::<[u8; 32]>(),
            at in any_time(),
            body in any_body(),
        ) {
            let line = Line { seq, prev, at, body };
            let mut written = before.clone();
            write(&mut written, &line);
            let by_serde = serde_json::to_vec(&line).unwrap();
            prop_assert_eq!(String::from_utf8_lossy(&written[before.len()..]), String::from_utf8_lossy(&by_serde));
            prop_assert_eq!(serde_json::from_slice::<Line>(&written[before.len()..]).unwrap(), line);
        }
    }
}
