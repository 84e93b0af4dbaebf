//! Whose handshake is next, when thousands come at once?

use std::collections::{BTreeMap, VecDeque};

/// Those who wait, and those who are worked on, by where they come from. Places take turns; within one, who came first goes
/// first. It is bounded: where it is full, the newest of the place with the most waiting has to go, and of several such places
/// the newest of all, so that who fills it pushes out nobody but itself.
#[derive(Debug)]
pub(super) struct Line<K, T> {
    /// Worked on at a time, of all and of one place.
    at_once: (usize, usize),
    /// Each with its number in the order in which they joined.
    waiting: BTreeMap<K, VecDeque<(u64, T)>>,
    joined: u64,
    /// Places with somebody waiting, the next one first; each stands here once.
    rotation: VecDeque<K>,
    worked_on: BTreeMap<K, usize>,
    len: usize,
    busy: usize,
}

impl<K: Ord + Clone, T> Line<K, T> {
    /// `at_once` are worked on at a time, and `each` of one place. None is zero.
    pub(super) const fn new(at_once: usize, each: usize) -> Self {
        Self {
            at_once: (at_once, each),
            waiting: BTreeMap::new(),
            joined: 0,
            rotation: VecDeque::new(),
            worked_on: BTreeMap::new(),
            len: 0,
            busy: 0,
        }
    }

    /// Lines up one more, with at most `most` in all; who has to go for it, if somebody has.
    pub(super) fn join(&mut self, from: K, one: T, most: usize) -> Option<(K, T)> {
        let line = self.waiting.entry(from.clone()).or_default();
        if line.is_empty() {
            self.rotation.push_back(from);
        }
        line.push_back((self.joined, one));
        self.joined += 1;
        self.len += 1;
        if self.len > most { self.push_out() } else { None }
    }

    /// The next one to be worked on, if there is room; until [`Line::done`].
    pub(super) fn next(&mut self) -> Option<(K, T)> {
        let (all, each) = self.at_once;
        if self.busy >= all {
            return None;
        }
        let may = |from: &K| self.worked_on.get(from).is_none_or(|busy| *busy < each);
        let at = self.rotation.iter().position(may)?;
        let from = self.rotation.remove(at)?;
        let line = self.waiting.get_mut(&from)?;
        let (_, one) = line.pop_front()?;
        if line.is_empty() {
            self.waiting.remove(&from);
        } else {
            self.rotation.push_back(from.clone());
        }
        self.len -= 1;
        self.busy += 1;
        *self.worked_on.entry(from.clone()).or_default() += 1;
        Some((from, one))
    }

    /// One from there is worked on no longer.
    pub(super) fn done(&mut self, from: &K) {
        if let Some(busy) = self.worked_on.get_mut(from) {
            *busy -= 1;
            self.busy -= 1;
            if *busy == 0 {
                self.worked_on.remove(from);
            }
        }
    }

    fn push_out(&mut self) -> Option<(K, T)> {
        // Rare, and there are no more places than waiting ones. Where some have as many, who came last goes: whoever fills the
        // line from many places cannot choose those that push out others.
        let newest = |line: &VecDeque<(u64, T)>| line.back().map(|(number, _)| *number);
        let from = self.waiting.iter().max_by_key(|(_, line)| (line.len(), newest(line)))?.0.clone();
        let line = self.waiting.get_mut(&from)?;
        let (_, one) = line.pop_back()?;
        if line.is_empty() {
            self.waiting.remove(&from);
            self.rotation.retain(|waiting| *waiting != from);
        }
        self.len -= 1;
        Some((from, one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(line: &mut Line<&'static str, u32>) -> Vec<(&'static str, u32)> {
        let mut order = Vec::new();
        while let Some((from, one)) = line.next() {
            line.done(&from);
            order.push((from, one));
        }
        order
    }

    #[test]
    fn places_take_turns_and_who_came_first_goes_first() {
        let mut line = Line::new(1, 1);
        for (from, one) in [("many", 1), ("many", 2), ("many", 3), ("few", 4), ("one", 5)] {
            assert_eq!(line.join(from, one, 10), None);
        }
        let expected = [("many", 1), ("few", 4), ("one", 5), ("many", 2), ("many", 3)];
        assert_eq!(order(&mut line), expected);
        assert!(line.waiting.is_empty() && line.worked_on.is_empty() && line.rotation.is_empty());
        assert_eq!((line.len, line.busy), (0, 0));
    }

    #[test]
    fn who_fills_the_line_pushes_out_only_itself() {
        let mut line = Line::new(1, 1);
        for one in 0..4 {
            assert_eq!(line.join("many", one, 4), None);
        }
        assert_eq!(line.join("many", 4, 4), Some(("many", 4)));
        assert_eq!(line.join("few", 5, 4), Some(("many", 3)));
        assert_eq!(line.join("one", 6, 4), Some(("many", 2)));
        assert_eq!(line.join("two", 7, 4), Some(("many", 1)));
        assert_eq!(order(&mut line), [("many", 0), ("few", 5), ("one", 6), ("two", 7)]);
    }

    #[test]
    fn of_places_with_as_many_the_last_that_came_has_to_go() {
        for places in [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]] {
            let mut line = Line::new(1, 1);
            for (one, from) in (0..).zip(places) {
                let pushed_out = line.join(from, one, 2);
                assert_eq!(pushed_out, (one == 2).then_some((from, 2)), "{places:?}");
            }
        }
    }

    #[test]
    fn one_place_leaves_room_for_the_others() {
        let mut line = Line::new(3, 2);
        (0..5).for_each(|one| assert_eq!(line.join("many", one, 10), None));
        let worked_on: Vec<_> = std::iter::from_fn(|| line.next()).collect();
        assert_eq!(worked_on, [("many", 0), ("many", 1)]);
        line.join("few", 9, 10);
        assert_eq!(line.next(), Some(("few", 9)));
        assert_eq!(line.next(), None, "three in all");
        line.done(&"few");
        assert_eq!(line.next(), None, "it has two still");
        line.done(&"many");
        assert_eq!(line.next(), Some(("many", 2)));
    }
}
