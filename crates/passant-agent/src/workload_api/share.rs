//! How much of the endpoint may one user take?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts what each user holds of a limited thing.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    book: Arc<Mutex<Book>>,
    per_user: usize,
    all: usize,
}

#[derive(Debug, Default)]
struct Book {
    by_uid: BTreeMap<u32, usize>,
    sum: usize,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    book: Arc<Mutex<Book>>,
    uid: u32,
}

impl Shares {
    pub(super) fn new(per_user: usize, all: usize) -> Self {
        Self { book: Arc::default(), per_user, all }
    }

    /// One for the user `uid`, unless that user has too many or there are too many altogether.
    pub(super) fn take(&self, uid: u32) -> Option<Share> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let held = book.by_uid.get(&uid).copied().unwrap_or(0);
        if held >= self.per_user || book.sum >= self.all {
            return None;
        }
        book.by_uid.insert(uid, held + 1);
        book.sum += 1;
        Some(Share { book: Arc::clone(&self.book), uid })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.sum -= 1;
        let held = book.by_uid.get(&self.uid).copied().unwrap_or(0);
        if held <= 1 {
            book.by_uid.remove(&self.uid);
        } else {
            book.by_uid.insert(self.uid, held - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_what_others_need() {
        let shares = Shares::new(2, 3);
        let first = shares.take(1).unwrap();
        let second = shares.take(1).unwrap();
        assert!(shares.take(1).is_none(), "two for each user");
        let third = shares.take(2).unwrap();
        assert!(shares.take(3).is_none(), "three in all");
        drop(first);
        let again = shares.take(1).unwrap();
        drop((second, third, again));
        assert!(shares.book.lock().unwrap().by_uid.is_empty());
        assert_eq!(shares.book.lock().unwrap().sum, 0);
    }
}
