//! How is an update sent in messages of bounded size?

use std::sync::Arc;
use std::vec::IntoIter;

use passant_core::{Bundle, Entry, EntryId, TrustDomain};
use passant_proto::convert::{self, mask};
use passant_proto::options::EntryWithOptions;
use passant_proto::sync::{Authorities, Cursor, Stop, Stops, Update};
use prost::Message;

use super::wired::Wired;
use crate::limits::{RESPONSE, WATCH_PART};
use crate::sync::held::{BundleDifference, Difference, Digest};

/// What one update holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) cursor: Cursor,
    /// Whether the agent is to forget what it has.
    pub(super) snapshot: bool,
    pub(super) entries: Difference,
    pub(super) bundles: BundleDifference,
    pub(super) authorities: Option<Authorities>,
    pub(super) stops: Option<Stops>,
    pub(super) digest: Digest,
}

/// An update that is being sent.
#[derive(Debug)]
pub(super) struct Parts {
    cursor: Cursor,
    snapshot: bool,
    put: IntoIter<Arc<Entry>>,
    removed: IntoIter<EntryId>,
    bundles: IntoIter<Arc<Bundle>>,
    removed_bundles: Vec<TrustDomain>,
    authorities: Option<Authorities>,
    /// Those that were not taken, until all were; there may be none from the beginning, which is to be said.
    stops: Option<IntoIter<Stop>>,
    digest: Digest,
}

impl Content {
    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        !self.snapshot
            && self.entries.put.is_empty()
            && self.entries.removed.is_empty()
            && self.bundles.put.is_empty()
            && self.bundles.removed.is_empty()
            && self.authorities.is_none()
            && self.stops.is_none()
    }

    pub(super) fn into_parts(self) -> Parts {
        Parts {
            cursor: self.cursor,
            snapshot: self.snapshot,
            put: self.entries.put.into_iter(),
            removed: self.entries.removed.into_iter(),
            bundles: self.bundles.put.into_iter(),
            removed_bundles: self.bundles.removed,
            authorities: self.authorities,
            stops: self.stops.map(|stops| stops.stops.into_iter()),
            digest: self.digest,
        }
    }
}

impl Parts {
    /// The next part. What ends comes first. Each has as much as it may, and one thing at least.
    pub(super) fn next(&mut self, wired: &Wired) -> Update {
        let mut part = Update {
            cursor: Some(self.cursor.clone()),
            snapshot: self.snapshot,
            authorities: self.authorities.take(),
            removed_bundles: self.removed_bundles.drain(..).map(|name| name.to_string()).collect(),
            ..Update::default()
        };
        // Tag and length of a repeated field take at most six bytes.
        let mut room = WATCH_PART.saturating_sub(part.encoded_len());
        let mut takes = |bytes: usize| {
            let had = room;
            room = room.saturating_sub(bytes + 6);
            had > 0
        };
        if let Some(stops) = &mut self.stops {
            let told = part.stops.get_or_insert_default();
            while takes(0)
                && let Some(stop) = stops.next()
            {
                takes(stop.encoded_len());
                told.stops.push(stop);
            }
            self.stops.take_if(|stops| stops.len() == 0);
        }
        while takes(0)
            && let Some(id) = self.removed.next()
        {
            takes(id.as_str().len());
            part.removed_entries.push(id.to_string());
        }
        while takes(0)
            && let Some(bundle) = self.bundles.next()
        {
            let wire = wired.of(&bundle);
            let bytes = wire.encoded_len();
            if bytes + WATCH_PART > RESPONSE {
                tracing::warn!(trust_domain = %bundle.trust_domain, bytes, "bundle is too large to be sent to agents");
                // An older one may have authorities that are revoked.
                part.removed_bundles.push(bundle.trust_domain.to_string());
                continue;
            }
            takes(bytes);
            part.bundles.push(wire);
        }
        while takes(0)
            && let Some(entry) = self.put.next()
        {
            let wire = shown(&entry);
            takes(wire.encoded_len());
            part.entries.push(wire);
        }
        part.more = !self.is_done();
        if !part.more {
            part.digest = self.digest.value();
        }
        part
    }

