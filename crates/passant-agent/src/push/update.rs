//! What does an update say, and is it one that may be taken over? Parts in, a delta out; nothing of it takes effect before
//! its last part.

use std::sync::Arc;

use passant_core::limits::ENTRY_ID_BYTES;
use passant_core::{SpiffeId, Stop, TrustDomain};
use passant_proto::convert::{bundle, options, stop};
use passant_proto::options::EntryWithOptions;
use passant_proto::{sync as wire, types};
use prost::Message;
use tracing::warn;

use crate::cache::{Cursor, Delta, Stops};
use crate::{limits, sync};

/// Why what came does not add up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("an update without a cursor, or with one that cannot be")]
    Cursor,
    #[error("the parts of an update do not belong together")]
    Parts,
    #[error("an update of more than {} MiB", limits::UPDATE_BYTES >> 20)]
    TooLarge,
    #[error("more than {0} {1}")]
    TooMany(usize, &'static str),
    #[error("a snapshot without the bundle of the trust domain")]
    NoBundle,
    #[error("the bundle of the trust domain cannot be used: {0}")]
    Bundle(String),
    #[error("the entries held are not those that the server means")]
    Digest,
    #[error("the cursor of a heartbeat does not go on from that of the view held")]
    Heartbeat,
    #[error("a snapshot that does not say what is stopped")]
    NoStops,
    #[error("a stop that cannot be applied: {0}")]
    Stop(String),
    #[error("a response that this version does not know")]
    Unknown,
}

/// The parts of one update that have come so far.
pub(super) struct Assembly {
    trust_domain: TrustDomain,
    agent: SpiffeId,
    begun: Option<Begun>,
    /// More parts are to come of an update of which nothing is taken over.
    skips: bool,
}

struct Begun {
    delta: Delta,
    stops: Option<Vec<Stop>>,
    bytes: usize,
}

impl Assembly {
    pub(super) const fn new(trust_domain: TrustDomain, agent: SpiffeId) -> Self {
        Self { trust_domain, agent, begun: None, skips: false }
    }

    /// Whether more of an update is to come.
    pub(super) const fn is_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Takes one part in; the whole once it is complete. After a fault the update is forgotten, with its parts that are yet to
    /// come: the server sends them before anything else.
    ///
    /// An entry that is malformed or of another trust domain is left out, as if it were not authorized; so is a bundle of
    /// another trust domain that cannot be read.
    pub(super) fn take(&mut self, part: wire::Update) -> Result<Option<Delta>, Fault> {
        let more = part.more;
        if self.skips {
            self.skips = more;
            return Ok(None);
        }
        let taken = self.add(part);
        self.skips = more && taken.is_err();
        taken
    }

