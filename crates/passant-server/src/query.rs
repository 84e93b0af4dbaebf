//! Which objects does a list request select, and which of them are on the page that was asked for?

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use passant_core::{Entry, EntryId, Refusal};
use passant_proto::convert::filter::{AgentFilter, EntryFilter};

use crate::state::{AttestedNode, State};

/// The entries that pass `filter`, in entry-ID order, from the one after the ID `after`. Uses the index that fits.
pub(crate) fn entries<'a>(
    state: &'a State,
    filter: &'a EntryFilter,
    after: Option<&'a EntryId>,
) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
    let candidates: Box<dyn Iterator<Item = &Arc<Entry>>> = match (&filter.spiffe_id, &filter.parent_id) {
        (Some(id), _) => Box::new(state.entries_by_spiffe_id(id)),
        (None, Some(parent)) => Box::new(state.children(parent)),
        (None, None) => Box::new(state.entries_after(after)),
    };
    Box::new(
        candidates
            .filter(move |entry| after.is_none_or(|after| entry.id > *after))
            .filter(|entry| filter.passes(entry)),
    )
}

/// The nodes that pass `filter`, in the order of their SPIFFE IDs, from the one after the ID `after`.
pub(crate) fn nodes<'a>(
    state: &'a State,
    filter: &'a AgentFilter,
    after: Option<&'a str>,
) -> impl Iterator<Item = &'a Arc<AttestedNode>> + 'a {
    state
        .nodes()
        .skip_while(move |node| after.is_some_and(|after| node.id.as_str() <= after))
        .filter(|node| node_passes(filter, node))
}

fn node_passes(filter: &AgentFilter, node: &AttestedNode) -> bool {
    let AgentFilter { attestation_type, selectors, banned, can_reattest, expires_before } = filter;
    attestation_type.as_ref().is_none_or(|method| node.attestation_type == *method)
        && banned.is_none_or(|banned| node.is_banned() == banned)
        && can_reattest.is_none_or(|can| node.can_reattest == can)
        && expires_before.is_none_or(|end| node.not_after < end)
        && selectors
            .as_ref()
            .is_none_or(|(relation, given)| relation.holds_for_selectors(&node.selectors, given))
}

/// What a list request says about paging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    /// `None`: everything at once.
    size: Option<usize>,
    /// The key after which the page begins.
    after: Option<String>,
}

/// One page and, if more follows, the token of the next.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next: String,
}

impl Paging {
    /// From a request: a size of zero or less means no paging, and the token is then ignored.
    ///
    /// # Errors
    /// Invalid, when the token is none that was given out.
    pub(crate) fn parse(size: i32, token: &str) -> Result<Self, Refusal> {
        let Some(size) = usize::try_from(size).ok().filter(|size| *size > 0) else {
            return Ok(Self { size: None, after: None });
        };
        if token.is_empty() {
            return Ok(Self { size: Some(size), after: None });
        }
        let key = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(Self { size: Some(size), after: Some(key.ok_or_else(foreign_token)?) })
    }

    /// The key after which the page begins.
    pub(crate) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// The same as an entry ID.
    ///
    /// # Errors
    /// Invalid, when the token is none that was given out.
    pub(crate) fn after_entry(&self) -> Result<Option<EntryId>, Refusal> {
        self.after().map(|key| EntryId::parse(key).map_err(|_| foreign_token())).transpose()
    }

    /// Fills the page from `found`, which must be in key order and begin after [`Paging::after`]. `weigh` gives an
    /// item's size on the wire: a page ends early before it would outgrow `most` bytes, and the next one goes on there.
    ///
    /// # Errors
    /// Exhausted, when everything was asked for at once and outgrows `most`: a list that silently ended would be read
    /// as complete.
    pub(crate) fn fill<T>(
        &self,
        found: impl Iterator<Item = T>,
        key: impl Fn(&T) -> &str,
        weigh: impl Fn(&T) -> usize,
        most: usize,
    ) -> Result<Page<T>, Refusal> {
        let mut items: Vec<T> = Vec::new();
        let mut weight = 0;
        for item in found {
            let heavier = weight + weigh(&item);
            let full = self.size.is_some_and(|size| items.len() >= size);
            if full || (heavier > most && !items.is_empty()) {
                if self.size.is_none() {
                    return Err(Refusal::exhausted(
                        "too much for one message; ask page by page with page_size",
                    ));
                }
                let next = items.last().map(|last| URL_SAFE_NO_PAD.encode(key(last))).unwrap_or_default();
                return Ok(Page { items, next });
            }
            weight = heavier;
            items.push(item);
        }
        Ok(Page { items, next: String::new() })
    }
}

fn foreign_token() -> Refusal {
    Refusal::invalid("page_token is none that this server gave out")
}

#[cfg(test)]
mod tests {
    use super::Paging;
    use passant_core::Reason;

    const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

    fn pages(size: i32, weights: &[usize]) -> Vec<Vec<usize>> {
        let mut token = String::new();
        let mut pages = Vec::new();
        loop {
            let paging = Paging::parse(size, &token).unwrap();
            let from = paging.after().map_or(0, |key| KEYS.iter().position(|k| *k == key).unwrap() + 1);
            let page = paging.fill(from..weights.len(), |at| KEYS[*at], |at| weights[*at], 10).unwrap();
            pages.push(page.items);
            if page.next.is_empty() {
                return pages;
            }
            token = page.next;
        }
    }

    #[test]
    fn pages_end_by_count_and_by_weight_and_lose_nothing() {
        assert_eq!(pages(2, &[1; 5]), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(pages(2, &[1; 4]), [vec![0, 1], vec![2, 3]]);
        assert_eq!(pages(9, &[6, 4, 1, 11, 1]), [vec![0, 1], vec![2], vec![3], vec![4]]);
        assert_eq!(pages(0, &[1; 5]), [vec![0, 1, 2, 3, 4]]);
        assert_eq!(pages(-1, &[]), [Vec::<usize>::new()]);
    }

    #[test]
    fn a_list_that_does_not_fit_is_refused_rather_than_cut() {
        let all = Paging::parse(0, "").unwrap();
        let refusal = all.fill(0..11, |at| KEYS[*at], |_| 1, 10).unwrap_err();
        assert_eq!(refusal.reason, Reason::Exhausted);
        assert!(refusal.public.contains("page_size"), "{refusal}");
    }

    #[test]
    fn a_foreign_token_is_refused() {
        assert_eq!(Paging::parse(5, "not base64!").unwrap_err().reason, Reason::Invalid);
        assert_eq!(Paging::parse(5, "IA").unwrap().after_entry().unwrap_err().reason, Reason::Invalid);
    }
}
