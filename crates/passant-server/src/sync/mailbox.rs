//! What has an agent not been told of yet?

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use passant_core::{EntryId, TrustDomain, UnixTime};
use tokio::sync::Notify;

use crate::limits::WATCH_ENTRIES;
use crate::state::Revision;

/// What may have changed for one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) entries: Touched,
    pub(crate) bundles: bool,
    pub(crate) authorities: bool,
    pub(crate) stops: bool,
    /// Its row, and so perhaps whether it may watch at all.
    pub(crate) standing: bool,
}

/// Which entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// These, in no order.
    Some(Vec<EntryId>),
    /// Any.
    All,
}

/// Why a watch is to end that did nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The agent watches elsewhere now.
    Replaced,
    /// The server stops.
    Stopping,
}

/// What a watch hears, whether it may send or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signals {
    pub(crate) end: Option<End>,
    /// Whether to see if it may still watch.
    pub(crate) standing: bool,
}

/// How far a watching agent has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// What it has acknowledged.
    pub(crate) acked: Option<Revision>,
    /// Since when it has something outstanding: not yet sent, or not yet acknowledged.
    pub(crate) owing_since: Option<UnixTime>,
}

/// Between the hub and the task of one watch. News are merged: however long an agent takes, they are few.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    inside: Mutex<Inside>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    news: News,
    /// The newest revision that has left news here.
    marked: Revision,
    end: Option<End>,
    /// Foreign trust domains whose bundles the agent is sent.
    federates: BTreeSet<TrustDomain>,
    /// Whether what was taken from here has not been acknowledged. So it is at the beginning.
    is_settled: bool,
    acked: Option<Revision>,
    owing_since: Option<UnixTime>,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl Touched {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(ids) if ids.is_empty())
    }

    /// Adds entries, as long as they are few.
    pub(crate) fn add(&mut self, ids: &[EntryId]) {
        let Self::Some(known) = self else { return };
        if ids.len() > WATCH_ENTRIES {
            *self = Self::All;
            return;
        }
        // What is changed again and again counts once.
        let more: Vec<EntryId> = ids.iter().filter(|id| !known.contains(id)).cloned().collect();
        if known.len() + more.len() > WATCH_ENTRIES {
            *self = Self::All;
        } else {
            known.extend(more);
        }
    }
}

impl News {
    /// That anything may have changed.
    pub(crate) const EVERYTHING: Self =
        Self { entries: Touched::All, bundles: true, authorities: true, stops: true, standing: true };

    /// Whether there is nothing to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.bundles && !self.authorities && !self.stops
    }

    /// Takes in what `other` says.
    pub(crate) fn add(&mut self, other: &Self) {
        match &other.entries {
            Touched::All => self.entries = Touched::All,
            Touched::Some(ids) => self.entries.add(ids),
        }
        self.bundles |= other.bundles;
        self.authorities |= other.authorities;
        self.stops |= other.stops;
        self.standing |= other.standing;
    }
}

impl Mailbox {
    /// Leaves news of everything up to `revision` that concerns the agent. Whether others lay there.
    pub(crate) fn put(&self, news: &News, revision: Revision, now: UnixTime) -> bool {
        let mut inside = self.lock();
        let others = !inside.news.is_empty();
        inside.news.add(news);
        inside.marked = inside.marked.max(revision);
        if !inside.news.is_empty() {
            inside.owing_since.get_or_insert(now);
        }
        drop(inside);
        self.wake.notify_one();
        others
    }

    /// Tells the watch to end.
    pub(crate) fn end(&self, why: End) {
        self.lock().end.get_or_insert(why);
        self.wake.notify_one();
    }

    /// Resolves when there is something to look at. Nothing is lost if the future is dropped.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What does not wait for the agent.
    pub(crate) fn signals(&self) -> Signals {
        let mut inside = self.lock();
        Signals { end: inside.end, standing: std::mem::take(&mut inside.news.standing) }
    }

