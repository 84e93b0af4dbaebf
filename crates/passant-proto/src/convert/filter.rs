//! Which records does a filter of a list or count request let pass?

use std::collections::BTreeSet;

use passant_core::{Entry, Selectors, SpiffeId, TrustDomain, UnixTime};
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

use super::{Malformed, id, selector};
use crate::types::selector_match::MatchBehavior;
use crate::{agent, entry, types};

/// How a record's set must relate to the given one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both are equal.
    Exact,
    /// The record's is within the given one, and not empty.
    Subset,
    /// The given one is within the record's.
    Superset,
    /// They have something in common.
    Any,
}

/// Conditions on entries that must all hold; an absent one always does.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// With this SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// With this parent ID.
    pub parent_id: Option<SpiffeId>,
    /// With selectors in this relation to these.
    pub selectors: Option<(Relation, Selectors)>,
    /// Federating with trust domains in this relation to these.
    pub federates_with: Option<(Relation, BTreeSet<TrustDomain>)>,
    /// With this hint.
    pub hint: Option<String>,
    /// Downstream, or not.
    pub downstream: Option<bool>,
}

/// Conditions on attested nodes that must all hold; an absent one always does.
#[derive(Clone, Debug, Default)]
pub struct AgentFilter {
    /// Attested by this attestor.
    pub attestation_type: Option<String>,
    /// With selectors in this relation to these.
    pub selectors: Option<(Relation, Selectors)>,
    /// Banned, or not.
    pub banned: Option<bool>,
    /// Able to attest again, or not.
    pub can_reattest: Option<bool>,
    /// With an SVID that ends before this.
    pub expires_before: Option<UnixTime>,
}

impl Relation {
    /// Whether `have`, the record's set, stands in this relation to `given`.
    pub fn holds<T: Ord>(self, have: &BTreeSet<T>, given: &BTreeSet<T>) -> bool {
        match self {
            Self::Exact => have == given,
            Self::Subset => !have.is_empty() && have.is_subset(given),
            Self::Superset => have.is_superset(given),
            Self::Any => !have.is_disjoint(given),
        }
    }

    /// The same for selectors.
    pub fn holds_for_selectors(self, have: &Selectors, given: &Selectors) -> bool {
        match self {
            Self::Exact => have == given,
            Self::Subset => !have.is_empty() && given.contains_all(have),
            Self::Superset => have.contains_all(given),
            Self::Any => have.contains_any(given),
        }
    }
}

impl EntryFilter {
    /// Takes the filter of a list request; without one, everything passes.
    ///
    /// # Errors
    /// The first condition that is malformed, an ID of another trust domain or an empty set included.
    pub fn from_list(
        trust_domain: &TrustDomain,
        filter: Option<&entry::list_entries_request::Filter>,
    ) -> Result<Self, Malformed> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let spiffe_id = filter.by_spiffe_id.as_ref();
        let parent_id = filter.by_parent_id.as_ref();
        Ok(Self {
            parent_id: parent_id
                .map(|id| id::member_from_wire(trust_domain, Some(id)))
                .transpose()
                .map_err(|cause| cause.during("malformed parent ID filter"))?,
            spiffe_id: spiffe_id
                .map(|id| id::workload_from_wire(trust_domain, Some(id)))
                .transpose()
                .map_err(|cause| cause.during("malformed SPIFFE ID filter"))?,
            selectors: filter
                .by_selectors
                .as_ref()
                .map(selectors)
                .transpose()
                .map_err(|cause| cause.during("malformed selectors filter"))?,
            federates_with: filter
                .by_federates_with
                .as_ref()
                .map(trust_domains)
                .transpose()
                .map_err(|cause| cause.during("malformed federates with filter"))?,
            hint: filter.by_hint.clone().filter(|hint| !hint.is_empty()),
            downstream: filter.by_downstream,
        })
    }

    /// Takes the filter of a count request; without one, everything passes.
    ///
    /// # Errors
    /// As [`EntryFilter::from_list`].
    pub fn from_count(
        trust_domain: &TrustDomain,
        filter: Option<&entry::count_entries_request::Filter>,
    ) -> Result<Self, Malformed> {
        let filter = filter.cloned().map(|filter| entry::list_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        });
        Self::from_list(trust_domain, filter.as_ref())
    }

    /// Whether `entry` meets every condition.
    pub fn passes(&self, entry: &Entry) -> bool {
        self.spiffe_id.as_ref().is_none_or(|id| *id == entry.spiffe_id)
            && self.parent_id.as_ref().is_none_or(|id| *id == entry.parent_id)
            && self
                .selectors
                .as_ref()
                .is_none_or(|(relation, given)| relation.holds_for_selectors(&entry.selectors, given))
            && self
                .federates_with
                .as_ref()
                .is_none_or(|(relation, given)| relation.holds(&entry.federates_with, given))
            && self.hint.as_ref().is_none_or(|hint| *hint == entry.hint)
            && self.downstream.is_none_or(|downstream| downstream == entry.downstream)
    }
}

