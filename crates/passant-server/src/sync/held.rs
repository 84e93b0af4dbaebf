//! What does an agent hold, and what is to be sent so that it holds what it should?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use passant_core::{Bundle, Entry, EntryId, EntryOptions, TrustDomain, view_digest};

use crate::state::State;

/// Whether an agent can honour all that an entry says.
pub(crate) fn is_fit(entry: &Entry, honours_options: bool) -> bool {
    honours_options || !is_strict(entry)
}

/// Whether the entry is to be kept from agents that know SPIRE's fields only.
pub(crate) fn is_strict(entry: &Entry) -> bool {
    entry.options.strict && entry.options != EntryOptions { strict: true, ..EntryOptions::default() }
}

/// The digest of `passant.sync.v1` over a set of entries, kept as entries come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// The digest that somebody names.
    pub(crate) const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number, as on the wire.
    pub(crate) const fn value(self) -> u64 {
        self.0
    }

    fn add(&mut self, id: &EntryId, revision: u64) {
        self.0 = self.0.wrapping_add(view_digest::share(id.as_str(), revision));
    }

    fn remove(&mut self, id: &EntryId, revision: u64) {
        self.0 = self.0.wrapping_sub(view_digest::share(id.as_str(), revision));
    }
}

/// What one agent was sent.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Entries with their revisions, in order of their IDs: there may be thousands of agents with thousands.
    entries: Vec<(EntryId, u64)>,
    digest: Digest,
    /// With whom they federate, those that do.
    federating: BTreeMap<EntryId, BTreeSet<TrustDomain>>,
    /// The own bundle, and those of trust domains with which the entries federate.
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Whether the agent was told of stops.
    pub(crate) has_stops: bool,
}

/// What makes entries what they should be.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) put: Vec<Arc<Entry>>,
    pub(crate) removed: Vec<EntryId>,
    /// Whether the agent's entries federate with others than before.
    pub(crate) federates: bool,
}

/// What makes bundles what they should be.
#[derive(Debug, Default)]
pub(crate) struct BundleDifference {
    pub(crate) put: Vec<Arc<Bundle>>,
    pub(crate) removed: Vec<TrustDomain>,
}

impl Held {
    /// As if the agent held these entries, and no bundles.
    pub(crate) fn of(present: &[Arc<Entry>]) -> Self {
        let mut held = Self::default();
        held.take_all(present);
        held
    }

    pub(crate) const fn digest(&self) -> Digest {
        self.digest
    }

    /// How many entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The own bundle's sequence number, if the agent was sent it.
    pub(crate) fn bundle_sequence(&self, own: &TrustDomain) -> Option<u64> {
        self.bundles.get(own).map(|bundle| bundle.sequence)
    }

    /// Makes the entries `present`, which are in order of their IDs.
    pub(crate) fn take_all(&mut self, present: &[Arc<Entry>]) -> Difference {
        let mut difference = Difference::default();
        let mut old = std::mem::take(&mut self.entries).into_iter().peekable();
        self.entries.reserve_exact(present.len());
        for entry in present {
            while let Some((id, revision)) = old.next_if(|(id, _)| *id < entry.id) {
                self.digest.remove(&id, revision);
                difference.federates |= self.federating.remove(&id).is_some();
                difference.removed.push(id);
            }
            let known = old.next_if(|(id, _)| *id == entry.id);
            if let Some((id, revision)) = known {
                if revision == entry.revision {
                    self.entries.push((id, revision));
                    continue;
                }
                self.digest.remove(&id, revision);
            }
            self.digest.add(&entry.id, entry.revision);
            self.entries.push((entry.id.clone(), entry.revision));
            difference.federates |= self.federate(entry);
            difference.put.push(Arc::clone(entry));
        }
        for (id, revision) in old {
            self.digest.remove(&id, revision);
            difference.federates |= self.federating.remove(&id).is_some();
            difference.removed.push(id);
        }
        difference
    }