    fn add(&mut self, part: wire::Update) -> Result<Option<Delta>, Fault> {
        let bytes = part.encoded_len();
        let cursor = cursor_from_wire(part.cursor.as_ref()).ok_or(Fault::Cursor)?;
        let mut begun = match self.begun.take() {
            Some(begun) if begun.delta.cursor != cursor || begun.delta.is_snapshot != part.snapshot => {
                return Err(Fault::Parts);
            }
            Some(begun) => begun,
            None => Begun { delta: empty(cursor, part.snapshot), stops: None, bytes: 0 },
        };
        begun.bytes = begun.bytes.saturating_add(bytes);
        if begun.bytes > limits::UPDATE_BYTES {
            return Err(Fault::TooLarge);
        }
        let Begun { delta, stops, .. } = &mut begun;
        for entry in part.entries {
            self.entry(entry, delta);
        }
        delta.removed.extend(part.removed_entries.into_iter().filter(|id| id.len() <= ENTRY_ID_BYTES));
        for bundle in part.bundles {
            self.bundle(&bundle, delta)?;
        }
        let names = part.removed_bundles.iter().filter_map(|name| TrustDomain::parse(name).ok());
        delta.removed_federated.extend(names);
        if let Some(told) = part.stops {
            let stops = stops.get_or_insert_default();
            bounded(stops.len().saturating_add(told.stops.len()), limits::STOPS, "stops")?;
            for stop in &told.stops {
                // Whoever does not know what to stop must not go on as if nothing were.
                stops.push(
                    stop::from_server(&self.agent, stop).map_err(|error| Fault::Stop(error.to_string()))?,
                );
            }
        }
        // What the states of authorities mean for SVIDs, the tainted ones of the bundle say already.
        bounded(delta.put.len() + delta.left_out.len(), limits::ENTRIES, "entries")?;
        bounded(delta.removed.len(), limits::ENTRIES, "removed entries")?;
        bounded(
            delta.federated.len() + delta.removed_federated.len(),
            2 * limits::FEDERATED_BUNDLES,
            "bundles",
        )?;
        if part.more {
            self.begun = Some(begun);
            return Ok(None);
        }
        let Begun { mut delta, stops, .. } = begun;
        delta.stops = stops.map(Stops::new);
        delta.digest = part.digest;
        if delta.is_snapshot && delta.bundle.is_none() {
            return Err(Fault::NoBundle);
        }
        if delta.is_snapshot && delta.stops.is_none() {
            return Err(Fault::NoStops);
        }
        Ok(Some(delta))
    }

    /// Forgets the parts that have come, and those of the same update that are yet to come.
    pub(super) fn forget(&mut self) {
        self.skips |= self.begun.take().is_some();
    }

    fn entry(&self, wire: EntryWithOptions, delta: &mut Delta) {
        let (id, revision) = wire.entry.as_ref().map_or((String::new(), 0), |entry| {
            (entry.id.chars().take(ENTRY_ID_BYTES).collect(), entry.revision_number)
        });
        let revision = u64::try_from(revision).unwrap_or(0);
        match options::authorized_from_wire(&wire) {
            Ok(entry) if entry.spiffe_id.is_member_of(&self.trust_domain) => delta.put.push(entry),
            Ok(entry) => {
                warn!(entry = %entry.id, spiffe_id = %entry.spiffe_id,
                    "the server sent an entry of another trust domain; it is left out");
                delta.left_out.push((id, revision));
            }
            Err(error) => {
                warn!(entry = id, %error, "the server sent an entry that cannot be used; it is left out");
                delta.left_out.push((id, revision));
            }
        }
    }

    fn bundle(&self, wire: &types::Bundle, delta: &mut Delta) -> Result<(), Fault> {
        if wire.trust_domain == self.trust_domain.as_str() {
            delta.bundle = Some(sync::read_own_bundle(wire, &self.trust_domain).map_err(Fault::Bundle)?);
            return Ok(());
        }
        match bundle::from_wire(wire) {
            Ok(bundle) if bundle.trust_domain == self.trust_domain => {
                return Err(Fault::Bundle("its name is written in another way".to_owned()));
            }
            Ok(bundle) => delta.federated.push(Arc::new(bundle)),
            Err(error) => {
                warn!(trust_domain = wire.trust_domain.chars().take(255).collect::<String>(), %error,
                    "the server sent a bundle that cannot be read; it is left out");
            }
        }
        Ok(())
    }
}

/// A cursor as a server may have it.
pub(super) fn cursor_from_wire(wire: Option<&wire::Cursor>) -> Option<Cursor> {
    let wire = wire.filter(|wire| !wire.lineage.is_empty() && wire.lineage.len() <= limits::LINEAGE_BYTES)?;
    Some(Cursor { lineage: wire.lineage.clone(), revision: wire.revision })
}

pub(super) fn cursor_to_wire(cursor: &Cursor) -> wire::Cursor {
    wire::Cursor { lineage: cursor.lineage.clone(), revision: cursor.revision }
}

