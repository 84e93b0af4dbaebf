//! Who is next, when many want what there is little of?

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// So many turns at a time, so many of them for one taker. Those who wait are served in rotation: each taker that waits gets
/// one turn before any gets its second, so that who asks for a thousand delays nobody but itself. Clones share the turns.
pub struct Turns<K: Ord + Clone> {
    book: Arc<Mutex<Book<K>>>,
}

/// A turn, given back when dropped.
pub struct Turn<K: Ord + Clone> {
    /// Absent once it was given back.
    of: Option<K>,
    book: Arc<Mutex<Book<K>>>,
}

struct Book<K: Ord + Clone> {
    free: usize,
    each: usize,
    tickets: u64,
    takers: BTreeMap<K, Taker<K>>,
    /// Takers with somebody waiting, the next one first; each stands here once.
    rotation: VecDeque<K>,
}

struct Taker<K: Ord + Clone> {
    held: usize,
    /// By ticket: in the order in which they came.
    waiting: BTreeMap<u64, oneshot::Sender<Turn<K>>>,
}

/// A place in the line, left when dropped.
struct Place<'a, K: Ord + Clone> {
    book: &'a Arc<Mutex<Book<K>>>,
    of: &'a K,
    ticket: u64,
}

impl<K: Ord + Clone> Turns<K> {
    /// At most `all` turns at a time, and `each` of one taker; neither is zero.
    pub fn new(all: usize, each: usize) -> Self {
        let book = Book { free: all, each, tickets: 0, takers: BTreeMap::new(), rotation: VecDeque::new() };
        Self { book: Arc::new(Mutex::new(book)) }
    }

    /// The next turn of `of`. Whoever stops waiting leaves the line.
    pub async fn take(&self, of: K) -> Turn<K> {
        let (ticket, granted) = {
            let mut book = lock(&self.book);
            let each = book.each;
            let held = book.takers.get(&of).map_or(0, |taker| taker.held);
            // A free turn that nobody took means that all who wait hold as many as they may.
            if book.free > 0 && held < each {
                return book.grant(of, &self.book);
            }
            book.line_up(&of)
        };
        let place = Place { book: &self.book, of: &of, ticket };
        let turn = granted.await;
        drop(place);
        turn.expect("the book keeps the other end as long as the place is taken")
    }

    /// A turn for `of`, if there is one at once.
    pub fn try_take(&self, of: K) -> Option<Turn<K>> {
        let mut book = lock(&self.book);
        let held = book.takers.get(&of).map_or(0, |taker| taker.held);
        (book.free > 0 && held < book.each).then(|| book.grant(of, &self.book))
    }
}

impl<K: Ord + Clone> Book<K> {
    fn grant(&mut self, of: K, shared: &Arc<Mutex<Self>>) -> Turn<K> {
        self.free -= 1;
        self.takers.entry(of.clone()).or_insert_with(Taker::new).held += 1;
        Turn { of: Some(of), book: Arc::clone(shared) }
    }

    fn line_up(&mut self, of: &K) -> (u64, oneshot::Receiver<Turn<K>>) {
        self.tickets += 1;
        let (grant, granted) = oneshot::channel();
        let taker = self.takers.entry(of.clone()).or_insert_with(Taker::new);
        if taker.waiting.is_empty() {
            self.rotation.push_back(of.clone());
        }
        taker.waiting.insert(self.tickets, grant);
        (self.tickets, granted)
    }

    fn leave(&mut self, of: &K, ticket: u64) {
        let Some(taker) = self.takers.get_mut(of) else { return };
        if taker.waiting.remove(&ticket).is_some() && taker.waiting.is_empty() {
            self.rotation.retain(|waiting| waiting != of);
            self.forget_if_idle(of);
        }
    }

