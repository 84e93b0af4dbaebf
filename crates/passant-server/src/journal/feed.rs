//! How does somebody follow what is committed, change by change?

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::limits::{FEED_CHANGES, FEED_QUEUE};
use crate::state::State;
use crate::state::change::Change;

/// What one append changed.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// The state before it, which was shown to everybody.
    pub(crate) before: Arc<State>,
    /// The state after it.
    pub(crate) after: Arc<State>,
    /// What was put and deleted, in order; `None`: that is not known any more, it may be anything.
    pub(crate) changes: Option<Vec<Change>>,
}

/// Between the writer, which never waits, and the one who follows. One who is far behind gets one difference for many.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// `None` while nobody follows.
    queue: Mutex<Option<Queue>>,
    published: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    published: VecDeque<Published>,
    /// Changes that they hold together.
    changes: usize,
}

/// Follows the journal: hears of each state that is shown from now on. There is one follower; a second takes its place.
#[derive(Debug)]
pub(crate) struct Follower(Arc<Feed>);

impl Feed {
    pub(super) fn follow(feed: &Arc<Self>) -> Follower {
        *feed.lock() = Some(Queue::default());
        Follower(Arc::clone(feed))
    }

    /// Whether it matters what is published.
    pub(super) fn is_followed(&self) -> bool {
        self.lock().is_some()
    }

    /// To be called once `published.after` is what everybody reads.
    pub(super) fn publish(&self, published: Published) {
        if let Some(queue) = &mut *self.lock() {
            queue.push(published);
            self.published.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Queue>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, mut published: Published) {
        let more = published.changes.as_ref().map_or(0, Vec::len);
        if self.published.len() >= FEED_QUEUE || self.changes.saturating_add(more) > FEED_CHANGES {
            if let Some(oldest) = self.published.pop_front() {
                published.before = oldest.before;
            }
            self.published.clear();
            self.changes = 0;
            published.changes = None;
        } else {
            self.changes += more;
        }
        self.published.push_back(published);
    }
}

impl Follower {
    /// The next difference, each one beginning where the one before ended. Nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> Published {
        loop {
            if let Some(queue) = &mut *self.0.lock()
                && let Some(published) = queue.published.pop_front()
            {
                queue.changes -= published.changes.as_ref().map_or(0, Vec::len);
                return published;
            }
            self.0.published.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{commit, entry_id, trust_domain};
    use crate::state::{Cursor, Lineage, Revision};

    fn states(many: u64) -> Vec<Arc<State>> {
        let mut state =
            State::empty(trust_domain(), Cursor { lineage: Lineage::new([1; 16]), revision: Revision::ZERO });
        let mut states = vec![Arc::new(state.clone())];
        for number in 0..many {
            state.apply(&commit(number, vec![]));
            states.push(Arc::new(state.clone()));
        }
        states
    }

    fn published(before: &Arc<State>, after: &Arc<State>, changes: usize) -> Published {
        let change = Change::DeleteEntry(entry_id("e"));
        let (before, after) = (Arc::clone(before), Arc::clone(after));
        Published { before, after, changes: Some(vec![change; changes]) }
    }

    #[tokio::test]
    async fn differences_come_in_order_and_those_before_the_following_do_not() {
        let (feed, states) = (Arc::new(Feed::default()), states(3));
        assert!(!feed.is_followed());
        feed.publish(published(&states[0], &states[1], 1));
        let mut follower = Feed::follow(&feed);
        feed.publish(published(&states[1], &states[2], 2));
        feed.publish(published(&states[2], &states[3], 0));
        let first = follower.next().await;
        assert_eq!((first.before, first.changes.map(|all| all.len())), (Arc::clone(&states[1]), Some(2)));
        assert_eq!(follower.next().await.after, states[3]);
    }

    #[tokio::test]
    async fn who_is_far_behind_gets_one_difference_for_all() {
        for (many, changes) in [(FEED_QUEUE + 1, 0), (2, FEED_CHANGES / 2 + 1)] {
            let (feed, states) = (Arc::new(Feed::default()), states(many as u64));
            let mut follower = Feed::follow(&feed);
            for at in 0..many {
                feed.publish(published(&states[at], &states[at + 1], changes));
            }
            let all = follower.next().await;
            assert_eq!((&all.before, &all.after), (&states[0], &states[many]));
            assert!(all.changes.is_none());
            feed.publish(published(&states[0], &states[1], FEED_CHANGES));
            assert_eq!(follower.next().await.changes.map(|all| all.len()), Some(FEED_CHANGES));
        }
    }
}
