//! How does an explanation look on the wire?

use passant_core::Selectors;
use passant_core::explanation::{Candidate, Cause, Explanation, Fact};

use crate::explain;

/// The whole of it.
pub fn to_wire(explanation: Explanation) -> explain::Explanation {
    explain::Explanation {
        causes: explanation.causes.into_iter().map(cause).collect(),
        candidates: explanation.candidates.into_iter().map(candidate).collect(),
        facts: explanation
            .facts
            .into_iter()
            .map(|Fact { about, says }| explain::Fact { about: about.to_owned(), says })
            .collect(),
        candidates_left_out: explanation.left_out.try_into().unwrap_or(u32::MAX),
    }
}

fn cause(cause: Cause) -> explain::Cause {
    explain::Cause {
        code: cause.code.name().to_owned(),
        blocks: cause.blocks,
        says: cause.says,
        remedy: cause.remedy,
        entry_id: cause.entry.map(String::from).unwrap_or_default(),
    }
}

fn candidate(candidate: Candidate) -> explain::Candidate {
    let texts = |selectors: Selectors| selectors.iter().map(ToString::to_string).collect();
    explain::Candidate {
        entry_id: candidate.id.into(),
        spiffe_id: candidate.spiffe_id.to_string(),
        parent_id: candidate.parent_id.map(|id| id.to_string()).unwrap_or_default(),
        selectors: texts(candidate.selectors),
        missing: texts(candidate.missing),
        note: candidate.note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passant_core::explanation::Code;
    use passant_core::{EntryId, Selector, SpiffeId};

    #[test]
    fn nothing_is_lost_on_the_way() {
        let one: Selectors = [Selector::parse("unix:uid:1").unwrap()].into_iter().collect();
        let id = EntryId::parse("web").unwrap();
        let explanation = Explanation {
            causes: vec![Code::SelectorsMissing.limits("it lacks one", "change it").of(&id)],
            candidates: vec![Candidate {
                id,
                spiffe_id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
                parent_id: SpiffeId::parse("spiffe://example.org/node").ok(),
                selectors: one.clone(),
                missing: one,
                note: "a note".to_owned(),
            }],
            left_out: 3,
            facts: vec![Fact { about: "agent", says: "is well".to_owned() }],
        };
        let wire = to_wire(explanation);
        let expected = explain::Explanation {
            causes: vec![explain::Cause {
                code: "selectors_missing".to_owned(),
                blocks: false,
                says: "it lacks one".to_owned(),
                remedy: "change it".to_owned(),
                entry_id: "web".to_owned(),
            }],
            candidates: vec![explain::Candidate {
                entry_id: "web".to_owned(),
                spiffe_id: "spiffe://example.org/web".to_owned(),
                parent_id: "spiffe://example.org/node".to_owned(),
                selectors: vec!["unix:uid:1".to_owned()],
                missing: vec!["unix:uid:1".to_owned()],
                note: "a note".to_owned(),
            }],
            facts: vec![explain::Fact { about: "agent".to_owned(), says: "is well".to_owned() }],
            candidates_left_out: 3,
        };
        assert_eq!(wire, expected);
    }
}