    /// Whether all of it was taken.
    pub(super) fn is_done(&self) -> bool {
        self.put.len() == 0 && self.removed.len() == 0 && self.bundles.len() == 0 && self.stops.is_none()
    }
}

/// Of an entry what agents read; the rest is not for them to know.
fn shown(entry: &Entry) -> EntryWithOptions {
    let mut wire = convert::entry::to_wire(entry);
    mask::entry(&mut wire, Some(&convert::entry::AUTHORIZED));
    EntryWithOptions { entry: Some(wire), options: Some(convert::options::to_wire(entry)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::STOPS;
    use crate::state::samples::{bundle, draft, other_trust_domain, registered, trust_domain};

    fn content(entries: usize) -> Content {
        let value = "x".repeat(900);
        let entry =
            |number| registered(&format!("e{number:05}"), draft("/w", "/p", &[&format!("k:{value}")]));
        Content {
            snapshot: true,
            entries: Difference { put: (0..entries).map(entry).collect(), ..Difference::default() },
            bundles: BundleDifference {
                put: vec![bundle(trust_domain(), 7, 100_000), bundle(other_trust_domain(), 1, 8 << 20)],
                removed: Vec::new(),
            },
            digest: Digest::new(9),
            ..Content::default()
        }
    }

    #[test]
    fn parts_are_bounded_and_hold_everything_once_and_the_last_one_says_so() {
        let wired = Wired::default();
        for entries in [0, 1, 300] {
            let mut parts = content(entries).into_parts();
            let (mut names, mut bundles, mut removed, mut many) = (Vec::new(), 0, Vec::new(), 0);
            loop {
                let part = parts.next(&wired);
                many += 1;
                assert!(part.snapshot && part.cursor.is_some());
                let largest = part.bundles.iter().map(Message::encoded_len).max().unwrap_or(2_000);
                assert!(part.encoded_len() < WATCH_PART + largest, "{}", part.encoded_len());
                names.extend(part.entries.iter().map(|one| one.entry.clone().unwrap().id));
                assert!(part.entries.iter().all(|one| one.entry.as_ref().unwrap().parent_id.is_none()));
                bundles += part.bundles.len();
                removed.extend(part.removed_bundles);
                assert_eq!(part.digest, if part.more { 0 } else { 9 });
                if !part.more {
                    break;
                }
            }
            assert_eq!((names.len(), bundles), (entries, 1), "the one that is too large is left out");
            assert_eq!(removed, [other_trust_domain().to_string()], "and no older one is used");
            assert!(names.is_sorted());
            assert_eq!(many > 4, entries == 300, "{many}");
        }
    }

    #[test]
    fn stops_are_spread_over_parts_and_none_is_said_too() {
        let stop = |number| Stop { id: format!("{number}"), reason: "x".repeat(512), ..Stop::default() };
        for many in [0, 1, STOPS] {
            let stops = Some(Stops { stops: (0..many).map(stop).collect() });
            let mut parts = Content { stops, ..content(3) }.into_parts();
            let (mut told, mut entries) = (Vec::new(), 0);
            for number in 0.. {
                let part = parts.next(&Wired::default());
                assert_eq!(number == 0 || told.len() < many, part.stops.is_some());
                assert!(part.encoded_len() < WATCH_PART + 101_000, "{}", part.encoded_len());
                told.extend(part.stops.into_iter().flat_map(|stops| stops.stops).map(|stop| stop.id));
                entries += part.entries.len();
                if !part.more {
                    break;
                }
            }
            let expected: Vec<String> = (0..many).map(|number| number.to_string()).collect();
            assert_eq!((told, entries), (expected, 3));
        }
    }

    #[test]
    fn nothing_is_no_update() {
        assert!(Content::default().is_empty());
        assert!(!content(0).is_empty());
        assert!(!Content { stops: Some(Stops::default()), ..Content::default() }.is_empty());
    }
}
