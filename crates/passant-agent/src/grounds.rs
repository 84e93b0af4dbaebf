//! What is a server told of the process for which it is asked for an SVID?

use std::borrow::Cow;

use passant_attest::workload::docker;
use passant_core::limits::EVIDENCE_SELECTORS;
use passant_core::{AuthorizedEntry, Evidence, Selector, Selectors, UnixTime};
use passant_proto::{convert, sync};

use crate::connect::Link;
use crate::limits;

/// Whether a server would still believe it, by this host's clock. One that was set back leaves evidence of a time to come.
pub(crate) fn is_fresh(evidence: &Evidence, now: UnixTime) -> bool {
    evidence.attested_at <= now.plus(limits::CLOCKS_APART)
        && now <= evidence.attested_at.plus(limits::EVIDENCE_AGE)
}

/// The evidence as it is sent. The time is told by the server's clock where that is far from this host's, so that it is not
/// taken for evidence of another time.
pub(crate) fn to_wire(link: &Link, evidence: &Evidence, entry: &AuthorizedEntry) -> sync::Evidence {
    convert::evidence::to_wire(&Evidence {
        selectors: told(evidence, entry).into_owned(),
        instance: evidence.instance.clone(),
        attestors: evidence.attestors.clone(),
        attested_at: link.as_the_server_counts(evidence.attested_at),
    })
}

/// About how many bytes [`to_wire`] takes.
pub(crate) fn bytes(evidence: &Evidence, entry: &AuthorizedEntry) -> usize {
    bytes_of(&told(evidence, entry))
}

/// All that was found, but variables that `entry` does not ask for: they may hold passwords, and what is told goes on
/// record. Where that is more than a server reads, as much as bears out `entry`.
fn told<'a>(evidence: &'a Evidence, entry: &'a AuthorizedEntry) -> Cow<'a, Selectors> {
    let mut told = Cow::Borrowed(&evidence.selectors);
    if told.iter().any(docker::is_variable) {
        let asked = |selector: &Selector| entry.selectors.iter().any(|one| one == selector);
        let may_be = |selector: &&Selector| !docker::is_variable(selector) || asked(selector);
        told = Cow::Owned(told.iter().filter(may_be).cloned().collect());
    }
    let is_too_much = told.len() > EVIDENCE_SELECTORS || bytes_of(&told) > limits::EVIDENCE_BYTES;
    if is_too_much && told.contains_all(&entry.selectors) { Cow::Borrowed(&entry.selectors) } else { told }
}

fn bytes_of(selectors: &Selectors) -> usize {
    // The lengths of a selector and of its two parts take less than this.
    const LENGTHS: usize = 12;
    selectors.iter().map(|selector| selector.as_str().len() + LENGTHS).sum()
}

#[cfg(test)]
mod tests {
    use passant_core::Instance;

    use super::*;
    use crate::testing::{entry, selectors};

    fn evidence(selectors: Selectors, at: i64) -> Evidence {
        Evidence {
            selectors,
            instance: Instance::new("boot", 5, 7).unwrap(),
            attestors: vec!["unix".to_owned()],
            attested_at: UnixTime::from_secs(at),
        }
    }

    /// `unix:uid:1` and `count - 1` others of so many bytes.
    fn many(count: usize, bytes: usize) -> Selectors {
        let others = (1..count).map(|n| Selector::new("x", &format!("{n:0bytes$}")).unwrap());
        others.chain([Selector::parse("unix:uid:1").unwrap()]).collect()
    }

    #[test]
    fn variables_are_told_only_where_the_entry_asks_for_them() {
        let found = [
            "docker:env:MODE=prod",
            "docker:env:PASSWORD=x",
            "docker:label:env:y",
            "other:env:z",
            "unix:uid:1",
        ];
        let evidence = evidence(selectors(&found), 0);
        let mut entry = entry("e", 1);
        let told_of = |entry: &AuthorizedEntry| told(&evidence, entry).into_owned();
        assert_eq!(told_of(&entry), selectors(&["docker:label:env:y", "other:env:z", "unix:uid:1"]));
        entry.selectors = selectors(&["docker:env:MODE=prod", "unix:uid:1"]);
        let expected = ["docker:env:MODE=prod", "docker:label:env:y", "other:env:z", "unix:uid:1"];
        assert_eq!(told_of(&entry), selectors(&expected));
    }

    #[test]
    fn evidence_is_fresh_within_the_time_that_a_server_believes_it() {
        let age = i64::try_from(limits::EVIDENCE_AGE.as_secs()).unwrap();
        let apart = i64::try_from(limits::CLOCKS_APART.as_secs()).unwrap();
        for (at, expected) in [(-age - 1, false), (-age, true), (0, true), (apart, true), (apart + 1, false)]
        {
            let evidence = evidence(many(1, 1), at);
            assert_eq!(is_fresh(&evidence, UnixTime::from_secs(0)), expected, "{at}");
        }
    }

    #[test]
    fn of_what_is_too_much_only_that_is_told_which_the_entry_asks_for() {
        let (asked, another) = (entry("a", 1), entry("b", 2));
        for (found, is_all_told) in [
            (many(1, 1), true),
            (many(EVIDENCE_SELECTORS, 8), true),
            (many(EVIDENCE_SELECTORS + 1, 8), false),
            (many(100, limits::EVIDENCE_BYTES / 100), false),
        ] {
            let evidence = evidence(found, 0);
            let expected = if is_all_told { &evidence.selectors } else { &asked.selectors };
            assert_eq!(told(&evidence, &asked).as_ref(), expected);
        }
        let of_another = evidence(many(EVIDENCE_SELECTORS + 1, 8), 0);
        assert_eq!(
            told(&of_another, &another).as_ref(),
            &of_another.selectors,
            "nothing is told that was not found"
        );
    }
}