impl AgentFilter {
    /// Takes the filter of a list request; without one, everything passes.
    ///
    /// # Errors
    /// The first condition that is malformed, an empty set of selectors included.
    pub fn from_list(filter: Option<&agent::list_agents_request::Filter>) -> Result<Self, Malformed> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        Ok(Self {
            attestation_type: Some(filter.by_attestation_type.clone()).filter(|kind| !kind.is_empty()),
            selectors: filter
                .by_selector_match
                .as_ref()
                .map(selectors)
                .transpose()
                .map_err(|cause| cause.during("failed to parse selectors"))?,
            banned: filter.by_banned,
            can_reattest: filter.by_can_reattest,
            expires_before: expires_before(&filter.by_expires_before)?,
        })
    }

    /// Takes the filter of a count request; without one, everything passes.
    ///
    /// # Errors
    /// As [`AgentFilter::from_list`].
    pub fn from_count(filter: Option<&agent::count_agents_request::Filter>) -> Result<Self, Malformed> {
        let filter = filter.cloned().map(|filter| agent::list_agents_request::Filter {
            by_attestation_type: filter.by_attestation_type,
            by_selector_match: filter.by_selector_match,
            by_banned: filter.by_banned,
            by_can_reattest: filter.by_can_reattest,
            by_expires_before: filter.by_expires_before,
        });
        Self::from_list(filter.as_ref())
    }
}