const fn empty(cursor: Cursor, is_snapshot: bool) -> Delta {
    Delta {
        cursor,
        digest: 0,
        is_snapshot,
        put: Vec::new(),
        left_out: Vec::new(),
        removed: Vec::new(),
        bundle: None,
        federated: Vec::new(),
        removed_federated: Vec::new(),
        stops: None,
    }
}

const fn bounded(count: usize, most: usize, what: &'static str) -> Result<(), Fault> {
    if count > most { Err(Fault::TooMany(most, what)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ca::{Ca, foreign_bundle};
    use crate::testing::server::wire_entry;
    use crate::testing::{id, trust_domain};

    fn cursor(revision: u64) -> Option<wire::Cursor> {
        Some(wire::Cursor { lineage: "one".to_owned(), revision })
    }

    fn part(revision: u64, more: bool) -> wire::Update {
        wire::Update { cursor: cursor(revision), more, ..wire::Update::default() }
    }

    fn with(entry: types::Entry) -> wire::Update {
        let entries = vec![EntryWithOptions { entry: Some(entry), options: None }];
        wire::Update { entries, ..part(1, false) }
    }

    fn taken(parts: impl IntoIterator<Item = wire::Update>) -> Result<Option<Delta>, Fault> {
        let mut assembly = Assembly::new(trust_domain(), id("/spire/agent/join_token/one"));
        let mut last = Ok(None);
        for part in parts {
            last = assembly.take(part);
            if last.is_err() {
                assert!(!assembly.is_begun());
                break;
            }
        }
        last
    }

    #[test]
    fn parts_take_effect_together_and_only_if_they_belong_together() {
        let first = wire::Update { removed_entries: vec!["a".to_owned()], ..part(1, true) };
        let last = wire::Update { removed_entries: vec!["b".to_owned()], digest: 7, ..part(1, false) };
        assert!(taken([first.clone()]).unwrap().is_none());
        let whole = taken([first.clone(), last]).unwrap().unwrap();
        assert_eq!((whole.removed, whole.digest), (vec!["a".to_owned(), "b".to_owned()], 7));
        assert!(matches!(taken([first.clone(), part(2, false)]), Err(Fault::Parts)));
        let snapshot = wire::Update { snapshot: true, ..part(1, false) };
        assert!(matches!(taken([first, snapshot]), Err(Fault::Parts)));
    }

    #[test]
    fn a_cursor_is_needed_and_bounded() {
        for lineage in [None, Some(String::new()), Some("l".repeat(limits::LINEAGE_BYTES + 1))] {
            let cursor = lineage.map(|lineage| wire::Cursor { lineage, revision: 1 });
            let update = wire::Update { cursor, ..wire::Update::default() };
            assert!(matches!(taken([update]), Err(Fault::Cursor)));
        }
    }

    #[test]
    fn what_cannot_be_used_is_left_out_and_counted() {
        let mut foreign = wire_entry("foreign", 1);
        foreign.spiffe_id.as_mut().unwrap().trust_domain = "other.org".to_owned();
        let mut malformed = types::Entry { revision_number: 3, ..wire_entry("malformed", 1) };
        malformed.selectors.clear();
        for (entry, left_out) in [
            (wire_entry("a", 1), None),
            (foreign, Some(("foreign".to_owned(), 0))),
            (malformed, Some(("malformed".to_owned(), 3))),
        ] {
            let delta = taken([with(entry)]).unwrap().unwrap();
            assert_eq!(delta.put.is_empty(), left_out.is_some());
            assert_eq!(delta.left_out.first(), left_out.as_ref());
        }
    }

    #[test]
    fn a_snapshot_needs_a_bundle_that_can_verify_somebody() {
        let own = bundle::to_wire(&Ca::new("one").bundle());
        let stops = Some(wire::Stops::default());
        let snapshot =
            |bundles| wire::Update { snapshot: true, bundles, stops: stops.clone(), ..part(1, false) };
        assert!(taken([snapshot(vec![own.clone().into()])]).unwrap().unwrap().bundle.is_some());
        let foreign = bundle::to_wire(&foreign_bundle("there.test"));
        assert!(matches!(taken([snapshot(vec![foreign.into()])]), Err(Fault::NoBundle)));
        let empty = types::Bundle { x509_authorities: Vec::new(), ..own };
        assert!(matches!(taken([snapshot(vec![empty.into()])]), Err(Fault::Bundle(_))));
    }

    #[test]
    fn a_stop_that_is_not_understood_is_no_reason_to_go_on() {
        let stop = |target| wire::Stop { id: "s".to_owned(), reason: "r".to_owned(), since: 1, target };
        let with = |stops| wire::Update { stops: Some(wire::Stops { stops }), ..part(1, false) };
        let known = stop(Some(wire::stop::Target::EntryId("a".to_owned())));
        let delta = taken([with(vec![known.clone()])]).unwrap().unwrap();
        assert_eq!(delta.stops.unwrap().list().len(), 1);
        assert!(matches!(taken([with(vec![known.clone(), stop(None)])]), Err(Fault::Stop(_))));
        assert!(matches!(taken([with(vec![known; limits::STOPS + 1])]), Err(Fault::TooMany(..))));
        assert_eq!(taken([part(1, false)]).unwrap().unwrap().stops, None, "nothing was said of them");
    }

    #[test]
    fn a_snapshot_says_what_is_stopped_even_if_nothing_is() {
        let bundles = vec![bundle::to_wire(&Ca::new("one").bundle()).into()];
        let snapshot =
            |stops| wire::Update { snapshot: true, bundles: bundles.clone(), stops, ..part(1, false) };
        let nothing = Some(wire::Stops::default());
        assert_eq!(taken([snapshot(nothing)]).unwrap().unwrap().stops, Some(Stops::default()));
        assert!(matches!(taken([snapshot(None)]), Err(Fault::NoStops)));
    }

    #[test]
    fn after_a_fault_the_rest_of_the_update_is_passed_over_and_the_next_is_taken_whole() {
        let unknown = wire::Stop { id: "s".to_owned(), target: None, ..wire::Stop::default() };
        let stops = Some(wire::Stops { stops: vec![unknown] });
        let removed =
            |revision, more| wire::Update { removed_entries: vec!["a".to_owned()], ..part(revision, more) };
        let mut assembly = Assembly::new(trust_domain(), id("/spire/agent/join_token/one"));
        for more in [true, false] {
            let faulty = wire::Update { stops: stops.clone(), ..part(1, more) };
            assert!(matches!(assembly.take(faulty), Err(Fault::Stop(_))));
            assembly.forget();
            if more {
                assert!(assembly.take(removed(1, true)).unwrap().is_none());
                assert!(assembly.take(removed(1, false)).unwrap().is_none());
            }
            assert!(assembly.take(removed(2, false)).unwrap().is_some());
        }
        // Nor is one taken whose beginning was forgotten.
        assert!(assembly.take(removed(3, true)).unwrap().is_none());
        assembly.forget();
        assert!(assembly.take(removed(3, false)).unwrap().is_none());
        assert!(assembly.take(removed(4, false)).unwrap().is_some());
    }

    #[test]
    fn more_than_an_agent_can_hold_is_refused() {
        let ids = |count| vec![String::new(); count];
        let removed = |count| wire::Update { removed_entries: ids(count), ..part(1, true) };
        assert!(taken([removed(limits::ENTRIES)]).is_ok());
        assert!(matches!(taken([removed(limits::ENTRIES), removed(1)]), Err(Fault::TooMany(..))));
        let large =
            || wire::Update { removed_entries: vec!["x".repeat(limits::UPDATE_BYTES / 4)], ..part(1, true) };
        assert!(taken([large(), large(), large()]).is_ok());
        assert!(matches!(taken([large(), large(), large(), large()]), Err(Fault::TooLarge)));
    }
}
