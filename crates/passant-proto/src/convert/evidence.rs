//! How does what an agent knows of a process convert?

use passant_core::limits::{EVIDENCE_ATTESTORS, EVIDENCE_SELECTORS, SELECTOR_KIND_BYTES};
use passant_core::{Evidence, Instance, UnixTime};

use super::{Malformed, selector};
use crate::sync;

/// Takes evidence. Of the time, whole seconds count.
///
/// # Errors
/// The first field that is malformed, or longer than any agent's of ours.
pub fn from_wire(wire: &sync::Evidence) -> Result<Evidence, Malformed> {
    if wire.selectors.len() > EVIDENCE_SELECTORS {
        return Err(Malformed::new(format!("selectors: at most {EVIDENCE_SELECTORS} are allowed")));
    }
    if wire.attestors.len() > EVIDENCE_ATTESTORS {
        return Err(Malformed::new(format!("attestors: at most {EVIDENCE_ATTESTORS} are allowed")));
    }
    let is_name = |name: &String| {
        (1..=SELECTOR_KIND_BYTES).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    if !wire.attestors.iter().all(is_name) {
        return Err(Malformed::new("attestors: letters, digits, '_', '-' and '.' are allowed"));
    }
    let selectors = selector::from_wire(&wire.selectors).map_err(|cause| cause.during("selectors"))?;
    let instance = Instance::parse(&wire.instance).map_err(|cause| Malformed::field("instance", &cause))?;
    let mut attestors = wire.attestors.clone();
    attestors.sort_unstable();
    attestors.dedup();
    let attested_at = UnixTime::from_secs(wire.attested_at_millis.div_euclid(1000));
    Ok(Evidence { selectors, instance, attestors, attested_at })
}

/// Tells what an agent knows.
pub fn to_wire(evidence: &Evidence) -> sync::Evidence {
    sync::Evidence {
        selectors: selector::to_wire(&evidence.selectors),
        instance: evidence.instance.to_string(),
        attestors: evidence.attestors.clone(),
        attested_at_millis: evidence.attested_at.secs().saturating_mul(1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types;

    fn wire() -> sync::Evidence {
        sync::Evidence {
            selectors: vec![types::Selector { r#type: "unix".to_owned(), value: "uid:1".to_owned() }],
            instance: "b-1/7/9".to_owned(),
            attestors: vec!["docker".to_owned(), "unix".to_owned()],
            attested_at_millis: 1_000,
        }
    }

    #[test]
    fn evidence_survives_the_wire() {
        assert_eq!(to_wire(&from_wire(&wire()).unwrap()), wire());
        let read = |millis| from_wire(&sync::Evidence { attested_at_millis: millis, ..wire() }).unwrap();
        assert_eq!(read(1_999).attested_at, UnixTime::from_secs(1));
        assert_eq!(read(-1).attested_at, UnixTime::from_secs(-1));
    }

    #[test]
    fn what_is_malformed_or_too_much_is_refused() {
        let selector = wire().selectors[0].clone();
        for (bad, named) in [
            (sync::Evidence { instance: String::new(), ..wire() }, "instance"),
            (sync::Evidence { selectors: vec![types::Selector::default()], ..wire() }, "selectors"),
            (sync::Evidence { selectors: vec![selector; EVIDENCE_SELECTORS + 1], ..wire() }, "selectors"),
            (
                sync::Evidence { attestors: vec!["a".to_owned(); EVIDENCE_ATTESTORS + 1], ..wire() },
                "attestors",
            ),
            (sync::Evidence { attestors: vec!["a b".to_owned()], ..wire() }, "attestors"),
            (sync::Evidence { attestors: vec![String::new()], ..wire() }, "attestors"),
        ] {
            let refused = from_wire(&bad).unwrap_err().to_string();
            assert!(refused.starts_with(named), "{refused}");
        }
    }
}