fn selectors(wire: &types::SelectorMatch) -> Result<(Relation, Selectors), Malformed> {
    let selectors = selector::from_wire(&wire.selectors)?;
    if selectors.is_empty() {
        return Err(Malformed::new("empty selector set"));
    }
    Ok((relation(wire.r#match)?, selectors))
}

fn trust_domains(wire: &types::FederatesWithMatch) -> Result<(Relation, BTreeSet<TrustDomain>), Malformed> {
    let names = wire.trust_domains.iter().map(|name| TrustDomain::parse(name));
    let names: BTreeSet<_> =
        names.collect::<Result<_, _>>().map_err(|cause| Malformed::new(cause.to_string()))?;
    if names.is_empty() {
        return Err(Malformed::new("empty trust domain set"));
    }
    Ok((relation(wire.r#match)?, names))
}

/// Both kinds of match have the same numbers.
fn relation(number: i32) -> Result<Relation, Malformed> {
    match MatchBehavior::try_from(number) {
        Ok(MatchBehavior::MatchExact) => Ok(Relation::Exact),
        Ok(MatchBehavior::MatchSubset) => Ok(Relation::Subset),
        Ok(MatchBehavior::MatchSuperset) => Ok(Relation::Superset),
        Ok(MatchBehavior::MatchAny) => Ok(Relation::Any),
        Err(_) => Err(Malformed::new(format!("unknown match behavior {number}"))),
    }
}

/// Reads `2006-01-02 15:04:05 -0700 -07`; what follows the offset is the name of a zone and says
/// nothing more.
fn expires_before(text: &str) -> Result<Option<UnixTime>, Malformed> {
    const FORMAT: StaticFormatDescription = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    if text.is_empty() {
        return Ok(None);
    }
    let end = text.match_indices(' ').nth(2).map_or(text.len(), |(at, _)| at);
    let at = OffsetDateTime::parse(&text[..end], FORMAT)
        .map_err(|_| Malformed::new("malformed expiry filter: write 2006-01-02 15:04:05 -0700 -07"))?;
    Ok(Some(UnixTime::from_secs(at.unix_timestamp())))
}

#[cfg(test)]
mod tests {
    use passant_core::{EntryDraft, EntryId};

    use super::*;

    fn set(text: &str) -> Selectors {
        text.split_whitespace().map(|word| passant_core::Selector::new("a", word).unwrap()).collect()
    }

    fn check(relation: Relation, have: &str, given: &str, expected: bool) {
        let words = |text: &'static str| text.split_whitespace().collect::<BTreeSet<_>>();
        let found = relation.holds_for_selectors(&set(have), &set(given));
        assert_eq!(found, expected, "{relation:?} {have} {given}");
        let have: &'static str = Box::leak(have.to_owned().into_boxed_str());
        let given: &'static str = Box::leak(given.to_owned().into_boxed_str());
        assert_eq!(relation.holds(&words(have), &words(given)), expected);
    }

    #[test]
    fn relations_compare_sets() {
        check(Relation::Exact, "1 2", "2 1", true);
        check(Relation::Exact, "1 2", "1", false);
        check(Relation::Subset, "1", "1 2", true);
        check(Relation::Subset, "1 3", "1 2", false);
        check(Relation::Subset, "", "1 2", false);
        check(Relation::Superset, "1 2", "1", true);
        check(Relation::Superset, "1", "1 2", false);
        check(Relation::Any, "1 3", "1 2", true);
        check(Relation::Any, "3", "1 2", false);
    }

    fn entry() -> Entry {
        let id = |path: &str| SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap();
        let mut draft = EntryDraft::new(id("/api"), id("/node"), set("1 2"));
        draft.hint = "internal".to_owned();
        draft.federates_with = [TrustDomain::parse("other.test").unwrap()].into();
        let td = TrustDomain::parse("example.org").unwrap();
        draft.register(&td, EntryId::parse("e").unwrap(), 0, UnixTime::from_secs(0)).unwrap()
    }

    fn passes(change: impl FnOnce(&mut entry::count_entries_request::Filter)) -> Result<bool, Malformed> {
        let mut filter = entry::count_entries_request::Filter::default();
        change(&mut filter);
        let td = TrustDomain::parse("example.org").unwrap();
        EntryFilter::from_count(&td, Some(&filter)).map(|filter| filter.passes(&entry()))
    }

    fn wire(path: &str) -> Option<types::Spiffeid> {
        Some(types::Spiffeid { trust_domain: "example.org".to_owned(), path: path.to_owned() })
    }

    #[test]
    fn every_condition_counts() {
        assert_eq!(passes(|_| {}), Ok(true));
        assert_eq!(passes(|filter| filter.by_spiffe_id = wire("/api")), Ok(true));
        assert_eq!(passes(|filter| filter.by_spiffe_id = wire("/node")), Ok(false));
        assert_eq!(passes(|filter| filter.by_parent_id = wire("/node")), Ok(true));
        assert_eq!(passes(|filter| filter.by_parent_id = wire("/api")), Ok(false));
        assert_eq!(passes(|filter| filter.by_hint = Some("internal".to_owned())), Ok(true));
        assert_eq!(passes(|filter| filter.by_hint = Some("external".to_owned())), Ok(false));
        assert_eq!(passes(|filter| filter.by_hint = Some(String::new())), Ok(true));
        assert_eq!(passes(|filter| filter.by_downstream = Some(false)), Ok(true));
        assert_eq!(passes(|filter| filter.by_downstream = Some(true)), Ok(false));
        let federates_with =
            |name: &str| types::FederatesWithMatch { trust_domains: vec![name.to_owned()], r#match: 3 };
        assert_eq!(passes(|filter| filter.by_federates_with = Some(federates_with("other.test"))), Ok(true));
        assert_eq!(passes(|filter| filter.by_federates_with = Some(federates_with("third.test"))), Ok(false));
        let selectors =
            |text: &str, r#match| types::SelectorMatch { selectors: selector::to_wire(&set(text)), r#match };
        assert_eq!(passes(|filter| filter.by_selectors = Some(selectors("1 2", 0))), Ok(true));
        assert_eq!(passes(|filter| filter.by_selectors = Some(selectors("1", 0))), Ok(false));
        assert_eq!(passes(|filter| filter.by_selectors = Some(selectors("1", 2))), Ok(true));
    }

    #[test]
    fn a_malformed_condition_is_refused() {
        let says = |result: Result<bool, Malformed>| result.unwrap_err().to_string();
        assert!(
            says(passes(|filter| filter.by_spiffe_id = wire("/spire/server")))
                .starts_with("malformed SPIFFE ID filter: ")
        );
        assert!(
            says(passes(|filter| filter.by_parent_id = wire(""))).starts_with("malformed parent ID filter: ")
        );
        let empty = types::SelectorMatch::default();
        assert_eq!(
            says(passes(|filter| filter.by_selectors = Some(empty))),
            "malformed selectors filter: empty selector set"
        );
        let unknown = types::FederatesWithMatch { trust_domains: vec!["a".to_owned()], r#match: 4 };
        assert!(says(passes(|filter| filter.by_federates_with = Some(unknown))).contains("match behavior 4"));
    }

    fn check_expiry(text: &str, expected: Option<Option<i64>>) {
        let filter = agent::count_agents_request::Filter {
            by_expires_before: text.to_owned(),
            ..agent::count_agents_request::Filter::default()
        };
        let filter = AgentFilter::from_count(Some(&filter)).ok();
        assert_eq!(filter.map(|filter| filter.expires_before.map(UnixTime::secs)), expected, "{text}");
    }

    #[test]
    fn expiry_is_read_with_its_offset() {
        check_expiry("", Some(None));
        check_expiry("1970-01-01 00:01:00 +0000 +00", Some(Some(60)));
        check_expiry("1970-01-01 01:01:00 +0100 +01", Some(Some(60)));
        check_expiry("1970-01-01 00:00:00 -0130 -01", Some(Some(5400)));
        check_expiry("1970-01-01 00:01:00 +0000", Some(Some(60)));
        check_expiry("tomorrow", None);
        check_expiry("1970-01-01", None);
    }

    #[test]
    fn agents_are_filtered_by_what_is_set() {
        let filter = agent::list_agents_request::Filter { by_banned: Some(true), ..Default::default() };
        let filter = AgentFilter::from_list(Some(&filter)).unwrap();
        assert_eq!((filter.banned, filter.can_reattest, filter.attestation_type), (Some(true), None, None));
        let empty = agent::list_agents_request::Filter {
            by_selector_match: Some(types::SelectorMatch::default()),
            ..Default::default()
        };
        assert!(AgentFilter::from_list(Some(&empty)).is_err());
    }
}