    /// What is to be sent, and the newest revision that it is of; `None` if there is nothing. What is taken is owed until
    /// [`Mailbox::settle`].
    pub(crate) fn take(&self) -> Option<(News, Revision)> {
        let mut inside = self.lock();
        if inside.news.is_empty() {
            return None;
        }
        inside.is_settled = false;
        let standing = inside.news.standing;
        let news = std::mem::replace(&mut inside.news, News { standing, ..News::default() });
        Some((news, inside.marked))
    }

    /// Whether nothing waits to be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().news.is_empty()
    }

    /// The agent has everything up to `acked`, and owes nothing of what was taken; `None`: there was nothing to send.
    pub(crate) fn settle(&self, acked: Option<Revision>) {
        let mut inside = self.lock();
        inside.is_settled = true;
        inside.acked = inside.acked.max(acked);
        if inside.news.is_empty() {
            inside.owing_since = None;
        }
    }

    /// The agent is about to get what it has to acknowledge.
    pub(crate) fn owe(&self, now: UnixTime) {
        let mut inside = self.lock();
        inside.is_settled = false;
        inside.owing_since.get_or_insert(now);
    }

    /// Of which foreign trust domains the agent is sent the bundles from now on.
    pub(crate) fn federate(&self, with: BTreeSet<TrustDomain>) {
        self.lock().federates = with;
    }

    /// Whether it is sent one of these bundles.
    pub(crate) fn federates(&self, with: &BTreeSet<TrustDomain>) -> bool {
        if with.is_empty() {
            return false;
        }
        let inside = self.lock();
        with.iter().any(|one| inside.federates.contains(one))
    }

    /// How far the agent has come.
    pub(crate) fn progress(&self) -> Progress {
        let inside = self.lock();
        let is_owing = !inside.is_settled || !inside.news.is_empty();
        Progress { acked: inside.acked, owing_since: inside.owing_since.filter(|_| is_owing) }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::samples::{at, entry_id};

    fn some(ids: &[&str]) -> News {
        News { entries: Touched::Some(ids.iter().map(|id| entry_id(id)).collect()), ..News::default() }
    }

    #[test]
    fn news_are_merged_and_are_few() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.put(&some(&["a"]), Revision::new(1), at(1)));
        assert!(mailbox.put(&some(&["a", "b"]), Revision::new(2), at(2)));
        let (news, marked) = mailbox.take().unwrap();
        assert_eq!((news, marked), (some(&["a", "b"]), Revision::new(2)));
        assert_eq!(mailbox.take(), None);
        for number in 0..=WATCH_ENTRIES {
            let news = some(&[&format!("e{number}")]);
            mailbox.put(&news, Revision::new(3), at(3));
        }
        assert_eq!(mailbox.take().unwrap().0.entries, Touched::All);
    }

    #[test]
    fn an_agent_owes_until_everything_that_lay_here_is_settled() {
        let mailbox = Mailbox::default();
        let owing = || mailbox.progress().owing_since;
        mailbox.owe(at(1));
        assert_eq!(owing(), Some(at(1)));
        mailbox.settle(Some(Revision::new(1)));
        assert_eq!(owing(), None);
        mailbox.put(&some(&["a"]), Revision::new(2), at(2));
        assert_eq!(owing(), Some(at(2)));
        mailbox.take();
        assert_eq!(owing(), Some(at(2)), "it is taken, and not acknowledged");
        mailbox.put(&some(&["b"]), Revision::new(3), at(3));
        mailbox.settle(Some(Revision::new(2)));
        assert_eq!(owing(), Some(at(2)), "the second one lies there");
        mailbox.take();
        mailbox.settle(None);
        assert_eq!((owing(), mailbox.progress().acked), (None, Some(Revision::new(2))));
    }

    #[test]
    fn standing_is_looked_at_whether_the_agent_reads_or_not() {
        let mailbox = Mailbox::default();
        mailbox.put(&News { standing: true, ..News::default() }, Revision::new(1), at(1));
        assert_eq!(mailbox.take(), None);
        assert_eq!(mailbox.signals(), Signals { end: None, standing: true });
        mailbox.end(End::Replaced);
        mailbox.end(End::Stopping);
        assert_eq!(mailbox.signals(), Signals { end: Some(End::Replaced), standing: false });
    }
}
