//! What was acknowledged, what was under way when the server died, and does what is there now fit?
//!
//! Kept by the harness, from what clients sent and were answered; nothing in it comes from the server's disk. Each object is
//! written by one client at a time, so that at most one write of it is under way when the server dies.

use std::collections::BTreeMap;

use passant_core::UnixTime;

/// What an object can hold.
pub(crate) trait Value: Clone {
    /// Whether `found` is this. What was answered is compared exactly; of what was only sent, less is known.
    fn is(&self, found: &Self) -> bool;

    /// Whether the server may have removed it by itself at `now`.
    fn may_be_gone(&self, now: UnixTime) -> bool;

    /// For a person who reads of a violation.
    fn tell(&self) -> String;
}

/// All objects of one kind, by key; those that were deleted too.
#[derive(Debug)]
pub(crate) struct Ledger<V> {
    objects: BTreeMap<String, Object<V>>,
    writes: u64,
    acknowledged: u64,
}

#[derive(Debug)]
struct Object<V> {
    /// The last value that was acknowledged or found; `None` after a delete.
    acknowledged: Option<V>,
    under_way: Option<Write<V>>,
}

#[derive(Debug)]
struct Write<V> {
    /// Writes of one request, which are taken all or none.
    request: u64,
    /// `None`: a delete.
    value: Option<V>,
}

/// What a comparison brought.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Objects looked at, deleted ones included.
    pub(crate) objects: usize,
    /// Requests without an answer whose writes are there.
    pub(crate) kept: usize,
    /// Requests without an answer whose writes are not.
    pub(crate) dropped: usize,
    /// What must not be.
    pub(crate) violations: Vec<String>,
}

impl<V> Default for Ledger<V> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), writes: 0, acknowledged: 0 }
    }
}

impl<V: Value> Ledger<V> {
    /// Notes a request that is about to be sent: what each of its writes makes of an object, `None` for a delete.
    pub(crate) fn begin(&mut self, writes: impl IntoIterator<Item = (String, Option<V>)>) {
        self.writes += 1;
        let request = self.writes;
        for (key, value) in writes {
            let object = self.objects.entry(key).or_insert(Object { acknowledged: None, under_way: None });
            object.under_way = Some(Write { request, value });
        }
    }

    /// Notes the answer to the write of `key`: it now holds `value`.
    pub(crate) fn acknowledge(&mut self, key: &str, value: Option<V>) {
        self.acknowledged += 1;
        if let Some(object) = self.objects.get_mut(key) {
            *object = Object { acknowledged: value, under_way: None };
        }
    }

    /// Notes that the write of `key` was refused and has changed nothing.
    pub(crate) fn refused(&mut self, key: &str) {
        if let Some(object) = self.objects.get_mut(key) {
            object.under_way = None;
        }
    }

    /// All that is held.
    pub(crate) fn all_held(&self) -> impl Iterator<Item = (&String, &V)> {
        self.objects.iter().filter_map(|(key, object)| Some((key, object.acknowledged.as_ref()?)))
    }

    /// Writes acknowledged so far.
    pub(crate) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Objects that the server is free to remove at `now`.
    pub(crate) fn due(&self, now: UnixTime) -> usize {
        let held = self.objects.values().filter_map(|object| object.acknowledged.as_ref());
        held.filter(|value| value.may_be_gone(now)).count()
    }

    /// Compares all objects with what was found at `now`, after a restart, and goes on from there: what had no answer has
    /// one now.
    pub(crate) fn compare(&mut self, mut found: BTreeMap<String, V>, now: UnixTime) -> Compared {
        let mut compared = Compared::default();
        // By request: whether some write was found, and whether some was not.
        let mut requests: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
        for (key, object) in &mut self.objects {
            compared.objects += 1;
            let there = found.remove(key);
            let settled = object.settle(there, now, &mut requests);
            if let Err(why) = settled {
                compared.violations.push(format!("{key}: {why}"));
            }
        }
        let nobodys = found.into_iter().map(|(key, value)| format!("{key}: nobody made {}", value.tell()));
        compared.violations.extend(nobodys);
        for (is_kept, is_dropped) in requests.into_values() {
            match (is_kept, is_dropped) {
                (true, true) => compared.violations.push("half of a request was kept".to_owned()),
                (true, false) => compared.kept += 1,
                (false, _) => compared.dropped += 1,
            }
        }
        compared
    }
}

impl<V: Value> Object<V> {
    fn settle(
        &mut self,
        found: Option<V>,
        now: UnixTime,
        requests: &mut BTreeMap<u64, (bool, bool)>,
    ) -> Result<(), String> {
        let before = self.acknowledged.take();
        let write = self.under_way.take();
        let was = same(before.as_ref(), found.as_ref());
        let is_written = write.as_ref().map(|write| same(write.value.as_ref(), found.as_ref()));
        let is_gone =
            |value: &Option<V>| found.is_none() && value.as_ref().is_some_and(|value| value.may_be_gone(now));
        let may_be_gone = is_gone(&before) || write.as_ref().is_some_and(|write| is_gone(&write.value));
        if let (Some(write), Some(is_written)) = (&write, is_written)
            // A write that changes nothing, or whose object has outlived itself, says nothing of its request.
            && was != is_written
            && !may_be_gone
        {
            let (kept, dropped) = requests.entry(write.request).or_default();
            *kept |= is_written;
            *dropped |= was;
        }
        let told = |value: &Option<V>| value.as_ref().map_or_else(|| "nothing".to_owned(), V::tell);
        let outcome = if was || is_written == Some(true) || may_be_gone {
            Ok(())
        } else {
            let under_way = write.map_or_else(String::new, |write| format!(", or {}", told(&write.value)));
            Err(format!("expected {}{under_way}, found {}", told(&before), told(&found)))
        };
        self.acknowledged = found;
        outcome
    }
}