    /// Takes a turn of `of` back, and hands out what is free.
    fn give_back(&mut self, of: &K, shared: &Arc<Mutex<Self>>) {
        self.free += 1;
        if let Some(taker) = self.takers.get_mut(of) {
            taker.held -= 1;
        }
        self.forget_if_idle(of);
        while self.free > 0 {
            let each = self.each;
            let may = |of: &K| self.takers.get(of).is_some_and(|taker| taker.held < each);
            let Some(at) = self.rotation.iter().position(may) else { return };
            let Some(next) = self.rotation.remove(at) else { return };
            let Some(taker) = self.takers.get_mut(&next) else { continue };
            let Some((_, waiting)) = taker.waiting.pop_first() else { continue };
            if !taker.waiting.is_empty() {
                self.rotation.push_back(next.clone());
            }
            let turn = self.grant(next.clone(), shared);
            if let Err(mut turn) = waiting.send(turn) {
                // Who waited has just left: the turn goes on to the next, and is not to come back through its own drop,
                // which would wait for this very lock.
                turn.of = None;
                self.free += 1;
                if let Some(taker) = self.takers.get_mut(&next) {
                    taker.held -= 1;
                }
                self.forget_if_idle(&next);
            }
        }
    }

    fn forget_if_idle(&mut self, of: &K) {
        if self.takers.get(of).is_some_and(|taker| taker.held == 0 && taker.waiting.is_empty()) {
            self.takers.remove(of);
        }
    }
}

impl<K: Ord + Clone> Taker<K> {
    fn new() -> Self {
        Self { held: 0, waiting: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Drop for Turn<K> {
    fn drop(&mut self) {
        if let Some(of) = self.of.take() {
            lock(&self.book).give_back(&of, &self.book);
        }
    }
}

impl<K: Ord + Clone> Drop for Place<'_, K> {
    fn drop(&mut self) {
        lock(self.book).leave(self.of, self.ticket);
    }
}

impl<K: Ord + Clone> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self { book: Arc::clone(&self.book) }
    }
}

impl<K: Ord + Clone> fmt::Debug for Turns<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Turns").field("free", &book.free).field("takers", &book.takers.len()).finish()
    }
}

impl<K: Ord + Clone> fmt::Debug for Turn<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}

fn lock<T>(book: &Mutex<T>) -> MutexGuard<'_, T> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn waits(future: std::pin::Pin<&mut impl Future>) -> bool {
        matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    #[tokio::test]
    async fn who_wants_most_is_served_in_rotation_with_the_others() {
        let turns = Turns::new(1, 1);
        let first = turns.take("greedy").await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut all = tokio::task::JoinSet::new();
        for who in ["greedy", "greedy", "greedy", "greedy", "modest", "third"] {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            all.spawn(async move {
                let turn = turns.take(who).await;
                order.lock().unwrap().push(who);
                tokio::task::yield_now().await;
                drop(turn);
            });
        }
        // On this one thread, all of them wait once this task runs again.
        tokio::task::yield_now().await;
        drop(first);
        all.join_all().await;
        assert_eq!(*order.lock().unwrap(), ["greedy", "modest", "third", "greedy", "greedy", "greedy"]);
        assert!(lock(&turns.book).takers.is_empty());
    }

    #[tokio::test]
    async fn one_taker_leaves_turns_for_the_others() {
        let turns = Turns::new(3, 2);
        let held = [turns.take("greedy").await, turns.take("greedy").await];
        assert!(turns.try_take("greedy").is_none());
        let mut third = pin!(turns.take("greedy"));
        assert!(waits(third.as_mut()));
        let modest = turns.take("modest").await;
        assert!(turns.try_take("other").is_none(), "three in all");
        drop(modest);
        assert!(waits(third.as_mut()), "it holds two still");
        drop(held);
        drop(third.await);
        assert!(lock(&turns.book).takers.is_empty());
        assert_eq!(lock(&turns.book).free, 3);
    }

    #[tokio::test]
    async fn whoever_stops_waiting_leaves_nothing_behind() {
        let turns = Turns::new(1, 1);
        let held = turns.take(1).await;
        for who in 2..100 {
            let mut waiting = Box::pin(turns.take(who));
            assert!(waits(waiting.as_mut()));
        }
        assert_eq!(lock(&turns.book).takers.len(), 1);
        assert!(lock(&turns.book).rotation.is_empty());
        // One that has been granted its turn, and stops before it learns of it, gives it back.
        let mut granted = Box::pin(turns.take(2));
        assert!(waits(granted.as_mut()));
        drop(held);
        assert!(turns.try_take(3).is_none());
        drop(granted);
        drop(turns.try_take(3).unwrap());
        assert!(lock(&turns.book).takers.is_empty());
    }
}