    /// Makes the entries with these IDs what `present` says: the entry, or that it is not the agent's.
    pub(crate) fn take_some<'a>(
        &mut self,
        ids: &[EntryId],
        present: impl Fn(&EntryId) -> Option<&'a Arc<Entry>>,
    ) -> Difference {
        let mut difference = Difference::default();
        for id in ids {
            let place = self.entries.binary_search_by(|(known, _)| known.cmp(id));
            match (place, present(id)) {
                (Ok(at), Some(entry)) => {
                    let revision = self.entries[at].1;
                    if revision == entry.revision {
                        continue;
                    }
                    self.digest.remove(id, revision);
                    self.entries[at].1 = entry.revision;
                    self.put(entry, &mut difference);
                }
                (Err(at), Some(entry)) => {
                    self.entries.insert(at, (id.clone(), entry.revision));
                    self.put(entry, &mut difference);
                }
                (Ok(at), None) => {
                    let (id, revision) = self.entries.remove(at);
                    self.digest.remove(&id, revision);
                    difference.federates |= self.federating.remove(&id).is_some();
                    difference.removed.push(id);
                }
                (Err(_), None) => {}
            }
        }
        difference
    }

    fn put(&mut self, entry: &Arc<Entry>, difference: &mut Difference) {
        self.digest.add(&entry.id, entry.revision);
        difference.federates |= self.federate(entry);
        difference.put.push(Arc::clone(entry));
    }

    /// Whether the entry federates with others than before.
    fn federate(&mut self, entry: &Entry) -> bool {
        if entry.federates_with.is_empty() {
            return self.federating.remove(&entry.id).is_some();
        }
        let with = entry.federates_with.clone();
        self.federating.insert(entry.id.clone(), with).as_ref() != Some(&entry.federates_with)
    }

    /// The foreign trust domains whose bundles the agent needs.
    pub(crate) fn federates_with(&self) -> BTreeSet<TrustDomain> {
        self.federating.values().flatten().cloned().collect()
    }

    /// Makes the bundles those of `state` that the agent needs: the own one, and those of trust domains with which its entries
    /// federate.
    pub(crate) fn take_bundles(&mut self, state: &State) -> BundleDifference {
        let mut difference = BundleDifference::default();
        let mut wanted = self.federates_with();
        wanted.insert(state.trust_domain().clone());
        let gone: Vec<TrustDomain> =
            self.bundles.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
        for name in gone {
            self.bundles.remove(&name);
            difference.removed.push(name);
        }
        for name in wanted {
            let (known, now) = (self.bundles.get(&name), state.bundle_of(&name));
            match (known, now) {
                (Some(known), Some(now)) if Arc::ptr_eq(known, &now) || *known == now => {}
                (_, Some(now)) => {
                    difference.put.push(Arc::clone(&now));
                    self.bundles.insert(name, now);
                }
                // An agent that comes back may still hold one.
                (_, None) => {
                    self.bundles.remove(&name);
                    difference.removed.push(name);
                }
            }
        }
        difference
    }

    /// Forgets everything: the agent is told to.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Forgets which bundles the agent was sent, so that it is sent all of them again.
    pub(crate) fn forget_bundles(&mut self) {
        self.bundles = BTreeMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{at, draft, entry_id, other_trust_domain, trust_domain};
    use passant_core::{EntryDraft, KeyScope};

    fn entry(name: &str, revision: u64, federates: bool) -> Arc<Entry> {
        let mut draft = draft("/w", "/p", &["k:1"]);
        draft.federates_with.extend(federates.then(other_trust_domain));
        Arc::new(draft.register(&trust_domain(), entry_id(name), revision, at(1)).unwrap())
    }

    fn told(difference: &Difference) -> (Vec<String>, Vec<String>, bool) {
        let put = difference.put.iter().map(|entry| format!("{}@{}", entry.id, entry.revision));
        let removed = difference.removed.iter().map(ToString::to_string);
        (put.collect(), removed.collect(), difference.federates)
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn only_what_differs_is_sent_and_both_ways_come_to_the_same() {
        let first = [entry("a", 1, false), entry("b", 1, false), entry("d", 1, true)];
        let then = [entry("b", 2, true), entry("c", 1, false), entry("d", 1, true)];
        let expected = (texts(&["b@2", "c@1"]), texts(&["a"]), true);
        let mut whole = Held::of(&first);
        assert_eq!(told(&whole.take_all(&then)), expected);
        let mut single = Held::of(&first);
        let ids = ["a", "b", "c", "d", "e"].map(entry_id);
        let difference = single.take_some(&ids, |id| then.iter().find(|entry| entry.id == *id));
        assert_eq!(told(&difference), expected);
        assert_eq!(whole.entries, single.entries);
        let digest = {
            let mut digest = Digest::default();
            then.iter().for_each(|entry| digest.add(&entry.id, entry.revision));
            digest
        };
        assert_eq!((whole.digest(), single.digest()), (digest, digest));
        assert_eq!(told(&whole.take_all(&[])), (vec![], texts(&["b", "c", "d"]), true));
        assert_eq!((whole.digest(), whole.federates_with().len()), (Digest::default(), 0));
    }

    #[test]
    fn strict_entries_are_for_agents_that_honour_their_options() {
        for (key_scope, strict, is_for_all) in [
            (KeyScope::Instance, true, false),
            (KeyScope::Instance, false, true),
            (KeyScope::Node, true, true),
        ] {
            let draft =
                EntryDraft { options: EntryOptions { key_scope, strict }, ..draft("/w", "/p", &["k:1"]) };
            let entry = draft.register(&trust_domain(), entry_id("a"), 1, at(1)).unwrap();
            assert_eq!(is_fit(&entry, false), is_for_all, "{key_scope:?} {strict}");
            assert!(is_fit(&entry, true));
        }
    }
}