fn same<V: Value>(expected: Option<&V>, found: Option<&V>) -> bool {
    match (expected, found) {
        (None, None) => true,
        (Some(expected), Some(found)) => expected.is(found),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number, and when it ends.
    #[derive(Clone, Debug, PartialEq)]
    struct Number(u32, i64);

    impl Value for Number {
        fn is(&self, found: &Self) -> bool {
            self == found
        }

        fn may_be_gone(&self, now: UnixTime) -> bool {
            now.secs() >= self.1
        }

        fn tell(&self) -> String {
            self.0.to_string()
        }
    }

    const ENDLESS: i64 = i64::MAX;

    fn one(number: u32) -> Option<Number> {
        Some(Number(number, ENDLESS))
    }

    /// A ledger in which `a` was acknowledged as 1.
    fn with_a() -> Ledger<Number> {
        let mut ledger = Ledger::default();
        ledger.begin([("a".to_owned(), one(1))]);
        ledger.acknowledge("a", one(1));
        ledger
    }

    fn compare(ledger: &mut Ledger<Number>, found: &[(&str, Number)]) -> Compared {
        let found = found.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        ledger.compare(found, UnixTime::from_secs(100))
    }

    fn violations(ledger: &mut Ledger<Number>, found: &[(&str, Number)]) -> usize {
        compare(ledger, found).violations.len()
    }

    #[test]
    fn what_was_acknowledged_must_be_there_with_its_value() {
        assert_eq!(violations(&mut with_a(), &[("a", Number(1, ENDLESS))]), 0);
        assert_eq!(violations(&mut with_a(), &[]), 1);
        assert_eq!(violations(&mut with_a(), &[("a", Number(2, ENDLESS))]), 1);
        assert_eq!(violations(&mut with_a(), &[("a", Number(1, ENDLESS)), ("b", Number(1, ENDLESS))]), 1);
    }

    #[test]
    fn what_was_deleted_stays_deleted() {
        let mut ledger = with_a();
        ledger.begin([("a".to_owned(), None)]);
        ledger.acknowledge("a", None);
        assert_eq!(violations(&mut ledger, &[]), 0);
        assert_eq!(violations(&mut ledger, &[("a", Number(1, ENDLESS))]), 1);
    }

    #[test]
    fn what_had_no_answer_is_there_or_not_and_stays_as_it_was_found() {
        for (found, kept) in [(2, 1), (1, 0)] {
            let mut ledger = with_a();
            ledger.begin([("a".to_owned(), one(2))]);
            let compared = compare(&mut ledger, &[("a", Number(found, ENDLESS))]);
            assert_eq!((compared.violations.len(), compared.kept, compared.dropped), (0, kept, 1 - kept));
            assert_eq!(violations(&mut ledger, &[("a", Number(3 - found, ENDLESS))]), 1);
        }
        let mut ledger = with_a();
        ledger.begin([("a".to_owned(), one(2))]);
        assert_eq!(violations(&mut ledger, &[("a", Number(3, ENDLESS))]), 1);
    }

    #[test]
    fn a_refused_write_has_changed_nothing() {
        let mut ledger = with_a();
        ledger.begin([("a".to_owned(), one(2))]);
        ledger.refused("a");
        assert_eq!(violations(&mut ledger, &[("a", Number(2, ENDLESS))]), 1);
    }

    #[test]
    fn half_of_a_request_is_a_violation() {
        let begun = || {
            let mut ledger = with_a();
            ledger.begin([("a".to_owned(), one(2)), ("b".to_owned(), one(1))]);
            ledger
        };
        assert_eq!(violations(&mut begun(), &[("a", Number(2, ENDLESS)), ("b", Number(1, ENDLESS))]), 0);
        assert_eq!(violations(&mut begun(), &[("a", Number(1, ENDLESS))]), 0);
        assert_eq!(violations(&mut begun(), &[("a", Number(2, ENDLESS))]), 1);
        assert_eq!(violations(&mut begun(), &[("a", Number(1, ENDLESS)), ("b", Number(1, ENDLESS))]), 1);
    }

    #[test]
    fn what_has_ended_may_go_once_and_not_before_its_end() {
        let with_end = |end| {
            let mut ledger = Ledger::default();
            ledger.begin([("a".to_owned(), Some(Number(1, end)))]);
            ledger.acknowledge("a", Some(Number(1, end)));
            ledger
        };
        assert_eq!(violations(&mut with_end(101), &[]), 1);
        let mut ledger = with_end(100);
        assert_eq!(ledger.due(UnixTime::from_secs(100)), 1);
        assert_eq!(violations(&mut ledger, &[("a", Number(1, 100))]), 0);
        assert_eq!(violations(&mut ledger, &[]), 0);
        assert_eq!(violations(&mut ledger, &[("a", Number(1, 100))]), 1, "it came back");
    }
}
